//! A Rust file taken apart: what is code, what is comment, and which lines are only for tests.

/// One line of a Rust file.
#[derive(Debug)]
pub(super) struct Line {
    /// The number, from 1.
    pub(super) number: usize,
    /// The code, with blanks for comments and for what stands inside of literals.
    pub(super) code: String,
    /// The comments, with blanks for everything else.
    pub(super) comment: String,
    /// Whether the line is compiled for tests only.
    pub(super) is_test: bool,
}

/// A Rust file by lines.
#[derive(Debug)]
pub(super) struct Source {
    lines: Vec<Line>,
    test_modules: Vec<String>,
}

impl Source {
    pub(super) fn new(text: &str) -> Self {
        let (code, comments) = separate(text);
        let (ranges, test_modules) = test_items(&code);
        let mut start = 0;
        let mut lines = Vec::new();
        for (index, (code, comment)) in code.split('\n').zip(comments.split('\n')).enumerate() {
            let is_test =
                ranges.iter().any(|range| range.start < start + code.len() + 1 && start < range.end);
            start += code.len() + 1;
            lines.push(Line { number: index + 1, code: code.into(), comment: comment.into(), is_test });
        }
        Self { lines, test_modules }
    }

    pub(super) fn lines(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter()
    }

    /// Returns the names of modules in other files that this one declares for tests only.
    pub(super) fn test_modules(&self) -> &[String] {
        &self.test_modules
    }

    /// Notes that the whole file is for tests only.
    pub(super) fn mark_as_test(&mut self) {
        for line in &mut self.lines {
            line.is_test = true;
        }
    }
}

/// Tells whether `word` stands in `text` with nothing beside it that would make it part of a longer word.
pub(super) fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let before = text.get(..at).and_then(|text| text.chars().next_back());
        let after = text.get(at + word.len()..).and_then(|text| text.chars().next());
        !before.is_some_and(is_of_a_word) && !after.is_some_and(is_of_a_word)
    })
}

fn is_of_a_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Code,
    Comment,
    Literal,
}

/// Splits a file into two texts of the same number of lines: code without comments, and comments without code.
fn separate(text: &str) -> (String, String) {
    let mut code = String::new();
    let mut comments = String::new();
    let mut rest = text;
    let mut previous = ' ';
    while !rest.is_empty() {
        let (token, length) = next_token(rest, previous);
        let (piece, tail) = rest.split_at_checked(length).unwrap_or((rest, ""));
        for c in piece.chars() {
            let blank = if c == '\n' { '\n' } else { ' ' };
            code.push(if token == Token::Code { c } else { blank });
            comments.push(if token == Token::Comment { c } else { blank });
            previous = c;
        }
        rest = tail;
    }
    (code, comments)
}

/// Returns the kind and the length in bytes of what `rest` begins with.
fn next_token(rest: &str, previous: char) -> (Token, usize) {
    if rest.starts_with("//") {
        return (Token::Comment, rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return (Token::Comment, block_comment(rest));
    }
    if let Some(length) = (!is_of_a_word(previous)).then(|| prefixed_literal(rest)).flatten() {
        return (Token::Literal, length);
    }
    if rest.starts_with('"') {
        return (Token::Literal, quoted(rest, '"'));
    }
    if rest.starts_with('\'') && is_char_literal(rest) {
        return (Token::Literal, quoted(rest, '\''));
    }
    (Token::Code, rest.chars().next().map_or(1, char::len_utf8))
}

/// Returns the length of a comment that may hold others.
fn block_comment(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(tail) = rest.get(at..).filter(|tail| !tail.is_empty()) {
        let step = if tail.starts_with("/*") {
            depth += 1;
            2
        } else if tail.starts_with("*/") {
            depth = depth.saturating_sub(1);
            2
        } else {
            tail.chars().next().map_or(1, char::len_utf8)
        };
        at += step;
        if depth == 0 {
            break;
        }
    }
    at
}

/// Returns the length of a raw, byte or C literal: `r"…"`, `r#"…"#`, `b"…"`, `b'…'`, `br"…"`, `c"…"`, `cr"…"`.
fn prefixed_literal(rest: &str) -> Option<usize> {
    let prefix = rest.bytes().take_while(|byte| matches!(byte, b'r' | b'b' | b'c')).count();
    let after = rest.get(prefix..)?;
    match rest.get(..prefix)? {
        "r" | "br" | "cr" => {
            let hashes = after.bytes().take_while(|byte| *byte == b'#').count();
            let body = after.get(hashes..)?.strip_prefix('"')?;
            let end = format!("\"{}", "#".repeat(hashes));
            let length = body.find(&end).map_or(body.len(), |at| at + end.len());
            Some(prefix + hashes + 1 + length)
        }
        "b" if after.starts_with('\'') => Some(prefix + quoted(after, '\'')),
        "b" | "c" if after.starts_with('"') => Some(prefix + quoted(after, '"')),
        _ => None,
    }
}

/// Returns the length of a literal that begins and ends with `quote` and may hold escapes.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == quote {
            return at + c.len_utf8();
        }
    }
    rest.len()
}

/// Tells a character from a lifetime.
fn is_char_literal(rest: &str) -> bool {
    let mut chars = rest.chars().skip(1);
    match chars.next() {
        Some('\\') => true,
        Some(_) => chars.next() == Some('\''),
        None => false,
    }
}

/// Finds the items for tests only: where they stand in the code, and the names of those in other files.
fn test_items(code: &str) -> (Vec<std::ops::Range<usize>>, Vec<String>) {
    let mut ranges = Vec::new();
    let mut modules = Vec::new();
    for (start, _) in code.match_indices("#[cfg(") {
        let Some(attribute) = code.get(start..) else { continue };
        let condition = attribute.split(']').next().unwrap_or_default();
        if !has_word(condition, "test") || has_word(condition, "not") {
            continue;
        }
        let item = attribute.get(condition.len() + 1..).unwrap_or_default();
        let length = item_length(item);
        ranges.push(start..start + condition.len() + 1 + length);
        let declared = item.get(..length).and_then(|item| item.strip_suffix(';'));
        let words: Vec<&str> = declared.unwrap_or_default().split_whitespace().collect();
        if let [.., "mod", name] = words.as_slice() {
            modules.push((*name).to_owned());
        }
    }
    (ranges, modules)
}

/// Returns the length of an item: to its `;`, or to the brace that closes its first one.
fn item_length(item: &str) -> usize {
    let mut brackets = 0_usize;
    let mut braces = 0_usize;
    for (at, c) in item.char_indices() {
        match c {
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets = brackets.saturating_sub(1),
            '{' => braces += 1,
            '}' if braces <= 1 => return at + 1,
            '}' => braces -= 1,
            ';' if brackets == 0 && braces == 0 => return at + 1,
            _ => {}
        }
    }
    item.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_not_code() {
        let source = Source::new(
            "let a = \"// b\"; // c\n/* d /* e */ f */ let g = r#\"h \" i\"#;\nlet j = 'k'; let l: &'m str;",
        );
        let code: Vec<_> =
            source.lines().map(|line| line.code.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(code, ["let a = ;", "let g = ;", "let j = ; let l: &'m str;"]);
        let comments: Vec<_> = source.lines().map(|line| line.comment.trim()).collect();
        assert_eq!(comments, ["// c", "/* d /* e */ f */", ""]);
    }

    #[test]
    fn escapes_do_not_end_a_literal() {
        let source = Source::new(r#"a("\"x\\"); b('\''); c(b'"'); d"#);
        let line = source.lines().next().unwrap();
        assert_eq!(line.code.split_whitespace().collect::<String>(), "a();b();c();d");
    }

    #[test]
    fn a_literal_that_never_ends_takes_the_rest() {
        assert_eq!(Source::new("a \"b\nc").lines().map(|line| line.code.trim().len()).sum::<usize>(), 1);
    }

    #[test]
    fn lines_of_test_items_are_known() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b(c: [u8; 3]) {}\n}\nfn d() {}\n#[cfg(not(test))]\nfn e() {}";
        let source = Source::new(text);
        let tests: Vec<_> = source.lines().filter(|line| line.is_test).map(|line| line.number).collect();
        assert_eq!(tests, [2, 3, 4, 5]);
    }

    #[test]
    fn a_test_item_may_be_one_function_or_a_module_elsewhere() {
        let source = Source::new(
            "#[cfg(all(test, unix))]\nfn a(b: [u8; 2]) {\n}\nfn c() {}\n#[cfg(test)]\npub(crate) mod d;\nfn e() {}",
        );
        let tests: Vec<_> = source.lines().filter(|line| line.is_test).map(|line| line.number).collect();
        assert_eq!(tests, [1, 2, 3, 5, 6]);
        assert_eq!(source.test_modules(), ["d"]);
    }

    #[test]
    fn a_word_is_not_found_inside_of_another() {
        assert!(has_word("a sleep(b)", "sleep"));
        assert!(!has_word("asleep sleep_until", "sleep"));
    }
}
