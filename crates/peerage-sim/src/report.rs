//! The one place that writes to the terminal.

/// Writes a line.
#[expect(clippy::print_stdout, reason = "a program for the command line")]
pub fn line(text: &str) {
    println!("{text}");
}

/// Writes a line that is no part of what was found.
#[expect(clippy::print_stderr, reason = "a program for the command line")]
pub fn aside(text: &str) {
    eprintln!("{text}");
}
