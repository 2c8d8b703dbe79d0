//! The smallest flow.

use waft_sdk::prelude::*;

#[task]
fn greet(name: String) -> TaskResult<String> {
    log::info!("greeting {name}");
    Ok(format!("Hello, {name}!"))
}

/// Greets somebody.
#[flow]
fn hello(#[default("world")] name: Param<String>) -> Node<String> {
    greet(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greets_by_name() {
        assert_eq!(greet::run("Ada".to_string()).unwrap(), "Hello, Ada!");
    }
}
