//! What it costs to make a page's key: host, path and query in the form in which they are compared.
//!
//! `cargo bench -p weir-bench --bench key`.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use weir_cache::keys::{QueryRule, ambiguity, canonical_host, normalize_path, page_key, reduce_query};

/// Name, host, path and query.
const REQUESTS: &[(&str, &str, &str, &str)] = &[
    ("plain", "shop.example.test", "/categories/shoes", ""),
    ("query", "shop.example.test", "/categories/shoes", "sort=price&page=2"),
    ("tracking", "Shop.Example.Test:443", "/categories/shoes", "utm_source=mail&utm_campaign=spring&gclid=abc&page=2&fbclid=xyz"),
    ("escapes", "shop.example.test", "/caf%c3%a9/%7euser/a%2Fb", "q=%e2%82%ac&page=1"),
    ("long", "shop.example.test", "/a/very/long/path/of/many/segments/that/goes/on/and/on/until/it/ends/here/at/last", "a=1&b=2&c=3&d=4&e=5&f=6&g=7&h=8&i=9&j=10"),
];

fn keys(c: &mut Criterion) {
    let allowed = ["page".to_owned(), "sort".to_owned(), "q".to_owned()];
    for (group, rule) in [("key, all of the query", QueryRule::default()), ("key, three parameters", QueryRule { allow: Some(&allowed), ignore: &[] })] {
        let mut bench = c.benchmark_group(group);
        for &(name, host, path, query) in REQUESTS {
            bench.bench_function(BenchmarkId::from_parameter(name), |b| {
                b.iter(|| {
                    let (host, path, query) = black_box((host, path, query));
                    assert!(ambiguity(path).is_none() || name == "escapes");
                    let host = canonical_host(host).expect("a host");
                    black_box(page_key("html_cache", &host, &normalize_path(path), &reduce_query(query, rule)))
                });
            });
        }
        bench.finish();
    }
}

criterion_group!(benches, keys);
criterion_main!(benches);
