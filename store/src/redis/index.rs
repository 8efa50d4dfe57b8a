//! Which blobs belong together.
//!
//! The index has sixteen parts, each in a slot of its own, and a key's entry lies in one of them: so entering is one script in one slot, and the
//! parts spread over the nodes of a Cluster. A search asks all parts at once.

use super::keys::{key, millis};
use super::link::Link;
use super::scripts;
use crate::{Cursor, Found, Index, Indexed, Named, StoreError, StoreResult, index_name};
use async_trait::async_trait;
use futures_util::future::join_all;
use redis::Value;
use std::sync::Arc;
use std::time::Duration;

/// Part of the layout in Redis: another number would not find what lies there.
const PARTS: usize = 16;
/// Entries whose time is over that one entering forgets at most. More than one, so that they can not pile up.
const FORGOTTEN: usize = 8;
/// The most names of one entry: a script's call takes only so many arguments.
const NAMES: usize = 1000;
/// Entries of one script that removes.
const LEAVING: usize = 200;

/// The Redis [`Index`].
pub(super) struct RedisIndex(Arc<Link>);

/// The part in which a key's entry lies: FNV-1a.
fn part_of(key: &str) -> usize {
    let hash = key.bytes().fold(0xcbf2_9ce4_8422_2325u64, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    ((hash >> 32) as usize) % PARTS
}

impl RedisIndex {
    pub(super) fn new(link: Arc<Link>) -> RedisIndex {
        RedisIndex(link)
    }

    fn keys(&self, part: usize) -> [String; 3] {
        ["names", "data", "ends"].map(|what| key(&self.0.options.prefix, "index", &format!("{{{part:02}}}{what}")))
    }

    /// One part's answer: the entries, and where to go on in it.
    async fn look(&self, part: usize, first: Vec<u8>, last: Vec<u8>, limit: usize) -> StoreResult<(Vec<Indexed>, Option<Vec<u8>>)> {
        let (keys, limit) = (self.keys(part), limit.to_string());
        let run = |mut conn| async move { scripts::FIND.run(&mut conn, &keys[..2], &[&first, &last, limit.as_bytes()]).await };
        let mut answer = self.0.call::<Vec<Value>, _>(run).await?.into_iter();
        let (Some(Value::Int(more)), Some(Value::BulkString(place))) = (answer.next(), answer.next()) else {
            return Err(StoreError::Corrupt("a search was answered in another shape".into()));
        };
        let entries = answer.map(entry).collect::<StoreResult<_>>()?;
        Ok((entries, (more == 1).then_some(place)))
    }
}

fn entry(value: Value) -> StoreResult<Indexed> {
    let corrupt = || StoreError::Corrupt("an entry of the index is not readable".into());
    let mut texts = redis::from_redis_value::<Vec<String>>(value).map_err(|_| corrupt())?.into_iter();
    let (Some(key), Some(stamp)) = (texts.next(), texts.next().and_then(|text| text.parse().ok())) else { return Err(corrupt()) };
    Ok(Indexed { key, names: texts.collect(), stamp })
}

fn bound(sign: u8, text: &[u8], end: &[u8]) -> Vec<u8> {
    [&[sign], text, end].concat()
}

#[async_trait]
impl Index for RedisIndex {
    async fn enter(&self, key: &str, names: &[String], ttl: Duration) -> StoreResult<()> {
        let keys = self.keys(part_of(key));
        let (stamp, ttl, most) = (fastrand::u64(..).to_string(), millis(ttl).to_string(), FORGOTTEN.to_string());
        let names: Vec<_> = names.iter().take(NAMES).map(|name| index_name(name)).collect();
        let mut args = vec![key.as_bytes(), stamp.as_bytes(), ttl.as_bytes(), most.as_bytes()];
        args.extend(names.iter().map(|name| name.as_bytes()));
        self.0.call::<u64, _>(|mut conn| async move { scripts::ENTER.run(&mut conn, &keys, &args).await }).await.map(|_| ())
    }

    async fn find(&self, named: Named<'_>, from: Option<&Cursor>, limit: usize) -> StoreResult<Found> {
        let places = match from {
            Some(cursor) => cursor.0.clone(),
            None => vec![Some(Vec::new()); PARTS],
        };
        // NUL ends the name within a member, and no UTF-8 text has a byte 255.
        let (first, last) = match named {
            Named::Exactly(name) => (bound(b'[', index_name(name).as_bytes(), b"\0"), bound(b'(', index_name(name).as_bytes(), b"\x01")),
            Named::Prefix(prefix) => (bound(b'[', index_name(prefix).as_bytes(), b""), bound(b'(', index_name(prefix).as_bytes(), b"\xff")),
        };
        let open: Vec<usize> = (0..places.len()).filter(|part| places[*part].is_some()).collect();
        let each = limit.div_ceil(open.len().max(1)).max(1);
        let looks = open.iter().map(|part| {
            let first = match &places[*part] {
                Some(place) if !place.is_empty() => bound(b'(', place, b""),
                _ => first.clone(),
            };
            self.look(*part, first, last.clone(), each)
        });
        let answers = join_all(looks).await;
        let mut found = Found { entries: Vec::new(), next: None };
        let (mut places, mut answered, mut trouble) = (places, false, None);
        for (part, answer) in open.into_iter().zip(answers) {
            match answer {
                Ok((entries, next)) => {
                    answered = true;
                    found.entries.extend(entries);
                    places[part] = next;
                }
                Err(error) => trouble = Some(error),
            }
        }
        if let Some(error) = trouble.filter(|_| !answered) {
            return Err(error);
        }
        found.next = places.iter().any(Option::is_some).then_some(Cursor(places));
        Ok(found)
    }

    async fn remove(&self, entries: &[Indexed]) -> StoreResult<u64> {
        let mut parts: Vec<Vec<(&str, String)>> = vec![Vec::new(); PARTS];
        for entry in entries {
            parts[part_of(&entry.key)].push((&entry.key, entry.stamp.to_string()));
        }
        let calls = parts.iter().enumerate().flat_map(|(part, pairs)| pairs.chunks(LEAVING).map(move |pairs| (part, pairs))).map(|(part, pairs)| {
            let keys = self.keys(part);
            async move {
                let args: Vec<&[u8]> = pairs.iter().flat_map(|(key, stamp)| [key.as_bytes(), stamp.as_bytes()]).collect();
                self.0.call::<u64, _>(|mut conn| async move { scripts::LEAVE.run(&mut conn, &keys, &args).await }).await
            }
        });
        join_all(calls).await.into_iter().sum()
    }
}
