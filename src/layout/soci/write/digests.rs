//! Digests of a zTOC's spans while the blob passes by.

use crate::layout::codec::gzip::Header;
use crate::layout::digest::{Digest, Hasher};

/// Where a span begins, as the index says it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Start {
    /// Which span of the index begins here.
    pub(super) span: usize,
    /// Position in the blob of the first byte that is needed.
    pub(super) blob: u64,
    /// Position in the tar.
    pub(super) tar: u64,
    /// How many bits of that byte belong to it, 0: all of them. `None`: a gzip header is first.
    pub(super) bits: Option<u8>,
}

/// A span whose bytes have passed by.
pub(super) struct Hashed {
    /// Position in the blob of its first byte that belongs to it alone, behind any gzip header.
    pub(super) blob: u64,
    /// Digest of its bytes, the shared first one and the header of the next span included.
    pub(super) sha256: [u8; 32],
}

/// Hashes spans: `[start, next)`, where they share the byte in which the next begins with bits.
pub(super) struct SpanDigests {
    /// Bytes of the blob so far.
    at: u64,
    /// The starts that have not come by, the next one last.
    next: Vec<Start>,
    /// Spans of a plain tar begin at the multiples of this.
    plain_bytes: Option<u64>,
    state: State,
    /// The span whose bytes pass by: where it begins, and its digest so far.
    open: Option<(u64, Hasher)>,
    done: Vec<Hashed>,
}

enum State {
    /// Up to the next start.
    Body,
    /// In a gzip header: it belongs to the span before it.
    Header(Header),
    /// At a byte in which one span ends and the next begins.
    Shared,
}

impl SpanDigests {
    /// No starts: a plain tar, in spans of `plain_bytes`.
    pub(super) fn new(starts: &[Start], plain_bytes: u64) -> Self {
        SpanDigests {
            at: 0,
            next: starts.iter().rev().copied().collect(),
            plain_bytes: starts.is_empty().then_some(plain_bytes),
            state: State::Body,
            open: None,
            done: Vec::new(),
        }
    }

    /// The next bytes of the blob.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        while !bytes.is_empty() {
            let taken = match &mut self.state {
                State::Body => match self.left()? {
                    Some(0) => {
                        self.arrive();
                        continue;
                    }
                    left => left.map_or(bytes.len(), |left| {
                        usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len())
                    }),
                },
                State::Header(_) | State::Shared => 1,
            };
            let (piece, rest) = bytes.split_at(taken);
            if let Some((_, hasher)) = &mut self.open {
                hasher.update(piece);
            }
            self.at += taken as u64;
            bytes = rest;
            self.pass(piece)?;
        }
        Ok(())
    }

    /// Bytes up to the next start; `None`: there is none.
    fn left(&self) -> Result<Option<u64>, String> {
        let next = match (self.plain_bytes, &self.open) {
            (Some(_), None) => Some(self.at),
            (Some(bytes), Some((begun, _))) => Some(begun + bytes),
            (None, _) => self.next.last().map(|next| next.blob),
        };
        let Some(next) = next else { return Ok(None) };
        let left = next.checked_sub(self.at);
        left.map(Some).ok_or_else(|| format!("a span from {next}, inside the one before it"))
    }

    /// The next start is here.
    fn arrive(&mut self) {
        match self.next.pop().map(|start| start.bits) {
            Some(None) => self.state = State::Header(Header::new()),
            Some(Some(1..)) => self.state = State::Shared,
            Some(Some(0)) | None => self.begin(),
        }
    }

    /// Goes on behind a piece that was hashed: in a header or a shared byte it is one byte.
    fn pass(&mut self, piece: &[u8]) -> Result<(), String> {
        let [byte] = piece else { return Ok(()) };
        match &mut self.state {
            State::Body => {}
            State::Header(header) => {
                let complete = header.add(*byte);
                if complete.map_err(|e| format!("the gzip header before {}: {e}", self.at))? {
                    self.begin();
                }
            }
            State::Shared => {
                self.begin();
                if let Some((_, hasher)) = &mut self.open {
                    hasher.update(&[*byte]);
                }
            }
        }
        Ok(())
    }

    /// A span begins here, and the one before it ends.
    fn begin(&mut self) {
        self.end();
        self.open = Some((self.at, Hasher::sha256()));
        self.state = State::Body;
    }

    fn end(&mut self) {
        if let Some((blob, hasher)) = self.open.take()
            && let Digest::Sha256(sha256) = hasher.finish()
        {
            self.done.push(Hashed { blob, sha256 });
        }
    }

    /// How many bytes have passed by, and the spans in them.
    pub(super) fn finish(mut self) -> (u64, Vec<Hashed>) {
        self.end();
        (self.at, self.done)
    }
}
