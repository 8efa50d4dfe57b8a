//! Tokens of issuers: key sets, discovery, rotation.

use super::*;
use parking_lot::Mutex;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// An issuer of tokens: answers by path, and what it was asked for.
pub(crate) struct Issuer {
    pub(crate) url: String,
    pages: Arc<Mutex<Vec<(String, Value)>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Issuer {
    pub(crate) async fn new() -> Issuer {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let issuer = Issuer { url: url.clone(), pages: Arc::default(), asked: Arc::default() };
        issuer.page("/.well-known/openid-configuration", json!({ "issuer": url, "jwks_uri": format!("{url}/keys") }));
        let (pages, asked) = (issuer.pages.clone(), issuer.asked.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (pages, asked) = (pages.clone(), asked.clone());
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        match stream.read_u8().await {
                            Ok(byte) => head.push(byte),
                            Err(_) => return,
                        }
                    }
                    let path = String::from_utf8_lossy(&head).split(' ').nth(1).unwrap().to_owned();
                    let page = pages.lock().iter().rev().find(|(p, _)| *p == path).map(|(_, v)| v.to_string());
                    asked.lock().push(path);
                    let (status, body) = page.map_or((500, String::new()), |b| (200, b));
                    let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
                    let _ = stream.write_all(answer.as_bytes()).await;
                });
            }
        });
        issuer
    }

    pub(crate) fn page(&self, path: &str, value: Value) {
        self.pages.lock().push((path.into(), value));
    }

    pub(crate) fn keys(&self, keys: &[Value]) {
        self.page("/keys", json!({ "keys": keys }));
    }

    /// How often the key set was asked for.
    pub(crate) fn fetches(&self) -> usize {
        self.asked.lock().iter().filter(|p| *p == "/keys").count()
    }
}

pub(crate) fn rsa_jwk(kid: &str, key: &RsaKeyPair) -> Value {
    let public = key.public_key();
    let part = |n: &[u8]| URL.encode(n);
    json!({
        "kty": "RSA", "kid": kid, "use": "sig",
        "n": part(public.modulus().big_endian_without_leading_zero()),
        "e": part(public.exponent().big_endian_without_leading_zero()),
    })
}

pub(crate) fn ec_jwk(kid: &str, alg: &str, curve: &str) -> Value {
    let point = ec(alg).public_key().as_ref().to_vec();
    let (x, y) = point[1..].split_at((point.len() - 1) / 2);
    json!({ "kty": "EC", "kid": kid, "crv": curve, "x": URL.encode(x), "y": URL.encode(y), "alg": alg })
}

pub(crate) fn signed(alg: &str, kid: Option<&str>, changes: Value) -> String {
    let mut claims = json!({ "iss": "i", "sub": "carol", "jti": "t-1", "exp": LATER });
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    let mut header = json!({ "alg": alg.trim_start_matches("other ") });
    if let Some(kid) = kid {
        header["kid"] = kid.into();
    }
    made(header, &claims, alg, b"")
}

#[tokio::test]
async fn keys_of_a_set_are_fetched_once_and_verify() {
    let issuer = Issuer::new().await;
    let ed = json!({ "kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": URL.encode(ED_KEY.public_key().as_ref()) });
    issuer.keys(&[
        rsa_jwk("rsa", &RSA_KEY),
        ec_jwk("p256", "ES256", "P-256"),
        ec_jwk("p384", "ES384", "P-384"),
        ec_jwk("p521", "ES512", "P-521"),
        ed,
        json!({ "kty": "oct", "kid": "oct", "k": URL.encode("hush") }),
        json!({ "kty": "new", "kid": "n" }),
    ]);
    let rig = rig(&format!("jwks_uri: {}/keys", issuer.url));
    for (alg, kid) in
        [("RS256", "rsa"), ("RS512", "rsa"), ("PS256", "rsa"), ("ES256", "p256"), ("ES384", "p384"), ("ES512", "p521"), ("EdDSA", "ed")]
    {
        let seen = rig.run(bearer(&signed(alg, Some(kid), json!({})))).await;
        assert_eq!(seen.status(), 200, "{alg}: {}", seen.body);
        assert_eq!(seen.sent("x-credential-identifier"), "t-1");
        assert_eq!(seen.sent_maybe("x-consumer-id"), None);
        assert_eq!(seen.cx.identity.unwrap().subject, "carol");
    }
    assert_eq!(issuer.fetches(), 1);
    // Without `kid` any key may do; a key for signing with a secret never does.
    assert_eq!(rig.run(bearer(&signed("ES384", None, json!({})))).await.status(), 200);
    let forged = made(json!({ "alg": "HS256", "kid": "oct" }), &json!({ "iss": "i", "exp": LATER }), "HS256", b"hush");
    refused(&rig.run(bearer(&forged)).await, json!({ "message": "No credentials found for given 'kid'" }));
    refused(&rig.run(bearer(&signed("other RS256", Some("rsa"), json!({})))).await, json!({ "message": "Invalid signature" }));
    // A consumer's key still counts.
    let seen = rig.run(bearer(&hs(json!({ "iss": "shop" })))).await;
    assert_eq!(seen.sent("x-consumer-username"), "alice");
}

#[tokio::test]
async fn an_issuer_is_discovered_and_held_to_its_word() {
    let issuer = Issuer::new().await;
    issuer.keys(&[rsa_jwk("1", &RSA_KEY)]);
    let rig = rig(&format!("{{issuer: '{}', audience: [shop]}}", issuer.url));
    let run = async |changes: Value| rig.run(bearer(&signed("RS256", Some("1"), changes))).await;
    assert_eq!(run(json!({ "iss": issuer.url, "aud": "shop" })).await.status(), 200);
    assert_eq!(run(json!({ "iss": issuer.url, "aud": ["x", "shop"] })).await.status(), 200);
    refused(&run(json!({ "iss": "i", "aud": "shop" })).await, json!({ "message": "Invalid issuer" }));
    refused(&run(json!({ "iss": issuer.url, "aud": "other" })).await, json!({ "message": "Invalid audience" }));
    refused(&run(json!({ "iss": issuer.url })).await, json!({ "message": "Invalid audience" }));
    refused(&run(json!({ "iss": issuer.url, "aud": "shop", "exp": null })).await, json!({ "exp": "must be a number" }));
    refused(&run(json!({ "iss": issuer.url, "aud": "shop", "exp": 1 })).await, json!({ "exp": "token expired" }));
    refused(&run(json!({ "iss": issuer.url, "aud": "shop", "nbf": LATER })).await, json!({ "nbf": "token not valid yet" }));
}

#[tokio::test]
async fn a_document_of_another_issuer_is_not_believed() {
    let issuer = Issuer::new().await;
    issuer.keys(&[rsa_jwk("1", &RSA_KEY)]);
    issuer.page("/.well-known/openid-configuration", json!({ "issuer": "https://evil.example", "jwks_uri": format!("{}/keys", issuer.url) }));
    let seen = rig(&format!("issuer: '{}'", issuer.url)).run(bearer(&signed("RS256", Some("1"), json!({ "iss": issuer.url })))).await;
    assert_eq!(seen.status(), 503);
    assert_eq!(issuer.fetches(), 0);
}

#[tokio::test]
async fn without_keys_it_is_503_and_the_issuer_is_not_pestered() {
    let issuer = Issuer::new().await;
    let rig = rig(&format!("jwks_uri: {}/keys", issuer.url));
    for _ in 0..3 {
        let seen = rig.run(bearer(&signed("RS256", Some("1"), json!({})))).await;
        assert_eq!(seen.status(), 503);
        assert_eq!(seen.json(), json!({ "message": "The keys of the token's issuer can not be fetched" }));
        assert_eq!(seen.header("retry-after"), Some("1"));
    }
    assert_eq!(issuer.fetches(), 1);
}

#[tokio::test]
async fn a_rotation_is_noticed_with_the_first_new_token() {
    let issuer = Issuer::new().await;
    issuer.keys(&[rsa_jwk("1", &RSA_KEY)]);
    let rig = rig(&format!("{{jwks_uri: '{}/keys', jwks_min_interval: 1s}}", issuer.url));
    assert_eq!(rig.run(bearer(&signed("RS256", Some("1"), json!({})))).await.status(), 200);
    issuer.keys(&[ec_jwk("2", "ES256", "P-256")]);
    // Until the second is over it is refused.
    while rig.run(bearer(&signed("ES256", Some("2"), json!({})))).await.status() != 200 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(issuer.fetches(), 2);
    assert_eq!(rig.run(bearer(&signed("RS256", Some("1"), json!({})))).await.status(), 401, "the old key is gone");
}

#[tokio::test]
async fn unknown_keys_do_not_pester_the_issuer() {
    let issuer = Issuer::new().await;
    issuer.keys(&[rsa_jwk("1", &RSA_KEY)]);
    let rig = rig(&format!("{{jwks_uri: '{}/keys', jwks_min_interval: 1h}}", issuer.url));
    for kid in ["2", "3", "4"] {
        let seen = rig.run(bearer(&signed("ES256", Some(kid), json!({})))).await;
        refused(&seen, json!({ "message": "No credentials found for given 'kid'" }));
    }
    assert_eq!(rig.run(bearer(&signed("RS256", Some("1"), json!({})))).await.status(), 200);
    assert_eq!(issuer.fetches(), 1);
}

#[tokio::test]
async fn many_requests_at_once_fetch_once() {
    let issuer = Issuer::new().await;
    issuer.keys(&[rsa_jwk("1", &RSA_KEY)]);
    let rig = Arc::new(rig(&format!("jwks_uri: {}/keys", issuer.url)));
    let token = signed("RS256", Some("1"), json!({}));
    let all: Vec<_> = (0..20)
        .map(|_| {
            let (rig, ask) = (rig.clone(), bearer(&token));
            tokio::spawn(async move { rig.run(ask).await.status() })
        })
        .collect();
    for one in all {
        assert_eq!(one.await.unwrap(), 200);
    }
    assert_eq!(issuer.fetches(), 1);
}

#[tokio::test]
async fn keys_are_fetched_again_in_the_background_and_kept_when_that_fails() {
    let issuer = Issuer::new().await;
    issuer.keys(&[rsa_jwk("1", &RSA_KEY)]);
    let rig = rig(&format!("{{jwks_uri: '{}/keys', jwks_refresh: 1s}}", issuer.url));
    let token = signed("RS256", Some("1"), json!({}));
    assert_eq!(rig.run(bearer(&token)).await.status(), 200);
    issuer.page("/keys", json!("broken"));
    while issuer.fetches() < 3 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(rig.run(bearer(&token)).await.status(), 200);
    issuer.keys(&[]);
    let before = issuer.fetches();
    while issuer.fetches() < before + 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(rig.run(bearer(&token)).await.status(), 401);
}

#[tokio::test]
async fn keys_outlive_a_reload() {
    let issuer = Issuer::new().await;
    issuer.keys(&[rsa_jwk("1", &RSA_KEY)]);
    let register = crate::register();
    let environment = crate::testing::environment(weir_store::Store::memory());
    let config = format!("jwks_uri: {}/keys", issuer.url);
    let load = || Rig::made(environment.clone(), &register, vec![], &[("jwt", config.as_str())]);
    let ask = bearer(&signed("RS256", Some("1"), json!({})));
    let old = load();
    assert_eq!(old.run(ask.clone()).await.status(), 200);
    let new = load();
    drop(old);
    assert_eq!(new.run(ask).await.status(), 200);
    assert_eq!(issuer.fetches(), 1);
}

#[tokio::test]
async fn claims_name_the_consumer_and_the_groups() {
    let issuer = Issuer::new().await;
    issuer.keys(&[rsa_jwk("1", &RSA_KEY)]);
    let config = format!("{{jwks_uri: '{}/keys', consumer_claim: client.id, groups_claim: realm.roles}}", issuer.url);
    let rig = |acl: &str| {
        let mut alice = consumer("alice");
        alice.custom_id = Some("c-1".into());
        alice.groups = vec!["own".into()];
        Rig::of(vec![alice], &[("jwt", config.as_str()), ("acl", acl)])
    };
    let token = |id: &str| signed("RS256", Some("1"), json!({ "client": { "id": id }, "realm": { "roles": ["a", "b"] } }));
    let seen = rig("allow: [own]").run(bearer(&token("c-1"))).await;
    assert_eq!(seen.sent("x-consumer-username"), "alice");
    assert_eq!(seen.sent("x-consumer-groups"), "own");
    let first = "{allow: [b], always_use_authenticated_groups: true}";
    let seen = rig(first).run(bearer(&token("c-1"))).await;
    assert_eq!(seen.sent("x-authenticated-groups"), "a, b");
    assert_eq!(rig("allow: [b]").run(bearer(&token("c-1"))).await.status(), 403);
    let seen = rig("allow: [own]").run(bearer(&token("nobody"))).await;
    refused(&seen, json!({ "message": "Could not find consumer for 'client.id=nobody'" }));
}

#[tokio::test]
async fn groups_of_a_token_without_consumer() {
    let issuer = Issuer::new().await;
    issuer.keys(&[rsa_jwk("1", &RSA_KEY)]);
    let config = format!("{{jwks_uri: '{}/keys', groups_claim: scope}}", issuer.url);
    for (acl, status) in [("allow: [write]", 200), ("allow: [admin]", 403), ("deny: [write]", 403)] {
        let rig = Rig::new(&[("jwt", config.as_str()), ("acl", acl)]);
        let seen = rig.run(bearer(&signed("RS256", Some("1"), json!({ "scope": "read write" })))).await;
        assert_eq!(seen.status(), status, "{acl}");
    }
}
