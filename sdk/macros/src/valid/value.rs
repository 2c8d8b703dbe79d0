//! What the values of options mean: durations, sizes, shares, names, grants.
//!
//! Each function takes the author's expression and answers the value, or an error at its place that shows
//! how such a value is written. Called by `valid` only.

use syn::spanned::Spanned;
use syn::{Error, Expr, Lit, Result};

/// The longest tag that hosts take.
const TAG_CHARS_MAX: usize = 64;
/// The contract's bound on names.
const NAME_CHARS_MAX: usize = 128;
/// A flow that ticks faster is a loop.
const INTERVAL_MS_MIN: u64 = 1_000;
/// As the host has it: a hundred years.
const INTERVAL_MS_MAX: u64 = 100 * 366 * 24 * 60 * 60 * 1_000;
/// As the host has it.
const HOST_CHARS_MAX: usize = 253;
/// As the host has it.
const PATH_BYTES_MAX: usize = 512;
/// The contract's bound on tags.
const TAGS_MAX: usize = 32;

/// `0.2` or `"20%"`.
pub(super) fn percent(value: &Expr) -> Result<u32> {
    let wrong = || {
        Error::new(
            value.span(),
            "a share is written `0.2` or `\"20%\"`, and is at most the whole",
        )
    };
    let share = match literal(value) {
        Some(Lit::Float(share)) => share.base10_parse::<f64>()? * 100.0,
        Some(Lit::Int(share)) => share.base10_parse::<f64>()? * 100.0,
        Some(Lit::Str(share)) => share
            .value()
            .strip_suffix('%')
            .and_then(|share| share.parse::<f64>().ok())
            .ok_or_else(wrong)?,
        _ => return Err(wrong()),
    };
    if !(0.0..=100.0).contains(&share) {
        return Err(wrong());
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and 100"
    )]
    Ok(share.round() as u32)
}

pub(super) fn number(value: &Expr) -> Result<u32> {
    match literal(value) {
        Some(Lit::Int(number)) => number.base10_parse(),
        _ => Err(Error::new(value.span(), "a whole number is wanted here")),
    }
}

pub(super) fn boolean(value: &Expr) -> Result<bool> {
    match literal(value) {
        Some(Lit::Bool(boolean)) => Ok(boolean.value),
        _ => Err(Error::new(value.span(), "`true` or `false` is wanted here")),
    }
}

pub(super) fn text(value: &Expr) -> Result<String> {
    match literal(value) {
        Some(Lit::Str(text)) => Ok(text.value()),
        _ => Err(Error::new(value.span(), "a text in quotes is wanted here")),
    }
}

pub(super) fn filled(value: &Expr) -> Result<String> {
    let text = text(value)?;
    if text.trim().is_empty() {
        Err(Error::new(value.span(), "an empty text means nothing here"))
    } else {
        Ok(text)
    }
}

pub(super) fn word(value: &Expr, words: &[(&str, &'static str)]) -> Result<&'static str> {
    let text = text(value)?;
    words
        .iter()
        .find(|(word, _)| *word == text)
        .map(|(_, meaning)| *meaning)
        .ok_or_else(|| {
            let words: Vec<String> = words
                .iter()
                .map(|(word, _)| format!("`\"{word}\"`"))
                .collect();
            Error::new(
                value.span(),
                format!("one of {} is wanted here", words.join(", ")),
            )
        })
}

pub(super) fn name(value: &Expr) -> Result<String> {
    let name = text(value)?;
    let is_name = name
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    let is_said = name.chars().any(|c| c.is_ascii_alphanumeric());
    if !is_said || name.len() > NAME_CHARS_MAX || !is_name {
        return Err(Error::new(
            value.span(),
            format!("a name is 1 to {NAME_CHARS_MAX} letters, digits, `-`, `_` and `.`"),
        ));
    }
    Ok(name)
}

/// `10s`, `1h30m`, `500ms`, in milliseconds.
pub(super) fn duration(value: &Expr) -> Result<u64> {
    let wrong = || {
        Error::new(
            value.span(),
            "a duration is written `\"500ms\"`, `\"10s\"`, `\"5m\"`, `\"1h\"` or `\"2d\"`",
        )
    };
    let text = text(value).map_err(|_| wrong())?;
    let mut rest = text.as_str();
    let mut millis: u64 = 0;
    while !rest.is_empty() {
        let (count, after) =
            rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?);
        let (unit, after) = after.split_at(
            after
                .find(|c: char| c.is_ascii_digit())
                .unwrap_or(after.len()),
        );
        let unit: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        let part = count
            .parse::<u64>()
            .ok()
            .and_then(|count| count.checked_mul(unit));
        millis = part
            .and_then(|part| millis.checked_add(part))
            .ok_or_else(wrong)?;
        rest = after;
    }
    if text.is_empty() {
        Err(wrong())
    } else {
        Ok(millis)
    }
}

pub(super) fn some_duration(value: &Expr) -> Result<u64> {
    match duration(value)? {
        0 => Err(Error::new(
            value.span(),
            "no time at all leaves nothing to be done",
        )),
        millis => Ok(millis),
    }
}

/// `64MiB`, in bytes.
pub(super) fn size(value: &Expr) -> Result<u64> {
    let wrong = || {
        Error::new(
            value.span(),
            "a size is written `\"64KiB\"`, `\"512MiB\"` or `\"1GiB\"`",
        )
    };
    let text = text(value).map_err(|_| wrong())?;
    let (count, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?);
    let unit: u64 = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    let bytes = count
        .parse::<u64>()
        .ok()
        .and_then(|count| count.checked_mul(unit));
    bytes.filter(|bytes| *bytes > 0).ok_or_else(wrong)
}

pub(super) fn tags(value: &Expr) -> Result<Vec<String>> {
    let tags = list(value, tag)?;
    if tags.len() > TAGS_MAX {
        Err(Error::new(value.span(), format!("at most {TAGS_MAX} tags")))
    } else {
        Ok(tags)
    }
}

pub(super) fn tag(value: &Expr) -> Result<String> {
    let tag = filled(value)?;
    let is_word = |c: char| c.is_ascii_alphanumeric() || "-_.:/".contains(c);
    if tag.len() <= TAG_CHARS_MAX && tag.chars().all(is_word) {
        return Ok(tag);
    }
    Err(Error::new(
        value.span(),
        "a tag is one word: letters, digits and `-_.:/`, at most 64",
    ))
}

pub(super) fn net(value: &Expr) -> Result<String> {
    let wrong = |why: &str| {
        Error::new(
            value.span(),
            format!("{why}: write `\"api.example.org:443\"`"),
        )
    };
    let rule = text(value)?;
    if rule.contains("://") || rule.contains('/') {
        return Err(wrong("a host is granted, not a URL"));
    }
    let Some((host, port)) = rule.rsplit_once(':') else {
        return Err(wrong("the port is missing"));
    };
    let is_port = port == "*" || port.parse::<u16>().is_ok_and(|port| port > 0);
    // As hosts read it: a name or an address, or `*` for all of it or for the part before a domain.
    let bare = host.strip_prefix("*.").unwrap_or(host);
    let bare = match bare.strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
        Some(address) if address.parse::<std::net::Ipv6Addr>().is_ok() => "address",
        _ => bare,
    };
    let is_host = host == "*"
        || (!bare.is_empty()
            && bare.len() <= HOST_CHARS_MAX
            && bare
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)));
    if is_port && is_host {
        Ok(rule)
    } else {
        Err(wrong("that is not `host:port`"))
    }
}

pub(super) fn dir(value: &Expr) -> Result<String> {
    let rule = text(value)?;
    match rule.rsplit_once(':') {
        Some((path, "ro" | "rw")) if is_guest_path(path) => Ok(rule),
        _ => Err(Error::new(
            value.span(),
            "a folder is asked for by its path in the sandbox and a mode: `\"/data:ro\"` or `\"/out:rw\"`",
        )),
    }
}

/// As hosts read it: absolute, without a part that is empty or leads elsewhere.
fn is_guest_path(path: &str) -> bool {
    let is_plain = |part: &str| {
        !matches!(part, "" | "." | "..") && !part.contains(|c: char| c.is_control() || c == '\\')
    };
    path.len() <= PATH_BYTES_MAX
        && path
            .strip_prefix('/')
            .is_some_and(|rest| rest.split('/').all(is_plain))
}

pub(super) fn variable(value: &Expr) -> Result<String> {
    called(value, "variable")
}

pub(super) fn secret(value: &Expr) -> Result<String> {
    called(value, "secret")
}

/// As hosts read it: names of variables and secrets stand in flags and files.
fn called(value: &Expr, what: &str) -> Result<String> {
    let name = text(value)?;
    let is_word = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if (1..=NAME_CHARS_MAX).contains(&name.len()) && name.chars().all(is_word) {
        return Ok(name);
    }
    Err(Error::new(
        value.span(),
        format!(
            "a {what} is asked for by its name: 1 to {NAME_CHARS_MAX} letters, digits, `-`, `_` and `.`"
        ),
    ))
}

pub(super) fn list(value: &Expr, element: impl Fn(&Expr) -> Result<String>) -> Result<Vec<String>> {
    match value {
        Expr::Array(array) => array.elems.iter().map(element).collect(),
        _ => Err(Error::new(
            value.span(),
            "a list is wanted here: `[\"..\"]`",
        )),
    }
}

pub(super) fn ident(value: &Expr) -> Option<String> {
    match value {
        Expr::Path(path) => path.path.get_ident().map(ToString::to_string),
        _ => None,
    }
}

/// A literal. A number below zero is none, and no option takes one.
pub(super) fn literal(value: &Expr) -> Option<&Lit> {
    match value {
        Expr::Lit(lit) => Some(&lit.lit),
        Expr::Group(group) => literal(&group.expr),
        _ => None,
    }
}

pub(super) fn interval(value: &Expr) -> Result<u64> {
    match duration(value)? {
        millis if millis < INTERVAL_MS_MIN => Err(Error::new(
            value.span(),
            "an interval is at least one second",
        )),
        millis if millis > INTERVAL_MS_MAX => Err(Error::new(
            value.span(),
            "an interval is at most a hundred years",
        )),
        millis => Ok(millis),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use syn::parse_quote;

    #[test]
    fn durations_and_sizes_are_read() {
        assert_eq!(duration(&parse_quote!("1h30m")).unwrap(), 5_400_000);
        assert_eq!(duration(&parse_quote!("500ms")).unwrap(), 500);
        assert_eq!(size(&parse_quote!("512MiB")).unwrap(), 512 << 20);
        for wrong in ["", "10", "s", "1w", "99999999999999999999s"] {
            assert!(duration(&parse_quote!(#wrong)).is_err(), "{wrong}");
        }
        for wrong in ["", "10", "0B", "1MB"] {
            assert!(size(&parse_quote!(#wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn shares_are_read() {
        assert_eq!(percent(&parse_quote!(0.2)).unwrap(), 20);
        assert_eq!(percent(&parse_quote!("35%")).unwrap(), 35);
        assert!(percent(&parse_quote!(1.5)).is_err());
        assert!(percent(&parse_quote!("x%")).is_err());
    }

    #[test]
    fn grants_are_known_by_their_shape() {
        for right in ["a.org:443", "*.a.org:8080", "127.0.0.1:*", "[::1]:80"] {
            assert!(net(&parse_quote!(#right)).is_ok(), "{right}");
        }
        for wrong in ["a.org", "https://a.org:443", "a.org:0", ":80", "a b:1"] {
            assert!(net(&parse_quote!(#wrong)).is_err(), "{wrong}");
        }
        for wrong in ["/data", "data:ro", "/data:rx", "/a/../b:ro"] {
            assert!(dir(&parse_quote!(#wrong)).is_err(), "{wrong}");
        }
    }
}
