//! Keeps secrets out of the source lines that diagnostics show.

use crate::span::Source;
use std::sync::Arc;

/// Whether a value under this key is a secret. Wide on purpose: it only decides what is hidden.
pub fn is_secret_key(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let last = key.rsplit(['.', '/']).next().unwrap_or(&key);
    names_a_secret(last)
        // A slip in the key is the very thing that a diagnostic shows the line for.
        || ["secret", "token", "password", "client_secret", "api_key", "private_key"]
            .iter()
            .any(|word| last.len().abs_diff(word.len()) <= 2 && strsim::damerau_levenshtein(last, word) <= word.len() / 4)
}

/// The same for keys in lower case that are spelled right.
pub fn names_a_secret(key: &str) -> bool {
    ["secret", "token", "password", "passwd", "passphrase", "authorization", "_key", "-key", "apikey", "_pass"].iter().any(|word| key.ends_with(word))
        || matches!(key, "key" | "pass" | "key_alt" | "secrets" | "tokens" | "passwords" | "credentials")
}

/// A line with its secrets replaced, and where the marked part is now (characters, from 0).
pub struct Masked {
    /// The text to show.
    pub text: String,
    /// Start of the marked part.
    pub start: usize,
    /// Length of the marked part.
    pub len: usize,
    /// Whether this is only a part of the line.
    pub cut: bool,
}

const STARS: &str = "***";

/// Where a line's secrets are; kept by the source, for a file of one long line is asked for it again and again.
pub struct Secrets {
    line: u32,
    chars: Vec<char>,
    hidden: Vec<(usize, usize)>,
}

/// So much of a line is looked at around the marked part.
const AROUND: usize = 1000;

fn secrets(source: &Source, number: u32, text: &str) -> Arc<Secrets> {
    let mut known = source.secrets.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(known) = known.as_ref().filter(|known| known.line == number) {
        return known.clone();
    }
    let chars: Vec<char> = text.chars().collect();
    let mut hidden = inline_secrets(&chars);
    if hidden.is_empty() && continues_a_secret(source, number, text) {
        let from = chars.iter().position(|c| !c.is_whitespace()).unwrap_or(0);
        hidden.push((from, chars.len()));
    }
    let made = Arc::new(Secrets { line: number, chars, hidden });
    *known = Some(made.clone());
    made
}

/// Masks line `number` of a source; `column` counts from 1.
pub fn line(source: &Source, number: u32, text: &str, column: u32, len: u32) -> Masked {
    let secrets = secrets(source, number, text);
    let start = (column as usize).saturating_sub(1);
    let end = start + len as usize;
    // A cut never goes through a secret: it would leave the rest of it in the clear.
    let outside = |at: usize, to_end: bool| match secrets.hidden.iter().find(|(from, to)| *from < at && at < *to) {
        Some((from, to)) => if to_end { *to } else { *from },
        None => at,
    };
    let first = outside(start.saturating_sub(AROUND).min(secrets.chars.len()), false);
    let last = outside(end.saturating_add(AROUND).min(secrets.chars.len()), true);
    let chars = &secrets.chars[first..last];
    let hidden = secrets.hidden.iter().filter(|(from, to)| *from >= first && *to <= last).map(|(from, to)| (from - first, to - first));
    let (start, end) = (start - first.min(start), end - first.min(end));
    let mut out = String::with_capacity(chars.len());
    let (mut new_start, mut new_end) = (None, None);
    let mut written = 0;
    let mut at = 0;
    let mut ranges = hidden.peekable();
    while at < chars.len() {
        if let Some(&(from, to)) = ranges.peek()
            && at == from
        {
            ranges.next();
            if new_start.is_none() && start < to {
                new_start = Some(written);
            }
            out.push_str(STARS);
            written += STARS.len();
            if new_end.is_none() && end > from && end <= to {
                new_end = Some(written);
            }
            at = to.max(from + 1);
            continue;
        }
        if at == start && new_start.is_none() {
            new_start = Some(written);
        }
        if at == end && new_end.is_none() {
            new_end = Some(written);
        }
        out.push(chars[at]);
        written += 1;
        at += 1;
    }
    let new_start = new_start.unwrap_or(written);
    let new_end = new_end.unwrap_or(written).max(new_start);
    Masked { text: out, start: new_start, len: if len == 0 { 0 } else { new_end - new_start }, cut: first > 0 || last < secrets.chars.len() }
}

/// Ranges of characters that hold the values of secret keys, or the user part of a URL. Ordered, not overlapping.
fn inline_secrets(chars: &[char]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let flow = chars.iter().position(|c| matches!(c, '{' | '[')).unwrap_or(chars.len());
    let mut at = 0;
    while at < chars.len() {
        if chars[at] == ':' {
            if let Some(range) = userinfo(chars, at) {
                at = range.1;
                found.push(range);
                continue;
            }
            if let Some(range) = keyed_value(chars, at, flow) {
                at = range.1;
                found.push(range);
                continue;
            }
        }
        at += 1;
    }
    found
}

/// `://user:password@` at the colon `at`: the part before the `@`.
fn userinfo(chars: &[char], at: usize) -> Option<(usize, usize)> {
    if chars.get(at + 1..at + 3)? != ['/', '/'] {
        return None;
    }
    let from = at + 3;
    let rest = &chars[from..];
    let authority = rest.iter().position(|c| c.is_whitespace() || matches!(c, '/' | '"' | '\'')).unwrap_or(rest.len());
    let rest = &rest[..authority];
    if let Some(to) = rest.iter().rposition(|c| *c == '@') {
        return (to > 0).then_some((from, from + to));
    }
    // `//user:password` whose `@` was forgotten: what looks like a port and is none.
    let colon = rest.iter().position(|c| *c == ':')?;
    let port = &rest[colon + 1..];
    let odd = port.iter().any(|c| c.is_alphabetic()) && !rest.iter().any(|c| matches!(c, '[' | '{' | ','));
    let listed = rest.contains(&',') && !rest.contains(&'{') && rest.split(|c| *c == ',').any(|host| host.iter().skip_while(|c| **c != ':').any(|c| c.is_alphabetic()));
    (odd || listed).then_some((from, from + rest.len()))
}

/// `secret: value` at the colon `at`, where the first bracket of the line is at `flow`: the value, to the end of the line, of the quotes or of the flow item.
fn keyed_value(chars: &[char], at: usize, flow: usize) -> Option<(usize, usize)> {
    let mut end = at;
    while end > 0 && (chars[end - 1].is_whitespace() || matches!(chars[end - 1], '"' | '\'')) {
        end -= 1;
    }
    let mut start = end;
    while start > 0 && (chars[start - 1].is_alphanumeric() || matches!(chars[start - 1], '_' | '-' | '.' | '/')) {
        start -= 1;
    }
    let key: String = chars[start..end].iter().collect();
    if !is_secret_key(&key) {
        return None;
    }
    let mut from = at + 1;
    while chars.get(from).is_some_and(|c| c.is_whitespace()) {
        from += 1;
    }
    let first = *chars.get(from)?;
    if matches!(first, '#' | '{' | '[' | '|' | '>' | ',' | '}' | ']') {
        return None;
    }
    let to = if first == '"' || first == '\'' {
        chars[from + 1..].iter().position(|c| *c == first).map_or(chars.len(), |p| from + 1 + p + 1)
    } else if flow < start {
        // Inside `{ … }` a `${…}` may hold the closing brace that would end the item.
        let mut depth = 0i32;
        let mut to = from;
        while let Some(c) = chars.get(to) {
            match c {
                '{' => depth += 1,
                '}' | ']' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => break,
                _ => {}
            }
            to += 1;
        }
        to
    } else {
        // A plain value ends where a comment begins.
        chars[from..].windows(2).position(|pair| pair[0].is_whitespace() && pair[1] == '#').map_or(chars.len(), |p| from + p)
    };
    let to = to - chars[from..to].iter().rev().take_while(|c| c.is_whitespace()).count();
    let value: String = chars[from..to].iter().collect();
    (to > from && !is_reference(value.trim_matches(['"', '\'']))).then_some((from, to))
}

/// A value that only names where the secret is: `${NAME}` or `{vault://…}`, and plain words that are no secret.
fn is_reference(value: &str) -> bool {
    let name = value.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
    if name.is_some_and(|name| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')) {
        return true;
    }
    (value.starts_with("{vault://") && value.ends_with('}')) || matches!(value, "true" | "false" | "null" | "~")
}

/// Whether the line belongs to a value that began on an earlier line, under a secret key: block scalars, quoted texts over
/// several lines, lists of secrets.
fn continues_a_secret(source: &Source, number: u32, text: &str) -> bool {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut inner = indent(text);
    // Block scalars (PEM keys) are the long case; a hundred lines back is enough for those.
    for back in 1..=100 {
        let Some(previous) = number.checked_sub(back).and_then(|n| source.line(n)) else { return false };
        if previous.trim().is_empty() || previous.trim_start().starts_with('#') {
            continue;
        }
        let here = indent(previous);
        let entry = previous.trim_start().trim_start_matches("- ");
        let column = previous.len() - entry.len();
        let (key, value) = match entry.split_once(':') {
            Some((key, value)) => (key.trim().trim_matches(['"', '\'']), value.trim()),
            None => continue,
        };
        let opens = value.is_empty() || value.starts_with(['|', '>']) || (value.starts_with(['"', '\'']) && value.matches(&value[..1]).count() == 1);
        let below = inner > column || (inner == column && value.is_empty() && text.trim_start().starts_with("- "));
        if opens && is_secret_key(key) && below {
            // `key:` followed by a mapping is not a secret: its lines have keys of their own.
            let mapping = value.is_empty() && text.trim_start().trim_start_matches("- ").contains(": ");
            return !mapping;
        }
        if here < inner {
            inner = here;
        }
        if here == 0 {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(text: &str) -> String {
        let source = Source::new("t", text);
        line(&source, 1, text, 1, 0).text
    }

    #[test]
    fn values_of_secret_keys_are_hidden_wherever_they_stand() {
        assert_eq!(masked("  client_secret: hunter2"), "  client_secret: ***");
        assert_eq!(masked("config: { secret: hunter2, ttl: 60s }"), "config: { secret: ***, ttl: 60s }");
        assert_eq!(masked("config: { secret: \"${A:-hun,ter2}\", ttl: 60s }"), "config: { secret: ***, ttl: 60s }");
        assert_eq!(masked("config: { secret: ${A:-hunter2}, ttl: 60s }"), "config: { secret: ***, ttl: 60s }");
        assert_eq!(masked("  secert: hunter2"), "  secert: ***");
        assert_eq!(masked("- \"X-API-Key:hunter2\""), "- \"X-API-Key:***");
        assert_eq!(masked("{\"key\": \"hunter2\", \"a\": 1}"), "{\"key\": ***, \"a\": 1}");
        assert_eq!(masked("store: redis://user:hunter2"), "store: redis://***");
        assert_eq!(masked("store: redis://a:1,b:2 # http://[::1]:80"), "store: redis://a:1,b:2 # http://[::1]:80");
        assert_eq!(masked("store: redis://user:hunter2@host:6379/0"), "store: redis://***@host:6379/0");
    }

    #[test]
    fn names_of_variables_stay_readable() {
        assert_eq!(masked("secret: ${JWT_SECRET}"), "secret: ${JWT_SECRET}");
        assert_eq!(masked("token: ${A}  # why"), "token: ${A}  # why");
        assert_eq!(masked("token: hunter2  # why"), "token: ***  # why");
        assert_eq!(masked("secret: '{vault://env/JWT}'"), "secret: '{vault://env/JWT}'");
        assert_eq!(masked("key_names: [apikey]"), "key_names: [apikey]");
    }

    #[test]
    fn the_caret_moves_with_the_text() {
        let text = "a: { secret: hunter2, tttl: 60s }";
        let source = Source::new("t", text);
        let masked = line(&source, 1, text, 23, 4);
        assert_eq!(&masked.text[masked.start..masked.start + masked.len], "tttl");
        let masked = line(&source, 1, text, 14, 7);
        assert_eq!(&masked.text[masked.start..masked.start + masked.len], "***");
    }

    #[test]
    fn block_scalars_and_lists_under_a_secret_key_are_hidden() {
        let text = "certificates:\n- key: |\n    -----BEGIN\n    abc: def\n  cert: x\ntokens:\n- hunter2\n";
        let source = Source::new("t", text);
        for (number, want) in [(3, "    ***"), (4, "    ***"), (5, "  cert: x"), (7, "***")] {
            let shown = line(&source, number, source.line(number).unwrap(), 1, 1).text;
            assert_eq!(shown, want, "line {number}");
        }
    }
}
