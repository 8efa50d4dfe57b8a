//! `jwt`: only requests with a token that a consumer's key, or an issuer's, has signed pass.
//!
//! ```text
//! request ─► sources: the one token ─► taken apart ─► key claim names a consumer's key ──► signature, times ─► consumer
//!                │ none, several: 401                     │ it does not
//!                                                         └─► key set of `issuer` or `jwks_uri`, if there is one ─► signature, issuer, audience, times
//! ```

pub(crate) mod key_set;
pub(crate) mod keys;
pub(crate) mod token;

pub(crate) use key_set::KeySets;
pub(crate) use keys::{Credential, base64_text};

use crate::{
    Configured, Live,
    auth::{Caller, Gate, Groups, Index, challenge, is_realm},
    cookies, header_name, query, wrong,
};
use async_trait::async_trait;
use http::{HeaderMap, HeaderName, StatusCode, header, request};
use key_set::{Bad, KeySet, Source};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};
use token::{Claims, Token, times};
use weir_config::{Diagnostic, Millis, Node};
use weir_gateway::{BuildEnv, Flow, Identity, Phases, Plugin, Reply, RequestContext, Sight};

const BY: &str = "jwt";

/// Lets only requests with a signed token (JWT, RFC 7519) pass and names its consumer. The token's key claim (`iss` unless `key_claim_name` says
/// otherwise) is looked up among the consumers' `jwt_secrets`; the algorithm is that of the credential: HS, RS, PS and ES with 256, 384 or
/// 512, or EdDSA (Ed25519). Refused are `none`, RSA keys under 2048 bits, tokens with critical extensions (`crit`), and requests with
/// several tokens that differ. The answer is then 401 with `WWW-Authenticate`; when only times are wrong it names the claims
/// (`{"exp":"token expired"}`). The upstream gets `X-Consumer-ID`, `-Custom-ID`, `-Username` and `X-Credential-Identifier` (the key claim's value). Fields,
/// defaults and messages up to here are Kong's.
///
/// With `issuer` or `jwks_uri`, tokens that name no consumer's key are checked against the issuer's key set, which is
/// fetched with the first such token, then in the background, and at once when a token names a key that is not in it. These tokens must have an `exp`,
/// and the `iss` and `aud` configured; 503 when no keys can be had.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Query parameters that may hold the token.
    pub uri_param_names: Vec<String>,
    /// Cookies that may hold the token.
    pub cookie_names: Vec<String>,
    /// Headers that may hold the token, after `Bearer`.
    pub header_names: Vec<String>,
    /// The claim that names the key; if the claims lack it, the token's header is looked at.
    pub key_claim_name: String,
    /// The consumers' HMAC secrets are written in base64.
    pub secret_is_base64: bool,
    /// Times that are looked at: `exp`, `nbf`. A token without them is then refused.
    pub claims_to_verify: Option<Vec<TimeClaim>>,
    /// Seconds that a token may at most still live; 0: any number. Needs `exp` in `claims_to_verify`.
    #[schemars(range(min = 0.0, max = 31_536_000.0))]
    pub maximum_expiration: f64,
    /// Look at `OPTIONS` requests too. `false` lets them all pass.
    pub run_on_preflight: bool,
    /// Consumer (id or username) as whom requests without a good token pass. Also means that a request which another authentication plugin
    /// let pass needs no token.
    pub anonymous: Option<String>,
    /// `realm` of `WWW-Authenticate`.
    pub realm: Option<String>,
    /// Weir's own: issuer whose tokens are accepted, exactly as their `iss` says it. Its keys are found by OpenID Connect Discovery
    /// (`<issuer>/.well-known/openid-configuration`) unless `jwks_uri` tells where they are.
    #[schemars(extend("format" = "weir-url"))]
    pub issuer: Option<String>,
    /// Weir's own: where the issuer's key set is.
    #[schemars(extend("format" = "weir-url"))]
    pub jwks_uri: Option<String>,
    /// Weir's own: an issuer's token must be meant for one of these (`aud`). Empty: for anyone.
    pub audience: Vec<String>,
    /// Weir's own: claim of an issuer's token that names its consumer, by `custom_id`, id or username; without such a consumer the answer is
    /// 401. Not set: the caller is no consumer.
    pub consumer_claim: Option<String>,
    /// Weir's own: claim of an issuer's token that lists the caller's groups, for `acl`. Dots reach inside (`realm_access.roles`).
    pub groups_claim: Option<String>,
    /// Weir's own: time between two fetches of the key set in the background. When they fail the old keys stay, for a day at most.
    pub jwks_refresh: Millis,
    /// Weir's own: shortest time between two fetches that unknown keys cause.
    pub jwks_min_interval: Millis,
}

/// A time that can be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TimeClaim {
    /// Until when the token is valid.
    Exp,
    /// From when on it is.
    Nbf,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            uri_param_names: vec!["jwt".into()],
            cookie_names: vec![],
            header_names: vec!["authorization".into()],
            key_claim_name: "iss".into(),
            secret_is_base64: false,
            claims_to_verify: None,
            maximum_expiration: 0.0,
            run_on_preflight: true,
            anonymous: None,
            realm: None,
            issuer: None,
            jwks_uri: None,
            audience: vec![],
            consumer_claim: None,
            groups_claim: None,
            jwks_refresh: Millis::secs(300),
            jwks_min_interval: Millis::secs(10),
        }
    }
}

impl Configured for Config {
    const NAME: &'static str = BY;
    const PRIORITY: i32 = 1450;
    const EXAMPLE: &'static str = "key_claim_name: iss\nclaims_to_verify: [exp, nbf]\nmaximum_expiration: 3600\ncookie_names: [access_token]\nrealm: shop\n";
    type Ready = Rules;

    fn ready(self, at: &Node) -> Result<Rules, Vec<Diagnostic>> {
        let mut errors = Vec::new();
        let headers: Vec<HeaderName> = self
            .header_names
            .iter()
            .filter_map(|name| header_name(at, "header_names", name).map_err(|e| errors.push(e)).ok())
            .collect();
        let verify = |claim| self.claims_to_verify.as_ref().is_some_and(|list| list.contains(&claim));
        let (exp, nbf) = (verify(TimeClaim::Exp), verify(TimeClaim::Nbf));
        let issued = self.issuer.is_some() || self.jwks_uri.is_some();
        if self.maximum_expiration > 0.0 && !exp {
            errors.push(wrong(at, "maximum_expiration", "`maximum_expiration` needs `exp` in `claims_to_verify`"));
        }
        if self.realm.as_deref().is_some_and(|realm| !is_realm(realm)) {
            errors.push(wrong(at, "realm", "a realm has no quotes, backslashes or characters beyond ASCII"));
        }
        for (key, set) in [
            ("audience", !self.audience.is_empty()),
            ("consumer_claim", self.consumer_claim.is_some()),
            ("groups_claim", self.groups_claim.is_some()),
        ] {
            if set && !issued {
                errors.push(wrong(at, key, format!("`{key}` is of tokens of an `issuer` or `jwks_uri`, and there is none")));
            }
        }
        for (key, time) in [("jwks_refresh", self.jwks_refresh), ("jwks_min_interval", self.jwks_min_interval)] {
            if time.get().as_secs() == 0 {
                errors.push(wrong(at, key, "at least a second"));
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let source = issued.then(|| Source {
            jwks_uri: self.jwks_uri,
            issuer: self.issuer,
            refresh: self.jwks_refresh.get(),
            every: self.jwks_min_interval.get(),
        });
        Ok(Rules {
            params: self.uri_param_names,
            cookies: self.cookie_names,
            headers,
            key_claim: self.key_claim_name,
            base64: self.secret_is_base64,
            exp,
            nbf,
            maximum: self.maximum_expiration,
            run_on_preflight: self.run_on_preflight,
            anonymous: self.anonymous,
            realm: self.realm,
            source,
            audience: self.audience,
            consumer_claim: self.consumer_claim,
            groups_claim: self.groups_claim,
        })
    }

    fn build(mut ready: Rules, env: &BuildEnv<'_>, live: &Live) -> Arc<dyn Plugin> {
        let index = live.credentials.of(env.consumers);
        let gate = Gate::new(BY, ready.anonymous.take(), ready.run_on_preflight, &index, env);
        let set = ready.source.clone().map(|source| live.key_sets.of(source, &env.environment.client));
        Arc::new(Jwt { rules: ready, index, gate, set })
    }
}

/// The configuration, checked.
pub struct Rules {
    params: Vec<String>,
    cookies: Vec<String>,
    headers: Vec<HeaderName>,
    key_claim: String,
    base64: bool,
    exp: bool,
    nbf: bool,
    maximum: f64,
    run_on_preflight: bool,
    anonymous: Option<String>,
    realm: Option<String>,
    source: Option<Source>,
    audience: Vec<String>,
    consumer_claim: Option<String>,
    groups_claim: Option<String>,
}

struct Jwt {
    rules: Rules,
    index: Arc<Index>,
    gate: Gate,
    set: Option<Arc<KeySet>>,
}

/// Why a request does not pass.
enum Refusal {
    /// It has no token.
    Missing,
    /// Its token is not good.
    Invalid(String),
    /// Its token's times are not good, by claim.
    Times(Claims),
    /// Nobody can say.
    Away,
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::Invalid(message.into())
}

/// What the consumers' keys say of a token.
enum Local {
    /// Let it pass.
    Known(Caller),
    /// No consumer has the key that it names; the words for that.
    Foreign(String),
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl Jwt {
    /// The request's one token. The same token in several places is one.
    fn token(&self, headers: &HeaderMap, query: Option<&str>) -> Result<String, Refusal> {
        let mut found: Vec<String> = Vec::new();
        for name in &self.rules.params {
            found.extend(query::values(query.unwrap_or_default(), name));
        }
        for name in &self.rules.cookies {
            found.extend(cookies::named(headers, name).map(str::to_owned));
        }
        for name in &self.rules.headers {
            found.extend(headers.get_all(name).iter().filter_map(|v| bearer(v.to_str().ok()?)).map(str::to_owned));
        }
        found.retain(|token| !token.is_empty());
        found.dedup();
        match found.as_slice() {
            [] => Err(Refusal::Missing),
            [first, rest @ ..] if rest.iter().all(|token| token == first) => Ok(found.swap_remove(0)),
            _ => Err(invalid("Multiple tokens provided")),
        }
    }

    /// Kong's way: the token names a credential of a consumer.
    fn local(&self, token: &Token<'_>) -> Result<Local, Refusal> {
        let name = &self.rules.key_claim;
        let key = match token.claim(name) {
            None => return Ok(Local::Foreign(format!("No mandatory '{name}' in claims"))),
            Some(Value::String(key)) if !key.is_empty() => key,
            Some(_) => return Ok(Local::Foreign(format!("Invalid '{name}' in claims"))),
        };
        let Some((consumer, credential)) = self.index.token(key) else {
            return Ok(Local::Foreign(format!("No credentials found for given '{name}'")));
        };
        if credential.alg != Some(token.alg) {
            return Err(invalid("Invalid algorithm"));
        }
        let signer = credential.key(self.rules.base64).ok_or_else(|| invalid("Invalid key/secret"))?;
        if !signer.verifies(token.message.as_bytes(), &token.signature) {
            return Err(invalid("Invalid signature"));
        }
        self.times(&token.claims, self.rules.exp, self.rules.nbf)?;
        let mut caller = Caller::known(consumer, key);
        if let Some(identity) = caller.identity.as_mut().and_then(Arc::get_mut) {
            identity.claims = Some(Arc::new(token.claims.clone()));
        }
        Ok(Local::Known(caller))
    }

    fn times(&self, claims: &Claims, exp: bool, nbf: bool) -> Result<(), Refusal> {
        let errors = times(claims, exp, nbf, self.rules.maximum, now());
        if errors.is_empty() { Ok(()) } else { Err(Refusal::Times(errors)) }
    }

    /// The issuer's way.
    async fn issued(&self, cx: &mut RequestContext, set: &Arc<KeySet>, token: Token<'_>) -> Result<Caller, Refusal> {
        set.verify(&token).await.map_err(|bad| match bad {
            Bad::Unknown => invalid("No credentials found for given 'kid'"),
            Bad::Signature => invalid("Invalid signature"),
            Bad::Away => Refusal::Away,
        })?;
        let claims = token.claims;
        let issuer = self.rules.source.as_ref().and_then(|s| s.issuer.as_deref());
        if issuer.is_some() && claims.get("iss").and_then(Value::as_str) != issuer {
            return Err(invalid("Invalid issuer"));
        }
        if !self.rules.audience.is_empty() {
            let meant = |aud: &Value| aud.as_str().is_some_and(|aud| self.rules.audience.iter().any(|a| a == aud));
            let fits = match claims.get("aud") {
                Some(Value::Array(several)) => several.iter().any(meant),
                Some(one) => meant(one),
                None => false,
            };
            if !fits {
                return Err(invalid("Invalid audience"));
            }
        }
        self.times(&claims, true, self.rules.nbf || claims.contains_key("nbf"))?;
        let mut consumer = None;
        if let Some(name) = &self.rules.consumer_claim {
            let value = at_path(&claims, name).and_then(Value::as_str).unwrap_or_default();
            let found = self.index.claimed(value).ok_or_else(|| invalid(format!("Could not find consumer for '{name}={value}'")))?;
            consumer = Some(found.clone());
        }
        if let Some(name) = &self.rules.groups_claim {
            let groups = at_path(&claims, name).map(words).unwrap_or_default();
            cx.state.insert(Groups(Arc::new(groups)));
        }
        let text = |name: &str| claims.get(name).and_then(Value::as_str).map(str::to_owned);
        let subject = text("sub").unwrap_or_default();
        let credential = text("jti").or_else(|| Some(subject.clone()).filter(|s| !s.is_empty()));
        Ok(Caller { consumer, identity: Some(Arc::new(Identity { subject, credential, claims: Some(Arc::new(claims)) })) })
    }

    async fn check(&self, cx: &mut RequestContext, req: &request::Parts) -> Result<Caller, Refusal> {
        let text = self.token(&req.headers, req.uri.query())?;
        let token = Token::parse(&text).map_err(|why| invalid(format!("Bad token; {why}")))?;
        let caller = match (self.local(&token)?, &self.set) {
            (Local::Known(caller), _) => caller,
            (Local::Foreign(_), Some(set)) => self.issued(cx, set, token).await?,
            (Local::Foreign(why), None) => return Err(invalid(why)),
        };
        leave(cx, text);
        Ok(caller)
    }

    fn check_local(&self, cx: &mut RequestContext, req: &request::Parts) -> Result<Caller, Refusal> {
        let text = self.token(&req.headers, req.uri.query())?;
        let token = Token::parse(&text).map_err(|why| invalid(format!("Bad token; {why}")))?;
        match self.local(&token)? {
            Local::Known(caller) => {
                leave(cx, text);
                Ok(caller)
            }
            Local::Foreign(why) => Err(invalid(why)),
        }
    }

    fn reply(&self, refusal: &Refusal) -> Reply {
        let base = challenge("Bearer", self.rules.realm.as_deref());
        let comma = if self.rules.realm.is_some() { "," } else { "" };
        let bad = format!("{base}{comma} error=\"invalid_token\"");
        let reply = match refusal {
            Refusal::Missing => Reply::message(BY, StatusCode::UNAUTHORIZED, "Unauthorized").with("www-authenticate", &base),
            Refusal::Invalid(why) => Reply::message(BY, StatusCode::UNAUTHORIZED, why).with("www-authenticate", &bad),
            Refusal::Times(errors) => Reply::json(BY, StatusCode::UNAUTHORIZED, &json!(errors)).with("www-authenticate", &bad),
            Refusal::Away => {
                Reply::message(BY, StatusCode::SERVICE_UNAVAILABLE, "The keys of the token's issuer can not be fetched").with("retry-after", "1")
            }
        };
        reply.with("cache-control", "no-store")
    }
}

#[async_trait]
impl Plugin for Jwt {
    fn phases(&self) -> Phases {
        if self.set.is_some() { Phases::REQUEST_WAIT } else { Phases::REQUEST }
    }

    fn sees_of_request(&self) -> Sight {
        Sight::Only(self.rules.headers.iter().cloned().chain([header::COOKIE, header::ACCEPT]).collect())
    }

    fn request(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        if self.gate.steps_back(cx, &req.method) {
            return Flow::Continue;
        }
        let found = self.check_local(cx, req).map_err(|refusal| self.reply(&refusal));
        self.gate.decide(cx, found)
    }

    async fn request_wait(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        if self.gate.steps_back(cx, &req.method) {
            return Flow::Continue;
        }
        let found = self.check(cx, req).await.map_err(|refusal| self.reply(&refusal));
        self.gate.decide(cx, found)
    }
}

/// The token for other plugins, by Kong's name.
fn leave(cx: &mut RequestContext, token: String) {
    cx.shared.insert("authenticated_jwt_token".into(), token.into());
}

/// The token of a `Bearer` field.
fn bearer(field: &str) -> Option<&str> {
    let (scheme, token) = field.trim().split_once(char::is_whitespace)?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// A claim by its name, or by its path.
fn at_path<'a>(claims: &'a Claims, path: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(path) {
        return Some(value);
    }
    let mut parts = path.split('.');
    let first = claims.get(parts.next()?)?;
    parts.try_fold(first, |value, part| value.get(part))
}

/// A list, or words between spaces.
fn words(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => text.split_whitespace().map(str::to_owned).collect(),
        Value::Array(items) => items.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => vec![],
    }
}

#[cfg(test)]
pub(crate) mod tests;
