//! Asking the auth service.

use super::{Claims, settings::{Introspect, Protocol, Verb}};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Uri, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};
use weir_cache::clock;
use weir_gateway::client::OwnClient;

/// Longest answer that is read.
const LONGEST: usize = 64 * 1024;
/// After so many calls in a row without any answer, requests do not wait for further ones for a moment.
const SILENT: u32 = 3;
/// That moment, in milliseconds.
const PAUSE: u64 = 1000;

/// The auth service.
pub(super) struct Service {
    uri: Uri,
    method: Method,
    timeout: Duration,
    protocol: Protocol,
    /// Who Weir is there.
    credentials: Option<HeaderValue>,
    /// Calls without an answer, in a row.
    silent: AtomicU32,
    /// Not asked until then, in milliseconds since 1970.
    paused_until: AtomicU64,
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
        let method = match (config.protocol, config.method) {
            (Protocol::Rfc7662, _) | (_, Verb::Post) => Method::POST,
            (Protocol::Verify, Verb::Get) => Method::GET,
        };
        let credentials = match (&config.client_id, &config.client_secret) {
            (None, None) => None,
            _ if config.protocol == Protocol::Verify => return Err("`client_id` and `client_secret` are for `protocol: rfc7662`".into()),
            (Some(_), None) => return Err("`client_id` needs `client_secret`".into()),
            // RFC 6749 section 2.3.1: both are encoded as in forms first.
            (Some(id), Some(secret)) => Some(format!("Basic {}", STANDARD.encode(format!("{}:{}", form(id), form(secret.expose()))))),
            (None, Some(secret)) => Some(format!("Bearer {}", secret.expose())),
        };
        let credentials = match credentials.map(|text| HeaderValue::from_str(&text)) {
            None => None,
            Some(Ok(mut value)) => {
                value.set_sensitive(true);
                Some(value)
            }
            Some(Err(_)) => return Err("`client_secret` can not be sent: it has characters beyond ASCII".into()),
        };
        Ok(Service {
            uri,
            method,
            timeout: config.timeout.get(),
            protocol: config.protocol,
            credentials,
            silent: AtomicU32::new(0),
            paused_until: AtomicU64::new(0),
        })
    }

    pub(super) async fn ask(&self, client: &OwnClient, token: &str) -> Answer {
        if clock::now_ms() < self.paused_until.load(Relaxed) {
            return Answer::Away;
        }
        let Some(request) = self.request(token) else { return Answer::Bad };
        let response = match client.call(request, self.timeout, LONGEST).await {
            Ok(response) => response,
            Err(error) => {
                tracing::warn!(plugin = "token-validator", url = %self.uri, %error, "the auth service did not answer");
                if self.silent.fetch_add(1, Relaxed) + 1 >= SILENT {
                    self.paused_until.store(clock::now_ms() + PAUSE, Relaxed);
                }
                return Answer::Away;
            }
        };
        self.silent.store(0, Relaxed);
        match (response.status().as_u16(), self.protocol) {
            (200, protocol) => said(response.body(), protocol),
            (400 | 401 | 403, Protocol::Verify) => Answer::Bad,
            (status, _) => {
                tracing::warn!(plugin = "token-validator", url = %self.uri, status, "the auth service did not say whether a token is good");
                Answer::Away
            }
        }
    }

    /// `None`: such a token can not be sent.
    fn request(&self, token: &str) -> Option<Request<Bytes>> {
        let mut request = Request::new(Bytes::new());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let authorization = match self.protocol {
            Protocol::Verify => {
                let mut bearer = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
                bearer.set_sensitive(true);
                Some(bearer)
            }
            Protocol::Rfc7662 => {
                *request.body_mut() = format!("token={}&token_type_hint=access_token", form(token)).into();
                request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
                self.credentials.clone()
            }
        };
        if let Some(value) = authorization {
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        Some(request)
    }
}

fn form(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// Reads a 200. RFC 7662 section 2.2 says `active`; others say `valid`.
fn said(body: &Bytes, protocol: Protocol) -> Answer {
    let claims = match serde_json::from_slice(body) {
        Ok(Value::Object(claims)) => claims,
        _ => Claims::new(),
    };
    if protocol == Protocol::Rfc7662 && !claims.get("active").is_some_and(Value::is_boolean) {
        tracing::warn!(plugin = "token-validator", "the auth service's answer has no `active`");
        return Answer::Away;
    }
    let denied = ["active", "valid"].iter().any(|name| claims.get(*name).is_some_and(|v| v != &Value::Bool(true)));
    if denied { Answer::Bad } else { Answer::Good(claims) }
}
