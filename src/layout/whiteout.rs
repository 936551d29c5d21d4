//! Classifies a name: plain, whiteout of a sibling, opaque whiteout, reserved.
