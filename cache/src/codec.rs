//! How slots lie in the store. Every number little-endian:
//!
//! ```text
//! "WEIR" | version 1 | kind 1 | key length 4 | key | checksum 8
//! entry:  status 2 | flags 2 | response 8 | initial age 8 | lifetime 8 | swr 8 | sie 8 | fetch 8
//!         | head length 4 | hidden length 4 | tags length 4 | body length 8 | checksum 8
//!         | packed length 4 | br, zstd, gzip length 4 each | head | hidden | tags | body | br | zstd | gzip
//! spec:   generation 8 | names length 4 | checksum 8 | names, one a line
//! pass:   until 8 | reason length 4 | checksum 8 | reason
//! ```
//!
//! The checksum is XXH3 (64 bits) of head, hidden part and tags (or of names, or of the reason) seeded with that of all that stands before
//! the checksum: against accidents, not against enemies.
//!
//! A packed length other than 0: the body lies there as a zstd frame of that length, which gives the body length; if it is all ones, the
//! body is what the zstd variant gives. In memory bodies are never packed. The heads of the variants are made from the head.
//!
//! What can not be read, or belongs to another key, counts as absent.

use crate::{
    block,
    encode::{self, Bodies},
    entry::{Entry, Meta, field_lines, lines},
    fields, reasons,
    vary::Spec,
};
use bytes::Bytes;
use http::{HeaderName, StatusCode};
use std::sync::Arc;
use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_64_with_seed};

const MAGIC: &[u8; 4] = b"WEIR";
const VERSION: u8 = 5;
const ENTRY: u8 = 1;
/// Bytes between the length of the tags and the checksum.
const AFTER_TAGS: usize = 8;
/// Bytes between the checksum and the head.
const AFTER_SUM: usize = 16;
const SPEC: u8 = 2;
const PASS: u8 = 3;
/// Packed length: the zstd variant is the packed body.
const AS_ZSTD: u32 = u32::MAX;
/// A body shorter than this is not packed.
const PACK_FROM: usize = 4096;
/// The largest body that [`decode`] unpacks.
pub const MAX_UNPACKED: u64 = 256 << 20;

/// What a value in the store says.
#[derive(Debug)]
pub enum Stored {
    /// A response.
    Entry(Arc<Entry>),
    /// What a primary key's responses vary by.
    Spec(Spec),
    /// Proved uncacheable until then, milliseconds since 1970.
    Pass {
        /// When the mark ends.
        until_ms: u64,
        /// Why it is not kept; `None`: for a reason that this version does not know.
        reason: Option<&'static str>,
    },
}

/// Why a value can not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Not written by this version.
    #[error("another format or version")]
    Format,
    /// Cut short, or with lengths that do not fit.
    #[error("lengths do not fit")]
    Length,
    /// Its bytes changed.
    #[error("checksum does not fit")]
    Checksum,
    /// It belongs to another key.
    #[error("belongs to another key")]
    Key,
    /// The head has a line that is no field, or a field that must not be stored.
    #[error("head can not be used")]
    Head,
    /// The packed body does not give what was promised.
    #[error("body can not be unpacked")]
    Packed,
}

fn begin(kind: u8, key: &str, capacity: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(10 + key.len() + capacity);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&[VERSION, kind]);
    out.extend_from_slice(&(key.len() as u32).to_le_bytes());
    out.extend_from_slice(key.as_bytes());
    out
}

/// Puts an entry together in one buffer.
pub(crate) fn assemble(key: &str, meta: Meta, parts: [&[u8]; 3], body: &[Bytes], bodies: &Bodies) -> Entry {
    let length: usize = body.iter().map(Bytes::len).sum();
    let raw = write(key, &meta, parts, length, 0, body, bodies);
    let from = raw.len() - length - bodies.iter().map(Bytes::len).sum::<usize>() - parts.iter().map(|part| part.len()).sum::<usize>();
    let mut at = from;
    let mut next = |length: usize| {
        at += length;
        raw.slice(at - length..at)
    };
    let [head, hidden, tags] = parts.map(|part| next(part.len()));
    let body = next(length);
    let bodies = Bodies::from_each(|coding| next(bodies.of(coding).len()));
    Entry::from_parts(meta, raw.clone(), head, hidden, tags, body, &bodies)
}

fn write(key: &str, meta: &Meta, parts: [&[u8]; 3], length: usize, packed: u32, body: &[Bytes], bodies: &Bodies) -> Bytes {
    let mut out = begin(ENTRY, key, 96);
    out.extend_from_slice(&meta.status.to_le_bytes());
    out.extend_from_slice(&meta.flags.to_le_bytes());
    for number in [meta.response_ms, meta.initial_age_ms, meta.lifetime_ms, meta.swr_ms, meta.sie_ms, meta.fetch_ms] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    for part in parts {
        out.extend_from_slice(&(part.len() as u32).to_le_bytes());
    }
    out.extend_from_slice(&(length as u64).to_le_bytes());
    let [head, hidden, tags] = parts;
    let sum = checksum(&out, &[head, hidden, tags]);
    out.extend_from_slice(&sum.to_le_bytes());
    // After the checksum: up to there, an entry begins alike whether it is packed or not.
    out.extend_from_slice(&packed.to_le_bytes());
    for body in bodies.iter() {
        out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    }
    let all: Vec<&[u8]> = std::iter::once(&out[..]).chain(parts).chain(body.iter().chain(bodies.iter()).map(|piece| &piece[..])).collect();
    block::joined(&all)
}

/// The entry with its body packed, if that makes it smaller; else as it is. For a store at the other end of a wire.
pub(crate) fn pack(key: &str, entry: &Entry) -> Bytes {
    let body = entry.body();
    if body.len() < PACK_FROM {
        return entry.raw().clone();
    }
    let parts = [&entry.head()[..], &entry.hidden, &entry.tags];
    let bodies = entry.bodies();
    if !bodies.zstd.is_empty() {
        return write(key, entry.meta(), parts, body.len(), AS_ZSTD, &[], &bodies);
    }
    match encode::pack(body) {
        Some(packed) if packed.len() < body.len() - body.len() / 16 => {
            write(key, entry.meta(), parts, body.len(), packed.len() as u32, &[packed], &bodies)
        }
        _ => entry.raw().clone(),
    }
}

/// A spec for the store.
pub fn encode_spec(key: &str, spec: &Spec) -> Bytes {
    let names = spec.fields.iter().map(HeaderName::as_str).collect::<Vec<_>>().join("\n");
    let mut out = begin(SPEC, key, 24 + names.len());
    out.extend_from_slice(&spec.generation.to_le_bytes());
    out.extend_from_slice(&(names.len() as u32).to_le_bytes());
    let sum = checksum(&out, &[names.as_bytes()]);
    out.extend_from_slice(&sum.to_le_bytes());
    out.extend_from_slice(names.as_bytes());
    out.into()
}

/// A hit-for-miss mark for the store.
pub fn encode_pass(key: &str, until_ms: u64, reason: &str) -> Bytes {
    let mut out = begin(PASS, key, 20 + reason.len());
    out.extend_from_slice(&until_ms.to_le_bytes());
    out.extend_from_slice(&(reason.len() as u32).to_le_bytes());
    let sum = checksum(&out, &[reason.as_bytes()]);
    out.extend_from_slice(&sum.to_le_bytes());
    out.extend_from_slice(reason.as_bytes());
    out.into()
}

/// Reads a value that was found under `key`. Copies nothing unless the body is packed; the slices keep `raw` alive.
///
/// Errors: [`Unreadable`] for anything that this version did not write for this key. Never panics, whatever the bytes.
pub fn decode(key: &str, raw: &Bytes) -> Result<Stored, Unreadable> {
    let mut reader = Reader { raw, at: 0 };
    if reader.take(4)? != MAGIC || reader.take(1)? != [VERSION] {
        return Err(Unreadable::Format);
    }
    let kind = reader.take(1)?[0];
    let length = reader.u32()? as usize;
    if reader.take(length)? != key.as_bytes() {
        return Err(Unreadable::Key);
    }
    match kind {
        ENTRY => reader.entry(key),
        SPEC => reader.spec(),
        PASS => reader.pass(),
        _ => Err(Unreadable::Format),
    }
}

/// Reads a value without knowing its key: for who found it by another way.
pub(crate) fn decode_any(raw: &Bytes) -> Result<Stored, Unreadable> {
    let mut reader = Reader { raw, at: 6 };
    let length = reader.u32()? as usize;
    let key = std::str::from_utf8(reader.take(length)?).map_err(|_| Unreadable::Key)?;
    decode(key, raw)
}

/// The beginning of an entry's stored form, up to and with the checksum, and the same with other times; both of one length. `None` for what is no
/// entry of this version.
pub(crate) fn restamp(raw: &Bytes, change: impl FnOnce(&mut Meta)) -> Option<(Bytes, Vec<u8>)> {
    let mut reader = Reader { raw, at: 0 };
    if reader.take(6).ok()? != [MAGIC, &[VERSION, ENTRY][..]].concat() {
        return None;
    }
    let key = reader.u32().ok()? as usize;
    reader.take(key).ok()?;
    let from = reader.at;
    let mut meta = reader.meta().ok()?;
    let lengths = [reader.u32().ok()?, reader.u32().ok()?, reader.u32().ok()?];
    reader.take(AFTER_TAGS).ok()?;
    let numbers = reader.at;
    reader.take(8).ok()?;
    let start = reader.at;
    reader.take(AFTER_SUM).ok()?;
    // Head, hidden part and tags are under the checksum too.
    let covered = reader.take(lengths.iter().map(|length| *length as usize).sum()).ok()?;
    change(&mut meta);
    let mut new = raw[..numbers].to_vec();
    let mut place = from + 12;
    for number in [meta.initial_age_ms, meta.lifetime_ms, meta.swr_ms, meta.sie_ms] {
        new.get_mut(place..place + 8)?.copy_from_slice(&number.to_le_bytes());
        place += 8;
    }
    let sum = checksum(&new, &[covered]);
    new.extend_from_slice(&sum.to_le_bytes());
    Some((raw.slice(..start), new))
}

struct Reader<'a> {
    raw: &'a Bytes,
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Unreadable> {
        let end = self.at.checked_add(length).ok_or(Unreadable::Length)?;
        let part = self.raw.get(self.at..end).ok_or(Unreadable::Length)?;
        self.at = end;
        Ok(part)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Unreadable> {
        self.take(N)?.try_into().map_err(|_| Unreadable::Length)
    }

    fn u16(&mut self) -> Result<u16, Unreadable> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Unreadable> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Unreadable> {
        self.array().map(u64::from_le_bytes)
    }

    fn part(&mut self, length: usize) -> Result<Bytes, Unreadable> {
        let from = self.at;
        self.take(length)?;
        Ok(self.raw.slice(from..self.at))
    }

    /// The checksum that stands here covers all before it and `after`.
    fn check(&mut self, after: &[u8]) -> Result<(), Unreadable> {
        let sum = xxh3_64_with_seed(after, xxh3_64(&self.raw[..self.at]));
        if self.u64()? == sum { Ok(()) } else { Err(Unreadable::Checksum) }
    }

    fn meta(&mut self) -> Result<Meta, Unreadable> {
        Ok(Meta {
            status: self.u16()?,
            flags: self.u16()?,
            response_ms: self.u64()?,
            initial_age_ms: self.u64()?,
            lifetime_ms: self.u64()?,
            swr_ms: self.u64()?,
            sie_ms: self.u64()?,
            fetch_ms: self.u64()?,
        })
    }

    fn end(&self) -> Result<(), Unreadable> {
        if self.at == self.raw.len() { Ok(()) } else { Err(Unreadable::Length) }
    }

    fn entry(mut self, key: &str) -> Result<Stored, Unreadable> {
        let meta = self.meta()?;
        let (head, hidden, tags) = (self.u32()? as usize, self.u32()? as usize, self.u32()? as usize);
        let length = usize::try_from(self.u64()?).map_err(|_| Unreadable::Length)?;
        let numbers = self.at;
        self.at += 8;
        let packed = self.u32()?;
        let variants = [self.u32()?, self.u32()?, self.u32()?];
        let from = self.at;
        let (head, hidden, tags) = (self.part(head)?, self.part(hidden)?, self.part(tags)?);
        let covered = &self.raw[from..self.at];
        let body = self.part(match packed {
            0 => length,
            AS_ZSTD => 0,
            packed => packed as usize,
        })?;
        let [br, zstd, gzip] = variants.map(|length| self.part(length as usize));
        let bodies = Bodies { br: br?, zstd: zstd?, gzip: gzip? };
        self.end()?;
        self.at = numbers;
        self.check(covered)?;
        if StatusCode::from_u16(meta.status).is_err() || !head_is_sound(&head, &meta, length) || !fields_are_sound(&hidden) {
            return Err(Unreadable::Head);
        }
        if std::str::from_utf8(&tags).is_err() {
            return Err(Unreadable::Head);
        }
        if packed == 0 {
            return Ok(Stored::Entry(Entry::from_parts(meta, self.raw.clone(), head, hidden, tags, body, &bodies).into()));
        }
        if length as u64 > MAX_UNPACKED {
            return Err(Unreadable::Packed);
        }
        let frame = if packed == AS_ZSTD { &bodies.zstd } else { &body };
        let body = encode::unpack(frame, length).ok_or(Unreadable::Packed)?;
        // One buffer again, and nothing of the packed form kept alive.
        Ok(Stored::Entry(assemble(key, meta, [&head, &hidden, &tags], &[body], &bodies).into()))
    }

    fn pass(mut self) -> Result<Stored, Unreadable> {
        let until_ms = self.u64()?;
        let length = self.u32()? as usize;
        let numbers = self.at;
        self.at += 8;
        let reason = self.part(length)?;
        self.end()?;
        self.at = numbers;
        self.check(&reason)?;
        Ok(Stored::Pass { until_ms, reason: reasons::known(&reason) })
    }

    fn spec(mut self) -> Result<Stored, Unreadable> {
        let generation = self.u64()?;
        let length = self.u32()? as usize;
        let numbers = self.at;
        self.at += 8;
        let names = self.part(length)?;
        self.end()?;
        self.at = numbers;
        self.check(&names)?;
        let fields: Result<Vec<_>, _> = names.split(|&b| b == b'\n').map(HeaderName::from_bytes).collect();
        let mut fields = fields.map_err(|_| Unreadable::Head)?;
        fields.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        Ok(Stored::Spec(Spec { fields, generation, read_ms: 0 }))
    }
}

/// The head is written to clients as it is, so every byte of it must be what a head may have.
fn head_is_sound(head: &[u8], meta: &Meta, body: usize) -> bool {
    let Some(end) = memchr::memchr(b'\r', head).filter(|end| head[*end..].starts_with(b"\r\n")) else { return false };
    let mut start = *b"HTTP/1.1 000 ";
    let Ok(status) = StatusCode::from_u16(meta.status) else { return false };
    start[9..12].copy_from_slice(status.as_str().as_bytes());
    let line = &head[..end];
    if !line.starts_with(&start) || line.iter().any(|b| !(b.is_ascii_graphic() || *b == b' ')) {
        return false;
    }
    let mut lengths = lines(head).filter(|(name, _)| name.eq_ignore_ascii_case(b"content-length")).map(|(_, v)| v);
    let length_fits = match (lengths.next(), lengths.next()) {
        (None, _) => body == 0,
        (Some(one), None) => std::str::from_utf8(one).ok().and_then(|text| text.parse::<usize>().ok()) == Some(body),
        _ => false,
    };
    length_fits && fields_are_sound(&head[end + 2..])
}

fn fields_are_sound(fields: &[u8]) -> bool {
    let mut seen = 0;
    for (name, value) in field_lines(fields) {
        if !fields::is_lower_name(name) || !fields::is_value(value) || !fields::may_keep(name) {
            return false;
        }
        seen += name.len() + 2 + value.len() + 2;
    }
    // Every byte was part of a line in the one form that is written here.
    seen == fields.len()
}

fn checksum(before: &[u8], after: &[&[u8]]) -> u64 {
    let mut sum = Xxh3::with_seed(xxh3_64(before));
    after.iter().for_each(|part| sum.update(part));
    sum.digest()
}
