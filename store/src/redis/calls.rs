//! Blobs, locks and counters.

use super::keys::{key, millis};
use super::link::Link;
use super::{meters, scripts};
use super::url::Kind;
use crate::limits::How;
use crate::{Blobs, COUNTER_MAX, Charge, Charged, Counters, Lease, Locks, StoreError, StoreResult, token};
use async_trait::async_trait;
use bytes::Bytes;
use redis::cluster_routing::Slot;
use std::sync::Arc;
use std::time::Duration;

/// The fence counter of a lock outlives the lease by far: a sleeper must still find a higher one.
const TURN_LIFE: Duration = Duration::from_secs(24 * 3600);

/// Keys of one `UNLINK`.
const DELETED_AT_ONCE: usize = 500;

/// The Redis [`Blobs`], [`Locks`] and [`Counters`].
pub(super) struct RedisCalls(pub(super) Arc<Link>);

impl RedisCalls {
    fn key(&self, kind: &str, name: &str) -> String {
        key(&self.0.options.prefix, kind, name)
    }
}

#[async_trait]
impl Blobs for RedisCalls {
    async fn get(&self, name: &str) -> StoreResult<Option<Bytes>> {
        self.0.get(self.key("blob", name)).await
    }

    async fn put(&self, name: &str, value: Bytes, ttl: Duration, fence: Option<u64>) -> StoreResult<bool> {
        let blob = self.key("blob", name);
        let Some(fence) = fence else {
            let ttl = millis(ttl);
            return self
                .0
                .call::<(), _>(|mut conn| async move { redis::cmd("SET").arg(blob).arg(&value[..]).arg("PX").arg(ttl).query_async(&mut conn).await })
                .await
                .map(|()| true);
        };
        let keys = [blob, self.key("fence", name)];
        // The value may be there for `ttl`, and the mark for one `ttl` more.
        let (life, mark_life, fence) = (millis(ttl).to_string(), millis(ttl.saturating_mul(2)).to_string(), fence.to_string());
        let run = |mut conn| async move { scripts::PUT_FENCED.run(&mut conn, &keys, &[&value, life.as_bytes(), fence.as_bytes(), mark_life.as_bytes()]).await };
        self.0.call(run).await
    }

    async fn delete(&self, names: &[String]) -> StoreResult<u64> {
        let mut existed = 0;
        for chunk in names.chunks(DELETED_AT_ONCE) {
            let keys: Vec<String> = chunk.iter().map(|n| self.key("blob", n)).collect();
            existed += self.0.call::<u64, _>(|mut conn| async move { redis::cmd("UNLINK").arg(keys).query_async(&mut conn).await }).await?;
        }
        Ok(existed)
    }

    async fn patch(&self, name: &str, old: &[u8], new: &[u8]) -> StoreResult<bool> {
        if old.len() != new.len() {
            return Ok(false);
        }
        let keys = [self.key("blob", name)];
        self.0.call(|mut conn| async move { scripts::PATCH.run(&mut conn, &keys, &[old, new]).await }).await
    }
}

#[async_trait]
impl Locks for RedisCalls {
    async fn acquire(&self, name: &str, lease: Duration) -> StoreResult<Option<Lease>> {
        let keys = [self.key("lock", name), self.key("turn", name)];
        let owner = token();
        let (life, turn_life) = (millis(lease).to_string(), millis(TURN_LIFE.max(lease.saturating_mul(2))).to_string());
        let args = owner.clone();
        let run = |mut conn| async move { scripts::ACQUIRE.run(&mut conn, &keys, &[args.as_bytes(), life.as_bytes(), turn_life.as_bytes()]).await };
        let fence: Option<u64> = self.0.call(run).await?;
        Ok(fence.map(|fence| Lease { key: name.to_owned(), owner, fence }))
    }

    async fn renew(&self, held: &Lease, lease: Duration) -> StoreResult<bool> {
        let (keys, owner, life) = ([self.key("lock", &held.key)], held.owner.clone(), millis(lease).to_string());
        self.0.call(|mut conn| async move { scripts::RENEW.run(&mut conn, &keys, &[owner.as_bytes(), life.as_bytes()]).await }).await
    }

    async fn release(&self, held: &Lease) -> StoreResult<bool> {
        let (keys, owner) = ([self.key("lock", &held.key)], held.owner.clone());
        self.0.call(|mut conn| async move { scripts::RELEASE.run(&mut conn, &keys, &[owner.as_bytes()]).await }).await
    }
}

#[async_trait]
impl Counters for RedisCalls {
    async fn charge(&self, charges: &[Charge], how: How) -> StoreResult<Charged> {
        if charges.is_empty() {
            return Ok(Charged { allowed: true, readings: Vec::new() });
        }
        let keys: Vec<String> = charges.iter().map(|c| self.key("meter", &c.key)).collect();
        if self.0.connector.target.kind == Kind::Cluster && keys.iter().any(|k| Slot::for_key(k) != Slot::for_key(&keys[0])) {
            return Err(StoreError::Corrupt("on a Cluster, the keys of one charge must share a slot: give them one hash tag, as in {alice}:second and {alice}:minute".into()));
        }
        let args = meters::arguments(charges, how);
        let run = |mut conn| async move {
            let args: Vec<&[u8]> = args.iter().map(String::as_bytes).collect();
            meters::CHARGE.run(&mut conn, &keys, &args).await
        };
        let answer: Vec<Vec<u64>> = self.0.call(run).await?;
        meters::charged(charges, &answer)
    }

    async fn add(&self, name: &str, by: u64, ttl: Duration) -> StoreResult<u64> {
        let keys = [self.key("count", name)];
        let (by, ttl, most) = (by.min(COUNTER_MAX).to_string(), millis(ttl).to_string(), COUNTER_MAX.to_string());
        self.0.call(|mut conn| async move { scripts::ADD.run(&mut conn, &keys, &[by.as_bytes(), ttl.as_bytes(), most.as_bytes()]).await }).await
    }

    async fn peek(&self, name: &str) -> StoreResult<u64> {
        let name = self.key("count", name);
        let value: Option<u64> = self.0.call(|mut conn| async move { redis::cmd("GET").arg(name).query_async(&mut conn).await }).await?;
        Ok(value.unwrap_or(0))
    }
}
