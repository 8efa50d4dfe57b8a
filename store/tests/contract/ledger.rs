//! What was done, and by whom.

use super::*;

pub(super) async fn ledger_keeps_what_was_done(a: Store, b: Store) {
    let lease = owner(a.ledger.begin("order", "fp-1", LONG, LONG).await.unwrap());
    let in_flight = Begun::InFlight { fingerprint: "fp-1".into() };
    assert_eq!(b.ledger.begin("order", "fp-2", LONG, LONG).await.unwrap(), in_flight);
    assert!(a.ledger.acting(&lease, LONG).await.unwrap());
    assert_eq!(b.ledger.begin("order", "fp-2", LONG, LONG).await.unwrap(), in_flight);
    assert!(a.ledger.renew(&lease, LONG).await.unwrap());
    let stranger = Claim { owner: "someone".into(), ..lease.clone() };
    assert!(!b.ledger.acting(&stranger, LONG).await.unwrap());
    assert!(!b.ledger.renew(&stranger, LONG).await.unwrap());
    assert!(!b.ledger.complete(&stranger, bytes("no"), LONG).await.unwrap());
    assert!(!b.ledger.abandon(&stranger).await.unwrap());
    let stored = Bytes::from(vec![0, 255, b'\r', b'\n', 1]);
    assert!(a.ledger.complete(&lease, stored.clone(), LONG).await.unwrap());
    let done = Begun::Done { fingerprint: "fp-1".into(), value: stored };
    assert_eq!(b.ledger.begin("order", "fp-2", LONG, LONG).await.unwrap(), done);
    // Nothing moves it from there.
    assert!(!a.ledger.complete(&lease, bytes("again"), LONG).await.unwrap());
    assert!(!a.ledger.abandon(&lease).await.unwrap());
    assert!(!a.ledger.acting(&lease, LONG).await.unwrap());
    assert!(!a.ledger.renew(&lease, LONG).await.unwrap());
    assert_eq!(b.ledger.begin("order", "fp-2", LONG, LONG).await.unwrap(), done);
}

pub(super) async fn ledger_forgets_in_time(a: Store, b: Store) {
    let lease = owner(a.ledger.begin("done", "fp", LONG, LONG).await.unwrap());
    assert!(a.ledger.complete(&lease, bytes("x"), SHORT).await.unwrap(), "also without acting");
    eventually("done is forgotten after its ttl", || async {
        matches!(b.ledger.begin("done", "fp", LONG, LONG).await.unwrap(), Begun::Owner(_)).then_some(())
    })
    .await;
    for acted in [false, true] {
        let lease = owner(a.ledger.begin("freed", "fp", LONG, LONG).await.unwrap());
        if acted {
            assert!(a.ledger.acting(&lease, LONG).await.unwrap());
        }
        assert!(a.ledger.abandon(&lease).await.unwrap());
        assert!(!a.ledger.abandon(&lease).await.unwrap());
    }
    owner(b.ledger.begin("freed", "fp", LONG, LONG).await.unwrap());
}

pub(super) async fn ledger_frees_who_vanished_before_acting(a: Store, b: Store) {
    let lost = owner(a.ledger.begin("vanished", "old", SHORT, LONG).await.unwrap());
    let next = eventually("the lease is over", || async {
        match b.ledger.begin("vanished", "new", LONG, LONG).await.unwrap() {
            Begun::Owner(lease) => Some(lease),
            Begun::InFlight { fingerprint } if fingerprint == "old" => None,
            other => panic!("{other:?}"),
        }
    })
    .await;
    assert!(next.fence > lost.fence);
    assert!(!a.ledger.acting(&lost, LONG).await.unwrap(), "the late one must not act");
    assert!(!a.ledger.complete(&lost, bytes("late"), LONG).await.unwrap());
    assert!(!a.ledger.abandon(&lost).await.unwrap());
    assert!(b.ledger.complete(&next, bytes("new"), LONG).await.unwrap());
}

pub(super) async fn ledger_remembers_the_unknown(a: Store, b: Store) {
    let lost = owner(a.ledger.begin("unknown", "fp", LONG, LONG).await.unwrap());
    assert!(a.ledger.acting(&lost, SHORT).await.unwrap());
    eventually("the lease is over", || async {
        match b.ledger.begin("unknown", "other", LONG, LONG).await.unwrap() {
            Begun::Unknown { fingerprint } if fingerprint == "fp" => Some(()),
            Begun::InFlight { .. } => None,
            other => panic!("{other:?}"),
        }
    })
    .await;
    assert!(!a.ledger.complete(&lost, bytes("late"), LONG).await.unwrap());
    assert!(!a.ledger.renew(&lost, LONG).await.unwrap());
    assert!(!a.ledger.abandon(&lost).await.unwrap());
    assert!(!a.ledger.acting(&lost, LONG).await.unwrap());
    assert!(matches!(b.ledger.begin("unknown", "other", LONG, LONG).await.unwrap(), Begun::Unknown { .. }));
    // Free for who may repeat, and then that one's alone.
    let again = owner(b.ledger.begin_again("unknown", "again", LONG, LONG).await.unwrap());
    assert_eq!(a.ledger.begin_again("unknown", "again", LONG, LONG).await.unwrap(), Begun::InFlight { fingerprint: "again".into() });
    assert!(!a.ledger.complete(&lost, bytes("late"), LONG).await.unwrap(), "the late one has no say in it");
    assert!(b.ledger.complete(&again, bytes("v"), LONG).await.unwrap());
    assert!(matches!(a.ledger.begin_again("unknown", "again", LONG, LONG).await.unwrap(), Begun::Done { .. }));
    // Kept for the ttl that `begin` named, then free.
    let brief = owner(a.ledger.begin("unknown-brief", "fp", LONG, SHORT).await.unwrap());
    assert!(a.ledger.acting(&brief, SHORT).await.unwrap());
    eventually("the unknown is forgotten", || async {
        matches!(b.ledger.begin("unknown-brief", "fp", LONG, LONG).await.unwrap(), Begun::Owner(_)).then_some(())
    })
    .await;
}

pub(super) async fn ledger_renewal_keeps_both_states(a: Store, b: Store) {
    for acting in [false, true] {
        let key = format!("renewed-{acting}");
        let lease = owner(a.ledger.begin(&key, "fp", Duration::from_secs(1), SHORT).await.unwrap());
        if acting {
            assert!(a.ledger.acting(&lease, Duration::from_secs(1)).await.unwrap());
        }
        assert!(a.ledger.renew(&lease, LONG).await.unwrap());
        tokio::time::sleep(Duration::from_millis(1300)).await;
        assert_eq!(b.ledger.begin(&key, "x", LONG, LONG).await.unwrap(), Begun::InFlight { fingerprint: "fp".into() });
        assert!(a.ledger.complete(&lease, bytes("v"), LONG).await.unwrap());
    }
}

pub(super) async fn one_of_many_owns_the_effect(a: Store, b: Store) {
    let mut tasks = JoinSet::new();
    for n in 0..50 {
        let store = if n % 2 == 0 { a.clone() } else { b.clone() };
        tasks.spawn(async move {
            match store.ledger.begin("once", "fp", LONG, LONG).await.unwrap() {
                Begun::Owner(_) => 1,
                Begun::InFlight { .. } => 0,
                other => panic!("{other:?}"),
            }
        });
    }
    assert_eq!(tasks.join_all().await.into_iter().sum::<u32>(), 1);
}

pub(super) async fn ledger_wakes_the_waiters(a: Store, b: Store) {
    let ended = |store: Store, key: &'static str| tokio::spawn(async move { store.ledger.wait(key, LONG).await.unwrap() });
    a.ledger.wait("nobody", LONG).await.unwrap();
    let lease = owner(a.ledger.begin("awaited", "fp", LONG, LONG).await.unwrap());
    let waiters = [ended(a.clone(), "awaited"), ended(b.clone(), "awaited")];
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(waiters.iter().all(|w| !w.is_finished()), "in flight: they wait");
    assert!(a.ledger.complete(&lease, bytes("v"), LONG).await.unwrap());
    for waiter in waiters {
        tokio::time::timeout(Duration::from_secs(20), waiter).await.expect("woken by completion").unwrap();
    }
    a.ledger.wait("awaited", LONG).await.unwrap();
    let lease = owner(a.ledger.begin("dropped", "fp", LONG, LONG).await.unwrap());
    let waiter = ended(b.clone(), "dropped");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(a.ledger.abandon(&lease).await.unwrap());
    tokio::time::timeout(Duration::from_secs(20), waiter).await.expect("woken by abandonment").unwrap();
    // Also when the owner vanishes, and when nothing happens at all.
    owner(a.ledger.begin("silent", "fp", SHORT, LONG).await.unwrap());
    tokio::time::timeout(Duration::from_secs(20), ended(b.clone(), "silent")).await.expect("woken by the lease's end").unwrap();
    owner(a.ledger.begin("busy", "fp", LONG, LONG).await.unwrap());
    tokio::time::timeout(Duration::from_secs(20), b.ledger.wait("busy", SHORT)).await.expect("at most").unwrap();
}
