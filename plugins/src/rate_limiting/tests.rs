use crate::testing::{Ask, Rig, environment, get};
use crate::{Plugins, register};
use async_trait::async_trait;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use weir_config::PluginCatalog;
use weir_store::limits::How;
use weir_store::{Charge, Charged, Counters, Store, StoreError, StoreResult};

const POLICIES: [&str; 3] = ["local", "redis", "hybrid"];
const ALGORITHMS: [&str; 3] = ["fixed-window", "sliding-window", "token-bucket"];

fn limited(config: &str) -> Rig {
    Rig::new(&[("rate-limiting", config)])
}

async fn statuses(rig: &Rig, asks: impl IntoIterator<Item = Ask>) -> Vec<u16> {
    let mut seen = Vec::new();
    for ask in asks {
        seen.push(rig.run(ask).await.status());
    }
    seen
}

#[tokio::test]
async fn within_the_limit_the_answer_tells_what_is_left() {
    for policy in ["local", "redis", "cluster", "hybrid"] {
        let rig = limited(&format!("{{year: 3, policy: {policy}}}"));
        let seen = rig.run(get("/")).await;
        assert_eq!(seen.status(), 200);
        for (name, value) in [
            ("x-ratelimit-limit-year", "3"),
            ("x-ratelimit-remaining-year", "2"),
            ("ratelimit-limit", "3"),
            ("ratelimit-remaining", "2"),
        ] {
            assert_eq!(seen.header(name), Some(value), "{policy}: {name}");
        }
        let reset: u64 = seen.header("ratelimit-reset").unwrap().parse().unwrap();
        assert!((1..=366 * 86_400).contains(&reset));
        assert_eq!(seen.header("retry-after"), None);
        assert_eq!(rig.outcome("rate-limiting", "allowed"), 1);
    }
}

#[tokio::test]
async fn over_the_limit_it_is_429_with_kongs_body() {
    for policy in ["local", "redis"] {
        let rig = limited(&format!("{{year: 2, policy: {policy}}}"));
        assert_eq!(statuses(&rig, [get("/"), get("/")]).await, [200, 200]);
        let seen = rig.run(get("/")).await;
        assert_eq!(seen.status(), 429);
        assert!(!seen.forwarded());
        assert_eq!(seen.json()["message"], "API rate limit exceeded");
        assert_eq!(seen.json()["request_id"], seen.cx.id.as_str());
        assert_eq!(seen.header("x-ratelimit-remaining-year"), Some("0"));
        assert_eq!(seen.header("ratelimit-remaining"), Some("0"));
        assert_eq!(seen.header("retry-after"), seen.header("ratelimit-reset"));
        assert_eq!(rig.outcome("rate-limiting", "limited"), 1);
    }
}

#[tokio::test]
async fn of_several_windows_the_tightest_speaks() {
    let rig = limited("{month: 2, year: 10}");
    let seen = rig.run(get("/")).await;
    assert_eq!(seen.header("x-ratelimit-remaining-month"), Some("1"));
    assert_eq!(seen.header("x-ratelimit-remaining-year"), Some("9"));
    assert_eq!(seen.header("ratelimit-limit"), Some("2"));
    assert_eq!(statuses(&rig, [get("/"), get("/")]).await, [200, 429]);
    // The refused request was charged to neither.
    assert_eq!(rig.run(get("/")).await.header("x-ratelimit-remaining-year"), Some("8"));
}

#[tokio::test]
async fn status_and_message_can_be_chosen_and_headers_hidden() {
    let rig = limited("{year: 1, error_code: 503, error_message: Slow down, hide_client_headers: true}");
    let first = rig.run(get("/")).await;
    assert_eq!(first.header("x-ratelimit-limit-year"), None);
    let seen = rig.run(get("/").with("Accept", "text/plain")).await;
    assert_eq!(seen.status(), 503);
    assert!(seen.body.starts_with("Slow down"), "{}", seen.body);
    for hidden in ["retry-after", "ratelimit-limit", "ratelimit-reset", "x-ratelimit-remaining-year"] {
        assert_eq!(seen.header(hidden), None, "{hidden}");
    }
}

/// Asked with a token of this tenant.
fn tenant(name: &str) -> Ask {
    get("/").claiming(serde_json::json!({ "realm": { "tenant": name } }))
}

/// The setting, two callers that count apart (or not), and whether they do.
#[tokio::test]
async fn whose_requests_count_together() {
    for policy in POLICIES {
        for (setting, first, second, apart) in [
            ("limit_by: ip", get("/").from("192.0.2.1"), get("/").from("192.0.2.2"), true),
            ("limit_by: ip", get("/a").from("192.0.2.1"), get("/b").from("192.0.2.1"), false),
            ("limit_by: ip", get("/").from("192.0.2.1"), get("/").from("::ffff:192.0.2.1"), false),
            ("limit_by: ip", get("/").from("2001:db8:0:1::1"), get("/").from("2001:db8:0:1:ffff::2"), false),
            ("limit_by: ip", get("/").from("2001:db8:0:1::1"), get("/").from("2001:db8:0:2::1"), true),
            ("{limit_by: ip, ipv6_prefix: 128}", get("/").from("2001:db8::1"), get("/").from("2001:db8::2"), true),
            ("{limit_by: ip, ipv6_prefix: 48}", get("/").from("2001:db8:0:1::1"), get("/").from("2001:db8:0:2::1"), false),
            ("{limit_by: ip, ipv4_prefix: 24}", get("/").from("192.0.2.1"), get("/").from("192.0.2.99"), false),
            ("{limit_by: claim, claim: realm.tenant}", tenant("a"), tenant("b"), true),
            ("{limit_by: claim, claim: realm.tenant}", tenant("a").from("192.0.2.1"), tenant("a").from("192.0.2.2"), false),
            ("{limit_by: claim, claim: realm}", tenant("a"), tenant("b"), true),
            ("{limit_by: claim, claim: realm.none}", tenant("a").from("192.0.2.1"), tenant("a").from("192.0.2.2"), true),
            ("{limit_by: template, template: '$(headers.x_key)/$(client.ip)'}", get("/").with("X-Key", "a"), get("/").with("X-Key", "b"), true),
            ("{limit_by: template, template: '$(headers.x_key)/$(client.ip)'}", get("/a").with("X-Key", "a"), get("/b").with("X-Key", "a"), false),
            ("{limit_by: template, template: '$(claims.realm.tenant)'}", tenant("a"), tenant("b"), true),
            ("{limit_by: template, template: '$(headers.x_none)'}", get("/").from("192.0.2.1"), get("/").from("192.0.2.2"), true),
            ("limit_by: ip", get("/").from("192.0.2.1").known_as("a", None), get("/").from("192.0.2.1").known_as("b", None), false),
            ("limit_by: consumer", get("/").known_as("a", Some("1")), get("/").known_as("b", Some("1")), true),
            ("limit_by: consumer", get("/").known_as("a", Some("1")), get("/").known_as("a", Some("2")).from("192.0.2.9"), false),
            ("limit_by: consumer", get("/").from("192.0.2.1"), get("/").from("192.0.2.2"), true),
            ("limit_by: consumer", get("/").from("192.0.2.1"), get("/").known_as("192.0.2.1", None), true),
            ("limit_by: credential", get("/").known_as("a", Some("1")), get("/").known_as("a", Some("2")), true),
            ("limit_by: credential", get("/").known_as("a", Some("1")), get("/").known_as("b", Some("1")), false),
            ("{limit_by: header, header_name: X-Key}", get("/").with("X-Key", "a"), get("/").with("X-Key", "b"), true),
            ("{limit_by: header, header_name: X-Key}", get("/").with("X-Key", "a"), get("/").with("X-Key", "a").from("192.0.2.9"), false),
            ("{limit_by: header, header_name: X-Key}", get("/").from("192.0.2.1"), get("/").from("192.0.2.2"), true),
            ("{limit_by: path, path: /a}", get("/a").from("192.0.2.1"), get("/a").from("192.0.2.2"), false),
            ("{limit_by: path, path: /a}", get("/b").from("192.0.2.1"), get("/b").from("192.0.2.2"), true),
        ] {
            let inner = setting.trim_matches(['{', '}']);
            let rig = limited(&format!("{{year: 1, policy: {policy}, {inner}}}"));
            let seen = statuses(&rig, [first, second]).await;
            assert_eq!(seen, [200, if apart { 200 } else { 429 }], "{policy}: {setting}");
        }
    }
}

#[tokio::test]
async fn a_reload_forgives_nobody() {
    for policy in POLICIES {
        let (environment, register): (_, Plugins) = (environment(Store::memory()), register());
        let config = format!("{{year: 2, policy: {policy}}}");
        let before = Rig::with(environment.clone(), &register, &[("rate-limiting", &config)]);
        assert_eq!(statuses(&before, [get("/")]).await, [200]);
        let after = Rig::with(environment, &register, &[("rate-limiting", &config)]);
        assert_eq!(statuses(&after, [get("/"), get("/")]).await, [200, 429], "{policy}");
    }
}

/// A store whose counters are away.
struct Away;

#[async_trait]
impl Counters for Away {
    async fn charge(&self, _: &[Charge], _: How) -> StoreResult<Charged> {
        Err(StoreError::Away("down".into()))
    }
    async fn add(&self, _: &str, _: u64, _: Duration) -> StoreResult<u64> {
        Err(StoreError::Away("down".into()))
    }
    async fn peek(&self, _: &str) -> StoreResult<u64> {
        Err(StoreError::Away("down".into()))
    }
}

fn without_store(config: &str) -> Rig {
    let store = Store { counters: Arc::new(Away), ..Store::memory() };
    Rig::with(environment(store), &register(), &[("rate-limiting", config)])
}

#[tokio::test]
async fn with_the_store_away_local_limits_hold() {
    for policy in ["redis", "hybrid"] {
        for algorithm in ALGORITHMS {
            let rig = without_store(&format!("{{year: 2, policy: {policy}, algorithm: {algorithm}}}"));
            assert_eq!(statuses(&rig, [get("/"), get("/"), get("/")]).await, [200, 200, 429], "{policy} {algorithm}");
            assert_eq!(rig.outcome("rate-limiting", "fallback"), 3);
        }
    }
}

#[tokio::test]
async fn with_the_store_away_and_no_tolerance_it_is_500() {
    let rig = without_store("{year: 2, policy: redis, fault_tolerant: false}");
    let seen = rig.run(get("/")).await;
    assert_eq!(seen.status(), 500);
    assert_eq!(seen.json()["message"], "An unexpected error occurred");
    assert!(!seen.forwarded());
}

#[tokio::test]
async fn concurrent_requests_get_exactly_the_limit() {
    let rig = Arc::new(limited("{year: 30, policy: redis}"));
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let rig = rig.clone();
            tokio::spawn(async move { rig.run(get("/")).await.status() })
        })
        .collect();
    let mut admitted = 0;
    for task in tasks {
        admitted += usize::from(task.await.unwrap() == 200);
    }
    assert_eq!(admitted, 30);
}

#[test]
fn mistakes() {
    for (config, says) in [
        ("{}", "at least one limit"),
        ("{second: 0}", ""),
        ("{second: 10, minute: 5}", "the limit for minute(5) cannot be lower than the limit for second(10)"),
        ("{second: 1, limit_by: header}", "needs `header_name`"),
        ("{second: 1, limit_by: header, header_name: 'a b'}", "`a b` is not a header name"),
        ("{second: 1, limit_by: path}", "needs `path`"),
        ("{second: 1, limit_by: path, path: x}", "begins with `/`"),
        ("{second: 1, error_code: 42}", ""),
        ("{second: 1, policy: memcached}", "memcached"),
        ("{second: 1, algorithm: leaky}", "leaky"),
        ("{second: 1, burst: 5}", "belongs to `algorithm: token-bucket`"),
        ("{second: 1, algorithm: token-bucket, burst: 0}", ""),
        ("{second: 1, lease: 5}", "belongs to `policy: hybrid`"),
        ("{second: 1, limit_by: claim}", "needs `claim`"),
        ("{second: 1, limit_by: template}", "needs `template`"),
        ("{second: 1, limit_by: template, template: '$(os.exit())'}", "`os` is not supported"),
        ("{second: 1, ipv6_prefix: 129}", ""),
        ("{limits: []}", "at least one limit"),
        ("{limits: [{limit_by: ip}]}", "at least one limit"),
        ("{limits: [{second: 1, name: a b}]}", "a name has letters"),
        ("{limits: [{second: 5, minute: 1}]}", "cannot be lower"),
        ("{second: 1, limits: [{second: 1}]}", "there is another limit `consumer`: give this one a `name`"),
        ("{second: 5, cost: 6}", "a cost of 6 can never be paid: the limit for second allows 5 at once"),
        ("{second: 5, costs: [{methods: [POST], cost: 6}]}", "can never be paid"),
        ("{second: 5, costs: [{cost: 1}]}", "say which requests"),
        ("{second: 5, costs: [{paths: [x], cost: 1}]}", "begins with `/`"),
        ("{second: 5, costs: [{methods: ['a b'], cost: 1}]}", "`a b` is not a method"),
    ] {
        let text = crate::testing::errors("rate-limiting", config).iter().map(ToString::to_string).collect::<String>();
        assert!(text.contains(says), "{config}: {text}");
    }
    let found = crate::testing::errors("rate-limiting", "second: 1\nlimits:\n  - {second: 2, limit_by: ip}\n  - {second: 1, minute: 0, limit_by: path}\n");
    assert_eq!(found.iter().map(|e| e.span.line).collect::<std::collections::BTreeSet<_>>(), [4].into(), "the place is that of the limit: {found:?}");
}

#[test]
fn what_is_read_and_does_nothing_is_said() {
    for (config, says) in [
        ("{second: 1, policy: redis, redis: {host: r}}", "Weir counts in the store that `store:` names"),
        ("{second: 1, policy: redis, redis_host: r}", "Weir counts in the store that `store:` names"),
        ("{second: 1, policy: redis, sync_rate: 0.5}", "`policy: hybrid` is what saves round trips"),
    ] {
        let found = crate::testing::errors("rate-limiting", config);
        assert!(found.len() == 1 && found[0].message.contains(says), "{config}: {found:?}");
    }
    let silent = |config: &str| register().check("rate-limiting", &crate::testing::entry("rate-limiting", config).config).is_empty();
    assert!(silent("{second: 1, redis: {host: r}}") && silent("{second: 1, policy: redis, sync_rate: -1}"));
}

#[tokio::test]
async fn every_algorithm_admits_exactly_the_limit_wherever_it_counts() {
    for policy in POLICIES {
        for algorithm in ALGORITHMS {
            for period in ["month", "year"] {
                let rig = limited(&format!("{{{period}: 7, policy: {policy}, algorithm: {algorithm}}}"));
                let seen = statuses(&rig, (0..20).map(|_| get("/"))).await;
                assert_eq!(seen.iter().filter(|s| **s == 200).count(), 7, "{policy} {algorithm} {period}: {seen:?}");
                assert!(seen[7..].iter().all(|s| *s == 429));
            }
        }
    }
}

#[tokio::test]
async fn a_bucket_takes_a_burst_and_gives_it_back_by_and_by() {
    for policy in POLICIES {
        let rig = limited(&format!("{{day: 86400, policy: {policy}, algorithm: token-bucket, burst: 3}}"));
        assert_eq!(statuses(&rig, [get("/"), get("/"), get("/")]).await, [200, 200, 200], "{policy}");
        let refused = rig.run(get("/")).await;
        // A second may have passed on a busy machine; then it is one that waits for the next.
        if refused.status() == 429 {
            assert_eq!(refused.header("retry-after"), Some("1"), "{policy}");
            assert_eq!(refused.header("ratelimit"), Some("\"day\";r=0;t=1"), "{policy}");
        }
        assert_eq!(refused.header("ratelimit-policy"), Some("\"day\";q=86400;w=86400;weir-burst=3"));
    }
}

#[tokio::test]
async fn all_limits_are_told_by_name() {
    let config = "{month: 2, year: 10, limit_by: consumer, algorithm: sliding-window, limits: [{month: 5, limit_by: ip}, {name: all, year: 8, limit_by: service}]}";
    for policy in POLICIES {
        let rig = limited(&format!("{}, policy: {policy}}}", config.trim_end_matches('}')));
        let seen = rig.run(get("/").known_as("kim", None)).await;
        let policies = "\"consumer-month\";q=2;w=2592000, \"consumer-year\";q=10;w=31536000, \"ip-month\";q=5;w=2592000, \"all-year\";q=8;w=31536000";
        assert_eq!(seen.header("ratelimit-policy"), Some(policies), "{policy}");
        let state = seen.header("ratelimit").unwrap();
        let left: Vec<&str> = state.split(", ").map(|item| item.split(';').nth(1).unwrap()).collect();
        assert_eq!(left, ["r=1", "r=9", "r=4", "r=7"], "{policy}: {state}");
        // Kong's fields have one place for each period: the tightest limit's.
        assert_eq!([seen.header("x-ratelimit-limit-month"), seen.header("x-ratelimit-remaining-month")], [Some("2"), Some("1")]);
        assert_eq!([seen.header("x-ratelimit-limit-year"), seen.header("x-ratelimit-remaining-year")], [Some("8"), Some("7")]);
        assert_eq!([seen.header("ratelimit-limit"), seen.header("ratelimit-remaining")], [Some("2"), Some("1")]);
    }
}

#[tokio::test]
async fn an_address_and_a_user_are_limited_in_one_entry() {
    for policy in POLICIES {
        let rig = limited(&format!("{{policy: {policy}, limits: [{{year: 4, limit_by: ip}}, {{year: 2, limit_by: consumer, algorithm: token-bucket}}]}}"));
        let ask = |user: &str, ip: &str| get("/").known_as(user, None).from(ip);
        // The user's limit; what it refuses is not charged to the address.
        assert_eq!(statuses(&rig, (0..4).map(|_| ask("kim", "192.0.2.1"))).await, [200, 200, 429, 429], "{policy}");
        assert_eq!(statuses(&rig, [ask("kim", "192.0.2.2"), ask("lee", "192.0.2.1"), ask("lee", "192.0.2.1")]).await, [429, 200, 200], "{policy}");
        // The address's limit; what it refuses is not charged to the user.
        assert_eq!(statuses(&rig, [ask("ann", "192.0.2.1"), ask("ann", "192.0.2.3"), ask("ann", "192.0.2.3"), ask("ann", "192.0.2.3")]).await, [429, 200, 200, 429], "{policy}");
    }
}

#[tokio::test]
async fn requests_cost_what_is_said() {
    for policy in POLICIES {
        let rig = limited(&format!(
            "{{year: 10, policy: {policy}, lease: {}, costs: [{{methods: [options], cost: 0}}, {{methods: [POST], paths: ['/export*'], cost: 6}}, {{routes: [none], cost: 9}}, {{paths: [/two], cost: 2}}]}}",
            if policy == "hybrid" { "3" } else { "null" }
        ));
        let left = async |ask: Ask| rig.run(ask).await.header("x-ratelimit-remaining-year").map(str::to_owned);
        assert_eq!(left(get("/export")).await.as_deref(), Some("9"), "{policy}");
        assert_eq!(left(crate::testing::ask("POST", "/export/all")).await.as_deref(), Some("3"), "{policy}");
        assert_eq!(left(get("/two")).await.as_deref(), Some("1"), "{policy}");
        let refused = rig.run(get("/two")).await;
        assert_eq!((refused.status(), refused.header("x-ratelimit-remaining-year")), (429, Some("1")), "{policy}");
        assert!(refused.header("retry-after").is_some());
        assert_eq!(left(crate::testing::ask("OPTIONS", "/two")).await, None, "{policy}: it is not counted");
        assert_eq!(left(get("/twofold")).await.as_deref(), Some("0"), "{policy}");
        assert_eq!(rig.run(crate::testing::ask("OPTIONS", "/")).await.status(), 200, "{policy}");
    }
}

/// Counts calls.
struct Counted(Arc<dyn Counters>, AtomicUsize);

#[async_trait]
impl Counters for Counted {
    async fn charge(&self, charges: &[Charge], how: How) -> StoreResult<Charged> {
        self.1.fetch_add(1, SeqCst);
        let tag = |key: &str| key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag.to_owned());
        assert!(charges.iter().all(|c| tag(&c.key) == tag(&charges[0].key)), "the keys of one request share a slot: {charges:?}");
        self.0.charge(charges, how).await
    }
    async fn add(&self, key: &str, by: u64, ttl: Duration) -> StoreResult<u64> {
        self.0.add(key, by, ttl).await
    }
    async fn peek(&self, key: &str) -> StoreResult<u64> {
        self.0.peek(key).await
    }
}

#[tokio::test]
async fn one_step_in_the_store_for_all_limits_of_a_request() {
    let counted = Arc::new(Counted(Store::memory().counters, AtomicUsize::new(0)));
    let store = Store { counters: counted.clone(), ..Store::memory() };
    let config = "{second: 90, hour: 100, policy: redis, limits: [{day: 100, limit_by: ip}, {minute: 90, limit_by: path, path: /}]}";
    let rig = Rig::with(environment(store), &register(), &[("rate-limiting", config)]);
    assert_eq!(statuses(&rig, [get("/"), get("/x")]).await, [200, 200]);
    assert_eq!(counted.1.load(SeqCst), 2);
}

#[tokio::test]
async fn leases_save_round_trips_and_admit_exactly_the_limit() {
    let counted = Arc::new(Counted(Store::memory().counters, AtomicUsize::new(0)));
    let instance = || {
        let store = Store { counters: counted.clone(), ..Store::memory() };
        limited_in(store, "{year: 1000, policy: hybrid}")
    };
    let fleet = [instance(), instance(), instance()];
    let mut admitted = 0;
    for n in 0..3000 {
        admitted += usize::from(fleet[n % 3].run(get("/")).await.status() == 200);
    }
    assert_eq!(admitted, 1000);
    assert_eq!(counted.1.load(SeqCst), 100 + 3, "leases of a hundredth each");
}

fn limited_in(store: Store, config: &str) -> Rig {
    Rig::with(environment(store), &register(), &[("rate-limiting", config)])
}

#[tokio::test]
async fn many_at_once_share_a_lease() {
    let rig = Arc::new(limited("{year: 50, policy: hybrid, lease: 7}"));
    let tasks: Vec<_> = (0..200).map(|_| tokio::spawn({ let rig = rig.clone(); async move { rig.run(get("/")).await.status() } })).collect();
    let mut admitted = 0;
    for task in tasks {
        admitted += usize::from(task.await.unwrap() == 200);
    }
    assert_eq!(admitted, 50);
}

#[tokio::test]
async fn kong_enterprises_spelling_is_the_same_plugin() {
    for strategy in ["local", "redis"] {
        let config = format!("{{limit: [3, 5], window_size: [86400, 31536000], identifier: ip, strategy: {strategy}, namespace: shop, sync_rate: -1}}");
        let rig = Rig::new(&[("rate-limiting-advanced", &config)]);
        let first = rig.run(get("/")).await;
        assert_eq!([first.header("x-ratelimit-limit-day"), first.header("x-ratelimit-remaining-year")], [Some("3"), Some("4")]);
        assert_eq!(statuses(&rig, [get("/"), get("/"), get("/")]).await, [200, 200, 429], "{strategy}");
        assert_eq!(rig.outcome("rate-limiting-advanced", "limited"), 1);
    }
    let rig = Rig::new(&[("rate-limiting-advanced", "{limit: [3], window_size: [7], window_type: fixed}")]);
    assert_eq!(rig.run(get("/")).await.header("x-ratelimit-limit-7"), Some("3"));
    // As Kong's tools write it down, with every default.
    let dumped = "{limit: [30], window_size: [2628000], window_type: sliding, compound_identifier: null, consumer_groups: null, counter_key: null, dictionary_name: kong_rate_limiting_counters, disable_penalty: false, enforce_consumer_groups: false, header_name: null, lock_dictionary_name: kong_locks, retry_after_jitter_max: 0, sync_rate: null, throttling: {enabled: false, interval: 5}, redis: {host: 127.0.0.1, cluster_nodes: null, connect_timeout: 2000, connection_is_proxied: false, keepalive_pool_size: 256, sentinel_master: null, ssl: false}}";
    assert_eq!(Rig::new(&[("rate-limiting-advanced", dumped)]).run(get("/")).await.header("x-ratelimit-remaining-2628000"), Some("29"));
    for (config, says) in [
        ("{}", "at least one limit"),
        ("{limit: [1], window_size: [1], throttling: {enabled: true}}", "`throttling` of Kong Enterprise"),
        ("{limit: [1], window_size: [1], enforce_consumer_groups: true}", "`enforce_consumer_groups` of Kong Enterprise"),
        ("{limit: [1], window_size: [1], compound_identifier: [ip]}", "`compound_identifier` of Kong Enterprise"),
        ("{limit: [1, 2], window_size: [1]}", "2 limits need as many windows, not 1"),
        ("{limit: [1], window_size: [0]}", "1 or more"),
        ("{limit: [1, 2], window_size: [5, 5]}", "two windows of 5 s"),
        ("{limit: [5, 2], window_size: [5, 60]}", "the limit for 60 s (2) cannot be lower than the limit for 5 s (5)"),
        ("{limit: [1], window_size: [1], identifier: header}", "`identifier: header` needs `header_name`"),
    ] {
        let text = crate::testing::errors("rate-limiting-advanced", config).iter().map(ToString::to_string).collect::<String>();
        assert!(text.contains(says), "{config}: {text}");
    }
}

#[tokio::test]
async fn kongs_redis_settings_are_read() {
    let rig = limited("{minute: 5, policy: redis, redis_host: r, redis_port: 6379, redis: {host: r, port: 6379, password: p, ssl: true}, sync_rate: -1}");
    assert_eq!(rig.run(get("/")).await.status(), 200);
}
