//! One effect per key.

use super::keys::{key, millis};
use super::link::Link;
use super::scripts;
use crate::{Begun, Lease, Ledger, StoreError, StoreResult, token};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use redis::Value;
use std::collections::HashMap;
use std::sync::Arc;
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

/// The Redis [`Ledger`].
pub(super) struct RedisLedger {
    link: Arc<Link>,
    waiters: Arc<Waiters>,
    /// The channel on which ends are told.
    ended: String,
}

impl RedisLedger {
    pub(super) fn new(link: Arc<Link>, waiters: Arc<Waiters>, ended: String) -> RedisLedger {
        RedisLedger { link, waiters, ended }
    }

    fn key(&self, name: &str) -> String {
        key(&self.link.options.prefix, "ledger", name)
    }

    async fn step(&self, owner: &Lease, step: &'static str, life: Duration, value: Bytes) -> StoreResult<bool> {
        let (keys, token, life, ended) = ([self.key(&owner.key)], owner.owner.clone(), millis(life).to_string(), self.ended.clone());
        let run = |mut conn| async move {
            let args = [token.as_bytes(), step.as_bytes(), life.as_bytes(), &value, ended.as_bytes(), keys[0].as_bytes()];
            scripts::STEP.run(&mut conn, &keys, &args).await
        };
        self.link.call(run).await
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
        let keys = [self.key(name)];
        let owner = token();
        let (token, fingerprint, lease, ttl) = (owner.clone(), fingerprint.to_owned(), millis(lease).to_string(), millis(ttl).to_string());
        let run = |mut conn| async move {
            scripts::BEGIN.run(&mut conn, &keys, &[token.as_bytes(), fingerprint.as_bytes(), lease.as_bytes(), ttl.as_bytes()]).await
        };
        let mut answer = self.link.call::<Vec<Value>, _>(run).await?.into_iter();
        let state = text(answer.next())?;
        match (state.as_str(), answer.next(), answer.next()) {
            ("owner", Some(Value::Int(fence)), _) => Ok(Begun::Owner(Lease { key: name.to_owned(), owner, fence: fence.unsigned_abs() })),
            ("done", fingerprint, Some(Value::BulkString(value))) => Ok(Begun::Done { fingerprint: text(fingerprint)?, value: value.into() }),
            ("unknown", fingerprint, _) => Ok(Begun::Unknown { fingerprint: text(fingerprint)? }),
            ("flight", fingerprint, _) => Ok(Begun::InFlight { fingerprint: text(fingerprint)? }),
            _ => Err(StoreError::Corrupt("a ledger entry is in no known state".into())),
        }
    }

    async fn acting(&self, owner: &Lease, lease: Duration) -> StoreResult<bool> {
        self.step(owner, "acting", lease, Bytes::new()).await
    }

    async fn renew(&self, owner: &Lease, lease: Duration) -> StoreResult<bool> {
        self.step(owner, "renew", lease, Bytes::new()).await
    }

    async fn complete(&self, owner: &Lease, value: Bytes, ttl: Duration) -> StoreResult<bool> {
        self.step(owner, "complete", ttl, value).await
    }

    async fn abandon(&self, owner: &Lease) -> StoreResult<bool> {
        self.step(owner, "abandon", Duration::ZERO, Bytes::new()).await
    }

    async fn wait(&self, name: &str, at_most: Duration) -> StoreResult<()> {
        let started = Instant::now();
        let waiter = self.waiters.enter(self.key(name));
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
