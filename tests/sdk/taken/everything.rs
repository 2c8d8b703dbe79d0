//! What looks unusual and is allowed: names that are keywords, aliases, `cfg`, `Raw`, errors of any kind.

#![deny(warnings)]

use waft_sdk::prelude::*;

mod inner {
    use waft_sdk::prelude::*;

    /// Public, so it may be called from elsewhere.
    #[task]
    pub fn shared(r#type: String) -> TaskResult<Raw> {
        Ok(Raw::new("text/plain", r#type.into_bytes()))
    }
}

#[task]
fn r#match(mut raw: Raw) -> Result<usize, Box<dyn std::error::Error>> {
    raw.bytes.push(0);
    Ok(raw.bytes.len())
}

#[cfg(any())]
#[task]
fn never() -> Missing {}

#[task]
fn order(inputs: u64, from: u64, is_each: u64, call: u64) -> u64 {
    inputs + from + is_each + call
}

#[task]
fn text(n: usize) -> std::io::Result<String> {
    Ok(n.to_string())
}

fn start() -> String {
    "x".to_string()
}

#[flow]
fn r#loop(#[default(start())] r#type: Param<String>) -> Node<String> {
    order::map(vec![1], vec![2], unmapped(3), unmapped(4));
    let n = r#match(inner::shared(&r#type));
    text(n).after(&text(3))
}

fn main() {
    let flow = waft_sdk::testing::describe::<r#loop>().expect("a flow without mistakes");
    assert_eq!(flow.name, "loop");
    assert_eq!(flow.tasks[2].name, "match");
    assert_eq!(flow.edges[4].input.as_deref(), Some("type"));
}
