//! The TCP stream under hyper, with a switch by which a request makes its own connection misbehave below HTTP.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

const NORMAL: u8 = 0;
const RESET: u8 = 1;
const GARBAGE: u8 = 2;
const DONE: u8 = 3;

/// What a garbage answer consists of: neither an HTTP/1.1 status line nor an HTTP/2 frame.
pub(crate) const GARBAGE_BYTES: &[u8] = b"\x00\xffNOT/HTTP ???\r\n\x1b[31mgarbage\x00\r\n\r\n";

/// Told what to do by the request, obeyed by the [`Wire`].
#[derive(Debug, Clone, Default)]
pub(crate) struct Switch(Arc<AtomicU8>);

impl Switch {
    /// From now on, closing means RST.
    pub fn reset(&self) {
        self.0.store(RESET, Ordering::SeqCst);
    }

    /// The next write goes out as garbage, and then the connection fails.
    pub fn garbage(&self) {
        self.0.store(GARBAGE, Ordering::SeqCst);
    }

    fn mode(&self) -> u8 {
        self.0.load(Ordering::SeqCst)
    }
}

/// A TCP stream that obeys its [`Switch`].
pub(crate) struct Wire {
    stream: TcpStream,
    switch: Switch,
}

impl Wire {
    pub fn new(stream: TcpStream) -> (Wire, Switch) {
        let switch = Switch::default();
        (
            Wire {
                stream,
                switch: switch.clone(),
            },
            switch,
        )
    }

    /// `Some` if the write must not go through as it is.
    fn spoil(&mut self, cx: &mut Context<'_>) -> Option<Poll<io::Result<usize>>> {
        match self.switch.mode() {
            NORMAL => None,
            GARBAGE => match Pin::new(&mut self.stream).poll_write(cx, GARBAGE_BYTES) {
                Poll::Pending => Some(Poll::Pending),
                Poll::Ready(_) => {
                    self.switch.0.store(DONE, Ordering::SeqCst);
                    Some(Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())))
                }
            },
            _ => Some(Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))),
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(spoilt) = self.spoil(cx) {
            return spoilt;
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(spoilt) = self.spoil(cx) {
            return spoilt;
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.switch.mode() == RESET {
            // A FIN first would make the RST come too late to be seen as one.
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.switch.mode() == RESET {
            // With a linger time of zero the kernel answers close() with RST.
            let _ = self.stream.set_zero_linger();
        }
    }
}
