//! What the tests stand on: a registry in this process, faults on its wire.
#![allow(dead_code)] // each test uses its part, and the demo registry another.

pub mod answer;
pub mod faults;
pub mod image;
pub mod layer;
pub mod registry;
pub mod tokens;
pub mod uploads;
