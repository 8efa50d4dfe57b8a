//! `response-transformer`: headers and JSON members of an answer, changed before the client sees it.

use crate::{
    Configured, Live, header_name,
    request_transformer::append_json,
    template::{Template, Vars},
    wrong,
};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, header, request, response};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::sync::Arc;
use weir_config::{Diagnostic, Node};
use weir_gateway::{BuildEnv, Flow, Phases, Plugin, RequestContext};

/// Changes answers, also those that Weir or another plugin made. Steps run in the order remove, rename, replace, add, append. Entries are
/// `name:value`; those of `remove` are names. An entry without a value (`name:`) does nothing, as in Kong. Values of headers may hold the templates of
/// `request-transformer`, which see the request as it came to this plugin; one that makes no text does nothing.
///
/// The JSON steps change answers whose `Content-Type` is `application/json` and whose body is an object; such an answer is sent when it is
/// there as a whole, without `Content-Length`. What is not well-formed, not an object, compressed or longer than 32 MB passes unchanged; where JSON steps are configured the service is asked
/// for uncompressed answers.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Takes away headers and JSON members.
    pub remove: Names,
    /// Renames: `old:new`.
    pub rename: Names,
    /// Sets the value of what is there already.
    pub replace: Values,
    /// Sets what is not there yet.
    pub add: Values,
    /// Adds one more value: a header more; a JSON text becomes a list of two, a list grows.
    pub append: Values,
}

/// Entries for the two parts of an answer.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Names {
    /// For headers.
    pub headers: Vec<String>,
    /// For members of the JSON object.
    pub json: Vec<String>,
}

/// Entries for the two parts of an answer, with the types of JSON values.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Values {
    /// For headers.
    pub headers: Vec<String>,
    /// For members of the JSON object.
    pub json: Vec<String>,
    /// What the values of `json` are, in the same order. Without it they are texts.
    pub json_types: Vec<JsonType>,
}

/// What a JSON value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum JsonType {
    /// A text.
    String,
    /// A number.
    Number,
    /// `true`; anything else is false.
    Boolean,
}

/// A longer body is not transformed.
const LONGEST_BODY: usize = 32 << 20;

impl Configured for Config {
    const NAME: &'static str = "response-transformer";
    const PRIORITY: i32 = 800;
    const EXAMPLE: &'static str = "remove:
  headers: [Server, X-Powered-By]
  json: [debug]
add:
  headers: [\"X-Content-Type-Options:nosniff\"]
  json: [\"api:2\"]
  json_types: [number]
";

    type Ready = Transformer;

    fn ready(self, at: &Node) -> Result<Transformer, Vec<Diagnostic>> {
        let mut errors = Vec::new();
        let mut made = Transformer { headers: vec![], json: vec![] };
        let plain = |names: Names| Values { headers: names.headers, json: names.json, json_types: vec![] };
        let groups = [
            ("remove", Kind::Remove, plain(self.remove)),
            ("rename", Kind::Rename, plain(self.rename)),
            ("replace", Kind::Replace, self.replace),
            ("add", Kind::Add, self.add),
            ("append", Kind::Append, self.append),
        ];
        for (key, kind, values) in groups {
            let place = at.get(key).unwrap_or(at);
            if !values.json_types.is_empty() && values.json_types.len() != values.json.len() {
                errors.push(wrong(place, "json_types", format!("there are {} types for {} values", values.json_types.len(), values.json.len())));
            }
            for text in &values.headers {
                let step = entry(kind, text).map_err(|e| wrong(place, "headers", e)).and_then(|(name, value)| {
                    let name = header_name(place, "headers", name)?;
                    let value = match (kind, value) {
                        (Kind::Rename, Some(new)) => header_name(place, "headers", new)?.to_string(),
                        (_, value) => value.unwrap_or_default().trim().to_owned(),
                    };
                    if value.contains("$(") && kind != Kind::Rename {
                        let template = Template::parse(&value).map_err(|why| wrong(place, "headers", why))?;
                        return Ok(Some(HeaderStep { kind, name, value: HeaderText::Of(template) }));
                    }
                    let bytes = HeaderValue::from_str(&value).map_err(|_| wrong(place, "headers", format!("the value of `{name}` can not be sent in a header")))?;
                    let does_something = kind == Kind::Remove || !bytes.is_empty();
                    Ok(does_something.then_some(HeaderStep { kind, name, value: HeaderText::Fixed(bytes) }))
                });
                match step {
                    Ok(step) => made.headers.extend(step),
                    Err(error) => errors.push(error),
                }
            }
            for (i, text) in values.json.iter().enumerate() {
                let step = entry(kind, text).and_then(|(name, value)| {
                    let value = value.map(|v| typed(v, values.json_types.get(i).copied())).transpose()?;
                    Ok(JsonStep { kind, name: name.into(), value })
                });
                match step {
                    Ok(step) if kind == Kind::Remove || step.value.is_some() => made.json.push(step),
                    Ok(_) => {}
                    Err(message) => errors.push(wrong(place, "json", message)),
                }
            }
        }
        if errors.is_empty() { Ok(made) } else { Err(errors) }
    }

    fn warnings(at: &Node) -> Vec<Diagnostic> {
        let mut found = Vec::new();
        for key in ["replace", "add", "append"] {
            for list in ["headers", "json"] {
                for item in at.get(key).and_then(|k| k.get(list)).map_or(&[][..], Node::items) {
                    if let Some(text) = item.text().filter(|t| t.ends_with(':') && t.trim_end_matches(':').find(':').is_none()) {
                        let message = format!("`{text}` has no value and does nothing");
                        found.push(Diagnostic::warning("plugin-config", item.span(), message).hint("to take it away, name it under `remove`"));
                    }
                }
            }
        }
        found
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

/// Name and value of an entry.
fn entry(kind: Kind, text: &str) -> Result<(&str, Option<&str>), String> {
    let (name, value) = text.split_once(':').map_or((text, None), |(n, v)| (n, Some(v.trim_start_matches(':'))));
    match (kind, value) {
        _ if name.is_empty() => Err("an entry is `name:value`, and the name is missing".into()),
        (Kind::Remove, _) => Ok((name, None)),
        (_, None) => Err(format!("an entry is `name:value`, and `{}` has no value", name.escape_debug())),
        (_, Some("")) => Ok((name, None)),
        (_, Some(value)) => Ok((name, Some(value))),
    }
}

fn typed(value: &str, kind: Option<JsonType>) -> Result<Value, String> {
    match kind {
        None | Some(JsonType::String) => Ok(Value::String(value.into())),
        Some(JsonType::Boolean) => Ok(Value::Bool(value.trim() == "true")),
        Some(JsonType::Number) => match serde_json::from_str::<Value>(value.trim()) {
            Ok(number @ Value::Number(_)) => Ok(number),
            _ => Err(format!("`{}` is not a number", value.escape_debug())),
        },
    }
}

struct HeaderStep {
    kind: Kind,
    name: HeaderName,
    value: HeaderText,
}

enum HeaderText {
    /// As it is; for `rename` the new name.
    Fixed(HeaderValue),
    /// Made of each request.
    Of(Template),
}

/// Values of a request's templates by the place of their step, made in the request step: later the request is gone.
#[derive(Clone)]
struct Rendered(Vec<(usize, HeaderValue)>);

struct JsonStep {
    kind: Kind,
    name: String,
    /// For `rename`, the new name.
    value: Option<Value>,
}

/// The configuration, compiled.
pub struct Transformer {
    headers: Vec<HeaderStep>,
    json: Vec<JsonStep>,
}

/// The body so far.
#[derive(Clone)]
struct Collected(BytesMut);

impl Transformer {
    fn has_templates(&self) -> bool {
        self.headers.iter().any(|step| matches!(step.value, HeaderText::Of(_)))
    }

    fn change_headers(&self, headers: &mut HeaderMap, rendered: &[(usize, HeaderValue)]) {
        for (at, step) in self.headers.iter().enumerate() {
            let there = headers.contains_key(&step.name);
            let value = match &step.value {
                HeaderText::Fixed(value) => value,
                // No text, no change: the request had nothing to say, or never came this far.
                HeaderText::Of(_) => match rendered.iter().find(|(of, _)| *of == at) {
                    Some((_, value)) => value,
                    None => continue,
                },
            };
            match step.kind {
                Kind::Remove => {
                    headers.remove(&step.name);
                }
                Kind::Rename => {
                    if let (true, Ok(new)) = (there, HeaderName::from_bytes(value.as_bytes())) {
                        let moved: Vec<HeaderValue> = headers.get_all(&step.name).iter().cloned().collect();
                        headers.remove(&step.name);
                        headers.remove(&new);
                        for value in moved {
                            headers.append(new.clone(), value);
                        }
                    }
                }
                Kind::Replace if there => {
                    headers.insert(step.name.clone(), value.clone());
                }
                Kind::Add if !there => {
                    headers.insert(step.name.clone(), value.clone());
                }
                Kind::Append => {
                    headers.append(step.name.clone(), value.clone());
                }
                Kind::Replace | Kind::Add => {}
            }
        }
    }

    fn change_json(&self, body: &[u8]) -> Option<Bytes> {
        let mut object: Map<String, Value> = serde_json::from_slice(body).ok()?;
        for step in &self.json {
            let name = step.name.as_str();
            match (step.kind, &step.value) {
                (Kind::Remove, _) => {
                    object.shift_remove(name);
                }
                (Kind::Rename, Some(Value::String(new))) if new != name => {
                    if let Some(moved) = object.shift_remove(name) {
                        object.insert(new.clone(), moved);
                    }
                }
                (Kind::Replace, Some(value)) => {
                    if let Some(place) = object.get_mut(name) {
                        place.clone_from(value);
                    }
                }
                (Kind::Add, Some(value)) if !object.contains_key(name) => {
                    object.insert(name.into(), value.clone());
                }
                (Kind::Append, Some(value)) => append_json(&mut object, name, value.clone()),
                _ => {}
            }
        }
        Some(Value::Object(object).to_string().into())
    }
}

impl Plugin for Transformer {
    fn phases(&self) -> Phases {
        let changes = match self.json.is_empty() {
            true => Phases::RESPONSE,
            false => Phases::TO_UPSTREAM | Phases::RESPONSE | Phases::BODY,
        };
        if self.has_templates() { changes | Phases::REQUEST } else { changes }
    }

    fn request(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        let vars = Vars { cx, headers: &req.headers, query: req.uri.query() };
        let value = |template: &Template| HeaderValue::from_str(template.render(&vars).trim()).ok().filter(|value| !value.is_empty());
        let made = self.headers.iter().enumerate().filter_map(|(at, step)| match &step.value {
            HeaderText::Of(template) => Some((at, value(template)?)),
            HeaderText::Fixed(_) => None,
        });
        let made = Rendered(made.collect());
        cx.state.insert(made);
        Flow::Continue
    }

    fn to_upstream(&self, _: &mut RequestContext, req: &mut request::Parts) {
        req.headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }

    fn response(&self, cx: &mut RequestContext, res: &mut response::Parts) {
        self.change_headers(&mut res.headers, cx.state.get::<Rendered>().map_or(&[], |rendered| &rendered.0));
        let json = res.headers.get(header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().to_ascii_lowercase().starts_with(b"application/json"));
        if json && !self.json.is_empty() && !res.headers.contains_key(header::CONTENT_ENCODING) && res.status != http::StatusCode::PARTIAL_CONTENT {
            res.headers.remove(header::CONTENT_LENGTH);
            cx.state.insert(Collected(BytesMut::new()));
        }
    }

    fn body(&self, cx: &mut RequestContext, chunk: &mut Bytes, last: bool) {
        let Some(Collected(bytes)) = cx.state.get_mut::<Collected>() else { return };
        bytes.extend_from_slice(chunk);
        chunk.clear();
        if last || bytes.len() > LONGEST_BODY {
            let whole = std::mem::take(bytes).freeze();
            *chunk = if last { self.change_json(&whole).unwrap_or(whole) } else { whole };
            cx.state.remove::<Collected>();
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Rig, Seen, errors, get};
    use weir_config::PluginCatalog;

    fn rig(config: &str) -> Rig {
        Rig::new(&[("response-transformer", config)])
    }

    async fn json(config: &str, pieces: &[&'static str]) -> Seen {
        rig(config).upstream_field("content-type", "application/json; charset=utf-8").upstream_body(pieces).run(get("/")).await
    }

    #[tokio::test]
    async fn values_may_be_made_of_the_request() {
        let config = r#"
add: {headers: ["X-User:$(headers[\"x-login\"] or \"guest\")", "X-None:$(query_params.none)", "X-Twice:a$(query_params.id)b"]}
replace: {headers: ["X-Path:$(query_params.id)", "X-Absent:$(query_params.id)"]}
"#;
        let seen = rig(config).upstream_field("x-path", "old").run(get("/?id=7").with("x-login", "kim")).await;
        let told = ["x-user", "x-none", "x-twice", "x-path", "x-absent"].map(|name| seen.header(name));
        assert_eq!(told, [Some("kim"), None, Some("a7b"), Some("7"), None]);
        // What a client says can not break out of its header.
        let seen = rig(config).run(get("/?id=7%0D%0AX-Evil:1").with("x-login", "")).await;
        assert_eq!((seen.header("x-twice"), seen.header("x-evil"), seen.header("x-user")), (None, None, None));
        assert!(errors("response-transformer", r#"add: {headers: ["X-A:$(os.execute('x'))"]}"#)[0].message.contains("`os` is not supported"));
    }

    #[tokio::test]
    async fn headers_are_removed_renamed_replaced_added_and_appended() {
        let config = r#"
remove: {headers: [Server, x-absent]}
rename: {headers: ["X-Old:X-New", "x-absent:x-kept"]}
replace: {headers: ["X-Here: there", "x-absent:no"]}
add: {headers: ["X-Here:again", "X-Fresh:1; mode=block", "Server:"]}
append: {headers: ["X-Here:twice", "Set-Cookie:b=2"]}
"#;
        let rig = rig(config)
            .upstream_field("server", "s")
            .upstream_field("x-old", "o1")
            .upstream_field("x-old", "o2")
            .upstream_field("x-new", "n")
            .upstream_field("x-here", "1")
            .upstream_field("x-kept", "k")
            .upstream_field("set-cookie", "a=1");
        let seen = rig.run(get("/")).await;
        assert_eq!(seen.all("server"), [""; 0]);
        assert_eq!((seen.all("x-old"), seen.all("x-new")), (vec![], vec!["o1", "o2"]));
        assert_eq!(seen.all("x-kept"), ["k"]);
        assert_eq!(seen.all("x-here"), ["there", "twice"]);
        assert_eq!(seen.all("x-fresh"), ["1; mode=block"]);
        assert_eq!(seen.all("set-cookie"), ["a=1", "b=2"]);
        assert_eq!((seen.status(), seen.body.as_str()), (200, "hello"));
    }

    #[tokio::test]
    async fn answers_made_here_are_changed_too() {
        let rig = Rig::new(&[
            ("response-transformer", "{add: {headers: ['x-a:1'], json: ['code:7'], json_types: [number]}}"),
            ("token-validator", "secret: a-secret-of-thirty-two-bytes-long"),
        ]);
        let seen = rig.run(get("/")).await;
        assert_eq!((seen.status(), seen.header("x-a"), seen.json()["code"].clone()), (401, Some("1"), 7.into()));
    }

    #[tokio::test]
    async fn json_members_are_changed_wherever_the_pieces_are_cut() {
        let config = r#"
remove: {json: [gone]}
rename: {json: ["old:new"]}
replace: {json: ["here:false", "none:1"], json_types: [boolean, number]}
add: {json: ["fresh:1.5", "here:x", "text:5"], json_types: [number, string, string]}
append: {json: ["list:c", "name:b", "first:1"], json_types: [string, string, number]}
"#;
        let body = r#"{"gone":1,"old":{"deep":[1]},"here":"x","list":["a"],"name":"a"}"#;
        let expected = serde_json::json!({"here": false, "list": ["a", "c"], "name": ["a", "b"], "new": {"deep": [1]}, "fresh": 1.5, "text": "5", "first": [1]});
        for cut in [0, 1, 17, body.len()] {
            let seen = json(config, &[&body[..cut], &body[cut..]]).await;
            assert_eq!(seen.json(), expected);
        }
    }

    #[tokio::test]
    async fn what_is_no_json_object_passes_unchanged() {
        for body in ["[1,2]", "{broken", ""] {
            assert_eq!(json("add: {json: ['a:1']}", &[body]).await.body, body);
        }
        let seen = rig("add: {json: ['a:1']}").upstream_field("content-type", "text/html").upstream_body(&["{}"]).run(get("/")).await;
        assert_eq!(seen.body, "{}");
        let compressed = rig("add: {json: ['a:1']}").upstream_field("content-type", "application/json").upstream_field("content-encoding", "gzip");
        assert_eq!(compressed.upstream_body(&["{}"]).run(get("/")).await.body, "{}");
    }

    #[tokio::test]
    async fn a_changed_answer_does_not_tell_the_old_length_and_the_service_is_asked_for_plain_text() {
        let rig = rig("remove: {json: [a]}").upstream_field("content-type", "application/json").upstream_field("content-length", "7").upstream_body(&["{\"a\":1}"]);
        let seen = rig.run(get("/").with("accept-encoding", "br")).await;
        assert_eq!((seen.body.as_str(), seen.header("content-length"), seen.sent("accept-encoding")), ("{}", None, "identity"));
        let headers_only = Rig::new(&[("response-transformer", "remove: {headers: [a]}")]).run(get("/").with("accept-encoding", "br")).await;
        assert_eq!(headers_only.sent("accept-encoding"), "br");
    }

    #[test]
    fn mistakes_and_doubts() {
        for (config, message) in [
            ("add: {headers: [x]}", "`x` has no value"),
            ("replace: {json: [':x']}", "the name is missing"),
            ("add: {headers: ['a b:c']}", "`a b` is not a header name"),
            ("rename: {headers: ['a:b c']}", "`b c` is not a header name"),
            ("add: {json: ['a:x'], json_types: [number]}", "`x` is not a number"),
            ("add: {json: ['a:x'], json_types: [string, string]}", "there are 2 types for 1 values"),
            ("add: {json: ['a:x'], json_types: [text]}", "json_types"),
        ] {
            let found = errors("response-transformer", config);
            assert!(found.iter().any(|e| e.to_string().contains(message)), "{config}: {found:?}");
        }
        let entry = crate::testing::entry("response-transformer", "add: {headers: ['Server:', 'a:b:']}");
        let found = crate::register().check("response-transformer", &entry.config);
        assert_eq!(found.iter().map(|d| d.message.as_str()).collect::<Vec<_>>(), ["`Server:` has no value and does nothing"]);
    }
}
