//! Names and values as query strings and forms carry them (WHATWG URL, `application/x-www-form-urlencoded`), read without losing what
//! is not changed.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use std::borrow::Cow;

const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The decoded pairs of a text; a name without `=` has no value. Empty pieces are left out.
pub(crate) fn read(text: &str) -> impl Iterator<Item = (String, Option<String>)> {
    text.split('&').filter(|piece| !piece.is_empty()).map(|piece| {
        let (name, value) = piece.split_once('=').map_or((piece, None), |(n, v)| (n, Some(v)));
        (decoded(name), value.map(decoded))
    })
}

fn decoded(text: &str) -> String {
    let spaced: Cow<'_, str> = if text.contains('+') { Cow::Owned(text.replace('+', " ")) } else { Cow::Borrowed(text) };
    percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
}

/// Pairs that can be changed. A pair that stays is written as it was read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pairs(Vec<Pair>);

#[derive(Debug, Clone, PartialEq)]
struct Pair {
    name: String,
    /// As it was read or will be written.
    text: String,
}

impl Pair {
    fn new(name: &str, value: &str) -> Pair {
        Pair { name: name.into(), text: format!("{}={}", utf8_percent_encode(name, ENCODED), utf8_percent_encode(value, ENCODED)) }
    }
}

impl Pairs {
    pub fn parse(text: &str) -> Pairs {
        let pieces = text.split('&').filter(|piece| !piece.is_empty());
        Pairs(pieces.map(|piece| Pair { name: decoded(piece.split('=').next().unwrap_or(piece)), text: piece.into() }).collect())
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|p| p.name == name)
    }

    pub fn remove(&mut self, name: &str) {
        self.0.retain(|p| p.name != name);
    }

    /// All pairs called `old` are called `new`; others called `new` go. Nothing happens if there is no `old`.
    pub fn rename(&mut self, old: &str, new: &str) {
        if old == new || !self.has(old) {
            return;
        }
        self.remove(new);
        for pair in self.0.iter_mut().filter(|p| p.name == old) {
            let encoded = utf8_percent_encode(new, ENCODED);
            pair.text = match pair.text.split_once('=') {
                Some((_, value)) => format!("{encoded}={value}"),
                None => encoded.to_string(),
            };
            pair.name = new.into();
        }
    }

    /// One pair instead of all that are called `name`, in the place of the first.
    pub fn replace(&mut self, name: &str, value: &str) {
        if let Some(first) = self.0.iter().position(|p| p.name == name) {
            self.0[first] = Pair::new(name, value);
            let mut at = 0;
            self.0.retain(|p| {
                at += 1;
                at - 1 == first || p.name != name
            });
        }
    }

    pub fn append(&mut self, name: &str, value: &str) {
        self.0.push(Pair::new(name, value));
    }

    /// Adds the pairs of another text as they are.
    pub fn extend(&mut self, other: Pairs) {
        self.0.extend(other.0);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn text(&self) -> String {
        self.0.iter().map(|p| p.text.as_str()).collect::<Vec<_>>().join("&")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn changes() {
        let mut pairs = Pairs::parse("a=1&b=%20x&a=2&&flag");
        pairs.replace("a", "3 4");
        pairs.rename("b", "c d");
        pairs.rename("none", "flag");
        pairs.append("e", "&=é");
        assert_eq!(pairs.text(), "a=3%204&c%20d=%20x&flag&e=%26%3D%C3%A9");
        pairs.remove("flag");
        pairs.replace("none", "1");
        assert_eq!(pairs.text(), "a=3%204&c%20d=%20x&e=%26%3D%C3%A9");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(name in ".{1,20}", value in ".{0,20}") {
            let mut pairs = Pairs::parse("");
            pairs.append(&name, &value);
            prop_assert_eq!(read(&pairs.text()).collect::<Vec<_>>(), vec![(name, Some(value))]);
        }

        #[test]
        fn what_is_not_changed_stays(text in "([a-z%+]{1,4}(=[a-z%+]{0,4})?)(&[a-z%+]{1,4}(=[a-z%+]{0,4})?){0,4}") {
            prop_assert_eq!(Pairs::parse(&text).text(), text);
        }
    }
}
