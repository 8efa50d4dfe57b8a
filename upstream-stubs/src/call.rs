//! A request as the services read it, and the answers they have in common.

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderName, LOCATION};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::body::{Body, empty, full};

/// The most a service reads of a request body that it keeps in memory; more is answered 413.
pub const BODY_LIMIT: usize = 16 * 1024 * 1024;

/// An answer on its way out.
pub type Reply = Response<Body>;

/// One request: the head, its path and query taken apart, and the unread body.
pub struct Call {
    /// The request itself, kept whole because an upgrade needs it.
    pub request: Request<Incoming>,
    /// The query, decoded.
    pub query: Query,
}

impl Call {
    /// Takes the query apart.
    pub fn new(request: Request<Incoming>) -> Call {
        let query = Query::parse(request.uri().query().unwrap_or(""));
        Call { request, query }
    }

    /// The path as it was sent, undecoded.
    pub fn path(&self) -> &str {
        self.request.uri().path()
    }

    /// The method.
    pub fn method(&self) -> &Method {
        self.request.method()
    }

    /// True for GET and HEAD: HEAD is answered as GET, and the body is dropped at the end.
    pub fn is_read(&self) -> bool {
        matches!(*self.method(), Method::GET | Method::HEAD)
    }

    /// The headers.
    pub fn headers(&self) -> &HeaderMap {
        self.request.headers()
    }

    /// A header as text; `None` if it is absent or not visible ASCII.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }

    /// The value of a cookie, from whichever `Cookie` header has it (RFC 6265 section 5.4).
    pub fn cookie(&self, name: &str) -> Option<&str> {
        self.headers()
            .get_all("cookie")
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .find(|(n, _)| *n == name)
            .map(|(_, v)| v)
    }

    /// The token of `Authorization: Bearer …`; the scheme's case does not matter (RFC 9110 section 11.1).
    pub fn bearer(&self) -> Option<&str> {
        self.credentials("bearer")
    }

    /// What follows the named scheme in `Authorization`.
    pub fn credentials(&self, scheme: &str) -> Option<&str> {
        let (given, rest) = self.header("authorization")?.split_once(' ')?;
        given.eq_ignore_ascii_case(scheme).then(|| rest.trim())
    }

    /// Reads the whole body. Errors are answers: 413 over [`BODY_LIMIT`], 400 if the client broke off.
    pub async fn bytes(self) -> Result<Bytes, Reply> {
        match Limited::new(self.request.into_body(), BODY_LIMIT)
            .collect()
            .await
        {
            Ok(whole) => Ok(whole.to_bytes()),
            Err(e) if e.is::<LengthLimitError>() => Err(problem(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                "the body is over 16 MiB",
            )),
            Err(_) => Err(problem(
                StatusCode::BAD_REQUEST,
                "body_broken",
                "the body could not be read",
            )),
        }
    }

    /// Reads the body as JSON; 400 with the parser's reason if it is not what is wanted.
    pub async fn json<T: DeserializeOwned>(self) -> Result<T, Reply> {
        let bytes = self.bytes().await?;
        serde_json::from_slice(&bytes)
            .map_err(|e| problem(StatusCode::BAD_REQUEST, "bad_json", &e.to_string()))
    }
}

/// A query string, taken apart as HTML forms write it: `+` is a space, `%XX` a byte.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Parses what stands behind the `?`. Never fails: bad escapes stay as they are, bad UTF-8 becomes U+FFFD.
    pub fn parse(raw: &str) -> Query {
        let decode = |s: &str| {
            percent_decode_str(&s.replace('+', " "))
                .decode_utf8_lossy()
                .into_owned()
        };
        Query(
            raw.split('&')
                .filter(|pair| !pair.is_empty())
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(k, v)| (decode(k), decode(v)))
                .collect(),
        )
    }

    /// The first value of a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(k, _)| k == name)
            .map(|(_, v)| v.as_str())
    }

    /// The first value of a name as a number; `None` if absent or not a number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }

    /// All pairs in the order in which they were sent.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }
}

/// A JSON answer.
pub fn json_reply(status: StatusCode, value: &impl Serialize) -> Reply {
    let bytes = serde_json::to_vec(value).unwrap_or_else(|_| b"{}".to_vec());
    let mut reply = with_body(status, full(bytes));
    set(&mut reply, CONTENT_TYPE, "application/json; charset=utf-8");
    reply
}

/// A JSON error: `{"error": code, "message": text}`.
pub fn problem(status: StatusCode, code: &str, message: &str) -> Reply {
    json_reply(status, &json!({"error": code, "message": message}))
}

/// 404 in JSON.
pub fn not_found(what: &str) -> Reply {
    problem(
        StatusCode::NOT_FOUND,
        "not_found",
        &format!("there is no {what}"),
    )
}

/// 405 with `Allow` (RFC 9110 section 15.5.6).
pub fn wrong_method(allow: &'static str) -> Reply {
    let mut reply = problem(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        &format!("use {allow}"),
    );
    set(&mut reply, ALLOW, allow);
    reply
}

/// 201 with `Location`.
pub fn created(location: &str, value: &impl Serialize) -> Reply {
    let mut reply = json_reply(StatusCode::CREATED, value);
    set(&mut reply, LOCATION, location);
    reply
}

/// An answer without a body.
pub fn bare(status: StatusCode) -> Reply {
    with_body(status, empty())
}

/// An answer with any body and no headers yet.
pub fn with_body(status: StatusCode, body: Body) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    reply
}

/// Sets a header; a value that no header may hold is left out.
pub fn set(reply: &mut Reply, name: impl Into<HeaderName>, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        reply.headers_mut().insert(name.into(), value);
    }
}

/// Appends one more header of that name.
pub fn add(reply: &mut Reply, name: impl Into<HeaderName>, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        reply.headers_mut().append(name.into(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_query_is_decoded_as_a_form_writes_it() {
        let query = Query::parse("q=red+shoes&page=2&&tag=%C3%A9t%C3%A9&flag&bad=%zz");
        assert_eq!(query.get("q"), Some("red shoes"));
        assert_eq!(query.number("page"), Some(2));
        assert_eq!(query.get("tag"), Some("été"));
        assert_eq!(query.get("flag"), Some(""));
        assert_eq!(query.get("bad"), Some("%zz"));
        assert_eq!(query.get("none"), None);
    }

    proptest! {
        #[test]
        fn any_query_parses(raw in ".*") {
            let query = Query::parse(&raw);
            prop_assert!(query.pairs().count() <= raw.split('&').count());
        }
    }
}
