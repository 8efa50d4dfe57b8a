//! Purges between instances with connections of their own to a real Redis.

mod support;

use async_trait::async_trait;
use http::HeaderMap;
use std::{sync::Arc, time::Duration};
use support::*;
use tokio::sync::Semaphore;
use weir_cache::{clock::Clock, *};
use weir_store::{Store, StoreOptions, testing::RedisServer};

/// Polls until `probe` holds. Fails after 20 s, which no working Redis comes near to.
async fn eventually<F: Future<Output = bool>>(what: &str, mut probe: impl FnMut() -> F) {
    for _ in 0..2000 {
        if probe().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never came to pass: {what}");
}

/// Machines that hear each other.
async fn machines(count: usize, server: &RedisServer) -> Vec<Machine> {
    // The tests are about what calls do, not how soon: on a loaded machine 50 ms can pass.
    let options = StoreOptions { deadline: Duration::from_secs(10), connect_timeout: Duration::from_secs(10), ..StoreOptions::default() };
    let clock = Clock::manual(T0);
    let mut machines = Vec::new();
    for _ in 0..count {
        let store = Store::open(&server.url(), &options).await.expect("store");
        let machine = Machine::with(store, clock.clone());
        machine.engine.start();
        machines.push(machine);
    }
    let (page, origin) = (Plan { key: "html_cache:probe.example/".into(), ..plan(html()) }, Origin::always(Reply::page("probe")));
    for machine in &machines {
        eventually("a purge by the first is heard", || async {
            machine.ask(&page, &get(&[]), &origin).await;
            machines[0].engine.purge(&Purge::Host { host: "probe.example".into() }, false).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            machine.engine.peek("v1", &page.key).is_none()
        })
        .await;
    }
    machines
}

/// Asks until the page is stored: a gap in the messages at the start may keep a first answer out.
async fn stored(machine: &Machine, page: &Plan, origin: &Arc<Origin>) {
    eventually("the page is in memory", || async {
        machine.ask(page, &get(&[]), origin).await;
        machine.engine.peek("v1", &page.key).is_some()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_tag_to_all_instances() {
    let server = RedisServer::start();
    let machines = machines(3, &server).await;
    let pages: Vec<Plan> = (0..40).map(|n| Plan { key: format!("html_cache:shop.example/{n}"), ..plan(html()) }).collect();
    let origins: Vec<_> = (0..40)
        .map(|page| Origin::new(move |n, _| Reply::page(&n.to_string()).with("surrogate-key", if page % 2 == 0 { "even all" } else { "odd all" })))
        .collect();
    for machine in &machines {
        for (page, origin) in pages.iter().zip(&origins) {
            stored(machine, page, origin).await;
        }
    }
    let first: Vec<usize> = origins.iter().map(|origin| origin.hits()).collect();
    let report = machines[2].engine.purge(&Purge::Tag { tag: "even".into() }, false).await;
    assert_eq!((report.entries, report.in_memory, report.store_reached, report.others_told), (20, 20, true, true));
    assert_eq!(report.pages.len(), 20);
    eventually("all have forgotten", || async {
        machines.iter().all(|machine| pages.iter().step_by(2).all(|page| machine.engine.peek("v1", &page.key).is_none()))
    })
    .await;
    for machine in &machines {
        for (number, (page, origin)) in pages.iter().zip(&origins).enumerate() {
            machine.ask(page, &get(&[]), origin).await;
            assert_eq!(origin.hits(), first[number] + usize::from(number % 2 == 0), "page {number}: one fetch for all, if it was meant");
        }
    }
    // By prefix with host, and all; asked of an instance that has nothing in memory.
    let fourth = machines_more(&server).await;
    let one = Purge::Prefix { host: Some("shop.example".into()), path: "/1".into() };
    let report = fourth.engine.purge(&one, false).await;
    assert_eq!((report.entries, report.in_memory), (11, 0));
    assert_eq!(fourth.engine.purge(&one, false).await.entries, 0);
    assert_eq!(fourth.engine.purge(&Purge::Host { host: "shop.example".into() }, true).await.entries, 29);
    assert_eq!(fourth.engine.purge(&Purge::All, false).await.entries, 29);
    assert_eq!(fourth.engine.purge(&Purge::All, false).await.entries, 0);
    eventually("memory is empty everywhere", || async { machines.iter().all(|machine| machine.engine.stats().memory_entries == 0) }).await;
}

async fn machines_more(server: &RedisServer) -> Machine {
    let options = StoreOptions { deadline: Duration::from_secs(10), ..StoreOptions::default() };
    Machine::with(Store::open(&server.url(), &options).await.expect("store"), Clock::manual(T0))
}

struct Held {
    origin: Arc<Origin>,
    free: Semaphore,
}

#[async_trait]
impl Fetch for Held {
    async fn fetch(&self, condition: HeaderMap, interim: Interim<'_>) -> Result<Fetched, FetchError> {
        let _free = self.free.acquire().await.expect("never closed");
        self.origin.fetch(condition, interim).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn soft_is_stale_everywhere_and_refreshed_once() {
    let server = RedisServer::start();
    let machines = machines(2, &server).await;
    let page = plan(html());
    let origin = Origin::new(|n, _| Reply::page(&n.to_string()).with("cache-control", "stale-while-revalidate=100"));
    // Answers only when it is let.
    let held = Arc::new(Held { origin: origin.clone(), free: Semaphore::new(0) });
    for machine in &machines {
        stored(machine, &page, &origin).await;
    }
    machines[0].advance(1); // they share the clock
    let before = origin.hits();
    assert_eq!(machines[0].engine.purge(&Purge::Tag { tag: "catalogue".into() }, true).await.entries, 1);
    eventually("the other has marked it", || async { machines[1].engine.peek("v1", &page.key).is_none_or(|entry| !entry.is_fresh(T0 + 1)) }).await;
    let late = machines_more(&server).await;
    late.advance(1);
    for machine in [&machines[1], &machines[0], &late] {
        let asked = async { read(machine.engine.serve(&page, &get(&[]), held.clone(), &mut ()).await).await };
        let got = tokio::time::timeout(Duration::from_secs(20), asked).await.expect("an answer without the origin");
        assert_eq!((got.verdict(), got.report.detail), (Verdict::Stale, Some("stale-while-revalidate")));
    }
    held.free.add_permits(100);
    for machine in &machines {
        eventually("the new page is there", || async { read(machine.engine.serve(&page, &get(&[]), held.clone(), &mut ()).await).await.verdict() == Verdict::Hit }).await;
    }
    assert_eq!(origin.hits(), before + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fill_that_began_before_the_purge_is_not_kept_anywhere() {
    let server = RedisServer::start();
    let machines = machines(2, &server).await;
    let page = plan(html());
    let origin = Origin::new(|n, _| Reply::page(&n.to_string()).with("cache-tag", "raced").slow(Duration::from_millis(if n == 0 { 500 } else { 0 })));
    let early = tokio::spawn(machines[0].ask(&page, &get(&[]), &origin));
    eventually("the origin is asked", || async { origin.hits() == 1 }).await;
    machines[1].engine.purge(&Purge::Tag { tag: "raced".into() }, false).await;
    assert_eq!(early.await.expect("client").text(), "<html>0</html>");
    for machine in [&machines[0], &machines[1], &machines_more(&server).await] {
        assert_ne!(machine.ask(&page, &get(&[]), &origin).await.text(), "<html>0</html>");
    }
}
