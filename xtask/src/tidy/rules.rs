//! The rules of the protocol: each is stated once, and cited by the code that keeps it and by a test of it.
//!
//! A rule is stated in `docs/PROTOCOL.md` or a file of `docs/protocol/`, where a heading, a list item or a
//! paragraph begins with its bold number (`**Rule N.M**`; in a heading, without the stars). It is cited in a
//! comment: `Rule N.M`, or several after `Rules`, with commas or "and" between them, or from one "to" another.

use std::collections::{BTreeMap, BTreeSet};

use super::{Finding, repo::Repo};

/// What may stand between the numbers of one citation.
const JOINTS: &[&str] = &[", and ", "and ", "to ", ",", "–", "/"];

/// Every rule is cited by code and by a test, and every citation is of a rule that exists.
pub(super) fn citations(repo: &Repo) -> Vec<Finding> {
    let (rules, mut findings) = stated(repo);
    if rules.is_empty() {
        findings.push(Finding::error("docs/PROTOCOL.md", "states no rule"));
    }
    let mut by_code: BTreeSet<String> = BTreeSet::new();
    let mut by_test: BTreeSet<String> = BTreeSet::new();
    for (path, source) in repo.sources() {
        for line in source.lines() {
            for number in cited(&line.comment) {
                if !rules.contains_key(&number) {
                    let place = format!("{path}:{}", line.number);
                    findings
                        .push(Finding::error(place, format!("cites a rule that does not exist: {number}")));
                }
                let seen = if line.is_test { &mut by_test } else { &mut by_code };
                seen.insert(number);
            }
        }
    }
    for (number, place) in rules {
        let by = [(&by_code, "code"), (&by_test, "test")];
        let nobody: Vec<&str> =
            by.iter().filter(|(seen, _)| !seen.contains(&number)).map(|(_, who)| *who).collect();
        if !nobody.is_empty() {
            let text = format!("rule {number} is cited by no {}", nobody.join(" and by no "));
            findings.push(Finding::error(&place, text));
        }
    }
    findings
}

/// Returns the rules with the places where they are stated, and a finding for each that is stated twice.
fn stated(repo: &Repo) -> (BTreeMap<String, String>, Vec<Finding>) {
    let mut rules: BTreeMap<String, String> = BTreeMap::new();
    let mut findings = Vec::new();
    for (path, text) in repo.texts().filter(|(path, _)| is_specification(path)) {
        for (index, line) in text.lines().enumerate() {
            let Some(number) = stated_here(line) else { continue };
            let place = format!("{path}:{}", index + 1);
            if let Some(first) = rules.get(&number) {
                findings.push(Finding::error(place, format!("rule {number} is already stated at {first}")));
            } else {
                rules.insert(number, place);
            }
        }
    }
    (rules, findings)
}

fn is_specification(path: &str) -> bool {
    path == "docs/PROTOCOL.md" || (path.starts_with("docs/protocol/") && path.ends_with(".md"))
}

/// Returns the number of the rule that a line of the specification states.
fn stated_here(line: &str) -> Option<String> {
    let line = line.trim_start();
    let start = if line.starts_with('#') {
        line.trim_start_matches(['#', '*', ' '])
    } else {
        let item = ["- ", "* ", "+ "].iter().find_map(|mark| line.strip_prefix(mark)).unwrap_or(line);
        item.trim_start().strip_prefix("**")?
    };
    number_at_start(start.strip_prefix("Rule ")?).map(|(number, _)| number)
}

/// Returns the numbers of the rules that a comment cites.
fn cited(comment: &str) -> Vec<String> {
    let mut numbers: Vec<String> = Vec::new();
    for (at, word) in comment.match_indices("Rule") {
        let rest = comment.get(at + word.len()..).unwrap_or_default();
        let mut rest = rest.strip_prefix('s').unwrap_or(rest);
        let mut is_range = false;
        while let Some((number, tail)) = number_at_start(rest.trim_start()) {
            let first = numbers.last().filter(|_| is_range);
            let between = first.map(|first| between(first, &number)).unwrap_or_default();
            numbers.extend(between);
            numbers.push(number);
            let tail = tail.trim_start();
            is_range = ["to ", "–"].iter().any(|joint| tail.starts_with(joint));
            rest = JOINTS.iter().find_map(|joint| tail.strip_prefix(joint)).unwrap_or_default();
        }
    }
    numbers
}

/// Returns the numbers between two of one chapter.
fn between(first: &str, last: &str) -> Vec<String> {
    let split = |number: &str| {
        let (chapter, rule) = number.rsplit_once('.')?;
        Some((chapter.to_owned(), rule.parse::<u32>().ok()?))
    };
    match (split(first), split(last)) {
        (Some((chapter, from)), Some((same, to))) if chapter == same => {
            (from + 1..to).map(|rule| format!("{chapter}.{rule}")).collect()
        }
        _ => Vec::new(),
    }
}

/// Splits `4.3` or `4.3.1` from the start of a text; one number alone is not that of a rule.
fn number_at_start(text: &str) -> Option<(String, &str)> {
    let length = text.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(text.len());
    let number = text.get(..length)?.trim_end_matches('.');
    let is_number = number.contains('.') && number.split('.').all(|part| !part.is_empty());
    is_number.then(|| (number.to_owned(), text.get(number.len()..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECIFICATION: (&str, &str) = ("docs/PROTOCOL.md", "## Time\n\n**Rule 4.3** A clock runs.\n");

    fn findings(files: &[(&str, &str)]) -> Vec<String> {
        citations(&Repo::sample(files))
            .into_iter()
            .map(|finding| format!("{}: {}", finding.place, finding.text))
            .collect()
    }

    fn code_and_test(code: &str, test: &str) -> String {
        format!("// {code}\nfn a() {{}}\n#[cfg(test)]\nmod tests {{\n    // {test}\n}}\n")
    }

    #[test]
    fn a_rule_that_code_and_test_cite_is_in_order() {
        let text = code_and_test("Rule 4.3: it runs.", "Rules 4.3.");
        assert!(findings(&[SPECIFICATION, ("a/src/lib.rs", &text)]).is_empty());
    }

    #[test]
    fn a_rule_without_a_test_or_without_code_is_found() {
        let text = code_and_test("Rule 4.3", "nothing");
        assert_eq!(
            findings(&[SPECIFICATION, ("a/src/lib.rs", &text)]),
            ["docs/PROTOCOL.md:3: rule 4.3 is cited by no test"]
        );
        let text = code_and_test("nothing", "Rule 4.3");
        assert_eq!(
            findings(&[SPECIFICATION, ("a/src/lib.rs", &text)]),
            ["docs/PROTOCOL.md:3: rule 4.3 is cited by no code"]
        );
    }

    #[test]
    fn a_citation_of_no_rule_is_found() {
        let text = code_and_test("Rule 4.3, Rule 9.9", "Rule 4.3");
        let found = findings(&[SPECIFICATION, ("a/src/lib.rs", &text)]);
        assert_eq!(found, ["a/src/lib.rs:1: cites a rule that does not exist: 9.9"]);
    }

    #[test]
    fn a_specification_without_rules_is_found() {
        assert_eq!(findings(&[]), ["docs/PROTOCOL.md: states no rule"]);
    }

    #[test]
    fn a_rule_stated_twice_is_found() {
        let text = code_and_test("Rule 4.3", "Rule 4.3");
        let again = ("docs/protocol/time.md", "- **Rule 4.3.** Again.");
        assert_eq!(findings(&[SPECIFICATION, again, ("a/src/lib.rs", &text)]).len(), 1);
    }

    #[test]
    fn rules_are_stated_in_headings_items_and_paragraphs_only() {
        for line in [
            "### Rule 4.3: clocks",
            "### **Rule 4.3**",
            "- **Rule 4.3** x",
            "* **Rule 4.3.** x",
            "**Rule 4.3 (clocks).** x",
        ] {
            assert_eq!(stated_here(line).as_deref(), Some("4.3"), "{line}");
        }
        for line in ["As Rule 4.3 says", "Rule 4.3 says", "- Rule 4.3 says", "**Rule**"] {
            assert_eq!(stated_here(line), None, "{line}");
        }
    }

    #[test]
    fn several_rules_can_be_cited_at_once() {
        assert_eq!(cited("Rules 1.2, 3.4 and 5.6.7. Rule 8.9"), ["1.2", "3.4", "5.6.7", "8.9"]);
        assert_eq!(cited("(Rules 3.4 to 3.6, and 1.2)"), ["3.4", "3.5", "3.6", "1.2"]);
        assert!(cited("Ruler 1.2, Rule N.M, Rule 4").is_empty());
    }
}
