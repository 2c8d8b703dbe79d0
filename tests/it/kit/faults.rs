//! A store that goes wrong on purpose: its n-th operation fails, stalls, or brings or keeps other bytes.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// What happens to one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It fails and nothing is done.
    Fail,
    /// It is done, and the answer is lost.
    LoseAnswer,
    /// It takes its time.
    Delay,
    /// Half of the bytes come, and then the connection ends. A put keeps half of them and fails.
    Truncate,
    /// One bit is another, on the way or where it is kept.
    Corrupt,
}

impl Fault {
    pub(crate) const ALL: [Self; 5] = [
        Self::Fail,
        Self::LoseAnswer,
        Self::Delay,
        Self::Truncate,
        Self::Corrupt,
    ];
}

/// A store whose operations are counted, one of which goes wrong.
#[derive(Debug)]
pub(crate) struct Faulty {
    inner: Arc<dyn ObjectStore>,
    fault: Fault,
    at: usize,
    calls: AtomicUsize,
}

impl Faulty {
    /// Wraps a store; operation `at`, counted from 0, meets the fault.
    pub(crate) fn new(inner: Arc<dyn ObjectStore>, fault: Fault, at: usize) -> Arc<Self> {
        Arc::new(Self {
            inner,
            fault,
            at,
            calls: AtomicUsize::new(0),
        })
    }

    /// Returns how many operations there were.
    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    fn fault(&self) -> Option<Fault> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        (call == self.at).then_some(self.fault)
    }
}

fn failure() -> Error {
    Error::Generic {
        store: "faulty",
        source: "it fails on purpose".into(),
    }
}

fn flipped(bytes: &Bytes) -> Bytes {
    let mut bytes = bytes.to_vec();
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 1;
    }
    bytes.into()
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faulty({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let whole = Bytes::from(payload.clone());
        match self.fault() {
            None => self.inner.put_opts(path, payload, options).await,
            Some(Fault::Fail) => Err(failure()),
            Some(Fault::LoseAnswer) => {
                self.inner.put_opts(path, payload, options).await?;
                Err(failure())
            }
            Some(Fault::Delay) => {
                tokio::time::sleep(Duration::from_millis(200)).await;
                self.inner.put_opts(path, payload, options).await
            }
            Some(Fault::Truncate) => {
                let half = whole.slice(..whole.len() / 2);
                self.inner.put_opts(path, half.into(), options).await?;
                Err(failure())
            }
            Some(Fault::Corrupt) => {
                let other = flipped(&whole).into();
                self.inner.put_opts(path, other, options).await
            }
        }
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let fault = self.fault();
        match fault {
            Some(Fault::Fail | Fault::LoseAnswer) => return Err(failure()),
            Some(Fault::Delay) => tokio::time::sleep(Duration::from_millis(200)).await,
            _ => {}
        }
        let is_head = options.head;
        let got = self.inner.get_opts(path, options).await?;
        if is_head || !matches!(fault, Some(Fault::Truncate | Fault::Corrupt)) {
            return Ok(got);
        }
        let (meta, range, attributes) =
            (got.meta.clone(), got.range.clone(), got.attributes.clone());
        let extensions = got.extensions.clone();
        let whole = got.bytes().await?;
        let chunks = match fault {
            Some(Fault::Truncate) => vec![Ok(whole.slice(..whole.len() / 2)), Err(failure())],
            _ => vec![Ok(flipped(&whole))],
        };
        Ok(GetResult {
            payload: GetResultPayload::Stream(stream::iter(chunks).boxed()),
            meta,
            range,
            attributes,
            extensions,
        })
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
