//! One claimed run, from the claim to the report of its end.
//!
//! Here a run's life on this agent can be read from top to bottom: prepare, run, tell the end. What
//! each step does lies elsewhere: `ready` fetches and checks, the runner walks the graph, `report`
//! delivers. Nothing that goes wrong with one run reaches another.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::sync::{mpsc, watch};

use super::Agent;
use super::lease::{Hold, Lease};
use super::places::Failing;
use super::ready::{Ready, Step, Unready};
use super::session::REST_AWAY;
use super::slots::Slot;
use crate::model::run::{FlowRunMoved, Happening};
use crate::model::state::Event;
use crate::runner::{Job, Order, TagSlots, Told};
use crate::wire::ClaimedRun;

/// From the claim to the first attempt. Fetching and compiling the largest artifact takes a
/// fraction of this; what takes longer hangs, and another agent may be luckier.
const START_DEADLINE: Duration = Duration::from_secs(5 * 60);
/// What a runner may tell before it waits for the queue of reports.
const TOLD_MAX: usize = 64;

/// Executes a claimed run to its end, and tells the server how it ended.
pub(super) async fn execute(agent: Arc<Agent>, claimed: ClaimedRun, hold: Hold, slot: Slot) {
    let run_id = claimed.flow_run_id;
    let ended = AssertUnwindSafe(carry_out(&agent, claimed, &hold)).catch_unwind();
    let end = ended.await.unwrap_or_else(|_panic| {
        agent.panics.fetch_add(1, Ordering::Relaxed);
        tracing::error!(run.id = %run_id, "the agent panicked while it executed this run");
        end(
            Event::Crash,
            "internal",
            "the agent panicked; this is a bug of waft",
        )
    });
    tracing::debug!(run.id = %run_id, event = %end.event, "executed");
    let now = agent.clock.now();
    agent
        .reports
        .tell_end(hold, now, Happening::FlowRun(end))
        .await;
    drop(slot);
}

/// Prepares a run and runs it, and returns what moves it last.
async fn carry_out(agent: &Agent, claimed: ClaimedRun, lease: &Arc<Lease>) -> FlowRunMoved {
    let (step, steps) = watch::channel(Step::Looking);
    let ready = tokio::select! {
        ready = agent.shelf.ready(&claimed, &step) => ready,
        never = tell_steps(agent, lease, steps) => match never {},
        order = ordered(lease.orders()) => return match order {
            Order::Cancel => end(Event::Stop, "cancelled", "cancelled"),
            Order::Go | Order::Abandon => given_up(lease),
        },
        () = agent.clock.sleep(START_DEADLINE) => return late(),
    };
    match ready {
        Ok(ready) => run(agent, claimed, ready, lease).await,
        Err(unready) => hand_back(agent, unready).await,
    }
}

/// Runs a run whose component is ready, and passes on what happens to it.
async fn run(agent: &Agent, claimed: ClaimedRun, ready: Ready, lease: &Arc<Lease>) -> FlowRunMoved {
    let (tell, mut told) = mpsc::channel(TOLD_MAX);
    let pass_on = async {
        while let Some(Told { at, what, settled }) = told.recv().await {
            agent.reports.tell(lease, at, what).await;
            let Some(settled) = settled else { continue };
            agent.reports.flush().await;
            // Without a good lease nobody may rely on it; the order to stop is on its way.
            if lease.is_good() {
                let _ = settled.send(());
            }
        }
    };
    let run = agent
        .runner
        .run(job(agent, claimed, ready, lease), lease.orders(), tell);
    let (ended, ()) = tokio::join!(run, pass_on);
    let FlowRunMoved { event, code, .. } = &ended.moved;
    if let Some(error) = &ended.away {
        // Before the run is handed back, or it would come here again. It worked a moment ago, so even a
        // refusal is looked at again soon.
        let mut failing = Failing::of(error);
        failing.least = REST_AWAY;
        let results = agent.places.results.name();
        agent.session.rest(results, failing).await;
    }
    match (event, code) {
        (Event::Lose, Some(_)) if lease.is_good() => ended.moved,
        (Event::Lose, _) => given_up(lease),
        (Event::Rest | Event::Pause, _) if !lease.is_good() => given_up(lease),
        _ => ended.moved,
    }
}

/// Puts a claim and its component together into what the runner takes.
fn job(agent: &Agent, claimed: ClaimedRun, ready: Ready, lease: &Lease) -> Job {
    Job {
        flow_run_id: claimed.flow_run_id,
        project: claimed.project,
        prepared: ready.prepared,
        described: ready.described,
        registered: ready.registered,
        parameters: claimed.parameters,
        scheduled_at: claimed.scheduled_at,
        started_at: claimed.started_at,
        timeout_ms: Some(claimed.timeout_ms),
        stood_still_ms: claimed.stood_still_ms,
        lost: claimed.lost,
        earlier: claimed.task_runs,
        is_taken_back: claimed.is_taken_back,
        decisions: lease.decisions(),
        slots: TagSlots {
            limited: agent.tags.watch(),
            given: lease.slots(),
        },
    }
}

/// Waits for an order to stop.
async fn ordered(mut orders: watch::Receiver<Order>) -> Order {
    match orders.wait_for(|order| *order != Order::Go).await {
        Ok(order) => *order,
        Err(_) => Order::Abandon,
    }
}

/// Says what keeps the run from beginning; goes on until it is dropped.
async fn tell_steps(
    agent: &Agent,
    lease: &Arc<Lease>,
    mut steps: watch::Receiver<Step>,
) -> Infallible {
    while steps.changed().await.is_ok() {
        let message = match *steps.borrow_and_update() {
            Step::Looking => continue,
            Step::Fetching => "fetching",
            Step::Compiling => "compiling",
        };
        let now = agent.clock.now();
        let message = message.to_owned();
        agent
            .reports
            .tell(lease, now, Happening::Preparing { message })
            .await;
    }
    std::future::pending().await
}

/// Says what becomes of a run that cannot begin here, and leaves the roots alone that failed it.
async fn hand_back(agent: &Agent, unready: Unready) -> FlowRunMoved {
    match unready {
        Unready::Rejected { code, message } => end(Event::Fail, code, message),
        Unready::Broken { code, message } => end(Event::Crash, code, message),
        Unready::Declined { rests, message } => {
            for (root, failing) in rests {
                agent.session.rest(&root, failing).await;
            }
            end(Event::Decline, "artifact.missing", message)
        }
    }
}

/// Says why this agent does not go on with a run that is not over. The server tells the two apart by
/// their codes: attempts that were stopped for the lease's sake count as lost.
fn given_up(lease: &Lease) -> FlowRunMoved {
    match lease.is_good() {
        true => end(
            Event::Lose,
            "lost.stop",
            "the agent was stopped, and gave it back",
        ),
        false => end(
            Event::Lose,
            "lost.lease",
            "the agent stopped it: its lease was not renewed in time",
        ),
    }
}

fn late() -> FlowRunMoved {
    let minutes = START_DEADLINE.as_secs() / 60;
    let message = format!("it was still not ready to start after {minutes} minutes");
    end(Event::Lose, "lost.start", message)
}

fn end(event: Event, code: &str, message: impl Into<String>) -> FlowRunMoved {
    FlowRunMoved {
        event,
        message: message.into(),
        code: Some(code.to_owned()),
        result: None,
        delay_ms: 0,
    }
}
