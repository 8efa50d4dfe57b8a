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

/// 2100.
const LATER: u64 = 4_102_444_800;

static RSA_KEY: LazyLock<RsaKeyPair> = LazyLock::new(|| RsaKeyPair::generate(KeySize::Rsa2048).unwrap());
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

fn made(header: Value, claims: &Value, alg: &str, secret: &[u8]) -> String {
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

fn public_pem(alg: &str) -> String {
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
    assert_eq!(identity.claims.unwrap()["sub"], "x");
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

mod issuers {
    use super::*;
    use parking_lot::Mutex;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// An issuer of tokens: answers by path, and what it was asked for.
    struct Issuer {
        url: String,
        pages: Arc<Mutex<Vec<(String, Value)>>>,
        asked: Arc<Mutex<Vec<String>>>,
    }

    impl Issuer {
        async fn new() -> Issuer {
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

        fn page(&self, path: &str, value: Value) {
            self.pages.lock().push((path.into(), value));
        }

        fn keys(&self, keys: &[Value]) {
            self.page("/keys", json!({ "keys": keys }));
        }

        /// How often the key set was asked for.
        fn fetches(&self) -> usize {
            self.asked.lock().iter().filter(|p| *p == "/keys").count()
        }
    }

    fn rsa_jwk(kid: &str, key: &RsaKeyPair) -> Value {
        let public = key.public_key();
        let part = |n: &[u8]| URL.encode(n);
        json!({
            "kty": "RSA", "kid": kid, "use": "sig",
            "n": part(public.modulus().big_endian_without_leading_zero()),
            "e": part(public.exponent().big_endian_without_leading_zero()),
        })
    }

    fn ec_jwk(kid: &str, alg: &str, curve: &str) -> Value {
        let point = ec(alg).public_key().as_ref().to_vec();
        let (x, y) = point[1..].split_at((point.len() - 1) / 2);
        json!({ "kty": "EC", "kid": kid, "crv": curve, "x": URL.encode(x), "y": URL.encode(y), "alg": alg })
    }

    fn signed(alg: &str, kid: Option<&str>, changes: Value) -> String {
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
}
