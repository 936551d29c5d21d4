//! What an entry costs in memory: a binary of its own, because it counts every allocation.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use layoutfs::layout::entry::{Attributes, Chunk, Entry, EntryKind, Time};
use layoutfs::layout::index::{Codec, LayerIndex, Origin, Proof, Segments, Span, saved};
use layoutfs::layout::merge::{Changeset, merge};
use layoutfs::layout::range::ByteRange;
use layoutfs::layout::tree::Layer;
use layoutfs::layout::{Blob, Digest};

/// Bytes that are allocated, and the most that were.
static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call is the system allocator's; counting allocates nothing.
#[expect(unsafe_code, reason = "an allocator is unsafe to write")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(now, Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const ENTRIES: usize = 100_000;
const FILES_OF_A_DIRECTORY: usize = 13;

/// Names as long as those of a distribution; one time in four is of its own.
fn entry(number: usize, tar: &mut u64) -> Entry {
    let directory = format!("usr/lib/python3/dist-packages/package_{:05}", number / 14);
    let seconds = 1_700_000_000 + if number.is_multiple_of(4) { number as i64 } else { 0 };
    let mtime = Time { seconds, nanos: 0 };
    let offset = *tar;
    let (path, mode, kind) = match number % (FILES_OF_A_DIRECTORY + 1) {
        0 => (directory, 0o755, EntryKind::Directory),
        file => {
            let chunk = Chunk { file_offset: 0, tar: ByteRange::at(offset + 512, 700) };
            *tar += 1024;
            let kind = EntryKind::Regular { size: 700, chunks: vec![chunk] };
            (format!("{directory}/module_name_{file:02}.py"), 0o644, kind)
        }
    };
    *tar += 512;
    let attributes = Attributes { mode, mtime, ..Attributes::default() };
    Entry { path: path.into_bytes(), offset, kind, attributes }
}

fn index() -> LayerIndex {
    let mut tar_size = 0;
    let entries: Vec<Entry> = (0..ENTRIES).map(|number| entry(number, &mut tar_size)).collect();
    let whole = ByteRange::new(0, tar_size);
    let (codec, proof) = (Codec::Stored, Proof::Stored(Segments::One([0; 32])));
    let spans = vec![Span { blob: whole, tar: whole, skip: 0, codec, proof }];
    let diff_id = Digest::sha256_of(b"a layer");
    let (origin, windows) = (Origin::OnePass, Vec::new());
    LayerIndex { origin, artifact: None, diff_id, tar_size, entries, spans, windows }
}

#[test]
fn an_entry_takes_few_bytes_once_it_is_merged_and_while_it_is() {
    let saved = saved::encode(&index()).unwrap();
    let begin = NOW.load(Relaxed);
    MOST.store(begin, Relaxed);
    let mut index = saved::decode(&saved).unwrap();
    let layer = Layer {
        blob: Blob { digest: index.diff_id, size: index.tar_size },
        diff_id: index.diff_id,
        media_type: String::new(),
        annotations: BTreeMap::new(),
        soci_index: None,
    };
    let read = NOW.load(Relaxed) - begin;
    let tree = merge(vec![Changeset::take(layer, &mut index).unwrap()]).unwrap().tree;
    drop(index);
    let (now, most) = (NOW.load(Relaxed) - begin, MOST.load(Relaxed) - begin);
    println!(
        "an entry: {} bytes in the tree, {} as it is read, {} at most on the way",
        now / ENTRIES,
        read / ENTRIES,
        most / ENTRIES
    );
    assert!(tree.len() > ENTRIES);
    // 32 of its record, 8 and its length of its name, and what its attributes have of their own.
    assert!(now / ENTRIES <= 80, "{} bytes an entry", now / ENTRIES);
    assert!(most / ENTRIES <= 600, "{} bytes an entry on the way", most / ENTRIES);
}
