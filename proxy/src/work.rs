//! One request at work: the steps that both doors share. Whatever makes an answer — an upstream, the cache, a plugin, an error —
//! it leaves by the same way: response plugins, Weir's own fields, body, end, log.

mod ahead;
mod ask;

pub use ahead::Room;

use crate::{
    downstream::{AnswerBody, ClientError, Downstream, RequestBody},
    forward::Begun,
    grpc,
    live::{Live, Weir},
};
use self::ahead::Ahead;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, response};
use std::{future::poll_fn, sync::Arc, task::Poll};
use weir_cache::{BodyReader, Report, status::{KongsWords, X_CACHE_STATUS, kongs_word}};
use weir_config::HeaderNames;
use weir_gateway::{Chain, Reply, RequestContext, context::{BodyHash, SeenBody}, plugin::Ending};

pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Meant for this cache alone (RFC 9213 section 2.1).
const WEIR_CACHE_CONTROL: HeaderName = HeaderName::from_static("weir-cache-control");

/// A request at work.
pub struct Work<'a, D> {
    /// The program.
    pub weir: &'a Arc<Weir>,
    /// The configuration that was in force when the request came.
    pub live: Arc<Live>,
    /// What is known of it.
    pub cx: RequestContext,
    /// Its client.
    pub down: &'a mut D,
    /// `Accept`, for errors.
    pub accept: Option<HeaderValue>,
    /// GET, HEAD, …
    pub method: Method,
    /// Which diagnostic fields the answer carries.
    pub shown: Shown,
    /// `Set-Cookie` of a fresh guest token.
    pub guest_cookie: Option<HeaderValue>,
    /// The answer must not be stored by anyone after us.
    pub private: bool,
    /// Class or route, for metrics and log.
    pub label: String,
    /// Request body read ahead by plugins.
    pub seen: SeenBody,
    /// Its client speaks gRPC.
    pub grpc: bool,
    /// What the fast lane did of asking the service.
    pub begun: Option<Begun>,
}

/// Which diagnostic fields answers carry.
#[derive(Debug, Clone, Copy)]
pub struct Shown {
    /// `X-Cache-Status`, `-Age`, `-TTL`.
    pub status: bool,
    /// `X-Cache-Key`.
    pub key: bool,
    /// RFC 9211.
    pub cache_status: bool,
    /// Remove what tells of the site's inside.
    pub strip_site: bool,
    /// How long things took, by whose names.
    pub times: HeaderNames,
}

impl<D: Downstream> Work<'_, D> {
    /// Last step of every head.
    fn finish_head(&mut self, parts: &mut response::Parts) {
        self.cx.status = parts.status.as_u16();
        if !self.method.is_safe()
            && let Some(request) = self.cx.state.get::<crate::purging::Unsafe>()
        {
            crate::purging::outdate(self.weir, &self.live, &self.cx.client, &request.uri, &request.headers, parts.status, &parts.headers);
        }
        let headers = &mut parts.headers;
        headers.remove(WEIR_CACHE_CONTROL);
        if self.shown.strip_site {
            crate::classify::strip_response_headers(headers);
            crate::classify::strip_stray_location(parts.status, headers);
        }
        if let Some(report) = &self.cx.report {
            show(headers, report, self.shown);
            if self.shown.status && parts.extensions.get::<KongsWords>().is_some() {
                headers.insert(X_CACHE_STATUS, HeaderValue::from_static(kongs_word(report)));
            }
        }
        for cookie in std::mem::take(&mut self.cx.cookies).into_iter().chain(self.guest_cookie.take()) {
            headers.append(header::SET_COOKIE, cookie);
            self.private = true;
        }
        if self.private {
            // What carries one visitor's token is for that visitor: no cache behind us may keep it.
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
            for name in ["cdn-cache-control", "surrogate-control", "weir-cache-control", "expires"] {
                headers.remove(name);
            }
        }
        if let Ok(id) = HeaderValue::from_str(self.cx.id.as_str()) {
            headers.entry(X_REQUEST_ID).or_insert(id);
        }
        crate::times::tell(headers, &self.cx, self.shown.times);
        if !headers.contains_key(header::DATE) {
            let now = std::time::UNIX_EPOCH + std::time::Duration::from_secs(weir_cache::clock::now());
            if let Ok(date) = HeaderValue::from_str(&httpdate::fmt_http_date(now)) {
                headers.insert(header::DATE, date);
            }
        }
        for name in std::mem::take(&mut self.cx.hidden) {
            headers.remove(name);
        }
        if let Some(view) = &mut self.cx.log_view {
            view.response_headers.clone_from(headers);
        }
        self.cx.times.first_byte = Some(self.cx.started.elapsed());
    }

    /// A whole answer made here.
    pub async fn reply(&mut self, chain: &Chain, mut reply: Reply) {
        if let Some(check) = reply.check.take() {
            match self.body_comes_to(check.so_far, &check.expected).await {
                Ok(true) => {}
                Ok(false) => reply = check.otherwise,
                Err(error) => return self.body_refused(chain, error, Ending::NotSent).await,
            }
        }
        self.cx.answered_by = reply.by;
        let (parts, body) = reply.into_parts();
        self.whole(chain, parts, body, Ending::NotSent).await;
    }

    /// An error made here, in the form that the client prefers.
    pub async fn error(&mut self, chain: &Chain, status: StatusCode, message: &str) {
        let reply = Reply::error("weir", &self.cx, self.accept.as_ref(), status, message);
        self.reply(chain, reply).await;
    }

    /// An answer that is at hand as a whole.
    pub async fn whole(&mut self, chain: &Chain, mut parts: response::Parts, mut body: Bytes, ending: Ending) {
        chain.response(&mut self.cx, &mut parts);
        self.finish_head(&mut parts);
        chain.body(&mut self.cx, &mut body, true);
        chain.end(&mut self.cx, ending).await;
        if self.grpc {
            grpc::dress(&mut parts, &mut body);
        }
        let bodiless = self.method == Method::HEAD || matches!(parts.status.as_u16(), 204 | 304);
        let length = match (bodiless, parts.headers.remove(header::CONTENT_LENGTH)) {
            // HEAD tells the length that GET would have.
            (true, Some(length)) => {
                parts.headers.insert(header::CONTENT_LENGTH, length);
                AnswerBody::Empty
            }
            (true, None) if body.is_empty() => AnswerBody::Empty,
            _ => AnswerBody::Length(body.len() as u64),
        };
        let sent = async {
            self.down.head(&parts, length).await?;
            if !bodiless {
                self.cx.bytes.1 = body.len() as u64;
                self.down.write(body).await?;
            }
            self.down.end().await
        };
        if let Err(error) = sent.await {
            self.client_failed(error);
        }
    }

    /// An answer whose body arrives piece by piece. The plugins' `end` step runs before the last piece leaves. `room`: for what a slow client
    /// has not taken yet.
    pub async fn streamed(&mut self, chain: &Chain, mut parts: response::Parts, body: &mut dyn BodyReader, length: Option<u64>, empty: bool, room: Room<'_>) {
        chain.response(&mut self.cx, &mut parts);
        self.finish_head(&mut parts);
        let form = if empty || self.method == Method::HEAD {
            AnswerBody::Empty
        } else {
            parts.headers.remove(header::CONTENT_LENGTH);
            match length {
                Some(length) if !chain.changes_bodies() => AnswerBody::Length(length),
                _ => AnswerBody::Unknown,
            }
        };
        let mut client = self.down.head(&parts, form).await;
        let holds = chain.has_end();
        let mut held = Bytes::new();
        let mut ahead = Ahead::new(room);
        loop {
            if client.is_err() && !self.cx.must_complete {
                chain.end(&mut self.cx, Ending::Broken).await;
                break;
            }
            let arrived = match ahead.next().or_else(|| body.ready()) {
                Some(arrived) => arrived,
                None => {
                    let mut chunk = body.chunk();
                    match poll_fn(|cx| Poll::Ready(chunk.as_mut().poll(cx))).await {
                        Poll::Ready(arrived) => arrived,
                        Poll::Pending => {
                            // Nothing yet: what was written so far (the head, perhaps) must not wait for it.
                            if client.is_ok() {
                                client = self.down.flush().await;
                            }
                            if client.is_ok() && !self.cx.must_complete {
                                tokio::select! {
                                    biased;
                                    arrived = &mut chunk => arrived,
                                    () = self.down.gone() => {
                                        client = Err(ClientError::Gone);
                                        continue;
                                    }
                                }
                            } else {
                                chunk.await
                            }
                        }
                    }
                }
            };
            match arrived {
                Ok(Some(mut piece)) => {
                    chain.body(&mut self.cx, &mut piece, false);
                    if holds {
                        std::mem::swap(&mut held, &mut piece);
                    }
                    client = self.pass_on(client, piece, &mut ahead, body).await;
                }
                Ok(None) => {
                    let mut last = Bytes::new();
                    chain.body(&mut self.cx, &mut last, true);
                    chain.end(&mut self.cx, Ending::Complete).await;
                    client = self.pass_on(client, held, &mut ahead, body).await;
                    client = self.pass_on(client, last, &mut ahead, body).await;
                    if client.is_ok() {
                        if let Some(trailers) = body.trailers() {
                            self.down.trailers(trailers);
                        }
                        client = self.down.end().await;
                    }
                    break;
                }
                Err(error) => {
                    self.cx.failure = Some(error.kind);
                    chain.end(&mut self.cx, Ending::Broken).await;
                    self.down.abort();
                    return;
                }
            }
        }
        if let Err(error) = client {
            self.client_failed(error);
            self.down.abort();
        }
    }

    async fn pass_on(&mut self, client: Result<(), ClientError>, piece: Bytes, ahead: &mut Ahead<'_>, body: &mut dyn BodyReader) -> Result<(), ClientError> {
        if client.is_err() || piece.is_empty() {
            return client;
        }
        self.cx.bytes.1 += piece.len() as u64;
        ahead.write(self.down, piece, body).await
    }

    fn client_failed(&mut self, error: ClientError) {
        self.cx.failure.get_or_insert(match error {
            ClientError::Gone => "client-gone",
            ClientError::Slow => "client-slow",
            ClientError::Malformed => "client-malformed",
            ClientError::TooLarge => "too-large",
        });
        if self.cx.status == 0 {
            self.cx.status = 499;
        }
    }

    /// Reads the beginning of the request body for plugins. `false`: the client was answered (413, 400) or is gone.
    pub async fn read_ahead(&mut self, chain: &Chain, limit: usize) -> bool {
        let announced = match self.down.request_body() {
            RequestBody::Empty => {
                self.seen = SeenBody { bytes: Bytes::new(), whole: true, announced: Some(0) };
                self.cx.body = Some(self.seen.clone());
                return true;
            }
            RequestBody::Length(length) => Some(length),
            RequestBody::Unknown => None,
        };
        let mut bytes = BytesMut::new();
        let mut whole = false;
        while bytes.len() < limit {
            match self.down.read().await {
                Ok(Some(piece)) => bytes.extend_from_slice(&piece),
                Ok(None) => {
                    whole = true;
                    break;
                }
                Err(error) => {
                    self.body_refused(chain, error, Ending::NotSent).await;
                    return false;
                }
            }
        }
        whole |= announced == Some(bytes.len() as u64);
        self.seen = SeenBody { bytes: bytes.freeze(), whole, announced };
        let mut shown = self.seen.clone();
        if shown.bytes.len() > limit {
            shown.bytes.truncate(limit);
            shown.whole = false;
        }
        self.cx.body = Some(shown);
        true
    }

    /// Reads the rest of the request body, keeping nothing of it; whether its hash is the expected one.
    async fn body_comes_to(&mut self, so_far: BodyHash, expected: &[u8; 32]) -> Result<bool, ClientError> {
        let seen = std::mem::take(&mut self.seen);
        let mut hash = so_far;
        hash.read_ahead(&seen.bytes);
        while !seen.whole
            && let Some(piece) = self.down.read().await?
        {
            hash.piece(&piece);
        }
        Ok(hash.finish() == *expected)
    }

    /// Tells a client what is wrong with its body, if it is there to hear it.
    async fn body_refused(&mut self, chain: &Chain, error: ClientError, ending: Ending) {
        self.client_failed(error);
        let limit = self.live.settings.max_body;
        let (status, message) = match error {
            ClientError::TooLarge if self.cx.max_body.is_some_and(|own| own < limit) => {
                (StatusCode::PAYLOAD_TOO_LARGE, "Request size limit exceeded".into())
            }
            ClientError::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, format!("Request body larger than {limit} bytes")),
            ClientError::Malformed => (StatusCode::BAD_REQUEST, "Malformed request body".into()),
            ClientError::Slow => (StatusCode::REQUEST_TIMEOUT, "The request body did not arrive in time".into()),
            ClientError::Gone => {
                chain.end(&mut self.cx, ending).await;
                return self.down.abort();
            }
        };
        let reply = Reply::error("weir", &self.cx, self.accept.as_ref(), status, &message);
        self.cx.answered_by = reply.by;
        let (parts, body) = reply.into_parts();
        self.whole(chain, parts, body, ending).await;
    }
}

/// Tells the client what the cache did.
pub(crate) fn show(headers: &mut HeaderMap, report: &Report, shown: Shown) {
    let mut set = |name: &'static str, value: HeaderValue| {
        headers.insert(HeaderName::from_static(name), value);
    };
    if shown.status {
        set("x-cache-status", HeaderValue::from_static(report.verdict.word()));
        if let Some(age) = report.age {
            set("x-cache-age", HeaderValue::from(age));
        }
        if let Some(ttl) = report.ttl {
            set("x-cache-ttl", HeaderValue::from(ttl.max(0)));
        }
    }
    if let (true, Some(Ok(key))) = (shown.key, report.key.as_deref().map(HeaderValue::from_str)) {
        set("x-cache-key", key);
    }
    if shown.cache_status {
        // Caches before us had their say; ours comes last (RFC 9211 section 2).
        headers.append(weir_cache::status::CACHE_STATUS, weir_cache::status::cache_status(report, shown.key));
    }
}

/// Whether who sent these fields takes trailers.
pub(crate) fn takes_trailers(headers: &HeaderMap) -> bool {
    let mut fields = headers.get_all(header::TE).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    fields.any(|option| option.trim().eq_ignore_ascii_case("trailers"))
}

/// The protocol that an `Upgrade` request asks for, if its fields are in order.
pub fn wants_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let named = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .any(|v| v.split(',').any(|t| t.trim().eq_ignore_ascii_case("upgrade")));
    if named { headers.get(header::UPGRADE).cloned() } else { None }
}
