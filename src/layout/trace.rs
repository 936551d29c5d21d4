//! Traces: which bytes of an image's layers a use needed, in the order of first need.
//!
//! ```text
//! layoutfs trace 1
//! image sha256:<hex>                  the manifest that the use was of
//! layer sha256:<hex>                  layers as stored; the first one has number 0
//! 0 1048576 1310720                   layer, first byte, behind the last one
//! end 1                               how many ranges there are: a cut file is noticed
//! ```
//!
//! Ranges are of the *blob*, not of the uncompressed layer. A blob has the same bytes whatever
//! index it is read by, while the uncompressed space of a table of contents is another than that of
//! a pass; and bytes of the blob are what is fetched. A layer that can only be read whole has the
//! one range of all its bytes.

use std::fmt::Write as _;

use super::digest::Digest;
use super::error::{Error, Result};
use super::oci::LAYERS_MAX;
use super::range::ByteRange;

/// The first line.
const HEAD: &str = "layoutfs trace 1";

/// The first line of any version.
const HEAD_OF_ANY: &str = "layoutfs trace ";

/// Ranges of one trace: each is a span of its own, so that as many are 256 GiB of layers that were
/// read here and there.
pub const RANGES_MAX: usize = 1 << 18;

/// Bytes of one trace: so many ranges of three numbers, and layers of sha512, have a line each.
pub const TRACE_BYTES_MAX: u64 = 24 << 20;

/// What a use of an image needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// The image's manifest.
    pub image: Digest,
    /// The image's layers as stored, each once, lowest first.
    pub layers: Vec<Digest>,
    /// In the order of first need.
    pub needed: Vec<Needed>,
}

/// Bytes of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needed {
    /// Which of [`Trace::layers`].
    pub layer: usize,
    /// Bytes of its blob; not empty.
    pub range: ByteRange,
}

impl Trace {
    /// As text.
    pub fn encode(&self) -> String {
        let mut text = format!("{HEAD}\nimage {}\n", self.image);
        for layer in &self.layers {
            let _ = writeln!(text, "layer {layer}");
        }
        for Needed { layer, range } in &self.needed {
            let _ = writeln!(text, "{layer} {} {}", range.start, range.end);
        }
        let _ = writeln!(text, "end {}", self.needed.len());
        text
    }

    /// Reads what [`Trace::encode`] writes.
    ///
    /// # Errors
    /// [`Error::Document`] with the number of the line; [`Error::Limit`] above [`RANGES_MAX`],
    /// [`LAYERS_MAX`] or [`TRACE_BYTES_MAX`].
    pub fn parse(bytes: &[u8]) -> Result<Trace> {
        limit("bytes of a trace", bytes.len() as u64, TRACE_BYTES_MAX)?;
        let text = std::str::from_utf8(bytes).map_err(|_| wrong(1, "it is not text"))?;
        let mut lines = text.lines().enumerate().map(|(number, line)| (number + 1, line));
        match lines.next().map(|(_, line)| line) {
            Some(HEAD) => {}
            Some(other) if other.starts_with(HEAD_OF_ANY) => {
                return Err(wrong(1, "written by another version"));
            }
            _ => return Err(wrong(1, format!("expected {HEAD:?}"))),
        }
        let (_, line) = lines.next().ok_or_else(|| wrong(2, "expected the image"))?;
        let digest = |number, text: Option<&str>, what: &str| -> Result<Digest> {
            let text = text.ok_or_else(|| wrong(number, format!("expected {what}")))?;
            text.parse().map_err(|e: Error| wrong(number, e.to_string()))
        };
        let image = digest(2, line.strip_prefix("image "), "the image")?;
        let mut trace = Trace { image, layers: Vec::new(), needed: Vec::new() };
        for (number, line) in lines.by_ref() {
            if let Some(count) = line.strip_prefix("end ") {
                if count != trace.needed.len().to_string() {
                    return Err(wrong(number, "not as many ranges as it says"));
                }
                return match lines.next() {
                    Some((number, _)) => Err(wrong(number, "expected nothing more")),
                    None => Ok(trace),
                };
            }
            match line.strip_prefix("layer ") {
                Some(_) if !trace.needed.is_empty() => {
                    return Err(wrong(number, "a layer behind ranges"));
                }
                Some(layer) => trace.layers.push(digest(number, Some(layer), "a layer")?),
                None => trace.needed.push(needed(number, line, trace.layers.len())?),
            }
            limit("layers of a trace", trace.layers.len() as u64, LAYERS_MAX as u64)?;
            limit("ranges of a trace", trace.needed.len() as u64, RANGES_MAX as u64)?;
        }
        Err(wrong(text.lines().count() + 1, "the end is missing"))
    }
}

fn needed(number: usize, line: &str, layers: usize) -> Result<Needed> {
    let mut numbers = line.split(' ').map(plain);
    let (Some(layer), Some(start), Some(end), None) = (
        numbers.next().flatten(),
        numbers.next().flatten(),
        numbers.next().flatten(),
        numbers.next(),
    ) else {
        return Err(wrong(number, "expected a layer, and two positions"));
    };
    if layer >= layers as u64 {
        return Err(wrong(number, format!("layer {layer} of {layers}")));
    }
    if start >= end {
        return Err(wrong(number, format!("from {start} to {end} is no byte")));
    }
    Ok(Needed { layer: layer as usize, range: ByteRange::new(start, end) })
}

/// A number as we write it: digits alone, no zero in front. (`parse` takes a sign.)
fn plain(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

fn wrong(line: usize, reason: impl AsRef<str>) -> Error {
    Error::document(format!("trace, line {line}"), reason)
}

fn limit(what: &str, actual: u64, limit: u64) -> Result<()> {
    match actual <= limit {
        true => Ok(()),
        false => Err(Error::Limit { what: what.to_owned(), limit }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Trace {
        let needed = |layer, start, end| Needed { layer, range: ByteRange::new(start, end) };
        Trace {
            image: Digest::sha256_of(b"manifest"),
            layers: vec![Digest::sha256_of(b"a"), Digest::sha256_of(b"b")],
            needed: vec![needed(1, 10, 20), needed(0, 0, u64::MAX), needed(1, 0, 1)],
        }
    }

    #[test]
    fn what_is_written_is_read_and_one_need_is_one_line() {
        let text = sample().encode();
        assert_eq!(Trace::parse(text.as_bytes()), Ok(sample()));
        assert!(text.ends_with("\n1 10 20\n0 0 18446744073709551615\n1 0 1\nend 3\n"), "{text}");
        let nothing = Trace { layers: Vec::new(), needed: Vec::new(), ..sample() };
        assert_eq!(Trace::parse(nothing.encode().as_bytes()), Ok(nothing));
    }

    #[test]
    fn each_damage_is_named_with_its_line() {
        let text = sample().encode();
        for (from, to, says) in [
            ("trace 1", "trace 2", "line 1: written by another version"),
            ("layoutfs", "layout", "line 1: expected \"layoutfs trace 1\""),
            ("image sha256:", "image sha1:", "line 2: invalid digest"),
            ("image", "manifest", "line 2: expected the image"),
            ("layer sha256:", "layer sha256", "line 3: invalid digest"),
            ("1 10 20", "2 10 20", "line 5: layer 2 of 2"),
            ("1 10 20", "1 20 20", "line 5: from 20 to 20 is no byte"),
            ("1 10 20", "1 10", "line 5: expected a layer, and two positions"),
            ("1 10 20", "1 10 20 30", "line 5: expected a layer, and two positions"),
            ("1 10 20", "1 +10 20", "line 5: expected a layer, and two positions"),
            ("1 10 20", "1 10 99999999999999999999", "line 5: expected a layer, and two positions"),
            ("1 10 20\n", "1 10 20\nlayer sha256:\n", "line 6: a layer behind ranges"),
            ("end 3", "end 2", "line 8: not as many ranges as it says"),
            ("end 3\n", "", "line 8: the end is missing"),
            ("end 3\n", "end 3\n\n", "line 9: expected nothing more"),
        ] {
            let damaged = text.replacen(from, to, 1);
            let error = Trace::parse(damaged.as_bytes()).expect_err(says).to_string();
            assert!(error.contains(says), "{error}: {damaged}");
        }
        assert!(Trace::parse(b"\xff").is_err());
    }

    #[test]
    fn sizes_are_limited_before_they_are_believed() {
        let head = format!("{HEAD}\nimage {}\n", Digest::sha256_of(b"i"));
        let layer = format!("layer {}\n", Digest::sha256_of(b"l"));
        let layers = format!("{head}{}end 0\n", layer.repeat(LAYERS_MAX + 1));
        let ranges = "0 0 1\n".repeat(RANGES_MAX + 1);
        let ranges = format!("{head}{layer}{ranges}end {}\n", RANGES_MAX + 1);
        let bytes = " ".repeat(TRACE_BYTES_MAX as usize + 1);
        for text in [layers, ranges, bytes] {
            assert!(matches!(Trace::parse(text.as_bytes()), Err(Error::Limit { .. })));
        }
        let longest = 128 + 20 + LAYERS_MAX * 143 + RANGES_MAX * (6 + 21 + 21);
        assert!(longest as u64 <= TRACE_BYTES_MAX, "what is written can be read");
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_again(
            ranges in prop::collection::vec((0usize..3, any::<u64>(), 1u64..1000), 0..20),
            cut in 0usize..1000,
        ) {
            let layers: Vec<_> = (0..3u8).map(|n| Digest::sha256_of(&[n])).collect();
            let ranges = ranges.iter().map(|(layer, start, len)| Needed {
                layer: *layer,
                range: ByteRange::at(*start, *len),
            });
            let needed: Vec<_> = ranges.filter(|needed| !needed.range.is_empty()).collect();
            let trace = Trace { image: layers[0], layers, needed };
            let text = trace.encode();
            prop_assert_eq!(Trace::parse(text.as_bytes()), Ok(trace));
            // But for the last line's end, no byte can be missing.
            let cut = cut.min(text.len() - 2);
            prop_assert!(Trace::parse(&text.as_bytes()[..cut]).is_err());
        }
    }
}
