//! The breaker around all calls.
//!
//! ```text
//! closed ─failures in a row─► open ─time over─► one probe ─answered─► closed
//!   ▲ any answer resets          ▲                  │ failed
//!   the row                      └──────────────────┘
//! ```

use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::time::Instant;

#[derive(Default)]
struct State {
    in_a_row: u32,
    open_until: Option<Instant>,
    probing: bool,
}

/// See the module.
pub(super) struct Breaker {
    state: Mutex<State>,
    failures: u32,
    open_for: Duration,
    opened: AtomicU64,
}

/// Leave to make one call. Dropped without an outcome (the caller went away), it counts for nothing, and a probe's place is free again.
pub(super) struct Pass<'a> {
    breaker: &'a Breaker,
    probe: bool,
}

impl Breaker {
    /// Opens for `open_for` after `failures` failures in a row (at least one).
    pub(super) fn new(failures: u32, open_for: Duration) -> Breaker {
        Breaker { state: Mutex::default(), failures: failures.max(1), open_for, opened: AtomicU64::new(0) }
    }

    /// Leave for a call, or `None` while open.
    pub(super) fn enter(&self) -> Option<Pass<'_>> {
        let mut state = self.state.lock();
        let probe = match state.open_until {
            None => false,
            Some(end) if end <= Instant::now() && !state.probing => true,
            Some(_) => return None,
        };
        state.probing = probe;
        Some(Pass { breaker: self, probe })
    }

    /// Times it went from closed to open.
    pub(super) fn opened(&self) -> u64 {
        self.opened.load(Relaxed)
    }
}

impl Pass<'_> {
    /// The back end answered. Whether that says something of now.
    pub(super) fn answered(self) -> bool {
        let mut state = self.breaker.state.lock();
        // While open, only the probe counts: a call from before may have been answered just before the end.
        let counts = self.probe || state.open_until.is_none();
        if counts {
            *state = State { probing: state.probing, ..State::default() };
        }
        counts
    }

    /// It did not. Whether the breaker went from closed to open by this, or stays open by a failed probe.
    pub(super) fn failed(self) -> bool {
        let mut state = self.breaker.state.lock();
        if self.probe {
            state.open_until = Some(Instant::now() + self.breaker.open_for);
            return true;
        }
        if state.open_until.is_some() {
            return false;
        }
        state.in_a_row += 1;
        let opens = state.in_a_row >= self.breaker.failures;
        if opens {
            state.open_until = Some(Instant::now() + self.breaker.open_for);
            self.breaker.opened.fetch_add(1, Relaxed);
        }
        opens
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.probe {
            self.breaker.state.lock().probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Duration = Duration::from_millis(500);

    fn fail(breaker: &Breaker) -> bool {
        breaker.enter().expect("let through").failed()
    }

    #[tokio::test(start_paused = true)]
    async fn opens_after_failures_in_a_row_and_closes_by_one_probe() {
        let breaker = Breaker::new(3, OPEN);
        assert!(!fail(&breaker) && !fail(&breaker));
        assert!(breaker.enter().unwrap().answered());
        assert!(!fail(&breaker) && !fail(&breaker), "an answer in between starts the row anew");
        assert!(fail(&breaker));
        assert!(breaker.enter().is_none());
        tokio::time::advance(OPEN).await;
        let probe = breaker.enter().unwrap();
        assert!(breaker.enter().is_none(), "one probe only");
        assert!(probe.failed());
        assert!(breaker.enter().is_none(), "open again");
        tokio::time::advance(OPEN).await;
        assert!(breaker.enter().unwrap().answered());
        assert!(breaker.enter().is_some() && breaker.enter().is_some());
        assert!(!fail(&breaker), "the row starts from none");
        assert_eq!(breaker.opened(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_given_up_leaves_its_place() {
        let breaker = Breaker::new(1, OPEN);
        assert!(fail(&breaker));
        tokio::time::advance(OPEN).await;
        drop(breaker.enter().unwrap());
        assert!(breaker.enter().expect("the place is free").answered());
        assert!(breaker.enter().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn stragglers_do_not_close_it() {
        let breaker = Breaker::new(1, OPEN);
        let (early, late) = (breaker.enter().unwrap(), breaker.enter().unwrap());
        assert!(fail(&breaker));
        assert!(!early.answered());
        assert!(breaker.enter().is_none());
        assert!(!late.failed());
        assert_eq!(breaker.opened(), 1);
    }
}
