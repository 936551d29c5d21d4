//! Layers for tests: tar members exactly as told, right or wrong, and their compression.

use std::collections::BTreeMap;
use std::io::Write;

use bytes::Bytes;
use layoutfs::layout::tree::Layer;
use layoutfs::layout::{Blob, Digest};

/// One tar member: what its header says, and its content.
#[derive(Debug, Clone)]
pub struct Member {
    pub path: Vec<u8>,
    /// The type flag: `0` file, `1` hard link, `2` symlink, `3` character and `4` block device,
    /// `5` directory, `6` fifo.
    pub kind: u8,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: i64,
    pub mtime_ns: u32,
    pub link: Vec<u8>,
    pub device: (u32, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub content: Bytes,
    /// What the header says when it is not the content's length.
    pub declared_bytes: Option<u64>,
}

/// How names, targets and numbers that do not fit into a plain header are written.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Dialect {
    /// PAX records.
    #[default]
    Pax,
    /// GNU long names (`L`, `K`) and base-256 numbers.
    Gnu,
}

/// The default time of members: deterministic, and not zero.
pub const MTIME: i64 = 1_700_000_000;

/// Bytes of a tar header; contents are padded to its multiple.
const HEADER_BYTES: usize = 512;

impl Member {
    /// A member of a kind, owned by root.
    pub fn new(kind: u8, path: impl AsRef<[u8]>, mode: u32) -> Self {
        Member {
            path: path.as_ref().to_vec(),
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime: MTIME,
            mtime_ns: 0,
            link: Vec::new(),
            device: (0, 0),
            xattrs: Vec::new(),
            content: Bytes::new(),
            declared_bytes: None,
        }
    }

    /// A file with content.
    pub fn file(path: impl AsRef<[u8]>, mode: u32, content: impl Into<Bytes>) -> Self {
        Member { content: content.into(), ..Member::new(b'0', path, mode) }
    }

    /// A member of a kind that points somewhere: `1` hard link or `2` symlink.
    pub fn link(kind: u8, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Member { link: target.as_ref().to_vec(), ..Member::new(kind, path, 0o777) }
    }

    /// The same with one extended attribute more.
    pub fn xattr(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.xattrs.push((name.into(), value.as_ref().to_vec()));
        self
    }
}

/// Writes a tar, member by member.
#[derive(Debug, Clone, Default)]
pub struct LayerBuilder {
    tar: Vec<u8>,
    dialect: Dialect,
    unterminated: bool,
}

impl LayerBuilder {
    /// An empty tar.
    pub fn new() -> Self {
        Self::default()
    }

    /// One member a line: `KIND PATH [0MODE] [UID:GID] [@SECONDS[.NANOSECONDS]] [+XATTR=VALUE]
    /// [MAJOR,MINOR] [*BYTES] [-> TARGET] [= TEXT]`. Kinds: `dir`, `file`, `symlink`, `hardlink`,
    /// `char`, `block`, `fifo`, `whiteout`, `opaque`. `*BYTES` is generated content; in TEXT,
    /// `\n` is a line end. Empty lines are left out.
    pub fn text(text: &str) -> Self {
        text.lines().map(str::trim).filter(|line| !line.is_empty()).fold(Self::new(), |b, line| {
            let member = parse_line(line).unwrap_or_else(|| panic!("not a member: {line}"));
            b.member(member)
        })
    }

    /// Names and numbers that do not fit are written this way from now on.
    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    /// A directory.
    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.member(Member::new(b'5', path, mode))
    }

    /// A file.
    pub fn file(self, path: &str, mode: u32, content: impl Into<Bytes>) -> Self {
        self.member(Member::file(path, mode, content))
    }

    /// A symbolic link.
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.member(Member::link(b'2', path, target))
    }

    /// A hard link to an earlier member.
    pub fn hardlink(self, path: &str, target: &str) -> Self {
        self.member(Member::link(b'1', path, target))
    }

    /// A whiteout: `path` is gone.
    pub fn whiteout(self, path: &str) -> Self {
        self.member(Member::file(whiteout_path(path), 0, ""))
    }

    /// An opaque whiteout in a directory: what lower layers have there is gone.
    pub fn opaque(self, dir: &str) -> Self {
        self.member(Member::file(format!("{dir}/.wh..wh..opq"), 0, ""))
    }

    /// A member as told.
    pub fn member(mut self, member: Member) -> Self {
        let mut records = Vec::new();
        for (name, value) in &member.xattrs {
            records.push(([b"SCHILY.xattr.", &name[..]].concat(), value.clone()));
        }
        if self.dialect == Dialect::Pax {
            pax_overflows(&member, &mut records);
        } else {
            for (flag, name) in [(b'L', &member.path), (b'K', &member.link)] {
                if name.len() > NAME_BYTES_MAX {
                    let content = [&name[..], b"\0"].concat();
                    let long = Member::file("././@LongLink", 0o644, content);
                    self.put(&Member { kind: flag, mtime: 0, ..long });
                }
            }
        }
        if !records.is_empty() {
            let records: Vec<_> = records.iter().map(|(k, v)| (&k[..], &v[..])).collect();
            self = self.pax(b'x', &records);
        }
        self.put(&member);
        self
    }

    /// A PAX header: `x` for the next member, `g` for all that follow. Values may be wrong.
    pub fn pax(mut self, kind: u8, records: &[(&[u8], &[u8])]) -> Self {
        let content: Vec<u8> = records.iter().flat_map(|(k, v)| pax_record(k, v)).collect();
        let header = Member::file("PaxHeaders/member", 0o644, content);
        self.put(&Member { kind, mtime: 0, ..header });
        self
    }

    /// Bytes that no rule makes: broken headers, padding, garbage.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.tar.extend_from_slice(bytes);
        self
    }

    /// Leaves out the two zero headers at the end, which some producers do too.
    pub fn unterminated(mut self) -> Self {
        self.unterminated = true;
        self
    }

    /// Where the next header begins.
    pub fn position(&self) -> usize {
        self.tar.len()
    }

    /// The tar.
    pub fn tar(mut self) -> Vec<u8> {
        if !self.unterminated {
            self.tar.resize(self.tar.len() + 2 * HEADER_BYTES, 0);
        }
        self.tar
    }

    fn put(&mut self, member: &Member) {
        self.tar.extend_from_slice(&header(member));
        self.tar.extend_from_slice(&member.content);
        self.tar.resize(self.tar.len().next_multiple_of(HEADER_BYTES), 0);
    }
}

const NAME_BYTES_MAX: usize = 100;
/// The largest numbers of eight and of twelve octal places, of which the last is the end mark.
const OCTAL_7_MAX: u64 = 0o7_777_777;
const OCTAL_11_MAX: u64 = 0o77_777_777_777;

/// A ustar header with its checksum. What does not fit is base-256 or cut off.
pub fn header(member: &Member) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    let mut text = |at: usize, len: usize, value: &[u8]| {
        let len = value.len().min(len);
        header[at..at + len].copy_from_slice(&value[..len]);
    };
    let size = member.declared_bytes.unwrap_or(member.content.len() as u64);
    text(0, NAME_BYTES_MAX, &member.path);
    text(100, 8, &number(8, i128::from(member.mode)));
    text(108, 8, &number(8, i128::from(member.uid)));
    text(116, 8, &number(8, i128::from(member.gid)));
    text(124, 12, &number(12, i128::from(size)));
    text(136, 12, &number(12, i128::from(member.mtime)));
    text(148, 8, b"        ");
    text(156, 1, &[member.kind]);
    text(157, NAME_BYTES_MAX, &member.link);
    text(257, 8, b"ustar\x0000");
    text(329, 8, &number(8, i128::from(member.device.0)));
    text(337, 8, &number(8, i128::from(member.device.1)));
    fix_checksum(&mut header);
    header
}

/// Makes a header's checksum true again after a change.
pub fn fix_checksum(header: &mut [u8; HEADER_BYTES]) {
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Octal with an end mark, or base-256 when that does not hold the value.
fn number(len: usize, value: i128) -> Vec<u8> {
    let fits = value >= 0 && value < 1 << (3 * (len - 1));
    if fits {
        return format!("{value:0width$o}\0", width = len - 1).into_bytes();
    }
    let mut bytes = value.to_be_bytes()[16 - len..].to_vec();
    bytes[0] = if value < 0 { 0xff } else { bytes[0] | 0x80 };
    bytes
}

fn pax_overflows(member: &Member, records: &mut Vec<(Vec<u8>, Vec<u8>)>) {
    let mut add = |name: &str, value: &[u8]| records.push((name.into(), value.to_vec()));
    let text = |value: String| value.into_bytes();
    if member.path.len() > NAME_BYTES_MAX {
        add("path", &member.path);
    }
    if member.link.len() > NAME_BYTES_MAX {
        add("linkpath", &member.link);
    }
    for (name, id) in [("uid", member.uid), ("gid", member.gid)] {
        if id > OCTAL_7_MAX {
            add(name, &text(id.to_string()));
        }
    }
    let size = member.declared_bytes.unwrap_or(member.content.len() as u64);
    if size > OCTAL_11_MAX {
        add("size", &text(size.to_string()));
    }
    let (seconds, ns) = (member.mtime, member.mtime_ns);
    if ns != 0 || seconds < 0 || seconds as u64 > OCTAL_11_MAX {
        // The fraction counts away from zero as the sign does: -1.25 s is second -2 and 0.75 s.
        let total = i128::from(seconds) * 1_000_000_000 + i128::from(ns);
        let sign = if total < 0 { "-" } else { "" };
        let (whole, part) = (total.abs() / 1_000_000_000, total.abs() % 1_000_000_000);
        add("mtime", &text(format!("{sign}{whole}.{part:09}")));
    }
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    [len.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

fn whiteout_path(path: &str) -> String {
    match path.rsplit_once('/') {
        Some((dir, name)) => format!("{dir}/.wh.{name}"),
        None => format!(".wh.{path}"),
    }
}

fn parse_line(line: &str) -> Option<Member> {
    let (line, text) = line.split_once(" = ").map_or((line, None), |(l, t)| (l, Some(t)));
    let (line, target) = line.split_once(" -> ").map_or((line, None), |(l, t)| (l, Some(t)));
    let mut words = line.split_whitespace();
    let (kind, path) = (words.next()?, words.next()?);
    let mut member = match kind {
        "dir" => Member::new(b'5', path, 0o755),
        "file" => Member::new(b'0', path, 0o644),
        "symlink" => Member::link(b'2', path, target?),
        "hardlink" => Member::link(b'1', path, target?),
        "char" => Member::new(b'3', path, 0o600),
        "block" => Member::new(b'4', path, 0o600),
        "fifo" => Member::new(b'6', path, 0o600),
        "whiteout" => Member::new(b'0', whiteout_path(path), 0),
        "opaque" => Member::new(b'0', format!("{path}/.wh..wh..opq"), 0),
        _ => return None,
    };
    if let Some(text) = text {
        member.content = text.replace("\\n", "\n").into();
    }
    for word in words {
        if let Some(time) = word.strip_prefix('@') {
            let (seconds, ns) = time.split_once('.').unwrap_or((time, "0"));
            member.mtime = seconds.parse().ok()?;
            member.mtime_ns = format!("{ns:0<9}").parse().ok()?;
        } else if let Some(xattr) = word.strip_prefix('+') {
            let (name, value) = xattr.split_once('=')?;
            member = member.xattr(name, value);
        } else if let Some(bytes) = word.strip_prefix('*') {
            member.content = generated(path, bytes.parse().ok()?);
        } else if let Some((major, minor)) = word.split_once(',') {
            member.device = (major.parse().ok()?, minor.parse().ok()?);
        } else if let Some((uid, gid)) = word.split_once(':') {
            (member.uid, member.gid) = (uid.parse().ok()?, gid.parse().ok()?);
        } else {
            member.mode = u32::from_str_radix(word, 8).ok()?;
        }
    }
    Some(member)
}

/// Bytes that look random, the same for the same seed: nothing compresses them.
pub fn generated(seed: &str, len: usize) -> Bytes {
    let mut state = seed.bytes().fold(0x9e37_79b9_7f4a_7c15u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        // xorshift64: a state of zero would stay zero.
        state |= u64::from(state == 0);
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}

/// How a layer's tar is stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Compression {
    Plain,
    /// One gzip member.
    Gzip,
    /// A gzip member per so many bytes of tar.
    GzipMembers(usize),
    /// One zstd frame.
    Zstd,
    /// A zstd frame per so many bytes of tar.
    ZstdFrames(usize),
}

impl Compression {
    /// `""`, `"gzip"` or `"zstd"`: how media types end.
    pub fn suffix(self) -> &'static str {
        match self {
            Compression::Plain => "",
            Compression::Gzip | Compression::GzipMembers(_) => "gzip",
            Compression::Zstd | Compression::ZstdFrames(_) => "zstd",
        }
    }

    /// The blob for a tar; the same for the same tar.
    pub fn compress(self, tar: &[u8]) -> Vec<u8> {
        match self {
            Compression::Plain => tar.to_vec(),
            Compression::Gzip => gzip(tar),
            Compression::GzipMembers(len) => tar.chunks(len).flat_map(gzip).collect(),
            Compression::Zstd => zstd(tar),
            Compression::ZstdFrames(len) => tar.chunks(len).flat_map(zstd).collect(),
        }
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("memory is writable")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).expect("memory is writable")
}

/// The layer that is stored as `blob`, as an image with no more to say of it names it.
pub fn named(blob: &[u8], diff_id: Digest) -> Layer {
    Layer {
        blob: Blob { digest: Digest::sha256_of(blob), size: blob.len() as u64 },
        diff_id,
        media_type: String::new(),
        annotations: BTreeMap::new(),
        soci_index: None,
    }
}
