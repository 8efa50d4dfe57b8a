use super::*;
use crate::testing::{Ask, Rig, Seen, ask, consumer, errors, get};
use aws_lc_rs::{
    encoding::AsDer,
    hmac, rand,
    rsa::KeySize,
    signature::{self as sig, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair},
};
use base64::{Engine, prelude::BASE64_STANDARD, prelude::BASE64_URL_SAFE_NO_PAD as URL};
use std::sync::LazyLock;
use weir_config::{JwtCredential, Secret};

pub(crate) mod issuers;

/// 2100.
const LATER: u64 = 4_102_444_800;

pub(crate) static RSA_KEY: LazyLock<RsaKeyPair> = LazyLock::new(|| RsaKeyPair::generate(KeySize::Rsa2048).unwrap());
static OTHER_RSA: LazyLock<RsaKeyPair> = LazyLock::new(|| RsaKeyPair::generate(KeySize::Rsa2048).unwrap());
static ED_KEY: LazyLock<Ed25519KeyPair> = LazyLock::new(|| Ed25519KeyPair::generate().unwrap());

fn ec(alg: &str) -> &'static EcdsaKeyPair {
    static KEYS: LazyLock<[EcdsaKeyPair; 3]> = LazyLock::new(|| {
        [&sig::ECDSA_P256_SHA256_FIXED_SIGNING, &sig::ECDSA_P384_SHA384_FIXED_SIGNING, &sig::ECDSA_P521_SHA512_FIXED_SIGNING]
            .map(|a| EcdsaKeyPair::generate(a).unwrap())
    });
    match alg {
        "ES256" => &KEYS[0],
        "ES384" => &KEYS[1],
        _ => &KEYS[2],
    }
}

fn sign(alg: &str, secret: &[u8], message: &[u8]) -> Vec<u8> {
    let random = rand::SystemRandom::new();
    let rsa = |key: &RsaKeyPair, padding: &'static dyn sig::RsaEncoding| {
        let mut out = vec![0; key.public_modulus_len()];
        key.sign(padding, &random, message, &mut out).unwrap();
        out
    };
    let mac = |hash| hmac::sign(&hmac::Key::new(hash, secret), message).as_ref().to_vec();
    match alg {
        "HS256" => mac(hmac::HMAC_SHA256),
        "HS384" => mac(hmac::HMAC_SHA384),
        "HS512" => mac(hmac::HMAC_SHA512),
        "RS256" => rsa(&RSA_KEY, &sig::RSA_PKCS1_SHA256),
        "RS384" => rsa(&RSA_KEY, &sig::RSA_PKCS1_SHA384),
        "RS512" => rsa(&RSA_KEY, &sig::RSA_PKCS1_SHA512),
        "PS256" => rsa(&RSA_KEY, &sig::RSA_PSS_SHA256),
        "PS384" => rsa(&RSA_KEY, &sig::RSA_PSS_SHA384),
        "PS512" => rsa(&RSA_KEY, &sig::RSA_PSS_SHA512),
        "other RS256" => rsa(&OTHER_RSA, &sig::RSA_PKCS1_SHA256),
        "EdDSA" => ED_KEY.sign(message).as_ref().to_vec(),
        es => ec(es).sign(&random, message).unwrap().as_ref().to_vec(),
    }
}

pub(crate) fn made(header: Value, claims: &Value, alg: &str, secret: &[u8]) -> String {
    let message = format!("{}.{}", URL.encode(header.to_string()), URL.encode(claims.to_string()));
    format!("{message}.{}", URL.encode(sign(alg, secret, message.as_bytes())))
}

fn hs(claims: Value) -> String {
    made(json!({ "typ": "JWT", "alg": "HS256" }), &claims, "HS256", b"hush")
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|l| std::str::from_utf8(l).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

pub(crate) fn public_pem(alg: &str) -> String {
    let der = match alg {
        "EdDSA" => ED_KEY.public_key().as_der().unwrap().as_ref().to_vec(),
        es if es.starts_with("ES") => ec(es).public_key().as_der().unwrap().as_ref().to_vec(),
        _ => RSA_KEY.public_key().as_der().unwrap().as_ref().to_vec(),
    };
    pem("PUBLIC KEY", &der)
}

fn credential(key: &str, algorithm: &str, secret: Option<&str>, public: Option<String>) -> JwtCredential {
    JwtCredential { key: key.into(), secret: secret.map(Secret::new), rsa_public_key: public.map(Secret::new), algorithm: algorithm.into() }
}

fn rig_with(jwt: Vec<JwtCredential>, config: &str) -> Rig {
    let mut alice = consumer("alice");
    alice.custom_id = Some("c-1".into());
    alice.jwt = jwt;
    Rig::of(vec![consumer("guest"), alice], &[("jwt", config)])
}

fn rig(config: &str) -> Rig {
    rig_with(vec![credential("shop", "HS256", Some("hush"), None)], config)
}

fn bearer(token: &str) -> Ask {
    get("/").with("Authorization", &format!("Bearer {token}"))
}

fn refused(seen: &Seen, body: Value) {
    assert_eq!(seen.json(), body);
    assert_eq!(seen.status(), 401);
    assert_eq!(seen.header("www-authenticate"), Some("Bearer error=\"invalid_token\""));
    assert_eq!(seen.header("content-type"), Some("application/json; charset=utf-8"));
    assert!(!seen.forwarded());
}

#[tokio::test]
async fn a_good_token_names_the_consumer() {
    let token = hs(json!({ "iss": "shop", "sub": "x" }));
    let seen = rig("{}").run(bearer(&token)).await;
    assert_eq!(seen.status(), 200);
    assert_eq!(seen.sent("x-consumer-id"), "id-of-alice");
    assert_eq!(seen.sent("x-consumer-username"), "alice");
    assert_eq!(seen.sent("x-consumer-custom-id"), "c-1");
    assert_eq!(seen.sent("x-credential-identifier"), "shop");
    assert_eq!(seen.sent_maybe("x-anonymous-consumer"), None);
    assert_eq!(seen.sent("authorization"), format!("Bearer {token}"));
    let identity = seen.cx.identity.unwrap();
    assert_eq!((identity.subject.as_str(), identity.credential.as_deref()), ("alice", Some("shop")));
    assert_eq!(identity.claims.as_ref().unwrap()["sub"], "x");
}

#[tokio::test]
async fn without_a_token_there_is_a_challenge_without_an_error() {
    for (config, challenge) in [("{}", "Bearer"), ("realm: shop", "Bearer realm=\"shop\"")] {
        for ask in [get("/"), get("/").with("authorization", "Basic YTpi"), get("/").with("authorization", "Bearer "), get("/?jwt=")] {
            let seen = rig(config).run(ask).await;
            assert_eq!((seen.status(), seen.json()), (401, json!({ "message": "Unauthorized" })));
            assert_eq!(seen.header("www-authenticate"), Some(challenge));
        }
    }
    let seen = rig("realm: shop").run(bearer("x")).await;
    assert_eq!(seen.header("www-authenticate"), Some("Bearer realm=\"shop\", error=\"invalid_token\""));
}

#[tokio::test]
async fn tokens_are_found_where_configured() {
    let token = hs(json!({ "iss": "shop" }));
    for (config, ask, status) in [
        ("{}", get(&format!("/?jwt={token}")), 200),
        ("uri_param_names: [t]", get(&format!("/?jwt={token}")), 401),
        ("uri_param_names: [t]", get(&format!("/?t={token}")), 200),
        ("{}", get("/").with("cookie", &format!("jwt={token}")), 401),
        ("cookie_names: [session]", get("/").with("cookie", &format!("a=1; session={token}")), 200),
        ("{}", get("/").with("authorization", &format!("bearer  {token}")), 200),
        ("{}", get("/").with("authorization", &token), 401),
        ("header_names: [X-Token]", bearer(&token), 401),
        ("header_names: [X-Token]", get("/").with("x-token", &format!("Bearer {token}")), 200),
        ("{}", get(&format!("/?jwt={token}")).with("authorization", &format!("Bearer {token}")), 200),
    ] {
        assert_eq!(rig(config).run(ask).await.status(), status, "{config}");
    }
}

#[tokio::test]
async fn tokens_that_are_not_good_are_named() {
    let header = json!({ "alg": "HS256" });
    let odd = |header: Value, claims: Value| made(header, &claims, "HS256", b"hush");
    let good = hs(json!({ "iss": "shop" }));
    let (message, _) = good.rsplit_once('.').unwrap();
    for (token, why) in [
        ("x".to_owned(), "Bad token; invalid JSON"),
        ("x.y.z".to_owned(), "Bad token; invalid JSON"),
        (odd(json!(["alg"]), json!({ "iss": "shop" })), "Bad token; invalid JSON"),
        (format!("{message}."), "Bad token; invalid signature"),
        (format!("{message}.?"), "Bad token; invalid signature"),
        (odd(json!({}), json!({ "iss": "shop" })), "Bad token; invalid alg"),
        (odd(json!({ "alg": "none" }), json!({ "iss": "shop" })), "Bad token; invalid alg"),
        (odd(json!({ "alg": "HS256", "crit": ["x"] }), json!({ "iss": "shop" })), "Bad token; critical extension"),
        (odd(json!({ "alg": "HS384" }), json!({ "iss": "shop" })), "Invalid algorithm"),
        (odd(header.clone(), json!({})), "No mandatory 'iss' in claims"),
        (odd(header.clone(), json!({ "iss": "" })), "Invalid 'iss' in claims"),
        (odd(header.clone(), json!({ "iss": 7 })), "Invalid 'iss' in claims"),
        (odd(header.clone(), json!({ "iss": "nobody" })), "No credentials found for given 'iss'"),
        (made(header.clone(), &json!({ "iss": "shop" }), "HS256", b"other"), "Invalid signature"),
        (format!("{}.{}", message.replacen('.', ".e", 1), "AAAA"), "Bad token; invalid JSON"),
    ] {
        let seen = rig("{}").run(bearer(&token)).await;
        refused(&seen, json!({ "message": why }));
    }
    let two = get(&format!("/?jwt={good}")).with("authorization", "Bearer other");
    refused(&rig("{}").run(two).await, json!({ "message": "Multiple tokens provided" }));
    let same_field = bearer(&good).with("authorization", "Bearer other");
    refused(&rig("{}").run(same_field).await, json!({ "message": "Multiple tokens provided" }));
}

#[tokio::test]
async fn the_key_claim_may_be_another_and_stand_in_the_header() {
    let rig = rig("key_claim_name: kid");
    let header = json!({ "alg": "HS256", "kid": "shop" });
    assert_eq!(rig.run(bearer(&made(header.clone(), &json!({}), "HS256", b"hush"))).await.status(), 200);
    assert_eq!(rig.run(bearer(&hs(json!({ "kid": "shop" })))).await.status(), 200);
    let seen = rig.run(bearer(&made(header, &json!({ "kid": "other" }), "HS256", b"hush"))).await;
    refused(&seen, json!({ "message": "No credentials found for given 'kid'" }));
}

#[tokio::test]
async fn every_algorithm_and_no_other_than_the_credentials() {
    let all = ["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"];
    for alg in all {
        let key = match alg.starts_with("HS") {
            true => credential("k", alg, Some("hush"), None),
            false => credential("k", alg, None, Some(public_pem(alg))),
        };
        let rig = rig_with(vec![key], "{}");
        let token = |named: &str| made(json!({ "alg": named }), &json!({ "iss": "k" }), alg, b"hush");
        assert_eq!(rig.run(bearer(&token(alg))).await.status(), 200, "{alg}");
        for other in all.iter().filter(|o| **o != alg) {
            refused(&rig.run(bearer(&token(other))).await, json!({ "message": "Invalid algorithm" }));
        }
        let mut broken = token(alg);
        let last = if broken.pop() == Some('A') { 'Q' } else { 'A' };
        broken.push(last);
        assert_eq!(rig.run(bearer(&broken)).await.status(), 401, "{alg}");
    }
}

#[tokio::test]
async fn a_public_key_is_no_secret() {
    let public = public_pem("RS256");
    let rig = rig_with(vec![credential("k", "RS256", None, Some(public.clone()))], "{}");
    let token = made(json!({ "alg": "HS256" }), &json!({ "iss": "k" }), "HS256", public.as_bytes());
    refused(&rig.run(bearer(&token)).await, json!({ "message": "Invalid algorithm" }));
}

#[tokio::test]
async fn keys_that_can_not_be_used_are_refused() {
    let ed = ED_KEY.public_key().as_der().unwrap().as_ref().to_vec();
    for key in [
        credential("k", "RS256", None, Some("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----".into())),
        credential("k", "RS256", None, Some(pem("PUBLIC KEY", &ed))),
        credential("k", "RS256", None, Some(pem("PRIVATE KEY", &ed))),
        credential("k", "RS256", Some("hush"), None),
    ] {
        let seen = rig_with(vec![key], "{}").run(bearer(&made(json!({ "alg": "RS256" }), &json!({ "iss": "k" }), "RS256", b""))).await;
        refused(&seen, json!({ "message": "Invalid key/secret" }));
    }
    let pkcs1 = pem("RSA PUBLIC KEY", RSA_KEY.public_key().as_ref());
    let seen = rig_with(vec![credential("k", "RS256", None, Some(pkcs1))], "{}");
    assert_eq!(seen.run(bearer(&made(json!({ "alg": "RS256" }), &json!({ "iss": "k" }), "RS256", b""))).await.status(), 200);
}

#[tokio::test]
async fn secrets_in_base64() {
    let token = hs(json!({ "iss": "k" }));
    for (secret, config, status) in [
        (BASE64_STANDARD.encode("hush"), "secret_is_base64: true", 200),
        (URL.encode("hush"), "secret_is_base64: true", 200),
        (BASE64_STANDARD.encode("hush"), "{}", 401),
        ("hush".into(), "secret_is_base64: true", 401),
    ] {
        let rig = rig_with(vec![credential("k", "HS256", Some(&secret), None)], config);
        assert_eq!(rig.run(bearer(&token)).await.status(), status, "{secret} {config}");
    }
    let rig = rig_with(vec![credential("k", "HS256", Some("?"), None)], "secret_is_base64: true");
    refused(&rig.run(bearer(&token)).await, json!({ "message": "Invalid key/secret" }));
    let rig = rig_with(vec![credential("k", "RS256", None, Some(public_pem("RS256")))], "secret_is_base64: true");
    assert_eq!(rig.run(bearer(&made(json!({ "alg": "RS256" }), &json!({ "iss": "k" }), "RS256", b""))).await.status(), 200);
}

#[tokio::test]
async fn times_are_looked_at_where_asked() {
    let both = "claims_to_verify: [exp, nbf]";
    for (config, claims, errors) in [
        ("{}", json!({ "exp": 1 }), None),
        ("claims_to_verify: [exp]", json!({ "exp": LATER }), None),
        ("claims_to_verify: [exp]", json!({ "exp": 1 }), Some(json!({ "exp": "token expired" }))),
        ("claims_to_verify: [exp]", json!({}), Some(json!({ "exp": "must be a number" }))),
        ("claims_to_verify: [exp]", json!({ "exp": "9999999999" }), Some(json!({ "exp": "must be a number" }))),
        ("claims_to_verify: [nbf]", json!({ "nbf": LATER }), Some(json!({ "nbf": "token not valid yet" }))),
        (both, json!({ "nbf": LATER, "exp": 1 }), Some(json!({ "exp": "token expired", "nbf": "token not valid yet" }))),
        (both, json!({ "nbf": 1, "exp": LATER }), None),
        (
            "{claims_to_verify: [exp], maximum_expiration: 300}",
            json!({ "exp": LATER }),
            Some(json!({ "exp": "exceeds maximum allowed expiration" })),
        ),
        ("{claims_to_verify: [exp], maximum_expiration: 300}", json!({ "exp": now() + 200 }), None),
    ] {
        let mut claims = claims;
        claims["iss"] = "shop".into();
        let seen = rig(config).run(bearer(&hs(claims.clone()))).await;
        match errors {
            None => assert_eq!(seen.status(), 200, "{config} {claims}"),
            Some(errors) => refused(&seen, errors),
        }
    }
}

#[tokio::test]
async fn the_anonymous_consumer_stands_in_and_preflights_may_pass() {
    let seen = rig("anonymous: guest").run(bearer("x")).await;
    assert_eq!(seen.sent("x-consumer-username"), "guest");
    assert_eq!(seen.sent("x-anonymous-consumer"), "true");
    assert_eq!(rig("{}").run(ask("OPTIONS", "/")).await.status(), 401);
    assert_eq!(rig("run_on_preflight: false").run(ask("OPTIONS", "/")).await.status(), 200);
    // Another plugin vouches for it.
    let seen = rig("anonymous: guest").run(get("/").known_as("carol", None)).await;
    assert_eq!(seen.sent_maybe("x-consumer-username"), None);
    assert_eq!(seen.cx.identity.unwrap().subject, "carol");
}

#[test]
fn mistakes_are_named() {
    for (config, message) in [
        ("claims_to_verify: [iat]", "iat"),
        ("maximum_expiration: 60", "`maximum_expiration` needs `exp`"),
        ("{maximum_expiration: 31536001, claims_to_verify: [exp]}", "31536000"),
        ("header_names: ['a b']", "`a b` is not a header name"),
        ("realm: 'a\"b'", "a realm has no quotes"),
        ("jwks_uri: ftp://x", "http"),
        ("audience: [a]", "`audience` is of tokens of an `issuer`"),
        ("groups_claim: groups", "`groups_claim` is of tokens of an `issuer`"),
        ("{issuer: 'https://a', jwks_refresh: 0}", "at least a second"),
    ] {
        let found = errors("jwt", config);
        assert!(found[0].message.contains(message), "{config}: {}", found[0]);
    }
}
