//! `request-size-limiting`: no request bodies above a size.

use crate::{Configured, Live, wrong};
use http::{HeaderMap, StatusCode, header, request};
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;
use weir_config::{Diagnostic, Node, Span};
use weir_gateway::{BuildEnv, Flow, Phases, Plugin, Reply, RequestContext};

const BY: &str = "request-size-limiting";

/// Refuses requests whose body is larger than allowed: 413, or 417 where the client asked with `Expect: 100-continue` whether to send it. What `Content-Length`
/// announces decides; a body of unknown length is counted while it is forwarded, and when it grows too large the request to the upstream is broken off.
/// Fields, defaults and messages are Kong's. The limit `server.max_body` holds besides.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Largest body, in `size_unit`.
    pub allowed_payload_size: u64,
    /// Unit of `allowed_payload_size`.
    pub size_unit: Unit,
    /// Refuse requests without `Content-Length` with 411, unless they say `Transfer-Encoding: chunked`. Also those without a body.
    pub require_content_length: bool,
}

/// A unit of size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// 1,048,576 bytes.
    #[default]
    Megabytes,
    /// 1024 bytes.
    Kilobytes,
    /// One byte.
    Bytes,
}

impl Default for Config {
    fn default() -> Self {
        Config { allowed_payload_size: 128, size_unit: Unit::default(), require_content_length: false }
    }
}

impl Configured for Config {
    const NAME: &'static str = BY;
    const PRIORITY: i32 = 951;
    const EXAMPLE: &'static str = "allowed_payload_size: 10\nsize_unit: megabytes\n";
    type Ready = RequestSizeLimiting;

    fn ready(self, at: &Node) -> Result<RequestSizeLimiting, Vec<Diagnostic>> {
        match self.bytes() {
            Some(limit) => Ok(RequestSizeLimiting { limit, require_length: self.require_content_length }),
            None => Err(vec![wrong(at, "allowed_payload_size", "this is larger than any body")]),
        }
    }

    fn body_limit(&self, at: &Node) -> Option<(u64, Span)> {
        Some((self.bytes()?, at.get("allowed_payload_size")?.span().clone()))
    }

    fn build(ready: RequestSizeLimiting, _: &BuildEnv<'_>, _: &Live) -> Arc<dyn Plugin> {
        Arc::new(ready)
    }
}

impl Config {
    fn bytes(&self) -> Option<u64> {
        let unit = match self.size_unit {
            Unit::Megabytes => 1 << 20,
            Unit::Kilobytes => 1 << 10,
            Unit::Bytes => 1,
        };
        self.allowed_payload_size.checked_mul(unit)
    }
}

/// The plugin.
pub struct RequestSizeLimiting {
    limit: u64,
    require_length: bool,
}

impl RequestSizeLimiting {
    fn judge(&self, cx: &mut RequestContext, headers: &HeaderMap) -> Result<(), (StatusCode, &'static str)> {
        let announced = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.trim().parse::<u64>().ok());
        if announced.is_none() && self.require_length && !is(headers, header::TRANSFER_ENCODING, "chunked") {
            return Err((StatusCode::LENGTH_REQUIRED, "A valid Content-Length header is required"));
        }
        // What plugins were shown of a body counts too: it has arrived already.
        let arrived = cx.body.as_ref().map_or(0, |seen| seen.bytes.len() as u64);
        if announced.unwrap_or(0).max(arrived) > self.limit {
            let asked = is(headers, header::EXPECT, "100-continue");
            let status = if asked { StatusCode::EXPECTATION_FAILED } else { StatusCode::PAYLOAD_TOO_LARGE };
            return Err((status, "Request size limit exceeded"));
        }
        cx.max_body = Some(cx.max_body.map_or(self.limit, |other| other.min(self.limit)));
        Ok(())
    }
}

fn is(headers: &HeaderMap, name: header::HeaderName, value: &str) -> bool {
    headers.get(name).and_then(|v| v.to_str().ok()).is_some_and(|v| v.trim().eq_ignore_ascii_case(value))
}

impl Plugin for RequestSizeLimiting {
    fn phases(&self) -> Phases {
        Phases::REQUEST
    }

    fn request(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        match self.judge(cx, &req.headers) {
            Ok(()) => Flow::Continue,
            Err((status, message)) => Flow::Reply(Reply::error(BY, cx, req.headers.get(header::ACCEPT), status, message)),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Ask, Rig, Seen, ask, errors, get};

    async fn run(config: &str, ask: Ask) -> Seen {
        Rig::new(&[("request-size-limiting", config)]).run(ask).await
    }

    fn post(length: &str) -> Ask {
        ask("POST", "/").with("content-length", length)
    }

    #[tokio::test]
    async fn announced_lengths_decide() {
        for (config, length, status) in [
            ("{}", "134217728", 200),
            ("{}", "134217729", 413),
            ("allowed_payload_size: 2", "2097152", 200),
            ("allowed_payload_size: 2", "2097153", 413),
            ("{allowed_payload_size: 2, size_unit: kilobytes}", "2048", 200),
            ("{allowed_payload_size: 2, size_unit: kilobytes}", "2049", 413),
            ("{allowed_payload_size: 2, size_unit: bytes}", "2", 200),
            ("{allowed_payload_size: 2, size_unit: bytes}", "3", 413),
            ("{allowed_payload_size: 0, size_unit: bytes}", "1", 413),
        ] {
            let seen = run(config, post(length)).await;
            assert_eq!(seen.status(), status, "{config} {length}");
            if status == 413 {
                assert_eq!(seen.json()["message"], "Request size limit exceeded");
                assert_eq!(seen.json()["request_id"], seen.cx.id.as_str());
                assert!(!seen.forwarded());
            }
        }
    }

    #[tokio::test]
    async fn a_client_that_asks_first_hears_417() {
        let seen = run("allowed_payload_size: 1", post("2000000").with("expect", " 100-Continue")).await;
        assert_eq!((seen.status(), seen.json()["message"].as_str()), (417, Some("Request size limit exceeded")));
    }

    #[tokio::test]
    async fn a_length_may_be_required() {
        let config = "require_content_length: true";
        for (ask, status) in [
            (get("/"), 411),
            (ask("POST", "/"), 411),
            (post("1"), 200),
            (ask("POST", "/").with("transfer-encoding", "chunked"), 200),
        ] {
            let seen = run(config, ask).await;
            assert_eq!(seen.status(), status);
            if status == 411 {
                assert_eq!(seen.json()["message"], "A valid Content-Length header is required");
            }
        }
        assert_eq!(run("{}", get("/")).await.status(), 200);
    }

    #[tokio::test]
    async fn bodies_of_unknown_length_are_limited_on_their_way() {
        let chunked = || ask("POST", "/").with("transfer-encoding", "chunked");
        let seen = run("{allowed_payload_size: 3, size_unit: bytes}", chunked()).await;
        assert_eq!((seen.status(), seen.cx.max_body), (200, Some(3)));
        // Unless a plugin wanted to see it, and so it is here already.
        let rig = Rig::new(&[("request-size-limiting", "{allowed_payload_size: 3, size_unit: bytes}"), ("idempotency", "{}")]);
        assert_eq!(rig.run(chunked().with("idempotency-key", "k").body("1234")).await.status(), 413);
        assert_eq!(rig.run(chunked().with("idempotency-key", "l").body("123")).await.status(), 200);
    }

    #[test]
    fn mistakes_are_named() {
        assert!(errors("request-size-limiting", "size_unit: gigabytes")[0].message.contains("gigabytes"));
        assert!(errors("request-size-limiting", "allowed_payload_size: 9000000000000000000")[0].message.contains("larger than any body"));
    }
}
