//! gRPC: its errors are not statuses of HTTP but fields.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, response};
use std::fmt::Write as _;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Whether a request is gRPC's, by its `Content-Type`. gRPC-Web has bodies of its own and is none.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.and_then(|kind| kind.strip_prefix(b"application/grpc")).is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// Gives an answer that was made here the form that a gRPC client understands: a head alone, 200, with status and message as fields.
/// An upstream's own answer, which has a gRPC content type, is left alone.
pub fn dress(parts: &mut response::Parts, body: &mut Bytes) {
    if is_grpc(&parts.headers) {
        return;
    }
    let told = serde_json::from_slice::<serde_json::Value>(body).ok().and_then(|told| Some(told.get("message")?.as_str()?.to_string()));
    let message = told.unwrap_or_else(|| parts.status.canonical_reason().unwrap_or_default().to_string());
    parts.headers.insert(GRPC_STATUS, HeaderValue::from(code(parts.status)));
    if let Ok(message) = HeaderValue::from_str(&encoded(&message)) {
        parts.headers.insert(GRPC_MESSAGE, message);
    }
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.status = StatusCode::OK;
    *body = Bytes::new();
}

/// The status that HTTP would have for an answer of gRPC that is a head alone, for breakers, checks and retries; `None`: it is no such
/// answer, or none that speaks against the service.
pub fn judged(headers: &HeaderMap) -> Option<StatusCode> {
    let status = headers.get(&GRPC_STATUS)?;
    Some(match status.as_bytes() {
        b"2" | b"13" | b"15" => StatusCode::INTERNAL_SERVER_ERROR,
        b"4" => StatusCode::GATEWAY_TIMEOUT,
        b"8" => StatusCode::TOO_MANY_REQUESTS,
        b"14" => StatusCode::SERVICE_UNAVAILABLE,
        _ => return None,
    })
}

/// gRPC's number for a status: that which gRPC clients give to answers of plain HTTP (http-grpc-status-mapping), but where gRPC has a
/// more exact one for what Weir means by a status.
fn code(status: StatusCode) -> u16 {
    match status.as_u16() {
        200..=299 => 0,
        400 | 422 => 3,
        401 => 16,
        403 => 7,
        404 | 405 | 421 | 426 => 12,
        408 | 504 => 4,
        409 => 10,
        413 | 429 => 8,
        499 => 1,
        500 => 13,
        501 => 12,
        502 | 503 => 14,
        _ => 2,
    }
}

/// Percent-encoding of gRPC messages: all but visible ASCII, and `%`.
fn encoded(message: &str) -> String {
    let mut out = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(char::from(byte)),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_become_fields() {
        let mut parts = http::Response::builder().status(401).header("content-type", "application/json").body(()).unwrap().into_parts().0;
        let mut body = Bytes::from_static(b"{\"message\":\"Unauthorized \xc3\xa9 100%\"}");
        dress(&mut parts, &mut body);
        assert_eq!((parts.status.as_u16(), body.len()), (200, 0));
        assert_eq!(parts.headers["grpc-status"], "16");
        assert_eq!(parts.headers["grpc-message"], "Unauthorized %C3%A9 100%25");
        assert_eq!(parts.headers["content-type"], "application/grpc");
    }

    #[test]
    fn statuses_have_a_number() {
        let codes = [200, 400, 401, 403, 404, 409, 413, 418, 429, 500, 501, 502, 503, 504].map(|status| code(StatusCode::from_u16(status).unwrap()));
        assert_eq!(codes, [0, 3, 16, 7, 12, 10, 8, 2, 8, 13, 12, 14, 14, 4]);
    }

    #[test]
    fn grpc_web_is_not_grpc() {
        let with = |kind: &'static str| HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))]);
        assert!(is_grpc(&with("application/grpc")) && is_grpc(&with("application/grpc+proto")));
        assert!(!is_grpc(&with("application/grpc-web")) && !is_grpc(&with("application/json")));
    }
}
