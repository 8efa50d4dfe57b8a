//! The embedded back end: this process only, nothing survives it. Times are tokio's, so a test may pause them.

mod blobs;
mod counters;
mod index;
mod ledger;
mod locks;
mod shards;

use crate::fanout::Fanout;
use crate::{Bus, Health, Store, StoreResult, StoreTotals, Subscription};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The bound on blobs of [`Store::memory`]: 256 MiB.
pub const DEFAULT_BLOB_BYTES: usize = 256 << 20;

/// Counts the calls.
#[derive(Default)]
struct Calls(AtomicU64);

impl Calls {
    fn count(&self) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// Opens an empty store whose blobs, keys and book-keeping included, take about `max_blob_bytes` at most. Starts no task.
pub(crate) fn open(max_blob_bytes: usize) -> Store {
    let calls = Arc::new(Calls::default());
    let blobs = Arc::new(blobs::MemoryBlobs::new(max_blob_bytes, calls.clone()));
    Store {
        index: Arc::new(index::MemoryIndex::new(blobs.clone(), calls.clone())),
        blobs,
        locks: Arc::new(locks::MemoryLocks::new(calls.clone())),
        counters: Arc::new(counters::MemoryCounters::new(calls.clone())),
        ledger: Arc::new(ledger::MemoryLedger::new(calls.clone())),
        bus: Arc::new(MemoryBus { fanout: Fanout::default(), calls: calls.clone() }),
        health: Arc::new(MemoryHealth { calls }),
    }
}

struct MemoryBus {
    fanout: Fanout,
    calls: Arc<Calls>,
}

#[async_trait]
impl Bus for MemoryBus {
    async fn publish(&self, channel: &str, payload: Bytes) -> StoreResult<()> {
        self.calls.count();
        self.fanout.publish(channel, &payload);
        Ok(())
    }

    async fn subscribe(&self, channel: &str) -> StoreResult<Subscription> {
        self.calls.count();
        Ok(self.fanout.subscribe(channel))
    }
}

struct MemoryHealth {
    calls: Arc<Calls>,
}

impl Health for MemoryHealth {
    fn kind(&self) -> &'static str {
        "memory"
    }

    fn address(&self) -> String {
        "memory".into()
    }

    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    fn totals(&self) -> StoreTotals {
        StoreTotals { calls: self.calls.0.load(Relaxed), ..StoreTotals::default() }
    }
}
