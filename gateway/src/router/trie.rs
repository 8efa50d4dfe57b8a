//! A radix tree over bytes: finds every stored key that is a prefix of a text, in time that depends on the text's length and
//! not on the number of keys.

/// Keys with values.
#[derive(Debug)]
pub(super) struct Trie<T> {
    nodes: Vec<Node<T>>,
}

#[derive(Debug)]
struct Node<T> {
    /// Bytes from the parent to here; empty only at the root.
    label: Box<[u8]>,
    value: Option<T>,
    /// First byte of a child's label and the child, sorted by byte.
    children: Vec<(u8, u32)>,
}

impl<T> Trie<T> {
    /// A tree without keys.
    pub(super) fn new() -> Self {
        Trie { nodes: vec![Node { label: Box::default(), value: None, children: Vec::new() }] }
    }

    /// Whether no key has been inserted.
    pub(super) fn is_empty(&self) -> bool {
        self.nodes.len() == 1 && self.nodes[0].value.is_none()
    }

    /// Stores `value`, replacing what the key held.
    pub(super) fn insert(&mut self, key: &[u8], value: T) {
        let (mut at, mut rest) = (0, key);
        loop {
            let Some(&first) = rest.first() else {
                self.nodes[at].value = Some(value);
                return;
            };
            let slot = match self.nodes[at].children.binary_search_by_key(&first, |(byte, _)| *byte) {
                Ok(slot) => slot,
                Err(slot) => {
                    let leaf = self.push(Node { label: rest.into(), value: Some(value), children: Vec::new() });
                    self.nodes[at].children.insert(slot, (first, leaf));
                    return;
                }
            };
            let child = self.nodes[at].children[slot].1;
            let label = &self.nodes[child as usize].label;
            let common = label.iter().zip(rest).take_while(|(a, b)| a == b).count();
            if common < label.len() {
                // The new key leaves the old one inside this label: a node goes where they part.
                let (head, tail): (Box<[u8]>, Box<[u8]>) = (label[..common].into(), label[common..].into());
                let fork = self.push(Node { label: head, value: None, children: vec![(tail[0], child)] });
                self.nodes[child as usize].label = tail;
                self.nodes[at].children[slot].1 = fork;
                at = fork as usize;
            } else {
                at = child as usize;
            }
            rest = &rest[common..];
        }
    }

    fn push(&mut self, node: Node<T>) -> u32 {
        self.nodes.push(node);
        (self.nodes.len() - 1) as u32
    }

    /// Calls `visit` with the length and value of every key that `text` begins with, shortest first.
    pub(super) fn prefixes<'t>(&'t self, text: &[u8], mut visit: impl FnMut(usize, &'t T)) {
        let (mut node, mut at) = (&self.nodes[0], 0);
        loop {
            if let Some(value) = &node.value {
                visit(at, value);
            }
            let Some(first) = text.get(at) else { return };
            let Ok(slot) = node.children.binary_search_by_key(first, |(byte, _)| *byte) else { return };
            node = &self.nodes[node.children[slot].1 as usize];
            if !text[at..].starts_with(&node.label) {
                return;
            }
            at += node.label.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Trie;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn finds_exactly_the_keys_that_are_prefixes(keys in prop::collection::btree_set("[ab/]{0,6}", 0..40), text in "[ab/]{0,10}") {
            let mut trie = Trie::new();
            for key in &keys {
                trie.insert(key.as_bytes(), key.clone());
            }
            let mut found = Vec::new();
            trie.prefixes(text.as_bytes(), |len, key| {
                assert_eq!(len, key.len());
                found.push(key.clone());
            });
            let mut expected: Vec<_> = keys.iter().filter(|key| text.starts_with(key.as_str())).cloned().collect();
            expected.sort_by_key(|key| key.len());
            prop_assert_eq!(found, expected);
            prop_assert_eq!(trie.is_empty(), keys.is_empty());
        }
    }
}
