//! Several processes over one store, a store that fails, and messages between instances.

mod support;

use bytes::Bytes;
use std::{sync::{Arc, atomic::Ordering::SeqCst}, time::Duration};
use support::*;
use tokio::time::Instant;
use weir_cache::{clock::Clock, memory::StoredKey, *};
use weir_store::*;

const SEC: Duration = Duration::from_secs(1);

/// Machines that share a store and a clock.
fn cluster(count: usize, store: &Store, listen: bool) -> Vec<Machine> {
    let clock = Clock::manual(T0);
    (0..count)
        .map(|_| {
            let machine = Machine::with(store.clone(), clock.clone());
            if listen {
                machine.engine.start();
            }
            machine
        })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn three_machines_fetch_a_cold_page_once() {
    // With messages, and (if none arrive) by polling.
    for listen in [true, false] {
        let machines = cluster(3, &Store::memory(), listen);
        settle().await;
        let plan = plan(html());
        let origin = Origin::always(Reply::page("shared").slow(SEC / 2));
        let clients: Vec<_> = (0..300).map(|n| tokio::spawn(machines[n % 3].ask(&plan, &get(&[]), &origin))).collect();
        for client in clients {
            let got = client.await.expect("client");
            assert_eq!((got.verdict(), got.text()), (Verdict::Miss, "<html>shared</html>"));
        }
        assert_eq!(origin.hits(), 1, "listening: {listen}");
        let waits: u64 = machines.iter().map(|machine| machine.engine.stats().lock_waits).sum();
        assert_eq!(waits, 299, "all but the first waited");
        for machine in &machines {
            assert_eq!(machine.ask(&plan, &get(&[]), &origin).await.verdict(), Verdict::Hit);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_wakes_those_who_wait_before_the_next_poll() {
    let store = Store::memory();
    let machines = cluster(2, &store, true);
    settle().await;
    let plan = plan(html());
    // Polls by then are 250 ms apart: at 25, 75, 175, 375, 625, 875, 1125 ms…
    let origin = Origin::always(Reply::page("x").slow(Duration::from_millis(900)));
    let first = tokio::spawn(machines[0].ask(&plan, &get(&[]), &origin));
    settle().await;
    let begun = Instant::now();
    let got = machines[1].ask(&plan, &get(&[]), &origin).await;
    assert_eq!((got.text(), got.report.collapsed), ("<html>x</html>", true));
    assert!(begun.elapsed() < Duration::from_millis(1000), "in paused time: {:?}", begun.elapsed());
    first.await.expect("client");
}

#[tokio::test(start_paused = true)]
async fn when_the_holder_dies_another_takes_over_within_the_lease() {
    let store = Store::memory();
    let plan = plan(Policy { lease: 2 * SEC, ..html() });
    let origin = Origin::always(Reply::page("taken over"));
    // A process that took the lock and was killed: it neither renews nor releases.
    let key = StoredKey::primary(&plan.epoch, &plan.key).store_key("fill");
    store.locks.acquire(&key, 2 * SEC).await.expect("store").expect("free");
    let machines = cluster(2, &store, true);
    let begun = Instant::now();
    let (a, b) = tokio::join!(machines[0].ask(&plan, &get(&[]), &origin), machines[1].ask(&plan, &get(&[]), &origin));
    assert_eq!((a.text(), b.text(), origin.hits()), ("<html>taken over</html>", "<html>taken over</html>", 1));
    assert!(begun.elapsed() >= 2 * SEC && begun.elapsed() < 3 * SEC, "in paused time: {:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_slow_fill_keeps_its_lease_by_renewing_it() {
    let machines = cluster(2, &Store::memory(), true);
    // What was fetched before they hear of purges is not kept.
    settle().await;
    let plan = plan(Policy { lease: SEC, max_wait: 60 * SEC, ..html() });
    let origin = Origin::always(Reply::page("slow").slow(20 * SEC));
    let (a, b) = tokio::join!(machines[0].ask(&plan, &get(&[]), &origin), machines[1].ask(&plan, &get(&[]), &origin));
    assert_eq!((a.text(), b.text(), origin.hits()), ("<html>slow</html>", "<html>slow</html>", 1));
}

#[tokio::test(start_paused = true)]
async fn after_the_longest_wait_a_machine_asks_by_itself() {
    let machines = cluster(2, &Store::memory(), true);
    let plan = plan(Policy { max_wait: 2 * SEC, ..html() });
    let origin = Origin::new(|n, _| Reply::page("x").slow(if n == 0 { 50 * SEC } else { SEC }));
    let first = tokio::spawn(machines[0].ask(&plan, &get(&[]), &origin));
    settle().await;
    let got = machines[1].ask(&plan, &get(&[]), &origin).await;
    assert_eq!((got.text(), got.report.detail, origin.hits()), ("<html>x</html>", Some("lock-timeout"), 2));
    assert_eq!(got.report.waited, 2 * SEC);
    // In the first machine, those who came later have waited long enough too; they may go on.
    let late = machines[0].ask(&plan, &get(&[]), &origin).await;
    assert!(late.verdict() == Verdict::Bypass && late.report.detail == Some("lock-timeout"), "{late:?}");
    first.abort();
}

#[tokio::test(start_paused = true)]
async fn an_uncacheable_page_makes_no_machine_queue() {
    for listen in [true, false] {
        let machines = cluster(5, &Store::memory(), listen);
        settle().await;
        let plan = plan(html());
        let origin = Origin::always(Reply::page("x").with("set-cookie", "a=b").slow(SEC));
        let begun = Instant::now();
        let clients: Vec<_> = (0..50).map(|n| tokio::spawn(machines[n % 5].ask(&plan, &get(&[]), &origin))).collect();
        for client in clients {
            assert_eq!(client.await.expect("client").verdict(), Verdict::Bypass);
        }
        assert!(begun.elapsed() < Duration::from_millis(1300), "in paused time: {:?}", begun.elapsed());
        assert_eq!(origin.hits(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn the_mark_of_an_uncacheable_page_ends_for_every_machine() {
    let store = Store::memory();
    let machines = cluster(2, &store, false);
    let plan = plan(Policy { hit_for_miss: 30 * SEC, ..html() });
    let origin = Origin::new(|n, _| if n == 0 { Reply::page("x").with("set-cookie", "a=b") } else { Reply::page("for all") });
    machines[0].ask(&plan, &get(&[]), &origin).await;
    settle().await;
    assert_eq!(machines[1].ask(&plan, &get(&[]), &origin).await.report.detail, Some("hit-for-miss"));
    machines[0].advance(31);
    // The mark lies in the store still, for machines whose clocks go wrong; this one has nothing else.
    let third = Machine::with(store, machines[0].clock.clone()).ask(&plan, &get(&[]), &origin).await;
    assert_eq!((third.verdict(), third.text(), origin.hits()), (Verdict::Miss, "<html>for all</html>", 2));
    assert_eq!(machines[1].ask(&plan, &get(&[]), &origin).await.text(), "<html>for all</html>");
}

#[tokio::test(start_paused = true)]
async fn a_failing_origin_makes_no_machine_queue() {
    let machines = cluster(5, &Store::memory(), true);
    settle().await;
    let plan = plan(html());
    let origin = Origin::always(Reply { head_after: SEC, ..Reply::refused() });
    let begun = Instant::now();
    let clients: Vec<_> = (0..50).map(|n| tokio::spawn(machines[n % 5].ask(&plan, &get(&[]), &origin))).collect();
    for client in clients {
        assert_eq!(client.await.expect("client").kind, "failed");
    }
    assert!(begun.elapsed() <= Duration::from_millis(2100), "in paused time: {:?}", begun.elapsed());
    assert!(origin.hits() <= 5, "at most one each: {}", origin.hits());
}

/// What two machines got whose first was frozen in its fill while the second filled the page with `new`.
struct Overtaken {
    store: Store,
    machines: Vec<Machine>,
    plan: Plan,
    fast: Arc<Origin>,
    /// The answer of the one that woke late.
    late: Got,
}

async fn overtaken(late: Reply) -> Overtaken {
    let store = Store::memory();
    let machines = cluster(2, &store, true);
    let plan = plan(Policy { lease: SEC, ..html() });
    let slow = Origin::always(late.slow(10 * SEC));
    let fast = Origin::always(Reply::page("new"));
    let first = tokio::spawn(machines[0].ask(&plan, &get(&[]), &slow));
    settle().await;
    // The first machine is frozen: its lease is taken from it.
    let key = StoredKey::primary(&plan.epoch, &plan.key).store_key("fill");
    let stolen = steal(&store, &key).await;
    store.locks.release(&stolen).await.expect("store");
    assert_eq!(machines[1].ask(&plan, &get(&[]), &fast).await.text(), "<html>new</html>");
    let late = first.await.expect("client");
    settle().await;
    Overtaken { store, machines, plan, fast, late }
}

#[tokio::test(start_paused = true)]
async fn a_writer_with_an_old_lease_does_not_overwrite_a_newer_page() {
    let Overtaken { store, machines, plan, fast, late } = overtaken(Reply::page("old")).await;
    assert_eq!(late.text(), "<html>old</html>");
    let third = Machine::with(store, machines[0].clock.clone());
    assert_eq!(third.ask(&plan, &get(&[]), &fast).await.text(), "<html>new</html>");
    assert_eq!(machines[0].ask(&plan, &get(&[]), &fast).await.text(), "<html>new</html>", "it gave up its own copy");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_with_an_old_lease_does_not_overwrite_a_newer_page() {
    let Overtaken { store, machines, plan, fast, late } = overtaken(Reply::page("old").with("set-cookie", "a=b")).await;
    assert_eq!(late.report.detail, Some("set-cookie"));
    let third = Machine::with(store, machines[0].clock.clone()).ask(&plan, &get(&[]), &fast).await;
    assert_eq!((third.verdict(), third.text(), fast.hits()), (Verdict::Hit, "<html>new</html>", 1));
}

/// Waits until a key's lease has run out while its owner can not renew it: the embedded store has no other way to lose a lease, so
/// the owner's renewals are outrun by acquiring at the moment of expiry.
async fn steal(store: &Store, key: &str) -> Lease {
    let mut frozen = store.clone();
    frozen.locks = store.locks.clone();
    // Paused time moves only when all tasks sleep, so the owner is kept from renewing by moving the clock over its lease in one step.
    tokio::time::advance(Duration::from_millis(1500)).await;
    frozen.locks.acquire(key, SEC).await.expect("store").expect("the lease ran out")
}

#[tokio::test(start_paused = true)]
async fn purge_reaches_the_other_machines() {
    let machines = cluster(2, &Store::memory(), true);
    settle().await;
    let plan = plan(html());
    let origin = Origin::new(|n, _| Reply::page(&n.to_string()));
    for machine in &machines {
        assert_eq!(machine.ask(&plan, &get(&[]), &origin).await.text(), "<html>0</html>");
    }
    assert!(machines[0].engine.purge_key("v1", &plan.key).await);
    settle().await;
    assert!(machines[1].engine.peek("v1", &plan.key).is_none());
    assert_eq!(machines[1].ask(&plan, &get(&[]), &origin).await.text(), "<html>1</html>");
    assert_eq!(machines[0].ask(&plan, &get(&[]), &origin).await.text(), "<html>1</html>");
}

#[tokio::test(start_paused = true)]
async fn variants_are_shared_purged_together_and_fetched_once_each() {
    let machines = cluster(2, &Store::memory(), true);
    settle().await;
    let plan = plan(plain());
    let origin = Origin::new(|n, _| Reply::new(200, &[("cache-control", "max-age=600"), ("vary", "accept-language")], &n.to_string()).slow(SEC));
    let (de, fr) = (get(&[("accept-language", "de")]), get(&[("accept-language", "fr")]));
    let (a, b, c) = tokio::join!(
        machines[0].ask(&plan, &de, &origin),
        machines[0].ask(&plan, &fr, &origin),
        machines[0].ask(&plan, &de, &origin),
    );
    assert_eq!((a.text(), b.text(), c.text(), origin.hits()), ("0", "1", "0", 2));
    settle().await;
    for request in [&de, &fr] {
        let got = machines[1].ask(&plan, request, &origin).await;
        assert_eq!((got.verdict(), got.report.tier), (Verdict::Hit, Some(Tier::Store)));
    }
    assert_eq!(machines[1].ask(&plan, &de, &origin).await.text(), "0");
    assert!(machines[1].engine.peek("v1", &plan.key).is_none(), "the fast lane does not know variants");
    machines[1].engine.purge_key("v1", &plan.key).await;
    settle().await;
    for machine in &machines {
        let got = machine.ask(&plan, &fr, &origin).await;
        assert_eq!(got.text(), "2", "the old variants are out of reach even when the page varies again");
    }
    assert_eq!(machines[0].ask(&plan, &de, &origin).await.text(), "3");
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_1_what_another_machine_learnt_about_vary_is_heard_of() {
    let machines = cluster(2, &Store::memory(), false);
    let plan = plan(plain());
    let origin = Origin::new(|n, _| {
        let vary = if n == 0 { "origin" } else { "origin, accept" };
        Reply::new(200, &[("cache-control", "max-age=600"), ("vary", vary)], &n.to_string())
    });
    let with = |origin: &str, accept: &str| get(&[("origin", origin), ("accept", accept)]);
    assert_eq!(machines[0].ask(&plan, &with("a", "x"), &origin).await.text(), "0");
    settle().await;
    assert_eq!(machines[1].ask(&plan, &with("b", "x"), &origin).await.text(), "1");
    settle().await;
    machines[0].advance(11);
    assert_eq!(machines[0].ask(&plan, &with("a", "y"), &origin).await.text(), "2", "it looks once more by what answers vary");
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_1_4_who_asks_for_validation_is_not_content_with_what_the_store_has() {
    let machines = cluster(2, &Store::memory(), false);
    let plan = plan(plain());
    let origin = Origin::new(|n, _| Reply::new(200, &[("cache-control", "max-age=600")], &n.to_string()));
    machines[0].ask(&plan, &get(&[]), &origin).await;
    settle().await;
    machines[0].advance(1);
    // Both meet in one flight, which finds the answer in the store.
    let strict = get(&[("cache-control", "no-cache")]);
    let (a, b) = tokio::join!(machines[1].ask(&plan, &get(&[]), &origin), machines[1].ask(&plan, &strict, &origin));
    assert_eq!((a.verdict(), a.text(), b.text(), origin.hits()), (Verdict::Hit, "0", "1", 2));
}

#[tokio::test(start_paused = true)]
async fn without_a_store_one_process_still_fetches_once_and_remembers() {
    let faulty = Faulty::new();
    faulty.away.store(true, SeqCst);
    let machine = Machine::on(faulty.store());
    machine.engine.start();
    let plan = plan(html());
    let origin = Origin::always(Reply::page("x").slow(SEC));
    let clients: Vec<_> = (0..100).map(|_| tokio::spawn(machine.ask(&plan, &get(&[]), &origin))).collect();
    for client in clients {
        let got = client.await.expect("client");
        assert_eq!((got.verdict(), got.text(), got.report.detail), (Verdict::Miss, "<html>x</html>", Some("store-away")));
    }
    assert_eq!(machine.ask(&plan, &get(&[]), &origin).await.verdict(), Verdict::Hit);
    assert_eq!(origin.hits(), 1);
    assert!(machine.engine.stats().store_errors > 0);
    machine.engine.purge_key("v1", &plan.key).await;
    machine.ask(&plan, &get(&[]), &origin).await;
    assert_eq!(origin.hits(), 2, "purged here at least");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_goes_away_at_any_call_breaks_nothing() {
    let plan = plan(html());
    let origin = Origin::always(Reply::page("x").pieces(&["<html>", "x</html>"], SEC));
    // How many calls does a whole fill make? Then fail from the first, from the second, … on.
    let calls = {
        let faulty = Faulty::new();
        Machine::on(faulty.store()).ask(&plan, &get(&[]), &origin).await;
        settle().await;
        faulty.calls.load(SeqCst)
    };
    assert!(calls >= 5, "look, lock, look, put, release, publish: {calls}");
    for good in 0..calls {
        let faulty = Faulty::new();
        let machine = Machine::on(faulty.store());
        let asked = tokio::spawn(machine.ask(&plan, &get(&[]), &origin));
        while faulty.calls.load(SeqCst) < good && !asked.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        faulty.away.store(true, SeqCst);
        let got = asked.await.expect("client");
        assert_eq!((got.verdict(), got.text()), (Verdict::Miss, "<html>x</html>"), "store away after {good} calls");
        assert_eq!(machine.ask(&plan, &get(&[]), &origin).await.verdict(), Verdict::Hit);
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_that_another_machine_fetched_costs_one_call_to_the_store() {
    let faulty = Faulty::new();
    let clock = Clock::manual(T0);
    let origin = Origin::always(Reply::page("x"));
    Machine::with(faulty.store(), clock.clone()).ask(&plan(html()), &get(&[]), &origin).await;
    settle().await;
    let (before, other) = (faulty.calls.load(SeqCst), Machine::with(faulty.store(), clock));
    for (tier, calls) in [(Tier::Store, 1), (Tier::Memory, 1)] {
        let got = other.ask(&plan(html()), &get(&[]), &origin).await;
        assert_eq!((got.verdict(), got.report.tier, faulty.calls.load(SeqCst) - before), (Verdict::Hit, Some(tier), calls));
    }
}

#[tokio::test(start_paused = true)]
async fn garbage_in_the_store_and_on_the_bus_is_ignored() {
    let store = Store::memory();
    let machine = Machine::on(store.clone());
    machine.engine.start();
    settle().await;
    let plan = plan(html());
    let key = StoredKey::primary(&plan.epoch, &plan.key);
    let origin = Origin::always(Reply::page("x"));
    for garbage in [&b""[..], b"WEIR", b"WEIR\x01\x01\xff\xff\xff\xff", b"not ours at all"] {
        store.blobs.put(&key.store_key("cache"), Bytes::from_static(garbage), 60 * SEC, None).await.expect("store");
        for channel in ["fills", "purge"] {
            store.bus.publish(channel, Bytes::from_static(garbage)).await.expect("store");
        }
        settle().await;
        machine.engine.purge_key("v0", "other").await;
        assert_eq!(machine.ask(&plan, &get(&[]), &origin).await.text(), "<html>x</html>");
        machine.engine.purge_key("v1", &plan.key).await;
    }
    assert_eq!(origin.hits(), 4);
}

/// Real threads and real time: what interleavings can break shows here, if at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_threads_many_keys_one_fetch_each() {
    for away in [false, true] {
        let faulty = Faulty::new();
        faulty.away.store(away, SeqCst);
        let clock = Clock::manual(T0);
        // Without a store, machines can not know of each other.
        let machines: Vec<_> = (0..if away { 1 } else { 3 }).map(|_| Machine::with(faulty.store(), clock.clone())).collect();
        machines.iter().for_each(|machine| machine.engine.start());
        // What is fetched before a machine has first looked at the count of purges would not be kept.
        while faulty.peeks.load(SeqCst) < machines.len() as u64 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        let origin = Origin::always(Reply::page("").pieces(&["<html>", "x", "</html>"], Duration::from_millis(1)));
        let plans: Vec<Plan> = (0..40).map(|n| Plan { key: format!("k{n}"), ..plan(html()) }).collect();
        let clients: Vec<_> = (0..4000).map(|n| tokio::spawn(machines[n % machines.len()].ask(&plans[n * 7 % 40], &get(&[]), &origin))).collect();
        for client in clients {
            let got = client.await.expect("client");
            assert_eq!((got.status, got.text()), (200, "<html>x</html>"), "{got:?}");
        }
        assert_eq!(origin.hits(), 40, "store away: {away}");
        assert!(machines.iter().all(|machine| machine.engine.stats().misses + machine.engine.stats().memory_hits + machine.engine.stats().store_hits >= 4000 / 3));
    }
}
