//! Endpoints that outlive a configuration, the upstreams in force, and what an operator sees and says of them.

use super::{Endpoint, State, Upstream, probe};
use dashmap::DashMap;
use parking_lot::Mutex;
use serde::Serialize;
use std::{
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
};
use tokio::task::AbortHandle;

/// All endpoints that a configuration in use names, by upstream, host and port. The health of an endpoint is that of its upstream: two
/// upstreams may judge the same host differently.
#[derive(Default)]
pub struct Endpoints {
    known: DashMap<(String, String, u16), Weak<Endpoint>>,
    in_force: Mutex<InForce>,
}

#[derive(Default)]
struct InForce {
    upstreams: Vec<Arc<Upstream>>,
    probes: Vec<AbortHandle>,
}

/// An endpoint, for the admin port.
#[derive(Debug, Clone, Serialize)]
pub struct EndpointView {
    /// `host:port`.
    pub target: String,
    /// Its weight; 0: it gets nothing.
    pub weight: u32,
    /// `up`, `slow-start`, `down` or `draining`.
    pub state: &'static str,
    /// Why it is not up; empty while it is.
    pub reason: String,
    /// Requests under way.
    pub in_flight: u32,
    /// Times that it was taken out.
    pub left_out: u64,
    /// Average time to the head of an answer, milliseconds.
    pub latency_ms: Option<f64>,
}

/// An upstream, for the admin port.
#[derive(Debug, Clone, Serialize)]
pub struct UpstreamView {
    /// Its name, or `host:port` of a service without one.
    pub name: String,
    /// How endpoints are picked.
    pub algorithm: &'static str,
    /// Percent of its weight that is in use.
    pub healthy_percent: f64,
    /// Its endpoints.
    pub endpoints: Vec<EndpointView>,
}

impl EndpointView {
    /// Whether requests go there.
    pub fn is_in_use(&self) -> bool {
        self.state == State::Up.word() || self.state == State::SlowStart.word()
    }
}

impl Endpoints {
    /// The endpoint of an upstream, made on first use.
    pub fn get(&self, upstream: &str, host: &str, port: u16) -> Arc<Endpoint> {
        let key = (upstream.to_string(), host.to_string(), port);
        if let Some(known) = self.known.get(&key).and_then(|e| e.upgrade()) {
            return known;
        }
        self.known.retain(|_, endpoint| endpoint.strong_count() > 0);
        let made = Arc::new(Endpoint::new(host, port));
        self.known.insert(key, Arc::downgrade(&made));
        made
    }

    /// The upstreams of the configuration that is in force from now on. Active checks of those before end, and theirs begin, at once
    /// where a runtime is at hand, else with [`Endpoints::watch`].
    pub fn put_in_force(&self, upstreams: impl IntoIterator<Item = Arc<Upstream>>) {
        let mut unique: Vec<Arc<Upstream>> = Vec::new();
        for upstream in upstreams {
            // Services that name the same host and port each have an upstream, over the same endpoint: one is enough here.
            if !unique.iter().any(|u| u.name == upstream.name) {
                unique.push(upstream);
            }
        }
        unique.sort_by(|a, b| a.name.cmp(&b.name));
        {
            let mut in_force = self.in_force.lock();
            for upstream in &unique {
                if let Some(before) = in_force.upstreams.iter().find(|u| u.name == upstream.name) {
                    let known = |e: &Arc<Endpoint>| before.endpoints().any(|b| Arc::ptr_eq(b, e));
                    // One that comes to others begins slowly.
                    upstream.endpoints().filter(|e| !known(e)).for_each(|e| e.health.warm(upstream.policy.slow_start));
                }
            }
            in_force.probes.drain(..).for_each(|probe| probe.abort());
            in_force.upstreams = unique;
        }
        if tokio::runtime::Handle::try_current().is_ok() {
            self.watch();
        }
    }

    /// Begins the active checks of the upstreams in force. To be called within a runtime that lives as long as the program.
    pub fn watch(&self) {
        let mut in_force = self.in_force.lock();
        if in_force.probes.is_empty() {
            in_force.probes = in_force.upstreams.iter().filter_map(probe::begin).collect();
        }
    }

    /// Everything known of the upstreams in force.
    pub fn view(&self) -> Vec<UpstreamView> {
        let view = |endpoint: &Arc<Endpoint>, weight: u32| EndpointView {
            target: endpoint.name.clone(),
            weight,
            state: if weight == 0 { State::Draining.word() } else { endpoint.health.state().word() },
            reason: if weight == 0 { "its weight is 0".into() } else { endpoint.health.reason() },
            in_flight: endpoint.in_flight.load(Relaxed),
            left_out: endpoint.left_out.load(Relaxed),
            latency_ms: endpoint.speed.average().map(|d| d.as_secs_f64() * 1000.0),
        };
        let in_force = self.in_force.lock();
        let upstream = |u: &Arc<Upstream>| UpstreamView {
            name: u.name.clone(),
            algorithm: u.algorithm_name(),
            healthy_percent: u.healthy_percent(),
            endpoints: u.balancer.members.iter().map(|m| view(&m.endpoint, m.weight)).chain(u.resting.iter().map(|e| view(e, 0))).collect(),
        };
        in_force.upstreams.iter().map(upstream).collect()
    }

    /// Says of a target of an upstream in force what it is: `healthy` (what was counted is forgotten, draining ends), `unhealthy` (until
    /// a probe or an operator says otherwise) or `draining` (no new requests; those under way go on).
    ///
    /// Errors: what of it is not known.
    pub fn set(&self, upstream: &str, target: &str, state: &str) -> Result<(), String> {
        let in_force = self.in_force.lock();
        let Some(upstream) = in_force.upstreams.iter().find(|u| u.name == upstream) else { return Err(format!("there is no upstream `{upstream}`")) };
        let mut found = upstream.endpoints().chain(&upstream.resting).filter(|e| e.name == target).peekable();
        if found.peek().is_none() {
            return Err(format!("the upstream `{}` has no target `{target}`", upstream.name));
        }
        for endpoint in found {
            match state {
                "healthy" => endpoint.health.up(upstream.policy.slow_start),
                "unhealthy" => upstream.left_out(endpoint, endpoint.health.down("an operator said so"), "an operator said so"),
                "draining" => endpoint.health.drain("an operator said so"),
                _ => return Err(format!("`{state}` is none of healthy, unhealthy and draining")),
            }
            tracing::info!(upstream = upstream.name, endpoint = endpoint.name, state, "an operator set the health of an endpoint");
        }
        Ok(())
    }
}
