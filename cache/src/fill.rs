//! The fill: looks in the store, takes the lock that all instances share, asks the origin, and keeps the answer. Runs as a task of its
//! own; that clients come and go does not concern it.

use crate::{
    BodyReader, CacheRequest, Engine, Entry, Fetch, FetchError, Fetched, Gate, Plan,
    body::Pushed,
    codec::{self, Stored},
    control::{ResponseControl, Scope},
    entry::Draft,
    fields,
    flight::{Flight, Found, Head, How, Phase},
    html,
    memory::{Slot, StoredKey},
    policy::{self, Terms, Times},
    tier::{Ended, Held},
    vary::Spec,
};
use http::{HeaderMap, StatusCode, header, response::Parts};
use std::{
    sync::{
        Arc,
        atomic::Ordering::Relaxed,
    },
    time::Duration,
};
use tokio::time::{Instant, timeout};

/// Poll while another instance fills: the first pause, and the longest.
const POLL: (Duration, Duration) = (Duration::from_millis(25), Duration::from_millis(250));
/// After a failed fetch, a stale page is served this long without another try.
const HOLD_MS: u64 = 1000;
/// How long a spec lies in the store at least: longer than its variants, or they would be fetched anew.
const SPEC_TIME: Duration = Duration::from_secs(7 * 86_400);

/// What a fill is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need {
    /// An entry counts only if it came at this time or later (milliseconds since 1970).
    pub(crate) since_ms: u64,
    /// Whether the store may answer before the origin is asked.
    pub(crate) look_first: bool,
}

pub(crate) struct Fill {
    pub(crate) engine: Arc<Engine>,
    pub(crate) flight: Arc<Flight>,
    pub(crate) plan: Plan,
    pub(crate) request: CacheRequest,
    pub(crate) fetch: Arc<dyn Fetch>,
    pub(crate) need: Need,
    /// An entry whose validators may be used.
    pub(crate) prior: Option<Arc<Entry>>,
}

/// An origin that is overloaded or broken says nothing about the page.
fn is_passing(status: Option<u16>) -> bool {
    matches!(status, Some(408 | 429 | 500..=599))
}

/// Whatever happens to the task, those who wait get an end and the key is free again.
struct Landing {
    engine: Arc<Engine>,
    flight: Arc<Flight>,
    also: Option<StoredKey>,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let lost = || FetchError { kind: "internal", reason: "the fill ended without an answer".into(), status: StatusCode::BAD_GATEWAY };
        self.flight.body.finish(Err(lost()));
        self.flight.update(|progress| {
            if matches!(progress.phase, Phase::Looking | Phase::Fetching) {
                progress.phase = Phase::Failed(lost());
            }
        });
        self.engine.flights.end(&self.flight.key, &self.flight);
        if let Some(key) = &self.also {
            self.engine.flights.end(key, &self.flight);
        }
    }
}

impl Fill {
    pub(crate) async fn run(mut self) {
        let mut landing = Landing { engine: self.engine.clone(), flight: self.flight.clone(), also: None };
        if let Some(held) = self.look().await {
            self.ask(held, &mut landing).await;
        }
    }

    /// Store and lock. `None`: there is an answer, nothing must be fetched. `Some(None)`: fetch without a lock.
    async fn look(&mut self) -> Option<Option<Held>> {
        let (engine, flight) = (self.engine.clone(), self.flight.clone());
        if self.need.look_first {
            match engine.read(&flight.key).await {
                Ok(found) => {
                    if self.take(found, How::Stored) {
                        return None;
                    }
                }
                Err(_) => return if self.away() { None } else { Some(None) },
            }
        }
        let lock_key = flight.key.store_key("fill");
        let wake = engine.wake_for(&lock_key);
        let began = Instant::now();
        let answer = self.compete(&wake, began).await;
        engine.forget_wake(&lock_key);
        let waited = began.elapsed();
        self.flight.update(|progress| progress.waited = waited);
        answer
    }

    async fn compete(&mut self, wake: &crate::tier::Wake, began: Instant) -> Option<Option<Held>> {
        let (engine, key, policy) = (self.engine.clone(), self.flight.key.clone(), self.plan.policy.clone());
        let (mut pause, longest) = POLL;
        let mut waited = false;
        loop {
            match engine.lock(&key, policy.lease).await {
                Ok(Some(held)) => {
                    // Another may have filled it between the look and the lock. A refresh that got the lock at once has no one before it.
                    if self.need.look_first || waited {
                        let how = if waited { How::Elsewhere } else { How::Stored };
                        if let Ok(found) = engine.read(&key).await
                            && self.take(found, how)
                        {
                            engine.unlock(held, Ended::Stored).await;
                            return None;
                        }
                    }
                    return Some(Some(held));
                }
                Ok(None) => {}
                Err(_) => return if self.away() { None } else { Some(None) },
            }
            waited = true;
            let Some(left) = policy.max_wait.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) else {
                engine.stats.lock_timeouts.fetch_add(1, Relaxed);
                self.flight.update(|progress| progress.note = Some("lock-timeout"));
                return Some(None);
            };
            if timeout(pause.min(left), wake.notify.notified()).await.is_err() {
                pause = (pause * 2).min(longest);
            }
            match engine.read(&key).await {
                Ok(found) => {
                    if self.take(found, How::Elsewhere) {
                        return None;
                    }
                }
                Err(_) => return if self.away() { None } else { Some(None) },
            }
            // The other came back with nothing to share: waiting in line for the same would help no one.
            if wake.nothing.load(Relaxed) {
                return Some(None);
            }
        }
    }

    /// The store does not answer. Whether what memory knows about variants answers instead.
    fn away(&self) -> bool {
        let key = &self.flight.key;
        self.flight.update(|progress| progress.note = Some("store-away"));
        if key.variant.is_empty()
            && let Some(Slot::Spec(spec)) = self.engine.memory.get(&key.epoch, &key.key, "")
        {
            let renewed = Spec { read_ms: self.engine.clock.now_ms(), ..(*spec).clone() };
            self.engine.memory.insert(key.clone(), Slot::Spec(renewed.into()));
            self.settle(Phase::Varied);
            return true;
        }
        false
    }

    /// Uses what the store had; whether that is an answer.
    fn take(&mut self, found: Option<Stored>, how: How) -> bool {
        let (engine, key) = (&self.engine, &self.flight.key);
        let now = engine.clock.now_ms();
        let keep = !self.flight.is_purged();
        match found {
            None => false,
            Some(Stored::Entry(entry)) => {
                if keep {
                    engine.memory.insert_newer(key, &entry);
                }
                let answers = entry.is_fresh_ms(now) && entry.response_ms() >= self.need.since_ms;
                if answers {
                    self.settle(Phase::Found(Found { entry, how }));
                } else if self.prior.as_ref().is_none_or(|prior| prior.response_ms() <= entry.response_ms()) {
                    self.prior = Some(entry.clone());
                    self.flight.update(|progress| progress.stale = Some(entry));
                }
                answers
            }
            Some(Stored::Spec(spec)) if key.variant.is_empty() => {
                engine.memory.insert(key.clone(), Slot::Spec(Spec { read_ms: now, ..spec }.into()));
                self.settle(Phase::Varied);
                true
            }
            Some(Stored::Pass { until_ms }) if until_ms > now && self.need.look_first => {
                engine.memory.insert(key.clone(), Slot::Pass { until_ms });
                self.settle(Phase::Pass { reason: "hit-for-miss", status: None });
                true
            }
            Some(_) => false,
        }
    }

    /// The last word. The key is free before it is heard, so that whoever is not content with it does not meet this flight again.
    fn settle(&self, phase: Phase) {
        self.engine.flights.end(&self.flight.key, &self.flight);
        self.flight.set(phase);
    }

    async fn ask(&mut self, held: Option<Held>, landing: &mut Landing) {
        let engine = self.engine.clone();
        self.flight.set(Phase::Fetching);
        engine.stats.fills.fetch_add(1, Relaxed);
        let began = Instant::now();
        let mut conditions = self.prior.as_ref().map(|prior| prior.conditions()).unwrap_or_default();
        loop {
            let request_ms = engine.clock.now_ms();
            let fetched = match self.fetch.fetch(conditions.clone()).await {
                Ok(fetched) => fetched,
                Err(error) => return self.fail(error, held).await,
            };
            let times = Times { request_ms, response_ms: engine.clock.now_ms() };
            if fetched.parts.status != StatusCode::NOT_MODIFIED || conditions.is_empty() {
                return self.receive(fetched, times, began, held, landing).await;
            }
            engine.stats.revalidated.fetch_add(1, Relaxed);
            let merged = self.prior.as_ref().and_then(|prior| policy::merged(prior, &fetched.parts.headers).map(|head| (prior.clone(), head)));
            match merged {
                Some((prior, head)) => return self.renew(&prior, &head, times, began, held).await,
                // A 304 about something else: ask once more, for the whole.
                None => conditions = HeaderMap::new(),
            }
        }
    }

    async fn fail(&mut self, error: FetchError, held: Option<Held>) {
        self.engine.stats.fill_errors.fetch_add(1, Relaxed);
        tracing::debug!(kind = error.kind, key = %self.plan.key, "fill failed");
        if self.prior.is_none() && !self.need.look_first
            && let Ok(Some(Stored::Entry(entry))) = self.engine.read(&self.flight.key).await
        {
            self.prior = Some(entry);
        }
        self.hold_prior();
        let prior = self.prior.clone();
        self.flight.update(|progress| progress.stale = prior);
        self.settle(Phase::Failed(error));
        self.give_back(held, Ended::Nothing).await;
    }

    fn hold_prior(&self) {
        if let Some(prior) = &self.prior {
            prior.hold(self.engine.clock.now_ms() + HOLD_MS);
        }
    }

    async fn give_back(&self, held: Option<Held>, ended: Ended) {
        if let Some(held) = held {
            self.engine.unlock(held, ended).await;
        }
    }

    /// A 304: the stored body goes on under a renewed head (RFC 9111 section 4.3.4).
    async fn renew(&mut self, prior: &Arc<Entry>, merged: &HeaderMap, times: Times, began: Instant, held: Option<Held>) {
        let policy = self.plan.policy.clone();
        match policy::judge(&policy, &self.request, prior.status(), merged, times) {
            Ok(terms) => {
                let key = self.flight.key.clone();
                let body = [prior.body().clone()];
                let draft = Draft { key: &key, status: prior.status(), headers: merged, body: &body, terms: &terms, policy: &policy, fetch: began.elapsed() };
                let entry = Arc::new(draft.build());
                self.remember(&key, &entry);
                self.settle(Phase::Found(Found { entry: entry.clone(), how: How::Renewed }));
                self.write(&key, &entry, None, held).await;
            }
            Err(reason) => self.refuse(reason, Some(304), None, held).await,
        }
    }

    async fn receive(&mut self, fetched: Fetched, times: Times, began: Instant, held: Option<Held>, landing: &mut Landing) {
        let policy = self.plan.policy.clone();
        let (status, headers) = (fetched.parts.status, &fetched.parts.headers);
        match policy::judge(&policy, &self.request, status, headers, times) {
            Ok(terms) => self.keep(fetched, terms, began, held, landing).await,
            Err(_) if status.is_server_error() && self.may_share(headers) => {
                self.hold_prior();
                self.engine.stats.refuse("origin-error");
                let head = self.head(&fetched.parts, &[], None, Some("origin-error"));
                self.flight.set(Phase::Streaming(head.into()));
                // The lock guards a page that will not come; whoever else waits for it should see for himself.
                self.give_back(held, Ended::Nothing).await;
                if let Err(error) = self.pump(fetched.body, None).await {
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
        self.settle(Phase::Pass { reason, status });
        let stored = match mark {
            Some(until_ms) => self.write_mark(until_ms, &held).await,
            None => false,
        };
        self.give_back(held, if stored { Ended::Stored } else { Ended::Nothing }).await;
    }

    /// Remembers in memory that the key is uncacheable; until when, if the other instances should know too.
    fn mark(&self, reason: &'static str, status: Option<u16>) -> Option<u64> {
        let time = self.plan.policy.hit_for_miss;
        if time.is_zero() || is_passing(status) || self.flight.is_purged() {
            return None;
        }
        let until_ms = self.engine.clock.now_ms() + crate::entry::millis(time);
        let key = &self.flight.key;
        if reason == "authorization" {
            // True of requests with Authorization only.
            self.engine.memory.insert(key.with_variant(crate::serve::AUTHORIZED), Slot::Pass { until_ms });
            return None;
        }
        self.engine.memory.insert(key.clone(), Slot::Pass { until_ms });
        Some(until_ms)
    }

    async fn write_mark(&self, until_ms: u64, held: &Option<Held>) -> bool {
        let key = &self.flight.key;
        let fence = held.as_ref().map(|held| held.lease.fence);
        let value = codec::encode_pass(&key.text(), until_ms);
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
        for name in [header::CONTENT_LENGTH, header::AGE] {
            if let Some(value) = parts.headers.get(&name) {
                shown.insert(name, value.clone());
            }
        }
        let ttl = terms.map(|terms| (crate::entry::millis(terms.lifetime).saturating_sub(terms.initial_age_ms) / 1000) as i64);
        Head { status: parts.status, headers: shown, store: terms.is_some(), detail, variant: None, ttl }
    }

    /// May be stored, as far as the head tells.
    async fn keep(&mut self, fetched: Fetched, terms: Terms, began: Instant, held: Option<Held>, landing: &mut Landing) {
        let (engine, policy) = (self.engine.clone(), self.plan.policy.clone());
        let Fetched { parts, body } = fetched;
        let (target, spec) = self.target(&terms);
        let mut head = self.head(&parts, &terms.strip, Some(&terms), None);
        if target != self.flight.key {
            if let Some(spec) = &spec {
                head.variant = Some((spec.clone(), target.variant.clone()));
                if !self.flight.is_purged() {
                    engine.memory.insert(StoredKey { variant: "".into(), ..target.clone() }, Slot::Spec(spec.clone()));
                }
            }
            engine.flights.also(&target, &self.flight);
            landing.also = Some(target.clone());
        }
        self.flight.set(Phase::Streaming(head.into()));

        let promised = fields::single(&parts.headers, &header::CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
        let mut held = held;
        match self.pump(body, Some((&mut held, &target))).await {
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
            self.flight.body.finish(Ok(()));
            return self.refuse_late(reason, parts.status.as_u16(), held).await;
        }
        let draft = Draft { key: &target, status: parts.status, headers: &parts.headers, body: &pieces, terms: &terms, policy: &policy, fetch: began.elapsed() };
        let entry = Arc::new(draft.build());
        // Memory first: whoever saw the last byte finds the entry.
        self.remember(&target, &entry);
        self.flight.body.finish(Ok(()));
        self.write(&target, &entry, spec.as_deref(), held).await;
    }

    /// The body told what the head did not: nothing is stored, and the key is remembered as uncacheable.
    async fn refuse_late(&self, reason: &'static str, status: u16, held: Option<Held>) {
        self.engine.stats.refuse(reason);
        let mark = self.mark(reason, Some(status));
        self.engine.flights.end(&self.flight.key, &self.flight);
        let stored = match mark {
            Some(until_ms) => self.write_mark(until_ms, &held).await,
            None => false,
        };
        self.give_back(held, if stored { Ended::Stored } else { Ended::Nothing }).await;
    }

    /// Moves the body from the origin to the readers. With a lock and a key in hand, it may become too large on the way: then both are given up.
    async fn pump(&self, mut body: Box<dyn BodyReader>, mut storing: Option<(&mut Option<Held>, &StoredKey)>) -> Result<(), FetchError> {
        let shared = &self.flight.body;
        while let Some(piece) = body.chunk().await? {
            if piece.is_empty() {
                continue;
            }
            match shared.push(piece, self.plan.policy.max_size) {
                Pushed::Kept => continue,
                Pushed::PassedOn => {}
                Pushed::TooLarge => {
                    if let Some((held, target)) = storing.take() {
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
        Ok(())
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

    fn remember(&self, key: &StoredKey, entry: &Arc<Entry>) {
        if !self.flight.is_purged() {
            self.engine.memory.insert_newer(key, entry);
            self.engine.stats.stored.fetch_add(1, Relaxed);
        }
    }

    /// Puts an entry (and the spec that leads to it) into the store, and gives the lock back.
    async fn write(&self, key: &StoredKey, entry: &Arc<Entry>, spec: Option<&Spec>, held: Option<Held>) {
        let engine = &self.engine;
        let keep = entry.keep_for(engine.clock.now_ms());
        if self.flight.is_purged() || keep.is_zero() {
            return self.give_back(held, Ended::Nothing).await;
        }
        let mut stored = self.write_fenced(key, entry.raw().clone(), keep, &held).await;
        if let Some(spec) = spec {
            let primary = StoredKey { variant: "".into(), ..key.clone() };
            let value = codec::encode_spec(&primary.text(), spec);
            stored &= self.write_fenced(&primary, value, SPEC_TIME.max(keep), &held).await;
        }
        if self.flight.is_purged() {
            // The purge came between: what was just written is what it meant.
            let _ = engine.store.blobs.delete(&[key.store_key("cache")]).await;
            engine.memory.remove(&key.epoch, &key.key, &key.variant);
            stored = false;
        }
        self.give_back(held, if stored { Ended::Stored } else { Ended::Nothing }).await;
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
