//! When endpoints of an upstream are left out, compiled from its settings.

use http::StatusCode;
use std::time::Duration;
use weir_config::kong::{ActiveCheck, OutlierDetection, Unhealthy, UpstreamSettings};

/// nginx's `max_fails`, where nothing else judges.
pub(super) const MAX_FAILS: u32 = 3;

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Policy {
    /// Failures within `fail_timeout`; 0: off.
    pub(super) max_fails: u32,
    pub(super) fail_timeout: Duration,
    /// Kong's passive thresholds.
    pub(super) passive: Unhealthy,
    pub(super) outlier: Option<OutlierDetection>,
    pub(super) slow_start: Duration,
    /// Percent of healthy weight below which health is ignored.
    pub(super) panic: u32,
    /// Percent of healthy weight below which nothing is served.
    pub(super) threshold: f64,
    pub(super) active: ActiveCheck,
    /// Percent of its fair share that an endpoint may have; 0: any.
    pub(super) balance: u32,
    /// Slots of consistent hashing, longest turn of round robin.
    pub(super) slots: usize,
}

impl Default for Policy {
    /// That of a service without an upstream entity.
    fn default() -> Self {
        Policy {
            max_fails: MAX_FAILS,
            fail_timeout: Duration::from_secs(10),
            passive: Unhealthy::default(),
            outlier: None,
            slow_start: Duration::ZERO,
            panic: 1,
            threshold: 0.0,
            active: ActiveCheck::default(),
            balance: 0,
            slots: 10_000,
        }
    }
}

/// Statuses that Kong counts as failures of real traffic.
const FAILING: [u16; 3] = [429, 500, 503];

impl Policy {
    pub(super) fn new(settings: &UpstreamSettings) -> Policy {
        let passive = settings.healthchecks.passive.unhealthy.clone();
        let judged = passive.http_failures + passive.tcp_failures + passive.timeouts > 0 || settings.outlier_detection.is_some();
        Policy {
            max_fails: settings.max_fails.unwrap_or(if judged { 0 } else { MAX_FAILS }),
            fail_timeout: settings.fail_timeout.get(),
            passive,
            outlier: settings.outlier_detection.clone(),
            slow_start: settings.slow_start.get(),
            panic: settings.panic_threshold,
            threshold: settings.healthchecks.threshold,
            active: settings.healthchecks.active.clone(),
            balance: settings.hash_balance_factor,
            slots: settings.slots.map_or(10_000, |n| n as usize),
        }
    }

    /// Whether a status counts against the endpoint by Kong's thresholds.
    pub(super) fn is_failing(&self, status: StatusCode) -> bool {
        let status = status.as_u16();
        self.passive.http_failures > 0 && self.passive.http_statuses.as_ref().map_or(FAILING.contains(&status), |list| list.contains(&status))
    }

    /// Whether probes bring ill endpoints back.
    pub(super) fn probes_bring_back(&self) -> bool {
        self.active.unhealthy.interval > 0.0 && self.active.healthy.successes > 0
    }
}
