//! From the document's routes to the router's tables.

use super::{
    RouteError, Router, Shadow,
    conditions::{Conditions, HeaderCondition},
    host::{HostPattern, HostTable, Name},
    paths::{Candidate, PathsBuilder, Shared},
    pattern::{Kind, Pattern},
};
use ahash::HashMap;
use http::{HeaderName, Method};
use std::cmp::Reverse;
use std::sync::Arc;
use weir_config::{Route, Service, Span};

/// What decides between two ways to match, most important first; the smaller wins.
type Order = (Reverse<u8>, Reverse<bool>, Reverse<u8>, Reverse<bool>, Reverse<i64>, Reverse<usize>, Reverse<bool>, Reverse<bool>, usize, usize);

/// A route's path, or that it has none.
struct Way<'r> {
    order: Order,
    hosts: Arc<[HostPattern]>,
    /// Whether this way is for the hosts with a port, or for those without.
    port: bool,
    path: Option<(&'r str, Option<u32>)>,
    conditions: u32,
}

#[derive(Default)]
struct Builder<'r> {
    shared: Shared,
    patterns: HashMap<(&'r str, Kind), Result<u32, String>>,
    conditions: HashMap<ConditionsKey, u32>,
    ways: Vec<Way<'r>>,
    errors: Vec<RouteError>,
}

/// What two routes must have in common to share their conditions.
type ConditionsKey = (Vec<String>, Vec<(String, Vec<String>)>, Vec<Name>, bool);

/// Host, path (and whether it is a regex) and conditions of a way.
type Demand<'r> = (Option<&'r HostPattern>, Option<(&'r str, bool)>, u32);

pub(super) fn build(routes: &[Route], services: &[Service]) -> Result<Router, Vec<RouteError>> {
    let mut builder = Builder::default();
    for (index, route) in routes.iter().enumerate() {
        let disabled = route.service.and_then(|service| services.get(service)).is_some_and(|service| !service.enabled);
        let stream = |protocol: &String| matches!(protocol.as_str(), "tcp" | "udp" | "tls" | "tls_passthrough");
        if !disabled && !route.protocols.first().is_some_and(stream) {
            builder.add(index, route);
        }
    }
    if builder.errors.is_empty() { Ok(builder.finish()) } else { Err(builder.errors) }
}

/// Whether a route's protocols are those of WebSocket and no others.
fn for_websocket_alone(route: &Route) -> bool {
    !route.protocols.is_empty() && route.protocols.iter().all(|protocol| matches!(protocol.as_str(), "ws" | "wss"))
}

impl<'r> Builder<'r> {
    fn error(&mut self, route: usize, span: &Span, message: String) {
        self.errors.push(RouteError { route, span: span.clone(), message });
    }

    fn add(&mut self, index: usize, route: &'r Route) {
        let hosts = self.hosts(index, route);
        let conditions = self.conditions(index, route);
        let kinds = [!route.methods.is_empty(), !hosts.is_empty(), !route.headers.is_empty(), !route.snis.is_empty(), !route.paths.is_empty()];
        let kinds = kinds.into_iter().filter(|has| *has).count() as u8;
        let plain = !hosts.is_empty() && hosts.iter().all(|host| host.name.is_plain());
        let headers = route.headers.len().min(255) as u8;
        let websocket = for_websocket_alone(route);
        let add = |builder: &mut Builder<'r>, nth: usize, path: Option<(&'r str, Option<u32>)>| {
            let regex = path.is_some_and(|(_, pattern)| pattern.is_some());
            let priority = if regex { route.regex_priority } else { 0 };
            let len = path.map_or(0, |(text, _)| if regex { 0 } else { text.len() });
            for port in [true, false] {
                if hosts.iter().any(|host| host.port.is_some() == port) || (hosts.is_empty() && !port) {
                    builder.ways.push(Way {
                        order: (
                            Reverse(kinds),
                            Reverse(plain),
                            Reverse(headers),
                            Reverse(regex),
                            Reverse(priority),
                            Reverse(len),
                            Reverse(port),
                            Reverse(websocket),
                            index,
                            nth,
                        ),
                        hosts: hosts.clone(),
                        port,
                        path,
                        conditions,
                    });
                }
            }
        };
        if route.paths.is_empty() {
            add(self, 0, None);
        }
        for (nth, path) in route.paths.iter().enumerate() {
            if !path.regex {
                add(self, nth, Some((&path.text, None)));
                continue;
            }
            match self.pattern(&path.text, Kind::Path) {
                Ok(pattern) => add(self, nth, Some((&path.text, Some(pattern)))),
                Err(error) => self.error(index, &path.span, format!("the path `~{}` is not a valid regular expression: {error}", path.text)),
            }
        }
    }

    fn hosts(&mut self, index: usize, route: &Route) -> Arc<[HostPattern]> {
        let mut hosts = Vec::with_capacity(route.hosts.len());
        for text in &route.hosts {
            match HostPattern::parse(text) {
                Ok(host) => hosts.push(host),
                Err(error) => self.error(index, &route.span, format!("the host `{text}` is not valid: {error}")),
            }
        }
        hosts.sort();
        hosts.dedup();
        hosts.into()
    }

    /// A pattern's index. The same text is checked once.
    fn pattern(&mut self, text: &'r str, kind: Kind) -> Result<u32, String> {
        let shared = &mut self.shared;
        self.patterns
            .entry((text, kind))
            .or_insert_with(|| {
                let pattern = Pattern::new(text, kind)?;
                shared.patterns.push(Arc::new(pattern));
                Ok((shared.patterns.len() - 1) as u32)
            })
            .clone()
    }

    fn conditions(&mut self, index: usize, route: &'r Route) -> u32 {
        let mut snis = Vec::new();
        for text in &route.snis {
            match Name::parse(text.strip_suffix('.').unwrap_or(text)) {
                Ok(name) => snis.push(name),
                Err(error) => self.error(index, &route.span, format!("the server name `{text}` is not valid: {error}")),
            }
        }
        snis.sort();
        let mut methods: Vec<_> = route.methods.iter().map(|method| method.to_ascii_uppercase()).collect();
        methods.sort();
        methods.dedup();
        let mut headers: Vec<_> = route.headers.iter().map(|(name, values)| (name.to_ascii_lowercase(), values.clone())).collect();
        headers.sort();
        let websocket = for_websocket_alone(route);
        self.shared.websocket |= websocket;
        let key = (methods, headers, snis, websocket);
        if let Some(known) = self.conditions.get(&key) {
            return *known;
        }
        let mut methods = Vec::new();
        for text in &key.0 {
            match Method::from_bytes(text.as_bytes()) {
                Ok(method) => methods.push(method),
                Err(_) => self.error(index, &route.span, format!("`{text}` is not an HTTP method")),
            }
        }
        let headers = route.headers.iter().filter_map(|(name, values)| self.header(index, route, name, values)).collect();
        self.shared.conditions.push(Conditions { methods, headers, snis: key.2.clone(), websocket });
        let id = (self.shared.conditions.len() - 1) as u32;
        self.conditions.insert(key, id);
        id
    }

    fn header(&mut self, index: usize, route: &'r Route, name: &'r str, values: &'r [String]) -> Option<HeaderCondition> {
        let Ok(parsed) = HeaderName::from_bytes(name.as_bytes()) else {
            self.error(index, &route.span, format!("`{name}` is not a header name"));
            return None;
        };
        if values.is_empty() {
            self.error(index, &route.span, format!("the header `{name}` has no value that it could match"));
        }
        let mut condition = HeaderCondition { name: parsed, values: Vec::new(), patterns: Vec::new() };
        for value in values {
            let Some(text) = value.strip_prefix("~*") else {
                condition.values.push(value.to_ascii_lowercase().into_bytes().into());
                continue;
            };
            match self.pattern(text, Kind::Header) {
                Ok(pattern) => condition.patterns.push(self.shared.patterns[pattern as usize].clone()),
                Err(error) => {
                    let message = format!("the value `{value}` of the header `{name}` is not a valid regular expression: {error}");
                    self.error(index, &route.span, message);
                }
            }
        }
        Some(condition)
    }

    fn finish(mut self) -> Router {
        self.ways.sort_unstable_by_key(|way| way.order);
        let shadowed = self.shadows();
        let mut by_host: HashMap<&HostPattern, PathsBuilder<'r>> = HashMap::default();
        let mut any_host = PathsBuilder::default();
        for (rank, way) in self.ways.iter().enumerate() {
            let candidate = |pattern| Candidate::new(rank as u32, way.order.8 as u32, way.conditions, pattern);
            let put = |paths: &mut PathsBuilder<'r>| match way.path {
                None => paths.add_prefix("", candidate(None)),
                Some((text, None)) => paths.add_prefix(text, candidate(None)),
                Some((_, pattern)) => paths.add_regex(candidate(pattern)),
            };
            if way.hosts.is_empty() {
                put(&mut any_host);
            }
            for host in way.hosts.iter().filter(|host| host.port.is_some() == way.port) {
                put(by_host.entry(host).or_default());
            }
        }
        let hosts = HostTable::new(by_host.into_iter().map(|(host, paths)| (host.clone(), paths.build(&self.shared))));
        let reads_fields = self.shared.conditions.iter().any(|one| !one.headers.is_empty());
        Router { hosts, any_host: any_host.build(&self.shared), shadowed, reads_fields, shared: self.shared }
    }

    /// Routes whose every way is, host by host, also a way of a route before it.
    fn shadows(&self) -> Vec<Shadow> {
        // By what a way asks for: the route that gets it.
        let mut first: HashMap<Demand<'_>, usize> = HashMap::default();
        // By route: whether some way of it is its own, and who took another.
        let mut routes: HashMap<usize, (bool, Option<usize>)> = HashMap::default();
        for way in &self.ways {
            let route = way.order.8;
            let hosts = way.hosts.iter().filter(|host| host.port.is_some() == way.port).map(Some);
            let none = way.hosts.is_empty().then_some(None);
            for host in hosts.chain(none) {
                let path = way.path.map(|(text, pattern)| (text, pattern.is_some()));
                let winner = *first.entry((host, path, way.conditions)).or_insert(route);
                let state = routes.entry(route).or_default();
                if winner == route {
                    state.0 = true;
                } else {
                    state.1.get_or_insert(winner);
                }
            }
        }
        let mut shadows: Vec<_> = routes
            .into_iter()
            .filter_map(|(route, (own, taken))| if own { None } else { taken.map(|by| Shadow { route, by }) })
            .collect();
        shadows.sort_by_key(|shadow| shadow.route);
        shadows
    }
}
