//! What clients see of the cache, with real processes: conditions, ranges, Age, Vary, Cache-Status, stale answers, who decides on freshness.

use serde_json::{Value, json};
use std::time::{Duration, Instant};
use weir_tests::{
    Ask, Config, Weir,
    cache_help::{Gate, Origin, Point, Seen, Told, until_hit},
    eventually,
};

fn config(origin: &Origin, rules: Value) -> Config {
    Config(json!({
        "store": "memory",
        "edge": { "origin": origin.url(), "deployment": "semantics", "pages": rules },
        "gateway": { "_format_version": "3.0", "services": [], "plugins": [] },
    }))
}

fn minute() -> Value {
    json!([{ "path": "/**", "ttl": "60s", "query": ["q"] }])
}

fn api(config: Config, origin: &Origin, settings: Value) -> Config {
    config.service("api", &origin.url(), "/api", json!([{ "name": "response-cache", "config": settings }]))
}

/// The parameters of Weir's own member of `Cache-Status`, sorted, without the number of `ttl`.
fn parameters(value: &str) -> Vec<String> {
    let mut all: Vec<String> = value.split("; ").skip(1).map(|p| if p.starts_with("ttl=") { "ttl".to_owned() } else { p.to_owned() }).collect();
    all.sort();
    all
}

fn ttl(value: &str) -> i64 {
    value.split("; ").find_map(|p| p.strip_prefix("ttl=")).and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no ttl in `{value}`"))
}

const MODIFIED: &str = "Sun, 06 Nov 1994 08:00:00 GMT";

#[tokio::test(flavor = "multi_thread")]
async fn rfc9110_13_conditions_are_answered_from_the_stored_page() {
    let origin = Origin::start(|_| Told::page("shoes").with("etag", "\"one\"").with("last-modified", MODIFIED)).await;
    let weir = Weir::start(&config(&origin, minute())).await;
    let page = weir.edge().get("/p").send().await.expect(200);
    until_hit(weir.edge(), "/p").await;
    let cases: [(&[(&str, &str)], u16); 8] = [
        (&[("if-none-match", "\"one\"")], 304),
        (&[("if-none-match", "W/\"one\"")], 304),
        (&[("if-none-match", "\"x\", \"one\"")], 304),
        (&[("if-none-match", "*")], 304),
        (&[("if-none-match", "\"two\"")], 200),
        (&[("if-modified-since", MODIFIED)], 304),
        (&[("if-modified-since", "Sun, 06 Nov 1994 07:00:00 GMT")], 200),
        (&[("if-none-match", "\"two\""), ("if-modified-since", MODIFIED)], 200),
    ];
    for (fields, status) in cases {
        for method in ["GET", "HEAD"] {
            let answer = weir.edge().ask(method, "/p").headers(fields.iter().copied()).send().await;
            assert_eq!((answer.status, answer.verdict()), (status, "HIT"), "{method} {fields:?}");
            assert_eq!(answer.must("etag"), "\"one\"");
            assert!(answer.has("age"), "{answer:?}");
            if status == 200 && method == "GET" {
                assert_eq!(answer.body, page.body);
            }
        }
    }
    // Who asks with a condition for a page that nobody has gets an answer all the same, and others get the whole page.
    for (number, condition) in ["\"one\"", "\"two\"", "*"].into_iter().enumerate() {
        let target = format!("/cold/{number}");
        let answer = weir.edge().get(&target).header("if-none-match", condition).send().await;
        assert!([200, 304].contains(&answer.status), "{answer:?}");
        let hit = until_hit(weir.edge(), &target).await;
        assert_eq!(hit.body, page.body, "{condition}");
        assert!(origin.asked(&target).iter().all(|s| s.header("if-none-match").is_none()), "a client's condition is not the fill's");
    }
    assert_eq!(origin.hits("/p"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9110_9_3_2_head_is_answered_from_a_stored_get() {
    let origin = Origin::start(|_| Told::page("shoes")).await;
    let weir = Weir::start(&config(&origin, minute())).await;
    let page = weir.edge().get("/p").send().await.expect(200);
    until_hit(weir.edge(), "/p").await;
    let head = weir.edge().ask("HEAD", "/p").send().await.expect(200);
    assert_eq!((head.verdict(), head.must("content-length")), ("HIT", page.body.len().to_string().as_str()));
    assert_eq!(origin.hits("/p"), 1);
    // A HEAD that comes first never leaves a page without a body.
    let head = weir.edge().ask("HEAD", "/cold").send().await.expect(200);
    assert!(head.body.is_empty());
    assert_eq!(until_hit(weir.edge(), "/cold").await.body, page.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9110_14_ranges_come_from_the_whole_page_and_are_never_stored() {
    let origin = Origin::start(|_| Told::page("0123456789").with("etag", "\"one\"").with("last-modified", MODIFIED)).await;
    let weir = Weir::start(&config(&origin, minute())).await;
    // Before anything is stored.
    let cold = weir.edge().get("/cold").header("range", "bytes=0-3").send().await;
    assert!([200, 206].contains(&cold.status), "{cold:?}");
    let page = until_hit(weir.edge(), "/cold").await;
    assert!(page.status == 200 && page.text().ends_with("</html>"));
    let (length, body) = (page.body.len(), page.body.clone());
    let ask = |range: &str| weir.edge().get("/cold").header("range", range);
    let cases: [(Ask, u16, usize, usize); 9] = [
        (ask("bytes=0-3"), 206, 0, 4),
        (ask("bytes=5-"), 206, 5, length),
        (ask("bytes=-4"), 206, length - 4, length),
        (ask("bytes=0-99999"), 206, 0, length),
        (ask("bytes=3-1"), 200, 0, length),
        (ask("bytes=0-3").header("if-range", "\"one\""), 206, 0, 4),
        (ask("bytes=0-3").header("if-range", "\"two\""), 200, 0, length),
        (ask("bytes=0-3").header("if-range", "W/\"one\""), 200, 0, length),
        (ask("bytes=0-3").header("if-range", MODIFIED), 206, 0, 4),
    ];
    for (ask, status, begin, end) in cases {
        let said = format!("{ask:?}");
        let answer = ask.send().await;
        assert_eq!((answer.status, answer.verdict()), (status, "HIT"), "{said}");
        assert_eq!(answer.body, body.slice(begin..end), "{said}");
        let range = (status == 206).then(|| format!("bytes {begin}-{}/{length}", end - 1));
        assert_eq!(answer.header("content-range"), range.as_deref(), "{said}");
    }
    let beyond = ask(&format!("bytes={length}-")).send().await;
    assert_eq!((beyond.status, beyond.must("content-range")), (416, format!("bytes */{length}").as_str()));
    assert_eq!(weir.edge().get("/cold").send().await.expect(200).body, body, "the page is still whole");
    // An origin that answers with a part although nobody asked it for one.
    origin.now_says(|_| Told::new(206, "<html>0123</html>").with("content-type", "text/html").with("content-range", "bytes 0-9/20"));
    for _ in 0..3 {
        assert_ne!(weir.edge().get("/part").send().await.verdict(), "HIT");
    }
    assert!(origin.hits("/part") >= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9111_5_1_age_counts_the_seconds_since_the_origin() {
    let origin = Origin::start(|seen| if seen.path() == "/old" { Told::page("old").with("age", "100") } else { Told::page("new") }).await;
    let weir = Weir::start(&config(&origin, json!([{ "path": "/**", "ttl": "600s" }]))).await;
    for (target, upstream) in [("/new", 0), ("/old", 100)] {
        let before = Instant::now();
        weir.edge().get(target).send().await.expect(200);
        let after = Instant::now();
        for pause in [0, 1100, 1300] {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let least = after.elapsed().as_secs();
            let answer = until_hit(weir.edge(), target).await;
            // `Date` counts whole seconds, so that the origin may look up to one older.
            let most = before.elapsed().as_secs() + 2;
            let age: u64 = answer.must("age").parse().expect("seconds");
            assert!((upstream + least..=upstream + most).contains(&age), "{target}: {age} after {least} to {most} s");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9111_4_1_vary_keeps_answers_apart() {
    let spoken = |seen: &Seen| seen.header("accept-language").unwrap_or("-").to_owned();
    let origin = Origin::start(move |seen| match seen.path() {
        "/api/star" => Told::new(200, "star").with("vary", "*"),
        "/api/two" => Told::new(200, format!("{} {}", spoken(seen), seen.header("x-shop").unwrap_or("-"))).with("vary", "Accept-Language").with("vary", "X-Shop"),
        path if path.starts_with("/api") => Told::new(200, spoken(seen)).with("vary", "Accept-Language"),
        _ => Told::page("page").with("vary", "User-Agent"),
    })
    .await;
    let weir = Weir::start(&api(config(&origin, minute()), &origin, json!({ "ttl": "60s" }))).await;
    let ask = |target: &str, language: &str| weir.gateway().get(target).header("accept-language", language);
    for language in ["en", "de", "fr"] {
        let first = ask("/api/x", language).send().await.expect(200);
        assert_eq!((first.verdict(), first.text().as_str()), ("MISS", language));
    }
    for language in ["fr", "en", "de", "en"] {
        let again = ask("/api/x", language).send().await.expect(200);
        assert_eq!((again.verdict(), again.text().as_str()), ("HIT", language));
    }
    let none = weir.gateway().get("/api/x").send().await.expect(200);
    assert_eq!((none.verdict(), none.text().as_str()), ("MISS", "-"), "without the field is another request than with any value of it");
    assert_eq!(origin.hits("/api/x"), 4);
    for (shop, verdict) in [("a", "MISS"), ("b", "MISS"), ("a", "HIT"), ("b", "HIT")] {
        let answer = ask("/api/two", "en").header("x-shop", shop).send().await.expect(200);
        assert_eq!((answer.verdict(), answer.text()), (verdict, format!("en {shop}")));
    }
    for _ in 0..3 {
        assert_ne!(weir.gateway().get("/api/star").send().await.expect(200).verdict(), "HIT");
    }
    assert_eq!(origin.hits("/api/star"), 3);
    // A page that differs by browser is no page for everyone.
    assert_eq!(weir.edge().get("/p").send().await.expect(200).detail(), "vary");
    for _ in 0..2 {
        assert_eq!(weir.edge().get("/p").send().await.expect(200).verdict(), "BYPASS");
    }
    assert!(origin.hits("/p") >= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9211_cache_status_says_what_happened() {
    let origin = Origin::start(|seen| match seen.path() {
        "/cookie" => Told::page("c").with("set-cookie", "a=b"),
        "/other" => Told::page("o").with("cache-status", "Inner; hit; ttl=5"),
        _ => Told::page("p"),
    })
    .await;
    let rules = json!([{ "path": "/**", "ttl": "60s" }, { "path": "/never", "cache": "never" }]);
    let weir = Weir::start(&config(&origin, rules).set("/edge/headers", json!({ "status": true, "key": true, "cache_status": true }))).await;
    let ask = async |target: &str| weir.edge().get(target).send().await.expect(200);
    let of = |answer: &weir_tests::Answer| parameters(answer.all("cache-status").last().expect("Cache-Status"));
    let key = "key=\"html_cache:shop.test/p\"";
    let miss = ask("/p").await;
    let said = of(&miss);
    for expected in ["fwd=uri-miss", "fwd-status=200", "stored", key] {
        assert!(said.iter().any(|p| p == expected), "{expected} in {said:?}");
    }
    assert!(!said.iter().any(|p| p == "hit"));
    let hit = until_hit(weir.edge(), "/p").await;
    assert_eq!(of(&hit), ["hit", key, "ttl"]);
    assert!((1..=60).contains(&ttl(hit.must("cache-status"))));
    assert_eq!((hit.must("x-cache-key"), hit.must("x-cache-status")), ("html_cache:shop.test/p", "HIT"));
    let cookie = ask("/cookie").await;
    assert_eq!((cookie.verdict(), cookie.detail().as_str()), ("BYPASS", "set-cookie"));
    assert!(!of(&cookie).iter().any(|p| p == "stored" || p == "hit"), "{:?}", of(&cookie));
    let never = ask("/never").await;
    assert!(of(&never).iter().any(|p| p.starts_with("fwd=")), "{:?}", of(&never));
    // What a cache nearer to the origin says stays, before Weir's own word; in what is stored it has no place.
    let other = ask("/other").await;
    assert!(other.all("cache-status").join(", ").contains("Weir; fwd="));
    let again = until_hit(weir.edge(), "/other").await;
    assert!(!again.all("cache-status").join(", ").contains("Inner"), "that was about another request");
    // One page, several at once: those who came second say so.
    let gate = Gate::closed();
    let at = gate.clone();
    origin.now_says(move |_| Told::page("slow").waits(Point::BeforeHead, &at));
    let both: Vec<_> = (0..2).map(|_| tokio::spawn(weir.edge().get("/slow").send())).collect();
    eventually("both wait", async || (weir.metric("weir_connections", &[]).await >= 2.0 && origin.hits("/slow") == 1).then_some(())).await;
    gate.open();
    let mut collapsed = 0;
    for one in both {
        let answer = one.await.expect("a client").expect(200);
        collapsed += usize::from(of(&answer).iter().any(|p| p == "collapsed" || p == "hit"));
    }
    assert_eq!((collapsed, origin.hits("/slow")), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc5861_3_stale_while_revalidate() {
    let origin = Origin::start(|seen| Told::page(&format!("version {}", seen.count))).await;
    let weir = Weir::start(&config(&origin, json!([{ "path": "/**", "ttl": "1s", "stale_while_revalidate": "10m" }]))).await;
    let old = weir.edge().get("/p").send().await.expect(200);
    // The next answer of the origin comes only when we have seen what clients get meanwhile.
    let gate = Gate::closed();
    let at = gate.clone();
    origin.now_says(move |seen| Told::page(&format!("version {}", seen.count)).waits(Point::BeforeHead, &at));
    let stale = async || Some(weir.edge().get("/p").send().await.expect(200)).filter(|a| a.verdict() == "STALE");
    let first = eventually("the page's second is over", stale).await;
    assert_eq!(first.body, old.body);
    assert!(ttl(first.must("cache-status")) <= 0, "{}", first.must("cache-status"));
    for _ in 0..10 {
        let answer = weir.edge().get("/p").send().await.expect(200);
        assert_eq!((answer.verdict(), &answer.body), ("STALE", &old.body), "nobody waits");
    }
    eventually("one fetch", async || (origin.hits("/p") == 2).then_some(())).await;
    gate.open();
    let new = eventually("the new page", async || Some(weir.edge().get("/p").send().await.expect(200)).filter(|a| a.body != old.body)).await;
    assert!(["HIT", "STALE"].contains(&new.verdict()), "{}", new.verdict());
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc5861_4_stale_if_error_as_response_and_rule_allow() {
    let words = "s-maxage=1, stale-if-error=600, stale-while-revalidate=0";
    let origin = Origin::start(move |_| Told::page("good").with("cache-control", words)).await;
    // The response says 600 s everywhere; what the rule says is the most.
    let rules = json!([
        { "path": "/allowed", "ttl": "origin", "stale_if_error": "10m" },
        { "path": "/capped", "ttl": "origin", "stale_if_error": "1ms" },
        { "path": "/silent", "ttl": "origin" },
    ]);
    let weir = Weir::start(&config(&origin, rules)).await;
    for page in ["/allowed", "/capped", "/silent"] {
        assert_eq!(weir.edge().get(page).send().await.expect(200).verdict(), "MISS");
    }
    for status in [500, 502, 503, 504] {
        origin.now_says(move |_| Told::new(status, "down"));
        let over = async |page: &str| eventually("the page's second is over", async || Some(weir.edge().get(page).send().await).filter(|a| a.verdict() != "HIT")).await;
        let allowed = over("/allowed").await;
        assert_eq!((allowed.status, allowed.verdict()), (200, "STALE"), "{status}");
        for page in ["/capped", "/silent"] {
            assert_eq!(over(page).await.status, status, "{page}");
        }
    }
    // A client's error is no failure of the origin.
    origin.now_says(|_| Told::new(403, "no"));
    let refused = async || (weir.edge().get("/allowed").send().await.status == 403).then_some(());
    eventually("the origin is asked again, and its word counts", refused).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_ttl_origin_the_response_decides() {
    // Fields of the answer; the longest ttl to be seen, or why it is not stored.
    type Case = (&'static [(&'static str, &'static str)], Result<i64, &'static str>);
    let cases: [Case; 16] = [
        (&[("cache-control", "s-maxage=60")], Ok(60)),
        (&[("cache-control", "max-age=5, s-maxage=60")], Ok(60)),
        (&[("cache-control", "s-maxage=60, s-maxage=30")], Ok(30)),
        (&[("cache-control", "max-age=60")], Err("no-s-maxage")),
        (&[], Err("no-s-maxage")),
        (&[("cache-control", "s-maxage=0")], Err("expired")),
        (&[("cache-control", "s-maxage=x")], Err("expired")),
        (&[("cache-control", "s-maxage=60, private")], Err("private")),
        (&[("cache-control", "s-maxage=60, no-store")], Err("no-store")),
        (&[("cache-control", "s-maxage=60, no-cache")], Err("no-cache")),
        (&[("cache-control", "private, no-store"), ("cdn-cache-control", "max-age=40")], Ok(40)),
        (&[("cache-control", "s-maxage=60"), ("cdn-cache-control", "no-store")], Err("no-store")),
        (&[("cdn-cache-control", "max-age=40"), ("weir-cache-control", "max-age=20")], Ok(20)),
        (&[("cdn-cache-control", "max-age=40"), ("weir-cache-control", "no-store")], Err("no-store")),
        (&[("cache-control", "s-maxage=50"), ("cdn-cache-control", "max-age=")], Ok(50)),
        (&[("cache-control", "s-maxage=60"), ("age", "30")], Ok(30)),
    ];
    let origin = Origin::start(move |seen| {
        let number: usize = seen.path().rsplit('/').next().and_then(|n| n.parse().ok()).unwrap_or_default();
        cases[number].0.iter().fold(Told::page("page"), |told, (name, value)| told.with(name, value))
    })
    .await;
    let weir = Weir::start(&config(&origin, json!([{ "path": "/**", "ttl": "origin" }]))).await;
    for (number, (fields, expected)) in cases.iter().enumerate() {
        let target = format!("/case/{number}");
        let first = weir.edge().get(&target).send().await.expect(200);
        match expected {
            Ok(most) => {
                let hit = until_hit(weir.edge(), &target).await;
                assert!(!hit.has("weir-cache-control"), "a word for Weir alone");
                let left = ttl(hit.must("cache-status"));
                assert!(left <= *most && left > 0, "{fields:?}: {left}");
                // Which of two times counted shows only if the others are clearly shorter or longer.
                assert!(left > most - 10, "{fields:?}: {left}");
                assert_eq!(origin.hits(&target), 1, "{fields:?}");
            }
            Err(reason) => {
                assert_eq!(first.detail(), *reason, "{fields:?}");
                assert_eq!(weir.edge().get(&target).send().await.expect(200).verdict(), "BYPASS", "{fields:?}");
                assert!(origin.hits(&target) >= 2, "{fields:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn visitors_do_not_steer_the_origins_load_by_request_directives() {
    let origin = Origin::start(|_| Told::page("page")).await;
    let weir = Weir::start(&config(&origin, minute())).await;
    weir.edge().get("/p").send().await.expect(200);
    until_hit(weir.edge(), "/p").await;
    for (name, value) in [
        ("cache-control", "no-cache"),
        ("cache-control", "no-store"),
        ("cache-control", "max-age=0"),
        ("cache-control", "min-fresh=3600"),
        ("cache-control", "only-if-cached"),
        ("pragma", "no-cache"),
        ("x-cache-refresh", "true"),
    ] {
        assert_eq!(weir.edge().get("/p").header(name, value).send().await.expect(200).verdict(), "HIT", "{name}: {value}");
    }
    assert_eq!(origin.hits("/p"), 1);
    let cold = weir.edge().get("/cold").header("cache-control", "no-store").send().await.expect(200);
    assert_eq!(cold.verdict(), "MISS");
    assert_eq!(until_hit(weir.edge(), "/cold").await.body, cold.body);
    assert_eq!(origin.hits("/cold"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9111_5_2_directives_pass_through() {
    let said = [("cache-control", "max-age=60, new-one=\"a, b\", s-maxage=70"), ("cdn-cache-control", "max-age=50"), ("other-cache-control", "max-age=1")];
    let origin = Origin::start(move |_| said.iter().fold(Told::new(200, "x"), |told, (name, value)| told.with(name, value))).await;
    let weir = Weir::start(&api(config(&origin, minute()), &origin, json!({ "ttl": "60s" }))).await;
    for (method, verdict) in [("GET", "MISS"), ("GET", "HIT"), ("POST", "BYPASS")] {
        let answer = weir.gateway().ask(method, "/api/x").header("cache-control", "max-age=0, new-one").send().await.expect(200);
        assert_eq!(answer.verdict(), verdict);
        for (name, value) in said {
            assert_eq!(answer.must(name), value, "{method}: {verdict}");
        }
    }
    let asked = origin.asked("/api/x");
    assert_eq!(asked.last().and_then(|seen| seen.header("cache-control")), Some("max-age=0, new-one"), "what is not for the cache goes as it came");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_whole_good_pages_are_stored() {
    let html = |status: u16| Told::new(status, "<html><body>x</body></html>").with("content-type", "text/html").with("cache-control", "s-maxage=60");
    let cases: Vec<(&str, Told, &str)> = vec![
        ("500", html(500), "origin-error"),
        ("503", html(503), "origin-error"),
        ("403", html(403), "status"),
        ("307", html(307).with("location", "/elsewhere"), "status"),
        ("302", html(302).with("location", "/elsewhere"), "status"),
        ("404 without a word", Told::new(404, "<html></html>").with("content-type", "text/html"), "status"),
        ("a cookie", html(200).with("set-cookie", "a=b"), "set-cookie"),
        ("no html", Told::new(200, "{}").with("content-type", "application/json"), "content-type"),
        ("half a page", Told::new(200, "<html><body>").with("content-type", "text/html"), "incomplete"),
        ("a nonce", Told::page("<script nonce=\"abc\"></script>"), "nonce"),
        ("an error in the stream", Told::page("<template data-dgst=\"NEXT_REDIRECT;replace;/login;307;\"></template>"), "error-stream"),
        ("a postponed page", html(200).with("x-nextjs-postponed", "1"), "postponed"),
        ("too large", Told::large_page("large", 3_000_000), "too-large"),
    ];
    let names: Vec<(&str, &str)> = cases.iter().map(|(n, _, r)| (*n, *r)).collect();
    let origin = Origin::start(move |seen| {
        let number: usize = seen.path().rsplit('/').next().and_then(|n| n.parse().ok()).unwrap_or_default();
        cases[number].1.clone()
    })
    .await;
    let weir = Weir::start(&config(&origin, json!([{ "path": "/case/*", "ttl": "60s", "max_size": "2MB" }]))).await;
    for (number, (name, reason)) in names.into_iter().enumerate() {
        let target = format!("/case/{number}");
        weir.edge().get(&target).send().await;
        let second = weir.edge().get(&target).send().await;
        assert!(["BYPASS", "MISS"].contains(&second.verdict()), "{name}: {}", second.verdict());
        assert!(origin.hits(&target) >= 2, "{name}");
        // What only the body shows is found out when the head has gone.
        if ["incomplete", "nonce", "error-stream"].contains(&reason) {
            continue;
        }
        let counted = weir.metric("weir_cache_reasons_total", &[&format!("reason=\"{reason}\"")]).await;
        assert!(counted >= 1.0, "{name}: the metric knows `{reason}`: {}", second.must("cache-status"));
    }
    // A missing page is kept where the origin says so by name.
    origin.now_says(move |_| html(404));
    weir.edge().get("/case/gone").send().await.expect(404);
    let again = async || Some(weir.edge().get("/case/gone").send().await.expect(404)).filter(|a| a.verdict() == "HIT");
    eventually("the 404 is a hit", again).await;
    // Counted as what they are; an answer is counted only after it was sent, so one from before may be among them.
    let counted = async || weir.metric("weir_requests_total", &["route=\"document\"", "status=\"404\""]).await;
    let before = counted().await;
    for _ in 0..10 {
        weir.edge().get("/case/gone").send().await.expect(404);
    }
    eventually("they are counted as 404", async || (counted().await >= before + 10.0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rfc9111_4_4_an_unsafe_request_that_succeeds_outdates_the_answer() {
    let origin = Origin::start(|seen| match (seen.method.as_str(), seen.target.as_str()) {
        ("GET", _) => Told::new(200, format!("version {}", seen.count)),
        (_, target) if target.contains("fail") => Told::new(500, "no"),
        (_, target) if target.contains("refuse") => Told::new(422, "no"),
        _ => Told::new(200, "done"),
    })
    .await;
    let settings = json!({ "ttl": "60s", "query": [] });
    let weir = Weir::start(&api(config(&origin, minute()), &origin, settings)).await;
    // Whose safety is not known counts as unsafe.
    for method in ["POST", "PUT", "PATCH", "DELETE", "BREW"] {
        let target = format!("/api/{}", method.to_lowercase());
        let send = async |query: &str| weir.gateway().ask(method, &format!("{target}?{query}")).body("").send().await;
        let old = weir.gateway().get(&target).send().await.expect(200);
        assert_eq!(until_hit(weir.gateway(), &target).await.body, old.body);
        for failed in ["fail", "refuse"] {
            send(failed).await;
        }
        // A change that did not happen changes nothing. (Nothing may come later either, so that this can only be looked at.)
        let kept = weir.gateway().get(&target).send().await.expect(200);
        assert_eq!((kept.verdict(), &kept.body), ("HIT", &old.body), "{method}");
        send("x").await.expect(200);
        let changed = async || Some(weir.gateway().get(&target).send().await.expect(200)).filter(|a| a.body != old.body);
        eventually(&format!("{method}: the old answer is gone"), changed).await;
    }
}

fn sitemap(seen: &Seen) -> Told {
    let xml = |text: String| Told::new(200, format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{text}")).with("content-type", "application/xml");
    let space = "xmlns=\"http://www.sitemaps.org/schemas/sitemap/0.9\"";
    match seen.path() {
        "/sitemap.xml" => xml(format!(
            "<sitemapindex {space}><sitemap><loc>https://shop.test/maps/a.xml</loc></sitemap><sitemap><loc>https://shop.test/maps/b.xml</loc><lastmod>2024-01-01</lastmod></sitemap><sitemap><loc>https://shop.test/maps/none.xml</loc></sitemap></sitemapindex>"
        )),
        "/maps/a.xml" => xml(format!(
            "<urlset {space}><url><loc>https://shop.test/a/1</loc></url><url><loc> https://shop.test/a/2?q=1&amp;utm_source=x </loc></url></urlset>"
        )),
        "/maps/b.xml" => xml(format!("<urlset {space}><url><loc><![CDATA[https://shop.test/b/1]]></loc></url><url><loc>https://shop.test/a/1</loc></url></urlset>")),
        "/maps/none.xml" => Told::new(404, "no"),
        "/b/1" if seen.count == 1 => Told::new(500, "down"),
        _ => Told::page(seen.path()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warm_up_follows_sitemaps_and_says_what_failed() {
    let origin = Origin::start(sitemap).await;
    let settings = json!({ "every": "1h", "sitemaps": ["edge://shop.test/sitemap.xml"], "concurrency": 2 });
    let weir = Weir::start(&config(&origin, minute()).set("/warm_up", settings)).await;
    // The round at the start may be under way; then the next.
    let round = async || {
        let answer = weir.admin().ask("POST", "/warm-up").body("").send().await;
        (answer.status == 200).then(|| answer.text().lines().map(|l| serde_json::from_str(l).expect("a line of JSON")).collect::<Vec<Value>>())
    };
    eventually("the page that failed at first was asked for", async || (origin.hits("/b/1") >= 1).then_some(())).await;
    let lines = eventually("a round", round).await;
    let failed: Vec<&str> = lines.iter().filter(|l| l["ok"] == false).filter_map(|l| l["target"].as_str()).collect();
    assert_eq!(failed, ["edge://shop.test/maps/none.xml"], "{lines:?}");
    let sums = lines.last().expect("a last line");
    assert_eq!((&sums["warmed"], &sums["failed"]), (&json!(3), &json!(1)), "{lines:?}");
    // The same keys as visitors' requests.
    let before: Vec<usize> = ["/a/1", "/a/2", "/b/1"].iter().map(|p| origin.hits(p)).collect();
    for target in ["/a/1", "/a/2?utm_campaign=y&q=1", "/b/1"] {
        assert_eq!(weir.edge().get(target).send().await.expect(200).verdict(), "HIT", "{target}");
    }
    assert_eq!(["/a/1", "/a/2", "/b/1"].iter().map(|p| origin.hits(p)).collect::<Vec<_>>(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warm_up_of_the_pages_that_are_asked_for_most() {
    let origin = Origin::start(|seen| Told::page(&format!("{} {}", seen.path(), seen.count))).await;
    let weir = Weir::start(&config(&origin, minute()).set("/warm_up", json!({ "every": "1h", "top": 2 }))).await;
    // Weir counts a sample, so that the differences must be great.
    let mut connection = weir.edge().connect().await;
    for (page, times) in [("/much", 400), ("/little", 3), ("/more?q=a", 400), ("/some", 30)] {
        for _ in 0..times {
            weir.edge().get(page).on(&mut connection).await.expect("a whole answer").expect(200);
        }
    }
    weir.admin().post_json("/purge", &json!({ "all": true })).send().await.expect(200);
    let round = async || Some(weir.admin().ask("POST", "/warm-up").body("").send().await).filter(|a| a.status == 200);
    let report = eventually("a round", round).await.text();
    assert!(report.ends_with("{\"failed\":0,\"warmed\":2}\n") || report.ends_with("{\"warmed\":2,\"failed\":0}\n"), "{report}");
    for page in ["edge://shop.test/much", "edge://shop.test/more?q=a"] {
        assert!(report.contains(page), "{report}");
    }
    for (page, verdict) in [("/much", "HIT"), ("/more?q=a", "HIT"), ("/some", "MISS"), ("/little", "MISS")] {
        assert_eq!(weir.edge().get(page).send().await.expect(200).verdict(), verdict, "{page}: {report}");
    }
}
