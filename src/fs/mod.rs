//! How the kernel sees it: serves any [`Tree`](crate::layout::tree::Tree) through FUSE.

pub mod attr;
pub mod complaints;
pub mod counters;
pub mod errno;
pub mod fuse;
pub mod images;
pub mod mount;
pub mod mounts;
pub mod open_files;
pub mod opens;
pub mod ops;
pub mod overlay;
pub mod passthrough;
pub mod pending;
pub mod policy;
pub mod poll;
pub mod push;
pub mod scan;
pub mod scratch;
pub mod status;
pub mod user_namespace;
