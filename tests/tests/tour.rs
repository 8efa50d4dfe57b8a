//! The edge, as its visitors see it: pages from the cache, what passes it by, guest tokens, answers in part.

use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde_json::{Value, json};
use std::collections::HashSet;
use upstream_stubs::{Fault, FaultRule};
use weir_tests::{Answer, Broken, CUSTOMER, Door, GUEST_KEY, Shop, Weir, eventually};

async fn open() -> (Shop, Weir) {
    let shop = Shop::start().await;
    let weir = Weir::start(&shop.config()).await;
    (shop, weir)
}

/// A visitor who has been here before, and so carries a guest token already.
async fn returning(door: Door) -> String {
    let answer = door.get("/about").send().await.expect(200);
    answer.cookie("guest_token").expect("a guest cookie").to_owned()
}

async fn customer(weir: &Weir) -> String {
    let answer = weir.gateway().ask("POST", "/api/auth/login").header("authorization", CUSTOMER).body("").send().await.expect(200);
    answer.json()["access_token"].as_str().expect("a token").to_owned()
}

/// The fields of an answer that are the origin's, as far as they outlive the way: not the connection's, not Weir's.
fn own_fields(answer: &Answer) -> Vec<(String, String)> {
    const LEFT_OUT: [&str; 11] = [
        "connection",
        "keep-alive",
        "transfer-encoding",
        "content-length",
        "date",
        "via",
        "x-request-id",
        "x-cache-status",
        "cache-status",
        // Told to nobody outside: what the site is made of.
        "x-powered-by",
        "x-nextjs-cache",
    ];
    let mut fields: Vec<_> = answer.headers.iter().filter(|(n, _)| !LEFT_OUT.contains(&n.as_str())).cloned().collect();
    fields.sort();
    fields
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_comes_from_the_origin_once_and_then_from_the_cache() {
    let (shop, weir) = open().await;
    let first = weir.edge().get("/categories").send().await.expect(200);
    assert_eq!(first.verdict(), "MISS");
    assert_eq!(first.must("x-cache-key"), "html_cache:shop.test/categories");
    assert!(first.must("cache-status").starts_with("Weir; fwd=uri-miss; fwd-status=200"), "{}", first.must("cache-status"));
    let said = first.must("cache-status");
    assert!(said.contains("; stored") || said.contains("; detail=streaming"), "kept, or the body was still on its way: {said}");
    assert!(first.must("content-type").starts_with("text/html"));
    assert!(first.text().ends_with("</html>"), "{}", first.text());

    let second = weir.edge().get("/categories").send().await.expect(200);
    assert_eq!(second.verdict(), "HIT");
    assert_eq!(second.body, first.body);
    assert_eq!(second.must("x-cache-key"), "html_cache:shop.test/categories");
    assert!(second.must("cache-status").starts_with("Weir; hit; ttl="), "{}", second.must("cache-status"));
    let age: u64 = second.must("age").parse().expect("seconds");
    assert_eq!(second.must("x-cache-age"), age.to_string());
    let left: u64 = second.must("x-cache-ttl").parse().expect("seconds");
    assert!(left <= 60 && age <= 60, "ttl {left}, age {age}");
    assert_eq!(shop.storefront().hits_for("/categories"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_home_page_has_a_key_of_its_own_for_every_host() {
    let (shop, weir) = open().await;
    for (host, key) in [
        ("Shop.Test", "html_cache:shop.test/"),
        ("shop.test:80", "html_cache:shop.test/"),
        ("shop.test.", "html_cache:shop.test/"),
        ("other.test", "html_cache:other.test/"),
    ] {
        let answer = weir.edge().get("/").host(host).send().await.expect(200);
        assert_eq!(answer.must("x-cache-key"), key, "{host}");
    }
    assert_eq!(shop.storefront().hits_for("/"), 2, "one fill for each of the two hosts");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_diagnostic_fields_can_be_switched_off() {
    let shop = Shop::start().await;
    let config = shop.config().set("/edge/headers", json!({ "status": false, "key": false, "cache_status": false }));
    let weir = Weir::start(&config).await;
    for _ in 0..2 {
        let answer = weir.edge().get("/categories").send().await.expect(200);
        let shown: Vec<_> = answer.headers.iter().filter(|(n, _)| n.starts_with("x-cache") || n == "cache-status").collect();
        assert!(shown.is_empty(), "{shown:?}");
    }
    assert_eq!(shop.storefront().hits_for("/categories"), 1, "cached all the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_in_the_key_is_asked_for() {
    let (shop, weir) = open().await;
    let key = |answer: Answer| answer.must("x-cache-key").to_owned();
    let plain = "html_cache:shop.test/categories";
    for query in ["?utm_source=mail&gclid=1", "?anything=else", "?", "?_rsc=abc", "?PAGE=2"] {
        let answer = weir.edge().get(&format!("/categories{query}")).send().await.expect(200);
        assert_eq!(key(answer), plain, "{query}");
    }
    let sorted = format!("{plain}?page=2&sort=price");
    for query in ["?sort=price&page=2", "?page=2&utm_medium=x&sort=price", "?fbclid=1&sort=price&page=2&evil=1"] {
        let answer = weir.edge().get(&format!("/categories{query}")).send().await.expect(200);
        assert_eq!(key(answer), sorted, "{query}");
    }
    let targets: Vec<String> = shop.storefront().requests().into_iter().map(|r| r.target).collect();
    assert_eq!(targets, ["/categories", "/categories?page=2&sort=price"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_carries_nothing_of_the_visitor_who_caused_it() {
    let (shop, weir) = open().await;
    let token = returning(weir.edge()).await;
    shop.storefront().reset();
    let visitor = [
        ("accept-language", "de-DE,de;q=0.9"),
        ("cookie", "cart=42; theme=dark"),
        ("referer", "http://elsewhere.test/secret"),
        ("user-agent", "Visitor/1.0"),
        ("x-forwarded-host", "evil.test"),
        ("x-forwarded-for", "203.0.113.9"),
        ("x-custom", "1"),
        ("sec-ch-ua-mobile", "?1"),
    ];
    weir.edge().get("/categories?page=3").headers(visitor).cookie("guest_token", &token).send().await.expect(200);
    let [seen] = &shop.storefront().requests()[..] else { panic!("one request") };
    assert_eq!(seen.header("host"), Some("shop.test"));
    assert_eq!(seen.header("x-forwarded-host"), Some("shop.test"));
    let mut names: Vec<&str> = seen.headers.iter().map(|(n, _)| n.as_str()).collect();
    names.sort_unstable();
    let known = [
        "accept",
        "accept-encoding",
        "connection",
        "host",
        "user-agent",
        "via",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-proto",
        "x-request-id",
    ];
    for name in names {
        assert!(known.contains(&name), "a fill with `{name}`: {seen:?}");
    }
    let text = format!("{seen:?}");
    for secret in ["cart", "de-DE", "elsewhere", "Visitor/1.0", "evil.test", "203.0.113.9", &token] {
        assert!(!text.contains(secret), "`{secret}` reached the origin by a fill: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn component_requests_pass_byte_for_byte_and_never_meet_the_page() {
    let (shop, weir) = open().await;
    let page = weir.edge().get("/categories").send().await.expect(200);
    let router = [
        ("RSC", "1"),
        ("Next-Router-State-Tree", "%5B%22%22%2C%7B%22children%22%3A%5B%22categories%22%5D%7D%5D"),
        ("Next-Router-Prefetch", "1"),
        ("Next-Router-Segment-Prefetch", "/_tree"),
        ("Next-Url", "/"),
        ("Accept", "*/*"),
    ];
    let target = "/categories?_rsc=1a2b3&page=2&utm_source=x&b=%2F&a";
    let direct = shop.origin().get(target).headers(router).send().await.expect(200);
    let token = returning(weir.edge()).await;
    for _ in 0..2 {
        shop.storefront().reset();
        let answer = weir.edge().get(target).headers(router).cookie("guest_token", &token).send().await.expect(200);
        assert_eq!((answer.verdict(), answer.detail().as_str()), ("BYPASS", "rsc"));
        assert_eq!(answer.body, direct.body);
        assert_eq!(own_fields(&answer), own_fields(&direct));
        let [seen] = &shop.storefront().requests()[..] else { panic!("each one reaches the origin") };
        assert_eq!(seen.target, target);
        for (name, value) in router {
            assert_eq!(seen.header(name), Some(value), "{name}");
        }
    }
    let bare = weir.edge().get("/categories").header("rsc", "1").send().await.expect(200);
    assert!(bare.must("content-type").starts_with("text/x-component"));
    let again = weir.edge().get("/categories").send().await.expect(200);
    assert_eq!((again.verdict(), &again.body), ("HIT", &page.body));
}

#[tokio::test(flavor = "multi_thread")]
async fn server_actions_and_forms_pass_and_are_never_kept() {
    let (shop, weir) = open().await;
    for id in ["7f".repeat(20), format!("00{}", "ab".repeat(20))] {
        let act = |door: Door| door.post("/categories", "text/plain;charset=UTF-8", "[\"shoes\",42]").header("next-action", &id).header("accept", "text/x-component");
        let before = shop.storefront().hits_for("/categories");
        let answer = act(weir.edge()).send().await.expect(200);
        assert_eq!((answer.verdict(), answer.detail().as_str()), ("BYPASS", "action"));
        assert!(answer.must("content-type").starts_with("text/x-component"));
        assert!(answer.text().contains("\"received\":12"), "{}", answer.text());
        act(weir.edge()).send().await.expect(200);
        assert_eq!(shop.storefront().hits_for("/categories"), before + 2);
    }
    let form = weir.edge().post("/account", "application/x-www-form-urlencoded", "go=redirect").send().await.expect(303);
    assert_eq!(form.must("location"), "/categories/shoes");
    let page = weir.edge().get("/categories").send().await.expect(200);
    assert_eq!(page.verdict(), "MISS", "an action's answer stands in no page's place");
    weir.edge().post("/", "text/plain", "x").header("next-action", "short").send().await.expect(400);
}

#[tokio::test(flavor = "multi_thread")]
async fn assets_and_images_pass_unchanged() {
    let (shop, weir) = open().await;
    for (target, accept, class) in [
        ("/_next/static/chunks/main-demo-build-1.js", "*/*", "static"),
        ("/_next/static/css/demo-build-1.css?dpl=7", "text/css,*/*;q=0.1", "static"),
        ("/_next/image?url=%2Fraw.png&w=64&q=75", "image/avif,image/webp,*/*", "image"),
        ("/raw.png", "image/png,image/*;q=0.8", "asset"),
    ] {
        let direct = shop.origin().get(target).header("accept", accept).send().await.expect(200);
        let answer = weir.edge().get(target).header("accept", accept).send().await.expect(200);
        assert_eq!((answer.verdict(), answer.detail().as_str()), ("BYPASS", class), "{target}");
        assert_eq!(answer.body, direct.body, "{target}");
        assert_eq!(own_fields(&answer), own_fields(&direct), "{target}: no token for a file, and no field lost");
    }
    let missing = weir.edge().get("/_next/static/chunks/gone.js").send().await.expect(404);
    assert_eq!(missing.must("content-type"), shop.origin().get("/_next/static/chunks/gone.js").send().await.must("content-type"));
}

fn claims(token: &str) -> Value {
    let mut rules = Validation::new(Algorithm::HS256);
    rules.validate_aud = false;
    decode::<Value>(token, &DecodingKey::from_secret(GUEST_KEY.as_bytes()), &rules).expect("a token signed with the guest key").claims
}

#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_gets_one_token_and_keeps_it() {
    let (shop, weir) = open().await;
    let first = weir.edge().get("/categories").send().await.expect(200);
    let [cookie] = first.all("set-cookie")[..] else { panic!("one cookie: {first:#?}") };
    let attributes: HashSet<String> = cookie.split(';').skip(1).map(|a| a.trim().to_ascii_lowercase()).collect();
    for wanted in ["httponly", "samesite=lax", "path=/", "max-age=2592000"] {
        assert!(attributes.contains(wanted), "{cookie}");
    }
    assert!(!attributes.contains("secure"), "over plain HTTP a Secure cookie would be lost: {cookie}");
    assert_eq!(first.must("cache-control"), "private, no-store", "a fresh cookie is nothing for caches behind us");
    let token = first.cookie("guest_token").expect("a token").to_owned();
    let said = claims(&token);
    assert_eq!(said["iss"], "weir");
    assert_eq!(said["role"], "guest");
    assert_eq!(said["exp"].as_u64(), said["iat"].as_u64().map(|t| t + 30 * 24 * 3600));

    let second = weir.edge().get("/categories").cookie("guest_token", &token).send().await.expect(200);
    assert_eq!(second.verdict(), "HIT");
    assert!(!second.has("set-cookie"), "{second:#?}");
    assert_eq!(second.must("cache-control"), "public, max-age=0, must-revalidate");
    let other = weir.edge().get("/categories").send().await.expect(200);
    let other = other.cookie("guest_token").expect("a hit gives a newcomer a token too");
    assert_ne!(claims(other)["sub"], said["sub"], "nobody gets another's token");
    let forged = format!("{}x", &token[..token.len() - 1]);
    let answer = weir.edge().get("/categories").cookie("guest_token", &forged).send().await.expect(200);
    assert!(answer.cookie("guest_token").is_some(), "a token that we did not sign counts as none");

    for request in shop.storefront().requests() {
        assert_eq!(request.header("authorization"), None, "a fill: {request:?}");
    }
    shop.storefront().reset();
    let passed = weir.edge().get("/search?q=boots").cookie("guest_token", &token).send().await.expect(200);
    assert_eq!((passed.verdict(), passed.detail().as_str()), ("BYPASS", "no-rule"));
    let [seen] = &shop.storefront().requests()[..] else { panic!("one request") };
    assert_eq!(seen.header("authorization"), Some(&*format!("Bearer {token}")));
    let fresh = weir.edge().get("/search?q=boots").send().await.expect(200);
    let fresh_token = fresh.cookie("guest_token").expect("a token");
    let seen = shop.storefront().requests();
    assert_eq!(seen[1].header("authorization"), Some(&*format!("Bearer {fresh_token}")), "from the first request on");
}

#[tokio::test(flavor = "multi_thread")]
async fn guest_tokens_may_come_from_the_auth_service() {
    let shop = Shop::start().await;
    let auth = shop.stubs.auth.handle();
    let issue = json!({ "url": format!("{}/api/auth/guest", shop.stubs.auth.url()), "timeout": "5s" });
    let weir = Weir::start(&shop.config().set("/edge/guests/issue", issue)).await;
    let answer = weir.edge().get("/categories").send().await.expect(200);
    let token = answer.cookie("guest_token").expect("a token").to_owned();
    assert_eq!(auth.hits_for("/api/auth/guest"), 1);
    shop.origin().get("/about").send().await.expect(200);
    let verified = Door(shop.stubs.auth.addr()).get("/api/auth/verify").bearer(&token).send().await.expect(200);
    assert_eq!(verified.json()["iss"], "weir-demo-auth");
    let again = weir.edge().get("/categories").cookie("guest_token", &token).send().await.expect(200);
    assert!(!again.has("set-cookie"), "the service's token is as good as ours: {again:#?}");

    auth.add_fault(FaultRule { path_prefix: "/api/auth/guest".into(), status: Some(503), ..FaultRule::default() }).expect("a fault");
    let answer = weir.edge().get("/categories").send().await.expect(200);
    assert_eq!(claims(answer.cookie("guest_token").expect("a token all the same"))["iss"], "weir");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_signed_in_passes_by_the_cache_untouched() {
    let (shop, weir) = open().await;
    let token = customer(&weir).await;
    weir.edge().get("/categories").send().await.expect(200);
    for _ in 0..2 {
        shop.storefront().reset();
        let answer = weir.edge().get("/categories").bearer(&token).send().await.expect(200);
        assert_eq!((answer.verdict(), answer.detail().as_str()), ("BYPASS", "signed-in"));
        assert!(!answer.has("set-cookie"), "{answer:#?}");
        let [seen] = &shop.storefront().requests()[..] else { panic!("one request") };
        assert_eq!(seen.header("authorization"), Some(&*format!("Bearer {token}")));
    }
    shop.storefront().reset();
    let answer = weir.edge().get("/categories").cookie("access_token", &token).send().await.expect(200);
    assert_eq!((answer.verdict(), answer.detail().as_str()), ("BYPASS", "signed-in"));
    let [seen] = &shop.storefront().requests()[..] else { panic!("one request") };
    assert_eq!(seen.header("cookie"), Some(&*format!("access_token={token}")));
    let stranger = weir.edge().get("/categories").send().await.expect(200);
    assert_eq!(stranger.verdict(), "HIT");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_may_share_its_page_with_those_who_are_signed_in() {
    let shop = Shop::start().await;
    let rules = json!([
        { "path": "/about", "ttl": "60s", "signed_in": "share" },
        { "path": "/categories", "ttl": "60s", "fill_token": "token-of-the-rule" },
    ]);
    let weir = Weir::start(&shop.config().pages(rules)).await;
    let token = customer(&weir).await;
    for verdict in ["MISS", "HIT"] {
        let answer = weir.edge().get("/about").bearer(&token).send().await.expect(200);
        assert_eq!(answer.verdict(), verdict);
    }
    let [seen] = &shop.storefront().requests()[..] else { panic!("one fill") };
    assert_eq!(seen.header("authorization"), None, "a shared page is asked for by nobody");

    shop.storefront().reset();
    weir.edge().get("/categories").send().await.expect(200);
    let [seen] = &shop.storefront().requests()[..] else { panic!("one fill") };
    assert_eq!(seen.header("authorization"), Some("Bearer token-of-the-rule"));
}

#[tokio::test(flavor = "multi_thread")]
async fn health_checks_need_neither_token_nor_origin() {
    let (shop, weir) = open().await;
    for path in ["/health", "/ping", "/_health"] {
        let answer = weir.edge().get(path).send().await.expect(200);
        assert!(!answer.has("set-cookie"), "{path}: {answer:#?}");
        weir.edge().ask("HEAD", path).send().await.expect(200);
    }
    assert_eq!(shop.storefront().hits(), 0);
    for agent in ["kube-probe/1.31", "Mozilla/5.0 (compatible; UptimeRobot/2.0)", "ELB-HealthChecker/2.0"] {
        let answer = weir.edge().get("/categories").header("user-agent", agent).send().await.expect(200);
        assert!(!answer.has("set-cookie"), "{agent}: {answer:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_one_visitors_is_never_stored() {
    let shop = Shop::start().await;
    let rules = json!([{ "path": "/**", "ttl": "60s" }]);
    let weir = Weir::start(&shop.config().pages(rules)).await;
    let mut cookies = HashSet::new();
    for round in 1..=3 {
        let answer = weir.edge().get("/set-cookie").send().await.expect(200);
        assert_eq!(answer.verdict(), "BYPASS", "round {round}");
        assert!(cookies.insert(answer.cookie("seen").expect("the page's cookie").to_owned()), "a cookie came twice");
    }
    for (path, reason) in [("/stream?pieces=2", "private"), ("/account", "private"), ("/search?q=1", "private"), ("/nonce", "nonce")] {
        let hits = |path: &str| shop.storefront().hits_for(path.split('?').next().unwrap_or(path));
        let first = weir.edge().get(path).send().await.expect(200);
        assert_eq!(first.verdict(), "BYPASS", "{path}");
        assert!([reason, "no-store"].contains(&&*first.detail()), "{path}: {}", first.detail());
        let before = hits(path);
        let second = weir.edge().get(path).send().await.expect(200);
        assert_eq!(second.verdict(), "BYPASS", "{path}");
        assert_eq!(hits(path), before + 1, "{path}: soon after, one asks the origin once");
    }
    for cookie in ["__prerender_bypass=x", "__next_preview_data=x"] {
        let answer = weir.edge().get("/categories").header("cookie", cookie).send().await.expect(200);
        assert_eq!((answer.verdict(), answer.detail().as_str()), ("BYPASS", "draft"), "a wrong value too: {cookie}");
        assert_eq!(answer.must("cache-control"), "private, no-store");
    }
    assert_eq!(weir.edge().get("/categories").send().await.verdict(), "MISS");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_broke_off_is_noticed_and_not_stored() {
    let shop = Shop::start().await;
    let weir = Weir::start(&shop.config().pages(json!([{ "path": "/**", "ttl": "60s" }]))).await;
    for target in ["/broken", "/broken?chunked=1"] {
        for _ in 0..2 {
            let before = shop.storefront().hits_for("/broken");
            let answer = weir.edge().get(target).attempt().await;
            assert!(matches!(answer, Err(Broken::Truncated(Some(200), _))), "{target}: {answer:?}");
            assert!(shop.storefront().hits_for("/broken") > before, "{target}: asked for anew");
        }
    }
    for fault in [Fault::Truncate, Fault::Close, Fault::Reset, Fault::Garbage] {
        let rule = FaultRule { path_prefix: "/about".into(), fault: Some(fault), ..FaultRule::default() };
        shop.storefront().add_fault(rule).expect("a fault");
        match weir.edge().get("/about").attempt().await {
            Ok(answer) => assert_eq!(answer.status, 502, "{fault:?}"),
            Err(broken) => assert!(matches!(broken, Broken::Truncated(..)), "{fault:?}: {broken}"),
        }
        shop.storefront().clear_faults();
    }
    assert_eq!(weir.edge().get("/about").send().await.expect(200).verdict(), "MISS");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_page_is_better_than_none() {
    let shop = Shop::start().await;
    let rules = json!([
        { "path": "/categories", "ttl": "1s", "stale_if_error": "1d" },
        { "path": "/about", "ttl": "1s" },
        { "path": "/", "ttl": "1s", "stale_while_revalidate": "1d" },
    ]);
    let weir = Weir::start(&shop.config().pages(rules)).await;
    let kept = weir.edge().get("/categories").send().await.expect(200);
    weir.edge().get("/about").send().await.expect(200);
    shop.storefront().add_fault(FaultRule { path_prefix: "/categories".into(), status: Some(503), ..FaultRule::default() }).expect("a fault");
    let stale = async |path: &str| {
        eventually("a stale page", async || Some(weir.edge().get(path).send().await.expect(200)).filter(|a| a.verdict() == "STALE")).await
    };
    let answer = stale("/categories").await;
    assert_eq!((answer.detail().as_str(), &answer.body), ("stale-if-error", &kept.body));
    shop.storefront().clear_faults();

    weir.edge().get("/").send().await.expect(200);
    let old = stale("/").await;
    assert_eq!(old.detail(), "stale-while-revalidate");
    eventually("the new page", async || {
        let answer = weir.edge().get("/").send().await.expect(200);
        (answer.verdict() == "HIT" && answer.body != old.body).then_some(())
    })
    .await;

    shop.stubs.storefront.stop().await;
    let answer = stale("/categories").await;
    assert_eq!((answer.detail().as_str(), &answer.body), ("stale-if-error", &kept.body));
    let failed = weir.edge().get("/about").header("accept", "text/html").send().await.expect(502);
    assert!(failed.must("content-type").starts_with("text/html"));
    assert_eq!(failed.must("x-weir-reason"), "connect");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_in_part_come_from_the_whole_page() {
    let (shop, weir) = open().await;
    let token = returning(weir.edge()).await;
    let ask = |method: &str| weir.edge().ask(method, "/categories").cookie("guest_token", &token);
    let page = ask("GET").send().await.expect(200);
    let head = ask("HEAD").send().await.expect(200);
    assert_eq!(head.verdict(), "HIT");
    assert_eq!(head.must("content-length"), page.body.len().to_string());

    let etag = page.must("etag");
    for given in [etag, &format!("\"other\", {etag}"), &format!("W/{}", etag.trim_start_matches("W/")), "*"] {
        let answer = ask("GET").header("if-none-match", given).send().await.expect(304);
        assert_eq!((answer.verdict(), answer.must("etag")), ("HIT", etag), "{given}");
        assert!(!answer.has("content-type"));
    }
    let changed = ask("GET").header("if-none-match", "\"other\"").send().await.expect(200);
    assert_eq!(changed.body, page.body);

    let part = ask("GET").header("range", "bytes=5-14").send().await.expect(206);
    assert_eq!(part.body, page.body.slice(5..15));
    assert_eq!(part.must("content-range"), format!("bytes 5-14/{}", page.body.len()));
    let end = ask("GET").header("range", "bytes=-7").send().await.expect(206);
    assert_eq!(end.text(), "</html>");
    let beyond = ask("GET").header("range", "bytes=9999999-").send().await.expect(416);
    assert_eq!(beyond.must("content-range"), format!("bytes */{}", page.body.len()));
    let several = ask("GET").header("range", "bytes=0-1,5-6").send().await.expect(200);
    assert_eq!(several.body, page.body);
    assert_eq!(shop.storefront().hits_for("/categories"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_is_a_purge() {
    let shop = Shop::start().await;
    let mut weir = Weir::start(&shop.config()).await;
    for verdict in ["MISS", "HIT"] {
        assert_eq!(weir.edge().get("/categories").send().await.verdict(), verdict);
    }
    let url = json!({ "url": "http://shop.test/categories" });
    weir.admin().post_json("/purge", &url).send().await.expect(200);
    for verdict in ["MISS", "HIT"] {
        assert_eq!(weir.edge().get("/categories").send().await.verdict(), verdict, "after a purge by hand");
    }
    weir.write(&shop.config().set("/edge/deployment", "the-next"));
    weir.hang_up();
    eventually("the new deployment", async || (weir.edge().get("/categories").send().await.verdict() == "MISS").then_some(())).await;
    assert_eq!(weir.terminate().await, Some(0));
}
