//! Parameters in path, query, headers and cookies: how they are written (OpenAPI's styles), and what their schemas say.

use super::{
    body::read_json,
    schema::{Problem, Schema, Shape},
};
use http::{HeaderName, request};
use percent_encoding::percent_decode_str;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

/// Where a parameter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// In the path.
    Path,
    /// In the query.
    Query,
    /// In a header.
    Header,
    /// In a cookie.
    Cookie,
}

impl Place {
    pub(super) fn word(self) -> &'static str {
        match self {
            Place::Path => "path",
            Place::Query => "query",
            Place::Header => "header",
            Place::Cookie => "cookie",
        }
    }
}

/// How lists and objects are written in a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Style {
    /// `a,b`: path and headers.
    Simple,
    /// `.a.b`: path.
    Label,
    /// `;name=a,b`: path.
    Matrix,
    /// `name=a&name=b` or `name=a,b`: query and cookies.
    Form,
    /// `name=a%20b`: query.
    SpaceDelimited,
    /// `name=a|b`: query.
    PipeDelimited,
    /// `name[member]=a`: query.
    DeepObject,
}

/// A parameter, ready to be read.
pub(super) struct Parameter {
    pub place: Place,
    pub name: String,
    /// Its field, for one in a header.
    header: Option<HeaderName>,
    pub required: bool,
    style: Style,
    explode: bool,
    /// The value is JSON.
    json: bool,
    schema: Option<Schema>,
}

/// What a parameter is made of.
pub(super) struct Made {
    pub place: Place,
    pub name: String,
    pub required: bool,
    pub style: Option<Style>,
    pub explode: Option<bool>,
    pub json: bool,
    pub schema: Option<Schema>,
}

impl Parameter {
    /// Errors: what does not go together.
    pub fn new(made: Made) -> Result<Parameter, String> {
        let Made { place, name, required, style, explode, json, schema } = made;
        let usual = match place {
            Place::Path | Place::Header => Style::Simple,
            Place::Query | Place::Cookie => Style::Form,
        };
        let style = style.unwrap_or(usual);
        let fits = match place {
            Place::Path => matches!(style, Style::Simple | Style::Label | Style::Matrix),
            Place::Query => matches!(style, Style::Form | Style::SpaceDelimited | Style::PipeDelimited | Style::DeepObject),
            Place::Header => style == Style::Simple,
            Place::Cookie => style == Style::Form,
        };
        if !fits {
            return Err(format!("this style is not for a parameter in a {}", place.word()));
        }
        let header = match place {
            Place::Header => Some(HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("`{}` is not a header name", name.escape_debug()))?),
            _ => None,
        };
        // Kong and OpenAPI: `form` explodes unless told otherwise.
        let explode = explode.unwrap_or(matches!(style, Style::Form | Style::DeepObject));
        Ok(Parameter { place, name, header, required, style, explode, json, schema })
    }

    /// Adds what is wrong with the parameter in this request.
    pub fn check(&self, asked: &Asked<'_>, problems: &mut Vec<Problem>) {
        let place = self.place.word();
        match self.read(asked) {
            Ok(Some(value)) => {
                if let Some(schema) = &self.schema {
                    schema.check(&value, place, Some(&self.name), problems);
                }
            }
            Ok(None) if self.required => problems.push(Problem::new(place, Some(&self.name), "this parameter is required")),
            Ok(None) => {}
            Err(why) => problems.push(Problem::new(place, Some(&self.name), why)),
        }
    }

    fn read(&self, asked: &Asked<'_>) -> Result<Option<Value>, String> {
        let none = Shape::default();
        let shape = self.schema.as_ref().map_or(&none, Schema::shape);
        // A text may be a scalar as well: `anyOf: [{type: array}, {type: string}]` is read as a list.
        let spread = !self.json && (shape.array || shape.object);
        match self.place {
            Place::Query if spread => self.spread_query(&asked.query, shape),
            Place::Query => {
                let values: Vec<&str> = asked.query.iter().filter(|(name, _)| *name == self.name).map(|(_, raw)| *raw).collect();
                self.one(&values, shape, decoded)
            }
            Place::Path => {
                let value = asked.path.iter().find(|(name, _)| *name == self.name).map(|(_, raw)| *raw);
                let Some(raw) = value else { return Ok(None) };
                let raw = match self.style {
                    Style::Label => raw.strip_prefix('.').ok_or("a `.` is missing at the beginning")?,
                    Style::Matrix => return self.matrix(raw, shape),
                    _ => raw,
                };
                let separator = if self.style == Style::Label && self.explode { '.' } else { ',' };
                if spread { self.separated(raw, separator, shape, decoded).map(Some) } else { self.one(&[raw], shape, decoded) }
            }
            Place::Header => {
                let Some(header) = &self.header else { return Ok(None) };
                let values: Vec<&str> = asked.parts.headers.get_all(header).iter().map(|v| v.to_str().map_err(|_| "this is not plain ASCII")).collect::<Result<_, _>>()?;
                match values.as_slice() {
                    [] => Ok(None),
                    several if spread => self.separated(&several.join(","), ',', shape, trimmed).map(Some),
                    several => self.one(several, shape, trimmed),
                }
            }
            Place::Cookie => {
                let values: Vec<&str> = crate::cookies::named(&asked.parts.headers, &self.name).collect();
                match values.as_slice() {
                    [] => Ok(None),
                    [value] if spread => self.separated(value, ',', shape, decoded).map(Some),
                    several => self.one(several, shape, decoded),
                }
            }
        }
    }

    fn one(&self, raw: &[&str], shape: &Shape, plain: fn(&str) -> String) -> Result<Option<Value>, String> {
        match raw {
            [] => Ok(None),
            [value] if self.json => read_json(plain(value).as_bytes()).map(Some),
            [value] => Ok(Some(shape.scalar(&plain(value)))),
            // Two readers might take different ones.
            _ => Err("this stands there more than once".into()),
        }
    }

    fn separated(&self, raw: &str, separator: char, shape: &Shape, plain: fn(&str) -> String) -> Result<Value, String> {
        let pieces: Vec<String> = if raw.is_empty() { vec![] } else { raw.split(separator).map(plain).collect() };
        if shape.array {
            return Ok(shape.list(pieces.iter().map(String::as_str)));
        }
        if self.explode {
            let pairs: Option<Vec<_>> = pieces.iter().map(|piece| piece.split_once('=')).collect();
            return shape.map(pairs.ok_or("this is not `name=value`, separated by commas")?.into_iter());
        }
        if pieces.len() % 2 == 1 {
            return Err("names and values are wanted in turn, separated by commas".into());
        }
        shape.map(pieces.chunks_exact(2).map(|pair| (pair[0].as_str(), pair[1].as_str())))
    }

    /// `;id=5`, `;id=3,4`, `;id=3;id=4`.
    fn matrix(&self, raw: &str, shape: &Shape) -> Result<Option<Value>, String> {
        let rest = raw.strip_prefix(';').ok_or("a `;` is missing at the beginning")?;
        let pairs: Vec<(&str, &str)> = rest.split(';').map(|piece| piece.split_once('=').unwrap_or((piece, ""))).collect();
        if self.explode && shape.object && !shape.array {
            let pairs: Vec<(String, String)> = pairs.iter().map(|(name, value)| (decoded(name), decoded(value))).collect();
            return shape.map(pairs.iter().map(|(name, value)| (name.as_str(), value.as_str()))).map(Some);
        }
        if pairs.iter().any(|(name, _)| decoded(name) != self.name) {
            return Err(format!("`;{}=` is wanted", self.name));
        }
        match pairs.as_slice() {
            several if self.explode && shape.array => {
                let values: Vec<String> = several.iter().map(|(_, value)| decoded(value)).collect();
                Ok(Some(shape.list(values.iter().map(String::as_str))))
            }
            [(_, value)] if shape.array || shape.object => self.separated(value, ',', shape, decoded).map(Some),
            several => self.one(&several.iter().map(|(_, value)| *value).collect::<Vec<_>>(), shape, decoded),
        }
    }

    /// Lists and objects in the query.
    fn spread_query(&self, query: &[(String, &str)], shape: &Shape) -> Result<Option<Value>, String> {
        if self.style == Style::DeepObject {
            let member = |name: &str| Some(name.strip_prefix(&*self.name)?.strip_prefix('[')?.strip_suffix(']')?.to_owned());
            let pairs: Vec<(String, String)> = query.iter().filter_map(|(name, raw)| Some((member(name)?, decoded(raw)))).collect();
            return if pairs.is_empty() { Ok(None) } else { shape.map(pairs.iter().map(|(n, v)| (n.as_str(), v.as_str()))).map(Some) };
        }
        let explodes = self.style == Style::Form && self.explode;
        if explodes && shape.object && !shape.array {
            // The members stand in the query as themselves.
            let pairs: Vec<(&str, String)> = query.iter().filter(|(name, _)| shape.members.contains_key(name)).map(|(name, raw)| (name.as_str(), decoded(raw))).collect();
            return if pairs.is_empty() { Ok(None) } else { shape.map(pairs.iter().map(|(n, v)| (*n, v.as_str()))).map(Some) };
        }
        let values: Vec<&str> = query.iter().filter(|(name, _)| *name == self.name).map(|(_, raw)| *raw).collect();
        match (values.as_slice(), self.style) {
            ([], _) => Ok(None),
            (several, _) if explodes || (self.explode && shape.array) => {
                let texts: Vec<String> = several.iter().map(|raw| decoded(raw)).collect();
                Ok(Some(shape.list(texts.iter().map(String::as_str))))
            }
            ([raw], Style::SpaceDelimited) => self.separated(&raw.replace("%20", "+"), '+', shape, decoded).map(Some),
            ([raw], Style::PipeDelimited) => self.separated(&raw.replace("%7C", "|").replace("%7c", "|"), '|', shape, decoded).map(Some),
            ([raw], _) => self.separated(raw, ',', shape, decoded).map(Some),
            _ => Err("this stands there more than once".into()),
        }
    }

    /// Whether a name of the query belongs to this parameter.
    pub fn owns_query(&self, name: &str) -> bool {
        if self.place != Place::Query {
            return false;
        }
        let shape = self.schema.as_ref().map(Schema::shape);
        match (self.style, shape) {
            (Style::DeepObject, _) => name.strip_prefix(&*self.name).is_some_and(|rest| rest.starts_with('[')),
            (Style::Form, Some(shape)) if self.explode && shape.object && !shape.array && !self.json => shape.members.contains_key(name),
            _ => name == self.name,
        }
    }
}

fn decoded(raw: &str) -> String {
    percent_decode_str(&raw.replace('+', " ")).decode_utf8_lossy().into_owned()
}

fn trimmed(raw: &str) -> String {
    raw.trim().into()
}

/// A request as parameters see it.
pub(super) struct Asked<'a> {
    pub parts: &'a request::Parts,
    /// Names, decoded, with their values as they were sent.
    pub query: Vec<(String, &'a str)>,
    /// Values of the path's parameters as they were sent.
    pub path: Vec<(&'a str, &'a str)>,
}

impl<'a> Asked<'a> {
    pub fn new(parts: &'a request::Parts, path: Vec<(&'a str, &'a str)>) -> Asked<'a> {
        let query = parts.uri.query().unwrap_or_default();
        let pair = |piece: &'a str| {
            let (name, value) = piece.split_once('=').unwrap_or((piece, ""));
            (decoded(name), value)
        };
        Asked { parts, query: query.split('&').filter(|piece| !piece.is_empty()).map(pair).collect(), path }
    }
}
