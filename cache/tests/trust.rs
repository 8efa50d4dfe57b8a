//! Memory is trusted only as long as it is certain that every purge was heard.

mod support;

use bytes::Bytes;
use std::{sync::atomic::Ordering::SeqCst, time::Duration};
use support::*;
use weir_cache::{clock::Clock, *};
use weir_store::Store;

/// As [`EngineOptions::default`] has it.
const LIMIT: u64 = 5;

/// Machines that listen; each with a store of its own to switch off, over one and the same.
async fn machines(count: usize) -> Vec<(Machine, Faulty)> {
    let (store, clock) = (Store::memory(), Clock::manual(T0));
    let machines: Vec<_> = (0..count)
        .map(|_| {
            let faulty = Faulty::over(store.clone());
            let machine = Machine::with(faulty.store(), clock.clone());
            machine.engine.start();
            (machine, faulty)
        })
        .collect();
    settle().await;
    machines
}

async fn pass(machine: &Machine, seconds: u64) {
    for _ in 0..seconds * 10 {
        machine.clock.advance(Duration::from_millis(100));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn long(n: usize) -> Reply {
    Reply::new(200, &[("content-type", "text/html"), ("cache-control", "s-maxage=3600, stale-while-revalidate=3600")], &format!("<html>{n}</html>"))
}

#[tokio::test(start_paused = true)]
async fn a_purge_whose_messages_are_lost_is_noticed_within_the_limit() {
    for soft in [false, true] {
        let machines = machines(3).await;
        let (plan, origin) = (plan(html()), Origin::new(|n, _| long(n)));
        for (machine, _) in &machines {
            machine.ask(&plan, &get(&[]), &origin).await;
        }
        settle().await;
        let (purging, faulty) = &machines[0];
        faulty.lossy.store(true, SeqCst);
        let report = purging.engine.purge(&Purge::Host { host: "shop.example.com".into() }, soft).await;
        assert!(report.store_reached && report.others_told);
        settle().await;
        for (machine, _) in &machines[1..] {
            assert_eq!(machine.ask(&plan, &get(&[]), &origin).await.verdict(), Verdict::Hit, "nobody told it");
        }
        pass(purging, LIMIT).await;
        for (machine, _) in &machines[1..] {
            assert_eq!(machine.engine.stats().distrusted, 1);
            let got = machine.ask(&plan, &get(&[]), &origin).await;
            assert!(got.text() == "<html>1</html>" || (soft && got.verdict() == Verdict::Stale), "{got:?}");
            settle().await;
            assert_eq!(machine.ask(&plan, &get(&[]), &origin).await.text(), "<html>1</html>");
        }
        assert_eq!(machines[0].0.engine.stats().distrusted, 0, "it heard itself");
    }
}

#[tokio::test(start_paused = true)]
async fn purges_that_are_heard_cost_no_other_page() {
    let machines = machines(2).await;
    let (plan, origin) = (plan(html()), Origin::new(|n, _| long(n)));
    machines[1].0.ask(&plan, &get(&[]), &origin).await;
    for n in 0..200 {
        machines[n % 2].0.engine.purge(&Purge::Tag { tag: n.to_string() }, false).await;
        pass(&machines[0].0, 1).await;
    }
    assert_eq!(machines[1].0.ask(&plan, &get(&[]), &origin).await.report.tier, Some(Tier::Memory));
    assert!(machines.iter().all(|(machine, _)| machine.engine.stats().distrusted == 0));
}

#[tokio::test(start_paused = true)]
async fn while_the_store_is_silent_memory_is_trusted_for_the_limit_and_no_longer() {
    let machines = machines(1).await;
    let (machine, faulty) = &machines[0];
    let (plan, origin) = (plan(html()), Origin::new(|n, _| if n == 3 { Reply::refused() } else { long(n) }));
    machine.ask(&plan, &get(&[]), &origin).await;
    settle().await;
    faulty.away.store(true, SeqCst);
    pass(machine, 1).await;
    assert_eq!(machine.ask(&plan, &get(&[]), &origin).await.report.tier, Some(Tier::Memory));
    pass(machine, LIMIT).await;
    assert!(!machine.engine.stats().memory_trusted);
    // Fresh for an hour, but perhaps purged: neither as it is nor while it is refreshed.
    assert_eq!(machine.ask(&plan, &get(&[]), &origin).await.text(), "<html>1</html>");
    // What came just now is older than no purge that was missed for long.
    pass(machine, LIMIT - 1).await;
    assert_eq!(machine.ask(&plan, &get(&[]), &origin).await.verdict(), Verdict::Hit);
    pass(machine, 2).await;
    assert_eq!(machine.ask(&plan, &get(&[]), &origin).await.text(), "<html>2</html>");
    // Neither store nor origin: what may be out of date is better than nothing.
    pass(machine, LIMIT + 1).await;
    let got = machine.ask(&plan, &get(&[]), &origin).await;
    assert_eq!((got.verdict(), got.text(), got.report.detail), (Verdict::Stale, "<html>2</html>", Some("unconfirmed")));
    // Back, and nothing was purged meanwhile: nothing is lost.
    faulty.away.store(false, SeqCst);
    pass(machine, 2).await;
    let got = machine.ask(&plan, &get(&[]), &origin).await;
    assert_eq!((got.report.tier, got.text()), (Some(Tier::Memory), "<html>2</html>"));
    assert_eq!((origin.hits(), machine.engine.stats().distrusted), (4, 0));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_comes_back_after_a_purge_elsewhere_makes_memory_forget() {
    let machines = machines(2).await;
    let (plan, origin) = (plan(html()), Origin::new(|n, _| long(n)));
    for (machine, _) in &machines {
        machine.ask(&plan, &get(&[]), &origin).await;
    }
    settle().await;
    // Cut off, the second hears nothing of it.
    let (machine, faulty) = &machines[1];
    faulty.away.store(true, SeqCst);
    machines[0].1.lossy.store(true, SeqCst);
    machines[0].0.engine.purge(&Purge::All, false).await;
    pass(machine, LIMIT + 1).await;
    faulty.away.store(false, SeqCst);
    pass(machine, LIMIT).await;
    assert_eq!(machine.engine.stats().distrusted, 1);
    assert!(machine.engine.stats().memory_trusted);
    assert_eq!(machine.ask(&plan, &get(&[]), &origin).await.text(), "<html>1</html>");
}

#[tokio::test(start_paused = true)]
async fn after_a_gap_memory_is_trusted_once_the_account_is_settled() {
    let machines = machines(1).await;
    let (machine, faulty) = &machines[0];
    let (plan, origin) = (plan(html()), Origin::new(|n, _| long(n)));
    machine.ask(&plan, &get(&[]), &origin).await;
    settle().await;
    for lost in [false, true] {
        assert!(machine.engine.peek("v1", &plan.key).is_some());
        // More messages than a subscriber's queue holds, all at once: some are lost, and the subscriber is told.
        faulty.away.store(true, SeqCst);
        for _ in 0..3000 {
            let other = Bytes::from_static(br#"{"from":1,"op":"key","epoch":"v0","key":"x"}"#);
            faulty.inner.bus.publish("purge", other).await.expect("store");
        }
        if lost {
            faulty.inner.counters.add("purges", 1, Duration::from_secs(60)).await.expect("store");
        }
        settle().await;
        assert!(machine.engine.peek("v1", &plan.key).is_none(), "at once");
        faulty.away.store(false, SeqCst);
        pass(machine, 1).await;
        assert!(machine.engine.stats().memory_trusted);
        assert_eq!(machine.engine.stats().distrusted, u64::from(lost));
        assert_eq!(machine.engine.peek("v1", &plan.key).is_none(), lost);
    }
    let got = machine.ask(&plan, &get(&[]), &origin).await;
    assert_eq!((got.report.tier, origin.hits()), (Some(Tier::Store), 1), "the store knows what is true");
}
