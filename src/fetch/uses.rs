//! What readers needed of blobs, and got: for `status`, and for the trace of a use.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::layout::range::{ByteRange, RangeSet};
use crate::layout::trace::{Needed, RANGES_MAX, Trace};
use crate::layout::{Blob, Digest};

/// What was needed of all blobs, in order.
type Order = Mutex<Vec<(Digest, ByteRange)>>;

/// What readers needed of the blobs of one store.
#[derive(Debug, Default)]
pub struct Uses {
    blobs: Mutex<HashMap<Digest, Arc<Use>>>,
    /// Only where somebody wants to know the order.
    order: Arc<OnceLock<Order>>,
}

/// What readers needed of one blob.
#[derive(Debug)]
pub struct Use {
    blob: Blob,
    needed: Mutex<RangeSet>,
    got_bytes: AtomicU64,
    passed: AtomicU64,
    order: Arc<OnceLock<Order>>,
}

impl Uses {
    /// That of `blob`.
    pub fn of(&self, blob: &Blob) -> Arc<Use> {
        let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Use {
            blob: *blob,
            needed: Mutex::default(),
            got_bytes: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            order: self.order.clone(),
        };
        blobs.entry(blob.digest).or_insert_with(|| Arc::new(new())).clone()
    }

    /// From now on the order is kept.
    pub fn record(&self) {
        let _ = self.order.set(Mutex::default());
    }

    /// The trace so far of `image`, which has these layers; [`Uses::record`] began it.
    pub fn trace(&self, image: Digest, layers: &[Digest]) -> Trace {
        let mut trace = Trace { image, layers: Vec::new(), needed: Vec::new() };
        let mut numbers = HashMap::new();
        for layer in layers {
            numbers.entry(*layer).or_insert_with(|| {
                trace.layers.push(*layer);
                trace.layers.len() - 1
            });
        }
        if let Some(order) = self.order.get() {
            let order = order.lock().unwrap_or_else(PoisonError::into_inner);
            // What is no layer (another image's, in the layout view) is not in a trace.
            let needed = order.iter().filter_map(|(digest, range)| {
                Some(Needed { layer: *numbers.get(digest)?, range: *range })
            });
            trace.needed = needed.collect();
        }
        trace
    }
}

impl Use {
    /// A reader needs the bytes `range` of the blob, from wherever they come.
    pub fn need(&self, range: ByteRange) {
        let mut needed = self.needed.lock().unwrap_or_else(PoisonError::into_inner);
        if needed.contains(range) {
            return;
        }
        needed.insert(range);
        let Some(order) = self.order.get() else { return };
        let mut order = order.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = order.len() >= RANGES_MAX;
        match order.last_mut() {
            // A scan is one range. (Neighbours share a byte.)
            Some((digest, last))
                if *digest == self.blob.digest
                    && (last.start..=last.end).contains(&range.start) =>
            {
                last.end = last.end.max(range.end);
            }
            _ if !is_full => order.push((self.blob.digest, range)),
            _ => {}
        }
    }

    /// A reader needs all of it.
    pub fn need_whole(&self) {
        self.need(ByteRange::new(0, self.blob.size));
    }

    /// A reader got so many bytes of what it decodes to.
    pub fn got(&self, bytes: u64) {
        self.got_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that readers got.
    pub fn got_bytes(&self) -> u64 {
        self.got_bytes.load(Ordering::Relaxed)
    }

    /// A reader reads it past us: what it needs and gets of it nobody knows, so that all of it counts
    /// as needed.
    pub fn pass(&self) {
        self.need_whole();
        self.passed.fetch_add(1, Ordering::Relaxed);
    }

    /// How often one did.
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    /// Bytes of the blob that no reader needed.
    pub fn never_needed_bytes(&self) -> u64 {
        let needed = self.needed.lock().unwrap_or_else(PoisonError::into_inner);
        self.blob.size.saturating_sub(needed.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_has_first_needs_in_order_and_a_scan_in_one_line() {
        let blob = |name: &[u8]| Blob { digest: Digest::sha256_of(name), size: 100 };
        let (a, b, other) = (blob(b"a"), blob(b"b"), blob(b"other"));
        let uses = Uses::default();
        uses.of(&a).need(ByteRange::new(0, 10));
        uses.record();
        for (blob, start, end) in [
            (&b, 50, 60),
            (&a, 5, 10),
            (&other, 0, 1),
            (&a, 20, 30),
            (&a, 29, 40),
            (&a, 40, 50),
            (&b, 50, 60),
            (&b, 0, 10),
        ] {
            uses.of(blob).need(ByteRange::new(start, end));
        }
        let image = Digest::sha256_of(b"image");
        let trace = uses.trace(image, &[a.digest, b.digest, a.digest]);
        assert_eq!(trace.layers, [a.digest, b.digest]);
        let lines: Vec<_> =
            trace.needed.iter().map(|n| (n.layer, n.range.start, n.range.end)).collect();
        assert_eq!(lines, [(1, 50, 60), (0, 20, 50), (1, 0, 10)]);
        assert_eq!(uses.of(&a).never_needed_bytes(), 60);
        uses.of(&other).need_whole();
        assert_eq!(uses.of(&other).never_needed_bytes(), 0);
        uses.of(&a).got(7);
        assert_eq!(uses.of(&a).got_bytes(), 7);
        uses.of(&a).pass();
        assert_eq!((uses.of(&a).passed(), uses.of(&a).never_needed_bytes()), (1, 0));
    }
}
