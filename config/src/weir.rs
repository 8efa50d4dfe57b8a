//! Weir's own file: `store`, `edge`, `gateway`, `warm_up`, `resolver`, `admin`, `server`, and the checks that need more than one of them.

use crate::{document::*, entities::*};
use crate::net::{HostPort, check_host, parse_listen};
use crate::node::Kind;
use crate::reader::Context;
use crate::sections::Sections;
use crate::words::{MOST_HINTS, did_you_mean};
use crate::{BreakerScope, Listens, Node, Resolver, Secret, Source, Span, Spanned, decode, kong, load, resilience, resolver};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// Top-level keys.
pub(crate) const SECTIONS: [&str; 7] = ["store", "edge", "gateway", "warm_up", "admin", "server", "resolver"];
const GATEWAY_LISTEN: &str = "0.0.0.0:8000";
/// Keys of the gateway's section that are not Kong's.
const OWN: [&str; 3] = ["listen", "file", "headers"];

/// A file of Kong's alone: a gateway on port 8000 and nothing else.
pub(crate) fn bare_kong(cx: &Context<'_>, node: &Node) -> Option<Document> {
    let gateway = kong::read(cx, node, Listens::plain(GATEWAY_LISTEN), true, &[])?;
    // Who comes with Kong's file has dashboards and clients that know Kong's names.
    let gateway = Gateway { headers: HeaderNames::Kong, ..gateway };
    check_body_limits(cx, &gateway, &Server::default());
    Some(Document {
        store: StoreConfig::default(),
        edge: None,
        gateway: Some(gateway),
        warm_up: None,
        admin: Admin::default(),
        server: Server::default(),
        resolver: Resolver::default(),
    })
}

/// Weir's own file.
pub(crate) fn read(cx: &Context<'_>, node: &Node, source: &Arc<Source>) -> Option<Document> {
    for (key, _) in node.entries().iter().take(MOST_HINTS) {
        if !SECTIONS.contains(&key.name.as_str()) && !kong::TOP_KEYS.contains(&key.name.as_str()) {
            let hint = did_you_mean(&key.name, SECTIONS);
            cx.error("unknown-key", &key.span, format!("unknown key `{}`", key.name), hint.or_else(|| Some("known are store, edge, gateway, warm_up, resolver, admin and server".into())));
        }
    }
    let mut sections = Sections::of(cx, node);
    let store = sections.read::<StoreConfig>("store");
    let mut edge = sections.read::<Edge>("edge");
    let mut warm_up = sections.read::<WarmUp>("warm_up");
    let mut admin = sections.read::<Admin>("admin").unwrap_or_default();
    let server = sections.read::<Server>("server").unwrap_or_default();
    let resolver = sections.read::<Resolver>("resolver").unwrap_or_default();
    let gateway = node.get("gateway").and_then(|section| gateway(cx, section, source));

    // `${TOKEN:-}` is how a file says "no token unless the environment has one".
    admin.token = admin.token.filter(|token| !token.is_empty());
    if let Some(warm_up) = &mut warm_up {
        warm_up.token = warm_up.token.take().filter(|token| !token.is_empty());
    }
    if let Some(store) = &store {
        sections.check("store", |section| check_store(cx, section, store));
    }
    if let Some(edge) = &mut edge {
        let known = node.get("gateway").is_none() || gateway.is_some();
        sections.check("edge", |section| {
            read_tls(cx, section, edge);
            check_edge(cx, section, edge, known.then_some(gateway.as_ref()));
            if edge.api == ApiTarget::Gateway && node.get("gateway").is_none() {
                // Without a gateway there is nothing behind the default.
                if let Some(api) = section.get("api") {
                    cx.error("missing-reference", api.span(), "there is no `gateway:` section for /api", Some("add one, or write `api: origin`".into()));
                }
            }
        });
    }
    if let Some(warm_up) = &warm_up {
        sections.check("warm_up", |section| check_warm_up(cx, section, warm_up, node.get("edge").is_some(), node.get("gateway").is_some()));
    }
    sections.check("server", |section| check_server(cx, section, &server));
    sections.check("resolver", |section| resolver::check(cx, section, &resolver));
    if let Some(gateway) = gateway.as_ref().filter(|_| !sections.lost("server", "max_body")) {
        check_body_limits(cx, gateway, &server);
    }
    check_doors(&sections, edge.as_ref(), gateway.as_ref(), &admin, &server);
    if node.get("edge").is_none() && node.get("gateway").is_none() {
        cx.error("missing-key", node.span(), "there is neither an `edge:` nor a `gateway:` section", Some("Weir would have nothing to do".into()));
    }
    let edge = edge.filter(|_| !sections.unsound.contains(&"edge")).map(|edge| settled(edge, node));
    Some(Document { store: store.unwrap_or_default(), edge, gateway, warm_up, admin, server, resolver })
}

/// Spellings that mean the same become one; an edge without a gateway sends `/api` to the site.
fn settled(mut edge: Edge, node: &Node) -> Edge {
    for host in edge.hosts.iter_mut().chain(&mut edge.canonical_host) {
        host.make_ascii_lowercase();
    }
    if edge.origin.contains("://") {
        edge.origin.truncate(edge.origin.trim_end_matches('/').len());
    }
    if edge.api == ApiTarget::Gateway && node.get("gateway").is_none() {
        edge.api = ApiTarget::Origin;
    }
    edge
}

/// `gateway:` inline, `gateway: kong.yml`, or `gateway: { listen, file: kong.yml }`.
fn gateway(cx: &Context<'_>, section: &Node, source: &Arc<Source>) -> Option<Gateway> {
    match section.kind() {
        Kind::String(file) => kong_file(cx, file, section.span(), source, Listens::plain(GATEWAY_LISTEN)),
        Kind::Map(_) => {
            let listen = match section.get("listen") {
                // Without an address the rest is read all the same.
                Some(listen) => decode::<Listens>(listen).map_err(|found| cx.extend(found)).unwrap_or_default(),
                None => Listens::plain(GATEWAY_LISTEN),
            };
            let headers = header_names(cx, section);
            let gateway = match section.get("file") {
                None => kong::read(cx, section, listen, false, &OWN)?,
                Some(file) => {
                    for (key, _) in section.entries() {
                        if !OWN.contains(&key.name.as_str()) {
                            cx.error("unknown-key", &key.span, format!("`{}` cannot stand beside `file`", key.name), Some("move it into the file, or write everything here".into()));
                        }
                    }
                    let file = cx.text(file)?;
                    kong_file(cx, &file.value, &file.span, source, listen)?
                }
            };
            Some(Gateway { headers, ..gateway })
        }
        _ => {
            cx.wrong(section, "a mapping, or the name of a Kong file,");
            None
        }
    }
}

/// `headers:` of the gateway's section.
fn header_names(cx: &Context<'_>, section: &Node) -> HeaderNames {
    let Some(node) = section.get("headers") else { return HeaderNames::default() };
    let words = ["weir", "kong", "off"];
    // YAML's plain `off` is a boolean.
    match node.text().as_deref() {
        Some("weir") => HeaderNames::Weir,
        Some("kong") => HeaderNames::Kong,
        Some("off" | "false") => HeaderNames::Off,
        text => {
            let shown = text.map_or_else(|| "this".into(), |text| format!("`{}`", text.chars().take(60).collect::<String>()));
            cx.error("value", node.span(), format!("{shown} is not one of `weir`, `kong` or `off`"), text.and_then(|text| did_you_mean(text, words)));
            HeaderNames::default()
        }
    }
}

/// Limits of plugins above the server's own, which holds before them.
fn check_body_limits(cx: &Context<'_>, gateway: &Gateway, server: &Server) {
    let most = server.max_body.get();
    for plugin in gateway.plugins.iter().filter(|plugin| plugin.enabled) {
        if let Some((_, span)) = cx.catalog.body_limit(&plugin.name, &plugin.config).filter(|(limit, _)| *limit > most) {
            cx.warning("limit", &span, format!("this limit is never reached: the server takes no body over {most} bytes"), Some("raise `server.max_body`".into()));
        }
    }
}

fn kong_file(cx: &Context<'_>, file: &str, place: &Span, from: &Arc<Source>, listen: Listens) -> Option<Gateway> {
    let path: PathBuf = from.folder().join(file);
    let source = match load::read_source(cx, &path) {
        Ok(source) => source,
        Err(why) => {
            cx.error("file", place, format!("{}: {why}", path.display()), None);
            return None;
        }
    };
    let node = load::tree(cx, &source)?;
    crate::secrets::warn(cx, &node);
    crate::placeholders::warn(cx, &node);
    for (key, _) in node.entries().iter().filter(|(key, _)| SECTIONS.contains(&key.name.as_str())) {
        cx.error("unknown-key", &key.span, format!("`{}` belongs into Weir's own file", key.name), Some(format!("this file was named by {place}")));
    }
    kong::read(cx, &node, listen, true, &SECTIONS)
}

fn check_store(cx: &Context<'_>, section: &Node, store: &StoreConfig) {
    let node = section.get("url").unwrap_or(section);
    if node.source().broken {
        return;
    }
    let url = store.url.expose();
    if url == "memory" {
        return;
    }
    if store.trust_memory.get().as_secs() < 1 {
        let place = section.get("trust_memory").unwrap_or(section);
        cx.error("value", place.span(), "memory is trusted for a second at least", Some("write `5s`".into()));
    }
    let schemes = ["redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"];
    let Some((scheme, rest)) = url.split_once("://") else {
        let words = ["memory", "redis://host:6379/0"];
        cx.error("value", node.span(), "this is neither `memory` nor the URL of a Redis", did_you_mean(url, ["memory"]).or_else(|| Some(format!("write `{}` or `{}`", words[0], words[1]))));
        return;
    };
    if !schemes.contains(&scheme) {
        cx.error("value", node.span(), "this is not the URL of a store", did_you_mean(scheme, schemes).or_else(|| Some("known are redis, rediss, redis+sentinel and redis+cluster".into())));
        return;
    }
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let hosts = authority.rsplit_once('@').map_or(authority, |(_, hosts)| hosts);
    for host in hosts.split(',') {
        if HostPort::parse(host).is_err() {
            // The reason would quote a part, and a URL without its `@` has the password there.
            cx.error("value", node.span(), "the URL of the store has no valid host and port", Some("write it like `redis://user:password@host:6379/0`".into()));
            return;
        }
    }
    let path = path.split('?').next().unwrap_or("");
    if scheme.ends_with("+sentinel") && path.is_empty() {
        cx.error("value", node.span(), "the URL lacks the name that the sentinels know the master by", Some("it ends with `/mymaster`".into()));
    } else if matches!(scheme, "redis" | "rediss") {
        if hosts.contains(',') {
            cx.error("value", node.span(), "several hosts are for sentinels or a cluster", Some("write `redis+sentinel://…` or `redis+cluster://…`".into()));
        } else if !path.is_empty() && path.parse::<u16>().is_err() {
            cx.error("value", node.span(), "the path of a Redis URL is the number of a database", None);
        }
    }
    if store.deadline.get().is_zero() {
        let place = section.get("deadline").unwrap_or(section);
        cx.error("value", place.span(), "no call to the store is made in no time", Some("write `50ms`".into()));
    }
}

/// Puts PEM where the names of files stand.
fn read_tls(cx: &Context<'_>, section: &Node, edge: &mut Edge) {
    use kong::tls::{CERTIFICATE, PRIVATE_KEY, checked_name, pem};
    let mut taken = HashMap::new();
    let items = section.get("certificates").map(Node::items).unwrap_or_default();
    for (certificate, node) in edge.certificates.iter_mut().zip(items) {
        if let Some(found) = pem(cx, &certificate.cert, &certificate.cert.span, CERTIFICATE) {
            certificate.cert.value = found;
        }
        let place = node.get("key").unwrap_or(node).span();
        if let Some(found) = pem(cx, certificate.key.expose(), place, PRIVATE_KEY) {
            certificate.key = Secret::new(found);
        }
        for (name, node) in certificate.snis.iter_mut().zip(node.get("snis").map(Node::items).unwrap_or_default()) {
            if let Some(checked) = checked_name(cx, Spanned::new(name.clone(), node.span().clone()), &mut taken) {
                *name = checked;
            }
        }
    }
    let Some(node) = section.get("origin_tls") else { return };
    let tls = &mut edge.origin_tls;
    let at = |key: &str| node.get(key).unwrap_or(node).span();
    for (text, key) in [(&mut tls.ca, "ca"), (&mut tls.cert, "cert")] {
        if let Some(found) = text.as_ref().and_then(|text| pem(cx, text, at(key), CERTIFICATE)) {
            *text = Some(found);
        }
    }
    if let Some(found) = tls.key.as_ref().and_then(|key| pem(cx, key.expose(), at("key"), PRIVATE_KEY)) {
        tls.key = Some(Secret::new(found));
    }
    if tls.cert.is_some() != tls.key.is_some() {
        cx.error("missing-key", node.span(), "`cert` and `key` go together", None);
    }
    if let Some(name) = &tls.server_name
        && let Err(why) = check_host(name)
    {
        cx.error("value", at("server_name"), why, None);
    }
    if !edge.origin.starts_with("https://") {
        cx.warning("value", node.span(), "this has no effect: the origin is not an `https` URL", None);
    }
}

/// `gateway`: the gateway's section, if there is one; `None`: there is, and it could not be read.
fn check_edge(cx: &Context<'_>, section: &Node, edge: &Edge, gateway: Option<Option<&Gateway>>) {
    let at = |key: &str| section.get(key).unwrap_or(section);
    if let Some(purge) = &edge.purge {
        check_networks(cx, at("purge").get("from"), &purge.from);
        if purge.token.is_empty() && !at("purge").source().broken {
            cx.error("value", at("purge").get("token").unwrap_or(section).span(), "an empty token would let nobody purge", None);
        }
    }
    let origin = at("origin");
    if !origin.source().broken {
        let upstreams: Vec<&str> = gateway.iter().flatten().flat_map(|gateway| &gateway.upstreams).map(|upstream| upstream.name.as_str()).collect();
        if edge.origin.contains("://") {
            if let Err(why) = crate::scalars::check_url(&edge.origin) {
                cx.error("value", origin.span(), why, None);
            } else if edge.origin.split_once("://").is_some_and(|(_, rest)| rest.trim_end_matches('/').contains(['/', '?', '#'])) {
                cx.error("value", origin.span(), "the origin is a host without a path", None);
            }
        } else if gateway.is_some() && !upstreams.contains(&edge.origin.as_str()) {
            let hint = did_you_mean(&edge.origin, upstreams.iter().copied()).or_else(|| {
                HostPort::parse(&edge.origin).ok().filter(|_| edge.origin.contains(['.', ':']) || edge.origin == "localhost").map(|_| format!("write `http://{}`", edge.origin))
            });
            cx.error("missing-reference", origin.span(), "this is neither a URL nor the name of an upstream", hint.or_else(|| Some("write `http://host:port`".into())));
        }
    }
    for item in at("hosts").items() {
        if let Some(host) = item.text().filter(|_| !item.source().broken) {
            let hint = host.contains("://").then(|| "a host has no `http://` and no path".to_string());
            if let Err(why) = HostPort::parse(&host) {
                cx.error("value", item.span(), why, hint);
            }
        }
    }
    if let Some(host) = &edge.canonical_host
        && let Err(why) = check_host(host)
        && !at("canonical_host").source().broken
    {
        cx.error("value", at("canonical_host").span(), why, None);
    }
    if !edge.api_prefix.starts_with('/') && !at("api_prefix").source().broken {
        cx.error("value", at("api_prefix").span(), "the prefix must begin with `/`", None);
    }
    for item in at("session_cookies").items() {
        if item.text().is_some_and(|name| !is_token(&name)) {
            cx.error("value", item.span(), "this cannot be the name of a cookie", None);
        }
    }
    let mut seen: Vec<(String, Span)> = Vec::new();
    for (page, node) in edge.pages.iter().zip(at("pages").items()) {
        check_page(cx, page, node, &mut seen);
    }
    if let (Some(guests), Some(node)) = (&edge.guests, section.get("guests")) {
        check_guests(cx, guests, node);
    }
    resilience::check(cx, section, &edge.resilience());
    if let (Some(breaker), Some(node)) = (&edge.circuit_breaker, section.get("circuit_breaker")) {
        cx.extend(resilience::check_breaker(breaker, node));
        if breaker.per == BreakerScope::Route
            && let Some(place) = node.get("per")
        {
            cx.error("value", place.span(), "the edge has no routes", Some("write `service` or `endpoint`".into()));
        }
        let named = breaker.fallback.as_ref().and_then(|fallback| fallback.service.as_deref()).filter(|_| gateway.is_some());
        if let (Some(name), Some(place)) = (named, node.get("fallback").and_then(|fallback| fallback.get("service"))) {
            let services: Vec<&str> = gateway.iter().flatten().flat_map(|gateway| &gateway.services).map(|service| service.name.as_str()).collect();
            if !services.contains(&name) {
                cx.error("missing-reference", place.span(), "this is not the name of a service of the gateway section", did_you_mean(name, services.iter().copied()));
            }
        }
    }
}

/// A token of RFC 9110, 5.6.2: what names of cookies and headers are made of.
pub(crate) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

fn check_page(cx: &Context<'_>, page: &PageRule, node: &Node, seen: &mut Vec<(String, Span)>) {
    let at = |key: &str| node.get(key).unwrap_or(node).span();
    let path = at("path");
    if !page.path.starts_with('/') {
        let hint = page.path.split_once("://").map_or_else(|| format!("write `/{}`", page.path), |_| "hosts are named by `hosts`".to_string());
        cx.error("value", path, "the path of a page begins with `/`", Some(hint));
    } else {
        let segments: Vec<&str> = page.path.split('/').skip(1).collect();
        let (last, before) = segments.split_last().unwrap_or((&"", &[]));
        if before.iter().any(|segment| segment.contains('*')) || (last.contains('*') && !matches!(*last, "*" | "**")) {
            cx.error("value", path, "a `*` or `**` stands as the last segment, alone", Some("like `/one/*` or `/all/**`".into()));
        } else if page.path.contains(['?', '#']) {
            cx.error("value", path, "the path of a page has no query", Some("name the keys that matter in `query`".into()));
        }
    }
    if let Some((_, first)) = seen.iter().find(|(known, _)| *known == page.path) {
        cx.error("duplicate-name", path, format!("the page `{}` has a rule already", page.path), Some(format!("first at {first}")));
    }
    seen.push((page.path.clone(), path.clone()));
    if let Ttl::For(time) = page.ttl {
        if time.is_zero() {
            cx.error("value", at("ttl"), "a page that is fresh for no time is never a hit", Some("write `cache: never`".into()));
        } else if time.as_secs() > 31_536_000 {
            cx.warning("value", at("ttl"), "this is longer than a year", None);
        }
    }
    if page.cache == CacheSwitch::Never {
        for key in ["ttl", "query", "stale_while_revalidate", "stale_if_error", "tags", "fill_token", "override_cache_control", "max_size", "encodings", "invalidate"] {
            if let Some(span) = node.get(key).and_then(|_| node.key_span(key)) {
                cx.warning("value", span, format!("`{key}` has no effect beside `cache: never`"), None);
            }
        }
    }
    if page.max_size.get() == 0 {
        cx.error("value", at("max_size"), "no page is this small", Some("write `cache: never`".into()));
    }
    if page.override_cache_control && page.ttl == Ttl::Origin {
        cx.error("value", at("override_cache_control"), "this needs a `ttl` duration", Some("with `ttl: origin` the response decides".into()));
    }
}

fn check_guests(cx: &Context<'_>, guests: &Guests, node: &Node) {
    let key = node.get("key").unwrap_or(node);
    let text = guests.key.expose();
    if !key.source().broken {
        if text.starts_with("-----BEGIN") {
            if !text.contains("PRIVATE KEY-----") {
                cx.error("value", key.span(), "this PEM is not a private key", Some("for EdDSA give an Ed25519 private key".into()));
            }
        } else if text.len() < 32 {
            cx.error("value", key.span(), "the key is shorter than 32 bytes", Some("make one with `openssl rand -hex 32`".into()));
        }
    }
    if !is_token(&guests.cookie) {
        cx.error("value", node.get("cookie").unwrap_or(node).span(), "this cannot be the name of a cookie", None);
    }
    if guests.ttl.get().as_secs() < 60 {
        cx.error("value", node.get("ttl").unwrap_or(node).span(), "a guest token lives a minute at least", None);
    }
    if let GuestIssue::Remote { timeout, .. } = &guests.issue
        && timeout.is_zero()
    {
        cx.error("value", node.get("issue").unwrap_or(node).span(), "nobody answers in no time", Some("write `timeout: 5s`".into()));
    }
}

fn check_warm_up(cx: &Context<'_>, section: &Node, warm_up: &WarmUp, edge: bool, gateway: bool) {
    match (&warm_up.every, &warm_up.cron) {
        (Some(_), Some(_)) => {
            let span = section.key_span("cron").unwrap_or(section.span());
            cx.error("value", span, "`every` and `cron` both say when", Some("keep one".into()));
        }
        (None, None) => cx.error("missing-key", section.span(), "there is neither `every` nor `cron`", Some("write `every: 4m30s`".into())),
        (Some(every), None) if every.get().as_secs() < 1 => {
            cx.error("value", section.get("every").unwrap_or(section).span(), "a second is the shortest interval", None);
        }
        (None, Some(cron)) => {
            let node = section.get("cron").unwrap_or(section);
            let fields = cron.split_whitespace().count();
            let parsed = croner::parser::CronParser::builder().seconds(croner::parser::Seconds::Optional).build().parse(cron);
            if !node.source().broken && (!matches!(fields, 5 | 6) || parsed.is_err()) {
                cx.error("value", node.span(), "this is not a cron expression of five or six fields", Some("like `*/5 * * * *`".into()));
            }
        }
        _ => {}
    }
    let targets = ["urls", "sitemaps"].into_iter().filter_map(|key| section.get(key)).flat_map(Node::items);
    for item in targets {
        let Some(url) = item.text().filter(|_| !item.source().broken) else { continue };
        let (door, path) = match url.split_once(':') {
            Some((door @ ("edge" | "gateway"), path)) => (door, path),
            _ => ("gateway", url.as_str()),
        };
        if !path.starts_with('/') {
            let hint = match url.split_once("://") {
                Some((_, rest)) => format!("write `edge:/…`, or `edge://{rest}` for a host"),
                None => "write `/path`, `edge:/path` or `gateway:/path`".to_string(),
            };
            cx.error("value", item.span(), "this is not a target of the warm-up", Some(hint));
            continue;
        }
        if let Some(rest) = path.strip_prefix("//")
            && let Err(why) = HostPort::parse(rest.split('/').next().unwrap_or(""))
        {
            cx.error("value", item.span(), why, None);
        }
        if (door == "edge" && !edge) || (door == "gateway" && !gateway) {
            cx.error("missing-reference", item.span(), format!("there is no `{door}:` section"), (door == "gateway" && edge).then(|| format!("write `edge:{path}`")));
        }
    }
    if warm_up.concurrency == 0 {
        cx.error("value", section.get("concurrency").unwrap_or(section).span(), "with none at once nothing is refreshed", None);
    }
    let none = |key: &str| section.get(key).is_none_or(|list| list.items().is_empty());
    if none("urls") && none("sitemaps") && warm_up.top == 0 {
        cx.warning("value", section.span(), "the warm-up has no `urls`, no `sitemaps` and no `top`", None);
    }
}

/// Addresses and CIDR ranges.
fn check_networks(cx: &Context<'_>, list: Option<&Node>, texts: &[String]) {
    for (text, node) in texts.iter().zip(list.map(Node::items).unwrap_or_default()) {
        if text.parse::<ipnet::IpNet>().is_err() && text.parse::<std::net::IpAddr>().is_err() && !node.source().broken {
            cx.error("value", node.span(), "this is not an address or a CIDR range", Some("write it like `10.0.0.0/8`".into()));
        }
    }
}

fn check_server(cx: &Context<'_>, section: &Node, server: &Server) {
    check_networks(cx, section.get("trusted_proxies"), &server.trusted_proxies);
    if server.threads > 1024 {
        cx.error("value", section.get("threads").unwrap_or(section).span(), "more than 1024 threads", Some("0 means one per core".into()));
    }
    if server.max_head.get() < 1024 {
        cx.error("value", section.get("max_head").unwrap_or(section).span(), "no request has a head this small", Some("write `32KB`".into()));
    }
    for (key, time) in [("head_timeout", server.head_timeout), ("body_timeout", server.body_timeout)] {
        if time.get().is_zero()
            && let Some(node) = section.get(key)
        {
            cx.error("value", node.span(), "no client is this fast", None);
        }
    }
}

/// Addresses must parse, no two doors may share one, and each has what its words need.
fn check_doors(sections: &Sections<'_>, edge: Option<&Edge>, gateway: Option<&Gateway>, admin: &Admin, server: &Server) {
    let (cx, node) = (sections.cx, &sections.rest);
    let mut doors: Vec<(&str, SocketAddr)> = Vec::new();
    let admin = Listens::plain(admin.listen.clone());
    let listens = [("edge", edge.map(|edge| &edge.listen)), ("gateway", gateway.map(|gateway| &gateway.listen)), ("admin", Some(&admin))];
    // Certificates with errors are certificates.
    let certified = gateway.is_some_and(|gateway| !gateway.certificates.is_empty())
        || sections.node.get("edge").and_then(|edge| edge.get("certificates")).is_some_and(|list| !list.items().is_empty());
    let nobody_trusted = server.trusted_proxies.is_empty() && !sections.lost("server", "trusted_proxies");
    for (name, listens) in listens {
        let Some(listens) = listens.filter(|_| !sections.lost(name, "listen")) else { continue };
        let section = node.get(name).unwrap_or(node);
        let whole = section.get("listen").unwrap_or(section);
        for (at, listen) in listens.0.iter().enumerate() {
            let place = whole.items().get(at).unwrap_or(whole);
            if place.source().broken {
                continue;
            }
            if listen.tls && !certified {
                cx.error("missing-reference", place.span(), "there is no certificate for TLS", Some(format!("add `certificates:` to `{name}`")));
            }
            if listen.proxy_protocol && nobody_trusted {
                let hint = "name the senders in `trusted_proxies` of the `server` section";
                cx.error("missing-reference", place.span(), "nobody is trusted to send PROXY headers", Some(hint.into()));
            }
            match parse_listen(&listen.address) {
                Err((why, hint)) => cx.error("value", place.span(), why, hint),
                Ok(address) => {
                    let shared = |other: SocketAddr| {
                        address.port() != 0 && other.port() == address.port() && (other.ip() == address.ip() || other.ip().is_unspecified() || address.ip().is_unspecified())
                    };
                    if let Some((first, _)) = doors.iter().find(|(_, other)| shared(*other)) {
                        let message = if *first == name { format!("`{name}` listens on this port twice") } else { format!("`{first}` and `{name}` listen on the same port") };
                        cx.error("duplicate-name", place.span(), message, None);
                    }
                    doors.push((name, address));
                }
            }
        }
    }
}
