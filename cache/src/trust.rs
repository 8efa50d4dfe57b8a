//! Whether memory may be trusted: whether every purge, by whichever instance, has been heard here.
//!
//! Purges are counted in the store, and each message of one carries its number. This process keeps account of the numbers that it heard and
//! compares them with the count a few times in each `limit`:
//!
//! ```text
//! all heard ────────────────────────────► trusted
//! the last ones are on their way ───────► trusted, until the next look
//! one has not come since the last look ─► a message was lost: memory forgets everything, and is trusted again
//! no answer, or a gap in the messages ──► not trusted until the account is settled (no answer: once the limit is nearly over)
//! ```
//!
//! While memory is not trusted, an entry that is older than the limit counts only where the origin fails: the store is asked first, which knows
//! of every purge, and then the origin.

use crate::Engine;
use parking_lot::Mutex;
use std::{
    collections::BTreeSet,
    sync::{
        Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

/// Counter of purges in the store.
pub(crate) const PURGES: &str = "purges";
/// How long the count is kept: as good as for ever. One that begins anew is noticed.
pub(crate) const COUNT_TIME: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Looks within one limit.
const LOOKS: u32 = 4;
/// The next look while memory waits for its trust.
const SOON: Duration = Duration::from_millis(100);

struct Account {
    /// All numbers up to this one were heard, or made good by forgetting; `None` before the first look.
    floor: Option<u64>,
    /// Heard beyond the floor.
    above: BTreeSet<u64>,
    /// What the last look found, and when it began.
    before: Option<(u64, Instant)>,
    /// Nothing that was counted by then is missing.
    settled: Instant,
    /// Messages may have been lost since.
    gap: bool,
}

/// What a look found.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// Nothing is missing that was not on its way a moment ago.
    Settled,
    /// Something is missing that may still come.
    OnItsWay,
    /// Something will not come any more.
    Lost,
}

impl Account {
    fn heard(&mut self, number: u64) {
        if self.floor.is_some_and(|floor| number <= floor) {
            return;
        }
        self.above.insert(number);
        self.advance();
    }

    fn advance(&mut self) {
        let Some(floor) = &mut self.floor else { return };
        while self.above.remove(&(*floor + 1)) {
            *floor += 1;
        }
    }

    fn begin(&mut self, counted: u64, at: Instant) {
        self.above.retain(|number| *number > counted);
        (self.floor, self.before, self.settled, self.gap) = (Some(counted), None, at, false);
        self.advance();
    }

    /// Compares with what is counted in the store; the look began at `at`.
    fn compare(&mut self, counted: u64, at: Instant) -> Found {
        let Some(floor) = self.floor else {
            self.begin(counted, at);
            return Found::Lost;
        };
        let before = self.before.replace((counted, at));
        // A count that went back comes from a store that lost some of its past: perhaps a purge with it.
        if counted < floor {
            self.begin(counted, at);
            return Found::Lost;
        }
        if counted == floor {
            (self.settled, self.gap) = (at, false);
            return Found::Settled;
        }
        match before {
            Some((known, _)) if floor < known => {
                self.begin(counted, at);
                Found::Lost
            }
            Some((_, then)) if !self.gap => {
                self.settled = then;
                Found::Settled
            }
            _ => Found::OnItsWay,
        }
    }
}

/// See the module.
pub(crate) struct Trust {
    limit: Duration,
    trusted: AtomicBool,
    account: Mutex<Account>,
    look: Notify,
}

impl Trust {
    /// Trusted, until the limit says otherwise.
    pub(crate) fn new(limit: Duration) -> Trust {
        let account = Account { floor: None, above: BTreeSet::new(), before: None, settled: Instant::now(), gap: false };
        Trust { limit: limit.max(SOON), trusted: AtomicBool::new(true), account: Mutex::new(account), look: Notify::new() }
    }

    /// Whether all of memory may be trusted now.
    #[inline]
    pub(crate) fn is_whole(&self) -> bool {
        self.trusted.load(Relaxed)
    }

    /// Whether what came at this time may be trusted, milliseconds since 1970 both.
    #[inline]
    pub(crate) fn covers(&self, came_ms: u64, now_ms: u64) -> bool {
        self.is_whole() || came_ms.saturating_add(crate::entry::millis(self.limit)) > now_ms
    }

    /// A purge with this number was carried out here; 0: it could not be counted.
    pub(crate) fn heard(&self, number: u64) {
        if number > 0 {
            self.account.lock().heard(number);
        }
    }

    /// Messages may have been lost: nothing is trusted before the next look.
    pub(crate) fn gap(&self) {
        let mut account = self.account.lock();
        (account.gap, account.before) = (true, None);
        self.trusted.store(false, Relaxed);
        drop(account);
        self.look.notify_one();
    }

    /// After a look, or when there was no answer. Whether that changed something.
    fn judge(&self) -> bool {
        let account = self.account.lock();
        // The next look comes a part of the limit later, and may fail as well.
        let trusted = !account.gap && account.settled.elapsed() + self.limit / LOOKS <= self.limit;
        self.trusted.swap(trusted, Relaxed) != trusted
    }
}

/// Looks again and again, until the engine is dropped.
pub(crate) async fn watch_over(engine: Weak<Engine>) {
    let Some(mut open) = engine.upgrade().map(|engine| engine.open.subscribe()) else { return };
    loop {
        let Some(pause) = look(&engine).await else { return };
        let Some(trust) = engine.upgrade().map(|engine| engine.trust.clone()) else { return };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = trust.look.notified() => {}
            () = closed(&mut open) => return,
        }
    }
}

async fn closed(open: &mut watch::Receiver<()>) {
    let _ = open.changed().await;
}

/// One look. How long to wait for the next; `None`: the engine is gone.
async fn look(engine: &Weak<Engine>) -> Option<Duration> {
    let engine = engine.upgrade()?;
    let (trust, at) = (&engine.trust, Instant::now());
    let counted = engine.complain("peek", engine.store.counters.peek(PURGES).await);
    if let Ok(counted) = counted {
        let (found, first) = {
            let mut account = trust.account.lock();
            let first = account.floor.is_none();
            (account.compare(counted, at), first)
        };
        // At the first look nothing that is here can be older than a purge, unless the store was away until now.
        if found == Found::Lost && !(first && engine.memory.is_empty() && engine.flights.len() == 0) {
            if !first {
                tracing::warn!("messages of purges were lost: memory forgets everything");
            }
            engine.distrust();
        }
    }
    if trust.judge() {
        match trust.is_whole() {
            true => tracing::info!("all purges were heard: memory is trusted again"),
            false => tracing::warn!("purges may have been missed: pages are looked up in the store, or fetched, until that is settled"),
        }
    }
    Some(match trust.account.lock().gap {
        true => SOON,
        false => trust.limit / LOOKS,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(4);

    fn compare(trust: &Trust, counted: u64) -> Found {
        let found = trust.account.lock().compare(counted, Instant::now());
        trust.judge();
        found
    }

    async fn later() {
        tokio::time::advance(LIMIT / LOOKS).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_on_its_way_is_not_lost_and_what_does_not_come_is() {
        let trust = Trust::new(LIMIT);
        assert_eq!(compare(&trust, 7), Found::Lost, "what was before the first look is not known");
        later().await;
        assert_eq!(compare(&trust, 7), Found::Settled);
        // In any order, and while more and more come.
        trust.heard(9);
        later().await;
        assert_eq!(compare(&trust, 9), Found::Settled, "8 was counted since the last look");
        trust.heard(8);
        later().await;
        assert_eq!(compare(&trust, 11), Found::Settled);
        trust.heard(11);
        assert!(trust.is_whole());
        later().await;
        assert_eq!(compare(&trust, 12), Found::Lost, "10 was counted two looks ago");
        trust.heard(10);
        later().await;
        assert_eq!(compare(&trust, 12), Found::Settled);
        assert_eq!(compare(&trust, 3), Found::Lost, "the store lost its past");
        trust.heard(4);
        assert_eq!(compare(&trust, 4), Found::Settled);
    }

    #[tokio::test(start_paused = true)]
    async fn trust_ends_before_the_limit_when_there_is_no_answer() {
        let trust = Trust::new(LIMIT);
        compare(&trust, 1);
        for _ in 0..3 {
            assert!(trust.is_whole());
            later().await;
            trust.judge();
        }
        later().await;
        trust.judge();
        assert!(!trust.is_whole());
        let now = 1_000_000;
        assert!(trust.covers(now - 3999, now) && !trust.covers(now - 4000, now), "what came within the limit");
        assert_eq!(compare(&trust, 1), Found::Settled);
        assert!(trust.is_whole() && trust.covers(0, now));
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_gap_the_account_must_be_settled_first() {
        let trust = Trust::new(LIMIT);
        compare(&trust, 1);
        trust.gap();
        assert!(!trust.is_whole());
        assert_eq!(compare(&trust, 1), Found::Settled, "nothing was purged meanwhile");
        assert!(trust.is_whole());
        trust.gap();
        assert_eq!(compare(&trust, 2), Found::OnItsWay);
        assert!(!trust.is_whole());
        assert_eq!(compare(&trust, 2), Found::Lost);
        assert!(trust.is_whole());
    }
}
