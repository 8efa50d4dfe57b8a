//! A store that can be switched off, and whose messages can get lost.

use async_trait::async_trait;
use bytes::Bytes;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use weir_store::limits::How;
use weir_store::*;

/// A store whose parts can be switched off, and whose messages can get lost.
#[derive(Clone)]
pub struct Faulty {
    pub inner: Store,
    /// Every call fails.
    pub away: Arc<AtomicBool>,
    /// Messages are taken and lost.
    pub lossy: Arc<AtomicBool>,
    /// Calls so far.
    pub calls: Arc<AtomicU64>,
    /// Looks at a counter so far, the last one perhaps under way.
    pub peeks: Arc<AtomicU64>,
}

impl Faulty {
    pub fn new() -> Faulty {
        Faulty::over(Store::memory())
    }

    pub fn over(inner: Store) -> Faulty {
        Faulty { inner, away: Arc::default(), lossy: Arc::default(), calls: Arc::default(), peeks: Arc::default() }
    }

    pub fn store(&self) -> Store {
        let part = Arc::new(self.clone());
        Store { blobs: part.clone(), locks: part.clone(), counters: part.clone(), index: part.clone(), bus: part, ..self.inner.clone() }
    }

    fn check(&self) -> StoreResult<()> {
        self.calls.fetch_add(1, SeqCst);
        if self.away.load(SeqCst) { Err(StoreError::Away("switched off".into())) } else { Ok(()) }
    }
}

#[async_trait]
impl Blobs for Faulty {
    async fn get(&self, key: &str) -> StoreResult<Option<Bytes>> {
        self.check()?;
        self.inner.blobs.get(key).await
    }
    async fn put(&self, key: &str, value: Bytes, ttl: Duration, fence: Option<u64>) -> StoreResult<bool> {
        self.check()?;
        self.inner.blobs.put(key, value, ttl, fence).await
    }
    async fn delete(&self, keys: &[String]) -> StoreResult<u64> {
        self.check()?;
        self.inner.blobs.delete(keys).await
    }
    async fn patch(&self, key: &str, old: &[u8], new: &[u8]) -> StoreResult<bool> {
        self.check()?;
        self.inner.blobs.patch(key, old, new).await
    }
}

#[async_trait]
impl Locks for Faulty {
    async fn acquire(&self, key: &str, lease: Duration) -> StoreResult<Option<Lease>> {
        self.check()?;
        self.inner.locks.acquire(key, lease).await
    }
    async fn renew(&self, held: &Lease, lease: Duration) -> StoreResult<bool> {
        self.check()?;
        self.inner.locks.renew(held, lease).await
    }
    async fn release(&self, held: &Lease) -> StoreResult<bool> {
        self.check()?;
        self.inner.locks.release(held).await
    }
}

#[async_trait]
impl Bus for Faulty {
    async fn publish(&self, channel: &str, payload: Bytes) -> StoreResult<()> {
        self.check()?;
        if self.lossy.load(SeqCst) {
            return Ok(());
        }
        self.inner.bus.publish(channel, payload).await
    }
    async fn subscribe(&self, channel: &str) -> StoreResult<Subscription> {
        self.check()?;
        self.inner.bus.subscribe(channel).await
    }
}

#[async_trait]
impl Counters for Faulty {
    async fn charge(&self, charges: &[Charge], how: How) -> StoreResult<Charged> {
        self.check()?;
        self.inner.counters.charge(charges, how).await
    }
    async fn add(&self, key: &str, by: u64, ttl: Duration) -> StoreResult<u64> {
        self.check()?;
        self.inner.counters.add(key, by, ttl).await
    }
    async fn peek(&self, key: &str) -> StoreResult<u64> {
        self.peeks.fetch_add(1, SeqCst);
        self.check()?;
        self.inner.counters.peek(key).await
    }
}

#[async_trait]
impl Index for Faulty {
    async fn enter(&self, key: &str, names: &[String], ttl: Duration) -> StoreResult<()> {
        self.check()?;
        self.inner.index.enter(key, names, ttl).await
    }
    async fn find(&self, named: Named<'_>, from: Option<&Cursor>, limit: usize) -> StoreResult<Found> {
        self.check()?;
        self.inner.index.find(named, from, limit).await
    }
    async fn remove(&self, entries: &[Indexed]) -> StoreResult<u64> {
        self.check()?;
        self.inner.index.remove(entries).await
    }
}
