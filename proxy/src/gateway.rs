//! The gateway's way of a request: route, chain, cache, service.

use crate::{
    downstream::{Downstream, RequestBody},
    forward::Begun,
    live::Live,
    origin::OriginFetch,
    times::KONG_REQUEST_ID,
    work::{Work, wants_upgrade},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, Version, header, request, uri::PathAndQuery};
use std::{borrow::Cow, net::IpAddr, ops::Range, sync::Arc};
use weir_config::{HeaderNames, PathHandling};
use weir_gateway::{Chain, Progress, Reply, RequestContext, RouteRuntime, Scheme, ServiceRuntime, context::LogView, router};

const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
const X_FORWARDED_PATH: HeaderName = HeaderName::from_static("x-forwarded-path");

/// Fields that only the gateway may set: a client's are dropped.
pub(crate) const IDENTITY: [&str; 7] = [
    "x-consumer-id",
    "x-consumer-custom-id",
    "x-consumer-username",
    "x-consumer-groups",
    "x-credential-identifier",
    "x-authenticated-groups",
    "x-anonymous-consumer",
];

/// A body up to this many bytes is read whole before the service is asked, where the route says so.
const SHORT: usize = 64 * 1024;

/// Few requests have one of these, and looking at the names costs less than to ask for each of them.
fn strip_identity(headers: &mut HeaderMap) {
    if headers.keys().any(|name| name.as_str().starts_with("x-") && IDENTITY.contains(&name.as_str())) {
        for name in IDENTITY {
            headers.remove(name);
        }
    }
}

/// Serves a request that came by the gateway's door, or by the edge's with the API prefix.
pub async fn handle<D: Downstream>(work: &mut Work<'_, D>, mut request: request::Parts) {
    strip_identity(&mut request.headers);
    let live = work.live.clone();
    let snapshot = &live.snapshot;
    work.shown.times = snapshot.headers;
    let asked = request.uri.clone();
    let query = router::Query {
        scheme: work.cx.client.scheme.as_str(),
        method: &request.method,
        host: &work.cx.client.host,
        port: work.cx.client.port,
        path: asked.path(),
        headers: &request.headers,
        sni: work.cx.client.sni.as_deref(),
    };
    let Some(found) = snapshot.router.find(&query) else {
        if let Some(route) = snapshot.router.find_websocket(&query).map(|index| snapshot.routes[index].clone()) {
            if route.chains.wants_log_view() {
                work.cx.log_view = Some(LogView::new(&request));
            }
            work.label.clone_from(&route.name);
            work.cx.service.clone_from(&route.service);
            work.cx.route = Some(route.clone());
            return wrong_protocol(work, &route, Wanted::WebSocket, &request).await;
        }
        if snapshot.no_route.wants_log_view() {
            work.cx.log_view = Some(LogView::new(&request));
        }
        work.label = "no-route".into();
        work.cx.failure = Some("no-route");
        let chain = snapshot.no_route.clone();
        return work.error(&chain, StatusCode::NOT_FOUND, "no Route matched with those values").await;
    };
    if !request.method.is_safe() {
        work.cx.state.insert(crate::purging::Unsafe::of(&request));
    }
    let route = snapshot.routes[found.route].clone();
    let prefix_len = found.prefix_len;
    // A path that was normal as it came needs no copy.
    let normalized = match found.path {
        Cow::Borrowed(_) => None,
        Cow::Owned(path) => Some(path),
    };
    let path = normalized.as_deref().unwrap_or(asked.path());
    work.cx.captures = found.captures;
    work.label.clone_from(&route.name);
    work.cx.route = Some(route.clone());
    work.cx.service.clone_from(&route.service);
    if route.chains.wants_log_view() {
        work.cx.log_view = Some(LogView::new(&request));
    }
    if let Some(wanted) = mismatch(work.cx.client.scheme, &route, &request) {
        return wrong_protocol(work, &route, wanted, &request).await;
    }
    if let Some(limit) = route.chains.reads_body()
        && !work.read_ahead(&route.chains.base, limit).await
    {
        return;
    }
    let begun = route.chains.begin(&work.cx);
    let (chain, reply) = route.chains.request(&mut work.cx, &mut request, begun).await;
    answer(work, request, &route, chain, reply, path, prefix_len).await;
}

/// A request that the fast lane began and does not finish.
pub struct Handed {
    /// The configuration that it began with.
    pub live: Arc<Live>,
    /// What is known of it.
    pub cx: RequestContext,
    /// How far it came.
    pub stage: Stage,
}

/// How far the fast lane came with a request.
pub struct Stage {
    /// Its route.
    pub route: Arc<RouteRuntime>,
    /// Bytes of the path that the route's path matched.
    pub prefix_len: usize,
    /// How far its plugins came.
    pub progress: Progress,
    /// What one of them answers.
    pub reply: Option<Box<Reply>>,
    /// The fields that its plugins look at, as they left them; `None`: they look at none.
    pub fields: Option<HeaderMap>,
    /// The service was chosen, and perhaps asked.
    pub begun: Option<Begun>,
}

/// Serves a request from where the fast lane left it.
pub async fn go_on<D: Downstream>(work: &mut Work<'_, D>, mut request: request::Parts, stage: Stage) {
    strip_identity(&mut request.headers);
    if !request.method.is_safe() {
        work.cx.state.insert(crate::purging::Unsafe::of(&request));
    }
    let Stage { route, prefix_len, progress, reply, fields, begun } = stage;
    work.shown.times = work.live.snapshot.headers;
    work.label.clone_from(&route.name);
    work.begun = begun;
    if let (Some(fields), Some(sights)) = (fields, progress.chain.sights()) {
        let seen: Vec<HeaderName> = request.headers.keys().filter(|name| sights.request.have(name.as_str().as_bytes())).cloned().collect();
        for name in seen {
            request.headers.remove(name);
        }
        request.headers.extend(fields);
    }
    let (chain, reply) = match reply {
        Some(reply) => (progress.chain, Some(*reply)),
        None => route.chains.request(&mut work.cx, &mut request, progress).await,
    };
    let asked = request.uri.clone();
    answer(work, request, &route, chain, reply, asked.path(), prefix_len).await;
}

/// Answers with what a plugin said, from the cache, or from the service. `path`: the request's, normalized.
async fn answer<D: Downstream>(
    work: &mut Work<'_, D>,
    request: request::Parts,
    route: &Arc<RouteRuntime>,
    chain: Arc<Chain>,
    reply: Option<Reply>,
    path: &str,
    prefix_len: usize,
) {
    if let Some(reply) = reply {
        return work.reply(&chain, reply).await;
    }
    let Some(service) = work.cx.service.clone() else {
        work.cx.failure = Some("no-service");
        return work.error(&chain, StatusCode::SERVICE_UNAVAILABLE, "no Service found with those values").await;
    };
    let Some(target) = target(&service, route, &request.uri, path, prefix_len) else {
        work.cx.failure = Some("bad-target");
        return work.error(&chain, StatusCode::BAD_REQUEST, "Bad request").await;
    };
    let plan = if wants_upgrade(&request.headers).is_some() { None } else { work.cx.plan.clone() };
    let Some(plan) = plan else {
        if !read_short(work, &chain, route).await {
            return;
        }
        let upstream = towards(&mut work.cx, &chain, &service, route, request, target, prefix_len, path);
        return work.forward(&chain, &service, upstream).await;
    };
    // A fill is for everyone: it carries nothing by which one visitor could be known, and no conditions of one client's copy.
    let own = !["cookie", "authorization", "proxy-authorization", "range"].iter().any(|n| request.headers.contains_key(*n))
        && !work.cx.guest
        && work.cx.identity.is_none()
        && work.cx.consumer.is_none();
    let mut anonymous = request.clone();
    anonymous.method = http::Method::GET;
    strip_identity(&mut anonymous.headers);
    for name in [
        header::COOKIE,
        header::AUTHORIZATION,
        header::PROXY_AUTHORIZATION,
        header::RANGE,
        header::IF_RANGE,
        header::IF_MATCH,
        header::IF_NONE_MATCH,
        header::IF_MODIFIED_SINCE,
        header::IF_UNMODIFIED_SINCE,
        header::CACHE_CONTROL,
        header::PRAGMA,
    ] {
        anonymous.headers.remove(name);
    }
    anonymous.headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let mut fill = work.cx.for_fill();
    let upstream = towards(&mut fill, &chain, &service, route, anonymous, target.clone(), prefix_len, path);
    let fetch = OriginFetch {
        weir: work.weir.clone(),
        service: service.clone(),
        request: upstream,
        chain: chain.clone(),
        client: work.cx.client.clone(),
        route: Some(route.clone()),
        page: false,
        guard: work.cx.guard.clone(),
    };
    if let Some(report) = work.through_cache(&chain, &plan, &request, fetch, own).await {
        work.cx.report = Some(report);
        let upstream = towards(&mut work.cx, &chain, &service, route, request, target, prefix_len, path);
        work.forward(&chain, &service, upstream).await;
    }
}

/// Reads a short body whole, so that the service has the request at once however slowly it comes. Bodies of unknown length may be half
/// of a conversation: they are passed on as they come. `false`: the client was answered or is gone.
async fn read_short<D: Downstream>(work: &mut Work<'_, D>, chain: &Chain, route: &RouteRuntime) -> bool {
    let short = matches!(work.down.request_body(), RequestBody::Length(length) if length <= SHORT as u64);
    !(short && route.request_buffering && work.cx.body.is_none()) || work.read_ahead(chain, SHORT).await
}

/// What a route wants to be spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Https,
    WebSocket,
    Grpc,
    GrpcOverTls,
    Http2,
}

/// What a request should have spoken and does not.
fn mismatch(scheme: Scheme, route: &RouteRuntime, request: &request::Parts) -> Option<Wanted> {
    let plain = scheme == Scheme::Http && !route.http;
    if !route.grpc {
        return plain.then_some(Wanted::Https);
    }
    let kind = request.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    if !kind.is_some_and(|kind| kind.starts_with(b"application/grpc")) {
        return Some(Wanted::Grpc);
    }
    match request.version {
        Version::HTTP_2 => plain.then_some(Wanted::GrpcOverTls),
        _ => Some(Wanted::Http2),
    }
}

/// Answers a request by the wrong protocol, with Kong's statuses and messages.
async fn wrong_protocol<D: Downstream>(work: &mut Work<'_, D>, route: &Arc<RouteRuntime>, wanted: Wanted, request: &request::Parts) {
    let chain = route.chains.base.clone();
    work.cx.failure = Some("wrong-protocol");
    let error = |status: StatusCode, message: &str| Reply::error("weir", &work.cx, work.accept.as_ref(), status, message);
    let upgrade = |message: &str, to: &str| error(StatusCode::UPGRADE_REQUIRED, message).with("connection", "Upgrade").with("upgrade", to);
    let reply = match wanted {
        Wanted::WebSocket => upgrade("Please use WebSocket protocol", "websocket"),
        Wanted::Http2 => upgrade("Please use HTTP2 protocol", "HTTP/2"),
        Wanted::Grpc => error(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Non-gRPC request matched gRPC route"),
        Wanted::GrpcOverTls => Reply::empty("weir", StatusCode::OK)
            .with("content-type", "application/grpc")
            .with("grpc-status", "1")
            .with("grpc-message", "gRPC request matched gRPCs route"),
        Wanted::Https => match StatusCode::from_u16(route.https_redirect_status_code) {
            Ok(status) if status.is_redirection() => {
                let host = weir_cache::keys::canonical_host(&work.cx.client.host).unwrap_or_default();
                let name = host.rsplit_once(':').map_or(host.as_str(), |(name, port)| if port.bytes().all(|b| b.is_ascii_digit()) { name } else { &host });
                let path = request.uri.path_and_query().map_or("/", |p| p.as_str());
                error(status, "Please use HTTPS protocol").with("location", &format!("https://{name}{path}"))
            }
            _ => upgrade("Please use HTTPS protocol", "TLS/1.2, HTTP/1.1"),
        },
    };
    work.reply(&chain, reply).await;
}

/// Path and query at the upstream.
fn target(service: &ServiceRuntime, route: &RouteRuntime, uri: &Uri, path: &str, prefix_len: usize) -> Option<Uri> {
    let mut joined = router::upstream_path(&service.path, route.strip_path, prefix_len, path, route.path_handling);
    if joined == uri.path() {
        return Some(uri.clone());
    }
    if let Some(query) = uri.query() {
        joined.push('?');
        joined.push_str(query);
    }
    Some(PathAndQuery::from_maybe_shared(Bytes::from(joined)).ok()?.into())
}

/// The request as the upstream will see it.
#[allow(clippy::too_many_arguments)]
fn towards(
    cx: &mut RequestContext,
    chain: &Chain,
    service: &Arc<ServiceRuntime>,
    route: &RouteRuntime,
    mut request: request::Parts,
    target: Uri,
    prefix_len: usize,
    path: &str,
) -> request::Parts {
    let asked = std::mem::replace(&mut request.uri, target);
    let told = |name: &HeaderName| if cx.client.trusted { request.headers.get(name).cloned() } else { None };
    let (told_prefix, told_path) = (told(&X_FORWARDED_PREFIX), told(&X_FORWARDED_PATH));
    forwarded(&mut request.headers, cx, request.version);
    let stripped = route.strip_path && prefix_len > 0 && route.path_handling == PathHandling::V0;
    if let Some(prefix) = told_prefix.or_else(|| HeaderValue::from_str(path.get(..prefix_len).filter(|prefix| stripped && *prefix != "/")?).ok()) {
        request.headers.insert(X_FORWARDED_PREFIX, prefix);
    }
    if let Some(path) = told_path.or_else(|| HeaderValue::from_str(asked.path()).ok()) {
        request.headers.insert(X_FORWARDED_PATH, path);
    }
    if route.headers == HeaderNames::Kong
        && let Ok(id) = HeaderValue::from_str(cx.id.as_str())
    {
        request.headers.insert(KONG_REQUEST_ID, id);
    }
    if !route.preserve_host {
        request.headers.insert(header::HOST, service.host_header.clone());
    }
    chain.to_upstream(cx, &mut request);
    request
}

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const VIA: HeaderValue = HeaderValue::from_static("1.1 weir");
const VIA_HTTP2: HeaderValue = HeaderValue::from_static("2 weir");

/// Tells the upstream who asks, and how. What a client says of itself counts only from a trusted proxy.
pub fn forwarded(headers: &mut HeaderMap, cx: &RequestContext, version: Version) {
    let client = &cx.client;
    // All texts in one buffer, which the fields share.
    let mut texts = Texts(Vec::with_capacity(128));
    let peer = texts.address(client.peer);
    let ip = if client.ip == client.peer { peer.clone() } else { texts.address(client.ip) };
    let port = texts.add(itoa::Buffer::new().format(client.port).as_bytes());
    let id = texts.add(cx.id.as_str().as_bytes());
    let texts = Bytes::from(texts.0);
    let text = |range: Range<usize>| value(texts.slice(range));

    let before = if client.trusted { headers.get_all(&X_FORWARDED_FOR).iter().filter_map(|v| v.to_str().ok()).collect::<Vec<_>>().join(", ") } else { String::new() };
    let chain = if before.is_empty() { text(peer) } else { value(format!("{before}, {}", client.peer).into()) };
    headers.insert(X_FORWARDED_FOR, chain);
    headers.insert(X_REAL_IP, text(ip));
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(client.scheme.as_str()));
    // Mostly the very bytes that the client sent.
    let host = headers.get(header::HOST).filter(|sent| sent.as_bytes() == client.host.as_bytes()).cloned();
    headers.insert(X_FORWARDED_HOST, host.unwrap_or_else(|| value(Bytes::copy_from_slice(client.host.as_bytes()))));
    headers.insert(X_FORWARDED_PORT, text(port));
    headers.remove(&X_FORWARDED_PREFIX);
    headers.remove(header::FORWARDED);
    headers.insert(X_REQUEST_ID, text(id));
    // The version is that of the request as it came (RFC 9110 section 7.6.3).
    let own = if version == Version::HTTP_2 { VIA_HTTP2 } else { VIA };
    let via = match headers.get(header::VIA).and_then(|v| v.to_str().ok()) {
        Some(before) => value(format!("{before}, {}", own.to_str().unwrap_or_default()).into()),
        None => own,
    };
    headers.insert(header::VIA, via);
}

/// A value of our own making; what can stand in no field becomes an empty one.
fn value(text: Bytes) -> HeaderValue {
    HeaderValue::from_maybe_shared(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Texts one behind the other.
struct Texts(Vec<u8>);

impl Texts {
    fn add(&mut self, text: &[u8]) -> Range<usize> {
        let from = self.0.len();
        self.0.extend_from_slice(text);
        from..self.0.len()
    }

    fn address(&mut self, address: IpAddr) -> Range<usize> {
        let from = self.0.len();
        crate::access::address(&mut self.0, address);
        from..self.0.len()
    }
}
