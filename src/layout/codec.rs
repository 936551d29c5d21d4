//! Decodes spans and streams: stored, gzip, zstd.
