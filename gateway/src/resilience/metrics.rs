//! How circuits, limits and retries stand, for `/metrics`.

use super::{Event, Priority, ResilienceState};
use parking_lot::Mutex;
use prometheus::{IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};

/// Filled from the [`ResilienceState`] when somebody looks.
pub(crate) struct ResilienceMetrics {
    circuit: IntGaugeVec,
    events: IntCounterVec,
    limit: IntGaugeVec,
    under_way: IntGaugeVec,
    waiting: IntGaugeVec,
    queued: IntCounterVec,
    shed: IntCounterVec,
    retries: IntCounterVec,
    /// Two who look at once must not add the same difference twice.
    updating: Mutex<()>,
}

impl ResilienceMetrics {
    pub(crate) fn new(registry: &Registry) -> ResilienceMetrics {
        let gauges = |name: &str, help: &str, labels: &[&str]| crate::metrics::register(registry, IntGaugeVec::new(Opts::new(name, help), labels));
        let counters = |name: &str, help: &str, labels: &[&str]| crate::metrics::register(registry, IntCounterVec::new(Opts::new(name, help), labels));
        ResilienceMetrics {
            circuit: gauges("weir_circuit_state", "0 while the circuit is closed, 1 while it tries, 2 while it is open.", &["circuit"]),
            events: counters("weir_circuit_events_total", "Changes of circuits, and requests that were not sent.", &["circuit", "event"]),
            limit: gauges("weir_concurrency_limit", "Requests that may be under way at once.", &["of"]),
            under_way: gauges("weir_concurrency_under_way", "Requests under way.", &["of"]),
            waiting: gauges("weir_concurrency_waiting", "Requests that wait for a place.", &["of"]),
            queued: counters("weir_concurrency_queued_total", "Requests that had to wait for a place.", &["of"]),
            shed: counters("weir_concurrency_shed_total", "Requests that got no place, by priority.", &["of", "priority"]),
            retries: counters("weir_retries_total", "Retries, made or refused for being over the budget.", &["upstream", "outcome"]),
            updating: Mutex::new(()),
        }
    }

    pub(crate) fn update(&self, state: &ResilienceState) {
        let _one = self.updating.lock();
        let reach = |counter: IntCounter, total: u64| counter.inc_by(total.saturating_sub(counter.get()));
        self.circuit.reset();
        for circuit in state.circuits.all() {
            let shown = circuit.shown();
            self.circuit.with_label_values(&[&circuit.name]).set(i64::from(shown.number));
            for (event, count) in Event::ALL.iter().zip(shown.events) {
                reach(self.events.with_label_values(&[circuit.name.as_str(), event.word()]), count);
            }
        }
        for limiter in state.limiters() {
            let (of, shown) = (limiter.name.as_str(), limiter.state());
            self.limit.with_label_values(&[of]).set(i64::from(shown.limit));
            self.under_way.with_label_values(&[of]).set(i64::from(shown.under_way));
            self.waiting.with_label_values(&[of]).set(i64::from(shown.waiting));
            reach(self.queued.with_label_values(&[of]), shown.queued);
            for (priority, count) in Priority::ALL.iter().zip(shown.shed) {
                reach(self.shed.with_label_values(&[of, priority.word()]), count);
            }
        }
        for budget in state.budgets() {
            let (made, refused) = budget.totals();
            reach(self.retries.with_label_values(&[budget.name.as_str(), "made"]), made);
            reach(self.retries.with_label_values(&[budget.name.as_str(), "over-budget"]), refused);
        }
    }
}
