//! Requests that are broken, too large, too slow, or that mean harm; services that fail; and that both versions of HTTP get the same.

use serde_json::json;
use std::net::TcpListener;
use upstream_stubs::{Fault, FaultRule};
use weir_tests::{Answer, Ask, Broken, Config, Door, Shop, Weir, guarded};

/// The shop with limits that a test can reach, and a route that shows what arrives: `/echo`.
fn tight(shop: &Shop) -> Config {
    shop.config()
        .set("/server", json!({ "max_head": "8KB", "max_body": "1KB", "head_timeout": "500ms", "threads": 2 }))
        .service("echo", &shop.stubs.products.url(), "/echo", json!([]))
}

async fn open() -> (Shop, Weir) {
    let shop = Shop::start().await;
    let weir = Weir::start(&tight(&shop)).await;
    (shop, weir)
}

/// Sends bytes, expects one answer and then the end of the connection.
async fn refused(door: Door, raw: &[u8]) -> Answer {
    let mut connection = door.connect().await;
    connection.send(raw).await;
    let shown = String::from_utf8_lossy(&raw[..raw.len().min(120)]).into_owned();
    let answer = connection.answer("GET").await.unwrap_or_else(|why| panic!("{shown:?}: {why}"));
    assert!(connection.is_closed().await, "{shown:?}: nothing may be read after what could not be read");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_be_read_in_two_ways_is_not_read() {
    let (shop, weir) = open().await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: shop.test\r\n\r\n";
    for (status, head) in [
        (400, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (400, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
        (400, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello"),
        (400, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello"),
        (400, "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
        (400, "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (501, "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        (400, "POST /echo HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (400, "GET /echo HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n"),
        (400, "GET /echo HTTP/1.1\nHost: a\n\n"),
        (400, "GET /echo HTTP/1.1\r\nHost: a\r\nX: b\rY: c\r\n\r\n"),
        (400, "GET /echo HTTP/1.1\r\nHost: a\r\nNoColon\r\n\r\n"),
        (400, "GET /echo HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n"),
        (400, "GET /echo HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        (400, "GET /echo HTTP/1.1\r\n\r\n"),
        (400, "GET /echo HTTP/1.1\r\nHost: a/b\r\n\r\n"),
        (400, "GET http://evil.test/ HTTP/1.1\r\nHost: shop.test\r\n\r\n"),
        (400, "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET /caf\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n"),
        (505, "GET / HTTP/3.0\r\nHost: a\r\n\r\n"),
        (405, "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"),
        (405, "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "\u{16}\u{3}\u{1}\r\n\r\n"),
    ] {
        for door in [weir.edge(), weir.gateway()] {
            let answer = refused(door, format!("{head}{smuggled}").as_bytes()).await;
            assert_eq!(answer.status, status, "{head:?}");
            assert!(answer.json()["message"].is_string(), "{head:?}");
        }
    }
    let seen = [shop.storefront(), shop.stubs.products.handle()].map(|h| h.hits());
    assert_eq!(seen, [0, 0], "no service saw any of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_with_broken_chunks_is_refused() {
    let (shop, weir) = open().await;
    for body in ["x\r\nhello\r\n0\r\n\r\n", "5\r\nhelloXX0\r\n\r\n", "5 \nhello\r\n0\r\n\r\n", "ffffffffffffffffff\r\n", "-5\r\nhello\r\n0\r\n\r\n"] {
        let raw = format!("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = refused(weir.gateway(), raw.as_bytes()).await;
        assert_eq!(answer.status, 400, "{body:?}");
    }
    assert_eq!(shop.stubs.products.handle().hits_for("/smuggled"), 0);
    let whole = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nTrailer: 1\r\n\r\n";
    let mut connection = weir.gateway().connect().await;
    connection.send(whole).await;
    let answer = connection.answer("POST").await.expect("an answer").expect(200);
    assert_eq!(answer.json()["body_length"], 5, "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_and_bodies_have_limits() {
    let (shop, weir) = open().await;
    let large = "y".repeat(9000);
    for door in [weir.edge(), weir.gateway()] {
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {large}\r\n\r\n");
        assert_eq!(refused(door, head.as_bytes()).await.status, 431);
        let endless = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {large}");
        assert_eq!(refused(door, endless.as_bytes()).await.status, 431, "before it ends");
        let many: String = (0..500).map(|i| format!("X-{i}: 1\r\n")).collect();
        assert_eq!(refused(door, format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n").as_bytes()).await.status, 431);
        assert_eq!(refused(door, format!("GET /{large} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.status, 414);
    }
    let declared = weir.gateway().post("/echo", "text/plain", vec![b'z'; 1025]).send().await.expect(413);
    assert_eq!(declared.json()["message"], "Request body larger than 1024 bytes");
    assert_eq!(weir.edge().post("/", "application/x-www-form-urlencoded", vec![b'z'; 4000]).send().await.status, 413);
    let piece = format!("200\r\n{}\r\n", "z".repeat(0x200));
    let chunked = format!("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{piece}{piece}{piece}0\r\n\r\n");
    let mut connection = weir.gateway().connect().await;
    connection.send(&chunked).await;
    connection.answer("POST").await.expect("an answer").expect(413);
    weir.gateway().post("/echo", "text/plain", vec![b'z'; 1024]).send().await.expect(200);
    assert_eq!(weir.gateway().post("/echo", "text/plain", vec![b'z'; 1025]).send_h2().await.status, 413);
    let h2 = weir.gateway().get("/echo").header("x-large", &large).send_h2().await;
    assert_eq!(h2.status, 431);
    assert_eq!(shop.stubs.products.handle().hits_for("/smuggled"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_route_knows_is_404_with_the_requests_id() {
    let (_shop, weir) = open().await;
    for ask in [weir.gateway().get("/nowhere"), weir.gateway().ask("DELETE", "/"), weir.edge().get("/api/nowhere")] {
        for answer in [ask.clone().send().await, ask.send_h2().await] {
            assert_eq!(answer.status, 404);
            assert!(answer.must("content-type").starts_with("application/json"));
            let id = answer.must("x-request-id");
            assert_eq!(answer.json(), json!({ "message": "no Route matched with those values", "request_id": id }));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_fails_is_answered_for() {
    let shop = Shop::start().await;
    let nobody = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
    let mut config = tight(&shop).service("down", &format!("http://{nobody}"), "/down", json!([]));
    let slow = json!({ "name": "slow", "url": shop.stubs.deals.url(), "read_timeout": 300, "retries": 0, "routes": [{ "name": "slow", "paths": ["/echo/slow"], "strip_path": false }] });
    config = config.push("/gateway/services", slow);
    let weir = Weir::start(&config).await;
    for (kind, accept) in [
        ("application/json", None),
        ("application/json", Some("*/*")),
        ("text/html", Some("text/html,application/xhtml+xml,*/*;q=0.8")),
        ("application/xml", Some("application/xml")),
        ("text/plain", Some("text/plain, application/json;q=0.5")),
    ] {
        let ask = weir.gateway().get("/down");
        let answer = if let Some(accept) = accept { ask.header("accept", accept) } else { ask }.send().await.expect(502);
        assert!(answer.must("content-type").starts_with(kind), "{accept:?}: {answer:#?}");
        assert_eq!(answer.must("x-weir-reason"), "connect");
        let text = answer.text();
        assert!(text.contains("An invalid response was received from the upstream server"), "{text}");
        assert!(text.contains(answer.must("x-request-id")), "{text}");
        assert!(!text.contains(&nobody.to_string()), "what is behind us is nobody's business: {text}");
    }
    shop.stubs.deals.handle().add_fault(FaultRule { path_prefix: "/echo/slow".into(), fault: Some(Fault::Hang), ..FaultRule::default() }).expect("a fault");
    for ask in [weir.gateway().get("/echo/slow"), weir.gateway().post("/echo/slow", "text/plain", "x")] {
        let answer = ask.send().await.expect(504);
        assert_eq!(answer.json()["message"], "The upstream server is timing out");
        assert_eq!(answer.must("x-weir-reason"), "first-byte-timeout");
    }
    for (fault, status) in [(Fault::Close, 502), (Fault::Reset, 502), (Fault::Garbage, 502)] {
        shop.stubs.products.handle().clear_faults();
        shop.stubs.products.handle().add_fault(FaultRule { fault: Some(fault), ..FaultRule::default() }).expect("a fault");
        let posts = shop.stubs.products.handle().hits();
        weir.gateway().post("/echo", "text/plain", "x").send().await.expect(status);
        assert_eq!(shop.stubs.products.handle().hits(), posts + 1, "{fault:?}: a POST that may have done its work is not sent again");
    }
    shop.stubs.products.handle().clear_faults();
    weir.gateway().get("/echo").send().await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_answered_in_order() {
    let (_shop, weir) = open().await;
    let mut raw = Vec::new();
    for number in 0..5 {
        raw.extend(weir.gateway().post(&format!("/echo/{number}"), "text/plain", "x".repeat(number + 1)).bytes());
    }
    raw.extend(weir.gateway().get("/nowhere").bytes());
    raw.extend(weir.gateway().get("/echo/last").bytes());
    let mut connection = weir.gateway().connect().await;
    connection.send(&raw).await;
    for number in 0..5 {
        let answer = connection.answer("POST").await.expect("an answer").expect(200);
        let seen = answer.json();
        assert_eq!((&seen["url"], &seen["body_length"]), (&json!(format!("/echo/{number}")), &json!(number + 1)));
    }
    connection.answer("GET").await.expect("an answer").expect(404);
    let last = connection.answer("GET").await.expect("an answer").expect(200);
    assert!(last.text().contains("/echo/last"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_does_not_come_to_its_end_is_given_up() {
    let (_shop, weir) = open().await;
    for start in ["G", "GET / HTTP/1.1\r\nHost: a\r\nX-Slow: "] {
        let mut connection = weir.edge().connect().await;
        connection.send(start).await;
        let answer = connection.answer("GET").await.expect("an answer");
        assert_eq!(answer.status, 408, "{start:?}");
        assert!(connection.is_closed().await);
    }
    // One byte now and then does not buy more time.
    let mut connection = weir.gateway().connect().await;
    let answer = guarded("a drip-fed head", async {
        for byte in b"GET / HTTP/1.1\r\nX-Drip: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa".chunks(1) {
            connection.send(byte).await;
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        connection.answer("GET").await
    });
    assert_eq!(answer.await.expect("an answer").status, 408);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_says_of_itself_counts_only_from_a_trusted_proxy() {
    let shop = Shop::start().await;
    let says = [
        ("x-forwarded-for", "203.0.113.7, 198.51.100.2"),
        ("x-forwarded-host", "evil.test"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-port", "444"),
        ("x-forwarded-prefix", "/admin"),
        ("forwarded", "for=203.0.113.7;host=evil.test"),
        ("x-real-ip", "203.0.113.7"),
        ("x-consumer-id", "1"),
        ("x-consumer-username", "root"),
        ("x-consumer-groups", "admins"),
        ("x-authenticated-groups", "admins"),
        ("x-credential-identifier", "k"),
        ("x-anonymous-consumer", "false"),
    ];
    let products = shop.stubs.products.handle();
    let weir = Weir::start(&tight(&shop)).await;
    weir.gateway().get("/echo").headers(says).send().await.expect(200);
    let seen = products.requests().pop().expect("a request");
    for (name, value) in [
        ("x-forwarded-for", "127.0.0.1"),
        ("x-real-ip", "127.0.0.1"),
        ("x-forwarded-host", "shop.test"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-port", &weir.gateway().0.port().to_string()),
    ] {
        assert_eq!(seen.header(name), Some(value), "{name}: {seen:?}");
    }
    let lost = ["forwarded", "x-forwarded-prefix", "x-consumer-id", "x-consumer-username", "x-consumer-groups", "x-authenticated-groups", "x-credential-identifier", "x-anonymous-consumer"];
    for name in lost {
        assert_eq!(seen.header(name), None, "{name}");
    }
    drop(weir);

    let weir = Weir::start(&tight(&shop).set("/server/trusted_proxies", json!(["127.0.0.0/8", "198.51.100.0/24"]))).await;
    weir.gateway().get("/echo").headers(says).send().await.expect(200);
    let seen = products.requests().pop().expect("a request");
    assert_eq!(seen.header("x-forwarded-for"), Some("203.0.113.7, 198.51.100.2, 127.0.0.1"));
    assert_eq!(seen.header("x-real-ip"), Some("203.0.113.7"));
    assert_eq!(seen.header("x-forwarded-host"), Some("evil.test"));
    assert_eq!(seen.header("x-forwarded-proto"), Some("https"));
    assert_eq!(seen.header("x-consumer-username"), None, "an identity is believed from nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_can_put_another_page_in_a_pages_place() {
    let (shop, weir) = open().await;
    let attacks: &[&[(&str, &str)]] = &[
        &[("x-forwarded-host", "evil.test"), ("x-forwarded-proto", "https"), ("x-forwarded-port", "444"), ("x-host", "evil.test")],
        &[("x-original-url", "/account"), ("x-rewrite-url", "/account"), ("x-forwarded-prefix", "/evil")],
        &[("x-http-method-override", "POST"), ("x-method-override", "POST")],
        &[("x-middleware-rewrite", "/account"), ("x-middleware-prefetch", "1"), ("x-middleware-override-headers", "host")],
        &[("x-matched-path", "/account"), ("x-now-route-matches", "1=1"), ("x-invoke-path", "/account"), ("x-nextjs-rewritten-path", "/account")],
        &[("next-resume", "1"), ("x-vercel-id", "1"), ("x-prerender-revalidate", "697b877eb589ab4e7eb43a08f00a62f6")],
        &[("x-stub-header-x-evil", "1"), ("x-stub-body-size", "5")],
        &[("x-stub-status", "404"), ("range", "bytes=0-3"), ("if-none-match", "*")],
        &[("accept-encoding", "gzip"), ("accept-language", "xx"), ("user-agent", "Twitterbot/1.0"), ("save-data", "on")],
        &[("cookie", "user=mallory"), ("cache-control", "max-age=0"), ("pragma", "no-cache")],
        &[("forwarded", "host=evil.test"), ("via", "1.1 evil"), ("x-forwarded-server", "evil.test"), ("x-forwarded-scheme", "https")],
    ];
    for (number, attack) in attacks.iter().enumerate() {
        // The asker first, so that what is stored is what their request brought.
        let target = format!("/page/{number}?size=3000");
        let answer = weir.edge().get(&target).headers(attack.iter().copied()).send().await;
        assert!(matches!(answer.status, 200 | 206 | 304), "{attack:?}: {}", answer.status);
        let shown = weir.edge().get(&target).send().await.expect(200);
        assert!(matches!(shown.verdict(), "HIT" | "MISS"), "{attack:?}: {}", shown.verdict());
        assert_eq!(shown.body.len(), 3000, "{attack:?}");
        assert!(!shown.has("x-evil") && !shown.text().contains("evil") && !shown.text().contains("mallory"), "{attack:?}");
        assert!(shown.must("content-type").starts_with("text/html"), "{attack:?}");
    }
    let text = format!("{:?}", shop.storefront().requests());
    assert!(!text.contains("evil") && !text.contains("mallory") && !text.contains("x-stub"), "{text}");

    let reached = shop.storefront().hits();
    weir.edge().get("/categories").header("x-middleware-subrequest", "middleware:middleware").send().await.expect(400);
    for target in ["//categories", "/categories//shoes", "/a%2fb", "/a%5cb", "/a\\b", "/a%00b", "/categories/../account", "/categories/%2e%2e/account"] {
        weir.edge().get(target).send().await.expect(400);
    }
    for target in ["/categories.rsc", "/categories.segments/_tree.segment.rsc"] {
        weir.edge().get(target).send().await.expect(404);
    }
    for twice in ["RSC: 1\r\nRSC: 1", "RSC: 0", "RSC: 1, 1"] {
        let mut connection = weir.edge().connect().await;
        connection.send(format!("GET /categories HTTP/1.1\r\nHost: shop.test\r\n{twice}\r\n\r\n")).await;
        assert_eq!(connection.answer("GET").await.expect("an answer").status, 400, "{twice}");
    }
    let upgrade = weir.edge().get("/ws").headers([("connection", "upgrade"), ("upgrade", "websocket")]).send().await;
    assert_eq!(upgrade.status, 400);
    assert_eq!(shop.storefront().hits(), reached, "none of these reached the origin");

    let same = weir.edge().get("http://shop.test/categories").send().await.expect(200);
    assert_eq!(same.must("x-cache-key"), "html_cache:shop.test/categories");
    assert_eq!(shop.storefront().requests().pop().expect("a request").target, "/categories");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_named_hosts_are_served() {
    let shop = Shop::start().await;
    let weir = Weir::start(&shop.config().set("/edge/hosts", json!(["shop.test"]))).await;
    for (host, status) in [("shop.test", 200), ("SHOP.test:9000", 200), ("evil.test", 421), ("shop.test.evil.test", 421), ("127.0.0.1", 421)] {
        assert_eq!(weir.edge().get("/categories").host(host).send().await.status, status, "{host}");
    }
    assert!(shop.storefront().requests().iter().all(|r| r.header("host").is_some_and(|h| h.starts_with("shop.test"))));
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_leave_early_cost_nobody_an_answer() {
    let (shop, weir) = open().await;
    shop.storefront().add_fault(FaultRule { path_prefix: "/categories".into(), latency_ms: Some(200), ..FaultRule::default() }).expect("a fault");
    let mut first = weir.edge().connect().await;
    first.send(weir.edge().get("/categories").bytes()).await;
    weir_tests::eventually("the fill has begun", async || (shop.storefront().hits_for("/categories") == 1).then_some(())).await;
    drop(first);
    let second = weir.edge().get("/categories").send().await.expect(200);
    assert!(second.text().ends_with("</html>"));
    assert_eq!(shop.storefront().hits_for("/categories"), 1, "the fill goes on without the one who began it");
    let mut half = weir.gateway().connect().await;
    half.send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf").await;
    half.finish().await;
    let answer = half.answer("POST").await;
    assert!(matches!(answer, Err(Broken::Closed)) || answer.is_ok_and(|a| a.status >= 400));
    weir.gateway().get("/echo").send().await.expect(200);
}

/// An answer without what differs from one request to the next, or between the versions of HTTP by their nature.
fn comparable(answer: Answer) -> (u16, Vec<(String, String)>, String) {
    const LEFT_OUT: [&str; 8] = ["connection", "keep-alive", "transfer-encoding", "date", "x-request-id", "age", "x-cache-age", "x-cache-ttl"];
    const TIMES: [&str; 3] = ["x-weir-upstream-latency", "x-weir-proxy-latency", "x-weir-response-latency"];
    let id = answer.header("x-request-id").unwrap_or("none").to_owned();
    let body = answer.text().replace(&id, "<id>");
    let mut headers: Vec<_> = answer
        .headers
        .into_iter()
        .filter(|(name, _)| !LEFT_OUT.contains(&name.as_str()))
        .map(|(name, value)| match name.as_str() {
            "cache-status" => (name, value.split("; ").filter(|p| !p.starts_with("ttl=")).collect::<Vec<_>>().join("; ")),
            _ if TIMES.contains(&name.as_str()) => (name, String::new()),
            _ => (name, value),
        })
        .collect();
    headers.sort();
    (answer.status, headers, body)
}

#[tokio::test(flavor = "multi_thread")]
async fn both_versions_of_http_get_the_same() {
    let (shop, weir) = open().await;
    let (edge, gateway) = (weir.edge(), weir.gateway());
    let token = edge.get("/about").send().await.cookie("guest_token").expect("a token").to_owned();
    let page = edge.get("/categories").cookie("guest_token", &token).send().await.expect(200);
    gateway.get("/api/home").send().await.expect(200);
    let rsc = [("rsc", "1"), ("next-router-prefetch", "1"), ("next-router-segment-prefetch", "/_tree"), ("next-url", "/")];
    let corpus: Vec<Ask> = vec![
        edge.get("/categories"),
        edge.get("/categories?utm_source=x"),
        edge.ask("HEAD", "/categories"),
        edge.get("/categories").header("if-none-match", page.must("etag")),
        edge.get("/categories").header("range", "bytes=1-20"),
        edge.get("/categories").header("range", "bytes=999999-"),
        edge.get("/categories?_rsc=abc").headers(rsc),
        edge.get("/about"),
        edge.get("/missing"),
        edge.get("/missing").header("sec-fetch-dest", "image"),
        edge.get("/legacy-redirect"),
        edge.get("/_next/static/chunks/main-demo-build-1.js"),
        edge.get("/_next/image?url=%2Fraw.png&w=64&q=75").header("accept", "image/webp"),
        edge.get("/raw.png"),
        edge.get("/health"),
        edge.get("/categories//shoes"),
        edge.get("/categories").header("rsc", "0"),
        edge.get("/categories").header("x-middleware-subrequest", "x"),
        edge.ask("DELETE", "/categories"),
        edge.post("/account", "application/x-www-form-urlencoded", "go=redirect"),
        edge.get("/api/home"),
        edge.get("/api/products/1"),
        edge.get("/api/members"),
        gateway.get("/api/home"),
        gateway.get("/api/deals"),
        gateway.get("/nowhere").header("accept", "text/html"),
        gateway.get("/api/members").bearer("garbage"),
        gateway.ask("PUT", "/api/products"),
        gateway.post_json("/api/orders", &json!({ "items": [] })),
        gateway.post("/api/orders", "application/json", vec![b'x'; 2000]),
    ];
    for ask in corpus {
        let ask = ask.cookie("guest_token", &token);
        let shown = String::from_utf8_lossy(&ask.bytes()).into_owned();
        let (one, two) = (comparable(ask.clone().send().await), comparable(ask.send_h2().await));
        assert_eq!(one, two, "{shown}");
    }
    assert_eq!(shop.storefront().hits_for("/categories"), 5, "the page once, the component request and the DELETE once by each version");
}
