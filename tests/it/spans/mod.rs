//! Layers as any writer compresses them, read in any order from any state of the cache: what `plan`
//! and the decoders give is a slice of the tar, and what is here is not fetched.

mod pure;
mod reader;
mod sample;
