//! Reading entities by hand: typed access to a mapping's keys, with every mistake collected and unknown keys found at the end.

use crate::de::{lenient_bool, lenient_number};
use crate::decode::quoted;
use crate::node::Kind;
use crate::words::{MOST_HINTS, did_you_mean, listed, nearest};
use crate::{Diagnostic, LoadOptions, Node, PluginCatalog, Severity, Span, Spanned};
use std::cell::{Cell, RefCell};
use std::path::PathBuf;

/// What one load shares.
pub(crate) struct Context<'a> {
    pub catalog: &'a dyn PluginCatalog,
    pub options: &'a LoadOptions,
    pub found: RefCell<Vec<Diagnostic>>,
    pub files: RefCell<Vec<PathBuf>>,
    /// Errors so far.
    pub errors: Cell<usize>,
    /// Where the entities stand that have errors: what is derived from them says nothing.
    pub unsound: RefCell<Vec<Span>>,
}

impl Context<'_> {
    pub fn push(&self, diagnostic: Diagnostic) {
        self.extend(vec![diagnostic]);
    }

    pub fn extend(&self, diagnostics: Vec<Diagnostic>) {
        self.errors.set(self.errors.get() + diagnostics.iter().filter(|d| d.severity == Severity::Error).count());
        self.found.borrow_mut().extend(diagnostics);
    }

    /// Whether nothing was wrong since there were this many errors; if something was, with the entity at this place.
    pub fn is_sound_since(&self, errors: usize, place: &Span) -> bool {
        let sound = self.errors.get() == errors;
        if !sound {
            self.unsound.borrow_mut().push(place.clone());
        }
        sound
    }

    pub fn error(&self, code: &'static str, span: &Span, message: impl Into<String>, hint: Option<String>) {
        self.push(Diagnostic::error(code, span, message).maybe_hint(hint));
    }

    pub fn warning(&self, code: &'static str, span: &Span, message: impl Into<String>, hint: Option<String>) {
        self.push(Diagnostic::warning(code, span, message).maybe_hint(hint));
    }

    pub fn note(&self, code: &'static str, span: &Span, message: impl Into<String>) {
        self.push(Diagnostic::note(code, span, message));
    }

    pub fn has_errors(&self) -> bool {
        self.errors.get() > 0
    }

    /// A text with its place; reports anything else.
    pub fn text(&self, node: &Node) -> Option<Spanned<String>> {
        match node.kind() {
            _ if node.source().broken => None,
            Kind::String(_) | Kind::Int(_) | Kind::Float(_) => Some(Spanned::new(node.scalar_text(), node.span().clone())),
            _ => {
                self.wrong(node, "a text");
                None
            }
        }
    }

    pub fn wrong(&self, node: &Node, wanted: &str) {
        if !node.source().broken {
            self.error("type", node.span(), format!("{wanted} is wanted here, not {}", node.describe()), crate::check::unquoted_reference(node));
        }
    }
}

/// `a service`, `an upstream`.
fn with_article(what: &str) -> String {
    let article = if what.starts_with(['a', 'e', 'i', 'o', 'u', 'S']) { "an" } else { "a" };
    format!("{article} {what}")
}

/// The keys of one entity.
pub(crate) struct Fields<'a, 'c> {
    pub cx: &'c Context<'c>,
    node: &'a Node,
    /// `service`, `route`, …: for messages.
    what: &'static str,
    known: Vec<&'static str>,
    lacking: Vec<(Vec<&'static str>, Diagnostic)>,
}

impl Drop for Fields<'_, '_> {
    fn drop(&mut self) {
        self.lacking.drain(..).for_each(|(_, why)| self.cx.push(why));
    }
}

impl<'a, 'c> Fields<'a, 'c> {
    /// `None` (and an error) unless the node is a mapping.
    pub fn of(cx: &'c Context<'c>, node: &'a Node, what: &'static str) -> Option<Self> {
        match node.kind() {
            Kind::Map(_) => Some(Fields { cx, node, what, known: Vec::with_capacity(32), lacking: vec![] }),
            _ => {
                cx.wrong(node, &format!("a mapping ({})", with_article(what)));
                None
            }
        }
    }

    pub fn node(&self) -> &'a Node {
        self.node
    }

    /// Where to point when the entity as a whole is meant.
    pub fn span(&self) -> &'a Span {
        self.node.span()
    }

    /// Where to point when the entity is named.
    pub fn name_span(&self) -> &'a Span {
        self.node.get("name").map_or(self.node.span(), Node::span)
    }

    /// The value of a key; null is as good as absent.
    pub fn get(&mut self, key: &'static str) -> Option<&'a Node> {
        self.known.push(key);
        self.node.get(key)
    }

    /// Keys that are valid and mean nothing here.
    pub fn accept(&mut self, keys: &[&'static str]) {
        self.known.extend_from_slice(keys);
    }

    pub fn text(&mut self, key: &'static str) -> Option<Spanned<String>> {
        let node = self.get(key)?;
        self.cx.text(node)
    }

    /// A text that is not empty.
    pub fn filled(&mut self, key: &'static str) -> Option<Spanned<String>> {
        let text = self.text(key)?;
        if text.trim().is_empty() {
            self.cx.error("value", &text.span, format!("`{key}` is empty"), None);
            return None;
        }
        Some(text)
    }

    /// The first of these keys is not there, nor are the others, which would do.
    pub fn missing(&mut self, keys: &[&'static str], hint: Option<String>) {
        let name = self.node.get("name").and_then(|name| quoted(name, None)).map(|name| format!(" {name}")).unwrap_or_default();
        let message = format!("the {}{name} has no `{}`", self.what, keys[0]);
        self.lacks(keys.to_vec(), Diagnostic::error("missing-key", self.span(), message).maybe_hint(hint));
    }

    /// None of these keys is there. It is reported when all keys are known, and not if one of them was misspelt: that is reported anyway.
    pub fn lacks(&mut self, keys: Vec<&'static str>, why: Diagnostic) {
        self.lacking.push((keys, why));
    }

    pub fn int(&mut self, key: &'static str, least: i64, most: i64) -> Option<i64> {
        let node = self.get(key)?;
        match lenient_number(node) {
            _ if node.source().broken => None,
            Some(Kind::Int(value)) => match i64::try_from(value) {
                Ok(value) if (least..=most).contains(&value) => Some(value),
                _ => {
                    let message = if most == i64::MAX { format!("`{key}` must be at least {least}") } else { format!("`{key}` must be from {least} to {most}") };
                    self.cx.error("value", node.span(), message, None);
                    None
                }
            },
            _ => {
                self.cx.wrong(node, "a whole number");
                None
            }
        }
    }

    pub fn bool(&mut self, key: &'static str) -> Option<bool> {
        let node = self.get(key)?;
        match lenient_bool(node) {
            _ if node.source().broken => None,
            Some(value) => Some(value),
            None => {
                self.cx.wrong(node, "`true` or `false`");
                None
            }
        }
    }

    pub fn one_of(&mut self, key: &'static str, words: &[&'static str]) -> Option<&'static str> {
        let node = self.get(key)?;
        let text = self.cx.text(node)?;
        self.word(node, &text, words)
    }

    fn word(&self, node: &Node, text: &Spanned<String>, words: &[&'static str]) -> Option<&'static str> {
        let found = words.iter().find(|word| **word == text.as_str()).copied();
        if found.is_none() {
            let shown = quoted(node, None).unwrap_or_else(|| "this".into());
            let list = listed(words.iter().copied(), 12);
            self.cx.error("value", node.span(), format!("{shown} is not one of {list}"), did_you_mean(text, words.iter().copied()));
        }
        found
    }

    /// A list; a single value is reported.
    pub fn list(&mut self, key: &'static str) -> &'a [Node] {
        let Some(node) = self.get(key) else { return &[] };
        match node.kind() {
            Kind::Seq(items) => items,
            _ => {
                let hint = quoted(node, Some(key)).map(|_| format!("write `{key}: [{}]`", node.scalar_text()));
                self.cx.error("type", node.span(), format!("a list is wanted here, not {}", node.describe()), hint);
                &[]
            }
        }
    }

    pub fn texts(&mut self, key: &'static str) -> Vec<Spanned<String>> {
        self.list(key).iter().filter_map(|item| self.cx.text(item)).collect()
    }

    pub fn words(&mut self, key: &'static str, words: &[&'static str]) -> Vec<String> {
        let items = self.list(key);
        items.iter().filter_map(|item| self.word(item, &self.cx.text(item)?, words)).map(str::to_string).collect()
    }

    /// Reports the keys that nobody asked for.
    pub fn finish(mut self) {
        let mut count = 0;
        let mut lacking = std::mem::take(&mut self.lacking);
        for (key, _) in self.node.entries() {
            if self.known.contains(&key.name.as_str()) || key.name == "_comment" || key.name == "_ignore" {
                continue;
            }
            count += 1;
            if count > MOST_HINTS {
                self.cx.error("unknown-key", &key.span, format!("unknown key `{}`", key.name), None);
                continue;
            }
            lacking.retain(|(keys, _)| nearest(&key.name, keys.iter().copied()).is_none());
            let hint = did_you_mean(&key.name, self.known.iter().copied());
            self.cx.error("unknown-key", &key.span, format!("unknown key `{}`", key.name), hint.or_else(|| Some(format!("{} has no such key", with_article(self.what)))));
        }
        lacking.into_iter().for_each(|(_, why)| self.cx.push(why));
    }
}
