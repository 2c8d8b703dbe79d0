//! Registries that send who comes to a token service: nginx before a real registry asks it about every call.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Mutex;

use axum::Router;
use axum::extract::{Query, State};
use axum::routing::get;
use base64::Engine as _;
use http::{HeaderMap, StatusCode, header};

use super::*;
use crate::kit::servers::Front;

/// What a token service was asked, and what it gave.
#[derive(Clone, Default)]
struct Tokens(Arc<Mutex<Given>>);

#[derive(Default)]
struct Given {
    asked: Vec<String>,
    tokens: BTreeSet<String>,
}

#[derive(serde::Deserialize)]
struct Asked {
    scope: String,
    service: String,
}

impl Tokens {
    async fn start(&self) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/token", get(by_password).post(by_identity))
            .route("/check", get(check))
            .with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    fn give(&self, name: &str, asked: &Asked) -> axum::Json<serde_json::Value> {
        assert_eq!(asked.service, "waft tests");
        let mut given = self.0.lock().unwrap();
        given.asked.push(format!("{name} {}", asked.scope));
        let token = format!("token-{}", given.asked.len());
        given.tokens.insert(format!("Bearer {token}"));
        axum::Json(serde_json::json!({ "access_token": token, "expires_in": 300 }))
    }

    fn asked(&self) -> Vec<String> {
        self.0.lock().unwrap().asked.clone()
    }
}

async fn by_password(
    State(tokens): State<Tokens>,
    headers: HeaderMap,
    Query(asked): Query<Asked>,
) -> Result<axum::Json<serde_json::Value>, StatusCode> {
    let pair = base64::prelude::BASE64_STANDARD.encode("ada:secret");
    let told = headers.get(header::AUTHORIZATION);
    let told = told.and_then(|value| value.to_str().ok());
    match told == Some(&format!("Basic {pair}")) {
        true => Ok(tokens.give("password", &asked)),
        false => Err(StatusCode::UNAUTHORIZED),
    }
}

async fn by_identity(
    State(tokens): State<Tokens>,
    form: String,
) -> Result<axum::Json<serde_json::Value>, StatusCode> {
    let form: BTreeMap<_, _> = url::form_urlencoded::parse(form.as_bytes())
        .into_owned()
        .collect();
    let is_right = form["grant_type"] == "refresh_token" && form["refresh_token"] == "who I am";
    let asked = Asked {
        scope: form["scope"].clone(),
        service: form["service"].clone(),
    };
    match is_right {
        true => Ok(tokens.give("identity", &asked)),
        false => Err(StatusCode::BAD_REQUEST),
    }
}

async fn check(State(tokens): State<Tokens>, headers: HeaderMap) -> StatusCode {
    let told = headers.get(header::AUTHORIZATION);
    let told = told
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    match tokens.0.lock().unwrap().tokens.contains(told) {
        true => StatusCode::OK,
        false => StatusCode::UNAUTHORIZED,
    }
}

/// A registry whose calls are checked at `checks`, and which names `realm`.
async fn asking(registry: &StorageServer, checks: SocketAddr, realm: &str) -> (Front, Root) {
    let front = Front::start(&format!(
        "location / {{ auth_request /check; error_page 401 = @asks; proxy_set_header Host $http_host; \
         proxy_pass http://{}; }} \
         location = /check {{ internal; proxy_pass http://{checks}/check; proxy_pass_request_body off; \
         proxy_set_header Content-Length \"\"; }} \
         location @asks {{ add_header WWW-Authenticate 'Basic realm=\"old\", \
         Bearer realm=\"{realm}\",service=\"waft tests\"' always; return 401; }}",
        registry.address()
    ))
    .await;
    let root = format!("oci://{}/team/flows", front.address);
    (front, root.parse().unwrap())
}

fn log_in(server: &StorageServer, root: &Root, entry: serde_json::Value) {
    std::fs::create_dir_all(server.access.at_home(".docker").unwrap()).unwrap();
    let config = serde_json::json!({ "auths": { root.place(): entry } });
    server.write_home(".docker/config.json", &config.to_string());
}

fn password() -> serde_json::Value {
    let pair = base64::prelude::BASE64_STANDARD.encode("ada:secret");
    serde_json::json!({ "auth": pair })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_service_is_asked_by_password_and_by_identity() {
    let tokens = Tokens::default();
    let service = tokens.start().await;
    let mut house = House::new(Kind::Oci).await;
    let realm = format!("http://{service}/token");
    let (_front, root) = asking(&house.server, service, &realm).await;
    let nobody = Storage::open(&root, &house.server.access).unwrap();
    let denied = nobody.reach().await.unwrap_err();
    assert!(matches!(denied, StorageError::Denied { .. }), "{denied:?}");
    assert_eq!(tokens.asked(), Vec::<String>::new());

    let identity = serde_json::json!({
        "auth": base64::prelude::BASE64_STANDARD.encode("<token>:"),
        "identitytoken": "who I am",
    });
    let mut bytes = bytes(37);
    for (name, entry) in [("password", password()), ("identity", identity)] {
        log_in(&house.server, &root, entry);
        house.storage = Storage::open(&root, &house.server.access).unwrap();
        bytes[0] ^= 1;
        let digest = house.put(&bytes).await.unwrap();
        house.forget();
        assert_eq!(house.fetch(digest, &bytes).await.unwrap(), bytes);
        let asked = tokens.asked();
        let own = asked.iter().filter(|asked| asked.starts_with(name));
        // One for each of both ways, and both are used again.
        assert_eq!(
            own.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>(),
            [
                &format!("{name} repository:team/flows:pull"),
                &format!("{name} repository:team/flows:pull,push"),
            ],
            "{asked:?}"
        );
        assert_eq!(
            asked.iter().filter(|asked| asked.starts_with(name)).count(),
            2
        );
    }
    log_in(
        &house.server,
        &root,
        serde_json::json!({
            "auth": base64::prelude::BASE64_STANDARD.encode("ada:wrong"),
        }),
    );
    let wrong = Storage::open(&root, &house.server.access).unwrap();
    let denied = wrong.reach().await.unwrap_err();
    assert!(matches!(denied, StorageError::Denied { .. }), "{denied:?}");
    let said = format!("{denied} {denied:?}");
    assert!(
        said.contains("token service") && !said.contains("wrong"),
        "{said}"
    );
}

/// Whoever runs a registry does not say where credentials go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_credentials_go_where_a_hostile_registry_sends_them() {
    let tokens = Tokens::default();
    let service = tokens.start().await;
    let house = House::new(Kind::Oci).await;
    for (realm, why) in [
        ("http://auth.example/token", "clear text"),
        ("http://10.1.2.3/token", "clear text"),
        ("ftp://127.0.0.1/token", "no address of the web"),
        ("nonsense", "no address of the web"),
    ] {
        let (_front, root) = asking(&house.server, service, realm).await;
        log_in(&house.server, &root, password());
        let storage = Storage::open(&root, &house.server.access).unwrap();
        let denied = storage.reach().await.unwrap_err();
        assert!(matches!(denied, StorageError::Denied { .. }), "{denied:?}");
        let said = format!("{denied:?}");
        assert!(
            said.contains(why) && said.contains("no credentials went"),
            "{said}"
        );
    }
    // Nor does the token service itself.
    let sends = format!("return 307 http://{service}/token$is_args$args;");
    let service_that_sends = Front::start(&sends).await;
    let realm = format!("http://{}/token", service_that_sends.address);
    let (_front, root) = asking(&house.server, service, &realm).await;
    log_in(&house.server, &root, password());
    let storage = Storage::open(&root, &house.server.access).unwrap();
    let error = storage.reach().await.unwrap_err();
    assert!(format!("{error:?}").contains("redirect"), "{error:?}");
    assert_eq!(tokens.asked(), Vec::<String>::new());
}

/// What somebody else pushed keeps a tag of ours, by the very same manifest, when its own tag goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_of_somebody_else_is_pinned() {
    let house = House::new(Kind::Oci).await;
    let digest = house.put(b"a component").await.unwrap();
    let version = ("demo", "a.flow", 3);
    let theirs = house.storage.name_version(digest, version).await.unwrap();
    let theirs = theirs.unwrap();
    let own = format!("wasm-{}", digest.to_hex());
    let tags = house.server.data().join("docker/registry/v2/repositories");
    let tags = tags.join(house.server.root.path()).join("_manifests/tags");
    let link = |tag: &str| std::fs::read(tags.join(tag).join("current/link")).unwrap();
    std::fs::remove_dir_all(tags.join(&own)).unwrap();
    let other = house.storage.pin(&theirs, Digest::of(b"another")).await;
    assert!(other.unwrap_err().to_string().contains(&theirs));
    house.storage.pin(&theirs, digest).await.unwrap();
    assert_eq!(link(&own), link(&theirs));
    std::fs::remove_dir_all(tags.join(&theirs)).unwrap();
    house.storage.pin(&theirs, digest).await.unwrap();
    let found = house.storage.find_tag(&own).await.unwrap();
    assert_eq!(found, (key::artifact(digest), digest, 11));
}

/// A manifest may have 4 MiB, and no more is ever read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_without_end_is_not_read_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let endless = std::fs::File::create(folder.path().join("endless")).unwrap();
    endless.set_len(1 << 40).unwrap();
    let front = Front::start(&format!(
        "location = /v2/ {{ return 200; }} location / {{ root {}; try_files /endless =404; }}",
        folder.path().display()
    ))
    .await;
    let root: Root = format!("oci://{}/team/flows", front.address)
        .parse()
        .unwrap();
    let storage = Storage::open(&root, &Access::default()).unwrap();
    let error = storage.find_tag("latest").await.unwrap_err();
    assert!(
        format!("{error:?}").contains("larger than 4194304 bytes"),
        "{error:?}"
    );
}
