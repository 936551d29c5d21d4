//! Windows: the output in front of a place between two blocks, to which the blocks behind it refer.
//!
//! Most bytes of a window are never referred to; they are zeros in ours, which compress to nothing.
//! A wrong window would make wrong content of right bytes: whoever keeps windows proves them.

use crate::layout::codec::back_references::BackReferences;
use crate::layout::codec::inflate::WINDOW_BYTES_MAX;

/// Level 3 makes an index 1 % smaller, and higher ones 5 %, but packing would take two to four times as long.
const ZSTD_LEVEL: i32 = 1;

/// Packs windows, keeping the memory that this takes.
#[derive(Default)]
pub struct Packer(Option<zstd::bulk::Compressor<'static>>);

impl Packer {
    /// The window as it is stored: one zstd frame (RFC 8878).
    pub fn pack(&mut self, window: &[u8]) -> Vec<u8> {
        // Compressing into memory of our own cannot fail; no window would be found when it is used.
        self.try_pack(window).unwrap_or_default()
    }

    fn try_pack(&mut self, window: &[u8]) -> std::io::Result<Vec<u8>> {
        let compressor = match &mut self.0 {
            Some(compressor) => compressor,
            none => none.insert(zstd::bulk::Compressor::new(ZSTD_LEVEL)?),
        };
        compressor.compress(window)
    }
}

/// The window that a [`Packer`] stored.
///
/// # Errors
/// It is no zstd frame, or larger than any window.
pub fn unpack(stored: &[u8]) -> Result<Vec<u8>, String> {
    zstd::bulk::decompress(stored, WINDOW_BYTES_MAX).map_err(|e| format!("a window: {e}"))
}

/// Finds out which bytes of windows are referred to, keeping the memory that this takes.
#[derive(Default)]
pub struct Tracer(Option<Box<BackReferences>>);

impl Tracer {
    /// The window with zeros for all bytes that nothing behind it refers to. `bits` and `behind` are
    /// where decoding starts, as in [`BackReferences::mark`]: the first of those bytes has the bits.
    /// Where `behind` ends before the last reference may come, or is not what it should be, the whole
    /// window is kept.
    pub fn sparse(&mut self, mut window: Vec<u8>, bits: u8, behind: &[u8]) -> Vec<u8> {
        let references = self.0.get_or_insert_with(|| Box::new(BackReferences::new()));
        let mut is_needed = [false; WINDOW_BYTES_MAX];
        let Some(is_needed) = is_needed.get_mut(..window.len()) else { return window };
        if references.mark(bits, behind, is_needed).is_some() {
            for (byte, is_needed) in window.iter_mut().zip(is_needed) {
                // Without a branch, so that many bytes are done at once.
                *byte &= u8::from(*is_needed).wrapping_neg();
            }
        }
        window
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::layout::codec::inflate::Inflate;
    use crate::layout::codec::{Decoded, Decoder, Start};
    use crate::layout::error::Error;

    /// A gzip blob of `content`, and its first start between two blocks.
    fn started(content: &[u8]) -> (Vec<u8>, Start) {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(content).unwrap();
        let blob = encoder.finish().unwrap();
        let mut starts = Vec::new();
        let mut decoder = Decoder::with_starts(100 << 10);
        let mut sink = |decoded: Decoded<'_>| {
            if let Decoded::Start(start) = decoded {
                starts.push(start);
            }
            Ok::<(), Error>(())
        };
        decoder.push(&blob, &mut sink).unwrap();
        (blob, starts.swap_remove(1))
    }

    /// Text that refers back now and then.
    fn content() -> Vec<u8> {
        let line = |n: u32| format!("{} {:x}\n", n.wrapping_mul(2_654_435_761) % 1009, n * n);
        (0..40_000).map(line).collect::<String>().into_bytes()
    }

    #[test]
    fn a_window_comes_back_and_a_larger_one_does_not() {
        let window = content()[..WINDOW_BYTES_MAX].to_vec();
        let mut packer = Packer::default();
        let stored = packer.pack(&window);
        assert_eq!(unpack(&stored), Ok(window));
        assert_eq!(unpack(&packer.pack(&[])), Ok(vec![]));
        assert!(unpack(&stored[..stored.len() - 1]).is_err());
        assert!(unpack(&packer.pack(&[7; WINDOW_BYTES_MAX + 1])).is_err());
    }

    #[test]
    fn bytes_that_nothing_refers_to_are_zeros_and_decoding_is_the_same() {
        let content = content();
        let (blob, start) = started(&content);
        let within = start.within.expect("between two blocks");
        let (at, behind) = (start.tar as usize, &blob[start.blob as usize..]);
        assert_eq!(within.window, content[at - WINDOW_BYTES_MAX..at]);
        let mut tracer = Tracer::default();
        let sparse = tracer.sparse(within.window.clone(), within.bits, behind);
        assert!(sparse != within.window, "much of it is not referred to");
        let decoded = |window: &[u8]| {
            let mut output = vec![0; WINDOW_BYTES_MAX];
            let mut inflate = Inflate::new().unwrap();
            inflate.resume(within.bits, behind[0], window).unwrap();
            let rest = &behind[usize::from(within.bits > 0)..];
            assert_eq!(inflate.run(rest, &mut output, false).unwrap().produced, output.len());
            output
        };
        assert_eq!(decoded(&sparse), content[at..at + WINDOW_BYTES_MAX]);
        // Each byte that is kept is one that matters.
        for at in (0..WINDOW_BYTES_MAX).filter(|at| sparse[*at] != 0).step_by(97) {
            let mut without = sparse.clone();
            without[at] = 0;
            assert_ne!(decoded(&without), decoded(&sparse), "{at}");
        }
    }

    #[test]
    fn a_window_is_kept_whole_where_it_cannot_be_known() {
        let (blob, start) = started(&content());
        let within = start.within.expect("between two blocks");
        let behind = &blob[start.blob as usize..];
        let mut tracer = Tracer::default();
        let mut kept = |bytes: &[u8]| {
            tracer.sparse(within.window.clone(), within.bits, bytes) == within.window
        };
        assert!(kept(&behind[..100]) && kept(&[]));
        assert!(kept(&[0xff; 50_000]), "not a deflate stream");
        let longer = vec![1; WINDOW_BYTES_MAX + 1];
        assert!(Tracer::default().sparse(longer.clone(), within.bits, behind) == longer);
        let end = [&[0x03, 0x00][..], &[0; 100]].concat();
        let sparse = Tracer::default().sparse(within.window.clone(), 0, &end);
        assert!(sparse.iter().all(|b| *b == 0), "an empty last block");
    }
}
