//! Where a request's token is.

use super::{Refusal, invalid, settings::FoundIn};
use crate::cookies;
use http::{HeaderMap, HeaderValue, header};
use percent_encoding::percent_decode_str;
use std::borrow::Cow;

/// The one token of a request. Errors: there is none; there are several that differ.
pub(super) fn find<'a>(sources: &'a [FoundIn], headers: &'a HeaderMap, query: Option<&'a str>) -> Result<Cow<'a, str>, Refusal> {
    let mut found: Option<Cow<'a, str>> = None;
    for source in sources {
        let tokens: Vec<Cow<'a, str>> = match source {
            FoundIn::Header(name) => {
                let bare = name != header::AUTHORIZATION;
                headers.get_all(name).iter().filter_map(|v| in_field(v, bare)).collect::<Result<_, _>>()?
            }
            FoundIn::Cookie(name) => cookies::named(headers, name).map(Cow::Borrowed).collect(),
            FoundIn::Query(name) => in_query(query.unwrap_or_default(), name),
        };
        for token in tokens {
            match &found {
                Some(first) if *first != token => return Err(invalid("the request has several tokens that differ")),
                Some(_) => {}
                None => found = Some(token),
            }
        }
    }
    found.ok_or(Refusal::Missing)
}

/// The token in a header field; `None` if it speaks of something else. `bare`: the token may stand without `Bearer`.
fn in_field(value: &HeaderValue, bare: bool) -> Option<Result<Cow<'_, str>, Refusal>> {
    let Ok(text) = value.to_str() else { return Some(Err(invalid("the token is malformed"))) };
    let text = text.trim();
    let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(Ok(Cow::Borrowed(rest.trim())));
    }
    (bare && !text.is_empty()).then_some(Ok(Cow::Borrowed(text)))
}

fn in_query<'a>(query: &'a str, name: &str) -> Vec<Cow<'a, str>> {
    let named = |pair: &'a str| pair.split_once('=').filter(|(key, _)| percent_decode_str(key).decode_utf8_lossy() == name);
    query.split('&').filter_map(named).map(|(_, value)| percent_decode_str(value).decode_utf8_lossy()).collect()
}
