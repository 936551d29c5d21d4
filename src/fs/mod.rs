//! How the kernel sees it: serves any [`Tree`](crate::layout::tree::Tree) through FUSE.
