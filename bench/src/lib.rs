//! Benchmarks: criterion ones in `benches/`; `cargo bench -p weir-bench` runs them.
