//! A connection's stream that tells when the kernel has all that was written, so that a fault cuts
//! it at the byte and not somewhere before.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// How often one connection was flushed.
#[derive(Clone, Default)]
pub struct Flushes(Arc<watch::Sender<u64>>);

impl Flushes {
    /// Waits until what was written so far is with the kernel, which delivers it before the end of
    /// the connection.
    pub async fn next(&self) {
        // Its sender is here: there is no error.
        let _ = self.0.subscribe().changed().await;
    }
}

/// A stream that counts its flushes. Hyper flushes it when its own buffer is empty.
pub struct Wire {
    stream: TcpStream,
    flushes: Flushes,
}

impl Wire {
    pub fn new(stream: TcpStream) -> (Self, Flushes) {
        let flushes = Flushes::default();
        (Wire { stream, flushes: flushes.clone() }, flushes)
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(task, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(task, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(task, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(task);
        if flushed.is_ready() {
            self.flushes.0.send_modify(|count| *count += 1);
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(task)
    }
}
