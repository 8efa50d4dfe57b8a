//! What the end-to-end tests are made of: real Weir processes, stub services in the test's own process, real Redis servers, and clients
//! that read answers strictly.
//!
//! ```text
//! test ─► Ask (HTTP/1.1 on a raw socket, or HTTP/2) ─► Weir (child process) ─► Shop (stub services in this process)
//!                                                        └─► RedisServer (child process)
//! ```
//!
//! The binary is taken from `WEIR_BIN`, else from beside the test's own target folder: build it with `cargo build -p weir` first.
//! Nothing here measures time; [`GUARD`] only keeps a test that would hang from hanging for ever.

mod ask;
pub mod cache_help;
pub mod cases;
mod config;
pub mod dns;
mod http1;
pub mod http2;
mod process;
mod shop;
pub mod tls;

pub use ask::{Ask, Door, HOST};
pub use config::Config;
pub use http1::{Answer, Broken, Connection};
pub use process::{Outcome, Weir, weir_command};
pub use shop::{CUSTOMER, GUEST_KEY, JWT_SECRET, Shop, WARM_UP_TOKEN};
pub use weir_store::testing::RedisServer;

use std::time::Duration;

/// The longest that anything may take before the test gives up. Far more than is needed, also on a loaded machine.
pub const GUARD: Duration = Duration::from_secs(90);

/// Waits until `probe` gives something, asking every few milliseconds. Panics with `what` when the guard's time is over.
pub async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = std::time::Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(begun.elapsed() < GUARD, "still not: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Gives `future` the guard's time. Panics with `what` when that is over.
pub async fn guarded<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(GUARD, future).await {
        Ok(done) => done,
        Err(_) => panic!("hangs: {what}"),
    }
}
