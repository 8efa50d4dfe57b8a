//! The engine: memory, then store, then one fill.

use crate::{
    CacheRequest, Entry, Fetch, Outcome, Plan, Report, Stats, StatsSnapshot, Tier, Verdict, Waiting,
    clock::Clock,
    codec::Stored,
    encoder::Encoder,
    flight::{Flights, Phase, Progress},
    memory::{Memory, Slot, StoredKey},
    places::Places,
    recent::Recent,
    serve::Call,
    tier::Wake,
    trust::Trust,
};
use dashmap::DashMap;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{sync::watch, time::Instant};
use weir_store::Store;

/// What an engine is made with.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// What the memory tier may hold, bytes, overhead included.
    pub memory_bytes: u64,
    /// What time it is.
    pub clock: Clock,
    /// Whether bodies above 4 KB are packed (zstd) in a store at the other end of a wire. The embedded store keeps the bytes that memory has.
    pub store_zstd: bool,
    /// How long memory is trusted while it is not certain that every purge was heard here: while the store gives no answer, or messages are lost.
    pub trust: Duration,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions { memory_bytes: 256 << 20, clock: Clock::system(), store_zstd: true, trust: Duration::from_secs(5) }
    }
}

/// The cache of one process.
pub struct Engine {
    /// Tells this instance's messages from others'.
    pub(crate) id: u64,
    pub(crate) store: Store,
    /// Whether the store is at the other end of a wire.
    pub(crate) remote: bool,
    /// Whether bodies are packed for the store.
    pub(crate) packs: bool,
    pub(crate) encoder: Encoder,
    pub(crate) memory: Memory,
    pub(crate) clock: Clock,
    pub(crate) stats: Stats,
    pub(crate) flights: Flights,
    /// Purges of the last while.
    pub(crate) recent: Recent,
    /// Whether all purges were heard.
    pub(crate) trust: Arc<Trust>,
    /// Who may ask the origin.
    pub(crate) places: Places,
    /// Fills that wait for other instances, by lock key.
    pub(crate) wakes: DashMap<String, Arc<Wake>>,
    pub(crate) started: AtomicBool,
    /// Closes with the engine.
    pub(crate) open: watch::Sender<()>,
}

impl Engine {
    /// An engine over a store. Needs no runtime.
    pub fn new(store: Store, options: EngineOptions) -> Arc<Engine> {
        let remote = store.health.kind() != "memory";
        Arc::new(Engine {
            id: fastrand::u64(..),
            remote,
            packs: options.store_zstd && remote,
            encoder: Encoder::new(),
            store,
            memory: Memory::new(options.memory_bytes),
            clock: options.clock,
            stats: Stats::default(),
            flights: Flights::default(),
            recent: Recent::default(),
            trust: Arc::new(Trust::new(options.trust)),
            places: Places::default(),
            wakes: DashMap::new(),
            started: AtomicBool::new(false),
            open: watch::Sender::new(()),
        })
    }

    /// The entry under a primary key in memory, whatever its age, unless purges may have been missed; no variants, no waiting, nothing allocated
    /// or copied. The caller
    /// chooses an encoding with [`Entry::pick`], looks at [`Entry::is_fresh`] and [`Entry::wants_early_refresh`], counts what it serves with [`Engine::count_hit`], and
    /// sends everything else through [`Engine::serve`].
    #[inline]
    pub fn peek(&self, epoch: &str, key: &str) -> Option<Arc<Entry>> {
        if !self.trust.is_whole() {
            return None;
        }
        match self.memory.get(epoch, key, "") {
            Some(Slot::Entry(entry)) => Some(entry),
            _ => None,
        }
    }

    /// The entry under a primary key in the store, whatever its age, where no tier in memory stands before it; else, and for whatever else lies
    /// there, `None`: then [`Engine::serve`] decides. For the caller of [`Engine::peek`], and with the same duties.
    pub async fn look(&self, epoch: &str, key: &str) -> Option<Arc<Entry>> {
        if self.memory.capacity() > 0 {
            return None;
        }
        let key = StoredKey { epoch: epoch.into(), key: key.into(), variant: Arc::default() };
        match self.read(&key).await.ok()?.stored? {
            Stored::Entry(entry) => Some(entry),
            Stored::Spec(_) | Stored::Pass { .. } => None,
        }
    }

    /// What a fill that is under way here brings under a primary key, as soon as it is stored, and what is to be told of it: for the caller of
    /// [`Engine::peek`] who found nothing. `None`: none is under way, or it has something to say that [`Engine::serve`] must judge; also at once
    /// when its answer begins and the rest is still to come.
    pub async fn joined(&self, epoch: &str, key: &str) -> Option<(Arc<Entry>, Report)> {
        if !self.trust.is_whole() {
            return None;
        }
        let began = Instant::now();
        let flight = self.flights.of(&StoredKey { epoch: epoch.into(), key: key.into(), variant: Arc::default() })?;
        let mut steps = flight.progress.subscribe();
        let pending = |progress: &Progress| matches!(progress.phase, Phase::Looking | Phase::Fetching) && progress.interim.is_empty() && progress.stale.is_none();
        let head = match &steps.wait_for(|progress| !pending(progress)).await.ok()?.phase {
            Phase::Streaming(head) if head.variant.is_none() => head.clone(),
            _ => return None,
        };
        let entry = head.entry.clone()?;
        let report = Report {
            fwd: Some("uri-miss"),
            fwd_status: Some(head.status.as_u16()),
            stored: true,
            collapsed: true,
            ttl: head.ttl,
            key: Some(key.to_owned()),
            waited: began.elapsed(),
            ..Report::new(Verdict::Miss)
        };
        Some((entry, report))
    }

    /// Counts an answer that was served after [`Engine::joined`].
    pub fn count_joined(&self, report: &Report) {
        self.stats.misses.fetch_add(1, Relaxed);
        self.stats.waited(report.waited);
    }

    /// Counts a hit that was served after [`Engine::peek`] or [`Engine::look`].
    #[inline]
    pub fn count_hit(&self, tier: Tier) {
        match tier {
            Tier::Memory => &self.stats.memory_hits,
            Tier::Store => &self.stats.store_hits,
        }
        .fetch_add(1, Relaxed);
    }

    /// Answers a request from the cache, or fetches, or says that the request must be forwarded as it came.
    ///
    /// Dropping the future loses nothing: a fill that it began goes on. Trouble with the store is never an outcome. `client` hears the interim
    /// answers to the fetch that it waits for.
    pub async fn serve(self: &Arc<Self>, plan: &Plan, request: &CacheRequest, fetch: Arc<dyn Fetch>, client: &mut dyn Waiting) -> Outcome {
        Call::new(self, plan, request, fetch, client).run().await
    }

    /// The clock that entries are judged by.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Counts since the start.
    pub fn stats(&self) -> StatsSnapshot {
        StatsSnapshot {
            memory_entries: self.memory.len(),
            memory_bytes: self.memory.bytes(),
            memory_capacity: self.memory.capacity(),
            evictions: self.memory.evictions(),
            in_flight: self.flights.len(),
            memory_trusted: self.trust.is_whole(),
            ..self.stats.snapshot()
        }
    }
}
