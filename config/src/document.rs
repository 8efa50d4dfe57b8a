//! The typed document: what a configuration says, after expansion, checks and flattening.

use crate::{CircuitBreaker, Concurrency, Deadlines, Gateway, Listens, Millis, Resilience, Resolver, Retry, Secret, Size, Spanned};
use schemars::JsonSchema;
use serde::Deserialize;
use std::time::Duration;

/// A whole configuration.
#[derive(Debug, Clone)]
pub struct Document {
    /// Where shared state lives: `memory`, or a Redis URL (see `weir_store::Store::open`).
    pub store: StoreConfig,
    /// The page cache's door, if there is one.
    pub edge: Option<Edge>,
    /// The gateway's door and entities, if there is one.
    pub gateway: Option<Gateway>,
    /// The warm-up schedule.
    pub warm_up: Option<WarmUp>,
    /// Admin listener; a default one is made when the section is missing.
    pub admin: Admin,
    /// The process: threads, limits, deadlines.
    pub server: Server,
    /// How names of services and targets are looked up.
    pub resolver: Resolver,
}

/// `store:` — a URL, or a mapping with a URL and its settings.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// `memory`, `redis://host:6379/0`, `rediss://…`, `redis+sentinel://host:port,host:port/master` or `redis+cluster://host:port,…`.
    pub url: Secret,
    /// First part of every key in Redis.
    pub prefix: String,
    /// The longest that one call may take before Weir goes on without the store.
    pub deadline: Millis,
    /// Replicas of a standalone Redis that values are read from.
    pub replicas: Vec<Secret>,
    /// How long pages in memory are trusted while messages of purges may be getting lost.
    pub trust_memory: Millis,
    /// Whether bodies lie packed in Redis.
    pub compress: bool,
}

/// `edge:` — the door that caches pages.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Edge {
    /// Address to listen on, or several; `tls` and `proxy_protocol` may follow each: `[0.0.0.0:9000, 0.0.0.0:9443 tls]`.
    #[serde(default = "d_edge_listen")]
    pub listen: Listens,
    /// Certificates for `tls` addresses, chosen by server name. Those of the gateway section serve here too.
    #[serde(default)]
    pub certificates: Vec<EdgeCertificate>,
    /// The site: `http://host:port` or `https://…`, or the name of an upstream of the gateway section.
    pub origin: String,
    /// How the site is spoken to when `origin` is an `https` URL.
    #[serde(default)]
    pub origin_tls: OriginTls,
    /// Host names that are served; others get 421. Empty: any.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// The one host name that keys and fills use, when several names show the same site. Default: the request's own, lower-cased.
    #[serde(default)]
    pub canonical_host: Option<String>,
    /// First part of every cache key: a new value is a purge of everything.
    #[serde(default)]
    pub deployment: String,
    /// What may be cached. The most specific path wins.
    #[serde(default)]
    pub pages: Vec<PageRule>,
    /// A token for visitors who have none.
    #[serde(default)]
    pub guests: Option<Guests>,
    /// Cookies that mean "this visitor is signed in" (beside an `Authorization` header).
    #[serde(default = "session_cookies")]
    pub session_cookies: Vec<String>,
    /// Where `/api` goes: `gateway` (this process), an `http://` URL of a gateway elsewhere, or `origin`.
    #[serde(default)]
    pub api: ApiTarget,
    /// Path prefix of the API.
    #[serde(default = "d_api_prefix")]
    pub api_prefix: String,
    /// Which diagnostic headers answers carry.
    #[serde(default)]
    pub headers: CacheHeaders,
    /// In which encodings pages may be kept besides the plain one: `br`, `zstd`, `gzip`. Each is made once, in the background, when it is first asked for.
    /// Empty: pages go out as the origin gave them.
    #[serde(default = "encodings")]
    pub encodings: Vec<Encoding>,
    /// Query keys dropped from every page key and fill, beside the built-in tracking parameters.
    #[serde(default)]
    pub ignore_query: Vec<String>,
    /// Let `Upgrade` requests (WebSocket) through to the origin.
    #[serde(default)]
    pub upgrades: bool,
    /// Who may send `PURGE` requests. Without it the method is refused.
    #[serde(default)]
    pub purge: Option<PurgeAccess>,
    /// When a request is sent to the origin once more. Default: as its upstream says, if `origin` names one.
    #[serde(default)]
    pub retry: Option<Retry>,
    /// How long the origin may take. Default: as its upstream says.
    #[serde(default)]
    pub deadline: Option<Deadlines>,
    /// How many requests may be under way to the origin at once, beside what its upstream says.
    #[serde(default)]
    pub concurrency: Option<Concurrency>,
    /// Leaves a failing origin alone for a while. Default: no.
    #[serde(default)]
    pub circuit_breaker: Option<CircuitBreaker>,
}

impl Edge {
    /// What the edge says of its origin.
    pub fn resilience(&self) -> Resilience {
        Resilience { retry: self.retry.clone(), deadline: self.deadline.clone(), concurrency: self.concurrency.clone() }
    }
}

/// A certificate with the names it serves.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EdgeCertificate {
    /// The chain in PEM, or the name of a file that holds it.
    pub cert: Spanned<String>,
    /// The private key in PEM, or the name of a file that holds it.
    pub key: Secret,
    /// Server names, perhaps with a leading `*.`. Default: those that stand in the certificate.
    #[serde(default)]
    pub snis: Vec<String>,
}

/// `origin_tls:` — what the site must show, and what is shown to it.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OriginTls {
    /// Name in the handshake, and the one that the site's certificate must have. Default: the host of `origin`.
    pub server_name: Option<String>,
    /// Certificates of authorities in PEM, or the name of a file that holds them, that are trusted instead of the system's.
    pub ca: Option<String>,
    /// Certificate shown to the site, in PEM or a file's name.
    pub cert: Option<String>,
    /// Its private key, in PEM or a file's name.
    pub key: Option<Secret>,
    /// HTTP/2, if the site offers it.
    pub http2: bool,
}

/// `purge:` — who may purge by the `PURGE` method. Both must fit.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PurgeAccess {
    /// Addresses and networks (CIDR) that may.
    #[serde(default = "d_purge_from")]
    pub from: Vec<String>,
    /// Sent as `Authorization: Bearer`.
    pub token: Secret,
}

/// Switches for `X-Cache-*`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CacheHeaders {
    /// `X-Cache-Status`, `X-Cache-Age` and `X-Cache-TTL`.
    pub status: bool,
    /// `X-Cache-Key`. Shows how keys are made; off where that is nobody's business.
    pub key: bool,
    /// `Cache-Status` (RFC 9211).
    pub cache_status: bool,
}

/// One entry of `pages:`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PageRule {
    /// `/exact`, `/one/*` (one segment) or `/all/**` (`/all` and everything below).
    pub path: String,
    /// `never` keeps the page out of the cache.
    #[serde(default)]
    pub cache: CacheSwitch,
    /// A duration (Weir decides) or `origin` (the response's own fields decide, RFC 9111).
    #[serde(default = "d_page_ttl")]
    pub ttl: Ttl,
    /// Query keys that belong to the page: kept in the key, sorted, and forwarded. All others are dropped from both.
    #[serde(default)]
    pub query: Vec<String>,
    /// After the TTL, how long the old page may be served while a new one is fetched.
    #[serde(default)]
    pub stale_while_revalidate: Option<Millis>,
    /// After the TTL, how long the old page may be served when the origin fails.
    #[serde(default)]
    pub stale_if_error: Option<Millis>,
    /// Tags for purging, beside those that the response names.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Signed-in visitors: `bypass` the cache, or `share` the anonymous page.
    #[serde(default)]
    pub signed_in: SignedIn,
    /// A token that fills of this rule carry as `Authorization: Bearer`. Fills never carry a visitor's.
    #[serde(default)]
    pub fill_token: Option<Secret>,
    /// With a `ttl` duration: cache even when the response says `private`, `no-store` or `no-cache`. Say it only of pages that are the same for everyone.
    #[serde(default)]
    pub override_cache_control: bool,
    /// Largest body that is stored.
    #[serde(default = "d_max_page")]
    pub max_size: Size,
    /// Fetches of this rule's pages at once, each Weir for itself; others wait or get the stale page. Without it: no limit.
    #[serde(default)]
    pub max_fills: Option<u32>,
    /// Beta of the XFetch rule: how eagerly one request refreshes a page before its time is over. 0: never; 1: the paper's optimum.
    #[serde(default = "d_early_refresh")]
    pub early_refresh: f64,
    /// With `ttl: origin`, for answers that do not say how long they are good for: this share of the time since `Last-Modified` (RFC 9111
    /// section 4.2.2). 0: such answers are not stored.
    #[serde(default)]
    pub heuristic: f32,
    /// Whether `Cache-Control` of requests counts (RFC 9111 section 5.2.1). Visitors can then make the origin work.
    #[serde(default)]
    pub honour_request: bool,
    /// Whether an unsafe request (`POST`, a form, a server action, …) that succeeds removes the page at its address, and those at the `Location`
    /// and `Content-Location` of its answer (RFC 9111 section 4.4). `false`: for pages whose forms and actions change nothing that others see.
    #[serde(default = "yes")]
    pub invalidate: bool,
    /// Encodings of this rule's pages, instead of the edge's `encodings`.
    #[serde(default)]
    pub encodings: Option<Vec<Encoding>>,
}

/// A content coding that Weir makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Brotli (RFC 7932): the smallest.
    Br,
    /// Zstandard (RFC 8878): the quickest to unpack.
    Zstd,
    /// Gzip (RFC 1952): what every client takes.
    Gzip,
}

/// `cache:` of a page rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CacheSwitch {
    /// Cache what the gate allows.
    #[default]
    On,
    /// Always ask the origin.
    Never,
}

/// Who decides how long a page is fresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ttl {
    /// This long, whatever the response says of freshness.
    For(Duration),
    /// What the response says.
    Origin,
}

/// What signed-in visitors get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SignedIn {
    /// Their own answer from the origin.
    #[default]
    Bypass,
    /// The same page as everybody.
    Share,
}

/// Where the edge sends `/api`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ApiTarget {
    /// The gateway in this process.
    #[default]
    Gateway,
    /// The site itself.
    Origin,
    /// A gateway elsewhere.
    Url(String),
}

/// `guests:` — who gets a guest token, and from whom.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Guests {
    /// `local`, or `{ url, timeout }` of the auth service (with local issue as the fallback).
    #[serde(default)]
    pub issue: GuestIssue,
    /// HS256 key (any text of 32 bytes or more), or an Ed25519 private key in PEM for EdDSA.
    pub key: Secret,
    /// Cookie name.
    #[serde(default = "d_guest_cookie")]
    pub cookie: String,
    /// Life of a token.
    #[serde(default = "d_guest_ttl")]
    pub ttl: Millis,
    /// `iss` of tokens issued here.
    #[serde(default = "d_guest_issuer")]
    pub issuer: String,
    /// Mark the cookie `Secure`. Default: when the request came by TLS, or by a trusted proxy that says so.
    #[serde(default)]
    pub secure: Option<bool>,
}

/// Who issues guest tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum GuestIssue {
    /// Weir signs them.
    #[default]
    Local,
    /// The auth service does; if it does not answer within `timeout`, Weir signs.
    Remote {
        /// `POST`ed to; answers with JSON that has `token` or `access_token`.
        url: String,
        /// Longest wait.
        timeout: Duration,
    },
}

/// `warm_up:` — refreshes the listed targets through the normal path.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WarmUp {
    /// Interval; this or `cron`.
    #[serde(default)]
    pub every: Option<Millis>,
    /// Cron expression of five or six fields, in UTC.
    #[serde(default)]
    pub cron: Option<String>,
    /// Who may send `X-Cache-Refresh` from outside: those who send this in `X-Warmup-Token`.
    #[serde(default)]
    pub token: Option<Secret>,
    /// `/path` (through the gateway), `edge:/path` or `gateway:/path`; `//host/path` names a host.
    #[serde(default)]
    pub urls: Vec<String>,
    /// Sitemaps (or sitemap indexes) whose pages are warmed too, written like `urls`: `edge:/sitemap.xml`.
    #[serde(default)]
    pub sitemaps: Vec<String>,
    /// Also the pages that visitors asked for most since the start, this many.
    #[serde(default)]
    pub top: u32,
    /// Requests a second at most; 0: as fast as `concurrency` lets them.
    #[serde(default)]
    pub rate: u32,
    /// Requests under way at once.
    #[serde(default = "d_warm_concurrency")]
    pub concurrency: u32,
    /// Longest wait for one answer.
    #[serde(default = "d_warm_timeout")]
    pub timeout: Millis,
}

/// `admin:` — metrics, health and the admin API.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Address to listen on.
    pub listen: String,
    /// Bearer token for every call that changes or shows state; empty: only from loopback.
    pub token: Option<Secret>,
}

/// `server:` — the process.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Worker threads of each door; 0: one per core.
    pub threads: usize,
    /// Largest request head; above it 431.
    pub max_head: Size,
    /// Largest request body; above it 413.
    pub max_body: Size,
    /// Bytes that the memory tier of the cache may hold.
    pub cache_memory: Size,
    /// Bytes of one answer that may lie here for a client that takes them slowly, on routes with `response_buffering`: its service is done sooner. 0: none.
    pub response_buffer: Size,
    /// The same for all answers together; beyond it, services wait for their clients.
    pub response_buffers: Size,
    /// Time for a whole request head.
    pub head_timeout: Millis,
    /// Time for the client's next body bytes, and for it to take ours.
    pub body_timeout: Millis,
    /// Time that a connection may idle between requests.
    pub keepalive: Millis,
    /// On shutdown, how long requests in flight may go on.
    pub grace: Millis,
    /// Addresses (CIDR) whose `X-Forwarded-*` are believed.
    pub trusted_proxies: Vec<String>,
    /// Hits in memory are answered by a lane of their own, straight from the bytes of the request. `false` sends every request the long
    /// way, with the same answers: for comparing the two.
    pub fast_lane: bool,
    /// Access log: `off`, `text` or `json`, to standard output.
    pub access_log: AccessLog,
    /// Read the configuration again when one of its files changes.
    pub watch: bool,
}

/// How requests are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AccessLog {
    /// Not at all.
    #[default]
    Off,
    /// One line of text a request.
    Text,
    /// One JSON object a request.
    Json,
}

impl Default for StoreConfig {
    fn default() -> Self {
        StoreConfig { url: Secret::new("memory"), prefix: d_prefix(), deadline: d_store_deadline(), replicas: vec![], trust_memory: Millis::secs(5), compress: true }
    }
}

impl Default for CacheHeaders {
    fn default() -> Self {
        CacheHeaders { status: true, key: true, cache_status: true }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Admin { listen: "127.0.0.1:9090".into(), token: None }
    }
}

impl Default for Server {
    fn default() -> Self {
        Server {
            threads: 0,
            max_head: Size(32 * 1024),
            max_body: Size(100 * 1024 * 1024),
            cache_memory: Size(256 * 1024 * 1024),
            response_buffer: Size(1024 * 1024),
            response_buffers: Size(64 * 1024 * 1024),
            head_timeout: Millis::secs(10),
            body_timeout: Millis::secs(30),
            keepalive: Millis::secs(75),
            grace: Millis::secs(10),
            trusted_proxies: vec![],
            fast_lane: true,
            access_log: AccessLog::Off,
            watch: true,
        }
    }
}

fn d_prefix() -> String {
    "weir:".into()
}
fn d_store_deadline() -> Millis {
    Millis(Duration::from_millis(50))
}
fn d_edge_listen() -> Listens {
    Listens::plain("0.0.0.0:9000")
}
fn d_api_prefix() -> String {
    "/api".into()
}
/// Names of cookies that usually mean a signed-in visitor.
pub fn session_cookies() -> Vec<String> {
    [
        "access_token",
        "auth_token",
        "session",
        "session_token",
        "next-auth.session-token",
        "__Secure-next-auth.session-token",
        "authjs.session-token",
        "__Secure-authjs.session-token",
    ]
    .map(String::from)
    .to_vec()
}
/// All encodings.
pub fn encodings() -> Vec<Encoding> {
    vec![Encoding::Br, Encoding::Zstd, Encoding::Gzip]
}
fn yes() -> bool {
    true
}
fn d_page_ttl() -> Ttl {
    Ttl::Origin
}
fn d_early_refresh() -> f64 {
    1.0
}
fn d_max_page() -> Size {
    Size(4 * 1024 * 1024)
}
fn d_guest_cookie() -> String {
    "guest_token".into()
}
fn d_guest_ttl() -> Millis {
    Millis::secs(30 * 24 * 3600)
}
fn d_guest_issuer() -> String {
    "weir".into()
}
fn d_purge_from() -> Vec<String> {
    vec!["127.0.0.0/8".into(), "::1/128".into()]
}
fn d_warm_concurrency() -> u32 {
    4
}
fn d_warm_timeout() -> Millis {
    Millis::secs(30)
}
