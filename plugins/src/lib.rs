//! The plugins, and their register.
//!
//! A plugin is one file (or folder): its configuration as a struct whose doc comments are its manual, its code, its tests. To add one,
//! write the file, implement [`Configured`] for its configuration, and add one line to [`KINDS`].

mod acl;
mod auth;
mod basic_auth;
mod bot_detection;
mod circuit_breaker;
mod compression;
mod correlation_id;
mod cors;
mod cookies;
mod file_log;
mod http_log;
mod idempotency;
mod ip_restriction;
mod jwt;
mod key_auth;
mod load_shedding;
mod logging;
mod multipart;
mod opentelemetry;
mod pairs;
mod query;
mod reach;
mod rate_limiting;
mod request_size_limiting;
mod request_termination;
mod request_transformer;
mod request_validation;
mod prometheus;
mod proxy_cache;
mod response_cache;
mod response_ratelimiting;
mod response_transformer;
mod tcp_log;
mod template;
mod token_validator;

#[cfg(test)]
mod testing;

/// The plugin of `docs/your-own-plugin.md`: tests compile and run it.
#[cfg(test)]
#[path = "../../docs/examples/tenant.rs"]
mod tenant;

pub use response_cache::cache_epoch;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use std::{path::PathBuf, sync::Arc};
use weir_config::{Diagnostic, Node, PluginCatalog, PluginEntry, Severity, Span};
use weir_gateway::{BuildEnv, Plugin, Register};
use weir_store::{Ledger, Store, StoreResult};

/// The register: one line a plugin.
static KINDS: &[Kind] = &[
    kind::<correlation_id::Config>(),
    kind::<cors::Config>(),
    kind::<token_validator::Config>(),
    kind::<jwt::Config>(),
    kind::<key_auth::Config>(),
    kind::<basic_auth::Config>(),
    kind::<acl::Config>(),
    kind::<load_shedding::Config>(),
    kind::<response_ratelimiting::Config>(),
    kind::<request_size_limiting::Config>(),
    kind::<request_validation::Config>(),
    kind::<request_termination::Config>(),
    kind::<bot_detection::Config>(),
    kind::<ip_restriction::Config>(),
    kind::<rate_limiting::Config>(),
    kind::<rate_limiting::Advanced>(),
    kind::<idempotency::Config>(),
    kind::<request_transformer::Config>(),
    kind::<response_transformer::Config>(),
    kind::<proxy_cache::Config>(),
    kind::<weir_config::CircuitBreaker>(),
    kind::<compression::Config>(),
    kind::<opentelemetry::Config>(),
    kind::<prometheus::Config>(),
    kind::<http_log::Config>(),
    kind::<file_log::Config>(),
    kind::<tcp_log::Config>(),
    kind::<response_cache::Config>(),
];

/// Known to tests only.
#[cfg(test)]
static OF_THE_DOCS: &[Kind] = &[kind::<tenant::Config>()];
#[cfg(not(test))]
static OF_THE_DOCS: &[Kind] = &[];

/// The configuration of a plugin, and how it becomes one.
trait Configured: DeserializeOwned + JsonSchema {
    /// The name in configurations.
    const NAME: &'static str;
    /// Other names that mean the same.
    const ALIASES: &'static [&'static str] = &[];
    /// Place in the chain: higher runs earlier. Kong's number where Kong has this plugin.
    const PRIORITY: i32;
    /// A `config:` that the manual shows and a test runs.
    const EXAMPLE: &'static str;

    /// The configuration with everything checked and compiled that needs no environment.
    type Ready;

    /// Finds the mistakes that types do not catch. `at` is the configuration as written, for their places.
    fn ready(self, at: &Node) -> Result<Self::Ready, Vec<Diagnostic>>;

    /// What is accepted but probably not meant; asked only where there is no mistake.
    fn warnings(_at: &Node) -> Vec<Diagnostic> {
        vec![]
    }

    /// Names in it that nothing in the whole configuration has.
    fn unknown(_ready: &Self::Ready, _at: &Node, _env: &BuildEnv<'_>) -> Vec<Diagnostic> {
        vec![]
    }

    /// Where the configuration says how large bodies may be, in bytes.
    fn body_limit(&self, _at: &Node) -> Option<(u64, Span)> {
        None
    }

    /// Files that it names.
    fn files(_at: &Node) -> Vec<PathBuf> {
        vec![]
    }

    /// Makes the plugin.
    fn build(ready: Self::Ready, env: &BuildEnv<'_>, live: &Live) -> Arc<dyn Plugin>;
}

/// What plugins keep over reloads of the configuration.
struct Live {
    limits: Arc<rate_limiting::Counts>,
    tokens: token_validator::Memories,
    kong_metrics: std::sync::OnceLock<Arc<prometheus::KongMetrics>>,
    credentials: auth::Indexes,
    key_sets: jwt::KeySets,
    /// Of this process.
    ledger: Arc<dyn Ledger>,
}

impl Default for Live {
    fn default() -> Self {
        Live { limits: Arc::default(), kong_metrics: Default::default(), tokens: Default::default(), credentials: Default::default(), key_sets: Default::default(), ledger: Store::memory_bounded(0).ledger }
    }
}

struct Kind {
    name: &'static str,
    aliases: &'static [&'static str],
    priority: i32,
    example: &'static str,
    schema: fn() -> serde_json::Value,
    check: fn(&Node) -> Vec<Diagnostic>,
    body_limit: fn(&Node) -> Option<(u64, Span)>,
    files: fn(&Node) -> Vec<PathBuf>,
    build: fn(&Node, &BuildEnv<'_>, &Live) -> Made,
}

type Made = Result<Arc<dyn Plugin>, Vec<Diagnostic>>;

const fn kind<C: Configured>() -> Kind {
    Kind {
        name: C::NAME,
        aliases: C::ALIASES,
        priority: C::PRIORITY,
        example: C::EXAMPLE,
        schema: weir_config::schema::<C>,
        check: |node| ready::<C>(node).err().unwrap_or_else(|| C::warnings(node)),
        files: C::files,
        body_limit: |node| weir_config::decode::<C>(node).ok()?.body_limit(node),
        build: |node, env, live| {
            let ready = ready::<C>(node)?;
            let unknown = C::unknown(&ready, node, env);
            if unknown.is_empty() { Ok(C::build(ready, env, live)) } else { Err(unknown) }
        },
    }
}

fn ready<C: Configured>(node: &Node) -> Result<C::Ready, Vec<Diagnostic>> {
    weir_config::decode::<C>(node)?.ready(node)
}

/// The register with what its plugins keep over reloads. Make it once a process: counters and verified tokens live in it.
pub struct Plugins {
    live: Live,
}

/// A fresh register.
pub fn register() -> Plugins {
    Plugins { live: Live::default() }
}

/// What names a token that is to end before its time.
#[derive(Debug, Clone, Copy)]
pub enum LogOut<'a> {
    /// The token itself.
    Token(&'a str),
    /// Its `jti`.
    Jti(&'a str),
    /// The SHA-256, in hex, of the token, or of the token without its last dot and signature.
    Sha256(&'a str),
}

impl Plugins {
    /// Ends a token for `token-validator` on all instances, as a message on `channel` would, and marks it in the store.
    ///
    /// Errors: the store did not take it; then it is ended on this instance only.
    pub async fn log_out(&self, store: &Store, channel: &str, what: LogOut<'_>) -> StoreResult<()> {
        let message = match what {
            LogOut::Token(token) => token_validator::message_for(token),
            LogOut::Jti(text) | LogOut::Sha256(text) => text.to_owned(),
        };
        self.live.tokens.channel(channel).announce(store, &message).await
    }
}

fn find(name: &str) -> Option<&'static Kind> {
    KINDS.iter().chain(OF_THE_DOCS).find(|k| k.name == name || k.aliases.contains(&name))
}

impl PluginCatalog for Plugins {
    fn canonical(&self, name: &str) -> Option<&'static str> {
        find(name).map(|k| k.name)
    }

    fn names(&self) -> Vec<String> {
        KINDS.iter().flat_map(|k| std::iter::once(&k.name).chain(k.aliases)).map(ToString::to_string).collect()
    }

    fn body_limit(&self, name: &str, config: &Node) -> Option<(u64, Span)> {
        (find(name)?.body_limit)(config)
    }

    fn files(&self, name: &str, config: &Node) -> Vec<PathBuf> {
        find(name).map_or_else(Vec::new, |kind| (kind.files)(config))
    }

    fn check(&self, name: &str, config: &Node) -> Vec<Diagnostic> {
        let Some(kind) = find(name) else { return vec![] };
        let mut found = (kind.check)(config);
        if found.iter().all(|d| d.severity != Severity::Error) {
            found.extend(reach::of_plugin(kind.name, config));
        }
        found
    }
}

impl Register for Plugins {
    fn build(&self, entry: &PluginEntry, env: &BuildEnv<'_>) -> Result<Arc<dyn Plugin>, Vec<Diagnostic>> {
        match find(&entry.name) {
            // An empty list means "reported already". A plugin that may have kept people out must not just be missing.
            Some(kind) => (kind.build)(&entry.config, env, &self.live).map_err(|errors| match errors.is_empty() {
                true => vec![Diagnostic::error("plugin-config", entry.config.span(), format!("the configuration of `{}` is not complete", entry.name))],
                false => errors,
            }),
            None => Err(vec![Diagnostic::error("unknown-plugin", &entry.name_span, format!("unknown plugin `{}`", entry.name))]),
        }
    }

    fn priority(&self, name: &str) -> i32 {
        find(name).map_or(0, |k| k.priority)
    }
}

/// A plugin's page of the manual.
#[derive(Debug, Clone)]
pub struct Page {
    /// The name in configurations.
    pub name: &'static str,
    /// Other names that mean the same.
    pub aliases: &'static [&'static str],
    /// Place in the chain: higher runs earlier.
    pub priority: i32,
    /// What it does: the doc comment of its configuration.
    pub about: String,
    /// JSON Schema of its `config:`, with a description of every field.
    pub schema: serde_json::Value,
    /// A `config:` in YAML that works.
    pub example: &'static str,
}

/// The manual: a page for every plugin, in the order of the chain.
pub fn manual() -> Vec<Page> {
    let mut pages: Vec<Page> = KINDS
        .iter()
        .map(|k| {
            let schema = (k.schema)();
            let about = schema.get("description").and_then(|d| d.as_str()).unwrap_or_default().to_owned();
            Page { name: k.name, aliases: k.aliases, priority: k.priority, about, schema, example: k.example }
        })
        .collect();
    pages.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.name.cmp(b.name)));
    pages
}

/// A mistake in the value of `key`, or in the whole where the key is not there.
fn wrong(at: &Node, key: &str, message: impl Into<String>) -> Diagnostic {
    let span = at.get(key).map_or(at.span(), Node::span);
    Diagnostic::error("plugin-config", span, message)
}

/// Something in the value of `key` that is accepted but probably not meant.
fn doubtful(at: &Node, key: &str, message: impl Into<String>) -> Diagnostic {
    let span = at.key_span(key).unwrap_or(at.span());
    Diagnostic::warning("plugin-config", span, message)
}

/// The request was shaped by something by which one visitor differs from another: its answer is not for a cache.
#[derive(Clone)]
struct Personal;

/// A header name, or what is wrong with it.
fn header_name(at: &Node, key: &str, name: &str) -> Result<http::HeaderName, Diagnostic> {
    http::HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong(at, key, format!("`{}` is not a header name", name.escape_debug())))
}

/// The name of a field that a plugin sets, or what is wrong with it.
fn own_name(at: &Node, key: &str, name: &str) -> Result<http::HeaderName, Diagnostic> {
    let header = header_name(at, key, name)?;
    if weir_gateway::sight::frames(&header) {
        return Err(wrong(at, key, format!("`{name}` says where a message or a connection ends: no plugin can set it")));
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_in_the_chain_is_pinned() {
        let order: Vec<(i32, &str)> = manual().iter().map(|p| (p.priority, p.name)).collect();
        assert_eq!(
            order,
            [
                (100_001, "correlation-id"),
                (2500, "bot-detection"),
                (2100, "compression"),
                (2000, "cors"),
                (1450, "jwt"),
                (1450, "token-validator"),
                (1250, "key-auth"),
                (1100, "basic-auth"),
                (999, "request-validation"),
                (990, "ip-restriction"),
                (951, "request-size-limiting"),
                (950, "acl"),
                (940, "load-shedding"),
                (910, "rate-limiting"),
                (910, "rate-limiting-advanced"),
                (905, "idempotency"),
                (900, "response-ratelimiting"),
                (801, "request-transformer"),
                (800, "response-transformer"),
                (100, "proxy-cache"),
                (100, "response-cache"),
                (90, "circuit-breaker"),
                (14, "opentelemetry"),
                (13, "prometheus"),
                (12, "http-log"),
                (9, "file-log"),
                (7, "tcp-log"),
                (2, "request-termination"),
            ]
        );
    }

    #[test]
    fn every_field_of_every_plugin_is_described() {
        for page in manual() {
            assert!(page.about.len() > 80, "{} needs a manual", page.name);
            undescribed(page.name, &page.schema);
        }
    }

    fn undescribed(place: &str, schema: &serde_json::Value) {
        for part in ["properties", "$defs"] {
            for (name, field) in schema.get(part).and_then(|p| p.as_object()).into_iter().flatten() {
                let described = field.get("description").is_some() || field.get("$ref").is_some();
                assert!(described, "{place}.{name} needs a description");
                undescribed(&format!("{place}.{name}"), field);
            }
        }
    }

    /// What the plugin of each example in the manual does with a plain GET and a plain POST.
    #[tokio::test]
    async fn every_example_of_the_manual_runs() {
        for page in manual() {
            let rig = testing::Rig::new(&[(page.name, page.example)]);
            let get = rig.run(testing::get("/a?page=2&x=1")).await;
            let post = rig.run(testing::ask("POST", "/a")).await;
            let told = |name: &str| get.header(name).map(str::to_owned);
            let (statuses, shown) = match page.name {
                "correlation-id" => ([200, 200], told("x-correlation-id").map(|_| "an id".into())),
                "cors" => ([200, 200], told("access-control-expose-headers")),
                "token-validator" | "jwt" | "key-auth" | "basic-auth" => ([401, 401], told("www-authenticate")),
                "acl" => ([401, 401], get.json()["message"].as_str().map(str::to_owned)),
                "rate-limiting" | "rate-limiting-advanced" => ([200, 200], told("x-ratelimit-remaining-second")),
                "idempotency" => ([200, 400], Some(post.body.clone())),
                "request-transformer" => ([200, 200], Some(format!("{} {}", get.target(), get.sent("x-user")))),
                "response-transformer" => ([200, 200], told("x-content-type-options")),
                "prometheus" => ([200, 200], rig.environment.metrics.text(&rig.environment).contains("kong_datastore_reachable 1").then(|| "metrics".into())),
                "circuit-breaker" => ([200, 200], Some(get.forwarded().to_string())),
                "load-shedding" => ([200, 200], Some(get.cx.priority().word().to_owned())),
                "compression" => ([200, 200], Some(get.body.clone())),
                "opentelemetry" => ([200, 200], told("x-trace-id").map(|id| id.len().to_string())),
                "http-log" | "file-log" | "tcp-log" => ([200, 200], get.cx.log_view.as_ref().map(|v| v.uri.to_string())),
                "proxy-cache" | "response-cache" => ([200, 200], get.cx.plan.as_ref().map(|p| p.key.clone())),
                "ip-restriction" => ([200, 200], Some(format!("{}", get.forwarded()))),
                "bot-detection" => ([200, 200], Some(format!("{}", get.forwarded()))),
                "request-termination" => ([503, 503], Some(post.body.clone())),
                "request-validation" => ([200, 400], post.json()["errors"][0]["message"].as_str().map(str::to_owned)),
                "request-size-limiting" => ([200, 200], get.cx.max_body.map(|m| m.to_string())),
                "response-ratelimiting" => ([200, 200], told("x-ratelimit-remaining-sms-day")),
                other => panic!("{other} has no line here"),
            };
            assert_eq!([get.status(), post.status()], statuses, "{}", page.name);
            let expected = match page.name {
                "correlation-id" => "an id",
                "cors" => "X-Cache-Status",
                "token-validator" => "Bearer realm=\"api\"",
                "jwt" => "Bearer realm=\"shop\"",
                "key-auth" => "Key realm=\"shop\"",
                "basic-auth" => "Basic realm=\"staff\"",
                "acl" => "Unauthorized",
                "response-ratelimiting" => "10",
                "request-validation" => "a body is required",
                "request-size-limiting" => "10485760",
                "request-termination" => "<h1>We are back in an hour</h1>",
                "bot-detection" => "true",
                "ip-restriction" => "true",
                "rate-limiting" => "49",
                "rate-limiting-advanced" => "9",
                "idempotency" => r#"{"message":"Idempotency-Key is required for this request"}"#,
                "request-transformer" => "/v2/items?pageNumber=2&x=1&source=web guest",
                "response-transformer" => "nosniff",
                "prometheus" => "metrics",
                "http-log" | "file-log" | "tcp-log" => "/a?page=2&x=1",
                "circuit-breaker" => "true",
                "load-shedding" => "low",
                "opentelemetry" => "32",
                "compression" => "hello",
                _ => "cache:GET:/a?page=2",
            };
            assert_eq!(shown.as_deref(), Some(expected), "{}", page.name);
        }
    }

    #[test]
    fn what_cannot_be_made_is_never_silently_missing() {
        let env = testing::environment(Store::memory());
        let env = BuildEnv { environment: &env, scope: "global".into(), services: &Default::default(), consumers: &Arc::default() };
        for (name, config) in [("token-validator", "{}"), ("no-such-plugin", "{}")] {
            let errors = register().build(&testing::entry(name, config), &env).err().unwrap_or_default();
            assert!(!errors.is_empty(), "{name}");
        }
    }

    #[tokio::test]
    async fn mistakes_are_named_with_their_place() {
        for page in manual() {
            let errors = testing::errors(page.name, &format!("{}\nno_such_field: 1\n", page.example));
            let text = errors.iter().map(ToString::to_string).collect::<String>();
            assert!(text.contains("no_such_field"), "{}: {text}", page.name);
        }
    }

    /// The code blocks of a language in a page, in order.
    fn blocks(page: &str, language: &str) -> Vec<String> {
        let open = format!("```{language}\n");
        page.split(&open).skip(1).map(|rest| rest.split("\n```").next().unwrap_or_default().to_owned()).collect()
    }

    #[tokio::test]
    async fn the_page_about_a_plugin_of_ones_own_shows_one_that_works() {
        let page = include_str!("../../docs/your-own-plugin.md");
        let file = include_str!("../../docs/examples/tenant.rs");
        assert_eq!(blocks(page, "rust").join("\n\n"), file.trim_end(), "docs/your-own-plugin.md and docs/examples/tenant.rs differ");
        let yaml = Node::parse(&blocks(page, "yaml")[0]).unwrap();
        let config = yaml.get("plugins").and_then(|p| p.items()[0].get("config")).unwrap();
        let rig = testing::Rig::new(&[("tenant", &config.to_json().to_string())]);
        assert_eq!(rig.run(testing::get("/")).await.status(), 404, "api.example is no tenant");
    }

    #[test]
    fn aliases_are_known() {
        let register = register();
        assert_eq!(register.canonical("simple-redis-cache"), Some("response-cache"));
        assert_eq!(register.canonical("rate-limiting"), Some("rate-limiting"));
        assert_eq!(register.canonical("ratelimiting"), None);
    }
}
