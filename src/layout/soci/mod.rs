//! SOCI: indexes that others made of plain layers, and ours in their form.
//!
//! <https://github.com/awslabs/soci-snapshotter>, `ztoc/` and `soci/`. A SOCI index is an artifact
//! that lists a zTOC for each larger layer of an image ([`manifest`]); a zTOC says what files the
//! layer has and where its deflate stream can be entered ([`parse_ztoc`], [`Writer`]).
//!
//! What a zTOC does not say, or says otherwise than a pass over its layer:
//!
//! - It has no DiffID, and nothing in it proves the table of files. The manifest does not either.
//! - SOCI stops counting the tar behind its two zero records: the padding behind them belongs to no
//!   span's output, and `tar_size` is smaller by it.
//! - Of a sparse file it has the logical size and the first byte of what is stored, but no map.
//!   SOCI refuses GNU's own format and mistakes PAX's for plain content; here both are refused.
//! - SOCI makes none of an archive with global PAX headers, contiguous files or volume labels.
//! - A moment outside the years 0 to 9999 is an empty text, and a zone's offset lost its seconds.
//!   PAX says the moment once more, and that counts.
//! - Owners beyond 32 bits are cut to 32 where PAX does not say them once more. A pass refuses them.

mod checkpoints;
mod flatbuffer;
pub mod manifest;
mod members;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub use read::{SPANS_MAX, ZTOC_BYTES_MAX, parse_ztoc};
pub use write::{SPAN_BYTES, Writer};

/// The only version of zTOCs that there is. Older ones are of the same, but for the first
/// checkpoint: see `checkpoints`.
const VERSION: &[u8] = b"0.9";

/// Where the fields of each table are (`ztoc/fbs/ztoc.fbs`, `ztoc/compression/fbs/zinfo.fbs`): in
/// the order of the schema.
mod slot {
    pub(super) mod ztoc {
        pub(in super::super) const VERSION: u16 = 0;
        pub(in super::super) const BUILD_TOOL: u16 = 1;
        pub(in super::super) const COMPRESSED_SIZE: u16 = 2;
        pub(in super::super) const UNCOMPRESSED_SIZE: u16 = 3;
        pub(in super::super) const TOC: u16 = 4;
        pub(in super::super) const COMPRESSION: u16 = 5;
    }
    pub(super) mod toc {
        pub(in super::super) const FILES: u16 = 0;
    }
    pub(super) mod file {
        pub(in super::super) const NAME: u16 = 0;
        pub(in super::super) const TYPE: u16 = 1;
        pub(in super::super) const OFFSET: u16 = 2;
        pub(in super::super) const SIZE: u16 = 3;
        pub(in super::super) const LINK: u16 = 4;
        pub(in super::super) const MODE: u16 = 5;
        pub(in super::super) const UID: u16 = 6;
        pub(in super::super) const GID: u16 = 7;
        pub(in super::super) const MTIME: u16 = 10;
        pub(in super::super) const DEVICE_MAJOR: u16 = 11;
        pub(in super::super) const DEVICE_MINOR: u16 = 12;
        pub(in super::super) const PAX: u16 = 13;
    }
    pub(super) mod pax {
        pub(in super::super) const KEY: u16 = 0;
        pub(in super::super) const VALUE: u16 = 1;
    }
    pub(super) mod compression {
        pub(in super::super) const ALGORITHM: u16 = 0;
        pub(in super::super) const LAST_SPAN: u16 = 1;
        pub(in super::super) const DIGESTS: u16 = 2;
        pub(in super::super) const CHECKPOINTS: u16 = 3;
    }
    pub(super) mod tar {
        pub(in super::super) const VERSION: u16 = 0;
        pub(in super::super) const SPAN_BYTES: u16 = 1;
        pub(in super::super) const SIZE: u16 = 2;
    }
}

/// How the layer is compressed, as a zTOC says it.
const ALGORITHM_GZIP: i8 = 1;
const ALGORITHM_NONE: i8 = 2;
