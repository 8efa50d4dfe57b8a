//! A look at a request head where it lies, for the fast lane: nothing is copied, nothing allocated, nothing taken from the buffer.
//!
//! It understands plain requests only, and those completely. Whatever else comes — a rare method, a body of unknown length, an odd target, a
//! field that needs thought, the least irregularity — is `None`: then [`parse_request`](super::parse_request) decides, from the same bytes. So this
//! code can not refuse or misread anything: what it accepts, the strict parser accepts too, with the same meaning (a property test holds
//! them against each other).

use super::fields;
use http::{HeaderMap, Method, StatusCode, Uri};

/// Lines of a head at most; longer ones are the strict parser's.
const MAX_LINES: usize = 100;

/// The methods of plain requests.
static GET: Method = Method::GET;
static HEAD: Method = Method::HEAD;
static POST: Method = Method::POST;
static PUT: Method = Method::PUT;
static PATCH: Method = Method::PATCH;
static DELETE: Method = Method::DELETE;

/// A plain request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peeked<'a> {
    /// Bytes of the head, with its empty line.
    pub length: usize,
    /// GET, HEAD, POST, PUT, PATCH or DELETE.
    pub method: &'static Method,
    /// `Content-Length`, in bytes: so long is the body after the head.
    pub body: Option<usize>,
    /// Path and query as sent.
    pub target: &'a str,
    /// Path: normalized as it stands (no escapes, no empty or dot segments).
    pub path: &'a str,
    /// Query, without `?`.
    pub query: Option<&'a str>,
    /// `Host`: canonical as it stands.
    pub host: &'a str,
    /// `Accept`.
    pub accept: Option<&'a [u8]>,
    /// `Accept-Encoding`.
    pub accept_encoding: Option<&'a [u8]>,
    /// `User-Agent`.
    pub user_agent: Option<&'a [u8]>,
    /// `Sec-Fetch-Dest`.
    pub fetch_dest: Option<&'a [u8]>,
    /// `If-None-Match`.
    pub if_none_match: Option<&'a [u8]>,
    /// `If-Modified-Since`.
    pub if_modified_since: Option<&'a [u8]>,
    /// `Range`.
    pub range: Option<&'a [u8]>,
    /// `If-Range`.
    pub if_range: Option<&'a [u8]>,
    /// `Cookie`.
    pub cookie: Option<&'a [u8]>,
    /// There is a `Cache-Control` or `Pragma`.
    pub directives: bool,
    /// There is an `X-Forwarded-…`.
    pub forwarded: bool,
    /// There is an `Authorization`.
    pub credentials: bool,
    /// There is a `Via`.
    pub via: bool,
    /// There is a field of the site's own, between its pages and its server.
    pub site: bool,
    /// There is a field that steers this cache from outside.
    pub steers: bool,
}

/// Which bytes a path may have that needs no normalizing (RFC 3986 section 3.3 without escapes).
const PATH: [bool; 256] = bytes_of(b"-._~!$&'()*+,;=:@/");
/// And a query.
const QUERY: [bool; 256] = bytes_of(b"-._~!$&'()*+,;=:@/?%");
/// A host name in canonical form.
const HOST: [bool; 256] = {
    let mut table = [false; 256];
    let mut i = 0;
    while i < 256 {
        let b = i as u8;
        table[i] = b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        i += 1;
    }
    table
};

const fn bytes_of(marks: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut i = 0;
    while i < 256 {
        table[i] = (i as u8).is_ascii_alphanumeric();
        i += 1;
    }
    let mut i = 0;
    while i < marks.len() {
        table[marks[i] as usize] = true;
        i += 1;
    }
    table
}

fn all(text: &[u8], table: &[bool; 256]) -> bool {
    text.iter().fold(true, |good, b| good & table[usize::from(*b)])
}

/// Looks at the head at the beginning of `buf`. `max_head`: the longest head that is served, in bytes.
pub fn peek(buf: &[u8], max_head: usize) -> Option<Peeked<'_>> {
    peek_lines(buf, max_head, |_| ())
}

/// A field line as it stands: its name, and its value without surrounding blanks.
pub type Line<'a> = (&'a [u8], &'a [u8]);

/// The same, telling of every field line.
pub fn peek_lines<'a>(buf: &'a [u8], max_head: usize, mut tell: impl FnMut(Line<'a>)) -> Option<Peeked<'a>> {
    let (method, from) = match buf {
        [b'G', b'E', b'T', b' ', b'/', ..] => (&GET, 4),
        [b'P', b'O', b'S', b'T', b' ', b'/', ..] => (&POST, 5),
        [b'P', b'U', b'T', b' ', b'/', ..] => (&PUT, 4),
        [b'H', b'E', b'A', b'D', b' ', b'/', ..] => (&HEAD, 5),
        [b'P', b'A', b'T', b'C', b'H', b' ', b'/', ..] => (&PATCH, 6),
        [b'D', b'E', b'L', b'E', b'T', b'E', b' ', b'/', ..] => (&DELETE, 7),
        _ => return None,
    };
    let first = control(buf, from)?;
    let target = buf[from..first].strip_suffix(b" HTTP/1.1")?;
    let mut found = Peeked::new(method, std::str::from_utf8(target).ok()?)?;
    let mut begin = after_line(buf, first)?;
    for _ in 0..=MAX_LINES {
        if let Some(end) = end_of_head(buf, begin)? {
            found.length = end;
            return (end <= max_head && !found.host.is_empty()).then_some(found);
        }
        let (name, value, next) = field(buf, begin)?;
        begin = next;
        tell((name, value));
        found.note(name, value)?;
    }
    None
}

/// The place of the next control character, from `from` on; a tab is none. Eight bytes at a time.
fn control(buf: &[u8], mut from: usize) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    while let Some(eight) = buf.get(from..from + 8) {
        let word = u64::from_le_bytes(eight.try_into().ok()?);
        // The lowest bit that is set belongs to the first byte below 0x20, or equal to 0x7f.
        let delete = word ^ (ONES * 0x7f);
        let marks = ((word.wrapping_sub(ONES * 0x20) & !word) | (delete.wrapping_sub(ONES) & !delete)) & HIGH;
        if marks == 0 {
            from += 8;
            continue;
        }
        from += marks.trailing_zeros() as usize / 8;
        if buf[from] != b'\t' {
            return Some(from);
        }
        from += 1;
    }
    let rest = buf.get(from..)?;
    rest.iter().position(|b| (*b < 0x20 && *b != b'\t') || *b == 0x7f).map(|at| from + at)
}

/// What follows the line whose CR is at `end`; `None`: something else is there.
fn after_line(buf: &[u8], end: usize) -> Option<usize> {
    buf[end..].starts_with(b"\r\n").then_some(end + 2)
}

/// The end of the head, if its empty line is at `begin`; `None`: nothing is there yet.
fn end_of_head(buf: &[u8], begin: usize) -> Option<Option<usize>> {
    match &buf[begin..] {
        [b'\r', b'\n', ..] => Some(Some(begin + 2)),
        [] | [b'\r'] => None,
        _ => Some(None),
    }
}

/// The field line that begins at `begin`: name, value without surrounding blanks, and where the next line begins. `None`: it is not whole, or
/// needs more thought.
fn field(buf: &[u8], begin: usize) -> Option<(&[u8], &[u8], usize)> {
    let colon = begin + buf[begin..].iter().position(|b| !fields::TOKEN[usize::from(*b)])?;
    if buf[colon] != b':' || colon == begin || colon - begin > 64 {
        return None;
    }
    let end = control(buf, colon + 1)?;
    Some((&buf[begin..colon], trimmed(&buf[colon + 1..end]), after_line(buf, end)?))
}

/// An answer that is wholly there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeekedAnswer {
    /// Bytes of the head, with its empty line.
    pub length: usize,
    /// Its status, which is one of a final answer.
    pub status: StatusCode,
    /// Bytes of the body as it was sent, perhaps in chunks.
    pub body: usize,
    /// Bytes of the body's content.
    pub content: usize,
}

/// Looks at an answer, not one to HEAD, at the beginning of `buf`: one of HTTP/1.1, whose body has a `Content-Length` or comes in plain chunks or
/// whose status says that there is none (204, 304), and whose connection goes on. It tells of every field line. Whatever else there is is
/// `None`, also when bytes are missing, and [`parse_response`](super::parse_response) decides.
pub fn peek_answer<'a>(buf: &'a [u8], mut tell: impl FnMut(Line<'a>)) -> Option<PeekedAnswer> {
    let [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'1', b' ', a @ b'2'..=b'5', b, c, b' ', ..] = buf else { return None };
    let status = StatusCode::from_bytes(&[*a, *b, *c]).ok()?;
    let (mut begin, mut body, mut chunked) = (after_line(buf, control(buf, 13)?)?, None, false);
    for _ in 0..=MAX_LINES {
        if let Some(length) = end_of_head(buf, begin)? {
            let (body, content) = match (status, body, chunked) {
                (StatusCode::NO_CONTENT, None, false) | (StatusCode::NOT_MODIFIED, _, false) => (0, 0),
                // Not allowed (RFC 9112 section 6.1, RFC 9110 section 8.6).
                (StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED, ..) | (_, Some(_), true) => return None,
                (_, None, true) => chunks(&buf[length..])?,
                (_, body, false) => body.filter(|body| buf.len() - length >= *body).map(|body| (body, body))?,
            };
            return Some(PeekedAnswer { length, status, body, content });
        }
        let (name, value, next) = field(buf, begin)?;
        begin = next;
        tell((name, value));
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        match name.len() {
            2 if is(b"te") => return None,
            7 if is(b"upgrade") || is(b"trailer") => return None,
            10 if is(b"connection") => value.eq_ignore_ascii_case(b"keep-alive").then_some(())?,
            14 if is(b"content-length") => {
                if body.is_some() {
                    return None;
                }
                body = Some(number(value)?);
            }
            17 if is(b"transfer-encoding") => {
                if chunked || value != b"chunked" {
                    return None;
                }
                chunked = true;
            }
            18 if is(b"proxy-authenticate") => return None,
            _ => {}
        }
    }
    None
}

/// The bytes up to the end of the last chunk, and those of them that are content. `None`: the end is not there, or there is more than chunks
/// whose size everybody reads in the same way (extensions, trailers).
fn chunks(buf: &[u8]) -> Option<(usize, usize)> {
    let (mut at, mut content) = (0, 0);
    loop {
        let line = buf.get(at..(at + 10).min(buf.len()))?;
        let digits = line.iter().position(|b| !b.is_ascii_hexdigit()).filter(|digits| (1..=7).contains(digits))?;
        let size = line[..digits].iter().fold(0, |sum, digit| sum * 16 + char::from(*digit).to_digit(16).unwrap_or(0) as usize);
        let end = after_line(buf, at + digits)? + size;
        // The empty line after the last chunk stands where that after a chunk does.
        at = after_line(buf.get(..end + 2)?, end)?;
        content += size;
        if size == 0 {
            return Some((at, content));
        }
    }
}

/// A length that nobody reads in two ways.
fn number(digits: &[u8]) -> Option<usize> {
    let plain = (1..=9).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit) && (digits.len() == 1 || digits[0] != b'0');
    plain.then(|| digits.iter().fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0')))
}

/// Without surrounding blanks (RFC 9110 section 5.6.3).
fn trimmed(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

impl<'a> Peeked<'a> {
    /// The same look at a GET or HEAD without a body that came in HTTP/2, whose parser has seen to its form already.
    pub fn of(method: &Method, uri: &'a Uri, headers: &'a HeaderMap) -> Option<Peeked<'a>> {
        let method = match *method {
            Method::GET => &GET,
            Method::HEAD => &HEAD,
            _ => return None,
        };
        let authority = uri.authority()?.as_str();
        let target = uri.path_and_query()?.as_str();
        let mut found = Peeked::new(method, target)?;
        found.note(b"host", authority.as_bytes())?;
        for (name, value) in headers {
            found.note(name.as_str().as_bytes(), value.as_bytes())?;
        }
        Some(found)
    }

    /// HEAD instead of GET.
    pub fn head_only(&self) -> bool {
        self.method == Method::HEAD
    }

    /// With nothing but method and target; `None` if that is not plain.
    fn new(method: &'static Method, target: &'a str) -> Option<Peeked<'a>> {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        if !path.starts_with('/') || !all(path.as_bytes(), &PATH) || !query.is_none_or(|query| all(query.as_bytes(), &QUERY)) || target.len() > 4096 {
            return None;
        }
        Some(Peeked {
            length: 0,
            method,
            body: None,
            target,
            path,
            query,
            host: "",
            accept: None,
            accept_encoding: None,
            user_agent: None,
            fetch_dest: None,
            if_none_match: None,
            if_modified_since: None,
            range: None,
            if_range: None,
            cookie: None,
            directives: false,
            forwarded: false,
            credentials: false,
            via: false,
            site: false,
            steers: false,
        })
    }

    /// Takes note of a field. `None`: this request needs more thought than there is here.
    fn note(&mut self, name: &[u8], value: &'a [u8]) -> Option<()> {
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        // A second line of the same field needs the rules for lists.
        let once = |slot: &mut Option<&'a [u8]>| slot.replace(value).is_none().then_some(());
        match name.len() {
            2 if is(b"te") => return None,
            3 if is(b"rsc") => self.site = true,
            3 if is(b"via") => self.via = true,
            4 if is(b"host") => {
                if !self.host.is_empty() || !canonical(value) {
                    return None;
                }
                self.host = std::str::from_utf8(value).ok()?;
            }
            5 if is(b"range") => once(&mut self.range)?,
            6 if is(b"accept") => once(&mut self.accept)?,
            6 if is(b"cookie") => once(&mut self.cookie)?,
            6 if is(b"expect") => return None,
            6 if is(b"pragma") => self.directives = true,
            7 if is(b"upgrade") || is(b"trailer") => return None,
            8 if is(b"if-range") => once(&mut self.if_range)?,
            8 if is(b"if-match") => return None,
            10 if is(b"user-agent") => once(&mut self.user_agent)?,
            10 if is(b"connection") => value.eq_ignore_ascii_case(b"keep-alive").then_some(())?,
            13 if is(b"if-none-match") => once(&mut self.if_none_match)?,
            13 if is(b"cache-control") => self.directives = true,
            13 if is(b"authorization") => self.credentials = true,
            14 if is(b"sec-fetch-dest") => once(&mut self.fetch_dest)?,
            14 if is(b"content-length") => {
                if self.body.is_some() {
                    return None;
                }
                self.body = Some(number(value)?);
            }
            15 if is(b"accept-encoding") => once(&mut self.accept_encoding)?,
            17 if is(b"if-modified-since") => once(&mut self.if_modified_since)?,
            17 if is(b"transfer-encoding") => return None,
            19 if is(b"if-unmodified-since") || is(b"proxy-authorization") => return None,
            length if length > 4 && matches!(name[0] | 0x20, b'x' | b'n') => {
                let begins = |prefix: &[u8]| length >= prefix.len() && name[..prefix.len()].eq_ignore_ascii_case(prefix);
                self.site |= begins(b"next-") || begins(b"x-nextjs-") || begins(b"x-middleware-");
                self.steers |= begins(b"x-cache-") || begins(b"x-warmup-");
                self.forwarded |= begins(b"x-forwarded-");
            }
            _ => {}
        }
        Some(())
    }
}

/// A host as keys have it: lower case, no trailing dot, no port that goes without saying, no address in brackets.
fn canonical(host: &[u8]) -> bool {
    let (name, port) = match memchr::memchr(b':', host) {
        Some(colon) => (&host[..colon], Some(&host[colon + 1..])),
        None => (host, None),
    };
    let name_ok = all(name, &HOST)
        && (1..=253).contains(&name.len())
        && name[0] != b'.'
        && name[name.len() - 1] != b'.'
        && !name.windows(2).any(|two| two == b"..");
    let port_ok = port.is_none_or(|port| {
        let number = port.iter().try_fold(0u32, |sum, b| b.is_ascii_digit().then(|| sum * 10 + u32::from(b - b'0')));
        (1..=5).contains(&port.len()) && port[0] != b'0' && number.is_some_and(|n| n <= 65_535 && n != 80 && n != 443)
    });
    name_ok && port_ok
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(text: &str) -> Option<Peeked<'_>> {
        peek(text.as_bytes(), 8192)
    }

    #[test]
    fn plain_requests_are_read() {
        let text = "GET /a/b?x=1 HTTP/1.1\r\nHost: shop.example:8080\r\nAccept:  text/html \r\ncookie: a=b\r\n\r\nrest";
        let found = look(text).expect("plain");
        assert_eq!((found.path, found.query, found.host), ("/a/b", Some("x=1"), "shop.example:8080"));
        assert_eq!((found.accept, found.cookie, found.length), (Some(&b"text/html"[..]), Some(&b"a=b"[..]), text.len() - 4));
        assert!(look("HEAD / HTTP/1.1\r\nhost: a\r\nconnection: Keep-Alive\r\n\r\n").expect("HEAD").head_only());
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            let text = format!("{method} /cart HTTP/1.1\r\nhost: a\r\nContent-Length: 12\r\n\r\n{{\"sku\": \"1\"}}");
            let found = look(&text).expect("plain");
            assert_eq!((found.method, found.body, &text[found.length..]), (&method, Some(12), "{\"sku\": \"1\"}"));
        }
    }

    #[test]
    fn what_matters_to_one_lane_only_is_told() {
        let seen = |field: &str| {
            let text = format!("GET / HTTP/1.1\r\nhost: a\r\n{field}: 1\r\n\r\n");
            let found = look(&text).expect("plain");
            (found.credentials, found.via, found.site, found.steers, found.forwarded)
        };
        assert_eq!(seen("Authorization"), (true, false, false, false, false));
        assert_eq!(seen("via"), (false, true, false, false, false));
        for site in ["rsc", "Next-Router-Prefetch", "x-middleware-subrequest", "X-NextJS-Data"] {
            assert_eq!(seen(site), (false, false, true, false, false), "{site}");
        }
        assert_eq!(seen("x-cache-refresh"), (false, false, false, true, false));
        assert_eq!(seen("x-forwarded-for"), (false, false, false, false, true));
        assert_eq!(seen("x-other"), (false, false, false, false, false));
    }

    #[test]
    fn everything_else_is_left_to_the_strict_parser() {
        for head in [
            "OPTIONS / HTTP/1.1\r\nhost: a",
            "POSTS / HTTP/1.1\r\nhost: a",
            "GET / HTTP/1.0\r\nhost: a",
            "GET  / HTTP/1.1\r\nhost: a",
            "GET /%41 HTTP/1.1\r\nhost: a",
            "GET /a\\b HTTP/1.1\r\nhost: a",
            "GET /ä HTTP/1.1\r\nhost: a",
            "GET http://a/ HTTP/1.1\r\nhost: a",
            "GET / HTTP/1.1\r\nhost: a\r\nhost: a",
            "GET / HTTP/1.1\r\nhost: A",
            "GET / HTTP/1.1\r\nhost: a.",
            "GET / HTTP/1.1\r\nhost: a:80",
            "GET / HTTP/1.1\r\nhost: a:080",
            "GET / HTTP/1.1\r\nhost: a:",
            "GET / HTTP/1.1\r\nhost: a:99999",
            "GET / HTTP/1.1\r\nhost: [::1]",
            "GET / HTTP/1.1\r\naccept: x",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 1",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 01",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +1",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1, 1",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1234567890",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length:",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked",
            "GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked",
            "GET / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue",
            "GET / HTTP/1.1\r\nhost: a\r\nconnection: close",
            "GET / HTTP/1.1\r\nhost: a\r\nupgrade: h2c",
            "GET / HTTP/1.1\r\nhost: a\r\ncookie: a=b\r\ncookie: c=d",
            "GET / HTTP/1.1\r\nhost: a\r\n folded: 1",
            "GET / HTTP/1.1\r\nhost: a\r\nname : 1",
            "GET / HTTP/1.1\r\nhost: a\r\nname: \u{1}",
            "GET / HTTP/1.1\r\nhost: a\nname: 1",
        ] {
            assert_eq!(look(&format!("{head}\r\n\r\n")), None, "{head:?}");
        }
        assert_eq!(look("GET / HTTP/1.1\r\nhost: a\r\n"), None);
        assert_eq!(peek(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", 10), None);
    }
}
