//! Spans that are fetched for no reader yet: proved and kept on disk, and left to any reader who
//! would have to wait for them.

use std::ops::Range;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use super::pieces::For;
use super::{SpanReader, blocking};
use crate::fetch::error::Result;
use crate::fetch::flight::Turn;
use crate::fetch::proved::Proved;
use crate::layout::index::Proof;
use crate::layout::range::ByteRange;

/// What is said of spans while they are fetched ahead of use.
pub(super) struct Claim<'a> {
    reader: &'a SpanReader,
    spans: &'a [usize],
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut claims = self.reader.ahead_of_use.lock().unwrap_or_else(PoisonError::into_inner);
        for i in self.spans {
            claims.remove(i);
        }
    }
}

impl SpanReader {
    /// The number of spans.
    pub(in crate::fetch) fn count(&self) -> usize {
        self.index.spans.len()
    }

    /// Where span `i` is in the blob.
    pub(in crate::fetch) fn range_of(&self, i: usize) -> ByteRange {
        self.index.spans[i].blob
    }

    /// The spans with bytes of `range` of the blob. Neighbours share a byte, so that the first and
    /// the last one of `range` do not tell.
    pub(in crate::fetch) fn spans_in(&self, range: ByteRange) -> Range<usize> {
        let inner = match range.len() {
            0..=2 => range,
            _ => ByteRange::new(range.start + 1, range.end - 1),
        };
        let spans = &self.index.spans;
        let first = spans.partition_point(|s| s.blob.end <= inner.start);
        let last = spans.partition_point(|s| s.blob.start < inner.end);
        first..last.max(first)
    }

    /// Ranges of the blob that the spans with bytes of `tar` are in.
    pub(in crate::fetch) fn stored(&self, tar: ByteRange) -> impl Iterator<Item = ByteRange> {
        self.index.spans_for(tar).map(|i| self.range_of(i))
    }

    /// The bytes of span `i` are in the cache's part of the blob.
    pub(in crate::fetch) fn is_resident(&self, i: usize) -> bool {
        let range = self.range_of(i);
        self.open_part().as_ref().is_some_and(|part| part.resident.contains(range))
    }

    /// Bytes of the blob that the cache's part of it has.
    pub(in crate::fetch) fn resident_bytes(&self) -> u64 {
        // To open a part is to make one.
        match self.store.cache().part_state(&self.layer.blob) {
            Some(_) => self.open_part().as_ref().map_or(0, |part| part.resident.len()),
            None => 0,
        }
    }

    /// So are all bytes of the blob.
    pub(in crate::fetch) fn is_whole(&self) -> bool {
        let whole = ByteRange::new(0, self.layer.blob.size);
        self.open_part().as_ref().is_some_and(|part| part.resident.contains(whole))
    }

    /// So many bytes more find a place without pushing out what is here of the blob.
    fn has_room(&self, bytes: u64) -> bool {
        let cache = self.store.cache();
        let resident = self.open_part().as_ref().map(|part| part.resident.len());
        resident.is_some_and(|resident| cache.may_keep(resident + bytes))
            && cache.trouble().is_none()
    }

    /// Brings those of `spans` (ascending) into the cache that are not there, and that nobody works
    /// on. `false`: a reader who needs one of them has waited, and does it alone.
    ///
    /// # Errors
    /// They cannot be had, or are wrong. No reader hears of it.
    pub(in crate::fetch) async fn prefetch(self: &Arc<Self>, spans: &[usize]) -> Result<bool> {
        let stop = Arc::new(Notify::new());
        let _claim = self.claim_ahead_of_use(spans, &stop);
        let (absent, _turns): (Vec<usize>, Vec<Turn>) = self.absent(spans).into_iter().unzip();
        if absent.is_empty() {
            return Ok(true);
        }
        tokio::select! {
            brought = self.bring(absent, stop.clone()) => brought.map(|()| true),
            () = stop.notified() => Ok(false),
        }
    }

    /// Says that `spans` are fetched for no reader, and how to stop that.
    pub(super) fn claim_ahead_of_use<'a>(
        &'a self,
        spans: &'a [usize],
        stop: &Arc<Notify>,
    ) -> Claim<'a> {
        let mut claims = self.ahead_of_use.lock().unwrap_or_else(PoisonError::into_inner);
        claims.extend(spans.iter().map(|i| (*i, stop.clone())));
        Claim { reader: self, spans }
    }

    /// Those of `spans` that are not here and that nobody works on: they are ours until their turns
    /// end.
    pub(super) fn absent(&self, spans: &[usize]) -> Vec<(usize, Turn)> {
        // Who waited for a turn would keep others waiting with the turns that it has.
        let turns = spans.iter().filter_map(|i| Some((*i, self.fetching.try_enter(*i)?)));
        turns.filter(|(i, _)| !self.is_resident(*i)).collect()
    }

    /// There is a place for `ranges`, and none of them was found wrong just now.
    ///
    /// # Errors
    /// How one was found wrong.
    pub(super) fn may_bring(&self, ranges: &[ByteRange]) -> Result<bool> {
        let blob = &self.layer.blob;
        if !self.has_room(ranges.iter().map(ByteRange::len).sum()) {
            tracing::debug!(layer = %blob.digest, "no room for what nobody needs yet");
            return Ok(false);
        }
        ranges.iter().try_for_each(|range| self.store.just_disproved(blob, *range))?;
        Ok(true)
    }

    async fn bring(self: &Arc<Self>, spans: Vec<usize>, stop: Arc<Notify>) -> Result<()> {
        let ranges: Vec<ByteRange> = spans.iter().map(|&i| self.range_of(i)).collect();
        if !self.may_bring(&ranges)? {
            return Ok(());
        }
        let source = self.store.source()?;
        let mut claim = self.coming.claim();
        let pieces = self.pieces(source, &ranges, true, &For::Later(stop), &mut claim).await?;
        let reader = self.clone();
        let (spans, pieces) = blocking(move || {
            let keep = |i: &usize| reader.keep_proved(*i, pieces.assemble(reader.range_of(*i)));
            spans.iter().try_for_each(keep)?;
            Ok((spans, pieces))
        })
        .await?;
        self.keep_along(&spans, pieces).await
    }

    /// Keeps `stored`, the bytes of span `i`, if they are right. They are decoded only where that
    /// is the proof.
    pub(super) fn keep_proved(&self, i: usize, stored: Bytes) -> Result<()> {
        let span = &self.index.spans[i];
        match &span.proof {
            Proof::Stored(segments) => {
                let all = 0..segments.count();
                let stored = Proved::check_segments(segments, all, stored)?;
                self.keep(span.blob, &stored);
            }
            Proof::Decoded(_) => {
                self.open_and_keep(i, stored)?;
            }
        }
        Ok(())
    }
}
