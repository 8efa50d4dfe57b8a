//! The auth service: accounts in memory, access tokens as JWT (HS256), refresh tokens that work once.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::header::{CACHE_CONTROL, WWW_AUTHENTICATE};
use http::{Method, StatusCode};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::call::{Call, Reply, bare, json_reply, not_found, problem, set, wrong_method};
use crate::{Secret, clock};

/// Token settings of the auth service.
#[derive(Debug, Clone)]
pub struct AuthOptions {
    /// The HMAC key, as bytes of the text.
    pub secret: Secret,
    /// `iss` of every token.
    pub issuer: String,
    /// `aud` of every token.
    pub audience: String,
    /// How long an access token is good.
    pub access_ttl: Duration,
    /// How long a refresh token is good.
    pub refresh_ttl: Duration,
    /// How long a guest token is good.
    pub guest_ttl: Duration,
}

impl Default for AuthOptions {
    fn default() -> Self {
        AuthOptions {
            secret: Secret::from("demo-secret-for-local-use-only-0123456789"),
            issuer: "weir-demo-auth".to_owned(),
            audience: "weir-demo".to_owned(),
            access_ttl: Duration::from_secs(15 * 60),
            refresh_ttl: Duration::from_secs(30 * 86_400),
            guest_ttl: Duration::from_secs(30 * 86_400),
        }
    }
}

/// What stands in an access token.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Claims {
    sub: String,
    iss: String,
    aud: String,
    /// Seconds since 1970.
    exp: u64,
    iat: u64,
    jti: String,
    role: String,
    scope: String,
}

#[derive(Debug, Clone)]
struct User {
    salt: u64,
    password: [u8; 32],
    role: &'static str,
    scope: &'static str,
}

#[derive(Debug)]
struct Refresh {
    user: String,
    until: SystemTime,
}

#[derive(Debug, Deserialize)]
struct Credentials {
    username: String,
    password: String,
}

#[derive(Debug, Default, Deserialize)]
struct RefreshWanted {
    refresh_token: Option<String>,
}

pub(crate) struct Auth {
    options: AuthOptions,
    encoding: EncodingKey,
    decoding: DecodingKey,
    users: Mutex<HashMap<String, User>>,
    refresh: Mutex<HashMap<String, Refresh>>,
    revoked: Mutex<HashSet<String>>,
}

const CUSTOMER: &str = "catalogue:read members:read orders:read orders:write";
const ADMIN: &str =
    "catalogue:read catalogue:write members:read members:write orders:read orders:write";

impl Auth {
    pub fn new(options: AuthOptions) -> Auth {
        let key = options.secret.reveal().as_bytes();
        let auth = Auth {
            encoding: EncodingKey::from_secret(key),
            decoding: DecodingKey::from_secret(key),
            users: Mutex::default(),
            refresh: Mutex::default(),
            revoked: Mutex::default(),
            options,
        };
        auth.add_user("alice", "wonderland", "customer", CUSTOMER);
        auth.add_user("bob", "builder", "admin", ADMIN);
        auth
    }

    /// False if the name is taken.
    fn add_user(
        &self,
        name: &str,
        password: &str,
        role: &'static str,
        scope: &'static str,
    ) -> bool {
        let salt = fastrand::u64(..);
        let user = User {
            salt,
            password: hashed(salt, password),
            role,
            scope,
        };
        let mut users = self.users.lock();
        if users.contains_key(name) {
            return false;
        }
        users.insert(name.to_owned(), user);
        true
    }

    pub async fn answer(&self, call: Call) -> Reply {
        let post = call.method() == Method::POST;
        let mut reply = match call.path() {
            "/api/auth/register" if post => self.register(call).await,
            "/api/auth/login" if post => self.login(call).await,
            "/api/auth/refresh" if post => self.refresh(call).await,
            "/api/auth/logout" if post => self.logout(call).await,
            "/api/auth/guest" if post || call.is_read() => self.guest(),
            "/api/auth/verify" if post || call.is_read() => match self.verified(&call) {
                Ok(claims) => json_reply(StatusCode::OK, &claims),
                Err(reply) => reply,
            },
            // Symmetric keys are not published: the set is empty, and present.
            "/.well-known/jwks.json" if call.is_read() => {
                return json_reply(StatusCode::OK, &json!({"keys": []}));
            }
            "/api/auth/register" | "/api/auth/login" | "/api/auth/refresh" | "/api/auth/logout" => {
                wrong_method("POST")
            }
            "/api/auth/guest" | "/api/auth/verify" => wrong_method("GET, HEAD, POST"),
            _ => not_found("such path"),
        };
        set(&mut reply, CACHE_CONTROL, "no-store"); // RFC 6749 section 5.1
        reply
    }

    async fn register(&self, call: Call) -> Reply {
        let given = match call.json::<Credentials>().await {
            Ok(given) => given,
            Err(reply) => return reply,
        };
        if given.username.is_empty()
            || given.username.contains(':')
            || given.password.chars().count() < 6
        {
            return problem(
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid_account",
                "a name without colon and a password of at least 6 characters are needed",
            );
        }
        if !self.add_user(&given.username, &given.password, "customer", CUSTOMER) {
            return problem(StatusCode::CONFLICT, "name_taken", "this name is taken");
        }
        self.tokens_for(&given.username, StatusCode::CREATED)
    }

    /// Credentials come by `Authorization: Basic` (RFC 7617), or as JSON.
    async fn login(&self, call: Call) -> Reply {
        let given = match call.credentials("basic").map(basic) {
            Some(Some(given)) => given,
            Some(None) => {
                return unauthorized(
                    "Basic realm=\"weir-demo\", charset=\"UTF-8\"",
                    "bad_credentials",
                    "the Basic credentials cannot be read",
                );
            }
            None => match call.json::<Credentials>().await {
                Ok(given) => given,
                Err(reply) => return reply,
            },
        };
        let user = self.users.lock().get(&given.username).cloned();
        match user {
            Some(user) if user.password == hashed(user.salt, &given.password) => {
                self.tokens_for(&given.username, StatusCode::OK)
            }
            _ => unauthorized(
                "Basic realm=\"weir-demo\", charset=\"UTF-8\"",
                "bad_credentials",
                "name or password is wrong",
            ),
        }
    }

    /// A refresh token works once and is replaced, so that a stolen one shows.
    async fn refresh(&self, call: Call) -> Reply {
        let Some(token) = (match call.json::<RefreshWanted>().await {
            Ok(wanted) => wanted.refresh_token,
            Err(reply) => return reply,
        }) else {
            return problem(
                StatusCode::BAD_REQUEST,
                "bad_request",
                "refresh_token is missing",
            );
        };
        let found = self.refresh.lock().remove(&token);
        match found {
            Some(refresh) if refresh.until > SystemTime::now() => {
                self.tokens_for(&refresh.user, StatusCode::OK)
            }
            _ => unauthorized(
                "Bearer error=\"invalid_token\"",
                "invalid_token",
                "the refresh token is not valid",
            ),
        }
    }

    /// Revokes the access token by its id, and the refresh token if it is sent along.
    async fn logout(&self, call: Call) -> Reply {
        let claims = match self.verified(&call) {
            Ok(claims) => claims,
            Err(reply) => return reply,
        };
        self.revoked.lock().insert(claims.jti);
        if let Ok(body) = call.bytes().await
            && let Ok(RefreshWanted {
                refresh_token: Some(token),
            }) = serde_json::from_slice(&body)
        {
            self.refresh.lock().remove(&token);
        }
        bare(StatusCode::NO_CONTENT)
    }

    fn guest(&self) -> Reply {
        let ttl = self.options.guest_ttl;
        match self.sign(
            &format!("guest-{}", random()),
            "guest",
            "catalogue:read",
            ttl,
        ) {
            Some(token) => json_reply(
                StatusCode::OK,
                &json!({"access_token": token, "token": token, "token_type": "Bearer", "expires_in": ttl.as_secs()}),
            ),
            None => problem(
                StatusCode::INTERNAL_SERVER_ERROR,
                "signing_failed",
                "the token could not be signed",
            ),
        }
    }

    fn tokens_for(&self, name: &str, status: StatusCode) -> Reply {
        let Some(user) = self.users.lock().get(name).cloned() else {
            return unauthorized(
                "Bearer error=\"invalid_token\"",
                "invalid_token",
                "this account is gone",
            );
        };
        let ttl = self.options.access_ttl;
        let Some(access) = self.sign(name, user.role, user.scope, ttl) else {
            return problem(
                StatusCode::INTERNAL_SERVER_ERROR,
                "signing_failed",
                "the token could not be signed",
            );
        };
        let refresh = format!("{}{}", random(), random());
        let now = SystemTime::now();
        {
            let mut all = self.refresh.lock();
            all.retain(|_, r| r.until > now);
            all.insert(
                refresh.clone(),
                Refresh {
                    user: name.to_owned(),
                    until: now + self.options.refresh_ttl,
                },
            );
        }
        json_reply(
            status,
            &json!({
                "access_token": access,
                "refresh_token": refresh,
                "token_type": "Bearer",
                "expires_in": ttl.as_secs(),
                "user": {"name": name, "role": user.role},
            }),
        )
    }

    fn sign(&self, sub: &str, role: &str, scope: &str, ttl: Duration) -> Option<String> {
        let iat = clock::unix_seconds();
        let claims = Claims {
            sub: sub.to_owned(),
            iss: self.options.issuer.clone(),
            aud: self.options.audience.clone(),
            exp: iat.saturating_add(ttl.as_secs()),
            iat,
            jti: random(),
            role: role.to_owned(),
            scope: scope.to_owned(),
        };
        encode(&Header::new(Algorithm::HS256), &claims, &self.encoding).ok()
    }

    fn verified(&self, call: &Call) -> Result<Claims, Reply> {
        let Some(token) = call.bearer() else {
            return Err(unauthorized(
                "Bearer",
                "no_token",
                "a bearer token is needed",
            ));
        };
        let mut rules = Validation::new(Algorithm::HS256);
        rules.leeway = 0;
        rules.set_issuer(&[&self.options.issuer]);
        rules.set_audience(&[&self.options.audience]);
        let invalid =
            |why: &str| unauthorized("Bearer error=\"invalid_token\"", "invalid_token", why);
        let claims = decode::<Claims>(token, &self.decoding, &rules)
            .map_err(|_| invalid("the token is not valid"))?
            .claims;
        if self.revoked.lock().contains(&claims.jti) {
            return Err(invalid("the token was revoked"));
        }
        Ok(claims)
    }
}

fn unauthorized(challenge: &str, code: &str, message: &str) -> Reply {
    let mut reply = problem(StatusCode::UNAUTHORIZED, code, message);
    set(&mut reply, WWW_AUTHENTICATE, challenge);
    reply
}

fn basic(encoded: &str) -> Option<Credentials> {
    let text = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
    let (username, password) = text.split_once(':')?;
    Some(Credentials {
        username: username.to_owned(),
        password: password.to_owned(),
    })
}

fn hashed(salt: u64, password: &str) -> [u8; 32] {
    Sha256::new()
        .chain_update(salt.to_le_bytes())
        .chain_update(password)
        .finalize()
        .into()
}

/// 128 random bits as text. Not from a cryptographic generator: these accounts guard nothing.
fn random() -> String {
    URL_SAFE_NO_PAD.encode(fastrand::u128(..).to_le_bytes())
}
