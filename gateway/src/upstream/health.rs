//! The health of one endpoint: what is known of it, who said so, and how much traffic it may have now. It outlives configurations.

use parking_lot::Mutex;
use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// Taken out until a time.
const EJECTED: u32 = 1;
/// Taken out until a probe or an operator says otherwise.
const DOWN: u32 = 2;
/// Gets no new requests, whatever its health.
const DRAINING: u32 = 4;
/// Gets its share little by little.
const WARMING: u32 = 8;
/// The share with which a slow start begins.
const FIRST_SHARE: f32 = 0.1;

/// What an endpoint is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// In use.
    Up,
    /// In use with a part of its weight.
    SlowStart,
    /// Out.
    Down,
    /// Out for new requests; those under way go on.
    Draining,
}

impl State {
    /// In a word, for the admin port.
    pub fn word(self) -> &'static str {
        match self {
            State::Up => "up",
            State::SlowStart => "slow-start",
            State::Down => "down",
            State::Draining => "draining",
        }
    }
}

/// What is counted towards a threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Count {
    /// Failures of any kind within a time (nginx).
    Fails,
    /// Failing statuses in a row.
    Http,
    /// Failed connections in a row.
    Tcp,
    /// Timeouts in a row.
    Timeouts,
    /// Server errors in a row, for outliers.
    Errors,
}

/// See the module.
#[derive(Debug)]
pub struct Health {
    epoch: Instant,
    flags: AtomicU32,
    /// Milliseconds since `epoch` at which an ejection ends.
    until: AtomicU64,
    /// Milliseconds since `epoch` at which the slow start began.
    warm_since: AtomicU64,
    /// Milliseconds since `epoch` of the first of the failures that are counted within a time.
    first_fail: AtomicU64,
    counts: [AtomicU32; 5],
    /// Successes in a row while it is down.
    successes: AtomicU32,
    /// Times out so far, one less for each interval without: they make the next one longer.
    pub(super) ejections: AtomicU32,
    /// Answers and server errors since success rates were compared last.
    pub(super) window: [AtomicU32; 2],
    reason: Mutex<String>,
}

impl Default for Health {
    fn default() -> Self {
        Health {
            epoch: Instant::now(),
            flags: AtomicU32::new(0),
            until: AtomicU64::new(0),
            warm_since: AtomicU64::new(0),
            first_fail: AtomicU64::new(0),
            counts: Default::default(),
            successes: AtomicU32::new(0),
            ejections: AtomicU32::new(0),
            window: Default::default(),
            reason: Mutex::default(),
        }
    }
}

impl Health {
    fn now(&self) -> u64 {
        self.epoch.elapsed().as_millis() as u64
    }

    /// The part of its weight that the endpoint may use: 0 (out) to 1. The usual case costs one load.
    pub(super) fn share(&self, slow_start: Duration) -> f32 {
        let flags = self.flags.load(Relaxed);
        if flags == 0 {
            return 1.0;
        }
        if flags & (DRAINING | DOWN) != 0 || (flags & EJECTED != 0 && self.now() < self.until.load(Relaxed)) {
            return 0.0;
        }
        if flags & WARMING == 0 || slow_start.is_zero() {
            return 1.0;
        }
        let since = self.now().saturating_sub(self.warm_since.load(Relaxed)) as f32;
        let share = since / (slow_start.as_millis() as f32).max(1.0);
        if share >= 1.0 {
            self.flags.fetch_and(!WARMING, Relaxed);
            return 1.0;
        }
        share.max(FIRST_SHARE)
    }

    /// Whether new requests are kept from it whatever its health.
    pub(super) fn is_draining(&self) -> bool {
        self.flags.load(Relaxed) & DRAINING != 0
    }

    /// A request is about to go there. `false`: the endpoint's time out is over, but another request is trying it already.
    pub(super) fn enter(&self, again_after: Duration) -> bool {
        if self.flags.load(Relaxed) & EJECTED == 0 {
            return true;
        }
        let (now, until) = (self.now(), self.until.load(Relaxed));
        now < until || self.until.compare_exchange(until, now + again_after.as_millis().max(1) as u64, Relaxed, Relaxed).is_ok()
    }

    /// What it is now.
    pub fn state(&self) -> State {
        let flags = self.flags.load(Relaxed);
        if flags & DRAINING != 0 {
            State::Draining
        } else if flags & DOWN != 0 || (flags & EJECTED != 0 && self.now() < self.until.load(Relaxed)) {
            State::Down
        } else if flags & WARMING != 0 {
            State::SlowStart
        } else {
            State::Up
        }
    }

    /// Why it is not up; empty while it is.
    pub fn reason(&self) -> String {
        if self.flags.load(Relaxed) == 0 { String::new() } else { self.reason.lock().clone() }
    }

    /// A good answer came. `true`: it is in again by that.
    pub(super) fn succeeded(&self, slow_start: Duration) -> bool {
        for count in &self.counts {
            if count.load(Relaxed) != 0 {
                count.store(0, Relaxed);
            }
        }
        let back = self.flags.load(Relaxed) & EJECTED != 0;
        if back {
            self.warm(slow_start);
            self.flags.fetch_and(!EJECTED, Relaxed);
        }
        back
    }

    /// One more of a kind; the number of them. `within`: older ones do not count.
    pub(super) fn count(&self, what: Count, within: Option<Duration>) -> u32 {
        let count = &self.counts[what as usize];
        if let Some(within) = within {
            let now = self.now();
            if count.load(Relaxed) == 0 || now.saturating_sub(self.first_fail.load(Relaxed)) > within.as_millis() as u64 {
                self.first_fail.store(now, Relaxed);
                count.store(0, Relaxed);
            }
        }
        count.fetch_add(1, Relaxed) + 1
    }

    /// Ends a row of one kind.
    pub(super) fn forget(&self, what: Count) {
        if self.counts[what as usize].load(Relaxed) != 0 {
            self.counts[what as usize].store(0, Relaxed);
        }
    }

    /// Takes it out for a while. `true`: it was in.
    pub(super) fn eject(&self, length: Duration, reason: &str) -> bool {
        self.until.store(self.now() + length.as_millis().max(1) as u64, Relaxed);
        let before = self.flags.fetch_or(EJECTED, Relaxed);
        reason.clone_into(&mut self.reason.lock());
        before & (EJECTED | DOWN) == 0
    }

    /// Takes it out until [`Health::up`]. `true`: it was in.
    pub fn down(&self, reason: &str) -> bool {
        self.successes.store(0, Relaxed);
        let before = self.flags.fetch_or(DOWN, Relaxed);
        reason.clone_into(&mut self.reason.lock());
        before & (EJECTED | DOWN) == 0
    }

    /// Lets no new request go there until [`Health::up`].
    pub fn drain(&self, reason: &str) {
        self.flags.fetch_or(DRAINING, Relaxed);
        reason.clone_into(&mut self.reason.lock());
    }

    /// All is well again, with a slow start if it was out. What was counted is forgotten.
    pub fn up(&self, slow_start: Duration) {
        self.counts.iter().for_each(|c| c.store(0, Relaxed));
        self.ejections.store(0, Relaxed);
        if self.flags.load(Relaxed) & (EJECTED | DOWN | DRAINING) != 0 {
            self.warm(slow_start);
        }
        self.flags.fetch_and(WARMING, Relaxed);
    }

    /// A probe found it well. `true`: it is in again by that.
    pub(super) fn probed_well(&self, successes: u32, slow_start: Duration) -> bool {
        for what in [Count::Http, Count::Tcp, Count::Timeouts] {
            self.forget(what);
        }
        if successes == 0 || self.flags.load(Relaxed) & (EJECTED | DOWN) == 0 {
            return false;
        }
        if self.successes.fetch_add(1, Relaxed) + 1 < successes {
            return false;
        }
        self.successes.store(0, Relaxed);
        self.warm(slow_start);
        self.flags.fetch_and(!(EJECTED | DOWN), Relaxed);
        true
    }

    /// A probe found it ill: successes must be in a row.
    pub(super) fn probed_ill(&self) {
        self.successes.store(0, Relaxed);
    }

    /// Begins a slow start.
    pub(super) fn warm(&self, slow_start: Duration) {
        if !slow_start.is_zero() {
            self.warm_since.store(self.now(), Relaxed);
            self.flags.fetch_or(WARMING, Relaxed);
            "it came a short while ago".clone_into(&mut self.reason.lock());
        }
    }
}
