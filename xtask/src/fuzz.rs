//! Short runs of the fuzz targets, on the stable toolchain.
//!
//! `cargo fuzz` needs nightly only for the sanitizers, which find errors of `unsafe` code, and we
//! have none. What remains of it is a set of compiler flags, kept here.

use std::num::NonZeroU32;

use xshell::{Shell, cmd};

use crate::{
    Result, metadata,
    tools::{self, Tool},
};

pub(crate) const MANIFEST: &str = "fuzz/Cargo.toml";

/// Long enough to find what a careless change breaks; a search for rare inputs takes hours.
pub(crate) const DEFAULT_SECONDS: NonZeroU32 = NonZeroU32::new(20).unwrap();

/// The coverage that libFuzzer steers by; the same flags as `cargo fuzz --sanitizer none`.
const RUSTFLAGS: &str = "--cfg fuzzing \
     -Cpasses=sancov-module \
     -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
     -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares \
     -Cllvm-args=-simplifycfg-branch-fold-threshold=0";

/// Seconds as written on the command line; libFuzzer takes zero for "no end".
pub(crate) fn parse_seconds(text: &str) -> Result<NonZeroU32> {
    text.parse()
        .map_err(|_| format!("`{text}` is not a positive number of seconds").into())
}

/// Runs every target of the package `fuzz` for `seconds`.
///
/// What a run learns stays in `fuzz/corpus`, which is not committed; inputs that every run starts
/// from belong in `fuzz/seeds/<target>`. A crashing input is kept in `fuzz/artifacts/<target>`; the
/// program that cargo prints as running takes its path and runs it alone.
pub(crate) fn fuzz(sh: &Shell, seconds: NonZeroU32) -> Result {
    tools::find_or_install(sh, Tool::CxxCompiler)?;
    let host = metadata::host(sh)?;
    let metadata = metadata::read(sh, MANIFEST)?;
    let seconds = seconds.to_string();
    let _flags = sh.push_env("RUSTFLAGS", RUSTFLAGS);
    for target in metadata
        .packages
        .iter()
        .flat_map(|package| package.targets("bin"))
    {
        let corpus = format!("fuzz/corpus/{target}");
        let artifacts = format!("fuzz/artifacts/{target}/");
        let seeds = format!("fuzz/seeds/{target}");
        sh.create_dir(&corpus)?;
        sh.create_dir(&artifacts)?;
        let seeds = sh.path_exists(&seeds).then_some(seeds);
        // `--target` keeps the flags away from build scripts, which don't link libFuzzer.
        cmd!(
            sh,
            "cargo run --release --target {host} --manifest-path {MANIFEST} --bin {target} --
             -max_total_time={seconds} -timeout=10 -print_final_stats=1
             -artifact_prefix={artifacts} {corpus} {seeds...}"
        )
        .run()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_a_positive_number() {
        assert_eq!(parse_seconds("90").unwrap().get(), 90);
        for bad in ["0", "-1", "1.5", "soon", ""] {
            let error = parse_seconds(bad).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("`{bad}` is not a positive number of seconds")
            );
        }
    }
}
