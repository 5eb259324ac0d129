//! Several targets answer a call, and a judge or a vote chooses one of their answers.

use std::{collections::HashMap, convert::Infallible};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use regex::Regex;
use tower::{service_fn, util::BoxCloneSyncService};
use tower_llm_stack::{BoxError, RequestBody, config::EnsembleConfig, fanout};

use super::{
    Call,
    judge::{Judge, JudgeCall},
    said::{Said, asked},
};
use crate::{caller::PatientBody, warm::OwnBody};

/// What a judge is asked by: its answer, whatever it comes from, is read whole.
pub(super) type Judging = BoxCloneSyncService<Call, Response<OwnBody>, BoxError>;

/// Chooses one of the answers to a call.
#[derive(Clone, Debug)]
pub(super) enum Choice {
    /// The answer that most targets gave. What of each counts: its first group, or else its match.
    Majority(Option<Regex>),
    /// The answer that a model names by its number.
    Judge(Judge),
}

impl Choice {
    pub(super) fn new(config: &EnsembleConfig, judge: Option<Judge>) -> Result<Self, regex::Error> {
        Ok(match judge {
            Some(judge) => Self::Judge(judge),
            None => Self::Majority(config.extract.as_deref().map(Regex::new).transpose()?),
        })
    }

    /// What answers [`ask`](fanout::Judge::ask).
    pub(super) fn service(&self) -> Judging {
        match self {
            Self::Judge(judge) => {
                let judge = judge.clone();
                BoxCloneSyncService::new(service_fn(move |call: Call| {
                    let asked =
                        judge.ask(call.map(|body| body.as_bytes().cloned().unwrap_or_default()));
                    async move { Ok(asked.await?.map(BodyExt::boxed_unsync)) }
                }))
            }
            // A vote is counted here: its request is its answer.
            Self::Majority(_) => BoxCloneSyncService::new(service_fn(|call: Call| async move {
                let position = call.body().as_bytes().cloned().unwrap_or_default();
                let body = Full::new(position).map_err(|never: Infallible| match never {});
                Ok::<_, BoxError>(Response::new(body.boxed_unsync()))
            })),
        }
    }
}

impl fanout::Judge<Call, Response<Bytes>> for Choice {
    fn ask(&self, request: &Call, answers: &[Response<Bytes>]) -> Result<Call, BoxError> {
        let texts: Vec<_> = answers
            .iter()
            .map(|answer| Said::read(answer.body()).text)
            .collect();
        let held = |request: JudgeCall| request.map(RequestBody::<PatientBody>::held);
        match self {
            Self::Judge(judge) => {
                let asked = asked(request.body().as_bytes().map_or(&[][..], |body| body));
                Ok(held(judge.choice(&asked, &texts)))
            }
            Self::Majority(extract) => {
                let position = majority(&texts, extract.as_ref());
                Ok(held(Request::new(position.to_string().into())))
            }
        }
    }

    fn chooses(&self) -> bool {
        true
    }

    fn choose(&self, verdict: &Response<Bytes>) -> Option<usize> {
        match self {
            // Answers are numbered from one.
            Self::Judge(_) => number(&Said::read(verdict.body()).text)?.checked_sub(1),
            Self::Majority(_) => std::str::from_utf8(verdict.body()).ok()?.parse().ok(),
        }
    }
}

/// The first of the answers that most agree on.
fn majority(texts: &[String], extract: Option<&Regex>) -> usize {
    let votes: Vec<_> = texts.iter().map(|text| vote(text, extract)).collect();
    let mut counts = HashMap::new();
    for vote in votes.iter().flatten() {
        *counts.entry(vote).or_insert(0) += 1;
    }
    let count = |vote: &Option<String>| vote.as_ref().map_or(0, |vote| counts[vote]);
    let most = votes.iter().map(count).max().unwrap_or(0);
    votes
        .iter()
        .position(|vote| count(vote) == most)
        .unwrap_or(0)
}

/// What an answer votes for; `None` if it votes for nothing.
fn vote(text: &str, extract: Option<&Regex>) -> Option<String> {
    let vote = match extract {
        None => text,
        Some(extract) => {
            let found = extract.captures(text)?;
            found.get(1).or_else(|| found.get(0))?.as_str()
        }
    };
    Some(vote.trim().to_lowercase())
}

/// The first number in a text.
fn number(text: &str) -> Option<usize> {
    let mut numbers = text.split(|letter: char| !letter.is_ascii_digit());
    numbers.find(|number| !number.is_empty())?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elected(texts: &[&str], extract: Option<&str>) -> usize {
        let texts: Vec<_> = texts.iter().map(ToString::to_string).collect();
        let extract = extract.map(|extract| Regex::new(extract).unwrap());
        majority(&texts, extract.as_ref())
    }

    #[test]
    fn the_first_of_the_most_frequent_answers_is_elected() {
        assert_eq!(elected(&["b", "a", " A\n"], None), 1);
        assert_eq!(elected(&["a", "b"], None), 0);
        assert_eq!(elected(&["b", "a", "a", "b"], None), 0);
    }

    #[test]
    fn a_vote_is_the_first_group_or_else_the_match() {
        let texts = ["I say: 4.", "The answer: 5", "answer: 5, surely"];
        assert_eq!(elected(&texts, Some("answer: (\\w+)")), 1);
        assert_eq!(elected(&["x 1", "2 y", "z 2"], Some("[0-9]")), 1);
        // Without a match there is no vote, and silence elects nothing.
        assert_eq!(elected(&["?", "!", "answer: 5"], Some("answer: (\\w+)")), 2);
        assert_eq!(elected(&["?", "!"], Some("answer: (\\w+)")), 0);
    }

    #[test]
    fn a_judge_names_an_answer_by_a_number() {
        assert_eq!(number("Answer 2 is best, not 1."), Some(2));
        assert_eq!(number("none"), None);
    }
}
