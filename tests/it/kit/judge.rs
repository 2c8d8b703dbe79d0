//! The judge of all stories in which something fails: reads the histories of runs, and what their guests left
//! behind, and lists what may not be.
//!
//! Nothing may be lost, nothing may be doubled, nobody may write who has nothing to say any more. The test at the
//! end shows it ten histories that are wrong.

use std::collections::{HashMap, HashSet};
use std::str::FromStr as _;

use jiff::{SignedDuration, Timestamp};

use waft::model::id::FlowRunId;
use waft::model::limit::LOST_MAX;
use waft::model::run::TaskRunKey;
use waft::model::state::{Event, State};
use waft::wire::Transition;

use super::program::{Processes, lines_of};

/// By how much clocks are set wrong: instants are told apart within one such time only.
pub(crate) const JUMP: SignedDuration = SignedDuration::from_hours(1);

/// When attempts of each task run were begun, as their side effects tell it.
pub(crate) type Begun = HashMap<(FlowRunId, String), Vec<Timestamp>>;

/// What the histories of runs say.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    succeeded: usize,
    /// Given up, since agents died with them once too often.
    given_up: usize,
    /// Claims that were taken away.
    lost: usize,
    /// Attempts that were begun, by what they left behind.
    begun: usize,
    /// What is wrong, one text a run.
    pub(crate) wrong: Vec<String>,
}

/// Reads the histories of all runs that were asked for, of the guest `storm`. Clocks may have been set wrong
/// by [`JUMP`] since an instant, which is less than that ago.
pub(crate) async fn judge(world: &Processes, asked: &[FlowRunId], since: Timestamp) -> Verdict {
    let mut verdict = Verdict::default();
    let runs = world.runs().await;
    if runs.len() != asked.len() {
        let (there, asked) = (runs.len(), asked.len());
        let counts = format!("{asked} runs were asked for, there are {there}");
        verdict.wrong.push(counts);
    }
    let begun = begun(&lines_of(&world.out_log()), |at| righted(at, since));
    verdict.begun = begun.values().map(Vec::len).sum();
    for id in asked {
        let Some(run) = runs.iter().find(|run| run.id == *id) else {
            verdict.wrong.push(format!("run {id} is lost"));
            continue;
        };
        let mut history = world.transitions(*id).await;
        for step in &mut history {
            step.at = righted(step.at, since);
        }
        let mut wrong = faults(*id, &history, run.state, Some(&begun));
        let lost = history
            .iter()
            .filter(|step| step.event == Some(Event::Lose));
        let lost = lost.count();
        verdict.lost += lost;
        match run.state {
            State::Success => verdict.succeeded += 1,
            State::Crashed if lost >= LOST_MAX as usize => verdict.given_up += 1,
            state => wrong.push(format!("it is {state}, after {lost} losses")),
        }
        if !wrong.is_empty() {
            let (wrong, story) = (wrong.join("; "), world.story(*id).await);
            verdict.wrong.push(format!("run {id}: {wrong}\n{story}"));
        }
    }
    verdict
}

/// Lists everything that is wrong with a run; `begun` where its guest leaves something behind.
pub(crate) fn faults(
    id: FlowRunId,
    history: &[Transition],
    end: State,
    begun: Option<&Begun>,
) -> Vec<String> {
    let mut wrong = history_faults(history, end);
    wrong.extend(epoch_faults(history));
    wrong.extend(
        begun
            .into_iter()
            .flat_map(|begun| doubled(id, history, begun)),
    );
    wrong
}

/// Returns the instant that a right clock would have told, of one that may be wrong by some [`JUMP`]s.
fn righted(told: Timestamp, since: Timestamp) -> Timestamp {
    let jump = JUMP.as_micros() as i64;
    let passed = told.as_microsecond() - since.as_microsecond();
    since + SignedDuration::from_micros(passed.rem_euclid(jump))
}

/// Reads when attempts were begun from the lines of the guest `storm`, as they are told by a clock that
/// `righted` puts right.
pub(crate) fn begun(log: &[String], righted: impl Fn(Timestamp) -> Timestamp) -> Begun {
    let mut begun = Begun::new();
    for line in log {
        let words: Vec<_> = line.split(' ').collect();
        // Who is killed while it writes leaves half a line.
        let [run, task, _, micros] = words[..] else {
            continue;
        };
        let (Ok(run), Ok(micros)) = (FlowRunId::from_str(run), micros.parse()) else {
            continue;
        };
        let at = righted(Timestamp::from_microsecond(micros).unwrap());
        begun.entry((run, task.to_owned())).or_default().push(at);
    }
    begun
}

/// Lists task runs that were begun again after the server had taken their end, or that the server says went
/// well though nobody began them.
fn doubled(id: FlowRunId, history: &[Transition], begun: &Begun) -> Vec<String> {
    let mut wrong = Vec::new();
    let ends = history
        .iter()
        .filter(|step| step.event == Some(Event::Succeed));
    for end in ends {
        let Some(TaskRunKey { task, .. }) = &end.task_run else {
            continue;
        };
        let times = begun.get(&(id, task.clone()));
        let times = times.map(Vec::as_slice).unwrap_or_default();
        if times.is_empty() {
            wrong.push(format!("`{task}` went well and was never begun"));
        }
        if let Some(again) = times.iter().find(|at| **at > end.at) {
            wrong.push(format!(
                "`{task}` had ended at {}, and was begun again at {again}",
                end.at
            ));
        }
    }
    wrong
}

/// Replays a history by the one table of the lifecycle.
pub(crate) fn history_faults(steps: &[Transition], end: State) -> Vec<String> {
    let mut faults = Vec::new();
    let mut places: HashMap<Option<TaskRunKey>, State> = HashMap::new();
    for (nth, step) in steps.iter().enumerate() {
        if step.number as usize != nth + 1 {
            faults.push(format!("step {} stands at place {}", step.number, nth + 1));
        }
        let first = match step.task_run {
            None => State::Scheduled,
            Some(_) => State::Pending,
        };
        let before = places.get(&step.task_run).copied();
        let expected = match (before, step.event) {
            (None, None) => Ok(step.state),
            (before, Some(event)) => before
                .unwrap_or(first)
                .after(event)
                .map_err(|it| it.to_string()),
            (Some(_), None) => Err("nothing moved it".to_owned()),
        };
        if expected.as_ref() != Ok(&step.state) {
            faults.push(format!(
                "step {}: {expected:?}, not {}",
                step.number, step.state
            ));
        }
        places.insert(step.task_run.clone(), step.state);
    }
    let last = places.get(&None).copied();
    if last != Some(end) {
        faults.push(format!("the run is {end}, its history ends with {last:?}"));
    }
    faults
}

/// Lists writes that were taken from somebody whose lease was another's by then.
fn epoch_faults(history: &[Transition]) -> Vec<String> {
    let claims = history
        .iter()
        .filter(|step| step.event == Some(Event::Claim));
    let claimers: HashSet<_> = claims.map(|step| &step.by).collect();
    let mut wrong = Vec::new();
    let (mut epoch, mut holder) = (0, None);
    for step in history {
        if step.event == Some(Event::Claim) {
            if step.epoch != epoch + 1 {
                wrong.push(format!(
                    "step {}: a claim of epoch {}",
                    step.number, step.epoch
                ));
            }
            (epoch, holder) = (step.epoch, Some(&step.by));
        } else if step.epoch < epoch {
            wrong.push(format!(
                "step {}: `{}` wrote under epoch {}, it was {epoch}",
                step.number, step.by, step.epoch
            ));
        } else if claimers.contains(&step.by) && Some(&step.by) != holder {
            wrong.push(format!(
                "step {}: `{}` wrote, the run was {holder:?}'s",
                step.number, step.by
            ));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What makes a history wrong that is right.
    type Spoil = fn(&mut Case);

    /// A run, as the judge is told of it.
    struct Case {
        id: FlowRunId,
        history: Vec<Transition>,
        end: State,
        begun: Begun,
    }

    impl Case {
        /// A run that its first agent lost after the first of two tasks, and the second brought to its end.
        fn right() -> Self {
            let id = FlowRunId::at(0, 1);
            let mut case = Self {
                id,
                history: Vec::new(),
                end: State::Success,
                begun: Begun::new(),
            };
            case.step(None, None, State::Scheduled, "first", 0);
            case.step(None, Some(Event::Claim), State::Claimed, "mira", 1);
            case.step(None, Some(Event::Start), State::Running, "mira", 1);
            case.task("fetch", "mira", 1);
            case.step(None, Some(Event::Lose), State::Scheduled, "server", 1);
            case.step(None, Some(Event::Claim), State::Claimed, "nas", 2);
            case.step(None, Some(Event::Start), State::Running, "nas", 2);
            case.task("report", "nas", 2);
            case.step(None, Some(Event::Succeed), State::Success, "nas", 2);
            case
        }

        fn task(&mut self, task: &str, by: &str, epoch: u32) {
            let begun = at(self.history.len() + 1);
            self.begun.insert((self.id, task.to_owned()), vec![begun]);
            self.step(Some(task), Some(Event::Start), State::Running, by, epoch);
            self.step(Some(task), Some(Event::Succeed), State::Success, by, epoch);
        }

        fn step(
            &mut self,
            task: Option<&str>,
            event: Option<Event>,
            state: State,
            by: &str,
            epoch: u32,
        ) {
            let number = self.history.len() as u32 + 1;
            self.history.push(Transition {
                number,
                at: at(number as usize),
                task_run: task.map(|task| TaskRunKey {
                    task: task.to_owned(),
                    map_index: None,
                }),
                event,
                state,
                message: String::new(),
                by: by.to_owned(),
                epoch,
            });
        }

        /// Returns the place of the first step of a task, or of the run itself, by an event.
        fn place(&self, task: Option<&str>, event: Event) -> usize {
            let is = |step: &Transition| {
                step.event == Some(event)
                    && step.task_run.as_ref().map(|key| key.task.as_str()) == task
            };
            self.history.iter().position(is).unwrap()
        }

        fn remove(&mut self, place: usize) {
            self.history.remove(place);
            self.count_anew();
        }

        /// Says a step once more, at another place.
        fn repeat(&mut self, place: usize, to: usize) {
            let step = self.history[place].clone();
            self.history.insert(to, step);
            self.count_anew();
        }

        fn count_anew(&mut self) {
            for (number, step) in (1..).zip(&mut self.history) {
                step.number = number;
            }
        }
    }

    fn at(seconds: usize) -> Timestamp {
        Timestamp::from_second(seconds as i64).unwrap()
    }

    /// Each of these was the end of a promise; the judge has to see every one.
    #[test]
    fn what_is_wrong_is_seen() {
        let right = Case::right();
        let none: &[String] = &[];
        assert_eq!(
            faults(right.id, &right.history, right.end, Some(&right.begun)),
            none
        );
        let wrongs: [(&str, Spoil); 10] = [
            ("a transition is lost", |case| {
                case.history.remove(3);
            }),
            ("the end is lost", |case| {
                case.history.pop();
            }),
            ("a run ends twice", |case| {
                case.repeat(case.history.len() - 1, case.history.len());
            }),
            ("a task ends twice", |case| {
                let end = case.place(Some("fetch"), Event::Succeed);
                case.repeat(end, end + 1);
            }),
            ("a run is claimed by two", |case| {
                case.remove(case.place(None, Event::Lose));
            }),
            ("a claim keeps the epoch", |case| {
                let claim = case.place(None, Event::Lose) + 1;
                case.history[claim].epoch = 1;
            }),
            ("who has lost the run writes on", |case| {
                let start = case.place(Some("report"), Event::Start);
                case.history[start].by = "mira".to_owned();
            }),
            ("a write under an old epoch is taken", |case| {
                let start = case.place(Some("report"), Event::Succeed);
                case.history[start].epoch = 1;
            }),
            ("what is finished is done again", |case| {
                let key = (case.id, "fetch".to_owned());
                case.begun.get_mut(&key).unwrap().push(at(100));
            }),
            ("a task went well that nobody began", |case| {
                case.begun.remove(&(case.id, "report".to_owned()));
            }),
        ];
        for (name, spoil) in wrongs {
            let mut case = Case::right();
            spoil(&mut case);
            let found = faults(case.id, &case.history, case.end, Some(&case.begun));
            assert!(!found.is_empty(), "{name}: nobody saw it");
        }
    }

    #[test]
    fn a_clock_that_is_wrong_by_whole_hours_is_put_right() {
        let since = at(1_000_000);
        for hours in [-2, -1, 0, 1, 5] {
            let told = since + SignedDuration::from_secs(90) + JUMP * hours;
            assert_eq!(righted(told, since), at(1_000_090));
        }
    }
}
