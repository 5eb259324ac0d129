//! The server: accepts connections, answers requests, and lets them end before it stops.

mod exchange;
mod start;

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::{rt::TokioIo, server::conn::auto};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
    task::{JoinHandle, JoinSet},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tower::ServiceExt;
use tower_http::compression::Compression;
use tower_llm_stack::{
    BulkheadHandle, CacheHandle, Dialect, HttpBody, OptionalService,
    accounts::Proxies,
    breaker::BreakerGate,
    bulkhead::BulkheadGate,
    cache::Cache,
    core::{Describe, Gated},
    monitor::{AttemptGate, JsonLines, MonitorGate, MonitorHandle},
    ratelimit::RateLimitGate,
    timeout::Timeout,
};
use tower_llm_testkit::SimulatedProvider;

use self::exchange::exchange;
use crate::{
    Settings,
    access::Access,
    admin::Admin,
    behind::Behind,
    breaker::Breakers,
    caller::{PatientExecutor, PatientSocket},
    client::Client,
    compress::Compress,
    decode::Decode,
    framing::Framing,
    gate::Gate,
    limits::Limiters,
    monitor::{Metrics, Monitor},
    sharing::Sharing,
    shutdown::{Drain, Shutdown},
    targets::{Healths, Models},
    upstream::Upstream,
    warm::{Lines, Warmer},
};

/// Time for the last frames of calls that are cut at shutdown.
const LAST_WORDS: Duration = Duration::from_secs(1);

const UPKEEP: Duration = Duration::from_secs(5);

/// The layers around the client, outermost first.
type Service = Describe<Counted<Monitor<CallerLimited<Cached<Behind<Direct, Models>>>>>>;
type Counted<S> = Gated<S, MonitorGate, HttpBody>;
/// The layers of one upstream.
type Direct = Gated<Timeout<Decode<Client>, HttpBody>, Gates, HttpBody>;
type CallerLimited<S> = OptionalService<Gated<S, Option<RateLimitGate>, HttpBody>, S, HttpBody>;
type Cached<S> = OptionalService<Cache<S>, S, HttpBody>;
type Gates = (
    AttemptGate,
    (BreakerGate, (Option<RateLimitGate>, BulkheadGate)),
);

/// A gateway that listens; it serves once [`serve`](Self::serve) runs.
pub struct Gateway {
    listener: TcpListener,
    addr: SocketAddr,
    settings: Settings,
    shared: Arc<Shared>,
    monitor: MonitorHandle,
    admin: Option<Admin>,
    /// The calls to make after the start, and what makes them if there is a cache.
    warm: Option<Lines>,
    warmer: Option<Arc<Warmer>>,
    simulator: Option<SimulatedProvider>,
    notices: Vec<String>,
}

/// How a gateway has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Connections that were cut because they had not ended by the deadline.
    pub cut: usize,
}

/// State that all connections share.
struct Shared {
    /// By the upstream's name: each has limits of its own, and all share the rest.
    services: HashMap<&'static str, Service>,
    /// Name and address of each target of the configuration file.
    targets: Vec<(String, String)>,
    health: Healths,
    gate: Gate,
    proxies: Proxies,
    bulkhead: BulkheadHandle,
    limiters: Limiters,
    cache: Option<CacheHandle>,
    /// What is shared with other gateways.
    sharing: Option<Sharing>,
    breakers: Breakers,
    metrics: Metrics,
    http: auto::Builder<PatientExecutor>,
    caller_timeout: Duration,
    /// How long an exchange may take.
    longest: Duration,
    max_body_bytes: usize,
    compress: Compress,
    shutdown: Arc<Shutdown>,
    /// Whether it has stopped listening, so that connections end.
    closing: watch::Sender<bool>,
}

// === impl Gateway ===

impl Gateway {
    /// What the operator should know of the settings, whatever the log's level is.
    #[must_use]
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where its administrator's listener is; `None` if it has none.
    #[must_use]
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(Admin::addr)
    }

    /// The state of the bulkhead, which is in the metrics too.
    #[must_use]
    pub fn bulkhead(&self) -> BulkheadHandle {
        self.shared.bulkhead.clone()
    }

    /// Each provider's name and where its calls go, without keys.
    pub fn upstreams(&self) -> impl Iterator<Item = (String, String)> {
        if !self.shared.targets.is_empty() {
            return self.shared.targets.clone().into_iter();
        }
        let upstreams = self.shared.gate.upstreams.iter().map(|upstream| {
            let proxy = self.shared.proxies.url_of(upstream.url());
            let through = proxy.map_or_else(String::new, |proxy| format!(", through {proxy}"));
            (upstream.name().to_owned(), format!("{upstream}{through}"))
        });
        upstreams.collect::<Vec<_>>().into_iter()
    }

    /// Whether it has an upstream for calls in this dialect.
    #[must_use]
    pub fn speaks(&self, dialect: Dialect) -> bool {
        let front = Upstream::front_of(dialect);
        let mut upstreams = self.shared.gate.upstreams.iter();
        upstreams.any(|upstream| upstream.name() == front)
    }

    /// What it shares with other gateways, for the operator to read; `None` if it shares nothing.
    #[must_use]
    pub fn sharing(&self) -> Option<String> {
        self.shared.sharing.as_ref().map(Sharing::to_string)
    }

    /// Whether callers need one of the gateway's keys.
    #[must_use]
    pub fn requires_key(&self) -> bool {
        matches!(self.shared.gate.access, Access::Keys(_))
    }

    /// Returns a handle that makes the gateway report that it is not ready, some time before it stops.
    #[must_use]
    pub fn drain(&self) -> Drain {
        Drain(Arc::clone(&self.shared.shutdown))
    }

    /// Serves until `stop`, then lets calls end within the shutdown deadline, and cuts the rest.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> Stopped {
        let Self {
            listener,
            settings,
            shared,
            monitor,
            admin,
            warm,
            warmer,
            simulator,
            ..
        } = self;
        let mut stop = pin!(stop);
        let mut upkeep = interval(UPKEEP);
        upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut alerts = pin!(monitor.watch_alerts(UPKEEP, |_| {}));
        let recording = recorded(&settings, &monitor);
        // Dropping the set drops the connections.
        let mut connections = JoinSet::new();
        // It has connections of its own, which do not count here.
        let mut administration = JoinSet::new();
        if let Some(admin) = admin {
            administration.spawn(admin.serve(shared.closing.subscribe()));
        }
        if let (Some(warmer), Some(lines)) = (&warmer, warm)
            && warmer.start(lines).is_err()
        {
            tracing::warn!("the cache is being warmed already");
        }
        loop {
            let has_room = connections.len() < settings.max_connections;
            tokio::select! {
                () = &mut stop => break,
                accepted = listener.accept(), if has_room => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(connection(stream, Arc::clone(&shared)));
                    }
                    Err(error) => refused_by_system(&error).await,
                },
                Some(_) = connections.join_next() => {}
                _ = upkeep.tick() => shared.metrics.upkeep(),
                () = &mut alerts => {}
            }
        }
        shared.shutdown.drain();
        // From here on the system refuses new connections.
        drop(listener);
        shared.closing.send_replace(true);
        if let Some(warmer) = warmer {
            warmer.stop();
        }
        let all = async |connections: &mut JoinSet<()>| {
            while connections.join_next().await.is_some() {}
        };
        let _ = timeout(settings.shutdown_deadline, async {
            all(&mut connections).await;
            all(&mut administration).await;
        })
        .await;
        let cut = connections.len();
        shared.shutdown.cut();
        let _ = timeout(LAST_WORDS, all(&mut connections)).await;
        connections.shutdown().await;
        if let Some(simulator) = simulator {
            simulator.shutdown().await;
        }
        if let Some((stop, recording)) = recording {
            drop(stop);
            let _ = timeout(LAST_WORDS, recording).await;
        }
        Stopped { cut }
    }
}

/// Writes a record of each call, if a file is set, until the sender is dropped; then what is left.
fn recorded(
    settings: &Settings,
    monitor: &MonitorHandle,
) -> Option<(oneshot::Sender<()>, JoinHandle<()>)> {
    let sink = JsonLines::new(settings.records.as_ref()?);
    let recorder = monitor.recorder(sink, wall_clock)?;
    let (stop, stopped) = oneshot::channel();
    let recording = tokio::spawn(async {
        recorder.run(async { drop(stopped.await) }).await;
    });
    Some((stop, recording))
}

#[expect(
    clippy::disallowed_methods,
    reason = "a record is read by people, by the clock on their wall"
)]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// Most failures to accept are of one connection that is gone. Without free file descriptors the next attempt would fail at
/// once too, so it waits.
pub(crate) async fn refused_by_system(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if !matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    ) {
        tracing::warn!(%error, "cannot accept");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    // Tokens are sent as they come, and not collected into larger packets.
    let _ = stream.set_nodelay(true);
    let mut closing = shared.closing.subscribe();
    let has_asked = AtomicBool::new(false);
    let socket = PatientSocket::new(stream, shared.caller_timeout);
    let (socket, ambiguous) = Framing::new(socket);
    let service = service_fn(|request| {
        has_asked.store(true, Ordering::Relaxed);
        let (shared, ambiguous) = (Arc::clone(&shared), ambiguous.clone());
        let compress = shared.compress;
        let service = tower::service_fn(move |request| {
            exchange(Arc::clone(&shared), ambiguous.clone(), request)
        });
        let service = Compression::new(service).compress_when(compress);
        service.oneshot(request)
    });
    let io = TokioIo::new(socket);
    let mut serving = pin!(shared.http.serve_connection(io, service));
    // hyper's own limit starts once it knows the version of HTTP, which a silent connection never tells.
    let mut silence = pin!(sleep(shared.caller_timeout));
    let mut is_silent = true;
    let mut closes = false;
    loop {
        tokio::select! {
            biased;
            // A broken connection has dropped its calls; there is nothing more to do.
            _ = serving.as_mut() => return,
            _ = closing.wait_for(|closing| *closing), if !closes => {
                closes = true;
                serving.as_mut().graceful_shutdown();
            }
            () = &mut silence, if is_silent => {
                is_silent = false;
                if !has_asked.load(Ordering::Relaxed) {
                    return;
                }
            }
        }
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway")
            .field("addr", &self.addr)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

// === impl Shared ===

impl Shared {
    /// What the gateway answers itself.
    fn own(&self, path: &str) -> Option<Response<Full<Bytes>>> {
        let text = |status, kind, body: String| {
            let mut response = Response::new(Full::from(body));
            *response.status_mut() = status;
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            Some(response)
        };
        match path {
            // The process is alive, also while it drains: restarting it would cut its calls.
            "/healthz" => text(StatusCode::OK, "text/plain", "ok\n".to_owned()),
            "/readyz" if self.shutdown.drains() => text(
                StatusCode::SERVICE_UNAVAILABLE,
                "text/plain",
                "draining\n".to_owned(),
            ),
            "/readyz" => text(StatusCode::OK, "text/plain", "ready\n".to_owned()),
            "/metrics" => text(
                StatusCode::OK,
                "text/plain; version=0.0.4; charset=utf-8",
                self.metrics.render(
                    &self.bulkhead,
                    &self.limiters,
                    self.cache.as_ref(),
                    &self.breakers,
                    &self.health,
                    self.sharing.as_ref(),
                ),
            ),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_not_ready_while_it_drains_and_still_alive() {
        let settings = Settings::from_flags(["--listen", "127.0.0.1:0"]).unwrap();
        let gateway = Gateway::bind(settings).await.unwrap();
        let status = |path| gateway.shared.own(path).unwrap().status();
        assert_eq!(status("/readyz"), StatusCode::OK);
        gateway.drain().start();
        assert_eq!(status("/readyz"), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(status("/healthz"), StatusCode::OK);
    }
}
