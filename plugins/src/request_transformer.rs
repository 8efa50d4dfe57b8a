//! `request-transformer`: headers, query, body, method and path of a request, changed before the service sees it.

use crate::{
    Configured, Live, Personal, header_name, multipart,
    pairs::Pairs,
    template::{Template, Vars},
    wrong,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header, request};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::{borrow::Cow, collections::HashMap, sync::Arc};
use weir_config::{Diagnostic, Node};
use weir_gateway::{BuildEnv, Flow, Phases, Plugin, Reply, RequestContext};

/// Changes requests on their way to the service. Steps run in the order remove, rename, replace, add, append; headers first, then body, then
/// query. Entries are `name:value`; all but those of `remove` need the colon. Values may hold templates: `$(headers.x)`, `$(headers["x-y"])`,
/// `$(query_params.x)`, `$(uri_captures.name)`, `$(uri_captures[1])` (groups of the route's regex), `$(shared.x)` (what other plugins left: `authenticated_jwt_token` is the
/// token that `jwt` let pass),
/// `$(consumer.username)`, `$(consumer.id)`, `$(consumer.custom_id)`, combined with `or`, `and`, `not`, `..`, `==`, `~=` and the calls `:sub(first, last)`, `:lower()`,
/// `:upper()` and `:gsub("old", "new")`, for example `$(headers["x-user"] or "guest")`; what is absent is an empty text. Kong runs Lua
/// here; other calls are refused when the file is read.
///
/// Bodies are changed if they are JSON objects (`application/json`) or forms (`application/x-www-form-urlencoded`, `multipart/form-data`; in the latter `rename` comes
/// first and `append` does nothing, as in Kong); others pass unchanged, and so does JSON that is not well-formed. A body over 10 MB whose change was asked for is answered with 413 `Request body too large to be transformed`. A
/// request that a template shaped by a header or by the consumer passes by the caches, for its answer may be for that visitor only.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Method for the service. If it becomes GET, HEAD or TRACE, the fields of a form are put into the query too.
    pub http_method: Option<String>,
    /// Takes away what is called so.
    pub remove: Names,
    /// Renames: `old:new`. What was called `new` goes. Nothing happens where there is no `old`.
    pub rename: Names,
    /// Sets the value of what is there already.
    pub replace: Replace,
    /// Sets what is not there yet.
    pub add: Names,
    /// Adds one more value.
    pub append: Names,
}

/// Entries for the three parts of a request.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Names {
    /// For headers. `host` can only be replaced.
    pub headers: Vec<String>,
    /// For query parameters.
    pub querystring: Vec<String>,
    /// For the members of a JSON object or the fields of a form.
    pub body: Vec<String>,
}

/// Entries for the three parts of a request, and a path.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Replace {
    /// For headers.
    pub headers: Vec<String>,
    /// For query parameters.
    pub querystring: Vec<String>,
    /// For the members of a JSON object or the fields of a form.
    pub body: Vec<String>,
    /// Path for the service, instead of what service and route make of it; the query stays.
    pub uri: Option<String>,
}

/// A longer body is not transformed.
const LONGEST_BODY: usize = 10 << 20;
/// What a path cannot hold as it is. A `%` may begin an escape.
const IN_PATH: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'>').add(b'?').add(b'`').add(b'{').add(b'}').add(b'\\').add(b'^').add(b'|');

impl Configured for Config {
    const NAME: &'static str = "request-transformer";
    const PRIORITY: i32 = 801;
    const EXAMPLE: &'static str = r#"remove:
  headers: [X-Internal-Secret]
rename:
  querystring: ["page:pageNumber"]
replace:
  uri: /v2/items
add:
  headers: ['X-User:$(headers["x-login"] or "guest")']
  querystring: ["source:web"]
"#;

    type Ready = Transformer;

    fn ready(self, at: &Node) -> Result<Transformer, Vec<Diagnostic>> {
        let mut errors = Vec::new();
        let method = self.http_method.and_then(|name| match Method::from_bytes(name.to_ascii_uppercase().as_bytes()) {
            Ok(method) => Some(method),
            Err(_) => {
                errors.push(wrong(at, "http_method", format!("`{}` is not a method", name.escape_debug())));
                None
            }
        });
        let uri = self.replace.uri.as_ref().and_then(|text| {
            let place = at.get("replace").unwrap_or(at);
            let checked = Template::parse(text).and_then(|t| match () {
                () if t.literals().any(|l| l.contains(['?', '#'])) => Err("a path has no query: use `querystring`".into()),
                () if text.starts_with('/') || text.starts_with("$(") => Ok(t),
                () => Err("a path begins with `/`".into()),
            });
            checked.map_err(|e| errors.push(wrong(place, "uri", e))).ok()
        });
        let replace = Names { headers: self.replace.headers, querystring: self.replace.querystring, body: self.replace.body };
        let groups = [(Kind::Remove, self.remove), (Kind::Rename, self.rename), (Kind::Replace, replace), (Kind::Add, self.add), (Kind::Append, self.append)];
        let mut made = Transformer { method, uri, ..Transformer::default() };
        for (kind, names) in groups {
            let place = at.get(kind.key()).unwrap_or(at);
            for (part, list) in [("headers", names.headers), ("querystring", names.querystring), ("body", names.body)] {
                for (index, text) in list.iter().enumerate() {
                    match step(kind, text) {
                        Ok(found) if part == "headers" => match header_step(place, found) {
                            Ok(found) => made.headers.push(found),
                            Err(error) => errors.push(error),
                        },
                        Ok(found) if part == "querystring" => made.query.push(found),
                        Ok(found) => made.body.push(found),
                        Err(message) => {
                            let entry = place.get(part).and_then(|list| list.items().get(index)).unwrap_or(place);
                            errors.push(Diagnostic::error("plugin-config", entry.span(), message));
                        }
                    }
                }
            }
        }
        let is_personal = |steps: &[Step]| steps.iter().any(|s| s.value.as_ref().is_some_and(Template::is_personal));
        made.personal = is_personal(&made.query)
            || is_personal(&made.body)
            || made.headers.iter().any(|(_, s)| s.value.as_ref().is_some_and(Template::is_personal))
            || made.uri.as_ref().is_some_and(Template::is_personal);
        if errors.is_empty() { Ok(made) } else { Err(errors) }
    }

    fn build(ready: Transformer, _: &BuildEnv<'_>, _: &Live) -> Arc<dyn Plugin> {
        Arc::new(ready)
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Remove,
    Rename,
    Replace,
    Add,
    Append,
}

impl Kind {
    fn key(self) -> &'static str {
        match self {
            Kind::Remove => "remove",
            Kind::Rename => "rename",
            Kind::Replace => "replace",
            Kind::Add => "add",
            Kind::Append => "append",
        }
    }
}

/// One change. For `rename` the value is the new name. Without a value (`name:`), replace, add and append do nothing, as in Kong.
struct Step {
    kind: Kind,
    name: String,
    value: Option<Template>,
}

fn step(kind: Kind, text: &str) -> Result<Step, String> {
    let (name, value) = text.split_once(':').map_or((text, None), |(n, v)| (n, Some(v.trim_start_matches(':'))));
    if name.is_empty() {
        return Err("an entry is `name:value`, and the name is missing".into());
    }
    let value = match (kind, value) {
        (Kind::Remove, _) => None,
        (_, None) => return Err(format!("an entry is `name:value`, and `{}` has no value", name.escape_debug())),
        (Kind::Rename, Some("")) => return Err(format!("an entry is `old:new`, and `{}` has no new name", name.escape_debug())),
        (_, Some("")) => None,
        (_, Some(value)) => Some(Template::parse(value)?),
    };
    Ok(Step { kind, name: name.into(), value })
}

fn header_step(place: &Node, step: Step) -> Result<(HeaderName, Step), Diagnostic> {
    let name = header_name(place, "headers", &step.name)?;
    Ok((name, step))
}

/// The configuration, compiled.
#[derive(Default)]
pub struct Transformer {
    method: Option<Method>,
    uri: Option<Template>,
    headers: Vec<(HeaderName, Step)>,
    query: Vec<Step>,
    body: Vec<Step>,
    personal: bool,
}

/// Steps with their values, for one request.
type Values<'a> = Vec<(&'a Step, Option<String>)>;

/// What the service is asked for instead; made in the request step, used in the last one.
#[derive(Clone, Default)]
struct Target {
    path: Option<String>,
    host: Option<HeaderValue>,
}

impl Transformer {
    fn target(&self, vars: &Vars<'_>) -> Target {
        let host = self.headers.iter().rfind(|(name, step)| *name == header::HOST && step.kind == Kind::Replace);
        Target {
            path: self.uri.as_ref().map(|uri| path(uri, vars)),
            host: host.and_then(|(_, step)| step.value.as_ref()).and_then(|v| HeaderValue::from_str(v.render(vars).trim()).ok()),
        }
    }

    fn transform_body(&self, cx: &mut RequestContext, headers: &HeaderMap, values: &Values<'_>) -> Result<(), Reply> {
        let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("").to_ascii_lowercase();
        let json = kind.contains("application/json");
        let boundary = headers.get(header::CONTENT_TYPE).and_then(multipart::boundary);
        if values.is_empty() || !(json || boundary.is_some() || kind.contains("application/x-www-form-urlencoded")) {
            return Ok(());
        }
        let Some(seen) = &cx.body else { return Ok(()) };
        if !seen.whole {
            return Err(Reply::message(Config::NAME, StatusCode::PAYLOAD_TOO_LARGE, "Request body too large to be transformed"));
        }
        let changed = match boundary {
            _ if json => json_body(&seen.bytes, values),
            Some(boundary) => parts_body(&seen.bytes, &boundary, values),
            None => form_body(&seen.bytes, values),
        };
        if let Some(body) = changed {
            cx.replace_body = Some(body);
        }
        Ok(())
    }
}

fn values<'a>(steps: impl Iterator<Item = &'a Step>, vars: &Vars<'_>) -> Values<'a> {
    steps.map(|step| (step, step.value.as_ref().map(|v| v.render(vars)))).collect()
}

/// The path as it can stand in a request. What comes from the request can neither begin a query nor climb.
fn path(template: &Template, vars: &Vars<'_>) -> String {
    let text = template.render_with(vars, |part| utf8_percent_encode(part, IN_PATH).to_string().into());
    let text: Cow<'_, str> = utf8_percent_encode(&text, IN_PATH).into();
    let text = weir_gateway::router::normalize(&text).into_owned();
    if text.starts_with('/') { text } else { format!("/{text}") }
}

fn with_query(uri: &Uri, query: &str) -> Option<Uri> {
    let path = uri.path();
    let text = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
    text.parse().ok()
}

impl Plugin for Transformer {
    fn phases(&self) -> Phases {
        Phases::REQUEST | Phases::TO_UPSTREAM
    }

    fn reads_body(&self) -> Option<usize> {
        let into_query = self.method.as_ref().is_some_and(drops_body);
        (into_query || !self.body.is_empty()).then_some(LONGEST_BODY)
    }

    fn request(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        // Every template sees the request as it came to this plugin.
        let (headers, query, body, target) = {
            let vars = Vars { cx, headers: &req.headers, query: req.uri.query() };
            (values(self.headers.iter().map(|(_, s)| s), &vars), values(self.query.iter(), &vars), values(self.body.iter(), &vars), self.target(&vars))
        };
        let mut pairs = None;
        if let Some(method) = &self.method {
            let form = req.headers.get(header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().to_ascii_lowercase().starts_with(b"application/x-www-form-urlencoded"));
            if drops_body(method)
                && form
                && let Some(text) = cx.body.as_ref().filter(|b| b.whole).and_then(|b| std::str::from_utf8(&b.bytes).ok())
            {
                let fields = Pairs::parse(text);
                if !fields.is_empty() {
                    pairs.get_or_insert_with(|| Pairs::parse(req.uri.query().unwrap_or(""))).extend(fields);
                }
            }
            req.method = method.clone();
        }
        for ((name, _), (step, value)) in self.headers.iter().zip(&headers) {
            change_header(&mut req.headers, name, step.kind, value.as_deref());
        }
        if let Err(reply) = self.transform_body(cx, &req.headers, &body) {
            return Flow::Reply(reply);
        }
        if !query.is_empty() {
            let pairs = pairs.get_or_insert_with(|| Pairs::parse(req.uri.query().unwrap_or("")));
            query.iter().for_each(|(step, value)| change_pairs(pairs, step, value.as_deref()));
        }
        if let Some(uri) = pairs.and_then(|p| with_query(&req.uri, &p.text())) {
            req.uri = uri;
        }
        if self.personal {
            cx.state.insert(Personal);
        }
        cx.state.insert(target);
        Flow::Continue
    }

    fn to_upstream(&self, cx: &mut RequestContext, req: &mut request::Parts) {
        // A fetch for the cache has no state: what it may read is in the fetch itself.
        let target = match cx.state.get::<Target>() {
            Some(target) => target.clone(),
            None => self.target(&Vars { cx, headers: &req.headers, query: req.uri.query() }),
        };
        if let Some(path) = target.path {
            let text = match req.uri.query() {
                Some(query) => format!("{path}?{query}"),
                None => path,
            };
            if let Ok(uri) = text.parse() {
                req.uri = uri;
            }
        }
        if let Some(host) = target.host {
            req.headers.insert(header::HOST, host);
        }
    }
}

fn drops_body(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::TRACE)
}

fn change_header(headers: &mut HeaderMap, name: &HeaderName, kind: Kind, value: Option<&str>) {
    if *name == header::HOST {
        return;
    }
    if kind == Kind::Remove {
        headers.remove(name);
        return;
    }
    let Some(text) = value.map(str::trim) else { return };
    if kind == Kind::Rename {
        if let Ok(new) = HeaderName::from_bytes(text.as_bytes())
            && new != *name
            && headers.contains_key(name)
        {
            let moved: Vec<HeaderValue> = headers.get_all(name).iter().cloned().collect();
            headers.remove(name);
            headers.remove(&new);
            for value in moved {
                headers.append(new.clone(), value);
            }
        }
        return;
    }
    let there = headers.contains_key(name);
    match (kind, HeaderValue::from_str(text)) {
        (Kind::Replace, Ok(value)) if there => {
            headers.insert(name.clone(), value);
        }
        // A template made something that no header can hold: better no value than the one that should have gone.
        (Kind::Replace, Err(_)) => {
            headers.remove(name);
        }
        (Kind::Add, Ok(value)) if !there => {
            headers.insert(name.clone(), value);
        }
        (Kind::Append, Ok(value)) => {
            headers.append(name.clone(), value);
        }
        _ => {}
    }
}

fn change_pairs(pairs: &mut Pairs, step: &Step, value: Option<&str>) {
    let name = step.name.as_str();
    match (step.kind, value) {
        (Kind::Remove, _) => pairs.remove(name),
        (Kind::Rename, Some(new)) => pairs.rename(name, new),
        (Kind::Replace, Some(value)) => pairs.replace(name, value),
        (Kind::Add, Some(value)) if !pairs.has(name) => pairs.append(name, value),
        (Kind::Append, Some(value)) => pairs.append(name, value),
        _ => {}
    }
}

fn form_body(body: &[u8], values: &Values<'_>) -> Option<Bytes> {
    let text = std::str::from_utf8(body).ok()?;
    let mut pairs = Pairs::parse(text);
    let before = pairs.clone();
    values.iter().for_each(|(step, value)| change_pairs(&mut pairs, step, value.as_deref()));
    (pairs != before).then(|| pairs.text().into())
}

fn parts_body(body: &[u8], boundary: &str, values: &Values<'_>) -> Option<Bytes> {
    let mut parts: Vec<(Option<String>, Cow<'_, [u8]>)> = Vec::new();
    let found = multipart::parts(body, boundary);
    parts.extend(found.iter().map(|part| (part.name.clone(), Cow::Borrowed(part.inner))));
    let content: HashMap<&str, &[u8]> = found.iter().rev().filter_map(|part| Some((part.name.as_deref()?, part.content))).collect();
    let delimiter = format!("--{boundary}");
    let mut changed = false;
    let (renames, others): (Vec<_>, Vec<_>) = values.iter().partition(|(step, _)| step.kind == Kind::Rename);
    for (step, value) in renames.into_iter().chain(others) {
        let name = step.name.as_str();
        let at = parts.iter().position(|(known, _)| known.as_deref() == Some(name));
        // A value that ends its part would be more than a value.
        let value = value.as_deref().filter(|value| !value.contains(&delimiter));
        let place = match (step.kind, at, value) {
            (Kind::Remove, Some(_), _) => None,
            (Kind::Rename, Some(_), Some(new)) if new != name => {
                let content = content.get(name).copied().unwrap_or_default();
                parts.retain(|(known, _)| known.as_deref() != Some(new));
                Some((new.to_string(), multipart::plain(new, content)))
            }
            (Kind::Replace, Some(_), Some(value)) | (Kind::Add, None, Some(value)) => Some((name.to_string(), multipart::plain(name, value.as_bytes()))),
            _ => continue,
        };
        changed = true;
        parts.retain(|(known, _)| known.as_deref() != Some(name));
        parts.extend(place.map(|(name, part)| (Some(name), Cow::Owned(part))));
    }
    changed.then(|| multipart::body(parts.iter().map(|(_, part)| &**part), boundary).into())
}

fn json_body(body: &[u8], values: &Values<'_>) -> Option<Bytes> {
    let mut object: Map<String, Value> = if body.is_empty() { Map::new() } else { serde_json::from_slice(body).ok()? };
    let before = object.clone();
    for (step, value) in values {
        let name = step.name.as_str();
        match (step.kind, value.as_deref()) {
            (Kind::Remove, _) => {
                object.shift_remove(name);
            }
            (Kind::Rename, Some(new)) if new != name => {
                if let Some(moved) = object.shift_remove(name) {
                    object.insert(new.into(), moved);
                }
            }
            (Kind::Replace, Some(text)) => {
                if let Some(place) = object.get_mut(name) {
                    *place = text.into();
                }
            }
            (Kind::Add, Some(text)) if !object.contains_key(name) => {
                object.insert(name.into(), text.into());
            }
            (Kind::Append, Some(text)) => append_json(&mut object, name, text.into()),
            _ => {}
        }
    }
    (object != before).then(|| Value::Object(object).to_string().into())
}

/// One more value of a member: a text becomes a list of two, a list grows, anything else is replaced by a list of one.
pub(crate) fn append_json(object: &mut Map<String, Value>, name: &str, value: Value) {
    let list = match object.get_mut(name).map(Value::take) {
        Some(Value::Array(mut items)) => {
            items.push(value);
            items
        }
        Some(old @ Value::String(_)) => vec![old, value],
        _ => vec![value],
    };
    object.insert(name.into(), Value::Array(list));
}

#[cfg(test)]
mod tests;
