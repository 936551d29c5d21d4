//! A `LayerIndex` to a zTOC that SOCI reads.
//!
//! An index does not say all that SOCI wants: it compares a file with its tar header when it is
//! read first, the name as it stands there included, and proves spans that begin behind a gzip
//! header. So the blob and its tar pass by once more; both are hashed or parsed, neither is kept.

mod digests;
mod names;

use super::checkpoints::{self, Checkpoint};
use super::flatbuffer::{Builder, Field, Open};
use super::{ALGORITHM_GZIP, ALGORITHM_NONE, VERSION, ZTOC_BYTES_MAX, slot};
use crate::layout::digest::Digest;
use crate::layout::entry::{Attributes, Entry, EntryKind};
use crate::layout::error::{Error, Result};
use crate::layout::index::{Codec, LayerIndex};
use crate::layout::rfc3339;
use crate::layout::tar::header::RECORD_BYTES;
use crate::layout::tar::path::quoted;
use digests::{SpanDigests, Start};
use names::{Names, RawMember};

/// Uncompressed bytes from one checkpoint to the next, and a little more: as SOCI has them. Each
/// costs 32 KiB.
pub const SPAN_BYTES: u64 = 4 << 20;

/// The version of what stands in for checkpoints of a plain tar.
const TAR_VERSION: i32 = 2;

/// Writes a zTOC while the layer's bytes pass by: blob and tar each in order, in pieces of any size.
///
/// After an error it is of no further use.
pub struct Writer<'a> {
    index: &'a LayerIndex,
    blob_size: u64,
    /// Empty: the layer is a plain tar.
    starts: Vec<Start>,
    digests: SpanDigests,
    names: Names<'a>,
}

fn refused(reason: String) -> Error {
    Error::ForeignIndex { format: "SOCI", reason }
}

impl<'a> Writer<'a> {
    /// For a layer whose blob has `blob_size` bytes.
    ///
    /// # Errors
    /// [`Error::ForeignIndex`] when SOCI has no words for the layer: zstd, nothing in it.
    pub fn new(index: &'a LayerIndex, blob_size: u64) -> Result<Self> {
        let starts = choose(index).map_err(refused)?;
        let digests = SpanDigests::new(&starts, SPAN_BYTES);
        Ok(Writer { index, blob_size, starts, digests, names: Names::new(&index.entries) })
    }

    /// The next bytes of the blob.
    ///
    /// # Errors
    /// [`Error::ForeignIndex`] where the index says that a gzip member begins and none does.
    pub fn push_blob(&mut self, bytes: &[u8]) -> Result<()> {
        self.digests.push(bytes).map_err(refused)
    }

    /// The next bytes of the uncompressed layer.
    ///
    /// # Errors
    /// [`Error::ForeignIndex`] for an entry that SOCI has no words for (a sparse file, one behind a
    /// global header), or that is not where the index says.
    pub fn push_tar(&mut self, bytes: &[u8]) -> Result<()> {
        self.names.push(bytes).map_err(refused)
    }

    /// The zTOC, when all bytes have passed by. `build_tool` is for people.
    ///
    /// # Errors
    /// [`Error::ForeignIndex`] when blob or tar were not of the size that was said, or an entry was
    /// modified in a year that RFC 3339 cannot say; [`Error::Limit`] above [`ZTOC_BYTES_MAX`].
    pub fn finish(self, build_tool: &str) -> Result<Vec<u8>> {
        let Writer { index, blob_size, starts, digests, names } = self;
        let (passed, spans) = digests.finish();
        let (tar_passed, members) = names.finish().map_err(refused)?;
        if (passed, tar_passed) != (blob_size, index.tar_size) {
            let expected = format!("{blob_size} and {}", index.tar_size);
            return Err(refused(format!("{passed} and {tar_passed} bytes, expected {expected}")));
        }
        let (algorithm, checkpoints) = if starts.is_empty() {
            (ALGORITHM_NONE, plain_checkpoints(blob_size))
        } else {
            (ALGORITHM_GZIP, gzip_checkpoints(index, &starts, &spans).map_err(refused)?)
        };
        let (mut builder, root) = Builder::new();
        let fields = [
            (slot::ztoc::VERSION, Field::Reference),
            (slot::ztoc::BUILD_TOOL, Field::Reference),
            (slot::ztoc::COMPRESSED_SIZE, Field::I64(blob_size as i64)),
            (slot::ztoc::UNCOMPRESSED_SIZE, Field::I64(index.tar_size as i64)),
            (slot::ztoc::TOC, Field::Reference),
            (slot::ztoc::COMPRESSION, Field::Reference),
        ];
        let [version, tool, toc, compression] = builder.table(root, &fields);
        builder.string(version, VERSION);
        builder.string(tool, build_tool.as_bytes());
        let [files] = builder.table(toc, &[(slot::toc::FILES, Field::Reference)]);
        let places = builder.references(files, index.entries.len());
        for ((open, entry), raw) in places.zip(&index.entries).zip(&members) {
            let described = |reason| refused(format!("file {}: {reason}", quoted(&raw.name)));
            write_member(&mut builder, open, entry, raw).map_err(described)?;
            check_size(builder.len())?;
        }
        let fields = [
            (slot::compression::ALGORITHM, Field::I8(algorithm)),
            (slot::compression::LAST_SPAN, Field::I32(spans.len() as i32 - 1)),
            (slot::compression::DIGESTS, Field::Reference),
            (slot::compression::CHECKPOINTS, Field::Reference),
        ];
        let [digests, zinfo] = builder.table(compression, &fields);
        for (open, span) in builder.references(digests, spans.len()).zip(&spans) {
            builder.string(open, Digest::Sha256(span.sha256).to_string().as_bytes());
        }
        check_size(builder.len() + checkpoints.len())?;
        builder.string(zinfo, &checkpoints);
        Ok(builder.finish())
    }
}

fn check_size(bytes: usize) -> Result<()> {
    if bytes as u64 <= ZTOC_BYTES_MAX {
        return Ok(());
    }
    Err(Error::Limit { what: "size in bytes of a zTOC".to_owned(), limit: ZTOC_BYTES_MAX })
}

/// Where the zTOC's spans begin: none for a plain tar, which can be entered anywhere.
fn choose(index: &LayerIndex) -> std::result::Result<Vec<Start>, String> {
    let mut starts: Vec<Start> = Vec::new();
    let mut is_plain = true;
    for (n, span) in index.spans.iter().enumerate() {
        let bits = match span.codec {
            Codec::Stored if starts.is_empty() => continue,
            Codec::Gzip => None,
            Codec::Deflate(point) => Some(point.bits),
            Codec::Stored | Codec::Zstd => return Err("it is neither gzip nor a plain tar".into()),
        };
        is_plain = false;
        let tar = span.tar.start.checked_sub(span.skip).ok_or("a span passes over too much")?;
        let is_next = match starts.last() {
            None if tar != 0 || n > 0 => return Err("its first span is not at its start".into()),
            None => true,
            Some(last) => tar.saturating_sub(last.tar) >= SPAN_BYTES,
        };
        if is_next {
            starts.push(Start { span: n, blob: span.blob.start, tar, bits });
        }
    }
    if index.spans.is_empty() || starts.is_empty() != is_plain {
        return Err("there is nothing in it".into());
    }
    Ok(starts)
}

fn plain_checkpoints(blob_size: u64) -> Vec<u8> {
    let (mut builder, root) = Builder::new();
    let fields = [
        (slot::tar::VERSION, Field::I32(TAR_VERSION)),
        (slot::tar::SPAN_BYTES, Field::I64(SPAN_BYTES as i64)),
        (slot::tar::SIZE, Field::I64(blob_size as i64)),
    ];
    let [] = builder.table(root, &fields);
    builder.finish()
}

fn gzip_checkpoints(
    index: &LayerIndex,
    starts: &[Start],
    spans: &[digests::Hashed],
) -> std::result::Result<Vec<u8>, String> {
    if starts.len() != spans.len() {
        return Err(format!("{} spans of {} have passed by", spans.len(), starts.len()));
    }
    let mut bytes = Vec::with_capacity(starts.len() * checkpoints::CHECKPOINT_BYTES + 12);
    checkpoints::write_head(&mut bytes, starts.len() as i32, SPAN_BYTES as i64);
    for (start, hashed) in starts.iter().zip(spans) {
        let window = index.window(&index.spans[start.span])?;
        let bits = start.bits.unwrap_or(0);
        let checkpoint = Checkpoint { blob: hashed.blob, tar: start.tar, bits, window: &window };
        checkpoints::write_one(&mut bytes, &checkpoint);
    }
    Ok(bytes)
}

fn write_member(
    builder: &mut Builder,
    open: Open,
    entry: &Entry,
    raw: &RawMember,
) -> std::result::Result<(), String> {
    let Attributes { mode, uid, gid, mtime, xattrs } = &entry.attributes;
    let modified = rfc3339::format(*mtime)
        .ok_or_else(|| format!("modified {} seconds from 1970", mtime.seconds))?;
    let (kind, size) = match &entry.kind {
        EntryKind::Regular { size, .. } => ("reg", *size),
        EntryKind::Directory => ("dir", 0),
        EntryKind::Symlink { .. } => ("symlink", 0),
        EntryKind::Hardlink { .. } => ("hardlink", 0),
        EntryKind::CharDevice { .. } => ("char", 0),
        EntryKind::BlockDevice { .. } => ("block", 0),
        EntryKind::Fifo => ("fifo", 0),
    };
    let content = entry.offset + RECORD_BYTES as u64;
    let fields = [
        (slot::file::NAME, Field::Reference),
        (slot::file::TYPE, Field::Reference),
        (slot::file::OFFSET, Field::I64(content as i64)),
        (slot::file::SIZE, Field::I64(size as i64)),
        (slot::file::LINK, Field::Reference),
        (slot::file::MODE, Field::I64(i64::from(*mode))),
        (slot::file::UID, Field::U32(*uid)),
        (slot::file::GID, Field::U32(*gid)),
        (slot::file::MTIME, Field::Reference),
        (slot::file::DEVICE_MAJOR, Field::I64(raw.device.0)),
        (slot::file::DEVICE_MINOR, Field::I64(raw.device.1)),
        (slot::file::PAX, Field::Reference),
    ];
    let [name, type_name, link, mtime, pax] = builder.table(open, &fields);
    builder.string(name, &raw.name);
    builder.string(type_name, kind.as_bytes());
    builder.string(link, &raw.link);
    builder.string(mtime, modified.as_bytes());
    let places = builder.references(pax, xattrs.len());
    for (open, (name, value)) in places.zip(xattrs) {
        let fields = [(slot::pax::KEY, Field::Reference), (slot::pax::VALUE, Field::Reference)];
        let [key, place] = builder.table(open, &fields);
        builder.string(key, &[b"SCHILY.xattr.", name.as_slice()].concat());
        builder.string(place, value);
    }
    Ok(())
}
