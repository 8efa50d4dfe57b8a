//! YAML in, typed document out. Every mistake is reported with file, line, column, the line itself and the nearest valid word;
//! all mistakes of a file are reported in one run.
//!
//! The way of a file: text ─► [`Node`] tree (every value knows its place; `${NAME}` expanded) ─► [`Document`] (typed; Kong's
//! entities flattened and their references resolved) ─► the gateway's `Snapshot::compile`.

mod catalog;
mod check;
mod de;
mod decode;
mod diagnostic;
pub mod document;
mod entities;
mod env;
pub mod kong;
mod listen;
mod load;
mod mask;
pub mod net;
mod node;
mod parse;
mod placeholders;
mod reader;
mod resilience;
mod resolver;
mod scalars;
mod secrets;
mod sections;
mod span;
mod weir;
pub mod words;

pub use catalog::{LoadOptions, PluginCatalog};
pub use decode::{check, decode, schema};
pub use diagnostic::{Diagnostic, Diagnostics, Severity};
pub use document::*;
pub use entities::*;
pub use env::Env;
pub use listen::{Listen, Listens};
pub use load::{Loaded, Rest, load_bytes, load_file, load_str};
pub use node::{Key, Kind, Node};
pub use resilience::{Adaptive, BreakerScope, CircuitBreaker, Concurrency, Deadlines, Fallback, Resilience, Retry, check_breaker};
pub use resolver::{NameServer, RecordKind, Resolver};
pub use scalars::{Millis, Secret, Size};
pub use span::{Source, Span, Spanned};
