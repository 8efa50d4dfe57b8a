//! The one suite that every back end passes: run on the embedded store, and on Redis through two stores that share one server.
//! `a` and `b` are the same store for the embedded back end. No test asserts how long a thing took, only that it comes to pass.

mod blobs;
mod counters;
mod index;
mod ledger;

use blobs::*;
use bytes::Bytes;
use counters::*;
use index::*;
use ledger::*;
use std::collections::HashSet;
use std::time::Duration;
use tokio::task::JoinSet;
use weir_store::limits::{Back, How, Method, Rule, Span};
use weir_store::testing::eventually;
use weir_store::*;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(150);

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn value(store: &Store, key: &str) -> Option<Bytes> {
    store.blobs.get(key).await.unwrap()
}

fn owner(begun: Begun) -> Claim {
    match begun {
        Begun::Owner(claim) => claim,
        other => panic!("not the owner: {other:?}"),
    }
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
    ($open:path, $runtime:tt: $($name:ident),* $(,)?) => {
        $(#[tokio::test $runtime]
        async fn $name() {
            let opened = $open().await;
            super::$name(opened.a, opened.b).await;
        })*
    };
    ($open:path, $runtime:tt) => {
        suite! { $open, $runtime:
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
    suite!(open, (flavor = "multi_thread", worker_threads = 2));
}

mod redis {
    use std::time::Duration;
    use weir_store::testing::RedisServer;
    use weir_store::{Store, StoreOptions};

    /// Two stores with connections of their own, as two processes have.
    pub(super) async fn open() -> super::Opened<RedisServer> {
        let server = RedisServer::start();
        // The suite is about what calls do, not how soon: on a loaded machine 50 ms can pass.
        let options = StoreOptions { deadline: Duration::from_secs(10), connect_timeout: Duration::from_secs(10), ..StoreOptions::default() };
        let a = Store::open(&server.url(), &options).await.unwrap();
        let b = Store::open(&server.url(), &options).await.unwrap();
        super::Opened { a, b, _guard: server }
    }
    suite!(open, (flavor = "multi_thread", worker_threads = 2));
}

/// A thread that has its tasks to itself has connections of its own.
mod redis_by_thread {
    suite!(super::redis::open, (flavor = "current_thread"));
}
