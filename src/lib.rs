//! layoutfs: a lazy filesystem for OCI image layouts.
//!
//! [`layout`] says what the bytes mean. [`fetch`] says where bytes come from. [`fs`] shows them to
//! the kernel. Nothing points back: `layout` is pure, `fetch` may use `layout`, `fs` may use both.
//! The command line (`src/main.rs`, `src/cli/`) wires them together.

pub mod cli;
pub mod fetch;
pub mod fs;
pub mod layout;
