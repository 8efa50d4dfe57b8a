//! Guest tokens: every visitor has an identity, also before signing in, so that a cart or a rate limit has someone to belong to. The
//! token is a JWT that the services behind can verify; it lives in a cookie that scripts can not read.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, jwk::Jwk};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};
use weir_config::{GuestIssue, Guests};

/// Shortest HS256 key in bytes (RFC 7518 section 3.2).
const MIN_KEY: usize = 32;
/// Longer tokens are not looked at; browsers do not keep longer cookies either.
const MAX_TOKEN: usize = 4000;
/// Verified tokens that are remembered.
const REMEMBERED: usize = 16 * 1024;
/// What `role` says in a guest's token. Without it a user's token signed with the same key would pass for a guest's.
const ROLE: &str = "guest";

/// Why there is no token. Never holds the key or a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GuestError {
    /// An HS256 key that can be guessed.
    #[error("the key is too short: HS256 wants 32 bytes or more")]
    KeyTooShort,
    /// PEM, but not this.
    #[error("the key is not an Ed25519 private key in PKCS#8 PEM")]
    NotEd25519,
    /// Not a token (RFC 6265 section 4.1.1).
    #[error("the cookie name has characters that cookies can not have")]
    CookieName,
    /// The system gave no random bytes.
    #[error("no randomness from the system")]
    Random,
    /// The signature could not be made.
    #[error("the token could not be signed")]
    Sign,
    /// A token of the auth service that fits into no cookie, or has expired.
    #[error("the token can not be given to a visitor")]
    Unfit,
}

/// A fresh guest token.
pub struct GuestToken {
    /// For `Authorization: Bearer` upstream.
    pub token: String,
    /// For `Set-Cookie` downstream; marked sensitive.
    pub cookie: HeaderValue,
}

impl fmt::Debug for GuestToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GuestToken(***)")
    }
}

/// Who sent a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Visitor<'a> {
    /// Someone with credentials of their own, which pass untouched (and are for others to verify).
    SignedIn,
    /// A guest with this valid token.
    Guest(&'a str),
    /// Someone without a valid token.
    None,
}

impl fmt::Debug for Visitor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Visitor::SignedIn => "SignedIn",
            Visitor::Guest(_) => "Guest(***)",
            Visitor::None => "None",
        })
    }
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    role: String,
    iat: u64,
    exp: u64,
    jti: String,
}

/// Makes and recognises guest tokens.
pub struct GuestIssuer {
    algorithm: Algorithm,
    signing: EncodingKey,
    verifying: DecodingKey,
    validation: Validation,
    issuer: String,
    cookie: String,
    /// Seconds.
    ttl: u64,
    /// The auth service issues tokens too, with a key that Weir may not have.
    remote: bool,
    known: Known,
}

impl GuestIssuer {
    /// Reads the key: an Ed25519 private key in PEM signs with EdDSA, any other text with HS256.
    ///
    /// # Errors
    /// The key or the cookie's name is of no use.
    pub fn new(config: &Guests) -> Result<GuestIssuer, GuestError> {
        let key = config.key.expose();
        let (algorithm, signing, verifying) = if key.trim_start().starts_with("-----BEGIN") {
            let signing = EncodingKey::from_ed_pem(key.trim().as_bytes()).map_err(|_| GuestError::NotEd25519)?;
            let public = Jwk::from_encoding_key(&signing, Algorithm::EdDSA).map_err(|_| GuestError::NotEd25519)?;
            let verifying = DecodingKey::from_jwk(&public).map_err(|_| GuestError::NotEd25519)?;
            (Algorithm::EdDSA, signing, verifying)
        } else {
            if key.len() < MIN_KEY {
                return Err(GuestError::KeyTooShort);
            }
            (Algorithm::HS256, EncodingKey::from_secret(key.as_bytes()), DecodingKey::from_secret(key.as_bytes()))
        };
        let name_ok = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if config.cookie.is_empty() || !config.cookie.bytes().all(name_ok) {
            return Err(GuestError::CookieName);
        }
        let mut validation = Validation::new(algorithm);
        validation.leeway = 0;
        validation.set_issuer(&[&config.issuer]);
        validation.set_required_spec_claims(&["exp", "iss", "sub"]);
        Ok(GuestIssuer {
            algorithm,
            signing,
            verifying,
            validation,
            issuer: config.issuer.clone(),
            cookie: config.cookie.clone(),
            ttl: config.ttl.get().as_secs(),
            remote: matches!(config.issue, GuestIssue::Remote { .. }),
            known: Known::new(REMEMBERED),
        })
    }

    /// A token for a new guest. `secure`: the cookie may only travel by TLS.
    ///
    /// # Errors
    /// `Random` or `Sign`: the system is broken; the visitor goes on without.
    pub fn issue(&self, secure: bool) -> Result<GuestToken, GuestError> {
        let iat = now();
        let claims = Claims {
            iss: self.issuer.clone(),
            sub: format!("guest-{}", random_id()?),
            role: ROLE.to_string(),
            iat,
            exp: iat.saturating_add(self.ttl),
            jti: random_id()?,
        };
        let token = jsonwebtoken::encode(&Header::new(self.algorithm), &claims, &self.signing).map_err(|_| GuestError::Sign)?;
        self.known.insert(&token, claims.exp);
        Ok(GuestToken { cookie: self.set_cookie(&token, self.ttl, secure)?, token })
    }

    /// Takes over a token that the auth service issued (see [`token_in_answer`]): puts it into a cookie, which lives as long as the
    /// token, and remembers it.
    ///
    /// # Errors
    /// `Unfit`: too long, expired, or with characters that a cookie can not have.
    pub fn adopt(&self, token: String, secure: bool) -> Result<GuestToken, GuestError> {
        let now = now();
        let exp = expiry(&token).unwrap_or_else(|| now.saturating_add(self.ttl));
        if !is_token(&token) || exp <= now {
            return Err(GuestError::Unfit);
        }
        self.known.insert(&token, exp);
        Ok(GuestToken { cookie: self.set_cookie(&token, self.ttl.min(exp - now), secure)?, token })
    }

    fn set_cookie(&self, token: &str, seconds: u64, secure: bool) -> Result<HeaderValue, GuestError> {
        // Browsers drop cookies with these prefixes if they are not secure.
        let secure = secure || self.cookie.starts_with("__Host-") || self.cookie.starts_with("__Secure-");
        let secure = if secure { "; Secure" } else { "" };
        let text = format!("{}={token}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}", self.cookie);
        let mut value = HeaderValue::try_from(text).map_err(|_| GuestError::Unfit)?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// Whether a token is a guest's that is still valid: signed by this key with this algorithm, of this issuer, not expired. A token
    /// seen before costs a look-up.
    pub fn verify(&self, token: &str) -> bool {
        if !is_token(token) {
            return false;
        }
        if let Some(exp) = self.known.get(token) {
            return exp > now();
        }
        let Ok(decoded) = jsonwebtoken::decode::<Claims>(token, &self.verifying, &self.validation) else { return false };
        let claims = decoded.claims;
        // Weir's clock decides to the second: a token is over when its `exp` is reached (RFC 7519 section 4.1.4).
        if claims.role != ROLE || claims.exp <= now() {
            return false;
        }
        self.known.insert(token, claims.exp);
        true
    }

    /// Whether the guest cookie's value will do: ours, or, when the auth service issues tokens, one of its that has not expired. The
    /// signature of the latter is for the services behind to judge: to Weir it opens nothing.
    fn is_guest_cookie(&self, token: &str) -> bool {
        self.verify(token) || (self.remote && is_token(token) && expiry(token).is_some_and(|exp| exp > now()))
    }

    /// Finds out who sent a request. An `Authorization` header that is not a guest token, or a cookie named in `session_cookies` that
    /// is not empty and not an expired JWT, means a signed-in visitor, whatever else the request has. Among several guest cookies the
    /// first valid one wins.
    pub fn find_token<'a>(&self, headers: &'a HeaderMap, session_cookies: &[String]) -> Visitor<'a> {
        self.find(lines(headers, &header::AUTHORIZATION), lines(headers, &header::COOKIE), session_cookies)
    }

    /// The same, from the values of all `Authorization` and all `Cookie` lines. Allocates nothing for a token that is known.
    pub fn find<'a>(
        &self,
        authorization: impl Iterator<Item = &'a [u8]>,
        cookie: impl Iterator<Item = &'a [u8]>,
        session_cookies: &[String],
    ) -> Visitor<'a> {
        let mut guest = None;
        for value in authorization {
            match bearer(value).filter(|token| self.verify(token)) {
                Some(token) => guest = guest.or(Some(token)),
                None => return Visitor::SignedIn,
            }
        }
        for (name, value) in cookies(cookie) {
            let text = std::str::from_utf8(value).ok();
            if guest.is_none() && name == self.cookie.as_bytes() {
                guest = text.filter(|token| self.is_guest_cookie(token));
                if guest.is_some() {
                    continue;
                }
            }
            if session_cookies.iter().any(|session| is_session(name, session)) && !value.is_empty() {
                let over = text.is_some_and(|t| self.verify(t) || expiry(t).is_some_and(|exp| exp <= now()));
                if !over {
                    return Visitor::SignedIn;
                }
            }
        }
        guest.map_or(Visitor::None, Visitor::Guest)
    }
}

/// The token in an auth service's JSON answer: a text under `token` or `access_token`, fit for a cookie and not expired.
pub fn token_in_answer(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let token = answer.token.or(answer.access_token)?;
    let over = expiry(&token).is_some_and(|exp| exp <= now());
    (is_token(&token) && !over).then_some(token)
}

/// The values of all lines of a field.
pub(crate) fn lines<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers.get_all(name).iter().map(HeaderValue::as_bytes)
}

/// Whether one of the `Cookie` lines has a session cookie that is not empty.
pub(crate) fn has_session<'a>(cookie: impl Iterator<Item = &'a [u8]>, names: &[String]) -> bool {
    cookies(cookie).any(|(name, value)| !value.is_empty() && names.iter().any(|session| is_session(name, session)))
}

/// Name and value of every cookie in every `Cookie` line (RFC 6265 section 5.4), without whitespace and quotes around the value.
fn cookies<'a>(lines: impl Iterator<Item = &'a [u8]>) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
    lines.flat_map(|line| line.split(|b| *b == b';')).filter_map(|pair| {
        let equals = pair.iter().position(|b| *b == b'=')?;
        let value = pair[equals + 1..].trim_ascii();
        let value = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value);
        Some((pair[..equals].trim_ascii(), value))
    })
}

/// Large session cookies are cut into `name.0`, `name.1` and so on.
fn is_session(name: &[u8], session: &str) -> bool {
    match name.strip_prefix(session.as_bytes()) {
        Some([]) => true,
        Some([b'.', digits @ ..]) => !digits.is_empty() && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    }
}

fn bearer(value: &[u8]) -> Option<&str> {
    let (scheme, token) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim_start_matches(' '))
}

/// The characters of bearer tokens (RFC 6750 section 2.1), all of which cookies can have.
fn is_token(text: &str) -> bool {
    (1..=MAX_TOKEN).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b))
}

/// `exp` of a JWT, without looking at the signature; `None` if it is no JWT or has none.
fn expiry(token: &str) -> Option<u64> {
    #[derive(Deserialize)]
    struct Exp {
        exp: f64,
    }
    let mut parts = token.split('.');
    let (_, claims, _, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else { return None };
    let json = URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?;
    let Exp { exp } = serde_json::from_slice(&json).ok()?;
    // Beyond the range of u64 the conversion saturates: the far future, or the past.
    Some(exp as u64)
}

/// 128 random bits, URL-safe.
fn random_id() -> Result<String, GuestError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|_| GuestError::Random)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs())
}

/// A token and its expiry.
type Slot = Mutex<Option<(Box<str>, u64)>>;

/// Tokens known to be good, with their expiry. Bounded: each token has one slot, and a newer one takes it over. Whole tokens are kept
/// and compared, since a collision of hashes would let a stranger in.
struct Known {
    slots: Box<[Slot]>,
    hasher: ahash::RandomState,
}

impl Known {
    fn new(size: usize) -> Known {
        Known { slots: (0..size).map(|_| Mutex::new(None)).collect(), hasher: ahash::RandomState::new() }
    }

    fn slot(&self, token: &str) -> &Slot {
        let hash = self.hasher.hash_one(token);
        &self.slots[(hash % self.slots.len() as u64) as usize]
    }

    fn get(&self, token: &str) -> Option<u64> {
        let slot = self.slot(token).lock();
        slot.as_ref().filter(|(known, _)| **known == *token).map(|(_, exp)| *exp)
    }

    fn insert(&self, token: &str, exp: u64) {
        *self.slot(token).lock() = Some((token.into(), exp));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_token_is_known() {
        // One slot: every token has the same.
        let known = Known::new(1);
        known.insert("a", 5);
        assert_eq!(known.get("a"), Some(5));
        assert_eq!(known.get("b"), None);
        known.insert("b", 6);
        assert_eq!((known.get("a"), known.get("b")), (None, Some(6)));
    }

    #[test]
    fn expiry_is_read_without_trust() {
        let jwt = |claims: &str| format!("x.{}.y", URL_SAFE_NO_PAD.encode(claims));
        assert_eq!(expiry(&jwt(r#"{"exp":12}"#)), Some(12));
        assert_eq!(expiry(&jwt(r#"{"exp":12.9}"#)), Some(12));
        assert_eq!(expiry(&jwt(r#"{"exp":-1}"#)), Some(0));
        assert_eq!(expiry(&jwt(r#"{"exp":1e300}"#)), Some(u64::MAX));
        assert_eq!(expiry(&jwt(r#"{"exp":"12"}"#)), None);
        assert_eq!(expiry(&jwt(r#"{}"#)), None);
        assert_eq!(expiry("x.y"), None);
        assert_eq!(expiry("a.b.c.d.e"), None);
        assert_eq!(expiry("x.%%.y"), None);
    }
}
