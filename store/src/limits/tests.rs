//! The arithmetic and the table against the plainest models there are, with a clock that the test sets.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap};

const START: u64 = 1_700_000_000_000_000;
const SECOND: u64 = span::SECOND;

fn rule(limit: u64, span: Span, method: Method) -> Rule {
    Rule { limit, span, method }
}

fn one(meters: &Meters, now: u64, who: &str, rules: &[Rule], cost: u64) -> Outcome {
    meters.charge(now, &[Asked { key: meters.key(who), rules, cost, most: cost, back: Back::default() }], How::AllOrNone)
}

fn left(outcome: &Outcome) -> Vec<u64> {
    outcome.readings.iter().map(|r| r.left).collect()
}

#[test]
fn a_refused_charge_counts_nowhere() {
    let meters = Meters::default();
    let rules = [rule(1, Span::Seconds(1), Method::Fixed), rule(3, Span::MINUTE, Method::Fixed)];
    let start = START - START % (60 * SECOND);
    for (second, allowed, expected) in [(0, true, [0, 2]), (0, false, [0, 2]), (1, true, [0, 1]), (2, true, [0, 0]), (3, false, [1, 0]), (60, true, [0, 2])] {
        let outcome = one(&meters, start + second * SECOND, "a", &rules, 1);
        assert_eq!((outcome.allowed, left(&outcome)), (allowed, expected.to_vec()), "second {second}");
    }
}

#[test]
fn waits_are_told() {
    let meters = Meters::default();
    let start = START - START % (3600 * SECOND);
    let fixed = [rule(1, Span::MINUTE, Method::Fixed)];
    one(&meters, start + 5 * SECOND, "f", &fixed, 1);
    let refused = one(&meters, start + 20 * SECOND, "f", &fixed, 1);
    assert_eq!((refused.readings[0].wait, refused.readings[0].reset), (40 * SECOND, 40 * SECOND));
    // 16 slots of 4 s; the second slot leaves when the eighteenth after it begins.
    let sliding = [rule(2, Span::Seconds(64), Method::Sliding)];
    let start = START - START % (64 * SECOND);
    one(&meters, start + 5 * SECOND, "s", &sliding, 1);
    one(&meters, start + 40 * SECOND, "s", &sliding, 1);
    let refused = one(&meters, start + 41 * SECOND, "s", &sliding, 1);
    assert_eq!((refused.allowed, refused.readings[0].wait), (false, (72 - 41) * SECOND));
    assert_eq!(one(&meters, start + 41 * SECOND, "s", &sliding, 2).readings[0].wait, (108 - 41) * SECOND);
    let bucket = [rule(2, Span::Seconds(1), Method::Bucket { burst: 3 })];
    assert_eq!(left(&one(&meters, start, "b", &bucket, 3)), [0]);
    let refused = one(&meters, start + 100_000, "b", &bucket, 1);
    assert_eq!((refused.readings[0].wait, refused.readings[0].reset), (400_000, 400_000));
    assert_eq!(one(&meters, start + 100_000, "b", &bucket, 4).readings[0].wait, u64::MAX);
}

#[test]
fn a_clock_that_is_set_back_opens_nothing() {
    for method in [Method::Fixed, Method::Sliding, Method::Bucket { burst: 1 }] {
        let meters = Meters::default();
        let rules = [rule(1, Span::Seconds(1), method)];
        assert!(one(&meters, START, "a", &rules, 1).allowed);
        assert!(!one(&meters, START - 30 * SECOND, "a", &rules, 1).allowed, "{method:?}");
        assert!(one(&meters, START - 2 * FAR, "a", &rules, 1).allowed || method != Method::Fixed, "a clock that was wrong for long is not waited for");
        assert!(one(&meters, START + 2 * FAR, "a", &rules, 1).allowed, "{method:?}");
    }
}

#[test]
fn a_changed_limit_goes_on_with_the_count() {
    let meters = Meters::default();
    let (minute, hour) = (|limit| rule(limit, Span::MINUTE, Method::Sliding), rule(100, Span::HOUR, Method::Fixed));
    for _ in 0..5 {
        assert!(one(&meters, START, "a", &[minute(5)], 1).allowed);
    }
    assert!(!one(&meters, START, "a", &[hour, minute(5)], 1).allowed);
    assert_eq!(left(&one(&meters, START, "a", &[hour, minute(7)], 1)), [99, 1]);
    assert!(one(&meters, START, "a", &[rule(5, Span::MINUTE, Method::Fixed)], 1).allowed, "another method counts anew");
}

#[test]
fn what_is_only_asked_is_not_kept() {
    let meters = Meters::default();
    let rules = [rule(5, Span::HOUR, Method::Fixed)];
    assert_eq!(left(&one(&meters, START, "a", &rules, 0)), [5]);
    assert_eq!(meters.len(), 0);
    let asked = [Asked::new(meters.key("a"), &rules, 9)];
    assert_eq!(left(&meters.charge(START, &asked, How::Anyway)), [0]);
    let outcome = one(&meters, START, "a", &rules, 0);
    assert_eq!((outcome.allowed, left(&outcome)), (true, vec![0]), "nothing always fits");
}

#[test]
fn as_much_as_there_is_room_for() {
    let meters = Meters::default();
    let rules = [rule(10, Span::HOUR, Method::Fixed)];
    let up_to = |cost, most| meters.charge(START, &[Asked { key: meters.key("a"), rules: &rules, cost, most, back: Back::default() }], How::UpTo);
    for (cost, most, granted) in [(1, 4, 4), (1, 0, 1), (1, 100, 5), (1, 4, 0)] {
        let outcome = up_to(cost, most);
        assert_eq!((outcome.readings[0].granted, outcome.allowed), (granted, granted > 0));
    }
    let meters = Meters::default();
    let asked = [Asked::new(meters.key("a"), &rules, 11)];
    assert_eq!(meters.charge(START, &asked, How::UpTo).readings[0].granted, 0, "a part of the cost helps nobody");
}

#[test]
fn what_was_not_spent_comes_back_once() {
    for method in [Method::Fixed, Method::Sliding, Method::Bucket { burst: 10 }] {
        let meters = Meters::default();
        let rules = [rule(10, Span::HOUR, method)];
        let up_to = |now: u64, most: u64, back: Back| {
            let outcome = meters.charge(now, &[Asked { key: meters.key("a"), rules: &rules, cost: 1, most, back }], How::UpTo);
            outcome.readings[0]
        };
        let start = START - START % (3600 * SECOND);
        let first = up_to(start, 8, Back::default());
        assert_eq!(first.left, 2, "{method:?}");
        assert_eq!(up_to(start, 1, Back { at: first.at, amount: 5 }).left, 6, "{method:?}");
        assert_eq!(up_to(start, 1, Back { at: first.at + 1, amount: 5 }).left, 5, "{method:?}: another grant's");
        assert_eq!(up_to(start, 1, Back { at: first.at, amount: 500 }).left, 9, "{method:?}: no more than there is");
        up_to(start + 2 * 3600 * SECOND, 4, Back { at: first.at, amount: 5 });
        assert_eq!(up_to(start + 2 * 3600 * SECOND, 1, Back { at: first.at, amount: 5 }).left, 5, "{method:?}: over");
    }
}

#[test]
fn two_callers_at_once_are_charged_both_or_neither() {
    let meters = Meters::default();
    let (address, user) = ([rule(3, Span::HOUR, Method::Sliding)], [rule(2, Span::HOUR, Method::Bucket { burst: 2 })]);
    let both = |a: &str, u: &str| {
        let asked = [Asked::new(meters.key(("ip", a)), &address, 1), Asked::new(meters.key(("user", u)), &user, 1)];
        meters.charge(START, &asked, How::AllOrNone)
    };
    assert_eq!(left(&both("x", "kim")), [2, 1]);
    assert_eq!(left(&both("x", "kim")), [1, 0]);
    let refused = both("x", "kim");
    assert_eq!((refused.allowed, left(&refused)), (false, vec![1, 0]), "the address was not charged");
    assert_eq!(left(&both("x", "lee")), [0, 1]);
    assert!(!both("x", "ann").allowed);
    assert_eq!(left(&both("y", "ann")), [2, 1]);
}

#[test]
fn memory_is_bounded_and_who_is_at_a_limit_stays_there() {
    let meters = Meters::bounded(64 * 32);
    // One request of one: at the limit. The others made one of a thousand, or nine hundred of a thousand.
    let (once, often) = ([rule(1, Span::Year, Method::Fixed)], [rule(1000, Span::HOUR, Method::Sliding)]);
    assert!(one(&meters, START, "once", &once, 1).allowed);
    assert!(one(&meters, START, "busy", &often, 900).allowed);
    for i in 0..50_000 {
        one(&meters, START, &i.to_string(), &often, 1);
    }
    assert!(meters.len() <= 64 * 32, "{}", meters.len());
    assert!(!one(&meters, START, "once", &once, 1).allowed);
    assert_eq!(left(&one(&meters, START, "busy", &often, 0)), [100]);
}

#[test]
fn what_is_over_is_swept() {
    for method in [Method::Fixed, Method::Sliding, Method::Bucket { burst: 5 }] {
        let meters = Meters::bounded(1 << 20);
        let rules = [rule(5, Span::Seconds(1), method)];
        for second in 0..200u64 {
            for i in 0..200 {
                one(&meters, START + second * SECOND, &format!("{second}.{i}"), &rules, 1);
            }
        }
        assert!(meters.len() < 2000, "{method:?}: {}", meters.len());
    }
}

#[test]
fn many_threads_get_exactly_the_limit() {
    for method in [Method::Fixed, Method::Sliding, Method::Bucket { burst: 700 }] {
        let meters = Meters::default();
        let (loose, tight) = ([rule(5000, Span::HOUR, method)], [rule(700, Span::Year, method)]);
        let ask = || {
            let asked = [Asked::new(meters.key("a"), &loose, 1), Asked::new(meters.key("b"), &tight, 1)];
            meters.charge(START, &asked, How::AllOrNone).allowed
        };
        let admitted: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..8).map(|_| scope.spawn(|| (0..1000).filter(|_| ask()).count())).collect();
            workers.into_iter().map(|w| w.join().unwrap()).sum()
        });
        assert_eq!(admitted, 700, "{method:?}");
    }
}

/// Steps of a simulated clock with who asks, and for how much.
fn calls() -> impl Strategy<Value = Vec<(u64, u8, u64)>> {
    let step = prop_oneof![Just(0), 1u64..50_000, 1u64..3 * SECOND, Just(SECOND / 16), Just(SECOND), 1u64..200 * SECOND];
    prop::collection::vec((step, 0u8..3, 0u64..4), 1..150)
}

fn spans() -> impl Strategy<Value = Span> {
    prop_oneof![Just(Span::Seconds(1)), Just(Span::Seconds(7)), Just(Span::MINUTE), Just(Span::HOUR), Just(Span::DAY), Just(Span::Month), Just(Span::Year)]
}

proptest! {
    /// Fixed windows: a map from window to count.
    #[test]
    fn fixed_windows_are_as_the_plain_model(calls in calls(), second in 1u64..6, minute in 4u64..12) {
        let meters = Meters::default();
        let rules = [rule(second, Span::Seconds(1), Method::Fixed), rule(minute, Span::MINUTE, Method::Fixed)];
        let mut model: HashMap<(u8, u64, u64), u64> = HashMap::new();
        let mut now = START;
        for (step, who, cost) in calls {
            now += step;
            let keys = [(who, 1, now / SECOND), (who, 60, now / SECOND / 60)];
            let free = cost == 0 || rules.iter().zip(&keys).all(|(rule, key)| model.get(key).copied().unwrap_or(0) + cost <= rule.limit);
            if free {
                keys.iter().for_each(|key| *model.entry(*key).or_default() += cost);
            }
            let expected: Vec<u64> = rules.iter().zip(&keys).map(|(rule, key)| rule.limit - model.get(key).copied().unwrap_or(0)).collect();
            let outcome = one(&meters, now, &who.to_string(), &rules, cost);
            prop_assert_eq!((outcome.allowed, left(&outcome)), (free, expected));
        }
    }

    /// Sliding windows: a log of all that was admitted. Never over the limit in any stretch of the length, and refused only when the
    /// stretch that is one slot longer has no room.
    #[test]
    fn sliding_windows_hold_everywhere(calls in calls(), limit in 1u64..9, span in spans()) {
        let meters = Meters::default();
        let rules = [rule(limit, span, Method::Sliding)];
        let (length, slot) = (span.micros(), rules[0].slot());
        let mut log: BTreeMap<u8, Vec<(u64, u64)>> = BTreeMap::new();
        let mut now = START;
        for (step, who, cost) in calls {
            now += step * span.seconds().div_ceil(60);
            let log = log.entry(who).or_default();
            let since = |from: u64| log.iter().filter(|(at, _)| *at > from).map(|(_, cost)| cost).sum::<u64>();
            let (within, longer) = (since(now - length), since(now - length - slot));
            let outcome = one(&meters, now, &who.to_string(), &rules, cost);
            if outcome.allowed {
                prop_assert!(cost == 0 || within + cost <= limit, "{} and {} of {}", within, cost, limit);
                log.push((now, cost));
            } else {
                prop_assert!(longer + cost > limit, "{} and {} of {}", longer, cost, limit);
            }
        }
    }

    /// Token buckets: a level that drains, in fractions of a unit that are exact.
    #[test]
    fn buckets_drain_as_the_plain_model(calls in calls(), limit in 1u64..2000, burst in 1u64..12, span in spans()) {
        let meters = Meters::default();
        let rules = [rule(limit, span, Method::Bucket { burst })];
        let unit = i128::from(span.micros());
        let mut levels: HashMap<u8, (u64, i128)> = HashMap::new();
        let mut now = START;
        for (step, who, cost) in calls {
            now += step;
            let (at, level) = levels.entry(who).or_insert((now, 0));
            *level = (*level - i128::from(now - *at) * i128::from(limit)).max(0);
            *at = now;
            let free = cost == 0 || *level + i128::from(cost) * unit <= i128::from(burst) * unit;
            if free {
                *level += i128::from(cost) * unit;
            }
            let expected = (i128::from(burst) * unit - *level).max(0) / unit;
            let outcome = one(&meters, now, &who.to_string(), &rules, cost);
            prop_assert_eq!((outcome.allowed, i128::from(outcome.readings[0].left)), (free, expected));
        }
    }

    /// Who waits as long as told gets through, and not a microsecond sooner.
    #[test]
    fn waits_are_neither_too_long_nor_too_short(calls in calls(), limit in 1u64..9, span in spans(), which in 0..3) {
        let method = [Method::Fixed, Method::Sliding, Method::Bucket { burst: limit + 1 }][which as usize];
        let rules = [rule(limit, span, method)];
        let mut cell = Cell::default();
        let mut now = START;
        for (step, _, cost) in calls {
            now += step;
            let mut ask = |now: u64| {
                let then = cell.advance(&rules[0], now);
                (cell.room(&rules[0], then) >= cost, cell.wait(&rules[0], then, cost), cell.reset(&rules[0], then))
            };
            let (fits, wait, _) = ask(now);
            prop_assert_eq!(fits, wait == 0);
            if fits {
                cell.charge(&rules[0], cost);
            } else if wait == u64::MAX {
                prop_assert!(cost > rules[0].most());
            } else {
                prop_assert!(!ask(now + wait - 1).0, "{} µs are too long", wait);
                now += wait;
                prop_assert!(ask(now).0, "{} µs are too short", wait);
            }
        }
    }

    /// Several rules of any kind together: charged to all or to none, and the readings are those of the rules alone.
    #[test]
    fn rules_hold_together(calls in calls(), limits in prop::collection::vec((1u64..9, 0usize..3, spans()), 1..5)) {
        let method = |which: usize, limit: u64| [Method::Fixed, Method::Sliding, Method::Bucket { burst: limit }][which];
        let rules: Vec<Rule> = limits.iter().map(|(limit, which, span)| rule(*limit, *span, method(*which, *limit))).collect();
        let meters = Meters::default();
        let mut cells: HashMap<(u8, usize), Cell> = HashMap::new();
        let mut now = START;
        for (step, who, cost) in calls {
            now += step;
            // Each rule as a caller of its own, so that several shards take part.
            let asked: Vec<_> = rules.iter().enumerate().map(|(i, rule)| Asked::new(meters.key((who, i)), std::slice::from_ref(rule), cost)).collect();
            let outcome = meters.charge(now, &asked, How::AllOrNone);
            let mut free = true;
            for (i, rule) in rules.iter().enumerate() {
                let cell = cells.entry((who, i)).or_default();
                let then = cell.advance(rule, now);
                free &= cost <= cell.room(rule, then);
            }
            prop_assert_eq!(outcome.allowed, free || cost == 0);
            for (i, rule) in rules.iter().enumerate() {
                let cell = cells.entry((who, i)).or_default();
                let then = cell.advance(rule, now);
                if free {
                    cell.charge(rule, cost);
                }
                prop_assert_eq!(outcome.readings[i].left, cell.room(rule, then));
            }
        }
    }
}
