//! Certificates made for a test, and a client that trusts only them.

use crate::{Answer, Ask, Connection, guarded};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::WebPkiClientVerifier,
};
use std::{net::SocketAddr, path::Path, process::Command, sync::Arc};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

/// An authority of the test's own.
pub struct Authority {
    folder: TempDir,
    /// Its certificate in PEM.
    pub cert: String,
}

/// A certificate and its key, in PEM.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate.
    pub cert: String,
    /// The key.
    pub key: String,
}

fn openssl(folder: &Path, arguments: &[&str]) {
    let made = Command::new("openssl").current_dir(folder).args(arguments).output();
    let made = made.expect("openssl can be started: install it, on Debian with `apt-get install -y openssl`");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

fn read(folder: &Path, name: &str) -> String {
    std::fs::read_to_string(folder.join(name)).expect("what openssl wrote")
}

const CURVE: [&str; 4] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];

impl Authority {
    /// A new one.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Authority {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let arguments = ["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.pem"];
        openssl(folder.path(), &[&arguments[..], &CURVE].concat());
        Authority { cert: read(folder.path(), "ca.pem"), folder }
    }

    /// A certificate for these names, like `DNS:a.example` or `IP:127.0.0.1`.
    pub fn issue(&self, names: &[&str]) -> Issued {
        let folder = self.folder.path();
        openssl(folder, &[&["req", "-nodes", "-subj", "/CN=test", "-keyout", "one.key", "-out", "one.csr"][..], &CURVE].concat());
        let extensions = format!("subjectAltName={}\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=CA:FALSE\n", names.join(","));
        std::fs::write(folder.join("one.ext"), extensions).expect("a file");
        openssl(folder, &["x509", "-req", "-in", "one.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "one.ext", "-out", "one.pem"]);
        Issued { cert: read(folder, "one.pem"), key: read(folder, "one.key") }
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        for certificate in chain(&self.cert) {
            roots.add(certificate).expect("an authority");
        }
        Arc::new(roots)
    }

    /// A client that trusts this authority and speaks one protocol: `h2` or `http/1.1`.
    pub fn client(&self, protocol: &str) -> TlsConnector {
        let mut config = ClientConfig::builder().with_root_certificates(self.roots()).with_no_client_auth();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        TlsConnector::from(Arc::new(config))
    }

    /// A server with this certificate; with `clients`, only for those who show a certificate of this authority.
    pub fn server(&self, own: &Issued, clients: bool, protocols: &[&str]) -> TlsAcceptor {
        let builder = ServerConfig::builder();
        let builder = if clients {
            builder.with_client_cert_verifier(WebPkiClientVerifier::builder(self.roots()).build().expect("a verifier"))
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).expect("a key");
        let mut config = builder.with_single_cert(chain(&own.cert), key).expect("a certificate");
        config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }
}

fn chain(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().expect("PEM")
}

/// A handshake for this name.
///
/// Errors: why there is none.
pub async fn handshake(client: &TlsConnector, to: SocketAddr, name: &str) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(to).await?;
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    guarded("handshake", client.connect(name, stream)).await
}

impl Ask {
    /// Sends it over TLS, in HTTP/1.1, with this name in the handshake. Panics if there is no whole answer.
    pub async fn send_tls(self, authority: &Authority, name: &str) -> Answer {
        let stream = handshake(&authority.client("http/1.1"), self.to(), name).await.unwrap_or_else(|e| panic!("no TLS for {name}: {e}"));
        let mut connection = Connection::over(stream);
        self.on(&mut connection).await.unwrap_or_else(|why| panic!("{why}"))
    }

    /// The same in HTTP/2.
    pub async fn send_tls_h2(self, authority: &Authority, name: &str) -> Answer {
        let stream = handshake(&authority.client("h2"), self.to(), name).await.unwrap_or_else(|e| panic!("no TLS for {name}: {e}"));
        guarded("HTTP/2 over TLS", self.h2_on(stream, "https")).await.unwrap_or_else(|why| panic!("{why}"))
    }
}
