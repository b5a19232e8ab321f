//! Licence expressions: which of the choices that an author leaves are acceptable here.

use std::collections::BTreeSet;

/// Why a licence expression cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SpdxError {
    /// It ends where a licence should stand.
    Ends,
    /// A word stands where it makes no sense.
    Unexpected(String),
}

impl std::fmt::Display for SpdxError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ends => f.write_str("it ends too early"),
            Self::Unexpected(word) => write!(f, "unexpected `{word}`"),
        }
    }
}

/// Tells whether an expression can be met with allowed licences alone.
///
/// `AND` binds more tightly than `OR`; the old `MIT/Apache-2.0` of crates.io means `OR`. A licence with an
/// exception is looked up as a whole (`Apache-2.0 WITH LLVM-exception`).
pub(super) fn permits(expression: &str, allowed: &BTreeSet<String>) -> Result<bool, SpdxError> {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let permitted = any_of(&mut words, allowed)?;
    match words.next() {
        None => Ok(permitted),
        Some(word) => Err(SpdxError::Unexpected(word.into())),
    }
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any_of(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> Result<bool, SpdxError> {
    let mut permitted = all_of(words, allowed)?;
    while words.next_if_eq(&"OR").is_some() {
        permitted |= all_of(words, allowed)?;
    }
    Ok(permitted)
}

fn all_of(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> Result<bool, SpdxError> {
    let mut permitted = one(words, allowed)?;
    while words.next_if_eq(&"AND").is_some() {
        permitted &= one(words, allowed)?;
    }
    Ok(permitted)
}

fn one(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> Result<bool, SpdxError> {
    let word = words.next().ok_or(SpdxError::Ends)?;
    if word == "(" {
        let permitted = any_of(words, allowed)?;
        return match words.next() {
            Some(")") => Ok(permitted),
            Some(other) => Err(SpdxError::Unexpected(other.into())),
            None => Err(SpdxError::Ends),
        };
    }
    if matches!(word, ")" | "AND" | "OR" | "WITH") {
        return Err(SpdxError::Unexpected(word.into()));
    }
    let licence = match words.next_if_eq(&"WITH") {
        Some(_) => format!("{word} WITH {}", words.next().ok_or(SpdxError::Ends)?),
        None => word.to_owned(),
    };
    Ok(allowed.contains(&licence))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permits_mit_and_isc(expression: &str) -> Result<bool, SpdxError> {
        permits(expression, &["MIT", "ISC"].map(String::from).into())
    }

    #[test]
    fn one_allowed_choice_is_enough() {
        assert_eq!(permits_mit_and_isc("GPL-2.0 OR MIT"), Ok(true));
        assert_eq!(permits_mit_and_isc("MIT/Apache-2.0"), Ok(true));
        assert_eq!(permits_mit_and_isc("GPL-2.0 OR Apache-2.0"), Ok(false));
    }

    #[test]
    fn everything_joined_by_and_must_be_allowed() {
        assert_eq!(permits_mit_and_isc("MIT AND ISC"), Ok(true));
        assert_eq!(permits_mit_and_isc("(MIT OR GPL-2.0) AND Unicode-3.0"), Ok(false));
        assert_eq!(permits_mit_and_isc("GPL-2.0 OR MIT AND ISC"), Ok(true));
    }

    #[test]
    fn an_exception_belongs_to_its_licence() {
        assert_eq!(permits_mit_and_isc("MIT WITH LLVM-exception"), Ok(false));
    }

    #[test]
    fn nonsense_is_an_error_and_not_a_permission() {
        assert_eq!(permits_mit_and_isc(""), Err(SpdxError::Ends));
        assert_eq!(permits_mit_and_isc("MIT MIT"), Err(SpdxError::Unexpected("MIT".into())));
        assert_eq!(permits_mit_and_isc("(MIT"), Err(SpdxError::Ends));
        assert_eq!(permits_mit_and_isc("OR MIT"), Err(SpdxError::Unexpected("OR".into())));
    }
}
