//! The one place that writes to the terminal.

/// Writes a line.
#[expect(clippy::print_stdout, reason = "a program for the command line")]
pub fn line(text: &str) {
    println!("{text}");
}
