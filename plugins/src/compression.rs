//! `compression`: answers in brotli, zstd or gzip, as the client likes them.

use crate::{Configured, Live, wrong};
use bytes::Bytes;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header, request, response};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Deserialize;
use std::{io::Write, sync::Arc};
use weir_cache::encode::{Accepted, Coding};
use weir_config::{Diagnostic, Node, Size};
use weir_gateway::{BuildEnv, Flow, Phases, Plugin, RequestContext};

/// Compresses answers of services on their way to the client, piece by piece as they arrive. The client's `Accept-Encoding` decides, with its weights; among equals
/// the order of `algorithms` does. Such an answer has `Content-Encoding` and a weak `ETag`, and no `Content-Length`, digest or `Accept-Ranges`; all answers of a type that is
/// compressed have `Vary: Accept-Encoding`.
///
/// Not compressed are answers that are encoded already, partial ones, those with `Cache-Control: no-transform`, and answers made by Weir or its plugins, which are short.
/// What is served from the cache was compressed there. Answers with a secret beside text that an attacker can choose should not be compressed (BREACH).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Codings in the order of preference.
    #[schemars(length(min = 1))]
    pub algorithms: Vec<Algorithm>,
    /// A shorter body stays as it is, if the service tells its length.
    pub min_size: Size,
    /// Media types that are compressed, without parameters; `text/*` means all texts. `text/event-stream` only if it is named.
    #[schemars(length(min = 1))]
    pub types: Vec<String>,
}

/// Content codings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// Brotli.
    Br,
    /// Zstandard.
    Zstd,
    /// Gzip.
    Gzip,
}

impl Algorithm {
    fn coding(self) -> Coding {
        match self {
            Algorithm::Br => Coding::Br,
            Algorithm::Zstd => Coding::Zstd,
            Algorithm::Gzip => Coding::Gzip,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        let types = ["text/*", "application/json", "application/*+json", "application/javascript", "application/xml", "application/*+xml", "application/wasm", "image/svg+xml"];
        Config {
            algorithms: vec![Algorithm::Br, Algorithm::Zstd, Algorithm::Gzip],
            min_size: Size(1024),
            types: types.map(Into::into).to_vec(),
        }
    }
}

/// Effort for answers that are made once and read once.
const BROTLI_QUALITY: u32 = 4;
const BROTLI_WINDOW: u32 = 20;
const ZSTD_LEVEL: i32 = 3;
const GZIP_LEVEL: u32 = 5;

impl Configured for Config {
    const NAME: &'static str = "compression";
    // Before all that look at or change bodies, so that they see them plain.
    const PRIORITY: i32 = 2100;
    const EXAMPLE: &'static str = "algorithms: [br, gzip]
min_size: 2KB
types: [text/*, application/json]
";

    type Ready = Compression;

    fn ready(self, at: &Node) -> Result<Compression, Vec<Diagnostic>> {
        let (mut types, mut errors) = (Vec::new(), Vec::new());
        for text in &self.types {
            let lower = text.trim().to_ascii_lowercase();
            match lower.split_once('/').filter(|(main, sub)| !main.is_empty() && !sub.is_empty() && sub.matches('*').count() <= 1 && !lower.contains(';')) {
                Some((main, sub)) => types.push((main.to_owned(), sub.to_owned())),
                None => errors.push(wrong(at, "types", format!("`{}` is not a media type without parameters", text.escape_debug()))),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Compression { codings: self.algorithms.iter().map(|a| a.coding()).collect(), min_size: self.min_size.get(), types })
    }

    fn build(ready: Compression, _: &BuildEnv<'_>, _: &Live) -> Arc<dyn Plugin> {
        Arc::new(ready)
    }
}

/// The plugin.
pub struct Compression {
    codings: Vec<Coding>,
    min_size: u64,
    types: Vec<(String, String)>,
}

/// What the client asked for.
#[derive(Clone, Copy)]
struct Wanted {
    coding: Coding,
    head: bool,
}

/// The encoder of this answer.
#[derive(Clone)]
struct Running(Arc<Mutex<Option<Encoder>>>);

enum Encoder {
    Br(Box<brotli::CompressorWriter<Vec<u8>>>),
    Zstd(Box<zstd::stream::write::Encoder<'static, Vec<u8>>>),
    Gzip(Box<GzEncoder<Vec<u8>>>),
}

impl Encoder {
    fn new(coding: Coding) -> Option<Encoder> {
        match coding {
            Coding::Br => Some(Encoder::Br(Box::new(brotli::CompressorWriter::new(Vec::new(), 16 << 10, BROTLI_QUALITY, BROTLI_WINDOW)))),
            Coding::Zstd => Some(Encoder::Zstd(Box::new(zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL).ok()?))),
            Coding::Gzip => Some(Encoder::Gzip(Box::new(GzEncoder::new(Vec::new(), flate2::Compression::new(GZIP_LEVEL))))),
            Coding::Identity => None,
        }
    }

    /// All that can be decoded so far, so that a client of a streamed answer does not wait for the next piece.
    fn piece(&mut self, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
        fn through(encoder: &mut impl Write, bytes: &[u8]) -> std::io::Result<()> {
            encoder.write_all(bytes)?;
            encoder.flush()
        }
        match self {
            Encoder::Br(e) => through(e, bytes).map(|()| std::mem::take(e.get_mut())),
            Encoder::Zstd(e) => through(e, bytes).map(|()| std::mem::take(e.get_mut())),
            Encoder::Gzip(e) => through(e, bytes).map(|()| std::mem::take(e.get_mut())),
        }
    }

    fn last(self, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
        match self {
            Encoder::Br(mut e) => {
                e.write_all(bytes)?;
                Ok(e.into_inner())
            }
            Encoder::Zstd(mut e) => {
                e.write_all(bytes)?;
                e.finish()
            }
            Encoder::Gzip(mut e) => {
                e.write_all(bytes)?;
                e.finish()
            }
        }
    }
}

impl Compression {
    fn choose(&self, headers: &HeaderMap) -> Coding {
        let accepted = Accepted::of_lines(headers.get_all(header::ACCEPT_ENCODING).iter().map(HeaderValue::as_bytes));
        let mut best = (Coding::Identity, accepted.weight(Coding::Identity));
        for &coding in &self.codings {
            let weight = accepted.weight(coding);
            if weight > best.1 || (weight > 0 && weight == best.1 && best.0 == Coding::Identity) {
                best = (coding, weight);
            }
        }
        best.0
    }

    /// Whether answers like this one are compressed for whoever wants it.
    fn concerns(&self, cx: &RequestContext, res: &response::Parts) -> bool {
        let text = |name: HeaderName| res.headers.get(name).and_then(|v| v.to_str().ok());
        let kind = text(header::CONTENT_TYPE).unwrap_or("").split(';').next().unwrap_or("").trim().to_ascii_lowercase();
        let Some((main, sub)) = kind.split_once('/') else { return false };
        let fits = |pattern: &str| match pattern.split_once('*') {
            Some((before, after)) => sub.len() >= before.len() + after.len() && sub.starts_with(before) && sub.ends_with(after),
            None => pattern == sub,
        };
        let named = kind != "text/event-stream" || self.types.iter().any(|(_, s)| s == "event-stream");
        let fixed = res.headers.get_all(header::CACHE_CONTROL).iter().any(|v| v.as_bytes().to_ascii_lowercase().windows(12).any(|w| w == b"no-transform"));
        let length = text(header::CONTENT_LENGTH).and_then(|v| v.parse::<u64>().ok());
        cx.answered_by == "upstream"
            && !matches!(res.status.as_u16(), 100..=199 | 204 | 206 | 304)
            && text(header::CONTENT_ENCODING).is_none_or(|v| v.eq_ignore_ascii_case("identity"))
            && !res.headers.contains_key(header::CONTENT_RANGE)
            && length.is_none_or(|length| length >= self.min_size)
            && !fixed
            && named
            && self.types.iter().any(|(m, s)| m == main && fits(s))
    }
}

impl Plugin for Compression {
    fn phases(&self) -> Phases {
        Phases::REQUEST | Phases::RESPONSE | Phases::BODY
    }

    fn request(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        cx.state.insert(Wanted { coding: self.choose(&req.headers), head: req.method == Method::HEAD });
        Flow::Continue
    }

    fn response(&self, cx: &mut RequestContext, res: &mut response::Parts) {
        let Some(Wanted { coding, head }) = cx.state.get::<Wanted>().copied() else { return };
        if !self.concerns(cx, res) {
            return;
        }
        let varies = |v: &HeaderValue| v.to_str().is_ok_and(|v| v.split(',').any(|f| f.trim() == "*" || f.trim().eq_ignore_ascii_case("accept-encoding")));
        if !res.headers.get_all(header::VARY).iter().any(varies) {
            res.headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        }
        let Some(encoder) = Encoder::new(coding) else { return };
        for name in ["content-length", "accept-ranges", "content-digest", "digest", "content-md5", "content-encoding"] {
            res.headers.remove(name);
        }
        res.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
        if let Some(tag) = res.headers.get(header::ETAG).filter(|t| !t.as_bytes().starts_with(b"W/"))
            && let Ok(weak) = HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat())
        {
            res.headers.insert(header::ETAG, weak);
        }
        if !head {
            cx.state.insert(Running(Arc::new(Mutex::new(Some(encoder)))));
        }
    }

    fn body(&self, cx: &mut RequestContext, chunk: &mut Bytes, last: bool) {
        let Some(Running(running)) = cx.state.get::<Running>() else { return };
        let mut running = running.lock();
        let made = match running.as_mut() {
            Some(_) if last => running.take().map(|encoder| encoder.last(chunk)),
            Some(_) if chunk.is_empty() => return,
            Some(encoder) => Some(encoder.piece(chunk)),
            None => None,
        };
        match made {
            Some(Ok(bytes)) => *chunk = bytes.into(),
            // Writing to memory does not fail; if an encoder did, plain bytes among encoded ones would be worse than an end.
            Some(Err(error)) => {
                tracing::warn!(plugin = Config::NAME, %error, "an encoder failed");
                *running = None;
                chunk.clear();
            }
            None => chunk.clear(),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Ask, Rig, Seen, ask, errors, get};
    use proptest::prelude::*;
    use std::io::Read;

    fn rig(config: &str, kind: &str) -> Rig {
        Rig::new(&[("compression", config)]).upstream_field("content-type", kind)
    }

    async fn coding(accept: &str) -> String {
        let ask = if accept.is_empty() { get("/") } else { get("/").with("accept-encoding", accept) };
        rig("{}", "text/html").run(ask).await.header("content-encoding").unwrap_or("identity").to_owned()
    }

    fn decoded(coding: &str, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        match coding {
            "br" => brotli::Decompressor::new(bytes, 4096).read_to_end(&mut out),
            "zstd" => zstd::stream::read::Decoder::new(bytes).unwrap().read_to_end(&mut out),
            _ => flate2::read::GzDecoder::new(bytes).read_to_end(&mut out),
        }
        .unwrap_or_else(|e| panic!("{coding}: {e}"));
        out
    }

    #[tokio::test]
    async fn the_client_chooses() {
        for (accept, expected) in [
            ("", "identity"),
            ("gzip, deflate, br, zstd", "br"),
            ("gzip, zstd", "zstd"),
            ("gzip;q=1.0, br;q=0.5", "gzip"),
            ("br;q=0, gzip;q=0.2", "gzip"),
            ("*", "br"),
            ("*;q=0", "identity"),
            ("identity, gzip;q=0.5", "identity"),
            ("deflate", "identity"),
            ("br;q=nonsense", "identity"),
        ] {
            assert_eq!(coding(accept).await, expected, "{accept}");
        }
        let gzip_only = rig("algorithms: [gzip]", "text/html").run(get("/").with("accept-encoding", "br, gzip;q=0.1")).await;
        assert_eq!(gzip_only.header("content-encoding"), Some("gzip"));
    }

    #[tokio::test]
    async fn each_coding_can_be_read_back() {
        for coding in ["br", "zstd", "gzip"] {
            let seen = rig("{}", "application/json; charset=utf-8").upstream_body(&["{\"a\":", "", "\"", "bbbbbbbbbbbb", "\"}"]).run(get("/").with("accept-encoding", coding)).await;
            assert_eq!((seen.header("content-encoding"), decoded(coding, &seen.bytes)), (Some(coding), b"{\"a\":\"bbbbbbbbbbbb\"}".to_vec()));
        }
    }

    async fn with(fields: &[(&'static str, &str)], asked: Ask) -> Seen {
        let mut rig = Rig::new(&[("compression", "{}")]);
        for (name, value) in fields {
            rig = rig.upstream_field(name, value);
        }
        rig.run(asked.with("accept-encoding", "br")).await
    }

    #[tokio::test]
    async fn fields_tell_what_was_done() {
        let fields = [("content-type", "text/css"), ("content-length", "5000"), ("etag", "\"x\""), ("accept-ranges", "bytes"), ("vary", "Origin"), ("digest", "d")];
        for asked in [get("/"), ask("HEAD", "/")] {
            let seen = with(&fields, asked).await;
            assert_eq!((seen.header("content-encoding"), seen.header("etag"), seen.all("vary")), (Some("br"), Some("W/\"x\""), vec!["Origin", "Accept-Encoding"]));
            for gone in ["content-length", "accept-ranges", "digest"] {
                assert_eq!(seen.header(gone), None, "{gone}");
            }
        }
        let seen = with(&[("content-type", "text/css"), ("etag", "W/\"x\""), ("vary", "accept-encoding")], get("/")).await;
        assert_eq!((seen.header("etag"), seen.all("vary")), (Some("W/\"x\""), vec!["accept-encoding"]));
        let plain = rig("{}", "text/css").run(get("/")).await;
        assert_eq!((plain.header("content-encoding"), plain.header("vary"), plain.body.as_str()), (None, Some("Accept-Encoding"), "hello"));
    }

    #[tokio::test]
    async fn what_stays_as_it_is() {
        for fields in [
            &[("content-type", "image/png")][..],
            &[("content-type", "text/event-stream")],
            &[],
            &[("content-type", "text/html"), ("content-length", "1023")],
            &[("content-type", "text/html"), ("content-encoding", "gzip")],
            &[("content-type", "text/html"), ("content-range", "bytes 0-4/9")],
            &[("content-type", "text/html"), ("cache-control", "public, No-Transform")],
        ] {
            let seen = with(fields, get("/")).await;
            assert_eq!((seen.body.as_str(), seen.header("vary")), ("hello", None), "{fields:?}");
        }
        let refused = Rig::new(&[("compression", "{}"), ("token-validator", "secret: a-secret-of-thirty-two-bytes-long")]);
        assert_eq!(refused.run(get("/").with("accept-encoding", "br")).await.header("content-encoding"), None);
        let partial = rig("{}", "text/html").upstream_status(206);
        assert_eq!(partial.run(get("/").with("accept-encoding", "br")).await.header("content-encoding"), None);
    }

    #[tokio::test]
    async fn other_plugins_see_plain_bodies() {
        let rig = Rig::new(&[("compression", "{}"), ("response-transformer", "add: {json: ['b:2']}")]).upstream_field("content-type", "application/json").upstream_body(&["{\"a\"", ":1}"]);
        let seen = rig.run(get("/").with("accept-encoding", "gzip")).await;
        assert_eq!(decoded("gzip", &seen.bytes), b"{\"a\":1,\"b\":\"2\"}");
    }

    #[test]
    fn mistakes() {
        for (config, message) in [("types: [html]", "`html` is not a media type"), ("types: ['text/html; charset=utf-8']", "without parameters"), ("algorithms: [deflate]", "deflate"), ("types: []", "types")] {
            let found = errors("compression", config);
            assert!(found.iter().any(|e| e.to_string().contains(message)), "{config}: {found:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_sent_arrives(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..6), which in 0usize..3) {
            let (coding, name) = [(super::Coding::Br, "br"), (super::Coding::Zstd, "zstd"), (super::Coding::Gzip, "gzip")][which];
            let mut encoder = super::Encoder::new(coding).unwrap();
            let mut sent = Vec::new();
            for piece in &pieces {
                sent.extend(encoder.piece(piece).unwrap());
            }
            sent.extend(encoder.last(b"end").unwrap());
            prop_assert_eq!(decoded(name, &sent), [pieces.concat(), b"end".to_vec()].concat());
        }
    }
}
