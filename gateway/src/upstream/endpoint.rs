//! One endpoint: where it is, how it does, what it carries.

use super::{Health, State, speed::Speed};
use arc_swap::ArcSwap;
use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::{AtomicU32, AtomicU64, Ordering::Relaxed}},
    time::{Duration, Instant},
};

/// How long a resolved name is used before it is asked again.
const RESOLVE_EVERY: Duration = Duration::from_secs(10);
/// One host and port. Its health is live state: it outlives a configuration.
#[derive(Debug)]
pub struct Endpoint {
    /// As configured.
    pub host: String,
    /// Port.
    pub port: u16,
    /// `host:port`, for logs and metrics.
    pub name: String,
    resolved: ArcSwap<Resolved>,
    resolving: tokio::sync::Mutex<()>,
    /// How it does.
    pub health: Health,
    /// How fast it answers.
    pub(super) speed: Speed,
    /// Times that it was taken out.
    pub(super) left_out: AtomicU64,
    /// Requests under way.
    pub in_flight: AtomicU32,
    next_address: AtomicU32,
}

#[derive(Debug)]
struct Resolved {
    addresses: Vec<SocketAddr>,
    at: Option<Instant>,
}

impl Endpoint {
    pub(super) fn new(host: &str, port: u16) -> Endpoint {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let fixed = bare.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, port));
        Endpoint {
            host: host.to_string(),
            port,
            name: format!("{host}:{port}"),
            resolved: ArcSwap::from_pointee(Resolved { addresses: fixed.into_iter().collect(), at: None }),
            resolving: tokio::sync::Mutex::new(()),
            health: Health::default(),
            speed: Speed::default(),
            left_out: AtomicU64::new(0),
            in_flight: AtomicU32::new(0),
            next_address: AtomicU32::new(0),
        }
    }

    fn is_literal(&self) -> bool {
        let resolved = self.resolved.load();
        resolved.at.is_none() && !resolved.addresses.is_empty()
    }

    /// The addresses to try, in order. IPv4 first, since services on one machine often listen there only. A name that does not
    /// resolve any more keeps its last addresses.
    ///
    /// Errors: the name never resolved.
    pub async fn addresses(&self) -> std::io::Result<Vec<SocketAddr>> {
        let fresh = |r: &Resolved| r.at.is_some_and(|at| at.elapsed() < RESOLVE_EVERY);
        let current = self.resolved.load_full();
        if !self.is_literal() && !fresh(&current) {
            let guard = self.resolving.lock().await;
            if !fresh(&self.resolved.load()) {
                match tokio::net::lookup_host((self.host.as_str(), self.port)).await {
                    Ok(found) => {
                        let mut addresses: Vec<_> = found.collect();
                        addresses.sort_by_key(|a| a.is_ipv6());
                        self.resolved.store(Arc::new(Resolved { addresses, at: Some(Instant::now()) }));
                    }
                    Err(e) if current.addresses.is_empty() => return Err(e),
                    Err(_) => self.resolved.store(Arc::new(Resolved { addresses: current.addresses.clone(), at: Some(Instant::now()) })),
                }
            }
            drop(guard);
        }
        let resolved = self.resolved.load();
        let mut list = resolved.addresses.clone();
        let v4 = list.iter().take_while(|a| a.is_ipv4()).count().max(usize::from(!list.is_empty()));
        if v4 > 1 {
            list[..v4].rotate_left(self.next_address.fetch_add(1, Relaxed) as usize % v4);
        }
        if list.is_empty() {
            return Err(std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address"));
        }
        Ok(list)
    }

    /// Whether it may be used now.
    pub fn is_up(&self) -> bool {
        matches!(self.health.state(), State::Up | State::SlowStart)
    }
}

/// Counts a request on an endpoint for as long as it lives.
pub struct InFlight(Arc<Endpoint>);

impl InFlight {
    /// Begins to count.
    pub fn on(endpoint: &Arc<Endpoint>) -> InFlight {
        endpoint.in_flight.fetch_add(1, Relaxed);
        InFlight(endpoint.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}
