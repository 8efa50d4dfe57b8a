//! Putting the program together and letting it run.

use crate::{banner, control::Running, schedule};
use anyhow::{Context, bail};
use pingora::server::{RunArgs, Server, ShutdownSignal, ShutdownSignalWatch, configuration::ServerConf};
use std::{net::TcpListener, path::PathBuf, sync::Arc, time::Duration};
use weir_cache::{Engine, EngineOptions};
use weir_config::{Diagnostics, Document, LoadOptions, PluginCatalog, load_file, load_str};
use weir_gateway::{Environment, Snapshot, client::OwnClient, metrics::Metrics, upstream::Endpoints};
use weir_proxy::{live::Weir, server::{DoorKind, service}};
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
    /// Reads it; what is wrong goes to standard error.
    ///
    /// Errors: it can not be served.
    pub fn load(&self, register: &dyn PluginCatalog, options: &LoadOptions) -> Result<Document, Diagnostics> {
        let loaded = match self {
            Source::File(path) => load_file(path, register, options),
            Source::Text(name, text) => load_str(name, text, register, options),
        };
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

/// What only compiling shows, for `weir check`.
pub fn compile_check(document: &Document, found: Diagnostics) -> Diagnostics {
    let environment = environment(Store::memory(), document);
    match Snapshot::compile(document, &weir_plugins::register(), &environment) {
        Ok(_) => found,
        Err(more) => Diagnostics::new(found.into_iter().chain(more).collect()),
    }
}

fn environment(store: Store, document: &Document) -> Arc<Environment> {
    let options = EngineOptions { memory_bytes: document.server.cache_memory.0, ..EngineOptions::default() };
    Arc::new(Environment {
        cache: Engine::new(store.clone(), options),
        store,
        client: OwnClient::new(),
        metrics: Arc::new(Metrics::new()),
        endpoints: Endpoints::default(),
    })
}

/// Serves until a signal ends it. `tour`: printed once the doors are open.
pub fn run(source: Source, options: LoadOptions, tour: Option<String>) -> anyhow::Result<()> {
    logging();
    // One register for the life of the process: limits, verified tokens and the like live in it and survive reloads.
    let register = Arc::new(weir_plugins::register());
    let document = match source.load(&*register, &options) {
        Ok(document) => document,
        Err(diagnostics) => {
            show(&diagnostics);
            bail!("the configuration has errors; nothing was started");
        }
    };
    if document.edge.is_none() && document.gateway.is_none() {
        bail!("the configuration has neither an `edge` nor a `gateway` section: there is nothing to serve");
    }
    let doors = listeners(&document)?;
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
    let weir = match Weir::new(document, register.clone(), environment) {
        Ok(weir) => weir,
        Err(errors) => {
            show(&Diagnostics::new(errors));
            bail!("the configuration has errors; nothing was started");
        }
    };
    let running = Arc::new(Running { weir: weir.clone(), source, options, register });
    runtime.block_on(async {
        weir.environment.cache.start();
        let listener = tokio::net::TcpListener::bind(&admin_address).await.with_context(|| format!("admin: can not listen on {admin_address}"))?;
        tokio::spawn(weir_admin::serve(listener, running.clone(), std::future::pending()));
        tokio::spawn(schedule::run(weir.clone()));
        tokio::spawn(reload_on_hangup(running.clone()));
        anyhow::Ok(())
    })?;
    eprintln!("{}", banner::text(&weir));
    if let Some(tour) = tour {
        println!("{tour}");
    }
    serve(&weir, doors, threads, grace);
    Ok(())
}

/// The doors and their addresses. Each is tried once before anything starts, so that a taken port is a clear error.
fn listeners(document: &Document) -> anyhow::Result<Vec<(DoorKind, String)>> {
    let mut doors = Vec::new();
    if let Some(edge) = &document.edge {
        doors.push((DoorKind::Edge, edge.listen.clone()));
    }
    if let Some(gateway) = &document.gateway {
        doors.push((DoorKind::Gateway, gateway.listen.clone()));
    }
    for (kind, address) in &doors {
        TcpListener::bind(address).with_context(|| format!("{}: can not listen on {address}", kind.name()))?;
    }
    Ok(doors)
}

fn serve(weir: &Arc<Weir>, doors: Vec<(DoorKind, String)>, threads: usize, grace: Duration) {
    let conf = ServerConf {
        threads,
        // A connection stays on its thread: its upstream connections are that thread's own.
        work_stealing: false,
        grace_period_seconds: Some(grace.as_secs()),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    for (kind, address) in doors {
        server.add_service(service(weir, kind, &address));
    }
    server.run(RunArgs { shutdown_signal: Box::new(Signals { weir: weir.clone(), grace }) });
}

/// SIGTERM and SIGINT end the program when the requests under way are done, or when the grace is over.
struct Signals {
    weir: Arc<Weir>,
    grace: Duration,
}

#[async_trait::async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
            tracing::error!("signals can not be watched");
            return std::future::pending().await;
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("shutting down: no new connections; requests under way go on for at most {:?}", self.grace);
        let (weir, grace) = (self.weir.clone(), self.grace);
        // The server itself would sit out the whole grace.
        std::thread::spawn(move || {
            let begun = std::time::Instant::now();
            while begun.elapsed() < grace {
                std::thread::sleep(Duration::from_millis(50));
                if weir.environment.metrics.connections.get() <= 0 {
                    break;
                }
            }
            weir.access.flush();
            std::process::exit(0);
        });
        ShutdownSignal::GracefulTerminate
    }
}

/// SIGHUP reads the configuration again.
async fn reload_on_hangup(running: Arc<Running>) {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
    while hangup.recv().await.is_some() {
        match running.reload_now() {
            Ok(()) => tracing::info!("the new configuration is in force"),
            Err(errors) => eprintln!("{errors}\nweir: the old configuration stays in force"),
        }
    }
}

fn logging() {
    use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};
    let filter = EnvFilter::try_from_env("WEIR_LOG").unwrap_or_else(|_| EnvFilter::new("info,pingora_core=warn,pingora=warn,h2=warn"));
    // A second call (a program that embeds this) keeps the first subscriber.
    let _ = tracing_subscriber::registry().with(filter).with(fmt::layer().with_writer(std::io::stderr).with_target(false)).try_init();
}
