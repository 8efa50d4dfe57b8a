//! Numbers that expire.

use super::Calls;
use super::shards::{Shard, Shards, after};
use crate::{COUNTER_MAX, Counters, StoreResult, Take, Taken};
use async_trait::async_trait;
use parking_lot::MutexGuard;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The embedded [`Counters`].
pub(super) struct MemoryCounters {
    values: Shards<u64>,
    calls: Arc<Calls>,
}

impl MemoryCounters {
    pub(super) fn new(calls: Arc<Calls>) -> MemoryCounters {
        MemoryCounters { values: Shards::new(), calls }
    }
}

fn value(shard: &Shard<u64>, key: &str, now: Instant) -> u64 {
    shard.get(key, now).map_or(0, |(v, _)| *v)
}

/// Adds `by`; the first use decides when the counter vanishes.
fn charge(shard: &mut Shard<u64>, key: &str, by: u64, ttl: Duration, now: Instant) -> u64 {
    if let Some((value, _)) = shard.get_mut(key, now) {
        *value = value.saturating_add(by).min(COUNTER_MAX);
        return *value;
    }
    let by = by.min(COUNTER_MAX);
    if by > 0 {
        shard.insert(key, by, after(now, ttl), now, |_, _| {});
    }
    by
}

#[async_trait]
impl Counters for MemoryCounters {
    async fn take(&self, takes: &[Take]) -> StoreResult<Taken> {
        self.calls.count();
        let now = Instant::now();
        // All shards that are touched, locked in rising order: two takes over the same keys can not lock each other out.
        let indices: Vec<usize> = takes.iter().map(|t| self.values.index(&t.key)).collect();
        let mut shards: BTreeMap<usize, MutexGuard<'_, Shard<u64>>> = BTreeMap::new();
        let mut sorted = indices.clone();
        sorted.sort_unstable();
        sorted.dedup();
        for index in sorted {
            shards.insert(index, self.values.at(index));
        }
        // A key may come twice: what is asked for is summed first.
        let mut asked: BTreeMap<&str, u64> = BTreeMap::new();
        let mut allowed = true;
        for (take, index) in takes.iter().zip(&indices) {
            let sum = asked.entry(&take.key).or_insert_with(|| shards.get(index).map_or(0, |s| value(s, &take.key, now)));
            *sum = sum.saturating_add(take.cost);
            allowed &= *sum <= take.limit.min(COUNTER_MAX);
        }
        if allowed {
            for (take, index) in takes.iter().zip(&indices) {
                if let Some(shard) = shards.get_mut(index) {
                    charge(shard, &take.key, take.cost, take.ttl, now);
                }
            }
        }
        let values = takes.iter().zip(&indices).map(|(take, index)| shards.get(index).map_or(0, |s| value(s, &take.key, now))).collect();
        Ok(Taken { allowed, values })
    }

    async fn add(&self, key: &str, by: u64, ttl: Duration) -> StoreResult<u64> {
        self.calls.count();
        Ok(charge(&mut self.values.of(key), key, by, ttl, Instant::now()))
    }

    async fn peek(&self, key: &str) -> StoreResult<u64> {
        self.calls.count();
        Ok(value(&self.values.of(key), key, Instant::now()))
    }
}
