//! What requests with conditions and ranges get of a stored page, whatever bytes they are made of.

mod support;

use bytes::Bytes;
use http::StatusCode;
use proptest::prelude::*;
use std::time::Duration;
use support::*;
use weir_cache::{
    Accepted, Conditions, Entry, Form,
    draft::Draft,
    form,
    memory::StoredKey,
    policy::Terms,
};

const MODIFIED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

fn entry(body: &'static str, status: StatusCode, tagged: bool) -> Entry {
    let terms = Terms {
        response_ms: T0 * 1000,
        initial_age_ms: 0,
        lifetime: Duration::from_secs(60),
        stale_while_revalidate: Duration::ZERO,
        stale_if_error: Duration::ZERO,
        no_max_stale: false,
        never_stale: false,
        strip: vec![],
        vary: vec![],
    };
    let key = StoredKey::primary(&"v1".into(), "html_cache:shop.example.com/");
    let mut fields = headers(&[("content-type", "text/html"), ("content-language", "en"), ("last-modified", MODIFIED)]);
    if tagged {
        fields.insert("etag", "\"tag\"".parse().expect("a value"));
    }
    Draft { key: &key, status, headers: &fields, body: &[Bytes::from(body)], terms: &terms, policy: &html(), fetch: Duration::ZERO, prior: None }.build()
}

/// A field's value: one that means something more often than not.
fn value() -> impl Strategy<Value = Option<Vec<u8>>> {
    let text = prop_oneof!["bytes=[0-9]{0,3}-[0-9]{0,3}", "bytes=[0-9]{0,22}-[0-9]{0,22}", "(bytes|lines)? ?=[-0-9, ]{0,12}", "(W/)?\"(tag|other)\"(, \"tag\")?", Just(MODIFIED.to_owned()), Just("Sun, 06 Nov 2044 08:49:37 GMT".to_owned()), Just("*".to_owned())];
    prop_oneof![2 => Just(None), 4 => text.prop_map(|text| Some(text.into_bytes())), 1 => proptest::collection::vec(any::<u8>(), 0..24).prop_map(Some)]
}

fn seldom() -> impl Strategy<Value = Option<Vec<u8>>> {
    prop_oneof![3 => Just(None), 1 => value()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_is_sent_lies_within_the_page_and_the_head_says_so(
        (none_match, since, if_range) in (seldom(), seldom(), seldom()),
        range in prop_oneof!["bytes=(8|9|10|11)?-(8|9|10|11)?".prop_map(|range| Some(range.into_bytes())), value()],
        head_only: bool,
        tagged: bool,
        (body, status) in prop_oneof![Just(("", 200)), Just(("0123456789", 200)), Just(("<html>no</html>", 404))],
        coding in prop_oneof![Just(None), Just(Some("br, identity;q=0")), Just(Some("gzip"))],
    ) {
        let status = StatusCode::from_u16(status).expect("a status");
        let entry = entry(body, status, tagged);
        let asked = Conditions {
            head_only,
            if_none_match: none_match.as_deref(),
            if_modified_since: since.as_deref(),
            range: range.as_deref(),
            if_range: if_range.as_deref(),
        };
        let form = form(&entry, &asked, &Accepted::of(coding.map(str::as_bytes)));
        let sent = entry.body().get(form.range()).expect("bytes of the page");
        let fields = form.headers();
        let length = fields.get("content-length").map(|value| value.to_str().expect("a number").to_owned());
        let part = fields.get("content-range").map(|value| value.to_str().expect("a range").to_owned());
        match &form {
            Form::Whole(_) => {
                prop_assert_eq!(sent, body.as_bytes());
                prop_assert_eq!((length, part), (Some(body.len().to_string()), None));
            }
            Form::Held(_) => {
                prop_assert!(none_match.is_some() || since.is_some());
                prop_assert_eq!((sent.len(), length, part), (0, None, None));
                prop_assert!(!fields.contains_key("content-type") && fields.contains_key("etag") != fields.contains_key("last-modified"));
            }
            Form::Part(_, bytes) => {
                prop_assert!(range.is_some() && !head_only && !sent.is_empty());
                prop_assert_eq!(length, Some(sent.len().to_string()));
                prop_assert_eq!(part, Some(format!("bytes {}-{}/{}", bytes.start, bytes.end - 1, body.len())));
            }
            Form::Unsatisfiable(_) => {
                prop_assert!(range.is_some() && !head_only);
                prop_assert_eq!((sent.len(), length, part), (0, Some("0".to_owned()), Some(format!("bytes */{}", body.len()))));
            }
        }
        prop_assert!(status == 200 || form.status(status) == status, "conditions and ranges are for pages that are there");
        // The head as bytes is the same head.
        let mut head = Vec::new();
        form.write_head(&mut head);
        if let Form::Whole(variant) = &form {
            prop_assert!(head.is_empty());
            head.extend_from_slice(&variant.head);
        }
        let head = String::from_utf8(head).expect("text");
        let mut lines: Vec<&str> = head.strip_suffix("\r\n").expect("whole lines").split("\r\n").collect();
        let said = form.status(status);
        prop_assert_eq!(lines.remove(0), format!("HTTP/1.1 {} {}", said.as_str(), said.canonical_reason().expect("a reason")));
        let mut listed: Vec<String> = fields.iter().map(|(name, value)| format!("{name}: {}", value.to_str().expect("text"))).collect();
        lines.sort_unstable();
        listed.sort_unstable();
        prop_assert_eq!(lines, listed);
    }
}
