//! Random routes and requests from small alphabets, so that they collide: the router and the reference must agree.

use crate::support::{Request, path, route};
use crate::{reference, support};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use weir_config::Route;
use weir_gateway::router::{Router, normalize};

const HOSTS: &[&str] =
    &["a.test", "b.test", "x.a.test", "*.a.test", "*.test", "a.*", "x.*", "a.test:81", "*.test:81", "a.*:81", "x.a.test:443", "b.test:81"];
const PATHS: &[&str] = &[
    "/", "/a", "/a/", "/a/b", "/aa", "/b", "/b/c", "~/a", "~/a/[bc]", "~/(a|b)/c$", "~/[a-c]+$", r"~/\w+/(?<x>[a-c])/?", "~/a/b/?", "~/.*c",
    "~/b(/c)?", "~(?i)/A/B", "~/b|/a/c", "~/aa?/b", "~/c/\\d+",
];
const METHODS: &[&str] = &["GET", "POST", "PUT"];
const SNIS: &[&str] = &["a.test", "*.a.test", "a.*"];
const VALUES: &[&str] = &["one", "Two", "~*^t", "~*n.$"];

fn some(of: &'static [&'static str], most: usize) -> impl Strategy<Value = Vec<String>> {
    prop_oneof![
        2 => Just(vec![]),
        3 => subsequence(of, 1..=most).prop_map(|list| list.iter().map(|text| text.to_string()).collect::<Vec<_>>()),
    ]
}

fn headers() -> impl Strategy<Value = Vec<(String, Vec<String>)>> {
    let header = |name: &'static str| {
        prop::option::weighted(0.3, subsequence(VALUES, 1..=2)).prop_map(move |values| {
            values.map(|values| (name.to_owned(), values.iter().map(|text| text.to_string()).collect::<Vec<_>>()))
        })
    };
    (header("x-one"), header("x-two")).prop_map(|(one, two)| one.into_iter().chain(two).collect())
}

fn routes(most: usize) -> impl Strategy<Value = Vec<Route>> {
    let one = (some(HOSTS, 3), some(PATHS, 3), some(METHODS, 2), headers(), some(SNIS, 2), -1..2i64, prop::bool::weighted(0.2)).prop_map(
        |(hosts, paths, methods, headers, snis, regex_priority, websocket)| {
            let mut made = route("generated");
            made.hosts = hosts;
            made.paths = paths.iter().map(|text| path(text)).collect();
            made.methods = methods;
            made.headers = headers;
            made.snis = snis;
            made.regex_priority = regex_priority;
            if websocket {
                made.protocols = vec!["ws".into(), "wss".into()];
            }
            made
        },
    );
    prop::collection::vec(one, 1..most)
}

fn requests() -> impl Strategy<Value = Vec<Request>> {
    let values = || prop::option::of(select(vec!["one", "ONE", "two", "net", "none"]));
    let one = (
        select(vec!["http", "https"]),
        select(METHODS),
        select(vec!["a.test", "A.test", "b.test", "x.a.test", "y.x.a.test", "a.example", "x.example", "other", ""]),
        prop::option::of(select(vec![80u16, 81, 443])),
        select(vec![80u16, 81]),
        prop::collection::vec(select(vec!["a", "b", "c", "aa", "..", ".", "%2e%2e", "%61", "1", ""]), 0..5),
        values(),
        values(),
        prop::option::of(select(vec!["a.test", "x.a.test", "a.example", "b.test"])),
        prop::option::weighted(0.4, select(vec!["websocket", "h2c"])),
    )
        .prop_map(|(scheme, method, host, explicit, port, segments, first, second, sni, upgrade)| {
            let host = match explicit {
                Some(port) if !host.is_empty() => format!("{host}:{port}"),
                _ => host.to_owned(),
            };
            let mut request = Request::new(method, &host, &format!("/{}", segments.join("/")));
            request.scheme = scheme.into();
            request.port = port;
            request.sni = sni.map(String::from);
            first.into_iter().for_each(|value| request.header("x-one", value));
            second.into_iter().for_each(|value| request.header("X-Two", value));
            if let Some(upgrade) = upgrade {
                request.header("upgrade", upgrade);
                request.header("connection", "keep-alive, Upgrade");
            }
            request
        });
    prop::collection::vec(one, 20)
}

fn agree(routes: &[Route], requests: &[Request]) -> Result<(), TestCaseError> {
    let router = Router::build(routes, &[support::service(true)]).map_err(|e| TestCaseError::fail(format!("{e:?}")))?;
    for request in requests {
        let found = router.find(&request.query());
        let expected = reference::find(routes, request);
        let found = found.map(|found| (found.route, found.prefix_len));
        prop_assert_eq!(found, expected, "{:?}\n{:#?}", request, routes);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Few routes: each is tried in turn.
    #[test]
    fn agrees_with_the_reference_on_few_routes(routes in routes(8), requests in requests()) {
        agree(&routes, &requests)?;
    }

    /// Enough routes that share hosts and paths for every table to be used.
    #[test]
    fn agrees_with_the_reference_on_many_routes(routes in routes(120), requests in requests()) {
        agree(&routes, &requests)?;
    }
}

proptest! {
    /// No text makes normalization fail, and what it gives is normal: no dot segment, empty segment, lower-case or needless escape.
    #[test]
    fn what_is_normalized_stays_so(text in "/[/.%a2eEfF25\u{e9} ]{0,24}") {
        let once = normalize(&text).into_owned();
        prop_assert_eq!(&*normalize(&once), &once);
        prop_assert!(once.starts_with('/'));
        prop_assert!(!once.contains("//") && !once.contains("%2E") && !once.contains("%2e") && !once.contains("%61"));
        prop_assert!(once.split('/').all(|segment| segment != "." && segment != ".."), "{}", once);
    }

    /// Any bytes that a client can send are routed or not, without a panic, and the prefix is a part of the path.
    #[test]
    fn hostile_requests_do_no_harm(path_text in "\\PC{0,40}", host in "\\PC{0,20}", escapes in prop::collection::vec(any::<u8>(), 0..12)) {
        let mut grouped = route("regex");
        grouped.paths = vec![path(r"~/(?<first>[^/]*)/(.*)"), path("~(?=/)/x"), path("/")];
        let mut wild = route("wild");
        wild.hosts = vec!["*.test".into(), "a.*".into(), "[::1]:80".into()];
        let router = Router::build(&[grouped, wild], &[]).map_err(|e| TestCaseError::fail(format!("{e:?}")))?;
        let escaped: String = escapes.iter().map(|byte| format!("%{byte:02x}")).collect();
        let request = Request::new("GET", &host, &format!("/{path_text}/{escaped}"));
        if let Some(found) = router.find(&request.query()) {
            prop_assert!(found.path.get(..found.prefix_len).is_some());
        }
    }
}
