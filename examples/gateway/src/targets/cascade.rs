//! One target after the other, cheap ones first, until an answer is good enough.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::Response;
use http_body::Body;
use pin_project_lite::pin_project;
use regex::Regex;
use tower::Service;
use tower_llm_stack::{
    BoxError, Call as Described, Completion, Guard, HttpBody, Outcome, Usage, Watch,
    config::CascadeConfig,
    fanout::{
        Arrived, Attach, ByOutcome, Classify, Replay, Report, RipeBody, Ripen, Ripeness, Ripening,
        Verdict,
    },
};

use super::{Call, judge::Judge, said::Said};

/// The body of a request, in its extensions and then in those of its response: a judge reads both.
#[derive(Clone, Debug)]
pub(crate) struct Asked(pub(super) Bytes);

/// The answer of a tier is not good enough, in its extensions.
#[derive(Clone, Copy, Debug)]
struct Rejected;

/// Decides whether an answer is good enough. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Scorer(Arc<Rules>);

#[derive(Debug)]
struct Rules {
    /// The last target, by name. Its answer is taken as it is.
    last: String,
    finish_reasons: Vec<String>,
    regex: Option<Regex>,
    judge: Option<Judge>,
}

/// Passes what was [`Asked`] on to the response.
#[derive(Clone, Debug)]
pub(crate) struct Asking<S>(pub(super) S);

// === impl Scorer ===

impl Scorer {
    /// `last` is the target whose answer is taken as it is.
    pub(super) fn new(
        config: &CascadeConfig,
        last: &str,
        judge: Option<Judge>,
    ) -> Result<Self, regex::Error> {
        Ok(Self(Arc::new(Rules {
            last: last.to_owned(),
            finish_reasons: config.finish_reasons.clone(),
            regex: config.regex.as_deref().map(Regex::new).transpose()?,
            judge,
        })))
    }

    fn is_last(&self, call: Option<&Described>) -> bool {
        call.and_then(Described::account) == Some(&*self.0.last)
    }

    /// Whether an answer is good enough. One that cannot be judged is.
    async fn accepts(self, asked: Option<Asked>, answer: Bytes) -> bool {
        let Rules {
            finish_reasons,
            regex,
            judge,
            ..
        } = &*self.0;
        let said = Said::read(&answer);
        if finish_reasons.iter().any(|reason| said.finished_by(reason)) {
            tracing::debug!(
                finish = said.finish,
                "the answer is rejected by its finish reason"
            );
            return false;
        }
        if regex
            .as_ref()
            .is_some_and(|regex| regex.is_match(&said.text))
        {
            tracing::debug!("the answer is rejected by its text");
            return false;
        }
        // What calls a tool says nothing that could be judged.
        let (Some(judge), false) = (judge, said.text.trim().is_empty()) else {
            return true;
        };
        let asked = asked.map(|Asked(body)| body).unwrap_or_default();
        let accepted = judge.accepts(&asked, &said.text).await;
        accepted.unwrap_or_else(|error| {
            tracing::warn!(%error, "the judge has failed; the answer is taken");
            true
        })
    }
}

/// Calls are sent and watched as others are; an answer that counts is scored.
impl<R> Watch<R> for Scorer
where
    HttpBody: Watch<R>,
{
    type Out<G: Guard> = <HttpBody as Watch<R>>::Out<G>;

    fn watch<G: Guard>(&self, call: Option<&Described>, response: R, guard: G) -> Self::Out<G> {
        HttpBody.watch(call, response, guard)
    }
}

impl Replay<Call> for Scorer {
    fn replay(&self, request: &Call) -> Option<Call> {
        HttpBody.replay(request)
    }
}

impl<B> Attach<Response<B>> for Scorer {
    fn attach(&self, response: &mut Response<B>, report: Report) {
        HttpBody.attach(response, report);
    }

    fn charge(&self, response: &mut Response<B>, used: Usage) {
        HttpBody.charge(response, used);
    }

    fn attach_headers(&self, response: &mut Response<B>, report: &Report) {
        HttpBody.attach_headers(response, report);
    }
}

impl<B> Ripen<Response<B>> for Scorer
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Ripe = Response<RipeBody<B>>;
    type Ripening = Scoring<B>;

    fn ripen(
        &self,
        call: Option<&Described>,
        mut response: Response<B>,
        ripeness: Ripeness,
    ) -> Scoring<B> {
        let asked = response.extensions_mut().remove::<Asked>();
        let scorer = (!self.is_last(call)).then(|| (self.clone(), asked));
        let ripeness = match scorer {
            Some(_) => ripeness,
            // Nothing follows it, so its stream need not be held.
            None => Ripeness::default(),
        };
        Scoring {
            ripening: HttpBody.ripen(call, response, ripeness),
            scorer,
            arrived: None,
            score: None,
        }
    }

    fn give_up(&self, scoring: Pin<&mut Scoring<B>>, outcome: Outcome) -> Option<Completion> {
        HttpBody.give_up(scoring.project().ripening, outcome)
    }

    fn keep(&self, call: Option<&Described>) -> Option<Described> {
        call.cloned()
    }
}

impl<B> Classify<Response<RipeBody<B>>> for Scorer {
    fn classify(&self, arrived: &Arrived<Response<RipeBody<B>>>) -> Verdict {
        let response = arrived.result.as_ref().ok();
        let is_rejected = response.is_some_and(|it| it.extensions().get::<Rejected>().is_some());
        match is_rejected {
            true => Verdict::Soft,
            false => ByOutcome.classify(arrived),
        }
    }
}

type Score = Pin<Box<dyn Future<Output = bool> + Send>>;

pin_project! {
    /// Resolves when an answer counts, and is scored.
    pub(super) struct Scoring<B> {
        #[pin]
        ripening: Ripening<B>,
        // `None` if it is taken as it is, and once it is being scored.
        scorer: Option<(Scorer, Option<Asked>)>,
        arrived: Option<Arrived<Response<RipeBody<B>>>>,
        score: Option<Score>,
    }
}

impl<B> Future for Scoring<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Output = Arrived<Response<RipeBody<B>>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if this.arrived.is_none() {
            let arrived = ready!(this.ripening.poll(cx));
            let answer = match &arrived.result {
                Ok(response) if arrived.outcome == Outcome::Success => bytes(response.body()),
                _ => return Poll::Ready(arrived),
            };
            let Some((scorer, asked)) = this.scorer.take() else {
                return Poll::Ready(arrived);
            };
            *this.score = Some(Box::pin(scorer.accepts(asked, answer)));
            *this.arrived = Some(arrived);
        }
        let score = this.score.as_mut().expect("it has arrived");
        let is_good = ready!(score.as_mut().poll(cx));
        let mut arrived = this.arrived.take().expect("it has arrived");
        if let (Ok(response), false) = (&mut arrived.result, is_good) {
            response.extensions_mut().insert(Rejected);
        }
        Poll::Ready(arrived)
    }
}

/// All bytes that are there.
fn bytes<B>(body: &RipeBody<B>) -> Bytes {
    let mut frames = body.held();
    let first = frames.next().cloned().unwrap_or_default();
    let rest: Vec<_> = frames.collect();
    match rest.is_empty() {
        true => first,
        false => {
            let mut all = Vec::from(first);
            rest.into_iter()
                .for_each(|frame| all.extend_from_slice(frame));
            all.into()
        }
    }
}

// === impl Asking ===

impl<S, B> Service<Call> for Asking<S>
where
    S: Service<Call, Response = Response<B>>,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = WithAsked<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut call: Call) -> Self::Future {
        let asked = call.extensions_mut().remove::<Asked>();
        WithAsked {
            inner: self.0.call(call),
            asked,
        }
    }
}

pin_project! {
    /// The future of [`Asking`].
    pub(crate) struct WithAsked<F> {
        #[pin]
        inner: F,
        asked: Option<Asked>,
    }
}

impl<F, B, E> Future for WithAsked<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<B>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.inner.poll(cx))?;
        if let Some(asked) = this.asked.take() {
            response.extensions_mut().insert(asked);
        }
        Poll::Ready(Ok(response))
    }
}
