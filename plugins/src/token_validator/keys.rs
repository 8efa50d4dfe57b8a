//! Which key is for a token, and what must hold for its claims.
//!
//! ```text
//! token ─► its `iss` is one of `issuers`? ─yes─► that issuer's keys by `kid`: fixed, or a key set that is fetched
//!                    └─ no ─► `secret`, `public_key`, `keys`, if there are any; else refused
//! ```
//! Signatures are verified by the keys of [`crate::jwt::keys`], which stand on the same library as `jsonwebtoken`; that crate itself knows no ES512.

use super::{Claims, Refusal, invalid, seconds};
use crate::jwt::{
    key_set::{Bad, KeySet, KeySets, Source},
    keys::{self, Alg},
    token::Token,
};
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc};
use weir_gateway::client::OwnClient;

/// A key with the algorithms that it is for.
pub(super) struct Key {
    keys: Vec<(Alg, keys::Key)>,
    /// Shorter than the hash (RFC 7518 section 3.2 wants at least its 32 bytes): may be guessed from one token.
    pub(super) weak: bool,
}

/// The kinds of public keys, each with its algorithms; the first is the default.
const KINDS: [(&str, &[Alg]); 5] = [
    ("an RSA key", &[Alg::RS256, Alg::RS384, Alg::RS512, Alg::PS256, Alg::PS384, Alg::PS512]),
    ("a P-256 key", &[Alg::ES256]),
    ("a P-384 key", &[Alg::ES384]),
    ("a P-521 key", &[Alg::ES512]),
    ("an Ed25519 key", &[Alg::EdDSA]),
];

impl Key {
    /// An HMAC key; HS256 if no algorithm is given.
    pub(super) fn hmac(secret: &[u8], algorithms: &[Alg]) -> Result<Key, String> {
        if secret.is_empty() {
            return Err("the secret is empty".into());
        }
        let make = |alg| keys::Key::secret(alg, secret);
        Key::new("an HMAC secret", Alg::HS256, algorithms, make).map(|key| Key { weak: secret.len() < 32, ..key })
    }

    /// A public key in PEM; its kind gives the algorithm if none is given.
    pub(super) fn public(pem: &str, algorithms: &[Alg]) -> Result<Key, String> {
        if pem.contains("PRIVATE KEY") {
            return Err("this is a private key: only the public key belongs here".into());
        }
        let Some((kind, own)) = KINDS.iter().find(|(_, algs)| keys::Key::pem(algs[0], pem).is_some()) else {
            return Err("this is not a public key in PEM (RSA of at least 2048 bits, P-256, P-384, P-521 or Ed25519)".into());
        };
        Key::new(kind, own[0], algorithms, |alg| own.contains(&alg).then(|| keys::Key::pem(alg, pem)).flatten())
    }

    fn new(kind: &str, own: Alg, algorithms: &[Alg], make: impl Fn(Alg) -> Option<keys::Key>) -> Result<Key, String> {
        let wanted = if algorithms.is_empty() { &[own][..] } else { algorithms };
        let mut keys = Vec::new();
        for alg in wanted {
            keys.push((*alg, make(*alg).ok_or_else(|| format!("{alg:?} does not go with {kind}"))?));
        }
        Ok(Key { keys, weak: false })
    }

    fn check(&self, token: &Token<'_>) -> Result<(), Refusal> {
        let Some((_, key)) = self.keys.iter().find(|(alg, _)| *alg == token.alg) else {
            return Err(invalid("the token's algorithm is not accepted"));
        };
        match key.verifies(token.message.as_bytes(), &token.signature) {
            true => Ok(()),
            false => Err(invalid("the token's signature does not match")),
        }
    }
}

/// Keys that stand in the configuration.
#[derive(Default)]
pub(super) struct Fixed {
    pub(super) default: Option<Key>,
    pub(super) by_kid: BTreeMap<String, Key>,
}

impl Fixed {
    pub(super) fn is_empty(&self) -> bool {
        self.default.is_none() && self.by_kid.is_empty()
    }

    pub(super) fn has_weak(&self) -> bool {
        self.default.iter().chain(self.by_kid.values()).any(|key| key.weak)
    }

    fn check(&self, token: &Token<'_>) -> Result<(), Refusal> {
        let only = || if self.by_kid.len() == 1 { self.by_kid.values().next() } else { None };
        let key = match kid(token) {
            Some(kid) => self.by_kid.get(kid).or(self.default.as_ref()),
            None => self.default.as_ref().or_else(only),
        };
        key.ok_or_else(unknown_key)?.check(token)
    }
}

/// One of `issuers`.
pub(super) struct Issuer {
    pub(super) name: String,
    pub(super) keys: IssuerKeys,
    /// In place of the plugin's, if not empty.
    pub(super) audience: Vec<String>,
    /// Accepted of a fetched set; empty: any that its keys are for.
    pub(super) algorithms: Vec<Alg>,
}

/// Where an issuer's keys are.
pub(super) enum IssuerKeys {
    /// In the configuration.
    Fixed(Fixed),
    /// To be fetched.
    At(Source),
    /// Fetched and kept.
    Set(Arc<KeySet>),
}

impl Issuer {
    async fn check(&self, token: &Token<'_>) -> Result<(), Refusal> {
        let set = match &self.keys {
            IssuerKeys::Fixed(keys) => return keys.check(token),
            IssuerKeys::At(_) => return Err(Refusal::Away(NO_KEYS)),
            IssuerKeys::Set(set) => set,
        };
        if !self.algorithms.is_empty() && !self.algorithms.contains(&token.alg) {
            return Err(invalid("the token's algorithm is not accepted"));
        }
        set.verify(token).await.map_err(|bad| match bad {
            Bad::Unknown => unknown_key(),
            Bad::Signature => invalid("the token's signature does not match"),
            Bad::Away => Refusal::Away(NO_KEYS),
        })
    }
}

const NO_KEYS: &str = "The keys of the token's issuer can not be fetched";

/// All keys, and what else must hold for a token.
pub(super) struct Keys {
    pub(super) own: Fixed,
    pub(super) issuers: Vec<Issuer>,
    pub(super) required: Vec<String>,
    /// Accepted of tokens under `own`; empty: any.
    pub(super) accepted: Vec<String>,
    pub(super) audience: Vec<String>,
    /// In seconds.
    pub(super) leeway: u64,
}

impl Keys {
    /// Gives the issuers their key sets.
    pub(super) fn connect(&mut self, sets: &KeySets, client: &OwnClient) {
        for issuer in &mut self.issuers {
            if let IssuerKeys::At(source) = &issuer.keys {
                issuer.keys = IssuerKeys::Set(sets.of(source.clone(), client));
            }
        }
    }

    /// The claims of a token whose signature and claims are good; `now` in seconds since 1970.
    pub(super) async fn verify(&self, text: &str, now: u64) -> Result<Claims, Refusal> {
        let token = parse(text)?;
        let iss = token.claims.get("iss").and_then(Value::as_str);
        let issuer = self.issuers.iter().find(|issuer| Some(issuer.name.as_str()) == iss);
        match (issuer, iss) {
            (Some(issuer), _) => issuer.check(&token).await?,
            (None, _) if !self.own.is_empty() => self.own.check(&token)?,
            (None, Some(_)) => return Err(invalid("the token's issuer is not accepted")),
            (None, None) => return Err(missing("iss")),
        }
        self.check_claims(&token.claims, issuer, now)?;
        Ok(token.claims)
    }

    /// Looks at the claims of a token whose origin is known: `issuer`, or the configuration's own keys, or the auth service.
    pub(super) fn check_claims(&self, claims: &Claims, issuer: Option<&Issuer>, now: u64) -> Result<(), Refusal> {
        if let Some(name) = self.required.iter().find(|name| claims.get(*name).is_none_or(Value::is_null)) {
            return Err(missing(name));
        }
        let time = |name: &str| match claims.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => seconds(value).map(Some).ok_or_else(|| invalid(format!("the token's `{name}` is malformed"))),
        };
        if time("exp")?.is_some_and(|exp| exp.saturating_add(self.leeway) <= now) {
            return Err(invalid("the token has expired"));
        }
        if time("nbf")?.is_some_and(|nbf| nbf > now.saturating_add(self.leeway)) {
            return Err(invalid("the token is not valid yet"));
        }
        // A check that a token could escape by leaving the claim out would be none.
        if issuer.is_none() && !self.accepted.is_empty() {
            let iss = claims.get("iss").ok_or_else(|| missing("iss"))?;
            if !is_one_of(iss, &self.accepted) {
                return Err(invalid("the token's issuer is not accepted"));
            }
        }
        let audience = issuer.map(|issuer| &issuer.audience).filter(|own| !own.is_empty()).unwrap_or(&self.audience);
        if !audience.is_empty() {
            let fits = match claims.get("aud").ok_or_else(|| missing("aud"))? {
                Value::Array(several) => several.iter().any(|aud| is_one_of(aud, audience)),
                one => is_one_of(one, audience),
            };
            if !fits {
                return Err(invalid("the token is meant for another audience"));
            }
        }
        Ok(())
    }
}

fn parse(text: &str) -> Result<Token<'_>, Refusal> {
    // Padding is no part of a token (RFC 7515 section 2); with it, one token would have several spellings.
    let token = if text.contains('=') { Err("padding") } else { Token::parse(text) };
    let token = token.map_err(|why| match why {
        "critical extension" => invalid("the token has a critical extension"),
        _ => invalid("the token is malformed"),
    })?;
    if ["jwk", "jku", "x5c", "x5u"].iter().any(|name| token.header.contains_key(*name)) {
        return Err(invalid("the token brings a key of its own"));
    }
    if token.header.get("kid").is_some_and(|kid| !kid.is_string()) {
        return Err(invalid("the token is malformed"));
    }
    Ok(token)
}

fn kid<'a>(token: &'a Token<'_>) -> Option<&'a str> {
    token.header.get("kid").and_then(Value::as_str)
}

fn is_one_of(value: &Value, words: &[String]) -> bool {
    value.as_str().is_some_and(|text| words.iter().any(|word| word == text))
}

fn unknown_key() -> Refusal {
    invalid("the token's key is not known")
}

fn missing(claim: &str) -> Refusal {
    invalid(format!("the token has no `{claim}`"))
}
