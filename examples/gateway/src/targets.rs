//! The targets of a configuration file, and the models whose calls go to them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::Request;
use hyper::body::Incoming;
use tower::{Layer, Service};
use tower_llm_stack::{
    BoxError, BulkheadLayer, Described, Dialect, FanoutLayer, HttpBody, KeyBy, Pool, RequestBody,
    Secret, Stack, TimeoutLayer,
    accounts::Clients,
    adapters::ResponseBody,
    breaker::BreakerGate,
    bulkhead::BulkheadGate,
    config::{Config, HedgeConfig, ModelConfig, StickyKey, Strategy, TargetConfig},
    core::{GateLayer, Gated, Oneshot},
    fanout::{Budget, Delay, Dispatch, Fanout, FanoutBuilder, FirstOk, Pick, Route, Target},
    ratelimit::RateLimitGate,
    timeout::Timeout,
};

use crate::{
    Settings, StartError,
    breaker::{self, Breakers},
    caller::PatientBody,
    decode::{Decode, decode},
    limits::{self, Limiters},
    proxy::proxies,
    sender::Sender,
    sharing::Sharing,
    upstream::{Upstream, has_credential},
};

/// A call of a caller's, behind the cache.
type Call = Request<RequestBody<PatientBody>>;

/// The layers of one target around its account.
type TargetService = Gated<
    Timeout<Decode<Sender, ResponseBody<Incoming>>, HttpBody>,
    (BreakerGate, (Option<RateLimitGate>, BulkheadGate)),
    HttpBody,
>;

/// A pool of targets, and what a call does there.
type Routing = Fanout<Dispatch, Route<TargetService>, FirstOk>;

/// Sends each call to the targets of its model. Clones share the targets.
#[derive(Clone, Debug)]
pub(crate) struct Models(Arc<Routes>);

#[derive(Debug)]
struct Routes {
    /// By the name that callers use, each with the provider that its targets stand for.
    models: HashMap<String, (&'static str, Routing)>,
    /// For models that are not listed, and calls without a model: the first target of each dialect, by the provider that it
    /// stands for.
    others: HashMap<&'static str, Routing>,
}

/// What the targets are made of, for the rest of the gateway to show.
pub(crate) struct Made {
    pub(crate) models: Models,
    pub(crate) breakers: Breakers,
    /// Name and address of each target.
    pub(crate) shown: Vec<(String, String)>,
}

/// A target and its layers, for each pool that it is in.
type Built = BTreeMap<String, Target<TargetService>>;

/// Reads the configuration file, and the secrets that it names.
pub(crate) fn load(
    settings: &Settings,
) -> Result<Option<(Config, BTreeMap<String, Secret>)>, StartError> {
    let Some(path) = settings.config.as_ref().filter(|_| !settings.simulate) else {
        return Ok(None);
    };
    let name = settings.names.of("--config");
    let config = Config::load(path).map_err(|error| StartError::setting(name, error))?;
    config
        .validate()
        .map_err(|error| StartError::setting(name, error))?;
    let secrets = config.secrets(|variable| std::env::var_os(variable));
    let secrets = secrets.map_err(|error| StartError::setting(name, error))?;
    Ok((!config.targets.is_empty()).then_some((config, secrets)))
}

/// How many calls run at once at each target.
pub(crate) fn bulkhead(settings: &Settings, config: &Config) -> Result<BulkheadLayer, StartError> {
    let bulkhead = &settings.bulkhead;
    let mut builder = BulkheadLayer::builder(bulkhead.default_concurrent)
        .key_by(KeyBy::account())
        .max_waiting(bulkhead.default_queue)
        .max_wait(bulkhead.default_timeout);
    for (name, target) in &config.targets {
        if let Some(concurrency) = target.concurrency {
            builder = builder.limit_for(tower_llm_stack::Key::new(name), concurrency);
        }
    }
    if let Some(limit) = bulkhead.global_concurrent {
        builder = builder.global_limit(limit);
    }
    let name = settings.names.of("--bulkhead-default-concurrent");
    builder
        .build()
        .map_err(|error| StartError::setting(name, error))
}

/// Makes the targets, and a pool of them for each model.
pub(crate) fn make(
    config: &Config,
    secrets: &BTreeMap<String, Secret>,
    settings: &Settings,
    bulkhead: &BulkheadLayer,
    sharing: Option<&Sharing>,
    limiters: &mut Limiters,
) -> Result<Made, StartError> {
    let clients = clients(config, settings)?;
    let (mut breakers, mut built) = (Breakers::new(), Built::new());
    let mut shown = Vec::new();
    for (name, target) in &config.targets {
        check(name, target)?;
        let account = clients
            .account(name, target, secrets.get(name))
            .map_err(|error| StartError::setting(settings.names.of("--config"), error))?;
        shown.push((name.clone(), shown_as(target)));
        let limits = limits::of_target(name, target, &settings.ratelimit, sharing)?;
        let breaker = breaker::layer(&settings.breaker, &settings.names, name, sharing)?;
        // In the metrics each target stands for itself. Labels live as long as the process, and this runs once in it.
        let label: &'static str = Box::leak(name.clone().into_boxed_str());
        if let Some(limits) = &limits {
            limiters.providers.push((label, limits.handle()));
        }
        breakers.push((label, breaker.handle()));
        let described = account.account().clone();
        let stack = Stack::builder()
            .without_describe()
            .breaker(breaker.clone())
            .provider_rate_limit(limits.clone())
            .bulkhead(bulkhead.clone())
            .timeout(timeout(name, target)?)
            .build();
        let service = stack.layer(decode(Sender::new(account)));
        let mut of_pool = Target::new(name.as_str(), service)
            .weight(target.weight)
            .priority(target.priority)
            .describe(move |call| described.describe(call))
            .gate(breaker.gate())
            .gate(bulkhead.gate());
        if let Some(limits) = &limits {
            of_pool = of_pool.limit(limits.gate());
        }
        if let Some(price) = target.price {
            of_pool = of_pool.price(price.input + price.output);
        }
        built.insert(name.clone(), of_pool);
    }
    Ok(Made {
        models: models(config, &built)?,
        breakers,
        shown,
    })
}

/// Checks what the gateway has no use for, and names that its metrics have taken.
fn check(name: &str, target: &TargetConfig) -> Result<(), StartError> {
    if ["caller", "callers"].contains(&name) {
        let what = "is the name of the callers' own limits";
        return Err(StartError::setting(format!("targets.{name}"), what));
    }
    if target.health.is_some() {
        let what = "is not available in the gateway yet";
        return Err(StartError::setting(format!("targets.{name}.health"), what));
    }
    Ok(())
}

/// What is shown of a target to the operator, without its credential.
fn shown_as(target: &TargetConfig) -> String {
    let address = target.base_url().unwrap_or_default();
    let key = match has_credential(target) {
        _ if target.oauth.is_some() => "tokens of its own",
        true => "its own key",
        false => "the caller's key",
    };
    let proxy = target
        .proxy
        .as_ref()
        .map_or("", |_| ", through its own proxy");
    format!("{address}, with {key}{proxy}")
}

fn clients(config: &Config, settings: &Settings) -> Result<Clients<PatientBody>, StartError> {
    let environment = proxies(&settings.proxy, &settings.names)?;
    let is_https = |url: &str| url.starts_with("https:");
    let wants_tls = config.targets.values().any(|target| {
        target.base_url().is_some_and(is_https)
            || target
                .proxy
                .as_ref()
                .is_some_and(|proxy| is_https(proxy.expose()))
            || target
                .oauth
                .as_ref()
                .is_some_and(|oauth| is_https(&oauth.token_url))
    });
    let clients = match wants_tls {
        true => Clients::new(environment),
        false => Clients::without_certificates(environment),
    };
    clients.map_err(|error| StartError::setting("--config", error))
}

fn timeout(name: &str, target: &TargetConfig) -> Result<TimeoutLayer, StartError> {
    let timeouts = &target.timeouts;
    let or_total = |seconds| {
        let longest = timeouts.total.max(timeouts.total_streamed);
        Duration::from_secs(seconds).min(longest)
    };
    let layer = TimeoutLayer::builder()
        .first_token(timeouts.first_token.unwrap_or(or_total(120)))
        .idle(timeouts.idle.unwrap_or(or_total(60)))
        .total(timeouts.total)
        .total_streamed(timeouts.total_streamed)
        .build();
    layer.map_err(|error| {
        let setting = format!("targets.{name}.timeouts.{}", error.field());
        StartError::setting(setting, error)
    })
}

fn models(config: &Config, built: &Built) -> Result<Models, StartError> {
    let mut models = HashMap::new();
    for (name, model) in &config.models {
        let setting = |what: &str| format!("models.{name}.{what}");
        let targets = model.targets.iter();
        let targets = targets.filter_map(|target| built.get(target).cloned());
        let pool = Pool::builder().pick(pick(model)).targets(targets).build();
        let pool = pool.map_err(|error| StartError::setting(setting("targets"), error))?;
        let layer = fanout(model)
            .map_err(|what| StartError::setting(setting("strategy"), what))?
            .build()
            .map_err(|error| StartError::setting(format!("models.{name}"), error))?;
        let targets = model.targets.iter();
        let targets: Vec<_> = targets
            .filter_map(|name| config.targets.get(name))
            .collect();
        if let Some(what) = mixed_credentials(&targets) {
            return Err(StartError::setting(setting("targets"), what));
        }
        let dialect = targets.first().and_then(|target| target.dialect());
        let front = Upstream::front_of(dialect.unwrap_or(Dialect::OpenAi));
        models.insert(name.clone(), (front, layer.across(&pool)));
    }
    let mut others = HashMap::new();
    for (name, target) in &config.targets {
        let front = Upstream::front_of(target.dialect().unwrap_or(Dialect::OpenAi));
        if others.contains_key(front) {
            continue;
        }
        let wrong = |error| StartError::setting(format!("targets.{name}"), error);
        let pool = Pool::builder().targets(built.get(name).cloned()).build();
        let layer = FanoutLayer::failover(0).build().map_err(wrong)?;
        others.insert(front, layer.across(&pool.map_err(wrong)?));
    }
    Ok(Models(Arc::new(Routes { models, others })))
}

/// Why targets cannot take each other's calls: a caller's own credential is for one provider, and with one of a target's own it is
/// not sent.
fn mixed_credentials(targets: &[&TargetConfig]) -> Option<&'static str> {
    let (keyed, passing): (Vec<&&TargetConfig>, Vec<_>) =
        targets.iter().partition(|target| has_credential(target));
    let place = |target: &TargetConfig| {
        let url = target
            .base_url()
            .and_then(|url| url.parse::<http::Uri>().ok());
        let host = url.and_then(|url| url.host().map(str::to_owned));
        (target.provider.clone(), host)
    };
    let first = passing.first().map(|target| place(target));
    if !keyed.is_empty() && !passing.is_empty() {
        Some(
            "some have a credential of their own and some pass the caller's on: give all or none of them one",
        )
    } else if passing.iter().any(|target| Some(place(target)) != first) {
        Some(
            "they are at several providers, and would each get the caller's own credential: give each one of its own",
        )
    } else {
        None
    }
}

/// Which of a model's targets a call goes to first.
fn pick(model: &ModelConfig) -> Pick {
    match model.strategy {
        Strategy::RoundRobin => Pick::round_robin(),
        Strategy::Weighted => Pick::weighted(),
        Strategy::LeastBusy => Pick::least_in_flight(),
        Strategy::Latency => Pick::latency(),
        Strategy::Cheapest => Pick::cheapest(),
        Strategy::Sticky => Pick::sticky(match &model.sticky_key {
            Some(StickyKey::Header(name)) => match name.parse() {
                Ok(name) => KeyBy::header(name),
                // Refused when the file was checked.
                Err(_) => KeyBy::caller(),
            },
            _ => KeyBy::caller(),
        }),
        _ => Pick::in_order(),
    }
}

/// At most so many calls in a hundred are hedged.
fn percent(model: &ModelConfig) -> f64 {
    match model.hedge {
        Some(HedgeConfig::Percent(percent)) => percent.min(80.0),
        _ => 10.0,
    }
}

/// What a call does beyond its first target.
fn fanout(model: &ModelConfig) -> Result<FanoutBuilder, BoxError> {
    let retries = model.retries as usize;
    let mut builder = match model.strategy {
        Strategy::Race => FanoutLayer::race(model.targets.len()),
        Strategy::Hedge => {
            let delay = match model.hedge {
                Some(HedgeConfig::Delay(delay)) => Delay::fixed(delay),
                Some(HedgeConfig::Percent(percent)) => Delay::slowest(percent / 100.0),
                _ => Delay::slowest(0.05),
            };
            let hedge = FanoutLayer::hedge(delay).branches(retries.max(1) + 1);
            // Besides the hedges, which their delay bounds, a fifth of the calls may fail over.
            hedge.budget(Budget::new(percent(model) / 100.0 + 0.2)?)
        }
        Strategy::Cascade | Strategy::Ensemble => {
            return Err("this strategy is not available in the gateway yet".into());
        }
        _ => FanoutLayer::failover(retries),
    };
    if let Some(ratio) = model.budget {
        builder = builder.budget(Budget::new(ratio)?);
    }
    if let Some(deadline) = model.deadline {
        builder = builder.deadline(deadline);
    }
    Ok(builder)
}

impl Models {
    fn of(&self, call: &Call) -> Option<&Routing> {
        // A model of another dialect is none here: the request would reach targets that did not admit it.
        let front = call.extensions().get::<Arc<Upstream>>()?.name();
        let model = call.call();
        let model = model.as_deref().and_then(|call| call.model());
        let listed = model.and_then(|model| self.0.models.get(model));
        let listed = listed.filter(|(of, _)| *of == front);
        listed
            .map(|(_, routing)| routing)
            .or_else(|| self.0.others.get(front))
    }
}

impl Service<Call> for Models {
    type Response = <Routing as Service<Call>>::Response;
    type Error = BoxError;
    type Future = Oneshot<Routing, Call>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // Which targets have to be ready is for the call to say.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let routing = self.of(&call).cloned();
        Oneshot::new(
            routing.expect("a request is admitted by a target of its dialect"),
            call,
        )
    }
}
