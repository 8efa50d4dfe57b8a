//! Forms in several parts (RFC 7578).

use http::HeaderValue;
use memchr::memmem;

/// Most parts that are looked at.
const MOST_PARTS: usize = 256;

/// The boundary that a `Content-Type` of `multipart/form-data` names; `None` if it is another type or names none.
pub(crate) fn boundary(kind: &HeaderValue) -> Option<String> {
    let (kind, parameters) = kind.to_str().ok()?.split_once(';')?;
    let form = kind.trim().eq_ignore_ascii_case("multipart/form-data");
    parameter(parameters, "boundary").filter(|b| form && (1..=70).contains(&b.len()))
}

/// A parameter of a header's value (`; name="x"`).
fn parameter(text: &str, name: &str) -> Option<String> {
    text.split(';').filter_map(|p| p.split_once('=')).find(|(key, _)| key.trim().eq_ignore_ascii_case(name)).map(|(_, value)| {
        let value = value.trim();
        value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value).to_owned()
    })
}

/// One part.
pub(crate) struct Part<'a> {
    pub name: Option<String>,
    pub content: &'a [u8],
    /// Fields and content.
    pub inner: &'a [u8],
    /// Where its delimiter begins.
    pub start: usize,
    /// Where the next one's begins.
    pub end: usize,
}

/// The parts of a body.
pub(crate) fn parts<'a>(body: &'a [u8], boundary: &str) -> Vec<Part<'a>> {
    let delimiter = format!("--{boundary}");
    // A delimiter begins a line.
    let places: Vec<usize> =
        memmem::find_iter(body, delimiter.as_bytes()).filter(|at| *at == 0 || body[..*at].ends_with(b"\r\n")).take(MOST_PARTS + 1).collect();
    places
        .windows(2)
        .filter_map(|pair| {
            let (start, end) = (pair[0], pair[1]);
            let inner = body.get(start + delimiter.len()..end)?.strip_prefix(b"\r\n")?.strip_suffix(b"\r\n")?;
            let split = memmem::find(inner, b"\r\n\r\n")?;
            let head = String::from_utf8_lossy(&inner[..split]);
            let name = head.split("\r\n").filter_map(|line| line.split_once(':')).find_map(|(field, value)| {
                let form = field.trim().eq_ignore_ascii_case("content-disposition") && value.trim_start().to_ascii_lowercase().starts_with("form-data");
                form.then(|| parameter(value, "name")).flatten()
            });
            Some(Part { name, content: &inner[split + 4..], inner, start, end })
        })
        .collect()
}

/// A part of a name and a value, as [`Part::inner`].
pub(crate) fn plain(name: &str, value: &[u8]) -> Vec<u8> {
    let name = name.replace('"', "%22").replace(['\r', '\n'], " ");
    [format!("Content-Disposition: form-data; name=\"{name}\"\r\n\r\n").as_bytes(), value].concat()
}

/// The body that has these parts.
pub(crate) fn body<'a>(parts: impl Iterator<Item = &'a [u8]>, boundary: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for part in parts {
        out.extend_from_slice(format!("--{boundary}\r\n").as_bytes());
        out.extend_from_slice(part);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    out
}
