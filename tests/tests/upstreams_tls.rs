//! TLS and HTTP/2 towards upstreams: who is trusted, what is shown, and how many requests share a connection.

use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use serde_json::json;
use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use weir_tests::{
    Config, Weir, eventually,
    tls::{Authority, Issued},
};

/// A service over TLS that says by which protocol it was asked, and counts its connections.
async fn upstream(tls: TlsAcceptor) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (tls, count) = (tls.clone(), count.clone());
            tokio::spawn(async move {
                let Ok(stream) = tls.accept(stream).await else { return };
                count.fetch_add(1, Relaxed);
                let name = stream.get_ref().1.server_name().unwrap_or("-").to_owned();
                let answer = service_fn(move |request: Request<Incoming>| {
                    let name = name.clone();
                    async move {
                        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                        let version = format!("{:?}", request.version());
                        let field = request.headers().get("host").and_then(|host| host.to_str().ok()).map(str::to_owned);
                        let host = request.uri().authority().map(ToString::to_string).or(field);
                        let body = request.into_body().collect().await.map(|b| b.to_bytes().len()).unwrap_or_default();
                        let text = json!({ "version": version, "name": name, "host": host, "body": body }).to_string();
                        Ok::<_, Infallible>(Response::new(Full::<bytes::Bytes>::from(text)))
                    }
                });
                let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    });
    (address, connections)
}

fn config(address: SocketAddr, service: serde_json::Value, authority: &Authority, own: &Issued) -> Config {
    let mut entry = json!({ "name": "one", "url": format!("https://localhost:{}", address.port()), "retries": 0, "routes": [{ "name": "one", "paths": ["/"] }] });
    entry.as_object_mut().expect("a mapping").extend(service.as_object().expect("a mapping").clone());
    Config(json!({
        "server": { "threads": 1 },
        "gateway": {
            "_format_version": "3.0",
            "services": [entry],
            "ca_certificates": [{ "id": "ca", "cert": authority.cert }],
            "certificates": [{ "id": "own", "cert": own.cert, "key": own.key }],
        },
    }))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_must_show_a_certificate_of_a_known_authority_for_its_name() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let right = authority.issue(&["DNS:localhost"]);
    let (address, _) = upstream(authority.server(&right, false, &[])).await;
    let (misnamed, _) = upstream(authority.server(&authority.issue(&["DNS:other.example"]), false, &[])).await;
    for (address, service, status) in [
        (address, json!({}), 502),
        (address, json!({ "ca_certificates": ["ca"] }), 200),
        (misnamed, json!({ "ca_certificates": ["ca"] }), 502),
        (misnamed, json!({ "tls_verify": false }), 200),
    ] {
        let weir = Weir::start(&config(address, service.clone(), &authority, &right)).await;
        let answer = weir.gateway().get("/").send().await;
        assert_eq!(answer.status, status, "{service}: {}", answer.text());
        if status == 502 {
            assert_eq!(answer.must("x-weir-reason"), "tls");
        } else {
            assert_eq!(answer.json()["name"], "localhost");
        }
    }
    let weir = Weir::start(&config(address, json!({ "ca_certificates": ["ca"] }), &stranger, &right)).await;
    weir.gateway().get("/").send().await.expect(502);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_may_want_a_certificate_of_weir() {
    let authority = Authority::new();
    let (server, own) = (authority.issue(&["DNS:localhost"]), authority.issue(&["DNS:weir.example"]));
    let (address, _) = upstream(authority.server(&server, true, &[])).await;
    let weir = Weir::start(&config(address, json!({ "ca_certificates": ["ca"] }), &authority, &own)).await;
    weir.gateway().get("/").send().await.expect(502);
    let shown = json!({ "ca_certificates": ["ca"], "client_certificate": { "id": "own" } });
    weir.write(&config(address, shown, &authority, &own));
    weir.admin().ask("POST", "/reload").body("").send().await.expect(200);
    weir.gateway().get("/").send().await.expect(200);
}

/// The certificate of an upstream is shown by its services, unless they have their own; `host_header` is the name that is verified.
#[tokio::test(flavor = "multi_thread")]
async fn an_upstreams_certificate_and_name_are_its_services() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (server, own, wrong) = (authority.issue(&["DNS:inner.example"]), authority.issue(&["DNS:weir.example"]), stranger.issue(&["DNS:weir.example"]));
    let (address, _) = upstream(authority.server(&server, true, &[])).await;
    let service = |name: &str, host: &str, more: serde_json::Value| {
        let route = json!({ "name": name, "paths": [format!("/{name}")] });
        let mut entry = json!({ "name": name, "protocol": "https", "host": host, "port": 443, "retries": 0, "ca_certificates": ["ca"], "routes": [route] });
        entry.as_object_mut().expect("a mapping").extend(more.as_object().expect("a mapping").clone());
        entry
    };
    let targets = json!([{ "target": address.to_string() }]);
    let probes = json!({ "active": { "type": "https", "healthy": { "interval": 0.1, "successes": 1 }, "unhealthy": { "interval": 0.1, "tcp_failures": 1 } } });
    let weir = Weir::start(&Config(json!({
        "server": { "threads": 1 },
        "gateway": {
            "_format_version": "3.0",
            "services": [
                service("shared", "inner", json!({})),
                service("wrong", "inner", json!({ "client_certificate": "wrong" })),
                service("none", "bare", json!({})),
                service("misnamed", "unnamed", json!({})),
                service("well", "probed", json!({})),
                service("ill", "ill", json!({})),
            ],
            "upstreams": [
                { "name": "inner", "targets": targets, "host_header": "inner.example", "client_certificate": { "id": "own" } },
                { "name": "bare", "targets": targets, "host_header": "inner.example" },
                { "name": "unnamed", "targets": targets, "client_certificate": "own" },
                { "name": "probed", "targets": targets, "host_header": "inner.example", "client_certificate": "own", "healthchecks": probes },
                { "name": "ill", "targets": targets, "host_header": "inner.example", "healthchecks": probes },
            ],
            "ca_certificates": [{ "id": "ca", "cert": authority.cert }],
            "certificates": [{ "id": "own", "cert": own.cert, "key": own.key }, { "id": "wrong", "cert": wrong.cert, "key": wrong.key }],
        },
    })))
    .await;
    let seen = weir.gateway().get("/shared").send().await.expect(200).json();
    assert_eq!(seen["name"], "inner.example");
    for path in ["/wrong", "/none", "/misnamed"] {
        weir.gateway().get(path).send().await.expect(502);
    }
    // Probes show it too.
    let state = async |name: &str| {
        let all = weir.admin().get("/upstreams").send().await.expect(200).json();
        all["upstreams"].as_array().expect("a list").iter().find(|u| u["name"] == name).expect("the upstream")["endpoints"][0]["state"].clone()
    };
    eventually("probes without a certificate fail", async || (state("ill").await == "down").then_some(())).await;
    weir.admin().ask("PUT", &format!("/upstreams/probed/targets/{address}/unhealthy")).send().await.expect(204);
    eventually("probes with one bring the endpoint back", async || (state("probed").await == "up").then_some(())).await;
}

/// An upstream entity may be called what no server can be. Then its targets are called by what they are.
#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_whose_name_no_certificate_can_have_is_known_by_its_targets() {
    let authority = Authority::new();
    let right = authority.issue(&["DNS:localhost", "IP:127.0.0.1"]);
    let (address, _) = upstream(authority.server(&right, false, &[])).await;
    let (other, _) = upstream(authority.server(&right, false, &[])).await;
    let (misnamed, _) = upstream(authority.server(&authority.issue(&["DNS:localhost"]), false, &[])).await;
    let target = |name: &str, address: SocketAddr| json!({ "target": format!("{name}:{}", address.port()) });
    let upstreams = json!([
        { "name": "shop/api:80", "targets": [target("127.0.0.1", address)] },
        { "name": "shop.default.80", "targets": [target("127.0.0.1", misnamed)] },
        { "name": "shop.default.81", "targets": [target("127.0.0.1", misnamed)], "host_header": "localhost" },
        { "name": "shop.default.82", "targets": [target("localhost", address), target("localhost", other)] },
        { "name": "shop.default.83", "targets": [target("localhost", misnamed)] },
    ]);
    let services: Vec<_> = upstreams.as_array().expect("a list").iter().enumerate().map(|(at, upstream)| {
        let route = json!({ "name": format!("r{at}"), "paths": [format!("/{at}")] });
        json!({ "name": format!("s{at}"), "protocol": "https", "host": upstream["name"], "retries": 0, "ca_certificates": ["ca"], "routes": [route] })
    }).collect();
    let gateway = json!({ "_format_version": "3.0", "services": services, "upstreams": upstreams, "ca_certificates": [{ "id": "ca", "cert": authority.cert }] });
    let weir = Weir::start(&Config(json!({ "server": { "threads": 1 }, "gateway": gateway }))).await;
    // An address is verified and not asked for: a handshake has no place for it.
    let seen = weir.gateway().get("/0").send().await.expect(200).json();
    assert_eq!((&seen["name"], &seen["host"]), (&json!("-"), &json!(address.to_string())));
    assert_eq!(weir.gateway().get("/1").send().await.expect(502).must("x-weir-reason"), "tls");
    assert_eq!(weir.gateway().get("/2").send().await.expect(200).json()["name"], "localhost");
    for path in ["/3", "/3", "/4"] {
        assert_eq!(weir.gateway().get(path).send().await.expect(200).json()["name"], "localhost", "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_share_an_http2_connection() {
    let authority = Authority::new();
    let own = authority.issue(&["DNS:localhost"]);
    for (offered, version) in [(&["h2", "http/1.1"][..], "HTTP/2.0"), (&["http/1.1"], "HTTP/1.1")] {
        let (address, connections) = upstream(authority.server(&own, false, offered)).await;
        let weir = Weir::start(&config(address, json!({ "ca_certificates": ["ca"], "http2": true }), &authority, &own)).await;
        let asks = (0..40).map(|number| weir.gateway().post("/", "text/plain", vec![b'x'; number * 10_000]).host("shop.test").send());
        for (number, answer) in futures_util::future::join_all(asks).await.into_iter().enumerate() {
            let said = answer.expect(200).json();
            assert_eq!(said["version"], version);
            assert_eq!(said["body"], number * 10_000);
        }
        if version == "HTTP/2.0" {
            assert_eq!(connections.load(Relaxed), 1);
        } else {
            assert!(connections.load(Relaxed) > 1);
        }
    }
}
