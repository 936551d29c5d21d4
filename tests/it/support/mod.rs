//! What the tests stand on: a registry, faults on its wire, images, mounts, listings of trees.
#![allow(dead_code)] // each test uses its part, and the demo registry another.

pub mod answer;
pub mod app;
pub mod chance;
pub mod faults;
pub mod image;
pub mod layer;
pub mod listing;
pub mod mount;
pub mod referrers;
pub mod registry;
pub mod tokens;
pub mod uploads;
