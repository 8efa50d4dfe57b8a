//! A register of plugins for tests: names as the real one has them, and the config of one of them.
#![allow(dead_code)]

use schemars::JsonSchema;
use serde::Deserialize;
use weir_config::{Diagnostic, Env, LoadOptions, Millis, Node, PluginCatalog, Secret, Size, Span, check};

pub struct Register;

const NAMES: [&str; 27] = [
    "acl", "basic-auth", "bot-detection", "circuit-breaker", "compression", "correlation-id", "cors", "file-log", "http-log", "idempotency",
    "ip-restriction", "jwt", "key-auth", "opentelemetry", "prometheus", "proxy-cache", "rate-limiting", "request-size-limiting", "request-termination",
    "request-transformer", "request-validation", "response-cache", "response-ratelimiting", "response-transformer", "tcp-log", "token-validator", "udp-echo",
];

/// Limits.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
struct RateLimiting {
    /// Requests in a second.
    #[schemars(range(min = 1))]
    second: Option<u64>,
    /// Requests in a minute.
    #[schemars(range(min = 1))]
    minute: Option<u64>,
    /// Requests in an hour.
    #[schemars(range(min = 1))]
    hour: Option<u64>,
    /// Where counters live.
    #[serde(default)]
    policy: Policy,
    /// Host of Redis.
    #[serde(default, alias = "redis_host")]
    #[schemars(extend("x-aliases" = ["redis_host"]))]
    host: Option<String>,
    #[serde(default)]
    redis: Option<serde_json::Value>,
    #[serde(default)]
    limit_by: Option<LimitBy>,
    #[serde(default)]
    fault_tolerant: bool,
    #[serde(default)]
    hide_client_headers: bool,
    #[serde(default)]
    error_code: Option<u16>,
    #[serde(default)]
    error_message: Option<String>,
}

#[derive(Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
enum Policy {
    #[default]
    Local,
    Redis,
    Cluster,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum LimitBy {
    Consumer,
    Ip,
    Path,
    Header,
}

/// Tokens.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
struct TokenValidator {
    /// Key that tokens are signed with.
    secret: Secret,
    /// How long an answer of the auth service holds.
    #[serde(default)]
    remember: Option<Millis>,
    /// Largest token.
    #[serde(default)]
    max_size: Option<Size>,
}

impl PluginCatalog for Register {
    fn names(&self) -> Vec<String> {
        NAMES.iter().map(|name| name.to_string()).chain(["simple-redis-cache".to_string()]).collect()
    }
    fn check(&self, name: &str, config: &Node) -> Vec<Diagnostic> {
        match name {
            "rate-limiting" => check::<RateLimiting>(config),
            "token-validator" => check::<TokenValidator>(config),
            _ => vec![],
        }
    }
    fn body_limit(&self, name: &str, config: &Node) -> Option<(u64, Span)> {
        let limit = config.get("allowed_payload_size").filter(|_| name == "request-size-limiting")?;
        Some((limit.text()?.parse::<u64>().ok()? << 20, limit.span().clone()))
    }
    fn canonical(&self, name: &str) -> Option<&'static str> {
        if name == "simple-redis-cache" {
            return Some("response-cache");
        }
        NAMES.iter().find(|known| **known == name).copied()
    }
}

/// Options with a small environment.
pub fn options() -> LoadOptions {
    LoadOptions::default().with_env([("PORT", "8080"), ("SHORT", "x"), ("WORD", "word"), ("ON", "true")].into_iter().collect::<Env>())
}
