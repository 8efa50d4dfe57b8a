//! A stored response. One buffer holds everything, in the form that also lies in the store; the entry points into it. The head is kept
//! as ready-made HTTP/1.1 bytes, so that a hit writes head, `Age` and body without building anything.

use crate::{
    codec,
    encode::{Accepted, Bodies, Coding, Codings, Variant},
    fields,
    memory::StoredKey,
    respond::lists_tag,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use std::{
    sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    time::Duration,
};

/// The `ETag` was made here from the body; the origin would not know it.
pub(crate) const MADE_ETAG: u16 = 1;
/// The head has the rule's `Cache-Control`; the origin's caching fields are in the hidden part.
pub(crate) const REPLACED_CONTROL: u16 = 2;
/// A client's `max-stale` does not apply (`must-revalidate`, `proxy-revalidate`, `s-maxage`; RFC 9111 section 4.2.4).
pub(crate) const NO_MAX_STALE: u16 = 4;
/// Not served after its time, not even where nobody can be asked.
pub(crate) const NEVER_STALE: u16 = 8;
/// From this bit on, three: in which codings there may be variants of the body.
pub(crate) const CODINGS_AT: u32 = 4;
/// From this bit on, three: in which of them the body was encoded. Those of which there is no variant were not worth it.
pub(crate) const TRIED_AT: u32 = 7;

/// The numbers of an entry. All times in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Meta {
    /// Status code.
    pub status: u16,
    /// `MADE_ETAG`, `REPLACED_CONTROL`, `NO_MAX_STALE`, `NEVER_STALE`, the codings that are wanted, and those that were tried.
    pub flags: u16,
    /// When the response came, since 1970.
    pub response_ms: u64,
    /// How old it was then (RFC 9111 section 4.2.3).
    pub initial_age_ms: u64,
    /// Freshness lifetime (RFC 9111 section 4.2.1), compared with the whole age.
    pub lifetime_ms: u64,
    /// How long after that it may be served while being refreshed.
    pub swr_ms: u64,
    /// How long after that it may be served when the origin fails.
    pub sie_ms: u64,
    /// How long the fetch took.
    pub fetch_ms: u64,
}

/// A stored response.
#[derive(Debug)]
pub struct Entry {
    pub(crate) meta: Meta,
    pub(crate) raw: Bytes,
    pub(crate) hidden: Bytes,
    pub(crate) tags: Bytes,
    identity: Variant,
    /// The other encodings, smallest first.
    variants: Vec<Variant>,
    pub(crate) last_modified: Option<u64>,
    /// Codings that clients would have liked and that are not made yet, as bits; the job that makes them is under way.
    asked: AtomicU8,
    /// It was read from the store: whoever put it there is perhaps encoding it too.
    foreign: AtomicBool,
    hold_until_ms: AtomicU64,
    /// At this age it is stale, whatever its lifetime: a soft purge. All ones: none came.
    stale_age_ms: AtomicU64,
}

impl Entry {
    pub(crate) fn from_parts(meta: Meta, raw: Bytes, head: Bytes, hidden: Bytes, tags: Bytes, body: Bytes, bodies: &Bodies) -> Entry {
        let last_modified = lines(&head)
            .find(|(name, _)| name.eq_ignore_ascii_case(header::LAST_MODIFIED.as_str().as_bytes()))
            .and_then(|(_, value)| std::str::from_utf8(value).ok().and_then(fields::parse_date));
        let identity = Variant::identity(head, body);
        let variants = Variant::all(&identity, bodies);
        Entry {
            meta,
            raw,
            hidden,
            tags,
            identity,
            variants,
            last_modified,
            asked: AtomicU8::new(0),
            foreign: AtomicBool::new(false),
            hold_until_ms: AtomicU64::new(0),
            stale_age_ms: AtomicU64::new(u64::MAX),
        }
    }

    /// This entry with variants of its body in these codings, beside those that it has.
    pub(crate) fn with_variants(&self, key: &StoredKey, tried: Codings, bodies: &Bodies) -> Entry {
        let meta = Meta { flags: self.meta.flags | u16::from(tried.bits()) << TRIED_AT, ..self.meta };
        let body = [self.body().clone()];
        let bodies = self.bodies().or(bodies);
        let entry = codec::assemble(&key.text(), meta, [self.head(), &self.hidden, &self.tags], &body, &bodies);
        entry.hold(self.hold_until_ms.load(Ordering::Relaxed));
        entry.stale_age_ms.store(self.stale_age_ms.load(Ordering::Relaxed), Ordering::Relaxed);
        entry
    }

    /// In which codings there may be variants.
    pub(crate) fn codings(&self) -> Codings {
        Codings::of_bits((self.meta.flags >> CODINGS_AT) as u8)
    }

    /// In which codings the body was encoded, or found not to be worth it.
    pub(crate) fn tried(&self) -> Codings {
        Codings::of_bits((self.meta.flags >> TRIED_AT) as u8)
    }

    /// The coding that a client would have got if it had been made. `None`: there is nothing better for it than what there is.
    #[inline]
    pub(crate) fn wish(&self, accepted: &Accepted) -> Option<Coding> {
        let (possible, tried) = (self.codings(), self.tried());
        if possible == tried {
            return None;
        }
        let mut best = (None, accepted.weight(Coding::Identity).max(1));
        // The last of equals wins: as a rule it is the smallest. What is liked less than identity is not wished for.
        for coding in [Coding::Gzip, Coding::Zstd, Coding::Br] {
            let weight = accepted.weight(coding);
            if possible.has(coding) && weight >= best.1 {
                best = (Some(coding), weight);
            }
        }
        best.0.filter(|coding| !tried.has(*coding))
    }

    /// Notes that a coding is wanted; whether that was not known.
    pub(crate) fn ask(&self, coding: Coding) -> bool {
        let bit = Codings::from_iter([coding]).bits();
        self.asked.load(Ordering::Relaxed) & bit == 0 && self.asked.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    /// Whoever asked for these asked for another entry, in the place of which this one comes.
    pub(crate) fn inherit_asked(&self, codings: Codings) {
        self.asked.store(codings.bits(), Ordering::Relaxed);
    }

    /// The codings that were asked for and are not made.
    pub(crate) fn asked(&self) -> Codings {
        Codings::of_bits(self.asked.load(Ordering::Relaxed)).without(self.tried())
    }

    /// Nobody makes what was asked for: the next client may ask again.
    pub(crate) fn forget_asked(&self) {
        self.asked.store(0, Ordering::Relaxed);
    }

    /// Marks it as read from the store.
    pub(crate) fn mark_foreign(&self) {
        self.foreign.store(true, Ordering::Relaxed);
    }

    /// Whether it was read from the store.
    pub(crate) fn is_foreign(&self) -> bool {
        self.foreign.load(Ordering::Relaxed)
    }

    /// The encoded bodies.
    pub(crate) fn bodies(&self) -> Bodies {
        let of = |coding: Coding| self.variants.iter().find(|variant| variant.coding == coding).map(|variant| variant.body.clone());
        Bodies::from_each(|coding| of(coding).unwrap_or_default())
    }

    /// The variant for a client that sent this `Accept-Encoding` (all its lines joined with commas; `None`: none was sent). Of those that the
    /// client likes best, the smallest; identity where nothing else is left. Allocates nothing.
    #[inline]
    pub fn pick(&self, accept_encoding: Option<&[u8]>) -> &Variant {
        self.pick_for(&Accepted::of(accept_encoding))
    }

    /// The same, for an `Accept-Encoding` that was read already.
    pub fn pick_for(&self, accepted: &Accepted) -> &Variant {
        let mut best = (&self.identity, 0);
        // The first of equals wins: smallest first, identity last.
        for variant in self.variants() {
            let weight = accepted.weight(variant.coding);
            if weight > best.1 {
                best = (variant, weight);
            }
        }
        best.0
    }

    /// The variant that the client holds already, by its `If-None-Match` (weak comparison, RFC 9110 section 13.1.2): the one that it would
    /// get, or another that it accepts. The server may choose among acceptable representations; a 304 with that one's head, `ETag` included,
    /// says which copy is still good. `None`: send the whole. Allocates nothing.
    pub(crate) fn held(&self, if_none_match: &[u8], accepted: &Accepted) -> Option<&Variant> {
        let best = self.pick_for(accepted);
        let others = self.variants().filter(|variant| accepted.weight(variant.coding) > 0);
        std::iter::once(best).chain(others).find(|variant| lists_tag(std::iter::once(if_none_match), variant.etag.as_deref()))
    }

    pub(crate) fn identity(&self) -> &Variant {
        &self.identity
    }

    /// All variants: encoded ones, smallest first, then identity.
    pub fn variants(&self) -> impl Iterator<Item = &Variant> {
        self.variants.iter().chain(std::iter::once(&self.identity))
    }

    /// Status.
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.meta.status).unwrap_or(StatusCode::OK)
    }

    /// The head in HTTP/1.1 bytes: status line and all fields with `Content-Length`, each line with CRLF, without `Age`, `Cache-Status`,
    /// `X-Cache-*`, `Connection`, and without the empty line that ends a head.
    pub fn head(&self) -> &Bytes {
        &self.identity.head
    }

    /// The whole body, not encoded.
    pub fn body(&self) -> &Bytes {
        &self.identity.body
    }

    /// All of it in one buffer, as it lies in the store if the body is not packed there.
    pub fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// `ETag` of the body that is not encoded, quotes and `W/` included.
    pub fn etag(&self) -> Option<&Bytes> {
        self.identity.etag.as_ref()
    }

    /// `Last-Modified`, seconds since 1970.
    pub fn last_modified(&self) -> Option<u64> {
        self.last_modified
    }

    /// The entry's numbers.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Its tags: those of the rule, and those that the response named.
    pub fn tags(&self) -> impl Iterator<Item = &str> {
        self.tag_lines().split('\n').filter(|tag| !tag.is_empty())
    }

    /// The tags, one a line.
    pub(crate) fn tag_lines(&self) -> &str {
        std::str::from_utf8(&self.tags).unwrap_or("")
    }

    /// The fields of the head as name and value.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        lines(self.head())
    }

    /// Seconds since 1970 of a date among the fields of the head; `None` if it is missing, repeated or malformed.
    pub(crate) fn date(&self, name: &HeaderName) -> Option<u64> {
        let mut found = self.fields().filter(|(field, _)| field.eq_ignore_ascii_case(name.as_str().as_bytes()));
        let (_, value) = found.next()?;
        found.next().is_none().then_some(())?;
        fields::parse_date(std::str::from_utf8(value).ok()?)
    }

    /// The fields of the head as a map. Values point into the entry.
    pub fn headers(&self) -> HeaderMap {
        map_of(self.head())
    }

    /// The fields as the origin sent them, caching fields included: what a 304 is merged into.
    pub fn origin_headers(&self) -> HeaderMap {
        let mut map = self.headers();
        if self.meta.flags & REPLACED_CONTROL != 0 {
            map.remove(header::CACHE_CONTROL);
        }
        if self.meta.flags & MADE_ETAG != 0 {
            map.remove(header::ETAG);
        }
        map.extend(map_of_lines(&self.hidden));
        map
    }

    /// Fields for a conditional fetch (RFC 9111 section 4.3.1); empty if the origin gave no validator.
    pub fn conditions(&self) -> HeaderMap {
        let mut map = HeaderMap::new();
        if self.meta.flags & MADE_ETAG == 0
            && let Some(value) = self.etag().cloned().and_then(|etag| HeaderValue::from_maybe_shared(etag).ok())
        {
            map.insert(header::IF_NONE_MATCH, value);
        }
        if let Some(time) = self.last_modified {
            map.insert(header::IF_MODIFIED_SINCE, fields::format_date(time));
        }
        map
    }

    /// Whether the origin gave a validator.
    pub fn has_validator(&self) -> bool {
        self.last_modified.is_some() || (self.etag().is_some() && self.meta.flags & MADE_ETAG == 0)
    }

    /// When the response came, milliseconds since 1970.
    pub fn response_ms(&self) -> u64 {
        self.meta.response_ms
    }

    /// Milliseconds since the origin made it (RFC 9111 section 4.2.3, `current_age`).
    pub fn age_ms(&self, now_ms: u64) -> u64 {
        self.meta.initial_age_ms.saturating_add(now_ms.saturating_sub(self.meta.response_ms))
    }

    /// Seconds since the origin made it: the `Age` field.
    pub fn age(&self, now: u64) -> u64 {
        self.age_ms(now.saturating_mul(1000)) / 1000
    }

    /// The age at which freshness ends.
    #[inline]
    fn lifetime_ms(&self) -> u64 {
        self.meta.lifetime_ms.min(self.stale_age_ms.load(Ordering::Relaxed))
    }

    /// Makes it stale from the given time on (not before the response came), for all who hold it.
    pub(crate) fn make_stale(&self, from_ms: u64) {
        self.stale_age_ms.fetch_min(self.age_ms(from_ms), Ordering::Relaxed);
    }

    /// Milliseconds of freshness left; negative when stale.
    pub fn fresh_ms(&self, now_ms: u64) -> i64 {
        let clip = |value: u64| value.min(i64::MAX as u64) as i64;
        clip(self.lifetime_ms()) - clip(self.age_ms(now_ms))
    }

    /// Seconds of freshness left; negative when stale.
    pub fn ttl(&self, now: u64) -> i64 {
        self.fresh_ms(now.saturating_mul(1000)).div_euclid(1000)
    }

    /// Whether it is fresh through the whole of the second `now` (a clock of seconds hides up to one; no doubt is resolved in
    /// favour of an old page).
    #[inline]
    pub fn is_fresh(&self, now: u64) -> bool {
        self.is_fresh_ms(now.saturating_mul(1000).saturating_add(999))
    }

    /// Whether it is fresh at this millisecond.
    #[inline]
    pub fn is_fresh_ms(&self, now_ms: u64) -> bool {
        self.age_ms(now_ms) < self.lifetime_ms()
    }

    /// Whether it may be served, however old, where nobody can be asked: not if its origin forbids that (RFC 9111 section 4.2.4).
    pub fn may_stand_in(&self, now: u64) -> bool {
        self.is_fresh(now) || self.meta.flags & NEVER_STALE == 0
    }

    /// Whether this request should refresh the entry before its time: the XFetch rule. The nearer the end and the slower the fetch, the
    /// likelier. `beta` 0 switches it off.
    pub fn wants_early_refresh(&self, now_ms: u64, beta: f64) -> bool {
        if beta <= 0.0 || !beta.is_finite() {
            return false;
        }
        // Most requests are done without drawing a number.
        if !self.nears_its_end(now_ms, beta) {
            return false;
        }
        let left = self.fresh_ms(now_ms);
        let fetch = self.meta.fetch_ms as f64;
        let drawn = -(1.0 - fastrand::f64()).ln();
        fetch * beta * drawn >= left as f64
    }

    /// Whether it is so near its end that [`Entry::wants_early_refresh`] may say yes.
    #[inline]
    pub fn nears_its_end(&self, now_ms: u64, beta: f64) -> bool {
        // -ln of a number in (0, 1] is 36 at the very most.
        self.fresh_ms(now_ms) as f64 <= self.meta.fetch_ms as f64 * beta * 37.0
    }

    /// No new fetch for this stale entry before the given time: the last one failed.
    pub fn hold(&self, until_ms: u64) {
        self.hold_until_ms.store(until_ms, Ordering::Relaxed);
    }

    /// Whether a fetch failed so recently that the next one should wait.
    pub fn is_held(&self, now_ms: u64) -> bool {
        self.hold_until_ms.load(Ordering::Relaxed) > now_ms
    }

    /// How long the store should keep it from now on: until it can neither be served, nor be renewed by a 304 that saves its body.
    pub fn keep_for(&self, now_ms: u64) -> Duration {
        let stale = self.meta.swr_ms.max(self.meta.sie_ms).max(if self.has_validator() { 600_000 } else { 0 });
        let all = self.meta.lifetime_ms.saturating_add(stale);
        Duration::from_millis(all.saturating_sub(self.age_ms(now_ms)))
    }

    /// Bytes that it holds, in all encodings.
    pub fn weight(&self) -> u64 {
        let head = |variant: &Variant| (variant.head.len() + size_of::<Variant>()) as u64;
        self.raw.len() as u64 + self.variants.iter().map(head).sum::<u64>()
    }
}

/// The lines of a head after its first as name and value.
pub(crate) fn lines(head: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let fields = memchr::memchr(b'\n', head).map_or(&[][..], |end| &head[end + 1..]);
    field_lines(fields)
}

/// Lines as name and value.
pub(crate) fn field_lines(fields: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut rest = fields;
    std::iter::from_fn(move || {
        let end = memchr::memchr(b'\n', rest)?;
        let line = rest[..end].strip_suffix(b"\r")?;
        rest = &rest[end + 1..];
        let colon = memchr::memchr(b':', line)?;
        Some((&line[..colon], line[colon + 1..].trim_ascii()))
    })
}

pub(crate) fn map_of(head: &Bytes) -> HeaderMap {
    let fields = memchr::memchr(b'\n', head).map_or_else(Bytes::new, |end| head.slice(end + 1..));
    map_of_lines(&fields)
}

fn map_of_lines(fields: &Bytes) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(16);
    for (name, value) in field_lines(fields) {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_maybe_shared(fields.slice_ref(value))) {
            map.append(name, value);
        }
    }
    map
}

pub(crate) fn millis(time: Duration) -> u64 {
    time.as_millis().min(u64::MAX as u128) as u64
}
