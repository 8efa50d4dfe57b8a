//! The form in which entries lie in the store, against whatever else may lie there.

mod support;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use proptest::prelude::*;
use std::{sync::Arc, time::Duration};
use support::*;
use weir_cache::{
    codec::{Stored, Unreadable, decode, encode_pass, encode_spec},
    draft::Draft,
    entry::Entry,
    memory::StoredKey,
    policy::Terms,
    vary::Spec,
};

fn key() -> StoredKey {
    StoredKey::primary(&"v1".into(), "html_cache:shop.example.com/")
}

fn entry(headers: &HeaderMap, body: &[Bytes]) -> Entry {
    let terms = Terms {
        response_ms: T0 * 1000,
        initial_age_ms: 1500,
        lifetime: Duration::from_secs(60),
        stale_while_revalidate: Duration::from_secs(30),
        stale_if_error: Duration::from_secs(90),
        no_max_stale: true,
        never_stale: true,
        strip: vec![],
        vary: vec![],
    };
    let policy = html();
    Draft { key: &key(), status: StatusCode::OK, headers, body, terms: &terms, policy: &policy, fetch: Duration::from_millis(321), prior: None }.build()
}

fn decoded(raw: &Bytes) -> Arc<Entry> {
    match decode(&key().text(), raw) {
        Ok(Stored::Entry(entry)) => entry,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_entry_comes_back_as_it_was() {
    let fields = headers(&[("content-type", "text/html"), ("cache-control", "s-maxage=60"), ("expires", "0"), ("x-nextjs-cache", "HIT"), ("cache-tag", "a, b"), ("surrogate-key", "c d a")]);
    let before = entry(&fields, &[Bytes::from_static(b"<html>"), Bytes::from_static(b"</html>")]);
    let after = decoded(before.raw());
    assert_eq!((after.meta(), after.head(), after.body()), (before.meta(), before.head(), before.body()));
    assert_eq!(after.tags().collect::<Vec<_>>(), ["catalogue", "a", "b", "c", "d"]);
    let head = std::str::from_utf8(after.head()).expect("text");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n"), "{head}");
    assert!(head.contains("\r\ncontent-length: 13\r\n") && head.contains("\r\netag: \"") && head.contains("\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\n"), "{head}");
    assert!(head.contains("\r\ncache-control: public, max-age=0, must-revalidate\r\n") && !head.contains("s-maxage") && !head.contains("x-nextjs-cache"));
    assert!(head.ends_with("\r\n") && !head.ends_with("\r\n\r\n"));
    let origin = after.origin_headers();
    assert_eq!(origin["cache-control"], "s-maxage=60");
    assert_eq!(origin["expires"], "0");
    assert!(!origin.contains_key("etag") && !after.has_validator(), "the tag was made here");
}

#[test]
fn freshness_by_the_second_never_says_more_than_by_the_millisecond() {
    let entry = entry(&HeaderMap::new(), &[]);
    for ms in 0..100_000 {
        let now = T0 * 1000 + ms;
        if entry.is_fresh(now / 1000) {
            assert!(entry.is_fresh_ms(now), "{ms}");
        }
    }
    assert!(entry.is_fresh(T0 + 57) && !entry.is_fresh(T0 + 58));
    assert!(entry.is_fresh_ms(T0 * 1000 + 58_499) && !entry.is_fresh_ms(T0 * 1000 + 58_500));
    assert_eq!((entry.age(T0 + 10), entry.ttl(T0 + 10), entry.ttl(T0 + 70)), (11, 48, -12));
}

#[test]
fn early_refresh_follows_the_fetch_time_and_the_time_left() {
    let entry = entry(&HeaderMap::new(), &[]);
    let share = |left_ms: u64, beta: f64| {
        let now = T0 * 1000 + 58_500 - left_ms;
        (0..20_000).filter(|_| entry.wants_early_refresh(now, beta)).count() as f64 / 20_000.0
    };
    assert_eq!(share(30_000, 1.0), 0.0);
    assert_eq!(share(0, 1.0), 1.0);
    // The chance is e^(-left / (fetch * beta)).
    assert!((share(321, 1.0) - 0.368).abs() < 0.03);
    assert!((share(642, 2.0) - 0.368).abs() < 0.03);
    assert_eq!(share(0, 0.0), 0.0);
    assert_eq!(share(0, f64::NAN), 0.0);
}

#[test]
fn what_belongs_to_another_key_version_or_head_is_refused() {
    let raw = entry(&headers(&[("content-type", "text/html")]), &[Bytes::from_static(b"x")]).raw().clone();
    assert_eq!(decode("v2\0other\0", &raw).err(), Some(Unreadable::Key));
    let mut later = raw.to_vec();
    later[4] = 1;
    assert_eq!(decode(&key().text(), &later.into()).err(), Some(Unreadable::Format));
    // An enemy who can compute the checksum still can not add a line to a head, or a cookie.
    for (from, to) in [("content-type: text/html", "set-cookie: abcdefghijk"), ("content-type: text/html", "a: b\r\n\r\n<script>alert()"), ("HTTP/1.1 200 OK", "HTTP/1.1 201 OK"), ("content-length: 1", "content-length: 2")] {
        let mut bytes = raw.to_vec();
        let at = memchr(&bytes, from.as_bytes());
        assert_eq!(from.len(), to.len());
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        repair(&mut bytes);
        assert_eq!(decode(&key().text(), &bytes.into()).err(), Some(Unreadable::Head), "{to:?}");
    }
    let mut same = raw.to_vec();
    repair(&mut same);
    assert_eq!(same, raw, "the repair is the right one");
}

fn memchr(bytes: &[u8], part: &[u8]) -> usize {
    bytes.windows(part.len()).position(|window| window == part).expect("there")
}

/// Writes the checksum anew, as `codec.rs` describes it.
fn repair(bytes: &mut [u8]) {
    let numbers = 10 + key().text().len();
    let at = numbers + 2 + 2 + 6 * 8 + 3 * 4 + 8;
    let number = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four")) as usize;
    let lengths = numbers + 4 + 48;
    let parts = number(bytes, lengths) + number(bytes, lengths + 4) + number(bytes, lengths + 8);
    let sum = xxh3_64_with_seed(&bytes[at + 24..at + 24 + parts], xxh3_64(&bytes[..at]));
    bytes[at..at + 8].copy_from_slice(&sum.to_le_bytes());
}

fn any_headers() -> impl Strategy<Value = HeaderMap> {
    let name = prop_oneof!["[a-z][a-z0-9-]{0,12}", Just("set-cookie".to_owned()), Just("connection".to_owned()), Just("etag".to_owned()), Just("transfer-encoding".to_owned())];
    proptest::collection::vec((name, proptest::collection::vec(32u8..=255, 0..20)), 0..12).prop_map(|pairs| {
        pairs
            .into_iter()
            .filter_map(|(name, value)| Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_bytes(&value).ok()?)))
            .collect()
    })
}

proptest! {
    #[test]
    fn any_response_comes_back_as_it_was(fields in any_headers(), body in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..4)) {
        let pieces: Vec<Bytes> = body.iter().cloned().map(Bytes::from).collect();
        let before = entry(&fields, &pieces);
        let after = decoded(before.raw());
        prop_assert_eq!(after.body().as_ref(), body.concat());
        prop_assert_eq!(after.headers(), before.headers());
        let kept = after.headers();
        for forbidden in ["set-cookie", "connection", "transfer-encoding", "age", "cache-status"] {
            prop_assert!(!kept.contains_key(forbidden));
        }
    }

    #[test]
    fn damage_is_noticed_and_never_a_panic(fields in any_headers(), at in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<prop::sample::Index>()) {
        let raw = entry(&fields, &[Bytes::from_static(b"<html></html>")]).raw().clone();
        let mut flipped = raw.to_vec();
        // Up to the body; its bytes are the transport's care.
        let index = at.index(flipped.len() - 13);
        flipped[index] ^= 1 << bit;
        prop_assert!(decode(&key().text(), &flipped.into()).is_err());
        prop_assert!(decode(&key().text(), &raw.slice(..cut.index(raw.len()))).is_err());
    }

    #[test]
    fn no_bytes_break_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0u8..5) {
        let text = key().text();
        let _ = decode(&text, &Bytes::from(bytes.clone()));
        let mut begun = b"WEIR\x02".to_vec();
        begun.push(kind);
        begun.extend_from_slice(&(text.len() as u32).to_le_bytes());
        begun.extend_from_slice(text.as_bytes());
        begun.extend_from_slice(&bytes);
        prop_assert!(decode(&text, &begun.into()).is_err());
    }

    #[test]
    fn specs_and_marks_come_back_too(generation in any::<u64>(), until in any::<u64>(), names in proptest::collection::btree_set("[a-z-]{1,10}", 1..5)) {
        let fields = names.iter().map(|name| HeaderName::from_bytes(name.as_bytes()).expect("name")).collect();
        let spec = Spec { fields, generation, read_ms: 0 };
        match decode("k", &encode_spec("k", &spec)) {
            Ok(Stored::Spec(back)) => prop_assert_eq!(back, spec),
            other => prop_assert!(false, "{:?}", other),
        }
        let mark = decode("k", &encode_pass("k", until, "set-cookie"));
        let same = matches!(mark, Ok(Stored::Pass { until_ms, reason: Some("set-cookie") }) if until_ms == until);
        prop_assert!(same);
    }
}
