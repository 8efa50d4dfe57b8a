//! `request-termination`: a fixed answer.

use crate::{Configured, Live, header_name, query, wrong};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use weir_config::{Diagnostic, Node};
use weir_gateway::{BuildEnv, Flow, Phases, Plugin, Reply, RequestContext};

const BY: &str = "request-termination";
/// So much of a request's body is echoed.
const MOST_ECHOED: usize = 64 * 1024;

/// Answers requests itself: for maintenance, for a path that is gone, or, with `echo`, to see what arrives here. Without `body` the answer is
/// `{"message": …}`, with a usual message for 401, 404, 405, 500, 502 and 503, and nothing for other statuses without `message`. With `trigger` only requests that carry a header or
/// query parameter of that name are answered; the others go on. Fields, defaults and messages are Kong's.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Status of the answer.
    #[schemars(range(min = 200, max = 599))]
    pub status_code: u16,
    /// Message of the answer. Not together with `body` or `content_type`.
    pub message: Option<String>,
    /// Body of the answer, as it is. Not together with `message` or `echo`.
    pub body: Option<String>,
    /// `Content-Type` of `body`.
    pub content_type: Option<String>,
    /// Header or query parameter that makes the plugin answer. Not set: it answers all requests.
    pub trigger: Option<String>,
    /// Answer with a description of the request, the first 64 KB of its body included.
    pub echo: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config { status_code: 503, message: None, body: None, content_type: None, trigger: None, echo: false }
    }
}

impl Configured for Config {
    const NAME: &'static str = BY;
    const PRIORITY: i32 = 2;
    const EXAMPLE: &'static str = "status_code: 503\ncontent_type: text/html; charset=utf-8\nbody: <h1>We are back in an hour</h1>\n";
    type Ready = Rules;

    fn ready(mut self, at: &Node) -> Result<Rules, Vec<Diagnostic>> {
        let mut errors = Vec::new();
        // As in Kong, an empty text is as good as none.
        for text in [&mut self.message, &mut self.body, &mut self.content_type] {
            *text = text.take().filter(|t| !t.is_empty());
        }
        let raw = self.body.is_some() || self.content_type.is_some();
        if self.message.is_some() && raw {
            errors.push(wrong(at, "message", "`message` cannot be used with `content_type` or `body`"));
        }
        if self.content_type.is_some() && self.body.is_none() {
            errors.push(wrong(at, "content_type", "`content_type` requires a `body`"));
        }
        if self.echo && raw {
            errors.push(wrong(at, "echo", "`echo` cannot be used with `content_type` and `body`"));
        }
        let kind = match self.content_type.as_deref().map(HeaderValue::from_str) {
            Some(Err(_)) => {
                errors.push(wrong(at, "content_type", "this can not stand in a header"));
                None
            }
            Some(Ok(kind)) => Some(kind),
            None => None,
        };
        let trigger = self.trigger.and_then(|name| header_name(at, "trigger", &name).map(|header| (header, name)).map_err(|e| errors.push(e)).ok());
        let status = StatusCode::from_u16(self.status_code).ok().filter(|s| (200..600).contains(&s.as_u16()));
        if status.is_none() {
            errors.push(wrong(at, "status_code", "a status between 200 and 599 is wanted"));
        }
        match status {
            Some(status) if errors.is_empty() => Ok(Rules {
                status,
                message: self.message.or_else(|| usual(self.status_code).map(str::to_owned)),
                body: self.body.map(Bytes::from),
                kind,
                trigger,
                echo: self.echo,
            }),
            _ => Err(errors),
        }
    }

    fn build(ready: Rules, _: &BuildEnv<'_>, _: &Live) -> Arc<dyn Plugin> {
        Arc::new(RequestTermination(ready))
    }
}

fn usual(status: u16) -> Option<&'static str> {
    Some(match status {
        401 => "Unauthorized",
        404 => "Not found",
        405 => "Method not allowed",
        500 => "An unexpected error occurred",
        502 => "Bad Gateway",
        503 => "Service unavailable",
        _ => return None,
    })
}

/// The configuration, checked.
pub struct Rules {
    status: StatusCode,
    message: Option<String>,
    body: Option<Bytes>,
    kind: Option<HeaderValue>,
    trigger: Option<(HeaderName, String)>,
    echo: bool,
}

struct RequestTermination(Rules);

impl Plugin for RequestTermination {
    fn phases(&self) -> Phases {
        Phases::REQUEST
    }

    fn reads_body(&self) -> Option<usize> {
        self.0.echo.then_some(MOST_ECHOED)
    }

    fn request(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        let rules = &self.0;
        if let Some((header, name)) = &rules.trigger
            && !req.headers.contains_key(header)
            && !query::has(req.uri.query().unwrap_or_default(), name)
        {
            return Flow::Continue;
        }
        if rules.echo {
            return Flow::Reply(Reply::json(BY, rules.status, &echo(cx, req, rules.message.as_deref())));
        }
        let reply = match (&rules.body, &rules.message) {
            (Some(body), _) => {
                let mut reply = Reply::empty(BY, rules.status);
                reply.body = body.clone();
                if let Some(kind) = &rules.kind {
                    reply.headers.insert(header::CONTENT_TYPE, kind.clone());
                }
                reply
            }
            (None, Some(message)) => Reply::message(BY, rules.status, message),
            (None, None) => Reply::empty(BY, rules.status),
        };
        Flow::Reply(reply)
    }
}

/// One value as it is, several as a list.
fn by_name(pairs: impl Iterator<Item = (String, Value)>) -> Value {
    let mut all = Map::new();
    for (name, value) in pairs {
        match all.get_mut(&name) {
            None => drop(all.insert(name, value)),
            Some(Value::Array(several)) => several.push(value),
            Some(one) => *one = Value::Array(vec![one.take(), value]),
        }
    }
    Value::Object(all)
}

fn text(bytes: &[u8]) -> Value {
    String::from_utf8_lossy(bytes).into()
}

/// The request as it arrived here.
fn echo(cx: &RequestContext, req: &request::Parts, message: Option<&str>) -> Value {
    let client = &cx.client;
    let headers = by_name(req.headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value.as_bytes()))));
    let pairs = crate::pairs::read(req.uri.query().unwrap_or_default());
    let query = by_name(pairs.map(|(name, value)| (name, value.map_or(Value::Bool(true), Value::String))));
    let raw = cx.body.as_ref().map(|seen| seen.bytes.clone()).unwrap_or_default();
    let host = client.host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map_or(client.host.as_str(), |(host, _)| host);
    json!({
        "message": message,
        "kong": { "hostname": hostname(), "worker_pid": std::process::id() },
        "request": {
            "scheme": client.scheme.as_str(),
            "host": host,
            "port": client.port,
            "method": req.method.as_str(),
            "path": req.uri.path(),
            "query": query,
            "headers": headers,
            "body": parsed(&req.headers, &raw),
            "raw_body": text(&raw),
        },
        "matched_route": cx.route.as_ref().map(|r| json!({ "name": r.name, "paths": r.paths, "methods": r.methods })),
        "matched_service": cx.service.as_ref().map(|s| json!({ "name": s.name, "host": s.host, "path": s.path })),
    })
}

/// A JSON or form body taken apart.
fn parsed(headers: &HeaderMap, raw: &[u8]) -> Value {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    match kind.split(';').next().unwrap_or_default().trim() {
        "application/json" => serde_json::from_slice(raw).unwrap_or(Value::Null),
        "application/x-www-form-urlencoded" => {
            let body = String::from_utf8_lossy(raw);
            by_name(crate::pairs::read(&body).map(|(name, value)| (name, value.map_or(Value::Bool(true), Value::String))))
        }
        _ => Value::Null,
    }
}

fn hostname() -> Option<String> {
    std::fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use crate::testing::{Ask, Rig, Seen, ask, errors, get};
    use serde_json::json;

    async fn run(config: &str, ask: Ask) -> Seen {
        Rig::new(&[("request-termination", config)]).run(ask).await
    }

    #[tokio::test]
    async fn usual_and_own_messages() {
        for (config, status, body) in [
            ("{}", 503, r#"{"message":"Service unavailable"}"#),
            ("status_code: 401", 401, r#"{"message":"Unauthorized"}"#),
            ("status_code: 404", 404, r#"{"message":"Not found"}"#),
            ("status_code: 405", 405, r#"{"message":"Method not allowed"}"#),
            ("status_code: 500", 500, r#"{"message":"An unexpected error occurred"}"#),
            ("status_code: 502", 502, r#"{"message":"Bad Gateway"}"#),
            ("status_code: 418", 418, ""),
            ("{status_code: 200, message: ''}", 200, ""),
            ("{status_code: 403, message: Go away}", 403, r#"{"message":"Go away"}"#),
        ] {
            let seen = run(config, get("/")).await;
            assert_eq!((seen.status(), seen.body.as_str()), (status, body), "{config}");
            let kind = (!body.is_empty()).then_some("application/json; charset=utf-8");
            assert_eq!(seen.header("content-type"), kind, "{config}");
            assert!(!seen.forwarded());
        }
    }

    #[tokio::test]
    async fn a_body_as_it_is() {
        let seen = run("{status_code: 200, content_type: text/html, body: '<b>x</b>'}", get("/")).await;
        assert_eq!((seen.status(), seen.body.as_str(), seen.header("content-type")), (200, "<b>x</b>", Some("text/html")));
        let seen = run("{status_code: 404, body: '{}'}", get("/")).await;
        assert_eq!((seen.body.as_str(), seen.header("content-type")), ("{}", None));
    }

    #[tokio::test]
    async fn a_trigger_chooses_the_requests() {
        for (ask, status) in [
            (get("/"), 200),
            (get("/?other=1"), 200),
            (get("/").with("x-stop", ""), 503),
            (get("/?x-stop"), 503),
            (get("/?a=1&x-stop=0"), 503),
        ] {
            assert_eq!(run("trigger: x-stop", ask).await.status(), status);
        }
    }

    #[tokio::test]
    async fn an_echo_describes_the_request() {
        let ask = ask("POST", "/p/a?x=1&x=2&flag&y=%20")
            .with("content-type", "application/x-www-form-urlencoded")
            .with("x-a", "1")
            .with("x-a", "2")
            .body("a=b+c");
        let seen = run("{echo: true, status_code: 200, message: hi}", ask).await;
        assert_eq!(seen.status(), 200);
        let told = seen.json();
        assert_eq!(told["message"], "hi");
        assert!(told["kong"]["worker_pid"].is_u64());
        assert_eq!(
            told["request"],
            json!({
                "scheme": "http", "host": "api.example", "port": 8000, "method": "POST", "path": "/p/a",
                "query": { "x": ["1", "2"], "flag": true, "y": " " },
                "headers": { "content-type": "application/x-www-form-urlencoded", "x-a": ["1", "2"] },
                "body": { "a": "b c" }, "raw_body": "a=b+c",
            })
        );
        let seen = run("{echo: true, trigger: x-debug}", get("/")).await;
        assert!(seen.forwarded());
    }

    #[test]
    fn settings_that_do_not_go_together() {
        for (config, message) in [
            ("{message: a, body: b}", "`message` cannot be used with `content_type` or `body`"),
            ("content_type: text/html", "`content_type` requires a `body`"),
            ("{echo: true, body: x}", "`echo` cannot be used with `content_type` and `body`"),
            ("status_code: 600", "599"),
            ("trigger: 'a b'", "`a b` is not a header name"),
        ] {
            let found = errors("request-termination", config);
            assert!(found[0].message.contains(message), "{config}: {}", found[0]);
        }
    }
}
