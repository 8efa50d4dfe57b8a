//! Host names with at most one wildcard at an end: those of routes, those of requests, and the table between them.

use super::trie::Trie;
use ahash::HashMap;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// A host name, or all that end or begin with some text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Name {
    /// Exactly this.
    Exact(String),
    /// At least one character and then this.
    Suffix(String),
    /// This and then at least one character.
    Prefix(String),
}

impl Name {
    /// Reads a name in which one end may be `*`; the case does not matter.
    ///
    /// Errors: what is wrong, as the end of a sentence.
    pub(super) fn parse(text: &str) -> Result<Name, &'static str> {
        let text = text.to_ascii_lowercase();
        let name = match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(rest), _) => Name::Suffix(rest.to_owned()),
            (None, Some(rest)) => Name::Prefix(rest.to_owned()),
            (None, None) => Name::Exact(text.clone()),
        };
        let (Name::Exact(rest) | Name::Suffix(rest) | Name::Prefix(rest)) = &name;
        if text.is_empty() {
            Err("it is empty")
        } else if rest.contains('*') {
            Err("only one `*` may stand in it, at its beginning or at its end")
        } else {
            Ok(name)
        }
    }

    /// Whether the name has no wildcard.
    pub(super) fn is_plain(&self) -> bool {
        matches!(self, Name::Exact(_))
    }

    /// Whether a lower-case `name` is meant.
    pub(super) fn covers(&self, name: &str) -> bool {
        match self {
            Name::Exact(text) => name == text,
            Name::Suffix(text) => name.len() > text.len() && name.ends_with(text.as_str()),
            Name::Prefix(text) => name.len() > text.len() && name.starts_with(text.as_str()),
        }
    }
}

/// One entry of a route's `hosts`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct HostPattern {
    pub(super) name: Name,
    /// `None`: any port.
    pub(super) port: Option<u16>,
}

impl HostPattern {
    /// Reads `name`, `*.name` or `name.*`, perhaps with `:port`.
    ///
    /// Errors: what is wrong, as the end of a sentence.
    pub(super) fn parse(text: &str) -> Result<HostPattern, &'static str> {
        let (name, port) = split_port(text);
        let port = match port {
            None => None,
            Some(digits) => Some(digits.parse().map_err(|_| "its port is not a number from 0 to 65535")?),
        };
        Ok(HostPattern { name: Name::parse(name)?, port })
    }
}

/// Host and port of a request's `Host`: the name in lower case, an IPv6 address without its brackets.
pub(super) fn of_request(host: &str) -> (Cow<'_, str>, Option<u16>) {
    let (name, port) = split_port(host);
    (lower(name), port.and_then(|digits| digits.parse().ok()))
}

/// A name in lower case; borrowed if it was so.
pub(super) fn lower(name: &str) -> Cow<'_, str> {
    if name.bytes().any(|b| b.is_ascii_uppercase()) { Cow::Owned(name.to_ascii_lowercase()) } else { Cow::Borrowed(name) }
}

/// Cuts `:digits` off, and the brackets of an IPv6 address. More than one colon outside of brackets is such an address too.
fn split_port(host: &str) -> (&str, Option<&str>) {
    let is_port = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if let Some((address, rest)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        match rest.strip_prefix(':') {
            Some(port) if is_port(port) => return (address, Some(port)),
            None if rest.is_empty() => return (address, None),
            _ => return (host, None),
        }
    }
    match host.split_once(':') {
        Some((name, port)) if is_port(port) => (name, Some(port)),
        // `name:` has an empty port, which means the default one (RFC 3986, section 3.2.3).
        Some((name, "")) => (name, None),
        _ => (host, None),
    }
}

/// Values by host pattern.
#[derive(Debug)]
pub(super) struct HostTable<T> {
    exact: HashMap<Box<str>, Slot<T>>,
    /// By suffix, written backwards.
    suffixes: Trie<Slot<T>>,
    prefixes: Trie<Slot<T>>,
}

#[derive(Debug)]
struct Slot<T> {
    any_port: Option<T>,
    by_port: HashMap<u16, T>,
}

impl<T> HostTable<T> {
    /// Arranges values for look-ups.
    pub(super) fn new(entries: impl IntoIterator<Item = (HostPattern, T)>) -> Self {
        let mut slots: BTreeMap<Name, Slot<T>> = BTreeMap::new();
        for (pattern, value) in entries {
            let slot = slots.entry(pattern.name).or_insert_with(|| Slot { any_port: None, by_port: HashMap::default() });
            match pattern.port {
                None => slot.any_port = Some(value),
                Some(port) => {
                    slot.by_port.insert(port, value);
                }
            }
        }
        let mut table = HostTable { exact: HashMap::default(), suffixes: Trie::new(), prefixes: Trie::new() };
        for (name, slot) in slots {
            match name {
                Name::Exact(text) => {
                    table.exact.insert(text.into(), slot);
                }
                Name::Suffix(text) => table.suffixes.insert(&text.bytes().rev().collect::<Vec<_>>(), slot),
                Name::Prefix(text) => table.prefixes.insert(text.as_bytes(), slot),
            }
        }
        table
    }

    /// Calls `visit` with every value whose pattern covers the host (in lower case) and port; the more telling come first.
    pub(super) fn covering<'t>(&'t self, host: &str, port: u16, mut visit: impl FnMut(&'t T)) {
        let mut open = |slot: &'t Slot<T>| {
            if let Some(value) = slot.by_port.get(&port) {
                visit(value);
            }
            if let Some(value) = &slot.any_port {
                visit(value);
            }
        };
        if let Some(slot) = self.exact.get(host) {
            open(slot);
        }
        if !self.suffixes.is_empty() {
            let backwards: SmallVec<[u8; 128]> = host.bytes().rev().collect();
            self.suffixes.prefixes(&backwards, |len, slot| {
                if len < host.len() {
                    open(slot);
                }
            });
        }
        if !self.prefixes.is_empty() {
            self.prefixes.prefixes(host.as_bytes(), |len, slot| {
                if len < host.len() {
                    open(slot);
                }
            });
        }
    }
}
