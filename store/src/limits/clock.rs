//! The time of day for limits.

use super::{FAR, span::SECOND};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Turns moments of the monotonic clock into the time of day, so that a request whose beginning was noted anyway costs no look at a clock.
///
/// The system's clock is looked at once a second. It never goes back for limits, unless by more than an hour: a small step back would
/// open windows anew.
pub struct Clock {
    base: Instant,
    /// The time of day at `base`, in microseconds since 1970.
    offset: AtomicU64,
    /// When it was looked at, in microseconds since `base`.
    looked: AtomicU64,
}

impl Default for Clock {
    fn default() -> Self {
        Clock { base: Instant::now(), offset: AtomicU64::new(of_day()), looked: AtomicU64::new(0) }
    }
}

fn of_day() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|d| u64::try_from(d.as_micros()).ok()).unwrap_or(0)
}

impl Clock {
    /// The time of day at `moment`, in microseconds since 1970.
    pub fn at(&self, moment: Instant) -> u64 {
        let since = u64::try_from(moment.saturating_duration_since(self.base).as_micros()).unwrap_or(u64::MAX);
        if since > self.looked.load(Relaxed).saturating_add(SECOND) {
            self.looked.store(since, Relaxed);
            let elapsed = u64::try_from(self.base.elapsed().as_micros()).unwrap_or(u64::MAX);
            let (old, new) = (self.offset.load(Relaxed), of_day().saturating_sub(elapsed));
            self.offset.store(next(old, new), Relaxed);
        }
        self.offset.load(Relaxed).saturating_add(since)
    }

    /// The time of day now, in microseconds since 1970.
    pub fn now(&self) -> u64 {
        self.at(Instant::now())
    }
}

fn next(old: u64, new: u64) -> u64 {
    if new.saturating_add(FAR) < old { new } else { new.max(old) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn moments_keep_their_distance() {
        let clock = Clock::default();
        let moment = Instant::now();
        let first = clock.at(moment);
        assert!(first.abs_diff(of_day()) < 60 * SECOND);
        let later = clock.at(moment + Duration::from_secs(100));
        assert!(later >= first + 100 * SECOND && later < first + 160 * SECOND, "{first} {later}");
        assert!(clock.at(moment) >= first);
    }

    #[test]
    fn it_goes_back_only_by_much() {
        assert_eq!(next(5000, 6000), 6000);
        assert_eq!(next(5000, 4000), 5000);
        assert_eq!(next(FAR + 5000, 4000), 4000);
    }
}
