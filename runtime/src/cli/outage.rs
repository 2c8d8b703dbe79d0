//! A server that goes away while somebody watches, and comes back.
//!
//! A server may be started anew at any moment, and the run that is watched goes on without it. So
//! whoever follows a run asks through an [`Outage`], and misses nothing: what happened meanwhile is
//! asked for by its number.

use std::cell::Cell;
use std::time::Duration;

use super::failure::{Done, Failure};
use super::output::Output;
use crate::clock::Clock;

/// The first pause after a question that nobody answered.
const PAUSE_FIRST: Duration = Duration::from_millis(250);
/// The longest pause: somebody waits in front of a screen.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What is known of a server that is asked again and again.
pub(super) struct Outage<'a> {
    output: &'a Output,
    clock: &'a Clock,
    has_answered: Cell<bool>,
    is_on: Cell<bool>,
}

impl<'a> Outage<'a> {
    /// Begins with a server of which nothing is known: the first question to it fails as any does.
    pub(super) const fn new(output: &'a Output, clock: &'a Clock) -> Self {
        Self {
            output,
            clock,
            has_answered: Cell::new(false),
            is_on: Cell::new(false),
        }
    }

    /// Asks until the server answers, however long it is away; says once that it is, and once that
    /// it is back.
    ///
    /// # Errors
    ///
    /// Whatever the server refuses; that it is away only if it has never answered.
    pub(super) async fn outlast<T, E: Into<Failure>>(
        &self,
        ask: impl AsyncFn() -> Result<T, E>,
    ) -> Done<T> {
        let mut pause = PAUSE_FIRST;
        loop {
            let failure = match ask().await {
                Ok(answer) => {
                    self.has_answered.set(true);
                    if self.is_on.replace(false) {
                        self.output.note("the server is back");
                    }
                    return Ok(answer);
                }
                Err(error) => error.into(),
            };
            if !failure.is_passing() || !self.has_answered.get() {
                return Err(failure);
            }
            if !self.is_on.replace(true) {
                let why = &failure.error;
                self.output.note(format!("{why}; asking until it is back"));
            }
            self.clock.sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::client::{ClientError, Refused, Unreachable, Unreadable};
    use crate::clock::TestClock;

    type Planned = Result<(), ClientError>;

    fn away() -> ClientError {
        let (url, why) = ("http://localhost".to_owned(), "as planned".to_owned());
        Unreachable { url, why }.into()
    }

    fn unknown() -> ClientError {
        Refused {
            status: 404,
            code: "flow-run-unknown".to_owned(),
            message: "there is no such run".to_owned(),
            hint: None,
        }
        .into()
    }

    /// Asks a server that answers as planned while time passes, and returns how often it was asked.
    async fn ask(outage: &Outage<'_>, time: &TestClock, answers: &[Planned]) -> (Done, usize) {
        let count = Cell::new(0);
        let asking = outage.outlast(async || {
            count.set(count.get() + 1);
            answers[count.get() - 1].clone()
        });
        let passing = async {
            loop {
                time.pass(PAUSE_MAX);
                tokio::task::yield_now().await;
            }
        };
        let answer = tokio::select! {
            answer = asking => answer,
            () = passing => unreachable!("time passes for ever"),
        };
        (answer, count.get())
    }

    #[tokio::test]
    async fn a_server_is_waited_for_once_it_has_answered() {
        let (clock, time) = Clock::test(Timestamp::UNIX_EPOCH);
        let output = Output::new(false);
        let outage = Outage::new(&output, &clock);
        let (answer, count) = ask(&outage, &time, &[Err(away()), Ok(())]).await;
        assert!(answer.is_err(), "nothing shows that there is a server");
        assert_eq!(count, 1);

        assert!(ask(&outage, &time, &[Ok(())]).await.0.is_ok());
        let mut answers = vec![Err(away()); 20];
        answers.push(Ok(()));
        let (answer, count) = ask(&outage, &time, &answers).await;
        assert!(answer.is_ok());
        assert_eq!(count, 21);
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_not_waited_out() {
        let (clock, time) = Clock::test(Timestamp::UNIX_EPOCH);
        let output = Output::new(false);
        let outage = Outage::new(&output, &clock);
        assert!(ask(&outage, &time, &[Ok(())]).await.0.is_ok());
        let (url, why) = ("http://localhost".to_owned(), "as planned".to_owned());
        let strange = Unreadable { url, why }.into();
        let (answer, count) = ask(&outage, &time, &[Err(strange), Ok(())]).await;
        assert!(answer.is_err());
        assert_eq!(count, 1);
    }

    #[tokio::test]
    async fn a_refusal_is_an_answer() {
        let (clock, time) = Clock::test(Timestamp::UNIX_EPOCH);
        let output = Output::new(false);
        let outage = Outage::new(&output, &clock);
        let (answer, count) = ask(&outage, &time, &[Ok(())]).await;
        assert!(answer.is_ok() && count == 1);
        let (answer, count) = ask(&outage, &time, &[Err(unknown()), Ok(())]).await;
        assert_eq!(answer.unwrap_err().refusal(), Some("flow-run-unknown"));
        assert_eq!(count, 1);
    }
}
