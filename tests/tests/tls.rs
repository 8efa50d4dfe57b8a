//! TLS towards clients: which certificate, which route, which protocol, and what changes while Weir runs.

use serde_json::json;
use std::net::SocketAddr;
use weir_store::testing::free_port;
use weir_tests::{
    Config, Connection, Door, Shop, Weir, eventually,
    tls::{Authority, handshake},
};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// The products service at a door with one TLS address, and what the certificates say.
async fn open(shape: impl FnOnce(Config) -> Config) -> (Shop, Weir, Door) {
    let shop = Shop::start().await;
    let port = free_port();
    let config = Config(json!({ "gateway": { "_format_version": "3.0", "listen": [format!("127.0.0.1:{port} tls")], "services": [] } }));
    let config = shape(config.service("products", &shop.stubs.products.url(), "/api/products", json!([])));
    let weir = Weir::start(&config).await;
    (shop, weir, Door(local(port)))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_is_chosen_by_server_name() {
    let authority = Authority::new();
    let [one, wild, rest] = ["DNS:one.example", "DNS:*.wild.example,DNS:wild.example", "DNS:rest.example"].map(|name| authority.issue(&[name]));
    let (shop, _weir, door) = open(|config| {
        config.set(
            "/gateway/certificates",
            json!([
                { "id": "1", "cert": one.cert, "key": one.key, "snis": [{ "name": "one.example" }] },
                { "id": "2", "cert": wild.cert, "key": wild.key, "snis": ["*.wild.example"] },
                { "id": "3", "cert": rest.cert, "key": rest.key, "snis": ["*"] },
            ]),
        )
        .set("/gateway/snis", json!([{ "name": "wild.example", "certificate": { "id": "2" } }]))
    })
    .await;
    // A name is only accepted if the certificate that it gets has that name.
    for name in ["one.example", "wild.example", "a.wild.example", "rest.example"] {
        let answer = door.get("/api/products").host(name).send_tls(&authority, name).await.expect(200);
        assert!(answer.json()["items"].is_array(), "{name}");
    }
    // The star stands for one label, and a name that nobody has gets the default.
    for name in ["a.b.wild.example", "other.example"] {
        let refused = handshake(&authority.client("h2"), door.0, name).await.expect_err(name);
        assert!(refused.to_string().contains("not valid for name"), "{name}: {refused}");
    }
    let seen = shop.stubs.products.handle().requests().pop().expect("a request");
    assert_eq!(seen.header("x-forwarded-proto"), Some("https"));
    assert_eq!(seen.header("x-forwarded-port"), Some(&*door.0.port().to_string()));
    // HTTP/2 by ALPN.
    door.get("/api/products").host("one.example").send_tls_h2(&authority, "one.example").await.expect(200);
    // Hosts with different certificates do not share a connection; those with the same do, and a host without any may come.
    let ask = |host: &str| door.get("/api/products").host(host);
    ask("a.wild.example").send_tls_h2(&authority, "one.example").await.expect(421);
    ask("one.example").send_tls(&authority, "wild.example").await.expect(421);
    ask("b.wild.example").send_tls_h2(&authority, "a.wild.example").await.expect(200);
    ask("unknown.example").send_tls(&authority, "one.example").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_are_chosen_by_server_name_and_by_protocol() {
    let authority = Authority::new();
    let both = authority.issue(&["DNS:one.example", "DNS:two.example"]);
    let (_shop, weir, door) = open(|config| {
        let answers = |name: &str, more: serde_json::Value| {
            let mut route = json!({ "name": name, "plugins": [{ "name": "request-termination", "config": { "status_code": 200, "message": name } }] });
            route.as_object_mut().expect("a mapping").extend(more.as_object().expect("a mapping").clone());
            route
        };
        config.set("/gateway/certificates", json!([{ "cert": both.cert, "key": both.key }])).set(
            "/gateway/routes",
            json!([
                answers("one", json!({ "paths": ["/by-name"], "snis": ["one.example"], "protocols": ["https"] })),
                answers("two", json!({ "paths": ["/by-name"], "snis": ["two.example"], "protocols": ["https"] })),
                answers("secure", json!({ "paths": ["/secure"], "protocols": ["https"] })),
                answers("moved", json!({ "paths": ["/moved"], "protocols": ["https"], "https_redirect_status_code": 301 })),
            ]),
        )
    })
    .await;
    for name in ["one", "two"] {
        let host = format!("{name}.example");
        let answer = door.get("/by-name").host(&host).send_tls(&authority, &host).await.expect(200);
        assert_eq!(answer.json()["message"], name);
        let answer = door.get("/by-name").host(&host).send_tls_h2(&authority, &host).await.expect(200);
        assert_eq!(answer.json()["message"], name);
    }
    door.get("/secure").host("one.example").send_tls(&authority, "one.example").await.expect(200);
    let refused = weir.gateway().get("/secure").send().await.expect(426);
    assert_eq!(refused.json()["message"], "Please use HTTPS protocol");
    assert!(refused.must("upgrade").starts_with("TLS/1.2"));
    let moved = weir.gateway().get("/moved?a=b").host("one.example").send().await.expect(301);
    assert_eq!(moved.must("location"), "https://one.example/moved?a=b");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_in_files_are_changed_while_connections_go_on() {
    let authority = Authority::new();
    let shop = Shop::start().await;
    let port = free_port();
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let put = |names: &[&str]| {
        let issued = authority.issue(names);
        std::fs::write(path("shop.crt"), &issued.cert).expect("a file");
        std::fs::write(path("shop.key"), &issued.key).expect("a file");
    };
    put(&["DNS:old.example"]);
    let config = shop
        .config()
        .set("/edge/listen", json!([format!("127.0.0.1:{port} tls")]))
        .set("/edge/certificates", json!([{ "cert": path("shop.crt"), "key": path("shop.key") }]));
    let weir = Weir::start(&config).await;
    let door = Door(local(port));
    let stream = handshake(&authority.client("http/1.1"), door.0, "old.example").await.expect("TLS");
    let mut going_on = Connection::over(stream);
    let ask = || door.get("/").host("old.example");
    assert_eq!(ask().on(&mut going_on).await.expect("an answer").expect(200).verdict(), "MISS");
    assert_eq!(ask().send_tls_h2(&authority, "old.example").await.expect(200).verdict(), "HIT");

    put(&["DNS:new.example"]);
    eventually("the new certificate", async || handshake(&authority.client("http/1.1"), door.0, "new.example").await.ok()).await;
    assert_eq!(ask().on(&mut going_on).await.expect("an answer").expect(200).verdict(), "HIT");

    // A key that does not fit changes nothing.
    std::fs::write(path("shop.key"), &authority.issue(&["DNS:new.example"]).key).expect("a file");
    eventually("the refusal", async || (weir.metric("weir_reloads_total", &["outcome=\"refused\""]).await > 0.0).then_some(())).await;
    let why = weir.status().await["refused_reload"].as_str().unwrap_or_default().to_owned();
    assert!(why.contains("do not belong together"), "{why}");
    door.get("/").host("new.example").send_tls(&authority, "new.example").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_balancer_says_whose_connection_it_passes_on() {
    let shop = Shop::start().await;
    let port = free_port();
    let config = |trusted: &str| {
        shop.config().without("edge").without("warm_up").set("/gateway/listen", json!([format!("127.0.0.1:{port} proxy_protocol")])).set("/server/trusted_proxies", json!([trusted]))
    };
    let weir = Weir::start(&config("127.0.0.1")).await;
    let request = "GET /api/products HTTP/1.1\r\nHost: shop.test\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n";
    let mut version_2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    version_2.extend([192, 0, 2, 2, 198, 51, 100, 1, 0x10, 0, 1, 187]);
    for (header, ip) in [(&b"PROXY TCP4 192.0.2.1 198.51.100.1 4000 443\r\n"[..], "192.0.2.1"), (&version_2, "192.0.2.2")] {
        let mut connection = Connection::open(local(port)).await;
        connection.send(&header[..7]).await;
        connection.send([&header[7..], request.as_bytes()].concat()).await;
        connection.answer("GET").await.expect("an answer").expect(200);
        let seen = shop.stubs.products.handle().requests().pop().expect("a request");
        // The client is no trusted proxy: what it says of others does not count.
        assert_eq!((seen.header("x-forwarded-for"), seen.header("x-real-ip")), (Some(ip), Some(ip)));
    }
    let mut without = Connection::open(local(port)).await;
    without.send(request).await;
    assert!(without.is_closed().await);
    weir.write(&config("10.0.0.0/8"));
    weir.admin().ask("POST", "/reload").body("").send().await.expect(200);
    let mut untrusted = Connection::open(local(port)).await;
    untrusted.send(format!("PROXY TCP4 192.0.2.1 198.51.100.1 4000 443\r\n{request}")).await;
    assert!(untrusted.is_closed().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_the_first_version_is_shown_as_it_is() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let openssl = |arguments: &[&str]| {
        let done = std::process::Command::new("openssl").current_dir(folder.path()).args(arguments).stdin(std::process::Stdio::null()).output().expect("openssl");
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    openssl(&["req", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=old.example", "-keyout", "key.pem", "-out", "csr.pem"]);
    openssl(&["x509", "-req", "-in", "csr.pem", "-signkey", "key.pem", "-days", "2", "-out", "cert.pem"]);
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect("what openssl wrote");
    let certificates = json!([{ "cert": read("cert.pem"), "key": read("key.pem"), "snis": ["old.example"] }]);
    let (_shop, _weir, door) = open(|config| config.set("/gateway/certificates", certificates)).await;
    let shown = openssl(&["s_client", "-connect", &door.0.to_string(), "-servername", "old.example"]);
    assert!(shown.contains("CN = old.example") || shown.contains("CN=old.example"), "{shown}");
}
