//! A typed service behind a cache: the layers around it see what cost no call.

use std::{
    borrow::Cow,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Waker},
};

use proptest::{prelude::*, sample::Index};
use tokio::sync::oneshot;
use tower::{Layer, Service, ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_llm_stack::{
    Answer, BreakerLayer, CacheLayer, Cached, Call, ClassifiedError, Completion, Described,
    Failure, Guard, KeyContent, Limit, Operation, Outcome, Provider, RateLimitLayer, Scope, Served,
    Stack, Unary, Usage, Watch,
};

use super::{layers::Verdicts, *};

/// Reserved: 10 tokens of input and 100 of output.
const RESERVED: u64 = 110;

/// A call, and what it asks.
#[derive(Clone)]
struct Prompt(Call, u8);

fn prompt() -> Prompt {
    let call = Call::builder(Provider::OPENAI, Operation::CHAT).model("m");
    Prompt(call.input_tokens(10).max_output_tokens(100).build(), 0)
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

/// What the call has used is known to a caller that has its response, and to no other.
#[tokio::test(start_paused = true)]
async fn the_first_caller_to_get_a_response_is_charged_for_the_call() {
    for leaves in [false, true] {
        let model = Model::new();
        let callers = RateLimitLayer::for_callers().limits(limits());
        let callers = callers.watch(Cached(WatchText)).build().unwrap();
        let client = callers.layer(model.inside(true));
        let mut leader = client.clone().oneshot(prompt());
        assert!(poll!(&mut leader).is_pending());
        assert_eq!(client.oneshot(prompt()).await.unwrap().served(), None);
        let requests = match leaves {
            true => {
                drop(leader);
                1
            }
            false => {
                assert_eq!(leader.await.unwrap().served(), Some(Served::Follower));
                2
            }
        };
        assert_eq!(Taken::of(&callers.handle()), taken(requests, 10 + 7));
        assert_eq!(model.of_provider(), taken(1, 10 + 7));
    }
}

#[derive(Clone, Debug)]
enum Event {
    Ask(u8),
    Read(Index),
    Leave(Index),
    Answer(Index),
    Fail(Index, bool),
}

fn event() -> impl Strategy<Value = Event> {
    let any = any::<Index>;
    prop_oneof![
        3 => (0..2u8).prop_map(Event::Ask),
        4 => any().prop_map(Event::Read),
        2 => any().prop_map(Event::Leave),
        2 => any().prop_map(Event::Answer),
        1 => (any(), prop::bool::ANY).prop_map(|(call, is_late)| Event::Fail(call, is_late)),
    ]
}

type Calls = Arc<Mutex<Vec<Option<oneshot::Sender<Result<Text, BoxError>>>>>>;

/// What is charged to the callers and to the provider.
fn play(events: &[Event]) -> [Taken; 2] {
    let model = Model::new();
    let calls = Calls::default();
    let sent = Arc::clone(&calls);
    let provider = service_fn(move |_: Prompt| {
        let (send, answer) = oneshot::channel();
        sent.lock().unwrap().push(Some(send));
        async { answer.await.expect("it is answered") }
    });
    let cache = model
        .cache
        .cloned(|prompt: &Prompt| KeyContent::bytes([prompt.1]));
    let callers = RateLimitLayer::for_callers().limits(limits());
    let callers = callers.watch(Cached(WatchText)).build().unwrap();
    let stack = Stack::builder()
        .without_describe()
        .caller_rate_limit(callers.clone())
        .cache(cache)
        .provider_rate_limit(model.providers.clone())
        .build();
    let client = stack.layer(provider);
    let mut asking = Vec::new();
    fn read(caller: &mut Option<Pin<Box<impl Future>>>) {
        let cx = &mut Context::from_waker(Waker::noop());
        if caller
            .as_mut()
            .is_some_and(|future| future.as_mut().poll(cx).is_ready())
        {
            *caller = None;
        }
    }
    for event in events {
        let (callers, sent) = (asking.len(), calls.lock().unwrap().len());
        match event {
            Event::Ask(question) => {
                let future = client.clone().oneshot(Prompt(prompt().0, *question));
                asking.push(Some(Box::pin(future)));
                read(&mut asking[callers]);
            }
            _ if callers == 0 => {}
            Event::Read(caller) => read(&mut asking[caller.index(callers)]),
            Event::Leave(caller) => asking[caller.index(callers)] = None,
            _ if sent == 0 => {}
            Event::Answer(call) | Event::Fail(call, _) => {
                let result = match event {
                    Event::Fail(_, false) => Err("connection refused".into()),
                    Event::Fail(_, true) => {
                        let late = Outcome::Failed(Failure::Timeout);
                        Err(ClassifiedError::new(late, "too late").into())
                    }
                    _ => Ok(Text { tokens: 7 }),
                };
                let call = calls.lock().unwrap()[call.index(sent)].take();
                if let Some(call) = call {
                    // Its caller may have left.
                    let _ = call.send(result);
                }
            }
        }
    }
    drop(asking);
    [Taken::of(&callers.handle()), model.of_provider()]
}

proptest! {
    #[test]
    fn a_shared_response_is_charged_once_whoever_joins_leaves_or_fails_when(
        events in prop::collection::vec(event(), 1..60),
    ) {
        let [of_callers, of_provider] = play(&events);
        prop_assert_eq!(of_callers.tokens, of_provider.tokens);
    }
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
