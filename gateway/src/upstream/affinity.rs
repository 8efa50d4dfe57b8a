//! What consistent hashing hashes of a request, and the cookie that makes a browser stick to an endpoint.

use crate::{RequestContext, Scheme, context::RequestId};
use http::{HeaderValue, header, request};
use weir_config::kong::{Algorithm, HashOn, UpstreamSettings};
use xxhash_rust::xxh3::xxh3_64;

/// One thing to hash.
#[derive(Debug)]
enum By {
    Consumer,
    Ip,
    Path,
    Header(String),
    QueryArg(String),
    UriCapture(String),
    /// Made, for this path, if the client has none.
    Cookie(String, String),
}

/// What an upstream hashes: each is tried in its order.
#[derive(Debug, Default)]
pub(super) struct Affinity(Vec<By>);

impl Affinity {
    /// That of an upstream; empty where nothing is hashed.
    pub(super) fn new(settings: &UpstreamSettings) -> Affinity {
        if settings.algorithm != Algorithm::ConsistentHashing {
            return Affinity::default();
        }
        let cookie = || Some(By::Cookie(settings.hash_on_cookie.clone()?, settings.hash_on_cookie_path.clone().unwrap_or_else(|| "/".into())));
        let by = |on: HashOn, header: &Option<String>, query: &Option<String>, capture: &Option<String>| match on {
            HashOn::None => None,
            HashOn::Consumer => Some(By::Consumer),
            HashOn::Ip => Some(By::Ip),
            HashOn::Path => Some(By::Path),
            HashOn::Header => header.clone().map(By::Header),
            HashOn::QueryArg => query.clone().map(By::QueryArg),
            HashOn::UriCapture => capture.clone().map(By::UriCapture),
            HashOn::Cookie => cookie(),
        };
        let first = by(settings.hash_on, &settings.hash_on_header, &settings.hash_on_query_arg, &settings.hash_on_uri_capture);
        let then = by(settings.hash_fallback, &settings.hash_fallback_header, &settings.hash_fallback_query_arg, &settings.hash_fallback_uri_capture);
        Affinity(first.into_iter().chain(then).collect())
    }

    /// Whether anything is hashed.
    pub(super) fn hashes(&self) -> bool {
        !self.0.is_empty()
    }

    /// The hash of what the request has; `None`: nothing. A client without the cookie gets one with its answer.
    pub(super) fn hash(&self, cx: &mut RequestContext, request: &request::Parts) -> Option<u64> {
        self.0.iter().find_map(|by| by.hash(cx, request))
    }
}

impl By {
    fn hash(&self, cx: &mut RequestContext, request: &request::Parts) -> Option<u64> {
        let text = |text: &str| Some(text).filter(|t| !t.is_empty()).map(|t| xxh3_64(t.as_bytes()));
        match self {
            By::Consumer => match (&cx.consumer, &cx.identity) {
                (Some(consumer), _) => text(&consumer.entity.id),
                (None, Some(identity)) => text(&identity.subject),
                (None, None) => None,
            },
            By::Ip => match cx.client.ip.to_canonical() {
                std::net::IpAddr::V4(ip) => Some(xxh3_64(&ip.octets())),
                std::net::IpAddr::V6(ip) => Some(xxh3_64(&ip.octets())),
            },
            By::Path => text(request.uri.path()),
            By::Header(name) => {
                let mut values = request.headers.get_all(name.as_str()).iter().map(HeaderValue::as_bytes);
                let first = values.next()?;
                Some(values.fold(xxh3_64(first), |hash, value| hash.rotate_left(5) ^ xxh3_64(value)))
            }
            By::QueryArg(name) => {
                let pairs = request.uri.query()?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
                pairs.filter(|(n, _)| n == name).find_map(|(_, value)| text(value))
            }
            By::UriCapture(name) => {
                let captures = cx.captures.as_ref()?;
                name.parse().map_or_else(|_| captures.name(name), |group| captures.get(group)).and_then(text)
            }
            By::Cookie(name, path) => {
                if let Some(value) = cookie(request, name) {
                    return text(value);
                }
                let made = RequestId::random();
                let secure = if cx.client.scheme == Scheme::Https { "; Secure" } else { "" };
                let field = HeaderValue::from_str(&format!("{name}={made}; Path={path}; HttpOnly; SameSite=Lax{secure}")).ok()?;
                cx.cookies.push(field);
                text(made.as_str())
            }
        }
    }
}

fn cookie<'a>(request: &'a request::Parts, name: &str) -> Option<&'a str> {
    let fields = request.headers.get_all(header::COOKIE).iter().filter_map(|v| v.to_str().ok());
    let mut pairs = fields.flat_map(|v| v.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(n, v)| *n == name && !v.is_empty()).map(|(_, value)| value)
}
