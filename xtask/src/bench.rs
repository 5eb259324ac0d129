//! `bench`: runs the suites of the package `benches` and collects their figures.

use std::{fmt::Write as _, path::Path, thread};

use serde::{Deserialize, Serialize};
use xshell::{Shell, cmd};

use crate::{
    Result, metadata, root,
    tools::{self, Tool},
};

const SUMMARY: &str = "summary.json";

/// What building all suites in release mode takes, with room to spare.
const BUILD_MIB: u64 = 3 * 1024;

/// One row, as a suite writes it to `target/bench/<suite>.jsonl` and the summary lists it.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(untagged)]
enum Row {
    Call(Call),
    Figure(Figure),
}

/// What a call costs.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Call {
    suite: String,
    case: String,
    subject: String,
    threads: u32,
    ns_per_call: f64,
    allocs_per_call: f64,
    bytes_per_call: f64,
}

/// What is not the time of a call: a size, a ratio.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Figure {
    suite: String,
    case: String,
    subject: String,
    unit: String,
    value: f64,
}

impl Row {
    fn suite(&self) -> &str {
        match self {
            Self::Call(call) => &call.suite,
            Self::Figure(figure) => &figure.suite,
        }
    }
}

/// Runs the named suites, or all if none is named, and prints their figures in one table.
pub(crate) fn bench(sh: &Shell, named: &[&str]) -> Result {
    let metadata = metadata::read(sh, "Cargo.toml")?;
    let benches = metadata
        .packages
        .iter()
        .find(|package| package.name == "benches");
    let known = benches
        .ok_or("the workspace has no package `benches`")?
        .targets("bench");
    let suites = choose(&known, named)?;

    let folder = root().join("target/bench");
    sh.create_dir(&folder)?;
    prepare(sh, &folder, &metadata.target_directory, &suites)?;
    println!("{}", machine(sh));
    let mut printed = Vec::new();
    for suite in suites {
        let rows = run_suite(sh, &folder, suite)?;
        // After each suite, so that a later one that fails loses nothing.
        let summary = merge(read_summary(sh, &folder)?, suite, rows.clone());
        sh.write_file(folder.join(SUMMARY), to_json_lines(&summary)?)?;
        printed.extend(rows);
    }
    print!("\n{}", table(&printed));
    Ok(())
}

/// The suites to run, each once, in the order of `known`.
fn choose<'a>(known: &[&'a str], named: &[&str]) -> Result<Vec<&'a str>> {
    if let Some(unknown) = named.iter().find(|suite| !known.contains(suite)) {
        return Err(format!("no suite `{unknown}`; there are: {}", known.join(", ")).into());
    }
    let is_chosen = |suite: &&str| named.is_empty() || named.contains(suite);
    Ok(known.iter().copied().filter(is_chosen).collect())
}

/// Finds out before the first suite runs whether the last one can: all of them take minutes.
fn prepare(sh: &Shell, folder: &Path, target: &Path, suites: &[&str]) -> Result {
    read_summary(sh, folder)?;
    if let Some(free) = free_mib(sh, target)
        && free < BUILD_MIB
    {
        let target = target.display();
        return Err(format!(
            "{target} has {free} MiB of free disk space; the benchmarks need {BUILD_MIB} MiB"
        )
        .into());
    }
    for suite in suites {
        // A suite that needs Redis starts a server of its own.
        if uses_redis(sh, suite)? {
            tools::find_or_install(sh, Tool::Redis)?;
        }
    }
    let targets = suites.iter().flat_map(|suite| ["--bench", suite]);
    cmd!(sh, "cargo bench -p benches --no-run {targets...}").run()?;
    Ok(())
}

/// Whether the suite, which is a file or a folder of them, starts a server.
fn uses_redis(sh: &Shell, suite: &str) -> Result<bool> {
    let suite = format!("benches/benches/{suite}");
    let files = match sh.path_exists(&suite) {
        true => sh.read_dir(&suite)?,
        false => vec![format!("{suite}.rs").into()],
    };
    for file in files {
        if sh.read_file(file)?.contains("RedisServer::start") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The free disk space at `folder`; `None` where there is no `df` to ask.
fn free_mib(sh: &Shell, folder: &Path) -> Option<u64> {
    let df = cmd!(sh, "df -Pk {folder}").quiet().ignore_stderr().read();
    parse_free_mib(&df.ok()?)
}

/// Reads the fourth column of what `df -Pk` prints for one folder.
fn parse_free_mib(df: &str) -> Option<u64> {
    let free = df.lines().nth(1)?.split_whitespace().nth(3)?;
    free.parse::<u64>().ok().map(|kib| kib / 1024)
}

fn run_suite(sh: &Shell, folder: &Path, suite: &str) -> Result<Vec<Row>> {
    let file = folder.join(format!("{suite}.jsonl"));
    // A suite appends its rows: those of an earlier run must not count as this run's.
    sh.remove_path(&file)?;
    cmd!(sh, "cargo bench -p benches --bench {suite}").run()?;
    if !sh.path_exists(&file) {
        return Err(format!("suite `{suite}` wrote no {}", file.display()).into());
    }
    parse_rows(&sh.read_file(&file)?, suite)
}

fn parse_rows(lines: &str, suite: &str) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for line in lines.lines().filter(|line| !line.trim().is_empty()) {
        let row: Row = serde_json::from_str(line).map_err(|error| format!("{error}: {line}"))?;
        if row.suite() != suite {
            return Err(format!("suite `{suite}` wrote a row of suite `{}`", row.suite()).into());
        }
        rows.push(row);
    }
    Ok(rows)
}

fn read_summary(sh: &Shell, folder: &Path) -> Result<Vec<Row>> {
    let file = folder.join(SUMMARY);
    if !sh.path_exists(&file) {
        return Ok(Vec::new());
    }
    let rows = serde_json::from_str(&sh.read_file(&file)?);
    Ok(rows.map_err(|error| format!("{}: {error}; delete it to start again", file.display()))?)
}

/// Replaces a suite's old rows by its new ones; suites stay sorted by name.
fn merge(mut summary: Vec<Row>, suite: &str, rows: Vec<Row>) -> Vec<Row> {
    summary.retain(|row| row.suite() != suite);
    summary.extend(rows);
    summary.sort_by(|a, b| a.suite().cmp(b.suite()));
    summary
}

/// A JSON list with one row a line: a diff of two summaries stays readable.
fn to_json_lines(rows: &[Row]) -> serde_json::Result<String> {
    let rows: Vec<String> = rows
        .iter()
        .map(serde_json::to_string)
        .collect::<serde_json::Result<_>>()?;
    Ok(format!("[\n{}\n]\n", rows.join(",\n")))
}

/// The rows as text: what calls cost, and then the other figures.
fn table(rows: &[Row]) -> String {
    const CALLS: [&str; 7] = [
        "suite",
        "case",
        "subject",
        "threads",
        "ns/call",
        "allocs/call",
        "bytes/call",
    ];
    const FIGURES: [&str; 5] = ["suite", "case", "subject", "value", "unit"];

    let mut calls = Vec::new();
    let mut figures = Vec::new();
    for row in rows {
        match row {
            Row::Call(call) => calls.push([
                call.suite.clone(),
                call.case.clone(),
                call.subject.clone(),
                call.threads.to_string(),
                format!("{:.1}", call.ns_per_call),
                format!("{:.2}", call.allocs_per_call),
                format!("{:.0}", call.bytes_per_call),
            ]),
            Row::Figure(figure) => figures.push([
                figure.suite.clone(),
                figure.case.clone(),
                figure.subject.clone(),
                format!("{:.2}", figure.value),
                figure.unit.clone(),
            ]),
        }
    }
    let mut text = String::new();
    if !calls.is_empty() {
        text += &aligned(CALLS, calls);
    }
    if !figures.is_empty() {
        text += &aligned(FIGURES, figures);
    }
    text
}

/// The lines in columns: names to the left, numbers to the right, as far as there are any behind the names.
fn aligned<const N: usize>(head: [&str; N], lines: Vec<[String; N]>) -> String {
    const NAMES: usize = 3;

    let mut all = vec![head.map(str::to_owned)];
    all.extend(lines);
    let width = |column: usize| all.iter().map(|line| line[column].chars().count()).max();
    let widths: Vec<usize> = (0..N).map(|column| width(column).unwrap_or(0)).collect();

    let mut text = String::new();
    for line in &all {
        for (column, cell) in line.iter().enumerate() {
            let gap = if column == 0 { "" } else { "  " };
            let width = widths[column];
            let written = if head[column] == "unit" {
                write!(text, "{gap}{cell}")
            } else if column < NAMES {
                write!(text, "{gap}{cell:<width$}")
            } else {
                write!(text, "{gap}{cell:>width$}")
            };
            written.expect("a String takes all that is written");
        }
        text.push('\n');
    }
    text
}

/// The machine, the compiler and the commit that were measured.
fn machine(sh: &Shell) -> String {
    let read = |text: xshell::Result<String>| text.unwrap_or_else(|_| "unknown".to_owned());
    let cpu = match sh.read_file("/proc/cpuinfo") {
        Ok(cpuinfo) => cpu_model(&cpuinfo).unwrap_or("unknown").to_owned(),
        Err(_) => read(
            cmd!(sh, "sysctl -n machdep.cpu.brand_string")
                .quiet()
                .read(),
        ),
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let rustc = read(cmd!(sh, "rustc --version").quiet().read());
    let commit = read(
        cmd!(sh, "git describe --always --dirty --exclude=*")
            .quiet()
            .ignore_stderr()
            .read(),
    );
    format!("cpu:    {cpu}\ncores:  {cores}\nrustc:  {rustc}\ncommit: {commit}\n")
}

fn cpu_model(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(suite: &str, subject: &str, ns_per_call: f64) -> Row {
        Row::Call(Call {
            suite: suite.into(),
            case: "admit".into(),
            subject: subject.into(),
            threads: 1,
            ns_per_call,
            allocs_per_call: 0.0,
            bytes_per_call: 0.0,
        })
    }

    fn figure(subject: &str, value: f64) -> Row {
        Row::Figure(Figure {
            suite: "cache".into(),
            case: "memory".into(),
            subject: subject.into(),
            unit: "bytes".into(),
            value,
        })
    }

    #[test]
    fn a_suite_run_again_replaces_its_own_rows_only() {
        let earlier = vec![row("bulkhead", "bare", 1.0), row("watch", "bare", 2.0)];
        let new = vec![
            row("bulkhead", "bare", 3.0),
            row("bulkhead", "tower 0.5.2", 4.0),
        ];
        let merged = merge(earlier, "bulkhead", new);
        let expected = [
            row("bulkhead", "bare", 3.0),
            row("bulkhead", "tower 0.5.2", 4.0),
            row("watch", "bare", 2.0),
        ];
        assert_eq!(merged, expected);
    }

    #[test]
    fn a_suite_that_lost_a_case_leaves_no_old_row_behind() {
        let earlier = vec![
            row("bulkhead", "bare", 1.0),
            row("bulkhead", "gone 1.0.0", 2.0),
        ];
        let merged = merge(earlier, "bulkhead", vec![row("bulkhead", "bare", 3.0)]);
        assert_eq!(merged, [row("bulkhead", "bare", 3.0)]);
    }

    #[test]
    fn the_summary_is_a_list_that_reads_back() {
        for rows in [
            vec![],
            vec![row("watch", "bare", 0.5), row("watch", "x", 1e6)],
            vec![figure("lru", 2.5), row("watch", "x", 1e6)],
        ] {
            let text = to_json_lines(&rows).unwrap();
            assert_eq!(serde_json::from_str::<Vec<Row>>(&text).unwrap(), rows);
        }
    }

    #[test]
    fn rows_are_read_line_by_line_and_must_be_the_suites_own() {
        let rows = [row("watch", "bare", 1.5), row("watch", "tower 0.5.2", 2.0)];
        let lines: Vec<String> = rows
            .iter()
            .map(|row| serde_json::to_string(row).unwrap())
            .collect();
        assert_eq!(
            parse_rows(&format!("{}\n", lines.join("\n")), "watch").unwrap(),
            rows
        );

        let error = parse_rows(&lines[0], "bulkhead").unwrap_err().to_string();
        assert_eq!(error, "suite `bulkhead` wrote a row of suite `watch`");
        let error = parse_rows(r#"{"suite": "watch"}"#, "watch")
            .unwrap_err()
            .to_string();
        assert!(
            error.ends_with(r#"enum Row: {"suite": "watch"}"#),
            "{error}"
        );
    }

    #[test]
    fn names_align_left_and_numbers_right() {
        let mut slow = row("bulkhead", "tower-llm-bulkhead", 1234.56);
        if let Row::Call(slow) = &mut slow {
            slow.allocs_per_call = 1.5;
            slow.bytes_per_call = 640.0;
        }
        let expected = "\
suite     case   subject             threads  ns/call  allocs/call  bytes/call
bulkhead  admit  bare                      1      2.0         0.00           0
bulkhead  admit  tower-llm-bulkhead        1   1234.6         1.50         640
";
        assert_eq!(table(&[row("bulkhead", "bare", 2.0), slow]), expected);
    }

    #[test]
    fn other_figures_have_a_table_of_their_own() {
        let expected = "\
suite  case    subject     value  unit
cache  memory  lru       2400.50  bytes
cache  memory  tiny_lfu     1.00  bytes
";
        assert_eq!(
            table(&[figure("lru", 2400.5), figure("tiny_lfu", 1.0)]),
            expected
        );
    }

    #[test]
    fn no_names_choose_all_suites_and_an_unknown_one_is_an_error() {
        let known = ["bulkhead", "describe", "watch"];
        assert_eq!(choose(&known, &[]).unwrap(), known);
        let chosen = choose(&known, &["watch", "describe", "watch"]).unwrap();
        assert_eq!(chosen, ["describe", "watch"]);
        let error = choose(&known, &["watch", "wotch"]).unwrap_err().to_string();
        assert_eq!(
            error,
            "no suite `wotch`; there are: bulkhead, describe, watch"
        );
    }

    #[test]
    fn free_disk_space_is_the_fourth_column_of_df() {
        let df = "\
Filesystem     1024-blocks     Used Available Capacity Mounted on
/dev/vda         263937256 30000000  66060288      32% /
";
        assert_eq!(parse_free_mib(df), Some(64_512));
        assert_eq!(parse_free_mib("df: no such folder\n"), None);
    }

    #[test]
    fn the_cpu_is_named_by_its_model() {
        let cpuinfo = "processor\t: 0\nmodel\t\t: 85\nmodel name\t: Some CPU @ 2.00GHz\n";
        assert_eq!(cpu_model(cpuinfo), Some("Some CPU @ 2.00GHz"));
        assert_eq!(cpu_model("processor\t: 0\n"), None);
    }
}
