//! A walk of a [`Node`] against a JSON Schema as schemars makes it; every mistake is reported.

use crate::de::{lenient_bool, lenient_number};
use crate::decode::quoted;
use crate::node::Kind;
use crate::scalars::check_format;
use crate::words::{MOST_HINTS, did_you_mean, listed, nearest};
use crate::{Diagnostic, Node};
use serde_json::{Map, Value};
use std::collections::HashMap;

pub(crate) struct Walk<'a> {
    root: &'a Value,
}

/// Definitions refer to each other this many times in a row at most.
const LONGEST_CHAIN: usize = 16;

/// The keys that a mapping may have, gathered over `properties`, `$ref` and the branches of a choice.
#[derive(Default)]
struct Keys<'a> {
    /// Each name with its schema.
    known: Vec<(&'a str, &'a Value)>,
    /// Older name to name.
    aliases: HashMap<&'a str, &'a str>,
}

impl<'a> Walk<'a> {
    pub fn new(root: &'a Value) -> Self {
        Walk { root }
    }

    pub fn run(&self, node: &Node) -> Vec<Diagnostic> {
        let mut found = Vec::new();
        self.value(node, self.root, None, &mut found);
        found
    }

    /// Follows `$ref`s.
    fn resolve(&self, schema: &'a Value) -> &'a Value {
        let mut schema = schema;
        for _ in 0..LONGEST_CHAIN {
            let Some(reference) = schema.get("$ref").and_then(Value::as_str) else { break };
            let target = reference.strip_prefix('#').and_then(|pointer| if pointer.is_empty() { Some(self.root) } else { self.root.pointer(pointer) });
            match target {
                Some(target) => schema = target,
                None => break,
            }
        }
        schema
    }

    /// Checks one value. `key`: the key it stands under.
    fn value(&self, node: &Node, schema: &'a Value, key: Option<&str>, found: &mut Vec<Diagnostic>) {
        let outer = schema;
        let schema = self.resolve(schema);
        let Value::Object(rules) = schema else {
            if schema == &Value::Bool(false) {
                found.push(Diagnostic::error("unknown-key", node.span(), "nothing may stand here"));
            }
            return;
        };
        if node.source().broken {
            return;
        }
        for list in ["oneOf", "anyOf"] {
            if let Some(Value::Array(branches)) = rules.get(list) {
                self.choice(node, branches, key, found);
            }
        }
        if let Some(Value::Array(all)) = rules.get("allOf") {
            for part in all {
                self.value(node, part, key, found);
            }
        }
        let before = found.len();
        self.kind(node, rules, key, found);
        if found.len() > before {
            return;
        }
        match node.kind() {
            Kind::Map(_) => self.mapping(node, schema, rules, found),
            Kind::Seq(_) => self.list(node, rules, key, found),
            Kind::Null => {}
            _ => {
                self.scalar(node, rules, key, found);
                // schemars may put constraints beside a `$ref`.
                if let (Value::Object(beside), false) = (outer, std::ptr::eq(outer, schema)) {
                    self.scalar(node, beside, key, found);
                }
            }
        }
    }

    fn types(rules: &'a Map<String, Value>) -> Vec<&'a str> {
        match rules.get("type") {
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
            _ => vec![],
        }
    }

    fn fits(node: &Node, wanted: &str) -> bool {
        match wanted {
            "null" => node.is_null(),
            "boolean" => lenient_bool(node).is_some(),
            "integer" => matches!(lenient_number(node), Some(Kind::Int(_))),
            "number" => matches!(lenient_number(node), Some(Kind::Int(_))) || matches!(lenient_number(node), Some(Kind::Float(f)) if f.is_finite()),
            "string" => matches!(node.kind(), Kind::String(_) | Kind::Int(_) | Kind::Float(_)),
            "array" => matches!(node.kind(), Kind::Seq(_)),
            "object" => matches!(node.kind(), Kind::Map(_)),
            _ => true,
        }
    }

    /// The type, and the list of allowed values.
    fn kind(&self, node: &Node, rules: &'a Map<String, Value>, key: Option<&str>, found: &mut Vec<Diagnostic>) {
        if let Some(words) = allowed_values(rules) {
            if !words.iter().any(|word| same(node, word)) {
                let words: Vec<String> = words.iter().map(|word| word_text(word)).collect();
                found.push(not_one_of(node, &words, key));
            }
            return;
        }
        let types = Self::types(rules);
        if types.is_empty() || types.iter().any(|wanted| Self::fits(node, wanted)) {
            return;
        }
        let format = rules.get("format").and_then(Value::as_str).unwrap_or("");
        let wanted = match format {
            "weir-duration" => "a duration like `60s`".to_string(),
            "weir-size" => "a size like `2MB`".to_string(),
            "weir-ttl" => "a duration like `60s`, or `origin`,".to_string(),
            "weir-url" => "a URL".to_string(),
            _ => article_list(&types),
        };
        found.push(wrong_type(node, &wanted, &types, key));
    }

    fn scalar(&self, node: &Node, rules: &'a Map<String, Value>, key: Option<&str>, found: &mut Vec<Diagnostic>) {
        let text = node.scalar_text();
        let types = Self::types(rules);
        if let Some(format) = rules.get("format").and_then(Value::as_str)
            && let Some(result) = check_format(format, &text)
        {
            if let Err(why) = result {
                // What came from the environment may be a secret in the wrong place.
                let why = if node.source().expanded { without_quotes(&why) } else { why };
                found.push(Diagnostic::error("value", node.span(), why));
            }
            return;
        }
        let numeric = types.iter().any(|t| matches!(*t, "integer" | "number"));
        if numeric && let Some(number) = lenient_number(node) {
            self.range(node, &number, rules, found);
            return;
        }
        let length = text.chars().count() as u64;
        if let Some(least) = rules.get("minLength").and_then(Value::as_u64).filter(|least| length < *least) {
            let message = if least == 1 { "this is empty".to_string() } else { format!("this is shorter than {least} characters") };
            found.push(Diagnostic::error("value", node.span(), message));
        }
        if let Some(most) = rules.get("maxLength").and_then(Value::as_u64).filter(|most| length > *most) {
            found.push(Diagnostic::error("value", node.span(), format!("this is longer than {most} characters")));
        }
        if let Some(pattern) = rules.get("pattern").and_then(Value::as_str)
            && let Ok(regex) = regex::Regex::new(pattern)
            && !regex.is_match(&text)
        {
            let secret = rules.get("format").and_then(Value::as_str) == Some("password");
            let shown = quoted(node, key).filter(|_| !secret).unwrap_or_else(|| "this".into());
            let hint = rules.get("examples").and_then(|e| e.get(0)).map(|example| format!("an example: `{}`", word_text(example)));
            let beginning = pattern.strip_prefix('^').filter(|rest| !rest.is_empty() && regex::escape(rest) == **rest);
            let message = match beginning {
                Some(beginning) => format!("{shown} does not begin with `{beginning}`"),
                None => format!("{shown} does not match `{pattern}`"),
            };
            found.push(Diagnostic::error("value", node.span(), message).maybe_hint(hint));
        }
    }

    fn range(&self, node: &Node, number: &Kind, rules: &'a Map<String, Value>, found: &mut Vec<Diagnostic>) {
        let value = match number {
            Kind::Int(value) => *value as f64,
            Kind::Float(value) => *value,
            _ => return,
        };
        let bound = |name: &str| rules.get(name).and_then(Value::as_f64);
        // `u16` and its kin bound by their name; schemars spells the bounds out for the small ones only.
        let by_format = match rules.get("format").and_then(Value::as_str) {
            Some("uint8") => Some((0.0, 255.0)),
            Some("uint16") => Some((0.0, 65_535.0)),
            Some("uint32") => Some((0.0, 4_294_967_295.0)),
            Some("uint64" | "uint") => Some((0.0, 1.8e19)),
            Some("int8") => Some((-128.0, 127.0)),
            Some("int16") => Some((-32_768.0, 32_767.0)),
            Some("int32") => Some((-2_147_483_648.0, 2_147_483_647.0)),
            Some("int64" | "int") => Some((-9.2e18, 9.2e18)),
            _ => None,
        };
        let least = bound("minimum").into_iter().chain(by_format.map(|b| b.0)).reduce(f64::max);
        let most = bound("maximum").into_iter().chain(by_format.map(|b| b.1)).reduce(f64::min);
        let message = match (least, most) {
            (Some(least), Some(most)) if value < least || value > most => Some(if most > 1e15 {
                format!("this must be at least {}", plain(least))
            } else {
                format!("this must be from {} to {}", plain(least), plain(most))
            }),
            (Some(least), None) if value < least => Some(format!("this must be at least {}", plain(least))),
            (None, Some(most)) if value > most => Some(format!("this must be at most {}", plain(most))),
            _ => match (bound("exclusiveMinimum"), bound("exclusiveMaximum")) {
                (Some(least), _) if value <= least => Some(format!("this must be more than {}", plain(least))),
                (_, Some(most)) if value >= most => Some(format!("this must be less than {}", plain(most))),
                _ => None,
            },
        };
        if let Some(message) = message {
            found.push(Diagnostic::error("value", node.span(), message));
        }
    }

    fn list(&self, node: &Node, rules: &'a Map<String, Value>, key: Option<&str>, found: &mut Vec<Diagnostic>) {
        let items = node.items();
        let prefix = rules.get("prefixItems").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        for (index, item) in items.iter().enumerate() {
            match (prefix.get(index), rules.get("items")) {
                (Some(schema), _) | (None, Some(schema)) => self.value(item, schema, key, found),
                (None, None) => {}
            }
        }
        let count = items.len() as u64;
        if let Some(least) = rules.get("minItems").and_then(Value::as_u64).filter(|least| count < *least) {
            let message = if least == 1 { "this list is empty".to_string() } else { format!("this list needs at least {least} items") };
            found.push(Diagnostic::error("value", node.span(), message));
        }
        if let Some(most) = rules.get("maxItems").and_then(Value::as_u64).filter(|most| count > *most) {
            found.push(Diagnostic::error("value", node.span(), format!("this list may have {most} items at most")));
        }
        if rules.get("uniqueItems") == Some(&Value::Bool(true)) {
            let mut seen = std::collections::HashSet::new();
            for item in items {
                if let Some(text) = item.text().filter(|text| !seen.insert(text.clone())) {
                    let _ = text;
                    found.push(Diagnostic::error("value", item.span(), "this item stands in the list twice"));
                }
            }
        }
    }

    fn mapping(&self, node: &Node, schema: &'a Value, rules: &'a Map<String, Value>, found: &mut Vec<Diagnostic>) {
        let mut keys = Keys::default();
        self.gather(schema, &mut keys, LONGEST_CHAIN);
        let closed = rules.get("additionalProperties") == Some(&Value::Bool(false)) || rules.get("unevaluatedProperties") == Some(&Value::Bool(false));
        let own = rules.get("properties").and_then(Value::as_object);
        let additional = rules.get("additionalProperties").filter(|schema| schema.is_object());
        let patterns: Vec<(regex::Regex, &'a Value)> = rules
            .get("patternProperties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter_map(|(pattern, schema)| Some((regex::Regex::new(pattern).ok()?, schema)))
            .collect();
        let mut meant: Vec<&str> = Vec::new();
        let mut strangers = 0;
        for (key, value) in node.entries() {
            let name = keys.aliases.get(key.name.as_str()).copied().unwrap_or(&key.name);
            if let Some(names) = rules.get("propertyNames") {
                let as_node = Node::at(key.span.clone(), Kind::String(key.name.clone()));
                self.value(&as_node, names, None, found);
            }
            if let Some(schema) = own.and_then(|own| own.get(name)) {
                // Null is as good as absent, whatever the type.
                if !value.is_null() {
                    self.value(value, schema, Some(&key.name), found);
                }
                continue;
            }
            let mut matched = false;
            for (pattern, schema) in &patterns {
                if pattern.is_match(&key.name) {
                    matched = true;
                    self.value(value, schema, Some(&key.name), found);
                }
            }
            if matched || keys.known.iter().any(|(known, _)| *known == name) {
                continue;
            }
            if let Some(schema) = additional {
                if !value.is_null() {
                    self.value(value, schema, Some(&key.name), found);
                }
            } else if closed && strangers >= MOST_HINTS {
                found.push(Diagnostic::error("unknown-key", &key.span, format!("unknown key `{}`", key.name)));
            } else if closed {
                strangers += 1;
                meant.extend(nearest(&key.name, keys.known.iter().map(|(name, _)| *name)));
                let hint = did_you_mean(&key.name, keys.known.iter().map(|(name, _)| *name))
                    .or_else(|| (!keys.known.is_empty()).then(|| format!("known here: {}", listed(keys.known.iter().map(|(name, _)| *name), 12).replace(" or ", " and "))));
                found.push(Diagnostic::error("unknown-key", &key.span, format!("unknown key `{}`", key.name)).maybe_hint(hint));
            }
        }
        for required in rules.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            let present = |name: &str| node.get(name).is_some();
            let aliased = || keys.aliases.iter().any(|(old, new)| *new == required && present(old));
            // A misspelt key is reported once, not as unknown and as missing.
            if !present(required) && !aliased() && !meant.contains(&required) {
                let span = node.span();
                found.push(Diagnostic::error("missing-key", span, format!("the key `{required}` is missing")).maybe_hint(describe(&keys, required)));
            }
        }
    }

    /// Collects every key that the schema or a branch of it knows.
    fn gather(&self, schema: &'a Value, keys: &mut Keys<'a>, deeper: usize) {
        let schema = self.resolve(schema);
        for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            keys.known.push((name, property));
            for old in property.get("x-aliases").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
                keys.aliases.insert(old, name);
            }
        }
        if deeper == 0 {
            return;
        }
        for list in ["oneOf", "anyOf", "allOf"] {
            for branch in schema.get(list).and_then(Value::as_array).into_iter().flatten() {
                self.gather(branch, keys, deeper - 1);
            }
        }
    }

    /// One of several schemas must fit. If none does, the mistakes of the nearest one are reported.
    fn choice(&self, node: &Node, branches: &'a [Value], key: Option<&str>, found: &mut Vec<Diagnostic>) {
        let mut closest: Option<(usize, Vec<Diagnostic>)> = None;
        let mut words: Vec<String> = Vec::new();
        let mut kinds: Vec<&str> = Vec::new();
        let mut only_words = true;
        for branch in branches {
            let mut inner = Vec::new();
            self.value(node, branch, key, &mut inner);
            if inner.is_empty() {
                return;
            }
            let resolved = self.resolve(branch);
            let rules = resolved.as_object();
            if let Some(values) = rules.and_then(allowed_values) {
                words.extend(values.iter().map(|word| word_text(word)));
                continue;
            }
            let types = rules.map(Self::types).unwrap_or_default();
            if types == ["null"] {
                continue;
            }
            only_words = false;
            kinds.extend(types.iter().filter(|kind| **kind != "null"));
            if types.is_empty() || types.iter().any(|wanted| Self::fits(node, wanted)) {
                // A tag that does not match makes the branch a stranger; the others compete by the number of mistakes.
                let stranger = usize::from(self.wrong_tag(node, resolved)) * 1000;
                let score = stranger + inner.len();
                if closest.as_ref().is_none_or(|(known, _)| score < *known) {
                    closest = Some((score, inner));
                }
            }
        }
        if let (Kind::Map(_), Some((tag, values))) = (node.kind(), self.tag(branches)) {
            match node.get(tag) {
                None => {
                    let hint = format!("it is {}", listed(values.iter().map(String::as_str), 8));
                    found.push(Diagnostic::error("missing-key", node.span(), format!("the key `{tag}` is missing")).hint(hint));
                    return;
                }
                Some(value) if !values.iter().any(|word| value.text().as_ref() == Some(word)) => {
                    found.push(not_one_of(value, &values, Some(tag)));
                    return;
                }
                Some(_) => {}
            }
        }
        match closest {
            // A word where only words and, say, a URL are accepted: a typo of a word, or a mistake in the other form?
            Some((_, inner)) if words.is_empty() || !matches!(node.kind(), Kind::String(_)) => found.extend(inner),
            Some((_, inner)) => {
                let list = listed(words.iter().map(String::as_str), 8);
                match node.text().and_then(|text| did_you_mean(&text, words.iter().map(String::as_str))) {
                    Some(hint) => found.push(not_one_of(node, &words, key).hint(hint)),
                    None => found.extend(inner.into_iter().map(|d| if d.hint.is_none() { d.hint(format!("or write {list}")) } else { d })),
                }
            }
            None if matches!(node.kind(), Kind::String(_)) && !words.is_empty() && !only_words => {
                kinds.dedup();
                let others: Vec<String> = kinds.iter().map(|kind| article(kind).to_string()).collect();
                let near = node.text().and_then(|text| did_you_mean(&text, words.iter().map(String::as_str)));
                found.push(not_one_of(node, &words, key).hint(near.unwrap_or_else(|| format!("{} is accepted as well", or(&others)))));
            }
            None if only_words => found.push(not_one_of(node, &words, key)),
            None => {
                let mut wanted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
                kinds.dedup();
                wanted.extend(kinds.iter().map(|kind| article(kind).to_string()));
                found.push(wrong_type(node, &or(&wanted), &kinds, key));
            }
        }
    }

    /// The key that tells the branches apart, if every mapping among them fixes its value (serde's tag), with those values.
    fn tag(&self, branches: &'a [Value]) -> Option<(&'a str, Vec<String>)> {
        let mut tag: Option<(&str, Vec<String>)> = None;
        for branch in branches {
            let branch = self.resolve(branch);
            if branch.as_object().map(Self::types)? != ["object"] {
                continue;
            }
            let fixed = branch.get("properties").and_then(Value::as_object)?.iter().find_map(|(name, schema)| {
                let words = allowed_values(self.resolve(schema).as_object()?)?;
                (words.len() == 1 && tag.as_ref().is_none_or(|(known, _)| known == name)).then(|| (name.as_str(), word_text(words[0])))
            })?;
            tag.get_or_insert((fixed.0, vec![])).1.push(fixed.1);
        }
        tag.filter(|(_, values)| values.len() > 1)
    }

    /// Whether the branch fixes a key's value (serde's tag) and the node has another one.
    fn wrong_tag(&self, node: &Node, branch: &'a Value) -> bool {
        branch.get("properties").and_then(Value::as_object).into_iter().flatten().any(|(name, schema)| {
            let words = self.resolve(schema).as_object().and_then(allowed_values);
            matches!((words, node.get(name)), (Some(words), Some(value)) if words.len() == 1 && !same(value, words[0]))
        }) || branch.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).all(|name| node.get(name).is_none())
            && branch.get("required").is_some()
    }
}

/// `const`, or `enum`; also an `enum` with null in it.
fn allowed_values(rules: &Map<String, Value>) -> Option<Vec<&Value>> {
    if let Some(value) = rules.get("const") {
        return Some(vec![value]);
    }
    rules.get("enum").and_then(Value::as_array).map(|values| values.iter().collect())
}

fn same(node: &Node, word: &Value) -> bool {
    match word {
        Value::Null => node.is_null(),
        Value::Bool(value) => lenient_bool(node) == Some(*value),
        Value::Number(number) => match lenient_number(node) {
            Some(Kind::Int(value)) => number.as_i64().map(i128::from) == Some(value) || number.as_u64().map(i128::from) == Some(value),
            Some(Kind::Float(value)) => number.as_f64() == Some(value),
            _ => false,
        },
        Value::String(text) => matches!(node.kind(), Kind::String(_) | Kind::Int(_) | Kind::Float(_) | Kind::Bool(_)) && node.scalar_text() == *text,
        Value::Array(_) | Value::Object(_) => node.to_json() == *word,
    }
}

fn word_text(word: &Value) -> String {
    match word {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn not_one_of(node: &Node, words: &[String], key: Option<&str>) -> Diagnostic {
    let words: Vec<&str> = words.iter().map(String::as_str).filter(|word| *word != "null").collect();
    let list = listed(words.iter().copied(), 12);
    let Some(shown) = quoted(node, key) else {
        return Diagnostic::error("value", node.span(), format!("{list} is wanted"));
    };
    let nearest = node.text().and_then(|text| did_you_mean(&text, words.iter().copied()));
    let message = if words.len() == 1 { format!("{shown} is not {list}") } else { format!("{shown} is not one of {list}") };
    Diagnostic::error("value", node.span(), message).maybe_hint(nearest)
}

fn wrong_type(node: &Node, wanted: &str, types: &[&str], key: Option<&str>) -> Diagnostic {
    let hint = match node.kind() {
        Kind::Bool(_) if types.contains(&"string") => Some("put it in quotes if the word itself is meant".to_string()),
        Kind::String(text) if types.contains(&"array") => quoted(node, key).map(|_| format!("write `[{text}]`")),
        Kind::String(text) if types.iter().any(|t| matches!(*t, "integer" | "number")) && text.len() > 1 && text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit()) => {
            Some("a leading zero means different numbers to different readers: remove it".to_string())
        }
        Kind::String(text) if matches!(crate::parse::resolve(text), Kind::Bool(_)) && types.contains(&"boolean") => Some("remove the quotes".to_string()),
        Kind::String(text) if matches!(crate::parse::resolve(text), Kind::Int(_)) && types.contains(&"integer") => Some("remove the quotes".to_string()),
        _ if types.contains(&"string") => unquoted_reference(node),
        _ => None,
    };
    let wanted = wanted.trim_end_matches(',');
    Diagnostic::error("type", node.span(), format!("{wanted} is wanted here, not {}", node.describe())).maybe_hint(hint)
}

/// A message with everything in backquotes left out.
fn without_quotes(message: &str) -> String {
    let parts: Vec<&str> = message.split('`').enumerate().map(|(index, part)| if index % 2 == 0 { part } else { "…" }).collect();
    parts.join("`")
}

/// `{vault://env/NAME}` without quotes is a mapping to YAML.
pub(crate) fn unquoted_reference(node: &Node) -> Option<String> {
    match node.entries() {
        [(key, value)] if value.is_null() && key.name.starts_with("vault:") => Some("a text that begins with `{` needs quotes".to_string()),
        _ => None,
    }
}

fn describe(keys: &Keys<'_>, name: &str) -> Option<String> {
    let (_, schema) = keys.known.iter().find(|(known, _)| *known == name)?;
    let text = schema.get("description")?.as_str()?.lines().next()?;
    Some(format!("{name}: {}", text.trim_end_matches('.')))
}

fn article(kind: &str) -> &str {
    match kind {
        "string" => "a text",
        "integer" => "a whole number",
        "number" => "a number",
        "boolean" => "`true` or `false`",
        "array" => "a list",
        "object" => "a mapping",
        other => other,
    }
}

fn article_list(types: &[&str]) -> String {
    let wanted: Vec<String> = types.iter().filter(|kind| **kind != "null").map(|kind| article(kind).to_string()).collect();
    or(&wanted)
}

fn or(wanted: &[String]) -> String {
    match wanted {
        [] => "something else".into(),
        [one] => one.clone(),
        [head @ .., last] => format!("{} or {last}", head.join(", ")),
    }
}

/// A bound without a pointless `.0`.
fn plain(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e15 { format!("{value:.0}") } else { format!("{value}") }
}
