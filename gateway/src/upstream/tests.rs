use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

fn targets(weights: &[u32]) -> Vec<Target> {
    weights.iter().zip(1000..).map(|(weight, port)| Target { host: "127.0.0.1".into(), port, weight: *weight }).collect()
}

fn upstream(weights: &[u32]) -> Upstream {
    Upstream::new("u", targets(weights), &Endpoints::default())
}

/// An upstream with these settings, as JSON.
fn set(weights: &[u32], settings: serde_json::Value) -> Upstream {
    let mut all = serde_json::json!({ "name": "u" });
    all.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
    Upstream::with_settings(&serde_json::from_value(all).unwrap(), targets(weights), TlsWish::default(), &Endpoints::default())
}

fn at(u: &Upstream, index: usize) -> Arc<Endpoint> {
    u.endpoints().nth(index).unwrap()
}

fn picked(u: &Upstream, hash: Option<u64>) -> usize {
    usize::from(u.pick_for(hash, &[]).unwrap().port - 1000)
}

fn fail(u: &Upstream, index: usize, times: u32) {
    (0..times).for_each(|_| u.report(&at(u, index), Outcome::NotConnected));
}

fn answer(u: &Upstream, index: usize, status: u16) {
    u.report(&at(u, index), Outcome::Answered { status: StatusCode::from_u16(status).unwrap(), after: Duration::from_millis(1) });
}

#[test]
fn weights_share_the_traffic_smoothly() {
    let u = upstream(&[5, 1, 1, 0]);
    let turn: Vec<usize> = (0..7).map(|_| picked(&u, None)).collect();
    assert_eq!(turn, [0, 0, 1, 0, 2, 0, 0]);
}

#[test]
fn a_failing_endpoint_is_left_out_until_all_fail() {
    let u = upstream(&[1, 1]);
    fail(&u, 0, 3);
    assert!((0..4).all(|_| picked(&u, None) == 1));
    fail(&u, 1, 3);
    assert!(u.pick(&[]).is_some());
    answer(&u, 0, 200);
    assert!((0..4).all(|_| picked(&u, None) == 0));
}

#[test]
fn the_share_of_one_that_is_out_goes_to_all_others_alike() {
    let u = upstream(&[1, 1, 1]);
    fail(&u, 1, 3);
    let mut counts = [0; 3];
    (0..600).for_each(|_| counts[picked(&u, None)] += 1);
    assert_eq!(counts, [300, 0, 300]);
}

#[test]
fn after_its_time_one_request_tries_an_endpoint() {
    let u = set(&[1, 1], serde_json::json!({ "max_fails": 1, "fail_timeout": "50ms" }));
    fail(&u, 0, 1);
    std::thread::sleep(Duration::from_millis(60));
    // The next time out begins with the trial, so that however slow this test is, the second pick may find a second trial, but never two.
    let first = at(&u, 0);
    assert!(first.health.enter(Duration::from_secs(60)));
    assert!((0..4).all(|_| picked(&u, None) == 1));
    answer(&u, 0, 200);
    assert!((0..4).any(|_| picked(&u, None) == 0));
}

#[test]
fn failures_that_kong_counts_are_counted_by_kind() {
    let unhealthy = serde_json::json!({ "http_failures": 2, "tcp_failures": 3 });
    let u = set(&[1, 1], serde_json::json!({ "healthchecks": { "passive": { "unhealthy": unhealthy } } }));
    answer(&u, 0, 500);
    answer(&u, 0, 200);
    answer(&u, 0, 500);
    assert_eq!(at(&u, 0).health.state(), State::Up, "a success ends the row");
    answer(&u, 0, 503);
    assert_eq!((at(&u, 0).health.state(), at(&u, 0).health.reason().as_str()), (State::Down, "failing answers"));
    answer(&u, 1, 502);
    answer(&u, 1, 502);
    fail(&u, 1, 2);
    assert_eq!(at(&u, 1).health.state(), State::Up, "502 is not among the statuses that count");
    fail(&u, 1, 1);
    assert_eq!(at(&u, 1).health.state(), State::Down);
}

#[test]
fn outliers_are_cast_out_but_never_too_many() {
    let rules = serde_json::json!({ "consecutive_5xx": 3, "max_ejection_percent": 50, "base_ejection_time": "1h", "max_ejection_time": "2h" });
    let u = set(&[1, 1, 1, 1], serde_json::json!({ "outlier_detection": rules }));
    for index in 0..4 {
        (0..3).for_each(|_| answer(&u, index, 500));
    }
    let out = (0..4).filter(|i| at(&u, *i).health.state() == State::Down).count();
    assert_eq!(out, 2);
}

#[test]
fn an_endpoint_whose_success_rate_is_far_below_the_others_is_cast_out() {
    let rules = serde_json::json!({
        "consecutive_5xx": 0, "success_rate_deviations": 1.0, "success_rate_minimum_hosts": 3, "success_rate_request_volume": 10, "interval": "1ms",
    });
    let u = set(&[1, 1, 1, 1], serde_json::json!({ "outlier_detection": rules }));
    for _ in 0..10 {
        for index in 0..4 {
            at(&u, index).health.window[0].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        at(&u, 2).health.window[1].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
    std::thread::sleep(Duration::from_millis(2));
    answer(&u, 0, 200);
    let down: Vec<usize> = (0..4).filter(|i| at(&u, *i).health.state() == State::Down).collect();
    assert_eq!(down, [2]);
}

#[test]
fn below_the_panic_threshold_all_are_used_and_below_kongs_none() {
    let all_used = set(&[1, 1, 1, 1], serde_json::json!({ "panic_threshold": 60 }));
    fail(&all_used, 0, 3);
    assert!((0..8).all(|_| picked(&all_used, None) != 0), "75 % are enough");
    fail(&all_used, 1, 3);
    let mut used: Vec<usize> = (0..8).map(|_| picked(&all_used, None)).collect();
    used.sort_unstable();
    used.dedup();
    assert_eq!(used, [0, 1, 2, 3]);
    let none_used = set(&[1, 1], serde_json::json!({ "healthchecks": { "threshold": 55 } }));
    assert!(none_used.pick(&[]).is_some());
    fail(&none_used, 0, 3);
    assert!(none_used.pick(&[]).is_none());
    let never = set(&[1, 1], serde_json::json!({ "panic_threshold": 0 }));
    fail(&never, 0, 3);
    fail(&never, 1, 3);
    assert!(never.pick(&[]).is_none());
}

#[test]
fn one_that_drains_gets_nothing_even_in_panic() {
    let u = upstream(&[1, 1]);
    at(&u, 0).health.drain("test");
    fail(&u, 1, 3);
    assert!((0..4).all(|_| picked(&u, None) == 1));
    at(&u, 1).health.drain("test");
    assert!(u.pick(&[]).is_none());
    at(&u, 0).health.up(Duration::ZERO);
    assert_eq!(picked(&u, None), 0);
}

#[test]
fn slow_start_gives_a_small_share_at_first() {
    let u = set(&[1, 1], serde_json::json!({ "slow_start": "1h" }));
    at(&u, 0).health.down("test");
    at(&u, 0).health.up(Duration::from_secs(3600));
    assert_eq!(at(&u, 0).health.state(), State::SlowStart);
    let to_first = (0..2000).filter(|_| picked(&u, None) == 0).count();
    // A tenth of its own turns, and a tenth of a half of what the other turns leave.
    assert!((20..400).contains(&to_first), "{to_first} of 2000");
    assert_eq!(at(&u, 0).health.share(Duration::ZERO), 1.0, "without slow start all at once");
}

#[test]
fn least_connections_counts_what_is_under_way_by_weight() {
    let u = set(&[1, 3], serde_json::json!({ "algorithm": "least-connections" }));
    let mut held = Vec::new();
    let mut counts = [0; 2];
    for _ in 0..40 {
        let endpoint = u.pick(&[]).unwrap();
        counts[usize::from(endpoint.port - 1000)] += 1;
        held.push(InFlight::on(&endpoint));
    }
    assert_eq!(counts, [10, 30]);
}

#[test]
fn latency_prefers_the_fast_and_still_asks_the_slow_under_load() {
    let u = set(&[1, 1], serde_json::json!({ "algorithm": "latency" }));
    let took = |index: usize, millis| u.report(&at(&u, index), Outcome::Answered { status: StatusCode::OK, after: Duration::from_millis(millis) });
    took(0, 100);
    took(1, 10);
    assert!((0..20).all(|_| picked(&u, None) == 1));
    let _busy: Vec<_> = (0..60).map(|_| InFlight::on(&at(&u, 1))).collect();
    assert_eq!(picked(&u, None), 0);
}

#[test]
fn a_retry_goes_elsewhere() {
    let u = upstream(&[1, 1]);
    let first = u.pick(&[]).unwrap();
    let second = u.pick(&[first.clone()]).unwrap();
    assert!(!Arc::ptr_eq(&first, &second));
    assert!(u.pick(&[first, second]).is_none());
}

#[test]
fn bounded_loads_send_on_what_is_too_much_for_one() {
    let u = set(&[1, 1, 1, 1], serde_json::json!({ "algorithm": "consistent-hashing", "hash_on": "ip", "hash_balance_factor": 125 }));
    let mut held = Vec::new();
    for done in 1..=200u32 {
        let endpoint = u.pick_for(Some(7), &[]).unwrap();
        held.push(InFlight::on(&endpoint));
        let most = u.endpoints().map(|e| e.in_flight.load(std::sync::atomic::Ordering::Relaxed)).max().unwrap();
        assert!(f64::from(most) <= (f64::from(done) * 1.25 / 4.0).ceil(), "{most} of {done}");
    }
}

#[test]
fn health_outlives_a_configuration_and_is_an_upstreams_own() {
    let all = Endpoints::default();
    let of = |name: &str| Upstream::new(name, targets(&[1]), &all);
    let (before, after, other) = (of("u"), of("u"), of("v"));
    assert!(Arc::ptr_eq(&at(&before, 0), &at(&after, 0)) && !Arc::ptr_eq(&at(&before, 0), &at(&other, 0)));
}

#[test]
fn an_operator_says_what_an_endpoint_is() {
    let all = Endpoints::default();
    let target = |port, weight| Target { host: "127.0.0.1".into(), port, weight };
    all.put_in_force([Arc::new(Upstream::new("u", vec![target(1, 1), target(2, 0)], &all))]);
    let states = || -> Vec<&str> { all.view()[0].endpoints.iter().map(|e| e.state).collect() };
    assert_eq!(states(), ["up", "draining"]);
    for (said, shown) in [("unhealthy", "down"), ("healthy", "up"), ("draining", "draining"), ("healthy", "up")] {
        all.set("u", "127.0.0.1:1", said).unwrap();
        assert_eq!(states(), [shown, "draining"]);
    }
    assert!(all.set("u", "127.0.0.1:3", "healthy").is_err() && all.set("w", "127.0.0.1:1", "healthy").is_err());
}

/// An address with priority, port and weight of an SRV record.
fn found(ip: &str, priority: u16, port: u16, weight: u16) -> crate::dns::Found {
    crate::dns::Found { priority, ip: ip.parse().unwrap(), port: Some(port), weight: Some(weight), srv_name: None }
}

fn plain(ip: &str) -> crate::dns::Found {
    crate::dns::Found { port: None, weight: None, ..found(ip, 0, 0, 0) }
}

fn of_name(all: &Endpoints, host: &str) -> (Upstream, Arc<crate::dns::Name>) {
    (Upstream::new("u", vec![Target { host: host.into(), port: 80, weight: 7 }], all), all.dns().name(host))
}

fn names(u: &Upstream) -> Vec<String> {
    u.endpoints().map(|e| e.name.clone()).collect()
}

#[test]
fn addresses_come_and_go_and_those_that_stay_keep_their_health() {
    let all = Endpoints::default();
    let (u, name) = of_name(&all, "shop.test");
    assert_eq!(names(&u), ["shop.test:80"], "what stands for a name that is not known yet");
    name.teach(vec![plain("10.0.0.1"), plain("10.0.0.2")]);
    assert_eq!(names(&u), ["10.0.0.1:80", "10.0.0.2:80"]);
    let stays = at(&u, 1);
    fail(&u, 1, 3);
    assert_eq!((0..4).map(|_| u.pick(&[]).unwrap().name.clone()).collect::<Vec<_>>(), ["10.0.0.1:80"; 4]);
    name.teach(vec![plain("10.0.0.2"), plain("10.0.0.3")]);
    assert_eq!(names(&u), ["10.0.0.2:80", "10.0.0.3:80"]);
    assert!(Arc::ptr_eq(&stays, &at(&u, 0)) && !stays.is_up());
    assert_eq!(u.pick(&[]).unwrap().name, "10.0.0.3:80");
    // A configuration that names it again begins with what is known.
    assert_eq!(names(&of_name(&all, "Shop.Test").0), ["10.0.0.2:80", "10.0.0.3:80"]);
}

#[test]
fn srv_priorities_are_used_one_after_the_other_by_weight() {
    let all = Endpoints::default();
    let (u, name) = of_name(&all, "_web._tcp.test");
    name.teach(vec![found("10.0.0.9", 20, 90, 0), found("10.0.0.1", 10, 81, 3), found("10.0.0.2", 10, 82, 1)]);
    let picks = |count: usize| -> HashMap<u16, usize> {
        (0..count).fold(HashMap::new(), |mut counts, _| {
            *counts.entry(u.pick(&[]).unwrap().port).or_default() += 1;
            counts
        })
    };
    assert_eq!(picks(40), HashMap::from([(81, 30), (82, 10)]));
    let (first, second) = (at(&u, 0), at(&u, 1));
    assert_eq!(u.pick(&[first.clone(), second.clone()]).unwrap().port, 90, "a retry goes on to the next priority");
    first.health.down("test");
    assert_eq!(picks(4), HashMap::from([(82, 4)]));
    second.health.down("test");
    assert_eq!(picks(4), HashMap::from([(90, 4)]), "one of weight 0 is used too");
    at(&u, 2).health.down("test");
    assert!(u.pick(&[]).is_some(), "when nobody is in, all are tried");
}

#[test]
fn one_that_joins_others_begins_slowly_and_a_target_that_drains_does_so_with_all_its_addresses() {
    let all = Endpoints::default();
    let settings = serde_json::from_value(serde_json::json!({ "name": "u", "slow_start": "1h" })).unwrap();
    let u = Arc::new(Upstream::with_settings(&settings, vec![Target { host: "a.test".into(), port: 80, weight: 1 }], TlsWish::default(), &all));
    let name = all.dns().name("a.test");
    name.teach(vec![plain("10.0.0.1")]);
    name.teach(vec![plain("10.0.0.1"), plain("10.0.0.2")]);
    assert_eq!([0, 1].map(|i| at(&u, i).health.state()), [State::Up, State::SlowStart]);
    all.put_in_force([u.clone()]);
    all.set("u", "a.test:80", "draining").unwrap();
    name.teach(vec![plain("10.0.0.2"), plain("10.0.0.3")]);
    assert_eq!([0, 1].map(|i| at(&u, i).health.state()), [State::Draining; 2]);
    all.set("u", "a.test:80", "healthy").unwrap();
    name.teach(vec![plain("10.0.0.4")]);
    assert_ne!(at(&u, 0).health.state(), State::Draining);
}

fn hashed(weights: &[u32]) -> Upstream {
    set(weights, serde_json::json!({ "algorithm": "consistent-hashing", "hash_on": "path" }))
}

/// Keys as they come: their hashes are spread over all numbers.
fn keys() -> impl Iterator<Item = u64> {
    (0..3000u64).map(|n| xxhash_rust::xxh3::xxh3_64(&n.to_le_bytes()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn in_a_turn_each_gets_exactly_its_weight(weights in prop::collection::vec(1u32..20, 1..8)) {
        let u = upstream(&weights);
        let sum: u32 = weights.iter().sum();
        let mut counts = vec![0; weights.len()];
        (0..sum).for_each(|_| counts[picked(&u, None)] += 1);
        prop_assert_eq!(counts, weights);
    }

    #[test]
    fn a_hash_shares_by_weight(weights in prop::collection::vec(50u32..200, 2..7)) {
        let u = hashed(&weights);
        let sum: u32 = weights.iter().sum();
        let mut counts: HashMap<usize, u32> = HashMap::new();
        keys().for_each(|key| *counts.entry(picked(&u, Some(key))).or_default() += 1);
        for (index, weight) in weights.iter().enumerate() {
            let share = f64::from(counts.get(&index).copied().unwrap_or(0)) / 3000.0;
            let fair = f64::from(*weight) / f64::from(sum);
            prop_assert!((share - fair).abs() < 0.06, "{} has {share}, {fair} is fair", index);
        }
    }

    #[test]
    fn when_one_comes_or_goes_only_its_own_keys_move(weights in prop::collection::vec(50u32..200, 2..7), more in 50u32..200) {
        let (before, after) = (hashed(&weights), hashed(&[&weights[..], &[more]].concat()));
        for key in keys() {
            let (old, new) = (picked(&before, Some(key)), picked(&after, Some(key)));
            prop_assert!(old == new || new == weights.len(), "a key moved from {old} to {new}");
        }
    }

    #[test]
    fn when_one_is_out_only_its_own_keys_move_and_they_come_back(weights in prop::collection::vec(50u32..200, 2..7), out in 0usize..7) {
        let u = hashed(&weights);
        let out = out % weights.len();
        let before: Vec<usize> = keys().map(|key| picked(&u, Some(key))).collect();
        at(&u, out).health.down("test");
        for (key, old) in keys().zip(&before) {
            let new = picked(&u, Some(key));
            prop_assert!(new != out && (*old == out || *old == new));
        }
        at(&u, out).health.up(Duration::ZERO);
        prop_assert!(keys().zip(&before).all(|(key, old)| picked(&u, Some(key)) == *old));
    }
}
