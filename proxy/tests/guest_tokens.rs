//! Guest tokens: what is issued, what is believed, and who counts as what.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderName, HeaderValue};
use jsonwebtoken::{Algorithm, EncodingKey, Header, get_current_timestamp};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::time::Duration;
use weir_config::{GuestIssue, Guests, Millis, Secret};
use weir_proxy::guest::{GuestError, GuestIssuer, Visitor, token_in_answer};

const KEY: &str = "0123456789abcdef0123456789abcdef";
const ED25519: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIHycdPleyY9Cdr/896PJCHZGg+0zSPe/GnWe9eoyIH71
-----END PRIVATE KEY-----
";
const X25519: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VuBCIEIPB193krdG4Xc+R4NThmPlpYPb2EEfiBY2AEvR18mVpp
-----END PRIVATE KEY-----
";

fn config(key: &str) -> Guests {
    Guests {
        issue: GuestIssue::Local,
        key: Secret::new(key),
        cookie: "guest_token".into(),
        ttl: Millis::secs(3600),
        issuer: "weir".into(),
        secure: None,
    }
}

fn issuer() -> GuestIssuer {
    GuestIssuer::new(&config(KEY)).expect("a good key")
}

/// Believes the auth service's tokens too.
fn remote() -> GuestIssuer {
    let issue = GuestIssue::Remote { url: "http://auth/guest".into(), timeout: Duration::from_secs(5) };
    GuestIssuer::new(&Guests { issue, ..config(KEY) }).expect("a good key")
}

fn sign(claims: &Value, algorithm: Algorithm, key: &str) -> String {
    jsonwebtoken::encode(&Header::new(algorithm), claims, &EncodingKey::from_secret(key.as_bytes())).expect("signed")
}

fn claims() -> Value {
    let now = get_current_timestamp();
    json!({ "iss": "weir", "sub": "guest-x", "role": "guest", "iat": now, "exp": now + 60, "jti": "j" })
}

fn with(change: &[(&str, Value)]) -> Value {
    let mut claims = claims();
    for (name, value) in change {
        claims[*name] = value.clone();
    }
    claims
}

fn payload(token: &str) -> Value {
    let part = token.split('.').nth(1).expect("three parts");
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).expect("base64url")).expect("JSON")
}

fn headers(fields: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        map.append(HeaderName::from_bytes(name.as_bytes()).expect("name"), HeaderValue::from_str(value).expect("value"));
    }
    map
}

fn sessions() -> Vec<String> {
    vec!["session".into(), "access_token".into()]
}

#[test]
fn an_issued_token_says_who_and_how_long() {
    for (key, algorithm) in [(KEY, "HS256"), (ED25519, "EdDSA")] {
        let issuer = GuestIssuer::new(&config(key)).expect("a good key");
        let made = issuer.issue(false).expect("a token");
        assert!(issuer.verify(&made.token));
        let head: Value = {
            let part = made.token.split('.').next().expect("header");
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).expect("base64url")).expect("JSON")
        };
        assert_eq!(head["alg"], algorithm);
        let claims = payload(&made.token);
        assert_eq!(claims["iss"], "weir");
        assert_eq!(claims["role"], "guest");
        let id = claims["sub"].as_str().and_then(|s| s.strip_prefix("guest-")).expect("sub");
        assert_eq!(URL_SAFE_NO_PAD.decode(id).expect("base64url").len(), 16);
        assert_eq!(claims["exp"].as_u64(), claims["iat"].as_u64().map(|iat| iat + 3600));
        assert_ne!(claims["jti"], claims["sub"]);
    }
}

#[test]
fn no_two_guests_are_the_same() {
    let issuer = issuer();
    let ids: std::collections::HashSet<String> =
        (0..100).map(|_| payload(&issuer.issue(false).expect("a token").token)["sub"].to_string()).collect();
    assert_eq!(ids.len(), 100);
}

#[test]
fn the_cookie_is_out_of_reach_for_scripts() {
    let made = issuer().issue(false).expect("a token");
    let text = made.cookie.to_str().expect("ASCII");
    assert_eq!(text, format!("guest_token={}; Path=/; Max-Age=3600; HttpOnly; SameSite=Lax", made.token));
    assert!(made.cookie.is_sensitive());
    let secure = issuer().issue(true).expect("a token");
    assert!(secure.cookie.to_str().expect("ASCII").ends_with("; HttpOnly; SameSite=Lax; Secure"));
    let host = GuestIssuer::new(&Guests { cookie: "__Host-guest".into(), ..config(KEY) }).expect("a good name");
    assert!(host.issue(false).expect("a token").cookie.to_str().expect("ASCII").ends_with("; Secure"));
}

#[test]
fn keys_and_names_of_no_use_are_refused() {
    let error = |config: &Guests| GuestIssuer::new(config).err();
    assert_eq!(error(&config("short")), Some(GuestError::KeyTooShort));
    assert_eq!(error(&config("")), Some(GuestError::KeyTooShort));
    assert_eq!(error(&config(X25519)), Some(GuestError::NotEd25519));
    assert_eq!(error(&config("-----BEGIN PRIVATE KEY-----\nnonsense\n-----END PRIVATE KEY-----")), Some(GuestError::NotEd25519));
    for name in ["", "a b", "a;b", "a=b", "a\r\nb", "\u{e9}"] {
        assert_eq!(error(&Guests { cookie: name.into(), ..config(KEY) }), Some(GuestError::CookieName), "{name:?}");
    }
}

#[test]
fn only_our_unexpired_guest_tokens_are_believed() {
    let now = get_current_timestamp();
    let hs = Algorithm::HS256;
    let none = |claims: &Value| {
        let part = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
        format!("{}.{}.", part(&json!({"alg": "none", "typ": "JWT"})), part(claims))
    };
    let good = sign(&claims(), hs, KEY);
    let (head, rest) = good.split_once('.').expect("parts");
    let (body, signature) = rest.split_once('.').expect("parts");
    let forged = URL_SAFE_NO_PAD.encode(with(&[("sub", json!("guest-other"))]).to_string());
    let mut without_exp = claims();
    without_exp.as_object_mut().expect("object").remove("exp");
    let mut without_iss = claims();
    without_iss.as_object_mut().expect("object").remove("iss");
    let rows = [
        (good.clone(), true, "as issued"),
        (sign(&with(&[("exp", json!(now - 1))]), hs, KEY), false, "expired"),
        (sign(&with(&[("exp", json!(now))]), hs, KEY), false, "expires now"),
        (sign(&without_exp, hs, KEY), false, "never expires"),
        (sign(&with(&[("iss", json!("other"))]), hs, KEY), false, "of another issuer"),
        (sign(&without_iss, hs, KEY), false, "of no issuer"),
        (sign(&with(&[("role", json!("admin"))]), hs, KEY), false, "a user's token with the same key"),
        (sign(&claims(), hs, "another key of thirty-two bytes.."), false, "of another key"),
        (sign(&claims(), Algorithm::HS384, KEY), false, "another algorithm of the family"),
        (none(&claims()), false, "no algorithm"),
        (format!("{head}.{forged}.{signature}"), false, "changed claims"),
        (format!("{head}.{body}."), false, "no signature"),
        (format!("{head}.{body}"), false, "two parts"),
        (format!("{good}.{body}"), false, "four parts"),
        (format!("{good}="), false, "one more character"),
        (String::new(), false, "empty"),
        ("a".repeat(5000), false, "endless"),
        (format!("{good}\u{e9}"), false, "not ASCII"),
    ];
    let issuer = issuer();
    // Twice: what was refused must not be remembered as good.
    for _ in 0..2 {
        for (token, want, why) in &rows {
            assert_eq!(issuer.verify(token), *want, "{why}");
        }
    }
}

#[test]
fn a_public_key_is_no_hmac_secret() {
    let ed = GuestIssuer::new(&config(ED25519)).expect("a good key");
    let good = ed.issue(false).expect("a token").token;
    let other = GuestIssuer::new(&config(ED25519)).expect("a good key");
    assert!(other.verify(&good), "another process with the same key");
    assert!(!issuer().verify(&good));
    assert!(!ed.verify(&sign(&claims(), Algorithm::HS256, KEY)));
    assert!(!ed.verify(&sign(&claims(), Algorithm::HS256, ED25519)));
}

#[test]
fn a_remembered_token_still_expires() {
    let soon = sign(&with(&[("exp", json!(get_current_timestamp() + 2))]), Algorithm::HS256, KEY);
    let issuer = issuer();
    assert!(issuer.verify(&soon));
    while get_current_timestamp() < payload(&soon)["exp"].as_u64().expect("exp") {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(!issuer.verify(&soon));
}

/// Fields, who that is, and why.
type Row<'a> = (Vec<(&'static str, String)>, Visitor<'a>, &'static str);

#[test]
fn who_sent_it() {
    let issuer = issuer();
    let now = get_current_timestamp();
    let guest = issuer.issue(false).expect("a token").token;
    let second = issuer.issue(false).expect("a token").token;
    let other_key = "a key of the auth service, not ours";
    let user = sign(&json!({"sub": "u1", "exp": now + 60}), Algorithm::HS256, other_key);
    let expired = sign(&json!({"sub": "u1", "exp": now - 60}), Algorithm::HS256, other_key);
    let forged = sign(&claims(), Algorithm::HS256, other_key);
    fn is(token: &str) -> Visitor<'_> {
        Visitor::Guest(token)
    }
    let cookie = |text: String| vec![("cookie", text)];
    let rows: Vec<Row<'_>> = vec![
        (vec![], Visitor::None, "nothing"),
        (cookie(format!("guest_token={guest}")), is(&guest), "guest cookie"),
        (cookie(format!("a=b;guest_token = \"{guest}\" ; c")), is(&guest), "sloppy cookie line"),
        (vec![("cookie", "a=b".into()), ("cookie", format!("guest_token={guest}"))], is(&guest), "second cookie line"),
        (cookie(format!("guest_token={guest}; guest_token={second}")), is(&guest), "the first of two"),
        (cookie(format!("guest_token=x; guest_token={forged}; guest_token={second}")), is(&second), "the first valid one"),
        (cookie(format!("Guest_Token={guest}")), Visitor::None, "names have a case"),
        (cookie(format!("xguest_token={guest}")), Visitor::None, "another name"),
        (cookie(format!("guest_token={forged}")), Visitor::None, "forged"),
        (cookie("guest_token=".into()), Visitor::None, "empty"),
        (cookie("guest_token".into()), Visitor::None, "without a value"),
        (cookie(";;; = ;".into()), Visitor::None, "rubbish"),
        (vec![("authorization", format!("Bearer {guest}"))], is(&guest), "guest token as bearer"),
        (vec![("authorization", format!("bearer {guest}"))], is(&guest), "schemes have no case"),
        (vec![("authorization", format!("Bearer {user}"))], Visitor::SignedIn, "a user's token"),
        (vec![("authorization", format!("Bearer {expired}"))], Visitor::SignedIn, "also expired: the service shall say so"),
        (vec![("authorization", "Basic eDp5".into())], Visitor::SignedIn, "another scheme"),
        (vec![("authorization", format!("Bearer {user}")), ("cookie", format!("guest_token={guest}"))], Visitor::SignedIn, "both"),
        (vec![("authorization", format!("Bearer {guest}")), ("authorization", format!("Bearer {user}"))], Visitor::SignedIn, "two"),
        (cookie("session=abc".into()), Visitor::SignedIn, "opaque session"),
        (cookie("session=".into()), Visitor::None, "empty session"),
        (cookie(format!("access_token={user}")), Visitor::SignedIn, "session that is a JWT"),
        (cookie(format!("access_token={expired}")), Visitor::None, "expired session"),
        (cookie(format!("access_token={expired}; guest_token={guest}")), is(&guest), "expired session, guest"),
        (cookie(format!("guest_token={guest}; session=abc")), Visitor::SignedIn, "session behind a guest cookie"),
        (cookie(format!("access_token={guest}")), Visitor::None, "a guest token does not make a user"),
        (cookie("session.0=abc; session.1=def".into()), Visitor::SignedIn, "session in pieces"),
        (cookie("session.x=abc; sessions=1; session.=2".into()), Visitor::None, "other names"),
    ];
    for (fields, want, why) in rows {
        let fields: Vec<(&str, &str)> = fields.iter().map(|(n, v)| (*n, v.as_str())).collect();
        assert!(issuer.find_token(&headers(&fields), &sessions()) == want, "{why}");
    }
}

#[test]
fn a_session_in_another_script_is_a_session() {
    let mut map = HeaderMap::new();
    map.insert("cookie", HeaderValue::from_bytes(b"session=\xff\xfe").expect("obs-text"));
    assert_eq!(issuer().find_token(&map, &sessions()), Visitor::SignedIn);
}

#[test]
fn the_guest_cookie_may_have_a_sessions_name() {
    let issuer = GuestIssuer::new(&Guests { cookie: "access_token".into(), ..config(KEY) }).expect("a good name");
    let guest = issuer.issue(false).expect("a token").token;
    let user = sign(&json!({"sub": "u1", "exp": get_current_timestamp() + 60}), Algorithm::HS256, KEY);
    let find = |token: &str, want: Visitor<'_>| issuer.find_token(&headers(&[("cookie", &format!("access_token={token}"))]), &sessions()) == want;
    assert!(find(&guest, Visitor::Guest(&guest)));
    assert!(find(&user, Visitor::SignedIn));
}

#[test]
fn the_auth_services_answer() {
    let now = get_current_timestamp();
    let jwt = |exp: u64| sign(&json!({"sub": "g", "exp": exp}), Algorithm::HS256, "a key of the auth service, not ours");
    let (good, over) = (jwt(now + 60), jwt(now - 60));
    let read = |body: &Value| token_in_answer(body.to_string().as_bytes());
    assert_eq!(read(&json!({"token": good, "x": [1]})).as_deref(), Some(&*good));
    assert_eq!(read(&json!({"access_token": good, "token_type": "Bearer"})).as_deref(), Some(&*good));
    assert_eq!(read(&json!({"token": "opaque-1", "access_token": "x"})).as_deref(), Some("opaque-1"));
    for bad in [json!({"token": over}), json!({"token": ""}), json!({"token": "a b"}), json!({"token": "a;b"}), json!({"token": 1}), json!({}), json!([])] {
        assert_eq!(read(&bad), None, "{bad}");
    }
    assert_eq!(token_in_answer(b"\xff not json"), None);
    assert_eq!(token_in_answer(b""), None);
}

#[test]
fn a_token_of_the_auth_service_is_taken_over() {
    let now = get_current_timestamp();
    let jwt = |exp: u64| sign(&json!({"sub": "g", "exp": exp}), Algorithm::HS256, "a key of the auth service, not ours");
    let find =
        |issuer: &GuestIssuer, token: &str, want: Visitor<'_>| issuer.find_token(&headers(&[("cookie", &format!("guest_token={token}"))]), &sessions()) == want;

    let issuer = remote();
    let token = jwt(now + 60);
    let made = issuer.adopt(token.clone(), true).expect("adopted");
    assert_eq!(made.token, token);
    let age: u64 = made.cookie.to_str().ok().and_then(|t| t.split("Max-Age=").nth(1)?.split(';').next()?.parse().ok()).expect("Max-Age");
    assert!((1..=60).contains(&age), "the cookie does not outlive the token: {age}");
    assert!(find(&issuer, &token, Visitor::Guest(&token)));

    // Another process never saw it, but with `issue: {url}` it knows that such tokens exist; with `issue: local` it does not.
    assert!(find(&remote(), &token, Visitor::Guest(&token)));
    assert!(find(&self::issuer(), &token, Visitor::None));
    assert!(find(&remote(), &jwt(now - 1), Visitor::None));

    // One without an expiry lives as long as one of ours, where it was adopted.
    let made = issuer.adopt("opaque-token".into(), false).expect("adopted");
    assert!(made.cookie.to_str().expect("ASCII").contains("Max-Age=3600"));
    assert!(find(&issuer, "opaque-token", Visitor::Guest("opaque-token")));

    for unfit in [jwt(now - 1), String::new(), "a b".into(), "a;b".into(), "a\r\nb".into(), "x".repeat(5000)] {
        assert_eq!(issuer.adopt(unfit, false).err(), Some(GuestError::Unfit));
    }
}

#[test]
fn tokens_do_not_show_in_logs() {
    let made = issuer().issue(false).expect("a token");
    assert!(!format!("{made:?}").contains(&made.token));
    assert!(!format!("{:?}", made.cookie).contains(&made.token));
    assert!(!format!("{:?}", Visitor::Guest(&made.token)).contains(&made.token));
}

proptest! {
    #[test]
    fn no_other_bytes_are_believed(at in 0usize..1000, byte in any::<u8>()) {
        let issuer = issuer();
        let good = sign(&claims(), Algorithm::HS256, KEY);
        let mut bytes = good.clone().into_bytes();
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(text) = String::from_utf8(bytes) {
            prop_assert_eq!(issuer.verify(&text), text == good);
        }
    }

    #[test]
    fn arbitrary_cookies_make_no_visitor(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(value) = HeaderValue::from_bytes(&bytes) {
            let mut map = HeaderMap::new();
            map.insert("cookie", value);
            prop_assert!(!matches!(issuer().find_token(&map, &sessions()), Visitor::Guest(_)));
        }
    }
}
