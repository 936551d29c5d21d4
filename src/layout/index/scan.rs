//! One pass over a plain layer: bytes of the blob to `LayerIndex` and DiffID.
