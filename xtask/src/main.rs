//! The repository's chores: `cargo xtask` lists them.

mod bench;
mod checks;
mod demo;
mod environment;
mod fuzz;
mod metadata;
mod tools;

use std::{env, path::Path, process::ExitCode};

use xshell::Shell;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

const HELP: &str = "\
Chores of this repository.

Usage: cargo xtask <command>

  test             every test; installs a Redis server first if there is none
  ci               everything that CI checks, the tests included
  ci --skip-tests  the same without the tests
  fuzz [seconds]   each fuzz target for a while (20 s), on the stable toolchain
  bench [suite]    the benchmarks, or one suite of them; merges target/bench/summary.json
  demo             starts the gateway, makes a plain and a streamed call, shows its metrics
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
        ["bench"] => bench::bench(&sh, None),
        ["bench", suite] => bench::bench(&sh, Some(suite)),
        ["demo"] => demo::demo(&sh),
        [] | ["help" | "--help" | "-h"] => {
            print!("{HELP}");
            Ok(())
        }
        _ => Err(format!("unknown command `{}`\n\n{HELP}", args.join(" ")).into()),
    }
}

/// The workspace's folder, so that a chore works from any folder below it.
fn root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}
