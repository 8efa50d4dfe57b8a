//! HTTP caching as rules, without sockets.
pub mod contract;
pub use contract::*;
