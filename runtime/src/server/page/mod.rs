//! The page: what a browser sees. Plain HTML made here; no script, nothing from elsewhere.

pub mod login;

use axum::Router;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, SET_COOKIE};
use http::{HeaderValue, StatusCode};
use serde::Deserialize;

use super::access::{Access, COOKIE_NAME};
use super::app::App;
use super::db::flow_run::{self, Filter};
use super::error::ApiError;

/// Runs that the page shows.
const RUNS_SHOWN: u32 = 50;

/// Makes the routes of the page.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/", get(index))
        .route("/login", get(log_in))
}

#[derive(Deserialize)]
struct LogIn {
    #[serde(default)]
    code: String,
}

async fn log_in(State(app): State<App>, Query(query): Query<LogIn>) -> Result<Response, ApiError> {
    let Some(session) = app.redeem(&query.code).await? else {
        let text = "<p>This link was used already, or is too old. \
                    <code>waft up</code> prints a new one when it starts.</p>";
        return Ok(document(StatusCode::FORBIDDEN, text));
    };
    let cookie =
        format!("{COOKIE_NAME}={session}; Path=/; HttpOnly; SameSite=Strict; Max-Age=43200");
    let mut answer = Redirect::to("/").into_response();
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        answer.headers_mut().insert(SET_COOKIE, cookie);
    }
    Ok(answer)
}

async fn index(
    State(app): State<App>,
    access: Result<Access, ApiError>,
) -> Result<Response, ApiError> {
    let Ok(access) = access else {
        let text = "<p>Open the link that <code>waft up</code> has printed.</p>";
        return Ok(document(StatusCode::UNAUTHORIZED, text));
    };
    access.may_read()?;
    let filter = Filter {
        realm: access.realm,
        project: None,
        flow: None,
        state: None,
        before: None,
        now: app.clock.now(),
        limit: RUNS_SHOWN,
    };
    let mut reader = app.db.reader().await?;
    let runs = flow_run::list(&mut reader, &app.db.memory, &filter).await?;
    let mut text = String::from(
        "<p>You are logged in. The API is described at \
         <a href=\"/api/openapi.json\">/api/openapi.json</a>.</p>\
         <table><tr><th>flow</th><th>run</th><th>state</th><th>message</th><th>made</th></tr>",
    );
    for run in runs {
        let cells = [
            format!("{}/{}", run.project, run.flow),
            run.id.to_string(),
            run.state.to_string(),
            run.message,
            run.created_at.to_string(),
        ];
        text.push_str("<tr>");
        for cell in cells {
            text.push_str("<td>");
            text.push_str(&escaped(&cell));
            text.push_str("</td>");
        }
        text.push_str("</tr>");
    }
    text.push_str("</table>");
    Ok(document(StatusCode::OK, &text))
}

fn document(status: StatusCode, body: &str) -> Response {
    const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";
    let html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>waft</title>\
         <style>body{{font:15px system-ui;margin:2rem}}td,th{{padding:.2rem .8rem;text-align:left}}</style>\
         <h1>waft</h1>{body}</html>"
    );
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, POLICY),
    ];
    (status, headers, html).into_response()
}

/// Shows text as text.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text() {
        assert_eq!(
            escaped("<b a='\"'>&\n"),
            "&lt;b a=&#39;&quot;&#39;&gt;&amp; "
        );
    }
}
