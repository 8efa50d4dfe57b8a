//! Leases.

use super::Calls;
use super::shards::{Shards, after};
use crate::{Lease, Locks, StoreResult, token};
use async_trait::async_trait;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::time::Instant;

/// The embedded [`Locks`]. One number for all keys gives the fences: it rises for each key as well, and nothing is kept for free locks.
pub(super) struct MemoryLocks {
    owners: Shards<String>,
    fence: AtomicU64,
    calls: Arc<Calls>,
}

impl MemoryLocks {
    pub(super) fn new(calls: Arc<Calls>) -> MemoryLocks {
        MemoryLocks { owners: Shards::new(), fence: AtomicU64::new(1), calls }
    }
}

#[async_trait]
impl Locks for MemoryLocks {
    async fn acquire(&self, key: &str, lease: Duration) -> StoreResult<Option<Lease>> {
        self.calls.count();
        let now = Instant::now();
        let mut shard = self.owners.of(key);
        if shard.get(key, now).is_some() {
            return Ok(None);
        }
        let owner = token();
        // Under the shard's lock: who acquires later also gets the higher fence.
        let fence = self.fence.fetch_add(1, Relaxed);
        shard.insert(key, owner.clone(), after(now, lease), now, |_, _| {});
        Ok(Some(Lease { key: key.to_owned(), owner, fence }))
    }

    async fn renew(&self, held: &Lease, lease: Duration) -> StoreResult<bool> {
        self.calls.count();
        let now = Instant::now();
        match self.owners.of(&held.key).get_mut(&held.key, now) {
            Some((owner, end)) if *owner == held.owner => {
                *end = after(now, lease);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    async fn release(&self, held: &Lease) -> StoreResult<bool> {
        self.calls.count();
        let now = Instant::now();
        let mut shard = self.owners.of(&held.key);
        let ours = shard.get(&held.key, now).is_some_and(|(owner, _)| *owner == held.owner);
        if ours {
            shard.remove(&held.key, now);
        }
        Ok(ours)
    }
}
