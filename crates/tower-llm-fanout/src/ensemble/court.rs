//! What the answers of candidates and a judge come to.

use std::{marker::PhantomData, sync::Arc};

use tokio::time::Instant;
use tower_llm_core::{BoxError, Call, Described, Oneshot, Usage};
use tower_service::Service;

use super::{Elect, IfJudgeFails, Judge, JudgeFailed, settings::Settings};
use crate::{
    Arrived, Attempt, ByOutcome, Classify, Collect, Collected, Item, Reading, Report, RipeAt,
    Ripen, Ripeness, TooFewAnswers, Verdict,
    bill::billed,
    branch::{Branch, Terms},
};

/// Hears the candidates of one call, and asks its judge.
pub(super) struct Court<J, A, W, Req, T> {
    /// `None` if it could be sent only once.
    pub(super) request: Option<Req>,
    pub(super) judge: J,
    pub(super) ask: A,
    pub(super) watch: W,
    pub(super) settings: Arc<Settings>,
    pub(super) began_at: Instant,
    /// What the candidates answer.
    pub(super) _answers: PhantomData<fn() -> T>,
}

/// The good answers to one call.
pub(super) struct Answers<T> {
    all: Vec<T>,
    /// Which candidate each is from.
    from: Vec<usize>,
    report: Report,
}

/// A call to the judge.
pub(super) type Judging<J, Req, W> =
    Branch<Oneshot<J, Req>, Collect<W>, <J as Service<Req>>::Response>;

/// What the answers of the candidates come to.
pub(super) enum Heard<O, T> {
    Answer(Result<O, BoxError>),
    /// The judge is to be asked about them.
    Several(Answers<T>),
}

/// What becomes of a judge.
enum Ruling<O> {
    /// Its answer is the call's own.
    Wrote(O),
    /// It chose the answer at this position.
    Chose(usize),
    Failed(Result<O, BoxError>),
}

impl<T> Answers<T> {
    /// What the candidates have used.
    pub(super) fn used(&self) -> Usage {
        self.report.used()
    }
}

impl<J, A, W, Req, T> Court<J, A, W, Req, T>
where
    J: Service<Req> + Clone,
    J::Error: Into<BoxError>,
    A: Judge<Req, W::Answer>,
    W: Elect<T, J::Response>,
    Req: Described,
{
    /// The candidates have answered.
    pub(super) fn hear(
        &self,
        collected: Result<Collected<T>, BoxError>,
    ) -> Heard<W::Out, W::Answer> {
        let mut collected = match collected {
            Ok(collected) => collected,
            Err(error) => {
                let too_few = error.downcast_ref::<TooFewAnswers>();
                let report = too_few.and_then(TooFewAnswers::report);
                let used = report.map(Report::used).unwrap_or_default();
                return Heard::Answer(Err(billed(error, used)));
            }
        };
        let only = collected.take_only();
        let (items, report) = collected.into_parts();
        if let Some(only) = only {
            return Heard::Answer(Ok(self.pass(only, report)));
        }
        let report = report.unwrap_or_else(|| Report::new(Vec::new()));
        let good = items.into_iter().enumerate();
        let good = good.filter_map(|(branch, item)| match item {
            Item::Done(answer) => Some((branch, self.watch.read(answer))),
            _ => None,
        });
        let (from, all): (Vec<_>, Vec<_>) = good.unzip();
        let answers = Answers { all, from, report };
        match answers.all.len() {
            1 => Heard::Answer(self.elect(answers, 0, None)),
            _ => Heard::Several(answers),
        }
    }

    /// The answer to a call that was sent once.
    fn pass(&self, only: T, report: Option<Report>) -> W::Out {
        let mut out = self.watch.pass(only);
        if let Some(mut report) = report {
            report.answered_by(report.attempts().len() - 1);
            self.attach(&mut out, report);
        }
        out
    }

    /// Asks the judge.
    pub(super) fn ask(
        &mut self,
        answers: &Answers<W::Answer>,
    ) -> Result<Judging<J, Req, W>, BoxError> {
        let request = self.request.take();
        let request = request.ok_or("a request that can be sent once has no judge")?;
        let request = self.ask.ask(&request, &answers.all)?;
        let at = match self.ask.chooses() {
            true => RipeAt::Whole,
            false => RipeAt::FirstContent,
        };
        let reading = Reading {
            ripen: self.watch.clone(),
            ripeness: Ripeness {
                at,
                max_held_bytes: self.settings.max_held_bytes,
            },
            classify: ByOutcome,
        };
        let call = request.call();
        let terms = Terms {
            index: 0,
            input_tokens: call.as_deref().map_or(0, Call::input_tokens),
            call: self.watch.keep(call.as_deref()),
            timeout: self.settings.judge_timeout,
            losses: None,
        };
        let judged = Oneshot::new(self.judge.clone(), request);
        Ok(Branch::new(terms, judged, Collect::of(reading)))
    }

    /// The judge has answered since `asked_at`, or cannot be asked.
    pub(super) fn rule(
        &self,
        mut answers: Answers<W::Answer>,
        arrived: Arrived<<W as Ripen<J::Response>>::Ripe>,
        asked_at: Instant,
    ) -> Result<W::Out, BoxError> {
        let since = |at: Instant| at.saturating_duration_since(self.began_at);
        let used = arrived.usage;
        let mut judge = Attempt::started(None, since(asked_at));
        judge.ended = Some(since(Instant::now()));
        judge.outcome = Some(arrived.outcome);
        judge.usage = used;
        answers.report.judged_by(judge);
        let ruling = self.ruling(arrived, answers.all.len());
        let counters = &self.settings.plan.counters;
        counters.judged(matches!(ruling, Ruling::Failed(_)));
        match (ruling, self.settings.if_judge_fails) {
            (Ruling::Wrote(out), _) => Ok(self.write(out, answers)),
            (Ruling::Chose(position), _) => self.elect(answers, position, used),
            (Ruling::Failed(_), IfJudgeFails::FirstCandidate) => self.elect(answers, 0, used),
            (Ruling::Failed(Ok(out)), IfJudgeFails::Error) => Ok(self.write(out, answers)),
            (Ruling::Failed(Err(error)), IfJudgeFails::Error) => {
                let used = answers.used().plus(&used.unwrap_or_default());
                Err(billed(JudgeFailed::new(error).into(), used))
            }
        }
    }

    fn ruling(
        &self,
        arrived: Arrived<<W as Ripen<J::Response>>::Ripe>,
        answers: usize,
    ) -> Ruling<W::Out> {
        let is_good = ByOutcome.classify(&arrived) == Verdict::Accept;
        match arrived.result {
            Err(error) => Ruling::Failed(Err(error)),
            Ok(ripe) if !is_good => Ruling::Failed(Ok(self.watch.judged(ripe))),
            Ok(ripe) if !self.ask.chooses() => Ruling::Wrote(self.watch.judged(ripe)),
            Ok(ripe) => {
                let chosen = self.ask.choose(&self.watch.read_verdict(ripe));
                match chosen.filter(|&position| position < answers) {
                    Some(position) => Ruling::Chose(position),
                    None => Ruling::Failed(Err("its answer names no candidate".into())),
                }
            }
        }
    }

    /// The answer of a candidate is the call's own. `judge` is what the judge has used.
    fn elect(
        &self,
        mut answers: Answers<W::Answer>,
        position: usize,
        judge: Option<Usage>,
    ) -> Result<W::Out, BoxError> {
        let branch = answers.from[position];
        let mut out = self.watch.elect(answers.all.swap_remove(position));
        let mut others = answers.report.used_beside(branch);
        others = others.plus(&judge.unwrap_or_default());
        self.watch.charge(&mut out, others);
        answers.report.answered_by(branch);
        self.attach(&mut out, answers.report);
        Ok(out)
    }

    /// The answer of the judge is the call's own.
    fn write(&self, mut out: W::Out, answers: Answers<W::Answer>) -> W::Out {
        self.watch.charge(&mut out, answers.used());
        self.attach(&mut out, answers.report);
        out
    }

    fn attach(&self, out: &mut W::Out, report: Report) {
        if self.settings.report_headers {
            self.watch.attach_headers(out, &report);
        }
        self.watch.attach(out, report);
    }
}
