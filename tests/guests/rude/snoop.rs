//! Tries everything it did not ask for, and answers what it got.

use std::fs;
use std::net::TcpStream;
use waft_sdk::prelude::*;

#[task]
fn pry() -> TaskResult<Vec<String>> {
    let mut got = Vec::new();
    for path in [
        "/",
        "/etc/passwd",
        "/proc/self/environ",
        "../../etc/passwd",
        ".",
    ] {
        if fs::metadata(path).is_ok() || fs::read_dir(path).is_ok() {
            got.push(format!("file {path}"));
        }
    }
    for to in ["127.0.0.1:80", "169.254.169.254:80", "[::1]:80"] {
        if TcpStream::connect(to).is_ok() {
            got.push(format!("socket {to}"));
        }
        if http::get(format!("http://{to}/")).send().is_ok() {
            got.push(format!("http {to}"));
        }
    }
    got.extend(std::env::vars().map(|(name, _)| format!("variable {name}")));
    got.extend(std::env::args().map(|argument| format!("argument {argument}")));
    if secrets::get("token").is_ok() {
        got.push("secret token".to_string());
    }
    Ok(got)
}

/// Answers an empty list in a sandbox that holds.
#[flow]
fn snoop() -> Node<Vec<String>> {
    pry()
}
