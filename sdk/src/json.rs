//! JSON for values that cross the boundary, as small as it can be.
//!
//! serde_json would add some 45 KB to every artifact, most of it for printing floats in error messages.
//! What is here is compiled only for the types that a flow really uses. It reads and writes what
//! serde_json does, byte for byte where that matters: enums by their tag, keys that are numbers as
//! strings, numbers that are no numbers as `null`.

mod read;
mod write;

pub(crate) use read::from_slice;
pub(crate) use write::to_vec;

use crate::text::joined;
use std::fmt::{self, Display};

/// Why a value cannot be read or written.
#[derive(Debug)]
pub(crate) struct Error(String);

impl Error {
    /// Puts texts together; smaller than formatting them.
    fn new(parts: &[&str]) -> Self {
        Self(joined(parts))
    }

    /// The sentence itself; smaller than printing it.
    pub(crate) fn into_text(self) -> String {
        self.0
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

impl serde::ser::Error for Error {
    fn custom<T: Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

// Everything serde says by itself is said here, without the values: printing those costs the most.
impl serde::de::Error for Error {
    fn custom<T: Display>(message: T) -> Self {
        Self(message.to_string())
    }

    fn invalid_type(_: serde::de::Unexpected<'_>, expected: &dyn serde::de::Expected) -> Self {
        Self::new(&["expected ", &expected.to_string()])
    }

    fn invalid_value(_: serde::de::Unexpected<'_>, expected: &dyn serde::de::Expected) -> Self {
        Self::new(&["a value out of range, expected ", &expected.to_string()])
    }

    fn invalid_length(_: usize, expected: &dyn serde::de::Expected) -> Self {
        Self::new(&["another length, expected ", &expected.to_string()])
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::new(&[
            "unknown variant `",
            variant,
            "`, expected one of ",
            &expected.join(", "),
        ])
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::new(&[
            "unknown field `",
            field,
            "`, expected one of ",
            &expected.join(", "),
        ])
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(&["missing field `", field, "`"])
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::new(&["duplicate field `", field, "`"])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::de::DeserializeOwned;
    use serde::{Deserialize, Serialize};
    use std::collections::BTreeMap;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Kind {
        Unit,
        One(u8),
        Two(u8, String),
        Named { left: Option<i32>, right: f64 },
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Everything {
        text: String,
        letter: char,
        kinds: Vec<Kind>,
        numbers: BTreeMap<i16, (bool, u64)>,
        nested: Option<Box<Self>>,
        unit: (),
        large: u128,
    }

    fn everything() -> Everything {
        Everything {
            text: "a \"quoted\" \\ line\n\u{1}, \u{e9} and \u{1f980}".to_string(),
            letter: '\u{df}',
            kinds: vec![
                Kind::Unit,
                Kind::One(7),
                Kind::Two(8, String::new()),
                Kind::Named {
                    left: Some(-5),
                    right: 1.5e300,
                },
                Kind::Named {
                    left: None,
                    right: 0.1,
                },
            ],
            numbers: BTreeMap::from([(-1, (true, u64::MAX)), (2, (false, 0))]),
            nested: None,
            unit: (),
            large: u128::MAX,
        }
    }

    /// Reads and writes as serde_json does.
    fn agrees<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: &T) {
        let ours = to_vec(value).unwrap();
        let theirs = serde_json::to_vec(value).unwrap();
        assert_eq!(
            serde_json::from_slice::<T>(&ours).unwrap(),
            *value,
            "{}",
            String::from_utf8_lossy(&ours)
        );
        assert_eq!(
            from_slice::<T>(&theirs).unwrap(),
            *value,
            "{}",
            String::from_utf8_lossy(&theirs)
        );
        assert_eq!(
            from_slice::<T>(&serde_json::to_vec_pretty(value).unwrap()).unwrap(),
            *value
        );
    }

    #[test]
    fn agrees_with_serde_json() {
        let inner = everything();
        agrees(&Everything {
            nested: Some(Box::new(inner.clone())),
            ..inner
        });
        agrees(&vec![
            0.0,
            -0.0,
            1.0,
            1e21,
            1e-9,
            f64::MIN_POSITIVE,
            f64::MAX,
        ]);
        agrees(&(i64::MIN, u64::MAX, 0_u8, -128_i8));
        agrees(&serde_json::json!({"a": [1, -2, 3.5, null, true, {"b": "\u{2028}"}], "": {}}));
    }

    #[test]
    fn bytes_are_the_same_as_those_of_serde_json() {
        let inner = everything();
        let mut kinds = inner.clone();
        kinds
            .kinds
            .retain(|kind| !matches!(kind, Kind::Named { .. }));
        assert_eq!(to_vec(&kinds).unwrap(), serde_json::to_vec(&kinds).unwrap());
        assert_eq!(to_vec(&[f64::NAN, f64::INFINITY]).unwrap(), b"[null,null]");
    }

    /// Numbers in no order, the same in each run of the test (xorshift).
    fn bits() -> impl Iterator<Item = u64> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        std::iter::repeat_with(move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        })
    }

    #[test]
    fn floats_come_back_to_the_bit() {
        let edges = [
            0,
            1,
            f64::MIN_POSITIVE.to_bits(),
            f64::MIN_POSITIVE.to_bits() - 1,
            f64::MAX.to_bits(),
            0.1_f64.to_bits(),
            9_007_199_254_740_993_f64.to_bits(),
        ];
        let signed = |bits: u64| [bits, bits | 1 << 63];
        let doubles = edges.into_iter().flat_map(signed).chain(bits());
        for value in doubles.map(f64::from_bits).take(200_000) {
            if !value.is_finite() {
                continue;
            }
            let same = |text: &[u8]| from_slice::<f64>(text).unwrap().to_bits();
            // As it is written here, as others may write it, and with more digits than it has.
            for text in [
                format!("{value:e}"),
                format!("{value:?}"),
                format!("{value:.17e}"),
            ] {
                assert_eq!(same(text.as_bytes()), value.to_bits(), "{text}");
            }
            assert_eq!(same(&to_vec(&value).unwrap()), value.to_bits(), "{value:e}");
        }
        // The first is rounded wrongly by whoever reads it as a double first.
        let singles = [0x15ae_43fd, 1, f32::MAX.to_bits()].into_iter();
        let singles = singles.chain(bits().map(|bits| bits as u32));
        for value in singles.map(f32::from_bits).take(200_000) {
            if !value.is_finite() {
                continue;
            }
            let text = to_vec(&value).unwrap();
            assert_eq!(from_slice::<f32>(&text).unwrap().to_bits(), value.to_bits());
        }
    }

    #[test]
    fn digits_beyond_what_a_float_holds_are_read_as_std_reads_them() {
        for bits in bits().take(20_000) {
            let (digits, exponent) = (bits % 1_000_000_000_000, bits % 600);
            let text = format!(
                "{bits}.{digits:012}e{}",
                i64::try_from(exponent).unwrap() - 330
            );
            let Ok(expected) = text.parse::<f64>() else {
                panic!("std does not read {text}");
            };
            match from_slice::<f64>(text.as_bytes()) {
                Ok(read) => assert_eq!(read.to_bits(), expected.to_bits(), "{text}"),
                Err(_) => assert!(expected.is_infinite(), "{text}"),
            }
        }
        assert!(from_slice::<f32>(b"1e39").is_err());
        assert!(from_slice::<f64>(b"1e309").is_err());
        let values: Vec<serde_json::Value> = from_slice(b"[-0.0,18446744073709551616]").unwrap();
        assert_eq!(values[0].as_f64().unwrap().to_bits(), (-0.0_f64).to_bits());
        assert_eq!(values[1].as_f64(), Some(18_446_744_073_709_551_616.0));
    }

    #[test]
    fn escapes_are_read() {
        assert_eq!(
            from_slice::<String>(br#""\u00e9\ud83e\udd80\/\b\f\n\r\t""#).unwrap(),
            "\u{e9}\u{1f980}/\u{8}\u{c}\n\r\t"
        );
    }

    #[test]
    fn what_is_no_json_is_refused_as_serde_json_does() {
        for text in [
            "",
            " ",
            "nul",
            "truee",
            "[1,]",
            "[1 2]",
            "{\"a\":1,}",
            "{\"a\" 1}",
            "{a:1}",
            "01",
            "1.",
            ".5",
            "-",
            "+1",
            "1e",
            "\"a",
            "\"\\x\"",
            "\"\\ud800\"",
            "\"\n\"",
            "[",
            "{",
            "1 2",
            "\u{feff}1",
            "--1",
            "\"\\u12\"",
        ] {
            assert!(
                serde_json::from_str::<serde_json::Value>(text).is_err(),
                "{text} is JSON"
            );
            assert!(
                from_slice::<serde_json::Value>(text.as_bytes()).is_err(),
                "{text} was read"
            );
        }
        assert!(from_slice::<String>(b"\"\xff\"").is_err());
        assert!(from_slice::<serde_json::Value>("[".repeat(100_000).as_bytes()).is_err());
        assert!(from_slice::<serde::de::IgnoredAny>("[".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn errors_say_what_and_where() {
        let error = |text: &str| {
            from_slice::<Vec<u8>>(text.as_bytes())
                .unwrap_err()
                .to_string()
        };
        assert_eq!(error("[1,\"x\"]"), "expected u8 at byte 3");
        assert_eq!(
            error("[256]"),
            "a value out of range, expected u8 at byte 4"
        );
        assert_eq!(error("{}"), "expected a sequence at byte 0");
        assert_eq!(error("[1"), "expected `,` or `]` at byte 2");
        let error = from_slice::<Kind>(b"\"Three\"").unwrap_err().to_string();
        assert!(
            error.starts_with("unknown variant `Three`, expected one of Unit, One"),
            "{error}"
        );
    }
}
