//! What deflate (RFC 1951) refers back to, read without decoding it: lengths and distances alone.
//!
//! It refuses what zlib refuses, and so never says less than what decoding would need.

#[cfg(test)]
mod tests;

use super::inflate::WINDOW_BYTES_MAX;

/// Codes are at most so long (RFC 1951, 3.2.7), and those of the lengths of codes 7 bits.
const CODE_BITS_MAX: usize = 15;

/// Bits that are looked up at once. Longer codes are rare, and take a loop.
const LITERAL_BITS: u32 = 10;
const DISTANCE_BITS: u32 = 8;
const LENGTH_BITS: u32 = 7;

/// Symbols of an alphabet, with those that only the fixed codes have, and nobody may use.
const LITERALS: usize = 288;
const DISTANCES: usize = 32;
const LENGTHS: usize = 19;

/// Symbols that a block may give a code of its own.
const LITERALS_MAX: usize = 286;
const DISTANCES_MAX: usize = 30;

const END_OF_BLOCK: usize = 256;

/// The order in which the lengths of the codes of lengths come (RFC 1951, 3.2.7).
const LENGTHS_ORDER: [usize; LENGTHS] =
    [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// What a code stands for. From the lowest bit: how many bits it takes with those that follow it
/// (8), how many without (8), and the least value that it means (15), or one of these.
type Entry = u32;

const VALUE_SHIFT: u32 = 16;
const LITERAL: Entry = 1 << 30;
const SPECIAL: Entry = 1 << 31;
const END: Entry = SPECIAL;
const INVALID: Entry = SPECIAL | 1 << VALUE_SHIFT;
const LONG: Entry = SPECIAL | 2 << VALUE_SHIFT;

/// The entries of symbols, but for the length of their codes.
static LITERAL_ENTRIES: [Entry; LITERALS] = literal_entries();
static DISTANCE_ENTRIES: [Entry; DISTANCES] = distance_entries();
static LENGTH_ENTRIES: [Entry; LENGTHS] = length_entries();

const fn literal_entries() -> [Entry; LITERALS] {
    let mut entries = [LITERAL; LITERALS];
    entries[END_OF_BLOCK] = END;
    let (mut symbol, mut length) = (END_OF_BLOCK + 1, 3);
    while symbol < LITERALS_MAX - 1 {
        let step = symbol as u32 - 257;
        let extra = if step < 8 { 0 } else { step / 4 - 1 };
        entries[symbol] = length << VALUE_SHIFT | extra;
        length += 1 << extra;
        symbol += 1;
    }
    entries[symbol] = 258 << VALUE_SHIFT;
    (entries[286], entries[287]) = (INVALID, INVALID);
    entries
}

const fn distance_entries() -> [Entry; DISTANCES] {
    let mut entries = [INVALID; DISTANCES];
    let (mut symbol, mut distance) = (0, 1);
    while symbol < DISTANCES_MAX {
        let extra = if symbol < 4 { 0 } else { symbol as u32 / 2 - 1 };
        entries[symbol] = distance << VALUE_SHIFT | extra;
        distance += 1 << extra;
        symbol += 1;
    }
    entries
}

const fn length_entries() -> [Entry; LENGTHS] {
    let mut entries = [0; LENGTHS];
    let mut symbol = 0;
    while symbol < LENGTHS {
        entries[symbol] = (symbol as u32) << VALUE_SHIFT;
        symbol += 1;
    }
    entries
}

/// Input as bits: the lowest bit of a byte comes first.
#[derive(Clone, Copy)]
struct Bits<'a> {
    /// The next ones. Above `count` of them are zeros, or the same that `rest` begins with.
    next: u64,
    /// Negative: more were taken than there are.
    count: i32,
    rest: &'a [u8],
}

impl Bits<'_> {
    /// Afterwards there are at least 56 bits, or all of them. The count must not be negative.
    #[inline(always)]
    fn refill(&mut self) {
        if let Some(bytes) = self.rest.first_chunk() {
            self.next |= u64::from_le_bytes(*bytes) << self.count;
            let whole = (63 - self.count) >> 3;
            self.rest = &self.rest[whole as usize..];
            self.count += whole << 3;
        } else {
            *self = self.refilled_bytewise();
        }
    }

    /// Not in place: what somebody else is given a reference to is no longer in registers.
    #[cold]
    fn refilled_bytewise(mut self) -> Self {
        while let (true, Some((byte, rest))) = (self.count < 56, self.rest.split_first()) {
            self.next |= u64::from(*byte) << self.count;
            self.count += 8;
            self.rest = rest;
        }
        self
    }

    #[inline(always)]
    fn skip(&mut self, bits: u32) {
        self.next >>= bits;
        self.count -= bits as i32;
    }

    #[inline(always)]
    fn take(&mut self, bits: u32) -> u32 {
        let taken = self.next & ((1 << bits) - 1);
        self.skip(bits);
        taken as u32
    }

    /// Passes what an entry stands for, and gives its value.
    #[inline(always)]
    fn pass(&mut self, entry: Entry) -> usize {
        let (all, code) = (entry & 0xff, entry >> 8 & 0xff);
        let extra = (self.next & ((1 << all) - 1)) >> code;
        self.skip(all);
        (entry >> VALUE_SHIFT & 0x7fff) as usize + extra as usize
    }

    /// `None`: more was taken than there was.
    #[inline(always)]
    fn check(&self) -> Option<()> {
        (self.count >= 0).then_some(())
    }

    /// Passes whole bytes, after some that were whole ones too.
    fn skip_bytes(&mut self, bytes: usize) -> Option<()> {
        let held = bytes.min(self.count as usize / 8);
        self.skip(held as u32 * 8);
        if bytes > held {
            self.next = 0;
            self.rest = self.rest.get(bytes - held..)?;
        }
        Some(())
    }
}

/// One Huffman code: `SIZE` places for what begins with each of as many bits.
struct Code<const SIZE: usize> {
    table: [Entry; SIZE],
    /// Entries of symbols by code, for codes too long for the table.
    sorted: [Entry; LITERALS],
    /// How many codes there are of each length.
    counts: [u16; CODE_BITS_MAX + 1],
}

impl<const SIZE: usize> Code<SIZE> {
    const BITS: usize = SIZE.ilog2() as usize;

    const fn new() -> Self {
        Code { table: [INVALID; SIZE], sorted: [0; LITERALS], counts: [0; CODE_BITS_MAX + 1] }
    }

    /// Takes the lengths of the codes of all symbols. As with zlib, there may be codes to spare
    /// where `is_spare_allowed` and no code is longer than a bit. `None`: these are no code.
    fn set(&mut self, lengths: &[u8], entries: &[Entry], is_spare_allowed: bool) -> Option<()> {
        self.counts = [0; CODE_BITS_MAX + 1];
        for length in lengths {
            self.counts[usize::from(*length)] += 1;
        }
        self.counts[0] = 0;
        let (mut offsets, mut offset, mut space) = ([0; CODE_BITS_MAX + 1], 0, 0);
        for (length, count) in self.counts.iter().enumerate().skip(1) {
            offsets[length] = offset;
            offset += count;
            space += u32::from(*count) << (CODE_BITS_MAX - length);
        }
        for (length, entry) in lengths.iter().zip(entries) {
            if *length > 0 {
                let offset = &mut offsets[usize::from(*length)];
                self.sorted[usize::from(*offset)] = entry + 0x101 * u32::from(*length);
                *offset += 1;
            }
        }
        if space == 1 << CODE_BITS_MAX {
            self.fill();
            return Some(());
        }
        let is_spare = offset == self.counts[1] && offset < 2;
        if !(is_spare && is_spare_allowed) {
            return None;
        }
        self.table = [INVALID; SIZE];
        if offset == 1 {
            self.table.iter_mut().step_by(2).for_each(|entry| *entry = self.sorted[0]);
        }
        Some(())
    }

    /// Fills the table for codes that leave none to spare. Codes come with their first bit lowest.
    fn fill(&mut self) {
        let (mut code, mut symbol) = (0usize, 0);
        for length in 1..=CODE_BITS_MAX {
            if length <= Self::BITS {
                // Every entry holds for whatever bit follows; what is no code yet becomes one.
                let half = 1 << (length - 1);
                self.table.copy_within(..half, half);
            }
            for _ in 0..self.counts[length] {
                let is_long = length > Self::BITS;
                self.table[code % SIZE] = if is_long { LONG } else { self.sorted[symbol] };
                symbol += 1;
                code = next_code(code, length);
            }
        }
    }

    #[inline(always)]
    fn get(&self, bits: &Bits<'_>) -> Entry {
        let entry = self.table[bits.next as usize % SIZE];
        if entry == LONG { self.get_long(bits.next) } else { entry }
    }

    #[cold]
    fn get_long(&self, mut bits: u64) -> Entry {
        // Among the codes of one length, how far behind the first of them these bits are.
        let (mut behind, mut before) = (0u32, 0);
        for count in self.counts[1..].iter().map(|count| u32::from(*count)) {
            behind = behind << 1 | (bits & 1) as u32;
            bits >>= 1;
            if behind < count {
                return self.sorted[(before + behind) as usize];
            }
            behind -= count;
            before += count;
        }
        INVALID
    }
}

/// The code behind `code` of the same length: one more, with the first bit lowest. That of the next
/// length is the same with a zero behind it.
fn next_code(code: usize, length: usize) -> usize {
    let free = !code & ((1 << length) - 1);
    match free.checked_ilog2() {
        Some(highest) => code & ((1 << highest) - 1) | 1 << highest,
        None => 0,
    }
}

/// The two codes of a block.
struct Codes {
    literals: Code<{ 1 << LITERAL_BITS }>,
    distances: Code<{ 1 << DISTANCE_BITS }>,
}

impl Codes {
    const fn new() -> Self {
        Codes { literals: Code::new(), distances: Code::new() }
    }

    fn set(&mut self, literals: &[u8], distances: &[u8]) -> Option<()> {
        self.literals.set(literals, &LITERAL_ENTRIES, true)?;
        self.distances.set(distances, &DISTANCE_ENTRIES, true)
    }
}

/// Finds out what deflate refers back to, in memory that is kept from one time to the next.
pub(in crate::layout) struct BackReferences {
    fixed: Codes,
    own: Codes,
    lengths: Code<{ 1 << LENGTH_BITS }>,
}

impl BackReferences {
    pub(in crate::layout) fn new() -> Self {
        let mut fixed = Codes::new();
        let mut literals = [8; LITERALS];
        literals[144..256].fill(9);
        literals[256..280].fill(7);
        // It cannot fail; and there is no code that is not valid, if it did.
        let _ = fixed.set(&literals, &[5; DISTANCES]);
        BackReferences { fixed, own: Codes::new(), lengths: Code::new() }
    }

    /// Marks each byte of a window that the first [`WINDOW_BYTES_MAX`] of output refer to, or all up
    /// to the end of the stream. `is_needed` has a place for each byte of the window, and the output
    /// comes behind it; `bits` and `input` are where decoding starts: the highest `bits` (0 to 7) of
    /// the first byte, or with 0 all of it.
    ///
    /// `None`: the input ends before, it is no deflate stream, or refers to what is in front of the
    /// window. The marks mean nothing then.
    pub(in crate::layout) fn mark(
        &mut self,
        bits: u8,
        input: &[u8],
        is_needed: &mut [bool],
    ) -> Option<()> {
        let (next, rest) = match (bits, input.split_first()) {
            (0, _) => (0, input),
            (1..8, Some((byte, rest))) => (u64::from(byte >> (8 - bits)), rest),
            _ => return None,
        };
        let mut bits = Bits { next, count: bits.into(), rest };
        let mut at = 0;
        loop {
            bits.refill();
            let is_last = bits.take(1) == 1;
            let kind = bits.take(2);
            // Whatever reads refills first, and only what is not negative can be.
            bits.check()?;
            match kind {
                0 => at = stored(&mut bits, at)?,
                1 => (bits, at) = coded(bits, &self.fixed, at, is_needed)?,
                2 => {
                    self.read_codes(&mut bits)?;
                    (bits, at) = coded(bits, &self.own, at, is_needed)?;
                }
                _ => return None,
            }
            if is_last || at >= WINDOW_BYTES_MAX {
                return Some(());
            }
        }
    }

    /// The codes in front of a block that has its own (RFC 1951, 3.2.7).
    fn read_codes(&mut self, bits: &mut Bits<'_>) -> Option<()> {
        bits.refill();
        let literals = bits.take(5) as usize + 257;
        let distances = bits.take(5) as usize + 1;
        let count = bits.take(4) as usize + 4;
        if literals > LITERALS_MAX || distances > DISTANCES_MAX {
            return None;
        }
        let mut of_lengths = [0; LENGTHS];
        for symbol in &LENGTHS_ORDER[..count] {
            bits.check()?;
            bits.refill();
            of_lengths[*symbol] = bits.take(3) as u8;
        }
        bits.check()?;
        self.lengths.set(&of_lengths, &LENGTH_ENTRIES, false)?;
        let (mut lengths, mut at) = ([0u8; LITERALS_MAX + DISTANCES_MAX], 0);
        let lengths = &mut lengths[..literals + distances];
        while at < lengths.len() {
            bits.refill();
            let (length, times) = match bits.pass(self.lengths.get(bits)) {
                16 => (*lengths.get(at.checked_sub(1)?)?, 3 + bits.take(2)),
                17 => (0, 3 + bits.take(3)),
                18 => (0, 11 + bits.take(7)),
                length => (length as u8, 1),
            };
            bits.check()?;
            lengths.get_mut(at..at + times as usize)?.fill(length);
            at += times as usize;
        }
        if lengths[END_OF_BLOCK] == 0 {
            return None;
        }
        let (literals, distances) = lengths.split_at(literals);
        self.own.set(literals, distances)
    }
}

/// Passes a stored block, and gives the place in the output behind it.
fn stored(bits: &mut Bits<'_>, at: usize) -> Option<usize> {
    bits.skip(bits.count as u32 % 8);
    let (length, complement) = (bits.take(16), bits.take(16));
    bits.check()?;
    if length ^ complement != 0xffff {
        return None;
    }
    let length = (length as usize).min(WINDOW_BYTES_MAX - at);
    bits.skip_bytes(length)?;
    Some(at + length)
}

/// Reads a block behind its codes, as far as a window reaches; gives what is behind that, and its
/// place in the output.
fn coded<'a>(
    // Not a reference: all of it is in registers.
    mut bits: Bits<'a>,
    codes: &Codes,
    mut at: usize,
    is_needed: &mut [bool],
) -> Option<(Bits<'a>, usize)> {
    while at < WINDOW_BYTES_MAX {
        // A length and a distance take at most 15 + 5 + 15 + 13 bits.
        bits.refill();
        let entry = codes.literals.get(&bits);
        if entry & LITERAL != 0 {
            bits.skip(entry & 0xff);
            bits.check()?;
            at += 1;
            continue;
        }
        if entry & SPECIAL != 0 {
            bits.skip(entry & 0xff);
            bits.check()?;
            return (entry & INVALID == END).then_some((bits, at));
        }
        let length = bits.pass(entry);
        let entry = codes.distances.get(&bits);
        if entry & SPECIAL != 0 {
            return None;
        }
        let distance = bits.pass(entry);
        bits.check()?;
        if let Some(back) = distance.checked_sub(at).filter(|back| *back > 0) {
            let from = is_needed.len().checked_sub(back)?;
            is_needed[from..from + length.min(back)].fill(true);
        }
        at += length;
    }
    Some((bits, at))
}
