//! What comes with Kong's file, from end to end: what services and clients see of the gateway, warnings, and requests that are checked.

use serde_json::{Value, json};
use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use weir_tests::{Answer, Config, Outcome, Shop, Weir, eventually};

/// A gateway with one service that echoes, and routes to it.
async fn gateway(shop: &Shop, headers: &str, routes: Value) -> Weir {
    let service = json!({ "name": "s", "url": shop.stubs.products.url(), "routes": routes });
    Weir::start(&Config(json!({ "gateway": { "headers": headers, "_format_version": "3.0", "services": [service] } }))).await
}

/// What the service saw of the last request.
fn seen(shop: &Shop, name: &str) -> Option<String> {
    shop.stubs.products.handle().requests().pop().and_then(|request| request.header(name).map(str::to_owned))
}

fn millis(answer: &Answer, name: &str) -> u64 {
    answer.must(name).parse().unwrap_or_else(|_| panic!("{name} is no number: {answer:#?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn services_are_told_who_asks_and_how_whatever_the_client_says() {
    let shop = Shop::start().await;
    let weir = gateway(&shop, "weir", json!([{ "name": "r", "paths": ["/shop"] }, { "name": "kept", "paths": ["/kept"], "strip_path": false, "preserve_host": true }, { "name": "all", "paths": ["/"] }])).await;
    let port = weir.gateway().0.port().to_string();
    let lies = [
        ("x-forwarded-for", "6.6.6.6"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "evil.test"),
        ("x-forwarded-port", "443"),
        ("x-forwarded-prefix", "/evil"),
        ("x-forwarded-path", "/evil"),
        ("x-real-ip", "6.6.6.6"),
        ("x-consumer-username", "admin"),
        ("x-kong-request-id", "mine"),
        ("via", "1.0 client"),
    ];
    weir.gateway().get("/shop/api/products?a=1").headers(lies).send().await;
    for (name, value) in [
        ("x-forwarded-for", Some("127.0.0.1")),
        ("x-forwarded-proto", Some("http")),
        ("x-forwarded-host", Some("shop.test")),
        ("x-forwarded-prefix", Some("/shop")),
        ("x-forwarded-path", Some("/shop/api/products")),
        ("x-real-ip", Some("127.0.0.1")),
        ("x-consumer-username", None),
        ("via", Some("1.0 client, 1.1 weir")),
    ] {
        assert_eq!(seen(&shop, name).as_deref(), value, "{name}");
    }
    assert_eq!(seen(&shop, "x-forwarded-port").as_deref(), Some(&*port));
    assert_eq!(seen(&shop, "x-request-id").map(|id| id.len()), Some(32));
    weir.gateway().get("/kept/x").send().await;
    assert_eq!((seen(&shop, "x-forwarded-prefix"), seen(&shop, "host").as_deref()), (None, Some("shop.test")));
    weir.gateway().get("/api/products").send_h2().await.expect(200);
    // A prefix that is nothing is not told, and `Via` says what the client spoke.
    assert_eq!((seen(&shop, "x-forwarded-prefix"), seen(&shop, "via").as_deref()), (None, Some("2 weir")));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_tell_times_by_weirs_names_or_by_kongs() {
    let shop = Shop::start().await;
    let routes = json!([
        { "name": "r", "paths": ["/shop"] },
        { "name": "ends", "paths": ["/ends"], "plugins": [{ "name": "request-termination", "config": { "status_code": 403 } }] },
    ]);
    let weir = gateway(&shop, "kong", routes.clone()).await;
    let answer = weir.gateway().get("/shop/api/products").send().await;
    let _ = (millis(&answer, "x-kong-upstream-latency"), millis(&answer, "x-kong-proxy-latency"));
    assert!(!answer.has("x-kong-response-latency") && !answer.has("x-weir-upstream-latency"), "{answer:#?}");
    assert_eq!(answer.must("via"), "1.1 weir");
    assert_eq!(seen(&shop, "x-kong-request-id").as_deref(), Some(answer.must("x-kong-request-id")));
    for (target, status) in [("/ends", 403), ("/nowhere", 404)] {
        let answer = weir.gateway().get(target).send().await.expect(status);
        let _ = millis(&answer, "x-kong-response-latency");
        assert!(!answer.has("x-kong-upstream-latency") && answer.has("x-kong-request-id"), "{answer:#?}");
    }
    let weir = gateway(&shop, "weir", routes.clone()).await;
    let answer = weir.gateway().get("/shop/api/products").send().await;
    let _ = (millis(&answer, "x-weir-upstream-latency"), millis(&answer, "x-weir-proxy-latency"));
    assert!(answer.has("x-request-id") && !answer.has("x-kong-upstream-latency") && !answer.has("x-kong-request-id"), "{answer:#?}");
    assert_eq!(seen(&shop, "x-kong-request-id"), None);
    let weir = gateway(&shop, "off", routes).await;
    let answer = weir.gateway().get("/shop/api/products").send().await;
    assert!(!["x-weir-upstream-latency", "x-weir-proxy-latency", "x-weir-response-latency", "via"].iter().any(|name| answer.has(name)), "{answer:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn short_bodies_are_there_whole_before_the_service_is_asked_unless_the_route_says_no() {
    let shop = Shop::start().await;
    let weir = gateway(&shop, "weir", json!([{ "name": "waits", "paths": ["/waits"] }, { "name": "streams", "paths": ["/streams"], "request_buffering": false }])).await;
    let in_flight = || shop.stubs.products.handle().stats().in_flight;
    let mut slow = weir.gateway().connect().await;
    slow.send("POST /streams/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab").await;
    eventually("the request is under way without its body", async || (in_flight() == 1).then_some(())).await;
    slow.send("cd").await;
    slow.answer("POST").await.expect("an answer");

    let mut slow = weir.gateway().connect().await;
    slow.send("POST /waits/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab").await;
    // Another request overtakes it, from the same client and to the same service.
    weir.gateway().post("/waits/echo", "text/plain", "whole").send().await;
    eventually("nothing is under way", async || (in_flight() == 0).then_some(())).await;
    let targets: Vec<String> = shop.stubs.products.handle().requests().into_iter().map(|r| r.target).collect();
    assert_eq!(targets, ["/echo", "/echo"]);
    slow.send("cd").await;
    slow.answer("POST").await.expect("an answer");
    assert_eq!(shop.stubs.products.handle().requests().pop().map(|r| r.target), Some("/echo".to_owned()));

    // Long bodies, and those of unknown length, are passed on as they come.
    for head in ["Content-Length: 70000", "Transfer-Encoding: chunked"] {
        let mut slow = weir.gateway().connect().await;
        slow.send(format!("POST /waits/echo HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n1\r\na\r\n")).await;
        eventually("the request is under way without its body", async || (in_flight() == 1).then_some(())).await;
        drop(slow);
        eventually("nothing is under way", async || (in_flight() == 0).then_some(())).await;
    }
}

/// How much the answers are that a client takes slowly: more than sockets hold.
const LONG: usize = 48 << 20;

/// A service of long answers; under each path whether it has given one away as a whole.
async fn giver() -> (String, Arc<Mutex<HashSet<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let given: Arc<Mutex<HashSet<String>>> = Arc::default();
    let done = given.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let done = done.clone();
            tokio::spawn(async move {
                let mut head = [0; 4096];
                let count = stream.read(&mut head).await.unwrap_or(0);
                let path = String::from_utf8_lossy(&head[..count]).split(' ').nth(1).unwrap_or_default().to_owned();
                let piece = vec![b'x'; 64 << 10];
                let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {LONG}\r\n\r\n").as_bytes()).await;
                for _ in 0..LONG / piece.len() {
                    if stream.write_all(&piece).await.is_err() {
                        return;
                    }
                }
                done.lock().expect("no panic").insert(path);
            });
        }
    });
    (url, given)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_done_with_its_answer_before_a_slow_client_has_it_unless_the_route_says_no() {
    let (url, given) = giver().await;
    let routes = json!([{ "name": "buffered", "paths": ["/buffered"], "strip_path": false }, { "name": "not", "paths": ["/not"], "strip_path": false, "response_buffering": false }]);
    let config = |all: &str| Config(json!({
        "server": { "threads": 1, "response_buffer": "64MB", "response_buffers": all },
        "gateway": { "_format_version": "3.0", "services": [{ "name": "s", "url": url, "routes": routes }] },
    }));
    let (weir, small) = (Weir::start(&config("64MB")).await, Weir::start(&config("1MB")).await);
    let is_given = |path: &str| given.lock().expect("no panic").contains(path);
    let ask = async |weir: &Weir, path: &str| {
        let mut client = weir.gateway().connect().await;
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        client
    };
    let mut slow = [(ask(&weir, "/not/1").await, "/not/1"), (ask(&small, "/buffered/small").await, "/buffered/small"), (ask(&weir, "/buffered/1").await, "/buffered/1")];
    eventually("the service is done", async || is_given("/buffered/1").then_some(())).await;
    slow.iter().take(2).for_each(|(_, path)| assert!(!is_given(path), "{path}"));
    for (client, path) in &mut slow {
        let answer = client.answer("GET").await.expect("an answer");
        assert!(answer.status == 200 && answer.body.len() == LONG && answer.body.iter().all(|byte| *byte == b'x'), "{path}");
        eventually("the service is done", async || is_given(path).then_some(())).await;
    }
    // What waited counts no more.
    let mut again = ask(&weir, "/buffered/2").await;
    eventually("the service is done", async || is_given("/buffered/2").then_some(())).await;
    again.answer("GET").await.expect("an answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_does_not_fit_its_document_never_reaches_the_service() {
    let shop = Shop::start().await;
    let weir = gateway(&shop, "weir", json!([])).await;
    let document = "openapi: 3.1.0\npaths:\n  /api/products/{id}:\n    get: {parameters: [{name: id, in: path, required: true, schema: {type: integer}}]}\n  /api/products:\n    post: {requestBody: {required: true, content: {application/json: {schema: {type: object, required: [name]}}}}}\n";
    std::fs::write(weir.folder().join("shop.yaml"), document).expect("written");
    let plugins = json!([{ "name": "request-validation", "config": { "openapi": "shop.yaml", "max_body": "1KB" } }]);
    let service = json!({ "name": "s", "url": shop.stubs.products.url(), "routes": [{ "name": "r", "paths": ["/api"], "strip_path": false, "plugins": plugins }] });
    weir.write(&Config(json!({ "gateway": { "_format_version": "3.0", "services": [service] } })));
    weir.hang_up();
    let door = weir.gateway();
    eventually("the document", async || (door.get("/api/other").send().await.text().contains("not described")).then_some(())).await;
    let stub = shop.stubs.products.handle();
    stub.reset();
    let answer = door.get("/api/products/x").send().await.expect(400);
    assert_eq!(answer.json()["errors"][0], json!({ "in": "path", "name": "id", "message": "the value is not of type \"integer\"" }));
    let answer = door.post_json("/api/products", &json!({})).send().await.expect(400);
    assert_eq!(answer.json()["errors"][0], json!({ "in": "body", "path": "", "message": "\"name\" is a required property" }));
    door.post_json("/api/products", &json!({ "name": "x".repeat(2000) })).send().await.expect(413);
    door.post("/api/products", "text/plain", "x").send().await.expect(415);
    assert_eq!(door.ask("DELETE", "/api/products/7").send().await.expect(405).must("allow"), "GET, HEAD");
    assert_eq!(stub.hits(), 0);
    door.get("/api/products/7").header("x-stub-status", "200").send().await;
    door.post_json("/api/products", &json!({ "name": "a" })).header("x-stub-status", "200").send().await;
    assert_eq!(stub.hits(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_document_counts_like_a_changed_configuration() {
    let shop = Shop::start().await;
    let weir = gateway(&shop, "weir", json!([])).await;
    let document = |path: &str| std::fs::write(weir.folder().join("shop.yaml"), format!("openapi: 3.1.0\npaths:\n  {path}:\n    get: {{}}\n")).expect("written");
    document("/one");
    let plugins = json!([{ "name": "request-validation", "config": { "openapi": "shop.yaml" } }]);
    let service = json!({ "name": "s", "url": shop.stubs.products.url(), "routes": [{ "name": "r", "paths": ["/"], "plugins": plugins }] });
    weir.write(&Config(json!({ "gateway": { "_format_version": "3.0", "services": [service] } })));
    let described = async |path: &str| !weir.gateway().get(path).send().await.text().contains("not described");
    eventually("the configuration", async || (described("/one").await && !described("/two").await).then_some(())).await;
    document("/two");
    eventually("the new document", async || (described("/two").await && !described("/one").await).then_some(())).await;
}

/// The head of an answer to these bytes.
async fn asked(weir: &Weir, request: &str) -> Answer {
    let mut connection = weir.gateway().connect().await;
    connection.send(request).await;
    connection.answer("GET").await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_take_their_protocols_alone() {
    let shop = Shop::start().await;
    let weir = gateway(
        &shop,
        "kong",
        json!([
            { "name": "chat", "paths": ["/chat"], "protocols": ["ws", "wss"] },
            { "name": "both", "paths": ["/both"] },
            { "name": "sockets", "paths": ["/both"], "protocols": ["ws"], "plugins": [{ "name": "request-termination", "config": { "status_code": 418 } }] },
            { "name": "secure", "paths": ["/secure"], "protocols": ["https"], "plugins": [{ "name": "cors" }] },
            { "name": "moved", "paths": ["/moved"], "protocols": ["https"], "https_redirect_status_code": 308 },
            { "name": "grpc", "paths": ["/grpc"], "protocols": ["grpc"] },
            { "name": "grpcs", "paths": ["/tls-grpc"], "protocols": ["grpcs"] },
        ]),
    )
    .await;
    let door = weir.gateway();
    shop.stubs.products.handle().reset();

    // A plain request to a route for WebSocket.
    let answer = door.get("/chat").send().await.expect(426);
    assert_eq!((answer.must("upgrade"), answer.must("connection")), ("websocket", "upgrade"));
    assert_eq!(answer.json()["message"], "Please use WebSocket protocol");
    assert_eq!(answer.json()["request_id"], answer.must("x-kong-request-id"));
    // Another protocol than WebSocket, a method that no handshake has, no route at all.
    asked(&weir, "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n").await.expect(426);
    door.ask("POST", "/chat").send().await.expect(426);
    door.get("/nowhere").send().await.expect(404);
    assert_eq!(shop.stubs.products.handle().hits(), 0);
    // Of two routes with one path the handshake takes the one for WebSocket, all else the other.
    let handshake = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    asked(&weir, &format!("GET /both HTTP/1.1\r\nHost: a\r\n{handshake}")).await.expect(418);
    door.get("/both/api/products").send().await.expect(200);

    // TLS is wanted.
    let answer = door.get("/secure").send().await.expect(426);
    assert_eq!((answer.must("upgrade"), answer.must("connection"), answer.must("access-control-allow-origin")), ("TLS/1.2, HTTP/1.1", "upgrade", "*"));
    assert_eq!(answer.json()["message"], "Please use HTTPS protocol");
    let answer = door.get("/moved/x?a=b").host("shop.test:8000").send().await.expect(308);
    assert_eq!(answer.must("location"), "https://shop.test/moved/x?a=b");

    // gRPC is wanted, and HTTP/2 for it.
    let answer = door.get("/grpc/x").send().await.expect(415);
    assert_eq!(answer.json()["message"], "Non-gRPC request matched gRPC route");
    let answer = door.post("/tls-grpc/x", "application/grpc", "").send_h2().await.expect(200);
    assert_eq!((answer.must("grpc-status"), answer.must("grpc-message")), ("1", "gRPC request matched gRPCs route"));
    let answer = door.post("/grpc/x", "application/grpc", "").send().await.expect(200);
    assert_eq!((answer.must("grpc-status"), answer.must("grpc-message")), ("12", "Please use HTTP2 protocol"));
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_come_in_the_form_that_the_client_prefers() {
    let shop = Shop::start().await;
    let away = json!({ "name": "away", "url": "http://127.0.0.1:1", "retries": 0, "routes": [{ "name": "away", "paths": ["/away"] }] });
    let slow = json!({ "name": "slow", "url": shop.stubs.products.url(), "retries": 0, "read_timeout": 200, "routes": [{ "name": "slow", "paths": ["/slow"] }] });
    let none = json!({ "name": "none", "host": "nobody", "routes": [{ "name": "none", "paths": ["/none"] }] });
    let secure = json!({ "name": "secure", "url": shop.stubs.products.url(), "routes": [{ "name": "secure", "paths": ["/secure"], "protocols": ["https"] }] });
    let gateway = json!({ "headers": "kong", "_format_version": "3.0", "upstreams": [{ "name": "nobody" }], "services": [away, slow, none, secure] });
    let weir = Weir::start(&Config(json!({ "gateway": gateway }))).await;
    for (target, status, message) in [
        ("/nowhere", 404, "no Route matched with those values"),
        ("/secure", 426, "Please use HTTPS protocol"),
        ("/away", 502, "An invalid response was received from the upstream server"),
        ("/none", 503, "failure to get a peer from the ring-balancer"),
        ("/slow/echo", 504, "The upstream server is timing out"),
    ] {
        for (accept, kind, body) in [
            ("*/*", "application/json; charset=utf-8", "{\"message\":\"MESSAGE\",\"request_id\":\"ID\"}"),
            ("application/json", "application/json; charset=utf-8", "\"message\":\"MESSAGE\""),
            ("image/png", "application/json; charset=utf-8", "\"request_id\":\"ID\""),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html; charset=utf-8", "<p>MESSAGE</p>\n<p>request_id: ID</p>"),
            ("application/xml", "application/xml; charset=utf-8", "<message>MESSAGE</message>\n  <requestid>ID</requestid>"),
            ("text/plain", "text/plain; charset=utf-8", "MESSAGE\nrequest_id: ID\n"),
            ("application/json;q=0.1, text/*", "text/plain; charset=utf-8", "MESSAGE"),
        ] {
            let answer = weir.gateway().get(target).header("accept", accept).header("x-stub-latency", "5000").send().await.expect(status);
            let wanted = body.replace("MESSAGE", message).replace("ID", answer.must("x-kong-request-id"));
            assert!(answer.text().contains(&wanted), "{target} {accept}: {answer:#?}");
            assert_eq!((answer.must("content-type"), answer.has("x-kong-response-latency")), (kind, true), "{target} {accept}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_without_a_service_is_counted_too() {
    let counted = json!([{ "name": "prometheus", "config": { "status_code_metrics": true } }]);
    let route = json!({ "name": "alone", "paths": ["/alone"], "plugins": [{ "name": "request-termination", "config": { "status_code": 418 } }] });
    let weir = Weir::start(&Config(json!({ "gateway": { "_format_version": "3.0", "routes": [route], "plugins": counted } }))).await;
    weir.gateway().get("/alone").send().await.expect(418);
    weir.gateway().get("/nowhere").send().await.expect(404);
    let series = "kong_http_requests_total{code=\"418\",consumer=\"\",route=\"alone\",service=\"\",source=\"kong\",workspace=\"default\"} 1";
    eventually("the request is counted", async || weir.admin().get("/metrics").send().await.text().contains(series).then_some(())).await;
    assert_eq!(weir.admin().get("/metrics").send().await.text().matches("kong_http_requests_total{").count(), 1);
}

/// What `weir check` says of a Kong file.
fn check(text: &str) -> Outcome {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("kong.yml");
    std::fs::write(&path, text).expect("written");
    Outcome::of(&["check", &path.to_string_lossy()])
}

#[test]
fn what_is_probably_not_meant_is_warned_of() {
    let outcome = check(
        "_format_version: '3.0'\nservices:\n- name: a\n  url: http://a\n  routes:\n  - {name: one, paths: ['/v[0-9]/x', /b]}\n  - {name: two, paths: [/b]}\n- {name: a, url: 'http://b'}\nconsumers:\n- {username: u, keyauth_credentials: [{key: $KEY}]}\nplugins:\n- {name: rate-limiting, config: {second: 5, minute: 300}}\n- {name: request-size-limiting, config: {allowed_payload_size: 101}}\n- {name: request-termination, config: {message: hunter2}, enabled: false}\n- {name: jwt, consumer: u, enabled: false}\n",
    );
    assert_eq!(outcome.code, Some(0), "{}", outcome.out);
    for message in [
        "this looks like a regex but is matched as a plain prefix",
        "the route `two` is never reached by this: `one` matches the same",
        "the service `a` is defined a second time",
        "a secret is written in the file",
        "`$KEY` is taken as it stands",
        "the limit of the minute is never reached: that of the second lets at most 300 pass in it",
        "this limit is never reached: the server takes no body over 104857600 bytes",
    ] {
        assert!(outcome.out.contains(&format!("warning: {message}")), "{message}\n{}", outcome.out);
    }
}

#[test]
fn what_only_compiling_shows_is_said_beside_other_mistakes() {
    let outcome = check(
        "_format_version: '3.0'\nservices:\n- name: a\n  url: http://a\n  retries: many\n  routes:\n  - {name: r, paths: ['~/x\\1']}\n- {name: odd, protocol: https, host: 'a b'}\ncertificates: [{id: c, cert: nothing, key: nothing}]\nplugins:\n- {name: circuit-breaker, route: r, config: {fallback: {service: nobody}}}\n- {name: circuit-breaker, service: odd, config: {fallback: {service: a, statis: 200}}}\n",
    );
    for message in ["a whole number is wanted here", "` ` cannot be in a host name", "is not a valid regular expression", "there is no service `nobody`", "unknown key `statis`"] {
        assert!(outcome.out.contains(message), "{message}\n{}", outcome.out);
    }
    // Those, and two of the certificate.
    let errors = outcome.out.lines().filter(|line| line.contains(": error: ")).count();
    assert!(errors == 7 && outcome.code == Some(1), "{}", outcome.out);
}

#[test]
fn a_variable_that_is_not_set_is_said_once() {
    let outcome = check(
        "_format_version: '3.0'\nservices:\n- name: a\n  url: http://a\n  routes: [{name: r, paths: [/]}]\n  plugins:\n  - name: request-transformer\n    config: {add: {headers: ['x-secret:${NOT_SET_ANYWHERE}', ':x']}}\n",
    );
    let errors: Vec<&str> = outcome.out.lines().filter(|line| line.contains(": error: ")).collect();
    assert!(errors.len() == 2 && errors[0].contains("`NOT_SET_ANYWHERE` is not set") && errors[1].contains("the name is missing"), "{}", outcome.out);
}

#[test]
fn kongs_usual_files_are_read_without_an_error() {
    // As the tools of a backend in a box write it, with expressions in headers.
    let outcome = check(
        "_format_version: '2.1'\n_transform: true\nconsumers:\n- username: DASHBOARD\n- username: anon\n  keyauth_credentials: [{key: abc}]\nacls: [{consumer: anon, group: anon}]\nbasicauth_credentials: [{consumer: DASHBOARD, username: u, password: p}]\nservices:\n- name: rest-v1\n  _comment: 'PostgREST: /rest/v1/* -> http://rest:3000/*'\n  url: http://rest:3000/\n  routes: [{name: rest-v1-all, strip_path: true, paths: [/rest/v1/]}]\n  plugins:\n  - name: cors\n  - {name: key-auth, config: {hide_credentials: false}}\n  - name: request-transformer\n    config:\n      add: {headers: [\"Authorization: $((headers.authorization ~= nil and headers.authorization:sub(1, 10) ~= 'Bearer sb_' and headers.authorization) or (headers.apikey == 'secret' and 'Bearer token') or headers.apikey)\"]}\n      replace: {querystring: [\"apikey:$((query_params.apikey == 'secret' and 'token') or query_params.apikey)\"]}\n  - {name: acl, config: {hide_groups_header: true, allow: [admin, anon]}}\n- name: realtime\n  url: http://realtime:4000/socket\n  protocol: ws\n  routes: [{name: realtime-all, paths: [/realtime/v1/]}]\n",
    );
    assert!(outcome.out.contains(" 0 errors"), "{}", outcome.out);
}
