//! The server: keeps flows and runs, hands runs to agents, and answers the API.
//!
//! It sees names, graphs, schemas, parameters, states, logs and where results are; never code,
//! values between tasks, or secrets. `api` answers requests, `duty` does what nobody asks for, `db`
//! keeps everything; what is between them (sessions, waiting polls, turns) lies beside.

pub mod access;
pub mod api;
pub mod app;
mod changes;
mod claim;
pub mod db;
pub mod duty;
pub mod error;
mod explain;
mod extract;
mod fence;
mod host;
mod listener;
mod news;
mod overlap;
pub mod page;
pub mod panics;
pub mod registration;
pub mod session;
mod tags;
mod turn;
mod waiting;

use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use axum::Router;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use tower_http::catch_panic::CatchPanicLayer;

use crate::clock::Clock;
use crate::model::id::TokenId;
use crate::wire::Scope;
use app::App;
use db::copy::{self, Restored};
use db::realm::Realm;
use db::tx::Tx;
use db::{Db, DbError, Place, fact, token};
use error::{ApiError, Code};

/// How long results are kept after their last use, unless it is said otherwise.
pub const RESULTS_KEEP: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// The shortest that results are kept: agents write to a segment for half a day.
pub const RESULTS_KEEP_MIN: Duration = Duration::from_secs(24 * 60 * 60);

/// How long runs that are over are kept, unless it is said otherwise.
pub const RUNS_KEEP: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// The shortest that runs are kept: who watches one should find out how it ended.
pub const RUNS_KEEP_MIN: Duration = Duration::from_secs(60 * 60);
/// How long a run that is due may wait for an agent before it counts as late.
pub const LATE: Duration = Duration::from_secs(30);

/// What a server is started with.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The database; a file is made if it is not there.
    pub db: Place,
    /// How long a lease lasts from its claim or renewal.
    pub lease: Duration,
    /// How long results are kept after their last use: [`RESULTS_KEEP`], no less than [`RESULTS_KEEP_MIN`].
    pub results_keep: Duration,
    /// How long runs that are over are kept, with logs, history and cards: [`RUNS_KEEP`], no less than
    /// [`RUNS_KEEP_MIN`].
    pub runs_keep: Duration,
    /// Names, beside `localhost` and addresses, by which the server may be called (the `Host` header).
    pub hosts: Vec<String>,
    /// The clock.
    pub clock: Clock,
}

/// A server that is up.
pub struct Running {
    /// Where it listens.
    pub addr: SocketAddr,
    /// The first token, if this database was made just now.
    pub first_token: Option<String>,
    /// The routes, for whoever wants to call them without the port.
    pub router: Router,
    /// What the server consists of, for tests that run a duty by hand.
    pub app: App,
    listening: tokio::task::JoinHandle<()>,
    duties: Vec<tokio::task::JoinHandle<()>>,
    _lock: Option<File>,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running")
            .field("addr", &self.addr)
            .finish_non_exhaustive()
    }
}

impl Running {
    /// Returns a link that logs a browser in, once.
    ///
    /// # Errors
    ///
    /// The database's.
    pub async fn login_link(&self) -> Result<String, DbError> {
        let code = self.app.login_code().await?;
        Ok(format!("http://{}/login?code={code}", self.addr))
    }

    /// Answers whoever waits, finishes what is under way, and closes the database.
    pub async fn shutdown(self) {
        self.app.closing.send_replace(true);
        drop(self.listening.await);
        for duty in self.duties {
            drop(duty.await);
        }
        let db = self.app.db.clone();
        drop((self.router, self.app));
        db.close().await;
    }
}

/// Starts a server: opens and migrates the database, listens, and begins its duties.
///
/// # Errors
///
/// Fails if the database cannot be used or the address cannot be listened on.
pub async fn start(settings: ServerSettings) -> anyhow::Result<Running> {
    // The port first: a second server on the same files must not touch them.
    let listener = listener::open(settings.listen)
        .await
        .with_context(|| format!("cannot listen on {}", settings.listen))?;
    let addr = listener.local_addr().context("the port has no address")?;
    let lock = match &settings.db {
        Place::File(file) => Some(lock_file(file)?),
        // Any number of servers share it.
        Place::Postgres(_) => None,
    };
    let opened = open(&settings).await;
    let (app, first_token) = opened.map_err(|error| error.at(&settings.db))?;
    let router = router(&app);
    let closing = app.closing.subscribe();
    let listening = tokio::spawn(listener::serve(listener, router.clone(), closing));
    let duties = duty::start(&app);
    Ok(Running {
        addr,
        first_token,
        router,
        app,
        listening,
        duties,
        _lock: lock,
    })
}

/// Takes a file for one server. The lock is the system's, on a file beside it that stays: it is free
/// again however its holder ended.
fn lock_file(db: &Path) -> anyhow::Result<File> {
    let path = db.with_added_extension("lock");
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder `{}`", folder.display()))?;
    }
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open the lock `{}`", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "another server has the database `{}`: stop it, or give this one a WAFT_HOME of its own",
            db.display()
        ),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock `{}`", path.display()))
        }
    }
}

/// Opens a server without a port and without duties: what [`start`] begins with, and a test has in
/// hand. Answers with the first token if this database was made just now.
///
/// # Errors
///
/// Fails if the database cannot be used.
pub async fn open(settings: &ServerSettings) -> Result<(App, Option<String>), DbError> {
    Db::examine(&settings.db).await?;
    let db = Db::open(&settings.db).await?;
    let clock = settings.clock.clone();
    let at = |error: DbError| error.at(&settings.db);
    let first_token = make_first_token(&db, &clock).await.map_err(at)?;
    let app = App::new(db, settings);
    // Nobody could renew while no server was there, so no lease ends before it had its full length.
    duty::rescuer::extend(&app).await.map_err(at)?;
    Ok((app, first_token))
}

/// Makes a token that may do everything, in a database that a server may be using now.
///
/// # Errors
///
/// Fails if the database cannot be used.
pub async fn make_token(place: Place, clock: Clock) -> anyhow::Result<String> {
    let db = Db::open(&place).await?;
    let name = format!("made-{}", hex::encode(rand::random::<[u8; 4]>()));
    let text = db
        .write(move |tx| Box::pin(async move { add_token(tx, &name, &clock).await }))
        .await
        .map_err(|error: DbError| error.at(&place))?;
    db.close().await;
    Ok(text)
}

/// What was there before a database was migrated, and what is there now: the last migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// Before; none if there was nothing.
    pub from: Option<i64>,
    /// Now.
    pub to: i64,
}

/// Brings a database to the shape that this version knows.
///
/// # Errors
///
/// Refuses a file that a server has, and what a newer waft made.
pub async fn migrate(place: &Place) -> anyhow::Result<Migrated> {
    let _lock = match place {
        Place::File(file) => Some(lock_file(file)?),
        Place::Postgres(_) => None,
    };
    let from = Db::migration(place).await?;
    Db::open(place).await?.close().await;
    let to = Db::migration(place).await?.unwrap_or_default();
    Ok(Migrated { from, to })
}

/// Refuses a database file that a server has.
///
/// # Errors
///
/// Says so, or that this cannot be found out.
pub fn check_unused(db: &Path) -> anyhow::Result<()> {
    lock_file(db).map(drop)
}

/// Puts a copy of a database file in the place of another, as [`copy::restore`].
///
/// # Errors
///
/// Refuses to replace a file that a server has.
pub async fn restore(db: &Path, from: &Path, clock: &Clock) -> anyhow::Result<Restored> {
    let _lock = lock_file(db)?;
    Ok(copy::restore(db, from, clock.now()).await?)
}

/// Makes the first token of a database, once in its life.
async fn make_first_token(db: &Db, clock: &Clock) -> Result<Option<String>, DbError> {
    let clock = clock.clone();
    db.write(move |tx| {
        Box::pin(async move {
            match fact::establish(tx, fact::FIRST_TOKEN_MADE).await? {
                true => add_token(tx, "first", &clock).await.map(Some),
                false => Ok(None),
            }
        })
    })
    .await
}

async fn add_token(tx: &mut Tx, name: &str, clock: &Clock) -> Result<String, DbError> {
    let now = clock.now();
    let id = TokenId::at(now.as_microsecond(), rand::random());
    let text = access::text_of(id, rand::random());
    let kept = token::Kept {
        id,
        name: name.to_owned(),
        hash: access::hash_of(&text),
        scope: Scope::User,
        realm: Realm::All,
        created_at: now,
        used_at: None,
    };
    match token::add(tx, &kept).await? {
        true => Ok(text),
        false => Err(DbError::Raced),
    }
}

/// Makes the routes of a server: the API, its document, the page.
pub fn router(app: &App) -> Router {
    let (api, document) = api::routes();
    let document = axum::Json(document);
    Router::new()
        .merge(api)
        .merge(page::routes())
        .route(
            "/api/openapi.json",
            get(move |_: access::Access| std::future::ready(document)),
        )
        .fallback(api::unknown_route)
        .method_not_allowed_fallback(api::wrong_method)
        .layer(axum::middleware::from_fn_with_state(
            app.clone(),
            host::check,
        ))
        .layer(CatchPanicLayer::custom(panicked))
        .with_state(app.clone())
}

fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    panics::count();
    tracing::error!("a bug: a request panicked");
    ApiError::new(Code::Internal, "the server could not do it: a bug of waft").into_response()
}
