//! Paths in the one form that routes are matched against.
//!
//! Two forms exist. The *normalized* path ([`normalize`]) is a valid request target again: it is what is forwarded, logged and
//! keyed. The *matching text* ([`matching_text`]) is only looked at: in it, escapes of characters that mean nothing in a URI
//! (a space, letters beyond ASCII) are decoded too, because Kong's matchers and captures see them so.

use std::borrow::Cow;

/// Normalizes the path of a request target (RFC 3986, section 6.2.2), without its query:
/// escapes of unreserved characters are decoded, the hex digits of the others made upper case, a `%` that begins no escape
/// becomes `%25`, runs of slashes become one, then dot segments are removed.
///
/// The result means the same resource, and normalizing it again changes nothing. A path that is normal already is borrowed. Text that does not begin with `/`
/// (such as the `*` of `OPTIONS`) has no segments to treat: only its escapes are.
pub fn normalize(path: &str) -> Cow<'_, str> {
    if is_normal(path.as_bytes()) {
        return Cow::Borrowed(path);
    }
    let decoded = normalize_escapes(path.as_bytes());
    let bytes = if decoded.first() == Some(&b'/') { remove_dot_segments(&decoded) } else { decoded };
    // Only ASCII was put in or taken out of a valid text, so this never replaces anything.
    Cow::Owned(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

fn is_normal(path: &[u8]) -> bool {
    let absolute = path.first() == Some(&b'/');
    let mut at = 0;
    while at < path.len() {
        match path[at] {
            b'%' => match escape_at(path, at) {
                None => return false,
                Some(byte) if is_unreserved(byte) => return false,
                Some(_) if path[at + 1].is_ascii_lowercase() || path[at + 2].is_ascii_lowercase() => return false,
                Some(_) => {}
            },
            b'/' if absolute => match &path[at + 1..] {
                [b'/', ..] => return false,
                [b'.'] | [b'.', b'/', ..] | [b'.', b'.'] | [b'.', b'.', b'/', ..] => return false,
                _ => {}
            },
            _ => {}
        }
        at += 1;
    }
    true
}

fn normalize_escapes(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len() + 8);
    let mut at = 0;
    while at < path.len() {
        if path[at] != b'%' {
            out.push(path[at]);
            at += 1;
            continue;
        }
        match escape_at(path, at) {
            Some(byte) if is_unreserved(byte) => {
                out.push(byte);
                at += 3;
            }
            Some(_) => {
                out.extend([b'%', path[at + 1].to_ascii_uppercase(), path[at + 2].to_ascii_uppercase()]);
                at += 3;
            }
            // Left alone, a bare `%` could form a new escape with digits that were themselves escaped (`%%32e` → `%2e`), and
            // hide a dot segment from the next step.
            None => {
                out.extend(b"%25");
                at += 1;
            }
        }
    }
    out
}

/// RFC 3986, section 5.2.4, with empty segments left out, for a path that begins with `/`.
fn remove_dot_segments(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut ends_in_slash = false;
    for segment in path.get(1..).unwrap_or_default().split(|b| *b == b'/') {
        ends_in_slash = matches!(segment, b"" | b"." | b"..");
        match segment {
            b"" | b"." => {}
            b".." => {
                let parent = out.iter().rposition(|b| *b == b'/').unwrap_or(0);
                out.truncate(parent);
            }
            _ => {
                out.push(b'/');
                out.extend_from_slice(segment);
            }
        }
    }
    if ends_in_slash {
        out.push(b'/');
    }
    out
}

/// What routes are matched against: `normalized` with the escapes decoded that neither delimit nor control anything.
/// Escapes stay that stand for reserved characters, control characters or bytes that are not UTF-8.
pub(super) fn matching_text(normalized: &str) -> Cow<'_, str> {
    if !normalized.contains('%') {
        return Cow::Borrowed(normalized);
    }
    let bytes = normalized.as_bytes();
    let mut out = String::new();
    // Everything before `done` is in `out`.
    let (mut done, mut at) = (0, 0);
    while at < bytes.len() {
        match decodable_at(bytes, at) {
            Some((character, len)) => {
                out.push_str(&normalized[done..at]);
                out.push(character);
                at += len;
                done = at;
            }
            None => at += 1,
        }
    }
    if done == 0 {
        return Cow::Borrowed(normalized);
    }
    out.push_str(&normalized[done..]);
    Cow::Owned(out)
}

/// How many bytes of `normalized` the first `len` bytes of its matching text stand for.
pub(super) fn normalized_len(normalized: &str, text: &str, len: usize) -> usize {
    let (normalized, text) = (normalized.as_bytes(), text.as_bytes());
    let mut at = 0;
    for byte in &text[..len.min(text.len())] {
        // `%` is reserved, so one in the text stands for itself.
        at += if normalized.get(at) == Some(&b'%') && *byte != b'%' { 3 } else { 1 };
    }
    at.min(normalized.len())
}

/// The character escaped at `at`, if it is one to decode, and the length of its escapes.
fn decodable_at(bytes: &[u8], at: usize) -> Option<(char, usize)> {
    let first = escape_at(bytes, at)?;
    let count = match first {
        0x00..=0x7f => 1,
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => return None,
    };
    let mut buffer = [first, 0, 0, 0];
    for (i, byte) in buffer.iter_mut().enumerate().take(count).skip(1) {
        *byte = escape_at(bytes, at + 3 * i)?;
    }
    let character = std::str::from_utf8(&buffer[..count]).ok()?.chars().next()?;
    (!character.is_control() && !is_reserved(first)).then_some((character, 3 * count))
}

/// The byte that an escape at `at` stands for.
fn escape_at(bytes: &[u8], at: usize) -> Option<u8> {
    match bytes.get(at..at + 3)? {
        [b'%', high, low] => Some(hex(*high)? << 4 | hex(*low)?),
        _ => None,
    }
}

fn hex(digit: u8) -> Option<u8> {
    (digit as char).to_digit(16).map(|value| value as u8)
}

/// RFC 3986, section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// RFC 3986, section 2.2, and `%` itself.
fn is_reserved(byte: u8) -> bool {
    b"!*'();:@&=+$,/?%#[]".contains(&byte)
}

/// Escapes what may not stand in a path (RFC 3986, section 3.3); `%` is taken to begin an escape already.
pub(super) fn escape(path: String) -> String {
    let legal = |byte: u8| is_unreserved(byte) || (is_reserved(byte) && byte != b'?' && byte != b'#');
    if path.bytes().all(legal) {
        return path;
    }
    let mut out = String::with_capacity(path.len() + 16);
    for byte in path.bytes() {
        if legal(byte) {
            out.push(byte as char);
        } else {
            const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
            out.extend(['%', DIGITS[usize::from(byte >> 4)] as char, DIGITS[usize::from(byte & 15)] as char]);
        }
    }
    out
}
