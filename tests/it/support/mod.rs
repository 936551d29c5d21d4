//! What the tests stand on: a registry, faults on its wire, images, mounts, listings of
//! trees, and that no test leaves anything behind.
#![allow(dead_code)] // each test uses its part, and the demo registry another.

pub mod answer;
pub mod app;
pub mod chance;
pub mod faults;
pub mod ground;
pub mod image;
pub mod layer;
pub mod listing;
pub mod modes;
pub mod mount;
pub mod referrers;
pub mod registry;
pub mod tokens;
pub mod until;
pub mod uploads;
pub mod wire;
