//! Limits on how much may happen in a time: the arithmetic of the three methods, and a table of what was counted.
//!
//! Times are microseconds since 1970. What is written here in Rust, the script `CHARGE` of the Redis back end does in Lua; a test drives both
//! with one clock and compares them.
//!
//! | method | a count is kept | how much may be charged |
//! |---|---|---|
//! | fixed | until the window of the calendar ends | limit − count |
//! | sliding | in its slot, a 16th of the length, until that slot left the window | limit − counts of 17 slots: the window and the slot that it is leaving |
//! | bucket | until it has drained, `limit` in each length | burst − what has not drained |
//!
//! So a sliding window never lets more than the limit pass in *any* stretch of its length, and gives back what was used at most a 16th later.

mod clock;
mod span;
mod table;

pub use clock::Clock;
pub use span::Span;
pub use table::{Asked, Key, Meters, Outcome};

use crate::COUNTER_MAX;

/// Parts of a sliding window.
const SLOTS: u64 = 16;
/// Those, and the one that the window is leaving.
const RING: usize = SLOTS as usize + 1;
/// A time noted that is ahead by more than this comes from a clock that was wrong: it is not waited for. Less is the small difference
/// of two clocks: time stands still meanwhile, and nothing is forgiven.
const FAR: u64 = 3600 * span::SECOND;

/// How a rule counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// In windows of the calendar.
    Fixed,
    /// In a window that moves along.
    Sliding,
    /// In a bucket that drains at an even rate (GCRA).
    Bucket {
        /// The most that may be charged at once.
        burst: u64,
    },
}

/// One limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rule {
    /// How much in each span; at least 1.
    pub limit: u64,
    /// For how long.
    pub span: Span,
    /// How it is counted.
    pub method: Method,
}

/// What is charged, and what not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Everything, or nothing if one rule has no room.
    AllOrNone,
    /// Everything, whatever the limits.
    Anyway,
    /// Each by itself: as much as there is room for, up to `most`; nothing if there is room for less than the cost.
    UpTo,
}

/// What was granted once and not spent, to be taken off the count. Only what the count still holds is: nothing is given back twice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Back {
    /// [`Reading::at`] of the grant.
    pub at: u64,
    /// How much.
    pub amount: u64,
}

/// What a rule says after a charge. Times are in microseconds from now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reading {
    /// What was charged.
    pub granted: u64,
    /// What could be charged now.
    pub left: u64,
    /// Until the cost would fit; 0 if it did, `u64::MAX` if it never will.
    pub wait: u64,
    /// Until there is more room than now; 0 if there is all.
    pub reset: u64,
    /// How long the grant may be kept before it is spent without passing the limit (with a bucket: by more than the grant).
    pub keep: u64,
    /// Where in the count the grant lies, for [`Back`].
    pub at: u64,
}

impl Rule {
    /// The most that can ever be charged at once.
    pub fn most(&self) -> u64 {
        match self.method {
            Method::Fixed | Method::Sliding => self.limit,
            Method::Bucket { burst } => burst,
        }
    }

    /// Tells counts apart that mean different things. A changed limit goes on with the count.
    fn shape(&self) -> u64 {
        let span = match self.span {
            Span::Seconds(_) => self.span.seconds() << 2,
            Span::Month => 1 << 62,
            Span::Year => 2 << 62,
        };
        span | match self.method {
            Method::Fixed => 0,
            Method::Sliding => 1,
            Method::Bucket { .. } => 2,
        }
    }

    /// Length of a slot.
    fn slot(&self) -> u64 {
        (self.span.micros() / SLOTS).max(1)
    }
}

/// What a rule has counted for one caller.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cell {
    /// Start of the window, number of the newest slot, or the time from which the bucket drains.
    pub(crate) at: u64,
    /// The count; of a bucket, before it drained.
    pub(crate) used: u64,
    /// By slot number, modulo their number; only of sliding windows.
    pub(crate) slots: Option<Box<[u64; RING]>>,
}

/// A noted time that is a little ahead counts as now.
fn held(noted: u64, now: u64) -> u64 {
    if noted > now && noted - now <= FAR { noted } else { now }
}

fn narrow(wide: u128) -> u64 {
    u64::try_from(wide).unwrap_or(u64::MAX)
}

impl Cell {
    /// Forgets what is over. The time that counts, which is later than `now` where the cell has seen a later one.
    pub(crate) fn advance(&mut self, rule: &Rule, now: u64) -> u64 {
        match rule.method {
            Method::Fixed => {
                let now = held(self.at, now);
                let (start, _) = rule.span.window(now);
                if self.at != start {
                    (self.at, self.used) = (start, 0);
                }
                now
            }
            Method::Sliding => {
                let now = held(self.at.saturating_mul(rule.slot()), now);
                let newest = now / rule.slot();
                let passed = newest.saturating_sub(self.at);
                if newest < self.at || passed >= RING as u64 {
                    (self.used, self.slots) = (0, None);
                } else if let Some(slots) = &mut self.slots {
                    for gone in self.at + 1..=newest {
                        self.used -= std::mem::take(&mut slots[gone as usize % RING]);
                    }
                }
                self.at = newest;
                now
            }
            Method::Bucket { .. } => {
                let now = held(self.at, now);
                let period = rule.span.micros();
                self.at = self.at.min(now);
                let whole = (now - self.at) / period;
                self.at += whole * period;
                self.used = self.used.saturating_sub(whole.saturating_mul(rule.limit));
                if self.used <= self.drained(rule, now) {
                    (self.at, self.used) = (now, 0);
                }
                now
            }
        }
    }

    /// What has left a bucket since `at`.
    fn drained(&self, rule: &Rule, now: u64) -> u64 {
        narrow(u128::from(now - self.at) * u128::from(rule.limit) / u128::from(rule.span.micros()))
    }

    /// How much may be charged.
    pub(crate) fn room(&self, rule: &Rule, now: u64) -> u64 {
        match rule.method {
            Method::Fixed | Method::Sliding => rule.limit.saturating_sub(self.used),
            Method::Bucket { burst } => burst.saturating_sub(self.used.saturating_sub(self.drained(rule, now))),
        }
    }

    /// Adds to the count. What was added: less than `cost` only where the count ends.
    pub(crate) fn charge(&mut self, rule: &Rule, cost: u64) -> u64 {
        let cost = cost.min(COUNTER_MAX.saturating_sub(self.used));
        self.used += cost;
        if rule.method == Method::Sliding && cost > 0 {
            self.slots.get_or_insert_default()[self.at as usize % RING] += cost;
        }
        cost
    }

    /// Takes off what was granted and not spent. Of a bucket only while it has not been empty since, for then it has drained.
    pub(crate) fn give_back(&mut self, rule: &Rule, now: u64, back: Back) {
        match rule.method {
            Method::Fixed if self.at == back.at => self.used = self.used.saturating_sub(back.amount),
            Method::Bucket { .. } if self.at == back.at => {
                self.used = self.used.saturating_sub(back.amount);
                if self.used <= self.drained(rule, now) {
                    (self.at, self.used) = (now, 0);
                }
            }
            Method::Sliding if back.at <= self.at && self.at - back.at < RING as u64 => {
                if let Some(slots) = &mut self.slots {
                    let slot = &mut slots[back.at as usize % RING];
                    let amount = back.amount.min(*slot);
                    *slot -= amount;
                    self.used -= amount;
                }
            }
            _ => {}
        }
    }

    /// Until `cost` fits.
    fn wait(&self, rule: &Rule, now: u64, cost: u64) -> u64 {
        if cost <= self.room(rule, now) {
            return 0;
        }
        if cost > rule.most() {
            return u64::MAX;
        }
        match rule.method {
            Method::Fixed => rule.span.window(now).1 - now,
            Method::Sliding => {
                let mut left = self.used;
                for later in 1..=RING as u64 {
                    left -= self.slots.as_ref().map_or(0, |slots| slots[(self.at + later) as usize % RING]).min(left);
                    if left.saturating_add(cost) <= rule.limit {
                        return (self.at + later) * rule.slot() - now;
                    }
                }
                u64::MAX
            }
            Method::Bucket { burst } => {
                let over = u128::from(self.used + cost - burst) * u128::from(rule.span.micros());
                narrow(over.div_ceil(u128::from(rule.limit.max(1)))).saturating_sub(now - self.at)
            }
        }
    }

    /// Until there is more room.
    fn reset(&self, rule: &Rule, now: u64) -> u64 {
        match rule.method {
            Method::Fixed => rule.span.window(now).1 - now,
            Method::Sliding => {
                let slots = self.slots.as_ref().filter(|_| self.used > 0);
                let first = slots.and_then(|slots| (1..=RING as u64).find(|later| slots[(self.at + later) as usize % RING] > 0));
                first.map_or(0, |later| (self.at + later) * rule.slot() - now)
            }
            Method::Bucket { burst } => match self.room(rule, now) {
                full if full >= burst => 0,
                room => self.wait(rule, now, room + 1),
            },
        }
    }

    /// When nothing of it is left.
    fn end(&self, rule: &Rule, now: u64) -> u64 {
        match rule.method {
            Method::Fixed => rule.span.window(now).1,
            Method::Sliding => (self.at + RING as u64) * rule.slot(),
            Method::Bucket { .. } => {
                let drains = u128::from(self.used) * u128::from(rule.span.micros());
                self.at.saturating_add(narrow(drains.div_ceil(u128::from(rule.limit.max(1)))))
            }
        }
    }

    /// What is told after a charge of which `granted` was taken.
    pub(crate) fn reading(&mut self, rule: &Rule, now: u64, cost: u64, granted: u64) -> Reading {
        let now = self.advance(rule, now);
        let keep = match rule.method {
            Method::Fixed => rule.span.window(now).1 - now,
            Method::Sliding => (self.at + 1) * rule.slot() - now,
            Method::Bucket { .. } => rule.span.micros() / SLOTS,
        };
        let wait = if granted > 0 || cost == 0 { 0 } else { self.wait(rule, now, cost) };
        Reading { granted, left: self.room(rule, now), wait, reset: self.reset(rule, now), keep, at: self.at }
    }
}

#[cfg(test)]
mod tests;
