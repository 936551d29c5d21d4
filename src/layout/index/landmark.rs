//! Landmarks: members by which the writer of a layer says what of it a start needs.
//!
//! `.prefetch.landmark` of eStargz (containerd/stargz-snapshotter, `docs/estargz.md`) stands behind
//! those files, `.no.prefetch.landmark` says that there are none. Both are members of the tar, so
//! that whoever vouches for the layer vouches for them, whatever index the layer is read by.

use super::LayerIndex;
use crate::layout::entry::EntryKind;

/// Stands behind what is to be fetched early.
const PREFETCH: &[u8] = b".prefetch.landmark";

/// Nothing is to be fetched early.
const NO_PREFETCH: &[u8] = b".no.prefetch.landmark";

/// A member of this name is a landmark; whoever adds one writes the tar anew.
pub fn is_landmark(path: &[u8]) -> bool {
    path == PREFETCH || path == NO_PREFETCH
}

/// How many spans of the layer, from its first one on, lie in front of the landmark: 0 without one.
pub fn spans_in_front(index: &LayerIndex) -> usize {
    let mut mark = None;
    for entry in &index.entries {
        match entry.path.as_slice() {
            NO_PREFETCH => return 0,
            PREFETCH if mark.is_none() => mark = Some(entry),
            _ => {}
        }
    }
    match mark.map(|entry| &entry.kind) {
        Some(EntryKind::Regular { chunks, .. }) => {
            chunks.first().map_or(0, |chunk| index.spans_for(chunk.tar).start)
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::digest::Digest;
    use crate::layout::entry::{Attributes, Chunk, Entry};
    use crate::layout::index::{Codec, Proof, Segments, Span};
    use crate::layout::range::ByteRange;

    fn file(path: &str, tar: ByteRange) -> Entry {
        let chunks = match tar.is_empty() {
            true => Vec::new(),
            false => vec![Chunk { file_offset: 0, tar }],
        };
        let kind = EntryKind::Regular { size: tar.len(), chunks };
        Entry { path: path.into(), offset: 0, kind, attributes: Attributes::default() }
    }

    /// Spans of ten bytes each, and files of as many in them.
    fn in_front(paths: &[&str]) -> usize {
        let at = |i: usize| ByteRange::at(i as u64 * 10, 10);
        let entries = paths.iter().enumerate().map(|(i, path)| file(path, at(i))).collect();
        let span = |i| Span {
            blob: at(i),
            tar: at(i),
            skip: 0,
            codec: Codec::Stored,
            proof: Proof::Stored(Segments::One([0; 32])),
        };
        let spans: Vec<Span> = (0..paths.len()).map(span).collect();
        let size = paths.len() as u64 * 10;
        spans_in_front(&LayerIndex::plain(Digest::sha256_of(b""), size, entries, spans))
    }

    #[test]
    fn what_is_in_front_of_the_mark_counts_and_nothing_without_one() {
        assert_eq!(in_front(&["bin/sh", "lib/libc", ".prefetch.landmark", "usr/share"]), 2);
        assert_eq!(in_front(&[".prefetch.landmark", "bin/sh"]), 0);
        assert_eq!(in_front(&["bin/sh", "lib/libc"]), 0);
        assert_eq!(in_front(&["a", "b", "d/.prefetch.landmark", "c"]), 0, "at the root alone");
        assert_eq!(in_front(&["a", ".prefetch.landmark", "b", ".prefetch.landmark"]), 1);
        assert_eq!(in_front(&["a", ".prefetch.landmark", ".no.prefetch.landmark"]), 0);
        assert_eq!(in_front(&[]), 0);
    }

    #[test]
    fn a_mark_that_is_nowhere_marks_nothing() {
        let span = Span {
            blob: ByteRange::new(0, 10),
            tar: ByteRange::new(0, 10),
            skip: 0,
            codec: Codec::Stored,
            proof: Proof::Stored(Segments::One([0; 32])),
        };
        let folder = Entry { kind: EntryKind::Directory, ..file(".prefetch.landmark", span.tar) };
        for mark in [file(".prefetch.landmark", ByteRange::new(0, 0)), folder] {
            let entries = vec![file("a", span.tar), mark];
            let spans = vec![span.clone()];
            let index = LayerIndex::plain(Digest::sha256_of(b""), 10, entries, spans);
            assert_eq!(spans_in_front(&index), 0);
        }
    }
}
