//! `token-validator`: only requests with a good bearer token pass.
//!
//! ```text
//! request ─► sources: the token ─► memory: known? ──yes──────────────────────────────► identity on the request
//!                │ none: 401 (or anonymous)   │ no                                          ▲
//!                                             └─► keys: signature and claims ─► introspect ─┘ and remember
//! ```

mod introspect;
mod keys;
mod logout;
mod memory;
mod settings;
mod sources;

pub use settings::Config;
pub(crate) use logout::message_for;
pub(crate) use memory::Memories;

use crate::{Configured, Live, doubtful};
use async_trait::async_trait;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request};
use introspect::Answer;
use keys::IssuerKeys;
use memory::{Known, Memory, Recalled};
use prometheus::IntCounter;
use serde_json::{Map, Value};
use settings::{FoundIn, Mode, Rules};
use std::{
    borrow::Cow,
    sync::{Arc, atomic::AtomicU64},
};
use weir_config::{Diagnostic, Node};
use weir_gateway::{BuildEnv, Environment, Flow, Identity, Phases, Plugin, Reply, RequestContext, Sight, plugin::Ending};

const BY: &str = "token-validator";
/// Longer tokens are refused unread.
const LONGEST: usize = 8 * 1024;
/// How long a token without `exp` is remembered.
const WITHOUT_EXP: u64 = 3600;

type Claims = Map<String, Value>;

/// Why a request does not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Refusal {
    /// It has no token.
    Missing,
    /// Its token is not good, for this reason.
    Invalid(Cow<'static, str>),
    /// Its token was good until it was logged out.
    LoggedOut,
    /// Its token is good for other things.
    Insufficient,
    /// Nobody can say whether it is good, for this reason.
    Away(&'static str),
}

fn invalid(why: impl Into<Cow<'static, str>>) -> Refusal {
    Refusal::Invalid(why.into())
}

impl Configured for Config {
    const NAME: &'static str = BY;
    const PRIORITY: i32 = 1450;
    const EXAMPLE: &'static str = "secret: a-secret-of-at-least-thirty-two-bytes
issuer: https://auth.example.com
audience: [shop]
required_claims: [exp, sub]
sources:
  - header: Authorization
  - cookie: access_token
identity_headers:
  X-User-Id: sub
  X-User-Roles: roles
logout:
  paths: [/api/auth/logout]
";
    type Ready = Rules;

    fn ready(self, at: &Node) -> Result<Rules, Vec<Diagnostic>> {
        settings::ready(self, at)
    }

    /// The access log masks values by their names.
    fn warnings(at: &Node) -> Vec<Diagnostic> {
        let masked = |name: &str| ["token", "key", "secret", "password", "code", "jwt"].iter().any(|part| name.to_ascii_lowercase().contains(part));
        let sources = at.get("sources").map(Node::items).unwrap_or_default();
        let shown = sources.iter().filter(|source| source.get("query").and_then(Node::text).is_some_and(|name| !masked(&name)));
        let message = "tokens under this name appear in access logs: only names with `token`, `key`, `secret`, `password`, `code` or `jwt` are masked";
        shown.map(|source| doubtful(source, "query", message)).collect()
    }

    fn build(mut ready: Rules, env: &BuildEnv<'_>, live: &Live) -> Arc<dyn Plugin> {
        let issuers = ready.keys.issuers.iter().filter_map(|issuer| if let IssuerKeys::Fixed(keys) = &issuer.keys { Some(keys) } else { None });
        if issuers.chain([&ready.keys.own]).any(keys::Fixed::has_weak) {
            tracing::warn!(plugin = BY, scope = env.scope, "a secret is shorter than 32 bytes and may be guessed");
        }
        ready.keys.connect(&live.key_sets, &env.environment.client);
        let memory = live.tokens.of(&ready);
        memory.channel.listen(&env.environment.store.bus);
        let passed = env.environment.metrics.plugin_counter(BY, "passed");
        Arc::new(TokenValidator { rules: ready, memory, environment: env.environment.clone(), passed })
    }
}

/// The message that will end the request's token when the service has logged it out.
#[derive(Clone)]
struct Leaving(String);

struct TokenValidator {
    rules: Rules,
    memory: Arc<Memory>,
    environment: Arc<Environment>,
    passed: IntCounter,
}

impl TokenValidator {
    /// Finds out about a token that is not known, or not any more, and remembers what came of it. Concurrent requests with one token do this once.
    async fn check(&self, token: &str, key: &memory::Key) -> Result<Arc<Known>, Refusal> {
        let work = async {
            let refusal = match self.judge(token).await {
                Ok(known) => {
                    let known = Arc::new(known);
                    self.memory.keep(*key, known.clone());
                    return Ok(known);
                }
                Err(refusal) => refusal,
            };
            match (&refusal, self.memory.recall(key)) {
                // It was good a little while ago.
                (Refusal::Away(_), Recalled::Due(known)) if known.grace_until > self.memory.now() => {
                    self.environment.metrics.plugin(BY, "grace");
                    return Ok(known);
                }
                (Refusal::Invalid(_) | Refusal::LoggedOut, _) => self.memory.refuse(*key, refusal.clone()),
                _ => {}
            }
            Err(refusal)
        };
        self.memory.once(key, work).await
    }

    /// Signature and claims, the auth service's word, and whether it was logged out.
    async fn judge(&self, token: &str) -> Result<Known, Refusal> {
        let news = self.memory.channel.news();
        let verified = match self.rules.mode {
            Mode::Introspect => None,
            Mode::Local | Mode::Both => Some(self.rules.keys.verify(token, self.memory.now()).await?),
        };
        let claims = match (&self.rules.service, verified) {
            (Some(service), verified) if self.rules.mode != Mode::Local => match (service.ask(&self.environment.client, token).await, verified) {
                (Answer::Good(_), Some(verified)) => verified,
                (Answer::Good(said), None) => {
                    self.rules.keys.check_claims(&said, None, self.memory.now())?;
                    said
                }
                (Answer::Bad, _) => return Err(invalid("the token is not valid any more")),
                (Answer::Away, _) => return Err(Refusal::Away("The auth service does not answer")),
            },
            (_, Some(verified)) => verified,
            (_, None) => return Err(Refusal::Away("There is nobody to ask about the token")),
        };
        let known = self.known(token, claims, news);
        let channel = &self.memory.channel;
        let marked = match channel.is_revoked(&known.ids) {
            true => true,
            false => channel.is_marked(&self.environment.store, &known.ids).await.unwrap_or_else(|error| {
                tracing::debug!(plugin = BY, %error, "whether a token was logged out is not known");
                self.environment.metrics.plugin(BY, "logout-unknown");
                false
            }),
        };
        if marked { Err(Refusal::LoggedOut) } else { Ok(known) }
    }

    /// Makes of claims what a request needs.
    fn known(&self, token: &str, claims: Claims, news: u64) -> Known {
        let exp = claims.get("exp").and_then(seconds);
        let ttl = self.rules.ttl.unwrap_or(if exp.is_none() { WITHOUT_EXP } else { u64::MAX });
        let until = self.memory.now().saturating_add(ttl).min(exp.unwrap_or(u64::MAX));
        let subject = ["sub", "user_id", "username"].iter().find_map(|c| claims.get(*c).and_then(text)).unwrap_or_default();
        let credential = claims.get("jti").and_then(text);
        let fields = self
            .rules
            .identity_headers
            .iter()
            .filter_map(|(name, path)| Some((name.clone(), HeaderValue::from_bytes(text(at_path(&claims, path)?)?.as_bytes()).ok()?)))
            .collect();
        Known {
            permitted: self.rules.permits(&claims),
            ids: logout::ids_of(token, credential.as_deref()),
            identity: Arc::new(Identity { subject, credential, claims: Some(Arc::new(claims)) }),
            fields,
            news: AtomicU64::new(news),
            until,
            grace_until: until.saturating_add(self.rules.grace).min(exp.unwrap_or(u64::MAX)),
        }
    }

    fn pass(&self, cx: &mut RequestContext, known: &Known) -> Flow {
        if !known.permitted {
            return self.refuse(cx, &Refusal::Insufficient);
        }
        self.passed.inc();
        cx.identity = Some(known.identity.clone());
        cx.caller_fields.reserve(known.fields.len());
        for (name, value) in known.fields.iter() {
            cx.caller_fields.set(name.clone(), value.clone());
        }
        Flow::Continue
    }

    /// RFC 6750 section 3.
    fn refuse(&self, cx: &mut RequestContext, refusal: &Refusal) -> Flow {
        if *refusal == Refusal::Missing && self.rules.anonymous {
            self.environment.metrics.plugin(BY, "anonymous");
            return Flow::Continue;
        }
        let realm = &self.rules.realm;
        let bad = |why: &str| {
            let challenge = format!("Bearer realm=\"{realm}\", error=\"invalid_token\", error_description=\"{}\"", plain(why));
            Reply::message(BY, StatusCode::UNAUTHORIZED, why).with("www-authenticate", &challenge)
        };
        let (outcome, failure, reply) = match refusal {
            Refusal::Missing => {
                let challenge = format!("Bearer realm=\"{realm}\"");
                ("missing", "token-missing", Reply::message(BY, StatusCode::UNAUTHORIZED, "Unauthorized").with("www-authenticate", &challenge))
            }
            Refusal::Invalid(why) => ("invalid", "token-invalid", bad(why)),
            Refusal::LoggedOut => ("logged-out", "token-logged-out", bad("the token was logged out")),
            Refusal::Insufficient => {
                let scope = match self.rules.scopes.is_empty() {
                    true => String::new(),
                    false => format!(", scope=\"{}\"", plain(&self.rules.scopes.join(" "))),
                };
                let why = "the token does not permit this";
                let challenge = format!("Bearer realm=\"{realm}\", error=\"insufficient_scope\", error_description=\"{why}\"{scope}");
                ("forbidden", "token-forbidden", Reply::message(BY, StatusCode::FORBIDDEN, why).with("www-authenticate", &challenge))
            }
            Refusal::Away(why) => ("away", "token-unchecked", Reply::message(BY, StatusCode::SERVICE_UNAVAILABLE, why).with("retry-after", "1")),
        };
        self.environment.metrics.plugin(BY, outcome);
        cx.failure = Some(failure);
        Flow::Reply(reply.with("cache-control", "no-store"))
    }

    /// Whether the request logs its token out, should the service agree.
    fn leaves(&self, req: &request::Parts) -> bool {
        !self.rules.logout_paths.is_empty()
            && !matches!(req.method, Method::HEAD | Method::OPTIONS)
            && self.rules.logout_paths.iter().any(|path| path == req.uri.path())
    }

    /// The request's token.
    fn token<'a>(&'a self, req: &'a request::Parts) -> Result<Cow<'a, str>, Refusal> {
        let token = sources::find(&self.rules.sources, &req.headers, req.uri.query())?;
        match token.len() {
            0 => Err(invalid("the token is empty")),
            1..=LONGEST => Ok(token),
            _ => Err(invalid("the token is longer than 8 KB")),
        }
    }
}

/// Removes headers that only this plugin may set, also in the spellings that some upstreams read as the same (`X_User_Id`).
fn remove_identity(headers: &mut HeaderMap, names: &[(HeaderName, String)]) {
    let like = |name: &str, found: &str| name.len() == found.len() && name.bytes().zip(found.bytes()).all(|(a, b)| a == b || (a == b'-' && b == b'_'));
    // Few requests have one: to look at the names costs less than to ask for each of them.
    let found: Vec<HeaderName> = headers.keys().filter(|k| names.iter().any(|(name, _)| like(name.as_str(), k.as_str()))).cloned().collect();
    for name in found {
        headers.remove(name);
    }
}

/// What may stand in a quoted error description (RFC 6750 section 3).
fn plain(text: &str) -> String {
    text.chars().filter(|c| matches!(c, ' '..='~') && !matches!(c, '"' | '\\')).collect()
}

/// A NumericDate (RFC 7519 section 2): seconds, perhaps with a fraction.
fn seconds(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_f64().filter(|s| *s >= 0.0).map(|s| s as u64))
}

/// A claim by its path (`realm_access.roles`); a claim whose name has dots comes first.
fn at_path<'a>(claims: &'a Claims, path: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(path) {
        return Some(value);
    }
    let mut parts = path.split('.');
    let mut value = claims.get(parts.next()?)?;
    for part in parts {
        value = value.get(part)?;
    }
    Some(value)
}

/// A claim as a header's text: lists joined by commas, objects as JSON, `null` as nothing.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Array(items) => Some(items.iter().filter_map(text).collect::<Vec<_>>().join(",")),
        other => Some(other.to_string()),
    }
}

#[async_trait]
impl Plugin for TokenValidator {
    fn phases(&self) -> Phases {
        let steps = Phases::REQUEST | Phases::REQUEST_WAIT;
        if self.rules.logout_paths.is_empty() { steps } else { steps | Phases::END }
    }

    fn sees_of_request(&self) -> Sight {
        let sources = self.rules.sources.iter().filter_map(|source| match source {
            FoundIn::Header(name) => Some(name.clone()),
            FoundIn::Cookie(_) => Some(header::COOKIE),
            FoundIn::Query(_) => None,
        });
        Sight::Only(sources.chain(self.rules.identity_headers.iter().map(|(name, _)| name.clone())).collect())
    }

    /// The client's own identity headers go; a token that is known decides at once.
    fn request(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        remove_identity(&mut req.headers, &self.rules.identity_headers);
        let token = match self.token(req) {
            Ok(token) => token,
            Err(refusal) => return self.refuse(cx, &refusal),
        };
        if self.leaves(req) {
            return Flow::Wait;
        }
        match self.memory.recall(&self.memory.key(&token)) {
            Recalled::Good(known) => self.pass(cx, &known),
            Recalled::Bad(refusal) => self.refuse(cx, &refusal),
            Recalled::Due(_) | Recalled::Unknown => Flow::Wait,
        }
    }

    async fn request_wait(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        self.memory.channel.listen(&self.environment.store.bus);
        let token = match self.token(req) {
            Ok(token) => token,
            Err(refusal) => return self.refuse(cx, &refusal),
        };
        let key = self.memory.key(&token);
        let found = match self.memory.recall(&key) {
            Recalled::Good(known) => Ok(known),
            Recalled::Bad(refusal) => Err(refusal),
            Recalled::Due(_) | Recalled::Unknown => self.check(&token, &key).await,
        };
        match found {
            Ok(known) => {
                if self.leaves(req) {
                    cx.state.insert(Leaving(message_for(&token)));
                }
                self.pass(cx, &known)
            }
            Err(refusal) => self.refuse(cx, &refusal),
        }
    }

    /// Before the client hears that it is logged out, it is.
    async fn end(&self, cx: &mut RequestContext, ending: Ending) {
        let Some(Leaving(message)) = cx.state.remove::<Leaving>() else { return };
        if ending != Ending::Complete || !(200..400).contains(&cx.status) {
            return;
        }
        let outcome = match self.memory.channel.announce(&self.environment.store, &message).await {
            Ok(()) => "logout",
            Err(error) => {
                tracing::warn!(plugin = BY, %error, "a logout reached this instance only");
                "logout-untold"
            }
        };
        self.environment.metrics.plugin(BY, outcome);
    }
}

#[cfg(test)]
mod tests;
