//! Small texts, put together as small code.
//!
//! A flow carries a copy of every use of `format!` and `to_string`, with the printing machinery of the
//! standard library behind it. What the SDK itself says is made of these three instead, so that an artifact
//! stays a few tens of kilobytes. None of them is inlined: a call is smaller than what it does.

/// Copies a text.
#[inline(never)]
pub(crate) fn owned(text: &str) -> String {
    text.to_owned()
}

/// Puts texts together.
#[inline(never)]
pub(crate) fn joined(parts: &[&str]) -> String {
    let mut text = String::new();
    for part in parts {
        text.push_str(part);
    }
    text
}

/// Writes a number.
#[inline(never)]
pub(crate) fn decimal(number: u64) -> String {
    let digit = (number % 10) as usize;
    let last = "0123456789".get(digit..=digit).unwrap_or_default();
    match number / 10 {
        0 => owned(last),
        rest => joined(&[&decimal(rest), last]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_the_standard_library_does() {
        for number in [0, 9, 10, 4_096, u64::MAX] {
            assert_eq!(decimal(number), number.to_string());
        }
    }
}
