//! So many fills of one rule at once: a slow origin is not helped by more questions.

use crate::Policy;
use dashmap::DashMap;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Why a request is passed on whose fill got no place.
pub(crate) const NO_PLACE: &str = "max-fills";

/// The places of all rules, by the rule's name and its bound: a bound that was changed by a reload begins anew.
#[derive(Default)]
pub(crate) struct Places {
    by_rule: DashMap<(String, usize), Arc<Semaphore>>,
}

impl Places {
    /// The places of a policy's rule; `None` if it has no bound.
    pub(crate) fn of(&self, policy: &Policy) -> Option<Arc<Semaphore>> {
        let most = policy.max_fills?.clamp(1, Semaphore::MAX_PERMITS);
        let key = (policy.name.clone(), most);
        Some(self.by_rule.entry(key).or_insert_with(|| Arc::new(Semaphore::new(most))).clone())
    }
}
