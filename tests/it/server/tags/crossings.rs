//! Slots of tags in transactions that are under way at one time, on PostgreSQL; on a file they come one after the
//! other.

use std::sync::Arc;

use tokio::sync::Notify;

use waft::model::id::ProjectId;
use waft::server::db::report::{self, Reporter};
use waft::server::db::{DbError, tag};

use super::*;

impl World {
    /// Waits until somebody waits for what another transaction keeps from them.
    async fn crossed(&self) {
        let sql = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() \
                   AND wait_event_type = 'Lock'";
        let is_blocked = async || {
            let mut reader = self.app.db.reader().await.unwrap();
            reader.row(sql, Vec::new()).await.unwrap().is_some()
        };
        while ON_POSTGRES && !is_blocked().await {
            tokio::task::yield_now().await;
        }
    }

    /// Does something while a transaction has done all it does and has not ended yet.
    async fn cross<T>(
        &self,
        ends: &Notify,
        first: impl Future<Output = ()>,
        second: impl Future<Output = T>,
    ) -> T {
        let second = async {
            tokio::pin!(second);
            tokio::select! {
                done = &mut second => {
                    ends.notify_one();
                    done
                }
                () = self.crossed() => {
                    ends.notify_one();
                    second.await
                }
            }
        };
        tokio::join!(first, second).1
    }
}

/// Agents tell by the newest change whether they know all.
#[tokio::test]
async fn numbers_of_two_projects_change_one_after_the_other() {
    let world = World::new().await;
    let mut projects: Vec<ProjectId> = Vec::new();
    for name in ["one", "two"] {
        let project = NewProject {
            name: name.to_owned(),
            description: String::new(),
        };
        projects.push(world.client.create_project(&project).await.unwrap().id);
    }
    let now = world.app.clock.now();
    let (has_set, ends) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let change = async |project: ProjectId| {
        let mut reader = world.app.db.reader().await.unwrap();
        let sql = "SELECT changed_at FROM tag WHERE project_id = $1";
        let row = reader.row(sql, vec![project.into()]).await.unwrap();
        row.unwrap().get::<i64>(0).unwrap()
    };
    let first = async {
        let (project, has_set, ends) = (projects[0], has_set.clone(), ends.clone());
        let set = world.app.db.write(move |tx| {
            Box::pin(async move {
                tag::set(tx, project, "db", Some(1), now).await?;
                has_set.notify_one();
                if ON_POSTGRES {
                    ends.notified().await;
                }
                Ok::<(), DbError>(())
            })
        });
        set.await.unwrap();
    };
    let second = async {
        has_set.notified().await;
        let project = projects[1];
        let set = world
            .app
            .db
            .write(move |tx| Box::pin(tag::set(tx, project, "db", Some(1), now)));
        set.await.unwrap();
    };
    world.cross(&ends, first, second).await;
    assert!(change(projects[0]).await < change(projects[1]).await);
}

/// A task begins, as far as its agent knows with nobody to ask, while its tag is given a number.
#[tokio::test]
async fn what_begins_while_a_number_is_set_is_counted() {
    let world = World::new().await;
    let mut asked = registration("etl");
    asked.definition.tasks[0].tags = ["db".to_owned()].into();
    world.client.register("demo", &asked).await.unwrap();
    let agent = world.agent("mira").await;
    world.create("etl").await;
    let run = agent.poll(1).await.remove(0);
    let (has_begun, ends) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let first = async {
        let (has_begun, ends) = (has_begun.clone(), ends.clone());
        let now = world.app.clock.now();
        let memory = world.app.db.memory.clone();
        let reporter = Reporter {
            agent_id: agent.id,
            name: "mira".to_owned(),
        };
        let story = [flow(Event::Start), task("fetch", Event::Start)];
        let reports = story.map(|what| agent.report_of(lease(&run), what));
        let begin = world.app.db.write(move |tx| {
            Box::pin(async move {
                report::apply(tx, &memory, &reporter, reports.into(), now).await?;
                has_begun.notify_one();
                if ON_POSTGRES {
                    ends.notified().await;
                }
                Ok::<(), DbError>(())
            })
        });
        begin.await.unwrap();
    };
    let second = async {
        has_begun.notified().await;
        let slots = Slots { slots: Some(1) };
        let set = world.client.set_tag_slots("demo", "db", &slots).await;
        set.unwrap().taken
    };
    assert_eq!(world.cross(&ends, first, second).await, 1);
}

/// Many ask at once, on PostgreSQL in transactions that overlap: no slot is given twice.
#[tokio::test]
async fn agents_that_ask_at_once_are_given_no_slot_twice() {
    const RUNS: usize = 24;
    let world = World::new().await;
    world.register_tagged("etl", &["db"]).await;
    world.set("db", Some(3)).await;
    let mut agents = Vec::new();
    for nth in 0..8 {
        agents.push(world.agent(&format!("agent-{nth}")).await);
    }
    for _ in 0..RUNS {
        world.create("etl").await;
    }
    let mut claims = Vec::new();
    for agent in &agents {
        claims.extend(agent.poll(3).await.into_iter().map(|run| (agent, run)));
    }
    assert_eq!(claims.len(), RUNS);
    let asks = claims.iter().map(|(agent, run)| agent.ask(run));
    futures::future::join_all(asks).await;
    let mut done = BTreeSet::new();
    while done.len() < RUNS {
        let mut given = Vec::new();
        for agent in &agents {
            given.extend(agent.given().await.into_iter().map(|id| (agent, id)));
        }
        let left = RUNS - done.len();
        assert_eq!(given.len(), left.min(3));
        let ends = given.iter().map(|(agent, id)| {
            let run = claims.iter().find(|(_, run)| run.flow_run_id == *id);
            let key = lease(&run.unwrap().1);
            let story = vec![task("fetch", Event::Start), task("fetch", Event::Succeed)];
            agent.tell(key, story)
        });
        futures::future::join_all(ends).await;
        done.extend(given.iter().map(|(_, id)| *id));
        let looks = (0..4).map(|_| usher(&world.app));
        for looked in futures::future::join_all(looks).await {
            looked.unwrap();
        }
    }
}
