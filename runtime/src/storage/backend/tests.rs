//! What folders promise beside what every storage does: links, and who may look in.

use super::*;

struct House {
    dir: tempfile::TempDir,
    storage: Storage,
    cache: ArtifactCache,
    bytes: Vec<u8>,
}

impl House {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::local(&dir.path().join("flows")).unwrap();
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n * 7 % 251) as u8).collect();
        std::fs::write(dir.path().join("a.wasm"), &bytes).unwrap();
        Self {
            storage: Storage::open(&root, &Access::default()).unwrap(),
            cache: ArtifactCache::open(&dir.path().join("cache")).unwrap(),
            dir,
            bytes,
        }
    }

    fn digest(&self) -> Digest {
        Digest::of(&self.bytes)
    }

    async fn put(&self) -> Result<String, StorageError> {
        let file = self.dir.path().join("a.wasm");
        let size = self.bytes.len() as u64;
        self.storage
            .put_artifact(&file, self.digest(), size, "f")
            .await
            .map(|put| put.key)
    }

    async fn fetch(&self) -> Result<PathBuf, StorageError> {
        let (digest, size) = (self.digest(), self.bytes.len() as u64);
        let key = key::artifact(digest);
        self.storage
            .fetch_artifact(&key, digest, size, &self.cache)
            .await
    }

    fn blob(&self) -> PathBuf {
        self.storage
            .root
            .folder()
            .unwrap()
            .join(key::artifact(self.digest()))
    }
}

#[tokio::test]
async fn what_was_put_is_fetched_and_put_again_is_the_same() {
    let house = House::new();
    let key = house.put().await.unwrap();
    assert_eq!(house.put().await.unwrap(), key);
    let path = house.fetch().await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), house.bytes);
    std::fs::remove_dir_all(house.storage.root.folder().unwrap()).unwrap();
    assert_eq!(house.fetch().await.unwrap(), path);
}

#[tokio::test]
async fn a_file_that_is_not_its_digest_is_not_put() {
    let house = House::new();
    for change in [vec![0; house.bytes.len()], vec![1], vec![2; 4_000_000]] {
        std::fs::write(house.dir.path().join("a.wasm"), change).unwrap();
        let refused = house.put().await.unwrap_err();
        assert!(matches!(refused, StorageError::Damaged { .. }), "{refused}");
    }
    assert!(!house.storage.root.folder().unwrap().exists());
}

#[tokio::test]
async fn a_damaged_blob_is_never_handed_out_and_is_mended_by_a_put() {
    let house = House::new();
    house.put().await.unwrap();
    let mut wrong = house.bytes.clone();
    wrong[2_000_000] ^= 1;
    for damage in [wrong, house.bytes[1..].to_vec()] {
        std::fs::write(house.blob(), damage).unwrap();
        let refused = house.fetch().await.unwrap_err();
        assert!(matches!(refused, StorageError::Damaged { .. }), "{refused}");
        house.put().await.unwrap();
        house
            .storage
            .check_artifact(
                &key::artifact(house.digest()),
                house.digest(),
                house.bytes.len() as u64,
            )
            .await
            .unwrap();
    }
    let left: Vec<_> = std::fs::read_dir(house.dir.path().join("cache"))
        .unwrap()
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn what_is_damaged_is_fetched_three_times_and_then_named() {
    let house = House::new();
    let key = house.put().await.unwrap();
    let wrong = vec![0; house.bytes.len()];
    std::fs::write(house.blob(), &wrong).unwrap();
    let (digest, size) = (house.digest(), house.bytes.len() as u64);
    let mut fetches = 0;
    let fetched = repeated(|| {
        fetches += 1;
        house.storage.fetch_once(&key, digest, size, &house.cache)
    });
    let by_hand = fetched.await.unwrap_err();
    assert_eq!(fetches, 3);
    let refused = house.fetch().await.unwrap_err();
    let (root, found) = (&house.storage.root, Digest::of(&wrong));
    assert_eq!(
        refused.to_string(),
        format!("`{key}` in `{root}` is damaged: expected {digest}, found {found}")
    );
    assert_eq!(by_hand.to_string(), refused.to_string());

    // Nor is it fetched again where that would not help, or once it is whole.
    let mut fetches = 0;
    std::fs::remove_file(house.blob()).unwrap();
    let absent = repeated(|| {
        fetches += 1;
        house.storage.fetch_once(&key, digest, size, &house.cache)
    });
    absent.await.unwrap_err();
    assert_eq!(fetches, 1);
    let mut fetches = 0;
    let mended = repeated(|| {
        fetches += 1;
        let bytes = if fetches == 2 { &house.bytes } else { &wrong };
        std::fs::write(house.blob(), bytes).unwrap();
        house.storage.fetch_once(&key, digest, size, &house.cache)
    });
    mended.await.unwrap();
    assert_eq!(fetches, 2);
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let house = House::new();
    let refused = house.fetch().await.unwrap_err();
    assert!(
        matches!(refused, StorageError::NotFound { .. }),
        "{refused:?}"
    );
    std::fs::create_dir_all(house.storage.root.folder().unwrap()).unwrap();
    let refused = house.fetch().await.unwrap_err();
    assert!(
        matches!(refused, StorageError::NotFound { .. }),
        "{refused:?}"
    );
}

#[tokio::test]
async fn no_link_leads_out_of_the_root() {
    let house = House::new();
    house.put().await.unwrap();
    let folder = house.blob().parent().unwrap().to_owned();
    let elsewhere = house.dir.path().join("elsewhere");
    std::fs::rename(&folder, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &folder).unwrap();
    for answer in [house.put().await.map(drop), house.fetch().await.map(drop)] {
        let refused = answer.unwrap_err();
        assert!(
            matches!(refused, StorageError::Refused { .. }),
            "{refused:?}"
        );
    }
}

#[tokio::test]
async fn a_key_of_another_digest_is_refused() {
    let house = House::new();
    house.put().await.unwrap();
    let (digest, size) = (house.digest(), house.bytes.len() as u64);
    for key in ["../a.wasm", "sha256/00/00", ""] {
        let answer = house
            .storage
            .fetch_artifact(key, digest, size, &house.cache)
            .await;
        let refused = answer.unwrap_err();
        assert!(
            matches!(refused, StorageError::Refused { .. }),
            "{refused:?}"
        );
    }
}
