//! Every kind of branch: `ifelse` by a task, `switch` by a parameter, `when`, `merge`, and one in another.

use waft_sdk::prelude::*;

#[task]
fn is_even(n: u64) -> TaskResult<bool> {
    Ok(n % 2 == 0)
}

#[task]
fn half(n: u64) -> TaskResult<u64> {
    Ok(n / 2)
}

#[task]
fn triple(n: u64) -> TaskResult<u64> {
    Ok(n * 3 + 1)
}

#[task]
fn say(word: String, n: u64) -> TaskResult<String> {
    Ok(format!("{word} {n}"))
}

#[task]
fn join(parts: Vec<String>) -> TaskResult<String> {
    Ok(parts.join(", "))
}

#[task]
fn one(text: String) -> TaskResult<Vec<String>> {
    Ok(vec![text])
}

/// `n` = 4 and `size` = "small" make "small 2".
#[flow]
fn branches(#[default(4)] n: Param<u64>, #[default("small")] size: Param<String>) -> Node<String> {
    let even = is_even(n);
    let next = ifelse(even, || half(n), || triple(n));
    let said = switch(size)
        .case("small", || say("small", next))
        .case("large", || {
            ifelse(
                even,
                || say("large and even", next),
                || say("large and odd", next),
            )
        })
        .otherwise(|| say("other", next));
    when(even, || say("seen", n));
    join(one(merge([said])))
}
