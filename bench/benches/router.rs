//! What it costs to find a route among 10, 1,000 and 10,000, and to build a router of them.
//!
//! `cargo bench -p weir-bench --bench router`. The groups differ in what tells the routes apart; within a group the three
//! sizes should cost about the same.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use std::hint::black_box;
use weir_config::{PathHandling, PathMatcher, Route, Span};
use weir_gateway::router::{Query, Router};

const SIZES: [usize; 3] = [10, 1_000, 10_000];

/// What tells the routes of a group apart: makes the nth.
struct Group {
    name: &'static str,
    nth: fn(usize) -> Route,
    /// Host, path and `x-tenant` of a request for the nth.
    ask: fn(usize) -> (String, String, String),
}

const GROUPS: &[Group] = &[
    Group { name: "path", nth: |n| Route { paths: vec![prefix(&path(n))], ..route() }, ask: |n| (host(0), format!("{}/7", path(n)), String::new()) },
    Group {
        name: "host",
        nth: |n| Route { hosts: vec![host(n)], paths: vec![prefix("/")], ..route() },
        ask: |n| (host(n), "/cart/7".into(), String::new()),
    },
    Group {
        name: "wildcard host",
        nth: |n| Route { hosts: vec![format!("*.{}", host(n))], ..route() },
        ask: |n| (format!("de.{}", host(n)), "/cart/7".into(), String::new()),
    },
    Group {
        name: "regex",
        nth: |n| Route { paths: vec![regex(&format!(r"/api/v\d+/r{n}/(?<id>\d+)$"))], ..route() },
        ask: |n| (host(0), format!("/api/v2/r{n}/4711"), String::new()),
    },
    Group {
        name: "header",
        nth: |n| Route { paths: vec![prefix("/api")], headers: vec![("x-tenant".into(), vec![format!("tenant-{n}")])], ..route() },
        ask: |n| (host(0), "/api/cart/7".into(), format!("tenant-{n}")),
    },
    Group { name: "mixed", nth: mixed, ask: |n| (host(n % 50), format!("{}/7", path(n)), String::new()) },
    Group { name: "no route", nth: mixed, ask: |_| ("elsewhere.test".into(), "/nothing/here/7".into(), String::new()) },
];

/// A shop with many hosts and versions: most routes are prefixes below a host, some are regexes or ask for a method.
fn mixed(n: usize) -> Route {
    let mut made = Route { hosts: vec![host(n % 50)], paths: vec![prefix(&path(n))], ..route() };
    match n % 10 {
        0 => made.paths = vec![regex(&format!("{}/(?<id>[^/]+)$", path(n)))],
        1 => made.methods = vec!["GET".into(), "POST".into()],
        2 => made.paths.push(prefix(&format!("/v2{}", path(n)))),
        _ => {}
    }
    made
}

fn path(n: usize) -> String {
    format!("/api/v{}/service-{}/resource-{n}", n % 3, n % 97)
}

fn host(n: usize) -> String {
    format!("shop-{n}.example.test")
}

fn prefix(text: &str) -> PathMatcher {
    PathMatcher { text: text.into(), regex: false, span: Span::default() }
}

fn regex(text: &str) -> PathMatcher {
    PathMatcher { text: text.into(), regex: true, span: Span::default() }
}

fn route() -> Route {
    Route {
        name: String::new(),
        id: None,
        service: None,
        protocols: vec!["http".into(), "https".into()],
        methods: vec![],
        hosts: vec![],
        paths: vec![],
        headers: vec![],
        snis: vec![],
        strip_path: true,
        preserve_host: false,
        path_handling: PathHandling::V0,
        regex_priority: 0,
        https_redirect_status_code: 426,
        request_buffering: true,
        response_buffering: true,
        tags: vec![],
        span: Span::default(),
    }
}

fn build(routes: &[Route]) -> Router {
    Router::build(routes, &[]).unwrap_or_else(|errors| panic!("{errors:?}"))
}

fn headers(tenant: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("host", "shop.test"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
        ("accept", "application/json"),
        ("accept-encoding", "gzip, br, zstd"),
        ("authorization", "Bearer 0123456789abcdef0123456789abcdef"),
        ("x-tenant", tenant),
    ] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).expect("a header value"));
    }
    headers
}

fn find(c: &mut Criterion) {
    for group in GROUPS {
        let mut bench = c.benchmark_group(format!("find by {}", group.name));
        for size in SIZES {
            let router = build(&(0..size).map(group.nth).collect::<Vec<_>>());
            // Requests for routes all over the list, so that neither its beginning nor one cache line is favoured.
            let asked: Vec<_> = (0..64)
                .map(|i| {
                    let (host, path, tenant) = (group.ask)(i * 7919 % size);
                    (host, path, headers(&tenant))
                })
                .collect();
            let mut next = 0;
            bench.bench_function(BenchmarkId::from_parameter(size), |b| {
                b.iter(|| {
                    next = (next + 1) % asked.len();
                    let (host, path, headers) = &asked[next];
                    let query = Query { scheme: "http", method: &Method::GET, host, port: 80, path, headers, sni: None };
                    let found = router.find(black_box(&query));
                    assert_eq!(found.is_some(), group.name != "no route");
                    black_box(found.map(|found| found.route))
                });
            });
        }
        bench.finish();
    }
}

fn make(c: &mut Criterion) {
    for group in GROUPS.iter().filter(|group| group.name != "no route") {
        let mut bench = c.benchmark_group(format!("build by {}", group.name));
        bench.sample_size(10);
        for size in SIZES {
            let routes: Vec<_> = (0..size).map(group.nth).collect();
            bench.bench_function(BenchmarkId::from_parameter(size), |b| b.iter(|| build(black_box(&routes))));
        }
        bench.finish();
    }
}

criterion_group!(benches, find, make);
criterion_main!(benches);
