use super::*;
use crate::testing::{Ask, Rig, Seen, environment, get};
use crate::{Plugins, register};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use proptest::prelude::*;
use serde_json::json;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weir_store::Store;

mod issuers;
mod logouts;

const SECRET: &str = "a-secret-of-thirty-two-bytes-long";
const RSA_PRIVATE: &str = include_str!("testdata/rsa.pem");
const RSA_PUBLIC: &str = include_str!("testdata/rsa.pub.pem");
const EC_PRIVATE: &str = include_str!("testdata/ec.pem");
const EC_PUBLIC: &str = include_str!("testdata/ec.pub.pem");
const ED_PRIVATE: &str = include_str!("testdata/ed.pem");
const ED_PUBLIC: &str = include_str!("testdata/ed.pub.pem");

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

fn hs(secret: &str, header: &Header, claims: &Value) -> String {
    encode(header, claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
}

fn token(claims: Value) -> String {
    hs(SECRET, &Header::default(), &claims)
}

/// Claims that are good until 2100, with these changes; `null` removes.
fn claims(changes: Value) -> Value {
    let mut all = json!({ "sub": "alice", "jti": "t-1", "exp": 4_102_444_800_u64 });
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(all.as_object_mut().unwrap().remove(name)),
            value => all[name] = value.clone(),
        }
    }
    all
}

fn good() -> String {
    token(claims(json!({})))
}

fn bearer(token: &str) -> Ask {
    get("/api/members").with("Authorization", &format!("Bearer {token}"))
}

fn rig(config: &str) -> Rig {
    Rig::new(&[("token-validator", config)])
}

fn with_secret(more: &str) -> Rig {
    rig(&format!("secret: {SECRET}\n{more}"))
}

/// A 401 as RFC 6750 wants it, with this reason.
fn refused(seen: &Seen, why: &str) {
    assert_eq!(seen.status(), 401, "{why}");
    assert!(!seen.forwarded());
    assert_eq!(seen.json(), json!({ "message": why }));
    let description = why.replace('"', "");
    assert_eq!(
        seen.header("www-authenticate"),
        Some(format!("Bearer realm=\"api\", error=\"invalid_token\", error_description=\"{description}\"").as_str())
    );
    assert_eq!(seen.header("cache-control"), Some("no-store"));
}

#[tokio::test]
async fn a_good_token_passes_and_names_the_caller() {
    let rig = with_secret("identity_headers: {X-User-Id: sub, X-User-Roles: realm_access.roles, X-None: nothing}");
    let seen = rig.run(bearer(&token(claims(json!({ "realm_access": { "roles": ["admin", "user"] } }))))).await;
    assert_eq!(seen.status(), 200);
    assert_eq!(seen.sent("x-user-id"), "alice");
    assert_eq!(seen.sent("x-user-roles"), "admin,user");
    assert_eq!(seen.sent_maybe("x-none"), None);
    let identity = seen.cx.identity.unwrap();
    assert_eq!((identity.subject.as_str(), identity.credential.as_deref()), ("alice", Some("t-1")));
    assert_eq!(identity.claims.as_ref().unwrap()["sub"], "alice");
    assert_eq!(rig.outcome("token-validator", "passed"), 1);
}

#[tokio::test]
async fn without_a_token_there_is_a_challenge_without_an_error() {
    for ask in [get("/"), get("/").with("Authorization", "Basic YTpi")] {
        let seen = with_secret("realm: shop").run(ask).await;
        assert_eq!(seen.status(), 401);
        assert_eq!(seen.header("www-authenticate"), Some("Bearer realm=\"shop\""));
        assert_eq!(seen.json(), json!({ "message": "Unauthorized" }));
    }
}

#[tokio::test]
async fn what_clients_say_of_their_identity_is_removed() {
    let rig = with_secret("anonymous: true");
    for name in ["X-User-Id", "x-user-id", "X_User_Id", "X-User_Id"] {
        let seen = rig.run(get("/").with(name, "root")).await;
        assert_eq!(seen.status(), 200);
        assert_eq!(seen.sent_maybe(name), None, "{name}");
    }
    let seen = rig.run(bearer(&good()).with("X-User-Id", "root")).await;
    assert_eq!(seen.sent("x-user-id"), "alice");
}

#[tokio::test]
async fn a_fetch_for_the_cache_carries_no_identity() {
    let sent = with_secret("").fill(bearer(&good())).await;
    assert!(!sent.headers.contains_key("x-user-id"));
}

#[tokio::test]
async fn anonymous_lets_no_token_pass_but_no_bad_one() {
    let rig = with_secret("anonymous: true");
    let seen = rig.run(get("/")).await;
    assert_eq!(seen.status(), 200);
    assert!(seen.cx.identity.is_none());
    refused(&rig.run(bearer("a.b.c")).await, "the token is malformed");
}

#[tokio::test]
async fn claims_are_checked() {
    let rig = with_secret("issuer: [https://a, https://b]\naudience: shop\nleeway: 10s\nrequired_claims: [exp, sub, tenant]");
    let base = |changes: Value| {
        let mut all = claims(json!({ "iss": "https://b", "aud": ["other", "shop"], "tenant": 7 }));
        for (name, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => drop(all.as_object_mut().unwrap().remove(name)),
                value => all[name] = value.clone(),
            }
        }
        token(all)
    };
    for fine in [json!({}), json!({ "aud": "shop" }), json!({ "exp": now() - 5 }), json!({ "nbf": now() + 5 }), json!({ "nbf": now() - 5 })] {
        assert_eq!(rig.run(bearer(&base(fine.clone()))).await.status(), 200, "{fine}");
    }
    for (bad, why) in [
        (json!({ "exp": now() - 60 }), "the token has expired"),
        (json!({ "exp": null }), "the token has no `exp`"),
        (json!({ "exp": "tomorrow" }), "the token's `exp` is malformed"),
        (json!({ "exp": -1 }), "the token's `exp` is malformed"),
        (json!({ "nbf": now() + 60 }), "the token is not valid yet"),
        (json!({ "nbf": "tomorrow" }), "the token's `nbf` is malformed"),
        (json!({ "iss": "https://c" }), "the token's issuer is not accepted"),
        (json!({ "iss": null }), "the token has no `iss`"),
        (json!({ "aud": "other" }), "the token is meant for another audience"),
        (json!({ "aud": null }), "the token has no `aud`"),
        (json!({ "aud": { "a": 1 } }), "the token is meant for another audience"),
        (json!({ "sub": null }), "the token has no `sub`"),
        (json!({ "tenant": null }), "the token has no `tenant`"),
    ] {
        refused(&rig.run(bearer(&base(bad))).await, why);
    }
}

#[tokio::test]
async fn forgeries() {
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let body = part(claims(json!({})));
    let good = good();
    let signature = good.rsplit('.').next().unwrap();
    let signed = |header: Value| {
        let message = format!("{}.{body}", part(header));
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &EncodingKey::from_secret(SECRET.as_bytes()), Algorithm::HS256).unwrap();
        format!("{message}.{signature}")
    };
    let jwk = json!({ "kty": "oct", "k": "AAAA" });
    for (forged, why) in [
        (format!("{}.{body}.", part(json!({ "alg": "none" }))), "the token is malformed"),
        (format!("{}.{body}.", part(json!({ "alg": "None" }))), "the token is malformed"),
        (format!("{}.{body}.{signature}", part(json!({ "alg": "HS256", "typ": "JWT", "x": 1 }))), "the token's signature does not match"),
        (format!("{}x", &good[..good.len() - 4]), "the token's signature does not match"),
        (hs("another-secret-of-thirty-two-bytes", &Header::default(), &claims(json!({}))), "the token's signature does not match"),
        (hs(SECRET, &Header::new(Algorithm::HS512), &claims(json!({}))), "the token's algorithm is not accepted"),
        (signed(json!({ "alg": "HS256", "jwk": jwk })), "the token brings a key of its own"),
        (signed(json!({ "alg": "HS256", "jku": "https://evil.example" })), "the token brings a key of its own"),
        (signed(json!({ "alg": "HS256", "x5u": "https://evil.example" })), "the token brings a key of its own"),
        (signed(json!({ "alg": "HS256", "x5c": ["AAAA"] })), "the token brings a key of its own"),
        (signed(json!({ "alg": "HS256", "crit": ["exp"] })), "the token has a critical extension"),
        (signed(json!({ "alg": "HS256", "crit": [] })), "the token has a critical extension"),
        (String::new(), "the token is empty"),
        ("a.b".into(), "the token is malformed"),
        (good.clone() + "." + signature, "the token is malformed"),
        (good.clone() + "=", "the token is malformed"),
        (signed(json!({ "alg": "HS256", "kid": 1 })), "the token is malformed"),
        (signed(json!({ "alg": ["HS256"] })), "the token is malformed"),
        (format!("{good}{}", "a".repeat(9000)), "the token is longer than 8 KB"),
    ] {
        refused(&with_secret("").run(bearer(&forged)).await, why);
    }
}

#[tokio::test]
async fn every_kind_of_key() {
    for (public, private, algorithm) in [
        (RSA_PUBLIC, EncodingKey::from_rsa_pem(RSA_PRIVATE.as_bytes()).unwrap(), Algorithm::RS256),
        (EC_PUBLIC, EncodingKey::from_ec_pem(EC_PRIVATE.as_bytes()).unwrap(), Algorithm::ES256),
        (ED_PUBLIC, EncodingKey::from_ed_pem(ED_PRIVATE.as_bytes()).unwrap(), Algorithm::EdDSA),
    ] {
        let rig = rig(&format!("public_key: {}", json!(public)));
        let good = encode(&Header::new(algorithm), &claims(json!({})), &private).unwrap();
        assert_eq!(rig.run(bearer(&good)).await.status(), 200, "{algorithm:?}");
        // The public key is no secret: who signs with it as one must not get in.
        let confused = hs(public, &Header::default(), &claims(json!({})));
        refused(&rig.run(bearer(&confused)).await, "the token's algorithm is not accepted");
        let own_key = Header { kid: Some("x".into()), ..Header::default() };
        refused(&rig.run(bearer(&hs("", &own_key, &claims(json!({}))))).await, "the token's algorithm is not accepted");
    }
}

#[tokio::test]
async fn algorithms_can_be_widened_within_the_kind_of_key() {
    let rig = rig(&format!("{{secret: {SECRET}, algorithms: [HS256, HS512]}}"));
    for (algorithm, status) in [(Algorithm::HS256, 200), (Algorithm::HS384, 401), (Algorithm::HS512, 200)] {
        assert_eq!(rig.run(bearer(&hs(SECRET, &Header::new(algorithm), &claims(json!({}))))).await.status(), status, "{algorithm:?}");
    }
}

#[tokio::test]
async fn keys_are_chosen_by_kid() {
    let kid = |kid: Option<&str>, secret| hs(secret, &Header { kid: kid.map(Into::into), ..Header::default() }, &claims(json!({})));
    let two = "keys: {a: {secret: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa}, b: {secret: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb}}";
    let (a, b) = ("a".repeat(32), "b".repeat(32));
    let both = rig(two);
    assert_eq!(both.run(bearer(&kid(Some("a"), &a))).await.status(), 200);
    assert_eq!(both.run(bearer(&kid(Some("b"), &b))).await.status(), 200);
    refused(&both.run(bearer(&kid(Some("a"), &b))).await, "the token's signature does not match");
    refused(&both.run(bearer(&kid(Some("c"), &a))).await, "the token's key is not known");
    refused(&both.run(bearer(&kid(None, &a))).await, "the token's key is not known");
    let with_default = with_secret(two);
    assert_eq!(with_default.run(bearer(&kid(Some("c"), SECRET))).await.status(), 200);
    assert_eq!(with_default.run(bearer(&kid(None, SECRET))).await.status(), 200);
    let only = rig("keys: {a: {secret: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa}}");
    assert_eq!(only.run(bearer(&kid(None, &a))).await.status(), 200);
}

#[tokio::test]
async fn sources_are_searched_in_order_and_must_agree() {
    let rig = with_secret("sources: [{header: Authorization}, {header: X-Token}, {cookie: access_token}, {query: token}]");
    let (one, two) = (good(), token(claims(json!({ "sub": "bob" }))));
    for (ask, subject) in [
        (bearer(&one), "alice"),
        (get("/").with("Authorization", &format!("bEARER   {one}")), "alice"),
        (get("/").with("X-Token", &one), "alice"),
        (get("/").with("X-Token", &format!("Bearer {one}")), "alice"),
        (get("/").with("Cookie", &format!("a=b; access_token={two}")), "bob"),
        (get(&format!("/?a=b&token={two}")), "bob"),
        (get("/").with("Authorization", "Basic YTpi").with("X-Token", &two), "bob"),
        (bearer(&one).with("Cookie", &format!("access_token={one}")), "alice"),
    ] {
        assert_eq!(rig.run(ask).await.sent("x-user-id"), subject);
    }
    for ask in [
        bearer(&one).with("Cookie", &format!("access_token={two}")),
        bearer(&one).with("Authorization", &format!("Bearer {two}")),
        get("/").with("Cookie", &format!("access_token={one}; access_token={two}")),
        get(&format!("/?token={one}&token={two}")),
    ] {
        refused(&rig.run(ask).await, "the request has several tokens that differ");
    }
    assert_eq!(with_secret("").run(get(&format!("/?token={one}"))).await.status(), 401);
}

#[tokio::test]
async fn scopes_and_roles() {
    let rig = with_secret("scopes: [read, write]\nroles: [admin, staff]");
    for (extra, status) in [
        (json!({ "scope": "read write", "roles": ["staff"] }), 200),
        (json!({ "scp": ["write", "read", "x"], "role": "admin" }), 200),
        (json!({ "scope": "read write", "realm_access": { "roles": ["admin"] } }), 200),
        (json!({ "scope": "read", "roles": ["staff"] }), 403),
        (json!({ "scope": "readwrite read", "roles": ["staff"] }), 403),
        (json!({ "scope": "read write", "roles": ["user"] }), 403),
        (json!({ "scope": "read write" }), 403),
        (json!({}), 403),
    ] {
        let seen = rig.run(bearer(&token(claims(extra.clone())))).await;
        assert_eq!(seen.status(), status, "{extra}");
        if status == 403 {
            assert_eq!(seen.json(), json!({ "message": "the token does not permit this" }));
            assert_eq!(
                seen.header("www-authenticate"),
                Some("Bearer realm=\"api\", error=\"insufficient_scope\", error_description=\"the token does not permit this\", scope=\"read write\"")
            );
        }
    }
}

/// An auth service that answers each call with the status of the moment.
struct Auth {
    url: String,
    calls: Arc<AtomicUsize>,
    status: Arc<AtomicUsize>,
    seen: Arc<parking_lot::Mutex<Vec<String>>>,
}

async fn auth(body: &'static str) -> Auth {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let auth = Auth {
        url: format!("http://{}/api/auth/verify", listener.local_addr().unwrap()),
        calls: Arc::default(),
        status: Arc::new(AtomicUsize::new(200)),
        seen: Arc::default(),
    };
    let (calls, status, seen) = (auth.calls.clone(), auth.status.clone(), auth.seen.clone());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (calls, status, seen) = (calls.clone(), status.clone(), seen.clone());
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.windows(4).any(|w| w == b"\r\n\r\n") {
                    match stream.read_buf(&mut head).await {
                        Ok(0) | Err(_) => return,
                        Ok(_) => {}
                    }
                }
                let text = String::from_utf8_lossy(&head).to_lowercase();
                let length = text.split_once("content-length: ").and_then(|(_, rest)| rest.split("\r\n").next()?.parse().ok()).unwrap_or(0);
                let start = text.find("\r\n\r\n").unwrap() + 4;
                while head.len() < start + length {
                    if let Ok(0) | Err(_) = stream.read_buf(&mut head).await {
                        return;
                    }
                }
                calls.fetch_add(1, SeqCst);
                seen.lock().push(String::from_utf8_lossy(&head).into_owned());
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                let status = status.load(SeqCst);
                let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    auth
}

impl Auth {
    fn config(&self, more: &str) -> String {
        format!("{{url: '{}'{more}}}", self.url)
    }
    fn calls(&self) -> usize {
        self.calls.load(SeqCst)
    }
    fn answers(&self, status: usize) {
        self.status.store(status, SeqCst);
    }
}

#[tokio::test]
async fn the_auth_service_is_asked_once_for_a_token() {
    let auth = auth("{}").await;
    let rig = Arc::new(with_secret(&format!("introspect: {}", auth.config(", method: POST"))));
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let rig = rig.clone();
            tokio::spawn(async move { rig.run(bearer(&good())).await.status() })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), 200);
    }
    assert_eq!(rig.run(bearer(&good())).await.status(), 200);
    assert_eq!(auth.calls(), 1);
    let seen = auth.seen.lock()[0].to_lowercase();
    assert!(seen.starts_with("post /api/auth/verify http/1.1\r\n"), "{seen}");
    assert!(seen.contains(&format!("authorization: bearer {}", good().to_lowercase())), "{seen}");
}

#[tokio::test]
async fn a_forged_token_does_not_reach_the_auth_service() {
    let auth = auth("{}").await;
    let rig = with_secret(&format!("introspect: {}", auth.config("")));
    let forged = hs("another-secret-of-thirty-two-bytes", &Header::default(), &claims(json!({})));
    refused(&rig.run(bearer(&forged)).await, "the token's signature does not match");
    assert_eq!(auth.calls(), 0);
}

#[tokio::test]
async fn the_auth_service_may_refuse() {
    for (status, body) in [(401, "{}"), (403, "{}"), (400, "{}"), (200, r#"{"active":false}"#), (200, r#"{"valid":false}"#)] {
        let auth = auth(body).await;
        auth.answers(status);
        let rig = with_secret(&format!("introspect: {}", auth.config("")));
        refused(&rig.run(bearer(&good())).await, "the token is not valid any more");
        // Remembered for a moment.
        refused(&rig.run(bearer(&good())).await, "the token is not valid any more");
        assert_eq!(auth.calls(), 1, "{status} {body}");
    }
}

#[tokio::test]
async fn opaque_tokens_are_the_auth_services_alone() {
    let auth = auth(r#"{"active":true,"sub":"carol","roles":["user"]}"#).await;
    let rig = rig(&format!("{{introspect: {}, roles: [user]}}", auth.config(", mode: introspect")));
    let seen = rig.run(bearer("opaque")).await;
    assert_eq!(seen.sent("x-user-id"), "carol");
    assert_eq!(rig.run(bearer("opaque")).await.status(), 200);
    assert_eq!(auth.calls(), 1);
}

#[tokio::test]
async fn an_auth_service_that_is_away_closes_the_door_but_for_tokens_in_grace() {
    for status in [500, 429, 302] {
        let auth = auth("{}").await;
        auth.answers(status);
        let rig = with_secret(&format!("introspect: {}", auth.config("")));
        let seen = rig.run(bearer(&good())).await;
        assert_eq!(seen.status(), 503, "{status}");
        assert_eq!(seen.json(), json!({ "message": "The auth service does not answer" }));
        assert_eq!(seen.header("retry-after"), Some("1"));
        // Not remembered.
        auth.answers(200);
        assert_eq!(rig.run(bearer(&good())).await.status(), 200);
    }
    let auth = auth("{}").await;
    let graceful = with_secret(&format!("introspect: {}\ncache: {{ttl: 0s}}", auth.config(", grace: 1h")));
    let strict = with_secret(&format!("introspect: {}\ncache: {{ttl: 0s}}", auth.config("")));
    assert_eq!(graceful.run(bearer(&good())).await.status(), 200);
    assert_eq!(strict.run(bearer(&good())).await.status(), 200);
    auth.answers(500);
    assert_eq!(graceful.run(bearer(&good())).await.status(), 200);
    assert_eq!(graceful.outcome("token-validator", "grace"), 1);
    assert_eq!(strict.run(bearer(&good())).await.status(), 503);
    let unknown = token(claims(json!({ "sub": "bob" })));
    assert_eq!(graceful.run(bearer(&unknown)).await.status(), 503);
    auth.answers(401);
    assert_eq!(graceful.run(bearer(&good())).await.status(), 401);
    auth.answers(500);
    assert_eq!(graceful.run(bearer(&token(claims(json!({ "sub": "bob" }))))).await.status(), 503);
}

#[tokio::test]
async fn what_is_known_survives_a_reload_of_the_same_rules_only() {
    let auth = auth("{}").await;
    let (environment, register): (_, Plugins) = (environment(Store::memory()), register());
    let config = |more: &str| format!("secret: {SECRET}\nintrospect: {}\n{more}", auth.config(""));
    let make = |more: &str| Rig::with(environment.clone(), &register, &[("token-validator", &config(more))]);
    let before = make("");
    assert_eq!(before.run(bearer(&good())).await.status(), 200);
    let same = make("");
    assert_eq!(same.run(bearer(&good())).await.status(), 200);
    assert_eq!(auth.calls(), 1);
    let other = make("roles: [admin]");
    assert_eq!(other.run(bearer(&good())).await.status(), 403);
    assert_eq!(auth.calls(), 2);
}

#[tokio::test]
async fn a_token_is_not_remembered_past_its_end() {
    // Good only within the leeway: checked anew each time, and not kept.
    let rig = with_secret("leeway: 1h");
    let late = token(claims(json!({ "exp": now() - 10 })));
    let ask = bearer(&late);
    assert_eq!(rig.run(ask.clone()).await.status(), 200);
    assert_eq!(rig.run(ask).await.status(), 200);
    let strict = with_secret("leeway: 0s");
    refused(&strict.run(bearer(&late)).await, "the token has expired");
}

#[test]
fn mistakes() {
    let pem = json!(RSA_PUBLIC).to_string();
    for (config, says) in [
        ("{}", "a key is wanted"),
        ("{secret: ''}", "empty"),
        ("{secret: a, public_key: b}", "not both"),
        ("{public_key: hello}", "not a public key in PEM"),
        ("{keys: {a: {}}}", "`secret` or `public_key` is wanted"),
        ("{secret: a, algorithms: [RS256]}", "RS256 does not go with an HMAC secret"),
        (&format!("{{public_key: {pem}, algorithms: [HS256]}}"), "HS256 does not go with an RSA key"),
        (&format!("{{public_key: {}}}", json!(RSA_PRIVATE)), "private key"),
        (&format!("{{public_key: {}, algorithms: [ES384]}}", json!(EC_PUBLIC)), "ES384 does not go with a P-256 key"),
        ("{secret: a, algorithms: [none]}", "none"),
        ("{secret: a, leeway: 2d}", "at most a day"),
        ("{secret: a, sources: []}", ""),
        ("{secret: a, sources: [{header: 'a b'}]}", "not a header name"),
        ("{secret: a, identity_headers: {'a b': sub}}", "not a header name"),
        ("{secret: a, identity_headers: {Transfer-Encoding: sub}}", "says where a message or a connection ends"),
        ("{secret: a, realm: 'a\"b'}", "realm"),
        ("{secret: a, introspect: {url: 'ftp://x'}}", ""),
    ] {
        let text = crate::testing::errors("token-validator", config).iter().map(ToString::to_string).collect::<String>();
        assert!(text.contains(says), "{config}: {text}");
        assert!(!text.contains(SECRET));
    }
}

/// What the rules with this secret say of a token.
fn verified(token: &str) -> Result<Claims, Refusal> {
    static RULES: std::sync::LazyLock<Rules> = std::sync::LazyLock::new(|| {
        let config = Config { secret: Some(weir_config::Secret::new(SECRET)), ..Config::default() };
        settings::ready(config, &weir_config::Node::default()).unwrap_or_else(|e| panic!("{e:?}"))
    });
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(RULES.keys.verify(token, now()))
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), any::<f64>().prop_map(Value::from), any::<i64>().prop_map(Value::from), ".{0,8}".prop_map(Value::from)];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("exp|nbf|aud|iss|sub|alg|kid|crit|jwk", inner, 0..4).prop_map(|m| Value::from_iter(m)),
        ]
    })
}

proptest! {
    #[test]
    fn any_token_is_survived_and_refused(token in "\\PC{0,80}|[A-Za-z0-9_.-]{0,80}") {
        prop_assert!(verified(&token).is_err());
    }

    /// Headers of any shape: never good without the signature, and never a panic.
    #[test]
    fn any_header_and_claims_are_survived_and_refused(header in any_json(), claims in any_json(), signature in "[A-Za-z0-9_-]{0,60}") {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let token = format!("{}.{}.{signature}", part(&header), part(&claims));
        prop_assert!(verified(&token).is_err());
    }

    /// Claims of any shape under a good signature: whatever is admitted has not expired.
    #[test]
    fn any_signed_claims_are_survived(claims in any_json(), exp in prop::option::of(any_json())) {
        let mut claims = claims;
        if let (Some(object), Some(exp)) = (claims.as_object_mut(), exp) {
            object.insert("exp".into(), exp);
        }
        if let Ok(claims) = verified(&hs(SECRET, &Header::default(), &claims)) {
            prop_assert!(claims["exp"].as_f64().unwrap() + 31.0 > now() as f64);
        }
    }

    #[test]
    fn any_change_of_a_good_token_is_refused(at in any::<prop::sample::Index>(), to in "[A-Za-z0-9_=-]") {
        let good = good();
        let mut bytes = good.clone().into_bytes();
        let place = at.index(bytes.len());
        bytes[place] = to.as_bytes()[0];
        let changed = String::from_utf8(bytes).unwrap();
        prop_assert_eq!(verified(&changed).is_ok(), changed == good);
    }
}
