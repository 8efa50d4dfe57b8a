//! Reading and changing the query of a target (`a=1&b=2`).

use crate::pairs::{self, Pairs};
use http::{Uri, request};

/// The values of every parameter called `name`, in the order sent. One without `=` has none.
pub(crate) fn values<'a>(query: &'a str, name: &'a str) -> impl Iterator<Item = String> + 'a {
    pairs::read(query).filter(move |(n, _)| n == name).filter_map(|(_, value)| value)
}

/// Whether there is a parameter called `name`, with or without a value.
pub(crate) fn has(query: &str, name: &str) -> bool {
    pairs::read(query).any(|(n, _)| n == name)
}

/// Removes every parameter called `name` from the target.
pub(crate) fn remove(req: &mut request::Parts, name: &str) {
    let Some(query) = req.uri.query() else { return };
    let mut pairs = Pairs::parse(query);
    if !pairs.has(name) {
        return;
    }
    pairs.remove(name);
    let path = req.uri.path();
    let target = if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.text()) };
    let mut parts = req.uri.clone().into_parts();
    parts.path_and_query = target.parse().ok();
    if let Ok(uri) = Uri::from_parts(parts) {
        req.uri = uri;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use proptest::prelude::*;

    fn without(uri: &str, name: &str) -> String {
        let mut parts = Request::builder().uri(uri).body(()).unwrap().into_parts().0;
        remove(&mut parts, name);
        parts.uri.to_string()
    }

    #[test]
    fn parameters_are_found_and_removed() {
        assert_eq!(values("a=1&b=2&a=x%20y+z&a&aa=3", "a").collect::<Vec<_>>(), ["1", "x y z"]);
        for (uri, name, rest) in [
            ("/p?a=1&b=2", "a", "/p?b=2"),
            ("/p?a=1", "a", "/p"),
            ("/p?%61=1&b=%2F", "a", "/p?b=%2F"),
            ("/p?b=1", "a", "/p?b=1"),
            ("/p", "a", "/p"),
            ("http://h:1/p?a&b", "a", "http://h:1/p?b"),
        ] {
            assert_eq!(without(uri, name), rest, "{uri}");
        }
    }

    proptest! {
        #[test]
        fn what_is_removed_is_gone(query in "[a-c=&%+0-9]{0,40}", name in "[a-c]{1,2}") {
            let left = without(&format!("/p?{query}"), &name);
            let left = left.split_once('?').map_or("", |(_, q)| q).to_owned();
            prop_assert_eq!(values(&left, &name).count(), 0);
        }
    }
}
