//! What the public interface cannot reach: pieces that overlap in every way.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// The byte at an offset: a period of 251 shows every shift.
fn bytes(from: u64, len: usize) -> Bytes {
    (from..).take(len).map(|at| (at % 251) as u8).collect::<Vec<u8>>().into()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Rule 7.14: bytes are ordered by their offset, whatever order, overlap and repetition they arrive with.
    #[test]
    fn pieces_in_any_order_and_overlap_give_the_stream(
        mut pieces in vec((0_u64..50_000, 1_usize..9_000), 1..60),
        reads in vec(any::<bool>(), 60),
    ) {
        let now = Instant::default();
        let budget = Budget::new(0);
        let mut half = ReceiveHalf::new(WINDOW_MIN, &budget, now);
        let mut read = 0;
        // At the end, everything once more, so that no gap stays, and a reader.
        pieces.extend((0..50_000).step_by(10_000).map(|from| (from, 10_000)));
        for ((from, len), reads) in pieces.into_iter().zip(reads.into_iter().cycle()).chain([((0, 1), true)]) {
            let had = half.received();
            half.on_data(from, bytes(from, len)).unwrap();
            prop_assert!(half.received() >= had);
            while reads && let Some(piece) = half.read(Duration::ZERO, now) {
                prop_assert_eq!(&piece, &bytes(read, piece.len()));
                read += piece.len() as u64;
            }
        }
        prop_assert_eq!(read, half.received());
        prop_assert!(read >= 50_000);
    }
}

#[test]
fn a_piece_that_closes_a_gap_makes_all_behind_it_readable() {
    let now = Instant::default();
    let mut half = ReceiveHalf::new(WINDOW_MIN, &Budget::new(0), now);
    assert_eq!(half.on_data(20, bytes(20, 10)), Ok(true));
    assert_eq!(half.on_data(10, bytes(10, 5)), Ok(true));
    assert_eq!(half.on_data(12, bytes(12, 15)), Ok(true));
    assert_eq!(half.on_data(10, bytes(10, 20)), Ok(false), "all of it waits already");
    assert_eq!(half.received(), 0);
    assert_eq!(half.on_data(0, bytes(0, 11)), Ok(true));
    assert_eq!(half.received(), 30);
    assert_eq!(half.on_data(0, bytes(0, 30)), Ok(false));
}

#[test]
fn a_rewind_sends_the_same_bytes_again_and_no_others() {
    let mut half = SendHalf::new(WINDOW_MIN, WINDOW_MIN, &Budget::new(1 << 20));
    let mut content = bytes(0, 50_000);
    assert_eq!(half.write(&mut content), 50_000);
    half.finish();
    let all = |half: &mut SendHalf| {
        let pieces = std::iter::from_fn(|| half.poll_data()).collect::<Vec<_>>();
        let from = pieces.first().map_or(50_000, |(offset, _)| *offset);
        (from, pieces.iter().flat_map(|(_, piece)| piece.to_vec()).collect::<Vec<u8>>(), half.poll_fin())
    };
    assert_eq!(all(&mut half), (0, bytes(0, 50_000).to_vec(), Some(50_000)));
    half.on_received(20_001).unwrap();
    half.rewind(30_003);
    assert_eq!(all(&mut half), (30_003, bytes(30_003, 19_997).to_vec(), Some(50_000)));
    half.rewind(0);
    // While these wait to be sent again, the acknowledgement of the first sending arrives.
    half.on_received(40_000).unwrap();
    assert_eq!(all(&mut half), (40_000, bytes(40_000, 10_000).to_vec(), Some(50_000)));
    half.on_received(50_001).unwrap();
    assert!(half.is_done());
    half.rewind(0);
    assert_eq!(all(&mut half), (50_000, Vec::new(), None));
}
