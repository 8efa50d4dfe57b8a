//! Asking for a name: the hosts file, then the servers.

use super::name::{Answer, Failure, Found, Known};
use futures_util::future::join_all;
use hickory_resolver::{
    Hosts, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    lookup::Lookup,
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{op::Query, rr::{Name, RData, RecordType}},
    system_conf,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};
use weir_config::{RecordKind, Resolver as Rules};

/// How long what the hosts file says is used before the file is looked at again.
const HOSTS_TTL: Duration = Duration::from_secs(5);
/// Names in SRV records of one answer that are looked up.
const MOST_SERVICES: usize = 64;
const HOSTS: &str = "/etc/hosts";
const SERVERS: &str = "/etc/resolv.conf";

/// Asks by one set of rules and one state of the system's files.
pub(super) struct Asker {
    rules: Arc<Rules>,
    written: [Option<SystemTime>; 2],
    hosts: Hosts,
    resolver: Result<TokioResolver, String>,
}

fn written() -> [Option<SystemTime>; 2] {
    [HOSTS, SERVERS].map(|file| std::fs::metadata(file).and_then(|m| m.modified()).ok())
}

impl Asker {
    pub(super) fn new(rules: &Arc<Rules>) -> Asker {
        let written = written();
        Asker { rules: rules.clone(), written, hosts: Hosts::from_system().unwrap_or_default(), resolver: resolver(rules) }
    }

    pub(super) fn is_current(&self, rules: &Rules) -> bool {
        *self.rules == *rules && self.written == written()
    }

    /// Looks a name up. What answered last is asked for first.
    pub(super) async fn ask(&self, host: &str, last: &Known) -> Result<Answer, Failure> {
        let name = Name::from_ascii(host).map_err(|e| Failure::Silent(format!("this is not a name: {e}")))?;
        if let Some(answer) = self.hosts(&name) {
            return Ok(answer);
        }
        let resolver = self.resolver.as_ref().map_err(|why| Failure::Silent(why.clone()))?;
        let kinds = last.kind.into_iter().chain(self.rules.order.iter().copied().filter(|kind| Some(*kind) != last.kind));
        let mut failed = Failure::Missing { for_now: None };
        for kind in kinds {
            let asked = match kind {
                // Special names have addresses and nothing else (RFC 6761).
                RecordKind::Srv if name.is_localhost() => continue,
                RecordKind::Srv => self.services(resolver, &name, !last.found.is_empty()).await,
                RecordKind::A | RecordKind::Aaaa => addresses(resolver, &name, kind).await,
            };
            match asked {
                Ok(answer) => return Ok(answer),
                // Records of another kind in place of those that are just not to be had would be worse than the old ones.
                Err(failure @ Failure::Silent(_)) if last.kind == Some(kind) && !last.found.is_empty() => return Err(failure),
                Err(failure) => failed = worse(failed, failure),
            }
        }
        Err(failed)
    }

    /// What the hosts file says. Its addresses of another family than the first wanted are there for when those do not answer.
    fn hosts(&self, name: &Name) -> Option<Answer> {
        let families = self.rules.order.iter().filter(|kind| **kind != RecordKind::Srv);
        let mut found = Vec::new();
        for (kind, priority) in families.zip(0..) {
            let record = record_type(*kind);
            if let Some(lookup) = self.hosts.lookup_static_host(&Query::query(name.clone(), record)) {
                found.extend(ips(&lookup).map(|ip| Found { priority, ip, port: None, weight: None, srv_name: None }));
            }
        }
        (!found.is_empty()).then_some(Answer { found, kind: None, ttl: HOSTS_TTL })
    }

    /// SRV records (RFC 2782) with the addresses of the names in them. `complete`: all of those must be answered.
    async fn services(&self, resolver: &TokioResolver, name: &Name, complete: bool) -> Result<Answer, Failure> {
        let lookup = look_up(resolver, name, RecordType::SRV).await?;
        let mut ttl = ttl(&lookup);
        let services = || lookup.answers().iter().filter_map(|record| if let RData::SRV(srv) = &record.data { Some(srv) } else { None });
        // A dot says that there is no such service.
        let names: BTreeSet<&Name> = services().map(|srv| &srv.target).filter(|target| !target.is_root()).take(MOST_SERVICES).collect();
        let mut known: BTreeMap<&Name, Vec<IpAddr>> = BTreeMap::new();
        for record in lookup.additionals() {
            if let (Some(target), Some(ip)) = (names.get(&record.name), record.data.ip_addr().filter(|ip| self.wants(*ip))) {
                known.entry(target).or_default().push(ip);
                ttl = ttl.min(Duration::from_secs(u64::from(record.ttl)));
            }
        }
        let unknown: Vec<&Name> = names.into_iter().filter(|target| !known.contains_key(target)).collect();
        let answers = join_all(unknown.iter().map(|target| self.addresses_of(resolver, target))).await;
        let mut failed = Failure::Missing { for_now: None };
        for (target, answer) in unknown.into_iter().zip(answers) {
            match answer {
                Ok(answer) => {
                    ttl = ttl.min(answer.ttl);
                    known.insert(target, answer.found.into_iter().map(|found| found.ip).collect());
                }
                Err(failure @ Failure::Silent(_)) if complete => return Err(failure),
                Err(failure) => failed = worse(failed, failure),
            }
        }
        let mut found = Vec::new();
        for srv in services() {
            let srv_name: Arc<str> = srv.target.to_ascii().trim_end_matches('.').into();
            for ip in known.get(&srv.target).into_iter().flatten() {
                found.push(Found { priority: srv.priority, ip: *ip, port: Some(srv.port), weight: Some(srv.weight), srv_name: Some(srv_name.clone()) });
            }
        }
        if found.is_empty() { Err(failed) } else { Ok(Answer { found, kind: Some(RecordKind::Srv), ttl }) }
    }

    fn wants(&self, ip: IpAddr) -> bool {
        self.rules.order.contains(if ip.is_ipv4() { &RecordKind::A } else { &RecordKind::Aaaa })
    }

    /// Addresses of a name in an SRV record.
    async fn addresses_of(&self, resolver: &TokioResolver, name: &Name) -> Result<Answer, Failure> {
        if let Some(answer) = self.hosts(name) {
            return Ok(answer);
        }
        let mut failed = Failure::Missing { for_now: None };
        for kind in self.rules.order.iter().filter(|kind| **kind != RecordKind::Srv) {
            match addresses(resolver, name, *kind).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failed = worse(failed, failure),
            }
        }
        Err(failed)
    }
}

fn record_type(kind: RecordKind) -> RecordType {
    match kind {
        RecordKind::Srv => RecordType::SRV,
        RecordKind::A => RecordType::A,
        RecordKind::Aaaa => RecordType::AAAA,
    }
}

fn resolver(rules: &Rules) -> Result<TokioResolver, String> {
    // The search list and `ndots` are the system's in any case.
    let (system, mut options) = match system_conf::read_system_conf() {
        Ok(system) => system,
        Err(error) if rules.servers.is_empty() => return Err(format!("{SERVERS}: {error}")),
        Err(_) => (ResolverConfig::from_parts(None, vec![], vec![]), ResolverOpts::default()),
    };
    let (domain, search, mut servers) = system.into_parts();
    if !rules.servers.is_empty() {
        servers = rules.servers.iter().map(|at| server(at.0)).collect();
    }
    options.timeout = rules.timeout.get();
    options.attempts = rules.attempts as usize - 1;
    // Nothing is kept here: a name knows itself how long its answer holds.
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    let config = ResolverConfig::from_parts(domain, search, servers);
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options).build().map_err(|e| e.to_string())
}

/// A server that is asked by UDP, and by TCP for what is too long for that.
fn server(at: SocketAddr) -> NameServerConfig {
    let with_port = |mut connection: ConnectionConfig| {
        connection.port = at.port();
        connection
    };
    NameServerConfig::new(at.ip(), true, vec![with_port(ConnectionConfig::udp()), with_port(ConnectionConfig::tcp())])
}

async fn look_up(resolver: &TokioResolver, name: &Name, record: RecordType) -> Result<Lookup, Failure> {
    let lookup = resolver.lookup(name.clone(), record).await.map_err(failure)?;
    if lookup.answers().iter().any(|answer| answer.record_type() == record) { Ok(lookup) } else { Err(Failure::Missing { for_now: None }) }
}

async fn addresses(resolver: &TokioResolver, name: &Name, kind: RecordKind) -> Result<Answer, Failure> {
    let lookup = look_up(resolver, name, record_type(kind)).await?;
    let found: Vec<Found> = ips(&lookup).map(|ip| Found { priority: 0, ip, port: None, weight: None, srv_name: None }).collect();
    if found.is_empty() { Err(Failure::Missing { for_now: None }) } else { Ok(Answer { found, kind: Some(kind), ttl: ttl(&lookup) }) }
}

fn ips(lookup: &Lookup) -> impl Iterator<Item = IpAddr> {
    lookup.answers().iter().filter_map(|record| record.data.ip_addr())
}

/// The shortest of an answer's records, aliases among them.
fn ttl(lookup: &Lookup) -> Duration {
    Duration::from_secs(u64::from(lookup.answers().iter().map(|record| record.ttl).min().unwrap_or(0)))
}

fn failure(error: NetError) -> Failure {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => Failure::Missing { for_now: none.negative_ttl.map(|seconds| Duration::from_secs(u64::from(seconds))) },
        error => Failure::Silent(error.to_string()),
    }
}

/// Of two kinds of records that there are not: as long as one may be there, nothing is certain.
fn worse(one: Failure, other: Failure) -> Failure {
    match (&one, &other) {
        (Failure::Silent(_), _) => one,
        (_, Failure::Silent(_)) => other,
        (Failure::Missing { for_now: a }, Failure::Missing { for_now: b }) => Failure::Missing { for_now: a.iter().chain(b).min().copied() },
    }
}
