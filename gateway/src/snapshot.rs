//! The live configuration: router, chains and upstreams, compiled from a document in one place. A document that does not compile
//! changes nothing; what must outlive a configuration is in the [`Environment`].

use crate::{
    Chain, Chains, Consumer, Register,
    chain::Link,
    client::OwnClient,
    metrics::Metrics,
    plugin::BuildEnv,
    router::Router,
    upstream::{Endpoints, Upstream},
};
use http::HeaderValue;
use std::{collections::{BTreeSet, HashMap}, sync::Arc, time::Duration};
use weir_config::{Diagnostic, Document, Gateway, PathHandling, PluginEntry};
use weir_store::Store;

/// What every configuration shares and a reload leaves alone.
pub struct Environment {
    /// Shared state.
    pub store: Store,
    /// The one cache engine.
    pub cache: Arc<weir_cache::Engine>,
    /// For Weir's own calls.
    pub client: OwnClient,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Health of endpoints.
    pub endpoints: Endpoints,
}

/// Where a service's requests go and how.
pub struct ServiceRuntime {
    /// Name.
    pub name: String,
    /// TLS to the upstream.
    pub tls: bool,
    /// Verify its certificate.
    pub tls_verify: bool,
    /// Endpoints.
    pub upstream: Arc<Upstream>,
    /// `Host` for the upstream, and server name of TLS.
    pub host: String,
    /// The same as a field value, with the port if it is not the scheme's.
    pub host_header: HeaderValue,
    /// Put before the request's path.
    pub path: String,
    /// Extra tries after the first.
    pub retries: u32,
    /// Time for the connection.
    pub connect_timeout: Duration,
    /// Time between two writes.
    pub write_timeout: Duration,
    /// Time between two reads.
    pub read_timeout: Duration,
}

impl ServiceRuntime {
    /// A service for a bare URL such as the edge's origin; `None` if it is not `http(s)://host[:port][/path]`.
    pub fn from_url(name: &str, url: &str, endpoints: &Endpoints) -> Option<ServiceRuntime> {
        let uri: http::Uri = url.parse().ok()?;
        let tls = match uri.scheme_str()? {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let host = uri.host()?.to_string();
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let endpoint = endpoints.get(&host, port);
        let path = uri.path().trim_end_matches('/').to_string();
        Some(ServiceRuntime {
            name: name.to_string(),
            tls,
            tls_verify: true,
            upstream: Arc::new(Upstream::new(endpoint.name.clone(), vec![(endpoint, 1)])),
            host_header: host_header(&host, port, tls)?,
            host,
            path,
            retries: 1,
            connect_timeout: Duration::from_secs(5),
            write_timeout: Duration::from_secs(60),
            read_timeout: Duration::from_secs(60),
        })
    }
}

fn host_header(host: &str, port: u16, tls: bool) -> Option<HeaderValue> {
    let default = if tls { 443 } else { 80 };
    HeaderValue::from_str(&if port == default { host.to_string() } else { format!("{host}:{port}") }).ok()
}

/// A route, compiled.
pub struct RouteRuntime {
    /// Name.
    pub name: String,
    /// Its service; without one a plugin must answer.
    pub service: Option<Arc<ServiceRuntime>>,
    /// Its chains.
    pub chains: Chains,
    /// Cut the matched prefix.
    pub strip_path: bool,
    /// Forward the client's `Host`.
    pub preserve_host: bool,
    /// How paths are joined.
    pub path_handling: PathHandling,
    /// Accepts cleartext.
    pub http: bool,
    /// Accepts TLS.
    pub https: bool,
    /// Status for cleartext on a TLS-only route.
    pub https_redirect_status_code: u16,
    /// Paths, for the banner.
    pub paths: Vec<String>,
    /// Methods, for the banner.
    pub methods: Vec<String>,
}

/// One configuration, live.
pub struct Snapshot {
    /// Finds the route.
    pub router: Router,
    /// By the router's index.
    pub routes: Vec<Arc<RouteRuntime>>,
    /// By name.
    pub upstreams: HashMap<String, Arc<Upstream>>,
    /// Consumers.
    pub consumers: Arc<Vec<Arc<Consumer>>>,
    /// The chain of global plugins, for requests that match no route.
    pub no_route: Arc<Chain>,
}

impl Snapshot {
    /// The only way to make live state from a document.
    ///
    /// Errors: everything that is wrong, with its place.
    pub fn compile(document: &Document, register: &dyn Register, environment: &Arc<Environment>) -> Result<Snapshot, Vec<Diagnostic>> {
        let empty = Gateway {
            listen: String::new(),
            format: (3, 0),
            services: vec![],
            routes: vec![],
            plugins: vec![],
            consumers: vec![],
            upstreams: vec![],
            certificates: vec![],
        };
        let gateway = document.gateway.as_ref().unwrap_or(&empty);
        let mut errors = Vec::new();
        let router = Router::build(&gateway.routes, &gateway.services);
        let router = match router {
            Ok(router) => Some(router),
            Err(list) => {
                errors.extend(list.into_iter().map(|e| Diagnostic::error("route", &e.span, e.message)));
                None
            }
        };
        let upstreams = compile_upstreams(gateway, environment);
        let services: Vec<_> = gateway
            .services
            .iter()
            .map(|service| compile_service(service, &upstreams, environment).map(Arc::new).inspect_err(|e| errors.push(e.clone())).ok())
            .collect();
        let consumers = Arc::new(
            gateway.consumers.iter().enumerate().map(|(index, entity)| Arc::new(Consumer { index, entity: entity.clone() })).collect::<Vec<_>>(),
        );
        let plugins = compile_plugins(gateway, register, environment, &consumers, &mut errors);
        let mut routes = Vec::with_capacity(gateway.routes.len());
        for (index, route) in gateway.routes.iter().enumerate() {
            let has = |names: &[&str]| route.protocols.iter().any(|p| names.contains(&p.as_str()));
            routes.push(Arc::new(RouteRuntime {
                name: route.name.clone(),
                service: route.service.and_then(|s| services[s].clone()),
                chains: chains_of(gateway, &plugins, Some(index), route.service),
                strip_path: route.strip_path,
                preserve_host: route.preserve_host,
                path_handling: route.path_handling,
                http: has(&["http", "grpc", "ws"]),
                https: has(&["https", "grpcs", "wss"]),
                https_redirect_status_code: route.https_redirect_status_code,
                paths: route.paths.iter().map(|p| if p.regex { format!("~{}", p.text) } else { p.text.clone() }).collect(),
                methods: route.methods.clone(),
            }));
        }
        let no_route = chains_of(gateway, &plugins, None, None).base;
        match router {
            Some(router) if errors.is_empty() => Ok(Snapshot { router, routes, upstreams, consumers, no_route }),
            _ => Err(errors),
        }
    }
}

fn compile_upstreams(gateway: &Gateway, environment: &Arc<Environment>) -> HashMap<String, Arc<Upstream>> {
    let make = |u: &weir_config::Upstream| {
        let targets = u.targets.iter().map(|t| (environment.endpoints.get(&t.host, t.port), t.weight)).collect();
        (u.name.clone(), Arc::new(Upstream::new(u.name.clone(), targets)))
    };
    gateway.upstreams.iter().map(make).collect()
}

fn compile_service(
    service: &weir_config::Service,
    upstreams: &HashMap<String, Arc<Upstream>>,
    environment: &Arc<Environment>,
) -> Result<ServiceRuntime, Diagnostic> {
    let tls = matches!(service.protocol.as_str(), "https" | "grpcs" | "wss" | "tls");
    let upstream = upstreams.get(&service.host).cloned().unwrap_or_else(|| {
        let endpoint = environment.endpoints.get(&service.host, service.port);
        Arc::new(Upstream::new(endpoint.name.clone(), vec![(endpoint, 1)]))
    });
    let host_header = host_header(&service.host, service.port, tls)
        .ok_or_else(|| Diagnostic::error("host", &service.span, format!("`{}` is not a host name", service.host)))?;
    Ok(ServiceRuntime {
        name: service.name.clone(),
        tls,
        tls_verify: service.tls_verify.unwrap_or(true),
        upstream,
        host: service.host.clone(),
        host_header,
        path: service.path.clone(),
        retries: service.retries,
        connect_timeout: service.connect_timeout,
        write_timeout: service.write_timeout,
        read_timeout: service.read_timeout,
    })
}

/// A plugin made for its scope.
struct Scoped<'a> {
    entry: &'a PluginEntry,
    link: Link,
}

fn compile_plugins<'a>(
    gateway: &'a Gateway,
    register: &dyn Register,
    environment: &Arc<Environment>,
    consumers: &Arc<Vec<Arc<Consumer>>>,
    errors: &mut Vec<Diagnostic>,
) -> Vec<Scoped<'a>> {
    let mut made = Vec::new();
    for entry in gateway.plugins.iter().filter(|p| p.enabled) {
        let Some(name) = register.canonical(&entry.name) else {
            errors.push(Diagnostic::error("plugin", &entry.name_span, format!("unknown plugin `{}`", entry.name)));
            continue;
        };
        let env = BuildEnv { environment, scope: scope_name(gateway, entry), consumers };
        match register.build(entry, &env) {
            Ok(plugin) => made.push(Scoped { entry, link: Link { name, priority: register.priority(name), plugin } }),
            Err(list) => errors.extend(list),
        }
    }
    made
}

fn scope_name(gateway: &Gateway, entry: &PluginEntry) -> String {
    let mut parts = Vec::new();
    if let Some(route) = entry.route.and_then(|r| gateway.routes.get(r)) {
        parts.push(format!("route:{}", route.name));
    }
    if let Some(service) = entry.service.and_then(|s| gateway.services.get(s)) {
        parts.push(format!("service:{}", service.name));
    }
    if let Some(consumer) = entry.consumer.and_then(|c| gateway.consumers.get(c)) {
        parts.push(format!("consumer:{}", consumer.id));
    }
    if parts.is_empty() { "global".into() } else { parts.join("/") }
}

/// Kong's precedence of scopes: more specific is higher; `None` where the plugin does not apply.
fn specificity(entry: &PluginEntry, route: Option<usize>, service: Option<usize>, consumer: Option<usize>) -> Option<u8> {
    let fits = |want: Option<usize>, have: Option<usize>| want.is_none() || want == have;
    if !(fits(entry.route, route) && fits(entry.service, service) && fits(entry.consumer, consumer)) {
        return None;
    }
    Some(match (entry.route.is_some(), entry.service.is_some(), entry.consumer.is_some()) {
        (true, true, true) => 8,
        (true, false, true) => 7,
        (false, true, true) => 6,
        (true, true, false) => 5,
        (false, false, true) => 4,
        (true, false, false) => 3,
        (false, true, false) => 2,
        (false, false, false) => 1,
    })
}

fn chains_of(gateway: &Gateway, plugins: &[Scoped<'_>], route: Option<usize>, service: Option<usize>) -> Chains {
    let chain_for = |consumer: Option<usize>| {
        let mut best: HashMap<&str, (u8, &Scoped<'_>)> = HashMap::new();
        for scoped in plugins {
            if let Some(rank) = specificity(scoped.entry, route, service, consumer) {
                let slot = best.entry(scoped.link.name).or_insert((rank, scoped));
                if rank > slot.0 {
                    *slot = (rank, scoped);
                }
            }
        }
        Arc::new(Chain::new(best.into_values().map(|(_, s)| s.link.clone()).collect()))
    };
    let with_own: BTreeSet<usize> = plugins.iter().filter_map(|p| p.entry.consumer).filter(|c| *c < gateway.consumers.len()).collect();
    Chains { base: chain_for(None), by_consumer: with_own.into_iter().map(|c| (c, chain_for(Some(c)))).collect() }
}
