//! Where requests go: upstreams, their endpoints, and which endpoint is next.

use arc_swap::ArcSwap;
use dashmap::DashMap;
use parking_lot::Mutex;
use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::{AtomicU32, AtomicU64, Ordering::Relaxed}},
    time::{Duration, Instant},
};

/// How long a resolved name is used before it is asked again.
const RESOLVE_EVERY: Duration = Duration::from_secs(10);
/// Failures in a row that take an endpoint out (nginx: `max_fails`).
const MAX_FAILS: u32 = 3;
/// How long it stays out (nginx: `fail_timeout`).
const FAIL_TIMEOUT: Duration = Duration::from_secs(10);

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
    epoch: Instant,
    fails: AtomicU32,
    /// Milliseconds since `epoch` until which it is out; 0: it is in.
    out_until: AtomicU64,
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
    fn new(host: &str, port: u16) -> Endpoint {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let fixed = bare.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, port));
        Endpoint {
            host: host.to_string(),
            port,
            name: format!("{host}:{port}"),
            resolved: ArcSwap::from_pointee(Resolved { addresses: fixed.into_iter().collect(), at: None }),
            resolving: tokio::sync::Mutex::new(()),
            epoch: Instant::now(),
            fails: AtomicU32::new(0),
            out_until: AtomicU64::new(0),
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
        let until = self.out_until.load(Relaxed);
        until == 0 || self.epoch.elapsed().as_millis() as u64 >= until
    }

    /// An answer arrived (of whatever status).
    pub fn succeeded(&self) {
        if self.fails.load(Relaxed) != 0 {
            self.fails.store(0, Relaxed);
            self.out_until.store(0, Relaxed);
        }
    }

    /// No connection, or no answer.
    pub fn failed(&self) {
        if self.fails.fetch_add(1, Relaxed) + 1 >= MAX_FAILS {
            let until = self.epoch.elapsed() + FAIL_TIMEOUT;
            self.out_until.store(until.as_millis() as u64, Relaxed);
        }
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

/// All endpoints that any configuration named, by host and port.
#[derive(Default)]
pub struct Endpoints(DashMap<(String, u16), Arc<Endpoint>>);

impl Endpoints {
    /// The endpoint, made on first use.
    pub fn get(&self, host: &str, port: u16) -> Arc<Endpoint> {
        self.0.entry((host.to_string(), port)).or_insert_with(|| Arc::new(Endpoint::new(host, port))).clone()
    }

    /// Every endpoint and whether it is up.
    pub fn health(&self) -> Vec<(String, bool, u32)> {
        let mut all: Vec<_> = self.0.iter().map(|e| (e.name.clone(), e.is_up(), e.in_flight.load(Relaxed))).collect();
        all.sort();
        all
    }
}

/// A set of endpoints with weights.
pub struct Upstream {
    /// Its name, or `host:port` of a service without one.
    pub name: String,
    endpoints: Vec<(Arc<Endpoint>, u32)>,
    current: Mutex<Vec<i64>>,
}

impl Upstream {
    /// A set; endpoints of weight 0 get nothing.
    pub fn new(name: String, endpoints: Vec<(Arc<Endpoint>, u32)>) -> Upstream {
        let endpoints: Vec<_> = endpoints.into_iter().filter(|(_, w)| *w > 0).collect();
        Upstream { name, current: Mutex::new(vec![0; endpoints.len()]), endpoints }
    }

    /// The endpoints.
    pub fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.endpoints.iter().map(|(e, _)| e)
    }

    /// The next endpoint by smooth weighted round robin among those that are up and not in `tried`. When none is up, all count as
    /// up: a guess is better than a refusal. `None` only when all were tried (or there are none).
    pub fn pick(&self, tried: &[Arc<Endpoint>]) -> Option<Arc<Endpoint>> {
        let untried = |e: &Arc<Endpoint>| !tried.iter().any(|t| Arc::ptr_eq(t, e));
        if let [(only, _)] = self.endpoints.as_slice() {
            return untried(only).then(|| only.clone());
        }
        let mut current = self.current.lock();
        let mut choose = |must_be_up: bool| {
            let mut total = 0;
            let mut best: Option<usize> = None;
            for (i, (endpoint, weight)) in self.endpoints.iter().enumerate() {
                if !untried(endpoint) || (must_be_up && !endpoint.is_up()) {
                    continue;
                }
                current[i] += i64::from(*weight);
                total += i64::from(*weight);
                if best.is_none_or(|b| current[i] > current[b]) {
                    best = Some(i);
                }
            }
            let best = best?;
            current[best] -= total;
            Some(self.endpoints[best].0.clone())
        };
        choose(true).or_else(|| choose(false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(weights: &[u32]) -> Upstream {
        let all = Endpoints::default();
        Upstream::new("u".into(), weights.iter().enumerate().map(|(i, w)| (all.get("127.0.0.1", 1000 + i as u16), *w)).collect())
    }

    #[test]
    fn weights_share_the_traffic_smoothly() {
        let u = upstream(&[5, 1, 1, 0]);
        let ports: Vec<u16> = (0..7).map(|_| u.pick(&[]).unwrap().port - 1000).collect();
        assert_eq!(ports, [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn a_failing_endpoint_is_left_out_until_all_fail() {
        let u = upstream(&[1, 1]);
        let first = u.endpoints().next().unwrap().clone();
        (0..MAX_FAILS).for_each(|_| first.failed());
        assert!((0..4).all(|_| u.pick(&[]).unwrap().port == 1001));
        let second = u.endpoints().nth(1).unwrap().clone();
        (0..MAX_FAILS).for_each(|_| second.failed());
        assert!(u.pick(&[]).is_some());
        first.succeeded();
        assert!((0..4).all(|_| u.pick(&[]).unwrap().port == 1000));
    }

    #[test]
    fn a_retry_goes_elsewhere() {
        let u = upstream(&[1, 1]);
        let first = u.pick(&[]).unwrap();
        let second = u.pick(&[first.clone()]).unwrap();
        assert!(!Arc::ptr_eq(&first, &second));
        assert!(u.pick(&[first, second]).is_none());
    }

    #[tokio::test]
    async fn names_resolve_and_literals_do_not_ask() {
        let all = Endpoints::default();
        assert_eq!(all.get("::1", 80).addresses().await.unwrap(), ["[::1]:80".parse().unwrap()]);
        assert!(all.get("localhost", 80).addresses().await.unwrap().contains(&"127.0.0.1:80".parse().unwrap()));
        assert!(all.get("no-such-host.invalid", 80).addresses().await.is_err());
    }
}
