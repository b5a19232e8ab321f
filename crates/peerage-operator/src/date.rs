//! Dates as text, for what is kept and read by people long after.

use peerage_wire::time::UnixTime;

const DAYS_OF_ERA: u64 = 146_097;

/// Writes a time as in `2026-05-01T12:34:56Z` (RFC 3339).
pub(crate) fn utc(time: UnixTime) -> String {
    let secs = time.as_secs();
    // Years begin in March, so that the day that some have more is their last; an era is 400 of them, from the year 0.
    let days = secs / 86_400 + 719_468;
    let day_of_era = days % DAYS_OF_ERA;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = days / DAYS_OF_ERA * 400 + year_of_era + next;
    let (hour, minute, second) = (secs / 3_600 % 24, secs / 60 % 60, secs % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let dates = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_000_000_000, "2001-09-09T01:46:40Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_767_225_600, "2026-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ];
        for (secs, date) in dates {
            assert_eq!(utc(UnixTime::from_secs(secs)), date);
        }
    }
}
