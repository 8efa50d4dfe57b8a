//! A service of HTTP/2 on a free port, for what a library's server does not do: interim answers, trailers, streams that stay open.

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::Request;
use std::net::SocketAddr;
use tokio::net::TcpListener;

/// Starts one that answers each request with `answer`, all at the same time.
pub async fn serve<A, F>(answer: A) -> SocketAddr
where
    A: Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Copy + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(answer(request, respond));
                }
            });
        }
    });
    address
}
