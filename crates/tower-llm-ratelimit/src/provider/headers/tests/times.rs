//! Periods and resets, in every format of a time that a provider uses.

use std::time::SystemTime;

use super::*;

/// `DATE`, since the Unix epoch.
const DATE_UNIX: u64 = 1_795_341_600;

/// The time until a limit of requests is full, in a response of `DATE`.
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
        let reported = read(&[(limit, "10"), (remaining, "5")]);
        assert_eq!(reported.requests.unwrap().period, secs(seconds), "{limit}");
    }
}

#[test]
fn a_period_is_in_the_name_or_the_value() {
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
fn a_number_too_large_for_a_wait_is_a_time() {
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
fn a_time_is_ignored_without_the_responses_own_date() {
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

// === any time ===

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

proptest! {
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
