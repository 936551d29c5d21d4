//! How a layer will be read: said before it is read, so that nobody is lazily surprised.

use super::cache::Cache;
use super::error::Result;
use super::store::Store;
use super::tables;
use crate::layout::index::{Origin, is_seekable};
use crate::layout::tree::Layer;

/// How the bytes of one layer come to a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// Blob (or decoded layer) and index are local: no request.
    Local,
    /// A pass has made an index, so only the spans that are read are fetched.
    OwnIndex,
    /// The same, by an index that somebody named: it came from elsewhere.
    SharedIndex,
    /// The same, by the table of contents in an eStargz layer.
    Estargz,
    /// The same, by the table of contents in a `zstd:chunked` layer.
    ZstdChunked,
    /// The same, by a SOCI zTOC.
    Soci,
    /// The index is local, but the layer has no place to start decoding at but its beginning: the
    /// first read of its content fetches it whole.
    WholeOnFirstRead,
    /// Nothing is known yet: one pass over the whole layer, once.
    OnePass,
    /// As [`How::OnePass`], from a local blob: no request.
    OnePassLocal,
}

impl How {
    /// What the store would do for `layer` now.
    ///
    /// # Errors
    /// Local trouble.
    pub fn of(store: &Store, layer: &Layer) -> Result<How> {
        let cache: &Cache = store.cache();
        let local = store.open_local(&layer.blob)?.is_some();
        let known = tables::look(store, layer, |index| {
            (is_seekable(&index.spans), index.origin, index.artifact, index.tar_size)
        });
        let Some((is_seekable, origin, artifact, tar_size)) = known else {
            return Ok(if local { How::OnePassLocal } else { How::OnePass });
        };
        let decoded = || cache.open_decoded(&layer.diff_id, tar_size).is_some();
        Ok(match (is_seekable, origin, artifact) {
            _ if local => How::Local,
            // Whoever can read spans does, and does not look for a decoded file.
            (true, Origin::Soci, _) => How::Soci,
            (true, _, Some(_)) => How::SharedIndex,
            (true, Origin::OnePass, None) => How::OwnIndex,
            (true, Origin::EStargz, None) => How::Estargz,
            (true, Origin::ZstdChunked, None) => How::ZstdChunked,
            (false, ..) if decoded() => How::Local,
            (false, ..) => How::WholeOnFirstRead,
        })
    }

    /// Reading needs no more of the layer than what is read.
    pub fn is_lazy(self) -> bool {
        match self {
            How::Local | How::OwnIndex | How::SharedIndex => true,
            How::Estargz | How::ZstdChunked | How::Soci => true,
            How::WholeOnFirstRead | How::OnePass | How::OnePassLocal => false,
        }
    }

    /// For people; `size` is the layer's, already formatted.
    pub fn describe(self, size: &str) -> String {
        match self {
            How::Local => "local".to_owned(),
            How::OwnIndex => "lazy, by own index".to_owned(),
            How::SharedIndex => "lazy, by shared index".to_owned(),
            How::Estargz => "lazy, by eStargz".to_owned(),
            How::ZstdChunked => "lazy, by zstd:chunked".to_owned(),
            How::Soci => "lazy, by SOCI".to_owned(),
            How::WholeOnFirstRead => format!("indexed; its first read fetches all {size}"),
            How::OnePass => format!("needs one pass of {size}"),
            How::OnePassLocal => format!("local; needs one pass of {size}"),
        }
    }
}
