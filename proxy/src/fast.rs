//! The fast lane: hits of pages in memory over HTTP/1.1, answered from the bytes as they came. Nothing is allocated (but for a query
//! to reduce), nothing copied, no lock taken that another core waits for; the answer leaves in one write: the entry's ready-made head,
//! the few lines that belong to this answer, and the shared body.
//!
//! ```text
//! peek at the head ─ plain GET or HEAD? ─ a page? ─ a rule? ─ whose? ─ in memory, fresh? ─► written, counted, logged
//!        └───────────────┴──────────────────┴────────┴───────┴──────────────┴─ no ─► the general lane, same bytes
//! ```
//!
//! Every `no` costs little and is always right, since the general lane asks the same questions of the same code. So this lane only ever
//! answers `yes`, and what it writes is what the general lane would write (a test runs one corpus through both).

use crate::{
    access::Line,
    classify,
    edge::is_listed,
    guest::{Visitor, has_session},
    h1::{self, Peeked},
    live::Live,
    server::{Door, DoorKind, Peer},
    wire::{Wire, send},
};
use bytes::Buf;
use std::{sync::Arc, time::Instant};
use weir_cache::{Accepted, Entry, Variant, status};
use weir_gateway::RequestId;

/// What a connection keeps for its next hit.
#[derive(Default)]
pub struct Lane {
    key: String,
    tail: Vec<u8>,
}

/// What became of the bytes that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// A hit: answered, and its head taken from the buffer.
    Yes,
    /// Answered, but the client did not take all of it: the connection is broken.
    Broken,
    /// Nothing was taken: for the general lane.
    No,
}

/// A hit that is about to be written.
struct Hit<'a> {
    entry: &'a Entry,
    variant: &'a Variant,
    /// The client has it already: a 304.
    held: bool,
    now: u64,
}

impl Lane {
    /// Serves the request at the beginning of the buffer, if it is a hit that this lane understands.
    pub async fn serve(&mut self, door: &Door, peer: &Peer, wire: &mut Wire) -> Served {
        if door.kind != DoorKind::Edge {
            return Served::No;
        }
        let started = Instant::now();
        let live = door.weir.live.load();
        if !live.settings.fast_lane {
            return Served::No;
        }
        let Some(head) = h1::peek(&wire.received, live.settings.max_head) else { return Served::No };
        let Some((entry, rule)) = self.find(door, &live, peer, &head) else { return Served::No };
        let accepted = Accepted::of(head.accept_encoding);
        let now = door.weir.environment.cache.clock().now_ms();
        let Some(hit) = Hit::of(&entry, &head, &accepted, now) else { return Served::No };
        let edge = live.edge.as_ref();
        let Some(counters) = edge.and_then(|edge| edge.hits.get(rule)) else { return Served::No };

        let id = RequestId::random();
        self.tail.clear();
        if hit.held {
            hit.not_modified(&mut self.tail);
        }
        if let Some(edge) = edge {
            hit.lines(&mut self.tail, &edge.config.headers, &self.key, &id);
        }
        let body: &[u8] = if hit.held || head.head_only { &[] } else { &hit.variant.body };
        let first: &[u8] = if hit.held { &[] } else { &hit.variant.head };
        wire.deadline.set(live.settings.body_timeout);
        let (bytes, length) = (body.len() as u64, head.length);
        let status = if hit.held { 304 } else { entry.meta().status };
        let sent = send(&mut wire.stream, &mut wire.deadline, [first, &self.tail, body]).await;
        let time = started.elapsed();
        counters.hit(status, bytes, time, sent.is_err());
        door.weir.environment.cache.count_hit();
        door.weir.access.line(&Line {
            door: door.kind.name(),
            client: peer.ip,
            method: if head.head_only { "HEAD" } else { "GET" },
            host: head.host,
            target: head.target,
            route: "document",
            status,
            bytes: (0, bytes),
            time,
            answered_by: "cache",
            cache: "HIT",
            reason: if sent.is_err() { "client-gone" } else { "-" },
            endpoint: "-",
            tries: 0,
            id: id.as_str(),
        });
        wire.received.advance(length);
        if sent.is_ok() { Served::Yes } else { Served::Broken }
    }

    /// The entry that answers, and the place of its rule.
    fn find(&mut self, door: &Door, live: &Live, peer: &Peer, head: &Peeked<'_>) -> Option<(Arc<Entry>, usize)> {
        let edge = live.edge.as_ref()?;
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
        let cache = &door.weir.environment.cache;
        let entry = cache.peek(place.epoch, &self.key)?;
        let now = cache.clock().now_ms();
        if !entry.is_fresh_ms(now) || entry.nears_its_end(now, page.policy().early_refresh_beta) {
            return None;
        }
        let (host, target) = place.parts(&self.key);
        door.weir.popular.asked(host, target);
        Some((entry, place.rule))
    }
}

impl<'a> Hit<'a> {
    /// `None`: this form of answer is the general lane's.
    fn of(entry: &'a Entry, head: &Peeked<'_>, accepted: &Accepted, now: u64) -> Option<Hit<'a>> {
        let whole = Hit { entry, variant: entry.pick_for(accepted), held: false, now };
        if entry.meta().status != 200 {
            return (head.range.is_none() && matches!(entry.meta().status, 404 | 410)).then_some(whole);
        }
        // If-None-Match goes before If-Modified-Since, and both before Range (RFC 9110 section 13.2.2).
        if let Some(list) = head.if_none_match {
            if let Some(variant) = entry.held_for(|| std::iter::once(list), accepted) {
                return Some(Hit { variant, held: true, ..whole });
            }
        } else if head.if_modified_since.is_some() {
            return None;
        }
        head.range.is_none().then_some(whole)
    }

    /// The head of a 304: that of the variant, without the fields that describe its body (RFC 9110 section 15.4.5).
    fn not_modified(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"HTTP/1.1 304 Not Modified\r\n");
        weir_cache::write_fields_of_304(out, &self.variant.head);
    }

    /// The lines that belong to this answer, and the end of the head.
    fn lines(&self, out: &mut Vec<u8>, shown: &weir_config::CacheHeaders, key: &str, id: &RequestId) {
        let mut buffer = itoa::Buffer::new();
        let age = buffer.format(self.entry.age_ms(self.now) / 1000);
        let ttl = self.entry.fresh_ms(self.now).div_euclid(1000);
        let mut put = |parts: &[&str]| parts.iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
        put(&["age: ", age]);
        if shown.status {
            put(&["\r\nx-cache-status: HIT\r\nx-cache-age: ", age, "\r\nx-cache-ttl: ", itoa::Buffer::new().format(ttl.max(0))]);
        }
        if shown.key {
            put(&["\r\nx-cache-key: ", key]);
        }
        put(&["\r\nx-request-id: ", id.as_str()]);
        if shown.cache_status {
            put(&["\r\ncache-status: "]);
            status::write_hit(out, ttl, shown.key.then_some(key));
        }
        out.extend_from_slice(b"\r\n\r\n");
    }
}
