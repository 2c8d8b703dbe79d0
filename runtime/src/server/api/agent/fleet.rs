//! Agents as a fleet: what others may know of them, and that they take no more runs.

use axum::Json as Answered;
use axum::extract::State;
use jiff::Timestamp;

use crate::server::access::Access;
use crate::server::api::{self, page_size};
use crate::server::app::App;
use crate::server::db::agent;
use crate::server::error::{Answer, ApiError, Code};
use crate::server::extract::{Json, Path, Query};
use crate::wire::{Agent, AgentRun, ErrorBody, ListQuery, NewDrain, Page};

/// Lists agents by name, with the runs that they have.
#[utoipa::path(get, path = "/api/agents", tag = "agent", params(ListQuery), responses(
    (status = 200, body = Page<Agent>), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(in crate::server::api) async fn list(
    State(app): State<App>,
    access: Access,
    Query(query): Query<ListQuery>,
) -> Answer<Answered<Page<Agent>>> {
    access.may_read()?;
    let limit = page_size(query.limit)?;
    let after = match query.cursor.as_deref().map(|text| text.split_once(' ')) {
        None => None,
        Some(None) => return Err(ApiError::new(Code::QueryBad, "`cursor` is not one")),
        Some(Some((name, id))) => api::cursor(Some(id))?.map(|id| (name.to_owned(), id)),
    };
    let mut reader = app.db.reader().await?;
    let mut kept = agent::list(&mut reader, &access.realm, after, limit + 1).await?;
    let next = api::next_of(&mut kept, limit, |last| {
        format!("{} {}", last.name, last.id)
    });
    let mut at_work = agent::at_work(&mut reader, None).await?;
    let now = app.lease_now(&mut reader).await?;
    let items = kept.into_iter().map(|kept| {
        let runs = at_work.remove(&kept.id).unwrap_or_default();
        app.seen(kept, runs, now)
    });
    let items = items.collect();
    Ok(Answered(Page { items, next }))
}

/// Shows an agent, with the runs that it has.
#[utoipa::path(get, path = "/api/agents/{agent}", tag = "agent",
params(("agent" = String, Path, description = "Id, name, or `name@host` where hosts share the name")),
responses((status = 200, body = Agent), (status = "4XX", body = ErrorBody)), security(("token" = [])))]
pub(in crate::server::api) async fn show(
    State(app): State<App>,
    access: Access,
    Path(text): Path<String>,
) -> Answer<Answered<Agent>> {
    access.may_read()?;
    app.found_agent(&access, &text).await.map(Answered)
}

/// Tells an agent to take no more runs, and to end: when those it has are over, or at once. What it is
/// told outlives the server, and holds until a process of its name is started anew.
#[utoipa::path(post, path = "/api/agents/{agent}/drain", tag = "agent",
params(("agent" = String, Path, description = "Id, name, or `name@host` where hosts share the name")),
request_body = NewDrain,
responses((status = 200, body = Agent), (status = "4XX", body = ErrorBody)), security(("token" = [])))]
pub(in crate::server::api) async fn drain(
    State(app): State<App>,
    access: Access,
    Path(text): Path<String>,
    Json(new): Json<NewDrain>,
) -> Answer<Answered<Agent>> {
    access.may_change()?;
    let found = app.found_agent(&access, &text).await?;
    if found.protocol < agent::DRAIN_PROTOCOL {
        let (name, protocol) = (&found.name, found.protocol);
        let message = format!("the agent `{name}` speaks protocol {protocol}, which has no drain");
        let hint = "an interrupt drains it where it runs; a newer version can be told from afar";
        return Err(ApiError::new(Code::ProtocolUnsupported, message).hint(hint));
    }
    let (id, how) = (found.id, new.how);
    let told = app
        .db
        .write(move |tx| {
            Box::pin(async move { agent::tell_drain(tx, id, how).await.map_err(ApiError::from) })
        })
        .await?;
    // Once this is answered the agent is given nothing more.
    app.sessions.drain(id);
    app.tell_agents(&[id]);
    tracing::info!(agent.name = found.name, by = access.name, how = ?how, "an agent is drained");
    let told = told.ok_or_else(|| unknown(&text))?;
    let mut shown = app.found_agent(&access, &id.to_string()).await?;
    shown.drain = Some(told);
    Ok(Answered(shown))
}

fn unknown(text: &str) -> ApiError {
    let shown: String = text.escape_default().take(150).collect();
    ApiError::new(
        Code::AgentUnknown,
        format!("there is no agent `{shown}` that this token sees"),
    )
    .hint("waft agent list")
}

impl App {
    /// Finds the agent that a text means. Of several with one name it is the one that is there.
    async fn found_agent(&self, access: &Access, text: &str) -> Answer<Agent> {
        let (name, host) = match text.split_once('@') {
            Some((name, host)) => (name, Some(host)),
            None => (text, None),
        };
        let mut reader = self.db.reader().await?;
        let kept = agent::named(&mut reader, &access.realm, name, host).await?;
        let now = self.lease_now(&mut reader).await?;
        let mut agents = Vec::new();
        for kept in kept {
            let mut at_work = agent::at_work(&mut reader, Some(kept.id)).await?;
            let runs = at_work.remove(&kept.id).unwrap_or_default();
            agents.push(self.seen(kept, runs, now));
        }
        if agents.len() > 1 && agents.iter().any(is_there) {
            agents.retain(is_there);
        }
        let first = agents.pop().ok_or_else(|| unknown(text))?;
        if agents.is_empty() {
            return Ok(first);
        }
        let count = agents.len() + 1;
        let message = format!("{count} agents are called `{name}`");
        let hint = format!(
            "name it with its host, `{name}@{}`, or by its id",
            first.hostname
        );
        Err(ApiError::new(Code::AgentAmbiguous, message).hint(hint))
    }

    /// Shows an agent as it is now.
    fn seen(&self, kept: agent::Kept, flow_runs: Vec<AgentRun>, lease_now: Timestamp) -> Agent {
        let there = self.presence(&kept, lease_now);
        let (is_polling, is_leaving) = (there.is_polling(), there.is_leaving());
        let load = u32::try_from(flow_runs.len()).unwrap_or(u32::MAX);
        Agent {
            id: kept.id,
            name: kept.name,
            hostname: kept.hostname,
            version: kept.version,
            protocol: kept.protocol,
            offer: kept.offer,
            slots: kept.slots,
            free_slots: kept.slots.saturating_sub(load),
            flow_runs,
            seen_at: match is_polling || is_leaving {
                true => self.clock.now(),
                false => kept.seen_at,
            },
            is_polling,
            is_leaving,
            drain: kept.drain,
        }
    }
}

const fn is_there(agent: &Agent) -> bool {
    agent.is_polling || agent.is_leaving
}
