//! A limit that follows the latency.
//!
//! Now and then, and at first, only a part of the usual is let through for one window: what answers take then is the latency without
//! load. After every other window the limit moves: as long as answers take no more than `tolerance` times that, it grows by about its
//! root; when they take longer, it shrinks in proportion. What is over the limit waits here, not at the service.

use std::time::Duration;

/// The numbers of the configuration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdaptiveRules {
    /// Lower bound.
    pub min: u32,
    /// Upper bound.
    pub max: u32,
    /// Times the latency without load that are fine.
    pub tolerance: f64,
    /// Shortest window.
    pub window: Duration,
    /// Time between two probes.
    pub probe: Duration,
}

/// What was seen in a window.
#[derive(Debug, Clone, Copy, Default)]
pub struct Window {
    /// Requests answered, with their latencies' sum.
    pub answered: u32,
    /// The sum of their latencies.
    pub latency: Duration,
    /// Requests that timed out or were refused by the service.
    pub dropped: u32,
    /// The most that were under way at once.
    pub peak: u32,
}

/// How much of a step is taken at once.
const SMOOTHING: f64 = 0.3;
/// From this share of dropped requests on the limit shrinks whatever the latency.
const DROPPED: f64 = 0.1;

/// The limit and what it is based on.
#[derive(Debug, Clone)]
pub struct Estimate {
    limit: f64,
    /// Latency without load; `None`: not known yet.
    unloaded: Option<Duration>,
    /// The limit to go back to, during a probe.
    probing: Option<f64>,
    next_probe: Duration,
}

impl Estimate {
    /// Begins with a probe.
    pub fn new(limit: u32, rules: &AdaptiveRules) -> Estimate {
        let limit = f64::from(limit.clamp(rules.min, rules.max));
        Estimate { limit: f64::from(rules.min), unloaded: None, probing: Some(limit), next_probe: Duration::ZERO }
    }

    /// The limit now.
    pub fn limit(&self) -> u32 {
        self.limit as u32
    }

    /// Whether the latency without load is being found out: only what began under the lowered limit counts.
    pub fn is_probing(&self) -> bool {
        self.probing.is_some()
    }

    /// A window is over, at `now` (since any moment).
    pub fn window(&mut self, seen: &Window, now: Duration, rules: &AdaptiveRules) {
        let bounds = (f64::from(rules.min), f64::from(rules.max.max(rules.min)));
        let mean = seen.latency.checked_div(seen.answered).map(|mean| mean.max(Duration::from_micros(1)));
        let dropped = f64::from(seen.dropped) >= DROPPED * f64::from(seen.dropped + seen.answered) && seen.dropped > 0;
        if let Some(before) = self.probing {
            // All of it failed: that says nothing of the latency, and the probe goes on.
            let Some(mean) = mean else { return };
            self.unloaded = Some(mean);
            self.probing = None;
            self.limit = before.clamp(bounds.0, bounds.1);
            // Not at the same moment in all processes.
            self.next_probe = now + rules.probe.mul_f64(0.9 + 0.2 * fastrand::f64());
            return;
        }
        if now >= self.next_probe && !dropped {
            self.probing = Some(self.limit);
            self.limit = (self.limit / 4.0).max(bounds.0);
            return;
        }
        let mut gradient = 1.0;
        if let (Some(mean), Some(unloaded)) = (mean, &mut self.unloaded) {
            *unloaded = mean.min(*unloaded);
            gradient = (rules.tolerance * unloaded.as_secs_f64() / mean.as_secs_f64()).clamp(0.5, 1.0);
        }
        if dropped {
            gradient = gradient.min(0.5);
        }
        // A limit that is not reached proves nothing and does not grow.
        let grow = if dropped || f64::from(seen.peak) < self.limit / 2.0 { 0.0 } else { self.limit.sqrt() };
        let target = self.limit * gradient + grow;
        self.limit = (self.limit + SMOOTHING * (target - self.limit)).clamp(bounds.0, bounds.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: AdaptiveRules = AdaptiveRules { min: 4, max: 1000, tolerance: 2.0, window: Duration::from_millis(250), probe: Duration::from_secs(30) };

    /// A service that works on `workers` requests at a time, each `work` long, with more callers than it can serve: `callers` are always
    /// either under way or waiting for a place here.
    fn service(workers: u32, work: Duration, callers: u32, limit: u32) -> Window {
        let under_way = callers.min(limit);
        let latency = work.mul_f64(f64::from(under_way.max(workers)) / f64::from(workers));
        let answered = (f64::from(under_way) * 0.25 / latency.as_secs_f64()) as u32;
        Window { answered, latency: latency * answered, dropped: 0, peak: under_way }
    }

    fn run(estimate: &mut Estimate, clock: &mut Duration, seconds: u64, mut seen: impl FnMut(u32) -> Window) -> Vec<u32> {
        (0..seconds * 4)
            .map(|_| {
                *clock += RULES.window;
                estimate.window(&seen(estimate.limit()), *clock, &RULES);
                estimate.limit()
            })
            .collect()
    }

    #[test]
    fn it_finds_what_a_service_can_do() {
        for workers in [5, 10, 50, 200] {
            let (mut estimate, mut clock) = (Estimate::new(100, &RULES), Duration::ZERO);
            run(&mut estimate, &mut clock, 25, |limit| service(workers, Duration::from_millis(20), 2000, limit));
            let limit = estimate.limit();
            assert!((workers..=3 * workers + 8).contains(&limit), "{limit} for {workers} workers");
        }
    }

    #[test]
    fn it_shrinks_when_the_service_loses_workers_and_grows_when_they_are_back() {
        let (mut estimate, mut clock) = (Estimate::new(100, &RULES), Duration::ZERO);
        let work = Duration::from_millis(20);
        run(&mut estimate, &mut clock, 25, |limit| service(100, work, 2000, limit));
        let well = estimate.limit();
        run(&mut estimate, &mut clock, 25, |limit| service(10, work, 2000, limit));
        let ill = estimate.limit();
        assert!(ill < well / 3, "{well} → {ill}");
        run(&mut estimate, &mut clock, 60, |limit| service(100, work, 2000, limit));
        assert!(estimate.limit() > well / 2, "{well} → {ill} → {}", estimate.limit());
    }

    #[test]
    fn a_service_that_is_slower_for_good_is_not_strangled() {
        let (mut estimate, mut clock) = (Estimate::new(100, &RULES), Duration::ZERO);
        run(&mut estimate, &mut clock, 25, |limit| service(100, Duration::from_millis(20), 2000, limit));
        run(&mut estimate, &mut clock, 120, |limit| service(100, Duration::from_millis(100), 2000, limit));
        assert!(estimate.limit() >= 80, "{}", estimate.limit());
    }

    #[test]
    fn an_idle_limit_does_not_grow() {
        let (mut estimate, mut clock) = (Estimate::new(100, &RULES), Duration::ZERO);
        let limits = run(&mut estimate, &mut clock, 300, |limit| service(100, Duration::from_millis(20), 5, limit));
        assert!(limits.iter().all(|limit| *limit <= 100));
        assert!(estimate.limit() >= 20, "{}", estimate.limit());
    }

    #[test]
    fn refusals_and_timeouts_shrink_it_down_to_its_bound() {
        let (mut estimate, mut clock) = (Estimate::new(100, &RULES), Duration::ZERO);
        run(&mut estimate, &mut clock, 2, |limit| service(100, Duration::from_millis(20), 2000, limit));
        run(&mut estimate, &mut clock, 25, |limit| Window { dropped: 500, ..service(100, Duration::from_millis(20), 50, limit) });
        assert_eq!(estimate.limit(), RULES.min);
    }
}
