//! The edge's way of a request: what kind it is, whose it is, whether the cache may answer it.

use crate::{
    classify::{self, Class, Classified},
    downstream::Downstream,
    gateway,
    guest::{Visitor, has_session, lines},
    live::EdgeRules,
    origin::OriginFetch,
    pages::PagePlan,
    purging,
    work::{Shown, Work},
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, header, request};
use std::sync::Arc;
use weir_cache::{Report, Verdict};
use weir_config::{ApiTarget, GuestIssue, HeaderNames};
use weir_gateway::{Chain, Reply, Scheme, ServiceRuntime, resilience::Priority};

/// What a fill asks for: the page as a browser without history would.
const FILL_ACCEPT: &str = "text/html,application/xhtml+xml";
const FILL_AGENT: &str = concat!("Mozilla/5.0 (compatible; Weir/", env!("CARGO_PKG_VERSION"), ")");

/// Serves a request that came by the edge's door.
pub async fn handle<D: Downstream>(work: &mut Work<'_, D>, mut request: request::Parts) {
    let live = work.live.clone();
    let Some(edge) = &live.edge else { return };
    let none = Chain::default();
    work.shown = Shown {
        status: edge.config.headers.status,
        key: edge.config.headers.key,
        cache_status: edge.config.headers.cache_status,
        strip_site: true,
        times: HeaderNames::Off,
    };
    if request.method.as_str() == "PURGE" {
        return purge(work, edge, &request).await;
    }
    let told = classify::classify(&request, &edge.classify);
    work.label = if told.api { "api" } else { name(told.class) }.into();
    if !host_is_served(edge, &work.cx.client.host) {
        work.cx.failure = Some("wrong-host");
        return work.error(&none, StatusCode::MISDIRECTED_REQUEST, "this host is not served here").await;
    }
    match told.class {
        Class::Reject(status) => {
            work.cx.failure = Some(told.reason);
            work.bypass(told.reason);
            return work.error(&none, status, told.reason).await;
        }
        Class::Health => return healthy(work, &none).await,
        _ => {}
    }
    if told.monitor && told.class == Class::Document {
        return watched(work, edge, &request).await;
    }
    classify::strip_request_headers(&mut request.headers, &told);
    if let Some(query) = request.uri.query()
        && !matches!(told.class, Class::Static | Class::Image)
    {
        let kept = weir_cache::keys::strip_internal(query);
        if kept != query {
            let text = if kept.is_empty() { request.uri.path().to_string() } else { format!("{}?{kept}", request.uri.path()) };
            if let Ok(uri) = text.parse() {
                request.uri = uri;
            }
        }
    }
    let visitor = whose(work, edge, &mut request, told).await;
    if visitor == Who::Guest {
        work.cx.priority = Some(Priority::Low);
    }
    if told.api {
        match (&edge.config.api, &edge.api) {
            (ApiTarget::Gateway, _) => return gateway::handle(work, request).await,
            (_, Some(elsewhere)) => {
                gateway::forwarded(&mut request.headers, &work.cx, request.version);
                work.cx.service = Some(elsewhere.clone());
                work.bypass("api");
                return work.forward(&none, elsewhere, request).await;
            }
            (_, None) => {
                work.bypass("api");
                return pass(work, edge, request).await;
            }
        }
    }
    match told.class {
        Class::Document => {
            let https = work.cx.client.scheme == Scheme::Https;
            match edge.pages.plan(https, &work.cx.client.host, &request.uri) {
                None => work.bypass("no-rule"),
                Some(plan) if visitor == Who::SignedIn && !plan.page.shared_by_all() => work.bypass_key("signed-in", &plan.plan.key),
                Some(plan) => {
                    work.weir.popular.asked(&plan.host, plan.target.path_and_query().map_or("/", |p| p.as_str()));
                    return page(work, edge, request, plan).await;
                }
            }
        }
        Class::Draft => {
            work.private = true;
            work.bypass("draft");
        }
        class => {
            if !request.method.is_safe() {
                work.cx.state.insert(purging::Unsafe::of(&request));
            }
            work.bypass(name(class));
        }
    }
    pass(work, edge, request).await;
}

/// For metrics, log and `Cache-Status`.
fn name(class: Class) -> &'static str {
    match class {
        Class::Reject(_) => "reject",
        Class::Action => "action",
        Class::Unsafe => "unsafe",
        Class::Api => "api",
        Class::Static => "static",
        Class::Image => "image",
        Class::Data => "data",
        Class::Rsc => "rsc",
        Class::Draft => "draft",
        Class::Document => "document",
        Class::Health => "health",
        Class::Asset => "asset",
    }
}

/// Whose request it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    SignedIn,
    Guest,
    Unknown,
}

impl<D: Downstream> Work<'_, D> {
    fn bypass(&mut self, reason: &'static str) {
        self.cx.report = Some(Report { fwd: Some("bypass"), detail: Some(reason), ..Report::new(Verdict::Bypass) });
    }

    fn bypass_key(&mut self, reason: &'static str, key: &str) {
        self.bypass(reason);
        if let Some(report) = &mut self.cx.report {
            report.key = Some(key.to_string());
        }
    }
}

/// `PURGE /path`: the page goes from the cache of every instance; with `X-Purge-Soft: 1` it is only marked stale.
async fn purge<D: Downstream>(work: &mut Work<'_, D>, edge: &EdgeRules, request: &request::Parts) {
    let none = Chain::default();
    work.label = "purge".into();
    if !purging::may_purge(edge, work.cx.client.ip, &request.headers) {
        work.cx.failure = Some("purge-refused");
        return work.error(&none, StatusCode::FORBIDDEN, "You may not purge").await;
    }
    let soft = request.headers.get("x-purge-soft").is_some_and(|v| v == "1" || v.as_bytes().eq_ignore_ascii_case(b"true"));
    match purging::page(&work.live.clone(), &work.cx.client.host.clone(), &request.uri) {
        Ok(what) => {
            let report = purging::carry_out(work.weir, &what, soft, false).await;
            let reply = Reply::json("weir", StatusCode::OK, &serde_json::json!({ "entries": report.entries, "store_reached": report.store_reached }));
            work.reply(&none, reply.with("cache-control", "no-store")).await;
        }
        Err(reason) => work.error(&none, StatusCode::NOT_FOUND, &reason).await,
    }
}

/// Weir is there: no token, no upstream.
async fn healthy<D: Downstream>(work: &mut Work<'_, D>, none: &Chain) {
    let reply = Reply::json("weir", StatusCode::OK, &serde_json::json!({ "status": "ok" })).with("cache-control", "no-store");
    work.reply(none, reply).await;
}

/// A monitoring service looks at a page: it gets what is in memory, fresh or not, and never costs the origin a request.
async fn watched<D: Downstream>(work: &mut Work<'_, D>, edge: &EdgeRules, request: &request::Parts) {
    let none = Chain::default();
    let https = work.cx.client.scheme == Scheme::Https;
    let plan = edge.pages.plan(https, &work.cx.client.host, &request.uri);
    let cache = &work.weir.environment.cache;
    let now = weir_cache::clock::now();
    let held = plan.as_ref().and_then(|p| cache.peek(&p.plan.epoch, &p.plan.key));
    let Some(entry) = held.filter(|entry| entry.may_stand_in(now)) else {
        work.bypass("monitor");
        return healthy(work, &none).await;
    };
    let verdict = if entry.is_fresh(now) { Verdict::Hit } else { Verdict::Stale };
    work.cx.report = Some(Report { detail: Some("monitor"), ttl: Some(entry.ttl(now)), age: Some(entry.age(now)), ..Report::new(verdict) });
    let mut parts = http::Response::new(()).into_parts().0;
    parts.status = entry.status();
    parts.headers = entry.headers();
    work.cx.answered_by = "cache";
    work.whole(&none, parts, entry.body().clone(), weir_gateway::plugin::Ending::NotSent).await;
}

/// A document that a rule wants cached.
async fn page<D: Downstream>(work: &mut Work<'_, D>, edge: &EdgeRules, request: request::Parts, plan: PagePlan<'_>) {
    let now = weir_cache::clock::now();
    let held = |plan: &weir_cache::Plan| work.weir.environment.cache.peek(&plan.epoch, &plan.key).is_some_and(|entry| entry.may_stand_in(now));
    if spare(edge).is_some() && !held(&plan.plan) {
        work.bypass("circuit-open");
        return pass(work, edge, request).await;
    }
    let none = Arc::new(Chain::default());
    let fetch = OriginFetch {
        weir: work.weir.clone(),
        service: edge.origin.clone(),
        request: fill_request(work, &plan),
        chain: none.clone(),
        client: work.cx.client.clone(),
        route: None,
        page: true,
        guard: None,
    };
    work.cx.service = Some(edge.origin.clone());
    if let Some(report) = work.through_cache(&none, &plan.plan, &request, fetch, false).await {
        work.cx.report = Some(report);
        pass(work, edge, request).await;
    }
}

/// A fill's request holds what the key holds, and nothing of the visitor who happened to cause it.
fn fill_request<D>(work: &Work<'_, D>, plan: &PagePlan<'_>) -> request::Parts {
    let mut fill = Request::new(()).into_parts().0;
    fill.uri = plan.target.clone();
    let scheme = work.cx.client.scheme;
    let port = plan.host.rsplit_once(':').and_then(|(_, p)| p.parse::<u16>().ok()).unwrap_or(if scheme == Scheme::Https { 443 } else { 80 });
    let mut set = |name: HeaderName, text: &str| {
        if let Ok(value) = HeaderValue::from_str(text) {
            fill.headers.insert(name, value);
        }
    };
    set(header::HOST, &plan.host);
    set(header::ACCEPT, FILL_ACCEPT);
    set(header::ACCEPT_ENCODING, "identity");
    set(header::USER_AGENT, FILL_AGENT);
    set(header::VIA, "1.1 weir");
    set(HeaderName::from_static("x-forwarded-host"), &plan.host);
    set(HeaderName::from_static("x-forwarded-proto"), scheme.as_str());
    set(HeaderName::from_static("x-forwarded-port"), &port.to_string());
    set(HeaderName::from_static("x-request-id"), work.cx.id.as_str());
    if let Some(token) = &plan.page.rule.fill_token {
        set(header::AUTHORIZATION, &format!("Bearer {}", token.expose()));
        if let Some(value) = fill.headers.get_mut(header::AUTHORIZATION) {
            value.set_sensitive(true);
        }
    }
    fill
}

/// To the origin and back, streamed, with the visitor's own fields.
async fn pass<D: Downstream>(work: &mut Work<'_, D>, edge: &EdgeRules, mut request: request::Parts) {
    gateway::forwarded(&mut request.headers, &work.cx, request.version);
    let service = spare(edge).unwrap_or(&edge.origin);
    work.cx.service = Some(service.clone());
    if !service.path.is_empty() {
        let path = request.uri.path_and_query().map_or("/", |p| p.as_str());
        if let Ok(uri) = format!("{}{path}", service.path).parse() {
            request.uri = uri;
        }
    }
    work.forward(&Chain::default(), service, request).await;
}

/// The service that answers while the origin's circuit is open, if there is one.
fn spare(edge: &EdgeRules) -> Option<&Arc<ServiceRuntime>> {
    let guard = edge.origin.care.guard.as_ref()?;
    let spare = guard.service.as_ref()?;
    guard.closed_to(&edge.origin, None).map(|_| spare)
}

fn host_is_served(edge: &EdgeRules, host: &str) -> bool {
    edge.config.hosts.is_empty() || weir_cache::keys::canonical_host(host).is_some_and(|host| is_listed(edge, &host))
}

/// Whether a canonical host is served here.
pub(crate) fn is_listed(edge: &EdgeRules, canonical: &str) -> bool {
    let hosts = &edge.config.hosts;
    let name = if canonical.starts_with('[') { canonical } else { canonical.split(':').next().unwrap_or("") };
    hosts.is_empty() || hosts.iter().any(|h| h.eq_ignore_ascii_case(name) || h.eq_ignore_ascii_case(canonical))
}

/// Finds out whose request it is, and gives a visitor without a token a fresh one. The token goes upstream as
/// `Authorization: Bearer` and to the visitor as a cookie; the guest cookie itself goes no further.
async fn whose<D: Downstream>(work: &mut Work<'_, D>, edge: &EdgeRules, request: &mut request::Parts, told: Classified) -> Who {
    let Some((config, issuer)) = &edge.guests else {
        let signed_in = request.headers.contains_key(header::AUTHORIZATION) || has_session(lines(&request.headers, &header::COOKIE), &edge.config.session_cookies);
        return if signed_in { Who::SignedIn } else { Who::Unknown };
    };
    let token = match issuer.find_token(&request.headers, &edge.config.session_cookies) {
        Visitor::SignedIn => return Who::SignedIn,
        Visitor::Guest(token) => token.to_string(),
        Visitor::None if told.monitor || matches!(told.class, Class::Static | Class::Image | Class::Asset) => return Who::Unknown,
        Visitor::None => {
            let remote = match &config.issue {
                GuestIssue::Local => {
                    work.weir.environment.metrics.guest("local");
                    None
                }
                GuestIssue::Remote { url, timeout } => ask_for_token(work, url, *timeout).await,
            };
            let secure = config.secure.unwrap_or(work.cx.client.scheme == Scheme::Https);
            let made = match remote {
                Some(token) => issuer.adopt(token, secure),
                None => issuer.issue(secure),
            };
            match made {
                Ok(made) => {
                    work.guest_cookie = Some(made.cookie);
                    made.token
                }
                Err(error) => {
                    tracing::error!(%error, "no guest token could be made");
                    return Who::Unknown;
                }
            }
        }
    };
    if let Ok(mut value) = HeaderValue::from_str(&format!("Bearer {token}")) {
        value.set_sensitive(true);
        request.headers.insert(header::AUTHORIZATION, value);
        work.cx.guest = true;
    }
    Who::Guest
}

/// Asks the auth service; `None` when it does not give a token in time, and then Weir signs one itself.
async fn ask_for_token<D>(work: &Work<'_, D>, url: &str, timeout: std::time::Duration) -> Option<String> {
    let call = Request::builder().method(Method::POST).uri(url).header(header::ACCEPT, "application/json").body(Bytes::new()).ok()?;
    let metrics = &work.weir.environment.metrics;
    let token = match work.weir.environment.client.call(call, timeout, 64 * 1024).await {
        Ok(answer) if answer.status().is_success() => crate::guest::token_in_answer(answer.body()),
        Ok(answer) => {
            tracing::warn!(status = answer.status().as_u16(), "the auth service gave no guest token");
            None
        }
        Err(error) => {
            tracing::warn!(%error, "the auth service gave no guest token");
            None
        }
    };
    metrics.guest(if token.is_some() { "remote" } else { "fallback" });
    token
}
