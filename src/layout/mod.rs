//! What the bytes mean: OCI documents, layers, trees, plans. (Not only image layouts: tar is here.)
//!
//! Pure: bytes in, values out. No files, sockets, clock, environment or threads; `clippy.toml`
//! lists what may not be named here and why. Sizes and names from outside are hostile: checked
//! arithmetic, and a named limit on every loop and allocation.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

pub mod accounts;
pub mod buildpacks;
pub mod changeset;
pub mod codec;
pub mod digest;
pub mod dump;
pub mod entry;
pub mod error;
pub mod image_argument;
pub mod index;
pub mod layout_path;
pub mod merge;
pub mod mount_points;
pub mod oci;
pub mod pax;
pub mod plan;
pub mod provenance;
pub mod range;
pub mod reference;
pub(crate) mod rfc3339;
pub mod run_image_label;
pub mod runtime;
pub mod shadow;
pub mod soci;
pub mod sparse;
pub mod tar;
pub mod tar_write;
pub mod toc;
pub mod trace;
pub mod tree;
pub mod view;
pub mod whiteout;

pub use digest::{Blob, Digest};
pub use error::Error;
