//! Outlier detection: endpoints that do worse than the others are taken out, longer each time, and never too many at once.

use super::{Endpoint, Outcome, Upstream, health::{Count, State}};
use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// When success rates were compared last.
pub(super) struct Compared {
    epoch: Instant,
    /// Milliseconds since `epoch`.
    at: AtomicU64,
}

impl Default for Compared {
    fn default() -> Self {
        Compared { epoch: Instant::now(), at: AtomicU64::new(0) }
    }
}

impl Upstream {
    /// Takes an outcome into account.
    pub(super) fn compare(&self, endpoint: &Endpoint, outcome: Outcome) {
        let Some(rules) = &self.policy.outlier else { return };
        let bad = !matches!(outcome, Outcome::Answered { status, .. } if !status.is_server_error());
        endpoint.health.window[0].fetch_add(1, Relaxed);
        if bad {
            endpoint.health.window[1].fetch_add(1, Relaxed);
            let row = endpoint.health.count(Count::Errors, None);
            if rules.consecutive_5xx > 0 && row >= rules.consecutive_5xx {
                self.cast_out(endpoint, "server errors in a row");
            }
        } else {
            endpoint.health.forget(Count::Errors);
        }
        let (now, last) = (self.compared.epoch.elapsed().as_millis() as u64, self.compared.at.load(Relaxed));
        let due = now >= last + rules.interval.get().as_millis().max(1) as u64;
        if due && self.compared.at.compare_exchange(last, now, Relaxed, Relaxed).is_ok() {
            self.compare_rates();
        }
    }

    /// Takes out endpoints whose success rate is far below the mean.
    fn compare_rates(&self) {
        let Some(rules) = &self.policy.outlier else { return };
        let mut rates = Vec::new();
        for endpoint in self.endpoints() {
            let [all, bad] = [&endpoint.health.window[0], &endpoint.health.window[1]].map(|c| c.swap(0, Relaxed));
            if endpoint.health.state() != State::Down {
                // An interval without being taken out makes the next time out shorter.
                let _ = endpoint.health.ejections.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1));
            }
            if all >= rules.success_rate_request_volume {
                rates.push((endpoint, 1.0 - f64::from(bad.min(all)) / f64::from(all)));
            }
        }
        if rules.success_rate_deviations <= 0.0 || rates.len() < rules.success_rate_minimum_hosts as usize {
            return;
        }
        let count = rates.len() as f64;
        let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / count;
        let deviation = (rates.iter().map(|(_, rate)| (rate - mean).powi(2)).sum::<f64>() / count).sqrt();
        let least = mean - rules.success_rate_deviations * deviation;
        for (endpoint, rate) in rates {
            if rate < least {
                self.cast_out(&endpoint, "success rate below the others'");
            }
        }
    }

    fn cast_out(&self, endpoint: &Endpoint, reason: &str) {
        let Some(rules) = &self.policy.outlier else { return };
        let out = self.endpoints().filter(|e| e.health.state() == State::Down).count();
        let all = self.endpoints().count();
        if endpoint.health.state() == State::Down || (out > 0 && (out + 1) * 100 > all * rules.max_ejection_percent as usize) {
            return;
        }
        let times = endpoint.health.ejections.fetch_add(1, Relaxed) + 1;
        let length: Duration = rules.base_ejection_time.get().saturating_mul(times).min(rules.max_ejection_time.get());
        endpoint.health.forget(Count::Errors);
        self.left_out(endpoint, endpoint.health.eject(length, reason), reason);
    }
}
