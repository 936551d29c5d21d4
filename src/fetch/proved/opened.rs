//! A span that is proved, decoded as far as somebody needed it: the rest follows when it is needed.
//!
//! Most readers here and there want little of a span, and to decode is most of what they wait for. So
//! a decoder stops where it has what is wanted, and stays there with the bytes that it goes on with.
//! Those are proved as a whole all the same, before the first of them is decoded.

use std::ops::Range;

use bytes::Bytes;

use super::Proved;
use crate::fetch::error::{Error, ErrorKind, Result};
use crate::layout::Digest;
use crate::layout::codec::{SpanDecoder, decode_span};
use crate::layout::index::{Codec, Proof, Span};

/// What an inflater takes besides what it reads and writes: its window, its tables.
const INFLATER_BYTES: usize = 64 << 10;

/// A span whose proof has passed.
pub enum Opened {
    /// All of it is decoded.
    Whole(Proved),
    /// Some of it is.
    Begun(Box<Begun>),
}

/// A span that is decoded up to some place.
pub struct Begun {
    stored: Proved,
    decoder: SpanDecoder,
    /// Bytes that it decodes to.
    len: u64,
}

impl Opened {
    /// Opens `span`, whose bytes of the blob are `stored`, and decodes at least `upto` bytes of it.
    /// `window` is the output in front of it.
    ///
    /// # Errors
    /// [`ErrorKind::DigestMismatch`]: they are not what the span's proof says.
    /// [`ErrorKind::Invalid`]: they are, and cannot be decoded, or not to as many bytes as the span
    /// says.
    pub fn open(span: &Span, window: &[u8], upto: u64, stored: Bytes) -> Result<Self> {
        match &span.proof {
            Proof::Stored(parts) => {
                let all = 0..parts.digests().len();
                let stored = Proved::check_parts(parts, all, stored)?;
                let decoder = SpanDecoder::new(span, window, &stored)?;
                let mut begun = Begun { stored, decoder, len: span.tar.len() };
                begun
                    .decoder
                    .reach(&begun.stored, if can_stop(span) { upto } else { begun.len })?;
                match begun.is_whole() {
                    true => Ok(Opened::Whole(begun.into_decoded())),
                    false => Ok(Opened::Begun(Box::new(begun))),
                }
            }
            Proof::Decoded(sha256) => {
                let decoded = decode_span(span, window, &stored);
                // What does not even decode is not what the digest is of.
                let decoded = decoded.map_err(|e| {
                    Error::new(ErrorKind::DigestMismatch, format!("wrong bytes: {e}"))
                })?;
                Proved::check(&Digest::Sha256(*sha256), decoded.into()).map(Opened::Whole)
            }
        }
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

    /// All of the span, decoded from where it stands.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`]: it cannot be decoded.
    pub fn whole(self) -> Result<Proved> {
        match self {
            Opened::Whole(whole) => Ok(whole),
            Opened::Begun(mut begun) => {
                begun.decoder.reach(&begun.stored, begun.len)?;
                Ok(begun.into_decoded())
            }
        }
    }

    /// Memory that it takes.
    pub fn memory_bytes(&self) -> usize {
        match self {
            Opened::Whole(whole) => whole.len(),
            Opened::Begun(begun) => begun_bytes(begun.stored.len() as u64, begun.len),
        }
    }
}

impl Begun {
    fn is_whole(&self) -> bool {
        self.decoder.decoded().len() as u64 == self.len
    }

    /// What was made of proved bytes alone.
    fn into_decoded(self) -> Proved {
        Proved(self.decoder.into_decoded().into())
    }
}

/// Memory that `span` takes when it is begun, with room for all that it decodes to.
pub fn bytes_if_begun(span: &Span) -> usize {
    begun_bytes(span.blob.len(), span.tar.len())
}

fn begun_bytes(stored: u64, decoded: u64) -> usize {
    (stored + decoded) as usize + INFLATER_BYTES
}

/// The decoder takes little memory wherever it stops: that of zstd may have a window of 128 MiB.
fn can_stop(span: &Span) -> bool {
    matches!(span.codec, Codec::Gzip | Codec::Deflate(_))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::layout::index::Parts;
    use crate::layout::range::ByteRange;

    const LEN: u64 = 100_000;

    /// Content, what is stored of it, and the span that says so.
    fn sample(is_gzip: bool) -> (Vec<u8>, Vec<u8>, Span) {
        let content: Vec<u8> = (0..LEN as u32).map(|n| (n.wrapping_mul(n) >> 9) as u8).collect();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(&content).expect("memory is writable");
        let stored = match is_gzip {
            true => encoder.finish().expect("memory is writable"),
            false => zstd::bulk::compress(&content, 1).expect("memory is writable"),
        };
        let proof = Proof::Stored(Parts::of(&stored));
        let (blob, tar) = (ByteRange::new(0, stored.len() as u64), ByteRange::new(0, LEN));
        let codec = if is_gzip { Codec::Gzip } else { Codec::Zstd };
        let span = Span { blob, tar, skip: 0, codec, proof };
        (content, stored, span)
    }

    fn open(span: &Span, upto: u64, stored: &[u8]) -> Result<Opened> {
        Opened::open(span, &[], upto, Bytes::copy_from_slice(stored))
    }

    #[test]
    fn a_small_read_decodes_no_more_than_it_needs_and_the_rest_follows() {
        let (content, stored, span) = sample(true);
        let opened = open(&span, 5000, &stored).expect("right");
        let Opened::Begun(begun) = &opened else { panic!("all of it was decoded") };
        assert_eq!(begun.decoder.decoded().len(), 5000);
        assert_eq!(opened.part(4000..5000).as_deref(), Some(&content[4000..5000]));
        assert_eq!(opened.part(4000..5001), None);
        // What it goes on with counts, and so does the room for what is to come.
        assert!(opened.memory_bytes() > stored.len() + content.len());
        assert_eq!(opened.memory_bytes(), bytes_if_begun(&span));
        let whole = opened.whole().expect("it goes on");
        assert!(*whole == content[..]);
        assert_eq!(Opened::Whole(whole).memory_bytes(), content.len());
        let whole = open(&span, LEN, &stored).expect("right");
        assert!(matches!(whole, Opened::Whole(_)), "nothing is left");
    }

    #[test]
    fn a_wrong_byte_behind_what_is_wanted_is_found_before_that_is_there() {
        let (_, stored, span) = sample(true);
        for at in [stored.len() - 1, stored.len() / 2] {
            let mut wrong = stored.clone();
            wrong[at] ^= 1;
            let error = open(&span, 10, &wrong).err().expect("wrong");
            assert_eq!(error.kind, ErrorKind::DigestMismatch);
        }
    }

    #[test]
    fn what_is_proved_by_its_content_or_needs_much_memory_is_decoded_whole() {
        let (content, stored, span) = sample(false);
        assert!(matches!(open(&span, 10, &stored), Ok(Opened::Whole(_))), "zstd");
        let (_, stored, span) = sample(true);
        let Digest::Sha256(sha256) = Digest::sha256_of(&content) else { panic!("another one") };
        let span = Span { proof: Proof::Decoded(sha256), ..span };
        assert!(matches!(open(&span, 10, &stored), Ok(Opened::Whole(_))), "by its content");
        let span = Span { proof: Proof::Decoded([7; 32]), ..span };
        let error = open(&span, 10, &stored).err().expect("wrong");
        assert_eq!(error.kind, ErrorKind::DigestMismatch);
    }

    #[test]
    fn right_bytes_that_end_early_are_the_fault_of_who_says_so_when_they_do() {
        let (_, stored, span) = sample(true);
        let span = Span { tar: ByteRange::new(0, LEN + 1), ..span };
        assert_eq!(open(&span, LEN + 1, &stored).err().expect("short").kind, ErrorKind::Invalid);
        let begun = open(&span, 10, &stored).expect("so far it is right");
        assert_eq!(begun.whole().expect_err("short").kind, ErrorKind::Invalid);
    }
}
