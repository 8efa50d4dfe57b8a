//! How fast an endpoint answers: a moving average that rises at once and falls slowly (peak EWMA).

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// After so long an old observation weighs a third.
const DECAY: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub(super) struct Speed {
    epoch: Instant,
    /// Nanoseconds; 0: nothing is known.
    average: AtomicU64,
    /// Nanoseconds since `epoch` of the last observation.
    at: AtomicU64,
}

impl Default for Speed {
    fn default() -> Self {
        Speed { epoch: Instant::now(), average: AtomicU64::new(0), at: AtomicU64::new(0) }
    }
}

impl Speed {
    /// An answer took so long. Of two that come at the same time one may be lost, which an average bears.
    pub(super) fn observe(&self, took: Duration) {
        let (now, took) = (self.epoch.elapsed().as_nanos() as u64, took.as_nanos().max(1) as f64);
        let old = self.average.load(Relaxed) as f64;
        let old_part = (-(now.saturating_sub(self.at.swap(now, Relaxed)) as f64) / DECAY.as_nanos() as f64).exp();
        let new = if took > old { took } else { old * old_part + took * (1.0 - old_part) };
        self.average.store(new as u64, Relaxed);
    }

    /// What one more request there would cost, `in_flight` being under way: nanoseconds, roughly. An endpoint that was slow is believed
    /// to get better with time, or it would never be asked again; one of which nothing is known is asked once, and then waited for.
    pub(super) fn cost(&self, in_flight: u32) -> f64 {
        let average = self.average.load(Relaxed) as f64;
        if average == 0.0 {
            return if in_flight == 0 { 0.0 } else { 1e12 * f64::from(in_flight) };
        }
        let age = (self.epoch.elapsed().as_nanos() as u64).saturating_sub(self.at.load(Relaxed)) as f64;
        average * (-age / DECAY.as_nanos() as f64).exp() * f64::from(in_flight + 1)
    }

    /// The average; `None` while nothing is known.
    pub(super) fn average(&self) -> Option<Duration> {
        Some(Duration::from_nanos(self.average.load(Relaxed))).filter(|d| !d.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_answer_counts_at_once_and_a_fast_one_little_by_little() {
        let speed = Speed::default();
        assert_eq!((speed.cost(0), speed.average()), (0.0, None));
        assert!(speed.cost(1) > 1e11);
        speed.observe(Duration::from_millis(1));
        speed.observe(Duration::from_millis(100));
        assert_eq!(speed.average(), Some(Duration::from_millis(100)));
        speed.observe(Duration::from_millis(1));
        let after = speed.average().unwrap();
        assert!(after > Duration::from_millis(1) && after <= Duration::from_millis(100), "{after:?}");
        assert!(speed.cost(3) > speed.cost(0));
    }
}
