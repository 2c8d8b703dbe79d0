//! The section `[storage]`: how storages are reached, beside what their roots say.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};

use super::{Config, home_folder, variables};

/// The section `[storage]`: how storages are reached, beside what their roots say. Credentials come from
/// each ecosystem's own files and variables.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Storage {
    /// Amazon S3 and what speaks like it.
    pub s3: S3,
    /// Google Cloud Storage.
    pub gcs: Gcs,
    /// Azure Blob Storage.
    pub azure: Azure,
    /// Web servers.
    pub http: Web,
}

/// The section `[storage.s3]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct S3 {
    /// The URL of a server in place of Amazon's; `AWS_ENDPOINT_URL` does as well.
    pub endpoint: Option<String>,
    /// The region of the buckets; `AWS_REGION` does as well.
    pub region: Option<String>,
}

/// The section `[storage.gcs]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gcs {
    /// The URL of a server in place of Google's; `STORAGE_EMULATOR_HOST` does for an emulator.
    pub endpoint: Option<String>,
}

/// The section `[storage.azure]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Azure {
    /// The URL of a server in place of Azure's, with the account in its path where it has no host of its own.
    pub endpoint: Option<String>,
    /// The storage account; `AZURE_STORAGE_ACCOUNT_NAME` does as well.
    pub account: Option<String>,
}

/// The section `[storage.http]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Web {
    /// `HOST=FILE`: the file holds the bearer token of that host. Logins come from `~/.netrc`.
    #[serde(serialize_with = "as_tokens", deserialize_with = "tokens")]
    pub tokens: BTreeMap<String, PathBuf>,
}

/// What the configuration and the environment say about storages beside their roots.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// The URL of a server that speaks S3, in place of Amazon's.
    pub s3_endpoint: Option<String>,
    /// The region of the buckets.
    pub s3_region: Option<String>,
    /// The URL of a server that speaks like Google's.
    pub gcs_endpoint: Option<String>,
    /// The URL of a server that speaks like Azure's, with the account in its path.
    pub azure_endpoint: Option<String>,
    /// The name of the storage account.
    pub azure_account: Option<String>,
    /// The file that holds the bearer token of a web server, by host and port.
    pub http_tokens: BTreeMap<String, PathBuf>,
    /// The variables by which each ecosystem is told of credentials and endpoints.
    pub variables: BTreeMap<String, String>,
    /// The home of the user, where `.aws`, `.docker` and `.netrc` lie.
    pub home: Option<PathBuf>,
}

// Variables hold keys.
impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Access(..)")
    }
}

impl Access {
    /// Tells whether a variable is one of those that storages are opened by.
    #[must_use]
    pub fn is_variable(name: &str) -> bool {
        let families = ["AWS_", "AZURE_", "GOOGLE_", "STORAGE_EMULATOR_"];
        let single = ["DOCKER_CONFIG", "NETRC", "IDENTITY_ENDPOINT"];
        families.iter().any(|family| name.starts_with(family)) || single.contains(&name)
    }

    /// Returns a variable that is set to something.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<String> {
        self.variables
            .get(name)
            .filter(|value| !value.is_empty())
            .cloned()
    }

    /// Returns the variables of a family, named as `object_store` names its settings.
    pub fn family(&self, prefix: &'static str) -> impl Iterator<Item = (String, &String)> {
        let own = self
            .variables
            .iter()
            .filter(move |(name, _)| name.starts_with(prefix));
        own.map(|(name, value)| (name.to_ascii_lowercase(), value))
    }

    /// Returns a path below the home of the user.
    #[must_use]
    pub fn at_home(&self, path: &str) -> Option<PathBuf> {
        self.home.as_ref().map(|home| home.join(path))
    }
}

impl Config {
    /// Returns how storages are reached.
    #[must_use]
    pub fn access(&self) -> Access {
        let storage = &self.settings.storage;
        Access {
            s3_endpoint: storage.s3.endpoint.clone(),
            s3_region: storage.s3.region.clone(),
            gcs_endpoint: storage.gcs.endpoint.clone(),
            azure_endpoint: storage.azure.endpoint.clone(),
            azure_account: storage.azure.account.clone(),
            http_tokens: storage.http.tokens.clone(),
            variables: variables(Access::is_variable),
            home: home_folder(),
        }
    }
}

fn tokens<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, PathBuf>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let parsed = texts.iter().map(|text| match text.split_once('=') {
        Some((host, file)) if !host.is_empty() && file.starts_with('/') => {
            Ok((host.to_owned(), PathBuf::from(file)))
        }
        _ => Err(format!(
            "`{}` is no `HOST=FILE`, such as `files.example.com=/run/secrets/token`",
            text.escape_debug()
        )),
    });
    parsed
        .collect::<Result<_, _>>()
        .map_err(serde::de::Error::custom)
}

fn as_tokens<S: serde::Serializer>(
    tokens: &BTreeMap<String, PathBuf>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(
        tokens
            .iter()
            .map(|(host, file)| format!("{host}={}", file.display())),
    )
}
