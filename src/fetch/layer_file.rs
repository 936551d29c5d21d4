//! Writes a layer into a file: members to tar, hashed (DiffID), compressed, hashed (digest).

use std::fs::File;
use std::io::{self, Read as _, Write};
use std::path::Path;

use tempfile::NamedTempFile;

use super::error::{Error, Result};
use super::upper::Upper;
use crate::layout::changeset::{Change, Member, UpperKind, UpperNode};
use crate::layout::digest::Hasher;
use crate::layout::entry::{Attributes, EntryKind, Time};
use crate::layout::tar_write::{END_OF_ARCHIVE, header, padding};
use crate::layout::{Blob, Digest};

/// One read of a file.
const READ_BYTES: usize = 256 << 10;

/// zstd's own default.
const ZSTD_LEVEL: i32 = 3;

/// How a new layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Compression {
    /// What every reader takes.
    Gzip,
    /// Smaller and faster; not for the lifecycle's exporter.
    Zstd,
}

/// A layer that was written.
pub struct LayerFile {
    /// Holds the blob, and goes when it is dropped.
    pub file: NamedTempFile,
    /// Digest and size of the file.
    pub blob: Blob,
    /// Digest of the tar.
    pub diff_id: Digest,
    /// Size of the tar.
    pub tar_bytes: u64,
    /// The newest modification time in it, not before 1970.
    pub newest: Time,
}

/// Writes `members` of `upper` to a file in `directory`. Times later than `latest` are written as
/// `latest`.
///
/// # Errors
/// A file changed while it was read; something exceeds what a layer can hold; local trouble.
pub fn write(
    upper: &Upper,
    members: &[Member<'_>],
    directory: &Path,
    compression: Compression,
    latest: Option<Time>,
) -> Result<LayerFile> {
    let failed =
        |e: &io::Error| Error::local(format!("cannot write in {}", directory.display()), e);
    let file = tempfile::Builder::new()
        .prefix(".layoutfs-layer-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(directory)
        .map_err(|e| failed(&e))?;
    let out =
        Hashed { to: file.reopen().map_err(|e| failed(&e))?, hasher: Hasher::sha256(), bytes: 0 };
    let to = match compression {
        // Neither a time nor a name in the header: the same tar gives the same blob.
        Compression::Gzip => {
            Encoder::Gzip(flate2::write::GzEncoder::new(out, flate2::Compression::default()))
        }
        Compression::Zstd => {
            Encoder::Zstd(zstd::Encoder::new(out, ZSTD_LEVEL).map_err(|e| failed(&e))?)
        }
    };
    let mut tar = Hashed { to, hasher: Hasher::sha256(), bytes: 0 };
    let mut newest = Time::default();
    for member in members {
        let time = put(upper, member, latest, &mut tar, &failed)?;
        newest = newest.max(time);
    }
    tar.write_all(&END_OF_ARCHIVE).map_err(|e| failed(&e))?;
    let Hashed { to, hasher, bytes: tar_bytes } = tar;
    let out = to.finish().map_err(|e| failed(&e))?;
    let blob = Blob { digest: out.hasher.finish(), size: out.bytes };
    Ok(LayerFile { file, blob, diff_id: hasher.finish(), tar_bytes, newest })
}

/// Writes one member; gives its time.
fn put(
    upper: &Upper,
    member: &Member<'_>,
    latest: Option<Time>,
    tar: &mut impl Write,
    failed: &impl Fn(&io::Error) -> Error,
) -> Result<Time> {
    let clamped = |node: &UpperNode| {
        let mtime = latest.map_or(node.attributes.mtime, |l| node.attributes.mtime.min(l));
        Attributes { mtime, ..node.attributes.clone() }
    };
    let (path, kind, attributes) = match &member.change {
        Change::Removed => {
            let kind = EntryKind::Regular { size: 0, chunks: Vec::new() };
            (whiteout(&member.path), kind, Attributes::default())
        }
        Change::Link { node, target, .. } => {
            (member.path.clone(), EntryKind::Hardlink { target: target.clone() }, clamped(node))
        }
        Change::Put { node, .. } => {
            let kind = match &node.kind {
                UpperKind::Other(kind) => kind.clone(),
                UpperKind::Directory { .. } => EntryKind::Directory,
                UpperKind::Whiteout => return Ok(Time::default()),
            };
            (member.path.clone(), kind, clamped(node))
        }
    };
    tar.write_all(&header(&path, &kind, &attributes)?).map_err(|e| failed(&e))?;
    if let (EntryKind::Regular { size, .. }, Change::Put { node, .. }) = (&kind, &member.change) {
        copy(upper, &member.path, node, *size, tar, failed)?;
    }
    Ok(attributes.mtime)
}

/// Exactly `size` bytes, and their padding.
fn copy(
    upper: &Upper,
    path: &[u8],
    node: &UpperNode,
    size: u64,
    tar: &mut impl Write,
    failed: &impl Fn(&io::Error) -> Error,
) -> Result<()> {
    if size == 0 {
        return Ok(());
    }
    let mut file = upper.open(path, node)?;
    let mut left = size;
    let mut piece = vec![0; READ_BYTES];
    while left > 0 {
        let want = left.min(READ_BYTES as u64) as usize;
        let read = match file.read(&mut piece[..want]) {
            Ok(0) => return Err(upper.changed(path)),
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(upper.unreadable(path, &e)),
        };
        tar.write_all(&piece[..read]).map_err(|e| failed(&e))?;
        left -= read as u64;
    }
    tar.write_all(&vec![0; padding(size)]).map_err(|e| failed(&e))
}

/// `a/b` to `a/.wh.b`.
fn whiteout(path: &[u8]) -> Vec<u8> {
    let at = path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
    [&path[..at], b".wh.", &path[at..]].concat()
}

/// Hashes and counts what passes.
struct Hashed<W> {
    to: W,
    hasher: Hasher,
    bytes: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

enum Encoder {
    Gzip(flate2::write::GzEncoder<Hashed<File>>),
    Zstd(zstd::Encoder<'static, Hashed<File>>),
}

impl Encoder {
    fn finish(self) -> io::Result<Hashed<File>> {
        match self {
            Encoder::Gzip(encoder) => encoder.finish(),
            Encoder::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl Write for Encoder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Encoder::Gzip(encoder) => encoder.write(bytes),
            Encoder::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Encoder::Gzip(encoder) => encoder.flush(),
            Encoder::Zstd(encoder) => encoder.flush(),
        }
    }
}

/// Whether the content of `node` at `path` is `same`: asked piece by piece, with the position of
/// each, until it answers no.
///
/// # Errors
/// As for reading the file, and whatever `same` fails with.
pub fn compare(
    upper: &Upper,
    path: &[u8],
    node: &UpperNode,
    mut same: impl FnMut(u64, &[u8]) -> Result<bool>,
) -> Result<bool> {
    let mut file = upper.open(path, node)?;
    let mut piece = vec![0; READ_BYTES];
    let mut at = 0;
    loop {
        let read = match file.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(upper.unreadable(path, &e)),
        };
        if !same(at, &piece[..read])? {
            return Ok(false);
        }
        at += read as u64;
    }
    match &node.kind {
        UpperKind::Other(EntryKind::Regular { size, .. }) if *size == at => Ok(true),
        _ => Err(upper.changed(path)),
    }
}
