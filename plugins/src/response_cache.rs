//! `response-cache`: answers of an API, kept by the one cache engine.

use crate::{Configured, Live, cookies, header_name, wrong};
use http::{HeaderMap, HeaderName, Method, Uri, header, request};
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use schemars::JsonSchema;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::{fmt::Write, sync::Arc, time::Duration};
use weir_cache::{Freshness, Gate, Plan, Policy, Purge, Report, Verdict};
use weir_config::{Diagnostic, Encoding, Millis, Node, Size};
use weir_gateway::{BuildEnv, Environment, Flow, Phases, Plugin, RequestContext, RouteRuntime};

/// Keeps answers to GET (which also serve HEAD) in memory and in the store, one fetch for each key however many ask. The key, shown in
/// `X-Cache-Key`, is `cache:GET:` with path and sorted query; each route keeps its own. `Cache-Control` of the answer
/// is honoured: `no-store`, `no-cache` and `private` are not stored, a shorter `s-maxage` or `max-age` wins over `ttl`, and so does `Set-Cookie`
/// over storing. Requests of a signed-in visitor – one whom a plugin knows, or with an `Authorization` that is not Weir's own guest token, or with one of the
/// `session_cookies` – pass by the cache, in both directions (stricter than RFC 9111 section 3.5), unless `shared` says that the answer is the
/// same for everyone. A fetch for the cache never carries a visitor's cookie, token or identity. A caller with the warm-up token refreshes an entry with `X-Cache-Refresh: true`; an unsafe request that succeeds drops
/// the entries of its URL and of those that `Location` and `Content-Location` of its answer name, whichever route it came by (RFC 9111
/// section 4.4).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How long an answer is fresh that does not say so itself, and the most where it does.
    pub ttl: Millis,
    /// Keep only answers that say themselves how long they are good for (RFC 9111), so long, and `ttl` at the most.
    pub explicit_only: bool,
    /// Whether `Cache-Control` of requests counts (RFC 9111 section 5.2.1). Callers can then make the service work.
    pub honour_request: bool,
    /// Statuses that are stored.
    pub statuses: Vec<u16>,
    /// Largest body that is stored.
    pub max_size: Size,
    /// The answer is the same for everyone: signed-in visitors are served from the cache too. Say it only of answers without anything
    /// personal in them.
    pub shared: bool,
    /// Cookies that mean "this visitor is signed in". Other cookies do not matter: the service never sees them on fetches for the cache.
    pub session_cookies: Vec<String>,
    /// Query parameters that belong to the key. The others are then neither in the key nor forwarded. Default: all belong to it.
    pub query: Option<Vec<String>>,
    /// Request headers whose value belongs to the key, for services that do not say `Vary`.
    pub vary_headers: Vec<String>,
    /// Keep answers apart by the host that was asked for. Always so on routes with `preserve_host`; elsewhere the service does not see that
    /// host on fetches for the cache.
    pub by_host: bool,
    /// How long an answer that is over its time may be served while a new one is fetched.
    pub stale_while_revalidate: Millis,
    /// How long an answer that is over its time may be served when the service fails.
    pub stale_if_error: Millis,
    /// Tags for purging, beside those that answers name.
    pub tags: Vec<String>,
    /// Store for `ttl` even what says `private`, `no-store` or `no-cache`. Say it only of answers that are the same for everyone.
    pub override_cache_control: bool,
    /// Longest wait for another request's fetch before asking the service oneself.
    pub max_wait: Millis,
    /// Fetches for the cache of this route (or service) at once, each Weir for itself; others wait or get what is stale. Default: no limit.
    #[schemars(range(min = 1))]
    pub max_fills: Option<u32>,
    /// In which encodings answers that compress well may be kept besides the plain one; each is made once, in the background, when it is first asked
    /// for. Empty: none.
    pub encodings: Vec<Encoding>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            ttl: Millis::secs(300),
            explicit_only: false,
            honour_request: false,
            statuses: vec![200, 301, 302],
            max_size: Size(2 << 20),
            shared: false,
            session_cookies: weir_config::session_cookies(),
            query: None,
            vary_headers: vec![],
            by_host: false,
            stale_while_revalidate: Millis::secs(0),
            stale_if_error: Millis::secs(0),
            tags: vec![],
            override_cache_control: false,
            max_wait: Millis::secs(10),
            max_fills: None,
            encodings: weir_config::encodings(),
        }
    }
}

impl Configured for Config {
    const NAME: &'static str = "response-cache";
    const ALIASES: &'static [&'static str] = &["simple-redis-cache"];
    const PRIORITY: i32 = 100;
    const EXAMPLE: &'static str = "ttl: 300s
max_size: 2MB
shared: true
query: [page, sort]
stale_while_revalidate: 1m
stale_if_error: 1h
tags: [catalogue]
";
    type Ready = Rules;

    fn ready(self, at: &Node) -> Result<Rules, Vec<Diagnostic>> {
        let mut errors = Vec::new();
        if self.ttl.get().is_zero() {
            errors.push(wrong(at, "ttl", "a time above zero is wanted"));
        }
        for status in self.statuses.iter().filter(|s| !(200..600).contains(*s) || matches!(s, 206 | 304)) {
            errors.push(wrong(at, "statuses", format!("answers with status {status} can not be stored")));
        }
        if self.explicit_only && self.override_cache_control {
            errors.push(wrong(at, "explicit_only", "`override_cache_control` says the opposite"));
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
        let ttl = self.ttl.get();
        let policy = Policy {
            name: String::new(),
            freshness: match self.override_cache_control {
                true => Freshness::For { ttl, override_control: true },
                false => Freshness::Origin { heuristic: 0.0, cap: ttl, default: (!self.explicit_only).then_some(ttl) },
            },
            gate: Gate::Plain,
            statuses: self.statuses,
            max_size: self.max_size.get(),
            stale_while_revalidate: self.stale_while_revalidate.get(),
            stale_if_error: self.stale_if_error.get(),
            tags: self.tags,
            honour_request: self.honour_request,
            early_refresh_beta: 1.0,
            hit_for_miss: Duration::from_secs(5),
            lease: Duration::from_secs(10),
            max_wait: self.max_wait.get(),
            max_fills: self.max_fills.map(|n| n as usize),
            client_cache_control: None,
            encodings: weir_gateway::codings(&self.encodings),
        };
        Ok(Rules {
            policy,
            shared: self.shared,
            session_cookies: self.session_cookies,
            query: self.query,
            vary,
            by_host: self.by_host,
            fold_case: false,
            name: Config::NAME,
        })
    }

    fn build(ready: Rules, env: &BuildEnv<'_>, _: &Live) -> Arc<dyn Plugin> {
        Arc::new(ResponseCache::new(ready, env))
    }
}

/// The configuration, checked.
pub struct Rules {
    pub(crate) policy: Policy,
    pub(crate) shared: bool,
    pub(crate) session_cookies: Vec<String>,
    pub(crate) query: Option<Vec<String>>,
    pub(crate) vary: Vec<HeaderName>,
    pub(crate) by_host: bool,
    /// Paths that differ only in case are the same.
    pub(crate) fold_case: bool,
    /// The plugin's name, for metrics.
    pub(crate) name: &'static str,
}

/// The plugin; `proxy-cache` stands on it too.
pub(crate) struct ResponseCache {
    policy: Arc<Policy>,
    shared: bool,
    session_cookies: Vec<String>,
    query: Option<Vec<String>>,
    vary: Vec<HeaderName>,
    by_host: bool,
    fold_case: bool,
    name: &'static str,
    environment: Arc<Environment>,
}

/// The first part of the stored keys of a route, which is not shown: two routes with the same path do not meet. For purging by key.
pub fn cache_epoch(route: &str) -> String {
    format!("api:{route}:")
}

/// What the request step decided, for the later steps. A fetch for the cache has none of it.
#[derive(Clone)]
enum Decided {
    /// Look into the cache.
    Planned,
    /// Past the cache.
    Passed,
}

/// Longer keys end in a hash.
const LONGEST_KEY: usize = 1024;
/// What stands for itself in the value of a header in a key.
const IN_KEY: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b'|').add(b'=').add(b'?');

impl ResponseCache {
    pub(crate) fn new(rules: Rules, env: &BuildEnv<'_>) -> ResponseCache {
        let Rules { mut policy, shared, session_cookies, query, vary, by_host, fold_case, name } = rules;
        policy.name.clone_from(&env.scope);
        let environment: &Arc<Environment> = env.environment;
        ResponseCache { policy: Arc::new(policy), shared, session_cookies, query, vary, by_host, fold_case, name, environment: environment.clone() }
    }

    /// Plans a look-up, or notes why there is none.
    pub(crate) fn decide(&self, cx: &mut RequestContext, req: &request::Parts, passes: Option<&'static str>) {
        let Some(reason) = passes else {
            cx.plan = Some(Plan { key: self.key(cx, req), epoch: self.epoch(cx), policy: self.policy.clone() });
            cx.state.insert(Decided::Planned);
            return self.environment.metrics.plugin(self.name, "planned");
        };
        cx.report = Some(Report { fwd: Some(if reason == "method" { "method" } else { "bypass" }), detail: Some(reason), ..Report::new(Verdict::Bypass) });
        cx.state.insert(Decided::Passed);
        self.environment.metrics.plugin(self.name, "passed");
    }

    /// Why a request does not concern the cache.
    pub(crate) fn passes(&self, cx: &RequestContext, req: &request::Parts) -> Option<&'static str> {
        let has = |name| req.headers.contains_key(name);
        let empty = req.headers.get(header::CONTENT_LENGTH).is_none_or(|v| v == "0");
        match () {
            () if !matches!(req.method, Method::GET | Method::HEAD) => Some("method"),
            // The answer may depend on the body, which is not in the key.
            () if has(header::TRANSFER_ENCODING) || !empty => Some("body"),
            () if cx.state.get::<crate::Personal>().is_some() => Some("personal"),
            () if !self.shared && !cx.guest && has(header::AUTHORIZATION) => Some("authorization"),
            () if !self.shared && (cx.consumer.is_some() || cx.identity.is_some()) => Some("identity"),
            () if !self.shared && self.has_session(&req.headers) => Some("cookie"),
            () => None,
        }
    }

    fn has_session(&self, headers: &HeaderMap) -> bool {
        headers.contains_key(header::COOKIE) && self.session_cookies.iter().any(|name| cookies::named(headers, name).any(|v| !v.is_empty()))
    }

    fn epoch(&self, cx: &RequestContext) -> Arc<str> {
        cache_epoch(cx.route.as_ref().map_or("", |r| &r.name)).into()
    }

    /// Host, path and query, as far as they belong to the key. Without `|`, behind which values of headers stand.
    fn address(&self, route: Option<&RouteRuntime>, host: &str, uri: &Uri) -> String {
        let mut address = String::new();
        if self.by_host || route.is_some_and(|route| route.preserve_host) {
            address.push_str(host);
        }
        match self.fold_case {
            true => address.push_str(&uri.path().to_ascii_lowercase()),
            false => address.push_str(uri.path()),
        }
        if let Some(query) = self.kept_query(uri.query()) {
            address.push('?');
            address.push_str(&query);
        }
        shortened(address.replace('|', "%7C"))
    }

    fn key(&self, cx: &RequestContext, req: &request::Parts) -> String {
        let mut key = format!("cache:GET:{}", self.address(cx.route.as_deref(), &cx.client.host, &req.uri));
        for name in &self.vary {
            let _ = write!(key, "|{name}=");
            for (i, value) in req.headers.get_all(name).iter().enumerate() {
                let comma = if i > 0 { "," } else { "" };
                let _ = write!(key, "{comma}{}", percent_encode(value.as_bytes(), IN_KEY));
            }
        }
        shortened(key)
    }

    /// The query as key and service see it: only what is allowed, sorted.
    fn kept_query(&self, query: Option<&str>) -> Option<String> {
        let mut pairs: Vec<&str> = query?.split('&').filter(|p| !p.is_empty()).collect();
        if let Some(allowed) = &self.query {
            pairs.retain(|pair| allowed.iter().any(|name| pair.split('=').next() == Some(name)));
        }
        pairs.sort_unstable();
        (!pairs.is_empty()).then(|| pairs.join("&"))
    }
}

impl Plugin for ResponseCache {
    fn phases(&self) -> Phases {
        Phases::REQUEST | Phases::TO_UPSTREAM | Phases::HOLDS
    }

    fn request(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        let passes = self.passes(cx, req);
        self.decide(cx, req, passes);
        Flow::Continue
    }

    fn to_upstream(&self, cx: &mut RequestContext, req: &mut request::Parts) {
        let fill = match cx.state.get::<Decided>() {
            None => true,
            Some(Decided::Planned) => false,
            Some(Decided::Passed) => return,
        };
        // What is not in the key must not shape the answer.
        if self.query.is_some() && req.uri.query().is_some() {
            let target = match self.kept_query(req.uri.query()) {
                Some(query) => format!("{}?{query}", req.uri.path()),
                None => req.uri.path().to_owned(),
            };
            if let Ok(target) = target.parse() {
                req.uri = target;
            }
        }
        if fill && !self.by_host && !cx.route.as_ref().is_some_and(|r| r.preserve_host) {
            hide_client(&mut req.headers);
        }
    }

    fn holds(&self, route: &RouteRuntime, host: &str, uri: &Uri) -> Option<Purge> {
        let address = self.address(Some(route), host, uri);
        Some(match self.vary.is_empty() {
            true => Purge::Key { epoch: cache_epoch(&route.name), key: shortened(format!("cache:GET:{address}")) },
            // Whatever the values of the headers are.
            false => Purge::Url { host: host.to_owned(), target: address[address.find('/').unwrap_or(0)..].to_owned() },
        })
    }
}

/// A key that is not too long: what is over the limit goes into a hash at its end.
fn shortened(mut key: String) -> String {
    if key.len() > LONGEST_KEY {
        let hash: String = Sha256::digest(&key).iter().map(|b| format!("{b:02x}")).collect();
        let end = (0..=LONGEST_KEY - 65).rev().find(|i| key.is_char_boundary(*i)).unwrap_or(0);
        key.truncate(end);
        let _ = write!(key, "#{hash}");
    }
    key
}

/// Removes what tells the service which client a fetch for everyone began with.
fn hide_client(headers: &mut HeaderMap) {
    for name in ["x-forwarded-host", "x-forwarded-for", "x-real-ip"] {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Ask, Rig, Seen, ask, get};
    use proptest::prelude::*;

    async fn run(config: &str, ask: Ask) -> Seen {
        Rig::new(&[("response-cache", config)]).run(ask).await
    }

    async fn key(config: &str, ask: Ask) -> Option<String> {
        run(config, ask).await.cx.plan.map(|p| p.key)
    }

    #[tokio::test]
    async fn the_plan_by_default() {
        let plan = run("{}", get("/api/home")).await.cx.plan.unwrap();
        assert_eq!(plan.key, "cache:GET:/api/home");
        let policy = &*plan.policy;
        let ttl = Duration::from_secs(300);
        assert_eq!(policy.freshness, Freshness::Origin { heuristic: 0.0, cap: ttl, default: Some(ttl) });
        assert_eq!(policy.statuses, [200, 301, 302]);
        assert_eq!(policy.max_size, 2 * 1024 * 1024);
        assert_eq!((policy.gate, policy.honour_request), (Gate::Plain, false));
        assert_eq!((policy.stale_while_revalidate, policy.stale_if_error), (Duration::ZERO, Duration::ZERO));
    }

    #[tokio::test]
    async fn settings_reach_the_policy() {
        let config = "{ttl: 1m, statuses: [200, 404], max_size: 1KB, stale_while_revalidate: 10s, stale_if_error: 1h, tags: [a, b], override_cache_control: true}";
        let plan = run(config, get("/")).await.cx.plan.unwrap();
        let policy = &*plan.policy;
        assert_eq!(policy.freshness, Freshness::For { ttl: Duration::from_secs(60), override_control: true });
        assert_eq!((policy.statuses.as_slice(), policy.max_size), ([200, 404].as_slice(), 1024));
        assert_eq!((policy.stale_while_revalidate, policy.stale_if_error), (Duration::from_secs(10), Duration::from_secs(3600)));
        assert_eq!(policy.tags, ["a", "b"]);
        let plan = run("{ttl: 1m, explicit_only: true, honour_request: true}", get("/")).await.cx.plan.unwrap();
        let expected = Freshness::Origin { heuristic: 0.0, cap: Duration::from_secs(60), default: None };
        assert_eq!((&plan.policy.freshness, plan.policy.honour_request), (&expected, true));
    }

    #[tokio::test]
    async fn keys() {
        for (config, ask, expected) in [
            ("{}", get("/api/home?b=2&a=1"), "cache:GET:/api/home?a=1&b=2"),
            ("{}", get("/api/home?"), "cache:GET:/api/home"),
            ("{}", ask("HEAD", "/api/home"), "cache:GET:/api/home"),
            ("query: [page]", get("/api/home?utm_source=x&page=2"), "cache:GET:/api/home?page=2"),
            ("query: [page]", get("/api/home?pages=2"), "cache:GET:/api/home"),
            ("query: []", get("/api/home?page=2"), "cache:GET:/api/home"),
            ("vary_headers: [Accept-Language]", get("/a").with("Accept-Language", "de"), "cache:GET:/a|accept-language=de"),
            ("vary_headers: [Accept-Language]", get("/a").with("Accept-Language", "de|x"), "cache:GET:/a|accept-language=de%7Cx"),
            ("vary_headers: [Accept-Language]", get("/a"), "cache:GET:/a|accept-language="),
            ("by_host: true", get("/a"), "cache:GET:api.example/a"),
            ("{}", get("/a").with("Content-Length", "0"), "cache:GET:/a"),
        ] {
            assert_eq!(key(config, ask).await.as_deref(), Some(expected), "{config}");
        }
    }

    #[tokio::test]
    async fn long_keys_end_in_a_hash_and_stay_apart() {
        let long = |end: &str| get(&format!("/{}{end}", "a".repeat(5000)));
        let (a, b) = (key("{}", long("a")).await.unwrap(), key("{}", long("b")).await.unwrap());
        assert!(a.len() <= LONGEST_KEY && b.len() <= LONGEST_KEY);
        assert_ne!(a, b);
    }

    #[tokio::test]
    async fn what_passes_by_the_cache_and_why() {
        for (config, ask, reason) in [
            ("{}", ask("POST", "/"), "method"),
            ("{}", ask("OPTIONS", "/"), "method"),
            ("{}", get("/").with("Authorization", "Bearer x"), "authorization"),
            ("{}", get("/").with("Cookie", "a=b; session=x"), "cookie"),
            ("session_cookies: [sid]", get("/").with("Cookie", "sid=x"), "cookie"),
            ("{}", get("/").as_consumer("alice"), "identity"),
            ("shared: true", get("/").with("Content-Length", "3"), "body"),
            ("shared: true", get("/").with("Transfer-Encoding", "chunked"), "body"),
        ] {
            let seen = run(config, ask).await;
            assert!(seen.cx.plan.is_none(), "{reason}");
            let report = seen.cx.report.unwrap();
            assert_eq!((report.verdict, report.detail), (Verdict::Bypass, Some(reason)));
        }
    }

    #[tokio::test]
    async fn shared_answers_are_for_everyone() {
        for ask in [get("/").with("Authorization", "Bearer x"), get("/").with("Cookie", "session=x")] {
            assert_eq!(key("shared: true", ask).await.as_deref(), Some("cache:GET:/"));
        }
    }

    #[tokio::test]
    async fn visitors_without_a_session_share_the_answer() {
        for ask in [get("/").with("Cookie", "_ga=1; guest_token=x"), get("/").with("Cookie", "session=")] {
            assert_eq!(key("{}", ask).await.as_deref(), Some("cache:GET:/"));
        }
    }

    #[tokio::test]
    async fn parameters_outside_the_key_are_not_forwarded_but_by_passing_requests() {
        let rig = Rig::new(&[("response-cache", "query: [page]")]);
        assert_eq!(rig.run(get("/a?x=1&page=2")).await.target(), "/a?page=2");
        assert_eq!(rig.run(get("/a?x=1")).await.target(), "/a");
        assert_eq!(rig.run(get("/a?x=1&page=2").with("Cookie", "session=b")).await.target(), "/a?x=1&page=2");
        assert_eq!(rig.run(ask("POST", "/a?x=1&page=2")).await.target(), "/a?x=1&page=2");
        assert_eq!(run("{}", get("/a?x=1&page=2")).await.target(), "/a?x=1&page=2");
    }

    #[tokio::test]
    async fn a_fill_does_not_tell_who_asked() {
        let rig = Rig::new(&[("response-cache", "query: [page]")]);
        let seen = rig.fill(get("/a?x=1&page=2").with("X-Forwarded-Host", "evil.example").with("X-Real-IP", "192.0.2.7")).await;
        assert_eq!(seen.uri.to_string(), "/a?page=2");
        assert!(!seen.headers.contains_key("x-forwarded-host") && !seen.headers.contains_key("x-real-ip"));
        let by_host = Rig::new(&[("response-cache", "by_host: true")]).fill(get("/a").with("X-Forwarded-Host", "api.example")).await;
        assert_eq!(by_host.headers["x-forwarded-host"], "api.example");
    }

    /// An origin that answers 200 with a number that counts its calls.
    struct Origin(std::sync::atomic::AtomicU64);

    struct Whole(Option<bytes::Bytes>);

    #[async_trait::async_trait]
    impl weir_cache::BodyReader for Whole {
        async fn chunk(&mut self) -> Result<Option<bytes::Bytes>, weir_cache::FetchError> {
            Ok(self.0.take())
        }
    }

    #[async_trait::async_trait]
    impl weir_cache::Fetch for Origin {
        async fn fetch(&self, _: HeaderMap, _: weir_cache::Interim<'_>) -> Result<weir_cache::Fetched, weir_cache::FetchError> {
            let number = self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
            let parts = http::Response::new(()).into_parts().0;
            Ok(weir_cache::Fetched { parts, body: Box::new(Whole(Some(number.to_string().into()))) })
        }
    }

    async fn served(rig: &Rig, plan: &Plan, origin: &Arc<Origin>) -> String {
        let asked = weir_cache::CacheRequest { method: Method::GET, headers: HeaderMap::new(), refresh: false, fill_is_own: true };
        match rig.environment.cache.serve(plan, &asked, origin.clone(), &mut ()).await {
            weir_cache::Outcome::Stored(answer) => String::from_utf8_lossy(&answer.body).into_owned(),
            weir_cache::Outcome::Filling(mut stream) => {
                let mut body = String::new();
                while let Some(piece) = stream.body.chunk().await.unwrap() {
                    body.push_str(&String::from_utf8_lossy(&piece));
                }
                body
            }
            _ => panic!("the engine does not serve this plan"),
        }
    }

    #[tokio::test]
    async fn the_engine_keeps_what_is_planned() {
        let rig = Rig::new(&[("response-cache", "{}")]);
        let plan = rig.run(get("/api/home?b=1&a=2")).await.cx.plan.unwrap();
        let origin = Arc::new(Origin(0.into()));
        assert_eq!(served(&rig, &plan, &origin).await, "1");
        assert_eq!(served(&rig, &plan, &origin).await, "1");
    }

    #[tokio::test]
    async fn the_older_name_is_the_same_plugin() {
        assert_eq!(Rig::new(&[("simple-redis-cache", "{}")]).names(), ["response-cache"]);
    }

    #[test]
    fn mistakes() {
        for (config, says) in [
            ("ttl: 0s", "above zero"),
            ("statuses: [200, 206]", "206"),
            ("statuses: [99]", "99"),
            ("vary_headers: ['a b']", "not a header name"),
            ("ttl: soon", ""),
            ("{explicit_only: true, override_cache_control: true}", "opposite"),
        ] {
            let text = crate::testing::errors("response-cache", config).iter().map(ToString::to_string).collect::<String>();
            assert!(text.contains(says), "{config}: {text}");
        }
    }

    proptest! {
        #[test]
        fn the_order_of_parameters_does_not_matter(mut pairs in proptest::collection::vec("[a-z]{1,3}=[a-z0-9%]{0,3}", 0..6), seed in any::<u64>()) {
            let plugin = ResponseCache {
                policy: Arc::new(policy()), shared: false, session_cookies: vec![], query: None, vary: vec![], by_host: false,
                fold_case: false, name: Config::NAME,
                environment: crate::testing::environment(weir_store::Store::memory()),
            };
            let one = plugin.kept_query(Some(&pairs.join("&")));
            fastrand::Rng::with_seed(seed).shuffle(&mut pairs);
            prop_assert_eq!(one, plugin.kept_query(Some(&pairs.join("&"))));
        }
    }

    fn policy() -> Policy {
        Config::default().ready(&Node::default()).unwrap_or_else(|_| panic!("the defaults are valid")).policy
    }
}
