//! `ip-restriction`: callers pass by their address.

use crate::{Configured, Live, wrong};
use http::{StatusCode, header, request};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;
use std::{net::IpAddr, sync::Arc};
use weir_config::{Diagnostic, Node};
use weir_gateway::{BuildEnv, Environment, Flow, Phases, Plugin, Reply, RequestContext, Sight};

const BY: &str = "ip-restriction";

/// Lets callers pass, or keeps them out, by their address: that of the connection, or what a trusted proxy in front says. `deny` is looked at first; who is not in it
/// must be in `allow`, if there is an `allow`. The answer for the others is 403. Fields, defaults and messages are Kong's.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Addresses and networks (CIDR) that may pass. Empty: all but those in `deny`.
    #[serde(alias = "whitelist")]
    #[schemars(extend("x-aliases" = ["whitelist"]))]
    pub allow: Vec<String>,
    /// Addresses and networks (CIDR) that may not.
    #[serde(alias = "blacklist")]
    #[schemars(extend("x-aliases" = ["blacklist"]))]
    pub deny: Vec<String>,
    /// Status for those who may not pass; 403 if it is not set.
    #[schemars(range(min = 400, max = 599))]
    pub status: Option<u16>,
    /// Message for those who may not pass. Default: `IP address not allowed: ` and the address.
    pub message: Option<String>,
}

impl Configured for Config {
    const NAME: &'static str = BY;
    const PRIORITY: i32 = 990;
    const EXAMPLE: &'static str = "allow: [10.0.0.0/8, 192.0.2.0/24, '2001:db8::/32']\ndeny: [10.0.0.13]\nmessage: This is for our own network\n";
    type Ready = Rules;

    fn ready(self, at: &Node) -> Result<Rules, Vec<Diagnostic>> {
        let mut errors = Vec::new();
        let mut read = |key: &str, old: &str, list: &[String]| {
            let node = at.get(key).or_else(|| at.get(old));
            let mut ranges = Ranges::default();
            for (place, text) in list.iter().enumerate() {
                match net(text) {
                    Some(net) => ranges.add(net),
                    None => {
                        let span = node.and_then(|n| n.items().get(place)).map_or(at.span(), Node::span);
                        errors.push(Diagnostic::error("plugin-config", span, "this is neither an address nor a network like `10.0.0.0/8`"));
                    }
                }
            }
            ranges.settled()
        };
        let (allow, deny) = (read("allow", "whitelist", &self.allow), read("deny", "blacklist", &self.deny));
        if self.allow.is_empty() && self.deny.is_empty() {
            errors.push(wrong(at, "", "`allow` or `deny` is wanted, with at least one address"));
        }
        let status = StatusCode::from_u16(self.status.unwrap_or(403)).ok().filter(|s| s.is_client_error() || s.is_server_error());
        if status.is_none() {
            errors.push(wrong(at, "status", "a status between 400 and 599 is wanted"));
        }
        match status {
            Some(status) if errors.is_empty() => {
                Ok(Rules { allow: (!self.allow.is_empty()).then_some(allow), deny, status, message: self.message })
            }
            _ => Err(errors),
        }
    }

    fn build(ready: Rules, env: &BuildEnv<'_>, _: &Live) -> Arc<dyn Plugin> {
        Arc::new(IpRestriction { rules: ready, environment: env.environment.clone() })
    }
}

/// The configuration, checked.
pub struct Rules {
    allow: Option<Ranges>,
    deny: Ranges,
    status: StatusCode,
    message: Option<String>,
}

/// Addresses, as ranges that do not touch, in order: thousands of networks cost a handful of comparisons.
#[derive(Default)]
struct Ranges {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

fn net(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn merged<T: Ord + Copy>(mut all: Vec<(T, T)>) -> Vec<(T, T)> {
    all.sort_unstable();
    let mut out: Vec<(T, T)> = Vec::with_capacity(all.len());
    for (from, to) in all {
        match out.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => out.push((from, to)),
        }
    }
    out
}

fn holds<T: Ord + Copy>(all: &[(T, T)], address: T) -> bool {
    let after = all.partition_point(|(from, _)| *from <= address);
    after > 0 && all[after - 1].1 >= address
}

impl Ranges {
    fn add(&mut self, net: IpNet) {
        match net {
            IpNet::V4(net) => self.v4.push((net.network().into(), net.broadcast().into())),
            IpNet::V6(net) => self.v6.push((net.network().into(), net.broadcast().into())),
        }
    }

    fn settled(self) -> Ranges {
        Ranges { v4: merged(self.v4), v6: merged(self.v6) }
    }

    /// IPv4 in the dress of IPv6 is IPv4.
    fn holds(&self, ip: IpAddr) -> bool {
        match ip.to_canonical() {
            IpAddr::V4(ip) => holds(&self.v4, ip.into()),
            IpAddr::V6(ip) => holds(&self.v6, ip.into()),
        }
    }
}

struct IpRestriction {
    rules: Rules,
    environment: Arc<Environment>,
}

impl Plugin for IpRestriction {
    fn phases(&self) -> Phases {
        Phases::REQUEST
    }

    fn sees_of_request(&self) -> Sight {
        Sight::Only(vec![header::ACCEPT])
    }

    fn request(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        let ip = cx.client.ip;
        if !self.rules.deny.holds(ip) && self.rules.allow.as_ref().is_none_or(|allow| allow.holds(ip)) {
            return Flow::Continue;
        }
        self.environment.metrics.plugin(BY, "refused");
        let message = self.rules.message.clone().unwrap_or_else(|| format!("IP address not allowed: {}", ip.to_canonical()));
        Flow::Reply(Reply::error(BY, cx, req.headers.get(header::ACCEPT), self.rules.status, &message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rig, errors, get};
    use proptest::prelude::*;

    #[tokio::test]
    async fn addresses_decide() {
        let lists = "{allow: [10.0.0.0/8], deny: [10.1.0.0/16, 10.2.3.4]}";
        for (config, ip, status) in [
            ("allow: [192.0.2.7]", "192.0.2.7", 200),
            ("allow: [192.0.2.7]", "192.0.2.8", 403),
            ("allow: [192.0.2.7]", "::ffff:192.0.2.7", 200),
            ("whitelist: [192.0.2.7]", "192.0.2.8", 403),
            ("allow: [192.0.2.128/25]", "192.0.2.127", 403),
            ("allow: [192.0.2.128/25]", "192.0.2.255", 200),
            ("allow: [192.0.2.200/25]", "192.0.2.129", 200),
            ("allow: ['::/0']", "192.0.2.7", 403),
            ("allow: ['2001:db8::/32', 10.0.0.1]", "2001:db8:ffff::1", 200),
            ("allow: ['2001:db8::/32']", "2001:db9::", 403),
            ("deny: [0.0.0.0/0]", "192.0.2.7", 403),
            ("deny: [0.0.0.0/0]", "2001:db8::1", 200),
            ("blacklist: [192.0.2.7]", "192.0.2.7", 403),
            (lists, "10.200.0.1", 200),
            (lists, "10.1.0.1", 403),
            (lists, "10.2.3.4", 403),
            (lists, "11.0.0.1", 403),
        ] {
            let seen = Rig::new(&[("ip-restriction", config)]).run(get("/").from(ip)).await;
            assert_eq!(seen.status(), status, "{config} {ip}");
            assert_eq!(seen.forwarded(), status == 200);
        }
    }

    #[tokio::test]
    async fn the_answer_names_the_address_or_says_what_is_configured() {
        let rig = Rig::new(&[("ip-restriction", "deny: [192.0.2.0/24]")]);
        let seen = rig.run(get("/").from("::ffff:192.0.2.9")).await;
        assert_eq!(seen.json()["message"], "IP address not allowed: 192.0.2.9");
        assert_eq!(seen.json()["request_id"], seen.cx.id.as_str());
        assert_eq!(rig.outcome("ip-restriction", "refused"), 1);
        let rig = Rig::new(&[("ip-restriction", "{deny: [192.0.2.0/24], status: 404, message: Nothing here}")]);
        let seen = rig.run(get("/")).await;
        assert_eq!((seen.status(), seen.json()["message"].as_str()), (404, Some("Nothing here")));
    }

    #[test]
    fn mistakes_are_named_where_they_stand() {
        let found = errors("ip-restriction", "allow:\n  - 10.0.0.0/8\n  - 10.0.0.0/33\n  - host\n");
        assert_eq!(found.iter().map(|e| e.span.line).collect::<Vec<_>>(), [3, 4]);
        let found = errors("ip-restriction", "blacklist:\n  - 10.0.0\n");
        assert_eq!(found[0].span.line, 2);
        assert!(errors("ip-restriction", "{}")[0].message.contains("`allow` or `deny`"));
        assert!(errors("ip-restriction", "{deny: [10.0.0.1], status: 200}")[0].message.contains("400"));
    }

    proptest! {
        /// Against looking through the whole list.
        #[test]
        fn the_same_as_a_plain_search(nets in proptest::collection::vec((any::<u32>(), 0u8..=32), 0..12), near in any::<u8>(), which in any::<prop::sample::Index>(), far in any::<u32>()) {
            let nets: Vec<IpNet> = nets.into_iter().map(|(ip, len)| ipnet::Ipv4Net::new(ip.into(), len).unwrap().into()).collect();
            let mut ranges = Ranges::default();
            nets.iter().for_each(|net| ranges.add(*net));
            let ranges = ranges.settled();
            let edge = if nets.is_empty() { far } else {
                let IpNet::V4(net) = which.get(&nets) else { unreachable!() };
                u32::from(net.network()).wrapping_sub(2).wrapping_add(u32::from(near % 5))
            };
            for ip in [edge, far] {
                let ip = IpAddr::from(std::net::Ipv4Addr::from(ip));
                prop_assert_eq!(ranges.holds(ip), nets.iter().any(|net| net.contains(&ip)));
            }
        }
    }
}
