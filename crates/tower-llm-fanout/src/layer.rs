//! Hedges, races, failover and retries of one call.

use std::sync::Arc;

use tower_layer::Layer;
use tower_llm_core::HttpBody;

use crate::{
    BestOf, Budget, ByOutcome, Copies, Delay, Dispatch, Each, EnsembleBuilder, Fallback, Fanout,
    FanoutBuilder, FanoutStats, First, Mode, Pace, Pool, Reading, RipeAt, Route, Several,
    SplitBuilder, Vote, builder::Settings, ensemble::Terms, plan::Plan, split::Eligible,
};

/// Sends a call in several branches.
///
/// Clones, and all services that it makes, share the budget, the record of latencies and the statistics.
#[derive(Clone, Debug)]
pub struct FanoutLayer<W = HttpBody, C = ByOutcome, M = First> {
    pub(crate) plan: Arc<Plan>,
    pub(crate) branches: usize,
    pub(crate) reading: Reading<W, C>,
    pub(crate) mode: M,
    pub(crate) eligible: Eligible,
}

impl FanoutLayer {
    /// Sends all `branches` at once; the first good answer wins.
    ///
    /// All of them are billed, so they are planned: they need no [`Budget`].
    pub fn race(branches: usize) -> FanoutBuilder {
        FanoutBuilder::planned(branches, First::default())
    }

    /// Sends a second branch if the first one has not answered after `delay`, or has failed.
    ///
    /// Most providers bill a branch that lost for what it had generated.
    pub fn hedge(delay: Delay) -> FanoutBuilder {
        let budget = Budget::for_hedge(&delay);
        let settings = Settings {
            budget,
            ..Settings::new(Pace::after(delay), 2)
        };
        FanoutBuilder::of(settings, First::default())
    }

    /// Sends a call that failed again, up to `retries` times, with a [`Backoff`](crate::Backoff).
    pub fn retry(retries: usize) -> FanoutBuilder {
        FanoutBuilder::sequential(retries, Budget::of(0.2))
    }

    /// Sends a call that failed to another target, up to `extra` times; for a [`Pool`]. A target is tried twice
    /// only if it is the only one.
    pub fn failover(extra: usize) -> FanoutBuilder {
        FanoutBuilder::sequential(extra, Budget::of(1.0))
    }

    /// Sends a call to one target of a [`Pool`] after the other, until an answer is good enough: cheap ones first.
    /// If none is, the call gets the last answer.
    ///
    /// Whether an answer is good is said by [`classify`](FanoutBuilder::classify), which sees all of it. The tiers are planned:
    /// they need no [`Budget`].
    pub fn cascade(tiers: usize) -> FanoutBuilder {
        let settings = Settings {
            planned: tiers,
            ..Settings::new(Pace::after_failure(1), tiers)
        };
        let mode = First {
            fallback: Fallback::Last,
            ..First::default()
        };
        FanoutBuilder::of(settings, mode).ripe_at(RipeAt::Whole)
    }

    /// Sends each item of a list in a branch of its own, at most so many at once, and returns what became of each, in order.
    pub fn map(max_concurrent: usize) -> FanoutBuilder<HttpBody, ByOutcome, Each> {
        let pace = Pace::at_once().at_most(max_concurrent);
        let settings = Settings {
            planned: usize::MAX,
            traced: false,
            ..Settings::new(pace, 1)
        };
        FanoutBuilder::of(settings, Each::default()).ripe_at(RipeAt::Whole)
    }

    /// Divides each request that is larger than its provider takes, sends the parts, at most so many at once, and joins their
    /// answers. Other requests are sent as they are.
    ///
    /// If a part fails, its response or error is the call's own; the parts in flight are given up, and no other starts. The caller
    /// pays for what was sent. A part does not start again: put a retry inside.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use http::{Request, Response};
    /// use http_body_util::{BodyExt, Full};
    /// use tower::{ServiceBuilder, ServiceExt, service_fn};
    /// use tower_llm_core::{BoxError, DescribeLayer, EmbeddingLimits, RequestBody};
    /// use tower_llm_fanout::{EmbeddingParts, FanoutLayer};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), BoxError> {
    /// // Those of the provider, unless set.
    /// let one_at_a_time = EmbeddingParts::new().limits(EmbeddingLimits::new(1));
    /// let model = ServiceBuilder::new()
    ///     .layer(DescribeLayer::new())
    ///     .layer(FanoutLayer::split(4, one_at_a_time).build()?)
    ///     .service(service_fn(|_: Request<RequestBody<Full<Bytes>>>| async {
    ///         let vector = r#"{"data":[{"index":0,"embedding":[0.5]}],"usage":{"total_tokens":1}}"#;
    ///         Ok::<_, BoxError>(Response::new(Full::new(Bytes::from(vector))))
    ///     }));
    ///
    /// let body = Full::new(Bytes::from(r#"{"input":["a","b"]}"#));
    /// let request = Request::post("/v1/embeddings").header("content-type", "application/json").body(body)?;
    /// let joined = model.oneshot(request).await?.into_body().collect().await?.to_bytes();
    /// let both = r#"{"data":[{"index":0,"embedding":[0.5]},{"index":1,"embedding":[0.5]}],"usage":{"total_tokens":2}}"#;
    /// assert_eq!(joined, both);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Typed requests are divided by a closure, which returns another one that joins the answers:
    ///
    /// ```
    /// use tower::{Layer, ServiceExt, service_fn};
    /// use tower_llm_core::{BoxError, Call, Described, Unary};
    /// use tower_llm_fanout::{Divided, FanoutLayer};
    ///
    /// struct Texts(Vec<&'static str>);
    ///
    /// impl Described for Texts {
    ///     fn call(&self) -> Option<std::borrow::Cow<'_, Call>> {
    ///         None
    ///     }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), BoxError> {
    /// let by_two = |Texts(texts): Texts| {
    ///     let parts = texts.chunks(2).map(|part| Texts(part.to_vec())).collect();
    ///     Ok(Divided::Parts(parts, |answers: Vec<Vec<usize>>| Ok(answers.concat())))
    /// };
    /// let lengths = FanoutLayer::split(8, by_two).watch(Unary).build()?.layer(service_fn(
    ///     |Texts(texts): Texts| async move {
    ///         assert!(texts.len() <= 2);
    ///         Ok::<_, BoxError>(texts.iter().map(|text| text.len()).collect())
    ///     },
    /// ));
    /// let texts = Texts(vec!["a", "bb", "ccc"]);
    /// assert_eq!(lengths.oneshot(texts).await?, [1, 2, 3]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn split<D>(max_concurrent: usize, divide: D) -> SplitBuilder<D> {
        let pace = Pace::at_once().at_most(max_concurrent);
        let settings = Settings {
            planned: usize::MAX,
            bills: true,
            ..Settings::new(pace, 1)
        };
        let mode = Each {
            fail_fast: true,
            joined: true,
        };
        let parts = FanoutBuilder::of(settings, mode).ripe_at(RipeAt::Whole);
        SplitBuilder {
            parts: parts.max_held_bytes(128 << 20),
            divide,
            report_headers: false,
        }
    }

    /// Sends all `branches` at once, and returns what became of each.
    pub fn several(branches: usize) -> FanoutBuilder<HttpBody, ByOutcome, Several> {
        let mode = Several {
            fail_fast: false,
            min_ok: 1,
            judged: false,
        };
        FanoutBuilder::planned(branches, mode).ripe_at(RipeAt::Whole)
    }

    /// Sends a call to `max_providers` candidates at once, and has a `judge` write the answer from theirs. `ask` makes the request to
    /// the judge, from the call's own and the good answers; see [`EnsembleLayer`](crate::EnsembleLayer) for what happens if some or all have none.
    ///
    /// ```
    /// use tower::{Layer, ServiceExt, service_fn};
    /// use tower_llm_core::{BoxError, Call, Described, Unary};
    /// use tower_llm_fanout::FanoutLayer;
    ///
    /// #[derive(Clone)]
    /// struct Prompt(String);
    ///
    /// impl Described for Prompt {
    ///     fn call(&self) -> Option<std::borrow::Cow<'_, Call>> {
    ///         None
    ///     }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), BoxError> {
    /// let judge = service_fn(|Prompt(text): Prompt| async move { Ok::<_, BoxError>(text) });
    /// let ask = |Prompt(question): &Prompt, answers: &[String]| {
    ///     Ok(Prompt(format!("{question} Sum up: {}", answers.join(" / "))))
    /// };
    /// let ensemble = FanoutLayer::ensemble(2, judge, ask).watch(Unary).build()?;
    ///
    /// // Or `ensemble.across(&pool)`: then each candidate is another target.
    /// let model = ensemble.layer(service_fn(|_: Prompt| async {
    ///     Ok::<_, BoxError>(String::from("Because."))
    /// }));
    /// let answer = model.oneshot(Prompt(String::from("Why?"))).await?;
    /// assert_eq!(answer, "Why? Sum up: Because. / Because.");
    /// assert_eq!(ensemble.stats().judged, 1);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Over HTTP a judge's request is made of bytes; `ask` sees each answer as a response with all of its body:
    ///
    /// ```
    /// use bytes::Bytes;
    /// use http::{Request, Response};
    /// use http_body_util::{BodyExt, Full};
    /// use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};
    /// use tower_llm_core::{BoxError, DescribeLayer, RequestBody};
    /// use tower_llm_fanout::FanoutLayer;
    ///
    /// type Body = RequestBody<Full<Bytes>>;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), BoxError> {
    /// let client = service_fn(|request: Request<Body>| async move {
    ///     let body = request.into_body().collect().await?.to_bytes();
    ///     Ok::<_, BoxError>(Response::new(Full::new(body)))
    /// });
    /// let ask = |request: &Request<Body>, answers: &[Response<Bytes>]| {
    ///     let bodies: Vec<_> = answers.iter().map(|answer| answer.body().as_ref()).collect();
    ///     // The method, URI, headers and description of the call's own request.
    ///     Ok(RequestBody::request_with(request, bodies.join(&b","[..])))
    /// };
    /// let model = ServiceBuilder::new()
    ///     .layer(DescribeLayer::new())
    ///     .layer(FanoutLayer::ensemble(2, client, ask).build()?)
    ///     .service(client);
    ///
    /// let body = Full::new(Bytes::from(r#"{"model":"gpt-5"}"#));
    /// let request = Request::post("/v1/chat/completions").header("content-type", "application/json").body(body)?;
    /// let answer = model.oneshot(request).await?.into_body().collect().await?.to_bytes();
    /// assert_eq!(answer, r#"{"model":"gpt-5"},{"model":"gpt-5"}"#);
    /// # Ok(())
    /// # }
    /// ```
    pub fn ensemble<J, A>(max_providers: usize, judge: J, ask: A) -> EnsembleBuilder<J, A> {
        let mode = Several {
            fail_fast: false,
            min_ok: 1,
            judged: true,
        };
        let mut candidates = FanoutBuilder::planned(max_providers, mode).ripe_at(RipeAt::Whole);
        candidates.settings.bills = true;
        EnsembleBuilder {
            candidates,
            judge,
            ask,
            terms: Terms::default(),
        }
    }

    /// Sends a call to `max_providers` candidates at once, and has a `judge` choose one of their answers. `ask` makes the request to
    /// the judge, and `choose` reads from its answer the position of the chosen one among those that it was asked about, from 0.
    pub fn best_of<J, A, X>(
        max_providers: usize,
        judge: J,
        ask: A,
        choose: X,
    ) -> EnsembleBuilder<J, BestOf<A, X>> {
        Self::ensemble(max_providers, judge, BestOf { ask, choose })
    }

    /// Sends all `branches` at once; the first answer that so many `votes` agree on wins. `extract` says what an answer says.
    ///
    /// ```
    /// use tower_llm_core::Unary;
    /// use tower_llm_fanout::FanoutLayer;
    ///
    /// // Two of three must name the same city, however they spell it.
    /// let layer = FanoutLayer::quorum(3, 2, |answer: &String| answer.trim().to_lowercase())
    ///     .watch(Unary)
    ///     .build()?;
    /// # let _ = layer;
    /// # Ok::<(), tower_llm_core::ConfigError>(())
    /// ```
    pub fn quorum<X>(
        branches: usize,
        votes: usize,
        extract: X,
    ) -> FanoutBuilder<HttpBody, ByOutcome, Vote<X>> {
        let mode = Vote {
            votes,
            extract,
            report_headers: false,
        };
        FanoutBuilder::planned(branches, mode).ripe_at(RipeAt::Whole)
    }

    /// The answer that more than half of `branches` agree on wins.
    pub fn majority<X>(branches: usize, extract: X) -> FanoutBuilder<HttpBody, ByOutcome, Vote<X>> {
        Self::quorum(branches, branches / 2 + 1, extract)
    }
}

impl<W, C, M> FanoutLayer<W, C, M> {
    /// What it has done so far.
    #[must_use]
    pub fn stats(&self) -> FanoutStats {
        self.plan.counters.stats()
    }
}

impl<W, C, M> FanoutLayer<W, C, M>
where
    W: Clone,
    C: Clone,
    M: Mode<W, C, Split = Copies<W>>,
{
    /// A service whose calls go to the targets of `pool`, each branch of a call to another one.
    ///
    /// So a call has at most as many branches as the pool has targets. To send more, such as the votes of one model, apply the
    /// layer around a service that fails over across the pool.
    #[must_use]
    pub fn across<S>(&self, pool: &Pool<S>) -> Fanout<Dispatch<W>, Route<S, W>, M::Gather> {
        let dispatch = Dispatch::new(self.reading.ripen.clone());
        let route = Route::new(pool.clone(), self.copies());
        let gather = self.mode.gather(self.reading.clone());
        Fanout::new(dispatch, route, gather, Arc::clone(&self.plan))
    }
}

impl<W, C, M> FanoutLayer<W, C, M>
where
    W: Clone,
    C: Clone,
    M: Mode<W, C>,
{
    /// The branches of a call to one service.
    fn copies(&self) -> M::Split {
        self.mode.split(Copies {
            most: self.branches,
            replay: self.reading.ripen.clone(),
            eligible: self.eligible.clone(),
            candidates: false,
        })
    }
}

impl<S, W, C, M> Layer<S> for FanoutLayer<W, C, M>
where
    W: Clone,
    C: Clone,
    M: Mode<W, C>,
{
    type Service = Fanout<S, M::Split, M::Gather>;

    fn layer(&self, inner: S) -> Self::Service {
        let gather = self.mode.gather(self.reading.clone());
        Fanout::new(inner, self.copies(), gather, Arc::clone(&self.plan))
    }
}
