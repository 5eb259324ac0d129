//! What a stream looks like on the wire does not change what it says.

use std::borrow::Cow;

use eventsource_stream::Eventsource;
use futures_util::{StreamExt, stream};
use proptest::prelude::*;
use tower_llm_testkit::fixtures::{self, Fixture, Verdict};

use super::{super::sse, events_at, whole_at};

/// Good event streams of every dialect.
const STREAMS: [&str; 12] = [
    "openai_chat_stream",
    "openai_chat_stream_tools",
    "openai_chat_stream_tricky",
    "azure_chat_stream",
    "openai_completions_stream",
    "openai_responses_stream",
    "openai_responses_stream_tools",
    "anthropic_stream_thinking",
    "anthropic_stream_tools",
    "anthropic_stream_tricky",
    "gemini_stream_thoughts",
    "gemini_stream_tricky",
];

/// The stream with other line endings, comments between its lines, and each event's data over several lines where that
/// leaves the JSON the same.
fn disguised(stream: &[u8], ending: &str, comments: &[bool], splits: &[bool]) -> String {
    let (mut comments, mut splits) = (comments.iter().cycle(), splits.iter().cycle());
    let mut text = String::new();
    for event in sse::split(stream) {
        if *comments.next().unwrap() {
            text += &format!(": ping {{|{ending}");
        }
        let Some(data) = event.data else { continue };
        let data = String::from_utf8(data.into_owned()).unwrap();
        match data.strip_prefix('{') {
            Some(rest) if *splits.next().unwrap() => {
                text += &format!("data: {{{ending}id: 7{ending}data:{rest}{ending}{ending}");
            }
            _ => text += &format!("data: {data}{ending}{ending}"),
        }
    }
    text
}

fn fixture(name: &str) -> &'static Fixture {
    fixtures::named(name)
}

proptest! {
    #[test]
    fn the_wire_form_does_not_matter(
        name in prop::sample::select(STREAMS.to_vec()),
        ending in prop::sample::select(vec!["\n", "\r", "\r\n"]),
        comments in prop::collection::vec(any::<bool>(), 1..9),
        splits in prop::collection::vec(any::<bool>(), 1..9),
    ) {
        let fixture = fixture(name);
        let stream = disguised(fixture.body, ending, &comments, &splits);
        let expected = whole_at(fixture.path, fixture.body);
        prop_assert!(expected.is_some());
        prop_assert_eq!(whole_at(fixture.path, stream.as_bytes()), expected, "{}", stream);
    }

    #[test]
    fn events_are_found_as_another_parser_finds_them(
        text in "(data|event|id|:|data:|data: x|[{}\" ]|ü|\n|\r|\r\n|\n\n){0,40}",
    ) {
        // That parser waits for the blank line, and passes over events with empty data.
        let text = format!("{text}\n\n");
        let ours: Vec<Cow<'_, [u8]>> = sse::split(text.as_bytes())
            .into_iter()
            .filter_map(|event| event.data)
            .filter(|data| !data.is_empty())
            .collect();
        let frames = stream::iter([Ok::<_, std::io::Error>(text.clone().into_bytes())]);
        let theirs: Vec<_> = tokio_test::block_on(frames.eventsource().collect());
        let theirs: Vec<String> = theirs.into_iter().map(|event| event.unwrap().data).filter(|data| !data.is_empty()).collect();
        let ours: Vec<_> = ours.iter().map(|data| String::from_utf8_lossy(data)).collect();
        prop_assert_eq!(ours, theirs, "{:?}", text);
    }

    #[test]
    fn a_cut_stream_is_never_joined_to_something_else(
        name in prop::sample::select(STREAMS.to_vec()),
        at in any::<prop::sample::Index>(),
    ) {
        let fixture = fixture(name);
        let at = at.index(fixture.body.len());
        let cut = whole_at(fixture.path, &fixture.body[..at]);
        prop_assert!(cut.is_none() || cut == whole_at(fixture.path, fixture.body));
    }
}

#[test]
fn a_stream_that_ends_between_two_events_is_not_joined() {
    let good = fixtures::all()
        .iter()
        .filter(|fixture| fixture.is_event_stream() && fixture.expect.verdict == Verdict::Success);
    let mut checked = 0;
    for fixture in good {
        let Some(whole) = whole_at(fixture.path, fixture.body) else {
            continue;
        };
        let synthesized = events_at(fixture.path, whole.to_string().as_bytes());
        let synthesized = synthesized.map(|frames| frames.concat());
        for stream in [Some(fixture.body.to_vec()), synthesized]
            .into_iter()
            .flatten()
        {
            let events = sse::split(&stream);
            let last = events
                .iter()
                .rposition(|event| event.data.is_some())
                .unwrap();
            for event in &events[..=last] {
                let cut = &stream[..event.range.start];
                assert_eq!(whole_at(fixture.path, cut), None, "{}", fixture.name);
                checked += 1;
            }
        }
    }
    assert!(checked > 150, "only {checked}");
}
