//! `WAFT_HOME`: where everything of one user lies, and what is private in it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The folder that holds everything of one user. Nothing is made until something is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home(PathBuf);

/// How to reach the server that was started from this home.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// Its address.
    pub url: String,
    /// The token for it.
    pub token: String,
}

impl Home {
    /// Names a home.
    #[must_use]
    pub const fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// Returns the folder itself.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// Returns the file of settings.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.0.join("config.toml")
    }

    /// Returns the folder of the default storage.
    #[must_use]
    pub fn flows(&self) -> PathBuf {
        self.0.join("flows")
    }

    /// Returns the folder that outputs are kept in.
    #[must_use]
    pub fn results(&self) -> PathBuf {
        self.0.join("results")
    }

    /// Returns the folder of compiled code.
    #[must_use]
    pub fn code_cache(&self) -> PathBuf {
        self.0.join("cache").join("code")
    }

    /// Returns the folder that SDKs are unpacked into.
    #[must_use]
    pub fn sdk(&self) -> PathBuf {
        self.0.join("sdk")
    }

    /// Returns the file of the server's database.
    #[must_use]
    pub fn db(&self) -> PathBuf {
        self.0.join("server.db")
    }

    fn credentials_file(&self) -> PathBuf {
        self.0.join("credentials.toml")
    }

    fn secrets_file(&self) -> PathBuf {
        self.0.join("secrets.toml")
    }

    /// Reads what a server left here about itself, if one did.
    ///
    /// # Errors
    ///
    /// Fails if the file is there and cannot be read.
    pub fn credentials(&self) -> io::Result<Option<Credentials>> {
        read_toml(&self.credentials_file())
    }

    /// Leaves address and token of a server for the commands of this user.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be written.
    pub fn keep_credentials(&self, credentials: &Credentials) -> io::Result<()> {
        self.write_private(&self.credentials_file(), &to_toml(credentials)?)
    }

    /// Reads the secrets of the agents of this home, by name.
    ///
    /// # Errors
    ///
    /// Fails if the file is there and cannot be read.
    pub fn secrets(&self) -> io::Result<BTreeMap<String, String>> {
        Ok(read_toml(&self.secrets_file())?.unwrap_or_default())
    }

    /// Replaces the secrets.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be written; the old one is then as it was.
    pub fn keep_secrets(&self, secrets: &BTreeMap<String, String>) -> io::Result<()> {
        self.write_private(&self.secrets_file(), &to_toml(secrets)?)
    }

    /// Writes a file that only this user may read, whole or not at all.
    fn write_private(&self, file: &Path, text: &str) -> io::Result<()> {
        self.make()?;
        // A temporary file is made with mode 0600.
        let mut new = tempfile::NamedTempFile::new_in(&self.0)?;
        new.write_all(text.as_bytes())?;
        new.as_file().sync_all()?;
        new.persist(file).map_err(|error| error.error)?;
        Ok(())
    }

    /// Makes the folder, closed to other users, unless it is there.
    ///
    /// # Errors
    ///
    /// Fails if it cannot be made.
    pub fn make(&self) -> io::Result<()> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&self.0)
    }
}

fn read_toml<T: serde::de::DeserializeOwned>(file: &Path) -> io::Result<Option<T>> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // The parser would quote the line, and with it what is secret.
    let hidden = |error: toml::de::Error| io::Error::other(error.message().to_owned());
    toml::from_str(&text).map(Some).map_err(hidden)
}

fn to_toml(value: &impl Serialize) -> io::Result<String> {
    toml::to_string(value).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_kept_for_this_user_only() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::new(folder.path().join("home"));
        assert!(home.secrets().unwrap().is_empty());
        let secrets = BTreeMap::from([("key".to_owned(), "a \"quoted\"\nvalue".to_owned())]);
        home.keep_secrets(&secrets).unwrap();
        assert_eq!(home.secrets().unwrap(), secrets);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode(&home.secrets_file()), 0o600);
            assert_eq!(mode(home.folder()), 0o700);
        }
    }

    #[test]
    fn credentials_are_read_back_and_may_be_absent() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::new(folder.path().to_owned());
        assert_eq!(home.credentials().unwrap(), None);
        let credentials = Credentials {
            url: "http://127.0.0.1:4280".to_owned(),
            token: "waft_abc".to_owned(),
        };
        home.keep_credentials(&credentials).unwrap();
        assert_eq!(home.credentials().unwrap(), Some(credentials));
    }
}
