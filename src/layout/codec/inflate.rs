//! Raw deflate (RFC 1951) that can stop between two blocks, and start there again.
//!
//! The safe interfaces of zlib-rs and flate2 tell neither where a block ends nor do they start in
//! the middle of a byte, so this module calls zlib's own interface. It is the only one with
//! `unsafe`; each use says why it is sound. Nothing here depends on the bytes being honest: zlib-rs
//! is itself written in Rust, and keeps to the lengths that it is given.
#![allow(unsafe_code)]

use std::mem::size_of;

use libz_rs_sys::{
    Z_BLOCK, Z_BUF_ERROR, Z_NO_FLUSH, Z_OK, Z_STREAM_END, inflate, inflateEnd,
    inflateGetDictionary, inflateInit2_, inflatePrime, inflateReset, inflateSetDictionary,
    z_stream, zlibVersion,
};

/// The farthest that a block refers back (RFC 1951, 2), and so the most that a start between two
/// blocks needs to know of what came before.
pub const WINDOW_BYTES_MAX: usize = 32 << 10;

/// "Raw deflate with the largest window", in zlib's words.
const RAW: i32 = -15;

/// Flags and mask of `z_stream::data_type` after a call with `Z_BLOCK` (zlib.h, `inflate`).
const BITS_UNUSED: i32 = 0b111;
const IN_LAST_BLOCK: i32 = 64;
const BETWEEN_BLOCKS: i32 = 128;

/// What a call of [`Inflate::run`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::layout) struct Ran {
    /// Bytes of the input that are used up. Of the last one, [`At::Boundary`] says how much.
    pub(in crate::layout) consumed: usize,
    /// Bytes of output.
    pub(in crate::layout) produced: usize,
    /// Where it stands.
    pub(in crate::layout) at: At,
}

/// Where a stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::layout) enum At {
    /// Somewhere inside.
    Within,
    /// Behind one block and in front of another, with so many bits (0 to 7) of the last byte left.
    Boundary {
        /// The highest ones of the byte.
        bits: u8,
    },
    /// Behind the last block.
    End,
}

/// A raw deflate stream that is decoded in pieces of any size.
///
/// After an error it is of no use until [`Inflate::reset`].
pub(in crate::layout) struct Inflate {
    /// Initialised from `new` to `drop`. In a box, because zlib's contract is that it stays where
    /// it is; without pointers to input and output but during a call.
    stream: Box<z_stream>,
}

// SAFETY: the stream owns its state, an allocation of the global allocator that nobody else points
// to, and input and output are borrowed for single calls only. So it may change its thread.
unsafe impl Send for Inflate {}

impl Inflate {
    /// A stream at its start.
    ///
    /// # Errors
    /// There is no memory for its 40 KiB of state.
    pub(in crate::layout) fn new() -> Result<Self, String> {
        let mut stream = Box::new(z_stream::default());
        // SAFETY: the stream is valid and exclusive, `default` has set its allocator; the version
        // is zlib-rs' own, a C string that lives forever; the size is that of the stream.
        let code = unsafe {
            inflateInit2_(&raw mut *stream, RAW, zlibVersion(), size_of::<z_stream>() as i32)
        };
        match code {
            Z_OK => Ok(Inflate { stream }),
            code => Err(format!("cannot start zlib: code {code}")),
        }
    }

    /// Goes back to the start of a stream, keeping the memory.
    pub(in crate::layout) fn reset(&mut self) {
        // SAFETY: the stream is valid, exclusive, and initialised. (That is all that can fail.)
        unsafe { inflateReset(&raw mut *self.stream) };
    }

    /// Goes to a place between two blocks: the highest `bits` (0 to 7) of `byte` come before the
    /// input, and `window` (at most [`WINDOW_BYTES_MAX`]) came before the output.
    ///
    /// # Errors
    /// More bits than a byte has left, or a longer window.
    pub(in crate::layout) fn resume(
        &mut self,
        bits: u8,
        byte: u8,
        window: &[u8],
    ) -> Result<(), String> {
        if bits > 7 || window.len() > WINDOW_BYTES_MAX {
            return Err(format!("no start: {bits} bits, a window of {} bytes", window.len()));
        }
        self.reset();
        if bits > 0 {
            let value = i32::from(byte) >> (8 - bits);
            // SAFETY: the stream is valid, exclusive, and initialised; bits are at most 16.
            let code = unsafe { inflatePrime(&raw mut *self.stream, bits.into(), value) };
            if code != Z_OK {
                return Err(format!("zlib refuses {bits} bits: code {code}"));
            }
        }
        if !window.is_empty() {
            // SAFETY: the stream is valid, exclusive, and initialised; the pointer is to as many
            // readable bytes as the length says, which fits (it was checked), and zlib copies them.
            let code = unsafe {
                inflateSetDictionary(&raw mut *self.stream, window.as_ptr(), window.len() as u32)
            };
            if code != Z_OK {
                return Err(format!("zlib refuses a window: code {code}"));
            }
        }
        Ok(())
    }

    /// Decodes some of `input` into `output`, at most until either is used up; with
    /// `stop_at_boundary` not beyond the next place between two blocks.
    ///
    /// # Errors
    /// Not a deflate stream.
    pub(in crate::layout) fn run(
        &mut self,
        input: &[u8],
        output: &mut [u8],
        stop_at_boundary: bool,
    ) -> Result<Ran, String> {
        let flush = if stop_at_boundary { Z_BLOCK } else { Z_NO_FLUSH };
        let mut ran = self.call(input, output, flush)?;
        if ran.at == At::Within && stop_at_boundary && self.stream.data_type & IN_LAST_BLOCK != 0 {
            // It may have stopped behind the last block, which is no place to start at, and where
            // the same call would stop again.
            let rest =
                self.call(&input[ran.consumed..], &mut output[ran.produced..], Z_NO_FLUSH)?;
            let (consumed, produced) = (ran.consumed + rest.consumed, ran.produced + rest.produced);
            ran = Ran { consumed, produced, at: rest.at };
        }
        Ok(ran)
    }

    fn call(&mut self, input: &[u8], output: &mut [u8], flush: i32) -> Result<Ran, String> {
        let given_in = u32::try_from(input.len()).unwrap_or(u32::MAX);
        let given_out = u32::try_from(output.len()).unwrap_or(u32::MAX);
        let stream = &mut *self.stream;
        (stream.next_in, stream.avail_in) = (input.as_ptr(), given_in);
        (stream.next_out, stream.avail_out) = (output.as_mut_ptr(), given_out);
        // SAFETY: the stream is valid, exclusive, and initialised. `next_in` points to `avail_in`
        // readable and `next_out` to `avail_out` writable bytes: both slices are at least as long,
        // borrowed for the whole call, and cannot overlap.
        let code = unsafe { inflate(&raw mut *stream, flush) };
        let consumed = (given_in - stream.avail_in) as usize;
        let produced = (given_out - stream.avail_out) as usize;
        // No pointer outlives what it points to.
        (stream.next_in, stream.avail_in) = (std::ptr::null(), 0);
        (stream.next_out, stream.avail_out) = (std::ptr::null_mut(), 0);
        let flags = stream.data_type;
        let at = match code {
            Z_STREAM_END => At::End,
            // The second: neither input nor output was left to advance with.
            Z_OK | Z_BUF_ERROR => {
                let stands = flags & (BETWEEN_BLOCKS | IN_LAST_BLOCK);
                if flush == Z_BLOCK && stands == BETWEEN_BLOCKS {
                    At::Boundary { bits: (flags & BITS_UNUSED) as u8 }
                } else {
                    At::Within
                }
            }
            code => return Err(format!("zlib ends with code {code}")),
        };
        Ok(Ran { consumed, produced, at })
    }

    /// What later blocks may refer to: the last output, at most [`WINDOW_BYTES_MAX`].
    pub(in crate::layout) fn window(&mut self) -> Vec<u8> {
        let mut window = vec![0; WINDOW_BYTES_MAX];
        let mut length = 0;
        // SAFETY: the stream is valid, exclusive, and initialised; zlib writes at most 32 KiB, which
        // is what there is, and their number through a valid pointer.
        let code = unsafe {
            inflateGetDictionary(&raw const *self.stream, window.as_mut_ptr(), &raw mut length)
        };
        window.truncate(if code == Z_OK { length as usize } else { 0 });
        window
    }
}

impl Drop for Inflate {
    fn drop(&mut self) {
        // SAFETY: the stream is valid, exclusive, and initialised; nobody uses it after this.
        unsafe { inflateEnd(&raw mut *self.stream) };
    }
}
