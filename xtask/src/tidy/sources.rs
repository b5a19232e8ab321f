//! What Rust files must not contain, and how long they may be.

use super::{
    Finding,
    repo::Repo,
    source::{Line, has_word},
};

/// From how many lines, those of tests not counted, a file is pointed out. Lower: good files are cut in two;
/// higher: they grow into the thousands before anybody looks.
const LONG_FILE_LINES: usize = 600;

/// From how many lines, those of tests not counted, a file is refused.
const MAX_FILE_LINES: usize = 1_000;

/// What is written only for the moment, or hides a test that does not hold.
const FORBIDDEN_CODE: &[(&str, &str)] = &[
    ("#[ignore", "a test runs or does not exist"),
    ("#[should_panic", "assert on an error value"),
    ("todo!", "nothing is left for later inside of the code"),
    ("unimplemented!", "nothing is left for later inside of the code"),
    ("dbg!", "it is for the moment only"),
];

/// Words in comments that announce work which was not done.
const UNFINISHED: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

/// Where one developer's files are. Split, so that this file does not contain them.
const MACHINE_PATHS: &[&str] =
    &[concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/Us", "ers/")];

/// No file is so long that one cannot read it in one go.
pub(super) fn lengths(repo: &Repo) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, source) in repo.sources() {
        let lines = source.lines().filter(|line| !line.is_test).count();
        let text = format!(
            "has {lines} lines without tests; split it ({LONG_FILE_LINES} is long, {MAX_FILE_LINES} the limit)"
        );
        if lines > MAX_FILE_LINES {
            findings.push(Finding::error(path, text));
        } else if lines > LONG_FILE_LINES {
            findings.push(Finding::warning(path, text));
        }
    }
    findings
}

/// No code for the moment, no test that is switched off, and no lint that is without a reason.
pub(super) fn forbidden_code(repo: &Repo) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, source) in repo.sources() {
        for line in source.lines() {
            let squeezed: String = line.code.split_whitespace().collect();
            for (pattern, reason) in
                FORBIDDEN_CODE.iter().filter(|(pattern, _)| has_start_of_word(&squeezed, pattern))
            {
                findings.push(Finding::error(place(path, line), format!("`{pattern}`: {reason}")));
            }
        }
        for (line, attribute) in attributes(source.lines()) {
            let silences = ["#[allow(", "#![allow("].iter().any(|start| attribute.starts_with(start));
            if silences && !has_word(&attribute, "reason") {
                findings.push(Finding::error(
                    place(path, line),
                    "`allow` without a reason; better `expect` with one",
                ));
            }
        }
    }
    findings
}

/// No test waits for the clock: it would be slow on a fast machine, and wrong on a slow one.
pub(super) fn sleeping_tests(repo: &Repo) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, source) in repo.sources() {
        for line in source.lines().filter(|line| line.is_test && calls_sleep(&line.code)) {
            findings.push(Finding::error(place(path, line), "a test waits for an event, not for the clock"));
        }
    }
    findings
}

/// No comment announces work that was not done.
pub(super) fn unfinished(repo: &Repo) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, source) in repo.sources() {
        for line in source.lines() {
            for word in UNFINISHED.iter().filter(|word| has_word(&line.comment, word)) {
                findings.push(Finding::error(
                    place(path, line),
                    format!("`{word}`: do it, or describe what is so"),
                ));
            }
        }
    }
    findings
}

/// No file knows where somebody's copy of the repository was.
pub(super) fn machine_paths(repo: &Repo) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in repo.texts() {
        for (index, line) in text.lines().enumerate() {
            for folder in MACHINE_PATHS.iter().filter(|folder| has_absolute_path(line, folder)) {
                findings.push(Finding::error(
                    format!("{path}:{}", index + 1),
                    format!("`{folder}` is a path of one machine"),
                ));
            }
        }
    }
    findings
}

fn place(path: &str, line: &Line) -> String {
    format!("{path}:{}", line.number)
}

/// Tells whether `pattern` stands in `text` other than as the end of a longer word.
fn has_start_of_word(text: &str, pattern: &str) -> bool {
    text.match_indices(pattern).any(|(at, _)| {
        let before = text.get(..at).and_then(|text| text.chars().next_back());
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

/// Tells whether a function called `sleep` is called; a method of that name may be anything.
fn calls_sleep(code: &str) -> bool {
    code.match_indices("sleep(").any(|(at, _)| {
        let before = code.get(..at).unwrap_or_default();
        let is_defined = before.trim_end().ends_with("fn");
        !is_defined && !before.ends_with(|c: char| c == '.' || c == '_' || c.is_alphanumeric())
    })
}

/// Tells whether `folder` begins a path in `line`, rather than being a part of a longer one.
fn has_absolute_path(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        let before = line.get(..at).and_then(|text| text.chars().next_back());
        !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '}' | '~' | '*'))
    })
}

/// Puts each attribute together, which may run over several lines; returns it with the line it begins on.
fn attributes<'a>(lines: impl Iterator<Item = &'a Line>) -> Vec<(&'a Line, String)> {
    let mut done = Vec::new();
    let mut open: Option<(&Line, String)> = None;
    for line in lines {
        let code = line.code.trim();
        let (start, mut text) = match open.take() {
            Some(open) => open,
            None if code.starts_with("#[") || code.starts_with("#![") => (line, String::new()),
            None => continue,
        };
        text.push_str(&code.replace(' ', ""));
        let depth = text.matches('[').count().saturating_sub(text.matches(']').count());
        if depth == 0 {
            done.push((start, text));
        } else {
            open = Some((start, text));
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_code(check: fn(&Repo) -> Vec<Finding>, text: &str) -> Vec<String> {
        let findings = check(&Repo::sample(&[("a/src/lib.rs", text)]));
        findings.into_iter().map(|finding| finding.place).collect()
    }

    #[test]
    fn a_long_file_is_pointed_out_and_a_longer_one_refused() {
        let of = |lines: usize| lengths(&Repo::sample(&[("a/src/lib.rs", &"x();\n".repeat(lines))]));
        assert!(of(LONG_FILE_LINES - 1).is_empty());
        assert_eq!(of(LONG_FILE_LINES)[0].severity, super::super::Severity::Warning);
        assert_eq!(of(MAX_FILE_LINES)[0].severity, super::super::Severity::Error);
    }

    #[test]
    fn tests_do_not_count_as_length() {
        let text = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "x();\n".repeat(MAX_FILE_LINES));
        assert!(in_code(lengths, &text).is_empty());
    }

    #[test]
    fn code_for_the_moment_is_found() {
        let text = "#[ignore = \"slow\"]\n#[should_panic]\nfn a() { todo!() }\nunimplemented!();\ndbg!(a);";
        assert_eq!(in_code(forbidden_code, text).len(), 5);
    }

    #[test]
    fn what_stands_in_a_string_or_a_comment_is_not_code() {
        assert!(in_code(forbidden_code, "// dbg!(a)\nlet a = \"todo!\"; my_dbg!(a);").is_empty());
    }

    #[test]
    fn allow_needs_a_reason_also_over_several_lines() {
        assert_eq!(in_code(forbidden_code, "\n#[allow(dead_code)]"), ["a/src/lib.rs:2"]);
        assert_eq!(in_code(forbidden_code, "#![allow(\n    dead_code,\n)]"), ["a/src/lib.rs:1"]);
        assert!(in_code(forbidden_code, "#[allow(\n    dead_code,\n    reason = \"why\"\n)]").is_empty());
    }

    #[test]
    fn a_sleeping_test_is_found_and_a_sleeping_program_is_not() {
        let text = "fn a() { thread::sleep(b); }\n#[cfg(test)]\nmod tests {\n  tokio::time::sleep(c).await;\n  sleep(d);\n  node.sleep();\n}";
        assert_eq!(in_code(sleeping_tests, text), ["a/src/lib.rs:4", "a/src/lib.rs:5"]);
    }

    #[test]
    fn announced_work_is_found() {
        let text = format!("// {}: later\nlet {} = 1;", UNFINISHED[0], UNFINISHED[0]);
        assert_eq!(in_code(unfinished, &text), ["a/src/lib.rs:1"]);
    }

    #[test]
    fn a_path_of_one_machine_is_found_in_any_file() {
        let text = format!("see {}notes.md\nand https://host{}a", MACHINE_PATHS[0], MACHINE_PATHS[0]);
        let findings = machine_paths(&Repo::sample(&[("docs/a.md", &text)]));
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].place, "docs/a.md:1");
    }
}
