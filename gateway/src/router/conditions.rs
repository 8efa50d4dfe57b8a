//! What a route asks of a request beside its host and path.

use super::{Query, host::Name, pattern::Pattern};
use http::{HeaderName, Method, header};
use smallvec::SmallVec;
use std::sync::Arc;

/// Methods, headers and server names of a route, and whether it is for WebSocket alone; each kind that is empty accepts everything.
#[derive(Debug)]
pub(super) struct Conditions {
    pub(super) methods: Vec<Method>,
    pub(super) headers: Vec<HeaderCondition>,
    pub(super) snis: Vec<Name>,
    /// Only handshakes of WebSocket (RFC 6455 section 4.1) are accepted.
    pub(super) websocket: bool,
}

/// One header name with the values of which one must be there.
#[derive(Debug)]
pub(super) struct HeaderCondition {
    pub(super) name: HeaderName,
    /// In lower case.
    pub(super) values: Vec<Box<[u8]>>,
    pub(super) patterns: Vec<Arc<Pattern>>,
}

/// What is known of a request while its route is looked for.
pub(super) struct Subject<'q> {
    pub(super) query: &'q Query<'q>,
    /// The path as routes see it.
    pub(super) text: &'q str,
    /// Server name in lower case, without a dot at its end.
    pub(super) sni: Option<&'q str>,
    /// Whether the request came by TLS: without it, server names are no condition.
    pub(super) tls: bool,
    /// It counts as a handshake of WebSocket whatever its fields say.
    pub(super) as_websocket: bool,
}

impl Conditions {
    /// Whether a request meets them all.
    pub(super) fn accept(&self, subject: &Subject<'_>) -> bool {
        (self.methods.is_empty() || self.methods.contains(subject.query.method))
            && (self.snis.is_empty() || !subject.tls || subject.sni.is_some_and(|sni| self.snis.iter().any(|name| name.covers(sni))))
            && (!self.websocket || subject.as_websocket || is_handshake(subject.query))
            && self.headers.iter().all(|header| header.accepts(subject))
    }
}

/// Whether a request asks to go on as WebSocket.
fn is_handshake(query: &Query<'_>) -> bool {
    let names = |field: HeaderName, word: &str| {
        let values = query.headers.get_all(field).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(word))
    };
    *query.method == Method::GET && names(header::UPGRADE, "websocket") && names(header::CONNECTION, "upgrade")
}

impl HeaderCondition {
    fn accepts(&self, subject: &Subject<'_>) -> bool {
        subject.query.headers.get_all(&self.name).iter().any(|value| {
            let value = value.as_bytes();
            self.values.iter().any(|known| known.eq_ignore_ascii_case(value)) || self.patterns.iter().any(|pattern| pattern.is_in(value))
        })
    }
}

/// A header value in lower case.
pub(super) fn lower_value(value: &[u8]) -> SmallVec<[u8; 64]> {
    value.iter().map(u8::to_ascii_lowercase).collect()
}
