//! Records as lines of JSON, in files that are replaced when they are full.

use std::{fs, io::Write, path::PathBuf, time::SystemTime};

use tower_llm_monitor::{JsonLines, MonitorLayer};

use crate::support::{answer, call, request};

/// A path in an empty folder of its own.
fn path(test: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join("json_lines")
        .join(test);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder.join("records.jsonl")
}

/// Makes so many calls, and writes their records.
async fn write(sink: JsonLines, calls: usize) -> JsonLines {
    let monitor = MonitorLayer::builder().records(10_000).build().unwrap();
    for _ in 0..calls {
        call(&monitor, request(), Ok(answer())).await;
    }
    let date = || SystemTime::UNIX_EPOCH;
    let sink = monitor
        .handle()
        .recorder(sink, date)
        .unwrap()
        .run(async {})
        .await;
    let records = monitor.handle().snapshot().records.unwrap();
    assert_eq!((records.written, records.failed_writes), (calls as u64, 0));
    sink
}

/// How many lines the file has, all of which are records.
fn lines(path: &PathBuf) -> usize {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(record["outcome"], "success");
    }
    text.lines().count()
}

#[tokio::test]
async fn each_record_is_a_line_and_a_file_is_continued() {
    let path = path("continued");
    let sink = write(JsonLines::new(&path), 150).await;
    write(sink, 3).await;
    write(JsonLines::new(&path), 2).await;
    assert_eq!(lines(&path), 155);
}

#[tokio::test]
async fn half_a_line_of_a_process_that_was_killed_is_cut_off() {
    for (half, kept) in [
        ("{\"outcome\":\"succ", 2),
        (&"x".repeat(10_000), 2),
        ("", 2),
    ] {
        let path = path("killed");
        write(JsonLines::new(&path), 2).await;
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(half.as_bytes()).unwrap();
        drop(file);
        write(JsonLines::new(&path), 1).await;
        assert_eq!(lines(&path), kept + 1);
    }
    // Nothing else than half a line.
    let path = path("only_half");
    fs::write(&path, "{").unwrap();
    write(JsonLines::new(&path), 1).await;
    assert_eq!(lines(&path), 1);
}

#[tokio::test]
async fn a_full_file_gets_a_number_and_the_oldest_is_removed() {
    let path = path("full");
    let numbered = |number: usize| path.with_extension(format!("jsonl.{number}"));
    let mut sink = JsonLines::new(&path).rotate(1_000_000, 2).unwrap();
    let mut written = 0;
    while !numbered(2).exists() {
        sink = write(sink, 1_000).await;
        written += 1_000;
    }
    let files = [path.clone(), numbered(1), numbered(2)];
    assert_eq!(files.iter().map(lines).sum::<usize>(), written);
    assert!(
        files
            .iter()
            .all(|file| fs::metadata(file).unwrap().len() <= 1_000_000)
    );
    assert!(!numbered(3).exists());
}

#[tokio::test]
async fn a_file_that_cannot_be_opened_is_an_error_and_not_the_end() {
    let path = path("missing")
        .parent()
        .unwrap()
        .join("folder")
        .join("records.jsonl");
    let monitor = MonitorLayer::builder().records(10).build().unwrap();
    call(&monitor, request(), Ok(answer())).await;
    let date = || SystemTime::UNIX_EPOCH;
    let recorder = monitor.handle().recorder(JsonLines::new(&path), date);
    let sink = recorder.unwrap().run(async {}).await;
    let records = monitor.handle().snapshot().records.unwrap();
    assert_eq!(
        (records.written, records.failed_writes, records.dropped),
        (0, 1, 1)
    );
    fs::create_dir(path.parent().unwrap()).unwrap();
    write(sink, 2).await;
    assert_eq!(lines(&path), 2);
}
