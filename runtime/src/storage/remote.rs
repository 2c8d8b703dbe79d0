//! Opens what lies behind a root that is no folder: a cloud, a registry, a web server.

use std::str::FromStr;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, header};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GcpCredential, GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::local::LocalFileSystem;
use object_store::prefix::PrefixStore;
use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, RetryConfig, StaticCredentialProvider,
};

use super::credentials::{OfMachine, Profile, Unusable, WebAuth, connection_string, web_auth};
use super::error::WHOLE;
use super::oci::Registry;
use super::root::Kind;
use super::wire::Connector;
use super::{Meter, Root, StorageError, folder};
use crate::config::Access;

/// What a caller waits for at most before a failed call is told, all tries of it together.
const RETRY: std::time::Duration = std::time::Duration::from_secs(15);

/// As `RETRY`, for the service of a machine of the cloud: less than one connection takes that comes about nowhere.
const RETRY_OF_MACHINE: std::time::Duration = std::time::Duration::from_secs(4);

/// Opens what lies behind a root as an `object_store`, for those who wrap it. Nothing is called yet.
///
/// Of a folder nothing is promised that [`Storage`](super::Storage) promises about links.
///
/// # Errors
///
/// Fails if the configuration of the storage cannot be understood, or a file of credentials not be read.
pub fn connect(root: &Root, access: &Access) -> Result<Arc<dyn ObjectStore>, StorageError> {
    match root.folder() {
        None => open(root, access, &Meter::default()),
        Some(folder) => {
            let opened = folder::make(folder).map(|()| LocalFileSystem::new_with_prefix(folder));
            match opened {
                Ok(Ok(store)) => Ok(Arc::new(store.with_fsync(true))),
                Ok(Err(error)) => Err(StorageError::of(root, WHOLE, error)),
                Err(error) => Err(StorageError::of(root, WHOLE, error)),
            }
        }
    }
}

/// Opens a root that is no folder.
pub(super) fn open(
    root: &Root,
    access: &Access,
    meter: &Meter,
) -> Result<Arc<dyn ObjectStore>, StorageError> {
    let opened = match root.kind() {
        Kind::S3 => s3(root, access, meter),
        Kind::Gcs => gcs(root, access, meter),
        Kind::Azure => azure(root, access, meter),
        Kind::Http => return web(root, access, meter),
        Kind::Oci => {
            let registry = Registry::open(root, access, meter);
            let registry = registry.map_err(|error| StorageError::of(root, WHOLE, error))?;
            return Ok(Arc::new(registry));
        }
        Kind::Local => {
            return Err(StorageError::of(
                root,
                WHOLE,
                "a folder is opened otherwise",
            ));
        }
    };
    let store = opened.map_err(|error| StorageError::of(root, WHOLE, error))?;
    Ok(match root.path() {
        "" => store,
        path => Arc::new(PrefixStore::new(store, path)),
    })
}

fn s3(root: &Root, access: &Access, meter: &Meter) -> object_store::Result<Arc<dyn ObjectStore>> {
    // Objects are deleted one at a time here, and every server that speaks like S3 can do that.
    let mut builder = AmazonS3Builder::new().with_disable_bulk_delete(true);
    for (key, value) in settings(access, "AWS_") {
        builder = builder.with_config(key, value);
    }
    let profile = Profile::load(access);
    let has_keys = access.variable("AWS_ACCESS_KEY_ID").is_some();
    let has_role = access.variable("AWS_WEB_IDENTITY_TOKEN_FILE").is_some();
    if !has_keys
        && !has_role
        && let (Some(id), Some(secret)) = (profile.key_id, profile.secret)
    {
        builder = builder
            .with_access_key_id(id)
            .with_secret_access_key(secret);
        if let Some(token) = profile.token {
            builder = builder.with_token(token);
        }
    }
    let regions = ["AWS_REGION", "AWS_DEFAULT_REGION"];
    let has_region = regions
        .into_iter()
        .any(|name| access.variable(name).is_some());
    let region = access
        .s3_region
        .clone()
        .or_else(|| profile.region.filter(|_| !has_region));
    if let Some(region) = region {
        builder = builder.with_region(region);
    }
    let named = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"];
    let named = named.into_iter().find_map(|name| access.variable(name));
    let endpoint = access.s3_endpoint.clone().or(named).or(profile.endpoint);
    if let Some(endpoint) = endpoint {
        builder = builder
            .with_allow_http(is_clear(&endpoint))
            .with_endpoint(endpoint);
    }
    builder = builder
        .with_bucket_name(root.place())
        .with_http_connector(Connector::new(meter));
    use AmazonS3ConfigKey as Key;
    let given = [
        Key::AccessKeyId,
        Key::SecretAccessKey,
        Key::WebIdentityTokenFile,
        Key::ContainerCredentialsRelativeUri,
        Key::ContainerCredentialsFullUri,
    ];
    let is_open = builder.get_config_value(&Key::SkipSignature).as_deref() == Some("true");
    if !is_open
        && given
            .iter()
            .all(|key| builder.get_config_value(key).is_none())
    {
        let machine = builder.clone().with_retry(retry_of_machine()).build()?;
        let looked = format!(
            "AWS_ACCESS_KEY_ID and AWS_WEB_IDENTITY_TOKEN_FILE are not set, the profile `{}` has no keys in \
             ~/.aws/credentials or ~/.aws/config",
            Profile::name(access)
        );
        builder = builder.with_credentials(Arc::new(OfMachine {
            service: machine.credentials().clone(),
            looked,
            machine: "the metadata service of an instance",
        }));
    }
    let store = builder.with_retry(retry()).build()?;
    Ok(Arc::new(store))
}

fn gcs(root: &Root, access: &Access, meter: &Meter) -> object_store::Result<Arc<dyn ObjectStore>> {
    let mut builder = GoogleCloudStorageBuilder::new();
    for (key, value) in settings(access, "GOOGLE_") {
        builder = builder.with_config(key, value);
    }
    let emulator =
        access
            .variable("STORAGE_EMULATOR_HOST")
            .map(|host| match host.contains("://") {
                true => host,
                false => format!("http://{host}"),
            });
    if emulator.is_some() && access.gcs_endpoint.is_none() {
        // The convention of Google's own clients: an emulator asks for no credentials.
        let nobody = GcpCredential {
            bearer: String::new(),
        };
        builder = builder
            .with_skip_signature(true)
            .with_credentials(Arc::new(StaticCredentialProvider::new(nobody)));
    }
    if let Some(endpoint) = access.gcs_endpoint.clone().or(emulator) {
        let options = ClientOptions::new().with_allow_http(is_clear(&endpoint));
        builder = builder
            .with_base_url(endpoint.trim_end_matches('/'))
            .with_client_options(options);
    }
    builder = builder
        .with_bucket_name(root.place())
        .with_http_connector(Connector::new(meter));
    use GoogleConfigKey as Key;
    let given = [
        Key::ServiceAccount,
        Key::ServiceAccountKey,
        Key::ApplicationCredentials,
    ];
    let is_open = builder.get_config_value(&Key::SkipSignature).as_deref() == Some("true");
    let of_tool = access.at_home(".config/gcloud/application_default_credentials.json");
    let has_file = of_tool.is_some_and(|file| file.exists());
    let is_given = given
        .iter()
        .any(|key| builder.get_config_value(key).is_some());
    if !is_open && !has_file && !is_given {
        let machine = builder.clone().with_retry(retry_of_machine()).build()?;
        builder = builder.with_credentials(Arc::new(OfMachine {
            service: machine.credentials().clone(),
            looked: "GOOGLE_APPLICATION_CREDENTIALS and GOOGLE_SERVICE_ACCOUNT are not set, there is no \
                     ~/.config/gcloud/application_default_credentials.json"
                .to_owned(),
            machine: "the metadata service of an instance",
        }));
    }
    let store = builder.with_retry(retry()).build()?;
    Ok(Arc::new(store))
}

fn azure(
    root: &Root,
    access: &Access,
    meter: &Meter,
) -> object_store::Result<Arc<dyn ObjectStore>> {
    let mut builder = MicrosoftAzureBuilder::new();
    for (key, value) in settings(access, "AZURE_") {
        builder = builder.with_config(key, value);
    }
    if let Some(endpoint) = access.variable("IDENTITY_ENDPOINT") {
        builder = builder.with_msi_endpoint(endpoint);
    }
    let text = access
        .variable("AZURE_STORAGE_CONNECTION_STRING")
        .unwrap_or_default();
    let told = connection_string(&text);
    let told = |name: &str| told.get(name).map(|value| (*value).to_owned());
    let account = access
        .azure_account
        .clone()
        .or_else(|| access.variable("AZURE_STORAGE_ACCOUNT"));
    if let Some(account) = account.or_else(|| told("AccountName")) {
        builder = builder.with_account(account);
    }
    let key = access
        .variable("AZURE_STORAGE_KEY")
        .or_else(|| told("AccountKey"));
    if let Some(key) = key {
        builder = builder.with_access_key(key);
    }
    if let Some(signature) = told("SharedAccessSignature") {
        builder = builder.with_config(AzureConfigKey::SasKey, signature);
    }
    let endpoint = access.azure_endpoint.clone();
    let endpoint = endpoint.or_else(|| access.variable("AZURE_STORAGE_ENDPOINT"));
    if let Some(endpoint) = endpoint.or_else(|| told("BlobEndpoint")) {
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        builder = builder
            .with_allow_http(is_clear(&endpoint))
            .with_endpoint(endpoint);
    }
    builder = builder
        .with_container_name(root.place())
        .with_http_connector(Connector::new(meter));
    use AzureConfigKey as Key;
    let has = |key: Key| builder.get_config_value(&key).is_some();
    let is = |key: Key| builder.get_config_value(&key).as_deref() == Some("true");
    if !has(Key::AccountName) && !is(Key::UseEmulator) {
        let why = "no account is named: AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_CONNECTION_STRING and \
                   `storage.azure.account` say nothing";
        return Err(object_store::Error::Generic {
            store: "Azure",
            source: Box::new(Unusable::new(why.to_owned())),
        });
    }
    let is_given = [
        Key::AccessKey,
        Key::SasKey,
        Key::Token,
        Key::ClientSecret,
        Key::FederatedTokenFile,
    ]
    .into_iter()
    .any(has);
    let is_open = [Key::SkipSignature, Key::UseEmulator, Key::UseAzureCli]
        .into_iter()
        .any(is);
    if !is_given && !is_open {
        let machine = builder.clone().with_retry(retry_of_machine()).build()?;
        builder = builder.with_credentials(Arc::new(OfMachine {
            service: machine.credentials().clone(),
            looked: "AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_KEY, AZURE_CLIENT_SECRET and \
                     AZURE_FEDERATED_TOKEN_FILE are not set, AZURE_STORAGE_CONNECTION_STRING has no key"
                .to_owned(),
            machine: "the managed identity of a machine",
        }));
    }
    let store = builder.with_retry(retry()).build()?;
    Ok(Arc::new(store))
}

fn web(root: &Root, access: &Access, meter: &Meter) -> Result<Arc<dyn ObjectStore>, StorageError> {
    let error = |error| StorageError::of(root, WHOLE, error);
    let value =
        match web_auth(access, root).map_err(|source| StorageError::of(root, WHOLE, source))? {
            None => None,
            Some(WebAuth::Bearer(token)) => Some(format!("Bearer {token}")),
            Some(WebAuth::Basic(login, password)) => {
                use base64::Engine as _;
                let pair = base64::prelude::BASE64_STANDARD.encode(format!("{login}:{password}"));
                Some(format!("Basic {pair}"))
            }
        };
    let mut headers = HeaderMap::new();
    if let Some(value) = value {
        let mut value = HeaderValue::try_from(value).map_err(|_| {
            StorageError::of(
                root,
                WHOLE,
                "the credentials hold characters that no header takes",
            )
        })?;
        value.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, value);
    }
    let options = ClientOptions::new()
        .with_allow_http(root.is_plain_text())
        .with_default_headers(headers.clone());
    let store = HttpBuilder::new()
        .with_url(root.to_string().trim_end_matches('/'))
        .with_client_options(options)
        .with_retry(retry())
        .with_http_connector(Connector::with_headers(meter, headers))
        .build()
        .map_err(error)?;
    Ok(Arc::new(store))
}

/// Returns what the variables of a family say, as settings of `object_store`; it knows the same names.
fn settings<'a, K: FromStr>(
    access: &'a Access,
    family: &'static str,
) -> impl Iterator<Item = (K, &'a String)> {
    let all = access.family(family);
    all.filter_map(|(name, value)| Some((name.parse().ok()?, value)))
}

fn is_clear(endpoint: &str) -> bool {
    endpoint.starts_with("http://")
}

/// As `retry`, for a service that answers at once where there is one, and is often not there.
fn retry_of_machine() -> RetryConfig {
    RetryConfig {
        retry_timeout: RETRY_OF_MACHINE,
        ..retry()
    }
}

fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: std::time::Duration::from_millis(100),
            max_backoff: std::time::Duration::from_secs(2),
            base: 2.0,
        },
        max_retries: 4,
        retry_timeout: RETRY,
    }
}
