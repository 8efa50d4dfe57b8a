//! What a client is told about the cache: `Cache-Status` (RFC 9211) and the one word of `X-Cache-Status`.

use crate::{Report, Verdict};
use http::{HeaderMap, HeaderName, HeaderValue};

/// `Cache-Status`.
pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
/// `X-Cache-Status`.
pub const X_CACHE_STATUS: HeaderName = HeaderName::from_static("x-cache-status");

/// An extension of an answer whose `X-Cache-Status` is a word of Kong's: see [`kongs_word`].
#[derive(Debug, Clone, Copy)]
pub struct KongsWords;

/// The word of `X-Cache-Status` as Kong writes it: `Hit` for `HIT`. An answer that was fetched and is not kept is a `Bypass`.
pub fn kongs_word(report: &Report) -> &'static str {
    match report.verdict {
        Verdict::Hit => "Hit",
        Verdict::Miss if report.stored || report.collapsed => "Miss",
        Verdict::Miss | Verdict::Bypass => "Bypass",
        Verdict::Stale => "Stale",
        Verdict::Refresh => "Refresh",
    }
}

impl Verdict {
    /// The word of `X-Cache-Status`.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Hit => "HIT",
            Verdict::Miss => "MISS",
            Verdict::Stale => "STALE",
            Verdict::Bypass => "BYPASS",
            Verdict::Refresh => "REFRESH",
        }
    }
}

/// Appends the value of `Cache-Status` for this cache. `with_key`: whether to show the key. Allocates nothing if `out` has room.
pub fn write_cache_status(out: &mut Vec<u8>, report: &Report, with_key: bool) {
    out.extend_from_slice(b"Weir");
    match (report.verdict, report.fwd) {
        (Verdict::Hit | Verdict::Stale, None) => out.extend_from_slice(b"; hit"),
        (_, fwd) => {
            out.extend_from_slice(b"; fwd=");
            out.extend_from_slice(fwd.unwrap_or("bypass").as_bytes());
        }
    }
    if let Some(status) = report.fwd_status {
        out.extend_from_slice(b"; fwd-status=");
        out.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
    }
    if let Some(ttl) = report.ttl {
        out.extend_from_slice(b"; ttl=");
        out.extend_from_slice(itoa::Buffer::new().format(ttl).as_bytes());
    }
    if report.stored {
        out.extend_from_slice(b"; stored");
    }
    if report.collapsed {
        out.extend_from_slice(b"; collapsed");
    }
    if let Some(key) = report.key.as_ref().filter(|_| with_key) {
        write_key(out, key);
    }
    if let Some(detail) = report.detail {
        out.extend_from_slice(b"; detail=");
        out.extend_from_slice(detail.as_bytes());
        if let Some(because) = report.because {
            out.push(b':');
            out.extend_from_slice(because.as_bytes());
        }
    }
}

/// Appends the value of `Cache-Status` for a hit, from what the fast lane knows. Allocates nothing if `out` has room.
pub fn write_hit(out: &mut Vec<u8>, ttl: i64, key: Option<&str>) {
    out.extend_from_slice(b"Weir; hit; ttl=");
    out.extend_from_slice(itoa::Buffer::new().format(ttl).as_bytes());
    if let Some(key) = key {
        write_key(out, key);
    }
}

/// `; key="…"`, as a structured-field string: printable ASCII, quotes and backslashes escaped; other bytes as `%XX`.
fn write_key(out: &mut Vec<u8>, key: &str) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    out.extend_from_slice(b"; key=\"");
    for &byte in key.as_bytes() {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b' '..=b'~' => out.push(byte),
            _ => out.extend_from_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]),
        }
    }
    out.push(b'"');
}

/// The value of `Cache-Status`.
pub fn cache_status(report: &Report, with_key: bool) -> HeaderValue {
    let mut text = Vec::with_capacity(128);
    write_cache_status(&mut text, report, with_key);
    HeaderValue::from_maybe_shared(bytes::Bytes::from(text)).unwrap_or_else(|_| HeaderValue::from_static("Weir"))
}

/// Appends `Cache-Status` to what caches nearer to the origin said (RFC 9211 section 2), and sets `X-Cache-Status`.
pub fn set_headers(headers: &mut HeaderMap, report: &Report, with_key: bool) {
    headers.append(CACHE_STATUS, cache_status(report, with_key));
    headers.insert(X_CACHE_STATUS, HeaderValue::from_static(report.verdict.word()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(report: &Report) -> String {
        cache_status(report, true).to_str().expect("ASCII").to_owned()
    }

    #[test]
    fn rfc9211_2_parameters() {
        let hit = Report { ttl: Some(57), key: Some("html_cache:shop.example.com/".into()), ..Report::new(Verdict::Hit) };
        assert_eq!(text(&hit), "Weir; hit; ttl=57; key=\"html_cache:shop.example.com/\"");
        let mut fast = Vec::new();
        write_hit(&mut fast, 57, hit.key.as_deref());
        assert_eq!(fast, text(&hit).as_bytes());
        let stale = Report { ttl: Some(-3), detail: Some("stale-while-revalidate"), ..Report::new(Verdict::Stale) };
        assert_eq!(text(&stale), "Weir; hit; ttl=-3; detail=stale-while-revalidate");
        let miss = Report { fwd: Some("uri-miss"), fwd_status: Some(200), stored: true, collapsed: true, ..Report::new(Verdict::Miss) };
        assert_eq!(text(&miss), "Weir; fwd=uri-miss; fwd-status=200; stored; collapsed");
        let known = Report { fwd: Some("uri-miss"), detail: Some("hit-for-miss"), because: Some("nonce"), ..Report::new(Verdict::Bypass) };
        assert_eq!(text(&known), "Weir; fwd=uri-miss; detail=hit-for-miss:nonce");
        let pass = Report { fwd: Some("uri-miss"), fwd_status: Some(200), detail: Some("set-cookie"), ..Report::new(Verdict::Bypass) };
        assert_eq!(text(&pass), "Weir; fwd=uri-miss; fwd-status=200; detail=set-cookie");
    }

    #[test]
    fn fields_are_appended_and_set() {
        let mut headers = HeaderMap::new();
        headers.insert(CACHE_STATUS, HeaderValue::from_static("Origin; hit"));
        set_headers(&mut headers, &Report { fwd: Some("uri-miss"), ..Report::new(Verdict::Miss) }, false);
        let all: Vec<_> = headers.get_all(CACHE_STATUS).iter().collect();
        assert_eq!(all, ["Origin; hit", "Weir; fwd=uri-miss"]);
        assert_eq!(headers[X_CACHE_STATUS], "MISS");
    }

    proptest! {
        #[test]
        fn any_key_makes_a_field_value(key in "\\PC*") {
            let report = Report { key: Some(key), ..Report::new(Verdict::Hit) };
            prop_assert!(text(&report).starts_with("Weir; hit; key=\""));
        }
    }
}
