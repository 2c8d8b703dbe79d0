//! How storages are opened: by files, variables and tokens, each as its ecosystem keeps them.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_credentials_is_told_where_they_come_from() {
    for kind in [Kind::Azure, Kind::Oci, Kind::Http] {
        let mut house = match kind {
            Kind::Azure => House::new(kind).await,
            _ => House::over(StorageServer::start_locked(kind).await),
        };
        let digest = house.put(b"with").await.unwrap();
        assert_eq!(house.fetch(digest, b"with").await.unwrap(), b"with");
        house.server.lose_credentials();
        house.forget();
        house.storage = Storage::open(&house.server.root, &house.server.access).unwrap();
        let denied = house.fetch(digest, b"with").await.unwrap_err();
        assert!(
            matches!(denied, StorageError::Denied { .. }),
            "{kind:?}: {denied:?}"
        );
        assert!(house.storage.reach().await.is_err(), "{kind:?}");
        let hint = denied.hint().unwrap();
        let words = match kind {
            Kind::Azure => "AZURE_STORAGE_ACCOUNT_KEY",
            Kind::Oci => "docker login",
            _ => "~/.netrc",
        };
        assert!(hint.contains(words), "{hint}");
        let said = format!("{denied} {denied:?}");
        assert!(
            !said.contains("secret") && !said.contains("Eby8vd"),
            "{said}"
        );
    }
}

/// The files of the AWS tools do where no variable says anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_profile_opens_a_bucket() {
    let mut house = House::new(Kind::S3).await;
    let endpoint = house.server.access.variables["AWS_ENDPOINT_URL"].clone();
    let aws = house.server.access.at_home(".aws").unwrap();
    std::fs::create_dir(&aws).unwrap();
    let keys = "[ci]\naws_access_key_id = test\naws_secret_access_key = test\n";
    std::fs::write(aws.join("credentials"), keys).unwrap();
    let settings = format!("[profile ci]\nregion = eu-central-1\nendpoint_url = {endpoint}\n");
    std::fs::write(aws.join("config"), settings).unwrap();
    let access = &mut house.server.access;
    access.variables = [("AWS_PROFILE".to_owned(), "ci".to_owned())].into();
    house.storage = Storage::open(&house.server.root, &house.server.access).unwrap();
    let digest = house.put(b"by profile").await.unwrap();
    assert_eq!(
        house.fetch(digest, b"by profile").await.unwrap(),
        b"by profile"
    );
}

/// A web server may ask for a bearer token, which lies in a file that the configuration names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_opens_a_web_server() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = axum::Router::new().fallback(|headers: http::HeaderMap| async move {
        match headers.get("authorization").map(|value| value.as_bytes()) {
            Some(b"Bearer open sesame") => Ok("inside"),
            _ => Err(http::StatusCode::UNAUTHORIZED),
        }
    });
    let serving = tokio::spawn(async move { axum::serve(listener, router).await });
    let root: Root = format!("http://{address}/files/").parse().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "open sesame\n").unwrap();
    let digest = Digest::of(b"inside");
    let check = async |access: &Access| {
        let storage = Storage::open(&root, access).unwrap();
        storage
            .check_artifact(&key::artifact(digest), digest, 6)
            .await
    };
    let mut access = Access::default();
    let denied = check(&access).await.unwrap_err();
    assert!(matches!(denied, StorageError::Denied { .. }), "{denied:?}");
    access
        .http_tokens
        .insert(address.to_string(), token.clone());
    check(&access).await.unwrap();
    std::fs::remove_file(&token).unwrap();
    let unread = Storage::open(&root, &access).unwrap_err();
    assert!(matches!(unread, StorageError::Denied { .. }), "{unread:?}");
    serving.abort();
}
