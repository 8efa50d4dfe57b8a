//! The classifier and the header rules, row by row.

use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, request::Parts};
use weir_cache::keys::strip_internal;
use weir_proxy::classify::{
    Class, ClassifyRules, classify, is_rsc_request, strip_request_headers, strip_response_headers, strip_stray_location,
};

const ID: &str = "40c4bd9966635557434de7dd21433ec2beff19b99f";
const BAD: Class = Class::Reject(StatusCode::BAD_REQUEST);
const GONE: Class = Class::Reject(StatusCode::NOT_FOUND);

fn request(line: &str, fields: &[(&str, &str)]) -> Parts {
    let (method, uri) = line.split_once(' ').expect("method and target");
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a valid request").into_parts().0
}

fn rules() -> ClassifyRules {
    ClassifyRules { api_prefix: "/api".into(), base_path: String::new(), asset_prefix: String::new(), allow_upgrade: false }
}

fn class(line: &str, fields: &[(&str, &str)]) -> Class {
    classify(&request(line, fields), &rules()).class
}

/// Method and target, fields, expected class.
type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], Class);

#[test]
fn every_row_of_the_table() {
    let form = ("content-type", "application/x-www-form-urlencoded");
    let multipart = ("content-type", "Multipart/Form-Data; boundary=x");
    let json = ("content-type", "application/json");
    let rows: &[Row] = &[
        // 0: refused.
        ("GET /", &[("upgrade", "websocket"), ("connection", "upgrade")], BAD),
        ("GET /", &[("upgrade", "h2c, websocket")], BAD),
        ("GET /", &[("upgrade", "h2c")], Class::Document),
        ("GET /", &[("upgrade-insecure-requests", "1")], Class::Document),
        ("GET /", &[("rsc", "1"), ("rsc", "1")], BAD),
        ("GET /", &[("rsc", "0")], BAD),
        ("GET /", &[("rsc", "")], BAD),
        ("GET /", &[("rsc", "1, 1")], BAD),
        ("GET //", &[], BAD),
        ("GET /a//b", &[], BAD),
        ("GET /a\\b", &[], BAD),
        ("GET /a%5cb", &[], BAD),
        ("GET /a%5Cb", &[], BAD),
        ("GET /a%2fb", &[], BAD),
        ("GET /a%2Fb", &[], BAD),
        ("GET /a%00", &[], BAD),
        ("GET /.", &[], BAD),
        ("GET /a/..", &[], BAD),
        ("GET /a/../b", &[], BAD),
        ("GET /a/./b", &[], BAD),
        ("GET /a/%2e%2E/b", &[], BAD),
        ("GET /a/.%2e", &[], BAD),
        ("GET /api/a/../b", &[], BAD),
        ("GET /_next/static/..", &[], BAD),
        ("GET /a?x=//..%2f%5c", &[], Class::Document),
        ("GET /.well-known/x", &[], Class::Document),
        ("GET /a..b/...", &[], Class::Document),
        ("GET /a%252fb", &[], Class::Document),
        ("GET /", &[("x-middleware-subrequest", "middleware:middleware")], BAD),
        ("POST /api/x", &[("x-middleware-subrequest", "")], BAD),
        // Health checks.
        ("GET /health", &[], Class::Health),
        ("HEAD /ping", &[], Class::Health),
        ("GET /_health?x=1", &[], Class::Health),
        ("POST /health", &[], Class::Unsafe),
        ("GET /healthy", &[], Class::Document),
        ("GET /health/x", &[], Class::Document),
        // 1: actions.
        ("POST /a", &[("next-action", ID)], Class::Action),
        ("POST /a", &[multipart], Class::Action),
        ("POST /a", &[form], Class::Action),
        ("POST /a", &[("next-action", ID), ("rsc", "1")], Class::Action),
        ("POST /api/a", &[form], Class::Action),
        ("POST /a", &[("next-action", "x")], BAD),
        ("POST /a", &[("next-action", "")], BAD),
        ("POST /a", &[("next-action", &ID[..39])], BAD),
        ("POST /a", &[("next-action", &ID.to_uppercase())], BAD),
        ("POST /a", &[("next-action", ID), ("next-action", ID)], BAD),
        ("POST /a", &[("next-action", &"a".repeat(65))], BAD),
        ("POST /a", &[("next-action", &"a".repeat(64))], Class::Action),
        ("GET /a", &[("next-action", "x")], Class::Document),
        ("PUT /a", &[form], Class::Unsafe),
        // 2: other methods.
        ("POST /a", &[json], Class::Unsafe),
        ("DELETE /api/a", &[], Class::Unsafe),
        ("OPTIONS *", &[], Class::Unsafe),
        ("PATCH /_next/static/x", &[], Class::Unsafe),
        // 3: API.
        ("GET /api", &[], Class::Api),
        ("GET /api/x", &[], Class::Api),
        ("HEAD /api/x?y", &[], Class::Api),
        ("GET /api/x", &[("rsc", "1")], Class::Api),
        ("GET /apix", &[], Class::Document),
        ("GET /API/x", &[], Class::Document),
        // 4 to 6: paths of the framework.
        ("GET /_next/static/chunks/x.js", &[], Class::Static),
        ("GET /_next/static/x", &[("rsc", "1")], Class::Static),
        ("GET /x/_next/static/x", &[], Class::Document),
        ("GET /_next/staticx", &[], Class::Document),
        ("GET /_next/image?url=%2Fa.png&w=64&q=75", &[], Class::Image),
        ("GET /_next/imagex", &[], Class::Document),
        ("GET /_next/data/build/a.json", &[], Class::Data),
        ("GET /a", &[("x-nextjs-data", "1")], Class::Data),
        ("GET /a", &[("x-nextjs-data", "1"), ("rsc", "1")], Class::Data),
        // 7: RSC.
        ("GET /a", &[("rsc", "1")], Class::Rsc),
        ("HEAD /a", &[("rsc", "1")], Class::Rsc),
        ("GET /a", &[("next-router-state-tree", "x")], Class::Rsc),
        ("GET /a", &[("next-router-prefetch", "1")], Class::Rsc),
        ("GET /a", &[("next-router-segment-prefetch", "/_tree")], Class::Rsc),
        ("GET /a", &[("rsc", "1"), ("cookie", "__prerender_bypass=x")], Class::Rsc),
        ("GET /a?_rsc=abc", &[], Class::Document),
        ("GET /a.rsc", &[], GONE),
        ("GET /a.%72sc", &[], GONE),
        ("GET /a.segments/_tree.segment", &[], GONE),
        ("GET /a.rsc", &[("rsc", "1")], Class::Rsc),
        // 8: drafts.
        ("GET /a", &[("cookie", "a=b; __prerender_bypass=wrong")], Class::Draft),
        ("GET /a", &[("cookie", "a=b"), ("cookie", "__next_preview_data=x")], Class::Draft),
        ("GET /a", &[("cookie", "__prerender_bypass")], Class::Draft),
        ("GET /a", &[("cookie", "x=__prerender_bypass; y__prerender_bypass=1")], Class::Document),
        // 9: documents, and what is none.
        ("GET /", &[], Class::Document),
        ("HEAD /a", &[], Class::Document),
        ("GET /", &[("sec-fetch-dest", "document"), ("accept", "text/html,*/*;q=0.8")], Class::Document),
        ("GET /", &[("sec-fetch-dest", "iframe")], Class::Document),
        ("GET /", &[("sec-fetch-dest", "empty"), ("accept", "*/*")], Class::Document),
        ("GET /a.png", &[("sec-fetch-dest", "image"), ("accept", "image/*,*/*;q=0.8")], Class::Asset),
        ("GET /a", &[("sec-fetch-dest", "script")], Class::Asset),
        ("GET /a", &[("accept", "application/json")], Class::Asset),
        ("GET /a", &[("accept", "image/png, text/*;q=0.1")], Class::Document),
        ("GET /a", &[("accept", "*/*, text/html;q=0")], Class::Asset),
        ("GET /a", &[("accept", "text/html; q=0.000, */*")], Class::Asset),
        ("GET /a", &[("accept", "text/html;level=1;q=0.01")], Class::Document),
    ];
    for (line, fields, want) in rows {
        assert_eq!(class(line, fields), *want, "{line} {fields:?}");
    }
}

#[test]
fn authority_and_host_must_agree() {
    assert_eq!(class("GET http://a/", &[("host", "A")]), Class::Document);
    assert_eq!(class("GET http://a/", &[("host", "b")]), BAD);
    assert_eq!(class("GET http://a:81/", &[("host", "a")]), BAD);
}

#[test]
fn the_site_may_live_below_a_prefix() {
    let rules = ClassifyRules {
        api_prefix: "/shop/api/".into(),
        base_path: "/shop".into(),
        asset_prefix: "/assets-v1".into(),
        allow_upgrade: true,
    };
    for (line, want) in [
        ("GET /shop/_next/static/x.js", Class::Static),
        ("GET /assets-v1/_next/static/x.js", Class::Static),
        ("GET /_next/static/x.js", Class::Document),
        ("GET /shopping/_next/static/x.js", Class::Document),
        ("GET /shop/_next/image", Class::Image),
        ("GET /assets-v1/_next/image", Class::Document),
        ("GET /shop/_next/data/b/x.json", Class::Data),
        ("GET /shop/api/x", Class::Api),
        ("GET /shop/api", Class::Api),
        ("GET /api/x", Class::Document),
    ] {
        assert_eq!(classify(&request(line, &[]), &rules).class, want, "{line}");
    }
    assert_eq!(classify(&request("GET /shop", &[("upgrade", "websocket")]), &rules).class, Class::Document);
    let none = ClassifyRules { api_prefix: String::new(), ..ClassifyRules::default() };
    assert_eq!(classify(&request("GET /api/x", &[]), &none).class, Class::Document);
}

#[test]
fn the_api_is_the_gateways_whatever_the_class() {
    for (line, fields, class, api) in [
        ("POST /api/cart", &[][..], Class::Unsafe, true),
        ("POST /api/upload", &[("content-type", "multipart/form-data; boundary=x")], Class::Action, true),
        ("GET /api/cart", &[], Class::Api, true),
        ("POST /cart", &[], Class::Unsafe, false),
    ] {
        let found = classify(&request(line, fields), &rules());
        assert_eq!((found.class, found.api), (class, api), "{line}");
    }
}

#[test]
fn monitors_are_known_by_their_names() {
    for (agent, monitor) in [
        ("kube-probe/1.31", true),
        ("ELB-HealthChecker/2.0", true),
        ("GoogleHC/1.0", true),
        ("Mozilla/5.0+(compatible; UptimeRobot/2.0; http://www.uptimerobot.com/)", true),
        ("Pingdom.com_bot_version_1.4_(http://www.pingdom.com/)", true),
        ("Mozilla/5.0 (Windows NT 6.2; WOW64) AppleWebKit/537.36 (KHTML, like Gecko) StatusCake", true),
        ("Prometheus/3.1.0", true),
        ("Blackbox Exporter/0.25.0", true),
        ("Better Uptime Bot Mozilla/5.0", true),
        ("Amazon-Route53-Health-Check-Service (ref 1234; report http://amzn.to/1vsZADi)", true),
        ("Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Safari/537.36", false),
        ("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", false),
        ("curl/8.9.1", false),
        ("xkube-probe", false),
        ("", false),
    ] {
        let found = classify(&request("GET /", &[("user-agent", agent)]), &rules());
        assert_eq!((found.class, found.monitor), (Class::Document, monitor), "{agent}");
    }
    assert!(!classify(&request("GET /", &[]), &rules()).monitor);
}

fn map(fields: &[(&str, &str)]) -> HeaderMap {
    fields.iter().map(|(n, v)| (HeaderName::from_bytes(n.as_bytes()).expect("name"), HeaderValue::from_str(v).expect("value"))).collect()
}

/// Names in alphabetical order: removing from a map changes the order of the rest.
fn names(map: &HeaderMap) -> Vec<&str> {
    sorted(map.keys().map(HeaderName::as_str))
}

fn sorted<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut names: Vec<&str> = names.into_iter().collect();
    names.sort_unstable();
    names
}

#[test]
fn internal_request_headers_are_removed() {
    let dropped = [
        "x-middleware-subrequest",
        "x-middleware-rewrite",
        "x-middleware-redirect",
        "x-middleware-next",
        "x-middleware-skip",
        "x-middleware-set-cookie",
        "x-middleware-override-headers",
        "x-middleware-request-cookie",
        "x-middleware-prefetch",
        "x-now-route-matches",
        "x-matched-path",
        "x-invoke-path",
        "x-invoke-status",
        "x-nextjs-data",
        "x-nextjs-cache",
        "x-nextjs-rewrite",
        "x-prerender-revalidate",
        "x-prerender-revalidate-if-generated",
        "x-next-revalidated-tags",
        "x-next-revalidate-tag-token",
        "x-next-cache-tags",
        "next-resume",
        "x-next-resume-state-length",
        "x-vercel-id",
        "x-vercel-forwarded-for",
        "x-action-forwarded",
        "forwarded",
        "x-original-url",
        "x-rewrite-url",
        "x-http-method-override",
    ];
    let kept = [
        "host",
        "cookie",
        "authorization",
        "rsc",
        "next-url",
        "next-action",
        "next-router-state-tree",
        "next-router-prefetch",
        "next-router-segment-prefetch",
        "x-nextjs-request-id",
        "x-nextjs-html-request-id",
        "x-deployment-id",
        "x-forwarded-for",
        "x-request-id",
        "x-requested-with",
        "if-none-match",
    ];
    let all: Vec<(&str, &str)> = dropped.iter().chain(&kept).map(|name| (*name, "1")).collect();
    for line in ["GET /", "POST /a", "GET /api/x", "GET /a.png"] {
        let classified = classify(&request(line, &[]), &rules());
        let mut headers = map(&all);
        strip_request_headers(&mut headers, &classified);
        assert_eq!(names(&headers), sorted(kept), "{line}");
    }
}

#[test]
fn the_pages_router_keeps_its_two_headers_on_its_own_paths() {
    let sent = [("x-nextjs-data", "1"), ("x-middleware-prefetch", "1"), ("x-middleware-skip", "1")];
    let strip = |line: &str| {
        let mut headers = map(&sent);
        strip_request_headers(&mut headers, &classify(&request(line, &sent), &rules()));
        names(&headers).join(" ")
    };
    assert_eq!(strip("GET /_next/data/b/a.json"), "x-middleware-prefetch x-nextjs-data");
    assert_eq!(strip("GET /a"), "", "the class is data, but the path is a page's");
}

#[test]
fn internal_query_keys_are_removed_and_nothing_else_changes() {
    for (query, want) in [
        ("", ""),
        ("a=1&b=2", "a=1&b=2"),
        ("nxtPslug=x", ""),
        ("a=1&nxtPslug=x&b=2", "a=1&b=2"),
        ("nxtIslug=x&b=2", "b=2"),
        ("__nextDataReq=1&b=2", "b=2"),
        ("b=2&__nextLocale=x", "b=2"),
        ("__next=1", ""),
        ("%6extPslug=1&a", "a"),
        ("n%78tPslug=1&a", "a"),
        ("%5F%5fnextDataReq=1&a", "a"),
        ("nxtPslug&a", "a"),
        ("nxtpslug=1", "nxtpslug=1"),
        ("nxt=1&next=2&_next=3&n=4&_rsc=abc", "nxt=1&next=2&_next=3&n=4&_rsc=abc"),
        ("a=nxtPslug&b=__next", "a=nxtPslug&b=__next"),
        ("&a=%zz&&b=+%20&nxtPx=1&", "&a=%zz&&b=+%20&"),
        ("%", "%"),
    ] {
        assert_eq!(strip_internal(query), want, "{query}");
    }
    assert!(matches!(strip_internal("a=1&_rsc=x"), std::borrow::Cow::Borrowed(_)));
}

#[test]
fn answers_do_not_tell_how_the_site_works() {
    let sent: Vec<(&str, &str)> = [
        "x-middleware-rewrite",
        "x-middleware-set-cookie",
        "x-matched-path",
        "x-nextjs-cache",
        "x-nextjs-prerender",
        "x-powered-by",
        "x-middleware-skip",
        "x-nextjs-stale-time",
        "x-nextjs-postponed",
        "x-nextjs-rewritten-path",
        "x-nextjs-rewritten-query",
        "x-nextjs-deployment-id",
        "x-nextjs-matched-path",
        "x-nextjs-redirect",
        "x-nextjs-action-not-found",
        "x-action-redirect",
        "x-action-revalidated",
        "set-cookie",
        "vary",
    ]
    .map(|name| (name, "1"))
    .to_vec();
    let kept = sorted(sent[6..].iter().map(|(name, _)| *name));
    let mut headers = map(&sent);
    strip_response_headers(&mut headers);
    assert_eq!(names(&headers), kept);

    let mut component = map(&[("content-type", "text/x-component"), ("x-nextjs-prerender", "1"), ("x-nextjs-cache", "HIT")]);
    strip_response_headers(&mut component);
    assert_eq!(names(&component), ["content-type", "x-nextjs-prerender"]);
}

#[test]
fn a_location_belongs_to_redirects_and_created_things() {
    for (status, stays) in [(200, false), (404, false), (500, false), (201, true), (301, true), (307, true)] {
        let mut headers = map(&[("location", "http://elsewhere/")]);
        strip_stray_location(StatusCode::from_u16(status).expect("status"), &mut headers);
        assert_eq!(headers.contains_key("location"), stays, "{status}");
    }
}

#[test]
fn rsc_is_told_by_headers_or_path_but_not_by_the_query() {
    assert!(is_rsc_request(&map(&[("next-router-prefetch", "1")]), "/"));
    assert!(is_rsc_request(&map(&[("rsc", "yes")]), "/"));
    assert!(is_rsc_request(&HeaderMap::new(), "/a.rsc"));
    assert!(is_rsc_request(&HeaderMap::new(), "/a.segments/x"));
    assert!(!is_rsc_request(&map(&[("next-url", "/"), ("accept", "text/x-component")]), "/a"));
}
