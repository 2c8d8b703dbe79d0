//! Asks a URL and says what it got.

use serde::{Deserialize, Serialize};
use std::time::Duration;
use waft_sdk::prelude::*;

/// What the server answered.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Page {
    status: u16,
    content_type: Option<String>,
    bytes: usize,
    first_line: String,
}

/// Gets one page. A status of 500 or more is tried again.
#[task(net = ["127.0.0.1:*"], tags = ["web"], retries = 2, retry_delay = "200ms", timeout = "30s")]
fn fetch(url: String) -> TaskResult<Page> {
    let response = http::get(&url)
        .header("accept", "text/html, application/json")
        .timeout(Duration::from_secs(10))
        .send()?;
    log::info!("{url} answered {}", response.status());
    if response.status() >= 500 {
        return Err(Signal::fail(format!(
            "{url} answered {}",
            response.status()
        )));
    }
    Ok(Page {
        status: response.status(),
        content_type: response.header("content-type").map(str::to_string),
        bytes: response.bytes().len(),
        first_line: String::from_utf8_lossy(response.bytes())
            .lines()
            .next()
            .unwrap_or_default()
            .to_string(),
    })
}

#[task]
fn link(url: String, page: Page) -> TaskResult<Page> {
    cards::link("Fetched", &url);
    Ok(page)
}

/// Fetches a page from this machine.
#[flow(name = "fetch")]
fn page(
    /// Where: an `http` URL with the address 127.0.0.1.
    url: Param<String>,
) -> Node<Page> {
    link(url, fetch(url))
}

#[cfg(test)]
mod tests {
    use super::*;
    use waft_sdk::testing;

    const URL: &str = "http://127.0.0.1:8000/";

    #[test]
    fn a_page_is_summed_up() {
        let answer = http::Response::new(200, "<!doctype html>\n<p>Hello")
            .with_header("Content-Type", "text/html");
        testing::respond(URL, answer);
        let page = fetch::run(URL.to_string()).unwrap();
        assert_eq!((page.status, page.bytes), (200, 24));
        assert_eq!(page.content_type.as_deref(), Some("text/html"));
        assert_eq!(page.first_line, "<!doctype html>");
        assert_eq!(testing::requests()[0].method, "GET");
    }

    #[test]
    fn a_broken_server_is_tried_again() {
        testing::respond(URL, http::Response::new(503, ""));
        assert_eq!(
            fetch::run(URL.to_string()),
            Err(Signal::fail("http://127.0.0.1:8000/ answered 503"))
        );
    }

    #[test]
    fn only_fetch_asks_for_the_network_and_waits_for_a_slot() {
        let flow = testing::describe::<page>().unwrap();
        assert_eq!(flow.tasks[0].grants.net, ["127.0.0.1:*"]);
        assert_eq!(flow.tasks[0].tags, ["web"]);
        assert!(flow.tasks[1].grants.net.is_empty());
    }
}
