//! Sockets: the only crate that knows pingora. Listeners, HTTP/1.1 and HTTP/2 towards clients, HTTP/1.1 towards upstreams, and the
//! two doors' ways of a request.
//!
//! ```text
//! bytes ─► server (door) ─► h1_server │ h2_server      strict heads, framing, deadlines
//!                                └──────┬─────┘
//!                                       ▼  one `Downstream`
//!                        edge: classify · guest · pages ──► gateway: route · chain
//!                                       │                      │
//!                                       └──────► work ◄────────┘   cache · forward · reply, one way out
//!                                                  │
//!                                   origin (fills) · forward · exchange · dial
//! ```

pub mod access;
pub mod classify;
pub mod deadline;
pub mod dial;
pub mod downstream;
pub mod edge;
pub mod exchange;
pub mod fast;
pub mod forward;
pub mod gateway;
pub mod grpc;
pub mod guest;
pub mod h1;
pub mod h1_server;
mod h2_exchange;
pub mod h2_server;
mod h2_tunnel;
pub mod listen;
pub mod live;
pub mod origin;
pub mod pages;
pub mod popular;
pub mod proxy_protocol;
pub mod purging;
pub mod server;
pub mod stream;
mod times;
pub mod tls;
pub mod warm;
pub mod wire;
pub mod work;
