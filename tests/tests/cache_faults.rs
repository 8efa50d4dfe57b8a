//! What goes wrong around a fill: clients that leave, origins that die, messages that are lost, instances that sleep. No truncated page and no
//! outdated one ever comes out of the cache because of it.

use serde_json::{Value, json};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};
use weir_tests::{
    Answer, Config, HOST, RedisServer, Weir,
    cache_help::{Gate, Origin, Point, Told, signal, until_hit, until_other},
    eventually,
};

const SIZE: usize = 60_000;

fn config(origin: &Origin, rules: Value) -> Config {
    Config(json!({ "store": "memory", "edge": { "origin": origin.url(), "deployment": "faults", "pages": rules } }))
}

fn rules(ttl: &str) -> Value {
    json!([{ "path": "/**", "ttl": ttl }])
}

/// On a loaded machine a call may take long; an instance that went on alone would do so rightly, and fail the test.
fn store(redis: &RedisServer) -> Value {
    json!({ "url": redis.url(), "deadline": "2s" })
}

/// Whether an answer is a whole page.
fn whole(answer: &Answer) -> bool {
    answer.status == 200 && answer.text().starts_with("<!DOCTYPE html>") && answer.text().ends_with("</html>")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_does_not_end_the_fill() {
    for chunked in [false, true] {
        for point in [Point::BeforeHead, Point::AfterHead, Point::Body(1), Point::Body(20_000), Point::Body(SIZE)] {
            let gate = Gate::closed();
            let at = gate.clone();
            let origin = Origin::start(move |seen| {
                let page = Told::large_page(&format!("render {}", seen.count), SIZE).waits(point, &at);
                if chunked { page.chunked() } else { page }
            })
            .await;
            let weir = Weir::start(&config(&origin, rules("60s"))).await;
            let mut first = weir.edge().connect().await;
            first.send(format!("GET /p HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
            eventually("the origin is asked", async || (origin.hits("/p") == 1).then_some(())).await;
            // What comes before the point has come before the client goes.
            if let Point::Body(_) = point {
                let (status, _) = first.head().await.expect("a head");
                assert_eq!(status, 200);
            }
            drop(first);
            let mut second = weir.edge().connect().await;
            second.send(format!("GET /p HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
            gate.open();
            let answer = second.answer("GET").await.unwrap_or_else(|why| panic!("{point:?}, chunked {chunked}: {why}"));
            assert!(whole(&answer), "{point:?}, chunked {chunked}");
            let hit = until_hit(weir.edge(), "/p").await;
            assert_eq!(hit.body, answer.body);
            assert_eq!(origin.hits("/p"), 1, "{point:?}, chunked {chunked}: the first client's fill was good for everyone");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_clients_leave_the_page_is_still_kept() {
    for point in [Point::BeforeHead, Point::AfterHead, Point::Body(20_000)] {
        let gate = Gate::closed();
        let at = gate.clone();
        let origin = Origin::start(move |_| Told::large_page("alone", SIZE).waits(point, &at)).await;
        let weir = Weir::start(&config(&origin, rules("60s"))).await;
        let mut clients = Vec::new();
        for _ in 0..5 {
            let mut client = weir.edge().connect().await;
            client.send(format!("GET /p HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
            clients.push(client);
        }
        eventually("the origin is asked", async || (origin.hits("/p") == 1).then_some(())).await;
        drop(clients);
        gate.open();
        let answer = until_hit(weir.edge(), "/p").await;
        assert!(whole(&answer), "{point:?}");
        assert_eq!(origin.hits("/p"), 1, "{point:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_killed_in_mid_body_leaves_nothing_behind() {
    let redis = RedisServer::start();
    let origin = Origin::start(|_| Told::page("not yet")).await;
    let config = config(&origin, rules("60s")).set("/store", store(&redis));
    let weirs = [Weir::start_as("first", &config).await, Weir::start_as("second", &config).await];
    let length = SIZE;
    for (number, (cut, chunked)) in [(0, false), (0, true), (1, false), (1, true), (30_000, false), (30_000, true), (length - 1, false), (length - 1, true)].into_iter().enumerate() {
        let target = format!("/p/{number}");
        origin.now_says(move |_| {
            let page = Told::large_page("killed", SIZE).cut_after(cut);
            if chunked { page.chunked() } else { page }
        });
        for weir in &weirs {
            for _ in 0..2 {
                // Whole it can not be; that it is not shows to the client.
                if let Ok(answer) = weir.edge().get(&target).attempt().await {
                    assert!(answer.status >= 500, "{target}: {} bytes with status {}", answer.body.len(), answer.status);
                    assert_ne!(answer.verdict(), "HIT");
                }
            }
        }
        origin.now_says(|_| Told::large_page("alive", SIZE));
        let answer = until_hit(weirs[0].edge(), &target).await;
        assert!(whole(&answer) && answer.text().contains("alive"));
        assert_eq!(until_hit(weirs[1].edge(), &target).await.body, answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_over_its_time_helps_out_when_the_origin_fails() {
    let origin = Origin::start(|_| Told::large_page("good", SIZE)).await;
    let both = json!([{ "path": "/helped/**", "ttl": "1s", "stale_if_error": "10m" }, { "path": "/alone/**", "ttl": "1s" }]);
    let weir = Weir::start(&config(&origin, both)).await;
    let mut good = None;
    for page in ["/helped/1", "/alone/1"] {
        let answer = weir.edge().get(page).send().await.expect(200);
        assert!(whole(&answer));
        good = Some(answer);
    }
    let good = good.expect("a page");
    let failures = [
        ("503", Told::new(503, "down")),
        ("500", Told::new(500, "down").with("cache-control", "s-maxage=60")),
        ("cut in the head's wake", Told::large_page("bad", SIZE).cut_after(0)),
        ("cut in mid-body", Told::large_page("bad", SIZE).cut_after(SIZE / 2)),
    ];
    for (name, told) in failures {
        origin.now_says(move |_| told.clone());
        // Past the second for which it is fresh.
        let over = async || match weir.edge().get("/helped/1").attempt().await {
            Ok(answer) if answer.verdict() == "HIT" => None,
            other => Some(other),
        };
        match eventually("the page's time is over", over).await {
            Ok(answer) => {
                assert_eq!((answer.status, answer.verdict(), &answer.body), (200, "STALE", &good.body), "{name}");
            }
            // Its head was out already.
            Err(broken) => assert!(name.starts_with("cut"), "{name}: {broken}"),
        }
        let over = async || match weir.edge().get("/alone/1").attempt().await {
            Ok(answer) if answer.verdict() == "HIT" => None,
            other => Some(other),
        };
        if let Ok(answer) = eventually("the page's time is over", over).await {
            assert!(answer.status >= 500, "{name}: the rule allows no stale page: {} {}", answer.status, answer.verdict());
        }
    }
    // Whatever was tried, the old page is still whole.
    origin.now_says(|_| Told::new(503, "down"));
    let answer = weir.edge().get("/helped/1").send().await;
    assert_eq!((answer.status, answer.verdict(), &answer.body), (200, "STALE", &good.body));
    origin.now_says(|_| Told::large_page("again", SIZE));
    let answer = until_hit(weir.edge(), "/helped/1").await;
    assert!(whole(&answer) && answer.text().contains("again"));
}

struct Three {
    redis: RedisServer,
    origin: Origin,
    weirs: Vec<Weir>,
}

impl Three {
    async fn open(origin: Origin) -> Three {
        let redis = RedisServer::start();
        let config = config(&origin, rules("1h")).set("/store", store(&redis));
        let mut weirs = Vec::new();
        for name in ["first", "second", "third"] {
            weirs.push(Weir::start_as(name, &config).await);
        }
        Three { redis, origin, weirs }
    }

    async fn purge(&self, at: usize, target: &str) -> Value {
        let order = json!({ "url": format!("http://{HOST}{target}") });
        self.weirs[at].admin().post_json("/purge", &order).send().await.expect(200).json()
    }
}

fn counted(seen: &weir_tests::cache_help::Seen) -> Told {
    Told::page(&format!("version {}", seen.count))
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_messages_are_noticed() {
    let three = Three::open(Origin::start(counted).await).await;
    for round in 0..6 {
        let target = format!("/p/{round}");
        let mut old = None;
        for weir in &three.weirs {
            old = Some(until_hit(weir.edge(), &target).await);
        }
        let old = old.expect("a page");
        // While the purge is under way, nobody who listens has a connection for longer than a moment.
        let stop = Arc::new(AtomicBool::new(false));
        let (over, port) = (stop.clone(), three.redis.port());
        let killer = std::thread::spawn(move || {
            while !over.load(SeqCst) {
                let done = std::process::Command::new("redis-cli").args(["-p", &port.to_string(), "CLIENT", "KILL", "TYPE", "pubsub"]).output();
                assert!(done.is_ok_and(|d| d.status.success()), "redis-cli");
            }
        });
        let report = three.purge(round % 3, &target).await;
        stop.store(true, SeqCst);
        killer.join().expect("the killer");
        assert_eq!((&report["entries"], &report["store_reached"]), (&json!(1), &json!(true)), "{report}");
        let mut new = None;
        for weir in &three.weirs {
            // Fresh for an hour: only the purge, or the gap, can be the reason.
            new = Some(until_other(weir.edge(), &target, &old).await);
        }
        for weir in &three.weirs {
            for _ in 0..5 {
                let answer = weir.edge().get(&target).send().await.expect(200);
                assert_ne!(answer.body, old.body, "what is gone stays gone (now there is {:?})", new.as_ref().map(Answer::text));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_slept_through_a_purge_hears_of_it() {
    let three = Three::open(Origin::start(counted).await).await;
    let mut old = None;
    for weir in &three.weirs {
        old = Some(until_hit(weir.edge(), "/p").await);
    }
    let old = old.expect("a page");
    signal(&three.weirs[1], "-STOP");
    three.purge(0, "/p").await;
    let new = until_other(three.weirs[2].edge(), "/p", &old).await;
    signal(&three.weirs[1], "-CONT");
    assert_eq!(until_other(three.weirs[1].edge(), "/p", &old).await.body, new.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_that_began_before_a_purge_is_not_kept_after_it() {
    let gate = Gate::closed();
    let at = gate.clone();
    // The first answer is made before the purge and arrives after it.
    let origin = Origin::start(move |seen| if seen.count == 1 { counted(seen).waits(Point::AfterHead, &at) } else { counted(seen) }).await;
    let three = Three::open(origin).await;
    let early = tokio::spawn(three.weirs[0].edge().get("/p").send());
    eventually("the origin is asked", async || (three.origin.hits("/p") == 1).then_some(())).await;
    three.purge(1, "/p").await;
    // The message is on its way to the first instance; when it is there, a new client gets a fetch of its own.
    let late = eventually("a new client does not wait for the old fetch", async || {
        let answer = tokio::time::timeout(std::time::Duration::from_secs(3), three.weirs[0].edge().get("/p").attempt()).await;
        answer.ok().and_then(Result::ok).filter(|a| a.status == 200)
    })
    .await;
    assert!(late.text().contains("version 2"), "{}", late.text());
    gate.open();
    let early = early.await.expect("a client").expect(200);
    assert!(early.text().contains("version 1"), "who came before the purge gets what was made for him: {}", early.text());
    for weir in &three.weirs {
        for _ in 0..5 {
            let answer = weir.edge().get("/p").send().await.expect(200);
            assert!(!answer.text().contains("version 1"), "{}: {}", answer.verdict(), answer.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_wakes_with_an_old_lease_overwrites_nothing() {
    let gate = Gate::closed();
    let at = gate.clone();
    let origin = Origin::start(move |seen| {
        let page = Told::large_page(&format!("version {}", seen.count), SIZE);
        if seen.count == 1 { page.waits(Point::Body(SIZE / 2), &at) } else { page }
    })
    .await;
    let three = Three::open(origin).await;
    let sleeper = tokio::spawn(three.weirs[0].edge().get("/p").attempt());
    eventually("the origin is asked", async || (three.origin.hits("/p") == 1).then_some(())).await;
    signal(&three.weirs[0], "-STOP");
    // Its lease runs out; then another fetches, and has the newer version.
    let newer = three.weirs[1].edge().get("/p").send().await.expect(200);
    assert!(newer.text().contains("version 2"), "{}", newer.verdict());
    assert_eq!(until_hit(three.weirs[2].edge(), "/p").await.body, newer.body);
    gate.open();
    signal(&three.weirs[0], "-CONT");
    // Its own client gets what was fetched for him, or the newer one.
    if let Ok(answer) = sleeper.await.expect("a client") {
        assert!(whole(&answer), "{}", answer.status);
    }
    for _ in 0..5 {
        for weir in &three.weirs[1..] {
            let answer = weir.edge().get("/p").send().await.expect(200);
            assert_eq!((answer.verdict(), &answer.body), ("HIT", &newer.body), "the newer version stays");
        }
    }
    let awake = until_hit(three.weirs[0].edge(), "/p").await;
    assert_eq!(awake.body, newer.body, "and the sleeper has it too");
    // Nobody's memory, only the store.
    let fourth = Weir::start_as("fourth", &config(&three.origin, rules("1h")).set("/store", store(&three.redis))).await;
    let answer = fourth.edge().get("/p").send().await.expect(200);
    assert_eq!((answer.verdict(), &answer.body), ("HIT", &newer.body));
    assert_eq!(three.origin.hits("/p"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_origin_is_asked_by_no_more_fills_than_its_rule_allows() {
    let gate = Gate::closed();
    let at = gate.clone();
    let origin = Origin::start(move |seen| Told::page(seen.path()).waits(Point::BeforeHead, &at)).await;
    let rules = json!([{ "path": "/few/**", "ttl": "60s", "max_fills": 2 }, { "path": "/**", "ttl": "60s" }]);
    let weir = Weir::start(&config(&origin, rules)).await;
    let pages = |folder: &'static str| (0..6).map(move |n| format!("/{folder}/{n}"));
    let asked = |folder: &'static str| pages(folder).map(|page| origin.hits(&page)).sum::<usize>();
    let clients: Vec<_> = pages("few").chain(pages("many")).map(|page| tokio::spawn(weir.edge().get(&page).send())).collect();
    eventually("all are there", async || (weir.metric("weir_connections", &[]).await >= 12.0 && asked("many") == 6).then_some(())).await;
    eventually("as many as may be are under way", async || (asked("few") >= 2).then_some(())).await;
    assert_eq!(asked("few"), 2);
    gate.open();
    for client in clients {
        assert!(whole(&client.await.expect("a client")));
    }
    assert_eq!(asked("few"), 6, "each in its turn, and none twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_keeps_a_page_as_long_as_it_may_be_served_stale() {
    let redis = RedisServer::start();
    let origin = Origin::start(|_| Told::page("x")).await;
    let rules = json!([{ "path": "/swr", "ttl": "60s", "stale_while_revalidate": "1h" }, { "path": "/sie", "ttl": "60s", "stale_if_error": "1h" }, { "path": "/none", "ttl": "60s" }]);
    let weir = Weir::start(&config(&origin, rules).set("/store", store(&redis))).await;
    for (page, least, most) in [("/swr", 3600, 3660), ("/sie", 3600, 3660), ("/none", 1, 60)] {
        redis.command("FLUSHALL").expect("an answer");
        weir.edge().get(page).send().await.expect(200);
        // `*1`, a line with the name's length, the name.
        let named = async || redis.command("KEYS weir:blob*").expect("an answer").split("\r\n").nth(2).map(str::to_owned);
        let name = eventually("the page is in the store", named).await;
        let left: i64 = redis.command(&format!("TTL {name}")).expect("an answer").trim_start_matches(':').trim().parse().expect("seconds");
        assert!((least..=most).contains(&left), "{page}: {left} s");
    }
}
