//! Interim answers (RFC 9110 section 15.2): they reach whoever waits for the answer, by whichever protocol, and nobody later.

use bytes::Bytes;
use h2::{RecvStream, client::{ResponseFuture, SendRequest}, server::SendResponse};
use http::{HeaderMap, Request, Response, StatusCode};
use serde_json::json;
use std::future::poll_fn;
use tokio::net::TcpStream;
use weir_tests::{
    Config, Connection, Door, Weir,
    cache_help::{Gate, Origin, Point, Told, until_hit},
    eventually, guarded,
    http2::serve,
};

const LINK: &str = "</a.css>; rel=preload; as=style";

fn config(origin: &Origin) -> Config {
    let config = Config(json!({
        "store": "memory",
        "edge": { "origin": origin.url(), "deployment": "interim", "pages": [{ "path": "/**", "ttl": "60s" }] },
        "gateway": { "_format_version": "3.0", "services": [], "plugins": [] },
    }));
    config.service("api", &origin.url(), "/api", json!([{ "name": "response-cache", "config": { "ttl": "60s" } }])).service("plain", &origin.url(), "/plain", json!([]))
}

/// The next head: its status and its `Link`.
async fn head(client: &mut Connection) -> (u16, Option<String>) {
    let (status, fields) = guarded("a head", client.head()).await.expect("a head");
    let hidden = ["set-cookie", "x-hop", "connection", "content-length"];
    assert!(status >= 200 || fields.iter().all(|(name, _)| !hidden.contains(&name.as_str())), "{status}: {fields:?}");
    (status, fields.into_iter().find(|(name, _)| name == "link").map(|(_, value)| value))
}

async fn http2(door: Door) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(door.0).await.expect("a connection");
    let (send, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    send.ready().await.expect("ready")
}

/// The next interim answer on a stream of HTTP/2.
async fn interim(answer: &mut ResponseFuture) -> (StatusCode, HeaderMap) {
    let said = guarded("an interim answer", poll_fn(|cx| answer.poll_informational(cx))).await;
    let parts = said.expect("an interim answer").expect("an open stream").into_parts().0;
    (parts.status, parts.headers)
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9110_15_2_hints_reach_all_who_wait_for_a_page() {
    let gate = Gate::closed();
    let at = gate.clone();
    let hints = [("link", LINK), ("set-cookie", "secret=1"), ("connection", "x-hop"), ("x-hop", "1")];
    let origin = Origin::start(move |_| Told::page("p").after(102, &[]).after(100, &[]).after(103, &hints).waits(Point::BeforeHead, &at)).await;
    let weir = Weir::start(&config(&origin)).await;
    let ask = |version: &str| format!("GET /p HTTP/{version}\r\nHost: shop.test\r\n\r\n");
    let mut clients = [weir.edge().connect().await, weir.edge().connect().await];
    for client in &mut clients {
        client.send(ask("1.1")).await;
        assert_eq!((head(client).await, head(client).await), ((102, None), (103, Some(LINK.to_owned()))), "while the page is being made");
    }
    let mut second = http2(weir.edge()).await;
    let (mut answer, _) = second.send_request(Request::get("http://shop.test/p").body(()).expect("a request"), true).expect("sent");
    assert_eq!(interim(&mut answer).await.0, StatusCode::PROCESSING);
    let (status, fields) = interim(&mut answer).await;
    assert_eq!((status, fields["link"].as_bytes(), fields.len()), (StatusCode::EARLY_HINTS, LINK.as_bytes(), 1));
    // RFC 9110 section 15.2: nothing of that for a client of HTTP/1.0.
    let mut old = weir.edge().connect().await;
    old.send(ask("1.0")).await;
    eventually("all wait", async || (weir.metric("weir_connections", &[]).await >= 4.0).then_some(())).await;
    gate.open();
    for client in clients.iter_mut().chain([&mut old]) {
        assert_eq!(head(client).await, (200, None));
    }
    assert_eq!(guarded("the answer", answer).await.expect("an answer").status(), 200);
    assert_eq!(origin.hits("/p"), 1);
    until_hit(weir.edge(), "/p").await;
    let mut late = weir.edge().connect().await;
    late.send(ask("1.1")).await;
    assert_eq!(head(&mut late).await, (200, None), "they are not stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9110_15_2_with_and_without_a_cache_the_same() {
    let origin = Origin::start(|_| Told::new(200, "{}").with("cache-control", "max-age=60").after(100, &[]).after(103, &[("link", LINK)]).after(104, &[])).await;
    let weir = Weir::start(&config(&origin)).await;
    for (door, request) in [
        (weir.gateway(), "GET /api/x"),
        (weir.gateway(), "POST /api/x"),
        (weir.gateway(), "GET /plain/x"),
        (weir.edge(), "POST /forms"),
    ] {
        let mut client = door.connect().await;
        client.send(format!("{request} HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 0\r\n\r\n")).await;
        assert_eq!(head(&mut client).await, (103, Some(LINK.to_owned())), "{request}");
        assert_eq!((head(&mut client).await, head(&mut client).await), ((104, None), (200, None)), "{request}");
    }
}

/// Gives a hint before the answer.
async fn hinting(_: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let hint = Response::builder().status(103).header("link", LINK).body(()).expect("an answer");
    respond.send_informational(hint).expect("an open stream");
    let answer = Response::builder().header("content-type", "application/grpc").header("grpc-status", "0").body(()).expect("an answer");
    respond.send_response(answer, true).expect("an open stream");
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9110_15_2_hints_of_an_upstream_of_http2_pass_too() {
    let upstream = serve(hinting).await;
    let route = json!({ "name": "grpc", "protocols": ["grpc"], "paths": ["/shop.Hints"], "strip_path": false });
    let service = json!({ "name": "grpc", "protocol": "grpc", "host": "127.0.0.1", "port": upstream.port(), "routes": [route] });
    let weir = Weir::start(&Config(json!({ "gateway": { "_format_version": "3.0", "services": [service], "plugins": [] } }))).await;
    let mut client = http2(weir.gateway()).await;
    let call = Request::post("http://shop.test/shop.Hints/Call").header("content-type", "application/grpc").header("te", "trailers");
    let (mut answer, mut body) = client.send_request(call.body(()).expect("a request"), false).expect("sent");
    body.send_data(Bytes::new(), true).expect("sent");
    let (status, fields) = interim(&mut answer).await;
    assert_eq!((status, fields["link"].as_bytes()), (StatusCode::EARLY_HINTS, LINK.as_bytes()));
    assert_eq!(guarded("the answer", answer).await.expect("an answer").status(), 200);
}
