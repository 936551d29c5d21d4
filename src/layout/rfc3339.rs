//! Moments as Go writes them: RFC 3339 with up to nine digits of a second.

use crate::layout::entry::Time;

const DAY_SECONDS: i64 = 86_400;

/// Days from the start of the year 0 to 1970.
const DAYS_TO_1970: i64 = 719_528;

/// `2006-01-02T15:04:05.999999999Z`, or with an offset such as `+01:00`. `None`: anything else.
pub(crate) fn parse(text: &[u8]) -> Option<Time> {
    let (date_time, rest) = text.split_at_checked(19)?;
    let number = |at: usize, digits: usize| decimal(&date_time[at..at + digits]);
    let separators = [4, 7, 10, 13, 16].map(|at| date_time[at]);
    if separators != *b"--T::" {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 2)?, number(8, 2)?);
    let (hour, minute, second) = (number(11, 2)?, number(14, 2)?, number(17, 2)?);
    let in_month = (1..=12).contains(&month) && (1..=days_of_month(year, month)).contains(&day);
    if !in_month || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let digits = rest
        .strip_prefix(b".")
        .map_or(0, |fraction| 1 + fraction.iter().take_while(|b| b.is_ascii_digit()).count());
    let (fraction, zone) = rest.split_at(digits);
    let nanos = match fraction {
        [] => 0,
        [_, digits @ ..] if (1..=9).contains(&digits.len()) => {
            decimal(digits)? * 10i64.pow(9 - digits.len() as u32)
        }
        _ => return None,
    };
    let day = days_before(year, month) + day - 1;
    let seconds = day * DAY_SECONDS + hour * 3600 + minute * 60 + second - offset(zone)?;
    Some(Time { seconds, nanos: nanos as u32 })
}

/// The same back, in UTC. `None`: outside the years 0 to 9999, which RFC 3339 cannot say.
pub(crate) fn format(time: Time) -> Option<String> {
    let (day, second) =
        (time.seconds.div_euclid(DAY_SECONDS), time.seconds.rem_euclid(DAY_SECONDS));
    let (first, last) = (days_before(0, 1), days_before(10_000, 1));
    if !(first..last).contains(&day) {
        return None;
    }
    // A year has at least 365 days: the guess is never too small, and at most a few years too large.
    let mut year = (day - first) / 365;
    while days_before(year, 1) > day {
        year -= 1;
    }
    let month = (1..=12).rev().find(|month| days_before(year, *month) <= day)?;
    let day = day - days_before(year, month) + 1;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let fraction = match time.nanos {
        0 => String::new(),
        nanos => format!(".{nanos:09}").trim_end_matches('0').to_owned(),
    };
    Some(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z"))
}

fn decimal(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |value, digit| match digit {
        b'0'..=b'9' => Some(value * 10 + i64::from(digit - b'0')),
        _ => None,
    })
}

/// Seconds that a zone is ahead of UTC.
fn offset(zone: &[u8]) -> Option<i64> {
    match zone {
        b"Z" => Some(0),
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let (hours, minutes) = (decimal(&[*h1, *h2])?, decimal(&[*m1, *m2])?);
            let seconds = hours * 3600 + minutes * 60;
            let valid = hours <= 23 && minutes <= 59;
            valid.then_some(if *sign == b'-' { -seconds } else { seconds })
        }
        _ => None,
    }
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_of_month(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to the first of a month of a year from 0 to 10,000.
fn days_before(year: i64, month: i64) -> i64 {
    // Year 0 is a leap year, as 2000 is; the cycles end with it.
    let leap_days = (year + 3) / 4 - (year + 99) / 100 + (year + 399) / 400;
    let of_months: i64 = (1..month).map(|month| days_of_month(year, month)).sum();
    year * 365 + leap_days + of_months - DAYS_TO_1970
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_and_written_as_go_does() {
        for (text, seconds, nanos) in [
            ("1970-01-01T00:00:00Z", 0, 0),
            ("2023-11-14T22:13:20.5Z", 1_700_000_000, 500_000_000),
            ("1969-12-31T23:59:59.000000001Z", -1, 1),
            ("2000-02-29T12:00:00Z", 951_825_600, 0),
            ("2100-03-01T00:00:00Z", 4_107_542_400, 0),
            ("0000-01-01T00:00:00Z", -62_167_219_200, 0),
            ("0001-01-01T00:00:00Z", -62_135_596_800, 0),
            ("9999-12-31T23:59:59.999999999Z", 253_402_300_799, 999_999_999),
        ] {
            let time = Time { seconds, nanos };
            assert_eq!(parse(text.as_bytes()), Some(time), "{text}");
            assert_eq!(format(time).as_deref(), Some(text));
        }
        for seconds in [-62_167_219_201, 253_402_300_800, i64::MIN, i64::MAX] {
            assert_eq!(format(Time { seconds, nanos: 0 }), None, "{seconds}");
        }
    }

    #[test]
    fn every_day_of_400_years_is_itself() {
        for day in 0..146_097 {
            let time = Time { seconds: day * DAY_SECONDS + 1, nanos: 0 };
            let text = format(time).unwrap();
            assert_eq!(parse(text.as_bytes()), Some(time), "{text}");
        }
    }

    #[test]
    fn zones_are_ahead_or_behind() {
        for (text, seconds) in
            [("1970-01-01T01:30:00+01:30", 0), ("1969-12-31T19:00:00.25-05:00", 0)]
        {
            assert_eq!(parse(text.as_bytes()).map(|time| time.seconds), Some(seconds), "{text}");
        }
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in [
            "",
            "1970-01-01",
            "1970-01-01T00:00:00",
            "1970-01-01 00:00:00Z",
            "1970-13-01T00:00:00Z",
            "1970-00-01T00:00:00Z",
            "2023-02-29T00:00:00Z",
            "1970-01-00T00:00:00Z",
            "1970-01-01T24:00:00Z",
            "1970-01-01T00:60:00Z",
            "1970-01-01T00:00:60Z",
            "1970-01-01T00:00:00.Z",
            "1970-01-01T00:00:00.1234567890Z",
            "1970-01-01T00:00:00z",
            "1970-01-01T00:00:00+24:00",
            "1970-01-01T00:00:00+0100",
            "+970-01-01T00:00:00Z",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }
}
