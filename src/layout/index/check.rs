//! What every `LayerIndex` keeps to, wherever it came from: whoever reads one relies on it.

use std::collections::HashMap;

use super::{Codec, LayerIndex, Point, Proof, SPAN_DECODED_BYTES_MAX, Span};
use crate::layout::entry::{Attributes, Chunk, Entry, EntryKind};
use crate::layout::pax::{XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX};
use crate::layout::range::ByteRange;
use crate::layout::tar::path::{PATH_BYTES_MAX, clean_path, quoted};
use crate::layout::tar::{METADATA_BYTES_MAX, metadata_bytes};

/// Checks spans against the tar's size, and every entry for itself.
///
/// # Errors
/// The first thing that is wrong, as a reason for a message.
pub fn check(index: &LayerIndex) -> Result<(), String> {
    check_spans(index)?;
    let mut bytes: u64 = 0;
    // Entries share few attributes: each of them is checked once.
    let mut seen: HashMap<&Attributes, ()> = HashMap::new();
    for entry in &index.entries {
        bytes = bytes.saturating_add(metadata_bytes(entry));
        if bytes > METADATA_BYTES_MAX {
            return Err(format!("its entries take more than {METADATA_BYTES_MAX} bytes"));
        }
        let described = |reason| format!("entry {}: {reason}", quoted(&entry.path));
        check_path(&entry.path).map_err(described)?;
        check_kind(entry, index.tar_size).map_err(described)?;
        if seen.insert(&entry.attributes, ()).is_none() {
            check_attributes(&entry.attributes).map_err(described)?;
        }
    }
    Ok(())
}

fn check_spans(index: &LayerIndex) -> Result<(), String> {
    let (mut blob_start, mut tar_end, mut window_end) = (0, 0, 0);
    for span in &index.spans {
        let Span { blob, tar, .. } = span;
        if tar.start != tar_end || tar.is_empty() || blob.start < blob_start || blob.is_empty() {
            return Err(format!(
                "a span of blob {blob} and tar {tar} cannot follow blob {blob_start} and tar {tar_end}"
            ));
        }
        check_codec(span, &mut window_end).map_err(|e| format!("a span of blob {blob}: {e}"))?;
        if let Proof::Stored(segments) = &span.proof
            && !segments.fit(blob.len())
        {
            return Err(format!("a span of blob {blob}: other segments than it has"));
        }
        (blob_start, tar_end) = (blob.start, tar.end);
    }
    if tar_end != index.tar_size {
        return Err(format!("its spans end at {tar_end}, the tar at {}", index.tar_size));
    }
    if window_end != index.windows.len() as u64 {
        return Err(format!("windows of {window_end} bytes, not {}", index.windows.len()));
    }
    Ok(())
}

/// `window_end` is where the windows of the spans before it end; it goes on behind this one's.
fn check_codec(span: &Span, window_end: &mut u64) -> Result<(), String> {
    if span.skip > SPAN_DECODED_BYTES_MAX {
        return Err(format!("it passes over {} bytes", span.skip));
    }
    match span.codec {
        Codec::Stored if span.blob.len() != span.tar.len() || span.skip > 0 => {
            Err(format!("stored, and tar {}", span.tar))
        }
        Codec::Deflate(Point { bits, window }) => {
            if bits > 7 || window.start != *window_end || window.end < window.start {
                return Err(format!("{bits} bits, and a window at {window}"));
            }
            *window_end = window.end;
            Ok(())
        }
        Codec::Stored | Codec::Gzip | Codec::Zstd => Ok(()),
    }
}

fn check_path(path: &[u8]) -> Result<(), String> {
    if clean_path(path)? != path {
        return Err("the path is not clean".into());
    }
    Ok(())
}

fn check_kind(entry: &Entry, tar_size: u64) -> Result<(), String> {
    if entry.path.is_empty() && entry.kind != EntryKind::Directory {
        return Err("the root is not a directory".into());
    }
    match &entry.kind {
        EntryKind::Regular { size, chunks } => check_chunks(*size, chunks, tar_size),
        EntryKind::Hardlink { target } => check_path(target),
        EntryKind::Symlink { target } => {
            if target.is_empty() || target.contains(&0) || target.len() > PATH_BYTES_MAX {
                return Err(format!("invalid symbolic link target {}", quoted(target)));
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn check_chunks(size: u64, chunks: &[Chunk], tar_size: u64) -> Result<(), String> {
    if size > i64::MAX as u64 {
        return Err(format!("impossible size {size}"));
    }
    let mut end = 0;
    for Chunk { file_offset, tar } in chunks {
        let chunk_end = file_offset.checked_add(tar.len()).filter(|end| *end <= size);
        let is_inside = ByteRange::new(0, tar_size).contains(tar);
        let Some(chunk_end) = chunk_end.filter(|_| is_inside && *file_offset >= end) else {
            return Err(format!("a chunk of tar {tar} at {file_offset} of {size} bytes"));
        };
        if tar.is_empty() {
            return Err(format!("an empty chunk at {file_offset}"));
        }
        end = chunk_end;
    }
    Ok(())
}

fn check_attributes(attributes: &Attributes) -> Result<(), String> {
    if attributes.mode > 0o7777 || attributes.mtime.nanos >= 1_000_000_000 {
        return Err("mode or nanoseconds out of range".into());
    }
    let xattrs = &attributes.xattrs;
    let is_valid = |(name, value): &(Vec<u8>, Vec<u8>)| {
        (1..=XATTR_NAME_BYTES_MAX).contains(&name.len())
            && !name.contains(&0)
            && value.len() <= XATTR_VALUE_BYTES_MAX
    };
    if !xattrs.iter().all(is_valid) || !xattrs.is_sorted_by(|a, b| a.0 < b.0) {
        return Err("invalid or unsorted extended attributes".into());
    }
    Ok(())
}
