//! A sharded map whose entries expire. No task sweeps it: a reader never sees an entry past its time, and every insertion looks at
//! a few others and drops what is over, which outruns the insertions.

use ahash::RandomState;
use parking_lot::{Mutex, MutexGuard};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const SHARDS: usize = 16;

/// Entries looked at for each insertion. More than one, so that the dead can not pile up.
const LOOKED_AT: usize = 3;

/// Longest life of an entry; keeps time arithmetic from overflowing whatever a caller asks for.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// The time `life` from `now`.
pub(super) fn after(now: Instant, life: Duration) -> Instant {
    now + life.min(LONGEST)
}

struct Slot<V> {
    value: V,
    expires: Instant,
    /// Ties the slot to its one place in the ring.
    id: u64,
}

/// One shard, locked. All times are given by the caller, so that one step sees one time.
pub(super) struct Shard<V> {
    slots: HashMap<Arc<str>, Slot<V>, RandomState>,
    /// Every slot once, about in the order of insertion; places of removed slots stay until they are met.
    ring: VecDeque<(Arc<str>, u64)>,
    next_id: u64,
    /// The place in the ring at which the sweep goes on.
    next_look: usize,
}

impl<V> Shard<V> {
    /// The live value under `key`.
    pub(super) fn get(&self, key: &str, now: Instant) -> Option<(&V, Instant)> {
        self.slots.get(key).filter(|s| s.expires > now).map(|s| (&s.value, s.expires))
    }

    /// `key` as it is kept here, dead or alive: for others who keep it too.
    pub(super) fn key(&self, key: &str) -> Option<Arc<str>> {
        self.slots.get_key_value(key).map(|(key, _)| key.clone())
    }

    /// The live value under `key`, and its end, to be changed.
    pub(super) fn get_mut(&mut self, key: &str, now: Instant) -> Option<(&mut V, &mut Instant)> {
        self.slots.get_mut(key).filter(|s| s.expires > now).map(|s| (&mut s.value, &mut s.expires))
    }

    /// Stores `value` until `expires`; what was there before, dead or alive. `dropped` is given what the sweep throws out.
    pub(super) fn insert(&mut self, key: &str, value: V, expires: Instant, now: Instant, dropped: impl FnMut(&str, V)) -> Option<V> {
        if let Some(slot) = self.slots.get_mut(key) {
            slot.expires = expires;
            return Some(std::mem::replace(&mut slot.value, value));
        }
        self.sweep(now, dropped);
        let key: Arc<str> = key.into();
        let id = self.next_id;
        self.next_id += 1;
        self.ring.push_back((key.clone(), id));
        self.slots.insert(key, Slot { value, expires, id });
        None
    }

    /// Looks at the next few places and drops what is over. The place of a dropped one is filled from the end of the ring: the order
    /// suffers a little, but only where there is something to drop. The living stay where they are, for `turn`.
    fn sweep(&mut self, now: Instant, mut dropped: impl FnMut(&str, V)) {
        for _ in 0..LOOKED_AT {
            self.next_look = if self.next_look < self.ring.len() { self.next_look } else { 0 };
            let Some((key, id)) = self.ring.get(self.next_look) else { return };
            match self.slots.get(key) {
                Some(slot) if slot.id == *id && slot.expires > now => {
                    self.next_look += 1;
                    continue;
                }
                Some(slot) if slot.id == *id => {
                    if let Some((key, slot)) = self.slots.remove_entry(key) {
                        dropped(&key, slot.value);
                    }
                }
                _ => {}
            }
            self.ring.swap_remove_back(self.next_look);
        }
    }

    /// Removes `key`; its value if it was alive.
    pub(super) fn remove(&mut self, key: &str, now: Instant) -> Option<V> {
        self.slots.remove(key).filter(|s| s.expires > now).map(|s| s.value)
    }

    /// Places in the ring: turning that often passes every entry once.
    pub(super) fn places(&self) -> usize {
        self.ring.len()
    }

    /// Takes the entry at the head of the ring and asks `keep` for its new value: `Some` moves it to the end, `None` removes it.
    /// `false` when the ring is empty.
    pub(super) fn turn(&mut self, keep: impl FnOnce(&str, V, Instant) -> Option<V>) -> bool {
        let Some((key, id)) = self.ring.pop_front() else { return false };
        let Some((name, slot)) = self.slots.remove_entry(&key) else { return true };
        if slot.id != id {
            self.slots.insert(name, slot);
            return true;
        }
        if let Some(value) = keep(&name, slot.value, slot.expires) {
            self.slots.insert(name, Slot { value, ..slot });
            self.ring.push_back((key, id));
        }
        true
    }
}

/// The map.
pub(super) struct Shards<V> {
    shards: Vec<Mutex<Shard<V>>>,
    hasher: RandomState,
}

impl<V> Shards<V> {
    pub(super) fn new() -> Shards<V> {
        let hasher = RandomState::new();
        let shard = || Shard { slots: HashMap::with_hasher(hasher.clone()), ring: VecDeque::new(), next_id: 0, next_look: 0 };
        Shards { shards: (0..SHARDS).map(|_| Mutex::new(shard())).collect(), hasher }
    }

    /// The number of the shard that holds `key`.
    pub(super) fn index(&self, key: &str) -> usize {
        (self.hasher.hash_one(key) >> 32) as usize % self.shards.len()
    }

    /// Locks the shard that holds `key`. Never held across an await.
    pub(super) fn of(&self, key: &str) -> MutexGuard<'_, Shard<V>> {
        self.at(self.index(key))
    }

    /// Locks a shard by its number (any number). Who locks several does so in rising order.
    pub(super) fn at(&self, index: usize) -> MutexGuard<'_, Shard<V>> {
        self.shards[index % self.shards.len()].lock()
    }

    /// How many shards there are.
    pub(super) fn count(&self) -> usize {
        self.shards.len()
    }

    /// Entries held, the dead that were not met yet included.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.shards.iter().map(|s| s.lock().slots.len()).sum()
    }

    /// Places in the rings.
    #[cfg(test)]
    pub(super) fn places(&self) -> usize {
        self.shards.iter().map(|s| s.lock().ring.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn dead_entries_are_swept_by_later_insertions() {
        let map = Shards::new();
        for round in 0..50 {
            for n in 0..1000 {
                let (now, key) = (Instant::now(), format!("{round}/{n}"));
                map.of(&key).insert(&key, n, after(now, Duration::from_secs(1)), now, |_, _| {});
            }
            tokio::time::advance(Duration::from_secs(2)).await;
        }
        assert!(map.held() <= 2000, "{} of 50000 entries are still held", map.held());
        assert!(map.places() <= 2000, "{} places", map.places());
    }

    #[tokio::test(start_paused = true)]
    async fn places_of_removed_entries_do_not_pile_up() {
        let map = Shards::new();
        for n in 0..10_000 {
            let (now, key) = (Instant::now(), format!("{}", n % 7));
            map.of(&key).insert(&key, n, after(now, Duration::MAX), now, |_, _| {});
            assert_eq!(map.of(&key).remove(&key, now), Some(n));
        }
        assert_eq!(map.held(), 0);
        assert!(map.places() <= 2 * SHARDS, "{} places", map.places());
    }
}
