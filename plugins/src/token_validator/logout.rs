//! Logged-out tokens: named by messages on the store's channel, and marked in the store for instances that were not there to hear.

use dashmap::DashMap;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::{
    collections::VecDeque,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::{AcqRel, Acquire, Relaxed, Release}},
    },
    time::Duration,
};
use tokio::task::AbortHandle;
use weir_cache::clock::Clock;
use weir_store::{Bus, Message, Store, StoreResult};

/// Logged-out tokens that are remembered at once; then the oldest goes. The mark in the store stays.
const MOST: usize = 100_000;
/// Longest message that is read.
const LONGEST_MESSAGE: usize = 1024;
/// How long a logged-out token stays refused where no plugin says so.
pub(crate) const KEPT: u64 = 24 * 3600;

/// By which a logout may name a token: the hash of its text, the hash of what its signature is over, the hash of its `jti` (0: it has none).
/// Whoever holds a token may be able to write its signature in another way that verifies too; the second hash stays the same then.
pub(super) type Ids = [u128; 3];

/// The logouts of one channel, as this process knows them.
pub(crate) struct Channel {
    name: String,
    /// How long a logged-out token stays refused, in seconds: the longest that a plugin on this channel wants.
    keep: AtomicU64,
    /// Rises with each logout by one, and by 2^32 each time that messages may have been lost.
    news: AtomicU64,
    until: DashMap<u128, u64>,
    order: Mutex<VecDeque<(u64, u128)>>,
    clock: Clock,
    listening: AtomicBool,
    listener: Mutex<Option<AbortHandle>>,
}

/// How often messages may have been lost, of a value of [`Channel::news`].
pub(super) fn gaps(news: u64) -> u64 {
    news >> 32
}

impl Channel {
    pub(super) fn new(name: &str) -> Channel {
        Channel {
            name: name.to_owned(),
            keep: AtomicU64::new(0),
            news: AtomicU64::new(0),
            until: DashMap::new(),
            order: Mutex::default(),
            clock: Clock::system(),
            listening: AtomicBool::new(false),
            listener: Mutex::default(),
        }
    }

    pub(super) fn keep_at_least(&self, seconds: u64) {
        self.keep.fetch_max(seconds, Relaxed);
    }

    fn keep(&self) -> u64 {
        match self.keep.load(Relaxed) {
            0 => KEPT,
            keep => keep,
        }
    }

    /// Changes whenever something was heard: what was found good under another value must be looked at again.
    pub(super) fn news(&self) -> u64 {
        self.news.load(Acquire)
    }

    pub(super) fn is_revoked(&self, ids: &Ids) -> bool {
        let now = self.clock.now();
        ids.iter().any(|id| *id != 0 && self.until.get(id).is_some_and(|until| now < *until))
    }

    fn revoke(&self, id: u128) {
        let now = self.clock.now();
        let until = now.saturating_add(self.keep());
        let mut order = self.order.lock();
        self.until.insert(id, until);
        order.push_back((until, id));
        while order.len() > MOST || order.front().is_some_and(|(until, _)| *until <= now) {
            if let Some((until, oldest)) = order.pop_front() {
                // One that was named again has a later place in the queue.
                self.until.remove_if(&oldest, |_, u| *u <= until);
            }
        }
        self.news.fetch_add(1, Release);
    }

    /// Whether the store has a mark for the token. Errors: the store does not answer.
    pub(super) async fn is_marked(&self, store: &Store, ids: &Ids) -> StoreResult<bool> {
        let look = async |id: u128| match id {
            0 => Ok(0),
            id => store.counters.peek(&mark(&self.name, id)).await,
        };
        let (text, signed, jti) = tokio::join!(look(ids[0]), look(ids[1]), look(ids[2]));
        Ok(text? + signed? + jti? > 0)
    }

    /// Ends a token here, marks it in the store, and tells the other instances. Errors: the store did not take it; it counts here all the same.
    pub(crate) async fn announce(&self, store: &Store, text: &str) -> StoreResult<()> {
        let keep = Duration::from_secs(self.keep());
        for id in ids_of_message(text) {
            self.revoke(id);
        }
        // The mark first: who is told looks for nothing else, and who was not told looks there.
        for id in ids_of_message(text) {
            store.counters.add(&mark(&self.name, id), 1, keep).await?;
        }
        store.bus.publish(&self.name, text.to_owned().into()).await
    }

    /// Starts to listen, once, as soon as there is a runtime to run on.
    pub(super) fn listen(self: &Arc<Self>, bus: &Arc<dyn Bus>) {
        if self.listening.load(Relaxed) || self.listening.swap(true, AcqRel) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            self.listening.store(false, Release);
            return;
        };
        let task = runtime.spawn(listen(Arc::downgrade(self), bus.clone(), self.name.clone()));
        *self.listener.lock() = Some(task.abort_handle());
    }

    pub(super) fn hear(&self, message: &Message) {
        match message {
            Message::Data(payload) if payload.len() <= LONGEST_MESSAGE => {
                for id in ids_of_message(String::from_utf8_lossy(payload).trim()) {
                    self.revoke(id);
                }
            }
            Message::Data(_) => {}
            Message::Gap => {
                self.news.fetch_add(1 << 32, Release);
            }
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        if let Some(listener) = self.listener.lock().take() {
            listener.abort();
        }
    }
}

async fn listen(channel: Weak<Channel>, bus: Arc<dyn Bus>, name: String) {
    loop {
        if let Ok(mut subscription) = bus.subscribe(&name).await {
            while let Some(message) = subscription.messages.recv().await {
                let Some(channel) = channel.upgrade() else { return };
                channel.hear(&message);
            }
            // The next subscription does not tell what was said meanwhile.
            if let Some(channel) = channel.upgrade() {
                channel.hear(&Message::Gap);
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn mark(channel: &str, id: u128) -> String {
    format!("logout:{channel}:{id:032x}")
}

fn first_half(digest: impl AsRef<[u8]>) -> u128 {
    digest.as_ref().iter().take(16).fold(0, |id, byte| id << 8 | u128::from(*byte))
}

fn signed_part(token: &str) -> &str {
    token.rsplit_once('.').map_or(token, |(signed, _)| signed)
}

pub(super) fn ids_of(token: &str, jti: Option<&str>) -> Ids {
    [first_half(Sha256::digest(token)), first_half(Sha256::digest(signed_part(token))), jti.map_or(0, id_of_jti)]
}

/// The message that ends this token.
pub(crate) fn message_for(token: &str) -> String {
    Sha256::digest(signed_part(token)).iter().map(|b| format!("{b:02x}")).collect()
}

fn id_of_jti(jti: &str) -> u128 {
    first_half(Sha256::new().chain_update(b"jti\0").chain_update(jti).finalize())
}

/// A message names a `jti`; 64 hex digits are also taken for a hash.
fn ids_of_message(text: &str) -> impl Iterator<Item = u128> {
    let hash = (text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())).then(|| u128::from_str_radix(&text[..32], 16).ok()).flatten();
    std::iter::once(id_of_jti(text)).chain(hash)
}
