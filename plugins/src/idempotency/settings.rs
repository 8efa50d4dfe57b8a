//! The configuration, and what is checked of it.

use crate::{header_name, wrong};
use http::{HeaderName, Method};
use schemars::JsonSchema;
use serde::Deserialize;
use std::time::Duration;
use weir_config::{Diagnostic, Millis, Node, Size};

/// Lets clients repeat requests without repeating their effect. A request with `Idempotency-Key` (or `X-Idempotency-Key`) is forwarded once;
/// its answer is stored, and every request with the same key gets the same status, headers and body, with `Idempotency-Replayed: true`,
/// also those that come while the first is still under way. A key counts for one caller, route, method and path; the caller is the consumer,
/// else the subject of a verified token, else the `Authorization` header. The same key with another query, body or named header is 422. Where it
/// is not known whether the effect took place (the upstream's answer was cut short, or an instance of Weir died in between), the
/// answer is 409 until the key's time is over, rather than a second effect. An answer is stored for its caller as it was, `Set-Cookie`
/// included; answers with a 5xx status are not stored and free the key, unless `server_errors` says otherwise.
///
/// A key is taken before the request is looked at further, and marked when the first byte is about to leave for the service: an instance that
/// dies before frees the key after its `lease`; one that dies later leaves an unknown outcome. 409, 422 and 503 tell their reason in `X-Weir-Reason`:
/// `in-flight`, `unknown`, `too-large`, `mismatch`, `store-away`, or `store-lost` after the store came back without its memory (a Redis without a
/// disk that was started anew): for one `ttl`, a key that it does not know may have been used.
///
/// A replica of Redis that becomes the primary goes on with the keys that it has. Redis passes writes on after it has confirmed them, so those of the
/// last moment before a crash can be missing there, and their keys pass for new ones. Where even that must not be, give the ledger one Redis with
/// a disk (`appendfsync always`) in place of a failover; `min-replicas-to-write` makes the moment short.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How long answers (and unknown outcomes) are kept.
    pub ttl: Millis,
    /// Methods whose keys count.
    #[schemars(length(min = 1))]
    pub methods: Vec<Verb>,
    /// Refuse requests by these methods without a key: 400.
    pub required: bool,
    /// What a request gets while another with its key is under way.
    pub in_flight: InFlight,
    /// With `in_flight: wait`: the longest wait; then 409.
    pub wait_timeout: Millis,
    /// How long an instance that fell silent keeps a key. Renewed while a request is under way.
    pub lease: Millis,
    /// So much of a request body is held in memory. A longer one is hashed while it passes, and a repetition's as a whole before it is answered.
    pub max_body: Size,
    /// Largest answer body that is stored. A larger one is delivered once; repetitions get 409.
    pub max_response: Size,
    /// What becomes of answers with a 5xx status.
    pub server_errors: ServerErrors,
    /// Headers that must be the same too when a request is repeated.
    pub headers: Vec<String>,
    /// Where keys are kept.
    pub store: Keep,
    /// What happens while the store is away.
    pub on_store_failure: OnStoreFailure,
    /// The upstream bears a repetition: where the outcome of a request is not known, the next one is forwarded instead of refused, and its answer
    /// is the one that is kept.
    pub safe_to_repeat: bool,
    /// Callers without identity and `Authorization`: whether all of them share their keys, or those of one address.
    pub anonymous: Anonymous,
}

/// A method whose keys count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verb {
    /// `POST`.
    Post,
    /// `PATCH`.
    Patch,
    /// `PUT`.
    Put,
    /// `DELETE`.
    Delete,
}

/// What a request gets while another with its key is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum InFlight {
    /// The other's answer, when it is there.
    #[default]
    Wait,
    /// 409 with `Retry-After`, at once.
    Conflict,
}

/// What becomes of answers with a 5xx status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ServerErrors {
    /// They free the key: the next request is forwarded.
    #[default]
    Free,
    /// They are stored like other answers.
    Store,
}

/// Where keys are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// In the store that `store:` names, for all instances.
    #[default]
    Shared,
    /// In this process, for a single instance; nothing survives it.
    Memory,
}

/// What happens while the store is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnStoreFailure {
    /// 503: a double order is worse than an error.
    #[default]
    Refuse,
    /// Forward without protection.
    Pass,
}

/// Whose keys are shared among callers that are not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Anonymous {
    /// Everyone's: a repetition counts even if the client's address has changed. Whoever knows key and body gets the answer.
    #[default]
    Everyone,
    /// Those of one client address.
    Ip,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            ttl: Millis::secs(60),
            methods: vec![Verb::Post, Verb::Patch, Verb::Put, Verb::Delete],
            required: false,
            in_flight: InFlight::default(),
            wait_timeout: Millis::secs(30),
            lease: Millis::secs(10),
            max_body: Size(1 << 20),
            max_response: Size(1 << 20),
            server_errors: ServerErrors::default(),
            headers: vec![],
            store: Keep::default(),
            on_store_failure: OnStoreFailure::default(),
            safe_to_repeat: false,
            anonymous: Anonymous::default(),
        }
    }
}

/// The configuration, checked.
pub struct Rules {
    pub(super) ttl: Duration,
    pub(super) methods: Vec<Method>,
    pub(super) required: bool,
    pub(super) wait: Option<Duration>,
    pub(super) lease: Duration,
    pub(super) max_body: usize,
    pub(super) max_response: usize,
    pub(super) headers: Vec<HeaderName>,
    pub(super) keep: Keep,
    pub(super) pass_without_store: bool,
    pub(super) store_server_errors: bool,
    pub(super) safe_to_repeat: bool,
    pub(super) by_address: bool,
}

pub(super) fn ready(config: Config, at: &Node) -> Result<Rules, Vec<Diagnostic>> {
    let mut errors = Vec::new();
    let mut named = Vec::new();
    for name in &config.headers {
        match header_name(at, "headers", name) {
            Ok(name) => named.push(name),
            Err(error) => errors.push(error),
        }
    }
    if config.ttl.get().is_zero() {
        errors.push(wrong(at, "ttl", "a time above zero is wanted"));
    }
    if config.lease.get() < Duration::from_secs(1) {
        errors.push(wrong(at, "lease", "at least `1s`: a lease must outlive a slow store"));
    }
    for (key, size) in [("max_body", config.max_body), ("max_response", config.max_response)] {
        if size.get() > 64 << 20 {
            errors.push(wrong(at, key, "at most 64MB: it is held in memory"));
        }
    }
    let methods: Vec<Method> = config
        .methods
        .iter()
        .map(|m| match m {
            Verb::Post => Method::POST,
            Verb::Patch => Method::PATCH,
            Verb::Put => Method::PUT,
            Verb::Delete => Method::DELETE,
        })
        .collect();
    if methods.is_empty() {
        errors.push(wrong(at, "methods", "at least one method is wanted"));
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    Ok(Rules {
        ttl: config.ttl.get(),
        methods,
        required: config.required,
        wait: (config.in_flight == InFlight::Wait).then(|| config.wait_timeout.get()),
        lease: config.lease.get(),
        max_body: usize::try_from(config.max_body.get()).unwrap_or(0),
        max_response: usize::try_from(config.max_response.get()).unwrap_or(0),
        headers: named,
        keep: config.store,
        pass_without_store: config.on_store_failure == OnStoreFailure::Pass,
        store_server_errors: config.server_errors == ServerErrors::Store,
        safe_to_repeat: config.safe_to_repeat,
        by_address: config.anonymous == Anonymous::Ip,
    })
}
