//! What is wrong, where, and what would be right.

use crate::mask;
use crate::Span;
use std::fmt;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The file is not used.
    Error,
    /// The file is used; it probably does not do what its author means.
    Warning,
    /// For information.
    Note,
}

impl Severity {
    /// `error`, `warning` or `note`.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        }
    }
}

/// One finding. Its `Display` is three lines: what and where, the line, a caret with the hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// Where.
    pub span: Span,
    /// What is wrong; lower case, no full stop, names in backquotes, never a secret.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Stable short name of the kind of finding: `yaml`, `encoding`, `empty`, `too-deep`, `too-large`, `duplicate-key`, `file`,
    /// `env-missing`, `env-syntax`, `vault`, `type`, `value`, `unknown-key`, `missing-key`, `duplicate-name`, `reference`,
    /// `missing-reference`, `unknown-plugin`, `duplicate-plugin`, `unsupported`, `format-version`, `regex`, `path`, `path-regex`,
    /// `shadowed`, `limit`, `metadata`, `secret`.
    pub code: &'static str,
}

impl Diagnostic {
    /// A finding of any severity.
    pub fn new(severity: Severity, code: &'static str, span: &Span, message: impl Into<String>) -> Self {
        Diagnostic { severity, span: span.clone(), message: message.into(), hint: None, code }
    }

    /// An error.
    pub fn error(code: &'static str, span: &Span, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, code, span, message)
    }

    /// A warning.
    pub fn warning(code: &'static str, span: &Span, message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, code, span, message)
    }

    /// A note.
    pub fn note(code: &'static str, span: &Span, message: impl Into<String>) -> Self {
        Self::new(Severity::Note, code, span, message)
    }

    /// Adds a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds a hint if there is one.
    pub fn maybe_hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint.or(self.hint);
        self
    }

    /// As a JSON object: severity, code, message, hint, file, line, column, length.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "severity": self.severity.as_str(),
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "file": self.span.source.as_ref().map(|source| source.name()),
            "line": self.span.line,
            "column": self.span.column,
            "length": self.span.len,
        })
    }
}

/// The widest piece of a source line that is shown; a minified JSON file is one long line.
const WIDEST: usize = 160;

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = self.severity.as_str();
        let Some(source) = &self.span.source else {
            write!(f, "{severity}: {}", self.message)?;
            return match &self.hint {
                Some(hint) => write!(f, " ({hint})"),
                None => Ok(()),
            };
        };
        write!(f, "{}: {severity}: {}", self.span, self.message)?;
        let Some(line) = source.line(self.span.line) else {
            return match &self.hint {
                Some(hint) => write!(f, " ({hint})"),
                None => Ok(()),
            };
        };
        let shown = mask::line(source, self.span.line, line, self.span.column, self.span.len);
        let (text, start, len) = window(&shown.text, shown.start, shown.len, shown.cut);
        let number = self.span.line.to_string();
        write!(f, "\n {number} | {text}\n {:width$} | {:start$}{}", "", "", "^".repeat(len.max(1)), width = number.len())?;
        match &self.hint {
            Some(hint) => write!(f, " {hint}"),
            None => Ok(()),
        }
    }
}

/// Cuts a line to what fits around the marked part and makes it harmless to print. Positions are in characters from 0.
fn window(line: &str, start: usize, len: usize, cut: bool) -> (String, usize, usize) {
    let chars: Vec<char> = line.trim_end().chars().map(printable).collect();
    let start = start.min(chars.len());
    let len = len.min(chars.len().saturating_sub(start)).min(WIDEST / 2);
    if chars.len() <= WIDEST && !cut {
        return (chars.into_iter().collect(), start, len);
    }
    let from = start.saturating_sub(WIDEST / 4);
    let to = (from + WIDEST).min(chars.len());
    let mut text = String::new();
    let mut shift = 0;
    if from > 0 {
        text.push('…');
        shift = 1;
    }
    text.extend(&chars[from..to]);
    if to < chars.len() {
        text.push('…');
    }
    (text, start - from + shift, len)
}

/// Control characters would let a file speak to the terminal.
fn printable(c: char) -> char {
    match c {
        '\t' => ' ',
        c if c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => '\u{fffd}',
        c => c,
    }
}

/// All findings of a run, in the order of their places.
#[derive(Debug, Clone, Default)]
pub struct Diagnostics(Vec<Diagnostic>);

/// More than this many are not printed (all are kept).
const MOST_SHOWN: usize = 200;

impl Diagnostics {
    /// Sorts by place and drops repetitions.
    pub fn new(mut all: Vec<Diagnostic>) -> Self {
        fn key(d: &Diagnostic) -> (&str, u32, u32, Severity) {
            (d.span.file(), d.span.line, d.span.column, d.severity)
        }
        all.sort_by(|a, b| key(a).cmp(&key(b)));
        all.dedup();
        Diagnostics(all)
    }

    /// Whether any is an error.
    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|d| d.severity == Severity::Error)
    }

    /// How many are of this severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.0.iter().filter(|d| d.severity == severity).count()
    }

    /// As a JSON list of objects, see [`Diagnostic::to_json`].
    pub fn to_json(&self) -> serde_json::Value {
        self.0.iter().map(Diagnostic::to_json).collect()
    }
}

impl std::ops::Deref for Diagnostics {
    type Target = [Diagnostic];
    fn deref(&self) -> &[Diagnostic] {
        &self.0
    }
}

impl IntoIterator for Diagnostics {
    type Item = Diagnostic;
    type IntoIter = std::vec::IntoIter<Diagnostic>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl From<Vec<Diagnostic>> for Diagnostics {
    fn from(all: Vec<Diagnostic>) -> Self {
        Diagnostics::new(all)
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.0.iter().take(MOST_SHOWN).enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{diagnostic}")?;
        }
        if self.0.len() > MOST_SHOWN {
            write!(f, "\n… and {} more", self.0.len() - MOST_SHOWN)?;
        }
        Ok(())
    }
}
