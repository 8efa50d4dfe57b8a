//! So many fills of one rule at once.

mod support;

use async_trait::async_trait;
use http::HeaderMap;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use support::*;
use weir_cache::*;
use weir_store::Store;

const SEC: Duration = Duration::from_secs(1);

/// Passes everything on to an origin and counts how many wait for its answer at once.
struct Gauge {
    origin: Arc<Origin>,
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Gauge {
    fn new(origin: Arc<Origin>) -> Arc<Gauge> {
        Arc::new(Gauge { origin, now: AtomicUsize::new(0), most: AtomicUsize::new(0) })
    }
}

#[async_trait]
impl Fetch for Gauge {
    async fn fetch(&self, condition: HeaderMap, interim: Interim<'_>) -> Result<Fetched, FetchError> {
        self.most.fetch_max(self.now.fetch_add(1, SeqCst) + 1, SeqCst);
        let answer = self.origin.fetch(condition, interim).await;
        self.now.fetch_sub(1, SeqCst);
        answer
    }
}

fn page(number: usize, policy: &Policy) -> Plan {
    Plan { key: format!("html_cache:a.example/{number}"), ..plan(policy.clone()) }
}

async fn ask(machine: &Machine, plan: &Plan, gauge: &Arc<Gauge>) -> Got {
    read(machine.engine.serve(plan, &get(&[]), gauge.clone(), &mut ()).await).await
}

/// Asks for these pages at once, each twice.
async fn ask_all(machine: &Machine, pages: &[Plan], gauge: &Arc<Gauge>) -> Vec<Got> {
    futures_util::future::join_all(pages.iter().chain(pages).map(|page| ask(machine, page, gauge))).await
}

#[tokio::test(start_paused = true)]
async fn fills_wait_their_turn() {
    for (max_fills, most) in [(Some(2), 2), (Some(0), 1), (Some(usize::MAX), 8), (None, 8)] {
        let machine = Machine::new();
        let gauge = Gauge::new(Origin::always(Reply::page("x").slow(SEC)));
        let pages: Vec<_> = (0..8).map(|n| page(n, &Policy { max_fills, ..html() })).collect();
        for got in ask_all(&machine, &pages, &gauge).await {
            assert_eq!((got.verdict(), got.text()), (Verdict::Miss, "<html>x</html>"));
        }
        assert_eq!((gauge.most.load(SeqCst), gauge.origin.hits()), (most, 8), "{max_fills:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_waited_too_long_asks_by_himself_and_nothing_is_left_locked() {
    let store = Store::memory();
    let (machine, other) = (Machine::on(store.clone()), Machine::on(store));
    let gauge = Gauge::new(Origin::always(Reply::page("x").slow(3 * SEC)));
    let policy = Policy { max_fills: Some(1), max_wait: 2 * SEC, ..html() };
    let pages: Vec<_> = (0..3).map(|n| page(n, &policy)).collect();
    let (mut misses, mut passes) = (0, 0);
    for got in ask_all(&machine, &pages[..], &gauge).await {
        match got.verdict() {
            Verdict::Miss => misses += 1,
            Verdict::Bypass => {
                assert!(matches!(got.report.detail, Some("max-fills" | "lock-timeout")), "{got:?}");
                passes += 1;
            }
            _ => panic!("{got:?}"),
        }
    }
    assert_eq!(gauge.origin.hits(), 1);
    assert!(misses >= 1 && passes >= 4, "{misses} misses, {passes} passes");
    assert!(machine.engine.stats().passes["max-fills"] >= 2);
    // Another rule has places of its own, and so has another machine; and no mark keeps the page from being stored.
    let free = Policy { name: "/other".into(), ..policy.clone() };
    tokio::time::sleep(10 * SEC).await;
    assert_eq!(ask(&other, &pages[1], &gauge).await.verdict(), Verdict::Miss);
    let (one, two, more) = (page(7, &policy), page(8, &free), page(9, &policy));
    let (a, b, c) = tokio::join!(ask(&machine, &one, &gauge), ask(&machine, &two, &gauge), ask(&other, &more, &gauge));
    assert_eq!((a.verdict(), b.verdict(), c.verdict()), (Verdict::Miss, Verdict::Miss, Verdict::Miss));
}

#[tokio::test(start_paused = true)]
async fn what_is_stale_is_served_where_there_is_no_place() {
    let machine = Machine::new();
    let policy = Policy { max_fills: Some(1), max_wait: SEC, ..html() };
    let first = |control: &'static str| Gauge::new(Origin::always(Reply::page("old").with("cache-control", control)));
    let (swr, sie, neither) = (page(1, &policy), page(2, &policy), page(3, &policy));
    ask(&machine, &swr, &first("stale-while-revalidate=100")).await;
    ask(&machine, &sie, &first("stale-if-error=100")).await;
    ask(&machine, &neither, &first("public")).await;
    settle().await;
    machine.advance(61);
    // The only place is taken for long.
    let slow = Gauge::new(Origin::always(Reply::page("x").slow(60 * SEC)));
    let busy = tokio::spawn({
        let (engine, plan, slow) = (machine.engine.clone(), page(0, &policy), slow.clone());
        async move { read(engine.serve(&plan, &get(&[]), slow, &mut ()).await).await }
    });
    settle().await;
    for (plan, expected) in [
        (&swr, (Verdict::Stale, Some("stale-while-revalidate"))),
        (&sie, (Verdict::Stale, Some("stale-if-error"))),
        (&neither, (Verdict::Bypass, Some("max-fills"))),
    ] {
        let got = ask(&machine, plan, &slow).await;
        assert_eq!((got.verdict(), got.report.detail), expected, "{}", plan.key);
    }
    assert_eq!(slow.origin.hits(), 1);
    assert_eq!(busy.await.expect("client").text(), "<html>x</html>");
}
