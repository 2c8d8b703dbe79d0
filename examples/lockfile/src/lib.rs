//! Reads a `Cargo.lock` and reports what is in it.
//!
//! Here is the flow and its tasks; `lock` reads the file format and `chains` walks dependencies.

mod chains;
mod lock;

use chains::Chain;
use lock::Package;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;
use waft_sdk::prelude::*;

/// How many chains are reported.
const CHAINS: usize = 10;
/// How many entries of a list a card shows: it is for a human, and the result has all.
const SHOWN: usize = 5;

/// What is known of one package.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Fact {
    name: String,
    version: String,
    /// Where it comes from: `crates.io`, `git`, `path`, or the address of another registry.
    registry: String,
    /// As the lock file writes them: a name, and a version where there are several.
    dependencies: Vec<String>,
}

/// What is counted over all packages.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Summary {
    packages: usize,
    by_registry: BTreeMap<String, usize>,
    /// The versions of every crate that is there more than once.
    several_versions: BTreeMap<String, Vec<String>>,
}

/// The result of the flow.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    #[serde(flatten)]
    summary: Summary,
    deepest_chains: Vec<Chain>,
    from_git: String,
}

/// Reads the lock file from the folder that the agent grants.
#[task(dir = ["/repo:ro"])]
fn read(file: String) -> TaskResult<Vec<Package>> {
    let path = format!("/repo/{file}");
    let text = std::fs::read_to_string(&path)
        .map_err(|cause| Signal::fail_for_good(format!("cannot read `{path}`: {cause}")))?;
    let packages = lock::parse(&text).map_err(Signal::fail_for_good)?;
    log::info!("{} packages in {path}", packages.len());
    Ok(packages)
}

/// Fails on its first attempt on purpose, so that the retry can be seen.
#[task(retries = 2, retry_delay = "100ms")]
fn verify(packages: Vec<Package>) -> TaskResult<usize> {
    if run::attempt() == 1 {
        return Err(Signal::fail(
            "the first attempt fails on purpose; the second one does the work",
        ));
    }
    let unsigned = packages
        .iter()
        .filter(|package| package.is_from_registry() && package.checksum.is_none());
    match unsigned.count() {
        0 => Ok(packages.len()),
        count => Err(Signal::fail_for_good(format!(
            "{count} packages lack a checksum"
        ))),
    }
}

/// Examines one package: one task run each.
#[task]
fn examine(package: Package) -> TaskResult<Fact> {
    let registry = package.registry();
    log::debug!("{} {} from {registry}", package.name, package.version);
    Ok(Fact {
        name: package.name,
        version: package.version,
        registry,
        dependencies: package.dependencies,
    })
}

#[task]
fn summarise(facts: Vec<Fact>) -> TaskResult<Summary> {
    let mut by_registry: BTreeMap<String, usize> = BTreeMap::new();
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let packages = facts.len();
    for fact in facts {
        *by_registry.entry(fact.registry).or_default() += 1;
        versions.entry(fact.name).or_default().push(fact.version);
    }
    versions.retain(|_, versions| versions.len() > 1);
    Ok(Summary {
        packages,
        by_registry,
        several_versions: versions,
    })
}

#[task]
fn deepest(facts: Vec<Fact>) -> TaskResult<Vec<Chain>> {
    Ok(chains::deepest(&facts, CHAINS))
}

#[task]
fn has_git(summary: Summary) -> bool {
    summary.by_registry.contains_key("git")
}

#[task]
fn list_git(facts: Vec<Fact>) -> TaskResult<String> {
    let names: Vec<String> = facts
        .into_iter()
        .filter(|fact| fact.registry == "git")
        .map(|fact| fact.name)
        .collect();
    Ok(names.join(", "))
}

#[task]
fn no_git() -> String {
    "no package comes from git".to_string()
}

/// Puts everything together, and shows it as a card.
#[task]
fn report(
    summary: Summary,
    deepest_chains: Vec<Chain>,
    from_git: String,
    verified: usize,
) -> TaskResult<Report> {
    log::info!("{verified} of {} packages verified", summary.packages);
    let report = Report {
        summary,
        deepest_chains,
        from_git,
    };
    cards::markdown("Lock file", &markdown(&report));
    Ok(report)
}

fn markdown(report: &Report) -> String {
    let mut text = format!("# {} packages\n", report.summary.packages);
    // Writing to a string cannot fail.
    let _ = writeln!(text, "\n| from | packages |\n|---|---|");
    for (registry, count) in &report.summary.by_registry {
        let _ = writeln!(text, "| {registry} | {count} |");
    }
    let _ = writeln!(text, "\n{}.\n\n## Several versions\n", report.from_git);
    let several = &report.summary.several_versions;
    for (name, versions) in several.iter().take(SHOWN) {
        let _ = writeln!(text, "- {name}: {}", versions.join(", "));
    }
    more(&mut text, several.len());
    let _ = writeln!(text, "\n## Deepest chains\n");
    for chain in report.deepest_chains.iter().take(SHOWN) {
        let _ = writeln!(text, "- {}: {}", chain.depth, ends(&chain.packages));
    }
    more(&mut text, report.deepest_chains.len());
    text
}

fn more(text: &mut String, count: usize) {
    if count > SHOWN {
        let _ = writeln!(text, "- and {} more in the result", count - SHOWN);
    }
}

/// Writes the first and the last packages of a chain.
fn ends(packages: &[String]) -> String {
    match packages {
        [first, second, _, .., last] => format!("{first} → {second} → … → {last}"),
        few => few.join(" → "),
    }
}

/// Reports what is in a lock file: sources, crates in several versions, the deepest chains.
#[flow]
fn lockfile(
    /// The lock file, below the folder that is granted as `/repo`.
    #[default("Cargo.lock")]
    file: Param<String>,
) -> Node<Report> {
    let packages = read(file);
    let verified = verify(packages);
    let facts = examine::map(packages);
    let summary = summarise(facts);
    let chains = deepest(facts);
    let from_git = ifelse(has_git(summary), || list_git(facts), no_git);
    report(summary, chains, from_git, verified)
}

#[cfg(test)]
mod tests {
    use super::*;
    use waft_sdk::testing;

    /// This repository's own lock file.
    fn own() -> Vec<Fact> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock");
        let packages = lock::parse(&std::fs::read_to_string(path).unwrap()).unwrap();
        let facts = packages
            .into_iter()
            .map(|package| examine::run(package).unwrap());
        facts.collect()
    }

    #[test]
    fn a_real_lock_file_is_reported() {
        let facts = own();
        let summary = summarise::run(facts.clone()).unwrap();
        assert!(summary.packages > 100, "{summary:?}");
        assert_eq!(
            summary.by_registry.values().sum::<usize>(),
            summary.packages
        );
        assert!(summary.by_registry["crates.io"] > 100 && summary.by_registry["path"] >= 4);
        let chains = deepest::run(facts).unwrap();
        assert_eq!(chains.len(), CHAINS);
        assert!(chains[0].depth >= chains[9].depth && chains[9].depth > 3);
        let report = report::run(summary, chains, no_git::run(), 1).unwrap();
        let [testing::Card::Markdown { text, .. }] = &testing::cards()[..] else {
            panic!("{:?}", testing::cards());
        };
        assert!(text.starts_with(&format!("# {} packages", report.summary.packages)));
        assert!(text.contains("| crates.io |") && text.contains(" → … → "));
        assert!(text.lines().count() < 30, "a card is short: {text}");
    }

    #[test]
    fn the_first_attempt_fails_on_purpose() {
        assert!(matches!(verify::run(Vec::new()), Err(Signal::Fail(failure)) if !failure.is_final));
        testing::set_run(|info| info.attempt = 2);
        assert_eq!(verify::run(Vec::new()), Ok(0));
    }

    #[test]
    fn one_task_is_mapped_and_one_may_be_skipped() {
        let flow = testing::describe::<lockfile>().unwrap();
        let mapped: Vec<&str> = flow
            .tasks
            .iter()
            .filter(|task| task.mapped)
            .map(|task| task.name.as_str())
            .collect();
        assert_eq!(mapped, ["examine"]);
        let branches = flow.tasks.iter().filter(|task| !task.conditions.is_empty());
        assert_eq!(branches.count(), 2);
        assert_eq!(flow.output.as_deref(), Some("report"));
    }
}
