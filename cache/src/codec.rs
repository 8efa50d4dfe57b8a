//! How slots lie in the store. Every number little-endian:
//!
//! ```text
//! "WEIR" | version 1 | kind 1 | key length 4 | key | checksum 8 over all before it and the section after it
//! entry:  status 2 | flags 2 | response 8 | initial age 8 | lifetime 8 | swr 8 | sie 8 | fetch 8
//!         | head length 4 | hidden length 4 | tags length 4 | body length 8 | checksum 8 | head | hidden | tags | body
//! spec:   generation 8 | names length 4 | checksum 8 | names, one a line
//! pass:   until 8 | checksum 8
//! ```
//!
//! What can not be read, or belongs to another key, counts as absent.

use crate::{
    entry::{Entry, Meta, field_lines, lines},
    fields,
    vary::Spec,
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use std::sync::Arc;

const MAGIC: &[u8; 4] = b"WEIR";
const VERSION: u8 = 1;
const ENTRY: u8 = 1;
/// Bytes between the length of the tags and the checksum.
const AFTER_TAGS: usize = 8;
const SPEC: u8 = 2;
const PASS: u8 = 3;

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
pub(crate) fn assemble(key: &str, meta: Meta, head: &[u8], hidden: &[u8], tags: &[u8], body: &[Bytes]) -> Entry {
    let length: usize = body.iter().map(Bytes::len).sum();
    let mut out = begin(ENTRY, key, 80 + head.len() + hidden.len() + tags.len() + length);
    out.extend_from_slice(&meta.status.to_le_bytes());
    out.extend_from_slice(&meta.flags.to_le_bytes());
    for number in [meta.response_ms, meta.initial_age_ms, meta.lifetime_ms, meta.swr_ms, meta.sie_ms, meta.fetch_ms] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    for part in [head, hidden, tags] {
        out.extend_from_slice(&(part.len() as u32).to_le_bytes());
    }
    out.extend_from_slice(&(length as u64).to_le_bytes());
    let sum = checksum(&[&out, head, hidden, tags]);
    out.extend_from_slice(&sum.to_le_bytes());
    let from = out.len();
    for part in [head, hidden, tags] {
        out.extend_from_slice(part);
    }
    for piece in body {
        out.extend_from_slice(piece);
    }
    let raw = Bytes::from(out);
    let (a, b) = (from + head.len(), from + head.len() + hidden.len());
    let c = b + tags.len();
    Entry::from_parts(meta, raw.clone(), raw.slice(from..a), raw.slice(a..b), raw.slice(b..c), raw.slice(c..))
}

/// A spec for the store.
pub fn encode_spec(key: &str, spec: &Spec) -> Bytes {
    let names = spec.fields.iter().map(HeaderName::as_str).collect::<Vec<_>>().join("\n");
    let mut out = begin(SPEC, key, 24 + names.len());
    out.extend_from_slice(&spec.generation.to_le_bytes());
    out.extend_from_slice(&(names.len() as u32).to_le_bytes());
    let sum = checksum(&[&out, names.as_bytes()]);
    out.extend_from_slice(&sum.to_le_bytes());
    out.extend_from_slice(names.as_bytes());
    out.into()
}

/// A hit-for-miss mark for the store.
pub fn encode_pass(key: &str, until_ms: u64) -> Bytes {
    let mut out = begin(PASS, key, 16);
    out.extend_from_slice(&until_ms.to_le_bytes());
    let sum = checksum(&[&out]);
    out.extend_from_slice(&sum.to_le_bytes());
    out.into()
}

/// Reads a value that was found under `key`. Copies nothing; the slices keep `raw` alive.
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
        ENTRY => reader.entry(),
        SPEC => reader.spec(),
        PASS => {
            let until_ms = reader.u64()?;
            reader.check(&[])?;
            reader.end()?;
            Ok(Stored::Pass { until_ms })
        }
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
    // Head, hidden part and tags are under the checksum too.
    let covered = reader.take(lengths.iter().map(|length| *length as usize).sum()).ok()?;
    change(&mut meta);
    let mut new = raw[..numbers].to_vec();
    let mut place = from + 12;
    for number in [meta.initial_age_ms, meta.lifetime_ms, meta.swr_ms, meta.sie_ms] {
        new.get_mut(place..place + 8)?.copy_from_slice(&number.to_le_bytes());
        place += 8;
    }
    let sum = checksum(&[&new, covered]);
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
    fn check(&mut self, after: &[&[u8]]) -> Result<(), Unreadable> {
        let mut parts = vec![&self.raw[..self.at]];
        parts.extend_from_slice(after);
        let sum = checksum(&parts);
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

    fn entry(mut self) -> Result<Stored, Unreadable> {
        let meta = self.meta()?;
        let (head, hidden, tags) = (self.u32()? as usize, self.u32()? as usize, self.u32()? as usize);
        let body = usize::try_from(self.u64()?).map_err(|_| Unreadable::Length)?;
        let numbers = self.at;
        self.at += 8;
        let (head, hidden, tags) = (self.part(head)?, self.part(hidden)?, self.part(tags)?);
        let body = self.part(body)?;
        self.end()?;
        self.at = numbers;
        self.check(&[&head, &hidden, &tags])?;
        if StatusCode::from_u16(meta.status).is_err() || !head_is_sound(&head, &meta, body.len()) || !fields_are_sound(&hidden) {
            return Err(Unreadable::Head);
        }
        if std::str::from_utf8(&tags).is_err() {
            return Err(Unreadable::Head);
        }
        Ok(Stored::Entry(Entry::from_parts(meta, self.raw.clone(), head, hidden, tags, body).into()))
    }

    fn spec(mut self) -> Result<Stored, Unreadable> {
        let generation = self.u64()?;
        let length = self.u32()? as usize;
        let numbers = self.at;
        self.at += 8;
        let names = self.part(length)?;
        self.end()?;
        self.at = numbers;
        self.check(&[&names])?;
        let fields: Result<Vec<_>, _> = names.split(|&b| b == b'\n').map(HeaderName::from_bytes).collect();
        let mut fields = fields.map_err(|_| Unreadable::Head)?;
        fields.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        Ok(Stored::Spec(Spec { fields, generation, read_ms: 0 }))
    }
}

/// The head is written to clients as it is, so every byte of it must be what a head may have.
fn head_is_sound(head: &[u8], meta: &Meta, body: usize) -> bool {
    let Some(end) = memchr::memmem::find(head, b"\r\n") else { return false };
    let mut start = *b"HTTP/1.1 000 ";
    let Ok(status) = StatusCode::from_u16(meta.status) else { return false };
    start[9..12].copy_from_slice(status.as_str().as_bytes());
    let line = &head[..end];
    if !line.starts_with(&start) || line.iter().any(|b| !(b.is_ascii_graphic() || *b == b' ')) {
        return false;
    }
    let lengths: Vec<_> = lines(head).filter(|(name, _)| name.eq_ignore_ascii_case(b"content-length")).map(|(_, v)| v).collect();
    let length_fits = match lengths[..] {
        [] => body == 0,
        [one] => std::str::from_utf8(one).ok().and_then(|text| text.parse::<usize>().ok()) == Some(body),
        _ => false,
    };
    length_fits && fields_are_sound(&head[end + 2..])
}

fn fields_are_sound(fields: &[u8]) -> bool {
    let mut seen = 0;
    for (name, value) in field_lines(fields) {
        let Ok(parsed) = HeaderName::from_bytes(name) else { return false };
        if HeaderValue::from_bytes(value).is_err() || !fields::may_keep(&parsed) {
            return false;
        }
        seen += name.len() + 2 + value.len() + 2;
    }
    // Every byte was part of a line in the one form that is written here.
    seen == fields.len()
}

/// FNV-1a, 64 bits: against accidents, not against enemies.
fn checksum(parts: &[&[u8]]) -> u64 {
    let mut sum = 0xcbf2_9ce4_8422_2325u64;
    for byte in parts.iter().flat_map(|part| part.iter()) {
        sum = (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    sum
}
