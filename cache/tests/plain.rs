//! What only responses other than pages need: validation upstream, variants, clients' directives.

mod support;

use std::time::Duration;
use support::*;
use weir_cache::*;

const SEC: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn rfc9111_4_3_4_a_304_renews_the_stored_head() {
    let (machine, plan) = (Machine::new(), plan(plain()));
    let origin = Origin::new(|n, conditions| match n {
        0 => Reply::new(200, &[("cache-control", "max-age=60"), ("etag", "\"a\""), ("last-modified", "Sun, 06 Nov 1994 08:00:00 GMT"), ("x-old", "1"), ("x-both", "1"), ("content-type", "text/plain"), ("date", "Sun, 06 Nov 1994 08:49:37 GMT")], "body"),
        _ => {
            assert_eq!(conditions["if-none-match"], "\"a\"");
            assert_eq!(conditions["if-modified-since"], "Sun, 06 Nov 1994 08:00:00 GMT");
            Reply::new(304, &[("cache-control", "max-age=120"), ("etag", "\"a\""), ("x-both", "2"), ("content-type", "text/wrong"), ("content-length", "0")], "")
        }
    });
    machine.ask(&plan, &get(&[]), &origin).await;
    machine.advance(100);
    let got = machine.ask(&plan, &get(&[]), &origin).await;
    assert_eq!((got.kind, got.verdict(), got.report.fwd, got.report.fwd_status), ("stored", Verdict::Miss, Some("stale"), Some(304)));
    assert_eq!((got.status, got.text(), got.field("age")), (200, "body", Some("0")));
    assert_eq!((got.field("x-old"), got.field("x-both"), got.field("content-type")), (Some("1"), Some("2"), Some("text/plain")));
    machine.advance(119);
    assert_eq!((machine.ask(&plan, &get(&[]), &origin).await.verdict(), origin.hits()), (Verdict::Hit, 2));
}

#[tokio::test(start_paused = true)]
async fn a_page_keeps_its_lifetime_and_its_shown_cache_control_through_a_304() {
    let (machine, plan) = (Machine::new(), plan(html()));
    let fields = [("content-type", "text/html"), ("cache-control", "s-maxage=60"), ("etag", "\"a\"")];
    let origin = Origin::new(move |n, _| if n == 0 { Reply::new(200, &fields, "<html></html>") } else { Reply::new(304, &[("etag", "\"a\"")], "") });
    for round in 0..4 {
        let got = machine.ask(&plan, &get(&[]), &origin).await;
        assert_eq!(got.field("cache-control"), Some("public, max-age=0, must-revalidate"));
        assert_eq!((origin.hits(), got.report.stored), (round + 1, true));
        machine.advance(59);
        assert_eq!(machine.ask(&plan, &get(&[]), &origin).await.verdict(), Verdict::Hit);
        machine.advance(1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_without_etag_gets_one_that_is_never_sent_to_the_origin() {
    let (machine, plan) = (Machine::new(), plan(html()));
    let origin = Origin::always(Reply::page("x"));
    machine.ask(&plan, &get(&[]), &origin).await;
    let etag = machine.ask(&plan, &get(&[]), &origin).await.field("etag").expect("made").to_owned();
    let got = machine.ask(&plan, &get(&[("if-none-match", &etag)]), &origin).await;
    assert_eq!((got.status, got.text()), (304, ""));
    machine.advance(61);
    machine.ask(&plan, &get(&[]), &origin).await;
    assert!(origin.asked.lock()[1].is_empty());
    assert_eq!(machine.ask(&plan, &get(&[]), &origin).await.field("etag"), Some(&*etag), "the same body, the same tag");
}

#[tokio::test(start_paused = true)]
async fn a_304_about_another_representation_is_followed_by_a_whole_fetch() {
    let (machine, plan) = (Machine::new(), plan(plain()));
    let origin = Origin::new(|n, _| match n {
        0 => Reply::new(200, &[("cache-control", "max-age=60"), ("etag", "\"a\"")], "old"),
        1 => Reply::new(304, &[("etag", "\"b\"")], ""),
        _ => Reply::new(200, &[("cache-control", "max-age=60"), ("etag", "\"b\"")], "new"),
    });
    machine.ask(&plan, &get(&[]), &origin).await;
    machine.advance(61);
    assert_eq!(machine.ask(&plan, &get(&[]), &origin).await.text(), "new");
    assert!(origin.asked.lock()[2].is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_304_that_forbids_storing_ends_the_entry() {
    let (machine, plan) = (Machine::new(), plan(plain()));
    let origin = Origin::new(|n, _| match n {
        0 => Reply::new(200, &[("cache-control", "max-age=60"), ("etag", "\"a\"")], "old"),
        _ => Reply::new(304, &[("etag", "\"a\""), ("cache-control", "private")], ""),
    });
    machine.ask(&plan, &get(&[]), &origin).await;
    machine.advance(61);
    let got = machine.ask(&plan, &get(&[]), &origin).await;
    assert_eq!((got.kind, got.report.detail), ("pass", Some("private")));
    assert!(machine.engine.peek("v1", &plan.key).is_none());
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_1_clients_who_wait_for_one_fill_get_their_own_variant() {
    let (machine, plan) = (Machine::new(), plan(plain()));
    let origin = Origin::new(|n, _| Reply::new(200, &[("cache-control", "max-age=60"), ("vary", "accept-language")], &n.to_string()).slow(SEC));
    let languages = ["de", "fr", "de", "it", "fr"];
    let clients: Vec<_> = languages.iter().map(|language| tokio::spawn(machine.ask(&plan, &get(&[("accept-language", language)]), &origin))).collect();
    let mut bodies = Vec::new();
    for client in clients {
        bodies.push(client.await.expect("client").text().to_owned());
    }
    assert_eq!(origin.hits(), 3);
    assert_eq!((&bodies[0], &bodies[1]), (&bodies[2], &bodies[4]));
    assert_ne!(bodies[0], bodies[1]);
    assert_ne!(bodies[1], bodies[3]);
    for (language, body) in languages.iter().zip(&bodies) {
        let got = machine.ask(&plan, &get(&[("accept-language", language)]), &origin).await;
        assert_eq!((got.verdict(), got.text()), (Verdict::Hit, body.as_str()));
    }
    let got = machine.ask(&plan, &get(&[("accept-language", "pl")]), &origin).await;
    assert_eq!((got.verdict(), got.report.fwd), (Verdict::Miss, Some("vary-miss")));
}

#[tokio::test(start_paused = true)]
async fn when_vary_grows_old_variants_are_not_mistaken() {
    let (machine, plan) = (Machine::new(), plan(plain()));
    let origin = Origin::new(|n, _| {
        let vary = if n == 0 { "origin" } else { "origin, accept" };
        Reply::new(200, &[("cache-control", "max-age=60"), ("vary", vary)], &n.to_string())
    });
    let with = |origin: &str, accept: &str| get(&[("origin", origin), ("accept", accept)]);
    machine.ask(&plan, &with("a", "x"), &origin).await;
    assert_eq!(machine.ask(&plan, &with("b", "x"), &origin).await.text(), "1");
    assert_eq!(machine.ask(&plan, &with("b", "y"), &origin).await.text(), "2");
    assert_eq!(machine.ask(&plan, &with("b", "x"), &origin).await.text(), "1");
}

#[tokio::test(start_paused = true)]
async fn rfc9111_3_5_a_refusal_because_of_authorization_concerns_only_those_who_send_it() {
    let (machine, plan) = (Machine::new(), plan(plain()));
    let origin = Origin::always(Reply::new(200, &[("cache-control", "max-age=60")], "x"));
    let signed = get(&[("authorization", "Bearer x")]);
    let got = machine.ask(&plan, &signed, &origin).await;
    assert_eq!((got.kind, got.report.detail), ("filling", Some("authorization")));
    assert_eq!(machine.ask(&plan, &signed, &origin).await.report.detail, Some("hit-for-miss"));
    assert!(machine.ask(&plan, &get(&[]), &origin).await.report.stored);
    assert_eq!(machine.ask(&plan, &signed, &origin).await.verdict(), Verdict::Hit, "what was stored without it is for everyone");
}

#[tokio::test(start_paused = true)]
async fn an_error_page_made_for_one_visitor_goes_to_no_other() {
    let (machine, plan) = (Machine::new(), plan(plain()));
    let origin = Origin::always(Reply::new(500, &[("cache-control", "private")], "dear Ann, something broke").slow(SEC));
    let (ann, bob) = (get(&[("cookie", "session=ann")]), get(&[("cookie", "session=bob")]));
    let (a, b) = tokio::join!(machine.ask(&plan, &ann, &origin), machine.ask(&plan, &bob, &origin));
    assert_eq!((a.kind, b.kind), ("filling", "pass"));
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_2_7_fields_that_are_private_are_neither_stored_nor_shared() {
    let (machine, plan) = (Machine::new(), plan(plain()));
    let origin = Origin::always(Reply::new(200, &[("cache-control", "max-age=60, private=\"x-user\""), ("x-user", "ann"), ("x-kept", "1")], "x"));
    for _ in 0..2 {
        let got = machine.ask(&plan, &get(&[]), &origin).await;
        assert_eq!((got.field("x-user"), got.field("x-kept")), (None, Some("1")));
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9110_9_3_2_head_on_a_cold_page_fetches_and_stores_the_whole() {
    let (machine, plan) = (Machine::new(), plan(html()));
    let origin = Origin::always(Reply::page("x").with("content-length", "14"));
    let head = CacheRequest { method: http::Method::HEAD, ..get(&[]) };
    let got = machine.ask(&plan, &head, &origin).await;
    assert_eq!((got.text(), got.field("content-length")), ("", Some("14")));
    settle().await;
    let got = machine.ask(&plan, &get(&[]), &origin).await;
    assert_eq!((got.verdict(), got.text()), (Verdict::Hit, "<html>x</html>"));
}

#[tokio::test(start_paused = true)]
async fn unsafe_methods_do_not_enter() {
    let (machine, plan) = (Machine::new(), plan(plain()));
    let origin = Origin::always(Reply::page("x"));
    let got = machine.ask(&plan, &CacheRequest { method: http::Method::POST, ..get(&[]) }, &origin).await;
    assert_eq!((got.kind, got.report.fwd, origin.hits()), ("pass", Some("method"), 0));
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_makes_room_and_the_store_still_has_it() {
    let machine = Machine::new();
    let body = "x".repeat(1_000_000);
    let origin = Origin::always(Reply::new(200, &[("cache-control", "max-age=600")], &body));
    let plans: Vec<Plan> = (0..120).map(|n| Plan { key: format!("k{n}"), ..plan(plain()) }).collect();
    for plan in &plans {
        machine.ask(plan, &get(&[]), &origin).await;
    }
    settle().await;
    let stats = machine.engine.stats();
    assert!(stats.memory_bytes <= stats.memory_capacity && stats.evictions > 0, "{stats:?}");
    let mut tiers = [0, 0];
    for plan in &plans {
        match machine.ask(plan, &get(&[]), &origin).await.report.tier {
            Some(Tier::Memory) => tiers[0] += 1,
            Some(Tier::Store) => tiers[1] += 1,
            None => panic!("fetched again"),
        }
    }
    assert!(tiers[0] > 0 && tiers[1] > 0, "{tiers:?}");
}

#[tokio::test(start_paused = true)]
async fn rfc9111_5_2_1_4_who_asks_for_validation_gets_no_old_answer_even_when_the_origin_fails() {
    for failure in [Reply::new(500, &[], "broken"), Reply::refused(), Reply::new(500, &[("set-cookie", "a=b")], "broken")] {
        let (machine, plan) = (Machine::new(), plan(plain()));
        let origin = Origin::new(move |n, _| match n {
            0 => Reply::new(200, &[("cache-control", "max-age=60, stale-if-error=600")], "old"),
            _ => failure.clone(),
        });
        machine.ask(&plan, &get(&[]), &origin).await;
        let got = machine.ask(&plan, &get(&[("cache-control", "no-cache")]), &origin).await;
        assert!(got.kind == "failed" || got.status == 500, "{got:?}");
        assert_eq!(machine.ask(&plan, &get(&[]), &origin).await.text(), "old", "others keep it");
    }
}
