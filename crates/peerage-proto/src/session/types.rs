//! What a session says to its owner: states, ends, errors.

use bytes::Bytes;
use peerage_wire::frame::Code;

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both directions reached their end, and everything was acknowledged.
    Complete,
    /// This side reset it.
    ResetHere(Code),
    /// The peer reset or refused it.
    ResetByPeer(Code),
    /// The peer broke a rule.
    Violated(Violation),
    /// No carrier for [`CARRIERLESS_LIFETIME`](super::CARRIERLESS_LIFETIME).
    Expired,
}

impl End {
    /// Returns what to tell the application, none if everything went well.
    pub const fn code(self) -> Option<Code> {
        match self {
            Self::Complete => None,
            Self::ResetHere(code) | Self::ResetByPeer(code) => Some(code),
            Self::Violated(_) => Some(Code::ProtocolViolation),
            Self::Expired => Some(Code::Expired),
        }
    }
}

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The peer has not answered OPEN yet; up to [`FIRST_CREDIT`](super::FIRST_CREDIT) bytes travel already.
    Opening,
    /// The peer's OPEN waits for [`Session::confirm`](super::Session::confirm) or
    /// [`Session::reset`](super::Session::reset).
    Asked,
    /// Bytes flow both ways.
    Open,
    /// It is over; bytes that had arrived can still be read.
    Ended(End),
}

/// What a peer did that the rules forbid (Rule 7.24).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Violation {
    /// DATA or FIN beyond the limit.
    #[error("more was sent than the limit allows")]
    CreditOverrun,
    /// DATA beyond the final offset, or a final offset below DATA.
    #[error("bytes beyond the end of the stream")]
    DataAfterFin,
    /// A second FIN with another offset.
    #[error("the end of the stream moved")]
    FinalOffsetMoved,
    /// An acknowledgement of what was never sent.
    #[error("bytes were acknowledged that were never sent")]
    AckBeyondSent,
    /// On one carrier, a lower acknowledgement or limit than before.
    #[error("an acknowledgement or a limit went back")]
    WentBack,
    /// More separate ranges than moves and resends explain.
    #[error("too many gaps")]
    TooManyGaps,
    /// A frame that the sender's role or state does not allow.
    #[error("a frame that is not allowed now")]
    Unexpected,
}

/// What [`Session::read`](super::Session::read) gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// The next bytes, at least one.
    Bytes(Bytes),
    /// Nothing at the moment.
    Pending,
    /// The peer's application finished; nothing follows.
    Finished,
    /// The session broke off; nothing follows.
    Reset(Code),
}

/// Why an application's call was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// After [`Session::finish`](super::Session::finish).
    #[error("the stream was finished by this side")]
    Finished,
    /// The session is over.
    #[error("the tunnel has ended")]
    Ended,
    /// A datagram of more than 1,500 bytes.
    #[error("the datagram has {0} bytes, at most 1,500 are possible")]
    TooLong(usize),
}

/// Why a session could not be made or given a carrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// A request of no or more than 512 bytes.
    #[error("the request has {0} bytes, 1 to 512 are possible")]
    RequestLength(usize),
    /// The first carrier is being tried: until the acceptor knows the session, RESUME would be refused.
    #[error("the session is being opened on its first carrier")]
    NotOpened,
    /// [`MAX_CARRIERS`](super::MAX_CARRIERS) are attached.
    #[error("the session has its limit of carriers already")]
    TooMany,
    /// Only the opener attaches carriers, and only it is resumed by nobody.
    #[error("the other side attaches carriers")]
    WrongRole,
    /// RESUME with a number that is not higher than all before, or of another session.
    #[error("the carrier number is not higher than the one before")]
    Stale,
    /// The session is over.
    #[error("the tunnel has ended")]
    Ended,
}

impl AttachError {
    /// Returns what to answer a RESUME with.
    pub const fn code(self) -> Code {
        match self {
            Self::TooMany => Code::Limit,
            Self::Stale => Code::StaleCarrier,
            Self::Ended => Code::UnknownSession,
            Self::RequestLength(_) | Self::NotOpened | Self::WrongRole => Code::ProtocolViolation,
        }
    }
}

/// Which frames [`Session::poll_frame`](super::Session::poll_frame) may give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Small frames that others wait for: all but the following.
    Control,
    /// DATAGRAM, DATA, FIN and LEAVE.
    Bulk,
}

/// What a session did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes that this side's application wrote.
    pub written_bytes: u64,
    /// Bytes that the peer has acknowledged.
    pub acked_bytes: u64,
    /// Bytes that this side's application read.
    pub read_bytes: u64,
    /// Bytes sent more than once because of lost or suspect carriers.
    pub resent_bytes: u64,
    /// Datagrams that gave way to fresher ones, either direction.
    pub datagrams_dropped: u64,
}
