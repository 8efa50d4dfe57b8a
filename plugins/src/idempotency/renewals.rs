//! Keeps the keys of requests under way: one task for all requests of a plugin, which is there as long as there are some.

use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::time::Instant;
use weir_store::{Claim, Ledger};

/// The claims that are renewed.
pub(super) struct Renewals {
    ledger: Arc<dyn Ledger>,
    lease: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    held: HashMap<u64, (Claim, Instant)>,
    next: u64,
    running: bool,
}

/// A claim that is renewed until this is dropped.
pub(super) struct Held {
    of: Arc<Renewals>,
    id: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.of.state.lock().held.remove(&self.id);
    }
}

impl Renewals {
    pub(super) fn new(ledger: Arc<dyn Ledger>, lease: Duration) -> Arc<Renewals> {
        Arc::new(Renewals { ledger, lease, state: Mutex::default() })
    }

    pub(super) fn hold(self: &Arc<Self>, claim: &Claim) -> Held {
        let mut state = self.state.lock();
        state.next += 1;
        let id = state.next;
        state.held.insert(id, (claim.clone(), Instant::now() + self.lease / 3));
        if !std::mem::replace(&mut state.running, true) {
            tokio::spawn(self.clone().run());
        }
        Held { of: self.clone(), id }
    }

    /// The claims whose time has come; `None`: there are none at all, and the task ends.
    fn due(&self) -> Option<Vec<(u64, Claim)>> {
        let now = Instant::now();
        let mut state = self.state.lock();
        if state.held.is_empty() {
            state.running = false;
            return None;
        }
        let due = state.held.iter_mut().filter(|(_, (_, at))| *at <= now).map(|(id, (claim, at))| {
            *at = now + self.lease / 3;
            (*id, claim.clone())
        });
        Some(due.collect())
    }

    async fn run(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.lease / 6).await;
            let Some(due) = self.due() else { return };
            for (id, claim) in due {
                // A store that is away may come back within the lease.
                if let Ok(false) = self.ledger.renew(&claim, self.lease).await {
                    self.state.lock().held.remove(&id);
                }
            }
        }
    }
}
