//! The two lanes, for forwards: one Weir that may take the fast lane and one that may not stand before one service that answers byte for byte
//! as it is told, well or badly. Clients and service must not see which lane it was.

use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::{Arc, Mutex}, time::Duration};
use tokio::{io::{AsyncReadExt, AsyncWriteExt}, net::{TcpListener, TcpStream}};
use weir_tests::{Answer, Broken, Config, Connection, Weir, eventually};

/// What is written on a connection, piece by piece; `None`: it is closed.
type Script = Vec<Option<&'static str>>;

/// A service that plays a script for each path, and remembers what it saw.
struct Service {
    at: std::net::SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
}

fn scripts() -> BTreeMap<&'static str, Script> {
    let once = |text: &'static str| vec![Some(text)];
    BTreeMap::from([
        ("plain", once("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello")),
        ("empty", once("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")),
        ("own-fields", once("HTTP/1.1 200 Fine\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nX-Request-ID: theirs\r\nVia: 1.0 inner\r\nServer: s\r\nSet-Cookie: a=1\r\nset-cookie: b=2\r\nX-Kong-Proxy-Latency: 99\r\nx-weir-proxy-latency: 99\r\nX-RateLimit-Limit-Minute: 1\r\nWeir-Cache-Control: max-age=9\r\nCache-Control: no-store\r\ncontent-length: 2\r\n\r\nok")),
        ("keep-alive", once("HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\ncontent-length: 2\r\n\r\nok")),
        ("named", once("HTTP/1.1 200 OK\r\nConnection: x-hop\r\nX-Hop: 1\r\ncontent-length: 2\r\n\r\nok")),
        ("closes", vec![Some("HTTP/1.1 200 OK\r\nConnection: close\r\ncontent-length: 2\r\n\r\nok"), None]),
        ("chunked", once("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")),
        ("in-chunks", once("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: b\r\n\r\n2\r\nok\r\n0A\r\n, and more\r\n00\r\n\r\n")),
        ("no-chunks", once("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")),
        ("odd-chunks", once("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\nok\r\n0\r\nX-Trailer: t\r\n\r\n")),
        ("more-than-chunks", once("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbad")),
        ("bad-chunks", vec![Some("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok!\r\n0\r\n\r\n"), None]),
        ("late-chunk", vec![Some("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"), Some("0\r\n\r\n")]),
        ("cut-chunk", vec![Some("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"), None]),
        ("other-coding", vec![Some("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"), None]),
        ("both-lengths", vec![Some("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n"), None]),
        ("two-lengths", vec![Some("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok"), None]),
        ("bad-length", vec![Some("HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nok"), None]),
        ("until-close", vec![Some("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\nall of it"), None]),
        ("old", vec![Some("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok"), None]),
        ("no-content", once("HTTP/1.1 204 No Content\r\nx-a: b\r\n\r\n")),
        ("no-content-of-length", once("HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n")),
        ("not-modified-of-length", once("HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\ncontent-length: 7\r\n\r\n")),
        ("created", once("HTTP/1.1 201 Created\r\nLocation: /stripped/7\r\ncontent-length: 2\r\n\r\nok")),
        ("not-modified", once("HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\n\r\n")),
        ("hints", once("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")),
        ("missing", once("HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno")),
        ("broken", once("HTTP/1.1 500 Internal Server Error\r\ncontent-length: 2\r\n\r\nno")),
        ("in-pieces", vec![Some("HTTP/1.1 200 OK\r\ncontent-le"), Some("ngth: 4\r\n\r\n"), Some("ab"), Some("cd")]),
        ("late", vec![Some(""), Some(""), Some(""), Some(""), Some("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")]),
        ("soon", vec![Some(""), Some(""), Some("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")]),
        ("surplus", once("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbad")),
        ("cut", vec![Some("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok"), None]),
        ("nothing", vec![None]),
        ("half-head", vec![Some("HTTP/1.1 200 OK\r\ncontent-le"), None]),
        ("no-http", vec![Some("SSH-2.0-OpenSSH\r\n\r\n"), None]),
        ("bare-lf", vec![Some("HTTP/1.1 200 OK\ncontent-length: 2\n\nok"), None]),
        ("folded", vec![Some("HTTP/1.1 200 OK\r\nx-a: b\r\n c\r\ncontent-length: 2\r\n\r\nok"), None]),
        ("no-status", vec![Some("HTTP/1.1 99 Odd\r\ncontent-length: 2\r\n\r\nok"), None]),
    ])
}

impl Service {
    async fn start() -> Service {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let at = listener.local_addr().expect("an address");
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let heads = seen.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(play(stream, heads.clone()));
            }
        });
        Service { at, seen }
    }

    /// What came since the last time, without what differs from request to request.
    fn saw(&self) -> Vec<String> {
        let mut seen = self.seen.lock().expect("no panic");
        seen.drain(..).collect()
    }
}

/// A head with its fields in order of their names.
fn tidy(head: &str) -> String {
    let mut lines = head.trim_end().split("\r\n");
    let first = lines.next().unwrap_or_default();
    let mut fields: Vec<String> = lines
        .map(|line| {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            let id = name.eq_ignore_ascii_case("x-request-id") || name.eq_ignore_ascii_case("x-kong-request-id");
            let value = if id && value.trim().len() == 32 { "an id" } else { value.trim() };
            // The two have ports of their own.
            let value = if name.eq_ignore_ascii_case("x-forwarded-port") { "a port" } else { value };
            format!("{}: {value}", name.to_ascii_lowercase())
        })
        .collect();
    fields.sort();
    format!("{first}\n{}", fields.join("\n"))
}

async fn play(mut stream: TcpStream, seen: Arc<Mutex<Vec<String>>>) {
    let scripts = scripts();
    let mut buffer = Vec::new();
    loop {
        while !buffer.windows(4).any(|w| w == b"\r\n\r\n") {
            if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let end = buffer.windows(4).position(|w| w == b"\r\n\r\n").expect("an end") + 4;
        let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
        buffer.drain(..end);
        let field = |name: &str| head.lines().filter_map(|line| line.split_once(':')).find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim());
        let length = field("content-length").map_or(0, |length| length.parse().expect("a length"));
        let chunked = field("transfer-encoding").is_some();
        while buffer.len() < length || (chunked && !buffer.ends_with(b"0\r\n\r\n")) {
            if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let body: Vec<u8> = buffer.drain(..if chunked { buffer.len() } else { length }).collect();
        let word = head.split(['/', ' ', '?']).find(|part| scripts.contains_key(part)).unwrap_or("plain").to_owned();
        seen.lock().expect("no panic").push(format!("{}\n{}", tidy(&head), String::from_utf8_lossy(&body)));
        for (place, piece) in scripts[word.as_str()].iter().enumerate() {
            let Some(piece) = piece else { return };
            if place > 0 {
                tokio::time::sleep(Duration::from_millis(150)).await;
            }
            if stream.write_all(piece.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

fn config(service: &Service, fast: bool, headers: &str) -> Config {
    let url = format!("http://{}", service.at);
    let route = |name: &str, more: Value| {
        let mut route = json!({ "name": name, "paths": [format!("/{name}")] });
        route.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
        route
    };
    // A window that does not change while the two are compared.
    let limit = json!([{ "name": "rate-limiting", "config": { "year": 100_000, "limit_by": "header", "header_name": "x-who" } }]);
    let key = json!([{ "name": "key-auth" }, { "name": "acl", "config": { "allow": ["staff"] } }]);
    let many = json!([
        { "name": "cors", "config": { "origins": ["https://shop.test"], "credentials": true, "exposed_headers": ["x-a"] } },
        { "name": "correlation-id", "config": { "header_name": "X-Trace", "echo_downstream": true } },
        { "name": "ip-restriction", "config": { "deny": ["192.0.2.0/24"] } },
        { "name": "bot-detection", "config": { "deny": ["badbot"] } },
        { "name": "basic-auth", "config": { "hide_credentials": true } },
    ]);
    let routes = json!([
        route("stripped", json!({})),
        route("kept", json!({ "strip_path": false })),
        route("host", json!({ "preserve_host": true })),
        route("v1", json!({ "path_handling": "v1" })),
        route("limited", json!({ "plugins": limit })),
        route("keyed", json!({ "plugins": key })),
        route("many", json!({ "plugins": many })),
        route("streamed", json!({ "request_buffering": false })),
    ]);
    Config(json!({
        "store": "memory",
        "server": { "fast_lane": fast, "threads": 1 },
        "gateway": {
            "_format_version": "3.0",
            "headers": headers,
            "consumers": [{ "username": "kim", "keyauth_credentials": [{ "key": "k-1" }], "basicauth_credentials": [{ "username": "kim", "password": "pw" }], "acls": [{ "group": "staff" }] }],
            "services": [
                { "name": "service", "url": url, "retries": 1, "routes": routes },
                { "name": "hasty", "url": url, "retries": 0, "read_timeout": 150, "routes": [route("hasty", json!({}))] },
                { "name": "deep", "url": format!("{url}/base/"), "routes": [{ "name": "deep", "paths": ["/deep", "~/re/(?<word>\\w+)"] }] },
            ],
        },
    }))
}

/// What must be equal of two answers.
fn essence(answer: Result<Answer, Broken>) -> String {
    let answer = match answer {
        Ok(answer) => answer,
        Err(broken) => return broken.to_string(),
    };
    let mut fields: Vec<String> = answer
        .headers
        .iter()
        .map(|(name, value)| {
            let of_the_moment = name == "date" && !value.contains("1994")
                || name.ends_with("-latency") && value.len() < 5 && value != "99"
                || name.ends_with("request-id") && value.len() == 32
                || name == "x-trace" && value.len() > 30
                || name == "ratelimit-reset"
                || name == "ratelimit";
            format!("{name}: {}", if of_the_moment { "…" } else { value })
        })
        .collect();
    fields.sort();
    // Error bodies name the request.
    let body = if answer.status < 400 { answer.text() } else { format!("{} bytes", answer.body.len()) };
    format!("{}\n{}\n{body}", answer.status, fields.join("\n"))
}

async fn ask(weir: &Weir, raw: &str) -> String {
    let mut connection = Connection::open(weir.gateway().0).await;
    connection.send(raw).await;
    essence(connection.answer(raw.split(' ').next().unwrap_or_default()).await)
}

async fn compare(headers: &str) {
    let service = Service::start().await;
    let fast = Weir::start_as("fast", &config(&service, true, headers)).await;
    let general = Weir::start_as("general", &config(&service, false, headers)).await;
    let mut requests: Vec<(String, String)> = scripts().keys().map(|word| (format!("GET /stripped/{word}"), String::new())).collect();
    for target in [
        "/stripped", "/stripped/", "/stripped/a/b?c=d&e", "/stripped/a%20b", "/stripped//a", "/stripped/./a", "/stripped/a/../b", "/kept", "/kept/a?x=%2F", "/host/a", "/v1/a", "/v1",
        "/hasty/soon", "/deep", "/deep/a?x", "/re/word", "/re/word/more", "/limited/own-fields", "/limited/plain", "/limited/broken", "/keyed/plain", "/keyed/plain?apikey=k-1", "/nowhere",
    ] {
        requests.push((format!("GET {target}"), String::new()));
    }
    for field in [
        "Accept: text/html\r\nUser-Agent: x\r\nAccept-Encoding: gzip",
        "X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Port: 1\r\nX-Forwarded-Prefix: /p\r\nX-Forwarded-Path: /q\r\nX-Forwarded-Server: s",
        "X-Real-IP: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\nX-Request-Id: mine\r\nX-Kong-Request-Id: mine",
        "Via: 1.1 before",
        "X-Consumer-Username: admin\r\nX-Consumer-ID: 1\r\nX-Credential-Identifier: 2\r\nX-Anonymous-Consumer: true",
        "Connection: keep-alive\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive",
        "Connection: close",
        "Connection: x-secret\r\nX-Secret: 1",
        "TE: trailers",
        "Cookie: a=b\r\nCookie: c=d",
        "Cookie: a=b",
        "Authorization: Bearer x",
        "Range: bytes=0-1\r\nIf-None-Match: \"x\"",
        "If-Match: \"x\"",
        "RSC: 1\r\nNext-Url: /a",
        "X-Cache-Refresh: true\r\nX-Warmup-Token: t",
        "Expect: 100-continue",
        "Content-Length: 0",
        "HTTP2-Settings: AAA",
        "X-Who: kim\r\napikey: k-1",
        "apikey: k-2",
        "Authorization: Basic a2ltOnB3\r\nX-Trace: 1",
        "Authorization: Basic a2ltOnB3\r\nX-Trace: 2\r\nOrigin: https://shop.test",
        "Authorization: Basic a2ltOnB3\r\nX-Trace: 3\r\nOrigin: https://other.test",
        "Authorization: Basic a2ltOnB3\r\nX-Trace: 4\r\nUser-Agent: badbot/1",
        "x_who: kim\r\nX-Odd:   spaced out  \r\nX-Empty:",
    ] {
        for target in ["/stripped/plain", "/limited/plain", "/keyed/plain", "/many/own-fields"] {
            requests.push((format!("GET {target}"), format!("{field}\r\n")));
        }
    }
    let long = format!("Content-Length: 9000\r\n\r\n{}", "long body".repeat(1000));
    for method in ["POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "BREW"] {
        for target in ["/stripped/plain", "/limited/broken", "/keyed/plain", "/many/own-fields", "/streamed/plain"] {
            requests.push((format!("{method} {target}"), "X-Who: kim\r\napikey: k-1\r\n".into()));
        }
    }
    for word in scripts().keys() {
        for method in ["POST", "DELETE"] {
            requests.push((format!("{method} /stripped/{word}"), "Content-Length: 4\r\n\r\nbody".into()));
        }
        requests.push((format!("PUT /limited/{word}"), "X-Who: kim\r\nContent-Length: 4\r\n\r\nbody".into()));
    }
    for target in ["POST /stripped/plain", "POST /limited/plain", "POST /keyed/plain", "POST /many/created", "PUT /streamed/plain", "GET /stripped/plain"] {
        for rest in [
            "Content-Length: 0\r\n\r\n",
            "Content-Length: 04\r\n\r\nbody",
            "Content-Length: +4\r\n\r\nbody",
            "Content-Length: 4\r\nContent-Length: 4\r\n\r\nbody",
            "Content-Length: 4\r\nContent-Length: 5\r\n\r\nbody",
            "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
            "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
            "Content-Length: 4\r\nExpect: 100-continue\r\n\r\nbody",
            "Content-Length: 4\r\nContent-Type: application/json\r\nX-Who: kim\r\napikey: k-1\r\n\r\nbody",
            "Content-Length: 4\r\nAuthorization: Basic a2ltOnB3\r\nX-Trace: 3\r\nOrigin: https://shop.test\r\n\r\nbody",
            &long,
        ] {
            requests.push((target.into(), rest.into()));
        }
    }
    let mut different = Vec::new();
    for (target, fields) in &requests {
        for host in ["shop.test", "SHOP.test:8080"] {
            let end = if fields.contains("\r\n\r\n") { "" } else { "\r\n" };
            let raw = format!("{target} HTTP/1.1\r\nHost: {host}\r\n{fields}{end}");
            let mut both = Vec::new();
            for weir in [&fast, &general] {
                // A connection that waits is what the fast lane needs.
                ask(weir, "GET /kept/plain HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
                service.saw();
                let answer = ask(weir, &raw).await;
                both.push(format!("{answer}\n<<< the service saw\n{}", service.saw().join("\n<<<\n")));
            }
            if both[0] != both[1] {
                different.push(format!("{raw:?}\n--- fast\n{}\n--- general\n{}\n", both[0], both[1]));
            }
        }
    }
    assert!(different.is_empty(), "{} of {} differ:\n{}", different.len(), 2 * requests.len(), different.join("\n"));
    let forwarded = async |weir: &Weir| weir.metric("weir_fast_forwards_total", &[]).await;
    assert!(forwarded(&fast).await > 100.0, "only {} took the fast lane", forwarded(&fast).await);
    assert_eq!(forwarded(&general).await, 0.0);
    eventually("both count the same", async || {
        let mut counted = Vec::new();
        for weir in [&fast, &general] {
            let mut all = Vec::new();
            for (route, status) in [("stripped", "200"), ("stripped", "502"), ("stripped", "404"), ("limited", "200"), ("limited", "500"), ("keyed", "200"), ("keyed", "401"), ("many", "200"), ("many", "403"), ("deep", "200")] {
                all.push(weir.metric("weir_requests_total", &[&format!("route=\"{route}\""), &format!("status=\"{status}\"")]).await);
            }
            counted.push(all);
        }
        (counted[0] == counted[1] && counted[0].iter().all(|count| *count > 0.0)).then_some(())
    })
    .await;
    for line in ["POST /stripped/created", "PUT /many/own-fields", "PATCH /limited/broken", "DELETE /stripped/no-content", "GET /stripped/not-modified-of-length", "GET /keyed/in-chunks?apikey=k-1"] {
        let before = forwarded(&fast).await;
        ask(&fast, &format!("{line} HTTP/1.1\r\nHost: shop.test\r\nX-Who: kim\r\nAuthorization: Basic a2ltOnB3\r\nContent-Length: 4\r\n\r\nbody")).await;
        eventually("it is counted", async || (forwarded(&fast).await == before + 1.0).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_lanes_forward_alike() {
    compare("weir").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_lanes_forward_alike_with_kongs_fields() {
    compare("kong").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_lanes_forward_alike_without_fields_of_our_own() {
    compare("off").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_a_row_and_in_pieces_are_forwarded_in_order() {
    let service = Service::start().await;
    for fast in [true, false] {
        let weir = Weir::start(&config(&service, fast, "weir")).await;
        ask(&weir, "GET /kept/plain HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
        let mut connection = Connection::open(weir.gateway().0).await;
        let request = |word: &str| format!("GET /stripped/{word} HTTP/1.1\r\nHost: shop.test\r\n\r\n");
        let posted = |word: &str| format!("POST /stripped/{word} HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 18\r\n\r\nGET /missing HTTP/");
        let words = ["plain", "missing", "late", "plain", "chunked", "plain", "in-pieces", "plain"];
        connection.send(words.map(|word| [request(word), posted(word)].concat()).concat()).await;
        for word in words.into_iter().flat_map(|word| [word, word]) {
            let answer = connection.answer("GET").await.unwrap_or_else(|why| panic!("{word}: {why}"));
            let expected = match word {
                "plain" => (200, "hello"),
                "missing" => (404, "no"),
                "in-pieces" => (200, "abcd"),
                _ => (200, "ok"),
            };
            assert_eq!((answer.status, answer.text().as_str()), expected, "{word}");
        }
        for text in [request("plain"), posted("plain")] {
            for piece in text.as_bytes().chunks(9) {
                connection.send(piece).await;
                tokio::task::yield_now().await;
            }
            assert_eq!(connection.answer("GET").await.unwrap_or_else(|why| panic!("{why}")).text(), "hello");
        }
        // A client that leaves in the middle takes nobody along.
        connection.send(request("late")).await;
        drop(connection);
        assert!(ask(&weir, &request("plain")).await.ends_with("hello"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_counts_a_request_once_however_it_ends() {
    let service = Service::start().await;
    for fast in [true, false] {
        let weir = Weir::start(&config(&service, fast, "weir")).await;
        let mut left = Vec::new();
        for word in ["plain", "nothing", "closes", "plain", "late", "half-head", "chunked", "plain"] {
            let mut connection = Connection::open(weir.gateway().0).await;
            connection.send(format!("GET /limited/{word} HTTP/1.1\r\nHost: shop.test\r\nx-who: kim\r\n\r\n")).await;
            let answer = connection.answer("GET").await.unwrap_or_else(|why| panic!("{word}: {why}"));
            left.push(answer.must("x-ratelimit-remaining-year").parse::<u64>().expect("a number"));
        }
        assert_eq!(left, (0..8).map(|n| 99_999 - n).collect::<Vec<_>>());
    }
}

/// What the fast lane has sent must be read by the limits by which it was taken, or a request that was carried out would be refused.
#[tokio::test(flavor = "multi_thread")]
async fn limits_that_a_reload_raised_hold_for_connections_that_are_open() {
    let service = Service::start().await;
    let limited = |limit: &str| config(&service, true, "weir").set("/server/max_head", json!(limit));
    let weir = Weir::start(&limited("4KB")).await;
    let mut connection = Connection::open(weir.gateway().0).await;
    let request = |word: &str, more: &str| format!("POST /stripped/{word} HTTP/1.1\r\nHost: shop.test\r\n{more}Content-Length: 4\r\n\r\nbody");
    for _ in 0..2 {
        connection.send(request("plain", "")).await;
        assert_eq!(connection.answer("POST").await.unwrap_or_else(|why| panic!("{why}")).text(), "hello");
    }
    weir.write(&limited("32KB"));
    weir.admin().ask("POST", "/reload").body("").send().await.expect(200);
    let long = format!("X-Long: {}\r\n", "x".repeat(9000));
    for word in ["plain", "late"] {
        connection.send(request(word, &long)).await;
        assert_eq!(connection.answer("POST").await.unwrap_or_else(|why| panic!("{why}")).status, 200, "{word}");
    }
}
