//! One endpoint: where it is, how it does, what it carries.

use super::{Health, State, speed::Speed};
use crate::{ServiceRuntime, dns::{Dns, Name}};
use http::HeaderValue;
use rustls::pki_types::ServerName;
use std::{
    net::SocketAddr,
    sync::{Arc, atomic::{AtomicU32, AtomicU64, Ordering::Relaxed}},
};

/// One address of a target, or a target whose name has none yet. Its health is live state: it outlives a configuration.
#[derive(Debug)]
pub struct Endpoint {
    /// The target's host, as configured.
    pub host: String,
    /// The port that is connected to.
    pub port: u16,
    /// The target as configured, `host:port`.
    pub target: String,
    /// `address:port`, for logs and metrics; the target while its name has no address.
    pub name: String,
    at: At,
    /// The name that its requests bear, if it is not the service's.
    pub(super) own: Option<Own>,
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

/// Where an endpoint is.
#[derive(Clone)]
pub(super) enum At {
    Fixed(SocketAddr),
    Unknown(Arc<Dns>, Arc<Name>),
}

impl std::fmt::Debug for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            At::Fixed(address) => address.fmt(f),
            At::Unknown(_, name) => name.host.fmt(f),
        }
    }
}

/// A name for `Host` and for the server's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Own {
    cleartext: HeaderValue,
    tls: HeaderValue,
    server: ServerName<'static>,
}

impl Own {
    /// `None`: the host can not be in a field or a handshake.
    pub(super) fn new(host: &str, port: u16) -> Option<Own> {
        Some(Own {
            cleartext: crate::snapshot::host_header(host, port, false)?,
            tls: crate::snapshot::host_header(host, port, true)?,
            server: crate::tls::server_name(host)?,
        })
    }
}

impl Endpoint {
    pub(super) fn new(host: &str, port: u16, at: At, own: Option<Own>) -> Endpoint {
        let target = if host.contains(':') && !host.starts_with('[') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let (name, port) = match &at {
            At::Fixed(address) => (address.to_string(), address.port()),
            At::Unknown(..) => (target.clone(), port),
        };
        Endpoint {
            host: host.to_string(),
            port,
            target,
            name,
            at,
            own,
            health: Health::default(),
            speed: Speed::default(),
            left_out: AtomicU64::new(0),
            in_flight: AtomicU32::new(0),
            next_address: AtomicU32::new(0),
        }
    }

    /// Whether it has an address.
    pub(super) fn is_known(&self) -> bool {
        self.fixed_address().is_some()
    }

    /// Its address; `None`: it stands for a name that has none yet, or none any more.
    pub fn fixed_address(&self) -> Option<SocketAddr> {
        match self.at {
            At::Fixed(address) => Some(address),
            At::Unknown(..) => None,
        }
    }

    /// `Host` for its requests in place of the service's.
    pub fn host_header<'a>(&'a self, service: &'a ServiceRuntime) -> &'a HeaderValue {
        match &self.own {
            Some(own) if service.tls.is_some() => &own.tls,
            Some(own) => &own.cleartext,
            None => &service.host_header,
        }
    }

    /// The name that its certificate must have, if it is not the service's.
    pub fn server_name(&self) -> Option<&ServerName<'static>> {
        self.own.as_ref().map(|own| &own.server)
    }

    /// Where to connect to. Waits for that only if its name has never had an address, or none for a while.
    ///
    /// Errors: why there is none.
    pub async fn address(&self) -> Result<SocketAddr, String> {
        let (dns, name) = match &self.at {
            At::Fixed(address) => return Ok(*address),
            At::Unknown(dns, name) => (dns, name),
        };
        let known = dns.known(name).await;
        let first = known.found.first().map(|found| found.priority);
        let usable = known.found.iter().take_while(|found| Some(found.priority) == first).count();
        if usable == 0 {
            return Err(known.failure().unwrap_or_else(|| "the name has no address".into()));
        }
        let found = &known.found[self.next_address.fetch_add(1, Relaxed) as usize % usable];
        Ok(SocketAddr::new(found.ip, found.port.filter(|port| *port > 0).unwrap_or(self.port)))
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
