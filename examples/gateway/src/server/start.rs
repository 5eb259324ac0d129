//! Builds the stack of a gateway, and listens.

use std::{
    collections::HashMap,
    fs::OpenOptions,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http::Uri;
use hyper_util::{rt::TokioTimer, server::conn::auto};
use tokio::{net::TcpListener, sync::watch};
use tower::Layer;
use tower_llm_stack::{
    BulkheadLayer, CacheLayer, DescribeLayer, KeyBy, RateLimitLayer, Stack,
    accounts::Proxies,
    config::{Config, ModelConfig, Strategy},
    monitor::{self, Measure, Threshold},
};
use tower_llm_testkit::{Behavior, SimulatedProvider};

use super::{Direct, Gateway, Service, Shared};
use crate::{
    Settings, StartError,
    access::Access,
    admin::{Admin, Sources},
    behind::Behind,
    breaker::{self, Breakers},
    cache,
    caller::PatientExecutor,
    client::Client,
    compress::Compress,
    decode::{Decode, decode},
    error::Reason,
    gate::Gate,
    layers,
    limits::{self, Limiters},
    monitor::{Metrics, MonitorLayer},
    proxy,
    secret::CallerSecret,
    sharing::Sharing,
    targets,
    upstream::Upstream,
    upstreams::Upstreams,
    warm::{Lines, OwnCalls, Warmer},
};

/// Records that wait to be written; beyond it they are dropped, and counted.
const MAX_RECORDS: usize = 10_000;

/// Maximum time for reading the request body, in addition to the maximum time of a call.
const UPLOAD: Duration = Duration::from_secs(300);

/// Where calls go.
struct Routes {
    upstreams: Upstreams,
    proxies: Proxies,
    simulator: Option<SimulatedProvider>,
}

/// What the layers of all upstreams and targets are made with, and what the gateway shows of them.
struct Layers<'a> {
    settings: &'a Settings,
    sharing: Option<&'a Sharing>,
    bulkhead: BulkheadLayer,
    limiters: Limiters,
    breakers: Breakers,
    monitor: &'a monitor::MonitorLayer,
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
        let config = configured.as_ref().map(|(config, _)| config);
        let bulkhead = match config {
            Some(config) => targets::bulkhead(&settings, config)?,
            None => layers::bulkhead(&settings)?,
        };
        let bulkhead_handle = bulkhead.handle();
        let routes = Routes::new(&settings, config).await?;
        let upstreams = &routes.upstreams;
        let mut notices = settings.notices.clone();
        let secret = CallerSecret::new(&settings)?;
        let access = Access::new(
            settings.access.keys.as_ref(),
            settings.names.of("--keys"),
            upstreams.iter().find_map(Upstream::credential_name),
            secret.as_ref(),
            &mut notices,
        )?;
        let sharing = Sharing::connect(&settings, secret.as_ref(), &mut notices).await?;
        let metrics = Metrics::new();
        let monitor = monitor(&settings, config)?;
        let describe = describe(&settings, secret.as_ref())?;
        let callers = limits::of_callers(&describe, &access, &settings, sharing.as_ref()).await?;
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
        let mut layers = Layers {
            settings: &settings,
            sharing: sharing.as_ref(),
            bulkhead,
            limiters: Limiters {
                callers: callers.as_ref().map(RateLimitLayer::handle),
                ..Limiters::default()
            },
            breakers: Breakers::new(),
            monitor: &monitor,
        };
        let made = match &configured {
            Some((config, secrets)) => {
                let (settings, bulkhead, limiters) =
                    (layers.settings, &layers.bulkhead, &mut layers.limiters);
                let sharing = layers.sharing;
                let made = targets::make(
                    config, secrets, settings, bulkhead, sharing, &monitor, limiters,
                )?;
                layers.breakers.extend(made.breakers);
                Some((made.models, made.shown, made.health))
            }
            None => None,
        };
        // Under the layers, so that they read what an upstream compressed unasked.
        let client = decode(Client::new(upstreams, routes.proxies.clone())?);
        let mut services: HashMap<_, Service> = HashMap::new();
        for upstream in upstreams.iter() {
            let behind = match &made {
                Some((models, ..)) => Behind::Targets(models.clone()),
                None => Behind::Upstream(layers.direct(upstream, &client)?),
            };
            let stack = Stack::builder()
                .describe(describe_for(upstream, &describe, secret.as_ref()))
                .monitor(monitor.clone())
                .own(MonitorLayer::new(metrics.clone()))
                .caller_rate_limit(callers.clone())
                .cache(cache.clone())
                .build();
            services.insert(upstream.name(), stack.layer(behind));
        }
        let Layers {
            limiters, breakers, ..
        } = layers;

        let listener = listen(settings.listen).await?;
        let addr = listener.local_addr().map_err(not_bound(settings.listen))?;
        refuse_itself(addr, upstreams, config)?;
        let longest = longest(&settings, config);
        let cache = cache.as_ref().map(CacheLayer::handle);
        let (targets, health) = match made {
            Some((_, shown, health)) => (shown, health),
            None => Default::default(),
        };
        let shared = Arc::new(Shared {
            services,
            targets,
            health: health.clone(),
            gate: Gate {
                access,
                allow_paths: settings.access.allow_paths.clone().unwrap_or_default(),
                upstreams: routes.upstreams,
            },
            proxies: routes.proxies,
            bulkhead: bulkhead_handle.clone(),
            limiters: limiters.clone(),
            cache: cache.clone(),
            sharing,
            breakers: breakers.clone(),
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
        let warmer = cache.is_some().then(|| {
            let calls: Arc<dyn OwnCalls> = Arc::<Shared>::clone(&shared);
            Arc::new(Warmer::new(calls, settings.cache.warm_concurrency))
        });
        let sources = Sources {
            monitor: monitor.handle(),
            bulkhead: bulkhead_handle,
            limiters,
            breakers,
            health,
            cache,
        };
        let Gate {
            access, upstreams, ..
        } = &shared.gate;
        let admin = Admin::bind(&settings, access, sources, warmer.clone(), &mut notices).await?;
        if let Some(admin) = &admin {
            refuse_itself(admin.addr(), upstreams, None)?;
        }
        Ok(Self {
            listener,
            addr,
            settings,
            shared,
            monitor: monitor.handle(),
            admin,
            warm,
            warmer,
            simulator: routes.simulator,
            notices,
        })
    }
}

// === impl Routes ===

impl Routes {
    /// To the targets of the configuration file, to the simulated provider, or to the upstreams of the settings.
    async fn new(settings: &Settings, config: Option<&Config>) -> Result<Self, StartError> {
        let without_proxy = |upstreams, simulator| Self {
            upstreams,
            proxies: Proxies::none(),
            simulator,
        };
        if let Some(config) = config {
            let targets = config.targets.iter();
            let targets = targets.map(|(name, target)| (name.as_str(), target));
            return Ok(without_proxy(Upstreams::of_targets(targets)?, None));
        }
        if Upstreams::are_simulated(settings) {
            let simulator = SimulatedProvider::start()
                .await
                .map_err(Reason::Simulator)?;
            simulator.set(lively());
            let upstreams = Upstreams::simulated(&simulator.url())?;
            return Ok(without_proxy(upstreams, Some(simulator)));
        }
        Ok(Self {
            upstreams: Upstreams::new(&settings.upstreams, &settings.names)?,
            proxies: proxy::proxies(&settings.proxy, &settings.names)?,
            simulator: None,
        })
    }
}

// === impl Layers ===

impl Layers<'_> {
    /// The layers of an upstream around the client.
    fn direct(
        &mut self,
        upstream: &Upstream,
        client: &Decode<Client>,
    ) -> Result<Direct, StartError> {
        let settings = self.settings;
        let limits = limits::of_provider(upstream, &settings.ratelimit, self.sharing)?;
        if let Some(limits) = &limits {
            let limiters = &mut self.limiters.providers;
            limiters.push((upstream.label(), limits.handle()));
        }
        let (names, name) = (&settings.names, upstream.name());
        let account_by = KeyBy::credential();
        let breaker = breaker::layer(&settings.breaker, names, name, account_by, self.sharing)?;
        self.breakers.push((upstream.label(), breaker.handle()));
        let stack = Stack::builder()
            .without_describe()
            .attempts(self.monitor.attempts())
            .breaker(breaker)
            .provider_rate_limit(limits)
            .bulkhead(self.bulkhead.clone())
            .timeout(layers::timeout(settings)?)
            .build();
        Ok(stack.layer(client.clone()))
    }
}

/// Describes calls, before it is known to which upstream they go.
fn describe(
    settings: &Settings,
    secret: Option<&CallerSecret>,
) -> Result<DescribeLayer, StartError> {
    let describe = DescribeLayer::new()
        .max_body_bytes(settings.max_body_bytes)
        .map_err(|error| StartError::setting(settings.names.of("--max-body-bytes"), error))?
        .max_streamed_bytes(settings.max_upload_bytes)
        .map_err(|error| StartError::setting(settings.names.of("--max-upload-bytes"), error))?;
    Ok(match secret {
        Some(secret) => describe.caller_secret(secret.of_credentials()),
        None => describe,
    })
}

fn describe_for(
    upstream: &Upstream,
    describe: &DescribeLayer,
    secret: Option<&CallerSecret>,
) -> DescribeLayer {
    // The upstream is the provider: by their form alone, Azure's newer paths are OpenAI's.
    let describe = describe.clone().provider(upstream.provider());
    match (upstream.credential(), secret) {
        (None, _) => describe.account_by_credential(),
        // A name for the configured credential, which distinguishes it from those of callers, and from the one of another
        // gateway.
        (Some(credential), Some(secret)) => describe.account(secret.account(credential)),
        (Some(_), None) => describe.account("gateway"),
    }
}

/// Counts calls; the models of the configuration file are counted by name, as are those that have a price.
fn monitor(
    settings: &Settings,
    config: Option<&Config>,
) -> Result<monitor::MonitorLayer, StartError> {
    let models = config.iter().flat_map(|config| config.models.keys());
    let mut monitor = monitor::MonitorLayer::builder()
        .models(models.map(String::as_str))
        // Of the usual thresholds only this one is right for any model: an answer may well take longer than a second.
        .alerts([Threshold::below(Measure::SuccessRatio, 0.95)]);
    if let Some(path) = &settings.records {
        // Found out now, and not with the first calls.
        let file = OpenOptions::new().append(true).create(true).open(path);
        file.map_err(|error| StartError::setting(settings.names.of("--records"), error))?;
        monitor = monitor.records(MAX_RECORDS);
    }
    monitor
        .build()
        .map_err(|error| StartError::setting("models", error))
}

async fn listen(addr: SocketAddr) -> Result<TcpListener, StartError> {
    let listener = TcpListener::bind(addr).await;
    listener.map_err(not_bound(addr))
}

fn not_bound(addr: SocketAddr) -> impl FnOnce(std::io::Error) -> StartError {
    move |error| {
        let flag = "--listen";
        Reason::Listen { addr, flag, error }.into()
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

/// Refuses an upstream or a target that is the gateway itself: each call would come back until no sockets are left. It happens
/// when `OPENAI_BASE_URL` is exported for a client.
fn refuse_itself(
    addr: SocketAddr,
    upstreams: &Upstreams,
    config: Option<&Config>,
) -> Result<(), StartError> {
    let refuse = |setting: &str, url: &Uri| {
        let what = format_args!("{url} is the address of this gateway itself");
        StartError::setting(setting, what)
    };
    for upstream in upstreams.iter() {
        if is_itself(addr, upstream.url()) {
            return Err(refuse(upstream.url_name(), upstream.url()));
        }
    }
    for (name, target) in config.iter().flat_map(|config| &config.targets) {
        let url = target.base_url().and_then(|url| url.parse().ok());
        if let Some(url) = url.filter(|url| is_itself(addr, url)) {
            return Err(refuse(&format!("targets.{name}.base_url"), &url));
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
    let in_turn = config.models.values().map(in_turn).max().unwrap_or(1);
    (waits + total.max().unwrap_or_default()) * in_turn + UPLOAD
}

/// How many calls may follow each other for one call to a model.
fn in_turn(model: &ModelConfig) -> u32 {
    let attempts = model.retries.saturating_add(1);
    let targets = u32::try_from(model.targets.len()).unwrap_or(u32::MAX);
    attempts.max(match model.strategy {
        // Each answer may be judged.
        Strategy::Cascade => targets.saturating_mul(2),
        Strategy::Ensemble => 2,
        _ => 1,
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exchange_lasts_as_long_as_all_calls_that_may_follow_each_other() {
        let settings = Settings::from_flags(["--simulate"]).unwrap();
        let waits = settings.ratelimit.timeout + settings.bulkhead.default_timeout;
        for (model, calls) in [
            ("", 3),
            ("retries = 0", 1),
            (
                "strategy = 'cascade'\nretries = 0\ncascade = { regex = 'a' }",
                4,
            ),
            (
                "strategy = 'cascade'\nretries = 9\ncascade = { regex = 'a' }",
                10,
            ),
            (
                "strategy = 'ensemble'\nretries = 0\nensemble = { majority = true }",
                2,
            ),
        ] {
            let text = format!(
                "[targets.a]\nprovider = 'openai'\n[targets.b]\nprovider = 'openai'\n\
                 timeouts = {{ total_streamed = '10m' }}\n[models.m]\ntargets = ['a', 'b']\n{model}"
            );
            let config = Config::from_toml(&text).unwrap();
            let expected = (waits + Duration::from_secs(600)) * calls + UPLOAD;
            assert_eq!(longest(&settings, Some(&config)), expected, "{model}");
        }
    }
}
