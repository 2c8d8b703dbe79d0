//! What a task may know about the run it is part of. Needs no grant.

pub use crate::bindings::waft::flow::run::{Approval, Info};
use crate::bindings::waft::flow::types::NamedValue;
use crate::text::joined;
use crate::{FromValue, Signal};

/// Answers everything about the attempt that is running.
pub fn current() -> Info {
    #[cfg(target_arch = "wasm32")]
    return crate::bindings::waft::flow::run::current();
    #[cfg(not(target_arch = "wasm32"))]
    return crate::testing::current();
}

/// Answers the number of this attempt, from 1.
pub fn attempt() -> u32 {
    current().attempt
}

/// Answers which element of a mapped task this is, from 0; none for a plain task.
pub fn map_index() -> Option<u32> {
    current().map_index
}

/// Answers how many iterations came before this one; see [`Signal::loop_with`].
pub fn loop_count() -> u32 {
    current().loop_count
}

/// Reads what the iteration before this one passed on; none in the first one.
///
/// # Errors
///
/// Fails for good if the value is of another shape.
pub fn loop_value<T: FromValue>() -> Result<Option<T>, Signal> {
    let Some(value) = current().loop_value else {
        return Ok(None);
    };
    match T::from_value(value) {
        Ok(value) => Ok(Some(value)),
        Err(cause) => Err(Signal::fail_for_good(joined(&[
            "cannot read the loop value: ",
            &cause,
        ]))),
    }
}

/// Answers a key that is the same for every attempt of this task run and for no other.
///
/// Give it to whatever must happen once, such as a payment: an attempt may be lost after its side effect.
pub fn idempotency_key() -> String {
    current().idempotency_key
}

/// Answers when the run was due: microseconds since 1970, UTC.
pub fn scheduled_at_us() -> i64 {
    current().scheduled_at_us
}

/// Answers who let this task run go on after it had paused; none if nobody was asked yet.
///
/// After [`Signal::pause`] the task is attempted again as soon as a person approves, and finds here that it
/// was: a task that only asks once begins with this. One whose trigger is `manual_only` finds it too.
///
/// ```
/// use waft_sdk::{prelude::*, testing};
///
/// #[task]
/// fn publish(page: String) -> TaskResult<String> {
///     match run::approval() {
///         None => Err(Signal::pause(format!("publish `{page}`?"))),
///         Some(approval) => Ok(format!("`{page}` was published for {}", approval.by)),
///     }
/// }
///
/// assert_eq!(publish::run("news".into()), Err(Signal::pause("publish `news`?")));
/// testing::approve("ada", "looks good");
/// assert_eq!(publish::run("news".into()).unwrap(), "`news` was published for ada");
/// ```
pub fn approval() -> Option<Approval> {
    #[cfg(target_arch = "wasm32")]
    return crate::bindings::waft::flow::run::approved();
    #[cfg(not(target_arch = "wasm32"))]
    return crate::testing::approval();
}

/// Reads a parameter of the flow run, its default filled in; none if the flow has no such parameter.
///
/// # Errors
///
/// Fails for good if the value is of another shape.
pub fn parameter<T: FromValue>(name: &str) -> Result<Option<T>, Signal> {
    let Some(found) = parameters()
        .into_iter()
        .find(|parameter| parameter.name == name)
    else {
        return Ok(None);
    };
    match T::from_value(found.value) {
        Ok(value) => Ok(Some(value)),
        Err(cause) => Err(Signal::fail_for_good(joined(&[
            "cannot read parameter `",
            name,
            "`: ",
            &cause,
        ]))),
    }
}

/// Answers the parameters of the flow run, defaults filled in.
pub fn parameters() -> Vec<NamedValue> {
    #[cfg(target_arch = "wasm32")]
    return crate::bindings::waft::flow::run::parameters();
    #[cfg(not(target_arch = "wasm32"))]
    return crate::testing::parameters();
}
