//! From a stored entry to an answer: conditions (RFC 9110 section 13), ranges (section 14), HEAD, `Age`.

use crate::{
    Answer, CacheRequest, Entry, Report,
    encode::{Accepted, Coding, Variant},
    fields,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};

/// Fields that describe a body that a 304 does not have (RFC 9110 section 15.4.5).
const BODY_FIELDS: [HeaderName; 5] =
    [header::CONTENT_LENGTH, header::CONTENT_TYPE, header::CONTENT_ENCODING, header::CONTENT_LANGUAGE, header::CONTENT_RANGE];

/// What a request says about encodings.
pub fn accepted(request: &HeaderMap) -> Accepted {
    Accepted::of_lines(request.get_all(header::ACCEPT_ENCODING).iter().map(HeaderValue::as_bytes))
}

/// Answers a request from an entry, in the encoding that the client likes best. Parts of a body are parts of the body that is not encoded: a
/// client that asks for one gets it from there, or, if it does not take identity, the whole in another encoding.
pub fn answer(entry: &Entry, request: &CacheRequest, accepted: &Accepted, now_ms: u64, report: Report) -> Answer {
    let best = entry.pick_for(accepted);
    let fields = |variant: &Variant| {
        let mut headers = variant.headers();
        headers.insert(header::AGE, number(entry.age_ms(now_ms) / 1000));
        headers
    };
    let status = entry.status();
    if status == StatusCode::OK {
        // If-None-Match goes before If-Modified-Since (RFC 9110 section 13.2.2).
        if request.headers.contains_key(header::IF_NONE_MATCH) {
            let lists = request.headers.get_all(header::IF_NONE_MATCH);
            if let Some(held) = entry.held_for(|| lists.iter().map(HeaderValue::as_bytes), accepted) {
                return build(StatusCode::NOT_MODIFIED, without_body(fields(held)), Bytes::new(), report);
            }
        } else if request.headers.contains_key(header::IF_MODIFIED_SINCE)
            && unmodified_since(&request.headers, &entry.headers(), entry.response_ms() / 1000)
        {
            return build(StatusCode::NOT_MODIFIED, without_body(fields(best)), Bytes::new(), report);
        }
        if request.method == Method::GET && request.headers.contains_key(header::RANGE) && accepted.weight(Coding::Identity) > 0 {
            let headers = fields(entry.identity());
            if let Some(range) = range_of(&request.headers, &headers, entry.body().len() as u64) {
                return ranged(entry, headers, range, report);
            }
        }
    }
    let body = if request.method == Method::HEAD { Bytes::new() } else { best.body.clone() };
    build(status, fields(best), body, report)
}

fn build(status: StatusCode, headers: HeaderMap, body: Bytes, report: Report) -> Answer {
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Answer { parts: response.into_parts().0, body, report }
}

/// The fields of a 304: all but those that describe the body; `Last-Modified` only where there is no `ETag`.
pub fn without_body(mut headers: HeaderMap) -> HeaderMap {
    for name in &BODY_FIELDS {
        headers.remove(name);
    }
    if headers.contains_key(header::ETAG) {
        headers.remove(header::LAST_MODIFIED);
    }
    headers
}

/// Appends the lines of a ready-made head that a 304 has: [`without_body`] for bytes.
pub fn write_fields_of_304(out: &mut Vec<u8>, head: &[u8]) {
    let tagged = crate::entry::lines(head).any(|(name, _)| is(name, &header::ETAG));
    for (name, value) in crate::entry::lines(head) {
        if !BODY_FIELDS.iter().any(|field| is(name, field)) && !(tagged && is(name, &header::LAST_MODIFIED)) {
            fields::write_field(out, name, value);
        }
    }
}

fn is(name: &[u8], field: &HeaderName) -> bool {
    name.eq_ignore_ascii_case(field.as_str().as_bytes())
}

fn number(value: u64) -> HeaderValue {
    HeaderValue::from(value)
}

/// Whether the client has this response already. `If-None-Match` (weak comparison) goes before `If-Modified-Since` (RFC 9110 section 13.2.2);
/// without `Last-Modified`, the date of the response stands for it (RFC 9111 section 4.3.2).
pub(crate) fn not_modified(request: &HeaderMap, stored: &HeaderMap, response_time: u64) -> bool {
    if request.contains_key(header::IF_NONE_MATCH) {
        let etag = stored.get(header::ETAG).map(HeaderValue::as_bytes);
        return lists_tag(request.get_all(header::IF_NONE_MATCH).iter().map(HeaderValue::as_bytes), etag);
    }
    unmodified_since(request, stored, response_time)
}

fn unmodified_since(request: &HeaderMap, stored: &HeaderMap, response_time: u64) -> bool {
    let Some(since) = fields::date(request, &header::IF_MODIFIED_SINCE) else { return false };
    let modified = fields::date(stored, &header::LAST_MODIFIED)
        .or_else(|| fields::date(stored, &header::DATE))
        .unwrap_or(response_time);
    modified <= since
}

/// Whether the lists of `If-None-Match` are `*` or have the tag (weak comparison). Allocates nothing.
pub(crate) fn lists_tag<'a>(mut lists: impl Iterator<Item = &'a [u8]>, etag: Option<&[u8]>) -> bool {
    let etag = etag.map(opaque);
    lists.any(|list| list.trim_ascii() == b"*" || etag.is_some_and(|etag| tags(list).any(|tag| opaque(tag) == etag)))
}

/// An entity tag without its mark of weakness.
pub(crate) fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// The entity tags of a list (RFC 9110 section 8.8.3): `W/` and quotes included. Commas inside quotes separate nothing.
fn tags(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = list;
    std::iter::from_fn(move || {
        let start = rest.iter().position(|b| !matches!(b, b' ' | b'\t' | b','))?;
        rest = &rest[start..];
        let open = if rest.starts_with(b"W/") { 2 } else { 0 };
        let end = if rest.get(open) == Some(&b'"') {
            memchr::memchr(b'"', &rest[open + 1..]).map_or(rest.len(), |at| open + at + 2)
        } else {
            memchr::memchr(b',', rest).unwrap_or(rest.len())
        };
        let (tag, left) = rest.split_at(end);
        rest = left;
        Some(tag.trim_ascii())
    })
}

/// What `Range` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Span {
    /// First and last byte.
    Bytes(u64, u64),
    /// Nothing that is there.
    Unsatisfiable,
}

/// The one range that a request asks for. `None`: the whole is the answer (no range, several, malformed, another unit, or
/// `If-Range` does not hold).
fn range_of(request: &HeaderMap, stored: &HeaderMap, length: u64) -> Option<Span> {
    let text = fields::single(request, &header::RANGE)?;
    if request.contains_key(header::IF_RANGE) && !if_range_holds(request, stored) {
        return None;
    }
    let (unit, set) = text.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") || set.contains(',') {
        return None;
    }
    let (first, last) = set.trim().split_once('-')?;
    let digits = |text: &str| -> Option<Option<u64>> {
        match text.trim() {
            "" => Some(None),
            text if text.bytes().all(|b| b.is_ascii_digit()) => Some(Some(text.parse().unwrap_or(u64::MAX))),
            _ => None,
        }
    };
    match (digits(first)?, digits(last)?) {
        (None, None) => None,
        (None, Some(0)) => Some(Span::Unsatisfiable),
        (None, Some(_)) if length == 0 => Some(Span::Unsatisfiable),
        (None, Some(suffix)) => Some(Span::Bytes(length.saturating_sub(suffix), length - 1)),
        (Some(first), Some(last)) if last < first => None,
        (Some(first), _) if first >= length => Some(Span::Unsatisfiable),
        (Some(first), last) => Some(Span::Bytes(first, last.map_or(length - 1, |last| last.min(length - 1)))),
    }
}

/// RFC 9110 section 13.1.5: strong comparison; a date must be exactly `Last-Modified`, and that must be old enough to be strong
/// (section 8.8.2.2).
fn if_range_holds(request: &HeaderMap, stored: &HeaderMap) -> bool {
    let Some(text) = fields::single(request, &header::IF_RANGE) else { return false };
    if text.starts_with('"') || text.starts_with("W/") {
        return text.starts_with('"') && stored.get(header::ETAG).is_some_and(|etag| etag.as_bytes() == text.as_bytes());
    }
    let modified = fields::date(stored, &header::LAST_MODIFIED);
    let date = fields::date(stored, &header::DATE);
    fields::parse_date(text).is_some_and(|time| modified == Some(time) && date.is_some_and(|date| date > time))
}

fn ranged(entry: &Entry, mut headers: HeaderMap, span: Span, report: Report) -> Answer {
    let length = entry.body().len();
    match span {
        Span::Bytes(first, last) => {
            if let Ok(value) = HeaderValue::from_str(&format!("bytes {first}-{last}/{length}")) {
                headers.insert(header::CONTENT_RANGE, value);
            }
            headers.insert(header::CONTENT_LENGTH, number(last - first + 1));
            let body = entry.body().slice(first as usize..=last as usize);
            build(StatusCode::PARTIAL_CONTENT, headers, body, report)
        }
        Span::Unsatisfiable => {
            let mut headers = without_body(headers);
            headers.remove(header::ETAG);
            headers.remove(header::LAST_MODIFIED);
            if let Ok(value) = HeaderValue::from_str(&format!("bytes */{length}")) {
                headers.insert(header::CONTENT_RANGE, value);
            }
            headers.insert(header::CONTENT_LENGTH, number(0));
            build(StatusCode::RANGE_NOT_SATISFIABLE, headers, Bytes::new(), report)
        }
    }
}
