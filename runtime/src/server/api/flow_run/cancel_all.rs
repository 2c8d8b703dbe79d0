//! Stopping every run of a flow.

use axum::Json as Answered;
use axum::extract::State;

use crate::model::state::Event;
use crate::server::access::Access;
use crate::server::api::flow;
use crate::server::app::App;
use crate::server::db::DbError;
use crate::server::db::flow_run::{self, Move};
use crate::server::error::Answer;
use crate::server::extract::Path;
use crate::wire::{Cancelled, ErrorBody};

/// Most runs of one transaction.
const BATCH: u32 = 200;

/// Asks for every run of a flow to be stopped that is not over: at once if nobody has it, else by its agent.
/// Those that its schedule has made for later stay: `pause` lets a schedule rest.
#[utoipa::path(post, path = "/api/flows/{flow}/cancel", tag = "flow",
params(("flow" = String, Path, description = "Id, name where unique, or `project/flow`")), responses(
    (status = 200, body = Cancelled), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(in crate::server::api) async fn cancel_all(
    State(app): State<App>,
    access: Access,
    Path(text): Path<String>,
) -> Answer<Answered<Cancelled>> {
    access.may_change()?;
    let mut reader = app.db.reader().await?;
    let found = flow::found(&mut reader, &access.realm, &text).await?;
    drop(reader);
    let (flow, now) = (found.flow.id, app.clock.now());
    let mut cancelled = Cancelled { count: 0 };
    let mut after = None;
    loop {
        let by = access.name.clone();
        let batch = app.db.write(move |tx| {
            Box::pin(async move {
                let mut runs = flow_run::live(tx, flow, after, now, BATCH).await?;
                let mut agents = Vec::new();
                for run in &mut runs {
                    let message = format!("asked for by `{by}`, with all runs of the flow");
                    let moved = Move {
                        event: Event::Cancel,
                        message: &message,
                        code: None,
                        at: now,
                        by: &by,
                    };
                    agents.extend(flow_run::cancel(tx, run, &moved).await?);
                }
                let ids: Vec<_> = runs.iter().map(|run| run.id).collect();
                flow_run::apply(tx, runs).await?;
                Ok::<_, DbError>((ids, agents))
            })
        });
        let (ids, agents) = batch.await?;
        app.tell(&ids);
        app.tell_agents(&agents);
        cancelled.count += ids.len() as u64;
        if ids.len() < BATCH as usize {
            return Ok(Answered(cancelled));
        }
        after = ids.last().copied();
    }
}
