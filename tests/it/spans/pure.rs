//! Plans and decoders alone: no reader, no disk.

use std::collections::BTreeSet;

use layoutfs::layout::codec::decode_span;
use layoutfs::layout::index::{Proof, Span};
use layoutfs::layout::plan::{plan_fetch, plan_spans};
use layoutfs::layout::range::{ByteRange, RangeSet};
use proptest::prelude::*;

use super::sample::{Read, Sample, any_read, any_sample, sha256};

/// What is here of a blob.
struct Disk {
    bytes: Vec<u8>,
    resident: RangeSet,
}

impl Disk {
    fn bring(&mut self, sample: &Sample, range: ByteRange) {
        let at = range.start as usize..range.end as usize;
        self.bytes[at.clone()].copy_from_slice(&sample.blob[at]);
        self.resident.insert(range);
    }

    /// What a span decodes to, of bytes that are here and have its digest.
    fn decode(&self, sample: &Sample, span: &Span) -> Vec<u8> {
        assert!(self.resident.contains(span.blob), "{:?} is not all here", span.blob);
        let stored = &self.bytes[span.blob.start as usize..span.blob.end as usize];
        let window = sample.index.window(span).expect("its window");
        let decoded = decode_span(span, &window, stored).expect("it decodes");
        match &span.proof {
            Proof::Stored(segments) => {
                assert_eq!(segments.verify(0..segments.count(), stored), Ok(()))
            }
            Proof::Decoded(proof) => assert_eq!(*proof, sha256(&decoded)),
        }
        decoded
    }
}

fn bytes_of(ranges: impl IntoIterator<Item = ByteRange>) -> BTreeSet<u64> {
    ranges.into_iter().flat_map(|range| range.start..range.end).collect()
}

/// Answers a read as a reader does. Gives what it has asked for.
fn answer(sample: &Sample, disk: &mut Disk, read: &Read, gap: u64, len_max: u64) -> Vec<ByteRange> {
    let (expected, slices) = read.of(sample);
    let tar: Vec<ByteRange> = slices.iter().filter_map(|slice| slice.tar).collect();
    let spans = plan_spans(&sample.index, &tar);
    let wanted: Vec<ByteRange> = spans.iter().map(|&i| sample.index.spans[i].blob).collect();
    let missing: BTreeSet<u64> = bytes_of(wanted.iter().flat_map(|r| disk.resident.missing(*r)));
    let requests = plan_fetch(&wanted, &disk.resident, gap, len_max);
    let asked = bytes_of(requests.iter().copied());
    assert_eq!(asked.len() as u64, requests.iter().map(ByteRange::len).sum::<u64>(), "twice");
    assert!(asked.is_superset(&missing));
    assert!(gap > 0 || asked == missing, "{requests:?} for {wanted:?}");
    requests.iter().for_each(|request| disk.bring(sample, *request));
    let mut buffer = vec![0; expected.len()];
    for (span, i) in spans.iter().map(|&i| (&sample.index.spans[i], i)) {
        let decoded = disk.decode(sample, span);
        assert!(decoded == sample.tar[span.tar.start as usize..span.tar.end as usize], "span {i}");
        for slice in &slices {
            let Some(tar) = slice.tar else { continue };
            let both = tar.intersection(&span.tar);
            if !both.is_empty() {
                let to = (slice.buffer.start + both.start - tar.start) as usize;
                let from = (both.start - span.tar.start) as usize;
                let len = both.len() as usize;
                buffer[to..to + len].copy_from_slice(&decoded[from..from + len]);
            }
        }
    }
    assert!(buffer == expected, "{read:?}");
    requests
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn plan_and_decode_are_a_slice_of_the_tar(
        sample in any_sample(),
        here in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        reads in prop::collection::vec(any_read(), 1..12),
        gap in prop_oneof![Just(0u64), 0u64..3000],
        len_max in prop_oneof![Just(u64::MAX), 1u64..5000],
    ) {
        let mut disk = Disk { bytes: vec![0; sample.blob.len()], resident: RangeSet::new() };
        for at in here {
            disk.bring(&sample, at.get(&sample.index.spans).blob);
        }
        let mut fetched = disk.resident.clone();
        for read in &reads {
            for request in answer(&sample, &mut disk, read, gap, len_max) {
                let again = request.len() - fetched.missing(request).iter().map(ByteRange::len).sum::<u64>();
                prop_assert!(gap > 0 || again == 0, "{again} bytes of {request} again");
                fetched.insert(request);
            }
        }
    }
}
