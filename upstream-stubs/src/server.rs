//! Sockets: binding, accepting, serving each connection, stopping.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use crate::handle::Handle;
use crate::service::Service;
use crate::wire::Wire;
use crate::{Kind, Options};

/// Where a service leaves a task that outlives its request (an upgraded connection), so that it stops with the service.
pub(crate) type Spawner = mpsc::UnboundedSender<BoxFuture<'static, ()>>;

/// A service that listens. Dropping it closes its listener and all its connections at once.
#[derive(Debug)]
pub struct Running {
    kind: Kind,
    addr: SocketAddr,
    handle: Handle,
    accepting: JoinHandle<()>,
}

impl Running {
    /// Which service this is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The address it listens on, with the true port if 0 was asked for.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://host:port` by which it can be reached from this machine: a service that listens on every address
    /// is reached by loopback.
    pub fn url(&self) -> String {
        let mut addr = self.addr;
        if addr.ip().is_unspecified() {
            addr.set_ip(if addr.is_ipv4() {
                IpAddr::V4(Ipv4Addr::LOCALHOST)
            } else {
                IpAddr::V6(Ipv6Addr::LOCALHOST)
            });
        }
        format!("http://{addr}")
    }

    /// Its counters and faults.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Stops it and returns when the port is free again.
    pub async fn stop(mut self) {
        self.accepting.abort();
        // The result is always "cancelled"; what counts is that the task, and with it the listener, is gone.
        let _ = (&mut self.accepting).await;
    }

    /// Waits until the service ends, which it does only by being stopped.
    pub async fn wait(&mut self) {
        let _ = (&mut self.accepting).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Starts a service on `addr`; port 0 takes a free one. Must be called inside a tokio runtime.
///
/// Errors: the address cannot be bound, or the service's own input is bad (a recording that cannot be read, a
/// URL that does not parse); the message names the service and the thing.
pub async fn start(kind: Kind, addr: SocketAddr, options: Options) -> io::Result<Running> {
    let named =
        |e: io::Error| io::Error::new(e.kind(), format!("stub {} on {addr}: {e}", kind.name()));
    let (spawner, spawned) = mpsc::unbounded_channel();
    let service = Arc::new(Service::new(kind, options, spawner).map_err(named)?);
    let listener = TcpListener::bind(addr).await.map_err(named)?;
    let addr = listener.local_addr()?;
    let handle = service.handle.clone();
    let accepting = tokio::spawn(accept(listener, service, spawned));
    Ok(Running {
        kind,
        addr,
        handle,
        accepting,
    })
}

async fn accept(
    listener: TcpListener,
    service: Arc<Service>,
    mut spawned: mpsc::UnboundedReceiver<BoxFuture<'static, ()>>,
) {
    // Aborted with this task, so no connection outlives the listener.
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    service.handle.connected();
                    tasks.spawn(connection(stream, service.clone()));
                }
                // Out of file descriptors, or a client that was gone again: neither ends the service.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            },
            Some(task) = spawned.recv() => {
                tasks.spawn(task);
            }
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
        }
    }
}

async fn connection(stream: TcpStream, service: Arc<Service>) {
    let _ = stream.set_nodelay(true);
    let (wire, switch) = Wire::new(stream);
    let answer = service_fn(move |request| {
        let (service, switch) = (service.clone(), switch.clone());
        async move { service.answer(request, &switch).await }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http2().max_concurrent_streams(1024);
    // A broken connection is the client's affair, or ours on purpose.
    let _ = builder
        .serve_connection_with_upgrades(TokioIo::new(wire), answer)
        .await;
}
