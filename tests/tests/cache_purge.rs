//! Three Weir processes on one Redis: what is purged at one is gone at all, and nothing else is.

use serde_json::{Value, json};
use upstream_stubs::FaultRule;
use weir_tests::{
    Answer, Config, Door, Outcome, RedisServer, Shop, Weir,
    cache_help::{until_hit, until_other},
    eventually,
};

const TOKEN: &str = "purge-token-of-the-tests";

struct Site {
    shop: Shop,
    weirs: Vec<Weir>,
    config: Config,
    _redis: RedisServer,
}

impl Site {
    async fn open() -> Site {
        let redis = RedisServer::start();
        let shop = Shop::start().await;
        let cached = json!([{ "name": "response-cache", "config": { "ttl": "300s", "shared": true, "tags": ["start"] } }]);
        let config = shop
            .config()
            // On a loaded machine a call may take long; an instance would then go on alone, and rightly so.
            .set("/store", json!({ "url": redis.url(), "deadline": "2s" }))
            .set("/edge/purge", json!({ "from": ["127.0.0.1", "::1"], "token": TOKEN }))
            .pages(json!([
                { "path": "/page/**", "ttl": "60s", "query": ["size"], "stale_while_revalidate": "10m" },
                { "path": "/categories", "ttl": "60s", "tags": ["catalogue"], "stale_while_revalidate": "10m" },
                { "path": "/categories/**", "ttl": "60s", "tags": ["catalogue", "list"], "stale_while_revalidate": "10m" },
            ]))
            .service("tagged", &shop.stubs.bff.url(), "/api/categories", cached);
        let mut weirs = Vec::new();
        for name in ["first", "second", "third"] {
            weirs.push(Weir::start_as(name, &config).await);
        }
        Site { shop, weirs, config, _redis: redis }
    }

    fn hits(&self, path: &str) -> u64 {
        self.shop.storefront().hits_for(path)
    }

    /// Has every instance keep these pages in memory; the pages.
    async fn keep(&self, targets: &[&str]) -> Vec<Answer> {
        let mut pages = Vec::new();
        for target in targets {
            pages.push(self.weirs[0].edge().get(target).send().await.expect(200));
            for weir in &self.weirs {
                // From the store into memory, and from memory.
                for _ in 0..2 {
                    let answer = until_hit(weir.edge(), target).await;
                    assert_eq!(answer.body, pages[pages.len() - 1].body, "{target}: one page for all instances");
                }
            }
        }
        pages
    }

    /// All instances have another page than this one, and the origin was asked once for it.
    async fn gone(&self, target: &str, old: &Answer) {
        let path = target.split('?').next().expect("a path");
        let before = self.hits(path);
        for weir in &self.weirs {
            until_other(weir.edge(), target, old).await;
        }
        assert_eq!(self.hits(path), before + 1, "{target}: one fetch for three instances that miss");
    }

    /// All instances still have this page.
    async fn kept(&self, target: &str, old: &Answer) {
        for weir in &self.weirs {
            let answer = weir.edge().get(target).send().await.expect(200);
            assert_eq!((answer.verdict(), &answer.body), ("HIT", &old.body), "{target}");
        }
    }
}

async fn purge(at: &Weir, order: Value) -> Value {
    let report = at.admin().post_json("/purge", &order).send().await.expect(200).json();
    assert_eq!((&report["store_reached"], &report["others_told"]), (&json!(true), &json!(true)), "{report}");
    report
}

const PAGES: [&str; 5] = ["/page/1", "/page/2?size=9000", "/page/22", "/categories", "/categories/boots"];

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_purge_reaches_all_instances_and_only_what_is_meant() {
    let site = Site::open().await;
    // What is ordered, and which of PAGES it means.
    let orders: [(Value, &[usize]); 9] = [
        (json!({ "url": "https://shop.test/page/1" }), &[0]),
        (json!({ "url": "http://SHOP.test/page/2?utm_source=x&size=9000" }), &[1]),
        (json!({ "key": "html_cache:shop.test/page/1" }), &[0]),
        (json!({ "prefix": "shop.test/page/2" }), &[1, 2]),
        (json!({ "prefix": "/categories/" }), &[4]),
        (json!({ "tag": "catalogue" }), &[3, 4]),
        (json!({ "tag": "list" }), &[4]),
        (json!({ "host": "shop.test" }), &[0, 1, 2, 3, 4]),
        (json!({ "all": true }), &[0, 1, 2, 3, 4]),
    ];
    for (number, (order, meant)) in orders.into_iter().enumerate() {
        let old = site.keep(&PAGES).await;
        let report = purge(&site.weirs[number % 3], order.clone()).await;
        assert_eq!(report["entries"], meant.len(), "{order}: {report}");
        for (index, target) in PAGES.iter().enumerate() {
            if meant.contains(&index) {
                site.gone(target, &old[index]).await;
            } else {
                site.kept(target, &old[index]).await;
            }
        }
        // Nothing is left of it: a second purge of something that nobody has finds nothing.
        let report = purge(&site.weirs[number % 3], json!({ "tag": "no-such-tag" })).await;
        assert_eq!(report["entries"], 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_host_is_another_page() {
    let site = Site::open().await;
    let other = |door: Door| door.get("/page/1").host("other.test");
    let old = site.keep(&["/page/1"]).await.remove(0);
    assert_eq!(other(site.weirs[0].edge()).send().await.expect(200).verdict(), "MISS");
    let stored = async || (other(site.weirs[2].edge()).send().await.expect(200).verdict() == "HIT").then_some(());
    eventually("the other host's page is in the store", stored).await;
    assert_eq!(purge(&site.weirs[1], json!({ "host": "other.test" })).await["entries"], 1);
    site.kept("/page/1", &old).await;
    let refetched = async || (other(site.weirs[0].edge()).send().await.expect(200).verdict() == "MISS").then_some(());
    eventually("the other host's page is gone at the instance that had it", refetched).await;
    eventually("it is in the store again", stored).await;
    // A prefix without host means both.
    let report = purge(&site.weirs[2], json!({ "prefix": "/page/" })).await;
    assert_eq!(report["entries"], 2, "{report}");
    site.gone("/page/1", &old).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_that_the_origin_names_count_too() {
    let site = Site::open().await;
    let named = |path: &str, header: &str, value: &str| FaultRule { path_prefix: path.into(), headers: [(header.to_owned(), value.to_owned())].into(), ..FaultRule::default() };
    for (path, header, value) in [("/page/1", "cache-tag", "red, Blue"), ("/page/2", "surrogate-key", "red green"), ("/page/3", "x-next-cache-tags", "green,_N_T_/page")] {
        site.shop.storefront().add_fault(named(path, header, value)).expect("a fault");
    }
    let pages = ["/page/1", "/page/2", "/page/3"];
    for (tag, meant) in [("red", &[0, 1][..]), ("Blue", &[0]), ("blue", &[]), ("green", &[1, 2]), ("_N_T_/page", &[2])] {
        let old = site.keep(&pages).await;
        let report = purge(&site.weirs[1], json!({ "tag": tag })).await;
        assert_eq!(report["entries"], meant.len(), "{tag}: {report}");
        for (index, target) in pages.iter().enumerate() {
            if meant.contains(&index) {
                site.gone(target, &old[index]).await;
            } else {
                site.kept(target, &old[index]).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_variants_go_together() {
    let site = Site::open().await;
    let bff = site.shop.stubs.bff.handle();
    let varies = FaultRule { headers: [("vary".to_owned(), "Accept-Language".to_owned())].into(), ..FaultRule::default() };
    bff.add_fault(varies).expect("a fault");
    let languages = ["en", "de", "fr"];
    let ask = |weir: &Weir, language: &str| weir.gateway().get("/api/categories").header("accept-language", language);
    for order in [json!({ "key": "cache:GET:/api/categories" }), json!({ "prefix": "/api/" }), json!({ "tag": "start" }), json!({ "all": true })] {
        for weir in &site.weirs {
            for language in languages {
                let hit = async || (ask(weir, language).send().await.expect(200).verdict() == "HIT").then_some(());
                eventually("a hit", hit).await;
            }
        }
        let before = bff.hits_for("/api/categories");
        let report = purge(&site.weirs[2], order.clone()).await;
        assert_eq!(report["entries"], languages.len(), "{order}: {report}");
        // Each variant is fetched once more, whoever asks first.
        for language in languages {
            for weir in &site.weirs {
                let answered = ask(weir, language).send().await.expect(200);
                assert!(["HIT", "MISS"].contains(&answered.verdict()));
            }
        }
        let fetched = async || {
            for weir in &site.weirs {
                for language in languages {
                    ask(weir, language).send().await.expect(200);
                }
            }
            (bff.hits_for("/api/categories") == before + languages.len() as u64).then_some(())
        };
        eventually("every variant was fetched again, once", fetched).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_soft_purge_serves_the_old_page_while_the_new_one_is_fetched() {
    let site = Site::open().await;
    let old = site.keep(&["/page/1", "/page/2"]).await;
    // The origin takes its time, so that the old page is what there is.
    let slow = FaultRule { latency_ms: Some(1000), ..FaultRule::default() };
    site.shop.storefront().add_fault(slow).expect("a fault");
    let before = site.hits("/page/1");
    let report = purge(&site.weirs[0], json!({ "url": "http://shop.test/page/1", "soft": true })).await;
    assert_eq!(report["entries"], 1, "{report}");
    let answer = site.weirs[0].edge().get("/page/1").send().await.expect(200);
    assert_eq!((answer.verdict(), &answer.body), ("STALE", &old[0].body), "the instance that was asked knows at once");
    for weir in &site.weirs {
        let other = until_other(weir.edge(), "/page/1", &old[0]).await;
        assert_eq!(other.verdict(), "HIT", "nobody waited for it");
    }
    assert_eq!(site.hits("/page/1"), before + 1);
    site.kept("/page/2", &old[1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_can_warm_what_it_purged() {
    let site = Site::open().await;
    let pages = ["/page/1", "/page/2?size=9000"];
    for soft in [false, true] {
        let old = site.keep(&pages).await;
        let before = site.hits("/page/1") + site.hits("/page/2");
        let report = purge(&site.weirs[0], json!({ "prefix": "shop.test/page/", "warm": true, "soft": soft })).await;
        assert_eq!(report["entries"], 2, "{report}");
        // Without any visitor.
        eventually("both are asked for", async || (site.hits("/page/1") + site.hits("/page/2") == before + 2).then_some(())).await;
        for (target, old) in pages.iter().zip(&old) {
            for weir in &site.weirs {
                let is_new = async || Some(weir.edge().get(target).send().await.expect(200)).filter(|a| a.verdict() == "HIT" && a.body != old.body);
                eventually("the new page is a hit", is_new).await;
            }
        }
        assert_eq!(site.hits("/page/1") + site.hits("/page/2"), before + 2, "visitors cost the origin nothing");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn weir_purge_asks_a_running_instance() {
    let site = Site::open().await;
    let admin = site.weirs[1].admin().0.to_string();
    let run = async |arguments: &[&str]| {
        let mut all: Vec<String> = ["purge", "--admin", &admin].map(String::from).into();
        all.extend(arguments.iter().map(|a| (*a).to_owned()));
        tokio::task::spawn_blocking(move || Outcome::of(&all.iter().map(String::as_str).collect::<Vec<_>>())).await.expect("weir purge")
    };
    let cases: [(&[&str], &[usize]); 6] = [
        (&["--url", "https://shop.test/page/1"], &[0]),
        (&["--key", "html_cache:shop.test/page/1"], &[0]),
        (&["--prefix", "/page/"], &[0, 1, 2]),
        (&["--host", "shop.test"], &[0, 1, 2, 3, 4]),
        (&["--tag", "catalogue"], &[3, 4]),
        (&["--all"], &[0, 1, 2, 3, 4]),
    ];
    for (arguments, meant) in cases {
        let old = site.keep(&PAGES).await;
        let outcome = run(arguments).await;
        assert_eq!((outcome.code, outcome.out.trim()), (Some(0), format!("{} {} removed", meant.len(), if meant.len() == 1 { "entry" } else { "entries" }).as_str()), "{arguments:?}: {outcome:?}");
        for (index, target) in PAGES.iter().enumerate() {
            if meant.contains(&index) {
                site.gone(target, &old[index]).await;
            } else {
                site.kept(target, &old[index]).await;
            }
        }
    }
    let old = site.keep(&["/page/1"]).await;
    let outcome = run(&["--url", "https://shop.test/page/1", "--soft", "--json"]).await;
    let report: Value = serde_json::from_str(&outcome.out).unwrap_or_else(|e| panic!("{e}: {outcome:?}"));
    assert_eq!((&report["entries"], &report["pages"]), (&json!(1), &json!(["shop.test/page/1"])));
    for weir in &site.weirs {
        until_other(weir.edge(), "/page/1", &old[0]).await;
    }
    // Said wrongly, nothing happens.
    for wrong in [&[][..], &["--all", "--host", "shop.test"], &["--url", "https://shop.test/search"], &["--url", "no url"]] {
        let outcome = run(wrong).await;
        assert!(outcome.code != Some(0) && !outcome.err.is_empty(), "{wrong:?}: {outcome:?}");
    }
    let answer = site.weirs[0].admin().post_json("/purge", &json!({ "all": true, "host": "shop.test" })).send().await;
    assert_eq!(answer.status, 400);
    assert_eq!(site.weirs[0].admin().post_json("/purge", &json!({ "hots": "shop.test" })).send().await.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_method_purge_wants_token_and_address() {
    let site = Site::open().await;
    let ask = |weir: &Weir, target: &str| weir.edge().ask("PURGE", target);
    let old = site.keep(&["/page/1", "/page/2"]).await;
    for token in ["", "wrong", &TOKEN[1..], "purge-token-of-the-tests2"] {
        let refused = ask(&site.weirs[0], "/page/1").bearer(token).send().await;
        assert_eq!(refused.status, 403, "{token:?}");
        assert!(!refused.text().contains(TOKEN));
    }
    assert_eq!(ask(&site.weirs[0], "/page/1").send().await.status, 403);
    // A client can not make itself another address.
    let far = Weir::start_as("far", &site.config.clone().set("/edge/purge/from", json!(["10.0.0.0/8"]))).await;
    for headers in [&[][..], &[("x-forwarded-for", "10.0.0.1"), ("x-real-ip", "10.0.0.1")]] {
        assert_eq!(ask(&far, "/page/1").bearer(TOKEN).headers(headers.iter().copied()).send().await.status, 403);
    }
    site.kept("/page/1", &old[0]).await;

    let done = ask(&site.weirs[2], "/page/1?utm_campaign=x").bearer(TOKEN).send().await.expect(200);
    assert_eq!(done.json()["entries"], 1);
    site.gone("/page/1", &old[0]).await;
    site.kept("/page/2", &old[1]).await;
    let soft = ask(&site.weirs[1], "/page/2").bearer(TOKEN).header("x-purge-soft", "1").send().await.expect(200);
    assert_eq!(soft.json()["entries"], 1);
    let answer = site.weirs[1].edge().get("/page/2").send().await.expect(200);
    assert_eq!((answer.verdict(), &answer.body), ("STALE", &old[1].body));
    for weir in &site.weirs {
        until_other(weir.edge(), "/page/2", &old[1]).await;
    }
    // What no rule caches can not be purged.
    assert_eq!(ask(&site.weirs[0], "/search").bearer(TOKEN).send().await.status, 404);
    assert_eq!(site.shop.storefront().requests().iter().filter(|r| r.method == "PURGE").count(), 0, "the origin never sees it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_is_a_purge() {
    let site = Site::open().await;
    let old = site.keep(&["/page/1"]).await.remove(0);
    // One instance after the other, as a deploy goes: the new ones share a new page, the old ones keep theirs.
    let next = site.config.clone().set("/edge/deployment", "next");
    let mut new: Option<Answer> = None;
    for (number, weir) in site.weirs.iter().enumerate() {
        weir.write(&next);
        weir.hang_up();
        let answer = until_other(weir.edge(), "/page/1", &old).await;
        match &new {
            None => assert_eq!(answer.verdict(), "MISS"),
            Some(new) => assert_eq!((answer.verdict(), &answer.body), ("HIT", &new.body), "the first one's page is in the store"),
        }
        new.get_or_insert(answer);
        for late in &site.weirs[number + 1..] {
            let answer = late.edge().get("/page/1").send().await.expect(200);
            assert_eq!((answer.verdict(), &answer.body), ("HIT", &old.body));
        }
    }
}
