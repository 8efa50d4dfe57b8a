//! Three Weir processes on one Redis, and a thousand clients who want the same page at once.

use std::collections::HashSet;
use upstream_stubs::FaultRule;
use weir_tests::{Answer, Broken, RedisServer, Shop, Weir, eventually};

const CLIENTS: usize = 1000;
/// A whole page of the storefront.
const SIZE: usize = 20_000;

struct Site {
    shop: Shop,
    weirs: Vec<Weir>,
    _redis: RedisServer,
}

impl Site {
    async fn open() -> Site {
        let redis = RedisServer::start();
        let shop = Shop::start().await;
        // On a machine so busy that Redis seems to be away, each instance would rightly go on alone: not what is looked at here.
        let config = shop.config().set("/store", serde_json::json!({ "url": redis.url(), "deadline": "20s" }));
        let config = config.pages(serde_json::json!([{ "path": "/**", "ttl": "60s", "query": ["size"] }]));
        let mut weirs = Vec::new();
        for name in ["first", "second", "third"] {
            weirs.push(Weir::start_as(name, &config).await);
        }
        Site { shop, weirs, _redis: redis }
    }

    fn fault(&self, rule: FaultRule) {
        self.shop.storefront().add_fault(rule).expect("a fault");
    }

    /// So many clients ask for the page at once, spread over these instances.
    async fn crowd(&self, target: &str, clients: usize, at: &[usize]) -> Vec<Result<Answer, Broken>> {
        let mut tasks = Vec::new();
        for client in 0..clients {
            let ask = self.weirs[at[client % at.len()]].edge().get(target);
            tasks.push(tokio::spawn(ask.attempt()));
        }
        let mut answers = Vec::new();
        for task in tasks {
            answers.push(task.await.expect("a client"));
        }
        answers
    }
}

/// All answers must be whole, and the same page.
fn all_the_same(answers: Vec<Result<Answer, Broken>>) -> Vec<Answer> {
    let answers: Vec<Answer> = answers.into_iter().map(|a| a.unwrap_or_else(|why| panic!("a client without a whole answer: {why}"))).collect();
    for answer in &answers {
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.body.len(), SIZE);
        assert!(answer.text().trim_end().ends_with("</html>"));
    }
    let bodies: HashSet<_> = answers.iter().map(|a| a.body.clone()).collect();
    assert_eq!(bodies.len(), 1, "one page, not several renders of it");
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_clients_cost_the_origin_one_request() {
    let site = Site::open().await;
    site.fault(FaultRule { latency_ms: Some(500), ..FaultRule::default() });
    let target = format!("/page/1?size={SIZE}");
    let answers = all_the_same(site.crowd(&target, CLIENTS, &[0, 1, 2]).await);
    assert_eq!(answers.len(), CLIENTS);
    assert_eq!(site.shop.storefront().hits_for("/page/1"), 1);
    let tokens: HashSet<_> = answers.iter().map(|a| a.cookie("guest_token").expect("a guest token").to_owned()).collect();
    assert_eq!(tokens.len(), CLIENTS, "everyone their own token");
    let verdicts: HashSet<_> = answers.iter().map(|a| a.verdict().to_owned()).collect();
    assert!(verdicts.iter().all(|v| ["MISS", "HIT"].contains(&v.as_str())), "{verdicts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_one_who_fetches_is_killed_another_takes_over() {
    let mut site = Site::open().await;
    // The first fetch would take longer than anyone waits; the second is an ordinary one.
    site.fault(FaultRule { latency_ms: Some(500), ..FaultRule::default() });
    site.fault(FaultRule { latency_ms: Some(600_000), times: Some(1), ..FaultRule::default() });
    let target = format!("/page/2?size={SIZE}");
    let lost = tokio::spawn(site.weirs[0].edge().get(&target).attempt());
    eventually("the first instance fetches", async || (site.shop.storefront().hits_for("/page/2") == 1).then_some(())).await;

    let mut killed = site.weirs.remove(0);
    let half = CLIENTS / 2;
    let everyone = async {
        let crowd = site.crowd(&target, CLIENTS, &[0, 1]);
        let kill = async {
            for weir in &site.weirs {
                eventually("the clients wait", async || (weir.metric("weir_connections", &[]).await >= half as f64).then_some(())).await;
            }
            assert_eq!(site.shop.storefront().hits_for("/page/2"), 1, "while one fetches, the others wait");
            killed.kill();
        };
        tokio::join!(crowd, kill).0
    };
    let answers = all_the_same(everyone.await);
    assert_eq!(answers.len(), CLIENTS);
    assert_eq!(site.shop.storefront().hits_for("/page/2"), 2, "one of the two others took over, and one only");
    assert!(lost.await.expect("a client").is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_turns_out_uncacheable_makes_nobody_queue() {
    let site = Site::open().await;
    site.fault(FaultRule { latency_ms: Some(500), ..FaultRule::default() });
    let answers = site.crowd("/set-cookie", CLIENTS, &[0, 1, 2]).await;
    let mut cookies = HashSet::new();
    for answer in answers {
        let answer = answer.unwrap_or_else(|why| panic!("a client without a whole answer: {why}")).expect(200);
        assert_eq!(answer.verdict(), "BYPASS");
        assert!(answer.text().trim_end().ends_with("</html>"));
        assert!(cookies.insert(answer.cookie("seen").expect("the page's cookie").to_owned()), "two clients got one cookie");
    }
    let stats = site.shop.storefront().stats();
    let (asked, together) = (stats.hits as usize, stats.max_in_flight as usize);
    assert!((CLIENTS..=CLIENTS + 3).contains(&asked), "each client's own request, and one try to fill for each instance: {asked}");
    assert!(together > CLIENTS / 10, "they went side by side: at most {together} at once");
    // Who comes soon after does not wait for anyone either, on any instance.
    site.shop.storefront().reset();
    for weir in &site.weirs {
        let answer = weir.edge().get("/set-cookie").send().await.expect(200);
        assert_eq!(answer.verdict(), "BYPASS");
    }
    assert_eq!(site.shop.storefront().hits(), 3);
}
