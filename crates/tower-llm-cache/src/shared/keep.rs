//! What becomes of an answer when its call has ended.

use std::sync::{Arc, atomic::Ordering};

use http::StatusCode;
use tower_llm_core::{Completion, Dialect, Outcome};

use super::{Lookup, Shared};
use crate::{
    coding::is_readable,
    flight::{End, Head, Recorded, Recorder},
    form::Form,
    headers::shareable,
    key::CacheKey,
    policy::{Policy, is_completion},
    record::Record,
};

/// Stores what a flight has brought.
pub(super) struct Keep {
    shared: Arc<Shared>,
    key: CacheKey,
    policy: Policy,
    says_why_it_ended: bool,
    includes_usage: bool,
    streams_lists: bool,
    choices: u64,
}

impl Recorder for Keep {
    fn record(&self, answer: &Recorded, end: &End) {
        if answer.head.found.is_some() {
            // It is stored.
            return;
        }
        let count = match self.store(answer, end) {
            Some(()) => &self.shared.counters.stored,
            None => &self.shared.counters.not_stored,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

impl Keep {
    pub(super) fn new(shared: &Arc<Shared>, lookup: &Lookup) -> Self {
        Self {
            shared: Arc::clone(shared),
            key: lookup.asked.key.clone(),
            policy: lookup.policy,
            says_why_it_ended: is_completion(lookup.call.operation()),
            includes_usage: lookup.asked.include_usage,
            streams_lists: lookup.call.dialect() == Some(Dialect::Gemini),
            choices: lookup.asked.choices,
        }
    }

    fn store(&self, answer: &Recorded, end: &End) -> Option<()> {
        if !self.may_store(&answer.head, &end.completion) {
            return None;
        }
        let mut frames = answer.frames.iter();
        let first = frames.find(|frame| !frame.trim_ascii().is_empty());
        let form = match Form::of_body(end.is_event_stream, first.map_or(&[][..], |frame| frame)) {
            // An array is a stream in one dialect, and a document in all others.
            Form::List if !self.streams_lists => Form::Object,
            form => form,
        };
        let record = Record::new(
            form,
            self.includes_usage,
            end.completion.finish,
            &shareable(&answer.head.headers),
            &answer.frames,
        )?;
        let is_stored = self.shared.store(self.key.clone(), record, &self.policy);
        is_stored.then_some(())
    }

    /// Whether others may be given this answer: it is whole, with all of its choices, and not one that another try would better.
    fn may_store(&self, head: &Head, completion: &Completion) -> bool {
        let has_ended_well = match completion.finish {
            Some(finish) => self.policy.allows(finish),
            None => !self.says_why_it_ended,
        };
        let has_all_choices =
            self.choices <= 1 || u64::from(completion.finished_choices) >= self.choices;
        head.status == StatusCode::OK
            && has_all_choices
            && completion.outcome == Outcome::Success
            && has_ended_well
            && is_readable(&head.headers)
    }
}
