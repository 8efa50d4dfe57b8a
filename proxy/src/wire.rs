//! A stream with its read buffer and its deadline: what both sides of an HTTP/1.1 exchange are made of.

use crate::deadline::Deadline;
use bytes::{BufMut, BytesMut};
use pingora::protocols::Stream;
use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Space that a read finds.
const READ: usize = 16 * 1024;

/// Buffers that a thread keeps at most.
const SPARES: usize = 64;

thread_local! {
    /// Space that nobody reads into. Most connections of a thread wait; they wait without a buffer, and whoever is next reads into the memory that
    /// was in use last.
    static SPARE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// A connection.
pub struct Wire {
    /// The stream.
    pub stream: Stream,
    /// What was read and not yet used.
    pub received: BytesMut,
    /// For reads and writes alike.
    pub deadline: Deadline,
}

impl Wire {
    /// A fresh connection.
    pub fn new(stream: Stream) -> Wire {
        Wire { stream, received: BytesMut::new(), deadline: Deadline::new() }
    }

    /// Leaves an empty buffer for the next read of this thread.
    pub fn spare(buffer: BytesMut) {
        SPARE.with_borrow_mut(|spares| {
            // One that grew is not worth keeping.
            if (1..=2 * READ).contains(&buffer.capacity()) && spares.len() < SPARES {
                spares.push(buffer);
            }
        });
    }

    fn space() -> BytesMut {
        let mut space = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
        space.reserve(READ);
        space
    }

    /// One read into the buffer; `Ok(0)` at the end of the stream.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.received.capacity() == 0 {
            self.received = Wire::space();
        } else if self.received.capacity() - self.received.len() < READ / 4 {
            self.received.reserve(READ);
        }
        let mut space = ReadBuf::uninit(self.received.spare_capacity_mut());
        let result = Pin::new(&mut self.stream).poll_read(cx, &mut space);
        let count = space.filled().len();
        // SAFETY: `poll_read` initialised and filled `count` bytes of the spare capacity.
        unsafe { self.received.advance_mut(count) };
        if self.received.is_empty() {
            Wire::spare(std::mem::take(&mut self.received));
        }
        result.map_ok(|()| count)
    }

    /// Waits for one read. Dropping the future loses nothing.
    ///
    /// Errors: `TimedOut` when the deadline is over, or the stream's own.
    pub async fn fill(&mut self) -> io::Result<usize> {
        poll_fn(|cx| {
            let poll = self.poll_fill(cx);
            self.deadline.guard(cx, poll)
        })
        .await
    }

    /// Writes all the parts, in one system call where the stream can, and flushes.
    pub async fn write_all(&mut self, parts: [&[u8]; 3]) -> io::Result<()> {
        send(&mut self.stream, &mut self.deadline, parts).await
    }

    /// Flushes what the stream buffers.
    pub async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|cx| {
            let poll = Pin::new(&mut self.stream).poll_flush(cx);
            self.deadline.guard(cx, poll)
        })
        .await
    }

    /// Writes both parts, of which `done` bytes were written before, but stops when the other side sends something: a peer that answers before it
    /// has read the whole request may never read the rest. How many bytes are written now, of all.
    pub async fn write_unless_answered(&mut self, [first, second]: [&[u8]; 2], mut done: usize) -> io::Result<usize> {
        let total = first.len() + second.len();
        while done < total {
            let count = poll_fn(|cx| {
                if let Poll::Ready(count) = poll_write(&mut self.stream, cx, [first, second, &[]], done)? {
                    return Poll::Ready(Ok(Some(count)));
                }
                match self.poll_fill(cx) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                    Poll::Ready(Ok(_)) => return Poll::Ready(Ok(None)),
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                    Poll::Pending => {}
                }
                self.deadline.guard(cx, Poll::Pending)
            })
            .await?;
            match count {
                Some(count) => done += count,
                None => return Ok(done),
            }
        }
        self.flush().await?;
        Ok(done)
    }

    /// Tells the other side that nothing more comes, then reads and drops what it still sends, for a short while: closing with
    /// unread bytes makes the kernel send a reset, which can destroy the answer before it was read.
    pub async fn linger(mut self) {
        self.deadline.set(std::time::Duration::from_secs(2));
        let _ = poll_fn(|cx| {
            let poll = Pin::new(&mut self.stream).poll_shutdown(cx);
            self.deadline.guard(cx, poll)
        })
        .await;
        let mut budget = 256 * 1024usize;
        while budget > 0 {
            self.received.clear();
            match self.fill().await {
                Ok(count) if count > 0 => budget = budget.saturating_sub(count),
                _ => return,
            }
        }
    }
}

/// Writes all the parts, in one system call where the stream can, and flushes; what the stream received may be borrowed meanwhile.
pub async fn send(stream: &mut Stream, deadline: &mut Deadline, parts: [&[u8]; 3]) -> io::Result<()> {
    let total = parts.iter().map(|p| p.len()).sum();
    let mut done = 0;
    poll_fn(|cx| {
        while done < total {
            let poll = poll_write(stream, cx, parts, done);
            match deadline.guard(cx, poll) {
                Poll::Ready(Ok(count)) => done += count,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        let poll = Pin::new(&mut *stream).poll_flush(cx);
        deadline.guard(cx, poll)
    })
    .await
}

fn poll_write(stream: &mut Stream, cx: &mut Context<'_>, parts: [&[u8]; 3], done: usize) -> Poll<io::Result<usize>> {
    let mut skip = done;
    let mut left = [IoSlice::new(&[]); 3];
    let mut count = 0;
    for part in parts {
        let rest = &part[skip.min(part.len())..];
        skip = skip.saturating_sub(part.len());
        if !rest.is_empty() {
            left[count] = IoSlice::new(rest);
            count += 1;
        }
    }
    let poll = match &left[..count] {
        [one] => Pin::new(stream).poll_write(cx, one),
        several => Pin::new(stream).poll_write_vectored(cx, several),
    };
    match poll {
        Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        other => other,
    }
}
