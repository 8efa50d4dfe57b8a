//! A service that fails: its circuit opens, retries stay within their budget and do no harm, and nothing takes longer than it may.

use serde_json::{Value, json};
use upstream_stubs::{Fault, FaultRule, Running};
use weir_tests::{Answer, Config, Shop, Weir, eventually};

fn failing(path: &str) -> FaultRule {
    FaultRule { path_prefix: path.into(), status: Some(500), ..FaultRule::default() }
}

fn target(stub: &Running) -> Value {
    json!({ "target": stub.addr().to_string() })
}

/// A service of two endpoints, the first of them first, with these settings of Weir's own.
fn pair(shop: &Shop, settings: Value) -> Config {
    let mut upstream = json!({ "name": "pair", "targets": [target(&shop.stubs.products), target(&shop.stubs.deals)] });
    for (key, value) in settings.as_object().expect("settings") {
        upstream[key] = value.clone();
    }
    shop.config().set("/gateway/upstreams", json!([upstream])).service("pair", "http://pair", "/echo", json!([]))
}

async fn statuses(weir: &Weir, path: &str, count: usize) -> Vec<u16> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(weir.gateway().get(path).send().await.status);
    }
    all
}

fn circuit(status: &Value, name: &str) -> Value {
    let all = status["resilience"]["circuits"].as_array().expect("a list").clone();
    all.into_iter().find(|c| c["circuit"] == name).unwrap_or_else(|| panic!("no circuit {name}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_service_is_left_alone_and_comes_back() {
    let shop = Shop::start().await;
    let breaker = |open_for: &str| json!([{ "name": "circuit-breaker", "config": { "minimum_calls": 10, "window": "60s", "open_for": open_for, "probes": 2 } }]);
    let products = shop.stubs.products.url();
    let config = shop.config().service("long", &products, "/echo/long", breaker("1h")).service("short", &products, "/echo/short", breaker("300ms"));
    let weir = Weir::start(&config).await;
    let stub = shop.stubs.products.handle();
    stub.add_fault(failing("/echo")).expect("a fault");

    assert_eq!(statuses(&weir, "/echo/long", 10).await, [500; 10]);
    let refused = weir.gateway().get("/echo/long").send().await.expect(503);
    assert_eq!(refused.json()["message"], "The service is failing, try again later");
    assert!(refused.must("retry-after").parse::<u32>().is_ok_and(|s| (3000..=3600).contains(&s)));
    assert_eq!(statuses(&weir, "/echo/long", 20).await, [503; 20]);
    assert_eq!(stub.hits_for("/echo/long"), 10, "nothing was sent while it is open");
    assert_eq!(weir.gateway().get("/echo/short").send().await.status, 500, "another service has its own circuit");

    // A reload changes nothing about it.
    weir.hang_up();
    eventually("the reload", async || (weir.metric("weir_reloads_total", &["ok"]).await > 0.0).then_some(())).await;
    assert_eq!(statuses(&weir, "/echo/long", 5).await, [503; 5]);
    let shown = circuit(&weir.status().await, "service:long");
    assert_eq!((&shown["state"], &shown["events"]["opened"], &shown["events"]["refused"]), (&json!("open"), &json!(1), &json!(26)));
    assert_eq!(weir.metric("weir_circuit_state", &["service:long"]).await, 2.0);
    assert_eq!(weir.metric("weir_circuit_events_total", &["service:long", "refused"]).await, 26.0);

    println!("breaker: 10 failing calls of 10 open it; then 26 requests refused, 0 sent, also after a reload");
    // The other one: open, tried in vain, and closed again when the service is well.
    eventually("it opens", async || (weir.gateway().get("/echo/short").send().await.status == 503).then_some(())).await;
    let tried = async || circuit(&weir.status().await, "service:short")["events"]["tried"].as_u64().unwrap_or(0);
    eventually("probes fail", async || {
        let _ = weir.gateway().get("/echo/short").send().await;
        (tried().await >= 2).then_some(())
    })
    .await;
    stub.clear_faults();
    eventually("it closes", async || {
        let _ = weir.gateway().get("/echo/short").send().await;
        (circuit(&weir.status().await, "service:short")["state"] == "closed").then_some(())
    })
    .await;
    assert_eq!(statuses(&weir, "/echo/short", 20).await, [200; 20]);
    println!("breaker, half open: {} times tried in vain or well, closed again, then 20 of 20 served", tried().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_circuit_serves_the_old_copy_the_fallback_or_another_service() {
    let shop = Shop::start().await;
    let breaker = |more: Value| {
        let mut config = json!({ "minimum_calls": 3, "open_for": "1h" });
        config.as_object_mut().expect("a config").extend(more.as_object().expect("more").clone());
        json!({ "name": "circuit-breaker", "config": config })
    };
    let products = shop.stubs.products.url();
    let kept = json!([{ "name": "response-cache", "config": { "ttl": "1s", "shared": true } }, breaker(json!({}))]);
    let config = shop
        .config()
        .service("strict", &products, "/echo/strict", kept.clone())
        .service("kept", &products, "/echo/kept", kept)
        .service("empty", &products, "/echo/empty", json!([breaker(json!({ "fallback": { "status": 200, "headers": { "Content-Type": "application/json" }, "body": "{\"items\":[]}" } }))]))
        .service("spared", &products, "/echo/spared", json!([breaker(json!({ "fallback": { "service": "spare" } }))]))
        .service("both", &products, "/echo/both", json!([{ "name": "response-cache", "config": { "ttl": "1s", "shared": true } }, breaker(json!({ "fallback": { "service": "spare" } }))]))
        .service("spare", &shop.stubs.deals.url(), "/echo/spare", json!([]));
    let weir = Weir::start(&config).await;
    let stub = shop.stubs.products.handle();
    let lasting = FaultRule { path_prefix: "/echo/kept/page".into(), headers: [("cache-control".to_string(), "public, max-age=600".to_string())].into(), ..FaultRule::default() };
    stub.add_fault(lasting).expect("a rule");
    let first = weir.gateway().get("/echo/kept/page").send().await.expect(200);
    stub.add_fault(FaultRule { path_prefix: "/echo/both/page".into(), headers: [("cache-control".to_string(), "public, max-age=600".to_string())].into(), ..FaultRule::default() }).expect("a rule");
    let cached = weir.gateway().get("/echo/both/page").send().await.expect(200);
    stub.add_fault(FaultRule { path_prefix: "/echo/strict/page".into(), headers: [("cache-control".to_string(), "public, max-age=600, must-revalidate".to_string())].into(), ..FaultRule::default() }).expect("a rule");
    weir.gateway().get("/echo/strict/page").send().await.expect(200);
    stub.clear_faults();
    stub.add_fault(failing("/echo")).expect("a fault");
    for path in ["/echo/kept/x", "/echo/both/x", "/echo/strict/x", "/echo/empty", "/echo/spared"] {
        // The page was a first call of these: with two more there are enough to judge.
        for _ in 0..if path.ends_with("/x") { 2 } else { 3 } {
            assert_eq!(weir.gateway().post(path, "text/plain", "x").send().await.status, 500, "{path}");
        }
    }
    let old = eventually("the copy is old", async || {
        let answer = weir.gateway().get("/echo/kept/page").send().await.expect(200);
        (answer.verdict() == "STALE").then_some(answer)
    })
    .await;
    assert_eq!(old.text(), first.text());
    // RFC 9111 section 5.2.2.2: rather an error than what must be validated.
    let refused = eventually("the copy's time is over", async || Some(weir.gateway().get("/echo/strict/page").send().await).filter(|a| a.verdict() != "HIT")).await;
    assert_eq!(refused.expect(503).must("x-weir-reason"), "circuit-open");
    assert_eq!(weir.gateway().get("/echo/kept/unseen").send().await.expect(503).must("x-weir-reason"), "circuit-open");
    let empty = weir.gateway().get("/echo/empty").send().await.expect(200);
    assert_eq!((empty.text().as_str(), empty.must("content-type")), ("{\"items\":[]}", "application/json"));
    let (deals, before) = (shop.stubs.deals.handle(), stub.hits());
    weir.gateway().post("/echo/spared", "text/plain", "order").send().await.expect(200);
    assert_eq!((deals.hits_for("/echo/spared"), stub.hits()), (1, before));
    // Where there is all of it, the old copy comes before the other service.
    let old = eventually("the other copy is old", async || {
        let answer = weir.gateway().get("/echo/both/page").send().await.expect(200);
        (answer.verdict() == "STALE").then_some(answer)
    })
    .await;
    assert_eq!((old.text(), deals.hits_for("/echo/both/page")), (cached.text(), 0));
    weir.gateway().get("/echo/both/unseen").send().await.expect(200);
    assert_eq!((deals.hits_for("/echo/both/unseen"), stub.hits()), (1, before));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_endpoint_of_two_gets_nothing() {
    let shop = Shop::start().await;
    let plugin = json!({ "name": "circuit-breaker", "config": { "per": "endpoint", "minimum_calls": 5, "window": "60s", "open_for": "1h" } });
    let config = pair(&shop, json!({})).set("/gateway/plugins", json!([plugin]));
    let weir = Weir::start(&config).await;
    shop.stubs.products.handle().add_fault(failing("/echo")).expect("a fault");
    let begun = statuses(&weir, "/echo", 10).await;
    assert_eq!(begun.iter().filter(|s| **s == 500).count(), 5, "{begun:?}");
    assert_eq!(statuses(&weir, "/echo", 20).await, [200; 20]);
    assert_eq!(shop.stubs.products.handle().hits_for("/echo"), 5);
    shop.stubs.deals.handle().add_fault(failing("/echo")).expect("a fault");
    eventually("both are open", async || (weir.gateway().get("/echo").send().await.status == 503).then_some(())).await;
    assert_eq!(weir.gateway().get("/echo").send().await.expect(503).must("x-weir-reason"), "circuit-open");
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_go_elsewhere_and_never_repeat_what_may_have_happened() {
    let shop = Shop::start().await;
    let retry = json!({ "statuses": [502, 503, 504], "budget": 100, "backoff": "1ms", "timeouts": true });
    let config = pair(&shop, json!({ "retry": retry, "deadline": { "first_byte": "2s" } }));
    let weir = Weir::start(&config).await;
    let (bad, good) = (shop.stubs.products.handle(), shop.stubs.deals.handle());
    for fault in [
        FaultRule { status: Some(503), ..FaultRule::default() },
        FaultRule { fault: Some(Fault::Close), ..FaultRule::default() },
        FaultRule { fault: Some(Fault::Hang), ..FaultRule::default() },
    ] {
        bad.clear_faults();
        bad.add_fault(fault.clone()).expect("a fault");
        assert_eq!(statuses(&weir, "/echo", 4).await, [200; 4], "{fault:?}");
        let (before, other) = (bad.hits_for("/echo"), good.hits_for("/echo"));
        let mut failed = 0;
        for _ in 0..2 {
            failed += u64::from(weir.gateway().post("/echo", "text/plain", "once").send().await.status != 200);
        }
        let (sent, elsewhere) = (bad.hits_for("/echo") - before, good.hits_for("/echo") - other);
        assert_eq!((sent, elsewhere), (failed, 2 - failed), "each POST was sent once: {fault:?}");
    }
    bad.clear_faults();

    // What never left may be sent elsewhere, whatever its method is.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let mut config = pair(&shop, json!({ "retry": { "backoff": "1ms" } }));
    config.0["gateway"]["upstreams"][0]["targets"][0] = json!({ "target": nobody.to_string() });
    let weir = Weir::start(&config).await;
    for _ in 0..4 {
        weir.gateway().post("/echo", "text/plain", "once").send().await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_stay_within_their_budget() {
    let shop = Shop::start().await;
    let retry = json!({ "statuses": [503], "attempts": 3, "budget": 20, "min_per_second": 0, "backoff": "1ms", "max_backoff": "2ms" });
    let weir = Weir::start(&pair(&shop, json!({ "retry": retry }))).await;
    let stubs = [shop.stubs.products.handle(), shop.stubs.deals.handle()];
    for stub in stubs {
        stub.add_fault(FaultRule { status: Some(503), ..FaultRule::default() }).expect("a fault");
    }
    let answers = statuses(&weir, "/echo", 300).await;
    assert_eq!(answers, [503; 300]);
    let sent: u64 = stubs.iter().map(|stub| stub.hits_for("/echo")).sum();
    let (made, over) = (weir.metric("weir_retries_total", &["pair", "made"]).await, weir.metric("weir_retries_total", &["pair", "over-budget"]).await);
    println!("300 requests, all failing, 3 extra tries each allowed: {sent} sent upstream ({made} retries, {over} over the budget); without a budget 1200");
    assert_eq!(sent, 300 + made as u64);
    assert!((1..=360 - 300).contains(&(sent - 300)), "{sent} sent for 300 requests");
    assert!(over > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_takes_longer_than_it_may() {
    let shop = Shop::start().await;
    let products = shop.stubs.products.url();
    let mut config = shop.config();
    for (name, deadline) in [
        ("first", json!({ "first_byte": "200ms" })),
        ("total", json!({ "total": "400ms" })),
        ("idle", json!({ "idle": "300ms" })),
        ("told", json!({ "total": "30s", "header": "X-Time-Left" })),
    ] {
        config = config.service(name, &products, &format!("/echo/{name}"), json!([]));
        let last = config.0["gateway"]["services"].as_array().map_or(0, Vec::len) - 1;
        config = config.set(&format!("/gateway/services/{last}/deadline"), deadline);
    }
    let weir = Weir::start(&config).await;
    let stub = shop.stubs.products.handle();
    let reason = async |path: &str| -> Answer { weir.gateway().get(path).send().await.expect(504) };
    let told = weir.gateway().get("/echo/told").header("x-time-left", "5").send().await.expect(200);
    let seen = told.json();
    let left = seen["headers"].as_array().into_iter().flatten().find(|pair| pair[0] == "x-time-left").and_then(|pair| pair[1].as_str()?.parse::<u64>().ok());
    assert!(left.is_some_and(|left| (1..=30_000).contains(&left) && left != 5), "{}", told.text());
    stub.add_fault(FaultRule { fault: Some(Fault::Hang), path_prefix: "/echo/first".into(), ..FaultRule::default() }).expect("a fault");
    stub.add_fault(FaultRule { fault: Some(Fault::Hang), path_prefix: "/echo/total".into(), ..FaultRule::default() }).expect("a fault");
    stub.add_fault(FaultRule { fault: Some(Fault::Stall), path_prefix: "/echo/idle".into(), ..FaultRule::default() }).expect("a fault");
    assert_eq!(reason("/echo/first").await.must("x-weir-reason"), "first-byte-timeout");
    assert_eq!(reason("/echo/total").await.must("x-weir-reason"), "deadline");
    // The head is out: all that is left is to let the client notice.
    assert!(weir.gateway().get("/echo/idle").attempt().await.is_err());
    assert_eq!(weir.metric("weir_failures_total", &["idle-timeout"]).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_edge_guards_its_origin_too() {
    let shop = Shop::start().await;
    let config = shop
        .config()
        .set("/edge/deadline", json!({ "first_byte": "1s" }))
        .set("/edge/circuit_breaker", json!({ "minimum_calls": 3, "open_for": "1h", "window": "60s" }))
        .pages(json!([{ "path": "/", "ttl": "1s" }]));
    let weir = Weir::start(&config).await;
    let page = weir.edge().get("/").send().await.expect(200);
    shop.storefront().add_fault(FaultRule { fault: Some(Fault::Hang), ..FaultRule::default() }).expect("a fault");
    // The page was a first call: with two more there are enough to judge.
    for _ in 0..2 {
        let late = weir.edge().get("/account").send().await.expect(504);
        assert_eq!(late.must("x-weir-reason"), "first-byte-timeout");
    }
    assert_eq!(weir.edge().get("/account").send().await.expect(503).must("x-weir-reason"), "circuit-open");
    let old = eventually("the page is old", async || {
        let answer = weir.edge().get("/").send().await.expect(200);
        (answer.verdict() == "STALE").then_some(answer)
    })
    .await;
    assert_eq!(old.text(), page.text());
}
