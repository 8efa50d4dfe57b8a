//! One try of a request on an HTTP/2 connection to an upstream. Both directions run at the same time where the client's protocol can do
//! that too, as streaming gRPC wants it.

use crate::{
    dial::Multiplexed,
    downstream::{ClientError, Downstream, RequestBody, RequestStream},
    exchange::{self, Answered, Piece, TryError, TryLimits, Upload, UpstreamBody, Wait, broken},
};
use bytes::Bytes;
use h2::{RecvStream, SendStream, client::ResponseFuture};
use http::{HeaderMap, Request, Response, Uri, Version, header, request, uri};
use std::{future::{Future, poll_fn}, io, pin::Pin, task::Poll, time::Duration};
use tokio::{task::AbortHandle, time::Instant};
use weir_cache::FetchError;
use weir_gateway::upstream::InFlight;

/// The answer's body on its way.
pub(crate) struct H2Body {
    recv: RecvStream,
    limits: TryLimits,
    /// Given back when the body is through.
    place: Multiplexed,
    upload: Option<Uploading>,
}

/// The rest of the request on its way up, in a task of its own; dropping this ends it.
struct Uploading(AbortHandle);

impl Drop for Uploading {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl H2Body {
    /// The next piece; `None` at the end, with what followed the body.
    pub(crate) async fn chunk(&mut self) -> Result<Piece, FetchError> {
        let waited = tokio::time::timeout(self.limits.time(Wait::Idle), async {
            match self.recv.data().await {
                Some(piece) => piece.map(Ok),
                None => self.recv.trailers().await.map(Err),
            }
        });
        match waited.await {
            Ok(Ok(Ok(piece))) => {
                let _ = self.recv.flow_control().release_capacity(piece.len());
                Ok(Ok(piece))
            }
            Ok(Ok(Err(trailers))) => {
                self.upload = None;
                Ok(Err(trailers))
            }
            Ok(Err(error)) => Err(broken("reset", format!("the upstream broke its answer off: {error}"))),
            Err(_) => {
                // A connection that says nothing may be dead as a whole.
                self.place.condemn();
                Err(self.limits.error(&io::ErrorKind::TimedOut.into(), Wait::Idle))
            }
        }
    }
}

/// Sends the request and waits for the head of its answer.
pub(crate) async fn attempt<D: Downstream>(
    mut place: Multiplexed,
    reused: bool,
    request: &request::Parts,
    upload: &mut Upload<'_, D>,
    counted: InFlight,
    limits: TryLimits,
) -> Result<Answered, TryError> {
    let upstream = |error: FetchError, unanswered| TryError::Upstream { error, unanswered, reused };
    let unsent = |error: h2::Error| upstream(broken("closed", format!("the connection to the upstream is gone: {error}")), true);
    let message = message(request, upload.length, place.scheme).ok_or_else(|| upstream(broken("internal", "the request has no HTTP/2 form".into()), true))?;
    let ready = tokio::time::timeout(limits.time(Wait::Write), poll_fn(|cx| place.send.poll_ready(cx))).await;
    if !matches!(ready, Ok(Ok(()))) {
        place.condemn();
        return Err(upstream(broken("closed", "the connection to the upstream takes no requests".into()), true));
    }
    let bodiless = upload.length == RequestBody::Empty || (upload.whole && upload.seen.is_empty());
    let (mut response, send) = place.send.send_request(message, bodiless).map_err(unsent)?;
    let mut uploading = None;
    let (failed, mut failure) = tokio::sync::oneshot::channel();
    if !bodiless {
        let seen = upload.seen.clone();
        // Whoever wants to know the body's hash has it read here.
        let rest = if upload.whole || upload.hash.is_some() { None } else { upload.client.as_deref_mut().and_then(|client| client.take_body()) };
        match rest {
            // The client's protocol has two directions: this one goes on by itself.
            Some(rest) => {
                upload.taken = 1;
                let limit = upload.limit;
                let task = tokio::spawn(async move {
                    if let Err(error) = pump(send, seen, rest, limit, limits.write).await {
                        let _ = failed.send(error);
                    }
                });
                uploading = Some(Uploading(task.abort_handle()));
            }
            None => {
                let sending = send_all(send, seen, upload, limits.write);
                tokio::select! {
                    biased;
                    answered = &mut response => return finish(answered.map_err(|e| refused(e, reused))?, place, None, counted, limits),
                    sent = sending => match sent {
                        Ok(()) | Err(PumpError::Upstream) => {}
                        Err(PumpError::Client(error)) => return Err(TryError::Client(error)),
                    },
                }
            }
        }
    }
    let mut goes_up = uploading.is_some();
    let mut head = Wait::Head(Some(Instant::now()));
    let mut until = Instant::now() + limits.time(head);
    loop {
        tokio::select! {
            biased;
            said = said(&mut response) => match said {
                Said::Interim(interim) => exchange::interim(upload, interim.into_parts().0).await?,
                Said::Answer(answered) => return finish(answered.map_err(|e| refused(e, reused))?, place, uploading, counted, limits),
            },
            error = &mut failure, if goes_up => {
                if let Ok(PumpError::Client(error)) = error {
                    return Err(TryError::Client(error));
                }
                // Sent to its end, or the upstream takes no more: from now on it has its time.
                goes_up = false;
                head = Wait::Head(Some(Instant::now()));
                until = Instant::now() + limits.time(head);
            }
            () = gone(upload) => return Err(TryError::Client(ClientError::Gone)),
            // While the request goes up, only the time for everything counts.
            () = tokio::time::sleep_until(until), if !goes_up || limits.until.is_some() => {
                if goes_up && limits.until.is_some_and(|until| !until.left(Instant::now()).is_zero()) {
                    until = Instant::now() + limits.time(Wait::Client);
                    continue;
                }
                // A connection that says nothing may be dead as a whole.
                place.condemn();
                return Err(upstream(limits.error(&io::ErrorKind::TimedOut.into(), head), true));
            }
        }
    }
}

/// What comes next of an upstream that was asked.
enum Said {
    Interim(Response<()>),
    Answer(Result<Response<RecvStream>, h2::Error>),
}

async fn said(response: &mut ResponseFuture) -> Said {
    poll_fn(|cx| match response.poll_informational(cx) {
        Poll::Ready(Some(Ok(interim))) => Poll::Ready(Said::Interim(interim)),
        Poll::Pending => Poll::Pending,
        // None before the answer, or an error, which that tells too.
        Poll::Ready(_) => Pin::new(&mut *response).poll(cx).map(Said::Answer),
    })
    .await
}

/// Returns when the client has vanished, if anybody cares.
async fn gone<D: Downstream>(upload: &mut Upload<'_, D>) {
    match upload.client.as_deref_mut() {
        Some(client) if upload.abandon => client.gone().await,
        _ => std::future::pending().await,
    }
}

/// A stream that ended without an answer.
fn refused(error: h2::Error, reused: bool) -> TryError {
    // The upstream says that it did not begin (RFC 9113 section 8.7): as good as a connection that was closed before.
    let untouched = error.reason() == Some(h2::Reason::REFUSED_STREAM) || error.is_go_away();
    let kind = if untouched { "closed" } else { "reset" };
    TryError::Upstream { error: broken(kind, format!("the upstream gave no answer: {error}")), unanswered: true, reused: reused || untouched }
}

fn finish(
    answer: http::Response<RecvStream>,
    place: Multiplexed,
    upload: Option<Uploading>,
    counted: InFlight,
    limits: TryLimits,
) -> Result<Answered, TryError> {
    let (mut parts, recv) = answer.into_parts();
    parts.version = Version::HTTP_11;
    let length = parts.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    let empty = recv.is_end_stream();
    let length = if empty { Some(0) } else { length };
    let body = H2Body { recv, limits, place, upload };
    Ok(Answered { parts, body: UpstreamBody::http2(body, length, empty, counted), upgraded: false })
}

/// The request as HTTP/2 has it.
fn message(request: &request::Parts, length: RequestBody, scheme: &'static str) -> Option<Request<()>> {
    let mut made = Request::new(());
    *made.version_mut() = Version::HTTP_2;
    *made.method_mut() = request.method.clone();
    let host = request.headers.get(header::HOST).map(|host| host.as_bytes());
    let authority = match host {
        Some(host) => uri::Authority::try_from(host).ok()?,
        None => request.uri.authority()?.clone(),
    };
    let path = request.uri.path_and_query().cloned().unwrap_or_else(|| uri::PathAndQuery::from_static("/"));
    *made.uri_mut() = Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build().ok()?;
    let headers = made.headers_mut();
    *headers = request.headers.clone();
    for name in [header::HOST, header::CONNECTION, header::UPGRADE, header::TRANSFER_ENCODING, header::CONTENT_LENGTH, header::EXPECT] {
        headers.remove(name);
    }
    if let RequestBody::Length(length) = length {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    Some(made)
}

enum PumpError {
    Client(ClientError),
    /// It takes no more; its answer, if there is one, says why.
    Upstream,
}

/// Sends what was seen and what the client still sends, and its trailers.
async fn pump(
    mut send: SendStream<Bytes>,
    seen: Bytes,
    mut rest: Box<dyn RequestStream>,
    limit: Option<u64>,
    patience: Duration,
) -> Result<(), PumpError> {
    let mut count = seen.len() as u64;
    write(&mut send, seen, patience).await?;
    loop {
        match rest.read().await {
            Ok(Some(piece)) if limit.is_none_or(|limit| count + piece.len() as u64 <= limit) => {
                count += piece.len() as u64;
                write(&mut send, piece, patience).await?;
            }
            Ok(Some(_)) => {
                send.send_reset(h2::Reason::CANCEL);
                return Err(PumpError::Client(ClientError::TooLarge));
            }
            Ok(None) => break,
            Err(error) => {
                send.send_reset(h2::Reason::CANCEL);
                return Err(PumpError::Client(error));
            }
        }
    }
    end(&mut send, rest.trailers())
}

/// The same for a client whose protocol has one direction at a time.
async fn send_all<D: Downstream>(mut send: SendStream<Bytes>, seen: Bytes, upload: &mut Upload<'_, D>, patience: Duration) -> Result<(), PumpError> {
    write(&mut send, seen, patience).await?;
    let Some(client) = upload.client.as_deref_mut().filter(|_| !upload.whole) else { return end(&mut send, None) };
    while let Some(piece) = client.read().await.map_err(PumpError::Client)? {
        upload.taken += piece.len() as u64;
        if let Some(hash) = &mut upload.hash {
            hash.piece(&piece);
        }
        if upload.limit.is_some_and(|limit| upload.seen.len() as u64 + upload.taken > limit) {
            send.send_reset(h2::Reason::CANCEL);
            return Err(PumpError::Client(ClientError::TooLarge));
        }
        write(&mut send, piece, patience).await?;
    }
    let trailers = client.request_trailers();
    if let Some(hash) = &mut upload.hash {
        hash.complete = true;
    }
    end(&mut send, trailers)
}

fn end(send: &mut SendStream<Bytes>, trailers: Option<HeaderMap>) -> Result<(), PumpError> {
    match trailers {
        Some(trailers) => send.send_trailers(trailers),
        None => send.send_data(Bytes::new(), true),
    }
    .map_err(|_| PumpError::Upstream)
}

/// Sends a piece as the upstream's windows take it.
async fn write(send: &mut SendStream<Bytes>, mut piece: Bytes, patience: Duration) -> Result<(), PumpError> {
    while !piece.is_empty() {
        send.reserve_capacity(piece.len());
        match tokio::time::timeout(patience, poll_fn(|cx| send.poll_capacity(cx))).await {
            Ok(Some(Ok(count))) => send.send_data(piece.split_to(count.min(piece.len())), false).map_err(|_| PumpError::Upstream)?,
            _ => return Err(PumpError::Upstream),
        }
    }
    Ok(())
}
