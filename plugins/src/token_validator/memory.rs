//! What is remembered of tokens: good ones until they expire, bad ones briefly.
//!
//! The hot path of the plugin is [`Memory::recall`] of a good token: one keyed hash, one look into a sharded map, two words compared with
//! what they were when the token was last looked at; nothing is allocated, and no lock is taken that a writer holds for longer than an
//! insertion.

use super::{Refusal, logout::{self, Channel, Ids}, settings::Rules};
use dashmap::DashMap;
use http::{HeaderName, HeaderValue};
use parking_lot::Mutex;
use quick_cache::{UnitWeighter, sync::Cache};
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    future::Future,
    hash::{BuildHasher, Hasher},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tokio::sync::OnceCell;
use weir_cache::clock::Clock;
use weir_gateway::Identity;

/// Half of the keyed hash of a token.
pub(super) type Key = u128;

/// A token that is good. Times are in seconds since 1970.
pub(super) struct Known {
    pub(super) identity: Arc<Identity>,
    /// For the upstream.
    pub(super) fields: Arc<[(HeaderName, HeaderValue)]>,
    /// Whether it has the scopes and roles.
    pub(super) permitted: bool,
    /// By which a logout may name it.
    pub(super) ids: Ids,
    /// What was heard of logouts when it was last looked at.
    pub(super) news: AtomicU64,
    /// Then it must be checked again.
    pub(super) until: u64,
    /// Until then it is good enough while the auth service is away.
    pub(super) grace_until: u64,
}

/// What is known of a token.
pub(super) enum Recalled {
    /// It is good.
    Good(Arc<Known>),
    /// It was good, and must be checked again.
    Due(Arc<Known>),
    /// It is not good.
    Bad(Refusal),
    /// Nothing.
    Unknown,
}

/// Memories by the fingerprint of their rules, and channels by their name: they outlive a reload that still has a use for them, and no longer.
#[derive(Default)]
pub(crate) struct Memories {
    memories: Mutex<HashMap<[u8; 32], Weak<Memory>>>,
    channels: Mutex<HashMap<String, Weak<Channel>>>,
}

impl Memories {
    pub(super) fn of(&self, rules: &Rules) -> Arc<Memory> {
        let channel = self.channel(&rules.logout_channel);
        channel.keep_at_least(rules.logout_keep);
        let mut all = self.memories.lock();
        all.retain(|_, memory| memory.strong_count() > 0);
        if let Some(memory) = all.get(&rules.fingerprint).and_then(Weak::upgrade) {
            return memory;
        }
        let memory = Arc::new(Memory::new(rules, channel));
        all.insert(rules.fingerprint, Arc::downgrade(&memory));
        memory
    }

    /// The channel of this name.
    pub(crate) fn channel(&self, name: &str) -> Arc<Channel> {
        let mut all = self.channels.lock();
        all.retain(|_, channel| channel.strong_count() > 0);
        if let Some(channel) = all.get(name).and_then(Weak::upgrade) {
            return channel;
        }
        let channel = Arc::new(Channel::new(name));
        all.insert(name.to_owned(), Arc::downgrade(&channel));
        channel
    }
}

/// Keys are hashes already.
#[derive(Clone, Copy, Default)]
struct AsIs(u64);

impl BuildHasher for AsIs {
    type Hasher = AsIs;
    fn build_hasher(&self) -> AsIs {
        AsIs(0)
    }
}

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, byte| hash.rotate_left(8) ^ u64::from(*byte));
    }
    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64;
    }
}

type Flight = OnceCell<Result<Arc<Known>, Refusal>>;

/// One memory.
pub(super) struct Memory {
    /// SHA-256 over a random block of this process: nobody outside can make two tokens meet.
    hasher: Sha256,
    good: Cache<Key, Arc<Known>, UnitWeighter, AsIs>,
    bad: Cache<Key, (u64, Refusal), UnitWeighter, AsIs>,
    negative_ttl: u64,
    flights: DashMap<Key, Arc<Flight>>,
    pub(super) channel: Arc<Channel>,
    clock: Clock,
}

impl Memory {
    fn new(rules: &Rules, channel: Arc<Channel>) -> Memory {
        let mut block = [0; 64];
        // It fails only where the system has no randomness at all.
        if aws_lc_rs::rand::fill(&mut block).is_err() {
            tracing::error!("the system gives no random bytes: tokens are hashed without a secret");
        }
        let bad = (rules.size / 8).clamp(16, 10_000);
        Memory {
            hasher: Sha256::new_with_prefix(block),
            good: Cache::with(rules.size, rules.size as u64, UnitWeighter, AsIs::default(), Default::default()),
            bad: Cache::with(bad, bad as u64, UnitWeighter, AsIs::default(), Default::default()),
            negative_ttl: rules.negative_ttl,
            flights: DashMap::new(),
            channel,
            clock: Clock::system(),
        }
    }

    /// Seconds since 1970.
    pub(super) fn now(&self) -> u64 {
        self.clock.now()
    }

    pub(super) fn key(&self, token: &str) -> Key {
        let mut hasher = self.hasher.clone();
        hasher.update(token);
        let hash: [u8; 32] = hasher.finalize().into();
        hash.iter().take(16).fold(0, |key, byte| key << 8 | u128::from(*byte))
    }

    pub(super) fn recall(&self, key: &Key) -> Recalled {
        if let Some(known) = self.good.get(key) {
            let (then, news) = (known.news.load(Relaxed), self.channel.news());
            if then != news {
                if self.channel.is_revoked(&known.ids) {
                    self.good.remove(key);
                    return Recalled::Bad(Refusal::LoggedOut);
                }
                if logout::gaps(then) != logout::gaps(news) {
                    return Recalled::Due(known);
                }
                known.news.store(news, Relaxed);
            }
            return if self.now() < known.until { Recalled::Good(known) } else { Recalled::Due(known) };
        }
        match self.bad.get(key) {
            Some((until, why)) if self.now() < until => Recalled::Bad(why),
            _ => Recalled::Unknown,
        }
    }

    pub(super) fn keep(&self, key: Key, known: Arc<Known>) {
        self.bad.remove(&key);
        self.good.insert(key, known);
    }

    pub(super) fn refuse(&self, key: Key, why: Refusal) {
        self.good.remove(&key);
        if self.negative_ttl > 0 {
            self.bad.insert(key, (self.now() + self.negative_ttl, why));
        }
    }

    /// Runs `check`, or waits for the one that runs for the same token.
    pub(super) async fn once(
        &self,
        key: &Key,
        check: impl Future<Output = Result<Arc<Known>, Refusal>>,
    ) -> Result<Arc<Known>, Refusal> {
        let cell = self.flights.entry(*key).or_default().clone();
        let seat = Seat { memory: self, key, cell: Some(cell.clone()) };
        let found = cell.get_or_init(|| check).await.clone();
        drop(cell);
        drop(seat);
        found
    }
}

/// A place in a flight; the last to leave removes it.
struct Seat<'a> {
    memory: &'a Memory,
    key: &'a Key,
    cell: Option<Arc<Flight>>,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut mine = self.cell.take();
        self.memory.flights.remove_if(self.key, |_, cell| {
            let same = mine.as_ref().is_some_and(|m| Arc::ptr_eq(m, cell));
            // Given back under the map's lock, so that of two who leave at once one sees that it is the last.
            mine = None;
            same && Arc::strong_count(cell) == 1
        });
    }
}
