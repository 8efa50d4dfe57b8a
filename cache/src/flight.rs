//! One fill per key in this process. A flight is the place where those who want the same thing meet: the fill, a task of its own that no client
//! can cancel, tells how far it is; each waiter looks at every step and takes what suits its own request.
//!
//! ```text
//! Looking ─► Found(entry)                  the store had it, another instance filled it, or a 304 renewed it
//!    │  └──► Varied                        the key has variants: look again, with the variant's key
//!    ▼
//! Fetching ─► Streaming(head) ─ body ─┐
//!    │  └───► Pass(reason)            │    uncacheable: everyone asks for himself, at once
//!    └──────► Failed(error)           ▼
//!                                 kept or not
//! ```

use crate::{
    Entry, FetchError, Fetched,
    body::{Body, Reader},
    fields,
    memory::StoredKey,
    vary::Spec,
};
use dashmap::{DashMap, Entry as Place};
use http::{HeaderMap, StatusCode, response::Parts};
use parking_lot::Mutex;
use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::sync::watch;

/// How far a flight is.
#[derive(Debug, Clone)]
pub(crate) enum Phase {
    /// In the store, or waiting for another instance.
    Looking,
    /// The origin was asked.
    Fetching,
    /// There is an entry.
    Found(Found),
    /// The head came; the body arrives.
    Streaming(Arc<Head>),
    /// Not for the cache.
    Pass {
        reason: &'static str,
        status: Option<u16>,
        /// Why it was not kept when it was last fetched.
        because: Option<&'static str>,
    },
    /// The key has variants; the spec is in memory now.
    Varied,
    /// No answer.
    Failed(FetchError),
}

/// An entry that a flight came by.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) entry: Arc<Entry>,
    pub(crate) how: How,
}

/// Where an entry came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// It came into memory between the request's look and the flight's.
    Remembered,
    /// It was in the store.
    Stored,
    /// Another instance fetched it while this flight waited.
    Elsewhere,
    /// The origin said 304 to this flight.
    Renewed,
}

/// A head for all who wait.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// Whether it will be stored if the body keeps what the head promises.
    pub(crate) store: bool,
    /// Why not, if not.
    pub(crate) detail: Option<&'static str>,
    /// Where the flight had no variant in its key: what the response varies by, and the variant that the fill's request asked for.
    pub(crate) variant: Option<(Arc<Spec>, Arc<str>)>,
    /// Seconds of freshness that it begins with.
    pub(crate) ttl: Option<i64>,
    /// What is stored of it, if the body was there with the head.
    pub(crate) entry: Option<Arc<Entry>>,
}

/// All that waiters see.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    pub(crate) phase: Phase,
    /// An old entry, as soon as one is known.
    pub(crate) stale: Option<Arc<Entry>>,
    /// Time that the fill waited for other instances.
    pub(crate) waited: Duration,
    /// Something worth telling: `lock-timeout`, `store-away`.
    pub(crate) note: Option<&'static str>,
    /// What the origin said before its answer (RFC 9110 section 15.2).
    pub(crate) interim: Vec<Arc<Parts>>,
}

/// The most interim answers that a flight passes on.
const MOST_INTERIM: usize = 16;

/// A fill and those who wait for it.
pub(crate) struct Flight {
    pub(crate) key: StoredKey,
    pub(crate) progress: watch::Sender<Progress>,
    pub(crate) body: Arc<Body>,
    /// The uncacheable response, for the client that caused the fill.
    pub(crate) own: Mutex<Option<Fetched>>,
    /// Tags of the response, one a line, as soon as its head is there.
    pub(crate) tags: OnceLock<String>,
}

impl Flight {
    pub(crate) fn set(&self, phase: Phase) {
        self.progress.send_modify(|progress| progress.phase = phase);
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Progress)) {
        self.progress.send_modify(change);
    }

    /// Tells those who wait what came before the answer, without the fields that may not be shared.
    pub(crate) fn interim(&self, mut parts: Parts) {
        parts.headers = fields::keepable(&parts.headers);
        self.update(|progress| {
            if progress.interim.len() < MOST_INTERIM {
                progress.interim.push(parts.into());
            }
        });
    }
}

/// A place in a flight.
pub(crate) struct Seat {
    pub(crate) flight: Arc<Flight>,
    /// Whether this request began the flight.
    pub(crate) first: bool,
    /// The body from its first byte; `None` if that is gone.
    pub(crate) reader: Option<Reader>,
}

/// The flights of this process.
#[derive(Default)]
pub(crate) struct Flights {
    by_key: DashMap<StoredKey, Arc<Flight>>,
}

impl Flights {
    /// Takes a seat in the flight for this key, beginning one with `start` if there is none. `start` is called once the flight can be found by others.
    pub(crate) fn join(&self, key: &StoredKey, stale: Option<&Arc<Entry>>, start: impl FnOnce(Arc<Flight>)) -> Seat {
        // Most of those who come are late: a read lock is enough for them.
        if let Some(flight) = self.by_key.get(key).map(|place| place.value().clone()) {
            let reader = flight.body.reader();
            return Seat { flight, first: false, reader };
        }
        let (flight, first) = match self.by_key.entry(key.clone()) {
            Place::Occupied(place) => (place.get().clone(), false),
            Place::Vacant(place) => {
                let begin = Progress { phase: Phase::Looking, stale: stale.cloned(), waited: Duration::ZERO, note: None, interim: Vec::new() };
                let (progress, _) = watch::channel(begin);
                let flight = Arc::new(Flight {
                    key: key.clone(),
                    progress,
                    body: Arc::default(),
                    own: Mutex::new(None),
                    tags: OnceLock::new(),
                });
                place.insert(flight.clone());
                (flight, true)
            }
        };
        let reader = flight.body.reader();
        if first {
            start(flight.clone());
        }
        Seat { flight, first, reader }
    }

    /// Begins a flight that nobody waits for, unless there is one.
    pub(crate) fn begin(&self, key: &StoredKey, stale: &Arc<Entry>, start: impl FnOnce(Arc<Flight>)) {
        if !self.by_key.contains_key(key) {
            self.join(key, Some(stale), start);
        }
    }

    /// Lets a flight be found under a second key, if that has none.
    pub(crate) fn also(&self, key: &StoredKey, flight: &Arc<Flight>) {
        if let Place::Vacant(place) = self.by_key.entry(key.clone()) {
            place.insert(flight.clone());
        }
    }

    /// Takes the flight off this key, if it is that flight's.
    pub(crate) fn end(&self, key: &StoredKey, flight: &Arc<Flight>) {
        self.by_key.remove_if(key, |_, there| Arc::ptr_eq(there, flight));
    }

    /// Takes flights off their keys, so that the next request begins anew; `meant` is given a flight's key, and the tags as far as they are known.
    pub(crate) fn detach(&self, meant: impl Fn(&StoredKey, Option<&str>) -> bool) {
        self.by_key.retain(|key, flight| !meant(key, flight.tags.get().map(String::as_str)));
    }

    /// The flight under a key.
    pub(crate) fn of(&self, key: &StoredKey) -> Option<Arc<Flight>> {
        self.by_key.get(key).map(|place| place.value().clone())
    }

    pub(crate) fn len(&self) -> u64 {
        self.by_key.len() as u64
    }
}
