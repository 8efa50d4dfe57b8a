//! `acl`: consumers pass by the groups that they are in.

use crate::{Configured, Live, auth::Groups, wrong};
use http::{HeaderName, HeaderValue, StatusCode, header, request};
use schemars::JsonSchema;
use serde::Deserialize;
use std::{collections::HashSet, sync::Arc};
use weir_config::{Diagnostic, Node};
use weir_gateway::{BuildEnv, Flow, Phases, Plugin, Reply, RequestContext, Sight};

const BY: &str = "acl";
const CONSUMER_GROUPS: HeaderName = HeaderName::from_static("x-consumer-groups");
const AUTHENTICATED_GROUPS: HeaderName = HeaderName::from_static("x-authenticated-groups");

/// Lets consumers pass, or keeps them out, by the groups that their `acls` name. It wants an authentication plugin before it: without a caller the answer is
/// 401, for a caller who may not pass 403. The upstream gets the groups in `X-Consumer-Groups`; those that an issuer's token names (`groups_claim`
/// of `jwt`) in `X-Authenticated-Groups`. Fields, defaults and messages are Kong's.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Groups that may pass; all others may not. Either this or `deny`.
    #[serde(alias = "whitelist")]
    #[schemars(extend("x-aliases" = ["whitelist"]))]
    pub allow: Vec<String>,
    /// Groups that may not pass; all others may. Either this or `allow`.
    #[serde(alias = "blacklist")]
    #[schemars(extend("x-aliases" = ["blacklist"]))]
    pub deny: Vec<String>,
    /// Do not tell the upstream the groups.
    pub hide_groups_header: bool,
    /// The groups of a token count also for a consumer with groups of its own. Otherwise they count only where there is no consumer, or the anonymous one.
    pub always_use_authenticated_groups: bool,
    /// The consumer groups (`consumer_groups`) that a consumer is in count like groups of its own.
    pub include_consumer_groups: bool,
}

impl Configured for Config {
    const NAME: &'static str = BY;
    const PRIORITY: i32 = 950;
    const EXAMPLE: &'static str = "allow: [staff, partners]\nhide_groups_header: true\n";
    type Ready = Acl;

    fn ready(self, at: &Node) -> Result<Acl, Vec<Diagnostic>> {
        let (groups, deny) = match (self.allow.is_empty(), self.deny.is_empty()) {
            (false, true) => (self.allow, false),
            (true, false) => (self.deny, true),
            (true, true) => return Err(vec![wrong(at, "", "`allow` or `deny` is wanted, with at least one group")]),
            (false, false) => return Err(vec![wrong(at, "deny", "`allow` or `deny`, not both")]),
        };
        Ok(Acl { groups: groups.into_iter().collect(), deny, hide: self.hide_groups_header, tokens_first: self.always_use_authenticated_groups, consumer_groups: self.include_consumer_groups })
    }

    fn build(ready: Acl, _: &BuildEnv<'_>, _: &Live) -> Arc<dyn Plugin> {
        Arc::new(ready)
    }
}

/// The plugin.
pub struct Acl {
    groups: HashSet<String>,
    deny: bool,
    hide: bool,
    tokens_first: bool,
    consumer_groups: bool,
}

impl Acl {
    fn passes(&self, groups: &[String]) -> bool {
        groups.iter().any(|group| self.groups.contains(group)) != self.deny
    }

    fn refuse(cx: &RequestContext, req: &request::Parts) -> Flow {
        let (status, message) = match cx.identity {
            Some(_) => (StatusCode::FORBIDDEN, "You cannot consume this service"),
            None => (StatusCode::UNAUTHORIZED, "Unauthorized"),
        };
        Flow::Reply(Reply::error(BY, cx, req.headers.get(header::ACCEPT), status, message))
    }
}

impl Plugin for Acl {
    fn phases(&self) -> Phases {
        Phases::REQUEST
    }

    fn sees_of_request(&self) -> Sight {
        Sight::Only(vec![header::ACCEPT])
    }

    fn request(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        let consumer = cx.consumer.clone();
        let with_more: Option<Vec<String>> = consumer.as_ref().filter(|c| self.consumer_groups && !c.entity.consumer_groups.is_empty()).map(|c| [c.entity.groups.as_slice(), &c.entity.consumer_groups].concat());
        let own = with_more.as_deref().or(consumer.as_ref().map(|c| c.entity.groups.as_slice()));
        let counts = own.is_none() || cx.identity.is_none() || self.tokens_first;
        let token = cx.state.get::<Groups>().filter(|_| counts).map(|g| g.0.clone());
        let (name, groups) = match (&token, own) {
            (Some(token), _) => (AUTHENTICATED_GROUPS, token.as_slice()),
            // In no group at all: nothing that `deny` could name.
            (None, Some([])) if !self.deny => return Acl::refuse(cx, req),
            (None, Some(own)) => (CONSUMER_GROUPS, own),
            (None, None) => return Acl::refuse(cx, req),
        };
        if !self.passes(groups) {
            let message = "You cannot consume this service";
            return Flow::Reply(Reply::error(BY, cx, req.headers.get(header::ACCEPT), StatusCode::FORBIDDEN, message));
        }
        if !self.hide && !groups.is_empty() && let Ok(value) = HeaderValue::from_bytes(groups.join(", ").as_bytes()) {
            cx.caller_fields.set(name, value);
        }
        Flow::Continue
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Ask, Rig, Seen, consumer, get};
    use weir_config::ApiKey;

    async fn run(config: &str, auth: &str, ask: Ask) -> Seen {
        let member = |name: &str, groups: &[&str]| {
            let mut member = consumer(name);
            member.keys = vec![ApiKey::new(format!("key-{name}"))];
            member.groups = groups.iter().map(ToString::to_string).collect();
            member.consumer_groups = if name == "gold" { vec!["gold".into()] } else { vec![] };
            member
        };
        let all = vec![member("both", &["a", "b"]), member("b", &["b"]), member("none", &[]), member("gold", &[])];
        Rig::of(all, &[("acl", config), ("key-auth", auth)]).run(ask).await
    }

    fn by(name: &str) -> Ask {
        get("/").with("apikey", &format!("key-{name}"))
    }

    #[tokio::test]
    async fn consumer_groups_count_where_that_is_asked_for() {
        for (config, key, status) in [
            ("{allow: [gold], include_consumer_groups: true}", "key-gold", 200),
            ("{allow: [gold], include_consumer_groups: true}", "key-b", 403),
            ("{allow: [gold]}", "key-gold", 403),
            ("{deny: [gold], include_consumer_groups: true}", "key-gold", 403),
            ("{deny: [gold]}", "key-gold", 200),
        ] {
            let seen = run(config, "{}", get("/").with("apikey", key)).await;
            assert_eq!(seen.status(), status, "{config} {key}");
        }
        let seen = run("{allow: [gold], include_consumer_groups: true}", "{}", get("/").with("apikey", "key-gold")).await;
        assert_eq!(seen.sent("x-consumer-groups"), "gold");
    }

    #[tokio::test]
    async fn groups_decide() {
        for (config, name, status, told) in [
            ("allow: [a]", "both", 200, Some("a, b")),
            ("allow: [a, c]", "b", 403, None),
            ("allow: [b]", "b", 200, Some("b")),
            ("allow: [a]", "none", 403, None),
            ("whitelist: [a]", "both", 200, Some("a, b")),
            ("deny: [a]", "both", 403, None),
            ("deny: [a]", "b", 200, Some("b")),
            ("deny: [a]", "none", 200, None),
            ("blacklist: [a]", "both", 403, None),
            ("{allow: [a], hide_groups_header: true}", "both", 200, None),
        ] {
            let seen = run(config, "{}", by(name)).await;
            assert_eq!(seen.status(), status, "{config} {name}");
            if status == 200 {
                assert_eq!(seen.sent_maybe("x-consumer-groups"), told, "{config} {name}");
            } else {
                assert_eq!(seen.json()["message"], "You cannot consume this service");
            }
        }
    }

    #[tokio::test]
    async fn the_anonymous_consumer_is_judged_by_its_groups() {
        assert_eq!(run("allow: [b]", "anonymous: b", get("/")).await.status(), 200);
        assert_eq!(run("allow: [a]", "anonymous: b", get("/")).await.status(), 403);
        let seen = run("allow: [a]", "anonymous: none", get("/")).await;
        assert_eq!(seen.status(), 401);
        assert_eq!(seen.json()["message"], "Unauthorized");
    }

    #[tokio::test]
    async fn without_a_caller_it_is_401_and_with_one_who_is_no_consumer_403() {
        let alone = Rig::new(&[("acl", "deny: [a]")]);
        let seen = alone.run(get("/")).await;
        assert_eq!((seen.status(), seen.json()["message"].as_str()), (401, Some("Unauthorized")));
        assert_eq!(seen.json()["request_id"], seen.cx.id.as_str());
        let seen = alone.run(get("/").known_as("user", None)).await;
        assert_eq!((seen.status(), seen.json()["message"].as_str()), (403, Some("You cannot consume this service")));
    }

    #[test]
    fn exactly_one_list_is_wanted() {
        for config in ["{}", "{allow: [a], deny: [b]}", "allow: []"] {
            let errors = crate::testing::errors("acl", config);
            assert!(errors[0].message.contains("`allow` or `deny`"), "{}", errors[0]);
        }
    }
}
