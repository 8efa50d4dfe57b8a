//! Tokens over several processes: what one hears of a logout, all know, also those that were not there.

use serde_json::json;
use weir_tests::{Answer, CUSTOMER, Config, JWT_SECRET, RedisServer, Shop, Weir, eventually};

fn config(shop: &Shop, redis: &RedisServer) -> Config {
    let validator = |config| json!([{ "name": "token-validator", "config": config }]);
    Config(json!({ "gateway": { "_format_version": "3.0", "services": [] } }))
        .set("/store", json!({ "url": redis.url(), "deadline": "5s" }))
        .service("auth", &shop.stubs.auth.url(), "/api/auth", validator(json!({ "secret": JWT_SECRET, "anonymous": true, "logout": { "paths": ["/api/auth/logout"] } })))
        .service("members", &shop.stubs.members.url(), "/api/members", validator(json!({ "secret": JWT_SECRET })))
}

async fn login(weir: &Weir) -> String {
    let answer = weir.gateway().ask("POST", "/api/auth/login").header("authorization", CUSTOMER).body("").send().await.expect(200);
    answer.json()["access_token"].as_str().expect("a token").to_owned()
}

async fn members(weir: &Weir, token: &str) -> Answer {
    weir.gateway().get("/api/members").bearer(token).send().await
}

/// Waits until the token is refused because it was logged out.
async fn ends(weir: &Weir, token: &str) {
    let refusal = eventually("the token ends", async || Some(members(weir, token).await).filter(|a| a.status != 200)).await.expect(401);
    assert!(refusal.must("www-authenticate").contains("logged out"), "{refusal:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_counts_in_all_processes() {
    let (shop, redis) = (Shop::start().await, RedisServer::start());
    let config = config(&shop, &redis);
    let (one, mut two) = (Weir::start_as("one", &config).await, Weir::start_as("two", &config).await);
    let (token, other) = (login(&one).await, login(&one).await);
    for weir in [&one, &two] {
        for token in [&token, &other] {
            members(weir, token).await.expect(200);
        }
    }
    one.gateway().ask("POST", "/api/auth/logout").bearer(&token).body("").send().await.expect(204);
    members(&one, &token).await.expect(401);
    ends(&two, &token).await;
    // It does not come back with a process that has heard nothing, nor with a signature that is spelled in another way.
    two.restart().await;
    members(&two, &token).await.expect(401);
    members(&two, &format!("{token}=")).await.expect(401);
    members(&two, &other).await.expect(200);
    assert!(two.metric("weir_plugin_outcomes_total", &["plugin=\"token-validator\"", "outcome=\"logged-out\""]).await >= 1.0);

    let order = two.admin().post_json("/logout", &json!({ "token": other })).send().await;
    assert_eq!(order.status, 200, "{order:#?}");
    ends(&two, &other).await;
    ends(&one, &other).await;
    for (wrong, status) in [(json!({}), 400), (json!({ "sha256": "x" }), 400), (json!({ "jti": "a", "token": "b" }), 400), (json!({ "nothing": other }), 400)] {
        let answer = one.admin().post_json("/logout", &wrong).send().await.expect(status);
        assert!(!answer.text().contains(&other), "an error does not repeat the token");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_signatures_still_count() {
    let (shop, mut redis) = (Shop::start().await, RedisServer::start());
    let weir = Weir::start(&config(&shop, &redis).set("/store/deadline", "500ms")).await;
    let (known, fresh, ended) = (login(&weir).await, login(&weir).await, login(&weir).await);
    members(&weir, &known).await.expect(200);
    redis.kill();
    for token in [&known, &fresh, &ended] {
        members(&weir, token).await.expect(200);
    }
    members(&weir, "no.such.token").await.expect(401);
    // A logout holds here at least, and the client is not told of an error that is not its own.
    weir.gateway().ask("POST", "/api/auth/logout").bearer(&ended).body("").send().await.expect(204);
    members(&weir, &ended).await.expect(401);
    assert_eq!(weir.metric("weir_plugin_outcomes_total", &["outcome=\"logout-untold\""]).await, 1.0);
    let answer = weir.admin().post_json("/logout", &json!({ "token": fresh })).send().await.expect(503);
    assert!(answer.text().contains("this instance only"), "{answer:#?}");
    members(&weir, &fresh).await.expect(401);
}
