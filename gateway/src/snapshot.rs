//! The live configuration: router, chains and upstreams, compiled from a document in one place. A document that does not compile
//! changes nothing; what must outlive a configuration is in the [`Environment`].

use crate::{
    Chain, Chains, Consumer, Register,
    client::OwnClient,
    metrics::Metrics,
    resilience::{Care, CareFor, ResilienceState},
    router::Router,
    scopes,
    tls::{TlsWish, UpstreamTls, server_name},
    upstream::{Endpoints, Target, Upstream},
};
use http::HeaderValue;
use std::{collections::HashMap, sync::Arc, time::Duration};
use weir_config::{Deadlines, Diagnostic, Document, Gateway, PathHandling, kong::UpstreamSettings, net::HostPort};
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
    /// Circuits, limits and retries.
    pub resilience: ResilienceState,
}

/// What is spoken to an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Spoken {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, whether it is known or agreed by ALPN.
    Http2,
    /// What the handshake agrees on.
    Agreed,
}

/// Where a service's requests go and how.
pub struct ServiceRuntime {
    /// Name.
    pub name: String,
    /// The entity's id, if the configuration gives it one.
    pub id: Option<String>,
    /// TLS to the upstream; `None`: cleartext.
    pub tls: Option<UpstreamTls>,
    /// What is spoken to it.
    pub spoken: Spoken,
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
    /// Retries, deadlines, limits.
    pub care: Care,
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
        let upstream = alone(&host, port, endpoints);
        let path = uri.path().trim_end_matches('/').to_string();
        Some(ServiceRuntime {
            name: name.to_string(),
            id: None,
            tls: if tls { Some(UpstreamTls::new(&host, TlsWish::default()).ok()?) } else { None },
            spoken: Spoken::Http1,
            care: Care::usual(&upstream.name, 1),
            upstream,
            host_header: host_header(&host, port, tls)?,
            host,
            path,
            retries: 1,
            connect_timeout: Duration::from_secs(5),
            write_timeout: Duration::from_secs(60),
            read_timeout: Duration::from_secs(60),
        })
    }

    /// The same, with these deadlines in place of its own.
    pub fn within(mut self, deadlines: Option<&Deadlines>) -> ServiceRuntime {
        let Some(deadlines) = deadlines else { return self };
        if let Some(connect) = deadlines.connect {
            self.connect_timeout = connect.get();
        }
        if let Some(idle) = deadlines.idle {
            (self.read_timeout, self.write_timeout) = (idle.get(), idle.get());
        }
        self
    }
}

/// The upstream of a service that has none of its own.
fn alone(host: &str, port: u16, endpoints: &Endpoints) -> Arc<Upstream> {
    Arc::new(Upstream::new(&format!("{host}:{port}"), vec![Target::only(host, port)], endpoints))
}

/// The value of `Host`: an IPv6 address in brackets, and with the port if it is not the scheme's.
pub(crate) fn host_header(host: &str, port: u16, tls: bool) -> Option<HeaderValue> {
    let default = if tls { 443 } else { 80 };
    let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_string() };
    HeaderValue::from_str(&if port == default { host } else { format!("{host}:{port}") }).ok()
}

/// A route, compiled.
pub struct RouteRuntime {
    /// Name.
    pub name: String,
    /// The entity's id, if the configuration gives it one.
    pub id: Option<String>,
    /// Its service; without one a plugin must answer.
    pub service: Option<Arc<ServiceRuntime>>,
    /// Tags.
    pub tags: Vec<String>,
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
    /// Accepts gRPC and nothing else.
    pub grpc: bool,
    /// Status for cleartext on a TLS-only route.
    pub https_redirect_status_code: u16,
    /// Read a short request body whole before the service is asked.
    pub request_buffering: bool,
    /// Take the service's answer faster than a slow client takes it, within the server's bounds.
    pub response_buffering: bool,
    /// Whose names the request's id and the times have.
    pub headers: weir_config::HeaderNames,
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
    pub services: HashMap<String, Arc<ServiceRuntime>>,
    /// By name.
    pub upstreams: HashMap<String, Arc<Upstream>>,
    /// Consumers.
    pub consumers: Arc<Vec<Arc<Consumer>>>,
    /// The chain of global plugins, for requests that match no route.
    pub no_route: Arc<Chain>,
    /// How answers tell times.
    pub headers: weir_config::HeaderNames,
    /// Some route's plugins may hold answers.
    pub may_hold: bool,
}

impl Snapshot {
    /// The upstreams that are named, and those of services without one.
    pub fn all_upstreams(&self) -> impl Iterator<Item = Arc<Upstream>> {
        let of_services = self.routes.iter().filter_map(|r| r.service.as_ref()).map(|s| s.upstream.clone());
        self.upstreams.values().cloned().chain(of_services)
    }

    /// The configuration is in force: from now on its limits count, for requests of the old one too.
    pub fn activate(&self) {
        self.services.values().for_each(|service| service.care.activate());
    }

    /// The only way to make live state from a document.
    ///
    /// Errors: everything that is wrong, with its place.
    pub fn compile(document: &Document, register: &dyn Register, environment: &Arc<Environment>) -> Result<Snapshot, Vec<Diagnostic>> {
        let empty = Gateway {
            listen: Default::default(),
            format: (3, 0),
            services: vec![],
            routes: vec![],
            plugins: vec![],
            consumers: vec![],
            upstreams: vec![],
            certificates: vec![],
            ca_certificates: vec![],
            groups: vec![],
            headers: weir_config::HeaderNames::Off,
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
            .map(|service| compile_service(service, gateway, &upstreams, environment).map(Arc::new).inspect_err(|e| errors.push(e.clone())).ok())
            .collect();
        let consumers = Arc::new(
            gateway.consumers.iter().enumerate().map(|(index, entity)| Arc::new(Consumer { index, entity: entity.clone() })).collect::<Vec<_>>(),
        );
        let by_name = services.iter().flatten().map(|service| (service.name.clone(), service.clone())).collect();
        let plugins = scopes::plugins(gateway, register, environment, &by_name, &consumers, &mut errors);
        let places = scopes::Places::new(gateway, &plugins);
        let mut routes = Vec::with_capacity(gateway.routes.len());
        for (index, route) in gateway.routes.iter().enumerate() {
            let has = |names: &[&str]| route.protocols.iter().any(|p| names.contains(&p.as_str()));
            routes.push(Arc::new(RouteRuntime {
                name: route.name.clone(),
                id: route.id.clone(),
                tags: route.tags.clone(),
                service: route.service.and_then(|s| services[s].clone()),
                chains: scopes::chains(gateway, &places, Some(index), route.service),
                strip_path: route.strip_path,
                preserve_host: route.preserve_host,
                path_handling: route.path_handling,
                http: has(&["http", "grpc", "ws"]),
                https: has(&["https", "grpcs", "wss"]),
                grpc: route.protocols.iter().all(|p| matches!(p.as_str(), "grpc" | "grpcs")),
                https_redirect_status_code: route.https_redirect_status_code,
                request_buffering: route.request_buffering,
                response_buffering: route.response_buffering,
                headers: gateway.headers,
                paths: route.paths.iter().map(|p| if p.regex { format!("~{}", p.text) } else { p.text.clone() }).collect(),
                methods: route.methods.clone(),
            }));
        }
        let no_route = scopes::chains(gateway, &places, None, None).base;
        let may_hold = routes.iter().any(|route| route.chains.base.may_hold());
        match router {
            Some(router) if errors.is_empty() => Ok(Snapshot { router, routes, services: by_name, upstreams, consumers, no_route, headers: gateway.headers, may_hold }),
            _ => Err(errors),
        }
    }
}

fn compile_upstreams(gateway: &Gateway, environment: &Arc<Environment>) -> HashMap<String, Arc<Upstream>> {
    let make = |u: &weir_config::Upstream| {
        let targets = u.targets.iter().map(|t| Target { host: t.host.clone(), port: t.port, weight: t.weight }).collect();
        // Settings that do not decode were refused when the configuration was read.
        let made = match weir_config::decode::<UpstreamSettings>(&u.settings) {
            Ok(settings) => Upstream::with_settings(&settings, targets, probe_tls(u, &settings, gateway), &environment.endpoints),
            Err(_) => Upstream::new(&u.name, targets, &environment.endpoints),
        };
        (u.name.clone(), Arc::new(made))
    };
    gateway.upstreams.iter().map(make).collect()
}

/// How probes by TLS are made: as the services of the upstream make their connections.
fn probe_tls(upstream: &weir_config::Upstream, settings: &UpstreamSettings, gateway: &Gateway) -> TlsWish {
    let own = upstream.client_certificate.and_then(|at| gateway.certificates.get(at));
    let trusted = gateway.services.iter().filter(|service| service.host == upstream.name).flat_map(|service| &service.ca_certificates);
    let mut authorities: Vec<String> = trusted.filter_map(|at| gateway.ca_certificates.get(*at)).map(|ca| ca.cert.clone()).collect();
    authorities.sort();
    authorities.dedup();
    TlsWish {
        unverified: !settings.healthchecks.active.https_verify_certificate,
        authorities,
        own: own.map(|certificate| (certificate.cert.clone(), certificate.key.expose().to_string())),
        http1: true,
        ..TlsWish::default()
    }
}

fn compile_service(
    service: &weir_config::Service,
    gateway: &Gateway,
    upstreams: &HashMap<String, Arc<Upstream>>,
    environment: &Arc<Environment>,
) -> Result<ServiceRuntime, Diagnostic> {
    let tls = matches!(service.protocol.as_str(), "https" | "grpcs" | "wss" | "tls");
    let upstream = upstreams.get(&service.host).cloned().unwrap_or_else(|| alone(&service.host, service.port, &environment.endpoints));
    let entity = gateway.upstreams.iter().find(|u| u.name == service.host);
    // What an upstream wants to be called.
    let (host, port) = match entity.and_then(|u| u.host_header.as_deref()).map(HostPort::parse) {
        Some(Ok(named)) => (named.host, named.port.unwrap_or(if tls { 443 } else { 80 })),
        // With one target it is known beforehand by whose name requests go.
        _ => match entity.map(|u| u.targets.as_slice()) {
            Some([only]) if only.host.parse::<std::net::IpAddr>().is_err() => (only.host.clone(), only.port),
            _ => (service.host.clone(), service.port),
        },
    };
    let spoken = match service.protocol.as_str() {
        "grpc" | "grpcs" => Spoken::Http2,
        _ if !service.http2 => Spoken::Http1,
        _ if tls => Spoken::Agreed,
        _ => Spoken::Http2,
    };
    let host_header = host_header(&host, port, tls).ok_or_else(|| Diagnostic::error("host", &service.span, format!("`{host}` is not a host name")))?;
    let shared = entity.map(|u| &u.resilience);
    let care = Care::new(
        &CareFor {
            name: &format!("service:{}", service.name),
            upstream: &upstream.name,
            own: &service.resilience,
            shared,
            attempts: service.retries,
            grpc: matches!(service.protocol.as_str(), "grpc" | "grpcs"),
        },
        &environment.resilience,
    );
    let deadlines = service.resilience.deadline.as_ref().or(shared.and_then(|s| s.deadline.as_ref()));
    let made = ServiceRuntime {
        name: service.name.clone(),
        id: service.id.clone(),
        tls: if tls { Some(service_tls(service, &host, entity, gateway, spoken)?) } else { None },
        spoken,
        upstream,
        host,
        host_header,
        path: service.path.clone(),
        retries: care.retry.attempts,
        connect_timeout: service.connect_timeout,
        write_timeout: service.write_timeout,
        read_timeout: service.read_timeout,
        care,
    };
    Ok(made.within(deadlines))
}

fn service_tls(
    service: &weir_config::Service,
    host: &str,
    entity: Option<&weir_config::Upstream>,
    gateway: &Gateway,
    spoken: Spoken,
) -> Result<UpstreamTls, Diagnostic> {
    let shared = entity.and_then(|upstream| upstream.client_certificate);
    let own = service.client_certificate.or(shared).and_then(|at| gateway.certificates.get(at));
    let wish = TlsWish {
        unverified: service.tls_verify == Some(false),
        depth: service.tls_verify_depth,
        authorities: service.ca_certificates.iter().filter_map(|at| gateway.ca_certificates.get(*at)).map(|ca| ca.cert.clone()).collect(),
        own: own.map(|certificate| (certificate.cert.clone(), certificate.key.expose().to_string())),
        http2: spoken != Spoken::Http1,
        http1: spoken != Spoken::Http2,
    };
    // An upstream may be called what no server can be: then each of its targets is called by its own name or address.
    let nameless = entity.is_some_and(|upstream| upstream.host_header.is_none()) && server_name(host).is_none();
    let made = if nameless { UpstreamTls::nameless(wish) } else { UpstreamTls::new(host, wish) };
    made.map_err(|why| Diagnostic::error("tls", &service.span, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_their_port_and_brackets_where_they_need_them() {
        let shown = |host: &str, port: u16, tls: bool| host_header(host, port, tls).and_then(|value| value.to_str().map(str::to_owned).ok());
        assert_eq!(shown("a.example", 80, false).as_deref(), Some("a.example"));
        assert_eq!(shown("a.example", 80, true).as_deref(), Some("a.example:80"));
        assert_eq!(shown("::1", 8080, false).as_deref(), Some("[::1]:8080"));
        assert_eq!(shown("[::1]", 443, true).as_deref(), Some("[::1]"));
    }
}
