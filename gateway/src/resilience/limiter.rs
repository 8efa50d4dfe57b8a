//! So many requests at once; the others wait in order of priority, or are refused.

use super::adaptive::{AdaptiveRules, Estimate, Window};
use parking_lot::Mutex;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::{Relaxed, SeqCst}};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Answers that a window needs before it says something.
const ENOUGH: u32 = 5;

/// How much a request matters when not all can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Priority {
    /// Refused first.
    Low,
    /// What nothing is said about.
    #[default]
    Normal,
    /// Served before the usual.
    High,
    /// Served before everything else: health checks.
    Critical,
}

impl Priority {
    /// From the lowest.
    pub const ALL: [Priority; 4] = [Priority::Low, Priority::Normal, Priority::High, Priority::Critical];

    /// For metrics.
    pub fn word(self) -> &'static str {
        ["low", "normal", "high", "critical"][self as usize]
    }
}

/// The numbers of the configuration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LimitRules {
    /// Requests at once; the first limit where it adapts.
    pub limit: u32,
    /// How it adapts.
    pub adaptive: Option<AdaptiveRules>,
    /// Requests that may wait.
    pub queue: u32,
    /// How long.
    pub queue_timeout: Duration,
    /// Percentage that low priority can not take.
    pub reserve: u32,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shed {
    /// The queue is full.
    Full,
    /// A request of higher priority took its place in the queue.
    Displaced,
    /// It waited as long as it may.
    TimedOut,
}

impl Shed {
    /// All.
    pub const ALL: [Shed; 3] = [Shed::Full, Shed::Displaced, Shed::TimedOut];

    /// For log and metric.
    pub fn word(self) -> &'static str {
        match self {
            Shed::Full => "overloaded",
            Shed::Displaced => "displaced",
            Shed::TimedOut => "queue-timeout",
        }
    }
}

type Answer = Result<Permit, Shed>;
/// The highest priority first, and there who came first.
type Place = (Reverse<Priority>, u64);

#[derive(Default)]
struct Queue {
    waiting: BTreeMap<Place, oneshot::Sender<Answer>>,
    next: u64,
}

/// A limit with its queue. Live state: it outlives a configuration.
pub struct Limiter {
    /// `service:NAME`, `upstream:NAME` or `edge:origin`.
    pub name: String,
    epoch: Instant,
    limit: AtomicU32,
    low_limit: AtomicU32,
    under_way: AtomicU32,
    waiting: AtomicU32,
    queue: Mutex<Queue>,
    adapts: AtomicBool,
    adaptive: Mutex<Adapting>,
    seen: Seen,
    shed: [AtomicU64; 4],
    queued: AtomicU64,
    /// Places given back.
    done: AtomicU64,
    pace: Mutex<Pace>,
}

/// How fast places become free, measured only while requests are refused.
#[derive(Default)]
struct Pace {
    since: Option<Instant>,
    done: u64,
    /// Places a second; 0: not known.
    rate: f64,
}

/// Over how long the pace is measured.
const PACE: Duration = Duration::from_secs(2);
/// The longest time after which a refused client is asked to come again.
const LONGEST_WAIT: f64 = 30.0;

#[derive(Default)]
struct Adapting {
    rules: Option<(LimitRules, AdaptiveRules)>,
    estimate: Option<Estimate>,
}

/// What the running window saw, in parts that need no lock.
#[derive(Default)]
struct Seen {
    answered: AtomicU32,
    micros: AtomicU64,
    dropped: AtomicU32,
    peak: AtomicU32,
    /// Microseconds since the limiter's epoch when the window may end.
    ends: AtomicU64,
    /// What began before does not count.
    since: AtomicU64,
}

impl Limiter {
    pub(super) fn new(name: &str, rules: &LimitRules) -> Arc<Limiter> {
        let limiter = Arc::new(Limiter {
            name: name.into(),
            epoch: Instant::now(),
            limit: AtomicU32::new(0),
            low_limit: AtomicU32::new(0),
            under_way: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            queue: Mutex::default(),
            adapts: AtomicBool::new(false),
            adaptive: Mutex::default(),
            seen: Seen::default(),
            shed: Default::default(),
            queued: AtomicU64::new(0),
            done: AtomicU64::new(0),
            pace: Mutex::default(),
        });
        limiter.configure(rules);
        limiter
    }

    /// Takes over the numbers of a configuration. A limit that adapts goes on from where it is.
    pub(super) fn configure(self: &Arc<Self>, rules: &LimitRules) {
        let mut adapting = self.adaptive.lock();
        let known = adapting.rules.map(|(rules, _)| rules);
        match rules.adaptive {
            Some(_) if known == Some(*rules) => return,
            Some(own) => {
                let estimate = adapting.estimate.take().filter(|_| known.is_some()).unwrap_or_else(|| Estimate::new(rules.limit, &own));
                let limit = estimate.limit().clamp(own.min, own.max.max(own.min));
                *adapting = Adapting { rules: Some((*rules, own)), estimate: Some(estimate) };
                self.set(limit, rules.reserve);
            }
            None => {
                *adapting = Adapting::default();
                self.set(rules.limit, rules.reserve);
            }
        }
        self.adapts.store(rules.adaptive.is_some(), Relaxed);
        drop(adapting);
        self.wake();
    }

    fn set(&self, limit: u32, reserve: u32) {
        self.limit.store(limit, SeqCst);
        self.low_limit.store((limit - (u64::from(limit) * u64::from(reserve.min(99)) / 100) as u32).max(1), SeqCst);
    }

    fn take(self: &Arc<Self>, priority: Priority) -> Option<Permit> {
        let limit = if priority == Priority::Low { &self.low_limit } else { &self.limit };
        let mut now = self.under_way.load(SeqCst);
        loop {
            if now >= limit.load(SeqCst) {
                return None;
            }
            match self.under_way.compare_exchange_weak(now, now + 1, SeqCst, SeqCst) {
                Ok(_) => return Some(self.permit(now + 1)),
                Err(other) => now = other,
            }
        }
    }

    fn permit(self: &Arc<Self>, under_way: u32) -> Permit {
        let began = if self.adapts.load(Relaxed) {
            self.seen.peak.fetch_max(under_way, Relaxed);
            Some(Instant::now())
        } else {
            None
        };
        Permit { limiter: Some(self.clone()), began }
    }

    /// A place, at once or after a wait.
    ///
    /// Errors: why there is none.
    pub async fn enter(self: &Arc<Self>, rules: &LimitRules, priority: Priority) -> Result<Permit, Shed> {
        if self.waiting.load(SeqCst) == 0
            && let Some(permit) = self.take(priority)
        {
            return Ok(permit);
        }
        let shed = match self.line_up(rules, priority) {
            Ok(Ok(permit)) => return Ok(permit),
            Ok(Err(waiter)) => match waiter.wait(rules.queue_timeout).await {
                Ok(permit) => return Ok(permit),
                Err(shed) => shed,
            },
            Err(shed) => shed,
        };
        self.shed[priority as usize].fetch_add(1, Relaxed);
        Err(shed)
    }

    /// A place now, or one in the queue.
    fn line_up(self: &Arc<Self>, rules: &LimitRules, priority: Priority) -> Result<Result<Permit, Waiter>, Shed> {
        let mut queue = self.queue.lock();
        // Nobody overtakes those of the same or a higher priority.
        let first = queue.waiting.first_key_value().is_none_or(|((Reverse(best), _), _)| *best < priority);
        if first && let Some(permit) = self.take(priority) {
            return Ok(Ok(permit));
        }
        if queue.waiting.len() >= rules.queue as usize {
            let last = queue.waiting.last_key_value().map(|((Reverse(last), _), _)| *last);
            if last.is_none_or(|last| last >= priority) {
                return Err(Shed::Full);
            }
            if let Some((_, sender)) = queue.waiting.pop_last() {
                let _ = sender.send(Err(Shed::Displaced));
            }
        }
        let place = (Reverse(priority), queue.next);
        queue.next += 1;
        let (sender, receiver) = oneshot::channel();
        queue.waiting.insert(place, sender);
        self.waiting.store(queue.waiting.len() as u32, SeqCst);
        self.queued.fetch_add(1, Relaxed);
        // A place that became free since we looked was given back by someone who may not have seen us wait.
        self.serve(&mut queue);
        Ok(Err(Waiter { limiter: self.clone(), place, receiver }))
    }

    /// Gives free places to those who wait.
    fn serve(self: &Arc<Self>, queue: &mut Queue) {
        while let Some(entry) = queue.waiting.first_entry() {
            let Some(permit) = self.take(entry.key().0.0) else { break };
            if let Err(Ok(permit)) = entry.remove().send(Ok(permit)) {
                // It left in this moment. Its place is for the next; dropping it here would ask for the queue that we hold.
                permit.forget();
            }
        }
        self.waiting.store(queue.waiting.len() as u32, SeqCst);
    }

    fn wake(self: &Arc<Self>) {
        if self.waiting.load(SeqCst) > 0 {
            self.serve(&mut self.queue.lock());
        }
    }

    /// An answer began, `latency` after the request left.
    fn answered(&self, began: Instant, dropped: bool) {
        let micros = |at: Instant| u64::try_from(at.duration_since(self.epoch).as_micros()).unwrap_or(u64::MAX);
        let now = Instant::now();
        let seen = &self.seen;
        if micros(began) < seen.since.load(Relaxed) {
            return;
        }
        if dropped {
            seen.dropped.fetch_add(1, Relaxed);
        } else {
            seen.micros.fetch_add(u64::try_from(now.duration_since(began).as_micros()).unwrap_or(0), Relaxed);
            seen.answered.fetch_add(1, Relaxed);
        }
        let count = seen.answered.load(Relaxed) + seen.dropped.load(Relaxed);
        if count < ENOUGH || micros(now) < seen.ends.load(Relaxed) {
            return;
        }
        // Whoever comes while another one closes the window just goes on.
        let Some(mut adapting) = self.adaptive.try_lock() else { return };
        let Adapting { rules: Some((rules, own)), estimate: Some(estimate) } = &mut *adapting else { return };
        let window = Window {
            answered: seen.answered.swap(0, Relaxed),
            latency: Duration::from_micros(seen.micros.swap(0, Relaxed)),
            dropped: seen.dropped.swap(0, Relaxed),
            peak: seen.peak.swap(self.under_way.load(Relaxed), Relaxed),
        };
        let probed = estimate.is_probing();
        estimate.window(&window, now.duration_since(self.epoch), own);
        if estimate.is_probing() != probed {
            seen.since.store(micros(now), Relaxed);
        }
        seen.ends.store(micros(now + own.window), Relaxed);
        self.set(estimate.limit(), rules.reserve);
    }

    /// When a client that was refused should come again: when those who are here now will have gone, at the pace of late, and a random
    /// half of that later, so that not all come at once. From a second to half a minute.
    pub fn come_again(&self) -> Duration {
        let (now, done) = (Instant::now(), self.done.load(Relaxed));
        let rate = {
            let mut pace = self.pace.lock();
            let taken = pace.since.map(|since| now.duration_since(since));
            match taken {
                // An hour ago says nothing of now.
                Some(taken) if taken <= PACE * 10 => {
                    if taken >= PACE {
                        *pace = Pace { since: Some(now), done, rate: (done - pace.done) as f64 / taken.as_secs_f64() };
                    }
                }
                _ => *pace = Pace { since: Some(now), done, rate: 0.0 },
            }
            pace.rate
        };
        let here = f64::from(self.waiting.load(Relaxed) + self.under_way.load(Relaxed)).max(1.0);
        let wait = if rate > 0.0 { here / rate * (1.0 + fastrand::f64() / 2.0) } else { 1.0 };
        Duration::from_secs_f64(wait.clamp(1.0, LONGEST_WAIT))
    }

    /// How it stands.
    pub fn state(&self) -> LimiterState {
        LimiterState {
            limit: self.limit.load(Relaxed),
            under_way: self.under_way.load(Relaxed),
            waiting: self.waiting.load(Relaxed),
            queued: self.queued.load(Relaxed),
            shed: std::array::from_fn(|i| self.shed[i].load(Relaxed)),
        }
    }
}

/// How a limiter stands.
#[derive(Debug, Clone, Copy)]
pub struct LimiterState {
    /// Requests at once, now.
    pub limit: u32,
    /// Requests with a place.
    pub under_way: u32,
    /// Requests in the queue.
    pub waiting: u32,
    /// Requests that had to wait, since the start.
    pub queued: u64,
    /// Requests refused since the start, by priority.
    pub shed: [u64; 4],
}

/// A place in the queue. Dropping it leaves.
struct Waiter {
    limiter: Arc<Limiter>,
    place: Place,
    receiver: oneshot::Receiver<Answer>,
}

impl Waiter {
    async fn wait(mut self, longest: Duration) -> Answer {
        match tokio::time::timeout(longest, &mut self.receiver).await {
            Ok(Ok(answer)) => answer,
            // The sender is only dropped with the limiter, which we hold.
            Ok(Err(_)) => Err(Shed::Full),
            Err(_) => Err(Shed::TimedOut),
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut queue = self.limiter.queue.lock();
        if queue.waiting.remove(&self.place).is_some() {
            self.limiter.waiting.store(queue.waiting.len() as u32, SeqCst);
        }
        // A permit that was sent and not received goes back when the receiver is dropped, which is after this lock.
    }
}

/// A place. It is given back when this is dropped: when the answer's body is through.
pub struct Permit {
    limiter: Option<Arc<Limiter>>,
    /// Where the limit adapts.
    began: Option<Instant>,
}

impl Permit {
    /// The head of an answer came, or (`dropped`) the service refused or was too late.
    pub fn answered(&mut self, dropped: bool) {
        if let (Some(began), Some(limiter)) = (self.began.take(), &self.limiter) {
            limiter.answered(began, dropped);
        }
    }

    /// Gives the place back without looking who waits for it.
    fn forget(mut self) {
        if let Some(limiter) = self.limiter.take() {
            limiter.under_way.fetch_sub(1, SeqCst);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(limiter) = self.limiter.take() {
            limiter.done.fetch_add(1, Relaxed);
            limiter.under_way.fetch_sub(1, SeqCst);
            limiter.wake();
        }
    }
}

#[cfg(test)]
#[path = "limiter_tests.rs"]
mod tests;
