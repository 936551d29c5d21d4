//! Our own encoding of `LayerIndex`: versioned, self-checking.
