//! Agents: what they say to the server. What others may know of them and want of them is in `fleet`.

pub mod fleet;

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use axum::Json as Answered;
use axum::extract::State;
use http::StatusCode;
use jiff::SignedDuration;

use super::{checked_labels, checked_name};
use crate::clock::Monotonic;
use crate::model::id::{AgentId, FlowRunId, SessionId};
use crate::model::requirement::Resting;
use crate::model::run::TaskRunKey;
use crate::model::state::{Event, State as RunState};
use crate::server::access::Access;
use crate::server::app::App;
use crate::server::db::flow_run::{self, Move, Standing, Unheard};
use crate::server::db::memory::Memory;
use crate::server::db::realm::Realm;
use crate::server::db::report::{self, Reporter};
use crate::server::db::tx::Tx;
use crate::server::db::{DbError, agent, lease, project, segment, tag, tag_slot};
use crate::server::duty::rescuer;
use crate::server::error::{Answer, ApiError, Code};
use crate::server::extract::Json;
use crate::server::news::News;
use crate::server::session::Session as AgentSession;
use crate::wire::{
    Claims, Decided, Deletions, Drain, ErrorBody, GivenSlots, LeaseKey, Leave, LimitedTags, Listen,
    NewSession, Orders, PROTOCOL, Poll, Renewal, Renewed, ReportBatch, Reported, Rest, Segment,
    Session,
};

/// Most slots of an agent.
const SLOTS_MAX: u32 = 100_000;
/// Most roots of which an agent says why they rest.
const RESTS_MAX: usize = 100;
/// Most characters that it says of each.
const REST_CHARS_MAX: usize = 500;
/// Longer than any rest.
const DAY_SECONDS: u32 = 24 * 60 * 60;
/// Most segments that an agent is asked to delete at one time.
const DELETE_MAX: usize = 100;
/// When a poll looks again that passed over a run which others had in hand, and the longest of these pauses.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(1);
/// A claim that its agent does not know of so long afterwards has not reached it.
const UNDELIVERED: SignedDuration = SignedDuration::from_secs(5);

/// Opens a session of an agent; an earlier one ends by it. Its leases do not, unless the agent says
/// that the process is dead which had them: then its runs are given back at once.
#[utoipa::path(post, path = "/api/agent/session", tag = "agent", request_body = NewSession, responses(
    (status = 200, body = Session), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(super) async fn open_session(
    State(app): State<App>,
    access: Access,
    Json(mut new): Json<NewSession>,
) -> Answer<Answered<Session>> {
    access.may_work()?;
    checked_name("agent", &new.name)?;
    checked_labels(&new.offer.labels)?;
    let is_text =
        |text: &str, most| (1..=most).contains(&text.len()) && !text.contains(char::is_control);
    if new.home.as_ref().is_some_and(|home| !is_text(home, 64)) {
        let message = "`home` is empty, too long or not a plain text";
        return Err(ApiError::new(Code::ValueBad, message));
    }
    if !is_text(&new.hostname, 255) || !is_text(&new.version, 64) {
        let message = "`hostname` or `version` is empty, too long or not a plain text";
        return Err(ApiError::new(Code::ValueBad, message));
    }
    if !(1..=SLOTS_MAX).contains(&new.slots) {
        let message = format!("`slots` is 1 to {SLOTS_MAX}, not {}", new.slots);
        return Err(ApiError::new(Code::ValueBad, message));
    }
    let protocol = new.protocol;
    if !(PROTOCOL - 1..=PROTOCOL).contains(&protocol) {
        let before = PROTOCOL - 1;
        let message =
            format!("the agent speaks protocol {protocol}, this server {PROTOCOL} and {before}");
        return Err(ApiError::new(Code::ProtocolUnsupported, message)
            .hint("bring agent and server to neighbouring versions of waft"));
    }
    new.offer.projects = offered_projects(&app, &access, new.offer.projects.take()).await?;
    let now = app.clock.now();
    // Whatever it says there: instants are the server's.
    new.offer.resting = resting(std::mem::take(&mut new.rests), now);
    // Whatever it says there: what it speaks was agreed upon.
    let abilities = &mut new.offer.abilities;
    abilities.retain(|ability| !ability.starts_with("protocol:"));
    abilities.extend((1..=protocol).map(agent::ability));
    let is_start = new.is_start || protocol < agent::DRAIN_PROTOCOL;
    let ids = (
        AgentId::at(now.as_microsecond(), rand::random()),
        SessionId::at(now.as_microsecond(), rand::random()),
    );
    let (realm, memory) = (access.realm.word(), app.db.memory.clone());
    let itself = app.clone();
    let (agent_id, taken) = app
        .db
        .write(move |tx| {
            Box::pin(async move {
                if let Some(kept) = agent::take(tx, &realm, &new).await? {
                    let lease_now = itself.lease_now(tx).await?;
                    if itself.is_anothers(&kept, new.home.as_deref(), lease_now) {
                        return Err(anothers(&kept));
                    }
                }
                let dead = match new.replaces {
                    Some(last) => agent::in_session(tx, &realm, &new, last).await?,
                    None => None,
                };
                let taken = match dead {
                    Some(id) => take_from_dead(tx, &memory, id, now).await?,
                    None => Vec::new(),
                };
                let agent_id = agent::open(tx, ids, &realm, &new, now).await?;
                Ok::<_, ApiError>((agent_id, taken))
            })
        })
        .await?;
    rescuer::announce(&app, &taken).await;
    if is_start {
        app.sessions.forgive(agent_id);
    }
    // Whoever polls in the old session is woken, and told that there is a newer one.
    app.session(&access, ids.1).await?;
    app.waiting.wake_replaced();
    app.tell_agents(&[agent_id]);
    Ok(Answered(Session {
        agent_id,
        session_id: ids.1,
        lease_seconds: app.lease.as_secs() as u32,
        protocol,
    }))
}

/// Refuses a name that an agent of another `WAFT_HOME` has.
fn anothers(kept: &agent::Kept) -> ApiError {
    let message = format!(
        "the agent `{}` of the host `{}` is here already, with another WAFT_HOME, since {}",
        kept.name, kept.hostname, kept.begun_at
    );
    ApiError::new(Code::AgentExists, message).hint(
        "--name NAME gives this one a name of its own; if the other was ended just now: again in \
         ten seconds",
    )
}

/// Notes when an agent looks again at the roots that rest, by the server's time.
fn resting(rests: Vec<Rest>, now: jiff::Timestamp) -> Vec<Resting> {
    let line = |text: String| {
        let plain = text.chars().filter(|c| !c.is_control());
        plain.take(REST_CHARS_MAX).collect::<String>()
    };
    let rests = rests.into_iter().take(RESTS_MAX);
    rests
        .map(|rest| Resting {
            root: rest.root,
            label: rest.label,
            why: line(rest.why),
            hint: rest.hint.map(line),
            looks_at: now + SignedDuration::from_secs(rest.look_seconds.min(DAY_SECONDS).into()),
        })
        .collect()
}

/// Takes every run from an agent whose process is dead.
async fn take_from_dead(
    tx: &mut Tx,
    memory: &Memory,
    agent: AgentId,
    at: jiff::Timestamp,
) -> Result<Vec<Standing>, DbError> {
    let mut taken = flow_run::take_of_agent(tx, agent).await?;
    for run in &mut taken {
        let died = |agent: &str| format!("the process of {agent} ended, and was started anew");
        lease::release(tx, memory, run, died, at).await?;
    }
    flow_run::apply(tx, taken.clone()).await?;
    Ok(taken)
}

/// Cuts the projects that an agent offers to those of its token.
async fn offered_projects(
    app: &App,
    access: &Access,
    offered: Option<BTreeSet<String>>,
) -> Answer<Option<BTreeSet<String>>> {
    if access.realm == Realm::All {
        return Ok(offered);
    }
    let mut reader = app.db.reader().await?;
    let own = project::names(&mut reader, &access.realm).await?;
    let own: BTreeSet<String> = own.unwrap_or_default().into_iter().collect();
    Ok(Some(match offered {
        Some(offered) => offered.intersection(&own).cloned().collect(),
        None => own,
    }))
}

/// Notes that an agent takes no more runs: it counts as polling no longer, and finishes what it has.
#[utoipa::path(post, path = "/api/agent/leave", tag = "agent", request_body = Leave, responses(
    (status = 204), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(super) async fn leave(
    State(app): State<App>,
    access: Access,
    Json(leave): Json<Leave>,
) -> Answer<StatusCode> {
    access.may_work()?;
    let session = app.session(&access, leave.session_id).await?;
    note_leave(&app, &session).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Notes that an agent takes no more runs, for whichever server it asks next.
async fn note_leave(app: &App, session: &Arc<AgentSession>) -> Result<(), DbError> {
    if session.has_left() {
        return Ok(());
    }
    session.leave();
    let id = session.id;
    app.db
        .write(move |tx| Box::pin(agent::leave(tx, id)))
        .await?;
    app.spread(News::Agent(session.agent_id));
    Ok(())
}

/// Claims due runs; waits for one if there is none.
#[utoipa::path(post, path = "/api/agent/poll", tag = "agent", request_body = Poll, responses(
    (status = 200, body = Claims), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(super) async fn poll(
    State(app): State<App>,
    access: Access,
    Json(poll): Json<Poll>,
) -> Answer<Answered<Claims>> {
    access.may_work()?;
    let came = app.clock.monotonic();
    let session = app.session(&access, poll.session_id).await?;
    let _open = app.open_call(&session);
    let end = app.patience(poll.wait_seconds);
    if poll.free_slots == 0 {
        return Ok(Answered(Claims {
            flow_runs: Vec::new(),
            waited_ms: 0,
        }));
    }
    let mut pause = LOOK_AGAIN;
    loop {
        let place = app.waiting.enter(session.clone());
        // Never cut short: what it claims must reach the agent.
        let claimed = app
            .claim(&session, poll.free_slots, place.presence(), came)
            .await?;
        let claims = Claims {
            flow_runs: claimed.runs,
            waited_ms: u64::try_from(claimed.waited.as_millis()).unwrap_or(u64::MAX),
        };
        if claims.flow_runs.is_empty() && claimed.is_cut && !claimed.has_passed {
            place.heard();
            continue;
        }
        if claims.flow_runs.is_empty() && claimed.has_passed {
            // Whoever had it in hand may leave it as it was, and says nothing then.
            let again = async {
                tokio::select! {
                    () = place.woken() => {}
                    () = app.clock.sleep(pause) => {}
                }
            };
            if !app.wait_for(again, end).await {
                return Ok(Answered(claims));
            }
            pause = (pause * 2).min(LOOK_AGAIN_MAX);
            place.heard();
            continue;
        }
        // What woke it meanwhile is passed on to the next in line with its place.
        if !claims.flow_runs.is_empty() || !app.wait_for(place.woken(), end).await {
            return Ok(Answered(claims));
        }
        if session.takes_no_more() {
            // What it was woken for goes on with its place.
            return Ok(Answered(claims));
        }
        place.heard();
        if session.is_replaced() {
            app.session(&access, poll.session_id).await?;
        }
    }
}

/// Waits for what the server has to say about the runs at work.
#[utoipa::path(post, path = "/api/agent/listen", tag = "agent", request_body = Listen, responses(
    (status = 200, body = Orders), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(super) async fn listen(
    State(app): State<App>,
    access: Access,
    Json(listen): Json<Listen>,
) -> Answer<Answered<Orders>> {
    access.may_work()?;
    let session = app.session(&access, listen.session_id).await?;
    if listen.has_left {
        note_leave(&app, &session).await?;
    }
    let _open = app.open_call(&session);
    let end = app.patience(listen.wait_seconds);
    let listener = app.sessions.listening.listen(session.agent_id);
    // The list of runs is as old as the call: a claim made since is not missing from it.
    let asked_at = app.lease_now_alone().await?;
    let mut is_woken = false;
    loop {
        let told = listener.told();
        if session.is_replaced() {
            app.session(&access, listen.session_id).await?;
        }
        let mut reader = app.db.reader().await?;
        let runs = flow_run::of_agent(&mut reader, session.agent_id).await?;
        let drain = agent::drain(&mut reader, session.agent_id).await?;
        let now = app.lease_now(&mut reader).await?;
        let unheard = flow_run::decided_for(&mut reader, session.agent_id).await?;
        let decisions = decided(&app.db.memory, &mut reader, unheard).await?;
        let tags = tags_for(&app, &mut reader, &session, listen.limited_seen).await?;
        let lost = taken(&mut reader, &runs, &listen.leases).await?;
        drop(reader);
        give_back_undelivered(&app, &session, &runs, &listen.leases, asked_at).await?;
        let end = match undelivered_at(&app, now, &session, &runs, &listen.leases) {
            Some(at) => end.min(at),
            None => end,
        };
        let delete = doomed_for(&app, &session).await?;
        let orders = Orders {
            delete,
            decisions,
            limited: tags.0,
            slots: tags.1,
            lost,
            drain: drain.filter(|how| is_to_be_told(*how, &session)),
            // Also those that the agent did not name: it may have claimed them after it began to
            // listen, and this answer is what ends its wait.
            cancel: runs
                .iter()
                .filter(|run| run.state == RunState::Cancelling)
                .map(Standing::lease)
                .collect(),
        };
        let is_news = !orders.cancel.is_empty()
            || !orders.lost.is_empty()
            || !orders.delete.is_empty()
            || !orders.decisions.is_empty();
        let is_news = is_news || !orders.slots.is_empty() || orders.limited.is_some();
        // Whoever is woken for nothing that it named has taken it since, and names it in its next call.
        if is_news || orders.drain.is_some() || is_woken || !app.wait_for(told, end).await {
            return Ok(Answered(orders));
        }
        is_woken = true;
    }
}

/// Lists the runs of those that an agent names that were taken from it: given to somebody else, or ended by a
/// person. One that has ended under its claim is not among them, since the agent knows.
async fn taken(
    tx: &mut Tx,
    runs: &[Standing],
    named: &[LeaseKey],
) -> Result<Vec<LeaseKey>, DbError> {
    let own: HashSet<LeaseKey> = runs.iter().map(Standing::lease).collect();
    let gone: Vec<LeaseKey> = (named.iter().copied())
        .filter(|lease| !own.contains(lease))
        .collect();
    if gone.is_empty() {
        return Ok(gone);
    }
    let now = flow_run::epochs(tx, gone.iter().map(|lease| lease.flow_run_id)).await?;
    let is_taken = |lease: &LeaseKey| now.get(&lease.flow_run_id) != Some(&lease.epoch);
    Ok(gone.into_iter().filter(is_taken).collect())
}

/// Names the task runs that were decided about.
async fn decided(
    memory: &Memory,
    tx: &mut Tx,
    unheard: Vec<Unheard>,
) -> Result<Vec<Decided>, DbError> {
    let mut decided = Vec::with_capacity(unheard.len());
    for one in unheard {
        let version = memory.version(tx, one.flow_version_id).await?;
        let version = version.ok_or(DbError::Raced)?;
        decided.push(Decided {
            lease: one.lease,
            task_run: TaskRunKey {
                task: version.task_name(one.task.0).to_owned(),
                map_index: one.task.1,
            },
            decision: one.decision,
        });
    }
    Ok(decided)
}

/// Returns which tags have a number of slots, if an agent does not know, and who of it was given some.
async fn tags_for(
    app: &App,
    tx: &mut Tx,
    session: &AgentSession,
    seen: Option<i64>,
) -> Result<(Option<LimitedTags>, Vec<GivenSlots>), DbError> {
    let Some(change) = tag::last_change(tx).await? else {
        return Ok((None, Vec::new()));
    };
    let mut limited = None;
    if seen != Some(change) && session.knows_slots() {
        let mut tags = tag::by_project(tx).await?;
        if let Some(projects) = &session.offer.projects {
            tags.retain(|name, _| projects.contains(name));
        }
        limited = Some(LimitedTags { change, tags });
    }
    let mut given = Vec::new();
    for one in tag_slot::served(tx, session.agent_id).await? {
        let version = app.db.memory.version(tx, one.flow_version_id).await?;
        let version = version.ok_or(DbError::Raced)?;
        given.push(GivenSlots {
            lease: one.lease,
            task_run: TaskRunKey {
                task: version.task_name(one.task.0).to_owned(),
                map_index: one.task.1,
            },
            attempts: one.attempts,
        });
    }
    Ok((limited, given))
}

/// Tells whether an agent does not do yet what it was told. That it gives its runs back at once shows
/// only by its end, so it is told until then.
fn is_to_be_told(how: Drain, session: &AgentSession) -> bool {
    session.drain();
    session.knows_drain() && (how == Drain::Now || !session.has_left())
}

/// Returns segments for the agent to delete, and leaves them to it for some minutes.
async fn doomed_for(app: &App, session: &Arc<AgentSession>) -> Result<Vec<Segment>, DbError> {
    if session.has_left() {
        return Ok(Vec::new());
    }
    let now = app.clock.now();
    let mut reader = app.db.reader().await?;
    let roots = &session.offer.roots;
    if (segment::doomed(&mut reader, roots, now, 1).await?).is_empty() {
        return Ok(Vec::new());
    }
    drop(reader);
    let session = session.clone();
    app.db
        .write(move |tx| {
            Box::pin(async move {
                segment::take_doomed(tx, &session.offer.roots, now, DELETE_MAX).await
            })
        })
        .await
}

/// Takes note of segments that are gone, or stay for ever. Those under roots that the agent does not
/// offer are left out: it was not asked for them.
#[utoipa::path(post, path = "/api/agent/deletions", tag = "agent", request_body = Deletions, responses(
    (status = 204), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(super) async fn deletions(
    State(app): State<App>,
    access: Access,
    Json(done): Json<Deletions>,
) -> Answer<StatusCode> {
    access.may_work()?;
    let session = app.session(&access, done.session_id).await?;
    if done.deleted.len() + done.kept.len() > DELETE_MAX {
        let message = format!("more than {DELETE_MAX} segments in one call");
        return Err(ApiError::new(Code::ValueBad, message));
    }
    for kept in done.kept.iter().take(1) {
        tracing::info!(
            agent.name = session.name,
            segments = done.kept.len(),
            root = kept.segment.root,
            why = kept.why,
            "results stay where they are"
        );
    }
    let kept = done.kept.into_iter().map(|kept| kept.segment);
    let mut over: Vec<Segment> = done.deleted.into_iter().chain(kept).collect();
    over.retain(|segment| session.offer.roots.contains(&segment.root));
    app.db
        .write(move |tx| {
            Box::pin(async move { segment::forget(tx, &over).await.map_err(ApiError::from) })
        })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tells whether nothing shows that the answer with this claim reached its agent.
fn is_unheard_of(run: &Standing, session: &AgentSession, known: &[LeaseKey]) -> bool {
    run.session_id == Some(session.id)
        && matches!(run.state, RunState::Claimed | RunState::Cancelling)
        && run.reported == 0
        && !known.contains(&run.lease())
}

/// Returns when the agent should be asked again whether a claim has reached it, if one is in doubt.
fn undelivered_at(
    app: &App,
    now: jiff::Timestamp,
    session: &AgentSession,
    runs: &[Standing],
    known: &[LeaseKey],
) -> Option<Monotonic> {
    let in_doubt = runs.iter().filter(|run| is_unheard_of(run, session, known));
    let first = in_doubt.filter_map(|run| run.claimed_at).min()?;
    let over = first.saturating_add(UNDELIVERED).ok()?;
    let left = over.duration_since(now);
    let left = std::time::Duration::try_from(left).unwrap_or_default();
    // A moment later than that, so that the next call finds it to be over.
    Some(app.clock.monotonic() + left + std::time::Duration::from_millis(1))
}

/// Gives runs back that this session has claimed and does not know of: the answer to its poll was
/// lost on the way.
async fn give_back_undelivered(
    app: &App,
    session: &AgentSession,
    runs: &[Standing],
    known: &[LeaseKey],
    asked_at: jiff::Timestamp,
) -> Result<(), DbError> {
    let is_undelivered = |run: &Standing| {
        is_unheard_of(run, session, known)
            && run
                .claimed_at
                .is_some_and(|at| asked_at.duration_since(at) > UNDELIVERED)
    };
    let ids: Vec<FlowRunId> = runs
        .iter()
        .filter(|run| is_undelivered(run))
        .map(|run| run.id)
        .collect();
    if ids.is_empty() {
        return Ok(());
    }
    let (at, session_id) = (app.clock.now(), session.id);
    let given_back = app
        .db
        .write(move |tx| {
            Box::pin(async move {
                let mut given_back = Vec::new();
                for mut run in flow_run::read(tx, ids).await? {
                    let is_as_it_was = run.session_id == Some(session_id) && run.reported == 0;
                    let moved = Move {
                        event: Event::Lose,
                        message: "the claim did not reach its agent",
                        code: None,
                        at,
                        by: "server",
                    };
                    if !is_as_it_was || run.lose(&moved).is_err() {
                        continue;
                    }
                    if run.state.is_over() {
                        flow_run::end_left(tx, &mut run, moved).await?;
                    }
                    given_back.push(run);
                }
                flow_run::apply(tx, given_back.clone()).await?;
                Ok::<_, DbError>(given_back)
            })
        })
        .await?;
    rescuer::announce(app, &given_back).await;
    Ok(())
}

/// Renews the leases of the runs at work.
#[utoipa::path(post, path = "/api/agent/renew", tag = "agent", request_body = Renewal, responses(
    (status = 200, body = Renewed), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(super) async fn renew(
    State(app): State<App>,
    access: Access,
    Json(renewal): Json<Renewal>,
) -> Answer<Answered<Renewed>> {
    access.may_work()?;
    let session = app.session(&access, renewal.session_id).await?;
    let (agent_id, leases, timed) = (session.agent_id, renewal.leases, app.clone());
    let unrenewed = app
        .db
        .write(move |tx| {
            Box::pin(async move {
                let until = timed.lease_end(timed.lease_now(tx).await?);
                lease::renew(tx, agent_id, &leases, until).await
            })
        })
        .await?;
    Ok(Answered(Renewed {
        lease_seconds: app.lease.as_secs() as u32,
        lost: unrenewed.lost,
        lapsed: unrenewed.lapsed,
    }))
}

/// Takes note of what happened to an agent's runs, all of it in one transaction.
#[utoipa::path(post, path = "/api/agent/report", tag = "agent", request_body = ReportBatch, responses(
    (status = 200, body = Reported), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(super) async fn report(
    State(app): State<App>,
    access: Access,
    Json(batch): Json<ReportBatch>,
) -> Answer<Answered<Reported>> {
    access.may_work()?;
    let session = app.session(&access, batch.session_id).await?;
    let reporter = Reporter {
        agent_id: session.agent_id,
        name: session.name.clone(),
    };
    let (memory, now) = (app.db.memory.clone(), app.clock.now());
    let outcome = app
        .db
        .write(move |tx| {
            Box::pin(async move { report::apply(tx, &memory, &reporter, batch.reports, now).await })
        })
        .await?;
    if outcome.refused > 0 || !outcome.lost.is_empty() || !outcome.lapsed.is_empty() {
        tracing::info!(
            agent.name = session.name,
            refused = outcome.refused,
            lost = outcome.lost.len(),
            lapsed = outcome.lapsed.len(),
            "reports were refused"
        );
    }
    app.tell(&outcome.touched);
    app.give_slots(outcome.asked).await;
    for (version, why) in outcome.declined {
        session.shun(version, why, app.clock.monotonic());
    }
    for (requirement_id, due_at) in outcome.waiting {
        app.announce(requirement_id, due_at, 1).await;
    }
    Ok(Answered(Reported {
        lost: outcome.lost,
        lapsed: outcome.lapsed,
    }))
}
