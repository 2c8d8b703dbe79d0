//! `waft flow-run show`, `explain` and `history`: what is known of a run.

use crate::cli::failure::Done;
use crate::cli::reach::pages;
use crate::cli::receipt::{ShownTask, card_text, resolve, task_table};
use crate::cli::{Call, watch, why, words};
use crate::client::Client;
use crate::model::id::FlowRunId;
use crate::wire::{FlowRun, ListQuery};

pub(super) async fn run(client: &Client, id: FlowRunId, call: &Call) -> Done {
    let run = client.flow_run(id).await?;
    let tasks = watch::task_runs(client, id).await?;
    let tasks: Vec<_> = tasks.into_iter().map(ShownTask::from).collect();
    let cards = client.cards(id).await?.items;
    if call.output.is_json() {
        return call
            .output
            .json(&watch::as_json(&run, tasks, cards, call).await?);
    }
    about(&run, call)
        .await
        .iter()
        .try_for_each(|(name, what)| call.output.line(format_args!("{name:<11} {what}")))?;
    task_table(&call.output, &tasks)?;
    cards
        .iter()
        .try_for_each(|card| call.output.line(card_text(card)))
}

async fn about(run: &FlowRun, call: &Call) -> Vec<(&'static str, String)> {
    let labels: Vec<_> = run.labels.iter().map(str::to_owned).collect();
    let state = [
        run.state.to_string(),
        run.message.clone(),
        run.code.clone().unwrap_or_default(),
    ];
    let state: Vec<_> = state.into_iter().filter(|word| !word.is_empty()).collect();
    let parameters = serde_json::to_string(&run.parameters).unwrap_or_default();
    let mut lines = vec![
        ("run", run.id.to_string()),
        (
            "flow",
            format!("{}/{} version {}", run.project, run.flow, run.version),
        ),
        ("state", state.join("  ")),
        ("artifact", run.artifact.to_string()),
        ("parameters", parameters),
        ("labels", words::list_or_none(&labels)),
        ("due", words::instant(run.scheduled_at)),
        ("started", words::instant_or_dash(run.started_at)),
        ("ended", words::instant_or_dash(run.ended_at)),
    ];
    if let Some(earlier) = run.retry_of {
        lines.push(("retry of", earlier.to_string()));
    }
    if let Some(agent) = &run.agent {
        let claims = if run.claims == 1 { "claim" } else { "claims" };
        lines.push(("agent", format!("{agent} ({} {claims})", run.claims)));
    }
    if let Some(reference) = &run.result {
        lines.push((
            "result",
            match resolve(reference, run, call).await {
                Ok(value) => String::from_utf8_lossy(&value.bytes).into_owned(),
                Err(why) => format!("out of reach: {why}"),
            },
        ));
    }
    lines
}

pub(super) async fn explain(client: &Client, id: FlowRunId, call: &Call) -> Done {
    let mut explanation = client.explain(id).await?;
    explanation.hints = why::hints(&explanation, &why::Here::of(call));
    if call.output.is_json() {
        return call.output.json(&explanation);
    }
    call.output.line(format_args!(
        "{}: {}",
        explanation.state,
        why::sentence(&explanation)
    ))?;
    (explanation.marks.iter()).try_for_each(|mark| call.output.line(format_args!("  {mark}")))?;
    for agent in &explanation.agents {
        let polls = match (agent.is_polling, agent.free_slots) {
            (false, _) => "does not poll".to_owned(),
            (true, 1) => "1 free slot".to_owned(),
            (true, free) => format!("{free} free slots"),
        };
        let words = match agent.words.as_slice() {
            [] => "could take it".to_owned(),
            words => words.join("; "),
        };
        call.output
            .line(format_args!("  agent `{}` ({polls}): {words}", agent.agent))?;
    }
    if let Some(gone) = &explanation.agents_gone {
        let seen = words::instant(gone.seen_at);
        let more = match gone.count {
            1 => "1 more agent is gone, last seen".to_owned(),
            count => format!("{count} more agents are gone, the last seen"),
        };
        call.output.line(format_args!("  {more} {seen}"))?;
    }
    explanation
        .hints
        .iter()
        .try_for_each(|hint| call.output.line(format_args!("hint: {hint}")))
}

pub(super) async fn history(client: &Client, id: FlowRunId, call: &Call) -> Done {
    let list = async |query: &ListQuery| client.history(id, query).await;
    let (transitions, _) = pages(ListQuery::default(), usize::MAX, list).await?;
    if call.output.is_json() {
        return call.output.json(&transitions);
    }
    let rows: Vec<_> = transitions
        .into_iter()
        .map(|it| {
            vec![
                it.at.strftime("%H:%M:%S%.3f").to_string(),
                it.task_run
                    .map_or_else(|| "-".to_owned(), |key| key.to_string()),
                it.state.to_string(),
                it.by,
                it.message,
            ]
        })
        .collect();
    call.output.table(
        &["at", "task", "state", "by", "message"],
        &rows,
        "nothing has happened",
    )
}
