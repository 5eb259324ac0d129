//! The links in our Markdown files lead to files that exist.
//!
//! rustdoc checks the links in doc comments; nothing else reads a README.

use std::path::Path;

use xshell::{Shell, cmd};

use crate::{Result, root};

/// Checks every committed Markdown file.
pub(crate) fn check(sh: &Shell) -> Result {
    let files = cmd!(sh, "git ls-files *.md").quiet().read()?;
    let mut broken = Vec::new();
    for file in files.lines() {
        let text = sh.read_file(file)?;
        let folder = root().join(file);
        let folder = folder.parent().unwrap_or(root());
        let missing = local_targets(&text).filter(|target| !exists(folder, target));
        broken.extend(missing.map(|target| format!("{file}: {target}")));
    }
    if broken.is_empty() {
        return Ok(());
    }
    Err(format!(
        "links to files that do not exist:\n  {}",
        broken.join("\n  ")
    )
    .into())
}

fn exists(folder: &Path, target: &str) -> bool {
    let path = target.split('#').next().unwrap_or(target);
    folder.join(path).exists()
}

/// What inline links point to, without web addresses and headings of the file itself.
fn local_targets(markdown: &str) -> impl Iterator<Item = &str> {
    let targets = markdown.split("](").skip(1).filter_map(|rest| {
        let end = rest.find([')', ' ', '\n'])?;
        Some(&rest[..end])
    });
    targets.filter(|target| {
        let is_web = target.contains("://") || target.starts_with("mailto:");
        // A Markdown file that is a module's documentation links to items, which rustdoc checks.
        let is_item = target.contains("::");
        !is_web && !is_item && !target.starts_with('#') && !target.is_empty()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_files_are_found_and_others_left_out() {
        let text = "[a](LICENSE-MIT), [b](benches/README.md#title \"Title\"), [c](https://x.test/y)\n\
                    [d](#here) ![e](images/e.png) [g](crate::Call::cost) `f](`";
        let found: Vec<&str> = local_targets(text).collect();
        assert_eq!(
            found,
            ["LICENSE-MIT", "benches/README.md#title", "images/e.png"]
        );
    }

    #[test]
    fn a_link_is_followed_from_its_files_folder() {
        assert!(exists(root(), "README.md#use-it"));
        assert!(exists(&root().join("benches"), "../README.md"));
        assert!(!exists(root(), "READYOU.md"));
    }
}
