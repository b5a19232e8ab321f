//! Strict CBOR (RFC 8949): one value has one encoding, or signatures and hashes would mean little.
//!
//! [`check`] walks the whole value before anything is read from it; [`Map`] then reads integer-keyed
//! maps, and [`MapWriter`] writes them. Rule 2.1 has the subset: definite lengths, shortest forms, strictly ascending
//! keys, no tags, no floats, bounded depth, nothing after the end.

use crate::limits::MAX_CBOR_DEPTH;

/// Keys from here on may be ignored by readers that do not know them (Rule 2.3).
pub const FIRST_OPTIONAL_KEY: u64 = 128;

/// Why bytes are not a value of the subset, or not the value that is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The bytes end inside a value.
    #[error("ends inside a value")]
    Truncated,
    /// Bytes follow the value.
    #[error("bytes follow the value")]
    Trailing,
    /// A number or length is not in its shortest form.
    #[error("not in its shortest form")]
    NotShortest,
    /// An indefinite length, a tag, a float or a simple value other than true and false.
    #[error("a form outside the subset")]
    Forbidden,
    /// Map keys are not unsigned integers in strictly ascending order.
    #[error("map keys out of order")]
    KeyOrder,
    /// Nested deeper than allowed.
    #[error("nested too deep")]
    Depth,
    /// A text is not UTF-8.
    #[error("text is not UTF-8")]
    Utf8,
    /// A field that must be there is missing.
    #[error("field {0} is missing")]
    Missing(u64),
    /// A field has another type, size or range than it should.
    #[error("field {0} is of the wrong type, size or range")]
    Type(u64),
    /// A field below 128 that this version does not know: the rest cannot be relied upon (Rule 2.3).
    #[error("field {0} is not known to this version")]
    Unknown(u64),
}

const UNSIGNED: u8 = 0;
const NEGATIVE: u8 = 1;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
const SIMPLE: u8 = 7;
const FALSE: u64 = 20;
const TRUE: u64 = 21;

/// Reads heads and slices off the front of the bytes.
#[derive(Clone, Copy, Debug)]
struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    /// Reads a major type and its argument, refusing every form but the shortest.
    fn head(&mut self) -> Result<(u8, u64), Malformed> {
        let first = *self.take(1)?.first().ok_or(Malformed::Truncated)?;
        let (major, info) = (first >> 5, first & 0x1f);
        let (width, least) = match info {
            0..=23 => return Ok((major, u64::from(info))),
            24 => (1, 24),
            25 => (2, 1 << 8),
            26 => (4, 1 << 16),
            27 => (8, 1 << 32),
            _ => return Err(Malformed::Forbidden),
        };
        let argument = self.take(width)?.iter().fold(0_u64, |n, byte| (n << 8) | u64::from(*byte));
        if major == SIMPLE {
            return Err(Malformed::Forbidden);
        }
        if argument < least {
            return Err(Malformed::NotShortest);
        }
        Ok((major, argument))
    }

    fn string(&mut self, length: u64) -> Result<&'a [u8], Malformed> {
        self.take(usize::try_from(length).map_err(|_| Malformed::Truncated)?)
    }

    /// Passes over one value, checking all of it.
    fn value(&mut self, depth: usize) -> Result<(), Malformed> {
        let (major, argument) = self.head()?;
        match major {
            UNSIGNED | NEGATIVE => Ok(()),
            BYTES => self.string(argument).map(drop),
            TEXT => str::from_utf8(self.string(argument)?).map(drop).map_err(|_| Malformed::Utf8),
            ARRAY => self.items(argument, depth),
            MAP => self.pairs(argument, depth),
            SIMPLE if argument == FALSE || argument == TRUE => Ok(()),
            _ => Err(Malformed::Forbidden),
        }
    }

    fn items(&mut self, count: u64, depth: usize) -> Result<(), Malformed> {
        let depth = depth.checked_sub(1).ok_or(Malformed::Depth)?;
        // A count that lies ends at the first missing value.
        for _ in 0..count {
            self.value(depth)?;
        }
        Ok(())
    }

    fn pairs(&mut self, count: u64, depth: usize) -> Result<(), Malformed> {
        let depth = depth.checked_sub(1).ok_or(Malformed::Depth)?;
        let mut last = None;
        for _ in 0..count {
            let (major, key) = self.head()?;
            if major != UNSIGNED || last.is_some_and(|last| key <= last) {
                return Err(Malformed::KeyOrder);
            }
            last = Some(key);
            self.value(depth)?;
        }
        Ok(())
    }
}

/// Checks that the bytes are exactly one value of the subset (Rule 2.1).
///
/// # Errors
/// The first deviation found.
pub fn check(bytes: &[u8]) -> Result<(), Malformed> {
    let mut cursor = Cursor { rest: bytes };
    cursor.value(MAX_CBOR_DEPTH)?;
    if cursor.rest.is_empty() { Ok(()) } else { Err(Malformed::Trailing) }
}

/// A map whose fields are read in ascending order of their keys, each by its type (Rule 2.2).
#[derive(Clone, Debug)]
pub struct Map<'a> {
    cursor: Cursor<'a>,
    left: u64,
    unknown: Option<u64>,
}

impl<'a> Map<'a> {
    /// Checks the bytes whole and reads them as a map.
    ///
    /// # Errors
    /// If they are not one value of the subset, or not a map.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        check(bytes)?;
        Self::checked(bytes)
    }

    /// Reads a map out of bytes that [`check`] has passed.
    fn checked(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor { rest: bytes };
        match cursor.head()? {
            (MAP, left) => Ok(Self { cursor, left, unknown: None }),
            _ => Err(Malformed::Forbidden),
        }
    }

    /// Moves to a key, passing over smaller ones, and returns the encoded value.
    fn seek(&mut self, key: u64) -> Result<Option<&'a [u8]>, Malformed> {
        while self.left > 0 {
            let mut ahead = self.cursor;
            let (_, found) = ahead.head()?;
            if found > key {
                return Ok(None);
            }
            let start = ahead.rest;
            ahead.value(MAX_CBOR_DEPTH)?;
            let length = start.len().saturating_sub(ahead.rest.len());
            self.cursor = ahead;
            self.left = self.left.saturating_sub(1);
            if found == key {
                return Ok(start.get(..length));
            }
            self.pass_over(found);
        }
        Ok(None)
    }

    fn pass_over(&mut self, key: u64) {
        if key < FIRST_OPTIONAL_KEY {
            self.unknown = self.unknown.or(Some(key));
        }
    }

    /// Returns the bytes that have not been read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.cursor.rest
    }

    /// Reads the encoded value of a field, `None` if it is not there.
    ///
    /// # Errors
    /// None on checked bytes.
    pub fn raw(&mut self, key: u64) -> Result<Option<&'a [u8]>, Malformed> {
        self.seek(key)
    }

    /// Reads an unsigned integer that may be absent.
    ///
    /// # Errors
    /// If the field has another type or is out of the target's range.
    pub fn optional_uint<T: TryFrom<u64>>(&mut self, key: u64) -> Result<Option<T>, Malformed> {
        let Some(raw) = self.seek(key)? else { return Ok(None) };
        match (Cursor { rest: raw }).head()? {
            (UNSIGNED, n) => T::try_from(n).map(Some).map_err(|_| Malformed::Type(key)),
            _ => Err(Malformed::Type(key)),
        }
    }

    /// Reads an unsigned integer.
    ///
    /// # Errors
    /// If the field is missing, has another type or is out of the target's range.
    pub fn uint<T: TryFrom<u64>>(&mut self, key: u64) -> Result<T, Malformed> {
        self.optional_uint(key)?.ok_or(Malformed::Missing(key))
    }

    /// Reads a byte string that may be absent.
    ///
    /// # Errors
    /// If the field has another type.
    pub fn optional_bytes(&mut self, key: u64) -> Result<Option<&'a [u8]>, Malformed> {
        let Some(raw) = self.seek(key)? else { return Ok(None) };
        string_of(raw, BYTES).map(Some).ok_or(Malformed::Type(key))
    }

    /// Reads a byte string.
    ///
    /// # Errors
    /// If the field is missing or has another type.
    pub fn bytes(&mut self, key: u64) -> Result<&'a [u8], Malformed> {
        self.optional_bytes(key)?.ok_or(Malformed::Missing(key))
    }

    /// Reads a byte string of a fixed size as an id.
    ///
    /// # Errors
    /// If the field is missing, has another type or another size.
    pub fn id<T: TryFrom<&'a [u8]>>(&mut self, key: u64) -> Result<T, Malformed> {
        T::try_from(self.bytes(key)?).map_err(|_| Malformed::Type(key))
    }

    /// Reads a byte string of a fixed size that may be absent.
    ///
    /// # Errors
    /// If the field has another type or another size.
    pub fn optional_id<T: TryFrom<&'a [u8]>>(&mut self, key: u64) -> Result<Option<T>, Malformed> {
        let Some(bytes) = self.optional_bytes(key)? else { return Ok(None) };
        T::try_from(bytes).map(Some).map_err(|_| Malformed::Type(key))
    }

    /// Reads a text of at most `most` bytes, empty if it is absent.
    ///
    /// # Errors
    /// If the field has another type or is longer.
    pub fn text(&mut self, key: u64, most: usize) -> Result<String, Malformed> {
        let Some(raw) = self.seek(key)? else { return Ok(String::new()) };
        let bytes = string_of(raw, TEXT).filter(|b| b.len() <= most).ok_or(Malformed::Type(key))?;
        str::from_utf8(bytes).map(str::to_owned).map_err(|_| Malformed::Utf8)
    }

    /// Reads a truth value, false if it is absent.
    ///
    /// # Errors
    /// If the field has another type.
    pub fn flag(&mut self, key: u64) -> Result<bool, Malformed> {
        let Some(raw) = self.seek(key)? else { return Ok(false) };
        match (Cursor { rest: raw }).head()? {
            (SIMPLE, TRUE) => Ok(true),
            (SIMPLE, FALSE) => Ok(false),
            _ => Err(Malformed::Type(key)),
        }
    }

    /// Reads a map inside this one that may be absent.
    ///
    /// # Errors
    /// If the field is not a map.
    pub fn optional_map(&mut self, key: u64) -> Result<Option<Self>, Malformed> {
        let Some(raw) = self.seek(key)? else { return Ok(None) };
        Self::checked(raw).map(Some).map_err(|_| Malformed::Type(key))
    }

    /// Reads a map inside this one.
    ///
    /// # Errors
    /// If the field is missing or not a map.
    pub fn map(&mut self, key: u64) -> Result<Self, Malformed> {
        self.optional_map(key)?.ok_or(Malformed::Missing(key))
    }

    /// Reads a list of at most `most` elements, empty if it is absent; `read` gets each encoded element.
    ///
    /// # Errors
    /// If the field is not a list, has too many elements, or `read` refuses one.
    pub fn list<T>(
        &mut self,
        key: u64,
        most: usize,
        mut read: impl FnMut(Element<'a>) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        let Some(raw) = self.seek(key)? else { return Ok(Vec::new()) };
        let mut cursor = Cursor { rest: raw };
        let (major, count) = cursor.head()?;
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if major != ARRAY || count > most {
            return Err(Malformed::Type(key));
        }
        let mut out = Vec::with_capacity(count);
        for _ in 0..count {
            let start = cursor.rest;
            cursor.value(MAX_CBOR_DEPTH)?;
            let length = start.len().saturating_sub(cursor.rest.len());
            let raw = start.get(..length).ok_or(Malformed::Truncated)?;
            out.push(read(Element { key, raw })?);
        }
        Ok(out)
    }

    /// Ends reading; passes over what is left.
    ///
    /// # Errors
    /// If a field below [`FIRST_OPTIONAL_KEY`] was never asked for (Rule 2.3).
    pub fn finish(mut self) -> Result<(), Malformed> {
        self.seek(u64::MAX)?;
        self.unknown.map_or(Ok(()), |key| Err(Malformed::Unknown(key)))
    }
}

fn string_of(raw: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut cursor = Cursor { rest: raw };
    cursor.head().ok().filter(|(major, _)| *major == wanted).map(|_| cursor.rest)
}

/// One encoded element of a list.
#[derive(Clone, Copy, Debug)]
pub struct Element<'a> {
    key: u64,
    raw: &'a [u8],
}

impl<'a> Element<'a> {
    /// Reads the element as a byte string.
    ///
    /// # Errors
    /// If it has another type.
    pub fn bytes(self) -> Result<&'a [u8], Malformed> {
        string_of(self.raw, BYTES).ok_or(Malformed::Type(self.key))
    }

    /// Reads the element as a byte string of a fixed size.
    ///
    /// # Errors
    /// If it has another type or size.
    pub fn id<T: TryFrom<&'a [u8]>>(self) -> Result<T, Malformed> {
        T::try_from(self.bytes()?).map_err(|_| Malformed::Type(self.key))
    }

    /// Reads the element as a map.
    ///
    /// # Errors
    /// If it has another type.
    pub fn map(self) -> Result<Map<'a>, Malformed> {
        Map::checked(self.raw).map_err(|_| Malformed::Type(self.key))
    }
}

/// Writes a map; keys must be given in ascending order.
#[derive(Clone, Debug, Default)]
pub struct MapWriter {
    pairs: Vec<u8>,
    count: u64,
    last: Option<u64>,
}

impl MapWriter {
    /// Makes an empty map.
    pub fn new() -> Self {
        Self::default()
    }

    fn key(&mut self, key: u64) {
        debug_assert!(self.last.is_none_or(|last| last < key), "map keys are written in ascending order");
        self.last = Some(key);
        self.count = self.count.saturating_add(1);
        head(&mut self.pairs, UNSIGNED, key);
    }

    /// Writes an unsigned integer.
    pub fn uint(&mut self, key: u64, value: impl Into<u64>) -> &mut Self {
        self.key(key);
        head(&mut self.pairs, UNSIGNED, value.into());
        self
    }

    /// Writes an unsigned integer if there is one.
    pub fn optional_uint(&mut self, key: u64, value: Option<impl Into<u64>>) -> &mut Self {
        match value {
            Some(value) => self.uint(key, value),
            None => self,
        }
    }

    /// Writes a byte string.
    pub fn bytes(&mut self, key: u64, value: &[u8]) -> &mut Self {
        self.key(key);
        string(&mut self.pairs, BYTES, value);
        self
    }

    /// Writes a byte string if there is one.
    pub fn optional_bytes(&mut self, key: u64, value: Option<&[u8]>) -> &mut Self {
        match value {
            Some(value) => self.bytes(key, value),
            None => self,
        }
    }

    /// Writes a text unless it is empty.
    pub fn text(&mut self, key: u64, value: &str) -> &mut Self {
        if !value.is_empty() {
            self.key(key);
            string(&mut self.pairs, TEXT, value.as_bytes());
        }
        self
    }

    /// Writes `true`, or nothing for `false`.
    pub fn flag(&mut self, key: u64, value: bool) -> &mut Self {
        if value {
            self.key(key);
            head(&mut self.pairs, SIMPLE, TRUE);
        }
        self
    }

    /// Writes a map inside this one.
    pub fn map(&mut self, key: u64, value: &Self) -> &mut Self {
        self.key(key);
        value.append_to(&mut self.pairs);
        self
    }

    /// Writes a list of byte strings unless it is empty.
    pub fn list_of_bytes<T: AsRef<[u8]>>(&mut self, key: u64, values: &[T]) -> &mut Self {
        self.list(key, values, |value, out| string(out, BYTES, value.as_ref()))
    }

    /// Writes a list of maps unless it is empty.
    pub fn list_of_maps<T>(&mut self, key: u64, values: &[T], make: impl Fn(&T) -> Self) -> &mut Self {
        self.list(key, values, |value, out| make(value).append_to(out))
    }

    fn list<T>(&mut self, key: u64, values: &[T], write: impl Fn(&T, &mut Vec<u8>)) -> &mut Self {
        if !values.is_empty() {
            self.key(key);
            head(&mut self.pairs, ARRAY, values.len() as u64);
            for value in values {
                write(value, &mut self.pairs);
            }
        }
        self
    }

    /// Appends the encoded map to what is there.
    pub(crate) fn append_to(&self, out: &mut Vec<u8>) {
        head(out, MAP, self.count);
        out.extend_from_slice(&self.pairs);
    }

    /// Returns the encoded pairs without the head of the map.
    pub fn pairs(&self) -> &[u8] {
        &self.pairs
    }

    /// Returns how many bytes the encoded map has.
    pub(crate) fn encoded_len(&self) -> usize {
        let head = match self.count {
            0..=23 => 1,
            24..=0xff => 2,
            0x100..=0xffff => 3,
            0x1_0000..=0xffff_ffff => 5,
            _ => 9,
        };
        self.pairs.len().saturating_add(head)
    }

    /// Returns the encoded map.
    pub fn finish(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_len());
        self.append_to(&mut out);
        out
    }
}

fn string(out: &mut Vec<u8>, major: u8, value: &[u8]) {
    head(out, major, value.len() as u64);
    out.extend_from_slice(value);
}

#[expect(clippy::cast_possible_truncation, reason = "each arm has checked that the value fits")]
fn head(out: &mut Vec<u8>, major: u8, argument: u64) {
    let major = major << 5;
    match argument {
        0..=23 => out.push(major | argument as u8),
        24..=0xff => out.extend_from_slice(&[major | 24, argument as u8]),
        0x100..=0xffff => {
            out.push(major | 25);
            out.extend_from_slice(&(argument as u16).to_be_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(major | 26);
            out.extend_from_slice(&(argument as u32).to_be_bytes());
        }
        _ => {
            out.push(major | 27);
            out.extend_from_slice(&argument.to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests;
