//! Which targets the calls of each model go to.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    ptr,
    sync::Arc,
    task::{Context, Poll},
};

use http::Response;
use http_body_util::{BodyExt, Either};
use pin_project_lite::pin_project;
use tower::{Service, ServiceExt, util::BoxCloneSyncService};
use tower_llm_stack::{
    BoxError, Call as Described, ConfigError, Dialect, FanoutLayer, HttpBody, Operation, Pool,
    Usage,
    config::{CascadeConfig, Config, EnsembleConfig, JudgeConfig, ModelConfig, Strategy},
    core::{Described as _, Oneshot},
    fanout::{Attach, Attempt, Dispatch, Fanout, FanoutBuilder, FirstOk, Pick, Report, Route},
};

use super::{
    Built, Call, TargetService,
    cascade::{Asked, Scorer},
    ensemble::Choice,
    judge::Judge,
};
use crate::{StartError, upstream::Upstream, warm::OwnBody};

/// A pool of targets, of which one answers.
type Direct = Fanout<Dispatch, Route<TargetService>, FirstOk>;

/// The answer of a target.
pub(super) type Answer = <Direct as Service<Call>>::Response;

/// The answer to a call: that of a target, or boxed after several were compared.
type Out = Response<Either<<Answer as HasBody>::Body, OwnBody>>;

/// Names the body of a response.
pub(crate) trait HasBody {
    type Body;
}

impl<B> HasBody for Response<B> {
    type Body = B;
}

/// A pool of targets whose answers are compared.
type Compared = BoxCloneSyncService<Call, Response<OwnBody>, BoxError>;

/// Sends each call to the targets of its model. Clones share the targets.
#[derive(Clone, Debug)]
pub(crate) struct Models(Arc<Routes>);

#[derive(Debug)]
struct Routes {
    /// By the name that callers use, each with the provider that its targets stand for.
    models: HashMap<String, (&'static str, Model)>,
    /// For models that are not listed, and calls without a model: the first target of each dialect, by the provider that it
    /// stands for.
    others: HashMap<&'static str, Direct>,
}

/// Where the calls of one model go.
#[derive(Debug)]
enum Model {
    Direct(Direct),
    Cascade(Box<Cascade>),
    Ensemble(Box<Ensemble>),
}

/// The tiers of a cascade, by the length of the prompt.
#[derive(Debug)]
struct Cascade {
    /// Prompts with fewer tokens get the first answer.
    min_prompt_tokens: u64,
    /// Prompts with more tokens go to the last target.
    max_prompt_tokens: u64,
    /// The first answer, of any target.
    any: Direct,
    /// The answer of the last target.
    last: Direct,
    tiers: Compared,
}

/// Targets whose answers are compared.
#[derive(Debug)]
struct Ensemble {
    /// One answer, for calls that are not answered with a text.
    any: Direct,
    all: Compared,
}

/// What one call goes through.
enum Way {
    Direct(Direct),
    Compared(Compared),
}

// === impl Models ===

impl Models {
    pub(super) fn new(config: &Config, built: &Built) -> Result<Self, StartError> {
        let mut models = HashMap::new();
        for (name, model) in &config.models {
            let first = model.targets.first();
            let first = first.and_then(|target| config.targets.get(target)?.dialect());
            let front = Upstream::front_of(first.unwrap_or(Dialect::OpenAi));
            let made = Model::new(&format!("models.{name}"), model, config, built)?;
            models.insert(name.clone(), (front, made));
        }
        let mut others = HashMap::new();
        for (name, target) in config.targets_in_order() {
            let front = Upstream::front_of(target.dialect().unwrap_or(Dialect::OpenAi));
            if !others.contains_key(front) {
                let direct = direct([name], Pick::in_order(), FanoutLayer::failover(0), built);
                let wrong = |error| StartError::setting(format!("targets.{name}"), error);
                others.insert(front, direct.map_err(wrong)?);
            }
        }
        Ok(Self(Arc::new(Routes { models, others })))
    }

    fn of(&self, call: &Call) -> Option<Way> {
        // A model of another dialect is none here: the request would reach targets that did not admit it.
        let front = call.extensions().get::<Arc<Upstream>>()?.name();
        let described = call.call();
        let described = described.as_deref();
        let model = described.and_then(Described::model);
        let listed = model.and_then(|model| self.0.models.get(model));
        match listed.filter(|(of, _)| *of == front) {
            Some((_, model)) => Some(model.way(described)),
            None => Some(Way::Direct(self.0.others.get(front)?.clone())),
        }
    }
}

// === impl Model ===

impl Model {
    fn new(
        setting: &str,
        model: &ModelConfig,
        config: &Config,
        built: &Built,
    ) -> Result<Self, StartError> {
        let wrong = |error: ConfigError| StartError::setting(setting, error);
        let judge = |judge: &Option<JudgeConfig>, of: &str| {
            let judge = judge.as_ref();
            let setting = format!("{setting}.{of}.judge");
            judge
                .map(|judge| Judge::new(judge, config, built, &setting))
                .transpose()
        };
        match (model.strategy, &model.cascade, &model.ensemble) {
            (Strategy::Cascade, Some(rules), _) => {
                let judge = judge(&rules.judge, "cascade")?;
                let cascade = Cascade::new(setting, model, rules, judge, built)?;
                Ok(Self::Cascade(Box::new(cascade)))
            }
            (Strategy::Ensemble, _, Some(rules)) => {
                let judge = judge(&rules.judge, "ensemble")?;
                let ensemble = Ensemble::new(setting, model, rules, judge, built)?;
                Ok(Self::Ensemble(Box::new(ensemble)))
            }
            _ => {
                let (pick, layer) = (model.pick().map_err(wrong)?, model.fanout());
                let direct = direct(&model.targets, pick, layer.map_err(wrong)?, built);
                Ok(Self::Direct(direct.map_err(wrong)?))
            }
        }
    }

    fn way(&self, call: Option<&Described>) -> Way {
        match self {
            Self::Direct(direct) => Way::Direct(direct.clone()),
            Self::Cascade(cascade) => cascade.way(call),
            Self::Ensemble(ensemble) => ensemble.way(call),
        }
    }
}

// === impl Cascade ===

impl Cascade {
    fn new(
        setting: &str,
        model: &ModelConfig,
        cascade: &CascadeConfig,
        judge: Option<Judge>,
        built: &Built,
    ) -> Result<Self, StartError> {
        let wrong = |error: ConfigError| StartError::setting(setting, error);
        let last = model.targets.last().map_or("", String::as_str);
        let scorer = Scorer::new(cascade, last, judge)
            .map_err(|error| StartError::setting(format!("{setting}.cascade.regex"), error))?;
        // The last of them is the last tier, whatever its priority is elsewhere.
        let tiers = targets(&model.targets, built).into_iter();
        let pool = Pool::builder()
            .pick(Pick::in_order())
            .targets(tiers.map(|tier| tier.priority(0)));
        let layer = model.fanout().map_err(wrong)?;
        let layer = layer.watch(scorer.clone()).classify(scorer);
        let layer = layer.max_held_bytes(super::MAX_COMPARED).build();
        let tiers = layer.map_err(wrong)?.across(&pool.build().map_err(wrong)?);
        let tiers = tiers.map_request(|mut call: Call| {
            if let Some(body) = call.body().as_bytes().cloned() {
                call.extensions_mut().insert(Asked(body));
            }
            call
        });
        let tiers = tiers.map_response(|mut answer: Answer| {
            charge_others(&mut answer);
            answer.map(BodyExt::boxed_unsync)
        });
        let failover = || model.failover().map_err(wrong);
        let in_order = Pick::in_order;
        Ok(Self {
            min_prompt_tokens: cascade.min_prompt_tokens.unwrap_or(0),
            max_prompt_tokens: cascade.max_prompt_tokens.unwrap_or(u64::MAX),
            any: direct(&model.targets, in_order(), failover()?, built).map_err(wrong)?,
            last: direct([last], in_order(), failover()?, built).map_err(wrong)?,
            tiers: BoxCloneSyncService::new(tiers),
        })
    }

    /// Decided before anything is sent.
    fn way(&self, call: Option<&Described>) -> Way {
        let tokens = call.map_or(0, Described::input_tokens);
        if tokens > self.max_prompt_tokens {
            Way::Direct(self.last.clone())
        } else if tokens < self.min_prompt_tokens || !call.is_some_and(has_text) {
            Way::Direct(self.any.clone())
        } else {
            Way::Compared(self.tiers.clone())
        }
    }
}

/// The caller pays for the answers that were rejected too.
fn charge_others(answer: &mut Answer) {
    let Some(report) = answer.extensions().get::<Report>() else {
        return;
    };
    let is_winner = |attempt: &Attempt| report.winner().is_some_and(|won| ptr::eq(won, attempt));
    let others = report.attempts().iter().filter(|it| !is_winner(it));
    let used = others.filter_map(|attempt| attempt.usage);
    let used = used.fold(Usage::default(), |sum, used| sum.plus(&used));
    HttpBody.charge(answer, used);
}

// === impl Ensemble ===

impl Ensemble {
    fn new(
        setting: &str,
        model: &ModelConfig,
        ensemble: &EnsembleConfig,
        judge: Option<Judge>,
        built: &Built,
    ) -> Result<Self, StartError> {
        let wrong = |error: ConfigError| StartError::setting(setting, error);
        let choice = Choice::new(ensemble, judge)
            .map_err(|error| StartError::setting(format!("{setting}.ensemble.extract"), error))?;
        let pool = Pool::builder()
            .pick(Pick::in_order())
            .targets(targets(&model.targets, built));
        let (number, service) = (model.targets.len(), choice.service());
        let layer = ensemble.layer(number, model.deadline, service, choice);
        let layer = layer.max_held_bytes(super::MAX_COMPARED).build();
        let all = layer.map_err(wrong)?.across(&pool.build().map_err(wrong)?);
        let all = all.map_response(|answer| answer.map(BodyExt::boxed_unsync));
        let failover = model.failover().map_err(wrong)?;
        Ok(Self {
            any: direct(&model.targets, Pick::in_order(), failover, built).map_err(wrong)?,
            all: BoxCloneSyncService::new(all),
        })
    }

    fn way(&self, call: Option<&Described>) -> Way {
        match call.is_some_and(has_text) {
            true => Way::Compared(self.all.clone()),
            false => Way::Direct(self.any.clone()),
        }
    }
}

/// Whether a call is answered with a text, which can be compared.
fn has_text(call: &Described) -> bool {
    [
        Operation::CHAT,
        Operation::GENERATE_CONTENT,
        Operation::TEXT_COMPLETION,
    ]
    .contains(call.operation())
}

fn targets<N: AsRef<str>>(
    names: impl IntoIterator<Item = N>,
    built: &Built,
) -> Vec<tower_llm_stack::fanout::Target<TargetService>> {
    let names = names.into_iter();
    names
        .filter_map(|name| built.get(name.as_ref()).cloned())
        .collect()
}

/// One answer, of these targets.
fn direct<N: AsRef<str>>(
    names: impl IntoIterator<Item = N>,
    pick: Pick,
    layer: FanoutBuilder,
    built: &Built,
) -> Result<Direct, ConfigError> {
    let pool = Pool::builder().pick(pick).targets(targets(names, built));
    Ok(layer.build()?.across(&pool.build()?))
}

// === impl Service for Models ===

impl Service<Call> for Models {
    type Response = Out;
    type Error = BoxError;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // Which targets have to be ready is for the call to say.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> ResponseFuture {
        let way = self.of(&call);
        match way.expect("a request is admitted by a target of its dialect") {
            Way::Direct(direct) => ResponseFuture::Direct {
                future: Oneshot::new(direct, call),
            },
            Way::Compared(compared) => ResponseFuture::Compared {
                future: Oneshot::new(compared, call),
            },
        }
    }
}

pin_project! {
    /// The future of [`Models`].
    #[project = ResponseFutureProj]
    pub(crate) enum ResponseFuture {
        Direct { #[pin] future: Oneshot<Direct, Call> },
        Compared { #[pin] future: Oneshot<Compared, Call> },
    }
}

impl Future for ResponseFuture {
    type Output = Result<Out, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            ResponseFutureProj::Direct { future } => {
                future.poll(cx).map_ok(|answer| answer.map(Either::Left))
            }
            ResponseFutureProj::Compared { future } => {
                future.poll(cx).map_ok(|answer| answer.map(Either::Right))
            }
        }
    }
}
