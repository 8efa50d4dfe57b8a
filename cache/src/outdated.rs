//! What an unsafe request outdates (RFC 9111 section 4.4): the answer at its own address, and those that its answer names.

use http::{HeaderMap, StatusCode, Uri, header};
use url::Url;

/// Whether an answer with this status says that something may have changed: anything but an error.
pub fn may_have_changed(status: StatusCode) -> bool {
    status.is_success() || status.is_redirection()
}

/// Path and query of what `Location` and `Content-Location` name, if it is of the origin that was asked; references are resolved against the
/// request's own address. Other origins are not ours to outdate.
pub fn named(headers: &HeaderMap, scheme: &str, host: &str, target: &Uri) -> Vec<Uri> {
    if !headers.contains_key(header::LOCATION) && !headers.contains_key(header::CONTENT_LOCATION) {
        return Vec::new();
    }
    let path = target.path_and_query().map_or("/", |path| path.as_str());
    let Ok(base) = Url::parse(&format!("{scheme}://{host}{path}")) else { return Vec::new() };
    let mut found: Vec<Uri> = Vec::new();
    for name in [header::LOCATION, header::CONTENT_LOCATION] {
        let Some(url) = crate::fields::single(headers, &name).and_then(|text| base.join(text).ok()) else { continue };
        if url.origin() != base.origin() {
            continue;
        }
        let path = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
        if let Ok(uri) = path.parse::<Uri>()
            && uri.path_and_query() != target.path_and_query()
            && !found.contains(&uri)
        {
            found.push(uri);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn of(location: &str, content_location: &str) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in [(header::LOCATION, location), (header::CONTENT_LOCATION, content_location)] {
            if !value.is_empty() {
                headers.insert(name, HeaderValue::from_str(value).expect("value"));
            }
        }
        let target = "/orders/new?x=1".parse().expect("target");
        named(&headers, "https", "Shop.example.com", &target).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rfc9111_4_4_of_the_same_origin_only() {
        for (location, expected) in [
            ("/orders/7", &["/orders/7"][..]),
            ("7?y=2#there", &["/orders/7?y=2"]),
            ("../cart", &["/cart"]),
            ("https://shop.example.com/orders/7", &["/orders/7"]),
            ("https://SHOP.example.com:443/orders/7", &["/orders/7"]),
            ("//shop.example.com/orders/7", &["/orders/7"]),
            ("https://shop.example.com", &["/"]),
            ("http://shop.example.com/orders/7", &[]),
            ("https://shop.example.com:8443/orders/7", &[]),
            ("https://evil.example/orders/7", &[]),
            ("//evil.example/orders/7", &[]),
            ("javascript:alert(1)", &[]),
            ("", &[]),
        ] {
            assert_eq!(of(location, ""), expected, "{location}");
            assert_eq!(of("", location), expected, "{location}");
        }
        assert_eq!(of("/a", "/b"), ["/a", "/b"]);
        assert_eq!(of("/a", "/a"), ["/a"]);
        assert_eq!(of("/orders/new?x=1", ""), [""; 0], "the target itself is known already");
    }

    proptest! {
        #[test]
        fn no_value_breaks_the_reader(text in "\\PC{0,40}", host in "\\PC{0,12}") {
            if let Ok(value) = HeaderValue::from_str(&text) {
                named(&[(header::LOCATION, value)].into_iter().collect(), "http", &host, &Uri::from_static("/a"));
            }
        }
    }
}
