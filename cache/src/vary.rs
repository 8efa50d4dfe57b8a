//! Secondary keys (RFC 9111 section 4.1): which request fields a response was chosen by, and what they were.

use crate::{CacheRequest, Gate, fields};
use http::{HeaderMap, HeaderName, header};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;

/// Fields that a page may name without its key growing: RSC requests never reach a page's key, and Weir sets the encoding itself.
const PAGE_FIELDS: [&str; 6] = [
    "rsc",
    "next-router-state-tree",
    "next-router-prefetch",
    "next-router-segment-prefetch",
    "next-url",
    "accept-encoding",
];

/// The most fields that a secondary key may have; a response that names more is not stored.
const MOST_FIELDS: usize = 12;

/// What a primary key's responses vary by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Field names, sorted.
    pub fields: Vec<HeaderName>,
    /// Chosen when the spec was first made. Part of every variant's key, so that removing the spec removes all variants at once.
    pub generation: u64,
    /// When this process read or made it, milliseconds since 1970. Not stored.
    pub read_ms: u64,
}

impl Spec {
    /// The variant that a request asks for: the generation and a hash of the named fields' normalized values.
    pub fn variant(&self, headers: &HeaderMap) -> String {
        let mut hasher = Sha256::new();
        for name in &self.fields {
            hasher.update(name.as_str().as_bytes());
            match normalized(headers, name) {
                Some(value) => {
                    hasher.update([1]);
                    hasher.update((value.len() as u64).to_be_bytes());
                    hasher.update(&value);
                }
                None => hasher.update([0]),
            }
        }
        let mut text = format!("{:016x}-", self.generation);
        for byte in &hasher.finalize()[..16] {
            let _ = write!(text, "{byte:02x}");
        }
        text
    }

    /// Bytes that it costs in memory beyond its slot.
    pub fn weight(&self) -> u64 {
        self.fields.iter().map(|name| name.as_str().len() as u64 + 40).sum()
    }

    /// This spec with more fields, if any of `named` is new; the generation stays.
    pub fn grown(&self, named: &[HeaderName]) -> Option<Spec> {
        let mut fields = self.fields.clone();
        fields.extend(named.iter().filter(|name| !self.fields.contains(name)).cloned());
        if fields.len() == self.fields.len() {
            return None;
        }
        fields.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        Some(Spec { fields, generation: self.generation, read_ms: self.read_ms })
    }
}

/// The fields by which this response must be kept apart from its siblings. `Err`: it must not be stored, with the reason.
///
/// Pages ([`Gate::Html`]) may name the fields of Next.js's router and `Accept-Encoding` (ignored: none of them reaches a page's fill);
/// anything else is refused. Elsewhere every field becomes part of the key, except `Accept-Encoding` on a response that is not encoded,
/// which suits everyone. `Cookie` and `Authorization` are refused: a copy per visitor is no shared cache's business.
pub fn secondary(response: &HeaderMap, request: &CacheRequest, gate: Gate) -> Result<Vec<HeaderName>, &'static str> {
    let mut named = Vec::new();
    let encoded = is_encoded(response);
    for value in response.get_all(header::VARY) {
        let Ok(text) = value.to_str() else { return Err("vary") };
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            // `*` is no field name: such a response matches no later request (RFC 9111 section 4.1).
            if item == "*" {
                return Err("vary");
            }
            let Ok(name) = HeaderName::from_bytes(item.as_bytes()) else { return Err("vary") };
            match gate {
                Gate::Html if PAGE_FIELDS.contains(&name.as_str()) => continue,
                Gate::Html => return Err("vary"),
                Gate::Plain => {}
            }
            if name == header::COOKIE || name == header::AUTHORIZATION {
                return Err("vary");
            }
            if name == header::ACCEPT_ENCODING && !encoded {
                continue;
            }
            // The fill did not send this client's fields, so its answer says nothing about them.
            if !request.fill_is_own {
                return Err("vary");
            }
            if !named.contains(&name) {
                named.push(name);
            }
        }
    }
    if encoded && !named.contains(&header::ACCEPT_ENCODING) {
        return Err("encoded");
    }
    if named.len() > MOST_FIELDS {
        return Err("vary");
    }
    named.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    Ok(named)
}

/// Whether `fresh` names fields in `Vary` that `stored` does not. `Accept-Encoding` does not count: a body that is not encoded suits everyone.
pub(crate) fn names_more(stored: &HeaderMap, fresh: &HeaderMap) -> bool {
    let text = |headers| fields::joined(headers, &header::VARY).unwrap_or_default();
    let (stored, fresh) = (text(stored), text(fresh));
    let known = |name: &str| stored.split(',').any(|there| there.trim().eq_ignore_ascii_case(name));
    fresh.split(',').map(str::trim).any(|name| !name.is_empty() && !name.eq_ignore_ascii_case("accept-encoding") && !known(name))
}

/// Whether the body has a coding other than identity.
pub fn is_encoded(response: &HeaderMap) -> bool {
    response
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .any(|value| !value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity"))
}

fn normalized(headers: &HeaderMap, name: &HeaderName) -> Option<Vec<u8>> {
    if *name == header::ACCEPT_ENCODING {
        return fields::joined(headers, name).map(|text| accept_encoding(&text).into_bytes());
    }
    let mut out: Option<Vec<u8>> = None;
    for value in headers.get_all(name) {
        let out = out.get_or_insert_default();
        if !out.is_empty() {
            out.push(b',');
        }
        // Leading, trailing and repeated white space makes no difference.
        for (index, word) in value.as_bytes().split(|b| matches!(b, b' ' | b'\t')).filter(|w| !w.is_empty()).enumerate() {
            if index > 0 {
                out.push(b' ');
            }
            out.extend_from_slice(word);
        }
    }
    out
}

/// The codings among `br`, `gzip` and `zstd` that the client takes (`q` above 0, `*` counted), sorted and joined with commas: requests
/// that differ only in spelling, order or weights share a variant.
pub fn accept_encoding(text: &str) -> String {
    let known = ["br", "gzip", "zstd"];
    let mut taken = [None::<bool>; 3];
    let mut others = None;
    for item in text.split(',') {
        let mut parts = item.split(';');
        let coding = parts.next().unwrap_or("").trim();
        let refused = parts.any(|part| {
            part.trim()
                .split_once('=')
                .is_some_and(|(name, value)| {
                    name.trim().eq_ignore_ascii_case("q") && value.trim().parse::<f32>().map_or(true, |q| q <= 0.0)
                })
        });
        let coding = if coding.eq_ignore_ascii_case("x-gzip") { "gzip" } else { coding };
        if coding == "*" {
            others = Some(!refused);
        } else if let Some(index) = known.iter().position(|name| coding.eq_ignore_ascii_case(name)) {
            taken[index] = Some(!refused);
        }
    }
    let mut out = String::new();
    for (index, name) in known.iter().enumerate() {
        if taken[index].or(others).unwrap_or(false) {
            if !out.is_empty() {
                out.push(',');
            }
            out.push_str(name);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderValue, Method};

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn request(fill_is_own: bool) -> CacheRequest {
        CacheRequest { method: Method::GET, headers: HeaderMap::new(), refresh: false, fill_is_own }
    }

    #[test]
    fn accept_encoding_is_reduced_to_what_matters() {
        for (from, to) in [
            ("gzip, deflate, br", "br,gzip"),
            ("br;q=1.0, gzip;q=0.8, *;q=0.1", "br,gzip,zstd"),
            ("gzip;q=0, *", "br,zstd"),
            ("GZIP", "gzip"),
            ("identity", ""),
            ("br;q=0.000", ""),
            ("x-gzip", "gzip"),
            ("br;q=nonsense", ""),
            ("", ""),
        ] {
            assert_eq!(accept_encoding(from), to, "{from}");
        }
    }

    #[test]
    fn pages_may_name_the_router_s_fields_and_no_other() {
        let next = headers(&[("vary", "rsc, next-router-state-tree, Next-Url, Accept-Encoding")]);
        assert_eq!(secondary(&next, &request(false), Gate::Html), Ok(vec![]));
        for other in ["cookie", "user-agent", "accept-language", "*", "rsc, *", "a b"] {
            assert_eq!(secondary(&headers(&[("vary", other)]), &request(false), Gate::Html), Err("vary"), "{other}");
        }
    }

    #[test]
    fn other_responses_are_kept_apart_by_the_named_fields() {
        let varied = headers(&[("vary", "Origin, Accept-Language, accept-encoding")]);
        let names = secondary(&varied, &request(true), Gate::Plain).expect("storable");
        assert_eq!(names, ["accept-language", "origin"]);
        let spec = Spec { fields: names, generation: 7, read_ms: 0 };
        let en = spec.variant(&headers(&[("accept-language", "en,  de")]));
        assert_eq!(en, spec.variant(&headers(&[("accept-language", " en, de "), ("user-agent", "x")])));
        assert_ne!(en, spec.variant(&headers(&[("accept-language", "de, en")])));
        assert_ne!(spec.variant(&headers(&[])), spec.variant(&headers(&[("origin", "")])), "absent is not empty");
        assert_eq!(secondary(&varied, &request(false), Gate::Plain), Err("vary"), "the fill did not carry the client's fields");
        for refused in ["*", "cookie", "Authorization"] {
            assert_eq!(secondary(&headers(&[("vary", refused)]), &request(true), Gate::Plain), Err("vary"));
        }
    }

    #[test]
    fn encoded_responses_need_a_vary_that_says_so() {
        let named = headers(&[("content-encoding", "gzip"), ("vary", "accept-encoding")]);
        assert_eq!(secondary(&named, &request(true), Gate::Plain).expect("storable"), ["accept-encoding"]);
        assert_eq!(secondary(&headers(&[("content-encoding", "gzip")]), &request(true), Gate::Plain), Err("encoded"));
        assert_eq!(secondary(&named, &request(false), Gate::Html), Err("encoded"));
    }

    #[test]
    fn a_spec_grows_and_keeps_its_generation() {
        let spec = Spec { fields: vec![HeaderName::from_static("origin")], generation: 7, read_ms: 0 };
        assert_eq!(spec.grown(&[HeaderName::from_static("origin")]), None);
        let grown = spec.grown(&[HeaderName::from_static("accept")]).expect("grew");
        assert_eq!((grown.fields.len(), grown.generation), (2, 7));
        assert_eq!(grown.fields[0], "accept");
    }
}
