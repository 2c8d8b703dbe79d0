//! The house rules that a compiler does not know. Each is a function from text to complaints, and a
//! test that shows it an offender before it looks at the repository.
//!
//! What clippy can say is said in the manifest of the workspace and not here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::kit::repository;

/// Who may import whom: a room of `runtime/src`, and the rooms it may name. `clock` and `config` are
/// open to everyone above `model`; `cli`, `main.rs` and `lib.rs` are where all rooms meet.
const MAY_IMPORT: [(&str, &[&str]); 12] = [
    ("model", &[]),
    ("clock", &["model"]),
    ("config", &["model"]),
    ("wire", &["model"]),
    ("client", &["model", "wire", "tls"]),
    ("tls", &[]),
    ("bounded", &["model"]),
    ("storage", &["bounded", "model", "tls"]),
    ("sandbox", &["bounded", "model"]),
    ("runner", &["model", "sandbox", "storage"]),
    (
        "agent",
        &["client", "model", "runner", "sandbox", "storage", "wire"],
    ),
    ("server", &["model", "wire"]),
];

/// Words of code that have one file or folder of `runtime/src` to themselves, and why.
const ONLY_IN: [(&[&str], &str, &str); 6] = [
    (
        &[
            "Instant::now(",
            "SystemTime::now(",
            "Timestamp::now(",
            "Zoned::now(",
        ],
        "clock.rs",
        "tests set the time",
    ),
    (
        &["env::var(", "env::var_os(", "env::vars(", "env::vars_os("],
        "config.rs",
        "every setting is in one list",
    ),
    (
        &["println!(", "print!(", "eprintln!(", "eprint!("],
        "cli/output.rs",
        "data and talk stay apart",
    ),
    (
        &["bindgen!("],
        "sandbox/bindings.rs",
        "there is one contract",
    ),
    (
        &["sqlx::query"],
        "server/db/",
        "a statement lies beside its table",
    ),
    (
        &["wit_component", "preview1_component_adapter"],
        "cli/preview1.rs",
        "an agent takes components and makes none",
    ),
];

/// Names that say nothing about what a module is for.
const EMPTY_NAMES: [&str; 12] = [
    "util", "utils", "common", "helper", "helpers", "manager", "handler", "handlers", "service",
    "base", "impl", "misc",
];

#[test]
fn rooms_import_only_what_lies_below_them() {
    let offender = "// crate::cli is prose\nuse crate::{client::Client, model::{run::Run, server}};\nlet x = crate::server::db();";
    assert_eq!(
        rooms_named(offender),
        BTreeSet::from(["client", "model", "server"])
    );

    let allowed = BTreeMap::from(MAY_IMPORT);
    let complaints = runtime_sources().into_iter().flat_map(|(path, text)| {
        let room = path
            .split(['/', '.'])
            .next()
            .unwrap_or_default()
            .to_string();
        let open = room == "cli" || room == "main" || room == "lib";
        let below = allowed.get(room.as_str()).copied();
        assert!(
            open || below.is_some(),
            "`{room}` is a new room: say in tidy.rs what it may import"
        );
        let is_allowed = |other: &str| {
            open || other == room
                || below.unwrap_or_default().contains(&other)
                || (room != "model" && ["clock", "config"].contains(&other))
        };
        let wrong: Vec<_> = rooms_named(&text)
            .into_iter()
            .filter(|it| !is_allowed(it))
            .map(str::to_string)
            .collect();
        wrong
            .into_iter()
            .map(move |other| format!("{path}: `{room}` must not know `{other}`"))
    });
    none(complaints);
}

/// Returns the rooms that code names by `crate::`, alone or in braces.
fn rooms_named(text: &str) -> BTreeSet<&str> {
    let mut rooms = BTreeSet::new();
    let starts = text.match_indices("crate::").filter(|(at, _)| {
        let line = text[..*at].rsplit('\n').next().unwrap_or_default();
        !line.trim_start().starts_with("//")
            && !line.ends_with(|it: char| it.is_alphanumeric() || it == '_')
    });
    for (at, found) in starts {
        let rest = &text[at + found.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            rooms.insert(word(rest));
            continue;
        };
        let mut depth = 0;
        let mut item = 0;
        for (at, letter) in group.char_indices() {
            match letter {
                ',' | '}' if depth == 0 => {
                    rooms.insert(word(group[item..].trim_start()));
                    item = at + 1;
                    if letter == '}' {
                        break;
                    }
                }
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
        }
    }
    rooms.retain(|room| room.starts_with(|it: char| it.is_ascii_lowercase()));
    rooms
}

fn word(text: &str) -> &str {
    text.split(|it: char| !it.is_alphanumeric() && it != '_')
        .next()
        .unwrap_or_default()
}

#[test]
fn some_words_of_code_have_one_place() {
    let offender = "// Instant::now() is prose\nlet t = std::time::Instant::now();\n#[cfg(test)]\nmod tests { env::var(x) }";
    assert_eq!(misplaced("agent/mod.rs", offender).len(), 1);
    assert!(misplaced("clock.rs", offender).is_empty());
    assert!(misplaced("agent/tests.rs", offender).is_empty());

    none(
        runtime_sources()
            .iter()
            .flat_map(|(path, text)| misplaced(path, text)),
    );
}

fn misplaced(path: &str, text: &str) -> Vec<String> {
    if path.ends_with("/tests.rs") || path.contains("/tests/") {
        return Vec::new();
    }
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let mut complaints = Vec::new();
    for (number, line) in code
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
    {
        for (words, place, why) in ONLY_IN {
            let found = words
                .iter()
                .find(|it| line.contains(**it))
                .filter(|_| !path.starts_with(place));
            complaints.extend(
                found.map(|it| {
                    format!("{path}:{}: `{it}` is for `{place}` only: {why}", number + 1)
                }),
            );
        }
    }
    complaints
}

#[test]
fn every_interface_of_the_contract_has_one_file_at_the_host() {
    assert_eq!(
        own_imports("world flow {\n    import run;\n    import wasi:http/types@0.2.12;\n}"),
        ["run"]
    );

    let interfaces: BTreeSet<String> = own_imports(&text_of("wit/world.wit")).into_iter().collect();
    let mut files = names_in("runtime/src/sandbox/host");
    files.remove("mod");
    assert_eq!(
        interfaces, files,
        "interfaces of wit/world.wit, and files in runtime/src/sandbox/host"
    );
}

fn own_imports(world: &str) -> Vec<String> {
    let imports = world
        .lines()
        .filter_map(|line| line.trim().strip_prefix("import ")?.strip_suffix(';'));
    imports
        .filter(|name| !name.contains(':'))
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[test]
fn every_example_and_every_guest_has_a_test() {
    for run in [
        r#"guest("some-flow")"#,
        r#"world.register("some-flow").await"#,
        "let table = [\n(\n\"some-flow\",\n\"why\")]",
        r#"for name in ["other", "some-flow"]"#,
        "$ waft run examples/some-flow --json",
        "$ cp \"$WAFT_GUESTS/some-flow.wasm\" .",
    ] {
        assert!(is_tested("some-flow", run), "{run}");
    }
    for other in [
        r#"guest("some-flow-too")"#,
        r#"ran.object["some-flow"]"#,
        r#"// guest("some-flow")"#,
        r#"line.contains("some-flow")"#,
        "$ waft run examples/some-flow-too",
        "waft run examples/some-flow",
        "$ waft run not-some-flow.wasm",
    ] {
        assert!(!is_tested("some-flow", other), "{other}");
    }
    let manifest =
        "[package]\nname = \"a\"\n\n[[example]]\nname = \"b_c\"\n\n[lib]\nname = \"d\"\n";
    assert_eq!(example_targets(manifest), ["b-c"]);

    let mut tests = files("tests/it");
    // This file names guests to show what is no test of them.
    tests.retain(|file| !file.ends_with("tidy.rs"));
    let tests: String = tests.iter().map(|file| read(file)).collect();
    let guests = example_targets(&text_of("tests/guests/Cargo.toml"));
    let names: Vec<String> = names_in("examples").into_iter().chain(guests).collect();
    assert!(
        names.len() > 3,
        "examples and guests were not found: {names:?}"
    );
    none(
        names
            .iter()
            .filter(|name| !is_tested(name, &tests))
            .map(|name| format!("no test in tests/it runs `{name}`")),
    );
}

/// Returns the names of the `[[example]]` targets in a manifest, with `-` for `_`.
fn example_targets(manifest: &str) -> Vec<String> {
    let sections = manifest
        .split("\n[")
        .filter_map(|it| it.strip_prefix("[example]]\n"));
    let lines =
        sections.filter_map(|it| it.lines().find_map(|line| line.strip_prefix("name = \"")));
    lines
        .map(|name| name.trim_end_matches('"').replace('_', "-"))
        .collect()
}

/// Says whether tests run a guest or example: by a call, in a table or list of those that are, or in
/// a transcript on a line that is typed.
fn is_tested(name: &str, tests: &str) -> bool {
    const CALLS: [&str; 4] = ["guest(", "register(", "registration(", "run(home.path(), "];
    let quoted = format!("\"{name}\"");
    let row = format!("({quoted},");
    let is_part = |it: char| it.is_alphanumeric() || it == '-' || it == '_';
    let is_alone = |line: &str, words: &str| {
        line.match_indices(words).any(|(at, it)| {
            !line[..at].ends_with(is_part) && !line[at + it.len()..].starts_with(is_part)
        })
    };
    let mut before = "";
    tests.lines().map(str::trim).any(|line| {
        // A row that does not fit a line begins with a bracket of its own.
        let is_row = line.starts_with(&row)
            || (before == "(" && line.strip_prefix(&quoted).is_some_and(|it| it == ","));
        before = line;
        let is_called = CALLS
            .iter()
            .any(|call| line.contains(&format!("{call}{quoted}")));
        let is_listed = line.starts_with("for name in [") && line.contains(&quoted);
        let is_typed = line.starts_with("$ ")
            && (is_alone(line, &format!("examples/{name}"))
                || is_alone(line, &format!("{name}.wasm")));
        is_typed || (!line.starts_with("//") && (is_row || is_called || is_listed))
    })
}

#[test]
fn markdown_has_one_title_and_no_dead_link() {
    let offender = "# A\n# B\n```\n# code [x](gone.md)\n```\n[x](gone.md#y) [y](https://example.org) [z](#here)";
    assert_eq!(
        markdown_faults(&repository().join("x.md"), offender).len(),
        2
    );

    let pages = files("")
        .into_iter()
        .filter(|file| file.extension().is_some_and(|it| it == "md"));
    none(pages.flat_map(|page| markdown_faults(&page, &read(&page))));
}

fn markdown_faults(page: &Path, text: &str) -> Vec<String> {
    let shown = page.strip_prefix(repository()).unwrap_or(page).display();
    let mut inside = false;
    let prose: Vec<&str> = text
        .lines()
        .filter(|line| {
            let fence = line.trim_start().starts_with("```");
            inside ^= fence;
            !inside && !fence
        })
        .collect();
    let titles = prose.iter().filter(|line| line.starts_with("# ")).count();
    let mut faults = Vec::new();
    if titles != 1 {
        faults.push(format!("{shown}: {titles} titles, not one"));
    }
    for target in prose
        .iter()
        .flat_map(|line| line.split("](").skip(1))
        .filter_map(|rest| rest.split(')').next())
    {
        let path = target.split('#').next().unwrap_or_default();
        let is_elsewhere = path.is_empty() || path.contains(':');
        if !is_elsewhere
            && !page
                .parent()
                .is_some_and(|folder| folder.join(path).exists())
        {
            faults.push(format!("{shown}: the link `{target}` is dead"));
        }
    }
    faults
}

#[test]
fn names_say_what_a_module_is_for() {
    assert!(
        is_empty_name(Path::new("runtime/src/agent/run_utils.rs"))
            && is_empty_name(Path::new("a/helpers/x.rs"))
    );
    assert!(!is_empty_name(Path::new("runtime/src/model/baseline.rs")));

    let sources = rust_files().into_iter().filter(|file| is_empty_name(file));
    none(sources.map(|file| format!("{}: the name says nothing", file.display())));
}

fn is_empty_name(file: &Path) -> bool {
    let names = file
        .iter()
        .filter_map(|it| it.to_str())
        .map(|it| it.trim_end_matches(".rs"));
    names
        .flat_map(|name| name.split('_'))
        .any(|part| EMPTY_NAMES.contains(&part))
}

#[test]
fn every_file_says_what_lives_in_it_and_is_not_too_long() {
    assert_eq!(shape_faults("use std::fs;\n").len(), 1);
    assert_eq!(
        shape_faults(&format!("//! Long.\n{}", "\n".repeat(700))).len(),
        1
    );

    none(rust_files().iter().flat_map(|file| {
        let faults = shape_faults(&read(&repository().join(file)));
        faults
            .into_iter()
            .map(move |fault| format!("{}: {fault}", file.display()))
    }));
}

fn shape_faults(text: &str) -> Vec<&'static str> {
    let unsaid = !text.starts_with("//! ") && !text.starts_with("#!");
    let long = text.lines().count() > 700;
    let faults = [
        (unsaid, "starts without a `//!` comment"),
        (long, "has over 700 lines"),
    ];
    faults
        .into_iter()
        .filter(|(is_so, _)| *is_so)
        .map(|(_, fault)| fault)
        .collect()
}

#[test]
fn the_flow_in_the_readme_is_the_example() {
    assert_eq!(
        first_flow("x\n```rust\nuse a;\n#[flow]\nfn f() {}\n```\n"),
        Some("use a;\n#[flow]\nfn f() {}\n")
    );
    assert_eq!(first_flow("```rust\nlet x = 1;\n```\n"), None);

    let readme = text_of("README.md");
    let shown = first_flow(&readme).expect("the README shows a flow");
    let example = text_of("examples/hello/src/lib.rs");
    assert!(
        example.contains(shown),
        "README.md shows this, which is not in examples/hello/src/lib.rs:\n{shown}"
    );
}

/// Returns the first block of Rust that holds a flow.
fn first_flow(readme: &str) -> Option<&str> {
    let blocks = readme
        .split("```rust\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next());
    blocks.into_iter().find(|block| block.contains("#[flow"))
}

#[test]
fn there_is_one_wasmtime_and_no_openssl() {
    let offender = "name = \"wasmtime\"\nname = \"wasmtime\"\nname = \"aws-lc-sys\"\n";
    assert_eq!(lock_faults(offender).len(), 2);

    none(lock_faults(&text_of("Cargo.lock")));
}

fn lock_faults(lock: &str) -> Vec<String> {
    let count = |name: &str| {
        lock.lines()
            .filter(|line| *line == format!("name = \"{name}\""))
            .count()
    };
    let rules = [("wasmtime", 1), ("openssl-sys", 0), ("aws-lc-sys", 0)];
    let wrong = rules
        .into_iter()
        .filter(|(name, wanted)| count(name) != *wanted);
    wrong
        .map(|(name, wanted)| {
            format!(
                "Cargo.lock has {} packages `{name}`, not {wanted}",
                count(name)
            )
        })
        .collect()
}

#[test]
fn the_sdk_carries_the_contract_unchanged() {
    let tree = |folder: &str| -> BTreeMap<PathBuf, String> {
        let root = repository().join(folder);
        files(folder)
            .iter()
            .map(|file| (file.strip_prefix(&root).unwrap().to_path_buf(), read(file)))
            .collect()
    };
    let (own, copy) = (tree("wit"), tree("sdk/wit"));
    assert!(own.contains_key(Path::new("world.wit")));
    let names: BTreeSet<_> = own.keys().chain(copy.keys()).collect();
    none(
        names
            .into_iter()
            .filter(|name| own.get(*name) != copy.get(*name))
            .map(|name| format!("{} differs between wit and sdk/wit", name.display())),
    );
}

/// Fails with all complaints at once.
fn none(complaints: impl IntoIterator<Item = String>) {
    let complaints: Vec<String> = complaints.into_iter().collect();
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

/// Returns the sources of the product: path below `runtime/src`, text.
fn runtime_sources() -> Vec<(String, String)> {
    let root = repository().join("runtime/src");
    let sources = files("runtime/src")
        .into_iter()
        .filter(|file| file.extension().is_some_and(|it| it == "rs"));
    sources
        .map(|file| {
            (
                file.strip_prefix(&root).unwrap().display().to_string(),
                read(&file),
            )
        })
        .collect()
}

/// Returns all Rust files, as paths from the root of the repository.
fn rust_files() -> Vec<PathBuf> {
    let sources = files("")
        .into_iter()
        .filter(|file| file.extension().is_some_and(|it| it == "rs"));
    sources
        .map(|file| file.strip_prefix(repository()).unwrap().to_path_buf())
        .collect()
}

/// Returns the files below a folder, without what is hidden or compiled.
fn files(folder: &str) -> Vec<PathBuf> {
    fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
        let entries = fs::read_dir(folder)
            .unwrap_or_else(|error| panic!("listing {}: {error}", folder.display()));
        for entry in entries {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy();
            if name.starts_with('.') || name == "target" || name == "node_modules" {
                continue;
            }
            if path.is_dir() {
                collect(&path, found)
            } else {
                found.push(path)
            }
        }
    }
    let mut found = Vec::new();
    collect(&repository().join(folder), &mut found);
    found.sort();
    found
}

/// Returns the names in a folder, without their endings.
fn names_in(folder: &str) -> BTreeSet<String> {
    let path = repository().join(folder);
    let entries =
        fs::read_dir(&path).unwrap_or_else(|error| panic!("listing {}: {error}", path.display()));
    let names = entries.map(|entry| entry.unwrap().path());
    let names = names.filter(|path| path.is_dir() || path.extension().is_some_and(|it| it == "rs"));
    names
        .filter_map(|path| path.file_stem()?.to_str().map(str::to_string))
        .collect()
}

fn text_of(file: &str) -> String {
    read(&repository().join(file))
}

fn read(file: &Path) -> String {
    match fs::read(file) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => panic!("reading {}: {error}", file.display()),
    }
}
