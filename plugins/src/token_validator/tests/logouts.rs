//! Tokens that end before their time.

use super::*;
use weir_store::Message;

#[tokio::test]
async fn a_logout_message_ends_a_token() {
    for by_hash in [false, true] {
        let rig = with_secret("");
        let (mine, other) = (bearer(&good()), bearer(&token(claims(json!({ "jti": "t-2" })))));
        assert_eq!(rig.run(mine.clone()).await.status(), 200);
        assert_eq!(rig.run(other.clone()).await.status(), 200);
        let name = if by_hash { hex(&sha2::Digest::chain_update(<sha2::Sha256 as sha2::Digest>::new(), good())) } else { "t-1".into() };
        // The subscription begins with the first request; messages before it are not seen, so the message is repeated.
        let mut ended = false;
        for _ in 0..100 {
            rig.environment.store.bus.publish("logout", name.clone().into()).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            let seen = rig.run(mine.clone()).await;
            if seen.status() == 401 {
                refused(&seen, "the token was logged out");
                ended = true;
                break;
            }
        }
        assert!(ended, "by hash: {by_hash}");
        // It stays so, also after it was forgotten as a good one.
        for _ in 0..3 {
            refused(&rig.run(mine.clone()).await, "the token was logged out");
        }
        assert_eq!(rig.run(other).await.status(), 200);
    }
}

#[tokio::test]
async fn a_token_logged_out_before_its_first_use_does_not_pass() {
    let rig = with_secret("");
    let first = bearer(&good());
    let unused = bearer(&token(claims(json!({ "jti": "t-2" }))));
    assert_eq!(rig.run(first.clone()).await.status(), 200);
    for _ in 0..100 {
        for name in ["t-2", "t-1"] {
            rig.environment.store.bus.publish("logout", name.into()).await.unwrap();
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        if rig.run(first.clone()).await.status() == 401 {
            break;
        }
    }
    refused(&rig.run(unused).await, "the token was logged out");
}

fn hex(hasher: &sha2::Sha256) -> String {
    sha2::Digest::finalize(hasher.clone()).iter().map(|b| format!("{b:02x}")).collect()
}

/// As another process on the same store, started now.
fn process(store: &Store, config: &str) -> (Rig, Plugins) {
    let register = register();
    let rig = Rig::with(environment(store.clone()), &register, &[("token-validator", &format!("secret: {SECRET}\n{config}"))]);
    (rig, register)
}

#[tokio::test]
async fn a_logout_that_the_service_confirms_ends_the_token_everywhere() {
    let store = Store::memory();
    let (here, _a) = process(&store, "logout: {paths: [/api/auth/logout]}");
    let (there, _b) = process(&store, "");
    let token = good();
    let leave = || ask_for("POST", "/api/auth/logout", &token);
    for rig in [&here, &there] {
        assert_eq!(rig.run(bearer(&token)).await.status(), 200);
    }
    // The subscriptions begin with the first request.
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    // Not what the service refuses, nor what looks like it only.
    let (refusing, _c) = process(&store, "logout: {paths: [/api/auth/logout]}");
    assert_eq!(refusing.upstream_status(500).run(leave()).await.status(), 500);
    assert_eq!(here.run(ask_for("OPTIONS", "/api/auth/logout", &token)).await.status(), 200);
    assert_eq!(here.run(ask_for("POST", "/api/auth/logout/x", &token)).await.status(), 200);
    assert_eq!(here.run(bearer(&token)).await.status(), 200);

    let seen = here.run(leave()).await;
    assert_eq!((seen.status(), seen.sent("x-user-id")), (200, "alice"), "the service hears of it");
    assert_eq!(here.outcome("token-validator", "logout"), 1);
    let refusal = here.run(bearer(&token)).await;
    refused(&refusal, "the token was logged out");
    assert_eq!((refusal.cx.failure, here.outcome("token-validator", "logged-out")), (Some("token-logged-out"), 1));
    while there.run(bearer(&token)).await.status() == 200 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    refused(&there.run(bearer(&token)).await, "the token was logged out");
    // One that was not there to hear finds the mark.
    let (late, _d) = process(&store, "");
    refused(&late.run(bearer(&token)).await, "the token was logged out");
    assert_eq!(late.run(bearer(&super::token(claims(json!({ "jti": "t-2" }))))).await.status(), 200);
}

fn ask_for(method: &str, path: &str, token: &str) -> Ask {
    crate::testing::ask(method, path).with("Authorization", &format!("Bearer {token}"))
}

#[tokio::test]
async fn the_register_ends_tokens_by_all_their_names() {
    let hash = hex(&sha2::Digest::chain_update(<sha2::Sha256 as sha2::Digest>::new(), good()));
    for what in [crate::LogOut::Token(&good()), crate::LogOut::Jti("t-1"), crate::LogOut::Sha256(&hash)] {
        let store = Store::memory();
        let (rig, register) = process(&store, "");
        assert_eq!(rig.run(bearer(&good())).await.status(), 200);
        register.log_out(&store, "another", what).await.unwrap();
        assert_eq!(rig.run(bearer(&good())).await.status(), 200, "{what:?}");
        register.log_out(&store, "logout", what).await.unwrap();
        refused(&rig.run(bearer(&good())).await, "the token was logged out");
        let (late, _) = process(&store, "");
        refused(&late.run(bearer(&good())).await, "the token was logged out");
    }
}

/// A reload with other rules must not bring a token back.
#[tokio::test]
async fn logouts_survive_a_reload() {
    let (environment, register): (_, Plugins) = (environment(Store::memory()), register());
    let make = |more: &str| Rig::with(environment.clone(), &register, &[("token-validator", &format!("secret: {SECRET}\n{more}"))]);
    let before = make("");
    assert_eq!(before.run(bearer(&good())).await.status(), 200);
    register.log_out(&environment.store, "logout", crate::LogOut::Jti("t-1")).await.unwrap();
    let after = make("realm: other");
    drop(before);
    assert_eq!(after.run(bearer(&good())).await.status(), 401);
}

#[tokio::test]
async fn after_lost_messages_what_is_remembered_is_looked_at_again() {
    let auth = auth("{}").await;
    let store = Store::memory();
    let (rig, register) = process(&store, &format!("introspect: {}", auth.config("")));
    for calls in [1, 1] {
        assert_eq!(rig.run(bearer(&good())).await.status(), 200);
        assert_eq!(auth.calls(), calls);
    }
    register.live.tokens.channel("logout").hear(&Message::Gap);
    for calls in [2, 2] {
        assert_eq!(rig.run(bearer(&good())).await.status(), 200);
        assert_eq!(auth.calls(), calls);
    }
}
