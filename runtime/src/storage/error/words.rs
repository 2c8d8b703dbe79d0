//! What went wrong in few words: where it was, what the storage answered, or the system's error at the bottom.
//!
//! The texts of `object_store` repeat what they come from and hold whole bodies; of a body its code and the
//! first line of its message are told. Neither holds credentials: those that a storage repeats stand elsewhere.

use std::error::Error;
use std::io;

use object_store::client::HttpError;

use crate::storage::credentials::{Nobody, Unusable};

/// Most characters of an answer that are told.
const CHARS_MAX: usize = 300;
/// How `object_store` begins to tell of an answer.
const STATUS: &str = "Server returned non-2xx status code: ";
/// And of one that is an error in a body.
const BODY: &str = "Server returned error response: ";

/// Tells the cause of an error of a store.
pub(in crate::storage) fn few_words(error: &object_store::Error) -> String {
    let mut bottom: &(dyn Error + 'static) = error;
    let mut is_of_way = false;
    while let Some(next) = bottom.source() {
        bottom = next;
        if bottom.is::<Nobody>() || bottom.is::<Unusable>() {
            return bottom.to_string();
        }
        is_of_way |= bottom.is::<HttpError>() || bottom.is::<reqwest::Error>();
    }
    let is_cut = |error: &io::Error| {
        use io::ErrorKind as Kind;
        let cuts = [
            Kind::UnexpectedEof,
            Kind::ConnectionReset,
            Kind::ConnectionAborted,
        ];
        cuts.contains(&error.kind())
    };
    let is_cut = is_of_way && bottom.downcast_ref::<io::Error>().is_some_and(is_cut);
    let (whole, cause) = (error.to_string(), bottom.to_string());
    let why = match (cause.strip_prefix(STATUS), cause.strip_prefix(BODY)) {
        (Some(answer), _) => {
            let (status, body) = answer.split_once(": ").unwrap_or((answer, ""));
            match said(body) {
                Some(said) => format!("{} {said}", status.split(' ').next().unwrap_or_default()),
                None => status.to_owned(),
            }
        }
        (None, Some(body)) => said(body).unwrap_or_else(|| "an error without words".to_owned()),
        (None, None) if is_cut => "the connection ended in the middle".to_owned(),
        (None, None) if is_of_way => cause,
        // What the store itself says.
        (None, None) => return unsigned(&plain(error)),
    };
    let why = unsigned(&why);
    match place(&whole) {
        Some(place) => format!("{place}: {why}"),
        None => why,
    }
}

/// Tells what a body says: its code and the first line of its message, or its first line.
pub(in crate::storage) fn said(body: &str) -> Option<String> {
    let body = body.trim();
    let json = || serde_json::from_str::<serde_json::Value>(body).ok();
    let said = match tag(body, "Code") {
        Some(code) => match tag(body, "Message") {
            Some(message) => format!("{code}: {}", message.lines().next().unwrap_or_default()),
            None => code,
        },
        None if body.starts_with('<') => return None,
        None => match json() {
            Some(json) => of_json(&json)?,
            None => body.lines().next().unwrap_or_default().to_owned(),
        },
    };
    let said: String = said
        .chars()
        .filter(|c| !c.is_control())
        .take(CHARS_MAX)
        .collect();
    let said = said.trim().trim_end_matches(':').to_owned();
    (!said.is_empty()).then_some(said)
}

/// Finds code and message where Google, token services and registries have them.
fn of_json(json: &serde_json::Value) -> Option<String> {
    let (error, first) = (&json["error"], &json["errors"][0]);
    let code = [&first["code"], &error["status"], error];
    let code = code.into_iter().find_map(|code| code.as_str());
    let message = [
        &first["message"],
        &error["message"],
        &json["error_description"],
        &json["message"],
    ];
    let message = message.into_iter().find_map(|message| message.as_str());
    let message = message.and_then(|message| message.lines().next());
    match (code, message) {
        (Some(code), Some(message)) => Some(format!("{code}: {message}")),
        (one, other) => one.or(other).map(str::to_owned),
    }
}

/// Finds the text of an element.
fn tag(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    let names = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&apos;", "'"),
        ("&amp;", "&"),
    ];
    let text = names
        .iter()
        .fold(text.trim().to_owned(), |text, (name, sign)| {
            text.replace(name, sign)
        });
    (!text.is_empty()).then_some(text)
}

/// Finds where a request went: scheme, host and port.
fn place(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("Error performing ")?;
    let start = rest.find("http")?;
    let url = &rest[start..];
    let host = url.find("://")? + 3;
    let end = url[host..]
        .find(|c: char| c == '/' || c == '?' || c.is_whitespace())
        .map_or(url.len(), |end| host + end);
    let place = &url[..end];
    // Nobody puts a name into such a URL; if somebody did, it would not be told.
    (!place.contains('@')).then_some(place)
}

/// Takes off what the layers of a store put before what they pass on: its name, and what it was about, which is told
/// by who tells this.
fn plain(error: &object_store::Error) -> String {
    use object_store::Error as Store;

    let mut error = error;
    loop {
        let source = match error {
            Store::Generic { source, .. }
            | Store::NotFound { source, .. }
            | Store::NotSupported { source }
            | Store::AlreadyExists { source, .. }
            | Store::Precondition { source, .. }
            | Store::NotModified { source, .. }
            | Store::PermissionDenied { source, .. }
            | Store::Unauthenticated { source, .. } => source,
            other => return other.to_string(),
        };
        match source.downcast_ref::<Store>() {
            Some(inner) => error = inner,
            None => return source.to_string(),
        }
    }
}

/// Leaves out what stands behind the `?` of URLs: signatures lie there.
fn unsigned(text: &str) -> String {
    let mut left = text;
    let mut kept = String::new();
    while let Some(at) = left.find("://") {
        let (before, url) = left.split_at(at + 3);
        let end = url
            .find(|c: char| c.is_whitespace() || "\"')>".contains(c))
            .unwrap_or(url.len());
        kept += before;
        kept += url[..end]
            .split_once('?')
            .map_or(&url[..end], |(plain, _)| plain);
        left = &url[end..];
    }
    kept + left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_body_its_code_and_its_message_are_told() {
        for (body, words) in [
            (
                "<?xml version=\"1.0\"?><Error><Code>AuthenticationFailed</Code><Message>Server failed to \
                 authenticate.\nRequestId:7</Message><AuthenticationErrorDetail>sig=secret\
                 </AuthenticationErrorDetail></Error>",
                Some("AuthenticationFailed: Server failed to authenticate."),
            ),
            ("<Error><Code>SlowDown</Code></Error>", Some("SlowDown")),
            (
                "<Error><Code>A</Code><Message>it&apos;s &lt;b&gt;</Message></Error>",
                Some("A: it's <b>"),
            ),
            ("<html><body>nginx</body></html>", None),
            ("", None),
            ("{}", None),
            ("no such thing\nat all", Some("no such thing")),
            (
                r#"{"errors":[{"code":"DENIED","message":"not yours","detail":{}}]}"#,
                Some("DENIED: not yours"),
            ),
            (
                r#"{"error":{"code":404,"message":"Not Found","errors":[]}}"#,
                Some("Not Found"),
            ),
            (
                r#"{"error":"invalid_grant","error_description":"it is too old"}"#,
                Some("invalid_grant: it is too old"),
            ),
        ] {
            assert_eq!(said(body).as_deref(), words, "{body}");
        }
    }

    #[test]
    fn no_store_is_named_twice() {
        let inner = object_store::Error::Generic {
            store: "HTTP",
            source: "it is closed".into(),
        };
        let outer = object_store::Error::Generic {
            store: "HTTP",
            source: Box::new(inner),
        };
        let denied = object_store::Error::PermissionDenied {
            path: "a/b".to_owned(),
            source: Box::new(outer),
        };
        assert_eq!(few_words(&denied), "it is closed");
    }

    #[test]
    fn where_it_went_is_told_without_what_was_asked() {
        let text =
            "Error performing GET http://127.0.0.1:9/b?list-type=2&sig=a in 1ms - HTTP error";
        assert_eq!(place(text), Some("http://127.0.0.1:9"));
        assert_eq!(place("Error performing GET http://a:b@c/ in"), None);
        assert_eq!(place("elsewhere https://c/"), None);
    }

    #[test]
    fn no_signature_is_told() {
        assert_eq!(
            unsigned("GET https://a/b?sig=secret in 1 ms (http://c?d=secret), why?"),
            "GET https://a/b in 1 ms (http://c), why?"
        );
    }
}
