//! The client for Weir's own calls: auth service, key sets, log sinks. Not for requests that are forwarded.

use crate::dns::Dns;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::{HttpConnector, dns::Name}},
    rt::TokioExecutor,
};
use std::{
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tower_service::Service;

/// A pooled HTTP/1.1 and HTTP/2 client that verifies certificates against the system's roots.
#[derive(Clone)]
pub struct OwnClient {
    inner: Client<HttpsConnector<HttpConnector<Names>>, Full<Bytes>>,
}

/// Addresses for hyper's connector.
#[derive(Clone)]
struct Names(Arc<Dns>);

impl Service<Name> for Names {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let dns = self.0.clone();
        Box::pin(async move {
            let known = dns.known(&dns.name(name.as_str())).await;
            if known.found.is_empty() {
                return Err(std::io::Error::other(known.failure().unwrap_or_else(|| "the name has no address".into())));
            }
            // A port of an SRV record counts where the URL has none.
            Ok(known.found.iter().map(|found| SocketAddr::new(found.ip, found.port.unwrap_or(0))).collect::<Vec<_>>().into_iter())
        })
    }
}

/// Why an own call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// No whole answer in time.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// No connection, or it broke.
    #[error("{0}")]
    Broken(String),
    /// The answer is longer than allowed.
    #[error("answer longer than {0} bytes")]
    TooLong(usize),
}

impl OwnClient {
    /// A new client. Without system roots, `https` calls fail, `http` calls work.
    pub fn new(dns: &Arc<Dns>) -> OwnClient {
        let mut http = HttpConnector::new_with_resolver(Names(dns.clone()));
        http.enforce_http(false);
        let builder = hyper_rustls::HttpsConnectorBuilder::new;
        let builder = match builder().with_native_roots() {
            Ok(ready) => ready,
            Err(_) => builder().with_tls_config(rustls_without_roots()),
        };
        let connector = builder.https_or_http().enable_http1().enable_http2().wrap_connector(http);
        OwnClient { inner: Client::builder(TokioExecutor::new()).pool_idle_timeout(Duration::from_secs(30)).build(connector) }
    }

    /// Sends `request` and reads the whole answer, at most `limit` bytes, within `timeout`.
    pub async fn call(&self, request: Request<Bytes>, timeout: Duration, limit: usize) -> Result<Response<Bytes>, CallError> {
        let work = async {
            let response = self.inner.request(request.map(Full::new)).await.map_err(|e| CallError::Broken(chain_of(&e)))?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, limit).collect().await.map_err(|e| match e.downcast_ref::<http_body_util::LengthLimitError>() {
                Some(_) => CallError::TooLong(limit),
                None => CallError::Broken(e.to_string()),
            })?;
            Ok(Response::from_parts(parts, body.to_bytes()))
        };
        tokio::time::timeout(timeout, work).await.unwrap_or(Err(CallError::Late(timeout)))
    }
}

fn rustls_without_roots() -> rustls::ClientConfig {
    rustls::ClientConfig::builder().with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth()
}

/// An error with its causes, in one line.
fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        text.push_str(": ");
        text.push_str(&e.to_string());
        cause = e.source();
    }
    text
}
