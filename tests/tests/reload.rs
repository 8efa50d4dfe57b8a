//! The configuration changes while requests are under way: none is lost, nothing is forgotten, and a bad one changes nothing.

use serde_json::{Value, json};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};
use weir_store::testing::free_port;
use weir_tests::{Config, Connection, Door, Shop, Weir, eventually};

async fn reload(weir: &Weir) {
    weir.admin().ask("POST", "/reload").body("").send().await.expect(200);
}

/// The gateway with a header that names the generation, and perhaps another address.
fn generation(shop: &Shop, number: usize, extra: Option<u16>) -> Config {
    let header = json!([{ "name": "response-transformer", "config": { "add": { "headers": [format!("x-generation:{number}")] } } }]);
    let config = shop.config().set("/gateway/plugins", header);
    match extra {
        Some(port) => config.set("/gateway/listen", json!([format!("127.0.0.1:{port}")])),
        None => config,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_reloads_under_load_lose_no_request() {
    let shop = Shop::start().await;
    let weir = Weir::start(&generation(&shop, 0, None)).await;
    let over = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicU64::new(0));
    let mut clients = Vec::new();
    for number in 0..8 {
        let (over, answered) = (over.clone(), answered.clone());
        let door = if number % 4 == 3 { weir.edge() } else { weir.gateway() };
        let target = if number % 4 == 3 { "/categories" } else { "/api/products" };
        clients.push(tokio::spawn(async move {
            let mut kept = door.connect().await;
            while !over.load(Ordering::Relaxed) {
                // Some keep their connection, some open one for every request.
                let answer = if number % 2 == 0 { door.get(target).on(&mut kept).await } else { door.get(target).attempt().await };
                let answer = answer.unwrap_or_else(|why| panic!("client {number} lost a request: {why}"));
                assert_eq!(answer.status, 200, "client {number}: {}", answer.text());
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let port = free_port();
    for number in 1..=100 {
        weir.write(&generation(&shop, number, (number % 2 == 0).then_some(port)));
        reload(&weir).await;
        let now = weir.gateway().get("/api/products").send().await.expect(200);
        assert_eq!(now.must("x-generation"), number.to_string());
        // The second address comes and goes.
        let there = Door(([127, 0, 0, 1], port).into());
        if number % 2 == 0 {
            there.get("/api/products").send().await.expect(200);
        } else {
            eventually("the second address is closed", async || Connection::try_open(there.0).await.is_err().then_some(())).await;
        }
    }
    over.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("no request was lost");
    }
    assert!(answered.load(Ordering::Relaxed) > 200, "the clients were busy");
    println!("100 reloads under load of 8 clients: {} requests answered, 0 lost", answered.load(Ordering::Relaxed));
    assert_eq!(weir.metric("weir_reloads_total", &["outcome=\"refused\""]).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_and_pages_survive_and_requests_under_way_finish_on_the_old() {
    let shop = Shop::start().await;
    let limited = |header: &str| {
        let plugins = json!([
            { "name": "rate-limiting", "config": { "day": 3, "policy": "local" } },
            { "name": "response-transformer", "config": { "add": { "headers": [format!("x-is:{header}")] } } },
        ]);
        shop.config().service("limited", &shop.stubs.deals.url(), "/limited", plugins).set("/edge/upgrades", header == "new")
    };
    let weir = Weir::start(&limited("old")).await;
    assert_eq!(weir.edge().get("/").send().await.expect(200).verdict(), "MISS");
    weir.gateway().get("/limited").send().await;
    // Slow requests at both doors.
    let mut slow = weir.gateway().connect().await;
    slow.send("GET /limited?delay=1 HTTP/1.1\r\nHost: shop.test\r\nX-Stub-Latency: 1500ms\r\n\r\n").await;
    eventually("the slow request is under way", async || (shop.stubs.deals.handle().requests().len() >= 2).then_some(())).await;
    weir.write(&limited("new"));
    reload(&weir).await;
    let third = weir.gateway().get("/limited").send().await;
    assert_eq!(third.must("x-is"), "new");
    assert_ne!(third.status, 429);
    assert_eq!(weir.gateway().get("/limited").send().await.expect(429).must("x-is"), "new", "two before the reload count");
    assert_eq!(slow.answer("GET").await.expect("an answer").must("x-is"), "old");
    assert_eq!(weir.edge().get("/").send().await.expect(200).verdict(), "HIT");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_counts_by_itself_and_a_bad_one_says_why() {
    let shop = Shop::start().await;
    let weir = Weir::start(&generation(&shop, 1, None).without("edge").without("warm_up")).await;
    let kong = |number: usize, more: &str| {
        let url = shop.stubs.products.url();
        let text = format!(
            "_format_version: '3.0'\nservices:\n- name: products\n  url: {url}\n  routes:\n  - {{ name: products, paths: [/api/products], strip_path: false }}\n\
             plugins:\n- name: response-transformer\n  config: {{ add: {{ headers: ['x-generation:{number}'] }} }}\n{more}"
        );
        std::fs::write(weir.folder().join("kong.yml"), text).expect("a file");
    };
    let becomes = async |number: &str| {
        let asked = async || (weir.gateway().get("/api/products").send().await.header("x-generation") == Some(number)).then_some(());
        eventually(&format!("generation {number}"), asked).await;
    };
    kong(2, "");
    let address = weir.gateway().0;
    weir.write(&shop.config().without("edge").without("warm_up").set("/gateway", json!({ "file": "kong.yml" })));
    becomes("2").await;
    // A file that is named by the file.
    kong(3, "");
    becomes("3").await;
    kong(4, "plugin: oh\n");
    eventually("the refusal", async || (weir.metric("weir_reloads_total", &["outcome=\"refused\""]).await == 1.0).then_some(())).await;
    let ready: Value = weir.admin().get("/ready").send().await.expect(200).json();
    assert_eq!(ready["status"], "ready");
    assert!(ready["configuration"].as_str().is_some_and(|c| c.contains("refused")), "{ready}");
    let why = weir.status().await["refused_reload"].as_str().unwrap_or_default().to_owned();
    assert!(why.contains("kong.yml") && why.contains("unknown key `plugin`") && why.contains("did you mean `plugins`?"), "{why}");
    assert!(weir.said().contains("the old configuration stays in force (a file changed)"), "{}", weir.said());
    assert_eq!(weir.gateway().get("/api/products").send().await.expect(200).must("x-generation"), "3");
    // So does an address that somebody else has.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    kong(5, "");
    becomes("5").await;
    assert_eq!(weir.admin().get("/ready").send().await.expect(200).json()["configuration"], "ok");
    weir.write_text(&format!("gateway: {{ listen: ['{address}', '{}'], file: kong.yml }}\nadmin: {{ listen: '{}' }}\n", taken.local_addr().expect("an address"), weir.admin().0));
    let refused = eventually("the other refusal", async || weir.status().await["refused_reload"].as_str().map(str::to_owned)).await;
    assert!(refused.contains("can not listen on"), "{refused}");
    assert_eq!(weir.gateway().get("/api/products").send().await.expect(200).must("x-generation"), "5");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_door_that_goes_answers_what_was_on_its_way() {
    let shop = Shop::start().await;
    let weir = Weir::start(&shop.config()).await;
    let edge = weir.edge();
    let mut slow = edge.connect().await;
    slow.send("GET /slow-page HTTP/1.1\r\nHost: shop.test\r\nX-Stub-Latency: 1s\r\n\r\n").await;
    let mut idle = edge.connect().await;
    edge.get("/about").on(&mut idle).await.expect("an answer");
    eventually("the slow request is under way", async || shop.storefront().requests().iter().any(|r| r.target.contains("slow-page")).then_some(())).await;
    let mut config = shop.config().without("edge").without("warm_up");
    config = config.set("/server/threads", json!(2));
    weir.write_text(&format!("{:#}", config.set("/gateway/listen", weir.gateway().0.to_string()).set("/admin/listen", weir.admin().0.to_string()).0));
    reload(&weir).await;
    eventually("the address is closed", async || Connection::try_open(edge.0).await.is_err().then_some(())).await;
    let answer = slow.answer("GET").await.expect("the answer of the old configuration");
    assert!(answer.status == 200 || answer.status == 404, "{answer:#?}");
    assert!(idle.is_closed().await);
    weir.gateway().get("/api/products").send().await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_waits_for_requests_under_way() {
    let shop = Shop::start().await;
    let mut weir = Weir::start(&shop.config()).await;
    let mut slow = weir.gateway().connect().await;
    slow.send("GET /api/deals HTTP/1.1\r\nHost: shop.test\r\nX-Stub-Latency: 1s\r\n\r\n").await;
    eventually("the slow request is under way", async || (!shop.stubs.deals.handle().requests().is_empty()).then_some(())).await;
    let answer = tokio::spawn(async move { slow.answer("GET").await });
    assert_eq!(weir.terminate().await, Some(0));
    answer.await.expect("a task").expect("a whole answer").expect(200);
}
