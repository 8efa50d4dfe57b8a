//! `token-validator`: only requests with a good bearer token pass.
//!
//! ```text
//! request ─► sources: the token ─► memory: known? ──yes──────────────────────────────► identity on the request
//!                │ none: 401 (or anonymous)   │ no                                          ▲
//!                                             └─► keys: signature and claims ─► introspect ─┘ and remember
//! ```

mod introspect;
mod keys;
mod memory;
mod settings;
mod sources;

pub use settings::Config;
pub(crate) use memory::Memories;

use crate::{Configured, Live};
use async_trait::async_trait;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, request};
use introspect::Answer;
use memory::{Known, Memory, Recalled};
use serde_json::{Map, Value};
use settings::{Mode, Rules};
use std::{
    borrow::Cow,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};
use weir_config::{Diagnostic, Node};
use weir_gateway::{BuildEnv, Environment, Flow, Identity, Phases, Plugin, Reply, RequestContext};

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
    /// Its token is good for other things.
    Insufficient,
    /// Nobody can say whether it is good.
    Away,
}

fn invalid(why: impl Into<Cow<'static, str>>) -> Refusal {
    Refusal::Invalid(why.into())
}

impl Configured for Config {
    const NAME: &'static str = "token-validator";
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
";
    type Ready = Rules;

    fn ready(self, at: &Node) -> Result<Rules, Vec<Diagnostic>> {
        settings::ready(self, at)
    }

    fn build(ready: Rules, env: &BuildEnv<'_>, live: &Live) -> Arc<dyn Plugin> {
        if ready.keys.default.iter().chain(ready.keys.by_kid.values()).any(|key| key.weak) {
            tracing::warn!(plugin = Config::NAME, scope = env.scope, "a secret is shorter than 32 bytes and may be guessed");
        }
        let memory = live.tokens.of(&ready);
        Arc::new(TokenValidator { rules: ready, memory, environment: env.environment.clone() })
    }
}

/// Whose request this is, kept for the step towards the upstream.
#[derive(Clone)]
struct Caller(Arc<Known>);

struct TokenValidator {
    rules: Rules,
    memory: Arc<Memory>,
    environment: Arc<Environment>,
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl TokenValidator {
    /// What is known of the token without asking anyone.
    fn recall(&self, key: &memory::Key) -> Option<Result<Arc<Known>, Refusal>> {
        match self.memory.recall(key, now()) {
            Recalled::Good(known) => Some(Ok(known)),
            Recalled::Bad(why) => Some(Err(Refusal::Invalid(why))),
            Recalled::Due(_) | Recalled::Unknown => None,
        }
    }

    /// Checks signature and claims here, and remembers what came of it.
    fn check_local(&self, token: &str, key: &memory::Key) -> Result<Arc<Known>, Refusal> {
        let found = self.rules.keys.verify(token).and_then(|claims| self.admit(token, claims));
        self.remember(key, found)
    }

    fn remember(&self, key: &memory::Key, found: Result<Known, Refusal>) -> Result<Arc<Known>, Refusal> {
        match found {
            Ok(known) => {
                let known = Arc::new(known);
                self.memory.keep(*key, known.clone());
                Ok(known)
            }
            Err(refusal) => {
                if let Refusal::Invalid(why) = &refusal {
                    self.memory.refuse(*key, why.clone(), now());
                }
                Err(refusal)
            }
        }
    }

    /// Asks the auth service, after the local check if there is one. Concurrent requests with one token ask once.
    async fn check_remote(&self, token: &str, key: &memory::Key) -> Result<Arc<Known>, Refusal> {
        let Some(service) = &self.rules.service else { return Err(Refusal::Away) };
        let verified = match self.rules.mode {
            Mode::Introspect => Claims::new(),
            _ => match self.rules.keys.verify(token) {
                Ok(claims) => claims,
                Err(refusal) => return self.remember(key, Err(refusal)),
            },
        };
        let ask = async {
            let answer = service.ask(&self.environment.client, token).await;
            let found = match answer {
                Answer::Good(said) => self.admit(token, if self.rules.mode == Mode::Introspect { said } else { verified }),
                Answer::Bad => Err(invalid("the token is not valid any more")),
                Answer::Away => Err(Refusal::Away),
            };
            match (self.remember(key, found), self.memory.recall(key, now())) {
                // Away, but it was good a little while ago.
                (Err(Refusal::Away), Recalled::Due(known)) if known.grace_until > now() => {
                    self.environment.metrics.plugin("token-validator", "grace");
                    Ok(known)
                }
                (found, _) => found,
            }
        };
        self.memory.once(key, ask).await
    }

    /// Makes of claims what a request needs. A token that was logged out is not admitted again.
    fn admit(&self, token: &str, claims: Claims) -> Result<Known, Refusal> {
        let now = now();
        let exp = claims.get("exp").and_then(seconds);
        let ttl = self.rules.ttl.unwrap_or(if exp.is_none() { WITHOUT_EXP } else { u64::MAX });
        let until = now.saturating_add(ttl).min(exp.unwrap_or(u64::MAX));
        let subject = ["sub", "user_id", "username"].iter().find_map(|c| claims.get(*c).and_then(text)).unwrap_or_default();
        let credential = claims.get("jti").and_then(text);
        let headers = self
            .rules
            .identity_headers
            .iter()
            .filter_map(|(name, path)| Some((name.clone(), HeaderValue::from_str(&text(at_path(&claims, path)?)?).ok()?)))
            .collect();
        let ids = [memory::id_of_token(token), credential.as_deref().map_or(0, memory::id_of_jti)];
        if self.memory.is_revoked(&ids, now) {
            return Err(invalid("the token was logged out"));
        }
        Ok(Known {
            permitted: self.rules.permits(&claims),
            identity: Identity { subject, credential, claims: Some(Arc::new(claims)) },
            headers,
            ids,
            until,
            grace_until: until.saturating_add(self.rules.grace).min(exp.unwrap_or(u64::MAX)),
        })
    }

    fn pass(&self, cx: &mut RequestContext, found: Result<Arc<Known>, Refusal>) -> Flow {
        let refusal = match found {
            Ok(known) if known.permitted => {
                self.environment.metrics.plugin("token-validator", "passed");
                cx.identity = Some(known.identity.clone());
                cx.state.insert(Caller(known));
                return Flow::Continue;
            }
            Ok(_) => Refusal::Insufficient,
            Err(Refusal::Missing) if self.rules.anonymous => {
                self.environment.metrics.plugin("token-validator", "anonymous");
                return Flow::Continue;
            }
            Err(refusal) => refusal,
        };
        Flow::Reply(self.reply(&refusal))
    }

    /// RFC 6750 section 3.
    fn reply(&self, refusal: &Refusal) -> Reply {
        const BY: &str = "token-validator";
        let realm = &self.rules.realm;
        let (outcome, reply) = match refusal {
            Refusal::Missing => (
                "missing",
                Reply::message(BY, StatusCode::UNAUTHORIZED, "Unauthorized").with("www-authenticate", &format!("Bearer realm=\"{realm}\"")),
            ),
            Refusal::Invalid(why) => (
                "invalid",
                Reply::message(BY, StatusCode::UNAUTHORIZED, why).with(
                    "www-authenticate",
                    &format!("Bearer realm=\"{realm}\", error=\"invalid_token\", error_description=\"{}\"", plain(why)),
                ),
            ),
            Refusal::Insufficient => {
                let scope = match self.rules.scopes.is_empty() {
                    true => String::new(),
                    false => format!(", scope=\"{}\"", plain(&self.rules.scopes.join(" "))),
                };
                let why = "the token does not permit this";
                (
                    "forbidden",
                    Reply::message(BY, StatusCode::FORBIDDEN, why).with(
                        "www-authenticate",
                        &format!("Bearer realm=\"{realm}\", error=\"insufficient_scope\", error_description=\"{why}\"{scope}"),
                    ),
                )
            }
            Refusal::Away => {
                ("away", Reply::message(BY, StatusCode::SERVICE_UNAVAILABLE, "The auth service does not answer").with("retry-after", "1"))
            }
        };
        self.environment.metrics.plugin(BY, outcome);
        reply.with("cache-control", "no-store")
    }

    /// What both request steps begin with: the client's own identity headers go, the token is found.
    fn begin(&self, req: &mut request::Parts) -> Result<String, Refusal> {
        self.memory.listen(&self.environment.store.bus, &self.rules.logout_channel);
        remove_identity(&mut req.headers, &self.rules.identity_headers);
        let token = sources::find(&self.rules.sources, &req.headers, req.uri.query())?;
        match token.len() {
            0 => Err(invalid("the token is empty")),
            1..=LONGEST => Ok(token.into_owned()),
            _ => Err(invalid("the token is longer than 8 KB")),
        }
    }
}

/// Removes headers that only this plugin may set, also in the spellings that some upstreams read as the same (`X_User_Id`).
fn remove_identity(headers: &mut HeaderMap, names: &[(HeaderName, String)]) {
    let underscored: Vec<HeaderName> = headers
        .keys()
        .filter(|k| k.as_str().contains('_'))
        .filter(|k| names.iter().any(|(name, _)| name.as_str().len() == k.as_str().len() && name.as_str() == k.as_str().replace('_', "-")))
        .cloned()
        .collect();
    for name in names.iter().map(|(name, _)| name).chain(&underscored) {
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
        Phases::TO_UPSTREAM | if self.rules.mode == Mode::Local { Phases::REQUEST } else { Phases::REQUEST_WAIT }
    }

    fn request(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        let found = self.begin(req).and_then(|token| {
            let key = self.memory.key(&token);
            self.recall(&key).unwrap_or_else(|| self.check_local(&token, &key))
        });
        self.pass(cx, found)
    }

    async fn request_wait(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        let found = match self.begin(req) {
            Ok(token) => {
                let key = self.memory.key(&token);
                match self.recall(&key) {
                    Some(found) => found,
                    None => self.check_remote(&token, &key).await,
                }
            }
            Err(refusal) => Err(refusal),
        };
        self.pass(cx, found)
    }

    /// Here and not in the request step: what is fetched for the cache, and so for everyone, carries no one's identity.
    fn to_upstream(&self, cx: &mut RequestContext, req: &mut request::Parts) {
        if let Some(Caller(known)) = cx.state.get::<Caller>() {
            for (name, value) in &known.headers {
                req.headers.insert(name.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests;
