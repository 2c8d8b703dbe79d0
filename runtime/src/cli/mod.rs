//! The command line: one file a command, and the only place where all rooms meet.
//!
//! `main.rs` calls [`main`] and nothing else. A command parses nothing by hand, prints through
//! `output.rs` only, and ends with a [`Failure`] that carries its exit code. What the commands print
//! is shown, and tested, by the transcripts under `tests/it/cli`.

mod argument;
mod cache;
mod command;
mod component;
mod failure;
mod fleet;
mod install;
mod outage;
mod output;
mod parameters;
mod power;
mod preview1;
mod progress;
mod reach;
mod receipt;
mod signals;
mod stored;
mod tree;
mod usage;
mod watch;
mod why;
mod words;

mod agent;
mod build;
mod completions;
mod config;
mod flow;
mod flow_run;
mod inspect;
mod new;
mod project;
mod register;
mod run;
mod secret;
mod server;
mod storage;
mod tag;
mod token;
mod up;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{ArgAction, Parser, Subcommand};

pub use self::failure::{Done, Failure, Kind};
pub use self::output::Output;
use crate::clock::Clock;
use crate::config::{Config, log_filter};
use crate::model::run::Level;

/// Runs flows: graphs of tasks, each in a WebAssembly sandbox of its own.
#[derive(Debug, Parser)]
#[command(
    name = "waft",
    version,
    propagate_version = false,
    arg_required_else_help = true,
    after_help = "\
Examples:
  waft new my-flow && cd my-flow     make a flow project
  waft run . --param name=Ada        compile it and run it here and now
  waft up                            start a server and an agent
  waft register . --project demo     make the flow known to the server
  waft flow-run create my-flow --param name=Ada --watch

Exit codes: 0 done, 1 could not be done, 2 wrong arguments or configuration, 3 the run did not
succeed, 70 a bug in waft."
)]
struct Line {
    /// Prints data as JSON.
    #[arg(long, global = true)]
    json: bool,
    /// Logs what waft itself does; twice for more.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    New(new::Args),
    Build(build::Args),
    Inspect(inspect::Args),
    Run(Box<run::Args>),
    Register(register::Args),
    Flow(flow::Noun),
    FlowRun(flow_run::Noun),
    Project(project::Noun),
    Tag(tag::Noun),
    #[command(subcommand)]
    Secret(secret::Verb),
    Token(token::Noun),
    Agent(Box<agent::Noun>),
    #[command(subcommand)]
    Server(server::Verb),
    Up(Box<up::Args>),
    #[command(subcommand)]
    Storage(storage::Verb),
    #[command(subcommand)]
    Config(config::Verb),
    Completions(completions::Args),
}

/// One call of the program: what every command gets beside its arguments.
pub(crate) struct Call {
    /// What holds.
    pub(crate) config: Config,
    /// Where it writes.
    pub(crate) output: Output,
    /// What time it is.
    pub(crate) clock: Clock,
    /// Whether more is wanted than the usual.
    pub(crate) is_verbose: bool,
}

/// Runs the command that the arguments name, and returns the exit code of the program.
///
/// A panic is a bug of ours: it is said so, and the exit code is 70.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    std::panic::set_hook(Box::new(output::bug));
    let arguments: Vec<_> = arguments.into_iter().collect();
    let result = std::panic::catch_unwind(|| answer(arguments));
    // The hook has said it.
    result.unwrap_or_else(|_| ExitCode::from(70))
}

fn answer(arguments: Vec<OsString>) -> ExitCode {
    let line = match Line::try_parse_from(arguments) {
        Ok(line) => line,
        Err(error) => {
            if let Some(failure) = usage::failure(&error) {
                Output::new(false).failure(&failure);
                return failure.into();
            }
            // Help and version are data, and end well; clap knows which is which.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let output = Output::new(line.json);
    log_to_stderr(line.verbose);
    let load = || -> Done<Call> {
        Ok(Call {
            config: Config::load()?,
            output: output.clone(),
            clock: Clock::default(),
            is_verbose: line.verbose > 0,
        })
    };
    match load().and_then(|call| line.command.run(&call)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if failure.kind != Kind::Gone {
                output.failure(&failure);
            }
            failure.into()
        }
    }
}

impl Command {
    fn run(self, call: &Call) -> Done {
        match self {
            Self::New(args) => new::run(&args, call),
            Self::Build(args) => build::run(&args, call),
            Self::Inspect(args) => inspect::run(&args, call),
            Self::Run(args) => run::run(&args, call),
            Self::Register(args) => register::run(args, call),
            Self::Flow(noun) => flow::run(noun, call),
            Self::FlowRun(noun) => flow_run::run(noun, call),
            Self::Project(noun) => project::run(noun, call),
            Self::Tag(noun) => tag::run(noun, call),
            Self::Secret(verb) => secret::run(verb, call),
            Self::Token(noun) => token::run(noun, call),
            Self::Agent(noun) => agent::run(*noun, call),
            Self::Server(verb) => server::run(verb, call),
            Self::Storage(verb) => storage::run(verb, call),
            Self::Up(args) => up::run(&args, call),
            Self::Config(verb) => config::run(verb, call),
            Self::Completions(args) => completions::run(&args, call),
        }
    }
}

impl Call {
    /// Returns the level from which log lines are shown live; a log that is asked for is whole.
    pub(crate) const fn least_level(&self) -> Level {
        match self.is_verbose {
            true => Level::Debug,
            false => Level::Info,
        }
    }

    /// Carries out what waits for something, on threads made for it.
    ///
    /// # Errors
    ///
    /// Whatever `work` fails with, or that the threads could not be made.
    pub(crate) fn wait<T>(&self, work: impl Future<Output = Done<T>>) -> Done<T> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        // Sockets and timers are looked at after few polls, as a poll of a guest may take a tick.
        let threads = builder.enable_all().event_interval(7).build()?;
        let result = threads.block_on(work);
        // A read of standard input cannot be stopped and must not hold the end up.
        threads.shutdown_background();
        result
    }
}

/// Sends what the program logs about itself to standard error: warnings, unless more is asked for.
fn log_to_stderr(verbose: u8) {
    let asked = match verbose {
        0 => log_filter().unwrap_or_else(|| "error,waft=warn".to_owned()),
        1 => "warn,waft=info".to_owned(),
        _ => "info,waft=debug".to_owned(),
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(asked))
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .finish();
    // A program that embeds this one may have set up its own already.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_tree_is_consistent() {
        Line::command().debug_assert();
    }

    /// Every command says what it does, and every argument too.
    #[test]
    fn everything_has_help() {
        fn look(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                let help = argument
                    .get_help()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                assert!(
                    !help.is_empty(),
                    "{} {}",
                    command.get_name(),
                    argument.get_id()
                );
            }
            command.get_subcommands().for_each(look);
        }
        look(&Line::command());
    }

    /// What is longer is broken once more where it is shown.
    #[test]
    fn what_stands_below_the_help_fits_its_width() {
        fn look(command: &clap::Command) {
            let below = command.get_after_help().map(ToString::to_string);
            for line in below.unwrap_or_default().lines() {
                let width = line.chars().count();
                assert!(width <= 100, "{}: {line}", command.get_name());
            }
            command.get_subcommands().for_each(look);
        }
        look(&Line::command());
    }

    /// A flag that holds below a noun would otherwise take its value from an argument of that name.
    #[test]
    fn no_argument_hides_a_flag_from_above() {
        fn look(command: &clap::Command, above: &[String]) {
            let mut all = above.to_vec();
            for argument in command.get_arguments() {
                let id = argument.get_id().to_string();
                assert!(!above.contains(&id), "{} {id}", command.get_name());
                if argument.is_global_set() {
                    all.push(id);
                }
            }
            command
                .get_subcommands()
                .for_each(|below| look(below, &all));
        }
        look(&Line::command(), &[]);
    }
}
