//! What is known of one request while it is under way.

use crate::{Fields, RouteRuntime, ServiceRuntime, plugin::BeforeSend, resilience::{Guard, Priority}};
use bytes::Bytes;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, Uri, request};
use sha2::{Digest, Sha256};
use std::{fmt, net::IpAddr, sync::Arc, time::{Duration, Instant}};
use weir_cache::{Plan, Report};

/// 128 random bits, shown as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId([u8; 32]);

impl RequestId {
    /// A new one. Unique, not secret.
    pub fn random() -> RequestId {
        let bits = fastrand::u128(..);
        let mut text = [0; 32];
        for (i, digits) in text.chunks_exact_mut(8).enumerate() {
            digits.copy_from_slice(&hex((bits >> (32 * i)) as u32).to_le_bytes());
        }
        RequestId(text)
    }

    /// The 32 digits.
    pub fn as_str(&self) -> &str {
        // SAFETY: `random` is the only way to make one, and writes nothing but ASCII digits and letters.
        unsafe { std::str::from_utf8_unchecked(&self.0) }
    }
}

/// Eight hexadecimal digits, one a byte, the lowest first: all at once.
fn hex(bits: u32) -> u64 {
    let mut spread = u64::from(bits);
    spread = (spread | spread << 16) & 0x0000_ffff_0000_ffff;
    spread = (spread | spread << 8) & 0x00ff_00ff_00ff_00ff;
    spread = (spread | spread << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    // 1 in each byte whose digit is a letter.
    let letters = ((spread + 0x0606_0606_0606_0606) >> 4) & 0x0101_0101_0101_0101;
    spread + 0x3030_3030_3030_3030 + letters * 0x27
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `http` or `https`, as the client sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Cleartext.
    Http,
    /// TLS, here or at a trusted proxy before us.
    Https,
}

impl Scheme {
    /// The scheme's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }
}

/// Who asks.
#[derive(Debug, Clone)]
pub struct Client {
    /// The client's address: the peer's, or what a trusted proxy says.
    pub ip: IpAddr,
    /// The peer of the connection.
    pub peer: IpAddr,
    /// Scheme as the client sees it.
    pub scheme: Scheme,
    /// Host as the client sent it, lower-cased, with its port if one was sent.
    pub host: String,
    /// Port that the client spoke to.
    pub port: u16,
    /// Whether the peer is a trusted proxy.
    pub trusted: bool,
    /// Server name of the TLS handshake.
    pub sni: Option<Arc<str>>,
}

/// A consumer, as plugins see it.
#[derive(Debug)]
pub struct Consumer {
    /// Index in the configuration.
    pub index: usize,
    /// The entity.
    pub entity: weir_config::Consumer,
}

/// What an authentication plugin found out.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// `sub`, user name or key owner: stable name of the caller.
    pub subject: String,
    /// What proves it (`jti`, key id): names the credential without being one.
    pub credential: Option<String>,
    /// Claims of a token.
    pub claims: Option<Arc<serde_json::Map<String, serde_json::Value>>>,
}

/// The part of the request body that plugins asked to see.
#[derive(Debug, Clone, Default)]
pub struct SeenBody {
    /// Its beginning, at most as long as asked.
    pub bytes: Bytes,
    /// Whether `bytes` is all of it.
    pub whole: bool,
    /// Length that the request announces.
    pub announced: Option<u64>,
}

/// A hash over the request body that goes on over what passes after plugins saw its beginning.
#[derive(Debug, Clone)]
pub struct BodyHash {
    state: Sha256,
    covered: usize,
    /// The body has passed to its end.
    pub complete: bool,
}

impl BodyHash {
    /// Of a body that begins so.
    pub fn beginning(bytes: &[u8]) -> BodyHash {
        BodyHash { state: Sha256::new_with_prefix(bytes), covered: bytes.len(), complete: false }
    }

    /// Adds what was read ahead of the body, of which a plugin may have seen only a part.
    pub fn read_ahead(&mut self, bytes: &[u8]) {
        self.state.update(bytes.get(self.covered..).unwrap_or_default());
    }

    /// Adds the next piece.
    pub fn piece(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
    }

    /// The hash of what has passed.
    pub fn finish(self) -> [u8; 32] {
        self.state.finalize().into()
    }
}

/// What plugins that write logs want to know of the messages themselves. Made only where a chain asks for it
/// ([`crate::Chain::wants_log_view`]). Fields that carry credentials are still in it: whoever writes it down leaves them out.
#[derive(Debug, Clone)]
pub struct LogView {
    /// The client's method.
    pub method: Method,
    /// The client's target.
    pub uri: Uri,
    /// The client's fields.
    pub headers: HeaderMap,
    /// Fields of the answer as sent.
    pub response_headers: HeaderMap,
    /// Path and query that the service was asked for.
    pub upstream_uri: Option<String>,
    /// What the service answered.
    pub upstream_status: Option<u16>,
}

impl LogView {
    /// A view of a request that just came.
    pub fn new(req: &request::Parts) -> Box<LogView> {
        Box::new(LogView {
            method: req.method.clone(),
            uri: req.uri.clone(),
            headers: req.headers.clone(),
            response_headers: HeaderMap::new(),
            upstream_uri: None,
            upstream_status: None,
        })
    }
}

/// Times of the exchange, each counted from the request's head.
#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    /// The service was about to be asked.
    pub forwarded: Option<Duration>,
    /// From request head to upstream's response head, waiting for retries included.
    pub upstream: Option<Duration>,
    /// The answer's head left.
    pub first_byte: Option<Duration>,
    /// All is over.
    pub total: Option<Duration>,
}

/// One request under way. Plugins keep what they need between steps in `state`, by type.
pub struct RequestContext {
    /// Shown in errors and logs; replaced by a trusted request's own where a plugin says so.
    pub id: RequestId,
    /// Who asks.
    pub client: Client,
    /// When the head was complete.
    pub started: Instant,
    /// The matched route.
    pub route: Option<Arc<RouteRuntime>>,
    /// Where it will be forwarded; a plugin may change it.
    pub service: Option<Arc<ServiceRuntime>>,
    /// Groups of the route's regex.
    pub captures: Option<crate::router::Captures>,
    /// Set by authentication.
    pub consumer: Option<Arc<Consumer>>,
    /// Set by authentication.
    pub identity: Option<Arc<Identity>>,
    /// What the service is told of the caller. Set by the plugins that found the caller, it goes on the request before the first
    /// [`crate::Plugin::to_upstream`], and not on what is fetched for a cache: that is for everyone.
    pub caller_fields: Fields,
    /// What the client is told, whoever answers: set in request steps, it goes on the answer after the last [`crate::Plugin::response`]: whoever keeps
    /// the answer in such a step, to give it again, does not keep what was said to one client.
    pub answer_fields: Fields,
    /// The request's `Authorization` is a guest token of Weir's own: its bearer is nobody in particular.
    pub guest: bool,
    /// Set by a caching plugin or page rule: look here before asking the upstream.
    pub plan: Option<Plan>,
    /// The caller may force a refresh and asked for it.
    pub refresh: bool,
    /// What plugins asked to see of the body.
    pub body: Option<SeenBody>,
    /// Sent to the service instead of the client's body. Only for a plugin that saw the whole body ([`SeenBody::whole`]).
    pub replace_body: Option<Bytes>,
    /// Set by a plugin that wants to know the hash of the whole body at the end: the part beyond [`SeenBody`] is added as it is forwarded.
    pub body_hash: Option<Box<BodyHash>>,
    /// Asked before the first byte is sent to the service.
    pub before_send: Option<Arc<dyn BeforeSend>>,
    /// Longest body that may be forwarded, in bytes; a longer one is answered with 413. The server's own limit holds besides.
    pub max_body: Option<u64>,
    /// Values that plugins leave for each other by name (Kong's `kong.ctx.shared`).
    pub shared: serde_json::Map<String, serde_json::Value>,
    /// `Set-Cookie` fields of Weir's own for this client alone: no cache may keep the answer that carries them.
    pub cookies: Vec<HeaderValue>,
    /// Fields that the answer must not carry, whoever sets them.
    pub hidden: Vec<HeaderName>,
    /// For plugins that write logs.
    pub log_view: Option<Box<LogView>>,
    /// The exchange must run to its end even if the client leaves, since its effect counts.
    pub must_complete: bool,
    /// Where the answer came from: `upstream`, `cache`, or the name of the plugin or step that made it.
    pub answered_by: &'static str,
    /// What the cache did.
    pub report: Option<Report>,
    /// Why it failed, in a word, for log and metric.
    pub failure: Option<&'static str>,
    /// Status sent.
    pub status: u16,
    /// Body bytes received and sent.
    pub bytes: (u64, u64),
    /// Endpoint that answered.
    pub endpoint: Option<Arc<crate::upstream::Endpoint>>,
    /// Tries made upstream.
    pub tries: u32,
    /// At least a part of the request was sent to an upstream: it may have acted.
    pub sent: bool,
    /// Times.
    pub times: Times,
    /// Set by a plugin that knows how much the request matters; see [`RequestContext::priority`].
    pub priority: Option<Priority>,
    /// The circuit breaker that watches over what is sent to the service.
    pub guard: Option<Arc<Guard>>,
    /// Plugins' own state, by type.
    pub state: Extensions,
}

impl RequestContext {
    /// A new request by `client`.
    pub fn new(client: Client) -> RequestContext {
        RequestContext {
            id: RequestId::random(),
            client,
            started: Instant::now(),
            route: None,
            service: None,
            captures: None,
            consumer: None,
            identity: None,
            caller_fields: Fields::default(),
            answer_fields: Fields::default(),
            guest: false,
            plan: None,
            refresh: false,
            body: None,
            replace_body: None,
            body_hash: None,
            before_send: None,
            max_body: None,
            shared: serde_json::Map::new(),
            cookies: Vec::new(),
            hidden: Vec::new(),
            log_view: None,
            must_complete: false,
            answered_by: "upstream",
            report: None,
            failure: None,
            status: 0,
            bytes: (0, 0),
            endpoint: None,
            tries: 0,
            sent: false,
            times: Times::default(),
            priority: None,
            guard: None,
            state: Extensions::new(),
        }
    }

    /// How much the request matters where not all can be served. Where no plugin says it: callers who proved who they are come before
    /// others, and guests after them.
    pub fn priority(&self) -> Priority {
        match self.priority {
            Some(said) => said,
            None if self.guest => Priority::Low,
            None if self.identity.is_some() => Priority::High,
            None => Priority::Normal,
        }
    }

    /// A context for a fill on behalf of this request: same route and client facts, no identity and no plugin state, since what a
    /// fill brings is for everyone.
    pub fn for_fill(&self) -> RequestContext {
        let mut cx = RequestContext::new(self.client.clone());
        cx.id = self.id;
        cx.route = self.route.clone();
        cx.service = self.service.clone();
        cx.captures = self.captures.clone();
        cx.guard = self.guard.clone();
        cx
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_hexadecimal() {
        for bits in [0, 1, 0x9a, 0xdead_beef, 0x0123_4567, u32::MAX] {
            let digits: String = hex(bits).to_le_bytes().iter().rev().map(|b| char::from(*b)).collect();
            assert_eq!(digits, format!("{bits:08x}"));
        }
        let (one, other) = (RequestId::random(), RequestId::random());
        assert!(one != other && one.as_str().len() == 32 && one.as_str().bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')), "{one}");
    }
}
