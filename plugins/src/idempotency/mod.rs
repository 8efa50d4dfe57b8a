//! `idempotency`: one effect for each key, however often the request comes.
//!
//! ```text
//! request ─► key ─► ledger.begin ─┬─ Owner ─► connection ─► ledger.acting ─► upstream ─► answer captured ─► complete │ abandon │ (left unknown)
//!                        ▲        ├─ InFlight ─► wait, then again; or 409
//!                        └────────┘  Done ─► the stored answer; other fingerprint ─► 422
//!                                 ├─ Unknown ─► 409, for nobody knows whether the effect took place
//!                                 └─ Lost ─► 503, for the store forgot which keys were used
//! ```

mod key;
mod renewals;
mod settings;
mod stored;

pub use settings::Config;

use crate::{Configured, Live};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header, request, response};
use parking_lot::Mutex;
use renewals::{Held, Renewals};
use settings::{Keep, Rules};
use std::{sync::Arc, time::Duration};
use stored::Stored;
use tokio::time::Instant;
use weir_config::{Diagnostic, Node};
use weir_gateway::{
    BuildEnv, Environment, Flow, Phases, Plugin, Reply, RequestContext,
    context::BodyHash,
    plugin::{BeforeSend, Ending},
    reply::BodyCheck,
};
use weir_store::{Begun, Claim, Ledger, StoreError};

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
        settings::ready(self, at)
    }

    fn build(ready: Rules, env: &BuildEnv<'_>, live: &Live) -> Arc<dyn Plugin> {
        let ledger = match ready.keep {
            Keep::Shared => env.environment.store.ledger.clone(),
            Keep::Memory => live.ledger.clone(),
        };
        let renewals = Renewals::new(ledger.clone(), ready.lease);
        let desk = Arc::new(Desk { rules: ready, scope: env.scope.clone(), ledger, environment: env.environment.clone() });
        Arc::new(Idempotency { desk, renewals })
    }
}

struct Idempotency {
    desk: Arc<Desk>,
    renewals: Arc<Renewals>,
}

/// What the steps of a request share.
struct Desk {
    rules: Rules,
    scope: String,
    ledger: Arc<dyn Ledger>,
    environment: Arc<Environment>,
}

const BY: &str = "idempotency";
/// A wait is looked after at least this often, in case a wake-up was lost.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How often the end of a request is written while its client waits; then in the background.
const WRITES: u32 = 4;
/// Pauses between attempts in the background.
const LATER: Duration = Duration::from_millis(500);

/// The request that owns its key, while it is under way.
struct Work {
    claim: Claim,
    held: Option<Held>,
    /// Whether the pipeline may send the request more than once.
    resendable: bool,
    status: StatusCode,
    headers: HeaderMap,
    body: BytesMut,
    too_large: bool,
}

type Shared = Arc<Mutex<Work>>;

/// Asked when the request's first byte is about to leave.
struct Gate {
    desk: Arc<Desk>,
    claim: Claim,
}

#[async_trait]
impl BeforeSend for Gate {
    async fn before_send(&self) -> Result<(), Reply> {
        let refused = match self.desk.ledger.acting(&self.claim, self.desk.rules.lease).await {
            Ok(true) => return Ok(()),
            // It slept through its lease: the key is free, or another's.
            Ok(false) => self.desk.under_way(),
            Err(error) => match self.desk.without_store(&error) {
                Some(refused) => refused,
                None => return Ok(()),
            },
        };
        Err(refused.reply)
    }
}

/// What the ledger lets a request do.
enum Turn {
    Act(Claim),
    Pass,
    Answer(Reply),
    Refuse(Refused),
}

/// An answer for a request that is not served.
struct Refused {
    /// For the access log.
    failure: &'static str,
    reply: Reply,
}

/// The part of a request's body that is held.
struct Seen {
    bytes: Bytes,
    /// Whether that is all.
    whole: bool,
    announced: Option<u64>,
}

impl Desk {
    fn counted(&self, outcome: &str) {
        self.environment.metrics.plugin(BY, outcome);
    }

    fn refuse(&self, failure: &'static str, status: StatusCode, message: &str) -> Refused {
        self.counted(reason(failure));
        Refused { failure, reply: refusal(failure, status, message) }
    }

    fn under_way(&self) -> Refused {
        self.refuse("idempotency-in-flight", StatusCode::CONFLICT, "A request with this Idempotency-Key is under way").retry(1)
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

    fn seen(&self, cx: &RequestContext) -> Seen {
        match &cx.body {
            Some(seen) => Seen {
                bytes: seen.bytes.slice(..seen.bytes.len().min(self.rules.max_body)),
                whole: seen.whole && seen.bytes.len() <= self.rules.max_body,
                announced: seen.announced,
            },
            None => Seen { bytes: Bytes::new(), whole: true, announced: None },
        }
    }

    /// What must be the same in a repetition. Of a long body this is the beginning; the rest is compared when all of it has passed.
    fn fingerprint(&self, seen: &Seen, req: &request::Parts) -> String {
        let length = if seen.whole { None } else { seen.announced };
        let length = length.map_or(String::new(), |l| l.to_string());
        let mut parts: Vec<&[u8]> = vec![req.uri.query().unwrap_or_default().as_bytes(), &seen.bytes, if seen.whole { b"whole" } else { b"cut" }, length.as_bytes()];
        for name in &self.rules.headers {
            parts.push(name.as_str().as_bytes());
            parts.extend(req.headers.get_all(name).iter().map(http::HeaderValue::as_bytes));
        }
        key::hash(&parts)
    }

    /// Asks the ledger until the request may act, must answer, or has waited enough.
    async fn turn(&self, key: &str, seen: &Seen, req: &request::Parts) -> Turn {
        let fingerprint = &self.fingerprint(seen, req);
        let deadline = self.rules.wait.map(|wait| Instant::now() + wait);
        loop {
            let begun = match self.rules.safe_to_repeat {
                true => self.ledger.begin_again(key, fingerprint, self.rules.lease, self.rules.ttl).await,
                false => self.ledger.begin(key, fingerprint, self.rules.lease, self.rules.ttl).await,
            };
            let begun = match begun {
                Ok(begun) => begun,
                Err(error) => return self.without_store(&error).map_or(Turn::Pass, Turn::Refuse),
            };
            let other = match &begun {
                Begun::Owner(_) | Begun::Lost { .. } => None,
                Begun::InFlight { fingerprint } | Begun::Done { fingerprint, .. } | Begun::Unknown { fingerprint } => Some(fingerprint),
            };
            if other.is_some_and(|other| other != fingerprint) {
                return Turn::Refuse(self.refuse(MISMATCH, StatusCode::UNPROCESSABLE_ENTITY, OTHER_REQUEST));
            }
            match begun {
                Begun::Owner(claim) => return Turn::Act(claim),
                Begun::Done { value, .. } => return self.replay(value, seen),
                Begun::Unknown { .. } => {
                    let message = "It is not known whether the first request with this Idempotency-Key took effect";
                    return Turn::Refuse(self.refuse("idempotency-unknown", StatusCode::CONFLICT, message));
                }
                Begun::Lost { left } => return self.without_memory(left),
                Begun::InFlight { .. } => {
                    let left = deadline.map_or(Duration::ZERO, |d| d.saturating_duration_since(Instant::now()));
                    if left.is_zero() {
                        return Turn::Refuse(self.under_way());
                    }
                    if self.ledger.wait(key, left.min(LOOK_AGAIN)).await.is_err() {
                        tokio::time::sleep(left.min(Duration::from_millis(50))).await;
                    }
                }
            }
        }
    }

    /// `None`: the request goes on without protection.
    fn without_store(&self, error: &StoreError) -> Option<Refused> {
        tracing::warn!(plugin = BY, scope = self.scope, %error, "the store did not answer");
        if self.rules.pass_without_store {
            self.counted("unprotected");
            return None;
        }
        Some(self.refuse("idempotency-store-away", StatusCode::SERVICE_UNAVAILABLE, "Idempotency cannot be guaranteed now").retry(1))
    }

    fn without_memory(&self, left: Duration) -> Turn {
        tracing::warn!(plugin = BY, scope = self.scope, ?left, "the store has lost its memory: keys may have been used that it does not know");
        if self.rules.pass_without_store || self.rules.safe_to_repeat {
            self.counted("unprotected");
            return Turn::Pass;
        }
        let message = "Idempotency cannot be guaranteed yet: the store has lost its memory";
        Turn::Refuse(self.refuse("idempotency-store-lost", StatusCode::SERVICE_UNAVAILABLE, message).retry(left.as_secs() + 1))
    }

    fn replay(&self, value: Bytes, seen: &Seen) -> Turn {
        let Some(stored) = Stored::decode(value) else {
            let message = "The request with this Idempotency-Key was done, but its answer cannot be read";
            return Turn::Refuse(self.refuse("idempotency-unreadable", StatusCode::CONFLICT, message));
        };
        let check = stored.request.filter(|_| !seen.whole).map(|expected| {
            let otherwise = refusal(MISMATCH, StatusCode::UNPROCESSABLE_ENTITY, OTHER_REQUEST);
            Box::new(BodyCheck { so_far: BodyHash::beginning(&seen.bytes), expected, otherwise })
        });
        let Some((headers, body)) = stored.answer else {
            let status = stored.status.as_u16();
            let message = format!("The request with this Idempotency-Key was done with status {status}, but its answer was too large to be kept");
            let mut refused = self.refuse("idempotency-too-large", StatusCode::CONFLICT, &message);
            refused.reply.check = check;
            return Turn::Refuse(refused);
        };
        self.counted("replayed");
        let mut reply = Reply::empty(BY, stored.status);
        (reply.headers, reply.body, reply.check) = (headers, body, check);
        Turn::Answer(reply.with("idempotency-replayed", "true"))
    }

    /// Writes the end of a request: what is stored of it, or nothing, which frees the key. More than once, for if it is lost, the outcome counts as
    /// unknown; beyond the first attempts without the client.
    async fn write(self: &Arc<Self>, claim: Claim, held: Option<Held>, outcome: Option<Bytes>) {
        let mut pause = Duration::from_millis(25);
        for _ in 1..WRITES {
            if self.written(&claim, &outcome).await {
                return;
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        if self.written(&claim, &outcome).await {
            return;
        }
        tracing::warn!(plugin = BY, scope = self.scope, "the store does not take the outcome of a request: it is tried again in the background");
        let desk = self.clone();
        tokio::spawn(async move {
            let _held = held;
            let until = Instant::now() + desk.rules.ttl;
            while Instant::now() < until {
                tokio::time::sleep(LATER).await;
                if desk.written(&claim, &outcome).await {
                    return;
                }
            }
            desk.counted("lost");
        });
    }

    /// Whether there is nothing left to write.
    async fn written(&self, claim: &Claim, outcome: &Option<Bytes>) -> bool {
        let written = match outcome {
            Some(value) => self.ledger.complete(claim, value.clone(), self.rules.ttl).await,
            None => self.ledger.abandon(claim).await,
        };
        if let Ok(false) = written {
            self.counted("lost");
        }
        written.is_ok()
    }
}

const MISMATCH: &str = "idempotency-mismatch";
const OTHER_REQUEST: &str = "This Idempotency-Key was used with a different request";

/// The reason in a word, of what the access log says.
fn reason(failure: &'static str) -> &'static str {
    failure.strip_prefix("idempotency-").unwrap_or(failure)
}

fn refusal(failure: &'static str, status: StatusCode, message: &str) -> Reply {
    Reply::message(BY, status, message).with("cache-control", "no-store").with("x-weir-reason", reason(failure))
}

impl Refused {
    fn retry(mut self, seconds: u64) -> Refused {
        self.reply.headers.insert(header::RETRY_AFTER, seconds.into());
        self
    }
}

#[async_trait]
impl Plugin for Idempotency {
    fn phases(&self) -> Phases {
        Phases::REQUEST_WAIT | Phases::RESPONSE | Phases::BODY | Phases::END
    }

    fn reads_body(&self) -> Option<usize> {
        Some(self.desk.rules.max_body)
    }

    fn changes_body(&self) -> bool {
        false
    }

    async fn request_wait(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        let desk = &self.desk;
        if !desk.rules.methods.contains(&req.method) {
            return Flow::Continue;
        }
        let turn = match key::of(&req.headers) {
            Ok(Some(key)) => {
                let seen = desk.seen(cx);
                let turn = desk.turn(&desk.ledger_key(cx, req, &key), &seen, req).await;
                if matches!(turn, Turn::Act(_)) && !seen.whole {
                    cx.body_hash = Some(Box::new(BodyHash::beginning(&seen.bytes)));
                }
                turn
            }
            Ok(None) if desk.rules.required => {
                Turn::Refuse(desk.refuse("idempotency-missing", StatusCode::BAD_REQUEST, "Idempotency-Key is required for this request"))
            }
            Ok(None) => return Flow::Continue,
            Err(message) => Turn::Refuse(desk.refuse("idempotency-malformed", StatusCode::BAD_REQUEST, message)),
        };
        match turn {
            Turn::Answer(reply) => Flow::Reply(reply),
            Turn::Refuse(refused) => {
                cx.failure = Some(refused.failure);
                Flow::Reply(refused.reply)
            }
            Turn::Pass => Flow::Continue,
            Turn::Act(claim) => {
                desk.counted("first");
                cx.must_complete = true;
                cx.before_send = Some(Arc::new(Gate { desk: desk.clone(), claim: claim.clone() }));
                let work = Work {
                    held: Some(self.renewals.hold(&claim)),
                    claim,
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
            if work.too_large || work.body.len() + chunk.len() > self.desk.rules.max_response {
                work.too_large = true;
                work.body = BytesMut::new();
            } else {
                work.body.extend_from_slice(chunk);
            }
        }
    }

    async fn end(&self, cx: &mut RequestContext, ending: Ending) {
        let desk = &self.desk;
        let Some(work) = cx.state.remove::<Shared>() else { return };
        let request = cx.body_hash.take().filter(|hash| hash.complete).map(|hash| hash.finish());
        let (claim, held, status, resent, stored) = {
            let mut work = work.lock();
            let (status, headers) = (work.status, std::mem::take(&mut work.headers));
            let body = std::mem::take(&mut work.body).freeze();
            let stored = Stored { request, status, answer: (!work.too_large).then_some((headers, body)) };
            // A method that HTTP calls idempotent is sent again after a failure: that the last try was not sent says nothing of the one before.
            (work.claim.clone(), work.held.take(), status, work.resendable && cx.tries > 1, stored)
        };
        match ending {
            Ending::Complete if status.is_server_error() && !desk.rules.store_server_errors => {
                desk.counted("not-stored");
                desk.write(claim, held, None).await;
            }
            Ending::Complete => {
                desk.counted(if stored.answer.is_some() { "stored" } else { "stored-mark" });
                desk.write(claim, held, Some(stored.encode())).await;
            }
            Ending::NotSent if !resent => {
                desk.counted("not-sent");
                desk.write(claim, held, None).await;
            }
            // The upstream may have acted. The lease ends by itself, and the ledger then says that nobody knows, or that a repetition may begin.
            Ending::NotSent | Ending::Broken => {
                desk.counted("broken");
                tracing::warn!(plugin = BY, scope = desk.scope, id = %cx.id, "it is not known whether a request took effect");
                if desk.rules.safe_to_repeat {
                    desk.write(claim, held, None).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
