//! One circuit: closed, open, trying.

use super::rolling::Rolling;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::{Acquire, Relaxed, Release}};
use std::time::Duration;
use tokio::time::Instant;

/// Parts of the window.
const PARTS: usize = 10;

/// When a circuit opens and closes.
#[derive(Debug, Clone, Copy)]
pub struct CircuitRules {
    /// Percent of requests that must fail.
    pub failure_rate: u32,
    /// Fewer requests say nothing.
    pub minimum: u32,
    /// The time that is looked at.
    pub window: Duration,
    /// Percent of requests that must be slow.
    pub slow_rate: u32,
    /// How long it stays open.
    pub open_for: Duration,
    /// Requests that must succeed before it closes.
    pub probes: u32,
}

/// How a request went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Well.
    Success,
    /// Well, and too slowly.
    Slow,
    /// Badly.
    Failure,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Closed,
    Open { until: Instant },
    Trying { under_way: u32, succeeded: u32 },
}

const CLOSED: u8 = 0;
const TRYING: u8 = 1;
const OPEN: u8 = 2;

/// Counts of what happened to a circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It opened.
    Opened,
    /// It lets probes through.
    Tried,
    /// It closed.
    Closed,
    /// A request was not sent.
    Refused,
}

impl Event {
    /// All.
    pub const ALL: [Event; 4] = [Event::Opened, Event::Tried, Event::Closed, Event::Refused];

    /// For metrics.
    pub fn word(self) -> &'static str {
        ["opened", "tried", "closed", "refused"][self as usize]
    }
}

/// A circuit. While it is closed nobody takes a lock.
pub struct Circuit {
    /// `service:NAME`, `route:NAME` or `endpoint:HOST:PORT`.
    pub name: String,
    epoch: Instant,
    /// The state's number, for a look without the lock.
    shown: AtomicU8,
    /// Counts changes of state: what began before one says nothing after it.
    generation: AtomicU64,
    state: Mutex<State>,
    calls: Rolling<PARTS>,
    failures: Rolling<PARTS>,
    slow: Rolling<PARTS>,
    /// The width of a part, in microseconds: another window makes all counts void.
    width: AtomicU64,
    /// Something in the window was not a success, so that successes must be weighed too.
    suspect: AtomicBool,
    events: [AtomicU64; 4],
}

impl Circuit {
    pub(super) fn new(name: String) -> Arc<Circuit> {
        Arc::new(Circuit {
            name,
            epoch: Instant::now(),
            shown: AtomicU8::new(CLOSED),
            generation: AtomicU64::new(0),
            state: Mutex::new(State::Closed),
            calls: Rolling::default(),
            failures: Rolling::default(),
            slow: Rolling::default(),
            width: AtomicU64::new(0),
            suspect: AtomicBool::new(false),
            events: Default::default(),
        })
    }

    /// How long it will be open yet; `None`: a request may be sent (or try).
    pub fn closed_to(&self, rules: &CircuitRules) -> Option<Duration> {
        if self.shown.load(Acquire) == CLOSED {
            return None;
        }
        Self::left(&self.state.lock(), rules, Instant::now())
    }

    /// Counts a request that was not sent.
    pub fn refused(&self) {
        self.event(Event::Refused);
    }

    fn left(state: &State, rules: &CircuitRules, now: Instant) -> Option<Duration> {
        match *state {
            State::Open { until } if now < until => Some(until - now),
            // The probes under way will tell; nobody knows when.
            State::Trying { under_way, succeeded } if under_way + succeeded >= rules.probes => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// Lets a request through.
    ///
    /// Errors: how long the circuit will be open yet.
    pub fn enter(self: &Arc<Self>, rules: &CircuitRules) -> Result<Pass, Duration> {
        let generation = self.generation.load(Acquire);
        if self.shown.load(Acquire) == CLOSED {
            return Ok(Pass { circuit: self.clone(), generation, rules: *rules, told: false });
        }
        let mut state = self.state.lock();
        if let Some(left) = Self::left(&state, rules, Instant::now()) {
            self.refused();
            return Err(left);
        }
        match &mut *state {
            State::Closed => {}
            State::Open { .. } => self.change(&mut state, State::Trying { under_way: 1, succeeded: 0 }),
            State::Trying { under_way, .. } => *under_way += 1,
        }
        Ok(Pass { circuit: self.clone(), generation: self.generation.load(Relaxed), rules: *rules, told: false })
    }

    fn change(&self, state: &mut State, to: State) {
        *state = to;
        self.generation.fetch_add(1, Release);
        for counts in [&self.calls, &self.failures, &self.slow] {
            counts.clear();
        }
        self.suspect.store(false, Relaxed);
        let (number, event) = match to {
            State::Closed => (CLOSED, Event::Closed),
            State::Trying { .. } => (TRYING, Event::Tried),
            State::Open { .. } => (OPEN, Event::Opened),
        };
        self.shown.store(number, Release);
        self.event(event);
        tracing::warn!(circuit = self.name, event = event.word(), "a circuit changed its state");
    }

    fn event(&self, event: Event) {
        self.events[event as usize].fetch_add(1, Relaxed);
    }

    fn tell(&self, generation: u64, verdict: Verdict, rules: &CircuitRules) {
        if self.generation.load(Acquire) != generation {
            return;
        }
        let now = Instant::now();
        if self.shown.load(Acquire) == CLOSED {
            if self.count(verdict, now, rules) {
                let mut state = self.state.lock();
                if self.generation.load(Acquire) == generation {
                    self.change(&mut state, State::Open { until: now + rules.open_for });
                }
            }
            return;
        }
        let mut state = self.state.lock();
        if self.generation.load(Acquire) != generation {
            return;
        }
        if let State::Trying { under_way, succeeded } = &mut *state {
            *under_way = under_way.saturating_sub(1);
            match verdict {
                Verdict::Success => {
                    *succeeded += 1;
                    if *succeeded >= rules.probes {
                        self.change(&mut state, State::Closed);
                    }
                }
                Verdict::Failure | Verdict::Slow => self.change(&mut state, State::Open { until: now + rules.open_for }),
            }
        }
    }

    /// Adds to the window; whether it is enough to open the circuit.
    fn count(&self, verdict: Verdict, now: Instant, rules: &CircuitRules) -> bool {
        let width = (rules.window / PARTS as u32).max(Duration::from_millis(1));
        let micros = u64::try_from(width.as_micros()).unwrap_or(u64::MAX);
        if self.width.swap(micros, Relaxed) != micros {
            for counts in [&self.calls, &self.failures, &self.slow] {
                counts.clear();
            }
        }
        let part = self.part(now, micros);
        self.calls.add(part);
        match verdict {
            Verdict::Success if !self.suspect.load(Relaxed) => return false,
            Verdict::Success => {}
            Verdict::Slow => self.slow.add(part),
            Verdict::Failure => self.failures.add(part),
        }
        let (calls, failures, slow) = (self.calls.sum(part), self.failures.sum(part), self.slow.sum(part));
        self.suspect.store(failures + slow > 0, Relaxed);
        let reached = |some: u64, rate: u32| some > 0 && some * 100 >= calls * u64::from(rate);
        calls >= u64::from(rules.minimum) && (reached(failures, rules.failure_rate) || reached(slow, rules.slow_rate))
    }

    fn part(&self, now: Instant, micros: u64) -> u32 {
        u32::try_from(now.duration_since(self.epoch).as_micros() / u128::from(micros)).unwrap_or(u32::MAX - 1) + 1
    }

    /// Closed, and nothing was counted of late: a new one would be the same.
    pub(super) fn is_at_rest(&self) -> bool {
        let micros = self.width.load(Relaxed);
        self.shown.load(Acquire) == CLOSED && (micros == 0 || self.calls.sum(self.part(Instant::now(), micros)) == 0)
    }

    fn give_back(&self, generation: u64) {
        if self.shown.load(Acquire) == CLOSED {
            return;
        }
        let mut state = self.state.lock();
        if self.generation.load(Acquire) == generation
            && let State::Trying { under_way, .. } = &mut *state
        {
            *under_way = under_way.saturating_sub(1);
        }
    }

    /// How it stands.
    pub fn shown(&self) -> CircuitState {
        let number = self.shown.load(Acquire);
        let open_for = match *self.state.lock() {
            State::Open { until } => Some(until.saturating_duration_since(Instant::now())),
            _ => None,
        };
        CircuitState { number, word: ["closed", "trying", "open"][usize::from(number.min(OPEN))], open_for, events: std::array::from_fn(|i| self.events[i].load(Relaxed)) }
    }
}

/// How a circuit stands.
#[derive(Debug, Clone, Copy)]
pub struct CircuitState {
    /// 0 closed, 1 trying, 2 open.
    pub number: u8,
    /// The same in a word.
    pub word: &'static str,
    /// How long it will be open yet.
    pub open_for: Option<Duration>,
    /// Counts, in the order of [`Event::ALL`].
    pub events: [u64; 4],
}

/// A request that was let through. Dropped without a word (its client left), it gives its place back.
pub struct Pass {
    circuit: Arc<Circuit>,
    generation: u64,
    rules: CircuitRules,
    told: bool,
}

impl Pass {
    /// Tells how it went; only the first word counts.
    pub fn tell(&mut self, verdict: Verdict) {
        if !std::mem::replace(&mut self.told, true) {
            self.circuit.tell(self.generation, verdict, &self.rules);
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if !self.told {
            self.circuit.give_back(self.generation);
        }
    }
}

#[cfg(test)]
#[path = "circuit_tests.rs"]
mod tests;
