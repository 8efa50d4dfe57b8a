//! Connections to upstreams: pingora's connector opens them, a list per thread keeps them. A thread's connections are never shared,
//! so that taking one costs no lock.

use crate::wire::Wire;
use pingora::{
    connectors::{ConnectorOptions, TransportConnector},
    upstreams::peer::HttpPeer,
};
use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    task::{Context, Waker},
    time::Duration,
};
use tokio::time::Instant;
use weir_cache::FetchError;
use weir_gateway::{ServiceRuntime, upstream::Endpoint};

/// Kept shorter than the idle time after which usual servers close.
const IDLE: Duration = Duration::from_secs(50);
/// Idle connections kept a thread and peer.
const MAX_IDLE: usize = 128;

/// The connector, with the system's root certificates. A machine without any (a bare container) can still reach upstreams in cleartext;
/// `https` upstreams then fail their verification, one by one and with a reason.
pub fn connector() -> TransportConnector {
    // Pingora's own loading ends the program when there are none.
    match rustls_native_certs::load_native_certs() {
        Ok(_) => TransportConnector::new(None),
        Err(error) => {
            tracing::warn!(%error, "no root certificates: https upstreams can not be verified");
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
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerKey {
    endpoint: String,
    /// Server name and whether it was verified, for TLS.
    tls: Option<(String, bool)>,
}

impl PeerKey {
    /// The key of a service's connections to an endpoint.
    pub fn new(service: &ServiceRuntime, endpoint: &Endpoint) -> Arc<PeerKey> {
        Arc::new(PeerKey { endpoint: endpoint.name.clone(), tls: service.tls.then(|| (service.host.clone(), service.tls_verify)) })
    }
}

type Idle = VecDeque<(Instant, Wire)>;
thread_local!(static POOL: RefCell<HashMap<Arc<PeerKey>, Idle>> = RefCell::new(HashMap::new()));

/// An idle connection that looks alive.
pub fn reuse(key: &Arc<PeerKey>) -> Option<Wire> {
    POOL.with_borrow_mut(|pool| {
        let idle = pool.get_mut(key)?;
        while let Some((since, mut wire)) = idle.pop_back() {
            // On a live idle connection this poll makes no system call: the runtime knows that nothing arrived. An end of stream or
            // stray bytes make the connection useless. What it can not see yet is covered by the retry rule.
            let quiet = wire.poll_fill(&mut Context::from_waker(Waker::noop())).is_pending();
            if quiet && since.elapsed() < IDLE {
                return Some(wire);
            }
        }
        None
    })
}

/// Keeps a connection for the next request.
pub fn keep(key: Arc<PeerKey>, wire: Wire) {
    if !wire.received.is_empty() {
        return; // bytes that no request asked for: never trust the connection again
    }
    POOL.with_borrow_mut(|pool| {
        let idle = pool.entry(key).or_default();
        while idle.len() >= MAX_IDLE || idle.front().is_some_and(|(since, _)| since.elapsed() >= IDLE) {
            idle.pop_front();
        }
        idle.push_back((Instant::now(), wire));
    });
}

/// Opens a connection.
///
/// Errors: 502 `dns`, `connect` or `tls`, 504 `connect-timeout`.
pub async fn connect(connector: &TransportConnector, service: &ServiceRuntime, endpoint: &Endpoint) -> Result<Wire, FetchError> {
    let failed = |kind, reason: String, status| FetchError { kind, reason, status };
    let addresses = endpoint
        .addresses()
        .await
        .map_err(|e| failed("dns", format!("{} does not resolve: {e}", endpoint.host), http::StatusCode::BAD_GATEWAY))?;
    let deadline = Instant::now() + service.connect_timeout;
    let mut last = None;
    for address in addresses.into_iter().take(4) {
        let peer = peer(service, address);
        match tokio::time::timeout_at(deadline, connector.new_stream(&peer)).await {
            Ok(Ok(stream)) => return Ok(Wire::new(stream)),
            Ok(Err(error)) => last = Some(error),
            Err(_) => {
                let reason = format!("no connection to {} within {:?}", endpoint.name, service.connect_timeout);
                return Err(failed("connect-timeout", reason, http::StatusCode::GATEWAY_TIMEOUT));
            }
        }
    }
    let (kind, reason) = match last {
        Some(error) => {
            let kind = match error.etype() {
                pingora::ErrorType::TLSHandshakeFailure | pingora::ErrorType::InvalidCert | pingora::ErrorType::TLSHandshakeTimedout => "tls",
                _ => "connect",
            };
            (kind, format!("{}: {}", endpoint.name, error.etype().as_str()))
        }
        None => ("connect", format!("{} has no address", endpoint.name)),
    };
    Err(failed(kind, reason, http::StatusCode::BAD_GATEWAY))
}

fn peer(service: &ServiceRuntime, address: SocketAddr) -> HttpPeer {
    let mut peer = HttpPeer::new(address, service.tls, service.host.clone());
    peer.options.connection_timeout = Some(service.connect_timeout);
    peer.options.total_connection_timeout = Some(service.connect_timeout);
    peer.options.verify_cert = service.tls_verify;
    peer.options.verify_hostname = service.tls_verify;
    peer
}
