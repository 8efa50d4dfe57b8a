//! One try of a request with one upstream connection, in HTTP/1.1.

use crate::{
    dial::{self, PeerKey},
    downstream::{ClientError, Downstream, RequestBody},
    h1::{self, BodyDecoder, BodyEncoder, BodyLength, Decoded, Limits, ResponseHead, ResponseLength},
    wire::Wire,
};
use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, StatusCode, request, response};
use std::{io, sync::Arc, time::Duration};
use weir_cache::{BodyReader, FetchError};
use weir_gateway::upstream::{Endpoint, InFlight};

/// Heads of answers may be this long.
const RESPONSE_HEAD: Limits = Limits { max_head: 64 * 1024, max_headers: 200 };

/// The request's body: what was read before, then the client.
pub struct Upload<'a, D> {
    /// Pieces already read (by plugins, or kept for a retry).
    pub seen: Bytes,
    /// Whether `seen` is all there is.
    pub whole: bool,
    /// Where the rest comes from.
    pub client: Option<&'a mut D>,
    /// Length, as announced upstream.
    pub length: RequestBody,
    /// Bytes taken from the client after `seen`: a retry is no longer possible.
    pub taken: u64,
    /// Longest body, over `seen` and what comes after it.
    pub limit: Option<u64>,
    /// Give the request up when the client vanishes.
    pub abandon: bool,
}

impl<D: Downstream> Upload<'_, D> {
    /// A request without a body.
    pub fn none() -> Self {
        Upload { seen: Bytes::new(), whole: true, client: None, length: RequestBody::Empty, taken: 0, limit: None, abandon: true }
    }

    /// Whether the request can be sent once more.
    pub fn repeatable(&self) -> bool {
        self.taken == 0
    }
}

/// Why a try gave no answer.
pub enum TryError {
    /// The upstream failed. `unanswered`: no byte of an answer was seen; `reused`: on a connection from the pool, which the upstream
    /// may have closed before it saw the request.
    Upstream {
        /// For the client and the log.
        error: FetchError,
        /// No byte of an answer.
        unanswered: bool,
        /// Connection from the pool.
        reused: bool,
    },
    /// The client failed; there is nobody to answer (or, for `TooLarge` and `Malformed`, a complaint to make).
    Client(ClientError),
}

/// The answer's head, and the connection from which its body comes.
pub struct Answered {
    /// Status and fields as received.
    pub parts: response::Parts,
    /// The body.
    pub body: UpstreamBody,
    /// The connection was upgraded (101).
    pub upgraded: bool,
}

/// A body on its way from an upstream. Read to its end, the connection goes back to the pool.
pub struct UpstreamBody {
    wire: Option<Wire>,
    decoder: BodyDecoder,
    /// Exact length, if the answer told it.
    pub length: Option<u64>,
    /// Without a body at all.
    pub empty: bool,
    key: Arc<PeerKey>,
    keep: bool,
    read_timeout: Duration,
    _counted: InFlight,
}

impl UpstreamBody {
    /// The raw connection, after a 101.
    pub fn into_wire(mut self) -> Option<Wire> {
        self.wire.take()
    }
}

#[async_trait]
impl BodyReader for UpstreamBody {
    async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        let Some(wire) = &mut self.wire else { return Ok(None) };
        loop {
            match self.decoder.decode(&mut wire.received) {
                Ok(Decoded::Data(data)) => return Ok(Some(data)),
                Ok(Decoded::End { .. }) => {
                    if let (true, Some(wire)) = (self.keep, self.wire.take()) {
                        dial::keep(self.key.clone(), wire);
                    }
                    return Ok(None);
                }
                Ok(Decoded::NeedMore) => {}
                Err(error) => {
                    self.wire = None;
                    return Err(broken("framing", format!("the upstream's body is malformed: {error}")));
                }
            }
            wire.deadline.set(self.read_timeout);
            match wire.fill().await {
                Ok(0) => {
                    self.wire = None;
                    return match self.decoder.eof() {
                        Ok(()) => Ok(None),
                        Err(_) => Err(broken("truncated", "the upstream closed in the middle of its answer".into())),
                    };
                }
                Ok(_) => {}
                Err(error) => {
                    self.wire = None;
                    return Err(read_error(&error, self.read_timeout));
                }
            }
        }
    }
}

fn broken(kind: &'static str, reason: String) -> FetchError {
    FetchError { kind, reason, status: StatusCode::BAD_GATEWAY }
}

fn read_error(error: &io::Error, timeout: Duration) -> FetchError {
    match error.kind() {
        io::ErrorKind::TimedOut => FetchError {
            kind: "timeout",
            reason: format!("no answer from the upstream within {timeout:?}"),
            status: StatusCode::GATEWAY_TIMEOUT,
        },
        io::ErrorKind::UnexpectedEof => broken("closed", "the upstream closed without an answer".into()),
        _ => broken("reset", format!("the connection to the upstream broke: {}", error.kind())),
    }
}

/// Time limits of a try.
#[derive(Clone, Copy)]
pub struct TryLimits {
    /// Between two writes.
    pub write: Duration,
    /// Between two reads, and for the head.
    pub read: Duration,
}

/// Sends the request on `wire` and waits for the head of its answer. While the body goes up, an early answer is seen; while waiting,
/// a client that vanished is noticed.
pub async fn attempt<D: Downstream>(
    mut wire: Wire,
    reused: bool,
    request: &request::Parts,
    upload: &mut Upload<'_, D>,
    endpoint: &Arc<Endpoint>,
    key: Arc<PeerKey>,
    limits: TryLimits,
) -> Result<Answered, TryError> {
    let counted = InFlight::on(endpoint);
    let upstream = |error: FetchError, unanswered| TryError::Upstream { error, unanswered, reused };
    let length = match upload.length {
        RequestBody::Empty => BodyLength::None,
        RequestBody::Length(length) => BodyLength::Length(length),
        RequestBody::Unknown => BodyLength::Chunked,
    };
    let mut encoder = BodyEncoder::new(length);
    let mut head = Vec::with_capacity(1024);
    h1::write_request_head(&mut head, request, length);
    // The body seen so far leaves with the head; for a small body that is one packet and all of it.
    let mut first = Vec::new();
    let mut sent_all = upload.length == RequestBody::Empty;
    if !upload.seen.is_empty() {
        encoder.encode(&upload.seen, &mut first).map_err(|_| TryError::Client(ClientError::Malformed))?;
    }
    if upload.whole && !sent_all {
        encoder.finish(&mut first).map_err(|_| TryError::Client(ClientError::Malformed))?;
        sent_all = true;
    }
    wire.deadline.set(limits.write);
    let mut answered_early = match wire.write_unless_answered(&head, &first).await {
        Ok(all) => !all,
        Err(error) => {
            let unanswered = wire.received.is_empty();
            return Err(upstream(read_error(&error, limits.write), unanswered));
        }
    };
    let mut client_done = sent_all;
    loop {
        match parse(&mut wire, &request.method) {
            Ok(Some(head)) if head.parts.status.is_informational() && head.parts.status != StatusCode::SWITCHING_PROTOCOLS => {
                if head.parts.status == StatusCode::EARLY_HINTS
                    && let Some(client) = upload.client.as_deref_mut()
                {
                    client.interim(&head.parts).await.map_err(TryError::Client)?;
                }
                continue;
            }
            Ok(Some(head)) => return Ok(answer(wire, head, sent_all, key, limits, counted)),
            Ok(None) => {}
            Err(error) => return Err(upstream(error, false)),
        }
        if client_done || answered_early {
            wire.deadline.set(limits.read);
            let filled = match upload.client.as_deref_mut() {
                Some(client) if upload.abandon => tokio::select! {
                    biased;
                    filled = wire.fill() => filled,
                    () = client.gone() => return Err(TryError::Client(ClientError::Gone)),
                },
                _ => wire.fill().await,
            };
            match filled {
                Ok(0) => {
                    let unanswered = wire.received.is_empty();
                    return Err(upstream(read_error(&io::ErrorKind::UnexpectedEof.into(), limits.read), unanswered));
                }
                Ok(_) => continue,
                Err(error) => {
                    let unanswered = wire.received.is_empty();
                    return Err(upstream(read_error(&error, limits.read), unanswered));
                }
            }
        }
        let Some(client) = upload.client.as_deref_mut() else {
            client_done = true;
            continue;
        };
        // The client's own deadline limits how long this waits for its next piece.
        wire.deadline.set(Duration::from_secs(86_400));
        let piece = tokio::select! {
            biased;
            filled = wire.fill() => match filled {
                Ok(count) if count > 0 => continue,
                Ok(_) => return Err(upstream(read_error(&io::ErrorKind::UnexpectedEof.into(), limits.read), wire.received.is_empty())),
                Err(error) => return Err(upstream(read_error(&error, limits.read), wire.received.is_empty())),
            },
            piece = client.read() => piece.map_err(TryError::Client)?,
        };
        let mut out = Vec::new();
        match &piece {
            Some(data) => {
                upload.taken += data.len() as u64;
                if upload.limit.is_some_and(|limit| upload.seen.len() as u64 + upload.taken > limit) {
                    return Err(TryError::Client(ClientError::TooLarge));
                }
                encoder.encode(data, &mut out).map_err(|_| TryError::Client(ClientError::Malformed))?;
            }
            None => {
                encoder.finish(&mut out).map_err(|_| TryError::Client(ClientError::Malformed))?;
                (client_done, sent_all) = (true, true);
            }
        }
        wire.deadline.set(limits.write);
        match wire.write_unless_answered(&out, &[]).await {
            Ok(true) => {}
            Ok(false) => {
                answered_early = true;
                sent_all = false;
            }
            Err(error) => return Err(upstream(read_error(&error, limits.write), wire.received.is_empty())),
        }
    }
}

fn parse(wire: &mut Wire, method: &Method) -> Result<Option<ResponseHead>, FetchError> {
    if wire.received.is_empty() {
        return Ok(None);
    }
    h1::parse_response(&mut wire.received, method, &RESPONSE_HEAD)
        .map_err(|error| broken("framing", format!("the upstream's answer is malformed: {}", error.reason)))
}

fn answer(wire: Wire, head: ResponseHead, sent_all: bool, key: Arc<PeerKey>, limits: TryLimits, counted: InFlight) -> Answered {
    let upgraded = head.parts.status == StatusCode::SWITCHING_PROTOCOLS;
    let length = match head.body {
        ResponseLength::None => Some(0),
        ResponseLength::Length(length) => Some(length),
        ResponseLength::Chunked | ResponseLength::Close => None,
    };
    let keep = head.keep_alive && sent_all && !upgraded && head.body != ResponseLength::Close;
    Answered {
        upgraded,
        body: UpstreamBody {
            wire: Some(wire),
            decoder: BodyDecoder::response(head.body),
            length,
            empty: head.body == ResponseLength::None,
            key,
            keep,
            read_timeout: limits.read,
            _counted: counted,
        },
        parts: head.parts,
    }
}
