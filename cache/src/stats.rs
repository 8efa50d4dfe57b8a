//! Counts for the metrics.

use dashmap::DashMap;
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Sums since the start, written by the engine.
#[derive(Debug, Default)]
pub struct Stats {
    pub(crate) memory_hits: AtomicU64,
    pub(crate) store_hits: AtomicU64,
    pub(crate) misses: AtomicU64,
    pub(crate) stale: AtomicU64,
    pub(crate) refreshes: AtomicU64,
    pub(crate) fills: AtomicU64,
    pub(crate) fill_errors: AtomicU64,
    pub(crate) revalidated: AtomicU64,
    pub(crate) stored: AtomicU64,
    pub(crate) encoded: AtomicU64,
    pub(crate) lock_waits: AtomicU64,
    pub(crate) lock_wait_micros: AtomicU64,
    pub(crate) lock_timeouts: AtomicU64,
    pub(crate) store_errors: AtomicU64,
    pub(crate) purged: AtomicU64,
    pub(crate) distrusted: AtomicU64,
    passes: DashMap<&'static str, AtomicU64>,
    refused: DashMap<&'static str, AtomicU64>,
}

impl Stats {
    pub(crate) fn pass(&self, reason: &'static str) {
        bump(&self.passes, reason);
    }

    pub(crate) fn refuse(&self, reason: &'static str) {
        bump(&self.refused, reason);
    }

    pub(crate) fn waited(&self, time: Duration) {
        self.lock_waits.fetch_add(1, Relaxed);
        self.lock_wait_micros.fetch_add(time.as_micros().min(u64::MAX as u128) as u64, Relaxed);
    }

    pub(crate) fn snapshot(&self) -> StatsSnapshot {
        let of = |counter: &AtomicU64| counter.load(Relaxed);
        StatsSnapshot {
            memory_hits: of(&self.memory_hits),
            store_hits: of(&self.store_hits),
            misses: of(&self.misses),
            stale: of(&self.stale),
            refreshes: of(&self.refreshes),
            passes: table(&self.passes),
            refused: table(&self.refused),
            fills: of(&self.fills),
            fill_errors: of(&self.fill_errors),
            revalidated: of(&self.revalidated),
            stored: of(&self.stored),
            encoded: of(&self.encoded),
            lock_waits: of(&self.lock_waits),
            lock_wait_total: Duration::from_micros(of(&self.lock_wait_micros)),
            lock_timeouts: of(&self.lock_timeouts),
            store_errors: of(&self.store_errors),
            purged: of(&self.purged),
            distrusted: of(&self.distrusted),
            ..StatsSnapshot::default()
        }
    }
}

fn bump(table: &DashMap<&'static str, AtomicU64>, reason: &'static str) {
    if let Some(counter) = table.get(reason) {
        counter.fetch_add(1, Relaxed);
        return;
    }
    table.entry(reason).or_default().fetch_add(1, Relaxed);
}

fn table(of: &DashMap<&'static str, AtomicU64>) -> BTreeMap<&'static str, u64> {
    of.iter().map(|row| (*row.key(), row.value().load(Relaxed))).collect()
}

/// The counts at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct StatsSnapshot {
    /// Fresh answers from this process's memory.
    pub memory_hits: u64,
    /// Fresh answers from the store.
    pub store_hits: u64,
    /// Requests answered by a fetch, their own or one that they joined.
    pub misses: u64,
    /// Answers after their time (stale-while-revalidate, stale-if-error, max-stale).
    pub stale: u64,
    /// Requests answered by a fetch because a caller with the right asked for it.
    pub refreshes: u64,
    /// Requests sent on uncached, by reason.
    pub passes: BTreeMap<&'static str, u64>,
    /// Fetched responses that were not stored, by reason.
    pub refused: BTreeMap<&'static str, u64>,
    /// Fetches begun.
    pub fills: u64,
    /// Fetches that failed, in the head or in the body.
    pub fill_errors: u64,
    /// Fetches answered by 304.
    pub revalidated: u64,
    /// Responses stored.
    pub stored: u64,
    /// Stored bodies that were encoded here.
    pub encoded: u64,
    /// Requests that waited for another's fill, in this process or in another.
    pub lock_waits: u64,
    /// Sum of those waits.
    pub lock_wait_total: Duration,
    /// Waits that were given up.
    pub lock_timeouts: u64,
    /// Calls of the store that failed.
    pub store_errors: u64,
    /// Entries removed from memory by purge or invalidation.
    pub purged: u64,
    /// Times the memory tier was emptied because messages may have been lost.
    pub distrusted: u64,
    /// Whether memory is trusted now: it is certain that every purge was heard here.
    pub memory_trusted: bool,
    /// Entries in memory now.
    pub memory_entries: u64,
    /// Bytes in memory now, overhead included.
    pub memory_bytes: u64,
    /// What memory may hold, bytes.
    pub memory_capacity: u64,
    /// Entries that had to make room.
    pub evictions: u64,
    /// Fills under way.
    pub in_flight: u64,
}
