//! One effect for one key: many duplicates over three processes on one Redis, owners that are killed, a Redis that is restarted. What counts is
//! what the orders service did: its ledger.

use serde_json::{Value, json};
use std::{collections::HashSet, time::Duration};
use upstream_stubs::{Fault, FaultRule};
use weir_tests::{Answer, Ask, Config, RedisServer, Shop, Weir, eventually, guarded};

/// The lease: an owner that falls silent is given up after it.
const LEASE: &str = "2s";

fn config(redis: &RedisServer, orders: &str, more: Value) -> Config {
    let mut plugin = json!({ "ttl": "1h", "lease": LEASE, "wait_timeout": "1m" });
    for (name, value) in more.as_object().expect("settings") {
        plugin[name] = value.clone();
    }
    Config(json!({ "gateway": { "_format_version": "3.0", "services": [] } }))
        .set("/store", json!({ "url": redis.url(), "deadline": "5s" }))
        .service("orders", orders, "/api/orders", json!([{ "name": "idempotency", "config": plugin }]))
}

/// A shop, a Redis, and three processes on them.
async fn three(more: Value) -> (Shop, RedisServer, [Weir; 3]) {
    let (shop, redis) = (Shop::start().await, RedisServer::start());
    let config = config(&redis, &shop.stubs.orders.url(), more);
    let weirs = [Weir::start_as("one", &config).await, Weir::start_as("two", &config).await, Weir::start_as("three", &config).await];
    (shop, redis, weirs)
}

fn order(weir: &Weir, key: &str) -> Ask {
    weir.gateway().post_json("/api/orders", &json!({ "items": [{ "product_id": 1 }] })).header("idempotency-key", key)
}

fn effects(shop: &Shop) -> usize {
    shop.stubs.orders.handle().ledger().len()
}

fn fault(shop: &Shop, rule: FaultRule) {
    shop.stubs.orders.handle().add_fault(FaultRule { path_prefix: "/api/orders".into(), ..rule }).expect("a fault");
}

fn slow(shop: &Shop, ms: u64) {
    fault(shop, FaultRule { latency_ms: Some(ms), ..FaultRule::default() });
}

fn reason(answer: &Answer) -> (u16, String) {
    (answer.status, answer.header("x-weir-reason").unwrap_or_default().to_owned())
}

/// For the record: what was tried, and how often the service acted.
fn shows(what: &str, shop: &Shop) {
    println!("idempotency, {what}: {} effect(s)", effects(shop));
}

/// Sends it in the background.
fn begin(ask: Ask) -> tokio::task::JoinHandle<Option<Answer>> {
    tokio::spawn(async move { ask.attempt().await.ok() })
}

async fn arrived(shop: &Shop) {
    eventually("the service is asked", async || (shop.stubs.orders.handle().hits() > 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_duplicates_over_three_processes_make_one_order() {
    let (shop, _redis, weirs) = three(json!({})).await;
    slow(&shop, 500);
    let asks = (0..100).map(|i| order(&weirs[i % 3], "the-one").send());
    let answers = guarded("a hundred answers", futures_util::future::join_all(asks)).await;
    let bodies: HashSet<_> = answers.iter().map(|a| (a.status, a.body.clone())).collect();
    assert_eq!((bodies.len(), answers[0].status), (1, 201), "{bodies:?}");
    assert_eq!(answers.iter().filter(|a| a.has("idempotency-replayed")).count(), 99);
    shows("100 duplicates over three processes", &shop);
    assert_eq!(effects(&shop), 1);
    let mut replayed = 0.0;
    for weir in &weirs {
        replayed += weir.metric("weir_plugin_outcomes_total", &["plugin=\"idempotency\"", "outcome=\"replayed\""]).await;
    }
    assert_eq!(replayed, 99.0);
}

/// The owner hangs between taking the key and sending: its connection to the service, which is to be TLS, never gets ready.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_killed_before_it_sends_frees_the_key() {
    let (shop, redis) = (Shop::start().await, RedisServer::start());
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
    let nowhere = format!("https://{}", silent.local_addr().expect("an address"));
    let mut owner = Weir::start_as("owner", &config(&redis, &nowhere, json!({}))).await;
    let others = config(&redis, &shop.stubs.orders.url(), json!({}));
    let others = [Weir::start_as("two", &others).await, Weir::start_as("three", &others).await];
    let first = begin(order(&owner, "k"));
    eventually("the key is taken", async || redis.command("KEYS *ledger:*").ok()?.contains("idempotency:").then_some(())).await;
    let waiting: Vec<_> = (0..20).map(|i| begin(order(&others[i % 2], "k"))).collect();
    owner.kill();
    assert!(first.await.expect("no panic").is_none(), "its client heard nothing");
    for one in waiting {
        let answer = guarded("the next owner's answer", one).await.expect("no panic").expect("an answer");
        assert_eq!(answer.status, 201, "{answer:#?}");
    }
    shows("the owner killed before it sends, 20 wait", &shop);
    assert_eq!(effects(&shop), 1);
}

/// The service has done its work, and its answer is still to come when the owner dies.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_killed_during_the_call_leaves_an_unknown_outcome_and_one_order() {
    let (shop, _redis, mut weirs) = three(json!({})).await;
    fault(&shop, FaultRule { fault: Some(Fault::Hang), after_work: true, times: Some(1), ..FaultRule::default() });
    let first = begin(order(&weirs[0], "k"));
    eventually("the order is made", async || (effects(&shop) == 1).then_some(())).await;
    let waiting: Vec<_> = (0..20).map(|i| begin(order(&weirs[1 + i % 2], "k"))).collect();
    weirs[0].kill();
    assert!(first.await.expect("no panic").is_none());
    for one in waiting {
        let answer = guarded("word of the unknown outcome", one).await.expect("no panic").expect("an answer");
        assert_eq!(reason(&answer), (409, "unknown".into()), "{answer:#?}");
        assert!(answer.json()["message"].as_str().expect("a message").contains("not known"));
    }
    weirs[0].restart().await;
    assert_eq!(reason(&order(&weirs[0], "k").send().await), (409, "unknown".into()));
    shows("the owner killed during the call, 20 wait", &shop);
    assert_eq!(effects(&shop), 1);
    assert!(weirs[1].metric("weir_plugin_outcomes_total", &["plugin=\"idempotency\"", "outcome=\"unknown\""]).await > 0.0);
}

/// The service has answered, and Redis does not take the outcome when the owner dies.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_killed_before_it_wrote_the_answer_leaves_one_order() {
    let (shop, redis, mut weirs) = three(json!({})).await;
    slow(&shop, 300);
    let first = begin(order(&weirs[0], "k"));
    arrived(&shop).await;
    redis.pause();
    eventually("the order is made", async || (effects(&shop) == 1).then_some(())).await;
    weirs[0].kill();
    redis.resume();
    assert!(first.await.expect("no panic").is_none_or(|answer| answer.status == 201));
    for weir in &weirs[1..] {
        // While Redis finds its way back it is 503.
        let answer = eventually("an answer", async || Some(order(weir, "k").send().await).filter(|a| a.status != 503)).await;
        assert!(matches!(reason(&answer), (409, why) if why == "unknown") || answer.status == 201 && answer.has("idempotency-replayed"), "{answer:#?}");
    }
    shows("the owner killed before it wrote the answer", &shop);
    assert_eq!(effects(&shop), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_killed_after_the_call_leaves_its_answer() {
    let (shop, _redis, mut weirs) = three(json!({})).await;
    let first = order(&weirs[0], "k").send().await.expect(201);
    weirs[0].kill();
    for weir in &weirs[1..] {
        let again = order(weir, "k").send().await.expect(201);
        assert_eq!((again.must("idempotency-replayed"), &again.body), ("true", &first.body));
    }
    shows("the owner killed after the call", &shop);
    assert_eq!(effects(&shop), 1);
}

/// A Redis that keeps nothing on disk comes back empty while the call is under way: the owner enters its key again, and until then nobody takes
/// an unknown key for a free one.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_lost_its_memory_makes_no_second_order() {
    let (shop, mut redis, weirs) = three(json!({ "in_flight": "conflict" })).await;
    slow(&shop, 5000);
    let first = begin(order(&weirs[0], "k"));
    arrived(&shop).await;
    for weir in &weirs[1..] {
        assert_eq!(reason(&order(weir, "k").send().await), (409, "in-flight".into()));
    }
    redis.restart();
    let mut asked = 0;
    while !first.is_finished() {
        for weir in &weirs {
            let answer = order(weir, "k").send().await;
            assert!(matches!(answer.status, 503 | 409) || answer.has("idempotency-replayed"), "{answer:#?}");
            asked += 1;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(asked > 0);
    let first = first.await.expect("no panic").expect("an answer").expect(201);
    for weir in &weirs {
        let again = eventually("the answer is kept", async || Some(order(weir, "k").send().await).filter(|a| a.status == 201)).await;
        assert_eq!((again.must("idempotency-replayed"), &again.body), ("true", &first.body));
    }
    // A key that nobody remembers may have been used before the loss.
    let answer = order(&weirs[1], "another").send().await;
    assert_eq!(reason(&answer), (503, "store-lost".into()));
    assert!(answer.has("retry-after"));
    shows("Redis without a disk restarted during the call", &shop);
    assert_eq!(effects(&shop), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_with_a_disk_goes_on_where_it_was() {
    let shop = Shop::start().await;
    let mut redis = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let config = config(&redis, &shop.stubs.orders.url(), json!({}));
    let weirs = [Weir::start_as("one", &config).await, Weir::start_as("two", &config).await];
    let first = order(&weirs[0], "k").send().await.expect(201);
    redis.restart();
    for weir in &weirs {
        let again = eventually("Redis is back", async || Some(order(weir, "k").send().await).filter(|a| a.status != 503)).await.expect(201);
        assert_eq!((again.must("idempotency-replayed"), &again.body), ("true", &first.body));
        order(weir, "other").send().await.expect(201);
    }
    shows("Redis with a disk restarted, two keys", &shop);
    assert_eq!(effects(&shop), 2);
}

/// Bodies far beyond what is held are compared to their last byte, whatever the protocol.
#[tokio::test(flavor = "multi_thread")]
async fn long_bodies_are_compared_whole() {
    let (shop, redis) = (Shop::start().await, RedisServer::start());
    let weir = Weir::start(&config(&redis, &shop.stubs.orders.url(), json!({ "max_body": "64KB" }))).await;
    let body = |end: &str| format!("{{\"items\":[{{\"product_id\":1}}]{}{end}}}", " ".repeat(500_000));
    let post = |end: &str| weir.gateway().post("/api/orders", "application/json", body(end)).header("idempotency-key", "long");
    let first = post(" ").send().await.expect(201);
    for again in [post(" ").send().await, post(" ").send_h2().await] {
        assert_eq!((again.status, again.must("idempotency-replayed"), &again.body), (201, "true", &first.body));
    }
    for other in [post("\t").send().await, post("\t").send_h2().await, post("  ").send().await, post("").send().await] {
        assert_eq!(reason(&other), (422, "mismatch".into()));
        assert!(!other.has("idempotency-replayed"));
    }
    assert_eq!(effects(&shop), 1);
    // The connection goes on after such an answer.
    let mut connection = post(" ").connect().await;
    for end in [" ", "\t", " "] {
        let answer = post(end).on(&mut connection).await.expect("an answer");
        assert_eq!(answer.status, if end == " " { 201 } else { 422 });
    }
}
