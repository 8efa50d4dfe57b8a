//! The six contracts. Keys are UTF-8 strings chosen by the caller; times are durations from now; no call waits longer than the store's deadline.

use crate::limits::{Back, How, Reading, Rule};
use async_trait::async_trait;
use bytes::Bytes;
use std::time::Duration;

/// What every store call returns.
pub type StoreResult<T> = Result<T, StoreError>;

/// Why a store call gave no answer. All but `Url` and `Corrupt` may pass by themselves: the caller goes on without the store.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The back end is not reachable, or the breaker around it is open.
    #[error("store away: {0}")]
    Away(String),
    /// No answer within the deadline. Whether the call took effect is not known.
    #[error("store gave no answer within {0:?}")]
    Late(Duration),
    /// The back end answered with something that this version can not read.
    #[error("store gave an unreadable answer: {0}")]
    Corrupt(String),
    /// The URL or an option is wrong.
    #[error("store address: {0}")]
    Url(String),
}

/// How a networked store is spoken to.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// First part of every key (and of every channel).
    pub prefix: String,
    /// The longest that one call may take.
    pub deadline: Duration,
    /// The longest wait for a connection.
    pub connect_timeout: Duration,
    /// Failures in a row that open the breaker around the store.
    pub breaker_failures: u32,
    /// How long the breaker stays open before one probe is let through.
    pub breaker_open: Duration,
    /// Replicas of a standalone Redis that values are read from: URLs like the store's own.
    pub replicas: Vec<String>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            prefix: "weir:".into(),
            deadline: Duration::from_millis(50),
            connect_timeout: Duration::from_secs(1),
            breaker_failures: 5,
            breaker_open: Duration::from_millis(500),
            replicas: Vec::new(),
        }
    }
}

/// Values with a time to live.
#[async_trait]
pub trait Blobs: Send + Sync {
    /// The value under `key`, if it has not expired. One round trip.
    async fn get(&self, key: &str) -> StoreResult<Option<Bytes>>;
    /// Stores `value` for `ttl`. With `fence`, the write is refused (`false`) when a value with a higher fence is, or within
    /// the last `ttl` was, under the key: a writer that slept through its lease can not overwrite a newer one.
    async fn put(&self, key: &str, value: Bytes, ttl: Duration, fence: Option<u64>) -> StoreResult<bool>;
    /// Removes the keys; the number that existed. The fence marks stay.
    async fn delete(&self, keys: &[String]) -> StoreResult<u64>;
    /// Overwrites the beginning of a value with `new`, if the value still begins with `old`; both must be of one length. Time to live and
    /// fence mark stay. `false`: there is no such value, or it begins otherwise: another was put meanwhile.
    async fn patch(&self, key: &str, old: &[u8], new: &[u8]) -> StoreResult<bool>;
}

/// An entry of the [`Index`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Indexed {
    /// The blob's key.
    pub key: String,
    /// The names under which it can be found, as they were entered.
    pub names: Vec<String>,
    /// Tells this entry from later ones of the same key.
    pub stamp: u64,
}

/// What to look for in the [`Index`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named<'a> {
    /// Entries with this very name.
    Exactly(&'a str),
    /// Entries with a name that begins so; all entries, if it is empty.
    Prefix(&'a str),
}

/// How far a search has come: for each part of the index the last place that was looked at; `None` when the part is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor(pub(crate) Vec<Option<Vec<u8>>>);

/// A part of what a search found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Entries whose time is not over, in no order. One that has several fitting names can come again in a later part. May be empty
    /// although there is more.
    pub entries: Vec<Indexed>,
    /// Where to go on; `None`: that was all.
    pub next: Option<Cursor>,
}

/// Which blobs belong together: blobs under names, found again by a whole name or by its beginning. Made for removal: by URL, by prefix, by
/// tag. An entry ends by itself with its time; one whose blob is gone may be forgotten sooner, so enter after [`Blobs::put`].
///
/// A NUL in a name counts as U+FFFD.
#[async_trait]
pub trait Index: Send + Sync {
    /// Enters the blob `key` under `names` for `ttl`, in place of what was entered for it before. One round trip, in which some entries whose
    /// time is over are forgotten too.
    async fn enter(&self, key: &str, names: &[String], ttl: Duration) -> StoreResult<()>;
    /// Looks for entries, from the beginning or from where an earlier search stopped; about `limit` at a time. All that was entered
    /// before the search began and is not removed meanwhile is found.
    ///
    /// Errors: when no part of the index gave an answer. If only some did not, their places stay in the cursor as they were.
    async fn find(&self, named: Named<'_>, from: Option<&Cursor>, limit: usize) -> StoreResult<Found>;
    /// Removes entries, except those that were entered anew since they were found; how many there were. The blobs are not touched.
    async fn remove(&self, entries: &[Indexed]) -> StoreResult<u64>;
}

/// A lease that was won.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// What was locked.
    pub key: String,
    /// The random token that proves ownership.
    pub owner: String,
    /// Rises with every acquisition of this key, for fencing.
    pub fence: u64,
}

/// Leases with compare-and-delete release.
#[async_trait]
pub trait Locks: Send + Sync {
    /// Takes the lock for `lease` if it is free; `None` if another holds it.
    async fn acquire(&self, key: &str, lease: Duration) -> StoreResult<Option<Lease>>;
    /// Prolongs a lease that is still ours to `lease` from now; `false` if it was lost.
    async fn renew(&self, held: &Lease, lease: Duration) -> StoreResult<bool>;
    /// Gives the lock back if it is still ours; `false` if it was lost.
    async fn release(&self, held: &Lease) -> StoreResult<bool>;
}

/// A charge on one limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Charge {
    /// Names the count: who, and by which limit. Vanishes by itself when nothing of it is left.
    pub key: String,
    /// The limit.
    pub rule: Rule,
    /// How much.
    pub cost: u64,
    /// With [`How::UpTo`], the most that is charged.
    pub most: u64,
    /// With [`How::UpTo`], what the count gets back before.
    pub back: Back,
}

impl Charge {
    /// A charge of `cost`.
    pub fn new(key: String, rule: Rule, cost: u64) -> Charge {
        Charge { key, rule, cost, most: cost, back: Back::default() }
    }
}

/// What became of a set of charges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Charged {
    /// Whether every limit granted its cost.
    pub allowed: bool,
    /// What each limit says then, in the order of the charges.
    pub readings: Vec<Reading>,
}

/// Counts with limits, and numbers that expire.
#[async_trait]
pub trait Counters: Send + Sync {
    /// Charges, in one step for all of them and for all instances, by the store's own clock. Keys of one call must differ. A cost of 0 always
    /// fits and only asks.
    async fn charge(&self, charges: &[Charge], how: How) -> StoreResult<Charged>;
    /// Adds `by` to a number, without a limit; the new value. It vanishes `ttl` after its first use. Its keys are not those of charges.
    async fn add(&self, key: &str, by: u64, ttl: Duration) -> StoreResult<u64>;
    /// The number now, 0 if there is none.
    async fn peek(&self, key: &str) -> StoreResult<u64>;
}

/// The state in which `begin` found a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// The caller is the first: it must `complete` or `abandon`, and `renew` while it works.
    Owner(Claim),
    /// Another works on it now. `fingerprint` is that one's.
    InFlight {
        /// Of the request that works.
        fingerprint: String,
    },
    /// It is done; here is what was stored.
    Done {
        /// Of the request that did it.
        fingerprint: String,
        /// What was stored.
        value: Bytes,
    },
    /// An owner vanished after `acting`: whether the effect took place is not known.
    Unknown {
        /// Of the request that vanished.
        fingerprint: String,
    },
    /// The back end has lost its memory less than one `ttl` ago: that it does not know the key says nothing.
    Lost {
        /// Until one `ttl` is over.
        left: Duration,
    },
}

/// A key of the [`Ledger`] that is the caller's to work on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The key.
    pub key: String,
    /// The random token that proves ownership.
    pub owner: String,
    /// Rises with every claim of this key.
    pub fence: u64,
    /// Of the request, as `begin` got it: with it the entry can be made again after a loss of memory.
    pub fingerprint: String,
    /// How long an unknown outcome is remembered, as `begin` got it.
    pub ttl: Duration,
}

/// One effect per key, across instances and crashes.
///
/// ```text
/// (none) ─begin─► begun ─acting─► acting ─complete─► done (kept for ttl)
///                   │  lease over: (none)   │ lease over: unknown (kept for ttl)
///                   └─abandon─► (none)      └─abandon─► (none)
/// ```
/// A back end that comes back empty is noticed: `begin` then says [`Begun::Lost`] for one `ttl`, and owners enter their keys again
/// with their next step. An instance that was started after the loss can not notice it by itself; it hears of it as soon as another one does.
#[async_trait]
pub trait Ledger: Send + Sync {
    /// Enters `key`. `lease` bounds how long a silent owner keeps it, `ttl` how long an unknown outcome is remembered.
    async fn begin(&self, key: &str, fingerprint: &str, lease: Duration, ttl: Duration) -> StoreResult<Begun>;
    /// The same, but a key whose outcome is unknown is free: for effects that bear a repetition.
    async fn begin_again(&self, key: &str, fingerprint: &str, lease: Duration, ttl: Duration) -> StoreResult<Begun>;
    /// Marks that from now on the effect may take place. `false`: no longer the owner, do not act.
    async fn acting(&self, owner: &Claim, lease: Duration) -> StoreResult<bool>;
    /// Prolongs the lease. `false`: no longer the owner.
    async fn renew(&self, owner: &Claim, lease: Duration) -> StoreResult<bool>;
    /// Stores the outcome for `ttl` and tells the waiters. `false`: no longer the owner, nothing was stored.
    async fn complete(&self, owner: &Claim, value: Bytes, ttl: Duration) -> StoreResult<bool>;
    /// Frees the key: nothing took effect. `false`: no longer the owner.
    async fn abandon(&self, owner: &Claim) -> StoreResult<bool>;
    /// Returns when `key` was completed or abandoned, or after `at_most`; a hint: call `begin` again.
    async fn wait(&self, key: &str, at_most: Duration) -> StoreResult<()>;
}

/// What a subscriber receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A payload, as published.
    Data(Bytes),
    /// Messages may have been lost before this point (reconnect, or the subscriber was too slow).
    Gap,
}

/// A running subscription; dropping it ends it.
pub struct Subscription {
    /// Messages in order.
    pub messages: tokio::sync::mpsc::Receiver<Message>,
}

/// Messages to every instance, this one included; at most once.
#[async_trait]
pub trait Bus: Send + Sync {
    /// Sends `payload` to all who subscribed to `channel` now.
    async fn publish(&self, channel: &str, payload: Bytes) -> StoreResult<()>;
    /// Subscribes. Works while the back end is away: messages begin when it is back, after a [`Message::Gap`].
    async fn subscribe(&self, channel: &str) -> StoreResult<Subscription>;
}

/// Whether the back end answers.
pub trait Health: Send + Sync {
    /// `memory`, `redis`, `redis+sentinel` or `redis+cluster`.
    fn kind(&self) -> &'static str;
    /// The address without credentials.
    fn address(&self) -> String;
    /// `Ok` when the last calls were answered; else why not.
    fn check(&self) -> Result<(), String>;
    /// Calls made, calls that failed, and times that the breaker opened, since the start.
    fn totals(&self) -> StoreTotals;
}

/// Sums since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreTotals {
    /// Calls made.
    pub calls: u64,
    /// Calls that failed or came late.
    pub failures: u64,
    /// Times the breaker opened.
    pub breaker_opened: u64,
}
