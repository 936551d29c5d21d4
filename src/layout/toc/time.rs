//! Moments of a table of contents, where one that nobody set is 1970.

use crate::layout::entry::Time;
use crate::layout::rfc3339;

/// Go's zero time, the first second of the year 1: nobody set it, and tars have 0 for it.
const UNSET: Time = Time { seconds: -62_135_596_800, nanos: 0 };

/// A moment such as `2023-11-14T23:13:20.5+01:00`. `None`: it is not one.
pub(super) fn parse_rfc3339(text: &str) -> Option<Time> {
    let time = rfc3339::parse(text.as_bytes())?;
    Some(if time == UNSET { Time::default() } else { time })
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
