//! FlatBuffers, as much as zTOCs need: tables read with every position checked, and written.
//!
//! Not the crate `flatbuffers`: what its compiler generates of a schema reads through unchecked
//! pointers once a verifier has walked the whole buffer, which is `unsafe` in this tree; for two
//! schemas of seven tables this is shorter. A position outside the buffer is an error where it is
//! followed. Nothing here recurses, so that no loop of positions can be endless.
//!
//! A table begins with the distance back to its vtable, which says where each field is; strings,
//! vectors and tables are referred to by the distance forward to them.

/// A buffer from outside.
#[derive(Clone, Copy)]
struct Buffer<'a>(&'a [u8]);

/// A table in a buffer.
#[derive(Clone, Copy)]
pub(super) struct Table<'a> {
    buffer: Buffer<'a>,
    at: usize,
    /// Distances of the fields from `at`, two bytes each; 0: the field is absent.
    vtable: &'a [u8],
}

/// References to tables or strings, one behind the other.
#[derive(Clone, Copy)]
pub(super) struct References<'a> {
    buffer: Buffer<'a>,
    at: usize,
    pub(super) count: usize,
}

type Result<T> = std::result::Result<T, String>;

/// Bytes of a reference, and of a count.
const WORD: usize = 4;

impl<'a> Buffer<'a> {
    fn bytes(self, at: usize, length: usize) -> Result<&'a [u8]> {
        let end = at.checked_add(length);
        end.and_then(|end| self.0.get(at..end)).ok_or_else(|| {
            format!("{length} bytes at {at} lie outside the {} that it has", self.0.len())
        })
    }

    fn array<const N: usize>(self, at: usize) -> Result<[u8; N]> {
        let bytes = self.bytes(at, N)?;
        bytes.try_into().map_err(|_| format!("{N} bytes at {at} are not there"))
    }

    fn length(self, at: usize) -> Result<usize> {
        Ok(u32::from_le_bytes(self.array(at)?) as usize)
    }

    /// What the reference at `at` leads to.
    fn follow(self, at: usize) -> Result<usize> {
        let distance = self.length(at)?;
        at.checked_add(distance).ok_or_else(|| format!("a reference at {at} leads nowhere"))
    }

    fn table(self, at: usize) -> Result<Table<'a>> {
        let back = i64::from(i32::from_le_bytes(self.array(at)?));
        let vtable = i64::try_from(at).ok().and_then(|at| usize::try_from(at - back).ok());
        let vtable = vtable.ok_or_else(|| format!("the table at {at} has its fields nowhere"))?;
        let bytes = usize::from(u16::from_le_bytes(self.array(vtable)?));
        let vtable = self.bytes(vtable, bytes)?;
        // Its own length and the table's.
        let vtable = vtable.get(WORD..).ok_or_else(|| format!("a vtable of {bytes} bytes"))?;
        Ok(Table { buffer: self, at, vtable })
    }

    fn string(self, at: usize) -> Result<&'a [u8]> {
        self.bytes(at + WORD, self.length(at)?)
    }
}

impl<'a> Table<'a> {
    /// The table that a whole buffer is.
    pub(super) fn root(bytes: &'a [u8]) -> Result<Self> {
        let buffer = Buffer(bytes);
        buffer.table(buffer.follow(0)?)
    }

    fn field(&self, slot: u16) -> Option<usize> {
        let at = usize::from(slot) * 2;
        let distance = self.vtable.get(at..at + 2)?.try_into().map(u16::from_le_bytes).ok()?;
        (distance != 0).then(|| self.at + usize::from(distance))
    }

    fn number<const N: usize>(&self, slot: u16) -> Result<[u8; N]> {
        self.field(slot).map_or(Ok([0; N]), |at| self.buffer.array(at))
    }

    pub(super) fn i64(&self, slot: u16) -> Result<i64> {
        self.number(slot).map(i64::from_le_bytes)
    }

    pub(super) fn i32(&self, slot: u16) -> Result<i32> {
        self.number(slot).map(i32::from_le_bytes)
    }

    pub(super) fn u32(&self, slot: u16) -> Result<u32> {
        self.number(slot).map(u32::from_le_bytes)
    }

    /// `None`: the schema's default.
    pub(super) fn i8(&self, slot: u16) -> Result<Option<i8>> {
        self.field(slot).map(|at| self.buffer.array(at).map(i8::from_le_bytes)).transpose()
    }

    /// A string, or a vector of bytes; empty if it is absent.
    pub(super) fn bytes(&self, slot: u16) -> Result<&'a [u8]> {
        let Some(at) = self.field(slot) else { return Ok(&[]) };
        self.buffer.string(self.buffer.follow(at)?)
    }

    pub(super) fn table(&self, slot: u16) -> Result<Option<Table<'a>>> {
        let Some(at) = self.field(slot) else { return Ok(None) };
        self.buffer.table(self.buffer.follow(at)?).map(Some)
    }

    /// A vector of tables or strings, which is there in full; empty if it is absent.
    pub(super) fn references(&self, slot: u16) -> Result<References<'a>> {
        let buffer = self.buffer;
        let Some(at) = self.field(slot) else { return Ok(References { buffer, at: 0, count: 0 }) };
        let at = buffer.follow(at)?;
        let count = buffer.length(at)?;
        let bytes = count.checked_mul(WORD).ok_or_else(|| format!("a vector of {count}"))?;
        buffer.bytes(at + WORD, bytes)?;
        Ok(References { buffer, at: at + WORD, count })
    }
}

impl<'a> References<'a> {
    fn positions(self) -> impl Iterator<Item = Result<usize>> {
        (0..self.count).map(move |n| self.buffer.follow(self.at + n * WORD))
    }

    pub(super) fn tables(self) -> impl Iterator<Item = Result<Table<'a>>> {
        self.positions().map(move |at| self.buffer.table(at?))
    }

    pub(super) fn strings(self) -> impl Iterator<Item = Result<&'a [u8]>> {
        self.positions().map(move |at| self.buffer.string(at?))
    }
}

/// A field of a table that is written.
#[derive(Clone, Copy)]
pub(super) enum Field {
    I64(i64),
    I32(i32),
    U32(u32),
    I8(i8),
    /// What it refers to is written behind the table, and then [`Builder::refer`]red to.
    Reference,
}

impl Field {
    fn size(self) -> usize {
        match self {
            Field::I64(_) => 8,
            Field::I32(_) | Field::U32(_) | Field::Reference => WORD,
            Field::I8(_) => 1,
        }
    }

    fn to_bytes(self) -> [u8; 8] {
        let mut bytes = [0; 8];
        match self {
            Field::I64(value) => bytes = value.to_le_bytes(),
            Field::I32(value) => bytes[..4].copy_from_slice(&value.to_le_bytes()),
            Field::U32(value) => bytes[..4].copy_from_slice(&value.to_le_bytes()),
            Field::I8(value) => bytes[..1].copy_from_slice(&value.to_le_bytes()),
            Field::Reference => {}
        }
        bytes
    }
}

/// Writes a buffer from its root on: references lead forward, so what is referred to comes later.
pub(super) struct Builder {
    bytes: Vec<u8>,
    /// The last vtable and where it is: tables of one kind share it.
    vtable: (Vec<u8>, usize),
}

/// Where a reference was left open.
#[derive(Clone, Copy)]
pub(super) struct Open(usize);

impl Builder {
    pub(super) fn new() -> (Self, Open) {
        (Builder { bytes: vec![0; WORD], vtable: (Vec::new(), 0) }, Open(0))
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Makes `open` refer to what is written next, which begins at a multiple of four, or four
    /// behind a multiple of eight.
    fn begin(&mut self, open: Open, before_eight: bool) -> usize {
        let mut at = self.bytes.len().next_multiple_of(WORD);
        if before_eight && at.is_multiple_of(8) {
            at += WORD;
        }
        self.bytes.resize(at, 0);
        // Whoever finishes the buffer keeps it below a limit that fits.
        let distance = (at - open.0) as u32;
        self.bytes[open.0..open.0 + WORD].copy_from_slice(&distance.to_le_bytes());
        at
    }

    /// Writes a table with these fields at these slots, and gives the `N` references left open in
    /// it, in the order of `fields`.
    pub(super) fn table<const N: usize>(
        &mut self,
        open: Open,
        fields: &[(u16, Field)],
    ) -> [Open; N] {
        // Large ones first, behind the four bytes that lead to the vtable: all are aligned then.
        let mut sorted: Vec<usize> = (0..fields.len()).collect();
        sorted.sort_by_key(|n| std::cmp::Reverse(fields[*n].1.size()));
        let mut inline = vec![0; WORD];
        let mut places = vec![0; fields.len()];
        for n in sorted {
            places[n] = inline.len();
            let field = fields[n].1;
            inline.extend_from_slice(&field.to_bytes()[..field.size()]);
        }
        let vtable = vtable_of(fields, &places, inline.len());
        if self.vtable.0 != vtable {
            self.bytes.resize(self.bytes.len().next_multiple_of(2), 0);
            self.vtable = (vtable, self.bytes.len());
            self.bytes.extend_from_slice(&self.vtable.0);
        }
        let has_large = fields.iter().any(|(_, field)| field.size() == 8);
        let at = self.begin(open, has_large);
        let back = (at - self.vtable.1) as i32;
        inline[..WORD].copy_from_slice(&back.to_le_bytes());
        self.bytes.extend_from_slice(&inline);
        let is_open = |n: &usize| matches!(fields[*n].1, Field::Reference);
        debug_assert_eq!((0..fields.len()).filter(is_open).count(), N);
        let mut open = (0..fields.len()).filter(is_open).map(|n| Open(at + places[n]));
        std::array::from_fn(|_| open.next().unwrap_or(Open(0)))
    }

    /// Writes a string, or a vector of bytes.
    pub(super) fn string(&mut self, open: Open, text: &[u8]) {
        self.begin(open, false);
        self.bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(text);
        self.bytes.push(0);
    }

    /// Writes a vector of references that are left open.
    pub(super) fn references(
        &mut self,
        open: Open,
        count: usize,
    ) -> impl Iterator<Item = Open> + use<> {
        let at = self.begin(open, false) + WORD;
        self.bytes.extend_from_slice(&(count as u32).to_le_bytes());
        self.bytes.resize(at + count * WORD, 0);
        (0..count).map(move |n| Open(at + n * WORD))
    }

    /// Makes `open` refer to what `other` refers to.
    #[cfg(test)]
    pub(super) fn share(&mut self, open: Open, other: Open) {
        if let Ok(target) = Buffer(&self.bytes).follow(other.0) {
            let distance = (target - open.0) as u32;
            self.bytes[open.0..open.0 + WORD].copy_from_slice(&distance.to_le_bytes());
        }
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

fn vtable_of(fields: &[(u16, Field)], places: &[usize], inline_bytes: usize) -> Vec<u8> {
    let slots = fields.iter().map(|(slot, _)| usize::from(*slot) + 1).max().unwrap_or(0);
    let mut words = vec![0u16; 2 + slots];
    words[0] = (words.len() * 2) as u16;
    words[1] = inline_bytes as u16;
    for ((slot, _), place) in fields.iter().zip(places) {
        words[2 + usize::from(*slot)] = *place as u16;
    }
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
