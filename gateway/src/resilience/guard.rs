//! A circuit breaker at work: which circuit a request belongs to, what counts as a failure, what is answered meanwhile.

use super::circuit::{Circuit, CircuitRules, Pass, Verdict};
use crate::{Reply, RouteRuntime, ServiceRuntime, upstream::{Endpoint, Upstream}};
use dashmap::DashMap;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use std::{sync::Arc, time::Duration};
use weir_config::{BreakerScope, CircuitBreaker, Millis};

/// More circuits of endpoints than this are looked through for some that are at rest: the addresses of a name come and go.
const MANY: usize = 1024;

/// All circuits of the process. Live state: it outlives a configuration.
#[derive(Default)]
pub struct Circuits {
    services: DashMap<String, Arc<Circuit>>,
    routes: DashMap<String, Arc<Circuit>>,
    endpoints: DashMap<String, Arc<Circuit>>,
}

impl Circuits {
    fn get(&self, scope: BreakerScope, name: &str) -> Arc<Circuit> {
        let (all, word) = match scope {
            BreakerScope::Service => (&self.services, "service"),
            BreakerScope::Route => (&self.routes, "route"),
            BreakerScope::Endpoint => (&self.endpoints, "endpoint"),
        };
        if let Some(known) = all.get(name) {
            return known.clone();
        }
        if scope == BreakerScope::Endpoint && all.len() >= MANY {
            all.retain(|_, circuit| Arc::strong_count(circuit) > 1 || !circuit.is_at_rest());
        }
        all.entry(name.into()).or_insert_with(|| Circuit::new(format!("{word}:{name}"))).clone()
    }

    /// All, by name.
    pub fn all(&self) -> Vec<Arc<Circuit>> {
        let mut all: Vec<_> = [&self.services, &self.routes, &self.endpoints].into_iter().flat_map(|some| some.iter().map(|c| c.clone()).collect::<Vec<_>>()).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }
}

/// A breaker as configured.
pub struct Guard {
    rules: CircuitRules,
    statuses: Vec<u16>,
    slow_call: Option<Duration>,
    per: BreakerScope,
    /// Whether what the cache holds is served while a circuit is open.
    pub stale: bool,
    reply: Reply,
    /// The service that is asked while a circuit is open.
    pub service: Option<Arc<ServiceRuntime>>,
    circuits: Arc<Circuits>,
}

impl Guard {
    /// A breaker of a configuration that was checked. `service`: the one that the fallback names.
    pub fn new(config: &CircuitBreaker, service: Option<Arc<ServiceRuntime>>, circuits: &Arc<Circuits>) -> Guard {
        const NAME: &str = "circuit-breaker";
        let reply = match &config.fallback {
            Some(fallback) if fallback.service.is_none() => {
                let mut headers = HeaderMap::new();
                for (name, text) in &fallback.headers {
                    if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(text)) {
                        headers.insert(name, value);
                    }
                }
                let status = StatusCode::from_u16(fallback.status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
                Reply { status, headers, body: fallback.body.clone().into(), ..Reply::empty(NAME, status) }
            }
            _ => Reply::message(NAME, StatusCode::SERVICE_UNAVAILABLE, "The service is failing, try again later").with("x-weir-reason", "circuit-open"),
        };
        Guard {
            rules: CircuitRules {
                failure_rate: config.failure_rate,
                minimum: config.minimum_calls,
                window: config.window.get(),
                slow_rate: config.slow_rate,
                open_for: config.open_for.get(),
                probes: config.probes,
            },
            statuses: config.statuses.clone(),
            slow_call: config.slow_call.map(Millis::get),
            per: config.per,
            stale: config.stale,
            reply,
            service,
            circuits: circuits.clone(),
        }
    }

    /// The circuit of all the service's endpoints together.
    fn circuit(&self, service: &ServiceRuntime, route: Option<&RouteRuntime>) -> Option<Arc<Circuit>> {
        match (self.per, route) {
            (BreakerScope::Service, _) => Some(self.circuits.get(self.per, &service.name)),
            (BreakerScope::Route, Some(route)) => Some(self.circuits.get(self.per, &route.name)),
            (BreakerScope::Route, None) | (BreakerScope::Endpoint, _) => None,
        }
    }

    fn of(&self, endpoint: &Endpoint) -> Option<Arc<Circuit>> {
        (self.per == BreakerScope::Endpoint).then(|| self.circuits.get(self.per, &endpoint.name))
    }

    /// How long nothing will be sent yet; `None`: the request may be sent.
    pub fn closed_to(&self, service: &ServiceRuntime, route: Option<&RouteRuntime>) -> Option<Duration> {
        if self.per != BreakerScope::Endpoint {
            return self.circuit(service, route)?.closed_to(&self.rules);
        }
        let mut soonest = None;
        for endpoint in service.upstream.endpoints() {
            let left = self.of(&endpoint)?.closed_to(&self.rules)?;
            soonest = Some(soonest.map_or(left, |known: Duration| known.min(left)));
        }
        soonest
    }

    /// The same for a request that is turned away then, which is counted.
    pub fn turns_away(&self, service: &ServiceRuntime, route: Option<&RouteRuntime>) -> Option<Duration> {
        let left = self.closed_to(service, route)?;
        match self.circuit(service, route) {
            Some(circuit) => circuit.refused(),
            None => service.upstream.endpoints().filter_map(|endpoint| self.of(&endpoint)).for_each(|circuit| circuit.refused()),
        }
        Some(left)
    }

    /// Lets a request through to the service; nothing to tell where circuits belong to endpoints.
    ///
    /// Errors: how long it will be open yet.
    pub fn enter(&self, service: &ServiceRuntime, route: Option<&RouteRuntime>) -> Result<Option<Pass>, Duration> {
        self.circuit(service, route).map(|circuit| circuit.enter(&self.rules)).transpose()
    }

    /// Lets a try through to an endpoint, where circuits belong to endpoints.
    ///
    /// Errors: how long it will be open yet.
    pub fn enter_endpoint(&self, endpoint: &Endpoint) -> Result<Option<Pass>, Duration> {
        self.of(endpoint).map(|circuit| circuit.enter(&self.rules)).transpose()
    }

    /// Endpoints that get nothing for now.
    pub fn barred(&self, upstream: &Upstream) -> Vec<Arc<Endpoint>> {
        if self.per != BreakerScope::Endpoint {
            return Vec::new();
        }
        let barred = |endpoint: &Arc<Endpoint>| self.of(endpoint).is_some_and(|circuit| circuit.closed_to(&self.rules).is_some());
        upstream.endpoints().filter(barred).collect()
    }

    /// What an answer's head says.
    pub fn verdict(&self, status: StatusCode, took: Duration) -> Verdict {
        if self.statuses.contains(&status.as_u16()) {
            Verdict::Failure
        } else if self.slow_call.is_some_and(|limit| took >= limit) {
            Verdict::Slow
        } else {
            Verdict::Success
        }
    }

    /// The answer while the circuit is open.
    pub fn reply(&self, left: Duration) -> Reply {
        let seconds = left.as_millis().div_ceil(1000).max(1);
        self.reply.clone().with(header::RETRY_AFTER.as_str(), &seconds.to_string())
    }
}
