//! One name: what is known of it, and what an answer, or the lack of one, makes of that.

use super::Watcher;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::Serialize;
use std::{
    net::IpAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::{AcqRel, Relaxed, Release}},
    },
    time::Duration,
};
use tokio::{sync::{Notify, futures::Notified}, time::Instant};
use weir_config::{RecordKind, Resolver as Rules};

/// Addresses of one name that are used.
const MOST: usize = 256;
/// The longest pause after look-ups without an answer.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// One address of a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// Lower ones are used first; 0 without SRV.
    pub priority: u16,
    /// The address.
    pub ip: IpAddr,
    /// Of an SRV record.
    pub port: Option<u16>,
    /// Of an SRV record.
    pub weight: Option<u16>,
    /// The name in an SRV record, without a dot at its end.
    pub srv_name: Option<Arc<str>>,
}

/// What was answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) found: Vec<Found>,
    /// `None`: the hosts file.
    pub(super) kind: Option<RecordKind>,
    pub(super) ttl: Duration,
}

/// Why there is none.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    /// A server said that there is nothing; for so long, perhaps.
    Missing {
        for_now: Option<Duration>,
    },
    /// No server said anything of use.
    Silent(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Missing { .. } => f.write_str("there is no such name, or it has no addresses"),
            Failure::Silent(why) => f.write_str(why),
        }
    }
}

/// What is known of a name.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Its addresses, lowest priority first; empty: none is known.
    pub found: Vec<Found>,
    /// The records that they come from; `None`: the hosts file, or nothing yet.
    pub kind: Option<RecordKind>,
    /// When it is asked for next; `None`: at once.
    pub(super) next: Option<Instant>,
    /// When the answer that the addresses come from was over.
    over: Option<Instant>,
    ttl: Duration,
    failure: Option<Failure>,
    /// Look-ups without an answer in a row.
    failures: u32,
}

impl Known {
    /// Why there are no addresses, or no new ones.
    pub fn failure(&self) -> Option<String> {
        self.failure.as_ref().map(Failure::to_string)
    }

    /// `random`: from 0 to 1. Processes that learned a name at the same time do not ask for it at the same time for ever.
    fn after(&self, answer: Result<Answer, Failure>, rules: &Rules, now: Instant, random: f64) -> Known {
        match answer {
            Ok(answer) => {
                let ttl = answer.ttl.clamp(rules.min_ttl.get(), rules.max_ttl.get().max(rules.min_ttl.get()));
                let mut found = answer.found;
                found.sort();
                found.dedup();
                found.truncate(MOST);
                let next = now + ttl.mul_f64(0.9 + 0.1 * random);
                Known { found, kind: answer.kind, next: Some(next), over: Some(now + ttl), ttl, failure: None, failures: 0 }
            }
            Err(failure) => {
                let failures = self.failures.saturating_add(1);
                let (hold, pause) = match &failure {
                    Failure::Missing { for_now } => {
                        let most = rules.negative_ttl.get();
                        (rules.missing.get(), for_now.unwrap_or(most).clamp(rules.min_ttl.get().min(most), most))
                    }
                    Failure::Silent(_) => {
                        let doubled = rules.min_ttl.get().max(Duration::from_millis(100)).saturating_mul(1 << (failures - 1).min(16));
                        (rules.stale.get(), doubled.min(LONGEST_PAUSE).mul_f64(0.5 + 0.5 * random))
                    }
                };
                let end = self.over.map(|over| over + hold).filter(|end| *end > now && !self.found.is_empty());
                let next = now + pause;
                Known {
                    found: if end.is_some() { self.found.clone() } else { Vec::new() },
                    kind: self.kind,
                    // Not asked later than its addresses are given up.
                    next: Some(end.map_or(next, |end| next.min(end))),
                    over: self.over,
                    ttl: self.ttl,
                    failure: Some(failure),
                    failures,
                }
            }
        }
    }
}

/// A name as the admin port shows it.
#[derive(Debug, Clone, Serialize)]
pub struct NameView {
    /// `hosts`, `SRV`, `A` or `AAAA`; nothing while nothing is known.
    pub from: Option<&'static str>,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// How long the last answer was to be used, within the bounds of the configuration.
    pub ttl_ms: u64,
    /// When it is asked for next.
    pub asked_again_in_ms: u64,
    /// Why the last look-up gave nothing; the addresses are older then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// How often its addresses changed.
    pub changes: u64,
}

/// A name in use.
pub struct Name {
    /// In lower case.
    pub host: String,
    known: ArcSwap<Known>,
    asking: AtomicBool,
    answered: Notify,
    watchers: Mutex<Vec<Weak<dyn Watcher>>>,
    changes: AtomicU64,
}

/// Held by the one who asks.
pub(super) struct Turn(Arc<Name>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.asking.store(false, Release);
        self.0.answered.notify_waiters();
    }
}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Name").field("host", &self.host).field("known", &self.known).finish_non_exhaustive()
    }
}

impl Name {
    pub(super) fn new(host: String) -> Name {
        Name { host, known: Default::default(), asking: AtomicBool::new(false), answered: Notify::new(), watchers: Mutex::default(), changes: AtomicU64::new(0) }
    }

    /// What is known now.
    pub fn known(&self) -> Arc<Known> {
        self.known.load_full()
    }

    /// When it is to be asked for; `None`: now.
    pub(super) fn due(&self) -> Option<Instant> {
        self.known.load().next
    }

    /// It is due, whatever was said of that.
    pub(super) fn forget_time(&self) {
        self.known.rcu(|known| Known { next: None, kind: None, ..Known::clone(known) });
    }

    pub(super) fn turn(self: &Arc<Self>) -> Option<Turn> {
        (!self.asking.swap(true, AcqRel)).then(|| Turn(self.clone()))
    }

    pub(super) fn answered(&self) -> Notified<'_> {
        self.answered.notified()
    }

    /// Somebody hears of changes from now on, as long as it lives.
    pub(crate) fn watch(&self, watcher: Weak<dyn Watcher>) {
        let mut watchers = self.watchers.lock();
        watchers.retain(|watcher| watcher.strong_count() > 0);
        watchers.push(watcher);
    }

    pub(super) fn learn(&self, answer: Result<Answer, Failure>, rules: &Rules, now: Instant) {
        let before = self.known.load_full();
        let known = before.after(answer, rules, now, fastrand::f64());
        let changed = known.found != before.found;
        match (&known.failure, &before.failure) {
            (Some(failure), None) => tracing::warn!(name = self.host, %failure, kept = known.found.len(), "a name is not answered"),
            (Some(failure), Some(_)) if changed => tracing::warn!(name = self.host, %failure, "the last addresses of a name are given up"),
            (None, Some(_)) => tracing::info!(name = self.host, "a name is answered again"),
            _ => {}
        }
        if changed && !known.found.is_empty() {
            let addresses: Vec<String> = known.found.iter().map(shown).collect();
            let first = before.next.is_none() && before.found.is_empty();
            tracing::info!(name = self.host, addresses = addresses.join(" "), ttl = ?known.ttl, "{}", if first { "a name has these addresses" } else { "a name has other addresses" });
        }
        self.known.store(Arc::new(known));
        if changed {
            self.changes.fetch_add(1, Relaxed);
            let watchers: Vec<_> = self.watchers.lock().iter().filter_map(Weak::upgrade).collect();
            watchers.iter().for_each(|watcher| watcher.changed());
        }
    }

    /// What a test says of it.
    #[cfg(test)]
    pub(crate) fn teach(&self, found: Vec<Found>) {
        self.learn(Ok(Answer { found, kind: Some(RecordKind::Srv), ttl: Duration::from_secs(60) }), &Rules::default(), Instant::now());
    }

    pub(super) fn view(&self) -> NameView {
        let known = self.known.load();
        let from = match (known.kind, known.over) {
            (Some(kind), _) => Some(kind.word()),
            (None, Some(_)) => Some("hosts"),
            (None, None) => None,
        };
        NameView {
            from,
            addresses: known.found.iter().map(shown).collect(),
            ttl_ms: known.ttl.as_millis() as u64,
            asked_again_in_ms: known.next.map_or(0, |at| at.saturating_duration_since(Instant::now()).as_millis() as u64),
            failure: known.failure(),
            changes: self.changes.load(Relaxed),
        }
    }

}

fn shown(found: &Found) -> String {
    match found.port {
        Some(port) => std::net::SocketAddr::new(found.ip, port).to_string(),
        None => found.ip.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules::default()
    }

    fn found(ip: &str) -> Found {
        Found { priority: 0, ip: ip.parse().unwrap(), port: None, weight: None, srv_name: None }
    }

    fn answer(ips: &[&str], ttl: u64) -> Result<Answer, Failure> {
        Ok(Answer { found: ips.iter().map(|ip| found(ip)).collect(), kind: Some(RecordKind::A), ttl: Duration::from_secs(ttl) })
    }

    fn silent() -> Result<Answer, Failure> {
        Err(Failure::Silent("timed out".into()))
    }

    fn missing(seconds: Option<u64>) -> Result<Answer, Failure> {
        Err(Failure::Missing { for_now: seconds.map(Duration::from_secs) })
    }

    /// Seconds from `now` until it is asked for again.
    fn pause(known: &Known, now: Instant) -> f64 {
        known.next.unwrap().duration_since(now).as_secs_f64()
    }

    #[test]
    fn the_ttl_says_when_it_is_asked_again_within_bounds() {
        let now = Instant::now();
        for (ttl, least, most) in [(60, 54.0, 60.0), (0, 0.9, 1.0), (1_000_000, 3240.0, 3600.0)] {
            for random in [0.0, 0.5, 1.0] {
                let known = Known::default().after(answer(&["10.0.0.1"], ttl), &rules(), now, random);
                assert!((least..=most).contains(&pause(&known, now)), "{ttl}: {}", pause(&known, now));
            }
        }
    }

    #[test]
    fn without_an_answer_the_last_addresses_stay_and_pauses_grow() {
        let begun = Instant::now();
        let mut known = Known::default().after(answer(&["10.0.0.1"], 10), &rules(), begun, 1.0);
        let mut now = begun + Duration::from_secs(10);
        let mut pauses = Vec::new();
        while !known.found.is_empty() {
            known = known.after(silent(), &rules(), now, 1.0);
            pauses.push(pause(&known, now));
            now = known.next.unwrap();
            assert!(pauses.len() < 1000, "they are never given up");
        }
        assert_eq!(&pauses[..7], [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]);
        // 10 s of TTL, and the hour.
        assert!(now.duration_since(begun) >= Duration::from_secs(3610));
        known = known.after(answer(&["10.0.0.2"], 10), &rules(), now, 1.0);
        assert_eq!((known.found, known.failures), (vec![found("10.0.0.2")], 0));
    }

    #[test]
    fn a_name_that_is_gone_is_believed_after_a_while() {
        let begun = Instant::now();
        let known = Known::default().after(answer(&["10.0.0.1"], 10), &rules(), begun, 1.0);
        let at = |seconds| begun + Duration::from_secs(seconds);
        let gone = known.after(missing(Some(5)), &rules(), at(10), 1.0);
        assert_eq!((gone.found.len(), pause(&gone, at(10))), (1, 5.0));
        let gone = gone.after(missing(Some(5)), &rules(), at(40), 1.0);
        assert_eq!(gone.found.len(), 0);
        // What the zone says of that holds within bounds.
        for (said, pauses) in [(None, 10.0), (Some(0), 1.0), (Some(86_400), 10.0)] {
            assert_eq!(pause(&Known::default().after(missing(said), &rules(), begun, 1.0), begun), pauses);
        }
    }

    #[test]
    fn addresses_are_in_order_and_not_too_many() {
        let many: Vec<String> = (0..2000).map(|n| format!("10.0.{}.{}", n / 250, n % 250)).rev().collect();
        let many: Vec<&str> = many.iter().map(String::as_str).chain(["10.0.0.0"]).collect();
        let known = Known::default().after(answer(&many, 1), &rules(), Instant::now(), 1.0);
        assert_eq!((known.found.len(), &known.found[0], &known.found[1]), (MOST, &found("10.0.0.0"), &found("10.0.0.1")));
    }

    #[test]
    fn one_asks_at_a_time() {
        let name = Arc::new(Name::new("a".into()));
        let turn = name.turn().expect("a turn");
        assert!(name.turn().is_none());
        drop(turn);
        assert!(name.turn().is_some());
    }
}
