//! Reading a proxy's answer to CONNECT, byte by byte and no byte too many: what follows the head is not the proxy's.

/// Longest head of an answer, in bytes, interim answers included. Longer ones are attacks or mistakes; raised, a hostile proxy keeps more memory.
pub const MAX_HEAD: usize = 16 * 1_024;

/// Longest part of a portal's address that is repeated to people, in bytes.
const MAX_SHOWN: usize = 120;

/// Why a proxy does not connect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// What answers is no HTTP server.
    #[error("what answers does not speak HTTP, so it is no HTTP proxy")]
    NotHttp,
    /// The head has no end.
    #[error("its answer is longer than {MAX_HEAD} bytes")]
    TooLong,
    /// 407, and no credentials were given.
    #[error(
        "it wants a user name and password (407); give them in [network] proxy = \"http://USER:PASSWORD@HOST:PORT\""
    )]
    CredentialsMissing,
    /// 407, although credentials were given.
    #[error("it refuses the user name and password that it was given (407)")]
    CredentialsRefused,
    /// 407, and it takes other forms of credentials than Basic.
    #[error("it wants a form of credentials that is not supported (407); Basic is")]
    CredentialsUnsupported,
    /// 403 or 405: the administrator does not allow it, often because of the port.
    #[error("it does not allow connections to this address or port ({0}); many proxies allow port 443 alone")]
    Forbidden(u16),
    /// A page in place of a connection: one has to log in with a browser first.
    #[error("a captive portal answers in its place{}; log in with a browser first", shown(.location.as_deref()))]
    Portal {
        /// Where it sends browsers: scheme and host.
        location: Option<String>,
    },
    /// 502, 503 or 504: it cannot connect itself.
    #[error("it cannot reach the address itself ({0})")]
    Unreachable(u16),
    /// Any other status.
    #[error("it answers with HTTP status {0}")]
    Status(u16),
}

fn shown(location: Option<&str>) -> String {
    location.map_or_else(String::new, |location| format!(" ({location})"))
}

/// An answer as far as it was read.
#[derive(Debug)]
pub struct Answer {
    head: Vec<u8>,
    total: usize,
    has_credentials: bool,
}

impl Answer {
    /// Begins to read the answer to a request that had credentials, or none.
    #[must_use]
    pub const fn new(has_credentials: bool) -> Self {
        Self { head: Vec::new(), total: 0, has_credentials }
    }

    /// Takes the next bytes. Returns how many of them belong to the answer's head, and what it says once it is complete; after a refusal
    /// nothing more is to be read.
    pub fn read(&mut self, bytes: &[u8]) -> (usize, Option<Result<(), Refusal>>) {
        for (index, byte) in bytes.iter().enumerate() {
            self.head.push(*byte);
            self.total += 1;
            let taken = index + 1;
            if !begins_as_http(&self.head) {
                return (taken, Some(Err(Refusal::NotHttp)));
            }
            let is_complete = self.head.ends_with(b"\r\n\r\n") || self.head.ends_with(b"\n\n");
            if is_complete {
                let head = std::mem::take(&mut self.head);
                match self.judge(&head) {
                    // Interim answers come before the one that counts (RFC 9110, section 15.2).
                    None => {}
                    decided => return (taken, decided),
                }
            }
            if self.total >= MAX_HEAD {
                return (taken, Some(Err(Refusal::TooLong)));
            }
        }
        (bytes.len(), None)
    }

    fn judge(&self, head: &[u8]) -> Option<Result<(), Refusal>> {
        let head = String::from_utf8_lossy(head);
        let mut lines = head.lines();
        let Some(status) = lines.next().and_then(status) else { return Some(Err(Refusal::NotHttp)) };
        let fields: Vec<(&str, &str)> =
            lines.filter_map(|line| line.split_once(':')).map(|(name, value)| (name, value.trim())).collect();
        let field = |wanted: &'static str| {
            fields.iter().filter(move |(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| *value)
        };
        let has_page = || {
            let is_long = field("content-length").any(|length| length != "0");
            is_long || field("content-type").any(|kind| kind.to_ascii_lowercase().starts_with("text/html"))
        };
        let location = || field("location").next().and_then(place);
        Some(Err(match status {
            100..=199 => return None,
            // Nothing but the connection may follow; a page is a portal's.
            200..=299 if has_page() => Refusal::Portal { location: None },
            200..=299 => return Some(Ok(())),
            300..=399 | 511 => Refusal::Portal { location: location() },
            407 if self.has_credentials => Refusal::CredentialsRefused,
            407 => {
                let mut offers = field("proxy-authenticate").peekable();
                let is_unsaid = offers.peek().is_none();
                let is_basic = |offer: &str| offer.get(..5).is_some_and(|s| s.eq_ignore_ascii_case("basic"));
                if is_unsaid || offers.any(is_basic) {
                    Refusal::CredentialsMissing
                } else {
                    Refusal::CredentialsUnsupported
                }
            }
            403 | 405 => Refusal::Forbidden(status),
            502..=504 => Refusal::Unreachable(status),
            other => Refusal::Status(other),
        }))
    }
}

/// Returns whether a head can still be one of HTTP/1.
fn begins_as_http(head: &[u8]) -> bool {
    const BEGINNING: &[u8] = b"HTTP/1.";
    head.iter().zip(BEGINNING).all(|(has, wanted)| has == wanted)
}

fn status(line: &str) -> Option<u16> {
    let (version, rest) = line.split_once(' ')?;
    let digits = rest.get(..3)?;
    let is_number = digits.bytes().all(|digit| digit.is_ascii_digit());
    let ends = rest.get(3..).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '));
    (version.starts_with("HTTP/1.") && is_number && ends).then(|| digits.parse().ok()).flatten()
}

/// Returns scheme and host of a URL; the rest may be long, and hold what is private.
fn place(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let host = rest.split(['/', '?', '#']).next()?;
    let host = host.rsplit('@').next()?;
    let shown: String = format!("{scheme}://{host}").chars().filter(|c| !c.is_control()).collect();
    (shown.len() <= MAX_SHOWN).then_some(shown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn said(text: &str, has_credentials: bool) -> (usize, Option<Result<(), Refusal>>) {
        Answer::new(has_credentials).read(text.as_bytes())
    }

    fn refusal(text: &str, has_credentials: bool) -> Refusal {
        said(text, has_credentials).1.unwrap().unwrap_err()
    }

    #[test]
    fn a_connection_begins_right_behind_the_head() {
        let head = "HTTP/1.0 200 Connection established\r\nProxy-agent: x\r\n\r\n";
        assert_eq!(said(&format!("{head}\x16\x03"), false), (head.len(), Some(Ok(()))));
        assert_eq!(said("HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", false).1, Some(Ok(())));
        let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n";
        assert_eq!(said(interim, false), (interim.len(), Some(Ok(()))));
    }

    #[test]
    fn each_refusal_is_named() {
        let basic =
            "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n";
        assert_eq!(refusal(basic, false), Refusal::CredentialsMissing);
        assert_eq!(refusal(basic, true), Refusal::CredentialsRefused);
        let other = "HTTP/1.1 407 x\r\nProxy-Authenticate: Negotiate\r\nproxy-authenticate: NTLM\r\n\r\n";
        assert_eq!(refusal(other, false), Refusal::CredentialsUnsupported);
        assert_eq!(refusal("HTTP/1.0 403 Access violation\r\n\r\n", false), Refusal::Forbidden(403));
        assert_eq!(refusal("HTTP/1.1 504 x\r\n\r\n", false), Refusal::Unreachable(504));
        assert_eq!(refusal("HTTP/1.1 418 x\r\n\r\n", false), Refusal::Status(418));
        for noise in ["SSH-2.0-x\r\n\r\n", "\x15\x03\x01", "HTTP/1.1 2x0 OK\r\n\r\n", "HTTP/1.1 2000\r\n\r\n"]
        {
            assert_eq!(refusal(noise, false), Refusal::NotHttp, "{noise:?}");
        }
    }

    #[test]
    fn a_captive_portal_is_told_by_its_redirection_or_its_page() {
        let moved = "HTTP/1.1 302 Found\r\nLocation: https://ann@login.hotel.example/p?token=secret\r\n\r\n";
        let location = Some("https://login.hotel.example".to_owned());
        assert_eq!(refusal(moved, false), Refusal::Portal { location });
        let page = "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=x\r\n\r\n<html>";
        assert_eq!(refusal(page, false), Refusal::Portal { location: None });
        let sized = "HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n";
        assert_eq!(refusal(sized, false), Refusal::Portal { location: None });
        assert!(!refusal(moved, false).to_string().contains("secret"));
    }

    #[test]
    fn a_head_without_end_costs_its_limit_and_no_more() {
        let mut answer = Answer::new(false);
        let (taken, decided) = answer.read(b"HTTP/1.1 200 OK\r\n");
        assert_eq!((taken, decided), (17, None));
        let endless = b"X: y\r\n".repeat(MAX_HEAD);
        let (taken, decided) = answer.read(&endless);
        assert_eq!((taken, decided), (MAX_HEAD - 17, Some(Err(Refusal::TooLong))));
        let interim = "HTTP/1.1 100 x\r\n\r\n".repeat(MAX_HEAD);
        assert_eq!(refusal(&interim, false), Refusal::TooLong);
    }

    proptest! {
        /// However a proxy cuts its answer, it says the same.
        #[test]
        fn an_answer_means_the_same_in_pieces(
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..200),
                "HTTP/1\\.[01] [1-5][0-9]{2} [a-z]{0,8}(\r\n[A-Za-z-]{1,20}: [ -~]{0,30}){0,6}\r\n\r\n.{0,20}"
                    .prop_map(String::into_bytes),
            ],
            cut in 1_usize..20,
        ) {
            let whole = Answer::new(false).read(&bytes);
            let mut answer = Answer::new(false);
            let (mut taken, mut decided) = (0, None);
            for piece in bytes.chunks(cut) {
                let (more, now) = answer.read(piece);
                taken += more;
                decided = now;
                if decided.is_some() {
                    break;
                }
                prop_assert_eq!(more, piece.len());
            }
            prop_assert_eq!((taken, decided), whole);
        }
    }
}
