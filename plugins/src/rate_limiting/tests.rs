use crate::testing::{Ask, Rig, environment, get};
use crate::{Plugins, register};
use async_trait::async_trait;
use std::{sync::Arc, time::Duration};
use weir_store::{Counters, Store, StoreError, StoreResult, Take, Taken};

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
    for policy in ["local", "redis", "cluster"] {
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

/// The setting, two callers that count apart (or not), and whether they do.
#[tokio::test]
async fn whose_requests_count_together() {
    for policy in ["local", "redis"] {
        for (setting, first, second, apart) in [
            ("limit_by: ip", get("/").from("192.0.2.1"), get("/").from("192.0.2.2"), true),
            ("limit_by: ip", get("/a").from("192.0.2.1"), get("/b").from("192.0.2.1"), false),
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
    for policy in ["local", "redis"] {
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
    async fn take(&self, _: &[Take]) -> StoreResult<Taken> {
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
    let rig = without_store("{year: 2, policy: redis}");
    assert_eq!(statuses(&rig, [get("/"), get("/"), get("/")]).await, [200, 200, 429]);
    assert_eq!(rig.outcome("rate-limiting", "fallback"), 3);
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
    ] {
        let text = crate::testing::errors("rate-limiting", config).iter().map(ToString::to_string).collect::<String>();
        assert!(text.contains(says), "{config}: {text}");
    }
}

#[tokio::test]
async fn kongs_redis_settings_are_read() {
    let rig = limited("{minute: 5, policy: redis, redis_host: r, redis_port: 6379, redis: {host: r, port: 6379, password: p, ssl: true}, sync_rate: -1}");
    assert_eq!(rig.run(get("/")).await.status(), 200);
}
