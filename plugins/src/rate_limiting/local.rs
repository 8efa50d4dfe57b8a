//! Counters of this process: bounded in memory however many callers come.

use super::window::Window;
use ahash::RandomState;
use indexmap::IndexMap;
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::hash::{BuildHasherDefault, Hasher};

const SHARDS: usize = 64;
/// Callers that are kept at once, over all limits: about 30 MB.
const MOST: usize = 64 * 4096;
/// Entries that are looked at, on each arrival of a new caller, for being over.
const SWEEP: usize = 4;
/// Entries among which the least active makes room when a shard is full of running windows.
const SAMPLE: usize = 16;

/// Start of a window, and its count.
type Counts = SmallVec<[(u64, u64); 2]>;

struct Entry {
    counts: Counts,
    /// When its last window is over.
    end: u64,
}

#[derive(Default)]
struct Shard {
    entries: IndexMap<u128, Entry, BuildHasherDefault<Ready>>,
    cursor: usize,
}

/// The keys are random-keyed hashes already.
#[derive(Default)]
struct Ready(u64);

impl Hasher for Ready {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u128(&mut self, value: u128) {
        self.0 = value as u64;
    }
}

/// Counts by caller and window. Outlives configurations, so that a reload forgives nobody.
pub(crate) struct LocalCounters {
    shards: Box<[Mutex<Shard>]>,
    keys: (RandomState, RandomState),
    most_per_shard: usize,
}

impl Default for LocalCounters {
    fn default() -> Self {
        LocalCounters::bounded(MOST)
    }
}

impl LocalCounters {
    fn bounded(most: usize) -> LocalCounters {
        LocalCounters {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            keys: (RandomState::new(), RandomState::new()),
            most_per_shard: (most / SHARDS).max(1),
        }
    }

    /// Charges one to each window, or to none if one is full. The counts after that, in the order of the windows.
    pub(crate) fn take(&self, who: (&str, &str, &str), windows: &[Window]) -> (bool, Vec<u64>) {
        self.with(who, windows, |counts| {
            let allowed = counts.iter().zip(windows).all(|(slot, window)| slot.1 < window.limit);
            if allowed {
                counts.iter_mut().for_each(|slot| slot.1 += 1);
            }
            (allowed, counts.iter().map(|slot| slot.1).collect())
        })
    }

    /// Charges `by` to each window, whatever the limits.
    pub(crate) fn add(&self, who: (&str, &str, &str), windows: &[Window], by: u64) {
        self.with(who, windows, |counts| counts.iter_mut().for_each(|slot| slot.1 = slot.1.saturating_add(by)));
    }

    /// The counts, in the order of the windows. Nothing is kept of a caller that is not known.
    pub(crate) fn peek(&self, who: (&str, &str, &str), windows: &[Window]) -> Vec<u64> {
        let key = self.key(who);
        let shard = self.shard(key).lock();
        let counts = shard.entries.get(&key).map(|entry| entry.counts.as_slice()).unwrap_or_default();
        let count = |(place, window): (usize, &Window)| counts.get(place).filter(|slot| slot.0 == window.start).map_or(0, |slot| slot.1);
        windows.iter().enumerate().map(count).collect()
    }

    /// 128 random-keyed bits: two callers never share a count.
    fn key(&self, who: (&str, &str, &str)) -> u128 {
        u128::from(self.keys.0.hash_one(who)) << 64 | u128::from(self.keys.1.hash_one(who))
    }

    fn shard(&self, key: u128) -> &Mutex<Shard> {
        &self.shards[(key >> 64) as usize % SHARDS]
    }

    /// Works on a caller's counts of these windows; those of windows that are over begin anew.
    fn with<R>(&self, who: (&str, &str, &str), windows: &[Window], work: impl FnOnce(&mut Counts) -> R) -> R {
        let key = self.key(who);
        let end = windows.iter().map(|w| w.end).max().unwrap_or(0);
        let now = windows.iter().map(|w| w.start).max().unwrap_or(0);
        let mut shard = self.shard(key).lock();
        if !shard.entries.contains_key(&key) {
            shard.make_room(now, self.most_per_shard);
        }
        let entry = shard.entries.entry(key).or_insert_with(|| Entry { counts: Counts::new(), end });
        entry.end = end;
        entry.counts.resize(windows.len(), (0, 0));
        for (slot, window) in entry.counts.iter_mut().zip(windows) {
            if slot.0 != window.start {
                *slot = (window.start, 0);
            }
        }
        work(&mut entry.counts)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.shards.iter().map(|s| s.lock().entries.len()).sum()
    }
}

impl Shard {
    fn make_room(&mut self, now: u64, most: usize) {
        for _ in 0..SWEEP {
            match self.entries.get_index(self.cursor) {
                None => self.cursor = 0,
                Some((_, entry)) if entry.end <= now => drop(self.entries.swap_remove_index(self.cursor)),
                Some(_) => self.cursor += 1,
            }
        }
        if self.entries.len() < most {
            return;
        }
        // An attacker with many addresses fills the table with callers of one request each: those go, and the busy ones stay limited.
        let least = (0..SAMPLE)
            .map(|_| fastrand::usize(..self.entries.len()))
            .min_by_key(|i| self.entries.get_index(*i).map(|(_, e)| e.counts.iter().map(|slot| slot.1).max().unwrap_or(0)));
        if let Some(index) = least {
            self.entries.swap_remove_index(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::window::Period;
    use super::*;
    use proptest::prelude::*;
    use std::{collections::HashMap, sync::Arc};

    fn windows(now: u64, second: u64, minute: u64) -> [Window; 2] {
        [Period::Second.window(now, second), Period::Minute.window(now, minute)]
    }

    #[test]
    fn a_refused_request_is_charged_to_no_window() {
        let counters = LocalCounters::default();
        let who = ("s", "ip", "a");
        assert_eq!(counters.take(who, &windows(60, 1, 3)), (true, vec![1, 1]));
        assert_eq!(counters.take(who, &windows(60, 1, 3)), (false, vec![1, 1]));
        assert_eq!(counters.take(who, &windows(61, 1, 3)), (true, vec![1, 2]));
        assert_eq!(counters.take(who, &windows(62, 1, 3)), (true, vec![1, 3]));
        assert_eq!(counters.take(who, &windows(63, 1, 3)), (false, vec![0, 3]));
        assert_eq!(counters.take(who, &windows(120, 1, 3)), (true, vec![1, 1]));
    }

    #[test]
    fn what_is_added_is_seen_while_its_window_lasts() {
        let counters = LocalCounters::default();
        let who = ("s", "ip", "a");
        assert_eq!(counters.peek(who, &windows(60, 1, 1)), [0, 0]);
        assert_eq!(counters.len(), 0);
        counters.add(who, &windows(60, 1, 1), 5);
        counters.add(who, &windows(61, 1, 1), 2);
        assert_eq!(counters.peek(who, &windows(61, 1, 1)), [2, 7]);
        assert_eq!(counters.peek(who, &windows(62, 1, 1)), [0, 7]);
        assert_eq!(counters.peek(who, &windows(120, 1, 1)), [0, 0]);
    }

    #[test]
    fn memory_is_bounded_and_the_busy_caller_stays_limited() {
        let counters = LocalCounters::bounded(64 * 32);
        let busy = ("s", "ip", "busy");
        for _ in 0..100 {
            counters.take(busy, &windows(60, 1000, 100));
        }
        for i in 0..50_000 {
            counters.take(("s", "ip", &i.to_string()), &windows(60, 1000, 100));
        }
        assert!(counters.len() <= 64 * 32, "{}", counters.len());
        assert!(!counters.take(busy, &windows(60, 1000, 100)).0);
    }

    #[test]
    fn what_is_over_is_swept() {
        let counters = LocalCounters::bounded(1 << 20);
        for now in 0..200u64 {
            for i in 0..200 {
                counters.take(("s", "ip", &format!("{now}.{i}")), &[Period::Second.window(now, 5)]);
            }
        }
        assert!(counters.len() < 2000, "{}", counters.len());
    }

    #[test]
    fn many_threads_get_exactly_the_limit() {
        let counters = Arc::new(LocalCounters::default());
        let admitted: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| (0..1000).filter(|_| counters.take(("s", "ip", "a"), &windows(60, 5000, 700)).0).count()))
                .collect();
            workers.into_iter().map(|w| w.join().unwrap()).sum()
        });
        assert_eq!(admitted, 700);
    }

    proptest! {
        /// Against the plainest limiter there is.
        #[test]
        fn the_same_as_a_plain_model(calls in proptest::collection::vec((0u64..3, 0u8..4), 1..200), second in 1u64..4, minute in 4u64..9) {
            let counters = LocalCounters::default();
            let mut model: HashMap<(u8, &str, u64), u64> = HashMap::new();
            let mut now = 0;
            for (step, who) in calls {
                now += step * 17;
                let keys = [(who, "second", now), (who, "minute", now / 60)];
                let free = [second, minute].iter().zip(&keys).all(|(limit, key)| model.get(key).copied().unwrap_or(0) < *limit);
                if free {
                    keys.iter().for_each(|key| *model.entry(*key).or_default() += 1);
                }
                let expected: Vec<u64> = keys.iter().map(|key| model.get(key).copied().unwrap_or(0)).collect();
                prop_assert_eq!(counters.take(("s", "ip", &who.to_string()), &windows(now, second, minute)), (free, expected));
            }
        }
    }
}
