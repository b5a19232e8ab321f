//! Why a session or a link ends.

use std::fmt;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// Why a session (RESET) or a link (CLOSE) ends. The numbers are stable (Rule 7.4); one that this
        /// version does not know stays what it is and ends session or link all the same.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $($(#[$doc])* $name,)*
            /// A number without a meaning in this version.
            Unknown(u16),
        }

        impl Code {
            /// All codes with a meaning, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Returns the code with this number.
            pub const fn from_u16(number: u16) -> Self {
                match number {
                    $($number => Self::$name,)*
                    other => Self::Unknown(other),
                }
            }

            /// Returns the number.
            pub const fn to_u16(self) -> u16 {
                match self {
                    $(Self::$name => $number,)*
                    Self::Unknown(number) => number,
                }
            }
        }

        impl fmt::Display for Code {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$name => f.write_str($text),)*
                    Self::Unknown(number) => write!(f, "reason {number}, which this version does not know"),
                }
            }
        }
    };
}

codes! {
    /// The other side has no valid Node record of the asker.
    NotMember = 1, "the node is not a member";
    /// The asker, or the one asked, has been revoked.
    Revoked = 2, "the node has been revoked";
    /// The asker belongs to another domain.
    ForeignDomain = 3, "the node belongs to another domain";
    /// No Head that is fresh enough, so that a revocation could have been missed.
    StaleHead = 4, "there is no fresh Head of the domain";
    /// The domain's or the device's policy says no.
    NotAllowed = 5, "policy does not allow it";

    /// No such device is registered in the domain.
    UnknownDevice = 16, "the device is not registered";
    /// The device has no such service.
    UnknownService = 17, "the device has no such service registered";
    /// The device was not found at this location, or did not answer.
    DeviceUnreachable = 18, "the device is unreachable";
    /// The device was found, and refused the connection.
    DeviceRefused = 19, "the device refused the connection";
    /// What answered shows another certificate than the registered one.
    PinMismatch = 20, "the device's certificate is not the registered one";
    /// The request in OPEN cannot be read.
    BadRequest = 21, "the request cannot be read";

    /// A limit on tunnels, streams or memory.
    Limit = 32, "a limit was reached";
    /// The node stops, or its administrator closed the tunnel.
    Shutdown = 33, "the node is shutting down";
    /// Nothing used the link for a long time.
    Idle = 34, "nothing used the link";
    /// RESUME names a session that the acceptor does not have.
    UnknownSession = 35, "the session is unknown";
    /// RESUME does not have a higher carrier number than the one before.
    StaleCarrier = 36, "the carrier number is not higher than the one before";
    /// No carrier was found for the session for too long.
    Expired = 37, "the session was without a carrier for too long";
    /// HELLO names another sender or receiver than the keys in TLS.
    WrongPeer = 38, "the link leads to another node than intended";
    /// HELLO states a version that this node does not speak.
    UnsupportedVersion = 39, "the version is not supported";

    /// The application, at either end, broke its connection off.
    ApplicationReset = 48, "the application reset its connection";

    /// The other side did what Peerage's rules forbid.
    ProtocolViolation = 64, "the rules of the protocol were broken";
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rule 7.4: numbers outlive names, and unknown ones stay what they are.
    #[test]
    fn every_number_names_one_code_and_comes_back() {
        for number in 0..=u16::MAX {
            assert_eq!(Code::from_u16(number).to_u16(), number);
        }
        let known = (0..=u16::MAX).filter(|n| !matches!(Code::from_u16(*n), Code::Unknown(_))).count();
        assert_eq!(known, Code::ALL.len());
        assert!(Code::ALL.is_sorted_by_key(|code| code.to_u16()));
    }

    #[test]
    fn an_unknown_code_says_its_number() {
        assert_eq!(Code::from_u16(999).to_string(), "reason 999, which this version does not know");
    }
}
