//! A purge's way: through this process, through the store, and to every other instance by message.
//!
//! ```text
//! here: note ─ flights off their keys ─ walk through memory
//! bus:  "begun": the same in every other instance, and what it stored while the message was on its way is taken back
//! store: index ─ blobs gone or marked stale ─ index
//! here and bus: "done": once more through memory, for what was read from the store before it was gone there
//! ```

use crate::{
    Engine, Purge, PurgeReport,
    codec::{self, Stored},
    memory::{Slot, StoredKey},
    purge,
    recent::{Put, Sweeping},
    serve::AUTHORIZED,
    tier::FILLS,
    trust::{self, COUNT_TIME, PURGES},
};
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashSet,
    sync::{
        Arc, Weak,
        atomic::Ordering::Relaxed,
    },
    time::Duration,
};
use weir_store::{Indexed, Message, StoreResult};

/// Channel that tells of removals.
const PURGE: &str = "purge";
/// Pause before a subscription that ended is asked for again.
const AGAIN: Duration = Duration::from_millis(500);
/// Entries of the index that are looked at in one step.
const BATCH: usize = 512;
/// Blobs that are marked stale at a time.
const AT_ONCE: usize = 16;
/// Failures in a row after which a purge leaves the store alone, and the pause between them.
const TRIES: usize = 3;
const TRY_AGAIN: Duration = Duration::from_millis(50);
/// Pages named in a report.
const SHOWN: usize = 10_000;

/// A message on [`PURGE`]. An instance that does not know `op` forgets everything: better too much than too little.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Removal {
    from: u64,
    /// Of the purge; 0: none.
    #[serde(default)]
    id: u64,
    /// Mark as stale; else remove.
    #[serde(default)]
    soft: bool,
    /// When, milliseconds since 1970, by the clock of the instance that was asked.
    #[serde(default)]
    at: u64,
    /// The store is through with it.
    #[serde(default)]
    done: bool,
    /// Of the message, as counted in the store; 0: it could not be counted.
    #[serde(default)]
    number: u64,
    #[serde(flatten)]
    what: Purge,
}

/// A purge that is through with this process.
struct Begun {
    what: Arc<Purge>,
    removal: Removal,
    /// What it met here.
    here: Vec<StoredKey>,
    /// Until it is through with the store.
    _sweeping: Sweeping,
}

/// What the store's part of a purge came to.
struct Swept {
    entries: u64,
    reached: bool,
    pages: Vec<String>,
}

impl Engine {
    /// Removes what `what` means, or (`soft`) marks it as stale: then it may still be served while it is refreshed, or when the origin fails, as
    /// far as its response allowed that. Here, in the store, and in every other instance that listens. A fill under way goes on for those who wait
    /// for it, but its response is not kept; requests that come later ask anew.
    ///
    /// Trouble with the store is no error but a line of the report. While the store is away, the other instances learn nothing: they cease to trust
    /// their memory after [`EngineOptions::trust`](crate::EngineOptions::trust), and forget it when the store is back and tells of a purge that they missed. Walks through this process's memory, except for a [`Purge::Key`]
    /// without variants; not a call for every request.
    pub async fn purge(&self, what: &Purge, soft: bool) -> PurgeReport {
        let begun = self.begin_purge(what, soft);
        self.finish_purge(begun).await
    }

    /// A purge's way through this process.
    fn begin_purge(&self, what: &Purge, soft: bool) -> Begun {
        let what = Arc::new(what.canonical());
        let removal = Removal { from: self.id, id: fastrand::u64(1..), soft, at: self.clock.now_ms(), done: false, number: 0, what: (*what).clone() };
        let sweeping = self.recent.sweeping();
        let here = self.first_walk(&what, soft, removal.at);
        Begun { what, removal, here, _sweeping: sweeping }
    }

    /// Its way through the store, and to the others.
    async fn finish_purge(&self, begun: Begun) -> PurgeReport {
        let Begun { what, mut removal, here, _sweeping } = begun;
        let soft = removal.soft;
        // A single page is through with the store so soon that one message does.
        let single = matches!(*what, Purge::Key { .. } | Purge::Url { .. });
        let mut told = single || self.tell(&mut removal).await;
        let names: HashSet<String> = here.iter().map(|key| key.store_key("cache")).collect();
        let mut swept = self.sweep(&what, soft, removal.at, &names).await;
        if swept.reached {
            self.second_walk(&what, soft, removal.at);
        }
        if single || swept.reached {
            removal.done = true;
            told &= self.tell(&mut removal).await;
        }
        swept.pages.extend(here.iter().take(SHOWN).filter_map(|key| purge::shown(&purge::names(key, "")).map(str::to_owned)));
        swept.pages.truncate(SHOWN);
        PurgeReport {
            entries: swept.entries + names.len() as u64,
            in_memory: names.len() as u64,
            store_reached: swept.reached,
            others_told: told,
            pages: swept.pages,
        }
    }

    /// Removes all that is stored under a primary key: [`Engine::purge`] of a [`Purge::Key`]. Whether something was there.
    pub async fn purge_key(&self, epoch: &str, key: &str) -> bool {
        self.purge(&Purge::Key { epoch: epoch.into(), key: key.into() }, false).await.entries > 0
    }

    /// After an unsafe request succeeded (RFC 9111 section 4.4, see [`outdated`](crate::outdated)): as [`Engine::purge`] of each. When this returns, this
    /// process has forgotten them; store and other instances follow behind. Call it inside a tokio runtime.
    pub fn invalidate(self: &Arc<Self>, outdated: &[Purge]) {
        let begun: Vec<Begun> = outdated.iter().map(|what| self.begin_purge(what, false)).collect();
        let engine = self.clone();
        tokio::spawn(async move {
            for begun in begun {
                engine.finish_purge(begun).await;
            }
        });
    }

    /// Counts a purge and tells the others. Counted first: whoever misses the message finds the number. `false`: not all of them may hear of it.
    async fn tell(&self, removal: &mut Removal) -> bool {
        let counted = self.complain("count", self.store.counters.add(PURGES, 1, COUNT_TIME).await);
        removal.number = *counted.as_ref().unwrap_or(&0);
        self.trust.heard(removal.number);
        let payload = match serde_json::to_vec(removal) {
            Ok(payload) => payload,
            Err(error) => {
                tracing::error!(%error, "purge message could not be written");
                return false;
            }
        };
        let told = self.complain("publish", self.store.bus.publish(PURGE, payload.into()).await);
        if let Err(error) = &told {
            tracing::warn!(%error, "purge did not reach the other instances");
        }
        told.is_ok() && counted.is_ok()
    }

    /// Notes the purge and goes over flights and memory; the entries that were met.
    fn first_walk(&self, what: &Arc<Purge>, soft: bool, at_ms: u64) -> Vec<StoredKey> {
        self.recent.note(what, soft, at_ms, false);
        self.flights.detach(|key, tags| match (&**what, tags) {
            // What it will carry is not known yet.
            (Purge::Tag { .. }, None) => true,
            (what, tags) => what.means(key, tags.unwrap_or("")),
        });
        let now = self.clock.now_ms();
        let mut met = Vec::new();
        for (key, slot) in self.meant(what) {
            match slot {
                Slot::Entry(entry) => {
                    if soft {
                        entry.make_stale(at_ms.min(now));
                    } else {
                        self.memory.remove(&key.epoch, &key.key, &key.variant);
                    }
                    self.stats.purged.fetch_add(1, Relaxed);
                    // What is past all use is no loss.
                    if !entry.keep_for(now).is_zero() {
                        met.push(key);
                    }
                }
                Slot::Spec(_) if soft => {}
                Slot::Spec(_) | Slot::Pass { .. } => {
                    self.memory.remove(&key.epoch, &key.key, &key.variant);
                }
            }
        }
        met
    }

    /// Once more, when the store is through: what is fresh in memory may have been read from there before. If it is newer, it is there still.
    fn second_walk(&self, what: &Arc<Purge>, soft: bool, at_ms: u64) {
        self.recent.note(what, soft, at_ms, true);
        let now = self.clock.now_ms();
        for (key, slot) in self.meant(what) {
            if matches!(slot, Slot::Entry(entry) if !soft || entry.is_fresh_ms(now)) {
                self.memory.remove(&key.epoch, &key.key, &key.variant);
            }
        }
    }

    /// What stands in memory and is meant.
    fn meant(&self, what: &Purge) -> Vec<(StoredKey, Slot)> {
        if let Purge::Key { epoch, key } = what {
            let primary = StoredKey::primary(&epoch.as_str().into(), key);
            let slot = |variant: &str| self.memory.get(epoch, key, variant).map(|slot| (primary.with_variant(variant), slot));
            let found: Vec<_> = [slot(""), slot(AUTHORIZED)].into_iter().flatten().collect();
            if !found.iter().any(|(_, slot)| matches!(slot, Slot::Spec(_))) {
                return found;
            }
        }
        self.memory.all(|key, slot| match slot {
            Slot::Entry(entry) => what.means(key, entry.tag_lines()),
            Slot::Spec(_) | Slot::Pass { .. } => what.means(key, ""),
        })
    }

    /// The store's part. `here`: keys of blobs that are counted already.
    async fn sweep(&self, what: &Purge, soft: bool, at_ms: u64, here: &HashSet<String>) -> Swept {
        let mut swept = Swept { entries: 0, reached: true, pages: Vec::new() };
        let name = what.name();
        let (mut from, mut failed) = (None, 0);
        while failed < TRIES {
            let Ok(mut found) = self.complain("find", self.store.index.find(purge::named(&name), from.as_ref(), BATCH).await) else {
                failed += 1;
                tokio::time::sleep(TRY_AGAIN).await;
                continue;
            };
            found.entries.retain(|entry| what.means_named(&entry.names));
            let done = if soft { self.mark_stale(&found.entries, at_ms, here).await } else { self.delete(&found.entries, here).await };
            match self.complain("purge", done) {
                Ok(count) => {
                    failed = 0;
                    swept.entries += count;
                    let room = SHOWN.saturating_sub(swept.pages.len());
                    let new = found.entries.iter().filter(|entry| !here.contains(&entry.key));
                    swept.pages.extend(new.filter_map(|entry| purge::shown(&entry.names).map(str::to_owned)).take(room));
                }
                // Their places in the index are kept, for the next try by whoever asked.
                Err(_) => {
                    failed += 1;
                    swept.reached = false;
                }
            }
            from = found.next;
            if from.is_none() {
                break;
            }
        }
        swept.reached &= failed < TRIES;
        if let (Purge::Key { epoch, key }, false) = (what, soft) {
            // Gone by its name too, whatever the index knows: where it is a spec, its variants are out of reach with it.
            let primary = StoredKey::primary(&epoch.as_str().into(), key).store_key("cache");
            swept.reached &= self.complain("delete", self.store.blobs.delete(&[primary]).await).is_ok();
        }
        if !swept.reached {
            tracing::warn!("purge did not go through the whole store");
        }
        swept
    }

    /// Removes blobs, then their places in the index: not the other way round, for a blob without one could not be found again. How many there
    /// were, without those that are counted already.
    async fn delete(&self, entries: &[Indexed], here: &HashSet<String>) -> StoreResult<u64> {
        let (counted, new): (Vec<String>, Vec<String>) = entries.iter().map(|entry| entry.key.clone()).partition(|key| here.contains(key));
        let mut count = 0;
        for (keys, counts) in [(counted, false), (new, true)] {
            if !keys.is_empty() {
                let gone = self.store.blobs.delete(&keys).await?;
                count += if counts { gone } else { 0 };
            }
        }
        self.store.index.remove(entries).await?;
        Ok(count)
    }

    /// Marks blobs as stale where they lie.
    async fn mark_stale(&self, entries: &[Indexed], at_ms: u64, here: &HashSet<String>) -> StoreResult<u64> {
        // Owned futures: a stream over borrowed ones is not `Send` enough for the compiler.
        let marks: Vec<_> = entries.iter().map(|entry| self.mark_one(entry.key.clone(), at_ms)).collect();
        let mut marks = stream::iter(marks).buffer_unordered(AT_ONCE);
        let (mut count, mut trouble) = (0, None);
        while let Some(marked) = marks.next().await {
            match marked {
                Ok((key, there)) => count += u64::from(there && !here.contains(&key)),
                Err(error) => trouble = Some(error),
            }
        }
        trouble.map_or(Ok(count), Err)
    }

    async fn mark_one(&self, key: String, at_ms: u64) -> StoreResult<(String, bool)> {
        let Some(value) = self.store.blobs.get(&key).await? else { return Ok((key, false)) };
        let Ok(Stored::Entry(entry)) = codec::decode_any(&value) else { return Ok((key, false)) };
        let age = entry.age_ms(at_ms);
        if age < entry.meta().lifetime_ms
            && let Some((old, new)) = codec::restamp(&value, |meta| meta.lifetime_ms = age)
        {
            // If it begins otherwise by now, a newer response came in between, which is not meant.
            self.store.blobs.patch(&key, &old, &new).await?;
        }
        Ok((key, true))
    }

    /// Takes back what this process put into the store before it heard of another instance's purge: that one may have been past it.
    fn take_back_late(self: &Arc<Self>, what: &Purge, soft: bool) {
        let puts = self.recent.take_puts(what);
        if puts.is_empty() {
            return;
        }
        let blobs = self.store.blobs.clone();
        tokio::spawn(async move {
            for Put { key, old, stale, dead, .. } in puts {
                // Only if it is still this one.
                if let Err(error) = blobs.patch(&key.store_key("cache"), &old, if soft { &stale } else { &dead }).await {
                    tracing::debug!(%error, "a purged entry could not be taken back");
                }
            }
        });
    }

    /// All that is in memory or on its way there is older than something that was missed.
    pub(crate) fn distrust(&self) {
        self.recent.note(&Arc::new(Purge::All), false, self.clock.now_ms(), false);
        self.flights.detach(|_, _| true);
        self.memory.clear();
        self.stats.distrusted.fetch_add(1, Relaxed);
    }

    /// Carries out what a message says; its number.
    fn removal(self: &Arc<Self>, payload: &[u8]) -> u64 {
        let removal = match serde_json::from_slice::<Removal>(payload) {
            Ok(removal) if removal.from == self.id => return removal.number,
            Ok(removal) => removal,
            Err(error) => {
                tracing::warn!(%error, "purge message of an unknown kind: memory tier emptied");
                self.distrust();
                return 0;
            }
        };
        let (what, soft, at_ms) = (Arc::new(removal.what.canonical()), removal.soft, removal.at);
        if removal.id != 0 && self.recent.is_running(removal.id) {
            if removal.done {
                self.second_walk(&what, soft, at_ms);
                self.recent.end(removal.id);
            }
            return removal.number;
        }
        self.first_walk(&what, soft, at_ms);
        self.take_back_late(&what, soft);
        if !removal.done && removal.id != 0 {
            self.recent.begin(removal.id);
        }
        removal.number
    }

    fn message(self: &Arc<Self>, channel: &str, message: Message) {
        match (channel, message) {
            (FILLS, Message::Data(payload)) => self.fill_ended(&payload),
            (FILLS, Message::Gap) => self.wake_all(),
            (_, Message::Data(payload)) => {
                let number = self.removal(&payload);
                self.trust.heard(number);
            }
            // A purge may be among what was lost.
            (_, Message::Gap) => self.trust.gap(),
        }
    }

    /// Listens for fills and removals of the other instances, until the engine is dropped. Call it inside a tokio runtime; calling it again
    /// does nothing. Without it fills are noticed by polling, and purges by other instances not before an entry's time is over.
    pub fn start(self: &Arc<Self>) {
        if self.started.swap(true, Relaxed) {
            return;
        }
        for channel in [FILLS, PURGE] {
            tokio::spawn(listen(Arc::downgrade(self), channel));
        }
        tokio::spawn(trust::watch_over(Arc::downgrade(self)));
    }
}

async fn listen(engine: Weak<Engine>, channel: &'static str) {
    let Some(mut open) = engine.upgrade().map(|engine| engine.open.subscribe()) else { return };
    loop {
        let Some(bus) = engine.upgrade().map(|engine| engine.store.bus.clone()) else { return };
        let subscribed = bus.subscribe(channel).await;
        drop(bus);
        if let Ok(mut subscription) = subscribed {
            loop {
                let message = tokio::select! {
                    message = subscription.messages.recv() => message,
                    _ = open.changed() => return,
                };
                let (Some(message), Some(engine)) = (message, engine.upgrade()) else { break };
                engine.message(channel, message);
            }
            if let Some(engine) = engine.upgrade() {
                engine.message(channel, Message::Gap);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => {}
            _ = open.changed() => return,
        }
    }
}
