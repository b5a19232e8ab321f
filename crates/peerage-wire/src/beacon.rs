//! Beacons: what the nodes of a domain say to each other on their own LAN, by multicast, to elect tunnel-nodes
//! (Rules 6.24 and 6.25).
//!
//! A beacon is sealed with a key that all members of the domain have, so it proves that a member has sent it and not
//! which one. What it claims is therefore a reason to wait or to look, never a reason to trust.

use crate::crypto::{Crypto, TAG_SIZE};
use crate::id::{Domain, LocationId, NetworkId, NodeId, prefix, sha256};
use crate::keys::{DomainKeys, SecretKey};
use crate::time::UnixTime;

/// The first byte of a beacon; none of Rule 3.1, so that one that strays to a message port is dropped there.
pub const FORM: u8 = 0x0d;

/// The version of the layout, the second byte.
pub const VERSION: u8 = 1;

/// The longest beacon, in bytes: room for later fields, and little to carry for networks that send multicast slowly.
pub const MAX_BEACON: usize = 200;

/// The port of the groups, the same everywhere: nodes that do not know each other yet must meet. Unassigned by IANA.
pub const PORT: u16 = 7466;

/// The group of IPv4: in 239.255.0.0/16, the local scope of RFC 2365, and sent with TTL 1. The link-local block
/// 224.0.0.0/24 would pass more switches, but every group in it has to be assigned (RFC 5771, section 4).
pub const GROUP_V4: std::net::Ipv4Addr = std::net::Ipv4Addr::new(239, 255, 116, 102);

/// The group of IPv6: transient and of link-local scope (RFC 4291, section 2.7), its number in the range that needs no
/// assignment (RFC 3307, section 4.3).
pub const GROUP_V6: std::net::Ipv6Addr = std::net::Ipv6Addr::new(0xff12, 0, 0, 0, 0, 0, 0xf065, 0x6572);

const LABEL_BEACON: &[u8] = b"peerage beacon 1";
const LABEL_BALLOT: &[u8] = b"peerage ballot 1";
const LABEL_RANK: &[u8] = b"peerage rank 1";

/// Bytes of a nonce.
pub const NONCE_SIZE: usize = 12;
const HEADER_SIZE: usize = 2 + NONCE_SIZE;
/// Kind, node, ballot, time, and for how many seconds; the digest of the Head may follow.
const BODY_SIZE: usize = 1 + NodeId::SIZE + 32 + 8 + 4;

/// What an election is about: a location, and who may stand (Rule 6.24).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ballot(pub [u8; 32]);

impl Ballot {
    /// Returns the ballot of the devices at a location that any member may serve, or that only these may, in any order.
    pub fn new(location: &LocationId, servers: &[NodeId]) -> Self {
        if servers.is_empty() {
            return Self(location.0);
        }
        let mut named: Vec<_> = servers.iter().map(|node| node.to_bytes()).collect();
        named.sort_unstable();
        named.dedup();
        let named = named.concat();
        Self(sha256(&[LABEL_BALLOT, &location.0, &named]))
    }

    /// Returns a node's rank in this election; of two nodes the one with the lower number comes first.
    pub fn rank(&self, node: &NodeId) -> u64 {
        u64::from_be_bytes(prefix(&sha256(&[LABEL_RANK, &self.0, &node.to_bytes()])))
    }
}

/// What a beacon says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Its sender holds a seat: it is attached, announced, and serves.
    Elected,
    /// Its sender wants a free seat, and will have it in a second if nobody objects.
    Standing,
    /// Its sender serves beside those elected, because it found that they do not.
    Additional,
    /// Its sender gives its seat back, or no longer wants one.
    Goodbye,
    /// Its sender has just come and asks who is elected.
    Who,
    /// Its sender has found that enough of those announced do serve.
    Checked,
}

impl Kind {
    const ALL: [(Self, u8); 6] = [
        (Self::Elected, 1),
        (Self::Standing, 2),
        (Self::Additional, 3),
        (Self::Goodbye, 4),
        (Self::Who, 5),
        (Self::Checked, 6),
    ];
}

/// What one node says to the others of its domain on a LAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beacon {
    /// What it says.
    pub kind: Kind,
    /// The sender, as far as members are to be believed.
    pub node: NodeId,
    /// About which election.
    pub ballot: Ballot,
    /// When it was sent, by the sender's corrected time; higher with each beacon of a sender.
    pub time: UnixTime,
    /// For how long its sender has been elected, in seconds; for people.
    pub seated_secs: u32,
    /// The [digest](crate::record::HeadBody::digest) of its sender's Head, if that is fresh.
    pub head: Option<[u8; 8]>,
}

/// Why a datagram is not a beacon for this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BeaconError {
    /// Too short, too long, or of another form.
    #[error("not a beacon")]
    Form,
    /// Of another domain or epoch, or altered.
    #[error("a beacon that this node cannot open")]
    Sealed,
    /// A kind that this version does not know, or of another domain than its key.
    #[error("a beacon that this version does not understand")]
    Unknown,
}

impl Beacon {
    /// Seals the beacon with the key of an epoch. The nonce is drawn anew each time; 2^32 of one key are safe.
    pub fn seal(
        &self,
        network: &NetworkId,
        epoch_key: &SecretKey,
        crypto: &dyn Crypto,
        nonce: &[u8; NONCE_SIZE],
    ) -> Vec<u8> {
        let mut body = Vec::with_capacity(BODY_SIZE + 8 + TAG_SIZE);
        body.push(Kind::ALL.iter().find(|(kind, _)| *kind == self.kind).map_or(0, |(_, number)| *number));
        body.extend_from_slice(&self.node.to_bytes());
        body.extend_from_slice(&self.ballot.0);
        body.extend_from_slice(&self.time.as_millis().to_be_bytes());
        body.extend_from_slice(&self.seated_secs.to_be_bytes());
        body.extend(self.head.into_iter().flatten());
        match crypto.seal(&key(epoch_key, network), nonce, &[FORM, VERSION], &mut body) {
            Ok(tag) => body.extend_from_slice(&tag),
            Err(_) => debug_assert!(false, "a beacon is within the bound of its cipher"),
        }
        [&[FORM, VERSION][..], nonce, &body].concat()
    }

    /// Opens a beacon of the own domain, sealed in the newest epoch or the one before.
    ///
    /// # Errors
    /// If it is none, is somebody else's, or says what this version does not know.
    pub fn open(
        datagram: &[u8],
        (network, domain): (&NetworkId, Domain),
        keys: &DomainKeys,
        crypto: &dyn Crypto,
    ) -> Result<Self, BeaconError> {
        let (header, sealed) = datagram.split_at_checked(HEADER_SIZE).ok_or(BeaconError::Form)?;
        let nonce = match header.split_first_chunk::<2>() {
            Some((&[FORM, VERSION], nonce)) => nonce,
            Some(_) | None => return Err(BeaconError::Form),
        };
        let nonce: &[u8; NONCE_SIZE] = nonce.try_into().map_err(|_| BeaconError::Form)?;
        if datagram.len() > MAX_BEACON || sealed.len() < BODY_SIZE + TAG_SIZE {
            return Err(BeaconError::Form);
        }
        let epoch_keys = [Some(&keys.epoch_key), keys.previous.as_ref()];
        let beacon = epoch_keys.into_iter().flatten().find_map(|epoch_key| {
            let mut buffer = sealed.to_vec();
            let key = key(epoch_key, network);
            let body = crypto.open(&key, nonce, &[FORM, VERSION], &mut buffer).ok()?;
            Some(Self::read(body))
        });
        let beacon = beacon.ok_or(BeaconError::Sealed)?.ok_or(BeaconError::Unknown)?;
        if beacon.node.domain == domain { Ok(beacon) } else { Err(BeaconError::Unknown) }
    }

    /// Reads an opened beacon; bytes after those that are known are left to later versions.
    fn read(body: &[u8]) -> Option<Self> {
        let (&[number], rest) = body.split_first_chunk::<1>()?;
        let (_, kind) = Kind::ALL.iter().map(|(kind, n)| (*n, *kind)).find(|(n, _)| *n == number)?;
        let (node, rest) = rest.split_first_chunk::<{ NodeId::SIZE }>()?;
        let (ballot, rest) = rest.split_first_chunk::<32>()?;
        let (time, rest) = rest.split_first_chunk::<8>()?;
        let (seated, rest) = rest.split_first_chunk::<4>()?;
        Some(Self {
            kind,
            node: NodeId::from_bytes(node),
            ballot: Ballot(*ballot),
            time: UnixTime::from_millis(u64::from_be_bytes(*time)),
            seated_secs: u32::from_be_bytes(*seated),
            head: rest.first_chunk::<8>().copied(),
        })
    }
}

fn key(epoch_key: &SecretKey, network: &NetworkId) -> SecretKey {
    epoch_key.derive(None, &[LABEL_BEACON, &network.0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Real;

    const NETWORK: NetworkId = NetworkId([7; 32]);
    const DOMAIN: Domain = Domain(5);

    fn keys(epoch: u8) -> DomainKeys {
        DomainKeys {
            epoch: epoch.into(),
            epoch_key: SecretKey([epoch; 32]),
            previous: Some(SecretKey([epoch - 1; 32])),
            location_key: SecretKey([9; 32]),
        }
    }

    fn beacon(kind: Kind) -> Beacon {
        Beacon {
            kind,
            node: NodeId { domain: DOMAIN, hash: [3; 32] },
            ballot: Ballot::new(&LocationId([4; 32]), &[]),
            time: UnixTime::from_secs(1_800_000_000),
            seated_secs: 77,
            head: Some([6; 8]),
        }
    }

    fn open(datagram: &[u8], keys: &DomainKeys) -> Result<Beacon, BeaconError> {
        Beacon::open(datagram, (&NETWORK, DOMAIN), keys, &Real)
    }

    /// Rule 6.25: members read a beacon, in the epoch after as well, and nobody else does.
    #[test]
    fn members_of_the_domain_alone_can_read_a_beacon() {
        for (kind, _) in Kind::ALL {
            let sent = beacon(kind);
            let sealed = sent.seal(&NETWORK, &keys(2).epoch_key, &Real, &[1; 12]);
            assert!(sealed.len() <= MAX_BEACON);
            assert_eq!(open(&sealed, &keys(2)), Ok(sent));
            assert_eq!(open(&sealed, &keys(3)), Ok(sent));
            assert_eq!(open(&sealed, &keys(4)), Err(BeaconError::Sealed));
            let elsewhere = (&NetworkId([8; 32]), DOMAIN);
            assert_eq!(Beacon::open(&sealed, elsewhere, &keys(2), &Real), Err(BeaconError::Sealed));
            let other = (&NETWORK, Domain(6));
            assert_eq!(Beacon::open(&sealed, other, &keys(2), &Real), Err(BeaconError::Unknown));
        }
    }

    /// Rule 6.25: those of a node that has no fresh Head, or is of an older version, end before it.
    #[test]
    fn a_beacon_without_a_digest_is_read() {
        let sent = Beacon { head: None, ..beacon(Kind::Elected) };
        let sealed = sent.seal(&NETWORK, &keys(2).epoch_key, &Real, &[1; 12]);
        assert_eq!(sealed.len(), HEADER_SIZE + BODY_SIZE + TAG_SIZE);
        assert_eq!(open(&sealed, &keys(2)), Ok(sent));
    }

    /// Rule 6.25: outside of the seal there is nothing but form, version and chance.
    #[test]
    fn a_beacon_shows_strangers_nothing_that_it_shows_twice() {
        let sealed = |chance| beacon(Kind::Elected).seal(&NETWORK, &keys(2).epoch_key, &Real, &[chance; 12]);
        let (one, other) = (sealed(1), sealed(2));
        assert_eq!(one[..2], other[..2]);
        assert!(one[2..].windows(8).all(|bytes| !other.windows(8).any(|others| others == bytes)));
    }

    #[test]
    fn whatever_was_altered_cut_or_lengthened_is_refused() {
        let sealed = beacon(Kind::Elected).seal(&NETWORK, &keys(2).epoch_key, &Real, &[1; 12]);
        for length in 0..sealed.len() {
            assert!(open(&sealed[..length], &keys(2)).is_err(), "{length} bytes");
        }
        for bit in 0..sealed.len() * 8 {
            let mut altered = sealed.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&altered, &keys(2)).is_err(), "bit {bit}");
        }
        let longer = [sealed, vec![0; MAX_BEACON]].concat();
        assert_eq!(open(&longer, &keys(2)), Err(BeaconError::Form));
    }

    /// Rule 6.24: who may stand is part of what is elected, in whatever order they are named.
    #[test]
    fn named_servers_have_an_election_of_their_own() {
        let location = LocationId([4; 32]);
        let [one, other] = [1, 2].map(|n| NodeId { domain: DOMAIN, hash: [n; 32] });
        let open = Ballot::new(&location, &[]);
        assert_eq!(open.0, location.0);
        assert_eq!(Ballot::new(&location, &[one, other]), Ballot::new(&location, &[other, one, other]));
        assert_ne!(Ballot::new(&location, &[one]), Ballot::new(&location, &[other]));
        assert_ne!(open.rank(&one), open.rank(&other));
        assert_ne!(open.rank(&one), Ballot::new(&location, &[one]).rank(&one));
    }
}
