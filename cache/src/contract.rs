//! The face of the engine: what a plan is, how the origin is asked, what comes back.

use crate::encode::Codings;
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, response};
use std::{sync::Arc, time::Duration};

/// What to cache under which key: made by a page rule of the edge or by a caching plugin of the gateway, carried out by the one engine.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Primary key, as shown in `X-Cache-Key`: `html_cache:{host}{path}?{query}`, `cache:GET:/api/home`, …
    pub key: String,
    /// First part of the stored key: deployment id. Not shown.
    pub epoch: Arc<str>,
    /// How to decide.
    pub policy: Arc<Policy>,
}

/// The rules for a set of keys. Compiled once from the configuration.
#[derive(Debug, Clone)]
pub struct Policy {
    /// For metrics: the page rule's path or the route's name.
    pub name: String,
    /// Who decides on freshness.
    pub freshness: Freshness,
    /// What must hold for a response to be stored, beyond RFC 9111.
    pub gate: Gate,
    /// Statuses that may be stored.
    pub statuses: Vec<u16>,
    /// Largest body, bytes.
    pub max_size: u64,
    /// Upper bound (and, where `freshness` is `For`, the value) of stale-while-revalidate.
    pub stale_while_revalidate: Duration,
    /// Upper bound (and, where `freshness` is `For`, the value) of stale-if-error.
    pub stale_if_error: Duration,
    /// Tags besides those that responses name.
    pub tags: Vec<String>,
    /// Whether `Cache-Control` of requests counts (RFC 9111 section 5.2.1). Off where visitors must not steer the origin's load.
    pub honour_request: bool,
    /// XFetch's beta: 0 switches early refresh off, 1 is the paper's optimum.
    pub early_refresh_beta: f64,
    /// How long a key that proved uncacheable is passed through at once.
    pub hit_for_miss: Duration,
    /// Lease of the fill lock; renewed while the fill runs.
    pub lease: Duration,
    /// Longest wait for someone else's fill before asking the origin oneself.
    pub max_wait: Duration,
    /// The most fills of this rule (policies of one name) that this process has under way at once, for a slow origin's sake; 0 counts as 1,
    /// `None`: no bound. The others wait as long as `max_wait`, while what is stale may be served, and are then passed on.
    pub max_fills: Option<usize>,
    /// Replaces the response's `Cache-Control` towards clients, if set (pages: `public, max-age=0, must-revalidate`).
    pub client_cache_control: Option<HeaderValue>,
    /// In which codings responses that compress well are kept too, to be answered in what `Accept-Encoding` likes best.
    pub encodings: Codings,
}

/// Who decides how long a response is fresh.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Freshness {
    /// RFC 9111; `heuristic`: the share of the age since `Last-Modified`, 0 for none; `cap`: upper bound.
    Origin {
        /// Share of the time since `Last-Modified`; 0 switches heuristic freshness off.
        heuristic: f32,
        /// Upper bound.
        cap: Duration,
        /// Where the response says nothing at all; `None`: then it is not stored.
        default: Option<Duration>,
    },
    /// This long. `override_control`: even if the response says no-store, private or no-cache.
    For {
        /// Counted from the moment of storing.
        ttl: Duration,
        /// Whether it holds against the response's own word.
        override_control: bool,
    },
}

/// A gate beyond RFC 9111.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Whole HTML pages (`nextjs/decision-table.md`, section 5).
    Html,
    /// Anything that RFC 9111 allows, without `Set-Cookie`.
    Plain,
}

/// The client's request, as far as the cache must know it.
#[derive(Debug, Clone)]
pub struct CacheRequest {
    /// GET or HEAD; others never come here.
    pub method: Method,
    /// The client's fields: conditions, ranges, directives, and what `Vary` may name.
    pub headers: HeaderMap,
    /// `X-Cache-Refresh` from a caller who may: ask the origin now and store the answer.
    pub refresh: bool,
    /// Whether the fill's request is word for word what this client's own would be. Then an uncacheable answer may go to the
    /// client that caused it; else that client must ask for itself.
    pub fill_is_own: bool,
}

/// Why the origin gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{reason}")]
pub struct FetchError {
    /// Short word for status, log and metric: `connect`, `timeout`, `reset`, `truncated`, `framing`, `refused`…
    pub kind: &'static str,
    /// In words; no secrets.
    pub reason: String,
    /// Status for a client that must be told: 502, 503 or 504.
    pub status: StatusCode,
}

/// A body as it arrives. `Ok(None)` only when it is complete; a body cut short is an error.
#[async_trait]
pub trait BodyReader: Send {
    /// The next piece. Dropping the future loses nothing.
    async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError>;

    /// What [`BodyReader::chunk`] would give at once, if that is known without waiting. `None`: ask `chunk`.
    fn ready(&mut self) -> Option<Result<Option<Bytes>, FetchError>> {
        None
    }

    /// What followed a complete body (RFC 9110 section 6.5), once. It is passed on and never stored.
    fn trailers(&mut self) -> Option<HeaderMap> {
        None
    }

    /// After the end: why the response is not kept although its head promised that it would be (see [`Report::stored`]).
    fn refused(&self) -> Option<&'static str> {
        None
    }
}

/// The origin's answer.
pub struct Fetched {
    /// Status and fields, hop-by-hop fields already removed, the plugins' `from_upstream` steps already done.
    pub parts: response::Parts,
    /// The body.
    pub body: Box<dyn BodyReader>,
}

/// Where a fetch puts the interim answers (RFC 9110 section 15.2) that come before its own.
pub type Interim<'a> = &'a (dyn Fn(response::Parts) + Send + Sync);

/// How a fill asks the origin. Detached from the client: it owns all it needs.
#[async_trait]
pub trait Fetch: Send + Sync + 'static {
    /// Asks. `condition`: validators of the stored entry, to be sent as they are.
    async fn fetch(&self, condition: HeaderMap, interim: Interim<'_>) -> Result<Fetched, FetchError>;
}

/// Whoever waits for an outcome; `()` is one who wants to hear nothing before it.
#[async_trait]
pub trait Waiting: Send {
    /// An interim answer (RFC 9110 section 15.2) to the fetch that is waited for.
    async fn interim(&mut self, parts: &response::Parts);
}

#[async_trait]
impl Waiting for () {
    async fn interim(&mut self, _: &response::Parts) {}
}

/// Put among an answer's extensions by a plugin's `from_upstream` step: it is not stored, whatever its fields and the policy say. The
/// reason is one token, as in [`Report::detail`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotForCache(pub &'static str);

/// What to do with a request, after the engine has looked, waited or begun a fill.
pub enum Outcome {
    /// A whole answer from the cache, conditions and ranges already applied.
    Stored(Answer),
    /// A fill under way: the head is there, the body arrives.
    Filling(Stream),
    /// Not for the cache: forward the request as it came. The report says why.
    Pass(Report),
    /// The origin failed and nothing stale may be served.
    Failed(FetchError, Report),
}

/// An answer from the cache.
pub struct Answer {
    /// Status and fields, `Age` included, without `Cache-Status`.
    pub parts: response::Parts,
    /// Body; empty for HEAD and 304.
    pub body: Bytes,
    /// What happened.
    pub report: Report,
}

/// A response that is being fetched, for one of those who wait for it.
pub struct Stream {
    /// Status and fields.
    pub parts: response::Parts,
    /// The body, from its first byte, as it arrives.
    pub body: Box<dyn BodyReader>,
    /// What happened.
    pub report: Report,
}

/// `X-Cache-Status` and what RFC 9211 `Cache-Status`, metrics and log need.
#[derive(Debug, Clone)]
pub struct Report {
    /// The one word.
    pub verdict: Verdict,
    /// Which tier answered.
    pub tier: Option<Tier>,
    /// RFC 9211 `fwd=`: `uri-miss`, `vary-miss`, `miss`, `stale`, `request`, `bypass`, `method`, `partial`.
    pub fwd: Option<&'static str>,
    /// Status of the origin's answer.
    pub fwd_status: Option<u16>,
    /// Whether the answer was (or is being) stored.
    pub stored: bool,
    /// Whether the request waited for another's fetch.
    pub collapsed: bool,
    /// Seconds of freshness left; negative when stale.
    pub ttl: Option<i64>,
    /// Seconds since the origin made it.
    pub age: Option<u64>,
    /// The reason, one token such as `set-cookie`, `no-store`, `vary`, `incomplete`, `hit-for-miss`, `lock-timeout`.
    pub detail: Option<&'static str>,
    /// With `hit-for-miss`: why the page was not kept when it was last fetched.
    pub because: Option<&'static str>,
    /// The shown key.
    pub key: Option<String>,
    /// Time spent waiting for someone else's fill.
    pub waited: Duration,
}

/// `X-Cache-Status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// From the cache, fresh.
    Hit,
    /// Fetched for this request (or for one that it joined).
    Miss,
    /// From the cache, after its time.
    Stale,
    /// Not a matter for the cache.
    Bypass,
    /// Fetched because a caller with the right asked for it.
    Refresh,
}

/// A level of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tier {
    /// This process.
    Memory,
    /// The shared store.
    Store,
}

impl Report {
    /// A report with nothing but the word.
    pub fn new(verdict: Verdict) -> Report {
        Report {
            verdict,
            tier: None,
            fwd: None,
            fwd_status: None,
            stored: false,
            collapsed: false,
            ttl: None,
            age: None,
            detail: None,
            because: None,
            key: None,
            waited: Duration::ZERO,
        }
    }
}
