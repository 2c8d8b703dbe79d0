//! Cron lines: five fields, checked as hosts read them and a little more closely.
//!
//! What is refused here is what a host would refuse when the flow is described, and what it would take and
//! the author cannot have meant: a step that is never made, a day that no month has, the name of a month
//! among weekdays.

/// A field of a cron line.
struct Field {
    name: &'static str,
    least: u16,
    most: u16,
    /// What may stand in place of numbers, from the least number on.
    words: &'static [&'static str],
}

const FIELDS: [Field; 5] = [
    Field::plain("minute", 0, 59),
    Field::plain("hour", 0, 23),
    Field::plain("day", 1, 31),
    Field {
        words: &[
            "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC",
        ],
        ..Field::plain("month", 1, 12)
    },
    Field {
        words: &["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"],
        // 7 is Sunday, as 0 is.
        ..Field::plain("weekday", 0, 7)
    },
];
const DAY: usize = 2;
const MONTH: usize = 3;
const WEEKDAY: usize = 4;
/// The most days that each month has.
const DAYS: [u16; 12] = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
/// As the host has it.
const LINE_BYTES_MAX: usize = 120;

/// Reads a cron line; answers it with one space between its fields, or what is wrong with it.
pub(super) fn line(line: &str) -> Result<String, String> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    if fields.len() != FIELDS.len() || line.len() > LINE_BYTES_MAX {
        return Err(
            "a cron line has five fields, minute, hour, day, month and weekday: `\"30 6 * * 1-5\"`"
                .to_string(),
        );
    }
    let mut numbers = Vec::new();
    for (field, text) in FIELDS.iter().zip(&fields) {
        numbers.push(field.read(text)?);
    }
    // Where a weekday is named too, that alone is enough.
    if let (Some(days), Some(months), "*" | "?") = (&numbers[DAY], &numbers[MONTH], fields[WEEKDAY])
    {
        let has = |month: &u16| {
            let length = DAYS.get(usize::from(*month) - 1);
            days.iter().any(|day| Some(day) <= length)
        };
        if !months.iter().any(has) {
            return Err(format!(
                "this never comes: month {} has no day {}",
                fields[MONTH], fields[DAY]
            ));
        }
    }
    Ok(fields.join(" "))
}

impl Field {
    const fn plain(name: &'static str, least: u16, most: u16) -> Self {
        Self {
            name,
            least,
            most,
            words: &[],
        }
    }

    /// Answers the numbers that a field stands for; none where that depends on the month.
    fn read(&self, field: &str) -> Result<Option<Vec<u16>>, String> {
        let mut numbers = Some(Vec::new());
        let is_list = field.contains(',');
        for item in field.split(',') {
            if is_list && matches!(item, "*" | "?") {
                return Err(format!(
                    "every {} and others is every {0}: write `*` alone",
                    self.name
                ));
            }
            match (self.item(item)?, &mut numbers) {
                (Some(more), Some(numbers)) => numbers.extend(more),
                (None, _) => numbers = None,
                (Some(_), None) => {}
            }
        }
        Ok(numbers)
    }

    /// `5`, `1-5`, `*`, `*/15`, `1-5/2`; in a day `L`, `LW`, `15W`; in a weekday `5L`, `MON#1`.
    fn item(&self, item: &str) -> Result<Option<Vec<u16>>, String> {
        let upper = item.to_ascii_uppercase();
        let is_day = self.name == FIELDS[DAY].name;
        let is_weekday = self.name == FIELDS[WEEKDAY].name;
        if is_day && matches!(upper.as_str(), "L" | "LW") {
            return Ok(None);
        }
        if let Some(day) = upper.strip_suffix('W').filter(|_| is_day) {
            return self.number(item, day, 0).map(|_| None);
        }
        if let Some((place, week)) = upper.split_once('#').filter(|_| is_weekday) {
            if !matches!(week, "1" | "2" | "3" | "4" | "5") {
                return Err(format!(
                    "a month has the weeks 1 to 5 of a weekday, not `{week}`"
                ));
            }
            return self.range(item, place).map(|_| None);
        }
        if let Some(day) = upper.strip_suffix('L').filter(|_| is_weekday) {
            return self.number(item, day, 0).map(|_| None);
        }
        let (place, step) = match upper.split_once('/') {
            Some((place, step)) => (place, Some(step)),
            None => (upper.as_str(), None),
        };
        let is_any = place == "*" || (place == "?" && (is_day || is_weekday));
        if step.is_some() && !is_any && !place.contains('-') {
            return Err(format!(
                "a step goes over `*` or a range: `{place}-{}/{}`",
                self.most,
                step.unwrap_or_default()
            ));
        }
        let (first, last) = match is_any {
            true => (self.least, self.most),
            false => self.range(item, place)?,
        };
        let step = step.map_or(Ok(1), |step| self.step(step))?;
        Ok(Some((first..=last).step_by(step).collect()))
    }

    fn step(&self, step: &str) -> Result<usize, String> {
        let wrong = || {
            format!(
                "a step of the {} is 1 to {}, not `{step}`",
                self.name, self.most
            )
        };
        let is_step = |step: &u16| (1..=self.most).contains(step);
        let step = number(step).filter(is_step).ok_or_else(wrong)?;
        Ok(usize::from(step))
    }

    fn range(&self, item: &str, place: &str) -> Result<(u16, u16), String> {
        let (first, last) = match place.split_once('-') {
            Some((first, last)) => {
                // `FRI-SUN` ends with Sunday as the last day.
                let first = self.number(item, first, 0)?;
                (first, self.number(item, last, 7)?)
            }
            None => {
                let one = self.number(item, place, 0)?;
                (one, one)
            }
        };
        if first > last {
            return Err(format!(
                "the {} of a cron line counts up, and `{item}` does not: write it as two, with a comma",
                self.name
            ));
        }
        Ok((first, last))
    }

    fn number(&self, item: &str, text: &str, sunday: u16) -> Result<u16, String> {
        if let Some(nth) = self.words.iter().position(|word| *word == text) {
            let nth = self.least + u16::try_from(nth).unwrap_or_default();
            return Ok(if text == "SUN" { sunday } else { nth });
        }
        let Some(number) = number(text) else {
            return Err(format!(
                "the {} of a cron line is not written `{item}`",
                self.name
            ));
        };
        if !(self.least..=self.most).contains(&number) {
            return Err(format!(
                "the {} of a cron line is {} to {}, not {text}",
                self.name, self.least, self.most
            ));
        }
        Ok(number)
    }
}

/// Reads digits and nothing else; what is too large for a field is too large for all.
fn number(text: &str) -> Option<u16> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        for (wrong, expected) in [
            ("75 * * * *", "the minute of a cron line is 0 to 59, not 75"),
            ("0 6-24 * * *", "the hour of a cron line is 0 to 23, not 24"),
            ("0 0 1,0 * *", "the day of a cron line is 1 to 31, not 0"),
            (
                "0 0 1 13-14/2 *",
                "the month of a cron line is 1 to 12, not 13",
            ),
            ("0 0 * * 8#1", "the weekday of a cron line is 0 to 7, not 8"),
            (
                "0 0 * * foo",
                "the weekday of a cron line is not written `foo`",
            ),
            (
                "0 0 * * JAN",
                "the weekday of a cron line is not written `JAN`",
            ),
            (
                "0,,1 * * * *",
                "the minute of a cron line is not written ``",
            ),
            (
                "0 0 * * MON#6",
                "a month has the weeks 1 to 5 of a weekday, not `6`",
            ),
            ("*/90 * * * *", "a step of the minute is 1 to 59, not `90`"),
            (
                "*,5 * * * *",
                "every minute and others is every minute: write `*` alone",
            ),
            ("*/0 * * * *", "a step of the minute is 1 to 59, not `0`"),
            ("5/10 * * * *", "a step goes over `*` or a range: `5-59/10`"),
            (
                "0 22-6 * * *",
                "the hour of a cron line counts up, and `22-6` does not: write it as two, with a comma",
            ),
            (
                "0 0 31 2,4,JUN *",
                "this never comes: month 2,4,JUN has no day 31",
            ),
        ] {
            assert_eq!(line(wrong).unwrap_err(), expected, "{wrong}");
        }
        let long = format!("{} * * * *", vec!["1"; 60].join(","));
        assert!(line(&long).is_err() && line("0 0 * * * *").is_err());
        assert_eq!(line(" 0  6 * *   1-5 ").unwrap(), "0 6 * * 1-5");
        for right in ["0 0 29 2 *", "0 0 31 2 MON", "0 0 L 2 *", "0 0 31 * ?"] {
            assert!(line(right).is_ok(), "{right}");
        }
    }

    /// Every field out of many pieces, right and wrong: what is taken here, hosts take as well. They read
    /// cron lines with this very library.
    #[test]
    fn what_is_taken_here_is_taken_by_hosts() {
        let parser = croner::parser::CronParser::builder()
            .seconds(croner::parser::Seconds::Disallowed)
            .year(croner::parser::Year::Disallowed)
            .build();
        let pieces = [
            "", "*", "?", "0", "1", "05", "7", "8", "12", "13", "23", "24", "31", "32", "59", "60",
            "-", "L", "W", "LW", "SUN", "mon", "Sat", "JAN", "dec", "#1", "#5", "#6", "/2", "/0",
            "/31", "-7", "-SUN", "-FRI", "-59", ",", "+",
        ];
        let (mut taken, mut refused) = (0, 0);
        for place in 0..FIELDS.len() {
            for first in pieces {
                for second in pieces {
                    for third in pieces {
                        let mut fields = ["*"; 5];
                        let field = format!("{first}{second}{third}");
                        fields[place] = &field;
                        let text = fields.join(" ");
                        if line(&text).is_ok() {
                            taken += 1;
                            assert!(parser.parse(&text).is_ok(), "{text}");
                        } else {
                            refused += 1;
                        }
                    }
                }
            }
        }
        assert!(taken > 1_000 && refused > 1_000, "{taken} and {refused}");
    }
}
