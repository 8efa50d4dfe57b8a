//! Limits and numbers.

use super::*;

fn rule(limit: u64, span: Span, method: Method) -> Rule {
    Rule { limit, span, method }
}

fn charge(key: &str, rule: Rule, cost: u64) -> Charge {
    Charge::new(key.into(), rule, cost)
}

fn left(charged: &Charged) -> Vec<u64> {
    charged.readings.iter().map(|r| r.left).collect()
}

/// Every method, over a time that does not end during the test.
fn methods(burst: u64) -> [(&'static str, Method); 3] {
    [("fixed", Method::Fixed), ("sliding", Method::Sliding), ("bucket", Method::Bucket { burst })]
}

pub(super) async fn counters_charge_all_or_none(a: Store, b: Store) {
    for (name, method) in methods(2) {
        // One tag for all keys of a call: on a Cluster they must share a slot.
        let both = |month: u64, year: u64| {
            let bucket = |limit: u64| if let Method::Bucket { .. } = method { Method::Bucket { burst: limit } } else { method };
            [charge(&format!("{{{name}}}m"), rule(2, Span::Month, bucket(2)), month), charge(&format!("{{{name}}}y"), rule(5, Span::Year, bucket(5)), year)]
        };
        let charged = a.counters.charge(&both(1, 3), How::AllOrNone).await.unwrap();
        assert_eq!((charged.allowed, left(&charged)), (true, vec![1, 2]), "{name}");
        let charged = b.counters.charge(&both(1, 3), How::AllOrNone).await.unwrap();
        assert_eq!((charged.allowed, left(&charged)), (false, vec![1, 2]), "{name}: the second would pass its limit: neither is charged");
        assert_eq!((charged.readings[0].wait, charged.readings[1].wait > 0), (0, true), "{name}");
        assert_eq!(left(&b.counters.charge(&both(1, 2), How::AllOrNone).await.unwrap()), [0, 0], "{name}");
        let asked = a.counters.charge(&both(0, 0), How::AllOrNone).await.unwrap();
        assert_eq!((asked.allowed, left(&asked)), (true, vec![0, 0]), "{name}: a cost of nothing only asks");
        assert!(!a.counters.charge(&both(0, 1), How::AllOrNone).await.unwrap().allowed, "{name}");
        let never = a.counters.charge(&both(9, 0), How::AllOrNone).await.unwrap();
        assert_eq!((never.allowed, never.readings[0].wait), (false, u64::MAX), "{name}");
    }
    assert_eq!(a.counters.charge(&[], How::AllOrNone).await.unwrap(), Charged { allowed: true, readings: vec![] });
}

pub(super) async fn counters_charge_anyway_or_what_there_is(a: Store, b: Store) {
    for (name, method) in methods(10) {
        let key = format!("any-{name}");
        let by = |cost: u64| [charge(&key, rule(10, Span::Year, method), cost)];
        assert_eq!(left(&a.counters.charge(&by(7), How::Anyway).await.unwrap()), [3], "{name}");
        let charged = b.counters.charge(&by(7), How::Anyway).await.unwrap();
        assert_eq!((charged.allowed, left(&charged)), (true, vec![0]), "{name}");
        assert!(!b.counters.charge(&by(1), How::AllOrNone).await.unwrap().allowed, "{name}");
        let key = format!("some-{name}");
        for (cost, most, granted) in [(1, 4, 4), (1, 0, 1), (6, 20, 0), (1, 100, 5), (1, 4, 0)] {
            let asked = [Charge { most, ..charge(&key, rule(10, Span::Year, method), cost) }];
            let charged = a.counters.charge(&asked, How::UpTo).await.unwrap();
            assert_eq!((charged.readings[0].granted, charged.allowed), (granted, granted > 0), "{name} {cost} {most}");
        }
        // What was granted and not spent comes back.
        let key = format!("back-{name}");
        let up_to = |most: u64, back: Back| [Charge { most, back, ..charge(&key, rule(10, Span::Year, method), 1) }];
        let first = a.counters.charge(&up_to(8, Back::default()), How::UpTo).await.unwrap().readings[0];
        let then = b.counters.charge(&up_to(1, Back { at: first.at, amount: 5 }), How::UpTo).await.unwrap().readings[0];
        assert_eq!((first.left, then.left), (2, 6), "{name}");
        // Nothing overflows.
        let huge = [charge(&format!("huge-{name}"), rule(u64::MAX, Span::Year, method), u64::MAX)];
        for _ in 0..2 {
            assert!(a.counters.charge(&huge, How::Anyway).await.unwrap().readings[0].granted <= COUNTER_MAX, "{name}");
        }
    }
}

pub(super) async fn counters_give_back_with_time(a: Store, b: Store) {
    for (name, method) in methods(3) {
        let by = [charge(&format!("brief-{name}"), rule(3, Span::Seconds(1), method), 3)];
        // Until it was full once: a window may just have ended.
        eventually("it is full", || async { (!a.counters.charge(&by, How::AllOrNone).await.unwrap().allowed).then_some(()) }).await;
        eventually("there is room again", || async { b.counters.charge(&by, How::AllOrNone).await.unwrap().allowed.then_some(()) }).await;
    }
}

pub(super) async fn counters_are_exact_under_contention(a: Store, b: Store) {
    for (name, method) in methods(300) {
        let mut tasks = JoinSet::new();
        for n in 0..16 {
            let store = if n % 2 == 0 { a.clone() } else { b.clone() };
            tasks.spawn(async move {
                let mut admitted = 0;
                for _ in 0..50 {
                    let by = [charge(&format!("{{{name}}}limited"), rule(300, Span::Year, method), 1), charge(&format!("{{{name}}}all"), rule(1000, Span::Year, Method::Sliding), 1)];
                    admitted += usize::from(store.counters.charge(&by, How::AllOrNone).await.unwrap().allowed);
                }
                admitted
            });
        }
        assert_eq!(tasks.join_all().await.into_iter().sum::<usize>(), 300, "{name}");
        let all = [charge(&format!("{{{name}}}all"), rule(1000, Span::Year, Method::Sliding), 0)];
        assert_eq!(left(&b.counters.charge(&all, How::AllOrNone).await.unwrap()), [700], "{name}");
    }
}

pub(super) async fn numbers_expire_from_their_first_use(a: Store, b: Store) {
    assert_eq!(a.counters.add("sum", 5, LONG).await.unwrap(), 5);
    assert_eq!(b.counters.add("sum", 4, SHORT).await.unwrap(), 9);
    assert_eq!(a.counters.add("brief", 1, SHORT).await.unwrap(), 1);
    // Later uses do not prolong it: this one ends although it is used all the time.
    eventually("it ends", || async { (b.counters.add("brief", 1, LONG).await.unwrap() == 1).then_some(()) }).await;
    assert_eq!(a.counters.peek("sum").await.unwrap(), 9);
    assert_eq!(a.counters.peek("none").await.unwrap(), 0);
    // Nothing overflows.
    assert_eq!(b.counters.add("huge", u64::MAX, LONG).await.unwrap(), COUNTER_MAX);
    assert_eq!(b.counters.add("huge", u64::MAX, LONG).await.unwrap(), COUNTER_MAX);
    let mut tasks = JoinSet::new();
    for n in 0..16 {
        let store = if n % 2 == 0 { a.clone() } else { b.clone() };
        tasks.spawn(async move {
            for _ in 0..50 {
                store.counters.add("added", 2, LONG).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(b.counters.peek("added").await.unwrap(), 16 * 50 * 2);
}
