//! Bodies: which types may be sent, how they are read, and what their schemas say.

use super::schema::{Problem, Schema};
use http::{HeaderMap, HeaderValue, header};
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::{fmt, sync::Arc};
use weir_gateway::context::SeenBody;

/// What a request may carry.
#[derive(Default)]
pub(super) struct BodyRule {
    /// A body must be there.
    pub required: bool,
    /// Media types, the most specific first, each with the schema of what it carries.
    pub types: Vec<(MediaRange, Option<Arc<Schema>>)>,
}

/// `type/subtype`, `type/*` or `*/*`, lower case, without parameters.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct MediaRange {
    pub text: String,
    /// How much of it must be the same; the whole for `type/subtype`.
    prefix: usize,
    suffix: Option<usize>,
}

impl MediaRange {
    /// `None` where it is no media type.
    pub fn parse(text: &str) -> Option<MediaRange> {
        let text = essence(text);
        let (kind, sub) = text.split_once('/')?;
        let good = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&^_.+-*".contains(&b));
        if !good(kind) || !good(sub) || sub.contains('/') || (kind == "*" && sub != "*") {
            return None;
        }
        let (prefix, suffix) = match sub.split_once('*') {
            _ if kind == "*" => (0, Some(0)),
            Some((before, after)) => (kind.len() + 1 + before.len(), Some(after.len())),
            None => (text.len(), None),
        };
        Some(MediaRange { text, prefix, suffix })
    }

    pub fn holds(&self, essence: &str) -> bool {
        match self.suffix {
            None => self.text == essence,
            Some(suffix) => {
                let ends = &self.text[self.text.len() - suffix..];
                essence.len() >= self.prefix + suffix && essence.starts_with(&self.text[..self.prefix]) && essence.ends_with(ends)
            }
        }
    }

    /// Sorts the most specific first.
    pub fn order(&self) -> std::cmp::Reverse<(bool, usize)> {
        std::cmp::Reverse((self.suffix.is_none(), self.prefix))
    }
}

/// A media type without its parameters, lower case.
pub(super) fn essence(text: &str) -> String {
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Why a body is not looked at any further.
#[derive(Debug, PartialEq)]
pub(super) enum Refused {
    TooLarge,
    /// What is wrong with its type or coding.
    Unsupported(String),
}

impl BodyRule {
    /// Adds what is wrong with a body.
    pub fn check(&self, headers: &HeaderMap, seen: &SeenBody, most: usize, problems: &mut Vec<Problem>) -> Result<(), Refused> {
        if seen.whole && seen.bytes.is_empty() {
            if self.required {
                problems.push(Problem::new("body", None, "a body is required"));
            }
            return Ok(());
        }
        if !seen.whole || seen.bytes.len() > most {
            return Err(Refused::TooLarge);
        }
        let mut kinds = headers.get_all(header::CONTENT_TYPE).iter();
        let kind = match (kinds.next(), kinds.next()) {
            (Some(kind), None) => kind,
            (None, _) => return Err(Refused::Unsupported(format!("Content-Type is missing; accepted: {}", self.listed()))),
            _ => return Err(Refused::Unsupported("Content-Type stands there more than once".into())),
        };
        let text = kind.to_str().unwrap_or_default();
        let essence = essence(text);
        let Some((_, schema)) = self.types.iter().find(|(range, _)| range.holds(&essence)) else {
            return Err(Refused::Unsupported(format!("Content-Type is not accepted; accepted: {}", self.listed())));
        };
        let Some(schema) = schema else { return Ok(()) };
        let json = essence == "application/json" || essence.ends_with("+json");
        let form = essence == "application/x-www-form-urlencoded";
        if !json && !form {
            return Ok(());
        }
        // What cannot be read cannot be checked, and must not slip by.
        if headers.get_all(header::CONTENT_ENCODING).iter().any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return Err(Refused::Unsupported("a body with a Content-Encoding can not be checked".into()));
        }
        if charset(text).is_some_and(|charset| !charset.eq_ignore_ascii_case("utf-8") && !charset.eq_ignore_ascii_case("us-ascii")) {
            return Err(Refused::Unsupported("only charset=utf-8 is accepted".into()));
        }
        let value = if json { read_json(&seen.bytes) } else { read_form(&seen.bytes, schema) };
        match value {
            Ok(value) => schema.check(&value, "body", None, problems),
            Err(why) => problems.push(Problem::new("body", None, why)),
        }
        Ok(())
    }

    fn listed(&self) -> String {
        self.types.iter().map(|(range, _)| range.text.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// For `Accept` of a refusal (RFC 9110 section 15.5.16).
    pub fn accepted(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&self.listed()).ok()
    }
}

fn charset(kind: &str) -> Option<&str> {
    kind.split(';').skip(1).filter_map(|p| p.split_once('=')).find(|(name, _)| name.trim().eq_ignore_ascii_case("charset")).map(|(_, value)| value.trim().trim_matches('"'))
}

fn read_form(bytes: &[u8], schema: &Schema) -> Result<Value, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "this is not UTF-8")?;
    let pairs: Vec<(String, Option<String>)> = crate::pairs::read(text).collect();
    schema.shape().map(pairs.iter().map(|(name, value)| (name.as_str(), value.as_deref().unwrap_or_default())))
}

/// JSON in which no object has a member twice: of two readers each might take another one.
pub(super) fn read_json(bytes: &[u8]) -> Result<Value, String> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Strict.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    value.map_err(|error| match error.classify() {
        serde_json::error::Category::Data => plain(&error),
        _ => format!("this is not JSON: {}", plain(&error)),
    })
}

/// The message as it is; the place that serde_json adds counts in the client's own text.
fn plain(error: &serde_json::Error) -> String {
    error.to_string()
}

struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Strict)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let value = members.next_value_seed(Strict)?;
            if object.contains_key(&name) {
                return Err(de::Error::custom("an object has a member twice"));
            }
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}
