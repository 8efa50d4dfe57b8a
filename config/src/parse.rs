//! Text to [`Node`]: YAML 1.2 (and so JSON) with anchors, aliases and merge keys, within limits.

use crate::env::{self, Env, Expanded};
use crate::node::{Key, Kind, ScalarSource};
use crate::{Diagnostic, Node, Source, Span};
use saphyr_parser::{Event, Parser, ScalarStyle, Tag};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Lists and mappings nest this deep at most.
pub const MAX_DEPTH: usize = 64;
/// Values in a file, counting what aliases repeat.
pub const MAX_NODES: usize = 2_000_000;
/// Bytes in a file.
pub const MAX_BYTES: usize = 32 * 1024 * 1024;

/// Parses one document. `None` after an error that leaves no tree; mistakes that leave one (a duplicate key, a missing
/// variable) are reported and the tree is returned. Without an `env` nothing is expanded.
pub(crate) fn parse(source: &Arc<Source>, env: Option<&Env>, diagnostics: &mut Vec<Diagnostic>) -> Option<Node> {
    if source.text().len() > MAX_BYTES {
        let message = format!("the file is larger than {} MiB", MAX_BYTES / 1024 / 1024);
        diagnostics.push(Diagnostic::error("too-large", &Span::new(source, 1, 1, 0), message));
        return None;
    }
    let text = source.text().strip_prefix('\u{feff}').unwrap_or(source.text());
    let mut builder = Builder { source, env, diagnostics, stack: vec![], anchors: HashMap::new(), root: None, total: 0, documents: 0, cursor: (0, 0, 0) };
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = match event {
            Ok(event) => event,
            Err(error) => {
                let mark = error.marker();
                let span = builder.clamp(mark.line(), mark.col() + 1);
                // The scanner has a limit of its own for `[[[[…`.
                let found = if error.info().contains("recursion limit") {
                    too_deep(&span)
                } else {
                    let (message, hint) = scan_error(error.info(), source, &span);
                    Diagnostic::error("yaml", &span, message).maybe_hint(hint)
                };
                builder.diagnostics.push(found);
                return None;
            }
        };
        if let Err(fatal) = builder.event(event, span) {
            builder.diagnostics.push(*fatal);
            return None;
        }
    }
    builder.root
}

fn too_deep(span: &Span) -> Diagnostic {
    Diagnostic::error("too-deep", span, format!("lists and mappings nest more than {MAX_DEPTH} deep"))
}

/// The scanner's words, said so that they help the one who wrote the file.
fn scan_error(info: &str, source: &Source, span: &Span) -> (String, Option<String>) {
    let line = source.line(span.line).unwrap_or("");
    let hint = if line.chars().take_while(|c| c.is_whitespace()).any(|c| c == '\t') || info.contains("tab") {
        Some("YAML is indented with spaces, not tabs".to_string())
    } else if info.contains("quoted scalar") {
        Some("is the quote closed? the lines of a quoted text are indented".to_string())
    } else if info.contains("simple key expected") || info.contains("while scanning a simple key") {
        Some("is a `:` missing after the key, or a quote not closed?".to_string())
    } else if info.contains("mapping values are not allowed") {
        let above = source.line(span.line.saturating_sub(1)).unwrap_or("").split(" #").next().unwrap_or("").trim();
        match above.is_empty() || above.contains(": ") || above.ends_with(':') {
            true => Some("is the line indented as its neighbours are? a text with `: ` in it needs quotes".to_string()),
            false => Some("is a `:` missing in the line above?".to_string()),
        }
    } else if info.contains("did not find expected") {
        Some("is the line indented as its neighbours are?".to_string())
    } else {
        None
    };
    (format!("this is not YAML: {info}"), hint)
}

/// A list or mapping that is not yet complete.
struct Open {
    span: Span,
    anchor: usize,
    kind: OpenKind,
}

enum OpenKind {
    Seq(Vec<Node>),
    Map {
        entries: Vec<(Key, Node)>,
        seen: HashMap<String, Span>,
        /// Key that waits for its value.
        pending: Option<Pending>,
        /// What `<<` brought in, in order.
        merged: Vec<Node>,
    },
}

enum Pending {
    Key(Key),
    /// A key that stands in the mapping already, in this line.
    Again(Key, u32),
    Merge,
    Refused,
}

struct Builder<'a, 'd> {
    source: &'a Arc<Source>,
    env: Option<&'a Env>,
    diagnostics: &'d mut Vec<Diagnostic>,
    stack: Vec<Open>,
    anchors: HashMap<usize, Node>,
    root: Option<Node>,
    total: usize,
    documents: usize,
    /// Line, characters into it, and bytes into it, of the last place: a file may be one line of a megabyte.
    cursor: (u32, usize, usize),
}

type Fatal = Box<Diagnostic>;

impl Builder<'_, '_> {
    fn event(&mut self, event: Event<'_>, span: saphyr_parser::Span) -> Result<(), Fatal> {
        let place = self.place(&span);
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(Box::new(
                        Diagnostic::error("yaml", &place, "a second document begins here").hint("a configuration is one document: remove the `---`"),
                    ));
                }
            }
            Event::SequenceStart(anchor, tag) => {
                self.tag_of_collection(tag, "seq", &place);
                self.open(place, anchor, OpenKind::Seq(vec![]))?;
            }
            Event::MappingStart(anchor, tag) => {
                self.tag_of_collection(tag, "map", &place);
                self.open(place, anchor, OpenKind::Map { entries: vec![], seen: HashMap::new(), pending: None, merged: vec![] })?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(open) = self.stack.pop() {
                    let (anchor, node) = self.close(open)?;
                    self.add(node, anchor, false)?;
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                let is_key = matches!(self.stack.last(), Some(Open { kind: OpenKind::Map { pending: None, .. }, .. }));
                let merge = is_key && style == ScalarStyle::Plain && text == "<<";
                let node = self.scalar(text, style, tag, place, is_key);
                self.add(node, anchor, merge)?;
            }
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor).cloned() else {
                    return Err(Box::new(Diagnostic::error("yaml", &place, "this alias stands inside of what it names")));
                };
                self.count(node.weight(), &place)?;
                self.add(node, 0, false)?;
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
        Ok(())
    }

    fn open(&mut self, span: Span, anchor: usize, kind: OpenKind) -> Result<(), Fatal> {
        if self.stack.len() >= MAX_DEPTH {
            return Err(Box::new(too_deep(&span)));
        }
        self.stack.push(Open { span, anchor, kind });
        Ok(())
    }

    fn count(&mut self, nodes: usize, place: &Span) -> Result<(), Fatal> {
        self.total = self.total.saturating_add(nodes);
        if self.total > MAX_NODES {
            let hint = "do aliases repeat each other?";
            return Err(Box::new(Diagnostic::error("too-large", place, format!("more than {MAX_NODES} values")).hint(hint)));
        }
        Ok(())
    }

    /// Puts a finished value where it belongs.
    fn add(&mut self, node: Node, anchor: usize, merge: bool) -> Result<(), Fatal> {
        self.count(1, node.span())?;
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.stack.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut open.kind {
            OpenKind::Seq(items) => items.push(node),
            OpenKind::Map { entries, seen, pending, merged, .. } => match pending.take() {
                None if merge => *pending = Some(Pending::Merge),
                None => {
                    let name = match node.kind() {
                        Kind::Seq(_) | Kind::Map(_) => {
                            self.diagnostics.push(
                                Diagnostic::error("yaml", node.span(), format!("{} cannot be a key", node.describe()))
                                    .hint("a text that begins with `{`, `[` or `*` needs quotes"),
                            );
                            *pending = Some(Pending::Refused);
                            return Ok(());
                        }
                        Kind::Null => "null".to_string(),
                        _ => node.scalar_text(),
                    };
                    if entries.is_empty() && open.span.len == 0 {
                        open.span = node.span().clone();
                    }
                    if let Some(first) = seen.get(&name) {
                        let line = first.line;
                        *pending = Some(Pending::Again(Key { name, span: node.span().clone() }, line));
                    } else {
                        seen.insert(name.clone(), node.span().clone());
                        *pending = Some(Pending::Key(Key { name, span: node.span().clone() }));
                    }
                }
                Some(Pending::Refused) => {}
                Some(Pending::Again(key, line)) => {
                    let scalar = |node: &Node| !matches!(node.kind(), Kind::Seq(_) | Kind::Map(_));
                    let first = entries.iter().find(|(known, _)| known.name == key.name).map(|(_, value)| value);
                    let same = first.is_some_and(|first| scalar(first) && scalar(&node) && first.scalar_text() == node.scalar_text());
                    let message = format!("the key `{}` stands here a second time", key.name);
                    // With one value, nothing is lost whichever counts.
                    let found = if same { Diagnostic::warning("duplicate-key", &key.span, message) } else { Diagnostic::error("duplicate-key", &key.span, message) };
                    self.diagnostics.push(found.hint(format!("first at line {line}")));
                }
                Some(Pending::Merge) => match node.kind() {
                    Kind::Map(_) => merged.push(node),
                    Kind::Seq(items) if items.iter().all(|item| matches!(item.kind(), Kind::Map(_))) => merged.extend(items.iter().cloned()),
                    _ => self.diagnostics.push(Diagnostic::error("yaml", node.span(), "`<<` merges a mapping, or a list of mappings")),
                },
                Some(Pending::Key(key)) => entries.push((key, node)),
            },
        }
        Ok(())
    }

    fn close(&mut self, open: Open) -> Result<(usize, Node), Fatal> {
        let kind = match open.kind {
            OpenKind::Seq(items) => Kind::Seq(items),
            OpenKind::Map { mut entries, merged, .. } => {
                if !merged.is_empty() {
                    let mut known: HashSet<String> = entries.iter().map(|(key, _)| key.name.clone()).collect();
                    // A key of the mapping itself wins over a merged one, an earlier merge over a later one.
                    for (key, value) in merged.iter().flat_map(Node::entries) {
                        if known.insert(key.name.clone()) {
                            self.count(value.weight(), &open.span)?;
                            entries.push((key.clone(), value.clone()));
                        }
                    }
                }
                Kind::Map(entries)
            }
        };
        Ok((open.anchor, Node::at(open.span, kind)))
    }

    fn tag_of_collection(&mut self, tag: Option<Cow<'_, Tag>>, wanted: &str, place: &Span) {
        if let Some(tag) = tag
            && !(tag.is_yaml_core_schema() && tag.suffix == wanted)
            && !(tag.handle.is_empty() || tag.suffix.is_empty())
        {
            self.unknown_tag(&tag, place);
        }
    }

    fn unknown_tag(&mut self, tag: &Tag, place: &Span) {
        self.diagnostics.push(Diagnostic::error("yaml", place, format!("the tag `{tag}` has no meaning here")).hint("remove it"));
    }

    fn scalar(&mut self, text: Cow<'_, str>, style: ScalarStyle, tag: Option<Cow<'_, Tag>>, span: Span, is_key: bool) -> Node {
        let plain = style == ScalarStyle::Plain;
        let mut source = ScalarSource { plain, ..ScalarSource::default() };
        let mut as_text = !plain;
        let mut wanted = None;
        if let Some(tag) = tag {
            match (tag.is_yaml_core_schema(), tag.suffix.as_str()) {
                (true, "str") => as_text = true,
                (true, "int" | "float" | "bool" | "null") => {
                    as_text = false;
                    wanted = Some(tag.suffix.clone());
                }
                (false, "") => as_text = true,
                _ => self.unknown_tag(&tag, &span),
            }
        }
        if let (Some(env), false) = (self.env, is_key) {
            match env::expand(&text, env) {
                Ok(Expanded::Unchanged) => {}
                Ok(Expanded::To(text)) => {
                    source.expanded = true;
                    return Node::build(span, Kind::String(text), source);
                }
                Err(problems) => {
                    for problem in problems {
                        let span = within(&span, style, &text, problem.at, problem.len);
                        self.diagnostics.push(Diagnostic::error(problem.code, &span, problem.message).maybe_hint(problem.hint));
                    }
                    source.expanded = true;
                    source.broken = true;
                    return Node::build(span, Kind::String(String::new()), source);
                }
            }
        }
        if as_text {
            return Node::build(span, Kind::String(text.into_owned()), source);
        }
        let kind = resolve(&text);
        if let Some(wanted) = wanted {
            let fits = matches!(
                (wanted.as_str(), &kind),
                ("int", Kind::Int(_)) | ("float", Kind::Int(_) | Kind::Float(_)) | ("bool", Kind::Bool(_)) | ("null", Kind::Null)
            );
            if !fits {
                self.diagnostics.push(Diagnostic::error("yaml", &span, format!("this is not what the tag `!!{wanted}` says")));
                source.broken = true;
            }
        }
        source.text = Some(text.into_owned());
        Node::build(span, kind, source)
    }

    /// A place in our terms: cut to the first line, without trailing blanks.
    fn place(&mut self, span: &saphyr_parser::Span) -> Span {
        let (line, column) = (span.start.line(), span.start.col() + 1);
        let mut place = self.clamp(line, column);
        let Some(text) = self.source.line(place.line) else { return place };
        let chars = place.column as usize - 1;
        let (from, skipped) = match self.cursor {
            (known, before, bytes) if known == place.line && before <= chars => (bytes, before),
            _ => (0, 0),
        };
        let rest = text.get(from..).unwrap_or("");
        let start = from + rest.char_indices().nth(chars - skipped).map_or(rest.len(), |(at, _)| at);
        self.cursor = (place.line, chars, start);
        let want = if span.end.line() == line { span.end.col().saturating_sub(span.start.col()) } else { usize::MAX };
        let shown = text.get(start..).unwrap_or("");
        let shown = shown.char_indices().nth(want).map_or(shown, |(end, _)| &shown[..end]);
        place.len = u32::try_from(shown.trim_end().chars().count()).unwrap_or(0);
        place
    }

    /// A position inside the text: the scanner reports the end of input as a line that does not exist.
    fn clamp(&self, line: usize, column: usize) -> Span {
        let mut line = u32::try_from(line).unwrap_or(u32::MAX).max(1);
        let mut column = u32::try_from(column).unwrap_or(u32::MAX).max(1);
        while line > 1 && self.source.line(line).is_none_or(|text| text.is_empty() && self.source.line(line + 1).is_none()) {
            line -= 1;
            column = self.source.line(line).map_or(1, |text| u32::try_from(text.chars().count() + 1).unwrap_or(1));
        }
        Span::new(self.source, line, column, 0)
    }
}

/// The place of a part of a scalar, where the source shows the text as it is; else the scalar's own.
fn within(span: &Span, style: ScalarStyle, text: &str, at: usize, len: usize) -> Span {
    let Some(line) = span.source.as_ref().and_then(|source| source.line(span.line)) else { return span.clone() };
    let quote = u32::from(matches!(style, ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted));
    let start = span.column - 1 + quote;
    let part: String = text.chars().skip(at).take(len).collect();
    let from = start as usize + at;
    let shown: String = line.chars().skip(from).take(len).collect();
    match (shown == part, u32::try_from(from + 1), u32::try_from(len)) {
        (true, Ok(column), Ok(len)) => Span { column, len, ..span.clone() },
        _ => span.clone(),
    }
}

/// What a plain scalar means: YAML 1.2's core schema, less what readers of other versions read otherwise. `yes`, `on`, `1_000`,
/// `1:30` and `010` stay text here; where a boolean is wanted, `yes` and `on` are understood then.
pub(crate) fn resolve(text: &str) -> Kind {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Kind::Null,
        "true" | "True" | "TRUE" => return Kind::Bool(true),
        "false" | "False" | "FALSE" => return Kind::Bool(false),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Kind::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return Kind::Float(f64::NEG_INFINITY),
        ".nan" | ".NaN" | ".NAN" => return Kind::Float(f64::NAN),
        _ => {}
    }
    match number(text) {
        Some(kind) => kind,
        None => Kind::String(text.to_string()),
    }
}

pub(crate) fn number(text: &str) -> Option<Kind> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let bytes = unsigned.as_bytes();
    if !bytes.first().is_some_and(|b| b.is_ascii_digit() || *b == b'.') {
        return None;
    }
    if bytes.iter().all(u8::is_ascii_digit) {
        if bytes.len() > 1 && bytes[0] == b'0' {
            return None;
        }
        return text.strip_prefix('+').unwrap_or(text).parse().ok().map(Kind::Int);
    }
    if let Some(hex) = text.strip_prefix("0x").filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit())) {
        return i128::from_str_radix(hex, 16).ok().map(Kind::Int);
    }
    if let Some(octal) = text.strip_prefix("0o").filter(|octal| octal.bytes().all(|b| b.is_ascii_digit())) {
        return i128::from_str_radix(octal, 8).ok().map(Kind::Int);
    }
    let only = bytes.iter().all(|b| matches!(b, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'));
    let octal_like = bytes.len() > 1 && bytes[0] == b'0' && bytes[1].is_ascii_digit();
    if !only || octal_like || !bytes.iter().any(u8::is_ascii_digit) {
        return None;
    }
    text.parse::<f64>().ok().filter(|value| value.is_finite()).map(Kind::Float)
}
