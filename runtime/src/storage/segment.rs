//! Results: what tasks return, appended to segments.
//!
//! One writer thread collects what all runs of a process want kept, writes it with one write and one
//! flush, and only then answers everybody (group commit). A reference names the stretch and the
//! digest of its bytes, which is checked on every read. A process begins its own segments and never
//! touches another's.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use cap_std::fs::Dir;
use tokio::sync::{mpsc, oneshot};

use super::{Root, StorageError, folder, key};
use crate::clock::Clock;
use crate::model::artifact::Digest;
use crate::model::run::ResultRef;
use crate::model::value::Value;

/// Bytes after which the next segment begins, so that the cleaner can take away old ones.
const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
/// Most values in one write.
const BATCH_VALUES: usize = 4_096;
/// Bytes after which a batch is full.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// Most bytes of a value that are read back; more than a mapped task's joined outputs ever are.
const VALUE_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// The results under one root. Cheap to clone; clones share the writer.
#[derive(Clone, Debug)]
pub struct Results {
    place: Arc<Place>,
    queue: Arc<OnceLock<mpsc::UnboundedSender<Append>>>,
}

#[derive(Debug)]
struct Place {
    root: Root,
    dir: Dir,
    clock: Clock,
}

/// A value on its way into a segment.
struct Append {
    bytes: Bytes,
    done: oneshot::Sender<Result<(Arc<str>, u64), StorageError>>,
}

impl Results {
    /// Opens the results under a root; the folder is made if need be, for its owner only.
    ///
    /// # Errors
    ///
    /// Fails if the folder cannot be made or opened.
    pub fn open(root: &Root, clock: Clock) -> Result<Self, StorageError> {
        let dir = folder::open_or_make(root.folder())
            .and_then(|dir| {
                folder::make_durable(&dir, "segments")?;
                Ok(dir)
            })
            .map_err(|error| StorageError::of(root, "segments", error))?;
        let place = Place {
            root: root.clone(),
            dir,
            clock,
        };
        Ok(Self {
            place: Arc::new(place),
            queue: Arc::default(),
        })
    }

    /// Returns the root under which these results lie.
    #[must_use]
    pub fn root(&self) -> &Root {
        &self.place.root
    }

    /// Keeps a value. It is durable when this returns.
    ///
    /// Dropping the future is safe: the value may or may not be kept, and nobody knows of it.
    ///
    /// # Errors
    ///
    /// Fails if it could not be written or flushed; then nothing of it is there.
    pub async fn append(&self, value: &Value) -> Result<ResultRef, StorageError> {
        let digest = Digest::of(&value.bytes);
        let (done, kept) = oneshot::channel();
        let append = Append {
            bytes: value.bytes.clone(),
            done,
        };
        let queue = self.queue.get_or_init(|| Writer::start(&self.place));
        let ended = |_| StorageError::of(&self.place.root, "segments", "the writer has ended");
        queue.send(append).map_err(|_| ended(()))?;
        let (segment, offset) = kept.await.map_err(|_| ended(()))??;
        Ok(ResultRef {
            root: self.place.root.to_string(),
            segment: segment.as_ref().to_owned(),
            offset,
            length: value.bytes.len() as u64,
            digest,
            content_type: value.content_type.clone(),
        })
    }

    /// Reads a value back and checks its digest.
    ///
    /// # Errors
    ///
    /// Fails if the reference belongs to another root or was not made here, and if the bytes are
    /// absent or damaged.
    pub async fn read(&self, reference: &ResultRef) -> Result<Value, StorageError> {
        let place = self.place.clone();
        let wanted = reference.clone();
        let read = move || read_in(&place.root, &place.dir, &wanted);
        match tokio::task::spawn_blocking(read).await {
            Ok(read) => read,
            Err(error) => Err(StorageError::of(self.root(), &reference.segment, error)),
        }
    }

    /// Reads a value from the root that its reference names, without opening it for writing.
    ///
    /// For those who only look, such as the command line. Blocks.
    ///
    /// # Errors
    ///
    /// Fails if this version does not know such a root, and as [`Results::read`].
    pub fn look_up(reference: &ResultRef) -> Result<Value, StorageError> {
        let root: Root = reference
            .root
            .parse()
            .map_err(|error| StorageError::Other {
                root: reference.root.escape_default().take(300).collect(),
                key: reference.segment.escape_default().take(300).collect(),
                source: Box::new(error) as Box<_>,
            })?;
        let dir = folder::open(root.folder())
            .map_err(|error| StorageError::of(&root, &reference.segment, error))?;
        read_in(&root, &dir, reference)
    }
}

fn read_in(root: &Root, dir: &Dir, reference: &ResultRef) -> Result<Value, StorageError> {
    let refused = |why| StorageError::Refused {
        root: root.to_string(),
        key: reference.segment.escape_default().take(200).collect(),
        why,
    };
    if reference.root != root.to_string() {
        return Err(refused("the result lies under another root"));
    }
    if !key::is_segment(&reference.segment) || reference.length > VALUE_BYTES_MAX {
        return Err(refused("it is not a reference that waft makes"));
    }
    let error = |error| StorageError::of(root, &reference.segment, error);
    let file = dir.open(&reference.segment).map_err(error)?.into_std();
    let damaged = |got: String| StorageError::Damaged {
        root: root.to_string(),
        key: format!("{}+{}", reference.segment, reference.offset),
        wanted: reference.digest.to_string(),
        got,
    };
    let end = reference.offset.checked_add(reference.length);
    if end.is_none_or(|end| file.metadata().is_ok_and(|found| found.len() < end)) {
        return Err(damaged("a segment that ends before".to_owned()));
    }
    let mut bytes = vec![0; usize::try_from(reference.length).unwrap_or_default()];
    file.read_exact_at(&mut bytes, reference.offset)
        .map_err(error)?;
    let got = Digest::of(&bytes);
    if got != reference.digest {
        return Err(damaged(got.to_string()));
    }
    Ok(Value {
        content_type: reference.content_type.clone(),
        bytes: bytes.into(),
    })
}

/// The thread that writes. It ends with the last [`Results`] that feeds it.
struct Writer {
    place: Arc<Place>,
    segment: Option<Segment>,
    buffer: Vec<u8>,
}

struct Segment {
    key: Arc<str>,
    file: File,
    end: u64,
}

impl Writer {
    fn start(place: &Arc<Place>) -> mpsc::UnboundedSender<Append> {
        let (queue, appends) = mpsc::unbounded_channel();
        let mut writer = Self {
            place: place.clone(),
            segment: None,
            buffer: Vec::new(),
        };
        let thread = std::thread::Builder::new().name("waft-results".to_owned());
        // Without a thread the receiver is dropped here, and every append says that it has ended.
        if let Err(error) = thread.spawn(move || writer.run(appends)) {
            tracing::error!(%error, "cannot start the writer of results");
        }
        queue
    }

    fn run(&mut self, mut appends: mpsc::UnboundedReceiver<Append>) {
        let mut batch = Vec::new();
        while let Some(first) = appends.blocking_recv() {
            let mut bytes = first.bytes.len();
            batch.push(first);
            while batch.len() < BATCH_VALUES && bytes < BATCH_BYTES {
                let Ok(next) = appends.try_recv() else { break };
                bytes += next.bytes.len();
                batch.push(next);
            }
            self.write(&mut batch);
        }
    }

    /// Writes a batch, flushes it, and answers those who wait.
    fn write(&mut self, batch: &mut Vec<Append>) {
        // Who no longer waits was cancelled: its value need not be kept.
        batch.retain(|append| !append.done.is_closed());
        if batch.is_empty() {
            return;
        }
        self.buffer.clear();
        for append in batch.iter() {
            self.buffer.extend_from_slice(&append.bytes);
        }
        let written = self.write_buffer();
        let (segment, mut at) = match written {
            Ok(place) => place,
            Err(error) => {
                tracing::error!(%error, "results could not be kept");
                let key = self.segment.as_ref().map(|segment| segment.key.clone());
                let key = key.unwrap_or_else(|| "segments".into());
                for append in batch.drain(..) {
                    let _ = append.done.send(Err(self.error(&key, &error)));
                }
                return;
            }
        };
        for append in batch.drain(..) {
            let offset = at;
            at += append.bytes.len() as u64;
            let _ = append.done.send(Ok((segment.clone(), offset)));
        }
        if self.buffer.capacity() > BATCH_BYTES {
            self.buffer = Vec::new();
        }
    }

    /// Writes at the end of the segment and returns where that was.
    ///
    /// The end moves only after a flush, so what failed half-way is written over. After a failed
    /// flush nobody knows what is on the disk: the segment is left alone from then on.
    fn write_buffer(&mut self) -> io::Result<(Arc<str>, u64)> {
        if self
            .segment
            .as_ref()
            .is_none_or(|segment| segment.end >= SEGMENT_BYTES)
        {
            self.segment = Some(self.begin()?);
        }
        let Some(segment) = &mut self.segment else {
            return Err(io::Error::other("there is no segment"));
        };
        if let Err(error) = segment.file.write_all_at(&self.buffer, segment.end) {
            let _ = segment.file.set_len(segment.end);
            return Err(error);
        }
        if let Err(error) = segment.file.sync_data() {
            self.segment = None;
            return Err(error);
        }
        let at = segment.end;
        segment.end += self.buffer.len() as u64;
        Ok((segment.key.clone(), at))
    }

    fn begin(&self) -> io::Result<Segment> {
        let begun = self.place.clock.now().as_microsecond();
        let key = key::segment(begun, rand::random());
        let file = folder::create_new(&self.place.dir, &key)?;
        folder::sync_above(&self.place.dir, &key)?;
        Ok(Segment {
            key: key.into(),
            file,
            end: 0,
        })
    }

    /// Makes the error once more, since each of those who wait gets its own.
    fn error(&self, key: &str, error: &io::Error) -> StorageError {
        let again = match error.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(error.kind(), error.to_string()),
        };
        StorageError::of(&self.place.root, key, again)
    }
}

#[cfg(test)]
mod tests {
    use futures::future::try_join_all;

    use super::*;

    fn results(dir: &tempfile::TempDir) -> Results {
        let root = Root::local(&dir.path().join("results")).unwrap();
        Results::open(&root, Clock::default()).unwrap()
    }

    #[tokio::test]
    async fn what_was_appended_is_read_back_by_anybody() {
        let dir = tempfile::tempdir().unwrap();
        let results = results(&dir);
        let values: Vec<_> = (0..500).map(|n| Value::json(format!("[{n}]"))).collect();
        let references = try_join_all(values.iter().map(|v| results.append(v)))
            .await
            .unwrap();
        let later = super::tests::results(&dir);
        for (value, reference) in values.iter().zip(&references) {
            assert_eq!(results.read(reference).await.unwrap(), *value);
            assert_eq!(later.read(reference).await.unwrap(), *value);
            assert_eq!(Results::look_up(reference).unwrap(), *value);
        }
        let other = later.append(&Value::json("")).await.unwrap();
        assert_ne!(other.segment, references[0].segment);
        assert_eq!(later.read(&other).await.unwrap(), Value::json(""));
    }

    #[tokio::test]
    async fn a_changed_byte_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let results = results(&dir);
        let reference = results.append(&Value::json("\"good\"")).await.unwrap();
        let file = dir.path().join("results").join(&reference.segment);
        std::fs::write(&file, "\"evil\"").unwrap();
        let refused = results.read(&reference).await.unwrap_err();
        assert!(matches!(refused, StorageError::Damaged { .. }), "{refused}");
        std::fs::write(&file, "\"go").unwrap();
        let refused = results.read(&reference).await.unwrap_err();
        assert!(matches!(refused, StorageError::Damaged { .. }), "{refused}");
        std::fs::remove_file(&file).unwrap();
        let refused = results.read(&reference).await.unwrap_err();
        assert!(
            matches!(refused, StorageError::NotFound { .. }),
            "{refused}"
        );
    }

    #[tokio::test]
    async fn a_reference_cannot_lead_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let results = results(&dir);
        let good = results.append(&Value::json("1")).await.unwrap();
        let changes: [fn(&mut ResultRef); 4] = [
            |r| r.segment = "../../secret".to_owned(),
            |r| r.root = "file:///etc".to_owned(),
            |r| r.length = u64::MAX,
            |r| r.offset = u64::MAX,
        ];
        for change in changes {
            let mut reference = good.clone();
            change(&mut reference);
            assert!(results.read(&reference).await.is_err(), "{reference:?}");
        }
    }

    #[tokio::test]
    async fn an_old_segment_is_followed_by_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let results = results(&dir);
        let large = Value::json(vec![b'1'; usize::try_from(SEGMENT_BYTES).unwrap()]);
        let first = results.append(&large).await.unwrap();
        let second = results.append(&Value::json("2")).await.unwrap();
        assert_ne!(first.segment, second.segment);
        assert_eq!(second.offset, 0);
    }
}
