//! `idempotency`: one effect for each key, however often the request comes.
//!
//! ```text
//! request ─► key ─► ledger.begin ─┬─ Owner ─► acting ─► upstream ─► answer captured ─► complete │ abandon │ (left unknown)
//!                        ▲        ├─ InFlight ─► wait, then again; or 409
//!                        └────────┘  Done ─► the stored answer; other fingerprint ─► 422
//!                                 └─ Unknown ─► 409, for nobody knows whether the effect took place
//! ```

mod key;
mod stored;

use crate::{Configured, Live, header_name, wrong};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, Method, StatusCode, header, request, response};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Deserialize;
use std::{sync::Arc, time::Duration};
use stored::Stored;
use tokio::{task::AbortHandle, time::Instant};
use weir_config::{Diagnostic, Millis, Node, Size};
use weir_gateway::{BuildEnv, Environment, Flow, Phases, Plugin, Reply, RequestContext, plugin::Ending};
use weir_store::{Begun, Lease, Ledger, StoreError};

/// Lets clients repeat requests without repeating their effect. A request with `Idempotency-Key` (or `X-Idempotency-Key`) is forwarded once;
/// its answer is stored, and every request with the same key gets the same status, headers and body, with `Idempotency-Replayed: true`,
/// also those that come while the first is still under way. A key counts for one caller, route, method and path; the caller is the consumer,
/// else the subject of a verified token, else the `Authorization` header. The same key with another query, body or named header is 422. Where it
/// is not known whether the effect took place (the upstream's answer was cut short, or an instance of Weir died in between), the
/// answer is 409 until the key's time is over, rather than a second effect. An answer is stored for its caller as it was, `Set-Cookie`
/// included; answers with a 5xx status are not stored and free the key.
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
    /// So much of the request body is compared; of a longer one this beginning and the announced length.
    pub max_body: Size,
    /// Largest answer body that is stored. A larger one is delivered once; repetitions get 409.
    pub max_response: Size,
    /// Headers that must be the same too when a request is repeated.
    pub headers: Vec<String>,
    /// Where keys are kept.
    pub store: Keep,
    /// What happens while the store is away.
    pub on_store_failure: OnStoreFailure,
    /// The upstream bears a repetition: where the outcome of a request is not known, the next one is forwarded instead of refused.
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
            headers: vec![],
            store: Keep::default(),
            on_store_failure: OnStoreFailure::default(),
            safe_to_repeat: false,
            anonymous: Anonymous::default(),
        }
    }
}

impl Configured for Config {
    const NAME: &'static str = "idempotency";
    const PRIORITY: i32 = 905;
    const EXAMPLE: &'static str = "ttl: 60s
methods: [POST]
required: true
in_flight: wait
wait_timeout: 10s
headers: [Content-Type]
";
    type Ready = Rules;

    fn ready(self, at: &Node) -> Result<Rules, Vec<Diagnostic>> {
        let mut errors = Vec::new();
        let mut named = Vec::new();
        for name in &self.headers {
            match header_name(at, "headers", name) {
                Ok(name) => named.push(name),
                Err(error) => errors.push(error),
            }
        }
        if self.ttl.get().is_zero() {
            errors.push(wrong(at, "ttl", "a time above zero is wanted"));
        }
        if self.lease.get() < Duration::from_secs(1) {
            errors.push(wrong(at, "lease", "at least `1s`: a lease must outlive a slow store"));
        }
        for (key, size) in [("max_body", self.max_body), ("max_response", self.max_response)] {
            if size.get() > 64 << 20 {
                errors.push(wrong(at, key, "at most 64MB: it is held in memory"));
            }
        }
        let methods: Vec<Method> = self
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
            ttl: self.ttl.get(),
            methods,
            required: self.required,
            wait: (self.in_flight == InFlight::Wait).then(|| self.wait_timeout.get()),
            lease: self.lease.get(),
            max_body: usize::try_from(self.max_body.get()).unwrap_or(0),
            max_response: usize::try_from(self.max_response.get()).unwrap_or(0),
            headers: named,
            keep: self.store,
            pass_without_store: self.on_store_failure == OnStoreFailure::Pass,
            safe_to_repeat: self.safe_to_repeat,
            by_address: self.anonymous == Anonymous::Ip,
        })
    }

    fn build(ready: Rules, env: &BuildEnv<'_>, live: &Live) -> Arc<dyn Plugin> {
        let ledger = match ready.keep {
            Keep::Shared => env.environment.store.ledger.clone(),
            Keep::Memory => live.ledger.clone(),
        };
        Arc::new(Idempotency { rules: ready, scope: env.scope.clone(), ledger, environment: env.environment.clone() })
    }
}

/// The configuration, checked.
pub struct Rules {
    ttl: Duration,
    methods: Vec<Method>,
    required: bool,
    wait: Option<Duration>,
    lease: Duration,
    max_body: usize,
    max_response: usize,
    headers: Vec<HeaderName>,
    keep: Keep,
    pass_without_store: bool,
    safe_to_repeat: bool,
    by_address: bool,
}

struct Idempotency {
    rules: Rules,
    scope: String,
    ledger: Arc<dyn Ledger>,
    environment: Arc<Environment>,
}

const BY: &str = "idempotency";
/// A wait is looked after at least this often, in case a wake-up was lost.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How often the end of a request is written before it is given up.
const WRITES: u32 = 4;

/// The request that owns its key, while it is under way.
struct Work {
    owner: Lease,
    _renewal: Renewal,
    /// Whether the pipeline may send the request more than once.
    resendable: bool,
    status: StatusCode,
    headers: HeaderMap,
    body: BytesMut,
    too_large: bool,
}

type Shared = Arc<Mutex<Work>>;

/// Ends with the request, however that ends.
struct Renewal(AbortHandle);

impl Drop for Renewal {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What the ledger lets a request do.
enum Turn {
    Act(Lease),
    Pass,
    Answer(Reply),
}

impl Idempotency {
    fn counted(&self, outcome: &str) {
        self.environment.metrics.plugin(BY, outcome);
    }

    fn refuse(&self, outcome: &str, status: StatusCode, message: &str) -> Reply {
        self.counted(outcome);
        let reply = Reply::message(BY, status, message).with("cache-control", "no-store");
        match status {
            StatusCode::CONFLICT | StatusCode::SERVICE_UNAVAILABLE => reply.with("retry-after", "1"),
            _ => reply,
        }
    }

    /// The ledger's key. Everything is hashed: callers and keys may be secrets, and paths long.
    fn ledger_key(&self, cx: &RequestContext, req: &request::Parts, key: &str) -> String {
        let route = cx.route.as_ref().map_or("", |r| r.name.as_str());
        let address = cx.client.ip.to_string();
        let subject = cx.identity.as_ref().map(|i| i.subject.as_str()).filter(|s| !s.is_empty());
        let (kind, caller) = match (&cx.consumer, subject, req.headers.get(header::AUTHORIZATION)) {
            // The anonymous consumer, which has no identity, is many callers.
            (Some(consumer), ..) if cx.identity.is_some() => ("consumer", consumer.entity.id.as_bytes()),
            (_, Some(subject), _) => ("subject", subject.as_bytes()),
            (_, None, Some(value)) => ("authorization", value.as_bytes()),
            (_, None, None) if self.rules.by_address => ("ip", address.as_bytes()),
            (_, None, None) => ("", &[][..]),
        };
        let parts = [self.scope.as_bytes(), route.as_bytes(), kind.as_bytes(), caller, req.method.as_str().as_bytes(), req.uri.path().as_bytes(), key.as_bytes()];
        format!("idempotency:{}", key::hash(&parts))
    }

    /// What must be the same in a repetition.
    fn fingerprint(&self, cx: &RequestContext, req: &request::Parts) -> String {
        let (bytes, whole, announced) = match &cx.body {
            Some(seen) => (seen.bytes.slice(..seen.bytes.len().min(self.rules.max_body)), seen.whole && seen.bytes.len() <= self.rules.max_body, seen.announced),
            None => (Bytes::new(), true, None),
        };
        let length = if whole { None } else { announced };
        let length = length.map_or(String::new(), |l| l.to_string());
        let mut parts: Vec<&[u8]> = vec![req.uri.query().unwrap_or_default().as_bytes(), &bytes, if whole { b"whole" } else { b"cut" }, length.as_bytes()];
        for name in &self.rules.headers {
            parts.push(name.as_str().as_bytes());
            parts.extend(req.headers.get_all(name).iter().map(http::HeaderValue::as_bytes));
        }
        key::hash(&parts)
    }

    /// Asks the ledger until the request may act, must answer, or has waited enough.
    async fn turn(&self, key: &str, fingerprint: &str) -> Turn {
        let deadline = self.rules.wait.map(|wait| Instant::now() + wait);
        loop {
            let begun = match self.ledger.begin(key, fingerprint, self.rules.lease, self.rules.ttl).await {
                Ok(begun) => begun,
                Err(error) => return self.without_store(&error),
            };
            let other = match &begun {
                Begun::Owner(_) => None,
                Begun::InFlight { fingerprint } | Begun::Done { fingerprint, .. } | Begun::Unknown { fingerprint } => Some(fingerprint),
            };
            if other.is_some_and(|other| other != fingerprint) {
                let message = "This Idempotency-Key was used with a different request";
                return Turn::Answer(self.refuse("mismatch", StatusCode::UNPROCESSABLE_ENTITY, message));
            }
            match begun {
                Begun::Owner(lease) => match self.ledger.acting(&lease, self.rules.lease).await {
                    Ok(true) => return Turn::Act(lease),
                    // The lease ran out on the way: begin again.
                    Ok(false) => {}
                    Err(error) => {
                        // Nothing was sent. If this fails too, the lease ends by itself.
                        let _ = self.ledger.abandon(&lease).await;
                        return self.without_store(&error);
                    }
                },
                Begun::Done { value, .. } => return Turn::Answer(self.replay(value)),
                Begun::Unknown { .. } if self.rules.safe_to_repeat => {
                    self.counted("repeated");
                    return Turn::Pass;
                }
                Begun::Unknown { .. } => {
                    let message = "It is not known whether the first request with this Idempotency-Key took effect";
                    return Turn::Answer(self.refuse("unknown", StatusCode::CONFLICT, message));
                }
                Begun::InFlight { .. } => {
                    let left = deadline.map_or(Duration::ZERO, |d| d.saturating_duration_since(Instant::now()));
                    if left.is_zero() {
                        let message = "A request with this Idempotency-Key is under way";
                        return Turn::Answer(self.refuse("in-flight", StatusCode::CONFLICT, message));
                    }
                    if self.ledger.wait(key, left.min(LOOK_AGAIN)).await.is_err() {
                        tokio::time::sleep(left.min(Duration::from_millis(50))).await;
                    }
                }
            }
        }
    }

    fn without_store(&self, error: &StoreError) -> Turn {
        tracing::warn!(plugin = BY, scope = self.scope, %error, "the store did not answer");
        if self.rules.pass_without_store {
            self.counted("unprotected");
            return Turn::Pass;
        }
        Turn::Answer(self.refuse("store-away", StatusCode::SERVICE_UNAVAILABLE, "Idempotency cannot be guaranteed now"))
    }

    fn replay(&self, value: Bytes) -> Reply {
        match Stored::decode(value) {
            Some(Stored::Whole { status, headers, body }) => {
                self.counted("replayed");
                let mut reply = Reply::empty(BY, status);
                reply.headers = headers;
                reply.body = body;
                reply.with("idempotency-replayed", "true")
            }
            Some(Stored::TooLarge { status }) => {
                let message = format!("The request with this Idempotency-Key was done with status {}, but its answer was too large to be kept", status.as_u16());
                self.refuse("too-large", StatusCode::CONFLICT, &message)
            }
            None => self.refuse("unreadable", StatusCode::CONFLICT, "The request with this Idempotency-Key was done, but its answer cannot be read"),
        }
    }

    /// Keeps the lease alive until dropped.
    fn renewal(&self, owner: &Lease) -> Renewal {
        let (ledger, owner, lease) = (self.ledger.clone(), owner.clone(), self.rules.lease);
        let task = tokio::spawn(async move {
            loop {
                tokio::time::sleep(lease / 3).await;
                // A store that is away may come back within the lease.
                if let Ok(false) = ledger.renew(&owner, lease).await {
                    return;
                }
            }
        });
        Renewal(task.abort_handle())
    }

    /// Writes the end of a request; more than once, for if it is lost, the outcome counts as unknown.
    async fn write(&self, owner: &Lease, outcome: Option<Bytes>) {
        let mut pause = Duration::from_millis(25);
        for attempt in 1..=WRITES {
            let written = match &outcome {
                Some(value) => self.ledger.complete(owner, value.clone(), self.rules.ttl).await,
                None => self.ledger.abandon(owner).await,
            };
            match written {
                Ok(true) => return,
                Ok(false) => break,
                Err(error) if attempt == WRITES => {
                    tracing::warn!(plugin = BY, scope = self.scope, %error, "the outcome was not written");
                }
                Err(_) => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
            }
        }
        self.counted("lost");
    }
}

#[async_trait]
impl Plugin for Idempotency {
    fn phases(&self) -> Phases {
        Phases::REQUEST_WAIT | Phases::RESPONSE | Phases::BODY | Phases::END
    }

    fn reads_body(&self) -> Option<usize> {
        Some(self.rules.max_body)
    }

    async fn request_wait(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        if !self.rules.methods.contains(&req.method) {
            return Flow::Continue;
        }
        let key = match key::of(&req.headers) {
            Ok(Some(key)) => key,
            Ok(None) if self.rules.required => {
                return Flow::Reply(self.refuse("missing", StatusCode::BAD_REQUEST, "Idempotency-Key is required for this request"));
            }
            Ok(None) => return Flow::Continue,
            Err(message) => return Flow::Reply(self.refuse("malformed", StatusCode::BAD_REQUEST, message)),
        };
        match self.turn(&self.ledger_key(cx, req, &key), &self.fingerprint(cx, req)).await {
            Turn::Answer(reply) => Flow::Reply(reply),
            Turn::Pass => Flow::Continue,
            Turn::Act(owner) => {
                self.counted("first");
                cx.must_complete = true;
                let work = Work {
                    _renewal: self.renewal(&owner),
                    owner,
                    resendable: req.method.is_idempotent(),
                    status: StatusCode::OK,
                    headers: HeaderMap::new(),
                    body: BytesMut::new(),
                    too_large: false,
                };
                cx.state.insert::<Shared>(Arc::new(Mutex::new(work)));
                Flow::Continue
            }
        }
    }

    fn response(&self, cx: &mut RequestContext, res: &mut response::Parts) {
        if let Some(work) = cx.state.get::<Shared>() {
            let mut work = work.lock();
            work.status = res.status;
            work.headers = stored::kept(&res.headers);
        }
    }

    fn body(&self, cx: &mut RequestContext, chunk: &mut Bytes, _: bool) {
        if let Some(work) = cx.state.get::<Shared>() {
            let mut work = work.lock();
            if work.too_large || work.body.len() + chunk.len() > self.rules.max_response {
                work.too_large = true;
                work.body = BytesMut::new();
            } else {
                work.body.extend_from_slice(chunk);
            }
        }
    }

    async fn end(&self, cx: &mut RequestContext, ending: Ending) {
        let Some(work) = cx.state.remove::<Shared>() else { return };
        let (owner, status, resent, stored) = {
            let mut work = work.lock();
            let (status, headers) = (work.status, std::mem::take(&mut work.headers));
            let body = std::mem::take(&mut work.body).freeze();
            let stored = if work.too_large { Stored::TooLarge { status } } else { Stored::Whole { status, headers, body } };
            // A method that HTTP calls idempotent is sent again after a failure: that the last try was not sent says nothing of the one before.
            (work.owner.clone(), status, work.resendable && cx.tries > 1, stored)
        };
        match ending {
            Ending::Complete if status.is_server_error() => {
                self.counted("not-stored");
                self.write(&owner, None).await;
            }
            Ending::Complete => {
                self.counted(if matches!(stored, Stored::TooLarge { .. }) { "stored-mark" } else { "stored" });
                self.write(&owner, Some(stored.encode())).await;
            }
            Ending::NotSent if !resent => {
                self.counted("not-sent");
                self.write(&owner, None).await;
            }
            Ending::NotSent | Ending::Broken if self.rules.safe_to_repeat => {
                self.counted("broken");
                self.write(&owner, None).await;
            }
            // The upstream may have acted. The lease ends by itself, and the ledger then says that nobody knows.
            Ending::NotSent | Ending::Broken => self.counted("broken"),
        }
    }
}

#[cfg(test)]
mod tests;
