//! The gateway without its sockets: which route, which chain of plugins, which endpoint.
//!
//! A request's way through here: [`router`] → [`chain`] (`request` steps) → look-up and fill (cache) or [`upstream`] → chain
//! (`response` steps) → [`metrics`]. Plugins see `http` types and the [`RequestContext`], never a socket.

pub mod chain;
pub mod client;
pub mod context;
pub mod metrics;
pub mod plugin;
pub mod reply;
pub mod router;
pub mod snapshot;
pub mod upstream;

pub use chain::{Chain, Chains};
pub use context::{Client, Consumer, Identity, RequestContext, RequestId, Scheme};
pub use plugin::{BuildEnv, Flow, Phases, Plugin, Register};
pub use reply::Reply;
pub use snapshot::{Environment, RouteRuntime, ServiceRuntime, Snapshot};
