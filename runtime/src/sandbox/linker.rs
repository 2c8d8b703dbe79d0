//! Everything a component may import, linked: all of WASI 0.2 with outgoing HTTP, and ours.
//!
//! Linked is not granted: an interface whose power was not granted answers *denied*. An import that
//! is not here stops a component before it ever runs.

use wasmtime::Engine;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, HasSelf, InstancePre, Linker, Type};
use wasmtime_wasi::p2::bindings::sockets::{ip_name_lookup, tcp_create_socket};

use super::bindings::exports::waft::flow::{definition, tasks};
use super::bindings::waft::flow::{cards, log, run, secrets};
use super::ctx::RunCtx;
use super::host::cards::Cards;
use super::host::log::{Log, cleaned};
use super::host::run::Run;
use super::host::secrets::Vault;
use super::socket::HasSockets;
use super::{Kind, SandboxError};

/// Bytes of the linker's words that are kept; they hold names of the guest.
const WHY_BYTES_MAX: usize = 1_000;

/// Links every interface.
pub(crate) fn link(engine: &Engine) -> wasmtime::Result<Linker<RunCtx>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    // Two of WASI's are answered by us (`socket.rs`).
    linker.allow_shadowing(true);
    ip_name_lookup::add_to_linker::<_, HasSockets>(&mut linker, RunCtx::sockets)?;
    tcp_create_socket::add_to_linker::<_, HasSockets>(&mut linker, RunCtx::sockets)?;
    linker.allow_shadowing(false);
    run::add_to_linker::<_, HasSelf<Run>>(&mut linker, |ctx| &mut ctx.run)?;
    log::add_to_linker::<_, HasSelf<Log>>(&mut linker, |ctx| &mut ctx.log)?;
    secrets::add_to_linker::<_, HasSelf<Vault>>(&mut linker, |ctx| &mut ctx.vault)?;
    cards::add_to_linker::<_, HasSelf<Cards>>(&mut linker, |ctx| &mut ctx.cards)?;
    Ok(linker)
}

/// A flow, and where its two interfaces lie.
///
/// Each is loaded where it is called, which checks its types: an attempt does not pay for those of
/// `describe`, which are many.
pub(crate) struct Flow {
    pub(crate) pre: InstancePre<RunCtx>,
    pub(crate) definition: definition::GuestIndices,
    pub(crate) tasks: tasks::GuestIndices,
}

impl Flow {
    fn new(pre: InstancePre<RunCtx>) -> wasmtime::Result<Self> {
        let definition = definition::GuestIndices::new(&pre)?;
        let tasks = tasks::GuestIndices::new(&pre)?;
        Ok(Self {
            pre,
            definition,
            tasks,
        })
    }
}

/// A component with all its imports resolved, and its entry found.
pub(crate) enum Linked {
    Flow(Flow),
    Command(wasmtime_wasi::p2::bindings::CommandPre<RunCtx>),
}

impl Linked {
    /// Resolves the imports of a component and finds out what it is.
    pub(crate) fn new(
        linker: &Linker<RunCtx>,
        component: &Component,
    ) -> Result<Self, SandboxError> {
        let imports = imports(component);
        let pre = linker
            .instantiate_pre(component)
            .map_err(|error| refused_imports(&imports, &error))?;
        let exports = |interface: &str| {
            let prefix = format!("{interface}@");
            let ty = component.component_type();
            ty.exports(component.engine())
                .any(|(name, _)| name == interface || name.starts_with(&prefix))
        };
        let refused = |what: &str, error: &wasmtime::Error| {
            rejected("rejected.exports", format!("{what}: {error:#}"))
        };
        if exports("waft:flow/definition") {
            return Flow::new(pre)
                .map(Self::Flow)
                .map_err(|error| refused("its exports are not those of a flow", &error));
        }
        if exports("wasi:cli/run") {
            check_run(component)?;
            return wasmtime_wasi::p2::bindings::CommandPre::new(pre)
                .map(Self::Command)
                .map_err(|error| refused("its exports are not those of a command", &error));
        }
        Err(rejected(
            "rejected.exports",
            "it exports neither `waft:flow/definition` (a flow) nor `wasi:cli/run` (a command)"
                .to_owned(),
        ))
    }

    pub(crate) const fn kind(&self) -> Kind {
        match self {
            Self::Flow(_) => Kind::Flow,
            Self::Command(_) => Kind::Command,
        }
    }
}

/// Checks that the entry of a command is `run: func() -> result`; wasmtime looks at the first call.
fn check_run(component: &Component) -> Result<(), SandboxError> {
    let (engine, ty) = (component.engine(), component.component_type());
    let is_run = |item: &ComponentItem| {
        let ComponentItem::ComponentInstance(run) = item else {
            return false;
        };
        let Some(ComponentItem::ComponentFunc(run)) = run.get_export(engine, "run").map(|e| e.ty)
        else {
            return false;
        };
        let is_plain = |ty: Type| matches!(ty, Type::Result(result) if result.ok().is_none() && result.err().is_none());
        run.params().len() == 0 && run.results().len() == 1 && run.results().all(is_plain)
    };
    let mut entries = ty
        .exports(engine)
        .filter(|(name, _)| name.starts_with("wasi:cli/run"));
    match entries.all(|(_, entry)| is_run(&entry.ty)) {
        true => Ok(()),
        false => Err(rejected(
            "rejected.exports",
            "its `wasi:cli/run` is not `run: func() -> result`".to_owned(),
        )),
    }
}

/// Lists what a component imports, by name.
pub(crate) fn imports(component: &Component) -> Vec<String> {
    let ty = component.component_type();
    let names = ty.imports(component.engine());
    names.map(|(name, _)| name.to_owned()).collect()
}

fn refused_imports(imports: &[String], error: &wasmtime::Error) -> SandboxError {
    let is_ours = |name: &&String| name.starts_with("wasi:") || name.starts_with("waft:flow/");
    let unknown: Vec<_> = imports
        .iter()
        .filter(|name| !is_ours(name))
        .take(5)
        .map(|name| format!("`{name}`"))
        .collect();
    let message = match unknown.is_empty() {
        false => format!("it imports {}, which nobody provides", unknown.join(", ")),
        true => format!("it imports what this host does not provide: {error:#}"),
    };
    rejected("rejected.imports", message)
}

fn rejected(code: &'static str, message: String) -> SandboxError {
    let message = cleaned(&message, WHY_BYTES_MAX);
    SandboxError::Rejected { code, message }
}
