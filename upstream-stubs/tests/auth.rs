//! The auth service over real sockets.

mod support;

use base64::Engine;
use serde_json::{Value, json};
use support::{get, post_json, send, stub, stub_with};
use upstream_stubs::{AuthOptions, Kind, Options, Running};

fn basic(name: &str, password: &str) -> String {
    format!(
        "Basic {}",
        base64::engine::general_purpose::STANDARD.encode(format!("{name}:{password}"))
    )
}

async fn login(auth: &Running) -> Value {
    let answer = send(
        "POST",
        auth,
        "/api/auth/login",
        &[("authorization", &basic("alice", "wonderland"))],
        "",
    )
    .await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("cache-control"), "no-store");
    answer.json()
}

fn bearer(tokens: &Value) -> String {
    format!("Bearer {}", tokens["access_token"].as_str().unwrap())
}

#[tokio::test]
async fn login_gives_tokens_that_verify() {
    let auth = stub(Kind::Auth).await;
    let tokens = login(&auth).await;
    for method in ["GET", "POST"] {
        let claims = send(
            method,
            &auth,
            "/api/auth/verify",
            &[("authorization", &bearer(&tokens))],
            "",
        )
        .await
        .json();
        assert_eq!(
            (claims["sub"].as_str(), claims["role"].as_str()),
            (Some("alice"), Some("customer"))
        );
        assert_eq!(claims["iss"], AuthOptions::default().issuer);
        assert_eq!(
            claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(),
            900
        );
        assert!(
            claims["jti"].is_string() && claims["scope"].is_string() && claims["aud"].is_string()
        );
    }
    let by_json = post_json(
        &auth,
        "/api/auth/login",
        &[],
        json!({"username": "bob", "password": "builder"}),
    )
    .await;
    assert_eq!(by_json.json()["user"]["role"], "admin");
}

#[tokio::test]
async fn an_independent_verifier_accepts_the_token() {
    let auth = stub(Kind::Auth).await;
    let tokens = login(&auth).await;
    let options = AuthOptions::default();
    let mut rules = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::HS256);
    rules.set_issuer(&[&options.issuer]);
    rules.set_audience(&[&options.audience]);
    let key = jsonwebtoken::DecodingKey::from_secret(options.secret.reveal().as_bytes());
    let claims =
        jsonwebtoken::decode::<Value>(tokens["access_token"].as_str().unwrap(), &key, &rules)
            .unwrap()
            .claims;
    assert_eq!(claims["sub"], "alice");
}

#[tokio::test]
async fn bad_credentials_and_bad_tokens_are_401_with_a_challenge() {
    let auth = stub(Kind::Auth).await;
    let wrong = send(
        "POST",
        &auth,
        "/api/auth/login",
        &[("authorization", &basic("alice", "wrong"))],
        "",
    )
    .await;
    assert_eq!(wrong.status, 401);
    assert!(wrong.header("www-authenticate").starts_with("Basic"));
    let unreadable = send(
        "POST",
        &auth,
        "/api/auth/login",
        &[("authorization", "Basic ???")],
        "",
    )
    .await;
    assert_eq!(unreadable.status, 401);
    let none = get(&auth, "/api/auth/verify", &[]).await;
    assert_eq!(
        (none.status.as_u16(), none.header("www-authenticate")),
        (401, "Bearer")
    );
    let tokens = login(&auth).await;
    let mut forged = bearer(&tokens);
    let last = forged.pop().unwrap();
    forged.push(if last == 'A' { 'Q' } else { 'A' });
    let refused = get(&auth, "/api/auth/verify", &[("authorization", &forged)]).await;
    assert_eq!(
        (refused.status.as_u16(), refused.header("www-authenticate")),
        (401, "Bearer error=\"invalid_token\"")
    );
    let other = stub_with(
        Kind::Auth,
        Options {
            auth: AuthOptions {
                secret: "another secret of some length".into(),
                ..AuthOptions::default()
            },
            ..Options::default()
        },
    )
    .await;
    assert_eq!(
        get(
            &other,
            "/api/auth/verify",
            &[("authorization", &bearer(&tokens))]
        )
        .await
        .status,
        401
    );
}

#[tokio::test]
async fn expired_tokens_are_refused() {
    let options = Options {
        auth: AuthOptions {
            access_ttl: std::time::Duration::ZERO,
            ..AuthOptions::default()
        },
        ..Options::default()
    };
    let auth = stub_with(Kind::Auth, options).await;
    let tokens = login(&auth).await;
    // Good until a whole second; the next one has come after a second's sleep.
    tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
    assert_eq!(
        get(
            &auth,
            "/api/auth/verify",
            &[("authorization", &bearer(&tokens))]
        )
        .await
        .status,
        401
    );
}

#[tokio::test]
async fn refresh_works_once_and_logout_revokes() {
    let auth = stub(Kind::Auth).await;
    let first = login(&auth).await;
    let second = post_json(
        &auth,
        "/api/auth/refresh",
        &[],
        json!({"refresh_token": first["refresh_token"]}),
    )
    .await;
    assert_eq!(second.status, 200);
    let second = second.json();
    assert_eq!(
        post_json(
            &auth,
            "/api/auth/refresh",
            &[],
            json!({"refresh_token": first["refresh_token"]})
        )
        .await
        .status,
        401
    );
    let out = post_json(
        &auth,
        "/api/auth/logout",
        &[("authorization", &bearer(&second))],
        json!({"refresh_token": second["refresh_token"]}),
    )
    .await;
    assert_eq!(out.status, 204);
    assert_eq!(
        get(
            &auth,
            "/api/auth/verify",
            &[("authorization", &bearer(&second))]
        )
        .await
        .status,
        401
    );
    assert_eq!(
        post_json(
            &auth,
            "/api/auth/refresh",
            &[],
            json!({"refresh_token": second["refresh_token"]})
        )
        .await
        .status,
        401
    );
    assert_eq!(
        get(
            &auth,
            "/api/auth/verify",
            &[("authorization", &bearer(&first))]
        )
        .await
        .status,
        200,
        "the other token lives on"
    );
}

#[tokio::test]
async fn register_guest_and_keys() {
    let auth = stub(Kind::Auth).await;
    let account = json!({"username": "dora", "password": "explorer"});
    assert_eq!(
        post_json(&auth, "/api/auth/register", &[], account.clone())
            .await
            .status,
        201
    );
    assert_eq!(
        post_json(&auth, "/api/auth/register", &[], account.clone())
            .await
            .status,
        409
    );
    assert_eq!(
        post_json(&auth, "/api/auth/login", &[], account)
            .await
            .status,
        200
    );
    assert_eq!(
        post_json(
            &auth,
            "/api/auth/register",
            &[],
            json!({"username": "x", "password": "short"})
        )
        .await
        .status,
        422
    );
    assert_eq!(
        send("POST", &auth, "/api/auth/register", &[], "{")
            .await
            .status,
        400
    );
    let guest = send("POST", &auth, "/api/auth/guest", &[], "").await.json();
    let claims = get(
        &auth,
        "/api/auth/verify",
        &[("authorization", &bearer(&guest))],
    )
    .await
    .json();
    assert!(claims["sub"].as_str().unwrap().starts_with("guest-") && claims["role"] == "guest");
    assert_eq!(
        get(&auth, "/.well-known/jwks.json", &[]).await.json(),
        json!({"keys": []})
    );
    assert_eq!(
        get(&auth, "/api/auth/login", &[]).await.header("allow"),
        "POST"
    );
}
