//! Which targets the calls of each model go to.

use std::{
    collections::HashMap,
    sync::Arc,
    task::{Context, Poll},
};

use tower::Service;
use tower_llm_stack::{
    BoxError, Described, Dialect, FanoutLayer, Pool,
    config::{Config, ModelConfig, Strategy},
    core::Oneshot,
    fanout::{Dispatch, Fanout, FanoutBuilder, FirstOk, Route},
};

use super::{Built, Call, TargetService};
use crate::{StartError, upstream::Upstream};

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

impl Models {
    pub(super) fn new(config: &Config, built: &Built) -> Result<Self, StartError> {
        let mut models = HashMap::new();
        for (name, model) in &config.models {
            let first = model.targets.first();
            let first = first.and_then(|target| config.targets.get(target)?.dialect());
            let front = Upstream::front_of(first.unwrap_or(Dialect::OpenAi));
            models.insert(name.clone(), (front, routing(name, model, built)?));
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
        Ok(Self(Arc::new(Routes { models, others })))
    }

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

/// What the calls of a model go through.
fn routing(name: &str, model: &ModelConfig, built: &Built) -> Result<Routing, StartError> {
    let setting = format!("models.{name}");
    let wrong = |error| StartError::setting(&setting, error);
    if matches!(model.strategy, Strategy::Cascade | Strategy::Ensemble) {
        let what = "this strategy is not available in the gateway yet";
        return Err(StartError::setting(format!("{setting}.strategy"), what));
    }
    let targets = model.targets.iter();
    let targets = targets.filter_map(|target| built.get(target).cloned());
    let pick = model.pick().map_err(wrong)?;
    let pool = Pool::builder().pick(pick).targets(targets).build();
    let layer = model.fanout().and_then(FanoutBuilder::build);
    Ok(layer.map_err(wrong)?.across(&pool.map_err(wrong)?))
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
