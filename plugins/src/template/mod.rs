//! Templates in the values of `request-transformer`: text with `$(…)` in it, where `…` is one of the small expressions that real
//! configurations use. Kong runs Lua there; this reads a fixed language, so that a configuration can not run code.
//!
//! ```text
//! or    = and  { "or" and }          path = root { "." name | "[" text or number "]" }
//! and   = equal { "and" equal }      root = headers | query_params | uri_captures | shared | consumer | claims | client
//! equal = join [ ("==" | "~=") join ]
//! join  = unary { ".." unary }       unary = [ "not" ] value { call }
//! value = path | 'text' | number | true | false | nil | "(" or ")"
//! call  = ":" ( "sub" "(" number [ "," number ] ")" | ( "lower" | "upper" ) "(" ")" | "gsub" "(" 'text' "," 'text' ")" )
//! ```

mod parse;

use http::HeaderMap;
use parse::{Parser, closing};
use serde_json::Value;
use std::borrow::Cow;
use weir_gateway::RequestContext;

/// A compiled template.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(String),
    Expr(Expr),
}

#[derive(Debug, Clone, PartialEq)]
enum Expr {
    Path(Root, Vec<String>),
    Constant(Value),
    Or(Box<Expr>, Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Equal(Box<Expr>, Box<Expr>),
    Join(Box<Expr>, Box<Expr>),
    Not(Box<Expr>),
    Call(Box<Expr>, Call),
}

/// A method of Lua's strings.
#[derive(Debug, Clone, PartialEq)]
enum Call {
    /// `sub(first, last)`, counted from 1; negative numbers count from the end.
    Sub(i64, i64),
    Lower,
    Upper,
    /// `gsub(old, new)` of a text without patterns.
    Replace(String, String),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Root {
    Headers,
    Query,
    Captures,
    Shared,
    Consumer,
    Claims,
    Client,
}

/// What a template reads from.
#[derive(Clone, Copy)]
pub(crate) struct Vars<'a> {
    pub cx: &'a RequestContext,
    pub headers: &'a HeaderMap,
    pub query: Option<&'a str>,
}

impl Template {
    /// Compiles a template.
    ///
    /// Errors: what is wrong, as half a sentence.
    pub fn parse(text: &str) -> Result<Template, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find("$(") {
            if at > 0 {
                parts.push(Part::Text(rest[..at].into()));
            }
            let inner = &rest[at + 2..];
            let end = closing(inner).ok_or("`$(` has no `)`")?;
            parts.push(Part::Expr(Parser::new(&inner[..end])?.whole()?));
            rest = &inner[end + 1..];
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.into()));
        }
        Ok(Template(parts))
    }

    /// The text for a request; what is absent is an empty text.
    pub fn render(&self, vars: &Vars<'_>) -> String {
        self.render_with(vars, |text| Cow::Borrowed(text))
    }

    /// The same, with `guard` applied to what comes from the request (not to the text of the configuration).
    pub fn render_with(&self, vars: &Vars<'_>, guard: impl Fn(&str) -> Cow<'_, str>) -> String {
        let mut out = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Expr(expr) => out.push_str(&guard(&shown(&expr.value(vars)))),
            }
        }
        out
    }

    /// The text of the configuration in it.
    pub fn literals(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|p| if let Part::Text(text) = p { Some(text.as_str()) } else { None })
    }

    /// Whether it reads something by which one visitor differs from another, other than path and query.
    pub fn is_personal(&self) -> bool {
        self.0.iter().any(|p| matches!(p, Part::Expr(e) if e.is_personal()))
    }
}

impl Expr {
    fn value(&self, vars: &Vars<'_>) -> Value {
        match self {
            Expr::Constant(value) => value.clone(),
            Expr::Path(root, keys) => look_up(*root, keys, vars).unwrap_or(Value::Null),
            Expr::Or(a, b) => Some(a.value(vars)).filter(holds).unwrap_or_else(|| b.value(vars)),
            Expr::And(a, b) => {
                let first = a.value(vars);
                if holds(&first) { b.value(vars) } else { first }
            }
            Expr::Equal(a, b) => Value::Bool(a.value(vars) == b.value(vars)),
            Expr::Join(a, b) => Value::String(shown(&a.value(vars)) + &shown(&b.value(vars))),
            Expr::Not(a) => Value::Bool(!holds(&a.value(vars))),
            // Lua would stop at nil; here what is absent stays absent.
            Expr::Call(a, call) => match a.value(vars) {
                Value::Null => Value::Null,
                value => Value::String(call.apply(&shown(&value))),
            },
        }
    }

    fn is_personal(&self) -> bool {
        match self {
            Expr::Path(root, _) => !matches!(root, Root::Query | Root::Captures),
            Expr::Constant(_) => false,
            Expr::Or(a, b) | Expr::And(a, b) | Expr::Equal(a, b) | Expr::Join(a, b) => a.is_personal() || b.is_personal(),
            Expr::Not(a) | Expr::Call(a, _) => a.is_personal(),
        }
    }
}

impl Call {
    fn apply(&self, text: &str) -> String {
        match self {
            Call::Lower => text.to_ascii_lowercase(),
            Call::Upper => text.to_ascii_uppercase(),
            Call::Replace(old, new) => text.replace(old, new),
            // Lua counts bytes; a character that is cut in two could not be sent.
            Call::Sub(first, last) => {
                let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
                let from_start = |at: i64| if at < 0 { length.saturating_add(at).saturating_add(1) } else { at };
                let (first, last) = (from_start(*first).max(1), from_start(*last).min(length));
                let count = last.saturating_sub(first).saturating_add(1).max(0);
                text.chars().skip(usize::try_from(first - 1).unwrap_or(0)).take(usize::try_from(count).unwrap_or(0)).collect()
            }
        }
    }
}

/// As in Lua, all but nil and false hold.
fn holds(value: &Value) -> bool {
    !matches!(value, Value::Null | Value::Bool(false))
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// What lies further in.
fn inside(mut value: &Value, keys: &[String]) -> Option<Value> {
    for key in keys {
        value = match value {
            Value::Array(items) => items.get(key.parse::<usize>().ok()?.checked_sub(1)?)?,
            other => other.get(key)?,
        };
    }
    Some(value.clone())
}

fn look_up(root: Root, keys: &[String], vars: &Vars<'_>) -> Option<Value> {
    let (first, more) = keys.split_first()?;
    let many = |values: Vec<String>| -> Option<Value> {
        // Lua counts from 1.
        let index = match more.first() {
            Some(n) => n.parse::<usize>().ok()?.checked_sub(1)?,
            None => 0,
        };
        values.into_iter().nth(index).map(Value::String)
    };
    match root {
        Root::Headers => {
            let name = first.to_ascii_lowercase().replace('_', "-");
            many(vars.headers.get_all(&name).iter().map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()).collect())
        }
        Root::Query => many(crate::pairs::read(vars.query.unwrap_or("")).filter(|(name, _)| name == first).map(|(_, v)| v.unwrap_or_else(|| "true".into())).collect()),
        Root::Captures => {
            let captures = vars.cx.captures.as_ref()?;
            let text = match first.parse::<usize>() {
                Ok(group) => captures.get(group),
                Err(_) => captures.name(first),
            };
            text.map(|t| Value::String(t.into()))
        }
        Root::Shared => inside(vars.cx.shared.get(first)?, more),
        Root::Claims => inside(vars.cx.identity.as_ref()?.claims.as_ref()?.get(first)?, more),
        Root::Client => Some(Value::String(vars.cx.client.ip.to_string())),
        Root::Consumer => {
            let consumer = &vars.cx.consumer.as_ref()?.entity;
            match first.as_str() {
                "id" => Some(consumer.id.clone()),
                "username" => consumer.username.clone(),
                _ => consumer.custom_id.clone(),
            }
            .map(Value::String)
        }
    }
}

#[cfg(test)]
mod tests;
