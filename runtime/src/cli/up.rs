//! `waft up`: a server and an agent in one process, with defaults for everything.

use super::Call;
use super::failure::Done;
use super::signals::Signals;
use super::{agent, server};
use crate::client::Client;

/// Starts a server and an agent in one process; prints one line when both are ready.
///
/// An interrupt lets the agent finish the runs that it has; a second one stops them at once.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  waft up
  waft up --listen 127.0.0.1:0 --allow-net api.example.org:443

Address and token are left in this home, so that commands of it need no flag.")]
pub(super) struct Args {
    #[command(flatten)]
    server: server::Flags,
    #[command(flatten)]
    agent: agent::Flags,
}

pub(super) fn run(args: &Args, call: &Call) -> Done {
    call.wait(async {
        let mut signals = Signals::new()?;
        let running = server::start(&args.server, call).await?;
        let result = serve(args, &running, &mut signals, call).await;
        running.shutdown().await;
        result
    })
}

async fn serve(
    args: &Args,
    running: &crate::server::Running,
    signals: &mut Signals,
    call: &Call,
) -> Done {
    let (credentials, link) = server::introduce(running, &args.server, call).await?;
    let client = Client::in_process(running.router.clone(), Some(credentials.token.clone()));
    let Some(agent) = agent::start(&args.agent, client, false, signals, call).await? else {
        return Ok(());
    };
    server::tell_ready("waft is up", &credentials, &link, call)?;
    if !agent::work(agent, signals, call).await? {
        // Whoever drained the agent did not mean the server, which others use.
        call.output
            .note("the agent has ended; the server stays up until it is interrupted");
        signals.next().await;
    }
    Ok(())
}
