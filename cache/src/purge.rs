//! What can be purged, how it is found in the index of the store, and how it is recognized in memory.

use crate::{keys, memory::StoredKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{borrow::Cow, fmt::Write as _};
use weir_store::Named;

/// What to remove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum Purge {
    /// All that is stored under one primary key: every variant and encoding.
    Key {
        /// Deployment id, as in [`Plan::epoch`](crate::Plan::epoch).
        epoch: String,
        /// As in [`Plan::key`](crate::Plan::key).
        key: String,
    },
    /// Everything whose path (and query) begins so, in all deployments: `/shoes` means `/shoes-red` too, `/shoes/` does not.
    Prefix {
        /// On this host only; `None`: on all, and where the key has no host.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        /// Begins with `/`.
        path: String,
    },
    /// Everything of one host, in all deployments. Keys without a host are not meant.
    Host {
        /// As clients spell it: upper case and the default port make no difference.
        host: String,
    },
    /// Everything at one address, path and query as in the key, in all deployments and under all values of headers that are in the key.
    Url {
        /// On this host, and where the key has no host.
        host: String,
        /// Begins with `/`.
        target: String,
    },
    /// Every response that carries the tag (`Cache-Tag`, `Surrogate-Key`, `x-next-cache-tags`, or the rule's own).
    Tag {
        /// Case counts.
        tag: String,
    },
    /// Everything, in all deployments.
    All,
}

/// What a purge did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PurgeReport {
    /// Entries that were there and are gone (or marked stale): those of the store, and those that only this process had in memory. Each
    /// variant counts.
    pub entries: u64,
    /// How many of them this process had in memory.
    pub in_memory: u64,
    /// Whether the store did all that was asked. If not, it may still hold some of what was meant: ask again.
    pub store_reached: bool,
    /// Whether the other instances were told. Those that listen and missed it notice the gap and forget everything.
    pub others_told: bool,
    /// Host, path and query of what was purged, in no order, each variant once; only the first 10,000. For a warm-up after it.
    pub pages: Vec<String>,
}

/// Host and path of a key: what stands behind its class and method, without the values of headers that follow a `|`. The host is empty if the key
/// has none.
pub(crate) fn place(key: &str) -> (&str, &str) {
    let rest = key.split_once(':').map_or(key, |(_, rest)| rest);
    let rest = rest.strip_prefix("GET:").unwrap_or(rest);
    let rest = rest.split('|').next().unwrap_or(rest);
    rest.split_at(rest.find('/').unwrap_or(rest.len()))
}

/// A path with query in one spelling, so that purges and keys meet.
fn spelled(path: &str) -> Cow<'_, str> {
    match path.split_once('?') {
        None => keys::normalize_path(path),
        Some((bare, query)) => match keys::normalize_path(bare) {
            Cow::Borrowed(_) => Cow::Borrowed(path),
            Cow::Owned(bare) => Cow::Owned(bare + "?" + query),
        },
    }
}

fn canonical(host: &str) -> String {
    keys::canonical_host(host).unwrap_or_else(|| host.to_ascii_lowercase())
}

/// The name that all variants of one primary key share.
fn primary_name(epoch: &str, key: &str) -> String {
    let mut hasher = Sha256::new();
    hasher.update(epoch.as_bytes());
    hasher.update([0]);
    hasher.update(key.as_bytes());
    let mut name = String::with_capacity(33);
    name.push('=');
    for byte in &hasher.finalize()[..16] {
        let _ = write!(name, "{byte:02x}");
    }
    name
}

/// The names under which an entry is found in the index; one of each form at most, but for tags:
///
/// ```text
/// ={hash of the primary key}    /{path and query}    @{host}/{path and query}    #{tag}
/// ```
pub(crate) fn names(key: &StoredKey, tags: &str) -> Vec<String> {
    let mut names = vec![primary_name(&key.epoch, &key.key)];
    let (host, path) = place(&key.key);
    let path = spelled(path);
    if path.starts_with('/') {
        if !host.is_empty() {
            names.push(format!("@{host}{path}"));
        }
        names.push(path.into_owned());
    }
    names.extend(tags.split('\n').filter(|tag| !tag.is_empty()).map(|tag| format!("#{tag}")));
    names
}

/// How a page is shown in reports, from its names.
pub(crate) fn shown(names: &[String]) -> Option<&str> {
    let with = |sign: char| names.iter().find(|name| name.starts_with(sign));
    with('@').map(|name| &name[1..]).or_else(|| with('/').map(String::as_str))
}

impl Purge {
    /// The same with host and path in the spelling of keys.
    pub(crate) fn canonical(&self) -> Purge {
        match self {
            Purge::Host { host } => Purge::Host { host: canonical(host) },
            Purge::Url { host, target } => Purge::Url { host: canonical(host), target: spelled(target).into_owned() },
            Purge::Prefix { host, path } => {
                let path = if path.starts_with('/') { Cow::Borrowed(path.as_str()) } else { Cow::Owned(format!("/{path}")) };
                Purge::Prefix { host: host.as_deref().map(canonical), path: spelled(&path).into_owned() }
            }
            other => other.clone(),
        }
    }

    /// What to look for in the index, and whether by the whole name.
    pub(crate) fn name(&self) -> (String, bool) {
        match self {
            Purge::Key { epoch, key } => (primary_name(epoch, key), true),
            Purge::Prefix { host: Some(host), path } => (format!("@{host}{path}"), false),
            Purge::Prefix { host: None, path } => (path.clone(), false),
            Purge::Host { host } => (format!("@{host}/"), false),
            Purge::Url { target, .. } => (target.clone(), true),
            Purge::Tag { tag } => (format!("#{tag}"), true),
            // Every entry has one name of this form.
            Purge::All => ("=".into(), false),
        }
    }

    /// Whether an entry of the index that has the name of this purge (in canonical form) is meant, by all its names.
    pub(crate) fn means_named(&self, names: &[String]) -> bool {
        let Purge::Url { host, target } = self else { return true };
        let mut hosts = names.iter().filter_map(|name| name.strip_prefix('@')).peekable();
        hosts.peek().is_none() || hosts.any(|name| name.strip_prefix(host.as_str()) == Some(target))
    }

    /// Whether the purge (in canonical form) means what is stored under this key with these tags, one a line.
    pub(crate) fn means(&self, stored: &StoredKey, tags: &str) -> bool {
        match self {
            Purge::Key { epoch, key } => *stored.key == **key && *stored.epoch == **epoch,
            Purge::Prefix { host, path } => {
                let (on, at) = place(&stored.key);
                host.as_ref().is_none_or(|host| host == on) && spelled(at).starts_with(path.as_str())
            }
            Purge::Host { host } => {
                let (on, at) = place(&stored.key);
                !host.is_empty() && host == on && at.starts_with('/')
            }
            Purge::Url { host, target } => {
                let (on, at) = place(&stored.key);
                (on.is_empty() || on == host) && spelled(at) == target.as_str()
            }
            Purge::Tag { tag } => !tag.is_empty() && tags.split('\n').any(|one| one == tag),
            Purge::All => true,
        }
    }
}

/// The form in which the index is asked.
pub(crate) fn named((name, exactly): &(String, bool)) -> Named<'_> {
    if *exactly { Named::Exactly(name) } else { Named::Prefix(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(key: &str) -> StoredKey {
        StoredKey::primary(&"v1".into(), key)
    }

    /// Index and memory must agree on what a purge means: the one by names, the other by looking at each key.
    #[test]
    fn names_and_looks_agree() {
        let prefix = |host: Option<&str>, path: &str| Purge::Prefix { host: host.map(str::to_owned), path: path.into() };
        let entries = [
            ("html_cache:shop.example.com/", "a"),
            ("html_cache:shop.example.com/shoes?page=2", "a\nb"),
            ("html_cache:shop.example.com/shoes-red", "ab"),
            ("html_cache:shop.example.com:3000/shoes/x", ""),
            ("html_cache:[2001:db8::1]:80/shoes", ""),
            ("html_cache:other.example/%C3%A4", "a"),
            ("cache:GET:/api/home", "b"),
            ("cache:GET:api.example/api/home|x=1", ""),
            ("odd", "a"),
            ("", ""),
        ];
        for (purge, expected) in [
            (prefix(None, "/shoes"), &[1, 2, 3, 4][..]),
            (prefix(None, "/shoes/"), &[3]),
            (prefix(None, "shoes?page"), &[1]),
            (prefix(Some("SHOP.example.com:443"), "/shoes"), &[1, 2]),
            (prefix(Some("shop.example.com:3000"), "/"), &[3]),
            (prefix(Some("[2001:DB8::1]"), ""), &[]),
            (prefix(None, "/ä"), &[5]),
            (prefix(None, "/%c3%a4"), &[5]),
            (prefix(None, "/api"), &[6, 7]),
            (prefix(None, "/"), &[0, 1, 2, 3, 4, 5, 6, 7]),
            (Purge::Host { host: "Shop.Example.com".into() }, &[0, 1, 2]),
            (Purge::Host { host: "shop.example".into() }, &[]),
            (Purge::Host { host: "".into() }, &[]),
            (Purge::Url { host: "Shop.example.com".into(), target: "/shoes?page=2".into() }, &[1]),
            (Purge::Url { host: "other.example".into(), target: "/shoes?page=2".into() }, &[]),
            (Purge::Url { host: "other.example".into(), target: "/api/home".into() }, &[6]),
            (Purge::Url { host: "api.example".into(), target: "/api/home".into() }, &[6, 7]),
            (Purge::Tag { tag: "a".into() }, &[0, 1, 5, 8]),
            (Purge::Tag { tag: "b".into() }, &[1, 6]),
            (Purge::Tag { tag: "".into() }, &[]),
            (Purge::Key { epoch: "v1".into(), key: "odd".into() }, &[8]),
            (Purge::Key { epoch: "v2".into(), key: "odd".into() }, &[]),
            (Purge::All, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ] {
            let purge = purge.canonical();
            let (name, exactly) = purge.name();
            for (number, (text, tags)) in entries.iter().enumerate() {
                let names = names(&key(text), tags);
                let found = names.iter().any(|one| if exactly { *one == name } else { one.starts_with(&name) }) && purge.means_named(&names);
                assert_eq!(found, expected.contains(&number), "{purge:?} in the index: {text}");
                assert_eq!(purge.means(&key(text), tags), expected.contains(&number), "{purge:?} in memory: {text}");
            }
        }
        assert_eq!(shown(&names(&key("html_cache:a.example/x?y"), "t")), Some("a.example/x?y"));
        assert_eq!(shown(&names(&key("cache:GET:/api"), "t")), Some("/api"));
        assert_eq!(shown(&names(&key("odd"), "t")), None);
    }

    #[test]
    fn messages_are_read_as_they_are_written() {
        for purge in [
            Purge::Key { epoch: "e".into(), key: "k".into() },
            Purge::Prefix { host: None, path: "/".into() },
            Purge::Prefix { host: Some("h".into()), path: "/".into() },
            Purge::Host { host: "h".into() },
            Purge::Tag { tag: "t".into() },
            Purge::Url { host: "h".into(), target: "/a?b".into() },
            Purge::All,
        ] {
            let text = serde_json::to_string(&purge).expect("written");
            assert_eq!(serde_json::from_str::<Purge>(&text).expect("read"), purge, "{text}");
        }
    }
}
