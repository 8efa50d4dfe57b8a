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

use super::{Lane, Served, heads::{stays_here, write_answer, write_request}};
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
    wire::{Wire, send},
};
use bytes::{Buf, Bytes};
use http::{HeaderMap, Request, StatusCode, Uri, header, request, uri::PathAndQuery};
use smallvec::SmallVec;
use std::{borrow::Cow, cell::Cell, io, sync::{Arc, LazyLock}, time::Duration};
use tokio::time::Instant;
use weir_config::PathHandling;
use weir_gateway::{
    Client, Progress, Reply, RequestContext, RouteRuntime, Scheme, ServiceRuntime, Spoken, Walked, router,
    sight::{Names, Sights},
    upstream::{InFlight, Outcome},
};

/// So long the head of an answer is waited for here. The general lane waits longer, and looks whether the client is still there.
const PATIENCE: Duration = Duration::from_millis(500);

/// Bodies up to this many bytes leave in one piece with their head; a request with a longer one is none for this lane.
const SHORT: usize = 4096;

/// The field lines of a head. Most heads have fewer.
type Lines<'a> = SmallVec<[h1::Line<'a>; 24]>;

/// Where a request of this lane goes.
pub(super) struct Way<'l> {
    /// Matched.
    pub(super) route: &'l Arc<RouteRuntime>,
    /// To which it goes.
    pub(super) service: &'l Arc<ServiceRuntime>,
    /// What its plugins look at.
    pub(super) sights: &'l Sights,
    /// Bytes of the path that the route's path matched.
    pub(super) prefix_len: usize,
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
    pub(super) fn joined(&self, path: &str) -> Option<String> {
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
        let left = send(&mut up.stream, &mut up.deadline, [&self.tail, &[], &[]]).await.is_ok();
        up.deadline.set(PATIENCE.min(way.service.read_timeout));
        let arrived = left && up.fill().await.is_ok();
        let mut lines = Lines::new();
        let answer = h1::peek_answer(&up.received, |line| lines.push(line)).filter(|answer| {
            arrived && !way.service.care.retry.statuses.contains(&answer.status.as_u16())
        });
        let Some(answer) = answer.filter(|_| cx.cookies.is_empty() && cx.hidden.is_empty()) else {
            drop(lines);
            let sent = Some(Sent { wire: up, key, counted, at, whole: left });
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
