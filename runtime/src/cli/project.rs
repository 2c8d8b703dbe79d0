//! `waft project`: rooms for flows.

use clap::{Args, Subcommand};

use super::Call;
use super::argument::{name, slots};
use super::failure::Done;
use super::reach::{Reach, pages};
use super::words;
use crate::wire::{ListQuery, NewProject, Slots};

/// Makes, lists and deletes projects: rooms for flows, and what tokens are bound to.
#[derive(Debug, Args)]
pub(super) struct Noun {
    #[command(flatten)]
    reach: Reach,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Makes a project.
    #[command(after_help = "Example:\n  waft project create demo")]
    Create {
        /// Its name: letters, digits, `-`, `_` and `.`.
        #[arg(value_parser = name)]
        name: String,
        /// What it is for.
        #[arg(long, default_value = "")]
        description: String,
    },
    /// Lists the projects.
    List,
    /// Sets how many runs of a project agents may have at one time.
    Set {
        /// Its name.
        name: String,
        /// How many, from 1, or `none` for as many as there are; further ones wait, Queued.
        #[arg(long, value_name = "N", value_parser = slots)]
        slots: Slots,
    },
    /// Deletes a project that has no flows.
    Delete {
        /// Its name.
        name: String,
    },
}

pub(super) fn run(noun: Noun, call: &Call) -> Done {
    let client = noun.reach.client(call)?;
    let out = &call.output;
    call.wait(async {
        match noun.verb {
            Verb::Create { name, description } => {
                let made = client
                    .create_project(&NewProject { name, description })
                    .await?;
                if out.is_json() {
                    return out.json(&made);
                }
                out.note(format!("made the project `{}`", made.name));
                Ok(())
            }
            Verb::List => {
                let list = async |query: &ListQuery| client.list_projects(query).await;
                let (projects, _) = pages(ListQuery::default(), usize::MAX, list).await?;
                if out.is_json() {
                    return out.json(&projects);
                }
                let rows: Vec<_> = projects
                    .into_iter()
                    .map(|it| vec![it.name, words::instant(it.created_at), it.description])
                    .collect();
                out.table(
                    &["name", "created", "description"],
                    &rows,
                    "there are no projects",
                )
            }
            Verb::Set { name, slots } => {
                let project = client.set_project_slots(&name, &slots).await?;
                if out.is_json() {
                    return out.json(&project);
                }
                let slots = words::slots(project.slots);
                out.note(format!("project `{}`: {slots}", project.name));
                Ok(())
            }
            Verb::Delete { name } => {
                client.delete_project(&name).await?;
                out.note(format!("deleted the project `{name}`"));
                Ok(())
            }
        }
    })
}
