use super::*;
use crate::testing::{Ask, Rig, Seen, ask, get};
use proptest::prelude::*;

fn preflight(origin: &str) -> Ask {
    ask("OPTIONS", "/api").with("Origin", origin).with("Access-Control-Request-Method", "POST")
}

async fn run(config: &str, ask: Ask) -> Seen {
    Rig::new(&[("cors", config)]).run(ask).await
}

#[tokio::test]
async fn a_preflight_is_answered_with_200_and_kongs_fields() {
    let seen = run("{}", preflight("https://a.example").with("Access-Control-Request-Headers", "X-A,X-B")).await;
    assert_eq!(seen.status(), 200);
    assert!(!seen.forwarded());
    assert_eq!(seen.header("access-control-allow-origin"), Some("*"));
    assert_eq!(seen.header("access-control-allow-methods"), Some("GET,HEAD,PUT,PATCH,POST,DELETE,OPTIONS,TRACE,CONNECT"));
    assert_eq!(seen.header("access-control-allow-headers"), Some("X-A,X-B"));
    assert_eq!(seen.header("vary"), None, "a star is the same for all");
    for absent in ["access-control-max-age", "access-control-allow-credentials", "access-control-allow-private-network"] {
        assert_eq!(seen.header(absent), None, "{absent}");
    }
}

#[tokio::test]
async fn a_preflight_with_every_setting() {
    let config = "{origins: ['https://a.example', 'https://b.example:8443'], methods: [GET, POST], headers: [X-C, X-D], credentials: true, max_age: 60, private_network: true}";
    let seen = run(config, preflight("https://b.example:8443").with("Access-Control-Request-Private-Network", "true")).await;
    assert_eq!(seen.header("access-control-allow-origin"), Some("https://b.example:8443"));
    assert_eq!(seen.header("access-control-allow-methods"), Some("GET,POST"));
    assert_eq!(seen.header("access-control-allow-headers"), Some("X-C,X-D"));
    assert_eq!(seen.header("access-control-allow-credentials"), Some("true"));
    assert_eq!(seen.header("access-control-max-age"), Some("60"));
    assert_eq!(seen.header("access-control-allow-private-network"), Some("true"));
    let public = run(config, preflight("https://a.example")).await;
    assert_eq!(public.header("access-control-allow-private-network"), None);
}

#[tokio::test]
async fn options_without_the_fields_of_a_preflight_is_forwarded() {
    for plain in [ask("OPTIONS", "/"), ask("OPTIONS", "/").with("Origin", "https://a.example"), get("/").with("Access-Control-Request-Method", "GET").with("Origin", "https://a.example")] {
        assert!(run("{}", plain).await.forwarded());
    }
}

#[tokio::test]
async fn preflights_may_be_left_to_the_upstream() {
    let rig = Rig::new(&[("cors", "preflight_continue: true")]).upstream_field("access-control-allow-origin", "https://up.example");
    let seen = rig.run(preflight("https://a.example")).await;
    assert!(seen.forwarded());
    assert_eq!(seen.header("access-control-allow-origin"), Some("https://up.example"));
    assert_eq!(seen.header("vary"), None);
}

/// Origins configured, origin that asks, origin that is named.
#[tokio::test]
async fn who_is_named() {
    for (origins, asks, named) in [
        ("[]", "https://a.example", Some("*")),
        ("['*']", "https://a.example", Some("*")),
        ("['https://a.example']", "https://evil.example", Some("https://a.example")),
        ("['https://a.example', 'https://b.example']", "https://b.example", Some("https://b.example")),
        ("['https://a.example', 'https://b.example']", "https://b.example:443", Some("https://b.example:443")),
        ("['https://a.example:443', 'https://b.example']", "https://A.example", Some("https://A.example")),
        ("['https://a.example', 'https://b.example']", "http://b.example", None),
        ("['https://a.example', 'https://b.example']", "https://b.example:8443", None),
        ("['https://a.example', 'https://b.example']", "https://c.example", None),
        ("['https://a.example', 'https://b.example']", "null", None),
        ("['https://a.example', '*']", "https://c.example", Some("https://c.example")),
        ("['shop.example', 'https://b.example']", "https://shop.example", None),
        ("['shop.example', 'https://b.example']", "https://shopxexample", None),
        (r"['https://.*\.shop\.example']", "https://x.shop.example", Some("https://x.shop.example")),
        (r"['https://.*\.shop\.example']", "https://x.shop.example.evil.example", None),
        (r"['https://.*\.shop\.example']", "http://x.shop.example", None),
        (r"['(.+\.)?shop\.example']", "http://x.shop.example:8080", Some("http://x.shop.example:8080")),
        (r"['(.+\.)?shop\.example']", "https://shop.example", Some("https://shop.example")),
        (r"['(.+\.)?shop\.example']", "https://evilshop.example", None),
        (r"['(.+\.)?shop\.example']", "https://shop.example@evil.example", None),
        (r"['(.+\.)?shop\.example']", "https://evil.example/shop.example", None),
    ] {
        let config = format!("origins: {origins}");
        let plain = run(&config, get("/").with("Origin", asks)).await;
        assert_eq!(plain.header("access-control-allow-origin"), named, "{origins} {asks}");
        assert_eq!(plain.header("vary"), Some("Origin").filter(|_| named != Some("*")), "{origins} {asks}");
        let preflight = run(&config, preflight(asks)).await;
        assert_eq!(preflight.header("access-control-allow-origin"), named, "preflight: {origins} {asks}");
    }
}

#[tokio::test]
async fn credentials_never_go_with_a_star() {
    let seen = run("{origins: ['*'], credentials: true}", get("/").with("Origin", "https://a.example")).await;
    assert_eq!(seen.header("access-control-allow-origin"), Some("https://a.example"));
    assert_eq!(seen.header("access-control-allow-credentials"), Some("true"));
    let absent = run("{origins: ['*'], credentials: true}", get("/")).await;
    assert_eq!(absent.header("access-control-allow-origin"), Some("*"));
    assert_eq!(absent.header("access-control-allow-credentials"), None);
    let refused = run("{origins: ['https://a.example', 'https://b.example'], credentials: true}", get("/").with("Origin", "https://c.example")).await;
    assert_eq!(refused.header("access-control-allow-credentials"), None);
}

#[tokio::test]
async fn ordinary_answers_expose_headers_and_keep_the_upstreams_vary() {
    let rig = Rig::new(&[("cors", "{origins: ['https://a.example'], exposed_headers: [X-A, X-B]}")]).upstream_field("vary", "Accept-Encoding");
    let seen = rig.run(get("/").with("Origin", "https://a.example")).await;
    assert_eq!(seen.header("access-control-expose-headers"), Some("X-A,X-B"));
    assert_eq!(seen.all("vary"), ["Accept-Encoding", "Origin"]);
    assert_eq!(seen.header("access-control-allow-methods"), None);
}

#[tokio::test]
async fn an_upstream_does_not_widen_what_is_configured() {
    let rig = Rig::new(&[("cors", "origins: ['https://a.example', 'https://b.example']")])
        .upstream_field("access-control-allow-origin", "*")
        .upstream_field("access-control-allow-credentials", "true");
    let seen = rig.run(get("/").with("Origin", "https://c.example")).await;
    assert_eq!(seen.header("access-control-allow-origin"), None);
    assert_eq!(seen.header("access-control-allow-credentials"), None);
}

#[tokio::test]
async fn requests_without_origin_can_be_left_alone() {
    assert_eq!(run("{}", get("/")).await.header("access-control-allow-origin"), Some("*"));
    let seen = run("allow_origin_absent: false", get("/")).await;
    assert_eq!(seen.header("access-control-allow-origin"), None);
    assert_eq!(seen.header("vary"), None);
}

#[tokio::test]
async fn errors_made_here_carry_the_permission() {
    let rig = Rig::new(&[("cors", "{}"), ("token-validator", "secret: a-secret-of-thirty-two-bytes-long")]);
    let seen = rig.run(get("/").with("Origin", "https://a.example")).await;
    assert_eq!(seen.status(), 401);
    assert_eq!(seen.header("access-control-allow-origin"), Some("*"));
}

#[tokio::test]
async fn a_bad_expression_is_refused_where_it_stands() {
    let errors = crate::testing::errors("cors", "origins:\n  - https://a.example\n  - 'https://(b'\n");
    assert_eq!((errors[0].span.line, errors[0].span.column), (3, 5), "{}", errors[0]);
}

proptest! {
    #[test]
    fn any_origin_is_survived(origin in "\\PC{0,40}") {
        if let Some((whole, host)) = normalized(&origin) {
            prop_assert_eq!(normalized(&whole), Some((whole, host)));
        }
    }
}
