//! One transaction: statements, their arguments and their rows.
//!
//! The tables' files write statements as [`Sql`] with `$n`; only here, in `sqlite` and in `postgres`
//! are the drivers known.

use futures::TryStreamExt as _;
use futures::stream::BoxStream;
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::pool::PoolConnection;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{
    PgArgumentBuffer, PgArguments, PgConnection, PgRow, PgTypeInfo, PgValueRef, Postgres,
};
use sqlx::sqlite::{SqliteArguments, SqliteRow, SqliteValueRef};
use sqlx::{
    Arguments as _, Connection as _, Database, Decode, Either, Encode, Executor as _, Row as _,
    Sqlite, SqliteConnection, Type, ValueRef as _,
};

use super::DbError;
use super::sql::{Kind, Many, Sql};
use crate::model::artifact::Digest;
use crate::model::id::{AgentId, FlowId, FlowRunId, FlowVersionId, ProjectId, SessionId, TokenId};
use crate::model::schedule::{CatchUp, Overlap};
use crate::model::state::{Event, State};

/// A connection in the hands of one writing closure, or of one reader.
pub struct Tx {
    connection: Connection,
    trouble: Trouble,
}

enum Connection {
    Own(Box<SqliteConnection>),
    Pooled(PoolConnection<Sqlite>),
    Postgres(PoolConnection<Postgres>),
}

/// What went wrong with statements of a transaction, whatever its closure makes of that.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Trouble {
    /// One failed.
    pub(super) has_failed: bool,
    /// The disk is full.
    pub(super) is_full: bool,
    /// Another transaction was in the way, or the connection was lost: it may go well the next time.
    pub(super) is_passing: bool,
}

/// A value on its way into a statement.
#[derive(Clone, Debug)]
pub enum Arg {
    /// Nothing.
    Null,
    /// A number or an instant.
    Int(i64),
    /// A truth value.
    Bool(bool),
    /// A text, a word or JSON.
    Text(String),
    /// An id or a digest.
    Blob(Vec<u8>),
}

/// One row of an answer.
pub enum Row {
    /// Of an SQLite file.
    Sqlite(SqliteRow),
    /// Of PostgreSQL.
    Postgres(PgRow),
}

/// One value of a row.
pub enum Cell<'r> {
    /// Of an SQLite file.
    Sqlite(SqliteValueRef<'r>),
    /// Of PostgreSQL.
    Postgres(PgValueRef<'r>),
}

/// What stands in a JSON column.
pub struct Json<T>(pub T);

impl Tx {
    pub(super) fn own(connection: SqliteConnection) -> Self {
        Self::on(Connection::Own(Box::new(connection)))
    }

    pub(super) fn pooled(connection: PoolConnection<Sqlite>) -> Self {
        Self::on(Connection::Pooled(connection))
    }

    pub(super) fn shared(connection: PoolConnection<Postgres>) -> Self {
        Self::on(Connection::Postgres(connection))
    }

    fn on(connection: Connection) -> Self {
        Self {
            connection,
            trouble: Trouble::default(),
        }
    }

    /// Returns which kind of database this is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self.connection {
            Connection::Own(_) | Connection::Pooled(_) => Kind::Sqlite,
            Connection::Postgres(_) => Kind::Postgres,
        }
    }

    /// Tells whether other transactions may write at the same time, of this server or of another one.
    /// What was read may then change before this one ends, unless it was locked.
    #[must_use]
    pub const fn is_shared(&self) -> bool {
        matches!(self.kind(), Kind::Postgres)
    }

    /// Returns what went wrong since this was asked last.
    pub(super) fn take_trouble(&mut self) -> Trouble {
        std::mem::take(&mut self.trouble)
    }

    /// Takes note of why a statement failed.
    fn failed(&mut self, error: sqlx::Error) -> DbError {
        self.trouble.has_failed = true;
        self.trouble.is_passing |= super::postgres::is_passing(&error);
        let error = DbError::from(error);
        self.trouble.is_full |= matches!(error, DbError::Full);
        error
    }

    /// Says that what was read is not so any more: a transaction among others is tried again.
    pub(super) const fn raced(&mut self) -> DbError {
        self.trouble.is_passing = true;
        DbError::Raced
    }

    pub(super) async fn close(self) {
        match self.connection {
            Connection::Own(connection) => drop(connection.close().await),
            Connection::Pooled(_) => {}
            Connection::Postgres(connection) => drop(connection.close().await),
        }
    }

    /// Runs a statement and returns how many rows it changed.
    pub async fn run(&mut self, sql: impl Into<Sql>, args: Vec<Arg>) -> Result<u64, DbError> {
        let sql = sql.into();
        let done = match &mut self.connection {
            Connection::Own(own) => execute(own, sql.sqlite, args).await,
            Connection::Pooled(pooled) => execute(pooled, sql.sqlite, args).await,
            Connection::Postgres(shared) => {
                let connection: &mut PgConnection = shared;
                let query = sqlx::query_with(sql.postgres, untyped(args)?);
                connection
                    .execute(query)
                    .await
                    .map(|done| done.rows_affected())
            }
        };
        done.map_err(|error| self.failed(error))
    }

    /// Runs a statement and returns its rows.
    pub async fn rows(&mut self, sql: impl Into<Sql>, args: Vec<Arg>) -> Result<Vec<Row>, DbError> {
        let sql = sql.into();
        let rows = match &mut self.connection {
            Connection::Own(own) => fetch(own, sql.sqlite, args).await,
            Connection::Pooled(pooled) => fetch(pooled, sql.sqlite, args).await,
            Connection::Postgres(shared) => {
                let connection: &mut PgConnection = shared;
                let query = sqlx::query_with(sql.postgres, untyped(args)?);
                all::<Postgres>(connection.fetch_many(query), Row::Postgres).await
            }
        };
        rows.map_err(|error| self.failed(error))
    }

    /// Runs a statement and returns its only row, if there is one.
    pub async fn row(
        &mut self,
        sql: impl Into<Sql>,
        args: Vec<Arg>,
    ) -> Result<Option<Row>, DbError> {
        Ok(self.rows(sql.into(), args).await?.into_iter().next())
    }

    /// Runs a statement over many rows and returns how many rows it changed.
    pub async fn run_many(&mut self, many: &Many, rows: Vec<Vec<Arg>>) -> Result<u64, DbError> {
        let mut changed = 0;
        for (sql, args) in many.split(self.kind(), rows) {
            changed += self.run(sql, args).await?;
        }
        Ok(changed)
    }

    /// Runs a statement over many rows and returns all its rows.
    pub async fn rows_many(
        &mut self,
        many: &Many,
        rows: Vec<Vec<Arg>>,
    ) -> Result<Vec<Row>, DbError> {
        let mut found = Vec::new();
        for (sql, args) in many.split(self.kind(), rows) {
            found.extend(self.rows(sql, args).await?);
        }
        Ok(found)
    }
}

async fn execute(
    connection: &mut SqliteConnection,
    sql: &'static str,
    args: Vec<Arg>,
) -> Result<u64, sqlx::Error> {
    let query = sqlx::query_with(sql, typed(args)?);
    connection
        .execute(query)
        .await
        .map(|done| done.rows_affected())
}

async fn fetch(
    connection: &mut SqliteConnection,
    sql: &'static str,
    args: Vec<Arg>,
) -> Result<Vec<Row>, sqlx::Error> {
    let query = sqlx::query_with(sql, typed(args)?);
    all::<Sqlite>(connection.fetch_many(query), Row::Sqlite).await
}

/// What a driver answers with: rows, and at the end of each statement what it did.
type Answers<'a, D> =
    BoxStream<'a, Result<Either<<D as Database>::QueryResult, <D as Database>::Row>, sqlx::Error>>;

async fn all<D: Database>(
    mut answers: Answers<'_, D>,
    row: fn(D::Row) -> Row,
) -> Result<Vec<Row>, sqlx::Error> {
    let mut rows = Vec::new();
    while let Some(answer) = answers.try_next().await? {
        if let Either::Right(one) = answer {
            rows.push(row(one));
        }
    }
    Ok(rows)
}

fn typed(args: Vec<Arg>) -> Result<SqliteArguments, sqlx::Error> {
    let mut all = SqliteArguments::default();
    for arg in args {
        let added = match arg {
            Arg::Null => all.add(Option::<i64>::None),
            Arg::Int(int) => all.add(int),
            Arg::Bool(is) => all.add(i64::from(is)),
            Arg::Text(text) => all.add(text),
            Arg::Blob(bytes) => all.add(bytes),
        };
        added.map_err(sqlx::Error::Encode)?;
    }
    Ok(all)
}

fn untyped(args: Vec<Arg>) -> Result<PgArguments, sqlx::Error> {
    let mut all = PgArguments::default();
    for arg in args {
        all.add(Untyped(arg)).map_err(sqlx::Error::Encode)?;
    }
    Ok(all)
}

/// An argument of which PostgreSQL is told no type, so that a statement means the same with every
/// argument, nothing among them.
struct Untyped(Arg);

impl Type<Postgres> for Untyped {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(0))
    }
}

impl Encode<'_, Postgres> for Untyped {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        match &self.0 {
            Arg::Null => return Ok(IsNull::Yes),
            Arg::Int(int) => buffer.extend_from_slice(&int.to_be_bytes()),
            Arg::Bool(is) => buffer.push(u8::from(*is)),
            // The one character that a text of PostgreSQL cannot have.
            Arg::Text(text) if text.contains('\0') => {
                buffer.extend_from_slice(text.replace('\0', "\u{fffd}").as_bytes());
            }
            Arg::Text(text) => buffer.extend_from_slice(text.as_bytes()),
            Arg::Blob(bytes) => buffer.extend_from_slice(bytes),
        }
        Ok(IsNull::No)
    }
}

/// Lists the arguments of a statement.
macro_rules! args {
    ($($arg:expr),* $(,)?) => { vec![$($crate::server::db::tx::Arg::from($arg)),*] };
}
pub(crate) use args;

macro_rules! arg_from {
    ($($type:ty: $value:ident => $arg:expr;)*) => {$(
        impl From<$type> for Arg {
            fn from($value: $type) -> Self { $arg }
        }
    )*};
}

arg_from! {
    i64: n => Self::Int(n);
    i32: n => Self::Int(n.into());
    u32: n => Self::Int(n.into());
    u64: n => Self::Int(i64::try_from(n).unwrap_or(i64::MAX));
    bool: is => Self::Bool(is);
    &str: text => Self::Text(text.to_owned());
    String: text => Self::Text(text);
    &String: text => Self::Text(text.clone());
    Timestamp: at => Self::Int(at.as_microsecond());
    Digest: digest => Self::Blob(digest.as_bytes().to_vec());
    State: state => Self::Text(state.word().to_owned());
    Event: event => Self::Text(event.word().to_owned());
    CatchUp: policy => Self::Text(policy.word().to_owned());
    Overlap: policy => Self::Text(policy.word().to_owned());
    ProjectId: id => Self::Blob(id.as_bytes().to_vec());
    FlowId: id => Self::Blob(id.as_bytes().to_vec());
    FlowVersionId: id => Self::Blob(id.as_bytes().to_vec());
    FlowRunId: id => Self::Blob(id.as_bytes().to_vec());
    AgentId: id => Self::Blob(id.as_bytes().to_vec());
    SessionId: id => Self::Blob(id.as_bytes().to_vec());
    TokenId: id => Self::Blob(id.as_bytes().to_vec());
}

impl<T: Into<Self>> From<Option<T>> for Arg {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

impl<T: Serialize> From<Json<T>> for Arg {
    fn from(json: Json<T>) -> Self {
        // What is kept as JSON has only strings as keys, so this cannot fail.
        Self::Text(serde_json::to_string(&json.0).unwrap_or_default())
    }
}

impl Row {
    /// Reads a value, by its place from 0.
    pub fn get<T: Column>(&self, place: usize) -> Result<T, DbError> {
        T::read(match self {
            Self::Sqlite(row) => Cell::Sqlite(row.try_get_raw(place)?),
            Self::Postgres(row) => Cell::Postgres(row.try_get_raw(place)?),
        })
    }
}

impl<'r> Cell<'r> {
    fn is_null(&self) -> bool {
        match self {
            Self::Sqlite(value) => value.is_null(),
            Self::Postgres(value) => value.is_null(),
        }
    }

    fn value<T: Decode<'r, Sqlite> + Decode<'r, Postgres>>(self) -> Result<T, DbError> {
        let value = match self {
            Self::Sqlite(value) => <T as Decode<'r, Sqlite>>::decode(value),
            Self::Postgres(value) => <T as Decode<'r, Postgres>>::decode(value),
        };
        value.map_err(strange)
    }

    fn int(self) -> Result<i64, DbError> {
        self.value()
    }

    fn text(self) -> Result<String, DbError> {
        self.value()
    }

    fn blob(self) -> Result<Vec<u8>, DbError> {
        self.value()
    }
}

fn strange(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> DbError {
    DbError::Broken(sqlx::Error::Decode(error.into()))
}

/// What can stand in a column.
pub trait Column: Sized {
    /// Reads it.
    fn read(cell: Cell<'_>) -> Result<Self, DbError>;
}

impl<T: Column> Column for Option<T> {
    fn read(cell: Cell<'_>) -> Result<Self, DbError> {
        match cell.is_null() {
            true => Ok(None),
            false => T::read(cell).map(Some),
        }
    }
}

impl<T: DeserializeOwned> Column for Json<T> {
    fn read(cell: Cell<'_>) -> Result<Self, DbError> {
        serde_json::from_str(&cell.text()?)
            .map(Json)
            .map_err(strange)
    }
}

macro_rules! column {
    ($($type:ty: $cell:ident => $value:expr;)*) => {$(
        impl Column for $type {
            fn read($cell: Cell<'_>) -> Result<Self, DbError> { $value }
        }
    )*};
}

column! {
    i64: cell => cell.int();
    i32: cell => cell.int()?.try_into().map_err(strange);
    u32: cell => cell.int()?.try_into().map_err(strange);
    u64: cell => cell.int()?.try_into().map_err(strange);
    bool: cell => cell.value();
    String: cell => cell.text();
    Vec<u8>: cell => cell.blob();
    Timestamp: cell => Self::from_microsecond(cell.int()?).map_err(strange);
    Digest: cell => {
        let bytes = cell.blob()?.try_into().map_err(|_| strange("a digest of other than 32 bytes"))?;
        Ok(Self::from_bytes(bytes))
    };
    State: cell => cell.text()?.parse().map_err(|why: String| strange(why));
    Event: cell => cell.text()?.parse().map_err(|why: String| strange(why));
    CatchUp: cell => cell.text()?.parse().map_err(|why: String| strange(why));
    Overlap: cell => cell.text()?.parse().map_err(|why: String| strange(why));
    ProjectId: cell => Self::from_slice(&cell.blob()?).map_err(strange);
    FlowId: cell => Self::from_slice(&cell.blob()?).map_err(strange);
    FlowVersionId: cell => Self::from_slice(&cell.blob()?).map_err(strange);
    FlowRunId: cell => Self::from_slice(&cell.blob()?).map_err(strange);
    AgentId: cell => Self::from_slice(&cell.blob()?).map_err(strange);
    SessionId: cell => Self::from_slice(&cell.blob()?).map_err(strange);
    TokenId: cell => Self::from_slice(&cell.blob()?).map_err(strange);
}
