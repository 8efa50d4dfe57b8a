//! Counts with limits, and numbers that expire.

use super::Calls;
use super::shards::{Shard, Shards, after};
use crate::limits::{Clock, How, Meters};
use crate::{COUNTER_MAX, Charge, Charged, Counters, StoreResult};
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The embedded [`Counters`]. Counts with limits are bounded however many keys come, see [`Meters`].
pub(super) struct MemoryCounters {
    meters: Meters,
    clock: Clock,
    values: Shards<u64>,
    calls: Arc<Calls>,
}

impl MemoryCounters {
    pub(super) fn new(calls: Arc<Calls>) -> MemoryCounters {
        MemoryCounters { meters: Meters::default(), clock: Clock::default(), values: Shards::new(), calls }
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
    async fn charge(&self, charges: &[Charge], how: How) -> StoreResult<Charged> {
        self.calls.count();
        Ok(self.meters.charge_named(self.clock.now(), charges, how))
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
