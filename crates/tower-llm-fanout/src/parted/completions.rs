//! Text completions with several prompts, in parts.

use std::ops::Range;

use http::{Request, Response};
use tower_llm_core::{
    BoxError, CompletionChoices, CompletionPrompts, EmbeddingLimits, Operation, RequestBody,
};

use super::{Divide, Divided, Join, list};
use crate::RipeBody;

/// Divides text completions with a list of prompts, in `OpenAI`'s dialect, by limits of prompts and of their tokens together.
///
/// Requests must be [described](tower_llm_core::DescribeLayer). As for [`EmbeddingParts`](super::EmbeddingParts), a request within
/// the limits is sent as it is, and so are streams and requests with members that are not known. The choices are numbered as if
/// the provider had answered all prompts at once.
#[derive(Clone, Copy, Debug)]
pub struct CompletionParts {
    limits: EmbeddingLimits,
}

/// Joins the choices of the parts of a request.
#[derive(Debug)]
pub struct JoinChoices {
    /// How many prompts each part has.
    sent: Vec<usize>,
    /// How many choices each prompt has.
    choices: usize,
}

impl CompletionParts {
    /// Divides by these limits. Providers state none for prompts: set those of your server.
    #[must_use]
    pub const fn new(limits: EmbeddingLimits) -> Self {
        Self { limits }
    }
}

impl<B> Divide<Request<RequestBody<B>>> for CompletionParts {
    type Join = JoinChoices;

    fn divide(
        &self,
        request: Request<RequestBody<B>>,
    ) -> Result<Divided<Request<RequestBody<B>>, JoinChoices>, BoxError> {
        let Some((call, body)) = list::read(&request, &Operation::TEXT_COMPLETION) else {
            return Ok(Divided::Whole(request));
        };
        let Some(prompts) = CompletionPrompts::read(body) else {
            return Ok(Divided::Whole(request));
        };
        let tokens: Vec<u64> = prompts.tokens().collect();
        let choices = prompts.choices();
        let body_of = |part: Range<usize>| prompts.body_with(&prompts.all()[part]);
        Ok(
            match list::divide(&request, call, &self.limits, &tokens, body_of)? {
                Some((parts, sent)) => Divided::Parts(parts, JoinChoices { sent, choices }),
                None => Divided::Whole(request),
            },
        )
    }
}

impl<B> Join<Response<RipeBody<B>>> for JoinChoices {
    fn join(self, answers: Vec<Response<RipeBody<B>>>) -> Result<Response<RipeBody<B>>, BoxError> {
        let (head, bodies) = list::take_apart(answers)?;
        let read = bodies.iter().zip(self.sent);
        let read = read.map(|(body, sent)| {
            let choices = sent.checked_mul(self.choices)?;
            CompletionChoices::read(body, choices)
        });
        let parts: Vec<_> = read.collect::<Option<_>>().ok_or_else(list::unreadable)?;
        let usage = list::sum(parts.iter().filter_map(CompletionChoices::usage));
        let all = parts.iter().flat_map(CompletionChoices::all);
        let body = parts[0].body(all, usage);
        Ok(list::respond(head, body))
    }
}
