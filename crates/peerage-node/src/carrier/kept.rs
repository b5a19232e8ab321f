//! What has worked where UDP has not, on disk.

use peerage_proto::carrier::Carrier;
use peerage_proto::node::{KnownCarriers, MAX_REMEMBERED};
use peerage_wire::id::LocationId;

use crate::store::{Batch, Contents};

/// The name of the fact: for each location its id and the name of a carrier, up to a line feed.
const KNOWN: &str = "carriers";

/// Bytes of a location's id.
const ID_SIZE: usize = 32;

/// Makes the batch that keeps it. Should it not be written, the next start in this network takes a second longer.
pub(crate) fn keep(known: &KnownCarriers) -> Batch {
    let mut value = Vec::new();
    for (location, carrier) in known {
        value.extend_from_slice(&location.0);
        value.extend_from_slice(carrier.name().as_bytes());
        value.push(b'\n');
    }
    Batch { changes: Vec::new(), facts: vec![(KNOWN, Some(value))] }
}

/// Returns what was kept; what this version does not know is left out.
pub(crate) fn kept(contents: &Contents) -> KnownCarriers {
    let mut rest = contents.facts.get(KNOWN).map_or(&[][..], Vec::as_slice);
    let mut known = KnownCarriers::new();
    while let Some((location, after)) = rest.split_first_chunk::<ID_SIZE>() {
        let end = after.iter().position(|byte| *byte == b'\n').unwrap_or(after.len());
        let (name, next) = after.split_at(end);
        if let Some(carrier) = Carrier::ALL.into_iter().find(|carrier| carrier.name().as_bytes() == name)
            && known.len() < MAX_REMEMBERED
        {
            known.insert(LocationId(*location), carrier);
        }
        rest = next.get(1..).unwrap_or_default();
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_comes_back_and_what_is_unknown_is_left_out() {
        let known =
            KnownCarriers::from([(LocationId([10; 32]), Carrier::Tls), (LocationId([2; 32]), Carrier::Ws)]);
        let mut contents = Contents::default();
        let (name, value) = keep(&known).facts.remove(0);
        let strange = [&value.unwrap()[..], &[7; 32], b"pigeon\n"].concat();
        contents.facts.insert(name.to_owned(), strange);
        assert_eq!(kept(&contents), known);
        contents.facts.insert(name.to_owned(), vec![1; 40]);
        assert!(kept(&contents).is_empty(), "damaged");
    }
}
