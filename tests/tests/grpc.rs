//! gRPC through the gateway: streams and trailers in both directions, plugins, and errors in gRPC's own words.

use bytes::Bytes;
use h2::{RecvStream, client::SendRequest, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
use serde_json::json;
use std::net::SocketAddr;
use tokio::net::TcpStream;
use weir_tests::{Config, Weir, guarded, http2::serve};

/// A message with gRPC's five bytes in front.
fn message(text: &str) -> Bytes {
    let mut bytes = vec![0];
    bytes.extend((text.len() as u32).to_be_bytes());
    bytes.extend(text.as_bytes());
    bytes.into()
}

/// Sends every message back as it arrives, and tells at the end what the client's trailers and fields were.
async fn echo(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let (parts, mut body) = request.into_parts();
    let field = |name: &str| parts.headers.get(name).cloned().unwrap_or(HeaderValue::from_static("-"));
    let answer = Response::builder().header("content-type", "application/grpc").header("x-te", field("te"));
    let answer = answer.header("x-path", parts.uri.path()).header("x-user", field("x-consumer-username"));
    if parts.uri.path().ends_with("/Fail") {
        // A head alone.
        let status = if parts.uri.path().starts_with("/failing") { "14" } else { "9" };
        let refused = answer.header("grpc-status", status).header("grpc-message", "no").body(()).expect("an answer");
        let _ = respond.send_response(refused, true);
        return;
    }
    if parts.uri.path().ends_with("/Hang") {
        return std::future::pending().await;
    }
    let mut send = respond.send_response(answer.body(()).expect("an answer"), false).expect("a stream");
    while let Some(Ok(piece)) = body.data().await {
        let _ = body.flow_control().release_capacity(piece.len());
        send.send_data(piece, false).expect("a stream");
    }
    let told = body.trailers().await.ok().flatten().and_then(|t| t.get("x-from-client").cloned());
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers.insert("x-told", told.unwrap_or(HeaderValue::from_static("-")));
    let _ = send.send_trailers(trailers);
}

async fn connect(weir: &Weir) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(weir.gateway().0).await.expect("a connection");
    let (send, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    send.ready().await.expect("ready")
}

fn ask(path: &str, key: Option<&str>) -> Request<()> {
    let request = Request::post(format!("http://shop.test{path}")).header("content-type", "application/grpc").header("te", "trailers");
    match key {
        Some(key) => request.header("apikey", key),
        None => request,
    }
    .body(())
    .expect("a request")
}

async fn start(address: SocketAddr) -> Weir {
    let service = |name: &str, port: u16| {
        let route = json!({ "name": name, "protocols": ["grpc", "grpcs"], "paths": [format!("/{name}.Echo")], "strip_path": false });
        json!({ "name": name, "protocol": "grpc", "host": "127.0.0.1", "port": port, "retries": 0, "routes": [route] })
    };
    let away = weir_store::testing::free_port();
    let mut late = service("late", address.port());
    late["deadline"] = json!({ "first_byte": "300ms" });
    Weir::start(&Config(json!({
        "server": { "threads": 1 },
        "gateway": {
            "_format_version": "3.0",
            "services": [service("open", address.port()), service("closed", address.port()), service("away", away), late, service("limited", address.port()), service("group", address.port()), service("broken", away), service("failing", address.port())],
            "plugins": [
                { "name": "key-auth", "service": "closed" },
                { "name": "key-auth", "service": "group" },
                { "name": "acl", "service": "group", "config": { "allow": ["staff"] } },
                { "name": "rate-limiting", "service": "limited", "config": { "year": 1 } },
                { "name": "circuit-breaker", "service": "broken", "config": { "minimum_calls": 1, "open_for": "1h" } },
                { "name": "circuit-breaker", "service": "failing", "config": { "minimum_calls": 1, "open_for": "1h" } },
                { "name": "response-transformer", "config": { "add": { "headers": ["x-passed:weir"] } } },
            ],
            "consumers": [{ "username": "alice", "keyauth_credentials": [{ "key": "sesame-of-alice" }] }],
        },
    })))
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn both_directions_stream_and_trailers_arrive() {
    let weir = start(serve(echo).await).await;
    let mut client = connect(&weir).await;
    let (answer, mut up) = client.send_request(ask("/open.Echo/Chat", None), false).expect("sent");
    // Each message comes back before the next one is sent: nothing waits for the end of the request.
    up.send_data(message("first"), false).expect("sent");
    let (parts, mut down) = guarded("a head", answer).await.expect("an answer").into_parts();
    assert_eq!(parts.status, 200);
    assert_eq!(parts.headers["x-te"], "trailers");
    assert_eq!(parts.headers["x-path"], "/open.Echo/Chat");
    assert_eq!(parts.headers["x-passed"], "weir");
    assert_eq!(guarded("first", down.data()).await.expect("a piece").expect("whole"), message("first"));
    for text in ["second", "third"] {
        up.send_data(message(text), false).expect("sent");
        assert_eq!(guarded(text, down.data()).await.expect("a piece").expect("whole"), message(text));
    }
    let trailers = HeaderMap::from_iter([("x-from-client".parse().unwrap(), HeaderValue::from_static("bye"))]);
    up.send_trailers(trailers).expect("sent");
    assert!(guarded("the end", down.data()).await.is_none());
    let trailers = guarded("trailers", down.trailers()).await.expect("whole").expect("trailers");
    assert_eq!(trailers["grpc-status"], "0");
    assert_eq!(trailers["x-told"], "bye");
}

/// Status and message of an answer that is a head alone.
async fn refusal(weir: &Weir, request: Request<()>) -> (String, String) {
    let (answer, mut up) = connect(weir).await.send_request(request, false).expect("sent");
    let _ = up.send_data(message("hello"), true);
    let answer = guarded("an answer", answer).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    assert!(answer.body().is_end_stream(), "a head alone");
    let field = |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or("-").to_owned();
    assert_eq!(field("content-type"), "application/grpc");
    (field("grpc-status"), field("grpc-message"))
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_speak_grpc() {
    let weir = start(serve(echo).await).await;
    // Of a plugin, of the router, of an upstream that is away, and of the service itself.
    assert_eq!(refusal(&weir, ask("/closed.Echo/Chat", None)).await, ("16".into(), "No API key found in request".into()));
    assert_eq!(refusal(&weir, ask("/none.Echo/Chat", None)).await, ("12".into(), "no Route matched with those values".into()));
    assert_eq!(refusal(&weir, ask("/away.Echo/Chat", None)).await.0, "14");
    assert_eq!(refusal(&weir, ask("/open.Echo/Fail", None)).await, ("9".into(), "no".into()));
    // Of an access list, a deadline, a limit, and an open circuit.
    assert_eq!(refusal(&weir, ask("/group.Echo/Chat", Some("sesame-of-alice"))).await.0, "7");
    assert_eq!(refusal(&weir, ask("/late.Echo/Hang", None)).await, ("4".into(), "The upstream server is timing out".into()));
    assert_eq!(refusal(&weir, ask("/limited.Echo/Fail", None)).await.0, "9");
    assert_eq!(refusal(&weir, ask("/limited.Echo/Fail", None)).await, ("8".into(), "API rate limit exceeded".into()));
    assert_eq!(refusal(&weir, ask("/broken.Echo/Chat", None)).await.0, "14");
    assert_eq!(refusal(&weir, ask("/broken.Echo/Chat", None)).await, ("14".into(), "The service is failing, try again later".into()));
    // What a service says of itself in gRPC's words counts for its circuit.
    assert_eq!(refusal(&weir, ask("/failing.Echo/Fail", None)).await, ("14".into(), "no".into()));
    assert_eq!(refusal(&weir, ask("/failing.Echo/Chat", None)).await, ("14".into(), "The service is failing, try again later".into()));
    let (answer, mut up) = connect(&weir).await.send_request(ask("/closed.Echo/Chat", Some("sesame-of-alice")), false).expect("sent");
    up.send_data(message("hello"), true).expect("sent");
    let answer = guarded("an answer", answer).await.expect("an answer");
    assert_eq!(answer.headers()["x-user"], "alice");
}
