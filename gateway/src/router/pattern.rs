//! Regular expressions of paths and headers.
//!
//! A pattern is checked when the router is built, but its machine is made when a request first needs it: ten thousand of them
//! take milliseconds to check and the better part of a second to compile. Patterns that the linear-time engine cannot express
//! (look-around, back-references, atomic groups) run on a backtracking engine with a bounded number of steps.

use regex_automata::{
    Anchored, Input, PatternID,
    meta::{self, Regex},
    util::{captures::Captures as Slots, syntax},
};
use regex_syntax::hir::{Class, Hir, HirKind};
use std::sync::{Arc, OnceLock};

/// Steps that one backtracking search may take before it counts as no match.
const BACKTRACK_LIMIT: usize = 50_000;
/// Bytes that one compiled automaton may have.
const SIZE_LIMIT: usize = 10 << 20;
/// Patterns of a greater estimated size are compiled at once, to learn whether they fit [`SIZE_LIMIT`].
const LAZY_WEIGHT: u64 = 20_000;

/// Where a pattern applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// At the start of a path.
    Path,
    /// Anywhere in a header value, in any case.
    Header,
}

/// A valid pattern.
#[derive(Debug)]
pub(super) struct Pattern {
    text: Box<str>,
    kind: Kind,
    backtracks: bool,
    /// Texts that every match contains.
    literals: Vec<Vec<u8>>,
    machine: OnceLock<Option<Machine>>,
}

#[derive(Debug)]
enum Machine {
    Linear { regex: Regex, names: Names },
    Backtracking { regex: fancy_regex::Regex, names: Names },
}

type Names = Arc<[Option<Box<str>>]>;

impl Pattern {
    /// Checks a pattern.
    ///
    /// Errors: what is wrong with it, as the end of a sentence.
    pub(super) fn new(text: &str, kind: Kind) -> Result<Pattern, String> {
        let mut parser =
            regex_syntax::ParserBuilder::new().case_insensitive(kind == Kind::Header).utf8(true).nest_limit(100).build();
        let mut pattern = Pattern {
            text: text.into(),
            kind,
            backtracks: false,
            literals: Vec::new(),
            machine: OnceLock::new(),
        };
        let eager = match parser.parse(text) {
            Ok(hir) => {
                if kind == Kind::Path {
                    required_literals(&hir, &mut Vec::new(), &mut pattern.literals);
                }
                weight(&hir) > LAZY_WEIGHT
            }
            Err(error) => {
                explain(&error)?;
                pattern.backtracks = true;
                pattern.machine = OnceLock::from(Some(pattern.backtracking().map_err(|e| e.to_string())?));
                false
            }
        };
        if eager {
            pattern.machine = OnceLock::from(Some(pattern.linear()?));
        }
        Ok(pattern)
    }

    /// Texts that every match contains; none for patterns that backtrack.
    pub(super) fn literals(&self) -> &[Vec<u8>] {
        &self.literals
    }

    /// Length of the match at the start of `text`.
    pub(super) fn match_start(&self, text: &str) -> Option<usize> {
        match self.machine()? {
            Machine::Linear { regex, .. } => regex.search(&Input::new(text).anchored(Anchored::Yes)).map(|found| found.end()),
            Machine::Backtracking { regex, .. } => {
                regex.find(text).inspect_err(|e| self.gave_up(e)).ok().flatten().map(|found| found.end())
            }
        }
    }

    /// Whether `value` contains a match.
    pub(super) fn is_in(&self, value: &[u8]) -> bool {
        match self.machine() {
            None => false,
            Some(Machine::Linear { regex, .. }) => regex.is_match(value),
            Some(Machine::Backtracking { regex, .. }) => match std::str::from_utf8(value) {
                Ok(value) => regex.is_match(value).inspect_err(|e| self.gave_up(e)).unwrap_or(false),
                Err(_) => false,
            },
        }
    }

    /// The groups of the match at the start of `text`; `None` if the pattern has no groups.
    pub(super) fn captures(&self, text: &str) -> Option<Captures> {
        let (spans, names): (Vec<Option<(usize, usize)>>, &Names) = match self.machine()? {
            Machine::Linear { regex, names } => {
                if names.len() < 2 {
                    return None;
                }
                let mut slots: Slots = regex.create_captures();
                regex.search_captures(&Input::new(text).anchored(Anchored::Yes), &mut slots);
                (slots.iter().map(|span| span.map(|span| (span.start, span.end))).collect(), names)
            }
            Machine::Backtracking { regex, names } => {
                if names.len() < 2 {
                    return None;
                }
                let slots = regex.captures(text).ok().flatten()?;
                (slots.iter().map(|found| found.map(|found| (found.start(), found.end()))).collect(), names)
            }
        };
        let whole = spans.first().copied().flatten()?;
        Some(Captures { text: text[..whole.1].into(), spans, names: names.clone() })
    }

    fn machine(&self) -> Option<&Machine> {
        let machine = self.machine.get_or_init(|| {
            let made = if self.backtracks { self.backtracking().map_err(|e| e.to_string()) } else { self.linear() };
            made.inspect_err(|error| tracing::error!(pattern = %self.text, %error, "a pattern that was checked does not compile"))
                .ok()
        });
        machine.as_ref()
    }

    fn linear(&self) -> Result<Machine, String> {
        let regex = meta::Builder::new()
            .configure(meta::Config::new().nfa_size_limit(Some(SIZE_LIMIT)))
            .syntax(syntax::Config::new().case_insensitive(self.kind == Kind::Header).nest_limit(100))
            .build(&self.text)
            .map_err(|error| match error.size_limit() {
                Some(_) => "it is too large: its repetitions multiply to more than the engine holds".to_owned(),
                None => error.to_string(),
            })?;
        let names = regex.group_info().pattern_names(PatternID::ZERO).map(|name| name.map(Box::from)).collect();
        Ok(Machine::Linear { regex, names })
    }

    fn backtracking(&self) -> Result<Machine, fancy_regex::Error> {
        let build = |text: &str| {
            fancy_regex::RegexBuilder::new(text)
                .backtrack_limit(BACKTRACK_LIMIT)
                .delegate_size_limit(SIZE_LIMIT)
                .case_insensitive(self.kind == Kind::Header)
                .build()
        };
        let regex = match self.kind {
            // A pattern that ends in a comment (`(?x)`) would swallow the bracket; the line break ends it.
            Kind::Path => build(&format!(r"\A(?:{})", self.text)).or_else(|e| build(&format!("\\A(?:{}\n)", self.text)).map_err(|_| e))?,
            Kind::Header => build(&self.text)?,
        };
        let names = regex.capture_names().map(|name| name.map(Box::from)).collect();
        Ok(Machine::Backtracking { regex, names })
    }

    fn gave_up(&self, error: &fancy_regex::Error) {
        tracing::warn!(pattern = %self.text, %error, "a backtracking pattern gave up and counts as not matching");
    }
}

/// Whether the other engine may have what the linear one lacks; else what is wrong with the pattern.
fn explain(error: &regex_syntax::Error) -> Result<(), String> {
    use regex_syntax::ast::ErrorKind;
    match error {
        regex_syntax::Error::Parse(error) => match error.kind() {
            // Also `(?>…)` and conditions, which look like flags, and escapes such as `\Z`.
            ErrorKind::UnsupportedLookAround
            | ErrorKind::UnsupportedBackreference
            | ErrorKind::FlagUnrecognized
            | ErrorKind::EscapeUnrecognized => Ok(()),
            kind => Err(format!("{kind} (at character {})", error.span().start.column)),
        },
        regex_syntax::Error::Translate(error) => Err(format!("{} (at character {})", error.kind(), error.span().start.column)),
        other => Err(other.to_string()),
    }
}

/// Appends the texts that every match of `hir` contains. `run` is the literal under way.
fn required_literals(hir: &Hir, run: &mut Vec<u8>, out: &mut Vec<Vec<u8>>) {
    collect_literals(hir, run, out);
    end_run(run, out);
}

fn collect_literals(hir: &Hir, run: &mut Vec<u8>, out: &mut Vec<Vec<u8>>) {
    match hir.kind() {
        HirKind::Literal(literal) => run.extend_from_slice(&literal.0),
        HirKind::Empty | HirKind::Look(_) => {}
        HirKind::Concat(parts) => parts.iter().for_each(|part| collect_literals(part, run, out)),
        HirKind::Capture(group) => collect_literals(&group.sub, run, out),
        HirKind::Repetition(repetition) if repetition.min > 0 => {
            end_run(run, out);
            required_literals(&repetition.sub, run, out);
        }
        HirKind::Repetition(_) | HirKind::Alternation(_) | HirKind::Class(_) => end_run(run, out),
    }
}

fn end_run(run: &mut Vec<u8>, out: &mut Vec<Vec<u8>>) {
    if !run.is_empty() {
        out.push(std::mem::take(run));
    }
}

/// About how many states the compiled form has; never far too few.
fn weight(hir: &Hir) -> u64 {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => 1,
        HirKind::Literal(literal) => literal.0.len() as u64,
        HirKind::Class(Class::Unicode(class)) => 4 * class.ranges().len() as u64 + 1,
        HirKind::Class(Class::Bytes(class)) => class.ranges().len() as u64 + 1,
        HirKind::Repetition(repetition) => {
            let times = u64::from(repetition.max.unwrap_or(repetition.min.saturating_add(1)).max(1));
            weight(&repetition.sub).saturating_add(1).saturating_mul(times)
        }
        HirKind::Capture(group) => weight(&group.sub).saturating_add(2),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => {
            parts.iter().fold(1, |sum: u64, part| sum.saturating_add(weight(part)).saturating_add(1))
        }
    }
}

/// What the groups of a path regex matched. Kong's `uri_captures`: decoded like the text that routes are matched against.
#[derive(Debug, Clone)]
pub struct Captures {
    /// The matched part of the path.
    text: Box<str>,
    /// By group number; 0 is the whole match.
    spans: Vec<Option<(usize, usize)>>,
    names: Names,
}

impl Captures {
    /// What a group matched; 0 is the whole match. `None`: no such group, or it took no part in the match.
    pub fn get(&self, group: usize) -> Option<&str> {
        let (start, end) = (*self.spans.get(group)?)?;
        self.text.get(start..end)
    }

    /// What a named group matched. `None`: no such group, or it took no part in the match.
    pub fn name(&self, name: &str) -> Option<&str> {
        let group = self.names.iter().position(|known| known.as_deref() == Some(name))?;
        self.get(group)
    }

    /// Number, name and text of each group that took part in the match, by number, the whole match first.
    pub fn iter(&self) -> impl Iterator<Item = (usize, Option<&str>, &str)> {
        (0..self.spans.len()).filter_map(|group| {
            let name = self.names.get(group).and_then(|name| name.as_deref());
            Some((group, name, self.get(group)?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, Pattern};

    fn literals(text: &str) -> Vec<String> {
        let pattern = Pattern::new(text, Kind::Path).expect("a valid pattern");
        pattern.literals().iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect()
    }

    #[test]
    fn only_texts_that_every_match_contains_are_required() {
        assert_eq!(literals(r"/api/v\d+/users/(?<id>[^/]+)$"), ["/api/v", "/users/"]);
        assert_eq!(literals(r"/a(b)c(?:/d)?"), ["/abc"]);
        assert_eq!(literals(r"/(?:one|two)/three"), ["/", "/three"]);
        assert_eq!(literals(r"(?i)/api"), ["/"]);
        assert_eq!(literals(r"(?:/x)+/y*"), ["/x", "/"]);
        assert!(literals(r"(/a)?").is_empty());
    }

    #[test]
    fn too_large_a_pattern_is_an_error_when_the_router_is_built() {
        let error = Pattern::new(r"/(\w{200}){200}", Kind::Path).expect_err("too large");
        assert!(error.contains("too large"), "{error}");
    }

    #[test]
    fn a_runaway_pattern_gives_up() {
        let pattern = Pattern::new(r"/(?=a)(a+)+\1$", Kind::Path).expect("a valid pattern");
        assert_eq!(pattern.match_start(&format!("/{}b", "a".repeat(40))), None);
        assert_eq!(pattern.match_start("/aa"), Some(3));
    }

    #[test]
    fn a_pattern_that_ends_in_a_comment_works_on_both_engines() {
        for text in ["(?x)/a b # names", "(?x)/a(?=b) b # names"] {
            let pattern = Pattern::new(text, Kind::Path).expect("a valid pattern");
            assert_eq!(pattern.match_start("/abc"), Some(3), "{text}");
        }
    }
}
