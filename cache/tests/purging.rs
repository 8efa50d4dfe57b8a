//! Purges: what they mean, what they count, and that nothing older than a purge comes back.

mod support;

use async_trait::async_trait;
use bytes::Bytes;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};
use support::*;
use tokio::sync::Semaphore;
use weir_cache::{clock::Clock, *};
use weir_store::*;

const SEC: Duration = Duration::from_secs(1);

/// Machines that share a store and a clock, and listen.
async fn cluster(count: usize, store: &Store) -> Vec<Machine> {
    let clock = Clock::manual(T0);
    let machines: Vec<_> = (0..count).map(|_| Machine::with(store.clone(), clock.clone())).collect();
    machines.iter().for_each(|machine| machine.engine.start());
    settle().await;
    machines
}

fn at(key: &str) -> Plan {
    Plan { key: key.into(), ..plan(html()) }
}

fn tag(tag: &str) -> Purge {
    Purge::Tag { tag: tag.into() }
}

fn prefix(host: Option<&str>, path: &str) -> Purge {
    Purge::Prefix { host: host.map(str::to_owned), path: path.into() }
}

/// An origin whose answers are numbered and carry these tags.
fn numbered(tags: &'static str) -> Arc<Origin> {
    Origin::new(move |n, _| Reply::page(&n.to_string()).with("cache-tag", tags).with("cache-control", "stale-while-revalidate=100, stale-if-error=1000"))
}

fn number(got: &Got) -> &str {
    got.text().trim_start_matches("<html>").trim_end_matches("</html>")
}

#[tokio::test(start_paused = true)]
async fn by_tag_everywhere_and_counted_once() {
    let machines = cluster(3, &Store::memory()).await;
    let (shoes, boots, other) = (numbered("shoes, all"), numbered("boots, all"), numbered("other"));
    let pages = [(at("html_cache:a.example/shoes"), &shoes), (at("html_cache:a.example/boots"), &boots), (at("html_cache:a.example/other"), &other)];
    for machine in &machines {
        for (plan, origin) in &pages {
            assert_eq!(number(&machine.ask(plan, &get(&[]), origin).await), "0");
        }
    }
    settle().await;
    let report = machines[1].engine.purge(&tag("all"), false).await;
    settle().await;
    assert_eq!((report.entries, report.in_memory, report.store_reached, report.others_told), (2, 2, true, true));
    let mut shown = report.pages.clone();
    shown.sort();
    assert_eq!(shown, ["a.example/boots", "a.example/shoes"]);
    for (machine, first) in machines.iter().zip([true, false, false]) {
        for (plan, origin) in &pages[..2] {
            let got = machine.ask(plan, &get(&[]), origin).await;
            assert_eq!((number(&got), got.verdict()), ("1", if first { Verdict::Miss } else { Verdict::Hit }));
        }
        assert_eq!(machine.ask(&pages[2].0, &get(&[]), &other).await.report.tier, Some(Tier::Memory), "not meant");
    }
    assert_eq!((shoes.hits(), boots.hits(), other.hits()), (2, 2, 1));
    assert_eq!(machines[0].engine.purge(&tag("none"), false).await.entries, 0);
    // The rule's own tag counts like those of responses.
    assert_eq!(machines[0].engine.purge(&tag("catalogue"), false).await.entries, 3);
    assert_eq!(machines[0].engine.purge(&tag("catalogue"), false).await.entries, 0);
}

#[tokio::test(start_paused = true)]
async fn by_prefix_host_key_and_all() {
    let store = Store::memory();
    let keys = [
        "html_cache:a.example/",
        "html_cache:a.example/shoes",
        "html_cache:a.example/shoes/red?page=2",
        "html_cache:a.example/shoes-old",
        "html_cache:b.example/shoes/blue",
        "cache:GET:/shoes/api",
    ];
    for (purge, gone) in [
        (prefix(Some("A.Example:443"), "/shoes"), &[1, 2, 3][..]),
        (prefix(Some("a.example"), "/shoes/"), &[2]),
        (prefix(None, "/shoes/"), &[2, 4, 5]),
        (prefix(Some("c.example"), "/"), &[]),
        (Purge::Host { host: "a.example".into() }, &[0, 1, 2, 3]),
        (Purge::Host { host: "example".into() }, &[]),
        (Purge::Key { epoch: "v1".into(), key: keys[1].into() }, &[1]),
        (Purge::Key { epoch: "v2".into(), key: keys[1].into() }, &[]),
        (Purge::All, &[0, 1, 2, 3, 4, 5]),
    ] {
        let machines = cluster(2, &store).await;
        let origin = Origin::always(Reply::page("x"));
        for key in keys {
            machines[0].ask(&at(key), &get(&[]), &origin).await;
        }
        settle().await;
        let report = machines[1].engine.purge(&purge, false).await;
        settle().await;
        // Asked of the machine that has nothing in memory: the store's index finds them.
        assert_eq!((report.entries, report.in_memory), (gone.len() as u64, 0), "{purge:?}");
        for (number, key) in keys.iter().enumerate() {
            for machine in &machines {
                let got = machine.ask(&at(key), &get(&[("cache-control", "only-if-cached")]), &Origin::always(Reply::refused())).await;
                assert_eq!(got.kind == "stored", !gone.contains(&number), "{purge:?}, {key}: {got:?}");
            }
        }
        machines[0].engine.purge(&Purge::All, false).await;
    }
}

#[tokio::test(start_paused = true)]
async fn soft_means_stale_and_hard_means_gone() {
    for (soft, failing) in [(true, false), (true, true), (false, false), (false, true)] {
        let store = Store::memory();
        let machines = cluster(2, &store).await;
        let page = at("html_cache:a.example/shoes");
        let origin = Origin::new(move |n, _| match n {
            0 => Reply::page("0").with("cache-control", "stale-while-revalidate=100, stale-if-error=1000"),
            _ if failing => Reply { head_after: SEC, ..Reply::refused() },
            _ => Reply::page(&n.to_string()).slow(SEC),
        });
        for machine in &machines {
            machine.ask(&page, &get(&[]), &origin).await;
        }
        settle().await;
        machines[0].advance(1);
        assert_eq!(machines[0].engine.purge(&prefix(None, "/shoes"), soft).await.entries, 1);
        settle().await;
        // A machine that never had it in memory must not take the store's copy for fresh.
        let third = Machine::with(store.clone(), machines[0].clock.clone());
        let all = [&third, &machines[1], &machines[0]];
        for machine in all {
            let got = machine.ask(&page, &get(&[]), &origin).await;
            match (soft, failing) {
                (true, _) => {
                    assert_eq!((got.verdict(), got.text(), got.report.detail), (Verdict::Stale, "<html>0</html>", Some("stale-while-revalidate")));
                }
                (false, true) => assert_eq!(got.kind, "failed"),
                (false, false) => assert_eq!(got.text(), "<html>1</html>"),
            }
        }
        tokio::time::sleep(5 * SEC).await;
        if !failing {
            for machine in all {
                let got = machine.ask(&page, &get(&[]), &origin).await;
                assert!(got.text() == "<html>1</html>" || got.verdict() == Verdict::Stale, "{got:?}");
                tokio::time::sleep(5 * SEC).await;
                assert_eq!(machine.ask(&page, &get(&[]), &origin).await.text(), "<html>1</html>");
            }
            assert_eq!(origin.hits(), 2, "refreshed once");
        } else if soft {
            // Past stale-while-revalidate, but within stale-if-error.
            machines[0].advance(200);
            for machine in all {
                let got = machine.ask(&page, &get(&[]), &origin).await;
                assert_eq!((got.verdict(), got.text(), got.report.detail), (Verdict::Stale, "<html>0</html>", Some("stale-if-error")));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn past_the_stale_window_a_soft_purge_asks_first() {
    let machine = Machine::new();
    let page = plan(html());
    let origin = Origin::new(|n, _| Reply::page(&n.to_string()));
    machine.ask(&page, &get(&[]), &origin).await;
    settle().await;
    assert_eq!(machine.engine.purge(&Purge::All, true).await.entries, 1);
    assert_eq!(machine.ask(&page, &get(&[]), &origin).await.text(), "<html>1</html>", "the response allowed no staleness");
}

/// Every kind of purge that means the page of `meant`, for races.
fn all_kinds(page: &Plan) -> Vec<Purge> {
    vec![
        Purge::Key { epoch: page.epoch.to_string(), key: page.key.clone() },
        prefix(Some("shop.example.com"), "/"),
        Purge::Host { host: "shop.example.com".into() },
        tag("raced"),
        Purge::All,
    ]
}

#[tokio::test(start_paused = true)]
async fn an_answer_older_than_the_purge_is_not_kept() {
    let page = plan(html());
    for soft in [false, true] {
        for purge in all_kinds(&page) {
            // Purged before the head, and in the midst of the body; by this machine and by another.
            for (wait, by) in [(SEC, 0), (SEC, 1), (3 * SEC, 0), (3 * SEC, 1)] {
                let store = Store::memory();
                let machines = cluster(2, &store).await;
                let origin = Origin::new(|n, _| {
                    Reply::page("").with("cache-tag", "raced").slow(2 * SEC).pieces(&["<html>", &n.to_string(), "</html>"], SEC)
                });
                let early = tokio::spawn(machines[0].ask(&page, &get(&[]), &origin));
                tokio::time::sleep(wait).await;
                machines[by].engine.purge(&purge, soft).await;
                settle().await;
                let late = tokio::spawn(machines[0].ask(&page, &get(&[]), &origin));
                assert_eq!(early.await.expect("client").text(), "<html>0</html>", "who asked before the purge may have the old page");
                let late = late.await.expect("client");
                assert_eq!(late.text(), "<html>1</html>", "{purge:?} by {by}, soft: {soft}: who asked after it may not");
                settle().await;
                for machine in [&machines[0], &machines[1], &Machine::with(store.clone(), machines[0].clock.clone())] {
                    let got = machine.ask(&page, &get(&[]), &origin).await;
                    assert_eq!(got.text(), "<html>1</html>", "{purge:?} by {by}, soft: {soft}");
                }
                assert_eq!(origin.hits(), 2, "{purge:?} by {by}, soft: {soft}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_purge_that_means_another_page_disturbs_no_fill() {
    let machines = cluster(2, &Store::memory()).await;
    let page = plan(html());
    let origin = Origin::always(Reply::page("x").with("cache-tag", "mine").slow(SEC));
    let early = tokio::spawn(machines[0].ask(&page, &get(&[]), &origin));
    settle().await;
    for purge in [tag("other"), prefix(None, "/other"), Purge::Host { host: "other.example".into() }] {
        machines[1].engine.purge(&purge, false).await;
    }
    early.await.expect("client");
    settle().await;
    assert_eq!(machines[0].ask(&page, &get(&[]), &origin).await.report.tier, Some(Tier::Memory));
    assert_eq!(machines[1].ask(&page, &get(&[]), &origin).await.report.tier, Some(Tier::Store));
    assert_eq!(origin.hits(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_stored_while_the_message_was_on_its_way_is_taken_back() {
    for soft in [false, true] {
        let store = Store::memory();
        let machines = cluster(1, &store).await;
        let page = plan(html());
        let origin = numbered("late");
        machines[0].ask(&page, &get(&[]), &origin).await;
        settle().await;
        // The purging machine was past this page in the store before it was put there; now its message arrives.
        let message = format!(r#"{{"from":1,"id":7,"soft":{soft},"at":{},"op":"tag","tag":"late"}}"#, T0 * 1000);
        store.bus.publish("purge", message.into()).await.expect("store");
        settle().await;
        let fresh = Machine::with(store.clone(), machines[0].clock.clone());
        for machine in [&fresh, &machines[0]] {
            let got = machine.ask(&page, &get(&[]), &origin).await;
            assert!(got.verdict() != Verdict::Hit || number(&got) == "1", "{got:?}");
            settle().await;
        }
        assert_eq!(machines[0].ask(&page, &get(&[]), &origin).await.text(), "<html>1</html>");
    }
}

#[tokio::test(start_paused = true)]
async fn all_variants_go_and_each_counts() {
    let machines = cluster(2, &Store::memory()).await;
    let page = plan(plain());
    let origin = Origin::new(|n, _| Reply::new(200, &[("cache-control", "max-age=600"), ("vary", "accept-language")], &n.to_string()));
    let languages = ["de", "fr", "it"].map(|language| get(&[("accept-language", language)]));
    for request in &languages {
        machines[0].ask(&page, request, &origin).await;
    }
    settle().await;
    machines[1].ask(&page, &languages[0], &origin).await;
    assert_eq!(origin.hits(), 3);
    let report = machines[1].engine.purge(&Purge::Key { epoch: "v1".into(), key: page.key.clone() }, false).await;
    assert_eq!((report.entries, report.in_memory), (3, 1));
    settle().await;
    for machine in &machines {
        for request in &languages {
            machine.ask(&page, request, &origin).await;
        }
        settle().await;
    }
    assert_eq!(origin.hits(), 6, "each fetched once more");
    // Soft: all variants stale, none lost.
    assert_eq!(machines[0].engine.purge(&prefix(None, "/"), true).await.entries, 3);
    settle().await;
    for request in &languages {
        assert!(machines[1].ask(&page, request, &origin).await.text().parse::<usize>().expect("a number") >= 6);
    }
}

#[tokio::test(start_paused = true)]
async fn a_purge_clears_the_mark_of_an_uncacheable_page() {
    let machine = Machine::new();
    let page = plan(html());
    let origin = Origin::new(|n, _| if n == 0 { Reply::page("mine").with("set-cookie", "a=b") } else { Reply::page("all") });
    machine.ask(&page, &get(&[]), &origin).await;
    assert_eq!(machine.ask(&page, &get(&[]), &origin).await.report.detail, Some("hit-for-miss"));
    assert_eq!(machine.engine.purge(&Purge::Key { epoch: "v1".into(), key: page.key.clone() }, false).await.entries, 0, "a mark is no entry");
    assert_eq!(machine.ask(&page, &get(&[]), &origin).await.verdict(), Verdict::Miss);
    assert_eq!(machine.ask(&page, &get(&[]), &origin).await.verdict(), Verdict::Hit);
}

#[tokio::test(start_paused = true)]
async fn many_entries_in_many_steps() {
    let store = Store::memory();
    let machines = cluster(2, &store).await;
    let origin = Origin::always(Reply::page("x").with("cache-control", "stale-while-revalidate=100"));
    for n in 0..1500 {
        machines[0].ask(&at(&format!("html_cache:a.example/{n}")), &get(&[]), &origin).await;
    }
    settle().await;
    assert_eq!(machines[1].engine.purge(&tag("catalogue"), true).await.entries, 1500);
    assert_eq!(machines[0].engine.purge(&Purge::All, true).await.entries, 1500);
    let report = machines[0].engine.purge(&Purge::All, false).await;
    assert_eq!((report.entries, report.in_memory, report.pages.len()), (1500, 1500, 1500));
    assert_eq!(machines[1].engine.purge(&Purge::All, false).await.entries, 0);
    assert_eq!(machines[0].engine.stats().memory_entries, 0);
}

/// A store that can be switched off, whose index can be switched off, and whose answers to `get` can be held back.
struct Gated {
    inner: Store,
    away: AtomicBool,
    index_away: AtomicBool,
    /// A permit lets one answer out; closed: all go at once.
    answers: Semaphore,
}

impl Gated {
    fn over(inner: Store) -> Arc<Gated> {
        let gated = Gated { inner, away: AtomicBool::new(false), index_away: AtomicBool::new(false), answers: Semaphore::new(0) };
        gated.answers.close();
        Arc::new(gated)
    }

    fn store(self: &Arc<Self>) -> Store {
        Store { blobs: self.clone(), index: self.clone(), bus: self.clone(), ..self.inner.clone() }
    }

    fn check(&self) -> StoreResult<()> {
        if self.away.load(SeqCst) { Err(StoreError::Away("switched off".into())) } else { Ok(()) }
    }
}

#[async_trait]
impl Blobs for Gated {
    async fn get(&self, key: &str) -> StoreResult<Option<Bytes>> {
        self.check()?;
        let answer = self.inner.blobs.get(key).await;
        if let Ok(permit) = self.answers.acquire().await {
            permit.forget();
        }
        answer
    }
    async fn put(&self, key: &str, value: Bytes, ttl: Duration, fence: Option<u64>) -> StoreResult<bool> {
        self.check()?;
        self.inner.blobs.put(key, value, ttl, fence).await
    }
    async fn delete(&self, keys: &[String]) -> StoreResult<u64> {
        self.check()?;
        self.inner.blobs.delete(keys).await
    }
    async fn patch(&self, key: &str, old: &[u8], new: &[u8]) -> StoreResult<bool> {
        self.check()?;
        self.inner.blobs.patch(key, old, new).await
    }
}

#[async_trait]
impl Index for Gated {
    async fn enter(&self, key: &str, names: &[String], ttl: Duration) -> StoreResult<()> {
        self.check()?;
        if self.index_away.load(SeqCst) {
            return Err(StoreError::Late(SEC));
        }
        self.inner.index.enter(key, names, ttl).await
    }
    async fn find(&self, named: Named<'_>, from: Option<&Cursor>, limit: usize) -> StoreResult<Found> {
        self.check()?;
        self.inner.index.find(named, from, limit).await
    }
    async fn remove(&self, entries: &[Indexed]) -> StoreResult<u64> {
        self.check()?;
        self.inner.index.remove(entries).await
    }
}

#[async_trait]
impl Bus for Gated {
    async fn publish(&self, channel: &str, payload: Bytes) -> StoreResult<()> {
        self.check()?;
        self.inner.bus.publish(channel, payload).await
    }
    async fn subscribe(&self, channel: &str) -> StoreResult<Subscription> {
        self.check()?;
        self.inner.bus.subscribe(channel).await
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_store_memory_is_purged_and_counted() {
    let gated = Gated::over(Store::memory());
    let machine = Machine::on(gated.store());
    let origin = numbered("t");
    let pages: Vec<_> = (0..3).map(|n| at(&format!("html_cache:a.example/{n}"))).collect();
    machine.ask(&pages[0], &get(&[]), &origin).await;
    settle().await;
    gated.away.store(true, SeqCst);
    machine.ask(&pages[1], &get(&[]), &origin).await;
    machine.ask(&pages[2], &get(&[]), &origin).await;
    let report = machine.engine.purge(&tag("t"), false).await;
    assert_eq!((report.entries, report.in_memory, report.store_reached, report.others_told), (3, 3, false, false));
    assert_eq!(machine.engine.stats().memory_entries, 0);
    // Back again: what the store still has is found by asking again, for the index lost nothing.
    gated.away.store(false, SeqCst);
    let report = machine.engine.purge(&tag("t"), false).await;
    assert_eq!((report.entries, report.in_memory, report.store_reached), (1, 0, true));
    assert_eq!(machine.ask(&pages[0], &get(&[]), &origin).await.verdict(), Verdict::Miss);
}

#[tokio::test(start_paused = true)]
async fn what_the_index_does_not_take_stays_out_of_the_store() {
    let gated = Gated::over(Store::memory());
    gated.index_away.store(true, SeqCst);
    let machines = cluster(2, &gated.store()).await;
    let page = plan(html());
    let origin = numbered("t");
    assert_eq!(machines[0].ask(&page, &get(&[]), &origin).await.text(), "<html>0</html>", "no error for clients");
    settle().await;
    assert_eq!(machines[0].ask(&page, &get(&[]), &origin).await.report.tier, Some(Tier::Memory));
    assert_eq!(machines[1].ask(&page, &get(&[]), &origin).await.text(), "<html>1</html>", "no purge could find it in the store");
    settle().await;
    // One that only this machine's memory has is counted, and one that another's has goes by the message.
    assert_eq!(machines[0].engine.purge(&tag("t"), false).await.entries, 1);
    settle().await;
    assert!(machines.iter().all(|machine| machine.engine.peek("v1", &page.key).is_none()));
}

#[tokio::test(start_paused = true)]
async fn what_was_read_from_the_store_before_a_purge_does_not_get_into_memory_after_it() {
    let page = plan(html());
    for purge in all_kinds(&page) {
        let store = Store::memory();
        let machines = cluster(1, &store).await;
        let origin = numbered("raced");
        machines[0].ask(&page, &get(&[]), &origin).await;
        settle().await;
        let slow = Gated { inner: store.clone(), away: AtomicBool::new(false), index_away: AtomicBool::new(false), answers: Semaphore::new(0) };
        let slow = Arc::new(slow);
        let reader = Machine::with(slow.store(), machines[0].clock.clone());
        reader.engine.start();
        settle().await;
        let asked = tokio::spawn(reader.ask(&page, &get(&[]), &origin));
        settle().await;
        machines[0].engine.purge(&purge, false).await;
        settle().await;
        slow.answers.add_permits(1000);
        assert_eq!(asked.await.expect("client").text(), "<html>1</html>", "{purge:?}");
        settle().await;
        assert_eq!(reader.ask(&page, &get(&[]), &origin).await.text(), "<html>1</html>", "{purge:?}");
    }
}
