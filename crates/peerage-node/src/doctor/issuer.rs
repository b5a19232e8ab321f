//! Who issued a certificate, as it says itself: read for people, believed by nobody.

/// The tags of DER (X.690) that lead to a certificate's issuer (RFC 5280, section 4.1).
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT: u8 = 0x06;
const VERSION: u8 = 0xa0;

/// The names of an organisation and of whatever it is about (RFC 5280, appendix A.1), in the order in which they are shown.
const NAMES: [[u8; 3]; 2] = [[0x55, 0x04, 0x0a], [0x55, 0x04, 0x03]];

/// Longest name that is shown, in characters.
const MAX_SHOWN: usize = 80;

/// Returns the organisation and common name of the issuer.
pub(super) fn of(certificate: &[u8]) -> Option<String> {
    let (certificate, _) = element(certificate, SEQUENCE)?;
    let (mut signed, _) = element(certificate, SEQUENCE)?;
    if let Some((_, rest)) = element(signed, VERSION) {
        signed = rest;
    }
    // Serial number and algorithm.
    let (_, _, signed) = any(signed)?;
    let (_, _, signed) = any(signed)?;
    let (mut issuer, _) = element(signed, SEQUENCE)?;
    let mut found = [None, None];
    while let Some((mut parts, rest)) = element(issuer, SET) {
        issuer = rest;
        while let Some((part, rest)) = element(parts, SEQUENCE) {
            parts = rest;
            let (kind, value) = element(part, OBJECT)?;
            let (_, value, _) = any(value)?;
            if let Some(place) =
                NAMES.iter().position(|name| name == kind).and_then(|place| found.get_mut(place))
            {
                *place = Some(String::from_utf8_lossy(value).into_owned());
            }
        }
    }
    let names: Vec<String> = found.into_iter().flatten().collect();
    let shown: String = names.join(", ").chars().filter(|c| !c.is_control()).take(MAX_SHOWN).collect();
    (!shown.is_empty()).then_some(shown)
}

/// Takes an element with this tag off; returns its content and what follows.
fn element(bytes: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    let (tag, content, rest) = any(bytes)?;
    (tag == wanted).then_some((content, rest))
}

/// Takes an element off: its tag, its content, and what follows.
fn any(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, length], rest) = bytes.split_first_chunk::<2>()?;
    let (length, rest) = if length & 0x80 == 0 {
        (usize::from(length), rest)
    } else {
        // Longer than any certificate if it takes more than three bytes.
        let count = usize::from(length & 0x7f);
        let (digits, rest) = rest.split_at_checked(count).filter(|_| (1..=3).contains(&count))?;
        (digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit)), rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    fn made(names: &[(DnType, &str)]) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["operator".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, name) in names {
            params.distinguished_name.push(kind.clone(), *name);
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn the_issuer_of_a_certificate_is_read() {
        let both = made(&[(DnType::CommonName, "mitmproxy"), (DnType::OrganizationName, "Acme")]);
        assert_eq!(of(&both).as_deref(), Some("Acme, mitmproxy"));
        assert_eq!(of(&made(&[(DnType::CommonName, "a\u{1b}b")])).as_deref(), Some("ab"));
        assert_eq!(of(&made(&[])), None);
    }

    #[test]
    fn a_damaged_certificate_has_no_issuer_and_no_panic() {
        let whole = made(&[(DnType::CommonName, "mitmproxy")]);
        for end in 0..whole.len() {
            let _ = of(&whole[..end]);
        }
        for place in 0..whole.len().min(200) {
            let mut damaged = whole.clone();
            damaged[place] ^= 0xff;
            let _ = of(&damaged);
        }
        assert_eq!(of(&[0xff; 64]), None);
        assert_eq!(of(&[]), None);
    }
}
