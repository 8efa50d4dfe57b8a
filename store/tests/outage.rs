//! Redis goes away and comes back. No test asserts how long a thing took, only that it comes to pass.

use bytes::Bytes;
use std::time::Duration;
use weir_store::limits::{How, Method, Rule, Span};
use weir_store::testing::{RedisServer, eventually, free_port};
use weir_store::*;

const LONG: Duration = Duration::from_secs(60);

/// The next message. Fails after 20 s.
async fn next(subscription: &mut Subscription) -> Message {
    tokio::time::timeout(Duration::from_secs(20), subscription.messages.recv()).await.expect("a message").expect("still open")
}

fn options() -> StoreOptions {
    StoreOptions { deadline: Duration::from_secs(2), breaker_open: Duration::from_millis(200), ..StoreOptions::default() }
}

fn passes(error: &StoreError) -> bool {
    matches!(error, StoreError::Away(_) | StoreError::Late(_))
}

/// Every kind of call once; the errors of those that failed.
async fn every_call(store: &Store) -> Vec<StoreError> {
    let lease = Lease { key: "k".into(), owner: "nobody".into(), fence: 1 };
    let claim = Claim { key: "k".into(), owner: "nobody".into(), fence: 1, fingerprint: "f".into(), ttl: LONG };
    let charge = Charge::new("k".into(), Rule { limit: 1000, span: Span::DAY, method: Method::Fixed }, 1);
    let value = Bytes::from_static(b"v");
    let outcomes = [
        store.blobs.get("k").await.err(),
        store.blobs.put("k", value.clone(), LONG, None).await.err(),
        store.blobs.put("k", value.clone(), LONG, Some(1)).await.err(),
        store.blobs.delete(&["k".into()]).await.err(),
        store.blobs.patch("k", b"v", b"w").await.err(),
        store.index.enter("k", &["n".into()], LONG).await.err(),
        store.index.find(Named::Exactly("n"), None, 10).await.err(),
        store.index.remove(&[Indexed { key: "k".into(), names: vec![], stamp: 1 }]).await.err(),
        store.locks.acquire("k", LONG).await.err(),
        store.locks.renew(&lease, LONG).await.err(),
        store.locks.release(&lease).await.err(),
        store.counters.charge(&[charge], How::AllOrNone).await.err(),
        store.counters.add("k", 1, LONG).await.err(),
        store.counters.peek("k").await.err(),
        store.ledger.begin("k", "f", LONG, LONG).await.err(),
        store.ledger.acting(&claim, LONG).await.err(),
        store.ledger.renew(&claim, LONG).await.err(),
        store.ledger.complete(&claim, value.clone(), LONG).await.err(),
        store.ledger.abandon(&claim).await.err(),
        store.ledger.wait("other", LONG).await.err(),
        store.bus.publish("c", value).await.err(),
    ];
    outcomes.into_iter().flatten().collect()
}
const CALLS: usize = 21;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_redis_fails_calls_and_a_restarted_one_serves_them() {
    let mut server = RedisServer::start();
    let store = Store::open(&server.url(), &options()).await.unwrap();
    eventually("all calls are answered", || async { every_call(&store).await.is_empty().then_some(()) }).await;
    assert_eq!(store.health.check(), Ok(()));

    server.kill();
    let errors = every_call(&store).await;
    assert_eq!(errors.len(), CALLS, "{errors:?}");
    assert!(errors.iter().all(passes), "{errors:?}");
    assert!(store.health.check().is_err());
    assert!(store.health.totals().failures >= CALLS as u64);
    assert!(store.health.totals().breaker_opened >= 1);

    server.restart();
    // Without any traffic.
    eventually("health is good again", || async { store.health.check().ok() }).await;
    // The new server knows none of the scripts.
    eventually("all calls are answered again", || async { every_call(&store).await.is_empty().then_some(()) }).await;
    assert_eq!(store.health.check(), Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_notices_a_loss_without_traffic() {
    let mut server = RedisServer::start();
    let store = Store::open(&server.url(), &options()).await.unwrap();
    eventually("health is good", || async { store.health.check().ok() }).await;
    let before = store.health.totals().calls;
    server.kill();
    let reason = eventually("the loss is noticed", || async { store.health.check().err() }).await;
    assert!(!reason.is_empty());
    server.restart();
    eventually("the return is noticed", || async { store.health.check().ok() }).await;
    assert_eq!(store.health.totals().calls, before, "pings are not counted as calls");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opens_while_redis_is_away() {
    let port = free_port();
    let store = Store::open(&format!("redis://:hunter2@127.0.0.1:{port}"), &options()).await.unwrap();
    let error = store.blobs.get("k").await.unwrap_err();
    assert!(passes(&error), "{error:?}");
    let reason = store.health.check().unwrap_err();
    for text in [error.to_string(), reason, store.health.address()] {
        assert!(!text.contains("hunter2"), "{text}");
    }
    let mut early = store.bus.subscribe("c").await.unwrap();
    let mut also = store.bus.subscribe("d").await.unwrap();
    let _server = RedisServer::try_start(port, &["--requirepass", "hunter2"]).expect("the port is still free");
    eventually("it is found", || async { store.blobs.get("k").await.ok() }).await;
    assert_eq!(next(&mut early).await, Message::Gap, "who subscribed while it was away hears of a gap first");
    assert_eq!(next(&mut also).await, Message::Gap);
    store.bus.publish("c", Bytes::from_static(b"now")).await.unwrap();
    assert_eq!(next(&mut early).await, Message::Data(Bytes::from_static(b"now")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_an_outage_and_is_not_told() {
    let server = RedisServer::start_with(&["--requirepass", "right-one"]);
    let store = Store::open(&format!("redis://:wrong-one@127.0.0.1:{}", server.port()), &options()).await.unwrap();
    let mut errors = every_call(&store).await;
    assert_eq!(errors.len(), CALLS);
    assert!(errors.iter().all(passes), "{errors:?}");
    errors.push(StoreError::Away(store.health.check().unwrap_err()));
    assert!(errors.iter().all(|e| !format!("{e:?} {e}").contains("wrong-one")), "{errors:?}");
    let good = Store::open(&format!("redis://default:right-one@127.0.0.1:{}/3", server.port()), &options()).await.unwrap();
    eventually("the right password is taken", || async { good.blobs.put("k", Bytes::new(), LONG, None).await.ok() }).await;
    assert_eq!(good.health.address(), format!("redis://127.0.0.1:{}/3", server.port()));
    assert!(!good.health.address().contains("right-one"));
}

/// As docs/caching.md gives them. `KEYS` is among the dangerous commands, and nothing here goes over all keys by `SCAN` either.
const RIGHTS: &str = "~weir:* resetchannels &weir:* -@all +@read +@write +@scripting +@pubsub +@connection +time -@dangerous -scan";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acl_user_needs_few_rights() {
    let server = RedisServer::start();
    assert!(server.command(&format!("ACL SETUSER shop on >pass-of-the-user {RIGHTS}")).unwrap().starts_with("+OK"));
    assert!(server.command("ACL SETUSER default off").unwrap().starts_with("+OK"));
    let url = format!("redis://shop:pass-of-the-user@127.0.0.1:{}", server.port());
    let store = Store::open(&url, &options()).await.unwrap();
    eventually("all calls are answered", || async { every_call(&store).await.is_empty().then_some(()) }).await;
    let mut news = store.bus.subscribe("news").await.unwrap();
    store.bus.publish("news", Bytes::from_static(b"hello")).await.unwrap();
    assert_eq!(next(&mut news).await, Message::Data(Bytes::from_static(b"hello")));
    // Another's keys are out of reach, and that is told without the password.
    let other = Store::open(&url, &StoreOptions { prefix: "other:".into(), ..options() }).await.unwrap();
    let error = other.blobs.get("k").await.unwrap_err().to_string();
    assert!(error.contains("NOPERM") && !error.contains("pass-of-the-user"), "{error}");
    // Without a name, as without the password, nothing is to be had.
    let nobody = Store::open(&server.url(), &options()).await.unwrap();
    assert!(passes(&nobody.blobs.get("k").await.unwrap_err()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_redis_makes_calls_late_then_opens_the_breaker() {
    let server = RedisServer::start();
    let options = StoreOptions { deadline: Duration::from_millis(100), breaker_failures: 3, breaker_open: Duration::from_secs(3600), ..options() };
    let store = Store::open(&server.url(), &options).await.unwrap();
    eventually("calls are answered", || async { store.counters.peek("k").await.ok() }).await;
    server.pause();
    let mut seen = Vec::new();
    while seen.len() < 10 {
        seen.push(store.counters.peek("k").await.unwrap_err());
    }
    assert!(seen.iter().any(|e| matches!(e, StoreError::Late(d) if *d == options.deadline)), "{seen:?}");
    assert!(seen[5..].iter().all(|e| matches!(e, StoreError::Away(reason) if reason.contains("breaker open"))), "{seen:?}");
    assert_eq!(store.health.totals().breaker_opened, 1);
    server.resume();
    assert!(matches!(store.counters.peek("k").await, Err(StoreError::Away(_))), "open is open, whatever Redis does");
    assert!(store.health.check().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_breaker_closes_when_the_probe_is_answered() {
    let server = RedisServer::start();
    let options = StoreOptions { deadline: Duration::from_millis(200), breaker_failures: 2, breaker_open: Duration::from_millis(300), ..options() };
    let store = Store::open(&server.url(), &options).await.unwrap();
    eventually("calls are answered", || async { store.counters.add("k", 1, LONG).await.ok() }).await;
    server.pause();
    eventually("the breaker opens", || async { (store.counters.peek("k").await.is_err() && store.health.totals().breaker_opened == 1).then_some(()) }).await;
    server.resume();
    eventually("the breaker closes", || async { store.counters.peek("k").await.ok() }).await;
    for _ in 0..20 {
        store.counters.peek("k").await.unwrap();
    }
    assert_eq!(store.health.totals().breaker_opened, 1);
    assert_eq!(store.health.check(), Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bus_tells_of_a_gap_and_goes_on() {
    let mut server = RedisServer::start();
    let a = Store::open(&server.url(), &options()).await.unwrap();
    let b = Store::open(&server.url(), &options()).await.unwrap();
    let mut news = b.bus.subscribe("news").await.unwrap();
    let mut other = b.bus.subscribe("other").await.unwrap();
    eventually("messages arrive", || {
        let got = matches!(news.messages.try_recv(), Ok(Message::Data(_)));
        let a = a.clone();
        async move {
            let _ = a.bus.publish("news", Bytes::from_static(b"before")).await;
            got.then_some(())
        }
    })
    .await;
    server.restart();
    // On both channels, also on the one where nothing was ever published.
    for subscription in [&mut news, &mut other] {
        loop {
            match next(subscription).await {
                Message::Gap => break,
                Message::Data(payload) => assert_eq!(payload, "before"),
            }
        }
    }
    eventually("publishing works again", || async { a.bus.publish("news", Bytes::from_static(b"after")).await.ok() }).await;
    loop {
        match next(&mut news).await {
            Message::Gap => {}
            Message::Data(payload) => break assert_eq!(payload, "after"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fences_rise_past_a_redis_that_lost_its_memory() {
    let mut server = RedisServer::start();
    let store = Store::open(&server.url(), &options()).await.unwrap();
    let old = eventually("a lock", || async { store.locks.acquire("k", LONG).await.ok().flatten() }).await;
    server.restart();
    let new = eventually("a lock again", || async { store.locks.acquire("k", LONG).await.ok().flatten() }).await;
    assert!(new.fence > old.fence, "{} then {}", old.fence, new.fence);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_ours_under_a_key_is_an_unreadable_answer() {
    let server = RedisServer::start();
    let store = Store::open(&server.url(), &options()).await.unwrap();
    eventually("calls are answered", || async { store.counters.peek("k").await.ok() }).await;
    server.command("LPUSH weir:blob:{k} x").unwrap();
    server.command("LPUSH weir:ledger:{k} x").unwrap();
    server.command("SET weir:count:{k} many").unwrap();
    server.command("SET weir:meter:{k} many").unwrap();
    let charge = Charge::new("k".into(), Rule { limit: 1000, span: Span::DAY, method: Method::Fixed }, 1);
    for _ in 0..10 {
        assert!(matches!(store.blobs.get("k").await, Err(StoreError::Corrupt(_))));
        assert!(matches!(store.ledger.begin("k", "f", LONG, LONG).await, Err(StoreError::Corrupt(_))));
        assert!(matches!(store.counters.add("k", 1, LONG).await, Err(StoreError::Corrupt(_))));
        assert!(matches!(store.counters.peek("k").await, Err(StoreError::Corrupt(_))));
        assert!(matches!(store.counters.charge(std::slice::from_ref(&charge), How::AllOrNone).await, Err(StoreError::Corrupt(_))));
    }
    assert_eq!(store.health.totals().breaker_opened, 0, "Redis did answer");
    assert_eq!(store.health.check(), Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefixes_and_databases_keep_stores_apart() {
    let server = RedisServer::start();
    let open = async |db: u32, prefix: &str| {
        let options = StoreOptions { prefix: prefix.into(), ..options() };
        Store::open(&format!("{}/{db}", server.url()), &options).await.unwrap()
    };
    let stores = [open(0, "one:").await, open(0, "two:").await, open(1, "one:").await];
    let mut subscriptions = Vec::new();
    for (n, store) in stores.iter().enumerate() {
        eventually("a write", || async { store.counters.add("k", n as u64 + 1, LONG).await.ok() }).await;
        subscriptions.push(store.bus.subscribe("c").await.unwrap());
    }
    for (n, store) in stores.iter().enumerate() {
        assert_eq!(store.counters.peek("k").await.unwrap(), n as u64 + 1);
        store.bus.publish("c", Bytes::from(n.to_string())).await.unwrap();
    }
    for (n, subscription) in subscriptions.iter_mut().enumerate() {
        let heard = loop {
            match next(subscription).await {
                Message::Data(payload) => break payload,
                Message::Gap => {}
            }
        };
        assert_eq!(heard, n.to_string());
        assert!(!matches!(subscription.messages.try_recv(), Ok(Message::Data(_))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_is_woken_by_a_message() {
    let server = RedisServer::start();
    let store = Store::open(&server.url(), &options()).await.unwrap();
    eventually("an entry", || async { matches!(store.ledger.begin("k", "f", LONG, LONG).await, Ok(Begun::Owner(_))).then_some(()) }).await;
    let waiter = tokio::spawn({ let store = store.clone(); async move { store.ledger.wait("k", LONG).await } });
    // The entry stays in flight: looking at it would never end the wait.
    eventually("the message ends the wait", || async {
        server.command("PUBLISH weir:ledger-ended:0 weir:ledger:{k}").unwrap();
        waiter.is_finished().then_some(())
    })
    .await;
    waiter.await.unwrap().unwrap();
    assert_eq!(store.ledger.begin("k", "f", LONG, LONG).await.unwrap(), Begun::InFlight { fingerprint: "f".into() });
}

/// What a Redis without a disk forgets when it is started anew, its owners know, and nobody takes its silence for an answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_that_lost_its_memory_is_not_believed() {
    let mut server = RedisServer::start();
    let (a, b) = (Store::open(&server.url(), &options()).await.unwrap(), Store::open(&server.url(), &options()).await.unwrap());
    let claim = async |key: &str| match a.ledger.begin(key, "f", LONG, LONG).await.unwrap() {
        Begun::Owner(claim) => claim,
        other => panic!("{other:?}"),
    };
    let (renewed, completed, done) = (claim("renewed").await, claim("completed").await, claim("done").await);
    assert!(a.ledger.acting(&renewed, LONG).await.unwrap() && a.ledger.acting(&completed, LONG).await.unwrap());
    assert!(a.ledger.complete(&done, Bytes::from_static(b"v"), LONG).await.unwrap());
    assert!(matches!(b.ledger.begin("done", "f", LONG, LONG).await.unwrap(), Begun::Done { .. }));
    server.restart();
    let lost = eventually("the loss is noticed", || async { b.ledger.begin("done", "f", LONG, LONG).await.ok() }).await;
    assert!(matches!(lost, Begun::Lost { left } if left <= LONG && !left.is_zero()), "{lost:?}");
    eventually("the owner is back", || async { a.ledger.renew(&renewed, LONG).await.ok()?.then_some(()) }).await;
    assert_eq!(b.ledger.begin("renewed", "f", LONG, LONG).await.unwrap(), Begun::InFlight { fingerprint: "f".into() });
    assert!(a.ledger.complete(&completed, Bytes::from_static(b"w"), LONG).await.unwrap());
    let known = Begun::Done { fingerprint: "f".into(), value: Bytes::from_static(b"w") };
    assert_eq!(b.ledger.begin("completed", "f", LONG, LONG).await.unwrap(), known);
    assert!(a.ledger.complete(&renewed, Bytes::from_static(b"x"), LONG).await.unwrap());
    // Only as long as an answer would have been kept; a key that was used again since is its new owner's.
    let short = Duration::from_millis(1);
    let next = eventually("the loss is over", || async {
        match b.ledger.begin("over", "f", LONG, short).await.unwrap() {
            Begun::Owner(claim) => Some(claim),
            _ => None,
        }
    })
    .await;
    let late = Claim { owner: "late".into(), fence: 1, ..next.clone() };
    assert!(!a.ledger.complete(&late, Bytes::from_static(b"late"), LONG).await.unwrap());
    // A server that kept its memory is believed at once, as is one that is new to everybody.
    let fresh = RedisServer::start();
    let store = Store::open(&fresh.url(), &options()).await.unwrap();
    assert!(matches!(store.ledger.begin("k", "f", LONG, LONG).await.unwrap(), Begun::Owner(_)));
}

/// Forwards connections to `to` until told to swallow: then those that exist stay open without a word, while new ones work.
async fn forwarder(to: u16) -> (u16, tokio::sync::watch::Sender<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (swallow, told) = tokio::sync::watch::channel(());
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut told = told.clone();
            told.mark_unchanged();
            tokio::spawn(async move {
                let mut far = tokio::net::TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    _ = told.changed() => std::future::pending().await,
                }
            });
        }
    });
    (port, swallow)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_died_without_a_sign_are_replaced() {
    let server = RedisServer::start();
    let (port, swallow) = forwarder(server.port()).await;
    let hasty = StoreOptions { deadline: Duration::from_millis(500), breaker_failures: 2, ..options() };
    let store = Store::open(&format!("redis://127.0.0.1:{port}"), &hasty).await.unwrap();
    let direct = Store::open(&server.url(), &options()).await.unwrap();
    let mut news = store.bus.subscribe("news").await.unwrap();
    eventually("calls are answered", || async { store.counters.add("k", 1, LONG).await.ok() }).await;
    swallow.send_replace(());
    let lost = store.counters.peek("k").await.unwrap_err();
    assert!(passes(&lost), "{lost:?}");
    eventually("calls are answered again", || async { store.counters.peek("k").await.ok() }).await;
    while next(&mut news).await != Message::Gap {}
    direct.bus.publish("news", Bytes::from_static(b"heard")).await.unwrap();
    while next(&mut news).await != Message::Data(Bytes::from_static(b"heard")) {}
}

#[tokio::test]
async fn unusable_addresses_and_prefixes_are_errors() {
    for url in ["", "memroy", "http://h", "redis://h:x", "redis+sentinel://h"] {
        assert!(matches!(Store::open(url, &options()).await, Err(StoreError::Url(_))), "{url}");
    }
    let braces = StoreOptions { prefix: "{weir}:".into(), ..options() };
    assert!(matches!(Store::open("redis://127.0.0.1:1", &braces).await, Err(StoreError::Url(_))));
}

/// A thread that has its tasks to itself reads over a connection for that alone: with the same credentials, in the same database, and anew when it
/// was closed.
#[tokio::test]
async fn a_thread_s_own_connection_for_reading() {
    let server = RedisServer::start();
    server.command("ACL SETUSER shop on >pa$s ~* &* +@all").unwrap();
    let store = Store::open(&format!("redis://shop:pa%24s@127.0.0.1:{}/3", server.port()), &options()).await.unwrap();
    store.blobs.put("k", Bytes::from_static(b"v"), LONG, None).await.unwrap();
    // Nothing else of ours says `GET`.
    let reading = || server.command("CLIENT LIST").unwrap().lines().filter(|line| line.contains(" cmd=get ")).map(str::to_owned).collect::<Vec<_>>();
    let numbers = |lines: &[String]| lines.iter().map(|line| line.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>();
    let own = async || {
        eventually("values are read over it", async || {
            assert_eq!(store.blobs.get("k").await.unwrap(), Some(Bytes::from_static(b"v")));
            let lines = reading();
            // One of them was the shared connection, before there was another.
            (lines.len() == 1 && lines[0].contains(" db=3 ") && lines[0].contains(" user=shop ")).then_some(lines)
        })
        .await
    };
    store.counters.add("n", 1, LONG).await.unwrap();
    let first = numbers(&own().await);
    server.command(&format!("CLIENT KILL {}", first[0].replace("id=", "ID "))).unwrap();
    let before = store.health.totals().breaker_opened;
    let second = eventually("it is opened anew", async || {
        let _ = store.blobs.get("k").await;
        store.counters.add("n", 1, LONG).await.ok()?;
        Some(numbers(&reading())).filter(|found| !found.is_empty() && *found != first)
    })
    .await;
    assert_ne!(first, second);
    assert_eq!(store.health.totals().breaker_opened, before);
}
