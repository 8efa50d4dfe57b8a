//! The endpoints of an upstream at the moment: its targets, with the addresses that their names have now.

use super::{Endpoint, State, balance::Balancer, endpoint::{At, Own}, registry::Registry};
use crate::dns::{Found, Name, Watcher};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::sync::Notify;
use weir_config::kong::Algorithm;

/// Where requests may go, as configured.
#[derive(Debug, Clone)]
pub struct Target {
    /// Name or address.
    pub host: String,
    /// Port; one that an SRV record names counts more.
    pub port: u16,
    /// Share of the traffic; 0: none. Each address of a name has it, but where SRV records have weights of their own.
    pub weight: u32,
}

impl Target {
    /// An only one.
    pub fn only(host: &str, port: u16) -> Target {
        Target { host: host.into(), port, weight: 1 }
    }
}

/// Whose name an endpoint's requests bear.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Naming {
    /// The target's, where it is no address; else the service's.
    pub(super) by_target: bool,
    /// The target's also where it is an address: the service's, which is the upstream's, can not be a server's.
    pub(super) by_address: bool,
    /// The one in the SRV record.
    pub(super) by_srv: bool,
}

/// Endpoints of the same priority are a tier; a tier is used when none before it has an endpoint that is in.
#[derive(Default)]
pub(super) struct Set {
    pub(super) tiers: Vec<Balancer>,
    /// Of weight 0: they get nothing, and what is under way there goes on.
    pub(super) resting: Vec<Arc<Endpoint>>,
}

impl Set {
    fn at(&self, mut index: usize) -> Option<&Arc<Endpoint>> {
        for tier in &self.tiers {
            match tier.members.get(index) {
                Some(member) => return Some(&member.endpoint),
                None => index -= tier.members.len(),
            }
        }
        None
    }

    /// All that get traffic.
    pub(super) fn endpoints(self: Arc<Self>) -> impl Iterator<Item = Arc<Endpoint>> {
        (0..).map_while(move |index| self.at(index).cloned())
    }

    fn has(&self, endpoint: &Arc<Endpoint>) -> bool {
        self.tiers.iter().flat_map(|tier| &tier.members).any(|member| Arc::ptr_eq(&member.endpoint, endpoint))
    }
}

struct Place {
    target: Target,
    /// `None`: the host is an address.
    name: Option<Arc<Name>>,
    /// The endpoint of an address; of a name, what stands for it while it has none.
    first: Arc<Endpoint>,
}

pub(super) struct Members {
    upstream: String,
    algorithm: Algorithm,
    slots: usize,
    slow_start: Duration,
    naming: Naming,
    places: Vec<Place>,
    pub(super) set: ArcSwap<Set>,
    /// There is another set.
    pub(super) changed: Notify,
    registry: Arc<Registry>,
    /// Held while a set is made.
    making: Mutex<()>,
}

/// Endpoints with their weights.
type Weighed = Vec<(Arc<Endpoint>, u32)>;

impl Members {
    pub(super) fn new(upstream: &str, targets: Vec<Target>, algorithm: Algorithm, slots: usize, slow_start: Duration, naming: Naming, registry: &Arc<Registry>) -> Arc<Members> {
        let place = |target: Target| {
            let bare = target.host.trim_start_matches('[').trim_end_matches(']');
            let (name, at) = match bare.parse::<IpAddr>() {
                Ok(ip) => (None, At::Fixed(SocketAddr::new(ip, target.port))),
                Err(_) => {
                    let name = registry.dns.name(bare);
                    (Some(name.clone()), At::Unknown(registry.dns.clone(), name))
                }
            };
            let named = if name.is_some() { naming.by_target } else { naming.by_address };
            let own = if named { Own::new(bare, target.port) } else { None };
            let first = registry.get(upstream, &target.host, target.port, at, own);
            Place { target, name, first }
        };
        let made = Arc::new(Members {
            upstream: upstream.to_owned(),
            algorithm,
            slots,
            slow_start,
            naming,
            places: targets.into_iter().map(place).collect(),
            set: Default::default(),
            changed: Notify::new(),
            registry: registry.clone(),
            making: Mutex::default(),
        });
        made.make();
        let weak = Arc::downgrade(&made);
        made.places.iter().filter_map(|place| place.name.as_ref()).for_each(|name| name.watch(weak.clone() as Weak<dyn Watcher>));
        // It may have been answered before that.
        made.make();
        made
    }

    /// The endpoints that stand for names.
    pub(super) fn firsts(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.places.iter().map(|place| &place.first)
    }

    /// The names of its targets.
    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<Name>> {
        self.places.iter().filter_map(|place| place.name.as_ref())
    }

    fn make(&self) {
        let _alone = self.making.lock();
        let before = self.set.load_full();
        let mut tiers: Vec<Weighed> = Vec::new();
        let mut resting = Vec::new();
        for place in &self.places {
            if place.target.weight == 0 {
                resting.push(place.first.clone());
                continue;
            }
            let known = place.name.as_ref().map(|name| name.known()).filter(|known| !known.found.is_empty());
            let Some(known) = known else {
                add(&mut tiers, 0, place.first.clone(), place.target.weight);
                continue;
            };
            let (mut tier, mut priority) = (0, known.found[0].priority);
            for found in &known.found {
                if found.priority != priority {
                    (tier, priority) = (tier + 1, found.priority);
                }
                // RFC 2782 gives weight 0 a small chance.
                let weight = found.weight.map_or(place.target.weight, |weight| u32::from(weight).max(1));
                add(&mut tiers, tier, self.endpoint(place, found), weight);
            }
        }
        let same = |(tier, made): (&Balancer, &Weighed)| {
            tier.members.len() == made.len() && tier.members.iter().zip(made).all(|(member, (endpoint, weight))| Arc::ptr_eq(&member.endpoint, endpoint) && member.weight == *weight)
        };
        if before.tiers.len() == tiers.len() && before.tiers.iter().zip(&tiers).all(same) && before.resting.len() == resting.len() {
            return;
        }
        // Those that join others begin slowly; in the place of a name that had no address there was nobody.
        if before.tiers.iter().flat_map(|tier| &tier.members).any(|member| member.endpoint.is_known()) {
            tiers.iter().flatten().filter(|(endpoint, _)| !before.has(endpoint)).for_each(|(endpoint, _)| endpoint.health.warm(self.slow_start));
        }
        let tiers = tiers.into_iter().map(|tier| Balancer::new(self.algorithm, tier, self.slots)).collect();
        self.set.store(Arc::new(Set { tiers, resting }));
        self.changed.notify_waiters();
    }

    fn endpoint(&self, place: &Place, found: &Found) -> Arc<Endpoint> {
        let port = found.port.filter(|port| *port > 0).unwrap_or(place.target.port);
        let own = match &found.srv_name {
            Some(name) if self.naming.by_srv => Own::new(name, port),
            // A target's name that is none of a server leaves the address.
            _ if self.naming.by_target => Own::new(&place.target.host, port).or_else(|| Own::new(&found.ip.to_string(), port).filter(|_| self.naming.by_address)),
            _ => None,
        };
        let made = self.registry.get(&self.upstream, &place.target.host, place.target.port, At::Fixed(SocketAddr::new(found.ip, port)), own);
        // What an operator said of the target holds for all its addresses.
        match place.first.health.state() {
            State::Draining if made.health.state() != State::Draining => made.health.drain(&place.first.health.reason()),
            _ => {}
        }
        made
    }
}

impl Watcher for Members {
    fn changed(&self) {
        self.make();
    }
}

fn add(tiers: &mut Vec<Weighed>, tier: usize, endpoint: Arc<Endpoint>, weight: u32) {
    if tiers.len() <= tier {
        tiers.resize_with(tier + 1, Vec::new);
    }
    tiers[tier].push((endpoint, weight));
}
