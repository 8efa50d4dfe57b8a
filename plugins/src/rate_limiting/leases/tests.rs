//! Several instances with clocks of their own before one store, all on a simulated clock.

use super::*;
use async_trait::async_trait;
use proptest::prelude::*;
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    time::Duration,
};
use weir_store::Charged;
use weir_store::limits::{Meters, Method, Span};

const START: u64 = 1_700_000_000_000_000;
const SECOND: u64 = 1_000_000;

/// A store whose clock the test sets.
#[derive(Default)]
struct Simulated {
    meters: Meters,
    now: AtomicU64,
    calls: AtomicUsize,
}

#[async_trait]
impl Counters for Simulated {
    async fn charge(&self, charges: &[Charge], how: How) -> StoreResult<Charged> {
        self.calls.fetch_add(1, SeqCst);
        Ok(self.meters.charge_named(self.now.load(SeqCst), charges, how))
    }
    async fn add(&self, _: &str, _: u64, _: Duration) -> StoreResult<u64> {
        unreachable!("limits are charged")
    }
    async fn peek(&self, _: &str) -> StoreResult<u64> {
        unreachable!("limits are charged")
    }
}

/// Instances, each with a clock that is off by so much.
struct Fleet {
    store: Simulated,
    instances: Vec<(Leases, u64)>,
    rules: Vec<Rule>,
    lease: u64,
    runtime: tokio::runtime::Runtime,
}

impl Fleet {
    fn new(instances: u64, rules: &[Rule], lease: u64) -> Fleet {
        let store = Simulated { now: AtomicU64::new(START), ..Simulated::default() };
        let instances = (0..instances).map(|i| (Leases(Cache::new(4)), i * 777_777)).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        Fleet { store, instances, rules: rules.to_vec(), lease, runtime }
    }

    /// One request at an instance.
    fn ask(&self, instance: usize, cost: u64) -> Outcome {
        let (leases, off) = &self.instances[instance % self.instances.len()];
        let names = (0..self.rules.len()).map(|i| format!("count {i}")).collect();
        let wanted = [Wanted { key: self.store.meters.key("caller"), rules: &self.rules, names }];
        let clock = || self.store.now.load(SeqCst) + off;
        self.runtime.block_on(leases.take(&self.store, clock, &wanted, cost, Some(self.lease))).unwrap()
    }

    fn pass(&self, micros: u64) {
        self.store.now.fetch_add(micros, SeqCst);
    }

    fn now(&self) -> u64 {
        self.store.now.load(SeqCst)
    }
}

fn rule(limit: u64, span: Span, method: Method) -> Rule {
    Rule { limit, span, method }
}

#[test]
fn most_requests_need_no_round_trip() {
    let fleet = Fleet::new(2, &[rule(1000, Span::Year, Method::Fixed)], 50);
    let admitted = (0..5000).filter(|n| fleet.ask(*n, 1).allowed).count();
    assert_eq!(admitted, 1000);
    // 20 leases, and each instance learns once that there are no more.
    assert_eq!(fleet.store.calls.load(SeqCst), 22);
}

#[test]
fn what_one_instance_holds_the_others_do_not_get() {
    for method in [Method::Fixed, Method::Sliding, Method::Bucket { burst: 100 }] {
        let fleet = Fleet::new(3, &[rule(100, Span::Year, method)], 10);
        assert!(fleet.ask(0, 1).allowed && fleet.ask(1, 1).allowed);
        let admitted = (0..200).filter(|_| fleet.ask(2, 1).allowed).count();
        assert_eq!(admitted, 80, "{method:?}: all but two leases");
        assert_eq!((0..200).filter(|n| fleet.ask(*n, 1).allowed).count(), 18, "{method:?}: those are spent where they are");
    }
}

#[test]
fn what_is_left_is_told_and_when_there_is_more() {
    let fleet = Fleet::new(1, &[rule(20, Span::MINUTE, Method::Fixed)], 5);
    fleet.pass(60 * SECOND - START % (60 * SECOND));
    let left: Vec<u64> = (0..20).map(|_| fleet.ask(0, 1).readings[0].left).collect();
    assert_eq!(left, (0..20).rev().collect::<Vec<_>>());
    fleet.pass(20 * SECOND);
    let refused = fleet.ask(0, 1);
    assert_eq!((refused.allowed, refused.readings[0].wait, refused.readings[0].reset), (false, 40 * SECOND, 40 * SECOND));
    fleet.pass(40 * SECOND);
    assert!(fleet.ask(0, 1).allowed);
}

#[test]
fn what_costs_more_than_a_lease_takes_what_it_costs() {
    let fleet = Fleet::new(2, &[rule(100, Span::Year, Method::Fixed)], 3);
    assert!(fleet.ask(0, 1).allowed);
    assert!(fleet.ask(0, 90).allowed, "the two that were held went back");
    assert!(!fleet.ask(1, 10).allowed);
    assert!(fleet.ask(1, 9).allowed, "less than what was refused is asked for");
    assert!(!fleet.ask(1, 1).allowed);
}

#[test]
fn a_lease_that_ends_unspent_comes_back() {
    // A request in each slot takes a lease of 10 and spends 1 of it: without their return 20 would be at an end after two slots.
    let fleet = Fleet::new(1, &[rule(20, Span::MINUTE, Method::Sliding)], 10);
    for slot in 0..16 {
        assert!(fleet.ask(0, 1).allowed, "slot {slot}");
        fleet.pass(60 * SECOND / 16);
    }
}

#[test]
fn several_rules_are_spent_together() {
    let fleet = Fleet::new(2, &[rule(5, Span::Month, Method::Sliding), rule(100, Span::Year, Method::Bucket { burst: 100 })], 2);
    let admitted = (0..50).filter(|n| fleet.ask(*n, 1).allowed).count();
    assert_eq!(admitted, 5);
    assert!(fleet.ask(0, 1).readings[1].left >= 100 - 5 - 2, "the other rule lost no more than a lease");
}

fn steps() -> impl Strategy<Value = Vec<(u64, usize)>> {
    let step = prop_oneof![4 => Just(0), 4 => 0u64..200_000, 1 => 0u64..2 * SECOND, 1 => Just(SECOND)];
    prop::collection::vec((step, 0usize..4), 1..400)
}

proptest! {
    /// The bound that the manual states for fixed windows.
    #[test]
    fn fixed_windows_are_never_passed_and_refuse_too_early_by_the_others_leases_at_most(steps in steps(), limit in 1u64..40, lease in 1u64..8, instances in 1u64..5) {
        let fleet = Fleet::new(instances, &[rule(limit, Span::Seconds(1), Method::Fixed)], lease);
        let mut windows: BTreeMap<u64, u64> = BTreeMap::new();
        for (step, instance) in steps {
            fleet.pass(step);
            let admitted = windows.entry(fleet.now() / SECOND).or_default();
            if fleet.ask(instance, 1).allowed {
                *admitted += 1;
                prop_assert!(*admitted <= limit);
            } else {
                prop_assert!(*admitted + lease * (instances - 1) >= limit, "{} of {}", admitted, limit);
            }
        }
    }

    /// For sliding windows: in no stretch of the length more than the limit. Refused too early: by the others' leases, against a stretch of the length and a slot.
    #[test]
    fn sliding_windows_are_never_passed_anywhere(steps in steps(), limit in 1u64..40, lease in 1u64..8, instances in 1u64..5) {
        let fleet = Fleet::new(instances, &[rule(limit, Span::Seconds(1), Method::Sliding)], lease);
        let mut log: Vec<u64> = Vec::new();
        for (step, instance) in steps {
            fleet.pass(step);
            let now = fleet.now();
            let since = |length: u64| log.iter().filter(|at| **at > now - length).count() as u64;
            let (within, longer) = (since(SECOND), since(SECOND + SECOND / 16));
            if fleet.ask(instance, 1).allowed {
                prop_assert!(within < limit, "{} before of {}", within, limit);
                log.push(now);
            } else {
                prop_assert!(longer + lease * (instances - 1) >= limit, "{} of {}", longer, limit);
            }
        }
    }

    /// For token buckets: in no stretch more than the burst, the rate, and a lease for each instance.
    #[test]
    fn buckets_pass_their_limit_by_the_leases_at_most(steps in steps(), limit in 1u64..40, burst in 1u64..40, lease in 1u64..8, instances in 1u64..5) {
        let fleet = Fleet::new(instances, &[rule(limit, Span::Seconds(1), Method::Bucket { burst })], lease);
        let mut log: Vec<u64> = Vec::new();
        for (step, instance) in steps {
            fleet.pass(step);
            if fleet.ask(instance, 1).allowed {
                log.push(fleet.now());
                for (i, from) in log.iter().enumerate() {
                    let rate = (fleet.now() - from) * limit / SECOND + 1;
                    prop_assert!((log.len() - i) as u64 <= burst + rate + lease * instances);
                }
            }
        }
    }
}
