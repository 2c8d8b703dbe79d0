//! `waft agent install`: an agent that the system starts, ends and starts again.
//!
//! What is written is a text in the language of systemd, launchd or WinSW, each in a file of its own.
//! None of them holds a token: that lies in the home, in a file that only its owner reads.

mod launchd;
mod systemd;
mod windows;

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::Serialize;

use super::Call;
use super::agent::Flags;
use super::failure::{Done, Failure};
use super::reach::Reach;
use crate::config::{Config, Credentials, Home, Millis, home_folder, variable};
use crate::model::grant::Mode;
use crate::storage::Root;

/// How long a stop may take unless it is said otherwise: as long as an attempt may.
const STOP: Millis = Millis(10 * 60 * 1_000);
/// What the drain of an agent takes beside its runs.
const FAREWELL_SECONDS: u64 = 30;

/// Prints what makes the system start an agent; writes it where the system looks for it, if asked.
///
/// The flags of `waft agent start` mean the same here. The text never holds a token.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Address and token lie in `credentials.toml` of the home, which only its owner reads: with --write
they are put there if --server and --token are given. Variables of this shell, WAFT__… among them,
are not those of the service: what is set for good belongs into config.toml of the home.

With --user the service is yours and has your home. With --system it is a user's of its own, with
/var/lib/waft for a home unless WAFT_HOME is set.

Only systemd was tried so far. For Windows the text is one for WinSW, which makes a service of a
program.

Examples:
  waft agent install --limit 4 --label gpu
  waft agent install --write --server https://flows.example.org --token \"$TOKEN\"
  waft agent install --system --for launchd")]
pub(super) struct Args {
    /// For which system; this one unless given.
    #[arg(long = "for", value_enum, value_name = "SYSTEM")]
    kind: Option<Kind>,
    /// A service of yours, which runs while you are logged in; so it is unless --system is given.
    #[arg(long, conflicts_with = "system")]
    user: bool,
    /// A service of the machine, which runs from its start.
    #[arg(long)]
    system: bool,
    /// Whose process it is with --system; `waft` unless given.
    #[arg(long, value_name = "USER", requires = "system", value_parser = super::argument::name)]
    run_as: Option<String>,
    /// How long a stop waits for runs to finish before they are taken away; 10m unless given.
    #[arg(long, value_name = "TIME")]
    stop_time: Option<Millis>,
    /// Writes it, and the token, instead of printing it only.
    #[arg(long)]
    write: bool,
    /// Answers beforehand whether something else may be replaced.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    agent: Flags,
}

/// Who starts the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    /// Linux: a unit.
    Systemd,
    /// macOS: a property list.
    Launchd,
    /// Windows: the configuration of WinSW.
    Windows,
}

/// What a service is, whoever starts it.
struct Service {
    /// What it is called where there are others.
    title: String,
    /// The agent's name, where one is given.
    name: Option<String>,
    program: PathBuf,
    home: PathBuf,
    /// The arguments of the program.
    arguments: Vec<String>,
    /// Whose process it is, where it is the machine's.
    run_as: Option<String>,
    /// Folders that it writes, its home first.
    writes: Vec<PathBuf>,
    /// Folders that it reads and that may be temporary.
    reads: Vec<PathBuf>,
    stop_seconds: u64,
}

/// What is printed as JSON.
#[derive(Serialize)]
struct Installed {
    kind: Kind,
    file: PathBuf,
    text: String,
    commands: Vec<String>,
    is_written: bool,
}

pub(super) fn run(args: &Args, reach: &Reach, call: &Call) -> Done {
    let kind = args.kind.unwrap_or(Kind::HERE);
    let config = config_of_service(args, kind, call)?;
    let service = Service::new(args, &config, kind)?;
    let (file, text, commands) = match kind {
        Kind::Systemd => systemd::unit(&service)?,
        Kind::Launchd => launchd::list(&service)?,
        Kind::Windows => windows::configuration(&service)?,
    };
    if args.write {
        keep_credentials(reach, &config.home, args.yes, call)?;
        write(&file, &text, args.yes, call)?;
    }
    let out = &call.output;
    if out.is_json() {
        return out.json(&Installed {
            kind,
            file,
            text,
            commands,
            is_written: args.write,
        });
    }
    match args.write {
        true => out.note(format!("wrote `{}`", file.display())),
        false => {
            out.line(text.trim_end())?;
            out.note(format!("put it into `{}`; --write does", file.display()));
        }
    }
    if config.home.credentials()?.is_none() {
        let home = config.home.folder().display();
        out.note(format!(
            "no server is known in `{home}`: add --write --server URL --token TOKEN; \
             waft token create NAME --scope agent makes one"
        ));
    }
    for name in args.agent.powers().variables_of_here() {
        out.note(format!(
            "the variable `{name}` has to be set where the service is started"
        ));
    }
    if kind != Kind::HERE {
        out.note("its paths are those of this machine");
    }
    for command in commands {
        out.note(format!("then: {command}"));
    }
    Ok(())
}

impl Kind {
    /// The one of the system that this program was made for.
    const HERE: Self = if cfg!(target_os = "windows") {
        Self::Windows
    } else if cfg!(target_os = "macos") {
        Self::Launchd
    } else {
        Self::Systemd
    };
}

impl Service {
    fn new(args: &Args, config: &Config, kind: Kind) -> Done<Self> {
        let program = std::env::current_exe().map_err(|error| {
            anyhow::Error::new(error).context("cannot find the program `waft` itself")
        })?;
        let settings = &config.settings.agent;
        let mut arguments = vec!["agent".to_owned(), "start".to_owned()];
        arguments.extend(args.agent.words()?);
        let home = config.home.folder().to_owned();
        let mut writes = vec![home.clone()];
        let mut reads = vec![program.clone()];
        let results: Root = config.results_root().parse()?;
        writes.extend(results.folder().map(Path::to_owned));
        reads.extend(
            (args.agent.roots().iter())
                .filter_map(Root::folder)
                .map(Path::to_owned),
        );
        for dir in settings.allow.dirs.iter().chain(args.agent.powers().dirs()) {
            let place = std::path::absolute(&dir.host)?;
            match dir.rule.mode {
                Mode::ReadOnly => reads.push(place),
                Mode::ReadWrite => writes.push(place),
            }
        }
        // What lies in another folder is written with it.
        let all = writes.clone();
        writes.retain(|place| !all.iter().any(|it| it != place && place.starts_with(it)));
        writes.dedup();
        let name = args.agent.name().or(settings.name.as_deref());
        let stop = args.stop_time.unwrap_or(STOP).0.div_ceil(1_000);
        let service = Self {
            title: match name {
                Some(name) => format!("waft-agent-{name}"),
                None => "waft-agent".to_owned(),
            },
            name: name.map(str::to_owned),
            program,
            home,
            arguments,
            run_as: args
                .system
                .then(|| args.run_as.clone().unwrap_or_else(|| "waft".to_owned())),
            writes,
            reads,
            stop_seconds: stop + FAREWELL_SECONDS,
        };
        if kind == Kind::Windows && !args.system {
            return Err(Failure::usage("Windows has no services of a user")
                .or_hint("waft agent install --system --for windows"));
        }
        Ok(service)
    }
}

/// Reads the settings that the service will find: of its home, and none of this shell.
fn config_of_service(args: &Args, kind: Kind, call: &Call) -> Done<Config> {
    let is_given = variable("WAFT_HOME").is_some_and(|home| !home.is_empty());
    let home = match (args.system && !is_given, kind) {
        (false, _) => call.config.home.clone(),
        (true, Kind::Systemd) => Home::new("/var/lib/waft".into()),
        (true, Kind::Launchd) => Home::new("/usr/local/var/waft".into()),
        (true, Kind::Windows) => Home::new(r"C:\ProgramData\waft".into()),
    };
    let file = home.config();
    let text = match std::fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => {
            let what = format!("cannot read `{}`", file.display());
            return Err(anyhow::Error::new(error).context(what).into());
        }
    };
    Ok(Config::read(home, &text, [])?)
}

/// Keeps address and token in the home of the service, if they are given.
fn keep_credentials(reach: &Reach, home: &Home, is_yes: bool, call: &Call) -> Done {
    let (url, token) = reach.given(call);
    let kept = home.credentials()?;
    let url = url.or_else(|| kept.as_ref().map(|kept| kept.url.clone()));
    let (Some(url), Some(token)) = (url, token) else {
        return Ok(());
    };
    // The address is checked as it is when an agent uses it.
    reach.client(call)?;
    let new = Credentials { url, token };
    if kept.as_ref() == Some(&new) {
        return Ok(());
    }
    if let Some(kept) = kept {
        let home = home.folder().display();
        let question = format!("`{home}` has a token for {} already: replace it?", kept.url);
        call.output.ask(&question, is_yes, "nothing was written")?;
    }
    home.keep_credentials(&new).map_err(|error| {
        let what = "cannot leave address and token in the home of the service";
        Failure::from(anyhow::Error::new(error).context(what))
    })
}

/// Writes a text where nothing else is, or may be replaced.
fn write(file: &Path, text: &str, is_yes: bool, call: &Call) -> Done {
    match std::fs::read_to_string(file) {
        Ok(before) if before == text => return Ok(()),
        Ok(_) => {
            let question = format!(
                "`{}` is there and says otherwise: replace it?",
                file.display()
            );
            call.output.ask(&question, is_yes, "nothing was replaced")?;
        }
        Err(_) => {}
    }
    let folder = file.parent().unwrap_or(file);
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(file, text))
        .map_err(|error| {
            let what = format!("cannot write `{}`", file.display());
            Failure::from(anyhow::Error::new(error).context(what))
                .or_hint("without --write it is printed; --system needs the rights of the machine")
        })
}

/// Returns a path as a text that can stand in a line.
fn text_of(path: &Path) -> Done<&str> {
    let text = path.to_str().ok_or_else(|| {
        Failure::could(format!(
            "`{}` is not a plain text, so no file can name it",
            path.display()
        ))
    })?;
    plain(text)
}

/// Refuses what would end a line or mean something else there.
fn plain(text: &str) -> Done<&str> {
    match text.contains(char::is_control) {
        false => Ok(text),
        true => Err(Failure::could(format!(
            "`{}` has control characters, so no file can name it",
            text.escape_debug()
        ))),
    }
}

/// Writes a word of a shell.
fn shell(text: &str) -> String {
    let is_safe = |it: char| it.is_ascii_alphanumeric() || "-_./:=@%,+".contains(it);
    match !text.is_empty() && text.chars().all(is_safe) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// Writes a text as the content of an XML element or attribute.
fn xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            letter => out.push(letter),
        }
    }
    out
}

/// Returns a folder of the user whose service it is.
fn own_folder(rest: &str) -> Done<PathBuf> {
    let home = home_folder().ok_or_else(|| Failure::could("cannot tell where your home is"))?;
    Ok(home.join(rest))
}
