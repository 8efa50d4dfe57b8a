//! Commands that ask a running Weir, by its admin port.

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::io::{IsTerminal, Write};

/// Where the running Weir is.
#[derive(clap::Args)]
pub struct Remote {
    /// Address of the admin port.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9090")]
    admin: String,
    /// Admin token.
    #[arg(long, env = "ADMIN_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
}

impl Remote {
    /// Makes a call and hands every line of the answer to `line` as it arrives.
    ///
    /// Errors: no connection, or an answer that is no success, with its message.
    pub fn call(&self, path: &str, body: &Value, mut line: impl FnMut(&Value)) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let address = self.admin.trim_start_matches("http://").trim_end_matches('/');
            let stream = tokio::net::TcpStream::connect(address).await.with_context(|| format!("no Weir answers at {address}"))?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            let mut request = Request::builder().method(Method::POST).uri(path).header(header::HOST, address).header(header::CONTENT_TYPE, "application/json");
            if let Some(token) = self.token.as_deref().filter(|t| !t.is_empty()) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            let mut answer = sender.send_request(request.body(Full::new(Bytes::from(body.to_string())))?).await?;
            let status = answer.status();
            let mut text = Vec::new();
            while let Some(frame) = answer.body_mut().frame().await {
                let Ok(data) = frame?.into_data() else { continue };
                text.extend_from_slice(&data);
                let by_line = status == StatusCode::OK && answer.headers().get(header::CONTENT_TYPE).is_some_and(|t| t == "application/x-ndjson");
                while let Some(end) = text.iter().position(|b| *b == b'\n').filter(|_| by_line) {
                    let one: Vec<u8> = text.drain(..=end).collect();
                    line(&serde_json::from_slice(&one)?);
                }
            }
            if !status.is_success() {
                let value: Value = serde_json::from_slice(&text).unwrap_or_default();
                bail!("{}: {}", status.as_u16(), value["message"].as_str().unwrap_or("the call was refused"));
            }
            if !text.is_empty() {
                line(&serde_json::from_slice(&text)?);
            }
            Ok(())
        })
    }
}

/// Failures that are told once more at the end.
const TOLD_AGAIN: usize = 20;

/// `weir warm-up`: on a terminal one line that shows how far it is, and the failures; elsewhere a line a target. Then the sums. An error if any
/// target failed, with the first of them.
pub fn warm_up(remote: &Remote, json: bool) -> anyhow::Result<()> {
    let (mut total, mut done) = (0, 0);
    let mut failed: Vec<String> = Vec::new();
    let live = !json && std::io::stdout().is_terminal();
    let began = std::time::Instant::now();
    remote.call("/warm-up", &Value::Null, |line| {
        if json {
            println!("{line}");
        }
        if let Some(targets) = line["targets"].as_u64() {
            total = targets;
        } else if let Some(target) = line["target"].as_str() {
            done += 1;
            let ok = line["ok"] == true;
            let result = match (line["status"].as_u64(), line["error"].as_str()) {
                (Some(status), _) => status.to_string(),
                (None, error) => error.unwrap_or("failed").to_string(),
            };
            if !ok {
                failed.push(format!("{target}: {result}"));
            }
            if !json && !(live && ok) {
                let mark = if ok { " " } else { "!" };
                let clear = if live { "\r\x1b[K" } else { "" };
                println!("{clear}{mark} [{done}/{total}] {result} {:<8}{:>6} ms  {target}", line["cache"].as_str().unwrap_or("-"), line["ms"]);
            }
            if live {
                let rate = f64::from(done) / began.elapsed().as_secs_f64().max(0.001);
                print!("\r\x1b[K{done} of {total} asked for, {} failed, {rate:.0} a second", failed.len());
                let _ = std::io::stdout().flush();
            }
        }
    })?;
    if live {
        println!();
    }
    if !failed.is_empty() {
        let more = failed.len().saturating_sub(TOLD_AGAIN);
        let mut text = format!("{} of {total} targets failed", failed.len());
        for one in failed.iter().take(TOLD_AGAIN) {
            text.push_str("\n  ");
            text.push_str(one);
        }
        if more > 0 {
            text.push_str(&format!("\n  and {more} more"));
        }
        bail!(text);
    }
    if !json {
        println!("{total} targets are warm");
    }
    Ok(())
}

/// What to purge.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub struct What {
    /// A page: https://host/path?query.
    #[arg(long)]
    url: Option<String>,
    /// A key as X-Cache-Key shows it.
    #[arg(long)]
    key: Option<String>,
    /// Every page whose host/path begins so; /path: on all hosts.
    #[arg(long)]
    prefix: Option<String>,
    /// Every page of a host.
    #[arg(long)]
    host: Option<String>,
    /// Everything with this tag.
    #[arg(long)]
    tag: Option<String>,
    /// Everything.
    #[arg(long)]
    all: bool,
}

/// `weir purge`.
pub fn purge(remote: &Remote, what: &What, soft: bool, warm: bool, json: bool) -> anyhow::Result<()> {
    let order = serde_json::json!({
        "url": what.url, "key": what.key, "prefix": what.prefix, "host": what.host, "tag": what.tag, "all": what.all, "soft": soft, "warm": warm,
    });
    let mut reached = true;
    remote.call("/purge", &order, |report| {
        reached = report["store_reached"] == true && report["others_told"] == true;
        if json {
            println!("{report:#}");
        } else {
            let entries = if report["entries"] == 1 { "entry" } else { "entries" };
            println!("{} {entries} {}", report["entries"], if soft { "marked stale" } else { "removed" });
        }
    })?;
    if !reached {
        bail!("the store was away: other instances may keep what they have until it is back; purge again then");
    }
    Ok(())
}
