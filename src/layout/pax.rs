//! PAX extended header records: arbitrary bytes, exact times.
//!
//! POSIX.1-2017 `pax`, "pax Extended Header". Values are delimited by the record's length alone:
//! they may hold newlines and NULs. `hdrcharset` means nothing here, since names are bytes.
//!
//! Extended attributes are read from `SCHILY.xattr.`, the names verbatim. `LIBARCHIVE.xattr.` is
//! ignored: bsdtar writes each attribute under both.

use std::collections::BTreeMap;

use super::entry::Time;
use super::tar::path::quoted;

/// Longest extended attribute name: Linux's XATTR_NAME_MAX.
pub const XATTR_NAME_BYTES_MAX: usize = 255;

/// Longest extended attribute value: Linux's XATTR_SIZE_MAX.
pub const XATTR_VALUE_BYTES_MAX: usize = 65_536;

/// Most bytes of global records in force at once: as many as one header may hold.
const GLOBAL_BYTES_MAX: usize = 1 << 20;

const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// The keys that mean something here, xattrs apart.
const KEYS: [&[u8]; 15] = [
    b"path",
    b"linkpath",
    b"size",
    b"uid",
    b"gid",
    b"mtime",
    b"SCHILY.devmajor",
    b"SCHILY.devminor",
    b"GNU.sparse.major",
    b"GNU.sparse.minor",
    b"GNU.sparse.name",
    b"GNU.sparse.size",
    b"GNU.sparse.realsize",
    b"GNU.sparse.numblocks",
    b"GNU.sparse.map",
];

/// The records of one extended header, or all global ones in force.
#[derive(Debug, Default)]
pub(crate) struct PaxRecords {
    /// By key; the last of several counts. An empty value (but for xattrs) takes back what a global
    /// header said.
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Of keys and values, where global records are put together.
    bytes: usize,
    /// `GNU.sparse.offset` and `GNU.sparse.numbytes` in their order (sparse format 0.0).
    pub(crate) sparse_numbers: Vec<u64>,
}

impl PaxRecords {
    /// Parses the payload of an extended header.
    pub(crate) fn parse(payload: &[u8]) -> Result<Self, String> {
        let mut records = PaxRecords::default();
        let mut rest = payload;
        while !rest.is_empty() {
            let at = payload.len() - rest.len();
            let (record, after) = split_record(rest)
                .ok_or_else(|| format!("invalid PAX record at byte {at} of the extended header"))?;
            let equals = record.iter().position(|b| *b == b'=').filter(|at| *at > 0);
            let Some(equals) = equals else {
                return Err(format!("PAX record {} has no key", quoted(record)));
            };
            records.add(&record[..equals], &record[equals + 1..])?;
            rest = after;
        }
        Ok(records)
    }

    /// Takes one record; of several with one key the last counts.
    pub(crate) fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        if key == b"GNU.sparse.offset" || key == b"GNU.sparse.numbytes" {
            let expects_offset = self.sparse_numbers.len().is_multiple_of(2);
            if expects_offset != (key == b"GNU.sparse.offset") {
                return Err("GNU.sparse.offset and GNU.sparse.numbytes do not alternate".into());
            }
            self.sparse_numbers.push(number(key, value)?);
        } else if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
            check_xattr(name, value)?;
            self.values.insert(key.to_vec(), value.to_vec());
        } else if KEYS.contains(&key) {
            self.values.insert(key.to_vec(), value.to_vec());
        }
        Ok(())
    }

    /// Takes the records of a further global header into force.
    pub(crate) fn update(&mut self, later: PaxRecords) -> Result<(), String> {
        for (key, value) in later.values {
            // Whatever it takes the place of goes, and an empty value only takes back.
            if let Some(former) = self.values.remove(&key) {
                self.bytes -= key.len() + former.len();
            }
            if !value.is_empty() || key.starts_with(XATTR_PREFIX) {
                self.bytes += key.len() + value.len();
                self.values.insert(key, value);
            }
        }
        if self.bytes > GLOBAL_BYTES_MAX {
            return Err(format!("more than {GLOBAL_BYTES_MAX} bytes of global PAX records"));
        }
        Ok(())
    }

    /// The value of a key, unless it is empty.
    pub(crate) fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.values.get(key).map(Vec::as_slice).filter(|value| !value.is_empty())
    }

    /// The value of a key as a number.
    pub(crate) fn number(&self, key: &str) -> Result<Option<u64>, String> {
        self.get(key.as_bytes()).map(|value| number(key.as_bytes(), value)).transpose()
    }
}

/// What holds for one member: its own records, and behind them the global ones.
pub(crate) struct PaxView<'a> {
    pub(crate) global: &'a PaxRecords,
    pub(crate) own: &'a PaxRecords,
}

impl<'a> PaxView<'a> {
    pub(crate) fn get(&self, key: &str) -> Option<&'a [u8]> {
        let key = key.as_bytes();
        let value = self.own.values.get(key).or_else(|| self.global.values.get(key));
        value.map(Vec::as_slice).filter(|value| !value.is_empty())
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<u64>, String> {
        self.get(key).map(|value| number(key.as_bytes(), value)).transpose()
    }

    pub(crate) fn mtime(&self) -> Result<Option<Time>, String> {
        let invalid = |value| format!("invalid PAX mtime {}", quoted(value));
        self.get("mtime").map(|value| parse_time(value).ok_or_else(|| invalid(value))).transpose()
    }

    /// Extended attributes, sorted by name. Empty values are values.
    pub(crate) fn xattrs(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut xattrs = BTreeMap::new();
        for records in [self.global, self.own] {
            let with_prefix = records
                .values
                .range(XATTR_PREFIX.to_vec()..)
                .map_while(|(key, value)| Some((key.strip_prefix(XATTR_PREFIX)?, value)));
            xattrs.extend(with_prefix);
        }
        xattrs.into_iter().map(|(name, value)| (name.to_vec(), value.clone())).collect()
    }
}

/// Splits `"<length> <key>=<value>\n"` off the front: (`key=value`, rest).
fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = bytes.iter().position(|b| *b == b' ')?;
    let length = usize::try_from(decimal(&bytes[..space])?).ok()?;
    let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
    Some((record, &bytes[length..]))
}

fn check_xattr(name: &[u8], value: &[u8]) -> Result<(), String> {
    if name.is_empty() || name.contains(&0) || name.len() > XATTR_NAME_BYTES_MAX {
        return Err(format!(
            "extended attribute name {}: expected 1 to {XATTR_NAME_BYTES_MAX} bytes without NUL, \
             got {}",
            quoted(name),
            name.len()
        ));
    }
    if value.len() > XATTR_VALUE_BYTES_MAX {
        return Err(format!(
            "extended attribute {} of {} bytes: at most {XATTR_VALUE_BYTES_MAX} are supported",
            quoted(name),
            value.len()
        ));
    }
    Ok(())
}

fn number(key: &[u8], value: &[u8]) -> Result<u64, String> {
    decimal(value)
        .ok_or_else(|| format!("PAX {}: invalid number {}", key.escape_ascii(), quoted(value)))
}

/// Decimal digits and nothing else.
pub(crate) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// `[-]seconds[.fraction]`; digits behind the ninth are cut off, as Go does.
fn parse_time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(positive) => (true, positive),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |b| *b == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().map(|digit| u32::from(digit - b'0'));
    let nanos = digits.chain(std::iter::repeat(0)).take(9).fold(0, |nanos, d| nanos * 10 + d);
    Some(match (negative, nanos) {
        (false, _) => Time { seconds, nanos },
        (true, 0) => Time { seconds: -seconds, nanos: 0 },
        (true, _) => Time { seconds: -seconds - 1, nanos: 1_000_000_000 - nanos },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
        let body = [b" ", key, b"=", value, b"\n"].concat();
        let mut length = body.len() + 1;
        while length != body.len() + length.to_string().len() {
            length = body.len() + length.to_string().len();
        }
        [length.to_string().as_bytes(), &body].concat()
    }

    #[test]
    fn times_keep_nanoseconds_on_both_sides_of_1970() {
        for (text, seconds, nanos) in [
            ("0", 0, 0),
            ("1.5", 1, 500_000_000),
            ("1350244992.023960108", 1_350_244_992, 23_960_108),
            ("1.0000000019", 1, 1),
            ("1.", 1, 0),
            ("-1", -1, 0),
            ("-1.5", -2, 500_000_000),
            ("-0.000000001", -1, 999_999_999),
            ("-9223372036854775807.1", i64::MIN, 900_000_000),
        ] {
            assert_eq!(parse_time(text.as_bytes()), Some(Time { seconds, nanos }), "{text}");
        }
        for text in ["", "-", ".5", "1.x", "1,5", "--1", "+1", "9223372036854775808", "1.5.5"] {
            assert_eq!(parse_time(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn xattr_values_are_any_bytes() {
        let value = b"a\nb\0c=\xff\n12 x=y\n";
        let payload =
            [record(b"SCHILY.xattr.user.b", value), record(b"SCHILY.xattr.user.a", b"")].concat();
        let own = PaxRecords::parse(&payload).unwrap();
        let view = PaxView { global: &PaxRecords::default(), own: &own };
        let expected =
            vec![(b"user.a".to_vec(), b"".to_vec()), (b"user.b".to_vec(), value.to_vec())];
        assert_eq!(view.xattrs(), expected);
    }

    #[test]
    fn own_records_stand_before_global_ones_and_an_empty_value_takes_back() {
        let mut global = PaxRecords::default();
        let first = [record(b"uid", b"7"), record(b"gid", b"8"), record(b"path", b"g")].concat();
        global.update(PaxRecords::parse(&first).unwrap()).unwrap();
        global.update(PaxRecords::parse(&record(b"gid", b"")).unwrap()).unwrap();
        let own = PaxRecords::parse(&[record(b"uid", b"9"), record(b"path", b"")].concat());
        let own = own.unwrap();
        let view = PaxView { global: &global, own: &own };
        assert_eq!(view.number("uid"), Ok(Some(9)));
        assert_eq!(view.number("gid"), Ok(None));
        assert_eq!(view.get("path"), None);
        assert_eq!(own.number("uid"), Ok(Some(9)));
        assert_eq!((own.get(b"path"), own.get(b"gid")), (None, None));
        // An empty attribute is an attribute.
        global.update(PaxRecords::parse(&record(b"SCHILY.xattr.user.e", b"")).unwrap()).unwrap();
        let view = PaxView { global: &global, own: &own };
        assert_eq!(view.xattrs(), [(b"user.e".to_vec(), Vec::new())]);
    }

    #[test]
    fn global_records_cannot_pile_up() {
        let mut global = PaxRecords::default();
        let value = vec![b'v'; XATTR_VALUE_BYTES_MAX];
        let refused = (0..64).any(|n| {
            let key = format!("SCHILY.xattr.user.{n}");
            let later = PaxRecords::parse(&record(key.as_bytes(), &value)).unwrap();
            global.update(later).is_err()
        });
        assert!(refused);

        let mut global = PaxRecords::default();
        let mut set = |key: &[u8], len: usize| {
            global.update(PaxRecords::parse(&record(key, &vec![b'v'; len])).unwrap())
        };
        // What is replaced or taken back does not count.
        for len in [GLOBAL_BYTES_MAX - 8, GLOBAL_BYTES_MAX - 4, 0, GLOBAL_BYTES_MAX - 4] {
            assert_eq!(set(b"path", len), Ok(()), "{len}");
        }
        assert!(set(b"uid", 1).is_err());
    }

    #[test]
    fn records_that_lie_about_their_length_are_refused() {
        for payload in [
            &b"x"[..],
            b"7 a=b\n",
            b"5 a=b\n",
            b"6 a=bX",
            b" a=b\n",
            b"99999999999999999999 a=b\n",
            b"0 a=b\n",
            b"2 \n",
            b"5 ab\n",
            b"5 =b\n",
            b"6 a=b\n\0\0",
            b"27 GNU.sparse.numbytes=123\n",
        ] {
            assert!(PaxRecords::parse(payload).is_err(), "{}", payload.escape_ascii());
        }
        assert!(PaxRecords::parse(&record(b"SCHILY.xattr.", b"")).is_err());
        assert!(PaxRecords::parse(&record(b"SCHILY.xattr.a\0", b"")).is_err());
        let name = |len: usize| [b"SCHILY.xattr.".as_slice(), &vec![b'n'; len]].concat();
        assert!(PaxRecords::parse(&record(&name(256), b"")).is_err());
        assert!(PaxRecords::parse(&record(b"SCHILY.xattr.n", &[0; 65_537])).is_err());
        assert!(PaxRecords::parse(&record(&name(255), &[0; 65_536])).is_ok());
        let second = PaxRecords::parse(b"9 uid=12\n5 ab\n").err().unwrap();
        assert_eq!(second, "PAX record \"ab\" has no key");
        let second = PaxRecords::parse(b"9 uid=12\n9 uid=1\n").err().unwrap();
        assert_eq!(second, "invalid PAX record at byte 9 of the extended header");
    }
}
