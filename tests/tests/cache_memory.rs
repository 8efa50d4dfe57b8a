//! How much memory a full cache takes. The whole measurement is slow, and one only with an optimized program: it runs when it is asked for, as in
//! `WEIR_BIN=target/fast/weir cargo test -p weir-tests --test cache_memory -- --ignored --nocapture`.

use serde_json::json;
use weir_tests::{
    Config, RedisServer, Weir,
    cache_help::{Origin, Seen, Told, resident},
};

const PAGES: usize = 50_000;
const SIZE: usize = 10_000;
const CLIENTS: usize = 16;
const MB: u64 = 1_000_000;

/// A page of 10 KB that is as compressible as text is, about, and unlike every other one.
fn page(seen: &Seen) -> Told {
    let mut state = seen.path().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let mut text = String::with_capacity(SIZE);
    while text.len() < SIZE - 100 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text += ["the ", "stream ", "over ", "weir ", "level ", "above ", "stays ", "where "][(state >> 61) as usize];
        text += &format!("{:x} ", (state >> 40) & 0xfff);
    }
    Told::page(&text).with("etag", &format!("\"{state:x}\""))
}

/// Asks for every page once, over a few connections, as a client that takes nothing but the plain page; how many answers were hits.
async fn round(weir: &Weir, pages: usize) -> usize {
    let client = |number: usize| {
        let door = weir.edge();
        tokio::spawn(async move {
            let mut connection = door.connect().await;
            let mut hits = 0;
            // All over the keys, not in the order in which they were stored.
            for n in (number..pages).step_by(CLIENTS) {
                let answer = door.get(&format!("/p/{}", n * 7919 % pages)).on(&mut connection).await.expect("a whole answer").expect(200);
                hits += usize::from(answer.verdict() == "HIT");
            }
            hits
        })
    };
    let clients: Vec<_> = (0..CLIENTS).map(client).collect();
    let mut hits = 0;
    for client in clients {
        hits += client.await.expect("a client");
    }
    hits
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn fifty_thousand_pages_in_memory() {
    let redis = RedisServer::start();
    let origin = Origin::start(page).await;
    let config = Config(json!({
        "store": { "url": redis.url(), "deadline": "2s" },
        "edge": { "origin": origin.url(), "pages": [{ "path": "/**", "ttl": "1d" }] },
        "server": { "cache_memory": "4GB", "threads": 2 },
    }));
    let weir = Weir::start(&config).await;
    let empty = resident(&weir);
    round(&weir, PAGES).await;
    let hits = round(&weir, PAGES).await;
    let status = weir.status().await;
    let (entries, stored, full) = (&status["cache"]["memory_entries"], status["cache"]["memory_bytes"].as_u64().expect("a number"), resident(&weir));
    let most = (PAGES * SIZE) as u64 * 12 / 10 + 50 * MB;
    println!(
        "{entries} entries, {hits} hits of {PAGES}; bodies {} MB, with heads and keys {} MB; resident {} MB empty, {} MB full ({:.2} of the bodies); the limit is {} MB",
        (PAGES * SIZE) as u64 / MB,
        stored / MB,
        empty / MB,
        full / MB,
        full as f64 / (PAGES * SIZE) as f64,
        most / MB
    );
    assert_eq!((entries, hits), (&json!(PAGES), PAGES), "every page is a hit from memory");
    assert!(full <= most);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_takes_little_more_than_its_bytes() {
    let origin = Origin::start(page).await;
    let config = Config(json!({
        "store": "memory",
        "edge": { "origin": origin.url(), "pages": [{ "path": "/**", "ttl": "1d" }] },
        "server": { "cache_memory": "1GB", "threads": 1 },
    }));
    let weir = Weir::start(&config).await;
    // Connections, buffers, and what else is needed once.
    round(&weir, 200).await;
    let (before, pages) = (resident(&weir), 4_000);
    round(&weir, pages).await;
    assert_eq!(round(&weir, pages).await, pages);
    let (grown, bodies) = (resident(&weir).saturating_sub(before), (pages * SIZE) as u64);
    // Neither a second copy of each page nor encodings that nobody asked for.
    assert!(grown < bodies * 13 / 10 + 8 * MB, "{} MB for {} MB of pages", grown / MB, bodies / MB);
}
