//! What `decode` makes of nodes: values, and every mistake with its place.

use schemars::JsonSchema;
use serde::Deserialize;
use weir_config::{Millis, Node, Secret, Size, Spanned, Ttl, decode};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Limits {
    /// How many in a second.
    second: Option<u32>,
    #[serde(default)]
    policy: Policy,
    #[serde(default = "one_minute")]
    ttl: Millis,
    #[serde(default)]
    max_size: Option<Size>,
    #[serde(default)]
    names: Vec<Spanned<String>>,
    /// The key that signs.
    secret: Secret,
    #[serde(default)]
    nested: Option<Nested>,
    #[serde(default)]
    fresh: Option<Ttl>,
    #[serde(default, alias = "redis_host")]
    #[schemars(extend("x-aliases" = ["redis_host"]))]
    host: Option<String>,
    #[serde(default)]
    #[schemars(range(min = 400, max = 599))]
    status: Option<u16>,
    #[serde(default)]
    on: bool,
}

#[derive(Debug, Default, Deserialize, JsonSchema, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Policy {
    /// Here.
    #[default]
    Local,
    /// There.
    Redis,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
enum Nested {
    /// One.
    A { size: u8 },
    /// Two.
    B {
        #[allow(dead_code)]
        text: String,
    },
}

fn one_minute() -> Millis {
    Millis::secs(60)
}

fn limits(yaml: &str) -> Result<Limits, String> {
    let node = Node::parse(yaml).map_err(|d| d.to_string())?;
    decode(&node).map_err(|all| all.iter().map(|d| format!("{}:{} {}{}", d.span.line, d.span.column, d.message, d.hint.as_ref().map(|h| format!(" ({h})")).unwrap_or_default())).collect::<Vec<_>>().join("\n"))
}

#[test]
fn values_as_yaml_users_write_them() {
    let made = limits(
        "{second: 1.2e+03, policy: redis, ttl: 4m30s, max_size: 2MB, names: [a, 5], secret: 12345, nested: {kind: a, size: 7}, fresh: origin, redis_host: r, status: null, on: yes}",
    )
    .unwrap();
    assert_eq!(made.second, Some(1200));
    assert_eq!(made.policy, Policy::Redis);
    assert_eq!(made.ttl, Millis::secs(270));
    assert_eq!(made.max_size, Some(Size(2 * 1024 * 1024)));
    assert_eq!(made.names[1].value, "5");
    assert_eq!((made.names[1].span.line, made.names[1].span.column), (1, 72));
    assert_eq!(made.secret.expose(), "12345");
    assert!(matches!(made.nested, Some(Nested::A { size: 7 })));
    assert_eq!(made.fresh, Some(Ttl::Origin));
    assert_eq!(made.host.as_deref(), Some("r"));
    assert_eq!((made.status, made.on), (None, true));
    assert!(!format!("{made:?}").contains("12345"));
}

#[test]
fn every_mistake_of_a_node_is_reported_in_one_run() {
    let found = limits(
        "seconds: 5\nsecond: many\npolicy: redsi\nttl: 60\nmax_size: 2XB\nnames: a\nnested: {kind: a, size: 300}\nfresh: soon\nstatus: 200\non: \"true\"\nhost: [x]\n",
    )
    .unwrap_err();
    let want = "\
1:1 unknown key `seconds` (did you mean `second`?)
2:9 a whole number is wanted here, not a text
3:9 `redsi` is not one of `local` or `redis` (did you mean `redis`?)
4:6 `60` lacks a unit: write `60s` or `60ms`
5:11 this is not a unit of size: use B, KB, MB, GB or TB
6:8 a list is wanted here, not a text (write `[a]`)
7:25 this must be from 0 to 255
8:8 a duration like `60s`, or `origin`, is wanted
9:9 this must be from 400 to 599
10:5 `true` or `false` is wanted here, not a text (remove the quotes)
11:7 a text is wanted here, not a list
1:1 the key `secret` is missing (secret: The key that signs)";
    assert_eq!(found, want);
}

#[test]
fn a_choice_reports_the_mistakes_of_the_form_that_was_meant() {
    assert_eq!(limits("secret: x\nnested: {kind: b, size: 1}").unwrap_err(), "2:19 unknown key `size` (known here: `kind` and `text`)\n2:9 the key `text` is missing");
    assert_eq!(limits("secret: x\nnested: {kind: c}").unwrap_err(), "2:16 `c` is not one of `a` or `b`");
    assert_eq!(limits("secret: x\nnested: 5").unwrap_err(), "2:9 a mapping is wanted here, not a number");
}

#[test]
fn secrets_are_not_quoted() {
    let found = limits("secret: [hunter2]\nstatus: hunter2").unwrap_err();
    assert!(!found.contains("hunter2"), "{found}");
}
