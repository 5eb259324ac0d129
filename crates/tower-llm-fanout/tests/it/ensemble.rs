//! Candidates and a judge, as typed services.

use std::{
    borrow::Cow,
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tower::{ServiceExt, limit::ConcurrencyLimit, service_fn, util::BoxCloneSyncService};
use tower_layer::Layer;
use tower_llm_core::{
    BoxError, Call, ClassifiedError, Completion, Described, Failure, Operation, Outcome, Provider,
    Unary,
};
use tower_llm_fanout::{
    EnsembleBuilder, FanoutLayer, IfJudgeFails, JudgeFailed, Pick, Pool, Target, TooFewAnswers,
};

use crate::support::MS;

#[derive(Clone, Debug)]
struct Question {
    text: String,
    call: Call,
}

type Model = BoxCloneSyncService<Question, String, BoxError>;

/// What the models were asked: the text, and the number of the candidate.
type Asked = Arc<Mutex<Vec<(String, u32)>>>;

impl Described for Question {
    fn call(&self) -> Option<Cow<'_, Call>> {
        Some(Cow::Borrowed(&self.call))
    }

    fn set_call(&mut self, call: Call) {
        self.call = call;
    }
}

fn question() -> Question {
    Question {
        text: String::from("Why?"),
        call: Call::builder(Provider::OPENAI, Operation::CHAT).build(),
    }
}

fn model<F>(answer: impl Fn(Question) -> F + Clone + Send + Sync + 'static) -> Model
where
    F: Future<Output = Result<String, BoxError>> + Send + 'static,
{
    BoxCloneSyncService::new(service_fn(answer))
}

/// Candidates of one service: what each does by its number, and after how long.
fn candidates(answers: &[(Duration, Result<&'static str, Outcome>)], asked: &Asked) -> Model {
    let (answers, asked): (Arc<[_]>, _) = (answers.into(), Arc::clone(asked));
    model(move |question| {
        let number = question.call.candidate();
        asked.lock().unwrap().push((question.text, number));
        let (after, answer) = answers[number as usize];
        async move {
            sleep(after).await;
            let failed = |outcome| ClassifiedError::new(outcome, "scripted").into();
            answer.map(String::from).map_err(failed)
        }
    })
}

fn judge(after: Duration, answer: Result<&'static str, &'static str>, asked: &Asked) -> Model {
    let asked = Arc::clone(asked);
    model(move |question| {
        asked
            .lock()
            .unwrap()
            .push((question.text, question.call.candidate()));
        async move {
            sleep(after).await;
            answer.map(String::from).map_err(Into::into)
        }
    })
}

type Ask = fn(&Question, &[String]) -> Result<Question, BoxError>;

fn ask(question: &Question, answers: &[String]) -> Result<Question, BoxError> {
    let text = format!("{} {}", question.text, answers.join("|"));
    Ok(Question {
        text,
        ..question.clone()
    })
}

fn ensemble(judge: Model, candidates: usize) -> EnsembleBuilder<Model, Ask, Unary> {
    FanoutLayer::ensemble(candidates, judge, ask as Ask).watch(Unary)
}

const FAILED: Outcome = Outcome::Failed(Failure::Status);
const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const THREE: &[(Duration, Result<&str, Outcome>)] =
    &[(ms(30), Ok("a")), (ms(5), Err(FAILED)), (ms(10), Ok("c"))];

#[tokio::test(start_paused = true)]
async fn a_judge_writes_the_answer_from_the_good_ones_in_the_order_of_the_candidates() {
    let (asked, judged) = <(Asked, Asked)>::default();
    let some = candidates(THREE, &asked);
    let layer = ensemble(judge(20 * MS, Ok("verdict"), &judged), 3)
        .build()
        .unwrap();
    let began_at = Instant::now();
    let answer = layer.layer(some).oneshot(question()).await.unwrap();
    assert_eq!(answer, "verdict");
    assert_eq!(began_at.elapsed(), 50 * MS);
    assert_eq!(judged.lock().unwrap()[..], [("Why? a|c".to_owned(), 0)]);
    // A cache answers each of them by itself.
    let numbers: Vec<_> = asked.lock().unwrap().iter().map(|one| one.1).collect();
    assert_eq!(numbers, [0, 1, 2]);
    let stats = layer.stats();
    assert_eq!((stats.calls, stats.branches, stats.extra), (1, 3, 0));
    assert_eq!((stats.judged, stats.judge_failed), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn one_survivor_is_the_answer_and_the_judge_is_not_asked() {
    let (asked, judged) = <(Asked, Asked)>::default();
    let one = &[(ms(5), Err(FAILED)), (ms(10), Ok("b"))];
    let layer = ensemble(judge(MS, Ok("verdict"), &judged), 2)
        .build()
        .unwrap();
    let service = layer.layer(candidates(one, &asked));
    assert_eq!(service.oneshot(question()).await.unwrap(), "b");
    assert!(judged.lock().unwrap().is_empty());
    assert_eq!(layer.stats().judged, 0);
}

#[tokio::test(start_paused = true)]
async fn a_judge_that_chooses_names_an_answer_by_its_position_among_the_good_ones() {
    let choose = |verdict: &String| verdict.parse().ok();
    for (verdict, expected) in [("1", "c"), ("0", "a"), ("2", "a"), ("neither", "a")] {
        let (asked, judged) = <(Asked, Asked)>::default();
        let judge = judge(MS, Ok(verdict), &judged);
        let best = FanoutLayer::best_of(3, judge, ask as Ask, choose).watch(Unary);
        let layer = best.build().unwrap();
        let service = layer.layer(candidates(THREE, &asked));
        assert_eq!(service.oneshot(question()).await.unwrap(), expected);
        let has_failed = verdict != "1" && verdict != "0";
        assert_eq!(
            layer.stats().judge_failed,
            u64::from(has_failed),
            "{verdict}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn if_the_judge_fails_the_call_gets_the_first_good_answer_or_the_error() {
    let (asked, judged) = <(Asked, Asked)>::default();
    for broken in [
        judge(MS, Err("no judge"), &judged),
        judge(ms(5_000), Ok("too late"), &judged),
    ] {
        let builder = ensemble(broken, 3).judge_timeout(ms(1_000));
        let layer = builder.clone().build().unwrap();
        let service = layer.layer(candidates(THREE, &asked));
        assert_eq!(service.oneshot(question()).await.unwrap(), "a");
        assert_eq!(layer.stats().judge_failed, 1);

        let layer = builder.if_judge_fails(IfJudgeFails::Error).build().unwrap();
        let service = layer.layer(candidates(THREE, &asked));
        let error = service.oneshot(question()).await.unwrap_err();
        assert!(error.is::<JudgeFailed>(), "{error}");
    }
    // A request that cannot be made is a failure of the judge too.
    let none: Ask = |_, _| Err("no request".into());
    let unasked = FanoutLayer::ensemble(3, judge(MS, Ok("verdict"), &judged), none);
    let service = unasked.watch(Unary).build().unwrap();
    let service = service.layer(candidates(THREE, &asked));
    assert_eq!(service.oneshot(question()).await.unwrap(), "a");
}

#[tokio::test(start_paused = true)]
async fn the_answers_that_come_in_time_are_used() {
    let (asked, judged) = <(Asked, Asked)>::default();
    let slow = &[(ms(30), Ok("a")), (ms(500), Ok("b")), (ms(40), Ok("c"))];
    let builder = ensemble(judge(ms(80), Ok("verdict"), &judged), 3).deadline(ms(100));
    let layer = builder.clone().build().unwrap();
    let began_at = Instant::now();
    let service = layer.layer(candidates(slow, &asked));
    assert_eq!(service.oneshot(question()).await.unwrap(), "verdict");
    // The judge has its own time.
    assert_eq!(began_at.elapsed(), ms(180));
    assert_eq!(judged.lock().unwrap()[0].0, "Why? a|c");

    let layer = builder.min_ok(3).build().unwrap();
    let service = layer.layer(candidates(slow, &asked));
    let error = service.oneshot(question()).await.unwrap_err();
    let too_few = error.downcast_ref::<TooFewAnswers>().unwrap();
    let outcomes: Vec<_> = too_few
        .report()
        .unwrap()
        .attempts()
        .iter()
        .map(|one| one.outcome.unwrap())
        .collect();
    let timed_out = Outcome::Failed(Failure::Timeout);
    assert_eq!(outcomes, [Outcome::Success, timed_out, Outcome::Success]);
    assert_eq!(Completion::of_error(&*error).outcome, timed_out);
}

#[tokio::test(start_paused = true)]
async fn one_that_fails_fast_gives_up_the_others() {
    let (asked, judged) = <(Asked, Asked)>::default();
    let builder = ensemble(judge(MS, Ok("verdict"), &judged), 3).fail_fast(true);
    let layer = builder.build().unwrap();
    let began_at = Instant::now();
    let service = layer.layer(candidates(THREE, &asked));
    let error = service.oneshot(question()).await.unwrap_err();
    assert_eq!(began_at.elapsed(), ms(5));
    assert!(error.is::<TooFewAnswers>());
    assert_eq!(Completion::of_error(&*error).outcome, FAILED);
    assert_eq!(layer.stats().superseded, 2);

    // Others that have answered before do not save it.
    let late = &[(ms(1), Ok("a")), (ms(2), Ok("b")), (ms(5), Err(FAILED))];
    let service = layer.layer(candidates(late, &asked));
    let error = service.oneshot(question()).await.unwrap_err();
    assert!(error.is::<TooFewAnswers>());
    assert_eq!(Completion::of_error(&*error).outcome, FAILED);
    assert!(judged.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_candidates_of_a_pool_are_its_targets_and_are_numbered() {
    let (asked, judged) = <(Asked, Asked)>::default();
    let answers = &[(ms(1), Ok("a")), (ms(1), Ok("b"))];
    let target = |name| Target::new(name, candidates(answers, &asked));
    let pool = Pool::builder().pick(Pick::in_order());
    let pool = pool.targets(["x", "y"].map(target)).build().unwrap();
    let layer = ensemble(judge(MS, Ok("verdict"), &judged), 5)
        .build()
        .unwrap();
    let service = layer.across(&pool);
    assert_eq!(service.oneshot(question()).await.unwrap(), "verdict");
    // Both are of one model: a cache that they share must not answer both with one answer.
    let numbers: Vec<_> = asked.lock().unwrap().iter().map(|one| one.1).collect();
    assert_eq!(numbers, [0, 1]);
    assert_eq!(judged.lock().unwrap()[0].0, "Why? a|b");
    assert_eq!(
        pool.stats()
            .iter()
            .map(|target| target.calls)
            .collect::<Vec<_>>(),
        [1, 1]
    );
}

#[tokio::test(start_paused = true)]
async fn candidates_and_judge_share_one_permit_one_after_another() {
    let asked = Asked::default();
    let both = ConcurrencyLimit::new(candidates(THREE, &asked), 1);
    let layer = FanoutLayer::ensemble(3, both.clone(), ask as Ask).watch(Unary);
    let service = layer.build().unwrap().layer(both);
    // The judge is candidate 0 of the same service.
    assert_eq!(service.oneshot(question()).await.unwrap(), "a");
    let texts: Vec<_> = asked
        .lock()
        .unwrap()
        .iter()
        .map(|one| one.0.clone())
        .collect();
    assert_eq!(texts, ["Why?", "Why?", "Why?", "Why? a|c"]);
}
