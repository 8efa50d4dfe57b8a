//! What is remembered of tokens: good ones until they expire, bad ones briefly, logged-out ones for a set time.

use super::{Refusal, settings::{Mode, Rules}};
use dashmap::DashMap;
use http::{HeaderName, HeaderValue};
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};
use std::{
    borrow::Cow,
    collections::{HashMap, VecDeque},
    future::Future,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{sync::OnceCell, task::AbortHandle};
use weir_gateway::Identity;
use weir_store::{Bus, Message};

/// Keyed hash of a token.
pub(super) type Key = [u8; 32];

/// Logged-out tokens that are remembered at once; then the oldest goes.
const MOST_REVOKED: usize = 100_000;
/// Longest logout message that is read.
const LONGEST_MESSAGE: usize = 1024;

/// A token that is good. Times are in seconds since 1970.
pub(super) struct Known {
    pub(super) identity: Identity,
    /// For the upstream.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// Whether it has the scopes and roles.
    pub(super) permitted: bool,
    /// By which a logout may name it.
    pub(super) ids: [u128; 2],
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
    Bad(Cow<'static, str>),
    /// Nothing.
    Unknown,
}

/// Memories by the fingerprint of their rules: they outlive a reload that leaves the rules as they were, and no longer.
#[derive(Default)]
pub(crate) struct Memories(Mutex<HashMap<[u8; 32], Weak<Memory>>>);

impl Memories {
    pub(super) fn of(&self, rules: &Rules) -> Arc<Memory> {
        let mut all = self.0.lock();
        all.retain(|_, memory| memory.strong_count() > 0);
        if let Some(memory) = all.get(&rules.fingerprint).and_then(Weak::upgrade) {
            return memory;
        }
        let memory = Arc::new(Memory::new(rules));
        all.insert(rules.fingerprint, Arc::downgrade(&memory));
        memory
    }
}

type Flight = OnceCell<Result<Arc<Known>, Refusal>>;

/// One memory.
pub(super) struct Memory {
    /// SHA-256 over a random block of this process: nobody outside can make two tokens meet.
    hasher: Sha256,
    good: Cache<Key, Arc<Known>>,
    bad: Cache<Key, (u64, Cow<'static, str>)>,
    negative_ttl: u64,
    flights: DashMap<Key, Arc<Flight>>,
    revoked: Revoked,
    /// The auth service knows of logouts: after lost messages, asking it again is enough.
    forget_on_gap: bool,
    listening: AtomicBool,
    listener: Mutex<Option<AbortHandle>>,
}

#[derive(Default)]
struct Revoked {
    keep: u64,
    until: DashMap<u128, u64>,
    order: Mutex<VecDeque<(u64, u128)>>,
    len: AtomicUsize,
}

impl Memory {
    fn new(rules: &Rules) -> Memory {
        // Two hash maps' keys from the system's randomness, stretched to one block.
        let mut seed = Sha256::new();
        for _ in 0..4 {
            let state = std::hash::RandomState::new();
            for i in 0..4u64 {
                seed.update(std::hash::BuildHasher::hash_one(&state, i).to_le_bytes());
            }
        }
        let block = seed.finalize();
        let mut hasher = Sha256::new();
        hasher.update(block);
        hasher.update(block);
        Memory {
            hasher,
            good: Cache::new(rules.size),
            bad: Cache::new((rules.size / 8).clamp(16, 10_000)),
            negative_ttl: rules.negative_ttl,
            flights: DashMap::new(),
            revoked: Revoked { keep: rules.logout_keep, ..Revoked::default() },
            forget_on_gap: rules.mode != Mode::Local,
            listening: AtomicBool::new(false),
            listener: Mutex::new(None),
        }
    }

    pub(super) fn key(&self, token: &str) -> Key {
        let mut hasher = self.hasher.clone();
        hasher.update(token);
        hasher.finalize().into()
    }

    pub(super) fn recall(&self, key: &Key, now: u64) -> Recalled {
        if let Some(known) = self.good.get(key) {
            if self.is_revoked(&known.ids, now) {
                self.good.remove(key);
                return Recalled::Bad("the token was logged out".into());
            }
            return if now < known.until { Recalled::Good(known) } else { Recalled::Due(known) };
        }
        match self.bad.get(key) {
            Some((until, why)) if now < until => Recalled::Bad(why),
            _ => Recalled::Unknown,
        }
    }

    pub(super) fn keep(&self, key: Key, known: Arc<Known>) {
        self.bad.remove(&key);
        self.good.insert(key, known);
    }

    pub(super) fn refuse(&self, key: Key, why: Cow<'static, str>, now: u64) {
        self.good.remove(&key);
        if self.negative_ttl > 0 {
            self.bad.insert(key, (now + self.negative_ttl, why));
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

    pub(super) fn is_revoked(&self, ids: &[u128; 2], now: u64) -> bool {
        let named = |id: &u128| *id != 0 && self.revoked.until.get(id).is_some_and(|until| now < *until);
        self.revoked.len.load(Relaxed) > 0 && ids.iter().any(named)
    }

    fn revoke(&self, id: u128, now: u64) {
        let until = now + self.revoked.keep;
        let mut order = self.revoked.order.lock();
        self.revoked.until.insert(id, until);
        order.push_back((until, id));
        while order.len() > MOST_REVOKED || order.front().is_some_and(|(until, _)| *until <= now) {
            if let Some((until, oldest)) = order.pop_front() {
                // One that was named again has a later place in the queue.
                self.revoked.until.remove_if(&oldest, |_, u| *u <= until);
            }
        }
        self.revoked.len.store(order.len(), Relaxed);
    }

    /// Starts to listen for logouts, once. Called with the first request, for then there is a runtime to run on.
    pub(super) fn listen(self: &Arc<Self>, bus: &Arc<dyn Bus>, channel: &str) {
        if self.listening.load(Relaxed) || self.listening.swap(true, Relaxed) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            self.listening.store(false, Relaxed);
            return;
        };
        let task = runtime.spawn(listen(Arc::downgrade(self), bus.clone(), channel.to_owned()));
        *self.listener.lock() = Some(task.abort_handle());
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(listener) = self.listener.lock().take() {
            listener.abort();
        }
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

async fn listen(memory: Weak<Memory>, bus: Arc<dyn Bus>, channel: String) {
    loop {
        if let Ok(mut subscription) = bus.subscribe(&channel).await {
            while let Some(message) = subscription.messages.recv().await {
                let Some(memory) = memory.upgrade() else { return };
                match message {
                    Message::Data(payload) if payload.len() <= LONGEST_MESSAGE => {
                        let text = String::from_utf8_lossy(&payload);
                        let text = text.trim();
                        memory.revoke(id_of_jti(text), super::now());
                        if let Some(id) = id_of_hex(text) {
                            memory.revoke(id, super::now());
                        }
                    }
                    Message::Data(_) => {}
                    Message::Gap if memory.forget_on_gap => memory.good.clear(),
                    Message::Gap => {}
                }
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn first_half(digest: impl AsRef<[u8]>) -> u128 {
    digest.as_ref().iter().take(16).fold(0, |id, byte| id << 8 | u128::from(*byte))
}

/// By which a logout message names this token, when it holds its SHA-256.
pub(super) fn id_of_token(token: &str) -> u128 {
    first_half(Sha256::digest(token))
}

/// By which a logout message names a token with this `jti`.
pub(super) fn id_of_jti(jti: &str) -> u128 {
    first_half(Sha256::new().chain_update(b"jti\0").chain_update(jti).finalize())
}

fn id_of_hex(text: &str) -> Option<u128> {
    (text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())).then(|| u128::from_str_radix(&text[..32], 16).ok()).flatten()
}
