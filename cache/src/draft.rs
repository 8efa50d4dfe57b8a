//! A response on its way to become an [`Entry`]: which of its fields are shown, its validator and tags, and what it takes over from the
//! entry before it.

use crate::{
    Entry, Gate, Policy, codec,
    encode::{self, Bodies, Codings},
    entry::{CODINGS_AT, MADE_ETAG, Meta, NEVER_STALE, NO_MAX_STALE, REPLACED_CONTROL, TRIED_AT, millis},
    fields,
    memory::StoredKey,
    policy::Terms,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use sha2::{Digest, Sha256};
use std::{fmt::Write as _, time::Duration};

/// What an entry is made of.
pub struct Draft<'a> {
    /// What it is stored under.
    pub key: &'a StoredKey,
    /// Status.
    pub status: StatusCode,
    /// The origin's fields, hop-by-hop fields possibly among them.
    pub headers: &'a HeaderMap,
    /// The whole body, in pieces.
    pub body: &'a [Bytes],
    /// What the policy decided.
    pub terms: &'a Terms,
    /// The rules.
    pub policy: &'a Policy,
    /// How long the fetch took.
    pub fetch: Duration,
    /// What was stored before: if its body is the same, its encoded variants go on.
    pub prior: Option<&'a Entry>,
}

impl Draft<'_> {
    /// Puts the entry together.
    pub fn build(self) -> Entry {
        let mut split = fields::split(self.headers, &self.terms.strip, self.policy);
        let mut flags = 0;
        if split.replaced {
            flags |= REPLACED_CONTROL;
        }
        if self.terms.no_max_stale {
            flags |= NO_MAX_STALE;
        }
        if self.terms.never_stale {
            flags |= NEVER_STALE;
        }
        if self.policy.gate == Gate::Html && self.status == StatusCode::OK && !split.shown.contains_key(header::ETAG) {
            split.shown.insert(header::ETAG, made_etag(self.body));
            flags |= MADE_ETAG;
        }
        if !split.shown.contains_key(header::DATE) {
            // RFC 9110 section 6.6.1: a recipient with a clock adds the time of receipt when it keeps a message without Date.
            split.shown.insert(header::DATE, fields::format_date(self.terms.response_ms / 1000));
        }
        let length: usize = self.body.iter().map(Bytes::len).sum();
        let mut bodies = Bodies::default();
        let mut asked = Codings::NONE;
        if encode::negotiated(self.policy, self.headers) {
            fields::add_vary(&mut split.shown, header::ACCEPT_ENCODING);
            if encode::worth_it(length) {
                flags |= u16::from(self.policy.encodings.bits()) << CODINGS_AT;
                if let Some(prior) = self.prior.filter(|prior| prior.codings() == self.policy.encodings) {
                    if same(prior.body(), self.body) {
                        flags |= u16::from(prior.tried().bits()) << TRIED_AT;
                        bodies = prior.bodies();
                    }
                    // Who asked for the old page asks for the new one.
                    asked = prior.asked().and(prior.tried());
                }
            }
        }
        let head = write_head(self.status, &split.shown, length);
        let mut hidden = Vec::new();
        fields::write_fields(&mut hidden, &split.hidden);
        let meta = Meta {
            status: self.status.as_u16(),
            flags,
            response_ms: self.terms.response_ms,
            initial_age_ms: self.terms.initial_age_ms,
            lifetime_ms: millis(self.terms.lifetime),
            swr_ms: millis(self.terms.stale_while_revalidate),
            sie_ms: millis(self.terms.stale_if_error),
            fetch_ms: millis(self.fetch),
        };
        let tags = tags_of(self.headers, &self.policy.tags).join("\n");
        let entry = codec::assemble(&self.key.text(), meta, [&head, &hidden, tags.as_bytes()], self.body, &bodies);
        entry.inherit_asked(asked);
        entry
    }
}

/// Whether pieces make up a body.
fn same(body: &[u8], pieces: &[Bytes]) -> bool {
    let mut rest = body;
    for piece in pieces {
        match rest.strip_prefix(&piece[..]) {
            Some(after) => rest = after,
            None => return false,
        }
    }
    rest.is_empty()
}

/// A strong validator made from the body (RFC 9110 section 8.8.3).
fn made_etag(body: &[Bytes]) -> HeaderValue {
    let mut hasher = Sha256::new();
    for piece in body {
        hasher.update(piece);
    }
    let mut text = String::with_capacity(34);
    text.push('"');
    for byte in &hasher.finalize()[..16] {
        let _ = write!(text, "{byte:02x}");
    }
    text.push('"');
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("\"\""))
}

fn write_head(status: StatusCode, shown: &HeaderMap, length: usize) -> Vec<u8> {
    let mut head = Vec::with_capacity(64 + shown.len() * 40);
    head.extend_from_slice(b"HTTP/1.1 ");
    head.extend_from_slice(status.as_str().as_bytes());
    head.push(b' ');
    head.extend_from_slice(status.canonical_reason().unwrap_or("").as_bytes());
    head.extend_from_slice(b"\r\n");
    fields::write_fields(&mut head, shown);
    if status != StatusCode::NO_CONTENT {
        fields::write_field(&mut head, b"content-length", itoa::Buffer::new().format(length).as_bytes());
    }
    head
}

/// The tags of the rule, then those that `Cache-Tag`, `Surrogate-Key` and `x-next-cache-tags` name; each once, at most 256.
pub fn tags_of(headers: &HeaderMap, rule: &[String]) -> Vec<String> {
    let mut tags: Vec<String> = Vec::new();
    let mut add = |tag: &str| {
        let sane = !tag.is_empty() && tag.len() <= 256 && !tag.bytes().any(|b| b.is_ascii_control());
        if sane && tags.len() < 256 && !tags.iter().any(|known| known == tag) {
            tags.push(tag.to_owned());
        }
    };
    rule.iter().for_each(|tag| add(tag));
    for (name, separators) in [("cache-tag", ", "), ("surrogate-key", " "), ("x-next-cache-tags", ",")] {
        for value in headers.get_all(name) {
            if let Ok(text) = value.to_str() {
                text.split(|c| separators.contains(c)).for_each(|tag| add(tag.trim()));
            }
        }
    }
    tags
}
