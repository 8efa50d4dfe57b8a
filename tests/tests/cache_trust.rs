//! Instances that share a Redis: how soon a purge is heard, and what happens where it is not.

use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use weir_tests::{
    Config, HOST, RedisServer, Weir,
    cache_help::{Origin, Told, until_hit, until_other},
    eventually,
};

fn config(origin: &Origin, store: &str) -> Config {
    Config(json!({
        "store": { "url": store, "deadline": "2s", "trust_memory": "1s" },
        "edge": { "origin": origin.url(), "deployment": "trust", "pages": [{ "path": "/**", "ttl": "1h", "stale_while_revalidate": "1h" }] },
    }))
}

async fn counting() -> Origin {
    Origin::start(|seen| Told::page(&format!("version {}", seen.count))).await
}

async fn purge(at: &Weir, target: &str) -> Value {
    let order = json!({ "url": format!("http://{HOST}{target}") });
    at.admin().post_json("/purge", &order).send().await.expect(200).json()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_is_everywhere_within_a_tenth_of_a_second() {
    let (redis, origin) = (RedisServer::start(), counting().await);
    let mut weirs = Vec::new();
    for name in ["first", "second", "third"] {
        weirs.push(Weir::start_as(name, &config(&origin, &redis.url())).await);
    }
    // A loaded machine may delay any one of them: what counts is how fast it is when nothing else gets in the way.
    let mut best = Duration::MAX;
    for round in 0..40 {
        let target = format!("/p/{round}");
        let mut old = None;
        for weir in &weirs {
            old = Some(until_hit(weir.edge(), &target).await);
        }
        let old = old.expect("a page");
        let mut connections = Vec::new();
        for weir in &weirs {
            connections.push(weir.edge().connect().await);
        }
        let report = purge(&weirs[round % 3], &target).await;
        assert_eq!((&report["store_reached"], &report["others_told"]), (&json!(true), &json!(true)), "{report}");
        let answered = Instant::now();
        for (weir, connection) in weirs.iter().zip(&mut connections) {
            while weir.edge().get(&target).on(connection).await.expect("a whole answer").body == old.body {
                assert!(answered.elapsed() < weir_tests::GUARD, "the purge is never heard");
            }
        }
        best = best.min(answered.elapsed());
    }
    assert!(best < Duration::from_millis(100), "{best:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_hears_no_messages_at_all_still_learns_of_purges() {
    let (redis, origin) = (RedisServer::start(), counting().await);
    // May read, write and count, but subscribe to nothing.
    redis.command("ACL SETUSER deaf on >pw ~* resetchannels +@all").expect("a user");
    let deaf = format!("redis://deaf:pw@127.0.0.1:{}", redis.port());
    let (first, second) = (Weir::start_as("first", &config(&origin, &redis.url())).await, Weir::start_as("deaf", &config(&origin, &deaf)).await);
    for round in 0..3 {
        let target = format!("/p/{round}");
        let old = until_hit(first.edge(), &target).await;
        assert_eq!(until_hit(second.edge(), &target).await.body, old.body);
        purge(&first, &target).await;
        // Fresh for an hour: only the count of purges can be the reason.
        until_other(second.edge(), &target, &old).await;
    }
    let forgotten = async || (second.metric("weir_cache_memory_distrusted", &[]).await >= 1.0).then_some(());
    eventually("the purges are counted as missed", forgotten).await;
    assert_eq!(first.metric("weir_cache_memory_distrusted", &[]).await, 0.0);
}

/// Passes bytes on to a Redis, until it is told to hold everything back. Nothing is ever closed.
struct Wire {
    url: String,
    held: Arc<AtomicBool>,
}

impl Wire {
    async fn to(redis: &RedisServer) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("redis://{}", listener.local_addr().expect("an address"));
        let (held, port) = (Arc::new(AtomicBool::new(false)), redis.port());
        let shared = held.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
                let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                tokio::spawn(pass(near_in, far_out, shared.clone()));
                tokio::spawn(pass(far_in, near_out, shared.clone()));
            }
        });
        Wire { url, held }
    }
}

async fn pass(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin, held: Arc<AtomicBool>) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut bytes).await {
        while held.load(SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if to.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_whose_redis_is_silent_soon_trusts_its_memory_no_more() {
    let (redis, origin) = (RedisServer::start(), counting().await);
    let wire = Wire::to(&redis).await;
    let cut_off = config(&origin, &wire.url).set("/store/deadline", "200ms");
    let (first, second) = (Weir::start_as("first", &config(&origin, &redis.url())).await, Weir::start_as("cut off", &cut_off).await);
    let old = until_hit(first.edge(), "/p").await;
    assert_eq!(until_hit(second.edge(), "/p").await.body, old.body);
    assert_eq!(second.metric("weir_cache_memory_trusted", &[]).await, 1.0);
    wire.held.store(true, SeqCst);
    purge(&first, "/p").await;
    let new = until_other(first.edge(), "/p", &old).await;
    // Neither Redis nor a message can tell it.
    let own = until_other(second.edge(), "/p", &old).await;
    assert_ne!(own.body, new.body, "from the origin itself");
    // The origin fails as well: what it has is better than an error.
    origin.now_says(|_| Told::new(503, "down"));
    let helped = async || Some(second.edge().get("/p").send().await).filter(|a| a.detail() == "unconfirmed");
    let helped = eventually("the page is used although a purge may mean it", helped).await;
    assert_eq!((helped.status, helped.verdict(), &helped.body), (200, "STALE", &own.body));
    wire.held.store(false, SeqCst);
    let trusted = async || (second.metric("weir_cache_memory_trusted", &[]).await == 1.0).then_some(());
    eventually("Redis is back, and the account is settled", trusted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_redis_slows_no_hit_in_memory() {
    let (redis, origin) = (RedisServer::start(), counting().await);
    // Calls would wait for longer than this test may take.
    let patient = config(&origin, &redis.url()).set("/store/deadline", "10m").set("/store/trust_memory", "1h");
    let weir = Weir::start(&patient).await;
    let page = until_hit(weir.edge(), "/p").await;
    redis.pause();
    for _ in 0..50 {
        let answer = weir.edge().get("/p").send().await.expect(200);
        assert_eq!((answer.verdict(), &answer.body), ("HIT", &page.body));
    }
    redis.resume();
}
