//! Checkpoints (SOCI's "zinfo"): where a gzip layer can be entered, and what it takes.
//!
//! ```text
//! count i32 | span size i64 | for each: position in the blob i64, in the tar i64, bits u8, window 32768
//! ```
//!
//! Little endian, nothing padded (`ztoc/compression/gzip_zinfo.c`). The position in the blob is of
//! the first byte all of which belongs to the span; `bits` more are the highest of the byte before
//! it. The first checkpoint is behind the header of the first gzip member; the others are between
//! blocks, or behind the header of a later member. Nothing in front of the first one is proved.
//!
//! Before 2023 the first checkpoint was not written: it was taken to be at 10, where it is if the
//! gzip header has no name and no extra field. The count includes it all the same, and tells the
//! versions apart.

/// Bytes of a window: all that deflate can refer back to (RFC 1951, section 2).
pub(super) const WINDOW_BYTES: usize = 32_768;

/// Bytes of a checkpoint.
pub(super) const CHECKPOINT_BYTES: usize = 8 + 8 + 1 + WINDOW_BYTES;

const HEAD_BYTES: usize = 4 + 8;

/// Bytes of the shortest gzip header (RFC 1952, section 2.3).
const GZIP_HEADER_BYTES: u64 = 10;

/// A place where decoding can start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Checkpoint<'a> {
    /// Position in the blob of the first byte that belongs to it alone.
    pub(super) blob: u64,
    /// Position in the tar.
    pub(super) tar: u64,
    /// How many of the highest bits of the byte before `blob` belong to it.
    pub(super) bits: u8,
    /// The end of the output in front of it, at most [`WINDOW_BYTES`].
    pub(super) window: &'a [u8],
}

impl Checkpoint<'_> {
    /// Position in the blob of the first byte that is needed.
    pub(super) fn start(&self) -> u64 {
        self.blob - u64::from(self.bits > 0)
    }
}

/// Reads checkpoints: at least one, the first at the start of the tar, all ascending.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<Checkpoint<'_>>, String> {
    let head = bytes
        .split_first_chunk::<4>()
        .and_then(|(count, rest)| Some((i32::from_le_bytes(*count), rest.get(HEAD_BYTES - 4..)?)));
    let Some((count, records)) = head else {
        return Err(format!("checkpoints of {} bytes", bytes.len()));
    };
    let written = records.len() / CHECKPOINT_BYTES;
    let is_whole = records.len() % CHECKPOINT_BYTES == 0;
    let first = Checkpoint { blob: GZIP_HEADER_BYTES, tar: 0, bits: 0, window: &[] };
    let mut checkpoints = match usize::try_from(count) {
        Ok(count) if is_whole && count > 0 && written == count => Vec::new(),
        Ok(count) if is_whole && count > 0 && written == count - 1 => vec![first],
        _ => return Err(format!("{count} checkpoints in {} bytes", records.len())),
    };
    for record in records.chunks_exact(CHECKPOINT_BYTES) {
        let checkpoint = read_one(record)?;
        let is_next = match checkpoints.last() {
            None => checkpoint.tar == 0 && checkpoint.start() >= GZIP_HEADER_BYTES,
            Some(Checkpoint { blob, tar, .. }) => {
                checkpoint.start() >= *blob && checkpoint.tar > *tar
            }
        };
        if !is_next {
            let (number, at) = (checkpoints.len(), (checkpoint.blob, checkpoint.tar));
            return Err(format!("checkpoint {number} cannot be at {} for tar {}", at.0, at.1));
        }
        checkpoints.push(checkpoint);
    }
    Ok(checkpoints)
}

fn read_one(record: &[u8]) -> Result<Checkpoint<'_>, String> {
    let cut = || "a checkpoint is cut off".to_owned();
    let (blob, rest) = record.split_first_chunk().ok_or_else(cut)?;
    let (tar, rest) = rest.split_first_chunk().ok_or_else(cut)?;
    let (bits, window) = rest.split_first().ok_or_else(cut)?;
    let (blob, tar) = (i64::from_le_bytes(*blob), i64::from_le_bytes(*tar));
    let (Ok(blob @ 1..), Ok(tar), 0..=7) = (u64::try_from(blob), u64::try_from(tar), *bits) else {
        return Err(format!("a checkpoint at {blob} for tar {tar} with {bits} bits"));
    };
    // There is no more output than this in front of it; SOCI has zeros before that.
    let used = usize::try_from(tar).unwrap_or(WINDOW_BYTES).min(WINDOW_BYTES);
    let window = &window[window.len() - used.min(window.len())..];
    Ok(Checkpoint { blob, tar, bits: *bits, window })
}

/// Where checkpoints begin that are written one after the other: their number, and what they span.
pub(super) fn write_head(bytes: &mut Vec<u8>, count: i32, span_bytes: i64) {
    bytes.extend_from_slice(&count.to_le_bytes());
    bytes.extend_from_slice(&span_bytes.to_le_bytes());
}

/// Writes a checkpoint; a window of less than all has zeros in front of it.
pub(super) fn write_one(bytes: &mut Vec<u8>, checkpoint: &Checkpoint<'_>) {
    let Checkpoint { blob, tar, bits, window } = checkpoint;
    bytes.extend_from_slice(&blob.to_le_bytes());
    bytes.extend_from_slice(&tar.to_le_bytes());
    bytes.push(*bits);
    bytes.resize(bytes.len() + WINDOW_BYTES.saturating_sub(window.len()), 0);
    bytes.extend_from_slice(&window[window.len().saturating_sub(WINDOW_BYTES)..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(checkpoints: &[Checkpoint<'_>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_head(&mut bytes, checkpoints.len() as i32, 100);
        checkpoints.iter().for_each(|checkpoint| write_one(&mut bytes, checkpoint));
        bytes
    }

    fn checkpoint(blob: u64, tar: u64, bits: u8, window: &[u8]) -> Checkpoint<'_> {
        Checkpoint { blob, tar, bits, window }
    }

    #[test]
    fn checkpoints_come_back_with_as_much_window_as_there_was_output() {
        let window = [7; WINDOW_BYTES];
        let three = [
            checkpoint(12, 0, 0, &[]),
            checkpoint(20, 5, 3, b"hello"),
            checkpoint(30, 40_000, 0, &window),
        ];
        let bytes = written(&three);
        assert_eq!(bytes.len(), HEAD_BYTES + 3 * CHECKPOINT_BYTES);
        assert_eq!(read(&bytes), Ok(three.to_vec()));
        assert_eq!((three[1].start(), three[2].start()), (19, 30));
    }

    #[test]
    fn the_oldest_version_lacks_the_first_one() {
        let two = [checkpoint(10, 0, 0, &[]), checkpoint(20, 5, 3, b"hello")];
        let bytes = written(&two);
        let old = [&bytes[..HEAD_BYTES], &bytes[HEAD_BYTES + CHECKPOINT_BYTES..]].concat();
        assert_eq!(read(&old), Ok(two.to_vec()));
        assert_eq!(read(&written(&two[..1])[..HEAD_BYTES]), Ok(two[..1].to_vec()));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for wrong in [
            vec![],
            vec![checkpoint(10, 1, 0, b"x")],
            vec![checkpoint(9, 0, 0, &[])],
            vec![checkpoint(10, 0, 8, &[])],
            vec![checkpoint(0, 0, 0, &[])],
            vec![checkpoint(1 << 63, 0, 0, &[])],
            vec![checkpoint(10, 0, 0, &[]), checkpoint(20, 0, 0, b"x")],
            vec![checkpoint(10, 0, 0, &[]), checkpoint(10, 5, 1, b"hello")],
            vec![checkpoint(10, 0, 0, &[]), checkpoint(20, 1 << 63, 0, b"x")],
        ] {
            assert!(read(&written(&wrong)).is_err(), "{wrong:?}");
        }
        let bytes = written(&[checkpoint(10, 0, 0, &[]), checkpoint(20, 5, 3, b"hello")]);
        for length in [0, 4, 11, 13, CHECKPOINT_BYTES, bytes.len() - 1] {
            assert!(read(&bytes[..length]).is_err(), "{length}");
        }
        let count = |count: i32| [&count.to_le_bytes(), &bytes[4..]].concat();
        for wrong in [-1, 0, 1, 4, i32::MAX, i32::MIN] {
            assert!(read(&count(wrong)).is_err(), "{wrong}");
        }
    }
}
