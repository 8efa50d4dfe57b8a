//! `basic-auth`: only callers with a user name and password pass.

use crate::{
    Configured, Live,
    auth::{Caller, Gate, Index, challenge, is_realm},
    jwt::base64_text,
    wrong,
};
use http::{HeaderMap, HeaderName, StatusCode, header, request};
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;
use weir_config::{Diagnostic, Node};
use weir_gateway::{BuildEnv, Flow, Phases, Plugin, Reply, RequestContext, Sight};

const BY: &str = "basic-auth";

/// Lets only requests with the user name and password of a consumer (`basicauth_credentials`; RFC 7617) pass. `Proxy-Authorization` is looked at first,
/// then `Authorization`. Without a good one the answer is 401 with `WWW-Authenticate: Basic`, the same whether user or password is wrong. The upstream gets
/// `X-Consumer-ID`, `-Custom-ID`, `-Username` and `X-Credential-Identifier` (the user name). Fields, defaults and messages are Kong's.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Do not forward user name and password.
    pub hide_credentials: bool,
    /// Consumer (id or username) as whom requests without good credentials pass. Also means that a request which another authentication plugin
    /// let pass needs none.
    pub anonymous: Option<String>,
    /// `realm` of `WWW-Authenticate`.
    pub realm: String,
}

impl Default for Config {
    fn default() -> Self {
        Config { hide_credentials: false, anonymous: None, realm: "service".into() }
    }
}

impl Configured for Config {
    const NAME: &'static str = BY;
    const PRIORITY: i32 = 1100;
    const EXAMPLE: &'static str = "hide_credentials: true\nrealm: staff\n";
    type Ready = Config;

    fn ready(self, at: &Node) -> Result<Config, Vec<Diagnostic>> {
        match is_realm(&self.realm) {
            true => Ok(self),
            false => Err(vec![wrong(at, "realm", "a realm has no quotes, backslashes or characters beyond ASCII")]),
        }
    }

    fn build(ready: Config, env: &BuildEnv<'_>, live: &Live) -> Arc<dyn Plugin> {
        let index = live.credentials.of(env.consumers);
        let gate = Gate::new(BY, ready.anonymous, true, &index, env);
        Arc::new(BasicAuth { hide: ready.hide_credentials, challenge: challenge("Basic", Some(&ready.realm)), index, gate })
    }
}

struct BasicAuth {
    hide: bool,
    challenge: String,
    index: Arc<Index>,
    gate: Gate,
}

impl BasicAuth {
    /// User and password in a field. Of several fields the first counts.
    fn credentials(&self, headers: &mut HeaderMap, name: &HeaderName) -> Option<(String, String)> {
        let found = headers.get(name).and_then(|v| parse(v.to_str().ok()?));
        if self.hide {
            headers.remove(name);
        }
        found
    }

    fn check(&self, headers: &mut HeaderMap) -> Option<Caller> {
        let proxy = self.credentials(headers, &header::PROXY_AUTHORIZATION).filter(|(user, _)| self.index.has_user(user));
        let (user, password) = match proxy {
            Some(found) => found,
            None => self.credentials(headers, &header::AUTHORIZATION)?,
        };
        self.index.password(&user, &password).map(|consumer| Caller::known(consumer, &user))
    }
}

impl Plugin for BasicAuth {
    fn phases(&self) -> Phases {
        Phases::REQUEST
    }

    fn sees_of_request(&self) -> Sight {
        Sight::Only(vec![header::AUTHORIZATION, header::PROXY_AUTHORIZATION, header::ACCEPT])
    }

    fn request(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        if self.gate.steps_back(cx, &req.method) {
            return Flow::Continue;
        }
        let found = self.check(&mut req.headers).ok_or_else(|| {
            let reply = Reply::error(BY, cx, req.headers.get(header::ACCEPT), StatusCode::UNAUTHORIZED, "Unauthorized");
            reply.with("www-authenticate", &self.challenge)
        });
        self.gate.decide(cx, found)
    }
}

/// `Basic` and base64 of `user:password`; a password may hold colons, a user name may not, nor be empty.
fn parse(field: &str) -> Option<(String, String)> {
    let field = field.trim();
    let scheme = field.get(..5)?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(base64_text(&field[5..])?).ok()?;
    let (user, password) = text.split_once(':')?;
    (!user.is_empty()).then(|| (user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Ask, Rig, consumer, get};
    use base64::{Engine, prelude::BASE64_STANDARD};
    use proptest::prelude::*;
    use weir_config::Secret;

    fn rig(config: &str) -> Rig {
        let mut alice = consumer("alice");
        alice.custom_id = Some("c-1".into());
        alice.basic = vec![("al".into(), Secret::new("pa:ss wörd"))];
        Rig::of(vec![alice, consumer("guest")], &[("basic-auth", config)])
    }

    fn with(ask: Ask, name: &str, pair: &str) -> Ask {
        ask.with(name, &format!("Basic {}", BASE64_STANDARD.encode(pair)))
    }

    #[tokio::test]
    async fn a_good_password_names_the_consumer() {
        let seen = rig("{}").run(with(get("/"), "Authorization", "al:pa:ss wörd")).await;
        assert_eq!(seen.status(), 200);
        assert_eq!(seen.sent("x-consumer-username"), "alice");
        assert_eq!(seen.sent("x-consumer-custom-id"), "c-1");
        assert_eq!(seen.sent("x-consumer-id"), "id-of-alice");
        assert_eq!(seen.sent("x-credential-identifier"), "al");
        assert_eq!(seen.sent_maybe("x-anonymous-consumer"), None);
        assert!(seen.sent("authorization").starts_with("Basic "));
        assert_eq!(seen.cx.consumer.as_ref().map(|c| c.entity.username.as_deref()), Some(Some("alice")));
    }

    #[tokio::test]
    async fn anything_else_is_401() {
        for ask in [
            get("/"),
            with(get("/"), "Authorization", "al:wrong"),
            with(get("/"), "Authorization", "al:"),
            with(get("/"), "Authorization", "bob:pa:ss wörd"),
            with(get("/"), "Authorization", ":pa:ss wörd"),
            with(get("/"), "Authorization", "alpa"),
            get("/").with("Authorization", "Basic ???"),
            get("/").with("Authorization", "Basic"),
            get("/").with("Authorization", "Basi\u{e9}"),
            get("/").with("Authorization", "Bearer YWw6cGE6c3M="),
        ] {
            let seen = rig("{}").run(ask).await;
            assert_eq!(seen.status(), 401);
            assert_eq!(seen.json()["message"], "Unauthorized");
            assert_eq!(seen.json()["request_id"], seen.cx.id.as_str());
            assert_eq!(seen.header("www-authenticate"), Some("Basic realm=\"service\""));
            assert!(!seen.forwarded());
        }
        let seen = rig("realm: staff").run(get("/")).await;
        assert_eq!(seen.header("www-authenticate"), Some("Basic realm=\"staff\""));
    }

    #[tokio::test]
    async fn proxy_authorization_comes_first() {
        let good = "al:pa:ss wörd";
        let both = with(with(get("/"), "Proxy-Authorization", "nobody:x"), "Authorization", good);
        assert_eq!(rig("{}").run(both).await.status(), 200);
        let first = with(with(get("/"), "Proxy-Authorization", "al:wrong"), "Authorization", good);
        assert_eq!(rig("{}").run(first).await.status(), 401);
        assert_eq!(rig("{}").run(with(get("/"), "Proxy-Authorization", good)).await.status(), 200);
    }

    #[tokio::test]
    async fn credentials_can_be_hidden_from_the_service() {
        let seen = rig("hide_credentials: true").run(with(get("/"), "authorization", "al:pa:ss wörd")).await;
        assert_eq!(seen.status(), 200);
        assert_eq!(seen.sent_maybe("authorization"), None);
    }

    #[tokio::test]
    async fn the_anonymous_consumer_stands_in() {
        let rig = rig("anonymous: guest");
        let seen = rig.run(with(get("/"), "authorization", "al:wrong")).await;
        assert_eq!(seen.status(), 200);
        assert_eq!(seen.sent("x-consumer-username"), "guest");
        assert_eq!(seen.sent("x-anonymous-consumer"), "true");
        assert_eq!(seen.sent_maybe("x-credential-identifier"), None);
        assert!(seen.cx.identity.is_none());
        assert_eq!(rig.outcome("basic-auth", "anonymous"), 1);
        let seen = rig.run(with(get("/"), "authorization", "al:pa:ss wörd")).await;
        assert_eq!(seen.sent("x-consumer-username"), "alice");
    }

    #[test]
    fn a_realm_with_quotes_is_refused() {
        assert!(crate::testing::errors("basic-auth", "realm: 'a\"b'")[0].message.contains("quotes"));
    }

    proptest! {
        #[test]
        fn any_field_is_survived(field in "\\PC{0,60}", more in "[A-Za-z0-9+/=]{0,40}") {
            let _ = parse(&field);
            let _ = parse(&format!("Basic {more}"));
        }

        #[test]
        fn what_is_written_is_read(user in "[^:]{1,10}", password in "\\PC{0,10}") {
            let field = format!("basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")));
            prop_assert_eq!(parse(&field), Some((user, password)));
        }
    }
}
