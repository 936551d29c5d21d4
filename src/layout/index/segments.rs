//! Segments: pieces of a span's stored bytes, each of which can be proved without the others.
//!
//! A pass hashes its blob anyway. What it keeps of that is the state of SHA-256 at the ends of segments:
//! a segment is right if it leads from the state at its start to the one at its end. So what proves a
//! span costs no hash of its own. States are between blocks of 64 bytes, counted from the start of the
//! blob; what a span has in front of the first such place and behind the last one is kept as it is.

use std::ops::Range;

use crate::layout::digest::{BLOCK_BYTES, Digest, Hasher, Sha256, State};
use crate::layout::error::{Error, Result};
use crate::layout::range::ByteRange;

/// Stored bytes of a segment, besides what its span has in front of the first block and behind the last;
/// the last one of a span may have fewer. A read of one byte reads and hashes up to so many that it does
/// not decode, and each segment takes 32 bytes of an index.
pub const SEGMENT_BYTES: u64 = 64 << 10;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// What the stored bytes of a span are held against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segments {
    /// sha256 of all of them, from somebody else: one segment, however long it is.
    One([u8; 32]),
    /// States of the blob's own hash.
    Chain(Chain),
}

/// States of SHA-256 at the ends of segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// What the span has in front of its first whole block, and behind its last one.
    edges: Box<[u8]>,
    /// How many of those are in front.
    head: usize,
    /// At the start of the first segment, and at the end of each; none if there is no whole block.
    states: Box<[[u8; 32]]>,
}

impl Chain {
    /// The chain of a span of `len` stored bytes, `head` of which are in front of its first block. Takes
    /// its edges from the front of `edges`; `states` are its own.
    ///
    /// # Errors
    /// There are not so many, or more in front than there can be.
    pub fn take(
        head: u8,
        len: u64,
        edges: &mut &[u8],
        states: &[[u8; 32]],
    ) -> std::result::Result<Self, String> {
        let head = usize::from(head);
        let behind = len.checked_sub(head as u64).filter(|_| head < BLOCK_BYTES);
        let tail = behind.ok_or_else(|| format!("{head} of {len} bytes before a block"))? % BLOCK;
        let own = edges.split_off(..head + tail as usize);
        let edges = own.ok_or("edges outside of their table")?.into();
        Ok(Chain { edges, head, states: states.into() })
    }

    /// How many of the span's bytes are in front of its first block: fewer than a block has.
    pub fn head(&self) -> u8 {
        self.head as u8
    }

    /// What the span has in front of its first whole block, then what it has behind its last one.
    pub fn edges(&self) -> &[u8] {
        &self.edges
    }

    /// SHA-256 at the start of the first segment and at the end of each.
    pub fn states(&self) -> &[[u8; 32]] {
        &self.states
    }

    fn count(&self) -> usize {
        self.states.len().saturating_sub(1).max(1)
    }

    fn fits(&self, len: u64) -> bool {
        let blocks = len.checked_sub(self.edges.len() as u64);
        let states = blocks.filter(|blocks| blocks % BLOCK == 0).map(|blocks| match blocks {
            0 => 0,
            blocks => blocks.div_ceil(SEGMENT_BYTES) + 1,
        });
        states == Some(self.states.len() as u64)
    }

    fn verify(&self, numbers: Range<usize>, stored: &[u8]) -> Result<()> {
        let (head, tail) = self.edges.split_at(self.head);
        let mut blocks = stored;
        if numbers.start == 0 {
            let (found, rest) = blocks.split_at(blocks.len().min(head.len()));
            same_bytes(head, found)?;
            blocks = rest;
        }
        if numbers.end == self.count() {
            let (rest, found) = blocks.split_at(blocks.len().saturating_sub(tail.len()));
            same_bytes(tail, found)?;
            blocks = rest;
        }
        // What no state speaks of is too much.
        let whole_blocks = blocks.len() / BLOCK_BYTES * BLOCK_BYTES;
        let expected = if self.states.is_empty() { 0 } else { whole_blocks };
        if blocks.len() != expected {
            let (expected, actual) = (expected as u64, blocks.len() as u64);
            return Err(Error::SizeMismatch { expected, actual });
        }
        if self.states.is_empty() {
            return Ok(());
        }
        self.verify_blocks(numbers, blocks)
    }

    fn verify_blocks(&self, numbers: Range<usize>, blocks: &[u8]) -> Result<()> {
        let Range { start: first, end } = numbers;
        // What is too much or too little is of the last one, and makes it wrong.
        let piece = |number: usize| {
            let at = |segments: usize| blocks.len().min(segments * SEGMENT_BYTES as usize);
            let piece_end = if number + 1 == end { blocks.len() } else { at(number + 1 - first) };
            &blocks[at(number - first)..piece_end]
        };
        // Two at once take less time than one after the other.
        for one in (first..end).step_by(2) {
            let (mut state, mut other_state) = (self.state(one), State::default());
            let other = Some(one + 1).filter(|other| *other < end);
            let other_piece = other.map_or(&[][..], piece);
            if let Some(other) = other {
                other_state = self.state(other);
            }
            state.update_with(piece(one), &mut other_state, other_piece);
            same_state(self.state(one + 1), state)?;
            if let Some(other) = other {
                same_state(self.state(other + 1), other_state)?;
            }
        }
        Ok(())
    }

    /// That of no block where there is no such number, to which nothing leads.
    fn state(&self, number: usize) -> State {
        self.states.get(number).map_or(State::default(), |bytes| State::from(*bytes))
    }
}

fn same_state(expected: State, actual: State) -> Result<()> {
    if actual == expected {
        return Ok(());
    }
    let told = |state: State| format!("state of sha256 {}", Digest::Sha256(state.into()).hex());
    Err(Error::DigestMismatch { expected: told(expected), actual: told(actual) })
}

fn same_bytes(expected: &[u8], actual: &[u8]) -> Result<()> {
    if actual == expected {
        return Ok(());
    }
    let told = |bytes: &[u8]| format!("bytes {}", bytes.escape_ascii());
    Err(Error::DigestMismatch { expected: told(expected), actual: told(actual) })
}

impl Segments {
    /// What `range` of a blob is, whose bytes these are from its start on.
    pub fn of(blob: &[u8], range: ByteRange) -> Self {
        let (start, end) = (range.start as usize, range.end as usize);
        let (mut cutter, mut none) = (Cutter::default(), Hasher::sha256());
        cutter.update_with(&blob[..start], &mut none, &[]);
        cutter.cut(range.start);
        cutter.update_with(&blob[start..end], &mut none, &[]);
        cutter.cut(range.end)
    }

    /// How many there are: one, at least.
    pub fn count(&self) -> usize {
        match self {
            Segments::One(_) => 1,
            Segments::Chain(chain) => chain.count(),
        }
    }

    /// So many are right for a span of `len` stored bytes.
    pub fn fit(&self, len: u64) -> bool {
        match self {
            Segments::One(_) => true,
            Segments::Chain(chain) => chain.fits(len),
        }
    }

    /// Where the segments `numbers` (there is one, at least) are in a span of `len` stored bytes.
    pub fn range(&self, numbers: Range<usize>, len: u64) -> ByteRange {
        let at = |number: usize| match self {
            _ if number == 0 => 0,
            Segments::Chain(chain) if number < chain.count() => {
                chain.head as u64 + SEGMENT_BYTES * number as u64
            }
            _ => len,
        };
        ByteRange::new(at(numbers.start), at(numbers.end))
    }

    /// Compares `stored`, all bytes of the segments `numbers`, with what proves them.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`] or [`Error::SizeMismatch`] of one that is wrong.
    pub fn verify(&self, numbers: Range<usize>, stored: &[u8]) -> Result<()> {
        match self {
            Segments::One(sha256) => Digest::Sha256(*sha256).verify(stored),
            Segments::Chain(chain) => chain.verify(numbers, stored),
        }
    }
}

/// Hashes a blob while it passes, and cuts it into spans of segments.
pub struct Cutter {
    sha256: Sha256,
    /// Bytes of the blob so far, and the last of them.
    at: u64,
    last_byte: Option<u8>,
    /// Of the span whose end has not come: what is in front of its first block, and its states.
    head: Vec<u8>,
    states: Vec<[u8; 32]>,
    /// Where the next state is taken.
    next: u64,
}

impl Default for Cutter {
    fn default() -> Self {
        let (sha256, head, states) = (Sha256::default(), Vec::new(), Vec::new());
        let mut cutter = Cutter { sha256, at: 0, last_byte: None, head, states, next: 0 };
        cutter.begin(0);
        cutter
    }
}

impl Cutter {
    /// The next bytes of the blob, and others to `other`: see [`Hasher::update_with`].
    pub fn update_with(&mut self, bytes: &[u8], other: &mut Hasher, others: &[u8]) {
        self.last_byte = bytes.last().copied().or(self.last_byte);
        let (mut bytes, mut others) = (bytes, others);
        while !bytes.is_empty() {
            let now = bytes.len().min((self.next - self.at) as usize);
            let (piece, others_piece);
            (piece, bytes) = bytes.split_at(now);
            (others_piece, others) = others.split_at(now.min(others.len()));
            if self.states.is_empty() {
                self.head.extend_from_slice(piece);
            }
            other.update_with(others_piece, &mut self.sha256, piece);
            self.at += now as u64;
            self.take_state();
        }
        other.update(others);
    }

    /// Bytes of the blob so far.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// The last of them.
    pub fn last_byte(&self) -> Option<u8> {
        self.last_byte
    }

    /// The digest of all of them.
    pub fn sha256(&self) -> Digest {
        Digest::Sha256(self.sha256.clone().finish())
    }

    /// Ends a span, and begins the next one at `start`: here, or one byte before.
    pub fn cut(&mut self, start: u64) -> Segments {
        let ended = self.end();
        self.begin(start);
        ended
    }

    fn begin(&mut self, start: u64) {
        self.next = start.next_multiple_of(BLOCK);
        let is_before = start < self.at && start < self.next;
        self.head.extend(self.last_byte.filter(|_| is_before));
        self.take_state();
    }

    /// The state, if this is where it is to be taken: here, or one byte before.
    fn take_state(&mut self) {
        if self.next <= self.at {
            self.states.push(self.sha256.state().into());
            self.next += SEGMENT_BYTES;
        }
    }

    fn end(&mut self) -> Segments {
        let mut edges = std::mem::take(&mut self.head);
        let mut states = std::mem::take(&mut self.states);
        let head = edges.len();
        if !states.is_empty() {
            let blocks_end = self.at - self.sha256.begun().len() as u64;
            edges.extend_from_slice(self.sha256.begun());
            match self.next - SEGMENT_BYTES == blocks_end {
                false => states.push(self.sha256.state().into()),
                true if states.len() == 1 => states.clear(),
                true => {}
            }
        }
        Segments::Chain(Chain { edges: edges.into(), head, states: states.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: usize = SEGMENT_BYTES as usize;

    fn blob(len: usize) -> Vec<u8> {
        (0..len as u32).map(|n| (n.wrapping_mul(n) >> 9) as u8).collect()
    }

    /// The spans of a blob that comes in pieces: they begin at these places, a byte before the end of
    /// the one before where that is said.
    fn cut(blob: &[u8], step: usize, starts: &[(usize, bool)]) -> Vec<Segments> {
        let (mut cutter, mut other, mut others) = (Cutter::default(), Hasher::sha256(), blob);
        let mut spans = Vec::new();
        let ends = starts[1..].iter().map(|(start, is_shared)| start + usize::from(*is_shared));
        let mut at = 0;
        for (n, end) in ends.chain([blob.len()]).enumerate() {
            for piece in blob[at..end].chunks(step) {
                let now = others.split_off(..others.len().min(piece.len() + 9));
                cutter.update_with(piece, &mut other, now.unwrap_or_default());
            }
            at = end;
            let next = starts.get(n + 1).map_or(end, |(start, _)| *start);
            spans.push(cutter.cut(next as u64));
        }
        other.update(others);
        assert_eq!(other.finish(), Digest::sha256_of(blob));
        assert_eq!((cutter.sha256(), cutter.at()), (Digest::sha256_of(blob), blob.len() as u64));
        spans
    }

    #[test]
    fn spans_are_cut_anywhere_however_the_bytes_come() {
        let blob = blob(5 * SEGMENT + 77);
        for at in [1, 30, 63, 64, 65, 128, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT + 65] {
            for more in [1, 40, 64, 127, 128, SEGMENT, 2 * SEGMENT + 5] {
                let starts = [(0, false), (at, at % 2 == 1), (at + more, more % 2 == 1)];
                let one = cut(&blob, blob.len(), &starts);
                assert_eq!(cut(&blob, 777, &starts), one, "{starts:?}");
                let shared = |n: usize| starts[n].0 + usize::from(starts[n].1);
                let ends = [shared(1), shared(2), blob.len()];
                for (n, segments) in one.iter().enumerate() {
                    let range = ByteRange::new(starts[n].0 as u64, ends[n] as u64);
                    assert_eq!(*segments, Segments::of(&blob, range), "{range}");
                    assert!(segments.fit(range.len()), "{range}");
                    let stored = &blob[starts[n].0..ends[n]];
                    assert_eq!(segments.verify(0..segments.count(), stored), Ok(()), "{range}");
                }
            }
        }
    }

    #[test]
    fn the_state_at_the_end_of_a_blob_of_whole_blocks_is_one_padding_before_its_digest() {
        let blob = blob(2 * SEGMENT);
        let Segments::Chain(chain) = Segments::of(&blob, ByteRange::new(0, blob.len() as u64))
        else {
            panic!("a chain")
        };
        assert!(chain.edges().is_empty());
        let mut state = State::from(chain.states()[2]);
        let mut padding = [0; BLOCK_BYTES];
        padding[0] = 0x80;
        padding[BLOCK_BYTES - 8..].copy_from_slice(&(8 * blob.len() as u64).to_be_bytes());
        state.update(&padding);
        assert_eq!(Digest::Sha256(state.into()), Digest::sha256_of(&blob));
    }

    #[test]
    fn some_segments_are_verified_without_the_others() {
        let blob = blob(4 * SEGMENT + 500);
        for start in [0, 1, 64, 100] {
            let span = ByteRange::new(start, start + 4 * SEGMENT_BYTES + 300);
            let segments = Segments::of(&blob, span);
            let mut stored = blob[span.start as usize..span.end as usize].to_vec();
            let len = span.len();
            assert_eq!(segments.count(), 5);
            assert_eq!(segments.range(0..5, len), ByteRange::new(0, len));
            for first in 0..5 {
                for end in first + 1..=5 {
                    let range = segments.range(first..end, len);
                    let (from, behind) = (range.start as usize, range.end as usize);
                    let bytes = stored[from..behind].to_vec();
                    assert_eq!(segments.verify(first..end, &bytes), Ok(()), "{first}..{end}");
                    let shorter = &bytes[..bytes.len() - 1];
                    assert!(segments.verify(first..end, shorter).is_err());
                    assert!(segments.verify(first..end, &bytes[..bytes.len() - 64]).is_err());
                    let longer = [&bytes[..], b"x"].concat();
                    assert!(segments.verify(first..end, &longer).is_err());
                    assert!(segments.verify(first..end, &[]).is_err());
                    for at in [from, behind - 1, (from + behind) / 2] {
                        stored[at] ^= 1;
                        let wrong = segments.verify(first..end, &stored[from..behind]);
                        assert!(matches!(wrong, Err(Error::DigestMismatch { .. })), "{at}");
                        stored[at] ^= 1;
                    }
                }
            }
        }
    }

    #[test]
    fn segments_are_taken_apart_and_put_together_and_fit_one_length() {
        let blob = blob(3 * SEGMENT);
        for (start, len) in [(0, 10), (7, 10), (7, 57), (7, 58), (64, 64), (1, SEGMENT_BYTES + 63)]
        {
            let range = ByteRange::at(start, len);
            let segments = Segments::of(&blob, range);
            assert!(segments.fit(len), "{start} {len}");
            assert!(!segments.fit(len + 1) && !segments.fit(len - 1) && !segments.fit(0));
            assert!(!segments.fit(len + SEGMENT_BYTES));
            let stored = &blob[start as usize..(start + len) as usize];
            let all = 0..segments.count();
            assert_eq!(segments.verify(all.clone(), stored), Ok(()));
            let (head, tail) = stored.split_at(stored.len() / 2);
            let longer = [head, &[7; BLOCK_BYTES], tail].concat();
            assert!(segments.verify(all.clone(), &longer).is_err(), "{start} {len}");
            let longer = [stored, &[7; BLOCK_BYTES]].concat();
            assert!(segments.verify(all, &longer).is_err(), "{start} {len}");
            let Segments::Chain(chain) = &segments else { panic!("a chain") };
            let mut edges = &[chain.edges(), b"next"].concat()[..];
            let taken = Chain::take(chain.head(), len, &mut edges, chain.states());
            assert_eq!((taken.as_ref(), edges), (Ok(chain), &b"next"[..]));
            let mut edges = &chain.edges()[..chain.edges().len().saturating_sub(1)];
            let cut = Chain::take(chain.head(), len, &mut edges, chain.states());
            assert!(cut.is_err() || chain.edges().is_empty());
        }
        assert!(Chain::take(64, 1000, &mut &blob[..], &[]).is_err());
        assert!(Chain::take(3, 2, &mut &blob[..], &[]).is_err());
    }

    #[test]
    fn one_digest_is_of_all_bytes_of_a_span() {
        let Digest::Sha256(sha256) = Digest::sha256_of(b"stored") else { panic!("sha256") };
        let one = Segments::One(sha256);
        assert_eq!((one.count(), one.range(0..1, 6)), (1, ByteRange::new(0, 6)));
        assert!(one.fit(6));
        assert_eq!(one.verify(0..1, b"stored"), Ok(()));
        assert!(one.verify(0..1, b"Stored").is_err());
    }
}
