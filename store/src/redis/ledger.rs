//! One effect per key.

use super::keys::{key, millis};
use super::link::Link;
use super::scripts;
use super::url::Kind;
use crate::{Begun, Claim, Ledger, StoreError, StoreResult, token};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use redis::Value;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Delays between looks at an entry that is waited for: messages wake the waiters, but they can get lost.
const FIRST_LOOK: Duration = Duration::from_millis(20);
const LONGEST_LOOK: Duration = Duration::from_millis(200);

/// Who waits in this process, by key in Redis.
#[derive(Default)]
pub(super) struct Waiters(Mutex<HashMap<String, (Arc<Notify>, usize)>>);

impl Waiters {
    /// Wakes who waits for `key`.
    pub(super) fn ended(&self, key: &[u8]) {
        if let Ok(key) = std::str::from_utf8(key)
            && let Some((ended, _)) = self.0.lock().get(key)
        {
            ended.notify_waiters();
        }
    }

    fn enter(&self, key: String) -> Waiter<'_> {
        let mut waiters = self.0.lock();
        let entry = waiters.entry(key.clone()).or_default();
        entry.1 += 1;
        Waiter { all: self, key, ended: entry.0.clone() }
    }
}

struct Waiter<'a> {
    all: &'a Waiters,
    key: String,
    ended: Arc<Notify>,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut waiters = self.all.0.lock();
        if let Some(entry) = waiters.get_mut(&self.key) {
            entry.1 -= 1;
            if entry.1 == 0 {
                waiters.remove(&self.key);
            }
        }
    }
}

/// Parts of the ledger in a Cluster: of each, all keys lie in one slot, with a memory of their own, for each node can lose its own.
const PARTS: usize = 64;

/// The Redis [`Ledger`].
pub(super) struct RedisLedger {
    link: Arc<Link>,
    waiters: Arc<Waiters>,
    /// The channel on which ends are told.
    ended: String,
    /// Births of the memories as last seen, by part; 0: not seen yet.
    births: Vec<AtomicU64>,
}

impl RedisLedger {
    pub(super) fn new(link: Arc<Link>, waiters: Arc<Waiters>, ended: String) -> RedisLedger {
        let parts = if link.connector.target.kind == Kind::Cluster { PARTS } else { 1 };
        RedisLedger { link, waiters, ended, births: (0..parts).map(|_| AtomicU64::new(0)).collect() }
    }

    /// The part of a name, the key of its entry, and that of its part's memory.
    fn keys(&self, name: &str) -> (usize, [String; 2]) {
        let prefix = &self.link.options.prefix;
        if self.births.len() == 1 {
            return (0, [key(prefix, "ledger", name), format!("{prefix}ledger-memory")]);
        }
        // Any hash that all instances share will do.
        let part = name.bytes().fold(0usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(usize::from(byte))) % self.births.len();
        (part, [key(prefix, "ledger", &format!("{{l{part}}}{name}")), key(prefix, "ledger-memory", &format!("{{l{part}}}"))])
    }

    async fn step(&self, claim: &Claim, step: &'static str, life: Duration, value: Bytes) -> StoreResult<bool> {
        let (_, keys) = self.keys(&claim.key);
        let (claim, life, ended) = (claim.clone(), millis(life).to_string(), self.ended.clone());
        let run = |mut conn| async move {
            let (fence, ttl) = (claim.fence.to_string(), millis(claim.ttl).to_string());
            let args = [
                claim.owner.as_bytes(),
                step.as_bytes(),
                life.as_bytes(),
                &value,
                ended.as_bytes(),
                keys[0].as_bytes(),
                fence.as_bytes(),
                claim.fingerprint.as_bytes(),
                ttl.as_bytes(),
            ];
            scripts::STEP.run(&mut conn, &keys, &args).await
        };
        self.link.call(run).await
    }

    async fn enter(&self, name: &str, fingerprint: &str, lease: Duration, ttl: Duration, again: bool) -> StoreResult<Begun> {
        let (part, keys) = self.keys(name);
        let claim = Claim { key: name.to_owned(), owner: token(), fence: 0, fingerprint: fingerprint.to_owned(), ttl };
        let birth = &self.births[part];
        let (owner, marked, lease, ttl) = (claim.owner.clone(), claim.fingerprint.clone(), millis(lease).to_string(), millis(ttl).to_string());
        let (known, again) = (birth.load(Relaxed).to_string(), if again { "1" } else { "0" });
        let run = |mut conn| async move {
            let args = [owner.as_bytes(), marked.as_bytes(), lease.as_bytes(), ttl.as_bytes(), known.as_bytes(), again.as_bytes()];
            scripts::BEGIN.run(&mut conn, &keys, &args).await
        };
        let mut answer = self.link.call::<Vec<Value>, _>(run).await?.into_iter();
        let state = text(answer.next())?;
        let Some(Value::Int(born)) = answer.next() else { return Err(StoreError::Corrupt("the ledger's memory has no birth".into())) };
        birth.store(born.unsigned_abs(), Relaxed);
        match (state.as_str(), answer.next(), answer.next()) {
            ("owner", Some(Value::Int(fence)), _) => Ok(Begun::Owner(Claim { fence: fence.unsigned_abs(), ..claim })),
            ("done", fingerprint, Some(Value::BulkString(value))) => Ok(Begun::Done { fingerprint: text(fingerprint)?, value: value.into() }),
            ("unknown", fingerprint, _) => Ok(Begun::Unknown { fingerprint: text(fingerprint)? }),
            ("flight", fingerprint, _) => Ok(Begun::InFlight { fingerprint: text(fingerprint)? }),
            ("lost", Some(Value::Int(left)), _) => Ok(Begun::Lost { left: Duration::from_millis(left.unsigned_abs()) }),
            _ => Err(StoreError::Corrupt("a ledger entry is in no known state".into())),
        }
    }
}

fn text(value: Option<Value>) -> StoreResult<String> {
    match value {
        Some(Value::BulkString(bytes)) => String::from_utf8(bytes).map_err(|_| StoreError::Corrupt("a ledger entry is not UTF-8".into())),
        _ => Err(StoreError::Corrupt("a ledger entry lacks a part".into())),
    }
}

#[async_trait]
impl Ledger for RedisLedger {
    async fn begin(&self, name: &str, fingerprint: &str, lease: Duration, ttl: Duration) -> StoreResult<Begun> {
        self.enter(name, fingerprint, lease, ttl, false).await
    }

    async fn begin_again(&self, name: &str, fingerprint: &str, lease: Duration, ttl: Duration) -> StoreResult<Begun> {
        self.enter(name, fingerprint, lease, ttl, true).await
    }

    async fn acting(&self, owner: &Claim, lease: Duration) -> StoreResult<bool> {
        self.step(owner, "acting", lease, Bytes::new()).await
    }

    async fn renew(&self, owner: &Claim, lease: Duration) -> StoreResult<bool> {
        self.step(owner, "renew", lease, Bytes::new()).await
    }

    async fn complete(&self, owner: &Claim, value: Bytes, ttl: Duration) -> StoreResult<bool> {
        self.step(owner, "complete", ttl, value).await
    }

    async fn abandon(&self, owner: &Claim) -> StoreResult<bool> {
        self.step(owner, "abandon", Duration::ZERO, Bytes::new()).await
    }

    async fn wait(&self, name: &str, at_most: Duration) -> StoreResult<()> {
        let started = Instant::now();
        let waiter = self.waiters.enter(self.keys(name).1[0].clone());
        let mut look = FIRST_LOOK;
        loop {
            // Made before the look, so that an end between look and sleep is not missed.
            let ended = waiter.ended.notified();
            let keys = [waiter.key.clone()];
            let in_flight: bool = self.link.call(|mut conn| async move { scripts::IN_FLIGHT.run(&mut conn, &keys, &[]).await }).await?;
            let left = at_most.saturating_sub(started.elapsed());
            if !in_flight || left.is_zero() || tokio::time::timeout(look.min(left), ended).await.is_ok() {
                return Ok(());
            }
            look = (look * 2).min(LONGEST_LOOK);
        }
    }
}
