//! How Rust values become bytes with a content type and back.
//!
//! Everything that serde knows travels as JSON; [`Raw`] carries bytes of any other type past it. The
//! attributes call in here for every input and output of a task.

use crate::Signal;
use crate::bindings::waft::flow::types::NamedValue;
pub use crate::bindings::waft::flow::types::Value;
use crate::text::{joined, owned};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The content type the host looks inside.
const JSON: &str = "application/json";

/// Bytes of any content type, as an input or an output.
///
/// Only `application/json` can be mapped over, joined or switched on; a `Raw` of another type is
/// passed on whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw {
    /// A media type, such as `image/png`.
    pub content_type: String,
    /// The value itself.
    pub bytes: Vec<u8>,
}

impl Raw {
    /// Makes a value of a content type and its bytes.
    pub fn new(content_type: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            content_type: content_type.into(),
            bytes: bytes.into(),
        }
    }
}

/// What a task may return: every `Serialize` type, as JSON, and [`Raw`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the output of a task",
    label = "not an output",
    note = "derive `serde::Serialize` for it, or return `waft_sdk::Raw`"
)]
pub trait IntoValue {
    /// Turns the value into bytes with a content type.
    ///
    /// # Errors
    ///
    /// Fails for good where serde cannot write the value, such as a map with keys that are no strings.
    fn into_value(self) -> Result<Value, Signal>;
}

impl<T: Serialize> IntoValue for T {
    fn into_value(self) -> Result<Value, Signal> {
        match crate::json::to_vec(&self) {
            Ok(bytes) => Ok(json(bytes)),
            Err(cause) => Err(unwritable(cause)),
        }
    }
}

impl IntoValue for Raw {
    fn into_value(self) -> Result<Value, Signal> {
        Ok(Value {
            content_type: self.content_type,
            bytes: self.bytes,
        })
    }
}

/// What a task may take: every owned `Deserialize` type, from JSON, and [`Raw`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the input of a task",
    label = "not an input",
    note = "derive `serde::Deserialize` for it, or take `waft_sdk::Raw`"
)]
pub trait FromValue: Sized {
    /// Reads the value back.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the value: another content type, or JSON of another shape.
    fn from_value(value: Value) -> Result<Self, String>;
}

impl<T: DeserializeOwned> FromValue for T {
    fn from_value(value: Value) -> Result<Self, String> {
        if value.content_type != JSON {
            return Err(not_json(&value.content_type));
        }
        crate::json::from_slice(&value.bytes).map_err(crate::json::Error::into_text)
    }
}

impl FromValue for Raw {
    fn from_value(value: Value) -> Result<Self, String> {
        Ok(Self {
            content_type: value.content_type,
            bytes: value.bytes,
        })
    }
}

/// The inputs of one attempt, taken out one by one by the code that `#[task]` writes.
#[doc(hidden)]
pub struct Inputs(Vec<NamedValue>);

impl Inputs {
    pub(crate) fn new(values: Vec<NamedValue>) -> Self {
        Self(values)
    }

    /// Takes one input out and reads it. An input that is missing or of another shape fails for good: a
    /// retry would meet the same.
    pub fn take<T: FromValue>(&mut self, name: &str) -> Result<T, Signal> {
        let value = self.value(name)?;
        T::from_value(value).map_err(|cause| unreadable(name, &cause))
    }

    fn value(&mut self, name: &str) -> Result<Value, Signal> {
        match self.0.iter().position(|input| input.name == name) {
            Some(at) => Ok(self.0.swap_remove(at).value),
            None => Err(Signal::fail_for_good(joined(&[
                "the host passed no input `",
                name,
                "`",
            ]))),
        }
    }
}

/// Wraps JSON text as a value.
pub(crate) fn json(bytes: Vec<u8>) -> Value {
    Value {
        content_type: owned(JSON),
        bytes,
    }
}

fn unwritable(cause: crate::json::Error) -> Signal {
    Signal::fail_for_good(joined(&[
        "cannot write the output as JSON: ",
        &cause.into_text(),
    ]))
}

fn unreadable(name: &str, cause: &str) -> Signal {
    Signal::fail_for_good(joined(&["cannot read input `", name, "`: ", cause]))
}

fn not_json(content_type: &str) -> String {
    joined(&["it is `", content_type, "`, not `application/json`"])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(name: &str, value: Value) -> Inputs {
        Inputs::new(vec![NamedValue {
            name: name.to_string(),
            value,
        }])
    }

    #[test]
    fn json_goes_there_and_back() {
        let value = vec![1_u8, 2].into_value().unwrap();
        assert_eq!(
            (value.content_type.as_str(), value.bytes.as_slice()),
            ("application/json", &b"[1,2]"[..])
        );
        assert_eq!(inputs("xs", value).take::<Vec<u8>>("xs").unwrap(), [1, 2]);
    }

    #[test]
    fn raw_bytes_pass_untouched() {
        let value = Raw::new("image/png", *b"\x89PNG").into_value().unwrap();
        assert_eq!(
            inputs("image", value).take::<Raw>("image").unwrap().bytes,
            b"\x89PNG"
        );
    }

    #[test]
    fn an_input_of_another_shape_is_named() {
        let value = "seven".into_value().unwrap();
        let Err(Signal::Fail(failure)) = inputs("count", value).take::<u64>("count") else {
            panic!("read a string as a number");
        };
        assert!(
            failure
                .message
                .starts_with("cannot read input `count`: expected u64"),
            "{failure:?}"
        );
        assert!(failure.is_final);
    }

    #[test]
    fn an_input_that_is_not_json_is_named() {
        let value = Raw::new("text/plain", *b"7").into_value().unwrap();
        let Err(Signal::Fail(failure)) = inputs("count", value).take::<u64>("count") else {
            panic!("read text as JSON");
        };
        assert_eq!(
            failure.message,
            "cannot read input `count`: it is `text/plain`, not `application/json`"
        );
    }
}
