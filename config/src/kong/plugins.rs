//! `plugins`, wherever they stand.

use super::routes::PROTOCOLS;
use super::{Draft, Ref, Scope, reference};
use crate::PluginEntry;
use crate::node::Kind;
use crate::reader::{Context, Fields};
use crate::words::{did_you_mean, listed};
use crate::{Diagnostic, Node, Severity, Span, Spanned};
use std::collections::HashMap;

/// A plugin whose references are not resolved yet.
pub(crate) struct PluginDraft {
    entry: PluginEntry,
    service: Option<Ref>,
    route: Option<Ref>,
    consumer: Option<Ref>,
    group: Option<Ref>,
    /// The register has it; of others only the references count.
    known: bool,
}

/// Reads one plugin. `scope`: what it is nested in.
pub(super) fn read(cx: &Context<'_>, node: &Node, scope: &Scope, draft: &mut Draft) {
    let Some(mut fields) = Fields::of(cx, node, "plugin") else { return };
    let name = fields.filled("name");
    if name.is_none() && node.get("name").is_none() {
        let hint = match fields.node().entries() {
            // `- cors: {…}`
            [(key, _)] if cx.catalog.canonical(&key.name).is_some() => Some(format!("write `name: {}`", key.name)),
            _ => None,
        };
        fields.missing(&["name"], hint);
    }
    let errors = cx.errors.get();
    let shared = fields.text("_config").and_then(|wanted| shared_config(cx, &wanted, draft));
    let own = fields.get("config");
    if let Some(own) = own.filter(|own| !matches!(own.kind(), Kind::Map(_))) {
        cx.wrong(own, "a mapping (the plugin's config)");
    }
    let complete = cx.errors.get() == errors && own.is_none_or(|own| !own.source().broken);
    let config = merged(shared.as_ref(), own).unwrap_or_else(|| Node::empty_map(fields.name_span().clone()));
    let mut scope_ref = |key: &'static str, around: Option<[Option<&str>; 2]>| {
        let node = fields.get(key)?;
        let found = reference(cx, node)?;
        let Some(names) = around else { return Some(found) };
        let message = format!("this plugin is nested in its {key} already");
        match names.contains(&Some(found.text.as_str())) {
            true => cx.warning("reference", node.span(), message, Some("remove the key".into())),
            false => cx.error("reference", node.span(), message, Some("remove the key".into())),
        }
        None
    };
    let service = scope_ref("service", scope.service.map(|at| [Some(draft.services[at].name.as_str()), draft.services[at].id.as_deref()]));
    let route = scope_ref("route", scope.route.map(|at| [Some(draft.routes[at].name.as_str()), draft.routes[at].id.as_deref()]));
    let consumer = scope_ref("consumer", scope.consumer.map(|at| [draft.consumers[at].username.as_deref(), Some(draft.consumers[at].id.as_str())]));
    let group = scope_ref("consumer_group", scope.group.map(|at| [draft.groups.get(at).map(|name| name.as_str()), None]));
    let enabled = fields.bool("enabled").unwrap_or(true);
    let protocols = fields.words("protocols", &PROTOCOLS);
    let instance = fields.filled("instance_name");
    if let Some(instance) = &instance {
        draft.instance_names.name(cx, "plugin instance", instance, draft.plugins.len(), true);
    }
    let (before, after) = fields.get("ordering").map(|node| ordering(cx, node)).unwrap_or_default();
    if let Some(condition) = fields.get("condition") {
        cx.error("unsupported", condition.span(), "conditions of plugins are not supported", None);
    }
    fields.accept(&["id", "tags", "created_at", "updated_at", "run_on", "ws_id", "partials"]);
    fields.finish();
    let Some(name) = name else { return };
    let canonical = known(cx, &name);
    if let Some(canonical) = canonical.filter(|_| complete) {
        let mut found = cx.catalog.check(canonical, &config);
        if config.has_broken_part() {
            found.retain(|diagnostic| !config.is_broken_at(&diagnostic.span));
        }
        cx.extend(found);
        cx.files.borrow_mut().extend(cx.catalog.files(canonical, &config));
    }
    cx.is_sound_since(errors, &name.span);
    if canonical.is_none() && cx.options.ignore_unknown_plugins {
        return;
    }
    draft.plugins.push(PluginDraft {
        known: canonical.is_some(),
        entry: PluginEntry {
            name: canonical.map_or(name.value, str::to_string),
            name_span: name.span,
            config,
            enabled,
            service: scope.service,
            route: scope.route,
            consumer: scope.consumer,
            group: scope.group,
            protocols,
            before,
            after,
            instance_name: instance.map(|text| text.value),
        },
        service,
        route,
        consumer,
        group,
    });
}

/// `ordering: { before: { access: [names] }, after: { access: [names] } }`.
fn ordering(cx: &Context<'_>, node: &Node) -> (Vec<Spanned<String>>, Vec<Spanned<String>>) {
    let Some(mut fields) = Fields::of(cx, node, "plugin's ordering") else { return Default::default() };
    let mut side = |key: &'static str| {
        let Some(mut phases) = fields.get(key).and_then(|node| Fields::of(cx, node, "side of an ordering")) else { return vec![] };
        let names = phases.texts("access").into_iter().filter_map(|name| match cx.catalog.canonical(&name) {
            Some(known) => Some(Spanned::new(known.to_string(), name.span)),
            None => {
                let hint = did_you_mean(&name, cx.catalog.names().iter().map(String::as_str));
                cx.error("unknown-plugin", &name.span, format!("unknown plugin `{}`", name.value.chars().take(60).collect::<String>()), hint);
                None
            }
        });
        let names = names.collect();
        phases.finish();
        names
    };
    let sides = (side("before"), side("after"));
    fields.finish();
    sides
}

/// The register's name of a plugin; reports names that it does not know.
fn known(cx: &Context<'_>, name: &Spanned<String>) -> Option<&'static str> {
    if let Some(canonical) = cx.catalog.canonical(name) {
        return Some(canonical);
    }
    let names = cx.catalog.names();
    let (message, hint) = match lacking(name) {
        Some((nearest, advice)) => {
            let nearest: Vec<&str> = nearest.iter().copied().filter(|name| cx.catalog.canonical(name).is_some()).collect();
            let hint = match (nearest.is_empty(), advice) {
                (false, "") => format!("nearest: {}", listed(nearest, 4)),
                (false, advice) => format!("nearest: {} ({advice})", listed(nearest, 4)),
                (true, "") => "there is nothing like it; a plugin of your own is one Rust file".to_string(),
                (true, advice) => advice.to_string(),
            };
            (format!("Weir does not have Kong's plugin `{}`", name.value), Some(hint))
        }
        None => {
            let hint = did_you_mean(name, names.iter().map(String::as_str)).or_else(|| {
                let near: Vec<&str> = family(name).iter().copied().filter(|name| cx.catalog.canonical(name).is_some()).collect();
                Some(match near.is_empty() {
                    true => "a plugin of your own is one Rust file and one line".to_string(),
                    false => format!("nearest: {}", listed(near, 4)),
                })
            });
            let shown: String = name.chars().take(60).collect();
            (format!("unknown plugin `{shown}`"), hint)
        }
    };
    let (severity, message) = match cx.options.ignore_unknown_plugins {
        true => (Severity::Warning, format!("{message}: it is left out")),
        false => (Severity::Error, message),
    };
    cx.push(Diagnostic::new(severity, "unknown-plugin", &name.span, message).maybe_hint(hint));
    None
}

/// decK's `_config: name`, which stands for an entry of `_plugin_configs`.
fn shared_config(cx: &Context<'_>, wanted: &Spanned<String>, draft: &Draft) -> Option<Node> {
    let configs = draft.plugin_configs.as_ref();
    let found = configs.and_then(|configs| configs.get(wanted));
    if found.is_none() {
        let hint = configs.and_then(|configs| did_you_mean(wanted, configs.entries().iter().map(|(key, _)| key.name.as_str())));
        cx.error("missing-reference", &wanted.span, format!("there is no `{}` in `_plugin_configs`", wanted.value), hint);
    }
    found.cloned()
}

/// The shared config with the plugin's own keys over it.
fn merged(shared: Option<&Node>, own: Option<&Node>) -> Option<Node> {
    let own = own.filter(|own| matches!(own.kind(), Kind::Map(_)));
    let Some(shared) = shared else { return own.cloned() };
    let Some(own) = own else { return Some(shared.clone()) };
    let mut entries = own.entries().to_vec();
    entries.extend(shared.entries().iter().filter(|(key, _)| own.get(&key.name).is_none()).cloned());
    Some(Node::at(own.span().clone(), Kind::Map(entries)))
}

/// Resolves what plugins refer to; refuses a second one of a name in the same scope.
pub(super) fn resolve(cx: &Context<'_>, draft: &mut Draft) -> Vec<PluginEntry> {
    let mut entries = Vec::with_capacity(draft.plugins.len());
    let mut seen: HashMap<(String, [Option<usize>; 4]), Span> = HashMap::new();
    for plugin in std::mem::take(&mut draft.plugins) {
        let PluginDraft { mut entry, service, route, consumer, group, known } = plugin;
        let mut lost = false;
        let mut find = |reference: Option<Ref>, names: &super::Names, what: &str, into: &mut Option<usize>| {
            if let Some(reference) = reference {
                *into = names.find(cx, &reference, what);
                lost |= into.is_none();
            }
        };
        find(service, &draft.service_names, "service", &mut entry.service);
        find(route, &draft.route_names, "route", &mut entry.route);
        find(consumer, &draft.consumer_names, "consumer", &mut entry.consumer);
        if let Some(reference) = group {
            find(Some(reference), &draft.group_names, "consumer group", &mut entry.group);
        }
        if let (Some(_), Some(_)) = (entry.consumer, entry.group) {
            cx.error("reference", &entry.name_span, "a plugin is for a consumer or for a group, not for both", None);
            continue;
        }
        if lost || !known {
            continue;
        }
        let key = (entry.name.clone(), [entry.service, entry.route, entry.consumer, entry.group]);
        if let Some(first) = seen.get(&key) {
            let message = format!("the plugin `{}` stands here a second time", entry.name);
            cx.error("duplicate-plugin", &entry.name_span, message, Some(format!("one of a name for the same scope; first at {first}")));
            continue;
        }
        seen.insert(key, entry.name_span.clone());
        entries.push(entry);
    }
    entries
}

/// Plugins of Kong that Weir may lack: what comes nearest, and a word of advice.
fn lacking(name: &str) -> Option<(&'static [&'static str], &'static str)> {
    Some(match name {
        "oauth2" => (&["token-validator", "jwt"], "Weir checks tokens and issues none"),
        "oauth2-introspection" => (&["token-validator"], "it can ask the auth service"),
        "openid-connect" | "oidc" => (&["jwt", "token-validator"], "for bearer tokens, with `jwks_uri` or OIDC discovery"),
        "jwt-signer" | "jwe-decrypt" => (&["jwt", "token-validator"], ""),
        "hmac-auth" | "ldap-auth" | "ldap-auth-advanced" | "mtls-auth" | "header-cert-auth" | "vault-auth" => (&["key-auth", "basic-auth", "jwt"], ""),
        "key-auth-enc" | "key-auth-advanced" => (&["key-auth"], ""),
        "session" => (&["jwt", "token-validator"], "Weir keeps no sessions"),
        "opa" => (&["acl", "jwt"], ""),
        "request-validator" => (&["request-validation"], ""),
        "ai-rate-limiting-advanced" | "service-protection" | "graphql-rate-limiting-advanced" => (&["rate-limiting"], ""),
        "proxy-cache-advanced" | "graphql-proxy-cache-advanced" => (&["proxy-cache", "response-cache"], ""),
        "request-transformer-advanced" => (&["request-transformer"], ""),
        "response-transformer-advanced" | "exit-transformer" => (&["response-transformer"], ""),
        "oas-validation" | "json-threat-protection" | "xml-threat-protection" => (&["request-validation"], "it takes JSON Schema or an OpenAPI document"),
        "request-callout" | "pre-function" | "post-function" | "aws-lambda" | "azure-functions" | "openwhisk" | "jq" | "datakit" => (&[], "code belongs in a plugin of your own: one Rust file and one line"),
        "zipkin" | "app-dynamics" => (&["opentelemetry"], ""),
        "datadog" | "statsd" | "statsd-advanced" => (&["prometheus", "opentelemetry"], ""),
        "loggly" | "syslog" | "udp-log" | "kafka-log" | "solace-log" => (&["http-log", "tcp-log", "file-log"], ""),
        "acme" => (&[], "give `certificates`, or terminate TLS before Weir"),
        "grpc-web" | "grpc-gateway" | "degraphql" | "websocket-size-limit" | "websocket-validator" | "kafka-upstream" | "kafka-consume" | "confluent" | "confluent-consume" => (&[], ""),
        "dynamic-routing" | "canary" | "route-by-header" | "upstream-timeout" | "forward-proxy" | "redirect" | "route-transformer-advanced" | "tls-handshake-modifier" | "tls-metadata-headers" => (&[], "routes match by headers, services have timeouts, upstreams have weights"),
        "mocking" => (&["request-termination"], ""),
        "injection-protection" | "standard-webhooks" => (&[], ""),
        "prometheus" => (&[], "metrics are served on the admin port"),
        // The rest of Kong's own, for versions of the register that lack them.
        "jwt" => (&["token-validator"], ""),
        "key-auth" | "basic-auth" => (&["token-validator"], ""),
        "proxy-cache" => (&["response-cache"], ""),
        "http-log" | "file-log" | "tcp-log" | "opentelemetry" => (&[], "`server.access_log` writes requests to standard output"),
        "acl" | "ip-restriction" | "bot-detection" | "request-size-limiting" | "request-termination" | "request-transformer" | "response-transformer" | "response-ratelimiting" => (&[], ""),
        other if other.starts_with("ai-") => (&[], ""),
        _ => return None,
    })
}

/// What comes nearest to a plugin that not even Kong knows, by what its name says it does.
fn family(name: &str) -> &'static [&'static str] {
    let name = name.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| name.contains(word));
    if has(&["request-id", "correlation", "trace-id"]) {
        &["correlation-id"]
    } else if has(&["idempot"]) {
        &["idempotency"]
    } else if has(&["circuit", "breaker"]) {
        &["circuit-breaker"]
    } else if has(&["gzip", "brotli", "compress"]) {
        &["compression"]
    } else if has(&["size"]) {
        &["request-size-limiting"]
    } else if has(&["terminat", "maintenance", "mock"]) {
        &["request-termination"]
    } else if has(&["jwt", "jwk", "oidc", "openid", "token", "oauth", "keycloak", "dpop", "auth0", "introspect"]) {
        &["token-validator", "jwt"]
    } else if has(&["auth", "opa", "acl", "permission", "rbac"]) {
        &["token-validator", "jwt", "key-auth", "acl"]
    } else if has(&["cache"]) {
        &["response-cache", "proxy-cache"]
    } else if has(&["limit", "throttl", "quota"]) {
        &["rate-limiting", "response-ratelimiting"]
    } else if has(&["log"]) {
        &["http-log", "file-log", "tcp-log"]
    } else if has(&["trace", "tracing", "telemetry", "span", "metric"]) {
        &["opentelemetry", "prometheus"]
    } else if has(&["transform", "rewrite", "header", "path"]) {
        &["request-transformer", "response-transformer"]
    } else if has(&["valid", "schema"]) {
        &["request-validation"]
    } else if has(&["ip", "geo", "bot", "waf"]) {
        &["ip-restriction", "bot-detection"]
    } else {
        &[]
    }
}
