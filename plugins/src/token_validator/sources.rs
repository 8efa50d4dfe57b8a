//! Where a request's token is.

use super::{Refusal, invalid, settings::FoundIn};
use crate::cookies;
use http::{HeaderMap, HeaderValue, header};
use percent_encoding::percent_decode_str;
use std::borrow::Cow;

/// The one token of a request. Errors: there is none; there are several that differ.
pub(super) fn find<'a>(sources: &'a [FoundIn], headers: &'a HeaderMap, query: Option<&'a str>) -> Result<Cow<'a, str>, Refusal> {
    let mut found: Option<Cow<'a, str>> = None;
    let mut take = |token: Cow<'a, str>| match &found {
        Some(first) if *first != token => Err(invalid("the request has several tokens that differ")),
        Some(_) => Ok(()),
        None => {
            found = Some(token);
            Ok(())
        }
    };
    for source in sources {
        match source {
            FoundIn::Header(name) => {
                let bare = name != header::AUTHORIZATION;
                for token in headers.get_all(name).iter().filter_map(|v| in_field(v, bare)) {
                    take(token?)?;
                }
            }
            FoundIn::Cookie(name) => cookies::named(headers, name).try_for_each(|token| take(Cow::Borrowed(token)))?,
            FoundIn::Query(name) => in_query(query.unwrap_or_default(), name).try_for_each(&mut take)?,
        }
    }
    found.ok_or(Refusal::Missing)
}

/// The token in a header field; `None` if it speaks of something else. `bare`: the token may stand without `Bearer`.
fn in_field(value: &HeaderValue, bare: bool) -> Option<Result<Cow<'_, str>, Refusal>> {
    // `to_str` would look at each byte by itself.
    let ascii = Some(value.as_bytes()).filter(|bytes| bytes.is_ascii());
    let Some(text) = ascii.and_then(|bytes| std::str::from_utf8(bytes.trim_ascii()).ok()) else { return Some(Err(invalid("the token is malformed"))) };
    let (scheme, rest) = memchr::memchr(b' ', text.as_bytes()).map_or((text, ""), |at| (&text[..at], &text[at + 1..]));
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(Ok(Cow::Borrowed(rest.trim())));
    }
    (bare && !text.is_empty()).then_some(Ok(Cow::Borrowed(text)))
}

fn in_query<'a>(query: &'a str, name: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
    let named = move |pair: &'a str| pair.split_once('=').filter(|(key, _)| percent_decode_str(key).decode_utf8_lossy() == name);
    query.split('&').filter_map(named).map(|(_, value)| percent_decode_str(value).decode_utf8_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderName;
    use proptest::prelude::*;

    fn sources() -> Vec<FoundIn> {
        vec![
            FoundIn::Header(header::AUTHORIZATION),
            FoundIn::Header(HeaderName::from_static("x-token")),
            FoundIn::Cookie("t".into()),
            FoundIn::Query("t".into()),
        ]
    }

    proptest! {
        /// Whatever a client sends in whichever places: what is found stands in one of them, and two different ones are never chosen from.
        #[test]
        fn any_request_is_survived(
            fields in proptest::collection::vec(("authorization|x-token|cookie", "(Bearer |bearer  |t=|)[a-c=; \"]{0,6}"), 0..5),
            query in proptest::option::of("(t=[a-c%0-9]{0,4}&?){0,3}"),
        ) {
            let mut headers = HeaderMap::new();
            for (name, value) in &fields {
                if let Ok(value) = HeaderValue::from_str(value) {
                    headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
                }
            }
            let sources = sources();
            let all = find(&sources, &headers, query.as_deref());
            let each: Vec<_> = sources.chunks(1).map(|one| find(one, &headers, query.as_deref())).collect();
            match all {
                Ok(token) => {
                    prop_assert!(each.iter().all(|found| matches!(found, Err(Refusal::Missing)) || found.as_ref() == Ok(&token)));
                    prop_assert!(each.iter().any(|found| found.as_ref() == Ok(&token)));
                }
                Err(Refusal::Missing) => prop_assert!(each.iter().all(|found| *found == Err(Refusal::Missing))),
                Err(_) => {
                    let mut good: Vec<_> = each.iter().flatten().collect();
                    good.sort();
                    good.dedup();
                    prop_assert!(good.len() > 1 || each.iter().any(|found| matches!(found, Err(Refusal::Invalid(_)))));
                }
            }
        }
    }
}
