//! Finds the route of a request, by the rules of Kong's `traditional_compatible` router.
//!
//! **What matches.** Every kind of matcher that a route has (methods, hosts, headers, paths, SNIs) must accept the request. A
//! plain path matches every normalized path that begins with it; a regex is anchored at the start. A host without a port means
//! any port; one with a port means the port in `Host` or else the listener's. SNIs are a condition only of TLS requests.
//! Protocols are none: the caller answers 426 or redirects when the winner does not take the request's. Only a route for `ws` and `wss` alone
//! takes nothing but handshakes of WebSocket, and goes before one that differs in nothing else.
//!
//! **Which wins**, by the first of these that differs:
//! 1. more kinds of matcher;
//! 2. only plain hosts, before any with a wildcard;
//! 3. more header names;
//! 4. regex paths before prefixes;
//! 5. among regexes the higher `regex_priority`, among prefixes the longer;
//! 6. matched by a host with a port, before one without (Kong leaves this and the next to the order of ids);
//! 7. for WebSocket alone, before any;
//! 8. the earlier route, and of its paths the earlier.
//!
//! **How it is found.** All ways in which all routes can match are ranked once, when the router is built. A request looks up
//! the host patterns that cover it (a hash, two radix trees), and below each the prefixes of its path and the regexes whose
//! required text it contains; the lowest rank that also meets the other conditions wins. The cost follows the request's
//! length, not the number of routes.

mod build;
mod conditions;
mod host;
mod join;
mod normalize;
mod paths;
mod pattern;
mod trie;

pub use join::upstream_path;
pub use normalize::normalize;
pub use pattern::Captures;

use conditions::Subject;
use host::HostTable;
use paths::{Paths, Search, Shared};
use std::borrow::Cow;
use weir_config::{Route, Service, Span};

/// What of a request decides its route.
#[derive(Debug, Clone, Copy)]
pub struct Query<'q> {
    /// `http`, `https`, `grpc`, `grpcs`, `ws` or `wss`.
    pub scheme: &'q str,
    /// Method.
    pub method: &'q http::Method,
    /// Host as the client sent it, perhaps with a port; empty if it sent none.
    pub host: &'q str,
    /// Port that the client connected to; stands in for a port that `host` lacks.
    pub port: u16,
    /// Path as the client sent it, without the query.
    pub path: &'q str,
    /// Headers.
    pub headers: &'q http::HeaderMap,
    /// Server name that the client asked for in its TLS handshake.
    pub sni: Option<&'q str>,
}

/// The route of a request.
#[derive(Debug, Clone)]
pub struct Match<'q> {
    /// Index into the routes that the router was built from.
    pub route: usize,
    /// Bytes of `path` that the route's path matched; 0 for a route without paths.
    pub prefix_len: usize,
    /// Groups of the path regex, if it has any.
    pub captures: Option<Captures>,
    /// The normalized path: see [`normalize`].
    pub path: Cow<'q, str>,
}

/// Why a route cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RouteError {
    /// Index of the route.
    pub route: usize,
    /// Where the mistake stands.
    pub span: Span,
    /// What it is: a whole sentence without a full stop.
    pub message: String,
}

/// All routes, arranged for look-ups. Immutable; a changed configuration makes a new one.
#[derive(Debug)]
pub struct Router {
    hosts: HostTable<Paths>,
    /// Routes without hosts.
    any_host: Paths,
    shared: Shared,
    shadowed: Vec<Shadow>,
    reads_fields: bool,
}

/// A route that no request can reach, because every request that it accepts goes to routes before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shadow {
    /// Index of the route that never wins.
    pub route: usize,
    /// Index of one that wins in its place.
    pub by: usize,
}

impl Router {
    /// Arranges the routes. Those of disabled services and those that are not for HTTP are left out; the others keep their index.
    ///
    /// Errors: everything that is wrong with any of them (a regex, a host, a header name), each with its place.
    pub fn build(routes: &[Route], services: &[Service]) -> Result<Router, Vec<RouteError>> {
        build::build(routes, services)
    }

    /// Whether fields decide anything, other than `Host`.
    pub fn reads_fields(&self) -> bool {
        self.reads_fields
    }

    /// The route of a request; `None`: 404.
    pub fn find<'q>(&self, query: &Query<'q>) -> Option<Match<'q>> {
        self.find_as(query, false)
    }

    /// The route of a request that has none, were it a handshake of WebSocket.
    pub fn find_websocket(&self, query: &Query<'_>) -> Option<usize> {
        if self.shared.websocket { self.find_as(query, true).map(|found| found.route) } else { None }
    }

    fn find_as<'q>(&self, query: &Query<'q>, as_websocket: bool) -> Option<Match<'q>> {
        let path = normalize(query.path);
        let text = normalize::matching_text(&path);
        let (host, port) = host::of_request(query.host);
        let sni = query.sni.map(|name| host::lower(name.strip_suffix('.').unwrap_or(name)));
        let subject = Subject {
            query,
            text: &text,
            sni: sni.as_deref(),
            tls: matches!(query.scheme, "https" | "grpcs" | "wss" | "tls"),
            as_websocket,
        };
        let mut search = Search { shared: &self.shared, subject: &subject, best: None };
        if !host.is_empty() {
            self.hosts.covering(&host, port.unwrap_or(query.port), |paths| paths.search(&mut search));
        }
        self.any_host.search(&mut search);

        let best = search.best?;
        let prefix_len = match &text {
            Cow::Borrowed(_) => best.len,
            Cow::Owned(text) => normalize::normalized_len(&path, text, best.len),
        };
        let captures = best.candidate.pattern().and_then(|pattern| self.shared.patterns[pattern as usize].captures(&text));
        drop(text);
        Some(Match { route: best.candidate.route as usize, prefix_len, captures, path })
    }

    /// Routes that can never win, by index. It finds those that ask for exactly what earlier ones ask for, not all that
    /// reasoning could find.
    pub fn shadowed(&self) -> &[Shadow] {
        &self.shadowed
    }
}
