//! The poller: asks for work while there is a free slot, and listens for orders while there is none.
//!
//! Two long polls. The first claims runs in batches, as many as there are free slots, and asks again
//! at once while what it got is executed. The second stays open whatever the slots do and brings
//! what cannot wait: what people decide, cancel, drain.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::execute::execute;
use super::session::PAUSE_MAX;
use super::{Agent, Stop};
use crate::clock::Monotonic;
use crate::wire::{ClaimedRun, Claims, LeaseKey, Listen, Poll};

/// Seconds that the server may keep a poll open.
const WAIT_SECONDS: u32 = 30;
/// The pause after an answer that wants only what is being done already, such as to stop a run: the
/// server says so until it knows that it is done.
const PAUSE_SAME: Duration = Duration::from_millis(100);
/// The pause after a refusal: something is set up wrongly, and somebody has to mend it.
const PAUSE_REFUSED: Duration = Duration::from_secs(10);

/// Claims runs and starts their execution until the agent is to stop; once, if it takes one batch.
///
/// Returns with runs still at work in `runs`.
pub(super) async fn take_work(agent: &Arc<Agent>, runs: &mut JoinSet<()>) {
    let mut stop = agent.stop.subscribe();
    loop {
        let claimed = tokio::select! {
            claimed = claim(agent) => claimed,
            _ = stop.wait_for(|stop| *stop != Stop::No) => return,
        };
        let (asked, claims) = claimed;
        let since = asked + Duration::from_millis(claims.waited_ms);
        begin(agent, since, claims.flow_runs, runs);
        if agent.is_once {
            return;
        }
        while runs.try_join_next().is_some() {}
    }
}

/// Waits for a free slot, then for work; answers with when it was asked for, too.
async fn claim(agent: &Agent) -> (Monotonic, Claims) {
    let wait_seconds = if agent.is_once { 0 } else { WAIT_SECONDS };
    loop {
        let answer = agent
            .session
            .call(PAUSE_MAX, |client, session_id| async move {
                // Counted for each try: a slot may have become free while the server was away.
                let free_slots = agent.slots.some_free().await;
                let asked = agent.clock.monotonic();
                let poll = Poll {
                    session_id,
                    free_slots,
                    wait_seconds,
                };
                Ok((asked, client.poll(&poll).await?))
            });
        match answer.await {
            Ok(claims) => return claims,
            Err(refused) => {
                tracing::error!(error = %refused, "the server refuses to give work");
                agent.clock.sleep(PAUSE_REFUSED).await;
            }
        }
    }
}

/// Starts the execution of runs that were claimed, none of them before `since`.
fn begin(agent: &Arc<Agent>, since: Monotonic, claimed: Vec<ClaimedRun>, runs: &mut JoinSet<()>) {
    for claimed in claimed {
        let Some(slot) = agent.slots.take() else {
            // Not held, so not renewed: the server takes it back.
            tracing::warn!(run.id = %claimed.flow_run_id, "not taken: the server gave more runs than were asked for");
            continue;
        };
        let key = LeaseKey {
            flow_run_id: claimed.flow_run_id,
            epoch: claimed.epoch,
        };
        agent.tags.learn(&claimed);
        let hold = agent.leases.hold(key, since);
        tracing::debug!(run.id = %claimed.flow_run_id, flow = %claimed.flow, epoch = claimed.epoch, "claimed");
        runs.spawn(execute(agent.clone(), claimed, hold, slot));
    }
}

/// Carries out what the server says, for as long as the agent lives.
pub(super) async fn listen(agent: &Agent) {
    loop {
        let answer = agent.session.call(PAUSE_MAX, |client, session_id| {
            let listen = Listen {
                session_id,
                leases: agent.leases.keys(),
                has_left: agent.session.has_left(),
                limited_seen: agent.tags.seen(),
                wait_seconds: WAIT_SECONDS,
            };
            async move { client.listen(&listen).await }
        });
        let is_news = match answer.await {
            Ok(orders) => {
                agent.sweeper.ask(orders.delete);
                let cancelled = orders
                    .cancel
                    .iter()
                    .filter(|key| agent.leases.cancel(**key));
                let is_news = cancelled.count() > 0;
                let lost = orders.lost.iter().filter(|key| agent.leases.lose(**key));
                let is_news = lost.count() > 0 || is_news;
                // An empty answer is one that waited long enough.
                let is_empty = orders.cancel.is_empty()
                    && orders.lost.is_empty()
                    && orders.decisions.is_empty()
                    && orders.slots.is_empty()
                    && orders.drain.is_none();
                let decided = orders.decisions.into_iter();
                let decided = decided.filter(|it| agent.leases.decide(it.clone()));
                let is_news = decided.count() > 0 || is_news;
                let is_news = orders.limited.is_some() || is_news;
                // Before the slots: who asks for none takes none.
                orders
                    .limited
                    .into_iter()
                    .for_each(|it| agent.tags.told(it));
                let is_news = agent.leases.give(orders.slots) || is_news;
                orders.drain.is_some_and(|drain| agent.obey(drain)) || is_news || is_empty
            }
            Err(refused) => {
                tracing::error!(error = %refused, "the server refuses to say what is to be done");
                agent.clock.sleep(PAUSE_REFUSED).await;
                true
            }
        };
        if !is_news {
            tokio::select! {
                () = agent.clock.sleep(PAUSE_SAME) => {}
                () = agent.leases.one_freed() => {}
            }
        }
    }
}
