//! What `cargo metadata` says about the packages here.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;
use xshell::{Shell, cmd};

use crate::Result;

#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) packages: Vec<Package>,
    pub(crate) target_directory: PathBuf,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    /// The registries it may go to: all if `None`, none if empty.
    publish: Option<Vec<String>>,
    features: BTreeMap<String, Vec<String>>,
    targets: Vec<Target>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// Reads the workspace's packages, or those of the workspace at `manifest`.
pub(crate) fn read(sh: &Shell, manifest: &str) -> Result<Metadata> {
    let json = cmd!(
        sh,
        "cargo metadata --no-deps --format-version 1 --manifest-path {manifest}"
    )
    .quiet()
    .read()?;
    Ok(serde_json::from_str(&json)?)
}

/// The triple that the toolchain builds for unless told otherwise.
pub(crate) fn host(sh: &Shell) -> Result<String> {
    let version = cmd!(sh, "rustc --version --verbose").quiet().read()?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host
        .ok_or("`rustc --version --verbose` names no host")?
        .to_owned())
}

impl Package {
    pub(crate) fn is_published(&self) -> bool {
        self.publish
            .as_ref()
            .is_none_or(|registries| !registries.is_empty())
    }

    /// The names of its targets of one kind (`bin`, `bench`), sorted.
    pub(crate) fn targets(&self, kind: &str) -> Vec<&str> {
        let mut names: Vec<&str> = self
            .targets
            .iter()
            .filter(|target| target.kind.iter().any(|k| k == kind))
            .map(|target| target.name.as_str())
            .collect();
        names.sort_unstable();
        names
    }

    /// The sets of features to check: none, each alone, all.
    pub(crate) fn feature_sets(&self) -> Vec<Vec<&str>> {
        let names: Vec<&str> = self.features.keys().map(String::as_str).collect();
        let mut sets = vec![vec![]];
        sets.extend(names.iter().map(|name| vec![*name]));
        if names.len() > 1 {
            sets.push(names);
        }
        sets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(json: &str) -> Package {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn feature_sets_are_none_each_and_all() {
        let package = package(
            r#"{"name": "x", "publish": null, "targets": [],
                "features": {"default": ["redis"], "redis": [], "metrics": []}}"#,
        );
        let expected = [
            vec![],
            vec!["default"],
            vec!["metrics"],
            vec!["redis"],
            vec!["default", "metrics", "redis"],
        ];
        assert_eq!(package.feature_sets(), expected);
        assert!(package.is_published());
    }

    #[test]
    fn one_feature_alone_is_also_all_of_them() {
        let package =
            package(r#"{"name": "x", "publish": [], "targets": [], "features": {"metrics": []}}"#);
        assert_eq!(package.feature_sets(), [vec![], vec!["metrics"]]);
        assert!(!package.is_published());
    }

    #[test]
    fn targets_are_chosen_by_kind_and_sorted() {
        let package = package(
            r#"{"name": "x", "publish": [], "features": {}, "targets": [
                {"name": "watch", "kind": ["bench"]},
                {"name": "x", "kind": ["lib"]},
                {"name": "bulkhead", "kind": ["bench"]}]}"#,
        );
        assert_eq!(package.targets("bench"), ["bulkhead", "watch"]);
    }
}
