//! The server: accepts connections, answers requests, and lets them end before it stops.

use std::{
    collections::HashMap,
    convert::Infallible,
    fmt,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, request::Parts,
};
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::{
    body::{Body, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tower::{
    Layer, ServiceExt,
    util::{BoxCloneService, MapErr},
};
use tower_http::compression::Compression;
use tower_llm_stack::{
    BoxError, BulkheadHandle, CacheHandle, CacheLayer, DescribeLayer, Dialect, HttpBody,
    OptionalService, RateLimitLayer, RefusalLayer, Stack,
    accounts::Proxies,
    breaker::BreakerGate,
    bulkhead::BulkheadGate,
    cache::Cache,
    config::Config,
    core::{Describe, Gated},
    fanout::{AllFailed, Report},
    ratelimit::RateLimitGate,
    timeout::Timeout,
};
use tower_llm_testkit::{Behavior, SimulatedProvider};

use crate::{
    Settings, StartError,
    access::Access,
    admin::Admin,
    behind::Behind,
    breaker::{self, Breakers},
    cache,
    caller::{PatientBody, PatientExecutor, PatientSocket, Stalled},
    client::Client,
    compress::Compress,
    decode::{Decode, decode},
    drain::{Drained, Rest},
    error::Reason,
    framing::{Ambiguous, Framing},
    gate::{self, Gate},
    layers,
    limits::{self, Limiters},
    many,
    monitor::{Metrics, Monitor, MonitorLayer},
    paths::merge_slashes,
    problem::Problem,
    proxy, report,
    secret::CallerSecret,
    sharing::Sharing,
    shutdown::{CutBody, Drain, Shutdown},
    targets::{self, Models},
    upstream::{Upstream, Upstreams},
    warm::{self, Lines, OwnBody, OwnCall, OwnCalls, Warmer},
};

/// Maximum time for reading the request body, in addition to the maximum time of a call.
const UPLOAD: Duration = Duration::from_secs(300);

/// Time for the last frames of calls that are cut at shutdown.
const LAST_WORDS: Duration = Duration::from_secs(1);

const UPKEEP: Duration = Duration::from_secs(5);

/// The layers around the client, outermost first.
type Service = Describe<Monitor<CallerLimited<Cached<Behind<Direct, Models>>>>>;
/// The layers of one upstream.
type Direct = Gated<Timeout<Decode<Client>, HttpBody>, Gates, HttpBody>;
type CallerLimited<S> = OptionalService<Gated<S, Option<RateLimitGate>, HttpBody>, S, HttpBody>;
type Cached<S> = OptionalService<Cache<S>, S, HttpBody>;
type Gates = (BreakerGate, (Option<RateLimitGate>, BulkheadGate));

/// A gateway that listens; it serves once [`serve`](Self::serve) runs.
pub struct Gateway {
    listener: TcpListener,
    addr: SocketAddr,
    settings: Settings,
    shared: Arc<Shared>,
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
    /// Builds the stack, starts the simulated provider if it is wanted, and listens.
    ///
    /// # Errors
    ///
    /// If a setting can't work or the address can't be listened on.
    pub async fn bind(settings: Settings) -> Result<Self, StartError> {
        let configured = targets::load(&settings)?;
        let bulkhead = match &configured {
            Some((config, _)) => targets::bulkhead(&settings, config)?,
            None => layers::bulkhead(&settings)?,
        };
        let timeout = layers::timeout(&settings)?;
        let describe = DescribeLayer::new()
            .max_body_bytes(settings.max_body_bytes)
            .map_err(|error| StartError::setting(settings.names.of("--max-body-bytes"), error))?
            .max_streamed_bytes(settings.max_upload_bytes)
            .map_err(|error| StartError::setting(settings.names.of("--max-upload-bytes"), error))?;
        let (simulator, upstreams, proxies) = if let Some((config, _)) = &configured {
            let targets = config.targets.iter();
            let targets = targets.map(|(name, target)| (name.as_str(), target));
            (None, Upstreams::of_targets(targets)?, Proxies::none())
        } else if Upstreams::are_simulated(&settings) {
            let simulator = SimulatedProvider::start()
                .await
                .map_err(Reason::Simulator)?;
            simulator.set(lively());
            let upstreams = Upstreams::simulated(&simulator.url())?;
            (Some(simulator), upstreams, Proxies::none())
        } else {
            let upstreams = Upstreams::new(&settings.upstreams, &settings.names)?;
            let proxies = proxy::proxies(&settings.proxy, &settings.names)?;
            (None, upstreams, proxies)
        };
        let mut notices = settings.notices.clone();
        let credential = upstreams.iter().find_map(Upstream::credential_name);
        let keys = settings.access.keys.as_ref();
        let secret = CallerSecret::new(&settings)?;
        let access = Access::new(
            keys,
            settings.names.of("--keys"),
            credential,
            secret.as_ref(),
            &mut notices,
        )?;
        let describe = match &secret {
            Some(secret) => describe.caller_secret(secret.of_credentials()),
            None => describe,
        };
        let sharing = Sharing::connect(&settings, secret.as_ref(), &mut notices).await?;
        let metrics = Metrics::new();
        let handle = bulkhead.handle();
        let callers = limits::of_callers(&describe, &access, &settings, sharing.as_ref()).await?;
        let mut limiters = Limiters {
            callers: callers.as_ref().map(RateLimitLayer::handle),
            ..Limiters::default()
        };
        let describe = match &access {
            Access::Open => describe,
            Access::Keys(keys) => describe.caller_by(keys.caller_by()),
        };
        let cache = cache::layer(
            &settings.cache,
            &settings.names,
            sharing.as_ref(),
            secret.as_ref(),
        )?;
        let warm = Lines::load(&settings, &access, cache.is_some())?;
        let mut breakers = Breakers::new();
        let made = match &configured {
            Some((config, secrets)) => {
                let sharing = sharing.as_ref();
                let made = targets::make(
                    config,
                    secrets,
                    &settings,
                    &bulkhead,
                    sharing,
                    &mut limiters,
                )?;
                breakers.extend(made.breakers);
                Some((made.models, made.shown))
            }
            None => None,
        };
        // Under the layers, so that they read what an upstream compressed unasked.
        let client = decode(Client::new(&upstreams, proxies.clone())?);
        let mut services = HashMap::new();
        for upstream in upstreams.iter() {
            let provider = upstream.provider();
            // The upstream is the provider: by their form alone, Azure's newer paths are OpenAI's.
            let describe = describe.clone().provider(provider);
            let describe = match (upstream.credential(), &secret) {
                (None, _) => describe.account_by_credential(),
                // A name for the configured credential, which distinguishes it from those of callers, and from the one
                // of another gateway.
                (Some(credential), Some(secret)) => describe.account(secret.account(credential)),
                (Some(_), None) => describe.account("gateway"),
            };
            let behind = match &made {
                Some((models, _)) => Behind::Targets(models.clone()),
                None => {
                    let limits =
                        limits::of_provider(upstream, &settings.ratelimit, sharing.as_ref())?;
                    if let Some(limits) = &limits {
                        limiters.providers.push((upstream.label(), limits.handle()));
                    }
                    let breaker = breaker::layer(
                        &settings.breaker,
                        &settings.names,
                        upstream.name(),
                        sharing.as_ref(),
                    )?;
                    breakers.push((upstream.label(), breaker.handle()));
                    let stack = Stack::builder()
                        .without_describe()
                        .breaker(breaker)
                        .provider_rate_limit(limits)
                        .bulkhead(bulkhead.clone())
                        .timeout(timeout)
                        .build();
                    Behind::Upstream(stack.layer(client.clone()))
                }
            };
            let stack = Stack::builder()
                .describe(describe)
                .own(MonitorLayer::new(metrics.clone()))
                .caller_rate_limit(callers.clone())
                .cache(cache.clone())
                .build();
            services.insert(upstream.name(), stack.layer(behind));
        }

        let addr = settings.listen;
        let listen = |error| Reason::Listen {
            addr,
            flag: "--listen",
            error,
        };
        let listener = TcpListener::bind(addr).await.map_err(listen)?;
        let addr = listener.local_addr().map_err(listen)?;
        refuse_itself(addr, &upstreams)?;
        if let Some((config, _)) = &configured {
            for (name, target) in &config.targets {
                let url = target.base_url().and_then(|url| url.parse().ok());
                if let Some(url) = url.filter(|url| is_itself(addr, url)) {
                    let what = format_args!("{url} is the address of this gateway itself");
                    let setting = format!("targets.{name}.base_url");
                    return Err(StartError::setting(setting, what));
                }
            }
        }
        let cache = cache.as_ref().map(CacheLayer::handle);
        let gate = Gate {
            access,
            allow_paths: settings.access.allow_paths.clone().unwrap_or_default(),
            upstreams,
        };
        let longest = longest(&settings, configured.as_ref().map(|(config, _)| config));
        let shared = Arc::new(Shared {
            services,
            targets: made.map(|(_, shown)| shown).unwrap_or_default(),
            gate,
            proxies,
            bulkhead: handle,
            limiters,
            cache: cache.clone(),
            sharing,
            breakers,
            metrics,
            http: http(&settings, longest),
            longest,
            caller_timeout: settings.caller_timeout,
            max_body_bytes: settings.max_body_bytes,
            compress: Compress {
                enabled: settings.compress,
            },
            shutdown: Arc::default(),
            closing: watch::Sender::new(false),
        });
        let cache = cache.map(|cache| {
            let calls: Arc<dyn OwnCalls> = Arc::<Shared>::clone(&shared);
            let warmer = Warmer::new(calls, settings.cache.warm_concurrency);
            (cache, Arc::new(warmer))
        });
        let Gate {
            access, upstreams, ..
        } = &shared.gate;
        let admin = Admin::bind(&settings, access, cache.clone(), &mut notices).await?;
        if let Some(admin) = &admin {
            refuse_itself(admin.addr(), upstreams)?;
        }
        Ok(Self {
            listener,
            addr,
            settings,
            shared,
            admin,
            warm,
            warmer: cache.map(|(_, warmer)| warmer),
            simulator,
            notices,
        })
    }

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
            admin,
            warm,
            warmer,
            simulator,
            ..
        } = self;
        let mut stop = pin!(stop);
        let mut upkeep = interval(UPKEEP);
        upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);
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
        Stopped { cut }
    }
}

/// Answers that look as if they were being written.
fn lively() -> Behavior {
    Behavior::new()
        .strict()
        .counted_input_tokens()
        .output_tokens(20)
        .first_token(Duration::from_millis(50))
        .gap(Duration::from_millis(20))
}

/// Refuses an upstream that is the gateway itself: each call would come back until no sockets are left. It happens when
/// `OPENAI_BASE_URL` is exported for a client.
fn refuse_itself(addr: SocketAddr, upstreams: &Upstreams) -> Result<(), StartError> {
    for upstream in upstreams.iter() {
        if is_itself(addr, upstream.url()) {
            let what = format_args!("{} is the address of this gateway itself", upstream.url());
            return Err(StartError::setting(upstream.url_name(), what));
        }
    }
    Ok(())
}

fn is_itself(addr: SocketAddr, uri: &Uri) -> bool {
    let https = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
    let host = uri.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let (is_local, is_same) = match host.parse::<IpAddr>() {
        Ok(ip) => (ip.is_loopback() || ip.is_unspecified(), ip == addr.ip()),
        Err(_) => (host.eq_ignore_ascii_case("localhost"), false),
    };
    let listens_locally = addr.ip().is_loopback() || addr.ip().is_unspecified();
    port == addr.port() && (is_same || is_local && listens_locally)
}

/// How long a call may take, with all that the settings let it wait for.
fn longest(settings: &Settings, config: Option<&Config>) -> Duration {
    let waits = settings.ratelimit.timeout + settings.bulkhead.default_timeout;
    let Some(config) = config else {
        return waits + settings.timeout.total + UPLOAD;
    };
    let targets = config.targets.values();
    let total = targets.map(|target| target.timeouts.total.max(target.timeouts.total_streamed));
    let retries = config.models.values().map(|model| model.retries).max();
    let attempts = retries.unwrap_or(0).saturating_add(1);
    (waits + total.max().unwrap_or_default()) * attempts + UPLOAD
}

fn http(settings: &Settings, longest: Duration) -> auto::Builder<PatientExecutor> {
    let mut http = auto::Builder::new(PatientExecutor::new(longest));
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(settings.caller_timeout);
    http.http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(settings.caller_timeout)
        .keep_alive_timeout(settings.caller_timeout)
        .max_concurrent_streams(100);
    http
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

/// Answers a request, and reads what the caller still sends of it, so that the caller reads the answer.
async fn exchange(
    shared: Arc<Shared>,
    ambiguous: Ambiguous,
    request: Request<Incoming>,
) -> Result<Response<impl Body<Data = Bytes, Error = BoxError> + Send>, BoxError> {
    let (mut parts, body) = request.into_parts();
    let rest = Rest::default();
    let (body, stalled) = PatientBody::new(body, shared.caller_timeout, rest.clone());
    if let Some(uri) = merge_slashes(&parts.uri) {
        parts.uri = uri;
    }
    let awaits_leave =
        parts.version < Version::HTTP_2 && parts.headers.contains_key(header::EXPECT);
    let mut response = answer(shared, ambiguous, parts, body, stalled).await?;
    // A client that still waits for `100 Continue` may or may not send the body, so what follows is unknown.
    if awaits_leave && rest.is_given_up() {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    Ok(response.map(|body| Drained::new(body, rest)))
}

async fn answer(
    shared: Arc<Shared>,
    ambiguous: Ambiguous,
    mut parts: Parts,
    body: PatientBody,
    stalled: Stalled,
) -> Result<Response<impl Body<Data = Bytes, Error = BoxError> + Send>, BoxError> {
    // Before the keys are removed, since a header that only one provider's clients send may identify the dialect.
    let dialect = shared.gate.dialect(&parts);
    if let Err(problem) = gate::check_form(&parts, &ambiguous) {
        return Ok(refuse(problem, dialect, &parts).map(Either::Right));
    }
    let own = matches!(parts.method, Method::GET | Method::HEAD)
        .then(|| shared.own(parts.uri.path()))
        .flatten();
    if let Some(response) = own {
        return Ok(response.map(Either::Right));
    }
    let endpoint = many::Endpoint::of(&parts.method, parts.uri.path());
    if let Some(endpoint) = endpoint {
        // Boxed: it is rare, and large.
        let answered: many::Answered = Box::pin(answer_many(shared, endpoint, parts, body));
        return Ok(answered.await.map(Either::Right));
    }
    let upstream = match shared.gate.admit(&mut parts) {
        Ok(upstream) => upstream,
        Err(problem) => return Ok(refuse(problem, dialect, &parts).map(Either::Right)),
    };
    let service = shared.services[upstream.name()].clone();
    parts.extensions.insert(upstream);
    let calling = call(service, Request::from_parts(parts, body));
    let response = tokio::select! {
        biased;
        response = calling => response?,
        () = shared.shutdown.until_cut() => {
            return Ok(Problem::SHUTTING_DOWN.response(dialect).map(Either::Right));
        }
    };
    if stalled.is_set() {
        return Ok(Problem::STALLED.response(dialect).map(Either::Right));
    }
    let shutdown = Arc::clone(&shared.shutdown);
    Ok(CutBody::response(response, dialect, shutdown).map(Either::Left))
}

/// Answers a request that is many calls.
async fn answer_many(
    shared: Arc<Shared>,
    endpoint: many::Endpoint,
    mut parts: Parts,
    body: PatientBody,
) -> Response<Full<Bytes>> {
    // As each of its calls would be.
    parts.uri = Uri::from_static(endpoint.path());
    let upstream = match shared.gate.admit(&mut parts) {
        Ok(upstream) => upstream,
        Err(problem) => return refuse(problem, Dialect::OpenAi, &parts),
    };
    let body = match Limited::new(body, shared.max_body_bytes).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return many::refused(&error.to_string()),
    };
    // What is not answered when the exchange has to end is told item by item.
    let deadline = shared.longest.saturating_sub(Duration::from_secs(60));
    let bounds = many::Bounds {
        max_body_bytes: shared.max_body_bytes,
        deadline,
    };
    let plan = match endpoint.plan(&body, bounds) {
        Ok(plan) => plan,
        Err(what) => return many::refused(&what),
    };
    let service = shared.services[upstream.name()].clone();
    parts.extensions.insert(upstream);
    let each = tower::service_fn(move |request: Request<PatientBody>| {
        let answered = call(service.clone(), request);
        async move {
            let Ok(response) = answered.await;
            Ok::<_, BoxError>(response.map(BodyExt::boxed_unsync))
        }
    });
    tokio::select! {
        biased;
        response = plan.run(BoxCloneService::new(each), &parts) => response,
        () = shared.shutdown.until_cut() => Problem::SHUTTING_DOWN.response(Dialect::OpenAi),
    }
}

/// Makes a call of the gateway's own, which is to be cached.
async fn own_call(
    shared: Arc<Shared>,
    request: Request<Bytes>,
) -> Result<Response<OwnBody>, BoxError> {
    let (mut parts, body) = request.into_parts();
    let admitted = gate::check_form(&parts, &Ambiguous::default())
        .and_then(|()| shared.gate.admit_own(&mut parts));
    let upstream = admitted.map_err(|problem| problem.message)?;
    let service = shared.services[upstream.name()].clone();
    parts.extensions.insert(upstream);
    let response = service
        .oneshot(Request::from_parts(parts, PatientBody::own(body)))
        .await?;
    // Dropping the response ends the call before all of it is paid for.
    match warm::not_cached(response.headers()) {
        Some(why) => Err(why.into()),
        None => Ok(response.map(BodyExt::boxed_unsync)),
    }
}

impl OwnCalls for Shared {
    fn access(&self) -> &Access {
        &self.gate.access
    }

    fn send(self: Arc<Self>, request: Request<Bytes>) -> OwnCall {
        Box::pin(own_call(self, request))
    }
}

/// Tells the caller not to retry what the gateway has retried: each of the caller's attempts would be several here.
fn say_if_retried<B>(response: &mut Response<B>, all_failed: bool) {
    let report = response.extensions().get::<Report>();
    let was_retried = report.is_some_and(|report| report.attempts().len() > 1);
    if (was_retried || all_failed) && !response.status().is_success() {
        let no = HeaderValue::from_static("false");
        response.headers_mut().insert("x-should-retry", no);
    }
}

/// Sends a request into the stack. An error becomes a response in the dialect of the request.
fn call(
    service: Service,
    request: Request<PatientBody>,
) -> impl Future<Output = Result<Response<impl Body<Data = Bytes, Error = BoxError> + Send>, Infallible>>
+ Send {
    let method = request.method().clone();
    let path = request.uri().path_and_query().cloned();
    let was_retried = Arc::new(AtomicBool::new(false));
    let retried = Arc::clone(&was_retried);
    let service = MapErr::new(service, move |error: BoxError| {
        if AllFailed::find(&*error).is_some() {
            retried.store(true, Ordering::Relaxed);
        }
        if let Some(path) = &path {
            report::too_large(&*error, &method, path);
        }
        error
    });
    let stack = RefusalLayer::new().infallible().layer(service);
    let stack = stack.map_response(move |mut response| {
        say_if_retried(&mut response, was_retried.load(Ordering::Relaxed));
        response
    });
    stack.oneshot(request)
}

/// Answers with `problem`, and says so in the log: without the query, which may hold a credential.
fn refuse(problem: Problem, dialect: Dialect, request: &Parts) -> Response<Full<Bytes>> {
    let (method, path) = (&request.method, request.uri.path());
    let status = problem.status.as_u16();
    tracing::warn!(status, code = problem.code, %method, path, "request refused");
    problem.response(dialect)
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
