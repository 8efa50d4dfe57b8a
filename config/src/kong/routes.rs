//! `routes`.

use super::{Draft, Scope, filter_chains, plugins, reference, tags};
use crate::{Diagnostic, PathHandling, PathMatcher, Route};
use crate::net::HostPort;
use crate::node::Kind;
use crate::reader::{Context, Fields};
use crate::{Node, Spanned};

/// The protocols of routes and of plugins' `protocols`.
pub(super) const PROTOCOLS: [&str; 10] = ["http", "https", "grpc", "grpcs", "ws", "wss", "tcp", "tls", "udp", "tls_passthrough"];

/// Reads a route with what is nested in it. `service`: the one it is nested in.
pub(super) fn read(cx: &Context<'_>, node: &Node, service: Option<usize>, draft: &mut Draft) {
    let Some(mut fields) = Fields::of(cx, node, "route") else { return };
    let index = draft.routes.len();
    let errors = cx.errors.get();
    let name = fields.filled("name").map(|name| draft.route_names.name_again(cx, "route", name, index));
    let id = fields.filled("id");
    if let Some(id) = &id {
        draft.route_names.id(cx, "route", id, index);
    }
    if let Some(node) = fields.get("service")
        && let Some(reference) = reference(cx, node)
    {
        match service {
            Some(_) => cx.error("reference", node.span(), "this route is nested in its service already", Some("remove the key".into())),
            None => draft.route_services.push((index, reference)),
        }
    }
    let made_up = || format!("{}#{index}", service.map_or("route", |service| &draft.services[service].name));
    let mut protocols = fields.words("protocols", &PROTOCOLS);
    if let Some(stream) = protocols.iter().find(|p| matches!(p.as_str(), "tcp" | "tls" | "udp" | "tls_passthrough")) {
        let span = fields.node().get("protocols").map_or(fields.span(), Node::span);
        cx.error("unsupported", span, format!("routes for `{stream}` are not supported"), Some("Weir serves http, https, grpc, grpcs, ws and wss".into()));
    }
    if protocols.is_empty() {
        protocols = vec!["http".into(), "https".into()];
    }
    let paths = fields.texts("paths").into_iter().filter_map(|path| self::path(cx, path, draft.format)).collect();
    let route = Route {
        service,
        protocols,
        methods: fields.texts("methods").into_iter().filter_map(|method| self::method(cx, method)).collect(),
        hosts: fields.texts("hosts").into_iter().filter_map(|host| self::host(cx, host)).collect(),
        paths,
        headers: headers(&mut fields),
        snis: fields.texts("snis").into_iter().map(|sni| sni.value.to_ascii_lowercase()).collect(),
        strip_path: fields.bool("strip_path").unwrap_or(true),
        preserve_host: fields.bool("preserve_host").unwrap_or(false),
        path_handling: match fields.one_of("path_handling", &["v0", "v1"]) {
            Some("v1") => PathHandling::V1,
            _ => PathHandling::V0,
        },
        regex_priority: fields.int("regex_priority", i64::MIN, i64::MAX).unwrap_or(0),
        https_redirect_status_code: redirect(&mut fields),
        request_buffering: fields.bool("request_buffering").unwrap_or(true),
        response_buffering: fields.bool("response_buffering").unwrap_or(true),
        tags: tags(&mut fields),
        span: fields.name_span().clone(),
        name: name.clone().or(id.clone()).map_or_else(made_up, |text| text.value),
        id: id.map(|id| id.value),
    };
    for key in ["expression", "priority"] {
        if fields.get(key).is_some() {
            let span = fields.node().key_span(key).unwrap_or(fields.span());
            cx.error("unsupported", span, format!("`{key}` is for Kong's expressions router"), Some("write `paths`, `hosts`, `methods` and `headers`".into()));
        }
    }
    for key in ["sources", "destinations"] {
        if fields.list(key).is_empty() {
            continue;
        }
        let span = fields.node().key_span(key).unwrap_or(fields.span());
        cx.error("unsupported", span, format!("`{key}` is for streams of bytes, which are not proxied"), None);
    }
    filter_chains(&mut fields);
    fields.accept(&["created_at", "updated_at", "ws_id"]);
    let matchers = ["paths", "hosts", "methods", "headers", "snis"];
    if matchers.iter().all(|key| fields.node().get(key).is_none()) && fields.node().get("expression").is_none() {
        let why = "this route matches nothing: it has no `paths`, `hosts`, `methods`, `headers` or `snis`";
        fields.lacks(matchers.to_vec(), Diagnostic::error("missing-key", &route.span, why).hint("for everything, write `paths: [/]`"));
    }
    let nested = fields.list("plugins");
    fields.finish();
    if !cx.is_sound_since(errors, &route.span) {
        draft.unsound_routes.insert(index);
    }
    draft.routes.push(route);
    let scope = Scope { service: None, route: Some(index), ..Scope::default() };
    for item in nested {
        plugins::read(cx, item, &scope, draft);
    }
}

fn redirect(fields: &mut Fields<'_, '_>) -> u16 {
    let cx = fields.cx;
    let span = fields.node().get("https_redirect_status_code").map(Node::span);
    match (fields.int("https_redirect_status_code", 0, 999), span) {
        (Some(code @ (426 | 301 | 302 | 307 | 308)), _) => u16::try_from(code).unwrap_or(426),
        (Some(_), Some(span)) => {
            cx.error("value", span, "this must be 426, 301, 302, 307 or 308", None);
            426
        }
        _ => 426,
    }
}

fn method(cx: &Context<'_>, method: Spanned<String>) -> Option<String> {
    let upper = method.to_ascii_uppercase();
    if upper.is_empty() || !upper.bytes().all(|b| b.is_ascii_uppercase() || b == b'-' || b == b'_') {
        cx.error("value", &method.span, "this is not a method", Some("write it like `GET`".into()));
        return None;
    }
    if *method != upper {
        cx.error("value", &method.span, "methods are written in upper case", Some(format!("write `{upper}`")));
    }
    Some(upper)
}

/// A host name, perhaps with one wildcard at its left or right end, perhaps with a port.
fn host(cx: &Context<'_>, host: Spanned<String>) -> Option<String> {
    let lower = host.to_ascii_lowercase();
    let bare = lower.strip_prefix("*.").or_else(|| lower.strip_suffix(".*")).unwrap_or(&lower);
    let (bare, with_port) = match lower.split_once(".*:") {
        // `example.*:8080`
        Some((name, port)) if !lower.starts_with("*.") => (name.to_string(), Some(port)),
        _ => (bare.to_string(), None),
    };
    let problem = if bare.contains('*') {
        Some("a host has one `*` at most, as its first or last part".to_string())
    } else {
        match (HostPort::parse(&bare), with_port.map(|port| port.parse::<u16>())) {
            (Err(why), _) => Some(why),
            (_, Some(Err(_))) => Some("this is not a port".to_string()),
            _ => None,
        }
    };
    match problem {
        None => Some(lower),
        Some(why) => {
            let hint = host.contains("://").then(|| "a host has no `http://` and no path".to_string());
            cx.error("value", &host.span, why, hint.or_else(|| Some("write it like `example.com` or `*.example.com`".into())));
            None
        }
    }
}

/// A path, migrated to what format 3.0 means.
fn path(cx: &Context<'_>, path: Spanned<String>, format: (u16, u16)) -> Option<PathMatcher> {
    let Spanned { value: text, span } = path;
    let regex = if format.0 >= 3 { text.starts_with('~') } else { !text.chars().all(is_plain) };
    let text = if format.0 >= 3 && regex { text[1..].to_string() } else { text };
    if !text.starts_with('/') {
        let anchored = regex && text.starts_with("^/");
        let hint = match (anchored, regex, format.0 >= 3) {
            (_, _, false) if text.starts_with("~/") => "`~` marks a regex in format 3.0; in this one remove it".to_string(),
            (true, ..) => "a regex path is anchored anyway: remove the `^`".to_string(),
            (_, true, true) => "a regex path begins with `~/`".to_string(),
            _ if text.chars().count() <= 40 && !text.is_empty() => format!("write `/{text}`"),
            _ => "write it like `/api`".to_string(),
        };
        cx.error("value", &span, "a path begins with `/`", Some(hint));
        return None;
    }
    if regex {
        if let Err(why) = check_regex(&text) {
            cx.error("regex", &span, format!("the regex does not parse: {why}"), None);
            return None;
        }
    } else if format.0 >= 3 {
        if text.contains("//") {
            cx.warning("path", &span, "paths are matched with slashes merged: this one matches nothing", Some("remove the double slash".into()));
        }
        if looks_like_regex(&text) {
            cx.warning("path-regex", &span, "this looks like a regex but is matched as a plain prefix", Some(format!("in format 3.0 a regex begins with `~`: `~{text}`")));
        }
    }
    Some(PathMatcher { text, regex, span })
}

/// Characters of a plain path in formats before 3.0; any other makes it a regex.
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '~' | '/' | '%')
}

fn looks_like_regex(text: &str) -> bool {
    text.contains(['(', ')', '[', ']', '{', '}', '*', '+', '?', '^', '$', '|', '\\'])
}

/// Whether a regex parses. Lookaround and backreferences are left to the router's second engine.
fn check_regex(text: &str) -> Result<(), String> {
    use regex_syntax::ast::ErrorKind;
    match regex_syntax::ast::parse::Parser::new().parse(text) {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.kind(), ErrorKind::UnsupportedLookAround | ErrorKind::UnsupportedBackreference) => Ok(()),
        // Atomic groups and possessive quantifiers, which the second engine has as well.
        Err(error) if text.contains("(?>") && matches!(error.kind(), ErrorKind::FlagUnrecognized) => Ok(()),
        Err(error) => Err(error.kind().to_string()),
    }
}

/// `headers`: names with lists of values.
fn headers(fields: &mut Fields<'_, '_>) -> Vec<(String, Vec<String>)> {
    let cx = fields.cx;
    let Some(node) = fields.get("headers") else { return vec![] };
    if !matches!(node.kind(), Kind::Map(_)) {
        cx.error("type", node.span(), "a mapping of header names to lists of values is wanted here", Some("write `headers: { x-name: [value] }`".into()));
        return vec![];
    }
    let mut headers = Vec::new();
    for (key, value) in node.entries() {
        let name = key.name.to_ascii_lowercase();
        if name == "host" {
            cx.error("value", &key.span, "the host is matched by `hosts`", None);
            continue;
        }
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)) {
            cx.error("value", &key.span, "this is not the name of a header", None);
            continue;
        }
        let Kind::Seq(items) = value.kind() else {
            cx.error("type", value.span(), format!("a list is wanted here, not {}", value.describe()), Some(format!("write `{}: [value]`", key.name)));
            continue;
        };
        let values: Vec<Spanned<String>> = items.iter().filter_map(|item| cx.text(item)).collect();
        for value in &values {
            if let Some(regex) = value.strip_prefix("~*")
                && let Err(why) = check_regex(regex)
            {
                cx.error("regex", &value.span, format!("the regex does not parse: {why}"), None);
            }
        }
        headers.push((name, values.into_iter().map(|value| value.value).collect()));
    }
    headers
}
