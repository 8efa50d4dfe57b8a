//! The gateway's way of a request: route, chain, cache, service.

use crate::{downstream::{Downstream, RequestBody}, origin::OriginFetch, times::KONG_REQUEST_ID, work::{Work, wants_upgrade}};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header, request};
use std::{io::Write as _, net::IpAddr, sync::Arc};
use weir_config::{HeaderNames, PathHandling};
use weir_gateway::{Chain, RequestContext, RouteRuntime, Scheme, ServiceRuntime, context::LogView, router};

const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
const X_FORWARDED_PATH: HeaderName = HeaderName::from_static("x-forwarded-path");

/// Fields that only the gateway may set: a client's are dropped.
const IDENTITY: [&str; 7] = [
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
    let host = work.cx.client.host.clone();
    let found = snapshot.router.find(&router::Query {
        scheme: work.cx.client.scheme.as_str(),
        method: &request.method,
        host: &host,
        port: work.cx.client.port,
        path: request.uri.path(),
        headers: &request.headers,
        sni: work.cx.client.sni.as_deref(),
    });
    let Some(found) = found else {
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
    let (prefix_len, path) = (found.prefix_len, found.path.into_owned());
    work.cx.captures = found.captures;
    work.label.clone_from(&route.name);
    work.cx.route = Some(route.clone());
    work.cx.service.clone_from(&route.service);
    if route.chains.wants_log_view() {
        work.cx.log_view = Some(LogView::new(&request));
    }
    if work.cx.client.scheme == Scheme::Http && !route.http {
        return wrong_protocol(work, &route, &request).await;
    }
    if let Some(limit) = route.chains.reads_body()
        && !work.read_ahead(&route.chains.base, limit).await
    {
        return;
    }
    let (chain, reply) = route.chains.request(&mut work.cx, &mut request).await;
    if let Some(reply) = reply {
        return work.reply(&chain, reply).await;
    }
    let Some(service) = work.cx.service.clone() else {
        work.cx.failure = Some("no-service");
        return work.error(&chain, StatusCode::SERVICE_UNAVAILABLE, "no Service found with those values").await;
    };
    let Some(target) = target(&service, &route, &request.uri, &path, prefix_len) else {
        work.cx.failure = Some("bad-target");
        return work.error(&chain, StatusCode::BAD_REQUEST, "Bad request").await;
    };
    let plan = if wants_upgrade(&request.headers).is_some() { None } else { work.cx.plan.clone() };
    let Some(plan) = plan else {
        if !read_short(work, &chain, &route).await {
            return;
        }
        let upstream = towards(&mut work.cx, &chain, &service, &route, request, target, prefix_len, &path);
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
    let upstream = towards(&mut fill, &chain, &service, &route, anonymous, target.clone(), prefix_len, &path);
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
        let upstream = towards(&mut work.cx, &chain, &service, &route, request, target, prefix_len, &path);
        work.forward(&chain, &service, upstream).await;
    }
}

/// Reads a short body whole, so that the service has the request at once however slowly it comes. Bodies of unknown length may be half
/// of a conversation: they are passed on as they come. `false`: the client was answered or is gone.
async fn read_short<D: Downstream>(work: &mut Work<'_, D>, chain: &Chain, route: &RouteRuntime) -> bool {
    let short = matches!(work.down.request_body(), RequestBody::Length(length) if length <= SHORT as u64);
    !(short && route.request_buffering && work.cx.body.is_none()) || work.read_ahead(chain, SHORT).await
}

async fn wrong_protocol<D: Downstream>(work: &mut Work<'_, D>, route: &Arc<RouteRuntime>, request: &request::Parts) {
    let chain = route.chains.base.clone();
    work.cx.failure = Some("wrong-protocol");
    let status = StatusCode::from_u16(route.https_redirect_status_code).unwrap_or(StatusCode::UPGRADE_REQUIRED);
    let mut reply =
        weir_gateway::Reply::error("weir", &work.cx, work.accept.as_ref(), status, "Please use HTTPS protocol");
    if status == StatusCode::UPGRADE_REQUIRED {
        reply = reply.with("connection", "Upgrade").with("upgrade", "TLS/1.2, HTTP/1.1");
    } else {
        let host = weir_cache::keys::canonical_host(&work.cx.client.host).unwrap_or_default();
        let name = host.rsplit_once(':').map_or(host.as_str(), |(name, port)| if port.bytes().all(|b| b.is_ascii_digit()) { name } else { &host });
        let path = request.uri.path_and_query().map_or("/", |p| p.as_str());
        reply = reply.with("location", &format!("https://{name}{path}"));
    }
    work.reply(&chain, reply).await;
}

/// Path and query at the upstream.
fn target(service: &ServiceRuntime, route: &RouteRuntime, uri: &Uri, path: &str, prefix_len: usize) -> Option<Uri> {
    let joined = router::upstream_path(&service.path, route.strip_path, prefix_len, path, route.path_handling);
    let text = match uri.query() {
        Some(query) => format!("{joined}?{query}"),
        None => joined,
    };
    text.parse().ok()
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
    let told = |name: &HeaderName| request.headers.get(name).filter(|_| cx.client.trusted).cloned();
    let (told_prefix, told_path) = (told(&X_FORWARDED_PREFIX), told(&X_FORWARDED_PATH));
    forwarded(&mut request.headers, cx);
    let stripped = route.strip_path && prefix_len > 0 && route.path_handling == PathHandling::V0;
    if let Some(prefix) = told_prefix.or_else(|| HeaderValue::from_str(path.get(..prefix_len).filter(|_| stripped)?).ok()) {
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

/// Tells the upstream who asks, and how. What a client says of itself counts only from a trusted proxy.
pub fn forwarded(headers: &mut HeaderMap, cx: &RequestContext) {
    let client = &cx.client;
    let peer = address(client.peer);
    let before = if client.trusted { headers.get_all(&X_FORWARDED_FOR).iter().filter_map(|v| v.to_str().ok()).collect::<Vec<_>>().join(", ") } else { String::new() };
    let chain = if before.is_empty() { peer.clone() } else { text(&format!("{before}, {}", client.peer)) };
    headers.insert(X_FORWARDED_FOR, chain);
    headers.insert(X_REAL_IP, if client.ip == client.peer { peer } else { address(client.ip) });
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(client.scheme.as_str()));
    // Mostly the very bytes that the client sent.
    let host = headers.get(header::HOST).filter(|sent| sent.as_bytes() == client.host.as_bytes()).cloned();
    headers.insert(X_FORWARDED_HOST, host.unwrap_or_else(|| text(&client.host)));
    headers.insert(X_FORWARDED_PORT, HeaderValue::from(client.port));
    headers.remove(&X_FORWARDED_PREFIX);
    headers.remove(header::FORWARDED);
    headers.insert(X_REQUEST_ID, text(cx.id.as_str()));
    let via = match headers.get(header::VIA).and_then(|v| v.to_str().ok()) {
        Some(before) => text(&format!("{before}, 1.1 weir")),
        None => VIA,
    };
    headers.insert(header::VIA, via);
}

/// A value of our own making; what can stand in no field becomes an empty one.
fn text(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn address(address: IpAddr) -> HeaderValue {
    let mut shown = [0u8; 48];
    let mut rest = &mut shown[..];
    // No address is longer than this.
    let _ = write!(rest, "{address}");
    let left = rest.len();
    HeaderValue::from_bytes(&shown[..48 - left]).unwrap_or_else(|_| HeaderValue::from_static(""))
}
