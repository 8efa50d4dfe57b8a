//! Two Weir processes on Redis as it is run for real: behind sentinels, and as a cluster.

use serde_json::json;
use std::collections::HashSet;
use upstream_stubs::FaultRule;
use weir_tests::{
    Shop, Weir,
    cache_help::{Cluster, Load, Trio, until_hit, until_other},
    eventually,
};

const CLIENTS: usize = 300;
const SIZE: usize = 20_000;

struct Site {
    shop: Shop,
    weirs: Vec<Weir>,
}

impl Site {
    async fn open(store: &str) -> Site {
        let shop = Shop::start().await;
        let rules = json!([{ "path": "/**", "ttl": "60s", "query": ["size"], "tags": ["page"] }]);
        // On a loaded machine a call may take long; then an instance would go on alone, and rightly so.
        let config = shop.config().set("/store", json!({ "url": store, "deadline": "2s" })).pages(rules);
        let mut weirs = Vec::new();
        for name in ["first", "second"] {
            weirs.push(Weir::start_as(name, &config).await);
        }
        for weir in &weirs {
            weir.becomes("ready").await;
        }
        Site { shop, weirs }
    }

    /// A crowd wants a cold page from both instances at once; the origin is asked for it once.
    async fn stampede(&self, page: &str) {
        let slow = FaultRule { path_prefix: page.into(), latency_ms: Some(500), ..FaultRule::default() };
        self.shop.storefront().add_fault(slow).expect("a fault");
        let target = format!("{page}?size={SIZE}");
        let ask = |n: usize| self.weirs[n % 2].edge().get(&target).attempt();
        let crowd: Vec<_> = (0..CLIENTS).map(|n| tokio::spawn(ask(n))).collect();
        let mut bodies = HashSet::new();
        for client in crowd {
            let answer = client.await.expect("a client").unwrap_or_else(|why| panic!("a client without a whole answer: {why}")).expect(200);
            assert_eq!(answer.body.len(), SIZE);
            bodies.insert(answer.body);
        }
        assert_eq!(bodies.len(), 1, "one page for everyone");
        assert_eq!(self.shop.storefront().hits_for(page), 1);
    }

    /// What one instance stores the other finds; a purge at one is a purge at both.
    async fn is_one_cache(&self, round: usize) {
        let pages: Vec<String> = (0..12).map(|n| format!("/page/{round}0{n:02}")).collect();
        let mut old = Vec::new();
        for page in &pages {
            // A call may be refused while connections are made anew: the page is then not in the store at once, but the next one is.
            old.push(self.weirs[0].edge().get(page).send().await.expect(200));
            for weir in &self.weirs {
                until_hit(weir.edge(), page).await;
            }
        }
        let purge = async || {
            let report = self.weirs[1].admin().post_json("/purge", &json!({ "tag": "page" })).send().await.expect(200).json();
            (report["store_reached"] == true && report["others_told"] == true).then_some(report)
        };
        let report = eventually("the purge reaches the store", purge).await;
        assert!(report["entries"].as_u64() >= Some(pages.len() as u64), "{report}");
        for (page, old) in pages.iter().zip(&old) {
            for weir in &self.weirs {
                until_other(weir.edge(), page, old).await;
            }
        }
    }

    /// Every kind of purge finds what it means, wherever in the store it lies, and nothing else.
    async fn purges_what_is_meant(&self) {
        let pages: Vec<String> = (0..30).map(|n| format!("/page/61{n:02}")).collect();
        for (order, meant) in [
            (json!({ "prefix": "shop.test/page/610" }), 10),
            (json!({ "prefix": "/page/612" }), 10),
            (json!({ "url": "http://shop.test/page/6105" }), 1),
            (json!({ "tag": "page" }), 30),
            (json!({ "host": "shop.test" }), 30),
            (json!({ "all": true }), 30),
        ] {
            // From nothing: what other tests of this store left is gone.
            self.weirs[0].admin().post_json("/purge", &json!({ "all": true })).send().await.expect(200);
            for page in &pages {
                self.weirs[0].edge().get(page).send().await.expect(200);
                until_hit(self.weirs[1].edge(), page).await;
            }
            let report = self.weirs[1].admin().post_json("/purge", &order).send().await.expect(200).json();
            assert_eq!(report["entries"], meant, "{order}: {report}");
        }
    }

    /// Pages that one instance fetches are hits at the other, wherever in the store they lie.
    async fn shares_again(&self) {
        let mut n = 0;
        let shared = async || {
            let mut hits = 0;
            for _ in 0..40 {
                n += 1;
                let page = format!("/page/800{n}");
                let first = self.weirs[n % 2].edge().get(&page).send().await.expect(200);
                // An answer may be on its way to the store when its client has it.
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                let second = self.weirs[(n + 1) % 2].edge().get(&page).send().await.expect(200);
                hits += usize::from(second.verdict() == "HIT" && first.body == second.body);
            }
            // A node that did not answer would have a third of them.
            (hits >= 36).then_some(())
        };
        eventually("what one instance fetches is a hit at the other, nearly always", shared).await;
    }

    fn load(&self) -> Load {
        let doors = [self.weirs[0].edge(), self.weirs[1].edge()];
        // Every third request is for a page that nobody asked for before, which needs lock and store.
        Load::start(8, move |n| match n % 3 {
            0 => doors[(n / 3 % 2) as usize].get(&format!("/page/7{n:06}")),
            1 => doors[(n / 3 % 2) as usize].get("/categories"),
            _ => doors[(n / 3 % 2) as usize].get(&format!("/page/{}", n % 20)),
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_behind_sentinels_dies_under_load() {
    let mut trio = Trio::start().await;
    let site = Site::open(&trio.url).await;
    site.stampede("/page/9001").await;
    site.is_one_cache(1).await;

    let load = site.load();
    load.more(300).await;
    trio.master.kill();
    load.more(300).await;
    eventually("the sentinels make the replica the master", async || trio.switched().then_some(())).await;
    load.more(300).await;
    for weir in &site.weirs {
        weir.becomes("ready").await;
    }
    load.more(300).await;
    let wrong = load.end().await;
    assert!(wrong.is_empty(), "{wrong:#?}");

    site.shares_again().await;
    site.stampede("/page/9002").await;
    site.is_one_cache(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_three_masters_is_one_store() {
    let cluster = Cluster::start().await;
    let site = Site::open(&cluster.url).await;
    site.stampede("/page/9001").await;
    site.is_one_cache(1).await;
    site.purges_what_is_meant().await;
    for node in &cluster.nodes {
        assert_ne!(node.command("DBSIZE").expect("an answer"), ":0\r\n", "every node has its part");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_a_cluster_dies_under_load() {
    let mut cluster = Cluster::start().await;
    let site = Site::open(&cluster.url).await;
    let load = site.load();
    load.more(300).await;
    cluster.nodes[0].kill();
    load.more(600).await;
    // It comes back with its memory of the cluster, which lies in its folder.
    cluster.nodes[0].restart();
    for weir in &site.weirs {
        weir.becomes("ready").await;
    }
    load.more(300).await;
    let wrong = load.end().await;
    assert!(wrong.is_empty(), "{wrong:#?}");
    site.shares_again().await;
    site.stampede("/page/9002").await;
    site.is_one_cache(2).await;
}
