//! `http-log`: an entry for each request, sent to an HTTP server.

use crate::{
    Configured, Live, doubtful, header_name,
    logging::{
        self, CustomField,
        queue::{Queue, QueueConfig, Sink},
    },
    wrong,
};
use async_trait::async_trait;
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Uri, header};
use std::collections::BTreeMap;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use std::{sync::Arc, time::Duration};
use weir_config::{Diagnostic, Node, Secret};
use weir_gateway::{BuildEnv, Phases, Plugin, RequestContext, client::OwnClient};

/// Sends a JSON entry for each request to an HTTP server, in Kong's form (`request`, `response`, `latencies`, `tries`, `service`, `route`, `consumer`,
/// `client_ip`, `started_at`, `correlation_id`, …). Entries wait in a bounded queue and are sent in the background; a batch of one is an object, a larger one
/// a list. An answer with a status other than 2xx, or none, means that the batch is sent again, until `queue.max_retry_time`.
///
/// Sizes are those of bodies. `Authorization`, cookies, API keys and query parameters that may carry a credential are `REDACTED`. The metric
/// `weir_plugin_outcomes_total{plugin="http-log"}` counts entries `sent`, `lost` (given up) and `dropped` (queue full).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// URL, `http://` or `https://`. A user and password in it are sent as `Authorization: Basic`.
    pub http_endpoint: Secret,
    /// Method.
    #[serde(default)]
    pub method: LogMethod,
    /// `Content-Type` of what is sent.
    #[serde(default)]
    pub content_type: LogContentType,
    /// Time for a whole call, in milliseconds.
    #[serde(default = "ten_seconds")]
    #[schemars(range(min = 1, max = 2_147_483_646))]
    pub timeout: u64,
    /// Kong: how long an idle connection is kept, in milliseconds. Accepted; Weir keeps idle connections of its own calls for 30 seconds.
    #[serde(default = "minute")]
    #[schemars(range(min = 0, max = 2_147_483_646))]
    pub keepalive: u64,
    /// More headers for each call. Not `Host`, `Content-Length` or `Content-Type`.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    /// Fields of the entry (`a.b` for nested ones) that get a constant or, with `return nil`, are left out. Lua is not run: only `return` with
    /// nil, a quoted text, a number or a boolean is understood.
    #[serde(default)]
    pub custom_fields_by_lua: BTreeMap<String, String>,
    /// How entries wait and are sent.
    #[serde(default)]
    pub queue: QueueConfig,
    /// Older spelling of `queue.max_batch_size`.
    pub queue_size: Option<usize>,
    /// Older spelling of `queue.max_coalescing_delay`.
    pub flush_timeout: Option<f64>,
    /// Of older versions of Kong; without effect, as in Kong: see `queue.max_retry_time`.
    pub retry_count: Option<u32>,
    /// Kong: whether to verify the server's certificate. Accepted; Weir always does.
    pub ssl_verify: Option<bool>,
}

fn ten_seconds() -> u64 {
    10_000
}

fn minute() -> u64 {
    60_000
}

/// Methods for log entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum LogMethod {
    /// POST.
    #[default]
    Post,
    /// PUT.
    Put,
    /// PATCH.
    Patch,
}

/// Types for log entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum LogContentType {
    /// JSON.
    #[default]
    #[serde(rename = "application/json")]
    Json,
    /// JSON, with the character set that it always has.
    #[serde(rename = "application/json; charset=utf-8")]
    JsonUtf8,
}

impl Configured for Config {
    const NAME: &'static str = "http-log";
    const PRIORITY: i32 = 12;
    const EXAMPLE: &'static str = "http_endpoint: http://127.0.0.1:9880/kong
timeout: 1000
headers: {X-Source: weir}
custom_fields_by_lua: {environment: return \"production\"}
queue: {max_batch_size: 100, max_coalescing_delay: 2}
";

    type Ready = Ready;

    fn ready(self, at: &Node) -> Result<Ready, Vec<Diagnostic>> {
        // Accepted for Kong's sake; see their descriptions.
        let _ = (self.keepalive, self.retry_count, self.ssl_verify);
        let mut errors = Vec::new();
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let place = at.get("headers").unwrap_or(at);
            match header_name(at, "headers", name) {
                Ok(name) if [header::HOST, header::CONTENT_LENGTH, header::CONTENT_TYPE].contains(&name) => {
                    errors.push(wrong(place, name.as_str(), format!("`{name}` can not be set here")));
                }
                Ok(key) => match HeaderValue::from_str(value.expose()) {
                    Ok(value) => {
                        headers.append(key, value);
                    }
                    Err(_) => errors.push(wrong(place, name, "this value can not be sent in a header")),
                },
                Err(error) => errors.push(error),
            }
        }
        let kind = match self.content_type {
            LogContentType::Json => "application/json",
            LogContentType::JsonUtf8 => "application/json; charset=utf-8",
        };
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        let uri = match endpoint(self.http_endpoint.expose()) {
            Ok((uri, None)) => Some(uri),
            Ok((_, Some(_))) if headers.contains_key(header::AUTHORIZATION) => {
                errors.push(wrong(at, "http_endpoint", "there is a user in the URL and an `Authorization` header: only one of them can be sent"));
                None
            }
            Ok((uri, Some(authorization))) => {
                headers.insert(header::AUTHORIZATION, authorization);
                Some(uri)
            }
            Err(message) => {
                errors.push(wrong(at, "http_endpoint", message));
                None
            }
        };
        let custom = logging::custom_fields(at, &self.custom_fields_by_lua).unwrap_or_else(|found| {
            errors.extend(found);
            vec![]
        });
        let mut queue = self.queue;
        queue.max_batch_size = queue.max_batch_size.or(self.queue_size);
        queue.max_coalescing_delay = queue.max_coalescing_delay.or(self.flush_timeout);
        match uri {
            Some(uri) if errors.is_empty() => {
                let method = match self.method {
                    LogMethod::Post => Method::POST,
                    LogMethod::Put => Method::PUT,
                    LogMethod::Patch => Method::PATCH,
                };
                Ok(Ready { uri, method, headers, timeout: Duration::from_millis(self.timeout), custom, queue })
            }
            _ => Err(errors),
        }
    }

    fn warnings(at: &Node) -> Vec<Diagnostic> {
        let mut found = QueueConfig::warnings(at);
        for (old, message) in [
            ("queue_size", "`queue_size` is the older spelling of `queue.max_batch_size`"),
            ("flush_timeout", "`flush_timeout` is the older spelling of `queue.max_coalescing_delay`"),
            ("retry_count", "`retry_count` has no effect: a batch is sent again until `queue.max_retry_time`"),
        ] {
            if at.get(old).is_some() {
                found.push(doubtful(at, old, message));
            }
        }
        found
    }

    fn build(ready: Ready, env: &BuildEnv<'_>, _: &Live) -> Arc<dyn Plugin> {
        let Ready { uri, method, headers, timeout, custom, queue } = ready;
        let limits = queue.limits(1, 1.0);
        let single = limits.batch == 1;
        let client = env.environment.client.clone();
        let sink = HttpSink { client, uri, method, headers, timeout, single };
        Arc::new(HttpLog { custom, queue: Queue::new(Config::NAME, limits, &env.environment.metrics, sink) })
    }
}

/// Splits the user off a URL.
///
/// Errors: what is wrong with it, without showing it.
pub(crate) fn endpoint(text: &str) -> Result<(Uri, Option<HeaderValue>), String> {
    let (scheme, rest) = text.trim().split_once("://").ok_or("a URL like `http://host:port/path` is wanted")?;
    if !["http", "https"].contains(&scheme) {
        return Err("the URL's scheme must be `http` or `https`".into());
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (user, host) = rest[..end].rsplit_once('@').map_or((None, &rest[..end]), |(u, h)| (Some(u), h));
    let uri: Uri = format!("{scheme}://{host}{}", &rest[end..]).parse().map_err(|_| "this is not a URL")?;
    if uri.host().is_none_or(str::is_empty) {
        return Err("the URL has no host".into());
    }
    let authorization = user.and_then(|user| {
        let user = percent_encoding::percent_decode_str(user).collect::<Vec<u8>>();
        HeaderValue::from_str(&format!("Basic {}", BASE64_STANDARD.encode(user))).ok()
    });
    Ok((uri, authorization))
}

/// The configuration, checked.
pub struct Ready {
    uri: Uri,
    method: Method,
    headers: HeaderMap,
    timeout: Duration,
    custom: Vec<CustomField>,
    queue: QueueConfig,
}

struct HttpLog {
    custom: Vec<CustomField>,
    queue: Queue,
}

impl Plugin for HttpLog {
    fn phases(&self) -> Phases {
        Phases::LOG
    }

    fn wants_log_view(&self) -> bool {
        true
    }

    fn log(&self, cx: &RequestContext) {
        self.queue.push(Value::Object(logging::entry(cx, &self.custom)).to_string());
    }
}

struct HttpSink {
    client: OwnClient,
    uri: Uri,
    method: Method,
    headers: HeaderMap,
    timeout: Duration,
    single: bool,
}

#[async_trait]
impl Sink for HttpSink {
    async fn send(&mut self, batch: &[String]) -> Result<(), String> {
        let body: Bytes = match batch {
            [one] if self.single => one.clone().into(),
            many => format!("[{}]", many.join(",")).into(),
        };
        post(&self.client, &self.method, &self.uri, &self.headers, body, self.timeout).await
    }
}

/// One call to a sink.
///
/// Errors: it failed, or was not answered with 2xx.
pub(crate) async fn post(client: &OwnClient, method: &Method, uri: &Uri, headers: &HeaderMap, body: Bytes, timeout: Duration) -> Result<(), String> {
    /// Nobody reads the sink's answer.
    const LONGEST_ANSWER: usize = 1 << 20;
    let mut request = Request::new(body);
    *request.method_mut() = method.clone();
    *request.uri_mut() = uri.clone();
    *request.headers_mut() = headers.clone();
    let place = uri.authority().map_or("", |a| a.as_str());
    match client.call(request, timeout, LONGEST_ANSWER).await {
        Ok(answer) if answer.status().is_success() => Ok(()),
        Ok(answer) => Err(format!("{place} answered {}", answer.status().as_u16())),
        Err(error) => Err(format!("{place}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Rig, errors, get, sink::HttpSink};
    use weir_config::PluginCatalog;

    #[tokio::test]
    async fn one_entry_is_an_object_and_a_batch_a_list() {
        for (queue, list) in [("{}", false), ("{max_batch_size: 2, max_coalescing_delay: 60}", true)] {
            let mut sink = HttpSink::answering(&[200]).await;
            let config = format!("{{http_endpoint: '{}/kong?a=1', method: PUT, headers: {{X-Source: weir}}, queue: {queue}}}", sink.url);
            let rig = Rig::new(&[("http-log", &config)]);
            rig.run(get("/one")).await;
            rig.run(get("/two")).await;
            let call = sink.next().await;
            assert_eq!((call.method.as_str(), call.target.as_str(), call.header("content-type"), call.header("x-source")), ("PUT", "/kong?a=1", "application/json", "weir"));
            let body: serde_json::Value = serde_json::from_str(&call.body).unwrap();
            match list {
                false => assert_eq!(body["request"]["uri"], "/one"),
                true => assert_eq!((&body[0]["request"]["uri"], &body[1]["request"]["uri"]), (&"/one".into(), &"/two".into())),
            }
        }
    }

    #[tokio::test]
    async fn a_refused_entry_is_sent_again_and_counted_once() {
        let mut sink = HttpSink::answering(&[503, 302, 200]).await;
        let rig = Rig::new(&[("http-log", &format!("http_endpoint: '{}'", sink.url))]);
        rig.run(get("/")).await;
        let (first, second, third) = (sink.next().await, sink.next().await, sink.next().await);
        assert_eq!((first.target.as_str(), &first.body, &first.body), ("/", &second.body, &third.body));
        sink.settled(|| rig.outcome("http-log", "sent") == 1).await;
        assert_eq!(rig.outcome("http-log", "lost"), 0);
    }

    #[tokio::test]
    async fn the_user_in_the_url_is_sent_as_authorization() {
        let mut sink = HttpSink::answering(&[200]).await;
        let url = sink.url.replace("http://", "http://kim:p%40ss@");
        let rig = Rig::new(&[("http-log", &format!("http_endpoint: '{url}'"))]);
        rig.run(get("/")).await;
        assert_eq!(sink.next().await.header("authorization"), "Basic a2ltOnBAc3M=");
    }

    #[test]
    fn mistakes_and_doubts() {
        for (config, message) in [
            ("{}", "http_endpoint"),
            ("http_endpoint: localhost", "a URL like `http://host:port/path` is wanted"),
            ("http_endpoint: 'ftp://x/'", "must be `http` or `https`"),
            ("http_endpoint: 'http://'", "this is not a URL"),
            ("{http_endpoint: 'http://x', method: GET}", "GET"),
            ("{http_endpoint: 'http://x', headers: {Host: x}}", "`host` can not be set here"),
            ("{http_endpoint: 'http://a:b@x', headers: {Authorization: x}}", "only one of them"),
            ("{http_endpoint: 'http://x', custom_fields_by_lua: {a: 'return kong.x'}}", "Lua is not run here"),
            ("{http_endpoint: 'http://x', queue: {max_batch_size: 0}}", "max_batch_size"),
        ] {
            let found = errors("http-log", config);
            assert!(found.iter().any(|e| e.to_string().contains(message)), "{config}: {found:?}");
        }
        let entry = crate::testing::entry("http-log", "{http_endpoint: 'http://x', keepalive: 1000, flush_timeout: 2, retry_count: 10, queue_size: 5}");
        let found = crate::register().check("http-log", &entry.config);
        assert_eq!(found.len(), 3);
        assert!(found.iter().all(|d| d.severity == weir_config::Severity::Warning), "{found:?}");
    }
}
