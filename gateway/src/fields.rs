//! Fields that plugins add to a message, kept beside it until it is written: a message that passes as the bytes that it is needs then not be
//! read into a map for their sake.

use crate::sight::{frames, length_bit};
use http::{HeaderMap, HeaderName, HeaderValue};

/// Fields that a message will have, one value each, in place of what it has under their names.
#[derive(Debug, Clone, Default)]
pub struct Fields {
    all: Vec<(HeaderName, HeaderValue)>,
    /// A bit for each length that one of the names has.
    lengths: u64,
}

impl Fields {
    /// Adds a field, or replaces the one of this name. Fields that frame the message ([`frames`]) are not a plugin's to set: nothing comes of them.
    pub fn set(&mut self, name: HeaderName, value: HeaderValue) {
        if frames(&name) {
            return;
        }
        let bit = length_bit(name.as_str().len());
        if self.lengths & bit != 0
            && let Some(place) = self.all.iter_mut().find(|(known, _)| *known == name)
        {
            place.1 = value;
            return;
        }
        self.lengths |= bit;
        self.all.push((name, value));
    }

    /// Makes room for so many more.
    pub fn reserve(&mut self, more: usize) {
        self.all.reserve(more);
    }

    /// Removes a field again.
    pub fn remove(&mut self, name: &HeaderName) {
        self.all.retain(|(known, _)| known != name);
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether one of them has this name, in whatever case.
    pub fn have(&self, name: &[u8]) -> bool {
        self.lengths & length_bit(name.len()) != 0 && self.all.iter().any(|(known, _)| known.as_str().as_bytes().eq_ignore_ascii_case(name))
    }

    /// The value under this name.
    pub fn get(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &(HeaderName, HeaderValue)> {
        self.all.iter()
    }

    /// Puts them on a message.
    pub fn put_on(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.all {
            headers.insert(name, value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NAMES: [&str; 5] = ["x-a", "x-b", "x-user-id", "cookie", "x-shop-id"];

    #[test]
    fn what_frames_a_message_is_not_set() {
        let mut fields = Fields::default();
        for name in ["connection", "content-length", "transfer-encoding", "expect", "keep-alive", "proxy-connection", "te", "trailer", "upgrade"] {
            fields.set(HeaderName::from_static(name), HeaderValue::from_static("7"));
        }
        assert!(fields.is_empty(), "{fields:?}");
    }

    proptest! {
        /// Whatever is set and removed: on a message it is what the same steps would have made of the message.
        #[test]
        fn like_a_map(before in proptest::collection::vec((0..5usize, 0..9u32), 0..4), steps in proptest::collection::vec((0..5usize, proptest::option::of(0..9u32)), 0..12)) {
            let name = |n: usize| HeaderName::from_static(NAMES[n]);
            let (mut fields, mut map) = (Fields::default(), HeaderMap::new());
            for (n, value) in steps {
                match value {
                    Some(value) => {
                        fields.set(name(n), value.into());
                        map.insert(name(n), HeaderValue::from(value));
                    }
                    None => {
                        fields.remove(&name(n));
                        map.remove(name(n));
                    }
                }
            }
            for n in 0..5 {
                prop_assert_eq!(fields.have(NAMES[n].to_ascii_uppercase().as_bytes()), map.contains_key(name(n)));
                prop_assert_eq!(fields.get(&name(n)), map.get(name(n)));
            }
            prop_assert_eq!(fields.is_empty(), map.is_empty());
            let (mut got, mut wanted) = (HeaderMap::new(), HeaderMap::new());
            for (n, value) in before {
                got.append(name(n), HeaderValue::from(value));
                if !map.contains_key(name(n)) {
                    wanted.append(name(n), HeaderValue::from(value));
                }
            }
            wanted.extend(map);
            fields.put_on(&mut got);
            prop_assert_eq!(got, wanted);
        }
    }
}
