//! The one suite that every back end passes: run on the embedded store, and on Redis through two stores that share one server.
//! `a` and `b` are the same store for the embedded back end. No test asserts how long a thing took, only that it comes to pass.

use bytes::Bytes;
use std::collections::HashSet;
use std::future::Future;
use std::time::Duration;
use tokio::task::JoinSet;
use weir_store::limits::{Back, How, Method, Rule, Span};
use weir_store::*;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(150);

/// Polls until `probe` gives something. Fails after 20 s, which no working store comes near to.
async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut probe: impl FnMut() -> F) -> T {
    for _ in 0..2000 {
        if let Some(value) = probe().await {
            return value;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never came to pass: {what}");
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn value(store: &Store, key: &str) -> Option<Bytes> {
    store.blobs.get(key).await.unwrap().map(|b| b.value)
}

fn owner(begun: Begun) -> Claim {
    match begun {
        Begun::Owner(claim) => claim,
        other => panic!("not the owner: {other:?}"),
    }
}

async fn blobs_keep_values_for_their_time(a: Store, b: Store) {
    assert_eq!(a.blobs.get("blob").await.unwrap(), None);
    let raw = Bytes::from((0..=255u8).cycle().take(100_000).collect::<Vec<_>>());
    assert!(a.blobs.put("blob", raw.clone(), LONG, None).await.unwrap());
    let got = b.blobs.get("blob").await.unwrap().unwrap();
    assert_eq!(got.value, raw);
    assert!(got.ttl <= LONG && got.ttl > LONG / 2, "{:?}", got.ttl);
    assert!(b.blobs.put("blob", bytes("second"), LONG, None).await.unwrap());
    assert_eq!(value(&a, "blob").await, Some(bytes("second")));
    assert!(a.blobs.put("empty", Bytes::new(), LONG, None).await.unwrap());
    assert_eq!(value(&b, "empty").await, Some(Bytes::new()));
    assert!(a.blobs.put("brief", bytes("x"), SHORT, None).await.unwrap());
    eventually("the brief one expires", || async { value(&b, "brief").await.is_none().then_some(()) }).await;
    let keys = ["blob", "empty", "brief", "never"].map(String::from);
    assert_eq!(a.blobs.delete(&keys).await.unwrap(), 2);
    assert_eq!(a.blobs.delete(&keys).await.unwrap(), 0);
    assert_eq!(a.blobs.delete(&[]).await.unwrap(), 0);
    assert_eq!(value(&b, "blob").await, None);
}

async fn blobs_with_odd_keys_do_not_meet(a: Store, b: Store) {
    let keys = ["", "a", "{a}", "{a", "a}", "}a", "}", "{}", "{}a", "{_}a", "_}a", "=a", ":a", "a b\r\nc", "ä/{ö}/ü", "blob:{a}"];
    for key in keys {
        assert!(a.blobs.put(key, bytes(key), LONG, Some(7)).await.unwrap(), "{key:?}");
    }
    for key in keys {
        assert_eq!(value(&b, key).await, Some(bytes(key)), "{key:?}");
        assert!(!b.blobs.put(key, bytes("late"), LONG, Some(6)).await.unwrap(), "{key:?}");
    }
    assert_eq!(a.blobs.delete(&keys.map(String::from)).await.unwrap(), keys.len() as u64);
}

async fn a_late_writer_is_refused(a: Store, b: Store) {
    let old = a.locks.acquire("page", SHORT).await.unwrap().unwrap();
    let new = eventually("the lease of the sleeper is over", || async { b.locks.acquire("page", LONG).await.unwrap() }).await;
    assert!(new.fence > old.fence, "{} then {}", old.fence, new.fence);
    assert!(b.blobs.put("page", bytes("new"), LONG, Some(new.fence)).await.unwrap());
    assert!(!a.blobs.put("page", bytes("old"), LONG, Some(old.fence)).await.unwrap());
    assert_eq!(value(&a, "page").await, Some(bytes("new")));
    // The same owner may write again, and who has no fence writes always.
    assert!(b.blobs.put("page", bytes("new2"), LONG, Some(new.fence)).await.unwrap());
    assert!(a.blobs.put("page", bytes("purged"), LONG, None).await.unwrap());
    // The mark stays when the value goes.
    assert!(!a.blobs.put("page", bytes("old"), LONG, Some(old.fence)).await.unwrap());
    assert_eq!(b.blobs.delete(&["page".into()]).await.unwrap(), 1);
    assert!(!a.blobs.put("page", bytes("old"), LONG, Some(old.fence)).await.unwrap());
    assert_eq!(value(&a, "page").await, None);
    // Fences are numbers, not texts, up to the largest.
    assert!(b.blobs.put("digits", bytes("new"), LONG, Some(10)).await.unwrap());
    assert!(!a.blobs.put("digits", bytes("old"), LONG, Some(9)).await.unwrap());
    assert!(b.blobs.put("digits", bytes("new"), LONG, Some(u64::MAX)).await.unwrap());
    assert!(!a.blobs.put("digits", bytes("old"), LONG, Some(u64::MAX - 1)).await.unwrap());
    // And some time after, it is forgotten.
    assert!(b.blobs.put("soon", bytes("new"), SHORT, Some(9)).await.unwrap());
    eventually("the mark goes", || async { a.blobs.put("soon", bytes("old"), LONG, Some(8)).await.unwrap().then_some(()) }).await;
    assert_eq!(value(&b, "soon").await, Some(bytes("old")));
}

async fn a_patch_hits_only_what_it_was_made_for(a: Store, b: Store) {
    assert!(a.blobs.put("patched", bytes("head:rest"), LONG, Some(7)).await.unwrap());
    assert!(b.blobs.patch("patched", b"head", b"HEAD").await.unwrap());
    let got = a.blobs.get("patched").await.unwrap().unwrap();
    assert_eq!(got.value, "HEAD:rest");
    assert!(got.ttl <= LONG && got.ttl > LONG / 2, "its time goes on: {:?}", got.ttl);
    assert!(!b.blobs.patch("patched", b"head", b"tail").await.unwrap(), "it begins otherwise now");
    assert!(!b.blobs.patch("patched", b"HEAD:rest and more", b"HEAD:rest and less").await.unwrap());
    assert!(!b.blobs.patch("patched", b"HEAD", b"longer").await.unwrap());
    assert_eq!(value(&a, "patched").await, Some(bytes("HEAD:rest")));
    assert!(!a.blobs.put("patched", bytes("late"), LONG, Some(6)).await.unwrap(), "the fence mark stays");
    assert!(a.blobs.patch("patched", b"", b"").await.unwrap());
    for (old, new) in [("", ""), ("x", "y")] {
        assert!(!a.blobs.patch("absent", old.as_bytes(), new.as_bytes()).await.unwrap());
    }
    assert_eq!(value(&b, "absent").await, None);
}

/// Puts a blob and enters it.
async fn enter(store: &Store, key: &str, names: &[&str]) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    assert!(store.blobs.put(key, bytes(key), LONG, None).await.unwrap());
    store.index.enter(key, &names, LONG).await.unwrap();
}

/// All that a search finds, in steps of `limit`; sorted by key, each entry once.
async fn all(store: &Store, named: Named<'_>, limit: usize) -> Vec<Indexed> {
    let mut entries = Vec::new();
    let mut from = None;
    loop {
        let found = store.index.find(named, from.as_ref(), limit).await.unwrap();
        entries.extend(found.entries);
        from = found.next;
        if from.is_none() {
            break;
        }
    }
    entries.sort_by(|x: &Indexed, y| x.key.cmp(&y.key));
    entries.dedup();
    entries
}

async fn keys(store: &Store, named: Named<'_>) -> Vec<String> {
    all(store, named, 1000).await.into_iter().map(|entry| entry.key).collect()
}

async fn the_index_finds_by_name_and_by_beginning(a: Store, b: Store) {
    enter(&a, "1", &["/shoes", "#red", "//shop/shoes"]).await;
    enter(&a, "2", &["/shoes/boots", "#red", "#warm"]).await;
    enter(&b, "{3}", &["/shoe", "#reddish"]).await;
    enter(&b, "4\0x", &["/Schuhe/\u{f6}\u{10ffff}", "nul\0name"]).await;
    enter(&b, "5", &[]).await;
    enter(&b, "", &["/empty"]).await;
    assert_eq!(keys(&b, Named::Exactly("#red")).await, ["1", "2"]);
    assert_eq!(keys(&a, Named::Prefix("#red")).await, ["1", "2", "{3}"]);
    assert_eq!(keys(&a, Named::Exactly("/shoes")).await, ["1"]);
    assert_eq!(keys(&a, Named::Prefix("/shoes")).await, ["1", "2"]);
    assert_eq!(keys(&a, Named::Prefix("/shoes/")).await, ["2"]);
    assert_eq!(keys(&a, Named::Prefix("/Schuhe/\u{f6}")).await, ["4\0x"]);
    assert_eq!(keys(&a, Named::Exactly("nul\u{fffd}name")).await, ["4\0x"]);
    assert_eq!(keys(&a, Named::Exactly("nul\0name")).await, ["4\0x"]);
    assert_eq!(keys(&a, Named::Exactly("nul")).await, [""; 0]);
    assert_eq!(keys(&a, Named::Exactly("/empty")).await, [""]);
    assert_eq!(keys(&a, Named::Prefix("")).await, ["", "1", "2", "4\0x", "{3}"], "what has no name can not be found");
    assert_eq!(keys(&a, Named::Exactly("")).await, [""; 0]);
    let one = all(&a, Named::Exactly("#warm"), 10).await;
    assert_eq!(one[0].names, ["/shoes/boots", "#red", "#warm"]);

    // Entered anew: the new names hold, and only they.
    enter(&b, "1", &["/shoes", "#blue"]).await;
    assert_eq!(keys(&a, Named::Exactly("#red")).await, ["2"]);
    assert_eq!(keys(&a, Named::Prefix("//shop")).await, [""; 0]);
    assert_eq!(keys(&a, Named::Exactly("#blue")).await, ["1"]);
}

async fn the_index_forgets_what_was_removed_but_not_what_came_since(a: Store, b: Store) {
    enter(&a, "1", &["/a", "#t"]).await;
    enter(&a, "2", &["/b", "#t"]).await;
    let found = all(&b, Named::Exactly("#t"), 10).await;
    assert_eq!(found.len(), 2);
    enter(&a, "2", &["/b", "#t"]).await;
    assert_eq!(b.index.remove(&found).await.unwrap(), 1, "the second was entered anew meanwhile");
    assert_eq!(b.index.remove(&found).await.unwrap(), 0);
    assert_eq!(b.index.remove(&[]).await.unwrap(), 0);
    assert_eq!(keys(&a, Named::Prefix("")).await, ["2"]);
    assert_eq!(keys(&a, Named::Exactly("/a")).await, [""; 0]);
    assert_eq!(value(&a, "1").await, Some(bytes("1")), "the blobs are not touched");
}

async fn the_index_is_searched_in_parts(a: Store, b: Store) {
    let mut expected = Vec::new();
    for n in 0..200 {
        let key = format!("k{n:03}");
        enter(&a, &key, &[&format!("/p/{n}"), &format!("//h/p/{n}"), "#all"]).await;
        expected.push(key);
    }
    for limit in [0, 1, 7, 64, 100_000] {
        for named in [Named::Exactly("#all"), Named::Prefix("/"), Named::Prefix("")] {
            let got: Vec<String> = all(&b, named, limit).await.into_iter().map(|entry| entry.key).collect();
            assert_eq!(got, expected, "{named:?} by {limit}");
        }
    }
    // Removing on the way makes a search miss nothing.
    let (mut from, mut removed) = (None, 0);
    loop {
        let found = b.index.find(Named::Exactly("#all"), from.as_ref(), 30).await.unwrap();
        removed += a.index.remove(&found.entries).await.unwrap();
        from = found.next;
        if from.is_none() {
            break;
        }
    }
    assert_eq!(removed, 200);
    assert_eq!(keys(&a, Named::Prefix("")).await, [""; 0]);
}

async fn the_index_forgets_in_time(a: Store, b: Store) {
    enter(&a, "long", &["#t"]).await;
    for n in 0..50 {
        let key = format!("brief{n}");
        assert!(a.blobs.put(&key, bytes("x"), SHORT, None).await.unwrap());
        a.index.enter(&key, &["#t".into()], SHORT).await.unwrap();
    }
    eventually("the brief ones are forgotten", || async { (keys(&b, Named::Exactly("#t")).await == ["long"]).then_some(()) }).await;
    // What is entered again lives on by its new time.
    enter(&a, "brief0", &["#t"]).await;
    assert_eq!(keys(&b, Named::Exactly("#t")).await, ["brief0", "long"]);
}

async fn locks_have_one_owner(a: Store, b: Store) {
    let held = a.locks.acquire("lock", LONG).await.unwrap().unwrap();
    assert_eq!(held.key, "lock");
    assert_eq!(a.locks.acquire("lock", LONG).await.unwrap(), None);
    assert_eq!(b.locks.acquire("lock", LONG).await.unwrap(), None);
    let thief = Lease { owner: "someone".into(), ..held.clone() };
    assert!(!b.locks.release(&thief).await.unwrap());
    assert!(!b.locks.renew(&thief, LONG).await.unwrap());
    assert!(b.locks.renew(&held, LONG).await.unwrap(), "the lease itself is the proof, not the store that gave it");
    assert!(a.locks.release(&held).await.unwrap());
    assert!(!a.locks.release(&held).await.unwrap());
    assert!(!a.locks.renew(&held, LONG).await.unwrap());
    let next = b.locks.acquire("lock", LONG).await.unwrap().unwrap();
    assert!(next.fence > held.fence && next.owner != held.owner);
    assert!(!a.locks.release(&held).await.unwrap(), "an old lease does not free a new one");
    assert!(b.locks.release(&next).await.unwrap());
}

async fn a_lease_ends_unless_renewed(a: Store, b: Store) {
    let held = a.locks.acquire("lease", SHORT).await.unwrap().unwrap();
    assert!(a.locks.renew(&held, LONG).await.unwrap());
    tokio::time::sleep(SHORT * 2).await;
    assert_eq!(b.locks.acquire("lease", LONG).await.unwrap(), None, "renewed: still held past its first lease");
    assert!(a.locks.renew(&held, SHORT).await.unwrap());
    let next = eventually("the lease ends", || async { b.locks.acquire("lease", LONG).await.unwrap() }).await;
    assert!(next.fence > held.fence);
    assert!(!a.locks.renew(&held, LONG).await.unwrap());
    assert!(!a.locks.release(&held).await.unwrap());
}

async fn one_of_many_gets_the_lock(a: Store, b: Store) {
    let mut tasks = JoinSet::new();
    for n in 0..50 {
        let store = if n % 2 == 0 { a.clone() } else { b.clone() };
        tasks.spawn(async move { store.locks.acquire("wanted", LONG).await.unwrap() });
    }
    assert_eq!(tasks.join_all().await.into_iter().flatten().count(), 1);
}

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

async fn counters_charge_all_or_none(a: Store, b: Store) {
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

async fn counters_charge_anyway_or_what_there_is(a: Store, b: Store) {
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

async fn counters_give_back_with_time(a: Store, b: Store) {
    for (name, method) in methods(3) {
        let by = [charge(&format!("brief-{name}"), rule(3, Span::Seconds(1), method), 3)];
        // Until it was full once: a window may just have ended.
        eventually("it is full", || async { (!a.counters.charge(&by, How::AllOrNone).await.unwrap().allowed).then_some(()) }).await;
        eventually("there is room again", || async { b.counters.charge(&by, How::AllOrNone).await.unwrap().allowed.then_some(()) }).await;
    }
}

async fn counters_are_exact_under_contention(a: Store, b: Store) {
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

async fn numbers_expire_from_their_first_use(a: Store, b: Store) {
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

async fn ledger_keeps_what_was_done(a: Store, b: Store) {
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

async fn ledger_forgets_in_time(a: Store, b: Store) {
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

async fn ledger_frees_who_vanished_before_acting(a: Store, b: Store) {
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

async fn ledger_remembers_the_unknown(a: Store, b: Store) {
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

async fn ledger_renewal_keeps_both_states(a: Store, b: Store) {
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

async fn one_of_many_owns_the_effect(a: Store, b: Store) {
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

async fn ledger_wakes_the_waiters(a: Store, b: Store) {
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

async fn data(subscription: &mut Subscription) -> Bytes {
    loop {
        match tokio::time::timeout(Duration::from_secs(20), subscription.messages.recv()).await.expect("a message").expect("still open") {
            Message::Data(payload) => return payload,
            // At its start a subscription may say that it can not know what went before.
            Message::Gap => {}
        }
    }
}

async fn bus_reaches_everyone_in_order(a: Store, b: Store) {
    let mut listeners = vec![a.bus.subscribe("news").await.unwrap(), b.bus.subscribe("news").await.unwrap(), b.bus.subscribe("news").await.unwrap()];
    let mut elsewhere = a.bus.subscribe("other").await.unwrap();
    for listener in &mut listeners {
        // A subscription may need a moment to be known to the server: call until answered.
        let first = eventually("the subscription is alive", || {
            let listener = &mut *listener;
            let a = a.clone();
            let received = listener.messages.try_recv().ok();
            async move {
                a.bus.publish("news", bytes("hello")).await.unwrap();
                received.filter(|m| matches!(m, Message::Data(_)))
            }
        })
        .await;
        assert_eq!(first, Message::Data(bytes("hello")));
    }
    let raw = Bytes::from(vec![0u8, 255, 13, 10]);
    a.bus.publish("news", raw.clone()).await.unwrap();
    for n in 0..100 {
        b.bus.publish("news", bytes(&n.to_string())).await.unwrap();
    }
    for listener in &mut listeners {
        let mut rest = HashSet::new();
        let mut next = 0;
        // The order among messages of one publisher holds; two publishers may cross.
        while next < 100 || !rest.contains(&raw) {
            let payload = data(listener).await;
            if payload == next.to_string().as_bytes() {
                next += 1;
            } else {
                assert!(payload == raw || payload == "hello", "{payload:?} while waiting for {next}");
                rest.insert(payload);
            }
        }
    }
    assert!(!matches!(elsewhere.messages.try_recv(), Ok(Message::Data(_))), "another channel hears nothing");
    drop(listeners.pop());
    a.bus.publish("news", bytes("end")).await.unwrap();
    assert_eq!(data(&mut listeners[0]).await, bytes("end"));
}

async fn health_is_good_and_calls_are_counted(a: Store, _b: Store) {
    a.counters.peek("anything").await.unwrap();
    assert_eq!(a.health.check(), Ok(()));
    let before = a.health.totals();
    a.counters.peek("anything").await.unwrap();
    let after = a.health.totals();
    assert!(after.calls > before.calls);
    assert_eq!((after.failures, after.breaker_opened), (before.failures, before.breaker_opened));
}

/// Makes one test of each function of the suite.
macro_rules! suite {
    ($open:path: $($name:ident),* $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let opened = $open().await;
            super::$name(opened.a, opened.b).await;
        })*
    };
    ($open:path) => {
        suite! { $open:
            blobs_keep_values_for_their_time, blobs_with_odd_keys_do_not_meet, a_late_writer_is_refused,
            a_patch_hits_only_what_it_was_made_for, the_index_finds_by_name_and_by_beginning,
            the_index_forgets_what_was_removed_but_not_what_came_since, the_index_is_searched_in_parts, the_index_forgets_in_time,
            locks_have_one_owner, a_lease_ends_unless_renewed, one_of_many_gets_the_lock,
            counters_charge_all_or_none, counters_charge_anyway_or_what_there_is, counters_give_back_with_time, counters_are_exact_under_contention,
            numbers_expire_from_their_first_use,
            ledger_keeps_what_was_done, ledger_forgets_in_time, ledger_frees_who_vanished_before_acting,
            ledger_remembers_the_unknown, ledger_renewal_keeps_both_states, one_of_many_owns_the_effect, ledger_wakes_the_waiters,
            bus_reaches_everyone_in_order, health_is_good_and_calls_are_counted,
        }
    };
}

/// Two views of one store, and what must live as long as they do.
struct Opened<G = ()> {
    a: Store,
    b: Store,
    _guard: G,
}

mod memory {
    async fn open() -> super::Opened {
        let store = weir_store::Store::memory();
        super::Opened { a: store.clone(), b: store, _guard: () }
    }
    suite!(open);
}

mod redis {
    use std::time::Duration;
    use weir_store::testing::RedisServer;
    use weir_store::{Store, StoreOptions};

    /// Two stores with connections of their own, as two processes have.
    async fn open() -> super::Opened<RedisServer> {
        let server = RedisServer::start();
        // The suite is about what calls do, not how soon: on a loaded machine 50 ms can pass.
        let options = StoreOptions { deadline: Duration::from_secs(10), connect_timeout: Duration::from_secs(10), ..StoreOptions::default() };
        let a = Store::open(&server.url(), &options).await.unwrap();
        let b = Store::open(&server.url(), &options).await.unwrap();
        super::Opened { a, b, _guard: server }
    }
    suite!(open);
}
