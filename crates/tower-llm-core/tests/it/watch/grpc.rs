//! gRPC, where the status comes last.

use super::*;

fn grpc(headers: &[(&'static str, &'static str)], body: Script) -> Response<Script> {
    let mut response = response(200, "application/grpc+proto", body);
    response.headers_mut().extend(map(headers));
    response
}

fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    let pair = |&(name, value)| {
        let name = http::HeaderName::from_static(name);
        (name, HeaderValue::from_static(value))
    };
    pairs.iter().map(pair).collect()
}

#[test]
fn a_grpc_call_ends_with_the_outcome_of_its_trailers() {
    let wait = Some(Duration::from_millis(1_500));
    for (trailers, outcome) in [
        (&[("grpc-status", "0")][..], Outcome::Success),
        (
            &[("grpc-status", "8")],
            Outcome::Throttled { retry_after: None },
        ),
        (
            &[("grpc-status", "8"), ("grpc-retry-pushback-ms", "1500")],
            Outcome::Throttled { retry_after: wait },
        ),
        (
            &[("grpc-status", "14")],
            Outcome::Overloaded { retry_after: None },
        ),
        (&[("grpc-status", "4")], Outcome::Failed(Failure::Timeout)),
        (&[("grpc-status", "13")], Outcome::Failed(Failure::Status)),
        (&[("grpc-status", "3")], Outcome::ClientError),
        (&[("grpc-status", "1")], Outcome::Abandoned),
        (
            &[("grpc-message", "no status")],
            Outcome::Failed(Failure::Truncated),
        ),
    ] {
        let script = Script::data(["\0\0\0\0\0"]).then(Step::Trailers(map(trailers)));
        let (completion, _) = watch_to_end(None, grpc(&[], script));
        assert_eq!(completion.outcome, outcome, "{trailers:?}");
        assert!(completion.first_token_at.is_some());
    }
}

#[test]
fn a_grpc_body_that_ends_without_trailers_is_truncated() {
    let (completion, _) = watch_to_end(None, grpc(&[], Script::data(["\0\0\0\0\0"])));
    assert_eq!(completion.outcome, Outcome::Failed(Failure::Truncated));
}

#[test]
fn grpc_headers_without_a_body_show_how_the_call_ended() {
    let log = Log::new();
    let head = grpc(
        &[("grpc-status", "8")],
        Script::data::<Bytes>([]).with_known_length(),
    );
    drop(HttpBody.watch(None, head, log.probe("only")));
    assert_eq!(log.outcome(), Outcome::Throttled { retry_after: None });
}

#[test]
fn a_grpc_body_dropped_before_its_trailers_is_abandoned() {
    let log = Log::new();
    drop(read_frames(
        grpc(&[], Script::data(["\0\0\0\0\0"]).then(Step::Hang)),
        &log,
        1,
    ));
    assert_eq!(log.outcome(), Outcome::Abandoned);
}

/// gRPC-web has no trailers: its status comes in the last frame of data.
#[test]
fn a_grpc_web_body_without_trailers_is_not_truncated() {
    for content_type in ["application/grpc-web", "application/grpc-web-text+proto"] {
        let script = Script::data(["\u{0}\0\0\0\0", "grpc-status: 0\r\n"]);
        let (completion, _) = watch_to_end(None, response(200, content_type, script));
        assert_eq!(completion.outcome, Outcome::Success, "{content_type}");
    }
}
