//! Plans as values: what to copy, which spans to decode, which ranges to fetch. Nothing is done
//! here, and nothing decided: gaps and lengths are arguments.

use super::entry::Chunk;
use super::index::LayerIndex;
use super::range::{ByteRange, RangeSet, coalesce};

/// One contiguous piece of a reader's buffer, and where its bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// Which bytes of the buffer: positions from its start.
    pub buffer: ByteRange,
    /// As many bytes of the uncompressed layer; `None`: zeros (a hole of a sparse file).
    pub tar: Option<ByteRange>,
}

/// What to copy to answer a read of `range` of a file of `size` bytes whose content is `chunks`
/// (ascending, as [`EntryKind::Regular`](super::entry::EntryKind::Regular) has them). The slices
/// are ascending and gapless from 0; together as long as what `range` and the file have in common.
pub fn plan_read(chunks: &[Chunk], size: u64, range: ByteRange) -> Vec<Slice> {
    let range = range.intersection(&ByteRange::new(0, size));
    let mut slices = Vec::new();
    let mut at = range.start;
    let first = chunks.partition_point(|c| file_range(c).end <= range.start);
    for chunk in &chunks[first..] {
        let covers = file_range(chunk);
        if covers.start >= range.end {
            break;
        }
        let part = covers.intersection(&ByteRange::new(at, range.end));
        if part.is_empty() {
            continue;
        }
        let in_buffer = |from, to| ByteRange::new(from - range.start, to - range.start);
        if part.start > at {
            slices.push(Slice { buffer: in_buffer(at, part.start), tar: None });
        }
        let tar = ByteRange::at(chunk.tar.start + (part.start - covers.start), part.len());
        slices.push(Slice { buffer: in_buffer(part.start, part.end), tar: Some(tar) });
        at = part.end;
    }
    if at < range.end {
        let buffer = ByteRange::new(at - range.start, range.end - range.start);
        slices.push(Slice { buffer, tar: None });
    }
    slices
}

fn file_range(chunk: &Chunk) -> ByteRange {
    ByteRange::at(chunk.file_offset, chunk.tar.len())
}

/// The spans (indexes into [`LayerIndex::spans`], ascending, each once) that hold these ranges of
/// the uncompressed layer.
pub fn plan_spans(index: &LayerIndex, tar: &[ByteRange]) -> Vec<usize> {
    let mut spans: Vec<usize> = tar.iter().flat_map(|range| index.spans_for(*range)).collect();
    spans.sort_unstable();
    spans.dedup();
    spans
}

/// What to ask a source for, so that every byte of `wanted` (ranges of one blob, in any order)
/// becomes resident: ascending, disjoint, none empty, none longer than `len_max_bytes` (at least
/// 1). Ranges at most `gap_bytes` apart are fetched as one, with what lies between: resident bytes
/// may come again where that spares a request.
pub fn plan_fetch(
    wanted: &[ByteRange],
    resident: &RangeSet,
    gap_bytes: u64,
    len_max_bytes: u64,
) -> Vec<ByteRange> {
    let len_max_bytes = len_max_bytes.max(1);
    let mut missing = RangeSet::new();
    for range in wanted {
        for gap in resident.missing(*range) {
            missing.insert(gap);
        }
    }
    let joined = coalesce(missing.ranges(), gap_bytes, len_max_bytes);
    joined.into_iter().flat_map(|range| cut(range, len_max_bytes)).collect()
}

/// What is to be fetched together ahead of readers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Together {
    /// Of which layer.
    pub layer: usize,
    /// Positions in the list of what is wanted, ascending in their bytes of the blob.
    pub wanted: Vec<usize>,
    /// All of it, with what lies between.
    pub range: ByteRange,
    /// Bytes of `range` that are wanted.
    useful_bytes: u64,
}

/// How requests ahead of readers are put together, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct AheadLimits {
    /// The largest gap that is fetched along.
    pub gap: u64,
    /// The longest range, unless one that is wanted is longer.
    pub len_max: u64,
    /// Within so many wanted bytes the order is that of the blobs; beyond, that of first need.
    pub wave: u64,
}

/// At most one byte in so many is fetched without being wanted.
const WASTE: u64 = 5;

/// Puts `wanted` together, layers and ranges of their blobs in order of first need: each of them is
/// in one `Together`, and no more than a fifth of one's bytes lie between what is wanted.
pub fn plan_ahead(wanted: &[(usize, ByteRange)], limits: AheadLimits) -> Vec<Together> {
    let mut planned = Vec::new();
    let mut at = 0;
    while at < wanted.len() {
        let (first, mut bytes) = (at, 0u64);
        while at < wanted.len() && bytes < limits.wave {
            bytes = bytes.saturating_add(wanted[at].1.len());
            at += 1;
        }
        // A wave of no bytes would never end.
        at = at.max(first + 1);
        let mut order: Vec<usize> = (first..at).collect();
        order.sort_by_key(|&i| (wanted[i].0, wanted[i].1));
        let mut wave: Vec<Together> = Vec::new();
        for i in order {
            let (layer, range) = wanted[i];
            match wave.last_mut() {
                Some(last) if last.takes(layer, range, limits) => last.take(i, range),
                _ => {
                    let (wanted, useful_bytes) = (vec![i], range.len());
                    wave.push(Together { layer, wanted, range, useful_bytes });
                }
            }
        }
        wave.sort_by_key(|together| together.wanted.iter().min().copied());
        planned.append(&mut wave);
    }
    planned
}

impl Together {
    fn takes(&self, layer: usize, range: ByteRange, limits: AheadLimits) -> bool {
        let end = range.end.max(self.range.end);
        let len = end.saturating_sub(self.range.start);
        let useful =
            self.useful_bytes.saturating_add(end - range.start.max(self.range.end).min(end));
        layer == self.layer
            && range.start.saturating_sub(self.range.end) <= limits.gap
            && len <= limits.len_max
            && len.saturating_sub(useful) <= len / WASTE
    }

    fn take(&mut self, i: usize, range: ByteRange) {
        let end = range.end.max(self.range.end);
        self.useful_bytes += end - range.start.max(self.range.end).min(end);
        self.range.end = end;
        self.wanted.push(i);
    }
}

/// `range` in pieces of `len_max_bytes`, the last one shorter.
fn cut(range: ByteRange, len_max_bytes: u64) -> impl Iterator<Item = ByteRange> {
    let mut rest = range;
    std::iter::from_fn(move || {
        let piece =
            ByteRange::new(rest.start, rest.end.min(rest.start.saturating_add(len_max_bytes)));
        rest.start = piece.end;
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::layout::digest::Digest;
    use crate::layout::index::{Codec, Proof, Segments, Span};

    /// Chunks with gaps before, between and after; their bytes lie anywhere in the tar.
    fn sparse_file() -> impl Strategy<Value = (Vec<Chunk>, u64)> {
        let pieces = prop::collection::vec((0u64..5, 1u64..6, 0u64..200), 0..6);
        (pieces, 0u64..5).prop_map(|(pieces, tail)| {
            let mut at = 0;
            let mut chunks = Vec::new();
            for (hole, len, tar) in pieces {
                chunks.push(Chunk { file_offset: at + hole, tar: ByteRange::at(tar, len) });
                at += hole + len;
            }
            (chunks, at + tail)
        })
    }

    fn bytes_of(ranges: &[ByteRange]) -> BTreeSet<u64> {
        ranges.iter().flat_map(|r| r.start..r.end).collect()
    }

    proptest! {
        #[test]
        fn a_planned_read_is_a_slice_of_the_whole_content(
            (chunks, size) in sparse_file(),
            start in 0u64..60,
            len in 0u64..60,
        ) {
            let tar: Vec<u8> = (0..=255).collect();
            let mut whole = vec![0u8; size as usize];
            for c in &chunks {
                let from = &tar[c.tar.start as usize..c.tar.end as usize];
                whole[c.file_offset as usize..][..from.len()].copy_from_slice(from);
            }
            let from = start.min(size) as usize;
            let expected = &whole[from..(start + len).min(size).max(from as u64) as usize];
            let mut read = Vec::new();
            for slice in plan_read(&chunks, size, ByteRange::at(start, len)) {
                prop_assert_eq!(slice.buffer.start, read.len() as u64);
                prop_assert!(!slice.buffer.is_empty());
                match slice.tar {
                    Some(t) => read.extend(&tar[t.start as usize..t.end as usize]),
                    None => read.resize(slice.buffer.end as usize, 0),
                }
                prop_assert_eq!(slice.buffer.end, read.len() as u64);
            }
            prop_assert_eq!(&read[..], expected);
        }

        #[test]
        fn planned_spans_are_those_that_share_a_byte_with_a_range(
            ends in prop::collection::btree_set(1u64..200, 1..10),
            ranges in prop::collection::vec((0u64..200, 0u64..30), 0..5),
        ) {
            let mut start = 0;
            let mut spans = Vec::new();
            for end in ends {
                let tar = ByteRange::new(start, end);
                let proof = Proof::Stored(Segments::One([0; 32]));
                spans.push(Span { blob: tar, tar, skip: 0, codec: Codec::Stored, proof });
                start = end;
            }
            let diff_id = Digest::sha256_of(b"");
            let index = LayerIndex::plain(diff_id, start, Vec::new(), spans);
            let ranges: Vec<_> = ranges.iter().map(|(s, l)| ByteRange::at(*s, *l)).collect();
            let wanted = bytes_of(&ranges);
            let meant = |s: &Span| (s.tar.start..s.tar.end).any(|b| wanted.contains(&b));
            let expected: Vec<usize> =
                (0..index.spans.len()).filter(|i| meant(&index.spans[*i])).collect();
            prop_assert_eq!(plan_spans(&index, &ranges), expected);
        }

        #[test]
        fn a_planned_fetch_brings_what_is_missing_and_little_else(
            wanted in prop::collection::vec((0u64..300, 0u64..40), 0..8),
            resident in prop::collection::vec((0u64..300, 0u64..40), 0..8),
            gap in 0u64..20,
            len_max in 0u64..50,
        ) {
            let wanted: Vec<_> = wanted.iter().map(|(s, l)| ByteRange::at(*s, *l)).collect();
            let mut here = RangeSet::new();
            for (start, len) in resident {
                here.insert(ByteRange::at(start, len));
            }
            let plan = plan_fetch(&wanted, &here, gap, len_max);
            prop_assert!(plan.windows(2).all(|w| w[0].end <= w[1].start));
            prop_assert!(plan.iter().all(|r| !r.is_empty() && r.len() <= len_max.max(1)));
            let resident = bytes_of(here.ranges());
            let missing: BTreeSet<u64> =
                bytes_of(&wanted).difference(&resident).copied().collect();
            let fetched = bytes_of(&plan);
            prop_assert!(fetched.is_superset(&missing));
            let mut needed = RangeSet::new();
            missing.iter().for_each(|b| needed.insert(ByteRange::at(*b, 1)));
            for range in plan {
                prop_assert!(needed.missing(range).iter().all(|hole| hole.len() <= gap));
                prop_assert!(missing.contains(&range.start) && missing.contains(&(range.end - 1)));
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_fetched_together_is_all_that_is_wanted_and_little_else(
            wanted in prop::collection::vec((0usize..3, 0u64..1000, 1u64..40), 0..30),
            gap in 0u64..60,
            len_max in 1u64..300,
            wave in 0u64..400,
        ) {
            let wanted: Vec<_> = wanted.iter().map(|(l, s, n)| (*l, ByteRange::at(*s, *n))).collect();
            let planned = plan_ahead(&wanted, AheadLimits { gap, len_max, wave });
            let mut seen: Vec<usize> = planned.iter().flat_map(|t| t.wanted.clone()).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..wanted.len()).collect::<Vec<_>>());
            for together in &planned {
                let ranges: Vec<_> = together.wanted.iter().map(|i| wanted[*i].1).collect();
                prop_assert!(together.wanted.iter().all(|i| wanted[*i].0 == together.layer));
                prop_assert!(ranges.windows(2).all(|w| w[0].start <= w[1].start));
                prop_assert_eq!(together.range.start, ranges[0].start);
                prop_assert_eq!(Some(together.range.end), ranges.iter().map(|r| r.end).max());
                prop_assert!(together.range.len() <= len_max || ranges.len() == 1);
                let useful = bytes_of(&ranges).len() as u64;
                prop_assert!(together.range.len() * 4 <= useful * 5, "{:?}", together);
                let (mut holes, mut at) = (Vec::new(), together.range.start);
                for range in &ranges {
                    holes.push(range.start.saturating_sub(at));
                    at = at.max(range.end);
                }
                prop_assert!(holes.iter().all(|hole| *hole <= gap));
            }
        }
    }

    #[test]
    fn what_is_needed_first_is_fetched_first_and_near_ones_along_with_it() {
        let range = ByteRange::new;
        let wanted =
            [(0, range(500, 600)), (1, range(0, 90)), (0, range(0, 100)), (0, range(610, 700))];
        let limits = AheadLimits { gap: 20, len_max: 1000, wave: 10_000 };
        let planned = plan_ahead(&wanted, limits);
        let planned: Vec<_> = planned.iter().map(|t| (t.layer, t.range, &t.wanted[..])).collect();
        let expected: [(usize, ByteRange, &[usize]); 3] =
            [(0, range(500, 700), &[0, 3]), (1, range(0, 90), &[1]), (0, range(0, 100), &[2])];
        assert_eq!(planned, expected);
        let waves = plan_ahead(&wanted, AheadLimits { wave: 150, ..limits });
        assert_eq!(waves.iter().map(|t| t.range.start).collect::<Vec<_>>(), [500, 0, 0, 610]);
    }

    #[test]
    fn a_wave_ends_where_its_bytes_are_there_and_has_at_least_one_range() {
        let (late, early) = (ByteRange::new(10, 20), ByteRange::new(0, 10));
        let planned = |wave| -> Vec<ByteRange> {
            let limits = AheadLimits { gap: 0, len_max: 100, wave };
            plan_ahead(&[(0, late), (0, early)], limits).iter().map(|t| t.range).collect()
        };
        assert_eq!(planned(0), [late, early]);
        assert_eq!(planned(10), [late, early]);
        assert_eq!(planned(11), [ByteRange::new(0, 20)]);
    }

    #[test]
    fn a_fetch_splits_long_ranges_and_joins_near_ones() {
        let range = |start, end| ByteRange::new(start, end);
        let mut resident = RangeSet::new();
        resident.insert(range(100, 200));
        let wanted = [range(300, 310), range(0, 250), range(315, 320)];
        let expected = [range(0, 64), range(64, 100), range(200, 250), range(300, 320)];
        assert_eq!(plan_fetch(&wanted, &resident, 5, 64), expected);
    }
}
