//! GNU and PAX sparse files: maps to chunks.
//!
//! GNU tar manual, "Storing Sparse Files": the old format keeps the map in the header and in
//! records behind it, PAX 0.0 and 0.1 in records, PAX 1.0 as text in front of the content.

use super::entry::Chunk;
use super::pax::{PaxRecords, decimal};
use super::range::ByteRange;
use super::tar::header::number;
use super::tar::path::quoted;

/// Most pieces of one sparse file: 6 MiB as chunks, far beyond any file in an image.
pub const SPARSE_CHUNKS_MAX: usize = 1 << 18;

/// A map entry of the old format: two numbers of twelve bytes.
const MAP_ENTRY_BYTES: usize = 24;

/// Digits of the largest u64: a longer number in a map is no number.
const DIGITS_MAX: usize = 20;

/// Which pieces of a file are stored, in ascending order. What lies between them is zeros.
#[derive(Debug, Default)]
pub(crate) struct SparseMap {
    /// Not empty, not adjacent.
    pieces: Vec<ByteRange>,
    /// Where the last piece ends, empty pieces included.
    end: u64,
}

impl SparseMap {
    /// Adds a piece. Empty pieces only mark the end of the file.
    fn add(&mut self, offset: u64, len: u64) -> Result<(), String> {
        let end = offset.checked_add(len).filter(|end| *end <= i64::MAX as u64);
        let Some(end) = end.filter(|_| offset >= self.end) else {
            return Err(format!(
                "invalid sparse map: a piece of {len} bytes at {offset} behind one that ends at {}",
                self.end
            ));
        };
        self.end = end;
        let is_full = self.pieces.len() == SPARSE_CHUNKS_MAX;
        match self.pieces.last_mut() {
            _ if len == 0 => {}
            Some(last) if last.end == offset => last.end = end,
            _ if is_full => {
                return Err(format!("a sparse map of more than {SPARSE_CHUNKS_MAX} pieces"));
            }
            _ => self.pieces.push(ByteRange::new(offset, end)),
        }
        Ok(())
    }

    /// Adds the map entries of an old GNU header, or of one that continues it.
    pub(crate) fn add_old_gnu(&mut self, fields: &[u8]) -> Result<(), String> {
        for entry in fields.chunks_exact(MAP_ENTRY_BYTES).take_while(|entry| entry[0] != 0) {
            let field = |bytes| number(bytes).and_then(|n: i64| u64::try_from(n).ok());
            let (Some(offset), Some(len)) = (field(&entry[..12]), field(&entry[12..])) else {
                return Err(format!("invalid sparse map entry {}", quoted(entry)));
            };
            self.add(offset, len)?;
        }
        Ok(())
    }

    /// The map of PAX 0.0 (repeated records) or 0.1 (one record).
    fn from_records(records: &PaxRecords) -> Result<Self, String> {
        let mut map = SparseMap::default();
        let numbers = match records.get(b"GNU.sparse.map") {
            Some(list) => list
                .split(|b| *b == b',')
                .map(|n| decimal(n).ok_or_else(|| format!("invalid GNU.sparse.map {}", quoted(n))))
                .collect::<Result<_, _>>()?,
            None => records.sparse_numbers.clone(),
        };
        let pairs = numbers.chunks_exact(2);
        let expected = records.number("GNU.sparse.numblocks")?.unwrap_or(pairs.len() as u64);
        if !pairs.remainder().is_empty() || pairs.len() as u64 != expected {
            return Err(format!(
                "sparse map: expected {expected} pairs of numbers, got {} numbers",
                numbers.len()
            ));
        }
        for pair in pairs {
            map.add(pair[0], pair[1])?;
        }
        Ok(map)
    }

    /// The chunks of a file of `size` bytes whose pieces are stored in `tar` and fill it.
    pub(crate) fn into_chunks(self, size: u64, tar: ByteRange) -> Result<Vec<Chunk>, String> {
        if self.end > size {
            return Err(format!("the sparse map ends at {}, the file at {size}", self.end));
        }
        let mapped: u64 = self.pieces.iter().map(ByteRange::len).sum();
        if mapped != tar.len() {
            return Err(format!("the sparse map has {mapped} bytes, the member {}", tar.len()));
        }
        let mut at = tar.start;
        let chunk = |piece: &ByteRange| {
            let tar = ByteRange::at(at, piece.len());
            at = tar.end;
            Chunk { file_offset: piece.start, tar }
        };
        Ok(self.pieces.iter().map(chunk).collect())
    }
}

/// What PAX records say about a sparse file.
pub(crate) enum PaxSparse {
    /// 0.0 or 0.1: the map is complete.
    Mapped(SparseMap),
    /// 1.0: the map stands in front of the content.
    InPayload,
}

impl PaxSparse {
    /// `None`: not a sparse file.
    pub(crate) fn of(records: &PaxRecords) -> Result<Option<Self>, String> {
        let version = (records.get(b"GNU.sparse.major"), records.get(b"GNU.sparse.minor"));
        match version {
            (Some(b"1"), Some(b"0")) => Ok(Some(PaxSparse::InPayload)),
            (Some(b"0"), Some(b"0" | b"1")) => {
                SparseMap::from_records(records).map(|map| Some(PaxSparse::Mapped(map)))
            }
            (None, None) => {
                // Neither 0.0 nor 0.1 as GNU tar writes them name their version.
                let is_sparse = records.get(b"GNU.sparse.map").is_some()
                    || records.get(b"GNU.sparse.numblocks").is_some()
                    || !records.sparse_numbers.is_empty();
                if !is_sparse {
                    return Ok(None);
                }
                SparseMap::from_records(records).map(|map| Some(PaxSparse::Mapped(map)))
            }
            (major, minor) => Err(format!(
                "GNU sparse format {}.{} is not supported: 0.0, 0.1 and 1.0 are",
                major.unwrap_or_default().escape_ascii(),
                minor.unwrap_or_default().escape_ascii()
            )),
        }
    }
}

/// The map of PAX 1.0 while its records arrive: a count and as many pairs, a number a line.
#[derive(Debug, Default)]
pub(crate) struct MapText {
    map: SparseMap,
    /// Digits of the number that is not complete yet.
    digits: Vec<u8>,
    pairs_left: Option<u64>,
    offset: Option<u64>,
}

impl MapText {
    /// Reads one record. `true`: the map is complete, and the content begins behind this record.
    pub(crate) fn add_record(&mut self, record: &[u8]) -> Result<bool, String> {
        for &byte in record {
            if byte != b'\n' {
                if self.digits.len() == DIGITS_MAX {
                    return Err(format!("invalid number in sparse map: {}", quoted(&self.digits)));
                }
                self.digits.push(byte);
            } else if self.end_line()? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn end_line(&mut self) -> Result<bool, String> {
        let number = decimal(&self.digits)
            .ok_or_else(|| format!("invalid number in sparse map: {}", quoted(&self.digits)))?;
        self.digits.clear();
        let left = match (self.pairs_left, self.offset.take()) {
            (None, _) => number,
            (Some(left), None) => {
                self.offset = Some(number);
                left
            }
            (Some(left), Some(offset)) => {
                self.map.add(offset, number)?;
                left - 1
            }
        };
        self.pairs_left = Some(left);
        Ok(left == 0)
    }

    /// The map, once it is complete.
    pub(crate) fn into_map(self) -> SparseMap {
        self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pieces: &[(u64, u64)]) -> Result<SparseMap, String> {
        let mut map = SparseMap::default();
        for &(offset, len) in pieces {
            map.add(offset, len)?;
        }
        Ok(map)
    }

    #[test]
    fn pieces_follow_each_other_in_the_archive_and_touching_ones_are_one() {
        let chunks = map(&[(0, 10), (10, 5), (100, 1), (200, 0)]).unwrap();
        let chunks = chunks.into_chunks(200, ByteRange::new(512, 528)).unwrap();
        let chunk =
            |file_offset, start, end| Chunk { file_offset, tar: ByteRange::new(start, end) };
        assert_eq!(chunks, [chunk(0, 512, 527), chunk(100, 527, 528)]);
    }

    #[test]
    fn maps_that_overlap_go_back_or_leave_the_file_are_refused() {
        assert!(map(&[(0, 10), (9, 5)]).is_err());
        assert!(map(&[(10, 5), (0, 1)]).is_err());
        assert!(map(&[(10, 0), (0, 1)]).is_err());
        assert!(map(&[(u64::MAX, 1)]).is_err());
        assert!(map(&[(i64::MAX as u64, 1)]).is_err());
        assert!(map(&[(i64::MAX as u64 - 1, 1)]).is_ok());
        let tar = ByteRange::new(0, 10);
        assert!(map(&[(0, 10)]).unwrap().into_chunks(9, tar).is_err());
        assert!(map(&[(0, 10), (11, 0)]).unwrap().into_chunks(10, tar).is_err());
        assert!(map(&[(0, 9)]).unwrap().into_chunks(10, tar).is_err());
        assert!(map(&[(0, 11)]).unwrap().into_chunks(11, tar).is_err());
    }

    fn of_records(records: &str) -> Result<Option<Vec<(u64, u64)>>, String> {
        let record = |text: &str| {
            let len = text.len() + 4;
            assert!((10..100).contains(&len));
            format!("{len} {text}\n")
        };
        let payload: String = records.split_whitespace().map(record).collect();
        Ok(match PaxSparse::of(&PaxRecords::parse(payload.as_bytes())?)? {
            Some(PaxSparse::Mapped(map)) => {
                Some(map.pieces.iter().map(|piece| (piece.start, piece.len())).collect())
            }
            Some(PaxSparse::InPayload) => return Err("in the payload".into()),
            None => None,
        })
    }

    #[test]
    fn records_have_a_whole_map_or_say_that_it_is_in_the_payload() {
        let expected = Ok(Some(vec![(0, 5), (100, 7)]));
        let numbers = "GNU.sparse.offset=0 GNU.sparse.numbytes=5 \
                       GNU.sparse.offset=100 GNU.sparse.numbytes=7";
        let list = "GNU.sparse.map=0,5,100,7";
        let version = |major, minor| format!("GNU.sparse.major={major} GNU.sparse.minor={minor}");
        for map in [numbers, list] {
            assert_eq!(of_records(map), expected);
            for minor in [0, 1] {
                assert_eq!(of_records(&format!("{map} {}", version(0, minor))), expected);
            }
            assert_eq!(of_records(&format!("{map} GNU.sparse.numblocks=2")), expected);
            assert!(of_records(&format!("{map} GNU.sparse.numblocks=3")).is_err());
        }
        assert_eq!(of_records(&version(1, 0)), Err("in the payload".into()));
        assert_eq!(of_records("uid=1234"), Ok(None));
        assert_eq!(of_records("GNU.sparse.numblocks=0"), Ok(Some(vec![])));
        for bad in ["GNU.sparse.map=0,5,7", "GNU.sparse.map=,", "GNU.sparse.offset=0"] {
            assert!(of_records(bad).is_err(), "{bad}");
        }
        assert!(of_records("GNU.sparse.numbytes=0 GNU.sparse.offset=5").is_err());
        for (major, minor) in [(1, 1), (2, 0), (0, 2)] {
            let reason = of_records(&version(major, minor)).unwrap_err();
            assert!(reason.contains(&format!(" {major}.{minor} is not supported")), "{reason}");
        }
    }

    #[test]
    fn an_old_map_ends_at_its_first_empty_entry() {
        let entry = |offset: u64, len: u64| format!("{offset:011o}\0{len:011o}\0").into_bytes();
        let mut map = SparseMap::default();
        let fields = [entry(8, 1), entry(64, 2), vec![0; 24], entry(99, 1)].concat();
        map.add_old_gnu(&fields).unwrap();
        assert_eq!(map.pieces, [ByteRange::at(8, 1), ByteRange::at(64, 2)]);
        for bad in [&b"x"[..], b"-0000000001", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"] {
            let mut fields = entry(100, 1);
            fields[..bad.len()].copy_from_slice(bad);
            assert!(map.add_old_gnu(&fields).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn a_map_has_a_largest_number_of_pieces() {
        let pieces: Vec<_> = (0..SPARSE_CHUNKS_MAX as u64).map(|n| (2 * n, 1)).collect();
        let mut map = map(&pieces).unwrap();
        assert!(map.add(10 * SPARSE_CHUNKS_MAX as u64, 1).is_err());
    }

    #[test]
    fn map_text_is_the_same_in_any_pieces() {
        let text = b"2\n0\n512\n4096\n1\n\0\0\0rest";
        for size in 1..text.len() {
            let mut map = MapText::default();
            let complete = text.chunks(size).position(|piece| map.add_record(piece).unwrap());
            assert_eq!(complete, Some(14 / size));
            assert_eq!(map.into_map().pieces, [ByteRange::new(0, 512), ByteRange::at(4096, 1)]);
        }
    }

    #[test]
    fn map_text_that_is_no_numbers_is_refused() {
        for text in
            [&b"\n"[..], b"x\n", b"-1\n", b"1\n0\n\n", b"000000000000000000000", b"1\n5\n-3\n"]
        {
            assert!(MapText::default().add_record(text).is_err(), "{}", text.escape_ascii());
        }
        assert_eq!(MapText::default().add_record(b"0\n"), Ok(true));
        assert_eq!(MapText::default().add_record(b"99999999999999\n"), Ok(false));
    }
}
