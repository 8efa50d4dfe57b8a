//! What is counted, under the field's usual names, in Prometheus' text format.

use crate::{RequestContext, dns::DnsMetrics, resilience::ResilienceMetrics};
use ahash::RandomState;
use indexmap::{Equivalent, IndexMap};
pub use prometheus::IntCounter;
use prometheus::{core::Collector, Encoder, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};
use std::{
    cell::RefCell,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};
use weir_cache::{Report, Tier, Verdict};

/// All metrics of the process.
pub struct Metrics {
    /// Tells the metrics of one process apart, for what its threads remember.
    id: u64,
    registry: Registry,
    requests: IntCounterVec,
    duration: HistogramVec,
    upstream: HistogramVec,
    bytes: IntCounterVec,
    cache: IntCounterVec,
    refusals: IntCounterVec,
    lock_waits: Histogram,
    plugins: IntCounterVec,
    failures: IntCounterVec,
    upstream_up: IntGaugeVec,
    upstream_load: IntGaugeVec,
    upstream_out: IntGaugeVec,
    refused: IntGaugeVec,
    cache_trusted: IntGauge,
    cache_distrusted: IntGauge,
    cache_bytes: IntGauge,
    cache_entries: IntGauge,
    store_up: IntGauge,
    reloads: IntCounterVec,
    warm_ups: IntCounterVec,
    guests: IntCounterVec,
    resilience: ResilienceMetrics,
    dns: DnsMetrics,
    /// Connections open now.
    pub connections: IntGauge,
    /// Connections accepted.
    pub accepted: IntCounter,
    /// Requests that the fast lane forwarded, from the first byte to the last.
    pub fast_forwards: IntCounter,
    /// Lines of the access log that were dropped.
    pub log_dropped: IntCounter,
}

/// The counters that requests of one kind need. Every thread remembers those that it used, so that a request costs one look-up, in a
/// table that no other thread touches, instead of one for every counter in tables that all share.
struct RequestCounters {
    statuses: Vec<(u16, IntCounter)>,
    duration: Histogram,
    upstream: Option<Histogram>,
    bytes_in: IntCounter,
    bytes_out: IntCounter,
}

impl RequestCounters {
    fn status(&mut self, status: u16, make: impl FnOnce() -> IntCounter) -> &IntCounter {
        let at = self.statuses.iter().position(|(known, _)| *known == status).unwrap_or_else(|| {
            self.statuses.push((status, make()));
            self.statuses.len() - 1
        });
        &self.statuses[at].1
    }
}

#[derive(PartialEq, Eq, Hash)]
struct Labels {
    metrics: u64,
    door: Box<str>,
    route: Box<str>,
    service: Box<str>,
}

#[derive(Hash)]
struct LabelsRef<'a> {
    metrics: u64,
    door: &'a str,
    route: &'a str,
    service: &'a str,
}

impl LabelsRef<'_> {
    fn owned(&self) -> Labels {
        Labels { metrics: self.metrics, door: self.door.into(), route: self.route.into(), service: self.service.into() }
    }
}

impl Equivalent<Labels> for LabelsRef<'_> {
    fn equivalent(&self, known: &Labels) -> bool {
        self.metrics == known.metrics && *self.door == *known.door && *self.route == *known.route && *self.service == *known.service
    }
}

/// Kinds of requests that a thread remembers.
const MOST_KNOWN: usize = 16 * 1024;

thread_local!(static KNOWN: RefCell<IndexMap<Labels, RequestCounters, RandomState>> = RefCell::default());

/// What pages from the cache are answered with on the fast lane.
pub const HIT_STATUSES: [u16; 6] = [200, 206, 304, 404, 410, 416];

/// The counters that answers of one page rule from the cache need, looked up once when the rule is compiled: a hit adds numbers and searches
/// nothing.
pub struct HitCounters {
    statuses: [(u16, IntCounter); HIT_STATUSES.len()],
    duration: Histogram,
    bytes: IntCounter,
    memory: IntCounter,
    store: IntCounter,
    client_gone: IntCounter,
}

impl HitCounters {
    /// An answer from this tier; goes with [`HitCounters::sent`].
    pub fn hit(&self, tier: Tier) {
        match tier {
            Tier::Memory => &self.memory,
            Tier::Store => &self.store,
        }
        .inc();
    }

    /// An answer was sent with this status (one of [`HIT_STATUSES`]), so many bytes of body, in this time; `gone`: the client did not take all of it.
    pub fn sent(&self, status: u16, bytes: u64, time: std::time::Duration, gone: bool) {
        if let Some((_, counter)) = self.statuses.iter().find(|(known, _)| *known == status) {
            counter.inc();
        }
        self.duration.observe(time.as_secs_f64());
        self.bytes.inc_by(bytes);
        if gone {
            self.client_gone.inc();
        }
    }
}

const SECONDS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Requests answered so far, by all doors.
    pub fn answered(&self) -> u64 {
        self.requests.collect().iter().flat_map(|family| family.get_metric()).map(|metric| metric.get_counter().get_value() as u64).sum()
    }

    /// A fresh set.
    pub fn new() -> Metrics {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let histograms = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, HistogramVec::new(HistogramOpts::new(name, help).buckets(SECONDS.to_vec()), labels))
        };
        Metrics {
            id: IDS.fetch_add(1, Relaxed),
            requests: counters("weir_requests_total", "Requests answered, by door, class or route, and status.", &["door", "route", "status"]),
            duration: histograms("weir_request_duration_seconds", "From the request's head to the answer's last byte.", &["door", "route"]),
            upstream: histograms("weir_upstream_duration_seconds", "From the request's head to the upstream's head.", &["service"]),
            bytes: counters("weir_bytes_total", "Body bytes from and to clients.", &["door", "direction"]),
            cache: counters("weir_cache_requests_total", "What the cache did, by policy, verdict and tier.", &["policy", "verdict", "tier"]),
            refusals: counters("weir_cache_reasons_total", "Why an answer was not from the cache, or not stored.", &["policy", "reason"]),
            lock_waits: register(
                &registry,
                Histogram::with_opts(HistogramOpts::new("weir_cache_wait_seconds", "Time that requests waited for another's fill.").buckets(SECONDS.to_vec())),
            ),
            plugins: counters("weir_plugin_outcomes_total", "What plugins decided.", &["plugin", "outcome"]),
            failures: counters("weir_failures_total", "Requests that could not be served, by cause.", &["door", "cause"]),
            upstream_up: register(&registry, IntGaugeVec::new(Opts::new("weir_upstream_up", "1 while the endpoint is in use."), &["upstream", "endpoint"])),
            upstream_load: register(&registry, IntGaugeVec::new(Opts::new("weir_upstream_in_flight", "Requests under way at the endpoint."), &["upstream", "endpoint"])),
            upstream_out: register(
                &registry,
                IntGaugeVec::new(Opts::new("weir_upstream_left_out", "Times that the endpoint was taken out since the start."), &["upstream", "endpoint"]),
            ),
            refused: register(
                &registry,
                IntGaugeVec::new(Opts::new("weir_cache_refused", "Fetched answers that were not stored since the start, by reason."), &["reason"]),
            ),
            cache_trusted: register(&registry, IntGauge::new("weir_cache_memory_trusted", "1 while it is certain that no purge was missed.")),
            cache_distrusted: register(
                &registry,
                IntGauge::new("weir_cache_memory_distrusted", "Times since the start that memory forgot everything because a purge was missed."),
            ),
            cache_bytes: register(&registry, IntGauge::new("weir_cache_memory_bytes", "Bytes in the memory tier.")),
            cache_entries: register(&registry, IntGauge::new("weir_cache_memory_entries", "Entries in the memory tier.")),
            store_up: register(&registry, IntGauge::new("weir_store_up", "1 while the store answers.")),
            reloads: counters("weir_reloads_total", "Configurations loaded.", &["outcome"]),
            warm_ups: counters("weir_warm_up_requests_total", "Warm-up requests.", &["outcome"]),
            guests: counters("weir_guest_tokens_total", "Guest tokens issued.", &["issuer"]),
            connections: register(&registry, IntGauge::new("weir_connections", "Client connections open now.")),
            log_dropped: register(
                &registry,
                IntCounter::new("weir_access_log_dropped_total", "Lines of the access log for which there was no room."),
            ),
            fast_forwards: register(
                &registry,
                IntCounter::new("weir_fast_forwards_total", "Requests that the fast lane forwarded, from the first byte to the last."),
            ),
            resilience: ResilienceMetrics::new(&registry),
            dns: DnsMetrics::new(&registry),
            accepted: register(&registry, IntCounter::new("weir_connections_total", "Client connections accepted.")),
            registry,
        }
    }

    /// A finished request. `route`: the route's name, or the edge's class of the request.
    pub fn request(&self, door: &str, route: &str, cx: &RequestContext) {
        let service = cx.times.upstream.and(cx.service.as_ref()).map_or("", |service| service.name.as_str());
        let labels = LabelsRef { metrics: self.id, door, route, service };
        KNOWN.with_borrow_mut(|known| {
            if known.len() >= MOST_KNOWN {
                known.clear();
            }
            let found = match known.get_index_of(&labels) {
                Some(found) => found,
                None => known.insert_full(labels.owned(), self.counters_of(&labels)).0,
            };
            let counters = &mut known[found];
            counters.status(cx.status, || self.requests.with_label_values(&[door, route, itoa::Buffer::new().format(cx.status)])).inc();
            counters.duration.observe(cx.times.total.unwrap_or_else(|| cx.started.elapsed()).as_secs_f64());
            if let (Some(time), Some(upstream)) = (cx.times.upstream, &counters.upstream) {
                upstream.observe(time.as_secs_f64());
            }
            if cx.bytes.0 > 0 {
                counters.bytes_in.inc_by(cx.bytes.0);
            }
            counters.bytes_out.inc_by(cx.bytes.1);
        });
        if let Some(cause) = cx.failure {
            self.failures.with_label_values(&[door, cause]).inc();
        }
    }

    fn counters_of(&self, labels: &LabelsRef<'_>) -> RequestCounters {
        RequestCounters {
            statuses: Vec::new(),
            duration: self.duration.with_label_values(&[labels.door, labels.route]),
            upstream: (!labels.service.is_empty()).then(|| self.upstream.with_label_values(&[labels.service])),
            bytes_in: self.bytes.with_label_values(&[labels.door, "in"]),
            bytes_out: self.bytes.with_label_values(&[labels.door, "out"]),
        }
    }

    /// The counters for hits that the fast lane serves at a door, for requests of one kind under one cache policy.
    pub fn hits(&self, door: &str, kind: &str, policy: &str) -> HitCounters {
        let status = |status: &str| self.requests.with_label_values(&[door, kind, status]);
        HitCounters {
            statuses: HIT_STATUSES.map(|known| (known, status(itoa::Buffer::new().format(known)))),
            duration: self.duration.with_label_values(&[door, kind]),
            bytes: self.bytes.with_label_values(&[door, "out"]),
            memory: self.cache.with_label_values(&[policy, "hit", "memory"]),
            store: self.cache.with_label_values(&[policy, "hit", "store"]),
            client_gone: self.failures.with_label_values(&[door, "client-gone"]),
        }
    }

    /// What the cache did for a request.
    pub fn cache(&self, policy: &str, report: &Report) {
        let verdict = match report.verdict {
            Verdict::Hit => "hit",
            Verdict::Miss => "miss",
            Verdict::Stale => "stale",
            Verdict::Bypass => "bypass",
            Verdict::Refresh => "refresh",
        };
        let tier = match report.tier {
            Some(Tier::Memory) => "memory",
            Some(Tier::Store) => "store",
            None => "none",
        };
        self.cache.with_label_values(&[policy, verdict, tier]).inc();
        if let Some(reason) = report.detail.filter(|reason| *reason != weir_cache::reasons::UNDECIDED) {
            self.cache_reason(policy, reason);
        }
        if report.collapsed {
            self.lock_waits.observe(report.waited.as_secs_f64());
        }
    }

    /// Why an answer was not from the cache, or is not stored: known at the head, or only at the end of the body.
    pub fn cache_reason(&self, policy: &str, reason: &str) {
        self.refusals.with_label_values(&[policy, reason]).inc();
    }

    /// What a plugin decided, in a word of its own.
    pub fn plugin(&self, plugin: &str, outcome: &str) {
        self.plugins.with_label_values(&[plugin, outcome]).inc();
    }

    /// The counter behind [`Metrics::plugin`], for outcomes on hot paths: looked up once.
    pub fn plugin_counter(&self, plugin: &str, outcome: &str) -> IntCounter {
        self.plugins.with_label_values(&[plugin, outcome])
    }

    /// A reload.
    pub fn reload(&self, ok: bool) {
        self.reloads.with_label_values(&[if ok { "ok" } else { "refused" }]).inc();
    }

    /// A warm-up request.
    pub fn warm_up(&self, ok: bool) {
        self.warm_ups.with_label_values(&[if ok { "ok" } else { "failed" }]).inc();
    }

    /// A guest token: `local`, `remote`, or `fallback` when the auth service did not answer.
    pub fn guest(&self, issuer: &str) {
        self.guests.with_label_values(&[issuer]).inc();
    }

    /// The text, after asking the endpoints and the store how they are.
    pub fn text(&self, environment: &crate::Environment) -> String {
        // Endpoints that are no longer in force are not shown.
        for gauge in [&self.upstream_up, &self.upstream_load, &self.upstream_out] {
            gauge.reset();
        }
        for upstream in environment.endpoints.view() {
            for endpoint in &upstream.endpoints {
                let labels = [upstream.name.as_str(), endpoint.address.as_str()];
                self.upstream_up.with_label_values(&labels).set(i64::from(endpoint.is_in_use()));
                self.upstream_load.with_label_values(&labels).set(i64::from(endpoint.in_flight));
                self.upstream_out.with_label_values(&labels).set(i64::try_from(endpoint.left_out).unwrap_or(i64::MAX));
            }
        }
        self.resilience.update(&environment.resilience);
        self.dns.update(environment.endpoints.dns());
        let cache = environment.cache.stats();
        for (reason, count) in &cache.refused {
            self.refused.with_label_values(&[reason]).set(i64::try_from(*count).unwrap_or(i64::MAX));
        }
        self.cache_trusted.set(i64::from(cache.memory_trusted));
        self.cache_distrusted.set(i64::try_from(cache.distrusted).unwrap_or(i64::MAX));
        self.cache_bytes.set(i64::try_from(cache.memory_bytes).unwrap_or(i64::MAX));
        self.cache_entries.set(i64::try_from(cache.memory_entries).unwrap_or(i64::MAX));
        self.store_up.set(i64::from(environment.store.health.check().is_ok()));
        let mut out = Vec::new();
        // The encoder fails only when its writer does; a Vec does not.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut out);
        String::from_utf8(out).unwrap_or_default()
    }

    /// For plugins and parts that bring metrics of their own.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }
}

/// Names and labels are constants of this file, so that neither step can fail in a build that passed its tests.
pub(crate) fn register<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let collector = made.expect("metric names and labels are valid");
    registry.register(Box::new(collector.clone())).expect("metric names are unique");
    collector
}
