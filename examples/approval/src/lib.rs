//! A notice that goes out when a person says so.

use waft_sdk::prelude::*;

#[task]
fn write(topic: String) -> TaskResult<String> {
    Ok(format!("There will be {topic} tonight."))
}

/// Asks first; is attempted again when somebody has approved.
#[task]
fn publish(notice: String) -> TaskResult<String> {
    let Some(approval) = run::approval() else {
        return Err(Signal::pause(format!("shall this go out: {notice}")));
    };
    log::info!("{} approved: {}", approval.by, approval.reason);
    Ok(notice)
}

/// Publishes a notice that a person has seen.
#[flow]
fn approval(#[default("maintenance")] topic: Param<String>) -> Node<String> {
    publish(write(topic))
}

#[cfg(test)]
mod tests {
    use super::*;
    use waft_sdk::testing;

    #[test]
    fn nothing_goes_out_before_somebody_approves() {
        let notice = || "There will be cake.".to_string();
        let asked = Signal::pause("shall this go out: There will be cake.");
        assert_eq!(publish::run(notice()), Err(asked));
        testing::approve("ada", "yes, please");
        assert_eq!(publish::run(notice()).unwrap(), notice());
    }
}
