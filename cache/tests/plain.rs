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

#[tokio::test(start_paused = true)]
async fn rfc9111_4_3_4_only_a_304_about_the_stored_response_renews_it() {
    const EIGHT: &str = "Sun, 06 Nov 1994 08:00:00 GMT";
    const NINE: &str = "Sun, 06 Nov 1994 09:00:00 GMT";
    // Fields of the stored response; of the 304; whether that renews it.
    type Row = (&'static [(&'static str, &'static str)], &'static [(&'static str, &'static str)], bool);
    let rows: [Row; 15] = [
        (&[("etag", "\"a\"")], &[("etag", "\"a\"")], true),
        (&[("etag", "\"a\"")], &[("etag", "W/\"a\"")], true),
        (&[("etag", "W/\"a\"")], &[("etag", "W/\"a\"")], true),
        // A strong tag must be the very same.
        (&[("etag", "W/\"a\"")], &[("etag", "\"a\"")], false),
        (&[("etag", "\"a\"")], &[("etag", "\"b\"")], false),
        (&[("etag", "W/\"a\"")], &[("etag", "W/\"b\"")], false),
        (&[("etag", "\"a\"")], &[], true),
        (&[("last-modified", EIGHT)], &[("last-modified", EIGHT)], true),
        (&[("last-modified", EIGHT)], &[("last-modified", NINE)], false),
        (&[("last-modified", EIGHT)], &[], true),
        (&[("etag", "\"a\""), ("last-modified", EIGHT)], &[("last-modified", NINE)], false),
        // The tag goes before the date.
        (&[("etag", "\"a\""), ("last-modified", EIGHT)], &[("etag", "\"a\""), ("last-modified", NINE)], true),
        // What it varies by was not known when it was stored (section 4.1).
        (&[("etag", "\"a\"")], &[("etag", "\"a\""), ("vary", "accept-encoding, accept-language")], false),
        (&[("etag", "\"a\"")], &[("etag", "\"a\""), ("vary", "*")], false),
        (&[("etag", "\"a\""), ("vary", "Accept-Language")], &[("etag", "\"a\""), ("vary", "accept-language, accept-encoding")], true),
    ];
    for (stored, told, renews) in rows {
        let (machine, plan) = (Machine::new(), plan(plain()));
        let origin = Origin::new(move |n, conditions| match n {
            1 => Reply::new(304, told, ""),
            _ => {
                assert!(conditions.is_empty(), "asked once more, for the whole");
                Reply::new(200, if n == 0 { stored } else { told }, if n == 0 { "old" } else { "new" }).with("cache-control", "max-age=60")
            }
        });
        machine.ask(&plan, &get(&[]), &origin).await;
        machine.advance(61);
        let got = machine.ask(&plan, &get(&[]), &origin).await;
        assert_eq!((got.text(), origin.hits()), if renews { ("old", 2) } else { ("new", 3) }, "{stored:?}, then {told:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_3_2_a_clients_condition_is_judged_by_what_was_renewed() {
    for (held, status, body) in [("\"a\"", 304, ""), ("\"b\"", 200, "body")] {
        let (machine, plan) = (Machine::new(), plan(plain()));
        let fields = [("cache-control", "max-age=60"), ("etag", "\"a\"")];
        let origin = Origin::new(move |n, _| if n == 0 { Reply::new(200, &fields, "body") } else { Reply::new(304, &fields, "") });
        machine.ask(&plan, &get(&[]), &origin).await;
        machine.advance(61);
        let got = machine.ask(&plan, &get(&[("if-none-match", held)]), &origin).await;
        assert_eq!((got.status, got.text(), got.report.fwd_status), (status, body, Some(304)));
        assert_eq!(origin.asked.lock()[1]["if-none-match"], "\"a\"", "the client's own condition is not the fetch's");
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_3_3_another_answer_than_304_takes_the_stored_ones_place_or_is_passed_on() {
    for (status, body, kept) in [(200, "new", true), (404, "gone", true), (403, "no", false), (500, "broken", false)] {
        let (machine, plan) = (Machine::new(), plan(plain()));
        let fields = [("cache-control", "max-age=60"), ("etag", "\"a\"")];
        let origin = Origin::new(move |n, _| if n == 0 { Reply::new(200, &fields, "old") } else { Reply::new(status, &fields[..1], body) });
        machine.ask(&plan, &get(&[]), &origin).await;
        machine.advance(61);
        let got = machine.ask(&plan, &get(&[]), &origin).await;
        assert_eq!((got.kind, got.status, got.text()), ("filling", status, body));
        let next = machine.ask(&plan, &get(&[]), &origin).await;
        assert_eq!(next.verdict() == Verdict::Hit, kept, "{status}: {next:?}");
        assert_ne!(next.text(), "old");
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_2_4_a_failing_origin_is_no_leave_to_serve_what_must_be_validated() {
    let down = || [Reply::refused(), Reply::new(503, &[], "down")];
    for (control, may) in [
        ("max-age=60, stale-if-error=600", true),
        ("s-maxage=60, stale-if-error=600", true),
        ("max-age=60", false),
        ("s-maxage=60", false),
        ("max-age=60, stale-if-error=600, must-revalidate", false),
        ("max-age=60, stale-if-error=600, proxy-revalidate", false),
        ("max-age=60, stale-if-error=600, no-cache", false),
    ] {
        for failure in down() {
            let (machine, plan) = (Machine::new(), plan(plain()));
            let origin = Origin::new(move |n, _| if n == 0 { Reply::new(200, &[("cache-control", control), ("etag", "\"a\"")], "old") } else { failure.clone() });
            machine.ask(&plan, &get(&[]), &origin).await;
            machine.advance(61);
            for request in [get(&[]), get(&[("cache-control", "max-stale")])] {
                let got = machine.ask(&plan, &request, &origin).await;
                let asked_for = control == "max-age=60" && request.headers.contains_key("cache-control");
                assert_eq!(got.text() == "old", may || asked_for, "{control}: {got:?}");
                assert!(got.text() == "old" || got.status >= 500, "{control}: {got:?}");
            }
            // Nor is it what a client wants that names the greatest age.
            for directive in ["max-age=30", "min-fresh=1"] {
                let got = machine.ask(&plan, &get(&[("cache-control", directive)]), &origin).await;
                assert!(got.text() != "old" && got.status >= 500, "{control}, {directive}: {got:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_4_2_4_what_may_stand_in_where_nobody_can_be_asked() {
    let ruled = || Policy { freshness: Freshness::For { ttl: 60 * SEC, override_control: false }, stale_if_error: Duration::ZERO, stale_while_revalidate: Duration::ZERO, ..plain() };
    for (policy, control, may) in [
        (plain(), "max-age=60", true),
        (plain(), "max-age=60, must-revalidate", false),
        (plain(), "max-age=60, proxy-revalidate", false),
        (plain(), "max-age=60, no-cache", false),
        (plain(), "s-maxage=60", false),
        (plain(), "s-maxage=60, stale-while-revalidate=0", false),
        (plain(), "s-maxage=60, stale-while-revalidate=5", true),
        (plain(), "s-maxage=60, stale-if-error=5", true),
        // The rule's time, not that of s-maxage.
        (ruled(), "s-maxage=60", true),
        (ruled(), "s-maxage=60, must-revalidate", false),
    ] {
        let (machine, plan) = (Machine::new(), plan(policy));
        let origin = Origin::always(Reply::new(200, &[("cache-control", control), ("etag", "\"a\"")], "x"));
        machine.ask(&plan, &get(&[]), &origin).await;
        let entry = machine.engine.peek("v1", &plan.key).expect("an entry");
        assert_eq!(entry.may_stand_in(T0 + 1), may || !control.contains("no-cache"), "{control}");
        assert_eq!(entry.may_stand_in(T0 + 1000), may, "{control}");
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_3_1_what_follows_a_body_does_not_get_into_the_stored_head() {
    let (machine, plan) = (Machine::new(), plan(plain()));
    let origin = Origin::always(Reply::new(200, &[("cache-control", "max-age=60")], "x"));
    for verdict in [Verdict::Miss, Verdict::Hit] {
        let got = machine.ask(&plan, &get(&[]), &origin).await;
        assert_eq!((got.verdict(), got.field("x-trailer"), got.field("set-cookie"), got.field("cache-control")), (verdict, None, None, Some("max-age=60")));
    }
    machine.advance(61);
    assert_eq!(machine.ask(&plan, &get(&[]), &origin).await.verdict(), Verdict::Miss);
}
