//! Half-open byte ranges and sets of them.

use std::fmt;

/// `[start, end)`: byte positions, half-open, never inverted. HTTP's inclusive form is made in one
/// place, `fetch/registry.rs`.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// One past the last byte; at least `start`.
    pub end: u64,
}

impl ByteRange {
    /// `[start, end)`; an inverted pair gives the empty range at `start`.
    pub fn new(start: u64, end: u64) -> Self {
        ByteRange { start, end: end.max(start) }
    }

    /// `len` bytes from `start`; saturates at the end of the number line.
    pub fn at(start: u64, len: u64) -> Self {
        ByteRange { start, end: start.saturating_add(len) }
    }

    /// Number of bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Holds no byte.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Every byte of `other` is in `self`.
    pub fn contains(&self, other: &ByteRange) -> bool {
        other.is_empty() || (self.start <= other.start && other.end <= self.end)
    }

    /// The bytes in both; empty (somewhere) when there are none.
    pub fn intersection(&self, other: &ByteRange) -> ByteRange {
        ByteRange::new(self.start.max(other.start), self.end.min(other.end))
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A set of bytes: sorted, disjoint, non-adjacent ranges. A residency map is one of these.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeSet {
    ranges: Vec<ByteRange>,
}

impl RangeSet {
    /// No byte.
    pub fn new() -> Self {
        Self::default()
    }

    /// The ranges: ascending, with a gap between any two.
    pub fn ranges(&self) -> &[ByteRange] {
        &self.ranges
    }

    /// Number of bytes in the set.
    pub fn len(&self) -> u64 {
        self.ranges.iter().map(ByteRange::len).sum()
    }

    /// Holds no byte.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Adds the bytes of `range`, joining what it touches.
    pub fn insert(&mut self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        let first = self.ranges.partition_point(|r| r.end < range.start);
        let last = self.ranges.partition_point(|r| r.start <= range.end);
        let mut joined = range;
        for touched in &self.ranges[first..last] {
            joined = ByteRange::new(joined.start.min(touched.start), joined.end.max(touched.end));
        }
        self.ranges.splice(first..last, [joined]);
    }

    /// Takes the bytes of `range` out.
    pub fn remove(&mut self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        let first = self.ranges.partition_point(|r| r.end <= range.start);
        let last = self.ranges.partition_point(|r| r.start < range.end);
        let touched = &self.ranges[first..last];
        let before = touched.first().map(|r| ByteRange::new(r.start, range.start.max(r.start)));
        let after = touched.last().map(|r| ByteRange::new(range.end.min(r.end), r.end));
        let kept: Vec<ByteRange> =
            [before, after].into_iter().flatten().filter(|r| !r.is_empty()).collect();
        self.ranges.splice(first..last, kept);
    }

    /// Every byte of `range` is in the set.
    pub fn contains(&self, range: ByteRange) -> bool {
        if range.is_empty() {
            return true;
        }
        let at = self.ranges.partition_point(|r| r.end <= range.start);
        self.ranges.get(at).is_some_and(|r| r.contains(&range))
    }

    /// The bytes of `range` that are not in the set, ascending.
    pub fn missing(&self, range: ByteRange) -> Vec<ByteRange> {
        let mut gaps = Vec::new();
        let mut at = range.start;
        for r in &self.ranges[self.ranges.partition_point(|r| r.end <= range.start)..] {
            if r.start >= range.end {
                break;
            }
            if r.start > at {
                gaps.push(ByteRange::new(at, r.start));
            }
            at = r.end;
        }
        if at < range.end {
            gaps.push(ByteRange::new(at, range.end));
        }
        gaps
    }
}

/// Joins ascending ranges whose gap is at most `gap` bytes, as long as the result stays within
/// `len_max` bytes. One request for two spans is cheaper than two when little lies between.
pub fn coalesce(ranges: &[ByteRange], gap: u64, len_max: u64) -> Vec<ByteRange> {
    let mut joined: Vec<ByteRange> = Vec::new();
    for &range in ranges.iter().filter(|r| !r.is_empty()) {
        match joined.last_mut() {
            Some(last)
                if range.start.saturating_sub(last.end) <= gap
                    && range.end.saturating_sub(last.start) <= len_max =>
            {
                last.end = last.end.max(range.end);
            }
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_removed_is_missing_and_nothing_else() {
        let mut set = RangeSet::new();
        for (start, end) in [(0, 10), (20, 30), (40, 50)] {
            set.insert(ByteRange::new(start, end));
        }
        set.remove(ByteRange::new(5, 5));
        set.remove(ByteRange::new(10, 20));
        assert_eq!(set.len(), 30);
        assert!(!set.is_empty());
        set.remove(ByteRange::new(5, 45));
        assert_eq!(set.ranges(), [ByteRange::new(0, 5), ByteRange::new(45, 50)]);
        set.remove(ByteRange::new(1, 2));
        set.remove(ByteRange::new(45, 60));
        assert_eq!(set.ranges(), [ByteRange::new(0, 1), ByteRange::new(2, 5)]);
        set.remove(ByteRange::new(0, 100));
        assert!(set.is_empty());
    }

    #[test]
    fn nothing_that_is_missing_is_empty() {
        let mut set = RangeSet::new();
        set.insert(ByteRange::new(0, 10));
        set.insert(ByteRange::new(20, 30));
        for (start, end) in [(0, 10), (3, 3), (15, 15), (30, 30), (5, 10), (20, 25)] {
            let inside = start < 10 || (20..30).contains(&start);
            assert_eq!(set.missing(ByteRange::new(start, end)), [], "{start}..{end}");
            assert_eq!(set.contains(ByteRange::new(start, end)), inside || start == end);
        }
        assert_eq!(set.missing(ByteRange::new(0, 20)), [ByteRange::new(10, 20)]);
        assert_eq!(set.missing(ByteRange::new(10, 30)), [ByteRange::new(10, 20)]);
    }

    proptest! {
        #[test]
        fn a_range_set_is_the_set_of_its_bytes(
            inserts in prop::collection::vec((0u64..200, 0u64..40), 0..20),
            query in (0u64..220, 0u64..60),
        ) {
            let mut set = RangeSet::new();
            let mut model = BTreeSet::new();
            for (start, len) in inserts {
                set.insert(ByteRange::at(start, len));
                model.extend(start..start + len);
            }
            prop_assert_eq!(set.len(), model.len() as u64);
            prop_assert!(set.ranges().windows(2).all(|w| w[0].end < w[1].start));
            let query = ByteRange::at(query.0, query.1);
            let bytes = || query.start..query.end;
            prop_assert_eq!(set.contains(query), bytes().all(|b| model.contains(&b)));
            let missing: Vec<u64> = set.missing(query).iter().flat_map(|r| r.start..r.end).collect();
            let expected: Vec<u64> = bytes().filter(|b| !model.contains(b)).collect();
            prop_assert_eq!(missing, expected);
        }

        #[test]
        fn coalescing_loses_no_byte_and_bridges_no_large_gap(
            starts in prop::collection::btree_set(0u64..1000, 0..30),
            gap in 0u64..50,
        ) {
            let ranges: Vec<_> = starts.iter().map(|&s| ByteRange::at(s, 3)).collect();
            let joined = coalesce(&ranges, gap, 200);
            for r in &ranges {
                prop_assert!(joined.iter().any(|j| j.contains(r)));
            }
            for j in &joined {
                prop_assert!(j.len() <= 200);
            }
        }
    }
}
