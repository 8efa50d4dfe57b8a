//! `upstreams` and their `targets`.

use super::{Draft, reference, tls};
use crate::{Concurrency, Deadlines, Resilience, Retry, Target, Upstream, resilience};
use crate::net::HostPort;
use crate::node::Kind;
use crate::reader::{Context, Fields};
use crate::{Millis, Node, Spanned};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Settings of an upstream beside its targets: what [`Upstream::settings`] decodes to. Defaults are Kong's.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct UpstreamSettings {
    /// Unique name.
    #[schemars(length(min = 1))]
    pub name: String,
    #[serde(default)]
    pub id: Option<String>,
    /// How an endpoint is picked.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// What consistent hashing hashes.
    #[serde(default)]
    pub hash_on: HashOn,
    /// What it hashes when `hash_on` gives nothing.
    #[serde(default)]
    pub hash_fallback: HashOn,
    #[serde(default)]
    pub hash_on_header: Option<String>,
    #[serde(default)]
    pub hash_fallback_header: Option<String>,
    /// Cookie to hash on; made if the client has none.
    #[serde(default)]
    pub hash_on_cookie: Option<String>,
    #[serde(default)]
    pub hash_on_cookie_path: Option<String>,
    #[serde(default)]
    pub hash_on_query_arg: Option<String>,
    #[serde(default)]
    pub hash_fallback_query_arg: Option<String>,
    #[serde(default)]
    pub hash_on_uri_capture: Option<String>,
    #[serde(default)]
    pub hash_fallback_uri_capture: Option<String>,
    /// Cookie of Kong's sticky sessions; `hash_on: cookie` does the same here.
    #[serde(default)]
    pub sticky_sessions_cookie: Option<String>,
    #[serde(default)]
    pub sticky_sessions_cookie_path: Option<String>,
    /// How many slots the keys of consistent hashing fall into, and the longest turn of round robin (default 10000). More slots share
    /// more evenly.
    #[serde(default)]
    #[schemars(range(min = 10, max = 65536))]
    pub slots: Option<u32>,
    /// When endpoints are left out.
    #[serde(default)]
    pub healthchecks: HealthChecks,
    /// When requests are sent once more (Weir's own).
    #[serde(default)]
    pub retry: Option<Retry>,
    /// How long things may take (Weir's own).
    #[serde(default)]
    pub deadline: Option<Deadlines>,
    /// How many requests may be under way at once (Weir's own).
    #[serde(default)]
    pub concurrency: Option<Concurrency>,
    /// `Host` sent to the endpoints, and the name that their certificates must have. Default: the name of the target; where that is an
    /// address, the upstream's.
    #[serde(default)]
    pub host_header: Option<String>,
    /// Send the name that an SRV record gives as `Host` and expect it of the certificate, instead of the target's.
    #[serde(default)]
    pub use_srv_name: bool,
    /// Weir's own: with consistent hashing, an endpoint may have at most so many percent of its fair share of the requests under way
    /// (100 is exactly the share); beyond that, requests go to the next endpoint of their key. 0: no bound.
    #[serde(default)]
    #[schemars(range(min = 0, max = 10000))]
    pub hash_balance_factor: u32,
    /// Weir's own: an endpoint that comes (back) gets its share little by little for so long. 0: at once.
    #[serde(default)]
    #[schemars(extend("examples" = ["30s"]))]
    pub slow_start: Millis,
    /// Weir's own: when less than this percentage of the weight is healthy, health is ignored and all endpoints are used. The default, 1,
    /// is: when none is left. 0: never; requests are then answered with 503.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 100))]
    pub panic_threshold: u32,
    /// Weir's own, as nginx has it: failures (no connection, no answer, a broken one) within `fail_timeout` that take an endpoint out;
    /// 0: none does. Default 3, or 0 where `healthchecks.passive.unhealthy` or `outlier_detection` judge.
    #[serde(default)]
    #[schemars(range(min = 0, max = 65535))]
    pub max_fails: Option<u32>,
    /// Weir's own: how long real traffic takes an endpoint out; then one request tries it. Where active checks look at unhealthy
    /// endpoints, they bring it back.
    #[serde(default = "ten_seconds")]
    #[schemars(extend("examples" = ["10s"]))]
    pub fail_timeout: Millis,
    /// Weir's own: take out endpoints that do worse than the others.
    #[serde(default)]
    pub outlier_detection: Option<OutlierDetection>,
    #[serde(default)]
    pub tags: Vec<String>,
    /// Shown to endpoints by services that have no `client_certificate` of their own.
    #[serde(default)]
    pub client_certificate: Option<serde_json::Value>,
    #[serde(default)]
    pub targets: Vec<serde_json::Value>,
    #[serde(default)]
    pub created_at: Option<f64>,
    #[serde(default)]
    pub updated_at: Option<f64>,
    #[serde(default, rename = "_comment")]
    pub comment: Option<String>,
    #[serde(default, rename = "_ignore")]
    pub ignore: Vec<serde_json::Value>,
}

fn one() -> u32 {
    1
}

fn ten_seconds() -> Millis {
    Millis::secs(10)
}

/// `outlier_detection:` — endpoints that do worse than the others are taken out, longer each time.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OutlierDetection {
    /// Answers of 500 and above in a row (a failed try counts as one); 0: off.
    #[schemars(range(min = 0, max = 65535))]
    pub consecutive_5xx: u32,
    /// Standard deviations below the mean success rate of all endpoints at which one is an outlier; 0: off.
    #[schemars(range(min = 0, max = 10))]
    pub success_rate_deviations: f64,
    /// Endpoints with enough requests that success rates need to be compared.
    #[schemars(range(min = 2))]
    pub success_rate_minimum_hosts: u32,
    /// Requests in an interval that an endpoint needs to be compared.
    #[schemars(range(min = 1))]
    pub success_rate_request_volume: u32,
    /// How often success rates are compared.
    pub interval: Millis,
    /// How long the first time out is; the second is twice as long, and so on.
    pub base_ejection_time: Millis,
    /// The longest time out.
    pub max_ejection_time: Millis,
    /// The largest percentage of endpoints that may be out at once; one always may.
    #[schemars(range(min = 0, max = 100))]
    pub max_ejection_percent: u32,
}

impl Default for OutlierDetection {
    fn default() -> Self {
        OutlierDetection {
            consecutive_5xx: 5,
            success_rate_deviations: 1.9,
            success_rate_minimum_hosts: 5,
            success_rate_request_volume: 100,
            interval: Millis::secs(10),
            base_ejection_time: Millis::secs(30),
            max_ejection_time: Millis::secs(300),
            max_ejection_percent: 10,
        }
    }
}

/// How an endpoint is picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// In turn, by weight.
    #[default]
    RoundRobin,
    /// The one with the fewest requests in flight.
    LeastConnections,
    /// By a hash of the request.
    ConsistentHashing,
    /// The one that answered fastest of late, as far as it is idle (peak EWMA of two chosen at random).
    Latency,
}

/// What consistent hashing hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HashOn {
    /// Nothing.
    #[default]
    None,
    /// The consumer's id.
    Consumer,
    /// The client's address.
    Ip,
    /// A header.
    Header,
    /// A cookie.
    Cookie,
    /// The path.
    Path,
    /// A query argument.
    QueryArg,
    /// A capture of the route's regex.
    UriCapture,
}

/// `healthchecks:`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HealthChecks {
    /// Probes.
    pub active: ActiveCheck,
    /// Judging by real traffic.
    pub passive: PassiveCheck,
    /// Percentage of healthy weight below which the whole upstream counts as unhealthy: its requests are answered with 503. 0: off.
    #[schemars(range(min = 0, max = 100))]
    pub threshold: f64,
}

/// Probes.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ActiveCheck {
    /// `http`, `https`, `tcp`, `grpc` or `grpcs`.
    #[serde(rename = "type")]
    pub kind: CheckKind,
    /// Seconds to wait for an answer.
    #[schemars(range(min = 0, max = 65535))]
    pub timeout: f64,
    /// Probes at once.
    #[schemars(range(min = 1))]
    pub concurrency: u32,
    /// Path of the probe.
    #[schemars(regex(pattern = r"^/"), extend("examples" = ["/health"]))]
    pub http_path: String,
    /// Server name for `https` probes.
    pub https_sni: Option<String>,
    /// Whether to verify the endpoint's certificate.
    pub https_verify_certificate: bool,
    /// Headers of the probe.
    pub headers: BTreeMap<String, Vec<String>>,
    /// When an endpoint counts as healthy again.
    pub healthy: Healthy,
    /// When it counts as unhealthy.
    pub unhealthy: Unhealthy,
}

impl Default for ActiveCheck {
    fn default() -> Self {
        ActiveCheck {
            kind: CheckKind::Http,
            timeout: 1.0,
            concurrency: 10,
            http_path: "/".into(),
            https_sni: None,
            https_verify_certificate: true,
            headers: BTreeMap::new(),
            healthy: Healthy { http_statuses: Some(vec![200, 302]), ..Healthy::default() },
            unhealthy: Unhealthy { http_statuses: Some(vec![429, 404, 500, 501, 502, 503, 504, 505]), ..Unhealthy::default() },
        }
    }
}

/// Judging by real traffic.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PassiveCheck {
    /// `http`, `https`, `tcp`, `grpc` or `grpcs`.
    #[serde(rename = "type")]
    pub kind: CheckKind,
    /// What counts as a success.
    pub healthy: Healthy,
    /// What counts as a failure, and how many are too many.
    pub unhealthy: Unhealthy,
}

/// Kinds of check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CheckKind {
    /// By status.
    #[default]
    Http,
    /// By status, through TLS.
    Https,
    /// By connection.
    Tcp,
    /// By connection: gRPC's health protocol is not spoken.
    Grpc,
    /// The same.
    Grpcs,
}

/// When an endpoint counts as healthy. 0 switches a criterion off.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Healthy {
    /// Seconds between probes of healthy endpoints (active only); 0: no probes.
    #[schemars(range(min = 0, max = 65535))]
    pub interval: f64,
    /// Statuses that are successes. Default: 200 and 302 for probes, all below 400 for traffic.
    pub http_statuses: Option<Vec<u16>>,
    /// Successes in a row.
    #[schemars(range(min = 0, max = 255))]
    pub successes: u32,
}

/// When an endpoint counts as unhealthy. 0 switches a criterion off.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Unhealthy {
    /// Seconds between probes of unhealthy endpoints (active only); 0: no probes.
    #[schemars(range(min = 0, max = 65535))]
    pub interval: f64,
    /// Statuses that are failures. Default: 429, 404 and 5xx for probes; 429, 500 and 503 for traffic.
    pub http_statuses: Option<Vec<u16>>,
    /// Failed connections.
    #[schemars(range(min = 0, max = 255))]
    pub tcp_failures: u32,
    /// Timeouts.
    #[schemars(range(min = 0, max = 255))]
    pub timeouts: u32,
    /// Failing statuses.
    #[schemars(range(min = 0, max = 255))]
    pub http_failures: u32,
}

/// Reads an upstream with its targets.
pub(super) fn read(cx: &Context<'_>, node: &Node, draft: &mut Draft) {
    let Some(mut fields) = Fields::of(cx, node, "upstream") else { return };
    let index = draft.upstreams.len();
    let errors = cx.errors.get();
    // The struct checks every setting at once; what follows reads only what is needed here.
    let found = crate::check::<UpstreamSettings>(node);
    let valid = found.is_empty();
    cx.extend(found);
    let settings = valid.then(|| crate::decode::<UpstreamSettings>(node).ok()).flatten();
    // The walk has said what is wrong with them.
    let text = |key: &str| node.get(key).filter(|text| !matches!(text.kind(), Kind::Bool(_) | Kind::Seq(_) | Kind::Map(_))).and_then(|text| cx.text(text));
    let name = text("name");
    if let Some(name) = &name {
        draft.upstream_names.name(cx, "upstream", name, index, true);
    }
    if let Some(id) = text("id") {
        draft.upstream_names.id(cx, "upstream", &id, index);
    }
    if let Some(settings) = &settings {
        consistent(cx, node, settings);
    }
    let own = settings.as_ref().map(|s| Resilience { retry: s.retry.clone(), deadline: s.deadline.clone(), concurrency: s.concurrency.clone() }).unwrap_or_default();
    resilience::check(cx, node, &own);
    let word = |key: &str, default: &str| node.get(key).and_then(Node::text).unwrap_or_else(|| default.to_string());
    tls::of_upstream(cx, node, index, draft);
    let targets = fields.list("targets").iter().filter_map(|item| target(cx, item, false)).map(|(_, target)| target).collect();
    cx.is_sound_since(errors, fields.name_span());
    draft.upstreams.push(Upstream {
        name: name.map_or_else(|| format!("upstream#{index}"), |name| name.value),
        algorithm: word("algorithm", "round-robin"),
        hash_on: word("hash_on", "none"),
        settings: node.clone(),
        resilience: own,
        host_header: settings.and_then(|s| s.host_header),
        client_certificate: None,
        targets,
        span: fields.name_span().clone(),
    });
}

/// Settings that need one another.
fn consistent(cx: &Context<'_>, node: &Node, settings: &UpstreamSettings) {
    let needs = |on: HashOn, prefix: &str| match on {
        HashOn::Header => Some(format!("{prefix}_header")),
        HashOn::QueryArg => Some(format!("{prefix}_query_arg")),
        HashOn::UriCapture => Some(format!("{prefix}_uri_capture")),
        HashOn::Cookie => Some("hash_on_cookie".to_string()),
        _ => None,
    };
    for (on, prefix) in [(settings.hash_on, "hash_on"), (settings.hash_fallback, "hash_fallback")] {
        if let (Some(key), Some(place)) = (needs(on, prefix), node.get(prefix))
            && node.get(&key).is_none()
        {
            cx.error("missing-key", place.span(), format!("with this, the upstream needs `{key}`"), None);
        }
    }
    if settings.hash_on != HashOn::None && settings.algorithm != Algorithm::ConsistentHashing && node.get("algorithm").is_some()
        && let Some(place) = node.get("hash_on")
    {
        cx.warning("value", place.span(), "this has no effect with this algorithm", Some("write `algorithm: consistent-hashing`".into()));
    }
    let grpc = matches!(settings.healthchecks.active.kind, CheckKind::Grpc | CheckKind::Grpcs);
    if grpc && let Some(kind) = node.get("healthchecks").and_then(|checks| checks.get("active")).and_then(|active| active.get("type")) {
        cx.warning("value", kind.span(), "gRPC probes only see whether a connection can be made", None);
    }
    if let (Some(name), Some(place)) = (&settings.host_header, node.get("host_header"))
        && let Err(why) = HostPort::parse(name)
    {
        cx.error("value", place.span(), why, Some("a `Host` is a name, perhaps with a port".into()));
    }
}

/// Reads a target that stands at the top of the file.
pub(super) fn read_flat_target(cx: &Context<'_>, node: &Node, draft: &mut Draft) {
    let Some((upstream, target)) = target(cx, node, true) else {
        draft.targets_lost = true;
        return;
    };
    match upstream {
        Some(upstream) => draft.targets.push((upstream, target)),
        None if node.get("upstream").is_some() => draft.targets_lost = true,
        None => cx.error("missing-key", node.span(), "this target has no `upstream`", None),
    }
}

fn target(cx: &Context<'_>, node: &Node, flat: bool) -> Option<(Option<super::Ref>, Target)> {
    let mut fields = Fields::of(cx, node, "target")?;
    if node.get("target").is_none() {
        fields.missing(&["target"], Some("write `target: host:port`".into()));
    }
    let address = fields.filled("target");
    let weight = fields.int("weight", 0, 65_535).and_then(|weight| u32::try_from(weight).ok()).unwrap_or(100);
    let upstream = fields.get("upstream").and_then(|node| reference(cx, node));
    if let (Some(reference), false) = (&upstream, flat) {
        cx.error("reference", &reference.text.span, "this target is nested in its upstream already", Some("remove the key".into()));
    }
    if let Some(failover) = fields.get("failover").filter(|node| node.text().as_deref() == Some("true")) {
        cx.warning("unsupported", failover.span(), "a target that others wait for is one like the others here", Some("give it a small weight".into()));
    }
    fields.accept(&["id", "tags", "created_at", "updated_at", "ws_id"]);
    fields.finish();
    let Spanned { value: address, span } = address?;
    match HostPort::parse(&address) {
        Ok(parsed) => Some((upstream, Target { host: parsed.host, port: parsed.port.unwrap_or(8000), weight, span })),
        Err(why) => {
            let hint = address.contains("://").then(|| "a target has no `http://`".to_string());
            cx.error("value", &span, why, hint.or_else(|| Some("a target is `host:port`".into())));
            None
        }
    }
}

/// Gives flat targets to the upstreams that they name, and warns of what cannot work.
pub(super) fn attach(cx: &Context<'_>, draft: &mut Draft) {
    for (reference, target) in std::mem::take(&mut draft.targets) {
        if let Some(index) = draft.upstream_names.find(cx, &reference, "upstream") {
            draft.upstreams[index].targets.push(target);
        }
    }
    for upstream in &draft.upstreams {
        let none = |list: &Node| matches!(list.kind(), Kind::Seq(items) if items.is_empty());
        if upstream.targets.is_empty() && upstream.settings.get("targets").is_none_or(none) && !draft.targets_lost && draft.upstream_names.are_all_read() {
            cx.warning("value", &upstream.span, format!("the upstream `{}` has no targets", upstream.name), None);
        }
    }
}
