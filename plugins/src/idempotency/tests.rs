use super::*;
use crate::testing::{Ask, Rig, Seen, Upstream, ask, environment};
use crate::{Plugins, register};
use serde_json::json;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use tokio::sync::Notify;
use weir_store::{Claim, Store, StoreResult};

fn rig(config: &str) -> Rig {
    Rig::new(&[("idempotency", config)])
}

fn post(key: &str) -> Ask {
    ask("POST", "/orders").with("Idempotency-Key", key).body("{\"item\":1}")
}

fn replayed(seen: &Seen) -> bool {
    seen.header("idempotency-replayed") == Some("true")
}

#[tokio::test]
async fn a_repetition_gets_the_first_answer_as_it_was() {
    let rig = rig("{}").upstream_status(201).upstream_field("location", "/orders/1").upstream_field("set-cookie", "a=1").upstream_field("set-cookie", "b=2").upstream_body(&["one", " and ", "two"]);
    let first = rig.run(post("k")).await;
    let second = rig.run(post("k")).await;
    assert_eq!((first.status(), second.status(), rig.calls()), (201, 201, 1));
    assert!(!replayed(&first) && replayed(&second));
    assert_eq!(second.body, "one and two");
    assert_eq!(second.header("location"), Some("/orders/1"));
    assert_eq!(second.all("set-cookie"), ["a=1", "b=2"]);
    assert!(!second.forwarded());
    for (outcome, times) in [("first", 1), ("stored", 1), ("replayed", 1)] {
        assert_eq!(rig.outcome("idempotency", outcome), times, "{outcome}");
    }
}

#[tokio::test]
async fn what_belongs_to_one_exchange_is_not_stored() {
    let mut rig = rig("{}");
    for (name, value) in [("date", "Sat, 01 Jan 2000 00:00:00 GMT"), ("connection", "x-hop"), ("x-hop", "1"), ("content-length", "5"), ("x-request-id", "r"), ("x-kept", "1")] {
        rig = rig.upstream_field(name, value);
    }
    rig.run(post("k")).await;
    let seen = rig.run(post("k")).await;
    for gone in ["date", "connection", "x-hop", "content-length", "x-request-id"] {
        assert_eq!(seen.header(gone), None, "{gone}");
    }
    assert_eq!(seen.header("x-kept"), Some("1"));
}

#[tokio::test]
async fn both_headers_and_both_forms_are_one_key() {
    let rig = rig("{}");
    let plain = |name: &str, key: &str| ask("POST", "/orders").with(name, key);
    assert_eq!(rig.run(plain("Idempotency-Key", "\"abc\"")).await.status(), 200);
    assert!(replayed(&rig.run(plain("Idempotency-Key", "abc")).await));
    assert!(replayed(&rig.run(plain("X-Idempotency-Key", "abc")).await));
    assert!(replayed(&rig.run(plain("X-Idempotency-Key", "abc").with("Idempotency-Key", "abc")).await));
    let both = rig.run(plain("X-Idempotency-Key", "abc").with("Idempotency-Key", "def")).await;
    assert_eq!(both.status(), 400);
    assert_eq!(both.json(), json!({ "message": "Idempotency-Key and X-Idempotency-Key differ, or one of them is there twice" }));
    for bad in ["", "a b", "\"a", &"a".repeat(256)] {
        let seen = rig.run(plain("Idempotency-Key", bad)).await;
        assert_eq!(seen.status(), 400, "{bad}");
        assert_eq!(seen.json(), json!({ "message": "Idempotency-Key must be 1 to 255 printable characters, quoted or bare" }));
    }
    assert_eq!(rig.calls(), 1);
}

#[tokio::test]
async fn requests_without_a_key_pass_unless_one_is_required() {
    let free = rig("{}");
    for _ in 0..2 {
        assert_eq!(free.run(ask("POST", "/orders")).await.status(), 200);
    }
    assert_eq!(free.calls(), 2);
    let strict = rig("{required: true, methods: [POST]}");
    let seen = strict.run(ask("POST", "/orders")).await;
    assert_eq!(seen.status(), 400);
    assert_eq!(seen.json(), json!({ "message": "Idempotency-Key is required for this request" }));
    assert_eq!(strict.run(ask("GET", "/orders")).await.status(), 200);
    assert_eq!(strict.run(ask("DELETE", "/orders")).await.status(), 200);
}

#[tokio::test]
async fn keys_count_for_the_methods_that_are_named() {
    for (method, protected) in [("POST", true), ("PATCH", true), ("PUT", true), ("DELETE", true), ("GET", false)] {
        let rig = rig("{}");
        for _ in 0..2 {
            rig.run(ask(method, "/a").with("Idempotency-Key", "k")).await;
        }
        assert_eq!(rig.calls(), if protected { 1 } else { 2 }, "{method}");
    }
}

/// Settings, the first and the second request, and the status of the second.
#[tokio::test]
async fn the_same_key_for_another_request() {
    let base = || post("k");
    for (config, first, second, status) in [
        ("{}", base(), base().body("{\"item\":2}"), 422),
        ("{}", base(), ask("POST", "/orders?x=1").with("Idempotency-Key", "k").body("{\"item\":1}"), 422),
        ("headers: [Content-Type]", base().with("Content-Type", "a/a"), base().with("Content-Type", "a/b"), 422),
        ("{}", base().with("Content-Type", "a/a"), base().with("Content-Type", "a/b"), 200),
        ("max_body: 4", base().body("aaaa1"), base().body("aaaa22"), 422),
        ("max_body: 4", base().body("aaaa1"), base().body("bbbb1"), 422),
        ("max_body: 4", base().body("aaaa1"), base().body("aaaa2"), 422),
        ("max_body: 4", base().body("aaaa1"), base().body("aaaa"), 422),
        ("max_body: 4", base().body("aaaa1"), base().body("aaaa1"), 200),
        ("{max_body: 4, max_response: 1}", base().body("aaaa1"), base().body("aaaa1"), 409),
        ("{max_body: 4, max_response: 1}", base().body("aaaa1"), base().body("aaaa2"), 422),
    ] {
        let rig = rig(config);
        assert_eq!(rig.run(first).await.status(), 200);
        let seen = rig.run(second).await;
        assert_eq!(seen.status(), status, "{config}");
        assert_eq!(rig.calls(), 1);
        if status == 422 {
            assert_eq!(seen.json(), json!({ "message": "This Idempotency-Key was used with a different request" }));
            assert_eq!(seen.header("x-weir-reason"), Some("mismatch"));
            assert_eq!(seen.header("idempotency-replayed"), None);
        }
    }
}

#[tokio::test]
async fn whose_keys_are_the_same() {
    for (config, first, second, same) in [
        ("{}", post("k").known_as("alice", Some("1")), post("k").known_as("alice", Some("2")), true),
        ("{}", post("k").known_as("alice", None), post("k").known_as("bob", None), false),
        ("{}", post("k").with("Authorization", "Bearer a"), post("k").with("Authorization", "Bearer b"), false),
        ("{}", post("k").with("Authorization", "Bearer a"), post("k"), false),
        ("{}", post("k").from("192.0.2.1"), post("k").from("192.0.2.2"), true),
        ("anonymous: ip", post("k").from("192.0.2.1"), post("k").from("192.0.2.2"), false),
        ("anonymous: ip", post("k").from("192.0.2.1"), post("k").from("192.0.2.1"), true),
        ("{}", ask("POST", "/a").with("Idempotency-Key", "k"), ask("POST", "/b").with("Idempotency-Key", "k"), false),
        ("{}", ask("POST", "/a").with("Idempotency-Key", "k"), ask("PUT", "/a").with("Idempotency-Key", "k"), false),
    ] {
        let rig = rig(config);
        rig.run(first).await;
        let second = rig.run(second).await;
        assert_eq!((second.status(), rig.calls()), (200, if same { 1 } else { 2 }), "{config}");
    }
}

#[tokio::test]
async fn concurrent_duplicates_make_one_effect_and_all_get_its_answer() {
    let gate = Arc::new(Notify::new());
    let mut rig = rig("{}").upstream_status(201);
    rig.gate = Some(gate.clone());
    let rig = Arc::new(rig);
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let rig = rig.clone();
            tokio::spawn(async move {
                let seen = rig.run(post("k")).await;
                (seen.status(), seen.body.clone(), replayed(&seen))
            })
        })
        .collect();
    while rig.calls() == 0 {
        tokio::task::yield_now().await;
    }
    gate.notify_one();
    let mut replays = 0;
    for task in tasks {
        let (status, body, replayed) = task.await.unwrap();
        assert_eq!((status, body.as_str()), (201, "hello"));
        replays += usize::from(replayed);
    }
    assert_eq!((rig.calls(), replays), (1, 99));
}

#[tokio::test]
async fn in_flight_may_be_a_conflict() {
    for config in ["in_flight: conflict", "{in_flight: wait, wait_timeout: 20ms}"] {
        let gate = Arc::new(Notify::new());
        let mut rig = rig(config);
        rig.gate = Some(gate.clone());
        let rig = Arc::new(rig);
        let first = tokio::spawn({
            let rig = rig.clone();
            async move { rig.run(post("k")).await.status() }
        });
        while rig.calls() == 0 {
            tokio::task::yield_now().await;
        }
        let seen = rig.run(post("k")).await;
        assert_eq!(seen.status(), 409);
        assert_eq!(seen.header("retry-after"), Some("1"));
        assert_eq!(seen.json(), json!({ "message": "A request with this Idempotency-Key is under way" }));
        assert_eq!(rig.run(post("k").body("other")).await.status(), 422);
        gate.notify_one();
        assert_eq!(first.await.unwrap(), 200);
        assert!(replayed(&rig.run(post("k")).await));
    }
}

#[tokio::test]
async fn what_is_stored_by_status() {
    for (status, stored) in [(200, true), (204, true), (302, true), (404, true), (422, true), (429, true), (500, false), (503, false)] {
        let rig = rig("{}").upstream_status(status);
        for _ in 0..2 {
            assert_eq!(rig.run(post("k")).await.status(), status);
        }
        assert_eq!(rig.calls(), if stored { 1 } else { 2 }, "{status}");
    }
}

#[tokio::test]
async fn server_errors_may_be_stored_too() {
    let rig = rig("server_errors: store").upstream_status(503);
    for replay in [false, true] {
        let seen = rig.run(post("k")).await;
        assert_eq!((seen.status(), replayed(&seen)), (503, replay));
    }
    assert_eq!(rig.calls(), 1);
}

#[tokio::test]
async fn an_upstream_that_was_never_reached_frees_the_key() {
    let mut rig = rig("{}");
    rig.upstream = Upstream::Away;
    assert_eq!(rig.run(post("k")).await.status(), 502);
    rig.upstream = Upstream::Answers;
    let seen = rig.run(post("k")).await;
    assert_eq!((seen.status(), rig.calls(), replayed(&seen)), (200, 1, false));
}

#[tokio::test]
async fn repetitions_count_towards_limits() {
    let rig = Rig::new(&[("idempotency", "{}"), ("rate-limiting", "year: 1")]);
    assert_eq!(rig.run(post("k")).await.status(), 200);
    assert_eq!(rig.run(post("k")).await.status(), 429);
    assert_eq!(rig.calls(), 1);
}

/// The shortest lease that a configuration may have, awaited on a clock that stands still but for sleeps.
#[tokio::test(start_paused = true)]
async fn an_answer_cut_short_leaves_the_outcome_unknown() {
    let mut rig = rig("{lease: 1s, ttl: 60s}");
    rig.upstream = Upstream::Dies;
    rig.run(post("k")).await;
    rig.upstream = Upstream::Answers;
    let seen = rig.run(post("k")).await;
    assert_eq!(seen.status(), 409);
    assert_eq!(seen.json(), json!({ "message": "It is not known whether the first request with this Idempotency-Key took effect" }));
    assert_eq!((seen.header("x-weir-reason"), seen.header("retry-after")), (Some("unknown"), None), "asking again soon is no use");
    assert_eq!((seen.cx.failure, rig.outcome("idempotency", "unknown")), (Some("idempotency-unknown"), 1));
    assert_eq!(rig.calls(), 1);
    assert_eq!(rig.run(post("k").body("other")).await.status(), 422);
    tokio::time::advance(Duration::from_secs(62)).await;
    assert_eq!(rig.run(post("k")).await.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn where_repeating_is_safe_the_next_request_goes_through() {
    let mut rig = rig("{lease: 1s, safe_to_repeat: true}");
    rig.upstream = Upstream::Dies;
    rig.run(post("k")).await;
    rig.upstream = Upstream::Answers;
    assert_eq!(rig.run(post("k")).await.status(), 200);
    assert_eq!(rig.calls(), 2);
    assert!(replayed(&rig.run(post("k")).await), "the repetition's answer is kept");
    assert_eq!(rig.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_vanishes_leaves_the_outcome_unknown() {
    for (config, status) in [("{lease: 1s}", 409), ("{lease: 1s, safe_to_repeat: true}", 200)] {
        let mut hanging = rig(config);
        hanging.upstream = Upstream::Hangs;
        let environment = hanging.environment.clone();
        let vanishing = tokio::spawn(async move { hanging.run(post("k")).await.status() });
        tokio::time::sleep(Duration::from_millis(10)).await;
        vanishing.abort();
        let next = Rig::with(environment, &register(), &[("idempotency", config)]);
        assert_eq!(next.run(post("k")).await.status(), status, "{config}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_lease_is_renewed_while_a_slow_upstream_works() {
    let gate = Arc::new(Notify::new());
    let mut slow = rig("{lease: 1s, wait_timeout: 1h}");
    slow.gate = Some(gate.clone());
    let slow = Arc::new(slow);
    let both: Vec<_> = (0..2)
        .map(|_| {
            let slow = slow.clone();
            tokio::spawn(async move { slow.run(post("k")).await.status() })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(600)).await;
    gate.notify_one();
    for task in both {
        assert_eq!(task.await.unwrap(), 200);
    }
    assert_eq!(slow.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn answers_are_forgotten_after_their_time() {
    let rig = rig("ttl: 60s");
    rig.run(post("k")).await;
    tokio::time::advance(Duration::from_secs(59)).await;
    assert!(replayed(&rig.run(post("k")).await));
    tokio::time::advance(Duration::from_secs(2)).await;
    assert!(!replayed(&rig.run(post("k")).await));
}

#[tokio::test]
async fn an_answer_too_large_is_delivered_once_and_never_repeated() {
    let rig = rig("max_response: 8").upstream_status(201).upstream_body(&["12345", "67890"]);
    let first = rig.run(post("k")).await;
    assert_eq!((first.status(), first.body.as_str()), (201, "1234567890"));
    let second = rig.run(post("k")).await;
    assert_eq!(second.status(), 409);
    assert_eq!(
        second.json(),
        json!({ "message": "The request with this Idempotency-Key was done with status 201, but its answer was too large to be kept" })
    );
    assert_eq!(rig.calls(), 1);
    let exact = self::rig("max_response: 10").upstream_body(&["12345", "67890"]);
    exact.run(post("k")).await;
    assert!(replayed(&exact.run(post("k")).await));
}

#[tokio::test]
async fn the_exchange_runs_to_its_end_even_if_the_client_leaves() {
    assert!(rig("{}").run(post("k")).await.cx.must_complete);
    assert!(!rig("{}").run(ask("POST", "/orders")).await.cx.must_complete);
}

/// The owner dies before its request is sent: nothing can have taken effect, and the next one is sent.
#[tokio::test(start_paused = true)]
async fn an_owner_that_vanishes_before_it_sends_frees_the_key() {
    let (waiting, ledger) = switched("lease: 1s");
    let environment = waiting.environment.clone();
    ledger.acting_hangs.store(true, SeqCst);
    let vanishing = tokio::spawn(async move { waiting.run(post("k")).await.status() });
    tokio::time::sleep(Duration::from_millis(10)).await;
    vanishing.abort();
    ledger.acting_hangs.store(false, SeqCst);
    let next = Rig::with(environment, &register(), &[("idempotency", "lease: 1s")]);
    let seen = next.run(post("k")).await;
    assert_eq!((seen.status(), replayed(&seen), next.calls()), (200, false, 1));
}

#[tokio::test]
async fn keys_in_memory_survive_a_reload() {
    let (environment, register): (_, Plugins) = (environment(Store::memory()), register());
    let make = || Rig::with(environment.clone(), &register, &[("idempotency", "store: memory")]);
    make().run(post("k")).await;
    assert!(replayed(&make().run(post("k")).await));
}

/// A ledger that can be switched off, wholly or for what ends a request.
struct Switched {
    inner: Arc<dyn Ledger>,
    off: AtomicBool,
    acting_off: AtomicBool,
    acting_hangs: AtomicBool,
    ends_off: AtomicBool,
}

impl Switched {
    fn check(&self, ends: bool) -> StoreResult<()> {
        match self.off.load(SeqCst) || ends && self.ends_off.load(SeqCst) {
            true => Err(StoreError::Away("down".into())),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl Ledger for Switched {
    async fn begin(&self, key: &str, fingerprint: &str, lease: Duration, ttl: Duration) -> StoreResult<Begun> {
        self.check(false)?;
        self.inner.begin(key, fingerprint, lease, ttl).await
    }
    async fn begin_again(&self, key: &str, fingerprint: &str, lease: Duration, ttl: Duration) -> StoreResult<Begun> {
        self.check(false)?;
        self.inner.begin_again(key, fingerprint, lease, ttl).await
    }
    async fn acting(&self, owner: &Claim, lease: Duration) -> StoreResult<bool> {
        self.check(false)?;
        while self.acting_hangs.load(SeqCst) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        match self.acting_off.load(SeqCst) {
            true => Err(StoreError::Late(Duration::ZERO)),
            false => self.inner.acting(owner, lease).await,
        }
    }
    async fn renew(&self, owner: &Claim, lease: Duration) -> StoreResult<bool> {
        self.check(false)?;
        self.inner.renew(owner, lease).await
    }
    async fn complete(&self, owner: &Claim, value: Bytes, ttl: Duration) -> StoreResult<bool> {
        self.check(true)?;
        self.inner.complete(owner, value, ttl).await
    }
    async fn abandon(&self, owner: &Claim) -> StoreResult<bool> {
        self.check(true)?;
        self.inner.abandon(owner).await
    }
    async fn wait(&self, key: &str, at_most: Duration) -> StoreResult<()> {
        self.check(false)?;
        self.inner.wait(key, at_most).await
    }
}

fn switched(config: &str) -> (Rig, Arc<Switched>) {
    let store = Store::memory();
    let ledger = Arc::new(Switched { inner: store.ledger.clone(), off: AtomicBool::new(false), acting_off: AtomicBool::new(false), acting_hangs: AtomicBool::new(false), ends_off: AtomicBool::new(false) });
    let store = Store { ledger: ledger.clone(), ..store };
    (Rig::with(environment(store), &register(), &[("idempotency", config)]), ledger)
}

#[tokio::test]
async fn with_the_store_away_requests_with_a_key_are_refused_or_pass_unprotected() {
    let (strict, ledger) = switched("{}");
    ledger.off.store(true, SeqCst);
    let seen = strict.run(post("k")).await;
    assert_eq!(seen.status(), 503);
    assert_eq!(seen.header("retry-after"), Some("1"));
    assert_eq!(seen.json(), json!({ "message": "Idempotency cannot be guaranteed now" }));
    assert_eq!(strict.run(ask("POST", "/orders")).await.status(), 200);
    assert_eq!(strict.calls(), 1);
    ledger.off.store(false, SeqCst);
    assert_eq!(strict.run(post("k")).await.status(), 200);

    let (lax, ledger) = switched("on_store_failure: pass");
    ledger.off.store(true, SeqCst);
    for _ in 0..2 {
        assert_eq!(lax.run(post("k")).await.status(), 200);
    }
    assert_eq!((lax.calls(), lax.outcome("idempotency", "unprotected")), (2, 2));
}

#[tokio::test]
async fn a_store_that_leaves_before_the_request_is_sent_frees_the_key() {
    let (rig, ledger) = switched("in_flight: conflict");
    ledger.acting_off.store(true, SeqCst);
    assert_eq!(rig.run(post("k")).await.status(), 503);
    assert_eq!(rig.calls(), 0);
    ledger.acting_off.store(false, SeqCst);
    assert_eq!(rig.run(post("k")).await.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_leaves_before_the_end_is_written_makes_no_second_effect() {
    let (rig, ledger) = switched("lease: 1s");
    ledger.ends_off.store(true, SeqCst);
    assert_eq!(rig.run(post("k")).await.status(), 200);
    ledger.ends_off.store(false, SeqCst);
    // Written later, without the client; until then the key is held.
    assert!(replayed(&rig.run(post("k")).await));
    assert_eq!(rig.calls(), 1);
}

/// A store that is away for longer than an outcome would have been kept.
#[tokio::test(start_paused = true)]
async fn an_end_that_can_never_be_written_is_counted() {
    let (rig, ledger) = switched("{lease: 1s, ttl: 60s}");
    ledger.ends_off.store(true, SeqCst);
    assert_eq!(rig.run(post("k")).await.status(), 200);
    tokio::time::sleep(Duration::from_secs(62)).await;
    assert_eq!(rig.outcome("idempotency", "lost"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_short_absence_of_the_store_at_the_end_is_bridged() {
    let (rig, ledger) = switched("{}");
    ledger.ends_off.store(true, SeqCst);
    let back = tokio::spawn({
        let ledger = ledger.clone();
        async move {
            tokio::time::sleep(Duration::from_millis(60)).await;
            ledger.ends_off.store(false, SeqCst);
        }
    });
    rig.run(post("k")).await;
    back.await.unwrap();
    assert!(replayed(&rig.run(post("k")).await));
}

#[test]
fn mistakes() {
    for (config, says) in [
        ("ttl: 0s", "above zero"),
        ("lease: 10ms", "at least `1s`"),
        ("methods: []", ""),
        ("methods: [GET]", "GET"),
        ("headers: ['a b']", "not a header name"),
        ("max_body: 1GB", "at most 64MB"),
        ("in_flight: maybe", "maybe"),
    ] {
        let text = crate::testing::errors("idempotency", config).iter().map(ToString::to_string).collect::<String>();
        assert!(text.contains(says), "{config}: {text}");
    }
}
