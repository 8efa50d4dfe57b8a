//! What keeps a failing or slow service from taking others along: `retry`, `deadline` and `concurrency`, which stand at services, upstreams
//! and the edge, and the settings of the circuit breaker.

use crate::node::Kind;
use crate::reader::Context;
use crate::weir::is_token;
use crate::{Diagnostic, Millis, Node, decode};
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::time::Duration;

/// The three settings at one place. What a service does not say is its upstream's.
#[derive(Debug, Clone, Default)]
pub struct Resilience {
    /// `retry:`
    pub retry: Option<Retry>,
    /// `deadline:`
    pub deadline: Option<Deadlines>,
    /// `concurrency:`
    pub concurrency: Option<Concurrency>,
}

/// `retry:` — when a request is sent once more. It is only if that can do no harm: if no connection could be made, or if its method is
/// idempotent (RFC 9110 section 9.2.2), nothing was answered (or one of `statuses`), and its body is still at hand. Every try goes to an endpoint
/// that was not tried yet, as long as there is one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// Extra tries after the first. Default: the `retries` of the service; 1 for the edge's origin.
    #[schemars(range(max = 100))]
    pub attempts: Option<u32>,
    /// Statuses after which an idempotent request is tried elsewhere, such as 502, 503 and 504. Default: none.
    pub statuses: Vec<u16>,
    /// Whether an idempotent request is tried elsewhere when no answer began in time.
    pub timeouts: bool,
    /// Before the first retry a time between nothing and this passes; before each further one up to twice as long.
    pub backoff: Millis,
    /// The longest such time.
    pub max_backoff: Millis,
    /// Retries may make up this percentage of the upstream's requests of the last ten seconds. What is over it is not retried, so that a
    /// service in trouble is not given more work.
    #[schemars(range(max = 100))]
    pub budget: u32,
    /// So many retries a second are allowed in any case.
    pub min_per_second: u32,
}

impl Default for Retry {
    fn default() -> Self {
        Retry { attempts: None, statuses: vec![], timeouts: false, backoff: Millis(Duration::from_millis(25)), max_backoff: Millis::secs(1), budget: 20, min_per_second: 10 }
    }
}

/// `deadline:` — how long things may take. What is late ends with 504 and the reason in `X-Weir-Reason`: `connect-timeout`, `first-byte-timeout`,
/// `idle-timeout`, `write-timeout` or `deadline` (the total).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Deadlines {
    /// For a connection. Default: the service's `connect_timeout`; 5 seconds for the edge's origin.
    pub connect: Option<Millis>,
    /// From the request's last byte to the end of the answer's head. Default: as `idle`.
    pub first_byte: Option<Millis>,
    /// Between two pieces, in either direction. Default: the service's `read_timeout` and `write_timeout`; 60 seconds for the edge's origin.
    pub idle: Option<Millis>,
    /// For everything: waiting for a place, all tries, the whole answer. Not for services that stream without end; upgraded connections
    /// are exempt. Default: none.
    pub total: Option<Millis>,
    /// With a `total`, every try carries in this field how many milliseconds are left. A trusted proxy in front may shorten the
    /// total with the same field; other clients' is dropped. Empty: none. gRPC's `grpc-timeout` is understood too (also of a
    /// service that speaks `grpc` and has no `deadline`) and passed on, shortened.
    #[schemars(regex(pattern = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]*$"))]
    pub header: String,
}

impl Default for Deadlines {
    fn default() -> Self {
        Deadlines { connect: None, first_byte: None, idle: None, total: None, header: "X-Request-Timeout-Ms".into() }
    }
}

/// `concurrency:` — how many requests may be under way at once. Those above it wait in a queue; where the queue is full, or the wait too long,
/// they are refused with 503 and `Retry-After`. Places go to those of high priority first, and where the queue is full the lowest
/// priority is refused first (see the plugin `load-shedding`). At an upstream the limit counts the requests of all its services.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Concurrency {
    /// Requests under way; where the limit is adaptive, what it begins with.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub limit: u32,
    /// Finds the limit by the latency: as high as it can be before answers take longer. `{}` for the defaults.
    pub adaptive: Option<Adaptive>,
    /// Requests that may wait.
    #[schemars(range(max = 1_000_000))]
    pub queue: u32,
    /// The longest wait.
    pub queue_timeout: Millis,
    /// Percentage of the limit that requests of low priority can not take.
    #[schemars(range(max = 99))]
    pub reserve: u32,
}

impl Default for Concurrency {
    fn default() -> Self {
        Concurrency { limit: 100, adaptive: None, queue: 100, queue_timeout: Millis::secs(1), reserve: 10 }
    }
}

/// `adaptive:` — a limit that follows the latency.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Adaptive {
    /// The limit never falls below this.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min: u32,
    /// Nor does it rise above this.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max: u32,
    /// How many times the latency without load is still fine.
    #[schemars(range(min = 1.0, max = 100.0))]
    pub tolerance: f64,
    /// The latency is looked at this often.
    pub window: Millis,
    /// This often the latency without load is found out anew, by letting only a part through for one window.
    pub probe: Millis,
}

impl Default for Adaptive {
    fn default() -> Self {
        Adaptive { min: 4, max: 1000, tolerance: 2.0, window: Millis(Duration::from_millis(250)), probe: Millis::secs(30) }
    }
}

/// Watches how a service answers. When, of at least `minimum_calls` requests in the last `window`, `failure_rate` percent failed (or `slow_rate` percent were
/// slow), the circuit opens: for `open_for` nothing is sent to the service. Then `probes` requests may try: if all succeed the circuit closes, if one
/// fails it opens again. While it is open, requests get what the cache holds, however old; else the answer of the `fallback`, or of another service that it
/// names; else at once 503, `Retry-After` and `{"message":"The service is failing, try again later"}`.
///
/// A failure is one of `statuses`, an answer that breaks off, or none at all. Clients that leave, answers of plugins and requests for which there
/// was no place do not count. The state is that of this process and outlives a reload; it is in `/status` of the admin port and in the metric
/// `weir_circuit_state` (0 closed, 1 trying, 2 open), and `weir_circuit_events_total` counts its changes and the requests refused.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CircuitBreaker {
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
    pub per: BreakerScope,
    /// Whether what the cache holds is served while the circuit is open, however old, unless its origin forbids that (`must-revalidate`, or `s-maxage`
    /// without a time for stale answers).
    pub stale: bool,
    /// What is answered while the circuit is open. Default: 503 with a message.
    pub fallback: Option<Fallback>,
}

impl Default for CircuitBreaker {
    fn default() -> Self {
        CircuitBreaker {
            failure_rate: 50,
            minimum_calls: 20,
            window: Millis::secs(30),
            statuses: vec![500, 502, 503, 504],
            slow_call: None,
            slow_rate: 80,
            open_for: Millis::secs(30),
            probes: 3,
            per: BreakerScope::Service,
            stale: true,
            fallback: None,
        }
    }
}

/// What a circuit belongs to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BreakerScope {
    /// All requests of a service.
    #[default]
    Service,
    /// All requests of a route.
    Route,
    /// All requests that an endpoint of the service gets: the others take its share, and only when all are open nothing is sent.
    Endpoint,
}

/// An answer made here, or a service that answers instead.
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
    /// Name of a service that is asked instead.
    #[serde(default)]
    pub service: Option<String>,
}

fn unavailable() -> u16 {
    503
}

/// What types do not catch in the settings of a breaker. `at`: as written.
pub fn check_breaker(breaker: &CircuitBreaker, at: &Node) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let place = |key: &str| at.get(key).map_or(at.span(), Node::span);
    for (key, time) in [("window", breaker.window), ("open_for", breaker.open_for)] {
        if time.get().is_zero() {
            found.push(Diagnostic::error("plugin-config", place(key), "a time above zero is wanted"));
        }
    }
    let Some(fallback) = at.get("fallback") else { return found };
    if fallback.get("service").is_some() {
        for key in ["status", "headers", "body"] {
            if let Some(span) = fallback.key_span(key).filter(|_| fallback.get(key).is_some()) {
                found.push(Diagnostic::error("value", span, format!("the service makes the answer: `{key}` can not stand beside `service`")));
            }
        }
    }
    for (name, text) in breaker.fallback.iter().flat_map(|fallback| &fallback.headers) {
        let place = fallback.get("headers").map_or(fallback.span(), Node::span);
        if !is_token(name) {
            found.push(Diagnostic::error("value", place, format!("`{}` is not a header name", name.escape_debug())));
        } else if text.chars().any(|c| c.is_control() && c != '\t') {
            found.push(Diagnostic::error("value", place, format!("the value of `{name}` can not be sent in a header")));
        }
    }
    found
}

/// Reads the three settings out of a mapping; mistakes go to the context.
pub(crate) fn read(cx: &Context<'_>, node: &Node) -> Resilience {
    let found = Resilience { retry: part(cx, node, "retry"), deadline: part(cx, node, "deadline"), concurrency: part(cx, node, "concurrency") };
    check(cx, node, &found);
    found
}

fn part<T: DeserializeOwned + JsonSchema>(cx: &Context<'_>, node: &Node, key: &str) -> Option<T> {
    let value = node.get(key).filter(|value| !value.source().broken)?;
    if !matches!(value.kind(), Kind::Map(_)) {
        cx.wrong(value, "a mapping");
        return None;
    }
    decode::<T>(value).map_err(|mistakes| cx.extend(mistakes)).ok()
}

/// What types do not catch.
pub(crate) fn check(cx: &Context<'_>, node: &Node, found: &Resilience) {
    let place = |section: &str, key: &str| node.get(section).map(|section| section.get(key).unwrap_or(section).span().clone());
    let error = |section: &str, key: &str, message: String, hint: Option<String>| {
        if let Some(span) = place(section, key) {
            cx.error("value", &span, message, hint);
        }
    };
    if let Some(retry) = &found.retry {
        if retry.max_backoff < retry.backoff {
            error("retry", "max_backoff", format!("this is shorter than `backoff` ({})", retry.backoff), None);
        }
        if let Some(status) = retry.statuses.iter().find(|status| !(400..600).contains(*status)) {
            error("retry", "statuses", format!("{status} is not the status of an error"), Some("like 502, 503, 504".into()));
        }
    }
    if let Some(deadline) = &found.deadline {
        let times = [("connect", deadline.connect), ("first_byte", deadline.first_byte), ("idle", deadline.idle), ("total", deadline.total)];
        for (key, _) in times.iter().filter(|(_, time)| time.is_some_and(|time| time.get().is_zero())) {
            error("deadline", key, "nobody answers in no time".into(), None);
        }
        if let Some(total) = deadline.total {
            for (key, _) in times[..2].iter().filter(|(_, time)| time.is_some_and(|time| time > total)) {
                if let Some(span) = place("deadline", key) {
                    cx.warning("value", &span, format!("this is longer than `total` ({total}) and has no effect"), None);
                }
            }
        } else if let Some(span) = node.get("deadline").and_then(|section| section.key_span("header")) {
            cx.warning("value", span, "without a `total` there is no time left to tell", None);
        }
    }
    if let Some(concurrency) = &found.concurrency {
        if let Some(adaptive) = &concurrency.adaptive {
            let own = node.get("concurrency").and_then(|section| section.get("adaptive"));
            let at = |key: &str| own.map(|own| own.get(key).unwrap_or(own).span().clone());
            if adaptive.max < adaptive.min
                && let Some(span) = at("max")
            {
                cx.error("value", &span, format!("this is below `min` ({})", adaptive.min), None);
            }
            for (key, time) in [("window", adaptive.window), ("probe", adaptive.probe)] {
                if time.get().is_zero()
                    && let Some(span) = at(key)
                {
                    cx.error("value", &span, "a time above zero is wanted", None);
                }
            }
        }
        if concurrency.queue > 0 && concurrency.queue_timeout.get().is_zero() {
            error("concurrency", "queue_timeout", "nobody can wait for no time".into(), Some("write `queue: 0` for no queue".into()));
        }
    }
}
