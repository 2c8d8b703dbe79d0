//! The one writer of an SQLite database.
//!
//! Closures queue here. The writer takes what is there, begins one transaction, runs each closure in
//! a savepoint (an error undoes that closure alone), commits once, and only then answers. So many
//! writers share one wait for the disk, and an answer means that it is durable.

use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use super::DbError;
use super::memory::Memory;
use super::tx::Tx;
use crate::server::panics;

/// Most closures of one transaction: the first of them waits for the last.
const BATCH_MAX: usize = 256;
/// Most closures that wait for the writer; who comes then waits to be let in.
const QUEUE_MAX: usize = 4_096;

const BEGIN: &str = "BEGIN IMMEDIATE; SAVEPOINT one";
const NEXT: &str = "RELEASE one; SAVEPOINT one";
const UNDO_ONE: &str = "ROLLBACK TO one";
const COMMIT: &str = "RELEASE one; COMMIT";
const ROLLBACK: &str = "ROLLBACK";

/// A closure with the way back to whoever waits for it.
struct Job<F, T, E> {
    act: F,
    sender: oneshot::Sender<Result<T, E>>,
}

/// A [`Job`] of any type.
trait Queued: Send {
    fn run(self: Box<Self>, tx: &mut Tx) -> BoxFuture<'_, Done>;
    fn refuse(self: Box<Self>, error: DbError);
}

/// What a closure left behind: whether it went well, and how to tell whoever waits.
struct Done {
    is_ok: bool,
    answer: Box<dyn FnOnce(Result<(), DbError>) + Send>,
}

impl<F, T, E> Queued for Job<F, T, E>
where
    F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T, E>> + Send + 'static,
    T: Send + 'static,
    E: From<DbError> + Send + 'static,
{
    fn run(self: Box<Self>, tx: &mut Tx) -> BoxFuture<'_, Done> {
        Box::pin(async move {
            let Self { act, sender } = *self;
            let acted = AssertUnwindSafe(async { act(tx).await })
                .catch_unwind()
                .await;
            let result = acted.unwrap_or_else(|_| {
                panics::count();
                Err(E::from(DbError::Panicked))
            });
            Done {
                is_ok: result.is_ok(),
                // Whoever asked may be gone; what is written stays written.
                answer: Box::new(move |committed| {
                    drop(sender.send(match committed {
                        Ok(()) => result,
                        Err(error) => result.and(Err(E::from(error))),
                    }));
                }),
            }
        })
    }

    fn refuse(self: Box<Self>, error: DbError) {
        drop(self.sender.send(Err(E::from(error))));
    }
}

/// The way to the writer.
#[derive(Clone)]
pub(super) struct Writer(mpsc::Sender<Box<dyn Queued>>);

impl Writer {
    /// Starts the writer. It ends, and closes its connection, when the last way to it is gone.
    pub(super) fn start(tx: Tx, memory: Memory) -> (Self, tokio::task::JoinHandle<()>) {
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        (Self(sender), tokio::spawn(work(tx, receiver, memory)))
    }

    /// Runs a closure inside a transaction and answers once it is durable.
    pub(super) async fn write<T, E, F>(&self, act: F) -> Result<T, E>
    where
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let job = Box::new(Job { act, sender });
        if self.0.send(job).await.is_err() {
            return Err(E::from(DbError::Closed));
        }
        receiver
            .await
            .unwrap_or_else(|_| Err(E::from(DbError::Closed)))
    }
}

async fn work(mut tx: Tx, mut queue: mpsc::Receiver<Box<dyn Queued>>, memory: Memory) {
    let mut room = Room::default();
    while let Some(first) = queue.recv().await {
        if let Err(error) = tx.run(BEGIN, Vec::new()).await {
            drop(tx.run(ROLLBACK, Vec::new()).await);
            first.refuse(error);
            continue;
        }
        let mut done = Vec::new();
        let committed = batch(&mut tx, first, &mut queue, &mut done, &memory).await;
        room.note(&committed, &done);
        if committed.is_err() {
            // A number that was handed out in a transaction that is undone may come again.
            memory.forget();
            drop(tx.run(ROLLBACK, Vec::new()).await);
        }
        for one in done {
            (one.answer)(committed.as_ref().map(drop).map_err(DbError::again));
        }
    }
    tx.close().await;
}

/// Whether the disk has room, as far as it was seen: the log says once that it has none, and once that it has
/// some again.
#[derive(Default)]
struct Room {
    is_full: bool,
}

impl Room {
    /// Notes how a transaction ended.
    fn note(&mut self, committed: &Result<(), DbError>, done: &[Done]) {
        match committed {
            Err(DbError::Full) if !self.is_full => {
                self.is_full = true;
                tracing::error!(
                    "the disk of the database is full: nothing is written until there is room"
                );
            }
            // One in which everybody failed may have written nothing.
            Ok(()) if self.is_full && done.iter().any(|one| one.is_ok) => {
                self.is_full = false;
                tracing::info!("the disk of the database has room again");
            }
            _ => {}
        }
    }
}

async fn batch(
    tx: &mut Tx,
    first: Box<dyn Queued>,
    queue: &mut mpsc::Receiver<Box<dyn Queued>>,
    done: &mut Vec<Done>,
    memory: &Memory,
) -> Result<(), DbError> {
    let mut next = Some(first);
    while let Some(job) = next {
        memory.begin();
        let one = job.run(tx).await;
        let is_ok = one.is_ok;
        if !is_ok {
            memory.forget_fresh();
        }
        done.push(one);
        // The database undoes the whole transaction at once when its disk is full, and then has no
        // savepoint either: that is why, and not the missing savepoint.
        let was_full = tx.take_trouble().is_full;
        let why = |error| if was_full { DbError::Full } else { error };
        let has_more = done.len() < BATCH_MAX && !queue.is_empty();
        if !is_ok {
            tx.run(UNDO_ONE, Vec::new()).await.map_err(why)?;
        } else if has_more {
            tx.run(NEXT, Vec::new()).await.map_err(why)?;
        }
        // Taken last: who is taken is answered, whatever went wrong before.
        next = match has_more {
            true => queue.try_recv().ok(),
            false => None,
        };
    }
    tx.run(COMMIT, Vec::new()).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Notify;

    use super::*;
    use crate::model::requirement::Requirement;
    use crate::server::db::tx::args;
    use crate::server::db::{Db, requirement};

    const PUT: &str = "INSERT INTO fact (name, value) VALUES ($1, hex(zeroblob($2)))";

    async fn put(db: &Db, name: &'static str, bytes: i64) -> Result<(), DbError> {
        put_and(db, name, bytes, || Ok(())).await
    }

    /// Writes a row, and then does as it is told.
    async fn put_and(
        db: &Db,
        name: &'static str,
        bytes: i64,
        then: impl FnOnce() -> Result<(), DbError> + Clone + Send + 'static,
    ) -> Result<(), DbError> {
        let written = db.write(move |tx| {
            Box::pin(async move {
                tx.run(PUT, args![name, bytes]).await?;
                then()
            })
        });
        written.await
    }

    async fn opened() -> (tempfile::TempDir, Db) {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open(&folder.path().join("waft.db").into())
            .await
            .unwrap();
        (folder, db)
    }

    /// Lists what is committed.
    async fn names(db: &Db) -> Vec<String> {
        let sql = "SELECT name FROM fact ORDER BY name";
        let rows = db.reader().await.unwrap().rows(sql, Vec::new()).await;
        rows.unwrap()
            .iter()
            .map(|row| row.get(0).unwrap())
            .collect()
    }

    /// Lets the database grow to so many pages, or no more.
    async fn grow_to(db: &Db, sql: &'static str) {
        let set = db.write(move |tx| Box::pin(tx.run(sql, Vec::new())));
        set.await.unwrap();
    }

    #[tokio::test]
    async fn a_full_disk_is_told_to_all_of_its_transaction_and_to_nobody_else() {
        let (_folder, db) = opened().await;
        grow_to(&db, "PRAGMA max_page_count = 1").await;
        // Queued together: the first two share a transaction, and the third is not taken into it.
        let (small, large, later) = tokio::join!(
            put(&db, "small", 1),
            put(&db, "large", 1_000_000),
            put(&db, "later", 1),
        );
        assert!(matches!(small, Err(DbError::Full)), "{small:?}");
        assert!(matches!(large, Err(DbError::Full)), "{large:?}");
        later.unwrap();
        grow_to(&db, "PRAGMA max_page_count = 100000").await;
        put(&db, "small", 1).await.unwrap();
        put(&db, "large", 1_000_000).await.unwrap();
    }

    #[tokio::test]
    async fn who_fails_or_panics_undoes_what_it_wrote_and_nothing_of_its_neighbours() {
        let (_folder, db) = opened().await;
        let before = panics::counted();
        // Queued together, so they share a transaction.
        let (first, failed, second, panicked, broken, last) = tokio::join!(
            put(&db, "first", 1),
            put_and(&db, "failed", 1, || Err(DbError::Raced)),
            put(&db, "second", 1),
            put_and(&db, "panicked", 1, || panic!("as planned")),
            put(&db, "first", 1),
            put_and(&db, "last", 1, || Ok(())),
        );
        first.unwrap();
        assert!(matches!(failed, Err(DbError::Raced)), "{failed:?}");
        second.unwrap();
        assert!(matches!(panicked, Err(DbError::Panicked)), "{panicked:?}");
        assert!(matches!(broken, Err(DbError::Broken(_))), "{broken:?}");
        last.unwrap();
        assert_eq!(names(&db).await, ["first", "last", "second"]);
        assert!(panics::counted() > before);

        // Also where it is the last of its transaction, or alone in it.
        let (first, failed) = tokio::join!(
            put(&db, "third", 1),
            put_and(&db, "failed", 1, || panic!("as planned")),
        );
        first.unwrap();
        failed.unwrap_err();
        let alone = put_and(&db, "failed", 1, || Err(DbError::Raced)).await;
        alone.unwrap_err();
        assert_eq!(names(&db).await, ["first", "last", "second", "third"]);
    }

    #[tokio::test]
    async fn a_requirement_of_who_failed_is_not_remembered_under_its_number() {
        let (_folder, db) = opened().await;
        let intern = async |project: &'static str, fails| {
            let memory = db.memory.clone();
            let needed = Requirement {
                project: project.to_owned(),
                ..Requirement::default()
            };
            let interned = db.write(move |tx| {
                Box::pin(async move {
                    let id = requirement::intern(tx, &needed).await?;
                    let known = memory.requirement(tx, id).await?;
                    match fails {
                        true => Err(DbError::Raced),
                        false => Ok(known.project.clone()),
                    }
                })
            });
            interned.await
        };
        intern("kept", false).await.unwrap();
        let (failed, next) = tokio::join!(intern("failed", true), intern("next", false));
        failed.unwrap_err();
        assert_eq!(next.unwrap(), "next");
        assert_eq!(intern("kept", false).await.unwrap(), "kept");
    }

    #[tokio::test]
    async fn nobody_is_answered_before_the_commit_and_then_it_is_on_the_disk() {
        let (folder, db) = opened().await;
        let gate = Arc::new(Notify::new());
        // Queued together: the quick one is done before the slow one begins.
        let quick = tokio::spawn({
            let db = db.clone();
            async move { put(&db, "quick", 1).await }
        });
        let slow = tokio::spawn({
            let (db, gate) = (db.clone(), gate.clone());
            async move {
                let written = db.write(move |tx| {
                    Box::pin(async move {
                        gate.notified().await;
                        tx.run(PUT, args!["slow", 1_i64]).await.map(drop)
                    })
                });
                written.await
            }
        });
        for _ in 0..100 {
            assert!(names(&db).await.is_empty());
            assert!(!quick.is_finished());
        }
        gate.notify_one();
        quick.await.unwrap().unwrap();
        slow.await.unwrap().unwrap();
        // What is in the files now is all that a crash would leave.
        let copy = tempfile::tempdir().unwrap();
        for name in ["waft.db", "waft.db-wal"] {
            std::fs::copy(folder.path().join(name), copy.path().join(name)).unwrap();
        }
        let after = Db::open(&copy.path().join("waft.db").into()).await.unwrap();
        assert_eq!(names(&after).await, ["quick", "slow"]);
        let level = db
            .write(|tx| Box::pin(tx.row("PRAGMA synchronous", Vec::new())))
            .await;
        let level: Result<i64, DbError> = level.unwrap().unwrap().get(0);
        assert_eq!(level.unwrap(), 2, "FULL: each commit waits for the disk");
    }

    #[tokio::test]
    async fn a_commit_that_fails_is_told_to_all_who_hoped_for_it_and_the_next_goes_on() {
        let (_folder, db) = opened().await;
        db.memory.forget();
        let undone = db.memory.undone();
        let orphan = db.write(|tx| {
            Box::pin(async move {
                tx.run("PRAGMA defer_foreign_keys = ON", Vec::new()).await?;
                let sql = "INSERT INTO schedule (flow_id, refill_at) VALUES (x'00', 0)";
                tx.run(sql, Vec::new()).await.map(drop)
            })
        });
        let (good, orphan, failed) = tokio::join!(
            put(&db, "good", 1),
            orphan,
            put_and(&db, "failed", 1, || Err(DbError::Raced)),
        );
        assert!(matches!(good, Err(DbError::Undone(_))), "{good:?}");
        assert!(matches!(orphan, Err(DbError::Undone(_))), "{orphan:?}");
        assert!(matches!(failed, Err(DbError::Raced)), "{failed:?}");
        assert_eq!(db.memory.undone(), undone + 1);
        put(&db, "next", 1).await.unwrap();
        assert_eq!(names(&db).await, ["next"]);
    }

    #[tokio::test]
    async fn what_was_queued_is_written_although_nobody_waits_for_it() {
        let (folder, db) = opened().await;
        {
            let mut given_up = std::pin::pin!(put(&db, "orphan", 1));
            assert!(given_up.as_mut().now_or_never().is_none());
        }
        db.close().await;
        let db = Db::open(&folder.path().join("waft.db").into())
            .await
            .unwrap();
        assert_eq!(names(&db).await, ["orphan"]);
    }
}
