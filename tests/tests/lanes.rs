//! The two lanes: one Weir whose hits take the fast lane and one without it get the same bytes, and must give the same answers.

use serde_json::json;
use weir_tests::{Answer, Broken, Config, Connection, Door, Shop, Weir, cache_help::{Gate, Origin, Point, Told}, eventually};

/// When the site's pages were made.
const MODIFIED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

/// Two instances before one shop, alike but for the lane.
async fn both(shop: &Shop, change: impl Fn(Config) -> Config) -> [Weir; 2] {
    let mut made = Vec::new();
    for fast in [true, false] {
        let server = json!({ "fast_lane": fast, "threads": 2, "head_timeout": "2s", "max_head": "8KB" });
        made.push(Weir::start_as(if fast { "fast" } else { "general" }, &change(shop.config().set("/server", server))).await);
    }
    made.try_into().unwrap_or_else(|_| unreachable!("two were made"))
}

/// What of an answer must be equal: all but what belongs to one exchange or to the moment (such as whether a fetched body was there at once, so that
/// it was decided already that it is stored).
fn essence(answer: Result<Answer, Broken>) -> String {
    match answer {
        Ok(answer) => {
            let mut fields: Vec<String> = answer
                .headers
                .iter()
                .filter(|(name, _)| !matches!(name.as_str(), "x-request-id" | "date" | "age" | "x-cache-age" | "x-cache-ttl" | "set-cookie" | "x-weir-response-latency"))
                .map(|(name, value)| {
                    let value = if name == "cache-status" { value.split("; ").filter(|p| !p.starts_with("ttl=") && !matches!(*p, "stored" | "detail=streaming")).collect::<Vec<_>>().join("; ") } else { value.clone() };
                    format!("{name}: {value}")
                })
                .collect();
            fields.extend(answer.headers.iter().filter(|(name, _)| name == "set-cookie").map(|(_, v)| format!("set-cookie: {}", v.split('=').next().unwrap_or(v))));
            for once in ["x-request-id", "date", "age", "x-cache-age", "x-cache-ttl"] {
                fields.push(format!("{once} came {} times", answer.all(once).len()));
            }
            fields.sort();
            let body: String = if answer.status == 200 || answer.status == 206 || answer.status == 304 {
                format!("{} bytes, {:?}", answer.body.len(), answer.body.iter().fold(0u64, |sum, b| sum.wrapping_mul(31).wrapping_add(u64::from(*b))))
            } else {
                // Error bodies name the request.
                format!("{} bytes", answer.body.len())
            };
            format!("{}\n{}\n{body}", answer.status, fields.join("\n"))
        }
        Err(broken) => broken.to_string(),
    }
}

async fn warm(door: Door, target: &str) {
    // Each encoding is made because someone asks for it.
    for coding in ["br", "zstd", "gzip"] {
        eventually(&format!("{target} is kept in {coding}"), async || {
            let answer = door.get(target).header("accept-encoding", coding).send().await;
            (answer.verdict() == "HIT" && answer.header("content-encoding") == Some(coding)).then_some(())
        })
        .await;
    }
}

async fn ask(door: Door, raw: &str, method: &str) -> String {
    let mut connection = Connection::open(door.0).await;
    connection.send(raw).await;
    essence(connection.answer(method).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn both_lanes_give_the_same_answers() {
    let shop = Shop::start().await;
    // Without guest tokens: a fresh one would make every first answer private.
    // And with a site whose pages are always the same.
    let origin = Origin::start(|seen| {
        let told = Told::large_page(seen.path(), 4000).with("last-modified", MODIFIED);
        if seen.path() == "/page/tagged" { told.with("etag", "\"é\"") } else { told }
    })
    .await;
    let [fast, general] = both(&shop, |config| {
        config.set("/edge/origin", json!(origin.url())).set("/edge/guests", json!(null)).set("/edge/hosts", json!(["shop.test"])).set("/server/trusted_proxies", json!([]))
    })
    .await;
    for weir in [&fast, &general] {
        warm(weir.edge(), "/").await;
        warm(weir.edge(), "/categories?page=2").await;
        eventually("the page is kept", async || (weir.edge().get("/page/tagged").send().await.verdict() == "HIT").then_some(())).await;
    }
    let etag = fast.edge().get("/").send().await.must("etag").to_owned();
    let br = fast.edge().get("/").header("accept-encoding", "br").send().await.must("etag").to_owned();
    let fields: Vec<String> = [
        "",
        "accept: text/html\r\n",
        "accept: image/avif\r\n",
        "accept: */*;q=0\r\n",
        "accept-encoding: br\r\n",
        "accept-encoding: gzip;q=1, br;q=0.1\r\n",
        "accept-encoding: zstd, identity;q=0\r\n",
        "accept-encoding: identity;q=0, *;q=0\r\n",
        "accept-encoding: br\r\naccept-encoding: gzip\r\n",
        "if-none-match: \"other\"\r\n",
        "if-none-match: *\r\n",
        "if-modified-since: Sun, 06 Nov 2044 08:49:37 GMT\r\n",
        "if-modified-since: Sun, 06 Nov 1994 08:49:37 GMT\r\n",
        "if-modified-since: rubbish\r\n",
        "range: bytes=0-9\r\n",
        "range: bytes=-5\r\n",
        "range: bytes=99999999-\r\n",
        "range: lines=1-2\r\n",
        "range: bytes=0-9\r\nif-range: \"other\"\r\n",
        "range: bytes=0-9\r\naccept-encoding: br\r\n",
        "range: bytes=0-9\r\naccept-encoding: br, identity;q=0\r\n",
        "range: bytes=4000-\r\n",
        "range: bytes=0-0\r\n",
        "range: bytes=-0\r\n",
        "range: bytes=9-4\r\n",
        "range: bytes=0-1,4-5\r\n",
        "range: bytes=0-99999999999999999999999\r\n",
        "range: bytes=0-9\r\nrange: bytes=2-3\r\n",
        "range: bytes=0-9\r\nif-range:\r\n",
        "range: bytes=0-9\r\nif-range: rubbish\r\n",
        "range: bytes=0-9\r\nif-modified-since: Sun, 06 Nov 2044 08:49:37 GMT\r\n",
        "if-modified-since: Sun, 06 Nov 2044 08:49:37 GMT\r\nif-none-match: \"other\"\r\n",
        "cache-control: max-age=0\r\n",
        "cache-control: no-cache\r\n",
        "pragma: no-cache\r\n",
        "cookie: a=b; theme=dark\r\n",
        "cookie: session=abc\r\n",
        "cookie: session.0=abc\r\n",
        "cookie: session=\r\n",
        "cookie: __prerender_bypass=x\r\n",
        "authorization: Bearer x\r\n",
        "rsc: 1\r\n",
        "next-router-prefetch: 1\r\n",
        "x-middleware-subrequest: 1\r\n",
        "user-agent: kube-probe/1.30\r\n",
        "user-agent: Mozilla/5.0 (X11; Linux x86_64)\r\n",
        "sec-fetch-dest: image\r\n",
        "sec-fetch-dest: document\r\n",
        "x-forwarded-for: 1.2.3.4\r\nx-forwarded-proto: https\r\n",
        "x-cache-refresh: true\r\n",
        "content-length: 0\r\n",
        "content-length: 5\r\ncontent-length: 6\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 3\r\n",
        "connection: close\r\n",
        "upgrade: websocket\r\nconnection: upgrade\r\n",
        "expect: 100-continue\r\n",
        "bad name: x\r\n",
        "folded: a\r\n b\r\n",
        "te: trailers\r\n",
    ]
    .map(String::from)
    .into_iter()
    .chain([
        format!("if-none-match: {etag}\r\n"),
        format!("if-none-match: W/{etag}\r\n"),
        format!("if-none-match: \"a\", {br}\r\naccept-encoding: br\r\n"),
        format!("if-none-match: {br}\r\n"),
        format!("if-none-match: {etag}\r\nrange: bytes=0-9\r\n"),
        format!("range: bytes=0-9\r\nif-range: {etag}\r\n"),
        format!("range: bytes=0-9\r\nif-range: W/{etag}\r\n"),
        format!("range: bytes=0-9\r\nif-range: {MODIFIED}\r\n"),
        format!("if-modified-since: {MODIFIED}\r\naccept-encoding: br\r\n"),
        format!("x-long: {}\r\n", "y".repeat(9000)),
    ])
    .collect();
    let served = async |weir: &Weir| weir.metric("weir_requests_total", &["route=\"document\""]).await;
    let before = [served(&fast).await, served(&general).await];
    let mut different = Vec::new();
    let mut compare = async |method: &str, raw: String| {
        let (one, other) = (ask(fast.edge(), &raw, method).await, ask(general.edge(), &raw, method).await);
        if one != other {
            different.push(format!("{raw:?}\n--- fast\n{one}\n--- general\n{other}\n"));
        }
    };
    for field in &fields {
        for method in ["GET", "HEAD"] {
            compare(method, format!("{method} / HTTP/1.1\r\nHost: shop.test\r\n{field}\r\n")).await;
        }
    }
    for (target, host) in [
        ("/categories?page=2", "shop.test"),
        ("/categories?page=2&utm_source=mail&_rsc=1", "shop.test"),
        ("/categories?%70age=2", "shop.test"),
        ("/categories/?page=2", "shop.test"),
        ("/%63ategories?page=2", "shop.test"),
        ("/?x=1", "shop.test"),
        ("/", "SHOP.test"),
        ("/", "shop.test."),
        ("/", "shop.test:80"),
        ("/", "shop.test:8080"),
        ("/", "other.test"),
        ("/health", "shop.test"),
        ("/api/nowhere", "shop.test"),
        ("//", "shop.test"),
        ("/a/../", "shop.test"),
        ("/index.rsc", "shop.test"),
    ] {
        compare("GET", format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    }
    // A tag may have bytes that are not ASCII (RFC 9110 section 8.8.3).
    for field in ["if-none-match: \"é\"", "if-none-match: \"e\"", "range: bytes=0-9\r\nif-range: \"é\"", "range: bytes=0-9\r\nif-range: \"e\""] {
        compare("GET", format!("GET /page/tagged HTTP/1.1\r\nHost: shop.test\r\n{field}\r\n\r\n")).await;
    }
    // What may stand in HTTP/2 as well.
    let of_http1 = ["connection:", "transfer-encoding:", "upgrade:", "expect:", "content-length:", "te:", "bad name", "folded", "x-long"];
    for field in fields.iter().filter(|field| !of_http1.iter().any(|name| field.starts_with(name))) {
        for method in ["GET", "HEAD"] {
            let ask = async |weir: &Weir| {
                let fields = field.lines().filter_map(|line| line.split_once(':')).map(|(name, value)| (name, value.trim()));
                essence(Ok(weir.edge().ask(method, "/").headers(fields).send_h2().await))
            };
            let (one, other) = (ask(&fast).await, ask(&general).await);
            if one != other {
                different.push(format!("HTTP/2 {method} {field:?}\n--- fast\n{one}\n--- general\n{other}\n"));
            }
        }
    }
    assert!(different.is_empty(), "{} differ:\n{}", different.len(), different.join("\n"));
    eventually("both count the same", async || {
        let counted = [served(&fast).await - before[0], served(&general).await - before[1]];
        (counted[0] == counted[1] && counted[0] > 50.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_with_a_token_gets_hits_and_a_newcomer_a_token() {
    let shop = Shop::start().await;
    for weir in both(&shop, |config| config).await {
        warm(weir.edge(), "/").await;
        let newcomer = weir.edge().get("/").send().await.expect(200);
        let token = newcomer.cookie("guest_token").expect("a token").to_owned();
        assert_eq!(newcomer.must("cache-control"), "private, no-store");
        let guest = weir.edge().get("/").header("cookie", &format!("guest_token={token}")).send().await.expect(200);
        assert_eq!((guest.verdict(), guest.has("set-cookie")), ("HIT", false));
        let forged = weir.edge().get("/").header("cookie", "guest_token=e30.e30.x").send().await.expect(200);
        assert!(forged.cookie("guest_token").is_some());
        let member = weir.edge().get("/").header("cookie", &format!("guest_token={token}; session=abc")).send().await.expect(200);
        assert_eq!((member.verdict(), member.detail().as_str()), ("BYPASS", "signed-in"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_a_row_and_in_pieces_are_answered_in_order() {
    let shop = Shop::start().await;
    for weir in both(&shop, |config| config.set("/edge/guests", json!(null))).await {
        warm(weir.edge(), "/").await;
        let mut connection = weir.edge().connect().await;
        let hit = "GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n";
        let other = "GET /api/products HTTP/1.1\r\nHost: shop.test\r\n\r\n";
        connection.send(format!("{hit}{other}{hit}{hit}HEAD / HTTP/1.1\r\nHost: shop.test\r\n\r\n{other}")).await;
        for (method, verdict) in [("GET", "HIT"), ("GET", "-"), ("GET", "HIT"), ("GET", "HIT"), ("HEAD", "HIT"), ("GET", "-")] {
            let answer = connection.answer(method).await.unwrap_or_else(|why| panic!("{why}")).expect(200);
            assert_eq!(answer.verdict() == "HIT", verdict == "HIT");
        }
        for piece in hit.as_bytes().chunks(7) {
            connection.send(piece).await;
            tokio::task::yield_now().await;
        }
        assert_eq!(connection.answer("GET").await.unwrap_or_else(|why| panic!("{why}")).expect(200).verdict(), "HIT");
        connection.send(format!("{hit}GET / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: x\r\n\r\n{hit}")).await;
        assert_eq!(connection.answer("GET").await.unwrap_or_else(|why| panic!("{why}")).expect(200).verdict(), "HIT");
        connection.answer("GET").await.unwrap_or_else(|why| panic!("{why}")).expect(400);
        assert!(connection.is_closed().await, "nothing behind a refused head is read");
    }
}

/// Without a tier in memory, both lanes answer from the store.
#[tokio::test(flavor = "multi_thread")]
async fn both_lanes_give_the_same_answers_from_the_store() {
    let shop = Shop::start().await;
    let origin = Origin::start(|seen| Told::large_page(seen.path(), 4000)).await;
    let made = both(&shop, |config| {
        config.set("/edge/origin", json!(origin.url())).set("/edge/guests", json!(null)).set("/server/cache_memory", json!(0))
    })
    .await;
    let [fast, general] = &made;
    // What clients saw as hits; an answer is counted only after it was sent.
    let mut seen = [0.0, 0.0];
    for (weir, seen) in made.iter().zip(&mut seen) {
        eventually("the page is kept", async || (weir.edge().get("/").send().await.verdict() == "HIT").then_some(())).await;
        *seen += 1.0;
    }
    let etag = fast.edge().get("/").send().await.must("etag").to_owned();
    seen[0] += 1.0;
    let from_store = async |weir: &Weir| weir.metric("weir_cache_requests_total", &["verdict=\"hit\"", "tier=\"store\""]).await;
    let mut different = Vec::new();
    for field in ["", "accept-encoding: br\r\n", "if-none-match: \"other\"\r\n", &format!("if-none-match: {etag}\r\n"), "range: bytes=0-9\r\n", "cookie: session=abc\r\n"] {
        for method in ["GET", "HEAD"] {
            let raw = format!("{method} / HTTP/1.1\r\nHost: shop.test\r\n{field}\r\n");
            let (one, other) = (ask(fast.edge(), &raw, method).await, ask(general.edge(), &raw, method).await);
            for (answer, seen) in [&one, &other].into_iter().zip(&mut seen) {
                *seen += f64::from(u8::from(answer.contains("x-cache-status: HIT")));
            }
            if one != other {
                different.push(format!("{raw:?}\n--- fast\n{one}\n--- general\n{other}\n"));
            }
        }
    }
    assert!(different.is_empty(), "{} differ:\n{}", different.len(), different.join("\n"));
    assert!(seen[1] >= 10.0, "{seen:?}");
    eventually("all hits are counted", async || ([from_store(fast).await, from_store(general).await] == seen).then_some(())).await;
}

/// Clients who come while a page is being fetched are answered by both lanes alike, whatever becomes of the page.
#[tokio::test(flavor = "multi_thread")]
async fn both_lanes_wait_for_one_fill() {
    let shop = Shop::start().await;
    let origin = Origin::start(|_| Told::page("")).await;
    let made = both(&shop, |config| config.set("/edge/origin", json!(origin.url())).set("/edge/guests", json!(null)).pages(json!([{ "path": "/**", "ttl": "60s" }]))).await;
    let fields = ["", "accept-encoding: br\r\n", "if-none-match: \"other\"\r\n", "cookie: a=b\r\n"];
    // Fields that a page has once it is stored, and not while it passes.
    // And what tells whether one came in time to wait: that is looked at by itself.
    let both_have = |line: &&str| {
        let not_alike = ["etag: ", "age ", "x-cache-age ", "x-cache-ttl ", "content-length: ", "transfer-encoding: ", "cache-status: ", "x-cache-status: "];
        !not_alike.iter().any(|name| line.starts_with(name))
    };
    let shared = |answer: &str| answer.contains("; collapsed") || answer.contains("Weir; hit");
    for (path, told, fetches) in [
        ("/kept", Told::large_page("kept", 4000), 1),
        ("/chunked", Told::large_page("chunked", 4000).chunked(), 1),
        // Everyone asks for himself, the first one too: the fetch for the cache was for nobody in particular.
        ("/own", Told::page("own").with("set-cookie", "a=b"), 2 + 2 * fields.len()),
        ("/gone", Told::new(404, "<html>no</html>").with("content-type", "text/html"), 2 + 2 * fields.len()),
    ] {
        let mut all = Vec::new();
        for (turn, weir) in made.iter().enumerate() {
            let (gate, told) = (Gate::closed(), told.clone());
            let at = gate.clone();
            origin.now_says(move |_| told.clone().waits(Point::BeforeHead, &at));
            let before = weir.metric("weir_connections", &[]).await;
            let first = tokio::spawn(weir.edge().get(path).send());
            eventually("the origin is asked", async || (origin.hits(path) == 1 + turn * fetches).then_some(())).await;
            let asked: Vec<_> = fields
                .iter()
                .flat_map(|field| ["GET", "HEAD"].map(|method| (method, format!("{method} {path} HTTP/1.1\r\nHost: shop.test\r\n{field}\r\n"))))
                .map(|(method, raw)| {
                    let door = weir.edge();
                    tokio::spawn(async move { ask(door, &raw, method).await })
                })
                .collect();
            eventually("all are here", async || (weir.metric("weir_connections", &[]).await >= before + 1.0 + asked.len() as f64).then_some(())).await;
            gate.open();
            first.await.expect("a client");
            let mut answers = Vec::new();
            for one in asked {
                answers.push(one.await.expect("a client"));
            }
            assert_eq!(origin.hits(path), (turn + 1) * fetches, "{path}");
            assert!(fetches > 1 || answers.iter().all(|answer| shared(answer)), "{path}: {answers:#?}");
            all.push(answers.iter().map(|answer| answer.lines().filter(both_have).collect::<Vec<_>>().join("\n")).collect::<Vec<_>>());
        }
        assert_eq!(all[0], all[1], "{path}");
    }
}
