//! `waft tag`: how many task runs with a tag may run at one time.

use clap::{Args, Subcommand};

use super::Call;
use super::argument::{name, slots, tag};
use super::failure::Done;
use super::reach::{Reach, pages};
use super::words;
use crate::wire::{ListQuery, Slots};

/// Sets and lists how many tasks with a tag may run at one time.
#[derive(Debug, Args)]
pub(super) struct Noun {
    #[command(flatten)]
    reach: Reach,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Sets how many task runs with a tag may run at one time, over all flows and agents of a project.
    ///
    /// A task has tags by `#[task(tags = ["db"])]`. One with several of them begins when there is a slot of
    /// each. Those that have begun go on, and others wait, Queued.
    #[command(after_help = "Example:\n  waft tag set demo db --slots 2")]
    Set {
        /// The project.
        #[arg(value_parser = name)]
        project: String,
        /// The tag.
        #[arg(value_parser = tag)]
        tag: String,
        /// How many, from 1, or `none` for as many as there are.
        #[arg(long, value_name = "N", value_parser = slots)]
        slots: Slots,
    },
    /// Lists the tags that have a number of slots.
    List {
        /// Only of this project.
        #[arg(long, value_name = "NAME")]
        project: Option<String>,
    },
}

pub(super) fn run(noun: Noun, call: &Call) -> Done {
    let client = noun.reach.client(call)?;
    let out = &call.output;
    call.wait(async {
        match noun.verb {
            Verb::Set {
                project,
                tag,
                slots,
            } => {
                let tag = client.set_tag_slots(&project, &tag, &slots).await?;
                if out.is_json() {
                    return out.json(&tag);
                }
                let slots = words::task_slots(tag.slots);
                out.note(format!("tag `{}` of `{}`: {slots}", tag.name, tag.project));
                Ok(())
            }
            Verb::List { project } => {
                let query = ListQuery {
                    project,
                    ..ListQuery::default()
                };
                let list = async |query: &ListQuery| client.list_tags(query).await;
                let (tags, _) = pages(query, usize::MAX, list).await?;
                if out.is_json() {
                    return out.json(&tags);
                }
                let rows: Vec<_> = tags
                    .into_iter()
                    .map(|tag| {
                        vec![
                            tag.project,
                            tag.name,
                            tag.slots
                                .map_or_else(|| "-".to_owned(), |it| it.to_string()),
                            tag.taken.to_string(),
                            tag.waiting.to_string(),
                        ]
                    })
                    .collect();
                let columns = ["project", "tag", "slots", "taken", "waiting"];
                out.table(&columns, &rows, "no tag has a number of slots")
            }
        }
    })
}
