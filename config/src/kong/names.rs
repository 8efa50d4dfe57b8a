//! Names and ids of one kind of entity: each once, and found again by either.

use super::Ref;
use crate::reader::Context;
use crate::words::{did_you_mean, listed};
use crate::{Kind, Node, Span, Spanned};
use std::collections::HashMap;

/// Where each name and id is.
#[derive(Default)]
pub(crate) struct Names {
    by_name: HashMap<String, (usize, Span)>,
    by_id: HashMap<String, (usize, Span)>,
    order: Vec<String>,
    /// Some could not be read: what is not found may be among them.
    unread: bool,
}

impl Names {
    /// Takes a name; an error if it is taken already. `shown`: whether a message may print it.
    pub fn name(&mut self, cx: &Context<'_>, what: &str, name: &Spanned<String>, index: usize, shown: bool) {
        if let Some((_, first)) = self.by_name.get(&name.value) {
            let called = if shown { format!(" `{}`", name.value) } else { String::new() };
            cx.error("duplicate-name", &name.span, format!("the {what}{called} is defined a second time"), Some(format!("first at {first}")));
            return;
        }
        self.by_name.insert(name.value.clone(), (index, name.span.clone()));
        self.order.push(name.value.clone());
    }

    /// Takes a name that may be there already: then the entity gets another one, with a warning.
    pub fn name_again(&mut self, cx: &Context<'_>, what: &str, mut name: Spanned<String>, index: usize) -> Spanned<String> {
        if let Some((_, first)) = self.by_name.get(&name.value) {
            let other = format!("{}#{index}", name.value);
            let hint = format!("first at {first}, which is what references mean; this one is called `{other}` here");
            cx.warning("duplicate-name", &name.span, format!("the {what} `{}` is defined a second time", name.value), Some(hint));
            name.value = other;
        }
        self.by_name.entry(name.value.clone()).or_insert_with(|| (index, name.span.clone()));
        self.order.push(name.value.clone());
        name
    }

    /// Takes an id; an error if it is taken already.
    pub fn id(&mut self, cx: &Context<'_>, what: &str, id: &Spanned<String>, index: usize) {
        if let Some((_, first)) = self.by_id.get(&id.value) {
            cx.error("duplicate-name", &id.span, format!("this id is another {what}'s already"), Some(format!("first at {first}")));
            return;
        }
        self.by_id.insert(id.value.clone(), (index, id.span.clone()));
    }

    /// Whether what has a name or id is a list of mappings in which those are texts. If it is not, that has an error of its own, and references
    /// that lead nowhere have none.
    pub fn look_through(&mut self, list: Option<&Node>) {
        let Some(list) = list else { return };
        let text = |value: &Node| matches!(value.kind(), Kind::String(_) | Kind::Int(_) | Kind::Float(_)) && !value.source().broken;
        let readable = |item: &Node| matches!(item.kind(), Kind::Map(_)) && ["name", "username", "custom_id", "id"].iter().all(|key| item.get(key).is_none_or(text));
        self.unread |= !matches!(list.kind(), Kind::Seq(_)) || !list.items().iter().all(readable);
    }

    /// Whether a reference that leads nowhere is a mistake of its own.
    pub fn are_all_read(&self) -> bool {
        !self.unread
    }

    /// All ids.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.by_id.keys().map(String::as_str)
    }

    /// Index of a name or id.
    pub fn get(&self, text: &str) -> Option<usize> {
        self.by_name.get(text).or_else(|| self.by_id.get(text)).map(|(index, _)| *index)
    }

    /// Index of what a reference names; an error if there is nothing.
    pub fn find(&self, cx: &Context<'_>, reference: &Ref, what: &str) -> Option<usize> {
        let text = &reference.text;
        let found = self.get(text);
        if found.is_none() && !self.unread {
            let hint = did_you_mean(text, self.order.iter().map(String::as_str)).or_else(|| match self.order.len() {
                0 => Some(format!("there are no {what}s")),
                1 => Some(format!("there is only `{}`", self.order[0])),
                _ => Some(format!("there are {}", listed(self.order.iter().map(String::as_str), 6).replace(" or ", " and "))),
            });
            cx.error("missing-reference", &text.span, format!("there is no {what} `{}`", text.value), hint);
        }
        found
    }
}
