//! Tasks of this repository; `cargo xtask` lists them.

mod bench;
mod checks;
mod demo;
mod environment;
mod fuzz;
mod links;
mod metadata;
mod tools;

use std::{env, path::Path, process::ExitCode};

use xshell::Shell;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

const HELP: &str = "\
Tasks of this repository.

Usage: cargo xtask <command>

  test             Runs every test. Installs a Redis server first if there is none.
  ci               Runs everything that CI checks, the tests included.
  ci --skip-tests  Runs the same checks without the tests.
  fuzz [seconds]   Runs each fuzz target for 20 seconds, or as long as given, on the stable toolchain.
  bench [suite]... Runs all benchmark suites, or the named ones, and updates target/bench/summary.json.
  demo             Starts the gateway, sends a plain and a streamed call, and prints its metrics.
";

fn main() -> ExitCode {
    match environment::restart() {
        Some(Ok(code)) => return code,
        Some(Err(error)) => {
            eprintln!("error: xtask can't start itself again: {error}");
            return ExitCode::FAILURE;
        }
        None => {}
    }
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[&str]) -> Result {
    let sh = Shell::new()?;
    sh.change_dir(root());
    match args {
        ["test"] => checks::test(&sh),
        ["ci"] => checks::ci(&sh, checks::Tests::Run),
        ["ci", "--skip-tests"] => checks::ci(&sh, checks::Tests::Skip),
        ["fuzz"] => fuzz::fuzz(&sh, fuzz::DEFAULT_SECONDS),
        ["fuzz", seconds] => fuzz::fuzz(&sh, fuzz::parse_seconds(seconds)?),
        ["bench", suites @ ..] => bench::bench(&sh, suites),
        ["demo"] => demo::demo(&sh),
        [] | ["help" | "--help" | "-h"] => {
            print!("{HELP}");
            Ok(())
        }
        _ => Err(format!("unknown command `{}`\n\n{HELP}", args.join(" ")).into()),
    }
}

/// The workspace's folder: a task works from any folder below it.
fn root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}
