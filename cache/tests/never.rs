//! Whatever origins answer and clients ask, some things are never stored and never served to the wrong one. The reference here is
//! written by the rules' words, not by the code that is tested.

mod support;

use http::Method;
use proptest::prelude::*;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};
use support::*;
use weir_cache::{clock::Clock, *};
use weir_store::Store;

#[derive(Debug, Clone)]
struct Answer {
    status: u16,
    fields: Vec<(&'static str, &'static str)>,
    body: &'static str,
    cut: bool,
}

fn answer() -> impl Strategy<Value = Answer> {
    let field = prop::sample::select(vec![
        ("cache-control", "max-age=60"),
        ("cache-control", "s-maxage=60, stale-while-revalidate=20"),
        ("cache-control", "max-age=30, stale-if-error=30"),
        ("cache-control", "private"),
        ("cache-control", "no-store"),
        ("cache-control", "no-cache"),
        ("cache-control", "must-revalidate, max-age=10"),
        ("cdn-cache-control", "max-age=40"),
        ("cdn-cache-control", "no-store"),
        ("set-cookie", "session=1"),
        ("vary", "accept-language"),
        ("vary", "*"),
        ("vary", "cookie"),
        ("etag", "\"a\""),
        ("age", "15"),
        ("content-range", "bytes 0-1/2"),
        ("content-length", "3"),
        ("x-nextjs-postponed", "1"),
        ("content-security-policy", "script-src 'nonce-x'"),
        ("location", "/b"),
    ]);
    let kind = prop::sample::select(vec!["text/html", "text/html; charset=utf-8", "text/x-component", "application/json"]);
    let status = prop_oneof![6 => Just(200u16), 1 => prop::sample::select(vec![204u16, 206, 301, 302, 304, 307, 404, 500, 503])];
    let body = prop::sample::select(vec!["<html>fine</html>", "<html>fine</html>", "<html>no end", "", "{}", "<html>NEXT_REDIRECT;</html>", "<html><script nonce=\"x\"></script></html>"]);
    // Most answers may be stored but for one thing: else nearly all would be refused, and nothing would be tested.
    let lifetime = prop::option::weighted(0.8, prop::sample::select(vec!["s-maxage=60, stale-while-revalidate=20", "s-maxage=50, stale-if-error=30"]));
    let kind = prop_oneof![3 => Just("text/html"), 1 => kind];
    let body = prop_oneof![3 => Just("<html>fine</html>"), 1 => body];
    let fields = prop_oneof![prop::collection::vec(field.clone(), 0..2), prop::collection::vec(field, 2..4)];
    (status, lifetime, fields, kind, body, prop::bool::weighted(0.1)).prop_map(|(status, lifetime, mut fields, kind, body, cut)| {
        fields.extend(lifetime.map(|value| ("cache-control", value)));
        fields.push(("content-type", kind));
        Answer { status, fields, body, cut }
    })
}

#[derive(Debug, Clone)]
enum Step {
    Ask { language: &'static str, authorization: bool, fields: Vec<(&'static str, &'static str)>, method: Method },
    Wait(u64),
    Purge,
}

fn step() -> impl Strategy<Value = Step> {
    let field = prop::sample::select(vec![
        ("cache-control", "no-cache"),
        ("cache-control", "max-age=5"),
        ("cache-control", "max-stale=10"),
        ("cache-control", "min-fresh=20"),
        ("cache-control", "only-if-cached"),
        ("cookie", "session=2"),
        ("range", "bytes=0-1"),
        ("if-none-match", "\"a\""),
    ]);
    let ask = (prop::sample::select(vec!["de", "fr"]), prop::bool::weighted(0.15), prop::collection::vec(field, 0..2), prop::sample::select(vec![Method::GET, Method::GET, Method::HEAD]))
        .prop_map(|(language, authorization, fields, method)| Step::Ask { language, authorization, fields, method });
    prop_oneof![6 => ask, 3 => (1u64..50).prop_map(Step::Wait), 1 => Just(Step::Purge)]
}

fn says(answer: &Answer, name: &str, word: &str) -> bool {
    answer.fields.iter().any(|(n, value)| *n == name && value.contains(word))
}

fn has(answer: &Answer, name: &str) -> bool {
    answer.fields.iter().any(|(n, _)| *n == name)
}

/// Why an answer must never be served from the cache.
fn forbidden(answer: &Answer, gate: Gate, authorization: bool) -> Option<&'static str> {
    let targeted = has(answer, "cdn-cache-control");
    let (control, other) = if targeted { ("cdn-cache-control", "-") } else { ("cache-control", "-") };
    let word = |word: &str| says(answer, control, word) || says(answer, other, word);
    let length = answer.fields.iter().filter(|(n, _)| *n == "content-length").count();
    match () {
        () if answer.cut => Some("cut short"),
        () if length == 1 && answer.body.len() != 3 => Some("not as long as it says"),
        () if has(answer, "set-cookie") => Some("sets a cookie"),
        () if word("no-store") || word("private") => Some("forbids it"),
        () if says(answer, "vary", "*") || says(answer, "vary", "cookie") => Some("fits no one else"),
        () if has(answer, "content-range") || answer.status == 206 => Some("a part"),
        () if matches!(answer.status, 304 | 307 | 500 | 503) => Some("status"),
        () if authorization && !word("s-maxage") && !word("must-revalidate") => Some("made for one who signed in"),
        () if gate == Gate::Plain => None,
        () if authorization => Some("made for one who signed in"),
        () if matches!(answer.status, 204 | 302) => Some("no page"),
        () if word("no-cache") => Some("page that must be checked"),
        () if has(answer, "x-nextjs-postponed") || has(answer, "content-security-policy") => Some("made for one answer"),
        () if says(answer, "vary", "accept-language") => Some("page that varies"),
        () if answer.status != 301 && !says(answer, "content-type", "text/html") => Some("no HTML"),
        () if answer.status != 301 && answer.body != "<html>fine</html>" => Some("not a whole, sound page"),
        () => None,
    }
}

/// Seconds after its coming, at most, that an answer may be served without asking: fresh time and every stale window.
fn longest(answer: &Answer, max_stale: bool) -> u64 {
    let mut most: u64 = 60 + 30;
    if has(answer, "age") {
        most -= 15;
    }
    if max_stale {
        most += 10;
    }
    most
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn nothing_forbidden_is_ever_served(answers in prop::collection::vec(answer(), 1..6), steps in prop::collection::vec(step(), 1..25), page in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("runtime");
        runtime.block_on(async {
            let policy = if page { Policy { statuses: plain().statuses, ..html() } } else { plain() };
            let gate = policy.gate;
            let plan = plan(policy);
            let machine = Machine::new();
            let script = answers.clone();
            // Every fetch gets a number that its answer carries, so that a stored copy can be traced to its fetch.
            let origin = Origin::new(move |n, conditions| {
                let answer = &script[n % script.len()];
                // A real origin says 304 only to those who have a validator.
                let status = if answer.status == 304 && conditions.is_empty() { 200 } else { answer.status };
                let mut reply = Reply::new(status, &answer.fields, if status == 304 { "" } else { answer.body }).with("x-fetch", &n.to_string());
                reply.cut = answer.cut;
                reply
            });
            // For each fetch: when, for which language, with Authorization or not.
            let mut fetches: Vec<(u64, &str, bool)> = Vec::new();
            let mut purged_before = 0;
            for step in &steps {
                match step {
                    Step::Wait(seconds) => machine.advance(*seconds),
                    Step::Purge => {
                        settle().await;
                        machine.engine.purge_key("v1", &plan.key).await;
                        purged_before = fetches.len();
                    }
                    Step::Ask { language, authorization, fields, method } => {
                        let mut all = vec![("accept-language", *language)];
                        if *authorization {
                            all.push(("authorization", "Bearer x"));
                        }
                        all.extend(fields.iter().copied());
                        let request = CacheRequest { method: method.clone(), ..get(&all) };
                        let got = machine.ask(&plan, &request, &origin).await;
                        settle().await;
                        while fetches.len() < origin.hits() {
                            fetches.push((machine.clock.now(), language, *authorization));
                        }
                        if got.kind != "stored" {
                            continue;
                        }
                        // A range that can not be satisfied says nothing of the entry.
                        let Some(number) = got.field("x-fetch").and_then(|text| text.parse::<usize>().ok()) else { continue };
                        let (when, asked_for, signed) = fetches[number];
                        let answer = &answers[number % answers.len()];
                        let place = format!("fetch {number} {answer:?}, served {got:?}");
                        // A 304 renews an older body; its own fields are judged with it.
                        let answer = &Answer { status: if answer.status == 304 { 200 } else { answer.status }, ..answer.clone() };
                        let renewing = origin.asked.lock()[number].contains_key("if-none-match");
                        if got.verdict() == Verdict::Miss && got.status == 304 {
                            // Straight from the fetch: the client's own condition held.
                            continue;
                        }
                        if !renewing {
                            assert_eq!(forbidden(answer, gate, signed), None, "{place}");
                        }
                        assert!(!got.headers.contains_key("set-cookie"), "{place}");
                        if says(answer, "vary", "accept-language") {
                            assert_eq!(asked_for, *language, "{place}");
                        }
                        if got.verdict() != Verdict::Miss {
                            let age = machine.clock.now() - when;
                            let max_stale = fields.contains(&("cache-control", "max-stale=10"));
                            assert!(age < longest(answer, max_stale), "{age} s: {place}");
                            assert!(number >= purged_before, "purged: {place}");
                            let upstream = if has(answer, "age") { 15 } else { 0 };
                            assert_eq!(got.field("age"), Some((age + upstream).to_string().as_str()), "{place}");
                            if !page && fields.contains(&("cache-control", "no-cache")) {
                                panic!("not asked for: {place}");
                            }
                        }
                    }
                }
            }
        });
    }
}

/// Seconds for which memory is trusted, as [`EngineOptions::default`] has it.
const TRUST: u64 = 5;

/// What can happen to two instances that share a store.
#[derive(Debug, Clone)]
enum Turn {
    Ask { at: usize, language: &'static str, fields: Vec<(&'static str, &'static str)> },
    Wait(u64),
    Purge { at: usize, what: usize, soft: bool },
    /// The origin fails from now on, or no more.
    Origin(bool),
    /// The store is away for one of them.
    Store(usize, bool),
    /// Messages are lost.
    Messages(bool),
}

fn turn() -> impl Strategy<Value = Turn> {
    let field = prop::sample::select(vec![("cache-control", "max-stale=10"), ("cache-control", "no-cache"), ("cache-control", "only-if-cached"), ("if-none-match", "\"a\"")]);
    let ask = (0usize..2, prop::sample::select(vec!["de", "fr"]), prop::option::weighted(0.2, field))
        .prop_map(|(at, language, field)| Turn::Ask { at, language, fields: field.into_iter().collect() });
    prop_oneof![
        12 => ask,
        3 => (1u64..8).prop_map(Turn::Wait),
        1 => (8u64..50).prop_map(Turn::Wait),
        2 => (0usize..2, 0usize..5, any::<bool>()).prop_map(|(at, what, soft)| Turn::Purge { at, what, soft }),
        1 => any::<bool>().prop_map(Turn::Origin),
        1 => (0usize..2, any::<bool>()).prop_map(|(at, away)| Turn::Store(at, away)),
        1 => any::<bool>().prop_map(Turn::Messages),
    ]
}

/// A purge that went through store and bus.
struct Purged {
    /// Fetches that had begun.
    before: usize,
    when: u64,
    by: usize,
    soft: bool,
    /// Its messages were lost.
    unheard: bool,
}

impl Purged {
    /// Whether this purge forbids what an instance served from the cache.
    fn forbids(&self, number: usize, at: usize, now: u64, got: &Got) -> bool {
        let meant = number < self.before && !(self.soft && got.verdict() == Verdict::Stale);
        let not_known = at != self.by && self.unheard && now - self.when <= TRUST;
        meant && !not_known
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn nothing_forbidden_is_served_by_two_instances_whatever_fails(answers in prop::collection::vec(answer(), 1..6), turns in prop::collection::vec(turn(), 1..40), page in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("runtime");
        runtime.block_on(async {
            let policy = if page { Policy { statuses: plain().statuses, honour_request: true, ..html() } } else { plain() };
            let gate = policy.gate;
            let plan = plan(Policy { hit_for_miss: Duration::from_secs(2), ..policy });
            let (store, clock) = (Store::memory(), Clock::manual(T0));
            let stores = [Faulty::over(store.clone()), Faulty::over(store)];
            let machines = [0, 1].map(|at| Machine::with(stores[at].store(), clock.clone()));
            machines.iter().for_each(|machine| machine.engine.start());
            settle().await;
            let fails = Arc::new(AtomicBool::new(false));
            let (script, failing) = (answers.clone(), fails.clone());
            let origin = Origin::new(move |n, conditions| {
                if failing.load(SeqCst) {
                    return Reply::refused();
                }
                let answer = &script[n % script.len()];
                let status = if answer.status == 304 && conditions.is_empty() { 200 } else { answer.status };
                let mut reply = Reply::new(status, &answer.fields, if status == 304 { "" } else { answer.body }).with("x-fetch", &n.to_string());
                reply.cut = answer.cut;
                reply
            });
            let mut fetches: Vec<(u64, &str)> = Vec::new();
            let mut purges: Vec<Purged> = Vec::new();
            for turn in &turns {
                match turn {
                    Turn::Wait(seconds) => {
                        for _ in 0..*seconds {
                            clock.advance(Duration::from_secs(1));
                            tokio::time::sleep(Duration::from_secs(1)).await;
                        }
                    }
                    Turn::Origin(down) => fails.store(*down, SeqCst),
                    Turn::Store(at, away) => stores[*at].away.store(*away, SeqCst),
                    Turn::Messages(lost) => stores.iter().for_each(|store| store.lossy.store(*lost, SeqCst)),
                    Turn::Purge { at, what, soft } => {
                        let what = match what {
                            0 => Purge::Key { epoch: plan.epoch.to_string(), key: plan.key.clone() },
                            1 => Purge::Prefix { host: None, path: "/".into() },
                            2 => Purge::Host { host: "shop.example.com".into() },
                            3 => Purge::Tag { tag: "catalogue".into() },
                            _ => Purge::All,
                        };
                        let report = machines[*at].engine.purge(&what, *soft).await;
                        settle().await;
                        if report.store_reached && report.others_told {
                            let unheard = stores[*at].lossy.load(SeqCst);
                            purges.push(Purged { before: origin.hits(), when: clock.now(), by: *at, soft: *soft, unheard });
                        }
                    }
                    Turn::Ask { at, language, fields } => {
                        let mut all = vec![("accept-language", *language)];
                        all.extend(fields.iter().copied());
                        let got = machines[*at].ask(&plan, &get(&all), &origin).await;
                        settle().await;
                        while fetches.len() < origin.hits() {
                            fetches.push((clock.now(), language));
                        }
                        let only_stored = fields.contains(&("cache-control", "only-if-cached"));
                        if got.kind == "failed" {
                            assert!(only_stored || fails.load(SeqCst) || answers.iter().any(|answer| answer.cut), "the store's trouble is no client's: {got:?}");
                        }
                        if got.kind != "stored" || got.verdict() == Verdict::Miss {
                            continue;
                        }
                        let Some(number) = got.field("x-fetch").and_then(|text| text.parse::<usize>().ok()) else { continue };
                        let (when, asked_for) = fetches[number];
                        let answer = &answers[number % answers.len()];
                        let place = format!("at {at}: fetch {number} {answer:?}, served {got:?}");
                        // To those without a validator the origin says 200; a 304 renews an older body, and its own fields are judged with it.
                        let answer = &Answer { status: if answer.status == 304 { 200 } else { answer.status }, ..answer.clone() };
                        let renewing = origin.asked.lock()[number].contains_key("if-none-match");
                        if !renewing {
                            assert_eq!(forbidden(answer, gate, false), None, "{place}");
                        }
                        if says(answer, "vary", "accept-language") {
                            assert_eq!(asked_for, *language, "{place}");
                        }
                        let now = clock.now();
                        assert!(now - when < longest(answer, fields.contains(&("cache-control", "max-stale=10"))), "{} s: {place}", now - when);
                        let unconfirmed = got.report.detail == Some("unconfirmed");
                        assert!(!unconfirmed || fails.load(SeqCst) || answers.iter().any(|answer| answer.cut || answer.status >= 500), "{place}");
                        if !unconfirmed {
                            assert!(!purges.iter().any(|purge| purge.forbids(number, *at, now, &got)), "purged: {place}");
                        }
                    }
                }
            }
        });
    }
}
