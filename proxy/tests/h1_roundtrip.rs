//! Heads and bodies: what is written can be read back, what arrives in pieces is the same as what arrives at once, and no bytes make
//! the parsers panic.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, request};
use proptest::prelude::*;
use weir_proxy::h1::{
    BodyDecoder, BodyEncoder, BodyLength, Connection, Decoded, EncodeError, FramingError, HeadScan, Limits, Parsed, RequestHead, ResponseHead,
    ResponseLength, parse_request, parse_response, strip_hop_by_hop, write_interim, write_request_head, write_response_head,
};

const LIMITS: Limits = Limits { max_head: 16 * 1024, max_headers: 100 };

fn request(bytes: &[u8]) -> RequestHead {
    let mut buf = BytesMut::from(bytes);
    match parse_request(&mut buf, &LIMITS, &mut HeadScan::default()) {
        Ok(Parsed::Request(head)) => *head,
        other => panic!("{:?}: {other:?}", String::from_utf8_lossy(bytes)),
    }
}

fn response(bytes: &[u8], method: &Method) -> Result<Option<ResponseHead>, &'static str> {
    parse_response(&mut BytesMut::from(bytes), method, &LIMITS).map_err(|e| {
        assert_eq!(e.status, StatusCode::BAD_GATEWAY);
        e.reason
    })
}

fn fields(list: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in list {
        map.append(HeaderName::from_bytes(name.as_bytes()).expect("name"), HeaderValue::from_str(value).expect("value"));
    }
    map
}

/// All data, then how the body ended. `pieces` are fed one after the other.
fn decode<'a>(length: ResponseLength, pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<u8>, Result<Option<HeaderMap>, FramingError>, usize) {
    let mut decoder = BodyDecoder::response(length);
    let mut buf = BytesMut::new();
    let mut data = Vec::new();
    let mut end = None;
    for piece in pieces {
        buf.extend_from_slice(piece);
        while end.is_none() {
            match decoder.decode(&mut buf) {
                Ok(Decoded::Data(piece)) => {
                    assert!(!piece.is_empty());
                    data.extend_from_slice(&piece);
                }
                Ok(Decoded::NeedMore) => break,
                Ok(Decoded::End { trailers }) => end = Some(Ok(trailers)),
                Err(error) => end = Some(Err(error)),
            }
        }
    }
    let end = end.unwrap_or_else(|| decoder.eof().map(|()| None));
    (data, end, buf.len())
}

#[test]
fn response_framing() {
    use ResponseLength::{Chunked, Close, Length, None as Empty};
    let get = Method::GET;
    let rows: &[(&str, &Method, ResponseLength, bool, &str)] = &[
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", &get, Length(5), true, "length"),
        ("HTTP/1.1 200 \r\nTransfer-Encoding: Chunked\r\n\r\n", &get, Chunked, true, "chunks, empty reason"),
        ("HTTP/1.1 200\r\n\r\n", &get, Close, false, "no length, no reason"),
        ("HTTP/1.1 200 \u{e9}\tx\r\nContent-Length: 0\r\n\r\n", &get, Length(0), true, "any reason"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: x, Close\r\n\r\n", &get, Length(5), false, "close"),
        ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", &get, Length(5), false, "1.0"),
        ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n", &get, Length(5), true, "1.0 that stays"),
        ("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n", &get, Close, false, "1.0 that says it stays but can not"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", &Method::HEAD, Empty, true, "HEAD"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", &Method::HEAD, Empty, true, "HEAD of chunks"),
        ("HTTP/1.1 200 OK\r\n\r\n", &Method::HEAD, Empty, true, "HEAD of unknown length"),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", &get, Empty, true, "304 tells the page's length"),
        ("HTTP/1.1 204 No Content\r\n\r\n", &get, Empty, true, "204"),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", &get, Empty, true, "204 that says 0"),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", &get, Empty, false, "204 that may send a body all the same"),
        ("HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", &get, Empty, false, "204 that may send chunks"),
        ("HTTP/1.1 100 Continue\r\n\r\n", &get, Empty, true, "interim"),
        ("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", &get, Empty, true, "interim with fields"),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", &get, Empty, true, "upgrade"),
        ("HTTP/1.1 599 Odd\r\nContent-Length: 1\r\n\r\n", &get, Length(1), true, "unregistered status"),
    ];
    for (raw, method, body, keep, why) in rows {
        let head = response(raw.as_bytes(), method).unwrap_or_else(|e| panic!("{why}: {e}")).unwrap_or_else(|| panic!("{why}"));
        assert_eq!((head.body, head.keep_alive), (*body, *keep), "{why}");
    }
}

#[test]
fn responses_that_could_be_read_in_two_ways_are_refused() {
    for raw in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 5\n\n",
        "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: \0\r\n\r\n",
        "HTTP/1.1 200 O\rK\r\n\r\n",
        "HTTP/1.1 200 O\0K\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 099 OK\r\n\r\n",
        "HTTP/1.1 600 OK\r\n\r\n",
        "HTTP/1.1  200 OK\r\n\r\n",
        "HTTP/1.1 200OK\r\n\r\n",
        "HTTP/1.2 200 OK\r\n\r\n",
        "HTTP/2 200\r\n\r\n",
        "ICY 200 OK\r\n\r\n",
        "\r\nHTTP/1.1 200 OK\r\n\r\n",
    ] {
        assert!(response(raw.as_bytes(), &Method::GET).is_err(), "{raw:?}");
    }
    assert!(response(b"HTTP/1.1 200 OK\r\nA: b\r\n", &Method::GET).is_ok_and(|head| head.is_none()));
}

#[test]
fn responses_over_the_limits_are_refused() {
    let long = format!("HTTP/1.1 200 OK\r\nA: {}", "b".repeat(LIMITS.max_head));
    assert!(response(long.as_bytes(), &Method::GET).is_err());
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(LIMITS.max_headers + 1));
    assert!(response(many.as_bytes(), &Method::GET).is_err());
}

#[test]
fn chunks_that_could_be_read_in_two_ways_are_refused() {
    use FramingError::{ChunkEnd, ChunkLine, ChunkSize, ChunkTooLarge, Extensions, Incomplete, TrailersTooLong};
    let extension = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(20_000));
    let many_extensions = format!("{}0\r\n\r\n", format!("1;{}\r\na\r\n", "x".repeat(1000)).repeat(20));
    let trailer = format!("0\r\nA: {}\r\n\r\n", "x".repeat(9000));
    let trailers = format!("0\r\n{}\r\n", "A: b\r\n".repeat(65));
    let rows: &[(&str, FramingError, &str)] = &[
        ("\r\n", ChunkSize, "no size"),
        (";x\r\n", ChunkSize, "no size, but an extension"),
        ("g\r\n", ChunkSize, "not hexadecimal"),
        ("0x5\r\n", ChunkSize, "prefix"),
        ("-5\r\n", ChunkSize, "sign"),
        ("+5\r\n", ChunkSize, "sign"),
        (" 5\r\n", ChunkSize, "space before the size"),
        ("5 \r\nhello\r\n", ChunkSize, "space behind the size"),
        ("5_\r\n", ChunkSize, "digit separator"),
        ("fffffffffffffffff\r\n", ChunkTooLarge, "overflow"),
        ("00000000000000005\r\n", ChunkTooLarge, "endless zeros"),
        ("8000000000000000\r\n", ChunkTooLarge, "negative for a signed number"),
        ("5\nhello\r\n", ChunkSize, "bare LF behind the size"),
        ("5\rhello\r\n", ChunkLine, "bare CR behind the size"),
        ("5;a\nhello\r\n", ChunkLine, "bare LF in an extension"),
        ("5;a\rb\r\n", ChunkLine, "bare CR in an extension"),
        ("5;\0\r\n", ChunkLine, "NUL in an extension"),
        ("5\r\nhello\n0\r\n\r\n", ChunkEnd, "bare LF behind the data"),
        ("5\r\nhelloX\r\n", ChunkEnd, "more data than said"),
        ("5\r\nhello\rX", ChunkEnd, "CR and no LF behind the data"),
        (&extension, Extensions, "long extension"),
        (&many_extensions, Extensions, "many extensions"),
        (&trailer, TrailersTooLong, "long trailer"),
        (&trailers, TrailersTooLong, "many trailers"),
        ("0\r\nA: b\n\r\n", FramingError::Trailers("line feed without carriage return"), "bare LF in a trailer"),
        ("0\r\nA : b\r\n\r\n", FramingError::Trailers("whitespace before the colon of a header"), "malformed trailer"),
        ("0\r\n\n", FramingError::Trailers("line feed without carriage return"), "bare LF at the end"),
        ("5\r\nhel", Incomplete, "cut in the data"),
        ("5\r\nhello\r\n", Incomplete, "cut before the last chunk"),
        ("0\r\n", Incomplete, "cut before the empty line"),
        ("", Incomplete, "nothing"),
    ];
    for (raw, want, why) in rows {
        let (_, end, _) = decode(ResponseLength::Chunked, [raw.as_bytes()]);
        assert_eq!(end.err(), Some(*want), "{why}");
        let (_, end, _) = decode(ResponseLength::Chunked, raw.as_bytes().chunks(1));
        assert_eq!(end.err(), Some(*want), "byte by byte: {why}");
    }
}

#[test]
fn chunks_with_all_that_is_allowed() {
    let raw = b"5;a=\"b c\"\r\nhello\r\n00A\r\n, world!!!\r\n0;x\r\nServer-Timing: t\r\nContent-Length: 7\r\nSet-Cookie: a=b\r\nTE: x\r\n\r\nNEXT";
    for size in [1, 2, 3, 7, raw.len()] {
        let (data, end, left) = decode(ResponseLength::Chunked, raw.chunks(size));
        assert_eq!(data, b"hello, world!!!");
        let trailers = end.expect("complete").expect("trailers");
        assert_eq!(trailers.len(), 1, "only what may stand in a trailer: {trailers:?}");
        assert_eq!(trailers["server-timing"], "t");
        assert_eq!(left, 4, "the next message stays");
    }
}

/// Framing, bytes, the data in them, whether the body is complete, bytes left.
type Row<'a> = (ResponseLength, &'a [u8], &'a [u8], bool, usize);

#[test]
fn every_framing_knows_its_end() {
    let rows: &[Row] = &[
        (ResponseLength::None, b"next", b"", true, 4),
        (ResponseLength::Length(0), b"next", b"", true, 4),
        (ResponseLength::Length(5), b"hellonext", b"hello", true, 4),
        (ResponseLength::Length(5), b"hell", b"hell", false, 0),
        (ResponseLength::Close, b"hello", b"hello", true, 0),
        (ResponseLength::Close, b"", b"", true, 0),
        (ResponseLength::Chunked, b"0\r\n\r\nnext", b"", true, 4),
    ];
    for (length, raw, data, complete, left) in rows {
        let (got, end, rest) = decode(*length, [*raw]);
        assert_eq!((&got[..], end.is_ok(), rest), (*data, *complete, *left), "{length:?} {raw:?}");
    }
}

#[test]
fn a_broken_body_stays_broken() {
    let mut decoder = BodyDecoder::request(BodyLength::Chunked);
    let mut buf = BytesMut::from(&b"x\r\n"[..]);
    assert_eq!(decoder.decode(&mut buf).err(), Some(FramingError::ChunkSize));
    let mut good = BytesMut::from(&b"0\r\n\r\n"[..]);
    assert_eq!(decoder.decode(&mut good).err(), Some(FramingError::ChunkSize));
    assert_eq!(decoder.eof(), Err(FramingError::ChunkSize));
}

#[test]
fn data_shares_the_buffer_it_was_read_into() {
    let mut buf = BytesMut::from(&b"5\r\nhello\r\n"[..]);
    let range = buf.as_ptr_range();
    let Ok(Decoded::Data(data)) = BodyDecoder::request(BodyLength::Chunked).decode(&mut buf) else { panic!("no data") };
    assert!(range.contains(&data.as_ptr()));
}

#[test]
fn an_encoder_keeps_the_heads_promise() {
    let mut out = Vec::new();
    let mut exact = BodyEncoder::new(BodyLength::Length(5));
    assert_eq!(exact.encode(b"hel", &mut out), Ok(()));
    assert_eq!(exact.finish(&mut out), Err(EncodeError::TooShort));
    assert_eq!(exact.encode(b"lo!", &mut out), Err(EncodeError::TooLong));
    assert_eq!(out, b"hel", "nothing of what is too much is written");
    assert_eq!(exact.encode(b"lo", &mut out), Ok(()));
    assert_eq!(exact.finish(&mut out), Ok(()));
    assert_eq!(exact.finish(&mut out), Err(EncodeError::Finished));
    assert_eq!(exact.encode(b"x", &mut out), Err(EncodeError::Finished));
    assert_eq!(out, b"hello");

    let mut out = Vec::new();
    let mut chunks = BodyEncoder::new(BodyLength::Chunked);
    chunks.encode(b"", &mut out).expect("an empty piece is no last chunk");
    chunks.encode(b"0123456789abcdef", &mut out).expect("fits");
    chunks.encode(b"x", &mut out).expect("fits");
    chunks.finish(&mut out).expect("complete");
    assert_eq!(out, b"10\r\n0123456789abcdef\r\n1\r\nx\r\n0\r\n\r\n");

    let mut out = Vec::new();
    let mut none = BodyEncoder::new(BodyLength::None);
    assert_eq!(none.encode(b"x", &mut out), Err(EncodeError::TooLong));
    assert_eq!(none.finish(&mut out), Ok(()));
    assert!(out.is_empty());
    let mut close = BodyEncoder::response(ResponseLength::Close);
    close.encode(b"x", &mut out).expect("fits");
    close.finish(&mut out).expect("complete");
    assert_eq!(out, b"x");
}

fn written(parts: &request::Parts, length: BodyLength) -> String {
    let mut out = Vec::new();
    write_request_head(&mut out, parts, length);
    String::from_utf8(out).expect("ASCII")
}

#[test]
fn a_request_head_is_framed_by_its_writer() {
    let make = |method: &str, uri: &str, list: &[(&str, &str)]| {
        let mut parts = Request::builder().method(method).uri(uri).body(()).expect("request").into_parts().0;
        parts.headers = fields(list);
        parts
    };
    let parts = make(
        "POST",
        "/a//b/../c?x=%2f&y",
        &[
            ("Accept", "*/*"),
            ("Host", "shop"),
            ("Content-Length", "99"),
            ("Transfer-Encoding", "gzip"),
            ("Expect", "100-continue"),
            ("Connection", "x-secret"),
            ("Keep-Alive", "5"),
            ("Cookie", "a=1"),
            ("Cookie", "b=2"),
        ],
    );
    let head = "POST /a//b/../c?x=%2f&y HTTP/1.1\r\nhost: shop\r\naccept: */*\r\ncookie: a=1; b=2\r\n";
    assert_eq!(written(&parts, BodyLength::Length(7)), format!("{head}content-length: 7\r\n\r\n"));
    assert_eq!(written(&parts, BodyLength::Chunked), format!("{head}transfer-encoding: chunked\r\n\r\n"));
    assert_eq!(written(&parts, BodyLength::None), format!("{head}content-length: 0\r\n\r\n"));
    assert_eq!(written(&make("GET", "http://shop:81", &[]), BodyLength::None), "GET / HTTP/1.1\r\nhost: shop:81\r\n\r\n");
    assert_eq!(written(&make("OPTIONS", "*", &[("host", "a")]), BodyLength::None), "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n");
    let upgrade = make("GET", "/", &[("host", "a"), ("upgrade", "websocket"), ("connection", "keep-alive, Upgrade")]);
    assert_eq!(written(&upgrade, BodyLength::None), "GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n");
}

#[test]
fn a_response_head_is_framed_by_its_writer() {
    let write = |status: u16, framing, connection| {
        let mut out = Vec::new();
        let headers = fields(&[("Content-Length", "99"), ("Transfer-Encoding", "x"), ("Connection", "x"), ("Upgrade", "ws"), ("Age", "1")]);
        write_response_head(&mut out, StatusCode::from_u16(status).expect("status"), &headers, framing, connection);
        String::from_utf8(out).expect("ASCII")
    };
    use Connection::{Close, Keep, KeepExplicit, Upgrade};
    for (status, framing, connection, want) in [
        (200, ResponseLength::Length(5), Keep, "200 OK\r\nage: 1\r\ncontent-length: 5\r\n\r\n"),
        (200, ResponseLength::Chunked, Close, "200 OK\r\nage: 1\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"),
        (200, ResponseLength::Close, Close, "200 OK\r\nage: 1\r\nconnection: close\r\n\r\n"),
        (200, ResponseLength::None, KeepExplicit, "200 OK\r\ncontent-length: 99\r\nage: 1\r\nconnection: keep-alive\r\n\r\n"),
        (304, ResponseLength::None, Keep, "304 Not Modified\r\ncontent-length: 99\r\nage: 1\r\n\r\n"),
        (204, ResponseLength::None, Keep, "204 No Content\r\nage: 1\r\n\r\n"),
        (101, ResponseLength::None, Upgrade, "101 Switching Protocols\r\nupgrade: ws\r\nage: 1\r\nconnection: upgrade\r\n\r\n"),
        (599, ResponseLength::Length(0), Keep, "599 \r\nage: 1\r\ncontent-length: 0\r\n\r\n"),
    ] {
        assert_eq!(write(status, framing, connection), format!("HTTP/1.1 {want}"));
    }
    let mut out = Vec::new();
    write_interim(&mut out, StatusCode::EARLY_HINTS, &fields(&[("link", "</a>"), ("content-length", "5")]));
    assert_eq!(out, b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n");
}

#[test]
fn fields_of_one_connection_do_not_travel() {
    let mut map = fields(&[
        ("connection", "X-One, keep-alive"),
        ("connection", "x-two,,host, Cache-Control, content-type, bad name, authorization"),
        ("x-one", "1"),
        ("x-two", "1"),
        ("x-three", "1"),
        ("keep-alive", "5"),
        ("proxy-connection", "x"),
        ("proxy-authorization", "x"),
        ("proxy-authenticate", "x"),
        ("proxy-status", "kept"),
        ("te", "trailers"),
        ("trailer", "x"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("http2-settings", "x"),
        ("host", "kept"),
        ("cache-control", "kept"),
        ("content-type", "kept"),
        ("authorization", "kept"),
    ]);
    strip_hop_by_hop(&mut map);
    let mut left: Vec<&str> = map.keys().map(HeaderName::as_str).collect();
    left.sort_unstable();
    assert_eq!(left, ["authorization", "cache-control", "content-type", "host", "proxy-status", "x-three"]);
}

/// A field that neither frames nor routes.
fn field() -> impl Strategy<Value = (HeaderName, HeaderValue)> {
    let name = "x-[a-z0-9!#$%&'*+.^_`|~-]{1,20}";
    // What a parser keeps of a value: no whitespace at either end.
    let value = proptest::collection::vec(prop_oneof![Just(b'\t'), 0x20u8..0x7f, 0x80u8..=0xff], 0..40);
    (name, value).prop_map(|(name, value)| {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("token");
        (name, HeaderValue::from_bytes(value.trim_ascii()).expect("field content"))
    })
}

fn length() -> impl Strategy<Value = BodyLength> {
    prop_oneof![Just(BodyLength::None), (0u64..1 << 59).prop_map(BodyLength::Length), Just(BodyLength::Chunked)]
}

/// Cuts bytes at arbitrary places.
fn pieces<'a>(bytes: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    at.extend([0, bytes.len()]);
    at.sort_unstable();
    at.windows(2).map(|w| &bytes[w[0]..w[1]]).collect()
}

proptest! {
    #[test]
    fn a_written_request_is_read_back(
        method in "[A-Z]{1,10}",
        path in "/[!$-;=@-_a-z|~]{0,40}",
        list in proptest::collection::vec(field(), 0..20),
        length in length(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..5),
    ) {
        prop_assume!(method != "CONNECT" && method != "TRACE");
        let mut parts = Request::builder().method(&*method).uri(&*path).header("host", "shop.example:8080").body(()).expect("request").into_parts().0;
        for (name, value) in list {
            parts.headers.append(name, value);
        }
        let mut bytes = Vec::new();
        write_request_head(&mut bytes, &parts, length);
        bytes.extend_from_slice(b"rest");
        let mut head = None;
        let mut buf = BytesMut::new();
        let mut scan = HeadScan::default();
        for piece in pieces(&bytes, &cuts) {
            buf.extend_from_slice(piece);
            if head.is_none() {
                match parse_request(&mut buf, &LIMITS, &mut scan) {
                    Ok(Parsed::Request(found)) => head = Some(*found),
                    Ok(Parsed::Partial) => {}
                    other => prop_assert!(false, "{other:?}"),
                }
            }
        }
        let head = head.expect("complete");
        prop_assert_eq!(&buf[..], b"rest");
        prop_assert_eq!(&head.parts.method, &parts.method);
        prop_assert_eq!(head.parts.uri.path_and_query().map(|p| p.as_str()), Some(&*path));
        let wants_length = matches!(&*method, "POST" | "PUT" | "PATCH");
        prop_assert_eq!(head.body, if length == BodyLength::None && wants_length { BodyLength::Length(0) } else { length });
        let mut headers = head.parts.headers;
        headers.remove("content-length");
        headers.remove("transfer-encoding");
        prop_assert_eq!(headers, parts.headers);
    }

    #[test]
    fn a_written_response_is_read_back(
        status in 200u16..600,
        list in proptest::collection::vec(field(), 0..20),
        length in length(),
        keep in any::<bool>(),
    ) {
        prop_assume!(status != 204 && status != 304);
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(name, value);
        }
        let framing = if length == BodyLength::None { ResponseLength::Close } else { length.into() };
        let connection = if keep { Connection::Keep } else { Connection::Close };
        let mut bytes = Vec::new();
        write_response_head(&mut bytes, StatusCode::from_u16(status).expect("status"), &headers, framing, connection);
        let head = response(&bytes, &Method::GET).expect("well-formed").expect("complete");
        prop_assert_eq!(head.parts.status.as_u16(), status);
        prop_assert_eq!(head.body, framing);
        prop_assert_eq!(head.keep_alive, keep && framing != ResponseLength::Close);
        let mut found = head.parts.headers;
        for name in ["content-length", "transfer-encoding", "connection"] {
            found.remove(name);
        }
        prop_assert_eq!(found, headers);
    }

    #[test]
    fn an_encoded_body_is_decoded_wherever_it_is_cut(
        chunked in any::<bool>(),
        data in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..8),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..10),
    ) {
        let whole = data.concat();
        let length = if chunked { BodyLength::Chunked } else { BodyLength::Length(whole.len() as u64) };
        let mut encoder = BodyEncoder::new(length);
        let mut bytes = Vec::new();
        for piece in &data {
            encoder.encode(piece, &mut bytes).expect("fits");
        }
        encoder.finish(&mut bytes).expect("complete");
        bytes.extend_from_slice(b"next");
        let (found, end, left) = decode(length.into(), pieces(&bytes, &cuts));
        prop_assert_eq!(found, whole);
        prop_assert_eq!(end, Ok(None));
        prop_assert_eq!(left, 4);
    }

    #[test]
    fn no_bytes_make_the_parsers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse_request(&mut BytesMut::from(&bytes[..]), &LIMITS, &mut HeadScan::default());
        let _ = response(&bytes, &Method::GET);
        let _ = decode(ResponseLength::Chunked, [&bytes[..]]);
    }

    /// Bytes that often get past the first checks, in any cut: the verdict is the same as for the whole.
    #[test]
    fn near_misses_are_judged_alike_in_every_cut(
        tokens in proptest::collection::vec(prop::sample::select(vec![
            "GET ", "POST ", "/ ", "/a?b ", "* ", "http://a/ ", "HTTP/1.1", "HTTP/1.0", "\r\n", "\r\n", "\r\n\r\n", "\n", "\r", " ", "\t", ":", "Host: a\r\n",
            "Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n", "Connection: close\r\n", "X: y\r\n", "x", "\0", "\u{e9}", "5", "0", ";", "a",
        ]), 0..14),
        valid_start in any::<bool>(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut text = if valid_start { "POST / HTTP/1.1\r\nHost: a\r\n".to_string() } else { String::new() };
        text.extend(tokens);
        let verdict = |pieces: Vec<&[u8]>| {
            let mut buf = BytesMut::new();
            let mut scan = HeadScan::default();
            for (at, piece) in pieces.iter().enumerate() {
                buf.extend_from_slice(piece);
                match parse_request(&mut buf, &LIMITS, &mut scan) {
                    Ok(Parsed::Request(head)) => {
                        let left = buf.len() + pieces[at + 1..].iter().map(|p| p.len()).sum::<usize>();
                        return Ok(Some((head.parts.headers, head.body, head.keep_alive, left)));
                    }
                    Ok(Parsed::Partial) => {}
                    Ok(Parsed::Http2Preface) => panic!("no preface"),
                    Err(error) => return Err(error.status),
                }
            }
            Ok(None)
        };
        prop_assert_eq!(verdict(vec![text.as_bytes()]), verdict(pieces(text.as_bytes(), &cuts)));
        // Where broken framing was noticed does not matter: nothing behind it is read.
        let judged = |(data, end, left): (Vec<u8>, Result<_, FramingError>, usize)| (data, end.map(|trailers| (trailers, left)));
        prop_assert_eq!(
            judged(decode(ResponseLength::Chunked, [text.as_bytes()])),
            judged(decode(ResponseLength::Chunked, pieces(text.as_bytes(), &cuts)))
        );
    }
}

#[test]
fn an_accepted_request_is_forwarded_with_the_same_framing() {
    let raw = b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: X-Drop\r\nX-Drop: 1\r\nX-Keep: \xe9\r\n\r\n";
    let mut head = request(raw);
    strip_hop_by_hop(&mut head.parts.headers);
    let mut out = Vec::new();
    write_request_head(&mut out, &head.parts, head.body);
    assert_eq!(Bytes::from(out), &b"POST /x HTTP/1.1\r\nhost: a\r\nx-keep: \xe9\r\ntransfer-encoding: chunked\r\n\r\n"[..]);
}
