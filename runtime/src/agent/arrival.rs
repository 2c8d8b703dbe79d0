//! The arrival of an agent at a server that may not be up yet.
//!
//! A machine that boots starts its agents before its network, and a server that is renewed is away for
//! a moment: neither is a reason to end. What only a person can mend ends the agent at once, so that
//! whoever starts it reads why.

use std::future::Future;

use super::session::{NAME_TAKEN, PAUSE_FIRST, PAUSE_MAX, is_away};
use crate::client::{Client, ClientError};
use crate::clock::Clock;

/// Asks a server until it is there; says once that it is waited for, and once that it has come.
///
/// # Errors
///
/// Whatever waiting does not mend: the server refuses, or what answers is none that this agent reads.
pub(super) async fn outwait<T, F>(
    client: &Client,
    clock: &Clock,
    ask: impl Fn() -> F,
) -> Result<T, ClientError>
where
    F: Future<Output = Result<T, ClientError>>,
{
    let mut since = None;
    let mut pause = PAUSE_FIRST;
    loop {
        let error = match ask().await {
            Ok(answer) => {
                if let Some(since) = since {
                    tracing::warn!(server.url = client.url(), %since, "the server is there now");
                }
                return Ok(answer);
            }
            Err(error) if is_awaited(&error) => error,
            Err(error) => return Err(error),
        };
        if since.is_none() {
            let now = clock.now();
            since = Some(now);
            tracing::warn!(
                server.url = client.url(),
                error = %error,
                since = %now,
                "the server is not there yet, and is waited for"
            );
        }
        // Agents that are started by one boot must not ask in step.
        clock
            .sleep(pause.mul_f64(rand::random_range(0.5..1.0)))
            .await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Tells whether a server that fails so may be there a moment later. One that cannot be resolved may:
/// names come with the network. A token is mended by a person, as is an address where another answers, and a
/// name that another has.
fn is_awaited(error: &ClientError) -> bool {
    match error {
        ClientError::Refused(refused) if matches!(refused.status, 401 | 403) => false,
        ClientError::Refused(refused) if refused.code == NAME_TAKEN => false,
        ClientError::Unreadable(_) => false,
        other => is_away(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Refused, Unreachable, Unreadable};

    #[test]
    fn what_a_person_has_to_mend_is_not_waited_for() {
        let refused = |status, code: &str| {
            let (code, message) = (code.to_owned(), "as planned".to_owned());
            let hint = None;
            is_awaited(&ClientError::from(Refused {
                status,
                code,
                message,
                hint,
            }))
        };
        assert!(refused(503, "db-away"));
        assert!(refused(502, "answer-strange"));
        assert!(refused(429, "busy"));
        assert!(!refused(401, "token-bad"));
        assert!(!refused(403, "scope-wrong"));
        assert!(!refused(404, "answer-strange"));
        assert!(!refused(409, NAME_TAKEN));
        assert!(!refused(426, "protocol-unsupported"));
        let (url, why) = ("http://nowhere".to_owned(), "as planned".to_owned());
        assert!(is_awaited(
            &Unreachable {
                url: url.clone(),
                why: why.clone()
            }
            .into()
        ));
        assert!(!is_awaited(&Unreadable { url, why }.into()));
    }
}
