//! `request-validation`: only requests that fit their description reach the service.

mod body;
mod openapi;
mod params;
mod paths;
mod schema;

use crate::{Configured, Live, doubtful, wrong};
use body::{BodyRule, MediaRange, Refused};
use http::{Method, StatusCode, header, request};
use jsonschema::Draft;
use openapi::Api;
use params::{Asked, Made, Parameter, Place, Style};
use schema::{Problem, Schema};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use std::{collections::BTreeSet, path::{Path, PathBuf}, sync::Arc};
use weir_config::{Diagnostic, Kind, Node, Size, Span};
use weir_gateway::{BuildEnv, Environment, Flow, Phases, Plugin, Reply, RequestContext, router::normalize};

const BY: &str = "request-validation";
const INVALID: &str = "The request does not fit its description";

/// Lets only requests pass that fit a description: an OpenAPI document (3.0 or 3.1), or a JSON Schema of the body and a list of parameters. What does not fit is
/// answered with 400 and all that is wrong with it (20 problems at most): `{"message": …, "errors": [{"in": "body", "path": "/items/0/price", "message": …}, {"in": "query",
/// "name": "page", "message": …}]}`; the client's values are not repeated. A body of a type that is not accepted is answered with 415, one over `max_body` with 413; with an OpenAPI
/// document a path that it does not have with 404, and a method with 405 and `Allow`. Preflights of browsers pass.
///
/// JSON (`application/json`, `+json`) and forms (`application/x-www-form-urlencoded`) are checked against their schema; of other bodies only type and size are. JSON with a
/// member twice, a parameter twice that is no list, and a checked body with `Content-Encoding` are refused, for a service might read them in another way. References
/// lead to places in the same document only. A file is read with the configuration, and a change of it is one of the configuration. Fields of Kong's `request-validator` are understood; Kong's own schema language is not.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// An OpenAPI document: the document itself, or the name of a file (YAML or JSON), relative to the one that names it. Not together with `body_schema` and `parameters`.
    pub openapi: Option<Value>,
    /// What stands before the document's paths in requests. Default: the path of its first server.
    pub base_path: Option<String>,
    /// What becomes of a path that the document does not have.
    pub unknown_paths: UnknownPaths,
    /// JSON Schema of the body, as a mapping or as JSON in a text. POST, PUT and PATCH must then have a body.
    pub body_schema: Option<Value>,
    /// Parameters and their schemas. Those in the path are named groups of the route's regex. Kong's name is `parameter_schema`.
    #[serde(alias = "parameter_schema")]
    #[schemars(extend("x-aliases" = ["parameter_schema"]))]
    pub parameters: Vec<ParameterConfig>,
    /// Media types that bodies may have, such as `application/json` or `text/*`. With an OpenAPI document, its own types hold instead. Without `body_schema`, all do unless some are named.
    /// Kong's name is `allowed_content_types`. Default: `application/json`.
    #[serde(alias = "allowed_content_types")]
    #[schemars(extend("x-aliases" = ["allowed_content_types"]))]
    pub content_types: Option<Vec<String>>,
    /// The draft of JSON Schema of `body_schema` and `parameters`, unless a schema names its own with `$schema`.
    pub version: Version,
    /// Largest body that is read and checked.
    pub max_body: Size,
    /// Refuse query parameters that are not described.
    pub strict_query: bool,
    /// `report` lets all requests pass and only counts and logs those that do not fit.
    pub mode: Mode,
    /// Tell the client what is wrong (Kong's default is not to).
    pub verbose_response: bool,
    /// Of Kong. Parameters of content types, such as `charset`, are never compared.
    pub content_type_parameter_validation: Option<bool>,
}

/// A parameter.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ParameterConfig {
    /// Its name.
    #[schemars(length(min = 1))]
    pub name: String,
    /// Where it stands.
    #[serde(rename = "in")]
    pub place: Place,
    /// It must be there.
    #[serde(default)]
    pub required: bool,
    /// JSON Schema of its value, as a mapping or as JSON in a text.
    #[serde(default)]
    pub schema: Option<Value>,
    /// How lists and objects are written (OpenAPI's styles). Default: `simple` in path and headers, `form` in query and cookies.
    #[serde(default)]
    pub style: Option<Style>,
    /// Each item of a list, or member of an object, is written by itself. Default: with `form` and `deepObject`.
    #[serde(default)]
    pub explode: Option<bool>,
}

/// What becomes of a path that the document does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum UnknownPaths {
    /// 404.
    #[default]
    Refuse,
    /// It passes unchecked.
    Pass,
}

/// What becomes of requests that do not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// They are answered here.
    #[default]
    Refuse,
    /// They pass, and are counted and logged.
    Report,
}

/// Drafts of JSON Schema, by Kong's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    /// Kong's default, which stands for its own language; a JSON Schema is then read as of 2020-12.
    Kong,
    /// Draft 4.
    Draft4,
    /// Draft 6.
    Draft6,
    /// Draft 7.
    Draft7,
    /// Draft 2019-09.
    Draft201909,
    /// Draft 2020-12.
    #[default]
    Draft202012,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            openapi: None,
            base_path: None,
            unknown_paths: UnknownPaths::Refuse,
            body_schema: None,
            parameters: vec![],
            content_types: None,
            version: Version::Draft202012,
            max_body: Size(1 << 20),
            strict_query: false,
            mode: Mode::Refuse,
            verbose_response: true,
            content_type_parameter_validation: None,
        }
    }
}

impl Configured for Config {
    const NAME: &'static str = BY;
    const ALIASES: &'static [&'static str] = &["request-validator"];
    const PRIORITY: i32 = 999;
    const EXAMPLE: &'static str = "\
body_schema:
  type: object
  required: [sku, quantity]
  additionalProperties: false
  properties:
    sku: {type: string, pattern: '^[A-Z]{2}-[0-9]+$'}
    quantity: {type: integer, minimum: 1}
parameters:
  - {name: page, in: query, schema: {type: integer, minimum: 1}}
max_body: 64KB
";

    type Ready = Rules;

    fn ready(self, at: &Node) -> Result<Rules, Vec<Diagnostic>> {
        let max_body = usize::try_from(self.max_body.get()).unwrap_or(usize::MAX).min(1 << 30);
        let (pass_unknown, strict_query, report, verbose) = (self.unknown_paths == UnknownPaths::Pass, self.strict_query, self.mode == Mode::Report, self.verbose_response);
        let described = match (&self.openapi, self.body_schema.is_some() || !self.parameters.is_empty()) {
            (Some(_), true) => return Err(vec![wrong(at, "openapi", "a document describes everything: `body_schema` and `parameters` have no place beside it")]),
            (Some(_), false) => {
                let document = document(at)?;
                Described::Api(Box::new(openapi::compile(&document, self.base_path.as_deref())?))
            }
            (None, false) if self.content_types.is_none() => return Err(vec![wrong(at, "openapi", "nothing is described: `openapi`, `body_schema`, `parameters` or `content_types` is wanted")]),
            (None, _) => Described::Here(self.own(at)?),
        };
        Ok(Rules { described, max_body, pass_unknown, strict_query, report, verbose })
    }

    fn warnings(at: &Node) -> Vec<Diagnostic> {
        let only_with_openapi = ["base_path", "unknown_paths"].iter().filter(|key| at.get(key).is_some() && at.get("openapi").is_none());
        let without_effect = only_with_openapi.map(|key| doubtful(at, key, "this has an effect only with `openapi`"));
        let types = ["content_types", "allowed_content_types"].into_iter().filter(|key| at.get(key).is_some() && at.get("openapi").is_some());
        without_effect.chain(types.map(|key| doubtful(at, key, "the document's own types hold instead"))).collect()
    }

    fn body_limit(&self, at: &Node) -> Option<(u64, Span)> {
        Some((self.max_body.get(), at.get("max_body")?.span().clone()))
    }

    fn files(at: &Node) -> Vec<PathBuf> {
        at.get("openapi").and_then(file).into_iter().collect()
    }

    fn build(ready: Rules, env: &BuildEnv<'_>, _: &Live) -> Arc<dyn Plugin> {
        Arc::new(Validation { rules: ready, environment: env.environment.clone() })
    }
}

/// The file that a text names, relative to the file in which it stands.
fn file(node: &Node) -> Option<PathBuf> {
    let Kind::String(name) = node.kind() else { return None };
    let folder = node.span().source.as_ref().map_or(Path::new(""), |source| source.folder());
    Some(folder.join(name))
}

/// The document as a tree: as it stands in the configuration, or from its file.
fn document(at: &Node) -> Result<Node, Vec<Diagnostic>> {
    let Some(node) = at.get("openapi") else { return Err(vec![wrong(at, "openapi", "a document is wanted")]) };
    match node.kind() {
        Kind::Map(_) => Ok(node.clone()),
        Kind::String(_) => {
            Node::parse_file(&file(node).unwrap_or_default()).map_err(|found| match found.first().is_some_and(|d| d.span.is_known()) {
                true => found.into_iter().collect(),
                false => vec![wrong(at, "openapi", found.first().map_or_else(String::new, |d| d.message.clone()))],
            })
        }
        _ => Err(vec![wrong(at, "openapi", "a document or the name of a file is wanted")]),
    }
}

/// A schema written as a mapping, or as JSON in a text.
fn written(value: Value, node: &Node) -> Result<Value, Diagnostic> {
    let schema = match value {
        Value::String(text) => Node::parse(&text).map(|node| node.to_json()).map_err(|_| Diagnostic::error("plugin-config", node.span(), "this text is not JSON"))?,
        other => other,
    };
    match schema {
        Value::Object(_) | Value::Bool(_) => Ok(schema),
        Value::Array(_) => Err(Diagnostic::error("plugin-config", node.span(), "this is Kong's own schema language").hint("write a JSON Schema: `{type: object, properties: …}`")),
        _ => Err(Diagnostic::error("plugin-config", node.span(), "this is not a JSON Schema")),
    }
}

impl Config {
    fn draft(&self) -> Draft {
        match self.version {
            Version::Draft4 => Draft::Draft4,
            Version::Draft6 => Draft::Draft6,
            Version::Draft7 => Draft::Draft7,
            Version::Draft201909 => Draft::Draft201909,
            Version::Draft202012 | Version::Kong => Draft::Draft202012,
        }
    }

    /// What `body_schema` and `parameters` describe.
    fn own(self, at: &Node) -> Result<Own, Vec<Diagnostic>> {
        let mut errors = Vec::new();
        let draft = self.draft();
        let compiled = |value: Value, node: &Node, errors: &mut Vec<Diagnostic>| {
            let made = written(value, node).and_then(|schema| {
                Schema::new(&schema, draft).map_err(|(pointer, why)| {
                    let place = openapi::place(node, &pointer);
                    Diagnostic::error("plugin-config", place.span(), format!("this is not a valid schema: {why}"))
                })
            });
            made.map_err(|error| errors.push(error)).ok()
        };
        let body_schema = self.body_schema.and_then(|value| compiled(value, at.get("body_schema").unwrap_or(at), &mut errors));
        let list = ["parameters", "parameter_schema"].iter().find_map(|key| at.get(key)).unwrap_or(at);
        let mut parameters = Vec::new();
        let mut names = BTreeSet::new();
        for (index, parameter) in self.parameters.into_iter().enumerate() {
            let node = list.items().get(index).unwrap_or(at);
            let schema = parameter.schema.and_then(|value| compiled(value, node.get("schema").unwrap_or(node), &mut errors));
            if !names.insert((parameter.place.word(), parameter.name.clone())) {
                errors.push(Diagnostic::error("plugin-config", node.span(), format!("the parameter `{}` stands in the list twice", parameter.name.escape_debug())));
            }
            let ParameterConfig { name, place, required, style, explode, .. } = parameter;
            match Parameter::new(Made { place, name, required, style, explode, json: false, schema }) {
                Ok(parameter) => parameters.push(parameter),
                Err(why) => errors.push(Diagnostic::error("plugin-config", node.span(), why)),
            }
        }
        let named = self.content_types.is_some();
        let types = self.content_types.unwrap_or_else(|| vec!["application/json".into()]);
        let mut ranges = Vec::new();
        for text in &types {
            match MediaRange::parse(text) {
                Some(range) => ranges.push(range),
                None => errors.push(wrong(at, if at.get("content_types").is_some() { "content_types" } else { "allowed_content_types" }, format!("`{}` is not a media type", text.escape_debug()))),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        ranges.sort_by_key(MediaRange::order);
        let body = (body_schema.is_some() || named).then(|| {
            let required = body_schema.is_some();
            let schema = body_schema.map(Arc::new);
            BodyRule { required, types: ranges.into_iter().map(|range| (range, schema.clone())).collect() }
        });
        Ok(Own { parameters, body })
    }
}

/// The configuration, compiled.
pub struct Rules {
    described: Described,
    max_body: usize,
    pass_unknown: bool,
    strict_query: bool,
    report: bool,
    verbose: bool,
}

enum Described {
    Api(Box<Api>),
    Here(Own),
}

struct Own {
    parameters: Vec<Parameter>,
    body: Option<BodyRule>,
}

struct Validation {
    rules: Rules,
    environment: Arc<Environment>,
}

/// What applies to one request.
struct Applies<'a> {
    parameters: &'a [Parameter],
    body: Option<&'a BodyRule>,
    path: Vec<(&'a str, &'a str)>,
    credentials: &'a [String],
}

impl Validation {
    /// What describes a request; `Ok(None)`: nothing does.
    fn find<'a>(&'a self, cx: &'a RequestContext, method: &Method, path: &'a str) -> Result<Option<Applies<'a>>, Reply> {
        match &self.rules.described {
            Described::Here(own) => {
                let captured = |p: &'a Parameter| Some((p.name.as_str(), cx.captures.as_ref()?.name(&p.name)?));
                let path = own.parameters.iter().filter(|p| p.place == Place::Path).filter_map(captured).collect();
                let wanted = [Method::POST, Method::PUT, Method::PATCH].contains(method) || cx.body.as_ref().is_some_and(|seen| !seen.bytes.is_empty());
                Ok(Some(Applies { parameters: &own.parameters, body: own.body.as_ref().filter(|_| wanted), path, credentials: &[] }))
            }
            Described::Api(api) => {
                let below = path.strip_prefix(api.base.as_str()).filter(|rest| rest.starts_with('/') || (rest.is_empty() && !api.base.is_empty()));
                let found = below.and_then(|rest| api.paths.find(if rest.is_empty() { "/" } else { rest }));
                let Some((item, values)) = found else {
                    return if self.rules.pass_unknown { Ok(None) } else { Err(Reply::message(BY, StatusCode::NOT_FOUND, "The path is not described")) };
                };
                let Some(operation) = item.operation(method) else {
                    let mut reply = Reply::message(BY, StatusCode::METHOD_NOT_ALLOWED, "The method is not described for this path");
                    reply.headers.insert(header::ALLOW, item.allow.clone());
                    return Err(reply);
                };
                Ok(Some(Applies { parameters: &operation.parameters, body: operation.body.as_ref(), path: values, credentials: &api.credentials }))
            }
        }
    }

    fn judge(&self, cx: &RequestContext, req: &request::Parts) -> Result<(), Reply> {
        let path = normalize(req.uri.path());
        let Some(applies) = self.find(cx, &req.method, &path)? else { return Ok(()) };
        let asked = Asked::new(req, applies.path);
        let mut problems = Vec::new();
        for parameter in applies.parameters {
            parameter.check(&asked, &mut problems);
        }
        if self.rules.strict_query {
            let known = |name: &str| applies.parameters.iter().any(|p| p.owns_query(name)) || applies.credentials.iter().any(|c| c == name);
            for (name, _) in asked.query.iter().filter(|(name, _)| !known(name)) {
                problems.push(Problem::new("query", Some(name), "this parameter is not described"));
            }
        }
        if let (Some(rule), Some(seen)) = (applies.body, &cx.body) {
            rule.check(&req.headers, seen, self.rules.max_body, &mut problems).map_err(|refused| self.refused(refused, rule))?;
        }
        if problems.is_empty() {
            return Ok(());
        }
        problems.truncate(schema::MOST);
        Err(Reply::json(BY, StatusCode::BAD_REQUEST, &schema::told(INVALID, &problems, self.rules.verbose)))
    }

    fn refused(&self, refused: Refused, rule: &BodyRule) -> Reply {
        match refused {
            Refused::TooLarge => Reply::message(BY, StatusCode::PAYLOAD_TOO_LARGE, &format!("Request body larger than {} bytes", self.rules.max_body)),
            Refused::Unsupported(why) => {
                let mut reply = Reply::message(BY, StatusCode::UNSUPPORTED_MEDIA_TYPE, &why);
                if let Some(accepted) = rule.accepted() {
                    reply.headers.insert(header::ACCEPT, accepted);
                }
                reply
            }
        }
    }
}

/// A preflight (Fetch standard): it describes a request and is none.
fn preflight(req: &request::Parts) -> bool {
    req.method == Method::OPTIONS && req.headers.contains_key(header::ORIGIN) && req.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

impl Plugin for Validation {
    fn phases(&self) -> Phases {
        Phases::REQUEST
    }

    fn reads_body(&self) -> Option<usize> {
        let bodies = match &self.rules.described {
            Described::Here(own) => own.body.is_some(),
            Described::Api(_) => true,
        };
        // One byte more tells a body of just that size from a longer one.
        bodies.then_some(self.rules.max_body.saturating_add(1))
    }

    fn request(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        if preflight(req) {
            return Flow::Continue;
        }
        let judged = self.judge(cx, req);
        self.environment.metrics.plugin(BY, if judged.is_ok() { "valid" } else { "invalid" });
        match judged {
            Ok(()) => Flow::Continue,
            Err(reply) if self.rules.report => {
                let told = String::from_utf8_lossy(&reply.body);
                tracing::warn!(id = %cx.id, status = reply.status.as_u16(), %told, "the request does not fit its description");
                Flow::Continue
            }
            Err(reply) => Flow::Reply(reply),
        }
    }
}

#[cfg(test)]
mod tests;
