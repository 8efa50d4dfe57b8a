//! The purges of the last while, and what this process stored in the last seconds. With them
//!
//! - a fill learns at its end that its answer is older than a purge, and does not keep it;
//! - an entry that was read from the store while a purge went over it does not get into memory;
//! - an entry that was stored while the message of a purge was on its way here is taken back.
//!
//! Order is told by counting, not by clocks: whoever begins something notes the [`Recent::mark`], and all purges noted after it count.

use crate::{Purge, codec, memory::StoredKey};
use bytes::Bytes;
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// Purges that are remembered. What began before the oldest of them counts as purged.
const PURGES: usize = 10_000;
/// Purges by other instances that are remembered as begun.
const RUNNING: usize = 1000;
/// How long, and how many, stored entries are remembered: longer than a message is on its way.
const STORED_FOR: Duration = Duration::from_secs(5);
const STORED: usize = 2000;

struct Noted {
    number: u64,
    what: Arc<Purge>,
    soft: bool,
    at_ms: u64,
    /// Noted at the end of its way through the store: says something only about what was read from there.
    ended: bool,
}

/// What a purge means for an older response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hit {
    /// It is gone.
    Hard,
    /// It is stale since then, milliseconds since 1970.
    Soft(u64),
}

/// Something that this process put into the store.
#[derive(Clone)]
pub(crate) struct Put {
    pub(crate) key: StoredKey,
    pub(crate) tags: String,
    /// The beginning of the stored value.
    pub(crate) old: Bytes,
    /// The same, stale from the first.
    pub(crate) stale: Vec<u8>,
    /// The same, of no use to anyone.
    pub(crate) dead: Vec<u8>,
}

impl Put {
    /// `None` for what is no entry.
    pub(crate) fn of(key: &StoredKey, tags: &str, value: &Bytes) -> Option<Put> {
        let (old, stale) = codec::restamp(value, |meta| meta.lifetime_ms = meta.lifetime_ms.min(meta.initial_age_ms))?;
        let (_, dead) = codec::restamp(value, |meta| (meta.lifetime_ms, meta.swr_ms, meta.sie_ms) = (0, 0, 0))?;
        // Copied, so that the whole value is not kept alive by its beginning.
        Some(Put { key: key.clone(), tags: tags.to_owned(), old: Bytes::copy_from_slice(&old), stale, dead })
    }
}

#[derive(Default)]
struct State {
    purges: VecDeque<Noted>,
    /// The last number that was forgotten.
    forgotten: u64,
    running: VecDeque<u64>,
    /// Own purges that are not through with the store, by number.
    sweeping: Vec<u64>,
    puts: VecDeque<(Instant, Put)>,
}

impl State {
    fn hit(&self, since: u64, key: &StoredKey, tags: &str, read: bool) -> Option<Hit> {
        if since < self.forgotten {
            return Some(Hit::Hard);
        }
        let from = self.purges.partition_point(|noted| noted.number <= since);
        let mut soft = None;
        for noted in self.purges.range(from..).filter(|noted| (read || !noted.ended) && noted.what.means(key, tags)) {
            if !noted.soft {
                return Some(Hit::Hard);
            }
            soft = Some(Hit::Soft(noted.at_ms));
        }
        soft
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct Recent {
    state: Arc<Mutex<State>>,
    number: AtomicU64,
}

/// A purge of this process is on its way through the store. Over when it is dropped.
pub(crate) struct Sweeping {
    number: u64,
    state: Arc<Mutex<State>>,
}

impl Drop for Sweeping {
    fn drop(&mut self) {
        self.state.lock().sweeping.retain(|number| *number != self.number);
    }
}

impl Recent {
    /// Now.
    pub(crate) fn mark(&self) -> u64 {
        self.number.load(Ordering::Acquire)
    }

    /// [`Recent::mark`] for reading from the store: before the own purges that are not through with it, since what they mean may still lie there.
    pub(crate) fn read_mark(&self) -> u64 {
        let state = self.state.lock();
        let oldest = state.sweeping.iter().min().map(|number| number - 1);
        oldest.unwrap_or_else(|| self.number.load(Ordering::Relaxed))
    }

    /// A purge of this process is about to be noted.
    pub(crate) fn sweeping(&self) -> Sweeping {
        let number = self.mark() + 1;
        self.state.lock().sweeping.push(number);
        Sweeping { number, state: self.state.clone() }
    }

    /// Notes a purge (in canonical form) that begins, or ends, here.
    pub(crate) fn note(&self, what: &Arc<Purge>, soft: bool, at_ms: u64, ended: bool) {
        let mut state = self.state.lock();
        let number = self.number.load(Ordering::Relaxed) + 1;
        state.purges.push_back(Noted { number, what: what.clone(), soft, at_ms, ended });
        if state.purges.len() > PURGES
            && let Some(oldest) = state.purges.pop_front()
        {
            state.forgotten = oldest.number;
        }
        self.number.store(number, Ordering::Release);
    }

    /// Whether a purge since the mark means this key with these tags. `read`: it was read from the store, not fetched.
    pub(crate) fn hit(&self, since: u64, key: &StoredKey, tags: &str, read: bool) -> Option<Hit> {
        if self.mark() == since {
            return None;
        }
        self.state.lock().hit(since, key, tags, read)
    }

    /// Does `keep` unless a purge since the mark means this; no purge is noted meanwhile. So whatever is put into memory with this is either met by
    /// the purge's walk through memory, which comes after its note, or not put there at all.
    pub(crate) fn unless_hit(&self, since: u64, key: &StoredKey, tags: &str, read: bool, keep: impl FnOnce()) -> bool {
        let state = self.state.lock();
        let free = state.hit(since, key, tags, read).is_none();
        if free {
            keep();
        }
        free
    }

    /// Remembers another instance's purge as begun.
    pub(crate) fn begin(&self, id: u64) {
        let mut state = self.state.lock();
        state.running.push_back(id);
        if state.running.len() > RUNNING {
            state.running.pop_front();
        }
    }

    /// Whether another instance's purge was begun.
    pub(crate) fn is_running(&self, id: u64) -> bool {
        self.state.lock().running.contains(&id)
    }

    /// Forgets another instance's purge.
    pub(crate) fn end(&self, id: u64) {
        self.state.lock().running.retain(|running| *running != id);
    }

    /// Remembers what was put into the store.
    pub(crate) fn put(&self, put: Put) {
        let now = Instant::now();
        let mut state = self.state.lock();
        while state.puts.len() >= STORED || state.puts.front().is_some_and(|(at, _)| now.duration_since(*at) > STORED_FOR) {
            state.puts.pop_front();
        }
        state.puts.push_back((now, put));
    }

    /// What was put into the store in the last seconds and is meant by the purge.
    pub(crate) fn take_puts(&self, what: &Purge) -> Vec<Put> {
        let now = Instant::now();
        let mut state = self.state.lock();
        let (meant, rest) = std::mem::take(&mut state.puts)
            .into_iter()
            .filter(|(at, _)| now.duration_since(*at) <= STORED_FOR)
            .partition::<Vec<_>, _>(|(_, put)| what.means(&put.key, &put.tags));
        state.puts = rest.into();
        meant.into_iter().map(|(_, put)| put).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(key: &str) -> StoredKey {
        StoredKey::primary(&"v1".into(), key)
    }

    #[test]
    fn only_purges_since_the_mark_count_and_hard_ones_win() {
        let recent = Recent::default();
        let tag = |tag: &str| Arc::new(Purge::Tag { tag: tag.into() });
        recent.note(&tag("a"), false, 1, false);
        let mark = recent.mark();
        assert_eq!(recent.hit(mark, &key("x"), "a", true), None);
        recent.note(&tag("a"), true, 7, false);
        assert_eq!(recent.hit(mark, &key("x"), "b", true), None);
        assert_eq!(recent.hit(mark, &key("x"), "b\na", false), Some(Hit::Soft(7)));
        recent.note(&tag("a"), false, 9, true);
        assert_eq!(recent.hit(mark, &key("x"), "a", false), Some(Hit::Soft(7)), "the end of a purge says nothing about a fetch");
        assert_eq!(recent.hit(mark, &key("x"), "a", true), Some(Hit::Hard));
        assert!(!recent.unless_hit(mark, &key("x"), "a", true, || panic!("purged")));
        assert!(recent.unless_hit(recent.mark(), &key("x"), "a", true, || {}));
    }

    #[test]
    fn what_is_older_than_memory_goes_back_counts_as_purged() {
        let recent = Recent::default();
        let mark = recent.mark();
        let other = Arc::new(Purge::Tag { tag: "other".into() });
        for _ in 0..PURGES {
            recent.note(&other, false, 1, false);
        }
        assert_eq!(recent.hit(mark, &key("x"), "a", false), None);
        recent.note(&other, false, 1, false);
        assert_eq!(recent.hit(mark, &key("x"), "a", false), Some(Hit::Hard));
        assert_eq!(recent.hit(recent.mark() - 5, &key("x"), "a", false), None);
    }
}
