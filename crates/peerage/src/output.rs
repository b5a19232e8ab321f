//! Everything that goes to standard output.
//!
//! Text for people may hold names that came over the network, so whatever could steer a terminal is replaced.

use crate::failure::{Failure, Result};
use serde::Serialize;
use std::io::{self, Write as _};

/// Writes results, either as text or as JSON.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Writes a result: as JSON on one line, or as the text that `text` makes of it.
    pub(crate) fn result<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> Result {
        if self.json { self.json(value) } else { self.text(&text(value)) }
    }

    /// Writes text for people, with a line end; nothing if it is empty.
    pub(crate) fn text(self, text: &str) -> Result {
        if text.is_empty() {
            return Ok(());
        }
        self.bytes(format!("{}\n", plain(text).trim_end_matches('\n')).as_bytes())
    }

    /// Writes bytes as they are, such as a completion script.
    pub(crate) fn bytes(self, bytes: &[u8]) -> Result {
        let mut stdout = io::stdout().lock();
        // At once, because the reader may be a program that waits for this line.
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            // The reader has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) => Err(Failure::new("cannot write to standard output").why(error.to_string())),
            Ok(()) => Ok(()),
        }
    }

    /// Reports a failure: for people on standard error, and for programs that asked for JSON also on standard output.
    pub(crate) fn failure(self, failure: &Failure) {
        #[derive(Serialize)]
        struct Reported<'a> {
            error: &'a Failure,
        }
        // If even that fails there is nobody left to tell.
        _ = writeln!(io::stderr().lock(), "{}", failure.to_text());
        if self.json {
            _ = self.json(&Reported { error: failure });
        }
    }

    /// Says whether results are written as JSON.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Writes a value as JSON on one line.
    pub(crate) fn json<T: Serialize>(self, value: &T) -> Result {
        let mut line =
            serde_json::to_vec(value).map_err(|error| Failure::from(anyhow::Error::from(error)))?;
        line.push(b'\n');
        self.bytes(&line)
    }
}

/// Replaces what could steer a terminal; line ends stay.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Lays rows out in columns that are as wide as their widest cell; `none` is said when there are no rows.
pub(crate) fn table<const N: usize>(heads: [&str; N], rows: &[[String; N]], none: &str) -> String {
    if rows.is_empty() {
        return none.to_owned();
    }
    let mut widths = heads.map(|head| head.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        // A line end in a cell could pretend to be another row.
        let cells = cells.map(|cell| cell.replace('\n', "\u{fffd}"));
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(heads)];
    lines.extend(rows.iter().map(|row| line(row.each_ref().map(String::as_str))));
    lines.join("\n")
}

/// Lays pairs out as `name  value` lines; pairs without a value are left out.
pub(crate) fn pairs(pairs: &[(&str, String)]) -> String {
    let shown: Vec<_> = pairs.iter().filter(|(_, value)| !value.is_empty()).collect();
    let width = shown.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let indent = format!("\n{:width$}  ", "");
    let line = |(name, value): &&(&str, String)| format!("{name:width$}  {}", value.replace('\n', &indent));
    shown.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Writes a duration in its two largest units, as in `3 d 4 h`.
pub(crate) fn duration(ms: u64) -> String {
    let s = ms / 1000;
    let (d, h, m) = (s / 86_400, s / 3_600 % 24, s / 60 % 60);
    match (d, h, m) {
        (0, 0, 0) if s == 0 => format!("{ms} ms"),
        (0, 0, 0) => format!("{s} s"),
        (0, 0, _) => format!("{m} min {} s", s % 60),
        (0, _, _) => format!("{h} h {m} min"),
        _ => format!("{d} d {h} h"),
    }
}

/// Writes when something is, as seen from `now_ms`: `in 3 d 4 h` or `5 s ago`.
pub(crate) fn when(at_ms: u64, now_ms: u64) -> String {
    if at_ms > now_ms {
        format!("in {}", duration(at_ms - now_ms))
    } else {
        format!("{} ago", duration(now_ms - at_ms))
    }
}

/// Writes a number of bytes in binary units.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut tenths = u128::from(count) * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS.get(unit).copied().unwrap_or_default())
}

/// Says yes or no.
pub(crate) fn yes_no(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

/// Writes values one after the other with commas.
pub(crate) fn list<T: ToString>(values: impl IntoIterator<Item = T>) -> String {
    values.into_iter().map(|value| value.to_string()).collect::<Vec<_>>().join(", ")
}

/// Writes the first characters of an id, enough to tell a few hundred apart.
pub(crate) fn short(id: &str) -> String {
    const SHORT_ID_CHARS: usize = 20;
    id.chars().take(SHORT_ID_CHARS).collect()
}

/// Returns the time of this computer in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["hp".to_owned(), "ipp".to_owned()], ["käse-3rd".to_owned(), "raw".to_owned()]];
        let text = table(["NAME", "SERVICE"], &rows, "No devices.");
        assert_eq!(text, "NAME      SERVICE\nhp        ipp\nkäse-3rd  raw");
        assert_eq!(table(["NAME"], &[], "No devices."), "No devices.");
        assert_eq!(table(["NAME"], &[["a\nb".to_owned()]], ""), "NAME\na\u{fffd}b");
    }

    #[test]
    fn pairs_are_aligned_and_empty_ones_left_out() {
        let text = pairs(&[("a", "1\n2".to_owned()), ("none", String::new()), ("bcd", "3".to_owned())]);
        assert_eq!(text, "a    1\n     2\nbcd  3");
    }

    #[test]
    fn durations_and_sizes_are_written_for_people() {
        for (ms, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (59_000, "59 s"),
            (61_000, "1 min 1 s"),
            (7_380_000, "2 h 3 min"),
            (90_000_000, "1 d 1 h"),
        ] {
            assert_eq!(duration(ms), text);
        }
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (67_108_864, "64.0 MiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(when(5_000, 0), "in 5 s");
        assert_eq!(when(0, 5_000), "5 s ago");
    }
}
