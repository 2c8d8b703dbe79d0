//! Mutants: faults planted one by one in a copy of the sources, each of which some test has to catch.
//!
//! Promises such as "a late write is refused" are kept by single lines. A mutant takes one such line away;
//! if all tests that are named for it stay green, nothing guards the promise. A mutant whose line is not
//! there any more is an error, so the table follows the sources.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};

use crate::cache::Cache;
use crate::{guests, say, servers, toolchain};

/// A fault, and who is to find it.
struct Mutant {
    name: &'static str,
    file: &'static str,
    /// What stands there, once.
    is: &'static str,
    becomes: &'static str,
    /// Tests one of which has to fail, by the beginnings of their names.
    tests: &'static [&'static str],
}

const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "the epoch of a report is not looked at",
        file: "runtime/src/server/db/lease.rs",
        is: "if self.lease() != *lease || self.agent_id != Some(agent)",
        becomes: "if lease.epoch > self.epoch || self.agent_id != Some(agent)",
        tests: &["server::life", "storm"],
    },
    Mutant {
        name: "a claim keeps the epoch",
        file: "runtime/src/server/db/flow_run/claimed.rs",
        is: "self.epoch += 1;",
        becomes: "self.epoch = self.epoch.max(1);",
        tests: &["server::life", "storm"],
    },
    Mutant {
        name: "a write is answered before its commit",
        file: "runtime/src/server/db/writer.rs",
        is: "            (one.answer)(committed.as_ref().map(drop).map_err(DbError::again));",
        becomes: "            (one.answer)(Ok(()));",
        tests: &["server::db::writer"],
    },
    Mutant {
        name: "a commit does not wait for the disk",
        file: "runtime/src/server/db/sqlite.rs",
        is: "SqliteSynchronous::Full",
        becomes: "SqliteSynchronous::Off",
        tests: &["disks::what_was_acknowledged"],
    },
    Mutant {
        name: "a commit waits for the disk now and then",
        file: "runtime/src/server/db/sqlite.rs",
        is: "SqliteSynchronous::Full",
        becomes: "SqliteSynchronous::Normal",
        tests: &["disks::what_was_acknowledged"],
    },
    Mutant {
        name: "a disk that is full is a riddle",
        file: "runtime/src/server/db/sqlite.rs",
        is: "const FULL: &str = \"13\";",
        becomes: "const FULL: &str = \"14\";",
        tests: &["disks::a_server_outlasts", "server::db::writer"],
    },
    Mutant {
        name: "a database whose bytes make no sense is a riddle",
        file: "runtime/src/server/db/sqlite.rs",
        is: "const DAMAGED: [u32; 2] = [11, 26];",
        becomes: "const DAMAGED: [u32; 2] = [12, 26];",
        tests: &["disks::a_damaged"],
    },
    Mutant {
        name: "leases are counted by the clock on the wall",
        file: "runtime/src/server/app.rs",
        is: "        let now = self.start.0.saturating_add(passed);\n",
        becomes: "        let now = self.start.0.saturating_add(passed).map(|_| self.clock.now());\n",
        tests: &["server::clocks", "server::life", "storm"],
    },
    Mutant {
        name: "what a clock that was ahead has made waits for its hour",
        file: "runtime/src/server/duty/timekeeper.rs",
        is: "    bring_back(app).await?;\n",
        becomes: "",
        tests: &["server::clocks"],
    },
    Mutant {
        name: "a report is taken twice",
        file: "runtime/src/server/db/report.rs",
        is: "if run.lease() == key && report.number <= run.reported {",
        becomes: "if false {",
        tests: &["server::life"],
    },
    Mutant {
        name: "whose lease has lapsed may end the run",
        file: "runtime/src/server/db/report.rs",
        is: "let is_leased = tenure == Tenure::Leased;",
        becomes: "let is_leased = true;",
        tests: &["server::life", "storm"],
    },
    Mutant {
        name: "a clock makes its run anew each time",
        file: "runtime/migrations/sqlite/0001_first.sql",
        is: "CREATE UNIQUE INDEX flow_run_clock",
        becomes: "CREATE INDEX flow_run_clock",
        tests: &["server::schedules", "lifecycle"],
    },
    Mutant {
        name: "an agent works until the very end of its lease, and on",
        file: "runtime/src/agent/lease.rs",
        is: "from + self.lasts() * 4 / 5",
        becomes: "from + self.lasts() * 40",
        tests: &["agent::lease", "kills", "storm"],
    },
    Mutant {
        name: "what is finished is done again by the next claim",
        file: "runtime/src/model/graph/mod.rs",
        is: "        graph.resume(earlier);\n",
        becomes: "        graph.resume(earlier.into_iter().filter(|it| !it.state.is_over()).collect());\n",
        tests: &["model::graph", "kills", "storm"],
    },
    Mutant {
        name: "agents that die with a run are not counted",
        file: "runtime/src/server/db/lease.rs",
        is: "run.lost += u32::from(run.state == State::Running);",
        becomes: "run.lost += 0;",
        tests: &["server::life", "kills"],
    },
    Mutant {
        name: "the spool of a dead process is not delivered",
        file: "runtime/src/agent/mod.rs",
        is: "        report::deliver_left(&settings.client, &clock, &hello, &note, &mut spool).await?;\n",
        becomes: "        spool.clear();\n",
        tests: &["kills"],
    },
    Mutant {
        name: "a wish that is repeated makes a second run",
        file: "runtime/migrations/sqlite/0001_first.sql",
        is: "CREATE UNIQUE INDEX flow_run_idempotency",
        becomes: "CREATE INDEX flow_run_idempotency",
        tests: &["server::api", "storm"],
    },
    Mutant {
        name: "slots of tags are given whoever has them",
        file: "runtime/src/server/db/tag_slot.rs",
        is: "(true, _) => desk.take(&row.tags),",
        becomes: "(true, _) => {}",
        tests: &["server::tags", "server::model", "tags"],
    },
    Mutant {
        name: "the slots of a lost agent stay taken",
        file: "runtime/src/server/db/tag_slot.rs",
        is: "self.is_leased && self.epoch == self.run_epoch",
        becomes: "self.epoch == self.run_epoch",
        tests: &["server::tags", "tags"],
    },
    Mutant {
        name: "slots that were given for one attempt serve the next",
        file: "runtime/src/model/graph/slots.rs",
        is: "life.state == State::Queued && life.attempts == attempts;",
        becomes: "life.state == State::Queued && life.attempts >= attempts;",
        tests: &["runner::tests::slots"],
    },
    Mutant {
        name: "a run that is ended by hand stays under the epoch of its agent",
        file: "runtime/src/server/db/flow_run/ending.rs",
        is: "        run.epoch += 1;\n",
        becomes: "",
        tests: &["server::marks"],
    },
    Mutant {
        name: "what was said of a task is not done by whoever takes the run next",
        file: "runtime/src/model/graph/mod.rs",
        is: "        graph.mark_earlier();\n",
        becomes: "",
        tests: &["model::graph", "marks"],
    },
    Mutant {
        name: "who has heard of one decision has heard of the next",
        file: "runtime/src/server/db/report.rs",
        is: "if moved.decided_at.is_none_or(|heard| heard == at) {",
        becomes: "if at >= Timestamp::MIN {",
        tests: &["server::marks"],
    },
];

/// Plants each mutant, or those whose name contains one of the words, and runs its tests.
pub(crate) fn run(cache: &Cache, words: &[&str]) -> Result<()> {
    let copy = cache.copy_of_clone("mutants")?;
    let _lock = copy.take_targets()?;
    let toolchain = toolchain::ensure(&copy)?;
    let (guests, servers) = (guests::build(&copy, &toolchain)?, servers::ensure(&copy)?);
    let is_wanted =
        |mutant: &&Mutant| words.is_empty() || words.iter().any(|word| mutant.name.contains(word));
    let mut survivors = Vec::new();
    for mutant in MUTANTS.iter().filter(is_wanted) {
        let start = Instant::now();
        let original = mutant.plant(&copy.repository)?;
        let mut test = copy.cargo();
        test.args([
            "test",
            "--package",
            "waft",
            "--locked",
            "--lib",
            "--test",
            "it",
            "--no-fail-fast",
            "--",
        ])
        .args(mutant.tests);
        toolchain.hand_to(&mut test);
        let tested = output(
            test.env("WAFT_GUESTS", &guests)
                .env("WAFT_GUEST_TARGET", &copy.guest_target)
                .env("WAFT_SERVERS", &servers),
        );
        fs::write(copy.repository.join(mutant.file), original)?;
        let verdict = match killer(&tested?)? {
            Some(test) => format!("caught by {test}"),
            None => {
                survivors.push(mutant.name);
                "SURVIVED".to_owned()
            }
        };
        let seconds = start.elapsed().as_secs();
        say::line(&format!("{seconds:>5} s  {}: {verdict}", mutant.name));
    }
    ensure!(
        survivors.is_empty(),
        "no test caught: {}\nhint: a promise without a test; see xtask/src/mutants.rs",
        survivors.join("; ")
    );
    Ok(())
}

impl Mutant {
    /// Changes its file, and returns what the file was.
    fn plant(&self, repository: &Path) -> Result<String> {
        let path = repository.join(self.file);
        let original =
            fs::read_to_string(&path).with_context(|| format!("reading `{}`", path.display()))?;
        let count = original.matches(self.is).count();
        ensure!(
            count == 1,
            "`{}` of the mutant \"{}\" stands {count} times in {}",
            self.is.trim(),
            self.name,
            self.file
        );
        fs::write(&path, original.replace(self.is, self.becomes))?;
        Ok(original)
    }
}

fn output(command: &mut Command) -> Result<Output> {
    command.output().context("starting `cargo test`")
}

/// Returns the test that failed; none if all are green.
fn killer(tested: &Output) -> Result<Option<String>> {
    let said = String::from_utf8_lossy(&tested.stdout);
    let mut results = said.lines().filter_map(|line| line.strip_prefix("test "));
    let failed = results.find_map(|line| line.strip_suffix(" ... FAILED"));
    if failed.is_none() && !tested.status.success() {
        bail!(
            "the mutant does not compile, or its tests do not run:\n{}",
            String::from_utf8_lossy(&tested.stderr)
        );
    }
    Ok(failed.map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_each_mutant_is_there() {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for mutant in MUTANTS {
            let text = fs::read_to_string(repository.join(mutant.file)).unwrap();
            assert_eq!(text.matches(mutant.is).count(), 1, "{}", mutant.name);
            assert!(!mutant.tests.is_empty(), "{}", mutant.name);
        }
    }
}
