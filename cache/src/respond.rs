//! From a stored entry to an answer: conditions (RFC 9110 section 13), ranges (section 14), HEAD, `Age`.

use crate::{
    Answer, CacheRequest, Entry, Report,
    encode::{Accepted, Coding, Variant},
    fields,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use std::ops::Range;

/// Fields that describe a body that a 304 does not have (RFC 9110 section 15.4.5).
const BODY_FIELDS: [HeaderName; 5] =
    [header::CONTENT_LENGTH, header::CONTENT_TYPE, header::CONTENT_ENCODING, header::CONTENT_LANGUAGE, header::CONTENT_RANGE];

/// What a request says about encodings.
pub fn accepted(request: &HeaderMap) -> Accepted {
    Accepted::of_lines(request.get_all(header::ACCEPT_ENCODING).iter().map(HeaderValue::as_bytes))
}

/// The fields of a request that decide what it gets of a stored 200, besides its encoding (RFC 9110 sections 13 and 14). Those that may stand
/// only once are `None` if they do not.
#[derive(Debug, Clone, Copy, Default)]
pub struct Conditions<'r> {
    /// HEAD: there are no ranges of it.
    pub head_only: bool,
    /// All lines of `If-None-Match`, joined with commas.
    pub if_none_match: Option<&'r [u8]>,
    /// `If-Modified-Since`.
    pub if_modified_since: Option<&'r [u8]>,
    /// `Range`.
    pub range: Option<&'r [u8]>,
    /// `If-Range`; one that stands twice holds as little as an empty one.
    pub if_range: Option<&'r [u8]>,
}

/// What a request gets of an entry.
#[derive(Debug, Clone)]
pub enum Form<'e> {
    /// This variant as it is.
    Whole(&'e Variant),
    /// A 304: the client holds this variant.
    Held(&'e Variant),
    /// A 206: these bytes of this variant.
    Part(&'e Variant, Range<usize>),
    /// A 416: there are no such bytes in this variant.
    Unsatisfiable(&'e Variant),
}

/// What a request gets of an entry. Parts of a body are parts of the body that is not encoded: a client that asks for one gets it from there, or,
/// if it does not take identity, the whole in another encoding. Allocates nothing.
#[inline]
pub fn form<'e>(entry: &'e Entry, asked: &Conditions<'_>, accepted: &Accepted) -> Form<'e> {
    let whole = Form::Whole(entry.pick_for(accepted));
    let plain = asked.if_none_match.is_none() && asked.if_modified_since.is_none() && asked.range.is_none();
    if plain || entry.status() != StatusCode::OK { whole } else { conditional(entry, asked, accepted).unwrap_or(whole) }
}

/// `None`: the whole.
fn conditional<'e>(entry: &'e Entry, asked: &Conditions<'_>, accepted: &Accepted) -> Option<Form<'e>> {
    // If-None-Match goes before If-Modified-Since, and both before Range (RFC 9110 section 13.2.2).
    if let Some(list) = asked.if_none_match {
        if let Some(variant) = entry.held(list, accepted) {
            return Some(Form::Held(variant));
        }
    } else if let Some(since) = asked.if_modified_since.and_then(date)
        && modified(entry.date(&header::LAST_MODIFIED), entry.date(&header::DATE), entry.response_ms() / 1000) <= since
    {
        return Some(Form::Held(entry.pick_for(accepted)));
    }
    let range = asked.range.filter(|_| !asked.head_only && accepted.weight(Coding::Identity) > 0)?;
    if asked.if_range.is_some_and(|condition| !if_range_holds(condition, entry)) {
        return None;
    }
    let identity = entry.identity();
    Some(match span(range, entry.body().len() as u64)? {
        Span::Bytes(first, last) => Form::Part(identity, first as usize..last as usize + 1),
        Span::Unsatisfiable => Form::Unsatisfiable(identity),
    })
}

impl<'e> Form<'e> {
    /// Its status, where the entry has this one.
    pub fn status(&self, stored: StatusCode) -> StatusCode {
        match self {
            Form::Whole(_) => stored,
            Form::Held(_) => StatusCode::NOT_MODIFIED,
            Form::Part(..) => StatusCode::PARTIAL_CONTENT,
            Form::Unsatisfiable(_) => StatusCode::RANGE_NOT_SATISFIABLE,
        }
    }

    /// The variant that it is of.
    pub fn variant(&self) -> &'e Variant {
        match self {
            Form::Whole(variant) | Form::Held(variant) | Form::Part(variant, _) | Form::Unsatisfiable(variant) => variant,
        }
    }

    /// Which bytes of the variant's body a GET gets.
    pub fn range(&self) -> Range<usize> {
        match self {
            Form::Whole(variant) => 0..variant.body.len(),
            Form::Part(_, range) => range.clone(),
            Form::Held(_) | Form::Unsatisfiable(_) => 0..0,
        }
    }

    /// Whether a field of the variant stands in this form's head.
    fn keeps(&self, name: &[u8]) -> bool {
        let is = |field: &HeaderName| name.eq_ignore_ascii_case(field.as_str().as_bytes());
        match self {
            Form::Whole(_) => true,
            Form::Held(variant) => !BODY_FIELDS.iter().any(is) && !(variant.etag.is_some() && is(&header::LAST_MODIFIED)),
            Form::Part(..) => !is(&header::CONTENT_LENGTH) && !is(&header::CONTENT_RANGE),
            Form::Unsatisfiable(_) => !BODY_FIELDS.iter().any(is) && !is(&header::ETAG) && !is(&header::LAST_MODIFIED),
        }
    }

    /// Tells of the fields that this form has instead: name, and the pieces of the value.
    fn own(&self, mut tell: impl FnMut(HeaderName, &[&str])) {
        let mut buffers = [itoa::Buffer::new(); 4];
        let [first, last, part, whole] = &mut buffers;
        let whole = whole.format(self.variant().body.len());
        match self {
            Form::Whole(_) | Form::Held(_) => {}
            Form::Part(_, range) => {
                tell(header::CONTENT_RANGE, &["bytes ", first.format(range.start), "-", last.format(range.end - 1), "/", whole]);
                tell(header::CONTENT_LENGTH, &[part.format(range.len())]);
            }
            Form::Unsatisfiable(_) => {
                tell(header::CONTENT_RANGE, &["bytes */", whole]);
                tell(header::CONTENT_LENGTH, &["0"]);
            }
        }
    }

    /// The fields of its head.
    pub fn headers(&self) -> HeaderMap {
        let mut headers = self.variant().headers();
        if let Form::Whole(_) = self {
            return headers;
        }
        let gone: Vec<HeaderName> = headers.keys().filter(|name| !self.keeps(name.as_str().as_bytes())).cloned().collect();
        for name in &gone {
            headers.remove(name);
        }
        self.own(|name, pieces| {
            if let Ok(value) = HeaderValue::try_from(pieces.concat()) {
                headers.insert(name, value);
            }
        });
        headers
    }

    /// Appends the same as the beginning of a head in HTTP/1.1, up to where further lines follow. A whole has its head ready
    /// ([`Variant::head`]) and appends nothing.
    pub fn write_head(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(match self {
            Form::Whole(_) => return,
            Form::Held(_) => b"HTTP/1.1 304 Not Modified\r\n",
            Form::Part(..) => b"HTTP/1.1 206 Partial Content\r\n",
            Form::Unsatisfiable(_) => b"HTTP/1.1 416 Range Not Satisfiable\r\n",
        });
        for (name, value) in crate::entry::lines(&self.variant().head).filter(|(name, _)| self.keeps(name)) {
            fields::write_field(out, name, value);
        }
        self.own(|name, pieces| {
            for piece in [name.as_str(), ": "].iter().chain(pieces).chain(&["\r\n"]) {
                out.extend_from_slice(piece.as_bytes());
            }
        });
    }
}

/// Answers a request from an entry, in the encoding that the client likes best.
pub fn answer(entry: &Entry, request: &CacheRequest, accepted: &Accepted, now_ms: u64, report: Report) -> Answer {
    let headers = &request.headers;
    // Not as text: an entity tag may have bytes that are not ASCII.
    let single = |name| {
        let mut all = headers.get_all(name).iter();
        let first = all.next()?.as_bytes().trim_ascii();
        all.next().is_none().then_some(first)
    };
    let lists: Vec<&[u8]> = headers.get_all(header::IF_NONE_MATCH).iter().map(HeaderValue::as_bytes).collect();
    let lists = lists.join(&b", "[..]);
    let asked = Conditions {
        head_only: request.method == Method::HEAD,
        if_none_match: headers.contains_key(header::IF_NONE_MATCH).then_some(&lists),
        if_modified_since: single(&header::IF_MODIFIED_SINCE),
        range: single(&header::RANGE),
        if_range: headers.contains_key(header::IF_RANGE).then(|| single(&header::IF_RANGE).unwrap_or_default()),
    };
    let form = form(entry, &asked, accepted);
    let mut headers = form.headers();
    headers.insert(header::AGE, HeaderValue::from(entry.age_ms(now_ms) / 1000));
    let mut response = Response::new(());
    *response.status_mut() = form.status(entry.status());
    *response.headers_mut() = headers;
    let body = if asked.head_only { Bytes::new() } else { form.variant().body.slice(form.range()) };
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

/// Whether the client has this response already. `If-None-Match` (weak comparison) goes before `If-Modified-Since` (RFC 9110 section 13.2.2);
/// without `Last-Modified`, the date of the response stands for it (RFC 9111 section 4.3.2).
pub(crate) fn not_modified(request: &HeaderMap, stored: &HeaderMap, response_time: u64) -> bool {
    if request.contains_key(header::IF_NONE_MATCH) {
        let etag = stored.get(header::ETAG).map(HeaderValue::as_bytes);
        return lists_tag(request.get_all(header::IF_NONE_MATCH).iter().map(HeaderValue::as_bytes), etag);
    }
    fields::date(request, &header::IF_MODIFIED_SINCE).is_some_and(|since| {
        modified(fields::date(stored, &header::LAST_MODIFIED), fields::date(stored, &header::DATE), response_time) <= since
    })
}

fn modified(last: Option<u64>, date: Option<u64>, response_time: u64) -> u64 {
    last.or(date).unwrap_or(response_time)
}

fn date(value: &[u8]) -> Option<u64> {
    fields::parse_date(std::str::from_utf8(value).ok()?)
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

/// The one range that a `Range` asks for. `None`: the whole is the answer (several, malformed, another unit).
fn span(range: &[u8], length: u64) -> Option<Span> {
    let text = std::str::from_utf8(range).ok()?;
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
fn if_range_holds(condition: &[u8], entry: &Entry) -> bool {
    if condition.starts_with(b"\"") || condition.starts_with(b"W/") {
        return condition.starts_with(b"\"") && entry.etag().is_some_and(|etag| etag == condition);
    }
    let (modified, sent) = (entry.date(&header::LAST_MODIFIED), entry.date(&header::DATE));
    date(condition).is_some_and(|time| modified == Some(time) && sent.is_some_and(|sent| sent > time))
}
