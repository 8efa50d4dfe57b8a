//! The fast lane, for hits and for ordinary forwards ([`forward`]).
//!
//! Hits of pages in memory over HTTP/1.1 are answered from the bytes as they came. Nothing is allocated (but for a query
//! to reduce), nothing copied, no lock taken that another core waits for; the answer leaves in one write: the entry's ready-made head,
//! the few lines that belong to this answer, and the shared body.
//!
//! ```text
//! peek at the head ─ plain GET or HEAD? ─ a page? ─ a rule? ─ whose? ─ in memory, fresh? ─► written, counted, logged
//!        └───────────────┴──────────────────┴────────┴───────┴──────────────┴─ no ─► the general lane, same bytes
//! ```
//!
//! A request for a page that another request's fill is about to bring waits for it here, and is then answered in the same way: a flash sale
//! has a thousand of them.
//!
//! Every `no` costs little and is always right, since the general lane asks the same questions of the same code. So this lane only ever
//! answers `yes`, and what it writes is what the general lane would write (a test runs one corpus through both).

use crate::{
    access::Line,
    classify,
    deadline::Deadline,
    edge::is_listed,
    gateway::Handed,
    guest::{Visitor, has_session},
    h1::{self, Peeked},
    live::{EdgeRules, Live},
    pages::PageKey,
    server::{Door, DoorKind, Peer},
    wire::{Wire, send},
    work::{self, Shown},
};
use bytes::{Buf, Bytes};
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header, request};
use std::{future::{Future, poll_fn}, ops::Range, pin::pin, sync::Arc, task::Poll, time::Instant};
use weir_cache::{Accepted, Conditions, Entry, Form, Report, Tier, Verdict, status};
use weir_config::{CacheHeaders, HeaderNames};
use weir_gateway::{RequestId, metrics::{HIT_STATUSES, HitCounters}};

mod forward;
mod heads;

/// What a connection keeps for its next request.
#[derive(Default)]
pub struct Lane {
    key: String,
    tail: Vec<u8>,
    /// The client's address as text.
    peer: Vec<u8>,
    /// What plugins were shown of the last request; its room is used again.
    seen: Option<request::Parts>,
}

/// What became of the bytes that arrived.
pub enum Served {
    /// Answered, and its head taken from the buffer.
    Yes,
    /// Answered, but the client did not take all of it: the connection is broken.
    Broken,
    /// Nothing was taken: for the general lane.
    No,
    /// Nothing was taken: for the general lane, which goes on where this one stopped.
    Begun(Box<Handed>),
}

/// Where the entry may be.
struct Place<'l> {
    edge: &'l EdgeRules,
    page: PageKey<'l>,
    counters: &'l HitCounters,
}

/// Where an entry came from.
enum From {
    /// It was there.
    Tier(Tier),
    /// Another request's fill brought it while this one waited.
    Fill(Box<Report>),
}

/// An answer from the cache that is about to be written.
struct Hit<'a> {
    entry: &'a Entry,
    from: &'a From,
    form: Form<'a>,
    accepted: Accepted,
    now: u64,
}

impl Lane {
    /// Serves the request at the beginning of the buffer, if this lane understands it.
    pub async fn serve(&mut self, door: &Door, peer: &Peer, wire: &mut Wire) -> Served {
        match door.kind {
            DoorKind::Edge => self.hit(door, peer, wire).await,
            // A forward needs much room, and a connection waits most of the time.
            DoorKind::Gateway => Box::pin(self.forward(door, peer, wire)).await,
        }
    }

    async fn hit(&mut self, door: &Door, peer: &Peer, wire: &mut Wire) -> Served {
        let started = Instant::now();
        let live = door.weir.live.load();
        let Some(head) = h1::peek(&wire.received, live.settings.max_head) else { return Served::No };
        let Some(place) = self.place(&live, peer, &head) else { return Served::No };
        let cache = &door.weir.environment.cache;
        let epoch = place.page.epoch;
        let (entry, from) = match cache.peek(epoch, &self.key) {
            Some(entry) => (entry, From::Tier(Tier::Memory)),
            None => match cache.look(epoch, &self.key).await {
                Some(entry) => (entry, From::Tier(Tier::Store)),
                None => match self.joined(door, &place, &mut wire.deadline).await {
                    Some((entry, report)) => (entry, From::Fill(report.into())),
                    None => return Served::No,
                },
            },
        };
        let Some(hit) = self.of(door, &entry, &from, &place, &head) else { return Served::No };

        let id = RequestId::random();
        self.tail.clear();
        hit.form.write_head(&mut self.tail);
        hit.write_lines(&mut self.tail, &place.edge.config.headers, &self.key, &id);
        let first: &[u8] = if let Form::Whole(variant) = hit.form { &variant.head } else { &[] };
        let body = &hit.form.variant().body[hit.body(&head)];
        wire.deadline.set(live.settings.body_timeout);
        let sent = send(&mut wire.stream, &mut wire.deadline, [first, &self.tail, body]).await;
        hit.record(door, peer, &head, &place, &id, started, sent.is_err());
        let length = head.length;
        wire.received.advance(length);
        if sent.is_ok() { Served::Yes } else { Served::Broken }
    }

    /// The same for a request without a body that came in HTTP/2: whether it was answered. What the client's windows do not take yet waits
    /// in the connection, as references to the shared body.
    pub fn serve_h2<B>(&mut self, door: &Door, peer: &Peer, request: &Request<B>, respond: &mut SendResponse<Bytes>) -> bool {
        if door.kind != DoorKind::Edge {
            return false;
        }
        let started = Instant::now();
        let live = door.weir.live.load();
        let (method, uri, headers) = (request.method(), request.uri(), request.headers());
        let Some(head) = Peeked::of(method, uri, headers) else { return false };
        let Some(place) = self.place(&live, peer, &head) else { return false };
        let Some(entry) = door.weir.environment.cache.peek(place.page.epoch, &self.key) else { return false };
        let from = From::Tier(Tier::Memory);
        let Some(hit) = self.of(door, &entry, &from, &place, &head) else { return false };

        let id = RequestId::random();
        let mut response = Response::new(());
        *response.status_mut() = hit.status();
        let fields = response.headers_mut();
        *fields = hit.form.headers();
        hit.set_fields(fields, &place.edge.config.headers, &self.key, &id);
        let body = hit.form.variant().body.slice(hit.body(&head));
        let sent = respond.send_response(response, body.is_empty()).and_then(|mut send| if body.is_empty() { Ok(()) } else { send.send_data(body, true) });
        hit.record(door, peer, &head, &place, &id, started, sent.is_err());
        true
    }

    /// What another request's fill brings, if one is under way. The general lane waits longer; what was waited here is small beside that.
    async fn joined(&self, door: &Door, place: &Place<'_>, deadline: &mut Deadline) -> Option<(Arc<Entry>, Report)> {
        let mut brought = pin!(door.weir.environment.cache.joined(place.page.epoch, &self.key));
        deadline.set(place.page.page.policy().max_wait / 10);
        poll_fn(|cx| match brought.as_mut().poll(cx) {
            Poll::Pending if deadline.poll_expired(cx) => Poll::Ready(None),
            polled => polled,
        })
        .await
    }

    /// Where the entry that answers may be; its key is left in `self.key`.
    fn place<'l>(&mut self, live: &'l Live, peer: &Peer, head: &Peeked<'_>) -> Option<Place<'l>> {
        let edge = live.edge.as_ref().filter(|_| live.settings.fast_lane)?;
        // The general lane judges whether the connection was made for this host.
        if peer.sni.as_deref().is_some_and(|sni| !head.host.eq_ignore_ascii_case(sni)) {
            return None;
        }
        if head.credentials {
            return None;
        }
        // From a trusted proxy these fields say who asks and how.
        if head.forwarded && live.trusts(&peer.ip) {
            return None;
        }
        if !is_listed(edge, head.host) || !classify::is_plain_document(head, &edge.classify) {
            return None;
        }
        let place = edge.pages.key_of(peer.tls, head.host, head.path, head.query, &mut self.key)?;
        let page = place.page;
        if head.directives && page.policy().honour_request {
            return None;
        }
        let sessions = &edge.config.session_cookies;
        let signed_in = match &edge.guests {
            Some((_, issuer)) => match issuer.find(std::iter::empty(), head.cookie.into_iter(), sessions) {
                // A newcomer gets a token.
                Visitor::None => return None,
                visitor => visitor == Visitor::SignedIn,
            },
            None => has_session(head.cookie.into_iter(), sessions),
        };
        if signed_in && !page.shared_by_all() {
            return None;
        }
        let counters = edge.hits.get(place.rule)?;
        Some(Place { edge, page: place, counters })
    }

    /// The answer of this entry, if it is one for this lane.
    fn of<'a>(&self, door: &Door, entry: &'a Arc<Entry>, from: &'a From, place: &Place<'_>, head: &Peeked<'_>) -> Option<Hit<'a>> {
        let cache = &door.weir.environment.cache;
        let now = cache.clock().now_ms();
        // What was just fetched for this request is good for it, however short its time.
        let aged = || !entry.is_fresh_ms(now) || entry.nears_its_end(now, place.page.page.policy().early_refresh_beta);
        if matches!(from, From::Tier(_)) && aged() {
            return None;
        }
        let hit = Hit::of(entry, from, head, now)?;
        let (host, target) = place.page.parts(&self.key);
        door.weir.popular.asked(host, target);
        cache.wish(place.page.epoch, &self.key, "", entry, &hit.accepted);
        Some(hit)
    }
}

impl<'a> Hit<'a> {
    /// `None`: this form of answer is the general lane's.
    fn of(entry: &'a Entry, from: &'a From, head: &Peeked<'_>, now: u64) -> Option<Hit<'a>> {
        if !HIT_STATUSES.contains(&entry.meta().status) {
            return None;
        }
        let accepted = Accepted::of(head.accept_encoding);
        let conditions = Conditions {
            head_only: head.head_only(),
            if_none_match: head.if_none_match,
            if_modified_since: head.if_modified_since,
            range: head.range,
            if_range: head.if_range,
        };
        let form = weir_cache::form(entry, &conditions, &accepted);
        Some(Hit { entry, from, form, accepted, now })
    }

    fn status(&self) -> StatusCode {
        self.form.status(self.entry.status())
    }

    /// Which bytes of the variant's body are sent.
    fn body(&self, head: &Peeked<'_>) -> Range<usize> {
        if head.head_only() { 0..0 } else { self.form.range() }
    }

    fn age(&self) -> u64 {
        self.entry.age_ms(self.now) / 1000
    }

    fn ttl(&self) -> i64 {
        self.entry.fresh_ms(self.now).div_euclid(1000)
    }

    /// The lines that belong to this answer, and the end of the head.
    fn write_lines(&self, out: &mut Vec<u8>, shown: &CacheHeaders, key: &str, id: &RequestId) {
        let mut buffer = itoa::Buffer::new();
        let age = buffer.format(self.age());
        let ttl = self.ttl();
        let mut put = |parts: &[&str]| parts.iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
        put(&["age: ", age]);
        if shown.status {
            match self.from {
                From::Tier(_) => put(&["\r\nx-cache-status: HIT\r\nx-cache-age: ", age]),
                From::Fill(report) => put(&["\r\nx-cache-status: ", report.verdict.word()]),
            }
            put(&["\r\nx-cache-ttl: ", itoa::Buffer::new().format(ttl.max(0))]);
        }
        if shown.key {
            put(&["\r\nx-cache-key: ", key]);
        }
        put(&["\r\nx-request-id: ", id.as_str()]);
        if shown.cache_status {
            put(&["\r\ncache-status: "]);
            match self.from {
                From::Tier(_) => status::write_hit(out, ttl, shown.key.then_some(key)),
                From::Fill(report) => status::write_cache_status(out, report, shown.key),
            }
        }
        out.extend_from_slice(b"\r\n\r\n");
    }

    /// The same lines as fields.
    fn set_fields(&self, fields: &mut HeaderMap, shown: &CacheHeaders, key: &str, id: &RequestId) {
        let report = Report { ttl: Some(self.ttl()), age: Some(self.age()), key: Some(key.to_string()), ..Report::new(Verdict::Hit) };
        fields.insert(header::AGE, HeaderValue::from(self.age()));
        work::show(fields, &report, Shown { status: shown.status, key: shown.key, cache_status: shown.cache_status, strip_site: false, times: HeaderNames::Off });
        if let Ok(id) = HeaderValue::from_str(id.as_str()) {
            fields.insert(work::X_REQUEST_ID, id);
        }
    }

    /// Counts the answer and writes its line of the access log.
    #[allow(clippy::too_many_arguments)]
    fn record(&self, door: &Door, peer: &Peer, head: &Peeked<'_>, place: &Place<'_>, id: &RequestId, started: Instant, gone: bool) {
        let time = started.elapsed();
        let bytes = self.body(head).len() as u64;
        let status = self.status().as_u16();
        let environment = &door.weir.environment;
        place.counters.sent(status, bytes, time, gone);
        let (verdict, by) = match self.from {
            From::Tier(tier) => {
                place.counters.hit(*tier);
                environment.cache.count_hit(*tier);
                (Verdict::Hit, "cache")
            }
            From::Fill(report) => {
                environment.metrics.cache(&place.page.page.policy().name, report);
                environment.cache.count_joined(report);
                (report.verdict, "upstream")
            }
        };
        door.weir.access.line(&Line {
            door: door.kind.name(),
            client: peer.ip,
            method: head.method.as_str(),
            host: head.host,
            target: head.target,
            route: "document",
            status,
            bytes: (0, bytes),
            time,
            answered_by: by,
            cache: verdict.word(),
            reason: if gone { "client-gone" } else { "-" },
            endpoint: "-",
            tries: 0,
            id: id.as_str(),
        });
    }
}
