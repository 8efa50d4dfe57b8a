//! Stored bodies in several encodings: which one a client gets, what its head says, and how they come to be.

mod support;

use bytes::Bytes;
use http::{Method, StatusCode};
use proptest::prelude::*;
use std::{io::Read, sync::Arc, time::Duration};
use support::*;
use weir_cache::{
    encode::{Accepted, Coding},
    draft::Draft,
    memory::StoredKey,
    policy::Terms,
    *,
};
use weir_store::{Health, Store, StoreTotals};

fn text(words: usize) -> String {
    (0..words).map(|n| format!("<li>shoe number {n} in size {}</li>", n * 7 % 46)).collect()
}

fn api() -> Plan {
    plan(plain())
}

fn json(body: &str) -> Reply {
    Reply::new(200, &[("content-type", "application/json"), ("cache-control", "max-age=60"), ("etag", "\"abc\"")], body)
}

/// The entry in memory, once it has this many variants beside identity that clients with these `Accept-Encoding`s ask for.
async fn encoded_for(machine: &Machine, plan: &Plan, wishes: &[&str], variants: usize) -> Arc<Entry> {
    for _ in 0..100_000 {
        if let Some(entry) = machine.engine.peek("v1", &plan.key) {
            for wish in wishes {
                machine.engine.wish("v1", &plan.key, "", &entry, &Accepted::of(Some(wish.as_bytes())));
            }
            if entry.variants().count() > variants {
                return entry;
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("no variants");
}

/// The entry in memory, once it has all variants: clients asked for each.
async fn encoded(machine: &Machine, plan: &Plan) -> Arc<Entry> {
    encoded_for(machine, plan, &["br", "zstd", "gzip"], 3).await
}

/// Until nothing waits to be encoded or is being encoded.
async fn quiet(machine: &Machine, times: u64) {
    while machine.engine.stats().encoded < times {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
}

fn decoded(coding: Coding, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match coding {
        Coding::Br => brotli::BrotliDecompress(&mut &*body, &mut out).expect("br"),
        Coding::Zstd => out = zstd::decode_all(body).expect("zstd"),
        Coding::Gzip => drop(flate2::read::GzDecoder::new(body).read_to_end(&mut out).expect("gzip")),
        Coding::Identity => out.extend_from_slice(body),
    }
    out
}

#[tokio::test(start_paused = true)]
async fn each_variant_gives_the_body_back_under_a_head_of_its_own() {
    let (machine, plan, body) = (Machine::new(), api(), text(300));
    let origin = Origin::always(json(&body).with("vary", "Accept-Language").with("last-modified", "Sun, 06 Nov 1994 08:00:00 GMT"));
    let first = machine.ask(&plan, &get(&[("accept-encoding", "br")]), &origin).await;
    assert_eq!((first.kind, first.field("content-encoding"), first.field("vary")), ("filling", None, Some("Accept-Language, accept-encoding")));
    settle().await;
    // Each is made because someone asked for it.
    let mut seen = Vec::new();
    for coding in ["br", "zstd", "gzip"] {
        while machine.ask(&plan, &get(&[("accept-encoding", coding)]), &origin).await.field("content-encoding").is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    for coding in ["br", "zstd", "gzip", "identity"] {
        let got = machine.ask(&plan, &get(&[("accept-encoding", coding)]), &origin).await;
        let head = machine.ask(&plan, &CacheRequest { method: Method::HEAD, ..get(&[("accept-encoding", coding)]) }, &origin).await;
        assert_eq!((got.status, got.verdict(), head.status), (200, Verdict::Hit, 200), "{coding}");
        let named = if coding == "identity" { None } else { Some(coding) };
        let etag = if coding == "identity" { "\"abc\"".to_owned() } else { format!("\"abc-{coding}\"") };
        assert_eq!((got.field("content-encoding"), got.field("etag")), (named, Some(&*etag)));
        assert_eq!(got.field("vary"), Some("Accept-Language, accept-encoding"));
        assert_eq!(got.field("last-modified"), Some("Sun, 06 Nov 1994 08:00:00 GMT"));
        assert_eq!((got.headers.get_all("etag").iter().count(), got.headers.get_all("content-length").iter().count()), (1, 1));
        assert_eq!(head.headers, got.headers, "HEAD says what GET would");
        assert_eq!(head.text(), "");
        seen.push(got.field("content-length").and_then(|text| text.parse::<usize>().ok()).expect("length"));
    }
    assert_eq!(seen[3], body.len());
    assert!(seen[..3].iter().all(|length| *length < body.len() / 2), "{seen:?}");
    assert_eq!(origin.hits(), 1);
}

#[tokio::test(start_paused = true)]
async fn only_what_is_asked_for_from_the_cache_is_made() {
    let (machine, plan) = (Machine::new(), plan(html()));
    let origin = Origin::always(Reply::page(&text(300)));
    let codings = |machine: &Machine| {
        let entry = machine.engine.peek("v1", &plan.key).expect("stored");
        let mut names: Vec<_> = entry.variants().map(|variant| variant.coding.name()).filter(|name| *name != "identity").collect();
        names.sort();
        names
    };
    // The first visitor, and those who want nothing else.
    machine.ask(&plan, &get(&[("accept-encoding", "gzip, br")]), &origin).await;
    for accept in ["", "identity", "deflate", "gzip;q=0", "gzip;q=0.5, identity"] {
        machine.ask(&plan, &get(&[("accept-encoding", accept)]), &origin).await;
    }
    quiet(&machine, 0).await;
    assert_eq!((codings(&machine), machine.engine.stats().encoded), (vec![], 0));
    // Each client's best, once, however many ask.
    for (round, (accept, there)) in [("gzip", &["gzip"][..]), ("gzip, deflate, br, zstd", &["br", "gzip"]), ("zstd;q=0.9, br;q=0.8", &["br", "gzip", "zstd"])].into_iter().enumerate() {
        for _ in 0..10 {
            machine.ask(&plan, &get(&[("accept-encoding", accept)]), &origin).await;
        }
        quiet(&machine, round as u64 + 1).await;
        assert_eq!(codings(&machine), there, "{accept}");
        assert_eq!(machine.engine.stats().encoded, round as u64 + 1, "{accept}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_changed_page_gets_again_what_was_asked_for_before() {
    let (machine, plan) = (Machine::new(), api());
    let origin = Origin::new(|number, _| json(&text(300).replace("shoe", &format!("shoe{number}"))));
    machine.ask(&plan, &get(&[]), &origin).await;
    encoded_for(&machine, &plan, &["br"], 1).await;
    quiet(&machine, 1).await;
    machine.advance(100);
    machine.ask(&plan, &get(&[]), &origin).await;
    quiet(&machine, 2).await;
    let entry = machine.engine.peek("v1", &plan.key).expect("stored");
    let variant = entry.pick(Some(b"br, gzip"));
    assert_eq!((variant.coding, origin.hits(), machine.engine.stats().encoded), (Coding::Br, 2, 2));
    assert!(decoded(Coding::Br, &variant.body).starts_with(b"<li>shoe1"));
}

#[tokio::test(start_paused = true)]
async fn accept_encoding_chooses_by_weight_and_then_by_size() {
    let (machine, plan, body) = (Machine::new(), plan(html()), text(300));
    machine.ask(&plan, &get(&[]), &Origin::always(Reply::page(&body))).await;
    let entry = encoded(&machine, &plan).await;
    let order: Vec<Coding> = entry.variants().map(|variant| variant.coding).collect();
    assert_eq!(order.len(), 4);
    assert!(entry.variants().is_sorted_by_key(|variant| variant.body.len()));
    let (smallest, second) = (order[0], order[1]);
    for variant in entry.variants() {
        assert_eq!(decoded(variant.coding, &variant.body), **entry.body(), "{:?}", variant.coding);
        assert!(variant.head.ends_with(b"\r\n") && variant.head.starts_with(b"HTTP/1.1 200 OK\r\n"));
        assert_eq!(variant.headers()["vary"], "accept-encoding");
    }
    let mut tags: Vec<_> = entry.variants().filter_map(|variant| variant.etag.clone()).collect();
    tags.sort();
    tags.dedup();
    assert_eq!(tags.len(), 4, "a strong tag names one sequence of bytes");
    let name = |coding: Coding| coding.name();
    let both = format!("{}, {}", name(second), name(smallest));
    let against = format!("{};q=0.5, {};q=0.501", name(smallest), name(second));
    for (accept, wanted) in [
        (None, Coding::Identity),
        (Some(""), Coding::Identity),
        (Some("identity"), Coding::Identity),
        (Some("deflate, compress"), Coding::Identity),
        (Some("br"), Coding::Br),
        (Some("BR"), Coding::Br),
        (Some("zstd"), Coding::Zstd),
        (Some("gzip"), Coding::Gzip),
        (Some("x-gzip"), Coding::Gzip),
        (Some("gzip;q=0.001"), Coding::Gzip),
        (Some("gzip;q=0.1, identity;q=0.2"), Coding::Identity),
        (Some("gzip;q=0.2, identity;q=0.1"), Coding::Gzip),
        (Some("gzip;q=1.0, identity"), Coding::Gzip),
        (Some("gzip , br ; q = 0.9"), Coding::Gzip),
        (Some("gzip;q=0"), Coding::Identity),
        (Some("gzip;q=0.000, gzip"), Coding::Identity),
        (Some("gzip;q=nonsense"), Coding::Identity),
        (Some("gzip;q=2"), Coding::Identity),
        (Some("gzip;q=-1"), Coding::Identity),
        (Some("gzip;q"), Coding::Identity),
        (Some("*"), smallest),
        (Some("*;q=0.1"), smallest),
        (Some("*;q=0"), Coding::Identity),
        (Some("identity;q=0"), Coding::Identity),
        (Some("identity;q=0, *"), smallest),
        (Some("identity;q=0, gzip;q=0.1"), Coding::Gzip),
        (Some("*;q=0.5, gzip"), Coding::Gzip),
        (Some("*;q=0, gzip;q=0.3"), Coding::Gzip),
        (Some("gzip, deflate, br, zstd"), smallest),
        (Some(&*both), smallest),
        (Some(&*against), second),
        (Some(",, ;q=1,\t,gzip"), Coding::Gzip),
    ] {
        assert_eq!(entry.pick(accept.map(str::as_bytes)).coding, wanted, "{accept:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9110_13_1_2_a_304_names_the_copy_that_is_good() {
    let (machine, plan) = (Machine::new(), api());
    let origin = Origin::always(json(&text(300)));
    machine.ask(&plan, &get(&[]), &origin).await;
    encoded(&machine, &plan).await;
    for (accept, held, wanted) in [
        ("br", "\"abc-br\"", Some("\"abc-br\"")),
        ("br", "W/\"abc-br\"", Some("\"abc-br\"")),
        ("br", "\"x\", \"abc-br\"", Some("\"abc-br\"")),
        ("br", "*", Some("\"abc-br\"")),
        ("", "*", Some("\"abc\"")),
        // A copy from before there were variants: identity is acceptable too, so it is what is selected.
        ("br", "\"abc\"", Some("\"abc\"")),
        ("br, gzip", "\"abc-gzip\"", Some("\"abc-gzip\"")),
        ("br, gzip", "\"abc\", \"abc-gzip\", \"abc-br\"", Some("\"abc-br\"")),
        // Not acceptable any more: the client must get another.
        ("br, identity;q=0", "\"abc\"", None),
        ("br", "\"abc-gzip\"", None),
        ("", "\"abc-br\"", None),
        ("br", "\"other\"", None),
    ] {
        let got = machine.ask(&plan, &get(&[("accept-encoding", accept), ("if-none-match", held)]), &origin).await;
        match wanted {
            Some(tag) => {
                assert_eq!((got.status, got.field("etag")), (304, Some(tag)), "{accept} {held}");
                assert!(got.field("content-encoding").is_none() && got.field("content-length").is_none() && got.field("vary").is_some());
                assert_eq!(got.text(), "");
            }
            None => assert_eq!(got.status, 200, "{accept} {held}"),
        }
    }
    assert_eq!(origin.hits(), 1);
}

#[tokio::test(start_paused = true)]
async fn rfc9110_14_parts_are_parts_of_the_plain_body() {
    let (machine, plan, body) = (Machine::new(), api(), text(300));
    let origin = Origin::always(json(&body));
    machine.ask(&plan, &get(&[]), &origin).await;
    encoded(&machine, &plan).await;
    let ask = |fields: &[(&str, &str)]| machine.ask(&plan, &get(fields), &origin);
    let part = ask(&[("accept-encoding", "br"), ("range", "bytes=0-9")]).await;
    assert_eq!((part.status, part.text(), part.field("etag"), part.field("content-encoding")), (206, &body[..10], Some("\"abc\""), None));
    let same = ask(&[("accept-encoding", "br"), ("range", "bytes=0-9"), ("if-range", "\"abc\"")]).await;
    assert_eq!(same.status, 206);
    let other = ask(&[("accept-encoding", "br"), ("range", "bytes=0-9"), ("if-range", "\"abc-br\"")]).await;
    assert_eq!((other.status, other.field("etag")), (200, Some("\"abc-br\"")));
    let whole = ask(&[("accept-encoding", "br, identity;q=0"), ("range", "bytes=0-9")]).await;
    assert_eq!((whole.status, whole.field("content-encoding")), (200, Some("br")));
}

#[tokio::test(start_paused = true)]
async fn weak_tags_stay_weak_and_no_tag_stays_none() {
    for (reply, wanted) in [
        (Reply::new(200, &[("content-type", "text/css"), ("cache-control", "max-age=60"), ("etag", "W/\"abc\"")], &text(300)), Some("W/\"abc-br\"")),
        (Reply::new(200, &[("content-type", "text/css"), ("cache-control", "max-age=60")], &text(300)), None),
    ] {
        let (machine, plan) = (Machine::new(), api());
        machine.ask(&plan, &get(&[]), &Origin::always(reply)).await;
        let entry = encoded(&machine, &plan).await;
        assert_eq!(entry.pick(Some(b"br")).etag.as_deref(), wanted.map(str::as_bytes));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_encoded() {
    let long = text(300);
    let typed = |kind: &str| Reply::new(200, &[("content-type", kind), ("cache-control", "max-age=60")], &long);
    let no = Policy { encodings: Codings::NONE, ..plain() };
    for (what, policy, reply, vary) in [
        ("an image", plain(), typed("image/png"), false),
        ("no type", plain(), Reply::new(200, &[("cache-control", "max-age=60")], &long), false),
        ("no-transform", plain(), typed("text/css").with("cache-control", "no-transform"), false),
        ("a digest", plain(), typed("text/css").with("content-digest", "sha-256=:AAAA:"), false),
        ("short", plain(), Reply::new(200, &[("content-type", "text/css"), ("cache-control", "max-age=60")], "a{}"), true),
        ("a rule that does not want it", no, typed("text/css"), false),
        ("encoded already", plain(), typed("text/css").with("content-encoding", "gzip").with("vary", "accept-encoding"), true),
    ] {
        let (machine, plan) = (Machine::new(), plan(policy));
        let origin = Origin::always(reply);
        let ask = || machine.ask(&plan, &get(&[("accept-encoding", "br, gzip")]), &origin);
        ask().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let got = ask().await;
        assert_eq!((got.verdict(), got.field("vary").is_some()), (Verdict::Hit, vary), "{what}");
        assert_eq!((got.field("content-encoding") == Some("br"), machine.engine.stats().encoded), (false, 0), "{what}");
    }
    // Only what the rule names.
    let (machine, plan) = (Machine::new(), plan(Policy { encodings: [Coding::Gzip].into_iter().collect(), ..plain() }));
    let origin = Origin::always(typed("text/css"));
    let ask = || machine.ask(&plan, &get(&[("accept-encoding", "br, zstd, gzip;q=0.5")]), &origin);
    ask().await;
    while ask().await.field("content-encoding").is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(ask().await.field("content-encoding"), Some("gzip"));
    assert_eq!(machine.engine.peek("v1", &plan.key).expect("stored").variants().count(), 2);
    // Tried once, and not worth it: nothing is kept, and nobody tries again.
    let (machine, plan) = (Machine::new(), api());
    let noise: Bytes = (0..4100).map(|_| fastrand::u8(..)).collect();
    let origin = Origin::always(Reply { body: vec![noise], ..Reply::new(200, &[("content-type", "text/plain"), ("cache-control", "max-age=60")], "") });
    machine.ask(&plan, &get(&[]), &origin).await;
    for _ in 0..5 {
        let got = machine.ask(&plan, &get(&[("accept-encoding", "gzip")]), &origin).await;
        assert_eq!((got.field("content-length"), got.field("content-encoding")), (Some("4100"), None));
        quiet(&machine, 1).await;
    }
    assert_eq!(machine.engine.stats().encoded, 1);
}

#[tokio::test(start_paused = true)]
async fn memory_weighs_the_variants_too() {
    let (machine, plan) = (Machine::new(), plan(html()));
    let origin = Origin::always(Reply::page(&text(1000)));
    machine.ask(&plan, &get(&[]), &origin).await;
    let bare = machine.engine.peek("v1", &plan.key).expect("stored");
    let before = machine.engine.stats().memory_bytes;
    let entry = encoded(&machine, &plan).await;
    let bodies: u64 = entry.variants().filter(|variant| variant.coding != Coding::Identity).map(|variant| variant.body.len() as u64).sum();
    let grown = entry.weight() - bare.weight();
    assert!(grown > bodies && grown < bodies + 4096, "{grown} {bodies}");
    assert_eq!(machine.engine.stats().memory_bytes - before, grown);
    assert_eq!(machine.engine.stats().memory_entries, 1);
}

#[tokio::test(start_paused = true)]
async fn another_instance_need_not_encode_again() {
    for store in [Store::memory(), wire(Store::memory())] {
        let (a, b) = (Machine::on(store.clone()), Machine::on(store));
        let (plan, origin) = (plan(html()), Origin::always(Reply::page(&text(300))));
        a.ask(&plan, &get(&[]), &origin).await;
        let first = encoded(&a, &plan).await;
        // The store gets them right after memory.
        let made = a.engine.stats().encoded;
        quiet(&a, made).await;
        let got = b.ask(&plan, &get(&[("accept-encoding", "br")]), &origin).await;
        assert_eq!((got.report.tier, got.field("content-encoding")), (Some(Tier::Store), Some("br")));
        let second = b.engine.peek("v1", &plan.key).expect("in memory");
        assert_eq!((first.head(), first.body(), first.meta()), (second.head(), second.body(), second.meta()));
        for (one, other) in first.variants().zip(second.variants()) {
            assert_eq!((one.coding, &one.head, &one.body), (other.coding, &other.head, &other.body));
        }
        quiet(&b, 0).await;
        assert_eq!((a.engine.stats().encoded, b.engine.stats().encoded, origin.hits()), (made, 0, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_came_too_early_gets_them_later() {
    let store = Store::memory();
    let (a, b) = (Machine::on(store.clone()), Machine::on(store));
    let (plan, origin) = (plan(html()), Origin::always(Reply::page(&text(300))));
    a.ask(&plan, &get(&[]), &origin).await;
    settle().await;
    assert_eq!(b.ask(&plan, &get(&[("accept-encoding", "br")]), &origin).await.status, 200);
    encoded_for(&a, &plan, &["br"], 1).await;
    encoded_for(&b, &plan, &["br"], 1).await;
    quiet(&b, 0).await;
    assert_eq!((a.engine.stats().encoded, b.engine.stats().encoded), (1, 0));
}

/// An entry, so many seconds younger than the tests' first.
fn entry(plan: &Plan, body: &str, after: u64) -> Entry {
    let key = StoredKey::primary(&plan.epoch, &plan.key);
    let terms = Terms { response_ms: (T0 + after) * 1000, lifetime: Duration::from_secs(600), ..Terms::default() };
    let (headers, body) = (headers(&[("content-type", "text/html")]), [Bytes::copy_from_slice(body.as_bytes())]);
    Draft { key: &key, status: StatusCode::OK, headers: &headers, body: &body, terms: &terms, policy: &plan.policy, fetch: Duration::ZERO, prior: None }.build()
}

/// Puts an entry into the store as an instance would have done before it vanished.
async fn left_behind(store: &Store, plan: &Plan, body: &str) -> String {
    let name = StoredKey::primary(&plan.epoch, &plan.key).store_key("cache");
    assert!(store.blobs.put(&name, entry(plan, body, 0).raw().clone(), Duration::from_secs(600), Some(1)).await.expect("put"));
    name
}

#[tokio::test(start_paused = true)]
async fn if_the_first_instance_vanished_another_encodes() {
    let (store, plan) = (Store::memory(), plan(html()));
    let name = left_behind(&store, &plan, &text(300)).await;
    let before = store.blobs.get(&name).await.expect("get").expect("there");
    let (machine, origin) = (Machine::on(store.clone()), Origin::always(Reply::refused()));
    assert_eq!(machine.ask(&plan, &get(&[]), &origin).await.report.tier, Some(Tier::Store));
    encoded_for(&machine, &plan, &["gzip"], 1).await;
    quiet(&machine, 1).await;
    let after = store.blobs.get(&name).await.expect("get").expect("there");
    assert!(after.len() > before.len(), "with variants");
    assert_eq!((machine.engine.stats().encoded, origin.hits()), (1, 0));
    tokio::time::advance(Duration::from_secs(600)).await;
    assert_eq!(store.blobs.get(&name).await.expect("get"), None, "and no longer than before");
}

#[tokio::test(start_paused = true)]
async fn a_purged_entry_does_not_come_back_with_its_variants() {
    let (store, plan) = (Store::memory(), plan(html()));
    let name = left_behind(&store, &plan, &text(300)).await;
    let (machine, origin) = (Machine::on(store.clone()), Origin::always(Reply::refused()));
    machine.ask(&plan, &get(&[("accept-encoding", "br")]), &origin).await;
    assert!(machine.engine.peek("v1", &plan.key).is_some());
    machine.engine.purge_key(&plan.epoch, &plan.key).await;
    quiet(&machine, 0).await;
    assert!(machine.engine.peek("v1", &plan.key).is_none());
    assert_eq!(store.blobs.get(&name).await.expect("get"), None);
}

#[tokio::test(start_paused = true)]
async fn a_newer_response_is_not_overwritten_by_an_older_one_s_variants() {
    let (store, plan) = (Store::memory(), plan(html()));
    let name = left_behind(&store, &plan, &text(300)).await;
    let (machine, origin) = (Machine::on(store.clone()), Origin::always(Reply::refused()));
    machine.ask(&plan, &get(&[("accept-encoding", "br")]), &origin).await;
    // Another instance stores a newer one while this one waits to encode the old one.
    let newer = entry(&plan, "<html>new</html>", 5);
    assert!(store.blobs.put(&name, newer.raw().clone(), Duration::from_secs(600), Some(2)).await.expect("put"));
    quiet(&machine, 0).await;
    assert_eq!(store.blobs.get(&name).await.expect("get"), Some(newer.raw().clone()));
}

#[tokio::test(start_paused = true)]
async fn a_304_and_an_equal_body_keep_the_variants() {
    let (machine, plan, body) = (Machine::new(), api(), text(300));
    let origin = Origin::new(move |number, conditions| match number {
        1 => {
            assert_eq!(conditions["if-none-match"], "\"abc\"", "the origin knows its own tag only");
            Reply::new(304, &[("cache-control", "max-age=60"), ("etag", "\"abc\"")], "")
        }
        3 => json(&body.replace("shoe", "boot")),
        _ => json(&body),
    });
    machine.ask(&plan, &get(&[]), &origin).await;
    encoded_for(&machine, &plan, &["br"], 1).await;
    quiet(&machine, 1).await;
    for round in 1..4 {
        machine.advance(100);
        let got = machine.ask(&plan, &get(&[("accept-encoding", "br")]), &origin).await;
        assert_eq!((got.status, origin.hits()), (200, round + 1));
        settle().await;
        let entry = machine.engine.peek("v1", &plan.key).expect("stored");
        if round < 3 {
            assert_eq!(entry.pick(Some(b"br")).coding, Coding::Br, "round {round}");
        }
    }
    let entry = encoded_for(&machine, &plan, &["br"], 1).await;
    assert!(decoded(Coding::Br, &entry.pick(Some(b"br")).body).starts_with(b"<li>boot"));
    assert_eq!(machine.engine.stats().encoded, 2);
}

/// A store that says it is at the other end of a wire.
fn wire(inner: Store) -> Store {
    struct Far(Arc<dyn Health>);
    impl Health for Far {
        fn kind(&self) -> &'static str {
            "redis"
        }
        fn address(&self) -> String {
            self.0.address()
        }
        fn check(&self) -> Result<(), String> {
            self.0.check()
        }
        fn totals(&self) -> StoreTotals {
            self.0.totals()
        }
    }
    Store { health: Arc::new(Far(inner.health.clone())), ..inner }
}

#[tokio::test(start_paused = true)]
async fn bodies_are_packed_on_the_wire_and_whole_in_memory() {
    let store = wire(Store::memory());
    let (a, b) = (Machine::on(store.clone()), Machine::on(store.clone()));
    let body = text(300);
    let (plan, origin) = (plan(Policy { encodings: Codings::NONE, ..html() }), Origin::always(Reply::page(&body)));
    a.ask(&plan, &get(&[]), &origin).await;
    settle().await;
    let name = StoredKey::primary(&plan.epoch, &plan.key).store_key("cache");
    let value = store.blobs.get(&name).await.expect("get").expect("there");
    assert!(value.len() < body.len() / 2, "{} of {}", value.len(), body.len());
    let got = b.ask(&plan, &get(&[]), &origin).await;
    assert_eq!((got.report.tier, got.text()), (Some(Tier::Store), &*format!("<html>{body}</html>")));
    let (one, other) = (a.engine.peek("v1", &plan.key).expect("a"), b.engine.peek("v1", &plan.key).expect("b"));
    assert_eq!(one.raw(), other.raw());
    // Whatever happens to those bytes, the reader neither panics nor gives out another body than it should.
    let text = StoredKey::primary(&plan.epoch, &plan.key).text();
    for at in 0..value.len() {
        let mut bytes = value.to_vec();
        bytes[at] ^= 1 << (at % 8);
        if let Ok(codec::Stored::Entry(entry)) = codec::decode(&text, &bytes.into()) {
            assert_eq!(entry.body().len(), one.body().len());
        }
        assert!(codec::decode(&text, &value.slice(..at)).is_err());
    }
    // Unless that is switched off.
    let far = wire(Store::memory());
    let engine = Engine::new(far.clone(), EngineOptions { store_zstd: false, clock: a.clock.clone(), ..EngineOptions::default() });
    read(engine.serve(&plan, &get(&[]), origin.clone(), &mut ()).await).await;
    settle().await;
    assert_eq!(far.blobs.get(&name).await.expect("get").map(|value| value.len()), Some(one.raw().len()));
}

#[tokio::test(start_paused = true)]
async fn a_soft_purge_finds_packed_and_encoded_entries_too() {
    for encode in [false, true] {
        let store = wire(Store::memory());
        let (a, b, c) = (Machine::on(store.clone()), Machine::on(store.clone()), Machine::on(store));
        let plan = plan(Policy { encodings: if encode { Codings::ALL } else { Codings::NONE }, ..html() });
        // Slow enough that a page that is there goes out before.
        let page = Reply::page(&text(300)).with("cache-control", "stale-while-revalidate=600");
        let origin = Origin::new(move |number, _| if number == 0 { page.clone() } else { page.clone().slow(Duration::from_secs(3)) });
        a.ask(&plan, &get(&[]), &origin).await;
        if encode {
            encoded(&a, &plan).await;
        }
        let made = a.engine.stats().encoded;
        quiet(&a, made).await;
        a.advance(5);
        b.advance(5);
        c.advance(5);
        assert_eq!(b.engine.purge(&Purge::All, true).await.entries, 1);
        let got = c.ask(&plan, &get(&[("accept-encoding", "gzip")]), &origin).await;
        assert_eq!((got.verdict(), got.field("content-encoding")), (Verdict::Stale, encode.then_some("gzip")), "{encode}");
        // In the process that had it, it is stale in every encoding.
        assert_eq!(a.ask(&plan, &get(&[("accept-encoding", "zstd")]), &origin).await.field("content-encoding"), encode.then_some("zstd"));
    }
}

fn accepted() -> impl Strategy<Value = (Vec<(String, u16)>, String)> {
    let name = prop_oneof![Just("br"), Just("zstd"), Just("gzip"), Just("identity"), Just("*"), Just("deflate")];
    let space = prop_oneof![Just(""), Just(" "), Just("\t ")];
    proptest::collection::vec((name, 0u16..=1000, any::<bool>(), space), 0..6).prop_map(|items| {
        let mut text = String::new();
        let mut list = Vec::new();
        for (name, weight, upper, space) in items {
            let shown = if upper { name.to_uppercase() } else { name.to_owned() };
            text += &match weight {
                1000 => format!("{space}{shown}{space},"),
                weight => format!("{shown}{space};{space}q={}.{:03},", weight / 1000, weight % 1000),
            };
            list.push((name.to_owned(), weight));
        }
        (list, text)
    })
}

proptest! {
    #[test]
    fn no_accept_encoding_breaks_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        let accepted = Accepted::of(Some(&bytes));
        for coding in [Coding::Br, Coding::Zstd, Coding::Gzip, Coding::Identity] {
            prop_assert!(accepted.weight(coding) <= 1000);
        }
    }

    #[test]
    fn well_formed_fields_mean_what_the_rfc_says((list, text) in accepted()) {
        let read = Accepted::of(Some(text.as_bytes()));
        let lowest = |name: &str| list.iter().filter(|(there, _)| there == name).map(|(_, weight)| *weight).min();
        for coding in [Coding::Br, Coding::Zstd, Coding::Gzip] {
            prop_assert_eq!(read.weight(coding), lowest(coding.name()).or(lowest("*")).unwrap_or(0), "{} {:?}", text, coding);
        }
        let identity = lowest("identity").or(lowest("*"));
        prop_assert_eq!(read.weight(Coding::Identity) > 0, identity != Some(0), "{}", text);
        // Several lines are one list.
        prop_assert_eq!(Accepted::of_lines(text.split(',').map(str::as_bytes)), read);
    }
}

#[test]
fn types_that_compress() {
    for (kind, yes) in [
        ("text/html; charset=utf-8", true),
        ("TEXT/CSS", true),
        ("text/event-stream", false),
        ("application/json", true),
        ("application/problem+json", true),
        ("image/svg+xml", true),
        ("application/javascript", true),
        ("font/ttf", true),
        ("font/woff2", false),
        ("image/jpeg", false),
        ("application/octet-stream", false),
        ("application/zip", false),
        ("nonsense", false),
    ] {
        assert_eq!(encode::compresses(kind), yes, "{kind}");
    }
}
