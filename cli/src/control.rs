//! What the admin port may do with the running program.

use crate::{run::Source, schedule, watch::Watched};
use serde_json::{Value, json};
use parking_lot::Mutex;
use std::sync::Arc;
use http::StatusCode;
use weir_admin::{Control, LogOutOrder, PurgeOrder};
use weir_cache::Purge;
use weir_config::{Diagnostic, Diagnostics, Document, LoadOptions, Span};
use weir_gateway::Environment;
use weir_plugins::LogOut;
use tokio::sync::mpsc;
use weir_proxy::{listen::{Bound, Listeners}, live::Weir, purging, warm::Progress};

/// The running program and where its configuration came from.
pub struct Running {
    /// The program.
    pub weir: Arc<Weir>,
    /// Its configuration.
    pub source: Source,
    /// How it is read.
    pub options: LoadOptions,
    /// The plugins.
    pub register: Arc<weir_plugins::Plugins>,
    /// The doors' addresses.
    pub listeners: Listeners,
    /// The files that the configuration was read from.
    pub watched: Watched,
    /// Reloads come one after the other. In it: why the last one was refused.
    pub last: Mutex<Option<String>>,
}

impl Running {
    /// Reads the configuration again and puts it in force. `cause`: for the log.
    ///
    /// Errors: what is wrong, in words; then the old one stays.
    pub fn reload_now(&self, cause: &str) -> Result<(), String> {
        let mut last = self.last.lock();
        let outcome = self.reload_once();
        match &outcome {
            Ok(()) => tracing::info!(cause, "the new configuration is in force"),
            Err(errors) => eprintln!("{errors}\nweir: the old configuration stays in force ({cause})"),
        }
        *last = outcome.clone().err();
        outcome
    }

    fn reload_once(&self) -> Result<(), String> {
        let document = self.source.load(&*self.register, &self.options, &self.watched).map_err(|d| {
            self.weir.environment.metrics.reload(false);
            d.to_string()
        })?;
        let mut bound = Bound::default();
        let old = self.weir.live.load_full();
        let ready = |live: &weir_proxy::live::Live| {
            bound = self.listeners.bind(&live.document).map_err(|why| vec![Diagnostic::error("listen", &Span::default(), why)])?;
            Ok::<(), Vec<Diagnostic>>(())
        };
        self.weir.reload(document, ready).map_err(|errors| Diagnostics::new(errors).to_string())?;
        let new = self.weir.live.load_full();
        self.listeners.serve(bound, &new.document);
        for what in needs_restart(&old.document, &new.document) {
            tracing::warn!("{what} changed: that counts after a restart");
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl Control for Running {
    fn environment(&self) -> &Arc<Environment> {
        &self.weir.environment
    }

    fn token_fits(&self, shown: &[u8]) -> Option<bool> {
        self.weir.live.load().document.admin.token.as_ref().filter(|token| !token.is_empty()).map(|token| token.matches(shown))
    }

    fn describe(&self) -> Value {
        let live = self.weir.live.load();
        let routes: Vec<Value> = live
            .snapshot
            .routes
            .iter()
            .map(|r| json!({ "name": r.name, "paths": r.paths, "methods": r.methods, "service": r.service.as_ref().map(|s| &s.name), "plugins": r.chains.base.names() }))
            .collect();
        let pages: Vec<&str> = live.edge.iter().flat_map(|e| e.pages.rules()).map(|r| r.path.as_str()).collect();
        json!({
            "edge": live.document.edge.as_ref().map(|e| &e.listen),
            "gateway": live.document.gateway.as_ref().map(|g| &g.listen),
            "routes": routes,
            "pages": pages,
        })
    }

    async fn purge(&self, order: PurgeOrder) -> Result<Value, String> {
        let live = self.weir.live.load_full();
        let mut what = Vec::new();
        if let Some(url) = &order.url {
            what.push(purging::page_by_url(&live, url)?);
        }
        if let Some(key) = &order.key {
            let pages = live.edge.iter().flat_map(|e| e.pages.epochs()).map(|e| e.to_string());
            let routes = live.snapshot.routes.iter().map(|r| weir_plugins::cache_epoch(&r.name));
            what.push(pages.chain(routes).map(|epoch| Purge::Key { epoch, key: key.clone() }).collect());
        }
        what.extend(order.prefix.as_deref().map(|text| vec![purging::prefix(text)]));
        what.extend(order.host.clone().map(|host| vec![Purge::Host { host }]));
        what.extend(order.tag.clone().map(|tag| vec![Purge::Tag { tag }]));
        what.extend(order.all.then(|| vec![Purge::All]));
        let [what] = what.as_slice() else { return Err("name one of `url`, `key`, `prefix`, `host`, `tag` and `all`".into()) };
        let report = purging::carry_out(&self.weir, what, order.soft, order.warm).await;
        serde_json::to_value(&report).map_err(|e| e.to_string())
    }

    async fn warm_up(&self) -> Result<mpsc::Receiver<Value>, String> {
        let config = self.weir.live.load().document.warm_up.clone().ok_or("there is no warm_up section")?;
        let lease = schedule::begin(&self.weir).await.ok_or("another warm-up is under way")?;
        let (lines, receiver) = mpsc::channel(64);
        let weir = self.weir.clone();
        tokio::spawn(async move {
            // A caller that reads slowly (or left) does not hold the round up: it then misses lines.
            let report = schedule::round(&weir, &config, lease, schedule::next(&config).mul_f64(0.8), |news| {
                let _ = lines.try_send(match news {
                    Progress::Targets(count) => json!({ "targets": count }),
                    Progress::Done(w) => json!({
                        "target": w.target, "ok": w.is_ok(), "status": w.result.as_ref().ok(), "error": w.result.as_ref().err(),
                        "cache": w.verdict, "ms": w.took.as_millis() as u64,
                    }),
                });
            })
            .await;
            let warmed = report.iter().filter(|w| w.is_ok()).count();
            let _ = lines.send(json!({ "warmed": warmed, "failed": report.len() - warmed })).await;
        });
        Ok(receiver)
    }

    async fn log_out(&self, order: LogOutOrder) -> Result<(), (StatusCode, String)> {
        let what = match (&order.token, &order.jti, &order.sha256) {
            (Some(token), None, None) => LogOut::Token(token),
            (None, Some(jti), None) => LogOut::Jti(jti),
            (None, None, Some(hash)) if hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => LogOut::Sha256(hash),
            (None, None, Some(_)) => return Err((StatusCode::BAD_REQUEST, "`sha256` is 64 hex digits".into())),
            _ => return Err((StatusCode::BAD_REQUEST, "name one of `token`, `jti` and `sha256`".into())),
        };
        let done = self.register.log_out(&self.weir.environment.store, order.channel.as_deref().unwrap_or("logout"), what).await;
        done.map_err(|error| (StatusCode::SERVICE_UNAVAILABLE, format!("the token is logged out on this instance only: {error}")))
    }

    async fn reload(&self) -> Result<(), String> {
        self.reload_now("admin call")
    }

    fn refused_reload(&self) -> Option<String> {
        self.last.lock().clone()
    }
}

/// What a reload can not change.
fn needs_restart(old: &Document, new: &Document) -> Vec<&'static str> {
    let differs = [
        ("`store`", old.store.url.expose() != new.store.url.expose() || old.store.prefix != new.store.prefix),
        ("`admin.listen`", old.admin.listen != new.admin.listen),
        ("`server.threads`", old.server.threads != new.server.threads),
        ("`server.cache_memory`", old.server.cache_memory != new.server.cache_memory),
        ("`server.access_log`", old.server.access_log != new.server.access_log),
        ("`server.watch`", old.server.watch != new.server.watch),
    ];
    differs.into_iter().filter(|(_, differs)| *differs).map(|(what, _)| what).collect()
}
