//! A typed service behind a cache: the layers around it see what cost no call.

use std::borrow::Cow;

use tower::{Layer, Service, ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_llm_stack::{
    Answer, BreakerLayer, CacheLayer, Cached, Call, Completion, Described, Guard, KeyContent,
    Limit, Operation, Outcome, Provider, RateLimitLayer, Scope, Served, Stack, Unary, Usage, Watch,
};

use super::{layers::Verdicts, *};

/// Reserved: 10 tokens of input and 100 of output.
const RESERVED: u64 = 110;

#[derive(Clone)]
struct Prompt(Call);

fn prompt() -> Prompt {
    let call = Call::builder(Provider::OPENAI, Operation::CHAT).model("m");
    Prompt(call.input_tokens(10).max_output_tokens(100).build())
}

impl Described for Prompt {
    fn call(&self) -> Option<Cow<'_, Call>> {
        Some((&self.0).into())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Text {
    tokens: u64,
}

/// Reads what a text has used.
#[derive(Clone, Copy)]
struct WatchText;

impl Watch<Text> for WatchText {
    type Out<G: Guard> = Text;

    fn watch<G: Guard>(&self, _: Option<&Call>, text: Text, mut guard: G) -> Text {
        let mut completion = Completion::new(Outcome::Success);
        completion.usage = Some(Usage::new(10, text.tokens));
        guard.end(&completion);
        text
    }
}

type Inside = BoxCloneSyncService<Prompt, Answer<Text>, BoxError>;

/// A model that answers with 7 tokens, behind a cache, a circuit and a provider's limit.
struct Model {
    cache: CacheLayer,
    breaker: BreakerLayer<WatchText>,
    providers: RateLimitLayer<WatchText>,
}

fn limits() -> [Limit; 2] {
    [
        Limit::requests(100).per_minute(),
        Limit::tokens(1_000_000).per_minute(),
    ]
}

impl Model {
    fn new() -> Self {
        let providers = RateLimitLayer::for_providers().limits(limits());
        Self {
            cache: CacheLayer::builder(Scope::shared()).build().unwrap(),
            breaker: BreakerLayer::builder().watch(WatchText).build().unwrap(),
            providers: providers.watch(WatchText).build().unwrap(),
        }
    }

    /// The layers from the cache inwards, or without it.
    fn inside(&self, is_cached: bool) -> Inside {
        let cache = self.cache.cloned(|_: &Prompt| KeyContent::bytes("Why?"));
        let stack = Stack::builder()
            .without_describe()
            .cache(is_cached.then_some(cache))
            .breaker(self.breaker.clone())
            .provider_rate_limit(self.providers.clone())
            .build();
        let model = service_fn(|_: Prompt| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok::<_, BoxError>(Text { tokens: 7 })
        });
        BoxCloneSyncService::new(stack.layer(model))
    }

    /// Makes the call twice, one after the other or both at once; returns what is charged to the caller.
    async fn twice<W>(&self, watch: W, is_cached: bool, at_once: bool) -> Taken
    where
        RateLimitLayer<W>: Layer<
                Inside,
                Service: Service<Prompt, Response = Answer<Text>, Error = BoxError> + Clone,
            >,
    {
        let callers = RateLimitLayer::for_callers().limits(limits());
        let callers = callers.watch(watch).build().unwrap();
        let client = callers.layer(self.inside(is_cached));
        let first = client.clone().oneshot(prompt());
        let second = client.oneshot(prompt());
        let answers = if at_once {
            future::try_join(first, second).await
        } else {
            async { Ok((first.await?, second.await?)) }.await
        };
        let (first, second) = answers.unwrap();
        assert_eq!(*first, *second);
        assert_eq!(first.served(), None);
        let served = match at_once {
            true => Served::Follower,
            false => Served::Hit,
        };
        assert_eq!(second.served(), is_cached.then_some(served));
        Taken::of(&callers.handle())
    }

    fn of_provider(&self) -> Taken {
        Taken::of(&self.providers.handle())
    }

    fn circuit(&self) -> Verdicts {
        let stats = self.breaker.handle().stats_of(&model()).unwrap();
        verdicts(stats.calls - stats.failures, stats.failures)
    }
}

#[tokio::test(start_paused = true)]
async fn a_hit_and_a_follower_are_charged_a_request_and_no_tokens() {
    for at_once in [false, true] {
        let model = Model::new();
        let charged = model.twice(Cached(Unary), true, at_once).await;
        assert_eq!(charged, taken(2, RESERVED));
        let model = Model::new();
        let charged = model.twice(Cached(WatchText), true, at_once).await;
        assert_eq!(charged, taken(2, 10 + 7));
        assert_eq!(model.of_provider(), taken(1, 10 + 7));
        assert_eq!(model.circuit(), verdicts(1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn without_the_cache_each_answer_is_charged() {
    let model = Model::new();
    let charged = model.twice(Cached(WatchText), false, false).await;
    assert_eq!(charged, taken(2, 2 * (10 + 7)));
    assert_eq!(model.of_provider(), taken(2, 2 * (10 + 7)));
}

/// The follower pays for the call that it takes over.
#[tokio::test(start_paused = true)]
async fn a_follower_that_takes_the_call_over_is_charged_for_it() {
    let model = Model::new();
    let callers = RateLimitLayer::for_callers().limits(limits());
    let callers = callers.watch(Cached(WatchText)).build().unwrap();
    let client = callers.layer(model.inside(true));
    let mut leader = client.clone().oneshot(prompt());
    assert!(poll!(&mut leader).is_pending());
    let mut follower = client.clone().oneshot(prompt());
    assert!(poll!(&mut follower).is_pending());
    let mut leaves = client.oneshot(prompt());
    assert!(poll!(&mut leaves).is_pending());
    // It has cost nothing.
    drop(leaves);
    assert_eq!(Taken::of(&callers.handle()), taken(2, 2 * RESERVED));
    drop(leader);
    assert_eq!(follower.await.unwrap().served(), None);
    // The leader has left its call to the follower.
    assert_eq!(Taken::of(&callers.handle()), taken(1, 10 + 7));
    assert_eq!(model.of_provider(), taken(1, 10 + 7));
}

/// A layer of a limit that may be left out at run time.
#[tokio::test(start_paused = true)]
async fn the_layers_around_a_cache_are_optional() {
    for is_limited in [false, true] {
        let limit = || {
            let limit = RateLimitLayer::for_callers().limit(Limit::requests(1).per_minute());
            limit.watch(Cached(Unary)).build().unwrap()
        };
        let cache = CacheLayer::builder(Scope::shared()).build().unwrap();
        let stack = Stack::builder()
            .without_describe()
            .caller_rate_limit(is_limited.then(limit))
            .cache(cache.cloned(|_: &Prompt| KeyContent::bytes("Why?")))
            .build();
        let client = stack.layer(service_fn(|_: Prompt| async {
            Ok::<_, BoxError>(Text { tokens: 7 })
        }));
        client.clone().oneshot(prompt()).await.unwrap();
        assert_eq!(client.oneshot(prompt()).await.is_err(), is_limited);
    }
}
