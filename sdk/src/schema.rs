//! What a parameter may be, as JSON schema: checked by the server when a run is created.
//!
//! A small trait instead of a schema library, so that a flow carries the text and nothing else. Only the
//! subset that hosts know is written.

use crate::text::joined;
use std::collections::{BTreeMap, HashMap};

/// A type that a parameter can have.
///
/// Derive it for structs with named fields and for enums of plain variants; the names follow serde's
/// `rename` and `rename_all`, and doc comments become descriptions.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use waft_sdk::prelude::*;
///
/// #[derive(Serialize, Deserialize, Schema)]
/// struct Window {
///     /// First day, `yyyy-mm-dd`.
///     from: String,
///     days: Option<u32>,
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a parameter of a flow",
    label = "has no schema",
    note = "derive `waft_sdk::Schema` for it, or take `serde_json::Value`"
)]
pub trait Schema {
    /// Appends the schema as JSON text.
    fn schema(text: &mut String);

    /// True where a field of this type may be left out of a struct.
    #[doc(hidden)]
    fn is_optional() -> bool {
        false
    }
}

macro_rules! fixed {
    ($($of:ty => $text:expr;)*) => {
        $(impl Schema for $of {
            fn schema(text: &mut String) {
                text.push_str($text);
            }
        })*
    };
}

fixed! {
    String => r#"{"type":"string"}"#;
    char => r#"{"type":"string","minLength":1,"maxLength":1}"#;
    bool => r#"{"type":"boolean"}"#;
    f32 => r#"{"type":"number"}"#;
    f64 => r#"{"type":"number"}"#;
    u8 => r#"{"type":"integer","minimum":0,"maximum":255}"#;
    u16 => r#"{"type":"integer","minimum":0,"maximum":65535}"#;
    u32 => r#"{"type":"integer","minimum":0,"maximum":4294967295}"#;
    u64 => r#"{"type":"integer","minimum":0,"maximum":18446744073709551615}"#;
    usize => r#"{"type":"integer","minimum":0,"maximum":4294967295}"#;
    i8 => r#"{"type":"integer","minimum":-128,"maximum":127}"#;
    i16 => r#"{"type":"integer","minimum":-32768,"maximum":32767}"#;
    i32 => r#"{"type":"integer","minimum":-2147483648,"maximum":2147483647}"#;
    i64 => r#"{"type":"integer","minimum":-9223372036854775808,"maximum":9223372036854775807}"#;
    isize => r#"{"type":"integer","minimum":-2147483648,"maximum":2147483647}"#;
    serde_json::Value => "{}";
}

impl<T: Schema> Schema for Vec<T> {
    fn schema(text: &mut String) {
        text.push_str(r#"{"type":"array","items":"#);
        T::schema(text);
        text.push('}');
    }
}

impl<T: Schema> Schema for Option<T> {
    fn schema(text: &mut String) {
        text.push_str(r#"{"anyOf":["#);
        T::schema(text);
        text.push_str(r#",{"type":"null"}]}"#);
    }

    fn is_optional() -> bool {
        true
    }
}

impl<T: Schema> Schema for BTreeMap<String, T> {
    fn schema(text: &mut String) {
        map::<T>(text);
    }
}

impl<T: Schema, S> Schema for HashMap<String, T, S> {
    fn schema(text: &mut String) {
        map::<T>(text);
    }
}

fn map<T: Schema>(text: &mut String) {
    text.push_str(r#"{"type":"object","additionalProperties":"#);
    T::schema(text);
    text.push('}');
}

/// The schema of a struct, property by property. What `#[derive(Schema)]` calls.
#[doc(hidden)]
pub struct Properties<'a> {
    text: &'a mut String,
    required: String,
    is_first: bool,
}

impl<'a> Properties<'a> {
    /// Opens the object; the description is JSON text, empty for none.
    pub fn open(text: &'a mut String, description: &str) -> Self {
        text.push('{');
        if !description.is_empty() {
            text.push_str(r#""description":"#);
            text.push_str(description);
            text.push(',');
        }
        text.push_str(r#""type":"object","properties":{"#);
        Self {
            text,
            required: String::new(),
            is_first: true,
        }
    }

    /// Adds a property. Name and description are JSON text.
    pub fn add<T: Schema>(mut self, name: &str, description: &str, has_default: bool) -> Self {
        if !self.is_first {
            self.text.push(',');
        }
        self.is_first = false;
        self.text.push_str(name);
        self.text.push(':');
        let start = self.text.len();
        T::schema(self.text);
        // The field's own words, unless its type has some; those stand first.
        if !description.is_empty() && !self.text[start + 1..].starts_with(r#""description""#) {
            let comma = if self.text.len() == start + 2 {
                ""
            } else {
                ","
            };
            self.text.insert_str(
                start + 1,
                &joined(&[r#""description":"#, description, comma]),
            );
        }
        if !has_default && !T::is_optional() {
            if !self.required.is_empty() {
                self.required.push(',');
            }
            self.required.push_str(name);
        }
        self
    }

    /// Closes the object. What is not named is refused.
    pub fn close(self) {
        self.text.push_str(r#"},"required":["#);
        self.text.push_str(&self.required);
        self.text.push_str(r#"],"additionalProperties":false}"#);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of<T: Schema>() -> String {
        let mut text = String::new();
        T::schema(&mut text);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value.to_string()
    }

    #[test]
    fn every_plain_type_has_a_schema() {
        assert_eq!(
            of::<u8>(),
            r#"{"maximum":255,"minimum":0,"type":"integer"}"#
        );
        assert_eq!(
            of::<Vec<String>>(),
            r#"{"items":{"type":"string"},"type":"array"}"#
        );
        assert_eq!(
            of::<Option<bool>>(),
            r#"{"anyOf":[{"type":"boolean"},{"type":"null"}]}"#
        );
        assert_eq!(
            of::<HashMap<String, f64>>(),
            r#"{"additionalProperties":{"type":"number"},"type":"object"}"#
        );
        assert_eq!(of::<serde_json::Value>(), "{}");
    }
}
