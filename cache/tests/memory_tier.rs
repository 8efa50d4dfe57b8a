//! The tier in this process: what stays when there is no room for all, and under which names its entries lie in the store.

mod support;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use std::{collections::HashSet, sync::Arc, time::Duration};
use support::plain;
use weir_cache::{
    Entry,
    draft::Draft,
    memory::{Memory, Slot, StoredKey},
    policy::Terms,
};

fn key(text: &str) -> StoredKey {
    StoredKey::primary(&"v1".into(), text)
}

#[test]
fn a_scan_of_pages_that_nobody_asks_for_twice_pushes_out_none_that_many_ask_for() {
    // Room for about three thousand of these.
    let memory = Memory::new(2 << 20);
    let there = |name: String| memory.get("v1", &name, "").is_some();
    let put = |name: String| memory.insert(key(&name), Slot::Pass { until_ms: 1, reason: "x" });
    (0..500).for_each(|n| put(format!("hot{n}")));
    for _ in 0..3 {
        assert!((0..500).all(|n| there(format!("hot{n}"))));
    }
    // Ten times as many as there is room for, each asked for once.
    for n in 0..30_000 {
        let name = format!("cold{n}");
        if !there(name.clone()) {
            put(name);
        }
    }
    assert!(memory.evictions() > 20_000 && memory.bytes() <= memory.capacity(), "{} evictions", memory.evictions());
    let left = (0..500).filter(|n| there(format!("hot{n}"))).count();
    assert!(left >= 475, "{left} of 500 are left");
}

#[test]
fn what_belongs_to_one_page_lies_in_one_slot_of_a_cluster() {
    // What stands between the first braces decides.
    let tag = |name: String| name.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag.to_owned()).expect("a tag");
    let mut tags = HashSet::new();
    for page in ["html_cache:shop.example.com/", "html_cache:shop.example.com/{a}", "cache:GET:/api/home"] {
        let names = ["", "0123-ab", "0123-cd"].into_iter().flat_map(|variant| ["cache", "fill"].map(|class| key(page).with_variant(variant).store_key(class)));
        let of_page: HashSet<String> = names.map(tag).collect();
        assert_eq!(of_page.len(), 1, "{page}: {of_page:?}");
        tags.extend(of_page);
    }
    assert_eq!(tags.len(), 3, "pages are spread over the slots");
    assert_ne!(tag(key("a").store_key("cache")), tag(StoredKey::primary(&"v2".into(), "a").store_key("cache")), "and so are deployments");
}

#[test]
fn an_older_response_never_takes_a_younger_ones_place() {
    let memory = Memory::new(1 << 20);
    let entry = |second: u64| {
        let terms = Terms { response_ms: second * 1000, lifetime: Duration::from_secs(60), ..Terms::default() };
        let body = [Bytes::from(second.to_string())];
        let (key, policy) = (key("a"), plain());
        let draft = Draft { key: &key, status: StatusCode::OK, headers: &HeaderMap::new(), body: &body, terms: &terms, policy: &policy, fetch: Duration::ZERO, prior: None };
        Arc::new(draft.build())
    };
    let there = || match memory.get("v1", "a", "") {
        Some(Slot::Entry(entry)) => Entry::body(&entry).clone(),
        other => panic!("{other:?}"),
    };
    for (second, left) in [(20, "20"), (10, "20"), (30, "30"), (30, "30")] {
        memory.insert_newer(&key("a"), &entry(second));
        assert_eq!(there(), left);
    }
}
