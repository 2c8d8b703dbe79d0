//! How runs are stopped, and what becomes of the task runs that they leave open.

use super::{Move, Standing};
use crate::model::id::AgentId;
use crate::model::state::{Event, State};
use crate::server::db::tx::Tx;
use crate::server::db::{DbError, task_run};

/// Asks for a run to be stopped: at once if no agent has it, else by its agent, which is answered.
///
/// # Errors
///
/// [`DbError::Raced`] if it is over or being stopped already.
pub async fn cancel(
    tx: &mut Tx,
    run: &mut Standing,
    moved: &Move<'_>,
) -> Result<Option<AgentId>, DbError> {
    run.step(moved).map_err(|_| DbError::Raced)?;
    if run.state != State::Cancelling {
        end_left(tx, run, moved.clone()).await?;
        return Ok(None);
    }
    Ok(run.agent_id)
}

/// Ends a run as a person says, at once and whoever has it: no report and no renewal of theirs counts any more,
/// since the epoch is another one. Its task runs that are not over are stopped.
///
/// Answers with the agent that had it.
///
/// # Errors
///
/// [`DbError::Raced`] if it is over already.
pub async fn end_by_hand(
    tx: &mut Tx,
    run: &mut Standing,
    moved: &Move<'_>,
) -> Result<Option<AgentId>, DbError> {
    let agent = run.agent_id.filter(|_| run.lease_until.is_some());
    if agent.is_some() {
        run.epoch += 1;
    }
    run.step(moved).map_err(|_| DbError::Raced)?;
    let stop = Move {
        event: Event::Stop,
        ..moved.clone()
    };
    end_tasks(tx, run, &stop).await?;
    Ok(agent)
}

/// Ends the task runs of a run that is over and left some open; the event says how.
pub async fn end_tasks(tx: &mut Tx, run: &mut Standing, moved: &Move<'_>) -> Result<(), DbError> {
    if run.open_tasks == 0 {
        return Ok(());
    }
    let mut ended = Vec::new();
    for (key, mut task) in task_run::read_open(tx, run.id).await? {
        if task.end_by(moved.event, moved.message, moved.at).is_ok() {
            run.note(Some((key.1, key.2)), moved, task.state);
            run.open_tasks = run.open_tasks.saturating_sub(1);
            ended.push((key, task));
        }
    }
    task_run::put(tx, ended).await
}

/// Ends the task runs that were left open by a run that is over: crashed as it is, else stopped.
pub async fn end_left(tx: &mut Tx, run: &mut Standing, moved: Move<'_>) -> Result<(), DbError> {
    let event = match run.state {
        State::Crashed => Event::Crash,
        _ => Event::Stop,
    };
    end_tasks(tx, run, &Move { event, ..moved }).await
}
