//! `WAFT_HOME`: where everything of one user lies, and what is private in it.

use std::collections::BTreeMap;
use std::fs::{self, File};
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

/// Says which file of a home is of no use.
#[derive(Debug, thiserror::Error)]
pub enum BadHome {
    /// It cannot be read.
    #[error("cannot read `{}`", file.display())]
    Unreadable {
        /// Which one.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be written.
    #[error("cannot write `{}`", file.display())]
    Unwritable {
        /// Which one.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The home itself cannot be made.
    #[error("cannot make the folder `{}`", folder.display())]
    Unmakable {
        /// Which one.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what this program wrote.
    // What stands in the line is not quoted, as it may be secret.
    #[error("`{}`, line {line}: expected NAME = \"TEXT\" and nothing else", file.display())]
    Line {
        /// Which one.
        file: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What to do.
        hint: &'static str,
    },
}

impl BadHome {
    /// Says what to do.
    #[must_use]
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Line { hint, .. } => Some(hint),
            Self::Unwritable { .. } | Self::Unmakable { .. } => {
                Some("WAFT_HOME=FOLDER names another home; it must be writable")
            }
            Self::Unreadable { .. } => None,
        }
    }
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

    /// Returns the folder of artifacts that were fetched.
    #[must_use]
    pub fn artifact_cache(&self) -> PathBuf {
        self.0.join("cache").join("artifacts")
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
    pub fn credentials(&self) -> Result<Option<Credentials>, BadHome> {
        let hint = "waft up writes it anew; without it: --server URL --token TOKEN";
        read_toml(self.credentials_file(), hint)
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
    pub fn secrets(&self) -> Result<BTreeMap<String, String>, BadHome> {
        let hint = "mend the line, or remove the file and set them again: waft secret set NAME";
        Ok(read_toml(self.secrets_file(), hint)?.unwrap_or_default())
    }

    /// Changes the secrets; who changes them at the same time waits, so that nobody's change is lost.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be read or written; the old one is then as it was.
    pub fn change_secrets<T>(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, String>) -> T,
    ) -> Result<T, BadHome> {
        let file = self.secrets_file();
        let unwritable = |source| BadHome::Unwritable {
            file: file.clone(),
            source,
        };
        // The file itself cannot be the lock, as it is replaced.
        let _lock = self.lock("secrets.lock").map_err(unwritable)?;
        let before = self.secrets()?;
        let mut secrets = before.clone();
        let answer = change(&mut secrets);
        if secrets != before {
            to_toml(&secrets)
                .and_then(|text| self.write_private(&file, &text))
                .map_err(unwritable)?;
        }
        Ok(answer)
    }

    /// Waits for a lock, which is held until the answer is dropped.
    fn lock(&self, name: &str) -> io::Result<File> {
        self.make().map_err(io::Error::other)?;
        let mut options = File::options();
        options.create(true).truncate(false).write(true);
        let file = options.open(self.0.join(name))?;
        file.lock()?;
        Ok(file)
    }

    /// Writes a file that only this user may read, whole or not at all.
    fn write_private(&self, file: &Path, text: &str) -> io::Result<()> {
        self.make().map_err(io::Error::other)?;
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
    pub fn make(&self) -> Result<(), BadHome> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder
            .create(&self.0)
            .map_err(|source| BadHome::Unmakable {
                folder: self.0.clone(),
                source,
            })
    }
}

fn read_toml<T: serde::de::DeserializeOwned>(
    file: PathBuf,
    hint: &'static str,
) -> Result<Option<T>, BadHome> {
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(BadHome::Unreadable { file, source }),
    };
    toml::from_str(&text)
        .map(Some)
        .map_err(|error| BadHome::Line {
            line: super::line_of(&text, error.span()),
            file,
            hint,
        })
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
        home.change_secrets(|kept| kept.clone_from(&secrets))
            .unwrap();
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
    fn changes_at_the_same_time_are_all_kept() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::new(folder.path().to_owned());
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let home = &home;
                scope.spawn(move || {
                    for nth in 0..20 {
                        let name = format!("{thread}-{nth}");
                        home.change_secrets(|secrets| secrets.insert(name, String::new()))
                            .unwrap();
                    }
                });
            }
        });
        assert_eq!(home.secrets().unwrap().len(), 80);
    }

    #[test]
    fn a_broken_file_is_named_with_its_line_and_without_what_is_secret() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::new(folder.path().to_owned());
        for broken in ["a = \"1\"\npin = 1234\n", "a = \"1\"\npin = 1234 ?\n"] {
            fs::write(home.secrets_file(), broken).unwrap();
            let error = home.secrets().unwrap_err();
            let text = error.to_string();
            assert!(text.contains("secrets.toml`, line 2: "), "{text}");
            assert!(!text.contains("1234"), "{text}");
            assert!(error.hint().unwrap().contains("waft secret set NAME"));
        }
        fs::write(home.credentials_file(), "url = \"x\"").unwrap();
        let text = home.credentials().unwrap_err().to_string();
        assert!(text.contains("credentials.toml`, line 1: "), "{text}");
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
