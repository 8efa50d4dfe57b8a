//! How a cache fill asks: a request of its own, detached from the client that caused it, carrying nothing of that client's.

use crate::{
    classify,
    downstream::{AnswerBody, ClientError, Downstream, Raw, RequestBody},
    exchange::Upload,
    forward::{self, ForwardError},
    h1,
    live::Weir,
};
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, request, response};
use std::sync::Arc;
use weir_cache::{Fetch, FetchError, Fetched, Interim};
use weir_gateway::{Chain, Client, RequestContext, RouteRuntime, ServiceRuntime, resilience::Guard};

/// A fill's request, ready to be sent.
pub struct OriginFetch {
    /// The program.
    pub weir: Arc<Weir>,
    /// Whom to ask.
    pub service: Arc<ServiceRuntime>,
    /// Its request.
    pub request: request::Parts,
    /// Plugins whose `from_upstream` step shapes what is cached.
    pub chain: Arc<Chain>,
    /// For their context.
    pub client: Client,
    /// For their context.
    pub route: Option<Arc<RouteRuntime>>,
    /// A page of the site: what its head tells of the site's inside is not kept.
    pub page: bool,
    /// The breaker that watches over the service, if a plugin set one.
    pub guard: Option<Arc<Guard>>,
}

#[async_trait]
impl Fetch for OriginFetch {
    async fn fetch(&self, condition: HeaderMap, interim: Interim<'_>) -> Result<Fetched, FetchError> {
        let mut request = self.request.clone();
        h1::strip_hop_by_hop(&mut request.headers);
        for (name, value) in &condition {
            request.headers.insert(name.clone(), value.clone());
        }
        let mut cx = RequestContext::new(self.client.clone());
        cx.route = self.route.clone();
        cx.service = Some(self.service.clone());
        cx.guard.clone_from(&self.guard);
        let mut crowd = Crowd { tell: interim, page: self.page };
        let mut upload = Upload { client: Some(&mut crowd), abandon: false, ..Upload::none() };
        let answered = forward::forward(&self.weir.connector, &self.service, &mut cx, &request, &mut upload, None).await;
        match answered {
            Ok(answered) if answered.upgraded => Err(FetchError {
                kind: "framing",
                reason: "the origin switched protocols without being asked".into(),
                status: StatusCode::BAD_GATEWAY,
            }),
            Ok(answered) => {
                let mut parts = answered.parts;
                h1::strip_hop_by_hop(&mut parts.headers);
                // Names one exchange, not the copies of its answer.
                parts.headers.remove("x-request-id");
                if self.page {
                    classify::strip_page_headers(&mut parts.headers);
                    classify::strip_stray_location(parts.status, &mut parts.headers);
                }
                self.chain.from_upstream(&mut cx, &mut parts);
                Ok(Fetched { parts, body: Box::new(answered.body) })
            }
            Err(ForwardError::Upstream(error)) => Err(error),
            Err(ForwardError::Client(error)) => {
                Err(FetchError { kind: "internal", reason: error.to_string(), status: StatusCode::BAD_GATEWAY })
            }
            Err(ForwardError::Refused(reply)) => Err(FetchError { kind: "refused", reason: format!("refused by {}", reply.by), status: reply.status }),
        }
    }
}

/// The client of a fill: it asks for nothing, never leaves, and passes on to all who wait what comes before the answer.
struct Crowd<'a> {
    tell: Interim<'a>,
    page: bool,
}

impl Downstream for Crowd<'_> {
    fn request_body(&self) -> RequestBody {
        RequestBody::Empty
    }
    async fn read(&mut self) -> Result<Option<Bytes>, ClientError> {
        Ok(None)
    }
    async fn gone(&mut self) {
        std::future::pending().await
    }
    async fn head(&mut self, _: &response::Parts, _: AnswerBody) -> Result<(), ClientError> {
        Ok(())
    }
    async fn interim(&mut self, parts: &response::Parts) -> Result<(), ClientError> {
        let mut parts = parts.clone();
        if self.page {
            classify::strip_page_headers(&mut parts.headers);
        }
        (self.tell)(parts);
        Ok(())
    }
    async fn write(&mut self, _: Bytes) -> Result<(), ClientError> {
        Ok(())
    }
    async fn end(&mut self) -> Result<(), ClientError> {
        Ok(())
    }
    fn abort(&mut self) {}
    fn upgrade(&mut self) -> Option<Raw<'_>> {
        None
    }
}
