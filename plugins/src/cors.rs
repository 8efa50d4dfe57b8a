//! `cors`: who may call from a page of another origin.

use crate::{Configured, Live, wrong};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request, response};
use regex::Regex;
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;
use weir_config::{Diagnostic, Node};
use weir_gateway::{BuildEnv, Environment, Flow, Phases, Plugin, Reply, RequestContext, Sight};

/// Cross-Origin Resource Sharing: answers browsers' preflight requests, and puts the permission on answers, errors made by Weir
/// included. Fields, defaults and headers are Kong's. Without this plugin browsers keep pages of other origins from reading answers.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Origins that may read answers: `https://shop.example.com`, a regular expression, or `*`. An expression must match the whole of the
    /// origin (`https://a\.b`), or of the host where it has no `:`. Empty: everyone. The same single origin is named whatever the
    /// request says; of several, the one that asks is named back.
    pub origins: Vec<String>,
    /// Methods that preflights allow.
    pub methods: Vec<Verb>,
    /// Request headers that preflights allow. Empty: those that the preflight asks for.
    pub headers: Vec<String>,
    /// Answer headers that the page may read.
    pub exposed_headers: Vec<String>,
    /// Allow requests with cookies or other credentials. With `origins: ["*"]` every origin that asks is then named back and may act as the
    /// visitor: list origins instead.
    pub credentials: bool,
    /// Seconds that a browser may remember a preflight.
    pub max_age: Option<u64>,
    /// Leave preflights to the upstream; Weir then adds nothing to their answers.
    pub preflight_continue: bool,
    /// Allow pages of the public network to call a private one (`Access-Control-Allow-Private-Network`).
    pub private_network: bool,
    /// Put the headers also on answers to requests without `Origin`.
    pub allow_origin_absent: bool,
}

/// A method that preflights may allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verb {
    /// `GET`.
    Get,
    /// `HEAD`.
    Head,
    /// `PUT`.
    Put,
    /// `PATCH`.
    Patch,
    /// `POST`.
    Post,
    /// `DELETE`.
    Delete,
    /// `OPTIONS`.
    Options,
    /// `TRACE`.
    Trace,
    /// `CONNECT`.
    Connect,
}

impl Verb {
    const ALL: [Verb; 9] =
        [Verb::Get, Verb::Head, Verb::Put, Verb::Patch, Verb::Post, Verb::Delete, Verb::Options, Verb::Trace, Verb::Connect];

    fn as_str(self) -> &'static str {
        match self {
            Verb::Get => "GET",
            Verb::Head => "HEAD",
            Verb::Put => "PUT",
            Verb::Patch => "PATCH",
            Verb::Post => "POST",
            Verb::Delete => "DELETE",
            Verb::Options => "OPTIONS",
            Verb::Trace => "TRACE",
            Verb::Connect => "CONNECT",
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            origins: vec![],
            methods: Verb::ALL.to_vec(),
            headers: vec![],
            exposed_headers: vec![],
            credentials: false,
            max_age: None,
            preflight_continue: false,
            private_network: false,
            allow_origin_absent: true,
        }
    }
}

impl Configured for Config {
    const NAME: &'static str = "cors";
    const PRIORITY: i32 = 2000;
    const EXAMPLE: &'static str = "origins: [https://shop.example.com, 'https://.*\\.preview\\.example\\.com']
methods: [GET, POST, DELETE]
headers: [Authorization, Content-Type, Idempotency-Key]
exposed_headers: [X-Cache-Status]
credentials: true
max_age: 3600
";

    type Ready = Rules;

    fn warnings(at: &Node) -> Vec<Diagnostic> {
        let origins = at.get("origins").map(Node::items).unwrap_or_default();
        let odd = origins.iter().filter(|origin| origin.text().is_some_and(|text| is_plain(&text) && normalized(&text).is_none()));
        odd.map(|origin| Diagnostic::warning("plugin-config", origin.span(), "no browser sends this: an origin has a scheme").hint("write it like `https://shop.example.com`")).collect()
    }

    fn ready(self, at: &Node) -> Result<Rules, Vec<Diagnostic>> {
        let mut errors = Vec::new();
        let mut list = |key: &str, items: &[String]| match HeaderValue::from_str(&items.join(",")) {
            Ok(value) => (!items.is_empty()).then_some(value),
            Err(_) => {
                errors.push(wrong(at, key, "these are not header names"));
                None
            }
        };
        let headers = list("headers", &self.headers);
        let exposed = list("exposed_headers", &self.exposed_headers);
        let methods: Vec<&str> = self.methods.iter().map(|m| m.as_str()).collect();
        let methods = list("methods", &[methods.join(",")]);
        let allowed = match Allowed::new(&self.origins) {
            Ok(allowed) => allowed,
            Err((index, why)) => {
                let span = at.get("origins").and_then(|o| o.items().get(index)).map_or(at.span(), Node::span);
                errors.push(Diagnostic::error("plugin-config", span, why));
                Allowed::Everyone
            }
        };
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Rules {
            allowed,
            methods,
            headers,
            exposed,
            credentials: self.credentials,
            max_age: self.max_age.map(HeaderValue::from),
            preflight_continue: self.preflight_continue,
            private_network: self.private_network,
            allow_origin_absent: self.allow_origin_absent,
        })
    }

    fn build(ready: Rules, env: &BuildEnv<'_>, _: &Live) -> Arc<dyn Plugin> {
        Arc::new(Cors { rules: ready, environment: env.environment.clone() })
    }
}

/// Who may read.
enum Allowed {
    /// Everyone: `*`.
    Everyone,
    /// This origin is named, whoever asks.
    One(HeaderValue),
    /// Those that match are named back.
    Some(Vec<Matcher>),
}

enum Matcher {
    Everyone,
    /// A whole origin, normalized.
    Origin(String),
    /// Against the whole origin.
    OriginPattern(Regex),
    /// Against the host alone.
    HostPattern(Regex),
}

/// Whether an entry is an origin and not an expression: Kong's test.
fn is_plain(entry: &str) -> bool {
    entry.bytes().all(|b| b.is_ascii_alphanumeric() || b".:/-".contains(&b))
}

impl Allowed {
    fn new(origins: &[String]) -> Result<Allowed, (usize, String)> {
        match origins {
            [] => return Ok(Allowed::Everyone),
            [one] if one == "*" => return Ok(Allowed::Everyone),
            [one] if is_plain(one) => {
                return HeaderValue::from_str(one).map(Allowed::One).map_err(|_| (0, "this is not an origin".into()));
            }
            _ => {}
        }
        let mut matchers = Vec::new();
        for (index, entry) in origins.iter().enumerate() {
            matchers.push(match (entry.as_str(), is_plain(entry).then(|| normalized(entry)).flatten()) {
                ("*", _) => Matcher::Everyone,
                (_, Some((origin, _))) => Matcher::Origin(origin),
                // Without a scheme it is nobody's origin, and its dots are dots.
                (text, None) if is_plain(text) => Matcher::Origin(text.to_ascii_lowercase()),
                _ => {
                    // Anchored at both ends: `shop\.com` must not let `shop.com.evil.net` in.
                    let pattern = Regex::new(&format!("^(?:{entry})$")).map_err(|e| (index, format!("this is neither an origin nor a regular expression: {e}")))?;
                    if entry.contains(':') { Matcher::OriginPattern(pattern) } else { Matcher::HostPattern(pattern) }
                }
            });
        }
        Ok(Allowed::Some(matchers))
    }
}

/// An origin in lower case without its scheme's own port, and its host. `None` if it is not of the form `scheme://host[:port]`.
fn normalized(origin: &str) -> Option<(String, String)> {
    let (scheme, rest) = origin.split_once("://")?;
    let scheme = scheme.to_ascii_lowercase();
    let rest = rest.strip_suffix('/').unwrap_or(rest).to_ascii_lowercase();
    if scheme.is_empty() || rest.is_empty() || rest.contains(['/', '?', '#', '@', ' ']) {
        return None;
    }
    let bracket = rest.rfind(']').map_or(0, |i| i + 1);
    let colon = rest[bracket..].find(':').map(|i| i + bracket);
    let (host, port) = match colon {
        Some(i) => (&rest[..i], rest[i + 1..].parse::<u16>().ok().filter(|_| !rest[i + 1..].starts_with('+'))),
        None => (&rest[..], None),
    };
    if colon.is_some() && port.is_none() || host.is_empty() {
        return None;
    }
    let default = match scheme.as_str() {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    };
    let whole = match port.filter(|p| Some(*p) != default) {
        Some(port) => format!("{scheme}://{host}:{port}"),
        None => format!("{scheme}://{host}"),
    };
    Some((whole, host.to_owned()))
}

/// The configuration, compiled.
pub struct Rules {
    allowed: Allowed,
    methods: Option<HeaderValue>,
    headers: Option<HeaderValue>,
    exposed: Option<HeaderValue>,
    credentials: bool,
    max_age: Option<HeaderValue>,
    preflight_continue: bool,
    private_network: bool,
    allow_origin_absent: bool,
}

struct Cors {
    rules: Rules,
    environment: Arc<Environment>,
}

/// What the response step must know of the request.
#[derive(Clone)]
enum Asked {
    /// A preflight: its answer is complete, or the upstream's business.
    Preflight,
    /// By this origin, if it said so.
    Origin(Option<HeaderValue>),
}

const PRIVATE_NETWORK_ASKED: HeaderName = HeaderName::from_static("access-control-request-private-network");
const PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");

impl Rules {
    fn permit(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        // A star for everybody is the same whoever asks.
        if self.credentials || !matches!(self.allowed, Allowed::Everyone) {
            vary_by_origin(headers);
        }
        let star = HeaderValue::from_static("*");
        let (named, everyone) = match &self.allowed {
            Allowed::Everyone => (Some(star), true),
            Allowed::One(origin) => (Some(origin.clone()), false),
            Allowed::Some(matchers) => (origin.and_then(|o| matching(matchers, o)), false),
        };
        match named {
            // The star says nothing about credentials: who wants both must be named.
            Some(_) if everyone && self.credentials && origin.is_some() => {
                if let Some(origin) = origin {
                    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
                    headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
                }
            }
            Some(named) => {
                headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, named);
                if self.credentials && !everyone {
                    headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
                }
            }
            // Also what the upstream said: this plugin decides here.
            None => {
                headers.remove(header::ACCESS_CONTROL_ALLOW_ORIGIN);
                headers.remove(header::ACCESS_CONTROL_ALLOW_CREDENTIALS);
            }
        }
    }

    fn preflight(&self, asked: &HeaderMap) -> Reply {
        let mut reply = Reply::empty("cors", StatusCode::OK);
        let headers = &mut reply.headers;
        self.permit(asked.get(header::ORIGIN), headers);
        if let Some(value) = self.headers.as_ref().or_else(|| asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS)) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, value.clone());
        }
        if let Some(value) = &self.methods {
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, value.clone());
        }
        if let Some(value) = &self.max_age {
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, value.clone());
        }
        if self.private_network && asked.get(PRIVATE_NETWORK_ASKED).is_some_and(|v| v == "true") {
            headers.insert(PRIVATE_NETWORK, HeaderValue::from_static("true"));
        }
        reply
    }
}

/// The value that names `origin` back, if it may read.
fn matching(matchers: &[Matcher], origin: &HeaderValue) -> Option<HeaderValue> {
    // `null` and other odd origins match nothing but a star.
    let parts = origin.to_str().ok().and_then(normalized);
    for matcher in matchers {
        let found = match (matcher, &parts) {
            (Matcher::Everyone, _) => return Some(origin.clone()),
            (Matcher::Origin(want), Some((whole, _))) => want == whole,
            (Matcher::OriginPattern(pattern), Some((whole, _))) => pattern.is_match(whole),
            (Matcher::HostPattern(pattern), Some((_, host))) => pattern.is_match(host),
            (_, None) => false,
        };
        if found {
            return Some(origin.clone());
        }
    }
    None
}

/// Adds `Origin` to `Vary`, so that caches keep the answers apart.
fn vary_by_origin(headers: &mut HeaderMap) {
    let named = |v: &HeaderValue| {
        let text = v.to_str().unwrap_or_default();
        text.split(',').any(|field| field.trim() == "*" || field.trim().eq_ignore_ascii_case("origin"))
    };
    if !headers.get_all(header::VARY).iter().any(named) {
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
    }
}

impl Plugin for Cors {
    fn phases(&self) -> Phases {
        Phases::REQUEST | Phases::RESPONSE
    }

    fn sees_of_request(&self) -> Sight {
        Sight::Only(vec![header::ORIGIN, header::ACCESS_CONTROL_REQUEST_METHOD, header::ACCESS_CONTROL_REQUEST_HEADERS])
    }

    fn sees_of_answer(&self) -> Sight {
        let names = [header::ACCESS_CONTROL_ALLOW_ORIGIN, header::ACCESS_CONTROL_ALLOW_CREDENTIALS, header::ACCESS_CONTROL_EXPOSE_HEADERS];
        Sight::Only(names.into_iter().chain([header::VARY]).collect())
    }

    fn request(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        let origin = req.headers.get(header::ORIGIN);
        let preflight = req.method == Method::OPTIONS && origin.is_some() && req.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        if !preflight {
            cx.state.insert(Asked::Origin(origin.cloned()));
            return Flow::Continue;
        }
        cx.state.insert(Asked::Preflight);
        if self.rules.preflight_continue {
            return Flow::Continue;
        }
        self.environment.metrics.plugin("cors", "preflight");
        Flow::Reply(self.rules.preflight(&req.headers))
    }

    fn response(&self, cx: &mut RequestContext, res: &mut response::Parts) {
        let origin = match cx.state.get::<Asked>() {
            Some(Asked::Preflight) => return,
            Some(Asked::Origin(origin)) => origin.as_ref(),
            // The request never came as far as this plugin, so that its origin is not known.
            None => None,
        };
        if origin.is_none() && !self.rules.allow_origin_absent {
            return;
        }
        self.rules.permit(origin, &mut res.headers);
        if let Some(value) = &self.rules.exposed {
            res.headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, value.clone());
        }
    }
}

#[cfg(test)]
mod tests;
