//! A stored answer as a response, in the form that is asked for.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue, Response,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use http_body::Body;
use tower_llm_core::{Dialect, Outcome, Served, Usage};

use crate::{
    assemble::{self, StreamForm},
    body::CacheBody,
    flight::{End, Step},
    form::Form,
    record::Record,
    shared::Lookup,
};

/// A stored answer; its body is never one that passed, so its type does not matter.
pub(crate) type Found = Response<CacheBody<String>>;

/// A stored answer as what a flight brings.
pub(crate) struct Replay {
    body: CacheBody<String>,
    /// What the call has used that it is served instead of.
    cost: Usage,
}

/// Marks a stored answer that is served instead of a call that has cost something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost;

impl Replay {
    /// The first step, and the rest. One of the callers pays `cost`, for a call that was made before.
    pub(crate) fn start(cost: Usage, found: Found) -> (Step, Self) {
        let (mut parts, body) = found.into_parts();
        if cost != Usage::default() {
            parts.extensions.insert(Cost);
        }
        (Step::Head(Box::new(parts)), Self { body, cost })
    }

    pub(crate) fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        Poll::Ready(match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => Step::Frame(frame),
            Some(Err(error)) => Step::Failed(error, self.end_as(Outcome::Success).completion),
            None => Step::End(self.end_as(Outcome::Success)),
        })
    }

    pub(crate) fn end(&self) -> Option<End> {
        let is_over = self.body.is_end_stream();
        is_over.then(|| self.end_as(Outcome::Success))
    }

    pub(crate) fn give_up(&self) -> End {
        self.end_as(Outcome::Abandoned)
    }

    /// It says nothing of the answer, which is not recorded again.
    fn end_as(&self, outcome: Outcome) -> End {
        let mut end = End::without_answer(outcome);
        end.completion.served = Some(Served::Hit);
        end.completion.extra_usage = Some(self.cost).filter(|cost| *cost != Usage::default());
        end
    }
}

/// The response with a stored answer; `None` if the answer cannot be told for certain in the form that is asked for.
pub(crate) fn response<B>(record: &Record, lookup: &Lookup) -> Option<Response<CacheBody<B>>> {
    let mut headers = record.headers();
    let pause = match lookup.form {
        Form::Events | Form::List => lookup.policy.pause,
        Form::Object | Form::Item => Duration::ZERO,
    };
    let (body, length) = if is_as_recorded(record, lookup) {
        (CacheBody::stored(record, pause), record.body_len())
    } else {
        let frames = converted(record, lookup)?;
        let label = match lookup.form {
            Form::Events => "text/event-stream; charset=utf-8",
            Form::Object | Form::List | Form::Item => "application/json",
        };
        if record.form() != lookup.form {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(label));
        }
        let length = frames.iter().map(Bytes::len).sum();
        (CacheBody::converted(frames, pause), length)
    };
    if lookup.form == Form::Object {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    let mut response = Response::new(body);
    *response.headers_mut() = headers;
    Some(response)
}

/// Whether the caller gets what was recorded, frame for frame.
fn is_as_recorded(record: &Record, lookup: &Lookup) -> bool {
    let is_same_usage = || record.includes_usage() == lookup.asked.include_usage;
    record.form() == lookup.form
        && (lookup.form != Form::Events || !has_usage_option(lookup) || is_same_usage())
}

fn has_usage_option(lookup: &Lookup) -> bool {
    lookup.call.dialect() == Some(Dialect::OpenAi)
}

/// The answer in another form than the recorded one.
fn converted(record: &Record, lookup: &Lookup) -> Option<Vec<Bytes>> {
    let (dialect, operation) = (lookup.call.dialect()?, lookup.call.operation());
    let include_usage = lookup.asked.include_usage;
    match (record.form(), lookup.form) {
        (Form::Events, Form::Events) => {
            let frames: Vec<_> = record.frames().collect();
            assemble::with_usage(&frames, include_usage)
        }
        (Form::Events | Form::List, Form::Object) => {
            assemble::whole(dialect, operation, &record.body()).map(|whole| vec![whole])
        }
        (Form::Object, Form::Events) => {
            let form = StreamForm::Events { include_usage };
            assemble::events(dialect, operation, &record.body(), form)
        }
        (Form::Object, Form::List) => {
            assemble::events(dialect, operation, &record.body(), StreamForm::JsonArray)
        }
        // From one stream to another: by way of the object.
        (Form::Events, Form::List) | (Form::List, Form::Events) => {
            let whole = assemble::whole(dialect, operation, &record.body())?;
            let form = match lookup.form {
                Form::List => StreamForm::JsonArray,
                _ => StreamForm::Events { include_usage },
            };
            assemble::events(dialect, operation, &whole, form)
        }
        (Form::Object, Form::Object) | (Form::List, Form::List) => None,
        // An item is found by a key of its own.
        (Form::Item, _) | (_, Form::Item) => None,
    }
}
