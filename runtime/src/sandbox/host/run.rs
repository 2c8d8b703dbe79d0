//! `waft:flow/run`: what an attempt may know about the run it is part of.

use std::sync::Arc;

use bytes::Bytes;

use crate::model::value::Value;
use crate::sandbox::attempt::RunInfo;
use crate::sandbox::bindings::waft::flow::{run, types};

/// Who is running; nothing while a flow describes itself.
#[derive(Default)]
pub(crate) struct Run {
    pub(crate) info: Option<RunInfo>,
    pub(crate) parameters: Arc<Vec<(String, Value)>>,
}

impl run::Host for Run {
    fn current(&mut self) -> wasmtime::Result<run::Info> {
        let info = self.info.as_ref().ok_or_else(nobody)?;
        Ok(run::Info {
            flow_run_id: info.flow_run_id.to_string(),
            flow: info.flow.clone(),
            task: info.task.clone(),
            map_index: info.map_index,
            attempt: info.attempt,
            loop_count: info.loop_count,
            loop_value: info.loop_value.clone().map(to_guest),
            scheduled_at_us: info.scheduled_at.as_microsecond(),
            idempotency_key: info.idempotency_key.clone(),
        })
    }

    fn approved(&mut self) -> wasmtime::Result<Option<run::Approval>> {
        let info = self.info.as_ref().ok_or_else(nobody)?;
        let approval = info.approval.as_ref();
        Ok(approval.map(|decision| run::Approval {
            by: decision.by.clone(),
            reason: decision.reason.clone(),
            at_us: decision.at.as_microsecond(),
        }))
    }

    fn parameters(&mut self) -> wasmtime::Result<Vec<types::NamedValue>> {
        let named = self.parameters.iter().cloned();
        Ok(named.map(named_to_guest).collect())
    }
}

fn nobody() -> wasmtime::Error {
    wasmtime::Error::msg("nothing is running: `describe` cannot ask which run it is part of")
}

/// Hands a value to the guest.
pub(crate) fn to_guest(value: Value) -> types::Value {
    types::Value {
        content_type: value.content_type,
        bytes: value.bytes.into(),
    }
}

/// Hands a named value to the guest.
pub(crate) fn named_to_guest((name, value): (String, Value)) -> types::NamedValue {
    types::NamedValue {
        name,
        value: to_guest(value),
    }
}

/// Takes a value from the guest.
pub(crate) fn from_guest(value: types::Value) -> Value {
    Value {
        content_type: value.content_type,
        bytes: Bytes::from(value.bytes),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::model::id::FlowRunId;
    use crate::model::run::{Decision, Verdict};

    #[test]
    fn a_guest_is_told_who_runs_and_with_what() {
        let mut run = Run {
            info: Some(RunInfo {
                flow_run_id: FlowRunId::at(0, 1),
                flow: "weather".to_owned(),
                task: "fetch".to_owned(),
                map_index: Some(3),
                attempt: 2,
                loop_count: 1,
                loop_value: Some(Value::json("7")),
                scheduled_at: Timestamp::from_second(5).unwrap(),
                idempotency_key: "key".to_owned(),
                approval: Some(Decision {
                    verdict: Verdict::Approve,
                    output: None,
                    by: "ada".to_owned(),
                    reason: "looks good".to_owned(),
                    at: Timestamp::from_second(6).unwrap(),
                }),
            }),
            parameters: Arc::new(vec![("city".to_owned(), Value::json("\"Bonn\""))]),
        };
        let info = run::Host::current(&mut run).unwrap();
        assert_eq!(info.scheduled_at_us, 5_000_000);
        assert_eq!(info.map_index, Some(3));
        assert_eq!(info.loop_value.unwrap().bytes, b"7");
        let approval = run::Host::approved(&mut run).unwrap().unwrap();
        assert_eq!(
            (&*approval.by, &*approval.reason, approval.at_us),
            ("ada", "looks good", 6_000_000)
        );
        let parameters = run::Host::parameters(&mut run).unwrap();
        assert_eq!(parameters[0].name, "city");
        assert_eq!(parameters[0].value.bytes, b"\"Bonn\"");
    }

    #[test]
    fn a_flow_that_describes_itself_is_part_of_no_run() {
        let mut run = Run::default();
        assert!(run::Host::current(&mut run).is_err());
        assert!(run::Host::approved(&mut run).is_err());
        assert!(run::Host::parameters(&mut run).unwrap().is_empty());
    }
}
