//! The same through a layer's reader, whose source counts: with readers at the same time, with and
//! without reading ahead, over two lives of the cache.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::try_join_all;
use layoutfs::fetch::cache::Cache;
use layoutfs::fetch::layer::LayerReader;
use layoutfs::fetch::store::{Config, Store};
use layoutfs::fetch::{Body, BoxFuture, Deadline, Error, ErrorKind, Result, Source};
use layoutfs::layout::Blob;
use layoutfs::layout::range::{ByteRange, RangeSet};
use proptest::prelude::*;

use super::sample::{Read, Sample, any_read, any_sample};
use crate::support::layer;
use crate::writers::once;

/// Serves one blob from memory, after some turns of the others, and counts.
struct Memory {
    blob: Bytes,
    asked: Mutex<Vec<ByteRange>>,
}

impl Memory {
    fn of(sample: &Sample) -> Arc<Self> {
        Arc::new(Memory { blob: sample.blob.clone().into(), asked: Mutex::default() })
    }

    fn asked(&self) -> Vec<ByteRange> {
        self.asked.lock().expect("nobody panics").clone()
    }
}

impl Source for Memory {
    fn read<'a>(
        &'a self,
        _: &'a Blob,
        range: ByteRange,
        _: Deadline,
    ) -> BoxFuture<'a, Result<Body>> {
        Box::pin(async move {
            self.asked.lock().expect("nobody panics").push(range);
            for _ in 0..range.start % 7 {
                tokio::task::yield_now().await;
            }
            let bytes = self.blob.slice(range.start as usize..range.end as usize);
            Ok(Body::ready(range, bytes))
        })
    }

    fn name(&self) -> String {
        "memory".to_owned()
    }
}

/// A mount's reader of the layer: its memory is empty, its cache is not.
fn reader(sample: &Sample, cache: &Path, source: Arc<Memory>) -> Arc<LayerReader> {
    reader_with(sample, cache, source, 30_000)
}

/// The same with so much memory.
fn reader_with(
    sample: &Sample,
    cache: &Path,
    source: Arc<Memory>,
    spans_bytes_max: usize,
) -> Arc<LayerReader> {
    let store = Store::new(Config {
        cache: Cache::open(cache, None).expect("a cache"),
        layout_dir: None,
        source: Some(source),
        no_source: Error::new(ErrorKind::Offline, "unused"),
        stall: Duration::from_secs(50),
        spans_bytes_max,
        keeps_fresh: true,
        own_indexes_only: false,
    });
    let layer = layer::named(&sample.blob, sample.index.diff_id);
    Arc::new(LayerReader::new(Arc::new(store), layer, &sample.index, None).expect("a reader"))
}

/// What a read gives.
async fn read(reader: &Arc<LayerReader>, sample: &Sample, read: &Read) -> Result<()> {
    let (expected, slices) = read.of(sample);
    let mut buffer = vec![0; expected.len()];
    for slice in slices {
        let Some(tar) = slice.tar else { continue };
        let bytes = reader.read(tar, Deadline::after(Duration::from_secs(50))).await?;
        buffer[slice.buffer.start as usize..slice.buffer.end as usize].copy_from_slice(&bytes);
    }
    assert!(buffer == expected, "{read:?}");
    Ok(())
}

/// The bytes of the spans that reads need.
fn needed(sample: &Sample, reads: &[Read]) -> RangeSet {
    let mut needed = RangeSet::new();
    for tar in reads.iter().flat_map(|read| read.of(sample).1).filter_map(|slice| slice.tar) {
        sample.index.spans_for(tar).for_each(|i| needed.insert(sample.index.spans[i].blob));
    }
    needed
}

/// Reads in lives of a mount, some at the same time in each.
fn run(sample: &Sample, lives: &[Vec<Vec<Read>>], is_ahead: bool, spans_bytes_max: usize) {
    let mut threads = tokio::runtime::Builder::new_multi_thread();
    let runtime = threads.worker_threads(2).enable_all().build().expect("threads");
    let cache = tempfile::tempdir().expect("a directory");
    let source = Memory::of(sample);
    for life in lives {
        // Without a runtime around it, a reader does not read ahead.
        let _inside = is_ahead.then(|| runtime.enter());
        let reader = reader_with(sample, cache.path(), source.clone(), spans_bytes_max);
        for together in life {
            let reads = together.iter().map(|one| read(&reader, sample, one));
            runtime.block_on(try_join_all(reads)).expect("right bytes");
        }
        // What is ahead of a reader would be fetched for the next one as well.
        while runtime.metrics().num_alive_tasks() > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let asked = once(&source.asked());
    let reads: Vec<Read> = lives.iter().flatten().flatten().copied().collect();
    let needed = needed(sample, &reads);
    assert!(needed.ranges().iter().all(|range| asked.contains(*range)), "{asked:?}");
    assert!(is_ahead || asked == needed, "asked for {asked:?}, needed {needed:?}");
}

#[tokio::test]
async fn what_is_read_of_one_span_is_not_copied() {
    let sample = Sample::of_members();
    let cache = tempfile::tempdir().expect("a directory");
    let reader = reader(&sample, cache.path(), Memory::of(&sample));
    let span = sample.index.spans[1].tar;
    assert!(reader.part_now(span).is_none(), "it is not here yet");
    let whole = reader.read(span, patient()).await.expect("bytes");
    for tar in [ByteRange::at(span.start, 5), ByteRange::at(span.end - 5, 5)] {
        let within = (tar.start - span.start) as usize;
        let parts = [reader.part_now(tar), reader.read(tar, patient()).await.ok()];
        for part in parts.map(|part| part.expect("it is in memory")) {
            assert_eq!(part.as_ptr(), whole[within..].as_ptr());
            assert_eq!(*part, sample.tar[tar.start as usize..tar.end as usize]);
        }
    }
    let two = ByteRange::new(span.end - 5, span.end + 5);
    assert!(reader.part_now(two).is_none(), "they do not lie side by side");
    let read = reader.read(two, patient()).await.expect("bytes");
    assert_eq!(*read, sample.tar[two.start as usize..two.end as usize]);
    let beyond = ByteRange::at(sample.tar.len() as u64, 1);
    assert!(reader.part_now(beyond).is_none());
}

/// A cache that has the sample's second span, and where that is.
async fn with_second_span(sample: &Sample) -> (tempfile::TempDir, ByteRange) {
    let cache = tempfile::tempdir().expect("a directory");
    let span = sample.index.spans[1].tar;
    let first = reader(sample, cache.path(), Memory::of(sample));
    first.read(span, Deadline::after(Duration::from_secs(50))).await.expect("bytes");
    (cache, span)
}

#[tokio::test]
async fn of_a_span_that_is_here_a_read_decodes_what_it_needs_and_the_next_one_the_rest() {
    let sample = Sample::of_members();
    let (cache, span) = with_second_span(&sample).await;
    let source = Memory::of(&sample);
    let reader = reader_with(&sample, cache.path(), source.clone(), 400_000);
    let read = async |tar: ByteRange| {
        let read = reader.read(tar, Deadline::after(Duration::from_secs(50))).await.expect("bytes");
        assert_eq!(*read, sample.tar[tar.start as usize..tar.end as usize]);
    };
    let at = |from: u64, len: u64| ByteRange::at(span.start + from, len);
    read(at(1000, 10)).await;
    assert!(reader.part_now(at(0, 1010)).is_some(), "what is in front of it is decoded");
    assert!(reader.part_now(at(0, 1011)).is_none(), "what is behind it is not");
    // It goes on with what it has in memory.
    std::fs::remove_dir_all(cache.path()).expect("the cache is removed");
    read(at(1500, 10)).await;
    assert!(reader.part_now(span).is_some(), "who comes back reads on");
    read(span).await;
    assert!(source.asked().is_empty(), "{:?}", source.asked());
}

#[tokio::test]
async fn a_wrong_byte_behind_what_is_wanted_makes_the_span_be_fetched() {
    let sample = Sample::of_members();
    let (cache, span) = with_second_span(&sample).await;
    let stored = sample.index.spans[1].blob;
    let files = walk(cache.path());
    let part = files.iter().find(|path| path.extension().is_some_and(|e| e == "part"));
    let part = std::fs::File::options().write(true).open(part.expect("a part")).expect("it opens");
    part.write_all_at(&[!sample.blob[stored.end as usize - 1]], stored.end - 1).expect("a byte");
    let source = Memory::of(&sample);
    let reader = reader_with(&sample, cache.path(), source.clone(), 400_000);
    let tar = ByteRange::at(span.start, 10);
    let read = reader.read(tar, Deadline::after(Duration::from_secs(50))).await.expect("bytes");
    assert_eq!(*read, sample.tar[tar.start as usize..tar.end as usize]);
    assert_eq!(source.asked(), [stored], "what was here was given out");
}

/// What a life of a cache leaves of a blob whose only span has seven segments: the part, or the whole
/// blob. Its last bytes are wrong.
async fn damaged_at_its_end(sample: &Sample, is_whole: bool) -> tempfile::TempDir {
    let cache = tempfile::tempdir().expect("a directory");
    let first = reader(sample, cache.path(), Memory::of(sample));
    first.read(sample.index.spans[0].tar, patient()).await.expect("bytes");
    let files = walk(cache.path());
    let part = files.iter().find(|path| path.extension().is_some_and(|e| e == "part"));
    let part = part.expect("a part");
    let last = sample.blob.len() as u64 - 1;
    let file = std::fs::File::options().write(true).open(part).expect("it opens");
    file.write_all_at(&[!sample.blob[last as usize]], last).expect("a byte");
    if is_whole {
        let digest = layer::named(&sample.blob, sample.index.diff_id).blob.digest;
        std::fs::rename(part, part.with_file_name(digest.hex())).expect("it is renamed");
    }
    cache
}

#[tokio::test]
async fn a_wrong_byte_of_a_segment_that_is_not_needed_costs_nothing_until_somebody_needs_it() {
    let sample = Sample::of_segments();
    let (span, stored) = (sample.index.spans[0].tar, sample.index.spans[0].blob);
    let (first, last) = (ByteRange::at(span.start, 10), ByteRange::at(span.end - 10, 10));
    let of = |tar: ByteRange| &sample.tar[tar.start as usize..tar.end as usize];
    for (is_whole, reads) in [
        (false, &[first, last][..]),
        (true, &[first, last]),
        // Who comes back to a span reads on, to its end; and there is one who wants that at once.
        (false, &[first, ByteRange::at(span.start + 200_000, 5), last]),
        (true, &[last]),
    ] {
        let cache = damaged_at_its_end(&sample, is_whole).await;
        let source = Memory::of(&sample);
        let reader = reader_with(&sample, cache.path(), source.clone(), 4 << 20);
        for tar in reads {
            assert_eq!(*reader.read(*tar, patient()).await.expect("bytes"), *of(*tar), "{tar}");
            assert!(*tar != first || source.asked().is_empty(), "it needs none of that");
        }
        assert_eq!(source.asked(), [stored], "it is asked for once");
        let again = reader_with(&sample, cache.path(), source.clone(), 4 << 20);
        assert_eq!(*again.read(span, patient()).await.expect("bytes"), *of(span));
        assert_eq!(source.asked(), [stored], "what came took the place of what was wrong");
    }
}

fn patient() -> Deadline {
    Deadline::after(Duration::from_secs(50))
}

/// All files below a directory.
fn walk(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory).expect("a directory");
    let below = |path: std::path::PathBuf| if path.is_dir() { walk(&path) } else { vec![path] };
    entries.flat_map(|entry| below(entry.expect("an entry").path())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn reads_are_slices_of_the_tar_and_fetch_what_is_missing_once(
        sample in any_sample(),
        lives in prop::collection::vec(
            prop::collection::vec(prop::collection::vec(any_read(), 1..6), 1..5),
            1..3,
        ),
        is_ahead in any::<bool>(),
        // A span that is begun takes more than 64 KiB: there is room for none, for one, for some.
        spans_bytes_max in prop_oneof![Just(30_000usize), Just(100_000), Just(400_000)],
    ) {
        run(&sample, &lives, is_ahead, spans_bytes_max);
    }
}
