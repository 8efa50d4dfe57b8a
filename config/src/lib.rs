//! YAML in, typed document out. Every mistake is reported with file, line, column, the line itself and the nearest valid word;
//! all mistakes of a file are reported in one run.
//!
//! The way of a file: text ─► [`Node`] tree (every value knows its place; `${NAME}` expanded) ─► [`Document`] (typed; Kong's
//! entities flattened and their references resolved) ─► the gateway's `Snapshot::compile`.

pub mod document;

pub use document::*;
