//! What a test or an admin call sees of a running stub: counters, remembered requests, faults, the ledger.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use http::{Request, Version};
use parking_lot::Mutex;
use serde::Serialize;

use crate::faults::{FaultRule, Faults};

/// After so many different paths, further ones are counted together under `(other)`, so that a scan or a load
/// test with random paths does not fill the memory.
const MAX_PATHS: usize = 10_000;

/// A running stub from outside. Cheap to clone; outlives the service.
#[derive(Debug, Clone)]
pub struct Handle(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    hits: AtomicU64,
    in_flight: AtomicU64,
    max_in_flight: AtomicU64,
    connections: AtomicU64,
    paths: Mutex<HashMap<String, u64>>,
    remember: usize,
    recent: Mutex<VecDeque<SeenRequest>>,
    healthy: AtomicBool,
    ledger: Mutex<Vec<LedgerEntry>>,
    pub faults: Faults,
}

/// The counters at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Requests that arrived, `/_stub/…` not counted.
    pub hits: u64,
    /// The same by path, without the query.
    pub paths: BTreeMap<String, u64>,
    /// Requests whose answer has not been sent to the end.
    pub in_flight: u64,
    /// The most that were in flight at once.
    pub max_in_flight: u64,
    /// TCP connections accepted.
    pub connections: u64,
}

/// A request as the stub saw it.
#[derive(Debug, Clone, Serialize)]
pub struct SeenRequest {
    /// The method.
    pub method: String,
    /// Path and query as sent.
    pub target: String,
    /// `HTTP/1.1`, `HTTP/2.0` …
    pub version: String,
    /// Names in lower case, in the order of arrival as far as the parser keeps it; repeated headers come repeatedly.
    pub headers: Vec<(String, String)>,
}

impl SeenRequest {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
    }

    pub(crate) fn of<B>(request: &Request<B>) -> SeenRequest {
        SeenRequest {
            method: request.method().to_string(),
            target: request
                .uri()
                .path_and_query()
                .map_or_else(|| request.uri().to_string(), |pq| pq.to_string()),
            version: version(request.version()).to_owned(),
            headers: headers(request.headers()),
        }
    }
}

/// The protocol version as it stands on the wire.
pub(crate) fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "HTTP/0.9",
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        Version::HTTP_3 => "HTTP/3.0",
        _ => "HTTP/1.1",
    }
}

/// Headers as pairs; bytes that are not UTF-8 become U+FFFD.
pub(crate) fn headers(map: &http::HeaderMap) -> Vec<(String, String)> {
    map.iter()
        .map(|(n, v)| {
            (
                n.to_string(),
                String::from_utf8_lossy(v.as_bytes()).into_owned(),
            )
        })
        .collect()
}

/// A thing done in the world that must not be done twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LedgerEntry {
    /// What was done: `order.created`.
    pub action: &'static str,
    /// The id of the thing made.
    pub id: u64,
    /// When, RFC 3339.
    pub at: String,
    /// The `Idempotency-Key` or `X-Idempotency-Key` that came with it.
    pub idempotency_key: Option<String>,
    /// The subject of the bearer token that came with it, unverified.
    pub subject: Option<String>,
}

impl Handle {
    pub(crate) fn new(remember: usize, healthy: bool) -> Handle {
        Handle(Arc::new(Inner {
            hits: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            max_in_flight: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            paths: Mutex::default(),
            remember,
            recent: Mutex::default(),
            healthy: AtomicBool::new(healthy),
            ledger: Mutex::default(),
            faults: Faults::default(),
        }))
    }

    /// Requests that arrived in all, `/_stub/…` not counted.
    pub fn hits(&self) -> u64 {
        self.0.hits.load(Ordering::SeqCst)
    }

    /// Requests that arrived for this path, whatever their query.
    pub fn hits_for(&self, path: &str) -> u64 {
        self.0.paths.lock().get(path).copied().unwrap_or(0)
    }

    /// All counters.
    pub fn stats(&self) -> Stats {
        Stats {
            hits: self.hits(),
            paths: self
                .0
                .paths
                .lock()
                .iter()
                .map(|(k, v)| (k.clone(), *v))
                .collect(),
            in_flight: self.0.in_flight.load(Ordering::SeqCst),
            max_in_flight: self.0.max_in_flight.load(Ordering::SeqCst),
            connections: self.0.connections.load(Ordering::SeqCst),
        }
    }

    /// The last requests, oldest first (as many as `Options::remember` says).
    pub fn requests(&self) -> Vec<SeenRequest> {
        self.0.recent.lock().iter().cloned().collect()
    }

    /// What this service has done in the world, in order.
    pub fn ledger(&self) -> Vec<LedgerEntry> {
        self.0.ledger.lock().clone()
    }

    /// Sets counters to zero and forgets remembered requests and the ledger. Requests in flight stay in flight;
    /// faults stay (see [`Handle::clear_faults`]); what the service stores (members, orders, users) stays.
    pub fn reset(&self) {
        self.0.hits.store(0, Ordering::SeqCst);
        self.0.connections.store(0, Ordering::SeqCst);
        self.0
            .max_in_flight
            .store(self.0.in_flight.load(Ordering::SeqCst), Ordering::SeqCst);
        self.0.paths.lock().clear();
        self.0.recent.lock().clear();
        self.0.ledger.lock().clear();
    }

    /// Adds a standing fault. `Err` says what is wrong with the rule.
    pub fn add_fault(&self, rule: FaultRule) -> Result<(), String> {
        self.0.faults.add(rule)
    }

    /// Ends all standing faults.
    pub fn clear_faults(&self) {
        self.0.faults.clear();
    }

    /// The standing faults that are not used up.
    pub fn faults(&self) -> Vec<FaultRule> {
        self.0.faults.list()
    }

    /// Makes `/health` answer 200 or 503.
    pub fn set_healthy(&self, healthy: bool) {
        self.0.healthy.store(healthy, Ordering::SeqCst);
    }

    /// What `/health` says.
    pub fn healthy(&self) -> bool {
        self.0.healthy.load(Ordering::SeqCst)
    }

    pub(crate) fn connected(&self) {
        self.0.connections.fetch_add(1, Ordering::SeqCst);
    }

    /// Counts a request on arrival, before anything is done with it. The guard counts it out.
    pub(crate) fn arrive<B>(&self, request: &Request<B>) -> InFlight {
        let inner = &self.0;
        inner.hits.fetch_add(1, Ordering::SeqCst);
        let now = inner.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        inner.max_in_flight.fetch_max(now, Ordering::SeqCst);
        let path = request.uri().path();
        {
            let mut paths = inner.paths.lock();
            if let Some(count) = paths.get_mut(path) {
                *count += 1;
            } else if paths.len() < MAX_PATHS {
                paths.insert(path.to_owned(), 1);
            } else {
                *paths.entry("(other)".to_owned()).or_default() += 1;
            }
        }
        if inner.remember > 0 {
            let seen = SeenRequest::of(request);
            let mut recent = inner.recent.lock();
            if recent.len() >= inner.remember {
                recent.pop_front();
            }
            recent.push_back(seen);
        }
        InFlight(self.clone())
    }

    pub(crate) fn record(&self, entry: LedgerEntry) {
        self.0.ledger.lock().push(entry);
    }
}

/// Lives as long as a request is in flight.
pub(crate) struct InFlight(Handle);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}
