//! Chunks of files to spans: where in the blob, in which order, with what proof.

use super::json::Element;
use crate::layout::digest::Digest;
use crate::layout::entry::{Chunk, Entry, EntryKind};
use crate::layout::index::scan::LAYER_BYTES_MAX;
use crate::layout::index::{Codec, Proof, SPAN_DECODED_BYTES_MAX, Span};
use crate::layout::range::ByteRange;
use crate::layout::tar::path::quoted;

/// The chunks of all files so far.
pub(super) struct Chunks {
    /// One past the bytes of the blob in which chunks may lie.
    payload_end: u64,
    pieces: Vec<Piece>,
    /// Where members or frames with chunks begin in the blob, those of zeros included.
    starts: Vec<u64>,
    /// Bytes of content of all files.
    content: u64,
    open: Option<OpenFile>,
}

/// A file whose last chunk has not come by.
struct OpenFile {
    /// Which entry it is.
    entry: usize,
    name: String,
    size: u64,
    digest: Option<[u8; 32]>,
    end_offset: u64,
    /// How much of it the chunks cover.
    covered: u64,
    /// Chunks, zeros included.
    count: usize,
    /// Where its chunks begin in [`Chunks::pieces`].
    first: usize,
}

/// A chunk that has bytes in the blob.
struct Piece {
    entry: usize,
    file_offset: u64,
    size: u64,
    /// Of the gzip member or zstd frame.
    offset: u64,
    /// Decoded bytes of it in front of the chunk.
    inner: u64,
    /// Where the frame ends; 0: not said.
    end: u64,
    digest: Option<[u8; 32]>,
}

impl Chunks {
    /// For a blob whose contents end at `payload_end`.
    pub(super) fn new(payload_end: u64) -> Self {
        Chunks { payload_end, pieces: Vec::new(), starts: Vec::new(), content: 0, open: None }
    }

    /// About how much memory they take, as spans and chunks of entries included.
    pub(super) fn memory(&self) -> u64 {
        let of_each = size_of::<Piece>() + size_of::<Span>() + size_of::<Chunk>();
        (self.pieces.len() * of_each + self.starts.len() * size_of::<u64>()) as u64
    }

    /// A regular file, which is the entry of that index, and its first chunk.
    pub(super) fn begin_file(&mut self, entry: usize, element: &Element) -> Result<(), String> {
        let Element { name, size, .. } = element;
        self.content = self.content.saturating_add(*size);
        if self.content > LAYER_BYTES_MAX {
            return Err(format!("contents of more than {LAYER_BYTES_MAX} bytes"));
        }
        if *size == 0 {
            return Ok(());
        }
        self.open = Some(OpenFile {
            entry,
            name: name.clone(),
            size: *size,
            digest: sha256(&element.digest)?,
            end_offset: 0,
            covered: 0,
            count: 0,
            first: self.pieces.len(),
        });
        self.continue_file(element)
    }

    /// A chunk of the file that was begun last.
    pub(super) fn continue_file(&mut self, element: &Element) -> Result<(), String> {
        let Element { name, offset, chunk_offset: at, .. } = element;
        let Some(file) = &mut self.open else {
            return Err(format!("{}: a chunk without its file", quoted(name.as_bytes())));
        };
        let described = |reason: String| format!("{}: {reason}", quoted(file.name.as_bytes()));
        if !name.is_empty() && *name != file.name {
            return Err(described(format!("a chunk of {} stands in it", quoted(name.as_bytes()))));
        }
        let left = file.size - file.covered;
        let size = if element.chunk_size == 0 { left } else { element.chunk_size };
        if *at != file.covered || size == 0 || size > left {
            return Err(described(format!(
                "a chunk of {size} bytes at {at}, of {left} bytes at {}",
                file.covered
            )));
        }
        file.count += 1;
        file.covered += size;
        file.end_offset = file.end_offset.max(element.end_offset);
        if *offset > 0 {
            self.starts.push(*offset);
        }
        match element.chunk_type.as_str() {
            "" => {}
            "zeros" => return Ok(()),
            other => {
                return Err(described(format!("a chunk of type {}", quoted(other.as_bytes()))));
            }
        }
        if size > SPAN_DECODED_BYTES_MAX || element.inner_offset > SPAN_DECODED_BYTES_MAX {
            return Err(described(format!(
                "a chunk of {size} bytes behind {} of its stream: more than {SPAN_DECODED_BYTES_MAX} \
                 are not decoded for one read",
                element.inner_offset
            )));
        }
        self.pieces.push(Piece {
            entry: file.entry,
            file_offset: *at,
            size,
            offset: *offset,
            inner: element.inner_offset,
            end: 0,
            digest: sha256(&element.chunk_digest).map_err(described)?,
        });
        Ok(())
    }

    /// No further chunk of the file that was begun last.
    pub(super) fn end_file(&mut self) -> Result<(), String> {
        let Some(file) = self.open.take() else { return Ok(()) };
        let described = |reason: &str| format!("{}: {reason}", quoted(file.name.as_bytes()));
        if file.covered != file.size {
            let reason = format!("its chunks end at {} of {} bytes", file.covered, file.size);
            return Err(described(&reason));
        }
        let pieces = &mut self.pieces[file.first..];
        if let ([piece], 1) = (&mut *pieces, file.count) {
            let is_same =
                piece.digest.is_none() || file.digest.is_none() || piece.digest == file.digest;
            if !is_same {
                return Err(described("its digest and that of its only chunk differ"));
            }
            piece.digest = piece.digest.or(file.digest);
        }
        if pieces.iter().any(|piece| piece.digest.is_none()) {
            return Err(described("a chunk has no digest"));
        }
        if let Some(last) = pieces.last_mut().filter(|last| last.is_at_end(file.size)) {
            last.end = file.end_offset;
        }
        Ok(())
    }

    /// Spans in the order of the blob, and the size of what they decode to, in which the entries'
    /// chunks get their places.
    pub(super) fn finish(
        mut self,
        codec: Codec,
        entries: &mut [Entry],
    ) -> Result<(Vec<Span>, u64), String> {
        self.starts.sort_unstable();
        self.starts.dedup();
        let mut order: Vec<usize> = (0..self.pieces.len()).collect();
        order.sort_unstable_by_key(|at| (self.pieces[*at].offset, self.pieces[*at].inner));
        let mut spans: Vec<Span> = Vec::with_capacity(order.len());
        let mut places = vec![0; order.len()];
        let mut tar_size = 0;
        for at in order {
            let piece = &self.pieces[at];
            let tar = ByteRange::at(tar_size, piece.size);
            let span = self.span(piece, codec, tar)?;
            if let Some(before) = spans.last() {
                let is_behind = before.blob.start < span.blob.start
                    || before.skip + before.tar.len() <= span.skip;
                if !is_behind {
                    return Err(format!("two chunks share bytes at {}", piece.offset));
                }
            }
            spans.push(span);
            places[at] = tar.start;
            tar_size = tar.end;
        }
        for (piece, start) in self.pieces.iter().zip(places) {
            if let Some(EntryKind::Regular { chunks, .. }) =
                entries.get_mut(piece.entry).map(|entry| &mut entry.kind)
            {
                append(chunks, piece.file_offset, ByteRange::at(start, piece.size));
            }
        }
        Ok((spans, tar_size))
    }

    fn span(&self, piece: &Piece, codec: Codec, tar: ByteRange) -> Result<Span, String> {
        let Piece { offset, inner, end, digest, .. } = *piece;
        let behind = self.starts.partition_point(|start| *start <= offset);
        let next = self.starts.get(behind).map_or(self.payload_end, |next| *next);
        let end = if end == 0 { next } else { end };
        // In front of the first content there is a header.
        if offset == 0 || offset >= end || end > next || next > self.payload_end {
            return Err(format!(
                "a chunk at {offset} to {end} of the blob, with {next} behind it and contents up \
                 to {}",
                self.payload_end
            ));
        }
        let digest = digest.ok_or("a chunk has no digest")?;
        let blob = ByteRange::new(offset, end);
        Ok(Span { blob, tar, skip: inner, codec, proof: Proof::Decoded(digest) })
    }
}

impl Piece {
    fn is_at_end(&self, size: u64) -> bool {
        self.file_offset + self.size == size
    }
}

/// Adds a chunk behind the others; one that goes on where the last one ends is the same.
fn append(chunks: &mut Vec<Chunk>, file_offset: u64, tar: ByteRange) {
    if let Some(last) = chunks.last_mut() {
        let goes_on = last.file_offset + last.tar.len() == file_offset && last.tar.end == tar.start;
        if goes_on {
            last.tar.end = tar.end;
            return;
        }
    }
    chunks.push(Chunk { file_offset, tar });
}

/// A digest, if there is one. The only algorithm that spans know.
fn sha256(text: &str) -> Result<Option<[u8; 32]>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<Digest>() {
        Ok(Digest::Sha256(sha256)) => Ok(Some(sha256)),
        Ok(_) => Err(format!("digest {text}: expected sha256")),
        Err(e) => Err(e.to_string()),
    }
}
