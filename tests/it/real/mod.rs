//! layoutfs against the tools that it must agree with, on a real Debian image.
//!
//! Needs root, FUSE and what `tests/setup-debian.sh` installs; without them these tests fail, they
//! are never left out. The image is made once (`tests/fixtures/debian-image.sh`) and kept in
//! `target/fixtures`.

mod app_layout;
mod commit;
pub mod containers;
mod counts;
pub mod debian;
mod layout_view;
mod paths;
pub mod programs;
mod referrers;
mod rootfs;
