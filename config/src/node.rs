//! The tree between text and structs: every key and every value knows its place.

use crate::Span;
use std::fmt;
use std::sync::Arc;

/// One YAML value with its place. Cheap to clone: clones share the value.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    span: Span,
    kind: Kind,
    source: ScalarSource,
    /// Nodes in this tree, counting shared ones each time: what a walk over it costs.
    weight: usize,
}

/// What a node is.
#[derive(Clone, Debug)]
pub enum Kind {
    /// `null`, `~` or nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i128),
    /// Any other number.
    Float(f64),
    /// Text.
    String(String),
    /// A list.
    Seq(Vec<Node>),
    /// A mapping in the order of the file; keys are unique.
    Map(Vec<(Key, Node)>),
}

/// The key of a mapping's entry.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// The key as text.
    pub name: String,
    /// Its place.
    pub span: Span,
}

/// How a scalar came to be; decides which leniencies hold for it.
#[derive(Clone, Debug, Default)]
pub(crate) struct ScalarSource {
    /// Numbers and booleans as they were written.
    pub text: Option<String>,
    /// Not quoted.
    pub plain: bool,
    /// An environment variable or a vault reference is part of it.
    pub expanded: bool,
    /// An error about it is already reported: further checks are skipped.
    pub broken: bool,
}

impl Node {
    /// A node without a place, for configs made by code and for tests.
    pub fn new(kind: Kind) -> Node {
        Node::at(Span::default(), kind)
    }

    /// A node at a place.
    pub fn at(span: Span, kind: Kind) -> Node {
        Node::build(span, kind, ScalarSource::default())
    }

    pub(crate) fn build(span: Span, kind: Kind, source: ScalarSource) -> Node {
        let weight = 1usize.saturating_add(match &kind {
            Kind::Seq(items) => items.iter().fold(0, |sum, item| sum.saturating_add(item.weight())),
            Kind::Map(entries) => entries.iter().fold(0, |sum, (_, value)| sum.saturating_add(value.weight())),
            _ => 0,
        });
        Node(Arc::new(Inner { span, kind, source, weight }))
    }

    /// An empty mapping at a place.
    pub fn empty_map(span: Span) -> Node {
        Node::at(span, Kind::Map(vec![]))
    }

    /// Parses one YAML value without expansion of variables; for tests and for configs made by code.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Node, crate::Diagnostics> {
        let source = crate::Source::new("config", text);
        let mut diagnostics = Vec::new();
        let node = crate::parse::parse(&source, None, &mut diagnostics);
        match node {
            Some(node) if diagnostics.is_empty() => Ok(node),
            _ => Err(diagnostics.into()),
        }
    }

    /// Parses a file of YAML or JSON that a configuration names, without expansion of variables.
    ///
    /// # Errors
    /// What is wrong: with the file (without a place), or in it.
    pub fn parse_file(path: &std::path::Path) -> Result<Node, crate::Diagnostics> {
        let source = crate::load::source_of(path).map_err(|why| vec![crate::Diagnostic::error("file", &Span::default(), format!("{}: {why}", path.display()))])?;
        let mut diagnostics = Vec::new();
        match crate::parse::parse(&source, None, &mut diagnostics) {
            Some(node) if diagnostics.is_empty() => Ok(node),
            None if diagnostics.is_empty() => Err(vec![crate::Diagnostic::error("empty", &Span::new(&source, 1, 1, 0), "the file is empty")].into()),
            _ => Err(diagnostics.into()),
        }
    }

    /// Where the value stands.
    pub fn span(&self) -> &Span {
        &self.0.span
    }

    /// What it is.
    pub fn kind(&self) -> &Kind {
        &self.0.kind
    }

    pub(crate) fn source(&self) -> &ScalarSource {
        &self.0.source
    }

    pub(crate) fn weight(&self) -> usize {
        self.0.weight
    }

    /// Whether it is null.
    pub fn is_null(&self) -> bool {
        matches!(self.kind(), Kind::Null)
    }

    /// The value under a key of a mapping; `None` for absent keys, null values and other kinds of node.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entries().iter().find(|(k, v)| k.name == key && !v.is_null()).map(|(_, value)| value)
    }

    /// The place of a key of a mapping.
    pub fn key_span(&self, key: &str) -> Option<&Span> {
        self.entries().iter().find(|(k, _)| k.name == key).map(|(key, _)| &key.span)
    }

    /// Entries of a mapping, in order; empty for other kinds.
    pub fn entries(&self) -> &[(Key, Node)] {
        match self.kind() {
            Kind::Map(entries) => entries,
            _ => &[],
        }
    }

    /// Items of a list; empty for other kinds.
    pub fn items(&self) -> &[Node] {
        match self.kind() {
            Kind::Seq(items) => items,
            _ => &[],
        }
    }

    /// A text, or a number or boolean as it was written; `None` for null, lists and mappings.
    pub fn text(&self) -> Option<String> {
        match self.kind() {
            Kind::String(text) => Some(text.clone()),
            Kind::Bool(_) | Kind::Int(_) | Kind::Float(_) => Some(self.scalar_text()),
            Kind::Null | Kind::Seq(_) | Kind::Map(_) => None,
        }
    }

    /// The source text of a number or boolean; the text of a string; empty for others.
    pub(crate) fn scalar_text(&self) -> String {
        match (&self.0.source.text, self.kind()) {
            (Some(text), _) => text.clone(),
            (None, Kind::String(text)) => text.clone(),
            (None, Kind::Bool(value)) => value.to_string(),
            (None, Kind::Int(value)) => value.to_string(),
            (None, Kind::Float(value)) => value.to_string(),
            (None, _) => String::new(),
        }
    }

    /// Whether a place in this tree already has an error reported.
    pub(crate) fn has_broken_part(&self) -> bool {
        self.0.source.broken
            || match self.kind() {
                Kind::Seq(items) => items.iter().any(Node::has_broken_part),
                Kind::Map(entries) => entries.iter().any(|(_, value)| value.has_broken_part()),
                _ => false,
            }
    }

    /// Whether the value at this place has an error that is reported already.
    pub(crate) fn is_broken_at(&self, span: &Span) -> bool {
        (self.0.source.broken && self.span() == span)
            || self.items().iter().any(|item| item.is_broken_at(span))
            || self.entries().iter().any(|(_, value)| value.is_broken_at(span))
    }

    /// The tree without what has an error: entries of mappings, items of lists as wholes, and lists of which nothing is left.
    pub(crate) fn without(&self, wrong: &[&Span]) -> Node {
        let bad = |node: &Node| node.source().broken || wrong.contains(&node.span());
        let kind = match self.kind() {
            Kind::Map(entries) => {
                let good = entries.iter().filter(|(key, value)| !bad(value) && !wrong.contains(&&key.span));
                let rest = good.map(|(key, value)| (key, value, value.without(wrong)));
                Kind::Map(rest.filter(|(_, value, rest)| value.items().is_empty() || !rest.items().is_empty()).map(|(key, _, rest)| (key.clone(), rest)).collect())
            }
            Kind::Seq(items) => Kind::Seq(items.iter().filter(|item| !bad(item) && item.without(wrong).weight() == item.weight()).cloned().collect()),
            _ => return self.clone(),
        };
        Node::build(self.span().clone(), kind, self.source().clone())
    }

    /// The mapping with this value under a key.
    pub(crate) fn with(&self, key: &str, value: Node) -> Node {
        let mut entries = self.entries().to_vec();
        match entries.iter_mut().find(|(known, _)| known.name == key) {
            Some((_, old)) => *old = value,
            None => entries.push((Key { name: key.to_string(), span: self.span().clone() }, value)),
        }
        Node::build(self.span().clone(), Kind::Map(entries), self.source().clone())
    }

    /// `a number`, `a list`, …: for messages.
    pub(crate) fn describe(&self) -> &'static str {
        match self.kind() {
            Kind::Null => "nothing",
            Kind::Bool(_) => "a boolean",
            Kind::Int(_) => "a number",
            Kind::Float(_) => "a number with a fraction",
            Kind::String(_) => "a text",
            Kind::Seq(_) => "a list",
            Kind::Map(_) => "a mapping",
        }
    }

    /// As JSON; numbers that JSON cannot hold become text. Secrets are not hidden.
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::Value;
        match self.kind() {
            Kind::Null => Value::Null,
            Kind::Bool(value) => Value::Bool(*value),
            Kind::Int(value) => match (i64::try_from(*value), u64::try_from(*value)) {
                (Ok(value), _) => Value::from(value),
                (_, Ok(value)) => Value::from(value),
                _ => Value::String(self.scalar_text()),
            },
            Kind::Float(value) => serde_json::Number::from_f64(*value).map_or_else(|| Value::String(self.scalar_text()), Value::Number),
            Kind::String(text) => Value::String(text.clone()),
            Kind::Seq(items) => items.iter().map(Node::to_json).collect(),
            Kind::Map(entries) => Value::Object(entries.iter().map(|(key, value)| (key.name.clone(), value.to_json())).collect()),
        }
    }
}

// Configs hold secrets in places that only their reader knows: the tree shows its shape, not its values.
impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind() {
            Kind::Seq(items) => f.debug_list().entries(items).finish(),
            Kind::Map(entries) => f.debug_map().entries(entries.iter().map(|(key, value)| (&key.name, value))).finish(),
            _ => write!(f, "<{} at {}>", self.describe(), self.span()),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name, self.span)
    }
}

impl Default for Node {
    /// An empty mapping, nowhere.
    fn default() -> Self {
        Node::empty_map(Span::default())
    }
}
