//! The stored form of an answer.
//!
//! ```text
//! version (1) │ form (1): 0 whole, 1 too large │ request body: 0, or 1 and its hash (33) │ status (2) │ fields (2) │ { name length (2) │ name │ value length (4) │ value }* │ body
//! ```
//! Numbers are big-endian. Of an answer that was too large only the status is kept.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

const VERSION: u8 = 2;
const WHOLE: u8 = 0;
const TOO_LARGE: u8 = 1;

/// Fields of this one exchange or connection, which a later one has of its own.
const OF_ONE_EXCHANGE: [&str; 15] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "content-length",
    "date",
    "age",
    "x-request-id",
    "idempotency-replayed",
    "server-timing",
];

/// What became of a request.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stored {
    /// Hash of the request's body, where that was too long to be a part of the fingerprint.
    pub(super) request: Option<[u8; 32]>,
    /// Status of the answer.
    pub(super) status: StatusCode,
    /// Fields and body of the answer; `None`: it was too large to keep.
    pub(super) answer: Option<(HeaderMap, Bytes)>,
}

/// The fields that are kept.
pub(super) fn kept(headers: &HeaderMap) -> HeaderMap {
    let named: Vec<String> = headers
        .get_all("connection")
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let mut kept = headers.clone();
    for name in OF_ONE_EXCHANGE.into_iter().chain(named.iter().map(String::as_str)) {
        kept.remove(name);
    }
    kept
}

impl Stored {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        out.put_u8(if self.answer.is_some() { WHOLE } else { TOO_LARGE });
        out.put_u8(u8::from(self.request.is_some()));
        out.put_slice(self.request.as_ref().map_or(&[], |hash| &hash[..]));
        out.put_u16(self.status.as_u16());
        if let Some((headers, body)) = &self.answer {
            let fields: Vec<_> = headers.iter().take(usize::from(u16::MAX)).collect();
            out.put_u16(fields.len() as u16);
            for (name, value) in fields {
                // The http crate bounds names to 64 KB less one; values come from heads, which are bounded far below 4 GB.
                out.put_u16(name.as_str().len() as u16);
                out.put_slice(name.as_str().as_bytes());
                out.put_u32(value.len() as u32);
                out.put_slice(value.as_bytes());
            }
            out.put_slice(body);
        }
        out.freeze()
    }

    /// Reads the stored form; `None` if it is damaged or of another version.
    pub(super) fn decode(mut from: Bytes) -> Option<Stored> {
        if from.try_get_u8().ok()? != VERSION {
            return None;
        }
        let form = from.try_get_u8().ok()?;
        let request = match from.try_get_u8().ok()? {
            0 => None,
            1 => Some(piece(&mut from, 32)?[..].try_into().ok()?),
            _ => return None,
        };
        let status = StatusCode::from_u16(from.try_get_u16().ok()?).ok()?;
        let answer = match form {
            TOO_LARGE => None,
            WHOLE => {
                let mut headers = HeaderMap::new();
                for _ in 0..from.try_get_u16().ok()? {
                    let length = usize::from(from.try_get_u16().ok()?);
                    let name = HeaderName::from_bytes(&piece(&mut from, length)?).ok()?;
                    let length = from.try_get_u32().ok()? as usize;
                    let value = HeaderValue::from_maybe_shared(piece(&mut from, length)?).ok()?;
                    headers.try_append(name, value).ok()?;
                }
                Some((headers, from))
            }
            _ => return None,
        };
        Some(Stored { request, status, answer })
    }
}

fn piece(from: &mut Bytes, length: usize) -> Option<Bytes> {
    (length <= from.len()).then(|| from.split_to(length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(fields: &[(String, Vec<u8>)], body: Vec<u8>) -> Stored {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value)) {
                headers.append(name, value);
            }
        }
        let request = (body.len() % 2 == 1).then_some([7; 32]);
        Stored { request, status: StatusCode::CREATED, answer: Some((headers, body.into())) }
    }

    proptest! {
        #[test]
        fn what_is_stored_is_read(
            fields in proptest::collection::vec(("[a-z-]{1,20}", proptest::collection::vec(any::<u8>(), 0..40)), 0..20),
            body in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let stored = answer(&fields, body);
            prop_assert_eq!(Stored::decode(stored.encode()), Some(stored));
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300), version in prop::bool::ANY) {
            let mut bytes = bytes;
            if let (true, Some(first)) = (version, bytes.first_mut()) {
                *first = VERSION;
            }
            let _ = Stored::decode(bytes.into());
        }

        #[test]
        fn a_cut_head_is_not_read(at in 0usize..20) {
            let whole = answer(&[("x-a".into(), b"value".to_vec())], vec![]).encode();
            prop_assert!(at >= whole.len() || Stored::decode(whole.slice(..at)).is_none());
        }
    }

    #[test]
    fn other_versions_are_not_read() {
        let mut bytes = Stored { request: None, status: StatusCode::OK, answer: None }.encode().to_vec();
        assert!(Stored::decode(bytes.clone().into()).is_some());
        bytes[0] = VERSION + 1;
        assert_eq!(Stored::decode(bytes.into()), None);
    }
}
