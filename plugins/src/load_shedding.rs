//! `load-shedding`: which requests are refused first when not all can be served.

use crate::{Configured, Live, header_name, wrong};
use http::{HeaderName, request};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc};
use weir_config::{Diagnostic, Node};
use weir_gateway::{BuildEnv, Flow, Phases, Plugin, RequestContext, resilience::Priority};

/// Says how much requests matter. Where a service or upstream has a `concurrency` limit and it is reached, places go to the highest
/// priority first, and when the queue is full the lowest is refused first: 503 with `Retry-After`. Without this plugin, callers who proved who
/// they are have high priority, guests low, and all others normal.
///
/// The first rule that fits decides, and a rule fits when all that it names fits. A header counts as the client sent it, unless something in
/// front of Weir sets it: do not give a high priority for one that anybody can send.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Rules, in order.
    pub rules: Vec<Rule>,
    /// Where no rule fits. Default: as without this plugin.
    pub default: Option<Class>,
}

/// One rule.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What the requests get.
    pub priority: Class,
    /// User names, custom ids or ids of consumers.
    #[serde(default)]
    pub consumers: Vec<String>,
    /// Groups (`acls`) or consumer groups that the consumer is in one of.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Claims of the caller's token, each with the values that fit.
    #[serde(default)]
    pub claims: BTreeMap<String, Vec<String>>,
    /// Header fields, each with the values that fit; an empty list: any value.
    #[serde(default)]
    pub headers: BTreeMap<String, Vec<String>>,
    /// Tags, of which the route has one.
    #[serde(default)]
    pub route_tags: Vec<String>,
    /// Paths as the client asks for them: these, and what is below them.
    #[serde(default)]
    pub paths: Vec<String>,
    /// Whether the caller proved who it is (`true`) or not (`false`). A guest did not.
    #[serde(default)]
    pub signed_in: Option<bool>,
}

/// How much a request matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Refused first; never takes the places that `reserve` keeps.
    Low,
    /// The usual.
    Normal,
    /// Before the usual.
    High,
    /// Before everything: health checks.
    Critical,
}

impl From<Class> for Priority {
    fn from(class: Class) -> Priority {
        match class {
            Class::Low => Priority::Low,
            Class::Normal => Priority::Normal,
            Class::High => Priority::High,
            Class::Critical => Priority::Critical,
        }
    }
}

impl Configured for Config {
    const NAME: &'static str = "load-shedding";
    // After everything that finds out who calls.
    const PRIORITY: i32 = 940;
    const EXAMPLE: &'static str = "rules:
  - {priority: critical, paths: [/api/health]}
  - {priority: high, claims: {plan: [paid]}}
  - {priority: high, route_tags: [checkout]}
  - {priority: normal, signed_in: true}
default: low
";

    type Ready = Ready;

    fn ready(self, at: &Node) -> Result<Ready, Vec<Diagnostic>> {
        let mut errors = Vec::new();
        let nodes = at.get("rules").map(Node::items).unwrap_or_default();
        let rules = self
            .rules
            .into_iter()
            .zip(nodes)
            .map(|(rule, node)| {
                let headers = rule.headers.iter().filter_map(|(name, values)| match header_name(node, "headers", name) {
                    Ok(name) => Some((name, values.clone())),
                    Err(error) => {
                        errors.push(error);
                        None
                    }
                });
                let headers: Vec<_> = headers.collect();
                if rule.paths.iter().any(|path| !path.starts_with('/')) {
                    errors.push(wrong(node, "paths", "a path begins with `/`"));
                }
                let names_nothing = rule.consumers.is_empty()
                    && rule.groups.is_empty()
                    && rule.claims.is_empty()
                    && headers.is_empty()
                    && rule.route_tags.is_empty()
                    && rule.paths.is_empty()
                    && rule.signed_in.is_none();
                if names_nothing {
                    errors.push(Diagnostic::error("plugin-config", node.span(), "the rule says nothing of requests: give all of them a priority with `default`"));
                }
                (headers, rule)
            })
            .collect();
        if errors.is_empty() { Ok(Ready { rules, default: self.default }) } else { Err(errors) }
    }

    fn build(ready: Ready, _: &BuildEnv<'_>, _: &Live) -> Arc<dyn Plugin> {
        Arc::new(ready)
    }
}

/// The rules, each with its header fields.
pub struct Ready {
    rules: Vec<(Vec<(HeaderName, Vec<String>)>, Rule)>,
    default: Option<Class>,
}

fn fits(rule: &Rule, headers: &[(HeaderName, Vec<String>)], cx: &RequestContext, req: &request::Parts) -> bool {
    let consumer = cx.consumer.as_ref().map(|c| &c.entity);
    let named = |consumer: &weir_config::Consumer| {
        rule.consumers.iter().any(|name| *name == consumer.id || Some(name) == consumer.username.as_ref() || Some(name) == consumer.custom_id.as_ref())
    };
    let claims = cx.identity.as_ref().and_then(|identity| identity.claims.as_deref());
    let claimed = |(name, values): (&String, &Vec<String>)| claims.and_then(|claims| claims.get(name)).is_some_and(|claim| holds(claim, values));
    let below = |path: &String| req.uri.path().strip_prefix(path.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || path.ends_with('/'));
    let tagged = |tag: &String| cx.route.as_ref().is_some_and(|route| route.tags.contains(tag));
    (rule.consumers.is_empty() || consumer.is_some_and(named))
        && (rule.groups.is_empty() || consumer.is_some_and(|c| c.groups.iter().chain(&c.consumer_groups).any(|group| rule.groups.contains(group))))
        && rule.claims.iter().all(claimed)
        && headers.iter().all(|(name, values)| req.headers.get_all(name).iter().any(|v| values.is_empty() || values.iter().any(|value| v == value.as_str())))
        && (rule.route_tags.is_empty() || rule.route_tags.iter().any(tagged))
        && (rule.paths.is_empty() || rule.paths.iter().any(below))
        && rule.signed_in.is_none_or(|wanted| wanted == (cx.identity.is_some() && !cx.guest))
}

/// Whether a claim, or one of a list, is one of the values.
fn holds(claim: &Value, values: &[String]) -> bool {
    match claim {
        Value::Array(list) => list.iter().any(|one| holds(one, values)),
        Value::String(text) => values.contains(text),
        Value::Bool(_) | Value::Number(_) => values.contains(&claim.to_string()),
        Value::Null | Value::Object(_) => false,
    }
}

impl Plugin for Ready {
    fn phases(&self) -> Phases {
        Phases::REQUEST
    }

    fn request(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        let rule = self.rules.iter().find(|(headers, rule)| fits(rule, headers, cx, req));
        if let Some(class) = rule.map(|(_, rule)| rule.priority).or(self.default) {
            cx.priority = Some(class.into());
        }
        Flow::Continue
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Rig, errors, get};
    use weir_gateway::resilience::Priority;

    const RULES: &str = "{rules: [
        {priority: critical, paths: [/health]},
        {priority: high, headers: {X-Plan: [gold, silver]}, signed_in: true},
        {priority: normal, consumers: [alice, id-of-bob]},
        {priority: low, headers: {X-Batch: []}}]}";

    #[tokio::test]
    async fn the_first_rule_that_fits_decides() {
        let rig = Rig::new(&[("load-shedding", RULES)]);
        let signed_in = |uri: &str| get(uri).known_as("u", None);
        for (ask, priority) in [
            (get("/health"), Priority::Critical),
            (get("/health/deep?x=1"), Priority::Critical),
            (get("/healthy"), Priority::Normal),
            (signed_in("/").with("x-plan", "silver"), Priority::High),
            (get("/").with("x-plan", "silver"), Priority::Normal),
            (signed_in("/").with("x-plan", "none"), Priority::High),
            (signed_in("/").as_consumer("alice"), Priority::Normal),
            (signed_in("/").as_consumer("bob"), Priority::Normal),
            (signed_in("/").as_consumer("carol"), Priority::High),
            (get("/").with("x-batch", "yes"), Priority::Low),
        ] {
            let said = format!("{ask:?}");
            assert_eq!(rig.run(ask).await.cx.priority(), priority, "{said}");
        }
    }

    #[tokio::test]
    async fn a_default_is_for_the_rest() {
        let rig = Rig::new(&[("load-shedding", "{default: low, rules: [{priority: high, signed_in: true}]}")]);
        assert_eq!(rig.run(get("/")).await.cx.priority(), Priority::Low);
        assert_eq!(rig.run(get("/").known_as("u", None)).await.cx.priority(), Priority::High);
    }

    #[test]
    fn mistakes() {
        for (config, message) in [
            ("{rules: [{priority: huge, paths: [/]}]}", "huge"),
            ("{rules: [{priority: high}]}", "says nothing"),
            ("{rules: [{priority: high, paths: [health]}]}", "begins with `/`"),
            ("{rules: [{priority: high, headers: {'a b': []}}]}", "not a header name"),
            ("{rules: [{paths: [/]}]}", "priority"),
        ] {
            let found = errors("load-shedding", config);
            assert!(found.iter().any(|e| e.to_string().contains(message)), "{config}: {found:?}");
        }
    }
}
