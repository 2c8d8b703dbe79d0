//! `waft token`: who may call the server.

use clap::{Args, Subcommand, ValueEnum};

use super::Call;
use super::failure::{Done, Failure};
use super::reach::{Reach, pages};
use super::words;
use crate::model::id::TokenId;
use crate::wire::{ListQuery, NewToken, Scope};

/// Makes, lists and revokes tokens: who may call the server, and what for.
#[derive(Debug, Args)]
pub(super) struct Noun {
    #[command(flatten)]
    reach: Reach,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Makes a token and prints it, this once.
    #[command(after_help = "\
Examples:
  waft token create ci --project demo
  waft token create nas --scope agent
  WAFT__SERVER__TOKEN=$(waft token create nas --scope agent) waft agent start")]
    Create {
        /// A name to know it by.
        name: String,
        /// What it may do.
        #[arg(long, value_enum, default_value_t = ScopeWord::User)]
        scope: ScopeWord,
        /// A project that it is bound to, repeatable; all projects unless given.
        #[arg(long, value_name = "NAME")]
        project: Vec<String>,
    },
    /// Lists the tokens, without their texts.
    List,
    /// Revokes a token: it opens nothing from now on.
    Revoke {
        /// Its name or id.
        #[arg(value_name = "TOKEN")]
        which: String,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ScopeWord {
    /// Everything a person does.
    User,
    /// What an agent does.
    Agent,
    /// Reading only.
    ReadOnly,
}

pub(super) fn run(noun: Noun, call: &Call) -> Done {
    let client = noun.reach.client(call)?;
    let out = &call.output;
    call.wait(async {
        let list = async |query: &ListQuery| client.list_tokens(query).await;
        match noun.verb {
            Verb::Create {
                name,
                scope,
                project,
            } => {
                let scope = match scope {
                    ScopeWord::User => Scope::User,
                    ScopeWord::Agent => Scope::Agent,
                    ScopeWord::ReadOnly => Scope::ReadOnly,
                };
                let projects = Some(project).filter(|names| !names.is_empty());
                let made = client
                    .create_token(&NewToken {
                        name,
                        scope,
                        projects,
                    })
                    .await?;
                if out.is_json() {
                    return out.json(&made);
                }
                out.note(format!(
                    "made the token `{}`; its text is shown this once",
                    made.token.name
                ));
                out.line(made.text)
            }
            Verb::List => {
                let (tokens, _) = pages(ListQuery::default(), usize::MAX, list).await?;
                if out.is_json() {
                    return out.json(&tokens);
                }
                let rows: Vec<_> = tokens
                    .into_iter()
                    .map(|it| {
                        let projects = it
                            .projects
                            .map_or_else(|| "all".to_owned(), |names| names.join(", "));
                        let used = it
                            .used_at
                            .map_or_else(|| "never".to_owned(), words::instant);
                        vec![
                            it.name,
                            words::of(&it.scope),
                            projects,
                            words::instant(it.created_at),
                            used,
                        ]
                    })
                    .collect();
                let columns = ["name", "scope", "projects", "created", "used"];
                out.table(&columns, &rows, "there are no tokens")
            }
            Verb::Revoke { which } => {
                let (tokens, _) = pages(ListQuery::default(), usize::MAX, list).await?;
                let id: Option<TokenId> = which.parse().ok();
                let found = tokens
                    .into_iter()
                    .find(|it| Some(it.id) == id || it.name == which);
                let Some(found) = found else {
                    let what = format!("there is no token `{which}`");
                    return Err(Failure::could(what).or_hint("waft token list"));
                };
                client.revoke_token(found.id).await?;
                out.note(format!("revoked the token `{}`", found.name));
                Ok(())
            }
        }
    })
}
