//! `weir demo`: a shop of stub services with Weir before it, in one process.

use crate::run::{Source, run};
use anyhow::Context;
use std::net::{IpAddr, Ipv4Addr};
use upstream_stubs::{AllOptions, start_all};
use weir_config::{Env, LoadOptions};

const CONFIG: &str = include_str!("../../config/examples/demo.yaml");

/// Arguments of `weir demo`.
#[derive(clap::Args)]
pub struct Demo {
    /// `memory`, or a Redis URL such as redis://127.0.0.1:6379/0.
    #[arg(long, value_name = "URL", default_value = "memory")]
    store: String,
}

/// Starts the stubs; they run for as long as the runtime lives.
fn run_stubs() -> anyhow::Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("stubs").enable_all().build()?;
    let options = AllOptions { ip: IpAddr::V4(Ipv4Addr::LOCALHOST), ..AllOptions::default() };
    let stubs = runtime.block_on(start_all(options)).context("the stub services need the ports 3000, 3001, 4000, 5000, 5001, 5002 and 5003 on 127.0.0.1")?;
    println!("Stub services:");
    for stub in stubs.iter() {
        println!("  {:<12}{}", stub.kind().name(), stub.url());
    }
    runtime.spawn(async move {
        let _running = stubs;
        std::future::pending::<()>().await
    });
    Ok(runtime)
}

/// The whole demo.
pub fn demo(demo: Demo) -> anyhow::Result<()> {
    let _stubs = run_stubs()?;
    let mut variables: Vec<(String, String)> = std::env::vars().collect();
    variables.push(("WEIR_STORE".into(), demo.store));
    let options = LoadOptions::default().with_env(Env::from_iter(variables));
    run(Source::Text("demo.yaml", CONFIG.to_string()), options, Some(TOUR.to_string()))
}

const TOUR: &str = r#"
Try it (each line as it is; `jq` is not needed):

  a page, twice: MISS, then HIT (a guest cookie comes with it; `/` and `/categories` are warm already)
    curl -si http://localhost:9000/categories/shoes | grep -iE '^(HTTP|x-cache|cache-status|set-cookie)'
    curl -si http://localhost:9000/categories/shoes | grep -iE '^(HTTP|x-cache|cache-status|set-cookie)'

  the same page as a React Server Components request: BYPASS, byte for byte
    curl -si -H 'RSC: 1' 'http://localhost:9000/categories?_rsc=abc' | head -20

  a login, and the members API with and without the token
    TOKEN=$(curl -s -u alice:wonderland -X POST http://localhost:9000/api/auth/login | sed -E 's/.*"access_token": ?"([^"]+)".*/\1/')
    curl -si http://localhost:8000/api/members
    curl -si -H "Authorization: Bearer $TOKEN" http://localhost:8000/api/members

  one order, sent twice: the second answer is a replay
    curl -si -X POST -H 'Idempotency-Key: order-1' -H 'Content-Type: application/json' -d '{"items":[{"product_id":1}]}' http://localhost:8000/api/orders
    curl -si -X POST -H 'Idempotency-Key: order-1' -H 'Content-Type: application/json' -d '{"items":[{"product_id":1}]}' http://localhost:8000/api/orders
    curl -s http://localhost:5003/_stub/ledger

  a refresh: ignored without the warm-up token, done with it
    curl -si -H 'X-Cache-Refresh: true' http://localhost:8000/api/home | grep -i x-cache-status
    curl -si -H 'X-Cache-Refresh: true' -H 'X-Warmup-Token: demo-warm-up-token' http://localhost:8000/api/home | grep -i x-cache-status

  what was counted
    curl -s http://localhost:9090/metrics | grep ^weir_
    curl -s http://localhost:9090/ready

End it with Ctrl-C.
"#;
