//! The client's side of an exchange, whatever the protocol. The pipeline is written against this trait and never sees a socket, so
//! that HTTP/1.1, HTTP/2 and Weir's own warm-up requests can not drift apart.

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, response};
use std::future::Future;

/// What the request announces about its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestBody {
    /// There is none.
    Empty,
    /// This many bytes.
    Length(u64),
    /// Unknown length.
    Unknown,
}

/// How the answer's end is marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerBody {
    /// None at all (HEAD, 204, 304); a `Content-Length` field in the head stays as it is.
    Empty,
    /// This many bytes will be written.
    Length(u64),
    /// Unknown: chunks, or the end of the connection.
    Unknown,
}

/// Why the client's side failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The connection is gone.
    #[error("client gone")]
    Gone,
    /// It sent or took nothing for too long.
    #[error("client too slow")]
    Slow,
    /// Its body breaks the framing rules.
    #[error("malformed request body")]
    Malformed,
    /// Its body is longer than allowed.
    #[error("request body too large")]
    TooLarge,
}

/// One exchange with a client.
pub trait Downstream: Send {
    /// What the request announces about its body.
    fn request_body(&self) -> RequestBody;

    /// The next piece of the request body; `None` at its end. Dropping the future loses nothing.
    fn read(&mut self) -> impl Future<Output = Result<Option<Bytes>, ClientError>> + Send;

    /// Returns when the client has vanished: reset, or silent for a while after it finished sending. Dropping the future loses nothing.
    fn gone(&mut self) -> impl Future<Output = ()> + Send;

    /// Writes the head. It may wait in a buffer until the first piece of the body.
    fn head(&mut self, parts: &response::Parts, body: AnswerBody) -> impl Future<Output = Result<(), ClientError>> + Send;

    /// Writes an interim answer (1xx, but neither 100 nor 101).
    fn interim(&mut self, parts: &response::Parts) -> impl Future<Output = Result<(), ClientError>> + Send;

    /// Writes a piece of the body.
    fn write(&mut self, piece: Bytes) -> impl Future<Output = Result<(), ClientError>> + Send;

    /// Sends what waits in a buffer.
    fn flush(&mut self) -> impl Future<Output = Result<(), ClientError>> + Send {
        async { Ok(()) }
    }

    /// The request's body as a stream of its own, where the protocol has two directions at once. From then on `read` gives nothing.
    fn take_body(&mut self) -> Option<Box<dyn RequestStream>> {
        None
    }

    /// What followed the request's body, once that was read to its end.
    fn request_trailers(&mut self) -> Option<HeaderMap> {
        None
    }

    /// What follows the answer's body: `end` sends it where protocol and client allow that (RFC 9110 section 6.5).
    fn trailers(&mut self, _trailers: HeaderMap) {}

    /// The body is complete.
    fn end(&mut self) -> impl Future<Output = Result<(), ClientError>> + Send;

    /// The body can not be completed: the client must notice. Nothing was sent yet if `head` was not called.
    fn abort(&mut self);

    /// Gives the raw bytes after a `101`; what the client sent already is in front. `None` where the client asked for no such thing.
    fn upgrade(&mut self) -> Option<Raw<'_>>;
}

/// A request's body that flows while its answer flows.
#[async_trait]
pub trait RequestStream: Send {
    /// The next piece; `None` at the end.
    async fn read(&mut self) -> Result<Option<Bytes>, ClientError>;

    /// What followed the body.
    fn trailers(&mut self) -> Option<HeaderMap>;
}

/// The two directions of an upgraded connection.
pub struct Raw<'a> {
    /// Bytes received already.
    pub received: Bytes,
    /// The stream.
    pub stream: &'a mut pingora::protocols::Stream,
}
