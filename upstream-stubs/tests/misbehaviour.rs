//! Faults, counters, the admin calls, protocols and connections, over real sockets.

mod support;

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use support::{GIVE_UP, get, post_json, raw, request, send, stub, stub_with, try_send};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use upstream_stubs::{FaultRule, Kind, Options, start};

/// Waits for something that other tasks bring about.
async fn until(what: &str, done: impl Fn() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(GIVE_UP, waiting)
        .await
        .unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn a_request_is_counted_when_it_arrives() {
    let stub = stub(Kind::Products).await;
    let handle = stub.handle().clone();
    let mut stream = TcpStream::connect(stub.addr()).await.unwrap();
    stream
        .write_all(b"GET /api/products/1 HTTP/1.1\r\nhost: x\r\nx-stub-fault: hang\r\n\r\n")
        .await
        .unwrap();
    until("counted, though never answered", || {
        handle.hits_for("/api/products/1") == 1
    })
    .await;
    assert_eq!(handle.stats().in_flight, 1);
    drop(stream);
    until("counted out when the client leaves", || {
        handle.stats().in_flight == 0
    })
    .await;
}

#[tokio::test]
async fn what_runs_at_once_is_counted() {
    let stub = stub(Kind::Products).await;
    let handle = stub.handle().clone();
    let mut open = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(stub.addr()).await.unwrap();
        stream
            .write_all(b"GET /api/products HTTP/1.1\r\nhost: x\r\nx-stub-fault: hang\r\n\r\n")
            .await
            .unwrap();
        open.push(stream);
    }
    until("all have arrived", || handle.stats().in_flight == 8).await;
    drop(open);
    until("all have left", || handle.stats().in_flight == 0).await;
    let stats = get(&stub, "/_stub/stats", &[]).await.json();
    assert_eq!(
        (
            stats["hits"].as_u64(),
            stats["paths"]["/api/products"].as_u64()
        ),
        (Some(8), Some(8))
    );
    assert_eq!(
        (stats["in_flight"].as_u64(), stats["max_in_flight"].as_u64()),
        (Some(0), Some(8))
    );
    assert_eq!(
        send("POST", &stub, "/_stub/reset", &[], "").await.status,
        204
    );
    assert_eq!(
        (
            handle.hits(),
            handle.stats().max_in_flight,
            handle.stats().paths.len()
        ),
        (0, 0, 0)
    );
}

#[tokio::test]
async fn latency_holds_the_answer_back() {
    let stub = stub(Kind::Products).await;
    let wait = Duration::from_millis(120);
    let before = tokio::time::Instant::now();
    assert_eq!(
        get(&stub, "/api/products", &[("x-stub-latency", "120ms")])
            .await
            .status,
        200
    );
    // Never sooner; how much later depends on the machine.
    assert!(before.elapsed() >= wait);
}

#[tokio::test]
async fn one_request_fails_by_its_own_headers() {
    let stub = stub(Kind::Products).await;
    assert_eq!(
        get(&stub, "/api/products", &[("x-stub-status", "503")])
            .await
            .status,
        503
    );
    let cut = get(&stub, "/api/products", &[("x-stub-fault", "truncate")]).await;
    let length: usize = cut.header("content-length").parse().unwrap();
    assert!(!cut.whole && cut.body.len() == length / 2);
    assert!(
        try_send(
            &stub,
            request(
                "GET",
                &stub,
                "/api/products",
                &[("x-stub-fault", "close")],
                ""
            )
        )
        .await
        .is_err()
    );
    let head = "GET /api/products HTTP/1.1\r\nhost: x\r\n";
    assert_eq!(
        raw(&stub, &format!("{head}x-stub-fault: close\r\n\r\n"))
            .await
            .unwrap(),
        b"",
        "an orderly close"
    );
    let reset = raw(&stub, &format!("{head}x-stub-fault: reset\r\n\r\n"))
        .await
        .unwrap_err();
    assert_eq!(reset.kind(), std::io::ErrorKind::ConnectionReset);
    let garbage = raw(&stub, &format!("{head}x-stub-fault: garbage\r\n\r\n"))
        .await
        .unwrap();
    assert!(
        !garbage.is_empty() && !garbage.starts_with(b"HTTP/"),
        "{garbage:?}"
    );
    let big = get(&stub, "/api/products", &[("x-stub-body-size", "3000000")]).await;
    assert!(big.whole && big.body.len() == 3_000_000 && big.header("content-length") == "3000000");
    let marked = get(
        &stub,
        "/api/products",
        &[
            ("x-stub-header-cache-control", "max-age=5"),
            ("x-stub-header-x-color", "red"),
        ],
    )
    .await;
    assert_eq!(
        (marked.header("cache-control"), marked.header("x-color")),
        ("max-age=5", "red")
    );
    let senseless = get(&stub, "/api/products", &[("x-stub-fault", "explode")]).await;
    assert_eq!(
        (
            senseless.status.as_u16(),
            senseless.json()["error"].as_str().unwrap()
        ),
        (400, "bad_stub_header")
    );
    assert_eq!(
        get(&stub, "/api/products", &[]).await.status,
        200,
        "and the next one is well"
    );
}

#[tokio::test]
async fn a_stalled_answer_stays_open() {
    let stub = stub(Kind::Products).await;
    let mut stream = TcpStream::connect(stub.addr()).await.unwrap();
    stream
        .write_all(b"GET /api/products HTTP/1.1\r\nhost: x\r\nx-stub-fault: stall\r\n\r\n")
        .await
        .unwrap();
    let mut got = vec![0; 15];
    tokio::time::timeout(GIVE_UP, stream.read_exact(&mut got))
        .await
        .expect("a head")
        .unwrap();
    assert_eq!(got, b"HTTP/1.1 200 OK");
    let ended =
        tokio::time::timeout(Duration::from_millis(300), stream.read_to_end(&mut got)).await;
    assert!(ended.is_err(), "neither end nor error");
    let length = stub_length(&got);
    assert!(
        length > 0 && got.len() < length,
        "{} bytes of {length}",
        got.len()
    );
}

/// The Content-Length in the head of a raw answer.
fn stub_length(answer: &[u8]) -> usize {
    let text = String::from_utf8_lossy(answer).to_ascii_lowercase();
    text.lines()
        .find_map(|l| l.strip_prefix("content-length: ")?.trim().parse().ok())
        .unwrap_or(0)
}

#[tokio::test]
async fn html_of_a_chosen_size_still_ends_as_a_page() {
    let shop = stub(Kind::Storefront).await;
    let page = get(&shop, "/", &[("x-stub-body-size", "50000")]).await;
    assert!(page.body.len() == 50_000 && page.body.ends_with(b"</html>"));
}

#[tokio::test]
async fn standing_faults_come_by_admin_call_and_are_used_up() {
    let shop = stub(Kind::Storefront).await;
    let rule = json!({"path_prefix": "/categories", "status": 503, "times": 2, "headers": {"retry-after": "1"}});
    assert_eq!(
        post_json(&shop, "/_stub/faults", &[], rule).await.status,
        201
    );
    let failed = get(&shop, "/categories/shoes", &[]).await;
    assert_eq!(
        (failed.status.as_u16(), failed.header("retry-after")),
        (503, "1")
    );
    assert_eq!(get(&shop, "/", &[]).await.status, 200, "another path");
    assert_eq!(
        get(&shop, "/_stub/faults", &[]).await.json()["faults"][0]["times"],
        1
    );
    assert_eq!(get(&shop, "/categories", &[]).await.status, 503);
    assert_eq!(get(&shop, "/categories", &[]).await.status, 200);

    post_json(
        &shop,
        "/_stub/faults",
        &[],
        json!({"headers": {"set-cookie": "a=b"}}),
    )
    .await;
    assert_eq!(get(&shop, "/", &[]).await.header("set-cookie"), "a=b");
    post_json(&shop, "/_stub/faults", &[], json!({"fault": "truncate"})).await;
    assert!(!get(&shop, "/", &[]).await.whole);
    assert_eq!(
        send("DELETE", &shop, "/_stub/faults", &[], "").await.status,
        204
    );
    let well = get(&shop, "/", &[]).await;
    assert!(well.whole && well.headers.get("set-cookie").is_none());

    for bad in [
        json!({"status": 42}),
        json!({"probability": 2}),
        json!({"headers": {"a b": "c"}}),
    ] {
        assert_eq!(
            post_json(&shop, "/_stub/faults", &[], bad).await.status,
            422
        );
    }
    for bad in [json!({"faul": "close"}), json!({"fault": "explode"})] {
        assert_eq!(
            post_json(&shop, "/_stub/faults", &[], bad).await.status,
            400
        );
    }
    assert!(shop.handle().faults().is_empty());
}

#[tokio::test]
async fn a_fault_of_small_probability_hits_some() {
    let stub = stub(Kind::Products).await;
    stub.handle()
        .add_fault(FaultRule {
            status: Some(500),
            probability: 0.5,
            ..FaultRule::default()
        })
        .unwrap();
    let mut failed = 0;
    for _ in 0..200 {
        failed += u32::from(get(&stub, "/api/products/1", &[]).await.status == 500);
    }
    // Outside of this range with a chance of less than one in 10^12.
    assert!((50..=150).contains(&failed), "{failed} of 200");
}

#[tokio::test]
async fn health_can_be_made_to_fail() {
    let sick = stub_with(
        Kind::Bff,
        Options {
            healthy: false,
            ..Options::default()
        },
    )
    .await;
    assert_eq!(get(&sick, "/health", &[]).await.status, 503);
    assert_eq!(
        post_json(&sick, "/_stub/health", &[], json!({"healthy": true}))
            .await
            .status,
        200
    );
    assert_eq!(get(&sick, "/health", &[]).await.status, 200);
    sick.handle().set_healthy(false);
    assert_eq!(get(&sick, "/health", &[]).await.status, 503);
}

#[tokio::test]
async fn echo_shows_what_arrived() {
    let shop = stub(Kind::Storefront).await;
    let echo = send(
        "PUT",
        &shop,
        "/echo/a?b=c",
        &[("x-two", "1"), ("x-two", "2")],
        "hello",
    )
    .await;
    assert_eq!(echo.header("cache-control"), "no-store");
    let seen = echo.json();
    assert_eq!(
        (
            seen["method"].as_str(),
            seen["url"].as_str(),
            seen["body_length"].as_u64()
        ),
        (Some("PUT"), Some("/echo/a?b=c"), Some(5))
    );
    assert_eq!(
        seen["body_sha256"],
        "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    );
    let twos = seen["headers"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|h| h[0] == "x-two")
        .count();
    assert_eq!(twos, 2);
    let remembered = shop.handle().requests();
    assert_eq!(
        (remembered[0].target.as_str(), remembered[0].header("x-two")),
        ("/echo/a?b=c", Some("1"))
    );
}

#[tokio::test]
async fn connections_are_kept_and_pipelined_requests_answered() {
    let stub = stub(Kind::Products).await;
    let one = "GET /api/products/1 HTTP/1.1\r\nhost: x\r\n\r\n";
    let last = "GET /api/products/2 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let got = String::from_utf8(raw(&stub, &format!("{one}{one}{last}")).await.unwrap()).unwrap();
    assert_eq!(got.matches("HTTP/1.1 200 OK").count(), 3);
    assert_eq!(stub.handle().stats().connections, 1);
}

#[tokio::test]
async fn http2_is_spoken_without_tls() {
    let shop = stub(Kind::Storefront).await;
    let stream = TcpStream::connect(shop.addr()).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let ask = |path: &str, fault: Option<&'static str>| {
        let mut request = Request::builder().uri(format!("http://shop.example{path}"));
        if let Some(fault) = fault {
            request = request.header("x-stub-fault", fault);
        }
        request.body(Full::new(Bytes::new())).unwrap()
    };
    let echo = support::read(sender.send_request(ask("/echo", None)).await.unwrap())
        .await
        .json();
    assert_eq!(
        (echo["version"].as_str(), echo["authority"].as_str()),
        (Some("HTTP/2.0"), Some("shop.example"))
    );
    let cut = support::read(
        sender
            .send_request(ask("/", Some("truncate")))
            .await
            .unwrap(),
    )
    .await;
    assert!(!cut.whole && !cut.body.is_empty());
    assert!(sender.send_request(ask("/", Some("close"))).await.is_err());
    let after = support::read(sender.send_request(ask("/", None)).await.unwrap()).await;
    assert!(after.whole, "only the stream was reset, not the connection");
}

#[tokio::test]
async fn a_stopped_service_frees_its_port_and_drops_its_connections() {
    let stub = stub(Kind::Products).await;
    let addr = stub.addr();
    let mut open = TcpStream::connect(addr).await.unwrap();
    open.write_all(b"GET /events HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut first = [0u8; 16];
    open.read_exact(&mut first).await.unwrap();
    stub.stop().await;
    let mut rest = Vec::new();
    // Closed or reset, but ended.
    let _ = tokio::time::timeout(GIVE_UP, open.read_to_end(&mut rest))
        .await
        .expect("the connection ends");
    assert!(TcpStream::connect(addr).await.is_err());
    let again = start(Kind::Products, addr, Options::default())
        .await
        .expect("the port is free");
    assert_eq!(get(&again, "/api/products", &[]).await.status, 200);
    let taken = start(Kind::Deals, addr, Options::default())
        .await
        .unwrap_err()
        .to_string();
    assert!(
        taken.contains("deals") && taken.contains(&addr.to_string()),
        "{taken}"
    );
}

#[tokio::test]
async fn events_come_one_by_one() {
    let shop = stub(Kind::Storefront).await;
    let events = get(&shop, "/events?count=3&every=5", &[("last-event-id", "10")]).await;
    assert_eq!(events.header("content-type"), "text/event-stream");
    let ids: Vec<&str> = events
        .text()
        .lines()
        .filter_map(|l| l.strip_prefix("id: "))
        .collect();
    assert_eq!(ids, ["11", "12", "13"]);
}

#[tokio::test]
async fn the_websocket_echoes() {
    let shop = stub(Kind::Storefront).await;
    let mut stream = TcpStream::connect(shop.addr()).await.unwrap();
    stream
        .write_all(b"GET /ws HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
        .await
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    assert!(
        head.starts_with("http/1.1 101")
            && head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="),
        "{head}"
    );
    // "Hello" masked, as in RFC 6455 section 5.7, and back unmasked.
    stream
        .write_all(&[
            0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58,
        ])
        .await
        .unwrap();
    let mut echoed = [0u8; 7];
    stream.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"\x81\x05Hello");
    stream.write_all(&[0x89, 0x80, 1, 2, 3, 4]).await.unwrap();
    let mut pong = [0u8; 2];
    stream.read_exact(&mut pong).await.unwrap();
    assert_eq!(pong, [0x8a, 0x00]);
    // An unmasked frame is a protocol error: close with 1002.
    stream.write_all(&[0x81, 0x01, b'x']).await.unwrap();
    let mut end = Vec::new();
    tokio::time::timeout(GIVE_UP, stream.read_to_end(&mut end))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(end, [0x88, 0x02, 0x03, 0xea]);
    assert_eq!(get(&shop, "/ws", &[]).await.status, 426);
}
