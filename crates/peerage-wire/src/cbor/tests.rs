use proptest::prelude::*;

use super::*;

/// Rule 2.1: everything outside the subset is refused, with its reason.
#[test]
fn each_deviation_is_refused() {
    let cases: &[(&[u8], Malformed)] = &[
        (&[], Malformed::Truncated),
        (&[0x18], Malformed::Truncated),
        (&[0x18, 0x17], Malformed::NotShortest),
        (&[0x19, 0x00, 0xff], Malformed::NotShortest),
        (&[0x1a, 0, 0, 0xff, 0xff], Malformed::NotShortest),
        (&[0x1b, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], Malformed::NotShortest),
        (&[0x00, 0x00], Malformed::Trailing),
        (&[0x5f, 0x41, 0x00, 0xff], Malformed::Forbidden),
        (&[0xbf, 0xff], Malformed::Forbidden),
        (&[0xc0, 0x00], Malformed::Forbidden),
        (&[0xf6], Malformed::Forbidden),
        (&[0xf9, 0x3c, 0x00], Malformed::Forbidden),
        (&[0xf8, 0x20], Malformed::Forbidden),
        (&[0xa2, 0x01, 0x00, 0x01, 0x00], Malformed::KeyOrder),
        (&[0xa2, 0x02, 0x00, 0x01, 0x00], Malformed::KeyOrder),
        (&[0xa1, 0x61, 0x61, 0x00], Malformed::KeyOrder),
        (&[0x61, 0xff], Malformed::Utf8),
        (&[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], Malformed::Truncated),
        (&[0x5b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], Malformed::Truncated),
        (&[0x81, 0x81, 0x81, 0x81, 0x81, 0x81, 0x81, 0x00], Malformed::Depth),
    ];
    for (bytes, reason) in cases {
        assert_eq!(check(bytes), Err(*reason), "{bytes:02x?}");
    }
    assert_eq!(check(&[0x81, 0x81, 0x81, 0x81, 0x81, 0x81, 0x00]), Ok(()));
}

/// Rule 2.3: unknown keys below 128 make a value unusable, others are passed over.
#[test]
fn unknown_fields_matter_below_128_only() {
    let read = |extra: u64| {
        let mut w = MapWriter::new();
        w.uint(1, 7_u64).uint(extra, 1_u64);
        let bytes = w.finish();
        let mut map = Map::parse(&bytes).unwrap();
        assert_eq!(map.uint::<u64>(1), Ok(7));
        map.finish()
    };
    assert_eq!(read(2), Err(Malformed::Unknown(2)));
    assert_eq!(read(127), Err(Malformed::Unknown(127)));
    assert_eq!(read(128), Ok(()));
}

#[test]
fn fields_are_read_back_as_written() {
    let mut inner = MapWriter::new();
    inner.text(1, "ipp");
    let mut w = MapWriter::new();
    w.uint(1, 300_u64).bytes(2, b"abc").text(3, "hé").flag(4, true).flag(5, false);
    w.map(6, &inner).list_of_bytes(7, &[b"x", b"y"]).list_of_maps(8, &[1_u64, 2], |n| {
        let mut m = MapWriter::new();
        m.uint(0, *n);
        m
    });
    let bytes = w.finish();
    let mut map = Map::parse(&bytes).unwrap();
    assert_eq!(map.uint::<u8>(1), Err(Malformed::Type(1)));
    let mut map = Map::parse(&bytes).unwrap();
    assert_eq!(map.uint::<u16>(1), Ok(300));
    assert_eq!(map.bytes(2), Ok(&b"abc"[..]));
    assert_eq!(map.text(3, 8).as_deref(), Ok("hé"));
    assert_eq!(map.flag(4), Ok(true));
    assert_eq!(map.flag(5), Ok(false));
    assert_eq!(map.map(6).and_then(|mut m| m.text(1, 64)).as_deref(), Ok("ipp"));
    assert_eq!(map.list(7, 2, Element::bytes), Ok(vec![&b"x"[..], b"y"]));
    assert_eq!(map.list(8, 2, |e| e.map()?.uint::<u64>(0)), Ok(vec![1, 2]));
    assert_eq!(map.finish(), Ok(()));
}

/// Rule 2.2: a field of another type, size or range makes the value malformed.
#[test]
fn missing_long_and_mistyped_fields_are_refused() {
    let mut w = MapWriter::new();
    w.text(1, "abc").list_of_bytes(2, &[b"x", b"y"]);
    let bytes = w.finish();
    let map = || Map::parse(&bytes).unwrap();
    assert_eq!(map().uint::<u64>(0), Err(Malformed::Missing(0)));
    assert_eq!(map().bytes(1), Err(Malformed::Type(1)));
    assert_eq!(map().text(1, 2), Err(Malformed::Type(1)));
    assert_eq!(map().list(2, 1, Element::bytes), Err(Malformed::Type(2)));
    assert_eq!(map().list(2, 2, Element::id::<crate::id::SessionId>), Err(Malformed::Type(2)));
}

proptest! {
    /// Rule 2.1: a value that passes has no second encoding, since re-writing its numbers gives the same bytes.
    #[test]
    fn numbers_have_one_encoding(n: u64) {
        let mut w = MapWriter::new();
        w.uint(0, n);
        let bytes = w.finish();
        prop_assert_eq!(check(&bytes), Ok(()));
        prop_assert_eq!(Map::parse(&bytes).unwrap().uint::<u64>(0), Ok(n));
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(mut map) = Map::parse(&bytes) {
            let _ = map.uint::<u64>(0);
            let _ = map.list(1, 4, Element::bytes);
            let _ = map.finish();
        }
    }
}
