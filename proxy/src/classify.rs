//! What kind of request is this? Decided once, before any cache is asked, from the request alone; and which fields of a Next.js site's
//! traffic may pass in either direction.
//!
//! The order of the questions matters, the first that fits wins:
//!
//! | question | class |
//! |---|---|
//! | hostile or ambiguous? | reject |
//! | `GET /health`, `/ping`, `/_health`? | health |
//! | a form or server action? | action |
//! | another method than GET or HEAD? | unsafe |
//! | below the API's prefix? | api |
//! | `/_next/static/`, `/_next/image`, `/_next/data/`? | static, image, data |
//! | any mark of React Server Components? | rsc |
//! | a draft cookie? | draft |
//! | does the client want a page? | document |
//! | anything else | asset |

use crate::h1::Peeked;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request};
use percent_encoding::percent_decode_str;

/// The kinds of requests, and what each means for the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Refused with this status; the origin does not see it.
    Reject(StatusCode),
    /// A server action or a form: streamed both ways, never cached, never retried.
    Action,
    /// A method that may change something: never cached.
    Unsafe,
    /// GET or HEAD below the API's prefix: the gateway's business.
    Api,
    /// A build artefact whose name changes with its content.
    Static,
    /// An image made by the site's optimizer.
    Image,
    /// JSON of the Pages Router: never cached.
    Data,
    /// React Server Components: passed on byte for byte, never stored, never answered from a page's key.
    Rsc,
    /// An editor's preview: never cached, even with a wrong cookie.
    Draft,
    /// A page; the only class that page rules apply to.
    Document,
    /// A health check: answered here, without token and without the origin.
    Health,
    /// Something that a page loads and that is no page: passed on.
    Asset,
}

/// The answer of [`classify`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Classified {
    /// The kind.
    pub class: Class,
    /// Why, in a few words for the log and the `Cache-Status` detail; never holds anything that was received.
    pub reason: &'static str,
    /// The path is below the API's prefix, whatever the class: this decides where the request goes.
    pub api: bool,
    /// The client is a monitoring service: it gets its answer, but no guest token.
    pub monitor: bool,
    /// The path is below `/_next/data/`.
    pub next_data: bool,
}

/// Where the site's parts are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassifyRules {
    /// First part of the API's paths, like `/api`. Empty: there is no API.
    pub api_prefix: String,
    /// Next.js' `basePath`, like `/shop`; empty if there is none.
    pub base_path: String,
    /// The path of Next.js' `assetPrefix`, like `/assets-v1`; empty if there is none, or if it is another site.
    pub asset_prefix: String,
    /// Let `Upgrade` requests (WebSocket) pass.
    pub allow_upgrade: bool,
}

impl Default for ClassifyRules {
    fn default() -> Self {
        ClassifyRules { api_prefix: "/api".into(), base_path: String::new(), asset_prefix: String::new(), allow_upgrade: false }
    }
}

const RSC: HeaderName = HeaderName::from_static("rsc");
const ROUTER_STATE_TREE: HeaderName = HeaderName::from_static("next-router-state-tree");
const ROUTER_PREFETCH: HeaderName = HeaderName::from_static("next-router-prefetch");
const ROUTER_SEGMENT_PREFETCH: HeaderName = HeaderName::from_static("next-router-segment-prefetch");
const NEXT_ACTION: HeaderName = HeaderName::from_static("next-action");
const NEXTJS_DATA: HeaderName = HeaderName::from_static("x-nextjs-data");
const MIDDLEWARE_SUBREQUEST: HeaderName = HeaderName::from_static("x-middleware-subrequest");
const MIDDLEWARE_PREFETCH: &str = "x-middleware-prefetch";
const MIDDLEWARE_SKIP: &str = "x-middleware-skip";
const PRERENDER: &str = "x-nextjs-prerender";
const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");
const HEALTH_PATHS: [&str; 3] = ["/health", "/ping", "/_health"];
const DRAFT_COOKIES: [&str; 2] = ["__prerender_bypass", "__next_preview_data"];

/// How the usual monitoring services call themselves, in lower case, by first letter.
fn monitors(first: u8) -> &'static [&'static str] {
    match first {
        b'a' => &["amazon-route53-health-check"],
        b'b' => &["better uptime", "betteruptime", "blackbox exporter", "blackbox-exporter"],
        b'c' => &["check_http", "checkly", "consul health check"],
        b'd' => &["datadog"],
        b'e' => &["elb-healthchecker", "envoy/hc"],
        b'g' => &["google-cloud-monitoring", "googlehc", "googlestackdrivermonitoring"],
        b'h' => &["hetrixtools"],
        b'k' => &["kube-probe"],
        b'n' => &["newrelicpinger"],
        b'p' => &["pingdom", "prometheus"],
        b's' => &["site24x7", "statuscake"],
        b'u' => &["uptime-kuma", "uptimerobot"],
        b'z' => &["zabbix"],
        _ => &[],
    }
}

/// Tells what kind of request this is.
pub fn classify(req: &request::Parts, rules: &ClassifyRules) -> Classified {
    let path = req.uri.path();
    let next_data = below(path, &rules.base_path).is_some_and(|rest| rest.starts_with("/_next/data/"));
    let api = is_api(path, rules);
    let monitor = req.headers.get(header::USER_AGENT).is_some_and(|agent| is_monitor(agent.as_bytes()));
    let (class, reason) = match reject(req, rules) {
        Some((status, reason)) => (Class::Reject(status), reason),
        None => kind(req, rules, api, next_data),
    };
    Classified { class, reason, api, monitor, next_data }
}

/// Whether a plain request asks for a page, by what the fast lane reads of it. Answers `true` only where [`classify`] says
/// [`Class::Document`] and no monitor for the same request; in doubt `false`.
pub fn is_plain_document(head: &Peeked<'_>, rules: &ClassifyRules) -> bool {
    let path = head.path;
    matches!(*head.method, Method::GET | Method::HEAD)
        && head.body.is_none()
        && !head.site
        && !head.steers
        && weir_cache::keys::ambiguity(path).is_none()
        && !HEALTH_PATHS.contains(&path)
        && !is_api(path, rules)
        && !path.as_bytes().windows(7).any(|seven| seven == b"/_next/")
        && !path.ends_with("/_next/image")
        && !is_rsc_path(path)
        && !head.cookie.is_some_and(|line| has_draft_cookie(std::iter::once(line)))
        && wants_document(head.fetch_dest, || head.accept.into_iter())
        && !head.user_agent.is_some_and(is_monitor)
}

/// What no request may have. Cheap questions first: nearly every request passes all of them.
fn reject(req: &request::Parts, rules: &ClassifyRules) -> Option<(StatusCode, &'static str)> {
    let headers = &req.headers;
    let bad = |reason| Some((StatusCode::BAD_REQUEST, reason));
    if let (Some(authority), Some(host)) = (req.uri.authority(), headers.get(header::HOST))
        && !authority.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes())
    {
        return bad("authority and Host differ");
    }
    // A field that only Next.js' own inner requests carry: with it, its middleware (and the access checks in it) would be skipped.
    if headers.contains_key(MIDDLEWARE_SUBREQUEST) {
        return bad("internal request header");
    }
    if !rules.allow_upgrade && headers.get_all(header::UPGRADE).iter().any(|v| !is_http2_offer(v.as_bytes())) {
        return bad("upgrade not allowed");
    }
    let mut rsc = headers.get_all(RSC).iter();
    if let Some(value) = rsc.next()
        && (rsc.next().is_some() || value.as_bytes() != b"1")
    {
        return bad("ambiguous RSC header");
    }
    if let Some(reason) = weir_cache::keys::ambiguity(req.uri.path()) {
        return bad(reason);
    }
    if req.method == Method::POST {
        let mut actions = headers.get_all(NEXT_ACTION).iter();
        if let Some(id) = actions.next()
            && (actions.next().is_some() || !is_action_id(id.as_bytes()))
        {
            return bad("malformed Next-Action header");
        }
    }
    None
}

/// A client that merely offers HTTP/2 over the same port (`Upgrade: h2c`); the offer is dropped with the other hop-by-hop fields.
fn is_http2_offer(value: &[u8]) -> bool {
    value.split(|b| *b == b',').map(<[u8]>::trim_ascii).all(|protocol| {
        [&b"h2c"[..], b"h2", b"http/2.0"].iter().any(|offer| protocol.eq_ignore_ascii_case(offer))
    })
}

fn is_action_id(id: &[u8]) -> bool {
    (40..=64).contains(&id.len()) && id.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn kind(req: &request::Parts, rules: &ClassifyRules, api: bool, next_data: bool) -> (Class, &'static str) {
    let headers = &req.headers;
    let path = req.uri.path();
    let reading = req.method == Method::GET || req.method == Method::HEAD;
    if reading && HEALTH_PATHS.contains(&path) {
        return (Class::Health, "health path");
    }
    if req.method == Method::POST {
        if headers.contains_key(NEXT_ACTION) {
            return (Class::Action, "server action");
        }
        if is_form(headers) {
            return (Class::Action, "form");
        }
    }
    if !reading {
        return (Class::Unsafe, "method");
    }
    if api {
        return (Class::Api, "api path");
    }
    let page = below(path, &rules.base_path);
    let asset = if rules.asset_prefix.is_empty() { None } else { below(path, &rules.asset_prefix) };
    if [page, asset].into_iter().flatten().any(|rest| rest.starts_with("/_next/static/")) {
        return (Class::Static, "static path");
    }
    if page.is_some_and(|rest| rest == "/_next/image" || rest.starts_with("/_next/image/")) {
        return (Class::Image, "image path");
    }
    if next_data {
        return (Class::Data, "data path");
    }
    if headers.contains_key(NEXTJS_DATA) {
        return (Class::Data, "data header");
    }
    if has_rsc_header(headers) {
        return (Class::Rsc, "rsc header");
    }
    if is_rsc_path(path) {
        // Answered without a single RSC header by some versions, past the rules that hold for the page itself.
        return (Class::Reject(StatusCode::NOT_FOUND), "rsc path without rsc header");
    }
    if has_draft_cookie(headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes)) {
        return (Class::Draft, "draft cookie");
    }
    if !wants_document(headers.get(SEC_FETCH_DEST).map(HeaderValue::as_bytes), || headers.get_all(header::ACCEPT).iter().map(HeaderValue::as_bytes)) {
        return (Class::Asset, "sub-resource");
    }
    (Class::Document, "document")
}

/// What follows `prefix` in `path`, if it begins with it: empty, or beginning with `/`.
fn below<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(prefix.trim_end_matches('/'))?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

fn is_api(path: &str, rules: &ClassifyRules) -> bool {
    !rules.api_prefix.is_empty() && below(path, &rules.api_prefix).is_some()
}

/// A form without JavaScript: the browser sends no `Next-Action`.
fn is_form(headers: &HeaderMap) -> bool {
    headers.get_all(header::CONTENT_TYPE).iter().any(|value| {
        let kind = value.as_bytes().split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
        kind.eq_ignore_ascii_case(b"multipart/form-data") || kind.eq_ignore_ascii_case(b"application/x-www-form-urlencoded")
    })
}

fn has_rsc_header(headers: &HeaderMap) -> bool {
    [RSC, ROUTER_STATE_TREE, ROUTER_PREFETCH, ROUTER_SEGMENT_PREFETCH].iter().any(|name| headers.contains_key(name))
}

fn is_rsc_path(path: &str) -> bool {
    let test = |path: &str| path.ends_with(".rsc") || path.contains(".segments/");
    if path.contains('%') { test(&percent_decode_str(path).decode_utf8_lossy()) } else { test(path) }
}

/// Whether anything marks the request as one for React Server Components. The `_rsc` query alone does not: it is answered with HTML.
pub fn is_rsc_request(headers: &HeaderMap, path: &str) -> bool {
    has_rsc_header(headers) || is_rsc_path(path)
}

fn has_draft_cookie<'a>(mut lines: impl Iterator<Item = &'a [u8]>) -> bool {
    lines.any(|line| line.split(|b| *b == b';').any(is_draft_cookie))
}

fn is_draft_cookie(pair: &[u8]) -> bool {
    let name = pair.split(|b| *b == b'=').next().unwrap_or_default().trim_ascii();
    DRAFT_COOKIES.iter().any(|draft| draft.as_bytes() == name)
}

/// Whether the client could show a page: it asks for a document (or does not say), and accepts HTML (or does not say). Asked for an
/// image or a script, Next.js answers an unknown path with text instead of its page, and says so in no `Vary`.
fn wants_document<'a, L: Iterator<Item = &'a [u8]>>(dest: Option<&[u8]>, accept: impl Fn() -> L) -> bool {
    let page = matches!(dest, None | Some(b"document" | b"iframe" | b"frame" | b"fencedframe" | b"nested-document" | b"empty" | b""));
    page && accepts_html(accept)
}

/// `Accept` allows `text/html` (RFC 9110 section 12.5.1): the most specific range that fits decides.
fn accepts_html<'a, L: Iterator<Item = &'a [u8]>>(lines: impl Fn() -> L) -> bool {
    if lines().next().is_none() {
        return true;
    }
    let mut best = (0, false);
    for member in lines().flat_map(|line| line.split(|b| *b == b',')) {
        let mut parts = member.split(|b| *b == b';').map(<[u8]>::trim_ascii);
        let range = parts.next().unwrap_or_default();
        let rank = match () {
            () if range.eq_ignore_ascii_case(b"text/html") => 3,
            () if range.eq_ignore_ascii_case(b"text/*") => 2,
            () if range == b"*/*" => 1,
            () => continue,
        };
        let refused = parts.any(is_zero_quality);
        if rank > best.0 {
            best = (rank, !refused);
        }
    }
    best.1
}

/// `q=0`, `q=0.`, `q=0.000`.
fn is_zero_quality(parameter: &[u8]) -> bool {
    match parameter {
        [b'q' | b'Q', b'=', b'0'] => true,
        [b'q' | b'Q', b'=', b'0', b'.', rest @ ..] => rest.iter().all(|b| *b == b'0'),
        _ => false,
    }
}

fn is_monitor(agent: &[u8]) -> bool {
    // Names begin where a word begins; browsers are nearly all the traffic, and few of their words begin like a monitor's.
    let mut before = b' ';
    for (at, &byte) in agent.iter().enumerate() {
        if !before.is_ascii_alphanumeric() {
            let rest = &agent[at..];
            let named = |name: &&str| rest.len() >= name.len() && rest[..name.len()].eq_ignore_ascii_case(name.as_bytes());
            if monitors(byte.to_ascii_lowercase()).iter().any(named) {
                return true;
            }
        }
        before = byte;
    }
    false
}

/// Removes the fields that only Next.js itself, its hosting platform or a trusted proxy may send, and those that some servers take for
/// the real target or method. `X-Forwarded-*` are not touched here: they are overwritten when the request is sent on.
pub fn strip_request_headers(headers: &mut HeaderMap, classified: &Classified) {
    let unwanted: Vec<HeaderName> = headers.keys().filter(|name| is_internal(name.as_str(), classified.next_data)).cloned().collect();
    for name in &unwanted {
        headers.remove(name);
    }
}

fn is_internal(name: &str, next_data: bool) -> bool {
    match name.as_bytes().first() {
        Some(b'x') => match name {
            "x-now-route-matches"
            | "x-matched-path"
            | "x-prerender-revalidate"
            | "x-prerender-revalidate-if-generated"
            | "x-next-revalidated-tags"
            | "x-next-revalidate-tag-token"
            | "x-next-cache-tags"
            | "x-next-resume-state-length"
            | "x-action-forwarded"
            | "x-original-url"
            | "x-rewrite-url"
            | "x-http-method-override" => true,
            "x-nextjs-request-id" | "x-nextjs-html-request-id" => false,
            // The Pages Router's client sends these two, and only there.
            "x-nextjs-data" | MIDDLEWARE_PREFETCH => !next_data,
            _ => ["x-middleware-", "x-invoke-", "x-nextjs-", "x-vercel-"].iter().any(|prefix| name.starts_with(prefix)),
        },
        Some(b'n') => name == "next-resume",
        Some(b'f') => name == "forwarded",
        _ => false,
    }
}

/// Removes what an answer tells of the site's inner workings. Two fields stay where a browser's router reads them: `X-Middleware-Skip`
/// (Pages Router: an empty prefetch is not the page's data) and, on React Server Components, `X-Nextjs-Prerender`.
pub fn strip_response_headers(headers: &mut HeaderMap) {
    let component = headers.get(header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"text/x-component"));
    let unwanted: Vec<HeaderName> = headers
        .keys()
        .filter(|name| match name.as_str() {
            MIDDLEWARE_SKIP => false,
            PRERENDER => !component,
            "x-matched-path" | "x-nextjs-cache" | "x-powered-by" => true,
            name => name.starts_with("x-middleware-"),
        })
        .cloned()
        .collect();
    for name in &unwanted {
        headers.remove(name);
    }
}

/// The same for a page that is to be stored; what the cache itself wants to know (`X-Nextjs-Cache`) stays for it to read and to drop.
pub fn strip_page_headers(headers: &mut HeaderMap) {
    let verdict = headers.remove("x-nextjs-cache");
    strip_response_headers(headers);
    if let Some(verdict) = verdict {
        headers.insert("x-nextjs-cache", verdict);
    }
}

/// Removes a `Location` from an answer that is neither a redirect nor a 201: a request's own `Location` that came back (reflected
/// request headers), which some clients and proxies would follow.
pub fn strip_stray_location(status: StatusCode, headers: &mut HeaderMap) {
    if !status.is_redirection() && status != StatusCode::CREATED {
        headers.remove(header::LOCATION);
    }
}
