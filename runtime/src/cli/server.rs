//! `waft server`: the server by itself.

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::json;

use super::Call;
use super::failure::{Done, Failure};
use super::signals::Signals;
use crate::client::Client;
use crate::config::{Credentials, Millis, address};
use crate::server::db::{Db as Database, Place, copy};
use crate::server::{self, Migrated, Running, ServerSettings};
use crate::wire::ListQuery;

/// Where a server listens unless it is told otherwise.
pub(super) const LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 4280);
/// How long an agent may be silent unless it is said otherwise.
pub(super) const LEASE: Millis = Millis(30_000);
/// What a lease may last; less would be lost at every hiccup of the network.
const LEASES: std::ops::RangeInclusive<u64> = 2_000..=600_000;

/// How long results are kept unless it is said otherwise.
pub(super) const RESULTS_KEEP: Millis = Millis(server::RESULTS_KEEP.as_millis() as u64);
/// How long they are kept at least.
pub(super) const RUNS_KEEP: Millis = Millis(server::RUNS_KEEP.as_millis() as u64);
const RUNS_KEEP_MIN: Millis = Millis(server::RUNS_KEEP_MIN.as_millis() as u64);
const RESULTS_KEEP_MIN: Millis = Millis(server::RESULTS_KEEP_MIN.as_millis() as u64);

/// What helps where there is no database.
const NO_DATABASE: &str =
    "--db FILE or --db postgres://… names that of the server; waft server start makes one";

/// Starts a server, and looks after its database.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Starts a server; prints one line when it is ready, and goes on until it is interrupted.
    #[command(after_help = "\
Examples:
  waft server start
  waft server start --listen 0.0.0.0:4280 --host flows.example.org

Address and token are left in this home, so that commands and agents of it need no flag.")]
    Start(Flags),
    /// Prints a new token that may do everything, for the database that is named.
    Token {
        #[command(flatten)]
        db: Db,
    },
    /// Brings a database to the shape that this version needs, and ends.
    #[command(after_help = "\
Examples:
  waft server migrate --db postgres://waft@db.example.org/waft

`waft server start` does the same; by itself it can be done before, with rights that servers need
not have.")]
    Migrate {
        #[command(flatten)]
        db: Db,
    },
    /// Copies the database file to another, while a server uses it.
    Backup {
        /// The file to make.
        file: PathBuf,
        #[command(flatten)]
        db: Db,
    },
    /// Puts a copy in the place of the database file, and keeps what was there.
    Restore {
        /// The copy.
        file: PathBuf,
        /// Takes the place of a database that is there without asking.
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        db: Db,
    },
}

/// How a server is started.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub(super) struct Flags {
    /// The address and port to listen on; 127.0.0.1:4280 unless given.
    #[arg(long, value_name = "ADDR:PORT", value_parser = address)]
    listen: Option<SocketAddr>,
    /// A name by which browsers and agents call it, beside those of this machine. Repeatable.
    #[arg(long, value_name = "NAME")]
    host: Vec<String>,
    /// How long an agent may be silent before its runs go to another, 2s to 10m; 30s unless given.
    #[arg(long, value_name = "TIME")]
    lease: Option<Millis>,
    /// How long results are kept after their last use, 1d or longer; 30d unless given.
    #[arg(long, value_name = "TIME")]
    keep_results: Option<Millis>,
    /// How long runs that are over are kept, with their logs, 1h or longer; 90d unless given.
    #[arg(long, value_name = "TIME")]
    keep_runs: Option<Millis>,
    #[command(flatten)]
    db: Db,
}

/// Which database.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub(super) struct Db {
    /// The database: a file, `server.db` in this home unless given, or `postgres://…` (14 or later).
    #[arg(long = "db", value_name = "FILE|URL")]
    place: Option<PathBuf>,
}

impl Db {
    /// Returns the file; whoever keeps a PostgreSQL database has the tool for it there.
    fn file(&self, call: &Call, tool: &str) -> Done<PathBuf> {
        match self.place(call)? {
            Place::File(file) => Ok(file),
            Place::Postgres(_) => {
                let what = format!("this is for a database file; PostgreSQL has `{tool}`");
                Err(Failure::usage(what))
            }
        }
    }

    fn place(&self, call: &Call) -> Done<Place> {
        let Some(place) = &self.place else {
            call.config.home.make()?;
            return Ok(call.config.home.db().into());
        };
        let scheme = place.to_str().and_then(|text| text.split_once("://"));
        match scheme {
            Some(("postgres" | "postgresql", _)) => {
                Ok(Place::Postgres(place.to_string_lossy().into_owned()))
            }
            Some((scheme, _)) => {
                let what = format!("a database is a file or `postgres://…`, not `{scheme}://…`");
                Err(Failure::usage(what))
            }
            None => Ok(std::path::absolute(place)?.into()),
        }
    }
}

pub(super) fn run(verb: Verb, call: &Call) -> Done {
    match verb {
        Verb::Start(flags) => call.wait(async {
            let mut signals = Signals::new()?;
            let running = start(&flags, call).await?;
            let (credentials, link) = introduce(&running, &flags, call).await?;
            tell_ready("waft server is up", &credentials, &link, call)?;
            signals.next().await;
            running.shutdown().await;
            Ok(())
        }),
        Verb::Token { db } => {
            let db = db.place(call)?;
            let text = call.wait(async {
                let is_there = match &db {
                    Place::File(file) => file.is_file(),
                    Place::Postgres(_) => Database::migration(&db).await?.is_some(),
                };
                if !is_there {
                    return Err(none_there(&db).or_hint(NO_DATABASE));
                }
                Ok(server::make_token(db, call.clock.clone()).await?)
            })?;
            match call.output.is_json() {
                true => call.output.json(&json!({ "text": text })),
                false => call.output.line(text),
            }
        }
        Verb::Migrate { db } => migrate(&db.place(call)?, call),
        Verb::Backup { file, db } => back_up(&db.file(call, "pg_dump")?, &file, call),
        Verb::Restore { file, yes, db } => restore(&db.file(call, "pg_restore")?, &file, yes, call),
    }
}

fn migrate(db: &Place, call: &Call) -> Done {
    let done = call.wait(async { Ok(server::migrate(db).await?) })?;
    let Migrated { from, to } = done;
    if call.output.is_json() {
        return call.output.json(&json!({ "from": from, "to": to }));
    }
    call.output.note(match from {
        None => format!("`{db}` was made, at migration {to}"),
        Some(from) if from == to => format!("`{db}` is at migration {to} already"),
        Some(from) => format!("`{db}` went from migration {from} to {to}"),
    });
    Ok(())
}

fn back_up(db: &Path, to: &Path, call: &Call) -> Done {
    if !db.is_file() {
        return Err(none_there(db.display()));
    }
    let to = std::path::absolute(to)?;
    if to.exists() {
        let what = format!("there is something at `{}` already", to.display());
        return Err(Failure::could(what).or_hint("a backup is a new file"));
    }
    let migration = call.wait(async { Ok(copy::back_up(db, &to).await?) })?;
    if call.output.is_json() {
        return call
            .output
            .json(&json!({ "file": to, "migration": migration }));
    }
    let (db, to) = (db.display(), to.display());
    call.output.note(format!("copied `{db}` to `{to}`"));
    Ok(())
}

fn restore(db: &Path, from: &Path, is_yes: bool, call: &Call) -> Done {
    if !from.is_file() {
        return Err(none_there(from.display()));
    }
    let from = std::path::absolute(from)?;
    server::check_unused(db)?;
    if db.exists() {
        let (db, from) = (db.display(), from.display());
        let question = format!("put `{from}` in the place of `{db}`, which is kept beside it?");
        call.output.ask(&question, is_yes, "nothing was replaced")?;
    }
    let done = call.wait(async { Ok(server::restore(db, &from, &call.clock).await?) })?;
    if call.output.is_json() {
        return call.output.json(&json!({
            "file": db,
            "aside": done.aside,
            "migration": done.migration,
        }));
    }
    let (db, from) = (db.display(), from.display());
    let aside = done.aside.map_or(String::new(), |aside| {
        format!("; what was there is `{}`", aside.display())
    });
    call.output
        .note(format!("restored `{db}` from `{from}`{aside}"));
    Ok(())
}

fn none_there(place: impl Display) -> Failure {
    Failure::could(format!("there is no database of waft at `{place}`"))
}

/// Starts a server.
///
/// # Errors
///
/// Says what is wrong with the address, the lease, the keep time or the database.
pub(super) async fn start(flags: &Flags, call: &Call) -> Done<Running> {
    let set = &call.config.settings.server;
    let listen = flags.listen.or(set.listen).unwrap_or(LISTEN);
    let lease = flags.lease.or(set.lease).unwrap_or(LEASE);
    if !LEASES.contains(&lease.0) {
        return Err(Failure::usage(format!(
            "a lease lasts 2s to 10m, not {lease}"
        )));
    }
    let keep = flags.keep_results.or(call.config.settings.results.keep);
    let keep = keep.unwrap_or(RESULTS_KEEP);
    if keep < RESULTS_KEEP_MIN {
        return Err(Failure::usage(format!(
            "results are kept for {RESULTS_KEEP_MIN} or longer, not {keep}"
        )));
    }
    let runs_keep = flags.keep_runs.or(call.config.settings.runs.keep);
    let runs_keep = runs_keep.unwrap_or(RUNS_KEEP);
    if runs_keep < RUNS_KEEP_MIN {
        return Err(Failure::usage(format!(
            "runs are kept for {RUNS_KEEP_MIN} or longer, not {runs_keep}"
        )));
    }
    let settings = ServerSettings {
        runs_keep: runs_keep.into(),
        results_keep: keep.into(),
        listen,
        db: flags.db.place(call)?,
        lease: lease.into(),
        hosts: flags.host.clone(),
        clock: call.clock.clone(),
    };
    let running = server::start(settings).await.map_err(|error| {
        let is_taken = error
            .chain()
            .filter_map(|cause| cause.downcast_ref::<io::Error>())
            .any(|cause| cause.kind() == io::ErrorKind::AddrInUse);
        match is_taken {
            true => Failure::could(format!("cannot listen on {listen}: the port is in use"))
                .or_hint("--listen 127.0.0.1:0 takes a free one; another waft may be up already"),
            false => Failure::from(error),
        }
    })?;
    if !running.addr.ip().is_loopback() {
        call.output.note(open_to_others(running.addr));
    }
    Ok(running)
}

/// Says what it means that other machines reach the server.
fn open_to_others(addr: SocketAddr) -> String {
    format!(
        "warning: other machines can reach {addr}; a token is needed there, but it travels \
         unencrypted: put a proxy with TLS in front, or listen on 127.0.0.1"
    )
}

/// Finds the token that commands of this home use, and leaves it there with the address.
///
/// # Errors
///
/// Fails if no token can be made, or the file cannot be written.
pub(super) async fn introduce(
    running: &Running,
    flags: &Flags,
    call: &Call,
) -> Done<(Credentials, String)> {
    let url = url_of(running.addr);
    let link = running.login_link().await.map_err(anyhow::Error::from)?;
    let link = link.replacen(&format!("http://{}", running.addr), &url, 1);
    let token = match &running.first_token {
        Some(token) => token.clone(),
        None => match kept_token(running, call).await {
            Some(token) => token,
            None => server::make_token(flags.db.place(call)?, call.clock.clone()).await?,
        },
    };
    let credentials = Credentials { url, token };
    call.config
        .home
        .keep_credentials(&credentials)
        .map_err(|error| {
            anyhow::Error::new(error).context("cannot leave address and token in this home")
        })?;
    Ok((credentials, link))
}

/// Returns the token that is kept here, if this server knows it.
async fn kept_token(running: &Running, call: &Call) -> Option<String> {
    let token = call.config.home.credentials().ok()??.token;
    let client = Client::in_process(running.router.clone(), Some(token.clone()));
    client.list_tokens(&ListQuery::default()).await.ok()?;
    Some(token)
}

/// Writes the address by which this machine reaches a server that may listen on all of them.
fn url_of(addr: SocketAddr) -> String {
    let mut reached = addr;
    if addr.ip().is_unspecified() {
        reached.set_ip(match addr {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    format!("http://{reached}")
}

/// Prints the one line by which people and scripts know that it is ready.
///
/// # Errors
///
/// As [`super::Output::line`].
pub(super) fn tell_ready(what: &str, credentials: &Credentials, link: &str, call: &Call) -> Done {
    let url = &credentials.url;
    match call.output.is_json() {
        true => call
            .output
            .json_line(&json!({ "url": url, "login_url": link })),
        false => call
            .output
            .line(format_args!("{what} at {url} · log in: {link}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_on_all_addresses_is_reached_on_this_machine() {
        let url = |addr: &str| url_of(addr.parse().unwrap());
        assert_eq!(url("127.0.0.1:4280"), "http://127.0.0.1:4280");
        assert_eq!(url("0.0.0.0:80"), "http://127.0.0.1:80");
        assert_eq!(url("[::]:80"), "http://[::1]:80");
    }
}
