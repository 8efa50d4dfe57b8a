//! Which blobs belong together.

use super::Calls;
use super::blobs::MemoryBlobs;
use super::shards::after;
use crate::{Cursor, Found, Index, Indexed, Named, StoreResult, index_name};
use async_trait::async_trait;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Entries looked at for each entering. More than one, so that those whose blob is gone can not pile up.
const LOOKED_AT: usize = 3;

struct Row {
    names: Box<[Arc<str>]>,
    stamp: u64,
    end: Instant,
}

/// A name and a key that has it. Both are kept once and shared: there are several members for each entry.
type Member = (Arc<str>, Arc<str>);

#[derive(Default)]
struct Rows {
    by_key: BTreeMap<Arc<str>, Row>,
    members: BTreeSet<Member>,
    next_stamp: u64,
    /// The key at which the sweep goes on.
    swept: Option<Arc<str>>,
}

/// A member as a place in a [`Cursor`]: name, NUL, key. Names have no NUL.
fn place_of((name, key): &Member) -> Vec<u8> {
    [name.as_bytes(), b"\0", key.as_bytes()].concat()
}

fn member_of(place: &[u8]) -> Member {
    let text = String::from_utf8_lossy(place);
    let (name, key) = text.split_once('\0').unwrap_or((&text, ""));
    (name.into(), key.into())
}

impl Rows {
    fn forget(&mut self, key: &str) -> bool {
        let Some((key, row)) = self.by_key.remove_entry(key) else { return false };
        for name in row.names {
            self.members.remove(&(name, key.clone()));
        }
        true
    }

    /// Looks at the next few entries and forgets those whose time is over or whose blob is gone: so the index is about as large as the blobs
    /// are many, and these are bounded.
    fn sweep(&mut self, blobs: &MemoryBlobs, now: Instant) {
        for _ in 0..LOOKED_AT {
            let from = self.swept.take().map_or(Unbounded, Excluded);
            let Some((key, row)) = self.by_key.range((from, Unbounded)).next() else { return };
            let (key, over) = (key.clone(), row.end <= now);
            if over || !blobs.holds(&key) {
                self.forget(&key);
            }
            self.swept = Some(key);
        }
    }
}

/// The embedded [`Index`].
pub(super) struct MemoryIndex {
    rows: Mutex<Rows>,
    blobs: Arc<MemoryBlobs>,
    calls: Arc<Calls>,
}

impl MemoryIndex {
    pub(super) fn new(blobs: Arc<MemoryBlobs>, calls: Arc<Calls>) -> MemoryIndex {
        MemoryIndex { rows: Mutex::default(), blobs, calls }
    }
}

#[async_trait]
impl Index for MemoryIndex {
    async fn enter(&self, key: &str, names: &[String], ttl: Duration) -> StoreResult<()> {
        self.calls.count();
        let now = Instant::now();
        let mut rows = self.rows.lock();
        rows.sweep(&self.blobs, now);
        rows.forget(key);
        let key = self.blobs.key(key);
        let names: Box<[Arc<str>]> = names.iter().map(|name| index_name(name).into()).collect();
        for name in &names {
            rows.members.insert((name.clone(), key.clone()));
        }
        rows.next_stamp += 1;
        let stamp = rows.next_stamp;
        rows.by_key.insert(key, Row { names, stamp, end: after(now, ttl) });
        Ok(())
    }

    async fn find(&self, named: Named<'_>, from: Option<&Cursor>, limit: usize) -> StoreResult<Found> {
        self.calls.count();
        let now = Instant::now();
        let rows = self.rows.lock();
        let (name, whole) = match named {
            Named::Exactly(name) => (index_name(name), true),
            Named::Prefix(prefix) => (index_name(prefix), false),
        };
        let fits = |there: &str| if whole { there == name } else { there.starts_with(&*name) };
        let first = match from.and_then(|cursor| cursor.0.first()) {
            Some(Some(place)) => Excluded(member_of(place)),
            _ => Included((Arc::from(&*name), Arc::default())),
        };
        let limit = limit.max(1);
        let (mut entries, mut last, mut seen) = (BTreeMap::new(), None, 0);
        for member in rows.members.range((first, Unbounded)).take_while(|(there, _)| fits(there)).take(limit) {
            seen += 1;
            last = Some(member);
            let key = &*member.1;
            if let Some(row) = rows.by_key.get(key).filter(|row| row.end > now) {
                let names = || row.names.iter().map(|name| name.to_string()).collect();
                entries.entry(key).or_insert_with(|| Indexed { key: key.to_owned(), names: names(), stamp: row.stamp });
            }
        }
        let entries = entries.into_values().collect();
        Ok(Found { entries, next: last.filter(|_| seen == limit).map(|last| Cursor(vec![Some(place_of(last))])) })
    }

    async fn remove(&self, entries: &[Indexed]) -> StoreResult<u64> {
        self.calls.count();
        let mut rows = self.rows.lock();
        let mut count = 0;
        for entry in entries {
            if rows.by_key.get(entry.key.as_str()).is_some_and(|row| row.stamp == entry.stamp) {
                count += u64::from(rows.forget(&entry.key));
            }
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Blobs;
    use bytes::Bytes;

    #[tokio::test(start_paused = true)]
    async fn entries_go_with_their_blobs_and_their_time() {
        let calls = Arc::<Calls>::default();
        let blobs = Arc::new(MemoryBlobs::new(200_000, calls.clone()));
        let index = MemoryIndex::new(blobs.clone(), calls);
        for n in 0..20_000 {
            let key = format!("k{n}");
            blobs.put(&key, Bytes::from(vec![0; 1000]), Duration::from_secs(60), None).await.unwrap();
            index.enter(&key, &["/a".into(), format!("/{n}")], Duration::from_secs(60)).await.unwrap();
        }
        let held = index.rows.lock().by_key.len();
        assert!(held < 1000, "{held} entries for some 170 blobs");
        assert!(index.rows.lock().members.len() == 2 * held);
        tokio::time::advance(Duration::from_secs(61)).await;
        assert_eq!(index.find(Named::Prefix(""), None, 10_000).await.unwrap().entries, []);
    }
}
