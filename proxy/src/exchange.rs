//! One try of a request with one upstream connection: in HTTP/1.1 here, in HTTP/2 beside.

use crate::{
    dial::{self, Connection, PeerKey},
    downstream::{ClientError, Downstream, RequestBody},
    h2_exchange::{self, H2Body},
    h1::{self, BodyDecoder, BodyEncoder, BodyLength, Decoded, Limits, ResponseHead, ResponseLength},
    wire::Wire,
};
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header, request, response};
use std::{io, sync::Arc, time::Duration};
use weir_cache::{BodyReader, FetchError};
use tokio::time::Instant;
use weir_gateway::{context::BodyHash, resilience::{Held, Until}, upstream::{Endpoint, InFlight}};

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
    /// Of the whole body, if someone wants to know.
    pub hash: Option<Box<BodyHash>>,
}

impl<D: Downstream> Upload<'_, D> {
    /// A request without a body.
    pub fn none() -> Self {
        Upload { seen: Bytes::new(), whole: true, client: None, length: RequestBody::Empty, taken: 0, limit: None, abandon: true, hash: None }
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
    from: Option<Source>,
    /// Exact length, if the answer told it.
    pub length: Option<u64>,
    /// Without a body at all.
    pub empty: bool,
    trailers: Option<HeaderMap>,
    /// What the request holds until the body is through.
    pub held: Held,
    counted: Option<InFlight>,
}

/// Where a body comes from.
enum Source {
    Http1(H1Body),
    Http2(H2Body),
}

/// What a body gives: a piece, or the end with what followed it.
pub(crate) type Piece = Result<Bytes, Option<HeaderMap>>;

struct H1Body {
    wire: Wire,
    decoder: BodyDecoder,
    key: Arc<PeerKey>,
    keep: bool,
    limits: TryLimits,
}

impl UpstreamBody {
    /// The raw connection, after a 101.
    pub fn into_wire(mut self) -> Option<Wire> {
        match self.from.take()? {
            Source::Http1(body) => Some(body.wire),
            Source::Http2(_) => None,
        }
    }

    /// A body that comes by HTTP/2.
    pub(crate) fn http2(body: H2Body, length: Option<u64>, empty: bool, counted: InFlight) -> UpstreamBody {
        UpstreamBody { from: Some(Source::Http2(body)), length, empty, trailers: None, held: Held::default(), counted: Some(counted) }
    }
}

impl UpstreamBody {
    /// What to make of what the connection gave.
    fn gave(&mut self, next: Result<Piece, FetchError>) -> Result<Option<Bytes>, FetchError> {
        match next {
            Ok(Ok(piece)) => Ok(Some(piece)),
            Ok(Err(trailers)) => {
                if let Some(Source::Http1(body)) = self.from.take()
                    && body.keep
                {
                    dial::keep(body.key, body.wire, Instant::now());
                }
                self.trailers = trailers;
                // The client may take long for what it has not got yet: its service is free.
                self.counted = None;
                self.held.over(true);
                Ok(None)
            }
            Err(error) => {
                self.from = None;
                if error.kind != CALLERS_DEADLINE {
                    self.held.over(false);
                }
                Err(error)
            }
        }
    }
}

#[async_trait]
impl BodyReader for UpstreamBody {
    async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        let next = match &mut self.from {
            None => return Ok(None),
            Some(Source::Http1(body)) => body.chunk().await,
            Some(Source::Http2(body)) => body.chunk().await,
        };
        self.gave(next)
    }

    fn ready(&mut self) -> Option<Result<Option<Bytes>, FetchError>> {
        let next = match &mut self.from {
            None => return Some(Ok(None)),
            Some(Source::Http1(body)) => body.ready()?,
            Some(Source::Http2(_)) => return None,
        };
        Some(self.gave(next))
    }

    fn trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take()
    }
}

impl H1Body {
    /// What the bytes received so far give.
    fn ready(&mut self) -> Option<Result<Piece, FetchError>> {
        match self.decoder.decode(&mut self.wire.received) {
            Ok(Decoded::Data(data)) => Some(Ok(Ok(data))),
            Ok(Decoded::End { trailers }) => Some(Ok(Err(trailers))),
            Ok(Decoded::NeedMore) => None,
            Err(error) => Some(Err(broken("framing", format!("the upstream's body is malformed: {error}")))),
        }
    }

    async fn chunk(&mut self) -> Result<Piece, FetchError> {
        loop {
            if let Some(next) = self.ready() {
                return next;
            }
            self.limits.begin(&mut self.wire, Wait::Idle);
            match self.wire.fill().await {
                Ok(0) => {
                    // Only a body that ends with its connection is whole now, and such a connection is not kept.
                    let whole = self.decoder.eof().is_ok();
                    return if whole { Ok(Err(None)) } else { Err(broken("truncated", "the upstream closed in the middle of its answer".into())) };
                }
                Ok(_) => {}
                Err(error) => return Err(self.limits.error(&error, Wait::Idle)),
            }
        }
    }
}

pub(crate) fn broken(kind: &'static str, reason: String) -> FetchError {
    FetchError { kind, reason, status: StatusCode::BAD_GATEWAY }
}

/// The kind of an error that means: the caller gave less time than it took.
pub const CALLERS_DEADLINE: &str = "client-deadline";

/// Time limits of a try.
#[derive(Clone, Copy)]
pub struct TryLimits {
    /// Between two writes.
    pub write: Duration,
    /// Between two reads.
    pub read: Duration,
    /// For the head of the answer, once the request is sent.
    pub first_byte: Duration,
    /// For everything.
    pub until: Option<Until>,
}

/// What a try waits for.
#[derive(Clone, Copy)]
pub(crate) enum Wait {
    /// That the upstream takes more.
    Write,
    /// The client's next piece. The client's own deadline limits that.
    Client,
    /// The head of the answer, since this moment; `None`: since now.
    Head(Option<Instant>),
    /// The next piece of the answer.
    Idle,
}

impl TryLimits {
    /// Sets the deadline of a wait that begins now.
    fn begin(&self, wire: &mut Wire, wait: Wait) {
        wire.deadline.set(self.time(wait));
    }

    /// How long a wait that begins now may take.
    pub(crate) fn time(&self, wait: Wait) -> Duration {
        let after = match wait {
            Wait::Write => self.write,
            Wait::Client => Duration::from_secs(86_400),
            Wait::Head(since) => self.first_byte.saturating_sub(since.map_or(Duration::ZERO, |since| since.elapsed())),
            Wait::Idle => self.read,
        };
        match self.until {
            Some(until) => after.min(until.left(Instant::now())),
            None => after,
        }
    }

    /// What an error during a wait means.
    pub(crate) fn error(&self, error: &io::Error, wait: Wait) -> FetchError {
        match error.kind() {
            io::ErrorKind::TimedOut => match self.until.filter(|until| until.left(Instant::now()).is_zero()) {
                Some(until) => over(until),
                None => {
                    let (kind, reason) = match wait {
                        Wait::Write | Wait::Client => ("write-timeout", format!("the upstream took nothing of the request within {:?}", self.write)),
                        Wait::Head(_) => ("first-byte-timeout", format!("no answer from the upstream within {:?}", self.first_byte)),
                        Wait::Idle => ("idle-timeout", format!("nothing more of the upstream's answer within {:?}", self.read)),
                    };
                    FetchError { kind, reason, status: StatusCode::GATEWAY_TIMEOUT }
                }
            },
            io::ErrorKind::UnexpectedEof => broken("closed", "the upstream closed without an answer".into()),
            _ => broken("reset", format!("the connection to the upstream broke: {}", error.kind())),
        }
    }
}

/// The total is over.
pub fn over(until: Until) -> FetchError {
    let (kind, reason) = if until.callers { (CALLERS_DEADLINE, "the caller's time is over") } else { ("deadline", "the time for the whole request is over") };
    FetchError { kind, reason: reason.into(), status: StatusCode::GATEWAY_TIMEOUT }
}

/// A request that the fast lane has sent, with all of its body, on a connection of the pool. The head of its answer has not been taken from
/// what was received.
pub struct Sent {
    /// The connection.
    pub wire: Wire,
    /// What it is kept under.
    pub key: Arc<PeerKey>,
    /// Counts it at its endpoint.
    pub counted: InFlight,
    /// When it left.
    pub at: Instant,
    /// All of it left. Else the connection may have an end of the request missing and is not used again.
    pub whole: bool,
}

/// Waits for the head of the answer to a request that was sent already.
pub async fn resume<D: Downstream>(sent: Sent, request: &request::Parts, upload: &mut Upload<'_, D>, limits: TryLimits) -> Result<Answered, TryError> {
    attempt_http1(sent.wire, true, Some((sent.at, sent.whole)), request, upload, sent.counted, sent.key, limits).await
}

/// Sends the request on a connection and waits for the head of its answer.
pub async fn attempt<D: Downstream>(
    connection: Connection,
    reused: bool,
    request: &request::Parts,
    upload: &mut Upload<'_, D>,
    endpoint: &Arc<Endpoint>,
    key: Arc<PeerKey>,
    limits: TryLimits,
) -> Result<Answered, TryError> {
    let counted = InFlight::on(endpoint);
    match connection {
        Connection::Http1(wire) => attempt_http1(wire, reused, None, request, upload, counted, key, limits).await,
        Connection::Http2(place) => h2_exchange::attempt(place, reused, request, upload, counted, limits).await,
    }
}

/// Passes an interim answer on (RFC 9110 section 15.2), but for 100 and 101: those are matters of one connection.
pub(crate) async fn interim<D: Downstream>(upload: &mut Upload<'_, D>, mut parts: response::Parts) -> Result<(), TryError> {
    if !matches!(parts.status, StatusCode::CONTINUE | StatusCode::SWITCHING_PROTOCOLS)
        && let Some(client) = upload.client.as_deref_mut()
    {
        h1::strip_hop_by_hop(&mut parts.headers);
        parts.headers.remove(header::CONTENT_LENGTH);
        client.interim(&parts).await.map_err(TryError::Client)?;
    }
    Ok(())
}

/// Sends the request on `wire`, if it was not `sent` before (when, and whether as a whole), and waits for the head of its answer. While the body goes up, an early answer
/// is seen; while waiting, a client that vanished is noticed.
#[allow(clippy::too_many_arguments)]
async fn attempt_http1<D: Downstream>(
    mut wire: Wire,
    reused: bool,
    sent: Option<(Instant, bool)>,
    request: &request::Parts,
    upload: &mut Upload<'_, D>,
    counted: InFlight,
    key: Arc<PeerKey>,
    limits: TryLimits,
) -> Result<Answered, TryError> {
    let upstream = |error: FetchError, unanswered| TryError::Upstream { error, unanswered, reused };
    let length = match upload.length {
        RequestBody::Empty => BodyLength::None,
        RequestBody::Length(length) => BodyLength::Length(length),
        RequestBody::Unknown => BodyLength::Chunked,
    };
    let mut encoder = BodyEncoder::new(length);
    // What is to be written, and how much of it is. The body seen so far leaves with the head; for a small body that is one packet and all of it.
    let (mut head, mut piece, mut done) = (Vec::new(), Vec::new(), 0);
    let mut client_done = upload.length == RequestBody::Empty || sent.is_some();
    let left_whole = sent.is_none_or(|(_, whole)| whole);
    if sent.is_none() {
        head.reserve(1024);
        h1::write_request_head(&mut head, request, length);
        if !upload.seen.is_empty() {
            encoder.encode(&upload.seen, &mut piece).map_err(|_| TryError::Client(ClientError::Malformed))?;
        }
        if upload.whole && !client_done {
            encoder.finish(&mut piece).map_err(|_| TryError::Client(ClientError::Malformed))?;
            client_done = true;
        }
    }
    // Whether the deadline is that of the answer's head already: it counts from the end of sending, however often something arrives.
    let mut awaits_head = false;
    loop {
        let all = head.len() + piece.len();
        if done < all {
            limits.begin(&mut wire, Wait::Write);
            done = match wire.write_unless_answered([&head, &piece], done).await {
                Ok(done) => done,
                Err(error) => return Err(upstream(limits.error(&error, Wait::Write), wire.received.is_empty())),
            };
        }
        match parse(&mut wire, &request.method) {
            Ok(Some(head)) if head.parts.status.is_informational() && head.parts.status != StatusCode::SWITCHING_PROTOCOLS => {
                interim(upload, head.parts).await?;
                continue;
            }
            // What the upstream did not take of the request would be missing, and the next one be read in its place.
            Ok(Some(head)) => return Ok(answer(wire, head, client_done && done == all && left_whole, key, limits, counted)),
            Ok(None) => {}
            Err(error) => return Err(upstream(error, false)),
        }
        if done < all {
            continue;
        }
        if client_done {
            let head = Wait::Head(sent.map(|(at, _)| at));
            if !awaits_head {
                limits.begin(&mut wire, head);
                awaits_head = true;
            }
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
                    return Err(upstream(limits.error(&io::ErrorKind::UnexpectedEof.into(), head), unanswered));
                }
                Ok(_) => continue,
                Err(error) => {
                    let unanswered = wire.received.is_empty();
                    return Err(upstream(limits.error(&error, head), unanswered));
                }
            }
        }
        let Some(client) = upload.client.as_deref_mut() else {
            client_done = true;
            continue;
        };
        limits.begin(&mut wire, Wait::Client);
        let next = tokio::select! {
            biased;
            filled = wire.fill() => match filled {
                Ok(count) if count > 0 => continue,
                Ok(_) => return Err(upstream(limits.error(&io::ErrorKind::UnexpectedEof.into(), Wait::Client), wire.received.is_empty())),
                Err(error) => return Err(upstream(limits.error(&error, Wait::Client), wire.received.is_empty())),
            },
            next = client.read() => next.map_err(TryError::Client)?,
        };
        (head, piece, done) = (Vec::new(), Vec::new(), 0);
        match &next {
            Some(data) => {
                upload.taken += data.len() as u64;
                if let Some(hash) = &mut upload.hash {
                    hash.piece(data);
                }
                if upload.limit.is_some_and(|limit| upload.seen.len() as u64 + upload.taken > limit) {
                    return Err(TryError::Client(ClientError::TooLarge));
                }
                encoder.encode(data, &mut piece).map_err(|_| TryError::Client(ClientError::Malformed))?;
            }
            None => {
                let trailers = client.request_trailers();
                encoder.finish_with(trailers.as_ref(), &mut piece).map_err(|_| TryError::Client(ClientError::Malformed))?;
                client_done = true;
                if let Some(hash) = &mut upload.hash {
                    hash.complete = true;
                }
            }
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
            from: Some(Source::Http1(H1Body { wire, decoder: BodyDecoder::response(head.body), key, keep, limits })),
            length,
            empty: head.body == ResponseLength::None,
            trailers: None,
            held: Held::default(),
            counted: Some(counted),
        },
        parts: head.parts,
    }
}
