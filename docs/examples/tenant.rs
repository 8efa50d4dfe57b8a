//! `tenant`: which of our tenants a request is for.

use crate::{Configured, Live, header_name, wrong};
use http::{HeaderName, HeaderValue, StatusCode, request, response};
use schemars::JsonSchema;
use serde::Deserialize;
use std::{collections::BTreeSet, sync::Arc};
use weir_config::{Diagnostic, Node};
use weir_gateway::{BuildEnv, Environment, Flow, Phases, Plugin, Reply, RequestContext};

/// Reads the tenant from the first part of the host name (`acme.shop.example` is for `acme`) and tells it to the upstream in a header, which
/// clients can not set themselves. Requests for tenants that are not known are answered with 404.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The tenants, lower case.
    #[schemars(length(min = 1))]
    pub tenants: Vec<String>,
    /// The header for the upstream.
    #[serde(default = "default_header")]
    pub header: String,
    /// Tell the client too.
    #[serde(default)]
    pub echo: bool,
}

fn default_header() -> String {
    "X-Tenant".into()
}

impl Configured for Config {
    const NAME: &'static str = "tenant";
    const PRIORITY: i32 = 1500;
    const EXAMPLE: &'static str = "tenants: [acme, globex]\necho: true\n";

    type Ready = Rules;

    fn ready(self, at: &Node) -> Result<Rules, Vec<Diagnostic>> {
        let header = header_name(at, "header", &self.header).map_err(|error| vec![error])?;
        if let Some(tenant) = self.tenants.iter().find(|t| HeaderValue::from_str(t).is_err() || t.to_lowercase() != **t) {
            return Err(vec![wrong(at, "tenants", format!("`{}` is not a tenant's name in lower case", tenant.escape_debug()))]);
        }
        Ok(Rules { tenants: self.tenants.into_iter().collect(), header, echo: self.echo })
    }

    fn build(ready: Rules, env: &BuildEnv<'_>, _: &Live) -> Arc<dyn Plugin> {
        Arc::new(TenantOfHost { rules: ready, environment: env.environment.clone() })
    }
}

/// The configuration, checked.
pub struct Rules {
    tenants: BTreeSet<String>,
    header: HeaderName,
    echo: bool,
}

struct TenantOfHost {
    rules: Rules,
    environment: Arc<Environment>,
}

/// What the request step leaves for the response step.
#[derive(Clone)]
struct Tenant(HeaderValue);

impl Plugin for TenantOfHost {
    fn phases(&self) -> Phases {
        match self.rules.echo {
            true => Phases::REQUEST | Phases::RESPONSE,
            false => Phases::REQUEST,
        }
    }

    fn request(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        let name = cx.client.host.split('.').next().unwrap_or_default();
        let known = self.rules.tenants.get(name).and_then(|name| HeaderValue::from_str(name).ok());
        self.environment.metrics.plugin("tenant", if known.is_some() { "known" } else { "unknown" });
        let Some(value) = known else {
            return Flow::Reply(Reply::message("tenant", StatusCode::NOT_FOUND, "There is no such shop"));
        };
        // Insert, not append: what the client sent under this name is gone.
        req.headers.insert(&self.rules.header, value.clone());
        cx.state.insert(Tenant(value));
        Flow::Continue
    }

    fn response(&self, cx: &mut RequestContext, res: &mut response::Parts) {
        if let Some(Tenant(value)) = cx.state.get() {
            res.headers.insert(&self.rules.header, value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Rig, errors, get};

    #[tokio::test]
    async fn the_upstream_learns_the_tenant_whatever_the_client_says() {
        let rig = Rig::new(&[("tenant", "tenants: [api]\necho: true")]);
        let seen = rig.run(get("/").with("x-tenant", "globex")).await;
        assert_eq!(seen.sent_all("x-tenant"), ["api"]);
        assert_eq!(seen.header("x-tenant"), Some("api"));
        assert_eq!(rig.outcome("tenant", "known"), 1);
    }

    #[tokio::test]
    async fn strangers_are_not_served() {
        let seen = Rig::new(&[("tenant", "tenants: [acme]")]).run(get("/")).await;
        assert_eq!((seen.status(), seen.forwarded()), (404, false));
        assert_eq!(seen.json()["message"], "There is no such shop");
    }

    #[test]
    fn mistakes_have_a_place() {
        for (config, message) in [("tenants: []", "empty"), ("tenants: [Acme]", "`Acme` is not a tenant's name"), ("{tenants: [a], header: 'x y'}", "`x y` is not a header name")] {
            let found = errors("tenant", config);
            assert!(found[0].message.contains(message) && found[0].span.line == 1, "{config}: {}", found[0]);
        }
    }
}
