//! What several Weirs must share, or what must survive one of them: six small contracts and the back ends that carry them.
//!
//! | contract | what it keeps | used by |
//! |---|---|---|
//! | [`Blobs`] | values with a time to live | cache entries, warm-up marks |
//! | [`Index`] | which blobs belong together | purge by prefix, by tag |
//! | [`Locks`] | leases with an owner token and a fencing number | one fill per key, one warm-up at a time |
//! | [`Counters`] | counts with limits, numbers that expire | rate limits |
//! | [`Ledger`] | one effect per key: begun, done, or unknown | idempotency |
//! | [`Bus`] | messages to every instance | fill done, purge, logout |
//!
//! Every back end passes the one suite in `tests/contract.rs`.

mod contracts;
mod fanout;
pub mod limits;
pub mod memory;
pub mod redis;
#[cfg(feature = "testing")]
pub mod testing;

pub use contracts::*;

use std::sync::Arc;

/// The highest value of a counter: sums end here rather than overflow. 2^53, the last whole number that Redis' scripts hold exactly.
pub const COUNTER_MAX: u64 = 1 << 53;

/// A name as the index keeps it: NUL ends names there.
fn index_name(name: &str) -> std::borrow::Cow<'_, str> {
    if name.contains('\0') { name.replace('\0', "\u{FFFD}").into() } else { name.into() }
}

/// A random owner token: half from the process's random hash keys, half from the thread's generator, so that two processes do not meet
/// even if they started at the same moment.
fn token() -> String {
    static KEYS: std::sync::LazyLock<std::hash::RandomState> = std::sync::LazyLock::new(std::hash::RandomState::new);
    let random = fastrand::u64(..);
    format!("{:016x}{random:016x}", std::hash::BuildHasher::hash_one(&*KEYS, random))
}

/// One opened store: all six contracts over one back end.
#[derive(Clone)]
pub struct Store {
    /// Values with a time to live.
    pub blobs: Arc<dyn Blobs>,
    /// Which of them belong together.
    pub index: Arc<dyn Index>,
    /// Leases.
    pub locks: Arc<dyn Locks>,
    /// Counts with limits, and numbers that expire.
    pub counters: Arc<dyn Counters>,
    /// One effect per key.
    pub ledger: Arc<dyn Ledger>,
    /// Messages between instances.
    pub bus: Arc<dyn Bus>,
    /// Whether the back end answers, for readiness and metrics.
    pub health: Arc<dyn Health>,
}

impl Store {
    /// The embedded store: this process only, nothing survives it.
    pub fn memory() -> Store {
        memory::open(memory::DEFAULT_BLOB_BYTES)
    }

    /// The embedded store with a bound of its own for the blobs, in bytes; over it, what was not read lately goes first.
    /// A value that alone is over it is refused (`put` gives `false`).
    pub fn memory_bounded(max_blob_bytes: usize) -> Store {
        memory::open(max_blob_bytes)
    }

    /// Opens the store that `url` names (`memory`, `redis://`, `rediss://`, `redis+sentinel://host:port,host:port/master`,
    /// `redis+cluster://host:port,host:port`). A Redis that is away is no error: the store opens degraded and reconnects by itself.
    ///
    /// Errors: only for a URL that can not be read.
    pub async fn open(url: &str, options: &StoreOptions) -> Result<Store, StoreError> {
        match url {
            "memory" | "memory:" | "memory://" => Ok(Store::memory()),
            _ => redis::open(url, options).await,
        }
    }
}
