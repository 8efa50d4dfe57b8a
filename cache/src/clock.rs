//! Time for ages and lifetimes: one word of memory to read instead of a system call per hit.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// How often the system clock is looked at: ages are right to this much.
const TICK: Duration = Duration::from_millis(20);

/// A clock that is cheap to read. Clones show the same time.
#[derive(Debug, Clone)]
pub struct Clock {
    millis: Arc<AtomicU64>,
}

impl Clock {
    /// The system's time, as a background thread last saw it (20 ms ago at most, unless the machine stalls).
    pub fn system() -> Clock {
        static CLOCK: OnceLock<Clock> = OnceLock::new();
        CLOCK
            .get_or_init(|| {
                let clock = Clock { millis: Arc::new(AtomicU64::new(system_ms())) };
                let millis = clock.millis.clone();
                let ticker = thread::Builder::new().name("weir-clock".into()).spawn(move || {
                    loop {
                        millis.store(system_ms(), Ordering::Relaxed);
                        thread::sleep(TICK);
                    }
                });
                if let Err(error) = ticker {
                    tracing::error!(%error, "no clock thread: cached pages would never grow old");
                    std::process::abort();
                }
                clock
            })
            .clone()
    }

    /// A clock that stands still until it is set: for tests and simulations.
    pub fn manual(unix_seconds: u64) -> Clock {
        Clock { millis: Arc::new(AtomicU64::new(unix_seconds.saturating_mul(1000))) }
    }

    /// Sets the time, in milliseconds since 1970. A system clock overwrites it at its next tick.
    pub fn set_ms(&self, unix_millis: u64) {
        self.millis.store(unix_millis, Ordering::Relaxed);
    }

    /// Moves the time forward. A system clock overwrites it at its next tick.
    pub fn advance(&self, by: Duration) {
        self.millis.fetch_add(by.as_millis().min(u64::MAX as u128) as u64, Ordering::Relaxed);
    }

    /// Milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        self.millis.load(Ordering::Relaxed)
    }

    /// Whole seconds since 1970.
    pub fn now(&self) -> u64 {
        self.now_ms() / 1000
    }
}

fn system_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// Whole seconds since 1970 by the system's coarse clock.
pub fn now() -> u64 {
    Clock::system().now()
}

/// Milliseconds since 1970 by the system's coarse clock.
pub fn now_ms() -> u64 {
    Clock::system().now_ms()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_clock_moves_by_itself() {
        let before = now_ms();
        assert!(before > 1_600_000_000_000);
        for _ in 0..500 {
            if now_ms() > before {
                return;
            }
            thread::sleep(TICK);
        }
        panic!("the clock stands still");
    }

    #[test]
    fn a_manual_clock_obeys() {
        let clock = Clock::manual(100);
        let same = clock.clone();
        clock.advance(Duration::from_millis(1500));
        assert_eq!((same.now(), same.now_ms()), (101, 101_500));
    }
}
