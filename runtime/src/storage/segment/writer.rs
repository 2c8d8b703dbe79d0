//! The writer of a folder: a thread that appends to one file, and flushes once for many.

use std::fs::File;
use std::io;
use std::sync::Arc;

use std::os::unix::fs::FileExt;

use cap_std::fs::Dir;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc;

use super::{Append, BATCH_VALUES};
use crate::clock::Clock;
use crate::storage::door::{Door, Shut, as_place};
use crate::storage::{Root, StorageError, folder, key};

/// Bytes after which the next segment begins, so that the cleaner can take away old ones.
pub(super) const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
/// Time after which the next segment begins: a server deletes segments that were not used for a day or
/// longer, and none of those may still be written to.
pub(super) const SEGMENT_AGE: SignedDuration = SignedDuration::from_hours(12);
/// Bytes after which a batch is full.
const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// The thread that writes. It ends with the last [`Results`](super::Results) that feeds it.
pub(super) struct Writer {
    root: Root,
    door: Door<Arc<Dir>>,
    clock: Clock,
    segment: Option<Segment>,
    buffer: Vec<u8>,
}

struct Segment {
    key: Arc<str>,
    file: File,
    end: u64,
    begun: Timestamp,
}

impl Segment {
    /// Tells whether nothing more is to be written to it. A clock that was set back ends it too.
    fn is_full(&self, now: Timestamp) -> bool {
        let age = now.duration_since(self.begun);
        self.end >= SEGMENT_BYTES || age > SEGMENT_AGE || age.is_negative()
    }
}

impl Writer {
    pub(super) fn start(
        root: &Root,
        door: &Door<Arc<Dir>>,
        clock: &Clock,
    ) -> mpsc::UnboundedSender<Append> {
        let (queue, appends) = mpsc::unbounded_channel();
        let mut writer = Self {
            root: root.clone(),
            door: door.clone(),
            clock: clock.clone(),
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
        let written = self.write_buffer().or_else(|error| {
            tracing::debug!(%error, "results are written once more, into a folder that is opened anew");
            self.segment = None;
            self.door.shut();
            self.write_buffer()
        });
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
        let now = self.clock.now();
        if (self.segment.as_ref()).is_none_or(|segment| segment.is_full(now)) {
            self.segment = Some(self.begin(now)?);
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

    fn begin(&self, begun: Timestamp) -> io::Result<Segment> {
        let dir = self.door.enter_here().map_err(opened)?.place;
        let key = key::segment(begun.as_microsecond(), rand::random());
        folder::make_durable(&dir, "segments")?;
        let file = folder::create_new(&dir, &key)?;
        folder::sync_above(&dir, &key)?;
        Ok(Segment {
            key: key.into(),
            file,
            end: 0,
            begun,
        })
    }

    /// Makes the error once more, since each of those who wait gets its own.
    fn error(&self, key: &str, error: &io::Error) -> StorageError {
        let again = match error.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(error.kind(), error.to_string()),
        };
        StorageError::of(&self.root, key, as_place(again))
    }
}

/// Returns the system's error for which a folder could not be opened.
fn opened(error: Shut) -> io::Error {
    match error.downcast::<io::Error>() {
        Ok(error) => *error,
        Err(error) => io::Error::other(error),
    }
}
