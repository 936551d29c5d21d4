//! Many spans for no reader yet, by one request: each is any reader's as soon as it is here.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::sync::{Notify, mpsc};

use super::pieces::For;
use super::{SpanReader, blocking};
use crate::fetch::arrival::crop;
use crate::fetch::error::{Error, ErrorKind, Result};
use crate::fetch::flight::Turn;
use crate::layout::range::ByteRange;

/// Pieces of a body, some 16 KiB each, that may wait to be proved: the line goes on meanwhile.
const PIECES_MAX: usize = 64;

/// A span that is expected, and the right to bring it.
struct Expected {
    number: usize,
    range: ByteRange,
    turn: Turn,
}

/// Bytes of the blob that have come, and the spans that they are of.
struct Window {
    /// Ascending in the blob.
    expected: VecDeque<Expected>,
    /// Where `bytes` are in the blob.
    start: u64,
    bytes: BytesMut,
}

impl SpanReader {
    /// How many spans, from the first one on, the writer of the layer has marked to be fetched early.
    pub(in crate::fetch) fn early(&self) -> usize {
        self.early
    }

    /// Brings those of `spans` (ascending) into the cache that are not there and that nobody works
    /// on, as [`SpanReader::prefetch`] does, but by one request for all that lie together; whoever
    /// waits for one of them has it when it is here. `false`: a reader has waited for too long, and
    /// fetches alone.
    ///
    /// # Errors
    /// They cannot be had, or are wrong. No reader hears of it.
    pub(in crate::fetch) async fn stream(self: &Arc<Self>, spans: &[usize]) -> Result<bool> {
        let stop = Arc::new(Notify::new());
        let _claim = self.claim_ahead_of_use(spans, &stop);
        let absent = self.absent(spans);
        if absent.is_empty() {
            return Ok(true);
        }
        tokio::select! {
            brought = self.bring_long(absent, stop.clone()) => brought.map(|()| true),
            () = stop.notified() => Ok(false),
        }
    }

    async fn bring_long(
        self: &Arc<Self>,
        absent: Vec<(usize, Turn)>,
        stop: Arc<Notify>,
    ) -> Result<()> {
        let ranges: Vec<ByteRange> = absent.iter().map(|(i, _)| self.range_of(*i)).collect();
        if !self.may_bring(&ranges)? {
            return Ok(());
        }
        let mut claim = self.coming.claim();
        let requests = self.claim_long(&ranges, &For::Later(stop), &mut claim);
        let expected = absent.into_iter().zip(ranges);
        let mut expected: VecDeque<Expected> =
            expected.map(|((number, turn), range)| Expected { number, range, turn }).collect();
        for request in requests {
            // What has some of its bytes elsewhere is left to whoever needs it.
            let behind = expected.partition_point(|one| one.range.start < request.end);
            let rest = expected.split_off(behind);
            expected.retain(|one| request.contains(&one.range));
            let window = Window { expected, start: request.start, bytes: BytesMut::new() };
            self.keep_as_it_comes(request, window).await?;
            expected = rest;
        }
        Ok(())
    }

    async fn keep_as_it_comes(
        self: &Arc<Self>,
        request: ByteRange,
        mut window: Window,
    ) -> Result<()> {
        let source = self.store.source()?;
        let (sender, mut arriving) = mpsc::channel::<Bytes>(PIECES_MAX);
        let fetch = async move {
            let mut body = source.read(&self.layer.blob, request, self.store.deadline()).await?;
            let take = |piece| {
                let sender = sender.clone();
                async move { sender.send(piece).await.map_err(|_| nobody_keeps()) }
            };
            crop(&mut body, request, take).await
        };
        let keep = async {
            while let Some(piece) = arriving.recv().await {
                window.bytes.extend_from_slice(&piece);
                while let Ok(piece) = arriving.try_recv() {
                    window.bytes.extend_from_slice(&piece);
                }
                let (whole, reader) = (window.take_whole(), self.clone());
                if !whole.is_empty() {
                    let keep = move |(number, stored, turn): (usize, Bytes, Turn)| {
                        reader.keep_proved(number, stored)?;
                        drop(turn);
                        Ok(())
                    };
                    blocking(move || whole.into_iter().try_for_each(keep)).await?;
                }
            }
            Ok(())
        };
        tokio::try_join!(fetch, keep).map(|_| ())
    }
}

impl Window {
    /// The spans that have come whole, each with its bytes. What no other span needs is let go of.
    fn take_whole(&mut self) -> Vec<(usize, Bytes, Turn)> {
        let mut whole = Vec::new();
        while let Some(Expected { number, range, turn }) = self.expected.pop_front() {
            let gap = range.start.saturating_sub(self.start).min(self.bytes.len() as u64);
            self.bytes.advance(gap as usize);
            self.start += gap;
            if self.start + (self.bytes.len() as u64) < range.end {
                self.expected.push_front(Expected { number, range, turn });
                return whole;
            }
            // The next span may share bytes with it.
            let stored = Bytes::copy_from_slice(&self.bytes[..range.len() as usize]);
            whole.push((number, stored, turn));
        }
        self.start += self.bytes.len() as u64;
        self.bytes.clear();
        whole
    }
}

/// Whoever kept what came has ended, and tells why.
fn nobody_keeps() -> Error {
    Error::new(ErrorKind::Local, "nobody keeps what is fetched ahead")
}
