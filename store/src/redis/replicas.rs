//! Reading values from replicas of a standalone server: one may be near where the primary is far.
//!
//! Only a value that is there is taken from a replica. What it does not have, and everything but reading, goes to the primary, so that a replica
//! that lags behind costs a round trip and never a wrong "not there". A removal is over only when the replicas have it too (`WAIT`); a replica
//! that does not say so in time is not asked for a while.

use super::calls::RedisCalls;
use crate::{Blobs, StoreResult};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::time::Instant;

/// How long replicas are left alone after they were late with a removal.
const DISTRUST: Duration = Duration::from_secs(10);

/// [`Blobs`] over a primary and its replicas.
pub(super) struct ReplicaReads {
    primary: Arc<RedisCalls>,
    replicas: Vec<RedisCalls>,
    next: AtomicUsize,
    distrusted_until: Mutex<Option<Instant>>,
}

impl ReplicaReads {
    pub(super) fn new(primary: Arc<RedisCalls>, replicas: Vec<RedisCalls>) -> ReplicaReads {
        ReplicaReads { primary, replicas, next: AtomicUsize::new(0), distrusted_until: Mutex::new(None) }
    }

    /// The replica whose turn it is, if it answers and is trusted.
    fn turn(&self) -> Option<&RedisCalls> {
        if self.distrusted_until.lock().is_some_and(|until| Instant::now() < until) {
            return None;
        }
        let start = self.next.fetch_add(1, Relaxed);
        (0..self.replicas.len()).map(|i| &self.replicas[(start + i) % self.replicas.len()]).find(|r| r.0.check().is_ok())
    }

    /// Waits until every replica has what was removed. The wait holds up the shared connection, so that it is short, and not tried again
    /// while replicas are distrusted anyway.
    async fn settle(&self) {
        {
            let mut until = self.distrusted_until.lock();
            if until.is_some_and(|until| Instant::now() < until) {
                *until = Some(Instant::now() + DISTRUST);
                return;
            }
        }
        let (all, patience) = (self.replicas.len(), self.primary.0.options.deadline.as_millis() as u64 / 2);
        let run = |mut conn| async move { redis::cmd("WAIT").arg(all).arg(patience.max(1)).query_async(&mut conn).await };
        let done = self.primary.0.call::<usize, _>(run).await.is_ok_and(|reached| reached >= all);
        if !done {
            *self.distrusted_until.lock() = Some(Instant::now() + DISTRUST);
        }
    }
}

#[async_trait]
impl Blobs for ReplicaReads {
    async fn get(&self, name: &str) -> StoreResult<Option<Bytes>> {
        if let Some(replica) = self.turn()
            && let Ok(Some(value)) = replica.get(name).await
        {
            return Ok(Some(value));
        }
        self.primary.get(name).await
    }

    async fn put(&self, name: &str, value: Bytes, ttl: Duration, fence: Option<u64>) -> StoreResult<bool> {
        self.primary.put(name, value, ttl, fence).await
    }

    async fn delete(&self, names: &[String]) -> StoreResult<u64> {
        let existed = self.primary.delete(names).await?;
        self.settle().await;
        Ok(existed)
    }

    async fn patch(&self, name: &str, old: &[u8], new: &[u8]) -> StoreResult<bool> {
        let patched = self.primary.patch(name, old, new).await?;
        if patched {
            self.settle().await;
        }
        Ok(patched)
    }
}
