//! Every plugin from outside: each status, header and body that its page and Kong's promise, as a row of `tests/cases/…`.

use serde_json::json;
use std::path::{Path, PathBuf};
use weir_tests::{Config, Shop, Weir};

/// The pages of the reference, by their plugins' names.
fn pages() -> Vec<(String, PathBuf)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/plugins");
    let pages = std::fs::read_dir(folder).expect("the reference").map(|page| page.expect("a page").path());
    let mut pages: Vec<_> = pages.map(|path| (path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), path)).collect();
    pages.sort();
    pages
}

/// The example that a page shows, on a route for the host of the plugin's name.
#[tokio::test(flavor = "multi_thread")]
async fn the_example_of_every_page_serves() {
    let shop = Shop::start().await;
    let mut services = Vec::new();
    for (name, page) in pages() {
        let text = std::fs::read_to_string(&page).expect("a page");
        let example = text.split("```yaml\n").nth(1).and_then(|rest| rest.split("\n```").next()).unwrap_or_else(|| panic!("{name} has no example"));
        let plugins = weir_config::Node::parse(example).unwrap_or_else(|e| panic!("{name}: {e}")).to_json()["plugins"].clone();
        assert_eq!(plugins[0]["name"], json!(name), "the example of a page is of its plugin");
        let route = json!({ "name": name, "hosts": [name], "paths": ["/"], "strip_path": false, "plugins": plugins });
        services.push(json!({ "name": name, "url": shop.stubs.products.url(), "routes": [route] }));
    }
    let config = json!({ "gateway": { "_format_version": "3.0", "services": services } });
    let weir = Weir::start(&Config(config)).await;
    for (name, _) in pages() {
        let answer = weir.gateway().get("/api/products?page=1").host(&name).send().await;
        let (status, field) = match name.as_str() {
            "token-validator" | "jwt" | "key-auth" | "basic-auth" => (401, "www-authenticate"),
            "acl" => (401, "content-type"),
            "ip-restriction" => (403, "content-type"),
            "request-termination" => (503, "content-type"),
            "correlation-id" => (200, "x-correlation-id"),
            "cors" => (200, "access-control-expose-headers"),
            "rate-limiting" | "rate-limiting-advanced" => (200, "x-ratelimit-remaining-second"),
            "response-ratelimiting" => (200, "x-ratelimit-remaining-sms-day"),
            "response-transformer" => (200, "x-content-type-options"),
            "opentelemetry" => (200, "x-trace-id"),
            "proxy-cache" | "response-cache" => (200, "x-cache-key"),
            "request-transformer" => (404, "content-type"),
            _ => (200, "content-type"),
        };
        assert!(answer.status == status && answer.has(field), "{name}: {answer:#?}");
    }
}

macro_rules! cases {
    ($($name:ident: $file:literal,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                weir_tests::cases::run($file).await;
            }
        )*

        #[test]
        fn every_plugin_has_its_cases() {
            let missing: Vec<String> = pages().into_iter().map(|(name, _)| name).filter(|name| ![$($file),*].contains(&name.as_str())).collect();
            // Another face of `rate-limiting`, whose cases have it too.
            assert_eq!(missing, ["rate-limiting-advanced"]);
        }
    };
}

cases! {
    acl: "acl",
    basic_auth: "basic-auth",
    bot_detection: "bot-detection",
    circuit_breaker: "circuit-breaker",
    compression: "compression",
    correlation_id: "correlation-id",
    cors: "cors",
    file_log: "file-log",
    http_log: "http-log",
    idempotency: "idempotency",
    ip_restriction: "ip-restriction",
    jwt: "jwt",
    key_auth: "key-auth",
    load_shedding: "load-shedding",
    opentelemetry: "opentelemetry",
    prometheus: "prometheus",
    proxy_cache: "proxy-cache",
    rate_limiting: "rate-limiting",
    request_size_limiting: "request-size-limiting",
    request_termination: "request-termination",
    request_transformer: "request-transformer",
    request_validation: "request-validation",
    response_cache: "response-cache",
    response_ratelimiting: "response-ratelimiting",
    response_transformer: "response-transformer",
    tcp_log: "tcp-log",
    token_validator: "token-validator",
}
