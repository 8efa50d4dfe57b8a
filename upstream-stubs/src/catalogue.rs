//! The goods of the demo shop: the products and deals services, and what the storefront's pages show.

use std::sync::LazyLock;

use http::StatusCode;
use serde::Serialize;
use serde_json::json;

use crate::call::{Call, Reply, json_reply, not_found, wrong_method};

/// The categories, each with eight products.
pub(crate) const CATEGORIES: [(&str, &str); 5] = [
    ("shoes", "Shoes"),
    ("hats", "Hats"),
    ("bags", "Bags"),
    ("coats", "Coats"),
    ("socks", "Socks"),
];

const STYLES: [&str; 8] = [
    "Alder", "Birch", "Cedar", "Dune", "Ember", "Fjord", "Grove", "Heath",
];
const NOUNS: [[&str; 2]; 5] = [
    ["Runner", "Boot"],
    ["Cap", "Beanie"],
    ["Tote", "Backpack"],
    ["Parka", "Raincoat"],
    ["Crew Sock", "Hiking Sock"],
];

/// One product.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Product {
    pub id: u64,
    pub name: String,
    pub slug: String,
    pub category: &'static str,
    /// In cents, EUR.
    pub price: u64,
    pub currency: &'static str,
    /// Out of 50, that is tenths of a star.
    pub rating: u64,
    pub stock: u64,
    pub description: String,
}

/// A price cut for one product.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Deal {
    pub id: u64,
    pub product_id: u64,
    pub product_name: String,
    pub percent_off: u64,
    /// In cents, after the cut.
    pub price: u64,
    pub badge: &'static str,
}

/// Forty products, ids 1 to 40, the categories taking turns, so that any page of the list shows all of them.
pub(crate) static PRODUCTS: LazyLock<Vec<Product>> = LazyLock::new(|| {
    (0..40u64)
        .map(|n| {
            let (category, round) = ((n % 5) as usize, (n / 5) as usize);
            let name = format!("{} {}", STYLES[round], NOUNS[category][round % 2]);
            Product {
                id: n + 1,
                slug: name.to_lowercase().replace(' ', "-"),
                category: CATEGORIES[category].0,
                price: 1_490 + (n * 7_919) % 18_000 / 10 * 10,
                currency: "EUR",
                rating: 30 + (n * 13) % 21,
                stock: (n * 31) % 97,
                description: format!("{name}: made to last, easy to mend, and at home in any weather. Number {} of the collection.", n + 1),
                name,
            }
        })
        .collect()
});

static DEALS: LazyLock<Vec<Deal>> = LazyLock::new(|| {
    (0..8)
        .map(|i| (i, &PRODUCTS[i * 11 % PRODUCTS.len()])) // all categories, no product twice
        .map(|(i, product)| {
            let percent_off = 10 + (i as u64 % 4) * 10;
            Deal {
                id: i as u64 + 1,
                product_id: product.id,
                product_name: product.name.clone(),
                percent_off,
                price: product.price * (100 - percent_off) / 100,
                badge: [
                    "Deal of the day",
                    "Last pieces",
                    "Season sale",
                    "Members' choice",
                ][i % 4],
            }
        })
        .collect()
});

/// A product by its id.
pub(crate) fn product(id: u64) -> Option<&'static Product> {
    PRODUCTS.get(usize::try_from(id.checked_sub(1)?).ok()?)
}

/// `12.50 €` from cents.
pub(crate) fn euros(cents: u64) -> String {
    format!("{}.{:02} €", cents / 100, cents % 100)
}

/// The products in a category (all for `None`) whose name holds `q`, in the order asked for.
pub(crate) fn select(
    category: Option<&str>,
    q: Option<&str>,
    sort: Option<&str>,
) -> Vec<&'static Product> {
    let q = q.map(str::to_lowercase).filter(|q| !q.is_empty());
    let mut found: Vec<&Product> = PRODUCTS
        .iter()
        .filter(|p| category.is_none_or(|c| p.category == c))
        .filter(|p| {
            q.as_ref().is_none_or(|q| {
                p.name.to_lowercase().contains(q) || p.category.contains(q.as_str())
            })
        })
        .collect();
    match sort {
        Some("price") => found.sort_by_key(|p| p.price),
        Some("-price") => found.sort_by_key(|p| std::cmp::Reverse(p.price)),
        Some("name") => found.sort_by(|a, b| a.name.cmp(&b.name)),
        Some("rating") => found.sort_by_key(|p| std::cmp::Reverse(p.rating)),
        _ => {}
    }
    found
}

/// The products and the deals service: read only, nothing kept.
pub(crate) struct Catalogue;

impl Catalogue {
    /// `/api/products?page=&limit=&category=&q=&sort=` and `/api/products/{id}`.
    pub fn products(&self, call: &Call) -> Reply {
        let Some(rest) = under(call.path(), "/api/products") else {
            return not_found("such path");
        };
        if !call.is_read() {
            return wrong_method("GET, HEAD");
        }
        if rest.is_empty() {
            let all = select(
                call.query.get("category"),
                call.query.get("q"),
                call.query.get("sort"),
            );
            return json_reply(StatusCode::OK, &page(call, all, 10));
        }
        match rest.parse().ok().and_then(product) {
            Some(product) => json_reply(StatusCode::OK, product),
            None => not_found("such product"),
        }
    }

    /// `/api/deals` and `/api/deals/{id}`.
    pub fn deals(&self, call: &Call) -> Reply {
        let Some(rest) = under(call.path(), "/api/deals") else {
            return not_found("such path");
        };
        if !call.is_read() {
            return wrong_method("GET, HEAD");
        }
        if rest.is_empty() {
            return json_reply(StatusCode::OK, &page(call, DEALS.iter().collect(), 20));
        }
        match DEALS.iter().find(|d| rest.parse() == Ok(d.id)) {
            Some(deal) => json_reply(StatusCode::OK, deal),
            None => not_found("such deal"),
        }
    }
}

/// What of a path lies under a collection: `""` for the collection itself, `"7"` for `/api/x/7`.
pub(crate) fn under<'a>(path: &'a str, collection: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(collection)?;
    if rest.is_empty() {
        Some(rest)
    } else {
        rest.strip_prefix('/')
    }
}

/// One page of a list, by `?page=` (from 1) and `?limit=` (1 to 100).
pub(crate) fn page<T: Serialize>(
    call: &Call,
    all: Vec<T>,
    default_limit: u64,
) -> serde_json::Value {
    let limit = call
        .query
        .number("limit")
        .unwrap_or(default_limit)
        .clamp(1, 100);
    let page = call.query.number("page").unwrap_or(1).max(1);
    let total = all.len() as u64;
    let skip = usize::try_from((page - 1).saturating_mul(limit)).unwrap_or(usize::MAX);
    let items: Vec<T> = all.into_iter().skip(skip).take(limit as usize).collect();
    json!({"items": items, "page": page, "limit": limit, "total": total, "pages": total.div_ceil(limit)})
}
