//! HTTP/2 towards clients: `h2` on the same stream, one task a request, into the same pipeline.

use crate::{
    deadline::Deadline,
    downstream::{AnswerBody, ClientError, Downstream, Raw, RequestBody, RequestStream},
    fast::Lane,
    h1,
    h1_server::shuts_down,
    h2_tunnel::Tunnel,
    server::{Door, Peer},
    stream::Socket,
};
use async_trait::async_trait;
use base64::Engine as _;
use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream, ext::Protocol, server::SendResponse};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header, response, uri::PathAndQuery};
use pingora::{protocols::Stream, server::ShutdownWatch};
use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, atomic::{AtomicUsize, Ordering}},
    task::{Context, Poll},
    time::Duration,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Requests at once on one connection.
const MAX_STREAMS: u32 = 128;
/// Streams that a client may reset before they were served, until the connection is closed (rapid reset).
const MAX_RESETS: usize = 64;
const WINDOW: u32 = 1024 * 1024;

/// A stream whose first bytes were read already.
struct Prefixed {
    first: Bytes,
    stream: Stream,
}

impl AsyncRead for Prefixed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let count = self.first.len().min(buf.remaining());
        buf.put_slice(&self.first[..count]);
        self.first.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Prefixed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Serves a connection until it ends. `first`: what was read of it already.
pub async fn serve(door: &Arc<Door>, stream: Stream, first: Bytes, peer: &Arc<Peer>, shutdown: &ShutdownWatch) {
    let settings = door.settings();
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(MAX_STREAMS)
        .max_concurrent_reset_streams(MAX_RESETS)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_header_list_size(settings.max_head.try_into().unwrap_or(u32::MAX))
        .initial_window_size(WINDOW)
        .initial_connection_window_size(4 * WINDOW)
        .enable_connect_protocol();
    let handshake = builder.handshake::<_, Bytes>(Prefixed { first, stream });
    let Ok(Ok(mut connection)) = tokio::time::timeout(settings.head_timeout, handshake).await else { return };
    let mut stopping = false;
    let open = Arc::new(AtomicUsize::new(0));
    let mut lane = Lane::default();
    let mut idle = Deadline::new();
    idle.set(settings.keepalive);
    loop {
        let accepted = poll_fn(|cx| {
            if let Poll::Ready(accepted) = connection.poll_accept(cx) {
                return Poll::Ready(Some(accepted));
            }
            if stopping {
                return Poll::Pending;
            }
            // The ticks of the deadline bring the task here at least once a second: often enough to notice the server's end.
            while idle.poll_expired(cx) {
                if open.load(Ordering::Relaxed) == 0 {
                    return Poll::Ready(None);
                }
                idle.set(settings.keepalive);
            }
            if shuts_down(shutdown) { Poll::Ready(None) } else { Poll::Pending }
        })
        .await;
        let accepted = match accepted {
            Some(accepted) => accepted,
            None => {
                stopping = true;
                connection.graceful_shutdown();
                continue;
            }
        };
        let Some(Ok((request, mut respond))) = accepted else { return };
        idle.set(settings.keepalive);
        if request.body().is_end_stream() && lane.serve_h2(door, peer, &request, &mut respond) {
            continue;
        }
        let (door, peer, open) = (door.clone(), peer.clone(), open.clone());
        open.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            one(&door, &peer, request, respond, settings.body_timeout, settings.max_body).await;
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

async fn one(door: &Door, peer: &Peer, request: Request<RecvStream>, respond: SendResponse<Bytes>, body_timeout: Duration, max_body: u64) {
    let (mut parts, recv) = request.into_parts();
    let websocket = parts.method == Method::CONNECT && parts.extensions.get::<Protocol>().is_some_and(|p| p.as_str().eq_ignore_ascii_case("websocket"));
    let declared = parts.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    let request_body = match declared {
        _ if recv.is_end_stream() || websocket => RequestBody::Empty,
        Some(length) => RequestBody::Length(length),
        None => RequestBody::Unknown,
    };
    // What a WebSocket sends is no body.
    let (incoming, websocket) = if websocket {
        (None, Some(recv))
    } else {
        (Some(Incoming { recv, done: request_body == RequestBody::Empty, received: 0, max_body, timeout: Some(body_timeout), trailers: None }), None)
    };
    let opened = websocket.is_some();
    let mut exchange = H2 {
        incoming,
        websocket,
        tunnel: None,
        request_body,
        respond,
        send: None,
        body_timeout,
        head_only: parts.method == Method::HEAD,
        left: None,
        trailers: None,
    };
    match normalize(&mut parts, opened) {
        Ok(()) => door.handle(parts, peer, &mut exchange).await,
        Err((status, reason)) => {
            door.refused(peer, status, reason);
            let mut answer = Response::new(()).into_parts().0;
            answer.status = status;
            answer.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
            let body = Bytes::from(serde_json::json!({ "message": reason }).to_string());
            if exchange.head(&answer, AnswerBody::Length(body.len() as u64)).await.is_ok() && exchange.write(body).await.is_ok() {
                let _ = exchange.end().await;
            }
        }
    }
}

/// Gives an HTTP/2 request the form that HTTP/1.1 requests have here: origin-form target, `Host` for `:authority`, one `Cookie`, and an
/// upgrade for a WebSocket that is opened by extended CONNECT (RFC 8441 section 5).
fn normalize(parts: &mut http::request::Parts, websocket: bool) -> Result<(), (StatusCode, &'static str)> {
    if websocket {
        parts.method = Method::GET;
        parts.headers.remove(header::CONTENT_LENGTH);
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        // HTTP/2 has no such field, and HTTP/1.1 wants one (RFC 6455 section 4.1).
        let key = base64::engine::general_purpose::STANDARD.encode(fastrand::u128(..).to_be_bytes());
        parts.headers.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::from_str(&key).map_err(|_| (StatusCode::BAD_REQUEST, "no key"))?);
    } else if parts.method == Method::CONNECT || parts.method == Method::TRACE {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "the method is not served here"));
    }
    let bad = |reason| (StatusCode::BAD_REQUEST, reason);
    let authority = parts.uri.authority().map(|a| a.as_str().to_string());
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = match (authority, hosts.next(), hosts.next()) {
        (Some(authority), None, _) => authority,
        (Some(authority), Some(host), None) if host.as_bytes().eq_ignore_ascii_case(authority.as_bytes()) => authority,
        (None, Some(host), None) => host.to_str().map_err(|_| bad("invalid Host"))?.to_string(),
        (None, None, _) => return Err(bad("no :authority and no Host")),
        _ => return Err(bad(":authority and Host differ")),
    };
    if host.is_empty() || host.contains('@') {
        return Err(bad("invalid :authority"));
    }
    parts.headers.insert(header::HOST, HeaderValue::from_str(&host).map_err(|_| bad("invalid :authority"))?);
    let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let mut uri = http::uri::Parts::default();
    uri.path_and_query = Some(path);
    parts.uri = http::Uri::from_parts(uri).map_err(|_| bad("invalid :path"))?;
    // RFC 9113 section 8.2.3: cookie pairs may come in several fields.
    let cookies: Vec<&[u8]> = parts.headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1 {
        let joined = cookies.join(&b"; "[..]);
        parts.headers.insert(header::COOKIE, HeaderValue::from_bytes(&joined).map_err(|_| bad("invalid Cookie"))?);
    }
    // RFC 9110 section 8.6: a length must be one decimal number.
    let mut lengths = parts.headers.get_all(header::CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next()
        && (lengths.next().is_some() || length.is_empty() || length.len() > 18 || !length.as_bytes().iter().all(u8::is_ascii_digit))
    {
        return Err(bad("invalid Content-Length"));
    }
    parts.version = Version::HTTP_2;
    Ok(())
}

/// One exchange on a connection.
struct H2 {
    /// `None` once it was taken.
    incoming: Option<Incoming>,
    /// What the client sends on a WebSocket that it wants; `None` once that is open.
    websocket: Option<RecvStream>,
    /// Such a WebSocket.
    tunnel: Option<Stream>,
    request_body: RequestBody,
    respond: SendResponse<Bytes>,
    send: Option<SendStream<Bytes>>,
    body_timeout: Duration,
    head_only: bool,
    left: Option<u64>,
    trailers: Option<HeaderMap>,
}

/// The request's body.
struct Incoming {
    recv: RecvStream,
    done: bool,
    received: u64,
    max_body: u64,
    /// For the next piece. A body that flows beside its answer may rest as long as the answer goes on.
    timeout: Option<Duration>,
    trailers: Option<HeaderMap>,
}

#[async_trait]
impl RequestStream for Incoming {
    async fn read(&mut self) -> Result<Option<Bytes>, ClientError> {
        if self.done {
            return Ok(None);
        }
        let piece = match self.timeout {
            Some(timeout) => tokio::time::timeout(timeout, self.recv.data()).await.map_err(|_| ClientError::Slow)?,
            None => self.recv.data().await,
        };
        match piece {
            None => {
                self.done = true;
                self.trailers = self.recv.trailers().await.map_err(|_| ClientError::Gone)?.and_then(h1::permitted);
                Ok(None)
            }
            Some(Err(_)) => Err(ClientError::Gone),
            Some(Ok(data)) => {
                let _ = self.recv.flow_control().release_capacity(data.len());
                self.received += data.len() as u64;
                if self.received > self.max_body { Err(ClientError::TooLarge) } else { Ok(Some(data)) }
            }
        }
    }

    fn trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take()
    }
}

impl Downstream for H2 {
    fn request_body(&self) -> RequestBody {
        self.request_body
    }

    async fn read(&mut self) -> Result<Option<Bytes>, ClientError> {
        match &mut self.incoming {
            Some(incoming) => incoming.read().await,
            None => Ok(None),
        }
    }

    fn take_body(&mut self) -> Option<Box<dyn RequestStream>> {
        let mut incoming = self.incoming.take()?;
        incoming.timeout = None;
        Some(Box::new(incoming))
    }

    fn request_trailers(&mut self) -> Option<HeaderMap> {
        self.incoming.as_mut()?.trailers.take()
    }

    fn trailers(&mut self, trailers: HeaderMap) {
        self.trailers = h1::permitted(trailers);
    }

    async fn gone(&mut self) {
        let respond = &mut self.respond;
        let send = &mut self.send;
        let _ = poll_fn(|cx| match send {
            Some(send) => send.poll_reset(cx),
            None => respond.poll_reset(cx),
        })
        .await;
    }

    async fn head(&mut self, parts: &response::Parts, body: AnswerBody) -> Result<(), ClientError> {
        let mut response = Response::new(());
        *response.status_mut() = parts.status;
        *response.headers_mut() = parts.headers.clone();
        if self.websocket.is_some() {
            if parts.status == StatusCode::SWITCHING_PROTOCOLS {
                // RFC 8441 section 5.1: 200 is what 101 is in HTTP/1.1.
                *response.status_mut() = StatusCode::OK;
                [header::CONNECTION, header::UPGRADE, header::SEC_WEBSOCKET_ACCEPT].iter().for_each(|name| {
                    response.headers_mut().remove(name);
                });
                self.send = Some(self.respond.send_response(response, false).map_err(|_| ClientError::Gone)?);
                return Ok(());
            }
            if parts.status.is_success() {
                // The client would take it for an open WebSocket.
                *response.status_mut() = StatusCode::BAD_GATEWAY;
            }
        }
        let bodiless = self.head_only || matches!(parts.status.as_u16(), 204 | 304);
        if let AnswerBody::Length(length) = body
            && !matches!(parts.status.as_u16(), 204 | 304)
        {
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
            self.left = (!bodiless).then_some(length);
        }
        let end = bodiless || matches!(body, AnswerBody::Empty | AnswerBody::Length(0));
        let send = self.respond.send_response(response, end).map_err(|_| ClientError::Gone)?;
        self.send = (!end).then_some(send);
        Ok(())
    }

    async fn interim(&mut self, parts: &response::Parts) -> Result<(), ClientError> {
        let mut response = Response::new(());
        *response.status_mut() = parts.status;
        *response.headers_mut() = parts.headers.clone();
        // An interim answer is a help, never a condition.
        let _ = self.respond.send_informational(response);
        Ok(())
    }

    async fn write(&mut self, mut piece: Bytes) -> Result<(), ClientError> {
        let Some(send) = &mut self.send else { return Ok(()) };
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(piece.len() as u64).ok_or(ClientError::Gone)?;
        }
        while !piece.is_empty() {
            send.reserve_capacity(piece.len());
            let granted = tokio::time::timeout(self.body_timeout, poll_fn(|cx| send.poll_capacity(cx)));
            match granted.await {
                Ok(Some(Ok(0))) => {}
                Ok(Some(Ok(count))) => {
                    let part = piece.split_to(count.min(piece.len()));
                    // The end leaves with the last byte.
                    let last = piece.is_empty() && self.left == Some(0);
                    send.send_data(part, last).map_err(|_| ClientError::Gone)?;
                    if last {
                        self.send = None;
                        return Ok(());
                    }
                }
                Ok(_) => return Err(ClientError::Gone),
                Err(_) => return Err(ClientError::Slow),
            }
        }
        Ok(())
    }

    async fn end(&mut self) -> Result<(), ClientError> {
        if self.left.is_some_and(|left| left > 0) {
            self.abort();
            return Err(ClientError::Gone);
        }
        match self.send.take() {
            Some(mut send) => match self.trailers.take() {
                Some(trailers) => send.send_trailers(trailers),
                None => send.send_data(Bytes::new(), true),
            }
            .map_err(|_| ClientError::Gone),
            None => Ok(()),
        }
    }

    fn abort(&mut self) {
        match self.send.take() {
            Some(mut send) => send.send_reset(h2::Reason::INTERNAL_ERROR),
            None => self.respond.send_reset(h2::Reason::INTERNAL_ERROR),
        }
    }

    fn upgrade(&mut self) -> Option<Raw<'_>> {
        let tunnel = Tunnel::new(self.websocket.take()?, self.send.take()?);
        let stream = self.tunnel.insert(Box::new(Socket(tunnel)));
        Some(Raw { received: Bytes::new(), stream })
    }
}
