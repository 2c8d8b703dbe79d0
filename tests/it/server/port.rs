//! The server on its port.

use super::*;
use waft::server::start;

#[tokio::test]
async fn a_server_that_goes_down_answers_whoever_waits_and_comes_back_with_everything() {
    let folder = tempfile::tempdir().unwrap();
    let place = place(&folder).await;
    let server = start(settings(&place)).await.unwrap();
    let url = format!("http://{}", server.addr);
    let token = server.first_token.clone();
    assert!(token.is_some());
    let client = Client::new(&url, token.clone()).unwrap();
    let project = NewProject {
        name: "demo".to_owned(),
        description: String::new(),
    };
    client.create_project(&project).await.unwrap();
    client.register("demo", &registration("etl")).await.unwrap();
    let new = hello("mira", offer());
    let session_id = client.open_session(&new).await.unwrap().session_id;
    let waiting = {
        let client = client.clone();
        tokio::spawn(async move {
            let poll = Poll {
                session_id,
                free_slots: 1,
                wait_seconds: 30,
            };
            client.poll(&poll).await
        })
    };
    while server.app.waiting_polls() == 0 {
        tokio::task::yield_now().await;
    }
    let begun = Clock::default().monotonic();
    server.shutdown().await;
    assert!(waiting.await.unwrap().unwrap().flow_runs.is_empty());
    let took = Clock::default().monotonic().since(begun);
    assert!(
        took < Duration::from_secs(5),
        "{took:?}: it does not wait for the poll"
    );

    let again = start(settings(&place)).await.unwrap();
    assert_eq!(again.first_token, None);
    let client = Client::new(&format!("http://{}", again.addr), token).unwrap();
    assert_eq!(client.flow("etl").await.unwrap().version, 1);
    // The session of before is known, so an agent carries on.
    let poll = Poll {
        session_id,
        free_slots: 1,
        wait_seconds: 0,
    };
    assert!(client.poll(&poll).await.unwrap().flow_runs.is_empty());
    again.shutdown().await;
}

#[tokio::test]
async fn a_token_is_made_beside_a_server_that_is_up() {
    let folder = tempfile::tempdir().unwrap();
    let place = place(&folder).await;
    let server = start(settings(&place)).await.unwrap();
    let token = server::make_token(place.clone(), Clock::default())
        .await
        .unwrap();
    let client = Client::new(&format!("http://{}", server.addr), Some(token)).unwrap();
    let tokens = client.list_tokens(&ListQuery::default()).await.unwrap();
    assert_eq!(tokens.items.len(), 2);
    server.shutdown().await;
}
