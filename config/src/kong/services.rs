//! `services`.

use super::{Draft, Scope, filter_chains, plugins, routes, tags, tls};
use crate::Service;
use crate::net::{HostPort, check_host};
use crate::reader::{Context, Fields};
use crate::{Node, Spanned, placeholders, resilience};
use std::time::Duration;

const PROTOCOLS: [&str; 10] = ["http", "https", "grpc", "grpcs", "ws", "wss", "tcp", "tls", "udp", "tls_passthrough"];
/// Those whose bytes are no HTTP.
const STREAMS: [&str; 4] = ["tcp", "tls", "udp", "tls_passthrough"];
/// Kong's largest timeout: 2³¹−2 milliseconds.
const LONGEST: i64 = 2_147_483_646;

/// What a service's address says.
struct Address {
    protocol: String,
    host: String,
    port: u16,
    path: String,
}

/// Reads a service with what is nested in it.
pub(super) fn read(cx: &Context<'_>, node: &Node, draft: &mut Draft) {
    let Some(mut fields) = Fields::of(cx, node, "service") else { return };
    let index = draft.services.len();
    let errors = cx.errors.get();
    let name = fields.filled("name").map(|name| draft.service_names.name_again(cx, "service", name, index));
    let id = fields.filled("id");
    if let Some(id) = &id {
        draft.service_names.id(cx, "service", id, index);
    }
    let address = address(&mut fields, draft);
    let timeout = |fields: &mut Fields<'_, '_>, key| {
        let span = fields.node().get(key).map(|node| node.span().clone());
        let text = fields.node().get(key).and_then(Node::text);
        // Weir's own durations are not Kong's: `60s` here would be a service of another file.
        if let (Some(span), Some(text)) = (&span, &text)
            && text.ends_with(|c: char| c.is_ascii_alphabetic())
            && let Ok(time) = crate::Millis::parse(text)
        {
            fields.accept(&[key]);
            cx.error("type", span, "a whole number of milliseconds is wanted here", Some(format!("write `{}`", time.get().as_millis())));
            return Duration::from_secs(60);
        }
        Duration::from_millis(fields.int(key, 1, LONGEST).unwrap_or(60_000).unsigned_abs())
    };
    let connect_timeout = timeout(&mut fields, "connect_timeout");
    let write_timeout = timeout(&mut fields, "write_timeout");
    let read_timeout = timeout(&mut fields, "read_timeout");
    let service = Service {
        name: name.or(id.clone()).map_or_else(|| format!("service#{index}"), |text| text.value),
        id: id.map(|id| id.value),
        protocol: address.protocol,
        host: address.host,
        port: address.port,
        path: address.path,
        retries: fields.int("retries", 0, 32_767).and_then(|n| u32::try_from(n).ok()).unwrap_or(5),
        connect_timeout,
        write_timeout,
        read_timeout,
        tls_verify: fields.bool("tls_verify"),
        tls_verify_depth: fields.int("tls_verify_depth", 0, 64).and_then(|n| u32::try_from(n).ok()),
        ca_certificates: vec![],
        client_certificate: None,
        http2: fields.bool("http2").unwrap_or(false),
        resilience: resilience::read(cx, node),
        tags: tags(&mut fields),
        enabled: fields.bool("enabled").unwrap_or(true),
        span: fields.name_span().clone(),
    };
    tls::of_service(&mut fields, index, draft);
    fields.accept(&["retry", "deadline", "concurrency"]);
    fields.accept(&["tls_sans", "created_at", "updated_at", "ws_id"]);
    filter_chains(&mut fields);
    let nested = (fields.list("routes"), fields.list("plugins"));
    fields.finish();
    cx.is_sound_since(errors, &service.span);
    draft.services.push(service);
    for item in nested.0 {
        routes::read(cx, item, Some(index), draft);
    }
    let scope = Scope { service: Some(index), ..Scope::default() };
    for item in nested.1 {
        plugins::read(cx, item, &scope, draft);
    }
}

fn default_port(protocol: &str) -> u16 {
    if matches!(protocol, "https" | "grpcs" | "wss" | "tls") { 443 } else { 80 }
}

/// `url`, or `protocol`, `host`, `port` and `path`; `url` wins.
fn address(fields: &mut Fields<'_, '_>, draft: &Draft) -> Address {
    let cx = fields.cx;
    let protocol = fields.one_of("protocol", &PROTOCOLS);
    let host = fields.filled("host");
    let port = fields.int("port", 0, 65_535).and_then(|port| u16::try_from(port).ok());
    let path = fields.text("path");
    let given = fields.get("url").is_some();
    if let Some(url) = fields.filled("url") {
        match parse_url(cx, &url) {
            Ok(address) => return address,
            Err(why) => cx.error("value", &url.span, why, Some(variable(&url).unwrap_or_else(|| "a URL like `http://host:port/path` is wanted".into()))),
        }
    }
    let protocol = protocol.unwrap_or("http");
    if STREAMS.contains(&protocol)
        && let Some(node) = fields.node().get("protocol")
    {
        cx.error("unsupported", node.span(), "streams of bytes are not proxied", Some("Weir serves http, https, grpc, grpcs, ws and wss".into()));
    }
    match &host {
        None if !given && fields.node().get("host").is_none() => fields.missing(&["url", "host"], Some("write `url: http://host:port`".into())),
        // Upstreams may be called what no host can be.
        Some(host) if draft.upstream_names.get(host).is_some() => {}
        Some(host) => {
            let checked = HostPort::parse(host).and_then(|parsed| match parsed.port {
                Some(_) => Err("the port has a key of its own: `port`".to_string()),
                None => Ok(()),
            });
            if let Err(why) = checked {
                cx.error("value", &host.span, why, variable(host));
            }
        }
        None => {}
    }
    let path = path.map(|path| checked_path(cx, path)).unwrap_or_default();
    Address { protocol: protocol.into(), host: host.map(|host| host.value).unwrap_or_default(), port: port.unwrap_or(default_port(protocol)), path }
}

/// What to write where other tools put a variable.
fn variable(text: &str) -> Option<String> {
    placeholders::variable_in(text).or_else(|| placeholders::of_deck(text)).map(|name| format!("write `${{{name}}}` for the variable"))
}

fn checked_path(cx: &Context<'_>, path: Spanned<String>) -> String {
    if path.is_empty() {
        return String::new();
    }
    if !path.starts_with('/') {
        cx.error("value", &path.span, "the path must begin with `/`", Some(format!("write `/{}`", path.value)));
    } else if path.contains(['?', '#']) || path.chars().any(|c| c.is_whitespace() || c.is_control()) {
        cx.error("value", &path.span, "a service's path has no query, fragment or blanks", None);
    }
    path.value
}

fn parse_url(cx: &Context<'_>, url: &Spanned<String>) -> Result<Address, String> {
    let (scheme, rest) = url.split_once("://").ok_or("this is not a URL")?;
    let protocol = PROTOCOLS.iter().find(|known| scheme.eq_ignore_ascii_case(known)).ok_or("the URL's protocol is not one that services have")?;
    if STREAMS.contains(protocol) {
        return Err("streams of bytes are not proxied".into());
    }
    let (authority, path) = match rest.find(['/', '?', '#']) {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    if authority.contains('@') {
        return Err("the URL of a service has no user name".into());
    }
    let parsed = HostPort::parse(authority)?;
    if !parsed.host.contains(':') {
        check_host(&parsed.host)?;
    }
    let path = match path.find(['?', '#']) {
        Some(at) => {
            cx.warning("value", &url.span, "the query of a service's URL is dropped", None);
            &path[..at]
        }
        None => path,
    };
    let path = checked_path(cx, Spanned::new(path.to_string(), url.span.clone()));
    Ok(Address { protocol: (*protocol).into(), port: parsed.port.unwrap_or(default_port(protocol)), host: parsed.host, path })
}
