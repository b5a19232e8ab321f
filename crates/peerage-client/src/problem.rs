//! Failures as problem details (RFC 9457), the same in both APIs.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The media type of a [`Problem`].
pub const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";

/// A failed request: what went wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The stable name of the kind of failure; programs decide by this alone.
    #[serde(rename = "type")]
    pub kind: ProblemKind,
    /// A short sentence that is the same for every problem of this kind.
    pub title: String,
    /// The HTTP status that the answer had.
    pub status: u16,
    /// What went wrong this time and what the reader can do, in one or two sentences.
    #[serde(default)]
    pub detail: String,
}

impl Problem {
    /// Makes a problem of a kind; `detail` says what happened this time and what to do.
    pub fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        Self { kind, title: kind.title().to_owned(), status: kind.status(), detail: detail.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.title)?;
        if self.detail.is_empty() {
            return Ok(());
        }
        write!(f, ": {}", self.detail)
    }
}

impl std::error::Error for Problem {}

/// Declares the kinds with their URN, HTTP status and title in one table, so that none can be forgotten.
macro_rules! problem_kinds {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $status:literal, $title:literal;)*) => {
        /// What kind of failure a [`Problem`] is; in JSON the URN that [`ProblemKind::urn`] returns.
        ///
        /// A client that is older than its server reads a kind that it does not know as [`ProblemKind::Unknown`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum ProblemKind {
            $($(#[$doc])* #[serde(rename = $name)] $variant,)*
            /// A kind that this version of the client does not know.
            #[serde(rename = "urn:peerage:problem:unknown", other)]
            Unknown,
        }

        impl ProblemKind {
            /// Every kind that a server can report.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Returns the stable URN, such as `urn:peerage:problem:unknown-device`.
            pub const fn urn(self) -> &'static str {
                match self { $(Self::$variant => $name,)* Self::Unknown => "urn:peerage:problem:unknown" }
            }

            /// Returns the HTTP status of an answer with this problem.
            pub const fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)* Self::Unknown => 500 }
            }

            /// Returns the sentence that all problems of this kind share.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)* Self::Unknown => "The request failed" }
            }
        }
    };
}

problem_kinds! {
    // The request itself.
    /// The request cannot be read: malformed JSON, an unknown field, or a value out of its range.
    InvalidRequest = "urn:peerage:problem:invalid-request", 400, "The request cannot be read";
    /// The bearer token of the admin API is missing or wrong.
    Unauthorized = "urn:peerage:problem:unauthorized", 401, "The access token is missing or wrong";
    /// The request names another host, or comes from a web page.
    ForeignOrigin = "urn:peerage:problem:foreign-origin", 403, "The request comes from a web page or names another host";
    /// No such route.
    UnknownRoute = "urn:peerage:problem:unknown-route", 404, "There is no such resource";
    /// The route exists, with other methods.
    MethodNotAllowed = "urn:peerage:problem:method-not-allowed", 405, "The resource does not have this method";
    /// The body of the request is larger than the server reads.
    BodyTooLarge = "urn:peerage:problem:body-too-large", 413, "The request is too large";
    /// The body of the request is not JSON.
    UnsupportedMediaType = "urn:peerage:problem:unsupported-media-type", 415, "The request is not JSON";
    /// A limit of the server on what exists at one time is reached.
    TooMany = "urn:peerage:problem:too-many", 429, "A limit is reached";
    /// The server failed; its log says why.
    Internal = "urn:peerage:problem:internal", 500, "Internal error";
    /// This build or this system does not have what was asked for.
    NotSupported = "urn:peerage:problem:not-supported", 501, "Not supported here";
    /// The server is starting or stopping, or its database cannot be written.
    Unavailable = "urn:peerage:problem:unavailable", 503, "Temporarily unavailable";

    // The local API.
    /// The domain has no device of this name or id.
    UnknownDevice = "urn:peerage:problem:unknown-device", 404, "Unknown device";
    /// The device has no service of this name, or several and none was named.
    UnknownService = "urn:peerage:problem:unknown-service", 404, "Unknown service";
    /// The node has no tunnel of this id.
    UnknownTunnel = "urn:peerage:problem:unknown-tunnel", 404, "Unknown tunnel";
    /// The caller may not use the device.
    NotAllowed = "urn:peerage:problem:not-allowed", 403, "Not allowed";
    /// Somebody else uses the local address on which the tunnel was to listen.
    AddressInUse = "urn:peerage:problem:address-in-use", 409, "The local address is in use";
    /// The local address on which the tunnel was to listen is not a loopback address.
    NotLoopback = "urn:peerage:problem:not-loopback", 400, "Not a loopback address";
    /// The node does not belong to a domain.
    NotJoined = "urn:peerage:problem:not-joined", 409, "The node has not joined a domain";
    /// The operator has revoked the node, or its record has expired.
    NotValid = "urn:peerage:problem:not-valid", 403, "The node is revoked or its record has expired";
    /// Neither an operator nor a super-node answers.
    Offline = "urn:peerage:problem:offline", 503, "The network does not answer";
    /// No tunnel-node that serves the device can be reached.
    DeviceUnreachable = "urn:peerage:problem:device-unreachable", 502, "The device cannot be reached";
    /// The device showed another TLS certificate than it is registered with.
    PinMismatch = "urn:peerage:problem:pin-mismatch", 502, "The device is not the registered one";

    // The admin API.
    /// No such domain.
    UnknownDomain = "urn:peerage:problem:unknown-domain", 404, "Unknown domain";
    /// No such token in the domain.
    UnknownToken = "urn:peerage:problem:unknown-token", 404, "Unknown token";
    /// No such node in the domain, or the short form fits several.
    UnknownNode = "urn:peerage:problem:unknown-node", 404, "Unknown node";
    /// The name is taken by another domain or device.
    NameTaken = "urn:peerage:problem:name-taken", 409, "The name is taken";
    /// The MAC address is registered for another device of the domain.
    MacTaken = "urn:peerage:problem:mac-taken", 409, "The MAC address is taken";
    /// The node that was to see the device does not answer or does not see it.
    DeviceNotSeen = "urn:peerage:problem:device-not-seen", 409, "The node does not see the device";
    /// A limit of the domain is reached.
    QuotaReached = "urn:peerage:problem:quota-reached", 409, "A limit of the domain is reached";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_json_and_has_its_own_urn() {
        let mut urns = std::collections::BTreeSet::new();
        for &kind in ProblemKind::ALL {
            let problem = Problem::new(kind, "why");
            let json = serde_json::to_value(&problem).unwrap();
            assert_eq!(json["type"], kind.urn());
            assert_eq!(json["status"], kind.status());
            assert_eq!(serde_json::from_value::<Problem>(json).unwrap(), problem);
            assert!(urns.insert(kind.urn()), "{} stands twice in the table", kind.urn());
            assert!((400..600).contains(&kind.status()));
        }
    }

    #[test]
    fn a_kind_from_a_newer_server_is_read_as_unknown() {
        let text =
            r#"{"type":"urn:peerage:problem:of-tomorrow","title":"T","status":418,"detail":"D","more":1}"#;
        let problem: Problem = serde_json::from_str(text).unwrap();
        assert_eq!(problem.kind, ProblemKind::Unknown);
        assert_eq!(problem.to_string(), "T: D");
        assert_eq!(problem.status, 418);
    }
}
