//! Windows: the output in front of a place between two blocks, to which the blocks behind it refer.
//!
//! Most bytes of a window are never referred to; they are zeros in ours, which compress to nothing.
//! A wrong window would make wrong content of right bytes: whoever keeps windows proves them.

use crate::layout::codec::inflate::{At, Inflate, WINDOW_BYTES_MAX};

/// Level 3 makes an index 1 % smaller, and higher ones 5 %, but packing would take two to four times as long.
const ZSTD_LEVEL: i32 = 1;

/// What the bytes of two decodings can say: more places than a window has.
const PLACES: usize = 1 << 16;

/// Windows whose bytes say where they are: the low half of that, and the high half by how much
/// more than the low one it says, which is never nothing.
static LOW: [u8; WINDOW_BYTES_MAX] = tracer(false);
static HIGH: [u8; WINDOW_BYTES_MAX] = tracer(true);

const fn tracer(high: bool) -> [u8; WINDOW_BYTES_MAX] {
    let mut bytes = [0; WINDOW_BYTES_MAX];
    let mut at = 0;
    while at < bytes.len() {
        let low = at as u8;
        bytes[at] = if high { low.wrapping_add(1 + (at >> 8) as u8) } else { low };
        at += 1;
    }
    bytes
}

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
pub struct Tracer(Option<Tracing>);

struct Tracing {
    inflate: Inflate,
    low: Box<[u8; WINDOW_BYTES_MAX]>,
    high: Box<[u8; WINDOW_BYTES_MAX]>,
}

impl Tracer {
    /// The window with zeros for all bytes that nothing behind it refers to. `bits` and `behind` are
    /// where decoding starts, as in [`Inflate::resume`]: the first of those bytes has the bits. Where
    /// `behind` ends before the last reference may come, the whole window is kept.
    ///
    /// References are followed without understanding them: what is behind is decoded twice, with
    /// windows that say where each of their bytes is. Where the two differ a byte came of the window.
    pub fn sparse(&mut self, mut window: Vec<u8>, bits: u8, behind: &[u8]) -> Vec<u8> {
        let Some((low, high)) = self.decode(window.len(), bits, behind) else { return window };
        let mut is_kept = [false; PLACES];
        for (low, high) in low.iter().zip(high) {
            // Without asking whether they differ, which is hard to guess: where they do not, this is
            // a place beyond any window.
            let page = high.wrapping_sub(*low).wrapping_sub(1);
            is_kept[usize::from(page) << 8 | usize::from(*low)] = true;
        }
        for (byte, is_kept) in window.iter_mut().zip(is_kept) {
            *byte = if is_kept { *byte } else { 0 };
        }
        window
    }

    fn decode(&mut self, window: usize, bits: u8, behind: &[u8]) -> Option<(&[u8], &[u8])> {
        if self.0.is_none() {
            let empty = || Box::new([0; WINDOW_BYTES_MAX]);
            self.0 = Some(Tracing { inflate: Inflate::new().ok()?, low: empty(), high: empty() });
        }
        let Tracing { inflate, low, high } = self.0.as_mut()?;
        let lows = decode_reach(inflate, LOW.get(..window)?, bits, behind, &mut low[..])?;
        let highs = decode_reach(inflate, HIGH.get(..window)?, bits, behind, &mut high[..])?;
        Some((&low[..lows], &high[..highs]))
    }
}

/// Decodes as far as a window reaches, or to the end of the stream; `None` if `behind` ends first.
fn decode_reach(
    inflate: &mut Inflate,
    window: &[u8],
    bits: u8,
    behind: &[u8],
    output: &mut [u8],
) -> Option<usize> {
    let (byte, rest) = match (bits, behind.split_first()) {
        (0, _) => (0, behind),
        (_, Some((byte, rest))) => (*byte, rest),
        (_, None) => return None,
    };
    inflate.resume(bits, byte, window).ok()?;
    let ran = inflate.run(rest, output, false).ok()?;
    let is_whole = ran.at == At::End || ran.produced == output.len();
    is_whole.then_some(ran.produced)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
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
            decode_reach(&mut inflate, window, within.bits, behind, &mut output).unwrap();
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
        let end = [&[0x03, 0x00][..], &[0; 100]].concat();
        let sparse = Tracer::default().sparse(within.window.clone(), 0, &end);
        assert!(sparse.iter().all(|b| *b == 0), "an empty last block");
    }
}
