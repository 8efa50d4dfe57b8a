//! The heads of ordinary forwards, from the lines of one side to those of the other.

use super::forward::Way;
use crate::{access, h1::{self, Peeked}, times};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header, response};
use weir_config::{HeaderNames, PathHandling};
use weir_gateway::{Chain, RequestContext, sight::{Sights, frames}, upstream::Endpoint};

/// Fields of requests that do not pass: those of one connection, those that the gateway writes itself, and those that only it may set.
pub(super) fn stays_here(name: &[u8]) -> bool {
    let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
    match name.len() {
        4 => is(b"host"),
        9 => is(b"x-real-ip") || is(b"forwarded"),
        10 => is(b"connection") || is(b"keep-alive"),
        12 => is(b"x-request-id"),
        13 => is(b"x-consumer-id"),
        14 => is(b"http2-settings"),
        15 => is(b"x-forwarded-for"),
        16 => is(b"proxy-connection") || is(b"x-forwarded-host") || is(b"x-forwarded-port") || is(b"x-forwarded-path"),
        17 => is(b"x-forwarded-proto") || is(b"x-consumer-groups"),
        18 => is(b"x-forwarded-prefix") || is(b"proxy-authenticate"),
        19 => is(b"x-consumer-username"),
        20 => is(b"x-consumer-custom-id") || is(b"x-anonymous-consumer"),
        22 => is(b"x-authenticated-groups"),
        23 => is(b"x-credential-identifier"),
        25 => is(b"proxy-authentication-info"),
        _ => false,
    }
}

/// Fields of answers that do not pass: those of one connection, and what is meant for this cache alone.
fn ends_here(name: &[u8]) -> bool {
    let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
    match name.len() {
        10 => is(b"connection") || is(b"keep-alive"),
        14 => is(b"http2-settings"),
        16 => is(b"proxy-connection"),
        18 => is(b"weir-cache-control"),
        19 => is(b"proxy-authorization"),
        25 => is(b"proxy-authentication-info"),
        _ => false,
    }
}

/// Appends texts one behind the other: what is known when this is compiled costs no call.
macro_rules! put {
    ($out:expr, $($part:expr),+) => {{
        $($out.extend_from_slice($part);)+
    }};
}

/// A line as it came, with its name in lower case as everywhere behind this gateway.
fn pass(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    let from = out.len();
    put!(out, name, b": ", value, b"\r\n");
    out[from..from + name.len()].make_ascii_lowercase();
}

/// The length of a body is told anew on each connection.
fn is_length(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"content-length")
}

/// The request as the service will see it. `peer`: the client's address as text; `seen`: the fields that plugins look at, as they left them.
#[allow(clippy::too_many_arguments)]
pub(super) fn write_request(out: &mut Vec<u8>, way: &Way<'_>, head: &Peeked<'_>, fields: &[h1::Line<'_>], peer: &[u8], cx: &RequestContext, endpoint: &Endpoint, seen: Option<&HeaderMap>) {
    let route = way.route;
    put!(out, head.method.as_str().as_bytes(), b" ");
    match (way.joined(head.path), head.query) {
        (None, _) => out.extend_from_slice(head.target.as_bytes()),
        (Some(path), None) => out.extend_from_slice(path.as_bytes()),
        (Some(path), Some(query)) => put!(out, path.as_bytes(), b"?", query.as_bytes()),
    }
    let host = if route.preserve_host { head.host.as_bytes() } else { endpoint.host_header(way.service).as_bytes() };
    put!(out, b" HTTP/1.1\r\nhost: ", host, b"\r\n");
    let kong = route.headers == HeaderNames::Kong;
    let told = &cx.caller_fields;
    for &(name, value) in fields {
        let ours = stays_here(name) || is_length(name) || way.sights.request.have(name) || (kong && name.eq_ignore_ascii_case(b"x-kong-request-id"));
        if !ours && !told.have(name) {
            pass(out, name, value);
        }
    }
    // Where a plugin had a say in them they are among what it left.
    let apart = way.route.chains.base.ignores_upstream();
    for (name, value) in seen.into_iter().flatten().filter(|(name, _)| !frames(name) && (!apart || told.get(name).is_none())) {
        h1::line(out, name, value);
    }
    for (name, value) in told.iter().filter(|_| apart) {
        h1::line(out, name, value);
    }
    let (id, client) = (cx.id.as_str().as_bytes(), &cx.client);
    put!(out, b"x-forwarded-for: ", peer, b"\r\nx-real-ip: ", peer);
    let mut port = itoa::Buffer::new();
    put!(out, b"\r\nx-forwarded-proto: ", client.scheme.as_str().as_bytes(), b"\r\nx-forwarded-host: ", head.host.as_bytes());
    put!(out, b"\r\nx-forwarded-port: ", port.format(client.port).as_bytes(), b"\r\nx-forwarded-path: ", head.path.as_bytes());
    let stripped = route.strip_path && way.prefix_len > 0 && route.path_handling == PathHandling::V0;
    if let Some(prefix) = head.path.get(..way.prefix_len).filter(|prefix| stripped && *prefix != "/") {
        put!(out, b"\r\nx-forwarded-prefix: ", prefix.as_bytes());
    }
    put!(out, b"\r\nx-request-id: ", id);
    if kong {
        put!(out, b"\r\nx-kong-request-id: ", id);
    }
    out.extend_from_slice(b"\r\nvia: 1.1 weir\r\n");
    // RFC 9110 section 8.6: methods that usually carry a body say that there is none.
    let length = head.body.filter(|length| *length > 0).or_else(|| matches!(*head.method, Method::POST | Method::PUT | Method::PATCH).then_some(0));
    if let Some(length) = length {
        put!(out, b"content-length: ", itoa::Buffer::new().format(length).as_bytes(), b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// The head of the answer as this client will see it.
pub(super) fn write_answer(out: &mut Vec<u8>, chain: &Chain, sights: &Sights, status: StatusCode, lines: &[h1::Line<'_>], cx: &mut RequestContext, names: HeaderNames) {
    let mut seen = None;
    if !chain.ignores_answers() {
        let mut parts: response::Parts = Response::new(()).into_parts().0;
        parts.status = status;
        for (name, value) in lines.iter().filter(|(name, _)| sights.answer.have(name) && !ends_here(name) && !cx.answer_fields.have(name)) {
            if let (Some(name), Some(value)) = (h1::field_name(name), h1::field_value(Bytes::copy_from_slice(value))) {
                parts.headers.append(name, value);
            }
        }
        chain.from_upstream(cx, &mut parts);
        chain.response(cx, &mut parts);
        seen = Some(parts);
    }
    let status = seen.as_ref().map_or(status, |parts| parts.status);
    cx.status = status.as_u16();
    h1::status_line(out, status);
    let (mut dated, mut has_id) = (false, false);
    for &(name, value) in lines {
        if ends_here(name) || times::are_ours(names, name) || sights.answer.have(name) || cx.answer_fields.have(name) {
            continue;
        }
        dated |= name.eq_ignore_ascii_case(b"date");
        has_id |= name.eq_ignore_ascii_case(b"x-request-id");
        pass(out, name, value);
    }
    let mut set = |name: &HeaderName, value: &HeaderValue| {
        dated |= *name == header::DATE;
        has_id |= *name == crate::work::X_REQUEST_ID;
        h1::line(out, name, value);
    };
    match &seen {
        Some(parts) => parts.headers.iter().filter(|(name, _)| !frames(name)).for_each(|(name, value)| set(name, value)),
        None => cx.answer_fields.iter().for_each(|(name, value)| set(name, value)),
    }
    let id = cx.id.as_str().as_bytes();
    if !has_id {
        put!(out, b"x-request-id: ", id, b"\r\n");
    }
    times::write(out, cx, names);
    if !dated {
        out.extend_from_slice(b"date: ");
        access::date(out);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    cx.times.first_byte = cx.times.upstream;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::IDENTITY;

    #[test]
    fn what_the_general_lane_keeps_back_does_not_pass() {
        for name in IDENTITY {
            assert!(stays_here(name.as_bytes()), "{name}");
        }
        let names = "connection transfer-encoding upgrade te trailer proxy-authenticate proxy-authorization keep-alive proxy-connection proxy-authentication-info http2-settings";
        for name in names.split(' ') {
            assert!(h1::is_hop_by_hop(&HeaderName::from_static(name)), "{name}");
            let asked = format!("GET / HTTP/1.1\r\nhost: a\r\n{name}: keep-alive\r\n\r\n");
            assert!(stays_here(name.as_bytes()) || h1::peek(asked.as_bytes(), 8192).is_none(), "{name} of a request");
            let answered = format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n{name}: keep-alive\r\n\r\n");
            assert!(ends_here(name.as_bytes()) || h1::peek_answer(answered.as_bytes(), |_| ()).is_none(), "{name} of an answer");
        }
    }
}
