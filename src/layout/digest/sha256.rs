//! SHA-256 of two streams at once, and its state between two blocks, by the blocks of `sha2`.
//!
//! The instructions that processors have for SHA-256 wait for each other: each needs the last one's
//! result. Blocks of two streams, in turns, fill these waits, and take 0.7 of the time.

use sha2::block_api::compress256;
use sha2::digest::block_api::{Buffer, EagerHash};

type Core = <sha2::Sha256 as EagerHash>::Core;

/// Bytes that SHA-256 takes at a time (FIPS 180-4, section 5.2.1).
pub const BLOCK_BYTES: usize = 64;

/// What SHA-256 knows of whole blocks: its hash value between two of them (FIPS 180-4, section 6.2.2).
///
/// Blocks that lead from one state to another are as hard to replace by others as bytes with a digest:
/// a digest is such a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State([u32; 8]);

impl Default for State {
    /// That of no block (section 5.3.3).
    fn default() -> Self {
        State([
            0x6a09_e667,
            0xbb67_ae85,
            0x3c6e_f372,
            0xa54f_f53a,
            0x510e_527f,
            0x9b05_688c,
            0x1f83_d9ab,
            0x5be0_cd19,
        ])
    }
}

impl From<[u8; 32]> for State {
    fn from(bytes: [u8; 32]) -> Self {
        let (words, _) = bytes.as_chunks();
        State(std::array::from_fn(|n| u32::from_be_bytes(words[n])))
    }
}

impl From<State> for [u8; 32] {
    /// Its words as a digest has them: big endian.
    fn from(state: State) -> Self {
        let words = state.0.map(u32::to_be_bytes);
        std::array::from_fn(|n| words[n / 4][n % 4])
    }
}

impl State {
    /// Adds whole blocks. Bytes behind the last of them do not count.
    pub fn update(&mut self, bytes: &[u8]) {
        let (blocks, _) = bytes.as_chunks::<BLOCK_BYTES>();
        compress256(&mut self.0, blocks);
    }

    /// Adds whole blocks, and others to another one.
    pub fn update_with(&mut self, bytes: &[u8], other: &mut State, others: &[u8]) {
        let (blocks, _) = bytes.as_chunks::<BLOCK_BYTES>();
        let (other_blocks, _) = others.as_chunks::<BLOCK_BYTES>();
        for (block, other_block) in blocks.iter().zip(other_blocks) {
            compress256(&mut self.0, std::slice::from_ref(block));
            compress256(&mut other.0, std::slice::from_ref(other_block));
        }
        let both = blocks.len().min(other_blocks.len());
        compress256(&mut self.0, &blocks[both..]);
        compress256(&mut other.0, &other_blocks[both..]);
    }
}

/// SHA-256 (FIPS 180-4) while bytes pass.
#[derive(Clone, Default)]
pub struct Sha256 {
    state: State,
    /// A block whose end has not come.
    begun: Buffer<Core>,
    bytes: u64,
}

impl Sha256 {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        let bytes = self.end_block(bytes);
        self.state.update(bytes);
        self.begin_block(bytes);
    }

    /// Adds bytes, and others to another one.
    pub fn update_with(&mut self, bytes: &[u8], other: &mut Sha256, others: &[u8]) {
        let (bytes, others) = (self.end_block(bytes), other.end_block(others));
        self.state.update_with(bytes, &mut other.state, others);
        self.begin_block(bytes);
        other.begin_block(others);
    }

    /// Ends the block that is begun, if there is one; returns what of the bytes is behind it.
    fn end_block<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        self.bytes += bytes.len() as u64;
        if self.begun.get_pos() == 0 {
            return bytes;
        }
        let (end, rest) = bytes.split_at(bytes.len().min(self.begun.remaining()));
        self.begun.digest_blocks(end, |blocks| {
            blocks.iter().for_each(|block| self.state.update(block));
        });
        rest
    }

    /// Keeps what is behind the last whole block of the bytes.
    fn begin_block(&mut self, bytes: &[u8]) {
        let (_, begun) = bytes.as_chunks::<BLOCK_BYTES>();
        self.begun.digest_blocks(begun, |_| {});
    }

    /// The state behind the last whole block of all bytes added.
    pub fn state(&self) -> State {
        self.state
    }

    /// The bytes behind that block: fewer than a block has.
    pub fn begun(&self) -> &[u8] {
        self.begun.get_data()
    }

    /// The digest of all bytes added.
    pub fn finish(mut self) -> [u8; 32] {
        let bits = self.bytes.wrapping_mul(8);
        self.begun.len64_padding_be(bits, |block| self.state.update(block));
        self.state.into()
    }
}
