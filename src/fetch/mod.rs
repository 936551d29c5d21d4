//! Where bytes come from: registries, local layouts, the cache. All I/O that is not FUSE.
//!
//! One seam: [`Source`]. Retry, limits, recording and fault injection are each a `Source` around a
//! `Source`.

pub mod ahead;
pub mod arrival;
pub mod auth;
pub mod cache;
mod cache_dir;
pub mod decoded;
pub mod error;
pub mod evict;
pub mod failover;
pub mod first_pass;
pub mod flight;
pub mod fresh;
pub mod hedge;
pub mod how;
pub mod http;
pub mod hydrate;
pub mod image;
pub mod in_place;
mod index_files;
pub mod kaniko;
pub mod layer;
pub mod layer_file;
pub mod layout_dir;
pub mod line;
pub mod local;
pub mod local_image;
mod memory;
pub mod overflow;
pub mod pledge;
pub mod prefetch;
pub mod proved;
pub mod record;
pub mod registry;
pub mod resolve;
pub mod resume;
pub mod retry;
pub mod rolling;
pub mod room;
pub mod run_image;
pub mod seal;
pub mod shared_index;
pub mod shared_trace;
pub mod span_reader;
pub mod spans;
pub mod sparse;
pub mod stamp;
pub mod store;
pub mod tables;
pub mod trace_file;
pub mod upper;
pub mod uses;
pub mod whole_file;
mod writing;

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::layout::range::ByteRange;
use crate::layout::{Blob, Digest};

pub use error::{Error, ErrorKind, Result};

/// A future on the heap: what makes [`Source`] usable as `dyn`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How long a read may wait *while no byte that it needs arrives*. Not a total time: bytes that
/// arrive start the wait anew, by [`Deadline::renewed`].
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    stall: Duration,
    at: Instant,
}

impl Deadline {
    /// A deadline `stall` from now.
    pub fn after(stall: Duration) -> Self {
        Deadline { stall, at: Instant::now() + stall }
    }

    /// The same patience, counted from now: a byte arrived.
    pub fn renewed(&self) -> Self {
        Deadline::after(self.stall)
    }

    /// The moment.
    pub fn at(&self) -> Instant {
        self.at
    }

    /// How long a wait without any byte may last.
    pub fn stall(&self) -> Duration {
        self.stall
    }

    /// The moment has passed.
    pub fn passed(&self) -> bool {
        Instant::now() >= self.at
    }
}

/// Bytes of one blob on their way. Nothing here is proved.
pub struct Body {
    /// What the chunks hold when all of them have come: it contains the range that was asked for,
    /// and may be wider (a server that ignores `Range` sends the whole blob).
    pub range: ByteRange,
    chunks: Box<dyn Chunks>,
}

/// Where a [`Body`] has its chunks from.
pub trait Chunks: Send {
    /// The next bytes in order; `None` after the last. An error ends the body.
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>>>;
}

impl Body {
    /// A body that delivers `range` from `chunks`. The maker promises that the chunks add up to
    /// the range's length, or end in an error.
    pub fn new(range: ByteRange, chunks: Box<dyn Chunks>) -> Self {
        Body { range, chunks }
    }

    /// A body that is here already.
    pub fn ready(range: ByteRange, bytes: Bytes) -> Self {
        struct Ready(Option<Bytes>);
        impl Chunks for Ready {
            fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>>> {
                Box::pin(std::future::ready(Ok(self.0.take())))
            }
        }
        Body::new(range, Box::new(Ready(Some(bytes))))
    }

    /// The next bytes in order; `None` after the last.
    ///
    /// # Errors
    /// Whatever ended the body before its range was complete.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        self.chunks.next().await
    }
}

/// What is wrong with bytes of a source, or with their coming.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distrust {
    /// They are not what their digest says.
    Wrong,
    /// They are not what an index says that came in this artifact: they are wrong, or it is.
    Doubted(Digest),
    /// They do not come, or hardly.
    Slow,
}

/// Where blobs can be read. The one seam for bytes.
///
/// Contract, which `tests/it/source_suite.rs` holds every source to:
/// - `range` lies within `0..blob.size` and is not empty (the caller's duty);
/// - the body delivers at least `range`; a short body is an error, never a quiet end;
/// - a blob that is not there is [`ErrorKind::NotFound`];
/// - after `deadline` without a byte it ends with [`ErrorKind::DeadlinePassed`];
/// - reads may run concurrently, and dropping the future or the body ends the work.
pub trait Source: Send + Sync {
    /// Starts reading `range` of `blob`.
    fn read<'a>(
        &'a self,
        blob: &'a Blob,
        range: ByteRange,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Body>>;

    /// Bytes of `range` that this source delivered are wrong, or do not come. `true`: asking again
    /// now can help. Wrong bytes then come from somewhere else, slow ones at least another way.
    fn distrust(&self, _blob: &Blob, _range: ByteRange, _why: Distrust) -> bool {
        false
    }

    /// For messages: `registry.example/library/debian`, `layout /path`.
    fn name(&self) -> String;
}
