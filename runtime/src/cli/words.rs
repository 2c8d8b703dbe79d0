//! How instants, durations, sizes and words of the API are written for people.

use jiff::Timestamp;
use serde::Serialize;

/// Writes an instant to the second, in UTC.
pub(crate) fn instant(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// Writes an instant, or a dash where there is none.
pub(crate) fn instant_or_dash(at: Option<Timestamp>) -> String {
    at.map_or_else(|| "-".to_owned(), instant)
}

/// Writes how many runs agents may have at one time.
pub(crate) fn slots(slots: Option<u32>) -> String {
    match slots {
        Some(1) => "one run at a time".to_owned(),
        Some(slots) => format!("{slots} runs at a time"),
        None => "as many runs at a time as there are".to_owned(),
    }
}

/// Writes how many task runs with a tag may run at one time.
pub(crate) fn task_slots(slots: Option<u32>) -> String {
    match slots {
        Some(1) => "one task run at a time".to_owned(),
        Some(slots) => format!("{slots} task runs at a time"),
        None => "as many task runs at a time as there are".to_owned(),
    }
}

/// Writes how long something took.
pub(crate) fn duration(millis: u64) -> String {
    match millis {
        0..1_000 => format!("{millis} ms"),
        1_000..60_000 => format!("{}.{} s", millis / 1_000, millis % 1_000 / 100),
        60_000..3_600_000 => format!("{} min {} s", millis / 60_000, millis % 60_000 / 1_000),
        _ => format!(
            "{} h {} min",
            millis / 3_600_000,
            millis % 3_600_000 / 60_000
        ),
    }
}

/// Returns the milliseconds between two instants; none unless both are there.
pub(crate) fn millis_between(from: Option<Timestamp>, until: Option<Timestamp>) -> Option<u64> {
    let millis = until?.as_millisecond() - from?.as_millisecond();
    Some(u64::try_from(millis).unwrap_or_default())
}

/// Writes a size in the unit that suits it.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} bytes"),
        1_024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1_024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

/// Writes how many of something there are.
pub(crate) fn count(count: usize, thing: &str) -> String {
    match count {
        1 => format!("1 {thing}"),
        count => format!("{count} {thing}s"),
    }
}

/// Writes a word of the API as the API does.
pub(crate) fn of(word: &impl Serialize) -> String {
    let value = serde_json::to_value(word).unwrap_or_default();
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// Writes a list, or says that there is nothing.
pub(crate) fn list_or_none(words: &[String]) -> String {
    match words {
        [] => "none".to_owned(),
        words => words.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_these() {
        assert_eq!(duration(7), "7 ms");
        assert_eq!(duration(1_250), "1.2 s");
        assert_eq!(duration(185_000), "3 min 5 s");
        assert_eq!(duration(7_260_000), "2 h 1 min");
        assert_eq!(size(12), "12 bytes");
        assert_eq!(size(13_926), "13.6 KiB");
        assert_eq!(size(18 << 20), "18.0 MiB");
        assert_eq!(size(4 << 30), "4.0 GiB");
        assert_eq!(count(1, "run"), "1 run");
        assert_eq!(count(0, "run"), "0 runs");
        let at: Timestamp = "2026-11-23T15:04:05.678Z".parse().unwrap();
        assert_eq!(instant(at), "2026-11-23 15:04:05Z");
        assert_eq!(millis_between(Some(at), Some(at)), Some(0));
        assert_eq!(millis_between(Some(at), None), None);
    }
}
