//! Ordinary forwards: a request that is wholly here, whose route has no plugins but those that look at a few fields, to a service of whom a
//! connection waits.
//!
//! ```text
//! peek ─ a route of plain means? ─► plugins, on the fields they name ─► endpoint, idle connection ─► sent ─► peek at the answer ─► written
//!   └──────────┴─ no: the general lane    │ a reply, or to wait           │ none                     │ late, odd, or not whole
//!                                         └───────────────────────────────┴──────────────────────────┴─► the general lane goes on from there
//! ```
//!
//! Heads are passed on line by line as the bytes that they are. Where something is out of the ordinary, the general lane takes over what has
//! been done so far ([`Handed`]): a limit is not counted twice, a request not sent twice. What comes out is the same (a test runs one
//! corpus through both).

use super::{Lane, Served};
use crate::{
    access::{self, Line},
    dial::{self, Connection, PeerKey},
    exchange::Sent,
    forward::Begun,
    gateway::{Handed, Stage},
    h1::{self, Peeked},
    live::Live,
    purging,
    server::{Door, Peer},
    times,
    wire::{Wire, send},
};
use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header, request, response, uri::PathAndQuery};
use smallvec::SmallVec;
use std::{borrow::Cow, cell::Cell, io, sync::{Arc, LazyLock}, time::Duration};
use tokio::time::Instant;
use weir_config::{HeaderNames, PathHandling};
use weir_gateway::{
    Chain, Client, Progress, Reply, RequestContext, RouteRuntime, Scheme, ServiceRuntime, Spoken, Walked, router,
    sight::{Names, Sights},
    upstream::{Endpoint, InFlight, Outcome},
};

/// So long the head of an answer is waited for here. The general lane waits longer, and looks whether the client is still there.
const PATIENCE: Duration = Duration::from_millis(500);

/// Bodies up to this many bytes leave in one piece with their head; a request with a longer one is none for this lane.
const SHORT: usize = 4096;

/// The field lines of a head. Most heads have fewer.
type Lines<'a> = SmallVec<[h1::Line<'a>; 24]>;

/// Fields of requests that do not pass: those of one connection, those that the gateway writes itself, and those that only it may set.
fn stays_here(name: &[u8]) -> bool {
    let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
    match name.len() {
        4 => is(b"host"),
        9 => is(b"x-real-ip") || is(b"forwarded"),
        10 => is(b"connection") || is(b"keep-alive"),
        12 => is(b"x-request-id"),
        13 => is(b"x-consumer-id"),
        14 => is(b"http2-settings"),
        15 => is(b"x-forwarded-for"),
        16 => is(b"proxy-connection") || is(b"x-forwarded-host") || is(b"x-forwarded-port") || is(b"x-forwarded-path"),
        17 => is(b"x-forwarded-proto") || is(b"x-consumer-groups"),
        18 => is(b"x-forwarded-prefix") || is(b"proxy-authenticate"),
        19 => is(b"x-consumer-username"),
        20 => is(b"x-consumer-custom-id") || is(b"x-anonymous-consumer"),
        22 => is(b"x-authenticated-groups"),
        23 => is(b"x-credential-identifier"),
        25 => is(b"proxy-authentication-info"),
        _ => false,
    }
}

/// Fields of answers that do not pass: those of one connection, and what is meant for this cache alone.
fn ends_here(name: &[u8]) -> bool {
    let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
    match name.len() {
        10 => is(b"connection") || is(b"keep-alive"),
        14 => is(b"http2-settings"),
        16 => is(b"proxy-connection"),
        18 => is(b"weir-cache-control"),
        19 => is(b"proxy-authorization"),
        25 => is(b"proxy-authentication-info"),
        _ => false,
    }
}

/// Where a request of this lane goes.
struct Way<'l> {
    route: &'l Arc<RouteRuntime>,
    service: &'l Arc<ServiceRuntime>,
    sights: &'l Sights,
    prefix_len: usize,
    captures: Option<router::Captures>,
}

impl<'l> Way<'l> {
    fn of(live: &'l Live, peer: &Peer, head: &Peeked<'_>) -> Option<Way<'l>> {
        static NO_FIELDS: LazyLock<HeaderMap> = LazyLock::new(HeaderMap::new);
        if head.head_only() || head.steers || head.via || live.snapshot.router.reads_fields() {
            return None;
        }
        // The general lane judges whether the connection was made for this host, and what a trusted proxy says.
        if peer.sni.as_deref().is_some_and(|sni| !head.host.eq_ignore_ascii_case(sni)) || (head.forwarded && live.trusts(&peer.ip)) {
            return None;
        }
        let query = router::Query {
            scheme: scheme(peer).as_str(),
            method: head.method,
            host: head.host,
            port: peer.port,
            path: head.path,
            headers: &NO_FIELDS,
            sni: peer.sni.as_deref(),
        };
        let found = live.snapshot.router.find(&query)?;
        let route = &live.snapshot.routes[found.route];
        let service = route.service.as_ref()?;
        let care = &service.care;
        let plain = matches!(found.path, Cow::Borrowed(_))
            && !route.grpc
            && (route.http || peer.tls)
            && route.chains.by_consumer.is_empty()
            && service.spoken == Spoken::Http1
            && care.guard.is_none()
            && care.limits.is_empty()
            && care.deadlines.are_none()
            && !service.upstream.hashes()
            // A body that is not to be read ahead is passed on as it comes.
            && (head.body.is_none() || route.request_buffering);
        let sights = route.chains.base.sights().filter(|_| plain)?;
        // What an unsafe request outdates depends on these.
        if !head.method.is_safe() && (sights.answer.have(b"location") || sights.answer.have(b"content-location")) {
            return None;
        }
        Some(Way { route, service, sights, prefix_len: found.prefix_len, captures: found.captures })
    }

    /// The path that the service is asked for, if it is another than the client's.
    fn joined(&self, path: &str) -> Option<String> {
        let (route, service) = (self.route, self.service);
        if service.path.is_empty() && !route.strip_path && route.path_handling == PathHandling::V0 {
            return None;
        }
        Some(router::upstream_path(&service.path, route.strip_path, self.prefix_len, path, route.path_handling)).filter(|joined| joined != path)
    }
}

fn scheme(peer: &Peer) -> Scheme {
    if peer.tls { Scheme::Https } else { Scheme::Http }
}

impl Lane {
    pub(super) async fn forward(&mut self, door: &Door, peer: &Peer, wire: &mut Wire) -> Served {
        let live = door.weir.live.load();
        let settings = &live.settings;
        if !settings.fast_lane || !live.has(door.kind) {
            return Served::No;
        }
        let mut fields = Lines::new();
        let Some(head) = h1::peek_lines(&wire.received, settings.max_head, |line| fields.push(line)) else { return Served::No };
        let whole = head.length + head.body.unwrap_or(0);
        let body = wire.received.get(head.length..whole).filter(|body| body.len() <= SHORT && body.len() as u64 <= settings.max_body);
        let Some(asked) = body else { return Served::No };
        let Some(way) = Way::of(&live, peer, &head) else { return Served::No };
        let chain = &way.route.chains.base;
        let mut cx = RequestContext::new(Client {
            ip: peer.ip,
            peer: peer.ip,
            scheme: scheme(peer),
            host: head.host.to_owned(),
            port: peer.port,
            trusted: live.trusts(&peer.ip),
            sni: peer.sni.clone(),
        });
        cx.captures.clone_from(&way.captures);
        cx.route = Some(way.route.clone());
        cx.service = Some(way.service.clone());
        let begun = |cx, progress, reply, seen, begun| hand_over(&live, &way, cx, progress, reply, seen, begun);

        let mut seen = None;
        let mut progress = None;
        if !chain.ignores_requests() {
            let parts = seen.insert(self.seen.take().unwrap_or_else(|| Request::new(()).into_parts().0));
            if show(parts, &head, &fields, &way.sights.request).is_none() {
                return Served::No;
            }
            let mut at = way.route.chains.begin(&cx);
            match way.route.chains.walk(&mut cx, parts, &mut at) {
                Walked::Through => {}
                Walked::Reply(reply) => return begun(cx, Some(at), Some(reply), seen, None),
                Walked::Waits => return begun(cx, Some(at), None, seen, None),
            }
            progress = Some(at);
            let elsewhere = cx.service.as_ref().is_none_or(|service| !Arc::ptr_eq(service, way.service));
            let other_body = cx.replace_body.is_some() || cx.body_hash.is_some() || cx.max_body.is_some_and(|most| asked.len() as u64 > most);
            if elsewhere || other_body || cx.plan.is_some() || cx.guard.is_some() || cx.before_send.is_some() {
                return begun(cx, progress, None, seen, None);
            }
        }

        let Some(endpoint) = way.service.upstream.pick_for(None, &[]) else { return begun(cx, progress, None, seen, None) };
        let at = Instant::now();
        let kept = PeerKey::of(way.service, &endpoint).and_then(|key| Some((dial::reuse(&key, at)?, key)));
        let Some((Connection::Http1(mut up), key)) = kept else {
            return begun(cx, progress, None, seen, Some(Begun { endpoint, sent: None }));
        };
        cx.times.forwarded = Some(at.into_std().saturating_duration_since(cx.started));
        if !chain.ignores_upstream()
            && let Some(parts) = &mut seen
        {
            chain.to_upstream(&mut cx, parts);
        }
        self.tail.clear();
        if self.peer.is_empty() {
            access::address(&mut self.peer, peer.ip);
        }
        write_request(&mut self.tail, &way, &head, &fields, &self.peer, &cx, &endpoint, seen.as_ref().map(|parts| &parts.headers));
        drop(fields);
        self.tail.extend_from_slice(asked);
        let _others = Others::meet().await;
        up.deadline.set(way.service.write_timeout);
        cx.sent = true;
        let counted = InFlight::on(&endpoint);
        // What went wrong will go wrong again where the general lane looks.
        let mut arrived = send(&mut up.stream, &mut up.deadline, [&self.tail, &[], &[]]).await.is_ok();
        if arrived {
            up.deadline.set(PATIENCE);
            arrived = up.fill().await.is_ok();
        }
        let mut lines = Lines::new();
        let answer = h1::peek_answer(&up.received, |line| lines.push(line)).filter(|answer| {
            arrived && !way.service.care.retry.statuses.contains(&answer.status.as_u16())
        });
        let Some(answer) = answer.filter(|_| cx.cookies.is_empty() && cx.hidden.is_empty()) else {
            drop(lines);
            let sent = Some(Sent { wire: up, key, counted, at });
            return begun(cx, progress, None, seen, Some(Begun { endpoint, sent }));
        };
        let now = Instant::now();
        cx.times.upstream = Some(now.into_std().saturating_duration_since(cx.started));
        cx.tries = 1;
        way.service.care.budget.request(at);
        way.service.upstream.report(&endpoint, Outcome::Answered { status: answer.status, after: now - at });
        drop(counted);
        cx.endpoint = Some(endpoint);
        self.tail.clear();
        write_answer(&mut self.tail, chain, way.sights, answer.status, &lines, &mut cx, live.snapshot.headers);
        if !head.method.is_safe() {
            outdate(door, &live, &head, &lines, &cx);
        }
        drop(lines);
        let mut received = std::mem::take(&mut up.received);
        let end = answer.length + answer.body;
        // Bytes that no request asked for: never trust such a connection again.
        if received.len() == end {
            dial::keep(key, up, now);
        }
        wire.deadline.set(settings.body_timeout);
        cx.bytes = (asked.len() as u64, answer.content as u64);
        let mut body = &received[answer.length..end];
        // To copy a short body costs less than to have the kernel collect it.
        if body.len() <= SHORT {
            self.tail.extend_from_slice(body);
            body = &[];
        }
        let sent = send(&mut wire.stream, &mut wire.deadline, [&self.tail, body, &[]]).await;
        if let Err(error) = &sent {
            cx.failure = Some(if error.kind() == io::ErrorKind::TimedOut { "client-slow" } else { "client-gone" });
        }
        record(door, &way, &head, &mut cx);
        self.seen = seen;
        received.clear();
        Wire::spare(received);
        wire.received.advance(whole);
        if sent.is_ok() { Served::Yes } else { Served::Broken }
    }
}

fn hand_over(
    live: &Arc<Live>,
    way: &Way<'_>,
    cx: RequestContext,
    progress: Option<Progress>,
    reply: Option<Box<Reply>>,
    seen: Option<request::Parts>,
    begun: Option<Begun>,
) -> Served {
    let progress = progress.unwrap_or_else(|| way.route.chains.begin(&cx));
    let stage = Stage { route: way.route.clone(), prefix_len: way.prefix_len, progress, reply, fields: seen.map(|parts| parts.headers), begun };
    Served::Begun(Box::new(Handed { live: live.clone(), cx, stage }))
}

/// Makes of `parts` the request with nothing but the fields that are looked at.
fn show(parts: &mut request::Parts, head: &Peeked<'_>, fields: &[h1::Line<'_>], names: &Names) -> Option<()> {
    parts.method.clone_from(head.method);
    parts.uri = Uri::from(PathAndQuery::from_maybe_shared(Bytes::copy_from_slice(head.target.as_bytes())).ok()?);
    parts.headers.clear();
    for &(name, value) in fields {
        if names.have(name) && !stays_here(name) {
            parts.headers.append(h1::field_name(name)?, h1::field_value(Bytes::copy_from_slice(value))?);
        }
    }
    Some(())
}

/// A request of this thread that is between its service and its client.
struct Others;

thread_local!(static UNDER_WAY: Cell<usize> = const { Cell::new(0) });

impl Others {
    /// Lets the other requests that arrived with this one come as far before anything is sent: what is sent then goes out in one go, and
    /// whoever receives it is woken less often. A request that is alone waits for nobody.
    async fn meet() -> Others {
        let others = UNDER_WAY.replace(UNDER_WAY.get() + 1);
        let counted = Others;
        if others > 0 {
            tokio::task::yield_now().await;
        }
        counted
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        UNDER_WAY.set(UNDER_WAY.get().saturating_sub(1));
    }
}

/// Appends texts one behind the other: what is known when this is compiled costs no call.
macro_rules! put {
    ($out:expr, $($part:expr),+) => {{
        $($out.extend_from_slice($part);)+
    }};
}

/// A line as it came, with its name in lower case as everywhere behind this gateway.
fn pass(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    let from = out.len();
    put!(out, name, b": ", value, b"\r\n");
    out[from..from + name.len()].make_ascii_lowercase();
}

/// The request as the service will see it. `peer`: the client's address as text; `seen`: the fields that plugins look at, as they left them.
#[allow(clippy::too_many_arguments)]
fn write_request(out: &mut Vec<u8>, way: &Way<'_>, head: &Peeked<'_>, fields: &[h1::Line<'_>], peer: &[u8], cx: &RequestContext, endpoint: &Endpoint, seen: Option<&HeaderMap>) {
    let route = way.route;
    put!(out, head.method.as_str().as_bytes(), b" ");
    match (way.joined(head.path), head.query) {
        (None, _) => out.extend_from_slice(head.target.as_bytes()),
        (Some(path), None) => out.extend_from_slice(path.as_bytes()),
        (Some(path), Some(query)) => put!(out, path.as_bytes(), b"?", query.as_bytes()),
    }
    let host = if route.preserve_host { head.host.as_bytes() } else { endpoint.host_header(way.service).as_bytes() };
    put!(out, b" HTTP/1.1\r\nhost: ", host, b"\r\n");
    let kong = route.headers == HeaderNames::Kong;
    let told = &cx.caller_fields;
    for &(name, value) in fields {
        let ours = stays_here(name) || is_length(name) || way.sights.request.have(name) || (kong && name.eq_ignore_ascii_case(b"x-kong-request-id"));
        if !ours && !told.have(name) {
            pass(out, name, value);
        }
    }
    // Where a plugin had a say in them they are among what it left.
    let apart = way.route.chains.base.ignores_upstream();
    for (name, value) in seen.into_iter().flatten().filter(|(name, _)| !is_length(name.as_str().as_bytes()) && (!apart || told.get(name).is_none())) {
        h1::line(out, name, value);
    }
    for (name, value) in told.iter().filter(|_| apart) {
        h1::line(out, name, value);
    }
    let (id, client) = (cx.id.as_str().as_bytes(), &cx.client);
    put!(out, b"x-forwarded-for: ", peer, b"\r\nx-real-ip: ", peer);
    let mut port = itoa::Buffer::new();
    put!(out, b"\r\nx-forwarded-proto: ", client.scheme.as_str().as_bytes(), b"\r\nx-forwarded-host: ", head.host.as_bytes());
    put!(out, b"\r\nx-forwarded-port: ", port.format(client.port).as_bytes(), b"\r\nx-forwarded-path: ", head.path.as_bytes());
    let stripped = route.strip_path && way.prefix_len > 0 && route.path_handling == PathHandling::V0;
    if let Some(prefix) = head.path.get(..way.prefix_len).filter(|prefix| stripped && *prefix != "/") {
        put!(out, b"\r\nx-forwarded-prefix: ", prefix.as_bytes());
    }
    put!(out, b"\r\nx-request-id: ", id);
    if kong {
        put!(out, b"\r\nx-kong-request-id: ", id);
    }
    out.extend_from_slice(b"\r\nvia: 1.1 weir\r\n");
    // RFC 9110 section 8.6: methods that usually carry a body say that there is none.
    let length = head.body.filter(|length| *length > 0).or_else(|| matches!(*head.method, Method::POST | Method::PUT | Method::PATCH).then_some(0));
    if let Some(length) = length {
        put!(out, b"content-length: ", itoa::Buffer::new().format(length).as_bytes(), b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// The length of a body is told anew on each connection.
fn is_length(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"content-length")
}

/// Forgets what an unsafe request outdates.
fn outdate(door: &Door, live: &Live, head: &Peeked<'_>, lines: &[h1::Line<'_>], cx: &RequestContext) {
    let (Ok(uri), Ok(status)) = (Uri::try_from(head.target), StatusCode::from_u16(cx.status)) else { return };
    let mut naming = HeaderMap::new();
    for name in [header::LOCATION, header::CONTENT_LOCATION] {
        let values = lines.iter().filter(|line| line.0.eq_ignore_ascii_case(name.as_str().as_bytes()));
        for value in values.filter_map(|line| h1::field_value(Bytes::copy_from_slice(line.1))) {
            naming.append(&name, value);
        }
    }
    // No route looks at fields, or the request would not be in this lane.
    purging::outdate(&door.weir, live, &cx.client, &uri, &HeaderMap::new(), status, &naming);
}

/// The head of the answer as this client will see it.
fn write_answer(out: &mut Vec<u8>, chain: &Chain, sights: &Sights, status: StatusCode, lines: &[h1::Line<'_>], cx: &mut RequestContext, names: HeaderNames) {
    let mut seen = None;
    if !chain.ignores_answers() {
        let mut parts: response::Parts = Response::new(()).into_parts().0;
        parts.status = status;
        for (name, value) in lines.iter().filter(|(name, _)| sights.answer.have(name) && !ends_here(name) && !cx.answer_fields.have(name)) {
            if let (Some(name), Some(value)) = (h1::field_name(name), h1::field_value(Bytes::copy_from_slice(value))) {
                parts.headers.append(name, value);
            }
        }
        chain.from_upstream(cx, &mut parts);
        chain.response(cx, &mut parts);
        seen = Some(parts);
    }
    let status = seen.as_ref().map_or(status, |parts| parts.status);
    cx.status = status.as_u16();
    h1::status_line(out, status);
    let (mut dated, mut has_id) = (false, false);
    for &(name, value) in lines {
        if ends_here(name) || times::are_ours(names, name) || sights.answer.have(name) || cx.answer_fields.have(name) {
            continue;
        }
        dated |= name.eq_ignore_ascii_case(b"date");
        has_id |= name.eq_ignore_ascii_case(b"x-request-id");
        pass(out, name, value);
    }
    let mut set = |name: &HeaderName, value: &HeaderValue| {
        dated |= *name == header::DATE;
        has_id |= *name == crate::work::X_REQUEST_ID;
        h1::line(out, name, value);
    };
    match &seen {
        Some(parts) => parts.headers.iter().for_each(|(name, value)| set(name, value)),
        None => cx.answer_fields.iter().for_each(|(name, value)| set(name, value)),
    }
    let id = cx.id.as_str().as_bytes();
    if !has_id {
        put!(out, b"x-request-id: ", id, b"\r\n");
    }
    times::write(out, cx, names);
    if !dated {
        out.extend_from_slice(b"date: ");
        access::date(out);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    cx.times.first_byte = cx.times.upstream;
}

/// Counts it and writes its line of the access log.
fn record(door: &Door, way: &Way<'_>, head: &Peeked<'_>, cx: &mut RequestContext) {
    let total = cx.started.elapsed();
    cx.times.total = Some(total);
    way.route.chains.base.log(cx);
    let metrics = &door.weir.environment.metrics;
    metrics.request(door.kind.name(), &way.route.name, cx);
    metrics.fast_forwards.inc();
    door.weir.access.line(&Line {
        door: door.kind.name(),
        client: cx.client.ip,
        method: head.method.as_str(),
        host: head.host,
        target: head.target,
        route: &way.route.name,
        status: cx.status,
        bytes: cx.bytes,
        time: total,
        answered_by: "upstream",
        cache: "-",
        reason: cx.failure.unwrap_or("-"),
        endpoint: cx.endpoint.as_ref().map_or("-", |endpoint| endpoint.name.as_str()),
        tries: 1,
        id: cx.id.as_str(),
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::IDENTITY;

    #[test]
    fn what_the_general_lane_keeps_back_does_not_pass() {
        for name in IDENTITY {
            assert!(stays_here(name.as_bytes()), "{name}");
        }
        let names = "connection transfer-encoding upgrade te trailer proxy-authenticate proxy-authorization keep-alive proxy-connection proxy-authentication-info http2-settings";
        for name in names.split(' ') {
            assert!(h1::is_hop_by_hop(&HeaderName::from_static(name)), "{name}");
            let asked = format!("GET / HTTP/1.1\r\nhost: a\r\n{name}: keep-alive\r\n\r\n");
            assert!(stays_here(name.as_bytes()) || h1::peek(asked.as_bytes(), 8192).is_none(), "{name} of a request");
            let answered = format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n{name}: keep-alive\r\n\r\n");
            assert!(ends_here(name.as_bytes()) || h1::peek_answer(answered.as_bytes(), |_| ()).is_none(), "{name} of an answer");
        }
    }
}
