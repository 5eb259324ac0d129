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
use tower_llm_core::{Completion, Dialect, Outcome};

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
pub(crate) struct Replay(CacheBody<String>);

impl Replay {
    /// The first step, and the rest.
    pub(crate) fn start(found: Found) -> (Step, Self) {
        let (parts, body) = found.into_parts();
        (Step::Head(Box::new(parts)), Self(body))
    }

    pub(crate) fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        Poll::Ready(match ready!(Pin::new(&mut self.0).poll_frame(cx)) {
            Some(Ok(frame)) => Step::Frame(frame),
            Some(Err(error)) => Step::Failed(error, end_of_replay().completion),
            None => Step::End(end_of_replay()),
        })
    }

    pub(crate) fn end(&self) -> Option<End> {
        self.0.is_end_stream().then(end_of_replay)
    }
}

/// It says nothing of the answer, which is not recorded again.
fn end_of_replay() -> End {
    End {
        is_certain: true,
        completion: Completion::new(Outcome::Success),
        is_event_stream: false,
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
