//! RFC 3339 to moments.

use crate::layout::entry::Time;

/// Days from the first of March of the year 0 to 1970.
const DAYS_TO_1970: i64 = 719_468;

/// Go's zero time, the first second of the year 1: nobody set it, and tars have 0 for it.
const UNSET_SECONDS: i64 = -62_135_596_800;

/// A moment such as `2023-11-14T23:13:20.5+01:00`. `None`: it is not one. Leap seconds are not.
pub(super) fn parse_rfc3339(text: &str) -> Option<Time> {
    let bytes = text.as_bytes();
    let number = |at: usize, digits: usize, max: i64| {
        let field = bytes.get(at..at + digits)?;
        let value = decimal(field)?;
        (value <= max).then_some(value)
    };
    let is = |at: usize, separator: u8| bytes.get(at) == Some(&separator);
    let (year, month, day) = (number(0, 4, 9999)?, number(5, 2, 12)?, number(8, 2, 31)?);
    let (hour, minute, second) = (number(11, 2, 23)?, number(14, 2, 59)?, number(17, 2, 59)?);
    if !(is(4, b'-') && is(7, b'-') && is(10, b'T') && is(13, b':') && is(16, b':')) {
        return None;
    }
    if day == 0 || day > days_in(year, month)? {
        return None;
    }
    let (nanos, at) = fraction(bytes.get(19..)?)?;
    let zone = bytes.get(19 + at..)?;
    let offset = match zone {
        b"Z" => 0,
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let (hours, minutes) = (decimal(&[*h1, *h2])?, decimal(&[*m1, *m2])?);
            let seconds = (hours <= 23 && minutes <= 59).then_some((hours * 60 + minutes) * 60)?;
            if *sign == b'-' { -seconds } else { seconds }
        }
        _ => return None,
    };
    let seconds = days_since_1970(year, month, day) * 86_400;
    let seconds = seconds + (hour * 60 + minute) * 60 + second - offset;
    if (seconds, nanos) == (UNSET_SECONDS, 0) {
        return Some(Time::default());
    }
    Some(Time { seconds, nanos })
}

/// Nanoseconds, and how many bytes they take with their point.
fn fraction(text: &[u8]) -> Option<(u32, usize)> {
    let Some(digits) = text.strip_prefix(b".") else { return Some((0, 0)) };
    let count = digits.iter().take_while(|b| b.is_ascii_digit()).count();
    if !(1..=9).contains(&count) {
        return None;
    }
    let value = decimal(&digits[..count])? * 10_i64.pow(9 - count as u32);
    Some((u32::try_from(value).ok()?, count + 1))
}

fn decimal(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |value, digit| {
        digit.is_ascii_digit().then(|| value * 10 + i64::from(digit - b'0'))
    })
}

fn days_in(year: i64, month: i64) -> Option<i64> {
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    Some(match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if is_leap => 29,
        2 => 28,
        _ => return None,
    })
}

/// Years that begin in March have their odd day at the end; 400 of them are 146,097 days.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let since_march = (month + 9) % 12;
    let day_of_year = (153 * since_march + 2) / 5 + day - 1;
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - DAYS_TO_1970
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_what_date_says() {
        // `date -u -d TEXT +%s`
        for (text, seconds, nanos) in [
            ("1970-01-01T00:00:00Z", 0, 0),
            ("2023-11-14T22:13:20Z", 1_700_000_000, 0),
            ("2023-11-14T23:13:20.5+01:00", 1_700_000_000, 500_000_000),
            ("2023-11-14T16:43:20.000000001-05:30", 1_700_000_000, 1),
            ("1969-12-31T23:59:59.25Z", -1, 250_000_000),
            ("2000-02-29T12:00:00Z", 951_825_600, 0),
            ("2100-02-28T23:59:59Z", 4_107_542_399, 0),
            ("9999-12-31T23:59:59Z", 253_402_300_799, 0),
            ("0000-03-01T00:00:00Z", -62_162_035_200, 0),
            ("0001-01-01T00:00:00Z", 0, 0),
            ("0001-01-01T00:00:01Z", -62_135_596_799, 0),
        ] {
            assert_eq!(parse_rfc3339(text), Some(Time { seconds, nanos }), "{text}");
        }
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in [
            "",
            "2023",
            "2023-11-14",
            "2023-11-14T22:13:20",
            "2023-11-14 22:13:20Z",
            "2023-13-14T22:13:20Z",
            "2023-00-14T22:13:20Z",
            "2023-11-31T22:13:20Z",
            "2023-11-00T22:13:20Z",
            "2023-02-29T22:13:20Z",
            "1900-02-29T22:13:20Z",
            "2023-11-14T24:13:20Z",
            "2023-11-14T22:60:20Z",
            "2023-11-14T22:13:60Z",
            "2023-11-14T22:13:20.Z",
            "2023-11-14T22:13:20.1234567890Z",
            "2023-11-14T22:13:20z",
            "2023-11-14T22:13:20+1:00",
            "2023-11-14T22:13:20+24:00",
            "2023-11-14T22:13:20+00:60",
            "2023-11-14T22:13:20ZZ",
            "+023-11-14T22:13:20Z",
            "10000-01-01T00:00:00Z",
            "2023-11-14T22:13:2\u{660}Z",
        ] {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
    }
}
