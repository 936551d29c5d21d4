//! A layer decoded into a file, because it cannot seek: proved piece by piece as it is read.
//!
//! The whole was proved by its DiffID when it was written. What a disk does to it afterwards is
//! found by a digest for each piece, checked the first time that a mount touches the piece, and
//! again when somebody wrote to the file.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::cache::read_exact_at;
use super::error::{Error, ErrorKind, Result};
use super::proved::{Place, Proved};
use super::stamp::Stamp;
use crate::layout::Digest;
use crate::layout::digest::Hasher;
use crate::layout::range::ByteRange;

/// Bytes that share a digest: hashing them takes about 0.6 ms, once a mount.
pub const PIECE_BYTES: u64 = 1 << 20;

/// sha256 of each piece, in order; the last piece may be short.
pub type Sums = Vec<[u8; 32]>;

/// A decoded layer, open for reading.
#[derive(Debug)]
pub struct Decoded {
    file: File,
    size: u64,
    sums: Sums,
    checked: Vec<AtomicBool>,
    /// The file when the checked pieces were checked.
    seen: Mutex<Option<Stamp>>,
    is_used: AtomicBool,
}

impl Decoded {
    /// A file of `size` bytes with its sums; `None` when their number is wrong. `is_fresh`: this
    /// process has just written and proved it.
    pub fn new(file: File, size: u64, sums: Sums, is_fresh: bool) -> Option<Self> {
        if sums.len() as u64 != size.div_ceil(PIECE_BYTES) {
            return None;
        }
        let checked = sums.iter().map(|_| AtomicBool::new(is_fresh)).collect();
        let seen = Mutex::new(Stamp::of_ours(&file).ok());
        Some(Decoded { file, size, sums, checked, seen, is_used: AtomicBool::new(false) })
    }

    /// Somebody has removed the file: it takes room as long as it is open. One that was read since
    /// the last call is noted as used.
    pub fn is_evicted(&self) -> bool {
        use std::os::unix::fs::MetadataExt as _;
        if self.is_used.swap(false, Ordering::Relaxed) {
            super::cache::note_used(&self.file);
        }
        self.file.metadata().is_ok_and(|meta| meta.nlink() == 0)
    }

    /// Reads `range` into `out`, which has its length.
    ///
    /// # Errors
    /// [`ErrorKind::DigestMismatch`] when the disk has changed or lost a byte of a piece.
    pub fn read(&self, range: ByteRange, mut out: Place<'_>) -> Result<()> {
        if range.end > self.size || out.len() as u64 != range.len() {
            let message = format!("range {range} is outside of {} decoded bytes", self.size);
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        self.is_used.store(true, Ordering::Relaxed);
        let mut at = range.start;
        while at < range.end {
            let number = (at / PIECE_BYTES) as usize;
            let piece = ByteRange::at(at / PIECE_BYTES * PIECE_BYTES, PIECE_BYTES);
            let piece = piece.intersection(&ByteRange::new(0, self.size));
            let part = piece.intersection(&range);
            let to = (part.start - range.start) as usize..(part.end - range.start) as usize;
            self.read_part(number, piece, part, out.part(to))?;
            at = part.end;
        }
        Ok(())
    }

    fn read_part(
        &self,
        number: usize,
        piece: ByteRange,
        part: ByteRange,
        mut out: Place<'_>,
    ) -> Result<()> {
        if self.checked[number].load(Ordering::Acquire) {
            let read = self.file.read_exact_at(out.vouch(), part.start);
            // What was read is right if nobody wrote before this moment.
            if read.is_ok() && self.is_unchanged() {
                return Ok(());
            }
        }
        let before = Stamp::of_ours(&self.file).ok();
        // A disk that cannot read its bytes has lost them: they are decoded again all the same.
        let bytes = read_exact_at(&self.file, piece)
            .map_err(|e| Error::new(ErrorKind::DigestMismatch, e.message))
            .and_then(|bytes| Proved::check(&Digest::Sha256(self.sums[number]), bytes.into()))
            .map_err(|e| e.context(format!("decoded layer, bytes {piece}")))?;
        self.note_checked(number, before);
        let from = (part.start - piece.start) as usize;
        let to = from + out.len();
        out.copy(&bytes, from..to);
        Ok(())
    }

    /// Nobody wrote to the file since its pieces were checked; else none of them is checked.
    fn is_unchanged(&self) -> bool {
        let now = Stamp::of_ours(&self.file).ok();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if now.is_some() && *seen == now {
            return true;
        }
        *seen = now;
        self.checked.iter().for_each(|checked| checked.store(false, Ordering::Release));
        false
    }

    /// The piece was checked when the file looked like `before`.
    fn note_checked(&self, number: usize, before: Option<Stamp>) {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if before.is_some() && *seen == before {
            self.checked[number].store(true, Ordering::Release);
        }
    }
}

/// Sums pieces while bytes pass.
pub struct Summing {
    sums: Sums,
    hasher: Hasher,
    filled: u64,
}

impl Default for Summing {
    fn default() -> Self {
        Summing { sums: Vec::new(), hasher: Hasher::sha256(), filled: 0 }
    }
}

impl Summing {
    /// Adds bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = (PIECE_BYTES - self.filled) as usize;
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.hasher.update(now);
            self.filled += now.len() as u64;
            if self.filled == PIECE_BYTES {
                self.close();
            }
            bytes = later;
        }
    }

    fn close(&mut self) {
        let hasher = std::mem::replace(&mut self.hasher, Hasher::sha256());
        if let Digest::Sha256(sum) = hasher.finish() {
            self.sums.push(sum);
        }
        self.filled = 0;
    }

    /// Nothing more is added: the last piece may be short.
    pub fn end(&mut self) {
        if self.filled > 0 {
            self.close();
        }
    }

    /// The sums of the pieces that are whole.
    pub fn sums(&self) -> &[[u8; 32]] {
        &self.sums
    }

    /// The sums of everything added.
    pub fn finish(mut self) -> Sums {
        self.end();
        self.sums
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::fetch::proved::Filling;

    fn decoded(bytes: &[u8]) -> (File, Decoded) {
        let mut summing = Summing::default();
        bytes.chunks(70_000).for_each(|piece| summing.update(piece));
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("written");
        let handle = file.try_clone().expect("a handle");
        let size = bytes.len() as u64;
        (handle, Decoded::new(file, size, summing.finish(), false).expect("as many sums"))
    }

    fn read(decoded: &Decoded, range: ByteRange) -> Result<Proved> {
        let mut filling = Filling::zeroed(range.len() as usize);
        let len = range.len() as usize;
        decoded.read(range, filling.place(0..len))?;
        Ok(filling.finish())
    }

    #[test]
    fn any_range_is_read_across_pieces() {
        let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i / 7) as u8).collect();
        let (_, decoded) = decoded(&bytes);
        for (start, end) in [(0, 1), (1_048_575, 1_048_577), (0, 3_000_000), (2_999_999, 3_000_000)]
        {
            let range = ByteRange::new(start as u64, end as u64);
            assert_eq!(&*read(&decoded, range).expect("read"), &bytes[start..end]);
        }
        let beyond = read(&decoded, ByteRange::new(0, 3_000_001));
        assert_eq!(beyond.expect_err("too far").kind, ErrorKind::Invalid);
    }

    #[test]
    fn a_flipped_bit_is_found_when_its_piece_is_first_touched() {
        let bytes = vec![7u8; 2_500_000];
        let (file, decoded) = decoded(&bytes);
        file.write_all_at(&[8], 1_500_000).expect("damaged");
        read(&decoded, ByteRange::at(0, 10)).expect("another piece is right");
        let damaged = read(&decoded, ByteRange::at(1_100_000, 10));
        assert_eq!(damaged.expect_err("found").kind, ErrorKind::DigestMismatch);
    }

    #[test]
    fn a_file_that_is_written_to_or_cut_after_the_check_is_found_too() {
        let bytes = vec![7u8; 2_500_000];
        let (file, decoded) = decoded(&bytes);
        let all = ByteRange::new(0, 2_500_000);
        assert_eq!(&*read(&decoded, all).expect("right"), &bytes[..]);
        // Times of files tick every few milliseconds.
        std::thread::sleep(std::time::Duration::from_millis(20));
        file.write_all_at(&[8], 1_500_000).expect("damaged");
        read(&decoded, ByteRange::at(2_400_000, 10)).expect("another piece is right");
        let damaged = read(&decoded, ByteRange::at(1_400_000, 200_000));
        assert_eq!(damaged.expect_err("found").kind, ErrorKind::DigestMismatch);
        file.write_all_at(&[7], 1_500_000).expect("mended");
        assert_eq!(&*read(&decoded, all).expect("right again"), &bytes[..]);
        std::thread::sleep(std::time::Duration::from_millis(20));
        file.set_len(2_000_000).expect("cut");
        let cut = read(&decoded, ByteRange::at(2_400_000, 10));
        assert_eq!(cut.expect_err("lost").kind, ErrorKind::DigestMismatch);
    }

    #[test]
    fn a_wrong_number_of_sums_is_no_decoded_layer() {
        let file = tempfile::tempfile().expect("a file");
        assert!(Decoded::new(file, 1, Vec::new(), false).is_none());
    }
}
