//! The services that stand behind Weir in its demo, its tests and its benchmarks: a storefront that answers as a
//! Next.js server does, auth, a BFF, members, products, deals and orders, and a replay of recorded traffic.
//!
//! They behave, and they misbehave on request: see [`faults`]. Every service also has
//!
//! | path | answers |
//! |---|---|
//! | `/health` | 200 `{"status":"ok"}`, or 503 after [`Handle::set_healthy`]`(false)` or `POST /_stub/health {"healthy":false}` |
//! | `/echo`, `/echo/…` | any method: the request as JSON, `no-store` |
//! | `/_stub/stats` | counters; a request is counted when it arrives, before any latency or fault |
//! | `/_stub/requests` | the last requests as they arrived |
//! | `/_stub/ledger` | what was done that must not be done twice |
//! | `/_stub/faults` | GET lists, POST adds a [`FaultRule`], DELETE ends all |
//! | `/_stub/reset` | POST: counters, remembered requests and ledger to nothing |
//!
//! Everything is spoken over HTTP/1.1 with keep-alive and over HTTP/2 without TLS (prior knowledge).

// Where a step fails, the error is the answer that goes out: as large as an answer, and made once a request.
#![allow(clippy::result_large_err)]

mod auth;
mod bff;
mod body;
mod call;
mod catalogue;
mod clock;
pub mod faults;
mod handle;
mod members;
mod orders;
mod replay;
mod server;
mod service;
mod storefront;
mod tokens;
mod wire;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub use auth::AuthOptions;
pub use faults::{Fault, FaultRule};
pub use handle::{Handle, LedgerEntry, SeenRequest, Stats};
pub use replay::{Record, load_recording, recorded_body};
pub use server::{Running, start};

/// Which service to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Kind {
    /// The web shop's pages, as Next.js serves them.
    Storefront,
    /// `/api/home` and `/api/categories`, put together from products and deals.
    Bff,
    /// Register, login, refresh, logout, verify, guest tokens.
    Auth,
    /// Members: create, read, update, delete.
    Members,
    /// The catalogue.
    Products,
    /// Offers on the catalogue.
    Deals,
    /// Orders, with a ledger of those made.
    Orders,
    /// Recorded answers from a file.
    Replay,
}

impl Kind {
    /// The name on the command line and in `/health`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Storefront => "storefront",
            Kind::Bff => "bff",
            Kind::Auth => "auth",
            Kind::Members => "members",
            Kind::Products => "products",
            Kind::Deals => "deals",
            Kind::Orders => "orders",
            Kind::Replay => "replay",
        }
    }

    /// The port when nothing else is said. The replay stands in for the storefront, hence on its port.
    pub fn default_port(self) -> u16 {
        match self {
            Kind::Storefront | Kind::Replay => 3000,
            Kind::Bff => 3001,
            Kind::Auth => 4000,
            Kind::Members => 5000,
            Kind::Products => 5001,
            Kind::Deals => 5002,
            Kind::Orders => 5003,
        }
    }
}

/// A text that is not to be seen in logs: `Debug` shows only that it is there.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Secret {
        Secret(text.to_owned())
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Secret {
        Secret(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// How a stub behaves; each service reads the part that concerns it.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether `/health` says 200 from the start.
    pub healthy: bool,
    /// How many requests are remembered for `/_stub/requests`; 0 for benchmarks.
    pub remember: usize,
    /// Storefront: how long rendering a page takes.
    pub render_time: Duration,
    /// Storefront: time between the pieces of a streamed page.
    pub piece_delay: Duration,
    /// Storefront: the build id, part of the URLs under `/_next`.
    pub build_id: String,
    /// Storefront: how long a rendered ISR page is kept by the storefront itself, as Next.js does: MISS first, then
    /// HIT, and when the time is over STALE once, with a new render behind it. `None`: every request is a
    /// render of its own, so that the counter in the page counts what reached the origin.
    pub isr_window: Option<Duration>,
    /// Storefront: answer `RSC: 1` with a wrong or missing `_rsc` by 307 to the right one, as Next.js 16 does.
    pub rsc_redirect: bool,
    /// Storefront: the value of the cookie `__prerender_bypass` that turns draft mode on.
    pub draft_secret: Secret,
    /// Auth: token settings.
    pub auth: AuthOptions,
    /// BFF: where products are, as `http://host:port`.
    pub products_url: String,
    /// BFF: where deals are, as `http://host:port`.
    pub deals_url: String,
    /// BFF: how long it waits for each of them.
    pub upstream_timeout: Duration,
    /// Replay: the recording, one JSON object a line.
    pub recording: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            healthy: true,
            remember: 256,
            render_time: Duration::ZERO,
            piece_delay: Duration::from_millis(25),
            build_id: "demo-build-1".to_owned(),
            isr_window: None,
            rsc_redirect: false,
            draft_secret: Secret::from("697b877eb589ab4e7eb43a08f00a62f6"),
            auth: AuthOptions::default(),
            products_url: format!("http://127.0.0.1:{}", Kind::Products.default_port()),
            deals_url: format!("http://127.0.0.1:{}", Kind::Deals.default_port()),
            upstream_timeout: Duration::from_secs(5),
            recording: None,
        }
    }
}

/// How the whole set is started.
#[derive(Debug, Clone)]
pub struct AllOptions {
    /// The address on which all listen.
    pub ip: IpAddr,
    /// Take free ports instead of the default ones.
    pub ephemeral: bool,
    /// For every service; the BFF's URLs are set to the products and deals started with it.
    pub options: Options,
}

impl Default for AllOptions {
    fn default() -> Self {
        AllOptions {
            ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            ephemeral: false,
            options: Options::default(),
        }
    }
}

/// The whole set, running. Each stops when it is dropped.
#[derive(Debug)]
#[allow(missing_docs)] // one field a service, named after it
pub struct AllStubs {
    pub storefront: Running,
    pub bff: Running,
    pub auth: Running,
    pub members: Running,
    pub products: Running,
    pub deals: Running,
    pub orders: Running,
}

impl AllStubs {
    /// All of them, in the order of their ports.
    pub fn iter(&self) -> impl Iterator<Item = &Running> {
        [
            &self.storefront,
            &self.bff,
            &self.auth,
            &self.members,
            &self.products,
            &self.deals,
            &self.orders,
        ]
        .into_iter()
    }
}

/// Starts every service, the BFF wired to products and deals. If one cannot bind its port, the error names the
/// service and the address, and those already started stop.
pub async fn start_all(all: AllOptions) -> std::io::Result<AllStubs> {
    let AllOptions {
        ip,
        ephemeral,
        options,
    } = all;
    let at = |kind: Kind| SocketAddr::new(ip, if ephemeral { 0 } else { kind.default_port() });
    let products = start(Kind::Products, at(Kind::Products), options.clone()).await?;
    let deals = start(Kind::Deals, at(Kind::Deals), options.clone()).await?;
    let wired = Options {
        products_url: products.url(),
        deals_url: deals.url(),
        ..options.clone()
    };
    Ok(AllStubs {
        bff: start(Kind::Bff, at(Kind::Bff), wired).await?,
        storefront: start(Kind::Storefront, at(Kind::Storefront), options.clone()).await?,
        auth: start(Kind::Auth, at(Kind::Auth), options.clone()).await?,
        members: start(Kind::Members, at(Kind::Members), options.clone()).await?,
        orders: start(Kind::Orders, at(Kind::Orders), options).await?,
        products,
        deals,
    })
}
