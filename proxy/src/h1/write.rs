//! Writing heads. Names, values, methods and targets come as `http` types, which can not hold CR, LF or NUL: nothing that is written
//! here can end a line early.

use super::{
    body::{BodyLength, ResponseLength},
    fields,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request};

/// What an answer says about its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// It goes on, as HTTP/1.1 connections do: nothing is written.
    Keep,
    /// It goes on, and the client speaks HTTP/1.0, which wants to be told.
    KeepExplicit,
    /// It ends with this answer.
    Close,
    /// It becomes another protocol; the `Upgrade` field is written too.
    Upgrade,
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const PROXY_AUTHENTICATION_INFO: HeaderName = HeaderName::from_static("proxy-authentication-info");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Fields that belong to one connection only (RFC 9110 section 7.6.1). `Proxy-Status` (RFC 9209) does not: it is for the client.
pub(crate) fn is_hop_by_hop(name: &HeaderName) -> bool {
    *name == header::CONNECTION
        || *name == header::TRANSFER_ENCODING
        || *name == header::UPGRADE
        || *name == header::TE
        || *name == header::TRAILER
        || *name == header::PROXY_AUTHENTICATE
        || *name == header::PROXY_AUTHORIZATION
        || *name == KEEP_ALIVE
        || *name == PROXY_CONNECTION
        || *name == PROXY_AUTHENTICATION_INFO
        || *name == HTTP2_SETTINGS
}

/// Fields that `Connection` must not name: they are meant for every recipient, and whoever could make them vanish here would change
/// what the message means (a page without its `Cache-Control`, a request without its `Host`).
fn is_end_to_end(name: &HeaderName) -> bool {
    *name == header::HOST
        || *name == header::AUTHORIZATION
        || *name == header::COOKIE
        || *name == header::SET_COOKIE
        || *name == header::CACHE_CONTROL
        || *name == header::VARY
        || *name == header::DATE
        || *name == header::AGE
        || *name == header::EXPIRES
        || name.as_str().starts_with("content-")
}

/// Removes the fields that concern only the connection the message came by: those of RFC 9110 section 7.6.1 and those that
/// `Connection` names.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if !headers.keys().any(is_hop_by_hop) {
        return;
    }
    let named: Vec<HeaderName> = fields::list(headers, &header::CONNECTION)
        .filter_map(|option| HeaderName::from_bytes(option).ok())
        .filter(|name| !is_end_to_end(name))
        .collect();
    let standard: Vec<HeaderName> = headers.keys().filter(|name| is_hop_by_hop(name)).cloned().collect();
    for name in standard.iter().chain(&named) {
        headers.remove(name);
    }
}

/// A field line.
pub fn line(out: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
    let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
    // One check of the capacity for the whole line.
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn length_line(out: &mut Vec<u8>, length: u64) {
    out.extend_from_slice(b"content-length: ");
    out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// The end of a chunked body, with what follows it.
pub fn last_chunk(out: &mut Vec<u8>, trailers: Option<&HeaderMap>) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        line(out, name, value);
    }
    out.extend_from_slice(b"\r\n");
}

/// A number in lower-case hexadecimal.
pub(super) fn hex(out: &mut Vec<u8>, number: usize) {
    let digits = number.checked_ilog2().unwrap_or(0) / 4;
    for shift in (0..=digits).rev() {
        out.push(b"0123456789abcdef"[(number >> (shift * 4)) & 15]);
    }
}

/// Writes a request head for an upstream: request line, `Host` (the field, else the URI's authority), the other fields in their order,
/// and the framing that `length` wants. `Content-Length`, `Transfer-Encoding` and `Expect` of the fields are not copied: this side of
/// the exchange frames for itself and does not wait for a 100. `Connection` is only written together with `Upgrade`.
pub fn write_request_head(out: &mut Vec<u8>, parts: &request::Parts, length: BodyLength) {
    out.extend_from_slice(parts.method.as_str().as_bytes());
    out.push(b' ');
    let target = parts.uri.path_and_query().map_or("/", |p| p.as_str());
    if !target.starts_with(['/', '*']) {
        out.push(b'/');
    }
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    match (parts.headers.get(header::HOST), parts.uri.authority()) {
        (Some(host), _) => out.extend_from_slice(host.as_bytes()),
        (None, Some(authority)) => out.extend_from_slice(authority.as_str().as_bytes()),
        (None, None) => {}
    }
    out.extend_from_slice(b"\r\n");
    let mut cookies = 0;
    let (mut upgrade, mut te) = (false, false);
    for (name, value) in &parts.headers {
        if *name == header::COOKIE {
            cookies += 1;
        } else if *name == header::UPGRADE {
            upgrade = true;
            line(out, name, value);
        } else if *name == header::TE {
            te = true;
            line(out, name, value);
        } else if *name != header::HOST
            && *name != header::CONNECTION
            && *name != header::CONTENT_LENGTH
            && *name != header::TRANSFER_ENCODING
            && *name != header::EXPECT
            && *name != KEEP_ALIVE
            && *name != PROXY_CONNECTION
        {
            line(out, name, value);
        }
    }
    if cookies > 0 {
        // HTTP/2 may spread cookies over several fields; HTTP/1.1 wants one (RFC 9113 section 8.2.3).
        let mut separator: &[u8] = b"cookie: ";
        for value in parts.headers.get_all(header::COOKIE) {
            out.extend_from_slice(separator);
            out.extend_from_slice(value.as_bytes());
            separator = b"; ";
        }
        out.extend_from_slice(b"\r\n");
    }
    match (upgrade, te) {
        (true, true) => out.extend_from_slice(b"connection: upgrade, te\r\n"),
        (true, false) => out.extend_from_slice(b"connection: upgrade\r\n"),
        // RFC 9110 section 10.1.4: `TE` is for this connection only.
        (false, true) => out.extend_from_slice(b"connection: te\r\n"),
        (false, false) => {}
    }
    match length {
        BodyLength::Length(length) => length_line(out, length),
        BodyLength::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        // RFC 9110 section 8.6: methods that usually carry a body say that there is none.
        BodyLength::None if matches!(parts.method, Method::POST | Method::PUT | Method::PATCH) => length_line(out, 0),
        BodyLength::None => {}
    }
    out.extend_from_slice(b"\r\n");
}

/// The first line of an answer.
pub fn status_line(out: &mut Vec<u8>, status: StatusCode) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Writes a response head for a client: status line, the fields in their order, and the framing and connection fields that `framing`
/// and `connection` want instead of those in `headers`. With `ResponseLength::None` a `Content-Length` among the fields is kept (an
/// answer to HEAD, a 304), except where none is allowed (1xx, 204).
pub fn write_response_head(out: &mut Vec<u8>, status: StatusCode, headers: &HeaderMap, framing: ResponseLength, connection: Connection) {
    // An answer that asks for another protocol names it (RFC 9110 section 15.5.22).
    let offers = connection == Connection::Upgrade || (status == StatusCode::UPGRADE_REQUIRED && headers.contains_key(header::UPGRADE));
    let keep_length = framing == ResponseLength::None && !status.is_informational() && status != StatusCode::NO_CONTENT;
    status_line(out, status);
    for (name, value) in headers {
        let wanted = if *name == header::CONTENT_LENGTH {
            keep_length
        } else if *name == header::UPGRADE {
            offers
        } else {
            !is_hop_by_hop(name)
        };
        if wanted {
            line(out, name, value);
        }
    }
    match framing {
        ResponseLength::Length(length) => length_line(out, length),
        ResponseLength::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        ResponseLength::None | ResponseLength::Close => {}
    }
    out.extend_from_slice(match connection {
        Connection::Close if offers => &b"connection: close, upgrade\r\n\r\n"[..],
        _ if offers => b"connection: upgrade\r\n\r\n",
        Connection::Keep => b"\r\n",
        Connection::KeepExplicit => b"connection: keep-alive\r\n\r\n",
        Connection::Close => b"connection: close\r\n\r\n",
        Connection::Upgrade => b"connection: upgrade\r\n\r\n",
    });
}

/// Writes an interim answer (100, 103), which has neither body nor framing.
pub fn write_interim(out: &mut Vec<u8>, status: StatusCode, headers: &HeaderMap) {
    write_response_head(out, status, headers, ResponseLength::None, Connection::Keep);
}
