//! The replay of a recording over real sockets.

mod support;

use std::io::Write;

use serde_json::{Value, json};
use support::{Answer, get, send, stub_with};
use upstream_stubs::{Kind, Options, Record, Running, load_recording, recorded_body, start};

const VARY: &str = "rsc, next-router-state-tree, next-router-prefetch, next-router-segment-prefetch, Accept-Encoding";
const HTML_HEAD: &str =
    "<!DOCTYPE html><html lang=\"en\"><head><meta charSet=\"utf-8\"/><meta name=\"viewport";

#[allow(clippy::too_many_arguments)] // the fields of a record
fn line(
    seq: u64,
    method: &str,
    url: &str,
    req: Value,
    status: u16,
    res: Value,
    decoded: usize,
    first80: &str,
) -> String {
    json!({
        "seq": seq, "step": "a step", "t": 1_795_224_563_487u64, "method": method, "url": url, "req": req, "reqBodyLen": 0, "reqBody80": "",
        "status": status, "res": res, "bodyLen": decoded / 2, "chunks": 2, "ttfb": 1, "total": 2, "decodedLen": decoded, "first80": first80,
    })
    .to_string()
}

fn html(seq: u64, url: &str, etag: &str, decoded: usize) -> String {
    let res = json!([
        ["Vary", VARY],
        ["x-nextjs-prerender", "1"],
        ["x-nextjs-prerender", "1"],
        [
            "Cache-Control",
            "s-maxage=60, stale-while-revalidate=31535940"
        ],
        ["ETag", etag],
        ["Content-Type", "text/html; charset=utf-8"],
        ["Content-Encoding", "gzip"],
        ["Date", "Sat, 21 Nov 2020 01:29:23 GMT"],
        ["Connection", "keep-alive"],
        ["Keep-Alive", "timeout=5"],
        ["Transfer-Encoding", "chunked"]
    ]);
    line(
        seq,
        "GET",
        url,
        json!([["Host", "x"]]),
        200,
        res,
        decoded,
        HTML_HEAD,
    )
}

fn rsc(seq: u64, segment: &str, decoded: usize) -> String {
    let req = json!([
        ["RSC", "1"],
        ["Next-Router-Prefetch", "1"],
        ["Next-Router-Segment-Prefetch", segment],
        ["Next-Url", "/"]
    ]);
    let res = json!([
        ["Vary", VARY],
        ["Cache-Control", "s-maxage=60"],
        ["Content-Type", "text/x-component"]
    ]);
    line(
        seq,
        "GET",
        "/categories?_rsc=abc",
        req,
        200,
        res,
        decoded,
        "1:\"$Sreact.fragment\"\n",
    )
}

async fn replay(lines: &[String]) -> (Running, Vec<Record>) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(lines.join("\n").as_bytes()).unwrap();
    let records = load_recording(file.path()).unwrap();
    let running = stub_with(
        Kind::Replay,
        Options {
            recording: Some(file.path().to_owned()),
            ..Options::default()
        },
    )
    .await;
    (running, records)
}

fn same(answer: &Answer, record: &Record) {
    assert_eq!(
        answer.status.as_u16(),
        record.status.unwrap(),
        "{}",
        record.url
    );
    assert_eq!(answer.body, recorded_body(record), "{}", record.url);
    for (name, value) in record.sent_headers() {
        assert!(
            answer.headers.get_all(name).iter().any(|v| v == value),
            "{name}: {value} of {}",
            record.url
        );
    }
}

#[tokio::test]
async fn answers_are_the_recorded_ones() {
    let (origin, records) = replay(&[
        html(1, "/", "\"one\"", 6_807),
        rsc(2, "/_tree", 163),
        rsc(3, "/__PAGE__", 2_637),
    ])
    .await;
    let page = get(&origin, "/", &[]).await;
    same(&page, &records[0]);
    assert!(
        page.body.len() == 6_807
            && page.body.starts_with(HTML_HEAD.as_bytes())
            && page.body.ends_with(b"</html>")
    );
    assert_eq!(
        page.headers.get_all("x-nextjs-prerender").iter().count(),
        2,
        "repeated headers stay repeated"
    );
    for dropped in ["content-encoding", "keep-alive", "transfer-encoding"] {
        assert!(page.headers.get(dropped).is_none(), "{dropped}");
    }
    assert!(
        !page.header("date").contains("2020"),
        "a recorded date would make it stale on arrival"
    );
    let headers = |segment| {
        [
            ("rsc", "1"),
            ("next-router-prefetch", "1"),
            ("next-router-segment-prefetch", segment),
            ("next-url", "/"),
        ]
    };
    same(
        &get(&origin, "/categories?_rsc=abc", &headers("/__PAGE__")).await,
        &records[2],
    );
    same(
        &get(&origin, "/categories?_rsc=abc", &headers("/_tree")).await,
        &records[1],
    );
}

#[tokio::test]
async fn records_alike_come_in_order_and_the_last_one_stays() {
    let (origin, records) = replay(&[
        html(1, "/", "\"one\"", 6_807),
        html(2, "/", "\"two\"", 6_785),
    ])
    .await;
    same(&get(&origin, "/", &[]).await, &records[0]);
    for _ in 0..3 {
        same(&get(&origin, "/", &[]).await, &records[1]);
    }
    assert_ne!(recorded_body(&records[0]), recorded_body(&records[1]));
}

#[tokio::test]
async fn a_304_is_only_for_who_asked_for_it() {
    let not_modified = line(
        2,
        "GET",
        "/",
        json!([["If-None-Match", "\"one\""]]),
        304,
        json!([["ETag", "\"one\""]]),
        0,
        "",
    );
    let (origin, records) = replay(&[html(1, "/", "\"one\"", 500), not_modified]).await;
    same(&get(&origin, "/", &[]).await, &records[0]);
    let conditional = get(&origin, "/", &[("if-none-match", "\"one\"")]).await;
    assert_eq!(
        (
            conditional.status.as_u16(),
            conditional.header("etag"),
            conditional.body.len()
        ),
        (304, "\"one\"", 0)
    );
    same(&get(&origin, "/", &[]).await, &records[0]);
}

#[tokio::test]
async fn pages_are_found_without_their_tracking_parameters_and_components_are_not() {
    let (origin, records) = replay(&[
        html(1, "/hats?utm_source=push&page=2", "\"one\"", 500),
        rsc(2, "/_tree", 163),
    ])
    .await;
    for url in ["/hats?page=2", "/hats"] {
        same(&get(&origin, url, &[]).await, &records[0]);
    }
    assert_eq!(
        send("HEAD", &origin, "/hats?page=2", &[], "")
            .await
            .header("content-length"),
        "500"
    );
    let lost = get(&origin, "/categories?_rsc=abc", &[("rsc", "1")]).await;
    assert_eq!(
        (lost.status.as_u16(), lost.json()["error"].as_str().unwrap()),
        (404, "not_recorded")
    );
    assert_eq!(get(&origin, "/nothing", &[]).await.status, 404);
    assert_eq!(send("POST", &origin, "/hats", &[], "").await.status, 404);
}

#[tokio::test]
async fn binary_beginnings_and_tiny_bodies_are_kept() {
    let png: String = [0x89u8, b'P', b'N', b'G', 0, 0xff]
        .iter()
        .map(|b| char::from(*b))
        .collect();
    let res = json!([["Content-Type", "image/png"]]);
    let empty = json!([["Content-Type", "text/html"]]);
    let (origin, records) = replay(&[
        line(1, "GET", "/raw.png", json!([]), 200, res.clone(), 1_000, &png),
        line(2, "GET", "/two", json!([]), 200, res, 2, "{}"),
        line(3, "POST", "/form", json!([]), 303, empty, 0, ""),
        json!({"seq": 4, "step": "s", "t": 1, "method": "GET", "url": "/gone", "req": [], "aborted": true}).to_string(),
    ])
    .await;
    let picture = get(&origin, "/raw.png", &[]).await;
    same(&picture, &records[0]);
    assert!(picture.body.starts_with(b"\x89PNG\0\xff") && picture.body.len() == 1_000);
    assert_eq!(get(&origin, "/two", &[]).await.text(), "{}");
    same(
        &send("POST", &origin, "/form", &[], "a=b").await,
        &records[2],
    );
    assert_eq!(
        get(&origin, "/gone", &[]).await.status,
        404,
        "an aborted request has no answer"
    );
}

#[tokio::test]
async fn a_bad_recording_is_named_with_its_line() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "{}\n{{\"seq\":", html(1, "/", "\"one\"", 500)).unwrap();
    let why = start(
        Kind::Replay,
        ([127, 0, 0, 1], 0).into(),
        Options {
            recording: Some(file.path().to_owned()),
            ..Options::default()
        },
    )
    .await
    .unwrap_err();
    assert!(
        why.to_string()
            .contains(&format!("{}:2:", file.path().display())),
        "{why}"
    );
    assert!(
        start(Kind::Replay, ([127, 0, 0, 1], 0).into(), Options::default())
            .await
            .is_err()
    );
}

/// Runs a whole recording through the replay, each request as it was sent.
/// `RECORDING=… cargo test -p upstream-stubs --test replay -- --ignored`
#[tokio::test]
#[ignore = "needs a recording, named by the variable RECORDING"]
async fn a_whole_recording_comes_back_in_its_own_order() {
    let path =
        std::path::PathBuf::from(std::env::var_os("RECORDING").expect("RECORDING names the file"));
    let records = load_recording(&path).unwrap();
    let origin = stub_with(
        Kind::Replay,
        Options {
            recording: Some(path),
            ..Options::default()
        },
    )
    .await;
    let mut answered = 0;
    for record in records.iter().filter(|r| r.status.is_some()) {
        let headers: Vec<(&str, &str)> = record
            .req
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .filter(|(n, _)| {
                !["host", "connection", "content-length"]
                    .iter()
                    .any(|l| n.eq_ignore_ascii_case(l))
            })
            .collect();
        let answer = send(&record.method, &origin, &record.url, &headers, "").await;
        same(&answer, record);
        answered += 1;
    }
    assert!(answered > 0);
}
