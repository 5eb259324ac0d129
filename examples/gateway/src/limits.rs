//! The rate limits that the settings ask for: of each provider, and of each caller.

use std::{borrow::Cow, collections::HashMap};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, header::AUTHORIZATION};
use http_body_util::Full;
use tower::{Layer, ServiceExt, service_fn};
use tower_llm_stack::{
    BoxError, Call, Caller, ConfigError, DescribeLayer, Described, Key, KeyBy, Limit, Provider,
    RateLimitHandle, RateLimitLayer, RequestBody, config::TargetConfig, ratelimit::LimitBuilder,
};

use crate::{
    RateLimitSettings, Secret, Settings, StartError, access::Access, settings::Tiers,
    sharing::Sharing, upstream::Upstream,
};

/// All limits, for the metrics: by provider or target, and of callers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Limiters {
    pub(crate) callers: Option<RateLimitHandle>,
    pub(crate) providers: Vec<(&'static str, RateLimitHandle)>,
}

/// The limits of one provider; `None` if there are none.
///
/// Configured limits apply to all calls of the gateway to that provider. What the provider reports is
/// about one model and one credential: where callers send their own, a throttled credential does not block the others.
pub(crate) fn of_provider(
    upstream: &Upstream,
    settings: &RateLimitSettings,
    sharing: Option<&Sharing>,
) -> Result<Option<RateLimitLayer>, StartError> {
    let limits = settings.of(&upstream.provider());
    if limits.is_empty() && !settings.learn {
        return Ok(None);
    }
    let key_by = match upstream.passes_credentials() {
        true => by_model_of(Call::account),
        false => KeyBy::model(),
    };
    // What providers report is observed by each gateway for itself.
    let sharing = sharing.filter(|_| !limits.is_empty());
    let limits = limits.into_iter().map(|limit| limit.by(KeyBy::shared()));
    let mut builder = RateLimitLayer::for_providers()
        .limits(limits)
        .key_by(key_by)
        .enforce_reported_limits(settings.learn)
        .max_waiting(settings.queue)
        .max_wait(settings.timeout);
    if let Some(sharing) = sharing {
        builder = builder.shared(sharing.limits(upstream.name()));
    }
    builder.build().map(Some).map_err(not_built)
}

/// What the provider reports is about one model, and about one of these.
fn by_model_of(account: impl Fn(&Call) -> Option<&str> + Send + Sync + 'static) -> KeyBy {
    KeyBy::custom(move |request| {
        let call = request.call();
        let call = call.as_deref();
        let account = call.and_then(&account).unwrap_or_default();
        Key::pair(account, call.and_then(Call::model).unwrap_or_default())
    })
}

/// The limits of one target; `None` if there are none.
///
/// Configured limits apply to all calls to the target. What the provider reports is about one model and one credential: the
/// target's own, or that of each caller.
pub(crate) fn of_target(
    name: &str,
    target: &TargetConfig,
    settings: &RateLimitSettings,
    sharing: Option<&Sharing>,
) -> Result<Option<RateLimitLayer>, StartError> {
    let limits = target.limits();
    let key_by = match target.has_credential() {
        true => KeyBy::model(),
        false => by_model_of(|call| call.caller().map(Caller::as_str)),
    };
    if limits.is_empty() && !settings.learn {
        return Ok(None);
    }
    let sharing = sharing.filter(|_| !limits.is_empty());
    let limits = limits.into_iter().map(|limit| limit.by(KeyBy::shared()));
    let mut builder = RateLimitLayer::for_providers()
        .limits(limits)
        .key_by(key_by)
        .enforce_reported_limits(settings.learn)
        .max_waiting(settings.queue)
        .max_wait(settings.timeout);
    if let Some(sharing) = sharing {
        builder = builder.shared(sharing.limits(name));
    }
    builder.build().map(Some).map_err(not_built)
}

/// The limits of each caller, identified by the gateway's keys if it has any, else as `describe` does; `None` if there
/// are none.
pub(crate) async fn of_callers(
    describe: &DescribeLayer,
    access: &Access,
    settings: &Settings,
    sharing: Option<&Sharing>,
) -> Result<Option<RateLimitLayer>, StartError> {
    let RateLimitSettings {
        caller_rpm,
        caller_tpm,
        tiers,
        caller_tiers,
        ..
    } = &settings.ratelimit;
    let names = &settings.names;
    let caller_tiers_name = names.of("--ratelimit-caller-tiers");
    let mut limits = per_minute([(*caller_rpm, Limit::requests), (*caller_tpm, Limit::tokens)]);
    let mut builder = RateLimitLayer::for_callers();
    if let Some(tiers) = tiers {
        limits.push(tiers.limit());
        let list = caller_tiers.as_ref();
        let tier_of = tier_of(describe, access, tiers, list, caller_tiers_name).await?;
        builder = builder.tier_by(move |request| {
            let call = request.call();
            let caller = call.as_deref().and_then(Call::caller);
            let tier = caller.and_then(|caller| tier_of.get(caller));
            tier.map_or(Cow::Borrowed(""), |tier| Cow::Owned(tier.clone()))
        });
    } else if caller_tiers.is_some() {
        let what = "needs RATELIMIT_TIERS, which defines the tiers";
        return Err(StartError::setting(caller_tiers_name, what));
    }
    if limits.is_empty() {
        return Ok(None);
    }
    if let Some(sharing) = sharing {
        builder = builder.shared(sharing.limits("callers"));
    }
    let layer = builder.limits(limits).build();
    layer.map(Some).map_err(not_built)
}

fn not_built(error: ConfigError) -> StartError {
    StartError::setting("--ratelimit-timeout", error)
}

impl RateLimitSettings {
    fn of(&self, provider: &Provider) -> Vec<Limit> {
        if *provider == Provider::OPENAI {
            per_minute([
                (self.openai_rpm, Limit::requests),
                (self.openai_tpm, Limit::tokens),
            ])
        } else if *provider == Provider::ANTHROPIC {
            per_minute([
                (self.anthropic_rpm, Limit::requests),
                (self.anthropic_tpm, Limit::tokens),
                (self.anthropic_itpm, Limit::input_tokens),
                (self.anthropic_otpm, Limit::output_tokens),
            ])
        } else if *provider == Provider::GEMINI {
            per_minute([
                (self.gemini_rpm, Limit::requests),
                (self.gemini_tpm, Limit::tokens),
            ])
        } else {
            per_minute([
                (self.azure_rpm, Limit::requests),
                (self.azure_tpm, Limit::tokens),
            ])
        }
    }
}

impl Tiers {
    /// Requests per hour: each tier's own, and the first tier's for callers without a tier.
    fn limit(&self) -> Limit {
        let (_, first) = self.0[0];
        let limit = Limit::requests(first).per_hour();
        let tiers = self.0.iter().cloned();
        tiers.fold(limit, |limit, (name, requests)| limit.tier(name, requests))
    }
}

type Of = fn(u64) -> LimitBuilder;

fn per_minute<const N: usize>(limits: [(Option<u64>, Of); N]) -> Vec<Limit> {
    let limits = limits.into_iter();
    limits
        .filter_map(|(amount, of)| Some(of(amount?).per_minute()))
        .collect()
}

/// The tiers of the callers whose keys are listed, as `key:tier,key:tier`.
async fn tier_of(
    describe: &DescribeLayer,
    access: &Access,
    tiers: &Tiers,
    list: Option<&Secret>,
    list_name: &str,
) -> Result<HashMap<Caller, String>, StartError> {
    let mut tier_of = HashMap::new();
    let list = list.map_or("", Secret::expose).split(',');
    for (index, entry) in list
        .map(str::trim)
        .enumerate()
        .filter(|(_, entry)| !entry.is_empty())
    {
        // The entry's number, not its text: in one that is malformed the key may stand anywhere.
        let wrong = |what| {
            let number = index + 1;
            let what = format!("entry {number} {what} (the value is not shown)");
            StartError::setting(list_name, what)
        };
        let (key, tier) = entry
            .rsplit_once(':')
            .ok_or_else(|| wrong("is not key:tier"))?;
        if !tiers.0.iter().any(|(name, _)| name == tier) {
            return Err(wrong("names a tier that RATELIMIT_TIERS does not define"));
        }
        if let Access::Keys(keys) = access {
            match keys.find(key.as_bytes()) {
                Some(key) => drop(tier_of.insert(keys.caller(key).clone(), tier.to_owned())),
                // Without keys no request gets so far.
                None if keys.is_empty() => {}
                None => return Err(wrong("is not one of GATEWAY_KEYS")),
            }
            continue;
        }
        for caller in callers_with(describe, key).await {
            let caller = caller.ok_or_else(|| wrong("has no key that a header may have"))?;
            tier_of.insert(caller, tier.to_owned());
        }
    }
    Ok(tier_of)
}

/// The callers that `describe` makes of `key`, in the two forms in which clients send one.
async fn callers_with(describe: &DescribeLayer, key: &str) -> [Option<Caller>; 2] {
    const BARE: HeaderName = HeaderName::from_static("x-api-key");
    [
        caller_with(describe, BARE, key).await,
        caller_with(describe, AUTHORIZATION, &format!("Bearer {key}")).await,
    ]
}

async fn caller_with(describe: &DescribeLayer, name: HeaderName, value: &str) -> Option<Caller> {
    let mut request = Request::new(Full::<Bytes>::default());
    let value = HeaderValue::from_str(value)
        .ok()
        .filter(|value| !value.is_empty())?;
    request.headers_mut().insert(name, value);
    let caller = describe.layer(service_fn(|request: Request<RequestBody>| async move {
        Ok::<_, BoxError>(request.call().and_then(|call| call.caller().cloned()))
    }));
    caller.oneshot(request).await.ok().flatten()
}
