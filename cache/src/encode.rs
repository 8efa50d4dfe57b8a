//! Content codings (RFC 9110 sections 8.4 and 12.5.3): which one a client gets, what is worth encoding, and the encoding itself.

use crate::{
    Policy,
    control::directives,
    entry::{lines, map_of},
    fields,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, header};
use std::io::Write;

/// Shorter bodies are not encoded: they fit into one packet as they are.
const ENCODE_FROM: usize = 1024;
/// Longer bodies are not encoded: that would keep a thread busy for seconds.
const ENCODE_TO: usize = 32 << 20;
/// A gain below this share of the body is not worth another copy in memory.
const GAIN: usize = 10;

/// Says how the bytes of a body, or of one encoding of it, must be.
const DIGESTS: [&str; 4] = ["content-digest", "repr-digest", "digest", "content-md5"];

/// How a body is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Coding {
    /// Brotli (RFC 7932).
    Br,
    /// Zstandard (RFC 8878), with a window that every client can hold (RFC 9659).
    Zstd,
    /// Gzip (RFC 1952).
    Gzip,
    /// Not at all.
    Identity,
}

impl Coding {
    /// As in `Content-Encoding`.
    pub fn name(self) -> &'static str {
        match self {
            Coding::Br => "br",
            Coding::Zstd => "zstd",
            Coding::Gzip => "gzip",
            Coding::Identity => "identity",
        }
    }

    fn of(name: &[u8]) -> Option<Coding> {
        let is = |text: &str| name.eq_ignore_ascii_case(text.as_bytes());
        match () {
            () if is("br") => Some(Coding::Br),
            () if is("zstd") => Some(Coding::Zstd),
            // RFC 9110 section 8.4.1.3: x-gzip means the same.
            () if is("gzip") || is("x-gzip") => Some(Coding::Gzip),
            () if is("identity") => Some(Coding::Identity),
            () => None,
        }
    }
}

/// Codings that bodies are kept in, besides identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Codings(u8);

impl Codings {
    /// All that Weir can make.
    pub const ALL: Codings = Codings(0b111);
    /// None: bodies are kept as they came.
    pub const NONE: Codings = Codings(0);

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether this one is among them.
    pub fn has(self, coding: Coding) -> bool {
        self.0 & Codings::bit(coding) != 0
    }

    fn bit(coding: Coding) -> u8 {
        match coding {
            Coding::Br => 1,
            Coding::Zstd => 2,
            Coding::Gzip => 4,
            Coding::Identity => 0,
        }
    }

    /// Those of either.
    pub(crate) fn and(self, other: Codings) -> Codings {
        Codings(self.0 | other.0)
    }

    /// Those that are not among the others.
    pub(crate) fn without(self, others: Codings) -> Codings {
        Codings(self.0 & !others.0)
    }

    /// As three bits, for the flags of an entry.
    pub(crate) fn bits(self) -> u8 {
        self.0
    }

    /// From the lowest three bits.
    pub(crate) fn of_bits(bits: u8) -> Codings {
        Codings(bits & Codings::ALL.0)
    }
}

impl FromIterator<Coding> for Codings {
    fn from_iter<I: IntoIterator<Item = Coding>>(codings: I) -> Codings {
        Codings(codings.into_iter().fold(0, |all, coding| all | Codings::bit(coding)))
    }
}

/// An `Accept-Encoding`, read (RFC 9110 section 12.5.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// By [`Coding`], in thousandths.
    weights: [u16; 4],
}

impl Accepted {
    /// Reads the field's value, all its lines joined with commas; `None`: it was not sent. A weight that can not be read counts as 0, of two for
    /// the same coding the lower one counts. Allocates nothing.
    pub fn of(value: Option<&[u8]>) -> Accepted {
        Accepted::of_lines(value.into_iter())
    }

    /// Reads all lines of the field. Allocates nothing.
    pub fn of_lines<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Accepted {
        let mut named = [None::<u16>; 4];
        let mut others = None::<u16>;
        for item in lines.flat_map(|line| line.split(|b| *b == b',')) {
            let mut parts = item.split(|b| *b == b';').map(<[u8]>::trim_ascii);
            let name = parts.next().unwrap_or_default();
            let weight = parts.map(weight).min().unwrap_or(1000);
            let place = match Coding::of(name) {
                Some(coding) => &mut named[coding as usize],
                None if name == b"*" => &mut others,
                None => continue,
            };
            *place = Some(place.map_or(weight, |there| there.min(weight)));
        }
        let mut weights = named.map(|weight| weight.or(others).unwrap_or(0));
        if named[Coding::Identity as usize].is_none() && others.is_none() {
            // Not named, it is acceptable, but whoever names another likes that better.
            weights[Coding::Identity as usize] = 1;
        }
        Accepted { weights }
    }

    /// How much the client likes a coding, 0 (not acceptable) to 1000.
    pub fn weight(&self, coding: Coding) -> u16 {
        self.weights[coding as usize]
    }
}

/// `q=0.5` as 500. Other parameters do not exist.
fn weight(parameter: &[u8]) -> u16 {
    let Some(equals) = memchr::memchr(b'=', parameter) else { return if parameter.is_empty() { 1000 } else { 0 } };
    let (name, value) = (parameter[..equals].trim_ascii(), parameter[equals + 1..].trim_ascii());
    if !name.eq_ignore_ascii_case(b"q") {
        return 1000;
    }
    let (whole, part) = match memchr::memchr(b'.', value) {
        Some(point) => (&value[..point], &value[point + 1..]),
        None => (value, &[][..]),
    };
    if !part.iter().all(u8::is_ascii_digit) {
        return 0;
    }
    match whole {
        b"1" => 1000,
        b"0" => (0..3).fold(0, |sum, at| sum * 10 + part.get(at).map_or(0, |digit| u16::from(digit - b'0'))),
        _ => 0,
    }
}

/// Encoded bodies; empty where there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Bodies {
    pub(crate) br: Bytes,
    pub(crate) zstd: Bytes,
    pub(crate) gzip: Bytes,
}

impl Bodies {
    /// Asks for br, zstd and gzip, in this order.
    pub(crate) fn from_each(mut of: impl FnMut(Coding) -> Bytes) -> Bodies {
        Bodies { br: of(Coding::Br), zstd: of(Coding::Zstd), gzip: of(Coding::Gzip) }
    }

    pub(crate) fn of(&self, coding: Coding) -> Bytes {
        match coding {
            Coding::Br => self.br.clone(),
            Coding::Zstd => self.zstd.clone(),
            Coding::Gzip => self.gzip.clone(),
            Coding::Identity => Bytes::new(),
        }
    }

    /// These, and the others' where there is none.
    pub(crate) fn or(&self, others: &Bodies) -> Bodies {
        Bodies::from_each(|coding| match self.of(coding) {
            none if none.is_empty() => others.of(coding),
            body => body,
        })
    }

    /// In the order of [`Bodies::from_each`].
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Bytes> {
        [&self.br, &self.zstd, &self.gzip].into_iter()
    }
}

/// A stored response in one encoding.
#[derive(Debug, Clone)]
pub struct Variant {
    /// Which one.
    pub coding: Coding,
    /// Ready-made, as [`Entry::head`](crate::Entry::head), with this variant's `Content-Encoding`, `Content-Length` and `ETag`.
    pub head: Bytes,
    /// The body, encoded so.
    pub body: Bytes,
    /// `ETag`, quotes and `W/` included.
    pub etag: Option<Bytes>,
}

impl Variant {
    pub(crate) fn identity(head: Bytes, body: Bytes) -> Variant {
        let etag = lines(&head).find(|(name, _)| is(name, &header::ETAG)).map(|(_, value)| head.slice_ref(value));
        Variant { coding: Coding::Identity, head, body, etag }
    }

    /// The variants of a response, smallest first. Their heads share one buffer.
    pub(crate) fn all(identity: &Variant, bodies: &Bodies) -> Vec<Variant> {
        let mut found: Vec<_> = [Coding::Br, Coding::Zstd, Coding::Gzip].into_iter().filter(|coding| !bodies.of(*coding).is_empty()).collect();
        found.sort_by_key(|coding| bodies.of(*coding).len());
        let mut heads = Vec::with_capacity(found.len() * (identity.head.len() + 40));
        let ends: Vec<usize> = found
            .iter()
            .map(|coding| {
                write_head(&mut heads, identity, *coding, bodies.of(*coding).len());
                heads.len()
            })
            .collect();
        let heads = Bytes::from(heads);
        let mut from = 0;
        found
            .into_iter()
            .zip(ends)
            .map(|(coding, end)| {
                let head = heads.slice(from..end);
                from = end;
                Variant { coding, ..Variant::identity(head, bodies.of(coding)) }
            })
            .collect()
    }

    /// The fields of the head as a map. Values point into the variant.
    pub fn headers(&self) -> HeaderMap {
        map_of(&self.head)
    }
}

fn is(name: &[u8], header: &HeaderName) -> bool {
    name.eq_ignore_ascii_case(header.as_str().as_bytes())
}

fn write_head(out: &mut Vec<u8>, identity: &Variant, coding: Coding, length: usize) {
    let start = memchr::memchr(b'\n', &identity.head).map_or(0, |end| end + 1);
    out.extend_from_slice(&identity.head[..start]);
    for (name, value) in lines(&identity.head) {
        if !is(name, &header::CONTENT_LENGTH) && !is(name, &header::ETAG) {
            fields::write_field(out, name, value);
        }
    }
    if let Some(etag) = &identity.etag {
        fields::write_field(out, b"etag", &variant_etag(etag, coding));
    }
    fields::write_field(out, b"content-encoding", coding.name().as_bytes());
    fields::write_field(out, b"content-length", itoa::Buffer::new().format(length).as_bytes());
}

/// A tag of its own for each encoding (RFC 9110 section 8.8.3.3): `"abc"` becomes `"abc-br"`; a weak one stays weak.
fn variant_etag(etag: &[u8], coding: Coding) -> Vec<u8> {
    let (inside, quote) = match etag.strip_suffix(b"\"") {
        Some(inside) => (inside, &b"\""[..]),
        None => (etag, &b""[..]),
    };
    [inside, b"-", coding.name().as_bytes(), quote].concat()
}

/// Whether responses like this one are kept in several encodings, so that all of them say `Vary: Accept-Encoding`: the rule wants it, the content
/// compresses well, it is not encoded yet, and the origin neither forbids it (`no-transform`) nor vouches for the very bytes.
pub(crate) fn negotiated(policy: &Policy, headers: &HeaderMap) -> bool {
    !policy.encodings.is_empty()
        && !headers.contains_key(header::CONTENT_ENCODING)
        && !DIGESTS.iter().any(|name| headers.contains_key(*name))
        && fields::single(headers, &header::CONTENT_TYPE).is_some_and(compresses)
        && ![header::CACHE_CONTROL, fields::CDN_CACHE_CONTROL, fields::WEIR_CACHE_CONTROL]
            .iter()
            .filter_map(|name| fields::joined(headers, name))
            .any(|text| directives(&text).iter().any(|(name, _)| name == "no-transform"))
}

/// Whether a body of this length is encoded.
pub(crate) fn worth_it(length: usize) -> bool {
    (ENCODE_FROM..=ENCODE_TO).contains(&length)
}

/// Whether content of this type compresses well. What is compressed by its own nature (images, fonts for the web, archives) does not.
pub fn compresses(content_type: &str) -> bool {
    let media = content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    let Some((kind, name)) = media.split_once('/') else { return false };
    if ["+json", "+xml", "+yaml", "+text"].iter().any(|suffix| name.ends_with(suffix)) {
        return true;
    }
    match kind {
        "text" => name != "event-stream",
        "application" => matches!(
            name,
            "json" | "xml" | "javascript" | "x-javascript" | "ecmascript" | "x-ndjson" | "json-seq" | "yaml" | "toml" | "graphql" | "wasm" | "rtf" | "sql"
                | "vnd.ms-fontobject"
        ),
        "font" => matches!(name, "ttf" | "otf" | "sfnt"),
        "image" => matches!(name, "bmp" | "x-icon" | "vnd.microsoft.icon"),
        _ => false,
    }
}

/// Encodes a body in all wanted ways that make it clearly smaller. Takes milliseconds to seconds of one core: not for a thread that serves.
pub(crate) fn encode(body: &[u8], wanted: Codings) -> Bodies {
    let clearly_smaller = |encoded: &Vec<u8>| !encoded.is_empty() && encoded.len() < body.len() - body.len() / GAIN;
    Bodies::from_each(|coding| {
        let encoded = match coding {
            _ if !wanted.has(coding) => None,
            Coding::Br => br(body),
            Coding::Zstd => zstd::bulk::compress(body, if body.len() <= 1 << 20 { 19 } else { 15 }).ok(),
            Coding::Gzip => gzip(body),
            Coding::Identity => None,
        };
        encoded.filter(clearly_smaller).map(Bytes::from).unwrap_or_default()
    })
}

fn br(body: &[u8]) -> Option<Vec<u8>> {
    let quality = match body.len() {
        0..=65_536 => 11,
        65_537..=524_288 => 10,
        _ => 9,
    };
    let params = brotli::enc::BrotliEncoderParams { quality, lgwin: 22, size_hint: body.len(), ..Default::default() };
    let mut out = Vec::with_capacity(body.len() / 4);
    brotli::BrotliCompress(&mut &*body, &mut out, &params).ok()?;
    Some(out)
}

fn gzip(body: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::with_capacity(body.len() / 3), flate2::Compression::best());
    encoder.write_all(body).ok()?;
    encoder.finish().ok()
}

/// A body packed for the store: quick rather than small.
pub(crate) fn pack(body: &[u8]) -> Option<Bytes> {
    zstd::bulk::compress(body, 3).ok().filter(|packed| u32::try_from(packed.len()).is_ok_and(|length| length < u32::MAX)).map(Bytes::from)
}

/// Unpacks a body that has this length. Never takes more memory than that, whatever the bytes are.
pub(crate) fn unpack(packed: &[u8], length: usize) -> Option<Bytes> {
    zstd::bulk::decompress(packed, length).ok().filter(|body| body.len() == length).map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_body_gives_what_was_promised_or_nothing() {
        let body = b"shoes ".repeat(1000);
        let packed = pack(&body).expect("packed");
        assert_eq!(unpack(&packed, body.len()).as_deref(), Some(&body[..]));
        for wrong in [0, 1, body.len() - 1, body.len() + 1] {
            assert_eq!(unpack(&packed, wrong), None, "{wrong}");
        }
        // A few hundred bytes that would become 64 MB, and several of them in a row.
        let bomb = pack(&vec![0; 64 << 20]).expect("packed");
        assert!(bomb.len() < 10_000);
        assert_eq!(unpack(&bomb, 1000), None);
        assert_eq!(unpack(&[&packed[..], &bomb].concat(), body.len()), None);
        assert_eq!(unpack(b"", 10), None);
        assert_eq!(unpack(b"not packed at all", 10), None);
    }

    #[test]
    fn tags_of_variants() {
        for (from, to) in [("\"abc\"", "\"abc-br\""), ("W/\"abc\"", "W/\"abc-br\""), ("\"\"", "\"-br\""), ("bare", "bare-br")] {
            assert_eq!(variant_etag(from.as_bytes(), Coding::Br), to.as_bytes());
        }
    }

    #[test]
    fn every_encoding_is_clearly_smaller_or_left_out() {
        let bodies = encode(&b"shoes ".repeat(1000), Codings::ALL);
        assert!(bodies.iter().all(|body| !body.is_empty() && body.len() < 600));
        let some = encode(&b"shoes ".repeat(1000), [Coding::Gzip].into_iter().collect());
        assert!(some.br.is_empty() && some.zstd.is_empty() && some.gzip == bodies.gzip);
        let noise: Vec<u8> = (0..5000).map(|_| fastrand::u8(..)).collect();
        assert_eq!(encode(&noise, Codings::ALL), Bodies::default());
    }
}
