//! The gateway, as callers of APIs see it, by its own door and through the edge's.

use serde_json::{Value, json};
use std::collections::HashSet;
use weir_tests::{Answer, CUSTOMER, Config, Shop, WARM_UP_TOKEN, Weir};

async fn open() -> (Shop, Weir) {
    open_with(|config| config).await
}

async fn open_with(change: impl FnOnce(Config) -> Config) -> (Shop, Weir) {
    let shop = Shop::start().await;
    let weir = Weir::start(&change(shop.config())).await;
    (shop, weir)
}

fn token(answer: &Answer) -> String {
    answer.json()["access_token"].as_str().expect("a token").to_owned()
}

fn order() -> Value {
    json!({ "items": [{ "product_id": 1, "quantity": 2 }] })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_behind_the_edge_is_the_gateways() {
    let (shop, weir) = open().await;
    let first = weir.edge().get("/api/products?limit=3").send().await.expect(200);
    let guest = first.cookie("guest_token").expect("a guest token").to_owned();
    assert_eq!(first.must("cache-control"), "private, no-store");
    assert_eq!(first.json()["items"].as_array().map(Vec::len), Some(3));
    let second = weir.edge().get("/api/products?limit=3").cookie("guest_token", &guest).send().await.expect(200);
    assert!(!second.has("set-cookie"));
    let seen = shop.stubs.products.handle().requests();
    assert_eq!(seen.len(), 2);
    for request in &seen {
        assert_eq!(request.header("authorization"), Some(&*format!("Bearer {guest}")), "{request:?}");
        assert_eq!(request.target, "/api/products?limit=3");
        assert_eq!(request.header("x-forwarded-host"), Some("shop.test"));
        assert_eq!(request.header("x-forwarded-proto"), Some("http"));
        assert_eq!(request.header("x-forwarded-for"), Some("127.0.0.1"));
    }
    assert_eq!(shop.storefront().hits(), 0);
    let nothing = weir.edge().get("/api/nothing").send().await.expect(404);
    assert_eq!(nothing.json()["message"], "no Route matched with those values");
    assert_eq!(shop.storefront().hits(), 0, "what the gateway does not know is not the site's either");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_for_those_who_signed_in() {
    let (shop, weir) = open().await;
    for door in [weir.gateway(), weir.edge()] {
        let login = door.ask("POST", "/api/auth/login").header("authorization", CUSTOMER).body("").send().await.expect(200);
        let token = token(&login);
        let shown = door.get("/api/members").bearer(&token).send().await.expect(200);
        assert_eq!(shown.must("x-stub-saw-authorization"), "yes");
        assert_eq!(shown.json()["items"].as_array().map(Vec::len), Some(3));

        let hits = shop.stubs.members.handle().hits();
        let none = door.get("/api/members").send().await.expect(401);
        assert!(none.must("www-authenticate").starts_with("Bearer"), "{none:#?}");
        assert!(none.json()["message"].is_string());
        let (payload, signature) = token.rsplit_once('.').expect("a JWT");
        let forged = format!("{payload}.{}", signature.chars().rev().collect::<String>());
        for bad in [&*forged, "garbage", "", "a.b.c"] {
            let answer = door.get("/api/members").bearer(bad).send().await.expect(401);
            assert!(answer.must("www-authenticate").starts_with("Bearer"), "{bad}: {answer:#?}");
        }
        let unsigned = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.eyJzdWIiOiJhbGljZSIsImV4cCI6OTk5OTk5OTk5OX0.";
        door.get("/api/members").bearer(unsigned).send().await.expect(401);
        assert_eq!(shop.stubs.members.handle().hits(), hits, "none of them reached the service");
    }
    let wrong = weir.gateway().ask("POST", "/api/auth/login").header("authorization", "Basic YWxpY2U6d3Jvbmc=").body("").send().await.expect(401);
    assert!(wrong.must("www-authenticate").starts_with("Basic"), "the service's own challenge passes");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_makes_one_order() {
    let (shop, weir) = open().await;
    let ledger = || shop.stubs.orders.handle().ledger();
    let send = |name: &str, key: &str| weir.gateway().post_json("/api/orders", &order()).header(name, key);
    let first = send("Idempotency-Key", "order-1").send().await.expect(201);
    assert!(!first.has("idempotency-replayed"));
    for name in ["Idempotency-Key", "X-Idempotency-Key"] {
        let again = send(name, "order-1").send().await.expect(201);
        assert_eq!(again.body, first.body);
        assert_eq!(again.must("location"), first.must("location"));
        assert_eq!(again.must("idempotency-replayed"), "true");
    }
    assert_eq!(ledger().len(), 1);
    let other = send("Idempotency-Key", "order-2").send().await.expect(201);
    assert_ne!(other.body, first.body);
    assert_eq!(ledger().len(), 2);
    let changed = weir.gateway().post_json("/api/orders", &json!({ "items": [{ "product_id": 2 }] })).header("idempotency-key", "order-1");
    changed.send().await.expect(422);
    for _ in 0..2 {
        weir.gateway().post_json("/api/orders", &order()).send().await.expect(201);
    }
    assert_eq!(ledger().len(), 4, "without a key every POST counts");
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_at_once_with_one_key_make_one_order() {
    let (shop, weir) = open().await;
    let slow = upstream_stubs::FaultRule { path_prefix: "/api/orders".into(), latency_ms: Some(300), ..Default::default() };
    shop.stubs.orders.handle().add_fault(slow).expect("a fault");
    let asks = (0..20).map(|_| weir.gateway().post_json("/api/orders", &order()).header("idempotency-key", "the-one").send());
    let answers = futures_util::future::join_all(asks).await;
    let bodies: HashSet<_> = answers.iter().map(|a| (a.status, a.body.clone())).collect();
    assert_eq!(bodies.len(), 1, "{bodies:?}");
    assert_eq!(answers[0].status, 201);
    assert_eq!(shop.stubs.orders.handle().ledger().len(), 1);
    assert_eq!(answers.iter().filter(|a| a.has("idempotency-replayed")).count(), 19);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_an_api_are_kept() {
    let (shop, weir) = open().await;
    let bff = shop.stubs.bff.handle();
    let miss = weir.gateway().get("/api/home").send().await.expect(200);
    assert_eq!((miss.verdict(), miss.must("x-cache-key")), ("MISS", "cache:GET:/api/home"));
    let hit = weir.gateway().get("/api/home").send().await.expect(200);
    assert_eq!((hit.verdict(), &hit.body), ("HIT", &miss.body));
    assert!(hit.has("age"));
    let by_edge = weir.edge().get("/api/home").send().await.expect(200);
    assert_eq!((by_edge.verdict(), &by_edge.body), ("HIT", &miss.body), "one entry for both doors");
    assert_eq!(bff.hits(), 1);
    let head = weir.gateway().ask("HEAD", "/api/home").send().await.expect(200);
    assert_eq!((head.verdict(), head.must("content-length")), ("HIT", &*miss.body.len().to_string()));
    let other = weir.gateway().get("/api/home?b=2&a=1").send().await.expect(200);
    assert_eq!((other.verdict(), other.must("x-cache-key")), ("MISS", "cache:GET:/api/home?a=1&b=2"));
    assert_eq!(weir.gateway().get("/api/home?a=1&b=2").send().await.verdict(), "HIT");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_wants_the_warm_up_token() {
    let (shop, weir) = open().await;
    for (door, target, handle) in [
        (weir.gateway(), "/api/home", shop.stubs.bff.handle()),
        (weir.edge(), "/categories", shop.storefront()),
    ] {
        let first = door.get(target).send().await.expect(200);
        assert_eq!(first.verdict(), "MISS");
        let ask = || door.get(target).header("X-Cache-Refresh", "true");
        for ignored in [ask(), ask().header("X-Warmup-Token", "wrong"), ask().header("X-Warmup-Token", "")] {
            let answer = ignored.send().await.expect(200);
            assert_eq!((answer.verdict(), &answer.body), ("HIT", &first.body), "{target}");
        }
        assert_eq!(handle.hits_for(target), 1);
        let fresh = ask().header("X-Warmup-Token", WARM_UP_TOKEN).send().await.expect(200);
        assert_eq!(fresh.verdict(), "REFRESH", "{target}");
        assert_eq!(handle.hits_for(target), 2);
        let after = door.get(target).send().await.expect(200);
        assert_eq!((after.verdict(), &after.body), ("HIT", &fresh.body), "the refreshed answer is the one that is kept");
        let seen = handle.requests();
        assert!(seen.iter().all(|r| r.header("x-warmup-token").is_none() && r.header("x-cache-refresh").is_none()), "{seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_name_of_the_response_cache_works_too() {
    let shop = Shop::start().await;
    let plugins = json!([{ "name": "simple-redis-cache", "config": {} }]);
    let config = shop.config().service("echo", &shop.stubs.products.url(), "/echo", plugins);
    let weir = Weir::start(&config).await;
    let answer = weir.gateway().get("/echo/1").send().await.expect(200);
    assert_eq!((answer.verdict(), answer.detail().as_str()), ("BYPASS", "no-store"), "what the service says of storing counts");
    let again = weir.gateway().get("/echo/1").bearer("x").send().await.expect(200);
    assert_eq!((again.verdict(), again.detail().as_str()), ("BYPASS", "authorization"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_too_often_is_told_when_to_come_back() {
    let (shop, weir) = open_with(|config| {
        let plugin = json!({ "name": "rate-limiting", "config": { "year": 3, "limit_by": "ip", "policy": "local" } });
        config.push("/gateway/plugins", plugin)
    })
    .await;
    let hits = shop.stubs.products.handle();
    for left in [2, 1, 0] {
        let answer = weir.gateway().get("/api/products").send().await.expect(200);
        assert_eq!(answer.must("x-ratelimit-limit-year"), "3");
        assert_eq!(answer.must("x-ratelimit-remaining-year"), left.to_string());
        assert_eq!((answer.must("ratelimit-limit"), answer.must("ratelimit-remaining")), ("3", &*left.to_string()));
    }
    let refused = weir.gateway().get("/api/products").send().await.expect(429);
    assert_eq!(refused.must("x-ratelimit-remaining-year"), "0");
    let wait: u64 = refused.must("retry-after").parse().expect("seconds");
    assert_eq!(refused.must("ratelimit-reset"), wait.to_string());
    assert!((1..=366 * 86_400).contains(&wait));
    assert_eq!(refused.json()["message"], "API rate limit exceeded");
    assert_eq!(hits.hits(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_origins_are_answered_before_they_ask() {
    let (shop, weir) = open_with(|config| {
        let cors = json!({ "origins": ["https://app.test"], "methods": ["GET", "POST"], "headers": ["Content-Type"], "exposed_headers": ["X-Request-ID"], "credentials": true, "max_age": 600 });
        config.push("/gateway/plugins", json!({ "name": "cors", "config": cors }))
    })
    .await;
    let preflight = weir
        .gateway()
        .ask("OPTIONS", "/api/orders")
        .headers([("origin", "https://app.test"), ("access-control-request-method", "POST"), ("access-control-request-headers", "content-type")])
        .send()
        .await;
    assert!(matches!(preflight.status, 200 | 204), "{preflight:#?}");
    assert_eq!(preflight.must("access-control-allow-origin"), "https://app.test");
    assert_eq!(preflight.must("access-control-allow-methods").replace(' ', ""), "GET,POST");
    assert!(preflight.must("access-control-allow-headers").eq_ignore_ascii_case("content-type"));
    assert_eq!(preflight.must("access-control-max-age"), "600");
    assert_eq!(shop.stubs.orders.handle().hits(), 0);
    for (target, status) in [("/api/products", 200), ("/api/members", 401), ("/api/none", 404)] {
        let answer = weir.gateway().get(target).header("origin", "https://app.test").send().await.expect(status);
        assert_eq!(answer.must("access-control-allow-origin"), "https://app.test", "{target}: an error that a page can not read is no help");
        assert_eq!(answer.must("access-control-allow-credentials"), "true");
        assert_eq!(answer.must("access-control-expose-headers"), "X-Request-ID");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_id_follows_a_request_through_all_services() {
    let (shop, weir) = open_with(|config| {
        let plugin = json!({ "name": "correlation-id", "config": { "header_name": "X-Correlation-ID", "generator": "uuid", "echo_downstream": true } });
        config.push("/gateway/plugins", plugin)
    })
    .await;
    let made = weir.gateway().get("/api/products").send().await.expect(200);
    let id = made.must("x-correlation-id").to_owned();
    assert_eq!(id.len(), 36, "{id}");
    assert_eq!(shop.stubs.products.handle().requests()[0].header("x-correlation-id"), Some(&*id));
    let given = weir.gateway().get("/api/products").header("x-correlation-id", "mine-7").send().await.expect(200);
    assert_eq!(given.must("x-correlation-id"), "mine-7");
    assert_eq!(shop.stubs.products.handle().requests()[1].header("x-correlation-id"), Some("mine-7"));
    let error = weir.gateway().get("/api/members").header("x-correlation-id", "mine-8").send().await.expect(401);
    assert_eq!(error.must("x-correlation-id"), "mine-8", "on answers that Weir makes too");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_is_counted() {
    let (_shop, weir) = open().await;
    let login = weir.gateway().ask("POST", "/api/auth/login").header("authorization", CUSTOMER).body("").send().await.expect(200);
    for _ in 0..3 {
        weir.edge().get("/categories").send().await.expect(200);
        weir.gateway().get("/api/home").send().await.expect(200);
    }
    weir.gateway().get("/api/members").bearer(&token(&login)).send().await.expect(200);
    weir.gateway().get("/api/members").send().await.expect(401);
    weir.gateway().post_json("/api/orders", &order()).header("idempotency-key", "counted").send().await.expect(201);
    weir.gateway().get("/api/none").send().await.expect(404);
    for (metric, labels, count) in [
        ("weir_requests_total", &["door=\"edge\"", "route=\"document\"", "status=\"200\""][..], 3.0),
        ("weir_requests_total", &["door=\"gateway\"", "route=\"bff\"", "status=\"200\""], 3.0),
        ("weir_requests_total", &["route=\"members\"", "status=\"401\""], 1.0),
        ("weir_requests_total", &["route=\"no-route\"", "status=\"404\""], 1.0),
        ("weir_request_duration_seconds_count", &["door=\"edge\"", "route=\"document\""], 3.0),
        ("weir_cache_requests_total", &["policy=\"/categories\"", "verdict=\"miss\""], 1.0),
        ("weir_cache_requests_total", &["policy=\"/categories\"", "verdict=\"hit\"", "tier=\"memory\""], 2.0),
        ("weir_cache_requests_total", &["verdict=\"hit\""], 4.0),
        ("weir_guest_tokens_total", &["issuer=\"local\""], 3.0),
        ("weir_store_up", &[], 1.0),
    ] {
        assert_eq!(weir.metric(metric, labels).await, count, "{metric} {labels:?}");
    }
    assert!(weir.metric("weir_plugin_outcomes_total", &["plugin=\"token-validator\""]).await >= 2.0);
    assert!(weir.metric("weir_plugin_outcomes_total", &["plugin=\"idempotency\""]).await >= 1.0);
    assert!(weir.metric("weir_upstream_up", &[]).await >= 4.0);
    assert!(weir.metric("weir_cache_wait_seconds_count", &[]).await >= 0.0);
    assert_eq!(weir.readiness().await, "ready");
    let asked_from_a_page = weir.admin().get("/metrics").header("origin", "http://evil.test").send().await;
    assert_eq!(asked_from_a_page.status, 403, "a browser's page may not read the admin port");
}
