//! Finding the end of a head, without looking at any byte twice.

/// Empty lines that may precede a request (RFC 9112 section 2.2: at least one must be tolerated).
const LEADING_BLANKS: usize = 4;

/// How far the search for the end of a head went. Keep it beside the buffer while the head is incomplete: a head that arrives byte by
/// byte then costs as much as one that arrives at once. It must go back to its default when bytes are taken from the buffer.
#[derive(Debug, Clone, Default)]
pub struct HeadScan {
    /// Bytes looked at.
    seen: usize,
    /// Where the head begins, behind empty lines.
    start: usize,
    /// Where the unfinished line begins.
    line: usize,
    /// Complete lines of the head.
    lines: usize,
    blanks: usize,
}

/// What the search found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// More bytes are needed.
    Partial,
    /// The head, from `start` to `end`, with the empty line.
    Head { start: usize, end: usize },
    /// A line ends without CR.
    BareLf,
    /// Empty lines, and no head.
    Blanks,
    /// More lines than allowed.
    TooManyLines,
    /// More bytes than allowed; `first_line` if not even that one is complete.
    TooLong { first_line: bool },
}

impl HeadScan {
    /// Searches on from where the last call stopped. `max_lines` counts without the closing empty line. With `trailer`, the section
    /// may consist of nothing but its closing empty line.
    pub(super) fn find(&mut self, buf: &[u8], max_bytes: usize, max_lines: usize, trailer: bool) -> Found {
        let from = self.seen.min(buf.len());
        self.seen = buf.len();
        for offset in memchr::memchr_iter(b'\n', &buf[from..]) {
            let lf = from + offset;
            if lf == self.line || buf[lf - 1] != b'\r' {
                return Found::BareLf;
            }
            let empty = lf - 1 == self.line;
            self.line = lf + 1;
            if lf + 1 - self.start > max_bytes {
                return Found::TooLong { first_line: self.lines == 0 };
            }
            match (empty, self.lines) {
                (true, 0) if !trailer => {
                    self.start = lf + 1;
                    self.blanks += 1;
                    if self.blanks > LEADING_BLANKS {
                        return Found::Blanks;
                    }
                }
                (true, _) => return Found::Head { start: self.start, end: lf + 1 },
                (false, _) => {
                    self.lines += 1;
                    if self.lines > max_lines {
                        return Found::TooManyLines;
                    }
                }
            }
        }
        if buf.len() - self.start > max_bytes {
            return Found::TooLong { first_line: self.lines == 0 };
        }
        Found::Partial
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: &str) -> Found {
        HeadScan::default().find(text.as_bytes(), 100, 3, false)
    }

    #[test]
    fn finds_the_empty_line() {
        assert_eq!(whole("GET / HTTP/1.1\r\nhost: a\r\n\r\nbody\n"), Found::Head { start: 0, end: 27 });
        assert_eq!(whole("\r\n\r\nGET /\r\n\r\n"), Found::Head { start: 4, end: 13 });
        assert_eq!(whole("GET /\r\n"), Found::Partial);
        assert_eq!(whole("GET /\n\n"), Found::BareLf);
        assert_eq!(whole("\nGET /\r\n\r\n"), Found::BareLf);
        assert_eq!(whole(&"\r\n".repeat(5)), Found::Blanks);
        assert_eq!(whole("a\r\nb\r\nc\r\nd\r\n\r\n"), Found::TooManyLines);
        assert_eq!(whole(&"a".repeat(101)), Found::TooLong { first_line: true });
        assert_eq!(whole(&format!("a\r\n{}", "b".repeat(101))), Found::TooLong { first_line: false });
        assert_eq!(whole(&format!("a\r\n{}\r\n\r\n", "b".repeat(94))), Found::TooLong { first_line: false });
        assert_eq!(whole(&format!("a\r\n{}\r\n\r\n", "b".repeat(93))), Found::Head { start: 0, end: 100 });
    }

    #[test]
    fn a_trailer_section_may_be_empty() {
        assert_eq!(HeadScan::default().find(b"\r\n", 100, 3, true), Found::Head { start: 0, end: 2 });
        assert_eq!(HeadScan::default().find(b"a: b\r\n\r\n", 100, 3, true), Found::Head { start: 0, end: 8 });
    }

    #[test]
    fn byte_by_byte_is_the_same_as_at_once() {
        for text in ["\r\nGET /\r\nhost: a\r\n\r\nrest", "GET /\nhost: a\r\n\r\n", "a\r\nb\r\nc\r\nd\r\n\r\n"] {
            let mut scan = HeadScan::default();
            let found = (0..=text.len()).map(|n| scan.find(&text.as_bytes()[..n], 100, 3, false)).find(|f| *f != Found::Partial);
            assert_eq!(found, Some(whole(text)), "{text:?}");
        }
    }
}
