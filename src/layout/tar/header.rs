//! One 512-byte tar header: fields and numbers, nothing remembered from other headers.
//!
//! POSIX.1-2017 `pax`, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format".

/// Bytes of a tar header; member contents are padded to a multiple of it.
pub(crate) const RECORD_BYTES: usize = 512;

/// Which dialect the magic names. They disagree about what lies behind byte 345.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// No magic: no prefix, no device numbers.
    V7,
    /// POSIX, with or without PAX records.
    Ustar,
    /// star: like ustar with a shorter prefix.
    Star,
    /// GNU (and Go's long names): times and the sparse map lie where ustar has its prefix.
    Gnu,
}

/// A header whose checksum is right.
pub(crate) struct Header<'a>(&'a [u8; RECORD_BYTES]);

impl<'a> Header<'a> {
    /// Checks the checksum, which old tools summed over signed bytes.
    pub(crate) fn parse(record: &'a [u8; RECORD_BYTES]) -> Result<Self, String> {
        let counted = |at: usize| if (148..156).contains(&at) { b' ' } else { record[at] };
        let unsigned: i64 = (0..RECORD_BYTES).map(|at| i64::from(counted(at))).sum();
        let signed: i64 =
            (0..RECORD_BYTES).map(|at| i64::from(i8::from_ne_bytes([counted(at)]))).sum();
        let stored = number(&record[148..156])
            .ok_or("its checksum is not a number: this is not a tar header")?;
        if stored != unsigned && stored != signed {
            return Err(format!(
                "wrong header checksum: expected {stored}, got {unsigned}: this is not a tar \
                 header, or it is damaged"
            ));
        }
        Ok(Header(record))
    }

    pub(crate) fn format(&self) -> Format {
        match &self.0[257..265] {
            b"ustar  \0" => Format::Gnu,
            magic if magic.starts_with(b"ustar\0") => {
                if &self.0[508..512] == b"tar\0" {
                    Format::Star
                } else {
                    Format::Ustar
                }
            }
            _ => Format::V7,
        }
    }

    pub(crate) fn typeflag(&self) -> u8 {
        self.0[156]
    }

    /// The member's name, prefix included.
    pub(crate) fn name(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = match self.format() {
            Format::V7 => &[],
            Format::Ustar => text(&self.0[345..500]),
            Format::Star => text(&self.0[345..476]),
            Format::Gnu => self.prefix_of_old_go(),
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    /// Go before 1.8, and so early Docker, wrote a ustar prefix over the times of a GNU header.
    /// Where the times are no numbers and an ASCII name stands there, it is that prefix.
    fn prefix_of_old_go(&self) -> &'a [u8] {
        let is_time = |field: &[u8]| field[0] == 0 || number(field).is_some();
        if is_time(&self.0[345..357]) && is_time(&self.0[357..369]) {
            return &[];
        }
        let prefix = text(&self.0[345..500]);
        if prefix.is_ascii() { prefix } else { &[] }
    }

    pub(crate) fn link_name(&self) -> &'a [u8] {
        text(&self.0[157..257])
    }

    pub(crate) fn mode(&self) -> Result<i64, String> {
        self.field("mode", 100..108)
    }

    pub(crate) fn uid(&self) -> Result<i64, String> {
        self.field("uid", 108..116)
    }

    pub(crate) fn gid(&self) -> Result<i64, String> {
        self.field("gid", 116..124)
    }

    pub(crate) fn size(&self) -> Result<i64, String> {
        self.field("size", 124..136)
    }

    pub(crate) fn mtime(&self) -> Result<i64, String> {
        self.field("mtime", 136..148)
    }

    pub(crate) fn device(&self) -> Result<(i64, i64), String> {
        if self.format() == Format::V7 {
            return Ok((0, 0));
        }
        Ok((self.field("device major", 329..337)?, self.field("device minor", 337..345)?))
    }

    /// The four map entries of an old GNU sparse header.
    pub(crate) fn sparse_fields(&self) -> &'a [u8] {
        &self.0[386..482]
    }

    /// More map entries follow in records of their own.
    pub(crate) fn sparse_is_extended(&self) -> bool {
        self.0[482] != 0
    }

    /// Logical size of an old GNU sparse file.
    pub(crate) fn sparse_size(&self) -> Result<i64, String> {
        self.field("sparse size", 483..495)
    }

    fn field(&self, what: &str, at: std::ops::Range<usize>) -> Result<i64, String> {
        let bytes = &self.0[at];
        number(bytes).ok_or_else(|| format!("invalid {what} \"{}\"", bytes.escape_ascii()))
    }
}

/// The bytes in front of the first NUL.
pub(crate) fn text(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

/// A numeric field: octal digits with spaces and NULs around them, or base-256 (GNU; negative
/// numbers too). An empty field is 0. `None`: anything else, or beyond 63 bits.
pub(crate) fn number(field: &[u8]) -> Option<i64> {
    if field.first().is_some_and(|b| b & 0x80 != 0) {
        return base256(field);
    }
    let start = field.iter().position(|b| !matches!(b, b' ' | 0)).unwrap_or(field.len());
    let digits = text(&field[start..]).trim_ascii_end();
    digits.iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

/// Big-endian two's complement whose first bit only marks the encoding.
fn base256(field: &[u8]) -> Option<i64> {
    let (&first, rest) = field.split_first()?;
    let signed = i64::from(i8::from_ne_bytes([first]));
    let start = if first & 0x40 != 0 { signed } else { i64::from(first & 0x3f) };
    rest.iter().try_fold(start, |value, byte| Some(value.checked_mul(256)? + i64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256_of_either_sign() {
        for (field, expected) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\x00644\0\0\0", Some(0o644)),
            (b"00000000", Some(0)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"77777777", Some(0o7777_7777)),
            (b"\x80\0\0\0\0\0\0\x05", Some(5)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\0\0\0\0\x02\0\0\0\0", Some(8 << 30)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe\0", Some(-512)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"0000648\0", None),
            (b"-000001\0", None),
            (b"64 4\0\0\0\0", None),
        ] {
            assert_eq!(number(field), expected, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn both_checksums_are_accepted_and_no_other() {
        let mut record = [0u8; RECORD_BYTES];
        record[..4].copy_from_slice(b"\xe4\xf6\xfcx");
        let spaces = 8 * i64::from(b' ');
        let unsigned = spaces + 0xe4 + 0xf6 + 0xfc + i64::from(b'x');
        let signed = unsigned - 3 * 256;
        for (checksum, accepted) in [(unsigned, true), (signed, true), (signed + 1, false)] {
            record[148..156].copy_from_slice(format!("{checksum:06o}\0 ").as_bytes());
            assert_eq!(Header::parse(&record).is_ok(), accepted, "{checksum}");
        }
    }
}
