//! The attributes of waft-sdk, in three stages.
//!
//! `ast` reads what the author wrote, `valid` refuses what cannot be meant, at the author's line, and
//! `expand` writes the code. Nothing here knows the contract: what an attribute says becomes constants
//! of `waft_sdk::__private`, which `waft-sdk` turns into the records of the contract.

mod ast;
mod expand;
mod valid;

use proc_macro::TokenStream;
use syn::parse_macro_input;

/// Makes a function a task: a step of a flow that runs in a sandbox of its own.
///
/// A task takes owned arguments that serde can read and returns `TaskResult<T>`, a `Result`, or a plain
/// value that serde can write. Of `fn fetch(url: String)` the attribute makes
///
/// - `fetch(url)`, for a flow function: adds the task to the graph and answers a `Node`;
/// - `fetch::map(urls)`: one task run for each element, known only at run time;
/// - `fetch::run(url)`: the body itself, for tests and for other task bodies.
///
/// All options, each at most once:
///
/// | option | meaning |
/// |---|---|
/// | `name = "load"` | another name than the function's |
/// | `retries = 3` | attempts that may follow a failed one, at most 100 |
/// | `retry_delay = "10s"` | time before the first retry |
/// | `backoff = "exponential"` | how the delay grows: `constant`, `linear`, `exponential` |
/// | `retry_delay_max = "5m"` | the longest delay |
/// | `jitter = 0.2` or `"20%"` | at most this share of the delay is added at random |
/// | `timeout = "30s"` | how long an attempt may take |
/// | `trigger = any_failed` | when the upstream states let it run; see below |
/// | `skip_on_upstream_skip = false` | run even if an upstream task was skipped |
/// | `tags = ["db"]` | words for slots and for finding |
/// | `cache_for = "1h"` or `"forever"` | how long an output may serve later runs |
/// | `cache_key = "v1"` | what takes the place of artifact and inputs in the cache |
/// | `net = ["api.example.org:443"]` | hosts it may call; `*.domain:port` and `host:*` too |
/// | `dir = ["/data:ro"]` | guest folders, `ro` or `rw` |
/// | `env = ["REGION"]` | environment variables |
/// | `secrets = ["token"]` | secrets of the agent |
/// | `memory = "512MiB"`, `cpu = "60s"`, `output = "8MiB"` | other limits than the default |
/// | `parallel = 4` | task runs at one time, for a mapped task |
/// | `on_lost = "fail"` | never run again an attempt whose agent was lost |
///
/// Triggers: `all_successful` (the default), `all_failed`, `all_finished`, `any_successful`, `any_failed`,
/// `not_all_skipped`, `some_successful(at_least = 2, at_most = "50%")` and `some_failed(..)` alike, and
/// `manual_only`: once all above it are over, however they ended, it waits until a person approves.
/// A task that runs although one above it failed or was skipped takes `Option<T>` for a `Node<T>`, and
/// `Vec<Option<T>>` for a mapped one: what has no output is `None`.
///
/// The doc comment is the description of the task.
#[proc_macro_attribute]
pub fn task(options: TokenStream, function: TokenStream) -> TokenStream {
    let options = parse_macro_input!(options as ast::Options);
    let function = parse_macro_input!(function as syn::ItemFn);
    ast::Task::read(function)
        .and_then(|task| valid::task(task, options))
        .map_or_else(|error| error.to_compile_error(), |task| expand::task(&task))
        .into()
}

/// Makes a function a flow: the graph that its calls draw. One in a crate.
///
/// Every argument is a `Param<T>`; `#[default(..)]` makes it optional and its doc comment describes it. What
/// is returned is the result of the run: a `Node`, or nothing. The function runs when the flow is
/// described, not when it is run: it sees no values.
///
/// | option | meaning |
/// |---|---|
/// | `name = "my-flow"` | another name than the function's |
/// | `schedule = cron("0 * * * *", tz = "Europe/Berlin")` | when it runs unasked: a clock, or a list of clocks |
/// | `filters = weekdays("mon-fri")` | which instants of the clocks count: a filter, or a list; all must hold |
/// | `catch_up = "all"` | what is done about runs that were missed: `last` (the default), `all`, `skip` |
/// | `overlap = "queue"` | what is done about a run that is due while another goes on: `allow` (the default), `skip`, `queue`, `cancel-old` |
///
/// Clocks:
///
/// | clock | ticks |
/// |---|---|
/// | `cron("0 * * * *", tz = "Europe/Berlin")` | by a cron line of five fields, in a time zone; without `tz`, UTC |
/// | `interval("15m")` | every so often, at least a second, counted from `starts` or from 1970 |
/// | `dates("2026-12-01T09:00:00Z", ..)` | at these instants |
///
/// Each takes besides, each at most once:
///
/// | option of a clock | meaning |
/// |---|---|
/// | `name = "nightly"` | what its runs are known by; without one, `cron`, `interval` or `dates`, with a number if there are more |
/// | `starts = "2026-12-01T00:00:00Z"` | no run before this instant |
/// | `ends = "2027-12-01T00:00:00Z"` | no run after this instant |
/// | `params(region = "eu", count = 3)` | parameters of its runs, each an expression of the parameter's type, as in `#[default(..)]` |
///
/// A parameter without a default has to be given a value by each clock.
///
/// Filters, each with `tz = ".."` where the zone is not UTC:
///
/// | filter | lets through |
/// |---|---|
/// | `weekdays("mon-fri", ..)` | these days: `mon`, `tue`, `wed`, `thu`, `fri`, `sat`, `sun`, or a range of them |
/// | `between("22:00", "06:00")` | from the first time, until before the second; over midnight where that is earlier |
/// | `except("2026-12-25", ..)` | all but these dates |
///
/// The doc comment is the description of the flow. Tests name the flow as a type:
/// `waft_sdk::testing::describe::<my_flow>()`.
#[proc_macro_attribute]
pub fn flow(options: TokenStream, function: TokenStream) -> TokenStream {
    let options = parse_macro_input!(options as ast::Options);
    let function = parse_macro_input!(function as syn::ItemFn);
    ast::Flow::read(function)
        .and_then(|flow| valid::flow(flow, options))
        .map_or_else(|error| error.to_compile_error(), |flow| expand::flow(&flow))
        .into()
}

/// Writes the JSON schema of a struct with named fields or of an enum of plain variants, so that it can
/// be a parameter. Such an enum can be the subject of a `switch` as well.
#[proc_macro_derive(Schema, attributes(serde))]
pub fn schema(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as syn::DeriveInput);
    ast::Shape::read(input)
        .map_or_else(
            |error| error.to_compile_error(),
            |shape| expand::schema(&shape),
        )
        .into()
}
