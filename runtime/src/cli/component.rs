//! Components: found or compiled, prepared and described, for every command that takes one.

use std::fs::File;
use std::io::{self, Read, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};
use tempfile::TempPath;

use super::failure::{Done, Failure};
use super::{Call, build, cache, command, power, preview1};
use crate::model::artifact::Digest;
use crate::model::flow::{Definition, Described};
use crate::sandbox::{Compiler, Kind, Prepared, Sandbox, SandboxError, Settings};

/// The component that a command is about.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Which {
    /// A component (`.wasm`), a core module for WASI preview 1, which is made into one, or the folder
    /// of a project, which is compiled first.
    #[arg(value_name = "FILE|PATH")]
    pub(crate) place: PathBuf,
    #[command(flatten)]
    pub(crate) flags: command::Flags,
    /// How it is named to people, where that is not its place.
    #[arg(skip)]
    pub(crate) shown: Option<String>,
}

/// A component that is ready to run, and what it is.
pub(crate) struct Component {
    /// Where its bytes lie.
    pub(crate) path: PathBuf,
    /// The digest of its bytes.
    pub(crate) digest: Digest,
    /// How many bytes it has.
    pub(crate) size: u64,
    /// It, compiled and linked.
    pub(crate) prepared: Arc<Prepared>,
    /// What it says about itself, or `waft.toml` about it.
    pub(crate) described: Arc<Described>,
    /// The bytes as they were when the digest was made, whatever becomes of the file.
    pub(crate) copy: TempPath,
    /// Whether the file holds a core module, of which the component was made.
    pub(crate) is_adapted: bool,
}

/// Makes the one sandbox of this process.
///
/// # Errors
///
/// Fails if the folder of compiled code cannot be used.
pub(crate) fn sandbox(call: &Call, stores_max: usize) -> Done<Sandbox> {
    let program = std::env::current_exe().map_err(|error| {
        anyhow::Error::new(error).context("cannot find the program `waft` itself")
    })?;
    call.config.home.make()?;
    let mut settings = Settings::new(
        Compiler::Child(program),
        call.config.home.code_cache(),
        stores_max,
    );
    settings.code_bytes_max = cache::code_bytes_max(call);
    Sandbox::new(settings).map_err(Failure::from)
}

/// Makes the one sandbox of a process that only looks at a component: as large as that of an agent
/// here, so that what is refused to its author is what such an agent would refuse.
///
/// # Errors
///
/// As for [`sandbox`].
pub(crate) fn sandbox_of_agent(call: &Call) -> Done<Sandbox> {
    sandbox(call, power::Flags::default().parallel(call))
}

/// How long a compilation may take before it is said that there is one.
const PATIENCE: Duration = Duration::from_secs(1);
/// How the copies of components in the home are called.
pub(super) const COPY_PREFIX: &str = "component-";
/// Bytes of a component that are copied at a time.
const COPY_PIECE: usize = 1024 * 1024;
/// A copy that old was left by a command that was killed.
const LEFT_BEHIND: SignedDuration = SignedDuration::from_hours(24);

/// Takes away copies that commands left when they were killed. What fails is left to the next.
fn sweep(home: &Path, now: Timestamp) {
    let Ok(entries) = std::fs::read_dir(home) else {
        return;
    };
    for entry in entries.flatten() {
        let is_copy = entry.file_name().to_string_lossy().starts_with(COPY_PREFIX);
        let at = entry.metadata().and_then(|about| about.modified());
        let at = at.ok().and_then(|at| Timestamp::try_from(at).ok());
        let is_old = at.is_some_and(|at| now.duration_since(at) > LEFT_BEHIND);
        if is_copy && is_old {
            let _ = std::fs::remove_file(entry.path());
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Copies a component into the home, piece by piece, and hashes what it copies.
fn copied(call: &Call, mut component: impl Read) -> io::Result<(TempPath, Digest, u64)> {
    let mut copy = tempfile::Builder::new()
        .prefix(COPY_PREFIX)
        .tempfile_in(call.config.home.folder())?;
    let mut hasher = Sha256::new();
    let mut size = 0;
    let mut piece = vec![0; COPY_PIECE];
    loop {
        let length = match component.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&piece[..length]);
        copy.write_all(&piece[..length])?;
        size += length as u64;
    }
    let digest = Digest::from_bytes(hasher.finalize().into());
    Ok((copy.into_temp_path(), digest, size))
}

/// Makes a component ready, and says so to who watches if that takes its time.
async fn prepare(
    call: &Call,
    sandbox: &Sandbox,
    digest: Digest,
    copy: &Path,
    shown: &str,
) -> Result<Arc<Prepared>, SandboxError> {
    let preparing = sandbox.prepare(digest, copy);
    tokio::pin!(preparing);
    match tokio::time::timeout(PATIENCE, &mut preparing).await {
        Ok(prepared) => prepared,
        Err(_) => {
            if call.output.is_terminal() {
                let what = format!("compiling `{shown}`, once for this machine");
                call.output.note(what);
            }
            preparing.await
        }
    }
}

impl Which {
    /// Finds or compiles the component, makes it ready, and asks what it is.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the place, the project or the component.
    pub(crate) async fn load(&self, call: &Call, sandbox: &Sandbox) -> Done<Component> {
        let (path, folder) = self.locate(call)?;
        let shown = self.shown.clone();
        let shown = shown.unwrap_or_else(|| path.display().to_string());
        let read = |error| anyhow::Error::new(error).context(format!("cannot read `{shown}`"));
        let size = std::fs::metadata(&path).map_err(read)?.len();
        let size_max = call.config.artifact_max();
        if size > size_max {
            let what = format!("`{shown}` has {size} bytes; at most {size_max} are taken");
            return Err(
                Failure::could(what).or_hint("raise `agent.max.artifact` here and for the agents")
            );
        }
        let refused = |error| refusal(error, &shown);
        sweep(call.config.home.folder(), call.clock.now());
        let mut file = File::open(&path).map_err(read)?;
        let mut head = Vec::new();
        (&file)
            .take(preview1::HEAD_BYTES)
            .read_to_end(&mut head)
            .map_err(read)?;
        let component = match preview1::is_module(&head) {
            // Who adapts a module needs all of it at once.
            true => {
                let mut module = head.clone();
                let rest = (&file).take(size_max).read_to_end(&mut module);
                rest.map_err(read)?;
                preview1::adapted(&module).map_err(refused)?
            }
            false => None,
        };
        let is_adapted = component.is_some();
        let made = match component {
            Some(component) => {
                call.output.note(format_args!(
                    "adapted `{shown}`, a core module for WASI preview 1, to a component"
                ));
                copied(call, component.as_slice())
            }
            None => file
                .rewind()
                .and_then(|()| copied(call, file.take(size_max))),
        };
        let (copy, digest, size) = made.map_err(|error| {
            let home = call.config.home.folder().display();
            let what = format!("cannot copy the component into `{home}`");
            anyhow::Error::new(error).context(what)
        })?;
        let prepared = prepare(call, sandbox, digest, &copy, &shown)
            .await
            .map_err(refused)?;
        let described = match prepared.kind() {
            Kind::Flow if !self.flags.is_empty() => {
                let what = format!("`{shown}` is a flow and says itself what it is");
                return Err(
                    Failure::could(what).or_hint("leave out `--name`, `--net` and the like")
                );
            }
            Kind::Flow => sandbox.describe(&prepared).await.map_err(refused)?,
            Kind::Command => Described {
                definition: self.flags.definition(&path, &folder)?,
                constants: std::collections::HashMap::new(),
            },
        };
        Ok(Component {
            size,
            path,
            digest,
            prepared,
            described: Arc::new(described),
            copy,
            is_adapted,
        })
    }

    /// Returns the file, and the folder in which a `waft.toml` may lie.
    fn locate(&self, call: &Call) -> Done<(PathBuf, PathBuf)> {
        let place = &self.place;
        let about = match std::fs::metadata(place) {
            Ok(about) => about,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Failure::could(format!("there is no `{}`", place.display()))
                    .or_hint("give a .wasm file or the folder of a flow project"));
            }
            Err(error) => {
                let what = format!("cannot look at `{}`", place.display());
                return Err(anyhow::Error::new(error).context(what).into());
            }
        };
        if about.is_dir() {
            return Ok((build::compile(place, call)?, place.clone()));
        }
        if !about.is_file() {
            return Err(Failure::could(format!(
                "`{}` is not a file",
                place.display()
            )));
        }
        if place.file_name().is_some_and(|name| name == "Cargo.toml") {
            let folder = parent(place);
            return Ok((build::compile(&folder, call)?, folder));
        }
        Ok((place.clone(), parent(place)))
    }
}

impl Component {
    /// Returns what it is.
    pub(crate) fn definition(&self) -> &Definition {
        &self.described.definition
    }

    /// Returns what all its tasks ask for together, in words.
    pub(crate) fn grants(&self) -> Vec<String> {
        self.definition().needs().grants.lines()
    }
}

fn parent(file: &Path) -> PathBuf {
    match file.parent() {
        Some(folder) if folder != Path::new("") => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Says in the user's terms why a component was refused.
fn refusal(error: SandboxError, shown: &str) -> Failure {
    match error {
        SandboxError::Rejected { code, message } => {
            let hint = match code {
                "rejected.format" => Some("a flow is a WASI component: waft build makes one"),
                "rejected.imports" => Some("waft provides waft:flow and WASI 0.2, nothing else"),
                _ => None,
            };
            let failure = Failure::could(format!("{message} ({code})"))
                .context(format!("`{shown}` cannot be used"));
            match hint {
                Some(hint) => failure.or_hint(hint),
                None => failure,
            }
        }
        SandboxError::Host(cause) => {
            Failure::new(cause.context(format!("cannot prepare `{shown}`")))
        }
    }
}
