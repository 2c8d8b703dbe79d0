//! How a command reaches the server, and how it reads lists that come in pages.

use super::Call;
use super::failure::{Done, Failure};
use crate::client::{Client, ClientError};
use crate::wire::{ListQuery, Page};

/// Under which the help lists these flags.
const HEADING: &str = "Server";

/// Which server is meant.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(skip)]
pub(crate) struct Reach {
    /// Its address; that of the server started from this home unless given.
    #[arg(help_heading = HEADING, long, global = true, value_name = "URL")]
    server: Option<String>,
    /// The token to call it with; the one kept in this home unless given.
    #[arg(help_heading = HEADING, long, global = true, value_name = "TOKEN")]
    token: Option<String>,
}

impl Reach {
    /// Returns the address and the token that are given, apart from what is kept in a home.
    pub(crate) fn given(&self, call: &Call) -> (Option<String>, Option<String>) {
        let set = &call.config.settings.server;
        let url = self.server.clone().or_else(|| set.url.clone());
        (url, self.token.clone().or_else(|| set.token.clone()))
    }

    /// Returns a client of the server that is meant.
    ///
    /// The token kept in this home is sent to the server that left it there, and to no other.
    ///
    /// # Errors
    ///
    /// Fails if no server is known, or on a text that is no address.
    pub(crate) fn client(&self, call: &Call) -> Done<Client> {
        let kept = call.config.home.credentials()?;
        let (url, token) = self.given(call);
        let (url, token) = match (url, kept) {
            (None, Some(kept)) => (kept.url, token.or(Some(kept.token))),
            (Some(url), Some(kept)) if is_same(&url, &kept.url) => {
                (url, token.or(Some(kept.token)))
            }
            (Some(url), _) => (url, token),
            (None, None) => {
                return Err(Failure::could("no server is known here")
                    .or_hint("waft up starts one; --server URL names another"));
            }
        };
        Client::new(&url, token).map_err(|error| {
            let usage = Failure::usage(format!("`{url}` is not the address of a server"));
            if !url.contains("://") && Client::new(&format!("http://{url}"), None).is_ok() {
                return usage.or_hint(format!("--server http://{url}"));
            }
            match error {
                ClientError::Unreachable(unusable) => usage.or_hint(unusable.why),
                ClientError::Refused(_) | ClientError::Unreadable(_) => usage,
            }
        })
    }
}

fn is_same(one: &str, other: &str) -> bool {
    one.trim_end_matches('/') == other.trim_end_matches('/')
}

/// Reads a list page by page, up to `most` objects, and tells whether there are more.
///
/// # Errors
///
/// Whatever a call fails with.
pub(crate) async fn pages<T>(
    mut query: ListQuery,
    most: usize,
    call: impl AsyncFn(&ListQuery) -> Result<Page<T>, ClientError>,
) -> Done<(Vec<T>, bool)> {
    let mut all = Vec::new();
    loop {
        query.limit = Some(u32::try_from((most - all.len()).min(200)).unwrap_or(200));
        let page = call(&query).await?;
        let is_stuck = page.items.is_empty() && page.next.is_some();
        all.extend(page.items);
        query.cursor = page.next;
        if query.cursor.is_none() || all.len() >= most || is_stuck {
            return Ok((all, query.cursor.is_some()));
        }
    }
}

/// Says that a list was cut, if it was.
pub(crate) fn note_cut(call: &Call, is_cut: bool) {
    if is_cut {
        call.output
            .note("there are more: --limit N shows N of them");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pages_are_read_until_there_are_enough() {
        let list = async |query: &ListQuery| {
            let from: u32 = query
                .cursor
                .as_deref()
                .map_or(0, |cursor| cursor.parse().unwrap());
            let until = (from + query.limit.unwrap().min(2)).min(5);
            let next = (until < 5).then(|| until.to_string());
            Ok(Page {
                items: (from..until).collect(),
                next,
            })
        };
        let query = ListQuery::default;
        assert_eq!(
            pages(query(), 100, list).await.unwrap(),
            (vec![0, 1, 2, 3, 4], false)
        );
        assert_eq!(
            pages(query(), 3, list).await.unwrap(),
            (vec![0, 1, 2], true)
        );
    }
}
