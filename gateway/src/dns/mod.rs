//! Names of services and targets, looked up ahead of the requests that need them.
//!
//! ```text
//!            due by its TTL ─► ask: hosts file, else SRV · A · AAAA ([`ask`])
//!                                  │
//! Name ◄───────────────────────────┤ an answer: its addresses, until its TTL is over
//!   │                              │ no such name: the last addresses for `missing`, then none
//!   │ other addresses than before  └ no answer: the last addresses for `stale`, then none
//!   ▼
//! upstream makes its set of endpoints anew; no request waits for any of this but the first ones of a name that is still unknown
//! ```
//! A name is asked for once at a time, however many upstreams and requests want it, and so often only that `min_ttl` and the pauses after
//! failures allow. What is known of it outlives a configuration that names it again.

mod ask;
mod metrics;
mod name;

pub(crate) use metrics::DnsMetrics;
pub use name::{Found, Known, Name, NameView};

use self::ask::Asker;
use dashmap::DashMap;
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, Semaphore},
    task::AbortHandle,
    time::Instant,
};
use weir_config::Resolver as Rules;

/// Names that are asked for at the same time.
const AT_ONCE: usize = 16;

/// Hears that a name has other addresses than before.
pub(crate) trait Watcher: Send + Sync {
    /// It has.
    fn changed(&self);
}

/// What came of look-ups, counted.
#[derive(Debug, Default, Clone, Copy)]
pub struct Lookups {
    /// With addresses.
    pub found: u64,
    /// There is no such name, or it has no addresses.
    pub missing: u64,
    /// No answer that says either.
    pub failed: u64,
}

/// All names in use.
pub struct Dns {
    names: DashMap<String, Weak<Name>>,
    rules: Mutex<Arc<Rules>>,
    asker: tokio::sync::Mutex<Option<Arc<Asker>>>,
    /// A name is new, or was answered: there may be another next one.
    wake: Notify,
    places: Semaphore,
    running: Mutex<Option<(tokio::runtime::Handle, AbortHandle)>>,
    counts: [AtomicU64; 3],
}

impl Default for Dns {
    fn default() -> Self {
        Dns {
            names: DashMap::new(),
            rules: Mutex::default(),
            asker: Default::default(),
            wake: Notify::new(),
            places: Semaphore::new(AT_ONCE),
            running: Mutex::default(),
            counts: Default::default(),
        }
    }
}

impl Dns {
    /// The name, known from now on for as long as somebody holds it. It is asked for at once where [`Dns::run`] is at work.
    pub(crate) fn name(&self, host: &str) -> Arc<Name> {
        let host = host.to_ascii_lowercase();
        let mut entry = self.names.entry(host.clone()).or_default();
        if let Some(known) = entry.upgrade() {
            return known;
        }
        let made = Arc::new(Name::new(host));
        *entry = Arc::downgrade(&made);
        drop(entry);
        self.wake.notify_one();
        made
    }

    /// These rules count from now on.
    pub fn configure(&self, rules: &Rules) {
        let mut current = self.rules.lock();
        if **current != *rules {
            *current = Arc::new(rules.clone());
            drop(current);
            // What other servers said may be wrong now.
            self.all().iter().for_each(|name| name.forget_time());
            self.wake.notify_one();
        }
    }

    /// Begins to ask for names when their time has come, on the runtime of the caller, which must live as long as the program.
    pub(crate) fn run(self: &Arc<Self>) {
        let mut running = self.running.lock();
        if running.as_ref().is_none_or(|(_, task)| task.is_finished()) {
            let task = tokio::spawn(self.clone().go_on());
            *running = Some((tokio::runtime::Handle::current(), task.abort_handle()));
        }
    }

    async fn go_on(self: Arc<Self>) {
        loop {
            let now = Instant::now();
            let mut next = now + Duration::from_secs(60);
            for name in self.all() {
                match name.due() {
                    Some(at) if at > now => next = next.min(at),
                    // The end of a look-up under way wakes this loop.
                    _ => self.ask(&name),
                }
            }
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = self.wake.notified() => {}
            }
        }
    }

    /// What is known of a name, once something is: waits for a first answer, and for another if the last one was a failure that is over.
    pub(crate) async fn known(self: &Arc<Self>, name: &Arc<Name>) -> Arc<Known> {
        loop {
            let answered = name.answered();
            let mut answered = std::pin::pin!(answered);
            answered.as_mut().enable();
            let known = name.known();
            if !known.found.is_empty() || known.next.is_some_and(|at| at > Instant::now()) {
                return known;
            }
            self.ask(name);
            answered.await;
        }
    }

    /// Looks a name up, unless that is being done.
    fn ask(self: &Arc<Self>, name: &Arc<Name>) {
        let Some(turn) = name.turn() else { return };
        let (dns, name) = (self.clone(), name.clone());
        let look_up = async move {
            let _turn = turn;
            let Ok(_place) = dns.places.acquire().await else { return };
            let rules = dns.rules.lock().clone();
            let asker = dns.asker(&rules).await;
            let answer = asker.ask(&name.host, &name.known()).await;
            let count = match &answer {
                Ok(_) => 0,
                Err(name::Failure::Missing { .. }) => 1,
                Err(name::Failure::Silent(_)) => 2,
            };
            dns.counts[count].fetch_add(1, Relaxed);
            name.learn(answer, &rules, Instant::now());
            dns.wake.notify_one();
        };
        // Sockets belong to the runtime that opened them: it must not be that of a request's thread, which may end.
        match self.running.lock().as_ref().filter(|(_, task)| !task.is_finished()) {
            Some((runtime, _)) => runtime.spawn(look_up),
            None => tokio::spawn(look_up),
        };
    }

    /// Who asks by these rules; made anew when they, the hosts file or the system's list of servers have changed.
    async fn asker(&self, rules: &Arc<Rules>) -> Arc<Asker> {
        let mut asker = self.asker.lock().await;
        match &*asker {
            Some(current) if current.is_current(rules) => current.clone(),
            _ => asker.insert(Arc::new(Asker::new(rules))).clone(),
        }
    }

    fn all(&self) -> Vec<Arc<Name>> {
        self.names.retain(|_, name| name.strong_count() > 0);
        self.names.iter().filter_map(|name| name.upgrade()).collect()
    }

    /// Look-ups so far.
    pub fn lookups(&self) -> Lookups {
        let [found, missing, failed] = std::array::from_fn(|at| self.counts[at].load(Relaxed));
        Lookups { found, missing, failed }
    }

    /// All names, for the admin port and the metrics.
    pub fn view(&self) -> BTreeMap<String, NameView> {
        self.all().into_iter().map(|name| (name.host.clone(), name.view())).collect()
    }
}
