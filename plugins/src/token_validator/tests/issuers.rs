//! Keys of issuers, all algorithms, and token introspection by RFC 7662.

use super::*;
use crate::jwt::tests::{RSA_KEY, issuers::{Issuer, ec_jwk, rsa_jwk}, made, public_pem};

const ALGORITHMS: [&str; 13] =
    ["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"];

fn signed(alg: &str, kid: Option<&str>, changes: Value) -> String {
    let mut header = json!({ "alg": alg });
    if let Some(kid) = kid {
        header["kid"] = kid.into();
    }
    made(header, &claims(changes), alg, SECRET.as_bytes())
}

#[tokio::test]
async fn every_algorithm_and_no_other_than_the_keys() {
    for alg in ALGORITHMS {
        let key = match alg.starts_with("HS") {
            true => format!("secret: {SECRET}"),
            false => format!("public_key: {}", json!(public_pem(alg))),
        };
        let rig = rig(&format!("{{{key}, algorithms: [{alg}]}}"));
        for other in ALGORITHMS {
            let seen = rig.run(bearer(&signed(other, None, json!({})))).await;
            match other == alg {
                true => assert_eq!(seen.status(), 200, "{alg}: {}", seen.body),
                false => refused(&seen, "the token's algorithm is not accepted"),
            }
        }
        // The algorithm's name alone makes no signature.
        let swapped = made(json!({ "alg": alg }), &claims(json!({})), if alg == "HS256" { "HS384" } else { "HS256" }, SECRET.as_bytes());
        refused(&rig.run(bearer(&swapped)).await, "the token's signature does not match");
    }
}

#[tokio::test]
async fn a_token_is_verified_by_its_issuers_keys_and_no_others() {
    let (one, two) = (Issuer::new().await, Issuer::new().await);
    one.keys(&[rsa_jwk("k", &RSA_KEY)]);
    two.keys(&[ec_jwk("k", "ES256", "P-256"), ec_jwk("l", "ES512", "P-521")]);
    let rig = rig(&format!(
        "secret: {SECRET}
audience: shop
jwks: {{min_interval: 1h}}
issuers:
  - issuer: '{}'
  - {{issuer: two, jwks_uri: '{}/keys', algorithms: [ES256], audience: [other]}}
  - {{issuer: three, keys: {{k: {{secret: {SECRET}-three}}}}}}",
        one.url, two.url
    ));
    let run = async |token: String| rig.run(bearer(&token)).await;
    let iss = |iss: &str, aud: &str| json!({ "iss": iss, "aud": aud });
    assert_eq!(run(signed("RS256", Some("k"), iss(&one.url, "shop"))).await.status(), 200);
    assert_eq!(run(signed("ES256", Some("k"), iss("two", "other"))).await.status(), 200);
    let three = made(json!({ "alg": "HS256", "kid": "k" }), &claims(iss("three", "shop")), "HS256", format!("{SECRET}-three").as_bytes());
    assert_eq!(run(three).await.status(), 200);
    assert_eq!(run(signed("HS256", None, iss("someone", "shop"))).await.status(), 200, "the plugin's own key, for any other issuer");
    for (token, why) in [
        (signed("RS256", Some("k"), iss("two", "other")), "the token's algorithm is not accepted"),
        (signed("ES256", Some("k"), iss(&one.url, "shop")), "the token's key is not known"),
        (signed("HS256", Some("k"), iss(&one.url, "shop")), "the token's key is not known"),
        (signed("HS256", None, iss("three", "shop")), "the token's signature does not match"),
        (signed("ES512", Some("l"), iss("two", "other")), "the token's algorithm is not accepted"),
        (signed("ES256", Some("k"), iss("two", "shop")), "the token is meant for another audience"),
        (signed("RS256", Some("k"), iss("someone", "shop")), "the token's algorithm is not accepted"),
    ] {
        refused(&run(token).await, why);
    }
    assert_eq!((one.fetches(), two.fetches()), (1, 1), "however many tokens named keys that are not there");
}

#[tokio::test]
async fn without_other_keys_an_issuer_that_is_not_listed_is_refused() {
    let issuer = Issuer::new().await;
    issuer.keys(&[rsa_jwk("k", &RSA_KEY)]);
    let rig = rig(&format!("issuers: [{{issuer: '{}'}}]", issuer.url));
    refused(&rig.run(bearer(&signed("RS256", Some("k"), json!({ "iss": "https://evil.example" })))).await, "the token's issuer is not accepted");
    refused(&rig.run(bearer(&signed("RS256", Some("k"), json!({})))).await, "the token has no `iss`");
    assert_eq!(issuer.fetches(), 0, "a stranger's token makes no fetch");
}

#[tokio::test]
async fn keys_that_can_not_be_had_are_503_but_for_tokens_that_are_known() {
    let issuer = Issuer::new().await;
    let rig = rig(&format!("issuers: [{{issuer: me, jwks_uri: '{}/keys'}}]\njwks: {{min_interval: 1s}}", issuer.url));
    let token = signed("RS256", Some("k"), json!({ "iss": "me" }));
    let seen = rig.run(bearer(&token)).await;
    assert_eq!((seen.status(), seen.header("retry-after")), (503, Some("1")));
    assert_eq!(seen.json(), json!({ "message": "The keys of the token's issuer can not be fetched" }));
    issuer.keys(&[rsa_jwk("k", &RSA_KEY)]);
    while rig.run(bearer(&token)).await.status() != 200 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let fetches = issuer.fetches();
    for _ in 0..3 {
        assert_eq!(rig.run(bearer(&token)).await.status(), 200);
    }
    assert_eq!(issuer.fetches(), fetches, "a token that was seen costs no fetch");
}

#[tokio::test]
async fn introspection_by_rfc_7662() {
    let auth = auth(r#"{"active":true,"sub":"carol","aud":"shop","exp":4102444800}"#).await;
    let config = |more: &str| format!("introspect: {}\n{more}", auth.config(", mode: introspect, protocol: rfc7662, client_id: 'weir:1', client_secret: 'a b'"));
    assert_eq!(rig(&config("audience: shop")).run(bearer("opaque/+")).await.sent("x-user-id"), "carol");
    let seen = auth.seen.lock()[0].clone();
    assert!(seen.starts_with("POST /api/auth/verify HTTP/1.1\r\n"), "{seen}");
    assert!(seen.contains("authorization: Basic d2VpciUzQTE6YSUyMGI=\r\n"), "{seen}");
    assert!(seen.contains("content-type: application/x-www-form-urlencoded\r\n"), "{seen}");
    assert!(seen.ends_with("\r\n\r\ntoken=opaque%2F%2B&token_type_hint=access_token"), "{seen}");
    // What it says is looked at like claims of a token.
    refused(&rig(&config("audience: other")).run(bearer("opaque")).await, "the token is meant for another audience");
    refused(&rig(&config("required_claims: [tenant]")).run(bearer("opaque")).await, "the token has no `tenant`");
    // Refused is then Weir, not the token.
    for status in [400, 401, 403] {
        auth.answers(status);
        assert_eq!(rig(&config("")).run(bearer("opaque")).await.status(), 503, "{status}");
    }
    for (body, status) in [(r#"{"active":false}"#, 401), ("{}", 503), (r#"{"active":"true"}"#, 503), ("active", 503), (r#"{"active":true,"exp":1}"#, 401)] {
        let auth = super::auth(body).await;
        let rig = rig(&format!("introspect: {}", auth.config(", mode: introspect, protocol: rfc7662")));
        assert_eq!(rig.run(bearer("opaque")).await.status(), status, "{body}");
    }
}

/// After three calls without any answer, the next requests do not each wait for one.
#[tokio::test]
async fn a_silent_auth_service_is_not_waited_for_by_everyone() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn({
        let calls = calls.clone();
        async move {
            while let Ok((stream, _)) = listener.accept().await {
                calls.fetch_add(1, SeqCst);
                drop(stream);
            }
        }
    });
    let rig = rig(&format!("introspect: {{url: '{url}', mode: introspect}}"));
    let mut without_call = None;
    for i in 0..100 {
        let before = calls.load(SeqCst);
        assert_eq!(rig.run(bearer(&format!("token-{i}"))).await.status(), 503);
        if calls.load(SeqCst) == before {
            without_call = Some(i);
            break;
        }
    }
    assert!(without_call.is_some_and(|i| i >= 3), "{without_call:?}");
}

#[test]
fn mistakes_of_issuers() {
    for (config, says) in [
        ("issuers: [{issuer: me}]", "discovery"),
        ("issuers: [{issuer: 'https://a'}, {issuer: 'https://a'}]", "twice"),
        ("issuers: [{issuer: me, jwks_uri: 'https://a', keys: {k: {secret: s}}}]", "not both"),
        ("issuers: [{issuer: 'https://a', algorithms: [HS256]}]", "HS256 is not for fetched keys"),
        ("issuers: [{issuer: me, keys: {k: {}}}]", "`secret` or `public_key` is wanted"),
        ("{secret: s, jwks: {refresh: 0s}}", "at least a second"),
        ("{secret: s, introspect: {url: 'http://a', client_id: a, client_secret: b}}", "rfc7662"),
        ("{secret: s, introspect: {url: 'http://a', protocol: rfc7662, client_id: a}}", "needs `client_secret`"),
        ("{secret: s, algorithms: [HS265]}", "HS256"),
    ] {
        let text = crate::testing::errors("token-validator", config).iter().map(ToString::to_string).collect::<String>();
        assert!(text.contains(says), "{config}: {text}");
    }
}
