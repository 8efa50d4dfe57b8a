use crate::testing::{Rig, Seen, environment, errors, get};
use async_trait::async_trait;
use std::{sync::Arc, time::Duration};
use weir_store::limits::How;
use weir_store::{Charge, Charged, Counters, Store, StoreError, StoreResult};

const LIMITS: &str = "limits: {sms: {day: 5, year: 7}, video: {year: 2}}";

fn rig(config: &str, cost: &str) -> Rig {
    Rig::new(&[("response-ratelimiting", config)]).upstream_field("x-kong-limit", cost).upstream_field("content-type", "text/plain")
}

async fn run(rig: &Rig) -> Seen {
    rig.run(get("/")).await
}

fn left(seen: &Seen, limit: &str, period: &str) -> Option<String> {
    seen.header(&format!("x-ratelimit-remaining-{limit}-{period}")).map(str::to_owned)
}

/// In this process and in the store.
const POLICIES: [&str; 2] = ["policy: local", "policy: redis"];

#[tokio::test]
async fn answers_are_charged_and_told() {
    for policy in POLICIES {
        let rig = rig(&format!("{LIMITS}\n{policy}"), "sms=2, video = 1, other=9, day");
        let first = run(&rig).await;
        assert_eq!((first.status(), first.body.as_str()), (200, "hello"));
        assert_eq!(first.header("x-ratelimit-limit-sms-day"), Some("5"));
        assert_eq!(first.header("x-ratelimit-limit-sms-year"), Some("7"));
        assert_eq!(first.header("x-ratelimit-limit-video-year"), Some("2"));
        assert_eq!([left(&first, "sms", "day"), left(&first, "sms", "year"), left(&first, "video", "year")].map(Option::unwrap), ["3", "5", "1"]);
        assert_eq!(first.header("x-kong-limit"), None);
        assert_eq!([first.sent("x-ratelimit-remaining-sms"), first.sent("x-ratelimit-remaining-video")], ["5", "2"]);
        let second = run(&rig).await;
        assert_eq!([second.sent("x-ratelimit-remaining-sms"), second.sent("x-ratelimit-remaining-video")], ["3", "1"], "{policy}");
        assert_eq!([left(&second, "sms", "day"), left(&second, "video", "year")].map(Option::unwrap), ["1", "0"]);
        let third = run(&rig).await;
        assert_eq!((third.status(), third.body.as_str()), (429, ""), "{policy}");
        assert_eq!([third.header("content-type"), third.header("cache-control")], [None, Some("no-store")]);
        assert_eq!([left(&third, "sms", "day"), left(&third, "video", "year")].map(Option::unwrap), ["0", "0"]);
        // What was held back is not charged.
        assert_eq!(run(&rig).await.sent("x-ratelimit-remaining-sms"), "1");
        assert!(rig.outcome("response-ratelimiting", "limited") >= 2);
    }
}

#[tokio::test]
async fn answers_that_cost_nothing_pass_when_a_limit_is_used_up() {
    for policy in POLICIES {
        let register = crate::register();
        let env = environment(Store::memory());
        let config = format!("{LIMITS}\n{policy}");
        let with = |cost: &str| Rig::with(env.clone(), &register, &[("response-ratelimiting", config.as_str())]).upstream_field("x-kong-limit", cost);
        assert_eq!(run(&with("video=2")).await.status(), 200);
        assert_eq!(run(&with("video=1")).await.status(), 429);
        for cost in ["sms=1", "video=0", "video=-1", "video=x", "", "nothing=1"] {
            assert_eq!(run(&with(cost)).await.status(), 200, "{policy} {cost}");
        }
    }
}

#[tokio::test]
async fn a_used_up_limit_may_block_at_once() {
    for policy in POLICIES {
        let rig = rig(&format!("{LIMITS}\nblock_on_first_violation: true\n{policy}"), "video=2");
        assert_eq!(run(&rig).await.status(), 200);
        let seen = run(&rig).await;
        assert_eq!((seen.status(), seen.json()["message"].as_str()), (429, Some("API rate limit exceeded for 'video'")));
        assert_eq!(rig.calls(), 1);
    }
}

#[tokio::test]
async fn callers_are_told_apart_as_configured() {
    for (by, one, other, same) in [
        ("consumer", get("/").known_as("a", Some("k1")), get("/").known_as("a", Some("k2")), true),
        ("consumer", get("/").known_as("a", None), get("/").known_as("b", None), false),
        ("credential", get("/").known_as("a", Some("k1")), get("/").known_as("a", Some("k2")), false),
        ("consumer", get("/"), get("/").from("192.0.2.8"), false),
        ("ip", get("/").known_as("a", None), get("/").known_as("b", None), true),
    ] {
        let rig = rig(&format!("{LIMITS}\nlimit_by: {by}"), "sms=1");
        rig.run(one).await;
        let seen = rig.run(other).await;
        assert_eq!(seen.sent("x-ratelimit-remaining-sms"), if same { "4" } else { "5" }, "{by}");
    }
}

#[tokio::test]
async fn the_header_may_be_another_and_the_limits_hidden() {
    let config = format!("{LIMITS}\nheader_name: X-Cost\nhide_client_headers: true");
    let rig = Rig::new(&[("response-ratelimiting", &config)]).upstream_field("x-cost", "sms=2").upstream_field("x-cost", "video=1");
    run(&rig).await;
    let seen = run(&rig).await;
    assert_eq!([seen.sent("x-ratelimit-remaining-sms"), seen.sent("x-ratelimit-remaining-video")], ["3", "1"]);
    for name in ["x-cost", "x-ratelimit-limit-sms-day", "x-ratelimit-remaining-sms-day"] {
        assert_eq!(seen.header(name), None);
    }
}

/// Counters that are away.
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

#[tokio::test]
async fn without_the_store_requests_pass_or_fail_as_configured() {
    for (tolerant, status) in [(true, 200), (false, 500)] {
        let config = format!("{LIMITS}\npolicy: redis\nfault_tolerant: {tolerant}");
        let rig = Rig::with(environment(Store { counters: Arc::new(Away), ..Store::memory() }), &crate::register(), &[("response-ratelimiting", &config)]).upstream_field("x-kong-limit", "sms=9");
        let seen = run(&rig).await;
        assert_eq!(seen.status(), status);
        assert_eq!(rig.outcome("response-ratelimiting", "error"), 1);
        if status == 500 {
            assert_eq!(seen.json()["message"], "An unexpected error occurred");
        }
    }
}

#[test]
fn mistakes_are_named() {
    for (config, message) in [
        ("{}", "at least one limit is wanted"),
        ("limits: {sms: {}}", "at least one period is wanted"),
        ("limits: {sms: {minute: 9, hour: 5}}", "the limit for hour(5) cannot be lower than the limit for minute(9)"),
        ("limits: {sms: {minute: 0}}", "1"),
        ("limits: {'a b': {minute: 1}}", "`a b` can not be part of a header name"),
        ("{limits: {sms: {minute: 1}}, header_name: 'a b'}", "`a b` is not a header name"),
    ] {
        let found = errors("response-ratelimiting", config);
        assert!(found[0].message.contains(message), "{config}: {}", found[0]);
    }
}
