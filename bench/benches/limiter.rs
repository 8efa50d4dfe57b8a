//! What a limit costs where it is counted in the process: naming the caller and charging it.
//!
//! `cargo bench -p weir-bench --bench limiter`. "known" callers are in the table; "new" ones come for the first time, into a table that is full, as
//! in an attack by many addresses. "threads" is the time of one charge while as many others charge as there are cores.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use std::{
    hint::black_box,
    net::{IpAddr, Ipv6Addr},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Instant,
};
use weir_store::limits::{Asked, Clock, How, Key, Meters, Method, Rule, Span};

const CALLERS: u128 = 10_000;

fn address(n: u128) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from_bits(0x2001_0db8 << 96 | n << 64))
}

fn rules(method: Method) -> [Rule; 2] {
    [Rule { limit: 1 << 40, span: Span::Seconds(1), method }, Rule { limit: 1 << 50, span: Span::HOUR, method }]
}

fn methods() -> [(&'static str, Method); 3] {
    [("fixed-window", Method::Fixed), ("sliding-window", Method::Sliding), ("token-bucket", Method::Bucket { burst: 1 << 40 })]
}

fn charge(meters: &Meters, clock: &Clock, seed: Key, rules: &[Rule], caller: u128) -> bool {
    let asked = [Asked::new(meters.key((seed, "ip", address(caller))), rules, 1)];
    meters.charge(clock.at(Instant::now()), &asked, How::AllOrNone).allowed
}

fn known(c: &mut Criterion) {
    let clock = Clock::default();
    for (count, name) in [(1, "known caller, 1 rule"), (2, "known caller, 2 rules")] {
        let mut group = c.benchmark_group(name);
        for (algorithm, method) in methods() {
            let (meters, rules) = (Meters::default(), rules(method));
            let seed = meters.key("scope");
            let mut next = 0;
            group.bench_function(BenchmarkId::from_parameter(algorithm), |b| {
                b.iter(|| {
                    next = (next + 7919) % CALLERS;
                    assert!(charge(&meters, &clock, seed, &rules[..count], black_box(next)));
                });
            });
        }
        group.finish();
    }
}

fn new(c: &mut Criterion) {
    let clock = Clock::default();
    let mut group = c.benchmark_group("new caller, full table");
    for (algorithm, method) in methods() {
        let (meters, rules) = (Meters::default(), rules(method));
        let seed = meters.key("scope");
        let mut next = 0;
        while next < 1 << 19 {
            next += 1;
            charge(&meters, &clock, seed, &rules, next);
        }
        group.bench_function(BenchmarkId::from_parameter(algorithm), |b| {
            b.iter(|| {
                next += 1;
                assert!(charge(&meters, &clock, seed, &rules, black_box(next)));
            });
        });
    }
    group.finish();
}

fn threads(c: &mut Criterion) {
    let clock = Clock::default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut group = c.benchmark_group("threads");
    for (callers, name) in [(CALLERS, "many callers"), (1, "one caller")] {
        let (meters, rules) = (Meters::default(), rules(Method::Fixed));
        let (meters, clock, rules, stop) = (&meters, &clock, &rules, &AtomicBool::new(false));
        let seed = meters.key("scope");
        std::thread::scope(|scope| {
            for thread in 1..cores {
                scope.spawn(move || {
                    let mut next = thread as u128;
                    while !stop.load(Relaxed) {
                        next = (next + 7919) % callers;
                        charge(meters, clock, seed, rules, next);
                    }
                });
            }
            let mut next = 0;
            group.bench_function(name, |b| {
                b.iter(|| {
                    next = (next + 7919) % callers;
                    assert!(charge(meters, clock, seed, rules, black_box(next)));
                });
            });
            stop.store(true, Relaxed);
        });
    }
    group.finish();
}

criterion_group!(benches, known, new, threads);
criterion_main!(benches);
