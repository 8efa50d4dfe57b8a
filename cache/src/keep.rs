//! What becomes of an answer: shared, kept, or refused; and how it gets into memory and store.

use crate::{
    BodyReader, Entry, FetchError, Fetched, Gate, NotForCache,
    body::Pushed,
    codec,
    control::{ResponseControl, Scope},
    draft::{Draft, tags_of},
    encode,
    fields,
    fill::{Fill, Landing},
    flight::{Found, Head, How, Phase},
    html,
    memory::{Slot, StoredKey},
    policy::{self, Terms, Times},
    reasons::UNDECIDED,
    recent::{Hit, Put},
    tier::{Ended, Held},
    vary::Spec,
};
use http::{HeaderMap, StatusCode, header, response::Parts};
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    task::Poll,
    time::Duration,
};
use tokio::time::Instant;

/// How long a spec lies in the store at least: longer than its variants, or they would be fetched anew.
const SPEC_TIME: Duration = Duration::from_secs(7 * 86_400);

/// An origin that is overloaded or broken says nothing about the page.
fn is_passing(status: Option<u16>) -> bool {
    matches!(status, Some(408 | 429 | 500..=599))
}

impl Fill {
    /// A 304: the stored body goes on under a renewed head (RFC 9111 section 4.3.4).
    pub(crate) async fn renew(&mut self, prior: &Arc<Entry>, merged: &HeaderMap, times: Times, began: Instant, held: Option<Held>) {
        let policy = self.plan.policy.clone();
        match policy::judge(&policy, &self.request, prior.status(), merged, times) {
            Ok(terms) => {
                let key = self.flight.key.clone();
                let body = [prior.body().clone()];
                let draft = Draft { key: &key, status: prior.status(), headers: merged, body: &body, terms: &terms, policy: &policy, fetch: began.elapsed(), prior: Some(prior) };
                let entry = Arc::new(draft.build());
                self.remember(&key, &entry);
                self.settle(Phase::Found(Found { entry: entry.clone(), how: How::Renewed }));
                self.write(&key, &entry, None, held).await;
            }
            Err(reason) => self.refuse(reason, Some(304), None, held).await,
        }
    }

    pub(crate) async fn receive(&mut self, fetched: Fetched, times: Times, began: Instant, held: Option<Held>, landing: &mut Landing) {
        let policy = self.plan.policy.clone();
        let (status, headers) = (fetched.parts.status, &fetched.parts.headers);
        let judged = match fetched.parts.extensions.get::<NotForCache>() {
            Some(NotForCache(reason)) => Err(*reason),
            None => policy::judge(&policy, &self.request, status, headers, times),
        };
        match judged {
            Ok(terms) => self.keep(fetched, terms, began, held, landing).await,
            Err(_) if status.is_server_error() && self.may_share(headers) => {
                self.hold_prior();
                self.engine.stats.refuse("origin-error");
                let head = self.head(&fetched.parts, &[], None, Some("origin-error"));
                let prior = self.prior.clone();
                self.flight.update(|progress| (progress.stale, progress.phase) = (prior, Phase::Streaming(head.into())));
                // The lock guards a page that will not come; whoever else waits for it should see for himself.
                self.give_back(held, Ended::Nothing).await;
                if let Err(error) = self.pump(fetched.body, None, &mut None).await {
                    self.engine.stats.fill_errors.fetch_add(1, Relaxed);
                    self.flight.body.finish(Err(error));
                } else {
                    self.flight.body.finish(Ok(()));
                }
            }
            Err(reason) => {
                let code = status.as_u16();
                self.refuse(reason, Some(code), Some(fetched), held).await;
            }
        }
    }

    /// Whether an error page may go to all who wait now: one that was made for one visitor may not.
    fn may_share(&self, headers: &HeaderMap) -> bool {
        if headers.contains_key(header::SET_COOKIE) {
            return false;
        }
        let personal = self.request.fill_is_own
            && (self.request.headers.contains_key(header::COOKIE) || self.request.headers.contains_key(header::AUTHORIZATION));
        let control = ResponseControl::of(headers);
        !(personal && (control.no_store || control.private != Scope::Absent))
    }

    /// Not for the cache: all who wait go their own ways now, and those who come soon do not queue.
    async fn refuse(&mut self, reason: &'static str, status: Option<u16>, own: Option<Fetched>, held: Option<Held>) {
        self.engine.stats.refuse(reason);
        *self.flight.own.lock() = own;
        if !is_passing(status) && reason != "authorization" {
            // Whatever lay there, the origin has just taken it back.
            let key = &self.flight.key;
            self.engine.memory.remove(&key.epoch, &key.key, &key.variant);
        } else {
            self.hold_prior();
            let prior = self.prior.clone();
            self.flight.update(|progress| progress.stale = prior);
        }
        let mark = self.mark(reason, status);
        tracing::debug!(key = %self.plan.key, reason, status, "not kept");
        self.settle(Phase::Pass { reason, status, because: None });
        let stored = match mark {
            Some(until_ms) => self.write_mark(until_ms, reason, &held).await,
            None => false,
        };
        self.give_back(held, if stored { Ended::Stored } else { Ended::Nothing }).await;
    }

    /// Remembers in memory that the key is uncacheable; until when, if the other instances should know too.
    fn mark(&self, reason: &'static str, status: Option<u16>) -> Option<u64> {
        let time = self.plan.policy.hit_for_miss;
        if time.is_zero() || is_passing(status) || self.hit(&self.flight.key, "").is_some() {
            return None;
        }
        let until_ms = self.engine.clock.now_ms() + crate::entry::millis(time);
        let key = &self.flight.key;
        if reason == "authorization" {
            // True of requests with Authorization only.
            self.engine.memory.insert(key.with_variant(crate::serve::AUTHORIZED), Slot::Pass { until_ms, reason });
            return None;
        }
        self.engine.memory.insert(key.clone(), Slot::Pass { until_ms, reason });
        Some(until_ms)
    }

    async fn write_mark(&self, until_ms: u64, reason: &str, held: &Option<Held>) -> bool {
        let key = &self.flight.key;
        let fence = held.as_ref().map(|held| held.lease.fence);
        let value = codec::encode_pass(&key.text(), until_ms, reason);
        self.engine.write(key, value, self.plan.policy.hit_for_miss, fence).await.unwrap_or(false)
    }

    fn head(&self, parts: &Parts, strip: &[http::HeaderName], terms: Option<&Terms>, detail: Option<&'static str>) -> Head {
        let mut shown = fields::split(&parts.headers, strip, &self.plan.policy).shown;
        // Only what may be stored gets the rule's Cache-Control.
        if terms.is_none() && self.plan.policy.client_cache_control.is_some() {
            shown.remove(header::CACHE_CONTROL);
            for value in parts.headers.get_all(header::CACHE_CONTROL) {
                shown.append(header::CACHE_CONTROL, value.clone());
            }
        }
        if terms.is_some() && encode::negotiated(&self.plan.policy, &parts.headers) {
            fields::add_vary(&mut shown, header::ACCEPT_ENCODING);
        }
        for name in [header::CONTENT_LENGTH, header::AGE] {
            if let Some(value) = parts.headers.get(&name) {
                shown.insert(name, value.clone());
            }
        }
        let ttl = terms.map(|terms| (crate::entry::millis(terms.lifetime).saturating_sub(terms.initial_age_ms) / 1000) as i64);
        Head { status: parts.status, headers: shown, store: terms.is_some(), detail, variant: None, ttl, entry: None }
    }

    /// May be stored, as far as the head tells.
    async fn keep(&mut self, fetched: Fetched, terms: Terms, began: Instant, held: Option<Held>, landing: &mut Landing) {
        let (engine, policy) = (self.engine.clone(), self.plan.policy.clone());
        let Fetched { parts, body } = fetched;
        let (target, spec) = self.target(&terms);
        let mut head = self.head(&parts, &terms.strip, Some(&terms), None);
        let tags = tags_of(&parts.headers, &policy.tags).join("\n");
        let purged = self.hit(&target, &tags).is_some();
        // Known only once: a flight carries one response.
        let _ = self.flight.tags.set(tags);
        if target != self.flight.key {
            if let Some(spec) = &spec {
                head.variant = Some((spec.clone(), target.variant.clone()));
                if !purged {
                    engine.memory.insert(StoredKey { variant: Arc::default(), ..target.clone() }, Slot::Spec(spec.clone()));
                }
            }
            if !purged {
                engine.flights.also(&target, &self.flight);
            }
            landing.also = Some(target.clone());
        }
        let promised = fields::single(&parts.headers, &header::CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
        if policy.gate == Gate::Html || promised.is_none() {
            (head.store, head.detail) = (false, Some(UNDECIDED));
        }
        let (mut held, mut head) = (held, Some(head));
        match self.pump(body, Some((&mut held, &target)), &mut head).await {
            // Nobody has heard of it yet: it is as if there had been no answer.
            Err(error) if head.is_some() => {
                engine.stats.refuse("incomplete");
                return self.fail(error, held).await;
            }
            Err(error) => {
                engine.stats.fill_errors.fetch_add(1, Relaxed);
                engine.stats.refuse("incomplete");
                self.hold_prior();
                self.flight.body.finish(Err(error));
                engine.flights.end(&self.flight.key, &self.flight);
                return self.give_back(held, Ended::Nothing).await;
            }
            Ok(()) if promised.is_some_and(|length| length != self.flight.body.total()) => {
                engine.stats.fill_errors.fetch_add(1, Relaxed);
                engine.stats.refuse("incomplete");
                let reason = "the body is not as long as Content-Length says".into();
                self.announce(&mut head);
                self.flight.body.finish(Err(FetchError { kind: "truncated", reason, status: StatusCode::BAD_GATEWAY }));
                engine.flights.end(&self.flight.key, &self.flight);
                return self.give_back(held, Ended::Nothing).await;
            }
            Ok(()) => {}
        }
        // Too large: it went through, and that was all.
        let Some(pieces) = self.flight.body.pieces() else { return self.flight.body.finish(Ok(())) };
        let refusal = if policy.gate == Gate::Html { html::body_refusal(parts.status, &pieces) } else { None };
        if let Some(reason) = refusal {
            head = head.map(|_| self.head(&parts, &terms.strip, None, Some(reason)));
            self.announce(&mut head);
            self.flight.body.refuse(reason);
            self.flight.body.finish(Ok(()));
            return self.refuse_late(reason, parts.status.as_u16(), held).await;
        }
        let draft = Draft { key: &target, status: parts.status, headers: &parts.headers, body: &pieces, terms: &terms, policy: &policy, fetch: began.elapsed(), prior: self.prior.as_deref() };
        let entry = Arc::new(draft.build());
        // Memory first: whoever saw the last byte finds the entry.
        self.remember(&target, &entry);
        head = head.map(|head| Head { store: true, detail: None, entry: Some(entry.clone()), ..head });
        self.announce(&mut head);
        self.flight.body.finish(Ok(()));
        self.write(&target, &entry, spec.as_deref(), held).await;
    }

    /// The body told what the head did not: nothing is stored, and the key is remembered as uncacheable.
    async fn refuse_late(&self, reason: &'static str, status: u16, held: Option<Held>) {
        self.engine.stats.refuse(reason);
        tracing::info!(key = %self.plan.key, reason, status, "not kept: the body shows that it must not be");
        let mark = self.mark(reason, Some(status));
        self.engine.flights.end(&self.flight.key, &self.flight);
        let stored = match mark {
            Some(until_ms) => self.write_mark(until_ms, reason, &held).await,
            None => false,
        };
        self.give_back(held, if stored { Ended::Stored } else { Ended::Nothing }).await;
    }

    /// Lets those who wait have the head.
    fn announce(&self, head: &mut Option<Head>) {
        if let Some(head) = head.take() {
            self.flight.set(Phase::Streaming(head.into()));
        }
    }

    /// Moves the body from the origin to the readers, and announces the head as soon as there is something to wait for: of a body that came in
    /// one go with its head, it is known what becomes of it before anyone is told. With a lock and a key in hand, the body may become too large
    /// on the way: then both are given up.
    async fn pump(&self, mut body: Box<dyn BodyReader>, mut storing: Option<(&mut Option<Held>, &StoredKey)>, head: &mut Option<Head>) -> Result<(), FetchError> {
        let shared = &self.flight.body;
        loop {
            let piece = {
                let mut next = body.chunk();
                match futures_util::poll!(&mut next) {
                    Poll::Ready(piece) => piece?,
                    Poll::Pending => {
                        self.announce(head);
                        next.await?
                    }
                }
            };
            let Some(piece) = piece else { return Ok(()) };
            if piece.is_empty() {
                continue;
            }
            match shared.push(piece, self.plan.policy.max_size) {
                Pushed::Kept => continue,
                Pushed::PassedOn => {}
                Pushed::TooLarge => {
                    *head = head.take().map(|head| Head { store: false, detail: Some("too-large"), ttl: None, ..head });
                    self.announce(head);
                    if let Some((held, target)) = storing.take() {
                        shared.refuse("too-large");
                        self.engine.flights.end(target, &self.flight);
                        self.refuse_late("too-large", 200, held.take()).await;
                    } else {
                        self.engine.flights.end(&self.flight.key, &self.flight);
                    }
                }
            }
            if !shared.room().await {
                // Nobody reads, nothing is kept: the origin need not send the rest.
                return Ok(());
            }
        }
    }

    /// Under which key the response goes, and the spec, if responses of this page vary.
    fn target(&self, terms: &Terms) -> (StoredKey, Option<Arc<Spec>>) {
        let key = &self.flight.key;
        if terms.vary.is_empty() {
            return (key.clone(), None);
        }
        let read_ms = self.engine.clock.now_ms();
        let known = match self.engine.memory.get(&key.epoch, &key.key, "") {
            Some(Slot::Spec(spec)) => Some(spec),
            _ => None,
        };
        let spec = match known {
            Some(known) => known.grown(&terms.vary).map_or(known, |grown| Spec { read_ms, ..grown }.into()),
            None => Arc::new(Spec { fields: terms.vary.clone(), generation: fastrand::u64(..), read_ms }),
        };
        (key.with_variant(&spec.variant(&self.request.headers)), Some(spec))
    }

    /// Whether a purge that came after the origin was asked means this.
    fn hit(&self, key: &StoredKey, tags: &str) -> Option<Hit> {
        self.engine.recent.hit(self.mark, key, tags, false)
    }

    fn remember(&self, key: &StoredKey, entry: &Arc<Entry>) {
        if self.engine.recent.unless_hit(self.mark, key, entry.tag_lines(), false, || self.engine.memory.insert_newer(key, entry)) {
            self.engine.stats.stored.fetch_add(1, Relaxed);
        }
    }

    /// Puts an entry (and the spec that leads to it) into the store and the index, and gives the lock back.
    async fn write(&self, key: &StoredKey, entry: &Arc<Entry>, spec: Option<&Spec>, held: Option<Held>) {
        let engine = &self.engine;
        let keep = entry.keep_for(engine.clock.now_ms());
        if self.hit(key, entry.tag_lines()).is_some() || keep.is_zero() {
            return self.give_back(held, Ended::Nothing).await;
        }
        let value = engine.stored_form(key, entry).await;
        let mut stored = self.write_fenced(key, value.clone(), keep, &held).await && engine.enter(key, entry, keep).await;
        if let Some(spec) = spec {
            let primary = StoredKey { variant: Arc::default(), ..key.clone() };
            let value = codec::encode_spec(&primary.text(), spec);
            stored &= self.write_fenced(&primary, value, SPEC_TIME.max(keep), &held).await;
        }
        let put = Put::of(key, entry.tag_lines(), &value);
        if stored && let Some(put) = put.clone() {
            engine.recent.put(put);
        }
        if let Some(hit) = self.hit(key, entry.tag_lines()) {
            // The purge came between: what was just written is what it meant.
            engine.take_back(key, put, hit).await;
            stored = false;
        }
        self.give_back(held, if stored { Ended::Stored } else { Ended::Nothing }).await;
        engine.encode_behind(key, entry);
    }

    /// Writes under the fence of the key's own lock. A fill that learnt on the way which variant it carries holds another key's lock, whose
    /// numbers say nothing here; it takes the right one for the moment of writing.
    async fn write_fenced(&self, key: &StoredKey, value: bytes::Bytes, time: Duration, held: &Option<Held>) -> bool {
        let engine = &self.engine;
        let Some(held) = held else {
            return engine.write(key, value, time, None).await.unwrap_or(false);
        };
        if *key == self.flight.key {
            return match engine.write(key, value, time, Some(held.lease.fence)).await {
                Ok(true) => true,
                Ok(false) => {
                    // A newer fill was faster: memory should have that one.
                    engine.memory.remove(&key.epoch, &key.key, &key.variant);
                    false
                }
                Err(_) => false,
            };
        }
        match engine.lock(key, self.plan.policy.lease).await {
            Ok(Some(own)) => {
                let done = engine.write(key, value, time, Some(own.lease.fence)).await.unwrap_or(false);
                engine.unlock(own, Ended::Stored).await;
                done
            }
            _ => false,
        }
    }
}
