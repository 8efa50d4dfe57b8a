//! Variants in other encodings, made behind the clients' backs: once for each page and coding, when the first client is served from the cache that
//! would have liked it. Pages that nobody asks for twice, and codings that nobody asks for, cost neither time nor memory.
//!
//! ```text
//! hit, and the client likes better what is not there ─► entry read from the store? ─ no ──► wait in line    ─► encode ─► memory: the same
//!                                                              │ yes                          ▲                 │        entry, with the variant
//!                                                              ▼                              │                 └──────► store: the same, so that
//!                                                        wait a while ─► look again: there? ─ no                         others need not encode
//!                                                                                     └─ yes ─► memory
//! a page that is fetched anew gets again what was asked for before
//! ```
//!
//! What is no longer in memory when its turn comes is left as it is: it was replaced, purged, or nobody wants it. Encoding has a thread of the lowest
//! priority: requests never wait for it, whatever there is to encode and however few cores there are.

use crate::{
    Accepted, Engine, Entry, codec,
    codec::Stored,
    encode::{self, Bodies, Codings},
    memory::StoredKey,
    recent::Put,
    tier::Ended,
};
use bytes::Bytes;
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
    thread,
    time::Duration,
};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep_until},
};

/// Entries that wait for their turn, at most. Who finds no place may ask again with the next hit, so pages that are asked for often get theirs first.
const LINE: usize = 1000;
/// How long the instance that stored an entry has to encode it before another does.
const ADOPT_AFTER: Duration = Duration::from_secs(2);
/// Lease of the lock under which the store gets the variants.
const LEASE: Duration = Duration::from_secs(3);
/// A body longer than this is packed on a thread of its own.
const PACK_HERE: usize = 64 * 1024;

/// The line, and how many are at work on it.
pub(crate) struct Encoder {
    line: Mutex<Line>,
    /// A quarter of the cores, one at least.
    most_at_work: usize,
}

#[derive(Default)]
struct Line {
    jobs: VecDeque<Job>,
    at_work: usize,
}

impl Encoder {
    pub(crate) fn new() -> Encoder {
        let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
        Encoder { line: Mutex::default(), most_at_work: (cores / 4).max(1) }
    }
}

/// One who takes jobs from the line until it is empty.
struct Worker {
    engine: Weak<Engine>,
    signed_off: bool,
}

impl Worker {
    async fn run(mut self) {
        while let Some(job) = self.next() {
            // While it waits, nothing keeps the engine alive.
            if let Some(due) = job.due {
                sleep_until(due).await;
            }
            let Some(engine) = self.engine.upgrade() else { return };
            job.run(&engine).await;
        }
    }

    /// The next job. With the last one the worker signs off, in the same moment: who joins the line after that needs another.
    fn next(&mut self) -> Option<Job> {
        let engine = self.engine.upgrade()?;
        let mut line = engine.encoder.line.lock();
        let job = line.jobs.pop_front();
        if job.is_none() {
            line.at_work -= 1;
            self.signed_off = true;
        }
        job
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Its task was thrown away.
        if !self.signed_off
            && let Some(engine) = self.engine.upgrade()
        {
            engine.encoder.line.lock().at_work -= 1;
        }
    }
}

/// Encodes on a thread that runs when nothing else wants to.
async fn encode_idly(body: Bytes, wanted: Codings) -> Option<Bodies> {
    // A priority can be lowered but not raised again, so the thread is not one of those that others use too.
    let encode = move || {
        give_way();
        encode::encode(&body, wanted)
    };
    let run = move || thread::Builder::new().name("weir-encode".into()).spawn(encode).ok()?.join().ok();
    spawn_blocking(run).await.ok().flatten()
}

/// The lowest priority for this thread. Elsewhere than on Linux it would be the whole program's.
fn give_way() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, 19) {
        tracing::debug!(%error, "encoding goes on with ordinary priority");
    }
}

/// A place in the line. Holds nothing that memory has given up.
struct Job {
    key: StoredKey,
    entry: Weak<Entry>,
    /// Until then another instance may have done it.
    due: Option<Instant>,
}

impl Engine {
    /// For each hit: has the encoding made that this client would have liked better than what there is, if there is one. It costs a few comparisons
    /// where there is nothing to do. `variant`: empty for what [`Engine::peek`] gave.
    #[inline]
    pub fn wish(self: &Arc<Self>, epoch: &str, key: &str, variant: &str, entry: &Arc<Entry>, accepted: &Accepted) {
        if let Some(coding) = entry.wish(accepted)
            && entry.ask(coding)
        {
            self.encode_behind(&StoredKey { epoch: epoch.into(), key: key.into(), variant: variant.into() }, entry);
        }
    }

    /// Makes the variants that were asked for, soon.
    pub(crate) fn encode_behind(self: &Arc<Self>, key: &StoredKey, entry: &Arc<Entry>) {
        if entry.asked().is_empty() {
            return;
        }
        let due = entry.is_foreign().then(|| Instant::now() + ADOPT_AFTER);
        let mut line = self.encoder.line.lock();
        if line.jobs.len() >= LINE {
            return entry.forget_asked();
        }
        line.jobs.push_back(Job { key: key.clone(), entry: Arc::downgrade(entry), due });
        if line.at_work < self.encoder.most_at_work {
            line.at_work += 1;
            tokio::spawn(Worker { engine: Arc::downgrade(self), signed_off: false }.run());
        }
    }

    /// An entry in the form in which it goes into the store.
    pub(crate) async fn stored_form(&self, key: &StoredKey, entry: &Arc<Entry>) -> Bytes {
        if !self.packs {
            return entry.raw().clone();
        }
        if entry.body().len() <= PACK_HERE || !entry.bodies().zstd.is_empty() {
            return codec::pack(&key.text(), entry);
        }
        let (text, packed) = (key.text(), entry.clone());
        spawn_blocking(move || codec::pack(&text, &packed)).await.unwrap_or_else(|_| entry.raw().clone())
    }
}

impl Job {
    async fn run(&self, engine: &Arc<Engine>) {
        let Some(entry) = self.entry.upgrade() else { return };
        if !engine.memory.holds(&self.key, &entry) || (self.due.is_some() && self.adopt(engine, &entry).await) {
            return;
        }
        let (body, wanted) = (entry.body().clone(), entry.asked());
        let Some(bodies) = encode_idly(body, wanted).await else { return };
        engine.stats.encoded.fetch_add(1, Relaxed);
        let with = self.place(engine, &entry, wanted, &bodies);
        self.share(engine, &entry, &with, wanted, &bodies).await;
    }

    /// Takes the variants that another instance made. `true`: nothing is left to do.
    async fn adopt(&self, engine: &Arc<Engine>, entry: &Arc<Entry>) -> bool {
        match engine.read(&self.key).await.map(|read| read.stored) {
            Ok(Some(Stored::Entry(there))) if is_same(&there, entry) => {
                let ready = entry.asked().without(there.tried()).is_empty();
                if ready {
                    self.place(engine, entry, there.tried(), &there.bodies());
                }
                ready
            }
            // Another response lies there, and memory will get that one.
            Ok(Some(_)) => true,
            Ok(None) | Err(_) => false,
        }
    }

    /// Puts the variants into memory, if the entry still stands there and no purge meant it. The entry with them.
    fn place(&self, engine: &Engine, entry: &Arc<Entry>, tried: Codings, bodies: &Bodies) -> Arc<Entry> {
        let mark = engine.recent.mark();
        let with = Arc::new(entry.with_variants(&self.key, tried, bodies));
        let placed = with.clone();
        engine.recent.unless_hit(mark, &self.key, entry.tag_lines(), true, || engine.memory.swap(&self.key, entry, placed));
        with
    }

    /// Puts the variants into the store, if the entry still lies there. Under the fill lock: no newer response comes meanwhile, and its
    /// writer's number is higher.
    async fn share(&self, engine: &Arc<Engine>, entry: &Arc<Entry>, placed: &Arc<Entry>, tried: Codings, bodies: &Bodies) {
        let Ok(Some(held)) = engine.lock(&self.key, LEASE).await else { return };
        if let Ok(read) = engine.read(&self.key).await
            && let Some(Stored::Entry(there)) = read.stored
            && is_same(&there, entry)
            && !tried.without(there.tried()).is_empty()
        {
            let with = if there.raw().as_ptr() == entry.raw().as_ptr() {
                // The embedded store has the very bytes of memory, and shall again.
                placed.clone()
            } else {
                // With the numbers that lie there: a soft purge may have changed them.
                Arc::new(there.with_variants(&self.key, tried, bodies))
            };
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
