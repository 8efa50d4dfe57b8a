//! `resolver:` — how the names of services and targets are looked up.

use crate::reader::Context;
use crate::{Millis, Node};
use schemars::JsonSchema;
use serde::Deserialize;
use std::net::{IpAddr, SocketAddr};

/// `resolver:` — how the names of services and targets are looked up. `/etc/hosts` comes first, and the search list of `/etc/resolv.conf`
/// holds in any case.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Resolver {
    /// Name servers: addresses, with a port if it is not 53. Default: those of `/etc/resolv.conf`.
    #[schemars(extend("examples" = [["10.0.0.2", "10.0.0.3:5353"]]))]
    pub servers: Vec<NameServer>,
    /// Which records are asked for, in this order; the first of which there are any count. What answered last is asked for first.
    /// Default: SRV, A, AAAA.
    #[schemars(length(min = 1))]
    pub order: Vec<RecordKind>,
    /// A name is not asked for more often than this, however short its TTL (default: 1s).
    pub min_ttl: Millis,
    /// Nor less often than this (1h).
    pub max_ttl: Millis,
    /// Time for an answer to one question (2s).
    pub timeout: Millis,
    /// How often a question without an answer is put.
    #[schemars(range(min = 1, max = 10))]
    pub attempts: u32,
    /// How long a name that does not exist is not asked for again, at most (10s); its zone may say less.
    pub negative_ttl: Millis,
    /// How long the last addresses are used beyond their TTL when no server answers (1h).
    pub stale: Millis,
    /// The same when the servers say that there is no such name, or that it has no addresses
    /// (30s).
    pub missing: Millis,
}

impl Default for Resolver {
    fn default() -> Self {
        Resolver {
            servers: vec![],
            order: vec![RecordKind::Srv, RecordKind::A, RecordKind::Aaaa],
            min_ttl: Millis::secs(1),
            max_ttl: Millis::secs(3600),
            timeout: Millis::secs(2),
            attempts: 2,
            negative_ttl: Millis::secs(10),
            stale: Millis::secs(3600),
            missing: Millis::secs(30),
        }
    }
}

/// A kind of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum RecordKind {
    /// Ports, weights and priorities, with names that have addresses (RFC 2782).
    Srv,
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
}

impl RecordKind {
    /// As it is written.
    pub fn word(self) -> &'static str {
        match self {
            RecordKind::Srv => "SRV",
            RecordKind::A => "A",
            RecordKind::Aaaa => "AAAA",
        }
    }
}

/// Where a name server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NameServer(pub SocketAddr);

impl NameServer {
    /// Reads an address with or without a port.
    ///
    /// # Errors
    /// What is wrong with it, as half a sentence.
    pub fn parse(text: &str) -> Result<NameServer, String> {
        let bare = text.trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Ok(NameServer(SocketAddr::new(ip, 53)));
        }
        text.parse().ok().filter(|at: &SocketAddr| at.port() > 0).map(NameServer).ok_or_else(|| "a name server is an address like `10.0.0.2` or `10.0.0.2:5353`".into())
    }
}

/// What the fields by themselves do not show.
pub(crate) fn check(cx: &Context<'_>, section: &Node, resolver: &Resolver) {
    let place = |key: &str| section.get(key).unwrap_or(section).span();
    if resolver.min_ttl > resolver.max_ttl {
        cx.error("value", place("min_ttl"), format!("this is longer than `max_ttl`, {}", resolver.max_ttl), None);
    }
    if resolver.timeout.get().is_zero() {
        cx.error("value", place("timeout"), "no server is this fast", None);
    }
    if !resolver.order.iter().any(|kind| matches!(kind, RecordKind::A | RecordKind::Aaaa)) {
        cx.error("value", place("order"), "names in SRV records have addresses of some kind", Some("add `A` or `AAAA`".into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_may_have_a_port() {
        let read = |text: &str| NameServer::parse(text).map(|server| server.0.to_string());
        assert_eq!(read("10.0.0.2"), Ok("10.0.0.2:53".into()));
        assert_eq!(read("10.0.0.2:5353"), Ok("10.0.0.2:5353".into()));
        assert_eq!(read("fd00::2"), Ok("[fd00::2]:53".into()));
        assert_eq!(read("[fd00::2]:54"), Ok("[fd00::2]:54".into()));
        for bad in ["", "dns.example", "10.0.0.2:0", "10.0.0.256", "udp://10.0.0.2"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
