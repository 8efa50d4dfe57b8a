//! Values with a time to live, bounded in bytes.

use super::Calls;
use super::shards::{Shards, after};
use crate::{Blobs, StoreResult};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::time::Instant;

/// What one entry costs beside key and value: slot, ring place, allocations. An estimate.
const OVERHEAD: usize = 160;

/// A value, a fence mark, or both. The mark outlives the value: it must still refuse a late writer.
struct Entry {
    value: Option<(Bytes, Instant)>,
    mark: Option<(u64, Instant)>,
    /// Read since the hand last passed: spared once.
    used: AtomicBool,
}

impl Entry {
    fn weight(&self, key: &str) -> usize {
        OVERHEAD + key.len() + self.value.as_ref().map_or(0, |(v, _)| v.len())
    }

    fn end(&self, now: Instant) -> Instant {
        let value = self.value.as_ref().map_or(now, |v| v.1);
        value.max(self.mark.map_or(now, |m| m.1))
    }
}

/// The embedded [`Blobs`]. Over the bound, the hand of a clock goes over the entries: what was read since its last round is spared,
/// else the value goes, and with the next round its fence mark.
pub(super) struct MemoryBlobs {
    entries: Shards<Entry>,
    bytes: AtomicUsize,
    max_bytes: usize,
    /// The shard to which the hand goes next.
    hand: AtomicUsize,
    calls: Arc<Calls>,
}

impl MemoryBlobs {
    pub(super) fn new(max_bytes: usize, calls: Arc<Calls>) -> MemoryBlobs {
        MemoryBlobs { entries: Shards::new(), bytes: AtomicUsize::new(0), max_bytes, hand: AtomicUsize::new(0), calls }
    }

    /// Whether there is a live value under `key`.
    pub(super) fn holds(&self, key: &str) -> bool {
        let now = Instant::now();
        self.entries.of(key).get(key, now).is_some_and(|(entry, _)| entry.value.as_ref().is_some_and(|(_, end)| *end > now))
    }

    /// `key`, sharing the memory of the blob's own if there is one.
    pub(super) fn key(&self, key: &str) -> Arc<str> {
        self.entries.of(key).key(key).unwrap_or_else(|| key.into())
    }

    /// Frees space until the bound is met, or all there is was freed.
    fn make_room(&self) {
        let shards = self.entries.count();
        // Three visits each: the first may only take the `used` flags away, the second the values, the third the marks.
        for _ in 0..shards * 3 {
            if self.bytes.load(Relaxed) <= self.max_bytes {
                return;
            }
            let mut shard = self.entries.at(self.hand.fetch_add(1, Relaxed));
            let places = shard.places();
            for _ in 0..places {
                if self.bytes.load(Relaxed) <= self.max_bytes {
                    return;
                }
                shard.turn(|key, mut entry, _| {
                    if entry.value.is_some() && entry.used.swap(false, Relaxed) {
                        return Some(entry);
                    }
                    match entry.value.take() {
                        Some((value, _)) if entry.mark.is_some() => {
                            self.bytes.fetch_sub(value.len(), Relaxed);
                            Some(entry)
                        }
                        Some((value, _)) => {
                            self.bytes.fetch_sub(entry.weight(key) + value.len(), Relaxed);
                            None
                        }
                        None => {
                            self.bytes.fetch_sub(entry.weight(key), Relaxed);
                            None
                        }
                    }
                });
            }
        }
    }
}

#[async_trait]
impl Blobs for MemoryBlobs {
    async fn get(&self, key: &str) -> StoreResult<Option<Bytes>> {
        self.calls.count();
        let now = Instant::now();
        let shard = self.entries.of(key);
        let Some((entry, _)) = shard.get(key, now) else { return Ok(None) };
        Ok(entry.value.as_ref().filter(|(_, end)| *end > now).map(|(value, _)| {
            entry.used.store(true, Relaxed);
            value.clone()
        }))
    }

    async fn put(&self, key: &str, value: Bytes, ttl: Duration, fence: Option<u64>) -> StoreResult<bool> {
        self.calls.count();
        let now = Instant::now();
        if OVERHEAD + key.len() + value.len() > self.max_bytes {
            return Ok(false);
        }
        let mut shard = self.entries.of(key);
        let before = shard.get(key, now).and_then(|(e, _)| e.mark).filter(|(_, end)| *end > now);
        let mark = match (fence, before) {
            (Some(new), Some((old, _))) if old > new => return Ok(false),
            // The value may be there for `ttl`, and the mark for one `ttl` more.
            (Some(new), old) => {
                let end = after(now, ttl.saturating_mul(2));
                Some((new, old.map_or(end, |(_, old_end)| old_end.max(end))))
            }
            (None, old) => old,
        };
        let entry = Entry { value: Some((value, after(now, ttl))), mark, used: AtomicBool::new(false) };
        let (end, mut change) = (entry.end(now), entry.weight(key) as isize);
        let old = shard.insert(key, entry, end, now, |key, dead| change -= dead.weight(key) as isize);
        change -= old.map_or(0, |old| old.weight(key) as isize);
        // Still under the shard's lock: else another could free the entry before it was counted, and the sum pass below zero.
        self.bytes.fetch_add(change as usize, Relaxed); // wraps around for a negative change: a subtraction
        drop(shard);
        self.make_room();
        Ok(true)
    }

    async fn delete(&self, keys: &[String]) -> StoreResult<u64> {
        self.calls.count();
        let now = Instant::now();
        let mut existed = 0;
        for key in keys {
            let mut shard = self.entries.of(key);
            let Some((entry, end)) = shard.get_mut(key, now) else { continue };
            if let Some((value, value_end)) = entry.value.take() {
                existed += u64::from(value_end > now);
                self.bytes.fetch_sub(value.len(), Relaxed);
                // Without a mark nothing is left: the entry is over now and its place goes with the sweep.
                *end = entry.end(now);
            }
        }
        Ok(existed)
    }

    async fn patch(&self, key: &str, old: &[u8], new: &[u8]) -> StoreResult<bool> {
        self.calls.count();
        let now = Instant::now();
        let mut shard = self.entries.of(key);
        let Some((Entry { value: Some((value, end)), .. }, _)) = shard.get_mut(key, now) else { return Ok(false) };
        let fits = *end > now && old.len() == new.len() && value.starts_with(old);
        if fits {
            // Readers may still hold the bytes as they were, so these are copied.
            *value = [new, &value[old.len()..]].concat().into();
        }
        Ok(fits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blobs(max_bytes: usize) -> MemoryBlobs {
        MemoryBlobs::new(max_bytes, Arc::default())
    }

    #[tokio::test(start_paused = true)]
    async fn stays_within_its_bound_and_spares_what_is_read() {
        let blobs = blobs(2_000_000);
        let minute = Duration::from_secs(60);
        blobs.put("kept", Bytes::from(vec![1; 1000]), minute, None).await.unwrap();
        for n in 0..10_000 {
            assert!(blobs.put(&format!("k{n}"), Bytes::from(vec![0; 1000]), minute, (n % 2 == 0).then_some(n)).await.unwrap());
            assert!(blobs.bytes.load(Relaxed) <= 2_000_000, "{} bytes", blobs.bytes.load(Relaxed));
            assert!(blobs.get("kept").await.unwrap().is_some(), "lost after {n}");
        }
        assert!(blobs.get("k9999").await.unwrap().is_some());
        assert!(blobs.get("k0").await.unwrap().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn weighs_to_nothing_when_all_is_over() {
        let blobs = blobs(1 << 20);
        for n in 0..500 {
            blobs.put(&format!("k{n}"), Bytes::from(vec![0; n]), Duration::from_secs(1), Some(1)).await.unwrap();
            blobs.put(&format!("k{n}"), Bytes::from(vec![0; 10]), Duration::from_secs(1), Some(2)).await.unwrap();
        }
        let half: Vec<String> = (0..250).map(|n| format!("k{n}")).collect();
        assert_eq!(blobs.delete(&half).await.unwrap(), 250);
        assert_eq!(blobs.delete(&half).await.unwrap(), 0);
        tokio::time::advance(Duration::from_secs(10)).await;
        for n in 0..2000 {
            let key = format!("s{n}");
            blobs.put(&key, Bytes::new(), Duration::from_millis(1), None).await.unwrap();
            tokio::time::advance(Duration::from_millis(2)).await;
        }
        let held = blobs.entries.held();
        assert!(held <= 16 * 3, "{held} held");
        let bytes = blobs.bytes.load(Relaxed);
        assert!(bytes <= held * (OVERHEAD + 5) && bytes >= held * OVERHEAD, "{bytes} bytes for {held} entries");
    }

    #[tokio::test]
    async fn a_value_over_the_bound_is_refused() {
        let blobs = blobs(1000);
        assert!(!blobs.put("k", Bytes::from(vec![0; 1000]), Duration::from_secs(1), None).await.unwrap());
        assert!(blobs.get("k").await.unwrap().is_none());
    }
}
