//! A span that is proved, decoded as far as somebody needed it: the rest follows when it is needed.
//!
//! Most readers here and there want little of a span, and to read, prove and decode it is most of what
//! they wait for. So its segments are read one after the other, each is proved before it is decoded, and
//! it ends where there is what is wanted. The decoder stays there, with what it has not used.

use std::ops::Range;

use bytes::Bytes;

use super::Proved;
use crate::fetch::error::{Error, ErrorKind, Result};
use crate::layout::Digest;
use crate::layout::codec::{SpanDecoder, decode_span};
use crate::layout::index::{Codec, Proof, Segments, Span};
use crate::layout::range::ByteRange;

/// What an inflater takes besides what it reads and writes: its window, its tables.
const INFLATER_BYTES: usize = 64 << 10;

/// Gives stored bytes of a span, by where they are in it; `None`: they are not here.
pub type Read<'a> = dyn FnMut(ByteRange) -> Result<Option<Bytes>> + 'a;

/// A span what is decoded of which is proved.
pub enum Opened {
    /// All of it is decoded.
    Whole(Proved),
    /// Some of it is.
    Begun(Box<Begun>),
}

/// A span that is decoded up to some place.
pub struct Begun {
    segments: Segments,
    /// Bytes that are stored of the span, and that it decodes to.
    stored: u64,
    len: u64,
    decoder: SpanDecoder,
    /// How many segments were read and proved; and what of them the decoder has not used.
    known: usize,
    unused: Proved,
}

impl Opened {
    /// Opens `span`, and decodes at least `upto` bytes of it, of the bytes that `read` gives. `window`
    /// is the output in front of it. `None`: some that it takes are not here.
    ///
    /// # Errors
    /// [`ErrorKind::DigestMismatch`]: they are not what the span's proof says.
    /// [`ErrorKind::Invalid`]: they are, and cannot be decoded, or not to as many bytes as the span
    /// says. Those of `read`.
    pub fn open(
        span: &Span,
        window: &[u8],
        upto: u64,
        read: &mut Read<'_>,
    ) -> Result<Option<Self>> {
        match &span.proof {
            Proof::Stored(segments) => {
                let upto = if can_stop(span) { upto } else { u64::MAX };
                let (stored_bytes, len) = (span.blob.len(), span.tar.len());
                let number = likely(segments, len, upto);
                let range = segments.range(0..number, stored_bytes);
                let Some(stored) = read(range)? else { return Ok(None) };
                let unused = Proved::check_segments(segments, 0..number, stored)?;
                let decoder = SpanDecoder::new(span, window, unused.first().copied())?;
                let unused = unused.part(decoder.used()..unused.len());
                let (segments, known) = (segments.clone(), number);
                let begun = Begun { segments, stored: stored_bytes, len, decoder, known, unused };
                Opened::Begun(Box::new(begun)).reach(upto, read)
            }
            Proof::Decoded(sha256) => {
                let range = ByteRange::new(0, span.blob.len());
                let Some(stored) = read(range)? else { return Ok(None) };
                let decoded = decode_span(span, window, &stored);
                // What does not even decode is not what the digest is of.
                let decoded = decoded.map_err(|e| {
                    Error::new(ErrorKind::DigestMismatch, format!("wrong bytes: {e}"))
                })?;
                let proved = Proved::check(&Digest::Sha256(*sha256), decoded.into())?;
                Ok(Some(Opened::Whole(proved)))
            }
        }
    }

    /// Decodes at least `upto` bytes of the span, from where it stands: as [`Opened::open`].
    ///
    /// # Errors
    /// Those of [`Opened::open`]. What was decoded before is gone, and was right.
    pub fn reach(self, upto: u64, read: &mut Read<'_>) -> Result<Option<Self>> {
        let Opened::Begun(mut begun) = self else { return Ok(Some(self)) };
        if !begun.reach(upto, read)? {
            return Ok(None);
        }
        Ok(Some(match begun.is_whole() {
            true => Opened::Whole(begun.into_decoded()),
            false => {
                // Without what was read along with it and is used.
                begun.unused = Proved(Bytes::copy_from_slice(&begun.unused));
                Opened::Begun(begun)
            }
        }))
    }

    /// The bytes at `range` of what the span decodes to, if they are decoded: copied unless all of it
    /// is.
    pub fn part(&self, range: Range<usize>) -> Option<Proved> {
        match self {
            Opened::Whole(whole) => Some(whole.part(range)),
            Opened::Begun(begun) => {
                let part = begun.decoder.decoded().get(range)?;
                Some(Proved(Bytes::copy_from_slice(part)))
            }
        }
    }

    /// All of the span, if it is decoded.
    pub fn whole(&self) -> Option<&Proved> {
        match self {
            Opened::Whole(whole) => Some(whole),
            Opened::Begun(_) => None,
        }
    }

    /// Memory that it takes, with room for what is to come.
    pub fn memory_bytes(&self) -> usize {
        match self {
            Opened::Whole(whole) => whole.len(),
            Opened::Begun(begun) => begun_bytes(begun.unused.len() as u64, begun.len),
        }
    }
}

impl Begun {
    /// `false`: it takes bytes that are not here.
    fn reach(&mut self, upto: u64, read: &mut Read<'_>) -> Result<bool> {
        loop {
            let used = self.decoder.used();
            let is_there = self.decoder.reach(&self.unused, upto)?;
            let used = self.decoder.used() - used;
            self.unused = self.unused.part(used..self.unused.len());
            if is_there {
                return Ok(true);
            }
            // It is used up.
            if self.known == self.segments.count() {
                return Err(self.decoder.too_short().into());
            }
            let next = self.known..likely(&self.segments, self.len, upto).max(self.known + 1);
            let range = self.segments.range(next.clone(), self.stored);
            let Some(stored) = read(range)? else { return Ok(false) };
            self.unused = Proved::check_segments(&self.segments, next.clone(), stored)?;
            self.known = next.end;
        }
    }

    fn is_whole(&self) -> bool {
        self.decoder.decoded().len() as u64 == self.len
    }

    /// What was made of proved bytes alone.
    fn into_decoded(self) -> Proved {
        Proved(self.decoder.into_decoded().into())
    }
}

/// How many segments `upto` bytes of a span take that decodes to `len`, if it is packed alike
/// everywhere; at least one.
fn likely(segments: &Segments, len: u64, upto: u64) -> usize {
    let (count, len) = (segments.count() as u64, len.max(1));
    // Both are far below 2^32 of spans that are read.
    let likely = count.saturating_mul(upto.min(len)).div_ceil(len);
    likely.clamp(1, count.max(1)) as usize
}

/// Most memory that `span` takes when it is begun, with room for all that it decodes to.
pub fn bytes_if_begun(span: &Span) -> usize {
    begun_bytes(span.blob.len(), span.tar.len())
}

fn begun_bytes(unused: u64, decoded: u64) -> usize {
    (unused + decoded) as usize + INFLATER_BYTES
}

/// The decoder takes little memory wherever it stops: that of zstd may have a window of 128 MiB.
fn can_stop(span: &Span) -> bool {
    matches!(span.codec, Codec::Gzip | Codec::Deflate(_))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::layout::index::SEGMENT_BYTES;

    const LEN: u64 = 700_000;

    /// The stored bytes of a span, and which of them were read.
    struct Disk {
        stored: Vec<u8>,
        read: Vec<ByteRange>,
    }

    impl Disk {
        fn open(&mut self, span: &Span, upto: u64) -> Result<Option<Opened>> {
            Opened::open(span, &[], upto, &mut |range| self.read(range))
        }

        fn reach(&mut self, begun: Opened, upto: u64) -> Result<Option<Opened>> {
            begun.reach(upto, &mut |range| self.read(range))
        }

        fn read(&mut self, range: ByteRange) -> Result<Option<Bytes>> {
            self.read.push(range);
            let stored = self.stored.get(range.start as usize..range.end as usize);
            Ok(stored.map(Bytes::copy_from_slice))
        }

        /// How many bytes were read; each of them once, in their order.
        fn read_bytes(&self) -> u64 {
            let ends = self.read.iter().map(|range| range.end);
            assert!(
                self.read
                    .iter()
                    .skip(1)
                    .map(|range| range.start)
                    .eq(ends.clone().take(self.read.len() - 1))
            );
            self.read.last().map_or(0, |range| range.end)
        }
    }

    fn sha256(bytes: &[u8]) -> [u8; 32] {
        match Digest::sha256_of(bytes) {
            Digest::Sha256(sha256) => sha256,
            other => panic!("{other}"),
        }
    }

    /// Content, what is stored of it (some six segments), and the span that says so.
    fn sample(is_gzip: bool) -> (Vec<u8>, Disk, Span) {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            b'a' + (state >> 28) as u8
        };
        let content: Vec<u8> = (0..LEN).map(|_| next()).collect();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(&content).expect("memory is writable");
        let stored = match is_gzip {
            true => encoder.finish().expect("memory is writable"),
            false => zstd::bulk::compress(&content, 1).expect("memory is writable"),
        };
        assert!(stored.len() as u64 > 5 * SEGMENT_BYTES);
        let proof = Proof::Stored(Segments::of(&stored, ByteRange::new(0, stored.len() as u64)));
        let (blob, tar) = (ByteRange::at(77, stored.len() as u64), ByteRange::at(9, LEN));
        let codec = if is_gzip { Codec::Gzip } else { Codec::Zstd };
        let span = Span { blob, tar, skip: 0, codec, proof };
        (content, Disk { stored, read: Vec::new() }, span)
    }

    fn is_whole(opened: &Result<Option<Opened>>) -> bool {
        matches!(opened, Ok(Some(Opened::Whole(_))))
    }

    #[test]
    fn a_small_read_reads_and_decodes_no_more_than_it_needs_and_the_rest_follows() {
        let (content, mut disk, span) = sample(true);
        let opened = disk.open(&span, 5000).expect("right").expect("here");
        assert_eq!(disk.read_bytes(), SEGMENT_BYTES);
        let Opened::Begun(begun) = &opened else { panic!("all of it was decoded") };
        assert_eq!(begun.decoder.decoded().len(), 5000);
        assert_eq!(opened.part(4000..5000).as_deref(), Some(&content[4000..5000]));
        assert_eq!(opened.part(4000..5001), None);
        // What it goes on with counts, and so does the room for what is to come.
        assert!(opened.memory_bytes() > content.len() + 40_000);
        assert!(opened.memory_bytes() < bytes_if_begun(&span));
        let half = content.len() / 2;
        let opened = disk.reach(opened, half as u64).expect("right").expect("here");
        assert_eq!(opened.part(half - 9..half).as_deref(), Some(&content[half - 9..half]));
        let read = disk.read_bytes();
        assert!((2 * SEGMENT_BYTES..=5 * SEGMENT_BYTES).contains(&read), "{read}");
        let opened = disk.reach(opened, u64::MAX).expect("right").expect("here");
        assert!(opened.whole().is_some_and(|whole| **whole == content[..]));
        assert_eq!(opened.memory_bytes(), content.len());
        assert_eq!(disk.read_bytes(), span.blob.len());
        disk.read.clear();
        assert!(is_whole(&disk.open(&span, LEN)), "nothing is left");
        assert_eq!(disk.read, [ByteRange::new(0, span.blob.len())], "it is read at once");
    }

    #[test]
    fn a_wrong_byte_is_found_before_what_is_made_of_it_is_there() {
        let (content, mut disk, span) = sample(true);
        for at in [0, SEGMENT_BYTES as usize - 1] {
            disk.stored[at] ^= 1;
            let error = disk.open(&span, 1).err().expect("wrong");
            assert_eq!(error.kind, ErrorKind::DigestMismatch, "{at}");
            disk.stored[at] ^= 1;
        }
        for at in [SEGMENT_BYTES as usize, disk.stored.len() / 2, disk.stored.len() - 1] {
            disk.stored[at] ^= 1;
            let begun = disk.open(&span, 5000).expect("so far it is right").expect("here");
            assert_eq!(begun.part(0..5000).as_deref(), Some(&content[..5000]));
            let error = disk.reach(begun, LEN).err().expect("wrong");
            assert_eq!(error.kind, ErrorKind::DigestMismatch, "{at}");
            assert!(disk.open(&span, LEN).is_err(), "{at}");
            disk.stored[at] ^= 1;
        }
    }

    #[test]
    fn a_span_with_one_digest_is_proved_as_a_whole() {
        let (_, mut disk, span) = sample(true);
        let proof = Proof::Stored(Segments::One(sha256(&disk.stored)));
        let span = Span { proof, ..span };
        assert!(matches!(disk.open(&span, 1), Ok(Some(Opened::Begun(_)))));
        assert_eq!(disk.read_bytes(), span.blob.len());
        *disk.stored.last_mut().expect("some") ^= 1;
        let error = disk.open(&span, 1).err().expect("wrong");
        assert_eq!(error.kind, ErrorKind::DigestMismatch);
    }

    #[test]
    fn what_is_not_here_is_no_error() {
        let (_, mut disk, span) = sample(true);
        disk.stored.truncate(2 * SEGMENT_BYTES as usize);
        let begun = disk.open(&span, 5000).expect("right").expect("here");
        assert!(matches!(disk.reach(begun, LEN), Ok(None)));
        disk.stored.truncate(100);
        assert!(matches!(disk.open(&span, 1), Ok(None)));
    }

    #[test]
    fn what_is_proved_by_its_content_or_needs_much_memory_is_decoded_whole() {
        let (content, mut disk, span) = sample(false);
        assert!(is_whole(&disk.open(&span, 10)), "zstd");
        *disk.stored.last_mut().expect("some") ^= 1;
        assert!(disk.open(&span, 10).is_err(), "all segments are proved");
        let (_, mut disk, span) = sample(true);
        let span = Span { proof: Proof::Decoded(sha256(&content)), ..span };
        assert!(is_whole(&disk.open(&span, 10)), "by its content");
        let span = Span { proof: Proof::Decoded([7; 32]), ..span };
        let error = disk.open(&span, 10).err().expect("wrong");
        assert_eq!(error.kind, ErrorKind::DigestMismatch);
    }

    #[test]
    fn right_bytes_that_end_early_are_the_fault_of_who_says_so_when_they_do() {
        let (_, mut disk, span) = sample(true);
        let span = Span { tar: ByteRange::at(9, LEN + 1), ..span };
        assert_eq!(disk.open(&span, LEN + 1).err().expect("short").kind, ErrorKind::Invalid);
        let begun = disk.open(&span, 10).expect("so far it is right").expect("here");
        assert_eq!(disk.reach(begun, LEN + 1).err().expect("short").kind, ErrorKind::Invalid);
    }
}
