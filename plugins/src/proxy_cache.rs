//! `proxy-cache`: Kong's settings for the one cache engine.

use crate::{
    Configured, Live, doubtful, header_name,
    response_cache::{self, ResponseCache, Rules},
    wrong,
};
use http::{HeaderName, Uri, header, request, response};
use schemars::JsonSchema;
use serde::Deserialize;
use std::{sync::Arc, time::Duration};
use weir_cache::{Freshness, NotForCache, Policy, Purge, status::KongsWords};
use weir_config::{Diagnostic, Encoding, Node};
use weir_gateway::{BuildEnv, Flow, Phases, Plugin, RequestContext, RouteRuntime};

/// Keeps answers in the one cache engine (see `response-cache`, which has more to set): in memory and in the store that Weir is configured with,
/// one fetch for each key however many ask. `X-Cache-Status` is `Hit`, `Miss`, `Bypass` or `Refresh` as in Kong, or `Stale`; `X-Cache-Key` is the key in
/// clear (Kong: a hash).
///
/// Stricter than Kong, since an answer for one visitor must not reach another: requests with `Authorization`, of a known consumer, or with a session
/// cookie pass by the cache; answers with `Set-Cookie` are not kept; a fetch for the cache carries no cookie, token or identity of a visitor.
/// Only GET and HEAD are served from the cache, whatever `request_method` says.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Statuses that are kept.
    #[schemars(length(min = 1))]
    pub response_code: Vec<u16>,
    /// Methods that are answered from the cache.
    pub request_method: Vec<RequestMethod>,
    /// Values of `Content-Type` of answers that are kept, parameters included: `application/json` does not mean `application/json; charset=utf-8`.
    /// `*` stands for any type or subtype.
    pub content_type: Vec<String>,
    /// How long an answer is kept, in seconds.
    #[schemars(range(min = 1))]
    pub cache_ttl: u64,
    /// Where answers are kept: either word means the engine's memory over the store that Weir is configured with.
    pub strategy: Strategy,
    /// Honour `Cache-Control` of requests and answers (RFC 9111): only answers that say for how long are kept, so long. Without it, `Cache-Control` does not
    /// count at all, and everything is kept for `cache_ttl`.
    pub cache_control: bool,
    /// Paths that differ only in case are the same.
    pub ignore_uri_case: bool,
    /// How long an answer stays in the store, in seconds: beyond its time it is served only if the service fails (or, with `cache_control`, to
    /// a client that says `max-stale`).
    pub storage_ttl: Option<u64>,
    /// Settings of Kong's memory: accepted, without effect.
    pub memory: Memory,
    /// Query parameters that belong to the key. The others are then not forwarded on fetches either. Default: all belong to it.
    pub vary_query_params: Option<Vec<String>>,
    /// Request headers whose value belongs to the key.
    pub vary_headers: Vec<String>,
    /// Which fields about the cache answers carry.
    pub response_headers: ResponseHeaders,
    /// Fetches for the cache at once, each Weir for itself; others wait or get what is stale. Default: no limit. (Kong has no such setting.)
    #[schemars(range(min = 1))]
    pub max_fills: Option<u32>,
    /// In which encodings answers that compress well may be kept besides the plain one; each is made once, in the background, when it is first asked
    /// for. Empty: none. (Kong has no such setting.)
    pub encodings: Vec<Encoding>,
}

/// Methods that may be named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum RequestMethod {
    /// GET.
    Get,
    /// HEAD, answered from what GET brought.
    Head,
    /// Not cached.
    Post,
    /// Not cached.
    Patch,
    /// Not cached.
    Put,
}

/// Names of stores.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// Memory over the store.
    #[default]
    Memory,
    /// The same.
    Redis,
}

/// Kong's memory.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Memory {
    /// Name of a shared dictionary of nginx, which Weir does not have.
    pub dictionary_name: Option<String>,
}

/// Fields about the cache.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ResponseHeaders {
    /// `Age` and `X-Cache-Age`.
    #[serde(alias = "Age")]
    #[schemars(extend("x-aliases" = ["Age"]))]
    pub age: bool,
    /// `X-Cache-Status`.
    #[serde(rename = "X-Cache-Status")]
    pub status: bool,
    /// `X-Cache-Key`.
    #[serde(rename = "X-Cache-Key")]
    pub key: bool,
}

impl Default for ResponseHeaders {
    fn default() -> Self {
        ResponseHeaders { age: true, status: true, key: true }
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            response_code: vec![200, 301, 404],
            request_method: vec![RequestMethod::Get, RequestMethod::Head],
            content_type: vec!["text/plain".into(), "application/json".into()],
            cache_ttl: 300,
            strategy: Strategy::Memory,
            cache_control: false,
            ignore_uri_case: false,
            storage_ttl: None,
            memory: Memory::default(),
            vary_query_params: None,
            vary_headers: vec![],
            response_headers: ResponseHeaders::default(),
            max_fills: None,
            encodings: weir_config::encodings(),
        }
    }
}

/// Without a length of its own, an answer that says how long it is fresh may be kept so long at most.
const LONGEST: Duration = Duration::from_secs(30 * 86_400);

impl Configured for Config {
    const NAME: &'static str = "proxy-cache";
    const PRIORITY: i32 = 100;
    const EXAMPLE: &'static str = "strategy: memory
cache_ttl: 60
content_type: [application/json, \"application/json; charset=utf-8\"]
vary_query_params: [page]
";

    type Ready = Ready;

    fn ready(self, at: &Node) -> Result<Ready, Vec<Diagnostic>> {
        let mut errors = Vec::new();
        // Both words mean the same store, and Kong's memory has no counterpart.
        let _ = (self.strategy, self.memory);
        let mut types = Vec::new();
        for text in &self.content_type {
            match MediaType::parse(text) {
                Some(kind) => types.push(kind),
                None => errors.push(wrong(at, "content_type", format!("`{}` is not a media type", text.escape_debug()))),
            }
        }
        let mut vary = Vec::new();
        for name in &self.vary_headers {
            match header_name(at, "vary_headers", name) {
                Ok(name) => vary.push(name),
                Err(error) => errors.push(error),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let ttl = Duration::from_secs(self.cache_ttl);
        let kept = self.storage_ttl.map(Duration::from_secs).unwrap_or_default();
        let policy = Policy {
            freshness: match self.cache_control {
                true => Freshness::Origin { heuristic: 0.0, cap: LONGEST, default: None },
                false => Freshness::For { ttl, override_control: true },
            },
            statuses: self.response_code,
            max_size: 32 << 20,
            stale_if_error: if self.cache_control { kept } else { kept.saturating_sub(ttl) },
            honour_request: self.cache_control,
            max_fills: self.max_fills.map(|n| n as usize),
            encodings: weir_gateway::codings(&self.encodings),
            ..response_cache::Config::default().ready(at)?.policy
        };
        let rules = Rules {
            policy,
            shared: false,
            session_cookies: weir_config::session_cookies(),
            query: self.vary_query_params,
            vary,
            by_host: false,
            fold_case: self.ignore_uri_case,
            name: Config::NAME,
        };
        let shown = &self.response_headers;
        let fields: [(bool, &[&'static str]); 3] = [(shown.age, &["age", "x-cache-age"]), (shown.status, &["x-cache-status"]), (shown.key, &["x-cache-key"])];
        let hidden = fields.iter().filter(|(shown, _)| !shown).flat_map(|(_, names)| names.iter()).map(|n| HeaderName::from_static(n)).collect();
        let (get, head) = (self.request_method.contains(&RequestMethod::Get), self.request_method.contains(&RequestMethod::Head));
        Ok(Ready { rules, types, hidden, get, head })
    }

    fn warnings(at: &Node) -> Vec<Diagnostic> {
        let mut found = Vec::new();
        for method in at.get("request_method").map_or(&[][..], Node::items).iter().filter_map(|m| Some((m, m.text()?))).filter(|(_, m)| !["GET", "HEAD"].contains(&m.as_str())) {
            let message = format!("answers to {} are not cached: the key does not know the request's body", method.1);
            found.push(Diagnostic::warning("plugin-config", method.0.span(), message));
        }
        for status in at.get("response_code").map_or(&[][..], Node::items).iter().filter(|s| s.text().is_some_and(|t| !matches!(t.parse(), Ok(200..=205 | 207..=303 | 305..=599u16)))) {
            found.push(Diagnostic::warning("plugin-config", status.span(), "answers with this status can not be kept"));
        }
        if at.get("strategy").and_then(Node::text).as_deref() == Some("redis") {
            found.push(doubtful(at, "strategy", "`redis` means the store that Weir itself is configured with"));
        }
        found
    }

    fn build(ready: Ready, env: &BuildEnv<'_>, _: &Live) -> Arc<dyn Plugin> {
        let Ready { rules, types, hidden, get, head } = ready;
        Arc::new(ProxyCache { cache: ResponseCache::new(rules, env), types, hidden, get, head })
    }
}

/// The configuration, checked.
pub struct Ready {
    rules: Rules,
    types: Vec<MediaType>,
    hidden: Vec<HeaderName>,
    get: bool,
    head: bool,
}

struct ProxyCache {
    cache: ResponseCache,
    types: Vec<MediaType>,
    hidden: Vec<HeaderName>,
    get: bool,
    head: bool,
}

/// A media type in lower case; the order of parameters does not count.
#[derive(Debug, PartialEq)]
struct MediaType {
    main: String,
    sub: String,
    parameters: Vec<String>,
}

impl MediaType {
    fn parse(text: &str) -> Option<MediaType> {
        let mut parts = text.split(';').map(|p| p.trim().to_ascii_lowercase().replace('"', ""));
        let kind = parts.next()?;
        let (main, sub) = kind.split_once('/').filter(|(m, s)| !m.is_empty() && !s.is_empty())?;
        let mut parameters: Vec<String> = parts.filter(|p| !p.is_empty()).collect();
        parameters.sort_unstable();
        Some(MediaType { main: main.into(), sub: sub.into(), parameters })
    }

    fn means(&self, other: &MediaType) -> bool {
        let fits = |pattern: &str, text: &str| pattern == "*" || pattern == text;
        fits(&self.main, &other.main) && fits(&self.sub, &other.sub) && self.parameters == other.parameters
    }
}

impl ProxyCache {
    /// Why an answer is not kept.
    fn refuses(&self, res: &response::Parts) -> Option<&'static str> {
        let kind = res.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).and_then(MediaType::parse);
        let wanted = kind.is_some_and(|kind| self.types.iter().any(|t| t.means(&kind)));
        (!wanted).then_some("content-type")
    }
}

impl Plugin for ProxyCache {
    fn phases(&self) -> Phases {
        self.cache.phases() | Phases::FROM_UPSTREAM | Phases::RESPONSE
    }

    fn request(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        let unwanted = match req.method {
            http::Method::GET => !self.get,
            http::Method::HEAD => !self.head,
            _ => false,
        };
        let reason = match () {
            () if unwanted => Some("method"),
            () if cx.consumer.is_some() || (cx.identity.is_some() && !cx.guest) => Some("authorization"),
            () => self.cache.passes(cx, req),
        };
        self.cache.decide(cx, req, reason);
        Flow::Continue
    }

    fn to_upstream(&self, cx: &mut RequestContext, req: &mut request::Parts) {
        self.cache.to_upstream(cx, req);
    }

    fn from_upstream(&self, _: &mut RequestContext, res: &mut response::Parts) {
        if let Some(reason) = self.refuses(res) {
            res.extensions.insert(NotForCache(reason));
        }
    }

    fn response(&self, cx: &mut RequestContext, res: &mut response::Parts) {
        res.extensions.insert(KongsWords);
        cx.hidden.extend(self.hidden.iter().cloned());
    }

    fn holds(&self, route: &RouteRuntime, host: &str, uri: &Uri) -> Option<Purge> {
        self.cache.holds(route, host, uri)
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Ask, Rig, Seen, ask, errors, get};
    use std::time::Duration;
    use weir_cache::{Freshness, NotForCache};
    use weir_config::PluginCatalog;

    async fn run(config: &str, ask: Ask) -> Seen {
        Rig::new(&[("proxy-cache", config)]).run(ask).await
    }

    #[tokio::test]
    async fn kongs_defaults() {
        let plan = run("strategy: memory", get("/a?b=1&a=2")).await.cx.plan.unwrap();
        assert_eq!(plan.key, "cache:GET:/a?a=2&b=1");
        assert_eq!(plan.policy.statuses, [200, 301, 404]);
        assert_eq!(plan.policy.freshness, Freshness::For { ttl: Duration::from_secs(300), override_control: true });
        assert!(!plan.policy.honour_request);
    }

    #[tokio::test]
    async fn settings_reach_the_plan() {
        let config = "{cache_ttl: 60, storage_ttl: 100, response_code: [200], vary_headers: [X-Lang], vary_query_params: [page], ignore_uri_case: true}";
        let plan = run(config, get("/A/b?page=2&x=1").with("x-lang", "de")).await.cx.plan.unwrap();
        assert_eq!(plan.key, "cache:GET:/a/b?page=2|x-lang=de");
        assert_eq!((plan.policy.statuses.as_slice(), plan.policy.stale_if_error), (&[200][..], Duration::from_secs(40)));
        let plan = run("{cache_control: true, storage_ttl: 100}", get("/A")).await.cx.plan.unwrap();
        assert_eq!(plan.key, "cache:GET:/A");
        assert!(plan.policy.honour_request && matches!(plan.policy.freshness, Freshness::Origin { default: None, .. }));
    }

    #[tokio::test]
    async fn what_passes_by_the_cache() {
        for (config, ask, detail) in [
            ("{}", ask("POST", "/"), "method"),
            ("request_method: [GET]", ask("HEAD", "/"), "method"),
            ("request_method: [HEAD]", get("/"), "method"),
            ("request_method: [GET, POST]", ask("POST", "/"), "method"),
            ("{}", get("/").with("authorization", "Bearer x"), "authorization"),
            ("{}", get("/").as_consumer("kim"), "authorization"),
            ("{}", get("/").known_as("kim", None), "authorization"),
        ] {
            let seen = run(config, ask).await;
            assert!(seen.cx.plan.is_none(), "{config} {detail}");
            assert_eq!(seen.cx.report.unwrap().detail, Some(detail), "{config}");
        }
        assert!(run("{}", ask("HEAD", "/")).await.cx.plan.is_some());
    }

    #[tokio::test]
    async fn only_answers_of_the_right_type_are_kept() {
        let refused = async |config: &str, fields: &[(&'static str, &str)]| {
            let mut rig = Rig::new(&[("proxy-cache", config)]);
            for (name, value) in fields {
                rig = rig.upstream_field(name, value);
            }
            rig.run(get("/")).await.extension::<NotForCache>().map(|n| n.0)
        };
        let types = "content_type: [application/json, 'text/html; charset=UTF-8', 'image/*']";
        for (kind, reason) in [
            ("application/json", None),
            ("Application/JSON", None),
            ("application/json; charset=utf-8", Some("content-type")),
            ("text/html;charset=utf-8", None),
            ("text/html", Some("content-type")),
            ("image/png", None),
            ("nonsense", Some("content-type")),
        ] {
            assert_eq!(refused(types, &[("content-type", kind)]).await, reason, "{kind}");
        }
        assert_eq!(refused("{}", &[]).await, Some("content-type"));
    }

    #[tokio::test]
    async fn fields_about_the_cache_can_be_hidden() {
        let rig = Rig::new(&[("proxy-cache", "response_headers: {age: false, X-Cache-Key: false}")]);
        let rig = ["age", "x-cache-age", "x-cache-key", "x-cache-status"].into_iter().fold(rig, |rig, name| rig.upstream_field(name, "1"));
        let seen = rig.run(get("/")).await;
        let shown = ["age", "x-cache-age", "x-cache-key", "x-cache-status"].map(|name| seen.header(name).is_some());
        assert_eq!(shown, [false, false, false, true]);
    }

    #[test]
    fn mistakes_and_doubts() {
        for (config, message) in [
            ("cache_ttl: 0", "cache_ttl"),
            ("strategy: disk", "disk"),
            ("content_type: [json]", "`json` is not a media type"),
            ("vary_headers: ['a b']", "`a b` is not a header name"),
            ("request_method: [DELETE]", "DELETE"),
            ("response_code: []", "response_code"),
        ] {
            let found = errors("proxy-cache", config);
            assert!(found.iter().any(|e| e.to_string().contains(message)), "{config}: {found:?}");
        }
        let entry = crate::testing::entry("proxy-cache", "{strategy: redis, request_method: [GET, POST], response_code: [200, 206], memory: {dictionary_name: kong}}");
        let found = crate::register().check("proxy-cache", &entry.config);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found.iter().all(|d| d.severity == weir_config::Severity::Warning));
    }
}
