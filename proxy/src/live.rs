//! The live configuration: everything that a request needs to know, in one snapshot.

use crate::{
    classify::ClassifyRules,
    guest::GuestIssuer,
    pages::Pages,
    server::DoorKind,
    tls::{self, DoorTls},
};
use arc_swap::{ArcSwap, ArcSwapOption};
use ipnet::IpNet;
use pingora::connectors::TransportConnector;
use std::{
    net::IpAddr,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};
use weir_config::{ApiTarget, Diagnostic, Document, Edge, Gateway, Guests, OriginTls, Resilience, Secret, Size, Span};
use weir_gateway::{
    Client, Environment, Register, ServiceRuntime, Snapshot, Spoken,
    metrics::HitCounters,
    resilience::{Care, CareFor, Guard},
    tls::{TlsWish, UpstreamTls},
};

/// The running program: what outlives configurations, and the configuration in force.
pub struct Weir {
    /// Store, cache, client, metrics, health.
    pub environment: Arc<Environment>,
    /// In force.
    pub live: ArcSwap<Live>,
    /// The last one that had a door which its successor lacks: it serves what was on its way to that door.
    pub retired: ArcSwapOption<Live>,
    /// Opens connections to upstreams.
    pub connector: TransportConnector,
    register: Arc<dyn Register>,
    /// Which pages visitors ask for most.
    pub popular: crate::popular::Popular,
    /// Where finished requests are written.
    pub access: crate::access::AccessLog,
    /// Bytes of answers that wait for slow clients.
    pub waiting: AtomicUsize,
}

impl Weir {
    /// Compiles the first configuration.
    ///
    /// Errors: everything that is wrong with the document.
    pub fn new(document: Document, register: Arc<dyn Register>, environment: Arc<Environment>) -> Result<Arc<Weir>, Vec<Diagnostic>> {
        let access = crate::access::AccessLog::new(document.server.access_log, environment.metrics.log_dropped.clone());
        let live = Live::compile(document, &*register, &environment)?;
        environment.endpoints.dns().configure(&live.document.resolver);
        environment.endpoints.put_in_force(live.upstreams());
        live.activate();
        Ok(Arc::new(Weir { environment, live: ArcSwap::from_pointee(live), retired: ArcSwapOption::empty(), connector: crate::dial::connector(), register, access, popular: Default::default(), waiting: AtomicUsize::new(0) }))
    }

    /// Puts another configuration in force; requests under way finish on the old one. `ready` gets ready what else it needs, before.
    ///
    /// Errors: everything that is wrong; then the old one stays.
    pub fn reload(&self, document: Document, ready: impl FnOnce(&Live) -> Result<(), Vec<Diagnostic>>) -> Result<(), Vec<Diagnostic>> {
        match Live::compile(document, &*self.register, &self.environment).and_then(|live| ready(&live).map(|()| live)) {
            Ok(live) => {
                self.environment.endpoints.dns().configure(&live.document.resolver);
                self.environment.endpoints.put_in_force(live.upstreams());
                live.activate();
                let live = Arc::new(live);
                let old = self.live.swap(live.clone());
                if [DoorKind::Edge, DoorKind::Gateway].into_iter().any(|door| old.has(door) && !live.has(door)) {
                    self.retired.store(Some(old));
                }
                self.environment.metrics.reload(true);
                Ok(())
            }
            Err(errors) => {
                self.environment.metrics.reload(false);
                Err(errors)
            }
        }
    }
}

/// One configuration, compiled.
pub struct Live {
    /// As it was written.
    pub document: Document,
    /// Router, chains, upstreams.
    pub snapshot: Snapshot,
    /// The page cache's rules.
    pub edge: Option<EdgeRules>,
    /// Numbers of the process.
    pub settings: Settings,
    /// Proxies whose word counts.
    pub trusted: Vec<IpNet>,
    /// What a caller must know to force a refresh.
    pub warm_up_token: Option<Secret>,
    /// Of the edge and of the gateway.
    tls: [Option<DoorTls>; 2],
}

/// Limits and times.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Largest request head, bytes.
    pub max_head: usize,
    /// Largest request body, bytes.
    pub max_body: u64,
    /// For a whole request head.
    pub head_timeout: Duration,
    /// Between two pieces of a body, in or out.
    pub body_timeout: Duration,
    /// Between two requests.
    pub keepalive: Duration,
    /// Bytes that may wait for slow clients: of one answer, of all.
    pub waiting: (usize, usize),
    /// Hits in memory take the fast lane.
    pub fast_lane: bool,
}

/// The edge, compiled.
pub struct EdgeRules {
    /// As it was written.
    pub config: Edge,
    /// The site.
    pub origin: Arc<ServiceRuntime>,
    /// A gateway elsewhere, if `api` names one.
    pub api: Option<Arc<ServiceRuntime>>,
    /// How requests are told apart.
    pub classify: ClassifyRules,
    /// What may be cached.
    pub pages: Pages,
    /// Guest tokens.
    pub guests: Option<(Guests, GuestIssuer)>,
    /// By the page rule's place: what its hits count.
    pub hits: Vec<HitCounters>,
}

impl Live {
    /// Whether a peer's `X-Forwarded-*` count.
    pub fn trusts(&self, ip: &IpAddr) -> bool {
        self.trusted.iter().any(|net| net.contains(ip))
    }

    /// Whether there is such a door.
    pub fn has(&self, door: DoorKind) -> bool {
        match door {
            DoorKind::Edge => self.document.edge.is_some(),
            DoorKind::Gateway => self.document.gateway.is_some(),
        }
    }

    /// A door's TLS, if there are certificates.
    pub fn tls(&self, door: DoorKind) -> Option<&DoorTls> {
        self.tls[usize::from(door == DoorKind::Gateway)].as_ref()
    }

    /// Whether the client's connection was made for another host than its request (RFC 9110 section 15.5.20).
    pub fn is_misdirected(&self, door: DoorKind, client: &Client) -> bool {
        // A trusted proxy's own connection says nothing of its clients' hosts.
        let Some(sni) = client.sni.as_deref().filter(|_| !client.trusted) else { return false };
        self.tls(door).is_some_and(|tls| tls.names.misdirected(sni, &client.host))
    }

    /// Every upstream that requests may go to.
    fn upstreams(&self) -> Vec<Arc<weir_gateway::upstream::Upstream>> {
        let edge = self.edge.iter().flat_map(|e| std::iter::once(&e.origin).chain(&e.api)).map(|s| s.upstream.clone());
        self.snapshot.all_upstreams().chain(edge).collect()
    }

    /// The configuration comes into force, with its limits.
    fn activate(&self) {
        self.snapshot.activate();
        if let Some(edge) = &self.edge {
            edge.origin.care.activate();
        }
    }

    /// Compiles a configuration without putting it in force.
    ///
    /// Errors: everything that is wrong with it.
    pub fn compile(document: Document, register: &dyn Register, environment: &Arc<Environment>) -> Result<Live, Vec<Diagnostic>> {
        let (snapshot, tls) = match (Snapshot::compile(&document, register, environment), tls::compile(&document)) {
            (Ok(snapshot), Ok(tls)) => (snapshot, tls),
            (snapshot, tls) => return Err(snapshot.err().into_iter().chain(tls.err()).flatten().collect()),
        };
        let edge = document.edge.as_ref().map(|edge| compile_edge(edge, document.gateway.as_ref(), &snapshot, environment)).transpose().map_err(|e| vec![e])?;
        let server = &document.server;
        let size = |size: Size| usize::try_from(size.0).unwrap_or(usize::MAX);
        let settings = Settings {
            max_head: size(server.max_head),
            max_body: server.max_body.0,
            head_timeout: server.head_timeout.get(),
            body_timeout: server.body_timeout.get(),
            keepalive: server.keepalive.get(),
            waiting: (size(server.response_buffer), size(server.response_buffers)),
            fast_lane: server.fast_lane,
        };
        let trusted = server
            .trusted_proxies
            .iter()
            .map(|text| text.parse::<IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from)))
            .collect::<Result<_, _>>()
            .map_err(|_| vec![plain("server.trusted_proxies", "an entry is neither an address nor a network")])?;
        let warm_up_token = document.warm_up.as_ref().and_then(|w| w.token.clone()).filter(|t| !t.is_empty());
        Ok(Live { snapshot, edge, settings, trusted, warm_up_token, tls, document })
    }
}

fn plain(code: &'static str, message: impl Into<String>) -> Diagnostic {
    Diagnostic::error(code, &Span::default(), message)
}

fn compile_edge(edge: &Edge, gateway: Option<&Gateway>, snapshot: &Snapshot, environment: &Arc<Environment>) -> Result<EdgeRules, Diagnostic> {
    let service = |name: &str, target: &str, own: &Resilience| -> Result<ServiceRuntime, Diagnostic> {
        let mut made = match snapshot.upstreams.get(target) {
            Some(upstream) => {
                let mut made = ServiceRuntime::from_url(name, &format!("http://{target}"), &environment.endpoints)
                    .ok_or_else(|| plain("edge.origin", format!("`{target}` is not a host name")))?;
                made.upstream = upstream.clone();
                made
            }
            None => ServiceRuntime::from_url(name, target, &environment.endpoints)
                .ok_or_else(|| plain("edge.origin", format!("`{target}` is neither an http(s) URL nor an upstream")))?,
        };
        let shared = gateway.and_then(|g| g.upstreams.iter().find(|u| u.name == target)).map(|u| &u.resilience);
        let of = CareFor { name: &format!("edge:{name}"), upstream: &made.upstream.name, own, shared, attempts: 1, grpc: false };
        made.care = Care::new(&of, &environment.resilience);
        made.retries = made.care.retry.attempts;
        Ok(made.within(own.deadline.as_ref().or(shared.and_then(|s| s.deadline.as_ref()))))
    };
    let mut origin = service("origin", &edge.origin, &edge.resilience())?;
    origin.care.guard = edge.circuit_breaker.as_ref().map(|breaker| {
        let spare = breaker.fallback.as_ref().and_then(|fallback| fallback.service.as_ref()).and_then(|name| snapshot.services.get(name));
        Arc::new(Guard::new(breaker, spare.cloned(), &environment.resilience.circuits))
    });
    if origin.tls.is_some() {
        origin = origin_over_tls(origin, &edge.origin_tls)?;
    }
    let api = match &edge.api {
        ApiTarget::Url(url) => Some(Arc::new(service("api", url, &Resilience::default())?)),
        ApiTarget::Origin | ApiTarget::Gateway => None,
    };
    let guests = edge
        .guests
        .as_ref()
        .map(|g| GuestIssuer::new(g).map(|issuer| (g.clone(), issuer)))
        .transpose()
        .map_err(|e| plain("edge.guests.key", e.to_string()))?;
    let pages = Pages::new(edge).map_err(|e| plain("edge.pages", e))?;
    Ok(EdgeRules {
        hits: pages.rules().map(|rule| environment.metrics.hits("edge", "document", &rule.path)).collect(),
        origin: Arc::new(origin),
        api,
        classify: ClassifyRules { api_prefix: edge.api_prefix.clone(), allow_upgrade: edge.upgrades, ..ClassifyRules::default() },
        pages,
        guests,
        config: edge.clone(),
    })
}

/// The site with what `origin_tls` says.
fn origin_over_tls(mut site: ServiceRuntime, said: &OriginTls) -> Result<ServiceRuntime, Diagnostic> {
    let wish = TlsWish {
        authorities: said.ca.iter().cloned().collect(),
        own: said.cert.clone().zip(said.key.as_ref().map(|key| key.expose().to_string())),
        http2: said.http2,
        http1: true,
        ..TlsWish::default()
    };
    let name = said.server_name.as_ref().unwrap_or(&site.host);
    site.tls = Some(UpstreamTls::new(name, wish).map_err(|why| plain("edge.origin_tls", why))?);
    site.spoken = if said.http2 { Spoken::Agreed } else { Spoken::Http1 };
    Ok(site)
}
