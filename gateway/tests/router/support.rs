//! Routes, services and requests for tests.

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use std::time::Duration;
use weir_config::{PathHandling, PathMatcher, Route, Service, Span};
use weir_gateway::router::Query;

/// A route without matchers and with Kong's defaults.
pub fn route(name: &str) -> Route {
    Route {
        name: name.to_owned(),
        id: None,
        service: None,
        protocols: vec!["http".into(), "https".into()],
        methods: vec![],
        hosts: vec![],
        paths: vec![],
        headers: vec![],
        snis: vec![],
        strip_path: true,
        preserve_host: false,
        path_handling: PathHandling::V0,
        regex_priority: 0,
        https_redirect_status_code: 426,
        request_buffering: true,
        response_buffering: true,
        tags: vec![],
        span: Span::default(),
    }
}

/// A path as it is written in a file: `~` marks a regex.
pub fn path(text: &str) -> PathMatcher {
    let regex = text.strip_prefix('~');
    PathMatcher { text: regex.unwrap_or(text).to_owned(), regex: regex.is_some(), span: Span::default() }
}

/// A service that is or is not enabled.
pub fn service(enabled: bool) -> Service {
    Service {
        name: "service".into(),
        id: None,
        protocol: "http".into(),
        host: "upstream.test".into(),
        port: 80,
        path: String::new(),
        retries: 5,
        connect_timeout: Duration::from_secs(60),
        write_timeout: Duration::from_secs(60),
        read_timeout: Duration::from_secs(60),
        tls_verify: None,
        tls_verify_depth: None,
        ca_certificates: vec![],
        client_certificate: None,
        http2: false,
        resilience: Default::default(),
        tags: vec![],
        enabled,
        span: Span::default(),
    }
}

/// A request, owned.
#[derive(Debug, Clone)]
pub struct Request {
    pub scheme: String,
    pub method: Method,
    pub host: String,
    pub port: u16,
    pub path: String,
    pub headers: HeaderMap,
    pub sni: Option<String>,
}

impl Request {
    /// A request by plain HTTP to port 80.
    pub fn new(method: &str, host: &str, path: &str) -> Request {
        Request {
            scheme: "http".into(),
            method: method.parse().expect("a method"),
            host: host.into(),
            port: 80,
            path: path.into(),
            headers: HeaderMap::new(),
            sni: None,
        }
    }

    /// Adds a header line.
    pub fn header(&mut self, name: &str, value: &str) {
        self.headers.append(
            HeaderName::from_bytes(name.as_bytes()).expect("a header name"),
            HeaderValue::from_bytes(value.as_bytes()).expect("a header value"),
        );
    }

    /// What the router is asked.
    pub fn query(&self) -> Query<'_> {
        Query {
            scheme: &self.scheme,
            method: &self.method,
            host: &self.host,
            port: self.port,
            path: &self.path,
            headers: &self.headers,
            sni: self.sni.as_deref(),
        }
    }
}
