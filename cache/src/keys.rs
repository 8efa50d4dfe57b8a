//! Keys: one page, one key, however its URL is spelt; and what is not in the key is not sent to the origin either.

use std::borrow::Cow;

/// Query keys that follow visitors around and never change a page.
const TRACKING: [&str; 17] = [
    "gclid",
    "gbraid",
    "wbraid",
    "dclid",
    "fbclid",
    "msclkid",
    "ttclid",
    "twclid",
    "li_fat_id",
    "mc_cid",
    "mc_eid",
    "_ga",
    "_gl",
    "igshid",
    "yclid",
    "srsltid",
    // The router's cache-buster: without an RSC header the page is the same whatever it says.
    "_rsc",
];

/// A host in the form that keys and the origin see: lower case, no trailing dot, no port that is the default of `http` or `https`.
/// `None` for what is no host.
pub fn canonical_host(host: &str) -> Option<String> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']')?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            let port = if after.is_empty() { None } else { Some(after.strip_prefix(':')?) };
            (&host[..address.len() + 2], port)
        }
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    let sane = !name.is_empty() && name.len() <= 253 && (name.starts_with('[') || name.bytes().all(plain)) && !name.contains("..") && !name.starts_with('.');
    if !sane {
        return None;
    }
    match port {
        None | Some("" | "80" | "443") => Some(name),
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => {
            let port: u16 = port.parse().ok()?;
            Some(if matches!(port, 80 | 443) { name } else { format!("{name}:{port}") })
        }
        Some(_) => None,
    }
}

/// A path in the form that keys and the origin see: escapes of unreserved characters decoded, all other escapes in upper case, nothing
/// removed and nothing collapsed. Bytes that a path may not have bare (RFC 3986 section 3.3) are escaped. Idempotent.
pub fn normalize_path(path: &str) -> Cow<'_, str> {
    normalize_escapes(path, |b| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/".contains(&b))
}

fn normalize_escapes(text: &str, allowed: fn(u8) -> bool) -> Cow<'_, str> {
    if text.bytes().all(allowed) {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len() + 8);
    let escape = |out: &mut String, byte: u8| {
        const HEX: &[u8; 16] = b"0123456789ABCDEF";
        out.push('%');
        out.push(HEX[usize::from(byte >> 4)] as char);
        out.push(HEX[usize::from(byte & 15)] as char);
    };
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        if byte == b'%' {
            if let Some(decoded) = escaped(bytes, at) {
                if decoded.is_ascii_alphanumeric() || b"-._~".contains(&decoded) {
                    out.push(decoded as char);
                } else {
                    escape(&mut out, decoded);
                }
                at += 3;
                continue;
            }
            // A percent sign that begins no escape stays one, spelt so that it can not be taken for another.
            escape(&mut out, byte);
        } else if allowed(byte) {
            out.push(byte as char);
        } else {
            escape(&mut out, byte);
        }
        at += 1;
    }
    Cow::Owned(out)
}

/// The byte that `%XX` at this place stands for.
fn escaped(bytes: &[u8], at: usize) -> Option<u8> {
    let digit = |index: usize| bytes.get(index).and_then(|b| (*b as char).to_digit(16));
    Some((digit(at + 1)? * 16 + digit(at + 2)?) as u8)
}

/// Why two programs could take a path for different pages: `//`, `\`, `%5c`, `%2f`, escaped control bytes, dot segments (escaped ones too).
/// Such a path is neither cached nor passed on. `None`: there is nothing to say against it.
pub fn ambiguity(path: &str) -> Option<&'static str> {
    let bytes = path.as_bytes();
    if memchr::memchr(b'\\', bytes).is_some() {
        return Some("backslash in the path");
    }
    if bytes.windows(2).any(|two| two == b"//") {
        return Some("empty segment in the path");
    }
    let mut has_escapes = false;
    for at in memchr::memchr_iter(b'%', bytes) {
        has_escapes = true;
        match escaped(bytes, at) {
            Some(b'\\') => return Some("escaped backslash in the path"),
            Some(b'/') => return Some("escaped slash in the path"),
            Some(0..=0x1f | 0x7f) => return Some("escaped control byte in the path"),
            _ => {}
        }
    }
    // Some servers cut parameters (`;…`) off a segment before they look at its dots.
    let dots = |segment: &str| {
        let segment = if has_escapes { percent_encoding::percent_decode_str(segment).collect() } else { Cow::Borrowed(segment.as_bytes()) };
        matches!(segment.split(|b| *b == b';').next(), Some(b"." | b".."))
    };
    if memchr::memchr2(b'.', b'%', bytes).is_some() && path.split('/').any(dots) {
        return Some("dot segment in the path");
    }
    None
}

/// Which query keys a rule keeps.
#[derive(Debug, Clone, Copy, Default)]
pub struct QueryRule<'a> {
    /// Keep these only; `None`: all but tracking and internal keys.
    pub allow: Option<&'a [String]>,
    /// Drop these too.
    pub ignore: &'a [String],
}

/// A query, reduced.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Query {
    /// For the key: empty, or `?` and the pairs.
    pub key: String,
    /// For the fill's request: the same pairs, without `?`; `None`: no query. Equal keys always ask the origin the same thing.
    pub forward: Option<String>,
}

/// Reduces a page's query (without `?`): tracking keys, internal keys and those that the rule does not want are dropped, the rest is sorted by key;
/// pairs with equal keys keep their order.
pub fn reduce_query(query: &str, rule: QueryRule<'_>) -> Query {
    let mut pairs: Vec<(Vec<u8>, Cow<'_, str>)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .filter_map(|pair| {
            let name = decoded_name(pair);
            let listed = |list: &[String]| list.iter().any(|known| known.as_bytes() == name);
            let keep = !is_internal(&name) && !is_tracking(&name) && !listed(rule.ignore) && rule.allow.is_none_or(listed);
            keep.then(|| {
                let text = normalize_escapes(pair, |b| b.is_ascii_alphanumeric() || b"-._~!$'()*+,;=:@/?".contains(&b));
                (name, text)
            })
        })
        .collect();
    pairs.sort_by(|a, b| a.0.cmp(&b.0));
    if pairs.is_empty() {
        return Query::default();
    }
    let text = pairs.iter().map(|(_, text)| text.as_ref()).collect::<Vec<_>>().join("&");
    Query { key: format!("?{text}"), forward: Some(text) }
}

/// A query without the keys that only the framework itself may send (`nxtP…`, `nxtI…`, `__next…`, also in percent-encoding); all else byte for
/// byte. For requests that pass.
pub fn strip_internal(query: &str) -> Cow<'_, str> {
    // Only these, plain or escaped, can begin such a key.
    let internal = |pair: &&str| matches!(pair.as_bytes().first(), Some(b'n' | b'_' | b'%')) && is_internal(&decoded_name(pair));
    if !query.split('&').any(|pair| internal(&pair)) {
        return Cow::Borrowed(query);
    }
    Cow::Owned(query.split('&').filter(|pair| !internal(pair)).collect::<Vec<_>>().join("&"))
}

/// A page's key as it is shown: `{class}:{host}{path}{?query}`; host, path and query as the functions above return them.
pub fn page_key(class: &str, host: &str, path: &str, query: &Query) -> String {
    let mut key = String::with_capacity(class.len() + 1 + host.len() + path.len() + query.key.len());
    write_page_key(&mut key, class, host, path);
    key.push_str(&query.key);
    key
}

/// Appends a page's key without its query.
pub fn write_page_key(out: &mut String, class: &str, host: &str, path: &str) {
    for part in [class, ":", host, path] {
        out.push_str(part);
    }
}

/// The name as the origin will read it: an escaped letter hides nothing.
fn decoded_name(pair: &str) -> Vec<u8> {
    let name = pair.split('=').next().unwrap_or(pair);
    let plus: Vec<u8> = name.bytes().map(|b| if b == b'+' { b' ' } else { b }).collect();
    percent_encoding::percent_decode(&plus).collect()
}

fn is_internal(name: &[u8]) -> bool {
    [&b"nxtP"[..], b"nxtI", b"__next"].iter().any(|prefix| name.starts_with(prefix))
}

fn is_tracking(name: &[u8]) -> bool {
    let utm = name.get(..4).is_some_and(|start| start.eq_ignore_ascii_case(b"utm_"));
    utm || TRACKING.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hosts_have_one_spelling() {
        for (from, to) in [
            ("Shop.Example.COM", Some("shop.example.com")),
            ("shop.example.com:80", Some("shop.example.com")),
            ("shop.example.com:443", Some("shop.example.com")),
            ("shop.example.com:0443", Some("shop.example.com")),
            ("shop.example.com:", Some("shop.example.com")),
            ("shop.example.com.", Some("shop.example.com")),
            ("shop.example.com:3000", Some("shop.example.com:3000")),
            ("[2001:DB8::1]:80", Some("[2001:db8::1]")),
            ("[::1]:8080", Some("[::1]:8080")),
            ("", None),
            (".", None),
            ("a b", None),
            ("a/b", None),
            ("user@host", None),
            ("a:b", None),
            ("a:99999", None),
            ("[::1", None),
            ("[::1]x", None),
            ("[nonsense]", None),
            ("a..b", None),
            ("shop.example.com\r\nx", None),
        ] {
            assert_eq!(canonical_host(from).as_deref(), to, "{from:?}");
        }
    }

    #[test]
    fn paths_have_one_spelling_and_lose_nothing() {
        for (from, to) in [
            ("/categories/%73hoes", "/categories/shoes"),
            ("/Categories/SHOES", "/Categories/SHOES"),
            ("/a%2fb%c3%a4", "/a%2Fb%C3%A4"),
            ("/a//b/", "/a//b/"),
            ("/ä b", "/%C3%A4%20b"),
            ("/100%", "/100%25"),
            ("/%7Euser/%2E", "/~user/."),
        ] {
            assert_eq!(normalize_path(from), to, "{from}");
        }
    }

    #[test]
    fn paths_that_two_servers_may_read_differently_are_told() {
        for path in ["//evil", "/a//b", "/a\\b", "/a%5Cb", "/a%2fb", "/a%00", "/a%0d", "/a%7f", "/../x", "/a/./b", "/a/%2e%2E/b", "/a/..;x/b", "/a/%2e%3bx"] {
            assert!(ambiguity(path).is_some(), "{path}");
        }
        // A percent sign that begins no escape has one spelling in keys and towards the origin.
        for path in ["/", "/categories/shoes", "/a.b/..c/d..", "/%C3%A4", "/a/", "/x;v=1", "/%7Euser", "/%", "/%4", "/%zz"] {
            assert_eq!(ambiguity(path), None, "{path}");
        }
    }

    #[test]
    fn queries_keep_what_matters_sorted() {
        let allow = ["page".to_owned(), "sort".to_owned()];
        let only = QueryRule { allow: Some(&allow), ignore: &[] };
        let ignore = ["ref".to_owned()];
        let all = QueryRule { allow: None, ignore: &ignore };
        for (rule, from, to) in [
            (all, "b=2&a=1", "a=1&b=2"),
            (all, "a=2&b&a=1", "a=2&a=1&b"),
            (all, "utm_source=x&UTM_Medium=y&gclid=1&fbclid=2&_rsc=3&srsltid=4&ref=5&page=2", "page=2"),
            (all, "nxtPslug=x&nxtIy=1&__nextLocale=de&__next=1&nextPage=2", "nextPage=2"),
            (all, "nxt%50slug=x&%75tm_source=EVIL&%5f_next=1", ""),
            (all, "&&a=1&&", "a=1"),
            (all, "q=%73hoes+red%2f", "q=shoes+red%2F"),
            (all, "", ""),
            (only, "sort=price&x=1&page=2", "page=2&sort=price"),
            (only, "pa%67e=2", "page=2"),
            (only, "x=1", ""),
            (QueryRule { allow: Some(&[]), ignore: &[] }, "page=2", ""),
        ] {
            let query = reduce_query(from, rule);
            assert_eq!(query.forward.as_deref().unwrap_or(""), to, "{from}");
            assert_eq!(query.key, if to.is_empty() { String::new() } else { format!("?{to}") });
        }
        assert_eq!(strip_internal("b=2&nxtPx=1&a=%61"), "b=2&a=%61", "what passes keeps its order and spelling");
        assert!(matches!(strip_internal("b=2&a=1"), Cow::Borrowed(_)));
        assert_eq!(page_key("html_cache", "shop.example.com", "/", &reduce_query("a=1", all)), "html_cache:shop.example.com/?a=1");
    }

    proptest! {
        #[test]
        fn normalizing_twice_changes_nothing(path in "/(\\PC|%[0-9a-fA-F]{2}|[/.%;~a-c]){0,20}", query in "([a-c=&+%_]|%[0-9a-fA-F]{2}|utm_|nxtP|\\PC){0,20}") {
            let once = normalize_path(&path).into_owned();
            prop_assert_eq!(normalize_path(&once), once.as_str());
            prop_assert!(once.bytes().all(|b| b.is_ascii_graphic()));
            let reduced = reduce_query(&query, QueryRule::default());
            let text = reduced.forward.clone().unwrap_or_default();
            prop_assert!(text.bytes().all(|b| b.is_ascii_graphic()));
            prop_assert_eq!(reduce_query(&text, QueryRule::default()), reduced);
        }

        #[test]
        fn normalizing_keeps_the_meaning(path in "/(\\PC|%[0-9a-fA-F]{2}|[/.]){0,20}") {
            // A percent sign that begins no escape is read as itself by decoders, and so is its normalized form.
            let decode = |text: &str| percent_encoding::percent_decode_str(text).collect::<Vec<_>>();
            prop_assert_eq!(decode(&normalize_path(&path)), decode(&path));
            prop_assert_eq!(ambiguity(&path).is_some(), ambiguity(&normalize_path(&path)).is_some());
        }

        #[test]
        fn what_was_dropped_is_not_forwarded(value in "[a-z]{1,8}", escaped in any::<bool>()) {
            let name = if escaped { "%75tm_source" } else { "utm_source" };
            let query = reduce_query(&format!("a=1&{name}=SECRET{value}"), QueryRule::default());
            prop_assert_eq!(query.forward.as_deref(), Some("a=1"));
        }

        #[test]
        fn no_text_breaks_the_reader(text in "\\PC*", bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let lossy = String::from_utf8_lossy(&bytes);
            for text in [text.as_str(), &lossy] {
                canonical_host(text);
                normalize_path(text);
                ambiguity(text);
                reduce_query(text, QueryRule::default());
            }
        }
    }
}
