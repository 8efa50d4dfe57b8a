//! `Cache-Control` (RFC 9111 section 5.2), the targeted fields of RFC 9213, and `Pragma`. What is malformed or said twice is read the safe
//! way: the shorter time, the stricter directive.

use crate::fields::{self, CDN_CACHE_CONTROL, WEIR_CACHE_CONTROL};
use http::{HeaderMap, HeaderName, header};
use std::time::Duration;

/// The greatest number of seconds that is told apart from "for ever" (RFC 9111 section 1.2.2).
const MOST_SECONDS: u64 = 2_147_483_648;

/// A directive that may be bare or name fields.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Scope {
    /// Not given.
    #[default]
    Absent,
    /// Given bare, or with a list that can not be read: it holds for the whole response.
    Whole,
    /// Given with field names.
    Fields(Vec<HeaderName>),
}

impl Scope {
    fn add(&mut self, argument: Option<&str>) {
        let listed = argument.map(|list| list.split(',').map(|name| HeaderName::from_bytes(name.trim().as_bytes())).collect::<Result<Vec<_>, _>>());
        *self = match (std::mem::take(self), listed) {
            (Scope::Whole, _) | (_, None | Some(Err(_))) => Scope::Whole,
            (Scope::Absent, Some(Ok(names))) => Scope::Fields(names),
            (Scope::Fields(mut all), Some(Ok(names))) => {
                all.extend(names);
                Scope::Fields(all)
            }
        };
    }
}

/// A response's directives.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResponseControl {
    /// They came from a targeted field (RFC 9213): `Cache-Control` and `Expires` do not count for this cache.
    pub targeted: bool,
    /// `no-store`.
    pub no_store: bool,
    /// `private`.
    pub private: Scope,
    /// `no-cache`.
    pub no_cache: Scope,
    /// `public`.
    pub public: bool,
    /// `must-revalidate`.
    pub must_revalidate: bool,
    /// `proxy-revalidate`.
    pub proxy_revalidate: bool,
    /// `must-understand`.
    pub must_understand: bool,
    /// `max-age`. Zero if malformed.
    pub max_age: Option<Duration>,
    /// `s-maxage`. Zero if malformed.
    pub s_maxage: Option<Duration>,
    /// `stale-while-revalidate` (RFC 5861). Zero if malformed.
    pub stale_while_revalidate: Option<Duration>,
    /// `stale-if-error` (RFC 5861). Zero if malformed.
    pub stale_if_error: Option<Duration>,
}

impl ResponseControl {
    /// Reads the first of `Weir-Cache-Control`, `CDN-Cache-Control` (each only if it is a well-formed dictionary, RFC 9213 section 2.2) and
    /// `Cache-Control` that is there.
    pub fn of(headers: &HeaderMap) -> ResponseControl {
        for name in [WEIR_CACHE_CONTROL, CDN_CACHE_CONTROL] {
            if let Some(text) = fields::joined(headers, &name)
                && let Some(items) = dictionary(&text)
            {
                let mut control = ResponseControl { targeted: true, ..ResponseControl::default() };
                items.iter().for_each(|(name, argument)| control.add(name, argument.as_deref()));
                return control;
            }
        }
        let mut control = ResponseControl::default();
        if let Some(text) = fields::joined(headers, &header::CACHE_CONTROL) {
            for (name, argument) in directives(&text) {
                control.add(&name, argument.as_deref());
            }
        }
        control
    }

    fn add(&mut self, name: &str, argument: Option<&str>) {
        match name {
            "no-store" => self.no_store = true,
            "private" => self.private.add(argument),
            "no-cache" => self.no_cache.add(argument),
            "public" => self.public = true,
            "must-revalidate" => self.must_revalidate = true,
            "proxy-revalidate" => self.proxy_revalidate = true,
            "must-understand" => self.must_understand = true,
            "max-age" => shorter(&mut self.max_age, argument),
            "s-maxage" => shorter(&mut self.s_maxage, argument),
            "stale-while-revalidate" => shorter(&mut self.stale_while_revalidate, argument),
            "stale-if-error" => shorter(&mut self.stale_if_error, argument),
            // Unknown directives are ignored (RFC 9111 section 5.2.3).
            _ => {}
        }
    }
}

/// A request's directives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RequestControl {
    /// `no-cache`, or `Pragma: no-cache` without `Cache-Control` (RFC 9111 section 5.4).
    pub no_cache: bool,
    /// `no-store`.
    pub no_store: bool,
    /// `only-if-cached`.
    pub only_if_cached: bool,
    /// `max-age`. Zero if malformed.
    pub max_age: Option<Duration>,
    /// `min-fresh`. For ever if malformed.
    pub min_fresh: Option<Duration>,
    /// `max-stale`; bare: for ever. Zero if malformed.
    pub max_stale: Option<Duration>,
}

impl RequestControl {
    /// Reads a request's fields.
    pub fn of(headers: &HeaderMap) -> RequestControl {
        let mut control = RequestControl::default();
        let Some(text) = fields::joined(headers, &header::CACHE_CONTROL) else {
            control.no_cache = fields::joined(headers, &header::PRAGMA)
                .is_some_and(|text| directives(&text).iter().any(|(name, _)| name == "no-cache"));
            return control;
        };
        for (name, argument) in directives(&text) {
            let argument = argument.as_deref();
            match name.as_str() {
                "no-cache" => control.no_cache = true,
                "no-store" => control.no_store = true,
                "only-if-cached" => control.only_if_cached = true,
                "max-age" => shorter(&mut control.max_age, argument),
                "max-stale" if argument.is_none() => {
                    control.max_stale.get_or_insert(Duration::from_secs(MOST_SECONDS));
                }
                "max-stale" => shorter(&mut control.max_stale, argument),
                "min-fresh" => {
                    let time = argument.and_then(seconds).unwrap_or(Duration::from_secs(MOST_SECONDS));
                    control.min_fresh = Some(control.min_fresh.map_or(time, |known| known.max(time)));
                }
                _ => {}
            }
        }
        control
    }
}

/// Takes the shorter of what is known and what is said now; what can not be read is zero.
fn shorter(known: &mut Option<Duration>, argument: Option<&str>) {
    let time = argument.and_then(seconds).unwrap_or_default();
    *known = Some(known.map_or(time, |known| known.min(time)));
}

/// delta-seconds (RFC 9111 section 1.2.2). Too great a number is the greatest; anything but digits is none.
pub fn seconds(text: &str) -> Option<Duration> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(Duration::from_secs(text.parse().unwrap_or(MOST_SECONDS).min(MOST_SECONDS)))
}

/// Splits a `Cache-Control` value. Names come in lower case; arguments without quotes. Never fails: odd pieces are directives that nobody knows.
pub(crate) fn directives(text: &str) -> Vec<(String, Option<String>)> {
    let mut all = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return all;
        }
        let end = rest.find(['=', ',']).unwrap_or(rest.len());
        let name = rest[..end].trim().to_ascii_lowercase();
        rest = &rest[end..];
        let mut argument = None;
        if let Some(after) = rest.strip_prefix('=') {
            let after = after.trim_start_matches([' ', '\t']);
            let (value, left) = if after.starts_with('"') { quoted(after) } else { after.split_at(after.find(',').unwrap_or(after.len())).own() };
            argument = Some(value.trim().to_owned());
            rest = left;
            // What stands between a closing quote and the next comma belongs to nothing that is known.
            rest = &rest[rest.find(',').unwrap_or(rest.len())..];
        }
        all.push((name, argument));
    }
}

trait Own<'a> {
    fn own(self) -> (String, &'a str);
}

impl<'a> Own<'a> for (&'a str, &'a str) {
    fn own(self) -> (String, &'a str) {
        (self.0.to_owned(), self.1)
    }
}

/// Reads a quoted string that begins at the first byte; the content, and what follows. Without a closing quote it reaches to the end.
fn quoted(text: &str) -> (String, &str) {
    let mut content = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((index, c)) = chars.next() {
        match c {
            '"' => return (content, &text[index + 1..]),
            '\\' => content.extend(chars.next().map(|(_, c)| c)),
            c => content.push(c),
        }
    }
    (content, "")
}

/// Directives whose argument is a number of seconds.
const TIMES: [&str; 4] = ["max-age", "s-maxage", "stale-while-revalidate", "stale-if-error"];

/// A structured-field dictionary (RFC 9651 section 4.2.2), as far as cache directives need one: parameters are ignored, inner lists and byte
/// sequences are values that no directive has, the last of equal keys counts. `None` if it is malformed or empty: RFC 9213 then
/// looks at the next field.
fn dictionary(text: &str) -> Option<Vec<(String, Option<String>)>> {
    let mut all: Vec<(String, Option<String>)> = Vec::new();
    let mut rest = text.trim_matches(' ');
    if rest.is_empty() {
        return None;
    }
    loop {
        let key = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-.*".contains(c);
        let end = rest.find(|c| !key(c)).unwrap_or(rest.len());
        let name = &rest[..end];
        if !name.starts_with(|c: char| c.is_ascii_lowercase() || c == '*') {
            return None;
        }
        rest = &rest[end..];
        let mut argument = None;
        let mut denied = false;
        if let Some(after) = rest.strip_prefix('=') {
            let (mut value, left) = if after.starts_with('(') { inner_list(after)? } else { item(after)? };
            if after.starts_with('"') && TIMES.contains(&name) {
                // A time is an Integer; of another type it counts as one that can not be read (RFC 9213 section 2.1).
                value.clear();
            }
            // `?1` is the same as the bare name, `?0` says that it does not hold.
            match value.as_str() {
                "?1" => {}
                "?0" => denied = true,
                _ => argument = Some(value),
            }
            rest = left;
        }
        rest = parameters(rest)?;
        all.retain(|(known, _)| known != name);
        if !denied {
            all.push((name.to_owned(), argument));
        }
        rest = rest.trim_start_matches([' ', '\t']);
        if rest.is_empty() {
            return Some(all);
        }
        rest = rest.strip_prefix(',')?.trim_start_matches([' ', '\t']);
    }
}

fn item(text: &str) -> Option<(String, &str)> {
    if text.starts_with('"') {
        let (content, rest) = quoted(text);
        let closed = text.len() > rest.len() + 1 && text[..text.len() - rest.len()].ends_with('"');
        return closed.then_some((content, rest));
    }
    if let Some(bytes) = text.strip_prefix(':') {
        let (value, rest) = bytes.split_once(':')?;
        return value.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b)).then(|| (format!(":{value}:"), rest));
    }
    let end = text.find([',', ';', ' ', '\t', ')']).unwrap_or(text.len());
    let (value, rest) = text.split_at(end);
    let sane = !value.is_empty() && value.bytes().all(|b| b.is_ascii_graphic() && !b"\"(),;<=>@[\\]{}".contains(&b));
    sane.then(|| (value.to_owned(), rest))
}

/// Items in parentheses, as the text that they are.
fn inner_list(text: &str) -> Option<(String, &str)> {
    let mut rest = &text[1..];
    loop {
        rest = rest.trim_start_matches(' ');
        if let Some(after) = rest.strip_prefix(')') {
            return Some((text[..text.len() - after.len()].to_owned(), after));
        }
        rest = parameters(item(rest)?.1)?;
        if !rest.starts_with([' ', ')']) {
            return None;
        }
    }
}

fn parameters(mut rest: &str) -> Option<&str> {
    while let Some(after) = rest.strip_prefix(';') {
        let after = after.trim_start_matches(' ');
        let end = after.find(['=', ';', ',', ' ', '\t']).unwrap_or(after.len());
        if end == 0 {
            return None;
        }
        rest = &after[end..];
        if let Some(value) = rest.strip_prefix('=') {
            rest = item(value)?.1;
        }
    }
    Some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn response(pairs: &[(&'static str, &str)]) -> ResponseControl {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).expect("value"));
        }
        ResponseControl::of(&headers)
    }

    fn secs(n: u64) -> Option<Duration> {
        Some(Duration::from_secs(n))
    }

    #[test]
    fn rfc9111_5_2_ordinary_directives() {
        let control = response(&[("cache-control", "Public, MAX-AGE=60 , s-maxage=120"), ("cache-control", "stale-while-revalidate=30")]);
        assert!(control.public && !control.no_store);
        assert_eq!((control.max_age, control.s_maxage, control.stale_while_revalidate), (secs(60), secs(120), secs(30)));
    }

    #[test]
    fn rfc9111_4_2_1_duplicates_and_malformed_values_are_read_the_safe_way() {
        for (text, expected) in [
            ("max-age=60, max-age=10", secs(10)),
            ("max-age=10, max-age=x", secs(0)),
            ("max-age", secs(0)),
            ("max-age=-1", secs(0)),
            ("max-age=1.5", secs(0)),
            ("max-age=\"30\"", secs(30)),
            ("max-age = 30", secs(30)),
            ("max-age=99999999999999999999999", secs(MOST_SECONDS)),
            ("x-max-age=9", None),
        ] {
            assert_eq!(response(&[("cache-control", text)]).max_age, expected, "{text}");
        }
        assert!(response(&[("cache-control", "no-store=x")]).no_store, "an argument does not weaken it");
        assert!(response(&[("cache-control", "foo=\"a, no-store\"")]) == ResponseControl::default(), "quoted text is no directive");
        assert!(response(&[("cache-control", "foo=\"a, b\" ,no-store")]).no_store);
    }

    #[test]
    fn rfc9111_5_2_2_4_fields_named_by_private_and_no_cache() {
        let control = response(&[("cache-control", "private=\"x-user, X-Cart\", no-cache=x-token")]);
        assert_eq!(control.private, Scope::Fields(vec!["x-user".parse().expect("name"), "x-cart".parse().expect("name")]));
        assert_eq!(control.no_cache, Scope::Fields(vec!["x-token".parse().expect("name")]));
        for text in ["private", "private=\"a\", private", "private, private=\"a\"", "private=\"not a name\"", "private=\"\""] {
            assert_eq!(response(&[("cache-control", text)]).private, Scope::Whole, "{text}");
        }
    }

    #[test]
    fn rfc9213_2_2_the_first_well_formed_targeted_field_counts_alone() {
        let control = response(&[("cache-control", "no-store"), ("cdn-cache-control", "max-age=600;x=1, must-revalidate")]);
        assert!(control.targeted && !control.no_store && control.must_revalidate);
        assert_eq!(control.max_age, secs(600));
        let control = response(&[("cdn-cache-control", "max-age=600"), ("weir-cache-control", "max-age=60")]);
        assert_eq!(control.max_age, secs(60));
        for other in ["x=(a \"b c\";q=1 3)", "x=();y", "x=:YQ==:", "x=:YQ==:;y=?0"] {
            let control = response(&[("cache-control", "max-age=7"), ("cdn-cache-control", &format!("max-age=5, {other}, no-store"))]);
            assert_eq!((control.targeted, control.max_age, control.no_store), (true, secs(5), true), "{other}");
        }
        let control = response(&[("cdn-cache-control", "max-age=(9), private=(\"a\")")]);
        assert_eq!((control.max_age, control.private), (secs(0), Scope::Whole), "of a type that the directive has not");
        for malformed in ["max-age=", "Max-Age=5", "max-age=5 max-age=6", "max-age=5,", "", "a=\"x", "a;=1", "a=(b", "a=(b,c)", "a=(b\"c\")", "a=b)", "a=:b"] {
            let control = response(&[("cache-control", "max-age=7"), ("cdn-cache-control", malformed)]);
            assert_eq!((control.targeted, control.max_age), (false, secs(7)), "{malformed:?}");
        }
        assert_eq!(response(&[("cdn-cache-control", "max-age=abc")]).max_age, secs(0), "well-formed, but no number of seconds");
        assert_eq!(response(&[("cdn-cache-control", "max-age=5, max-age=9")]).max_age, secs(9), "RFC 9651: the last of equal keys");
        assert!(!response(&[("cdn-cache-control", "no-store=?0, max-age=1")]).no_store);
    }

    #[test]
    fn rfc9111_5_2_1_request_directives() {
        let of = |pairs: &[(&'static str, &'static str)]| {
            RequestControl::of(&pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect())
        };
        assert!(of(&[("pragma", "no-cache")]).no_cache);
        assert!(!of(&[("pragma", "no-cache"), ("cache-control", "max-age=5")]).no_cache, "Pragma counts only without Cache-Control");
        assert_eq!(of(&[("cache-control", "max-stale")]).max_stale, secs(MOST_SECONDS));
        assert_eq!(of(&[("cache-control", "max-stale=x")]).max_stale, secs(0));
        assert_eq!(of(&[("cache-control", "min-fresh=x")]).min_fresh, secs(MOST_SECONDS));
        let all = of(&[("cache-control", "no-store, only-if-cached, max-age=0")]);
        assert!(all.no_store && all.only_if_cached && all.max_age == secs(0));
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_reader(a in "\\PC*", b in "[a-z=,\"\\\\ ;?0-9-]*") {
            for text in [&a, &b] {
                directives(text);
                dictionary(text);
            }
        }

        #[test]
        fn no_store_is_seen_wherever_it_stands(before in "[a-z0-9=-]{0,12}", after in "[a-z0-9=,\" -]{0,12}") {
            let text = format!("{before}, no-store, {after}");
            prop_assert!(response(&[("cache-control", &text)]).no_store, "{}", text);
        }
    }
}
