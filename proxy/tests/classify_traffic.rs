//! A recorded browser session with a real Next.js site. What each request was is told by what happened in it: by the step the browser was
//! driven through and by the answer that the site gave, neither of which the classifier sees.

use http::{HeaderName, HeaderValue, Request};
use serde::Deserialize;
use std::collections::BTreeMap;
use weir_cache::keys::strip_internal;
use weir_proxy::classify::{Class, ClassifyRules, classify, strip_request_headers};

#[derive(Deserialize)]
struct Record {
    seq: u32,
    step: String,
    method: String,
    url: String,
    req: Vec<(String, String)>,
    #[serde(default)]
    status: Option<u16>,
    #[serde(default)]
    res: Vec<(String, String)>,
}

impl Record {
    fn answer(&self, name: &str) -> &str {
        self.res.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map_or("", |(_, v)| v)
    }

    fn request(&self) -> http::request::Parts {
        let mut request = Request::builder().method(&*self.method).uri(&*self.url);
        for (name, value) in &self.req {
            request = request.header(name, HeaderValue::from_bytes(value.as_bytes()).expect("a recorded value"));
        }
        request.body(()).expect("a recorded request").into_parts().0
    }

    /// What the request was, from the answer and the step.
    fn was(&self) -> Class {
        let kind = self.answer("content-type").split(';').next().unwrap_or("");
        let cache = self.answer("cache-control");
        let step = &*self.step;
        match (&*self.method, self.status, kind) {
            // Only the browser's script sends these POSTs; forms without script come in the last two steps.
            ("POST", _, "text/x-component") => Class::Action,
            ("POST", _, _) if step.contains("no-JS") => Class::Action,
            ("POST", ..) => Class::Unsafe,
            (_, _, "text/x-component") => Class::Rsc,
            // Prefetches that the browser itself gave up when the page was left.
            (_, None, _) => Class::Rsc,
            // The site answers a component request for a page of its other router with the whole page; the browser then loads it anew.
            (_, _, "text/html") if step.contains("app->pages") && !self.navigates() => Class::Rsc,
            (_, _, "application/javascript") => Class::Static,
            (_, _, "image/webp") => Class::Image,
            (_, _, "application/json") if step.contains("fetch /api") => Class::Api,
            (_, _, "application/json") => Class::Data,
            (_, _, "text/plain") if step.contains("draft enable") => Class::Api,
            (_, _, "image/png" | "text/plain") => Class::Asset,
            (_, _, "text/html") if step.contains("draft page") => Class::Draft,
            (_, _, "text/html") => Class::Document,
            // Answers without content: what was asked for shows in how it may be kept, or in the step.
            (_, Some(308), "") => Class::Document,
            (_, Some(304), "") if cache == "public, max-age=0" => Class::Asset,
            (_, Some(304), "") if step.contains("reload /") => Class::Document,
            (_, _, "") if step.contains("pages") => Class::Data,
            _ => panic!("no expectation for request {}", self.seq),
        }
    }

    /// Whether the browser itself loaded a page, rather than the page's script something.
    fn navigates(&self) -> bool {
        self.req.iter().any(|(n, v)| n.eq_ignore_ascii_case("sec-fetch-mode") && v == "navigate")
    }
}

fn session() -> Vec<Record> {
    let text = include_str!("data/nextjs-traffic.jsonl");
    text.lines().map(|line| serde_json::from_str(line).expect("a record")).collect()
}

#[test]
fn every_recorded_request_is_what_it_was() {
    let mut counts = BTreeMap::new();
    let session = session();
    for record in &session {
        let found = classify(&record.request(), &ClassifyRules::default());
        assert_eq!(found.class, record.was(), "request {} ({}): {} {}", record.seq, record.step, record.method, record.url);
        assert!(!found.monitor);
        *counts.entry(format!("{:?}", found.class)).or_insert(0) += 1;
    }
    assert_eq!(session.len(), 299);
    let expected = [
        ("Action", 5),
        ("Api", 2),
        ("Asset", 10),
        ("Data", 7),
        ("Document", 13),
        ("Draft", 1),
        ("Image", 2),
        ("Rsc", 238),
        ("Static", 19),
        ("Unsafe", 2),
    ];
    assert_eq!(counts, expected.map(|(class, count)| (class.to_string(), count)).into());
}

#[test]
fn component_requests_pass_with_every_header_and_byte_of_the_target() {
    for record in session() {
        let mut parts = record.request();
        let found = classify(&parts, &ClassifyRules::default());
        let before = parts.headers.clone();
        strip_request_headers(&mut parts.headers, &found);
        assert_eq!(parts.headers, before, "request {}: a browser sends nothing internal", record.seq);
        let query = parts.uri.query().unwrap_or("");
        assert_eq!(strip_internal(query), query, "request {}", record.seq);
        if found.class == Class::Rsc {
            assert!(parts.headers.contains_key(HeaderName::from_static("rsc")));
        }
    }
}
