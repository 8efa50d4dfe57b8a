//! Response bodies: whole, in pieces over time, filler of a given size, and bodies that break off.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;

/// What every stub answers with.
pub type Body = UnsyncBoxBody<Bytes, StubError>;

/// Why a stub ends an exchange without a whole answer. Given to hyper, it makes hyper drop the connection
/// (HTTP/1.1) or reset the stream (HTTP/2), which is just what a broken service looks like from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StubError {
    /// The connection is closed before an answer.
    Closed,
    /// The body ends before its declared or chunked end.
    Cut,
}

impl fmt::Display for StubError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StubError::Closed => "closed on purpose",
            StubError::Cut => "cut on purpose",
        })
    }
}

impl std::error::Error for StubError {}

/// No body at all.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// One known body; hyper declares its length.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A body whose pieces come one by one with `gap` between them: chunked on HTTP/1.1.
pub fn pieces(parts: Vec<Bytes>, gap: Duration) -> Body {
    let queue: VecDeque<Bytes> = parts.into();
    from_stream(stream::unfold(
        (queue, true),
        move |(mut queue, first)| async move {
            let next = queue.pop_front()?;
            if !first && !gap.is_zero() {
                tokio::time::sleep(gap).await;
            }
            Some((next, (queue, false)))
        },
    ))
}

/// A body from any stream of bytes, of unknown length.
pub fn from_stream(bytes: impl Stream<Item = Bytes> + Send + 'static) -> Body {
    StreamBody::new(bytes.map(|b| Ok::<_, StubError>(Frame::data(b)))).boxed_unsync()
}

/// `size` bytes of filler made as it is sent, so that large sizes cost no memory. With `html`, the last bytes
/// are `</html>`, so that a cache takes it for a complete page.
pub fn filler(size: u64, html: bool) -> Body {
    const LINE: &[u8] = b"<!-- filler for a body of a chosen size, 64 bytes to the line -->\n";
    const END: &[u8] = b"</html>";
    const BLOCK: u64 = 16 * 1024;
    let end = if html && size >= END.len() as u64 {
        END
    } else {
        b""
    };
    let middle = size - end.len() as u64;
    let block: Bytes = LINE.iter().copied().cycle().take(BLOCK as usize).collect();
    let blocks = stream::unfold(0u64, move |sent| {
        let block = block.clone();
        async move {
            if sent >= middle {
                return None;
            }
            let now = BLOCK.min(middle - sent);
            Some((block.slice(..now as usize), sent + now))
        }
    });
    let tail = stream::iter((!end.is_empty()).then(|| Bytes::from_static(end)));
    from_stream(blocks.chain(tail))
}

/// How a body that is cut on purpose stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The connection is dropped.
    Break,
    /// Nothing more comes, but the connection stays open.
    Stall,
}

/// Passes the first `keep` bytes of a body on and then stops. The stop comes a moment after the last byte, so
/// that hyper has put those bytes on the wire by then and the client truly sees half an answer.
pub fn cut(inner: Body, keep: u64, stop: Stop) -> Body {
    Cut {
        inner,
        keep,
        stop,
        pause: None,
    }
    .boxed_unsync()
}

struct Cut {
    inner: Body,
    keep: u64,
    stop: Stop,
    pause: Option<Pin<Box<Sleep>>>,
}

const BEFORE_CUT: Duration = Duration::from_millis(30);

impl HttpBody for Cut {
    type Data = Bytes;
    type Error = StubError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StubError>>> {
        let this = &mut *self;
        if this.keep > 0 {
            match Pin::new(&mut this.inner).poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(frame))) => {
                    if let Ok(mut data) = frame.into_data() {
                        data.truncate(usize::try_from(this.keep).unwrap_or(usize::MAX));
                        this.keep -= data.len() as u64;
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                    this.keep = 0;
                }
                Poll::Ready(_) => this.keep = 0,
            }
        }
        if this.stop == Stop::Stall {
            return Poll::Pending;
        }
        let pause = this
            .pause
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(BEFORE_CUT)));
        match pause.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => Poll::Ready(Some(Err(StubError::Cut))),
        }
    }
}

/// Carries a value until the body has been sent or dropped.
pub fn holding<T: Send + Unpin + 'static>(inner: Body, held: T) -> Body {
    Holding { inner, _held: held }.boxed_unsync()
}

struct Holding<T> {
    inner: Body,
    _held: T,
}

impl<T: Unpin> HttpBody for Holding<T> {
    type Data = Bytes;
    type Error = StubError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StubError>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
