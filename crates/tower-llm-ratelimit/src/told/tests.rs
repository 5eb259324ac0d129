use std::time::SystemTime;

use http::HeaderName;
use proptest::prelude::*;

use super::*;

const DATE: &str = "Sun, 22 Nov 2026 10:00:00 GMT";
/// The same moment, since the Unix epoch.
const DATE_UNIX: u64 = 1_795_341_600;

fn read(pairs: &[(&'static str, &str)]) -> Told {
    let headers = pairs
        .iter()
        .map(|(name, value)| {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            (HeaderName::from_static(name), value)
        })
        .collect();
    Told::read(&headers)
}

/// A standing whose times are in milliseconds.
fn standing(
    limit: u64,
    remaining: u64,
    full_in: Option<u64>,
    period: Option<u64>,
) -> Option<Standing> {
    Some(Standing {
        limit,
        remaining,
        full_in: full_in.map(Duration::from_millis),
        period: period.map(Duration::from_millis),
    })
}

/// What a limit of requests is told to be full in, by a response of `DATE`.
fn full_in(reset: &str) -> Option<Duration> {
    dated(reset, Some(DATE))
}

fn dated(reset: &str, date: Option<&str>) -> Option<Duration> {
    let mut pairs = vec![
        ("x-ratelimit-limit-requests", "10"),
        ("x-ratelimit-remaining-requests", "1"),
        ("x-ratelimit-reset-requests", reset),
    ];
    pairs.extend(date.map(|date| ("date", date)));
    read(&pairs)
        .requests
        .expect("reset has no say in it")
        .full_in
}

fn secs(seconds: u64) -> Option<Duration> {
    Some(Duration::from_secs(seconds))
}

// === providers ===

#[test]
fn reads_openai() {
    let told = read(&[
        ("date", DATE),
        ("content-type", "application/json"),
        ("openai-processing-ms", "812"),
        ("x-ratelimit-limit-requests", "10000"),
        ("x-ratelimit-limit-tokens", "30000000"),
        ("x-ratelimit-remaining-requests", "9999"),
        ("x-ratelimit-remaining-tokens", "29999984"),
        ("x-ratelimit-reset-requests", "6ms"),
        ("x-ratelimit-reset-tokens", "6m0s"),
        ("x-request-id", "req_0123456789abcdef"),
    ]);
    assert_eq!(
        told,
        Told {
            requests: standing(10_000, 9_999, Some(6), None),
            tokens: standing(30_000_000, 29_999_984, Some(360_000), None),
            ..Told::default()
        }
    );
}

#[test]
fn of_a_project_and_its_organisation_the_tighter_binds() {
    let organisation = [
        ("x-ratelimit-limit-tokens", "200000"),
        ("x-ratelimit-remaining-tokens", "9000"),
        ("x-ratelimit-reset-tokens", "57.3s"),
    ];
    let told = |remaining| {
        let project = [
            ("x-ratelimit-limit-project-tokens", "10000"),
            ("x-ratelimit-remaining-project-tokens", remaining),
            ("x-ratelimit-reset-project-tokens", "250ms"),
        ];
        let in_order = read(&[organisation, project].concat());
        assert_eq!(in_order, read(&[project, organisation].concat()));
        in_order.tokens
    };
    // Nine tenths of the project's are left and a twentieth of the organisation's: the amount decides.
    assert_eq!(told("8999"), standing(10_000, 8_999, Some(250), None));
    assert_eq!(told("9001"), standing(200_000, 9_000, Some(57_300), None));
    // Of equal amounts, the one that is full again later.
    assert_eq!(told("9000"), standing(200_000, 9_000, Some(57_300), None));
    // One that is not understood binds nothing.
    assert_eq!(told("few"), standing(200_000, 9_000, Some(57_300), None));
}

#[test]
fn of_equal_amounts_the_one_with_a_known_reset_binds() {
    let told = read(&[
        ("x-ratelimit-limit-requests", "10"),
        ("x-ratelimit-remaining-requests", "0"),
        ("x-ratelimit-limit-project-requests", "3"),
        ("x-ratelimit-remaining-project-requests", "0"),
        ("x-ratelimit-reset-project-requests", "20s"),
    ]);
    assert_eq!(told.requests, standing(3, 0, Some(20_000), None));
}

#[test]
fn reads_openai_usage_based_tokens() {
    let told = read(&[
        ("x-ratelimit-limit-requests", "5000"),
        ("x-ratelimit-remaining-requests", "4999"),
        ("x-ratelimit-reset-requests", "12ms"),
        ("x-ratelimit-limit-tokens", "160000"),
        ("x-ratelimit-remaining-tokens", "158866"),
        ("x-ratelimit-reset-tokens", "425ms"),
        ("x-ratelimit-limit-tokens_usage_based", "150000"),
        ("x-ratelimit-remaining-tokens_usage_based", "148866"),
        ("x-ratelimit-reset-tokens_usage_based", "453ms"),
    ]);
    assert_eq!(told.requests, standing(5_000, 4_999, Some(12), None));
    assert_eq!(told.tokens, standing(150_000, 148_866, Some(453), None));
}

#[test]
fn reads_groq() {
    let told = read(&[
        ("x-ratelimit-limit-requests", "14400"),
        ("x-ratelimit-limit-tokens", "18000"),
        ("x-ratelimit-remaining-requests", "14370"),
        ("x-ratelimit-remaining-tokens", "17997"),
        ("x-ratelimit-reset-requests", "2m59.56s"),
        ("x-ratelimit-reset-tokens", "7.66s"),
        ("x-ratelimit-limit-audio-seconds", "7200"),
        ("x-ratelimit-remaining-audio-seconds", "0"),
        ("x-ratelimit-reset-audio-seconds", "1h0m0s"),
    ]);
    assert_eq!(
        told,
        Told {
            requests: standing(14_400, 14_370, Some(179_560), None),
            tokens: standing(18_000, 17_997, Some(7_660), None),
            ..Told::default()
        }
    );
}

#[test]
fn reads_anthropic() {
    let told = read(&[
        ("date", DATE),
        ("anthropic-ratelimit-requests-limit", "4000"),
        ("anthropic-ratelimit-requests-remaining", "3999"),
        ("anthropic-ratelimit-requests-reset", "2026-11-22T10:00:00Z"),
        ("anthropic-ratelimit-tokens-limit", "480000"),
        ("anthropic-ratelimit-tokens-remaining", "468000"),
        ("anthropic-ratelimit-tokens-reset", "2026-11-22T10:00:02Z"),
        ("anthropic-ratelimit-input-tokens-limit", "400000"),
        ("anthropic-ratelimit-input-tokens-remaining", "390000"),
        (
            "anthropic-ratelimit-input-tokens-reset",
            "2026-11-22T10:00:02Z",
        ),
        ("anthropic-ratelimit-output-tokens-limit", "80000"),
        ("anthropic-ratelimit-output-tokens-remaining", "78000"),
        (
            "anthropic-ratelimit-output-tokens-reset",
            "2026-11-22T10:01:00Z",
        ),
    ]);
    assert_eq!(
        told,
        Told {
            requests: standing(4_000, 3_999, Some(0), None),
            tokens: standing(480_000, 468_000, Some(2_000), None),
            input_tokens: standing(400_000, 390_000, Some(2_000), None),
            output_tokens: standing(80_000, 78_000, Some(60_000), None),
        }
    );
}

#[test]
fn anthropic_limits_of_other_calls_are_not_read() {
    let told = read(&[
        ("date", DATE),
        ("anthropic-priority-input-tokens-limit", "10000"),
        ("anthropic-priority-input-tokens-remaining", "0"),
        (
            "anthropic-priority-input-tokens-reset",
            "2026-11-22T10:01:00Z",
        ),
        ("anthropic-fast-output-tokens-limit", "10000"),
        ("anthropic-fast-output-tokens-remaining", "0"),
        ("anthropic-ratelimit-unified-status", "allowed"),
        ("anthropic-ratelimit-unified-reset", "1795345200"),
        ("anthropic-ratelimit-unified-5h-utilization", "0.43"),
        ("anthropic-ratelimit-unified-5h-reset", "1795345200"),
        (
            "anthropic-ratelimit-unified-overage-disabled-reason",
            "out_of_credits",
        ),
    ]);
    assert_eq!(told, Told::default());
}

#[test]
fn reads_azure() {
    let told = read(&[
        ("x-ratelimit-abusepenalty-active", "False"),
        ("x-ratelimit-key", "gpt-5.4"),
        ("x-ratelimit-limit-requests", "2500"),
        ("x-ratelimit-limit-tokens", "250000"),
        ("x-ratelimit-remaining-requests", "2499"),
        ("x-ratelimit-remaining-tokens", "249993"),
        ("x-ratelimit-renewalperiod-requests", "60"),
        ("x-ratelimit-renewalperiod-tokens", "86400"),
        ("x-ratelimit-reset-requests", "24"),
        ("x-ratelimit-reset-tokens", "0"),
    ]);
    assert_eq!(
        told,
        Told {
            requests: standing(2_500, 2_499, Some(24_000), Some(60_000)),
            tokens: standing(250_000, 249_993, Some(0), Some(86_400_000)),
            ..Told::default()
        }
    );
}

#[test]
fn azures_limits_of_minus_one_are_not_told() {
    let told = read(&[
        ("x-ratelimit-limit-requests", "-1"),
        ("x-ratelimit-remaining-requests", "-1"),
        ("x-ratelimit-reset-requests", "0"),
        ("x-ratelimit-limit-tokens", "250000"),
        ("x-ratelimit-remaining-tokens", "-1"),
        ("x-ratelimit-reset-tokens", "0"),
    ]);
    assert_eq!(told, Told::default());
}

#[test]
fn reads_mistral() {
    let told = read(&[
        ("x-ratelimit-limit-req-minute", "50"),
        ("x-ratelimit-remaining-req-minute", "49"),
        ("x-ratelimit-limit-tokens-minute", "50000"),
        ("x-ratelimit-remaining-tokens-minute", "47300"),
        ("x-ratelimit-tokens-query-cost", "1300"),
        ("x-max-retry-attempts-reached", "false"),
    ]);
    assert_eq!(
        told,
        Told {
            requests: standing(50, 49, None, Some(60_000)),
            tokens: standing(50_000, 47_300, None, Some(60_000)),
            ..Told::default()
        }
    );
}

#[test]
fn reads_cerebras() {
    let told = read(&[
        ("x-ratelimit-limit-requests-day", "14400"),
        ("x-ratelimit-remaining-requests-day", "14399"),
        ("x-ratelimit-reset-requests-day", "33011.382867086411"),
        ("x-ratelimit-limit-tokens-minute", "60000"),
        ("x-ratelimit-remaining-tokens-minute", "59000"),
        ("x-ratelimit-reset-tokens-minute", "11.5"),
    ]);
    assert_eq!(
        told.tokens,
        standing(60_000, 59_000, Some(11_500), Some(60_000))
    );
    let requests = told.requests.unwrap();
    assert_eq!((requests.limit, requests.remaining), (14_400, 14_399));
    assert_eq!(
        requests.full_in,
        Some(Duration::from_nanos(33_011_382_867_086))
    );
    assert_eq!(requests.period, secs(86_400));
}

#[test]
fn of_a_day_and_a_minute_the_tighter_binds() {
    let told = |day| {
        read(&[
            ("x-ratelimit-limit-requests-day", "10000"),
            ("x-ratelimit-remaining-requests-day", day),
            ("x-ratelimit-reset-requests-day", "33011.5"),
            ("x-ratelimit-limit-requests-minute", "120"),
            ("x-ratelimit-remaining-requests-minute", "115"),
            ("x-ratelimit-reset-requests-minute", "45.5"),
            ("x-ratelimit-limit-requests-hour", "900"),
            ("x-ratelimit-remaining-requests-hour", "899"),
            ("x-ratelimit-reset-requests-hour", "1000"),
        ])
        .requests
    };
    let minute = standing(120, 115, Some(45_500), Some(60_000));
    let day = |left| standing(10_000, left, Some(33_011_500), Some(86_400_000));
    assert_eq!(told("116"), minute);
    assert_eq!(told("115"), day(115));
    assert_eq!(told("114"), day(114));
}

#[test]
fn a_reset_without_a_limit_is_not_told() {
    // Cohere's, and OpenRouter's on free models, in milliseconds.
    for bare in [
        &[("x-ratelimit-reset", "1795341660")][..],
        &[
            ("x-ratelimit-limit", "20"),
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-reset", "1795341660000"),
        ],
        &[
            ("x-ratelimit-remaining-requests", "0"),
            ("x-ratelimit-reset-requests", "1s"),
        ],
        &[
            ("x-ratelimit-limit-requests", "10"),
            ("x-ratelimit-reset-requests", "1s"),
        ],
        &[],
    ] {
        assert_eq!(read(bare), Told::default(), "{bare:?}");
    }
}

#[test]
fn a_gateways_headers_and_those_behind_it_are_not_mixed() {
    let told = read(&[
        ("x-ratelimit-limit-requests", "10"),
        ("anthropic-ratelimit-requests-remaining", "5"),
    ]);
    assert_eq!(told, Told::default());
    let told = read(&[
        ("x-ratelimit-limit-requests", "10"),
        ("x-ratelimit-remaining-requests", "6"),
        ("anthropic-ratelimit-requests-limit", "4000"),
        ("anthropic-ratelimit-requests-remaining", "5"),
    ]);
    assert_eq!(told.requests, standing(4_000, 5, None, None));
}

// === amounts ===

#[test]
fn what_remains_is_at_most_the_limit() {
    let remaining = |remaining| {
        read(&[
            ("x-ratelimit-limit-tokens", "100"),
            ("x-ratelimit-remaining-tokens", remaining),
        ])
        .tokens
        .map(|tokens| tokens.remaining)
    };
    assert_eq!(remaining("0"), Some(0));
    assert_eq!(remaining(" 99 "), Some(99));
    assert_eq!(remaining("100"), Some(100));
    assert_eq!(remaining("101"), Some(100));
    assert_eq!(remaining("18446744073709551615"), Some(100));
    for odd in [
        "18446744073709551616",
        "-1",
        "",
        " ",
        "nan",
        "inf",
        "1e3",
        "0x10",
        "9.5",
        "1,000",
        "1 000",
        "unlimited",
        "\u{0661}",
    ] {
        assert_eq!(remaining(odd), None, "{odd:?}");
    }
}

#[test]
fn a_limit_of_nothing_is_no_limit() {
    let limit = |limit| {
        read(&[
            ("x-ratelimit-limit-tokens", limit),
            ("x-ratelimit-remaining-tokens", "5"),
        ])
        .tokens
        .map(|tokens| (tokens.limit, tokens.remaining))
    };
    assert_eq!(limit("1"), Some((1, 1)));
    assert_eq!(limit("18446744073709551615"), Some((u64::MAX, 5)));
    for odd in ["0", "-1", "18446744073709551616", "many", ""] {
        assert_eq!(limit(odd), None, "{odd:?}");
    }
}

#[test]
fn bytes_that_are_no_text_are_no_amount() {
    let mut headers = HeaderMap::new();
    headers.insert(
        "x-ratelimit-limit-tokens",
        HeaderValue::from_bytes(b"10\xff").unwrap(),
    );
    headers.insert(
        "x-ratelimit-remaining-tokens",
        HeaderValue::from_static("5"),
    );
    assert_eq!(Told::read(&headers), Told::default());
}

#[test]
fn the_first_of_several_values_counts() {
    let read = |values: [&'static str; 2]| {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("x-ratelimit-limit-tokens", HeaderValue::from_static(value));
        }
        headers.insert(
            "x-ratelimit-remaining-tokens",
            HeaderValue::from_static("5"),
        );
        Told::read(&headers).tokens.map(|tokens| tokens.limit)
    };
    assert_eq!(read(["10", "20"]), Some(10));
    assert_eq!(read(["20", "10"]), Some(20));
    assert_eq!(read(["many", "10"]), None);
}

#[test]
fn unknown_families_take_no_room_from_known_ones() {
    let mut headers = HeaderMap::new();
    for nth in 0..100 {
        let name = format!("x-ratelimit-limit-images-{nth}");
        headers.insert(
            name.parse::<HeaderName>().unwrap(),
            HeaderValue::from_static("1"),
        );
    }
    headers.insert("x-ratelimit-limit-tokens", HeaderValue::from_static("10"));
    headers.insert(
        "x-ratelimit-remaining-tokens",
        HeaderValue::from_static("5"),
    );
    assert_eq!(Told::read(&headers).tokens, standing(10, 5, None, None));
}

#[test]
fn more_families_than_are_kept_are_left_out() {
    let mut headers = HeaderMap::new();
    let mut remaining = 100;
    for scope in ["", "project-"] {
        for period in ["", "-second", "-minute", "-hour", "-day"] {
            remaining -= 1;
            for (field, value) in [("limit", 100), ("remaining", remaining)] {
                let name = format!("x-ratelimit-{field}-{scope}requests{period}");
                headers.insert(name.parse::<HeaderName>().unwrap(), value.into());
            }
        }
    }
    // The eighth is the tightest that was kept; the ninth and tenth have 91 and 90 left.
    assert_eq!(
        Told::read(&headers).requests.map(|told| told.remaining),
        Some(92)
    );
}

// === times ===

#[test]
fn a_name_may_end_in_its_period() {
    for (limit, remaining, seconds) in [
        (
            "x-ratelimit-limit-req-second",
            "x-ratelimit-remaining-req-second",
            1,
        ),
        (
            "x-ratelimit-limit-req-minute",
            "x-ratelimit-remaining-req-minute",
            60,
        ),
        (
            "x-ratelimit-limit-req-hour",
            "x-ratelimit-remaining-req-hour",
            3_600,
        ),
        (
            "x-ratelimit-limit-req-day",
            "x-ratelimit-remaining-req-day",
            86_400,
        ),
    ] {
        let told = read(&[(limit, "10"), (remaining, "5")]);
        assert_eq!(told.requests.unwrap().period, secs(seconds), "{limit}");
    }
}

#[test]
fn a_period_is_named_or_told() {
    let period = |renewal| {
        read(&[
            ("x-ratelimit-limit-tokens-minute", "10"),
            ("x-ratelimit-remaining-tokens-minute", "5"),
            ("x-ratelimit-renewalperiod-tokens-minute", renewal),
        ])
        .tokens
        .unwrap()
        .period
    };
    assert_eq!(period("10"), secs(10));
    assert_eq!(period("1h"), secs(3_600));
    assert_eq!(period("2678401"), Some(MAX_WAIT));
    for odd in ["0", "0s", "-1", "daily", ""] {
        assert_eq!(period(odd), secs(60), "{odd:?}");
    }
}

#[test]
fn a_reset_may_be_a_go_duration() {
    for (reset, nanos) in [
        ("0s", 0),
        ("1s", 1_000_000_000),
        ("6m0s", 360_000_000_000),
        ("12ms", 12_000_000),
        ("194ms", 194_000_000),
        ("7.66s", 7_660_000_000),
        ("2m59.56s", 179_560_000_000),
        ("1h16m0.667s", 4_560_667_000_000),
        ("24h0m0s", 86_400_000_000_000),
        ("1.5h", 5_400_000_000_000),
        ("0.1m", 6_000_000_000),
        ("13us", 13_000),
        ("13\u{b5}s", 13_000),
        ("13\u{3bc}s", 13_000),
        ("1.5\u{b5}s", 1_500),
        ("7ns", 7),
        ("1.9ns", 1),
        ("0.0000000019s", 1),
        ("1s500ms", 1_500_000_000),
        (" 1s\t", 1_000_000_000),
    ] {
        assert_eq!(
            full_in(reset),
            Some(Duration::from_nanos(nanos)),
            "{reset:?}"
        );
    }
}

#[test]
fn a_reset_may_be_a_number_of_seconds() {
    assert_eq!(full_in("0"), secs(0));
    assert_eq!(full_in("60"), secs(60));
    assert_eq!(full_in("0.25"), Some(Duration::from_millis(250)));
    assert_eq!(full_in("7."), secs(7));
}

#[test]
fn no_wait_is_over_a_month() {
    const MONTH: u64 = 31 * 86_400;
    for (reset, seconds) in [
        ("2678399", MONTH - 1),
        ("2678400", MONTH),
        ("2678401", MONTH),
        ("743h59m59s", MONTH - 1),
        ("744h", MONTH),
        ("744h1s", MONTH),
        ("5124095h", MONTH),
        ("2026-12-23T09:59:59Z", MONTH - 1),
        ("2026-12-23T10:00:00Z", MONTH),
        ("2026-12-23T10:00:01Z", MONTH),
        ("9999-12-30T00:00:00Z", MONTH),
        ("18446744073", MONTH),
    ] {
        assert_eq!(full_in(reset), secs(seconds), "{reset:?}");
    }
}

#[test]
fn a_number_too_large_for_a_wait_is_a_moment() {
    assert_eq!(full_in("1795341660"), secs(60));
    assert_eq!(full_in("1795341600.5"), Some(Duration::from_millis(500)));
    assert_eq!(full_in("1795341600"), secs(0));
    // 2001: long past.
    assert_eq!(full_in("1000000001"), secs(0));
    assert_eq!(full_in("1000000000.1"), secs(0));
    assert_eq!(full_in("1000000000"), Some(MAX_WAIT));
    // A unit makes it a wait, however long.
    assert_eq!(full_in("1795341660s"), Some(MAX_WAIT));
}

#[test]
fn a_reset_may_be_rfc_3339() {
    for (reset, millis) in [
        ("2026-11-22T10:00:30Z", 30_000),
        ("2026-11-22t10:00:30z", 30_000),
        ("2026-11-22T10:00:30.25Z", 30_250),
        ("2026-11-22T10:00:30.250000000Z", 30_250),
        ("2026-11-22T10:00:30+00:00", 30_000),
        ("2026-11-22T12:00:30+02:00", 30_000),
        ("2026-11-22T15:30:30+05:30", 30_000),
        ("2026-11-22T02:00:30-08:00", 30_000),
        ("2026-11-23T00:00:00+14:00", 0),
        ("2026-11-22T10:00:00Z", 0),
        ("2026-11-22T09:59:59.999Z", 0),
        ("1969-12-31T23:59:59Z", 0),
    ] {
        assert_eq!(
            full_in(reset),
            Some(Duration::from_millis(millis)),
            "{reset:?}"
        );
    }
}

#[test]
fn a_reset_may_be_an_http_date() {
    for reset in [
        "Sun, 22 Nov 2026 10:01:00 GMT",
        "Sunday, 22-Nov-26 10:01:00 GMT",
        "Sun Nov 22 10:01:00 2026",
    ] {
        assert_eq!(full_in(reset), secs(60), "{reset:?}");
    }
    assert_eq!(full_in("Sun, 22 Nov 2026 09:59:59 GMT"), secs(0));
}

#[test]
fn a_moment_says_nothing_without_the_responses_own_date() {
    for moment in [
        "1795341660",
        "2026-11-22T10:00:30Z",
        "Sun, 22 Nov 2026 10:01:00 GMT",
    ] {
        assert_eq!(dated(moment, None), None, "{moment:?}");
        assert_eq!(dated(moment, Some("today")), None, "{moment:?}");
        assert!(dated(moment, Some(DATE)).is_some(), "{moment:?}");
    }
    assert_eq!(dated("1m", None), secs(60));
    assert_eq!(dated("60", None), secs(60));
}

#[test]
fn nonsense_in_a_reset_is_no_time() {
    for odd in [
        "",
        " ",
        ".",
        ".5",
        ".5s",
        "..",
        "1.2.3",
        "1.2.3s",
        "-1",
        "-1s",
        "1h-1m",
        "nan",
        "NaN",
        "inf",
        "infinity",
        "1e3",
        "1e999",
        "s",
        "h1",
        "6m0",
        "6m 0s",
        "6 m",
        "1d",
        "1S",
        "1sec",
        "\u{661}s",
        "1\u{e9}",
        "soon",
        // Over 2^64 ns.
        "18446744074",
        "18446744073709551616",
        "5124096h",
        "5124095h2000h",
        // Milliseconds since the epoch.
        "1795341660000",
        "2026-11-22",
        "2026-11-22T10:00:30",
        "2026-13-22T10:00:30Z",
        "2026-11-31T10:00:30Z",
        "2026-11-22T25:00:30Z",
        "Sun, 31 Feb 2026 10:01:00 PST",
    ] {
        assert_eq!(full_in(odd), None, "{odd:?}");
    }
}

// === any bytes ===

/// As Go's `Duration.String` writes it.
fn go(nanos: u64) -> String {
    fn decimal(whole: u64, part: u64, digits: usize) -> String {
        let text = format!("{whole}.{part:0digits$}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => {
            format!("{}\u{b5}s", decimal(nanos / 1_000, nanos % 1_000, 3))
        }
        1_000_000..1_000_000_000 => {
            format!("{}ms", decimal(nanos / 1_000_000, nanos % 1_000_000, 6))
        }
        _ => {
            let total = nanos / 1_000_000_000;
            let (hours, minutes) = (total / 3_600, total / 60 % 60);
            let seconds = decimal(total % 60, nanos % 1_000_000_000, 9);
            match (hours, minutes) {
                (0, 0) => format!("{seconds}s"),
                (0, _) => format!("{minutes}m{seconds}s"),
                _ => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

#[test]
fn the_tests_write_durations_as_go_does() {
    assert_eq!(go(1_100), "1.1\u{b5}s");
    assert_eq!(go(2_200_000), "2.2ms");
    assert_eq!(go(3_300_000_000), "3.3s");
    assert_eq!(go(245_000_000_000), "4m5s");
    assert_eq!(go(18_367_001_000_000), "5h6m7.001s");
    assert_eq!(go(480_000_000_001), "8m0.000000001s");
    assert_eq!(go(360_000_000_000), "6m0s");
}

/// Days since the epoch of a proleptic Gregorian date, after Hinnant.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year.div_euclid(400) * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[test]
fn the_tests_agree_on_the_date() {
    let of_day = i64::try_from(DATE_UNIX).unwrap() - 10 * 3_600;
    assert_eq!(days(2026, 11, 22) * 86_400, of_day);
    assert_eq!(
        httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(DATE_UNIX)),
        DATE
    );
}

const FIELDS: [&str; 10] = [
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-ratelimit-renewalperiod-requests",
    "x-ratelimit-limit-project-tokens",
    "x-ratelimit-remaining-project-tokens",
    "x-ratelimit-reset-project-tokens",
    "anthropic-ratelimit-input-tokens-limit",
    "anthropic-ratelimit-input-tokens-remaining",
    "anthropic-ratelimit-input-tokens-reset",
];

/// Any bytes, and bytes that come close to an amount or a time.
fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..48),
        "[0-9]{1,21}".prop_map(String::into_bytes),
        "[0-9.hmsnu\u{b5}+ -]{0,24}".prop_map(String::into_bytes),
        "([0-9]{0,7}(\\.[0-9]{0,12})?(h|m|s|ms|us|\u{b5}s|ns)){1,4}".prop_map(String::into_bytes),
        "[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9:.]{0,18}(Z|[+-][0-9:]{0,6})?"
            .prop_map(String::into_bytes),
        "(Sun|Mon), [0-9]{2} (Jan|Feb|Nov) [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT"
            .prop_map(String::into_bytes),
    ]
}

proptest! {
    #[test]
    fn whatever_the_bytes_what_is_told_is_bounded(
        values in proptest::collection::vec(value(), FIELDS.len() + 1),
    ) {
        let names = FIELDS.into_iter().chain(["date"]);
        let headers = names
            .zip(values)
            .filter_map(|(name, value)| {
                Some((HeaderName::from_static(name), HeaderValue::from_bytes(&value).ok()?))
            })
            .collect();
        let told = Told::read(&headers);
        for standing in [told.requests, told.tokens, told.input_tokens].into_iter().flatten() {
            prop_assert!(standing.limit > 0);
            prop_assert!(standing.remaining <= standing.limit);
            prop_assert!(standing.full_in.is_none_or(|wait| wait <= MAX_WAIT));
            prop_assert!(standing.period.is_none_or(|period| !period.is_zero() && period <= MAX_WAIT));
        }
    }

    #[test]
    fn whatever_the_bytes_a_reset_is_bounded(reset in value(), date in value()) {
        let pairs = [
            ("x-ratelimit-limit-requests", &b"10"[..]),
            ("x-ratelimit-remaining-requests", b"1"),
            ("x-ratelimit-reset-requests", &reset),
            ("x-ratelimit-renewalperiod-requests", &reset),
            ("date", &date),
        ];
        let headers = pairs
            .into_iter()
            .filter_map(|(name, value)| {
                Some((HeaderName::from_static(name), HeaderValue::from_bytes(value).ok()?))
            })
            .collect();
        let told = Told::read(&headers).requests.unwrap();
        prop_assert!(told.full_in.is_none_or(|wait| wait <= MAX_WAIT));
        prop_assert!(told.period.is_none_or(|period| !period.is_zero() && period <= MAX_WAIT));
    }

    #[test]
    fn whatever_the_name_nothing_panics(name in "(x|anthropic)-ratelimit-[a-z0-9_-]{0,24}") {
        let mut headers = HeaderMap::new();
        headers.insert(name.parse::<HeaderName>().unwrap(), HeaderValue::from_static("1"));
        prop_assert_eq!(Told::read(&headers), Told::default());
    }

    #[test]
    fn go_durations_come_back_exactly(nanos in any::<u64>(), shift in 0..64_u32) {
        // Shifted, so that each unit gets its share.
        let nanos = nanos >> shift;
        let wait = Duration::from_nanos(nanos);
        prop_assert_eq!(duration(&go(nanos)), Some(wait));
        prop_assert_eq!(full_in(&go(nanos)), Some(wait.min(MAX_WAIT)));
    }

    #[test]
    fn rfc_3339_comes_back_exactly(
        (year, month, day) in (1970..9_999_i64, 1..=12_i64, 1..=28_i64),
        (hour, minute, second) in (0..24_i64, 0..60_i64, 0..60_i64),
        nanos in 0..1_000_000_000_u32,
        offset in -1_439..=1_439_i64,
    ) {
        let sign = if offset < 0 { '-' } else { '+' };
        let (hours, minutes) = (offset.abs() / 60, offset.abs() % 60);
        let written = format!(
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}{sign}{hours:02}:{minutes:02}"
        );
        let unix = days(year, month, day) * 86_400 + (hour * 60 + minute - offset) * 60 + second;
        let expected = u64::try_from(unix).map_or(Duration::ZERO, |unix| Duration::new(unix, nanos));
        prop_assert_eq!(moment(&written), Some(expected), "{}", written);
    }

    #[test]
    fn moments_are_read_against_the_date(date in 0..4_000_000_000_u64, later in -100_i64..5_000_000) {
        let reset = date.saturating_add_signed(later);
        let at = |unix| SystemTime::UNIX_EPOCH + Duration::from_secs(unix);
        let sent = httpdate::fmt_http_date(at(date));
        let expected = Duration::from_secs(reset.saturating_sub(date)).min(MAX_WAIT);
        prop_assert_eq!(dated(&httpdate::fmt_http_date(at(reset)), Some(&sent)), Some(expected));
        if reset > 1_000_000_000 {
            prop_assert_eq!(dated(&reset.to_string(), Some(&sent)), Some(expected));
        }
    }
}
