//! Sizes and durations as people write them, both ways.

use std::time::Duration;

use humansize::{DECIMAL, format_size};

/// The shortest deadline that makes sense: a registry needs a round trip.
const DEADLINE_MIN: Duration = Duration::from_millis(10);

/// `500`, `500M`, `20GB`, `4GiB`: decimal units unless they say `i`.
///
/// # Errors
/// A sentence that shows the form.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let expected = || format!("{text:?} is not a size: expected a number with K, M, G, T or KiB …");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| expected())?;
    let unit = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "t" | "tb" => 1_000_000_000_000,
        "ki" | "kib" => 1 << 10,
        "mi" | "mib" => 1 << 20,
        "gi" | "gib" => 1 << 30,
        "ti" | "tib" => 1 << 40,
        _ => return Err(expected()),
    };
    number.checked_mul(unit).ok_or_else(expected)
}

/// `60s`, `2m`, `500ms`.
///
/// # Errors
/// A sentence that shows the form.
pub fn parse_deadline(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    if duration < DEADLINE_MIN {
        return Err(format!("a deadline is at least {DEADLINE_MIN:?}"));
    }
    Ok(duration)
}

/// `12.3 MB`.
pub fn size(bytes: u64) -> String {
    format_size(bytes, DECIMAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_decimal_unless_they_say_otherwise() {
        for (text, bytes) in
            [("0", 0), ("500", 500), ("2K", 2000), ("20gb", 20_000_000_000), ("4KiB", 4096)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "x", "-1", "1.5G", "1 zebi", "99999999999T"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn deadlines_have_units_and_a_minimum() {
        assert_eq!(parse_deadline("2m"), Ok(Duration::from_secs(120)));
        assert!(parse_deadline("1ms").is_err());
        assert!(parse_deadline("60").is_err());
    }
}
