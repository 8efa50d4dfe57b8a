//! HTTP caching as rules, without sockets: what may be stored, for how long, under which key, who fetches it, and how it is answered from.
//!
//! | module | what it knows |
//! |---|---|
//! | [`contract`] | the face: plans, policies, the origin as a trait, outcomes |
//! | [`keys`] | canonical hosts, normalized paths, reduced queries |
//! | [`control`] | `Cache-Control` and the targeted fields of RFC 9213 |
//! | [`policy`] | RFC 9111: may it be stored, how long is it fresh, may it be reused |
//! | [`vary`] | secondary keys |
//! | [`html`] | the gate for whole pages |
//! | [`entry`] | a stored response with its ready-made head, and its form in the store |
//! | [`draft`] | a response that becomes one |
//! | `block` | memory for stored responses |
//! | [`encode`], `encoder` | content codings; variants made in the background |
//! | [`respond`] | conditions, ranges, HEAD, `Age` |
//! | [`memory`] | the tier in this process |
//! | `serve`, `flight`, `fill`, `keep`, `body` | one request's way; one fill per key, many readers; what becomes of the answer |
//! | `places` | so many fills of one rule at once |
//! | `tier` | the shared store |
//! | [`outdated`] | what an unsafe request invalidates |
//! | [`purge`], `recent`, `spread` | what a purge means, what it meets on its way, messages between instances |
//! | `trust` | whether every purge was heard here |
//! | [`engine`] | memory, then store, then one fill |
//! | [`status`], [`reasons`] | RFC 9211 `Cache-Status`; why answers are not kept |

mod block;
mod body;
pub mod clock;
pub mod codec;
pub mod contract;
pub mod control;
pub mod draft;
pub mod encode;
mod encoder;
pub mod engine;
pub mod entry;
pub mod fields;
mod fill;
mod flight;
pub mod html;
mod keep;
pub mod keys;
pub mod memory;
pub mod outdated;
mod places;
pub mod policy;
pub mod purge;
pub mod reasons;
mod recent;
pub mod respond;
mod serve;
mod spread;
pub mod stats;
pub mod status;
mod tier;
mod trust;
pub mod vary;

pub use contract::*;
pub use encode::{Accepted, Coding, Codings, Variant};
pub use engine::{Engine, EngineOptions};
pub use entry::Entry;
pub use purge::{Purge, PurgeReport};
pub use respond::{Conditions, Form, form};
pub use stats::{Stats, StatsSnapshot};
