//! `rediss://`: a certificate of the system's store is needed. One test in a process of its own, for it sets the environment.

use bytes::Bytes;
use std::process::Command;
use std::time::Duration;
use weir_store::testing::{RedisServer, free_port};
use weir_store::*;

/// A self-signed certificate for 127.0.0.1 and its key.
fn certificate(folder: &std::path::Path) -> (String, String) {
    let (certificate, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=redis", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-out"])
        .arg(&certificate)
        .arg("-keyout")
        .arg(&key)
        .output()
        .expect("openssl can be started: install it, on Debian with `apt-get install -y openssl`");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    (certificate.display().to_string(), key.display().to_string())
}

#[test]
fn speaks_tls_and_trusts_only_the_known() {
    let folder = tempfile::tempdir().unwrap();
    let (known, known_key) = certificate(folder.path());
    let other_folder = tempfile::tempdir().unwrap();
    let (unknown, unknown_key) = certificate(other_folder.path());
    // SAFETY: the only test of this process, and no other thread reads the environment yet.
    unsafe { std::env::set_var("SSL_CERT_FILE", &known) };

    let serve = |certificate: &str, key: &str| {
        let port = free_port();
        let server = RedisServer::start_with(&["--tls-port", &port.to_string(), "--tls-cert-file", certificate, "--tls-key-file", key, "--tls-auth-clients", "no"]);
        (server, format!("rediss://127.0.0.1:{port}"))
    };
    let options = StoreOptions { deadline: Duration::from_secs(5), connect_timeout: Duration::from_secs(5), ..StoreOptions::default() };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (_server, url) = serve(&known, &known_key);
        let store = Store::open(&url, &options).await.unwrap();
        assert_eq!(store.health.check(), Ok(()));
        assert!(store.blobs.put("k", Bytes::from_static(b"v"), Duration::from_secs(60), None).await.unwrap());
        assert_eq!(store.blobs.get("k").await.unwrap().unwrap(), "v");
        let mut news = store.bus.subscribe("news").await.unwrap();
        store.bus.publish("news", Bytes::from_static(b"hello")).await.unwrap();
        assert_eq!(news.messages.recv().await, Some(Message::Data(Bytes::from_static(b"hello"))));

        let (_server, url) = serve(&unknown, &unknown_key);
        let store = Store::open(&url, &options).await.unwrap();
        let error = store.blobs.get("k").await.unwrap_err();
        assert!(matches!(&error, StoreError::Away(reason) if reason.contains("certificate")), "{error:?}");
    });
}
