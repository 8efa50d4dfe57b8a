//! The live configuration: everything that a request needs to know, in one snapshot.

use crate::{
    classify::ClassifyRules,
    guest::GuestIssuer,
    pages::Pages,
};
use arc_swap::ArcSwap;
use ipnet::IpNet;
use pingora::connectors::TransportConnector;
use std::{net::IpAddr, sync::Arc, time::Duration};
use weir_config::{ApiTarget, Diagnostic, Document, Edge, Guests, Secret, Span};
use weir_gateway::{metrics::HitCounters, Environment, Register, ServiceRuntime, Snapshot};

/// The running program: what outlives configurations, and the configuration in force.
pub struct Weir {
    /// Store, cache, client, metrics, health.
    pub environment: Arc<Environment>,
    /// In force.
    pub live: ArcSwap<Live>,
    /// Opens connections to upstreams.
    pub connector: TransportConnector,
    register: Arc<dyn Register>,
    /// Which pages visitors ask for most.
    pub popular: crate::popular::Popular,
    /// Where finished requests are written.
    pub access: crate::access::AccessLog,
}

impl Weir {
    /// Compiles the first configuration.
    ///
    /// Errors: everything that is wrong with the document.
    pub fn new(document: Document, register: Arc<dyn Register>, environment: Arc<Environment>) -> Result<Arc<Weir>, Vec<Diagnostic>> {
        let access = crate::access::AccessLog::new(document.server.access_log, environment.metrics.log_dropped.clone());
        let live = Live::compile(document, &*register, &environment)?;
        Ok(Arc::new(Weir { environment, live: ArcSwap::from_pointee(live), connector: crate::dial::connector(), register, access, popular: Default::default() }))
    }

    /// Puts another configuration in force; requests under way finish on the old one. Listeners stay as they are.
    ///
    /// Errors: everything that is wrong; then the old one stays.
    pub fn reload(&self, document: Document) -> Result<(), Vec<Diagnostic>> {
        match Live::compile(document, &*self.register, &self.environment) {
            Ok(live) => {
                self.live.store(Arc::new(live));
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

    fn compile(document: Document, register: &dyn Register, environment: &Arc<Environment>) -> Result<Live, Vec<Diagnostic>> {
        let snapshot = Snapshot::compile(&document, register, environment)?;
        let edge = document.edge.as_ref().map(|edge| compile_edge(edge, &snapshot, environment)).transpose().map_err(|e| vec![e])?;
        let server = &document.server;
        let settings = Settings {
            max_head: usize::try_from(server.max_head.0).unwrap_or(usize::MAX),
            max_body: server.max_body.0,
            head_timeout: server.head_timeout.get(),
            body_timeout: server.body_timeout.get(),
            keepalive: server.keepalive.get(),
            fast_lane: server.fast_lane,
        };
        let trusted = server
            .trusted_proxies
            .iter()
            .map(|text| text.parse::<IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from)))
            .collect::<Result<_, _>>()
            .map_err(|_| vec![plain("server.trusted_proxies", "an entry is neither an address nor a network")])?;
        let warm_up_token = document.warm_up.as_ref().and_then(|w| w.token.clone()).filter(|t| !t.is_empty());
        Ok(Live { snapshot, edge, settings, trusted, warm_up_token, document })
    }
}

fn plain(code: &'static str, message: impl Into<String>) -> Diagnostic {
    Diagnostic::error(code, &Span::default(), message)
}

fn compile_edge(edge: &Edge, snapshot: &Snapshot, environment: &Arc<Environment>) -> Result<EdgeRules, Diagnostic> {
    let service = |name: &str, target: &str| -> Result<Arc<ServiceRuntime>, Diagnostic> {
        if let Some(upstream) = snapshot.upstreams.get(target) {
            let mut made = ServiceRuntime::from_url(name, &format!("http://{target}"), &environment.endpoints)
                .ok_or_else(|| plain("edge.origin", format!("`{target}` is not a host name")))?;
            made.upstream = upstream.clone();
            return Ok(Arc::new(made));
        }
        let made = ServiceRuntime::from_url(name, target, &environment.endpoints);
        made.map(Arc::new).ok_or_else(|| plain("edge.origin", format!("`{target}` is neither an http(s) URL nor an upstream")))
    };
    let api = match &edge.api {
        ApiTarget::Url(url) => Some(service("api", url)?),
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
        origin: service("origin", &edge.origin)?,
        api,
        classify: ClassifyRules { api_prefix: edge.api_prefix.clone(), allow_upgrade: edge.upgrades, ..ClassifyRules::default() },
        pages,
        guests,
        config: edge.clone(),
    })
}
