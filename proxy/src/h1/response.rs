//! Response heads (RFC 9112 sections 4 and 6).

use super::{
    body::ResponseLength,
    fields::{self, Transfer},
    head::{HeadError, Limits},
    scan::{Found, HeadScan},
};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode, Version, response, response::Response};

/// A response head.
#[derive(Debug)]
pub struct ResponseHead {
    /// Status and fields as received; the reason phrase is dropped.
    pub parts: response::Parts,
    /// How the body's end is found.
    pub body: ResponseLength,
    /// Whether the connection may be used again after the body.
    pub keep_alive: bool,
}

/// Parses one response head out of `buf`: interim (1xx) ones too, each by a call of its own. `method` is the request's, because an
/// answer to HEAD has no body whatever it announces. `Ok(None)`: more bytes are needed, and nothing was taken.
///
/// # Errors
/// Always with status 502: the upstream breaks the rules, and the connection to it must be closed.
pub fn parse_response(buf: &mut BytesMut, method: &Method, limits: &Limits) -> Result<Option<ResponseHead>, HeadError> {
    let bad = |reason| HeadError { status: StatusCode::BAD_GATEWAY, reason };
    let end = match HeadScan::default().find(buf, limits.max_head, limits.max_headers.saturating_add(1), false) {
        Found::Head { start: 0, end } => end,
        Found::Partial => return Ok(None),
        Found::BareLf => return Err(bad("line feed without carriage return")),
        Found::Head { .. } | Found::Blanks => return Err(bad("empty line before the status line")),
        Found::TooManyLines => return Err(bad("too many headers")),
        Found::TooLong { .. } => return Err(bad("head too large")),
    };
    let head = buf.split_to(end).freeze();
    parse_head(&head, method).map(Some).map_err(|e| bad(e.reason))
}

fn parse_head(head: &Bytes, method: &Method) -> Result<ResponseHead, HeadError> {
    let line_end = memchr::memchr(b'\n', head).unwrap_or(head.len().saturating_sub(1));
    let (status, http10) = status_line(&head[..line_end.saturating_sub(1)])?;
    let mut headers = HeaderMap::with_capacity(24);
    fields::parse_fields(&head.slice(line_end + 1..), &mut headers)?;
    let length = fields::content_length(&headers)?;
    let transfer = fields::transfer_encoding(&headers);
    match transfer {
        Transfer::Absent => {}
        _ if length.is_some() => return Err(HeadError::bad("both Content-Length and Transfer-Encoding")),
        _ if http10 => return Err(HeadError::bad("Transfer-Encoding in HTTP/1.0")),
        Transfer::Chunked => {}
        Transfer::Unknown => return Err(HeadError::bad("unknown transfer coding")),
        Transfer::Malformed => return Err(HeadError::bad("malformed Transfer-Encoding")),
    }
    let never_a_body = status.is_informational() || status == StatusCode::NO_CONTENT;
    let body = match length {
        _ if never_a_body || status == StatusCode::NOT_MODIFIED || method == Method::HEAD => ResponseLength::None,
        _ if transfer == Transfer::Chunked => ResponseLength::Chunked,
        Some(length) => ResponseLength::Length(length),
        None => ResponseLength::Close,
    };
    let options = fields::connection(&headers);
    // A 204 that announces a body may be followed by one: what comes next on this connection is not to be trusted.
    let lies = never_a_body && (transfer == Transfer::Chunked || length.is_some_and(|l| l > 0));
    let keep_alive = !lies && body != ResponseLength::Close && !options.close && (!http10 || options.keep_alive);
    let mut parts = Response::new(()).into_parts().0;
    parts.status = status;
    parts.version = if http10 { Version::HTTP_10 } else { Version::HTTP_11 };
    parts.headers = headers;
    Ok(ResponseHead { parts, body, keep_alive })
}

/// `HTTP/1.x SP code [SP reason]`: the space after the code is required by the grammar but left out by many servers.
fn status_line(line: &[u8]) -> Result<(StatusCode, bool), HeadError> {
    let malformed = HeadError::bad("malformed status line");
    let [b'H', b'T', b'T', b'P', b'/', b'1', b'.', minor @ (b'0' | b'1'), b' ', a, b, c, rest @ ..] = line else {
        return Err(malformed);
    };
    if !matches!(rest, [] | [b' ', ..]) || rest.iter().any(|b| b.is_ascii_control() && *b != b'\t') {
        return Err(malformed);
    }
    let status = StatusCode::from_bytes(&[*a, *b, *c]).map_err(|_| malformed)?;
    if status.as_u16() >= 600 {
        return Err(malformed);
    }
    Ok((status, *minor == b'0'))
}
