//! A recorded browser session with a real Next.js site, through the edge: what each request was is told by the recording, and the origin
//! gives the recorded answers.

use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
};
use upstream_stubs::{Kind, Options, Record, Running, load_recording, recorded_body, start};
use weir_tests::{Answer, Ask, Config, Door, Weir, eventually};

fn recording() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../proxy/tests/data/nextjs-traffic.jsonl")
}

/// The lengths of the recorded request bodies, by number of the record.
fn sent_lengths() -> HashMap<u64, usize> {
    let text = std::fs::read_to_string(recording()).expect("the recording");
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("a record"));
    lines.map(|r| (r["seq"].as_u64().unwrap_or(0), r["reqBodyLen"].as_u64().unwrap_or(0) as usize)).collect()
}

async fn origin(recording: &Path) -> Running {
    let options = Options { recording: Some(recording.to_owned()), remember: 4096, ..Options::default() };
    start(Kind::Replay, SocketAddr::from(([127, 0, 0, 1], 0)), options).await.expect("the replay starts")
}

/// An edge before the site alone: its `/api` is the site's own. Every page may be cached, if its answer allows it.
fn config(origin: &Running) -> Config {
    let pages = json!([{ "path": "/**", "ttl": "origin", "query": ["q", "page", "x"], "signed_in": "bypass" }]);
    Config(json!({ "store": "memory", "edge": { "origin": origin.url(), "pages": pages, "api": "origin" } }))
}

/// The request as the browser sent it.
fn ask(door: Door, record: &Record, body: usize) -> Ask {
    let host = record.request_header("host").unwrap_or("127.0.0.1:9000");
    let mut ask = door.ask(&record.method, &record.url).host(host);
    for (name, value) in &record.req {
        let hop = ["host", "connection", "content-length", "transfer-encoding"];
        if !hop.contains(&name.to_ascii_lowercase().as_str()) {
            ask = ask.header(name, value);
        }
    }
    if record.method == "POST" { ask.body(vec![b'x'; body]) } else { ask }
}

/// What the request was, from what the browser was doing and what the site answered: none of which the edge sees when it decides.
fn class(record: &Record) -> &'static str {
    let kind = record.response_header("content-type").unwrap_or("").split(';').next().unwrap_or("").to_owned();
    let (step, path) = (record.step.as_str(), record.url.split('?').next().unwrap_or(""));
    match (record.method.as_str(), kind.as_str()) {
        ("POST", "text/x-component") => "action",
        ("POST", _) if step.contains("no-JS") => "action",
        // Below `/api` the way is the API's, whatever the method.
        ("POST", _) if path.starts_with("/api/") => "api",
        ("POST", _) => "unsafe",
        (_, "text/x-component") => "rsc",
        // Given up by the browser when the page was left: prefetches.
        _ if record.status.is_none() => "rsc",
        // A component request for a page of the other router is answered with the page itself.
        (_, "text/html") if record.request_header("sec-fetch-dest") == Some("empty") => "rsc",
        (_, "application/javascript") => "static",
        (_, "image/webp") => "image",
        _ if step.contains("fetch /api") || step.contains("draft enable") => "api",
        _ if path.ends_with(".json") => "data",
        _ if step.contains("draft page") => "draft",
        _ if record.request_header("sec-fetch-dest") == Some("image") => "asset",
        _ => "document",
    }
}

/// Whether everybody may get the same copy of this page, by the rules of the decision table.
fn may_be_kept(record: &Record) -> bool {
    let all = |name: &str| record.res.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect::<Vec<_>>().join(", ").to_ascii_lowercase();
    let control = all("cache-control");
    let fresh = control.split(',').filter_map(|d| d.trim().strip_prefix("s-maxage=")).any(|s| s != "0");
    let router = ["rsc", "next-router-state-tree", "next-router-prefetch", "next-router-segment-prefetch", "next-url", "accept-encoding"];
    let vary = all("vary");
    record.status == Some(200)
        && all("content-type").starts_with("text/html")
        && fresh
        && !["private", "no-store", "no-cache"].iter().any(|d| control.contains(d))
        && all("set-cookie").is_empty()
        && vary.split(',').map(str::trim).filter(|v| !v.is_empty()).all(|v| router.contains(&v))
        && all("x-nextjs-postponed").is_empty()
}

/// What the edge takes out of answers: it tells of the site's inside.
fn is_stripped(name: &str, component: bool) -> bool {
    match name {
        "x-matched-path" | "x-nextjs-cache" | "x-powered-by" => true,
        // A browser's router reads it.
        "x-nextjs-prerender" => !component,
        "x-middleware-skip" => false,
        _ => name.starts_with("x-middleware-"),
    }
}

/// Names and values that the edge must hand on, sorted.
fn handed_on<'a>(fields: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<(String, String)> {
    let fields: Vec<_> = fields.map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned())).collect();
    let component = fields.iter().any(|(n, v)| n == "content-type" && v.starts_with("text/x-component"));
    let own = ["date", "via", "content-length", "transfer-encoding", "connection", "keep-alive", "x-request-id", "cache-status", "x-cache-status", "x-cache-key"];
    let mut kept: Vec<_> = fields.into_iter().filter(|(n, _)| !own.contains(&n.as_str()) && !is_stripped(n, component)).collect();
    kept.sort();
    kept
}

fn answered(answer: &Answer) -> Vec<(String, String)> {
    handed_on(answer.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_recorded_request_is_treated_as_what_it_was() {
    let records = load_recording(&recording()).expect("the recording");
    let lengths = sent_lengths();
    let origin = origin(&recording()).await;
    let weir = Weir::start(&config(&origin)).await;
    let mut counts = BTreeMap::new();
    let mut pages: HashMap<&str, usize> = HashMap::new();
    for record in &records {
        let (expected, before) = (class(record), origin.handle().hits());
        *counts.entry(expected).or_insert(0) += 1;
        let shown = format!("request {} ({}): {} {}", record.seq, record.step, record.method, record.url);
        let answer = ask(weir.edge(), record, lengths[&record.seq]).send().await;
        if expected == "document" {
            let kept = pages.entry(record.url.split('?').next().unwrap_or("")).or_default();
            let verdict = answer.verdict().to_owned();
            assert!(["HIT", "MISS", "STALE", "BYPASS"].contains(&&*verdict), "{shown}: {verdict}");
            *kept += usize::from(matches!(&*verdict, "MISS" | "HIT"));
            continue;
        }
        assert_eq!((answer.verdict(), answer.detail().as_str()), ("BYPASS", expected), "{shown}");
        assert_eq!(origin.handle().hits(), before + 1, "{shown}: passes once, and is answered from no key");
        // No other request may have been sent in its place.
        let seen = origin.handle().requests().pop().expect("a request");
        assert_eq!(seen.target, record.url, "{shown}");
        for name in ["rsc", "next-router-state-tree", "next-router-prefetch", "next-router-segment-prefetch", "next-url", "next-action", "cookie"] {
            assert_eq!(seen.header(name), record.request_header(name), "{shown}: {name}");
        }
        let Some(status) = record.status else { continue };
        assert_eq!(answer.status, status, "{shown}");
        if record.method != "HEAD" {
            assert_eq!(answer.body, recorded_body(record), "{shown}");
        }
        let mut wanted = handed_on(record.sent_headers());
        if expected == "draft" {
            wanted.retain(|(n, _)| n != "cache-control");
            wanted.push(("cache-control".into(), "private, no-store".into()));
            wanted.sort();
        }
        assert_eq!(answered(&answer), wanted, "{shown}");
    }
    assert_eq!(records.len(), 299);
    let known = [
        ("action", 5),
        ("api", 4),
        ("asset", 10),
        ("data", 7),
        ("document", 13),
        ("draft", 1),
        ("image", 2),
        ("rsc", 238),
        ("static", 19),
    ];
    assert_eq!(counts, known.into());
    assert_eq!(pages["/categories/shoes"], 3, "an ISR page comes from the cache through the whole session");
    for path in ["/account", "/stream", "/does-not-exist", "/legacy-redirect", "/legacy-ssr"] {
        assert_eq!(pages[path], 0, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_page_is_a_hit_the_second_time_exactly_if_the_gate_allows() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let lines = std::fs::read_to_string(recording()).expect("the recording");
    let records = load_recording(&recording()).expect("the recording");
    let (mut kept, mut refused) = (0, 0);
    for (record, line) in records.iter().zip(lines.lines()) {
        // An answer without a body can be given to nobody else: it was the one visitor's own.
        if class(record) != "document" || record.status == Some(304) {
            continue;
        }
        // An origin that knows this one exchange, so that it is this answer that is judged.
        let alone = folder.path().join(format!("{}.jsonl", record.seq));
        writeln!(std::fs::File::create(&alone).expect("a file"), "{line}").expect("written");
        let origin = origin(&alone).await;
        let weir = Weir::start(&config(&origin)).await;
        let visit = || {
            let mut plain = record.clone();
            plain.req.retain(|(n, _)| !n.eq_ignore_ascii_case("if-none-match"));
            ask(weir.edge(), &plain, 0)
        };
        let shown = format!("request {}: {}", record.seq, record.url);
        let first = visit().send().await;
        // What was stale at the origin already is kept for two seconds only: on a slow machine that may be over again.
        let stale = record.response_header("x-nextjs-cache") == Some("STALE");
        let second = eventually("the page again", async || Some(visit().send().await).filter(|a| !(stale && a.verdict() == "MISS"))).await;
        assert_eq!((Some(first.status), Some(second.status)), (record.status, record.status), "{shown}");
        assert_eq!(first.body, recorded_body(record), "{shown}");
        assert_eq!(second.body, first.body, "{shown}");
        if may_be_kept(record) {
            kept += 1;
            assert_eq!((first.verdict(), second.verdict()), ("MISS", "HIT"), "{shown}: {}", second.detail());
            assert!(stale || origin.handle().hits() == 1, "{shown}");
            assert_eq!(second.must("etag"), record.response_header("etag").expect("an ETag"), "{shown}");
            assert_eq!(second.must("cache-control"), "public, max-age=0, must-revalidate", "{shown}");
        } else {
            refused += 1;
            assert_eq!((first.verdict(), second.verdict()), ("BYPASS", "BYPASS"), "{shown}: {}", first.detail());
            assert!(origin.handle().hits() >= 2, "{shown}");
        }
    }
    assert_eq!((kept, refused), (7, 5));
}
