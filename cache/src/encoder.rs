//! Variants in other encodings, made once and behind the clients' backs.
//!
//! ```text
//! entry stored here ───────────────► wait for a turn ─► encode ─► memory: the same entry, with variants
//! entry read from the store, bare ─► wait a while ──┐      ▲  └─► store: the same, so that other instances need not encode
//!                                  look again: ready? no ──┘
//!                                                   yes ─► memory
//! ```
//!
//! What is no longer in memory when its turn comes is left as it is: it was replaced, purged, or nobody wants it.

use crate::{
    Engine, Entry, codec,
    codec::Stored,
    encode::{self, Bodies},
    memory::StoredKey,
    recent::Put,
    tier::Ended,
};
use bytes::Bytes;
use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{sync::Semaphore, task::spawn_blocking};

/// Entries that wait for their turn, at most; they weigh a few hundred bytes each.
const LINE: usize = 50_000;
/// How long the instance that stored an entry has to encode it before another does.
const ADOPT_AFTER: Duration = Duration::from_secs(2);
/// Lease of the lock under which the store gets the variants.
const LEASE: Duration = Duration::from_secs(3);
/// A body longer than this is packed on a thread of its own.
const PACK_HERE: usize = 64 * 1024;

/// Who waits, and how many encode at a time.
pub(crate) struct Encoder {
    turns: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl Encoder {
    /// A quarter of the cores may encode, one at least.
    pub(crate) fn new() -> Encoder {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        Encoder { turns: Arc::new(Semaphore::new((cores / 4).max(1))), waiting: AtomicUsize::new(0) }
    }
}

/// A place in the line. Holds nothing that memory has given up.
struct Job {
    engine: Weak<Engine>,
    key: StoredKey,
    entry: Weak<Entry>,
}

impl Drop for Job {
    fn drop(&mut self) {
        if let Some(engine) = self.engine.upgrade() {
            engine.encoder.waiting.fetch_sub(1, Relaxed);
        }
    }
}

impl Engine {
    /// Makes an entry's variants soon, if it is to have any. Call it once the entry is in memory and in the store. `read`: it was read from
    /// there, and whoever put it there is perhaps encoding it now.
    pub(crate) fn encode_behind(self: &Arc<Self>, key: &StoredKey, entry: &Arc<Entry>, read: bool) {
        if !entry.wants_variants() {
            return;
        }
        if self.encoder.waiting.fetch_add(1, Relaxed) >= LINE {
            self.encoder.waiting.fetch_sub(1, Relaxed);
            return;
        }
        let job = Job { engine: Arc::downgrade(self), key: key.clone(), entry: Arc::downgrade(entry) };
        tokio::spawn(job.run(read));
    }

    /// An entry in the form in which it goes into the store.
    pub(crate) async fn stored_form(&self, key: &StoredKey, entry: &Arc<Entry>) -> Bytes {
        if !self.packs {
            return entry.raw().clone();
        }
        if entry.body().len() <= PACK_HERE || entry.is_encoded() {
            return codec::pack(&key.text(), entry);
        }
        let (text, packed) = (key.text(), entry.clone());
        spawn_blocking(move || codec::pack(&text, &packed)).await.unwrap_or_else(|_| entry.raw().clone())
    }
}

impl Job {
    async fn run(self, read: bool) {
        let turns = {
            let Some(engine) = self.engine.upgrade() else { return };
            engine.encoder.turns.clone()
        };
        if read {
            tokio::time::sleep(ADOPT_AFTER).await;
            if self.adopt().await {
                return;
            }
        }
        let Ok(_turn) = turns.acquire().await else { return };
        let (Some(engine), Some(entry)) = (self.engine.upgrade(), self.entry.upgrade()) else { return };
        if !engine.memory.holds(&self.key, &entry) {
            return;
        }
        let (body, wanted) = (entry.body().clone(), entry.codings());
        let Ok(bodies) = spawn_blocking(move || encode::encode(&body, wanted)).await else { return };
        engine.stats.encoded.fetch_add(1, Relaxed);
        self.place(&engine, &entry, &bodies);
        self.share(&engine, &entry, &bodies).await;
    }

    /// Takes the variants that another instance made. `true`: nothing is left to do.
    async fn adopt(&self) -> bool {
        let (Some(engine), Some(entry)) = (self.engine.upgrade(), self.entry.upgrade()) else { return true };
        match engine.read(&self.key).await.map(|read| read.stored) {
            Ok(Some(Stored::Entry(there))) if is_same(&there, &entry) => {
                let ready = there.is_encoded();
                if ready {
                    self.place(&engine, &entry, &there.bodies());
                }
                ready
            }
            // Another response lies there, and memory will get that one.
            Ok(Some(_)) => true,
            Ok(None) | Err(_) => false,
        }
    }

    /// Puts the variants into memory, if the entry still stands there and no purge meant it.
    fn place(&self, engine: &Engine, entry: &Arc<Entry>, bodies: &Bodies) {
        let mark = engine.recent.mark();
        let with = Arc::new(entry.with_variants(&self.key, bodies));
        engine.recent.unless_hit(mark, &self.key, entry.tag_lines(), true, || engine.memory.swap(&self.key, entry, with));
    }

    /// Puts the variants into the store, if the entry still lies there. Under the fill lock: no newer response comes meanwhile, and its
    /// writer's number is higher.
    async fn share(&self, engine: &Arc<Engine>, entry: &Arc<Entry>, bodies: &Bodies) {
        let Ok(Some(held)) = engine.lock(&self.key, LEASE).await else { return };
        if let Ok(read) = engine.read(&self.key).await
            && let Some(Stored::Entry(there)) = read.stored
            && is_same(&there, entry)
            && there.wants_variants()
        {
            // With the numbers that lie there: a soft purge may have changed them.
            let with = Arc::new(there.with_variants(&self.key, bodies));
            let time = there.keep_for(engine.clock.now_ms());
            let value = engine.stored_form(&self.key, &with).await;
            if engine.write(&self.key, value.clone(), time, Some(held.lease.fence)).await.unwrap_or(true) {
                let put = Put::of(&self.key, with.tag_lines(), &value);
                if let Some(put) = put.clone() {
                    engine.recent.put(put);
                }
                if let Some(hit) = engine.recent.hit(read.mark, &self.key, with.tag_lines(), true) {
                    // A purge came between, and what was just written is what it meant.
                    engine.take_back(&self.key, put, hit).await;
                }
            }
        }
        engine.unlock(held, Ended::Stored).await;
    }
}

fn is_same(one: &Entry, other: &Entry) -> bool {
    one.response_ms() == other.response_ms() && one.body() == other.body()
}
