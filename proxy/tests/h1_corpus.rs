//! A table of raw request heads that decide whether two servers could disagree about where a message ends, or for whom it is. Each row
//! says what Weir's parser makes of it, and why. Every row is fed at once and byte by byte; both must give the same.

use bytes::BytesMut;
use weir_proxy::h1::{BodyLength, HeadScan, Limits, Parsed, parse_request};

const LIMITS: Limits = Limits { max_head: 1024, max_headers: 8 };

#[derive(Debug, PartialEq, Clone, Copy)]
enum Want {
    /// Accepted, with this target, this framing and this many bytes left for the body.
    Ok(&'static str, BodyLength, usize),
    /// Refused with this status.
    No(u16),
    /// HTTP/2.
    Http2,
    /// Not decided yet.
    More,
}
use BodyLength::{Chunked, Length, None as Empty};
use Want::{Http2, More, No, Ok as Yes};

const CORPUS: &[(&str, Want, &str)] = &[
    // Plain traffic.
    ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Yes("/", Empty, 0), "the simplest request"),
    ("GET / HTTP/1.0\r\n\r\n", Yes("/", Empty, 0), "HTTP/1.0 needs no Host"),
    ("GET /a?b=c&d HTTP/1.1\r\nHost: a\r\n\r\n", Yes("/a?b=c&d", Empty, 0), "query"),
    ("GET /%2f%5C%00?x=%zz HTTP/1.1\r\nHost: a\r\n\r\n", Yes("/%2f%5C%00?x=%zz", Empty, 0), "escapes are not touched"),
    ("GET //x//y/../z HTTP/1.1\r\nHost: a\r\n\r\n", Yes("//x//y/../z", Empty, 0), "the path is not normalized here"),
    ("GET /?a=[1]&b={|}^`'<> HTTP/1.1\r\nHost: a\r\n\r\n", No(400), "angle brackets are in no URI"),
    ("GET /?a=[1]&b={|}^`' HTTP/1.1\r\nHost: a\r\n\r\n", Yes("/?a=[1]&b={|}^`'", Empty, 0), "what browsers leave unescaped in queries"),
    ("DELETE /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", Yes("/x", Length(0), 0), "an announced empty body"),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", Yes("/", Length(5), 5), "body stays in the buffer"),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 005\r\n\r\nhello", Yes("/", Length(5), 5), "leading zeros are decimal, never octal"),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Yes("/", Chunked, 5), "chunks"),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \t CHUNKED \t\r\n\r\n", Yes("/", Chunked, 0), "codings have no case, OWS around them"),
    ("PURGE /x HTTP/1.1\r\nHost: a\r\n\r\n", Yes("/x", Empty, 0), "other methods are for the application"),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: \u{e9}\r\n\r\n", Yes("/", Empty, 0), "obs-text in a value"),
    ("GET / HTTP/1.1\r\nHost: a\r\nX:\r\nY: \t \r\n\r\n", Yes("/", Empty, 0), "empty values"),
    ("GET / HTTP/1.1\r\nHost:a\r\nX-~!#$%&'*+.^_`|: 1\r\n\r\n", Yes("/", Empty, 0), "all token characters"),
    ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Yes("/", Empty, 0), "empty lines before, as old clients sent after a POST"),
    ("GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\n", Yes("/", Empty, 17), "the next request stays in the buffer"),
    ("GET / HTTP/1.1\r\nHost: a\r\n", More, "no empty line yet"),
    ("", More, "nothing yet"),
    ("GET / HTTP/1.1\r\nHost: a\r\n\r", More, "half an empty line"),
    // Content-Length.
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n", No(400), "sign"),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", No(400), "negative"),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x10\r\n\r\n", No(400), "hexadecimal"),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1e3\r\n\r\n", No(400), "exponent"),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5.0\r\n\r\n", No(400), "fraction"),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1_000\r\n\r\n", No(400), "digit separator, which some number parsers take"),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5 5\r\n\r\n", No(400), "two numbers"),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\n", No(400), "list of equal numbers"),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5,6\r\n\r\n", No(400), "list of different numbers"),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", No(400), "twice, equal"),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\ncontent-length: 6\r\n\r\n", No(400), "twice, different"),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", No(400), "empty"),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n", No(400), "overflows"),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5;\r\n\r\n", No(400), "parameter"),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \u{661}\r\n\r\n", No(400), "a digit of another script"),
    // Both lengths.
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", No(400), "CL.TE"),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", No(400), "TE.CL"),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: identity\r\n\r\n", No(400), "CL with any coding"),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: x\r\n\r\n", No(400), "CL with a coding that one side ignores"),
    // Transfer-Encoding.
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", No(501), "a coding we do not have"),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", No(501), "removed from HTTP long ago"),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", No(501), "TE.TE: contains the word"),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunkedd\r\n\r\n", No(501), "TE.TE: begins with the word"),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", No(400), "chunked twice"),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n", No(400), "chunked is not last: no end"),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: , chunked\r\n\r\n", No(400), "empty list member"),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked,\r\n\r\n", No(400), "trailing comma"),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n", No(400), "quoted"),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked;q=1\r\n\r\n", No(400), "parameter"),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n", No(400), "empty"),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", No(400), "two lines"),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n", No(400), "TE.TE over two lines"),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \u{b}chunked\r\n\r\n", No(400), "vertical tab before the coding"),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n", No(400), "space before the colon"),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\t: chunked\r\n\r\n", No(400), "tab before the colon"),
    ("POST / HTTP/1.1\r\nHost: a\r\n Transfer-Encoding: chunked\r\n\r\n", No(400), "hidden in a folded line"),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n", No(400), "value on a folded line"),
    ("POST / HTTP/1.1\r\nHost: a\r\nX: y\rTransfer-Encoding: chunked\r\n\r\n", No(400), "hidden behind a bare CR"),
    ("POST / HTTP/1.1\r\nHost: a\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n", No(400), "hidden behind a bare LF"),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer_Encoding: chunked\r\n\r\n", Yes("/", Empty, 0), "an underscore makes another field"),
    ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", No(400), "HTTP/1.0 has no chunks"),
    // Line ends.
    ("GET / HTTP/1.1\nHost: a\n\n", No(400), "bare LF everywhere"),
    ("GET / HTTP/1.1\r\nHost: a\n\r\n", No(400), "bare LF behind a header"),
    ("GET / HTTP/1.1\r\nHost: a\r\n\n", No(400), "bare LF for the empty line"),
    ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", No(400), "bare LF before the request"),
    ("GET / HTTP/1.1\rHost: a\r\n\r\n", No(400), "bare CR in the request line"),
    ("GET / HTTP/1.1\r\r\nHost: a\r\n\r\n", No(400), "doubled CR"),
    ("GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", No(400), "doubled CR behind a header"),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n", No(400), "obsolete folding"),
    ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", No(400), "space before the first header"),
    ("\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\n", No(400), "too many empty lines"),
    // Names and values.
    ("GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n", No(400), "empty name"),
    ("GET / HTTP/1.1\r\nHost: a\r\nNoColon\r\n\r\n", No(400), "no colon"),
    ("GET / HTTP/1.1\r\nHost: a\r\nX Y: 1\r\n\r\n", No(400), "space in a name"),
    ("GET / HTTP/1.1\r\nHost: a\r\nX\0: 1\r\n\r\n", No(400), "NUL in a name"),
    ("GET / HTTP/1.1\r\nHost: a\r\nX(Y): 1\r\n\r\n", No(400), "delimiter in a name"),
    ("GET / HTTP/1.1\r\nHost: a\r\n\u{e9}: 1\r\n\r\n", No(400), "a name that is not ASCII"),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n", No(400), "NUL in a value"),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: a\u{8}b\r\n\r\n", No(400), "control character in a value"),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: \u{7f}\r\n\r\n", No(400), "DEL in a value"),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: a\tb\r\n\r\n", Yes("/", Empty, 0), "a tab is no control character here"),
    // Host.
    ("GET / HTTP/1.1\r\n\r\n", No(400), "no Host"),
    ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", No(400), "two Hosts"),
    ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", No(400), "two equal Hosts"),
    ("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", No(400), "two Hosts in HTTP/1.0"),
    ("GET / HTTP/1.1\r\nHost:\r\n\r\n", No(400), "empty Host"),
    ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", No(400), "list in Host"),
    ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", No(400), "space in Host"),
    ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", No(400), "path in Host"),
    ("GET / HTTP/1.1\r\nHost: user@a\r\n\r\n", No(400), "user in Host"),
    ("GET / HTTP/1.1\r\nHost: http://a\r\n\r\n", No(400), "URL in Host"),
    ("GET / HTTP/1.1\r\nHost: a?b\r\n\r\n", No(400), "query in Host"),
    ("GET / HTTP/1.1\r\nHost: a#b\r\n\r\n", No(400), "fragment in Host"),
    ("GET / HTTP/1.1\r\nHost: a%00\r\n\r\n", No(400), "escape in Host"),
    ("GET / HTTP/1.1\r\nHost: a:\r\n\r\n", No(400), "empty port"),
    ("GET / HTTP/1.1\r\nHost: a:99999\r\n\r\n", No(400), "port too large"),
    ("GET / HTTP/1.1\r\nHost: a:80x\r\n\r\n", No(400), "port is no number"),
    ("GET / HTTP/1.1\r\nHost: a:1:2\r\n\r\n", No(400), "two ports"),
    ("GET / HTTP/1.1\r\nHost: [::1]x\r\n\r\n", No(400), "junk behind an IPv6 address"),
    ("GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", No(400), "unclosed bracket"),
    ("GET / HTTP/1.1\r\nHost: [a.b]\r\n\r\n", No(400), "a name in brackets"),
    ("GET / HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n", Yes("/", Empty, 0), "IPv6 with port"),
    ("GET / HTTP/1.1\r\nHost: shop_1.example.com:443\r\n\r\n", Yes("/", Empty, 0), "underscores exist in names inside a cluster"),
    // Targets.
    ("GET http://a/x?y HTTP/1.1\r\nHost: A\r\n\r\n", Yes("/x?y", Empty, 0), "absolute form, same host"),
    ("GET HTTPS://a:443?y HTTP/1.1\r\nHost: a:443\r\n\r\n", Yes("/?y", Empty, 0), "absolute form without a path"),
    ("GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", Yes("/", Empty, 0), "absolute form of the root"),
    ("OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n", Yes("*", Empty, 0), "absolute form of `*` (RFC 9112 section 3.2.4)"),
    ("GET http://a/ HTTP/1.0\r\n\r\n", Yes("/", Empty, 0), "the target gives HTTP/1.0 its host"),
    ("GET http://a@b/ HTTP/1.0\r\n\r\n", No(400), "user in the authority"),
    ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", No(400), "absolute form, another host"),
    ("GET http://a:80/ HTTP/1.1\r\nHost: a\r\n\r\n", No(400), "absolute form, other port spelling"),
    ("GET http://a@b/ HTTP/1.1\r\nHost: b\r\n\r\n", No(400), "user in the target"),
    ("GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", No(400), "no authority"),
    ("GET http://a/x HTTP/1.1\r\n\r\n", No(400), "absolute form does not replace Host in HTTP/1.1"),
    ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", No(400), "another scheme"),
    ("GET a/x HTTP/1.1\r\nHost: a\r\n\r\n", No(400), "relative path"),
    ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", No(400), "asterisk with GET"),
    ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", Yes("*", Empty, 0), "asterisk with OPTIONS"),
    ("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", No(400), "fragment"),
    ("GET /a\\b HTTP/1.1\r\nHost: a\r\n\r\n", Yes("/a\\b", Empty, 0), "backslash: for the classifier to refuse"),
    ("GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n", No(400), "a path that is not ASCII"),
    ("GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n", No(400), "tab in the target"),
    ("GET /a\0 HTTP/1.1\r\nHost: a\r\n\r\n", No(400), "NUL in the target"),
    ("GET ?x HTTP/1.1\r\nHost: a\r\n\r\n", No(400), "query without path"),
    // The request line.
    ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", No(400), "two spaces"),
    ("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", No(400), "space in the target"),
    ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", No(400), "space behind the version"),
    (" GET / HTTP/1.1\r\nHost: a\r\n\r\n", No(400), "space before the method"),
    ("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", No(400), "tab for a space"),
    ("GET /\r\nHost: a\r\n\r\n", No(400), "HTTP/0.9"),
    ("GET HTTP/1.1\r\nHost: a\r\n\r\n", No(400), "no target"),
    ("G@T / HTTP/1.1\r\nHost: a\r\n\r\n", No(400), "method is no token"),
    ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", No(505), "another version"),
    ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", No(505), "a later minor version"),
    ("GET / HTTP/0.9\r\nHost: a\r\n\r\n", No(505), "an earlier version"),
    ("GET / http/1.1\r\nHost: a\r\n\r\n", No(400), "the name has a case"),
    ("GET / HTTP/1.10\r\nHost: a\r\n\r\n", No(400), "version with more digits"),
    ("GET / HTTP/11\r\nHost: a\r\n\r\n", No(400), "version without a dot"),
    ("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", No(405), "no tunnels"),
    ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", No(405), "no echo of cookies"),
    ("AAAAAAAAAAAAAAAAAAAAAAAAA / HTTP/1.1\r\nHost: a\r\n\r\n", No(501), "overlong method"),
    // Expectations.
    ("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\n", Yes("/", Length(1), 0), "the known expectation"),
    ("POST / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\n\r\n", No(417), "an unknown expectation"),
    // HTTP/2.
    ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Http2, "the preface"),
    ("PRI * HTTP/2.0\r\n\r\n", Http2, "enough of the preface"),
    ("PRI * HTTP/2.0\r\nHost: a\r\n\r\n", No(505), "a request that looks like the preface"),
    // TLS to a plain port, and other noise.
    ("\u{16}\u{3}\u{1}\r\n\r\n", No(400), "a TLS hello"),
    ("hello\r\n\r\n", No(400), "a word"),
];

fn outcome(buf: &mut BytesMut, scan: &mut HeadScan) -> Want {
    match parse_request(buf, &LIMITS, scan) {
        Ok(Parsed::Request(head)) => {
            let target = head.parts.uri.path_and_query().map_or("", |p| p.as_str()).to_string();
            Yes(target.leak(), head.body, 0)
        }
        Ok(Parsed::Http2Preface) => Http2,
        Ok(Parsed::Partial) => More,
        Err(error) => No(error.status.as_u16()),
    }
}

fn at_once(raw: &str) -> Want {
    let mut buf = BytesMut::from(raw.as_bytes());
    match outcome(&mut buf, &mut HeadScan::default()) {
        Yes(target, body, _) => Yes(target, body, buf.len()),
        other => other,
    }
}

/// Adds one byte at a time until there is a decision; what is left of `raw` counts as left in the buffer.
fn byte_by_byte(raw: &str) -> Want {
    let mut buf = BytesMut::new();
    let mut scan = HeadScan::default();
    for (at, byte) in raw.bytes().enumerate() {
        buf.extend_from_slice(&[byte]);
        match outcome(&mut buf, &mut scan) {
            More => {}
            Yes(target, body, _) => return Yes(target, body, buf.len() + raw.len() - at - 1),
            other => return other,
        }
    }
    More
}

#[test]
fn every_row_is_read_as_the_table_says() {
    assert!(CORPUS.len() >= 80);
    for (raw, want, why) in CORPUS {
        assert_eq!(at_once(raw), *want, "{why}: {raw:?}");
        assert_eq!(byte_by_byte(raw), *want, "byte by byte: {why}: {raw:?}");
    }
}

#[test]
fn nothing_is_taken_from_the_buffer_before_the_head_is_complete() {
    for (raw, want, _) in CORPUS {
        if matches!(want, More | Http2) {
            let mut buf = BytesMut::from(raw.as_bytes());
            outcome(&mut buf, &mut HeadScan::default());
            assert_eq!(&buf[..], raw.as_bytes());
        }
    }
}

#[test]
fn limits() {
    let long = "x".repeat(2000);
    let fill = |n: usize| "y".repeat(n);
    let fields = |n: usize| (0..n).map(|i| format!("X-{i}: 1\r\n")).collect::<String>();
    for (raw, want, why) in [
        (format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n"), No(414), "the target alone is too long"),
        (format!("GET /{long}"), No(414), "and is refused before it ends"),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n"), No(431), "a header is too long"),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}"), No(431), "and is refused before it ends"),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", fill(1024 - 32)), Yes("/", Empty, 0), "exactly the limit"),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", fill(1024 - 31)), No(431), "one byte more"),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", fields(7)), Yes("/", Empty, 0), "exactly as many headers as allowed"),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", fields(8)), No(431), "one header more"),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nN{}: 1\r\n\r\n", fill(300)), No(400), "overlong name"),
        (format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", fill(300)), No(400), "overlong host"),
    ] {
        assert_eq!(at_once(&raw), want, "{why}");
        assert_eq!(byte_by_byte(&raw), want, "byte by byte: {why}");
    }
}

#[test]
fn connection_options() {
    let parse = |raw: &str| {
        let mut buf = BytesMut::from(raw.as_bytes());
        match parse_request(&mut buf, &LIMITS, &mut HeadScan::default()) {
            Ok(Parsed::Request(head)) => (head.keep_alive, head.upgrade, head.expect_continue, head.http10),
            other => panic!("{raw:?}: {other:?}"),
        }
    };
    let rows = [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", (true, false, false, false)),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", (false, false, false, false)),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: x, CLOSE\r\n\r\n", (false, false, false, false)),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: x\r\nConnection: close\r\n\r\n", (false, false, false, false)),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, close\r\n\r\n", (false, false, false, false)),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: closed\r\n\r\n", (true, false, false, false)),
        ("GET / HTTP/1.0\r\n\r\n", (false, false, false, true)),
        ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", (true, false, false, true)),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", (true, true, false, false)),
        ("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n", (true, false, false, false)),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n\r\n", (true, false, false, false)),
        ("GET / HTTP/1.0\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", (false, false, false, true)),
        ("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n", (true, false, true, false)),
        ("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n", (true, false, true, false)),
        ("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n", (true, false, false, false)),
        ("POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n", (false, false, false, true)),
    ];
    for (raw, want) in rows {
        assert_eq!(parse(raw), want, "{raw:?}");
    }
}

#[test]
fn one_scan_serves_request_after_request() {
    let mut buf = BytesMut::from(&b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\nX: "[..]);
    let mut scan = HeadScan::default();
    assert_eq!(outcome(&mut buf, &mut scan), Yes("/1", Empty, 0));
    assert_eq!(outcome(&mut buf, &mut scan), More);
    buf.extend_from_slice(b"1\r\n\r\n");
    assert_eq!(outcome(&mut buf, &mut scan), Yes("/2", Empty, 0));
    assert!(buf.is_empty());
}

#[test]
fn values_share_the_buffer_of_the_head() {
    let mut buf = BytesMut::from(&b"GET /path HTTP/1.1\r\nHost: a\r\nX-Long: 0123456789\r\n\r\n"[..]);
    let range = buf.as_ptr_range();
    let Ok(Parsed::Request(head)) = parse_request(&mut buf, &LIMITS, &mut HeadScan::default()) else { panic!("refused") };
    assert!(range.contains(&head.parts.headers["x-long"].as_bytes().as_ptr()));
    assert!(range.contains(&head.parts.uri.path().as_ptr()));
}
