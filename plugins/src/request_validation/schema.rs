//! A JSON Schema, compiled; what texts of parameters and forms mean to it; what is wrong with a value, told so that a client can mend it.

use jsonschema::{Draft, PatternOptions, ValidationError, Validator, error::ValidationErrorKind};
use serde_json::{Map, Number, Value, json};
use std::collections::BTreeMap;

/// References and combinations are followed this deep for the meaning of texts.
const DEEPEST: usize = 8;
/// Formats that OpenAPI 3.0 uses and the draft that it stands on does not know.
const LATER_FORMATS: [&str; 4] = ["uuid", "date", "time", "duration"];
/// So many problems are told at once.
pub(super) const MOST: usize = 20;

/// What is wrong with a request.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Problem {
    /// `body`, `query`, `path`, `header` or `cookie`.
    pub place: &'static str,
    /// Name of the parameter.
    pub name: Option<String>,
    /// JSON Pointer (RFC 6901) into the value; empty: the value as a whole.
    pub pointer: String,
    pub message: String,
}

impl Problem {
    pub fn new(place: &'static str, name: Option<&str>, message: impl Into<String>) -> Problem {
        Problem { place, name: name.map(Into::into), pointer: String::new(), message: message.into() }
    }

    pub fn to_json(&self) -> Value {
        let mut told = Map::new();
        told.insert("in".into(), self.place.into());
        if let Some(name) = &self.name {
            told.insert("name".into(), name.as_str().into());
        }
        if self.name.is_none() || !self.pointer.is_empty() {
            told.insert("path".into(), self.pointer.as_str().into());
        }
        told.insert("message".into(), self.message.as_str().into());
        Value::Object(told)
    }
}

/// A compiled schema.
pub(super) struct Schema {
    validator: Validator,
    shape: Shape,
}

impl Schema {
    /// Compiles a schema that stands for itself: its references lead into itself.
    ///
    /// Errors: JSON Pointer of the mistake in the schema, and what is wrong.
    pub fn new(schema: &Value, draft: Draft) -> Result<Schema, (String, String)> {
        let options = || {
            let options = LATER_FORMATS.into_iter().filter(|_| draft == Draft::Draft4).fold(jsonschema::options(), |options, format| {
                let later = jsonschema::options().with_draft(Draft::Draft202012).should_validate_formats(true).build(&json!({ "format": format })).ok();
                options.with_format(format, move |text: &str| later.as_ref().is_some_and(|later| later.is_valid(&Value::from(text))))
            });
            let options = options.offline().should_validate_formats(true);
            // A schema may name its draft itself.
            if schema.get("$schema").is_some() { options } else { options.with_draft(draft) }
        };
        // Patterns run over what clients send: in linear time, unless they look around.
        let linear = options().with_pattern_options(PatternOptions::regex()).build(schema);
        let validator = linear.or_else(|_| options().build(schema)).map_err(|e| (e.instance_path().to_string(), e.to_string()))?;
        Ok(Schema { validator, shape: Shape::of(schema, schema, DEEPEST) })
    }

    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Adds what is wrong with `value`.
    pub fn check(&self, value: &Value, place: &'static str, name: Option<&str>, problems: &mut Vec<Problem>) {
        if self.validator.is_valid(value) {
            return;
        }
        for error in self.validator.iter_errors(value) {
            tell(&error, place, name, problems);
            if problems.len() >= MOST {
                return;
            }
        }
    }
}

fn tell(error: &ValidationError<'_>, place: &'static str, name: Option<&str>, problems: &mut Vec<Problem>) {
    if problems.len() >= MOST {
        return;
    }
    if let ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context } = error.kind() {
        // Of several choices, one whose type fits is the one that was meant.
        let elsewhere = |branch: &&Vec<ValidationError<'static>>| {
            !branch.iter().any(|e| matches!(e.kind(), ValidationErrorKind::Type { .. }) && e.instance_path().as_str() == error.instance_path().as_str())
        };
        let mut meant = context.iter().filter(elsewhere);
        if let (Some(branch), None) = (meant.next(), meant.next()) {
            return branch.iter().for_each(|e| tell(e, place, name, problems));
        }
    }
    // The client's own value is not repeated.
    let message = error.masked_with("the value").to_string();
    let problem = Problem { place, name: name.map(Into::into), pointer: error.instance_path().as_str().into(), message };
    if !problems.contains(&problem) {
        problems.push(problem);
    }
}

/// What a schema says of types, as far as it decides what a text means.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Shape {
    string: bool,
    number: bool,
    boolean: bool,
    null: bool,
    pub array: bool,
    pub object: bool,
    items: Option<Box<Shape>>,
    pub members: BTreeMap<String, Shape>,
    others: Option<Box<Shape>>,
}

impl Shape {
    fn of(root: &Value, schema: &Value, deeper: usize) -> Shape {
        let mut shape = Shape::default();
        shape.add(root, schema, deeper);
        shape
    }

    fn add(&mut self, root: &Value, schema: &Value, deeper: usize) {
        if deeper == 0 {
            return;
        }
        if let Some(target) = schema.get("$ref").and_then(Value::as_str).and_then(|r| root.pointer(r.strip_prefix('#')?)) {
            self.add(root, target, deeper - 1);
        }
        match schema.get("type") {
            Some(Value::String(one)) => self.kind(one),
            Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).for_each(|one| self.kind(one)),
            _ => {
                let constant = schema.get("const").into_iter();
                for value in schema.get("enum").and_then(Value::as_array).into_iter().flatten().chain(constant) {
                    self.kind(match value {
                        Value::Null => "null",
                        Value::Bool(_) => "boolean",
                        Value::Number(_) => "number",
                        Value::String(_) => "string",
                        Value::Array(_) => "array",
                        Value::Object(_) => "object",
                    });
                }
            }
        }
        for list in ["allOf", "anyOf", "oneOf"] {
            schema.get(list).and_then(Value::as_array).into_iter().flatten().for_each(|part| self.add(root, part, deeper - 1));
        }
        if let Some(items) = schema.get("items").filter(|i| i.is_object()) {
            self.array = true;
            self.items.get_or_insert_default().add(root, items, deeper - 1);
        }
        for (name, member) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            self.object = true;
            self.members.entry(name.clone()).or_default().add(root, member, deeper - 1);
        }
        if let Some(others) = schema.get("additionalProperties").filter(|o| o.is_object()) {
            self.object = true;
            self.others.get_or_insert_default().add(root, others, deeper - 1);
        }
    }

    fn kind(&mut self, name: &str) {
        match name {
            "string" => self.string = true,
            "integer" | "number" => self.number = true,
            "boolean" => self.boolean = true,
            "null" => self.null = true,
            "array" => self.array = true,
            "object" => self.object = true,
            _ => {}
        }
    }

    /// What a single text is to the schema: a number or a boolean where it may be one and not a text as well.
    pub fn scalar(&self, text: &str) -> Value {
        match text {
            _ if self.string => text.into(),
            "true" | "false" if self.boolean => Value::Bool(text == "true"),
            "" | "null" if self.null => Value::Null,
            _ if self.number => serde_json::from_str::<Number>(text).map_or_else(|_| text.into(), Value::Number),
            _ => text.into(),
        }
    }

    pub fn list<'t>(&self, texts: impl Iterator<Item = &'t str>) -> Value {
        let none = Shape::default();
        let items = self.items.as_deref().unwrap_or(&none);
        texts.map(|text| items.scalar(text)).collect()
    }

    /// An object of names with their texts; a name that comes twice is a list where it may be one.
    pub fn map<'t>(&self, pairs: impl Iterator<Item = (&'t str, &'t str)>) -> Result<Value, String> {
        let none = Shape::default();
        let mut all = Map::new();
        for (name, text) in pairs {
            let member = self.members.get(name).or(self.others.as_deref()).unwrap_or(&none);
            match all.get_mut(name) {
                None if member.array => drop(all.insert(name.into(), member.list(std::iter::once(text)))),
                None => drop(all.insert(name.into(), member.scalar(text))),
                Some(Value::Array(list)) if member.array => {
                    if let Value::Array(more) = member.list(std::iter::once(text)) {
                        list.extend(more);
                    }
                }
                Some(_) => return Err(format!("`{}` stands there more than once", name.escape_debug())),
            }
        }
        Ok(Value::Object(all))
    }
}

/// The answer's body for these problems.
pub(super) fn told(message: &str, problems: &[Problem], verbose: bool) -> Value {
    if !verbose {
        return json!({ "message": message });
    }
    json!({ "message": message, "errors": problems.iter().map(Problem::to_json).collect::<Vec<_>>() })
}
