//! What the demonstration says, for a terminal of 80 columns.

use std::io::{self, IsTerminal as _, Write as _};

use crate::output::plain;

/// Columns of a line, at most: a terminal has 80 unless its owner made it wider.
const WIDTH: usize = 78;

/// Says what happens: on standard output, or on standard error if that belongs to the result.
#[derive(Debug)]
pub(super) struct Screen {
    to_stderr: bool,
    steps: u32,
}

impl Screen {
    pub(super) fn new(to_stderr: bool) -> Self {
        Self { to_stderr, steps: 0 }
    }

    /// Begins a step.
    pub(super) fn step(&mut self, title: &str) {
        self.steps += 1;
        self.lines(&format!("\n{}. {title}", self.steps));
    }

    /// Explains the step.
    pub(super) fn tell(&self, text: &str) {
        self.lines(&wrap(text, 3));
    }

    /// Shows how things are now, in place of what it showed so before; nothing if the reader is no terminal.
    pub(super) fn now(&self, text: &str) {
        let mut stdout = io::stdout().lock();
        if !self.to_stderr && stdout.is_terminal() {
            let line: String = plain(text).chars().take(WIDTH).collect();
            _ = write!(stdout, "\r{line:WIDTH$}").and_then(|()| stdout.flush());
        }
    }

    /// Writes lines as they are.
    pub(super) fn lines(&self, text: &str) {
        let line = format!("{}\n", plain(text));
        // Whoever closed the terminal has seen enough.
        _ = if self.to_stderr {
            io::stderr().lock().write_all(line.as_bytes())
        } else {
            let mut stdout = io::stdout().lock();
            stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush())
        };
    }
}

/// Breaks each line of a text at spaces, and indents all by so many columns.
pub(super) fn wrap(text: &str, indent: usize) -> String {
    let mut lines: Vec<String> = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            if !line.is_empty() && indent + line.chars().count() + 1 + word.chars().count() > WIDTH {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(line);
    }
    let indented = lines.into_iter().map(|line| format!("{:indent$}{line}", "").trim_end().to_owned());
    indented.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_is_wider_than_a_terminal_and_no_word_is_lost() {
        let text = "a few words and then some more ".repeat(20);
        let wrapped = wrap(&text, 3);
        assert!(
            wrapped
                .lines()
                .all(|line| line.chars().count() <= WIDTH
                    && line.starts_with("   a") | line.starts_with("   "))
        );
        assert!(wrapped.lines().count() > 5);
        assert!(wrapped.split_whitespace().eq(text.split_whitespace()));
        assert_eq!(wrap("one\ntwo", 2), "  one\n  two");
    }
}
