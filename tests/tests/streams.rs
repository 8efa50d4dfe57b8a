//! Bodies and connections that do not fit into one piece: they pass through as they come, and unchanged.

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::{io::{AsyncReadExt, AsyncWriteExt}, net::TcpListener};
use weir_tests::{Config, Door, Shop, Weir};

async fn open(change: impl FnOnce(Config) -> Config) -> (Shop, Weir) {
    let shop = Shop::start().await;
    let config = shop.config().service("echo", &shop.stubs.products.url(), "/echo", json!([]));
    let weir = Weir::start(&change(config)).await;
    (shop, weir)
}

/// Bytes without a pattern that a mix-up of pieces would leave as it was.
fn noise(length: usize) -> Bytes {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length.div_ceil(8)).flat_map(|_| next()).take(length).collect::<Vec<u8>>().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_arrive_while_the_answer_goes_on() {
    let (shop, weir) = open(|config| config).await;
    let mut connection = weir.edge().connect().await;
    // The next event comes after an hour: whoever waits for the end, or for a full buffer, shows nothing.
    connection.send(weir.edge().get("/events?every=3600000").header("accept", "text/event-stream").bytes()).await;
    let (status, headers) = connection.head().await.expect("a head");
    assert_eq!(status, 200);
    assert!(headers.iter().any(|(n, v)| n == "content-type" && v == "text/event-stream"), "{headers:?}");
    let first = connection.chunk().await.expect("a chunk").expect("an event");
    assert!(first.starts_with(b"id: 1\nevent: tick\n"), "{first:?}");
    drop(connection);

    let mut leaving = weir.edge().connect().await;
    leaving.send(weir.edge().get("/events?every=20").bytes()).await;
    leaving.head().await.expect("a head");
    for _ in 0..3 {
        leaving.chunk().await.expect("a chunk").expect("an event");
    }
    let before = shop.storefront().stats().in_flight;
    drop(leaving);
    weir_tests::eventually("the origin is told that nobody listens", async || (shop.storefront().stats().in_flight < before).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_page_arrives_in_its_pieces() {
    let (_shop, weir) = open(|config| config.pages(json!([{ "path": "/**", "ttl": "60s" }]))).await;
    for _ in 0..2 {
        let mut connection = weir.edge().connect().await;
        connection.send(weir.edge().get("/stream?pieces=3&delay=200").bytes()).await;
        connection.head().await.expect("a head");
        let mut pieces = 0;
        while connection.chunk().await.expect("a chunk").is_some() {
            pieces += 1;
        }
        assert!(pieces >= 2, "came in one piece");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_pass_whole_in_both_directions() {
    let (shop, weir) = open(|config| config.set("/edge/pages/3/max_size", "1MB")).await;
    let sent = noise(3 << 20);
    let direct = Door(shop.stubs.products.addr()).post("/echo", "application/octet-stream", sent.clone()).send().await.expect(200).json();
    for answer in [
        weir.gateway().post("/echo", "application/octet-stream", sent.clone()).send().await,
        weir.gateway().post("/echo", "application/octet-stream", sent.clone()).send_h2().await,
    ] {
        let seen: Value = answer.expect(200).json();
        assert_eq!((&seen["body_length"], &seen["body_sha256"]), (&json!(3 << 20), &direct["body_sha256"]));
    }
    let mut chunked = b"POST /echo HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for piece in sent.chunks(70_000) {
        chunked.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        chunked.extend_from_slice(piece);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let mut connection = weir.gateway().connect().await;
    connection.send(&chunked).await;
    let seen = connection.answer("POST").await.expect("an answer").expect(200).json();
    assert_eq!((&seen["body_length"], &seen["body_sha256"]), (&json!(3 << 20), &direct["body_sha256"]));

    // Larger than what is stored: it passes whole, each time from the origin, to all who ask at once.
    let target = "/page/1?size=5000000";
    let asks = (0..6).map(|number| {
        let ask = weir.edge().get(target);
        async move { if number % 2 == 0 { ask.send().await } else { ask.send_h2().await } }
    });
    for answer in futures_util::future::join_all(asks).await {
        let answer = answer.expect(200);
        assert_eq!(answer.body.len(), 5_000_000);
        assert!(answer.body.ends_with(b"</html>"));
        assert_ne!(answer.verdict(), "HIT");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_passes_where_the_config_lets_it() {
    let (_shop, weir) = open(|config| config.set("/edge/upgrades", true)).await;
    let mut connection = weir.edge().connect().await;
    let handshake = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    // The first frame right behind the handshake: nothing of it may be lost.
    let mut bytes = weir.edge().get("/ws").headers(handshake).bytes();
    bytes.extend(frame(b"hello"));
    connection.send(&bytes).await;
    let (status, headers) = connection.head().await.expect("a head");
    assert_eq!(status, 101, "{headers:?}");
    assert!(headers.iter().any(|(n, v)| n == "sec-websocket-accept" && v == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{headers:?}");
    assert_eq!(connection.exactly(7).await.as_deref(), Ok(&b"\x81\x05hello"[..]));
    let long = noise(60_000);
    connection.send(frame(&long)).await;
    let head = connection.exactly(4).await.expect("a frame");
    assert_eq!((head[1], u16::from_be_bytes([head[2], head[3]])), (126, 60_000));
    assert_eq!(connection.exactly(60_000).await, Ok(long));
    connection.send([&[0x88, 0x80][..], &[0; 4]].concat()).await;
    assert_eq!(connection.exactly(2).await.map(|f| f[0]), Ok(0x88));
}

/// A masked binary or text frame of RFC 6455, with a mask of zeros.
fn frame(payload: &[u8]) -> Vec<u8> {
    let mut out = vec![if payload.len() < 126 { 0x81 } else { 0x82 }];
    match u16::try_from(payload.len()) {
        Ok(short) if short < 126 => out.push(0x80 | payload.len() as u8),
        Ok(long) => {
            out.push(0x80 | 126);
            out.extend(long.to_be_bytes());
        }
        Err(_) => panic!("too long for a test"),
    }
    out.extend([0; 4]);
    out.extend_from_slice(payload);
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_for_100_gets_it() {
    let (_shop, weir) = open(|config| config.set("/server/max_body", "1KB")).await;
    let mut connection = weir.gateway().connect().await;
    connection.send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n").await;
    let (interim, _) = connection.head().await.expect("an interim answer");
    assert_eq!(interim, 100);
    connection.send("hello").await;
    let answer = connection.answer("POST").await.expect("an answer").expect(200);
    assert_eq!(answer.json()["body_length"], 5);
    // What will be refused is refused before it is sent.
    let mut connection = weir.gateway().connect().await;
    connection.send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\nExpect: 100-continue\r\n\r\n").await;
    let (status, _) = connection.head().await.expect("an answer");
    assert_eq!(status, 413);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_clients_get_no_chunks_and_a_closed_connection() {
    let (_shop, weir) = open(|config| config).await;
    for (door, target) in [(weir.edge(), "/categories"), (weir.edge(), "/stream?pieces=2&delay=1"), (weir.gateway(), "/api/products")] {
        let mut connection = door.connect().await;
        connection.send(format!("GET {target} HTTP/1.0\r\nHost: shop.test\r\n\r\n")).await;
        let answer = connection.answer("GET").await.expect("an answer").expect(200);
        assert!(!answer.has("transfer-encoding"), "{target}: {answer:#?}");
        assert!(!answer.body.is_empty());
        assert!(connection.is_closed().await, "{target}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_may_be_another_process() {
    let shop = Shop::start().await;
    let gateway = Weir::start_as("gateway", &shop.config().without("edge")).await;
    let away = format!("http://{}", gateway.gateway().0);
    let edge = Weir::start_as("edge", &shop.config().without("gateway").without("warm_up").set("/edge/api", away)).await;
    let first = edge.edge().get("/api/home").send().await.expect(200);
    assert_eq!(first.must("x-cache-key"), "cache:GET:/api/home", "the other's word: {first:#?}");
    let token = first.cookie("guest_token").expect("a guest token").to_owned();
    let again = edge.edge().get("/api/products").cookie("guest_token", &token).send().await.expect(200);
    assert!(again.json()["items"].is_array());
    let seen = shop.stubs.products.handle().requests().pop().expect("a request");
    assert_eq!(seen.header("authorization"), Some(&*format!("Bearer {token}")));
    edge.edge().get("/api/members").cookie("guest_token", &token).send().await.expect(401);
    assert_eq!(edge.edge().get("/categories").send().await.expect(200).verdict(), "MISS");
    drop(gateway);
    edge.edge().get("/api/products").send().await.expect(502);
}

/// Answers a `/refused` as soon as its head is there and reads nothing more of that connection. Tells early of a `/hinted`, and reads the rest of it
/// some time after that. Everything else gets a 200.
async fn impatient() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                let mut head = Vec::new();
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    head.extend_from_slice(&buffer[..count]);
                    if head.windows(9).any(|bytes| bytes == b"/refused ") {
                        let _ = stream.write_all(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\nno").await;
                        return std::future::pending().await;
                    }
                    if head.windows(8).any(|bytes| bytes == b"/hinted ") {
                        let _ = stream.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n").await;
                        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
                        let mut last = *head.last().expect("a byte");
                        while last != b'"' {
                            let count @ 1.. = stream.read(&mut buffer).await.unwrap_or(0) else { return };
                            last = buffer[count - 1];
                        }
                        head = b"\r\n\r\n".to_vec();
                    }
                    if head.ends_with(b"\r\n\r\n") {
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nyes").await;
                        head.clear();
                    }
                }
            });
        }
    });
    address
}

/// A plugin that reads bodies, so that they are at hand as a whole before they leave.
fn reads_bodies() -> Value {
    json!([{ "name": "request-validation", "config": { "body_schema": { "type": "string" }, "max_body": "12MB" } }])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hint_in_the_middle_of_a_body_does_not_end_it() {
    let url = format!("http://{}", impatient().await);
    let config = |config: Config| config.service("whole", &url, "/whole", reads_bodies()).service("streamed", &url, "/streamed", json!([]));
    let (_shop, weir) = open(|all| config(all).set("/server/max_body", "12MB")).await;
    let body = format!("\"{}\"", "x".repeat(10 << 20));
    for route in ["whole", "streamed"] {
        let answer = weir.gateway().post(&format!("/{route}/hinted"), "application/json", body.clone()).send().await;
        assert_eq!(answer.expect(200).text(), "yes", "{route}");
    }
}

/// Else the next request would be read as the rest of the body that the service never took.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_was_answered_before_the_whole_body_left_is_not_used_again() {
    let service = impatient().await;
    let url = format!("http://{service}");
    let config = |config: Config| {
        let config = config.service("whole", &url, "/whole", reads_bodies()).service("streamed", &url, "/streamed", json!([]));
        config.set("/server/max_body", "12MB").set("/server/threads", 1)
    };
    let (_shop, weir) = open(config).await;
    let body = format!("\"{}\"", "x".repeat(10 << 20));
    for route in ["whole", "streamed"] {
        let refused = weir.gateway().post(&format!("/{route}/refused"), "application/json", body.clone()).send().await;
        assert_eq!((refused.status, refused.text().as_str()), (401, "no"), "{route}");
        for _ in 0..3 {
            assert_eq!(weir.gateway().get(&format!("/{route}/next")).send().await.expect(200).text(), "yes", "{route}");
        }
    }
}
