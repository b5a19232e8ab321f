//! Bytes that nobody should send: every reader of the crate refuses them or reads them, and none panics.

use bytes::Bytes;
use peerage_wire::enrol::{EnrolAnswer, EnrolRequest, Hello};
use peerage_wire::id::{Domain, NetworkId, NodeId};
use peerage_wire::intro::{Introduction, KeyStatement};
use peerage_wire::keys::AgreementKey;
use peerage_wire::limits::MAX_DATAGRAM;
use peerage_wire::message::{Reply, Request};
use peerage_wire::open::Open;
use peerage_wire::packet::Packet;
use peerage_wire::record::UnverifiedRecord;
use peerage_wire::token::JoinToken;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::vectors::Vectors;

/// Hands the bytes to every reader; returns how many took them.
fn readers_that_take(bytes: &[u8]) -> usize {
    let network = NetworkId([0; 32]);
    let node = NodeId { domain: Domain(0), hash: [0; 32] };
    let key = AgreementKey::from_secret([1; 32]);
    let taken = [
        Packet::parse(bytes).is_ok(),
        KeyStatement::from_bytes(bytes).is_some(),
        Introduction::split_from(bytes).is_some(),
        UnverifiedRecord::parse(&Bytes::copy_from_slice(bytes)).is_ok(),
        Request::decode(bytes).is_ok(),
        Reply::decode(bytes).is_ok(),
        Hello::decode(bytes).is_ok(),
        Open::decode(bytes).is_ok(),
        EnrolRequest::open(bytes, &network, node, &key).is_ok(),
        EnrolAnswer::open(bytes, &network, &key, bytes).is_ok(),
        String::from_utf8_lossy(bytes).parse::<JoinToken>().is_ok(),
    ];
    taken.into_iter().filter(|taken| *taken).count()
}

fn all_vectors() -> Vec<Vec<u8>> {
    let files = ["records.txt", "datagrams.txt", "commands.txt", "joining.txt"];
    files.into_iter().flat_map(|file| Vectors::read(file).into_all()).collect()
}

#[test]
fn every_vector_is_read_by_somebody_and_truncated_nowhere_with_a_panic() {
    let mut read = 0;
    for vector in all_vectors() {
        read += usize::from(readers_that_take(&vector) > 0);
        for length in 0..vector.len().min(64) {
            readers_that_take(&vector[..length]);
            readers_that_take(&vector[..vector.len() - length]);
        }
    }
    // All records, datagrams and commands, the introduction, the statement, Hello and the token.
    assert!(read >= 60, "{read}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_bytes_panic_nowhere(bytes in vec(any::<u8>(), 0..MAX_DATAGRAM + 10)) {
        // Only forms without structure, as a reply of the right length, can be met by chance.
        prop_assert!(readers_that_take(&bytes) <= 2);
    }

    /// Rule 3.1: a right first byte does not help.
    #[test]
    fn random_bytes_after_a_right_start_panic_nowhere(
        first in prop::sample::select(vec![4_u8, 5, 6, 7, 9, 11]),
        flags in 0..5_u8,
        rest in vec(any::<u8>(), 0..MAX_DATAGRAM),
    ) {
        let bytes = [&[first, flags][..], &rest].concat();
        if let Ok(packet) = Packet::parse(&bytes) {
            prop_assert!(bytes.len() <= MAX_DATAGRAM, "{packet:?}");
        }
    }

    #[test]
    fn altered_vectors_panic_nowhere(
        which in any::<prop::sample::Index>(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let mut bytes = which.get(&all_vectors()).clone();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        prop_assert!(readers_that_take(&bytes) <= 4);
    }
}
