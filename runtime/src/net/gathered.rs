//! A connection that is read and written in large pieces.
//!
//! HTTP/2 asks for the rest of one frame at a time and writes one frame at a time: a connection
//! with many busy streams costs two reads and a write of the socket for each message, and wakes its
//! peer each time. Here a read takes what has come, up to [`AHEAD_BYTES`]. Small writes of a busy
//! connection gather until they are [`GATHERED_BYTES`], or until the tasks that are ready beside
//! the connection's have had their turn. Large reads and writes go through as they are, and a
//! connection that has sent nothing for [`QUIET`] sends at once.
//!
//! Invariants:
//! - A flush that is put off wakes its task, and the second one without a write in between is
//!   carried out. The task of an HTTP/2 connection flushes whenever it is polled, so nothing stays
//!   behind. The first write of all goes out at once: before it has heard of its peer, a task may
//!   wait for that alone.
//! - A connection that has nothing to read or to write holds no buffer (I13).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;
use tonic::transport::server::Connected;

use crate::clock::Instant;

/// What a read takes beyond what was asked for. A read of as much goes through.
const AHEAD_BYTES: usize = 32 * 1024;
/// What small writes are gathered into.
const GATHERED_BYTES: usize = 64 * 1024;
/// A write of as much goes through.
const LARGE_WRITE_BYTES: usize = 32 * 1024;
/// Waiting for others costs a connection two turns of its task: too much for a single message.
const QUIET: Duration = Duration::from_micros(250);

/// See the module.
#[derive(Debug)]
pub struct Gathered<S> {
    stream: S,
    /// Read and not asked for yet.
    ahead: BytesMut,
    /// The last read was a large one: what comes is in large frames, whose heads are read alone,
    /// because what would be read ahead of them is copied.
    was_large: bool,
    /// Written and not sent yet.
    gathered: BytesMut,
    /// When it last sent something.
    last_sent: Option<Instant>,
    /// Something was written since the last flush: more may follow in the same turn of the task.
    is_fresh: bool,
    /// A turn of the task has ended with something to send.
    was_put_off: bool,
}

impl<S> Gathered<S> {
    /// Wraps a connection.
    #[must_use]
    pub fn new(stream: S) -> Gathered<S> {
        Gathered {
            stream,
            ahead: BytesMut::new(),
            was_large: false,
            gathered: BytesMut::new(),
            last_sent: None,
            is_fresh: false,
            was_put_off: false,
        }
    }

    fn is_quiet(&self) -> bool {
        self.last_sent.is_none_or(|at| at.elapsed() >= QUIET)
    }

    fn gather(&mut self, slices: &[IoSlice<'_>], bytes: usize) {
        if self.gathered.capacity() == 0 && bytes > GATHERED_BYTES / 16 {
            self.gathered.reserve(GATHERED_BYTES);
        }
        for slice in slices {
            self.gathered.extend_from_slice(slice);
        }
        self.is_fresh = true;
    }
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    /// Sends what was gathered.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.gathered.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while !self.gathered.is_empty() {
            let sent = Pin::new(&mut self.stream).poll_write(context, &self.gathered);
            match ready!(sent)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.gathered.advance(sent),
            }
        }
        self.gathered = BytesMut::new();
        self.was_put_off = false;
        self.last_sent = Some(Instant::now());
        Poll::Ready(Ok(()))
    }

    /// Whether what was gathered may wait for the next turn of the task.
    fn puts_off(&mut self) -> bool {
        let is_fresh = std::mem::take(&mut self.is_fresh);
        !self.gathered.is_empty() && (is_fresh || !std::mem::replace(&mut self.was_put_off, true))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.ahead.is_empty() {
            let is_large = buffer.remaining() >= AHEAD_BYTES;
            if std::mem::replace(&mut this.was_large, is_large) || is_large {
                return Pin::new(&mut this.stream).poll_read(context, buffer);
            }
            this.ahead.reserve(AHEAD_BYTES);
            let read = poll_read_buf(Pin::new(&mut this.stream), context, &mut this.ahead);
            if !matches!(read, Poll::Ready(Ok(_))) {
                this.ahead = BytesMut::new();
            }
            ready!(read)?;
        }
        let count = this.ahead.len().min(buffer.remaining());
        buffer.put_slice(&this.ahead[..count]);
        this.ahead.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
        let is_large = bytes >= LARGE_WRITE_BYTES;
        if is_large || (this.gathered.is_empty() && this.is_quiet()) {
            ready!(this.poll_send(context))?;
            let written = ready!(Pin::new(&mut this.stream).poll_write_vectored(context, slices));
            this.last_sent = Some(Instant::now());
            return Poll::Ready(written);
        }
        if this.gathered.len() + bytes > GATHERED_BYTES {
            ready!(this.poll_send(context))?;
        }
        this.gather(slices, bytes);
        Poll::Ready(Ok(bytes))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.puts_off() {
            context.waker().wake_by_ref();
            return Poll::Ready(Ok(()));
        }
        ready!(this.poll_send(context))?;
        Pin::new(&mut this.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl<S: Connected> Connected for Gathered<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> S::ConnectInfo {
        self.stream.connect_info()
    }
}

#[cfg(test)]
mod tests;
