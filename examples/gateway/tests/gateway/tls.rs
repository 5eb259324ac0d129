//! Upstreams behind TLS.

use std::{env, fs, net::SocketAddr, path::PathBuf, process, sync::Arc};

use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;
use tower_llm_testkit::{Behavior, SimulatedProvider, wire};

use crate::support::{Binary, post};

/// A TLS server for `localhost` in front of `provider`, and its certificate.
pub(crate) async fn with_tls(provider: SocketAddr) -> (SocketAddr, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut outside) = acceptor.accept(stream).await else {
                    return;
                };
                let mut inside = TcpStream::connect(provider).await.unwrap();
                let _ = copy_bidirectional(&mut outside, &mut inside).await;
            });
        }
    });
    (addr, made.cert.pem())
}

/// A certificate that a gateway is told to trust by `SSL_CERT_FILE`.
pub(crate) struct TrustedFile(PathBuf);

impl TrustedFile {
    pub(crate) fn new(name: &str, certificate: &str) -> Self {
        let file = env::temp_dir().join(format!("gateway-test-{name}-{}.pem", process::id()));
        fs::write(&file, certificate).unwrap();
        Self(file)
    }

    pub(crate) fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for TrustedFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[tokio::test]
async fn an_upstream_with_a_certificate_that_the_system_trusts_is_reached() {
    let provider = SimulatedProvider::start().await.unwrap();
    let (addr, certificate) = with_tls(provider.addr()).await;
    let file = TrustedFile::new("trusted", &certificate);
    let url = format!("https://localhost:{}/v1", addr.port());
    let envs = [
        ("OPENAI_BASE_URL", url.as_str()),
        ("SSL_CERT_FILE", file.path()),
    ];
    let gateway = Binary::start(&envs, &[]).await;
    let (path, body) = ("/v1/chat/completions", r#"{"stream":true}"#);
    let answer = post(gateway.addr, path, "", body).await;
    assert_eq!(answer.status, 200);
    let sent = wire::body(path, body.as_bytes(), &Behavior::new()).concat();
    assert_eq!(answer.body(), sent);
}

#[tokio::test]
async fn an_upstream_with_any_other_certificate_is_not() {
    let provider = SimulatedProvider::start().await.unwrap();
    let (trusted, certificate) = with_tls(provider.addr()).await;
    let (addr, _) = with_tls(provider.addr()).await;
    assert_ne!(trusted, addr);
    let file = TrustedFile::new("other", &certificate);
    let url = format!("https://localhost:{}/v1", addr.port());
    let envs = [
        ("OPENAI_BASE_URL", url.as_str()),
        ("SSL_CERT_FILE", file.path()),
    ];
    let gateway = Binary::start(&envs, &[]).await;
    assert_eq!(post(gateway.addr, "/v1/models", "", "").await.status, 502);
    assert_eq!(provider.counts().requests, 0);
}
