//! The paths of one host pattern, and at each path the candidates in their order.
//!
//! ```text
//! prefixes: radix tree ─► Leaf          every prefix of the request's path, longest first
//! regexes:  few ────────► Leaf          all of them, in order
//!           many ───────► Leaf a word   those whose rarest required text occurs in the path (one Aho-Corasick pass)
//! Leaf:     candidates by rank; if many, those that ask for a header value or a server name are found by that value
//! ```

use super::{
    conditions::{Conditions, Subject, lower_value},
    host::Name,
    pattern::Pattern,
    trie::Trie,
};
use ahash::{HashMap, HashSet};
use aho_corasick::AhoCorasick;
use http::HeaderName;
use smallvec::SmallVec;
use std::sync::Arc;

/// Up to so many candidates are tried one by one: that is cheaper than any table.
const FEW: usize = 12;
/// Stands for "no pattern".
const NO_PATTERN: u32 = u32::MAX;

/// One way for a route to match.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    /// Position in the order of all ways of all routes; the lowest that matches wins.
    pub(super) rank: u32,
    /// Index of the route as it was given.
    pub(super) route: u32,
    /// Index of its conditions.
    pub(super) conditions: u32,
    /// Index of its path regex.
    pattern: u32,
}

impl Candidate {
    /// A candidate with or without a path regex.
    pub(super) fn new(rank: u32, route: u32, conditions: u32, pattern: Option<u32>) -> Self {
        Candidate { rank, route, conditions, pattern: pattern.unwrap_or(NO_PATTERN) }
    }

    /// Index of its path regex.
    pub(super) fn pattern(&self) -> Option<u32> {
        (self.pattern != NO_PATTERN).then_some(self.pattern)
    }
}

/// What candidates refer to.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) conditions: Vec<Conditions>,
    pub(super) patterns: Vec<Arc<Pattern>>,
    /// Some route is for WebSocket alone.
    pub(super) websocket: bool,
}

/// The best candidate so far.
pub(super) struct Best {
    pub(super) candidate: Candidate,
    /// Bytes of the matching text that it took.
    pub(super) len: usize,
}

/// A search under way.
pub(super) struct Search<'r, 'q> {
    pub(super) shared: &'r Shared,
    pub(super) subject: &'q Subject<'q>,
    pub(super) best: Option<Best>,
}

impl Search<'_, '_> {
    fn can_win(&self, rank: u32) -> bool {
        self.best.as_ref().is_none_or(|best| rank < best.candidate.rank)
    }

    /// Tries candidates, best first, that all matched `len` bytes if they are no regexes.
    fn try_list(&mut self, list: &[Candidate], len: usize) {
        for candidate in list {
            if !self.can_win(candidate.rank) {
                return;
            }
            if !self.shared.conditions[candidate.conditions as usize].accept(self.subject) {
                continue;
            }
            let matched = match candidate.pattern() {
                None => Some(len),
                Some(pattern) => self.shared.patterns[pattern as usize].match_start(self.subject.text),
            };
            if let Some(len) = matched {
                self.best = Some(Best { candidate: *candidate, len });
                return;
            }
        }
    }
}

/// The paths of one host pattern while they are collected. Candidates without a path stand at the empty prefix.
#[derive(Default)]
pub(super) struct PathsBuilder<'c> {
    prefixes: HashMap<&'c str, Vec<Candidate>>,
    regexes: Vec<Candidate>,
}

impl<'c> PathsBuilder<'c> {
    /// Adds a candidate that matches below a prefix.
    pub(super) fn add_prefix(&mut self, prefix: &'c str, candidate: Candidate) {
        self.prefixes.entry(prefix).or_default().push(candidate);
    }

    /// Adds a candidate that has a regex.
    pub(super) fn add_regex(&mut self, candidate: Candidate) {
        self.regexes.push(candidate);
    }

    /// Arranges everything for look-ups.
    pub(super) fn build(self, shared: &Shared) -> Paths {
        let mut prefixes = Trie::new();
        for (prefix, list) in self.prefixes {
            prefixes.insert(prefix.as_bytes(), Leaf::new(list, shared));
        }
        Paths { prefixes, regexes: Regexes::new(self.regexes, shared) }
    }
}

/// The paths of one host pattern.
#[derive(Debug)]
pub(super) struct Paths {
    prefixes: Trie<Leaf>,
    regexes: Regexes,
}

impl Paths {
    /// Improves the search's best candidate if one of these is better.
    pub(super) fn search(&self, search: &mut Search<'_, '_>) {
        let mut leaves: SmallVec<[(usize, &Leaf); 16]> = SmallVec::new();
        self.prefixes.prefixes(search.subject.text.as_bytes(), |len, leaf| leaves.push((len, leaf)));
        // Regexes cost the most: prefixes may have made them pointless.
        for (len, leaf) in leaves.into_iter().rev() {
            leaf.search(search, len);
        }
        self.regexes.search(search);
    }
}

#[derive(Debug)]
struct Regexes {
    /// Those that are tried for every path.
    always: Leaf,
    by_word: Option<Words>,
}

#[derive(Debug)]
struct Words {
    finder: AhoCorasick,
    /// By the finder's index.
    leaves: Vec<Leaf>,
    lowest: u32,
}

impl Regexes {
    fn new(list: Vec<Candidate>, shared: &Shared) -> Self {
        if list.len() <= FEW {
            return Regexes { always: Leaf::new(list, shared), by_word: None };
        }
        let words_of = |candidate: &Candidate| match candidate.pattern() {
            Some(pattern) => shared.patterns[pattern as usize].literals(),
            None => &[],
        };
        let mut occurrences: HashMap<&[u8], usize> = HashMap::default();
        for candidate in &list {
            let distinct: HashSet<_> = words_of(candidate).iter().collect();
            for word in distinct {
                *occurrences.entry(word.as_slice()).or_default() += 1;
            }
        }
        // The rarest text tells the regexes apart; of equally rare ones, the longest occurs in the fewest paths.
        let mut by_word: HashMap<&[u8], Vec<Candidate>> = HashMap::default();
        let mut always = Vec::new();
        for candidate in &list {
            let rarest = words_of(candidate).iter().min_by_key(|word| (occurrences[word.as_slice()], std::cmp::Reverse(word.len())));
            match rarest {
                Some(word) => by_word.entry(word).or_default().push(*candidate),
                None => always.push(*candidate),
            }
        }
        let (words, lists): (Vec<&[u8]>, Vec<Vec<Candidate>>) = by_word.into_iter().unzip();
        match AhoCorasick::new(words) {
            Ok(finder) => {
                let lowest = lists.iter().flatten().map(|candidate| candidate.rank).min().unwrap_or(u32::MAX);
                let leaves = lists.into_iter().map(|list| Leaf::new(list, shared)).collect();
                Regexes { always: Leaf::new(always, shared), by_word: Some(Words { finder, leaves, lowest }) }
            }
            // More words than the automaton holds: then each regex is tried.
            Err(_) => Regexes { always: Leaf::new(list, shared), by_word: None },
        }
    }

    fn search(&self, search: &mut Search<'_, '_>) {
        self.always.search(search, 0);
        let Some(words) = &self.by_word else { return };
        if !search.can_win(words.lowest) {
            return;
        }
        let mut seen: SmallVec<[u32; 16]> = SmallVec::new();
        for found in words.finder.find_overlapping_iter(search.subject.text) {
            let word = found.pattern().as_u32();
            if !seen.contains(&word) {
                seen.push(word);
            }
        }
        for word in seen {
            words.leaves[word as usize].search(search, 0);
        }
    }
}

/// Candidates that the path does not tell apart.
#[derive(Debug)]
struct Leaf {
    list: Vec<Candidate>,
    tables: Option<Box<Tables>>,
}

/// Candidates that are only worth trying for certain values.
#[derive(Debug, Default)]
struct Tables {
    headers: HashMap<HeaderName, HashMap<Box<[u8]>, Vec<Candidate>>>,
    snis: HashMap<Box<str>, Vec<Candidate>>,
    /// All of `snis`: without TLS, server names are no condition.
    without_tls: Vec<Candidate>,
}

impl Leaf {
    fn new(mut list: Vec<Candidate>, shared: &Shared) -> Self {
        list.sort_unstable_by_key(|candidate| candidate.rank);
        // Of two that ask for the same, the later never wins.
        let mut seen = HashSet::default();
        list.retain(|candidate| seen.insert((candidate.conditions, candidate.pattern)));
        if list.len() <= FEW {
            return Leaf { list, tables: None };
        }
        let mut tables = Tables::default();
        let names = header_names(&list, shared);
        list.retain(|candidate| !tables.take(candidate, shared, &names));
        Leaf { list, tables: Some(Box::new(tables)) }
    }

    fn search(&self, search: &mut Search<'_, '_>, len: usize) {
        search.try_list(&self.list, len);
        let Some(tables) = &self.tables else { return };
        if !tables.headers.is_empty() {
            let headers = search.subject.query.headers;
            for name in headers.keys() {
                let Some(values) = tables.headers.get(name) else { continue };
                for value in headers.get_all(name) {
                    if let Some(list) = values.get(lower_value(value.as_bytes()).as_slice()) {
                        search.try_list(list, len);
                    }
                }
            }
        }
        if !search.subject.tls {
            search.try_list(&tables.without_tls, len);
        } else if let Some(list) = search.subject.sni.and_then(|sni| tables.snis.get(sni)) {
            search.try_list(list, len);
        }
    }
}

/// How many candidates each header name with plain values could tell apart.
fn header_names(list: &[Candidate], shared: &Shared) -> HashMap<HeaderName, usize> {
    let mut values: HashMap<&HeaderName, HashSet<&[u8]>> = HashMap::default();
    for candidate in list {
        for header in &shared.conditions[candidate.conditions as usize].headers {
            if header.patterns.is_empty() {
                values.entry(&header.name).or_default().extend(header.values.iter().map(|value| &**value));
            }
        }
    }
    values.into_iter().map(|(name, values)| (name.clone(), values.len())).collect()
}

impl Tables {
    /// Files a candidate under a value that it asks for, if it asks for one.
    fn take(&mut self, candidate: &Candidate, shared: &Shared, names: &HashMap<HeaderName, usize>) -> bool {
        let conditions = &shared.conditions[candidate.conditions as usize];
        let telling = conditions
            .headers
            .iter()
            .filter(|header| header.patterns.is_empty())
            .max_by_key(|header| names.get(&header.name).copied().unwrap_or(0));
        if let Some(header) = telling {
            let values = self.headers.entry(header.name.clone()).or_default();
            for value in &header.values {
                values.entry(value.clone()).or_default().push(*candidate);
            }
            return true;
        }
        let plain = conditions.snis.iter().all(Name::is_plain);
        if conditions.snis.is_empty() || !plain {
            return false;
        }
        for name in &conditions.snis {
            if let Name::Exact(name) = name {
                self.snis.entry(name.as_str().into()).or_default().push(*candidate);
            }
        }
        self.without_tls.push(*candidate);
        true
    }
}
