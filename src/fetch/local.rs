//! Source: the blobs of a layout directory.
