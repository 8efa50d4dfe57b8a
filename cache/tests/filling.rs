//! One process: who fetches, who waits, who gets what.

mod support;

use std::{sync::{Arc, atomic::Ordering::SeqCst}, time::Duration};
use support::*;
use weir_cache::{clock::Clock, *};
use weir_store::Store;

const SEC: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_thousand_clients_for_one_cold_page_cost_one_fetch_and_all_get_it_whole() {
    let (machine, plan) = (Machine::new(), plan(html()));
    let reply = Reply::page("").pieces(&["<html>", "shoes", "</html>"], SEC).slow(SEC);
    let origin = Origin::always(reply);
    let mut clients = Vec::new();
    for _ in 0..1000 {
        let (engine, plan, origin) = (machine.engine.clone(), plan.clone(), origin.clone());
        clients.push(tokio::spawn(async move { read(engine.serve(&plan, &get(&[]), origin, &mut ()).await).await }));
    }
    let mut first = 0;
    for client in clients {
        let got = client.await.expect("client");
        assert_eq!((got.kind, got.status, got.text()), ("filling", 200, "<html>shoes</html>"));
        assert_eq!(got.verdict(), Verdict::Miss);
        assert_eq!((got.report.stored, got.report.detail), (false, Some("streaming")), "nobody knows yet");
        first += usize::from(!got.report.collapsed);
    }
    assert_eq!((origin.hits(), first), (1, 1));
    let got = machine.ask(&plan, &get(&[]), &origin).await;
    assert_eq!((got.kind, got.verdict(), got.report.tier, origin.hits()), ("stored", Verdict::Hit, Some(Tier::Memory), 1));
    let stats = machine.engine.stats();
    assert_eq!((stats.fills, stats.misses, stats.memory_hits, stats.stored, stats.in_flight), (1, 1000, 1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn rfc9211_2_5_stored_is_said_only_when_it_is_decided() {
    let css = |body: &str| Reply::new(200, &[("content-type", "text/css"), ("cache-control", "max-age=60")], body);
    let length = |reply: Reply| reply.with("content-length", "2");
    for (policy, reply, stored, detail) in [
        // In one go with the head: it is known before the head is shown.
        (html(), Reply::page("x"), true, None),
        (html(), Reply::page("").pieces(&["<html>half"], Duration::ZERO), false, Some("incomplete")),
        (html(), Reply::page("<script nonce=\"abc\">"), false, Some("nonce")),
        (Policy { max_size: 4, ..html() }, Reply::page("long"), false, Some("too-large")),
        (plain(), css("a{}"), true, None),
        // What is still on its way decides.
        (html(), Reply::page("").pieces(&["<html>", "</html>"], SEC), false, Some("streaming")),
        (html(), Reply::page("").pieces(&["<html>", "half"], SEC), false, Some("streaming")),
        (plain(), css("a").pieces(&["a"], SEC), false, Some("streaming")),
        // Where only the length could forbid it, and that is known.
        (plain(), length(css("")).pieces(&["a", "b"], SEC), true, None),
    ] {
        let (machine, plan) = (Machine::new(), plan(policy));
        let got = machine.ask(&plan, &get(&[]), &Origin::always(reply)).await;
        assert_eq!((got.verdict(), got.report.stored, got.report.detail), (Verdict::Miss, stored, detail), "{}", got.text());
        assert_eq!(got.report.ttl.is_some(), stored || detail == Some("streaming"), "{}", got.text());
        settle().await;
        // If it is said, it is so; if another reason is given, it is not.
        let kept = machine.engine.peek("v1", &plan.key).is_some();
        assert!(detail == Some("streaming") || kept == stored, "{}", got.text());
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_with_its_head_counts_as_no_answer() {
    let (machine, plan) = (Machine::new(), plan(Policy { stale_if_error: 60 * SEC, ..html() }));
    let broken = Reply::page("half").cut();
    let good = Reply::page("good").with("cache-control", "stale-if-error=600");
    let origin = Origin::new(move |number, _| if number == 0 { good.clone() } else { broken.clone() });
    machine.ask(&plan, &get(&[]), &origin).await;
    machine.advance(61);
    let got = machine.ask(&plan, &get(&[]), &origin).await;
    assert_eq!((got.verdict(), got.text(), origin.hits()), (Verdict::Stale, "<html>good</html>", 2));
}

#[tokio::test(start_paused = true)]
async fn waiters_stream_along_and_do_not_wait_for_the_last_byte() {
    let (machine, plan) = (Machine::new(), plan(html()));
    let origin = Origin::always(Reply::page("").pieces(&["<html>one ", "two</html>"], 10 * SEC));
    let request = get(&[]);
    let (mut one, mut two) = ((), ());
    let leader = machine.engine.serve(&plan, &request, origin.clone(), &mut one);
    let other = machine.engine.serve(&plan, &request, origin.clone(), &mut two);
    let (Outcome::Filling(mut a), Outcome::Filling(mut b)) = tokio::join!(leader, other) else { panic!("both stream") };
    let begun = tokio::time::Instant::now();
    assert_eq!(a.body.chunk().await.expect("piece").as_deref(), Some(&b"<html>one "[..]));
    assert_eq!(b.body.chunk().await.expect("piece").as_deref(), Some(&b"<html>one "[..]));
    assert_eq!(begun.elapsed(), 10 * SEC, "in paused time: the first piece came when the origin sent it");
}

#[tokio::test(start_paused = true)]
async fn an_uncacheable_page_makes_nobody_queue() {
    let (machine, plan) = (Machine::new(), plan(html()));
    let origin = Origin::always(Reply::page("hello").with("set-cookie", "session=1").slow(SEC));
    let mut clients = Vec::new();
    for _ in 0..100 {
        let (engine, plan, origin) = (machine.engine.clone(), plan.clone(), origin.clone());
        clients.push(tokio::spawn(async move {
            let begun = tokio::time::Instant::now();
            let got = read(engine.serve(&plan, &get(&[]), origin, &mut ()).await).await;
            (got, begun.elapsed())
        }));
    }
    let mut own = 0;
    for client in clients {
        let (got, took) = client.await.expect("client");
        assert_eq!(took, SEC, "all were told when the head came");
        assert_eq!((got.verdict(), got.report.detail), (Verdict::Bypass, Some("set-cookie")));
        if got.kind == "filling" {
            own += 1;
            assert_eq!((got.text(), got.field("set-cookie")), ("<html>hello</html>", Some("session=1")), "the one that caused it gets it");
        } else {
            assert_eq!(got.kind, "pass");
        }
    }
    assert_eq!((own, origin.hits()), (1, 1));
    let next = machine.ask(&plan, &get(&[]), &origin).await;
    assert_eq!((next.kind, next.report.detail, origin.hits()), ("pass", Some("hit-for-miss"), 1));
    machine.advance(31);
    tokio::time::advance(31 * SEC).await;
    machine.ask(&plan, &get(&[]), &origin).await;
    assert_eq!(origin.hits(), 2, "after a while it is tried again");
}

#[tokio::test(start_paused = true)]
async fn a_fill_that_is_not_the_client_s_own_goes_to_nobody_when_it_is_uncacheable() {
    let (machine, plan) = (Machine::new(), plan(html()));
    let origin = Origin::always(Reply::page("x").with("set-cookie", "a=b"));
    let request = CacheRequest { fill_is_own: false, ..get(&[]) };
    let got = machine.ask(&plan, &request, &origin).await;
    assert_eq!((got.kind, got.report.detail), ("pass", Some("set-cookie")));
}

#[tokio::test(start_paused = true)]
async fn a_fill_outlives_the_client_that_began_it() {
    for after in [Duration::from_millis(500), Duration::from_millis(1500), Duration::from_millis(2500)] {
        let (machine, plan) = (Machine::new(), plan(html()));
        let origin = Origin::always(Reply::page("").pieces(&["<html>", "whole</html>"], SEC).slow(SEC));
        let client = tokio::spawn({
            let (engine, plan, origin) = (machine.engine.clone(), plan.clone(), origin.clone());
            async move { read(engine.serve(&plan, &get(&[]), origin, &mut ()).await).await }
        });
        tokio::time::sleep(after).await;
        client.abort();
        tokio::time::sleep(10 * SEC).await;
        let got = machine.ask(&plan, &get(&[]), &origin).await;
        assert_eq!((got.verdict(), got.text(), origin.hits()), (Verdict::Hit, "<html>whole</html>", 1), "client left after {after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9111_3_3_a_body_cut_short_is_not_stored() {
    let (machine, plan) = (Machine::new(), plan(html()));
    let replies = [
        Reply::page("</html> looks whole").cut(),
        Reply::page("short").with("content-length", "500"),
        Reply::page("").pieces(&["<html>no end"], Duration::ZERO),
        Reply::page("fine"),
    ];
    let origin = Origin::new(move |n, _| replies[n].clone());
    for (expected, body) in [("truncated", None), ("truncated", None), ("", Some("<html>no end")), ("", Some("<html>fine</html>"))] {
        machine.engine.purge_key("v1", &plan.key).await;
        let got = machine.ask(&plan, &get(&[]), &origin).await;
        match body {
            None => assert_eq!(got.body, Err(expected)),
            Some(body) => assert_eq!(got.text(), body),
        }
        let stored = machine.engine.peek("v1", &plan.key).is_some();
        assert_eq!(stored, got.text() == "<html>fine</html>");
    }
    assert_eq!(machine.engine.stats().refused["incomplete"], 3);
}

#[tokio::test(start_paused = true)]
async fn what_a_plugin_forbids_is_not_stored() {
    let (machine, plan) = (Machine::new(), plan(html()));
    let origin = Origin::always(Reply { forbidden: Some("not-this-one"), ..Reply::page("x") });
    let first = machine.ask(&plan, &get(&[]), &origin).await;
    assert_eq!((first.text(), first.report.detail, first.report.stored), ("<html>x</html>", Some("not-this-one"), false));
    let next = machine.ask(&plan, &get(&[]), &origin).await;
    assert_eq!((next.report.detail, next.report.because), (Some("hit-for-miss"), Some("not-this-one")));
}

#[tokio::test(start_paused = true)]
async fn a_body_over_the_limit_goes_through_and_is_not_stored() {
    let (machine, plan) = (Machine::new(), plan(Policy { max_size: 100_000, ..html() }));
    let piece = "x".repeat(50_000);
    let pieces: Vec<&str> = std::iter::once("<html>").chain(std::iter::repeat_n(piece.as_str(), 40)).chain(["</html>"]).collect();
    let origin = Origin::always(Reply::page("").pieces(&pieces, Duration::ZERO).slow(SEC));
    let both = tokio::join!(machine.ask(&plan, &get(&[]), &origin), machine.ask(&plan, &get(&[]), &origin));
    for got in [both.0, both.1] {
        assert_eq!((got.kind, got.text().len()), ("filling", 2_000_013));
    }
    let next = machine.ask(&plan, &get(&[]), &origin).await;
    assert_eq!((next.kind, next.report.detail, origin.hits()), ("pass", Some("hit-for-miss"), 1));
    // When the head says it already, nothing is begun.
    let (machine, origin) = (Machine::new(), Origin::always(Reply::page("x").with("content-length", "100001")));
    assert_eq!(machine.ask(&plan, &get(&[]), &origin).await.report.detail, Some("too-large"));
}

#[tokio::test(start_paused = true)]
async fn an_origin_error_is_shared_with_those_who_wait_and_not_stored() {
    let (machine, plan) = (Machine::new(), plan(html()));
    let origin = Origin::always(Reply::new(503, &[("content-type", "text/plain")], "busy").slow(SEC));
    let (a, b) = tokio::join!(machine.ask(&plan, &get(&[]), &origin), machine.ask(&plan, &get(&[]), &origin));
    for got in [a, b] {
        assert_eq!((got.kind, got.status, got.text(), got.report.detail), ("filling", 503, "busy", Some("origin-error")));
        assert_eq!((got.verdict(), got.report.stored), (Verdict::Miss, false));
    }
    assert_eq!(origin.hits(), 1);
    machine.ask(&plan, &get(&[]), &origin).await;
    assert_eq!(origin.hits(), 2);
    // Not, however, if it sets a cookie.
    let origin = Origin::always(Reply::new(500, &[("set-cookie", "a=b")], "x").slow(SEC));
    let (a, b) = tokio::join!(machine.ask(&plan, &get(&[]), &origin), machine.ask(&plan, &get(&[]), &origin));
    let mut kinds = [a.kind, b.kind];
    kinds.sort_unstable();
    assert_eq!(kinds, ["filling", "pass"]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_fetch_is_told_to_all_who_wait() {
    let (machine, plan) = (Machine::new(), plan(html()));
    let origin = Origin::always(Reply { head_after: SEC, ..Reply::refused() });
    let (a, b) = tokio::join!(machine.ask(&plan, &get(&[]), &origin), machine.ask(&plan, &get(&[]), &origin));
    for got in [a, b] {
        assert_eq!((got.kind, got.status, got.body), ("failed", 502, Err("connect")));
    }
    assert_eq!((origin.hits(), machine.engine.stats().fill_errors), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_fill_that_panics_frees_the_key() {
    let (machine, plan) = (Machine::new(), plan(html()));
    let origin = Origin::new(|n, _| if n == 0 { panic!("a bug in the origin's driver") } else { Reply::page("fine") });
    let got = machine.ask(&plan, &get(&[]), &origin).await;
    assert_eq!((got.kind, got.body), ("failed", Err("internal")));
    tokio::time::sleep(4 * SEC).await;
    assert_eq!(machine.ask(&plan, &get(&[]), &origin).await.text(), "<html>fine</html>");
}

#[tokio::test(start_paused = true)]
async fn rfc5861_3_stale_while_revalidate() {
    let (machine, plan) = (Machine::new(), plan(html()));
    let origin = Origin::new(|n, _| {
        let swr = "s-maxage=60, stale-while-revalidate=30";
        Reply::new(200, &[("content-type", "text/html"), ("cache-control", swr)], &format!("<html>{n}</html>")).slow(if n == 0 { Duration::ZERO } else { SEC })
    });
    machine.ask(&plan, &get(&[]), &origin).await;
    machine.advance(75);
    for _ in 0..10 {
        let got = machine.ask(&plan, &get(&[]), &origin).await;
        assert_eq!((got.verdict(), got.text(), got.report.ttl, got.field("age")), (Verdict::Stale, "<html>0</html>", Some(-15), Some("75")));
    }
    tokio::time::sleep(2 * SEC).await;
    let got = machine.ask(&plan, &get(&[]), &origin).await;
    assert_eq!((got.verdict(), got.text(), origin.hits()), (Verdict::Hit, "<html>1</html>", 2));
    machine.advance(91);
    let got = machine.ask(&plan, &get(&[]), &origin).await;
    assert_eq!((got.verdict(), got.text(), got.report.fwd), (Verdict::Miss, "<html>2</html>", Some("stale")), "past the window it must wait");
}

#[tokio::test(start_paused = true)]
async fn stale_from_the_store_is_served_at_once_too() {
    let store = weir_store::Store::memory();
    let a = Machine::on(store.clone());
    let plan = plan(html());
    let swr = [("content-type", "text/html"), ("cache-control", "s-maxage=60, stale-while-revalidate=300")];
    let origin = Origin::always(Reply::new(200, &swr, "<html>x</html>").slow(SEC));
    a.ask(&plan, &get(&[]), &origin).await;
    settle().await;
    let b = Machine::on(store);
    b.advance(100);
    let begun = tokio::time::Instant::now();
    let got = b.ask(&plan, &get(&[]), &origin).await;
    assert_eq!((got.verdict(), got.report.tier, begun.elapsed()), (Verdict::Stale, Some(Tier::Store), Duration::ZERO));
    tokio::time::sleep(2 * SEC).await;
    assert_eq!((b.ask(&plan, &get(&[]), &origin).await.verdict(), origin.hits()), (Verdict::Hit, 2));
}

#[tokio::test(start_paused = true)]
async fn rfc5861_4_stale_if_error() {
    let (machine, plan) = (Machine::new(), plan(html()));
    let replies = [
        Reply::new(200, &[("content-type", "text/html"), ("cache-control", "s-maxage=60, stale-if-error=600")], "<html>old</html>"),
        Reply::refused(),
        Reply::new(500, &[], "oops"),
        Reply::refused(),
    ];
    let origin = Origin::new(move |n, _| replies[n.min(3)].clone());
    machine.ask(&plan, &get(&[]), &origin).await;
    for (after, hits) in [(100, 2), (0, 2), (2, 3), (2, 4)] {
        machine.advance(after);
        let got = machine.ask(&plan, &get(&[]), &origin).await;
        assert_eq!((got.verdict(), got.text(), got.report.detail), (Verdict::Stale, "<html>old</html>", Some("stale-if-error")));
        assert_eq!(origin.hits(), hits, "within a second after a failure, the origin is left alone");
    }
    machine.advance(600);
    let got = machine.ask(&plan, &get(&[]), &origin).await;
    assert_eq!((got.kind, got.body), ("failed", Err("connect")), "past the window");
}

#[tokio::test(start_paused = true)]
async fn refresh_fetches_once_while_others_get_the_old_fresh_copy() {
    let (machine, plan) = (Machine::new(), plan(html()));
    let origin = Origin::new(|n, _| Reply::page(&n.to_string()).slow(if n == 0 { Duration::ZERO } else { SEC }));
    machine.ask(&plan, &get(&[]), &origin).await;
    let refresh = CacheRequest { refresh: true, ..get(&[]) };
    let meanwhile = async {
        tokio::time::sleep(SEC / 2).await;
        machine.ask(&plan, &get(&[]), &origin).await
    };
    let (a, b, other) = tokio::join!(machine.ask(&plan, &refresh, &origin), machine.ask(&plan, &refresh, &origin), meanwhile);
    for got in [a, b] {
        assert_eq!((got.verdict(), got.text(), got.report.fwd), (Verdict::Refresh, "<html>1</html>", Some("request")));
    }
    assert_eq!((other.verdict(), other.text()), (Verdict::Hit, "<html>0</html>"));
    assert_eq!((machine.ask(&plan, &get(&[]), &origin).await.text(), origin.hits()), ("<html>1</html>", 2));
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_fails_says_so_and_leaves_the_page() {
    let (machine, plan) = (Machine::new(), plan(html()));
    let origin = Origin::new(|n, _| if n == 0 { Reply::page("kept").with("cache-control", "stale-if-error=600") } else { Reply::refused() });
    machine.ask(&plan, &get(&[]), &origin).await;
    for verdict in [Verdict::Hit, Verdict::Stale] {
        let got = machine.ask(&plan, &CacheRequest { refresh: true, ..get(&[]) }, &origin).await;
        assert_eq!((got.kind, got.verdict()), ("failed", Verdict::Refresh));
        let other = machine.ask(&plan, &get(&[]), &origin).await;
        assert_eq!((other.verdict(), other.text()), (verdict, "<html>kept</html>"));
        machine.advance(100);
    }
}

#[tokio::test(start_paused = true)]
async fn early_refresh_happens_behind_a_hit_and_only_near_the_end() {
    let policy = Policy { early_refresh_beta: 1000.0, ..html() };
    let (machine, plan) = (Machine::new(), plan(policy));
    let origin = Origin::new(|n, _| Reply::page(&n.to_string()).slow(SEC));
    machine.ask(&plan, &get(&[]), &origin).await;
    for _ in 0..50 {
        machine.advance(1);
        let got = machine.ask(&plan, &get(&[]), &origin).await;
        assert_eq!(got.verdict(), Verdict::Hit);
        if origin.hits() > 1 {
            break;
        }
    }
    settle().await;
    tokio::time::sleep(2 * SEC).await;
    assert_eq!(origin.hits(), 2, "one fetch, behind the hits");
    // With beta 0, never.
    let quiet = Plan { policy: Policy { early_refresh_beta: 0.0, ..html() }.into(), ..plan };
    assert_eq!(machine.ask(&quiet, &get(&[]), &origin).await.text(), "<html>1</html>");
    machine.advance(59);
    machine.ask(&quiet, &get(&[]), &origin).await;
    settle().await;
    assert_eq!(origin.hits(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_purge_in_mid_fill_keeps_the_old_response_out() {
    let (machine, plan) = (Machine::new(), plan(html()));
    let origin = Origin::new(|n, _| Reply::page(&n.to_string()).slow(SEC));
    let client = tokio::spawn({
        let (engine, plan, origin) = (machine.engine.clone(), plan.clone(), origin.clone());
        async move { read(engine.serve(&plan, &get(&[]), origin, &mut ()).await).await }
    });
    tokio::time::sleep(SEC / 2).await;
    machine.engine.purge_key("v1", &plan.key).await;
    assert_eq!(client.await.expect("client").text(), "<html>0</html>", "who waited for it gets it");
    settle().await;
    assert_eq!(machine.ask(&plan, &get(&[]), &origin).await.text(), "<html>1</html>");
    assert_eq!(machine.ask(&plan, &get(&[]), &origin).await.verdict(), Verdict::Hit);
    assert!(machine.engine.purge_key("v1", &plan.key).await);
    assert!(!machine.engine.purge_key("v1", &plan.key).await);
    assert_eq!(origin.finished.load(SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_deployment_has_its_own_entries() {
    let (machine, old) = (Machine::new(), plan(html()));
    let new = Plan { epoch: "v2".into(), ..old.clone() };
    let origin = Origin::new(|n, _| Reply::page(&n.to_string()));
    machine.ask(&old, &get(&[]), &origin).await;
    assert_eq!(machine.ask(&new, &get(&[]), &origin).await.text(), "<html>1</html>");
    assert_eq!(machine.ask(&old, &get(&[]), &origin).await.text(), "<html>0</html>");
}

#[tokio::test(start_paused = true)]
async fn rfc9110_15_2_interim_answers_reach_those_who_wait_and_nobody_later() {
    for fill_is_own in [true, false] {
        let (machine, plan) = (Machine::new(), plan(html()));
        let fields = [("link", "</a.css>; rel=preload"), ("link", "</b.css>; rel=preload"), ("set-cookie", "a=b"), ("connection", "x-hop"), ("x-hop", "1")];
        let origin = Origin::always(Reply::page("x").slow(SEC).after(103, &fields).after(102, &[]));
        let request = CacheRequest { fill_is_own, ..get(&[]) };
        let (mut first, mut second, mut late) = (Listener::default(), Listener::default(), Listener::default());
        let (one, two) = tokio::join!(
            machine.engine.serve(&plan, &request, origin.clone(), &mut first),
            machine.engine.serve(&plan, &request, origin.clone(), &mut second)
        );
        assert_eq!((read(one).await.text(), read(two).await.text(), origin.hits()), ("<html>x</html>", "<html>x</html>", 1));
        let told = vec![(103, headers(&fields[..2])), (102, http::HeaderMap::new())];
        assert_eq!(first.0, told, "without what may not be shared");
        // What one client's own request brought may be for that client alone.
        assert_eq!(second.0, if fill_is_own { vec![] } else { told });
        let hit = read(machine.engine.serve(&plan, &request, origin.clone(), &mut late).await).await;
        assert_eq!((hit.verdict(), hit.field("link"), late.0.len()), (Verdict::Hit, None, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn rfc9110_15_2_an_answer_that_is_not_kept_comes_with_its_interim_answers_too() {
    let (machine, plan) = (Machine::new(), plan(html()));
    let origin = Origin::always(Reply::page("x").with("set-cookie", "a=b").after(103, &[("link", "</a.css>; rel=preload")]));
    let mut client = Listener::default();
    let got = read(machine.engine.serve(&plan, &get(&[]), origin.clone(), &mut client).await).await;
    assert_eq!((got.kind, got.text(), client.0.len()), ("filling", "<html>x</html>", 1));
    // Whoever is passed on hears the origin's own.
    let (other, mut client) = (Plan { key: "html_cache:shop.example.com/b".into(), ..plan }, Listener::default());
    let got = read(machine.engine.serve(&other, &CacheRequest { fill_is_own: false, ..get(&[]) }, origin.clone(), &mut client).await).await;
    assert_eq!((got.kind, client.0.len()), ("pass", 0));
}

/// What [`Engine::joined`] brings while a fetch of this reply is under way.
async fn joined_to(plan: &Plan, machine: &Machine, reply: Reply) -> Option<(Arc<Entry>, Report)> {
    let origin = Origin::always(reply);
    let first = {
        let (engine, plan) = (machine.engine.clone(), plan.clone());
        tokio::spawn(async move { read(engine.serve(&plan, &get(&[]), origin, &mut ()).await).await })
    };
    settle().await;
    let found = machine.engine.joined("v1", &plan.key).await;
    first.await.expect("no panic");
    found
}

#[tokio::test(start_paused = true)]
async fn who_joins_a_fill_gets_what_it_stores() {
    let (machine, plan) = (Machine::new(), plan(html()));
    assert!(machine.engine.joined("v1", &plan.key).await.is_none(), "nothing is under way");
    let (entry, report) = joined_to(&plan, &machine, Reply::page("shoes").slow(SEC)).await.expect("stored");
    assert_eq!(entry.body(), "<html>shoes</html>");
    assert_eq!((report.verdict, report.fwd, report.fwd_status, report.stored, report.collapsed), (Verdict::Miss, Some("uri-miss"), Some(200), true, true));
    assert!(report.waited >= SEC && report.ttl == Some(60) && report.key.as_deref() == Some(&plan.key), "{report:?}");
    assert!(machine.engine.joined("v1", &plan.key).await.is_none(), "nothing is under way any more");
    let before = machine.engine.stats();
    machine.engine.count_joined(&report);
    let after = machine.engine.stats();
    assert_eq!((after.misses - before.misses, after.lock_waits - before.lock_waits), (1, 1));
}

/// Also where memory has no room for it: it is at hand nevertheless.
#[tokio::test(start_paused = true)]
async fn who_joins_a_fill_needs_no_memory_tier() {
    let clock = Clock::manual(T0);
    let engine = Engine::new(Store::memory(), EngineOptions { memory_bytes: 0, clock: clock.clone(), ..EngineOptions::default() });
    let (machine, plan) = (Machine { engine, clock }, plan(html()));
    let (entry, _) = joined_to(&plan, &machine, Reply::page("shoes").slow(SEC)).await.expect("stored");
    assert_eq!(entry.body(), "<html>shoes</html>");
    assert!(machine.engine.peek("v1", &plan.key).is_none());
}

#[tokio::test(start_paused = true)]
async fn what_a_joined_fill_says_otherwise_is_for_the_engine_to_judge() {
    for (why, reply) in [
        ("the rest is still to come", Reply::page("").pieces(&["<html>", "</html>"], SEC).slow(SEC)),
        ("it is not kept", Reply::page("x").with("set-cookie", "a=b").slow(SEC)),
        ("its body shows that it is not kept", Reply::page("<script nonce=\"abc\">").slow(SEC)),
        ("it is an error", Reply::new(503, &[], "busy").slow(SEC)),
        ("there is no answer", Reply::refused().slow(SEC)),
        ("it varies", Reply::page("x").with("vary", "accept-language").slow(SEC)),
        ("it says something before", Reply::page("x").after(103, &[("link", "</a.css>; rel=preload")]).slow(SEC)),
    ] {
        assert!(joined_to(&plan(html()), &Machine::new(), reply).await.is_none(), "{why}");
    }
    // An old page is at hand meanwhile.
    let (machine, plan) = (Machine::new(), plan(html()));
    machine.ask(&plan, &get(&[]), &Origin::always(Reply::page("old"))).await;
    machine.advance(61);
    assert!(joined_to(&plan, &machine, Reply::page("new").slow(SEC)).await.is_none());
}
