//! The router against cases written as data (`router_cases.yaml`) and against a slow, obvious router (`router/reference.rs`).

#[path = "router/cases.rs"]
mod cases;
#[path = "router/property.rs"]
mod property;
#[path = "router/reference.rs"]
mod reference;
#[path = "router/support.rs"]
mod support;
