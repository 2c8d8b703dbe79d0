//! One transaction: statements, their arguments and their rows.
//!
//! The only file, with `writer` and `open`, that knows the driver. The tables' files write SQL as
//! `&'static str` with `$n`, so a second kind of database is a second arm here.

use std::sync::OnceLock;

use futures::TryStreamExt as _;
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{SqliteArguments, SqliteRow, SqliteValueRef};
use sqlx::{
    Arguments as _, Connection as _, Decode as _, Either, Executor as _, Row as _, Sqlite,
    SqliteConnection, ValueRef as _,
};

use super::DbError;
use crate::model::artifact::Digest;
use crate::model::id::{AgentId, FlowId, FlowRunId, FlowVersionId, ProjectId, SessionId, TokenId};
use crate::model::schedule::{CatchUp, Overlap};
use crate::model::state::{Event, State};

/// A connection in the hands of one writing closure, or of one reader.
pub struct Tx {
    connection: Connection,
    /// Whether a statement has failed because the disk is full.
    is_full: bool,
}

enum Connection {
    Own(Box<SqliteConnection>),
    Pooled(PoolConnection<Sqlite>),
}

/// A value on its way into a statement.
#[derive(Clone, Debug)]
pub enum Arg {
    /// Nothing.
    Null,
    /// A number, an instant or a truth value.
    Int(i64),
    /// A text, a word or JSON.
    Text(String),
    /// An id or a digest.
    Blob(Vec<u8>),
}

/// One row of an answer.
pub struct Row(SqliteRow);

/// One value of a row.
pub struct Cell<'r>(SqliteValueRef<'r>);

/// A statement over many rows, written with one row of places and repeated as needed.
///
/// `$` in `row` becomes `$1`, `$2`, … . The texts for 1, 2, 4 … 64 rows are made once and kept for
/// the life of the program, so that each is prepared once.
pub struct Many {
    head: &'static str,
    row: &'static str,
    tail: &'static str,
    texts: [OnceLock<&'static str>; 7],
}

/// What stands in a JSON column.
pub struct Json<T>(pub T);

impl Tx {
    pub(super) fn own(connection: SqliteConnection) -> Self {
        Self::on(Connection::Own(Box::new(connection)))
    }

    pub(super) const fn pooled(connection: PoolConnection<Sqlite>) -> Self {
        Self::on(Connection::Pooled(connection))
    }

    const fn on(connection: Connection) -> Self {
        Self {
            connection,
            is_full: false,
        }
    }

    /// Tells whether a statement has failed because the disk is full since this was asked last.
    pub(super) const fn take_full(&mut self) -> bool {
        std::mem::replace(&mut self.is_full, false)
    }

    /// Takes note of why a statement failed.
    fn failed(&mut self, error: sqlx::Error) -> DbError {
        let error = DbError::from(error);
        self.is_full |= matches!(error, DbError::Full);
        error
    }

    pub(super) async fn close(self) {
        if let Connection::Own(connection) = self.connection {
            drop(connection.close().await);
        }
    }

    fn connection(&mut self) -> &mut SqliteConnection {
        match &mut self.connection {
            Connection::Own(connection) => connection,
            Connection::Pooled(connection) => connection,
        }
    }

    /// Runs a statement and returns how many rows it changed.
    pub async fn run(&mut self, sql: &'static str, args: Vec<Arg>) -> Result<u64, DbError> {
        let query = sqlx::query_with(sql, arguments(args)?);
        match self.connection().execute(query).await {
            Ok(done) => Ok(done.rows_affected()),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Runs a statement and returns its rows.
    pub async fn rows(&mut self, sql: &'static str, args: Vec<Arg>) -> Result<Vec<Row>, DbError> {
        let query = sqlx::query_with(sql, arguments(args)?);
        let mut answers = self.connection().fetch_many(query);
        let mut rows = Vec::new();
        let error = loop {
            match answers.try_next().await {
                Ok(Some(Either::Right(row))) => rows.push(Row(row)),
                Ok(Some(Either::Left(_))) => {}
                Ok(None) => return Ok(rows),
                Err(error) => break error,
            }
        };
        drop(answers);
        Err(self.failed(error))
    }

    /// Runs a statement and returns its only row, if there is one.
    pub async fn row(&mut self, sql: &'static str, args: Vec<Arg>) -> Result<Option<Row>, DbError> {
        Ok(self.rows(sql, args).await?.into_iter().next())
    }

    /// Runs a statement over many rows and returns how many rows it changed.
    pub async fn run_many(&mut self, many: &Many, rows: Vec<Vec<Arg>>) -> Result<u64, DbError> {
        let mut changed = 0;
        for (sql, args) in many.split(rows) {
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
        for (sql, args) in many.split(rows) {
            found.extend(self.rows(sql, args).await?);
        }
        Ok(found)
    }
}

impl Many {
    /// Writes a statement of a head, a row that is repeated with commas, and a tail.
    #[must_use]
    pub const fn new(head: &'static str, row: &'static str, tail: &'static str) -> Self {
        let texts = [const { OnceLock::new() }; 7];
        Self {
            head,
            row,
            tail,
            texts,
        }
    }

    /// Cuts rows into as few statements as there are powers of two in their number.
    fn split(&self, rows: Vec<Vec<Arg>>) -> Vec<(&'static str, Vec<Arg>)> {
        let mut statements = Vec::new();
        let mut left = rows.len();
        let mut rows = rows.into_iter();
        while left > 0 {
            let power = left.ilog2().min(6);
            let count = 1 << power;
            let args = rows.by_ref().take(count).flatten().collect();
            statements.push((self.text(power as usize), args));
            left -= count;
        }
        statements
    }

    /// Returns the statement for two to the `power` rows.
    pub(super) fn text(&self, power: usize) -> &'static str {
        self.texts[power].get_or_init(|| {
            let mut text = self.head.to_owned();
            let mut place = 0;
            for nth in 0..1 << power {
                text.push_str(if nth == 0 { "" } else { "," });
                for c in self.row.chars() {
                    text.push(c);
                    if c == '$' {
                        place += 1;
                        text.push_str(&place.to_string());
                    }
                }
            }
            text.push_str(self.tail);
            text.leak()
        })
    }
}

fn arguments(args: Vec<Arg>) -> Result<SqliteArguments, DbError> {
    let mut all = SqliteArguments::default();
    for arg in args {
        let added = match arg {
            Arg::Null => all.add(Option::<i64>::None),
            Arg::Int(int) => all.add(int),
            Arg::Text(text) => all.add(text),
            Arg::Blob(bytes) => all.add(bytes),
        };
        added.map_err(|error| DbError::Broken(sqlx::Error::Encode(error)))?;
    }
    Ok(all)
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
    bool: is => Self::Int(is.into());
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
        T::read(Cell(self.0.try_get_raw(place)?))
    }
}

impl Cell<'_> {
    fn int(self) -> Result<i64, DbError> {
        i64::decode(self.0).map_err(strange)
    }

    fn text(self) -> Result<String, DbError> {
        String::decode(self.0).map_err(strange)
    }

    fn blob(self) -> Result<Vec<u8>, DbError> {
        Vec::<u8>::decode(self.0).map_err(strange)
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
        match cell.0.is_null() {
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
    bool: cell => Ok(cell.int()? != 0);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_rows_are_few_statements_of_known_texts() {
        static MANY: Many = Many::new("INSERT INTO t VALUES ", "($, $)", " RETURNING a");
        let rows = (0..5).map(|n| args![n, "x"]).collect();
        let statements = MANY.split(rows);
        let shapes: Vec<_> = statements.iter().map(|(_, args)| args.len()).collect();
        assert_eq!(shapes, [8, 2]);
        assert_eq!(statements[1].0, "INSERT INTO t VALUES ($1, $2) RETURNING a");
        assert!(statements[0].0.contains("($7, $8)"));
        assert!(MANY.split(Vec::new()).is_empty());
        let hundred = MANY.split((0..100).map(|n| args![n, n]).collect());
        assert_eq!(hundred.len(), 3, "64 + 32 + 4");
    }
}
