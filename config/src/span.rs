//! Places in files, and the files themselves as far as diagnostics need them.

use crate::mask;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// A file that was read: its name as the user wrote it, and its text.
pub struct Source {
    name: String,
    text: String,
    /// Byte offset of the start of each line.
    lines: Vec<usize>,
    /// The secrets of the line that was shown last.
    pub(crate) secrets: Mutex<Option<Arc<mask::Secrets>>>,
}

impl Source {
    /// Keeps a text under a name.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Arc<Source> {
        let text = text.into();
        let mut lines = vec![0];
        let bytes = text.as_bytes();
        for (at, byte) in bytes.iter().enumerate() {
            // YAML breaks lines at LF, CR LF and lone CR; the scanner counts them the same way.
            if *byte == b'\n' || (*byte == b'\r' && bytes.get(at + 1) != Some(&b'\n')) {
                lines.push(at + 1);
            }
        }
        Arc::new(Source { name: name.into(), text, lines, secrets: Mutex::default() })
    }

    /// The name as given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The whole text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The folder that relative paths in this file start from.
    pub fn folder(&self) -> &Path {
        Path::new(&self.name).parent().unwrap_or(Path::new(""))
    }

    /// One line (1-based) without its line break.
    pub fn line(&self, number: u32) -> Option<&str> {
        let index = (number as usize).checked_sub(1)?;
        let start = *self.lines.get(index)?;
        let end = self.lines.get(index + 1).copied().unwrap_or(self.text.len());
        self.text.get(start..end).map(|line| line.trim_end_matches(['\n', '\r']))
    }
}

// The text may hold secrets: neither it nor any part of it is shown here.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({})", self.name)
    }
}

/// A place in a file. Lines and columns count from 1, in characters; a default span is "nowhere".
#[derive(Clone, Default)]
pub struct Span {
    /// The file; `None` for values that were not read from one.
    pub source: Option<Arc<Source>>,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// Length in characters, on the first line only; 0 is shown as one caret.
    pub len: u32,
}

impl Span {
    /// A place in `source`.
    pub fn new(source: &Arc<Source>, line: u32, column: u32, len: u32) -> Span {
        Span { source: Some(source.clone()), line, column, len }
    }

    /// Name of the file, or an empty text.
    pub fn file(&self) -> &str {
        self.source.as_ref().map_or("", |source| source.name())
    }

    /// Whether this names a place in a file.
    pub fn is_known(&self) -> bool {
        self.source.is_some()
    }
}

impl PartialEq for Span {
    fn eq(&self, other: &Span) -> bool {
        (self.file(), self.line, self.column, self.len) == (other.file(), other.line, other.column, other.len)
    }
}

impl Eq for Span {}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(source) => write!(f, "{}:{}:{}", source.name(), self.line, self.column),
            None => f.write_str("(no file)"),
        }
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A value with its place. In a struct that [`crate::decode`] makes, a field of this type learns where it stands.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Its place; unknown where the value came through a buffered form (untagged enums, flattened structs) or a default.
    pub span: Span,
}

impl<T> Spanned<T> {
    /// Joins a value and its place.
    pub fn new(value: T, span: Span) -> Self {
        Spanned { value, span }
    }
}

impl<T> std::ops::Deref for Spanned<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: fmt::Debug> fmt::Debug for Spanned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {}", self.value, self.span)
    }
}
