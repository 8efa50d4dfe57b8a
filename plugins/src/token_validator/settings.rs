//! The configuration, and what is compiled of it.

use super::{Claims, at_path, introspect::Service, keys::{Fixed, Issuer, IssuerKeys, Key, Keys}, logout};
use crate::{header_name, jwt::{key_set, keys}, own_name, wrong};
use http::HeaderName;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use weir_config::{Diagnostic, Millis, Node, Secret};

/// Lets only requests with a valid bearer token (JWT, RFC 7519) pass, and tells the upstream who calls. A token is verified once and then
/// remembered by a keyed hash until it expires, or until it is logged out. The algorithm is fixed by the key, never chosen by
/// the token: HS, RS, PS and ES with 256, 384 or 512, and EdDSA (Ed25519); `none`, keys inside tokens (`jwk`, `jku`, `x5c`, `x5u`), critical
/// extensions (`crit`) and tokens over 8 KB are refused. Without a token or with a bad one the answer is 401, without the needed scope or
/// role 403, both with `WWW-Authenticate` (RFC 6750); 503 when the auth service or an issuer's keys are needed and can not be had.
///
/// A logout ends a token at once on all instances: a request to one of `logout.paths` that the service answered with 2xx or 3xx, or the
/// admin call `POST /logout` with `{"token": …}`, `{"jti": …}` or `{"sha256": …}`, marks the token in the store and tells all instances. An
/// instance that was not there to hear (it was just started, or cut off) finds the mark when it sees the token for the first time. Where
/// the store does not answer, tokens go on by their signature.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Key of HMAC tokens (HS256 unless `algorithms` says otherwise). At least 32 bytes are advised.
    pub secret: Option<Secret>,
    /// Public key in PEM: RSA (RS256 unless `algorithms` says otherwise), P-256 (ES256), P-384 (ES384), P-521 (ES512) or Ed25519 (EdDSA).
    pub public_key: Option<String>,
    /// Keys by the `kid` that tokens name. `secret` or `public_key` serve tokens without `kid` or with one that is not here.
    pub keys: BTreeMap<String, KeyConfig>,
    /// Algorithms accepted for `secret` or `public_key`; they must suit the key.
    pub algorithms: Vec<Alg>,
    /// Accepted `iss` of tokens under `secret`, `public_key` and `keys`, one or several. Empty: any.
    pub issuer: Words,
    /// Issuers with keys of their own: a token whose `iss` is one of them is verified by that issuer's keys and no others.
    pub issuers: Vec<IssuerConfig>,
    /// How key sets of `issuers` are fetched.
    pub jwks: Jwks,
    /// Accepted `aud`, one or several; a token must name one of them. Empty: `aud` is not looked at.
    pub audience: Words,
    /// By how much clocks may differ when `exp` and `nbf` are looked at. At most a day.
    pub leeway: Millis,
    /// Claims that a token must have. Default: `exp`; none with `mode: introspect`.
    pub required_claims: Option<Vec<String>>,
    /// Scopes that a token must have, all of them.
    pub scopes: Vec<String>,
    /// Roles of which a token must have one.
    pub roles: Vec<String>,
    /// Claims that hold scopes, as a list or between spaces; dots reach inside.
    pub scope_claims: Vec<String>,
    /// Claims that hold roles, as a list or between spaces; dots reach inside.
    pub role_claims: Vec<String>,
    /// Where tokens are looked for. Two places with different tokens are refused, for another part of the system may read the other one.
    #[schemars(length(min = 1))]
    pub sources: Vec<Source>,
    /// The auth service that is asked whether a token is still good.
    pub introspect: Option<Introspect>,
    /// What is remembered.
    pub cache: Memo,
    /// Headers for the upstream, each with the claim it is made of (`realm_access.roles` reaches inside). They are always removed from
    /// what clients send.
    pub identity_headers: BTreeMap<String, String>,
    /// Let requests without a token pass, without identity. A bad token is still refused.
    pub anonymous: bool,
    /// `realm` of `WWW-Authenticate`.
    pub realm: String,
    /// Logout.
    pub logout: Logout,
}

/// One key.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KeyConfig {
    /// Key of HMAC tokens.
    pub secret: Option<Secret>,
    /// Public key in PEM.
    pub public_key: Option<String>,
    /// Algorithms accepted for it; they must suit the key.
    pub algorithms: Vec<Alg>,
}

/// An issuer.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IssuerConfig {
    /// `iss` of its tokens, exactly. Without `keys` and `jwks_uri`, its keys are found by OpenID Connect Discovery
    /// (`<issuer>/.well-known/openid-configuration`).
    pub issuer: String,
    /// Where its key set is.
    #[serde(default)]
    #[schemars(extend("format" = "weir-url"))]
    pub jwks_uri: Option<String>,
    /// Its keys by `kid`, if they are not to be fetched.
    #[serde(default)]
    pub keys: BTreeMap<String, KeyConfig>,
    /// Algorithms accepted of a fetched key set. Empty: those that its keys are for.
    #[serde(default)]
    pub algorithms: Vec<Alg>,
    /// Accepted `aud`, in place of `audience`.
    #[serde(default)]
    pub audience: Words,
}

/// How key sets are fetched: with the first token of their issuer, then in the background, and at once when a token names a key that
/// is not there; never two fetches of one set at a time.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Jwks {
    /// Between two fetches in the background. When they fail the old keys stay, for a day at most.
    pub refresh: Millis,
    /// Shortest time between two fetches that unknown keys cause.
    pub min_interval: Millis,
}

/// A signature algorithm (RFC 7518, RFC 8037).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum Alg {
    /// HMAC with SHA-256.
    HS256,
    /// HMAC with SHA-384.
    HS384,
    /// HMAC with SHA-512.
    HS512,
    /// RSA with SHA-256.
    RS256,
    /// RSA with SHA-384.
    RS384,
    /// RSA with SHA-512.
    RS512,
    /// RSA-PSS with SHA-256.
    PS256,
    /// RSA-PSS with SHA-384.
    PS384,
    /// RSA-PSS with SHA-512.
    PS512,
    /// ECDSA on P-256.
    ES256,
    /// ECDSA on P-384.
    ES384,
    /// ECDSA on P-521.
    ES512,
    /// Ed25519.
    EdDSA,
}

impl Alg {
    fn get(self) -> keys::Alg {
        match self {
            Alg::HS256 => keys::Alg::HS256,
            Alg::HS384 => keys::Alg::HS384,
            Alg::HS512 => keys::Alg::HS512,
            Alg::RS256 => keys::Alg::RS256,
            Alg::RS384 => keys::Alg::RS384,
            Alg::RS512 => keys::Alg::RS512,
            Alg::PS256 => keys::Alg::PS256,
            Alg::PS384 => keys::Alg::PS384,
            Alg::PS512 => keys::Alg::PS512,
            Alg::ES256 => keys::Alg::ES256,
            Alg::ES384 => keys::Alg::ES384,
            Alg::ES512 => keys::Alg::ES512,
            Alg::EdDSA => keys::Alg::EdDSA,
        }
    }
}

/// One text, or a list of them.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Words {
    /// One.
    One(String),
    /// Several, or none.
    Many(Vec<String>),
}

impl Default for Words {
    fn default() -> Self {
        Words::Many(vec![])
    }
}

impl Words {
    fn list(self) -> Vec<String> {
        match self {
            Words::One(word) => vec![word],
            Words::Many(words) => words,
        }
    }
}

/// Where a token may be.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// In this header: after `Bearer`; in headers other than `Authorization`, the token may also stand alone.
    Header(String),
    /// In this cookie.
    Cookie(String),
    /// In this parameter of the query.
    Query(String),
}

/// The auth service.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Introspect {
    /// Its address, such as `http://auth:4000/api/auth/verify`.
    #[schemars(extend("format" = "weir-url"))]
    pub url: String,
    /// What it speaks.
    #[serde(default)]
    pub protocol: Protocol,
    /// How it is asked. `rfc7662` always posts.
    #[serde(default)]
    pub method: Verb,
    /// With `rfc7662`: name by which Weir itself is known there, for `Authorization: Basic`.
    #[serde(default)]
    pub client_id: Option<String>,
    /// With `rfc7662`: its secret; without `client_id` it is sent as `Authorization: Bearer`.
    #[serde(default)]
    pub client_secret: Option<Secret>,
    /// Longest wait.
    #[serde(default = "d_timeout")]
    pub timeout: Millis,
    /// Who decides.
    #[serde(default)]
    pub mode: Mode,
    /// How long tokens that were found good may go on past `cache.ttl` while the service does not answer. Never past `exp`.
    #[serde(default)]
    pub grace: Millis,
}

/// What the auth service speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// It is asked with the token as `Authorization: Bearer`. 200 means good (unless its JSON says `active: false` or `valid: false`); 400,
    /// 401 and 403 mean bad; anything else means that it can not say, and the request gets 503.
    #[default]
    Verify,
    /// Token introspection: the token is posted in a form, and the answer's `active` decides. 400, 401 and 403 then mean that Weir itself is
    /// refused, and the request gets 503.
    Rfc7662,
}

/// How the auth service is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verb {
    /// `GET`.
    #[default]
    Get,
    /// `POST`, without a body.
    Post,
}

/// Who decides whether a token is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum Mode {
    /// The keys here.
    #[serde(rename = "local")]
    Local,
    /// The auth service alone; tokens may be of any form. Its answer's JSON is taken as the claims, which `issuer`, `audience`, `exp` and the
    /// others are looked for in.
    #[serde(rename = "introspect")]
    Introspect,
    /// Both: the keys first, so that forged tokens do not reach the service.
    #[default]
    #[serde(rename = "local+introspect")]
    Both,
}

/// What is remembered of tokens. The tokens themselves are not kept.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Memo {
    /// Good tokens that are remembered at once.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub size: usize,
    /// How long a good token is remembered, at most until its `exp`. Default: until then; an hour where a token has none.
    pub ttl: Option<Millis>,
    /// How long a bad one is remembered.
    pub negative_ttl: Millis,
}

/// Logout messages, by which tokens end before their time on all instances.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Logout {
    /// The store's channel (in Redis: `<prefix>bus:<database>:<channel>`). A message is a token's `jti`, or the SHA-256 in hex of the token, or
    /// of the token without its last dot and signature.
    pub channel: String,
    /// Paths whose requests log their token out, once the service has answered with 2xx or 3xx.
    pub paths: Vec<String>,
    /// How long a logged-out token stays refused: not less than tokens live.
    pub keep: Millis,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            secret: None,
            public_key: None,
            keys: BTreeMap::new(),
            algorithms: vec![],
            issuer: Words::default(),
            issuers: vec![],
            jwks: Jwks::default(),
            audience: Words::default(),
            leeway: Millis::secs(30),
            required_claims: None,
            scopes: vec![],
            roles: vec![],
            scope_claims: ["scope", "scp", "scopes"].map(Into::into).into(),
            role_claims: ["roles", "role", "realm_access.roles"].map(Into::into).into(),
            sources: vec![Source::Header("Authorization".into())],
            introspect: None,
            cache: Memo::default(),
            identity_headers: BTreeMap::from([("X-User-Id".into(), "sub".into())]),
            anonymous: false,
            realm: "api".into(),
            logout: Logout::default(),
        }
    }
}

impl Default for Memo {
    fn default() -> Self {
        Memo { size: 100_000, ttl: None, negative_ttl: Millis::secs(5) }
    }
}

impl Default for Jwks {
    fn default() -> Self {
        Jwks { refresh: Millis::secs(300), min_interval: Millis::secs(10) }
    }
}

impl Default for Logout {
    fn default() -> Self {
        Logout { channel: "logout".into(), paths: vec![], keep: Millis::secs(logout::KEPT) }
    }
}

fn d_timeout() -> Millis {
    Millis::secs(2)
}

/// The configuration, compiled. Times are in seconds.
pub struct Rules {
    pub(super) keys: Keys,
    pub(super) mode: Mode,
    pub(super) service: Option<Service>,
    pub(super) sources: Vec<FoundIn>,
    pub(super) scopes: Vec<String>,
    pub(super) roles: Vec<String>,
    scope_claims: Vec<String>,
    role_claims: Vec<String>,
    pub(super) identity_headers: Vec<(HeaderName, String)>,
    pub(super) anonymous: bool,
    pub(super) realm: String,
    pub(super) logout_channel: String,
    pub(super) logout_keep: u64,
    pub(super) logout_paths: Vec<String>,
    pub(super) size: usize,
    pub(super) ttl: Option<u64>,
    pub(super) negative_ttl: u64,
    pub(super) grace: u64,
    /// Of all of the above: what was remembered under other rules does not count.
    pub(super) fingerprint: [u8; 32],
}

/// A source, compiled.
pub(super) enum FoundIn {
    Header(HeaderName),
    Cookie(String),
    Query(String),
}

impl Rules {
    /// Whether the claims have the scopes and a role.
    pub(super) fn permits(&self, claims: &Claims) -> bool {
        let has = |paths: &[String], word: &str| paths.iter().filter_map(|p| at_path(claims, p)).any(|value| holds(value, word));
        let scoped = self.scopes.iter().all(|scope| has(&self.scope_claims, scope));
        scoped && (self.roles.is_empty() || self.roles.iter().any(|role| has(&self.role_claims, role)))
    }
}

/// Whether a claim, a list or words between spaces, holds `word`.
fn holds(value: &Value, word: &str) -> bool {
    match value {
        Value::String(words) => words.split(' ').any(|w| w == word),
        Value::Array(items) => items.iter().any(|item| item.as_str() == Some(word)),
        _ => false,
    }
}

/// Makes keys of what is written, and collects the mistakes.
struct Made<'a> {
    errors: &'a mut Vec<Diagnostic>,
}

impl Made<'_> {
    fn key(&mut self, at: &Node, secret: Option<&Secret>, pem: Option<&str>, algorithms: &[Alg]) -> Option<Key> {
        let algorithms: Vec<keys::Alg> = algorithms.iter().map(|a| a.get()).collect();
        let made = match (secret, pem) {
            (Some(_), Some(_)) => Err(wrong(at, "public_key", "`secret` or `public_key`, not both")),
            (Some(secret), None) => Key::hmac(secret.expose().as_bytes(), &algorithms).map_err(|why| wrong(at, "secret", why)),
            (None, Some(pem)) => Key::public(pem, &algorithms).map_err(|why| wrong(at, "public_key", why)),
            (None, None) => Err(wrong(at, "", "`secret` or `public_key` is wanted")),
        };
        made.map_err(|e| self.errors.push(e)).ok()
    }

    fn by_kid(&mut self, at: &Node, keys: &BTreeMap<String, KeyConfig>) -> BTreeMap<String, Key> {
        let made = keys.iter().filter_map(|(kid, key)| {
            let place = at.get("keys").and_then(|k| k.get(kid)).unwrap_or(at);
            let made = self.key(place, key.secret.as_ref(), key.public_key.as_deref(), &key.algorithms)?;
            Some((kid.clone(), made))
        });
        made.collect()
    }

    fn issuer(&mut self, at: &Node, config: IssuerConfig, jwks: &Jwks) -> Issuer {
        let keys = match (config.keys.is_empty(), config.jwks_uri) {
            (false, None) => IssuerKeys::Fixed(Fixed { default: None, by_kid: self.by_kid(at, &config.keys) }),
            (fetched, jwks_uri) => {
                if !fetched {
                    self.errors.push(wrong(at, "jwks_uri", "`keys` or `jwks_uri`, not both"));
                }
                let from = jwks_uri.as_ref().unwrap_or(&config.issuer);
                if !from.starts_with("http://") && !from.starts_with("https://") {
                    self.errors.push(wrong(at, "issuer", "its keys can not be found by discovery, for it is no URL: `jwks_uri` or `keys` is wanted"));
                }
                if let Some(odd) = config.algorithms.iter().find(|alg| matches!(alg, Alg::HS256 | Alg::HS384 | Alg::HS512)) {
                    self.errors.push(wrong(at, "algorithms", format!("{odd:?} is not for fetched keys: who can fetch the key could sign")));
                }
                IssuerKeys::At(key_set::Source {
                    jwks_uri,
                    issuer: Some(config.issuer.clone()),
                    refresh: jwks.refresh.get(),
                    every: jwks.min_interval.get(),
                })
            }
        };
        Issuer { name: config.issuer, keys, audience: config.audience.list(), algorithms: config.algorithms.into_iter().map(Alg::get).collect() }
    }
}

pub(super) fn ready(config: Config, at: &Node) -> Result<Rules, Vec<Diagnostic>> {
    let mut errors = Vec::new();
    let mut made = Made { errors: &mut errors };
    let mut own = Fixed { default: None, by_kid: made.by_kid(at, &config.keys) };
    if config.secret.is_some() || config.public_key.is_some() {
        own.default = made.key(at, config.secret.as_ref(), config.public_key.as_deref(), &config.algorithms);
    }
    let mut issuers: Vec<Issuer> = Vec::new();
    for (i, issuer) in config.issuers.into_iter().enumerate() {
        let place = at.get("issuers").and_then(|list| list.items().get(i)).unwrap_or(at);
        if issuers.iter().any(|other| other.name == issuer.issuer) {
            made.errors.push(wrong(place, "issuer", "this issuer is there twice"));
        }
        issuers.push(made.issuer(place, issuer, &config.jwks));
    }
    let mode = config.introspect.as_ref().map_or(Mode::Local, |i| i.mode);
    let no_key = config.secret.is_none() && config.public_key.is_none() && config.keys.is_empty() && issuers.is_empty();
    if mode != Mode::Introspect && no_key {
        errors.push(wrong(at, "", "a key is wanted: `secret`, `public_key`, `keys` or `issuers`, or `introspect` with `mode: introspect`"));
    }
    if config.leeway.get().as_secs() > 86_400 {
        errors.push(wrong(at, "leeway", "at most a day"));
    }
    for (key, time) in [("refresh", config.jwks.refresh), ("min_interval", config.jwks.min_interval)] {
        if time.get().as_secs() == 0 {
            errors.push(wrong(at.get("jwks").unwrap_or(at), key, "at least a second"));
        }
    }
    let keys = Keys {
        own,
        issuers,
        required: config.required_claims.unwrap_or_else(|| if mode == Mode::Introspect { vec![] } else { vec!["exp".into()] }),
        accepted: config.issuer.list(),
        audience: config.audience.list(),
        leeway: config.leeway.get().as_secs(),
    };
    let service = config.introspect.as_ref().and_then(|i| Service::new(i).map_err(|why| errors.push(wrong(at, "introspect", why))).ok());
    let mut sources = Vec::new();
    for source in config.sources {
        match source {
            Source::Header(name) => match header_name(at, "sources", &name) {
                Ok(name) => sources.push(FoundIn::Header(name)),
                Err(error) => errors.push(error),
            },
            Source::Cookie(name) => sources.push(FoundIn::Cookie(name)),
            Source::Query(name) => sources.push(FoundIn::Query(name)),
        }
    }
    if sources.is_empty() && errors.is_empty() {
        errors.push(wrong(at, "sources", "at least one source is wanted"));
    }
    let mut identity_headers = Vec::new();
    for (name, claim) in config.identity_headers {
        match own_name(at, "identity_headers", &name) {
            Ok(name) => identity_headers.push((name, claim)),
            Err(error) => errors.push(error),
        }
    }
    if config.realm.contains(['"', '\\']) || !config.realm.chars().all(|c| matches!(c, ' '..='~')) {
        errors.push(wrong(at, "realm", "a realm has no quotes, backslashes or characters beyond ASCII"));
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    Ok(Rules {
        keys,
        mode,
        service,
        sources,
        scopes: config.scopes,
        roles: config.roles,
        scope_claims: config.scope_claims,
        role_claims: config.role_claims,
        identity_headers,
        anonymous: config.anonymous,
        realm: config.realm,
        logout_channel: config.logout.channel,
        logout_keep: config.logout.keep.get().as_secs().max(1),
        logout_paths: config.logout.paths,
        size: config.cache.size.clamp(1, 10_000_000),
        ttl: config.cache.ttl.map(|t| t.get().as_secs()),
        negative_ttl: config.cache.negative_ttl.get().as_secs(),
        grace: config.introspect.map_or(0, |i| i.grace.get().as_secs()),
        fingerprint: Sha256::digest(at.to_json().to_string()).into(),
    })
}
