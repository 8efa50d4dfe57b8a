//! A name server that says what a test wants, and remembers what it was asked.

use hickory_resolver::proto::{
    op::{Message, OpCode, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, SRV},
    },
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, atomic::{AtomicBool, Ordering::SeqCst}},
};
use tokio::{net::UdpSocket, sync::watch, task::JoinHandle};

/// What a name has.
#[derive(Debug, Clone)]
pub enum Has {
    /// An address.
    Address(IpAddr),
    /// Another name.
    Alias(String),
    /// Priority, weight, port and name of a service.
    Service(u16, u16, u16, String),
}

/// An address.
pub fn address(ip: &str) -> Has {
    Has::Address(ip.parse().expect("an address"))
}

type Zone = BTreeMap<String, (u32, Vec<Has>)>;

/// A name server on 127.0.0.1, by UDP.
pub struct NameServer {
    at: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    asked: Arc<Mutex<Vec<(String, String)>>>,
    silent: Arc<AtomicBool>,
    open: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl NameServer {
    /// Starts one that knows no name.
    pub async fn start() -> NameServer {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a port"));
        let at = socket.local_addr().expect("an address");
        let (zone, asked, silent) = (Arc::<Mutex<Zone>>::default(), Arc::<Mutex<Vec<(String, String)>>>::default(), Arc::<AtomicBool>::default());
        let open = watch::Sender::new(true);
        let (known, seen, quiet, gate) = (zone.clone(), asked.clone(), silent.clone(), open.subscribe());
        let task = tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let Ok(question) = Message::from_vec(&buffer[..length]) else { continue };
                let Some(query) = question.queries.first() else { continue };
                let name = query.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
                seen.lock().expect("not poisoned").push((name, query.query_type().to_string()));
                if quiet.load(SeqCst) {
                    continue;
                }
                let (socket, known, mut gate) = (socket.clone(), known.clone(), gate.clone());
                tokio::spawn(async move {
                    // The sender lives as long as the server.
                    let _ = gate.wait_for(|open| *open).await;
                    let answer = answer(&question, &known.lock().expect("not poisoned").clone());
                    let _ = socket.send_to(&answer.to_vec().expect("a message"), from).await;
                });
            }
        });
        NameServer { at, zone, asked, silent, open, task }
    }

    /// Where it is, as `resolver.servers` wants it.
    pub fn address(&self) -> String {
        self.at.to_string()
    }

    /// From now on the name has this, for `ttl` seconds.
    pub fn set(&self, name: &str, ttl: u32, has: Vec<Has>) {
        self.zone.lock().expect("not poisoned").insert(name.into(), (ttl, has));
    }

    /// The name is no more.
    pub fn remove(&self, name: &str) {
        self.zone.lock().expect("not poisoned").remove(name);
    }

    /// From now on nobody gets an answer, or (`false`) everybody does again.
    pub fn silent(&self, silent: bool) {
        self.silent.store(silent, SeqCst);
    }

    /// Answers wait until this is called with `true`.
    pub fn open(&self, open: bool) {
        self.open.send_replace(open);
    }

    /// How often it was asked for records of this type (`A`, `AAAA`, `SRV`) of this name.
    pub fn asked(&self, name: &str, kind: &str) -> usize {
        self.asked.lock().expect("not poisoned").iter().filter(|(n, k)| n == name && k == kind).count()
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn answer(question: &Message, zone: &Zone) -> Message {
    let query = question.queries[0].clone();
    let mut answer = Message::response(question.metadata.id, OpCode::Query);
    answer.metadata.recursion_desired = question.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    let mut name = query.name().clone();
    answer.metadata.response_code = ResponseCode::NXDomain;
    while let Some((ttl, has)) = zone.get(&name.to_ascii().trim_end_matches('.').to_ascii_lowercase()) {
        answer.metadata.response_code = ResponseCode::NoError;
        let mut alias = None;
        for has in has {
            let data = match has {
                Has::Address(IpAddr::V4(ip)) => RData::A(A(*ip)),
                Has::Address(IpAddr::V6(ip)) => RData::AAAA(AAAA(*ip)),
                Has::Alias(other) => RData::CNAME(CNAME(absolute(other))),
                Has::Service(priority, weight, port, target) => RData::SRV(SRV::new(*priority, *weight, *port, absolute(target))),
            };
            if let Has::Alias(other) = has {
                alias = Some(absolute(other));
            }
            if data.record_type() == query.query_type() || data.record_type() == RecordType::CNAME {
                answer.add_answer(Record::from_rdata(name.clone(), *ttl, data));
            }
        }
        match alias {
            Some(other) => name = other,
            None => break,
        }
    }
    answer.add_query(query);
    answer
}

fn absolute(name: &str) -> Name {
    Name::from_ascii(format!("{name}.")).expect("a name")
}
