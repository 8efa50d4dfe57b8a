//! Listeners that come and go, and the threads that serve what they accept.
//!
//! ```text
//! address ─► accept ─► the thread with the fewest connections ─► PROXY header ─► TLS ─► h1_server │ h2_server
//! ```
//!
//! A connection stays on its thread: its upstream connections are that thread's own. A listener that a new configuration keeps is not
//! touched, whatever else changes; one that it drops accepts what waits in its queue and closes, and its connections end after the
//! request that they are at.

use crate::{
    h1_server, h2_server,
    live::Weir,
    proxy_protocol,
    server::{Door, DoorKind, Peer},
    stream::Socket,
};
use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use pingora::protocols::Stream;
use socket2::{Domain, Protocol, Socket as Socket2, Type};
use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{Builder, Handle},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;
use weir_config::{Document, Listen};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// How an address is served; a reload may change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Manner {
    kind: DoorKind,
    tls: bool,
    proxy_protocol: bool,
}

struct Open {
    manner: Arc<ArcSwap<Manner>>,
    stop: watch::Sender<bool>,
}

struct Worker {
    handle: Handle,
    connections: AtomicUsize,
}

/// What all listeners share.
struct Shared {
    weir: Arc<Weir>,
    workers: Vec<Worker>,
}

/// All listeners of the process.
pub struct Listeners {
    shared: Arc<Shared>,
    open: Mutex<HashMap<SocketAddr, Open>>,
}

/// New listeners, bound but not yet accepting. Dropping them closes them.
#[derive(Default)]
pub struct Bound {
    new: Vec<(SocketAddr, std::net::TcpListener)>,
}

impl Listeners {
    /// Starts the threads.
    ///
    /// Errors: the system gives none.
    pub fn new(weir: &Arc<Weir>, threads: usize) -> io::Result<Listeners> {
        let worker = |at: usize| {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let handle = runtime.handle().clone();
            std::thread::Builder::new().name(format!("weir-{at}")).spawn(move || runtime.block_on(std::future::pending::<()>()))?;
            Ok(Worker { handle, connections: AtomicUsize::new(0) })
        };
        let workers = (0..threads.max(1)).map(worker).collect::<io::Result<_>>()?;
        Ok(Listeners { shared: Arc::new(Shared { weir: weir.clone(), workers }), open: Mutex::default() })
    }

    /// Binds the addresses of a configuration that are not open yet.
    ///
    /// Errors: one can not be listened on, in words; then none is kept.
    pub fn bind(&self, document: &Document) -> Result<Bound, String> {
        let open = self.open.lock();
        let mut bound = Bound::default();
        for (address, manner) in wanted(document)? {
            if !open.contains_key(&address) {
                let socket = bind(&address).map_err(|error| {
                    let own = open.keys().any(|other| other.port() == address.port());
                    let hint = if own { "; this process listens on that port at another address: take that out first" } else { "" };
                    format!("{}: can not listen on {address}: {error}{hint}", manner.kind.name())
                })?;
                bound.new.push((address, socket));
            }
        }
        Ok(bound)
    }

    /// The configuration is in force: new listeners accept, those that it lacks close.
    pub fn serve(&self, bound: Bound, document: &Document) {
        let Ok(wanted) = wanted(document) else { return };
        let mut open = self.open.lock();
        for (address, manner) in &wanted {
            if let Some(known) = open.get(address) {
                known.manner.store(Arc::new(*manner));
            }
        }
        for (address, socket) in bound.new {
            let Some(manner) = wanted.get(&address) else { continue };
            let manner = Arc::new(ArcSwap::from_pointee(*manner));
            let (stop, stopped) = watch::channel(false);
            let home = open.len() % self.shared.workers.len();
            let accepting = accept(self.shared.clone(), socket, manner.clone(), stopped, home);
            self.shared.workers[home].handle.spawn(accepting);
            open.insert(address, Open { manner, stop });
        }
        open.retain(|address, listener| {
            let keep = wanted.contains_key(address);
            if !keep {
                tracing::info!(%address, "this address is not listened on any more");
                let _ = listener.stop.send(true);
            }
            keep
        });
    }

    /// Closes every listener; connections end after the request that they are at.
    pub fn close(&self) {
        for (_, listener) in self.open.lock().drain() {
            let _ = listener.stop.send(true);
        }
    }
}

/// The addresses of a configuration.
fn wanted(document: &Document) -> Result<HashMap<SocketAddr, Manner>, String> {
    let edge = document.edge.iter().flat_map(|e| &e.listen.0).map(|l| (DoorKind::Edge, l));
    let gateway = document.gateway.iter().flat_map(|g| &g.listen.0).map(|l| (DoorKind::Gateway, l));
    let mut all = HashMap::new();
    for (kind, Listen { address, tls, proxy_protocol }) in edge.chain(gateway) {
        let parsed = address.parse().map_err(|_| format!("{}: `{address}` is not an address to listen on", kind.name()))?;
        all.insert(parsed, Manner { kind, tls: *tls, proxy_protocol: *proxy_protocol });
    }
    Ok(all)
}

fn bind(address: &SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket2::new(Domain::for_address(*address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    // Accepted connections inherit it.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&(*address).into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

async fn accept(shared: Arc<Shared>, socket: std::net::TcpListener, manner: Arc<ArcSwap<Manner>>, stopped: watch::Receiver<bool>, home: usize) {
    let listener = match TcpListener::from_std(socket) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "a listener can not be served"),
    };
    let port = listener.local_addr().map_or(0, |a| a.port());
    let pass = |stream, from| shared.dispatch(stream, from, port, **manner.load(), stopped.clone(), home);
    let mut stop = stopped.clone();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stop.changed() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => pass(stream, from),
            Err(error) => {
                // Out of descriptors, perhaps: some come back as connections end.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    // Whoever waits in the queue was promised a connection.
    while let Poll::Ready(Ok((stream, from))) = listener.poll_accept(&mut Context::from_waker(Waker::noop())) {
        pass(stream, from);
    }
}

impl Shared {
    /// Gives a connection to the thread that has the fewest.
    fn dispatch(self: &Arc<Self>, stream: TcpStream, from: SocketAddr, port: u16, manner: Manner, stopped: watch::Receiver<bool>, home: usize) {
        let fewest = (0..self.workers.len()).min_by_key(|at| (self.workers[*at].connections.load(Relaxed), *at != home)).unwrap_or(home);
        let here = Here::new(self, fewest);
        if fewest == home {
            tokio::spawn(connection(here, stream, from, port, manner, stopped));
        } else if let Ok(stream) = stream.into_std() {
            self.workers[fewest].handle.spawn(async move {
                if let Ok(stream) = TcpStream::from_std(stream) {
                    connection(here, stream, from, port, manner, stopped).await;
                }
            });
        }
    }
}

/// Counts a connection for as long as it lives.
struct Here {
    shared: Arc<Shared>,
    worker: usize,
}

impl Here {
    fn new(shared: &Arc<Shared>, worker: usize) -> Here {
        shared.workers[worker].connections.fetch_add(1, Relaxed);
        let metrics = &shared.weir.environment.metrics;
        metrics.accepted.inc();
        metrics.connections.inc();
        Here { shared: shared.clone(), worker }
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        self.shared.workers[self.worker].connections.fetch_sub(1, Relaxed);
        self.shared.weir.environment.metrics.connections.dec();
    }
}

/// Serves a connection from its first byte to its last.
async fn connection(here: Here, mut stream: TcpStream, from: SocketAddr, port: u16, manner: Manner, stopped: watch::Receiver<bool>) {
    let weir = &here.shared.weir;
    let door = Arc::new(Door { weir: weir.clone(), kind: manner.kind });
    let head_timeout = door.settings().head_timeout;
    let mut peer = Peer { ip: from.ip().to_canonical(), port, tls: manner.tls, sni: None };
    if manner.proxy_protocol {
        if !weir.live.load().trusts(&peer.ip) {
            return tracing::debug!(peer = %peer.ip, "refused: not trusted to send a PROXY header");
        }
        match tokio::time::timeout(head_timeout, proxy_protocol::read(&mut stream)).await {
            Ok(Ok(Some((client, to)))) => (peer.ip, peer.port) = (client.ip().to_canonical(), to.port()),
            Ok(Ok(None)) => {}
            _ => return tracing::debug!(peer = %peer.ip, "refused: no PROXY header"),
        }
    }
    if !manner.tls {
        return speak(&door, Box::new(Socket(stream)), peer, false, &stopped).await;
    }
    let Some(config) = weir.live.load().tls(manner.kind).map(|tls| tls.config.clone()) else { return };
    let stream = match tokio::time::timeout(head_timeout, TlsAcceptor::from(config).accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(peer = %peer.ip, %error, "no TLS"),
        Err(_) => return tracing::debug!(peer = %peer.ip, "the handshake took too long"),
    };
    let session = stream.get_ref().1;
    peer.sni = session.server_name().map(Arc::from);
    let http2 = session.alpn_protocol() == Some(b"h2");
    speak(&door, Box::new(Socket(stream)), peer, http2, &stopped).await;
}

async fn speak(door: &Arc<Door>, mut stream: Stream, peer: Peer, http2: bool, stopped: &watch::Receiver<bool>) {
    let peer = Arc::new(peer);
    let mut first = Bytes::new();
    if !http2 {
        match h1_server::serve(door, stream, &peer, stopped).await {
            Some(http2) => (stream, first) = http2,
            None => return,
        }
    }
    Box::pin(h2_server::serve(door, stream, first, &peer, stopped)).await;
}
