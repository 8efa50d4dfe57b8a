//! Which fields of a response may be kept, and which a client gets to see.

use crate::{Gate, Policy};
use http::{HeaderMap, HeaderName, HeaderValue, header};

/// RFC 9213: for this cache alone.
pub const WEIR_CACHE_CONTROL: HeaderName = HeaderName::from_static("weir-cache-control");
/// RFC 9213: for every cache that works on behalf of the origin.
pub const CDN_CACHE_CONTROL: HeaderName = HeaderName::from_static("cdn-cache-control");

/// Belong to one connection (RFC 9110 section 7.6.1, RFC 9111 section 3.1), or are made anew for every answer.
const NEVER_KEPT: [&str; 13] = [
    "connection",
    "proxy-connection",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "set-cookie",
    "set-cookie2",
    "cache-status",
];

/// Fields that steer caches. Where a page rule gives clients a `Cache-Control` of its own, the origin's are kept out of sight.
const CONTROL: [&str; 6] =
    ["cache-control", "expires", "pragma", "cdn-cache-control", "weir-cache-control", "surrogate-control"];

/// Whether a field with this name may stand in a stored head.
pub fn may_keep(name: impl AsRef<[u8]>) -> bool {
    let name = name.as_ref();
    !(NEVER_KEPT.iter().any(|never| never.as_bytes() == name) || name == b"age" || name.starts_with(b"x-cache-"))
}

/// Which bytes a token, as field names are, may consist of (RFC 9110 section 5.6.2).
pub static TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut i = 0;
    while i < 256 {
        let b = i as u8;
        table[i] = b.is_ascii_alphanumeric()
            || matches!(b, b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~');
        i += 1;
    }
    table
};

/// Whether this is a field name, in lower case.
pub fn is_lower_name(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|b| TOKEN[usize::from(*b)] && !b.is_ascii_uppercase())
}

/// Whether the bytes are field-content (RFC 9110 section 5.5): visible, SP, HTAB or obs-text.
pub fn is_value(value: &[u8]) -> bool {
    // Without an early exit the compiler makes vector code of this loop.
    !value.iter().fold(false, |bad, &b| bad | ((b < 0x20) & (b != b'\t')) | (b == 0x7f))
}

/// The fields that may stand in a stored head.
pub fn keepable(headers: &HeaderMap) -> HeaderMap {
    let listed = connection_listed(headers);
    let mut kept = HeaderMap::new();
    for (name, value) in headers.iter().filter(|(name, _)| may_keep(name) && !listed.contains(name)) {
        kept.append(name.clone(), value.clone());
    }
    kept
}

/// The names that `Connection` lists (RFC 9110 section 7.6.1): they go no further than this hop.
pub fn connection_listed(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .collect()
}

/// An origin's fields, sorted by who may see them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Split {
    /// For clients, without `Content-Length`.
    pub shown: HeaderMap,
    /// The origin's caching fields that clients do not see; needed again when a 304 renews the entry.
    pub hidden: HeaderMap,
    /// Whether `shown` has the rule's `Cache-Control` instead of the origin's.
    pub replaced: bool,
}

/// Sorts `headers`. `strip`: fields that `private="…"` or `no-cache="…"` name.
pub fn split(headers: &HeaderMap, strip: &[HeaderName], policy: &Policy) -> Split {
    let listed = connection_listed(headers);
    let replaced = policy.client_cache_control.is_some();
    let mut split = Split { replaced, ..Split::default() };
    for (name, value) in headers {
        if !may_keep(name) || listed.contains(name) || strip.contains(name) || *name == header::CONTENT_LENGTH {
            continue;
        }
        // What the origin's own cache thought when it made the page is of no use to a client that gets a copy.
        if policy.gate == Gate::Html && name == "x-nextjs-cache" {
            continue;
        }
        let hide = *name == WEIR_CACHE_CONTROL || (replaced && CONTROL.contains(&name.as_str()));
        let target = if hide { &mut split.hidden } else { &mut split.shown };
        target.append(name.clone(), value.clone());
    }
    if let Some(value) = &policy.client_cache_control {
        split.shown.insert(header::CACHE_CONTROL, value.clone());
    }
    split
}

/// Adds a name to `Vary`, unless it is there already or `*` is.
pub fn add_vary(headers: &mut HeaderMap, name: HeaderName) {
    let text = joined(headers, &header::VARY).unwrap_or_default();
    let mut names = text.split(',').map(str::trim);
    if names.any(|there| there == "*" || there.eq_ignore_ascii_case(name.as_str())) {
        return;
    }
    let text = text.trim_matches([' ', '\t', ',']);
    let grown = if text.is_empty() { name.as_str().to_owned() } else { format!("{text}, {name}") };
    if let Ok(value) = HeaderValue::from_str(&grown) {
        headers.insert(header::VARY, value);
    }
}

/// Appends `name: value` and CRLF.
pub fn write_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.trim_ascii());
    out.extend_from_slice(b"\r\n");
}

/// Appends all fields as lines.
pub fn write_fields(out: &mut Vec<u8>, headers: &HeaderMap) {
    for (name, value) in headers {
        write_field(out, name.as_str().as_bytes(), value.as_bytes());
    }
}

/// The one value of a field that may stand once; `None` if it is missing, repeated or not ASCII.
pub fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut all = headers.get_all(name).iter();
    let first = all.next()?;
    if all.next().is_some() {
        return None;
    }
    first.to_str().ok().map(str::trim)
}

/// All values of a list field, joined with commas; `None` if the field is missing. Bytes that are not ASCII become `?`.
pub fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let mut text = None::<String>;
    for value in headers.get_all(name) {
        let text = text.get_or_insert_default();
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.extend(value.as_bytes().iter().map(|&b| if b.is_ascii() { b as char } else { '?' }));
    }
    text
}

/// Seconds since 1970 of a field with an HTTP date (RFC 9110 section 5.6.7); `None` if it is missing, repeated or malformed.
pub fn date(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    parse_date(single(headers, name)?)
}

/// Seconds since 1970 of an HTTP date. Names of days and months count in any case (RFC 9111 section 4.2).
pub fn parse_date(text: &str) -> Option<u64> {
    let text = text.trim();
    let time = httpdate::parse_http_date(text).or_else(|_| httpdate::parse_http_date(&capitalized(text))).ok()?;
    time.duration_since(std::time::UNIX_EPOCH).ok().map(|d| d.as_secs())
}

fn capitalized(date: &str) -> String {
    let mut within = false;
    let cased = date.chars().map(|c| {
        let first = !std::mem::replace(&mut within, c.is_ascii_alphabetic());
        if first { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() }
    });
    cased.collect::<String>().replace(" Gmt", " GMT")
}

/// An HTTP date.
pub fn format_date(unix_seconds: u64) -> HeaderValue {
    // The last second that the format can show is that of the year 9999.
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(unix_seconds.min(253_402_300_799));
    HeaderValue::from_str(&httpdate::fmt_http_date(time)).unwrap_or_else(|_| HeaderValue::from_static("0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same as the crate that reads them from clients says.
    #[test]
    fn what_may_stand_in_names_and_values() {
        for byte in 0..=255u8 {
            for text in [vec![byte], vec![b'a', byte, b'z'], [vec![b'x'; 40], vec![byte]].concat()] {
                let lower = HeaderName::from_bytes(&text).is_ok() && !byte.is_ascii_uppercase();
                assert_eq!(is_lower_name(&text), lower, "{byte}");
                assert_eq!(is_value(&text), HeaderValue::from_bytes(&text).is_ok(), "{byte}");
            }
        }
        assert!(!is_lower_name(b"") && is_value(b""));
    }

    #[test]
    fn names_listed_by_connection_are_found() {
        let mut headers = HeaderMap::new();
        headers.append(header::CONNECTION, HeaderValue::from_static("close, X-Hop"));
        headers.append(header::CONNECTION, HeaderValue::from_static("x-other"));
        assert_eq!(connection_listed(&headers), ["close", "x-hop", "x-other"]);
    }

    #[test]
    fn dates_are_read_in_all_three_forms() {
        for text in ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            assert_eq!(parse_date(text), Some(784111777), "{text}");
        }
        for text in ["sun, 06 nov 1994 08:49:37 gmt", "SUN, 06 NOV 1994 08:49:37 GMT"] {
            assert_eq!(parse_date(text), Some(784111777), "{text}");
        }
        for text in ["0", "Sun, 06 Nov 1994 08:49:37 UTC", "Sun, 06 Nov 1994 08:49:37 EST", "Sun, 06 Nov 1994 08:49:37"] {
            assert_eq!(parse_date(text), None, "{text}");
        }
        assert_eq!(format_date(784111777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(format_date(u64::MAX), "Fri, 31 Dec 9999 23:59:59 GMT");
    }
}
