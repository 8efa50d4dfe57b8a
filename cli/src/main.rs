//! `weir`: the one program. Everything is put together here and nowhere else.

mod banner;
mod control;
mod demo;
mod remote;
mod run;
mod schedule;
mod watch;

use clap::{Parser, Subcommand};
use std::{path::PathBuf, process::ExitCode};
use weir_config::{Diagnostics, LoadOptions, Severity, load_file};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// An edge cache for pages and a gateway for APIs, in one program.
#[derive(Parser)]
#[command(name = "weir", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve what a configuration says. Weir's own files and Kong's declarative files are both understood.
    Run {
        /// The configuration.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// Leave plugins out that Weir does not have. Such a plugin may be the one that keeps people out: read the warnings.
        #[arg(long)]
        ignore_unknown_plugins: bool,
    },
    /// Read a configuration and tell everything that is wrong with it. Exit status 0: it can be served; 1: it can not.
    Check {
        /// The configuration.
        file: PathBuf,
        /// Report unknown plugins as warnings.
        #[arg(long)]
        ignore_unknown_plugins: bool,
        /// The findings as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Have a running Weir warm everything up now, and watch it.
    WarmUp {
        #[command(flatten)]
        remote: remote::Remote,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Have a running Weir remove something from the cache of every instance.
    Purge {
        #[command(flatten)]
        remote: remote::Remote,
        #[command(flatten)]
        what: remote::What,
        /// Mark stale instead of removing: still good while a new one is fetched, or when the origin fails.
        #[arg(long)]
        soft: bool,
        /// Ask for the purged pages again at once.
        #[arg(long)]
        warm: bool,
        /// The report as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Serve a small shop with stub services behind it: nothing else is needed.
    Demo(demo::Demo),
}

/// Memory comes in small pages. A huge one is zeroed whole when it is first touched, which a crowd of new connections would have to wait for, and
/// is held whole however little of it is used.
fn without_huge_pages() {
    // Where it can not be had, it costs no more than that.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

fn main() -> ExitCode {
    without_huge_pages();
    let result = match Arguments::parse().command {
        Command::Run { config, ignore_unknown_plugins } => run::run(run::Source::File(config), LoadOptions { ignore_unknown_plugins, ..LoadOptions::default() }, None),
        Command::Check { file, ignore_unknown_plugins, json } => return check(file, ignore_unknown_plugins, json),
        Command::Purge { remote, what, soft, warm, json } => remote::purge(&remote, &what, soft, warm, json),
        Command::WarmUp { remote, json } => remote::warm_up(&remote, json),
        Command::Demo(demo) => demo::demo(demo),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weir: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check(file: PathBuf, ignore_unknown_plugins: bool, json: bool) -> ExitCode {
    let options = LoadOptions { ignore_unknown_plugins, ..LoadOptions::default() };
    let loaded = load_file(&file, &weir_plugins::register(), &options);
    let document = loaded.document.clone();
    let diagnostics = run::everything_found(loaded);
    if json {
        println!("{:#}", diagnostics.to_json());
    } else {
        if !diagnostics.is_empty() {
            println!("{diagnostics}");
        }
        println!("{}", summary(&file, document.as_ref(), &diagnostics));
    }
    if diagnostics.has_errors() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn summary(file: &std::path::Path, document: Option<&weir_config::Document>, diagnostics: &Diagnostics) -> String {
    let counts = |severity, one: &str, many: &str| {
        let n = diagnostics.count(severity);
        format!("{n} {}", if n == 1 { one } else { many })
    };
    let found = format!("{}, {}", counts(Severity::Error, "error", "errors"), counts(Severity::Warning, "warning", "warnings"));
    match document {
        Some(document) if !diagnostics.has_errors() => {
            let gateway = document.gateway.as_ref();
            format!(
                "{}: ok: {} services, {} routes, {} plugins, {} page rules; {found}",
                file.display(),
                gateway.map_or(0, |g| g.services.len()),
                gateway.map_or(0, |g| g.routes.len()),
                gateway.map_or(0, |g| g.plugins.len()),
                document.edge.as_ref().map_or(0, |e| e.pages.len()),
            )
        }
        _ => format!("{}: {found}", file.display()),
    }
}
