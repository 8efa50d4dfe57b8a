//! The fill: looks in the store, takes the lock that all instances share, asks the origin, and keeps the answer. Runs as a task of its
//! own; that clients come and go does not concern it.

use crate::{
    CacheRequest, Engine, Entry, Fetch, FetchError, Plan,
    codec::Stored,
    flight::{Flight, Found, How, Phase},
    memory::{Slot, StoredKey},
    places::NO_PLACE,
    policy::{self, Times},
    serve::HIT_FOR_MISS,
    tier::{Ended, Held, Read, Wake},
    vary::Spec,
};
use http::{HeaderMap, StatusCode};
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout},
};

/// Poll while another instance fills: the first pause, and the longest.
const POLL: (Duration, Duration) = (Duration::from_millis(25), Duration::from_millis(250));
/// After a failed fetch, a stale page is served this long without another try.
const HOLD_MS: u64 = 1000;

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
    /// The [`Recent::mark`](crate::recent::Recent::mark) before the origin was asked.
    pub(crate) mark: u64,
}

/// Whatever happens to the task, those who wait get an end and the key is free again.
pub(crate) struct Landing {
    engine: Arc<Engine>,
    flight: Arc<Flight>,
    /// A second key that the flight was found under on the way.
    pub(crate) also: Option<StoredKey>,
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
        let Some(held) = self.look().await else { return };
        match self.place().await {
            Ok(_place) => self.ask(held, &mut landing).await,
            Err(()) => self.leave(held).await,
        }
    }

    /// Waits until this rule may ask its origin once more. `Err`: not within the longest wait.
    async fn place(&self) -> Result<Option<OwnedSemaphorePermit>, ()> {
        let policy = &self.plan.policy;
        let Some(places) = self.engine.places.of(policy) else { return Ok(None) };
        if let Ok(place) = places.clone().try_acquire_owned() {
            return Ok(Some(place));
        }
        let began = Instant::now();
        // The places are never closed: an error is the end of the wait.
        let place = timeout(policy.max_wait, places.acquire_owned()).await;
        self.flight.update(|progress| progress.waited += began.elapsed());
        match place {
            Ok(Ok(place)) => Ok(Some(place)),
            _ => Err(()),
        }
    }

    /// No place: whoever waits gets what is stale, if that may be, or asks by himself.
    async fn leave(&mut self, held: Option<Held>) {
        self.hold_prior();
        let prior = self.prior.clone();
        self.flight.update(|progress| progress.stale = prior);
        self.settle(Phase::Pass { reason: NO_PLACE, status: None, because: None });
        self.give_back(held, Ended::Nothing).await;
    }

    /// Store and lock. `None`: there is an answer, nothing must be fetched. `Some(None)`: fetch without a lock.
    async fn look(&mut self) -> Option<Option<Held>> {
        let (engine, flight) = (self.engine.clone(), self.flight.clone());
        if self.need.look_first {
            // The flight before this one may have landed just after the request looked.
            if let Some(Slot::Entry(entry)) = engine.memory.get(&flight.key.epoch, &flight.key.key, &flight.key.variant)
                && self.answers(&entry)
                && engine.trust.covers(entry.response_ms(), engine.clock.now_ms())
            {
                self.settle(Phase::Found(Found { entry, how: How::Remembered }));
                return None;
            }
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

    async fn compete(&mut self, wake: &Wake, began: Instant) -> Option<Option<Held>> {
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

    fn answers(&self, entry: &Entry) -> bool {
        entry.is_fresh_ms(self.engine.clock.now_ms()) && entry.response_ms() >= self.need.since_ms
    }

    /// Uses what the store had; whether that is an answer.
    fn take(&mut self, found: Read, how: How) -> bool {
        let (engine, key) = (&self.engine, &self.flight.key);
        let now = engine.clock.now_ms();
        match found.stored {
            None => false,
            Some(Stored::Entry(entry)) => {
                engine.remember_read(key, &entry, found.mark);
                let answers = self.answers(&entry);
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
            Some(Stored::Pass { until_ms, reason }) if until_ms > now && self.need.look_first => {
                engine.memory.insert(key.clone(), Slot::Pass { until_ms, reason: reason.unwrap_or("refused") });
                self.settle(Phase::Pass { reason: HIT_FOR_MISS, status: None, because: reason });
                true
            }
            Some(_) => false,
        }
    }

    /// The last word. The key is free before it is heard, so that whoever is not content with it does not meet this flight again.
    pub(crate) fn settle(&self, phase: Phase) {
        self.engine.flights.end(&self.flight.key, &self.flight);
        self.flight.set(phase);
    }

    async fn ask(&mut self, held: Option<Held>, landing: &mut Landing) {
        let engine = self.engine.clone();
        self.flight.set(Phase::Fetching);
        engine.stats.fills.fetch_add(1, Relaxed);
        let began = Instant::now();
        let flight = self.flight.clone();
        let interim = move |parts| flight.interim(parts);
        let mut conditions = self.prior.as_ref().map(|prior| prior.conditions()).unwrap_or_default();
        loop {
            let request_ms = engine.clock.now_ms();
            self.mark = engine.recent.mark();
            let fetched = match self.fetch.fetch(conditions.clone(), &interim).await {
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

    pub(crate) async fn fail(&mut self, error: FetchError, held: Option<Held>) {
        self.engine.stats.fill_errors.fetch_add(1, Relaxed);
        tracing::debug!(kind = error.kind, key = %self.plan.key, "fill failed");
        if self.prior.is_none() && !self.need.look_first
            && let Ok(Read { stored: Some(Stored::Entry(entry)), .. }) = self.engine.read(&self.flight.key).await
        {
            self.prior = Some(entry);
        }
        self.hold_prior();
        let prior = self.prior.clone();
        self.flight.update(|progress| progress.stale = prior);
        self.settle(Phase::Failed(error));
        self.give_back(held, Ended::Nothing).await;
    }

    pub(crate) fn hold_prior(&self) {
        if let Some(prior) = &self.prior {
            prior.hold(self.engine.clock.now_ms() + HOLD_MS);
        }
    }

    pub(crate) async fn give_back(&self, held: Option<Held>, ended: Ended) {
        if let Some(held) = held {
            self.engine.unlock(held, ended).await;
        }
    }
}
