//! What the documents must contain, and that their links lead somewhere.

use std::collections::BTreeSet;

use super::{Finding, repo::Repo};

/// How many words `docs/ARCHITECTURE.md` may have: four printed pages of about 500. A longer one is not read, and
/// is no longer true after a few changes.
const MAX_ARCHITECTURE_WORDS: usize = 2_000;

/// Every link inside of the repository leads to a file, and to a heading in it if it names one.
pub(super) fn links(repo: &Repo) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in repo.texts().filter(|(path, _)| path.ends_with(".md")) {
        for (number, line) in prose(text) {
            for target in targets(&line) {
                if let Err(text) = follow(repo, path, target) {
                    findings.push(Finding::error(format!("{path}:{number}"), text));
                }
            }
        }
    }
    findings
}

/// Every document that a comment or another document names is in the repository: readers have no others.
pub(super) fn mentions(repo: &Repo) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut look = |path: &str, number: usize, line: &str| {
        for name in named_documents(line).filter(|name| !is_there(repo, name)) {
            findings.push(Finding::error(
                format!("{path}:{number}"),
                format!("names `{name}`, which is not there"),
            ));
        }
    };
    for (path, source) in repo.sources() {
        source.lines().for_each(|line| look(path, line.number, &line.comment));
    }
    for (path, text) in repo.texts().filter(|(path, _)| path.ends_with(".md")) {
        text.lines().enumerate().for_each(|(index, line)| look(path, index + 1, line));
    }
    findings
}

/// Returns the words of a line that are names of documents, without those on the web.
fn named_documents(line: &str) -> impl Iterator<Item = &str> {
    let is_of_a_name = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | '/' | ':');
    line.split(move |c| !is_of_a_name(c))
        .map(|word| word.trim_end_matches(['.', ':']))
        .filter(|word| word.ends_with(".md") && !word.contains("://"))
}

/// Tells whether a document is there, named by its whole path or by the end of it.
fn is_there(repo: &Repo, name: &str) -> bool {
    let name = name.trim_start_matches("../").trim_start_matches("./");
    repo.paths()
        .any(|path| path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('/')))
}

/// The description of the architecture is there, and short.
pub(super) fn architecture(repo: &Repo) -> Vec<Finding> {
    let path = "docs/ARCHITECTURE.md";
    let Some(text) = repo.text(path) else { return vec![Finding::error(path, "is missing")] };
    let words = text.split_whitespace().count();
    let text = format!("has {words} words; at most {MAX_ARCHITECTURE_WORDS}, so that it is read");
    if words > MAX_ARCHITECTURE_WORDS { vec![Finding::error(path, text)] } else { Vec::new() }
}

/// The list of changes has a place for the next one.
pub(super) fn changelog(repo: &Repo) -> Vec<Finding> {
    let path = "CHANGELOG.md";
    let has_place =
        repo.text(path).is_some_and(|text| text.lines().any(|line| line.starts_with("## [Unreleased]")));
    if has_place { Vec::new() } else { vec![Finding::error(path, "has no section `## [Unreleased]`")] }
}

/// Returns the lines outside of code blocks with their numbers, and with `inline code` taken out.
fn prose(text: &str) -> Vec<(usize, String)> {
    let mut in_block = false;
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if !in_block {
            let without_code = line.split('`').step_by(2).collect::<Vec<_>>().join("code");
            lines.push((index + 1, without_code));
        }
    }
    lines
}

/// Returns where the links of a line lead: `[text](target)`, and the definition `[name]: target`.
fn targets(line: &str) -> Vec<&str> {
    let inline = line.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
    let definition =
        line.strip_prefix('[').and_then(|rest| rest.split_once("]: ")).map(|(_, target)| target.trim());
    inline.chain(definition).filter(|target| !target.is_empty()).collect()
}

/// Looks for what a link in the file at `from` names; returns what is wrong with it.
fn follow(repo: &Repo, from: &str, target: &str) -> Result<(), String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return Ok(());
    }
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = if file.is_empty() {
        from.to_owned()
    } else {
        resolve(from, file).ok_or_else(|| format!("`{target}` leads out of the repository"))?
    };
    if !repo.has(&path) {
        return Err(format!("`{target}` leads to nothing"));
    }
    let text = repo.text(&path).filter(|_| path.ends_with(".md") && !anchor.is_empty());
    match text {
        Some(text) if !anchors(text).contains(anchor) => {
            Err(format!("`{target}` names a heading that is not there"))
        }
        _ => Ok(()),
    }
}

/// Returns the path from the root of the repository to what `link` means in the file at `from`.
fn resolve(from: &str, link: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Returns the names that the usual renderers give to the headings of a text.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings =
        text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    headings
        .map(|heading| {
            let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.collect::<String>().to_lowercase().replace(' ', "-")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(text: &str) -> Vec<String> {
        let files = [("docs/a.md", text), ("docs/b.md", "# One Two: 3"), ("README.md", "")];
        links(&Repo::sample(&files)).into_iter().map(|finding| finding.text).collect()
    }

    #[test]
    fn links_to_files_folders_headings_and_the_web_are_in_order() {
        let text = "[a](b.md) [b](../README.md) [c](../docs) [d](b.md#one-two-3) [e](https://example.org/x)\n[f]: b.md";
        assert_eq!(broken(text), Vec::<String>::new());
    }

    #[test]
    fn links_to_nothing_are_found() {
        assert_eq!(broken("[a](c.md) and [b](../../x.md)").len(), 2);
        assert_eq!(broken("[a]: c.md").len(), 1);
        assert_eq!(broken("[a](b.md#three)"), ["`b.md#three` names a heading that is not there"]);
        assert_eq!(broken("# Here\n[a](#there)").len(), 1);
    }

    #[test]
    fn what_looks_like_a_link_in_code_is_none() {
        assert!(broken("`a[b](c)`\n```\n[a](c.md)\n```").is_empty());
    }

    #[test]
    fn a_document_that_is_named_but_not_there_is_found() {
        let code =
            "// See docs/b.md, `b.md` and https://example.org/c.md.\n// See NOTES.md.\nlet d = \"e.md\";";
        let files = [("docs/b.md", "As [c](../docs/b.md) and `f.md` say"), ("src/lib.rs", code)];
        let found: Vec<_> = mentions(&Repo::sample(&files)).into_iter().map(|finding| finding.text).collect();
        assert_eq!(found, ["names `NOTES.md`, which is not there", "names `f.md`, which is not there"]);
    }

    #[test]
    fn an_architecture_that_is_missing_or_too_long_is_found() {
        assert_eq!(architecture(&Repo::sample(&[])).len(), 1);
        let of =
            |words: usize| architecture(&Repo::sample(&[("docs/ARCHITECTURE.md", &"word ".repeat(words))]));
        assert!(of(MAX_ARCHITECTURE_WORDS).is_empty());
        assert_eq!(of(MAX_ARCHITECTURE_WORDS + 1).len(), 1);
    }

    #[test]
    fn a_changelog_without_a_place_for_the_next_change_is_found() {
        assert!(changelog(&Repo::sample(&[("CHANGELOG.md", "# Changelog\n\n## [Unreleased]\n")])).is_empty());
        assert_eq!(changelog(&Repo::sample(&[("CHANGELOG.md", "# Changelog\n\n## 0.1.0\n")])).len(), 1);
    }
}
