//! One request's way through the engine.
//!
//! ```text
//! memory ─ fresh ──────────────────────────► Stored (HIT), perhaps with an early refresh behind
//!    │ ─── stale, may be served meanwhile ─► Stored (STALE), refresh behind
//!    │ ─── marked uncacheable ─────────────► Pass
//!    ▼ nothing, or too old
//! flight (joined or begun) ─ Found ────────► Stored
//!                          ─ Streaming ────► Filling
//!                          ─ Pass ─────────► Filling for the client that caused it, if the fill was its own; else Pass
//!                          ─ Failed ───────► Stored (STALE) if allowed; else Failed
//! ```

use crate::{
    Answer, CacheRequest, Engine, Entry, Fetch, FetchError, Outcome, Plan, Report, Stream, Tier, Verdict, Waiting,
    body::Empty,
    codec::Stored,
    control::RequestControl,
    fill::{Fill, Need},
    flight::{Flight, Found, Head, How, Phase, Progress, Seat},
    memory::{Slot, StoredKey},
    places::NO_PLACE,
    policy::{self, Reuse},
    reasons::UNDECIDED,
    respond,
};
use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode, header, response::Parts};
use futures_util::FutureExt;
use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Waker},
    time::Duration,
};
use tokio::time::{Instant, timeout_at};

/// The variant under which a primary key is remembered as uncacheable for requests with `Authorization`.
pub(crate) const AUTHORIZED: &str = "!authorization";
/// Why a request is passed on whose page proved uncacheable a moment ago.
pub(crate) const HIT_FOR_MISS: &str = "hit-for-miss";
/// How long this process trusts what it knows about a page's variants before it looks in the store again.
const SPEC_TRUST_MS: u64 = 10_000;
/// Rounds before a request gives up on the cache: a variant found out, an entry that is not fresh enough for it, each costs one.
const ROUNDS: usize = 6;

pub(crate) struct Call<'a> {
    pub(crate) engine: &'a Arc<Engine>,
    pub(crate) plan: &'a Plan,
    pub(crate) request: &'a CacheRequest,
    pub(crate) fetch: Arc<dyn Fetch>,
    client: &'a mut dyn Waiting,
    wants: RequestControl,
    /// The origin must be asked, whatever is stored; an entry counts only if it came after this time.
    forced_since: Option<u64>,
    waited: Duration,
    /// What was stored and could not be used: for `fwd=`.
    had: Option<&'static str>,
    /// Of this round's key.
    variant: String,
}

impl<'a> Call<'a> {
    pub(crate) fn new(engine: &'a Arc<Engine>, plan: &'a Plan, request: &'a CacheRequest, fetch: Arc<dyn Fetch>, client: &'a mut dyn Waiting) -> Self {
        let wants = if plan.policy.honour_request { RequestControl::of(&request.headers) } else { RequestControl::default() };
        Call { engine, plan, request, fetch, client, wants, forced_since: None, waited: Duration::ZERO, had: None, variant: String::new() }
    }

    pub(crate) async fn run(mut self) -> Outcome {
        if !matches!(self.request.method, Method::GET | Method::HEAD) {
            return self.pass("method", Some("method"), None, false);
        }
        // RFC 9111 section 5.2.1.5: nothing of this request or its answer may be kept, so it does not enter.
        if self.wants.no_store {
            return self.pass("request-no-store", Some("request"), None, false);
        }
        if self.request.refresh || self.wants.no_cache {
            self.forced_since = Some(self.now());
        }
        for _ in 0..ROUNDS {
            if let Some(outcome) = self.round().await {
                return outcome;
            }
        }
        self.pass("unsettled", Some("miss"), None, false)
    }

    fn now(&self) -> u64 {
        self.engine.clock.now_ms()
    }

    async fn round(&mut self) -> Option<Outcome> {
        let now = self.now();
        let (epoch, key) = (&self.plan.epoch, &*self.plan.key);
        let (memory, trust) = (&self.engine.memory, &self.engine.trust);
        let mut variant = String::new();
        let mut slot = memory.get(epoch, key, "");
        if let Some(Slot::Spec(spec)) = &slot {
            if spec.read_ms.saturating_add(SPEC_TRUST_MS) > now && trust.covers(spec.read_ms, now) {
                variant = spec.variant(&self.request.headers);
                slot = memory.get(epoch, key, &variant);
                self.had = Some("vary-miss");
            } else {
                slot = None;
            }
        }
        let mut prior = None;
        match slot {
            Some(Slot::Pass { until_ms, reason }) if until_ms > now && !self.request.refresh => {
                return Some(self.pass_known(Some(reason), false));
            }
            Some(Slot::Entry(entry)) => {
                self.variant.clone_from(&variant);
                if self.forced_since.is_none()
                    && trust.covers(entry.response_ms(), now)
                    && let Some(outcome) = self.remembered(&entry, &variant, now)
                {
                    return Some(outcome);
                }
                self.had = Some(if self.forced_since.is_some() { "request" } else { "stale" });
                prior = Some(entry);
            }
            _ => {}
        }
        let mut stored = StoredKey::primary(epoch, key);
        if !variant.is_empty() {
            stored.variant = variant.as_str().into();
        }
        self.variant = variant;
        if self.wants.only_if_cached && !self.request.refresh {
            return self.only_if_cached(&stored).await;
        }
        if self.request.fill_is_own
            && self.request.headers.contains_key(header::AUTHORIZATION)
            && !self.request.refresh
            && let Some(Slot::Pass { until_ms, reason }) = memory.get(epoch, key, AUTHORIZED)
            && until_ms > now
        {
            return Some(self.pass_known(Some(reason), false));
        }
        let need = Need { since_ms: self.forced_since.unwrap_or(0), look_first: self.forced_since.is_none() };
        let stale = prior.as_ref().filter(|entry| trust.covers(entry.response_ms(), now));
        let seat = self.engine.flights.join(&stored, stale, |flight| at_once(self.fill(flight, need, prior.clone()).run()));
        self.wait(seat).await
    }

    fn fill(&self, flight: Arc<Flight>, need: Need, prior: Option<Arc<Entry>>) -> Fill {
        Fill {
            engine: self.engine.clone(),
            flight,
            plan: self.plan.clone(),
            request: self.request.clone(),
            fetch: self.fetch.clone(),
            need,
            prior,
            mark: self.engine.recent.mark(),
        }
    }

    /// A flight that nobody waits for.
    fn refresh_behind(&self, entry: &Arc<Entry>, variant: &str, since_ms: u64) {
        let key = StoredKey { variant: variant.into(), ..StoredKey::primary(&self.plan.epoch, &self.plan.key) };
        let need = Need { since_ms, look_first: true };
        self.engine.flights.begin(&key, entry, |flight| drop(tokio::spawn(self.fill(flight, need, Some(entry.clone())).run())));
    }

    fn remembered(&self, entry: &Arc<Entry>, variant: &str, now: u64) -> Option<Outcome> {
        match policy::reuse(entry, &self.wants, now) {
            Reuse::Fresh => {
                if entry.wants_early_refresh(now, self.plan.policy.early_refresh_beta) && !entry.is_held(now) {
                    self.refresh_behind(entry, variant, entry.response_ms() + 1);
                }
                Some(self.hit(entry, Tier::Memory))
            }
            Reuse::Stale => Some(self.stale(entry, Some(Tier::Memory), "max-stale")),
            Reuse::Revalidating => {
                if !entry.is_held(now) {
                    self.refresh_behind(entry, variant, 0);
                }
                Some(self.stale(entry, Some(Tier::Memory), "stale-while-revalidate"))
            }
            Reuse::Must if entry.is_held(now) && policy::stale_if_error(entry, &self.wants, now) => {
                Some(self.stale(entry, Some(Tier::Memory), "stale-if-error"))
            }
            Reuse::Must => None,
        }
    }

    /// RFC 9111 section 5.2.1.7. `None`: look again, with the variant.
    async fn only_if_cached(&mut self, key: &StoredKey) -> Option<Outcome> {
        match self.engine.read(key).await.map(|read| (read.stored, read.mark)) {
            Ok((Some(Stored::Spec(spec)), _)) if key.variant.is_empty() => {
                let spec = crate::vary::Spec { read_ms: self.now(), ..spec };
                self.engine.memory.insert(key.clone(), Slot::Spec(spec.into()));
                return None;
            }
            Ok((Some(Stored::Entry(entry)), mark)) => {
                self.engine.remember_read(key, &entry, mark);
                match policy::reuse(&entry, &self.wants, self.now()) {
                    Reuse::Fresh => return Some(self.hit(&entry, Tier::Store)),
                    Reuse::Stale | Reuse::Revalidating => return Some(self.stale(&entry, Some(Tier::Store), "only-if-cached")),
                    Reuse::Must => {}
                }
            }
            _ => {}
        }
        let reason = "the request wants a stored answer only, and there is none".into();
        let error = FetchError { kind: "only-if-cached", reason, status: StatusCode::GATEWAY_TIMEOUT };
        Some(self.failed(error, false))
    }

    /// Follows a flight until it has something for this request. `None`: another round.
    async fn wait(&mut self, seat: Seat) -> Option<Outcome> {
        let Seat { flight, first, mut reader } = seat;
        let mut steps = flight.progress.subscribe();
        let began = Instant::now();
        let mut asked = None;
        let mut late = false;
        // What may be for one client alone is for the one whose request brought it.
        let hears = first || !self.request.fill_is_own;
        let mut heard = 0;
        loop {
            let Progress { phase, stale, waited, note, interim } = steps.borrow_and_update().clone();
            let over = !matches!(phase, Phase::Looking | Phase::Fetching);
            if over || late {
                self.waited += if first { waited } else { began.elapsed() };
                if !first || !waited.is_zero() {
                    self.engine.stats.waited(self.waited);
                }
            }
            if !over
                && self.forced_since.is_none()
                && let Some(entry) = &stale
                && let Some(outcome) = self.meanwhile(entry)
            {
                return Some(outcome);
            }
            // Whoever is passed on will hear the origin himself.
            if hears && !(matches!(phase, Phase::Pass { .. }) && !self.request.fill_is_own) {
                for parts in interim.iter().skip(heard) {
                    self.client.interim(parts).await;
                }
                heard = interim.len();
            }
            match phase {
                Phase::Looking | Phase::Fetching if late => {
                    return Some(self.pass("lock-timeout", None, None, true));
                }
                Phase::Looking => {}
                Phase::Fetching => {
                    asked.get_or_insert_with(Instant::now);
                }
                Phase::Varied => return None,
                Phase::Found(found) => return self.found(&found, first, note),
                Phase::Streaming(head) => {
                    if let Some((spec, variant)) = &head.variant
                        && !first
                        && *spec.variant(&self.request.headers) != **variant
                    {
                        return None;
                    }
                    if head.status.is_server_error()
                        && let Some(outcome) = self.instead_of_error(stale.as_ref())
                    {
                        return Some(outcome);
                    }
                    let Some(reader) = reader.take() else {
                        return Some(self.pass("too-large", None, Some(head.status.as_u16()), true));
                    };
                    return Some(self.filling(&head, Box::new(reader), first, note));
                }
                Phase::Pass { reason: HIT_FOR_MISS, because, .. } => return Some(self.pass_known(because, !first)),
                Phase::Pass { reason, status, .. } => {
                    if (status.is_some_and(|status| status >= 500) || reason == NO_PLACE)
                        && let Some(outcome) = self.instead_of_error(stale.as_ref())
                    {
                        return Some(outcome);
                    }
                    if first && self.request.fill_is_own {
                        let own = flight.own.lock().take();
                        if let Some(own) = own {
                            return Some(self.own(own.parts, own.body, reason));
                        }
                    }
                    return Some(self.pass(reason, None, status, !first));
                }
                Phase::Failed(error) => {
                    if let Some(outcome) = self.instead_of_error(stale.as_ref()) {
                        return Some(outcome);
                    }
                    return Some(self.failed(error, !first));
                }
            }
            match asked {
                // Whoever began the fill stays with it: nobody could ask the origin sooner.
                Some(asked) if !first => {
                    let end = asked.checked_add(self.plan.policy.max_wait);
                    match end {
                        Some(end) => late = timeout_at(end, steps.changed()).await.is_err(),
                        None => drop(steps.changed().await),
                    }
                }
                _ => drop(steps.changed().await),
            }
        }
    }

    /// An old entry that the flight came by, while it goes on.
    fn meanwhile(&self, entry: &Arc<Entry>) -> Option<Outcome> {
        let now = self.now();
        if !self.engine.trust.covers(entry.response_ms(), now) {
            return None;
        }
        match policy::reuse(entry, &self.wants, now) {
            Reuse::Fresh => Some(self.hit(entry, Tier::Store)),
            Reuse::Stale => Some(self.stale(entry, Some(Tier::Store), "max-stale")),
            Reuse::Revalidating => Some(self.stale(entry, Some(Tier::Store), "stale-while-revalidate")),
            Reuse::Must => None,
        }
    }

    /// A caller who asks for a refresh wants to know that it failed; everyone else prefers an old page to none.
    fn instead_of_error(&self, stale: Option<&Arc<Entry>>) -> Option<Outcome> {
        let entry = stale.filter(|_| !self.request.refresh)?;
        let now = self.now();
        if self.forced_since.is_none() && policy::reuse(entry, &self.wants, now) == Reuse::Fresh {
            return Some(match self.engine.trust.covers(entry.response_ms(), now) {
                true => self.hit(entry, Tier::Store),
                // A purge may mean it, but nobody who could tell answers: better than an error.
                false => self.stale(entry, None, "unconfirmed"),
            });
        }
        let why = if self.engine.trust.covers(entry.response_ms(), now) { "stale-if-error" } else { "unconfirmed" };
        policy::stale_if_error(entry, &self.wants, now).then(|| self.stale(entry, None, why))
    }

    fn found(&mut self, found: &Found, first: bool, note: Option<&'static str>) -> Option<Outcome> {
        let (entry, now) = (&found.entry, self.now());
        let suits = match self.forced_since {
            Some(since) => entry.response_ms() >= since,
            None => matches!(policy::reuse(entry, &self.wants, now), Reuse::Fresh),
        };
        match found.how {
            // The origin has just said that it is good: enough for all who waited for that word.
            How::Renewed => {}
            _ if !suits => {
                // Fresh, but not for this request: the origin must be asked.
                self.forced_since.get_or_insert(now);
                return None;
            }
            How::Stored if self.forced_since.is_none() => return Some(self.hit(entry, Tier::Store)),
            How::Remembered if self.forced_since.is_none() => return Some(self.hit(entry, Tier::Memory)),
            How::Stored | How::Remembered | How::Elsewhere => {}
        }
        let renewed = found.how == How::Renewed;
        let report = Report {
            tier: (!renewed).then_some(Tier::Store),
            fwd: Some(self.fwd()),
            fwd_status: renewed.then_some(304),
            stored: renewed,
            collapsed: !first || !renewed,
            detail: note,
            ..self.report(self.fetched())
        };
        self.count(report.verdict);
        Some(Outcome::Stored(self.answer(entry, report)))
    }

    fn filling(&self, head: &Head, body: Box<dyn crate::BodyReader>, first: bool, note: Option<&'static str>) -> Outcome {
        let report = Report {
            fwd: Some(self.fwd()),
            fwd_status: Some(head.status.as_u16()),
            stored: head.store,
            collapsed: !first,
            ttl: head.ttl,
            detail: head.detail.filter(|detail| note.is_none() || *detail != UNDECIDED).or(note),
            ..self.report(self.fetched())
        };
        self.count(report.verdict);
        if head.status == StatusCode::OK
            && self.request.headers.contains_key(header::IF_NONE_MATCH)
            && respond::not_modified(&self.request.headers, &head.headers, 0)
        {
            let parts = parts(StatusCode::NOT_MODIFIED, respond::without_body(head.headers.clone()));
            return Outcome::Stored(Answer { parts, body: Bytes::new(), report });
        }
        let body = if self.request.method == Method::HEAD { Box::new(Empty) } else { body };
        Outcome::Filling(Stream { parts: parts(head.status, head.headers.clone()), body, report })
    }

    /// The uncacheable response, for the client whose own request brought it.
    fn own(&self, parts: Parts, body: Box<dyn crate::BodyReader>, reason: &'static str) -> Outcome {
        let verdict = if self.request.refresh { Verdict::Refresh } else { Verdict::Bypass };
        let report = Report { fwd: Some(self.fwd()), fwd_status: Some(parts.status.as_u16()), detail: Some(reason), ..self.report(verdict) };
        self.engine.stats.pass(reason);
        let body = if self.request.method == Method::HEAD { Box::new(Empty) } else { body };
        Outcome::Filling(Stream { parts, body, report })
    }

    fn hit(&self, entry: &Arc<Entry>, tier: Tier) -> Outcome {
        let counter = if tier == Tier::Memory { &self.engine.stats.memory_hits } else { &self.engine.stats.store_hits };
        counter.fetch_add(1, Relaxed);
        Outcome::Stored(self.answer(entry, Report { tier: Some(tier), ..self.report(Verdict::Hit) }))
    }

    fn stale(&self, entry: &Arc<Entry>, tier: Option<Tier>, why: &'static str) -> Outcome {
        self.count(Verdict::Stale);
        Outcome::Stored(self.answer(entry, Report { tier, detail: Some(why), ..self.report(Verdict::Stale) }))
    }

    fn answer(&self, entry: &Arc<Entry>, report: Report) -> Answer {
        let now = self.now();
        let report = Report { ttl: Some(entry.fresh_ms(now).div_euclid(1000)), age: Some(entry.age_ms(now) / 1000), ..report };
        let accepted = respond::accepted(&self.request.headers);
        self.engine.wish(&self.plan.epoch, &self.plan.key, &self.variant, entry, &accepted);
        respond::answer(entry, self.request, &accepted, now, report)
    }

    /// Passed on because of what an earlier fetch showed.
    fn pass_known(&self, because: Option<&'static str>, collapsed: bool) -> Outcome {
        match self.pass(HIT_FOR_MISS, Some("uri-miss"), None, collapsed) {
            Outcome::Pass(report) => Outcome::Pass(Report { because, ..report }),
            other => other,
        }
    }

    fn pass(&self, reason: &'static str, fwd: Option<&'static str>, status: Option<u16>, collapsed: bool) -> Outcome {
        self.engine.stats.pass(reason);
        Outcome::Pass(Report {
            fwd: Some(fwd.unwrap_or(self.fwd())),
            fwd_status: status,
            collapsed,
            detail: Some(reason),
            ..self.report(Verdict::Bypass)
        })
    }

    fn failed(&self, error: FetchError, collapsed: bool) -> Outcome {
        let detail = Some(error.kind);
        self.count(self.fetched());
        Outcome::Failed(error, Report { fwd: Some(self.fwd()), collapsed, detail, ..self.report(self.fetched()) })
    }

    fn report(&self, verdict: Verdict) -> Report {
        Report { key: Some(self.plan.key.clone()), waited: self.waited, ..Report::new(verdict) }
    }

    fn fetched(&self) -> Verdict {
        if self.request.refresh { Verdict::Refresh } else { Verdict::Miss }
    }

    fn fwd(&self) -> &'static str {
        match self.had {
            _ if self.request.refresh || self.wants.no_cache => "request",
            Some(had) => had,
            None => "uri-miss",
        }
    }

    fn count(&self, verdict: Verdict) {
        let stats = &self.engine.stats;
        match verdict {
            Verdict::Miss => &stats.misses,
            Verdict::Refresh => &stats.refreshes,
            Verdict::Stale => &stats.stale,
            Verdict::Hit | Verdict::Bypass => return,
        }
        .fetch_add(1, Relaxed);
    }
}

/// Lets a task do what it can at once, and go on by itself: a fill must not queue behind the many who came with the one that it is for, and who will
/// wait for it.
fn at_once(task: impl Future<Output = ()> + Send + 'static) {
    // As in a task of its own, a panic is nobody else's.
    let mut task = Box::pin(AssertUnwindSafe(task).catch_unwind());
    if task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
        tokio::spawn(task);
    }
}

fn parts(status: StatusCode, headers: HeaderMap) -> Parts {
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response.into_parts().0
}
