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
    use crate::layout::index::{Codec, Proof, Span};

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
                let proof = Proof::Stored([0; 32]);
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
