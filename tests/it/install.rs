//! `waft agent install`: what it prints is taken apart by who would read it, or as that one would.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value as Json;
use tempfile::TempDir;

use crate::kit::program::WAFT;

/// A name of a folder with whatever means something to somebody on the way.
const ODD: &str = r#"a b%h$HOME"c'&<d>\e;"#;
/// The same without what systemd does not have in the path of a program.
const ODD_PROGRAM: &str = "a b%h$HOME&<d>;";
/// The same without what WinSW cannot be told.
const ODD_FOR_WINDOWS: &str = r#"a b$HOME"c'&<d>\e;\"#;
const TOKEN: &str = "waft_never_to_be_seen";

/// A home, and the program in a folder beside it.
struct Place {
    folder: TempDir,
    home: PathBuf,
    program: PathBuf,
}

impl Place {
    /// Names a home, and makes a folder of that name for the program.
    fn new(name: &str) -> Self {
        Self::with(name, name)
    }

    fn with(home: &str, program: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bin = folder.path().join(program).join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        let program = bin.join("waft");
        std::fs::hard_link(WAFT, &program)
            .or_else(|_| std::fs::copy(WAFT, &program).map(drop))
            .unwrap();
        let home = folder.path().join(home).join("home");
        Self {
            folder,
            home,
            program,
        }
    }

    fn call(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.program);
        command.args(["agent", "install"]).args(arguments);
        let variables = [
            ("WAFT_HOME", self.home.as_path()),
            ("HOME", self.folder.path()),
        ];
        command.envs(variables).env_remove("XDG_CONFIG_HOME");
        command.output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Json {
        let output = self.call(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn text(&self, arguments: &[&str]) -> String {
        self.json(arguments)["text"].as_str().unwrap().to_owned()
    }

    /// Returns flags that are hard to write down, and the arguments that have to come of them.
    fn odd_flags(&self) -> (Vec<String>, Vec<String>) {
        let data = self.home.join("data");
        let data = data.to_str().unwrap();
        let dir = format!("{data}::/out:rw");
        let value = r#"A=ü x"%n${y}$$\'<&>\"#;
        let own = [
            "--name",
            "mira",
            "--label",
            "gpu",
            "--allow-dir",
            &dir,
            "-e",
            value,
            "--max-memory",
            "64MiB",
        ];
        let own: Vec<String> = own.iter().map(|it| (*it).to_owned()).collect();
        let start = ["agent", "start"].map(str::to_owned).to_vec();
        (own.clone(), [start, own].concat())
    }
}

/// Returns the values of a key of a unit.
fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    let lines = unit.lines();
    lines
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        .collect()
}

/// Takes a line apart as systemd does: quotes, backslashes, then `%%`.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut is_quoted = false;
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => word.get_or_insert_default().push(letters.next().unwrap()),
            '"' => {
                word.get_or_insert_default();
                is_quoted = !is_quoted;
            }
            '\'' if !is_quoted => panic!("a quote of the other kind: {line}"),
            ' ' if !is_quoted => words.extend(word.take()),
            letter => word.get_or_insert_default().push(letter),
        }
    }
    assert!(!is_quoted, "{line}");
    words.extend(word);
    words.iter().map(|word| halved(word, '%')).collect()
}

/// Undoes the doubling of a sign, which must not stand alone.
fn halved(word: &str, sign: char) -> String {
    let pair = format!("{sign}{sign}");
    assert!(!word.replace(&pair, "").contains(sign), "{word}");
    word.replace(&pair, &sign.to_string())
}

#[test]
fn a_unit_of_systemd_says_what_was_asked_however_odd_it_is() {
    let place = Place::with(ODD, ODD_PROGRAM);
    let (flags, wanted) = place.odd_flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    for whose in ["--user", "--system"] {
        let unit = place.text(
            &[
                &flags[..],
                &["--for", "systemd", whose, "--stop-time", "90s"],
            ]
            .concat(),
        );
        let exec = words(values(&unit, "ExecStart")[0]);
        assert_eq!(Path::new(&exec[0]), place.program);
        let arguments: Vec<_> = exec[1..].iter().map(|word| halved(word, '$')).collect();
        assert_eq!(arguments, wanted);
        let home = format!("WAFT_HOME={}", place.home.display());
        assert_eq!(words(values(&unit, "Environment")[0]), [home]);
        // What flows may write lies in the home here, and is written with it.
        let writes = words(values(&unit, "ReadWritePaths")[0]);
        assert_eq!(writes, [place.home.to_str().unwrap()]);
        let only = |key| {
            let values = values(&unit, key);
            assert_eq!(values.len(), 1, "{key}");
            values[0]
        };
        for (key, value) in [
            ("NoNewPrivileges", "yes"),
            ("ProtectSystem", "strict"),
            ("KillSignal", "SIGTERM"),
            ("KillMode", "mixed"),
            ("TimeoutStopSec", "120s"),
            ("Restart", "on-failure"),
        ] {
            assert_eq!(only(key), value, "{key}");
        }
        let is_of_user = whose == "--user";
        assert_eq!(values(&unit, "User").is_empty(), is_of_user);
        // The home is a temporary folder: a unit with one of its own would not find it.
        assert!(values(&unit, "PrivateTmp").is_empty());
        verify(&place, &unit, whose);
    }
}

/// Has systemd itself read a unit, where there is one.
fn verify(place: &Place, unit: &str, whose: &str) {
    let file = place.folder.path().join("waft-agent-mira.service");
    std::fs::write(&file, unit).unwrap();
    let mut command = Command::new("systemd-analyze");
    command.args([whose, "verify", "--man=no"]).arg(&file);
    let Ok(output) = command.output() else {
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    // Other units of this machine are nobody's business here.
    let own: Vec<_> = said
        .lines()
        .filter(|line| line.contains("waft-agent-mira"))
        .collect();
    assert!(own.is_empty(), "{own:#?}\n{unit}");
}

#[test]
fn a_unit_elsewhere_has_temporary_folders_of_its_own() {
    let place = Place::new("plain");
    let mut command = Command::new(WAFT);
    command.args(["agent", "install", "--system", "--for", "systemd"]);
    let output = command.env_remove("WAFT_HOME").output().unwrap();
    let unit = String::from_utf8(output.stdout).unwrap();
    assert_eq!(values(&unit, "ReadWritePaths"), ["/var/lib/waft"]);
    assert_eq!(values(&unit, "User"), ["waft"]);
    let is_temporary = WAFT.starts_with("/tmp") || WAFT.starts_with("/var/tmp");
    assert_eq!(values(&unit, "PrivateTmp").is_empty(), is_temporary);
    let out = format!("{}::/out:rw", place.folder.path().join("x").display());
    let unit = place.text(&["--for", "systemd", "--allow-dir", &out]);
    assert_eq!(words(values(&unit, "ReadWritePaths")[0]).len(), 2);
}

/// A property list as far as it is used here.
#[derive(Debug, PartialEq)]
enum Plist {
    Text(String),
    Number(i64),
    Truth(bool),
    List(Vec<Self>),
    Table(BTreeMap<String, Self>),
}

impl Plist {
    fn of(node: roxmltree::Node<'_, '_>) -> Self {
        let text = || node.text().unwrap_or_default().to_owned();
        let children = || node.children().filter(roxmltree::Node::is_element);
        match node.tag_name().name() {
            "string" => Self::Text(text()),
            "integer" => Self::Number(text().parse().unwrap()),
            "true" => Self::Truth(true),
            "false" => Self::Truth(false),
            "array" => Self::List(children().map(Self::of).collect()),
            "dict" => {
                let nodes: Vec<_> = children().collect();
                let pairs = nodes.chunks(2).map(|pair| {
                    assert_eq!(pair[0].tag_name().name(), "key");
                    (pair[0].text().unwrap().to_owned(), Self::of(pair[1]))
                });
                Self::Table(pairs.collect())
            }
            other => panic!("`{other}` is no part of a property list"),
        }
    }

    fn texts(words: &[String]) -> Self {
        Self::List(words.iter().map(|word| Self::Text(word.clone())).collect())
    }
}

#[test]
fn a_property_list_of_launchd_says_what_was_asked_however_odd_it_is() {
    let place = Place::new(ODD);
    let (flags, wanted) = place.odd_flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let text = place.text(&[&flags[..], &["--for", "launchd"]].concat());
    let options = roxmltree::ParsingOptions {
        allow_dtd: true,
        ..roxmltree::ParsingOptions::default()
    };
    let document = roxmltree::Document::parse_with_options(&text, options).unwrap();
    let root = document.root_element();
    assert_eq!(
        (root.tag_name().name(), root.attribute("version")),
        ("plist", Some("1.0"))
    );
    let Plist::Table(table) = Plist::of(root.first_element_child().unwrap()) else {
        panic!("{text}");
    };
    let program = place.program.to_str().unwrap().to_owned();
    let line = [vec![program], wanted].concat();
    assert_eq!(table["Label"], Plist::Text("waft.agent-mira".to_owned()));
    assert_eq!(table["ProgramArguments"], Plist::texts(&line));
    let home = Plist::Text(place.home.to_str().unwrap().to_owned());
    let variables = BTreeMap::from([("WAFT_HOME".to_owned(), home)]);
    assert_eq!(table["EnvironmentVariables"], Plist::Table(variables));
    assert_eq!(table["ExitTimeOut"], Plist::Number(630));
    let ended_well = BTreeMap::from([("SuccessfulExit".to_owned(), Plist::Truth(false))]);
    assert_eq!(table["KeepAlive"], Plist::Table(ended_well));
    assert!(!table.contains_key("UserName"));
}

/// Takes a command line apart as programs of Windows do.
fn windows_words(line: &str) -> Vec<String> {
    let letters: Vec<char> = line.chars().collect();
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut is_quoted = false;
    let mut at = 0;
    while at < letters.len() {
        let slashes = letters[at..].iter().take_while(|it| **it == '\\').count();
        at += slashes;
        let is_before_quote = letters.get(at) == Some(&'"');
        if slashes > 0 {
            let kept = if is_before_quote {
                slashes / 2
            } else {
                slashes
            };
            word.get_or_insert_default().push_str(&"\\".repeat(kept));
        }
        match letters.get(at) {
            Some('"') if slashes % 2 == 1 => word.get_or_insert_default().push('"'),
            Some('"') => {
                word.get_or_insert_default();
                is_quoted = !is_quoted;
            }
            Some(' ') if !is_quoted => words.extend(word.take()),
            Some(letter) => word.get_or_insert_default().push(*letter),
            None => {}
        }
        at += 1;
    }
    words.extend(word);
    words
}

#[test]
fn a_configuration_of_winsw_says_what_was_asked_or_why_it_cannot() {
    let place = Place::new(ODD_FOR_WINDOWS);
    let out = format!("{}::/out:rw", place.home.join("data").display());
    let flags = ["--name", "mira", "--allow-dir", &out, "-e", r#"A=<&>"x" \"#];
    let own = ["--for", "windows", "--system"];
    let text = place.text(&[&flags[..], &own].concat());
    let document = roxmltree::Document::parse(&text).unwrap();
    let of = |name: &str| {
        let found = document.descendants().find(|it| it.has_tag_name(name));
        found.unwrap()
    };
    assert_eq!(of("id").text(), Some("waftagentmira"));
    assert_eq!(of("executable").text(), place.program.to_str());
    let wanted: Vec<&str> = ["agent", "start"].into_iter().chain(flags).collect();
    assert_eq!(windows_words(of("arguments").text().unwrap()), wanted);
    assert_eq!(of("env").attribute("value"), place.home.to_str());
    assert_eq!(of("stoptimeout").text(), Some("630 sec"));

    let refused = place.call(&[&own[..], &["-e", "A=100%"]].concat());
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("which WinSW takes for a variable"));
    assert_eq!(place.call(&["--for", "windows"]).status.code(), Some(2));
}

#[test]
fn what_is_written_lies_where_it_is_looked_for_and_the_token_in_the_home_alone() {
    let place = Place::new("plain");
    let server = ["--server", "http://127.0.0.1:1", "--token", TOKEN];
    for kind in ["systemd", "launchd"] {
        let output = place.call(&[&server[..], &["--for", kind]].concat());
        assert!(output.status.success(), "{output:?}");
        let said = [output.stdout, output.stderr].concat();
        assert!(!String::from_utf8_lossy(&said).contains(TOKEN), "{kind}");
    }
    assert!(!place.home.exists(), "nothing was written");

    let written = place.json(&[&server[..], &["--for", "systemd", "--write"]].concat());
    let file = place
        .folder
        .path()
        .join(".config/systemd/user/waft-agent.service");
    assert_eq!(written["file"].as_str(), file.to_str());
    assert_eq!(written["is_written"], true);
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(written["text"].as_str(), Some(text.as_str()));
    assert!(!text.contains(TOKEN));
    let credentials = place.home.join("credentials.toml");
    assert!(
        std::fs::read_to_string(&credentials)
            .unwrap()
            .contains(TOKEN)
    );
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(&credentials)
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    // The same again is no question; anything else is one.
    let again =
        |more: &[&str]| place.call(&[&server[..], &["--for", "systemd", "--write"], more].concat());
    assert!(again(&[]).status.success());
    let asked = again(&["--label", "gpu"]);
    assert_eq!(asked.status.code(), Some(2));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    assert!(again(&["--label", "gpu", "--yes"]).status.success());
    assert!(
        std::fs::read_to_string(&file)
            .unwrap()
            .contains("--label gpu")
    );
    let other = [
        "--server",
        "http://127.0.0.1:2",
        "--token",
        "other",
        "--write",
    ];
    assert_eq!(place.call(&other).status.code(), Some(2));
    assert!(
        std::fs::read_to_string(&credentials)
            .unwrap()
            .contains(TOKEN)
    );
}

#[test]
fn what_cannot_stand_in_a_line_is_refused() {
    let refused = Place::with("plain", ODD).call(&["--for", "systemd"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("systemd starts no program"));
    let place = Place::new("plain");
    let out = format!("{}\nExecStartPre=x::/out:rw", place.home.display());
    for kind in ["systemd", "launchd"] {
        let refused = place.call(&["--for", kind, "--allow-dir", &out]);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains("control characters"), "{said}");
    }
}
