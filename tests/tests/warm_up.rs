//! The warm-up: pages and answers are there before the first visitor asks, and several instances do the work once.

use serde_json::{Value, json};
use weir_tests::{Config, Outcome, RedisServer, Shop, WARM_UP_TOKEN, Weir, eventually, weir_command};

fn config(shop: &Shop) -> Config {
    let targets = json!(["/api/home", "edge://shop.test/categories", "edge://shop.test/categories?page=2"]);
    shop.config().set("/warm_up", json!({ "every": "1s", "token": WARM_UP_TOKEN, "urls": targets }))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_visitor_finds_everything_warm() {
    let shop = Shop::start().await;
    let weir = Weir::start(&config(&shop)).await;
    eventually("a round", async || (weir.metric("weir_warm_up_requests_total", &["outcome=\"ok\""]).await >= 3.0).then_some(())).await;
    for target in ["/categories", "/categories?page=2"] {
        let answer = weir.edge().get(target).send().await.expect(200);
        assert_eq!(answer.verdict(), "HIT", "{target}");
    }
    let home = weir.gateway().get("/api/home").send().await.expect(200);
    assert_eq!(home.verdict(), "HIT");
    // The next rounds refresh what is there although it is fresh.
    let before = (shop.storefront().hits_for("/categories"), shop.stubs.bff.handle().hits_for("/api/home"));
    eventually("another round", async || {
        let now = (shop.storefront().hits_for("/categories"), shop.stubs.bff.handle().hits_for("/api/home"));
        (now.0 >= before.0 + 2 && now.1 > before.1).then_some(())
    })
    .await;
    // The service counts a request when it arrives; its answer takes a moment to be there for visitors, who meanwhile get the old one.
    eventually("the refreshed answer", async || {
        let later = weir.gateway().get("/api/home").send().await.expect(200);
        assert_eq!(later.verdict(), "HIT");
        (later.body != home.body).then_some(())
    })
    .await;
    for request in shop.storefront().requests() {
        let private = ["cookie", "authorization", "x-warmup-token", "x-cache-refresh"];
        assert!(private.iter().all(|n| request.header(n).is_none()), "{request:?}");
    }
    assert_eq!(weir.metric("weir_warm_up_requests_total", &["outcome=\"failed\""]).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_to_warm_is_counted_and_stops_nothing() {
    let shop = Shop::start().await;
    let urls = json!(["/api/nowhere", "edge://shop.test/broken", "edge://shop.test/categories"]);
    let weir = Weir::start(&config(&shop).set("/warm_up/urls", urls)).await;
    eventually("a round", async || (weir.metric("weir_warm_up_requests_total", &["outcome=\"failed\""]).await >= 2.0).then_some(())).await;
    eventually("the page", async || (weir.edge().get("/categories").send().await.expect(200).verdict() == "HIT").then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_instances_warm_once_a_round() {
    let redis = RedisServer::start();
    let shop = Shop::start().await;
    // One round in the life of this test, by whichever instance is first.
    let config = config(&shop).set("/store", json!({ "url": redis.url(), "deadline": "20s" })).set("/warm_up/every", "1h");
    let one = Weir::start_as("one", &config).await;
    let two = Weir::start_as("two", &config).await;
    let warmed = async || one.metric("weir_warm_up_requests_total", &[]).await + two.metric("weir_warm_up_requests_total", &[]).await;
    eventually("a round", async || (warmed().await >= 3.0).then_some(())).await;
    for weir in [&one, &two] {
        for target in ["/categories", "/categories?page=2"] {
            assert_eq!(weir.edge().get(target).send().await.expect(200).verdict(), "HIT", "one instance's work is the other's too");
        }
        assert_eq!(weir.gateway().get("/api/home").send().await.expect(200).verdict(), "HIT");
    }
    // An instance looks for work half a second after its start: by now the other has looked too.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(warmed().await, 3.0, "one round, not one for each instance");
    assert_eq!(shop.storefront().hits_for("/categories"), 2, "one request for each of the two pages");
    assert_eq!(shop.stubs.bff.handle().hits_for("/api/home"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_want_to_warm_at_the_same_time_do_it_one_after_the_other() {
    let redis = RedisServer::start();
    let shop = Shop::start().await;
    let config = config(&shop).set("/store", json!({ "url": redis.url(), "deadline": "20s" })).set("/warm_up/every", "1h");
    let one = Weir::start_as("one", &config).await;
    let two = Weir::start_as("two", &config).await;
    eventually("the first round is over", async || [&one, &two].iter().any(|w| w.said().contains("warm-up round done")).then_some(())).await;
    // A round that takes its time, asked for at one instance; while it goes on, the other refuses to do the same.
    let slow = upstream_stubs::FaultRule { path_prefix: "/api/home".into(), latency_ms: Some(3000), ..Default::default() };
    shop.stubs.bff.handle().add_fault(slow).expect("a fault");
    let before = shop.stubs.bff.handle().hits();
    let ask = one.admin().ask("POST", "/warm-up").body("");
    let first = tokio::spawn(ask.send());
    eventually("it has begun", async || (shop.stubs.bff.handle().hits() > before).then_some(())).await;
    let second = two.admin().ask("POST", "/warm-up").body("").send().await.expect(409);
    assert!(second.json()["message"].is_string());
    // The report comes line by line while the round goes on.
    let report = first.await.expect("a report").expect(200).text();
    let lines: Vec<Value> = report.lines().map(|l| serde_json::from_str(l).expect("a line of JSON")).collect();
    assert_eq!(lines.first(), Some(&json!({ "targets": 3 })), "{report}");
    assert!(lines[1..4].iter().all(|l| l["cache"] == "REFRESH" && l["status"] == 200), "{report}");
    assert_eq!(lines.last(), Some(&json!({ "warmed": 3, "failed": 0 })), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn weir_warm_up_shows_how_far_it_is_and_what_failed() {
    let shop = Shop::start().await;
    let urls = json!(["/api/home", "edge://shop.test/categories", "/api/nowhere"]);
    let weir = Weir::start(&config(&shop).set("/warm_up/urls", urls).set("/warm_up/every", "1h")).await;
    eventually("the first round is over", async || weir.said().contains("warm-up round done").then_some(())).await;
    let command = weir_command(&["warm-up", "--admin", &weir.admin().0.to_string()]);
    let words: Vec<String> = std::iter::once(command.get_program()).chain(command.get_args()).map(|word| word.to_string_lossy().into_owned()).collect();
    // A line a target, then the sums.
    let arguments = words[1..].to_vec();
    let plain = tokio::task::spawn_blocking(move || Outcome::of(&arguments.iter().map(String::as_str).collect::<Vec<_>>())).await.expect("weir warm-up");
    assert_eq!(plain.code, Some(1), "{plain:?}");
    for (mark, place, target) in [(" ", "/3]", "/api/home"), (" ", "/3]", "edge://shop.test/categories"), ("!", "/3] 404", "/api/nowhere")] {
        assert!(plain.out.lines().any(|line| line.starts_with(&format!("{mark} [")) && line.contains(place) && line.ends_with(target)), "{target}: {plain:?}");
    }
    assert!(plain.err.contains("1 of 3 targets failed\n  gateway:/api/nowhere: 404") || plain.err.contains("1 of 3 targets failed\n  /api/nowhere: 404"), "{plain:?}");
    // On a terminal: one line that is written anew.
    let line = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
    let shown = tokio::task::spawn_blocking(move || std::process::Command::new("script").args(["-qec", &line, "/dev/null"]).stdin(std::process::Stdio::null()).output());
    let shown = String::from_utf8_lossy(&shown.await.expect("a terminal").expect("the command script").stdout).into_owned();
    for part in ["\r\x1b[K1 of 3 asked for, ", "\r\x1b[K3 of 3 asked for, 1 failed, ", "1 of 3 targets failed"] {
        assert!(shown.contains(part), "{part:?} in {shown:?}");
    }
    assert!(!shown.contains("categories"), "what went well is not listed: {shown:?}");
}
