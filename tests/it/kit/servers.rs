//! The storages of the product as real servers on this machine, one of each kind, each for one test.
//!
//! `cargo xtask test` installs them beforehand and says where they lie. A server that could not be
//! installed or does not answer fails its test.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use hmac::Mac as _;
use object_store::ObjectStoreExt as _;
use object_store::path::Path as ObjectPath;
use tempfile::TempDir;
use waft::config::Access;
use waft::storage::{Kind, Root, connect};

use super::guests::servers;
use super::program::{Process, free_port};
use super::witness::patient;

/// The bucket, container or repository that every server has.
pub(crate) const BUCKET: &str = "flows";
/// The account that Azurite knows, and the key that it publishes for it.
const AZURITE: (&str, &str) = (
    "devstoreaccount1",
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
);
/// Who may use the registry and the web server that ask, and what bcrypt makes of the password.
const LOGIN: (&str, &str) = ("ada", "secret");
const BCRYPT: &str = "$2b$04$rFAX0G9cEOyT0YPtzfN62uB1lilCsZlMQsTdHbwP6G7DyaA8lbisy";

/// How much a server asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Open,
    Locked,
    /// After the calls that make a bucket and a user.
    Guarded,
    /// And deletes nothing.
    Keeping,
}

/// A storage that runs, or a folder.
pub(crate) struct StorageServer {
    /// The root that tests put things under.
    pub(crate) root: Root,
    /// What opens it.
    pub(crate) access: Access,
    address: SocketAddr,
    command: Box<dyn Fn() -> Command + Send + Sync>,
    process: Option<Process>,
    folder: TempDir,
}

impl StorageServer {
    /// Starts a server of a kind, with an empty bucket.
    pub(crate) async fn start(kind: Kind) -> Self {
        Self::start_with(kind, How::Open).await
    }

    /// Starts a registry or a web server that asks who is there.
    pub(crate) async fn start_locked(kind: Kind) -> Self {
        Self::start_with(kind, How::Locked).await
    }

    /// Starts a registry that deletes nothing.
    pub(crate) async fn start_keeping() -> Self {
        Self::start_with(Kind::Oci, How::Keeping).await
    }

    /// Starts an S3 that looks at policies once a bucket and a user are made who may do so much there, and
    /// becomes that user.
    pub(crate) async fn start_guarded(actions: &[&str]) -> Self {
        let mut server = Self::start_with(Kind::S3, How::Guarded).await;
        let policy = serde_json::json!({ "Version": "2012-10-17", "Statement": [{
            "Effect": "Allow", "Action": actions,
            "Resource": [format!("arn:aws:s3:::{BUCKET}"), format!("arn:aws:s3:::{BUCKET}/*")],
        }]});
        let policy = policy.to_string();
        server.iam("CreateUser", &[("UserName", LOGIN.0)]).await;
        let rule = [
            ("UserName", LOGIN.0),
            ("PolicyName", "some"),
            ("PolicyDocument", &policy),
        ];
        server.iam("PutUserPolicy", &rule).await;
        let made = server
            .iam("CreateAccessKey", &[("UserName", LOGIN.0)])
            .await;
        let word = |name: &str| {
            let (_, rest) = made.split_once(&format!("<{name}>")).unwrap();
            rest.split_once('<').unwrap().0.to_owned()
        };
        let variables = &mut server.access.variables;
        variables.insert("AWS_ACCESS_KEY_ID".to_owned(), word("AccessKeyId"));
        variables.insert("AWS_SECRET_ACCESS_KEY".to_owned(), word("SecretAccessKey"));
        server
    }

    /// Asks moto's IAM for something, by no name.
    async fn iam(&self, action: &str, words: &[(&str, &str)]) -> String {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.extend_pairs([("Action", action), ("Version", "2010-05-08")]);
        form.extend_pairs(words);
        let service = "AWS4-HMAC-SHA256 Credential=nobody/20260101/us-east-1/iam/aws4_request, \
                       SignedHeaders=host, Signature=none";
        let answer = reqwest::Client::new()
            .post(format!("http://{}/", self.address))
            .header("authorization", service)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form.finish())
            .send()
            .await
            .unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{action}: {status} {text}");
        text
    }

    async fn start_with(kind: Kind, how: How) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = free_port();
        let data = folder.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let mut access = Access {
            home: Some(folder.path().to_owned()),
            ..Access::default()
        };
        let mut variables = BTreeMap::new();
        let mut set = |name: &str, value: String| drop(variables.insert(name.to_owned(), value));
        let url = format!("http://{address}");
        let root = match kind {
            Kind::Local => format!("file://{}", data.display()),
            Kind::S3 => {
                set("AWS_ACCESS_KEY_ID", "test".to_owned());
                set("AWS_SECRET_ACCESS_KEY", "test".to_owned());
                set("AWS_ENDPOINT_URL", url.clone());
                format!("s3://{BUCKET}/team")
            }
            Kind::Gcs => {
                let proxy = signing_proxy(address).await;
                set("STORAGE_EMULATOR_HOST", proxy.to_string());
                format!("gs://{BUCKET}/team")
            }
            Kind::Azure => {
                let (account, key) = AZURITE;
                let text =
                    format!("AccountName={account};AccountKey={key};BlobEndpoint={url}/{account};");
                set("AZURE_STORAGE_CONNECTION_STRING", text);
                format!("az://{BUCKET}/team")
            }
            Kind::Oci => format!("oci://{address}/team/{BUCKET}"),
            Kind::Http => format!("http://{address}/files/"),
        };
        access.variables = variables;
        if how == How::Locked {
            lock(&folder, address);
        }
        let command = command(kind, address, folder.path(), how);
        let mut server = Self {
            root: root.parse().unwrap(),
            access,
            address,
            command,
            process: None,
            folder,
        };
        server.resume().await;
        server.make_bucket().await;
        server
    }

    /// Ends the server with `kill -9`; what it has stays.
    pub(crate) fn stop(&mut self) {
        drop(self.process.take());
    }

    /// Stops the server with SIGSTOP: it takes connections and says nothing.
    pub(crate) fn freeze(&self) {
        self.process.as_ref().unwrap().freeze();
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        self.process.as_ref().unwrap().thaw();
    }

    /// Starts the server, or starts it again at the same address.
    pub(crate) async fn resume(&mut self) {
        if self.root.kind() == Kind::Local {
            return;
        }
        let mut command = (self.command)();
        let log = std::fs::File::create(self.folder.path().join("server.log")).unwrap();
        command.stderr(log);
        self.process = Some(Process::spawn(&mut command));
        until_up(self.address, &format!("a server for {}", self.root)).await;
    }

    /// Returns where the server is.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the folder of this server's files, for those kinds that keep files.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Returns what a process needs in its environment to reach this storage.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let own = self.access.variables.clone();
        let home = ("HOME".to_owned(), self.folder.path().display().to_string());
        own.into_iter().chain([home]).collect()
    }

    /// Writes a file below the home of who uses this storage.
    pub(crate) fn write_home(&self, path: &str, text: &str) {
        std::fs::write(self.folder.path().join(path), text).unwrap();
    }

    /// Stands before the server and lets only those in whose requests are signed with the key of this name,
    /// which may be changed.
    pub(crate) async fn behind_key(&self, id: &str) -> (SocketAddr, Arc<Mutex<String>>) {
        let (server, valid) = (self.address, Arc::new(Mutex::new(id.to_owned())));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        waft::tls::install();
        let (http, known) = (reqwest::Client::new(), valid.clone());
        let pass = move |request: axum::extract::Request| {
            let (http, known) = (http.clone(), known.clone());
            async move {
                let (parts, body) = request.into_parts();
                let signed = parts.headers.get(http::header::AUTHORIZATION);
                let signed = signed.and_then(|value| value.to_str().ok());
                let wanted = format!("Credential={}/", known.lock().unwrap());
                if !signed.is_some_and(|signed| signed.contains(&wanted)) {
                    return Err(http::StatusCode::FORBIDDEN);
                }
                let path = parts.uri.path_and_query().unwrap().as_str();
                let sent = http
                    .request(parts.method, format!("http://{server}{path}"))
                    .headers(parts.headers)
                    .body(reqwest::Body::wrap_stream(body.into_data_stream()))
                    .send();
                let answer = sent.await.map_err(|_| http::StatusCode::BAD_GATEWAY)?;
                let answer: http::Response<reqwest::Body> = answer.into();
                Ok(answer.map(axum::body::Body::new))
            }
        };
        let router = axum::Router::new().fallback(pass);
        tokio::spawn(async move { axum::serve(listener, router).await });
        (address, valid)
    }

    /// Gives the registry's user another name, there and where other tools keep it.
    pub(crate) async fn rename_user(&mut self, user: &str) {
        self.stop();
        let passwords = format!("{user}:{BCRYPT}\n");
        std::fs::write(self.folder.path().join("passwords"), passwords).unwrap();
        self.resume().await;
        self.write_login(user);
    }

    /// Writes the login of the registry where Docker's tools keep it.
    pub(crate) fn write_login(&self, user: &str) {
        let auth = BASE64_STANDARD.encode(format!("{user}:{}", LOGIN.1));
        let config = serde_json::json!({ "auths": { self.address.to_string(): { "auth": auth } } });
        self.write_home(".docker/config.json", &config.to_string());
    }

    /// Takes the credentials away.
    pub(crate) fn lose_credentials(&mut self) {
        match self.root.kind() {
            Kind::Azure => {
                let text = self
                    .access
                    .variables
                    .get_mut("AZURE_STORAGE_CONNECTION_STRING")
                    .unwrap();
                *text = text.replace(AZURITE.1, &BASE64_STANDARD.encode("wrong"));
            }
            _ => {
                std::fs::remove_dir_all(self.folder.path().join(".docker")).ok();
                std::fs::remove_file(self.folder.path().join(".netrc")).ok();
            }
        }
    }

    /// Puts bytes under a key behind the product's back.
    pub(crate) async fn plant(&self, key: &str, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        match self.root.kind() {
            Kind::Local | Kind::Http => {
                let file = self.file_of(key);
                std::fs::create_dir_all(file.parent().unwrap()).unwrap();
                std::fs::write(file, bytes).unwrap();
            }
            Kind::Oci => {
                let digest = key.rsplit('/').next().unwrap();
                let blobs = self.data().join("docker/registry/v2/blobs/sha256");
                std::fs::write(blobs.join(&digest[..2]).join(digest).join("data"), bytes).unwrap();
            }
            Kind::S3 | Kind::Gcs | Kind::Azure => {
                let store = connect(&self.root, &self.access).unwrap();
                store
                    .put(&ObjectPath::from(key), bytes.into())
                    .await
                    .unwrap();
            }
        }
    }

    /// Takes an object away behind the product's back.
    pub(crate) async fn remove(&self, key: &str) {
        let store = connect(&self.root, &self.access).unwrap();
        store.delete(&ObjectPath::from(key)).await.unwrap();
    }

    fn file_of(&self, key: &str) -> PathBuf {
        match self.root.kind() {
            Kind::Http => self.data().join("files").join(key),
            _ => self.data().join(key),
        }
    }

    /// Makes the bucket, unless it is there.
    pub(crate) async fn make_bucket(&self) {
        waft::tls::install();
        let http = reqwest::Client::new();
        let url = format!("http://{}", self.address);
        let request = match self.root.kind() {
            Kind::Local | Kind::Oci => return,
            Kind::Http => {
                std::fs::create_dir_all(self.data().join("files")).unwrap();
                return;
            }
            Kind::S3 => http.put(format!("{url}/{BUCKET}")),
            Kind::Gcs => http
                .post(format!("{url}/storage/v1/b?project=test"))
                .json(&serde_json::json!({ "name": BUCKET })),
            Kind::Azure => {
                let (account, key) = AZURITE;
                let date = jiff::Timestamp::now()
                    .strftime("%a, %d %b %Y %H:%M:%S GMT")
                    .to_string();
                let resource = format!("/{account}/{account}/{BUCKET}\nrestype:container");
                let headers = format!("x-ms-date:{date}\nx-ms-version:2021-08-06");
                let text = format!("PUT\n\n\n\n\n\n\n\n\n\n\n\n{headers}\n{resource}");
                let key = BASE64_STANDARD.decode(key).unwrap();
                let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(&key).unwrap();
                mac.update(text.as_bytes());
                let signature = BASE64_STANDARD.encode(mac.finalize().into_bytes());
                http.put(format!("{url}/{account}/{BUCKET}?restype=container"))
                    .header("x-ms-date", date)
                    .header("x-ms-version", "2021-08-06")
                    .header("content-length", "0")
                    .header("authorization", format!("SharedKey {account}:{signature}"))
            }
        };
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let is_made = status.is_success() || status == http::StatusCode::CONFLICT;
        assert!(is_made, "{status}: {}", answer.text().await.unwrap());
    }
}

/// Stands before fake-gcs-server, which takes a plain PUT of the XML API only as one by a signed URL: marks
/// each as one, adds the ETag that it leaves out, and passes everything else on as it is.
async fn signing_proxy(server: SocketAddr) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    waft::tls::install();
    let http = reqwest::Client::new();
    let pass = move |request: axum::extract::Request| {
        let http = http.clone();
        async move {
            let (parts, body) = request.into_parts();
            let path = parts.uri.path_and_query().unwrap().as_str();
            let is_put = parts.method == http::Method::PUT;
            let mark = if is_put {
                "?X-Goog-Algorithm=GOOG4-RSA-SHA256"
            } else {
                ""
            };
            let mut headers = parts.headers;
            headers.remove(http::header::HOST);
            let sent = http
                .request(parts.method, format!("http://{server}{path}{mark}"))
                .headers(headers)
                .body(reqwest::Body::wrap_stream(body.into_data_stream()))
                .send();
            let answer: http::Response<reqwest::Body> = match sent.await {
                Ok(answer) => answer.into(),
                Err(_) => {
                    return axum::response::IntoResponse::into_response(
                        http::StatusCode::BAD_GATEWAY,
                    );
                }
            };
            let mut answer = answer.map(axum::body::Body::new);
            if is_put {
                let tag = http::HeaderValue::from_static("\"put\"");
                answer.headers_mut().insert(http::header::ETAG, tag);
            }
            answer
        }
    };
    let router = axum::Router::new().fallback(pass);
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// Writes the credentials of a registry or a web server that asks where other tools keep them.
fn lock(folder: &TempDir, address: SocketAddr) {
    let (user, password) = LOGIN;
    let docker = folder.path().join(".docker");
    std::fs::create_dir(&docker).unwrap();
    let auth = BASE64_STANDARD.encode(format!("{user}:{password}"));
    let config = serde_json::json!({ "auths": { address.to_string(): { "auth": auth } } });
    std::fs::write(docker.join("config.json"), config.to_string()).unwrap();
    let netrc = format!(
        "machine {} login {user} password {password}\n",
        address.ip()
    );
    std::fs::write(folder.path().join(".netrc"), netrc).unwrap();
    let passwords = format!("{user}:{BCRYPT}\n");
    std::fs::write(folder.path().join("passwords"), passwords).unwrap();
    let plain = format!("{user}:{{PLAIN}}{password}\n");
    std::fs::write(folder.path().join("plain"), plain).unwrap();
}

/// Returns how a server is started.
fn command(
    kind: Kind,
    address: SocketAddr,
    folder: &Path,
    how: How,
) -> Box<dyn Fn() -> Command + Send + Sync> {
    let home = servers().unwrap();
    let folder = folder.to_owned();
    let is_locked = how == How::Locked;
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    let data = folder.join("data");
    let mut words: Vec<String> = Vec::new();
    let mut add = |all: &[&str]| words.extend(all.iter().map(|word| (*word).to_owned()));
    let program = match kind {
        Kind::Local => PathBuf::from("true"),
        Kind::S3 => {
            add(&["-m", "moto.server", "-H", &host, "-p", &port]);
            home.join("python/bin/python")
        }
        Kind::Gcs => {
            let public = address.to_string();
            let url = format!("http://{address}");
            add(&[
                "-scheme", "http", "-backend", "memory", "-host", &host, "-port", &port,
            ]);
            add(&["-public-host", &public, "-external-url", &url]);
            home.join("bin/fake-gcs-server")
        }
        Kind::Azure => {
            let data = data.display().to_string();
            add(&[
                "--blobHost",
                &host,
                "--blobPort",
                &port,
                "--location",
                &data,
            ]);
            add(&["--silent", "--skipApiVersionCheck", "--disableTelemetry"]);
            home.join("node/node_modules/.bin/azurite-blob")
        }
        Kind::Oci => {
            let auth = match is_locked {
                true => format!(
                    "auth:\n  htpasswd:\n    realm: waft\n    path: {}\n",
                    folder.join("passwords").display()
                ),
                false => String::new(),
            };
            let config = format!(
                "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\n  \
                 delete:\n    enabled: {}\nhttp:\n  addr: {address}\n{auth}",
                data.display(),
                how != How::Keeping
            );
            let file = folder.join("registry.yml");
            std::fs::write(&file, config).unwrap();
            add(&["serve", &file.display().to_string()]);
            home.join("bin/docker-registry")
        }
        Kind::Http => {
            let auth = match is_locked {
                true => format!(
                    "auth_basic waft; auth_basic_user_file {};",
                    folder.join("plain").display()
                ),
                false => String::new(),
            };
            words.extend(nginx(
                &folder,
                address,
                &format!("root {}; {auth}", data.display()),
            ));
            home.join("bin/nginx")
        }
    };
    Box::new(move || {
        let mut command = Command::new(&program);
        command.args(&words).current_dir(&folder);
        if how == How::Guarded {
            command.env("INITIAL_NO_AUTH_ACTION_COUNT", "4");
        }
        command
    })
}

/// Writes what nginx is to do at an address, and returns its arguments.
fn nginx(folder: &Path, address: SocketAddr, server: &str) -> Vec<String> {
    let prefix = folder.display();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {prefix}/tmp;"))
        .concat();
    let config = format!(
        "daemon off; master_process off; pid {prefix}/pid; error_log stderr warn; worker_processes 1;\n\
         events {{}}\nhttp {{ access_log off; client_max_body_size 0; {temporary} \
         server {{ listen {address}; {server} }} }}\n",
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, config).unwrap();
    ["-p", &prefix.to_string(), "-c", &file.display().to_string()]
        .map(str::to_owned)
        .to_vec()
}

/// An nginx that stands before another server, and does with what passes what it is told.
pub(crate) struct Front {
    /// Where it is.
    pub(crate) address: SocketAddr,
    process: Process,
    _folder: TempDir,
}

impl Front {
    /// Starts one whose server has these lines of configuration.
    pub(crate) async fn start(server: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = free_port();
        let words = nginx(folder.path(), address, server);
        let mut command = Command::new(servers().unwrap().join("bin/nginx"));
        let process = Process::spawn(command.args(words).current_dir(&folder));
        until_up(address, "nginx").await;
        Self {
            address,
            process,
            _folder: folder,
        }
    }

    /// Stops it with SIGSTOP: whoever waits for it waits.
    pub(crate) fn freeze(&self) {
        self.process.freeze();
    }
}

async fn until_up(address: SocketAddr, what: &str) {
    let up = async {
        while tokio::net::TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    patient(what, up).await;
}
