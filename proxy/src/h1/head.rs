//! Request heads (RFC 9112 sections 2, 3 and 6).

use super::{
    body::BodyLength,
    fields::{self, Transfer},
    scan::{Found, HeadScan},
};
use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, header,
    request::{self, Request},
    uri::PathAndQuery,
};
use std::net::Ipv6Addr;

/// Longest method name; the registered ones have at most 17 bytes.
const MAX_METHOD: usize = 24;

/// The first bytes of an HTTP/2 connection (RFC 9113 section 3.4), as far as they look like a head.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";

/// Limits of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the whole head, with its closing empty line.
    pub max_head: usize,
    /// Field lines.
    pub max_headers: usize,
}

/// A request head.
#[derive(Debug)]
pub struct RequestHead {
    /// The URI is in origin form (or `*`), path and query byte for byte as sent; `Host` stays in the fields.
    pub parts: request::Parts,
    /// How the body's end is found.
    pub body: BodyLength,
    /// Whether the client wants the connection to go on.
    pub keep_alive: bool,
    /// The client waits for `100 Continue` before it sends the body.
    pub expect_continue: bool,
    /// `Connection: upgrade` with an `Upgrade` field.
    pub upgrade: bool,
    /// The client speaks HTTP/1.0: no chunks, no interim answers.
    pub http10: bool,
}

/// What the buffer holds.
#[derive(Debug)]
pub enum Parsed {
    /// A complete head; its bytes are gone from the buffer.
    Request(Box<RequestHead>),
    /// The client speaks HTTP/2; nothing was taken from the buffer.
    Http2Preface,
    /// More bytes are needed; nothing was taken.
    Partial,
}

/// Why a head is refused. After it the connection can only be answered and closed: nobody knows where the next message begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct HeadError {
    /// For the answer.
    pub status: StatusCode,
    /// For the answer and the log; never holds anything that was received.
    pub reason: &'static str,
}

impl HeadError {
    pub(super) const TOO_MANY: HeadError = HeadError { status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, reason: "too many headers" };

    pub(super) const fn bad(reason: &'static str) -> HeadError {
        HeadError { status: StatusCode::BAD_REQUEST, reason }
    }

    const fn with(status: StatusCode, reason: &'static str) -> HeadError {
        HeadError { status, reason }
    }
}

/// Parses one request head out of `buf`. `scan` belongs to the buffer: pass the same one until the head is complete; it is ready for
/// the next head then.
///
/// # Errors
/// 400 malformed, 405 CONNECT and TRACE, 414 request line too long, 417 unknown expectation, 431 head too large, 501 unknown transfer
/// coding or overlong method, 505 another version.
pub fn parse_request(buf: &mut BytesMut, limits: &Limits, scan: &mut HeadScan) -> Result<Parsed, HeadError> {
    if buf.starts_with(HTTP2_PREFACE) {
        return Ok(Parsed::Http2Preface);
    }
    let (start, end) = match scan.find(buf, limits.max_head, limits.max_headers.saturating_add(1), false) {
        Found::Head { start, end } => (start, end),
        Found::Partial => return Ok(Parsed::Partial),
        Found::BareLf => return Err(HeadError::bad("line feed without carriage return")),
        Found::Blanks => return Err(HeadError::bad("empty lines instead of a request")),
        Found::TooManyLines => return Err(HeadError::TOO_MANY),
        Found::TooLong { first_line: true } => return Err(HeadError::with(StatusCode::URI_TOO_LONG, "request line too long")),
        Found::TooLong { first_line: false } => {
            return Err(HeadError::with(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "request head too large"));
        }
    };
    *scan = HeadScan::default();
    let head = buf.split_to(end).freeze().slice(start..);
    parse_head(&head).map(|head| Parsed::Request(Box::new(head)))
}

fn parse_head(head: &Bytes) -> Result<RequestHead, HeadError> {
    let line_end = memchr::memchr(b'\n', head).unwrap_or(head.len().saturating_sub(1));
    let line = head.slice(..line_end.saturating_sub(1));
    let (method, target, http10) = request_line(&line)?;
    let mut headers = HeaderMap::with_capacity(24);
    fields::parse_fields(&head.slice(line_end + 1..), &mut headers)?;
    let uri = target_uri(&method, target, &mut headers, http10)?;
    check_host(&headers, http10)?;
    let body = body_length(&headers, http10)?;
    let options = fields::connection(&headers);
    let expect_continue = expectation(&headers, body, http10)?;
    let keep_alive = !options.close && (!http10 || options.keep_alive);
    let upgrade = options.upgrade && !http10 && headers.contains_key(header::UPGRADE);
    let mut parts = Request::new(()).into_parts().0;
    parts.method = method;
    parts.uri = uri;
    parts.version = if http10 { Version::HTTP_10 } else { Version::HTTP_11 };
    parts.headers = headers;
    Ok(RequestHead { parts, body, keep_alive, expect_continue, upgrade, http10 })
}

/// `method SP target SP version`, with exactly one space each.
fn request_line(line: &Bytes) -> Result<(Method, Bytes, bool), HeadError> {
    let malformed = HeadError::bad("malformed request line");
    let first = memchr::memchr(b' ', line).ok_or(malformed)?;
    let last = memchr::memrchr(b' ', line).filter(|last| *last > first).ok_or(malformed)?;
    let (method, target, version) = (&line[..first], line.slice(first + 1..last), &line[last + 1..]);
    if !fields::is_token(method) {
        return Err(HeadError::bad("invalid method"));
    }
    let http10 = match version {
        b"HTTP/1.1" => false,
        b"HTTP/1.0" => true,
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
            return Err(HeadError::with(StatusCode::HTTP_VERSION_NOT_SUPPORTED, "HTTP version not supported"));
        }
        _ => return Err(malformed),
    };
    if target.is_empty() || memchr::memchr(b' ', &target).is_some() {
        return Err(malformed);
    }
    if method.len() > MAX_METHOD {
        return Err(HeadError::with(StatusCode::NOT_IMPLEMENTED, "unknown method"));
    }
    let method = Method::from_bytes(method).map_err(|_| HeadError::bad("invalid method"))?;
    // CONNECT would make a tunnel, TRACE sends a visitor's cookies back as a readable body: neither has a use here.
    if method == Method::CONNECT || method == Method::TRACE {
        return Err(HeadError::with(StatusCode::METHOD_NOT_ALLOWED, "method not allowed"));
    }
    Ok((method, target, http10))
}

/// The target as an origin-form (or `*`) URI. An absolute form is reduced to it if it names the same authority as `Host`.
fn target_uri(method: &Method, target: Bytes, headers: &mut HeaderMap, http10: bool) -> Result<Uri, HeadError> {
    if target.iter().any(|b| !b.is_ascii_graphic()) {
        return Err(HeadError::bad("invalid character in the request target"));
    }
    if memchr::memchr(b'#', &target).is_some() {
        return Err(HeadError::bad("fragment in the request target"));
    }
    let path = match target[0] {
        b'/' => target,
        b'*' if target.len() == 1 => {
            if method != Method::OPTIONS {
                return Err(HeadError::bad("`*` is a target for OPTIONS only"));
            }
            target
        }
        _ => absolute_form(method, &target, headers, http10)?,
    };
    if path.len() >= usize::from(u16::MAX) {
        return Err(HeadError::with(StatusCode::URI_TOO_LONG, "request target too long"));
    }
    let path = PathAndQuery::from_maybe_shared(path).map_err(|_| HeadError::bad("invalid character in the request target"))?;
    Ok(Uri::from(path))
}

fn absolute_form(method: &Method, target: &Bytes, headers: &mut HeaderMap, http10: bool) -> Result<Bytes, HeadError> {
    let malformed = HeadError::bad("malformed request target");
    let scheme = [&b"http://"[..], b"https://"].into_iter().find(|s| target.len() > s.len() && target[..s.len()].eq_ignore_ascii_case(s));
    let start = scheme.ok_or(malformed)?.len();
    let end = target[start..].iter().position(|b| matches!(b, b'/' | b'?')).map_or(target.len(), |n| start + n);
    let authority = target.slice(start..end);
    if authority.is_empty() {
        return Err(malformed);
    }
    match headers.get(header::HOST) {
        Some(host) if host.as_bytes().eq_ignore_ascii_case(&authority) => {}
        Some(_) => return Err(HeadError::bad("the request target names another host than the Host header")),
        // RFC 9112 section 3.2.2: the target's authority stands in for the Host that HTTP/1.0 lacks. `check_host` looks at it next.
        None if http10 => {
            let host = HeaderValue::from_maybe_shared(authority).map_err(|_| malformed)?;
            headers.insert(header::HOST, host);
        }
        None => return Err(HeadError::bad("no Host header")),
    }
    Ok(match target.get(end) {
        Some(b'/') => target.slice(end..),
        Some(_) => [b"/", &target[end..]].concat().into(),
        None if method == Method::OPTIONS => Bytes::from_static(b"*"),
        None => Bytes::from_static(b"/"),
    })
}

fn check_host(headers: &HeaderMap, http10: bool) -> Result<(), HeadError> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let Some(host) = hosts.next() else {
        return if http10 { Ok(()) } else { Err(HeadError::bad("no Host header")) };
    };
    if hosts.next().is_some() {
        return Err(HeadError::bad("more than one Host header"));
    }
    if valid_host(host.as_bytes()) { Ok(()) } else { Err(HeadError::bad("invalid Host header")) }
}

/// A host name, an IPv4 address or a bracketed IPv6 address, perhaps with a port. Narrower than RFC 3986, whose registered names may
/// hold percent-encoding and punctuation that no DNS name has and that break naive consumers of `Host`.
fn valid_host(host: &[u8]) -> bool {
    let (name, port) = if host.first() == Some(&b'[') {
        let Some(close) = memchr::memchr(b']', host) else { return false };
        let address = std::str::from_utf8(&host[1..close]).ok().and_then(|a| a.parse::<Ipv6Addr>().ok());
        if address.is_none() {
            return false;
        }
        match &host[close + 1..] {
            [] => return true,
            [b':', port @ ..] => (&b"v6"[..], Some(port)),
            _ => return false,
        }
    } else {
        match memchr::memchr(b':', host) {
            Some(colon) => (&host[..colon], Some(&host[colon + 1..])),
            None => (host, None),
        }
    };
    let name_ok = !name.is_empty() && name.len() <= 255 && name.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~'));
    let port_ok = port.is_none_or(|p| {
        (1..=5).contains(&p.len()) && p.iter().all(u8::is_ascii_digit) && std::str::from_utf8(p).is_ok_and(|p| p.parse::<u16>().is_ok())
    });
    name_ok && port_ok
}

/// RFC 9112 section 6.3. A message with both lengths is refused although the RFC lets a server choose: choosing differently from the
/// next one is how requests are smuggled.
fn body_length(headers: &HeaderMap, http10: bool) -> Result<BodyLength, HeadError> {
    let length = fields::content_length(headers)?;
    match fields::transfer_encoding(headers) {
        Transfer::Absent => Ok(length.map_or(BodyLength::None, BodyLength::Length)),
        _ if length.is_some() => Err(HeadError::bad("both Content-Length and Transfer-Encoding")),
        _ if http10 => Err(HeadError::bad("Transfer-Encoding in HTTP/1.0")),
        Transfer::Chunked => Ok(BodyLength::Chunked),
        Transfer::Unknown => Err(HeadError::with(StatusCode::NOT_IMPLEMENTED, "unknown transfer coding")),
        Transfer::Malformed => Err(HeadError::bad("malformed Transfer-Encoding")),
    }
}

fn expectation(headers: &HeaderMap, body: BodyLength, http10: bool) -> Result<bool, HeadError> {
    let mut values = headers.get_all(header::EXPECT).iter();
    let Some(value) = values.next() else { return Ok(false) };
    if values.next().is_some() || !value.as_bytes().eq_ignore_ascii_case(b"100-continue") {
        return Err(HeadError::with(StatusCode::EXPECTATION_FAILED, "unknown expectation"));
    }
    // RFC 9110 section 10.1.1: to be ignored in HTTP/1.0, and pointless without a body.
    Ok(!http10 && !matches!(body, BodyLength::None | BodyLength::Length(0)))
}
