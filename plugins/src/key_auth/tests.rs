use crate::testing::{Ask, Rig, ask, consumer, errors, get};
use weir_config::{ApiKey, Secret};

fn rig(config: &str) -> Rig {
    let mut alice = consumer("alice");
    alice.custom_id = Some("c-1".into());
    alice.keys = vec![ApiKey::new("secret-of-alice"), ApiKey::new("second"), ApiKey::new("")];
    Rig::of(vec![consumer("bob"), alice, consumer("guest")], &[("key-auth", config)])
}

async fn status(config: &str, ask: Ask) -> u16 {
    rig(config).run(ask).await.status()
}

#[tokio::test]
async fn a_good_key_names_the_consumer() {
    let seen = rig("{}").run(get("/").with("apikey", "secret-of-alice")).await;
    assert_eq!(seen.status(), 200);
    assert_eq!(seen.sent("x-consumer-id"), "id-of-alice");
    assert_eq!(seen.sent("x-consumer-username"), "alice");
    assert_eq!(seen.sent("x-consumer-custom-id"), "c-1");
    assert_eq!(seen.sent_maybe("x-anonymous-consumer"), None);
    assert_eq!(seen.sent("apikey"), "secret-of-alice");
    let id = seen.sent("x-credential-identifier").to_owned();
    assert!(id.len() == 36 && !id.contains("secret"), "{id}");
    let identity = seen.cx.identity.as_ref().unwrap();
    assert_eq!((identity.subject.as_str(), identity.credential.as_deref()), ("alice", Some(id.as_str())));
    let again = rig("{}").run(get("/").with("apikey", "secret-of-alice")).await;
    assert_eq!(again.sent("x-credential-identifier"), id, "the same after a restart");
    let other = rig("{}").run(get("/").with("apikey", "second")).await;
    assert_ne!(other.sent("x-credential-identifier"), id);
}

#[tokio::test]
async fn what_is_fetched_for_the_cache_names_no_one() {
    let sent = rig("hide_credentials: true").fill(get("/").with("apikey", "second")).await;
    for name in ["x-consumer-id", "x-consumer-username", "x-credential-identifier", "apikey"] {
        assert!(!sent.headers.contains_key(name), "{name}");
    }
}

#[tokio::test]
async fn keys_that_are_not_good_are_401() {
    for (ask, message) in [
        (get("/"), "No API key found in request"),
        (get("/").with("apikey", ""), "No API key found in request"),
        (get("/?apikey=&x=1"), "No API key found in request"),
        (get("/?apikey"), "No API key found in request"),
        (get("/").with("apikey", "secret-of-alic"), "Unauthorized"),
        (get("/").with("apikey", "secret-of-alice2"), "Unauthorized"),
        (get("/").with("apikey", "s\u{e9}"), "Unauthorized"),
        (get("/").with("apikey", "second").with("apikey", "second"), "Duplicate API key found"),
        (get("/?apikey=second&apikey=third"), "Duplicate API key found"),
        // What a header says is not made good by the query.
        (get("/?apikey=second").with("apikey", "wrong"), "Unauthorized"),
    ] {
        let seen = rig("{}").run(ask).await;
        assert_eq!(seen.status(), 401);
        assert_eq!(seen.json()["message"], message);
        assert_eq!(seen.json()["request_id"], seen.cx.id.as_str());
        assert_eq!(seen.header("www-authenticate"), Some("Key"));
        assert!(!seen.forwarded());
    }
    let seen = rig("realm: shop").run(get("/").with("accept", "text/plain")).await;
    assert_eq!(seen.header("www-authenticate"), Some("Key realm=\"shop\""));
    assert!(seen.body.starts_with("No API key found in request"), "{}", seen.body);
}

#[tokio::test]
async fn places_and_names_are_as_configured() {
    for (config, ask, code) in [
        ("{}", get("/?apikey=second"), 200),
        ("{}", get("/?a=1&apikey=s%65cond"), 200),
        ("{}", get("/?APIKEY=second"), 401),
        ("{}", get("/").with("APIKEY", "second"), 200),
        ("key_in_query: false", get("/?apikey=second"), 401),
        ("key_in_header: false", get("/").with("apikey", "second"), 401),
        ("key_names: [a, b]", get("/").with("b", "second"), 200),
        // The first name that is there counts.
        ("key_names: [a, b]", get("/?a=wrong").with("b", "second"), 401),
        ("key_names: [a]", get("/").with("apikey", "second"), 401),
    ] {
        assert_eq!(status(config, ask).await, code, "{config}");
    }
}

fn post(kind: &str, body: &str) -> Ask {
    ask("POST", "/").with("content-type", kind).body(body)
}

#[tokio::test]
async fn keys_in_bodies() {
    let form = "application/x-www-form-urlencoded";
    let part = "--x\r\nContent-Disposition: form-data; name=\"apikey\"\r\n\r\nsecond\r\n--x--\r\n";
    for (config, ask, code) in [
        ("{}", post(form, "apikey=second"), 401),
        ("key_in_body: true", post(form, "a=1&apikey=second"), 200),
        ("key_in_body: true", post(form, "apikey=second&apikey=second"), 401),
        ("key_in_body: true", post("application/json", r#"{"apikey":"second"}"#), 200),
        ("key_in_body: true", post("application/json", r#"{"apikey":["second"]}"#), 200),
        ("key_in_body: true", post("application/json", r#"{"apikey":"#), 401),
        ("key_in_body: true", post("multipart/form-data; boundary=x", part), 200),
        ("key_in_body: true", post("text/plain", "apikey=second"), 401),
    ] {
        let shown = format!("{config} {ask:?}");
        assert_eq!(status(config, ask).await, code, "{shown}");
    }
}

#[tokio::test]
async fn the_key_is_hidden_wherever_it_stands() {
    let config = "{hide_credentials: true, key_in_body: true}";
    let seen = rig(config).run(get("/p?a=%2F&apikey=other").with("apikey", "second")).await;
    assert_eq!(seen.target(), "/p?a=%2F");
    assert_eq!(seen.sent_maybe("apikey"), None);
    let seen = rig(config).run(post("application/json", r#"{"apikey":"second","b":[1]}"#)).await;
    assert_eq!(seen.cx.replace_body.as_deref(), Some(&br#"{"b":[1]}"#[..]));
    let seen = rig(config).run(post("application/json", r#"{"b":[1]}"#).with("apikey", "second")).await;
    assert_eq!((seen.status(), seen.cx.replace_body.is_none()), (200, true));
    let long = format!("apikey=second&a={}", "x".repeat(70_000));
    let seen = rig(config).run(post("application/x-www-form-urlencoded", &long)).await;
    assert_eq!(seen.status(), 413);
    assert_eq!(seen.json()["message"], "Request body too large to take the API key out of it");
    assert_eq!(status("key_in_body: true", post("application/x-www-form-urlencoded", &long)).await, 200);
}

#[tokio::test]
async fn the_anonymous_consumer_stands_in() {
    for name in ["guest", "id-of-guest"] {
        let seen = rig(&format!("anonymous: {name}")).run(get("/").with("apikey", "wrong")).await;
        assert_eq!(seen.status(), 200);
        assert_eq!(seen.sent("x-consumer-username"), "guest");
        assert_eq!(seen.sent("x-anonymous-consumer"), "true");
        assert_eq!(seen.sent_maybe("x-credential-identifier"), None);
    }
    let seen = rig("anonymous: nobody").run(get("/")).await;
    assert_eq!(seen.status(), 500);
    assert_eq!(seen.json()["message"], "anonymous consumer nobody is configured but doesn't exist");
}

#[tokio::test]
async fn preflights_may_pass() {
    assert_eq!(status("{}", ask("OPTIONS", "/")).await, 401);
    assert_eq!(status("run_on_preflight: false", ask("OPTIONS", "/")).await, 200);
    assert_eq!(status("run_on_preflight: false", get("/")).await, 401);
}

/// With `anonymous` one of several plugins is enough; without it, all are wanted.
#[tokio::test]
async fn several_plugins_are_or_with_anonymous_and_and_without() {
    let basic = |ask: Ask| ask.with("authorization", "Basic Ym9iOnB3");
    let key = |ask: Ask| ask.with("apikey", "second");
    let rig = |config: &str| {
        let mut alice = consumer("alice");
        alice.keys = vec![ApiKey::new("second")];
        let mut bob = consumer("bob");
        bob.basic = vec![("bob".into(), Secret::new("pw"))];
        Rig::of(vec![alice, bob, consumer("guest")], &[("key-auth", config), ("basic-auth", config)])
    };
    let or = rig("anonymous: guest");
    for (ask, name) in [(key(get("/")), "alice"), (basic(get("/")), "bob"), (get("/"), "guest"), (basic(key(get("/"))), "alice")] {
        let seen = or.run(ask).await;
        assert_eq!(seen.sent("x-consumer-username"), name);
        assert_eq!(seen.sent_maybe("x-anonymous-consumer").is_some(), name == "guest");
    }
    let and = rig("{}");
    for (ask, code) in [(key(get("/")), 401), (basic(get("/")), 401), (get("/"), 401)] {
        assert_eq!(and.run(ask).await.status(), code);
    }
    let seen = and.run(basic(key(get("/")))).await;
    assert_eq!(seen.sent("x-consumer-username"), "bob", "the last one names the caller");
}

#[tokio::test]
async fn callers_behind_the_anonymous_consumer_are_not_one() {
    let plugins = [("key-auth", "anonymous: guest"), ("idempotency", "anonymous: ip")];
    let rig = Rig::of(vec![consumer("guest")], &plugins);
    for ip in ["192.0.2.1", "192.0.2.2", "192.0.2.1"] {
        let seen = rig.run(ask("POST", "/orders").with("idempotency-key", "one").body("{}").from(ip)).await;
        assert_eq!(seen.status(), 200);
    }
    assert_eq!(rig.calls(), 2, "the third is a repetition of the first, the second is not");
}

#[tokio::test]
async fn metrics_tell_what_was_decided() {
    let rig = rig("{}");
    rig.run(get("/")).await;
    rig.run(get("/?apikey=second")).await;
    assert_eq!([rig.outcome("key-auth", "refused"), rig.outcome("key-auth", "passed")], [1, 1]);
}

#[test]
fn mistakes_are_named() {
    for (config, message) in [
        ("key_names: []", "this list is empty"),
        ("key_names: ['a b']", "`a b` is not a header name"),
        ("{key_in_header: false, key_in_query: false}", "a place for the key is wanted"),
        ("realm: \"a\\\\b\"", "a realm has no quotes"),
    ] {
        let found = errors("key-auth", config);
        assert!(found[0].message.contains(message), "{config}: {}", found[0]);
    }
}
