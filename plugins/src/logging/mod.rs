//! What the log plugins share: the entry in Kong's form, constant extra fields, and the queue behind which entries are sent.

pub(crate) mod queue;

use crate::{correlation_id::Id as CorrelationId, pairs::Pairs};
use http::{HeaderMap, Uri};
use std::collections::BTreeMap;
use serde_json::{Map, Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use weir_config::{Diagnostic, Node};
use weir_gateway::{RequestContext, ServiceRuntime};

/// Stands for what a log must not show.
const REDACTED: &str = "REDACTED";
/// Headers that carry credentials.
const SECRET_HEADERS: [&str; 8] = ["authorization", "proxy-authorization", "cookie", "set-cookie", "apikey", "api-key", "x-api-key", "x-auth-token"];

/// A field that replaces, adds or (without a value) removes one of the entry.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CustomField {
    path: Vec<String>,
    value: Option<Value>,
}

/// Reads `custom_fields_by_lua`. Of Lua, only `return` with a constant is understood.
///
/// Errors: what else is written there.
pub(crate) fn custom_fields(at: &Node, fields: &BTreeMap<String, String>) -> Result<Vec<CustomField>, Vec<Diagnostic>> {
    let place = at.get("custom_fields_by_lua").unwrap_or(at);
    let (mut made, mut errors) = (Vec::new(), Vec::new());
    for (name, code) in fields {
        match constant(code) {
            Some(value) => made.push(CustomField { path: name.split('.').map(Into::into).collect(), value }),
            None => errors.push(
                crate::wrong(place, name, "Lua is not run here: only `return` with nil, a quoted text, a number or a boolean is understood")
                    .hint("a sink such as Vector or Fluent Bit can compute fields"),
            ),
        }
    }
    if errors.is_empty() { Ok(made) } else { Err(errors) }
}

/// `Some(None)`: nil. `None`: not a constant.
fn constant(code: &str) -> Option<Option<Value>> {
    let text = code.trim().trim_end_matches(';').strip_prefix("return")?;
    let text = text.strip_prefix(|c: char| c.is_whitespace() || c == '"' || c == '\'').map(|_| text.trim())?;
    let quoted = |quote: char| {
        let inner = text.strip_prefix(quote)?.strip_suffix(quote)?;
        (!inner.contains([quote, '\\'])).then(|| Some(Value::String(inner.into())))
    };
    match text {
        "nil" => Some(None),
        "true" | "false" => Some(Some(Value::Bool(text == "true"))),
        _ => quoted('"').or_else(|| quoted('\'')).or_else(|| match serde_json::from_str(text) {
            Ok(number @ Value::Number(_)) => Some(Some(number)),
            _ => None,
        }),
    }
}

fn set(entry: &mut Map<String, Value>, path: &[String], value: Option<&Value>) {
    let Some((first, rest)) = path.split_first() else { return };
    match (rest.is_empty(), value) {
        (true, Some(value)) => {
            entry.insert(first.clone(), value.clone());
        }
        (true, None) => {
            entry.shift_remove(first);
        }
        (false, _) => {
            if value.is_none() && !entry.contains_key(first) {
                return;
            }
            let inner = entry.entry(first.clone()).or_insert_with(|| Value::Object(Map::new()));
            if !inner.is_object() {
                *inner = Value::Object(Map::new());
            }
            if let Value::Object(inner) = inner {
                set(inner, rest, value);
            }
        }
    }
}

/// The entry of a finished request in the form of Kong's log plugins. Sizes are those of bodies. Credentials are `REDACTED`. What Weir knows beyond Kong
/// is under `weir`.
pub(crate) fn entry(cx: &RequestContext, custom: &[CustomField]) -> Map<String, Value> {
    let mut entry = Map::new();
    let total = cx.times.total.unwrap_or_else(|| cx.started.elapsed());
    let waited = cx.times.forwarded.and_then(|begun| Some(cx.times.upstream?.saturating_sub(begun)));
    entry.insert("request".into(), request(cx));
    let mut response = json!({ "status": cx.status, "size": cx.bytes.1, "headers": {} });
    if let Some(view) = &cx.log_view {
        response["headers"] = headers(&view.response_headers);
        if let Some(uri) = &view.upstream_uri {
            entry.insert("upstream_uri".into(), masked_target(uri).into());
        }
        if let Some(status) = view.upstream_status {
            // Kong writes nginx's variable, which is a text.
            entry.insert("upstream_status".into(), status.to_string().into());
        }
    }
    entry.insert("response".into(), response);
    entry.insert(
        "latencies".into(),
        json!({
            "request": millis(total),
            "kong": millis(cx.times.forwarded.unwrap_or(total)),
            "proxy": waited.map_or(-1, millis),
            "receive": cx.times.upstream.map_or(0, |answered| millis(total.saturating_sub(answered))),
        }),
    );
    let tries = cx.endpoint.iter().map(|e| json!({ "ip": e.host, "port": e.port })).collect();
    entry.insert("tries".into(), Value::Array(tries));
    entry.insert("client_ip".into(), cx.client.ip.to_string().into());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    entry.insert("started_at".into(), millis(now.saturating_sub(cx.started.elapsed())).into());
    entry.insert("source".into(), if cx.answered_by == "upstream" { "upstream" } else { "kong" }.into());
    entry.insert("workspace_name".into(), "default".into());
    if let Some(route) = &cx.route {
        let mut shown = json!({
            "name": route.name,
            "paths": route.paths,
            "methods": route.methods,
            "strip_path": route.strip_path,
            "preserve_host": route.preserve_host,
            "https_redirect_status_code": route.https_redirect_status_code,
            "tags": route.tags,
        });
        if let Some(id) = &route.id {
            shown["id"] = id.as_str().into();
        }
        entry.insert("route".into(), shown);
    }
    if let Some(s) = &cx.service {
        entry.insert("service".into(), service(s));
    }
    if let Some(consumer) = cx.consumer.as_ref().map(|c| &c.entity) {
        let mut shown = json!({ "id": consumer.id });
        for (key, value) in [("username", &consumer.username), ("custom_id", &consumer.custom_id)] {
            if let Some(value) = value {
                shown[key] = value.as_str().into();
            }
        }
        entry.insert("consumer".into(), shown);
    }
    if let Some(id) = cx.identity.as_ref().and_then(|i| i.credential.as_deref()) {
        let mut shown = json!({ "id": id });
        if let Some(consumer) = &cx.consumer {
            shown["consumer_id"] = consumer.entity.id.as_str().into();
        }
        entry.insert("authenticated_entity".into(), shown);
    }
    if let Some(CorrelationId(id)) = cx.state.get::<CorrelationId>() {
        entry.insert("correlation_id".into(), String::from_utf8_lossy(id.as_bytes()).into());
    }
    let mut own = json!({ "answered_by": cx.answered_by });
    if let Some(report) = &cx.report {
        own["cache"] = report.verdict.word().into();
    }
    if let Some(failure) = cx.failure {
        own["failure"] = failure.into();
    }
    entry.insert("weir".into(), own);
    for field in custom {
        set(&mut entry, &field.path, field.value.as_ref());
    }
    entry
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

fn request(cx: &RequestContext) -> Value {
    let Some(view) = &cx.log_view else { return json!({ "id": cx.id.as_str() }) };
    let target = target(&view.uri);
    let url = format!("{}://{}:{}{target}", cx.client.scheme.as_str(), bare_host(&cx.client.host), cx.client.port);
    let mut query = Map::new();
    for (name, value) in crate::pairs::read(view.uri.query().unwrap_or("")) {
        let value = if is_secret_parameter(&name) { Value::String(REDACTED.into()) } else { value.map_or(Value::Bool(true), Value::String) };
        collect(&mut query, name, value);
    }
    json!({
        "id": cx.id.as_str(), "method": view.method.as_str(), "uri": target, "url": url, "size": cx.bytes.0,
        "querystring": query, "headers": headers(&view.headers),
    })
}

/// Without the port.
fn bare_host(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Several values of a name become a list.
fn collect(map: &mut Map<String, Value>, name: String, value: Value) {
    match map.get_mut(&name) {
        None => {
            map.insert(name, value);
        }
        Some(Value::Array(all)) => all.push(value),
        Some(first) => *first = Value::Array(vec![first.take(), value]),
    }
}

fn is_secret_parameter(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["token", "key", "secret", "password", "code", "jwt"].iter().any(|word| name.contains(word))
}

/// Path and query, with the values of parameters that may carry a credential replaced.
pub(crate) fn target(uri: &Uri) -> String {
    masked_target(uri.path_and_query().map_or("/", |p| p.as_str()))
}

fn masked_target(target: &str) -> String {
    let Some((path, query)) = target.split_once('?') else { return target.into() };
    let mut pairs = Pairs::parse(query);
    for (name, _) in crate::pairs::read(query).filter(|(name, _)| is_secret_parameter(name)) {
        pairs.replace(&name, REDACTED);
    }
    format!("{path}?{}", pairs.text())
}

fn headers(headers: &HeaderMap) -> Value {
    let mut all = Map::new();
    for (name, value) in headers {
        let secret = SECRET_HEADERS.contains(&name.as_str());
        let value = if secret { REDACTED.into() } else { String::from_utf8_lossy(value.as_bytes()) };
        collect(&mut all, name.as_str().to_owned(), Value::String(value.into_owned()));
    }
    Value::Object(all)
}

fn service(s: &ServiceRuntime) -> Value {
    let protocol = if s.tls.is_some() { "https" } else { "http" };
    let port = s.host_header.to_str().ok().and_then(|h| h.rsplit_once(':')).and_then(|(_, p)| p.parse().ok()).unwrap_or(if s.tls.is_some() { 443u16 } else { 80 });
    let mut shown = json!({
        "name": s.name, "host": s.host, "port": port, "protocol": protocol, "path": if s.path.is_empty() { Value::Null } else { s.path.as_str().into() },
        "retries": s.retries, "connect_timeout": millis(s.connect_timeout), "write_timeout": millis(s.write_timeout), "read_timeout": millis(s.read_timeout),
    });
    if let Some(id) = &s.id {
        shown["id"] = id.as_str().into();
    }
    shown
}

#[cfg(test)]
mod tests;
