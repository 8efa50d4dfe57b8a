//! The shop: every stub service, and a configuration of Weir that stands before them.

use crate::{Config, Door};
use serde_json::json;
use upstream_stubs::{AllOptions, AllStubs, Handle, Options, start_all};

/// Signs guest tokens.
pub const GUEST_KEY: &str = "key-of-the-tests-for-guest-tokens-0123456789";
/// Signs the auth stub's tokens.
pub const JWT_SECRET: &str = "demo-secret-for-local-use-only-0123456789";
/// Lets a caller refresh.
pub const WARM_UP_TOKEN: &str = "warm-up-token-of-the-tests";
/// A customer whom the auth stub knows, as `Authorization`.
pub const CUSTOMER: &str = "Basic YWxpY2U6d29uZGVybGFuZA==";

/// Running stub services. They stop when this is dropped.
pub struct Shop {
    /// The services.
    pub stubs: AllStubs,
}

impl Shop {
    /// Starts all services on free ports.
    pub async fn start() -> Shop {
        Self::start_with(Options::default()).await
    }

    /// The same with options.
    pub async fn start_with(options: Options) -> Shop {
        let options = Options { remember: 4096, ..options };
        let all = AllOptions { ephemeral: true, options, ..AllOptions::default() };
        Shop { stubs: start_all(all).await.expect("the stub services start") }
    }

    /// Counters and faults of the storefront.
    pub fn storefront(&self) -> &Handle {
        self.stubs.storefront.handle()
    }

    /// The storefront itself, past Weir.
    pub fn origin(&self) -> Door {
        Door(self.stubs.storefront.addr())
    }

    /// Edge and gateway before all services.
    pub fn config(&self) -> Config {
        let stubs = &self.stubs;
        let pages = json!([
            { "path": "/", "ttl": "60s" },
            { "path": "/categories", "ttl": "60s", "query": ["page", "sort"] },
            { "path": "/categories/**", "ttl": "60s" },
            { "path": "/page/**", "ttl": "60s", "query": ["size"] },
        ]);
        Config(json!({
            "store": "memory",
            "edge": {
                "origin": stubs.storefront.url(),
                "deployment": "tests",
                "pages": pages,
                "guests": { "key": GUEST_KEY },
            },
            "gateway": { "_format_version": "3.0", "services": [], "plugins": [] },
            "warm_up": { "every": "1h", "token": WARM_UP_TOKEN, "urls": [] },
        }))
        .service("bff", &stubs.bff.url(), "/api/home", json!([{ "name": "response-cache", "config": { "ttl": "300s", "shared": true } }]))
        .service("auth", &stubs.auth.url(), "/api/auth", json!([]))
        .service("members", &stubs.members.url(), "/api/members", json!([{ "name": "token-validator", "config": { "secret": JWT_SECRET } }]))
        .service("products", &stubs.products.url(), "/api/products", json!([]))
        .service("deals", &stubs.deals.url(), "/api/deals", json!([]))
        .service("orders", &stubs.orders.url(), "/api/orders", json!([{ "name": "idempotency", "config": { "ttl": "60s" } }]))
    }
}
