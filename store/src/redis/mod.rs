//! The Redis back end: one server, a master behind sentinels, or a cluster; Redis 6.0 or newer.
//!
//! - [`Store::open`](crate::Store::open) never fails because Redis is away: a task connects, again and again, with growing delays.
//! - Every call ends within the deadline and goes through a breaker: see [`StoreOptions`].
//! - What must happen in one piece is a script. On a Cluster all keys of one script must lie in one slot. For the keys of one entry the store
//!   sees to that itself; counters that are taken together must carry one hash tag of the caller's choice: `{alice}:second`, `{alice}:minute`.
//! - Redis replicates without waiting: a failover can forget the last writes, locks too. Fences start at Redis' clock and so still rise.
//!
//! - The index is only as good as Redis' memory: where keys are evicted (`maxmemory-policy`), an entry can be lost whose blob still lives, and
//!   a removal by prefix or tag does not find it. Give Redis room enough, or `volatile-ttl`: the index lives longest.
//!
//! What the keys look like is told in `keys.rs`.

mod breaker;
mod bus;
mod calls;
mod connect;
mod index;
mod keys;
mod ledger;
mod link;
mod meters;
mod own;
mod reads;
mod replicas;
mod scripts;
mod url;

use crate::{Blobs, Health, Store, StoreError, StoreOptions, StoreTotals};
use std::sync::Arc;

/// Opens the store. Waits for the end of the first attempt to connect, good or bad, so for the connect timeout at most (twice
/// that with sentinels).
///
/// Errors: only for a URL or a prefix that can not be used.
pub(crate) async fn open(url: &str, options: &StoreOptions) -> Result<Store, StoreError> {
    let target = url::Target::parse(url)?;
    // A brace in it would be the hash tag of all keys, or would break the one that is.
    if options.prefix.contains(['{', '}']) {
        return Err(StoreError::Url("the prefix must not contain '{' or '}'".into()));
    }
    let link = link::Link::start(connect::Connector::new(target, options), options.clone()).await;
    let waiters = Arc::new(ledger::Waiters::default());
    let ended = format!("{}ledger-ended:{}", options.prefix, link.connector.target.db);
    let ends = bus::Ends { channel: ended.clone(), waiters: waiters.clone() };
    let calls = Arc::new(calls::RedisCalls(link.clone()));
    let blobs: Arc<dyn Blobs> = match replicas(&link.connector.target, options).await? {
        none if none.is_empty() => calls.clone(),
        some => Arc::new(replicas::ReplicaReads::new(calls.clone(), some)),
    };
    Ok(Store {
        blobs,
        index: Arc::new(index::RedisIndex::new(link.clone())),
        locks: calls.clone(),
        counters: calls,
        ledger: Arc::new(ledger::RedisLedger::new(link.clone(), waiters, ended)),
        bus: Arc::new(bus::RedisBus::start(link.clone(), ends)),
        health: Arc::new(RedisHealth(link)),
    })
}

/// Connections to the replicas that `options` names.
async fn replicas(primary: &url::Target, options: &StoreOptions) -> Result<Vec<calls::RedisCalls>, StoreError> {
    if !options.replicas.is_empty() && primary.kind != url::Kind::Standalone {
        return Err(StoreError::Url("replicas can be named beside a standalone server only".into()));
    }
    let mut links = Vec::new();
    for url in &options.replicas {
        let target = url::Target::parse(url)?;
        if target.kind != url::Kind::Standalone {
            return Err(StoreError::Url("a replica is a standalone server".into()));
        }
        links.push(calls::RedisCalls(link::Link::start(connect::Connector::new(target, options), options.clone()).await));
    }
    Ok(links)
}

struct RedisHealth(Arc<link::Link>);

impl Health for RedisHealth {
    fn kind(&self) -> &'static str {
        self.0.connector.target.kind_name()
    }

    fn address(&self) -> String {
        self.0.connector.target.address()
    }

    fn check(&self) -> Result<(), String> {
        self.0.check()
    }

    fn totals(&self) -> StoreTotals {
        self.0.totals()
    }
}
