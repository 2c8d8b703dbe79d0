//! Which slots of tags a run waits for, and who has them.

use super::app::App;
use super::db::flow_run::Found;
use super::db::tag_slot::{self, Holder};
use super::db::tx::Tx;
use super::db::{DbError, tag};
use crate::model::graph::waits_for;
use crate::model::run::TaskRunKey;

/// As many holders of slots as a person reads.
const SHOWN: usize = 3;

/// What a run waits for.
pub(super) struct Wait {
    /// In one sentence.
    pub(super) sentence: String,
    /// What would help, as lines to paste.
    pub(super) hints: Vec<String>,
}

/// Says which slots of tags the first task run of a run waits for that waits for some.
pub(super) async fn wait(app: &App, tx: &mut Tx, found: &Found) -> Result<Option<Wait>, DbError> {
    let Some(first) = tag_slot::waiting_of(tx, found.flow_run.id).await? else {
        return Ok(None);
    };
    let project = found.version.project_id;
    let numbers = tag::numbers(tx, project).await?;
    let holders = tag_slot::holders(tx, project).await?;
    let own = first.tags.iter().filter(|tag| numbers.contains_key(*tag));
    let own: Vec<&str> = own.map(String::as_str).collect();
    let mut sentence = format!("{} {}", named(app, tx, &first).await?, waits_for(&own));
    let mut hints = Vec::new();
    for name in own {
        let taken = holders.iter().filter(|one| one.tags.contains(name));
        let taken: Vec<&Holder> = taken.collect();
        let all = numbers.get(name).copied().unwrap_or_default() as usize;
        if taken.len() < all {
            continue;
        }
        let mut by = Vec::new();
        for one in taken.iter().take(SHOWN) {
            by.push(format!(
                "{} of the run {}",
                named(app, tx, one).await?,
                one.key.0
            ));
        }
        if taken.len() > SHOWN {
            by.push(format!("{} more", taken.len() - SHOWN));
        }
        let verb = if taken.len() == 1 { "is" } else { "are" };
        let taken = taken.len();
        let by = by.join(", ");
        sentence.push_str(&format!(
            "; of `{name}` {taken} of {all} {verb} taken, by {by}"
        ));
        hints.push(format!(
            "waft tag set {} {name} --slots N",
            found.version.project
        ));
    }
    Ok(Some(Wait { sentence, hints }))
}

async fn named(app: &App, tx: &mut Tx, one: &Holder) -> Result<String, DbError> {
    let version = app.db.memory.version(tx, one.flow_version_id).await?;
    let task = version.map_or_else(String::new, |it| it.task_name(one.key.1).to_owned());
    let map_index = one.key.2;
    Ok(format!("`{}`", TaskRunKey { task, map_index }))
}
