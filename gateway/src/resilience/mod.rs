//! What keeps a failing or slow service from taking others along.
//!
//! ```text
//! forward ─► circuit open? ─► a place ([`limiter`]) ─► try ─► retry? ([`budget`]) ─► head of the answer ─► body ─► place and circuit are told
//!               │ 503, stale,      │ 503 when the queue          └ on another endpoint, after a pause
//!               ▼ fallback         ▼ is full or the wait too long
//! ```
//! The time for all of it is in [`deadline`]. What is counted here is live state: it is in the [`crate::Environment`] and outlives configurations.

mod adaptive;
mod budget;
mod circuit;
mod deadline;
mod guard;
mod limiter;
mod metrics;
mod rolling;

pub use adaptive::AdaptiveRules;
pub use budget::{Budget, backoff};
pub use circuit::{Event, Pass, Verdict};
pub use deadline::{DeadlineRules, Until};
pub use guard::{Circuits, Guard};
pub use limiter::{LimitRules, Limiter, LimiterState, Permit, Priority, Shed};
pub(crate) use metrics::ResilienceMetrics;

use dashmap::DashMap;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use weir_config::{Concurrency, Millis, Resilience, Retry};

/// Everything that outlives a configuration.
#[derive(Default)]
pub struct ResilienceState {
    /// Circuits.
    pub circuits: Arc<Circuits>,
    limiters: DashMap<String, Arc<Limiter>>,
    budgets: DashMap<String, Arc<Budget>>,
}

impl ResilienceState {
    fn limiter(&self, name: &str, rules: &LimitRules) -> Arc<Limiter> {
        self.limiters.entry(name.into()).or_insert_with(|| Limiter::new(name, rules)).clone()
    }

    fn budget(&self, name: &str) -> Arc<Budget> {
        self.budgets.entry(name.into()).or_insert_with(|| Arc::new(Budget::new(name))).clone()
    }

    /// All limiters, by name.
    pub fn limiters(&self) -> Vec<Arc<Limiter>> {
        let mut all: Vec<_> = self.limiters.iter().map(|l| l.clone()).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// All budgets, by name.
    pub fn budgets(&self) -> Vec<Arc<Budget>> {
        let mut all: Vec<_> = self.budgets.iter().map(|b| b.clone()).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// For the admin port.
    pub fn describe(&self) -> Value {
        let circuits: Vec<Value> = self
            .circuits
            .all()
            .iter()
            .map(|circuit| {
                let state = circuit.shown();
                let events: serde_json::Map<String, Value> = Event::ALL.iter().zip(state.events).map(|(event, count)| (event.word().into(), count.into())).collect();
                json!({ "circuit": circuit.name, "state": state.word, "open_for_ms": state.open_for.map(|time| time.as_millis() as u64), "events": events })
            })
            .collect();
        let limits: Vec<Value> = self
            .limiters()
            .iter()
            .map(|limiter| {
                let state = limiter.state();
                let shed: serde_json::Map<String, Value> = Priority::ALL.iter().zip(state.shed).map(|(priority, count)| (priority.word().into(), count.into())).collect();
                json!({ "of": limiter.name, "limit": state.limit, "under_way": state.under_way, "waiting": state.waiting, "shed": shed })
            })
            .collect();
        let retries: Vec<Value> = self
            .budgets()
            .iter()
            .map(|budget| {
                let (made, refused) = budget.totals();
                json!({ "upstream": budget.name, "made": made, "over_budget": refused })
            })
            .collect();
        json!({ "circuits": circuits, "limits": limits, "retries": retries })
    }
}

/// When a request is sent once more.
#[derive(Debug, Clone)]
pub struct RetryRules {
    /// Extra tries.
    pub attempts: u32,
    /// Statuses after which an idempotent request is tried elsewhere.
    pub statuses: Vec<u16>,
    /// Whether it is when no answer began in time.
    pub timeouts: bool,
    /// Pause before the first retry, at most.
    pub backoff: Duration,
    /// Longest pause.
    pub max_backoff: Duration,
    /// Percentage of live traffic.
    pub budget: u32,
    /// A second, in any case.
    pub least: u32,
}

impl RetryRules {
    fn new(config: &Retry, attempts: u32) -> RetryRules {
        RetryRules {
            attempts: config.attempts.unwrap_or(attempts),
            statuses: config.statuses.clone(),
            timeouts: config.timeouts,
            backoff: config.backoff.get(),
            max_backoff: config.max_backoff.get(),
            budget: config.budget,
            least: config.min_per_second,
        }
    }
}

/// What one service is treated with.
pub struct Care {
    /// When it is asked once more.
    pub retry: RetryRules,
    /// How often that may be.
    pub budget: Arc<Budget>,
    /// How long it may take.
    pub deadlines: DeadlineRules,
    /// Places that a request needs: the service's, and the upstream's.
    pub limits: Vec<(Arc<Limiter>, LimitRules)>,
    /// A breaker that does not come from a plugin: the edge's.
    pub guard: Option<Arc<Guard>>,
}

/// Whom a [`Care`] is for.
pub struct CareFor<'a> {
    /// `service:NAME` or `edge:origin`.
    pub name: &'a str,
    /// The upstream's name.
    pub upstream: &'a str,
    /// What the service says itself.
    pub own: &'a Resilience,
    /// What its upstream says.
    pub shared: Option<&'a Resilience>,
    /// Extra tries where `retry` does not say.
    pub attempts: u32,
    /// The service speaks gRPC.
    pub grpc: bool,
}

impl Care {
    /// Of a configuration.
    pub fn new(of: &CareFor<'_>, state: &ResilienceState) -> Care {
        let usual = Retry::default();
        let retry = of.own.retry.as_ref().or(of.shared.and_then(|s| s.retry.as_ref())).unwrap_or(&usual);
        let deadline = of.own.deadline.as_ref().or(of.shared.and_then(|s| s.deadline.as_ref()));
        let places = [(of.name.to_string(), &of.own.concurrency), (format!("upstream:{}", of.upstream), &of.shared.and_then(|s| s.concurrency.clone()))]
            .into_iter()
            .filter_map(|(name, config)| {
                let rules = limit_rules(config.as_ref()?);
                Some((state.limiter(&name, &rules), rules))
            })
            .collect();
        Care {
            retry: RetryRules::new(retry, of.attempts),
            budget: state.budget(of.upstream),
            deadlines: DeadlineRules::new(deadline, of.grpc),
            limits: places,
            guard: None,
        }
    }

    /// Puts the limits in force: the configuration is.
    pub fn activate(&self) {
        self.limits.iter().for_each(|(limiter, rules)| limiter.configure(rules));
    }

    /// The usual, for a service that no configuration speaks of.
    pub fn usual(upstream: &str, attempts: u32) -> Care {
        Care {
            retry: RetryRules::new(&Retry::default(), attempts),
            budget: Arc::new(Budget::new(upstream)),
            deadlines: DeadlineRules::default(),
            limits: vec![],
            guard: None,
        }
    }
}

fn limit_rules(config: &Concurrency) -> LimitRules {
    let adaptive = config.adaptive.as_ref().map(|own| AdaptiveRules {
        min: own.min,
        max: own.max,
        tolerance: own.tolerance,
        window: own.window.get(),
        probe: own.probe.get(),
    });
    LimitRules { limit: config.limit, adaptive, queue: config.queue, queue_timeout: Millis::get(config.queue_timeout), reserve: config.reserve }
}

/// What a request holds until its answer's body is through: places, and the word that its circuit waits for.
#[derive(Default)]
pub struct Held {
    /// Places.
    pub permits: smallvec::SmallVec<[Permit; 2]>,
    circuit: Option<(Pass, Verdict)>,
}

impl Held {
    /// The head of an answer came; `took` from the try's beginning. A bad answer is told at once, a good one when its body is through.
    pub fn answered(&mut self, guard: Option<&Guard>, pass: Option<Pass>, status: http::StatusCode, took: Duration) {
        for permit in &mut self.permits {
            permit.answered(matches!(status.as_u16(), 429 | 503 | 504));
        }
        if let (Some(mut pass), Some(guard)) = (pass, guard) {
            match guard.verdict(status, took) {
                Verdict::Success => self.circuit = Some((pass, Verdict::Success)),
                other => pass.tell(other),
            }
        }
    }

    /// No answer came. `dropped`: it is a sign of too much work.
    pub fn unanswered(&mut self, dropped: bool) {
        if dropped {
            self.permits.iter_mut().for_each(|permit| permit.answered(true));
        }
    }

    /// The body is through; `whole`: it did not break off.
    pub fn over(&mut self, whole: bool) {
        self.permits.clear();
        if let Some((mut pass, verdict)) = self.circuit.take() {
            pass.tell(if whole { verdict } else { Verdict::Failure });
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // The client left in the middle of a good answer.
        self.over(true);
    }
}
