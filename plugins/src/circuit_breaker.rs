//! `circuit-breaker`: a service that fails is left alone for a while.

use crate::{Configured, Live, header_name, wrong};
use dashmap::DashMap;
use http::{HeaderMap, HeaderValue, StatusCode, header, request};
use parking_lot::Mutex;
use prometheus::{IntGaugeVec, Opts};
use schemars::JsonSchema;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::Instant;
use weir_config::{Diagnostic, Millis, Node};
use weir_gateway::{BuildEnv, Environment, Flow, Phases, Plugin, Reply, RequestContext};

/// Watches how a service answers. When, of at least `minimum_calls` requests in the last `window`, `failure_rate` percent failed (or `slow_rate` percent were
/// slow), the circuit opens: for `open_for`, requests are answered at once with 503, `Retry-After` and `{"message":"The service is failing, try again later"}`, or with
/// the `fallback`. Then `probes` requests may try: if all succeed the circuit closes, if one fails it opens again. What the cache holds in memory is
/// served while the circuit is open.
///
/// A failure is one of `statuses`, an answer that breaks off, or none at all. Clients that leave and answers of plugins do not count. The state is that of
/// this process and outlives a reload; the metric `weir_circuit_state` shows it (0 closed, 1 trying, 2 open).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Percent of requests that must fail.
    #[schemars(range(min = 1, max = 100))]
    pub failure_rate: u32,
    /// Fewer requests than this in the window say nothing.
    #[schemars(range(min = 1))]
    pub minimum_calls: u32,
    /// The time that is looked at.
    pub window: Millis,
    /// Statuses that are failures.
    pub statuses: Vec<u16>,
    /// An answer whose head takes this long is slow. Default: none is.
    pub slow_call: Option<Millis>,
    /// Percent of requests that must be slow.
    #[schemars(range(min = 1, max = 100))]
    pub slow_rate: u32,
    /// How long the circuit stays open.
    pub open_for: Millis,
    /// Requests that must succeed before it closes.
    #[schemars(range(min = 1, max = 1000))]
    pub probes: u32,
    /// Which requests have a circuit in common.
    pub per: Per,
    /// The answer while the circuit is open. Default: 503 with a message.
    pub fallback: Option<Fallback>,
}

/// What a circuit belongs to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Per {
    /// All requests of a service.
    #[default]
    Service,
    /// All requests of a route.
    Route,
}

/// An answer made here.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fallback {
    /// Its status.
    #[serde(default = "unavailable")]
    #[schemars(range(min = 200, max = 599))]
    pub status: u16,
    /// Its fields, such as `Content-Type`.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Its body.
    #[serde(default)]
    pub body: String,
}

fn unavailable() -> u16 {
    503
}

impl Default for Config {
    fn default() -> Self {
        Config {
            failure_rate: 50,
            minimum_calls: 20,
            window: Millis::secs(30),
            statuses: vec![500, 502, 503, 504],
            slow_call: None,
            slow_rate: 80,
            open_for: Millis::secs(30),
            probes: 3,
            per: Per::Service,
            fallback: None,
        }
    }
}

impl Configured for Config {
    const NAME: &'static str = "circuit-breaker";
    // After the caching plugins: whether the cache can answer is known here.
    const PRIORITY: i32 = 90;
    const EXAMPLE: &'static str = "failure_rate: 50
minimum_calls: 20
window: 30s
slow_call: 5s
open_for: 30s
fallback:
  status: 200
  headers: {Content-Type: application/json}
  body: '{\"items\":[]}'
";

    type Ready = Rules;

    fn ready(self, at: &Node) -> Result<Rules, Vec<Diagnostic>> {
        let mut errors = Vec::new();
        for (key, time) in [("window", self.window), ("open_for", self.open_for)] {
            if time.get().is_zero() {
                errors.push(wrong(at, key, "a time above zero is wanted"));
            }
        }
        let fallback = self.fallback.map(|fallback| {
            let place = at.get("fallback").unwrap_or(at);
            let mut headers = HeaderMap::new();
            for (name, text) in &fallback.headers {
                match (header_name(place, "headers", name), HeaderValue::from_str(text)) {
                    (Ok(name), Ok(value)) => {
                        headers.insert(name, value);
                    }
                    (Err(error), _) => errors.push(error),
                    (_, Err(_)) => errors.push(wrong(place, "headers", format!("the value of `{name}` can not be sent in a header"))),
                }
            }
            let status = StatusCode::from_u16(fallback.status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
            Reply { status, headers, body: fallback.body.into(), by: Config::NAME }
        });
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Rules {
            limits: Limits {
                failure_rate: self.failure_rate,
                minimum: self.minimum_calls,
                window: self.window.get(),
                slow_rate: self.slow_rate,
                open_for: self.open_for.get(),
                probes: self.probes,
            },
            statuses: self.statuses,
            slow_call: self.slow_call.map(Millis::get),
            per: self.per,
            fallback,
        })
    }

    fn build(ready: Rules, env: &BuildEnv<'_>, live: &Live) -> Arc<dyn Plugin> {
        let circuits = live.circuits.get_or_init(|| Circuits::new(env.environment)).clone();
        Arc::new(Breaker { rules: ready, circuits, environment: env.environment.clone() })
    }
}

/// The configuration, checked.
pub struct Rules {
    limits: Limits,
    statuses: Vec<u16>,
    slow_call: Option<Duration>,
    per: Per,
    fallback: Option<Reply>,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    failure_rate: u32,
    minimum: u32,
    window: Duration,
    slow_rate: u32,
    open_for: Duration,
    probes: u32,
}

/// All circuits of the process, by name.
pub struct Circuits {
    all: DashMap<String, Arc<Circuit>>,
    gauge: IntGaugeVec,
}

impl Circuits {
    fn new(environment: &Environment) -> Arc<Circuits> {
        let gauge = IntGaugeVec::new(Opts::new("weir_circuit_state", "0 while the circuit is closed, 1 while it tries, 2 while it is open."), &["circuit"])
            .expect("metric names and labels are valid");
        if let Err(error) = environment.metrics.registry().register(Box::new(gauge.clone())) {
            tracing::warn!(plugin = Config::NAME, %error, "metrics are registered already");
        }
        Arc::new(Circuits { all: DashMap::new(), gauge })
    }

    fn get(&self, name: &str) -> Arc<Circuit> {
        if let Some(known) = self.all.get(name) {
            return known.clone();
        }
        let made = || {
            let gauge = self.gauge.with_label_values(&[name]);
            gauge.set(0);
            Arc::new(Circuit { name: name.into(), inner: Mutex::new(Inner { state: State::Closed, generation: 0, buckets: VecDeque::new() }), gauge })
        };
        self.all.entry(name.into()).or_insert_with(made).clone()
    }
}

/// One circuit.
pub struct Circuit {
    name: String,
    inner: Mutex<Inner>,
    gauge: prometheus::IntGauge,
}

struct Inner {
    state: State,
    /// Counts changes of state: what began before one says nothing after it.
    generation: u64,
    /// Counts of the window, in tenths of it.
    buckets: VecDeque<Bucket>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Closed,
    Open { until: Instant },
    Trying { under_way: u32, succeeded: u32 },
}

struct Bucket {
    begun: Instant,
    calls: u32,
    failures: u32,
    slow: u32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Outcome {
    Success,
    Slow,
    Failure,
    /// Says nothing of the service.
    Unknown,
}

impl Circuit {
    /// Lets a request through, or says how long the circuit will be open yet.
    fn enter(self: &Arc<Self>, limits: &Limits) -> Result<Permit, Duration> {
        let now = Instant::now();
        let mut inner = self.inner.lock();
        match &mut inner.state {
            State::Closed => {}
            State::Open { until } if now < *until => return Err(*until - now),
            State::Open { .. } => self.change(&mut inner, State::Trying { under_way: 1, succeeded: 0 }),
            // The probes under way will tell; nobody knows when.
            State::Trying { under_way, succeeded } if *under_way + *succeeded >= limits.probes => return Err(Duration::from_secs(1)),
            State::Trying { under_way, .. } => *under_way += 1,
        }
        Ok(Permit { circuit: self.clone(), generation: inner.generation, told: AtomicBool::new(false) })
    }

    fn change(&self, inner: &mut Inner, state: State) {
        inner.state = state;
        inner.generation += 1;
        inner.buckets.clear();
        let (number, word) = match state {
            State::Closed => (0, "closed"),
            State::Trying { .. } => (1, "trying"),
            State::Open { .. } => (2, "open"),
        };
        self.gauge.set(number);
        tracing::warn!(circuit = self.name, state = word, "a circuit changed its state");
    }

    fn tell(&self, generation: u64, outcome: Outcome, limits: &Limits) {
        let now = Instant::now();
        let mut inner = self.inner.lock();
        if inner.generation != generation {
            return;
        }
        match &mut inner.state {
            State::Closed => {
                if outcome != Outcome::Unknown && inner.count(outcome, now, limits) {
                    self.change(&mut inner, State::Open { until: now + limits.open_for });
                }
            }
            State::Open { .. } => {}
            State::Trying { under_way, succeeded } => {
                *under_way = under_way.saturating_sub(1);
                match outcome {
                    Outcome::Unknown => {}
                    Outcome::Success => {
                        *succeeded += 1;
                        if *succeeded >= limits.probes {
                            self.change(&mut inner, State::Closed);
                        }
                    }
                    Outcome::Failure | Outcome::Slow => self.change(&mut inner, State::Open { until: now + limits.open_for }),
                }
            }
        }
    }
}

impl Inner {
    /// Adds to the window; whether it is enough to open the circuit.
    fn count(&mut self, outcome: Outcome, now: Instant, limits: &Limits) -> bool {
        let width = (limits.window / 10).max(Duration::from_millis(1));
        self.buckets.retain(|b| now.duration_since(b.begun) < limits.window);
        if self.buckets.back().is_none_or(|b| now.duration_since(b.begun) >= width) {
            self.buckets.push_back(Bucket { begun: now, calls: 0, failures: 0, slow: 0 });
        }
        if let Some(bucket) = self.buckets.back_mut() {
            bucket.calls += 1;
            bucket.failures += u32::from(outcome == Outcome::Failure);
            bucket.slow += u32::from(outcome == Outcome::Slow);
        }
        let sum = |of: fn(&Bucket) -> u32| self.buckets.iter().map(|b| u64::from(of(b))).sum::<u64>();
        let (calls, failures, slow) = (sum(|b| b.calls), sum(|b| b.failures), sum(|b| b.slow));
        let reached = |part: u64, rate: u32| part > 0 && part * 100 >= calls * u64::from(rate);
        calls >= u64::from(limits.minimum) && (reached(failures, limits.failure_rate) || reached(slow, limits.slow_rate))
    }
}

/// A request that was let through. Dropped without a word (its client left), it gives its place back.
struct Permit {
    circuit: Arc<Circuit>,
    generation: u64,
    told: AtomicBool,
}

impl Permit {
    fn tell(&self, outcome: Outcome, limits: &Limits) {
        if !self.told.swap(true, Relaxed) {
            self.circuit.tell(self.generation, outcome, limits);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !*self.told.get_mut() {
            let mut inner = self.circuit.inner.lock();
            if inner.generation == self.generation
                && let State::Trying { under_way, .. } = &mut inner.state
            {
                *under_way = under_way.saturating_sub(1);
            }
        }
    }
}

struct Breaker {
    rules: Rules,
    circuits: Arc<Circuits>,
    environment: Arc<Environment>,
}

impl Breaker {
    fn outcome(&self, cx: &RequestContext) -> Outcome {
        let failed_upstream = |kind: &str| !kind.starts_with("client") && kind != "too-large";
        let waited = cx.times.forwarded.unwrap_or_default();
        match (cx.answered_by, cx.failure) {
            ("upstream" | "weir", Some(kind)) if !failed_upstream(kind) => Outcome::Unknown,
            ("upstream", Some(_)) => Outcome::Failure,
            ("weir", Some(_)) if matches!(cx.status, 502..=504) => Outcome::Failure,
            ("upstream", None) if self.rules.statuses.contains(&cx.status) => Outcome::Failure,
            ("upstream", None) => match (self.rules.slow_call, cx.times.upstream) {
                (Some(limit), Some(answered)) if answered.saturating_sub(waited) >= limit => Outcome::Slow,
                _ => Outcome::Success,
            },
            _ => Outcome::Unknown,
        }
    }
}

impl Plugin for Breaker {
    fn phases(&self) -> Phases {
        Phases::REQUEST | Phases::LOG
    }

    fn request(&self, cx: &mut RequestContext, _: &mut request::Parts) -> Flow {
        let name = match self.rules.per {
            Per::Service => cx.service.as_ref().map(|s| format!("service:{}", s.name)),
            Per::Route => cx.route.as_ref().map(|r| format!("route:{}", r.name)),
        };
        let Some(name) = name else { return Flow::Continue };
        let left = match self.circuits.get(&name).enter(&self.rules.limits) {
            Ok(permit) => {
                cx.state.insert(Arc::new(permit));
                return Flow::Continue;
            }
            Err(left) => left,
        };
        if cx.plan.as_ref().is_some_and(|plan| self.environment.cache.peek(&plan.epoch, &plan.key).is_some()) {
            return Flow::Continue;
        }
        self.environment.metrics.plugin(Config::NAME, "refused");
        let reply = match &self.rules.fallback {
            Some(reply) => reply.clone(),
            None => Reply::message(Config::NAME, StatusCode::SERVICE_UNAVAILABLE, "The service is failing, try again later"),
        };
        let seconds = left.as_millis().div_ceil(1000).max(1);
        Flow::Reply(reply.with(header::RETRY_AFTER.as_str(), &seconds.to_string()))
    }

    fn log(&self, cx: &RequestContext) {
        if let Some(permit) = cx.state.get::<Arc<Permit>>() {
            permit.tell(self.outcome(cx), &self.rules.limits);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Rig, Seen, Upstream, environment, errors, get};
    use std::time::Duration;
    use weir_store::Store;

    const SMALL: &str = "{minimum_calls: 4, window: 10s, open_for: 30s, probes: 2}";

    fn rig(config: &str, status: u16) -> Rig {
        Rig::new(&[("circuit-breaker", config)]).serving("orders").upstream_status(status)
    }

    async fn runs(rig: &Rig, count: usize) -> Vec<u16> {
        let mut all = Vec::new();
        for _ in 0..count {
            all.push(rig.run(get("/")).await.status());
        }
        all
    }

    fn state(rig: &Rig) -> String {
        let text = rig.environment.metrics.text(&rig.environment);
        text.lines().find_map(|l| l.strip_prefix("weir_circuit_state{circuit=\"service:orders\"} ")).unwrap().to_owned()
    }

    fn refused(seen: &Seen) -> bool {
        seen.status() == 503 && !seen.forwarded()
    }

    #[tokio::test(start_paused = true)]
    async fn half_of_at_least_so_many_failures_open_it() {
        let rig = rig(SMALL, 200);
        assert_eq!(runs(&rig, 2).await, [200, 200]);
        let rig = rig.upstream_status(500);
        assert_eq!(runs(&rig, 2).await, [500, 500], "the fourth call opens it");
        assert_eq!(state(&rig), "2");
        let seen = rig.run(get("/")).await;
        assert!(refused(&seen));
        assert_eq!((seen.header("retry-after"), seen.body.as_str()), (Some("30"), r#"{"message":"The service is failing, try again later"}"#));
        assert_eq!((rig.calls(), rig.outcome("circuit-breaker", "refused")), (4, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn too_few_calls_or_failures_do_not() {
        let failing = rig(SMALL, 500);
        runs(&failing, 3).await;
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(runs(&failing, 3).await, [500; 3], "the window has gone on");
        let mixed = rig("{minimum_calls: 4, failure_rate: 60}", 200);
        runs(&mixed, 2).await;
        let mixed = mixed.upstream_status(502);
        assert_eq!(runs(&mixed, 2).await, [502, 502]);
        assert_eq!(state(&mixed), "0");
        let fine = rig(SMALL, 404);
        assert_eq!(runs(&fine, 20).await, [404; 20]);
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_while_probes_decide() {
        for (later, calls, closed) in [(200, 6, true), (500, 5, false)] {
            let rig = rig(SMALL, 500);
            runs(&rig, 4).await;
            tokio::time::advance(Duration::from_secs(29)).await;
            let seen = rig.run(get("/")).await;
            assert_eq!((refused(&seen), seen.header("retry-after")), (true, Some("1")));
            tokio::time::advance(Duration::from_secs(2)).await;
            let rig = rig.upstream_status(later);
            runs(&rig, 2).await;
            assert_eq!((rig.calls(), state(&rig).as_str()), (calls, if closed { "0" } else { "2" }));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_probes_at_a_time_and_one_that_left_gives_its_place_back() {
        let mut rig = rig("{minimum_calls: 1, probes: 1}", 500);
        runs(&rig, 1).await;
        tokio::time::advance(Duration::from_secs(31)).await;
        rig.upstream = Upstream::Hangs;
        {
            let probe = rig.run(get("/"));
            tokio::pin!(probe);
            tokio::select! {
                biased;
                _ = &mut probe => panic!("it hangs"),
                () = tokio::task::yield_now() => {}
            }
            assert_eq!(state(&rig), "1");
            assert!(refused(&rig.run(get("/")).await));
        }
        rig.upstream = Upstream::Answers;
        let rig = rig.upstream_status(200);
        assert_eq!(runs(&rig, 2).await, [200, 200]);
        assert_eq!(state(&rig), "0");
    }

    #[tokio::test(start_paused = true)]
    async fn a_fallback_instead_of_the_error() {
        let rig = rig("{minimum_calls: 1, fallback: {status: 200, headers: {Content-Type: application/json}, body: '[]'}}", 500);
        runs(&rig, 1).await;
        let seen = rig.run(get("/")).await;
        assert_eq!((seen.status(), seen.body.as_str(), seen.header("content-type"), seen.header("retry-after")), (200, "[]", Some("application/json"), Some("30")));
    }

    #[tokio::test(start_paused = true)]
    async fn the_state_outlives_a_configuration_and_other_circuits_are_their_own() {
        let (environment, register) = (environment(Store::memory()), crate::register());
        let make = |name: &str| Rig::with(environment.clone(), &register, &[("circuit-breaker", "minimum_calls: 1")]).serving(name).upstream_status(500);
        runs(&make("orders"), 1).await;
        assert!(refused(&make("orders").run(get("/")).await));
        assert!(!refused(&make("deals").run(get("/")).await));
    }

    #[tokio::test(start_paused = true)]
    async fn answers_of_plugins_do_not_count() {
        let rig = Rig::new(&[("circuit-breaker", "{minimum_calls: 1, statuses: [401]}"), ("token-validator", "secret: a-secret-of-thirty-two-bytes-long")]).serving("orders");
        assert_eq!(runs(&rig, 3).await, [401; 3]);
        assert_eq!(rig.outcome("circuit-breaker", "refused"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_answers_open_it_too() {
        let rig = rig("{minimum_calls: 4, slow_call: 0s, slow_rate: 100}", 200);
        assert_eq!(runs(&rig, 5).await, [200, 200, 200, 200, 503], "nothing is faster than no time");
        let unhurried = super::tests::rig("{minimum_calls: 1, slow_call: 1h}", 200);
        assert_eq!(runs(&unhurried, 5).await, [200; 5]);
    }

    #[test]
    fn mistakes() {
        for (config, message) in [
            ("failure_rate: 0", "failure_rate"),
            ("failure_rate: 101", "failure_rate"),
            ("window: 0", "a time above zero"),
            ("per: host", "host"),
            ("fallback: {status: 99}", "status"),
            ("fallback: {headers: {'a b': x}}", "not a header name"),
        ] {
            let found = errors("circuit-breaker", config);
            assert!(found.iter().any(|e| e.to_string().contains(message)), "{config}: {found:?}");
        }
    }
}
