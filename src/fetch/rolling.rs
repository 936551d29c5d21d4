//! A layer that cannot seek and whose content has no place on disk: decoded from its start again,
//! as often as it takes, keeping what was decoded last.
//!
//! Read in the order of the layer it costs one more pass over the blob. A step backwards beyond what
//! is in memory begins anew, unless one of a few earlier positions is still before it. Readers at the
//! same time do not: whoever needs what somebody is about to decode waits for it.

mod cursors;

use std::sync::Arc;

use super::arrival::Arrival;
use super::error::{Error, ErrorKind, Result};
use super::flight::Flights;
use super::proved::{Filling, Opened, Place, Proved, ProvedDecoder};
use super::span_reader::blocking;
use super::spans::SpanKey;
use super::store::Store;
use crate::layout::range::ByteRange;
use crate::layout::tree::Layer;
use cursors::{Cursors, Next, Run};

/// What is decoded, and kept in memory, at a time. The least that the spans' bound must hold.
const PIECE_BYTES: u64 = 1 << 20;

/// Pieces in front of a wanted one that are kept, too: the kernel's requests for parts of one file
/// reach us in any order.
const KEPT_IN_FRONT: u64 = 2;

/// Stored bytes for the decoder at a time, at most and at least: what comes out of them should not be
/// much more than what is kept.
const FEED_BYTES_MAX: u64 = 256 << 10;
const FEED_BYTES_MIN: u64 = 64;

/// Reads one layer piece by piece.
pub struct Rolling {
    store: Arc<Store>,
    layer: Layer,
    tar_size: u64,
    /// Tells its pieces from those of other readers in memory.
    reader: u64,
    cursors: Arc<Cursors>,
    flights: Flights<u64>,
}

/// A decoder at some position.
struct Cursor {
    arrival: Arc<Arrival>,
    decoder: ProvedDecoder,
    /// Position in the blob.
    at: u64,
    feed_bytes: u64,
    /// The piece that is being filled, and how much of it there is.
    piece: u64,
    filling: Filling,
    filled: usize,
}

impl Rolling {
    /// A reader of `layer`, which has `tar_size` bytes when decoded.
    pub fn new(store: Arc<Store>, layer: Layer, tar_size: u64) -> Self {
        let (cursors, flights) = (Arc::default(), Flights::default());
        let reader = store.new_reader();
        Rolling { store, layer, tar_size, reader, cursors, flights }
    }

    /// Reads `tar` into `out` if all of it is in memory.
    pub fn read_now(&self, tar: ByteRange, mut out: Place<'_>) -> Option<()> {
        for number in pieces_of(tar) {
            let piece = self.store.spans.get(&self.key(number))?;
            copy_overlap(number, &piece, tar, &mut out);
        }
        Some(())
    }

    /// Reads `tar`, which lies within the layer.
    ///
    /// # Errors
    /// The blob cannot be had, or is not what its digest says.
    pub async fn read(&self, tar: ByteRange) -> Result<Proved> {
        let len = tar.len() as usize;
        let mut out = Filling::zeroed(len);
        for number in pieces_of(tar) {
            let piece = self.piece(number).await?;
            copy_overlap(number, &piece, tar, &mut out.place(0..len));
        }
        Ok(out.finish())
    }

    fn key(&self, number: u64) -> SpanKey {
        (self.reader, usize::try_from(number).unwrap_or(usize::MAX))
    }

    async fn piece(&self, number: u64) -> Result<Proved> {
        if let Some(piece) = self.store.spans.get(&self.key(number)) {
            return Ok(piece);
        }
        let turn = self.flights.enter(number).await?;
        if let Some(piece) = self.store.spans.get(&self.key(number)) {
            return Ok(piece);
        }
        let rolled = match self.roll(number).await {
            Err(error) if error.kind == ErrorKind::DigestMismatch => {
                // The blob's file has changed since it was proved: it is proved anew.
                tracing::warn!(%error, "decoding a layer again");
                self.cursors.clear();
                self.roll(number).await
            }
            rolled => rolled,
        };
        turn.end(rolled)
    }

    async fn roll(&self, number: u64) -> Result<Proved> {
        loop {
            match self.cursors.next(number) {
                Next::Decode(run, cursor) => return self.decode(run, cursor, number).await,
                Next::Wait(passed) => {
                    if let Ok(passed) = passed.await {
                        return passed;
                    }
                    if let Some(piece) = self.store.spans.get(&self.key(number)) {
                        return Ok(piece);
                    }
                }
            }
        }
    }

    async fn decode(&self, run: Run, cursor: Option<Cursor>, number: u64) -> Result<Proved> {
        let mut cursor = match cursor {
            Some(cursor) => cursor,
            None => match self.store.proved(&self.layer.blob, self.store.deadline()).await {
                Ok(arrival) => Cursor::new(arrival, self.tar_size),
                Err(error) => {
                    run.fail(&error);
                    return Err(error);
                }
            },
        };
        let (store, tar_size, reader) = (self.store.clone(), self.tar_size, self.reader);
        let digest = self.layer.blob.digest;
        let work = move || {
            let key = |n| (reader, usize::try_from(n).unwrap_or(usize::MAX));
            let pass = |n: u64, piece: &Proved| {
                if run.pass(n, piece) || n + KEPT_IN_FRONT >= number {
                    store.spans.put(key(n), Opened::Whole(piece.clone()));
                }
            };
            let rolled = cursor.roll_to(number, tar_size, pass);
            let rolled = rolled.map_err(|e| e.context(format!("layer {digest}")));
            match &rolled {
                Ok(_) => run.end(cursor),
                Err(error) => run.fail(error),
            }
            rolled
        };
        blocking(work).await
    }
}

impl Cursor {
    fn new(arrival: Arc<Arrival>, tar_size: u64) -> Self {
        Cursor {
            arrival,
            decoder: ProvedDecoder::default(),
            at: 0,
            feed_bytes: FEED_BYTES_MAX,
            piece: 0,
            filling: Filling::zeroed(piece_len(0, tar_size)),
            filled: 0,
        }
    }

    /// Decodes until piece `wanted` is whole; `pass` gets each piece that is.
    fn roll_to(
        &mut self,
        wanted: u64,
        tar_size: u64,
        pass: impl Fn(u64, &Proved),
    ) -> Result<Proved> {
        let mut found = None;
        while found.is_none() {
            let end = self.arrival.blob.size.min(self.at.saturating_add(self.feed_bytes));
            let range = ByteRange::new(self.at, end);
            if range.is_empty() {
                let message = format!("it ends before byte {}", wanted * PIECE_BYTES);
                return Err(Error::new(ErrorKind::Invalid, message));
            }
            let stored = self.arrival.read_proved(range)?;
            let Cursor { decoder, piece, filling, filled, .. } = self;
            let mut decoded = 0;
            decoder.push(&stored, &mut |bytes| {
                decoded += bytes.len() as u64;
                let mut from = 0;
                while from < bytes.len() {
                    let room = piece_len(*piece, tar_size) - *filled;
                    if room == 0 {
                        let message = format!("it has more than {tar_size} bytes");
                        return Err(Error::new(ErrorKind::Invalid, message));
                    }
                    let upto = bytes.len().min(from + room);
                    let place = *filled..*filled + (upto - from);
                    filling.place(place).copy(&bytes, from..upto);
                    *filled += upto - from;
                    from = upto;
                    if *filled == piece_len(*piece, tar_size) {
                        let next = Filling::zeroed(piece_len(*piece + 1, tar_size));
                        let whole = std::mem::replace(filling, next).finish();
                        pass(*piece, &whole);
                        if *piece == wanted {
                            found = Some(whole);
                        }
                        (*piece, *filled) = (*piece + 1, 0);
                    }
                }
                Ok(())
            })?;
            self.at = range.end;
            self.feed_bytes = match decoded {
                d if d > 4 * PIECE_BYTES => (self.feed_bytes / 4).max(FEED_BYTES_MIN),
                d if d < PIECE_BYTES => (self.feed_bytes * 2).min(FEED_BYTES_MAX),
                _ => self.feed_bytes,
            };
        }
        found.ok_or_else(|| Error::new(ErrorKind::Invalid, "nothing was decoded"))
    }
}

/// The pieces that `tar` touches.
fn pieces_of(tar: ByteRange) -> std::ops::Range<u64> {
    tar.start / PIECE_BYTES..tar.end.div_ceil(PIECE_BYTES)
}

/// The last one is short; behind it there is nothing.
fn piece_len(number: u64, tar_size: u64) -> usize {
    let whole = ByteRange::at(number.saturating_mul(PIECE_BYTES), PIECE_BYTES);
    whole.intersection(&ByteRange::new(0, tar_size)).len() as usize
}

fn copy_overlap(number: u64, piece: &Proved, tar: ByteRange, out: &mut Place<'_>) {
    let start = number * PIECE_BYTES;
    let both = ByteRange::at(start, piece.len() as u64).intersection(&tar);
    if both.is_empty() {
        return;
    }
    let from = (both.start - start) as usize;
    let to = (both.start - tar.start) as usize;
    let len = both.len() as usize;
    out.part(to..to + len).copy(piece, from..from + len);
}
