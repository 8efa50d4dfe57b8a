//! Limits that hold exactly: four processes, one Redis, ten times the limit, counted where it matters, at the service behind them.

use futures_util::future::join_all;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};
use weir_tests::{Answer, Ask, Config, Door, RedisServer, Shop, Weir, cache_help::Cluster, eventually};

const INSTANCES: usize = 4;
/// Connections to each instance.
const CLIENTS: usize = 4;
const ALGORITHMS: [&str; 3] = ["fixed-window", "sliding-window", "token-bucket"];
/// With their seconds, for windows that move along.
const PERIODS: [(&str, u64); 6] = [("second", 1), ("minute", 60), ("hour", 3600), ("day", 86_400), ("month", 30 * 86_400), ("year", 365 * 86_400)];

/// A gateway with a service for each of these limits, at `/echo/<name>`.
fn config(shop: &Shop, redis: &RedisServer, limits: impl IntoIterator<Item = (String, Value)>) -> Config {
    // A busy machine must not look like a Redis that is away.
    let config = shop.config().set("/store", json!({ "url": redis.url(), "deadline": "20s" }));
    limits.into_iter().fold(config, |config, (name, limit)| {
        let plugins = json!([{ "name": "rate-limiting", "config": limit }]);
        config.service(&name, &shop.stubs.products.url(), &format!("/echo/{name}"), plugins)
    })
}

struct Fleet {
    shop: Shop,
    redis: RedisServer,
    weirs: Vec<Weir>,
}

impl Fleet {
    async fn start(limits: impl IntoIterator<Item = (String, Value)>) -> Fleet {
        let (shop, redis) = (Shop::start().await, RedisServer::start());
        let config = config(&shop, &redis, limits);
        let names: Vec<String> = (0..INSTANCES).map(|n| format!("weir-{n}")).collect();
        let weirs = join_all(names.iter().map(|name| Weir::start_as(name, &config))).await;
        for weir in &weirs {
            weir.becomes("ready").await;
        }
        Fleet { shop, redis, weirs }
    }

    /// Asks so often by every connection to every instance; the answers.
    async fn ask(&self, times: usize, ask: impl Fn(Door, usize) -> Ask + Send + Sync + 'static) -> Vec<Answer> {
        let ask = Arc::new(ask);
        let clients = (0..INSTANCES * CLIENTS).map(|client| {
            let (door, ask) = (self.weirs[client % INSTANCES].gateway(), ask.clone());
            tokio::spawn(async move {
                let mut answers = Vec::with_capacity(times);
                let mut connection = door.connect().await;
                for n in 0..times {
                    answers.push(ask(door, client + n).on(&mut connection).await.expect("an answer"));
                }
                answers
            })
        });
        join_all(clients).await.into_iter().flat_map(|client| client.expect("a client")).collect()
    }

    /// Requests that came to the service.
    fn arrived(&self, path: &str) -> u64 {
        self.shop.stubs.products.handle().hits_for(path)
    }

    /// Redis' clock, in microseconds: the one that limits go by.
    fn time(&self) -> u64 {
        let said = self.redis.command("TIME").expect("the time");
        let numbers: Vec<u64> = said.lines().filter_map(|line| line.trim().parse().ok()).collect();
        numbers[0] * 1_000_000 + numbers[1]
    }
}

fn admitted(answers: &[Answer]) -> u64 {
    assert!(answers.iter().all(|a| matches!(a.status, 200 | 429)), "{:#?}", answers.iter().find(|a| !matches!(a.status, 200 | 429)));
    answers.iter().filter(|a| a.status == 200).count() as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn four_instances_admit_exactly_the_limit() {
    const LIMIT: u64 = 20;
    let kinds = ALGORITHMS.iter().flat_map(|algorithm| PERIODS.iter().map(move |(period, seconds)| (*algorithm, *period, *seconds)));
    let limit = |algorithm: &str, period: &str| json!({ period: LIMIT, "algorithm": algorithm, "limit_by": "service", "policy": "redis" });
    let fleet = Fleet::start(kinds.clone().map(|(algorithm, period, _)| (format!("{algorithm}-{period}"), limit(algorithm, period)))).await;
    for (algorithm, period, seconds) in kinds {
        let name = format!("{algorithm}-{period}");
        let path = format!("/echo/{name}");
        let times = (10 * LIMIT as usize).div_ceil(INSTANCES * CLIENTS);
        let begun = fleet.time();
        let answers = fleet.ask(times, { let path = path.clone(); move |door, _| door.get(&path) }).await;
        let ended = fleet.time();
        let admitted = admitted(&answers);
        assert_eq!(fleet.arrived(&path), admitted, "{name}: what was answered is what arrived");
        // The time that it took is not known beforehand, so what was allowed in it is worked out: from an hour on, nearly always the limit.
        let length = seconds * 1_000_000;
        let most = match algorithm {
            "fixed-window" => LIMIT * (ended / length.min(86_400_000_000) - begun / length.min(86_400_000_000) + 1),
            "sliding-window" => LIMIT * ((ended - begun) / length + 1),
            _ => LIMIT + (ended - begun) * LIMIT / length,
        };
        println!("{name}: limit {LIMIT}, sent {} by {INSTANCES} processes, admitted {admitted} in {:.2} s (allowed in that time: {most})", answers.len(), (ended - begun) as f64 / 1e6);
        assert!((LIMIT..=most).contains(&admitted), "{name}: {admitted} of {most}");
        for refused in answers.iter().filter(|a| a.status == 429) {
            let wait: u64 = refused.must("retry-after").parse().expect("seconds");
            assert!(wait >= 1 && wait <= seconds * 32 / 30 + 1, "{name}: {wait}");
            assert_eq!(refused.must("ratelimit-policy"), format!("\"{period}\";q={LIMIT};w={seconds}"));
        }
        if algorithm == "fixed-window" {
            // Each window hands out each of its places once: as many answers say that 18 are left as say 19, unless a window was not filled.
            let mut left: BTreeMap<u64, usize> = BTreeMap::new();
            for answer in answers.iter().filter(|a| a.status == 200) {
                *left.entry(answer.must("ratelimit-remaining").parse().expect("a number")).or_default() += 1;
            }
            let counts: Vec<usize> = (0..LIMIT).rev().map(|n| left.get(&n).copied().unwrap_or(0)).collect();
            assert!(counts.is_sorted_by(|more, fewer| more >= fewer), "{name}: {counts:?}");
            assert!(counts[0] as u64 <= most / LIMIT, "{name}: {counts:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_keep_the_limit_and_their_bound() {
    const LIMIT: u64 = 100;
    const LEASE: u64 = 5;
    let limit = |algorithm: &str| json!({ "year": LIMIT, "algorithm": algorithm, "limit_by": "service", "policy": "hybrid", "lease": LEASE });
    let fleet = Fleet::start(ALGORITHMS.map(|algorithm| (algorithm.to_owned(), limit(algorithm)))).await;
    for algorithm in ALGORITHMS {
        let path = format!("/echo/{algorithm}");
        // Two instances take a lease first and then rest: what they hold is lost to the others.
        for weir in &fleet.weirs[..2] {
            weir.gateway().get(&path).send().await.expect(200);
        }
        let busy = fleet.weirs[2].gateway();
        let mut alone = 0;
        for _ in 0..2 * LIMIT {
            alone += u64::from(busy.get(&path).send().await.status == 200);
        }
        assert_eq!(alone, LIMIT - 2 * LEASE, "{algorithm}");
        let answers = fleet.ask(10 * LIMIT as usize / (INSTANCES * CLIENTS), { let path = path.clone(); move |door, _| door.get(&path) }).await;
        assert_eq!(admitted(&answers) + alone + 2, LIMIT, "{algorithm}: the others spend what they hold");
        println!("hybrid {algorithm}, leases of {LEASE}: limit {LIMIT}, one instance alone {alone}, all of them {}", fleet.arrived(&path));
        assert_eq!(fleet.arrived(&path), LIMIT, "{algorithm}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_and_its_users_are_limited_together() {
    let limits = json!([{ "year": 40, "limit_by": "ip" }, { "year": 20, "limit_by": "header", "header_name": "X-User", "algorithm": "token-bucket" }]);
    let fleet = Fleet::start([("both".to_owned(), json!({ "policy": "redis", "limits": limits }))]).await;
    let answers = fleet.ask(30, |door, n| door.get("/echo/both").header("x-user", ["kim", "lee", "ann"][n % 3])).await;
    assert_eq!(admitted(&answers), 40, "three users may do 60, but not from one address");
    let mut users: BTreeMap<String, u64> = BTreeMap::new();
    for request in fleet.shop.stubs.products.handle().requests() {
        *users.entry(request.header("x-user").unwrap_or_default().to_owned()).or_default() += 1;
    }
    assert_eq!(users.values().sum::<u64>(), 40);
    assert!(users.values().all(|n| *n <= 20), "{users:?}");
}

/// All windows and limits of an entry lie in one slot, and different callers on different nodes.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_counts_all_limits_of_an_entry_together() {
    let (shop, cluster) = (Shop::start().await, Cluster::start().await);
    let limits = json!([{ "year": 4, "hour": 4, "limit_by": "header", "header_name": "X-User" }, { "year": 30, "limit_by": "ip", "algorithm": "sliding-window" }]);
    let plugins = json!([{ "name": "rate-limiting", "config": { "policy": "redis", "fault_tolerant": false, "limits": limits } }]);
    let config = shop.config().without("edge").without("warm_up").set("/store", json!({ "url": cluster.url, "deadline": "20s" })).service("both", &shop.stubs.products.url(), "/echo/both", plugins);
    let weirs = [Weir::start_as("one", &config).await, Weir::start_as("two", &config).await];
    for weir in &weirs {
        weir.becomes("ready").await;
    }
    let mut served = BTreeMap::new();
    for n in 0..160 {
        let user = format!("user-{}", n % 10);
        let answer = weirs[n / 10 % 2].gateway().get("/echo/both").header("x-user", &user).send().await;
        assert!(matches!(answer.status, 200 | 429), "{answer:#?}");
        *served.entry(user).or_insert(0) += usize::from(answer.status == 200);
    }
    println!("cluster: ten users of 4 each from an address of 30: {served:?}");
    assert_eq!(served.values().sum::<usize>(), 30);
    assert!(served.values().all(|count| *count <= 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_says_of_its_address_counts_only_from_trusted_hops() {
    let (shop, redis) = (Shop::start().await, RedisServer::start());
    let config = config(&shop, &redis, [("own".to_owned(), json!({ "year": 3, "limit_by": "ip" }))]);
    let statuses = async |weir: &Weir, hops: &[&str]| {
        let mut seen = vec![];
        for said in hops {
            seen.push(weir.gateway().get("/echo/own").header("x-forwarded-for", said).send().await.status);
        }
        seen
    };
    let weir = Weir::start(&config).await;
    assert_eq!(statuses(&weir, &["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"]).await, [200, 200, 200, 429]);
    let behind = Weir::start(&config.set("/server/trusted_proxies", json!(["127.0.0.1", "203.0.113.0/24"]))).await;
    // The last hop that is not a proxy of ours is the client, whatever it put before itself.
    assert_eq!(statuses(&behind, &["10.0.0.1, 192.0.2.1", "10.0.0.2, 192.0.2.1", "192.0.2.1, 203.0.113.9", "10.0.0.3, 192.0.2.1"]).await, [200, 200, 200, 429]);
    assert_eq!(statuses(&behind, &["192.0.2.2", "2001:db8:0:1::1", "2001:db8:0:1::2", "2001:db8:0:1:ffff::3", "2001:db8:0:1::4"]).await, [200, 200, 200, 200, 429]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_each_instance_keeps_the_limit_by_itself() {
    let (shop, mut redis) = (Shop::start().await, RedisServer::start());
    let kinds = ["redis", "hybrid"].into_iter().flat_map(|policy| ALGORITHMS.map(|algorithm| (policy, algorithm)));
    let limits = kinds.clone().map(|(policy, algorithm)| (format!("{policy}-{algorithm}"), json!({ "year": 6, "algorithm": algorithm, "limit_by": "ip", "policy": policy })));
    let strict = ("strict".to_owned(), json!({ "year": 6, "policy": "redis", "fault_tolerant": false }));
    let weir = Weir::start(&config(&shop, &redis, limits.chain([strict]))).await;
    weir.becomes("ready").await;
    weir.gateway().get("/echo/strict").send().await.expect(200);
    redis.kill();
    weir.becomes("degraded").await;
    for (policy, algorithm) in kinds {
        let path = format!("/echo/{policy}-{algorithm}");
        let mut seen = vec![];
        for _ in 0..12 {
            seen.push(weir.gateway().get(&path).send().await.status);
        }
        assert_eq!(seen, [[200; 6], [429; 6]].concat(), "{policy} {algorithm}");
        assert_eq!(shop.stubs.products.handle().hits_for(&path), 6);
    }
    weir.gateway().get("/echo/strict").send().await.expect(500);
    redis.restart();
    eventually("Redis counts again", async || (weir.gateway().get("/echo/strict").send().await.status == 200).then_some(())).await;
    // Nothing is known there of what was counted here meanwhile.
    weir.gateway().get("/echo/redis-fixed-window").send().await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_goes_on_with_the_counts() {
    let (shop, redis) = (Shop::start().await, RedisServer::start());
    let with = |limit: u64| {
        let kinds = ["local", "redis", "hybrid"].map(|policy| (policy.to_owned(), json!({ "year": limit, "hour": limit, "limit_by": "ip", "policy": policy, "algorithm": "sliding-window" })));
        config(&shop, &redis, kinds)
    };
    let weir = Weir::start(&with(3)).await;
    let statuses = async |policy: &str| {
        let mut seen = vec![];
        for _ in 0..5 {
            seen.push(weir.gateway().get(&format!("/echo/{policy}")).send().await.status);
        }
        seen
    };
    for policy in ["local", "redis", "hybrid"] {
        assert_eq!(statuses(policy).await, [200, 200, 200, 429, 429], "{policy}");
    }
    let loaded = weir.metric("weir_reloads_total", &["outcome=\"ok\""]).await;
    weir.write(&with(5));
    weir.hang_up();
    eventually("the new limits are loaded", async || (weir.metric("weir_reloads_total", &["outcome=\"ok\""]).await > loaded).then_some(())).await;
    for policy in ["local", "redis", "hybrid"] {
        assert_eq!(statuses(policy).await, [200, 200, 429, 429, 429], "{policy}");
    }
}
