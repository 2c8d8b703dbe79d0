//! Why PostgreSQL does not let this program in, or not do what it has to: one sentence, and the line that
//! mends it.
//!
//! The driver's own words name neither the role nor the place, and what helps is at another machine.

use sqlx::Error;
use sqlx::postgres::PgConnectOptions;

/// What a person has to mend at a PostgreSQL database, in words.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub(super) struct Barred {
    why: String,
    /// The line that mends it.
    pub(super) hint: String,
}

/// Says what is wrong, if a person can mend it.
pub(super) fn barred(options: &PgConnectOptions, error: &Error) -> Option<Barred> {
    let (host, port) = (options.get_host(), options.get_port());
    let role = options.get_username();
    let db = options.get_database().unwrap_or(role);
    let at = match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{host}:{port}"),
    };
    let told = match error {
        Error::Database(told) => told,
        Error::Io(why) => {
            return Some(Barred {
                why: format!("nothing answers at `{at}`: {why}"),
                hint: format!("pg_isready -h {host} -p {port}"),
            });
        }
        Error::Tls(why) => {
            return Some(Barred {
                why: format!("there is no safe line to `{at}`: {why}"),
                hint: "?sslrootcert=FILE names who signs its certificate, ?sslmode=… asks for less"
                    .to_owned(),
            });
        }
        _ => return None,
    };
    let said = told.message();
    let (why, hint) = match &*told.code()? {
        INVALID_PASSWORD => (
            format!("`{at}` has no role `{role}` with this password"),
            format!("PGPASSWORD=…, or a line `{host}:{port}:{db}:{role}:…` in ~/.pgpass"),
        ),
        INVALID_AUTHORIZATION => (
            format!("`{at}` does not let the role `{role}` in: {said}"),
            format!("CREATE ROLE {role} LOGIN PASSWORD '…', or a line for it in pg_hba.conf"),
        ),
        INVALID_CATALOG => (
            format!("there is no database `{db}` at `{at}`"),
            format!("CREATE DATABASE {db} OWNER {role}"),
        ),
        INSUFFICIENT_PRIVILEGE => (
            format!("the role `{role}` lacks a right: {said}"),
            match said.contains(" table ") {
                true => format!(
                    "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}"
                ),
                false => format!("ALTER DATABASE {db} OWNER TO {role}"),
            },
        ),
        TOO_MANY_CONNECTIONS | CANNOT_CONNECT_NOW => (
            format!("`{at}` lets nobody in now: {said}"),
            "try again in a moment".to_owned(),
        ),
        _ => return None,
    };
    Some(Barred { why, hint })
}

const INVALID_PASSWORD: &str = "28P01";
const INVALID_AUTHORIZATION: &str = "28000";
const INVALID_CATALOG: &str = "3D000";
const INSUFFICIENT_PRIVILEGE: &str = "42501";
const TOO_MANY_CONNECTIONS: &str = "53300";
const CANNOT_CONNECT_NOW: &str = "57P03";
