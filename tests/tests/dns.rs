//! Upstreams with names: their records are followed, with ports, weights and priorities; a name server that is away changes nothing.

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{Request, Response};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst}},
    time::{Duration, Instant},
};
use weir_tests::{
    Config, Weir,
    cache_help::{Gate, Origin, Point, Told},
    dns::{Has, NameServer, address},
    eventually, http2,
};

/// An origin that says who it is.
async fn named(name: &'static str) -> Origin {
    Origin::start(move |_| Told::new(200, name)).await
}

/// Two origins, `a` at 127.0.0.1 and `b` at 127.0.0.2, with the same port.
async fn twins() -> (Origin, Origin, u16) {
    for _ in 0..50 {
        let a = named("a").await;
        let port = a.address().port();
        let at = SocketAddr::from(([127, 0, 0, 2], port));
        if std::net::TcpListener::bind(at).is_ok() {
            return (a, Origin::start_at(at, |_| Told::new(200, "b")).await, port);
        }
    }
    panic!("no port is free on both addresses");
}

fn resolver(server: &NameServer, more: Value) -> Value {
    let mut all = json!({ "servers": [server.address()], "timeout": "300ms", "attempts": 1 });
    all.as_object_mut().expect("a mapping").extend(more.as_object().expect("a mapping").clone());
    all
}

fn config(server: &NameServer, more: Value, upstreams: Value) -> Config {
    Config(json!({
        "store": "memory",
        "resolver": resolver(server, more),
        "gateway": { "_format_version": "3.0", "services": [], "upstreams": upstreams },
    }))
}

fn service(srv: (u16, u16), origin: &Origin, name: &str) -> Has {
    Has::Service(srv.0, srv.1, origin.address().port(), name.into())
}

/// What the admin port shows of the upstream `shop`.
async fn shown(weir: &Weir) -> Value {
    let all = weir.admin().get("/upstreams").send().await.expect(200).json();
    all["upstreams"].as_array().expect("a list").iter().find(|u| u["name"] == "shop").expect("the upstream").clone()
}

async fn said(weir: &Weir) -> String {
    weir.gateway().get("/").send().await.expect(200).text()
}

#[tokio::test(flavor = "multi_thread")]
async fn when_records_change_under_load_traffic_moves_and_nothing_is_lost() {
    let server = NameServer::start().await;
    let (a, b, port) = twins().await;
    server.set("shop.test", 1, vec![Has::Alias("one.test".into())]);
    server.set("one.test", 1, vec![address("127.0.0.1")]);
    server.set("two.test", 1, vec![address("127.0.0.2")]);
    let weir = Weir::start(&config(&server, json!({}), json!([{ "name": "shop", "targets": [{ "target": format!("shop.test:{port}") }] }])).service("shop", "http://shop", "/", json!([]))).await;
    assert_eq!(said(&weir).await, "a");

    // One request is under way at `a` while its address goes.
    let gate = Gate::closed();
    let held = gate.clone();
    a.now_says(move |seen| if seen.path() == "/slow" { Told::new(200, "a").waits(Point::BeforeHead, &held) } else { Told::new(200, "a") });
    let door = weir.gateway();
    let slow = tokio::spawn(async move { door.get("/slow").send().await.expect(200).text() });
    eventually("the slow one is at a", async || (a.hits("/slow") == 1).then_some(())).await;

    let (stop, sent, lost) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = (0..6)
        .map(|_| {
            let (stop, sent, lost) = (stop.clone(), sent.clone(), lost.clone());
            tokio::spawn(async move {
                while !stop.load(SeqCst) {
                    let answer = door.get("/").attempt().await;
                    sent.fetch_add(1, SeqCst);
                    if !answer.is_ok_and(|answer| answer.status == 200) {
                        lost.fetch_add(1, SeqCst);
                    }
                }
            })
        })
        .collect();
    eventually("a has some load", async || (a.hits("/") > 50).then_some(())).await;
    server.set("shop.test", 1, vec![Has::Alias("two.test".into())]);
    let changed = Instant::now();
    eventually("b is asked", async || (b.hits("/") > 0).then_some(())).await;
    let moved = changed.elapsed();
    // Connections to an address that is gone are not used again: `a` gets nothing while `b` gets a lot.
    eventually("a is left alone", async || {
        let (at_a, at_b) = (a.hits("/"), b.hits("/"));
        eventually("more load", async || (b.hits("/") > at_b + 200).then_some(())).await;
        (a.hits("/") == at_a).then_some(())
    })
    .await;
    stop.store(true, SeqCst);
    for task in load {
        task.await.expect("load");
    }
    assert_eq!(lost.load(SeqCst), 0);
    gate.open();
    assert_eq!(slow.await.expect("an answer"), "a", "what was under way ends where it began");

    let view = shown(&weir).await;
    let name = &view["names"]["shop.test"];
    assert_eq!((&name["from"], &name["addresses"], &name["ttl_ms"], &name["changes"]), (&json!("A"), &json!(["127.0.0.2"]), &json!(1000), &json!(2)));
    assert!(name["asked_again_in_ms"].as_u64().is_some_and(|ms| ms <= 1000), "{name}");
    assert_eq!((&view["endpoints"][0]["target"], &view["endpoints"][0]["address"]), (&json!(format!("shop.test:{port}")), &json!(format!("127.0.0.2:{port}"))));
    assert_eq!(weir.metric("weir_dns_changes", &["name=\"shop.test\""]).await, 2.0);
    println!("DNS change under load: {} sent, {} lost; the first request at the new address after {moved:?} with a TTL of 1 s", sent.load(SeqCst), lost.load(SeqCst));
}

#[tokio::test(flavor = "multi_thread")]
async fn srv_records_give_ports_weights_and_priorities() {
    let server = NameServer::start().await;
    let (a, b, c) = (named("a").await, named("b").await, named("c").await);
    server.set("node.test", 60, vec![address("127.0.0.1")]);
    server.set("_web._tcp.shop.test", 60, vec![service((10, 3), &a, "node.test"), service((10, 1), &b, "node.test"), service((20, 1), &c, "node.test")]);
    let upstream = json!([{ "name": "shop", "targets": [{ "target": "_web._tcp.shop.test" }] }]);
    let weir = Weir::start(&config(&server, json!({}), upstream).service("shop", "http://shop", "/", json!([]))).await;
    eventually("the name is known", async || (shown(&weir).await["endpoints"].as_array().expect("a list").len() == 3).then_some(())).await;
    let mut counts = BTreeMap::new();
    for _ in 0..80 {
        *counts.entry(said(&weir).await).or_insert(0) += 1;
    }
    println!("SRV, weights 3 and 1, a lower priority: {counts:?} of 80");
    assert_eq!(counts, BTreeMap::from([("a".to_owned(), 60), ("b".to_owned(), 20)]));
    let view = shown(&weir).await;
    assert_eq!(view["names"]["_web._tcp.shop.test"]["from"], "SRV");
    let of = |origin: &Origin| view["endpoints"].as_array().unwrap().iter().find(|e| e["address"] == origin.address().to_string()).unwrap().clone();
    assert_eq!((&of(&a)["weight"], &of(&b)["weight"], &of(&a)["priority"], &of(&c)["priority"]), (&json!(3), &json!(1), &json!(0), &json!(1)));
    // The next priority is there for when the first has nobody.
    for origin in [&a, &b] {
        weir.admin().ask("PUT", &format!("/upstreams/shop/targets/{}/unhealthy", origin.address())).send().await.expect(204);
    }
    let door = weir.gateway();
    eventually("all is with c", async || {
        let answer = door.get("/").send().await;
        (answer.status == 200 && answer.text() == "c").then_some(())
    })
    .await;
    for _ in 0..10 {
        assert_eq!(said(&weir).await, "c");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_answer_the_last_addresses_stay_in_use() {
    let server = NameServer::start().await;
    let (_a, _b, port) = twins().await;
    server.set("shop.test", 1, vec![address("127.0.0.1")]);
    let config = config(&server, json!({ "missing": "1s", "negative_ttl": "1s" }), json!([])).service("shop", &format!("http://shop.test:{port}"), "/", json!([]));
    let weir = Weir::start(&config).await;
    assert_eq!(said(&weir).await, "a");
    server.silent(true);
    let failing = async || weir.metric("weir_dns_failing", &["name=\"shop.test\""]).await;
    eventually("look-ups fail", async || (failing().await == 1.0).then_some(())).await;
    for _ in 0..20 {
        assert_eq!(said(&weir).await, "a");
    }
    server.set("shop.test", 1, vec![address("127.0.0.2")]);
    server.silent(false);
    eventually("the name is answered again", async || (said(&weir).await == "b").then_some(())).await;
    assert_eq!(failing().await, 0.0);
    // A name that is gone is given up after `missing`, and comes back.
    server.remove("shop.test");
    let door = weir.gateway();
    let refused = eventually("the name is gone", async || Some(door.get("/").send().await).filter(|answer| answer.status != 200)).await;
    assert_eq!((refused.status, refused.must("x-weir-reason")), (503, "dns"));
    assert_eq!(refused.json()["message"], "name resolution failed");
    server.set("shop.test", 1, vec![address("127.0.0.1")]);
    eventually("the name is back", async || Some(door.get("/").send().await).filter(|answer| answer.status == 200 && answer.text() == "a")).await;
    for told in ["a name is not answered", "a name is answered again", "the last addresses of a name are given up"] {
        assert!(weir.said().contains(told), "{told}: {}", weir.said());
    }
}

async fn greet(_: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let mut body = respond.send_response(Response::new(()), false).expect("a stream");
    let _ = body.send_data("h2".into(), true);
}

/// A request that waits for a name's first answer opens a connection before anything else does. Used again and again, it would be alive
/// long after the name is gone.
#[tokio::test(flavor = "multi_thread")]
async fn connections_of_the_first_requests_do_not_outlive_the_name() {
    let server = NameServer::start().await;
    let a = named("a").await;
    let h2 = http2::serve(greet).await;
    server.set("shop.test", 1, vec![address("127.0.0.1")]);
    server.open(false);
    let config = config(&server, json!({ "timeout": "60s", "missing": "1s", "negative_ttl": "1s" }), json!([]))
        .service("one", &format!("http://shop.test:{}", a.address().port()), "/one", json!([]))
        .service("two", &format!("http://shop.test:{}", h2.port()), "/two", json!([]))
        .set("/gateway/services/1/http2", json!(true))
        .set("/gateway/services/0/concurrency", json!({ "limit": 8 }))
        .set("/gateway/services/1/concurrency", json!({ "limit": 8 }));
    let weir = Weir::start(&config).await;
    let door = weir.gateway();
    let paths = [("/one", "a"), ("/two", "h2")];
    let first = paths.map(|(path, said)| tokio::spawn(async move { assert_eq!(door.get(path).send().await.expect(200).text(), said) }));
    eventually("both wait for the name", async || (weir.metric("weir_concurrency_under_way", &[]).await == 2.0).then_some(())).await;
    server.open(true);
    for request in first {
        request.await.expect("an answer");
    }
    server.remove("shop.test");
    for (path, _) in paths {
        let refused = eventually("the name is gone", async || Some(door.get(path).send().await).filter(|answer| answer.status != 200)).await;
        assert_eq!((refused.status, refused.must("x-weir-reason")), (503, "dns"), "{path}");
    }
    server.set("shop.test", 1, vec![address("127.0.0.1")]);
    for (path, said) in paths {
        eventually("the name is back", async || Some(door.get(path).send().await).filter(|answer| answer.status == 200 && answer.text() == said)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_asked_for_once_however_many_want_it() {
    let server = NameServer::start().await;
    let (a, local) = (named("a").await, named("local").await);
    server.set("late.test", 3600, vec![address("127.0.0.1")]);
    server.open(false);
    let patient = json!({ "timeout": "60s", "negative_ttl": "1h", "max_ttl": "1h" });
    let config = |resolver: Value| {
        config(&server, resolver, json!([]))
            .service("late", &format!("http://late.test:{}", a.address().port()), "/late", json!([]))
            .service("none", "http://none.test:80", "/none", json!([]))
            .service("local", &format!("http://localhost:{}", local.address().port()), "/local", json!([]))
    };
    let weir = Weir::start(&config(patient)).await;
    // The hosts file knows this one: nobody is asked.
    assert_eq!(weir.gateway().get("/local").send().await.expect(200).text(), "local");
    assert_eq!(server.asked("localhost", "A") + server.asked("localhost", "SRV"), 0);

    let door = weir.gateway();
    let waiting: Vec<_> = (0..40).map(|_| tokio::spawn(async move { door.get("/late").send().await.expect(200).text() })).collect();
    eventually("the server is asked", async || (server.asked("late.test", "SRV") > 0).then_some(())).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    server.open(true);
    for answer in waiting {
        assert_eq!(answer.await.expect("an answer"), "a");
    }
    // A question by UDP is repeated up to three times.
    let asked = |name: &str| ["SRV", "A", "AAAA"].map(|kind| server.asked(name, kind));
    let [srv, a_records, aaaa] = asked("late.test");
    assert!((1..=4).contains(&srv) && (1..=4).contains(&a_records) && aaaa == 0, "{srv} {a_records} {aaaa}");

    // That there is no such name is remembered too.
    for _ in 0..20 {
        assert_eq!(weir.gateway().get("/none").send().await.expect(503).must("x-weir-reason"), "dns");
    }
    let before = asked("none.test");
    assert!(before.iter().all(|times| (1..=4).contains(times)), "{before:?}");
    // With other rules everything is asked again.
    server.set("none.test", 3600, vec![address("127.0.0.1")]);
    weir.write(&config(json!({ "order": ["A"], "negative_ttl": "1h" })).set("/gateway/services/1/url", format!("http://none.test:{}", a.address().port())));
    weir.admin().ask("POST", "/reload").body("").send().await.expect(200);
    eventually("the name is known", async || Some(door.get("/none").send().await).filter(|answer| answer.status == 200)).await;
    assert_eq!(asked("none.test")[0], before[0], "SRV is not among the records any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_bear_the_name_of_their_target() {
    let server = NameServer::start().await;
    let a = named("a").await;
    let port = a.address().port();
    server.set("shop.test", 60, vec![address("127.0.0.1")]);
    server.set("node.test", 60, vec![address("127.0.0.1")]);
    server.set("_web._tcp.shop.test", 60, vec![service((1, 1), &a, "node.test")]);
    let target = format!("shop.test:{port}");
    let upstreams = json!([
        { "name": "named", "targets": [{ "target": target }] },
        { "name": "called", "host_header": "inner.example", "targets": [{ "target": target }] },
        { "name": "srv", "use_srv_name": true, "targets": [{ "target": "_web._tcp.shop.test" }] },
        { "name": "plain", "targets": [{ "target": format!("127.0.0.1:{port}") }] },
    ]);
    let mut config = config(&server, json!({}), upstreams);
    for name in ["named", "called", "srv", "plain"] {
        config = config.service(name, &format!("http://{name}"), &format!("/{name}"), json!([]));
    }
    let config = config.service("kept", "http://named", "/kept", json!([])).set("/gateway/services/4/routes/0/preserve_host", json!(true));
    let weir = Weir::start(&config).await;
    for name in ["named", "called", "srv", "plain", "kept"] {
        eventually("the name is known", async || {
            weir.gateway().get(&format!("/{name}")).host("client.test").send().await.expect(200);
            let all = weir.admin().get("/upstreams").send().await.expect(200).json();
            let first = |u: &Value| u["endpoints"][0]["address"].as_str().is_some_and(|at| at == a.address().to_string());
            all["upstreams"].as_array().expect("a list").iter().all(first).then_some(())
        })
        .await;
        weir.gateway().get(&format!("/{name}")).host("client.test").send().await.expect(200);
    }
    let host = |path: &str| a.asked(path).last().and_then(|seen| seen.header("host").map(str::to_owned)).expect("a request");
    assert_eq!(host("/named"), format!("shop.test:{port}"));
    assert_eq!(host("/called"), "inner.example");
    assert_eq!(host("/srv"), format!("node.test:{port}"));
    assert_eq!(host("/plain"), "plain");
    assert_eq!(host("/kept"), "client.test");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_weir_calls_itself_is_looked_up_there_too() {
    let server = NameServer::start().await;
    let (a, sink) = (named("a").await, named("sink").await);
    server.set("log.test", 60, vec![address("127.0.0.1")]);
    let plugins = json!([{ "name": "http-log", "config": { "http_endpoint": format!("http://log.test:{}/in", sink.address().port()) } }]);
    let weir = Weir::start(&config(&server, json!({}), json!([])).service("a", &a.url(), "/", plugins)).await;
    assert_eq!(said(&weir).await, "a");
    eventually("the log arrives", async || (sink.hits("/in") > 0).then_some(())).await;
    assert!(server.asked("log.test", "A") > 0);
}
