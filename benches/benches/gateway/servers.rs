//! The servers that are compared, and the provider behind them.

use std::{net::SocketAddr, sync::mpsc, thread, time::Duration};

use cpu_time::ThreadTime;
use gateway::{Gateway, Settings};
use http::{Request, Uri, uri::Scheme};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
};
use tokio::{net::TcpListener, runtime};
use tower_llm_testkit::{Behavior, SimulatedProvider};

/// Limits that are met by no call.
const LIMITS: [&str; 4] = [
    "--ratelimit-openai-rpm=1000000000",
    "--ratelimit-openai-tpm=1000000000000",
    "--ratelimit-caller-rpm=1000000000",
    "--ratelimit-caller-tpm=1000000000000",
];

pub(crate) struct Servers {
    pub(crate) proxy: Server,
    /// A gateway without settings.
    pub(crate) started: Server,
    /// A gateway that limits its callers and the provider too.
    pub(crate) limited: Server,
}

/// A server with a thread of its own.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    runtime: runtime::Handle,
}

impl Servers {
    /// Starts them, and a provider that behaves like this.
    pub(crate) fn start(behavior: Behavior) -> Self {
        let provider = Server::start("provider", || async {
            let provider = SimulatedProvider::start().await.expect("a port is free");
            provider.set(behavior);
            (provider.addr(), async move {
                let _provider = provider;
                std::future::pending().await
            })
        });
        let upstream = provider.addr;
        Self {
            proxy: Server::start("proxy", move || bare_proxy(upstream)),
            started: Server::start("gateway", move || serve_gateway(upstream, &[])),
            limited: Server::start("limited", move || serve_gateway(upstream, &LIMITS)),
        }
    }
}

impl Server {
    /// Starts what `start` makes: the address that it listens on, and its future.
    fn start<F, S, Serve>(name: &str, start: S) -> Self
    where
        S: FnOnce() -> F + Send + 'static,
        F: Future<Output = (SocketAddr, Serve)>,
        Serve: Future<Output = ()>,
    {
        let (started, has_started) = mpsc::channel();
        let thread = thread::Builder::new().name(name.to_owned());
        let spawned = thread.spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime can be built");
            let (addr, serve) = runtime.block_on(start());
            let handle = runtime.handle().clone();
            let _ = started.send((addr, handle));
            runtime.block_on(serve);
        });
        spawned.expect("a thread can be started");
        let (addr, runtime) = has_started.recv().expect("the server starts");
        Self { addr, runtime }
    }

    /// What its thread has used so far.
    pub(crate) async fn processor_time(&self) -> Duration {
        let now = self
            .runtime
            .spawn(async { ThreadTime::now().as_duration() });
        now.await.expect("the server runs")
    }

    /// What its thread has allocated and not freed, in bytes.
    pub(crate) async fn held(&self) -> u64 {
        let held = self.runtime.spawn(async { benches::held() });
        held.await.expect("the server runs")
    }
}

async fn serve_gateway(
    upstream: SocketAddr,
    limits: &[&str],
) -> (SocketAddr, impl Future<Output = ()> + use<>) {
    let url = format!("http://{upstream}/v1");
    let flags = ["--listen", "127.0.0.1:0", "--openai-base-url", &url];
    let settings = Settings::from_flags(flags.iter().chain(limits));
    let gateway = Gateway::bind(settings.expect("the flags are right")).await;
    let gateway = gateway.expect("a port is free");
    (gateway.addr(), async move {
        gateway.serve(std::future::pending()).await;
    })
}

/// Passes calls on as they come, with hyper's server and its client.
async fn bare_proxy(upstream: SocketAddr) -> (SocketAddr, impl Future<Output = ()>) {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port is free");
    let addr = listener.local_addr().expect("it listens");
    let client = Client::builder(TokioExecutor::new()).build_http::<Incoming>();
    let serve = async move {
        loop {
            let (stream, _) = listener.accept().await.expect("a caller connects");
            let client = client.clone();
            let service = service_fn(move |mut request: Request<Incoming>| {
                let path = request.uri().path_and_query().cloned();
                let uri = Uri::builder()
                    .scheme(Scheme::HTTP)
                    .authority(upstream.to_string())
                    .path_and_query(path.expect("a request has a path"))
                    .build();
                *request.uri_mut() = uri.expect("the parts are right");
                request.headers_mut().remove(http::header::HOST);
                client.request(request)
            });
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::spawn(connection);
        }
    };
    (addr, serve)
}
