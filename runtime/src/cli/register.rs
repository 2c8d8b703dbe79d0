//! `waft register`: makes a flow known to a server.
//!
//! The component goes to the storage first and is durable there; only then its metadata goes to the
//! server, which never sees the component. A registration that is cut off in between leaves a file
//! that nobody names, and can simply be made again.

use anyhow::Context as _;
use serde_json::json;

use super::Call;
use super::argument::{label, name};
use super::component::{Component, Which, sandbox_of_agent};
use super::failure::{Done, Failure};
use super::flow::version_of;
use super::progress::with_bar;
use super::reach::Reach;
use super::stored::{self, is_stored};
use super::{agent, words};
use crate::client::Client;
use crate::config::hostname;
use crate::model::label::Labels;
use crate::storage::{Before, Put, Root, Storage};
use crate::wire::{ListQuery, Location, RegisterQuery, Registered, Registration};

/// Makes a flow known to the server: stores its component, and posts what it is.
///
/// The same component and metadata again change nothing, but that a component which is damaged in its storage,
/// or missing there, is put anew. A version that asks for more than the last one did is registered only after
/// a question.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  waft register . --project demo
  waft register flow.wasm --project demo --label gpu --storage file:///srv/flows
  waft register wordcount.wasm --project demo --name wordcount --dir /data:ro
  waft register flow.wasm --project demo --storage s3://bucket/flows
  waft register oci://registry.example.com/team/flow:1.2 --project demo

A component that lies in a storage already (s3://, gs://, az://, oci://, https://) is registered
where it is; a core module for WASI preview 1 is adapted, and the component goes to the default
storage, or where --storage says.")]
pub(super) struct Args {
    #[command(flatten)]
    which: Which,
    /// The project.
    #[arg(long, value_name = "NAME", value_parser = name)]
    project: String,
    /// Where the component goes; `[flows.defaults.storage]`, else a folder of this home.
    #[arg(long, value_name = "ROOT")]
    storage: Option<Root>,
    /// A label that an agent must offer to run it. Repeatable.
    #[arg(long, value_parser = label)]
    label: Vec<String>,
    /// The name that the flow has had so far, where this version gives it a new one: versions, runs, slots and
    /// whether its schedule rests stay with it.
    #[arg(long, value_name = "OLD", value_parser = name)]
    renames: Option<String>,
    /// Leaves out the label of the storage, which for a local folder is the name of this machine.
    #[arg(long)]
    no_auto_labels: bool,
    /// Lets the schedule of the flow rest until `waft flow resume`, also if it was registered before.
    #[arg(long)]
    paused: bool,
    /// Then starts an agent here for this project, as `waft agent start` does: with these labels and
    /// this storage, and with what config.toml allows.
    #[arg(long)]
    start_agent: bool,
    /// Answers the question about more grants beforehand.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    reach: Reach,
}

pub(super) fn run(mut args: Args, call: &Call) -> Done {
    let client = args.reach.client(call)?;
    let root = match &args.storage {
        Some(root) => root.clone(),
        None => default_root(call)?,
    };
    call.wait(async {
        // Before a compilation that takes minutes and would be for nothing.
        check_project(&client, &args.project).await?;
        let place = args.which.place.to_string_lossy().into_owned();
        let stored = match is_stored(&place) {
            true => Some(stored::fetch(&place, args.storage.as_ref(), call).await?),
            false => None,
        };
        if let Some(stored) = &stored {
            args.which.place.clone_from(&stored.path);
            args.which.shown = Some(place.clone());
        }
        let component = args.which.load(call, &sandbox_of_agent(call)?).await?;
        let added = added_grants(&client, &args, &component).await?;
        show_grants(&component, &added, call);
        if !added.is_empty() {
            let flow = &component.definition().name;
            let question = format!(
                "this version of `{flow}` asks for more than the last: {}; register it?",
                added.join(", ")
            );
            call.output
                .ask(&question, args.yes, "nothing was registered")?;
        }
        // What was adapted lies nowhere yet.
        let stored = stored.filter(|_| !component.is_adapted);
        let (root, put) = match &stored {
            Some(stored) => {
                let (key, before) = (stored.key.clone(), Before::Whole);
                (stored.root.clone(), Put { key, before })
            }
            None => {
                let put = put(&root, &component, call).await?;
                (root, put)
            }
        };
        if let Some(image) = stored.as_ref().and_then(|stored| stored.image.as_deref()) {
            pin(&root, image, &component, call).await;
        }
        let key = put.key.clone();
        let registered = post(&args, &client, (&root, key), &component).await?;
        if stored.is_none() {
            name_version(&root, &args.project, &component, &registered, call).await;
        }
        tell(&args.project, &component, (&root, &put), &registered, call)?;
        if stored.is_some() {
            let note = format!("it stays where it is: agents fetch it with --root {root}");
            call.output.note(note);
        } else if is_stored(&place) {
            let note = format!("the component went to `{root}`");
            call.output.note(note);
        }
        if args.paused && registered.version == 1 {
            let name = &component.definition().name;
            call.output.note(format!(
                "its schedule rests: waft flow resume {}/{name} lets it go on",
                args.project
            ));
        }
        match args.start_agent {
            true => start_agent(args, client, root, call).await,
            false => Ok(()),
        }
    })
}

/// Fails as the registration would if the project is unknown, or the token opens nothing.
async fn check_project(client: &Client, project: &str) -> Done {
    let query = ListQuery {
        project: Some(project.to_owned()),
        limit: Some(1),
        ..ListQuery::default()
    };
    let listed = client.list_flows(&query).await;
    listed
        .with_context(|| format!("cannot register in the project `{project}`"))
        .map(drop)
        .map_err(Failure::from)
}

/// Runs an agent that can take what was just registered, until it is interrupted.
async fn start_agent(args: Args, client: Client, root: Root, call: &Call) -> Done {
    let flags = agent::Flags::of_project(args.project, args.label, root);
    agent::run_one(&flags, client, false, call).await
}

/// Reads the configured storage root.
pub(super) fn default_root(call: &Call) -> Done<Root> {
    let text = call.config.storage_root();
    text.parse::<Root>().map_err(|error| {
        let what = "the configured `flows.defaults.storage.root` is not usable";
        Failure::from(anyhow::Error::new(error).context(what)).of(super::Kind::Usage)
    })
}

/// Lists what this version asks for and the last one did not; nothing if there was none.
async fn added_grants(client: &Client, args: &Args, component: &Component) -> Done<Vec<String>> {
    let mut last = None;
    // What is renamed already has its new name.
    for name in args.renames.iter().chain([&component.definition().name]) {
        let name = format!("{}/{name}", args.project);
        match version_of(client, &name, None).await {
            Ok(version) => last = last.or(Some(version.definition.needs().grants.lines())),
            Err(failure) if failure.refusal() == Some("flow-unknown") => {}
            Err(failure) => return Err(failure),
        }
    }
    let Some(last) = last else {
        return Ok(Vec::new());
    };
    let mut lines = component.grants();
    lines.retain(|line| !last.contains(line));
    Ok(lines)
}

fn show_grants(component: &Component, added: &[String], call: &Call) {
    for task in &component.definition().tasks {
        for line in task.grants.lines() {
            let new = if added.contains(&line) { " (new)" } else { "" };
            call.output
                .note(format!("task `{}` asks for {line}{new}", task.name));
        }
    }
}

/// Puts the component into a storage.
async fn put(root: &Root, component: &Component, call: &Call) -> Done<Put> {
    let stored = async {
        let storage = Storage::open(root, &call.config.access())?;
        let flow = &component.definition().name;
        let put = storage.put_artifact(&component.copy, component.digest, component.size, flow);
        with_bar("storing", component.size, &storage.meter(), put, call).await
    };
    stored.await.map_err(|error| {
        let hint = error.hint();
        let what = format!("cannot store the component in `{root}`");
        let failure = Failure::from(anyhow::Error::new(error).context(what));
        match hint {
            Some(hint) => failure.or_hint(hint),
            None => failure,
        }
    })
}

async fn post(
    args: &Args,
    client: &Client,
    (root, key): (&Root, String),
    component: &Component,
) -> Done<Registered> {
    let mut labels = Labels::from_iter(args.label.iter().cloned());
    if !args.no_auto_labels {
        labels.insert(root.auto_label(&hostname()));
    }
    let registration = Registration {
        definition: component.definition().clone(),
        artifact: component.digest,
        artifact_size: component.size,
        location: Location {
            root: root.to_string(),
            key,
        },
        labels,
        is_paused: args.paused,
    };
    let query = RegisterQuery {
        renames: args.renames.clone(),
    };
    client
        .register_with(&args.project, &registration, &query)
        .await
        .with_context(|| format!("cannot register `{}`", component.definition().name))
        .map_err(Failure::from)
}

/// Gives what was stored the name of its version, for those who look into a registry. What cannot be
/// named is registered all the same.
async fn name_version(
    root: &Root,
    project: &str,
    component: &Component,
    registered: &Registered,
    call: &Call,
) {
    let flow = &component.definition().name;
    let version = (project, flow.as_str(), registered.version);
    let named = match Storage::open(root, &call.config.access()) {
        Ok(storage) => storage.name_version(component.digest, version).await,
        Err(error) => Err(error),
    };
    if let Err(error) = named {
        let why = anyhow::Error::new(error);
        call.output.note(format!(
            "it has no tag of its version in the registry: {why:#}"
        ));
    }
}

/// Has a registry keep what somebody else pushed there, for as long as a version needs it. Where that cannot
/// be, it is registered all the same.
async fn pin(root: &Root, image: &str, component: &Component, call: &Call) {
    let pinned = match Storage::open(root, &call.config.access()) {
        Ok(storage) => storage.pin(image, component.digest).await,
        Err(error) => Err(error),
    };
    if let Err(error) = pinned {
        let why = anyhow::Error::new(error);
        call.output.note(format!(
            "it has no tag of waft's in the registry, which may throw it away once `{image}` is another \
             image: {why:#}"
        ));
    }
}

fn tell(
    project: &str,
    component: &Component,
    (root, put): (&Root, &Put),
    registered: &Registered,
    call: &Call,
) -> Done {
    let definition = component.definition();
    let word = if registered.is_new {
        "registered"
    } else {
        "unchanged"
    };
    match &put.before {
        Before::Damaged(got) => call.output.note(format_args!(
            "repaired `{}` in `{root}`: it was {got}",
            put.key
        )),
        Before::Absent if !registered.is_new => call.output.note(format_args!(
            "stored `{}` in `{root}`, where it was not",
            put.key
        )),
        _ => {}
    }
    if call.output.is_json() {
        return call.output.json(&json!({
            "status": word,
            "id": registered.flow_version_id,
            "flow": definition.name,
            "flow_id": registered.flow_id,
            "flow_version_id": registered.flow_version_id,
            "project": project,
            "version": registered.version,
            "artifact": component.digest,
            "size": component.size,
            "storage": root.to_string(),
            "stored": match put.before {
                Before::Absent => "new",
                Before::Damaged(_) => "repaired",
                Before::Whole | Before::Unseen => "kept",
            },
            "grants": definition.needs().grants,
            "added_grants": registered.added_grants,
        }));
    }
    call.output.line(format_args!(
        "{word} {project}/{} version {} ({}, {})",
        definition.name,
        registered.version,
        component.digest.to_short(),
        words::size(component.size),
    ))
}
