//! Asking the auth service.

use super::{Claims, settings::{Introspect, Verb}};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Uri, header};
use serde_json::Value;
use std::time::Duration;
use weir_gateway::client::OwnClient;

/// Longest answer that is read.
const LONGEST: usize = 64 * 1024;

/// The auth service.
pub(super) struct Service {
    uri: Uri,
    method: Method,
    timeout: Duration,
}

/// What it says of a token.
pub(super) enum Answer {
    /// Good; with what it told.
    Good(Claims),
    /// Not good.
    Bad,
    /// It did not say.
    Away,
}

impl Service {
    pub(super) fn new(config: &Introspect) -> Result<Service, String> {
        let uri: Uri = config.url.parse().map_err(|_| "`url` is not a URL".to_string())?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
            return Err("`url` must begin with `http://` or `https://` and name a host".into());
        }
        let method = match config.method {
            Verb::Get => Method::GET,
            Verb::Post => Method::POST,
        };
        Ok(Service { uri, method, timeout: config.timeout.get() })
    }

    pub(super) async fn ask(&self, client: &OwnClient, token: &str) -> Answer {
        let Ok(mut bearer) = HeaderValue::from_str(&format!("Bearer {token}")) else { return Answer::Bad };
        bearer.set_sensitive(true);
        let mut request = Request::new(Bytes::new());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        request.headers_mut().insert(header::AUTHORIZATION, bearer);
        request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        match client.call(request, self.timeout, LONGEST).await {
            Ok(response) => match response.status().as_u16() {
                200 => said(response.body()),
                400 | 401 | 403 => Answer::Bad,
                status => {
                    tracing::warn!(plugin = "token-validator", url = %self.uri, status, "the auth service did not say whether a token is good");
                    Answer::Away
                }
            },
            Err(error) => {
                tracing::warn!(plugin = "token-validator", url = %self.uri, %error, "the auth service did not answer");
                Answer::Away
            }
        }
    }
}

/// Reads a 200. RFC 7662 section 2.2 says `active`; others say `valid`.
fn said(body: &Bytes) -> Answer {
    let claims = match serde_json::from_slice(body) {
        Ok(Value::Object(claims)) => claims,
        _ => Claims::new(),
    };
    let denied = ["active", "valid"].iter().any(|name| claims.get(*name).is_some_and(|v| v != &Value::Bool(true)));
    if denied { Answer::Bad } else { Answer::Good(claims) }
}
