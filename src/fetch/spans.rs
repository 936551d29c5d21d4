//! Decoded spans kept in memory, whole or begun, bounded by bytes. (Bytes on disk: `cache.rs`.)

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use super::proved::{Opened, Proved};

/// A span: the reader's number (two layers may have one blob and different indexes) and the span's
/// position in its `LayerIndex`.
pub type SpanKey = (u64, usize);

/// Decoded spans, at most `bytes_max` bytes of them: the least recently used ones go. One that is
/// whole and came last stays whatever its size, else each request for a part of it would decode it
/// again.
pub struct Spans {
    bytes_max: usize,
    kept: Mutex<Kept>,
}

struct Kept {
    spans: LruCache<SpanKey, Opened>,
    bytes: usize,
}

impl Spans {
    /// Keeps at most `bytes_max` bytes, or one whole span.
    pub fn new(bytes_max: usize) -> Self {
        Spans { bytes_max, kept: Mutex::new(Kept { spans: LruCache::unbounded(), bytes: 0 }) }
    }

    /// So many bytes are within the bound.
    pub fn may_keep(&self, bytes: usize) -> bool {
        bytes <= self.bytes_max
    }

    /// The bytes at `range` of the decoded span, if they are kept. Counts as a use.
    pub fn part(&self, key: &SpanKey, range: Range<usize>) -> Option<Proved> {
        self.kept().spans.get(key)?.part(range)
    }

    /// The decoded span, if it is kept whole. Counts as a use.
    pub fn get(&self, key: &SpanKey) -> Option<Proved> {
        self.kept().spans.get(key)?.whole().cloned()
    }

    /// Takes out what is kept of the span: whoever goes on decoding it puts it back.
    pub fn take(&self, key: &SpanKey) -> Option<Opened> {
        let mut kept = self.kept();
        let taken = kept.spans.pop(key)?;
        kept.bytes -= taken.memory_bytes();
        Some(taken)
    }

    /// Keeps a decoded span, and lets go of the least recently used ones beyond the bound.
    pub fn put(&self, key: SpanKey, decoded: Opened) {
        let bytes = decoded.memory_bytes();
        if matches!(decoded, Opened::Begun(_)) && !self.may_keep(bytes) {
            return;
        }
        let mut kept = self.kept();
        kept.bytes += bytes;
        if let Some(replaced) = kept.spans.put(key, decoded) {
            kept.bytes -= replaced.memory_bytes();
        }
        while kept.bytes > self.bytes_max && kept.spans.len() > 1 {
            let Some((_, evicted)) = kept.spans.pop_lru() else { break };
            kept.bytes -= evicted.memory_bytes();
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::fetch::proved::bytes_if_begun;
    use crate::layout::Digest;
    use crate::layout::index::{Codec, Proof, Segments, Span};
    use crate::layout::range::ByteRange;

    #[test]
    fn the_least_recently_used_spans_go_first_and_the_bound_holds() {
        let spans = Spans::new(10);
        let key = |i| (0, i);
        let proved = |bytes: &'static [u8]| {
            let proved = Proved::check(&Digest::sha256_of(bytes), bytes.into());
            Opened::Whole(proved.expect("its own digest"))
        };
        spans.put(key(0), proved(b"aaaa"));
        spans.put(key(1), proved(b"bbbb"));
        assert!(spans.get(&key(0)).is_some());
        spans.put(key(2), proved(b"cccc"));
        assert!(spans.get(&key(1)).is_none());
        assert!(spans.get(&key(0)).is_some());
        assert_eq!(spans.kept().bytes, 8);
        spans.put(key(3), proved(b"longer than ten"));
        assert!(spans.get(&key(3)).is_some(), "parts of it are asked for one after the other");
        assert!(spans.get(&key(2)).is_none());
        spans.put(key(4), proved(b"dddd"));
        assert!(spans.get(&key(3)).is_none());
        assert_eq!(spans.kept().bytes, 4);
    }

    #[test]
    fn what_is_begun_counts_with_what_it_goes_on_with_and_can_be_taken_once() {
        let content = [b'a'; 1000];
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(&content).expect("memory is writable");
        let stored = encoder.finish().expect("memory is writable");
        let (blob, tar) = (ByteRange::new(0, stored.len() as u64), ByteRange::new(0, 1000));
        let proof = Proof::Stored(Segments::of(&stored, blob));
        let span = Span { blob, tar, skip: 0, codec: Codec::Gzip, proof };
        let mut read = |_| Ok(Some(stored.clone().into()));
        let mut begun =
            || Opened::open(&span, &[], 10, &mut read).expect("right").expect("it is here");
        let bytes = begun().memory_bytes();
        assert!(bytes > 1000 && bytes <= bytes_if_begun(&span));
        let spans = Spans::new(2 * bytes);
        assert!(spans.may_keep(bytes) && !spans.may_keep(2 * bytes + 1));
        (0..3).for_each(|i| spans.put((0, i), begun()));
        assert!(spans.part(&(0, 0), 0..10).is_none(), "two have room");
        assert_eq!(spans.part(&(0, 1), 5..10).as_deref(), Some(&content[5..10]));
        assert!(spans.part(&(0, 1), 5..11).is_none(), "it was not needed");
        assert!(spans.get(&(0, 1)).is_none(), "it is not whole");
        let taken = spans.take(&(0, 1)).expect("it is kept");
        assert!(spans.take(&(0, 1)).is_none());
        assert_eq!(spans.kept().bytes, bytes);
        let whole = taken.reach(1000, &mut |_| panic!("it has all")).expect("it goes on");
        spans.put((0, 1), whole.expect("all of it is here"));
        assert_eq!(spans.get(&(0, 1)).as_deref(), Some(&content[..]));
        assert_eq!(spans.kept().bytes, bytes + 1000);
        let one = Spans::new(bytes - 1);
        one.put((0, 0), begun());
        assert!(one.take(&(0, 0)).is_none() && one.kept().bytes == 0, "there is no room for it");
    }
}
