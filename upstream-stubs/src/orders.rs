//! The orders service: each POST makes an order, and the ledger proves how many were made. It does not look at
//! idempotency keys itself: keeping duplicates away is the gateway's work, and here is where one sees whether it did.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use http::{Method, StatusCode};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::call::{Call, Reply, created, json_reply, not_found, problem, wrong_method};
use crate::catalogue::{page, product, under};
use crate::handle::{Handle, LedgerEntry};
use crate::{clock, tokens};

#[derive(Debug, Clone, Serialize)]
struct Order {
    id: u64,
    status: &'static str,
    items: Vec<Item>,
    /// In cents, EUR.
    total: u64,
    member: Option<String>,
    created_at: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    product_id: u64,
    #[serde(default = "one")]
    quantity: u64,
}

fn one() -> u64 {
    1
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    items: Vec<Item>,
}

pub(crate) struct Orders {
    by_id: Mutex<BTreeMap<u64, Order>>,
    next: AtomicU64,
    handle: Handle,
}

impl Orders {
    pub fn new(handle: Handle) -> Orders {
        Orders {
            by_id: Mutex::default(),
            next: AtomicU64::new(1),
            handle,
        }
    }

    pub async fn answer(&self, call: Call) -> Reply {
        let Some(rest) = under(call.path(), "/api/orders") else {
            return not_found("such path");
        };
        let method = call.method().clone();
        match (rest, method) {
            ("", Method::GET | Method::HEAD) => json_reply(
                StatusCode::OK,
                &page(&call, self.by_id.lock().values().cloned().collect(), 20),
            ),
            ("", Method::POST) => self.create(call).await,
            ("", _) => wrong_method("GET, HEAD, POST"),
            (id, Method::GET | Method::HEAD) => match id
                .parse()
                .ok()
                .and_then(|id: u64| self.by_id.lock().get(&id).cloned())
            {
                Some(order) => json_reply(StatusCode::OK, &order),
                None => not_found("such order"),
            },
            _ => wrong_method("GET, HEAD"),
        }
    }

    async fn create(&self, call: Call) -> Reply {
        let idempotency_key = call
            .header("idempotency-key")
            .or_else(|| call.header("x-idempotency-key"))
            .map(str::to_owned);
        let member = tokens::caller(&call);
        let wanted = match call.json::<Wanted>().await {
            Ok(wanted) => wanted,
            Err(reply) => return reply,
        };
        if wanted.items.is_empty() {
            return problem(
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid_order",
                "an order needs at least one item",
            );
        }
        let mut total = 0u64;
        for item in &wanted.items {
            let Some(product) = product(item.product_id) else {
                return problem(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "invalid_order",
                    &format!("there is no product {}", item.product_id),
                );
            };
            if !(1..=1_000).contains(&item.quantity) {
                return problem(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "invalid_order",
                    "quantity must be 1 to 1000",
                );
            }
            total = total.saturating_add(product.price * item.quantity);
        }
        let id = self.next.fetch_add(1, Ordering::SeqCst);
        let order = Order {
            id,
            status: "accepted",
            items: wanted.items,
            total,
            member: member.clone(),
            created_at: clock::iso(SystemTime::now()),
        };
        self.by_id.lock().insert(id, order.clone());
        self.handle.record(LedgerEntry {
            action: "order.created",
            id,
            at: order.created_at.clone(),
            idempotency_key,
            subject: member,
        });
        created(&format!("/api/orders/{id}"), &order)
    }
}
