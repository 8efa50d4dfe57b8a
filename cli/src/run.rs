//! Putting the program together and letting it run.

use crate::{banner, control::Running, schedule, watch::{self, Watched}};
use anyhow::{Context, bail};
use std::{path::PathBuf, sync::Arc, time::Duration};
use weir_cache::{Engine, EngineOptions};
use weir_config::{Diagnostics, Document, LoadOptions, Loaded, PluginCatalog, load_file, load_str};
use weir_gateway::{Environment, client::OwnClient, metrics::Metrics, upstream::Endpoints};
use weir_proxy::{listen::Listeners, live::{Live, Weir}};
use weir_store::{Store, StoreOptions};

/// Where the configuration comes from.
#[derive(Clone)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// A text that the program carries itself, with its name.
    Text(&'static str, String),
}

impl Source {
    /// Reads it; what is wrong goes to standard error. `watched` learns which files were read.
    ///
    /// Errors: it can not be served.
    pub fn load(&self, register: &dyn PluginCatalog, options: &LoadOptions, watched: &Watched) -> Result<Document, Diagnostics> {
        watched.begin();
        let loaded = match self {
            Source::File(path) => load_file(path, register, options),
            Source::Text(name, text) => load_str(name, text, register, options),
        };
        watched.read(&loaded.files);
        match loaded.document {
            Some(document) if !loaded.diagnostics.has_errors() => {
                show(&loaded.diagnostics);
                Ok(document)
            }
            _ => Err(loaded.diagnostics),
        }
    }
}

/// Findings on standard error, each on lines of its own.
fn show(diagnostics: &Diagnostics) {
    if !diagnostics.is_empty() {
        eprintln!("{diagnostics}");
    }
}

/// Everything that is wrong with a configuration, for `weir check`: also what only compiling shows, of what can be compiled.
pub fn everything_found(loaded: Loaded) -> Diagnostics {
    let compile = |document: Document| {
        let environment = environment(Store::memory(), &document);
        Live::compile(document, &weir_plugins::register(), &environment).err().unwrap_or_default()
    };
    let more: Vec<_> = match (loaded.document, loaded.rest) {
        (Some(document), _) => compile(document),
        (None, Some(rest)) => rest.own(compile(rest.document.clone())).collect(),
        (None, None) => vec![],
    };
    Diagnostics::new(loaded.diagnostics.into_iter().chain(more).collect())
}

fn environment(store: Store, document: &Document) -> Arc<Environment> {
    let options = EngineOptions {
        memory_bytes: document.server.cache_memory.0,
        store_zstd: document.store.compress,
        trust: document.store.trust_memory.get(),
        ..EngineOptions::default()
    };
    let endpoints = Endpoints::default();
    Arc::new(Environment {
        cache: Engine::new(store.clone(), options),
        store,
        client: OwnClient::new(endpoints.dns()),
        metrics: Arc::new(Metrics::new()),
        endpoints,
        resilience: Default::default(),
    })
}

/// Serves until a signal ends it. `tour`: printed once the doors are open.
pub fn run(source: Source, options: LoadOptions, tour: Option<String>) -> anyhow::Result<()> {
    logging();
    // One register for the life of the process: limits, verified tokens and the like live in it and survive reloads.
    let register = Arc::new(weir_plugins::register());
    let watched = Watched::default();
    let document = match source.load(&*register, &options, &watched) {
        Ok(document) => document,
        Err(diagnostics) => {
            show(&diagnostics);
            bail!("the configuration has errors; nothing was started");
        }
    };
    if document.edge.is_none() && document.gateway.is_none() {
        bail!("the configuration has neither an `edge` nor a `gateway` section: there is nothing to serve");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("weir-core").enable_all().build()?;
    let grace = document.server.grace.get();
    let threads = match document.server.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let store_options = StoreOptions {
        prefix: document.store.prefix.clone(),
        deadline: document.store.deadline.get(),
        replicas: document.store.replicas.iter().map(|url| url.expose().to_string()).collect(),
        ..StoreOptions::default()
    };
    let store = runtime.block_on(Store::open(document.store.url.expose(), &store_options)).context("store")?;
    let environment = environment(store, &document);
    let admin_address = document.admin.listen.clone();
    let watch = document.server.watch;
    let weir = match Weir::new(document, register.clone(), environment) {
        Ok(weir) => weir,
        Err(errors) => {
            show(&Diagnostics::new(errors));
            bail!("the configuration has errors; nothing was started");
        }
    };
    let listeners = Listeners::new(&weir, threads).context("threads")?;
    let document = weir.live.load_full();
    let bound = listeners.bind(&document.document).map_err(|why| anyhow::anyhow!(why))?;
    let running = Arc::new(Running { weir: weir.clone(), source, options, register, listeners, watched, last: Default::default() });
    runtime.block_on(async {
        weir.environment.cache.start();
        weir.environment.endpoints.watch();
        let listener = tokio::net::TcpListener::bind(&admin_address).await.with_context(|| format!("admin: can not listen on {admin_address}"))?;
        tokio::spawn(weir_admin::serve(listener, running.clone(), std::future::pending()));
        tokio::spawn(schedule::run(weir.clone()));
        tokio::spawn(reload_on_hangup(running.clone()));
        if watch {
            tokio::spawn(watch::run(running.clone()));
        }
        anyhow::Ok(())
    })?;
    running.listeners.serve(bound, &document.document);
    eprintln!("{}", banner::text(&weir));
    if let Some(tour) = tour {
        println!("{tour}");
    }
    runtime.block_on(until_told_to_end(grace))?;
    running.listeners.close();
    // Connections end after the request that they are at; a tunnel or a stream without an end is cut off when the grace is over.
    let begun = std::time::Instant::now();
    while begun.elapsed() < grace && weir.environment.metrics.connections.get() > 0 {
        std::thread::sleep(Duration::from_millis(20));
    }
    weir.access.flush();
    std::process::exit(0);
}

/// Waits for SIGTERM or SIGINT.
async fn until_told_to_end(grace: Duration) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("shutting down: no new connections; requests under way go on for at most {grace:?}");
    Ok(())
}

/// SIGHUP reads the configuration again.
async fn reload_on_hangup(running: Arc<Running>) {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
    while hangup.recv().await.is_some() {
        // What is wrong was told.
        let _ = running.reload_now("SIGHUP");
    }
}

fn logging() {
    use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};
    let filter = EnvFilter::try_from_env("WEIR_LOG").unwrap_or_else(|_| EnvFilter::new("info,pingora_core=warn,pingora=warn,h2=warn"));
    // A second call (a program that embeds this) keeps the first subscriber.
    let _ = tracing_subscriber::registry().with(filter).with(fmt::layer().with_writer(std::io::stderr).with_target(false)).try_init();
}
