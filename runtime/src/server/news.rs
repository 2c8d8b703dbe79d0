//! News: what servers of one database tell each other, so that none of them waits for what another one
//! knows already.
//!
//! Nothing depends on news: whoever hears none finds everything in the database a little later. They are
//! told after the commit, by the teller, and many at once: inside the transactions they would make every
//! commit wait for the last one.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use tokio::sync::Notify;

use super::app::App;
use crate::model::id::{AgentId, FlowRunId, FlowVersionId};

/// Most news that wait to be told. Beyond that the others are told to look at everything.
const WAITING_MAX: usize = 50_000;
/// Most bytes of one text; PostgreSQL takes 8,000.
const TEXT_BYTES_MAX: usize = 7_000;

/// Something that happened at one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum News {
    /// So many runs with a requirement are due, and had no poll there.
    Wake(i64, usize),
    /// A run with a requirement becomes due.
    Due(Timestamp, i64),
    /// A run was changed.
    Run(FlowRunId),
    /// There is something for an agent to hear, or it holds something else of itself.
    Agent(AgentId),
    /// A version was registered, or its artifact put somewhere once more.
    Version(FlowVersionId),
    /// A schedule was changed.
    Schedule,
    /// What holds up queued runs was changed.
    Queue,
    /// Results are to be deleted.
    Results,
    /// More than can be told.
    Everything,
}

impl fmt::Display for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wake(requirement, count) => write!(f, "wake:{requirement}:{count}"),
            Self::Due(at, requirement) => write!(f, "due:{}:{requirement}", at.as_microsecond()),
            Self::Run(id) => write!(f, "run:{id}"),
            Self::Agent(id) => write!(f, "agent:{id}"),
            Self::Version(id) => write!(f, "version:{id}"),
            Self::Schedule => f.write_str("schedule"),
            Self::Queue => f.write_str("queue"),
            Self::Results => f.write_str("results"),
            Self::Everything => f.write_str("everything"),
        }
    }
}

/// A word that is no news of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unknown;

impl FromStr for News {
    type Err = Unknown;

    fn from_str(word: &str) -> Result<Self, Unknown> {
        let mut parts = word.split(':');
        let kind = parts.next().unwrap_or_default();
        let mut part = || parts.next().ok_or(Unknown);
        Ok(match kind {
            "wake" => Self::Wake(read(part()?)?, read(part()?)?),
            "due" => {
                let at = Timestamp::from_microsecond(read(part()?)?).map_err(|_| Unknown)?;
                Self::Due(at, read(part()?)?)
            }
            "run" => Self::Run(read(part()?)?),
            "agent" => Self::Agent(read(part()?)?),
            "version" => Self::Version(read(part()?)?),
            "schedule" => Self::Schedule,
            "queue" => Self::Queue,
            "results" => Self::Results,
            "everything" => Self::Everything,
            _ => return Err(Unknown),
        })
    }
}

fn read<T: FromStr>(text: &str) -> Result<T, Unknown> {
    text.parse().map_err(|_| Unknown)
}

/// What is to be told to the other servers, each thing once, and who tells it.
pub(super) struct Herald {
    /// A number by which a server knows its own words.
    name: u64,
    waiting: Mutex<BTreeMap<News, usize>>,
    pub(super) bell: Notify,
}

impl Default for Herald {
    fn default() -> Self {
        Self {
            name: rand::random(),
            waiting: Mutex::default(),
            bell: Notify::new(),
        }
    }
}

impl Herald {
    fn add(&self, news: News) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // Runs that are due are counted, everything else is only said.
        let (key, count) = match news {
            News::Wake(requirement, count) => (News::Wake(requirement, 0), count),
            other => (other, 1),
        };
        let told = waiting.entry(key).or_default();
        *told = told.saturating_add(count);
        if waiting.len() > WAITING_MAX {
            waiting.clear();
            waiting.insert(News::Everything, 1);
        }
        drop(waiting);
        self.bell.notify_one();
    }

    /// Takes what is to be told, as few texts; one that says only who speaks if there is nothing.
    pub(super) fn take(&self) -> Vec<String> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = std::mem::take(&mut *waiting);
        let mut texts = vec![format!("{:x}", self.name)];
        for (news, count) in waiting {
            let news = match news {
                News::Wake(requirement, _) => News::Wake(requirement, count),
                other => other,
            };
            let word = news.to_string();
            let last = texts.len() - 1;
            if texts[last].len() + word.len() >= TEXT_BYTES_MAX {
                texts.push(format!("{:x} {word}", self.name));
            } else {
                texts[last].push(' ');
                texts[last].push_str(&word);
            }
        }
        texts
    }

    /// Reads what another server tells; nothing of what this one has told itself. What a newer version
    /// may say is anything at all.
    pub(super) fn read(&self, text: &str) -> Vec<News> {
        let mut words = text.split(' ');
        if words.next() == Some(&format!("{:x}", self.name)) {
            return Vec::new();
        }
        let news = words.map(|word| word.parse().unwrap_or(News::Everything));
        news.collect()
    }
}

impl App {
    /// Has the other servers of the database told.
    pub(super) fn spread(&self, news: News) {
        if self.db.is_shared() {
            self.herald.add(news);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_are_told_once_in_few_texts_and_understood_by_others() {
        let (one, other) = (Herald::default(), Herald::default());
        let at = Timestamp::from_microsecond(1_700_000_000_000_001).unwrap();
        let ids: Vec<FlowRunId> = (0..500).map(|nth| FlowRunId::at(nth * 1_000, 0)).collect();
        let mut told = vec![
            News::Wake(7, 3),
            News::Due(at, 7),
            News::Agent(AgentId::at(0, 1)),
            News::Version(FlowVersionId::at(0, 1)),
            News::Schedule,
            News::Queue,
            News::Results,
        ];
        told.extend(ids.iter().map(|id| News::Run(*id)));
        told.iter().for_each(|news| one.add(*news));
        one.add(News::Wake(7, 2));
        one.add(News::Run(ids[0]));
        let texts = one.take();
        assert!(texts.len() > 1 && texts.len() < 5, "{}", texts.len());
        assert!(texts.iter().all(|text| text.len() <= TEXT_BYTES_MAX));
        let mut heard: Vec<News> = texts.iter().flat_map(|text| other.read(text)).collect();
        told[0] = News::Wake(7, 5);
        told.sort();
        heard.sort();
        assert_eq!(heard, told);
        assert!(texts.iter().all(|text| one.read(text).is_empty()));
        assert_eq!(one.take().len(), 1, "a sign of life");
        assert_eq!(other.read("0 later:1"), [News::Everything]);
    }

    #[test]
    fn more_than_can_be_told_is_everything() {
        let herald = Herald::default();
        for nth in 0..=WAITING_MAX as i64 {
            herald.add(News::Run(FlowRunId::at(nth * 1_000, 0)));
        }
        assert_eq!(
            Herald::default().read(&herald.take()[0]),
            [News::Everything]
        );
    }
}
