//! Whose requests are counted together.

use crate::template::{Template, Vars};
use http::{HeaderName, request};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{borrow::Cow, net::{IpAddr, Ipv4Addr, Ipv6Addr}};
use weir_gateway::RequestContext;

/// What tells one caller from another.
pub(crate) enum By {
    Consumer,
    Credential,
    Ip,
    Service,
    Header(HeaderName),
    Path(String),
    /// The names on the way to the claim.
    Claim(Vec<String>),
    Template(Template),
}

/// Bits by which addresses differ that count apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Prefixes {
    pub v4: u8,
    pub v6: u8,
}

/// Who is counted. The kind is part of it, so that a subject called `192.0.2.1` is not that address.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Who<'a> {
    pub kind: &'static str,
    pub name: Name<'a>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) enum Name<'a> {
    Address(IpAddr),
    Text(&'a str),
    /// What a client may choose: it may be a secret, and as long as a head.
    Any(Cow<'a, [u8]>),
}

impl Name<'_> {
    /// As a part of a key: short, and no secret.
    pub fn shown(&self) -> Cow<'_, str> {
        match self {
            Name::Address(ip) => Cow::Owned(ip.to_string()),
            Name::Text(text) if text.len() <= 64 => Cow::Borrowed(text),
            Name::Text(text) => Cow::Owned(short_hash(text.as_bytes())),
            Name::Any(bytes) => Cow::Owned(short_hash(bytes)),
        }
    }
}

fn short_hash(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest[..16].iter().map(|b| format!("{b:02x}")).collect()
}

impl Prefixes {
    /// Each address of IPv4, and of IPv6 each /64, which is what a caller owns.
    pub const DEFAULT: Prefixes = Prefixes { v4: 32, v6: 64 };

    /// The network that an address counts as. An IPv4 address inside an IPv6 one is an IPv4 address.
    fn network(self, ip: IpAddr) -> IpAddr {
        match ip.to_canonical() {
            IpAddr::V4(ip) => IpAddr::V4(Ipv4Addr::from_bits(ip.to_bits() & u32::MAX.checked_shl(32 - u32::from(self.v4.min(32))).unwrap_or(0))),
            IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & u128::MAX.checked_shl(128 - u32::from(self.v6.min(128))).unwrap_or(0))),
        }
    }
}

impl By {
    /// The caller of a request. Where there is no such thing, the address.
    pub fn who<'a>(&'a self, cx: &'a RequestContext, req: &'a request::Parts, prefixes: Prefixes) -> Who<'a> {
        self.found(cx, req).unwrap_or_else(|| Who { kind: "ip", name: Name::Address(prefixes.network(cx.client.ip)) })
    }

    fn found<'a>(&'a self, cx: &'a RequestContext, req: &'a request::Parts) -> Option<Who<'a>> {
        let text = |kind, name: &'a str| Some(Who { kind, name: Name::Text(name) });
        let any = |kind, name: Cow<'a, [u8]>| Some(Who { kind, name: Name::Any(name) });
        let subject = || cx.identity.as_ref().filter(|i| !i.subject.is_empty()).and_then(|i| text("subject", &i.subject));
        let credential = || cx.identity.as_ref().and_then(|i| i.credential.as_deref()).and_then(|c| text("credential", c));
        match self {
            By::Ip => None,
            By::Consumer => cx.consumer.as_ref().and_then(|c| text("consumer", &c.entity.id)).or_else(subject).or_else(credential),
            By::Credential => credential().or_else(subject),
            By::Service => cx.service.as_ref().and_then(|s| text("service", &s.name)),
            By::Header(name) => req.headers.get(name).and_then(|v| any("header", Cow::Borrowed(v.as_bytes()))),
            By::Path(path) => (req.uri.path() == path).then_some(path).and_then(|path| text("path", path)),
            By::Claim(names) => {
                let (first, more) = names.split_first()?;
                let first = cx.identity.as_ref()?.claims.as_ref()?.get(first)?;
                match more.iter().try_fold(first, |value, name| value.get(name))? {
                    Value::Null => None,
                    Value::String(empty) if empty.is_empty() => None,
                    Value::String(value) => any("claim", Cow::Borrowed(value.as_bytes())),
                    other => any("claim", Cow::Owned(other.to_string().into_bytes())),
                }
            }
            By::Template(template) => {
                let made = template.render(&Vars { cx, headers: &req.headers, query: req.uri.query() });
                (!made.is_empty()).then_some(made).and_then(|made| any("template", Cow::Owned(made.into_bytes())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_count_by_network() {
        for (ip, prefixes, network) in [
            ("192.0.2.7", Prefixes::DEFAULT, "192.0.2.7"),
            ("192.0.2.7", Prefixes { v4: 24, v6: 64 }, "192.0.2.0"),
            ("::ffff:192.0.2.7", Prefixes { v4: 24, v6: 64 }, "192.0.2.0"),
            ("2001:db8:1:2:3:4:5:6", Prefixes::DEFAULT, "2001:db8:1:2::"),
            ("2001:db8:1:2:3:4:5:6", Prefixes { v4: 32, v6: 56 }, "2001:db8:1::"),
            ("2001:db8:1:2:3:4:5:6", Prefixes { v4: 32, v6: 128 }, "2001:db8:1:2:3:4:5:6"),
            ("2001:db8::1", Prefixes { v4: 1, v6: 1 }, "::"),
        ] {
            assert_eq!(prefixes.network(ip.parse().unwrap()).to_string(), network, "{ip} {prefixes:?}");
        }
    }

    #[test]
    fn what_is_long_or_chosen_by_clients_is_not_shown() {
        assert_eq!(Name::Text("kim").shown(), "kim");
        assert_eq!(Name::Text(&"k".repeat(65)).shown().len(), 32);
        let shown = Name::Any(Cow::Borrowed(b"secret")).shown().into_owned();
        assert!(shown.len() == 32 && !shown.contains("secret"));
    }
}
