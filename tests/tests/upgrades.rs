//! WebSocket, server-sent events and trailers: they pass as they come, with the plugins of their route applied.

use bytes::Bytes;
use h2::{client::SendRequest, ext::Protocol};
use http::{Method, Request};
use serde_json::json;
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use weir_tests::{Config, Weir, eventually, guarded};

/// An upstream that answers each connection's head with `answer`, then sends what the test gives it and shows what it received.
struct Raw {
    address: SocketAddr,
    connections: mpsc::Receiver<(String, TcpStream)>,
}

impl Raw {
    async fn start(answer: &'static str) -> Raw {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (sender, connections) = mpsc::channel(8);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { break };
                    head.push(byte);
                }
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = sender.send((String::from_utf8_lossy(&head).to_ascii_lowercase(), stream)).await;
            }
        });
        Raw { address, connections }
    }

    async fn next(&mut self) -> (String, TcpStream) {
        guarded("a connection to the upstream", self.connections.recv()).await.expect("a connection")
    }
}

async fn start(upstream: &Raw) -> Weir {
    Weir::start(&Config(json!({
        "gateway": {
            "_format_version": "3.0",
            "services": [{ "name": "live", "url": format!("http://{}", upstream.address), "routes": [{ "name": "live", "paths": ["/live"] }] }],
            "plugins": [{ "name": "key-auth" }, { "name": "response-transformer", "config": { "add": { "headers": ["x-passed:weir"] } } }],
            "consumers": [{ "username": "alice", "keyauth_credentials": [{ "key": "sesame-of-alice" }] }],
        },
    })))
    .await
}

const UPGRADE: &str = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn websockets_pass_both_ways_once_the_plugins_agree() {
    let mut upstream =
        Raw::start("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nearly").await;
    let weir = start(&upstream).await;
    let mut refused = weir.gateway().connect().await;
    refused.send(format!("GET /live/chat HTTP/1.1\r\nHost: shop.test\r\n{UPGRADE}\r\n")).await;
    refused.answer("GET").await.expect("an answer").expect(401);

    let mut client = weir.gateway().connect().await;
    client.send(format!("GET /live/chat HTTP/1.1\r\nHost: shop.test\r\napikey: sesame-of-alice\r\n{UPGRADE}\r\nhasty")).await;
    let (status, fields) = client.head().await.expect("a head");
    let field = |name: &str| fields.iter().find(|(n, _)| n == name).map(|(_, v)| v.to_ascii_lowercase());
    assert_eq!(status, 101);
    assert_eq!((field("upgrade"), field("connection")), (Some("websocket".into()), Some("upgrade".into())));
    assert_eq!((field("x-passed"), field("sec-websocket-accept").is_some()), (Some("weir".into()), true));
    let (head, mut stream) = upstream.next().await;
    assert!(head.starts_with("get /chat http/1.1\r\n") && head.contains("upgrade: websocket\r\n") && head.contains("x-consumer-username: alice\r\n"), "{head}");
    assert_eq!(client.exactly(5).await.expect("bytes"), "early");
    let mut hasty = [0; 5];
    guarded("hasty", stream.read_exact(&mut hasty)).await.expect("bytes");
    assert_eq!(&hasty, b"hasty");
    for round in 0..3u8 {
        client.send([round; 1000]).await;
        let mut seen = [9; 1000];
        guarded("up", stream.read_exact(&mut seen)).await.expect("bytes");
        assert_eq!(seen, [round; 1000]);
        stream.write_all(&[round + 100; 2000]).await.expect("sent");
        assert_eq!(client.exactly(2000).await.expect("bytes"), [round + 100; 2000][..]);
    }
    // The configuration changes: the tunnel goes on.
    weir.admin().ask("POST", "/reload").body("").send().await.expect(200);
    stream.write_all(b"after").await.expect("sent");
    assert_eq!(client.exactly(5).await.expect("bytes"), "after");
    drop(stream);
    assert!(client.is_closed().await);
}

/// A client of HTTP/2 that may open WebSockets (RFC 8441).
async fn http2(weir: &Weir) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(weir.gateway().0).await.expect("a connection");
    let (send, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    let send = send.ready().await.expect("ready");
    eventually("extended CONNECT is offered", async || send.is_extended_connect_protocol_enabled().then_some(())).await;
    send
}

fn open(path: &str, key: &str) -> Request<()> {
    let request = Request::builder().method(Method::CONNECT).uri(format!("http://shop.test{path}")).extension(Protocol::from_static("websocket"));
    request.header("sec-websocket-version", "13").header("apikey", key).body(()).expect("a request")
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_of_http2_become_upgrades() {
    let mut upstream =
        Raw::start("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chat\r\n\r\nearly").await;
    let weir = start(&upstream).await;
    let mut client = http2(&weir).await;
    let (answer, _up) = client.send_request(open("/live/chat", "unknown"), false).expect("sent");
    assert_eq!(guarded("a refusal", answer).await.expect("an answer").status(), 401);

    let (answer, mut up) = client.send_request(open("/live/chat?room=1", "sesame-of-alice"), false).expect("sent");
    let (parts, mut down) = guarded("a head", answer).await.expect("an answer").into_parts();
    assert_eq!(parts.status, 200);
    assert_eq!((parts.headers["x-passed"].as_bytes(), parts.headers["sec-websocket-protocol"].as_bytes()), (&b"weir"[..], &b"chat"[..]));
    assert!(["connection", "upgrade", "sec-websocket-accept", "content-length"].iter().all(|name| !parts.headers.contains_key(*name)), "{:?}", parts.headers);
    let (head, mut stream) = upstream.next().await;
    assert!(head.starts_with("get /chat?room=1 http/1.1\r\n") && head.contains("upgrade: websocket\r\n") && head.contains("connection: upgrade\r\n"), "{head}");
    assert!(head.contains("sec-websocket-key: ") && head.contains("sec-websocket-version: 13\r\n") && head.contains("x-consumer-username: alice\r\n"), "{head}");
    let mut receive = async |count: usize| {
        let mut all = Vec::new();
        while all.len() < count {
            let piece = guarded("a piece", down.data()).await.expect("more").expect("whole");
            let _ = down.flow_control().release_capacity(piece.len());
            all.extend(piece);
        }
        all
    };
    assert_eq!(receive(5).await, b"early");
    for round in 0..3u8 {
        up.send_data(vec![round; 1000].into(), false).expect("sent");
        let mut seen = [9; 1000];
        guarded("up", stream.read_exact(&mut seen)).await.expect("bytes");
        assert_eq!(seen, [round; 1000]);
        // More than fits into a window.
        let large = vec![round + 100; 200_000];
        let (sent, got) = tokio::join!(stream.write_all(&large), receive(200_000));
        sent.expect("sent");
        assert!(got.len() == 200_000 && got.iter().all(|byte| *byte == round + 100));
    }
    // The client's end is the upstream's, and the other way round.
    up.send_data(Bytes::new(), true).expect("sent");
    assert_eq!(guarded("the end", stream.read(&mut [0; 1])).await.expect("an end"), 0);
    stream.write_all(b"bye").await.expect("sent");
    drop(stream);
    assert_eq!(receive(3).await, b"bye");
    while let Some(piece) = guarded("the end", down.data()).await {
        assert_eq!(piece.expect("an end in order"), "");
    }

    // An upstream that does not switch must not look like an open WebSocket.
    let mut plain = Raw::start("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno").await;
    let weir = start(&plain).await;
    let (answer, _up) = http2(&weir).await.send_request(open("/live/chat", "sesame-of-alice"), false).expect("sent");
    assert_eq!(guarded("a refusal", answer).await.expect("an answer").status(), 502);
    plain.next().await;
    // Nor is any other CONNECT served.
    let other = Request::builder().method(Method::CONNECT).uri("shop.test:443").body(()).expect("a request");
    let (answer, _up) = http2(&weir).await.send_request(other, false).expect("sent");
    assert_eq!(guarded("a refusal", answer).await.expect("an answer").status(), 405);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_arrive_as_they_are_sent() {
    let mut upstream = Raw::start("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let weir = start(&upstream).await;
    let mut client = weir.gateway().connect().await;
    client.send("GET /live/events HTTP/1.1\r\nHost: shop.test\r\napikey: sesame-of-alice\r\n\r\n").await;
    let (status, fields) = client.head().await.expect("a head before the first event");
    assert_eq!(status, 200);
    assert!(fields.contains(&("x-passed".into(), "weir".into())) && fields.contains(&("content-type".into(), "text/event-stream".into())), "{fields:?}");
    let (_, mut stream) = upstream.next().await;
    for number in 0..3 {
        let event = format!("data: {number}\n\n");
        stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await.expect("sent");
        assert_eq!(client.chunk().await.expect("a chunk").expect("a piece"), event);
    }
    // A client that leaves takes its stream along.
    drop(client);
    let mut rest = [0; 1];
    let end = guarded("the end of the stream", stream.read(&mut rest)).await;
    assert!(!matches!(end, Ok(count) if count > 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_pass_where_the_client_takes_them() {
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 42\r\nset-cookie: a=b\r\ncontent-length: 7\r\n\r\n";
    let mut upstream = Raw::start(answer).await;
    let weir = start(&upstream).await;
    for (te, trailers) in [("Connection: TE\r\nTE: trailers\r\n", vec!["x-sum: 42".to_owned()]), ("", vec![])] {
        let mut client = weir.gateway().connect().await;
        client.send(format!("GET /live HTTP/1.1\r\nHost: shop.test\r\napikey: sesame-of-alice\r\n{te}\r\n")).await;
        assert_eq!(client.answer("GET").await.expect("an answer").expect(200).body, "hello");
        assert_eq!(client.trailers(), trailers);
        let (head, _stream) = upstream.next().await;
        assert_eq!(head.contains("\r\nte: trailers\r\n") && head.contains("\r\nconnection: te\r\n"), !te.is_empty(), "{head}");
    }
}
