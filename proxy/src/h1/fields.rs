//! Field lines (RFC 9112 section 5): names, values, lists, and what they say about framing.

use super::head::HeadError;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use std::cell::RefCell;
pub(super) use weir_cache::fields::{TOKEN, is_value};

/// Names of fields are at most this long.
const MAX_NAME: usize = 256;

pub(super) fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|b| TOKEN[usize::from(*b)])
}

/// Names seen by this thread. Clients spell the same few dozen names again and again: a hit costs one comparison, no lower-casing, no
/// hashing, no allocation. Bounded: one slot a hash, a new spelling replaces the old one.
struct Names(Vec<Option<(Box<[u8]>, HeaderName)>>);

const SLOTS: usize = 512;

thread_local! {
    static NAMES: RefCell<Names> = RefCell::new(Names((0..SLOTS).map(|_| None).collect()));
}

impl Names {
    fn get(&mut self, raw: &[u8]) -> Option<HeaderName> {
        let (Some(first), Some(last)) = (raw.first(), raw.last()) else { return None };
        let middle = raw[raw.len() / 2];
        let at = raw.len() * 31 + usize::from(*first) * 7 + usize::from(middle) * 61 + usize::from(*last) * 13;
        let slot = &mut self.0[at % SLOTS];
        if let Some((spelling, name)) = slot
            && **spelling == *raw
        {
            return Some(name.clone());
        }
        let name = HeaderName::from_bytes(raw).ok()?;
        if raw.len() <= 64 {
            *slot = Some((raw.into(), name.clone()));
        }
        Some(name)
    }
}

/// A field name; the bytes are a token already. `None`: it is too long.
pub fn field_name(raw: &[u8]) -> Option<HeaderName> {
    if raw.len() > MAX_NAME {
        return None;
    }
    NAMES.with_borrow_mut(|names| names.get(raw))
}

/// A field value that shares the buffer of its head.
pub fn field_value(value: Bytes) -> Option<HeaderValue> {
    if !is_value(&value) {
        return None;
    }
    // SAFETY: the bytes were checked just above to be field-content (visible, SP, HTAB or obs-text), the same set as
    // `HeaderValue::from_bytes` accepts.
    Some(unsafe { HeaderValue::from_maybe_shared_unchecked(value) })
}

/// Parses field lines into a map. `section` begins with the first field line and ends with the empty line, every LF follows a CR (see
/// `HeadScan`); values are slices of it.
pub(super) fn parse_fields(section: &Bytes, map: &mut HeaderMap) -> Result<(), HeadError> {
    let mut at = 0;
    while let Some(length) = memchr::memchr(b'\n', &section[at..]) {
        // Without its CRLF.
        let line = &section[at..at + length - 1];
        let next = at + length + 1;
        if line.is_empty() {
            break;
        }
        if matches!(line[0], b' ' | b'\t') {
            return Err(HeadError::bad("folded header line"));
        }
        let Some(colon) = memchr::memchr(b':', line) else { return Err(HeadError::bad("header line without a colon")) };
        let name = &line[..colon];
        if !is_token(name) {
            return Err(HeadError::bad(match name.last() {
                None => "empty header name",
                Some(b' ' | b'\t') => "whitespace before the colon of a header",
                Some(_) => "invalid character in a header name",
            }));
        }
        let name = field_name(name).ok_or(HeadError::bad("header name too long"))?;
        let mut from = at + colon + 1;
        let mut to = at + length - 1;
        while from < to && matches!(section[from], b' ' | b'\t') {
            from += 1;
        }
        while from < to && matches!(section[to - 1], b' ' | b'\t') {
            to -= 1;
        }
        let value = field_value(section.slice(from..to)).ok_or(HeadError::bad("control character in a header value"))?;
        map.try_append(name, value).map_err(|_| HeadError::TOO_MANY)?;
        at = next;
    }
    Ok(())
}

/// The value of `Content-Length`, if there is exactly one field with a plain decimal number.
pub(super) fn content_length(map: &HeaderMap) -> Result<Option<u64>, HeadError> {
    let mut values = map.get_all(header::CONTENT_LENGTH).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(HeadError::bad("more than one Content-Length"));
    }
    let digits = value.as_bytes();
    if digits.is_empty() || digits.len() > 18 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(HeadError::bad("Content-Length is not a plain number"));
    }
    Ok(Some(digits.iter().fold(0, |sum, d| sum * 10 + u64::from(d - b'0'))))
}

/// What `Transfer-Encoding` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transfer {
    Absent,
    Chunked,
    /// Well-formed, but with a coding that nobody here understands.
    Unknown,
    Malformed,
}

pub(super) fn transfer_encoding(map: &HeaderMap) -> Transfer {
    let mut values = map.get_all(header::TRANSFER_ENCODING).iter();
    let Some(value) = values.next() else { return Transfer::Absent };
    if values.next().is_some() {
        return Transfer::Malformed;
    }
    let value = value.as_bytes();
    if value.eq_ignore_ascii_case(b"chunked") {
        return Transfer::Chunked;
    }
    let mut chunked = 0;
    let mut last_is_chunked = false;
    for coding in value.split(|b| *b == b',') {
        let coding = coding.trim_ascii();
        if !is_token(coding) {
            return Transfer::Malformed;
        }
        last_is_chunked = coding.eq_ignore_ascii_case(b"chunked");
        chunked += usize::from(last_is_chunked);
    }
    if chunked > 1 || (chunked == 1 && !last_is_chunked) { Transfer::Malformed } else { Transfer::Unknown }
}

/// The members of a comma-separated list field, over all its lines, without surrounding whitespace; empty members are left out.
pub(super) fn list<'a>(map: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    map.get_all(name).iter().flat_map(|v| v.as_bytes().split(|b| *b == b',')).map(<[u8]>::trim_ascii).filter(|m| !m.is_empty())
}

/// What `Connection` says about persistence and upgrades.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ConnectionOptions {
    pub close: bool,
    pub keep_alive: bool,
    pub upgrade: bool,
}

pub(super) fn connection(map: &HeaderMap) -> ConnectionOptions {
    let mut options = ConnectionOptions::default();
    for option in list(map, &header::CONNECTION) {
        options.close |= option.eq_ignore_ascii_case(b"close");
        options.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        options.upgrade |= option.eq_ignore_ascii_case(b"upgrade");
    }
    options
}
