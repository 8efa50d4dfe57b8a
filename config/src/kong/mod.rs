//! Kong's declarative format: nested or flat entities, references by name or id, flattened into a [`Gateway`].

mod consumers;
mod names;
mod plugins;
mod routes;
mod services;
mod shadow;
pub(crate) mod tls;
mod upstreams;

pub use upstreams::{ActiveCheck, Algorithm, CheckKind, HashOn, HealthChecks, Healthy, OutlierDetection, PassiveCheck, Unhealthy, UpstreamSettings};

use crate::entities::*;
use crate::node::Kind;
use crate::reader::{Context, Fields};
use crate::{Listens, Node, Span, Spanned};
use names::Names;
use std::collections::HashSet;

/// Top-level lists of entities, and metadata, that make a file Kong's.
pub(crate) const TOP_KEYS: [&str; 12] =
    ["_format_version", "services", "routes", "plugins", "consumers", "upstreams", "certificates", "consumer_groups", "_transform", "snis", "ca_certificates", "targets"];

/// A reference to another entity, by name or id.
#[derive(Debug, Clone)]
pub(crate) struct Ref {
    text: Spanned<String>,
}

/// Who a plugin is for: known by nesting, or named by a reference that is resolved when all names are known.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scope {
    service: Option<usize>,
    route: Option<usize>,
    consumer: Option<usize>,
    group: Option<usize>,
}

/// Entities on their way into a [`Gateway`].
#[derive(Default)]
pub(crate) struct Draft {
    format: (u16, u16),
    services: Vec<Service>,
    routes: Vec<Route>,
    /// Routes that name their service, with the name.
    route_services: Vec<(usize, Ref)>,
    plugins: Vec<plugins::PluginDraft>,
    consumers: Vec<Consumer>,
    credentials: Vec<(consumers::Owner, consumers::Credential)>,
    groups: Vec<Spanned<String>>,
    group_names: Names,
    upstreams: Vec<Upstream>,
    targets: Vec<(Ref, Target)>,
    certificates: Vec<Certificate>,
    certificate_ids: Names,
    ca_certificates: Vec<CaCertificate>,
    ca_ids: Names,
    /// What services say of TLS, by the service's index.
    service_tls: Vec<(usize, tls::ServiceTls)>,
    upstream_tls: Vec<(usize, Ref)>,
    service_names: Names,
    route_names: Names,
    consumer_names: Names,
    upstream_names: Names,
    custom_ids: Names,
    instance_names: Names,
    credential_names: [Names; 3],
    plugin_configs: Option<Node>,
    /// Routes of which a matcher may be missing, for it has an error.
    unsound_routes: HashSet<usize>,
    /// A target at the top of the file has an error.
    targets_lost: bool,
}

/// Reads Kong's entities out of a mapping. `bare`: the file is Kong's own, not a section of Weir's. Keys of `own` belong to the
/// section around and are skipped.
pub(crate) fn read(cx: &Context<'_>, node: &Node, listen: Listens, bare: bool, own: &[&'static str]) -> Option<Gateway> {
    let mut fields = Fields::of(cx, node, "gateway section")?;
    fields.accept(own);
    let mut draft = Draft { format: format_version(&mut fields, bare), ..Draft::default() };
    metadata(&mut fields, &mut draft);
    for (list, names) in [
        ("upstreams", &mut draft.upstream_names),
        ("services", &mut draft.service_names),
        ("routes", &mut draft.route_names),
        ("consumers", &mut draft.consumer_names),
        ("consumer_groups", &mut draft.group_names),
        ("certificates", &mut draft.certificate_ids),
        ("ca_certificates", &mut draft.ca_ids),
    ] {
        names.look_through(node.get(list));
    }
    node.get("services").map(Node::items).unwrap_or_default().iter().for_each(|service| draft.route_names.look_through(service.get("routes")));

    for item in fields.list("upstreams") {
        upstreams::read(cx, item, &mut draft);
    }
    for item in fields.list("services") {
        services::read(cx, item, &mut draft);
    }
    for item in fields.list("routes") {
        routes::read(cx, item, None, &mut draft);
    }
    for item in fields.list("consumer_groups") {
        consumers::read_group(cx, item, &mut draft);
    }
    for item in fields.list("consumers") {
        consumers::read(cx, item, &mut draft);
    }
    for item in fields.list("plugins") {
        plugins::read(cx, item, &Scope::default(), &mut draft);
    }
    for item in fields.list("targets") {
        upstreams::read_flat_target(cx, item, &mut draft);
    }
    consumers::read_flat(cx, &mut fields, &mut draft);
    tls::read(cx, &mut fields, &mut draft);
    unsupported(&mut fields);
    fields.finish();
    Some(draft.resolve(cx, listen))
}

/// Kong's versions of the format. Kong wants the key; without it the newest is meant.
fn format_version(fields: &mut Fields<'_, '_>, bare: bool) -> (u16, u16) {
    let cx = fields.cx;
    let Some(version) = fields.text("_format_version") else {
        if bare && fields.node().get("_format_version").is_none() {
            cx.warning("format-version", fields.span(), "there is no `_format_version`; 3.0 is assumed", Some("write `_format_version: \"3.0\"`".into()));
        }
        return (3, 0);
    };
    match version.as_str() {
        "1.1" => (1, 1),
        "2.1" => (2, 1),
        "3.0" => (3, 0),
        // `3` is how YAML's number 3.0 looks after some tools.
        "3" => (3, 0),
        other => {
            let shown: String = other.chars().take(20).collect();
            cx.error("format-version", &version.span, format!("`{shown}` is not a version of the format"), Some("known are `1.1`, `2.1` and `3.0`".into()));
            (3, 0)
        }
    }
}

fn metadata(fields: &mut Fields<'_, '_>, draft: &mut Draft) {
    let cx = fields.cx;
    let _ = fields.bool("_transform");
    let note = |key: &str, span: Option<&Span>| {
        if let Some(span) = span {
            cx.note("metadata", span, format!("`{key}` is for other tools and changes nothing here"));
        }
    };
    for key in ["_konnect", "_workspace"] {
        if fields.get(key).is_some() {
            note(key, fields.node().key_span(key));
        }
    }
    if let Some(info) = fields.get("_info") {
        match info.key_span("defaults") {
            Some(span) if info.get("defaults").is_some_and(|defaults| !defaults.entries().is_empty()) => {
                cx.warning("metadata", span, "these defaults are decK's and are not applied", Some("write the values at the entities".into()));
            }
            _ => note("_info", fields.node().key_span("_info")),
        }
    }
    if let Some(configs) = fields.get("_plugin_configs") {
        match configs.kind() {
            Kind::Map(_) => {
                note("_plugin_configs", None);
                draft.plugin_configs = Some(configs.clone());
            }
            _ => cx.wrong(configs, "a mapping of names to configs"),
        }
    }
}

/// What Kong has and Weir has not. Things that may keep people out are errors, the rest warnings.
fn unsupported(fields: &mut Fields<'_, '_>) {
    let cx = fields.cx;
    for (key, guards) in [
        ("filter_chains", true),
        ("hmacauth_credentials", false),
        ("oauth2_credentials", false),
        ("oauth2_tokens", false),
        ("mtls_auth_credentials", false),
        ("keys", false),
        ("key_sets", false),
        ("custom_plugins", true),
        ("degraphql_routes", false),
        ("rbac_roles", false),
        ("licenses", false),
        ("custom_entities", false),
        ("ai_models", true),
    ] {
        let Some(value) = fields.get(key) else { continue };
        if value.items().is_empty() {
            continue;
        }
        let span = fields.node().key_span(key).unwrap_or(value.span());
        if guards {
            cx.error("unsupported", span, format!("Weir does not have Kong's `{key}`"), None);
        } else {
            cx.warning("unsupported", span, format!("Weir does not have Kong's `{key}`: it is ignored"), None);
        }
    }
    for partial in fields.list("partials") {
        let kind = partial.get("type").and_then(|kind| cx.text(kind));
        match kind {
            Some(kind) if kind.starts_with("redis-") => cx.note("unsupported", &kind.span, "this Redis is not used: Weir counts in the store that `store:` names"),
            Some(kind) => cx.error("unsupported", &kind.span, "of partials, only those for Redis are understood", None),
            None => cx.error("missing-key", partial.span(), "a partial has a `type`", None),
        }
    }
    for vault in fields.list("vaults") {
        let Some(mut vault) = Fields::of(cx, vault, "vault") else { continue };
        if let Some(name) = vault.filled("name").filter(|name| name.as_str() != "env") {
            cx.warning("unsupported", &name.span, format!("there is no vault `{}` here", name.as_str()), Some("Weir reads vaults whose name is `env`".into()));
        }
        vault.accept(&["id", "prefix", "config", "description", "tags", "created_at", "updated_at"]);
        vault.finish();
    }
}

/// Kong's programs for WebAssembly, which may stand in services and routes: they may keep people out.
pub(crate) fn filter_chains(fields: &mut Fields<'_, '_>) {
    if let Some(span) = fields.node().key_span("filter_chains").filter(|_| !fields.node().get("filter_chains").is_none_or(|list| list.items().is_empty())) {
        fields.cx.error("unsupported", span, "Weir does not have Kong's `filter_chains`", None);
    }
    fields.accept(&["filter_chains"]);
}

/// A reference as Kong takes it: `name`, `{ name: … }`, `{ username: … }` or `{ id: … }`.
pub(crate) fn reference(cx: &Context<'_>, node: &Node) -> Option<Ref> {
    let text = match node.kind() {
        Kind::Map(_) => match ["name", "username", "id"].iter().find_map(|key| node.get(key)) {
            Some(value) => cx.text(value)?,
            None => {
                cx.error("reference", node.span(), "this names nothing", Some("write `{ name: … }` or `{ id: … }`".into()));
                return None;
            }
        },
        _ => cx.text(node)?,
    };
    Some(Ref { text })
}

impl Draft {
    fn resolve(mut self, cx: &Context<'_>, listen: Listens) -> Gateway {
        tls::attach(cx, &mut self);
        for (route, reference) in std::mem::take(&mut self.route_services) {
            if let Some(service) = self.service_names.find(cx, &reference, "service") {
                self.routes[route].service = Some(service);
                if self.routes[route].name.starts_with("route#") {
                    self.routes[route].name = format!("{}#{route}", self.services[service].name);
                }
            }
        }
        consumers::attach(cx, &mut self);
        upstreams::attach(cx, &mut self);
        let plugins = plugins::resolve(cx, &mut self);
        shadow::warn(cx, &self.routes, &self.unsound_routes);
        Gateway {
            listen,
            format: self.format,
            services: self.services,
            routes: self.routes,
            plugins,
            consumers: self.consumers,
            upstreams: self.upstreams,
            certificates: self.certificates,
            ca_certificates: self.ca_certificates,
            groups: self.groups.into_iter().map(|name| name.value).collect(),
            headers: HeaderNames::default(),
        }
    }
}

/// Tags of an entity.
fn tags(fields: &mut Fields<'_, '_>) -> Vec<String> {
    fields.texts("tags").into_iter().map(|tag| tag.value).collect()
}
