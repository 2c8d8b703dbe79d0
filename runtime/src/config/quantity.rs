//! Durations and sizes as people write them: `10s`, `64MiB`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A length of time, written `250ms`, `10s`, `5m`, `1h` or `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub u64);

/// A size, written `100B`, `512KiB`, `64MiB` or `1GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// Says why a text is no duration or size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {what}: expected {wanted}")]
pub struct NoQuantity {
    text: String,
    what: &'static str,
    wanted: &'static str,
}

const TIMES: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

const SIZES: [(&str, u64); 4] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
];

impl From<Millis> for Duration {
    fn from(millis: Millis) -> Self {
        Self::from_millis(millis.0)
    }
}

impl FromStr for Millis {
    type Err = NoQuantity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        read(text, &TIMES).map(Self).ok_or_else(|| NoQuantity {
            text: text.escape_debug().take(80).collect(),
            what: "duration",
            wanted: "a number with `ms`, `s`, `m`, `h` or `d`, such as `10s`",
        })
    }
}

impl FromStr for Bytes {
    type Err = NoQuantity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        read(text, &SIZES).map(Self).ok_or_else(|| NoQuantity {
            text: text.escape_debug().take(80).collect(),
            what: "size",
            wanted: "a number with `B`, `KiB`, `MiB` or `GiB`, such as `64MiB`",
        })
    }
}

fn read(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// Writes in the largest unit that leaves no rest, so that what was typed is shown again.
fn write(value: u64, units: &[(&str, u64)], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let fits = units
        .iter()
        .rfind(|(_, factor)| value != 0 && value.is_multiple_of(*factor));
    match fits {
        Some((unit, factor)) => write!(f, "{}{unit}", value / factor),
        None => write!(f, "0{}", units[0].0),
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(self.0, &TIMES, f)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(self.0, &SIZES, f)
    }
}

macro_rules! as_text {
    ($($name:ident)*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

as_text! { Millis Bytes }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_read_and_shown_again() {
        for (text, millis) in [
            ("250ms", 250),
            ("10s", 10_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(text.parse(), Ok(Millis(millis)));
            assert_eq!(Millis(millis).to_string(), text);
        }
        assert_eq!("64MiB".parse(), Ok(Bytes(64 << 20)));
        assert_eq!("64 MiB".parse(), Ok(Bytes(64 << 20)));
        assert_eq!("100B".parse(), Ok(Bytes(100)));
        assert_eq!(Bytes(0).to_string(), "0B");
        assert_eq!(Bytes(100).to_string(), "100B");
        assert_eq!(Bytes(3 << 19).to_string(), "1536KiB");
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in [
            "",
            "10",
            "s",
            "-1s",
            "1.5h",
            "10 seconds",
            "99999999999999999999s",
        ] {
            assert!(text.parse::<Millis>().is_err(), "{text}");
        }
        for text in ["", "5", "MiB", "64MB", "64mib", "99999999999GiB"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }
}
