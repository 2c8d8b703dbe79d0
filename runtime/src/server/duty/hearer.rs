//! The hearer: hears what happened at other servers of the database, and does what these did for whoever
//! waits there for whoever waits here.

use std::time::Duration;

use super::teller::SIGN;
use super::{note, rest};
use crate::server::app::App;
use crate::server::db::{DbError, flow_run};
use crate::server::news::News;

/// The line is dead on which nothing was heard for so long, not even this server's own signs.
const SILENCE_MAX: Duration = SIGN.saturating_mul(3);
/// The rest before a lost line is opened anew.
const AGAIN: Duration = Duration::from_secs(1);

/// Hears until the server goes down. Whenever a line was opened, everything is looked at: what was said
/// before is not heard on it.
pub(super) async fn keep(app: App) {
    loop {
        note("hearer", hear(&app).await);
        if !rest(&app, AGAIN, std::future::pending()).await {
            return;
        }
    }
}

/// Hears on one line, until it is lost or the server goes down.
async fn hear(app: &App) -> Result<(), DbError> {
    let Some(mut line) = app.db.listen().await? else {
        return Ok(());
    };
    look_at_everything(app).await?;
    let mut closing = app.closing.subscribe();
    loop {
        let text = tokio::select! {
            heard = tokio::time::timeout(SILENCE_MAX, line.next()) => heard,
            _ = closing.wait_for(|is_closing| *is_closing) => return Ok(()),
        };
        let Ok(Some(text)) = text.map_err(|_| DbError::Closed).and_then(|heard| heard) else {
            tracing::warn!("the line to the other servers was lost, and is opened anew");
            return Ok(());
        };
        for news in app.herald.read(&text) {
            take(app, news).await?;
        }
    }
}

/// Does what a piece of news asks for at this server.
async fn take(app: &App, news: News) -> Result<(), DbError> {
    match news {
        News::Wake(requirement_id, count) => app.wake(requirement_id, count).await.map(drop)?,
        News::Due(at, requirement_id) => app.dues.add(at, requirement_id),
        News::Run(id) => app.tell_here(&[id]),
        News::Agent(id) => {
            app.look_at_agents(Some(id)).await?;
            app.sessions.listening.tell(&[id]);
        }
        News::Version(id) => {
            if app.sessions.forgive_version(id) {
                app.waiting.wake_all();
            }
        }
        News::Schedule => app.schedules.notify_one(),
        News::Queue => app.usher.nudge(),
        News::Results => app.sessions.listening.tell_all(),
        News::Everything => look_at_everything(app).await?,
    }
    Ok(())
}

/// Has everybody look who waits at this server.
async fn look_at_everything(app: &App) -> Result<(), DbError> {
    app.look_at_agents(None).await?;
    let mut reader = app.db.reader().await?;
    for (at, requirement_id) in flow_run::dues(&mut reader, app.clock.now()).await? {
        app.dues.add(at, requirement_id);
    }
    drop(reader);
    app.waiting.wake_all();
    app.changes.tell_all();
    app.sessions.listening.tell_all();
    app.schedules.notify_one();
    app.usher.nudge();
    Ok(())
}
