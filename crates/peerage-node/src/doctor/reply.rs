//! An HTTP answer of whoever answers, read with suspicion.

use std::time::{SystemTime, UNIX_EPOCH};

/// The names of months in a date (RFC 9110, section 5.6.7).
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// An answer as far as it has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) status: u16,
    fields: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Reply {
    /// Reads an answer whose head is complete.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let (head, body) = bytes.split_at_checked(end + 4)?;
        let head = String::from_utf8_lossy(head);
        let mut lines = head.lines();
        let status = lines.next()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
        let fields = lines.filter_map(|line| line.split_once(':'));
        let fields =
            fields.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
        Some(Self { status, fields, body: body.to_vec() })
    }

    /// Returns the first value of a field, whose name is given in small letters.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(has, _)| has == name).map(|(_, value)| value.as_str())
    }

    /// Returns whether nothing more is to come.
    pub(super) fn is_complete(&self) -> bool {
        let length = self.field("content-length").and_then(|length| length.parse::<usize>().ok());
        length.is_some_and(|length| self.body.len() >= length)
    }

    /// Returns whether it is for a browser: a page, or the way to one.
    pub(super) fn is_portal(&self) -> bool {
        let is_page = self.field("content-type").is_some_and(|kind| kind.starts_with("text/html"));
        matches!(self.status, 300..=399 | 511) || (self.status == 200 && is_page)
    }

    /// Returns the host to which it sends a browser.
    pub(super) fn location(&self) -> Option<&str> {
        let (_, rest) = self.field("location")?.split_once("://")?;
        rest.split(['/', '?', '#']).next().and_then(|host| host.rsplit('@').next())
    }

    /// Returns what must be added to this computer's clock to get that of the server.
    pub(super) fn clock_offset_ms(&self) -> Option<i64> {
        let said = i64::try_from(seconds(self.field("date")?)?).ok()?;
        let own = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_millis();
        // The server cuts off parts of a second.
        Some(said * 1_000 + 500 - i64::try_from(own).ok()?)
    }
}

/// Reads a date such as `Sun, 06 Nov 1994 08:49:37 GMT` as seconds since 1970.
fn seconds(date: &str) -> Option<u64> {
    let mut parts = date.split([' ', ':']).skip(1);
    let day: u64 = parts.next()?.parse().ok().filter(|day| (1..=31).contains(day))?;
    let month = parts.next()?;
    let month = 1 + u64::try_from(MONTHS.iter().position(|name| *name == month)?).ok()?;
    let year: u64 = parts.next()?.parse().ok().filter(|year| (1970..=9999).contains(year))?;
    let mut below = |limit: u64| parts.next()?.parse().ok().filter(|part: &u64| *part < limit);
    let (hours, minutes, seconds) = (below(24)?, below(60)?, below(61)?);
    // Years begin in March here, so that a leap day is the last of one.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days_before = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    // The day of the epoch, counted in the same way.
    let days = days_before.checked_sub(719_468)?;
    Some(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_when_its_head_is_complete() {
        let text = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-Y:  z \r\n\r\nab";
        assert_eq!(Reply::parse(&text[..40]), None);
        let reply = Reply::parse(text).unwrap();
        assert_eq!((reply.status, reply.field("x-y"), reply.is_complete()), (200, Some("z"), false));
        assert_eq!(Reply::parse(b"SSH-2.0-x\r\n\r\n"), None);
    }

    #[test]
    fn a_page_and_the_way_to_one_are_a_portals() {
        let reply = |text: &str| Reply::parse(text.as_bytes()).unwrap();
        let moved = reply("HTTP/1.1 302 Found\r\nLocation: http://u@login.example/x?secret\r\n\r\n");
        assert_eq!((moved.is_portal(), moved.location()), (true, Some("login.example")));
        assert!(reply("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n").is_portal());
        assert!(!reply("HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\n\r\n").is_portal());
    }

    #[test]
    fn the_date_of_an_answer_is_read_and_nonsense_is_not() {
        for (date, expected) in [
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Thu, 29 Feb 2024 23:59:59 GMT", Some(1_709_251_199)),
            ("Sun, 00 Nov 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 24:49:37 GMT", None),
            ("Sunday, 06-Nov-94 08:49:37 GMT", None),
            ("", None),
        ] {
            assert_eq!(seconds(date), expected, "{date}");
        }
    }
}
