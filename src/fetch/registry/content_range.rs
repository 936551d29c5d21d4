//! HTTP's byte ranges, inclusive at both ends, from and to our half-open ones. Pure, and the only
//! place that knows.

use crate::layout::range::ByteRange;

/// `bytes=FIRST-LAST` for a range that is not empty (RFC 9110, 14.1.2).
pub fn range_header(range: ByteRange) -> String {
    format!("bytes={}-{}", range.start, range.end.saturating_sub(1))
}

/// What a `Content-Range` header says is in the body, and of how many bytes in all when it says
/// that (RFC 9110, 14.4). `None` when it is malformed or says that nothing is.
pub fn parse_content_range(header: &str) -> Option<(ByteRange, Option<u64>)> {
    let (unit, rest) = header.trim().split_once([' ', '='])?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (range, total) = rest.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    let total = match total.trim() {
        "*" => None,
        total => Some(number(total)?),
    };
    let end = last.checked_add(1)?;
    let is_sound = first <= last && total.is_none_or(|total| end <= total);
    is_sound.then(|| (ByteRange::new(first, end), total))
}

/// Digits alone: Rust's own parser would take a sign.
fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inclusive_form_is_one_less_at_the_end() {
        assert_eq!(range_header(ByteRange::new(0, 1)), "bytes=0-0");
        assert_eq!(range_header(ByteRange::new(10, 20)), "bytes=10-19");
    }

    #[test]
    fn a_content_range_is_read_strictly() {
        let range = ByteRange::new;
        for (header, expected) in [
            ("bytes 0-0/1", Some((range(0, 1), Some(1)))),
            ("bytes 10-19/*", Some((range(10, 20), None))),
            ("Bytes 10-19/100", Some((range(10, 20), Some(100)))),
            ("bytes */100", None),
            ("bytes 10-9/100", None),
            ("bytes 10-100/100", None),
            ("bytes 0-18446744073709551615/*", None),
            ("bytes +1-2/3", None),
            ("bytes 1-2", None),
            ("items 1-2/3", None),
            ("", None),
        ] {
            assert_eq!(parse_content_range(header), expected, "{header}");
        }
    }
}
