//! Signature and claims of a JWT.

use super::{Claims, Refusal, invalid};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, Validation, decode, decode_header, errors::ErrorKind};
use std::collections::{BTreeMap, HashSet};

/// A key with the algorithms that it is for.
pub(super) struct Key {
    key: DecodingKey,
    algorithms: Vec<Algorithm>,
    /// Shorter than the hash (RFC 7518 section 3.2 wants at least its 32 bytes): may be guessed from one token.
    pub(super) weak: bool,
}

impl Key {
    /// An HMAC key; HS256 if no algorithm is given.
    pub(super) fn hmac(secret: &[u8], algorithms: &[Algorithm]) -> Result<Key, String> {
        if secret.is_empty() {
            return Err("the secret is empty".into());
        }
        Key::new(DecodingKey::from_secret(secret), Algorithm::HS256, algorithms).map(|key| Key { weak: secret.len() < 32, ..key })
    }

    /// A public key in PEM; its kind gives the algorithm if none is given.
    pub(super) fn public(pem: &str, algorithms: &[Algorithm]) -> Result<Key, String> {
        let bytes = pem.as_bytes();
        if pem.contains("PRIVATE KEY") {
            return Err("this is a private key: only the public key belongs here".into());
        }
        if let Ok(key) = DecodingKey::from_rsa_pem(bytes) {
            return Key::new(key, Algorithm::RS256, algorithms);
        }
        if let Ok(key) = DecodingKey::from_ec_pem(bytes) {
            // An uncompressed point: one byte, and two coordinates.
            let own = match key.try_get_as_bytes().map(<[u8]>::len) {
                Ok(65) => Algorithm::ES256,
                Ok(97) => Algorithm::ES384,
                _ => return Err("of elliptic curves, P-256 and P-384 are supported".into()),
            };
            if algorithms.iter().any(|a| *a != own) {
                return Err(format!("this key is for {own:?} only"));
            }
            return Key::new(key, own, algorithms);
        }
        match DecodingKey::from_ed_pem(bytes) {
            Ok(key) => Key::new(key, Algorithm::EdDSA, algorithms),
            Err(_) => Err("this is not a public key in PEM (RSA, P-256, P-384 or Ed25519)".into()),
        }
    }

    fn new(key: DecodingKey, own: Algorithm, algorithms: &[Algorithm]) -> Result<Key, String> {
        let family = own.family();
        if let Some(odd) = algorithms.iter().find(|a| a.family() != family) {
            let kind = match family {
                AlgorithmFamily::Hmac => "an HMAC secret",
                AlgorithmFamily::Rsa => "an RSA key",
                AlgorithmFamily::Ec => "an elliptic-curve key",
                AlgorithmFamily::Ed => "an Ed25519 key",
            };
            return Err(format!("{odd:?} does not go with {kind}"));
        }
        let algorithms = if algorithms.is_empty() { vec![own] } else { algorithms.to_vec() };
        Ok(Key { key, algorithms, weak: false })
    }
}

/// All keys, and what else must hold for a token.
pub(super) struct Keys {
    pub(super) default: Option<Key>,
    pub(super) by_kid: BTreeMap<String, Key>,
    validation: Validation,
    /// Claims beyond those that the library looks at.
    required: Vec<String>,
}

impl Keys {
    pub(super) fn new(required: &[String], issuers: Vec<String>, audiences: Vec<String>, leeway: u64) -> Keys {
        let mut validation = Validation { leeway: leeway.min(86_400), validate_exp: true, validate_nbf: true, ..Validation::default() };
        let mut needed: HashSet<String> = required.iter().cloned().collect();
        // A check that a token could escape by leaving the claim out would be none.
        if !issuers.is_empty() {
            needed.insert("iss".into());
            validation.set_issuer(&issuers);
        }
        validation.validate_aud = !audiences.is_empty();
        if !audiences.is_empty() {
            needed.insert("aud".into());
            validation.set_audience(&audiences);
        }
        validation.required_spec_claims = needed;
        Keys { default: None, by_kid: BTreeMap::new(), validation, required: required.to_vec() }
    }

    /// The claims of a token whose signature and claims are good.
    pub(super) fn verify(&self, token: &str) -> Result<Claims, Refusal> {
        let header = decode_header(token).map_err(|e| explain(e.kind()))?;
        if header.jwk.is_some() || header.jku.is_some() || header.x5u.is_some() || header.x5c.is_some() {
            return Err(invalid("the token brings a key of its own"));
        }
        if header.crit.is_some() {
            // RFC 7515 section 4.1.11: what is critical and not understood makes the token invalid. No extension is understood here.
            return Err(invalid("the token has a critical extension"));
        }
        let key = self.key(header.kid.as_deref()).ok_or_else(|| invalid("the token's key is not known"))?;
        if !key.algorithms.contains(&header.alg) {
            return Err(invalid("the token's algorithm is not accepted"));
        }
        let mut validation = self.validation.clone();
        validation.algorithms = key.algorithms.clone();
        let claims = decode::<Claims>(token, &key.key, &validation).map_err(|e| explain(e.kind()))?.claims;
        match self.required.iter().find(|name| claims.get(*name).is_none_or(|v| v.is_null())) {
            Some(name) => Err(missing(name)),
            None => Ok(claims),
        }
    }

    fn key(&self, kid: Option<&str>) -> Option<&Key> {
        let only = || if self.by_kid.len() == 1 { self.by_kid.values().next() } else { None };
        match kid {
            Some(kid) => self.by_kid.get(kid).or(self.default.as_ref()),
            None => self.default.as_ref().or_else(only),
        }
    }
}

fn missing(claim: &str) -> Refusal {
    invalid(format!("the token has no `{claim}`"))
}

fn explain(kind: &ErrorKind) -> Refusal {
    match kind {
        ErrorKind::InvalidSignature => invalid("the token's signature does not match"),
        ErrorKind::ExpiredSignature => invalid("the token has expired"),
        ErrorKind::ImmatureSignature => invalid("the token is not valid yet"),
        ErrorKind::InvalidIssuer => invalid("the token's issuer is not accepted"),
        ErrorKind::InvalidAudience => invalid("the token is meant for another audience"),
        ErrorKind::InvalidAlgorithm => invalid("the token's algorithm is not accepted"),
        ErrorKind::MissingRequiredClaim(claim) => missing(claim),
        ErrorKind::InvalidClaimFormat(claim) => invalid(format!("the token's `{claim}` is malformed")),
        _ => invalid("the token is malformed"),
    }
}
