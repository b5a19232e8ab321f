//! Why a datagram was dropped without effect: a closed list, one counter each.
//!
//! Bad input from outside is never an error and never logged above debug; it is counted here, and the
//! counters are what `peerage status` and the metrics show.

/// A reason to drop a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(usize)]
pub enum Discard {
    /// Fewer bytes than its form needs.
    TooShort,
    /// More bytes than any datagram of the protocol.
    TooLong,
    /// A form that this version does not know.
    UnknownForm,
    /// Addressed to another node.
    Misaddressed,
    /// Stamped before this process started, so that it may be a replay.
    BeforeStart,
    /// Its context is not known here.
    UnknownContext,
    /// Its context has ended.
    SpentContext,
    /// The receiver's key that it names is not known here.
    UnknownKey,
    /// The sender is not known and did not introduce itself.
    UnknownSender,
    /// The introduction does not have its form.
    BadIntroduction,
    /// The introduction's record is not valid.
    BadMembership,
    /// The introduction's key statement is not valid.
    BadStatement,
    /// It does not open: forged, altered, or for somebody else.
    BadSeal,
    /// No cookie, or a wrong one, while there is too much work.
    BadCookie,
    /// Too many key agreements or hints from one place.
    RateLimited,
    /// Its time is outside the window.
    StaleTime,
    /// An operator gave another time than one by whose time this node goes.
    OperatorsDisagree,
    /// It has arrived before.
    Replayed,
    /// What is inside is malformed.
    Malformed,
    /// A command that this version, or this role, does not handle.
    UnknownCommand,
    /// The first byte says read and the command is none, or the other way round.
    WrongClass,
    /// The sender was revoked.
    Revoked,
    /// The sender's record has expired.
    Expired,
    /// The sender may not ask for this.
    Forbidden,
    /// It is about a part of the table that is not held here.
    OutOfRange,
    /// A reply or hint that nobody waits for.
    Unsolicited,
    /// A record inside cannot be taken.
    BadRecord,
    /// A limit of this node was reached.
    Full,
    /// The answer would have been longer than the request.
    NoRoom,
}

impl Discard {
    /// All reasons with their names in metrics and status.
    pub const ALL: [(Self, &'static str); 29] = [
        (Self::TooShort, "too_short"),
        (Self::TooLong, "too_long"),
        (Self::UnknownForm, "unknown_form"),
        (Self::Misaddressed, "misaddressed"),
        (Self::BeforeStart, "before_start"),
        (Self::UnknownContext, "unknown_context"),
        (Self::SpentContext, "spent_context"),
        (Self::UnknownKey, "unknown_key"),
        (Self::UnknownSender, "unknown_sender"),
        (Self::BadIntroduction, "bad_introduction"),
        (Self::BadMembership, "bad_membership"),
        (Self::BadStatement, "bad_statement"),
        (Self::BadSeal, "bad_seal"),
        (Self::BadCookie, "bad_cookie"),
        (Self::RateLimited, "rate_limited"),
        (Self::StaleTime, "stale_time"),
        (Self::OperatorsDisagree, "operators_disagree"),
        (Self::Replayed, "replayed"),
        (Self::Malformed, "malformed"),
        (Self::UnknownCommand, "unknown_command"),
        (Self::WrongClass, "wrong_class"),
        (Self::Revoked, "revoked"),
        (Self::Expired, "expired"),
        (Self::Forbidden, "forbidden"),
        (Self::OutOfRange, "out_of_range"),
        (Self::Unsolicited, "unsolicited"),
        (Self::BadRecord, "bad_record"),
        (Self::Full, "full"),
        (Self::NoRoom, "no_room"),
    ];
}

/// How often each reason occurred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Discards([u64; Discard::ALL.len()]);

impl Discards {
    /// Counts one.
    pub fn count(&mut self, reason: Discard) {
        if let Some(counter) = self.0.get_mut(reason as usize) {
            *counter = counter.saturating_add(1);
        }
    }

    /// Returns how often a reason occurred.
    pub fn of(&self, reason: Discard) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or(0)
    }

    /// Returns the sum of all counters.
    pub fn total(&self) -> u64 {
        self.0.iter().fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// Returns the reasons that occurred, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Discard::ALL.iter().map(|(reason, name)| (*name, self.of(*reason))).filter(|(_, n)| *n > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_counter_of_its_own() {
        let mut discards = Discards::default();
        for (at, (reason, _)) in Discard::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, at);
            discards.count(*reason);
            assert_eq!(discards.of(*reason), 1);
        }
        assert_eq!(discards.total(), Discard::ALL.len() as u64);
        assert_eq!(discards.iter().count(), Discard::ALL.len());
    }
}
