use std::{
    ffi::OsString,
    sync::{Arc, Mutex},
};

use http::{Method, Request};
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
};
use tower::{Layer, ServiceExt};
use tower_llm_stack::{
    Provider, Secret,
    accounts::{AccountLayer, AccountService, Client, Clients, Credential, PoolBounds, Proxies},
};

use super::{account, chat};
use crate::support::{Server, serve, text};

type Body = http_body_util::Full<bytes::Bytes>;

/// An HTTP proxy that answers for every server, and what it was asked.
#[derive(Clone)]
struct Proxy {
    server: Server,
    asked: Arc<Mutex<Vec<Request<()>>>>,
}

impl Proxy {
    async fn start() -> Self {
        let asked = Arc::<Mutex<Vec<Request<()>>>>::default();
        let recorded = Arc::clone(&asked);
        let server = serve(move |_, request| {
            let (parts, _) = request.into_parts();
            let is_tunnel = parts.method == Method::CONNECT;
            recorded
                .lock()
                .unwrap()
                .push(Request::from_parts(parts, ()));
            async move {
                match is_tunnel {
                    true => text(403, ""),
                    false => text(200, "{}"),
                }
            }
        })
        .await;
        Self { server, asked }
    }

    fn url(&self) -> Secret {
        let host = self.server.addr;
        Secret::new(format!("http://me:hidden@{host}"))
    }

    /// The keys that came by, and where to.
    fn asked(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        let line = |request: &Request<()>| {
            let header = |name| {
                request
                    .headers()
                    .get(name)
                    .map(|value| value.to_str().unwrap())
            };
            assert_eq!(header("proxy-authorization"), Some("Basic bWU6aGlkZGVu"));
            let key = header("authorization").unwrap_or("no key");
            format!("{} {} {key}", request.method(), request.uri())
        };
        asked.iter().map(line).collect()
    }
}

fn env(vars: &[(&str, &str)]) -> impl Fn(&str) -> Option<OsString> {
    let vars: Vec<(String, String)> = vars
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    move |name| {
        let (_, value) = vars.iter().find(|(known, _)| known == name)?;
        Some(value.into())
    }
}

fn clients(environment: Proxies) -> Clients<Body> {
    Clients::without_certificates(environment).unwrap()
}

fn with_key(key: &str, url: &str, client: Client<Body>) -> AccountService<Client<Body>> {
    let credential = Credential::bearer(&Secret::new(key)).unwrap();
    AccountLayer::new(account(Provider::OPENAI, url).credential(credential)).layer(client)
}

async fn call(service: &AccountService<Client<Body>>) -> u16 {
    let answer = service.clone().oneshot(chat("m")).await.unwrap();
    let status = answer.status().as_u16();
    answer.into_body().collect().await.unwrap();
    status
}

#[tokio::test]
async fn a_proxy_sees_the_calls_of_its_accounts_and_no_others() {
    let (one, two) = (Proxy::start().await, Proxy::start().await);
    let direct = serve(|_, _| async { text(200, "{}") }).await;
    let clients = clients(Proxies::none());
    let client = |proxy: Option<&Secret>| clients.client(proxy, PoolBounds::default()).unwrap();
    let first = with_key("a", "http://models.test/v1", client(Some(&one.url())));
    let second = with_key("b", "http://models.test/v1", client(Some(&two.url())));
    let third = with_key("c", "http://other.test/v1", client(Some(&two.url())));
    let fourth = with_key("d", &direct.url("/v1"), client(None));
    // One client for each distinct proxy, and one without.
    assert_eq!(clients.len(), 3);
    for _ in 0..3 {
        for service in [&first, &second, &third, &fourth] {
            assert_eq!(call(service).await, 200);
        }
    }
    let line =
        |host: &str, key: &str| format!("POST http://{host}/v1/chat/completions Bearer {key}");
    let of_two = [line("models.test", "b"), line("other.test", "c")];
    assert_eq!(one.asked(), vec![line("models.test", "a"); 3]);
    assert_eq!(two.asked(), [&of_two[..]; 3].concat());
    assert_eq!(direct.seen.requests(), 3);
}

#[tokio::test]
async fn accounts_with_a_proxy_in_common_share_its_connections() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Secret::new(format!("http://{}", listener.local_addr().unwrap()));
    let connections = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&connections);
    let server = Proxy::start().await.server;
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            *counted.lock().unwrap() += 1;
            let mut to = TcpStream::connect(server.addr).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut from, &mut to).await });
        }
    });
    let clients = clients(Proxies::none());
    let client = || clients.client(Some(&proxy), PoolBounds::default()).unwrap();
    let accounts = ["a", "b", "c"].map(|key| with_key(key, "http://models.test/v1", client()));
    for account in &accounts {
        assert_eq!(call(account).await, 200);
    }
    assert_eq!((clients.len(), *connections.lock().unwrap()), (1, 1));
    // Other bounds are another pool.
    let bounds = PoolBounds::default().max_idle_per_host(1);
    let other = clients.client(Some(&proxy), bounds).unwrap();
    assert_eq!(
        call(&with_key("d", "http://models.test/v1", other)).await,
        200
    );
    assert_eq!((clients.len(), *connections.lock().unwrap()), (2, 2));
}

#[tokio::test]
async fn an_account_without_a_proxy_uses_that_of_the_environment() {
    let (plain, secure, own) = (
        Proxy::start().await,
        Proxy::start().await,
        Proxy::start().await,
    );
    let direct = serve(|_, _| async { text(200, "{}") }).await;
    let environment = Proxies::from_env(env(&[
        ("HTTP_PROXY", plain.url().expose()),
        ("HTTPS_PROXY", ""),
        ("https_proxy", secure.url().expose()),
        ("NO_PROXY", "internal.test, 127.0.0.1"),
    ]))
    .unwrap();
    let clients = clients(environment);
    let client = |proxy: Option<&Secret>| clients.client(proxy, PoolBounds::default()).unwrap();
    assert_eq!(
        call(&with_key("a", "http://models.test/v1", client(None))).await,
        200
    );
    assert_eq!(
        plain.asked(),
        ["POST http://models.test/v1/chat/completions Bearer a"]
    );
    // An excepted host.
    assert_eq!(
        call(&with_key("b", &direct.url("/v1"), client(None))).await,
        200
    );
    assert_eq!(direct.seen.requests(), 1);
    // A tunnel, which this proxy refuses. The key goes through it and is not seen.
    let tunnelled = with_key("c", "https://models.test/v1", client(None));
    assert!(tunnelled.oneshot(chat("m")).await.is_err());
    assert_eq!(secure.asked(), ["CONNECT models.test:443 no key"]);
    // Its own wins, for excepted hosts too.
    let with_own = with_key("d", &direct.url("/v1"), client(Some(&own.url())));
    assert_eq!(call(&with_own).await, 200);
    assert_eq!(
        own.asked(),
        [format!(
            "POST {} Bearer d",
            direct.url("/v1/chat/completions")
        )]
    );
    assert_eq!((plain.asked().len(), direct.seen.requests()), (1, 1));
}

#[tokio::test]
async fn socks_proxies_are_spoken_to_with_user_and_password() {
    let direct = serve(|_, _| async { text(200, "{}") }).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = listener.local_addr().unwrap();
    let target = direct.addr;
    let asked = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let read = async |client: &mut TcpStream, length: usize| {
            let mut bytes = vec![0; length];
            client.read_exact(&mut bytes).await.unwrap();
            bytes
        };
        // RFC 1928 and 1929: user and password, then a domain name.
        let greeting = read(&mut client, 2).await;
        read(&mut client, greeting[1].into()).await;
        client.write_all(&[5, 2]).await.unwrap();
        let login = read(&mut client, 11).await;
        assert_eq!(login, b"\x01\x02me\x06hidden");
        client.write_all(&[1, 0]).await.unwrap();
        let request = read(&mut client, 5).await;
        assert_eq!(request[..4], [5, 1, 0, 3]);
        let host = read(&mut client, request[4].into()).await;
        let port = read(&mut client, 2).await;
        client
            .write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])
            .await
            .unwrap();
        let mut server = TcpStream::connect(target).await.unwrap();
        tokio::spawn(async move { copy_bidirectional(&mut client, &mut server).await });
        (
            String::from_utf8(host).unwrap(),
            u16::from_be_bytes([port[0], port[1]]),
        )
    });
    let url = Secret::new(format!("socks5://me:hidden@{proxy}"));
    let clients = clients(Proxies::none());
    let client = clients.client(Some(&url), PoolBounds::default()).unwrap();
    assert_eq!(
        call(&with_key("a", "http://models.test/v1", client)).await,
        200
    );
    // The proxy resolves the name; the port is that of the scheme.
    assert_eq!(asked.await.unwrap(), ("models.test".to_owned(), 80));
    assert_eq!(direct.seen.requests(), 1);
}

#[test]
fn what_is_no_proxy_is_refused_without_being_shown() {
    for url in ["ftp://hidden", "http://", "http://me:hid den@proxy", ""] {
        let error = Proxies::all(&Secret::new(url)).unwrap_err();
        assert!(
            error.to_string().starts_with("proxy is not the URL"),
            "{error}"
        );
        assert!(!format!("{error} {error:?}").contains("hid"), "{error}");
    }
    for name in ["HTTPS_PROXY", "http_proxy", "ALL_PROXY"] {
        let error = Proxies::from_env(env(&[(name, "ftp://hidden")])).unwrap_err();
        let expected = format!("{} is not the URL", name.to_uppercase());
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
    let secret = Secret::new("http://me:hidden@proxy:3128");
    let proxies = Proxies::all(&secret).unwrap();
    let clients = clients(proxies.clone());
    let client = clients
        .client(Some(&secret), PoolBounds::default())
        .unwrap();
    let shown = format!("{proxies:?} {clients:?} {client:?}");
    assert!(!shown.contains("hidden"), "{shown}");
}
