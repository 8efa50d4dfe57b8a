//! Connections to upstreams: pingora's connector opens them, a list per thread keeps them. A thread's connections are never shared,
//! so that taking one costs no lock. HTTP/1.1 connections carry one request at a time; an HTTP/2 connection carries many.

use crate::{stream::Socket, wire::Wire};
use ahash::RandomState;
use bytes::Bytes;
use h2::client::SendRequest;
use pingora::{
    connectors::{ConnectorOptions, TransportConnector},
    protocols::Stream,
    upstreams::peer::HttpPeer,
};
use rustls::{ClientConfig, pki_types::ServerName};
use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    hash::{Hash, Hasher},
    net::SocketAddr,
    sync::{
        Arc, LazyLock, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::time::Instant;
use weir_cache::FetchError;
use weir_gateway::{ServiceRuntime, Spoken, upstream::Endpoint};

/// Kept shorter than the idle time after which usual servers close.
const IDLE: Duration = Duration::from_secs(50);
/// How often a thread looks for connections that nobody will ask for any more.
const SWEEP: Duration = Duration::from_secs(10);
/// Idle connections kept a thread and peer.
const MAX_IDLE: usize = 128;
/// Requests at once on an HTTP/2 connection, where the upstream allows more.
const MAX_STREAMS: usize = 100;
/// Bytes that an upstream may send ahead: of one answer, and of a connection's all.
const WINDOWS: (u32, u32) = (1024 * 1024, 8 * 1024 * 1024);

/// The connector. TLS is not its matter: it would make a configuration for every connection.
pub fn connector() -> TransportConnector {
    // Pingora loads the system's authorities, and ends the program when there are none.
    match rustls_native_certs::load_native_certs() {
        Ok(_) => TransportConnector::new(None),
        Err(_) => {
            let none = std::env::temp_dir().join(format!("weir-no-roots-{}.pem", std::process::id()));
            let written = std::fs::write(&none, b"");
            let options = ConnectorOptions { ca_file: written.ok().map(|()| none.display().to_string()), ..ConnectorOptions::new(MAX_IDLE) };
            let connector = TransportConnector::new(Some(options));
            let _ = std::fs::remove_file(none);
            connector
        }
    }
}

/// What makes two connections interchangeable.
#[derive(Debug, PartialEq, Eq)]
pub struct PeerKey {
    /// Of all the rest.
    hash: u64,
    address: SocketAddr,
    tls: Option<(Same, Option<ServerName<'static>>)>,
    spoken: Spoken,
}

/// A TLS configuration, equal only to itself: it holds authorities, certificate and what is verified.
#[derive(Debug, Clone)]
struct Same(Arc<ClientConfig>);

impl PartialEq for Same {
    fn eq(&self, other: &Same) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Same {}

impl Hash for Same {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

impl Hash for PeerKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// Keys that a thread remembers.
const KNOWN: usize = 1024;

/// A service and an endpoint by their places in memory. The references beside the key see to it that nothing else comes to lie there.
type Places = (*const ServiceRuntime, *const Endpoint);
type Known = HashMap<Places, (Arc<PeerKey>, Weak<ServiceRuntime>, Weak<Endpoint>), RandomState>;

thread_local!(static KEYS: RefCell<Known> = RefCell::default());

impl PeerKey {
    /// The key of a service's connections to an endpoint. `None`: its address is not known, so no connection is sure to lead there.
    pub fn of(service: &Arc<ServiceRuntime>, endpoint: &Arc<Endpoint>) -> Option<Arc<PeerKey>> {
        let address = endpoint.fixed_address()?;
        Some(KEYS.with_borrow_mut(|known| {
            let places = (Arc::as_ptr(service), Arc::as_ptr(endpoint));
            if let Some((key, ..)) = known.get(&places) {
                return key.clone();
            }
            if known.len() >= KNOWN {
                known.clear();
            }
            let key = Arc::new(PeerKey::new(service, endpoint, address));
            known.insert(places, (key.clone(), Arc::downgrade(service), Arc::downgrade(endpoint)));
            key
        }))
    }

    fn new(service: &ServiceRuntime, endpoint: &Endpoint, address: SocketAddr) -> PeerKey {
        // The same for all threads and for as long as the process lives: equal keys of different configurations share connections.
        static STATE: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        let tls = service.tls.as_ref().map(|tls| (Same(tls.config.clone()), endpoint.server_name().or(tls.name.as_ref()).cloned()));
        let hash = STATE.hash_one((address, &tls, service.spoken));
        PeerKey { hash, address, tls, spoken: service.spoken }
    }
}

/// A connection that is ready for a request.
pub enum Connection {
    /// HTTP/1.1, for this request alone.
    Http1(Wire),
    /// A place on an HTTP/2 connection.
    Http2(Multiplexed),
}

/// A place on an HTTP/2 connection, given back when it is dropped.
pub struct Multiplexed {
    /// Sends the request.
    pub send: SendRequest<Bytes>,
    /// `http` or `https`.
    pub scheme: &'static str,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    open: AtomicUsize,
    over: AtomicBool,
}

impl Multiplexed {
    /// No request is put on this connection any more.
    pub fn condemn(&self) {
        self.state.over.store(true, Relaxed);
    }
}

impl Drop for Multiplexed {
    fn drop(&mut self) {
        self.state.open.fetch_sub(1, Relaxed);
    }
}

/// An HTTP/2 connection in the list.
struct Shared {
    send: SendRequest<Bytes>,
    scheme: &'static str,
    state: Arc<State>,
    used: Instant,
}

impl Shared {
    fn place(&mut self) -> Option<Multiplexed> {
        let most = self.send.current_max_send_streams().min(MAX_STREAMS);
        if self.state.open.load(Relaxed) >= most {
            return None;
        }
        self.state.open.fetch_add(1, Relaxed);
        self.used = Instant::now();
        Some(Multiplexed { send: self.send.clone(), scheme: self.scheme, state: self.state.clone() })
    }

    fn lives(&mut self) -> bool {
        let fits = !self.state.over.load(Relaxed) && (self.used.elapsed() < IDLE || self.state.open.load(Relaxed) > 0);
        fits && !matches!(self.send.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Err(_)))
    }
}

#[derive(Default)]
struct Peers {
    idle: VecDeque<(Instant, Wire)>,
    shared: Vec<Shared>,
    /// Held while a connection is opened that others may use too.
    opening: Arc<tokio::sync::Mutex<()>>,
}

/// The connections of a thread.
struct Pool {
    peers: HashMap<Arc<PeerKey>, Peers, RandomState>,
    swept: Instant,
}

impl Pool {
    fn entry(&mut self, key: Arc<PeerKey>, now: Instant) -> &mut Peers {
        if now - self.swept >= SWEEP {
            self.sweep();
        }
        self.peers.entry(key).or_default()
    }

    /// Connections to endpoints that are gone (a name has other addresses, a configuration names others) are closed when they have been
    /// idle for long enough: nobody asks for them, so nobody else would find out.
    fn sweep(&mut self) {
        self.swept = Instant::now();
        self.peers.retain(|_, peers| {
            while peers.idle.front().is_some_and(|(since, _)| since.elapsed() >= IDLE) {
                peers.idle.pop_front();
            }
            peers.shared.retain_mut(Shared::lives);
            !peers.idle.is_empty() || !peers.shared.is_empty() || Arc::strong_count(&peers.opening) > 1
        });
    }
}

thread_local!(static POOL: RefCell<Pool> = RefCell::new(Pool { peers: HashMap::default(), swept: Instant::now() }));

/// An idle connection that looks alive, or a place on one.
pub fn reuse(key: &Arc<PeerKey>, now: Instant) -> Option<Connection> {
    POOL.with_borrow_mut(|pool| {
        let peers = pool.peers.get_mut(key)?;
        if !peers.shared.is_empty() {
            peers.shared.retain_mut(Shared::lives);
            if let Some(place) = peers.shared.iter_mut().find_map(Shared::place) {
                return Some(Connection::Http2(place));
            }
        }
        while let Some((since, mut wire)) = peers.idle.pop_back() {
            // On a live idle connection this poll makes no system call: the runtime knows that nothing arrived. An end of stream or
            // stray bytes make the connection useless. What it can not see yet is covered by the retry rule.
            let quiet = wire.poll_fill(&mut Context::from_waker(Waker::noop())).is_pending();
            if quiet && now - since < IDLE {
                return Some(Connection::Http1(wire));
            }
        }
        None
    })
}

/// Keeps a connection for the next request.
pub fn keep(key: Arc<PeerKey>, wire: Wire, now: Instant) {
    if !wire.received.is_empty() {
        return; // bytes that no request asked for: never trust the connection again
    }
    POOL.with_borrow_mut(|pool| {
        let idle = &mut pool.entry(key, now).idle;
        while idle.len() >= MAX_IDLE || idle.front().is_some_and(|(since, _)| now - *since >= IDLE) {
            idle.pop_front();
        }
        idle.push_back((now, wire));
    });
}

/// The kind of an error that means: a name has no address.
pub const UNRESOLVED: &str = "dns";

fn failed(kind: &'static str, reason: String, status: http::StatusCode) -> FetchError {
    FetchError { kind, reason, status }
}

/// Opens a connection, or finds that another request has just opened one with room. With it comes the key that it may be kept under: that
/// of the address it leads to, which only the next endpoint has where the name of this one was looked up first.
///
/// Errors: 503 `dns`, 502 `connect` or `tls`, 504 `connect-timeout`.
pub async fn connect(connector: &TransportConnector, service: &Arc<ServiceRuntime>, endpoint: &Arc<Endpoint>) -> Result<(Connection, Arc<PeerKey>), FetchError> {
    let late = Instant::now() + service.connect_timeout;
    let key = match PeerKey::of(service, endpoint) {
        Some(key) => key,
        None => Arc::new(PeerKey::new(service, endpoint, in_time(late, service, endpoint, look_up(endpoint)).await?)),
    };
    if service.spoken == Spoken::Http1 {
        let (stream, _) = in_time(late, service, endpoint, open(connector, service, endpoint, key.address)).await?;
        return Ok((Connection::Http1(Wire::new(stream)), key));
    }
    let opening = POOL.with_borrow_mut(|pool| pool.entry(key.clone(), Instant::now()).opening.clone());
    // A burst of first requests shares one connection.
    let _alone = opening.lock().await;
    if let Some(connection @ Connection::Http2(_)) = reuse(&key, Instant::now()) {
        return Ok((connection, key));
    }
    let late = Instant::now() + service.connect_timeout;
    let (stream, http2) = in_time(late, service, endpoint, open(connector, service, endpoint, key.address)).await?;
    if !http2 {
        return Ok((Connection::Http1(Wire::new(stream)), key));
    }
    let scheme = if service.tls.is_some() { "https" } else { "http" };
    let mut builder = h2::client::Builder::new();
    builder.enable_push(false).initial_window_size(WINDOWS.0).initial_connection_window_size(WINDOWS.1).max_header_list_size(64 * 1024);
    let handshake = tokio::time::timeout(service.connect_timeout, builder.handshake(stream)).await;
    let Ok(Ok((send, connection))) = handshake else {
        return Err(failed("connect", format!("{} does not speak HTTP/2", endpoint.name), http::StatusCode::BAD_GATEWAY));
    };
    let state = Arc::new(State::default());
    let over = state.clone();
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "an HTTP/2 connection to an upstream broke");
        }
        over.over.store(true, Relaxed);
    });
    let mut shared = Shared { send, scheme, state, used: Instant::now() };
    let Some(place) = shared.place() else {
        return Err(failed("connect", format!("{} allows no requests", endpoint.name), http::StatusCode::BAD_GATEWAY));
    };
    POOL.with_borrow_mut(|pool| pool.entry(key.clone(), Instant::now()).shared.push(shared));
    Ok((Connection::Http2(place), key))
}

/// Where an endpoint without an address is.
async fn look_up(endpoint: &Endpoint) -> Result<SocketAddr, FetchError> {
    endpoint.address().await.map_err(|why| {
        // As in Kong: nothing was asked, so there was no bad answer.
        failed(UNRESOLVED, format!("{} does not resolve: {why}", endpoint.host), http::StatusCode::SERVICE_UNAVAILABLE)
    })
}

/// Opens a stream; whether HTTP/2 is to be spoken on it.
async fn open(connector: &TransportConnector, service: &ServiceRuntime, endpoint: &Endpoint, address: SocketAddr) -> Result<(Stream, bool), FetchError> {
    let bad = http::StatusCode::BAD_GATEWAY;
    let stream = connector.new_stream(&peer(service, address)).await;
    let stream = stream.map_err(|error| failed("connect", format!("{}: {}", endpoint.name, error.etype().as_str()), bad))?;
    let Some(tls) = &service.tls else { return Ok((stream, service.spoken == Spoken::Http2)) };
    let name = endpoint.server_name().or(tls.name.as_ref()).cloned().unwrap_or_else(|| ServerName::IpAddress(address.ip().into()));
    let stream = tokio_rustls::TlsConnector::from(tls.config.clone()).connect(name, stream).await;
    let stream = stream.map_err(|error| failed("tls", format!("{}: {error}", endpoint.name), bad))?;
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    if !http2 && service.spoken == Spoken::Http2 {
        return Err(failed("tls", format!("{} does not offer HTTP/2", endpoint.name), bad));
    }
    Ok((Box::new(Socket(stream)) as Stream, http2))
}

/// A step towards a connection, until it is too `late`.
async fn in_time<T>(late: Instant, service: &ServiceRuntime, endpoint: &Endpoint, step: impl Future<Output = Result<T, FetchError>>) -> Result<T, FetchError> {
    tokio::time::timeout_at(late, step).await.unwrap_or_else(|_| {
        let reason = format!("no connection to {} within {:?}", endpoint.name, service.connect_timeout);
        Err(failed("connect-timeout", reason, http::StatusCode::GATEWAY_TIMEOUT))
    })
}

fn peer(service: &ServiceRuntime, address: SocketAddr) -> HttpPeer {
    let mut peer = HttpPeer::new(address, false, String::new());
    peer.options.connection_timeout = Some(service.connect_timeout);
    peer.options.total_connection_timeout = Some(service.connect_timeout);
    peer
}
