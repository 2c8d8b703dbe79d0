//! Over a store whose n-th operation goes wrong: nothing wrong is handed out, and the next pass is whole.

use super::*;

/// One pass of everything that writes and reads. Fails, or answers what is right.
async fn pass(root: &Root, store: Arc<dyn ObjectStore>, folder: &TempDir, bytes: &[u8]) {
    let digest = Digest::of(bytes);
    let file = folder.path().join("artifact");
    std::fs::write(&file, bytes).unwrap();
    let storage = Storage::over(root, store.clone());
    let cache = ArtifactCache::open(&tempfile::tempdir_in(folder).unwrap().keep()).unwrap();
    let put = storage
        .put_artifact(&file, digest, bytes.len() as u64, "a-flow")
        .await;
    if put.is_ok()
        && let Ok(got) = fetch(&storage, &cache, digest, bytes.len()).await
    {
        assert!(got == bytes, "other bytes were handed out");
    }
    let results = Results::over(root, store.clone(), Clock::default());
    let value = Value::json("[1,2,3]");
    if let Ok(reference) = results.append(&value).await
        && let Ok(read) = results.read(&reference).await
    {
        assert_eq!(read, value);
    }
    let outputs = TaskCache::over(root, store);
    let key = CacheKey {
        project: "",
        flow: "f",
        task: "t",
        by: CacheBy::Named("k", None),
    };
    let _ = outputs.put(&key, &value, None).await;
    if let Some(read) = outputs.get(&key, Timestamp::UNIX_EPOCH).await {
        assert_eq!(read, value);
    }
}

/// Whatever the n-th operation does, nothing wrong is handed out, and the next pass is a whole one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_costs_an_error_at_most() {
    for kind in [Kind::Local, Kind::S3, Kind::Gcs, Kind::Azure, Kind::Oci] {
        let server = StorageServer::start(kind).await;
        let folder = tempfile::tempdir().unwrap();
        let inner = connect(&server.root, &server.access).unwrap();
        let count = {
            let counted = Faulty::new(inner.clone(), Fault::Fail, usize::MAX);
            pass(&server.root, counted.clone(), &folder, b"the first").await;
            counted.calls()
        };
        assert!(count >= 6, "{count} operations of {kind:?}");
        for fault in Fault::ALL {
            for at in 0..count {
                let bytes = format!("bytes of {fault:?} {at}").into_bytes();
                let faulty = Faulty::new(inner.clone(), fault, at);
                pass(&server.root, faulty, &folder, &bytes).await;
                // A registry keeps what was pushed under a digest, so it refuses what was corrupted.
                let storage = Storage::over(&server.root, inner.clone());
                let digest = Digest::of(&bytes);
                let file = folder.path().join("artifact");
                let put = storage
                    .put_artifact(&file, digest, bytes.len() as u64, "a-flow")
                    .await;
                put.unwrap_or_else(|error| panic!("{kind:?}, {fault:?} at {at}: {error:?}"));
                let cache = tempfile::tempdir_in(&folder).unwrap().keep();
                let cache = ArtifactCache::open(&cache).unwrap();
                let got = fetch(&storage, &cache, digest, bytes.len()).await.unwrap();
                assert!(got == bytes, "{kind:?}, {fault:?} at {at}");
            }
        }
    }
}

/// A server that dies in the middle of a download leaves nothing behind, and is asked again later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_that_breaks_off_is_not_kept() {
    use std::sync::atomic::{AtomicBool, Ordering};

    let whole = bytes(29);
    let digest = Digest::of(&whole);
    let is_well = Arc::new(AtomicBool::new(false));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let root: Root = format!("http://{}/files/", listener.local_addr().unwrap())
        .parse()
        .unwrap();
    let (sent, well) = (whole.clone(), is_well.clone());
    let router = axum::Router::new().fallback(move || {
        let (half, rest) = sent.split_at(sent.len() / 2);
        let mut chunks = vec![Ok(half.to_vec())];
        chunks.push(match well.load(Ordering::Relaxed) {
            true => Ok(rest.to_vec()),
            false => Err(std::io::Error::other("it dies")),
        });
        let length = [("content-length", sent.len().to_string())];
        let body = axum::body::Body::from_stream(futures::stream::iter(chunks));
        async move { (length, body) }
    });
    let serving = tokio::spawn(async move { axum::serve(listener, router).await });
    let folder = tempfile::tempdir().unwrap();
    let cache = ArtifactCache::open(&folder.path().join("cache")).unwrap();
    let storage = Storage::open(&root, &Access::default()).unwrap();
    let broken = fetch(&storage, &cache, digest, whole.len())
        .await
        .unwrap_err();
    assert!(matches!(broken, StorageError::Other { .. }), "{broken:?}");
    let left = std::fs::read_dir(folder.path().join("cache"))
        .unwrap()
        .count();
    assert_eq!(left, 0);
    is_well.store(true, Ordering::Relaxed);
    let got = fetch(&storage, &cache, digest, whole.len()).await.unwrap();
    assert!(got == whole);
    serving.abort();
}
