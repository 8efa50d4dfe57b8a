//! Redis is killed and comes back while clients go on asking: they must not notice.

use serde_json::json;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};
use weir_tests::{Ask, Config, Connection, RedisServer, Shop, Weir, eventually};

/// Clients for each kind of request.
const CLIENTS: usize = 4;

/// Clients who ask the same again and again, each on a connection of their own that they keep.
struct Load {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    clients: Vec<tokio::task::JoinHandle<Vec<(String, String)>>>,
}

impl Load {
    fn start(kinds: impl IntoIterator<Item = Box<dyn Fn(u64) -> Ask + Send + Sync>>) -> Load {
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut clients = Vec::new();
        for kind in kinds {
            let kind = Arc::new(kind);
            for _ in 0..CLIENTS {
                clients.push(tokio::spawn(client(kind.clone(), stop.clone(), asked.clone())));
            }
        }
        Load { stop, asked, clients }
    }

    /// Lets so many more requests be answered.
    async fn more(&self, requests: u64) {
        let goal = self.asked.load(SeqCst) + requests;
        eventually("answers keep coming", async || (self.asked.load(SeqCst) >= goal).then_some(())).await;
    }

    /// Ends it; what went wrong, by kind of request, with how often.
    async fn end(self) -> BTreeMap<(String, String), usize> {
        self.stop.store(true, SeqCst);
        let mut wrong = BTreeMap::new();
        for client in self.clients {
            for found in client.await.expect("a client") {
                *wrong.entry(found).or_default() += 1;
            }
        }
        wrong
    }
}

async fn client(kind: Arc<Box<dyn Fn(u64) -> Ask + Send + Sync>>, stop: Arc<AtomicBool>, asked: Arc<AtomicU64>) -> Vec<(String, String)> {
    let mut wrong = Vec::new();
    let mut connection: Option<Connection> = None;
    while !stop.load(SeqCst) {
        let ask = kind(asked.fetch_add(1, SeqCst));
        let line = String::from_utf8_lossy(&ask.bytes()).lines().next().unwrap_or_default().split('?').next().unwrap_or_default().to_owned();
        let mut on = match connection.take() {
            Some(on) => on,
            None => ask.connect().await,
        };
        match ask.on(&mut on).await {
            Ok(answer) if answer.status < 500 => {
                if answer.header("connection") != Some("close") {
                    connection = Some(on);
                }
            }
            Ok(answer) => wrong.push((line, format!("{} {}", answer.status, answer.text()))),
            Err(broken) => wrong.push((line, broken.to_string())),
        }
    }
    wrong
}

fn config(shop: &Shop, redis: &RedisServer) -> Config {
    shop.config()
        .set("/store", json!({ "url": redis.url() }))
        .pages(json!([{ "path": "/categories", "ttl": "1s" }, { "path": "/page/**", "ttl": "60s" }, { "path": "/about", "ttl": "60s" }]))
        .service("limited", &shop.stubs.products.url(), "/echo", json!([
            { "name": "rate-limiting", "config": { "second": 1_000_000, "limit_by": "ip", "policy": "redis" } },
        ]))
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_goes_and_comes_back_under_load() {
    let mut redis = RedisServer::start();
    let shop = Shop::start().await;
    let weir = Weir::start(&config(&shop, &redis)).await;
    weir.becomes("ready").await;
    let (edge, gateway) = (weir.edge(), weir.gateway());
    let load = Load::start([
        Box::new(move |_| edge.get("/categories")) as Box<dyn Fn(u64) -> Ask + Send + Sync>,
        // A new page each time: every one needs lock and store.
        Box::new(move |n| edge.get(&format!("/page/{n}"))),
        Box::new(move |n| edge.get(&format!("/search?q={n}"))),
        Box::new(move |_| gateway.get("/api/home")),
        Box::new(move |n| gateway.get(&format!("/api/home?n={n}"))),
        Box::new(move |_| gateway.get("/echo/limited")),
        Box::new(move |n| edge.get(&format!("/api/products?limit={}", n % 9 + 1))),
    ]);
    load.more(500).await;
    for round in 1..=2 {
        redis.kill();
        weir.becomes("degraded").await;
        load.more(1000).await;
        assert_eq!(weir.readiness().await, "degraded", "round {round}");
        redis.restart();
        weir.becomes("ready").await;
        load.more(500).await;
    }
    // Not gone but silent: nothing answers, and no connection is closed.
    redis.pause();
    weir.becomes("degraded").await;
    load.more(500).await;
    redis.resume();
    weir.becomes("ready").await;
    load.more(500).await;
    let wrong = load.end().await;
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(weir.metric("weir_store_up", &[]).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_pages_come_from_memory_and_origin() {
    let mut redis = RedisServer::start();
    let shop = Shop::start().await;
    // Long enough that only a Redis that is gone counts as gone, however busy the machine.
    let mut weir = Weir::start(&config(&shop, &redis).set("/store/deadline", "20s")).await;
    assert_eq!(weir.edge().get("/about").send().await.expect(200).verdict(), "MISS");
    redis.kill();
    weir.becomes("degraded").await;
    assert_eq!(weir.edge().get("/about").send().await.expect(200).verdict(), "HIT", "memory still has it");
    assert_eq!(weir.edge().get("/page/1").send().await.expect(200).verdict(), "MISS");
    assert_eq!(weir.edge().get("/page/1").send().await.expect(200).verdict(), "HIT", "and takes new ones");
    assert_eq!(weir.gateway().get("/api/home").send().await.expect(200).verdict(), "MISS");
    assert_eq!(weir.gateway().get("/api/home").send().await.expect(200).verdict(), "HIT");

    // A program that starts without its store serves all the same.
    weir.restart().await;
    assert_eq!(weir.readiness().await, "degraded");
    assert_eq!(weir.edge().get("/about").send().await.expect(200).verdict(), "MISS");
    assert_eq!(weir.edge().get("/about").send().await.expect(200).verdict(), "HIT");
    redis.restart();
    weir.becomes("ready").await;
    // What came while Redis was away is not in it; what comes now is, and survives this process.
    assert_eq!(weir.edge().get("/page/2").send().await.expect(200).verdict(), "MISS");
    eventually("the page is in Redis", async || redis.command("KEYS *cache:{*/page/2*").ok().filter(|found| !found.starts_with("*0"))).await;
    weir.restart().await;
    assert_eq!(weir.edge().get("/page/2").send().await.expect(200).verdict(), "HIT");
}
