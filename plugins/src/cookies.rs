//! Reading `Cookie` (RFC 6265 section 4.2).

use http::{HeaderMap, header};

/// The values of every cookie called `name`, in the order sent, without surrounding quotes.
pub(crate) fn named<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(';'))
        .filter_map(|pair| pair.split_once('='))
        .filter(move |(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim())
        .map(|value| value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    #[test]
    fn cookies_are_found_over_several_fields() {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, HeaderValue::from_static("a=1; token=\"x\"; b"));
        headers.append(header::COOKIE, HeaderValue::from_static("token=y=z;tokens=no"));
        assert_eq!(named(&headers, "token").collect::<Vec<_>>(), ["x", "y=z"]);
        assert_eq!(named(&headers, "c").count(), 0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(0x20u8..=0xff, 0..200)) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                headers.append(header::COOKIE, value);
            }
            let _ = named(&headers, "a").count();
        }
    }
}
