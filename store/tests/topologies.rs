//! A real cluster of three masters, and a master with a replica behind three sentinels.

use bytes::Bytes;
use std::process::Command;
use std::time::Duration;
use weir_store::limits::{How, Method, Rule, Span};
use weir_store::testing::{RedisServer, eventually, free_port};
use weir_store::*;

const LONG: Duration = Duration::from_secs(60);

fn options() -> StoreOptions {
    StoreOptions { deadline: Duration::from_secs(2), connect_timeout: Duration::from_secs(3), ..StoreOptions::default() }
}

/// Waits for data on `subscription` while `publisher` publishes `text` again and again: at most once is what a bus promises.
async fn hears(subscription: &mut Subscription, publisher: &Store, text: &'static str) {
    eventually("a message arrives", || {
        let mut got = false;
        while let Ok(message) = subscription.messages.try_recv() {
            got |= message == Message::Data(Bytes::from_static(text.as_bytes()));
        }
        async move {
            let _ = publisher.bus.publish("news", Bytes::from_static(text.as_bytes())).await;
            got.then_some(())
        }
    })
    .await;
}

fn charge(key: String, limit: u64) -> Charge {
    Charge::new(key, Rule { limit, span: Span::Year, method: Method::Sliding }, 1)
}

/// Some of everything, over many keys, so that every node of a cluster has its part.
async fn works(a: &Store, b: &Store, round: &str) {
    for n in 0..40 {
        let key = format!("{round}-{n}");
        let lease = a.locks.acquire(&key, LONG).await.unwrap().unwrap();
        assert_eq!(b.locks.acquire(&key, LONG).await.unwrap(), None);
        assert!(a.blobs.put(&key, Bytes::from(key.clone()), LONG, Some(lease.fence)).await.unwrap());
        assert!(!b.blobs.put(&key, Bytes::new(), LONG, Some(lease.fence - 1)).await.unwrap());
        assert_eq!(b.blobs.get(&key).await.unwrap().unwrap(), key);
        assert!(b.locks.release(&lease).await.unwrap());
        let charges = ["one", "other"].map(|name| charge(format!("{{{key}}}:{name}"), 1));
        assert!(a.counters.charge(&charges, How::AllOrNone).await.unwrap().allowed);
        let refused = b.counters.charge(&charges, How::AllOrNone).await.unwrap();
        assert_eq!((refused.allowed, refused.readings.iter().map(|r| r.left).collect::<Vec<_>>()), (false, vec![0, 0]));
        let owner = match a.ledger.begin(&key, "fp", LONG, LONG).await.unwrap() {
            Begun::Owner(owner) => owner,
            other => panic!("{key} is not this one's: {other:?}"),
        };
        let waiter = tokio::spawn({ let (b, key) = (b.clone(), key.clone()); async move { b.ledger.wait(&key, LONG).await } });
        assert!(a.ledger.acting(&owner, LONG).await.unwrap());
        assert!(a.ledger.complete(&owner, Bytes::from_static(b"done"), LONG).await.unwrap());
        waiter.await.unwrap().unwrap();
        assert_eq!(b.ledger.begin(&key, "x", LONG, LONG).await.unwrap(), Begun::Done { fingerprint: "fp".into(), value: "done".into() });
    }
    let keys: Vec<String> = (0..40).map(|n| format!("{round}-{n}")).collect();
    for key in &keys {
        a.index.enter(key, &[format!("/{key}"), format!("#{round}")], LONG).await.unwrap();
        assert!(a.blobs.patch(key, b"", b"").await.unwrap());
    }
    let found = b.index.find(Named::Exactly(&format!("#{round}")), None, 10_000).await.unwrap();
    assert_eq!((found.entries.len(), found.next), (40, None));
    assert_eq!(b.index.find(Named::Prefix(&format!("/{round}-1")), None, 10_000).await.unwrap().entries.len(), 11);
    assert_eq!(b.index.remove(&found.entries).await.unwrap(), 40);
    assert_eq!(b.blobs.delete(&keys).await.unwrap(), 40);
}

/// A node; the cluster's own port is 10000 above, so the ports must not be too high.
fn node() -> RedisServer {
    for _ in 0..200 {
        let port = free_port();
        if port < 50_000
            && let Some(node) = RedisServer::try_start(port, &["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"])
        {
            return node;
        }
    }
    panic!("no free port below 50000");
}

async fn cluster() -> (Vec<RedisServer>, String) {
    let nodes: Vec<RedisServer> = (0..3).map(|_| node()).collect();
    let hosts: Vec<String> = nodes.iter().map(|n| format!("127.0.0.1:{}", n.port())).collect();
    let made = Command::new("redis-cli").args(["--cluster", "create"]).args(&hosts).args(["--cluster-replicas", "0", "--cluster-yes"]).output();
    let made = made.expect("redis-cli can be started (it comes with redis-server)");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
    eventually("all nodes agree", || async { nodes.iter().all(|n| n.command("CLUSTER INFO").unwrap().contains("cluster_state:ok")).then_some(()) }).await;
    let url = format!("redis+cluster://{}", hosts.join(","));
    (nodes, url)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_three_masters() {
    let (nodes, url) = cluster().await;
    let a = Store::open(&url, &options()).await.unwrap();
    // The second is told of one node only and finds the others.
    let b = Store::open(&format!("redis+cluster://127.0.0.1:{}", nodes[1].port()), &options()).await.unwrap();
    assert_eq!((a.health.kind(), a.health.address()), ("redis+cluster", url));
    eventually("calls are answered", || async { a.counters.peek("k").await.ok().and(b.counters.peek("k").await.ok()) }).await;
    works(&a, &b, "cluster").await;
    assert_eq!(a.health.check(), Ok(()));

    // Every node took part.
    for n in 0..40 {
        a.counters.add(&format!("spread-{n}"), 1, LONG).await.unwrap();
    }
    for node in &nodes {
        assert_ne!(node.command("DBSIZE").unwrap(), ":0\r\n", "node {} holds nothing", node.port());
    }

    let charges = ["alice", "bob"].map(|k| charge(format!("{{{k}}}"), 5));
    let refused = a.counters.charge(&charges, How::AllOrNone).await.unwrap_err();
    assert!(matches!(&refused, StoreError::Corrupt(reason) if reason.contains("hash tag")), "{refused:?}");
    let alone = a.counters.charge(&charges[..1], How::AllOrNone).await.unwrap();
    assert_eq!(alone.readings[0].left, 4, "what was refused was not charged");

    // Whichever nodes the two listen at.
    let (mut at_a, mut at_b) = (a.bus.subscribe("news").await.unwrap(), b.bus.subscribe("news").await.unwrap());
    hears(&mut at_a, &b, "to a").await;
    hears(&mut at_b, &a, "to b").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_node_goes_and_comes_back() {
    let (mut nodes, url) = cluster().await;
    let store = Store::open(&url, &options()).await.unwrap();
    eventually("calls are answered", || async { store.counters.add("k", 1, LONG).await.ok() }).await;
    nodes[0].kill();
    let keys: Vec<String> = (0..60).map(|n| format!("k{n}")).collect();
    eventually("some keys can not be reached", || async {
        for key in &keys {
            match store.counters.peek(key).await {
                Ok(_) => {}
                Err(StoreError::Away(_) | StoreError::Late(_)) => return Some(()),
                Err(other) => panic!("{other:?}"),
            }
        }
        None
    })
    .await;
    eventually("the trouble is seen", || async { store.health.check().err() }).await;
    // The node comes back with its memory of the cluster, which lies in its folder.
    nodes[0].restart();
    eventually("all keys can be reached again", || async {
        for key in &keys {
            store.counters.peek(key).await.ok()?;
        }
        Some(())
    })
    .await;
    eventually("health is good again", || async { store.health.check().ok() }).await;
}

struct Trio {
    master: RedisServer,
    _replica: RedisServer,
    sentinels: Vec<RedisServer>,
}

async fn trio() -> (Trio, String) {
    let master = RedisServer::start_with(&["--requirepass", "pw", "--masterauth", "pw", "--repl-diskless-sync-delay", "0"]);
    let of = format!("127.0.0.1 {}", master.port());
    let replica = RedisServer::start_with(&["--requirepass", "pw", "--masterauth", "pw", "--replicaof", &of]);
    let sentinels: Vec<RedisServer> = (0..3).map(|_| sentinel(master.port())).collect();
    let known = |s: &RedisServer| {
        let answer = s.command("SENTINEL MASTER shop").unwrap();
        let field = |name: &str| answer.split("\r\n").skip_while(|l| *l != name).nth(2).map(str::to_owned);
        // A replica that has not copied anything yet would take over with an empty memory.
        let copied = s.command("SENTINEL REPLICAS shop").is_ok_and(|answer| answer.contains("master-link-status\r\n$2\r\nok"));
        copied && field("num-slaves").as_deref() == Some("1") && field("num-other-sentinels").as_deref() == Some("2")
    };
    eventually("the sentinels know each other and the replica", || async { sentinels.iter().all(known).then_some(()) }).await;
    let hosts: Vec<String> = sentinels.iter().map(|s| format!("127.0.0.1:{}", s.port())).collect();
    let url = format!("redis+sentinel://:pw@{}/shop", hosts.join(","));
    (Trio { master, _replica: replica, sentinels }, url)
}

/// A sentinel that holds a master for dead after one second.
fn sentinel(master: u16) -> RedisServer {
    let lines = format!(
        "sentinel monitor shop 127.0.0.1 {master} 2\nsentinel auth-pass shop pw\nsentinel down-after-milliseconds shop 1000\nsentinel failover-timeout shop 5000\n"
    );
    RedisServer::start_sentinel(&lines)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_behind_sentinels() {
    let (mut trio, url) = trio().await;
    let a = Store::open(&url, &options()).await.unwrap();
    let b = Store::open(&url, &options()).await.unwrap();
    assert_eq!(a.health.kind(), "redis+sentinel");
    assert!(!a.health.address().contains("pw") && a.health.address().ends_with("/shop?db=0"), "{}", a.health.address());
    eventually("calls are answered", || async { a.counters.peek("k").await.ok().and(b.counters.peek("k").await.ok()) }).await;
    works(&a, &b, "before").await;
    let mut news = b.bus.subscribe("news").await.unwrap();
    hears(&mut news, &a, "before").await;
    let old = a.locks.acquire("fenced", Duration::from_millis(100)).await.unwrap().unwrap();

    // One of the sentinels goes too: the others are enough.
    trio.sentinels[0].kill();
    trio.master.kill();
    let new = eventually("the replica takes over", || async { a.locks.acquire("fenced", LONG).await.ok().flatten() }).await;
    assert!(new.fence > old.fence);
    eventually("writes are taken by both stores", || async {
        for store in [&a, &b] {
            if let Err(error) = store.counters.add("k", 1, LONG).await {
                assert!(matches!(error, StoreError::Away(_) | StoreError::Late(_)), "{error:?}");
                return None;
            }
        }
        Some(())
    })
    .await;
    works(&a, &b, "after").await;
    hears(&mut news, &a, "after").await;
    assert_eq!((a.health.check(), b.health.check()), (Ok(()), Ok(())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_of_masters_without_a_crash_is_followed() {
    let (trio, url) = trio().await;
    let a = Store::open(&url, &options()).await.unwrap();
    eventually("calls are answered", || async { a.counters.add("k", 1, LONG).await.ok() }).await;
    let mut news = a.bus.subscribe("news").await.unwrap();
    hears(&mut news, &a, "before").await;
    // The old master lives on as a replica that refuses writes.
    eventually("the sentinels switch", || async { trio.sentinels[0].command("SENTINEL FAILOVER shop").unwrap().starts_with("+OK").then_some(()) }).await;
    let role = |text: &str| {
        let raw = Command::new("redis-cli").args(["-p", &trio.master.port().to_string(), "-a", "pw", "--no-auth-warning", "ROLE"]).output();
        String::from_utf8_lossy(&raw.expect("redis-cli can be started").stdout).contains(text)
    };
    eventually("the old master is a replica", || async { role("slave").then_some(()) }).await;
    eventually("writes go to the new master", || async { a.counters.add("k2", 1, LONG).await.ok() }).await;
    hears(&mut news, &a, "after").await;
}

/// A key's value on one server, asked past the store.
fn there(server: &RedisServer, key: &str) -> bool {
    server.command(&format!("EXISTS weir:blob:{{{key}}}")).is_ok_and(|answer| answer.trim().ends_with('1'))
}

#[tokio::test(flavor = "multi_thread")]
async fn values_are_read_from_a_replica_and_removals_reach_it() {
    let primary = RedisServer::start();
    let mut replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &primary.port().to_string()]);
    let options = StoreOptions { deadline: Duration::from_secs(5), replicas: vec![replica.url()], ..StoreOptions::default() };
    let store = Store::open(&primary.url(), &options).await.expect("a store");
    store.blobs.put("page", Bytes::from_static(b"one"), Duration::from_secs(60), None).await.expect("stored");
    let mut came = false;
    for _ in 0..1000 {
        came = there(&replica, "page");
        if came {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(came, "the replica has it");
    // Gone from the primary behind the replica's back: only the replica can answer now.
    replica.command("REPLICAOF NO ONE").expect("cut off");
    primary.command("DEL weir:blob:{page}").expect("deleted");
    assert_eq!(store.blobs.get("page").await.expect("answered"), Some(Bytes::from_static(b"one")));
    // A removal that the replica does not confirm: it is not asked any more.
    store.blobs.delete(&["page".into()]).await.expect("deleted");
    assert!(there(&replica, "page"));
    assert_eq!(store.blobs.get("page").await.expect("answered"), None);
    // What only the primary has is found there; so is everything when the replica is away.
    store.blobs.put("other", Bytes::from_static(b"two"), Duration::from_secs(60), None).await.expect("stored");
    replica.kill();
    assert_eq!(store.blobs.get("other").await.expect("answered"), Some(Bytes::from_static(b"two")));
}
