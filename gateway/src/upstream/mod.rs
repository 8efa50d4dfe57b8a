//! Where requests go: upstreams, their endpoints, and which endpoint is next.

mod affinity;
mod balance;
mod endpoint;
mod health;
mod members;
mod outlier;
mod policy;
mod probe;
mod registry;
mod speed;
#[cfg(test)]
mod tests;

pub use endpoint::{Endpoint, InFlight};
pub use health::{Health, State};
pub use members::Target;
pub use registry::{EndpointView, Endpoints, UpstreamView};

use self::{affinity::Affinity, balance::{Balancer, Member}, health::Count, members::{Members, Naming}, policy::Policy};
use crate::{RequestContext, tls::TlsWish};
use http::{StatusCode, request};
use std::{sync::Arc, time::Duration};
use weir_config::kong::{Algorithm, UpstreamSettings};

/// How a try of an endpoint ended. A client that left says nothing of the endpoint and is not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The head of an answer came.
    Answered {
        /// Its status.
        status: StatusCode,
        /// How long it took from the request's first byte.
        after: Duration,
    },
    /// No connection could be made.
    NotConnected,
    /// No connection, or no answer, in time.
    TimedOut,
    /// The connection broke before a whole head of an answer had come, or what came was no answer.
    Broken,
}

/// A set of endpoints with weights, and the rules by which one is picked. The endpoints outlive it: see [`Endpoints`].
pub struct Upstream {
    /// Its name, or `host:port` of a service without one.
    pub name: String,
    algorithm: Algorithm,
    members: Arc<Members>,
    policy: Policy,
    affinity: Affinity,
    compared: outlier::Compared,
    /// For probes by TLS: the configuration, and the name of the endpoints if they have one together.
    tls: TlsWish,
    called: Option<String>,
}

impl Upstream {
    /// A set that is used in turn, with the usual rules; targets of weight 0 get nothing.
    pub fn new(name: &str, targets: Vec<Target>, endpoints: &Endpoints) -> Upstream {
        Self::made(name, targets, Algorithm::RoundRobin, Policy::default(), Affinity::default(), Naming::default(), endpoints)
    }

    /// A set with the rules of an upstream entity. `tls`: for probes.
    pub fn with_settings(settings: &UpstreamSettings, targets: Vec<Target>, tls: TlsWish, endpoints: &Endpoints) -> Upstream {
        let own = settings.host_header.is_none();
        let by_address = own && crate::tls::server_name(&settings.name).is_none();
        let naming = Naming { by_target: own, by_address, by_srv: own && settings.use_srv_name };
        let made = Self::made(&settings.name, targets, settings.algorithm, Policy::new(settings), Affinity::new(settings), naming, endpoints);
        Upstream { tls, called: settings.host_header.clone(), ..made }
    }

    fn made(name: &str, targets: Vec<Target>, algorithm: Algorithm, policy: Policy, affinity: Affinity, naming: Naming, endpoints: &Endpoints) -> Upstream {
        let members = Members::new(name, targets, algorithm, policy.slots, policy.slow_start, naming, &endpoints.registry);
        Upstream { name: name.to_owned(), algorithm, members, policy, affinity, compared: Default::default(), tls: TlsWish::default(), called: None }
    }

    /// The endpoints that get traffic now.
    pub fn endpoints(&self) -> impl Iterator<Item = Arc<Endpoint>> + use<> {
        self.members.set.load_full().endpoints()
    }

    /// What consistent hashing hashes of this request, for [`Upstream::pick_for`]; `None` with other algorithms, or if the request has
    /// none of it. A client without the cookie that is hashed gets one with its answer.
    pub fn hash(&self, cx: &mut RequestContext, request: &request::Parts) -> Option<u64> {
        self.affinity.hash(cx, request)
    }

    /// Whether something of a request decides where it goes.
    pub fn hashes(&self) -> bool {
        self.affinity.hashes()
    }

    /// [`Upstream::pick_for`] a request that has nothing to hash.
    pub fn pick(&self, tried: &[Arc<Endpoint>]) -> Option<Arc<Endpoint>> {
        self.pick_for(None, tried)
    }

    /// The next endpoint among those that are in and not in `tried`, of the first priority that has any. When fewer are in than the panic
    /// threshold wants, all count as in but those that drain: a guess is better than a refusal. `None`: all were tried, or drain, or
    /// there are none, or health is below the threshold under which the upstream serves nothing.
    pub fn pick_for(&self, hash: Option<u64>, tried: &[Arc<Endpoint>]) -> Option<Arc<Endpoint>> {
        let set = self.members.set.load();
        let policy = &self.policy;
        let untried = |e: &Arc<Endpoint>| !tried.iter().any(|t| Arc::ptr_eq(t, e));
        if let ([tier], true) = (set.tiers.as_slice(), policy.panic > 0 && policy.threshold == 0.0)
            && let [only] = tier.members.as_slice()
        {
            return (untried(&only.endpoint) && !only.endpoint.health.is_draining()).then(|| only.endpoint.clone());
        }
        let (panic, weighed) = (f64::from(policy.panic), policy.panic > 1 || policy.threshold > 0.0);
        let healthy = if weighed { self.healthy_percent() } else { 100.0 };
        if healthy < policy.threshold {
            return None;
        }
        for tier in &set.tiers {
            if weighed && self.healthy_of(tier) < panic {
                continue;
            }
            let share = |m: &Member| if untried(&m.endpoint) { m.endpoint.health.share(policy.slow_start) } else { 0.0 };
            // A second look where an endpoint whose time out is over was just taken by another request that tries it.
            for _ in 0..tier.members.len() {
                let Some(chosen) = tier.choose(hash, policy, &share) else { break };
                let endpoint = &tier.members[chosen].endpoint;
                if endpoint.health.enter(policy.fail_timeout) {
                    return Some(endpoint.clone());
                }
            }
        }
        if policy.panic == 0 || (healthy >= panic && self.healthy_percent() >= panic) {
            return None;
        }
        let share = |m: &Member| if untried(&m.endpoint) && !m.endpoint.health.is_draining() { 1.0 } else { 0.0 };
        set.tiers.iter().find_map(|tier| tier.choose(hash, policy, &share).map(|chosen| tier.members[chosen].endpoint.clone()))
    }

    /// The algorithm as configurations spell it.
    fn algorithm_name(&self) -> &'static str {
        match self.algorithm {
            Algorithm::RoundRobin => "round-robin",
            Algorithm::LeastConnections => "least-connections",
            Algorithm::ConsistentHashing => "consistent-hashing",
            Algorithm::Latency => "latency",
        }
    }

    /// The part of the weight that is in, of what does not drain, where priorities differ the best of them.
    fn healthy_percent(&self) -> f64 {
        self.members.set.load().tiers.iter().map(|tier| self.healthy_of(tier)).fold(0.0, f64::max)
    }

    fn healthy_of(&self, tier: &Balancer) -> f64 {
        let (mut healthy, mut all) = (0.0, 0.0);
        for member in tier.members.iter().filter(|m| !m.endpoint.health.is_draining()) {
            let weight = f64::from(member.weight);
            all += weight;
            healthy += if member.endpoint.health.share(self.policy.slow_start) > 0.0 { weight } else { 0.0 };
        }
        if all == 0.0 { 0.0 } else { healthy * 100.0 / all }
    }

    /// Tells how a try of an endpoint ended.
    pub fn report(&self, endpoint: &Endpoint, outcome: Outcome) {
        let policy = &self.policy;
        let health = &endpoint.health;
        if let Outcome::Answered { after, .. } = outcome {
            endpoint.speed.observe(after);
        }
        if policy.outlier.is_some() {
            self.compare(endpoint, outcome);
        }
        let passive = &policy.passive;
        let (what, limit, reason) = match outcome {
            Outcome::Answered { status, .. } if policy.is_failing(status) => (Count::Http, passive.http_failures, "failing answers"),
            Outcome::Answered { status, .. } => {
                if !(status.is_server_error() && policy.outlier.is_some()) && health.succeeded(policy.slow_start) {
                    tracing::info!(upstream = self.name, endpoint = endpoint.name, "endpoint is back");
                }
                return;
            }
            Outcome::NotConnected | Outcome::Broken => (Count::Tcp, passive.tcp_failures, "failed connections"),
            Outcome::TimedOut => (Count::Timeouts, passive.timeouts, "timeouts"),
        };
        if limit > 0 && health.count(what, None) >= limit {
            if policy.probes_bring_back() {
                self.left_out(endpoint, health.down(reason), reason);
            } else {
                self.left_out(endpoint, health.eject(policy.fail_timeout, reason), reason);
            }
        }
        let failed = !matches!(outcome, Outcome::Answered { .. });
        if failed && policy.max_fails > 0 && health.count(Count::Fails, Some(policy.fail_timeout)) >= policy.max_fails {
            self.left_out(endpoint, health.eject(policy.fail_timeout, "failed tries"), "failed tries");
        }
    }

    /// Counts and logs that an endpoint is out, if it is new.
    fn left_out(&self, endpoint: &Endpoint, new: bool, reason: &str) {
        if new {
            endpoint.left_out.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            tracing::warn!(upstream = self.name, endpoint = endpoint.name, reason, "endpoint is left out");
        }
    }
}
