//! `upstream-stubs`: the stub services as a process of their own.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use upstream_stubs::{AllOptions, Kind, Options, Running, Secret, start, start_all};

/// Services to put behind Weir: they behave, and they misbehave on request.
///
/// A single request goes wrong by its headers: x-stub-latency: 500ms, x-stub-status: 503,
/// x-stub-fault: close|truncate|stall|hang|reset|garbage, x-stub-body-size: 100000, x-stub-header-NAME: VALUE.
/// POST /_stub/faults does the same for all requests under a path; GET /_stub/stats shows the counters.
#[derive(Debug, Parser)]
#[command(name = "upstream-stubs", version)]
struct Args {
    /// The service to start.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    service: Option<Kind>,

    /// Start every service (not the replay), each on its own port.
    #[arg(long)]
    all: bool,

    /// Where one service listens [default: 127.0.0.1 and the service's own port].
    #[arg(long, conflicts_with = "all")]
    listen: Option<SocketAddr>,

    /// With --all: the address on which they listen.
    #[arg(long, conflicts_with = "service", default_value = "127.0.0.1")]
    ip: IpAddr,

    /// With --all: take free ports in place of the default ones.
    #[arg(long, conflicts_with = "service")]
    free_ports: bool,

    /// Start with /health failing.
    #[arg(long)]
    unhealthy: bool,

    /// How many requests are remembered for /_stub/requests; 0 when measuring.
    #[arg(long, default_value_t = 256)]
    remember: usize,

    /// storefront: how long rendering a page takes, in milliseconds.
    #[arg(long, default_value_t = 0)]
    render_ms: u64,

    /// storefront: time between the pieces of a streamed page, in milliseconds.
    #[arg(long, default_value_t = 25)]
    piece_ms: u64,

    /// storefront: keep rendered pages so many seconds, as Next.js does, in place of rendering at each request.
    #[arg(long)]
    isr_window: Option<u64>,

    /// storefront: redirect RSC requests whose _rsc is wrong or missing, as Next.js 16 does.
    #[arg(long)]
    rsc_redirect: bool,

    /// storefront: the build id in the URLs under /_next.
    #[arg(long, default_value = "demo-build-1")]
    build_id: String,

    /// auth: the key with which tokens are signed.
    #[arg(long, env = "JWT_SECRET", hide_env_values = true)]
    jwt_secret: Option<String>,

    /// bff: where products are.
    #[arg(long, default_value = "http://127.0.0.1:5001")]
    products: String,

    /// bff: where deals are.
    #[arg(long, default_value = "http://127.0.0.1:5002")]
    deals: String,

    /// replay: the recording, one JSON object a line.
    #[arg(long, required_if_eq("service", "replay"))]
    recording: Option<PathBuf>,
}

impl Args {
    fn options(&self) -> Options {
        let mut options = Options {
            healthy: !self.unhealthy,
            remember: self.remember,
            render_time: Duration::from_millis(self.render_ms),
            piece_delay: Duration::from_millis(self.piece_ms),
            isr_window: self.isr_window.map(Duration::from_secs),
            rsc_redirect: self.rsc_redirect,
            build_id: self.build_id.clone(),
            products_url: self.products.clone(),
            deals_url: self.deals.clone(),
            recording: self.recording.clone(),
            ..Options::default()
        };
        if let Some(secret) = &self.jwt_secret {
            options.auth.secret = Secret::from(secret.as_str());
        }
        options
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("upstream-stubs: {e}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> std::io::Result<()> {
    let options = args.options();
    if args.all {
        let all = start_all(AllOptions {
            ip: args.ip,
            ephemeral: args.free_ports,
            options,
        })
        .await?;
        all.iter().for_each(say);
        return stopped().await;
    }
    // clap has made sure that there is one.
    let kind = args.service.unwrap_or(Kind::Storefront);
    let addr = args
        .listen
        .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], kind.default_port())));
    let running = start(kind, addr, options).await?;
    say(&running);
    stopped().await
}

fn say(running: &Running) {
    println!("{:<10} http://{}", running.kind().name(), running.addr());
}

/// Waits for Ctrl-C or SIGTERM.
async fn stopped() -> std::io::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        done = tokio::signal::ctrl_c() => done,
        _ = terminate.recv() => Ok(()),
    }
}
