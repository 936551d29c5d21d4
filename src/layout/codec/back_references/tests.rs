//! Marks, against two decodings with windows that say where each of their bytes is.

use std::io::Write as _;

use proptest::prelude::*;

use super::*;
use crate::layout::codec::inflate::{At, Inflate};

/// What decoding says is needed of a window.
#[derive(Debug)]
enum Needed {
    /// These bytes.
    These(Vec<bool>),
    /// The input ends before this can be told.
    CutOff,
    /// It is no deflate stream, or refers to what is in front of the window.
    Refused,
}

/// Decodes at most `reach` bytes, without understanding references: with two windows whose bytes say
/// where they are. Where the outputs differ, a byte came of the window.
fn by_decoding(bits: u8, input: &[u8], window: usize, reach: usize) -> Needed {
    // The low half of a place, and the high half by how much more than the low one it says, which is
    // never nothing.
    let low: Vec<u8> = (0..window).map(|at| at as u8).collect();
    let high: Vec<u8> =
        (0..window).map(|at| (at as u8).wrapping_add(1 + (at >> 8) as u8)).collect();
    let mut inflate = Inflate::new().unwrap();
    let mut decode = |window: &[u8]| {
        let (byte, rest) = match (bits, input.split_first()) {
            (0, _) => (0, input),
            (_, Some((byte, rest))) => (*byte, rest),
            (_, None) => return Ok(None),
        };
        inflate.resume(bits, byte, window)?;
        let mut output = vec![0; reach];
        let ran = inflate.run(rest, &mut output, false)?;
        output.truncate(ran.produced);
        Ok::<_, String>((ran.at == At::End || ran.produced == reach).then_some(output))
    };
    let (low, high) = match (decode(&low), decode(&high)) {
        (Ok(Some(low)), Ok(Some(high))) => (low, high),
        (Ok(None), Ok(None)) => return Needed::CutOff,
        (low, high) => {
            assert_eq!(low, high, "they differ in what they refer to alone");
            return Needed::Refused;
        }
    };
    let mut needed = vec![false; window];
    for (low, high) in low.iter().zip(&high).filter(|(low, high)| low != high) {
        let page = high.wrapping_sub(*low).wrapping_sub(1);
        needed[usize::from(page) << 8 | usize::from(*low)] = true;
    }
    Needed::These(needed)
}

/// Marks of a window of so many bytes, having checked them.
fn checked(
    references: &mut BackReferences,
    bits: u8,
    input: &[u8],
    window: usize,
) -> Option<Vec<bool>> {
    let mut marks = vec![false; window];
    let marks = references.mark(bits, input, &mut marks).map(|()| marks);
    match (by_decoding(bits, input, window, WINDOW_BYTES_MAX), &marks) {
        (Needed::These(needed), Some(marks)) => assert!(needed == *marks, "other bytes"),
        (Needed::CutOff | Needed::Refused, None) => {}
        // With all of its output zlib reads one symbol more, and that is wrong. It is not with one
        // byte less of output.
        (Needed::Refused, Some(marks)) => {
            match by_decoding(bits, input, window, WINDOW_BYTES_MAX - 1) {
                Needed::These(needed) => {
                    assert!(needed.iter().zip(marks).all(|(needed, marked)| marked >= needed));
                    let count = |all: &[bool]| all.iter().filter(|is| **is).count();
                    assert!(count(marks) <= count(&needed) + 1, "that of the last byte");
                }
                other => panic!("{other:?}, and marks"),
            }
        }
        (other, None) => panic!("{other:?}, and no marks"),
        (other, Some(_)) => panic!("{other:?}, and marks"),
    }
    marks
}

/// Bytes of many kinds, one after another.
fn content(kinds: &[(u8, u16)], seed: u32) -> Vec<u8> {
    let (mut state, mut bytes) = (seed, Vec::new());
    let mut random = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    for (kind, len) in kinds {
        let len = usize::from(*len);
        match kind % 6 {
            0 => bytes.extend((0..len).map(|_| random() as u8)),
            1 => bytes.extend(std::iter::repeat_n(random() as u8, len)),
            2 => bytes
                .extend((0..len / 4).flat_map(|_| format!("{:x} ", random() % 509).into_bytes())),
            3 => bytes.extend((0..len / 4).flat_map(|n| (n as u32 * 24).to_le_bytes())),
            // Few symbols, with codes from short to long.
            4 => bytes.extend((0..len).map(|_| random().trailing_zeros() as u8)),
            _ => {
                let from = bytes.len().saturating_sub(1 + random() as usize % 32_768);
                let again: Vec<u8> = bytes[from..]
                    .iter()
                    .copied()
                    .cycle()
                    .take(if from < bytes.len() { len } else { 0 })
                    .collect();
                bytes.extend(again);
            }
        }
    }
    bytes
}

fn deflate(content: &[u8], level: u32) -> Vec<u8> {
    let compression = flate2::Compression::new(level);
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), compression);
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// The places between two blocks: where in the blob, with how many bits of the byte there, and how
/// much output is in front.
fn between_blocks(blob: &[u8]) -> Vec<(usize, u8, usize)> {
    let mut inflate = Inflate::new().unwrap();
    let (mut places, mut at, mut before) = (Vec::new(), 0, 0);
    let mut output = vec![0; 1 << 20];
    loop {
        let ran = inflate.run(&blob[at..], &mut output, true).unwrap();
        at += ran.consumed;
        before += ran.produced;
        match ran.at {
            At::Boundary { bits } => places.push((at - usize::from(bits > 0), bits, before)),
            At::End => return places,
            At::Within => assert!(ran.consumed > 0 || ran.produced > 0),
        }
    }
}

proptest! {
    #[test]
    fn marks_are_what_decoding_twice_says(
        kinds in prop::collection::vec((any::<u8>(), 1u16..20_000), 1..14),
        seed in any::<u32>(),
        level in 0u32..=9,
        cut in 0usize..40_000,
        flips in prop::collection::vec((0usize..40_000, 0u8..8), 1..4),
        window in 0usize..WINDOW_BYTES_MAX,
    ) {
        let content = content(&kinds, seed);
        let blob = deflate(&content, level);
        let mut references = BackReferences::new();
        for (at, bits, before) in [(0, 0, 0)].into_iter().chain(between_blocks(&blob)) {
            let behind = &blob[at..];
            let whole = before.min(WINDOW_BYTES_MAX);
            prop_assert!(checked(&mut references, bits, behind, whole).is_some());
            // Cut off, entered with other bits, with a smaller window, and with wrong bits.
            checked(&mut references, bits, &behind[..cut.min(behind.len())], whole);
            checked(&mut references, (bits + 1) % 8, behind, whole);
            checked(&mut references, bits, behind, window.min(whole));
            let mut wrong = behind.to_vec();
            for (byte, bit) in &flips {
                let byte = byte % wrong.len();
                wrong[byte] ^= 1 << bit;
                checked(&mut references, bits, &wrong, whole);
            }
        }
    }

    /// Most of them are refused early, and some are fixed blocks that go far.
    #[test]
    fn bytes_of_any_kind_are_read_as_zlib_reads_them(
        bits in 0u8..8,
        head in prop::collection::vec(any::<u8>(), 0..300),
        tail in 0usize..40_000,
        filler in any::<u8>(),
        window in 0..=WINDOW_BYTES_MAX,
    ) {
        let input = [head, vec![filler; tail]].concat();
        checked(&mut BackReferences::new(), bits, &input, window);
    }
}
