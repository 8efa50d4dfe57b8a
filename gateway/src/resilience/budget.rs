//! How much may be retried: a share of what is asked.

use super::rolling::Rolling;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::time::Instant;

/// Seconds that are looked at.
const WINDOW: usize = 10;

/// The retries of one upstream in proportion to its requests. Live state: it outlives a configuration.
pub struct Budget {
    /// The upstream's name.
    pub name: String,
    epoch: Instant,
    requests: Rolling<WINDOW>,
    retries: Rolling<WINDOW>,
    /// Held while a retry is weighed, so that two do not take the same last place.
    weighing: Mutex<()>,
    taken: AtomicU64,
    refused: AtomicU64,
}

impl Budget {
    pub(super) fn new(name: &str) -> Budget {
        Budget {
            name: name.into(),
            epoch: Instant::now(),
            requests: Rolling::default(),
            retries: Rolling::default(),
            weighing: Mutex::new(()),
            taken: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    fn second(&self, now: Instant) -> u32 {
        u32::try_from(now.duration_since(self.epoch).as_secs()).unwrap_or(u32::MAX - 1) + 1
    }

    /// A request (not a retry) goes to the upstream.
    pub fn request(&self, now: Instant) {
        self.requests.add(self.second(now));
    }

    /// Takes the place of one retry: there is one while the retries of the last ten seconds are fewer than `percent` of the requests, or
    /// those of this second fewer than `least`.
    pub fn take(&self, percent: u32, least: u32, now: Instant) -> bool {
        let second = self.second(now);
        let guard = self.weighing.lock();
        let within = self.retries.at(second) < u64::from(least)
            || (self.retries.sum(second) + 1) * 100 <= self.requests.sum(second) * u64::from(percent);
        if within {
            self.retries.add(second);
        }
        drop(guard);
        let told = if within { &self.taken } else { &self.refused };
        told.fetch_add(1, Relaxed);
        within
    }

    /// Retries made and refused since the start.
    pub fn totals(&self) -> (u64, u64) {
        (self.taken.load(Relaxed), self.refused.load(Relaxed))
    }
}

/// How long to wait before the `nth` retry (from 0): anything up to `first`, doubled each time, but no more than `most`. All of it is chance, so
/// that those who failed together do not come back together.
pub fn backoff(first: Duration, most: Duration, nth: u32) -> Duration {
    first.saturating_mul(1u32.checked_shl(nth).unwrap_or(u32::MAX)).min(most).mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever the traffic: in any ten seconds no more retries than the share, or than the least allows.
        #[test]
        fn retries_stay_within_the_share_or_the_least(
            seconds in proptest::collection::vec((0u32..60, 0u32..120), 1..40), percent in 0u32..=100, least in 0u32..8,
        ) {
            let budget = Budget::new("u");
            let mut history: Vec<(u64, u64)> = Vec::new();
            for (i, (requests, wanted)) in seconds.iter().enumerate() {
                let now = budget.epoch + Duration::from_secs(i as u64);
                (0..*requests).for_each(|_| budget.request(now));
                let made = (0..*wanted).filter(|_| budget.take(percent, least, now)).count() as u64;
                history.push((u64::from(*requests), made));
                let window = &history[history.len().saturating_sub(WINDOW)..];
                let (asked, retried) = window.iter().fold((0, 0), |(a, r), (x, y)| (a + x, r + y));
                // The share of an earlier second may have been larger, since its window was another: a second that was within the
                // least adds no more than that.
                let before = retried - made;
                let share = (asked * u64::from(percent) / 100).saturating_sub(before).max(u64::from(least).min(u64::from(*wanted)));
                prop_assert!(made <= share, "{made} of {wanted} retries, {asked} requests, {before} before");
                // And what is within is never refused.
                prop_assert!(made >= share.min(u64::from(*wanted)));
            }
        }

        #[test]
        fn a_pause_is_within_its_bounds(nth in 0u32..80) {
            let (first, most) = (Duration::from_millis(25), Duration::from_secs(1));
            let bound = most.min(first * 2u32.saturating_pow(nth.min(20)));
            prop_assert!(backoff(first, most, nth) <= bound);
        }
    }

    #[test]
    fn pauses_are_not_all_the_same() {
        let pauses: std::collections::HashSet<_> = (0..32).map(|_| backoff(Duration::from_secs(1), Duration::from_secs(1), 0)).collect();
        assert!(pauses.len() > 16);
    }
}
