//! What a cargo started by xtask finds in its environment.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{env, fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

/// Runs xtask with a `cargo` in PATH that writes down its environment and fails.
fn environment_of_cargo(folder: &Path, set: &[(&str, &str)]) -> Vec<String> {
    fs::create_dir_all(folder).unwrap();
    let (cargo, written) = (folder.join("cargo"), folder.join("environment"));
    fs::write(
        &cargo,
        format!("#!/bin/sh\nenv > '{}'\nexit 1\n", written.display()),
    )
    .unwrap();
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();
    let path = env::var_os("PATH").unwrap_or_default();
    let path = [folder.to_owned()]
        .into_iter()
        .chain(env::split_paths(&path));

    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["ci", "--skip-tests"])
        .env("PATH", env::join_paths(path).unwrap())
        .envs(set.iter().copied())
        .output()
        .unwrap();
    assert!(!output.status.success(), "the first command fails");
    let environment = fs::read_to_string(written).unwrap();
    environment.lines().map(str::to_owned).collect()
}

#[test]
fn a_cargo_that_xtask_starts_sees_the_users_settings_and_not_xtasks_package() {
    let added = [
        ("CARGO", "/somewhere/cargo"),
        ("CARGO_MANIFEST_DIR", "/somewhere/xtask"),
        ("CARGO_MANIFEST_PATH", "/somewhere/xtask/Cargo.toml"),
        ("CARGO_PKG_NAME", "xtask"),
        ("CARGO_PKG_VERSION", "0.1.0"),
    ];
    let own = [
        ("CARGO_HOME", "/home/me/.cargo"),
        ("CARGO_TARGET_DIR", "/tmp/mine"),
        ("CARGO_PROFILE_DEV_DEBUG", "1"),
    ];
    let set: Vec<_> = added.iter().chain(&own).copied().collect();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("environment");
    let environment = environment_of_cargo(&folder, &set);

    for (name, _) in added {
        let start = format!("{name}=");
        assert!(
            !environment.iter().any(|line| line.starts_with(&start)),
            "{name}"
        );
    }
    for (name, value) in own {
        assert!(environment.contains(&format!("{name}={value}")), "{name}");
    }
}
