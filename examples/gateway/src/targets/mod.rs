//! The targets of a configuration file, each with its layers.

mod cascade;
mod ensemble;
mod judge;
mod models;
mod said;

use std::collections::BTreeMap;

use http::Request;
use hyper::body::Incoming;
use tower::Layer;
use tower_llm_stack::{
    BulkheadLayer, Call as Described, Caller, HttpBody, Key, KeyBy, RequestBody, Secret, Stack,
    TimeoutLayer,
    accounts::{Account, AccountService, Client, Clients, Health, HealthCheck},
    adapters::ResponseBody,
    breaker::BreakerGate,
    bulkhead::BulkheadGate,
    config::{Config, TargetConfig},
    core::{GateLayer, Gated},
    fanout::Target,
    monitor::{AttemptGate, MonitorLayer},
    ratelimit::RateLimitGate,
    timeout::Timeout,
};

use self::cascade::Asking;
pub(crate) use self::models::Models;
use crate::{
    Settings, StartError,
    breaker::{self, Breakers},
    caller::PatientBody,
    decode::{Decode, decode},
    limits::{self, Limiters},
    proxy::proxies,
    sender::Sender,
    sharing::Sharing,
};

/// A call of a caller's, behind the cache.
type Call = Request<RequestBody<PatientBody>>;

/// The layers of one target around its account.
type TargetService = Asking<
    Gated<
        Timeout<Decode<Sender, ResponseBody<Incoming>>, HttpBody>,
        (
            AttemptGate,
            (BreakerGate, (Option<RateLimitGate>, BulkheadGate)),
        ),
        HttpBody,
    >,
>;

/// The most bytes of an answer that is compared with others: it is held whole.
const MAX_COMPARED: usize = 16 << 20;

/// The checks of targets, for the metrics. They stop with the last clone.
pub(crate) type Healths = Vec<(&'static str, Health)>;

/// What the targets are made of, for the rest of the gateway to show.
pub(crate) struct Made {
    pub(crate) models: Models,
    pub(crate) breakers: Breakers,
    pub(crate) health: Healths,
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
            builder = builder.limit_for(Key::new(name), concurrency);
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
    monitor: &MonitorLayer,
    limiters: &mut Limiters,
) -> Result<Made, StartError> {
    let clients = clients(config, settings)?;
    let (mut breakers, mut healths, mut built) = (Breakers::new(), Healths::new(), Built::new());
    let mut shown = Vec::new();
    for (name, target) in &config.targets {
        let account = clients
            .account(name, target, secrets.get(name))
            .map_err(|error| StartError::setting(settings.names.of("--config"), error))?;
        shown.push((name.clone(), shown_as(target)));
        let limits = limits::of_target(name, target, &settings.ratelimit, sharing)?;
        let account_by = match target.has_credential() {
            true => KeyBy::credential(),
            // Each caller has an account of its own: its credential, and what it has spent, are nothing to the others.
            false => KeyBy::caller(),
        };
        let (breakers_of, names) = (&settings.breaker, &settings.names);
        let breaker = breaker::layer(breakers_of, names, name, account_by, sharing)?;
        // In the metrics each target stands for itself. Labels live as long as the process, and this runs once in it.
        let label: &'static str = Box::leak(name.clone().into_boxed_str());
        if let Some(limits) = &limits {
            limiters.providers.push((label, limits.handle()));
        }
        breakers.push((label, breaker.handle()));
        let (described, passes) = (account.account().clone(), !target.has_credential());
        let timeout = TimeoutLayer::try_from(&target.timeouts)
            .map_err(|error| StartError::setting(format!("targets.{name}.timeouts"), error))?;
        let stack = Stack::builder()
            .without_describe()
            .attempts(monitor.attempts())
            .breaker(breaker.clone())
            .provider_rate_limit(limits.clone())
            .bulkhead(bulkhead.clone())
            .timeout(timeout)
            .build();
        let health = health(name, target, &account)?;
        let service = Asking(stack.layer(decode(Sender::new(account))));
        let mut of_pool = Target::new(name.as_str(), service)
            .weight(target.weight)
            .priority(target.priority)
            .describe(move |call| describe(call, &described, passes))
            .gate(breaker.gate())
            .gate(bulkhead.gate());
        if let Some(limits) = &limits {
            of_pool = of_pool.limit(limits.gate());
        }
        if let Some(health) = health {
            healths.push((label, health.clone()));
            of_pool = of_pool.availability(move |_| health.availability());
        }
        if let Some(price) = target.price {
            of_pool = of_pool.price(price.input + price.output);
        }
        built.insert(name.clone(), of_pool);
    }
    Ok(Made {
        models: Models::new(config, &built)?,
        breakers,
        health: healths,
        shown,
    })
}

/// Describes a call as a target sees it.
///
/// Where it passes credentials on, callers are told apart by what they send to the provider too, and not by their key of the
/// gateway's alone: each credential has circuits of its own.
fn describe(call: &Described, account: &Account, passes: bool) -> Described {
    let described = account.describe(call);
    match (call.account(), call.caller().map(Caller::as_str)) {
        (Some(own), Some(caller)) if passes && own != caller && own != account.name() => {
            let both = Caller::named(format!("{caller} {own}"));
            described.to_builder().caller(both).build()
        }
        _ => described,
    }
}

/// What is shown of a target to the operator, without its credential.
fn shown_as(target: &TargetConfig) -> String {
    let address = target.base_url().unwrap_or_default();
    let key = match target.has_credential() {
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

/// Checks a target, if it is to be.
fn health(
    name: &str,
    target: &TargetConfig,
    account: &AccountService<Client<PatientBody>>,
) -> Result<Option<Health>, StartError> {
    let Some(health) = &target.health else {
        return Ok(None);
    };
    let check = HealthCheck::try_from(health)
        .map_err(|error| StartError::setting(format!("targets.{name}.health"), error))?;
    Ok(Some(check.start(account.clone())))
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
