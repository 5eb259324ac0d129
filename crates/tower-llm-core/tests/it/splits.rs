//! Where the network splits a response affects neither its outcome nor the frames that come out.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use bytes::Bytes;
use http::Response;
use proptest::prelude::*;
use tower_llm_core::{Call, HttpBody, Watch};
use tower_llm_testkit::fixtures::{self, Fixture};

use crate::support::{Log, Script, Summary, answer, call_of, next_frame, sse, watch_to_end};

fn summary(call: &Call, fixture: &Fixture, body: &[u8]) -> Summary {
    let whole = Bytes::copy_from_slice(body);
    watch_to_end(Some(call), answer(fixture, [whole])).0.into()
}

/// Reads the fixture with its body in these pieces, which must come out without a copy.
fn summary_in_pieces(call: &Call, fixture: &Fixture, pieces: &[Bytes]) -> Summary {
    let response: Response<Script> = answer(fixture, pieces.iter().cloned());
    let (completion, frames) = watch_to_end(Some(call), response);
    assert_eq!(frames, pieces, "{}: other frames came out", fixture.name);
    for (frame, piece) in frames.iter().zip(pieces) {
        assert_eq!(
            frame.as_ptr(),
            piece.as_ptr(),
            "{}: a frame was copied",
            fixture.name
        );
    }
    completion.into()
}

#[test]
fn every_fixture_may_be_cut_in_two_anywhere() {
    for fixture in fixtures::all() {
        let call = call_of(fixture);
        let body = Bytes::from_static(fixture.body);
        let whole = summary(&call, fixture, &body);
        for at in 0..=body.len() {
            let pieces = [body.slice(..at), body.slice(at..)];
            let cut = summary_in_pieces(&call, fixture, &pieces);
            assert_eq!(cut, whole, "{} cut at {at}", fixture.name);
        }
    }
}

#[test]
fn every_fixture_may_come_byte_by_byte() {
    for fixture in fixtures::all() {
        let call = call_of(fixture);
        let body = Bytes::from_static(fixture.body);
        let bytes: Vec<_> = (0..body.len()).map(|at| body.slice(at..=at)).collect();
        let cut = summary_in_pieces(&call, fixture, &bytes);
        assert_eq!(cut, summary(&call, fixture, &body), "{}", fixture.name);
    }
}

/// What has arrived when a body is first found to be over, if that is before its end.
fn read_until_over(call: &Call, fixture: &Fixture) -> Option<usize> {
    let body = Bytes::from_static(fixture.body);
    let bytes = (0..body.len()).map(|at| body.slice(at..=at));
    let mut response = HttpBody.watch(
        Some(call),
        answer(fixture, bytes),
        Log::new().probe("reader"),
    );
    let mut read = 0;
    while !response.body().is_over() {
        next_frame(response.body_mut())?.unwrap();
        read += 1;
    }
    Some(read)
}

/// A reader that leaves then, or a layer that ends the body then, has all events whole.
#[test]
fn a_body_is_over_only_after_an_event_that_came_whole() {
    let mut streams = 0;
    for fixture in fixtures::all() {
        let Some(read) = read_until_over(&call_of(fixture), fixture) else {
            continue;
        };
        let (read, rest) = fixture.body.split_at(read);
        // After its data, or after its blank line if only that shows it.
        let is_whole = matches!(rest, [] | [b'\n' | b'\r', ..]) || read.ends_with(b"\n\n");
        assert!(
            is_whole,
            "{}: over before {:?}",
            fixture.name,
            String::from_utf8_lossy(rest)
        );
        streams += usize::from(!rest.is_empty());
    }
    assert!(streams > 20, "{streams}");
}

/// The name announces an error; its data says which.
#[test]
fn an_event_named_error_is_over_with_its_data() {
    let [named, data] = ["event: error\n", "data: {\"type\":\"overloaded_error\"}\n"];
    let mut response = HttpBody.watch(
        None,
        sse(Script::data([named, data])),
        Log::new().probe("reader"),
    );
    let body = response.body_mut();
    next_frame(body).unwrap().unwrap();
    assert!(!body.is_over());
    next_frame(body).unwrap().unwrap();
    assert!(body.is_over());
}

/// The content type of the response headers.
const LABELS: [Option<&str>; 6] = [
    None,
    Some(""),
    Some("text/plain; charset=utf-8"),
    Some("application/json"),
    Some("text/event-stream"),
    Some("application/octet-stream"),
];

/// The fixture with another content type, in pieces of `size` bytes.
fn summary_labelled(call: &Call, fixture: &Fixture, label: Option<&str>, size: usize) -> Summary {
    let body = Bytes::from_static(fixture.body);
    let mut response: Response<Script> = answer(
        fixture,
        (0..body.len())
            .step_by(size)
            .map(|at| body.slice(at..body.len().min(at + size))),
    );
    let headers = response.headers_mut();
    headers.remove("content-type");
    if let Some(label) = label {
        headers.insert("content-type", label.parse().unwrap());
    }
    watch_to_end(Some(call), response).0.into()
}

#[test]
fn every_fixture_is_read_the_same_with_any_content_type() {
    for fixture in fixtures::all() {
        let call = call_of(fixture);
        let whole = summary(&call, fixture, fixture.body);
        for label in LABELS {
            for size in [usize::MAX, 1, 7] {
                let summary = summary_labelled(&call, fixture, label, size);
                assert_eq!(summary, whole, "{} as {label:?}, by {size}", fixture.name);
            }
        }
    }
}

/// The same events, written differently.
fn rewritten(body: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let text = String::from_utf8(body.to_vec())
        .unwrap()
        .replace("\r\n", "\n");
    let spread = over_many_lines(&text);
    let comment = ": keep-alive {\"error\":{\"code\":429}} data: [DONE]\n";
    vec![
        ("with LF", text.clone().into_bytes()),
        ("with CRLF", text.replace('\n', "\r\n").into_bytes()),
        ("with CR", text.replace('\n', "\r").into_bytes()),
        (
            "without a space",
            text.replace("\ndata: ", "\ndata:").into_bytes(),
        ),
        (
            "with comments",
            format!(
                "{comment}\n{}",
                text.replace("\n\n", &format!("\n\n{comment}\n"))
            )
            .into_bytes(),
        ),
        (
            "with comments in events",
            text.replace("\ndata:", &format!("\n{comment}data:"))
                .into_bytes(),
        ),
        (
            "with other fields",
            text.replace("\ndata:", "\nid: 7\nretry\nretry: 10\ndata:")
                .into_bytes(),
        ),
        (
            "with many blank lines",
            text.replace("\n\n", "\n\n\n\n").into_bytes(),
        ),
        ("over many lines", spread.clone().into_bytes()),
        (
            "over many lines with CRLF",
            spread.replace('\n', "\r\n").into_bytes(),
        ),
        (
            "over many lines with CR",
            spread.replace('\n', "\r").into_bytes(),
        ),
        (
            "without the last blank line",
            text.trim_end_matches('\n').as_bytes().to_vec(),
        ),
    ]
}

/// Puts each member of an event's JSON on its own line.
fn over_many_lines(text: &str) -> String {
    let mut spread = String::new();
    for line in text.split_inclusive('\n') {
        let (mut in_string, mut is_escaped) = (false, false);
        for char in line.chars() {
            spread.push(char);
            match char {
                _ if is_escaped => is_escaped = false,
                '\\' => is_escaped = true,
                '"' => in_string = !in_string,
                ',' if line.starts_with("data:") && !in_string => spread.push_str("\ndata: "),
                _ => {}
            }
        }
    }
    spread
}

#[test]
fn equivalent_events_are_read_the_same() {
    for fixture in fixtures::all()
        .iter()
        .filter(|fixture| fixture.is_event_stream())
    {
        let call = call_of(fixture);
        let whole = summary(&call, fixture, fixture.body);
        for (how, body) in rewritten(fixture.body) {
            assert_eq!(
                summary(&call, fixture, &body),
                whole,
                "{} {how}",
                fixture.name
            );
        }
    }
}

#[test]
fn equivalent_events_may_be_cut_anywhere() {
    // The longer ones show nothing that the shorter ones do not.
    let streams = fixtures::all()
        .iter()
        .filter(|fixture| fixture.is_event_stream() && fixture.body.len() < 700);
    let mut seen = 0;
    for fixture in streams {
        seen += 1;
        let call = call_of(fixture);
        let whole = summary(&call, fixture, fixture.body);
        for (how, body) in rewritten(fixture.body) {
            let body = Bytes::from(body);
            for at in 0..=body.len() {
                let pieces = [body.slice(..at), body.slice(at..)];
                let cut = summary_in_pieces(&call, fixture, &pieces);
                assert_eq!(cut, whole, "{} {how}, cut at {at}", fixture.name);
            }
        }
    }
    assert!(seen > 10, "only {seen} streams");
}

/// Cuts `body` at the given offsets, which may repeat: that makes empty pieces.
fn pieces(body: &Bytes, mut cuts: Vec<usize>) -> Vec<Bytes> {
    cuts.extend([0, body.len()]);
    cuts.sort_unstable();
    cuts.windows(2)
        .map(|cut| body.slice(cut[0]..cut[1]))
        .collect()
}

proptest! {
    #[test]
    fn every_fixture_may_be_cut_into_any_pieces(
        fixture in prop::sample::select(fixtures::all()),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let call = call_of(&fixture);
        let body = Bytes::from_static(fixture.body);
        let cuts = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
        let cut = summary_in_pieces(&call, &fixture, &pieces(&body, cuts));
        prop_assert_eq!(cut, summary(&call, &fixture, &body), "{}", fixture.name);
    }

    #[test]
    fn every_beginning_of_a_fixture_may_be_cut_into_any_pieces(
        fixture in prop::sample::select(fixtures::all()),
        end in any::<prop::sample::Index>(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 1..8),
    ) {
        let call = call_of(&fixture);
        let body = Bytes::from_static(&fixture.body[..end.index(fixture.body.len() + 1)]);
        let cuts = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
        let cut = summary_in_pieces(&call, &fixture, &pieces(&body, cuts));
        prop_assert_eq!(cut, summary(&call, &fixture, &body), "{}", fixture.name);
    }
}
