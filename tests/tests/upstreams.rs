//! Upstreams of several endpoints: one that fails is left out and comes back, one that drains gets nothing new, browsers stick to theirs.

use serde_json::{Value, json};
use weir_tests::{Answer, Config, Weir, cache_help::{Gate, Origin, Point, Told}, eventually};

/// An origin that says who it is; `/health` too.
async fn named(name: &'static str) -> Origin {
    Origin::start(move |_| Told::new(200, name)).await
}

fn target(origin: &Origin, weight: u32) -> Value {
    json!({ "target": address(origin), "weight": weight })
}

fn address(origin: &Origin) -> String {
    origin.url().trim_start_matches("http://").to_owned()
}

/// A gateway before one upstream named `shop`, with these settings and targets.
fn config(settings: Value, targets: Value) -> Config {
    let mut upstream = json!({ "name": "shop", "targets": targets });
    for (key, value) in settings.as_object().expect("settings") {
        upstream[key] = value.clone();
    }
    Config(json!({ "store": "memory", "gateway": { "_format_version": "3.0", "services": [], "upstreams": [upstream] } })).service("shop", "http://shop", "/", json!([]))
}

async fn ask(weir: &Weir, path: &str) -> Answer {
    weir.gateway().get(path).send().await.expect(200)
}

/// Who answered so many requests.
async fn answered(weir: &Weir, path: &str, count: usize) -> Vec<String> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(ask(weir, path).await.text());
    }
    all
}

/// What the admin port shows of an endpoint.
async fn shown(weir: &Weir, origin: &Origin) -> Value {
    let all = weir.admin().get("/upstreams").send().await.expect(200).json();
    let upstreams = all["upstreams"].as_array().expect("a list").clone();
    let endpoints = upstreams.iter().filter(|u| u["name"] == "shop").flat_map(|u| u["endpoints"].as_array().expect("a list").clone());
    endpoints.into_iter().find(|e| e["target"] == address(origin)).unwrap_or_else(|| panic!("{all} lacks {}", address(origin)))
}

async fn reload(weir: &Weir, config: &Config) {
    let before = weir.metric("weir_reloads_total", &["ok"]).await;
    weir.write(config);
    weir.hang_up();
    eventually("the reload", async || (weir.metric("weir_reloads_total", &["ok"]).await > before).then_some(())).await;
}

async fn say(weir: &Weir, origin: &Origin, state: &str) {
    let call = format!("/upstreams/shop/targets/{}/{state}", address(origin));
    weir.admin().ask("PUT", &call).send().await.expect(204);
}

#[tokio::test(flavor = "multi_thread")]
async fn real_traffic_takes_an_endpoint_out_and_probes_bring_it_back() {
    let (a, b) = (named("a").await, named("b").await);
    let checks = json!({
        "passive": { "unhealthy": { "http_failures": 2 } },
        "active": { "http_path": "/health", "healthy": { "successes": 2 }, "unhealthy": { "interval": 0.1 } },
    });
    let weir = Weir::start(&config(json!({ "healthchecks": checks }), json!([target(&a, 100), target(&b, 100)]))).await;
    a.now_says(|_| Told::new(500, "ill"));
    eventually("a is down", async || {
        weir.gateway().get("/").send().await;
        (shown(&weir, &a).await["state"] == "down").then_some(())
    })
    .await;
    assert_eq!(answered(&weir, "/", 6).await, ["b"; 6]);
    println!("ejection: a failing, 6 of 6 requests with b");
    let reason = shown(&weir, &a).await["reason"].clone();
    assert_eq!(reason, "failing answers");
    let labels = [&*format!("endpoint=\"{}\"", address(&a)), "upstream=\"shop\""];
    assert_eq!(weir.metric("weir_upstream_up", &labels).await, 0.0);

    // A reload changes nothing about it.
    reload(&weir, &config(json!({ "healthchecks": checks }), json!([target(&a, 100), target(&b, 100)]))).await;
    assert_eq!(answered(&weir, "/", 6).await, ["b"; 6]);

    let probes = a.hits("/health");
    eventually("a is probed while it is down", async || (a.hits("/health") > probes + 2).then_some(())).await;
    assert_eq!(shown(&weir, &a).await["state"], "down");
    a.now_says(|_| Told::new(200, "a"));
    eventually("a is up", async || (shown(&weir, &a).await["state"] == "up").then_some(())).await;
    assert!(answered(&weir, "/", 4).await.contains(&"a".to_owned()));
    assert_eq!(weir.metric("weir_upstream_up", &labels).await, 1.0);
    assert_eq!(weir.metric("weir_upstream_left_out", &labels).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_take_out_an_endpoint_that_nobody_asks_and_it_returns_slowly() {
    let (a, b) = (named("a").await, named("b").await);
    let checks = json!({ "active": {
        "http_path": "/health",
        "healthy": { "interval": 0.1, "successes": 1 },
        "unhealthy": { "interval": 0.1, "http_failures": 2 },
    } });
    let weir = Weir::start(&config(json!({ "healthchecks": checks, "slow_start": "1h" }), json!([target(&a, 100), target(&b, 100)]))).await;
    a.now_says(|_| Told::new(503, "ill"));
    eventually("a is down", async || (shown(&weir, &a).await["state"] == "down").then_some(())).await;
    assert_eq!(answered(&weir, "/", 4).await, ["b"; 4]);
    a.now_says(|_| Told::new(200, "a"));
    eventually("a begins slowly", async || (shown(&weir, &a).await["state"] == "slow-start").then_some(())).await;
    let to_a = answered(&weir, "/", 300).await.iter().filter(|name| *name == "a").count();
    println!("slow start: {to_a} of 300 requests to the endpoint that came back (an even share: 150, a tenth of that at first)");
    // A tenth of its half, more or less; an even share would be 150.
    assert!((1..=90).contains(&to_a), "{to_a} of 300");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_drains_ends_what_it_began() {
    let (a, b) = (named("a").await, named("b").await);
    let targets = json!([target(&a, 100), target(&b, 100)]);
    let weir = Weir::start(&config(json!({}), targets.clone())).await;
    let gate = Gate::closed();
    let held = gate.clone();
    a.now_says(move |seen| if seen.path() == "/slow" { Told::new(200, "a").waits(Point::BeforeHead, &held) } else { Told::new(200, "a") });
    b.now_says(|_| Told::new(200, "b"));
    // In turn: one of two goes to a.
    let door = weir.gateway();
    let slow: Vec<_> = (0..2).map(|_| tokio::spawn(async move { door.get("/slow").send().await.expect(200).text() })).collect();
    eventually("a has a request", async || (shown(&weir, &a).await["in_flight"] == 1).then_some(())).await;
    say(&weir, &a, "draining").await;
    assert_eq!(answered(&weir, "/", 6).await, ["b"; 6]);
    let view = shown(&weir, &a).await;
    assert_eq!((&view["state"], &view["in_flight"]), (&json!("draining"), &json!(1)));

    println!("drain: 6 of 6 new requests with b, the one under way with a goes on");
    // Weight 0 by a reload does the same.
    say(&weir, &a, "healthy").await;
    reload(&weir, &config(json!({}), json!([target(&a, 0), target(&b, 100)]))).await;
    assert_eq!(answered(&weir, "/", 6).await, ["b"; 6]);
    let view = shown(&weir, &a).await;
    assert_eq!((&view["state"], &view["weight"], &view["in_flight"]), (&json!("draining"), &json!(0), &json!(1)));
    gate.open();
    let mut names = Vec::new();
    for request in slow {
        names.push(request.await.expect("an answer"));
    }
    names.sort();
    assert_eq!(names, ["a", "b"]);
    reload(&weir, &config(json!({}), targets)).await;
    assert!(answered(&weir, "/", 4).await.contains(&"a".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_sticks_to_its_endpoint() {
    let (a, b, c) = (named("a").await, named("b").await, named("c").await);
    let settings = json!({ "algorithm": "consistent-hashing", "hash_on": "cookie", "hash_on_cookie": "place" });
    let weir = Weir::start(&config(settings, json!([target(&a, 100), target(&b, 100), target(&c, 100)]))).await;
    let mut used = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let first = ask(&weir, "/").await;
        let cookie = first.must("set-cookie").to_owned();
        assert!(cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax"), "{cookie}");
        assert_eq!(first.must("cache-control"), "private, no-store");
        let value = cookie.split([';', '=']).nth(1).expect("a value").to_owned();
        for _ in 0..3 {
            let again = weir.gateway().get("/").cookie("place", &value).send().await.expect(200);
            assert_eq!(again.text(), first.text());
            assert_eq!(again.header("set-cookie"), None);
        }
        used.insert(first.text());
    }
    assert!(used.len() > 1, "all went to {used:?}");
}
