//! TLS: the cryptography that all of Weir uses, what PEM holds, and connections to upstreams made ready when a configuration is compiled.

use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{Arc, OnceLock, Weak},
};

/// The cryptography.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())).clone()
}

/// The certificates in a PEM text, one at least.
///
/// Errors: what is wrong, as half a sentence.
pub fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let all = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>().map_err(|_| "the certificate is not valid PEM".to_string())?;
    if all.is_empty() { Err("there is no certificate in it".into()) } else { Ok(all) }
}

/// The private key in a PEM text.
///
/// Errors: what is wrong, as half a sentence; nothing of the key is in it.
pub fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| "there is no private key in the clear in it".to_string())
}

/// The system's authorities. A machine without any (a bare container) still reaches upstreams in cleartext and those with a `ca` of their
/// own; the others then fail their verification, one by one and with a reason.
fn system_roots() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let load = || {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            tracing::warn!("no root certificates: https upstreams can not be verified without a `ca` of their own");
        }
        Arc::new(roots)
    };
    ROOTS.get_or_init(load).clone()
}

/// A host, perhaps an IPv6 address in brackets, as the name that a handshake asks for and a certificate must have. `None`: it can be none,
/// which does not keep it from being the name of an upstream entity.
pub fn server_name(host: &str) -> Option<ServerName<'static>> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(bare.to_string()).ok()
}

/// How an upstream is spoken to over TLS.
#[derive(Debug, Default, Clone, PartialEq, Eq, Hash)]
pub struct TlsWish {
    /// Take any certificate.
    pub unverified: bool,
    /// Most intermediate certificates.
    pub depth: Option<u32>,
    /// PEM of authorities trusted instead of the system's; empty: the system's.
    pub authorities: Vec<String>,
    /// Chain and key in PEM, shown to the upstream.
    pub own: Option<(String, String)>,
    /// Offer HTTP/2.
    pub http2: bool,
    /// Offer HTTP/1.1.
    pub http1: bool,
}

/// A TLS client, ready to connect.
#[derive(Debug)]
pub struct UpstreamTls {
    /// For rustls.
    pub config: Arc<ClientConfig>,
    /// Name in the handshake, and the one that the certificate must have; `None`: there is none that all endpoints share, and each has
    /// its own.
    pub name: Option<ServerName<'static>>,
}

impl UpstreamTls {
    /// Makes what a wish says, for a server of this name.
    ///
    /// Errors: what is wrong, as half a sentence.
    pub fn new(name: &str, wish: TlsWish) -> Result<UpstreamTls, String> {
        let name = server_name(name).ok_or_else(|| format!("`{name}` can not be the name of a TLS server"))?;
        Ok(UpstreamTls { name: Some(name), ..UpstreamTls::nameless(wish)? })
    }

    /// The same for servers that have no name together. Equal wishes share one configuration, also over reloads: so connections and
    /// sessions go on.
    ///
    /// Errors: what is wrong, as half a sentence.
    pub fn nameless(wish: TlsWish) -> Result<UpstreamTls, String> {
        static MADE: Mutex<Option<HashMap<TlsWish, Weak<ClientConfig>>>> = Mutex::new(None);
        let mut made = MADE.lock();
        let made = made.get_or_insert_default();
        if let Some(config) = made.get(&wish).and_then(Weak::upgrade) {
            return Ok(UpstreamTls { config, name: None });
        }
        let config = Arc::new(Self::config(&wish)?);
        made.retain(|_, config| config.strong_count() > 0);
        made.insert(wish, Arc::downgrade(&config));
        Ok(UpstreamTls { config, name: None })
    }

    fn config(wish: &TlsWish) -> Result<ClientConfig, String> {
        let roots = if wish.authorities.is_empty() {
            system_roots()
        } else {
            let mut roots = RootCertStore::empty();
            for pem in &wish.authorities {
                for certificate in certificates(pem)? {
                    roots.add(certificate).map_err(|e| format!("the CA certificate can not be used: {e}"))?;
                }
            }
            Arc::new(roots)
        };
        let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(rustls::ALL_VERSIONS).map_err(|e| e.to_string())?;
        let verifier: Arc<dyn ServerCertVerifier> = if wish.unverified {
            Arc::new(Anyone(provider()))
        } else if roots.is_empty() {
            Arc::new(Nobody)
        } else {
            let inner = WebPkiServerVerifier::builder_with_provider(roots, provider()).build().map_err(|e| e.to_string())?;
            match wish.depth {
                Some(depth) => Arc::new(Shallow { inner, depth: depth as usize }),
                None => inner,
            }
        };
        let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
        let mut config = match &wish.own {
            Some((chain, key)) => builder
                .with_client_auth_cert(certificates(chain)?, private_key(key)?)
                .map_err(|e| format!("the client certificate can not be used: {e}"))?,
            None => builder.with_no_client_auth(),
        };
        for (offered, protocol) in [(wish.http2, &b"h2"[..]), (wish.http1 && wish.http2, &b"http/1.1"[..])] {
            if offered {
                config.alpn_protocols.push(protocol.to_vec());
            }
        }
        Ok(config)
    }
}

/// Lets no more intermediate certificates count than wanted.
#[derive(Debug)]
struct Shallow {
    inner: Arc<WebPkiServerVerifier>,
    depth: usize,
}

/// Takes any certificate, for upstreams that a configuration wants unverified. The handshake's signature is still checked.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

/// Takes no certificate: there is no authority to ask.
#[derive(Debug)]
struct Nobody;

type Verified = Result<HandshakeSignatureValid, Error>;

impl ServerCertVerifier for Shallow {
    fn verify_server_cert(&self, leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>], name: &ServerName<'_>, ocsp: &[u8], now: UnixTime) -> Result<ServerCertVerified, Error> {
        self.inner.verify_server_cert(leaf, &rest[..rest.len().min(self.depth)], name, ocsp, now)
    }
    fn verify_tls12_signature(&self, message: &[u8], cert: &CertificateDer<'_>, dss: &DigitallySignedStruct) -> Verified {
        self.inner.verify_tls12_signature(message, cert, dss)
    }
    fn verify_tls13_signature(&self, message: &[u8], cert: &CertificateDer<'_>, dss: &DigitallySignedStruct) -> Verified {
        self.inner.verify_tls13_signature(message, cert, dss)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(&self, _: &CertificateDer<'_>, _: &[CertificateDer<'_>], _: &ServerName<'_>, _: &[u8], _: UnixTime) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(&self, message: &[u8], cert: &CertificateDer<'_>, dss: &DigitallySignedStruct) -> Verified {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }
    fn verify_tls13_signature(&self, message: &[u8], cert: &CertificateDer<'_>, dss: &DigitallySignedStruct) -> Verified {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for Nobody {
    fn verify_server_cert(&self, _: &CertificateDer<'_>, _: &[CertificateDer<'_>], _: &ServerName<'_>, _: &[u8], _: UnixTime) -> Result<ServerCertVerified, Error> {
        Err(Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer))
    }
    fn verify_tls12_signature(&self, _: &[u8], _: &CertificateDer<'_>, _: &DigitallySignedStruct) -> Verified {
        Err(Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer))
    }
    fn verify_tls13_signature(&self, _: &[u8], _: &CertificateDer<'_>, _: &DigitallySignedStruct) -> Verified {
        Err(Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer))
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
