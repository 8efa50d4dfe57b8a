//! What was counted in this process: bounded in memory however many callers come.

use super::{Back, Cell, How, Reading, Rule};
use crate::{Charge, Charged};
use ahash::RandomState;
use indexmap::IndexMap;
use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;
use std::hash::{BuildHasherDefault, Hash, Hasher};

const SHARDS: usize = 64;
/// Callers that are kept at once, over all limits: about 40 MB.
const MOST: usize = 64 * 4096;
/// Entries that are looked at, on each arrival of a new caller, for being over.
const SWEEP: usize = 4;
/// Entries among which the one that used least of its limit makes room when a shard is full.
const SAMPLE: usize = 16;

/// Names a caller: 128 bits by a hash with random keys, so that two callers never share a count, nor can be made to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(u128);

impl Key {
    /// A number below `parts`, for who keeps things in parts.
    pub fn part(self, parts: usize) -> usize {
        (self.0 >> 64) as usize % parts.max(1)
    }
}

/// One caller, and the rules for it that count together.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The caller.
    pub key: Key,
    /// The rules.
    pub rules: &'a [Rule],
    /// What is charged to each.
    pub cost: u64,
    /// With [`How::UpTo`], the most that is charged to each.
    pub most: u64,
    /// With [`How::UpTo`], what each gets back before.
    pub back: Back,
}

impl<'a> Asked<'a> {
    /// A charge of `cost` to each rule.
    pub fn new(key: Key, rules: &'a [Rule], cost: u64) -> Asked<'a> {
        Asked { key, rules, cost, most: cost, back: Back::default() }
    }
}

/// What came of a charge.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Whether every rule granted its cost.
    pub allowed: bool,
    /// By caller, by rule.
    pub readings: SmallVec<[Reading; 4]>,
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

/// The counts of one rule.
#[derive(Debug, Default)]
struct Counted {
    shape: u64,
    cell: Cell,
}

/// A caller.
#[derive(Debug, Default)]
struct Entry {
    counted: SmallVec<[Counted; 2]>,
    /// When nothing of it is left.
    end: u64,
    /// The largest part that is used of a limit.
    used: f32,
}

impl Entry {
    /// Makes its counts those of these rules. Counts of rules that stayed, stay.
    fn fit(&mut self, rules: &[Rule]) {
        if self.counted.len() == rules.len() && self.counted.iter().zip(rules).all(|(c, rule)| c.shape == rule.shape()) {
            return;
        }
        let mut old = std::mem::take(&mut self.counted);
        let same = |shape: u64| move |c: &mut Counted| c.shape == shape;
        self.counted = rules
            .iter()
            .map(|rule| Counted { shape: rule.shape(), cell: old.iter_mut().find_map(|c| same(rule.shape())(c).then(|| std::mem::take(&mut c.cell))).unwrap_or_default() })
            .collect();
    }

    /// Whether there is room for the cost everywhere.
    fn fits(&mut self, asked: &Asked<'_>, now: u64) -> bool {
        self.fit(asked.rules);
        let room = |(counted, rule): (&mut Counted, &Rule)| {
            let now = counted.cell.advance(rule, now);
            asked.cost <= counted.cell.room(rule, now)
        };
        asked.cost == 0 || self.counted.iter_mut().zip(asked.rules).all(room)
    }

    /// Charges, and adds what each rule says. `granted`: how much of what room there is.
    fn charge(&mut self, asked: &Asked<'_>, now: u64, back: Back, granted: impl Fn(u64) -> u64, into: &mut Outcome) {
        self.fit(asked.rules);
        (self.end, self.used) = (0, 0.0);
        for (counted, rule) in self.counted.iter_mut().zip(asked.rules) {
            let cell = &mut counted.cell;
            let then = cell.advance(rule, now);
            if back.amount > 0 {
                cell.give_back(rule, then, back);
            }
            let granted = granted(cell.room(rule, then));
            into.allowed &= granted >= asked.cost;
            let charged = cell.charge(rule, granted);
            let reading = cell.reading(rule, then, asked.cost, charged);
            into.readings.push(reading);
            self.end = self.end.max(cell.end(rule, then));
            self.used = self.used.max(1.0 - reading.left as f32 / rule.most().max(1) as f32);
        }
    }
}

#[derive(Default)]
struct Shard {
    entries: IndexMap<u128, Entry, BuildHasherDefault<Ready>>,
    cursor: usize,
}

/// Counts by caller. A few locks, each for a part of the callers; no task, no allocation for a caller that is known.
///
/// Over its bound, of a few callers the one that used least of its limit is forgotten: it begins anew, as if it had not come before. So
/// many addresses with few requests each push out one another, and who is at a limit stays there.
pub struct Meters {
    shards: Box<[Mutex<Shard>]>,
    keys: (RandomState, RandomState),
    most_per_shard: usize,
}

impl Default for Meters {
    fn default() -> Self {
        Meters::bounded(MOST)
    }
}

impl Meters {
    /// For so many callers at most.
    pub fn bounded(most: usize) -> Meters {
        Meters {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            keys: (RandomState::new(), RandomState::new()),
            most_per_shard: (most / SHARDS).max(1),
        }
    }

    /// The key of a caller's name.
    pub fn key(&self, name: impl Hash) -> Key {
        Key(u128::from(self.keys.0.hash_one(&name)) << 64 | u128::from(self.keys.1.hash_one(&name)))
    }

    /// Charges. Callers of one call must differ.
    pub fn charge(&self, now: u64, asked: &[Asked<'_>], how: How) -> Outcome {
        let mut outcome = Outcome { allowed: true, ..Outcome::default() };
        // Locked in rising order: two calls for the same callers can not lock each other out.
        let mut order: SmallVec<[usize; 4]> = asked.iter().map(|a| a.key.part(SHARDS)).collect();
        order.sort_unstable();
        order.dedup();
        let mut locked: SmallVec<[MutexGuard<'_, Shard>; 4]> = order.iter().map(|index| self.shards[*index].lock()).collect();
        let place = |key: Key| order.iter().position(|index| *index == key.part(SHARDS)).unwrap_or(0);
        let fits = how != How::AllOrNone || asked.iter().all(|a| locked[place(a.key)].with(a, now, self.most_per_shard, |entry| entry.fits(a, now)));
        for a in asked {
            let granted = |room: u64| match how {
                How::AllOrNone => if fits { a.cost } else { 0 },
                How::Anyway => a.cost,
                How::UpTo if room < a.cost => 0,
                How::UpTo => a.most.max(a.cost).min(room),
            };
            let back = if how == How::UpTo { a.back } else { Back::default() };
            locked[place(a.key)].with(a, now, self.most_per_shard, |entry| entry.charge(a, now, back, granted, &mut outcome));
        }
        outcome
    }

    /// The same for charges as a store gets them.
    pub fn charge_named(&self, now: u64, charges: &[Charge], how: How) -> Charged {
        let asked: SmallVec<[Asked<'_>; 4]> = charges
            .iter()
            .map(|c| Asked { key: self.key(&c.key), rules: std::slice::from_ref(&c.rule), cost: c.cost, most: c.most, back: c.back })
            .collect();
        let outcome = self.charge(now, &asked, how);
        Charged { allowed: outcome.allowed, readings: outcome.readings.into_vec() }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|s| s.lock().entries.len()).sum()
    }
}

impl Shard {
    /// Works on a caller. Who is asked about without being charged is not kept.
    fn with<R>(&mut self, asked: &Asked<'_>, now: u64, most: usize, work: impl FnOnce(&mut Entry) -> R) -> R {
        if let Some(entry) = self.entries.get_mut(&asked.key.0) {
            return work(entry);
        }
        if asked.cost == 0 {
            return work(&mut Entry::default());
        }
        self.make_room(now, most);
        work(self.entries.entry(asked.key.0).or_default())
    }

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
        let used = |index: &usize| self.entries.get_index(*index).map_or(0.0, |(_, entry)| entry.used);
        let least = (0..SAMPLE).map(|_| fastrand::usize(..self.entries.len())).min_by(|a, b| used(a).total_cmp(&used(b)));
        if let Some(index) = least {
            self.entries.swap_remove_index(index);
        }
    }
}
