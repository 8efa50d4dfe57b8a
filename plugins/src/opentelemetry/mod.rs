//! `opentelemetry`: spans of requests, sent to a collector; trace context for services.

mod trace;

use crate::{
    Configured, Live, doubtful, header_name, http_log,
    logging::{
        self,
        queue::{Queue, QueueConfig, Sink},
    },
    wrong,
};
use async_trait::async_trait;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header, request, response};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use trace::Form;
use weir_config::{Diagnostic, Node, Secret};
use weir_gateway::{BuildEnv, Flow, Phases, Plugin, RequestContext, client::OwnClient};

/// Makes a span of each request, and one inside it of the time with the service, and sends them to an OpenTelemetry collector: OTLP over HTTP with JSON, in batches,
/// in the background. Reads the caller's trace context (`traceparent`, `b3` or `X-B3-*`) and tells the service its own.
///
/// Spans wait in a bounded queue. The metric `weir_plugin_outcomes_total{plugin="opentelemetry"}` counts requests whose spans were `sent`, `lost` or `dropped`. Query parameters that
/// may carry a credential are `REDACTED`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// URL of the collector for traces, such as `http://collector:4318/v1/traces`. Older spelling: `endpoint`. Without it, trace context is passed on but
    /// nothing is sent.
    #[serde(alias = "endpoint")]
    #[schemars(extend("x-aliases" = ["endpoint"]))]
    pub traces_endpoint: Option<Secret>,
    /// Kong sends log lines there; Weir does not: accepted, without effect.
    pub logs_endpoint: Option<Secret>,
    /// More headers for each call, such as a key for the collector.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    /// Attributes of the process. Default: `service.name` is `kong`.
    #[serde(default)]
    pub resource_attributes: BTreeMap<String, String>,
    /// How spans wait and are sent.
    #[serde(default)]
    pub queue: QueueConfig,
    /// Older spelling of `queue.max_batch_size`.
    pub batch_span_count: Option<usize>,
    /// Older spelling of `queue.max_coalescing_delay`.
    pub batch_flush_delay: Option<f64>,
    /// Time to connect, in milliseconds. A call may take as long as the three times together.
    #[serde(default = "second")]
    #[schemars(range(min = 1, max = 2_147_483_646))]
    pub connect_timeout: u64,
    /// Time to send, in milliseconds.
    #[serde(default = "five_seconds")]
    #[schemars(range(min = 1, max = 2_147_483_646))]
    pub send_timeout: u64,
    /// Time until the answer, in milliseconds.
    #[serde(default = "five_seconds")]
    #[schemars(range(min = 1, max = 2_147_483_646))]
    pub read_timeout: u64,
    /// Share of the traces that begin here which are sent, from 0 to 1. Default: 1.
    #[schemars(range(min = 0, max = 1))]
    pub sampling_rate: Option<f64>,
    /// What counts when the caller says whether its trace is sampled.
    #[serde(default)]
    pub sampling_strategy: Strategy,
    /// A header of answers that tells the trace id.
    pub http_response_header_for_traceid: Option<String>,
    /// How trace context is written for the service.
    #[serde(default)]
    pub header_type: HeaderType,
    /// More about trace context; stronger than `header_type`.
    pub propagation: Option<Propagation>,
}

fn second() -> u64 {
    1000
}

fn five_seconds() -> u64 {
    5000
}

/// What counts when the caller says whether its trace is sampled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Its "no" counts; after a "yes" chance decides, with `sampling_rate`.
    #[default]
    ParentDropProbabilityFallback,
    /// Its "yes" and its "no" count.
    ParentProbabilityFallback,
}

/// Ways to write trace context.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HeaderType {
    /// As the caller wrote it, else `traceparent`.
    #[default]
    Preserve,
    /// The caller's is passed on as it is, and not read.
    Ignore,
    /// `traceparent` (W3C Trace Context).
    W3c,
    /// `X-B3-TraceId`, `X-B3-SpanId`, `X-B3-Sampled`.
    B3,
    /// `b3`.
    B3Single,
}

/// Trace context in and out.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Propagation {
    /// Forms that are read. Default: all. An empty list: none.
    pub extract: Option<Vec<Spoken>>,
    /// Headers that are taken away before the service is told.
    #[serde(default)]
    pub clear: Vec<String>,
    /// Forms that are written; `preserve` is the caller's. Default: `preserve`.
    pub inject: Option<Vec<Written>>,
    /// What `preserve` means without a caller's.
    #[serde(default)]
    pub default_format: Spoken,
}

/// Forms of trace context.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Spoken {
    /// `traceparent`.
    #[default]
    W3c,
    /// `X-B3-…` or `b3` when read, `X-B3-…` when written.
    B3,
    /// `b3`.
    B3Single,
}

/// Forms of trace context to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Written {
    /// The caller's.
    Preserve,
    /// `traceparent`.
    W3c,
    /// `X-B3-…`.
    B3,
    /// `b3`.
    B3Single,
}

impl Spoken {
    fn form(self) -> Form {
        match self {
            Spoken::W3c => Form::W3c,
            Spoken::B3 => Form::B3,
            Spoken::B3Single => Form::B3Single,
        }
    }
}

impl Configured for Config {
    const NAME: &'static str = "opentelemetry";
    const PRIORITY: i32 = 14;
    const EXAMPLE: &'static str = "traces_endpoint: http://127.0.0.1:4318/v1/traces
resource_attributes: {service.name: shop-gateway}
sampling_rate: 0.5
http_response_header_for_traceid: X-Trace-Id
";

    type Ready = Ready;

    fn ready(self, at: &Node) -> Result<Ready, Vec<Diagnostic>> {
        let _ = self.logs_endpoint;
        let mut errors = Vec::new();
        let mut headers = HeaderMap::new();
        let key = if at.get("endpoint").is_some() { "endpoint" } else { "traces_endpoint" };
        let uri = self.traces_endpoint.and_then(|url| match http_log::endpoint(url.expose()) {
            Ok((uri, authorization)) => {
                headers.extend(authorization.map(|a| (header::AUTHORIZATION, a)));
                Some(uri)
            }
            Err(message) => {
                errors.push(wrong(at, key, message));
                None
            }
        });
        for (name, value) in &self.headers {
            match (header_name(at, "headers", name), HeaderValue::from_str(value.expose())) {
                (Ok(name), Ok(value)) => {
                    headers.insert(name, value);
                }
                (Err(error), _) => errors.push(error),
                (_, Err(_)) => errors.push(wrong(at, "headers", format!("the value of `{name}` can not be sent in a header"))),
            }
        }
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let shown = self.http_response_header_for_traceid.and_then(|name| header_name(at, "http_response_header_for_traceid", &name).map_err(|e| errors.push(e)).ok());
        let (mut read, mut write, mut clear, mut default) = (vec![Form::W3c, Form::B3Single, Form::B3], vec![None], vec![], Form::W3c);
        match (self.propagation, self.header_type) {
            (Some(propagation), _) => {
                if let Some(list) = propagation.extract {
                    read = list.iter().map(|s| s.form()).collect();
                    if read.contains(&Form::B3) {
                        read.push(Form::B3Single);
                    }
                }
                if let Some(list) = propagation.inject {
                    write = list
                        .iter()
                        .map(|w| match w {
                            Written::Preserve => None,
                            Written::W3c => Some(Form::W3c),
                            Written::B3 => Some(Form::B3),
                            Written::B3Single => Some(Form::B3Single),
                        })
                        .collect();
                }
                default = propagation.default_format.form();
                let place = at.get("propagation").unwrap_or(at);
                for name in &propagation.clear {
                    match header_name(place, "clear", name) {
                        Ok(name) => clear.push(name),
                        Err(error) => errors.push(error),
                    }
                }
            }
            (None, HeaderType::Preserve) => {}
            (None, HeaderType::Ignore) => (read, write) = (vec![], vec![]),
            (None, HeaderType::W3c) => write = vec![Some(Form::W3c)],
            (None, HeaderType::B3) => write = vec![Some(Form::B3)],
            (None, HeaderType::B3Single) => write = vec![Some(Form::B3Single)],
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let mut queue = self.queue;
        queue.max_batch_size = queue.max_batch_size.or(self.batch_span_count);
        queue.max_coalescing_delay = queue.max_coalescing_delay.or(self.batch_flush_delay);
        let timeout = Duration::from_millis(self.connect_timeout.saturating_add(self.send_timeout).saturating_add(self.read_timeout));
        let tracing = Tracing { read, write, clear, default, rate: self.sampling_rate.unwrap_or(1.0), strategy: self.sampling_strategy, shown };
        Ok(Ready { uri, headers, timeout, resource: self.resource_attributes, queue, tracing })
    }

    fn warnings(at: &Node) -> Vec<Diagnostic> {
        let mut found = QueueConfig::warnings(at);
        for (key, message) in [
            ("endpoint", "`endpoint` is the older spelling of `traces_endpoint`"),
            ("logs_endpoint", "`logs_endpoint` has no effect: only traces are sent"),
            ("batch_span_count", "`batch_span_count` is the older spelling of `queue.max_batch_size`"),
            ("batch_flush_delay", "`batch_flush_delay` is the older spelling of `queue.max_coalescing_delay`"),
        ] {
            if at.get(key).is_some() {
                found.push(doubtful(at, key, message));
            }
        }
        found
    }

    fn build(ready: Ready, env: &BuildEnv<'_>, _: &Live) -> Arc<dyn Plugin> {
        let Ready { uri, headers, timeout, mut resource, queue, tracing } = ready;
        resource.entry("service.name".into()).or_insert_with(|| "kong".into());
        resource.entry("service.version".into()).or_insert_with(|| env!("CARGO_PKG_VERSION").into());
        resource.entry("service.instance.id".into()).or_insert_with(|| format!("{:032x}", trace::new_trace()));
        let resource: Vec<Value> = resource.iter().map(|(key, value)| attribute(key, text(value))).collect();
        let queue = uri.map(|uri| {
            let sink = Collector { client: env.environment.client.clone(), uri, headers, timeout, resource: Value::Array(resource).to_string() };
            Queue::new(Config::NAME, queue.limits(200, 3.0), &env.environment.metrics, sink)
        });
        Arc::new(OpenTelemetry { tracing, queue })
    }
}

/// The configuration, checked.
pub struct Ready {
    uri: Option<Uri>,
    headers: HeaderMap,
    timeout: Duration,
    resource: BTreeMap<String, String>,
    queue: QueueConfig,
    tracing: Tracing,
}

struct Tracing {
    read: Vec<Form>,
    /// `None` is the caller's form.
    write: Vec<Option<Form>>,
    clear: Vec<HeaderName>,
    default: Form,
    rate: f64,
    strategy: Strategy,
    shown: Option<HeaderName>,
}

struct OpenTelemetry {
    tracing: Tracing,
    queue: Option<Queue>,
}

/// The spans of a request.
#[derive(Debug, Clone, Copy)]
struct Spans {
    trace: u128,
    caller: Option<u64>,
    /// The whole request.
    request: u64,
    /// The time with the service.
    upstream: u64,
    sampled: bool,
    form: Form,
}

impl Tracing {
    fn begin(&self, headers: &HeaderMap) -> Spans {
        let parent = trace::extract(headers).filter(|p| self.read.contains(&p.form));
        let chance = || fastrand::f64() < self.rate;
        let sampled = match (parent.and_then(|p| p.sampled), self.strategy) {
            (Some(false), _) => false,
            (Some(true), Strategy::ParentProbabilityFallback) => true,
            (Some(true), Strategy::ParentDropProbabilityFallback) | (None, _) => chance(),
        };
        Spans {
            trace: parent.map_or_else(trace::new_trace, |p| p.trace),
            caller: parent.map(|p| p.span),
            request: trace::new_span(),
            upstream: trace::new_span(),
            sampled,
            form: parent.map_or(self.default, |p| p.form),
        }
    }
}

impl Plugin for OpenTelemetry {
    fn phases(&self) -> Phases {
        Phases::REQUEST | Phases::RESPONSE | Phases::LOG
    }

    fn wants_log_view(&self) -> bool {
        self.queue.is_some()
    }

    fn request(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        let spans = self.tracing.begin(&req.headers);
        for name in &self.tracing.clear {
            req.headers.remove(name);
        }
        if !self.tracing.write.is_empty() {
            trace::clear(&mut req.headers);
        }
        for form in &self.tracing.write {
            trace::inject(&mut req.headers, form.unwrap_or(spans.form), spans.trace, spans.upstream, spans.sampled);
        }
        cx.state.insert(spans);
        Flow::Continue
    }

    fn response(&self, cx: &mut RequestContext, res: &mut response::Parts) {
        if let (Some(name), Some(spans)) = (&self.tracing.shown, cx.state.get::<Spans>())
            && let Ok(value) = HeaderValue::from_str(&format!("{:032x}", spans.trace))
        {
            res.headers.insert(name.clone(), value);
        }
    }

    fn log(&self, cx: &RequestContext) {
        let Some(queue) = &self.queue else { return };
        // A request that was refused before its turn came here has a span too.
        let spans = cx.state.get::<Spans>().copied().or_else(|| Some(self.tracing.begin(&cx.log_view.as_ref()?.headers)));
        if let Some(spans) = spans.filter(|s| s.sampled) {
            queue.push(spans_of(cx, &spans));
        }
    }
}

fn text(value: &str) -> Value {
    json!({ "stringValue": value })
}

/// OTLP writes 64-bit numbers as text.
fn number(value: impl ToString) -> Value {
    json!({ "intValue": value.to_string() })
}

fn attribute(key: &str, value: Value) -> Value {
    json!({ "key": key, "value": value })
}

/// The spans of a finished request as JSON objects, with commas between them.
fn spans_of(cx: &RequestContext, spans: &Spans) -> String {
    let total = cx.times.total.unwrap_or_else(|| cx.started.elapsed());
    let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(cx.started.elapsed());
    let at = |time: Duration| (begun + time).as_nanos().to_string();
    let failed = |status: u16| json!({ "code": if status >= 500 { 2 } else { 0 } });
    let mut attributes = vec![
        attribute("http.host", text(&cx.client.host)),
        attribute("http.scheme", text(cx.client.scheme.as_str())),
        attribute("http.status_code", number(cx.status)),
        attribute("http.client_ip", text(&cx.client.ip.to_string())),
        attribute("net.peer.ip", text(&cx.client.peer.to_string())),
        attribute("kong.request.id", text(cx.id.as_str())),
    ];
    if let Some(view) = &cx.log_view {
        let target = logging::target(&view.uri);
        attributes.push(attribute("http.method", text(view.method.as_str())));
        attributes.push(attribute("http.url", text(&format!("{}://{}{target}", cx.client.scheme.as_str(), cx.client.host))));
    }
    if let Some(route) = &cx.route {
        attributes.push(attribute("http.route", text(&route.name)));
    }
    if let Some(consumer) = &cx.consumer {
        attributes.push(attribute("kong.consumer", text(&consumer.entity.id)));
    }
    if let Some(report) = &cx.report {
        attributes.push(attribute("weir.cache", text(report.verdict.word())));
    }
    let trace = format!("{:032x}", spans.trace);
    let mut request = json!({
        "traceId": trace, "spanId": format!("{:016x}", spans.request), "name": "kong", "kind": 2,
        "startTimeUnixNano": at(Duration::ZERO), "endTimeUnixNano": at(total), "attributes": attributes, "status": failed(cx.status),
    });
    if let Some(caller) = spans.caller {
        request["parentSpanId"] = format!("{caller:016x}").into();
    }
    let Some(forwarded) = cx.times.forwarded else { return request.to_string() };
    let mut attributes = vec![attribute("try_count", number(cx.tries))];
    if let Some(endpoint) = &cx.endpoint {
        attributes.push(attribute("net.peer.name", text(&endpoint.host)));
        attributes.push(attribute("net.peer.port", number(endpoint.port)));
    }
    if let Some(service) = &cx.service {
        attributes.push(attribute("peer.service", text(&service.name)));
    }
    let answered = cx.log_view.as_ref().and_then(|v| v.upstream_status);
    if let Some(status) = answered {
        attributes.push(attribute("http.status_code", number(status)));
    }
    let upstream = json!({
        "traceId": trace, "spanId": format!("{:016x}", spans.upstream), "parentSpanId": format!("{:016x}", spans.request), "name": "kong.balancer", "kind": 3,
        "startTimeUnixNano": at(forwarded), "endTimeUnixNano": at(cx.times.upstream.unwrap_or(total)), "attributes": attributes,
        "status": failed(answered.unwrap_or(cx.status)),
    });
    format!("{request},{upstream}")
}

struct Collector {
    client: OwnClient,
    uri: Uri,
    headers: HeaderMap,
    timeout: Duration,
    /// JSON.
    resource: String,
}

#[async_trait]
impl Sink for Collector {
    async fn send(&mut self, batch: &[String]) -> Result<(), String> {
        let body = format!(
            r#"{{"resourceSpans":[{{"resource":{{"attributes":{}}},"scopeSpans":[{{"scope":{{"name":"weir","version":"{}"}},"spans":[{}]}}]}}]}}"#,
            self.resource,
            env!("CARGO_PKG_VERSION"),
            batch.join(","),
        );
        http_log::post(&self.client, &Method::POST, &self.uri, &self.headers, body.into(), self.timeout).await
    }
}

#[cfg(test)]
mod tests;
