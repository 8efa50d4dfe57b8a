//! `correlation-id`: one id for a request wherever it goes.

use crate::{Configured, Live, own_name};
use http::{HeaderName, HeaderValue, request};
use schemars::JsonSchema;
use serde::Deserialize;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};
use weir_config::{Diagnostic, Node};
use weir_gateway::{BuildEnv, Flow, Phases, Plugin, RequestContext, Sight};

/// Gives every request an id in a header, which the upstream sees and, if asked, the client too. A request that brings an id keeps it,
/// so that one id follows a request through several services. Fields, defaults and forms of the ids are Kong's.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The header that carries the id.
    pub header_name: String,
    /// How ids are made.
    pub generator: Generator,
    /// Put the id on the answer too.
    pub echo_downstream: bool,
}

/// How ids are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum Generator {
    /// A random UUID (RFC 9562, version 4) for each request.
    #[serde(rename = "uuid")]
    Uuid,
    /// One random UUID for the process, `#`, and a number that counts up: cheap, and shows the order of requests.
    #[default]
    #[serde(rename = "uuid#counter")]
    UuidCounter,
    /// `address-port-process-number-time`: the client's address, the port it spoke to, our process id, a number that counts up, and
    /// the time in seconds with milliseconds.
    #[serde(rename = "tracker")]
    Tracker,
}

impl Default for Config {
    fn default() -> Self {
        Config { header_name: "Kong-Request-ID".into(), generator: Generator::default(), echo_downstream: false }
    }
}

impl Configured for Config {
    const NAME: &'static str = "correlation-id";
    const PRIORITY: i32 = 100_001;
    const EXAMPLE: &'static str = "header_name: X-Correlation-ID\ngenerator: uuid\necho_downstream: true\n";

    type Ready = CorrelationId;

    fn ready(self, at: &Node) -> Result<CorrelationId, Vec<Diagnostic>> {
        let header = own_name(at, "header_name", &self.header_name).map_err(|e| vec![e])?;
        Ok(CorrelationId { header, generator: self.generator, echo: self.echo_downstream, process: uuid(), next: AtomicU64::new(1) })
    }

    fn build(ready: CorrelationId, _: &BuildEnv<'_>, _: &Live) -> Arc<dyn Plugin> {
        Arc::new(ready)
    }
}

/// The plugin.
pub struct CorrelationId {
    header: HeaderName,
    generator: Generator,
    echo: bool,
    process: String,
    next: AtomicU64,
}

/// The request's id, kept for logs.
#[derive(Clone)]
pub(crate) struct Id(pub(crate) HeaderValue);

impl CorrelationId {
    fn make(&self, cx: &RequestContext) -> Option<HeaderValue> {
        let text = match self.generator {
            Generator::Uuid => uuid(),
            Generator::UuidCounter => format!("{}#{}", self.process, self.next.fetch_add(1, Relaxed)),
            Generator::Tracker => {
                let number = self.next.fetch_add(1, Relaxed);
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                format!("{}-{}-{}-{number}-{:.3}", cx.client.ip, cx.client.port, std::process::id(), now.as_secs_f64())
            }
        };
        HeaderValue::from_str(&text).ok()
    }
}

impl Plugin for CorrelationId {
    fn phases(&self) -> Phases {
        Phases::REQUEST
    }

    fn sees_of_request(&self) -> Sight {
        Sight::Only(vec![self.header.clone()])
    }

    fn request(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        let given = req.headers.get(&self.header).filter(|v| !v.as_bytes().trim_ascii().is_empty()).cloned();
        let Some(id) = given.or_else(|| self.make(cx)) else { return Flow::Continue };
        // Also when it was given: one field, so that upstream and client read the same.
        req.headers.insert(self.header.clone(), id.clone());
        if self.echo {
            cx.answer_fields.set(self.header.clone(), id.clone());
        }
        cx.state.insert(Id(id));
        Flow::Continue
    }
}

/// A version 4 UUID. Unique, not secret.
fn uuid() -> String {
    let bits = (fastrand::u128(..) & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use crate::testing::{Rig, get};
    use regex::Regex;

    const UUID: &str = "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}";

    #[tokio::test]
    async fn without_settings_the_upstream_sees_a_counting_id_and_the_client_none() {
        let rig = Rig::new(&[("correlation-id", "{}")]);
        let (first, second) = (rig.run(get("/")).await, rig.run(get("/")).await);
        let form = Regex::new(&format!("^({UUID})#([0-9]+)$")).unwrap();
        let parts = |id: &str| {
            let found = form.captures(id).unwrap_or_else(|| panic!("{id}"));
            (found[1].to_owned(), found[2].parse::<u64>().unwrap())
        };
        let (a, b) = (parts(first.sent("kong-request-id")), parts(second.sent("kong-request-id")));
        assert_eq!(a.0, b.0);
        assert_eq!(a.1 + 1, b.1);
        assert_eq!(first.header("kong-request-id"), None);
    }

    #[tokio::test]
    async fn the_other_generators() {
        for (generator, form) in [("uuid", format!("^{UUID}$")), ("tracker", r"^192\.0\.2\.7-8000-[0-9]+-[0-9]+-[0-9]+\.[0-9]{3}$".to_owned())] {
            let rig = Rig::new(&[("correlation-id", &format!("generator: {generator}"))]);
            let (first, second) = (rig.run(get("/")).await, rig.run(get("/")).await);
            assert!(Regex::new(&form).unwrap().is_match(first.sent("kong-request-id")), "{}", first.sent("kong-request-id"));
            assert_ne!(first.sent("kong-request-id"), second.sent("kong-request-id"));
        }
    }

    #[tokio::test]
    async fn an_id_that_is_given_stays_and_is_echoed() {
        let rig = Rig::new(&[("correlation-id", "{header_name: X-Correlation-ID, echo_downstream: true}")]);
        let seen = rig.run(get("/").with("X-Correlation-ID", "abc-1")).await;
        assert_eq!(seen.sent("x-correlation-id"), "abc-1");
        assert_eq!(seen.header("x-correlation-id"), Some("abc-1"));
        let made = rig.run(get("/").with("X-Correlation-ID", " ")).await;
        assert!(made.sent("x-correlation-id").contains('#'));
        assert_eq!(made.header("x-correlation-id"), Some(made.sent("x-correlation-id")));
    }

    #[tokio::test]
    async fn answers_made_here_carry_the_id_too() {
        let rig = Rig::new(&[("correlation-id", "echo_downstream: true"), ("token-validator", "secret: a-secret-of-thirty-two-bytes-long")]);
        let seen = rig.run(get("/").with("Kong-Request-ID", "abc-2")).await;
        assert_eq!(seen.status(), 401);
        assert_eq!(seen.header("kong-request-id"), Some("abc-2"));
    }

    #[tokio::test]
    async fn a_name_that_is_no_header_name_is_refused() {
        let errors = crate::testing::errors("correlation-id", "header_name: a b");
        assert!(errors[0].message.contains("`a b` is not a header name"), "{}", errors[0]);
        for name in ["Content-Length", "transfer-encoding", "Connection"] {
            let errors = crate::testing::errors("correlation-id", &format!("header_name: {name}"));
            assert!(errors[0].message.contains(&format!("`{name}` says where")), "{}", errors[0]);
        }
    }
}
