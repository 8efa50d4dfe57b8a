//! An OpenAPI document (3.0 or 3.1), compiled into what requests are checked against.

use super::{
    body::{BodyRule, MediaRange},
    params::{Made, Parameter, Place, Style},
    paths::Paths,
    schema::Schema,
};
use http::{HeaderValue, Method};
use jsonschema::Draft;
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};
use std::{collections::HashMap, sync::Arc};
use weir_config::{Diagnostic, Node};

const METHODS: [(&str, Method); 8] = [
    ("get", Method::GET),
    ("put", Method::PUT),
    ("post", Method::POST),
    ("delete", Method::DELETE),
    ("options", Method::OPTIONS),
    ("head", Method::HEAD),
    ("patch", Method::PATCH),
    ("trace", Method::TRACE),
];
/// References lead to references this often at most.
const LONGEST_CHAIN: usize = 16;

/// A document.
pub(super) struct Api {
    /// Put before the document's paths; without a slash at its end.
    pub base: String,
    pub paths: Paths<PathItem>,
    /// Query parameters that carry credentials.
    pub credentials: Vec<String>,
}

/// What one path takes.
pub(super) struct PathItem {
    operations: HashMap<Method, Operation>,
    pub allow: HeaderValue,
}

impl PathItem {
    /// HEAD is asked as GET where it has no operation of its own.
    pub fn operation(&self, method: &Method) -> Option<&Operation> {
        let own = self.operations.get(method);
        own.or_else(|| self.operations.get(&Method::GET).filter(|_| *method == Method::HEAD))
    }
}

/// What one method of a path takes.
#[derive(Default)]
pub(super) struct Operation {
    pub parameters: Vec<Parameter>,
    pub body: Option<BodyRule>,
}

/// A mistake at a JSON Pointer of the document.
type Mistake = (String, String);

struct Reader<'a> {
    node: &'a Node,
    document: Value,
    draft: Draft,
    errors: Vec<Diagnostic>,
}

/// Compiles a document. `node`: the document, for places.
///
/// Errors: every mistake.
pub(super) fn compile(node: &Node, base_path: Option<&str>) -> Result<Api, Vec<Diagnostic>> {
    let document = node.to_json();
    let version = document.get("openapi").and_then(Value::as_str).unwrap_or_default();
    let draft = match version {
        v if v.starts_with("3.0") => Draft::Draft4,
        v if v.starts_with("3.1") => Draft::Draft202012,
        _ => {
            let message = match document.get("swagger") {
                Some(_) => "this is Swagger 2: convert it to OpenAPI 3",
                None => "this is not an OpenAPI document of version 3.0 or 3.1: `openapi: 3.1.0` is missing",
            };
            let place = ["openapi", "swagger"].iter().find_map(|key| node.get(key)).unwrap_or(node);
            return Err(vec![Diagnostic::error("plugin-config", place.span(), message)]);
        }
    };
    let base = base_path.map_or_else(|| server_path(&document), str::to_owned);
    let mut reader = Reader { node, document, draft, errors: vec![] };
    let mut api = Api { base: base.trim_end_matches('/').into(), paths: Paths::default(), credentials: reader.credentials() };
    let paths = reader.document.get("paths").and_then(Value::as_object).cloned().unwrap_or_default();
    if paths.is_empty() {
        reader.wrong("/paths", "the document has no paths".into());
    }
    for (template, item) in paths.iter().filter(|(template, _)| !template.starts_with("x-")) {
        let place = format!("/paths/{}", escaped(template));
        let Some(item) = reader.path_item(&place, item) else { continue };
        if let Err(why) = api.paths.add(template, item) {
            reader.wrong(&place, why);
        }
    }
    if reader.errors.is_empty() { Ok(api) } else { Err(reader.errors) }
}

/// The path of the first server.
fn server_path(document: &Value) -> String {
    let url = document.pointer("/servers/0/url").and_then(Value::as_str).unwrap_or_default();
    let path = match url.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("", |at| &rest[at..]),
        None => url,
    };
    // A path with variables is nobody's prefix.
    if path.starts_with('/') && !path.contains('{') { path.into() } else { String::new() }
}

fn escaped(segment: &str) -> String {
    segment.replace('~', "~0").replace('/', "~1")
}

impl Reader<'_> {
    fn wrong(&mut self, pointer: &str, message: String) {
        self.errors.push(Diagnostic::error("plugin-config", place(self.node, pointer).span(), message));
    }

    fn credentials(&self) -> Vec<String> {
        let schemes = self.document.pointer("/components/securitySchemes").and_then(Value::as_object);
        let in_query = |scheme: &&Value| scheme.get("in").and_then(Value::as_str) == Some("query");
        schemes.into_iter().flat_map(Map::values).filter(in_query).filter_map(|s| s.get("name")?.as_str()).map(str::to_owned).collect()
    }

    /// What stands at a place, references followed: its own place and its value.
    fn follow(&self, at: &str, value: &Value) -> Result<(String, Value), Mistake> {
        let (mut at, mut value) = (at.to_owned(), value.clone());
        for _ in 0..LONGEST_CHAIN {
            let Some(reference) = value.get("$ref").and_then(Value::as_str) else { return Ok((at, value)) };
            let (target, found) = self.target(reference).map_err(|why| (format!("{at}/$ref"), why))?;
            (at, value) = (target, found.clone());
        }
        Err((at, "these references lead nowhere".into()))
    }

    fn target(&self, reference: &str) -> Result<(String, &Value), String> {
        let Some(pointer) = reference.strip_prefix("#/") else {
            return Err(format!("`{}` leads out of the document: only `#/…` is followed", reference.escape_debug()));
        };
        let pointer = format!("/{}", percent_decode_str(pointer).decode_utf8_lossy());
        match self.document.pointer(&pointer) {
            Some(value) => Ok((pointer, value)),
            None => Err(format!("there is no `{}` in the document", reference.escape_debug())),
        }
    }

    fn path_item(&mut self, at: &str, item: &Value) -> Option<PathItem> {
        let (at, item) = self.followed(at, item)?;
        let shared = self.parameters(&at, &item);
        let mut operations = HashMap::new();
        let mut allow = Vec::new();
        for (key, method) in METHODS {
            let Some(operation) = item.get(key) else { continue };
            let at = format!("{at}/{key}");
            let own = self.parameters(&at, operation);
            let mut parameters = Vec::new();
            for (identity, place, value) in shared.iter().filter(|s| !own.iter().any(|o| o.0 == s.0)).chain(&own) {
                let _ = identity;
                parameters.extend(self.parameter(place, value));
            }
            let body = operation.get("requestBody").and_then(|body| self.body(&format!("{at}/requestBody"), body));
            allow.push(method.as_str().to_owned());
            operations.insert(method, Operation { parameters, body });
        }
        if operations.contains_key(&Method::GET) && !operations.contains_key(&Method::HEAD) {
            allow.push("HEAD".into());
        }
        let allow = HeaderValue::from_str(&allow.join(", ")).ok()?;
        Some(PathItem { operations, allow })
    }

    fn followed(&mut self, at: &str, value: &Value) -> Option<(String, Value)> {
        self.follow(at, value).map_err(|(at, why)| self.wrong(&at, why)).ok()
    }

    /// The parameters of a path or an operation: what they are known by, where they stand, what they are.
    fn parameters(&mut self, at: &str, owner: &Value) -> Vec<((String, String), String, Value)> {
        let list = owner.get("parameters").and_then(Value::as_array).cloned().unwrap_or_default();
        let mut found = Vec::new();
        for (index, parameter) in list.iter().enumerate() {
            let Some((at, parameter)) = self.followed(&format!("{at}/parameters/{index}"), parameter) else { continue };
            let text = |key: &str| parameter.get(key).and_then(Value::as_str).map(str::to_owned);
            match (text("in"), text("name")) {
                (Some(place), Some(name)) => found.push(((place, name), at, parameter)),
                _ => self.wrong(&at, "a parameter has `name` and `in`".into()),
            }
        }
        found
    }

    fn parameter(&mut self, at: &str, parameter: &Value) -> Option<Parameter> {
        let name = parameter.get("name").and_then(Value::as_str)?.to_owned();
        let word = |key: &str| parameter.get(key).and_then(Value::as_str);
        let place = match word("in")? {
            "path" => Place::Path,
            "query" => Place::Query,
            "cookie" => Place::Cookie,
            // These three are described elsewhere in a document (OpenAPI 3.1, Parameter Object).
            "header" if ["accept", "content-type", "authorization"].contains(&&*name.to_ascii_lowercase()) => return None,
            "header" => Place::Header,
            other => {
                self.wrong(&format!("{at}/in"), format!("`{}` is not `path`, `query`, `header` or `cookie`", other.escape_debug()));
                return None;
            }
        };
        let style = match word("style").map(|style| serde_json::from_value::<Style>(style.into())) {
            None => None,
            Some(Ok(style)) => Some(style),
            Some(Err(_)) => {
                self.wrong(&format!("{at}/style"), "this is not a style of parameters".into());
                return None;
            }
        };
        let content = parameter.get("content").and_then(Value::as_object).and_then(|content| content.iter().next());
        let (json, schema) = match (content, parameter.get("schema")) {
            (Some((kind, media)), _) => {
                let json = kind.contains("json");
                let at = format!("{at}/content/{}/schema", escaped(kind));
                (json, media.get("schema").filter(|_| json).map(|schema| (at, schema)))
            }
            (None, schema) => (false, schema.map(|schema| (format!("{at}/schema"), schema))),
        };
        let schema = match schema {
            Some((at, schema)) => Some(self.schema(&at, schema)?),
            None => None,
        };
        let flag = |key: &str| parameter.get(key).and_then(Value::as_bool);
        let required = place == Place::Path || flag("required").unwrap_or(false);
        Parameter::new(Made { place, name, required, style, explode: flag("explode"), json, schema }).map_err(|why| self.wrong(at, why)).ok()
    }

    fn body(&mut self, at: &str, body: &Value) -> Option<BodyRule> {
        let (at, body) = self.followed(at, body)?;
        let mut rule = BodyRule { required: body.get("required").and_then(Value::as_bool).unwrap_or(false), types: vec![] };
        let content = body.get("content").and_then(Value::as_object).cloned().unwrap_or_default();
        for (kind, media) in &content {
            let at = format!("{at}/content/{}", escaped(kind));
            let Some(range) = MediaRange::parse(kind) else {
                self.wrong(&at, "this is not a media type".into());
                continue;
            };
            let schema = media.get("schema").and_then(|schema| self.schema(&format!("{at}/schema"), schema));
            rule.types.push((range, schema.map(Arc::new)));
        }
        rule.types.sort_by_key(|(range, _)| range.order());
        Some(rule)
    }

    fn schema(&mut self, at: &str, schema: &Value) -> Option<Schema> {
        let whole = match self.standalone(schema) {
            Ok(whole) => whole,
            Err(why) => {
                self.wrong(at, why);
                return None;
            }
        };
        Schema::new(&whole, self.draft).map_err(|(_, why)| self.wrong(at, why)).ok()
    }

    /// A schema with everything in it that it refers to.
    fn standalone(&self, schema: &Value) -> Result<Value, String> {
        let mut adapter = Adapter { nullable: self.draft == Draft::Draft4, known: HashMap::new(), open: vec![] };
        let root = adapter.schema(schema);
        let mut definitions = Map::new();
        while let Some((name, reference)) = adapter.open.pop() {
            let (_, target) = self.target(&reference)?;
            let target = target.clone();
            definitions.insert(name, adapter.schema(&target));
        }
        if definitions.is_empty() {
            return Ok(root);
        }
        Ok(json!({ "allOf": [root], "definitions": definitions }))
    }
}

/// What stands at a JSON Pointer, or the nearest thing around it.
pub(super) fn place<'n>(node: &'n Node, pointer: &str) -> &'n Node {
    let mut node = node;
    for segment in pointer.split('/').skip(1) {
        let name = segment.replace("~1", "/").replace("~0", "~");
        let inner = node.get(&name).or_else(|| node.items().get(name.parse::<usize>().ok()?));
        let Some(inner) = inner else { break };
        node = inner;
    }
    node
}

/// Makes JSON Schema, for requests, of a document's schemas.
struct Adapter {
    /// `nullable` means something (3.0).
    nullable: bool,
    /// References by the names that they have got.
    known: HashMap<String, String>,
    /// References that lead to what is not there yet.
    open: Vec<(String, String)>,
}

impl Adapter {
    fn schema(&mut self, schema: &Value) -> Value {
        let Value::Object(rules) = schema else { return schema.clone() };
        let mut made = Map::new();
        for (key, value) in rules {
            let value = match key.as_str() {
                "$ref" => match value.as_str() {
                    Some(reference) => self.reference(reference),
                    None => continue,
                },
                "properties" | "patternProperties" | "dependentSchemas" | "definitions" | "$defs" => match value {
                    Value::Object(members) => Value::Object(members.iter().map(|(name, member)| (name.clone(), self.schema(member))).collect()),
                    other => other.clone(),
                },
                "allOf" | "anyOf" | "oneOf" | "prefixItems" => match value {
                    Value::Array(parts) => parts.iter().map(|part| self.schema(part)).collect(),
                    other => other.clone(),
                },
                "items" | "additionalProperties" | "not" | "contains" | "propertyNames" | "if" | "then" | "else" | "unevaluatedItems" | "unevaluatedProperties" => self.schema(value),
                // Other names of the schema would lead its references astray.
                "$id" | "$schema" | "id" | "$anchor" => continue,
                // Words of OpenAPI that say nothing of a value.
                "nullable" | "discriminator" | "xml" | "externalDocs" | "example" | "examples" | "default" | "readOnly" | "writeOnly" | "deprecated" | "title" | "description" => continue,
                _ => value.clone(),
            };
            made.insert(key.clone(), value);
        }
        if self.nullable && rules.get("nullable") == Some(&Value::Bool(true)) {
            if let Some(Value::String(kind)) = made.get("type") {
                made.insert("type".into(), json!([kind, "null"]));
            }
            if let Some(Value::Array(values)) = made.get_mut("enum")
                && !values.contains(&Value::Null)
            {
                values.push(Value::Null);
            }
        }
        if made.get("format").and_then(Value::as_str) == Some("int32") {
            made.entry("minimum").or_insert(i32::MIN.into());
            made.entry("maximum").or_insert(i32::MAX.into());
        }
        // Clients do not send what only answers have.
        let read_only = |name: &Value| name.as_str().and_then(|name| rules.get("properties")?.get(name)?.get("readOnly")) == Some(&Value::Bool(true));
        if let Some(Value::Array(required)) = made.get_mut("required") {
            required.retain(|name| !read_only(name));
            if required.is_empty() {
                made.shift_remove("required");
            }
        }
        Value::Object(made)
    }

    fn reference(&mut self, reference: &str) -> Value {
        if let Some(name) = self.known.get(reference) {
            return format!("#/definitions/{name}").into();
        }
        let name = format!("d{}", self.known.len());
        self.known.insert(reference.into(), name.clone());
        self.open.push((name.clone(), reference.into()));
        format!("#/definitions/{name}").into()
    }
}
