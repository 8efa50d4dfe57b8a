//! The sections of Weir's own file, read so that a mistake in one place keeps none of the others from being checked.

use crate::node::Kind;
use crate::reader::Context;
use crate::words::MOST_HINTS;
use crate::{Node, Span, decode};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;

/// The sections, and what is left of those that have errors.
pub(crate) struct Sections<'a> {
    pub cx: &'a Context<'a>,
    pub node: &'a Node,
    /// The file without what is wrong in it.
    pub rest: Node,
    /// Sections with something wrong.
    pub unsound: Vec<&'static str>,
}

impl<'a> Sections<'a> {
    pub fn of(cx: &'a Context<'a>, node: &'a Node) -> Sections<'a> {
        Sections { cx, node, rest: node.clone(), unsound: vec![] }
    }

    /// A section, or what is left of it: its other parts are checked all the same.
    pub fn read<T: DeserializeOwned + JsonSchema>(&mut self, key: &'static str) -> Option<T> {
        let section = self.node.get(key)?;
        let mut rest = section.clone();
        // What only making the value shows comes one by one.
        for round in 0..=MOST_HINTS {
            let found = match decode::<T>(&rest) {
                Ok(value) => return Some(value),
                Err(found) => found,
            };
            if round == 0 {
                self.unsound.push(key);
            } else if found.is_empty() {
                break;
            }
            let wrong: Vec<&Span> = found.iter().map(|found| &found.span).collect();
            rest = rest.without(&wrong);
            if key == "edge" && rest.get("origin").is_none() {
                // Nothing is said of this one.
                rest = rest.with("origin", Node::at(section.span().clone(), Kind::String("https://origin.invalid".into())));
            }
            // What has been taken away is missing.
            self.cx.extend(found.into_iter().filter(|found| round == 0 || found.code != "missing-key").collect());
            self.rest = self.rest.with(key, rest.clone());
        }
        None
    }

    /// Whether a key was there and nothing is left of it: that it is not there says nothing.
    pub fn lost(&self, section: &str, key: &str) -> bool {
        let has = |node: &Node| node.get(section).and_then(|section| section.get(key)).is_some_and(|value| !matches!(value.kind(), Kind::Seq(items) if items.is_empty()));
        self.node.get(section).is_some() && self.unsound.contains(&section) && has(self.node) && !has(&self.rest)
    }

    /// Checks what is left of a section. Where something is wrong, what is said of it as a whole, or of keys that are missing, says nothing.
    pub fn check(&self, key: &'static str, check: impl FnOnce(&Node)) {
        let Some(section) = self.rest.get(key) else { return };
        let before = self.cx.found.borrow().len();
        check(section);
        if self.unsound.contains(&key) {
            let mut found = self.cx.found.borrow_mut();
            let new = found.split_off(before);
            found.extend(new.into_iter().filter(|new| new.code != "missing-key" && new.span != *section.span()));
        }
    }
}
