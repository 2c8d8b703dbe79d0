//! Moments as they are written: instants, dates, times of day, weekdays, time zones.
//!
//! The calendar is checked and not the shape alone: 30 February is refused where it is written. Whether a
//! time zone exists, hosts know; they have the list of them.

use super::value::text;
use syn::spanned::Spanned;
use syn::{Error, Expr, Result};

/// The end of the time that hosts can tell, in seconds: 9999-12-30T22:00:00Z.
const SECONDS_MAX: i64 = 253_402_207_200;
/// As the contract counts them, from 1 on.
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// An instant in RFC 3339, with the moment that it is: seconds since 1970, and nanoseconds.
pub(super) fn instant(value: &Expr) -> Result<(String, (i64, u32))> {
    let written = text(value)?;
    let moment = moment(&written).ok_or_else(|| {
        Error::new(
            value.span(),
            "an instant is written `\"2026-12-01T09:00:00Z\"` or with an offset such as `+01:00`",
        )
    })?;
    if moment.0 >= SECONDS_MAX {
        return Err(Error::new(
            value.span(),
            "no host can tell a time that late: leave it out, for there is no end without one",
        ));
    }
    Ok((written, moment))
}

fn moment(written: &str) -> Option<(i64, u32)> {
    let (date, rest) = written.split_once('T')?;
    let (clock, rest) = rest.split_at_checked("00:00:00".len())?;
    let (clock, seconds) = clock.rsplit_once(':')?;
    let seconds = two(seconds).filter(|seconds| *seconds <= 59)?;
    let (nanos, zone) = match rest.strip_prefix('.') {
        Some(rest) => {
            let digits = rest.find(|c: char| !c.is_ascii_digit())?;
            let (fraction, zone) = rest.split_at(digits);
            let scale = 9_usize.checked_sub(fraction.len())?;
            let fraction: u32 = fraction.parse().ok()?;
            (fraction * 10_u32.pow(u32::try_from(scale).ok()?), zone)
        }
        None => (0, rest),
    };
    let offset = match (zone, zone.split_at_checked(1)) {
        ("Z", _) => 0,
        (_, Some(("+", offset))) => minutes(offset)?,
        (_, Some(("-", offset))) => -minutes(offset)?,
        _ => return None,
    };
    let passed = days(date)? * 24 * 60 + minutes(clock)? - offset;
    Some((passed * 60 + seconds, nanos))
}

/// A date, `yyyy-mm-dd`.
pub(super) fn date(value: &Expr) -> Result<String> {
    let written = text(value)?;
    match days(&written) {
        Some(_) => Ok(written),
        None => Err(Error::new(
            value.span(),
            "a date is written `\"2026-12-25\"`, and is one of the calendar",
        )),
    }
}

/// A time of day, `hh:mm`.
pub(super) fn time(value: &Expr) -> Result<String> {
    let written = text(value)?;
    match minutes(&written) {
        Some(_) => Ok(written),
        None => Err(Error::new(
            value.span(),
            "a time is written `\"22:00\"`, from `00:00` to `23:59`",
        )),
    }
}

/// `mon` or `mon-fri`, as numbers; `fri-mon` goes over the weekend.
pub(super) fn weekdays(value: &Expr) -> Result<Vec<u8>> {
    let wrong = || {
        Error::new(
            value.span(),
            format!(
                "a weekday is one of {}, or a range such as `mon-fri`",
                DAYS.join(", ")
            ),
        )
    };
    let written = text(value)?;
    let day = |word: &str| {
        let nth = DAYS.iter().position(|day| *day == word);
        nth.ok_or_else(wrong)
    };
    let (first, last) = match written.split_once('-') {
        Some((first, last)) => (day(first)?, day(last)?),
        None => (day(&written)?, day(&written)?),
    };
    let length = (last + DAYS.len() - first) % DAYS.len();
    let days = (first..=first + length).map(|day| day % DAYS.len());
    Ok(days.filter_map(|day| u8::try_from(day + 1).ok()).collect())
}

/// A name of the IANA database, by its shape.
pub(super) fn time_zone(value: &Expr) -> Result<String> {
    let zone = text(value)?;
    let is_word = |c: char| c.is_ascii_alphanumeric() || "/_+-".contains(c);
    if zone.is_empty() || !zone.chars().all(is_word) {
        return Err(Error::new(
            value.span(),
            "a time zone is a name such as `Europe/Berlin`",
        ));
    }
    Ok(zone)
}

/// The days from 1970 to a date of the calendar.
fn days(date: &str) -> Option<i64> {
    let (year, rest) = date.split_at_checked("0000-".len())?;
    let (month, day) = rest.split_once('-')?;
    let (century, year) = year.strip_suffix('-')?.split_at_checked(2)?;
    let (year, month, day) = (two(century)? * 100 + two(year)?, two(month)?, two(day)?);
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        2 if is_leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        _ => return None,
    };
    if !(1..=length).contains(&day) {
        return None;
    }
    // Years that begin in March end with the day that may be missing.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let before = year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    Some(before + (month * 153 + 2) / 5 + day - 1 - 719_468)
}

/// The minutes from midnight to a time, `hh:mm`.
fn minutes(time: &str) -> Option<i64> {
    let (hours, minutes) = time.split_once(':')?;
    let (hours, minutes) = (two(hours)?, two(minutes)?);
    (hours <= 23 && minutes <= 59).then_some(hours * 60 + minutes)
}

/// Two digits.
fn two(digits: &str) -> Option<i64> {
    let is_two = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_two.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use syn::parse_quote;

    #[test]
    fn instants_are_moments_of_the_calendar() {
        for (right, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2026-12-01T09:00:00Z", 1_796_115_600),
            ("2026-12-01T10:00:00.5+01:00", 1_796_115_600),
            ("2024-02-29T23:59:59-23:59", 1_709_337_539),
            ("2000-02-29T00:00:00Z", 951_782_400),
            ("0000-01-01T00:00:00Z", -62_167_219_200),
        ] {
            let (_, moment) = instant(&parse_quote!(#right)).unwrap();
            assert_eq!(moment.0, seconds, "{right}");
        }
        let (_, moment) = instant(&parse_quote!("1970-01-01T00:00:00.25Z")).unwrap();
        assert_eq!(moment, (0, 250_000_000));
        for wrong in [
            "",
            "tomorrow",
            "2026-12-01",
            "2026-12-01 09:00:00Z",
            "2026-12-01T09:00Z",
            "2026-12-01T09:00:00",
            "2026-12-01T09:00:00.Z",
            "2026-12-01T09:00:00.0123456789Z",
            "2026-12-01T09:00:00+1:00",
            "2026-12-01T09:00:00+24:00",
            "2026-12-01T24:00:00Z",
            "2026-12-01T23:59:60Z",
            "2026-13-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2100-02-29T00:00:00Z",
            "2026-04-31T00:00:00Z",
            "2026-12-00T00:00:00Z",
            "9999-12-31T00:00:00Z",
            "2026-12-01T09:00:0äZ",
        ] {
            assert!(instant(&parse_quote!(#wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn days_and_times_are_read() {
        assert!(date(&parse_quote!("2028-02-29")).is_ok());
        for wrong in [
            "2026-02-29",
            "2026-2-3",
            "26-02-03",
            "2026-12-25T",
            "20é6-01-01",
        ] {
            assert!(date(&parse_quote!(#wrong)).is_err(), "{wrong}");
        }
        assert!(time(&parse_quote!("00:00")).is_ok() && time(&parse_quote!("23:59")).is_ok());
        for wrong in ["24:00", "7:00", "07:60", "7am", "07:00:00"] {
            assert!(time(&parse_quote!(#wrong)).is_err(), "{wrong}");
        }
        for (right, days) in [
            ("mon", &[1][..]),
            ("mon-fri", &[1, 2, 3, 4, 5]),
            ("sat-mon", &[6, 7, 1]),
            ("sun-sun", &[7]),
        ] {
            assert_eq!(weekdays(&parse_quote!(#right)).unwrap(), days, "{right}");
        }
        for wrong in ["", "Monday", "MON", "1-5", "mon-", "mon-fri-sun", "mo"] {
            assert!(weekdays(&parse_quote!(#wrong)).is_err(), "{wrong}");
        }
    }
}
