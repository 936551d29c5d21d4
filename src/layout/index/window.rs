//! Windows: the output in front of a place between two blocks, to which the blocks behind it refer.
//!
//! Most bytes of a window are never referred to; they are zeros in ours, which compress to nothing.
//! A wrong window would make wrong content of right bytes: whoever keeps windows proves them.

use crate::layout::codec::inflate::{At, Inflate, WINDOW_BYTES_MAX};

/// Windows are packed once, on a thread that waits for the inflater, and kept for ever.
const ZSTD_LEVEL: i32 = 6;

/// Windows whose bytes say where they are: the low half of that, the high half, and that inverted.
static LOW: [u8; WINDOW_BYTES_MAX] = tracer(0, 0);
static HIGH: [u8; WINDOW_BYTES_MAX] = tracer(8, 0);
static INVERTED: [u8; WINDOW_BYTES_MAX] = tracer(8, 0xff);

const fn tracer(shift: u32, inverted: u8) -> [u8; WINDOW_BYTES_MAX] {
    let mut bytes = [0; WINDOW_BYTES_MAX];
    let mut at = 0;
    while at < bytes.len() {
        bytes[at] = (at >> shift) as u8 ^ inverted;
        at += 1;
    }
    bytes
}

/// The window as it is stored: one zstd frame (RFC 8878).
pub fn pack(window: &[u8]) -> Vec<u8> {
    // Compressing into memory of our own cannot fail; no window would be found when it is used.
    zstd::bulk::compress(window, ZSTD_LEVEL).unwrap_or_default()
}

/// The window that [`pack`] stored.
///
/// # Errors
/// It is no zstd frame, or larger than any window.
pub fn unpack(stored: &[u8]) -> Result<Vec<u8>, String> {
    zstd::bulk::decompress(stored, WINDOW_BYTES_MAX).map_err(|e| format!("a window: {e}"))
}

/// The window with zeros for all bytes that nothing behind it refers to. `bits` and `behind` are
/// where decoding starts, as in [`Inflate::resume`]: the first of those bytes has the bits. Where
/// `behind` ends before the last reference may come, the whole window is kept.
///
/// References are followed without understanding them: what is behind is decoded three times with
/// windows that say where each of their bytes is. Its low half, its high half, and that one
/// inverted: where the last two decodings differ a byte came of the window.
pub fn sparse(window: &[u8], bits: u8, behind: &[u8]) -> Vec<u8> {
    let decoded = |tracer: &[u8; WINDOW_BYTES_MAX]| {
        tracer.get(..window.len()).and_then(|tracer| decode_reach(tracer, bits, behind))
    };
    let [low, high, inverted] = [&LOW, &HIGH, &INVERTED].map(decoded);
    let (Some(low), Some(high), Some(inverted)) = (low, high, inverted) else {
        return window.to_vec();
    };
    let mut kept = vec![0; window.len()];
    for ((low, high), inverted) in low.iter().zip(&high).zip(&inverted) {
        if high != inverted {
            let at = usize::from(*high) << 8 | usize::from(*low);
            // Both are of the same place of the window, which is inside.
            if let (Some(kept), Some(byte)) = (kept.get_mut(at), window.get(at)) {
                *kept = *byte;
            }
        }
    }
    kept
}

/// Decodes as far as a window reaches, or to the end of the stream; `None` if `behind` ends first.
fn decode_reach(window: &[u8], bits: u8, behind: &[u8]) -> Option<Vec<u8>> {
    let (byte, rest) = match (bits, behind.split_first()) {
        (0, _) => (0, behind),
        (_, Some((byte, rest))) => (*byte, rest),
        (_, None) => return None,
    };
    let mut inflate = Inflate::new().ok()?;
    inflate.resume(bits, byte, window).ok()?;
    let mut output = vec![0; WINDOW_BYTES_MAX];
    let ran = inflate.run(rest, &mut output, false).ok()?;
    let is_whole = ran.at == At::End || ran.produced == output.len();
    output.truncate(ran.produced);
    is_whole.then_some(output)
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
        let stored = pack(&window);
        assert_eq!(unpack(&stored), Ok(window));
        assert_eq!(unpack(&pack(&[])), Ok(vec![]));
        assert!(unpack(&stored[..stored.len() - 1]).is_err());
        assert!(unpack(&pack(&[7; WINDOW_BYTES_MAX + 1])).is_err());
    }

    #[test]
    fn bytes_that_nothing_refers_to_are_zeros_and_decoding_is_the_same() {
        let content = content();
        let (blob, start) = started(&content);
        let within = start.within.expect("between two blocks");
        let (at, behind) = (start.tar as usize, &blob[start.blob as usize..]);
        assert_eq!(within.window, content[at - WINDOW_BYTES_MAX..at]);
        let sparse = sparse(&within.window, within.bits, behind);
        assert!(sparse != within.window, "much of it is not referred to");
        let decoded = decode_reach(&sparse, within.bits, behind).unwrap();
        assert_eq!(decoded, content[at..at + WINDOW_BYTES_MAX]);
        let zeros = decode_reach(&vec![0; WINDOW_BYTES_MAX], within.bits, behind);
        assert_ne!(zeros, Some(decoded), "something is referred to");
    }

    #[test]
    fn a_window_is_kept_whole_where_it_cannot_be_known() {
        let (blob, start) = started(&content());
        let within = start.within.expect("between two blocks");
        let behind = &blob[start.blob as usize..];
        let kept = |bytes: &[u8]| sparse(&within.window, within.bits, bytes) == within.window;
        assert!(kept(&behind[..100]) && kept(&[]));
        assert!(kept(&[0xff; 50_000]), "not a deflate stream");
        let end = [&[0x03, 0x00][..], &[0; 100]].concat();
        assert!(sparse(&within.window, 0, &end).iter().all(|b| *b == 0), "an empty last block");
    }
}
