//! One effect per key.

use super::Calls;
use super::shards::{Shard, Shards, after};
use crate::{Begun, Claim, Ledger, StoreResult, token};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

enum State {
    /// Ends with the slot.
    Begun,
    /// The lease ends at the time given, and the slot one `ttl` later: between the two the outcome is unknown.
    Acting(Instant),
    Done(Bytes),
}

struct Entry {
    state: State,
    owner: String,
    fingerprint: String,
    /// How long an unknown outcome is remembered.
    ttl: Duration,
    changed: Arc<Notify>,
}

impl Entry {
    fn in_flight(&self, now: Instant) -> bool {
        match self.state {
            State::Begun => true,
            State::Acting(lease_end) => lease_end > now,
            State::Done(_) => false,
        }
    }
}

/// The embedded [`Ledger`].
pub(super) struct MemoryLedger {
    entries: Shards<Entry>,
    fence: AtomicU64,
    calls: Arc<Calls>,
}

impl MemoryLedger {
    pub(super) fn new(calls: Arc<Calls>) -> MemoryLedger {
        MemoryLedger { entries: Shards::new(), fence: AtomicU64::new(1), calls }
    }

    /// Runs `step` on the entry (and the slot's end) if `claim` still owns it.
    fn owned<R>(&self, claim: &Claim, now: Instant, step: impl FnOnce(&mut Entry, &mut Instant) -> R) -> Option<R> {
        let mut shard = self.entries.of(&claim.key);
        let (entry, end) = shard.get_mut(&claim.key, now)?;
        (entry.owner == claim.owner && entry.in_flight(now)).then(|| step(entry, end))
    }

    fn enter(&self, key: &str, fingerprint: &str, lease: Duration, ttl: Duration, again: bool) -> Begun {
        self.calls.count();
        let now = Instant::now();
        let mut shard = self.entries.of(key);
        match found(&shard, key, now) {
            Some(Begun::Unknown { .. }) if again => {}
            Some(begun) => return begun,
            None => {}
        }
        let owner = token();
        let fence = self.fence.fetch_add(1, Relaxed);
        let entry = Entry { state: State::Begun, owner: owner.clone(), fingerprint: fingerprint.to_owned(), ttl, changed: Arc::default() };
        shard.insert(key, entry, after(now, lease), now, |_, _| {});
        Begun::Owner(Claim { key: key.to_owned(), owner, fence, fingerprint: fingerprint.to_owned(), ttl })
    }
}

fn found(shard: &Shard<Entry>, key: &str, now: Instant) -> Option<Begun> {
    let (entry, _) = shard.get(key, now)?;
    let fingerprint = entry.fingerprint.clone();
    Some(match &entry.state {
        State::Done(value) => Begun::Done { fingerprint, value: value.clone() },
        _ if entry.in_flight(now) => Begun::InFlight { fingerprint },
        _ => Begun::Unknown { fingerprint },
    })
}

#[async_trait]
impl Ledger for MemoryLedger {
    async fn begin(&self, key: &str, fingerprint: &str, lease: Duration, ttl: Duration) -> StoreResult<Begun> {
        Ok(self.enter(key, fingerprint, lease, ttl, false))
    }

    async fn begin_again(&self, key: &str, fingerprint: &str, lease: Duration, ttl: Duration) -> StoreResult<Begun> {
        Ok(self.enter(key, fingerprint, lease, ttl, true))
    }

    async fn acting(&self, owner: &Claim, lease: Duration) -> StoreResult<bool> {
        self.calls.count();
        let now = Instant::now();
        let done = self.owned(owner, now, |entry, end| {
            let lease_end = after(now, lease);
            entry.state = State::Acting(lease_end);
            *end = after(lease_end, entry.ttl);
        });
        Ok(done.is_some())
    }

    async fn renew(&self, owner: &Claim, lease: Duration) -> StoreResult<bool> {
        self.calls.count();
        let now = Instant::now();
        let done = self.owned(owner, now, |entry, end| {
            *end = after(now, lease);
            if let State::Acting(lease_end) = &mut entry.state {
                *lease_end = *end;
                *end = after(*lease_end, entry.ttl);
            }
        });
        Ok(done.is_some())
    }

    async fn complete(&self, owner: &Claim, value: Bytes, ttl: Duration) -> StoreResult<bool> {
        self.calls.count();
        let now = Instant::now();
        let done = self.owned(owner, now, |entry, end| {
            entry.state = State::Done(value);
            *end = after(now, ttl);
            entry.changed.notify_waiters();
        });
        Ok(done.is_some())
    }

    async fn abandon(&self, owner: &Claim) -> StoreResult<bool> {
        self.calls.count();
        let now = Instant::now();
        let done = self.owned(owner, now, |entry, end| {
            *end = now;
            entry.changed.notify_waiters();
        });
        Ok(done.is_some())
    }

    async fn wait(&self, key: &str, at_most: Duration) -> StoreResult<()> {
        self.calls.count();
        let deadline = after(Instant::now(), at_most);
        loop {
            let now = Instant::now();
            // Registered while the shard is locked: a change after this can not be missed.
            let (changed, lease_end) = match self.entries.of(key).get(key, now) {
                Some((entry, end)) if entry.in_flight(now) && deadline > now => {
                    let lease_end = if let State::Acting(lease_end) = entry.state { lease_end } else { end };
                    (entry.changed.clone().notified_owned(), lease_end)
                }
                _ => return Ok(()),
            };
            tokio::select! {
                () = changed => return Ok(()),
                // The lease may have been renewed meanwhile: look again.
                () = tokio::time::sleep_until(lease_end.min(deadline)) => {}
            }
        }
    }
}
