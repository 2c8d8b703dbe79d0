//! The API as async functions; the agent and the command line speak to a server only through here.
//!
//! One function a call, named by verb and noun, with the types of `wire`. Keeps connections alive,
//! gives every call a timeout, and repeats a call only where a repeat does no harm: reading, and
//! what an agent says under a number (reports, renewals).

mod call;
mod error;
mod flow;
mod tag;

use std::error::Error as _;
use std::time::Duration;

use call::{Call, encoded};
use http::{Method, StatusCode};
use serde::de::DeserializeOwned;
use tower::ServiceExt as _;

use crate::clock::Clock;
use crate::model::id::{FlowRunId, TokenId};
use crate::model::run::{Card, TaskRun};
use crate::wire::{
    Agent, Claims, Deletions, ErrorBody, Explanation, FlowRun, Health, Leave, ListQuery, Listen,
    LogPage, LogQuery, MadeToken, NewDecision, NewDrain, NewFlowRun, NewMark, NewProject, NewRetry,
    NewSession, NewToken, Orders, Orphans, Page, Poll, Project, RegisterQuery, Registered,
    Registration, Renewal, Renewed, ReportBatch, Reported, Session, Sighted, Slots, Token,
    Transition, WatchQuery,
};

pub use error::{ClientError, Refused, Unreachable, Unreadable};

/// How long it may take to reach the server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection rests before it is given up: less than servers let one rest, so that none
/// is found closed at the moment it is used.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of an answer; the largest is a claim of runs with all that is known of their task runs.
const ANSWER_BYTES_MAX: usize = 512 * 1024 * 1024;
/// The pauses between the attempts of a call that may be repeated.
const PAUSES_MS: [u64; 3] = [50, 200, 800];

/// Speaks to one server with one token. Cheap to clone; clones share their connections.
#[derive(Clone, Debug)]
pub struct Client {
    transport: Transport,
    url: String,
    token: Option<String>,
    clock: Clock,
    answer_bytes_max: usize,
}

#[derive(Clone, Debug)]
enum Transport {
    Http(reqwest::Client),
    /// A router in this process, for tests of the whole world without a port.
    InProcess(axum::Router),
}

impl Client {
    /// Makes a client of the server at `url`, such as `http://127.0.0.1:4280`.
    ///
    /// Nothing is sent yet. A proxy of the environment is used, but never for this machine itself.
    ///
    /// # Errors
    ///
    /// Fails on a text that is no `http` or `https` address.
    pub fn new(url: &str, token: Option<String>) -> Result<Self, ClientError> {
        let unusable = |why: String| Unreachable {
            url: url.to_owned(),
            why,
        };
        let parsed =
            reqwest::Url::parse(url).map_err(|why| unusable(format!("it is no address: {why}")))?;
        if !matches!(parsed.scheme(), "http" | "https") || parsed.host_str().is_none() {
            return Err(
                unusable("expected `http://host:port` or `https://host`".to_owned()).into(),
            );
        }
        crate::tls::install();
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .tcp_nodelay(true)
            .user_agent(concat!("waft/", env!("CARGO_PKG_VERSION")));
        if matches!(
            parsed.host_str(),
            Some("localhost" | "127.0.0.1" | "[::1]" | "::1")
        ) {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|error| unusable(chain(&error)))?;
        Ok(Self {
            transport: Transport::Http(http),
            url: url.trim_end_matches('/').to_owned(),
            token,
            clock: Clock::default(),
            answer_bytes_max: ANSWER_BYTES_MAX,
        })
    }

    /// Makes a client of a router in this process: no port, no network, the same answers.
    #[must_use]
    pub fn in_process(router: axum::Router, token: Option<String>) -> Self {
        Self {
            transport: Transport::InProcess(router),
            url: "http://localhost".to_owned(),
            token,
            clock: Clock::default(),
            answer_bytes_max: ANSWER_BYTES_MAX,
        }
    }

    /// Returns the address of the server.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Asks whether the server is well; needs no token.
    ///
    /// # Errors
    ///
    /// As every call here: refused, or no answer.
    pub async fn health(&self) -> Result<Health, ClientError> {
        self.call(Call::get("/api/health")).await
    }

    /// Makes a project.
    ///
    /// # Errors
    ///
    /// `name-bad`, `project-exists`.
    pub async fn create_project(&self, new: &NewProject) -> Result<Project, ClientError> {
        self.call(Call::post("/api/projects", new)).await
    }

    /// Lists projects by name.
    ///
    /// # Errors
    ///
    /// As every call here.
    pub async fn list_projects(&self, query: &ListQuery) -> Result<Page<Project>, ClientError> {
        self.call(Call::get("/api/projects").query(query)).await
    }

    /// Sets how many runs of a project agents may have at one time.
    ///
    /// # Errors
    ///
    /// `project-unknown`, `value-bad`.
    pub async fn set_project_slots(
        &self,
        project: &str,
        slots: &Slots,
    ) -> Result<Project, ClientError> {
        let path = format!("/api/projects/{}/slots", encoded(project));
        self.call(Call::put(path, slots).repeatable()).await
    }

    /// Deletes an empty project, by name or id.
    ///
    /// # Errors
    ///
    /// `project-unknown`, `project-not-empty`.
    pub async fn delete_project(&self, project: &str) -> Result<(), ClientError> {
        let path = format!("/api/projects/{}", encoded(project));
        self.call_empty(Call::new(Method::DELETE, path)).await
    }

    /// Registers a version of a flow in a project. Repeatable: the same again changes nothing.
    ///
    /// # Errors
    ///
    /// `project-unknown`, `definition-bad`.
    pub async fn register(
        &self,
        project: &str,
        registration: &Registration,
    ) -> Result<Registered, ClientError> {
        let query = RegisterQuery::default();
        self.register_with(project, registration, &query).await
    }

    /// As [`Client::register`], for a flow that takes a new name.
    ///
    /// # Errors
    ///
    /// `flow-unknown`, `flow-exists` too.
    pub async fn register_with(
        &self,
        project: &str,
        registration: &Registration,
        query: &RegisterQuery,
    ) -> Result<Registered, ClientError> {
        let path = format!("/api/projects/{}/flows", encoded(project));
        let call = Call::post(path, registration).query(query);
        self.call(call.repeatable()).await
    }

    /// Makes a run. Repeated by itself only if it has an idempotency key.
    ///
    /// # Errors
    ///
    /// `flow-unknown`, `flow-ambiguous`, `flow-archived`, `version-unknown`, `parameters-bad`,
    /// `idempotency-conflict`.
    pub async fn create_flow_run(&self, new: &NewFlowRun) -> Result<FlowRun, ClientError> {
        let mut call = Call::post("/api/flow-runs", new);
        call.is_repeatable = new.idempotency_key.is_some();
        self.call(call).await
    }

    /// Lists runs, newest first.
    ///
    /// # Errors
    ///
    /// `flow-unknown`, `flow-ambiguous`, `query-bad`.
    pub async fn list_flow_runs(&self, query: &ListQuery) -> Result<Page<FlowRun>, ClientError> {
        self.call(Call::get("/api/flow-runs").query(query)).await
    }

    /// Shows a run.
    ///
    /// # Errors
    ///
    /// `flow-run-unknown`.
    pub async fn flow_run(&self, id: FlowRunId) -> Result<FlowRun, ClientError> {
        self.call(Call::get(format!("/api/flow-runs/{id}"))).await
    }

    /// Waits until the run has moved beyond `query.after`, or the time is up; answers with the run
    /// as it is then.
    ///
    /// # Errors
    ///
    /// `flow-run-unknown`.
    pub async fn watch_flow_run(
        &self,
        id: FlowRunId,
        query: &WatchQuery,
    ) -> Result<FlowRun, ClientError> {
        let call = Call::get(format!("/api/flow-runs/{id}")).query(query);
        self.call(call.waiting(query.wait_seconds)).await
    }

    /// Lists the task runs of a run, in the order of the definition.
    ///
    /// # Errors
    ///
    /// `flow-run-unknown`.
    pub async fn task_runs(
        &self,
        id: FlowRunId,
        query: &ListQuery,
    ) -> Result<Page<TaskRun>, ClientError> {
        self.call(Call::get(format!("/api/flow-runs/{id}/task-runs")).query(query))
            .await
    }

    /// Returns log lines after a number; waits for one if that is asked for.
    ///
    /// # Errors
    ///
    /// `flow-run-unknown`.
    pub async fn logs(&self, id: FlowRunId, query: &LogQuery) -> Result<LogPage, ClientError> {
        let call = Call::get(format!("/api/flow-runs/{id}/logs")).query(query);
        self.call(call.waiting(query.wait_seconds)).await
    }

    /// Lists what happened to a run and its task runs, oldest first.
    ///
    /// # Errors
    ///
    /// `flow-run-unknown`.
    pub async fn history(
        &self,
        id: FlowRunId,
        query: &ListQuery,
    ) -> Result<Page<Transition>, ClientError> {
        self.call(Call::get(format!("/api/flow-runs/{id}/history")).query(query))
            .await
    }

    /// Lists the cards of a run.
    ///
    /// # Errors
    ///
    /// `flow-run-unknown`.
    pub async fn cards(&self, id: FlowRunId) -> Result<Page<Card>, ClientError> {
        self.call(Call::get(format!("/api/flow-runs/{id}/cards")))
            .await
    }

    /// Asks why a run is where it is.
    ///
    /// # Errors
    ///
    /// `flow-run-unknown`.
    pub async fn explain(&self, id: FlowRunId) -> Result<Explanation, ClientError> {
        self.call(Call::get(format!("/api/flow-runs/{id}/explain")))
            .await
    }

    /// Asks for a run to be stopped.
    ///
    /// # Errors
    ///
    /// `flow-run-unknown`, `flow-run-over`.
    pub async fn cancel(&self, id: FlowRunId) -> Result<FlowRun, ClientError> {
        self.call(Call::new(
            Method::POST,
            format!("/api/flow-runs/{id}/cancel"),
        ))
        .await
    }

    /// Makes a new run in the place of one that is over.
    ///
    /// # Errors
    ///
    /// `flow-run-unknown`, `state-wrong`, `flow-archived`, `parameters-bad`.
    pub async fn retry(&self, id: FlowRunId, retry: &NewRetry) -> Result<FlowRun, ClientError> {
        let path = format!("/api/flow-runs/{id}/retry");
        self.call(Call::post(path, retry)).await
    }

    /// Says how a run, or task runs of it, end that are not over.
    ///
    /// # Errors
    ///
    /// `flow-run-unknown`, `flow-run-over`, `task-unknown`, `task-run-over`, `value-bad`, `state-wrong`.
    pub async fn mark(&self, id: FlowRunId, mark: &NewMark) -> Result<FlowRun, ClientError> {
        let path = format!("/api/flow-runs/{id}/mark");
        self.call(Call::post(path, mark)).await
    }

    /// Decides about task runs of a run that wait for a person.
    ///
    /// # Errors
    ///
    /// `flow-run-unknown`, `task-unknown`, `flow-run-not-paused`, `flow-run-over`, `state-wrong`.
    pub async fn decide(
        &self,
        id: FlowRunId,
        decision: &NewDecision,
    ) -> Result<FlowRun, ClientError> {
        let path = format!("/api/flow-runs/{id}/decide");
        self.call(Call::post(path, decision)).await
    }

    /// Deletes a run that is not at work.
    ///
    /// # Errors
    ///
    /// `flow-run-unknown`, `flow-run-busy`.
    pub async fn delete_flow_run(&self, id: FlowRunId) -> Result<(), ClientError> {
        self.call_empty(Call::new(Method::DELETE, format!("/api/flow-runs/{id}")))
            .await
    }

    /// Makes a token; its text is told this once.
    ///
    /// # Errors
    ///
    /// `token-exists`, `project-unknown`, `forbidden` for more than the own token may do.
    pub async fn create_token(&self, new: &NewToken) -> Result<MadeToken, ClientError> {
        self.call(Call::post("/api/tokens", new)).await
    }

    /// Lists tokens, without their texts.
    ///
    /// # Errors
    ///
    /// As every call here.
    pub async fn list_tokens(&self, query: &ListQuery) -> Result<Page<Token>, ClientError> {
        self.call(Call::get("/api/tokens").query(query)).await
    }

    /// Revokes a token; it opens nothing from now on.
    ///
    /// # Errors
    ///
    /// `token-unknown`.
    pub async fn revoke_token(&self, id: TokenId) -> Result<(), ClientError> {
        self.call_empty(Call::new(Method::DELETE, format!("/api/tokens/{id}")))
            .await
    }

    /// Lists agents by name.
    ///
    /// # Errors
    ///
    /// As every call here.
    pub async fn list_agents(&self, query: &ListQuery) -> Result<Page<Agent>, ClientError> {
        self.call(Call::get("/api/agents").query(query)).await
    }

    /// Shows an agent, by its id, its name, or `name@host`.
    ///
    /// # Errors
    ///
    /// `agent-unknown`, `agent-ambiguous`.
    pub async fn agent(&self, agent: &str) -> Result<Agent, ClientError> {
        self.call(Call::get(format!("/api/agents/{}", encoded(agent))))
            .await
    }

    /// Tells an agent to take no more runs, and to end. A repeat does no harm.
    ///
    /// # Errors
    ///
    /// `agent-unknown`, `agent-ambiguous`, `protocol-unsupported` by an agent that is too old for it.
    pub async fn drain_agent(&self, agent: &str, new: &NewDrain) -> Result<Agent, ClientError> {
        let path = format!("/api/agents/{}/drain", encoded(agent));
        self.call(Call::post(path, new).repeatable()).await
    }

    /// Opens an agent's session; an earlier one of the same agent ends by it.
    ///
    /// # Errors
    ///
    /// `protocol-unsupported`, `agent-exists`.
    pub async fn open_session(&self, new: &NewSession) -> Result<Session, ClientError> {
        self.call(Call::post("/api/agent/session", new)).await
    }

    /// Says that an agent takes no more runs; nobody waits for it longer than `within`.
    ///
    /// # Errors
    ///
    /// `session-unknown`, which does no harm here.
    pub async fn leave(&self, leave: &Leave, within: Duration) -> Result<(), ClientError> {
        self.call_empty(Call::post("/api/agent/leave", leave).within(within))
            .await
    }

    /// Claims runs, waiting for one if that is asked for.
    ///
    /// Not repeated by itself: a claim whose answer was lost is found by the next `listen` or
    /// `renew`, whose list does not name it.
    ///
    /// # Errors
    ///
    /// `session-unknown`: open a new one.
    pub async fn poll(&self, poll: &Poll) -> Result<Claims, ClientError> {
        self.call(Call::post("/api/agent/poll", poll).waiting(poll.wait_seconds))
            .await
    }

    /// Waits for what the server has to say about the runs at work.
    ///
    /// # Errors
    ///
    /// `session-unknown`: open a new one.
    pub async fn listen(&self, listen: &Listen) -> Result<Orders, ClientError> {
        self.call(Call::post("/api/agent/listen", listen).waiting(listen.wait_seconds))
            .await
    }

    /// Says what became of segments that the server wanted deleted. A repeat does no harm.
    ///
    /// # Errors
    ///
    /// `session-unknown`: open a new one.
    pub async fn deletions(&self, done: &Deletions) -> Result<(), ClientError> {
        self.call_empty(Call::post("/api/agent/deletions", done))
            .await
    }

    /// Asks what of all that was found under a root nobody needs; at most 1,000 things in one call.
    ///
    /// # Errors
    ///
    /// `forbidden`: the token is bound to projects, and others may need it.
    pub async fn orphans(&self, found: &Sighted) -> Result<Orphans, ClientError> {
        self.call(Call::post("/api/orphans", found)).await
    }

    /// Renews leases; the answer has to come within the given time. Whoever repeats it names anew what
    /// is leased by then.
    ///
    /// # Errors
    ///
    /// `session-unknown`: open a new one.
    pub async fn renew(&self, renewal: &Renewal, within: Duration) -> Result<Renewed, ClientError> {
        self.call(Call::post("/api/agent/renew", renewal).within(within))
            .await
    }

    /// Reports what happened, in order. A repeat of the same batch does no harm; two batches about
    /// one run must not be under way at one time.
    ///
    /// # Errors
    ///
    /// `session-unknown`: open a new one, and report again.
    pub async fn report(&self, batch: &ReportBatch) -> Result<Reported, ClientError> {
        self.call(Call::post("/api/agent/report", batch)).await
    }

    async fn call<T: DeserializeOwned>(&self, call: Call) -> Result<T, ClientError> {
        let bytes = self.send(call).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.unreadable(error.to_string()).into())
    }

    async fn call_empty(&self, call: Call) -> Result<(), ClientError> {
        self.send(call).await.map(drop)
    }

    async fn send(&self, call: Call) -> Result<Vec<u8>, ClientError> {
        let mut pauses = PAUSES_MS.iter();
        loop {
            let error = match self.send_once(&call).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => error,
            };
            match pauses.next() {
                Some(pause) if call.is_repeatable && error.is_passing() => {
                    self.clock.sleep(Duration::from_millis(*pause)).await;
                }
                _ => return Err(error),
            }
        }
    }

    async fn send_once(&self, call: &Call) -> Result<Vec<u8>, ClientError> {
        let (status, bytes) = match &self.transport {
            Transport::Http(http) => self.send_http(http, call).await?,
            Transport::InProcess(router) => self.send_in_process(router.clone(), call).await?,
        };
        if status.is_success() {
            return Ok(bytes);
        }
        let body: ErrorBody = serde_json::from_slice(&bytes).unwrap_or_else(|_| ErrorBody {
            code: "answer-strange".to_owned(),
            message: format!("the server answered with status {status}"),
            hint: Some("is this the address of a waft server?".to_owned()),
        });
        Err(Refused {
            status: status.as_u16(),
            code: body.code,
            message: body.message,
            hint: body.hint,
        }
        .into())
    }

    async fn send_http(
        &self,
        http: &reqwest::Client,
        call: &Call,
    ) -> Result<(StatusCode, Vec<u8>), ClientError> {
        let mut request = http
            .request(call.method.clone(), format!("{}{}", self.url, call.path))
            .timeout(call.within + call.wait);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = &call.body {
            request = request
                .header(http::header::CONTENT_TYPE, "application/json")
                .body(body.clone());
        }
        let unreachable = |error: reqwest::Error| self.unreachable(chain(&error.without_url()));
        let mut answer = request.send().await.map_err(unreachable)?;
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(unreachable)? {
            if bytes.len() + chunk.len() > self.answer_bytes_max {
                return Err(self.too_large().into());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok((answer.status(), bytes))
    }

    async fn send_in_process(
        &self,
        router: axum::Router,
        call: &Call,
    ) -> Result<(StatusCode, Vec<u8>), ClientError> {
        let mut request = http::Request::builder()
            .method(call.method.clone())
            .uri(&call.path)
            .header(http::header::HOST, "localhost");
        if let Some(token) = &self.token {
            request = request.header(http::header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if call.body.is_some() {
            request = request.header(http::header::CONTENT_TYPE, "application/json");
        }
        let body = axum::body::Body::from(call.body.clone().unwrap_or_default());
        let request = request
            .body(body)
            .map_err(|error| self.unreachable(error.to_string()))?;
        let answer = match router.oneshot(request).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        };
        let status = answer.status();
        let bytes = axum::body::to_bytes(answer.into_body(), self.answer_bytes_max)
            .await
            .map_err(|_| self.too_large())?;
        Ok((status, bytes.into()))
    }

    fn unreachable(&self, why: String) -> Unreachable {
        Unreachable {
            url: self.url.clone(),
            why,
        }
    }

    fn unreadable(&self, why: String) -> Unreadable {
        Unreadable {
            url: self.url.clone(),
            why,
        }
    }

    fn too_large(&self) -> Unreadable {
        let max = self.answer_bytes_max;
        self.unreadable(format!("it has more than {max} bytes"))
    }
}

/// Joins what an error and its causes say; reqwest's own text leaves the causes out.
fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(cause_of_it) = cause {
        // What is around the cause that no connection came about says nothing but that.
        text = match error.is_connect() {
            true => cause_of_it.to_string(),
            false => format!("{text}: {cause_of_it}"),
        };
        cause = cause_of_it.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use axum::routing::get;

    use super::*;

    #[tokio::test]
    async fn an_answer_that_makes_no_sense_is_not_asked_for_again() {
        let router = axum::Router::new().route("/api/health", get(async || "welcome to our wifi"));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(axum::serve(listener, router.clone()).into_future());
        let clients = [
            Client::new(&url, None).unwrap(),
            Client::in_process(router, None),
        ];
        for mut client in clients {
            for (max, why) in [
                (ANSWER_BYTES_MAX, "expected value"),
                (8, "more than 8 bytes"),
            ] {
                client.answer_bytes_max = max;
                let error = client.health().await.unwrap_err();
                assert!(!error.is_passing(), "{error}");
                let text = error.to_string();
                assert!(text.starts_with("cannot read the answer"), "{text}");
                assert!(text.contains(why), "{text}");
            }
        }
    }

    #[test]
    fn an_address_is_checked_before_anything_is_sent() {
        assert!(Client::new("http://127.0.0.1:4280/", None).is_ok());
        for bad in ["", "nonsense", "ftp://x", "127.0.0.1:4280"] {
            assert!(Client::new(bad, None).is_err(), "{bad}");
        }
    }
}
