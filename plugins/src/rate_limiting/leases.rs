//! `policy: hybrid`: leases from the budget in the store, spent here.
//!
//! What is leased counts as used in the store, so windows are never passed; what is leased and not spent is lost to the others, one lease an
//! instance at most, since a caller's next lease is fetched by one request at a time and only when the last one is spent or over. A lease is over with the window (or
//! its slot) in which it was taken; a bucket's after a 16th of the period. What was not spent then goes back with the next fetch.

use parking_lot::{Mutex, MutexGuard};
use quick_cache::sync::Cache;
use smallvec::SmallVec;
use std::sync::Arc;
use weir_store::limits::{Back, How, Key, Outcome, Reading, Rule};
use weir_store::{Charge, Counters, StoreError, StoreResult};

/// Callers whose leases are kept at once. One that is pushed out loses what it held.
const MOST: usize = 262_144;
/// How often a request asks the store before it gives up: others may spend what it fetched for one rule while it fetches for the next.
const ROUNDS: usize = 8;

/// One rule's lease. Times are of this instance's clock, in microseconds since 1970.
#[derive(Debug, Clone, Copy, Default)]
struct Lease {
    held: u64,
    /// Of an earlier lease that is over.
    back: Back,
    /// Where the lease lies in the store's count.
    at: u64,
    /// When what is held is void.
    until: u64,
    /// What the budget had left when it was last asked.
    beyond: u64,
    reset: u64,
    /// The budget had not even this much …
    refused: u64,
    /// … and will not have it before.
    dry: u64,
}

#[derive(Default)]
struct Caller {
    leases: Mutex<SmallVec<[Lease; 2]>>,
    /// Held while a lease is fetched.
    fetching: tokio::sync::Mutex<()>,
}

/// The leases of this process, by caller. They outlive configurations.
pub(crate) struct Leases(Cache<Key, Arc<Caller>>);

impl Default for Leases {
    fn default() -> Self {
        Leases(Cache::new(MOST))
    }
}

/// One caller, and the rules for it.
pub(crate) struct Wanted<'a> {
    pub key: Key,
    pub rules: &'a [Rule],
    /// Names the rules' counts in the store.
    pub names: Vec<String>,
}

/// How much a lease takes.
fn size(rule: &Rule, lease: Option<u64>) -> u64 {
    lease.unwrap_or(rule.most() / 100).max(1)
}

impl Leases {
    /// Spends `cost` of every rule of every caller, or nothing.
    ///
    /// Errors: the store's, if it had to be asked.
    pub async fn take(&self, store: &dyn Counters, clock: impl Fn() -> u64, wanted: &[Wanted<'_>], cost: u64, lease: Option<u64>) -> StoreResult<Outcome> {
        // In rising order of their keys, in which they are locked too: two requests for the same callers can not lock each other out.
        let mut order: SmallVec<[usize; 2]> = (0..wanted.len()).collect();
        order.sort_unstable_by_key(|i| wanted[*i].key);
        let callers: SmallVec<[Arc<Caller>; 2]> = wanted.iter().map(|w| self.caller(w)).collect();
        if let Some(outcome) = spend(&mut lock(&callers, &order), wanted, &order, clock(), cost) {
            return Ok(outcome);
        }
        let mut fetching: SmallVec<[_; 2]> = SmallVec::new();
        for i in &order {
            fetching.push(callers[*i].fetching.lock().await);
        }
        for _ in 0..ROUNDS {
            let now = clock();
            let mut charges = Vec::new();
            let mut places = Vec::new();
            {
                let mut locked = lock(&callers, &order);
                if let Some(outcome) = spend(&mut locked, wanted, &order, now, cost) {
                    return Ok(outcome);
                }
                for (slot, i) in order.iter().enumerate() {
                    let asked = &wanted[*i];
                    for (place, held) in locked[slot].iter_mut().enumerate().filter(|(_, held)| held.held < cost) {
                        // Too little for this request: it goes back too, so that all that is held is one lease.
                        held.end();
                        let rule = asked.rules[place];
                        let back = std::mem::take(&mut held.back);
                        charges.push(Charge { most: size(&rule, lease), back, ..Charge::new(asked.names[place].clone(), rule, cost) });
                        places.push((slot, place));
                    }
                }
            }
            let charged = store.charge(&charges, How::UpTo).await?;
            let mut locked = lock(&callers, &order);
            for ((slot, place), reading) in places.into_iter().zip(&charged.readings) {
                locked[slot][place].fill(reading, now, cost);
            }
            if let Some(outcome) = spend(&mut locked, wanted, &order, clock(), cost) {
                return Ok(outcome);
            }
        }
        Err(StoreError::Away("leases were spent by others again and again".into()))
    }

    fn caller(&self, wanted: &Wanted<'_>) -> Arc<Caller> {
        let made = self.0.get_or_insert_with(&wanted.key, || Ok::<_, std::convert::Infallible>(Arc::new(Caller::default())));
        let Ok(caller) = made;
        let mut leases = caller.leases.lock();
        if leases.len() != wanted.rules.len() {
            leases.clear();
            leases.resize(wanted.rules.len(), Lease::default());
        }
        drop(leases);
        caller
    }
}

type Locked<'a> = SmallVec<[MutexGuard<'a, SmallVec<[Lease; 2]>>; 2]>;

fn lock<'a>(callers: &'a [Arc<Caller>], order: &[usize]) -> Locked<'a> {
    order.iter().map(|i| callers[*i].leases.lock()).collect()
}

/// Spends, or refuses for a rule whose budget is known to be dry. `None`: the store must be asked.
fn spend(locked: &mut Locked<'_>, wanted: &[Wanted<'_>], order: &[usize], now: u64, cost: u64) -> Option<Outcome> {
    let (mut lacks, mut dry) = (false, false);
    for lease in locked.iter_mut().flat_map(|leases| leases.iter_mut()) {
        if lease.until <= now {
            lease.end();
        }
        if lease.held < cost {
            lacks = true;
            dry |= lease.is_dry(now, cost);
        }
    }
    if lacks && !dry {
        return None;
    }
    let mut outcome = Outcome { allowed: !dry, ..Outcome::default() };
    for i in 0..wanted.len() {
        let slot = order.iter().position(|placed| *placed == i).unwrap_or(0);
        for lease in locked[slot].iter_mut() {
            let wait = if lease.held < cost && lease.is_dry(now, cost) { lease.dry - now } else { 0 };
            if !dry {
                lease.held -= cost;
            }
            outcome.readings.push(Reading {
                granted: if dry { 0 } else { cost },
                left: lease.held.saturating_add(lease.beyond),
                wait,
                reset: lease.reset.saturating_sub(now),
                keep: lease.until.saturating_sub(now),
                at: lease.at,
            });
        }
    }
    Some(outcome)
}

impl Lease {
    fn is_dry(&self, now: u64, cost: u64) -> bool {
        now < self.dry && cost >= self.refused
    }

    /// Nothing of it may be spent any more.
    fn end(&mut self) {
        if self.held > 0 {
            self.back = Back { at: self.at, amount: self.held };
        }
        (self.held, self.beyond) = (0, 0);
    }

    /// Takes what the store said, which was asked at `sent`: the lease ends rather too early than too late.
    fn fill(&mut self, reading: &Reading, sent: u64, cost: u64) {
        *self = Lease {
            held: reading.granted,
            back: Back::default(),
            at: reading.at,
            until: sent.saturating_add(reading.keep),
            beyond: reading.left,
            reset: sent.saturating_add(reading.reset),
            refused: cost,
            // A wait of nothing would ask the store in circles.
            dry: if reading.granted == 0 { sent.saturating_add(reading.wait.max(1000)) } else { 0 },
        };
    }
}

#[cfg(test)]
mod tests;
