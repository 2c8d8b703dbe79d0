//! How storages are opened: by files, variables and tokens, each as its ecosystem keeps them.

use std::process::Command;

use super::*;
use crate::kit::program::{WAFT, free_port};
use crate::kit::servers::Front;

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
        let said = format!("{} {denied:?}", chain(&denied));
        assert!(
            !said.contains("secret") && !said.contains("Eby8vd"),
            "{said}"
        );
        let code = match kind {
            Kind::Azure => "403 AuthorizationFailure: Server failed to authenticate",
            Kind::Oci => "the registry answers 401",
            _ => "401 Unauthorized",
        };
        assert!(said.contains(code), "{said}");
        assert!(!said.contains(['<', '\n']), "{said}");
    }
}

/// Who has no credentials at all is told what was looked at, and not what the machine has no service for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_nothing_is_told_what_is_missing() {
    let home = tempfile::tempdir().unwrap();
    let nobody = free_port().to_string();
    let url = format!("http://{nobody}");
    for (root, variables, missing, hint) in [
        (
            "s3://bucket",
            vec![
                ("AWS_METADATA_ENDPOINT", url.as_str()),
                ("AWS_PROFILE", "ci"),
            ],
            "AWS_ACCESS_KEY_ID and AWS_WEB_IDENTITY_TOKEN_FILE are not set, the profile `ci` has no keys",
            "~/.aws/credentials",
        ),
        (
            "gs://bucket",
            vec![("GCE_METADATA_HOST", &nobody), ("GCE_METADATA_IP", &nobody)],
            "GOOGLE_APPLICATION_CREDENTIALS and GOOGLE_SERVICE_ACCOUNT are not set",
            "the file of a service account",
        ),
        (
            "az://container",
            vec![
                ("AZURE_STORAGE_ACCOUNT_NAME", "somebody"),
                ("IDENTITY_ENDPOINT", &url),
            ],
            "AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_KEY",
            "AZURE_STORAGE_CONNECTION_STRING",
        ),
        (
            "az://container",
            vec![],
            "no account is named",
            "AZURE_STORAGE_ACCOUNT_NAME",
        ),
    ] {
        let output = Command::new(WAFT)
            .args(["storage", "ls", root])
            .env_clear()
            .env("HOME", home.path())
            .env("WAFT_HOME", home.path())
            .envs(variables)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        let lines: Vec<_> = said.lines().collect();
        let [what, refused, why, mend] = lines.as_slice() else {
            panic!("{said}");
        };
        assert!(what.starts_with("error: cannot look into"), "{said}");
        assert!(refused.contains("refuses access"), "{said}");
        assert!(why.contains(missing), "{said}");
        assert!(mend.starts_with("hint: ") && mend.contains(hint), "{said}");
    }
}

/// A helper that never answers, as one does that waits for somebody at a screen, is ended with all that it started.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_helper_that_hangs_is_ended() {
    use std::os::unix::fs::PermissionsExt as _;

    let server = StorageServer::start_locked(Kind::Oci).await;
    let folder = tempfile::tempdir().unwrap();
    let (helper, pid) = (
        folder.path().join("docker-credential-hangs"),
        folder.path().join("pid"),
    );
    // The child of a shell holds its output open.
    let script = format!(
        "#!/bin/sh\nsleep 1000 &\necho $! > '{}'\nwait\n",
        pid.display()
    );
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o700)).unwrap();
    server.write_home(".docker/config.json", r#"{ "credsStore": "hangs" }"#);
    let path = format!(
        "{}:{}",
        folder.path().display(),
        std::env::var("PATH").unwrap()
    );
    let listed = Command::new(WAFT)
        .args(["storage", "ls", &server.root.to_string()])
        .env("WAFT_HOME", folder.path())
        .env("PATH", path)
        .envs(server.environment())
        .output()
        .unwrap();
    let said = String::from_utf8(listed.stderr).unwrap();
    assert_eq!(listed.status.code(), Some(1), "{said}");
    assert!(said.contains("`docker-credential-hangs`"), "{said}");
    assert!(said.contains("no answer for 20 s"), "{said}");
    let pid = std::fs::read_to_string(pid).unwrap();
    let line = std::fs::read_to_string(format!("/proc/{}/cmdline", pid.trim()));
    assert!(!line.is_ok_and(|line| line.contains("sleep")), "{said}");
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

/// What a pod or a machine of the cloud is given in the place of keys: a token file that is exchanged for keys,
/// or a role that a service of its own tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_web_identity_and_the_role_of_a_machine_open_a_bucket() {
    let mut house = House::new(Kind::S3).await;
    let endpoint = house.server.access.variables["AWS_ENDPOINT_URL"].clone();
    house.server.write_home("token", "e30.e30.e30");
    let token = house.server.access.at_home("token").unwrap();
    let token = token.display().to_string();
    // moto tells its services apart by what is asked in a body, where object_store has a query.
    let front = Front::start(&format!(
        "location / {{ proxy_set_header Host sts.amazonaws.com; proxy_set_body $args; \
         proxy_set_header Content-Type application/x-www-form-urlencoded; proxy_pass {endpoint}/; }}"
    ))
    .await;
    let tokens = format!("http://{}", front.address);
    let role = "arn:aws:iam::123456789012:role/flows";
    for (name, variables) in [
        (
            "a web identity",
            vec![
                ("AWS_WEB_IDENTITY_TOKEN_FILE", token.as_str()),
                ("AWS_ROLE_ARN", role),
                ("AWS_ENDPOINT_URL_STS", &tokens),
            ],
        ),
        ("a machine", vec![("AWS_METADATA_ENDPOINT", &endpoint)]),
    ] {
        let mut variables = variables;
        variables.push(("AWS_ENDPOINT_URL", &endpoint));
        let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        house.server.access.variables = variables.into_iter().map(own).collect();
        house.storage = Storage::open(&house.server.root, &house.server.access).unwrap();
        house.forget();
        let bytes = format!("by {name}").into_bytes();
        let digest = house.put(&bytes).await.unwrap();
        assert_eq!(house.fetch(digest, &bytes).await.unwrap(), bytes);
    }
    // The token file was looked at, and no other way in was found instead.
    house.server.access.variables.insert(
        "AWS_WEB_IDENTITY_TOKEN_FILE".to_owned(),
        format!("{token}-gone"),
    );
    let variables = &mut house.server.access.variables;
    variables.insert("AWS_ROLE_ARN".to_owned(), role.to_owned());
    let lost = Storage::open(&house.server.root, &house.server.access).unwrap();
    assert!(lost.reach().await.is_err());
}
