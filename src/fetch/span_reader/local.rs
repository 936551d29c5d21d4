//! Spans that are here: in a file, or begun in memory.

use std::fs::File;
use std::sync::PoisonError;

use bytes::Bytes;

use super::{SpanReader, Wanted};
use crate::fetch::cache::read_exact_at;
use crate::fetch::error::{Error, ErrorKind, Result};
use crate::fetch::pledge::hash_file;
use crate::fetch::proved::{Opened, Proved, Read, bytes_if_begun};
use crate::layout::index::Span;
use crate::layout::range::ByteRange;

/// Where the bytes of a span are.
enum Found {
    /// In the whole blob, which may be the cache's.
    Whole {
        file: File,
        is_cached: bool,
    },
    /// In the cache's part of the blob.
    Part(File),
    Nowhere,
}

impl SpanReader {
    /// What span `i` has of `wanted`, decoded on this thread, if its bytes of the blob are here, as far
    /// as it takes them, and right. It is the caller's turn.
    ///
    /// # Errors
    /// The index is wrong, or there is local trouble.
    pub(super) fn local_part(&self, i: usize, wanted: Wanted) -> Result<Option<Proved>> {
        let (span, key) = (&self.index.spans[i], (self.number, i));
        let within = self.within(i, wanted.tar);
        let begun = self.store.spans.take(&key);
        // Whoever comes back to a span mostly reads on: it is not begun a second time.
        let may_begin = begun.is_none() && !wanted.is_whole;
        let may_begin = may_begin && self.store.spans.may_keep(bytes_if_begun(span));
        let upto = if may_begin { within.end as u64 } else { u64::MAX };
        let Some(opened) = self.local_span(i, begun, upto)? else { return Ok(None) };
        let part = opened.part(within);
        self.store.spans.put(key, opened);
        Ok(part)
    }

    /// What span `i` decodes to, whose bytes of the blob are `stored`.
    pub(super) fn open(&self, i: usize, stored: &Bytes) -> Result<Proved> {
        let mut read = |range: ByteRange| {
            let range = range.start as usize..(range.end as usize).min(stored.len());
            Ok(Some(stored.slice(range.start.min(range.end)..range.end)))
        };
        let opened = self.reach(i, None, u64::MAX, &mut read)?;
        let whole = opened.as_ref().and_then(Opened::whole).cloned();
        whole.ok_or_else(|| Error::new(ErrorKind::Invalid, "a span that ends early"))
    }

    /// Span `i`, decoded as far as `upto`: the one that was begun, or from its start.
    fn reach(
        &self,
        i: usize,
        begun: Option<Opened>,
        upto: u64,
        read: &mut Read<'_>,
    ) -> Result<Option<Opened>> {
        let span = &self.index.spans[i];
        let opened = match begun {
            Some(begun) => begun.reach(upto, read),
            None => {
                let window = self.index.window(span).map_err(|e| Error::new(ErrorKind::Invalid, e));
                window.and_then(|window| Opened::open(span, &window, upto, read))
            }
        };
        opened.map_err(|e| self.named(span, e))
    }

    fn named(&self, span: &Span, error: Error) -> Error {
        let error = error.context(format!("layer {}, bytes {}", self.layer.blob.digest, span.blob));
        // Right bytes that do not decode: nobody but the index can be wrong.
        if error.kind == ErrorKind::Invalid { self.doubted(error) } else { error }
    }

    /// An error that may be the fault of an index from elsewhere: says which, and the way out.
    pub(super) fn doubted(&self, error: Error) -> Error {
        let Some(artifact) = self.index.artifact else { return error };
        let message = format!(
            "{}; or the index is wrong by which this layer is read, that of artifact {artifact}: \
             --index off reads the layer without it",
            error.message
        );
        Error { message, ..error }
    }

    /// A span of `whole`, all of the blob, did not pass: is it the index that is wrong? That of a pass
    /// and the layer's own are not; one from elsewhere is if the blob has its digest.
    fn is_index_wrong(&self, whole: &File) -> bool {
        let is_right = || {
            let hashed = hash_file(whole, self.layer.blob, |_| ());
            hashed.inspect_err(|error| tracing::debug!(%error, "the blob is not right")).is_ok()
        };
        // Once is enough: what the kernel repeats page by page would hash it again each time.
        self.index.artifact.is_some() && *self.has_proved_whole.get_or_init(is_right)
    }

    /// The error for a span that does not pass, of a blob that does.
    fn refuted(&self, error: &Error) -> Error {
        let artifact = self.index.artifact.map(|artifact| artifact.to_string());
        let message = format!(
            "{}: the index is wrong by which this layer is read, that of artifact {}, for the blob is \
             here and has its digest: --index off reads the layer without it",
            error.message,
            artifact.unwrap_or_default()
        );
        Error::new(ErrorKind::Invalid, message)
    }

    /// The span, decoded as far as `upto`, of bytes of a local file that are not in memory, if they
    /// are there and right. Wrong or unreadable bytes are named in the log, and fetched.
    fn local_span(&self, i: usize, begun: Option<Opened>, upto: u64) -> Result<Option<Opened>> {
        let span = &self.index.spans[i];
        let mut found = None;
        let mut read = |range: ByteRange| {
            let found = match &mut found {
                Some(found) => found,
                none => none.insert(self.find(span)?),
            };
            let (Found::Whole { file, .. } | Found::Part(file)) = found else { return Ok(None) };
            let range = ByteRange::at(span.blob.start + range.start, range.len());
            read_exact_at(file, range).map(|bytes| Some(bytes.into()))
        };
        match self.reach(i, begun, upto, &mut read) {
            Err(error) if error.kind == ErrorKind::Invalid => Err(error),
            Err(error) => match found {
                Some(Found::Whole { file, .. }) if self.is_index_wrong(&file) => {
                    Err(self.refuted(&error))
                }
                Some(found) => {
                    tracing::warn!(%error, "local bytes are damaged, fetching them again");
                    self.give_up(span, &found);
                    Ok(None)
                }
                None => Err(error),
            },
            right => right,
        }
    }

    /// What was `found` of the span is not used again.
    fn give_up(&self, span: &Span, found: &Found) {
        let (blob, cache) = (&self.layer.blob, self.store.cache());
        match found {
            Found::Whole { is_cached: true, .. } => {
                let demoted = cache.demote_blob(blob, span.blob);
                let part = demoted.and_then(|()| cache.open_part(blob).map(Some));
                *self.part.lock().unwrap_or_else(PoisonError::into_inner) = cache.found(part);
            }
            _ => {
                let mut part = self.part.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(part) = &mut *part {
                    part.resident.remove(span.blob);
                }
            }
        }
    }

    fn find(&self, span: &Span) -> Result<Found> {
        match self.store.open_local(&self.layer.blob)? {
            Some((file, is_cached)) => Ok(Found::Whole { file, is_cached }),
            None => {
                let found = self.resident_in(span).transpose();
                let file = found.inspect_err(|error| tracing::warn!(%error, "fetching it again"));
                Ok(file.ok().flatten().map_or(Found::Nowhere, Found::Part))
            }
        }
    }

    /// The file of the part, if that has the span. Not under its lock: others read it meanwhile.
    fn resident_in(&self, span: &Span) -> Option<Result<File>> {
        let part = self.open_part();
        let part = part.as_ref().filter(|part| part.resident.contains(span.blob))?;
        Some(part.file.try_clone().map_err(|e| Error::local("cannot read the cache", &e)))
    }
}
