//! Which blobs belong together.

use super::Calls;
use super::blobs::MemoryBlobs;
use super::shards::after;
use crate::{Cursor, Found, Index, Indexed, Named, StoreResult, index_name};
use async_trait::async_trait;
use parking_lot::Mutex;
use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Entries looked at for each entering. More than one, so that those whose blob is gone can not pile up.
const LOOKED_AT: usize = 3;

/// There may be as many of them as pages fit into memory: kept small.
struct Row {
    key: Arc<str>,
    /// One behind the other, a NUL after each: names have none.
    names: Box<str>,
    stamp: u64,
    end: Instant,
}

/// A row by its key.
struct ByKey(Arc<Row>);

/// A row by one of its names, and then by its key.
struct Member {
    row: Arc<Row>,
    /// Where in [`Row::names`] the name begins.
    from: u32,
}

impl Row {
    fn names(&self) -> impl Iterator<Item = &str> {
        self.names.split_terminator('\0')
    }
}

impl Member {
    fn name(&self) -> &str {
        let rest = self.row.names.get(self.from as usize..).unwrap_or_default();
        rest.split_once('\0').map_or(rest, |(name, _)| name)
    }

    fn order(&self) -> (&str, &str) {
        (self.name(), &self.row.key)
    }

    /// One to look for.
    fn new(name: &str, key: &str) -> Member {
        Member { row: Arc::new(Row { key: key.into(), names: name.into(), stamp: 0, end: Instant::now() }), from: 0 }
    }

    /// All of a row.
    fn all(row: &Arc<Row>) -> impl Iterator<Item = Member> {
        let mut from = 0;
        row.names().map(move |name| {
            let member = Member { row: row.clone(), from };
            from += name.len() as u32 + 1;
            member
        })
    }

    /// As a place in a [`Cursor`]: name, NUL, key.
    fn place(&self) -> Vec<u8> {
        [self.name().as_bytes(), b"\0", self.row.key.as_bytes()].concat()
    }

    fn at(place: &[u8]) -> Member {
        let text = String::from_utf8_lossy(place);
        let (name, key) = text.split_once('\0').unwrap_or((&text, ""));
        Member::new(name, key)
    }
}

impl ByKey {
    fn key(&self) -> &str {
        &self.0.key
    }
}

impl Borrow<str> for ByKey {
    fn borrow(&self) -> &str {
        self.key()
    }
}

macro_rules! ordered_by {
    ($kind:ty: $by:expr) => {
        impl Ord for $kind {
            fn cmp(&self, other: &Self) -> Ordering {
                fn by(it: &$kind) -> impl Ord + use<'_> {
                    $by(it)
                }
                by(self).cmp(&by(other))
            }
        }

        impl PartialOrd for $kind {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl PartialEq for $kind {
            fn eq(&self, other: &Self) -> bool {
                self.cmp(other).is_eq()
            }
        }

        impl Eq for $kind {}
    };
}

ordered_by!(ByKey: ByKey::key);
ordered_by!(Member: Member::order);

#[derive(Default)]
struct Rows {
    by_key: BTreeSet<ByKey>,
    members: BTreeSet<Member>,
    next_stamp: u64,
    /// The key at which the sweep goes on.
    swept: Option<Arc<str>>,
}

impl Rows {
    fn forget(&mut self, key: &str) -> bool {
        let Some(ByKey(row)) = self.by_key.take(key) else { return false };
        for member in Member::all(&row) {
            self.members.remove(&member);
        }
        true
    }

    fn get(&self, key: &str) -> Option<&Row> {
        self.by_key.get(key).map(|ByKey(row)| &**row)
    }

    /// Looks at the next few entries and forgets those whose time is over or whose blob is gone: so the index is about as large as the blobs
    /// are many, and these are bounded.
    fn sweep(&mut self, blobs: &MemoryBlobs, now: Instant) {
        for _ in 0..LOOKED_AT {
            let from = self.swept.take().map_or(Unbounded, Excluded);
            let next = self.by_key.range::<str, _>((from.as_ref().map(|key: &Arc<str>| &**key), Unbounded)).next();
            let Some(ByKey(row)) = next else { return };
            let (key, over) = (row.key.clone(), row.end <= now);
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
        let mut all = String::with_capacity(names.iter().map(|name| name.len() + 1).sum());
        for name in names {
            all.push_str(&index_name(name));
            all.push('\0');
        }
        rows.next_stamp += 1;
        let row = Arc::new(Row { key, names: all.into(), stamp: rows.next_stamp, end: after(now, ttl) });
        rows.members.extend(Member::all(&row));
        rows.by_key.insert(ByKey(row));
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
            Some(Some(place)) => Excluded(Member::at(place)),
            _ => Included(Member::new(&name, "")),
        };
        let limit = limit.max(1);
        let (mut entries, mut last, mut seen) = (BTreeMap::new(), None, 0);
        for member in rows.members.range((first, Unbounded)).take_while(|member| fits(member.name())).take(limit) {
            seen += 1;
            last = Some(member);
            let row = &member.row;
            if row.end > now {
                let found = || Indexed { key: row.key.to_string(), names: row.names().map(str::to_owned).collect(), stamp: row.stamp };
                entries.entry(&*row.key).or_insert_with(found);
            }
        }
        let entries = entries.into_values().collect();
        Ok(Found { entries, next: last.filter(|_| seen == limit).map(|last: &Member| Cursor(vec![Some(last.place())])) })
    }

    async fn remove(&self, entries: &[Indexed]) -> StoreResult<u64> {
        self.calls.count();
        let mut rows = self.rows.lock();
        let mut count = 0;
        for entry in entries {
            if rows.get(entry.key.as_str()).is_some_and(|row| row.stamp == entry.stamp) {
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
