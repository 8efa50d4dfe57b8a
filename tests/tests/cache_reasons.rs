//! Why an answer is not kept, and what an unsafe request outdates: seen by clients, in the metrics and in the access log.

use serde_json::{Value, json};
use weir_tests::{
    Answer, Config, RedisServer, Weir,
    cache_help::{Origin, Seen, Told, until_hit},
    eventually,
};

fn config(origin: &Origin, rules: Value) -> Config {
    Config(json!({
        "store": "memory",
        "edge": { "origin": origin.url(), "deployment": "reasons", "pages": rules },
        "gateway": { "_format_version": "3.0", "services": [], "plugins": [] },
        "server": { "access_log": "json" },
    }))
}

/// The reasons that the access log gives for requests of this target, in order.
async fn logged(weir: &Weir, target: &str, count: usize) -> Vec<String> {
    let reasons = async || {
        let lines: Vec<Value> = weir.access_log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let found: Vec<String> = lines.iter().filter(|line| line["target"] == target).filter_map(|line| line["reason"].as_str().map(str::to_owned)).collect();
        (found.len() >= count).then_some(found)
    };
    eventually("the requests are in the access log", reasons).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reason_stands_in_header_metric_and_log() {
    let html = |status: u16| Told::new(status, "<html><body>x</body></html>").with("content-type", "text/html").with("cache-control", "s-maxage=60");
    // What comes, why it is not kept, and whether only the body shows it.
    let cases: Vec<(Told, &str, bool)> = vec![
        (html(403), "status", false),
        (html(307).with("location", "/elsewhere"), "status", false),
        (html(200).with("content-range", "bytes 0-9/20"), "partial", false),
        (html(200).with("set-cookie", "a=b"), "set-cookie", false),
        (Told::page("x").with("cache-control", "private"), "private", false),
        (Told::page("x").with("cache-control", "no-store"), "no-store", false),
        (Told::page("x").with("cache-control", "no-cache"), "no-cache", false),
        (Told::page("x").with("vary", "user-agent"), "vary", false),
        (Told::page("x").with("content-encoding", "gzip"), "encoded", false),
        (html(200).with("x-nextjs-postponed", "1"), "postponed", false),
        (html(200).with("content-security-policy", "script-src 'nonce-abc'"), "nonce", false),
        (Told::new(200, "{}").with("content-type", "application/json"), "content-type", false),
        (Told::large_page("large", 3_000_000), "too-large", false),
        (Told::large_page("large", 3_000_000).chunked(), "too-large", true),
        (Told::new(200, "<html><body>").with("content-type", "text/html"), "incomplete", true),
        (Told::page("<script nonce=\"abc\"></script>"), "nonce", true),
        (Told::page("<template data-dgst=\"NEXT_REDIRECT;replace;/login;307;\"></template>"), "error-stream", true),
    ];
    let expected: Vec<(&str, bool)> = cases.iter().map(|(_, reason, late)| (*reason, *late)).collect();
    let origin = Origin::start(move |seen| {
        let number: usize = seen.path().rsplit('/').next().and_then(|n| n.parse().ok()).unwrap_or_default();
        cases[number].0.clone()
    })
    .await;
    let weir = Weir::start(&config(&origin, json!([{ "path": "/case/*", "ttl": "60s", "max_size": "2MB" }]))).await;
    for (number, (reason, late)) in expected.into_iter().enumerate() {
        let target = format!("/case/{number}");
        let counted = async || weir.metric("weir_cache_reasons_total", &[&format!("reason=\"{reason}\"")]).await;
        let (before, refused) = (counted().await, weir.metric("weir_cache_refused", &[&format!("reason=\"{reason}\"")]).await);
        let first = weir.edge().get(&target).send().await;
        // A head that goes out before the body is there can not tell; it does not say that the page is stored.
        assert!(first.detail() == reason || (late && first.detail() == "streaming"), "{number}: {}", first.detail());
        assert!(!first.must("cache-status").contains("; stored"), "{number}");
        let second = weir.edge().get(&target).send().await;
        assert_eq!((second.verdict(), second.detail()), ("BYPASS", format!("hit-for-miss:{reason}")), "{number}");
        // Lines of different threads may change places.
        let mut lines = logged(&weir, &target, 2).await;
        lines.sort_by_key(|line| line.starts_with("hit-for-miss"));
        assert_eq!(lines, [reason.to_owned(), format!("hit-for-miss:{reason}")], "{number}");
        assert!(counted().await > before, "{number}: {reason}");
        assert!(weir.metric("weir_cache_refused", &[&format!("reason=\"{reason}\"")]).await > refused, "{number}: {reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_instance_knows_the_reason_too() {
    let redis = RedisServer::start();
    let origin = Origin::start(|_| Told::page("x").with("set-cookie", "a=b")).await;
    let config = config(&origin, json!([{ "path": "/**", "ttl": "60s" }])).set("/store", json!({ "url": redis.url(), "deadline": "2s" }));
    let (first, second) = (Weir::start_as("first", &config).await, Weir::start_as("second", &config).await);
    assert_eq!(first.edge().get("/p").send().await.expect(200).detail(), "set-cookie");
    let told = async || (second.edge().get("/p").send().await.expect(200).detail() == "hit-for-miss:set-cookie").then_some(());
    eventually("the mark is in the store", told).await;
}

/// `GET` shows how often it was asked for; anything else says where the change can be seen.
fn changing(seen: &Seen) -> Told {
    if seen.method == "GET" {
        return Told::page(&format!("version {}", seen.count));
    }
    let field = |name: &str| seen.header(name).unwrap_or_default().to_owned();
    let status = field("x-status").parse().unwrap_or(200);
    let mut told = Told::new(status, "done");
    for name in ["location", "content-location"] {
        let value = field(&format!("x-{name}"));
        if !value.is_empty() {
            told = told.with(name, &value);
        }
    }
    if field("x-form") == "chunked" { told.chunked() } else { told }
}

async fn kept(door: weir_tests::Door, target: &str, old: &Answer) {
    let now = door.get(target).send().await.expect(200);
    assert_eq!((now.verdict(), &now.body), ("HIT", &old.body), "{target}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9111_4_4_an_unsafe_request_outdates_its_page_and_those_that_its_answer_names() {
    let origin = Origin::start(changing).await;
    let rules = json!([{ "path": "/**", "ttl": "1h" }, { "path": "/forms/**", "ttl": "1h", "invalidate": false }]);
    let api = json!([{ "name": "response-cache", "config": { "ttl": "1h", "statuses": [200] } }]);
    let by_language = json!([{ "name": "response-cache", "config": { "ttl": "1h", "vary_headers": ["accept-language"] } }]);
    let config = config(&origin, rules).service("api", &origin.url(), "/api/orders", api).service("spoken", &origin.url(), "/api/spoken", by_language);
    let weir = Weir::start(&config).await;
    for (door, at) in [(weir.edge(), "/shop"), (weir.gateway(), "/api/orders")] {
        let pages = ["", "/new", "/named", "/other"].map(|page| format!("{at}{page}"));
        let host = weir_tests::HOST;
        let cases: [(u16, &str, String, &[usize]); 7] = [
            (200, "", String::new(), &[0]),
            (201, "location", format!("{at}/new"), &[0, 1]),
            (303, "location", format!("http://{host}{at}/new"), &[0, 1]),
            (200, "content-location", format!("{at}/named"), &[0, 2]),
            // Another origin is not ours; an error changed nothing.
            (201, "location", format!("https://evil.test{at}/new"), &[0]),
            (422, "content-location", format!("{at}/new"), &[]),
            (500, "content-location", format!("{at}/new"), &[]),
        ];
        for (status, field, value, outdated) in cases {
            let mut old = Vec::new();
            for page in &pages {
                old.push(until_hit(door, page).await);
            }
            let asked = door.ask("POST", at).body("").header("x-status", &status.to_string()).header(&format!("x-{field}"), &value);
            let answer = if field.is_empty() { door.ask("POST", at).body("") } else { asked };
            assert_eq!(answer.send().await.status, status);
            // When the answer is there, this instance has forgotten already.
            for (number, page) in pages.iter().enumerate() {
                if outdated.contains(&number) {
                    let new = door.get(page).send().await.expect(200);
                    assert!(new.verdict() == "MISS" && new.body != old[number].body, "{status} {field}: {value}: {page}: {}", new.verdict());
                } else {
                    kept(door, page, &old[number]).await;
                }
            }
        }
    }
    // A rule whose forms change nothing.
    let old = until_hit(weir.edge(), "/forms/1").await;
    weir.edge().ask("POST", "/forms/1").body("").send().await.expect(200);
    kept(weir.edge(), "/forms/1", &old).await;
    // Whatever the values of the headers in the key are.
    let ask = |language: &str| weir.gateway().get("/api/spoken").header("accept-language", language);
    for language in ["de", "fr"] {
        ask(language).send().await.expect(200);
        assert_eq!(ask(language).send().await.expect(200).verdict(), "HIT");
    }
    weir.gateway().ask("PUT", "/api/spoken").body("").send().await.expect(200);
    for language in ["de", "fr"] {
        assert_eq!(ask(language).send().await.expect(200).verdict(), "MISS", "{language}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9111_4_4_by_whichever_route_the_request_came() {
    let origin = Origin::start(changing).await;
    let cached = json!([{ "name": "response-cache", "config": { "ttl": "1h", "statuses": [200] } }]);
    let config = config(&origin, json!([{ "path": "/**", "ttl": "1h" }]))
        .service("read", &origin.url(), "/api/orders", cached.clone())
        .service("write", &origin.url(), "/api/orders", json!([]))
        .service("stock", &origin.url(), "/api/stock", cached)
        .set("/gateway/services/0/routes/0/methods", json!(["GET"]))
        .set("/gateway/services/1/routes/0/methods", json!(["POST", "PUT"]));
    let weir = Weir::start(&config).await;
    let (api, shop) = (weir.gateway(), weir.edge());
    for ((door, location, outdated), form) in [
        // Its own address, that another route serves to readers.
        (api, "", [true, false, false]),
        (shop, "", [true, false, false]),
        // What is on a third route, and a page of the site, with the query as it comes.
        (api, "/api/stock?b=2&a=1", [true, true, false]),
        (api, "/shoes", [true, false, true]),
    ]
    // An answer in chunks is the general lane's, whoever sent the request.
    .into_iter()
    .flat_map(|case| [(case, "whole"), (case, "chunked")])
    {
        let pages = [(api, "/api/orders"), (api, "/api/stock?a=1&b=2"), (shop, "/shoes")];
        let mut old = Vec::new();
        for (door, page) in pages {
            old.push(until_hit(door, page).await);
        }
        let asked = door.ask("POST", "/api/orders").header("x-form", form).body("");
        let asked = if location.is_empty() { asked } else { asked.header("x-location", location) };
        asked.send().await.expect(200);
        for (((door, page), old), outdated) in pages.into_iter().zip(&old).zip(outdated) {
            let now = door.get(page).send().await.expect(200);
            assert_eq!((now.verdict(), now.body == old.body), if outdated { ("MISS", false) } else { ("HIT", true) }, "{location}, {form}: {page}");
        }
    }
}
