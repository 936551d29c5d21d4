//! A body that goes on at the byte where it broke. Who opens the rest, and how often, is decided
//! by [`Reopen`]: the same source again, or the next one.

use bytes::{Buf as _, Bytes};

use super::{Body, BoxFuture, Chunks, Deadline, Error, ErrorKind, Result};
use crate::layout::Blob;
use crate::layout::range::ByteRange;

/// What broke, where, and until when the rest may take to start.
pub struct Break {
    /// Why the body, or the attempt to open it, ended.
    pub error: Error,
    /// Of this blob.
    pub blob: Blob,
    /// The bytes still due.
    pub rest: ByteRange,
    /// Bytes that came since the last break: progress is worth more patience.
    pub arrived_bytes: u64,
    /// Counted from the last byte that came.
    pub deadline: Deadline,
}

/// Opens what is left of a broken body.
pub trait Reopen: Send {
    /// A body that holds `broken.rest`, or the error to end with.
    fn reopen(&mut self, broken: Break) -> BoxFuture<'_, Result<Body>>;
}

/// Delivers the range of its first body, whatever breaks on the way.
pub struct Resumed<R> {
    blob: Blob,
    rest: ByteRange,
    body: Body,
    /// Bytes of `body` before `rest`: a reopened body may be wider than it was asked to be.
    surplus_bytes: u64,
    arrived_bytes: u64,
    deadline: Deadline,
    source: R,
}

impl<R: Reopen + 'static> Resumed<R> {
    /// A body like `body`, of `blob`, that `source` mends.
    pub fn around(blob: Blob, body: Body, deadline: Deadline, source: R) -> Body {
        let range = body.range;
        let resumed = Resumed {
            blob,
            rest: range,
            body,
            surplus_bytes: 0,
            arrived_bytes: 0,
            deadline,
            source,
        };
        Body::new(range, Box::new(resumed))
    }

    async fn advance(&mut self) -> Result<Option<Bytes>> {
        loop {
            match self.body.next().await {
                Ok(Some(chunk)) => {
                    self.deadline = self.deadline.renewed();
                    self.arrived_bytes = self.arrived_bytes.saturating_add(chunk.len() as u64);
                    let chunk = self.take(chunk);
                    if !chunk.is_empty() {
                        return Ok(Some(chunk));
                    }
                    if self.rest.is_empty() {
                        return Ok(None);
                    }
                }
                Ok(None) if self.rest.is_empty() => return Ok(None),
                Err(error) if self.rest.is_empty() => return Err(error),
                Ok(None) => {
                    let rest = self.rest;
                    let text = format!("the body ended with bytes {rest} still due");
                    self.resume(Error::new(ErrorKind::Network, text)).await?;
                }
                Err(error) => self.resume(error).await?,
            }
        }
    }

    /// The part of `chunk` that is due next.
    fn take(&mut self, mut chunk: Bytes) -> Bytes {
        let surplus = self.surplus_bytes.min(chunk.len() as u64);
        self.surplus_bytes -= surplus;
        // Both are at most the chunk's length, which is a usize.
        chunk.advance(surplus as usize);
        chunk.truncate(self.rest.len().min(chunk.len() as u64) as usize);
        self.rest = ByteRange::new(self.rest.start + chunk.len() as u64, self.rest.end);
        chunk
    }

    async fn resume(&mut self, error: Error) -> Result<()> {
        let (blob, rest, deadline) = (self.blob, self.rest, self.deadline);
        let arrived_bytes = std::mem::take(&mut self.arrived_bytes);
        let broken = Break { error, blob, rest, arrived_bytes, deadline };
        // What is left of the broken one goes first: it holds a connection.
        self.body = Body::ready(ByteRange::new(rest.start, rest.start), Bytes::new());
        let body = self.source.reopen(broken).await?;
        if !body.range.contains(&rest) {
            let text = format!("got bytes {}, asked for {rest}", body.range);
            return Err(Error::new(ErrorKind::Protocol, text));
        }
        self.surplus_bytes = rest.start - body.range.start;
        self.body = body;
        Ok(())
    }
}

impl<R: Reopen + 'static> Chunks for Resumed<R> {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>>> {
        Box::pin(self.advance())
    }
}
