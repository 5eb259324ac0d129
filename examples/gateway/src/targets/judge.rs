//! A model that judges the answers of others.

use std::future::Future;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Uri, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Limited};
use serde_json::{Value, json};
use tower::{Layer, ServiceExt, util::BoxCloneSyncService};
use tower_llm_stack::{
    BoxError, DescribeLayer, Dialect, FanoutLayer, Pool,
    config::{Config, JudgeConfig},
};

use super::{
    Built,
    models::Answer,
    said::{Said, asked},
};
use crate::{StartError, caller::PatientBody};

/// The longest answer that is read of a judge.
const MAX_ANSWER: usize = 256 << 10;

/// The most bytes of a prompt, and of an answer, that a judge reads: it is to be cheap.
const MAX_READ: usize = 16 << 10;

const PROMPT: &str = "You check the answers of another model. Below are a request and the answer to it. If the answer does \
     what was asked and is not evidently wrong, say yes. If it is wrong, evades the question or leaves out what was asked \
     for, say no. Say one word, yes or no.";

const CHOICE: &str = "You compare the answers of other models. Below are a request and several answers to it, each with a \
     number. Choose the answer that does best what was asked, and say its number alone.";

/// A request to a judge.
pub(super) type JudgeCall = Request<Bytes>;

/// A model that judges answers. Clones share its target.
#[derive(Clone, Debug)]
pub(super) struct Judge {
    service: BoxCloneSyncService<Request<PatientBody>, Answer, BoxError>,
    dialect: Dialect,
    model: String,
    /// Instructions in place of the gateway's own.
    prompt: Option<String>,
}

impl Judge {
    pub(super) fn new(
        judge: &JudgeConfig,
        config: &Config,
        built: &Built,
        setting: &str,
    ) -> Result<Self, StartError> {
        let wrong = |error| StartError::setting(format!("{setting}.target"), error);
        let target = config.targets.get(&judge.target);
        let provider = target.map(|target| target.provider());
        let describe = DescribeLayer::new();
        let describe = match provider {
            Some(provider) => describe.provider(provider),
            None => describe,
        };
        let pool = Pool::builder().targets(built.get(&judge.target).cloned());
        let layer = FanoutLayer::failover(0).build().map_err(wrong)?;
        let service = describe.layer(layer.across(&pool.build().map_err(wrong)?));
        Ok(Self {
            service: BoxCloneSyncService::new(service),
            dialect: target
                .and_then(|target| target.dialect())
                .unwrap_or(Dialect::OpenAi),
            model: judge.model.clone(),
            prompt: judge.prompt.clone(),
        })
    }

    /// Whether it accepts an answer to the request with this body.
    pub(super) async fn accepts(&self, request: &[u8], answer: &str) -> Result<bool, BoxError> {
        let question = asked(request);
        let (question, answer) = (last(&question), last(answer));
        let text = format!("Request:\n{question}\n\nAnswer:\n{answer}\n\nYes or no?");
        let response = self.ask(self.request(PROMPT, &text)).await?;
        let status = response.status();
        if !status.is_success() {
            return Err(format!("it answers with {status}").into());
        }
        let body = Limited::new(response.into_body(), MAX_ANSWER);
        let said = Said::read(&body.collect().await?.to_bytes());
        verdict(&said.text).ok_or_else(|| "it says neither yes nor no".into())
    }

    /// Asks which of several answers to a request is best.
    pub(super) fn choice(&self, asked: &str, answers: &[String]) -> JudgeCall {
        let mut text = format!("Request:\n{}\n", last(asked));
        for (index, answer) in answers.iter().enumerate() {
            let number = index + 1;
            text += &format!("\nAnswer {number}:\n{}\n", last(answer));
        }
        self.request(CHOICE, &text)
    }

    /// Sends a request to it.
    pub(super) fn ask(
        &self,
        request: JudgeCall,
    ) -> impl Future<Output = Result<Answer, BoxError>> + Send + use<> {
        let service = self.service.clone();
        service.oneshot(request.map(PatientBody::own))
    }

    fn request(&self, instructions: &str, text: &str) -> JudgeCall {
        let model = &*self.model;
        let prompt = self.prompt.as_deref().unwrap_or(instructions);
        let user = json!({"role": "user", "content": text});
        let (path, body) = match self.dialect {
            Dialect::Anthropic => {
                let body =
                    json!({"model": model, "system": prompt, "messages": [user], "max_tokens": 16});
                ("/v1/messages".to_owned(), body)
            }
            Dialect::Gemini => {
                let part = |text: &str| json!({"parts": [{"text": text}]});
                let mut contents = part(text);
                contents["role"] = "user".into();
                let body = json!({"systemInstruction": part(prompt), "contents": [contents]});
                (format!("/v1beta/models/{model}:generateContent"), body)
            }
            _ => {
                let system = json!({"role": "system", "content": prompt});
                // Without a maximum: models that think and those that do not name it differently.
                let body = json!({"model": model, "messages": [system, user]});
                ("/v1/chat/completions".to_owned(), body)
            }
        };
        judging(&path, &body)
    }
}

fn judging(path: &str, body: &Value) -> JudgeCall {
    let mut request = Request::new(Bytes::from(body.to_string()));
    *request.method_mut() = Method::POST;
    // A name that cannot stand in a path is refused by its provider, as a name that it does not know.
    *request.uri_mut() = path.parse().unwrap_or(Uri::from_static("/"));
    let json = HeaderValue::from_static("application/json");
    request.headers_mut().insert(CONTENT_TYPE, json);
    if path == "/v1/messages" {
        let version = HeaderValue::from_static("2023-06-01");
        request.headers_mut().insert("anthropic-version", version);
    }
    request
}

/// The end of a text, which has the question and what it came to.
fn last(text: &str) -> &str {
    let start = text.len().saturating_sub(MAX_READ);
    let start = (start..).find(|&at| text.is_char_boundary(at));
    start.and_then(|start| text.get(start..)).unwrap_or(text)
}

/// The first word that is yes or no.
fn verdict(text: &str) -> Option<bool> {
    let words = text.split(|letter: char| !letter.is_alphabetic());
    words
        .filter_map(|word| match word {
            word if word.eq_ignore_ascii_case("yes") => Some(true),
            word if word.eq_ignore_ascii_case("no") => Some(false),
            _ => None,
        })
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_yes_or_no_is_the_verdict() {
        for (text, expected) in [
            ("yes", Some(true)),
            ("No.", Some(false)),
            ("**YES**", Some(true)),
            ("The answer is: no, not yes", Some(false)),
            ("Nothing to say", None),
            ("", None),
        ] {
            assert_eq!(verdict(text), expected, "{text}");
        }
    }

    #[test]
    fn a_long_text_is_read_from_its_end_and_between_letters() {
        let text = format!("a{}", "\u{e4}".repeat(MAX_READ));
        assert_eq!(last(&text), "\u{e4}".repeat(MAX_READ / 2));
        assert_eq!(last("short"), "short");
    }
}
