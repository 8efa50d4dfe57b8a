//! The backend for the frontend: `/api/home` and `/api/categories`, put together from products and deals over
//! kept-alive HTTP connections. It says nothing about caching: that is decided in front of it.

use std::io;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use crate::call::{BODY_LIMIT, Call, Reply, json_reply, not_found, problem, wrong_method};
use crate::catalogue::CATEGORIES;
use crate::{Options, clock};

/// Headers that are handed on, so that one request can be followed through the services.
const HANDED_ON: [&str; 5] = [
    "x-request-id",
    "x-correlation-id",
    "traceparent",
    "tracestate",
    "accept-language",
];

pub(crate) struct Bff {
    client: Client<HttpConnector, Empty<Bytes>>,
    products: String,
    deals: String,
    timeout: Duration,
}

/// Why a service behind this one gave no use.
enum Away {
    Unreachable(&'static str),
    TimedOut(&'static str),
    Answered(&'static str, u16),
}

impl Bff {
    pub fn new(options: &Options) -> io::Result<Bff> {
        let base = |name: &str, url: &str| match url.parse::<Uri>() {
            Ok(uri) if uri.scheme_str() == Some("http") && uri.host().is_some() => {
                Ok(url.trim_end_matches('/').to_owned())
            }
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("the address of {name} must be like http://host:port, not {url:?}"),
            )),
        };
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(options.upstream_timeout));
        Ok(Bff {
            client: Client::builder(TokioExecutor::new()).build(connector),
            products: base("products", &options.products_url)?,
            deals: base("deals", &options.deals_url)?,
            timeout: options.upstream_timeout,
        })
    }

    pub async fn answer(&self, call: Call) -> Reply {
        if !matches!(call.path(), "/api/home" | "/api/categories") {
            return not_found("such path");
        }
        if !call.is_read() {
            return wrong_method("GET, HEAD");
        }
        let done = if call.path() == "/api/home" {
            self.home(&call).await
        } else {
            self.categories(&call).await
        };
        match done {
            Ok(value) => json_reply(StatusCode::OK, &value),
            Err(Away::Unreachable(name)) => problem(
                StatusCode::BAD_GATEWAY,
                "upstream_unreachable",
                &format!("{name} cannot be reached"),
            ),
            Err(Away::Answered(name, status)) => problem(
                StatusCode::BAD_GATEWAY,
                "upstream_failed",
                &format!("{name} answered {status}"),
            ),
            Err(Away::TimedOut(name)) => problem(
                StatusCode::GATEWAY_TIMEOUT,
                "upstream_timeout",
                &format!("{name} did not answer in time"),
            ),
        }
    }

    async fn home(&self, call: &Call) -> Result<Value, Away> {
        let (featured, deals) = tokio::try_join!(
            self.fetch(
                "products",
                format!("{}/api/products?limit=8&sort=rating", self.products),
                call
            ),
            self.fetch("deals", format!("{}/api/deals?limit=4", self.deals), call),
        )?;
        Ok(json!({
            "generated_at": clock::iso(SystemTime::now()),
            "featured": featured["items"],
            "deals": deals["items"],
            "categories": CATEGORIES.map(|(slug, name)| json!({"slug": slug, "name": name})),
        }))
    }

    async fn categories(&self, call: &Call) -> Result<Value, Away> {
        let (products, deals) = tokio::try_join!(
            self.fetch(
                "products",
                format!("{}/api/products?limit=100", self.products),
                call
            ),
            self.fetch("deals", format!("{}/api/deals?limit=100", self.deals), call),
        )?;
        let none = Vec::new();
        let (products, deals) = (
            products["items"].as_array().unwrap_or(&none),
            deals["items"].as_array().unwrap_or(&none),
        );
        let categories = CATEGORIES.map(|(slug, name)| {
            let inside: Vec<&Value> = products.iter().filter(|p| p["category"] == slug).collect();
            let reduced = deals
                .iter()
                .filter(|d| inside.iter().any(|p| p["id"] == d["product_id"]))
                .count();
            json!({
                "slug": slug,
                "name": name,
                "count": inside.len(),
                "deals": reduced,
                "from_price": inside.iter().filter_map(|p| p["price"].as_u64()).min(),
            })
        });
        Ok(json!({"generated_at": clock::iso(SystemTime::now()), "categories": categories}))
    }

    async fn fetch(&self, name: &'static str, url: String, call: &Call) -> Result<Value, Away> {
        let mut request = Request::get(url);
        for header in HANDED_ON {
            if let Some(value) = call.headers().get(header) {
                request = request.header(header, value);
            }
        }
        let request = request
            .body(Empty::new())
            .map_err(|_| Away::Unreachable(name))?;
        let exchange = async {
            let response = self
                .client
                .request(request)
                .await
                .map_err(|_| Away::Unreachable(name))?;
            let status = response.status();
            if !status.is_success() {
                return Err(Away::Answered(name, status.as_u16()));
            }
            let whole = Limited::new(response.into_body(), BODY_LIMIT)
                .collect()
                .await
                .map_err(|_| Away::Unreachable(name))?;
            serde_json::from_slice(&whole.to_bytes())
                .map_err(|_| Away::Answered(name, status.as_u16()))
        };
        tokio::time::timeout(self.timeout, exchange)
            .await
            .unwrap_or(Err(Away::TimedOut(name)))
    }
}
