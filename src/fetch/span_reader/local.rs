//! Spans that are here: in a file, or begun in memory.

use std::fs::File;
use std::sync::PoisonError;

use bytes::Bytes;

use super::{SpanReader, Wanted};
use crate::fetch::arrival::hash_file;
use crate::fetch::cache::read_exact_at;
use crate::fetch::error::{Error, ErrorKind, Result};
use crate::fetch::proved::{Opened, Proved, bytes_if_begun};
use crate::layout::index::Span;

impl SpanReader {
    /// What span `i` has of `wanted`, decoded on this thread, if the span is begun or its bytes of the
    /// blob are here and right. It is the caller's turn.
    ///
    /// # Errors
    /// The index is wrong, or there is local trouble.
    pub(super) fn local_part(&self, i: usize, wanted: Wanted) -> Result<Option<Proved>> {
        let (span, key) = (&self.index.spans[i], (self.number, i));
        let within = self.within(i, wanted.tar);
        let may_begin = !wanted.is_whole && self.store.spans.may_keep(bytes_if_begun(span));
        let opened = match self.store.spans.take(&key) {
            // Whoever comes back to a span mostly reads on: it is not begun a second time.
            Some(begun) => {
                let whole = begun.whole().map_err(|e| self.named(span, e));
                Some(Opened::Whole(whole?))
            }
            None => self.local_span(i, if may_begin { within.end as u64 } else { u64::MAX })?,
        };
        let Some(opened) = opened else { return Ok(None) };
        let part = opened.part(within);
        self.store.spans.put(key, opened);
        Ok(part)
    }

    /// What span `i` decodes to, whose bytes of the blob are `stored`.
    pub(super) fn open(&self, i: usize, stored: Bytes) -> Result<Proved> {
        self.open_upto(i, u64::MAX, stored)?.whole()
    }

    fn open_upto(&self, i: usize, upto: u64, stored: Bytes) -> Result<Opened> {
        let span = &self.index.spans[i];
        let window = self.index.window(span).map_err(|e| Error::new(ErrorKind::Invalid, e));
        let opened = window.and_then(|window| Opened::open(span, &window, upto, stored));
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

    /// The span from a local file, decoded as far as `upto`, if it is there and right. Wrong or
    /// unreadable bytes are named in the log, and fetched.
    fn local_span(&self, i: usize, upto: u64) -> Result<Option<Opened>> {
        let span = &self.index.spans[i];
        let blob = &self.layer.blob;
        let opened = self.store.open_local(blob)?;
        let is_cached = matches!(opened, Some((_, true)));
        let local = match &opened {
            Some((file, _)) => read_exact_at(file, span.blob).map(Some),
            None => self.resident_in(span).map(|file| read_exact_at(&file?, span.blob)).transpose(),
        };
        let checked = local.and_then(|bytes| match bytes {
            Some(bytes) => self.open_upto(i, upto, bytes.into()).map(Some),
            None => Ok(None),
        });
        match checked {
            Err(error) if error.kind == ErrorKind::Invalid => Err(error),
            Err(error) if opened.is_some_and(|(file, _)| self.is_index_wrong(&file)) => {
                Err(self.refuted(&error))
            }
            Err(error) => {
                tracing::warn!(%error, "local bytes are damaged, fetching them again");
                if is_cached {
                    let cache = self.store.cache();
                    let demoted = cache.demote_blob(blob, span.blob);
                    let part = demoted.and_then(|()| cache.open_part(blob).map(Some));
                    *self.part.lock().unwrap_or_else(PoisonError::into_inner) = cache.found(part);
                } else if let Some(part) =
                    &mut *self.part.lock().unwrap_or_else(PoisonError::into_inner)
                {
                    part.resident.remove(span.blob);
                }
                Ok(None)
            }
            right => right,
        }
    }

    /// The file of the part, if that has the span. Not under its lock: others read it meanwhile.
    fn resident_in(&self, span: &Span) -> Option<Result<File>> {
        let part = self.open_part();
        let part = part.as_ref().filter(|part| part.resident.contains(span.blob))?;
        Some(part.file.try_clone().map_err(|e| Error::local("cannot read the cache", &e)))
    }
}
