//! The fast lane's look at a head, held against the strict parser and the classifier: what the one accepts, the other reads the same way.

use bytes::BytesMut;
use http::{Method, header};
use proptest::prelude::*;
use weir_cache::keys;
use weir_proxy::{
    classify::{Class, ClassifyRules, classify, is_plain_document},
    h1::{BodyDecoder, BodyLength, Decoded, HeadScan, Limits, Parsed, ResponseLength, parse_request, parse_response, peek, peek_answer},
};

const LIMITS: Limits = Limits { max_head: 8192, max_headers: 128 };

/// Whether the fast lane took it; panics where the two differ.
fn same(head: &[u8]) -> bool {
    let Some(peeked) = peek(head, LIMITS.max_head) else { return false };
    let mut buf = BytesMut::from(head);
    let parsed = match parse_request(&mut buf, &LIMITS, &mut HeadScan::default()) {
        Ok(Parsed::Request(parsed)) => parsed,
        other => panic!("{:?}: {other:?}", String::from_utf8_lossy(head)),
    };
    let parts = &parsed.parts;
    assert_eq!(buf.len(), head.len() - peeked.length);
    assert!(parsed.keep_alive && !parsed.upgrade && !parsed.expect_continue && !parsed.http10);
    assert_eq!(parsed.body, peeked.body.map_or(BodyLength::None, |length| BodyLength::Length(length as u64)));
    assert_eq!(parts.method, *peeked.method);
    assert_eq!((parts.uri.path(), parts.uri.query()), (peeked.path, peeked.query));
    let value = |name| parts.headers.get(name).map(|v: &http::HeaderValue| v.as_bytes());
    assert_eq!(value(header::HOST), Some(peeked.host.as_bytes()));
    for (name, seen) in [
        (header::ACCEPT, peeked.accept),
        (header::ACCEPT_ENCODING, peeked.accept_encoding),
        (header::USER_AGENT, peeked.user_agent),
        (header::IF_NONE_MATCH, peeked.if_none_match),
        (header::IF_MODIFIED_SINCE, peeked.if_modified_since),
        (header::RANGE, peeked.range),
        (header::IF_RANGE, peeked.if_range),
        (header::COOKIE, peeked.cookie),
    ] {
        assert_eq!(value(name.clone()), seen, "{name}");
        assert!(parts.headers.get_all(&name).iter().count() <= 1, "{name}");
    }
    let has = |name: &str| parts.headers.contains_key(name);
    assert_eq!(peeked.directives, has("cache-control") || has("pragma"));
    assert_eq!(peeked.forwarded, parts.headers.keys().any(|name| name.as_str().starts_with("x-forwarded-")));
    let begins = |some: &[&str]| parts.headers.keys().any(|name| some.iter().any(|prefix| name.as_str().starts_with(prefix)));
    assert_eq!((peeked.credentials, peeked.via), (has("authorization"), has("via")));
    assert_eq!(peeked.steers, begins(&["x-cache-", "x-warmup-"]));
    assert_eq!(peeked.site, has("rsc") || begins(&["next-", "x-nextjs-", "x-middleware-"]));
    assert_eq!(keys::canonical_host(peeked.host).as_deref(), Some(peeked.host));
    assert_eq!(keys::normalize_path(peeked.path), peeked.path);
    for rules in [ClassifyRules::default(), ClassifyRules { base_path: "/shop".into(), asset_prefix: "/cdn".into(), ..ClassifyRules::default() }] {
        let told = classify(parts, &rules);
        if is_plain_document(&peeked, &rules) {
            assert!(told.class == Class::Document && !told.monitor && !told.api, "{told:?}: {:?}", String::from_utf8_lossy(head));
        }
    }
    true
}

/// The same of an answer.
fn same_answer(head: &[u8]) -> bool {
    let mut seen: Vec<(String, Vec<u8>)> = Vec::new();
    let Some(peeked) = peek_answer(head, |(name, value)| seen.push((String::from_utf8_lossy(name).to_ascii_lowercase(), value.to_vec()))) else { return false };
    let mut buf = BytesMut::from(head);
    let parsed = match parse_response(&mut buf, &Method::GET, &LIMITS) {
        Ok(Some(parsed)) => parsed,
        other => panic!("{:?}: {other:?}", String::from_utf8_lossy(head)),
    };
    assert_eq!(buf.len(), head.len() - peeked.length);
    assert_eq!((parsed.parts.status, parsed.keep_alive), (peeked.status, true));
    match parsed.body {
        ResponseLength::None => assert!(peeked.body == 0 && matches!(peeked.status.as_u16(), 204 | 304)),
        ResponseLength::Length(length) => assert_eq!(length, peeked.body as u64),
        other => assert_eq!(other, ResponseLength::Chunked),
    }
    let (mut decoder, mut content, before) = (BodyDecoder::response(parsed.body), 0, buf.len());
    loop {
        match decoder.decode(&mut buf) {
            Ok(Decoded::Data(data)) => content += data.len(),
            Ok(Decoded::End { trailers: None }) => break,
            other => panic!("{:?}: {other:?}", String::from_utf8_lossy(head)),
        }
    }
    assert_eq!((content, before - buf.len()), (peeked.content, peeked.body), "{:?}", String::from_utf8_lossy(head));
    let mut read: Vec<(String, Vec<u8>)> = parsed.parts.headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect();
    seen.sort();
    read.sort();
    assert_eq!(seen, read);
    true
}

#[test]
fn a_services_answer_is_taken() {
    assert!(same_answer(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n{}"));
    assert!(same_answer(b"HTTP/1.1 404 \r\ncontent-length:0\r\n\r\n"));
    assert!(same_answer(b"HTTP/1.1 204 No Content\r\netag: \"a\"\r\n\r\n"));
    assert!(same_answer(b"HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\ncontent-length: 7\r\n\r\n"));
    for other in ["HTTP/1.1 204 No Content\r\ncontent-length: 0", "HTTP/1.1 200 OK\r\nx: y", "HTTP/1.1 100 Continue\r\ncontent-length: 0", "HTTP/1.0 200 OK\r\ncontent-length: 0", "HTTP/1.1 200 OK\r\ncontent-length: 1"] {
        assert!(!same_answer(format!("{other}\r\n\r\n").as_bytes()), "{other}");
    }
    let chunked = |chunks: &str| same_answer(format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunks}").as_bytes());
    assert!(chunked("0\r\n\r\n") && chunked("2\r\nok\r\n0A\r\n0123456789\r\n00\r\n\r\nrest"));
    for other in ["2\r\nok\r\n0\r\n\r", "2\r\nok\r\n", "2", "", "2;x=y\r\nok\r\n0\r\n\r\n", "2\r\nok\r\n0\r\na: b\r\n\r\n", "2\nok\r\n0\r\n\r\n", "2\r\nok!\r\n0\r\n\r\n", "12345678\r\n", "\r\nok\r\n0\r\n\r\n"] {
        assert!(!chunked(other), "{other:?}");
    }
}

#[test]
fn a_browsers_request_is_taken() {
    let head = b"GET /categories/shoes?page=2 HTTP/1.1\r\nHost: shop.example:9000\r\nConnection: keep-alive\r\nUpgrade-Insecure-Requests: 1\r\n\
        User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36\r\n\
        Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8\r\nSec-Fetch-Site: none\r\nSec-Fetch-Mode: navigate\r\n\
        Sec-Fetch-Dest: document\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: de\r\nCookie: guest_token=x\r\n\r\n";
    assert!(same(head));
    assert!(is_plain_document(&peek(head, 8192).expect("plain"), &ClassifyRules::default()));
}

#[test]
fn recorded_traffic_is_read_the_same_way() {
    let mut taken = 0;
    for line in include_str!("data/nextjs-traffic.jsonl").lines() {
        let record: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_string();
        let mut head = format!("{} {} HTTP/1.1\r\n", text(&record["method"]), text(&record["url"]));
        for pair in record["req"].as_array().into_iter().flatten() {
            head.push_str(&format!("{}: {}\r\n", text(&pair[0]), text(&pair[1])));
        }
        head.push_str("\r\n");
        taken += usize::from(same(head.as_bytes()));
    }
    assert!(taken > 20, "only {taken} of the recorded requests were looked at by the fast lane");
}

fn field() -> impl Strategy<Value = String> {
    let names = [
        "host", "Host", "accept", "accept-encoding", "user-agent", "cookie", "connection", "sec-fetch-dest", "if-none-match", "range", "if-range",
        "cache-control", "pragma", "te", "rsc", "next-url", "x-nextjs-data", "x-forwarded-for", "x-cache-refresh", "content-length", "upgrade", "x",
        "transfer-encoding", "expect", "authorization", "Content-Length", "purpose", "x-middleware-prefetch", "x-real-ip", "if-modified-since",
    ];
    let values = prop_oneof![
        Just("shop.example".to_string()),
        Just("a.b:8080".to_string()),
        Just("text/html, */*;q=0".to_string()),
        Just("image/avif,*/*".to_string()),
        Just("keep-alive".to_string()),
        Just("a=b; __prerender_bypass=1".to_string()),
        Just("kube-probe/1.2".to_string()),
        Just("document".to_string()),
        Just("image".to_string()),
        "0?[0-9]",
        "[ -~]{0,12}",
        "\\PC{0,6}",
    ];
    let separator = prop_oneof![20 => Just(": "), 3 => Just(":"), 1 => Just(" :"), 1 => Just(":\t ")];
    let end = prop_oneof![30 => Just("\r\n"), 1 => Just("\n"), 1 => Just("\r\n "), 1 => Just(" \r\n")];
    (proptest::sample::select(names.to_vec()), separator, values, end).prop_map(|(name, separator, value, end)| format!("{name}{separator}{value}{end}"))
}

fn target() -> impl Strategy<Value = String> {
    prop_oneof![
        "/[a-z]{0,6}(/[a-z0-9.]{0,6}){0,3}",
        Just("/".to_string()),
        Just("/health".to_string()),
        Just("/api/x".to_string()),
        Just("/apix".to_string()),
        Just("/shop/_next/static/a.js".to_string()),
        Just("/cdn/_next/static/a.js".to_string()),
        Just("/_next/image".to_string()),
        Just("/a/../b".to_string()),
        Just("/a//b".to_string()),
        Just("/a.rsc".to_string()),
        Just("/a.segments/b".to_string()),
        "/[a-zA-Z0-9._~!$&'()*+,;=:@/-]{0,16}(\\?[ -~]{0,10})?",
        "[ -~]{0,10}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn what_it_takes_the_strict_parser_reads_the_same_way(
        method in prop_oneof![6 => Just("GET"), 2 => Just("HEAD"), 2 => Just("POST"), 1 => Just("PUT"), 1 => Just("PATCH"), 1 => Just("DELETE"), 1 => Just("OPTIONS"), 1 => Just("get")],
        target in target(),
        version in prop_oneof![12 => Just(" HTTP/1.1\r\n"), 1 => Just(" HTTP/1.0\r\n"), 1 => Just("  HTTP/1.1\r\n"), 1 => Just(" HTTP/1.1\n")],
        host in prop_oneof![8 => Just("host: shop.example\r\n"), 1 => Just("")],
        fields in proptest::collection::vec(field(), 0..6),
        rest in "[ -~]{0,5}",
    ) {
        same(format!("{method} {target}{version}{host}{}\r\n{rest}", fields.concat()).as_bytes());
    }

    #[test]
    fn what_it_takes_of_a_service_the_strict_parser_reads_the_same_way(
        version in prop_oneof![12 => Just("HTTP/1.1 "), 1 => Just("HTTP/1.0 "), 1 => Just("HTTP/1.1  ")],
        status in prop_oneof![12 => Just("200 OK"), 2 => Just("404 Not Found"), 2 => Just("204 x"), 2 => Just("304 x"), 1 => Just("101 x"), 1 => Just("600 x"), 1 => Just("200"), 1 => Just("2000 x")],
        length in prop_oneof![6 => Just("content-length: 3\r\n"), 6 => Just("transfer-encoding: chunked\r\n"), 1 => Just(""), 1 => Just("Content-Length: +3\r\n"), 1 => Just("content-length: 003\r\n")],
        fields in proptest::collection::vec(field(), 0..6),
        rest in prop_oneof!["[ -~]{0,5}", "(([0-3]|0?3|1f|3;a)(\r\n|\r|\n)[a-z]{0,3}\r\n){0,3}0{0,2}(\r\n){0,2}[a-z]{0,2}(\r\n){0,2}"],
    ) {
        same_answer(format!("{version}{status}\r\n{length}{}\r\n{rest}", fields.concat()).as_bytes());
    }

    #[test]
    fn no_bytes_break_it(bytes in proptest::collection::vec(any::<u8>(), 0..80), cut in 0usize..60) {
        same(&bytes);
        let mut head = b"GET /a HTTP/1.1\r\nhost: shop.example\r\naccept: */*\r\n\r\n".to_vec();
        let at = cut.min(head.len());
        head.splice(at..at, bytes.iter().copied().take(3));
        same(&head);
        let mut head = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nserver: s\r\n\r\nok".to_vec();
        let at = cut.min(head.len());
        head.splice(at..at, bytes.iter().copied().take(3));
        same_answer(&head);
    }
}
