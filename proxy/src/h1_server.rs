//! HTTP/1.1 towards clients: one connection, request after request. Every head passes the strict parser; what it refuses is answered
//! here and the connection closed, so that nothing behind a refused head is ever read as a request.

use crate::{
    fast::{Lane, Served},
    gateway::Handed,
    downstream::{AnswerBody, ClientError, Downstream, Raw, RequestBody},
    h1::{self, BodyDecoder, BodyLength, Connection, Decoded, RequestHead, ResponseLength},
    server::{Door, Peer},
    wire::Wire,
    work,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header, response};
use pingora::{protocols::Stream, server::ShutdownWatch};
use std::{
    future::poll_fn,
    io::{self, Write as _},
    task::Poll,
    time::Duration,
};

/// A client that finished sending may still read (a half-closed connection), but most have left. So long it is given an upstream's silence.
const HALF_CLOSED: Duration = Duration::from_secs(10);
/// A connection whose last answer is no older than this counts as busy.
const SOON: Duration = Duration::from_secs(1);
/// Bytes of a request body that are read and dropped after an answer, so that the connection can be used again.
const DRAIN: u64 = 64 * 1024;

/// Serves a connection until it ends. Returns the stream and what was read of it when the client turns out to speak HTTP/2.
pub async fn serve(door: &Door, stream: Stream, peer: &Peer, shutdown: &ShutdownWatch) -> Option<(Stream, Bytes)> {
    let mut wire = Wire::new(stream);
    let mut lane = Lane::default();
    let mut out = Vec::new();
    loop {
        let (head, handed) = match read_head(&mut wire, &mut lane, door, peer, shutdown).await {
            HeadRead::Request(head, handed) => (head, handed),
            HeadRead::Http2 => return Some((wire.stream, wire.received.freeze())),
            HeadRead::Refused(status, reason) => {
                door.refused(peer, status, reason);
                refuse(wire, status, reason).await;
                return None;
            }
            HeadRead::Closed => return None,
        };
        let takes_trailers = work::takes_trailers(&head.parts.headers);
        let settings = door.settings();
        let (http10, keep_alive, head_only) = (head.http10, head.keep_alive, head.parts.method == Method::HEAD);
        let request_body = match head.body {
            BodyLength::None | BodyLength::Length(0) => RequestBody::Empty,
            BodyLength::Length(length) => RequestBody::Length(length),
            BodyLength::Chunked => RequestBody::Unknown,
        };
        let mut exchange = H1 {
            wire: &mut wire,
            decoder: BodyDecoder::request(head.body),
            request_body,
            read_done: request_body == RequestBody::Empty,
            received: 0,
            max_body: settings.max_body,
            body_timeout: settings.body_timeout,
            owes_continue: head.expect_continue,
            http10,
            head_only,
            // A server that is shutting down says so with its last answer.
            close: !keep_alive || shuts_down(shutdown),
            out: &mut out,
            framing: ResponseLength::None,
            half_closed: false,
            state: State::Waiting,
            upgraded: false,
            takes_trailers,
            request_trailers: None,
            trailers: None,
        };
        // Apart from the connection, which lasts longer and would keep the room.
        match handed {
            Some(handed) => Box::pin(door.go_on(head.parts, *handed, &mut exchange)).await,
            None => Box::pin(door.handle(head.parts, peer, &mut exchange)).await,
        }
        let ended = exchange.finish().await;
        match ended {
            After::Reuse => {}
            After::Linger => {
                wire.linger().await;
                return None;
            }
            After::Drop => return None,
        }
    }
}

enum HeadRead {
    /// A request, and how far the fast lane came with it.
    Request(RequestHead, Option<Box<Handed>>),
    Http2,
    Refused(StatusCode, &'static str),
    Closed,
}

/// Whether the server is shutting down. The watch changes once, from `false` to `true`.
pub(crate) fn shuts_down(shutdown: &ShutdownWatch) -> bool {
    shutdown.has_changed().unwrap_or(true)
}

/// Waits for the first bytes of the next request; `Ok(0)`: there will be none. A busy connection, whose next request comes soon,
/// does not watch for the server's end: to register with the watch and to leave it again costs locks that all threads share.
async fn next_request(wire: &mut Wire, keepalive: Duration, shutdown: &ShutdownWatch) -> io::Result<usize> {
    wire.deadline.set(SOON.min(keepalive));
    match wire.fill().await {
        Err(error) if error.kind() == io::ErrorKind::TimedOut && keepalive > SOON => {}
        filled => return filled,
    }
    if shuts_down(shutdown) {
        return Ok(0);
    }
    wire.deadline.set(keepalive - SOON);
    let mut stop = shutdown.clone();
    tokio::select! {
        biased;
        filled = wire.fill() => filled,
        _ = stop.changed() => Ok(0),
    }
}

async fn read_head(wire: &mut Wire, lane: &mut Lane, door: &Door, peer: &Peer, shutdown: &ShutdownWatch) -> HeadRead {
    let settings = door.settings();
    let mut scan = h1::HeadScan::default();
    let mut begun = false;
    let mut handed: Option<Box<Handed>> = None;
    loop {
        if !wire.received.is_empty() {
            if !begun && !shuts_down(shutdown) {
                match lane.serve(door, peer, wire).await {
                    Served::Yes => continue,
                    Served::Broken => return HeadRead::Closed,
                    Served::No => {}
                    Served::Begun(so_far) => handed = Some(so_far),
                }
            }
            // The limits that hold now, or held for the fast lane: it may have sent the request already.
            let max_head = handed.as_ref().map_or_else(|| door.settings().max_head, |handed| handed.live.settings.max_head);
            let limits = h1::Limits { max_head, max_headers: 128 };
            match h1::parse_request(&mut wire.received, &limits, &mut scan) {
                Ok(h1::Parsed::Request(head)) => return HeadRead::Request(*head, handed),
                Ok(h1::Parsed::Http2Preface) => return HeadRead::Http2,
                Ok(h1::Parsed::Partial) => {}
                Err(error) => return HeadRead::Refused(error.status, error.reason),
            }
            if !begun {
                // The whole head must arrive in this time, however many packets it takes.
                begun = true;
                wire.deadline.set(settings.head_timeout);
            }
        } else if shuts_down(shutdown) {
            return HeadRead::Closed;
        }
        let filled = if begun { wire.fill().await } else { next_request(wire, settings.keepalive, shutdown).await };
        match filled {
            Ok(0) => return HeadRead::Closed,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::TimedOut && begun => {
                return HeadRead::Refused(StatusCode::REQUEST_TIMEOUT, "the request head did not arrive in time");
            }
            Err(_) => return HeadRead::Closed,
        }
    }
}

/// Answers a head that can not be read; there is no request to negotiate a form with.
async fn refuse(mut wire: Wire, status: StatusCode, reason: &str) {
    wire.deadline.set(Duration::from_secs(5));
    let body = serde_json::json!({ "message": reason }).to_string();
    let mut out = Vec::with_capacity(256);
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    h1::write_response_head(&mut out, status, &headers, ResponseLength::Length(body.len() as u64), Connection::Close);
    if wire.write_all([&out, body.as_bytes(), &[]]).await.is_ok() {
        wire.linger().await;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No head written.
    Waiting,
    /// Head written (or waiting in `out`).
    Body,
    /// Answer complete.
    Done,
    /// Answer broken off, or the connection is gone.
    Broken,
}

enum After {
    Reuse,
    Linger,
    Drop,
}

/// One exchange on a connection.
pub struct H1<'a> {
    wire: &'a mut Wire,
    decoder: BodyDecoder,
    request_body: RequestBody,
    read_done: bool,
    received: u64,
    max_body: u64,
    body_timeout: Duration,
    owes_continue: bool,
    http10: bool,
    head_only: bool,
    close: bool,
    out: &'a mut Vec<u8>,
    framing: ResponseLength,
    half_closed: bool,
    state: State,
    upgraded: bool,
    takes_trailers: bool,
    request_trailers: Option<HeaderMap>,
    trailers: Option<HeaderMap>,
}

impl H1<'_> {
    /// Writes what waits in `out`, then `more` and `last`.
    async fn send(&mut self, more: &[u8], last: &[u8]) -> Result<(), ClientError> {
        self.wire.deadline.set(self.body_timeout);
        let result = self.wire.write_all([&self.out[..], more, last]).await;
        self.out.clear();
        result.map_err(|error| {
            self.state = State::Broken;
            client_error(&error)
        })
    }

    async fn finish(mut self) -> After {
        if self.upgraded || self.state != State::Done {
            return After::Drop;
        }
        // A body that nobody read: a short one is dropped so that the connection lives on; a client that waits for a 100 that will
        // not come, or that goes on sending, is told by closing.
        if !self.read_done && !self.owes_continue && !self.close {
            let before = self.received;
            while self.received - before <= DRAIN {
                match self.read().await {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => return After::Linger,
                }
            }
        }
        if self.close || self.half_closed || !self.read_done { After::Linger } else { After::Reuse }
    }
}

fn client_error(error: &io::Error) -> ClientError {
    if error.kind() == io::ErrorKind::TimedOut { ClientError::Slow } else { ClientError::Gone }
}

impl Downstream for H1<'_> {
    fn request_body(&self) -> RequestBody {
        self.request_body
    }

    async fn read(&mut self) -> Result<Option<Bytes>, ClientError> {
        if self.read_done {
            return Ok(None);
        }
        if self.owes_continue && self.state == State::Waiting {
            self.owes_continue = false;
            if self.wire.received.is_empty() {
                self.wire.deadline.set(self.body_timeout);
                self.wire.write_all([b"HTTP/1.1 100 Continue\r\n\r\n", &[], &[]]).await.map_err(|e| client_error(&e))?;
            }
        }
        loop {
            match self.decoder.decode(&mut self.wire.received) {
                Ok(Decoded::Data(data)) => {
                    self.received += data.len() as u64;
                    if self.received > self.max_body {
                        self.close = true;
                        return Err(ClientError::TooLarge);
                    }
                    return Ok(Some(data));
                }
                Ok(Decoded::End { trailers }) => {
                    self.request_trailers = trailers;
                    self.read_done = true;
                    return Ok(None);
                }
                Ok(Decoded::NeedMore) => {}
                Err(_) => {
                    self.close = true;
                    return Err(ClientError::Malformed);
                }
            }
            self.wire.deadline.set(self.body_timeout);
            match self.wire.fill().await {
                Ok(0) => {
                    self.half_closed = true;
                    self.close = true;
                    return Err(ClientError::Gone);
                }
                Ok(_) => {}
                Err(error) => {
                    self.close = true;
                    return Err(client_error(&error));
                }
            }
        }
    }

    async fn gone(&mut self) {
        self.wire.deadline.set(HALF_CLOSED);
        poll_fn(|cx| {
            // One buffer of what comes next is read ahead; then the client has to wait.
            while !self.half_closed && self.wire.received.len() < 16 * 1024 {
                match self.wire.poll_fill(cx) {
                    Poll::Ready(Ok(0)) => {
                        self.half_closed = true;
                        self.wire.deadline.set(HALF_CLOSED);
                    }
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(_)) => {
                        self.state = State::Broken;
                        return Poll::Ready(());
                    }
                    Poll::Pending => break,
                }
            }
            if self.half_closed && self.wire.deadline.poll_expired(cx) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    async fn head(&mut self, parts: &response::Parts, body: AnswerBody) -> Result<(), ClientError> {
        let bodiless = self.head_only || matches!(parts.status.as_u16(), 204 | 304);
        self.upgraded = parts.status == StatusCode::SWITCHING_PROTOCOLS;
        let announced = match body {
            AnswerBody::Length(length) if !self.upgraded && parts.status != StatusCode::NO_CONTENT => ResponseLength::Length(length),
            _ if bodiless || self.upgraded => ResponseLength::None,
            AnswerBody::Empty | AnswerBody::Length(_) => ResponseLength::None,
            AnswerBody::Unknown if self.http10 => ResponseLength::Close,
            AnswerBody::Unknown => ResponseLength::Chunked,
        };
        self.framing = if bodiless { ResponseLength::None } else { announced };
        // Answered before the promised body: what comes next may be body or request, so that only closing is safe.
        // A long rest is not worth reading either.
        let long_rest = matches!(self.request_body, RequestBody::Length(length) if !self.read_done && length - self.received.min(length) > DRAIN);
        self.close |= self.framing == ResponseLength::Close || (self.owes_continue && !self.read_done) || long_rest;
        let connection = match () {
            () if self.upgraded => Connection::Upgrade,
            () if self.close => Connection::Close,
            () if self.http10 => Connection::KeepExplicit,
            () => Connection::Keep,
        };
        self.out.clear();
        h1::write_response_head(self.out, parts.status, &parts.headers, announced, connection);
        self.state = State::Body;
        // Else the head leaves with the first piece of the body, or with its end.
        if self.upgraded { self.send(&[], &[]).await } else { Ok(()) }
    }

    async fn interim(&mut self, parts: &response::Parts) -> Result<(), ClientError> {
        if self.http10 || self.state != State::Waiting {
            return Ok(());
        }
        h1::write_interim(self.out, parts.status, &parts.headers);
        self.send(&[], &[]).await
    }

    async fn write(&mut self, piece: Bytes) -> Result<(), ClientError> {
        if piece.is_empty() {
            return Ok(());
        }
        match &mut self.framing {
            ResponseLength::None => Ok(()),
            ResponseLength::Length(left) => match left.checked_sub(piece.len() as u64) {
                // Straight from the shared bytes: nothing is copied.
                Some(rest) => {
                    *left = rest;
                    self.send(&piece, &[]).await
                }
                None => {
                    self.abort();
                    Err(ClientError::Gone)
                }
            },
            ResponseLength::Chunked => {
                let _ = write!(self.out, "{:x}\r\n", piece.len());
                self.send(&piece, b"\r\n").await
            }
            ResponseLength::Close => self.send(&piece, &[]).await,
        }
    }

    fn request_trailers(&mut self) -> Option<HeaderMap> {
        self.request_trailers.take()
    }

    fn trailers(&mut self, trailers: HeaderMap) {
        if self.takes_trailers {
            self.trailers = h1::permitted(trailers);
        }
    }

    async fn flush(&mut self) -> Result<(), ClientError> {
        if self.out.is_empty() { Ok(()) } else { self.send(&[], &[]).await }
    }

    async fn end(&mut self) -> Result<(), ClientError> {
        match self.framing {
            ResponseLength::Length(left) if left > 0 => {
                self.abort();
                return Err(ClientError::Gone);
            }
            ResponseLength::Chunked => h1::last_chunk(&mut self.out, self.trailers.as_ref()),
            _ => {}
        }
        if !self.out.is_empty() {
            self.send(&[], &[]).await?;
        }
        if self.state == State::Body {
            self.state = State::Done;
        }
        Ok(())
    }

    fn abort(&mut self) {
        self.state = State::Broken;
        self.close = true;
    }

    fn upgrade(&mut self) -> Option<Raw<'_>> {
        self.upgraded.then(|| Raw { received: self.wire.received.split().freeze(), stream: &mut self.wire.stream })
    }
}
