//! The store tier: reading, writing, locking and waking, with the rule that the store's trouble is never the client's.

use crate::{
    Engine, Entry, block,
    codec::{self, Stored},
    memory::StoredKey,
    purge,
    recent::{Hit, Put},
};
use bytes::Bytes;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{sync::Notify, task::JoinHandle};
use weir_store::{Lease, Store, StoreError, StoreResult};

/// Channel that tells of fills that ended.
pub(crate) const FILLS: &str = "fills";

/// How a fill ended, as told to the other instances: `{word} {lock key}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Something lies in the store now: an entry, a spec or a mark.
    Stored,
    /// Nothing lies there, and the next one will hardly fare better: whoever waits should ask by himself.
    Nothing,
}

impl Ended {
    fn word(self) -> &'static str {
        match self {
            Ended::Stored => "stored",
            Ended::Nothing => "nothing",
        }
    }
}

/// A fill that waits for another instance.
#[derive(Debug, Default)]
pub(crate) struct Wake {
    pub(crate) notify: Notify,
    pub(crate) nothing: AtomicBool,
}

/// What was read, and the [`Recent::mark`](crate::recent::Recent::mark) before that.
pub(crate) struct Read {
    pub(crate) stored: Option<Stored>,
    pub(crate) mark: u64,
}

/// A lease that is renewed until it is dropped.
pub(crate) struct Held {
    pub(crate) lease: Lease,
    renewal: JoinHandle<()>,
}

impl Held {
    fn new(store: &Store, lease: Lease, time: Duration) -> Held {
        let (locks, held) = (store.locks.clone(), lease.clone());
        let renewal = tokio::spawn(async move {
            let pause = (time / 3).max(Duration::from_millis(10));
            loop {
                tokio::time::sleep(pause).await;
                // A lease that was lost stays lost; what the fill writes then is stopped by its fence. A store that is away may come back.
                if let Ok(false) = locks.renew(&held, time).await {
                    return;
                }
            }
        });
        Held { lease, renewal }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

impl Engine {
    pub(crate) fn complain<T>(&self, what: &'static str, result: StoreResult<T>) -> StoreResult<T> {
        result.inspect_err(|error| {
            self.stats.store_errors.fetch_add(1, Relaxed);
            tracing::debug!(%error, what, "store call failed; going on without");
        })
    }

    /// What lies under a key. What can not be read counts as absent, and so does what a purge met on its way here.
    pub(crate) async fn read(&self, key: &StoredKey) -> StoreResult<Read> {
        let mark = self.recent.read_mark();
        let absent = Read { stored: None, mark };
        let found = self.complain("get", self.store.blobs.get(&key.store_key("cache")).await);
        let Some(value) = (match found {
            Err(StoreError::Corrupt(_)) => None,
            other => other?,
        }) else {
            return Ok(absent);
        };
        // What will be kept must not keep alive what else came with it.
        let value = if self.remote && self.memory.capacity() > 0 { block::joined(&[&value]) } else { value };
        let stored = match codec::decode(&key.text(), &value) {
            Ok(stored) => stored,
            Err(error) => {
                tracing::warn!(%error, key = %key.key, "stored value ignored");
                return Ok(absent);
            }
        };
        let tags = if let Stored::Entry(entry) = &stored { entry.tag_lines() } else { "" };
        let stored = match (self.recent.hit(mark, key, tags, true), stored) {
            (Some(Hit::Hard), _) => return Ok(absent),
            (Some(Hit::Soft(at_ms)), Stored::Entry(entry)) => {
                entry.make_stale(at_ms.min(self.clock.now_ms()));
                Stored::Entry(entry)
            }
            (_, stored) => stored,
        };
        Ok(Read { stored: Some(stored), mark })
    }

    /// Puts an entry that was read from the store into memory, unless a younger one stands there, or a purge since the mark means it.
    pub(crate) fn remember_read(self: &Arc<Self>, key: &StoredKey, entry: &Arc<Entry>, mark: u64) {
        entry.mark_foreign();
        self.recent.unless_hit(mark, key, entry.tag_lines(), true, || self.memory.insert_newer(key, entry));
    }

    /// Makes a stored entry known to the index. Without that no purge would find it, so if it can not be done, the entry goes again; whether
    /// it stays.
    pub(crate) async fn enter(&self, key: &StoredKey, entry: &Entry, time: Duration) -> bool {
        let stored = key.store_key("cache");
        let names = purge::names(key, entry.tag_lines());
        if self.complain("enter", self.store.index.enter(&stored, &names, time).await).is_ok() {
            return true;
        }
        let _ = self.complain("delete", self.store.blobs.delete(&[stored]).await);
        false
    }

    /// What this process has just put under a key is older than a purge: gone, or stale, as that wants it.
    pub(crate) async fn take_back(&self, key: &StoredKey, put: Option<Put>, hit: Hit) {
        let stored = key.store_key("cache");
        let done = match (hit, put) {
            (Hit::Soft(_), Some(put)) => self.store.blobs.patch(&stored, &put.old, &put.stale).await.map(drop),
            _ => self.store.blobs.delete(&[stored]).await.map(drop),
        };
        let _ = self.complain("take back", done);
    }

    /// Writes a value; whether it lies there now.
    pub(crate) async fn write(&self, key: &StoredKey, value: Bytes, time: Duration, fence: Option<u64>) -> StoreResult<bool> {
        if time.is_zero() {
            return Ok(false);
        }
        self.complain("put", self.store.blobs.put(&key.store_key("cache"), value, time, fence).await)
    }

    /// Takes the fill lock of a key; `None` if another holds it.
    pub(crate) async fn lock(&self, key: &StoredKey, time: Duration) -> StoreResult<Option<Held>> {
        let lease = self.complain("acquire", self.store.locks.acquire(&key.store_key("fill"), time).await)?;
        Ok(lease.map(|lease| Held::new(&self.store, lease, time)))
    }

    /// Gives a lock back and wakes those who wait for it in other instances.
    pub(crate) async fn unlock(&self, held: Held, ended: Ended) {
        let released = self.store.locks.release(&held.lease).await;
        let _ = self.complain("release", released);
        let payload = format!("{} {}", ended.word(), held.lease.key);
        let _ = self.complain("publish", self.store.bus.publish(FILLS, payload.into()).await);
    }

    /// Registers a fill that waits for another instance; [`Engine::forget_wake`] ends it.
    pub(crate) fn wake_for(&self, lock_key: &str) -> Arc<Wake> {
        self.wakes.entry(lock_key.to_owned()).or_default().clone()
    }

    pub(crate) fn forget_wake(&self, lock_key: &str) {
        self.wakes.remove(lock_key);
    }

    /// A message on [`FILLS`].
    pub(crate) fn fill_ended(&self, payload: &[u8]) {
        let Some((word, key)) = std::str::from_utf8(payload).ok().and_then(|text| text.split_once(' ')) else { return };
        if let Some(wake) = self.wakes.get(key) {
            if word == Ended::Nothing.word() {
                wake.nothing.store(true, Relaxed);
            }
            wake.notify.notify_one();
        }
    }

    /// After messages may have been lost: everyone looks for himself.
    pub(crate) fn wake_all(&self) {
        self.wakes.iter().for_each(|wake| wake.notify.notify_one());
    }
}
