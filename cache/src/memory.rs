//! The tier in this process: bounded in bytes, admission by S3-FIFO (a scan of cold keys does not push the hot ones out), lookups
//! that neither allocate nor copy.

use crate::{entry::Entry, vary::Spec};
use ahash::RandomState;
use quick_cache::{Equivalent, Lifecycle, OptionsBuilder, Weighter, sync::Cache};
use sha2::{Digest, Sha256};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Bytes that an entry costs beside what it holds: structs, reference counts, the table's slot, the allocator's rounding.
const OVERHEAD: u64 = 640;

/// What a response is stored under: the deployment, the primary key, and, where responses vary, which variant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StoredKey {
    /// Deployment id.
    pub epoch: Arc<str>,
    /// Primary key.
    pub key: Arc<str>,
    /// Empty for the primary entry.
    pub variant: Arc<str>,
}

impl StoredKey {
    /// The key of the primary entry.
    pub fn primary(epoch: &Arc<str>, key: &str) -> StoredKey {
        // The empty text is shared by all.
        StoredKey { epoch: epoch.clone(), key: key.into(), variant: Arc::default() }
    }

    /// Another variant under the same primary key.
    pub fn with_variant(&self, variant: &str) -> StoredKey {
        StoredKey { epoch: self.epoch.clone(), key: self.key.clone(), variant: variant.into() }
    }

    /// The whole key in one string, for comparison inside stored values.
    pub fn text(&self) -> String {
        [&*self.epoch, "\0", &*self.key, "\0", &*self.variant].concat()
    }

    /// The key in the store: `{hash}` first, so that all that belongs to one primary key lies in one slot of a cluster, then the
    /// readable key as far as it is short, then the variant.
    pub fn store_key(&self, class: &str) -> String {
        let mut hasher = Sha256::new();
        hasher.update(self.epoch.as_bytes());
        hasher.update([0]);
        hasher.update(self.key.as_bytes());
        let digest = hasher.finalize();
        let mut text = String::with_capacity(48 + self.epoch.len() + self.key.len().min(200) + self.variant.len());
        text.push_str(class);
        text.push_str(":{");
        let mut digits = [0; 32];
        for (byte, pair) in digest.iter().zip(digits.chunks_exact_mut(2)) {
            pair.copy_from_slice(&[b"0123456789abcdef"[usize::from(byte >> 4)], b"0123456789abcdef"[usize::from(byte & 15)]]);
        }
        text.push_str(std::str::from_utf8(&digits).unwrap_or_default());
        text.push_str("}:");
        text.push_str(&self.epoch);
        text.push(':');
        let mut end = self.key.len().min(200);
        while !self.key.is_char_boundary(end) {
            end -= 1;
        }
        text.push_str(&self.key[..end]);
        if !self.variant.is_empty() {
            text.push('#');
            text.push_str(&self.variant);
        }
        text
    }
}

/// A key to look up, borrowed.
#[derive(Hash)]
struct KeyRef<'a> {
    epoch: &'a str,
    key: &'a str,
    variant: &'a str,
}

impl Equivalent<StoredKey> for KeyRef<'_> {
    fn equivalent(&self, stored: &StoredKey) -> bool {
        *self.key == *stored.key && *self.variant == *stored.variant && *self.epoch == *stored.epoch
    }
}

/// What can stand under a key.
#[derive(Debug, Clone)]
pub enum Slot {
    /// A response.
    Entry(Arc<Entry>),
    /// Under a primary key: its responses vary by these fields.
    Spec(Arc<Spec>),
    /// Proved uncacheable: pass until then (milliseconds since 1970).
    Pass {
        /// When the mark ends.
        until_ms: u64,
        /// Why it is not kept.
        reason: &'static str,
    },
}

#[derive(Debug, Clone)]
struct Weigh;

impl Weighter<StoredKey, Slot> for Weigh {
    fn weight(&self, key: &StoredKey, slot: &Slot) -> u64 {
        let names = (key.key.len() + key.variant.len()) as u64;
        OVERHEAD
            + names
            + match slot {
                Slot::Entry(entry) => entry.weight(),
                Slot::Spec(spec) => spec.weight(),
                Slot::Pass { .. } => 0,
            }
    }
}

#[derive(Debug, Clone, Default)]
struct CountEvictions(Arc<AtomicU64>);

impl Lifecycle<StoredKey, Slot> for CountEvictions {
    type RequestState = ();

    fn on_evict(&self, (): &mut (), _key: StoredKey, _slot: Slot) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The memory tier.
pub struct Memory {
    slots: Cache<StoredKey, Slot, Weigh, RandomState, CountEvictions>,
    evictions: CountEvictions,
    capacity: u64,
}

impl Memory {
    /// An empty tier that holds `bytes` at most, overhead included.
    pub fn new(bytes: u64) -> Memory {
        // A shard refuses what is larger than itself, so small tiers get few shards.
        let cores = std::thread::available_parallelism().map_or(4, |n| n.get()) as u64;
        let shards = (bytes / (16 << 20)).clamp(1, cores * 4) as usize;
        let evictions = CountEvictions::default();
        let entries = (bytes / 8192).clamp(64, 4_000_000) as usize;
        let build = |shards: usize| OptionsBuilder::new().estimated_items_capacity(entries).weight_capacity(bytes).shards(shards).build();
        let options = match build(shards).or_else(|_| build(1)) {
            Ok(options) => options,
            // All mandatory fields are given above; the builder has no other reason to refuse.
            Err(error) => unreachable!("cache options: {error:?}"),
        };
        let slots = Cache::with_options(options, Weigh, RandomState::new(), evictions.clone());
        Memory { slots, evictions, capacity: bytes }
    }

    /// What stands under the key. Copies nothing but a reference count.
    #[inline]
    pub fn get(&self, epoch: &str, key: &str, variant: &str) -> Option<Slot> {
        self.slots.get(&KeyRef { epoch, key, variant })
    }

    /// Puts a slot in place of what stands there.
    pub fn insert(&self, key: StoredKey, slot: Slot) {
        self.slots.insert(key, slot);
    }

    /// Puts an entry, unless a younger one stands there already.
    pub fn insert_newer(&self, key: &StoredKey, entry: &Arc<Entry>) {
        if let Some(Slot::Entry(there)) = self.get(&key.epoch, &key.key, &key.variant)
            && there.response_ms() > entry.response_ms()
        {
            return;
        }
        self.slots.insert(key.clone(), Slot::Entry(entry.clone()));
    }

    /// Whether this very entry stands under the key.
    pub(crate) fn holds(&self, key: &StoredKey, entry: &Arc<Entry>) -> bool {
        let there = self.slots.peek(&KeyRef { epoch: &key.epoch, key: &key.key, variant: &key.variant });
        matches!(there, Some(Slot::Entry(there)) if Arc::ptr_eq(&there, entry))
    }

    /// Puts an entry in place of another, if that one still stands there; it is weighed anew.
    pub(crate) fn swap(&self, key: &StoredKey, old: &Arc<Entry>, new: Arc<Entry>) {
        if self.holds(key, old) {
            let _ = self.slots.replace(key.clone(), Slot::Entry(new), true);
        }
    }

    /// Removes a slot; whether there was one.
    pub fn remove(&self, epoch: &str, key: &str, variant: &str) -> bool {
        self.slots.remove(&KeyRef { epoch, key, variant }).is_some()
    }

    /// Everything for which `wanted` holds, with its key. Goes over the whole tier.
    pub fn all(&self, wanted: impl Fn(&StoredKey, &Slot) -> bool) -> Vec<(StoredKey, Slot)> {
        self.slots.iter().filter(|(key, slot)| wanted(key, slot)).collect()
    }

    /// Removes everything.
    pub fn clear(&self) {
        self.slots.clear();
    }

    /// Entries now.
    pub fn len(&self) -> u64 {
        self.slots.len() as u64
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Bytes now, overhead included.
    pub fn bytes(&self) -> u64 {
        self.slots.weight()
    }

    /// Bytes at most.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Slots that had to make room since the start.
    pub fn evictions(&self) -> u64 {
        self.evictions.0.load(Ordering::Relaxed)
    }
}
