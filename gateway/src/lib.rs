//! The gateway without its sockets: which route, which chain of plugins, which endpoint.
//!
//! A request's way through here: [`router`] → [`chain`] (`request` steps) → look-up and fill (cache) or [`upstream`] → chain
//! (`response` steps) → [`metrics`]. Plugins see `http` types and the [`RequestContext`], never a socket.

pub mod chain;
pub mod client;
pub mod context;
pub mod dns;
pub mod fields;
pub mod metrics;
pub mod plugin;
pub mod reply;
pub mod resilience;
pub mod router;
mod scopes;
pub mod sight;
pub mod snapshot;
pub mod tls;
pub mod upstream;

/// Configured encodings, as the cache knows them.
pub fn codings(configured: &[weir_config::Encoding]) -> weir_cache::Codings {
    use weir_cache::Coding;
    use weir_config::Encoding;
    let known = |encoding: &Encoding| match encoding {
        Encoding::Br => Coding::Br,
        Encoding::Zstd => Coding::Zstd,
        Encoding::Gzip => Coding::Gzip,
    };
    configured.iter().map(known).collect()
}

pub use chain::{Chain, Chains, Progress, Walked};
pub use fields::Fields;
pub use context::{Client, Consumer, Identity, RequestContext, RequestId, Scheme};
pub use plugin::{BuildEnv, Flow, Phases, Plugin, Register};
pub use reply::Reply;
pub use sight::Sight;
pub use snapshot::{Environment, RouteRuntime, ServiceRuntime, Snapshot, Spoken};
