//! One call of the API before it is sent: method, path, query, body, and how long it may wait.

use std::time::Duration;

use http::Method;
use serde::Serialize;

/// How long a call may take beyond the time that it asks the server to wait.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// One call before it is sent.
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) body: Option<Vec<u8>>,
    /// What the server itself may wait.
    pub(super) wait: Duration,
    /// How long the call may take beyond that.
    pub(super) within: Duration,
    pub(super) is_repeatable: bool,
}

impl Call {
    pub(super) fn new(method: Method, path: impl Into<String>) -> Self {
        let is_repeatable = method == Method::GET;
        Self {
            method,
            path: path.into(),
            body: None,
            wait: Duration::ZERO,
            within: CALL_TIMEOUT,
            is_repeatable,
        }
    }

    pub(super) fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    pub(super) fn post(path: impl Into<String>, body: &impl Serialize) -> Self {
        Self::with_body(Method::POST, path, body)
    }

    pub(super) fn put(path: impl Into<String>, body: &impl Serialize) -> Self {
        Self::with_body(Method::PUT, path, body)
    }

    fn with_body(method: Method, path: impl Into<String>, body: &impl Serialize) -> Self {
        let mut call = Self::new(method, path);
        // A type of `wire` has no map with keys that are no strings, so this cannot fail.
        call.body = Some(serde_json::to_vec(body).unwrap_or_default());
        call
    }

    pub(super) fn query(mut self, query: &impl Serialize) -> Self {
        let pairs = serde_json::to_value(query).unwrap_or_default();
        let mut sign = '?';
        for (name, value) in pairs.as_object().into_iter().flatten() {
            let text = match value {
                serde_json::Value::Null => continue,
                serde_json::Value::String(text) => encoded(text),
                other => encoded(&other.to_string()),
            };
            self.path.push(sign);
            self.path.push_str(name);
            self.path.push('=');
            self.path.push_str(&text);
            sign = '&';
        }
        self
    }

    pub(super) fn waiting(mut self, seconds: u32) -> Self {
        self.wait = Duration::from_secs(u64::from(seconds));
        self
    }

    /// For who would rather ask again than wait for an answer on a connection that is dead.
    pub(super) const fn within(mut self, within: Duration) -> Self {
        self.within = within;
        self
    }

    pub(super) const fn repeatable(mut self) -> Self {
        self.is_repeatable = true;
        self
    }
}

/// Encodes one part of a path or of a query, `/` included.
///
/// `.` and `..` are places in a path however they are encoded, and no name is like that; with a space
/// they are parts like any other, which the server refuses.
pub(super) fn encoded(text: &str) -> String {
    if matches!(text, "." | "..") {
        return format!("{text}%20");
    }
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ListQuery;

    #[test]
    fn a_path_part_cannot_leave_its_place() {
        assert_eq!(encoded("demo/a b?#%"), "demo%2Fa%20b%3F%23%25");
        assert_eq!(encoded("a-b_c.d~1"), "a-b_c.d~1");
        for dots in [".", "..", "../..", "%2e%2e"] {
            let path = format!("http://a/api/flows/{}/versions", encoded(dots));
            let path = reqwest::Url::parse(&path).unwrap().path().to_owned();
            assert!(
                path.starts_with("/api/flows/") && path.ends_with("/versions"),
                "{path}"
            );
        }
    }

    #[test]
    fn a_query_leaves_out_what_is_not_given() {
        let query = ListQuery {
            flow: Some("demo/x".to_owned()),
            limit: Some(3),
            ..ListQuery::default()
        };
        let call = Call::get("/api/flows").query(&query);
        assert_eq!(call.path, "/api/flows?flow=demo%2Fx&limit=3");
    }
}
