//! Recordings with and without the usage chunk.

use bytes::Bytes;
use proptest::prelude::*;
use tower_llm_testkit::{
    Behavior, LineEnding,
    fixtures::{self, Fixture},
    wire,
};

use super::super::with_usage;

const CHAT: &str = "/v1/chat/completions";

fn frames_of(fixture: &Fixture) -> Vec<Bytes> {
    wire::body(CHAT, b"{}", &Behavior::replay(fixture))
}

fn streamed(include_usage: bool, ending: LineEnding) -> Vec<Bytes> {
    let request = format!(
        r#"{{"model":"sim-1","messages":[],"stream":true,"stream_options":{{"include_usage":{include_usage}}}}}"#
    );
    let behavior = Behavior::new().line_ending(ending);
    wire::body(CHAT, request.as_bytes(), &behavior)
}

#[test]
fn a_recording_with_usage_serves_both_callers() {
    for name in [
        "openai_chat_stream",
        "openai_completions_stream",
        "azure_chat_stream",
    ] {
        let frames = frames_of(fixtures::named(name));
        assert_eq!(with_usage(&frames, true).unwrap(), frames, "{name}");
        let without = with_usage(&frames, false).unwrap();
        let expected: Vec<Bytes> = frames
            .into_iter()
            .filter(|frame| {
                let text = String::from_utf8_lossy(frame);
                !text.is_empty() && !text.contains(r#""usage":{"#)
            })
            .collect();
        assert_eq!(without, expected, "{name}");
    }
}

#[test]
fn a_recording_without_usage_serves_those_who_do_not_ask() {
    let frames = streamed(false, LineEnding::Lf);
    assert_eq!(with_usage(&frames, false).unwrap(), frames);
    assert_eq!(with_usage(&frames, true), None);
}

#[test]
fn usage_beside_choices_stays() {
    for name in [
        "mistral_chat_stream",
        "groq_chat_stream",
        "openai_chat_stream_crlf",
    ] {
        let frames = frames_of(fixtures::named(name));
        assert_eq!(with_usage(&frames, false).unwrap(), frames, "{name}");
        assert_eq!(with_usage(&frames, true).unwrap(), frames, "{name}");
    }
}

#[test]
fn usage_is_taken_out_wherever_it_is_told() {
    let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1}}\n\n";
    let body = format!(": a\n\n{usage}data: b\n\n{usage}data: [DONE]\n\n");
    let without = with_usage(&[Bytes::from(body)], false).unwrap().concat();
    assert_eq!(without, b": a\n\ndata: b\n\ndata: [DONE]\n\n");
}

proptest! {
    #[test]
    fn it_does_not_matter_where_frames_are_cut(cuts in prop::collection::vec(0_usize..3000, 0..12), crlf: bool) {
        let ending = if crlf { LineEnding::CrLf } else { LineEnding::Lf };
        let frames = streamed(true, ending);
        let is_usage = |frame: &&Bytes| !String::from_utf8_lossy(frame).contains(r#""usage":{"#);
        let expected: Vec<u8> = frames.iter().filter(is_usage).flatten().copied().collect();
        let body = Bytes::from(frames.concat());
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(body.len())).collect();
        cuts.extend([0, body.len()]);
        cuts.sort_unstable();
        let cut: Vec<Bytes> = cuts.windows(2).map(|ends| body.slice(ends[0]..ends[1])).collect();
        prop_assert_eq!(with_usage(&cut, false).unwrap().concat(), expected);
        prop_assert_eq!(with_usage(&cut, true).unwrap(), cut);
    }
}
