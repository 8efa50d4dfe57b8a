//! Kong's entities as the gateway section holds them: flattened, with their references resolved.

use crate::{Listens, Node, Resilience, Secret, Span, Spanned};
use std::time::Duration;

/// `gateway:` — the door with routes and plugin chains.
#[derive(Debug, Clone)]
pub struct Gateway {
    /// Addresses to listen on.
    pub listen: Listens,
    /// Kong's `_format_version`, as `(major, minor)`.
    pub format: (u16, u16),
    /// Services, flattened.
    pub services: Vec<Service>,
    /// Routes, flattened, each with its service's index.
    pub routes: Vec<Route>,
    /// Plugins with their scopes, flattened.
    pub plugins: Vec<PluginEntry>,
    /// Consumers with their credentials.
    pub consumers: Vec<Consumer>,
    /// Upstreams with their targets.
    pub upstreams: Vec<Upstream>,
    /// TLS certificates with their server names.
    pub certificates: Vec<Certificate>,
    /// Certificates of authorities that services may name.
    pub ca_certificates: Vec<CaCertificate>,
    /// Names of consumer groups.
    pub groups: Vec<String>,
    /// Whose names the fields have by which answers tell times.
    pub headers: HeaderNames,
}

/// `headers:` — the names of the fields in which the gateway tells how long things took, and the request's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HeaderNames {
    /// `X-Weir-Upstream-Latency`, `-Proxy-Latency`, `-Response-Latency`.
    #[default]
    Weir,
    /// `X-Kong-Upstream-Latency`, `-Proxy-Latency`, `-Response-Latency`, and `X-Kong-Request-Id`.
    Kong,
    /// None.
    Off,
}

/// A Kong service. Defaults are Kong's.
#[derive(Debug, Clone)]
pub struct Service {
    /// Unique name (or id, or a made-up one like `service#3`).
    pub name: String,
    /// Kong's id, if given.
    pub id: Option<String>,
    /// `http`, `https`, `grpc`, `grpcs`, `ws`, `wss`, `tcp`, `tls`.
    pub protocol: String,
    /// Host name, address, or the name of an upstream.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path put before the request's, without a query; empty or beginning with `/`.
    pub path: String,
    /// Extra tries after the first.
    pub retries: u32,
    /// Time for the connection.
    pub connect_timeout: Duration,
    /// Time between two writes.
    pub write_timeout: Duration,
    /// Time between two reads.
    pub read_timeout: Duration,
    /// Whether to verify the upstream's certificate. Default: yes.
    pub tls_verify: Option<bool>,
    /// Most intermediate certificates between the upstream's own and an authority's.
    pub tls_verify_depth: Option<u32>,
    /// Authorities that are trusted instead of the system's, as indexes into `Gateway::ca_certificates`.
    pub ca_certificates: Vec<usize>,
    /// Shown to the upstream: an index into `Gateway::certificates`.
    pub client_certificate: Option<usize>,
    /// HTTP/2 where the upstream speaks it. Weir's own key.
    pub http2: bool,
    /// Retries, deadlines and concurrency (Weir's own).
    pub resilience: Resilience,
    /// Tags.
    pub tags: Vec<String>,
    /// `false`: its routes are not served.
    pub enabled: bool,
    /// Where it stands.
    pub span: Span,
}

/// A Kong route. Defaults are Kong's.
#[derive(Debug, Clone)]
pub struct Route {
    /// Unique name (or id, or a made-up one like `bff#1`).
    pub name: String,
    /// Kong's id, if given.
    pub id: Option<String>,
    /// Index into `Gateway::services`; `None`: a route without a service, whose plugins must answer.
    pub service: Option<usize>,
    /// Protocols it accepts (`http`, `https`, `grpc`, `grpcs`, `ws`, `wss`).
    pub protocols: Vec<String>,
    /// Methods, upper case; empty: any.
    pub methods: Vec<String>,
    /// Hosts, lower case, perhaps with one leading or trailing `*` and a port; empty: any.
    pub hosts: Vec<String>,
    /// Path matchers; empty: any. Already migrated to the meaning of format 3.0.
    pub paths: Vec<PathMatcher>,
    /// Header names (lower case) with accepted values; `~*` marks one regex.
    pub headers: Vec<(String, Vec<String>)>,
    /// Server names of TLS.
    pub snis: Vec<String>,
    /// Cut the matched prefix before forwarding.
    pub strip_path: bool,
    /// Forward the client's `Host`.
    pub preserve_host: bool,
    /// `v0` or `v1` joining of paths.
    pub path_handling: PathHandling,
    /// Order among regex routes, higher first.
    pub regex_priority: i64,
    /// Status for the wrong protocol: 426, or a redirect.
    pub https_redirect_status_code: u16,
    /// Read a short request body whole before the service is asked, so that a slow client does not hold a connection to it.
    pub request_buffering: bool,
    /// Whether the service's answer is taken faster than a slow client takes it.
    pub response_buffering: bool,
    /// Tags.
    pub tags: Vec<String>,
    /// Where it stands.
    pub span: Span,
}

/// One entry of a route's `paths`.
#[derive(Debug, Clone)]
pub struct PathMatcher {
    /// The prefix, or the regex without its `~`.
    pub text: String,
    /// Whether it is a regex.
    pub regex: bool,
    /// Where it stands.
    pub span: Span,
}

/// How service path and request path are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PathHandling {
    /// With one slash between.
    #[default]
    V0,
    /// As they are.
    V1,
}

/// A plugin where it is attached. Which config runs for a request: the most specific scope (Kong's precedence).
#[derive(Debug, Clone)]
pub struct PluginEntry {
    /// The register's name.
    pub name: String,
    /// Where the name stands.
    pub name_span: Span,
    /// `config:`, not yet decoded; an empty mapping if it is missing.
    pub config: Node,
    /// `false`: as if it were not there.
    pub enabled: bool,
    /// Index into `services`.
    pub service: Option<usize>,
    /// Index into `routes`.
    pub route: Option<usize>,
    /// Index into `consumers`.
    pub consumer: Option<usize>,
    /// Index into `groups`.
    pub group: Option<usize>,
    /// Protocols as written; empty: all. As in Kong, only whether HTTP is among them counts.
    pub protocols: Vec<String>,
    /// `ordering.before.access`: plugins that this one goes before, with the places of their names.
    pub before: Vec<Spanned<String>>,
    /// `ordering.after.access`: plugins that this one goes after.
    pub after: Vec<Spanned<String>>,
    /// `instance_name`, if given.
    pub instance_name: Option<String>,
}

/// A Kong consumer.
#[derive(Debug, Clone)]
pub struct Consumer {
    /// Kong's id, if given; else made from the name, stable.
    pub id: String,
    /// `username`.
    pub username: Option<String>,
    /// `custom_id`.
    pub custom_id: Option<String>,
    /// Tags.
    pub tags: Vec<String>,
    /// Group names (`acls`).
    pub groups: Vec<String>,
    /// Names of `consumer_groups` it is in.
    pub consumer_groups: Vec<String>,
    /// `keyauth_credentials`.
    pub keys: Vec<ApiKey>,
    /// `basicauth_credentials`: user name and password.
    pub basic: Vec<(String, Secret)>,
    /// `jwt_secrets`.
    pub jwt: Vec<JwtCredential>,
    /// Where it stands.
    pub span: Span,
}

/// One of a consumer's `keyauth_credentials`.
#[derive(Debug, Clone)]
pub struct ApiKey {
    /// Its id, if the configuration gives it one.
    pub id: Option<String>,
    /// What callers show.
    pub key: Secret,
}

impl ApiKey {
    /// One without an id.
    pub fn new(key: impl Into<String>) -> ApiKey {
        ApiKey { id: None, key: Secret::new(key) }
    }
}

/// One of a consumer's `jwt_secrets`.
#[derive(Debug, Clone)]
pub struct JwtCredential {
    /// Value of the key claim (`iss` by default).
    pub key: String,
    /// HMAC secret.
    pub secret: Option<Secret>,
    /// PEM public key.
    pub rsa_public_key: Option<Secret>,
    /// `HS256` by default.
    pub algorithm: String,
}

/// A Kong upstream.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// Unique name; a service whose `host` is this name uses it.
    pub name: String,
    /// `round-robin`, `least-connections`, `consistent-hashing`, `latency`.
    pub algorithm: String,
    /// `none`, `consumer`, `ip`, `header`, `cookie`, `path`, `query_arg`, `uri_capture`.
    pub hash_on: String,
    /// Every setting as written, for the balancer and the health checks.
    pub settings: Node,
    /// Retries, deadlines and concurrency (Weir's own).
    pub resilience: Resilience,
    /// `Host` sent to the endpoints, and server name of TLS.
    pub host_header: Option<String>,
    /// Shown to endpoints by services that have none of their own: an index into `Gateway::certificates`.
    pub client_certificate: Option<usize>,
    /// Endpoints.
    pub targets: Vec<Target>,
    /// Where it stands.
    pub span: Span,
}

/// One endpoint of an upstream.
#[derive(Debug, Clone)]
pub struct Target {
    /// Host name or address.
    pub host: String,
    /// Port; 8000 when missing, as in Kong.
    pub port: u16,
    /// Share of the traffic; 0: none.
    pub weight: u32,
    /// Where it stands.
    pub span: Span,
}

/// A certificate with the names it serves.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// PEM chain.
    pub cert: String,
    /// PEM key.
    pub key: Secret,
    /// A second chain and key of another kind (`cert_alt`, `key_alt`), for clients that do not take the first.
    pub alt: Option<(String, Secret)>,
    /// Server names, perhaps with a leading `*.` or a trailing `.*`; `*`: any.
    pub snis: Vec<String>,
    /// Where it stands.
    pub span: Span,
}

/// The certificate of an authority.
#[derive(Debug, Clone)]
pub struct CaCertificate {
    /// By which services name it.
    pub id: Option<String>,
    /// PEM.
    pub cert: String,
    /// Where it stands.
    pub span: Span,
}
