//! Values: bytes with a content type.
//!
//! Parameters, inputs and outputs are values. The host looks inside `application/json` only, and
//! only to cut, to join and to compare (`graph`); it never encodes a value anew.

use std::fmt;

use bytes::Bytes;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::limit::MAP_ELEMENTS_MAX;

/// The content type of values that the host may look into.
pub const JSON: &str = "application/json";

/// Bytes with a content type. Cheap to clone: the bytes are shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// A media type, such as `application/json`.
    pub content_type: String,
    /// The value itself.
    pub bytes: Bytes,
}

/// Says why a value could not be cut, joined or compared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotJson {
    /// The content type is another one.
    #[error("it is `{0}`, not `application/json`")]
    ContentType(String),
    /// The bytes do not parse as what was needed.
    #[error("it is not {wanted}: {why}")]
    Shape {
        /// What was needed, with its article.
        wanted: &'static str,
        /// The parser's words.
        why: String,
    },
}

impl Value {
    /// Makes a JSON value of a text that is known to be JSON.
    #[must_use]
    pub fn json(text: impl Into<Bytes>) -> Self {
        Self {
            content_type: JSON.to_owned(),
            bytes: text.into(),
        }
    }

    /// Tells whether the host may look inside.
    #[must_use]
    pub fn is_json(&self) -> bool {
        let essence = self.content_type.split(';').next().unwrap_or_default();
        essence.trim().eq_ignore_ascii_case(JSON)
    }

    /// Cuts a top-level array into its elements, each a slice of the same bytes.
    ///
    /// Of an array that is too long to be mapped it returns one element more than may be, which is
    /// enough to say so: an array of commas and digits would take many times its size.
    ///
    /// # Errors
    ///
    /// Fails if the value is no JSON array.
    pub fn elements(&self) -> Result<Vec<Self>, NotJson> {
        let Head(raw) = self.parsed("an array")?;
        Ok(raw
            .into_iter()
            .map(|element| Self::json(self.bytes.slice_ref(element.get().as_bytes())))
            .collect())
    }

    /// Joins values with commas into one array.
    ///
    /// # Errors
    ///
    /// Fails if one of them is not JSON. Whether its bytes parse is checked too, so that a task
    /// cannot break out of the array with a value that is JSON by name only.
    pub fn joined<'a>(values: impl IntoIterator<Item = &'a Self>) -> Result<Self, NotJson> {
        let mut array = vec![b'['];
        for value in values {
            let _: &RawValue = value.parsed("JSON")?;
            if array.len() > 1 {
                array.push(b',');
            }
            array.extend_from_slice(&value.bytes);
        }
        array.push(b']');
        Ok(Self::json(array))
    }

    /// Reads the value as a string, a bool or an integer, to be compared in a branch.
    ///
    /// # Errors
    ///
    /// Fails on anything else.
    pub fn scalar(&self) -> Result<serde_json::Value, NotJson> {
        let wanted = "a string, a bool or an integer";
        let value: serde_json::Value = self.parsed(wanted)?;
        match &value {
            serde_json::Value::String(_) | serde_json::Value::Bool(_) => Ok(value),
            serde_json::Value::Number(number) if !number.is_f64() => Ok(value),
            _ => Err(NotJson::Shape {
                wanted,
                why: "it is something else".to_owned(),
            }),
        }
    }

    fn parsed<'a, T: serde::Deserialize<'a>>(&'a self, wanted: &'static str) -> Result<T, NotJson> {
        if !self.is_json() {
            return Err(NotJson::ContentType(self.content_type.clone()));
        }
        serde_json::from_slice(&self.bytes).map_err(|error| NotJson::Shape {
            wanted,
            why: error.to_string(),
        })
    }
}

/// The begin of an array; the rest is read and not kept.
struct Head<'a>(Vec<&'a RawValue>);

impl<'de> serde::Deserialize<'de> for Head<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Cut;

        impl<'de> Visitor<'de> for Cut {
            type Value = Head<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut head = Vec::new();
                while head.len() <= MAP_ELEMENTS_MAX {
                    let Some(element) = seq.next_element()? else {
                        return Ok(Head(head));
                    };
                    head.push(element);
                }
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Head(head))
            }
        }

        deserializer.deserialize_seq(Cut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_is_cut_and_joined_without_a_byte_changed() {
        let array = Value::json(r#"[1, "a,]" ,{"x":[2 ]},null]"#);
        let elements = array.elements().unwrap();
        let texts: Vec<_> = elements.iter().map(|e| e.bytes.as_ref()).collect();
        assert_eq!(
            texts,
            [b"1".as_slice(), br#""a,]""#, br#"{"x":[2 ]}"#, b"null"]
        );
        let joined = Value::joined(&elements).unwrap();
        assert_eq!(joined.bytes, r#"[1,"a,]",{"x":[2 ]},null]"#);
    }

    #[test]
    fn of_an_array_that_is_too_long_only_the_begin_is_cut() {
        let array = |count: usize| Value::json(format!("[{}1]", "1,".repeat(count - 1)));
        for (count, cut) in [
            (MAP_ELEMENTS_MAX, MAP_ELEMENTS_MAX),
            (MAP_ELEMENTS_MAX + 1, MAP_ELEMENTS_MAX + 1),
            (3 * MAP_ELEMENTS_MAX, MAP_ELEMENTS_MAX + 1),
        ] {
            assert_eq!(array(count).elements().unwrap().len(), cut);
        }
        let open = format!("[{}", "1,".repeat(2 * MAP_ELEMENTS_MAX));
        assert!(Value::json(open).elements().is_err());
    }

    #[test]
    fn what_is_json_by_name_only_is_refused() {
        assert!(Value::json("1],[2").elements().is_err());
        assert!(Value::joined([&Value::json("1],[2")]).is_err());
        let text = Value {
            content_type: "text/plain".to_owned(),
            bytes: "[]".into(),
        };
        assert_eq!(
            text.elements(),
            Err(NotJson::ContentType("text/plain".to_owned()))
        );
    }

    #[test]
    fn only_strings_bools_and_integers_are_compared() {
        assert!(Value::json("\"a\"").scalar().is_ok());
        assert!(Value::json("true").scalar().is_ok());
        assert!(Value::json("-7").scalar().is_ok());
        assert!(Value::json("7.5").scalar().is_err());
        assert!(Value::json("[1]").scalar().is_err());
        assert!(Value::json("null").scalar().is_err());
    }
}
