//! `prometheus`: Kong's metrics under Kong's names, beside Weir's own.

use crate::{Configured, Live, doubtful};
use parking_lot::Mutex;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use schemars::JsonSchema;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use weir_config::{Diagnostic, Node};
use weir_gateway::{BuildEnv, Environment, Phases, Plugin, RequestContext, upstream::Upstream};

/// Counts requests of services in Kong's metrics, so that dashboards and alerts made for Kong go on working. They are on the page that has
/// Weir's own metrics (`/metrics` of the admin port) and keep their values when the configuration is loaded anew.
///
/// | metric | labels | with |
/// |---|---|---|
/// | `kong_http_requests_total` | service, route, code, source, workspace, consumer | `status_code_metrics` |
/// | `kong_request_latency_ms`, `kong_kong_latency_ms`, `kong_upstream_latency_ms` | service, route, workspace | `latency_metrics` |
/// | `kong_bandwidth_bytes` | service, route, direction (`ingress`, `egress`), workspace, consumer | `bandwidth_metrics` |
/// | `kong_upstream_target_health` | upstream, target, address, state, subsystem | `upstream_health_metrics` |
/// | `kong_nginx_connections_total` | node_id, subsystem, state (`active`, `accepted`, `handled`, `total`) | always |
/// | `kong_nginx_requests_total` | node_id, subsystem | always |
/// | `kong_node_info` | node_id, version (Weir's) | always |
/// | `kong_datastore_reachable` | | always |
///
/// `source` is `service` or `kong` (a plugin, the cache or an error answered). Bandwidth is that of bodies. The workspace is `default`. A target's health is shown from the
/// first request through its upstream on. As in Kong, requests that match no route are not counted; those of a route without a
/// service have an empty `service`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Put the consumer's name into the label `consumer`; else it is empty.
    pub per_consumer: bool,
    /// Count requests by status.
    pub status_code_metrics: bool,
    /// Measure times: of the whole request, in Weir, and waiting for the service.
    pub latency_metrics: bool,
    /// Count bytes.
    pub bandwidth_metrics: bool,
    /// Show the health of targets.
    pub upstream_health_metrics: bool,
    /// For Kong's AI plugins, which Weir does not have: accepted, without effect.
    pub ai_metrics: bool,
    /// For Kong's filters in WebAssembly, which Weir does not have: accepted, without effect.
    pub wasm_metrics: bool,
}

impl Configured for Config {
    const NAME: &'static str = "prometheus";
    const PRIORITY: i32 = 13;
    const EXAMPLE: &'static str = "per_consumer: true
status_code_metrics: true
latency_metrics: true
bandwidth_metrics: true
upstream_health_metrics: true
";

    type Ready = Config;

    fn ready(self, _: &Node) -> Result<Config, Vec<Diagnostic>> {
        Ok(self)
    }

    fn warnings(at: &Node) -> Vec<Diagnostic> {
        let unused = [("ai_metrics", "`ai_metrics` has no effect: there are no AI plugins"), ("wasm_metrics", "`wasm_metrics` has no effect: there are no filters in WebAssembly")];
        unused.into_iter().filter(|(key, _)| at.get(key).is_some()).map(|(key, why)| doubtful(at, key, why)).collect()
    }

    fn build(ready: Config, env: &BuildEnv<'_>, live: &Live) -> Arc<dyn Plugin> {
        let metrics = live.kong_metrics.get_or_init(|| KongMetrics::new(env.environment)).clone();
        metrics.show_health.fetch_or(ready.upstream_health_metrics, Relaxed);
        Arc::new(Prometheus { config: ready, metrics })
    }
}

struct Prometheus {
    config: Config,
    metrics: Arc<KongMetrics>,
}

/// The metrics, once a process.
pub struct KongMetrics {
    requests: IntCounterVec,
    request: HistogramVec,
    own: HistogramVec,
    upstream: HistogramVec,
    bandwidth: IntCounterVec,
    show_health: AtomicBool,
    /// Upstreams that were used, by name.
    seen: Mutex<BTreeMap<String, Weak<Upstream>>>,
}

/// Kong's buckets, in milliseconds.
const OWN_BUCKETS: [f64; 17] = [1.0, 2.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0, 75.0, 100.0, 200.0, 500.0, 750.0, 1000.0, 3000.0, 6000.0];
const UPSTREAM_BUCKETS: [f64; 13] = [25.0, 50.0, 80.0, 100.0, 250.0, 400.0, 700.0, 1000.0, 2000.0, 5000.0, 10_000.0, 30_000.0, 60_000.0];
const WORKSPACE: &str = "default";

impl KongMetrics {
    fn new(environment: &Arc<Environment>) -> Arc<KongMetrics> {
        let registry = environment.metrics.registry();
        let counters = |name: &str, help: &str, labels: &[&str]| register(registry, IntCounterVec::new(Opts::new(name, help), labels));
        let histograms = |name: &str, help: &str, buckets: &[f64]| {
            register(registry, HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), &["service", "route", "workspace"]))
        };
        let metrics = Arc::new(KongMetrics {
            requests: counters(
                "kong_http_requests_total",
                "Requests by service, route, status and consumer.",
                &["service", "route", "code", "source", "workspace", "consumer"],
            ),
            request: histograms("kong_request_latency_ms", "Time of whole requests.", &UPSTREAM_BUCKETS),
            own: histograms("kong_kong_latency_ms", "Time that requests spent here, before the service was asked.", &OWN_BUCKETS),
            upstream: histograms("kong_upstream_latency_ms", "Time until the service began to answer.", &UPSTREAM_BUCKETS),
            bandwidth: counters("kong_bandwidth_bytes", "Body bytes.", &["service", "route", "direction", "workspace", "consumer"]),
            show_health: AtomicBool::new(false),
            seen: Mutex::default(),
        });
        let gauges = |name: &str, help: &str, labels: &[&str]| IntGaugeVec::new(Opts::new(name, help), labels).expect("metric names and labels are valid");
        let asked = Asked {
            environment: Arc::downgrade(environment),
            metrics: Arc::downgrade(&metrics),
            health: gauges(
                "kong_upstream_target_health",
                "1 for the state that a target is in.",
                &["upstream", "target", "address", "state", "subsystem"],
            ),
            connections: gauges("kong_nginx_connections_total", "Connections by state.", &["node_id", "subsystem", "state"]),
            requests: gauges("kong_nginx_requests_total", "Requests answered.", &["node_id", "subsystem"]),
            node: gauges("kong_node_info", "1 for what is running.", &["node_id", "version"]),
            datastore: IntGauge::new("kong_datastore_reachable", "1 while the store answers.").expect("metric names and labels are valid"),
        };
        if let Err(error) = registry.register(Box::new(asked)) {
            tracing::warn!(plugin = Config::NAME, %error, "metrics are registered already");
        }
        metrics
    }
}

/// Registers a metric. Names and labels are constants of this file; that a name is taken can only mean two registers of plugins in one
/// environment, and then the first one's metrics are shown.
fn register<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let collector = made.expect("metric names and labels are valid");
    if let Err(error) = registry.register(Box::new(collector.clone())) {
        tracing::warn!(plugin = Config::NAME, %error, "metrics are registered already");
    }
    collector
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

impl Plugin for Prometheus {
    fn phases(&self) -> Phases {
        Phases::LOG
    }

    fn log(&self, cx: &RequestContext) {
        if cx.route.is_none() && cx.service.is_none() {
            return;
        }
        let metrics = &*self.metrics;
        let route = cx.route.as_ref().map_or("", |route| route.name.as_str());
        let service = cx.service.as_ref().map_or("", |service| service.name.as_str());
        let consumer = cx.consumer.as_ref().filter(|_| self.config.per_consumer).map(|c| c.entity.username.as_deref().unwrap_or(&c.entity.id)).unwrap_or("");
        if self.config.status_code_metrics {
            let source = if cx.answered_by == "upstream" { "service" } else { "kong" };
            metrics.requests.with_label_values(&[service, route, &cx.status.to_string(), source, WORKSPACE, consumer]).inc();
        }
        if self.config.latency_metrics {
            let labels = [service, route, WORKSPACE];
            let total = cx.times.total.unwrap_or_else(|| cx.started.elapsed());
            metrics.request.with_label_values(&labels).observe(millis(total));
            metrics.own.with_label_values(&labels).observe(millis(cx.times.forwarded.unwrap_or(total)));
            if let (Some(begun), Some(answered)) = (cx.times.forwarded, cx.times.upstream) {
                metrics.upstream.with_label_values(&labels).observe(millis(answered.saturating_sub(begun)));
            }
        }
        if self.config.bandwidth_metrics {
            for (direction, bytes) in [("ingress", cx.bytes.0), ("egress", cx.bytes.1)] {
                if bytes > 0 {
                    metrics.bandwidth.with_label_values(&[service, route, direction, WORKSPACE, consumer]).inc_by(bytes);
                }
            }
        }
        if let (true, Some(service)) = (self.config.upstream_health_metrics, &cx.service) {
            let mut seen = metrics.seen.lock();
            let known = seen.get(&service.upstream.name).is_some_and(|u| std::ptr::eq(u.as_ptr(), Arc::as_ptr(&service.upstream)));
            if !known {
                seen.insert(service.upstream.name.clone(), Arc::downgrade(&service.upstream));
            }
        }
    }
}

/// What is looked up when the metrics are read.
struct Asked {
    environment: Weak<Environment>,
    metrics: Weak<KongMetrics>,
    health: IntGaugeVec,
    connections: IntGaugeVec,
    requests: IntGaugeVec,
    node: IntGaugeVec,
    datastore: IntGauge,
}

impl Collector for Asked {
    fn desc(&self) -> Vec<&Desc> {
        let of_targets = self.health.desc().into_iter().chain(self.connections.desc());
        of_targets.chain(self.requests.desc()).chain(self.node.desc()).chain(self.datastore.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let (Some(environment), Some(metrics)) = (self.environment.upgrade(), self.metrics.upgrade()) else { return vec![] };
        self.health.reset();
        if metrics.show_health.load(Relaxed) {
            let mut seen = metrics.seen.lock();
            seen.retain(|_, upstream| upstream.strong_count() > 0);
            for (name, upstream) in seen.iter().filter_map(|(n, u)| Some((n, u.upgrade()?))) {
                for endpoint in upstream.endpoints() {
                    let is = if endpoint.is_up() { "healthy" } else { "unhealthy" };
                    for state in ["healthchecks_off", "healthy", "unhealthy", "dns_error"] {
                        let labels = [name.as_str(), &endpoint.target, &endpoint.name, state, "http"];
                        self.health.with_label_values(&labels).set(i64::from(state == is));
                    }
                }
            }
        }
        let accepted = i64::try_from(environment.metrics.accepted.get()).unwrap_or(i64::MAX);
        let requests = i64::try_from(environment.metrics.answered()).unwrap_or(i64::MAX);
        for (state, value) in [("active", environment.metrics.connections.get()), ("accepted", accepted), ("handled", accepted), ("total", requests)] {
            self.connections.with_label_values(&["", "http", state]).set(value);
        }
        self.requests.with_label_values(&["", "http"]).set(requests);
        self.node.with_label_values(&["", env!("CARGO_PKG_VERSION")]).set(1);
        self.datastore.set(i64::from(environment.store.health.check().is_ok()));
        let mut all = self.health.collect();
        all.extend(self.connections.collect());
        all.extend(self.requests.collect());
        all.extend(self.node.collect());
        all.extend(self.datastore.collect());
        all.retain(|family| !family.get_metric().is_empty());
        all
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Rig, environment, get};
    use weir_store::Store;

    const ALL: &str = "{per_consumer: true, status_code_metrics: true, latency_metrics: true, bandwidth_metrics: true, upstream_health_metrics: true}";

    fn text(rig: &Rig) -> String {
        rig.environment.metrics.text(&rig.environment)
    }

    fn value(text: &str, series: &str) -> Option<String> {
        text.lines().find_map(|l| l.strip_prefix(series)).map(|v| v.trim().to_owned())
    }

    #[tokio::test]
    async fn requests_bytes_times_and_health_under_kongs_names() {
        let rig = Rig::new(&[("prometheus", ALL)]).serving("orders").upstream_status(201);
        let ask = get("/").as_consumer("kim");
        rig.run(ask.clone()).await;
        rig.run(ask).await;
        let text = text(&rig);
        let requests = r#"kong_http_requests_total{code="201",consumer="kim",route="",service="orders",source="service",workspace="default"}"#;
        assert_eq!(value(&text, requests).as_deref(), Some("2"), "{text}");
        for name in ["kong_request_latency_ms", "kong_kong_latency_ms", "kong_upstream_latency_ms"] {
            let count = format!(r#"{name}_count{{route="",service="orders",workspace="default"}}"#);
            assert_eq!(value(&text, &count).as_deref(), Some("2"), "{name}");
        }
        let egress = r#"kong_bandwidth_bytes{consumer="kim",direction="egress",route="",service="orders",workspace="default"}"#;
        assert_eq!(value(&text, egress).as_deref(), Some("10"));
        for (state, is) in [("healthy", "1"), ("unhealthy", "0"), ("healthchecks_off", "0"), ("dns_error", "0")] {
            let health = format!(r#"kong_upstream_target_health{{address="192.0.2.1:80",state="{state}",subsystem="http",target="192.0.2.1:80",upstream="192.0.2.1:80"}}"#);
            assert_eq!(value(&text, &health).as_deref(), Some(is), "{state}");
        }
        assert_eq!(value(&text, "kong_datastore_reachable").as_deref(), Some("1"));
    }

    #[tokio::test]
    async fn by_default_only_the_process_is_measured() {
        let rig = Rig::new(&[("prometheus", "{}")]).serving("orders");
        rig.run(get("/")).await;
        let text = text(&rig);
        let names: Vec<&str> = text.lines().filter(|l| l.starts_with("# TYPE kong_")).map(|l| l.split(' ').nth(2).unwrap()).collect();
        assert_eq!(names, ["kong_datastore_reachable", "kong_nginx_connections_total", "kong_nginx_requests_total", "kong_node_info"]);
    }

    #[tokio::test]
    async fn who_answered_is_told_and_the_consumer_only_if_asked_for() {
        let rig = Rig::new(&[("prometheus", "status_code_metrics: true"), ("token-validator", "secret: a-secret-of-thirty-two-bytes-long")]).serving("orders");
        rig.run(get("/").as_consumer("kim")).await;
        let requests = r#"kong_http_requests_total{code="401",consumer="",route="",service="orders",source="kong",workspace="default"}"#;
        assert_eq!(value(&text(&rig), requests).as_deref(), Some("1"));
    }

    #[tokio::test]
    async fn values_outlive_a_configuration_and_requests_without_a_route_are_not_counted() {
        let (environment, register) = (environment(Store::memory()), crate::register());
        for count in ["1", "2"] {
            let rig = Rig::with(environment.clone(), &register, &[("prometheus", "status_code_metrics: true")]).serving("orders");
            rig.run(get("/")).await;
            let requests = r#"kong_http_requests_total{code="200",consumer="",route="",service="orders",source="service",workspace="default"}"#;
            assert_eq!(value(&text(&rig), requests).as_deref(), Some(count));
        }
        let rig = Rig::with(environment.clone(), &register, &[("prometheus", "status_code_metrics: true")]);
        rig.run(get("/")).await;
        assert_eq!(text(&rig).matches("kong_http_requests_total{").count(), 1);
    }
}
