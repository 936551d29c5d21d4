//! Decoded spans kept in memory, bounded by bytes. (Bytes on disk: `cache.rs`.)

use std::sync::{Mutex, PoisonError};

use lru::LruCache;

use super::proved::Proved;

/// A span: the reader's number (two layers may have one blob and different indexes) and the span's
/// position in its `LayerIndex`.
pub type SpanKey = (u64, usize);

/// Least recently used decoded spans, at most `bytes_max` of them (one larger span is not kept).
#[derive(Debug)]
pub struct Spans {
    bytes_max: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    spans: LruCache<SpanKey, Proved>,
    bytes: usize,
}

impl Spans {
    /// Keeps at most `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Self {
        Spans { bytes_max, kept: Mutex::new(Kept { spans: LruCache::unbounded(), bytes: 0 }) }
    }

    /// The decoded span, if it is kept. Counts as a use.
    pub fn get(&self, key: &SpanKey) -> Option<Proved> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.spans.get(key).cloned()
    }

    /// Keeps a decoded span, and lets go of the least recently used ones beyond the bound.
    pub fn put(&self, key: SpanKey, decoded: Proved) {
        if decoded.len() > self.bytes_max {
            return;
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.bytes += decoded.len();
        if let Some(replaced) = kept.spans.put(key, decoded) {
            kept.bytes -= replaced.len();
        }
        while kept.bytes > self.bytes_max {
            let Some((_, evicted)) = kept.spans.pop_lru() else { break };
            kept.bytes -= evicted.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Digest;

    #[test]
    fn the_least_recently_used_spans_go_first_and_the_bound_holds() {
        let spans = Spans::new(10);
        let key = |i| (0, i);
        let proved = |bytes: &'static [u8]| {
            Proved::check(&Digest::sha256_of(bytes), bytes.into()).expect("its own digest")
        };
        spans.put(key(0), proved(b"aaaa"));
        spans.put(key(1), proved(b"bbbb"));
        assert!(spans.get(&key(0)).is_some());
        spans.put(key(2), proved(b"cccc"));
        assert!(spans.get(&key(1)).is_none());
        assert!(spans.get(&key(0)).is_some());
        spans.put(key(3), proved(b"longer than ten"));
        assert!(spans.get(&key(3)).is_none());
        assert_eq!(spans.kept.lock().expect("lock").bytes, 8);
    }
}
