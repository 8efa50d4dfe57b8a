//! Endpoints that outlive a configuration, the upstreams in force, and what an operator sees and says of them.

use super::{Endpoint, State, Upstream, endpoint::{At, Own}, probe};
use crate::dns::{Dns, NameView};
use dashmap::DashMap;
use parking_lot::Mutex;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
};
use tokio::task::AbortHandle;

/// All endpoints that a configuration in use names, by upstream, target and address. The health of an endpoint is that of its upstream:
/// two upstreams may judge the same host differently.
#[derive(Default)]
pub struct Endpoints {
    pub(super) registry: Arc<Registry>,
    in_force: Mutex<InForce>,
}

/// The endpoints themselves, and the names that they have their addresses from.
#[derive(Default)]
pub(super) struct Registry {
    known: DashMap<Key, Weak<Endpoint>>,
    pub(super) dns: Arc<Dns>,
}

/// Upstream, host and port as configured, address and port.
type Key = (String, String, u16, Option<SocketAddr>);

impl Registry {
    /// The endpoint of an upstream, made on first use, and anew when its requests are to bear another name.
    pub(super) fn get(&self, upstream: &str, host: &str, port: u16, at: At, own: Option<Own>) -> Arc<Endpoint> {
        let address = if let At::Fixed(address) = at { Some(address) } else { None };
        let key = (upstream.to_string(), host.to_string(), port, address);
        if let Some(known) = self.known.get(&key).and_then(|e| e.upgrade()).filter(|known| known.own == own) {
            return known;
        }
        self.known.retain(|_, endpoint| endpoint.strong_count() > 0);
        let made = Arc::new(Endpoint::new(host, port, at, own));
        self.known.insert(key, Arc::downgrade(&made));
        made
    }
}

#[derive(Default)]
struct InForce {
    upstreams: Vec<Arc<Upstream>>,
    probes: Vec<AbortHandle>,
}

/// An endpoint, for the admin port.
#[derive(Debug, Clone, Serialize)]
pub struct EndpointView {
    /// `host:port` as configured.
    pub target: String,
    /// Address and port; the target again while its name has none.
    pub address: String,
    /// 0 is asked first; others when none before them is in.
    pub priority: usize,
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
    /// The names of its targets.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub names: BTreeMap<String, NameView>,
}

impl EndpointView {
    /// Whether requests go there.
    pub fn is_in_use(&self) -> bool {
        self.state == State::Up.word() || self.state == State::SlowStart.word()
    }
}

impl Endpoints {
    /// The names.
    pub fn dns(&self) -> &Arc<Dns> {
        &self.registry.dns
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
                    let known = |e: &Arc<Endpoint>| before.endpoints().any(|b| Arc::ptr_eq(&b, e));
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

    /// Begins the active checks of the upstreams in force, and to look names up. To be called within a runtime that lives as long as the program.
    pub fn watch(&self) {
        self.registry.dns.run();
        let mut in_force = self.in_force.lock();
        if in_force.probes.is_empty() {
            in_force.probes = in_force.upstreams.iter().filter_map(probe::begin).collect();
        }
    }

    /// Everything known of the upstreams in force.
    pub fn view(&self) -> Vec<UpstreamView> {
        let view = |endpoint: &Arc<Endpoint>, priority: usize, weight: u32| EndpointView {
            target: endpoint.target.clone(),
            address: endpoint.name.clone(),
            priority,
            weight,
            state: if weight == 0 { State::Draining.word() } else { endpoint.health.state().word() },
            reason: if weight == 0 { "its weight is 0".into() } else { endpoint.health.reason() },
            in_flight: endpoint.in_flight.load(Relaxed),
            left_out: endpoint.left_out.load(Relaxed),
            latency_ms: endpoint.speed.average().map(|d| d.as_secs_f64() * 1000.0),
        };
        let in_force = self.in_force.lock();
        let names = self.registry.dns.view();
        let upstream = |u: &Arc<Upstream>| {
            let set = u.members.set.load();
            let used = set.tiers.iter().enumerate().flat_map(|(at, tier)| tier.members.iter().map(move |m| (at, m)));
            UpstreamView {
                name: u.name.clone(),
                algorithm: u.algorithm_name(),
                healthy_percent: u.healthy_percent(),
                endpoints: used.map(|(at, m)| view(&m.endpoint, at, m.weight)).chain(set.resting.iter().map(|e| view(e, 0, 0))).collect(),
                names: u.members.names().filter_map(|name| Some((name.host.clone(), names.get(&name.host)?.clone()))).collect(),
            }
        };
        in_force.upstreams.iter().map(upstream).collect()
    }

    /// Says of a target of an upstream in force, or of one of its addresses, what it is: `healthy` (what was counted is forgotten, draining ends), `unhealthy` (until
    /// a probe or an operator says otherwise) or `draining` (no new requests; those under way go on).
    ///
    /// Errors: what of it is not known.
    pub fn set(&self, upstream: &str, target: &str, state: &str) -> Result<(), String> {
        let in_force = self.in_force.lock();
        let Some(upstream) = in_force.upstreams.iter().find(|u| u.name == upstream) else { return Err(format!("there is no upstream `{upstream}`")) };
        let resting = upstream.members.set.load().resting.clone();
        // What stands for a name remembers what was said of it, for the addresses that it will have.
        let all = upstream.endpoints().chain(resting).chain(upstream.members.firsts().filter(|e| !e.is_known()).cloned());
        let mut found = all.filter(|e| e.name == target || e.target == target).peekable();
        if found.peek().is_none() {
            return Err(format!("the upstream `{}` has no target `{target}`", upstream.name));
        }
        for endpoint in found {
            match state {
                "healthy" => endpoint.health.up(upstream.policy.slow_start),
                "unhealthy" => upstream.left_out(&endpoint, endpoint.health.down("an operator said so"), "an operator said so"),
                "draining" => endpoint.health.drain("an operator said so"),
                _ => return Err(format!("`{state}` is none of healthy, unhealthy and draining")),
            }
            tracing::info!(upstream = upstream.name, endpoint = endpoint.name, state, "an operator set the health of an endpoint");
        }
        Ok(())
    }
}
