//! From a [`Node`] to a struct: a walk against the struct's JSON Schema finds every mistake, then serde makes the value.

use crate::check::Walk;
use crate::de::NodeDe;
use crate::mask::is_secret_key;
use crate::{Diagnostic, Node};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

/// Makes a `T` of a node.
///
/// The struct's own attributes say what is valid: types, `#[serde(default)]`, `deny_unknown_fields`, schemars' `range`,
/// `length`, `regex`. Beyond JSON Schema, a field may say `#[schemars(extend("x-aliases" = ["old_name"]))]` beside serde's
/// `alias`, and [`crate::Millis`], [`crate::Size`] and URLs check themselves by their `format`.
///
/// Lenient where YAML users expect it: a number where a text is wanted is the text as written; a whole float is an integer;
/// numbers and booleans may come out of `${NAME}`; plain `yes`, `no`, `on`, `off` are booleans where one is wanted; null is as
/// good as absent.
///
/// # Errors
/// Every mistake, with its place. The list is empty when the only mistakes are ones that are reported already (a variable that is
/// not set).
pub fn decode<T: DeserializeOwned + JsonSchema>(node: &Node) -> Result<T, Vec<Diagnostic>> {
    let schema = cached_schema::<T>();
    let found = Walk::new(&schema).run(node);
    if !found.is_empty() {
        return Err(found);
    }
    match T::deserialize(NodeDe(node)) {
        Ok(value) => Ok(value),
        Err(_) if node.has_broken_part() => Err(vec![]),
        Err(error) => {
            let span = error.span.as_ref().unwrap_or(node.span());
            let message = if error.secret { "this value is not valid".to_string() } else { first_line(&error.message) };
            Err(vec![Diagnostic::error("value", span, message)])
        }
    }
}

/// The mistakes that [`decode`] would report, without the value.
pub fn check<T: DeserializeOwned + JsonSchema>(node: &Node) -> Vec<Diagnostic> {
    decode::<T>(node).err().unwrap_or_default()
}

/// The JSON Schema (draft 2020-12) of a type, as [`decode`] uses it.
pub fn schema<T: JsonSchema>() -> Value {
    (*cached_schema::<T>()).clone()
}

/// Schemas are made once per type: a file with thousands of plugins decodes the same few types again and again.
fn cached_schema<T: JsonSchema>() -> Arc<Value> {
    static CACHE: LazyLock<Mutex<HashMap<String, Arc<Value>>>> = LazyLock::new(Mutex::default);
    // `schema_id` alone takes two types of the same name in two functions of a module for one.
    let key = format!("{} {}", std::any::type_name::<T>(), T::schema_id());
    let mut cache = CACHE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(known) = cache.get(&key) {
        return known.clone();
    }
    let made = Arc::new(schemars::generate::SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>().to_value());
    cache.insert(key, made.clone());
    made
}

fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or("not valid").to_string()
}

/// A value as a message may quote it: short, and not if it may be a secret.
pub(crate) fn quoted(node: &Node, key: Option<&str>) -> Option<String> {
    if node.source().expanded || key.is_some_and(is_secret_key) {
        return None;
    }
    let text = node.text()?;
    (!text.is_empty() && text.chars().count() <= 60 && !text.contains(['\n', '`']) && !text.contains("://")).then(|| format!("`{text}`"))
}
