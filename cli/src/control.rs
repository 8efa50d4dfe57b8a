//! What the admin port may do with the running program.

use crate::{run::Source, schedule};
use serde_json::{Value, json};
use std::sync::Arc;
use weir_admin::Control;
use weir_config::LoadOptions;
use weir_gateway::Environment;
use tokio::sync::mpsc;
use weir_proxy::{live::Weir, warm::Progress};

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
}

impl Running {
    /// Reads the configuration again and puts it in force.
    ///
    /// Errors: what is wrong, in words; then the old one stays.
    pub fn reload_now(&self) -> Result<(), String> {
        let document = self.source.load(&*self.register, &self.options).map_err(|d| {
            self.weir.environment.metrics.reload(false);
            d.to_string()
        })?;
        self.weir.reload(document).map_err(|errors| weir_config::Diagnostics::new(errors).to_string())
    }
}

#[async_trait::async_trait]
impl Control for Running {
    fn environment(&self) -> &Arc<Environment> {
        &self.weir.environment
    }

    fn token(&self) -> Option<String> {
        self.weir.live.load().document.admin.token.as_ref().map(|t| t.expose().to_string())
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

    async fn purge(&self, what: &str) -> Result<u64, String> {
        let live = self.weir.live.load_full();
        let cache = &self.weir.environment.cache;
        let mut count = 0;
        if what.starts_with("http://") || what.starts_with("https://") {
            let uri: http::Uri = what.parse().map_err(|_| format!("`{what}` is not a URL"))?;
            let host = uri.authority().map(|a| a.as_str().to_string()).ok_or("the URL has no host")?;
            let edge = live.edge.as_ref().ok_or("there is no edge section: purge by `key`")?;
            // One page under both schemes: a purge means the page, not the way to it.
            for https in [false, true] {
                let plan = edge.pages.plan(https, &host, &uri).ok_or_else(|| format!("no page rule caches {}", uri.path()))?;
                count += u64::from(cache.purge_key(&plan.plan.epoch, &plan.plan.key).await);
            }
            return Ok(count);
        }
        let pages = live.edge.iter().flat_map(|e| e.pages.epochs()).map(|e| e.to_string());
        let routes = live.snapshot.routes.iter().map(|r| weir_plugins::cache_epoch(&r.name));
        for epoch in pages.chain(routes) {
            count += u64::from(cache.purge_key(&epoch, what).await);
        }
        Ok(count)
    }

    async fn warm_up(&self) -> Result<mpsc::Receiver<Value>, String> {
        let config = self.weir.live.load().document.warm_up.clone().ok_or("there is no warm_up section")?;
        let lease = schedule::begin(&self.weir).await.ok_or("another warm-up is under way")?;
        let (lines, receiver) = mpsc::channel(64);
        let weir = self.weir.clone();
        tokio::spawn(async move {
            // A caller that reads slowly (or left) does not hold the round up: it then misses lines.
            let report = schedule::round(&weir, &config, lease, |news| {
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

    async fn reload(&self) -> Result<(), String> {
        self.reload_now()
    }
}
