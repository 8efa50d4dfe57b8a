//! What it costs to read a request head, to write a response head, and to take chunks apart.
//!
//! `cargo bench -p weir-bench --bench parser`.

use bytes::BytesMut;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use std::hint::black_box;
use weir_proxy::h1::{BodyDecoder, BodyLength, Connection, Decoded, HeadScan, Limits, Parsed, ResponseLength, parse_request, write_response_head};

const LIMITS: Limits = Limits { max_head: 64 << 10, max_headers: 128 };

/// What `curl` sends, what a browser sends, and a browser with large cookies.
fn heads() -> Vec<(&'static str, String)> {
    let short = "GET /categories/shoes?page=2 HTTP/1.1\r\nHost: shop.example.test\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n".to_owned();
    let browser = |cookie: &str| {
        format!(
            "GET /categories/shoes?page=2&sort=price HTTP/1.1\r\nHost: shop.example.test\r\n\
             User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
             Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\nAccept-Language: de,en-US;q=0.7,en;q=0.3\r\n\
             Accept-Encoding: gzip, deflate, br, zstd\r\nReferer: https://shop.example.test/\r\nConnection: keep-alive\r\n\
             Cookie: {cookie}\r\nUpgrade-Insecure-Requests: 1\r\nSec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\n\
             Sec-Fetch-Site: same-origin\r\nPriority: u=0, i\r\n\r\n"
        )
    };
    vec![("curl", short), ("browser", browser("consent=v1; guest_token=0123456789abcdef")), ("cookies of 4 KB", browser(&format!("a={}", "x".repeat(4000))))]
}

fn read_heads(c: &mut Criterion) {
    let mut bench = c.benchmark_group("read a request head");
    for (name, head) in heads() {
        bench.throughput(Throughput::Bytes(head.len() as u64));
        bench.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter_batched_ref(
                || BytesMut::from(head.as_bytes()),
                |buf| {
                    let parsed = parse_request(buf, &LIMITS, &mut HeadScan::default());
                    assert!(matches!(parsed, Ok(Parsed::Request(_))), "{parsed:?}");
                    black_box(parsed)
                },
                BatchSize::SmallInput,
            );
        });
    }
    bench.finish();
}

fn write_heads(c: &mut Criterion) {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::ETAG, "\"5d41402abc4b2a76\""),
        (header::CACHE_CONTROL, "public, max-age=60"),
        (header::VARY, "accept-encoding"),
        (header::DATE, "Sat, 01 Aug 2026 12:00:00 GMT"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    c.bench_function("write a response head", |b| {
        let mut out = Vec::with_capacity(1024);
        b.iter(|| {
            out.clear();
            write_response_head(&mut out, StatusCode::OK, black_box(&headers), ResponseLength::Length(10_240), Connection::Keep);
            black_box(out.len())
        });
    });
}

fn read_chunks(c: &mut Criterion) {
    let mut bench = c.benchmark_group("take 64 KB of chunks apart");
    for size in [256_usize, 4096, 16_384] {
        let mut body = Vec::new();
        for _ in 0..(64 << 10) / size {
            body.extend_from_slice(format!("{size:x}\r\n").as_bytes());
            body.resize(body.len() + size, b'x');
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"0\r\n\r\n");
        bench.throughput(Throughput::Bytes(64 << 10));
        bench.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter_batched_ref(
                || BytesMut::from(&body[..]),
                |buf| {
                    let mut decoder = BodyDecoder::request(BodyLength::Chunked);
                    let mut seen = 0;
                    while let Decoded::Data(piece) = decoder.decode(buf).expect("chunks") {
                        seen += piece.len();
                    }
                    assert_eq!(seen, 64 << 10);
                },
                BatchSize::SmallInput,
            );
        });
    }
    bench.finish();
}

criterion_group!(benches, read_heads, write_heads, read_chunks);
criterion_main!(benches);
