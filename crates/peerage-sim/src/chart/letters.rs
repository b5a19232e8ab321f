//! Letters made of strokes, so that a picture needs no font of the machine that draws it.
//!
//! A letter is a list of lines through points of a grid, each point two digits: across, then down. Capitals reach from 0 to 6, small
//! letters begin at 2, what hangs below the line ends at 8.

/// What stands where there is no stroke for a letter.
const UNKNOWN: &str = "0040464600";

#[rustfmt::skip]
const STROKES: [(char, &str); 85] = [
    ('A', "062046 1434"), ('B', "06003041423303 3344453606"), ('C', "4130100105163645"),
    ('D', "00063645413000"), ('E', "40000646 0333"), ('F', "400006 0333"),
    ('G', "41301001051636454323"), ('H', "0006 4046 0343"), ('I', "0006"), ('J', "4045361605"),
    ('K', "0006 4004 1346"), ('L', "000646"), ('M', "0600234046"), ('N', "06004640"),
    ('O', "103041453616050110"), ('P', "06003041423303"), ('Q', "103041453616050110 2446"),
    ('R', "06003041423303 2346"), ('S', "413010010213334445361605"), ('T', "0040 2026"),
    ('U', "000516364540"), ('V', "002640"), ('W', "0016233640"), ('X', "0046 4006"),
    ('Y', "002340 2326"), ('Z', "00400646"),
    ('a', "4332120305163645 4246"), ('b', "0006 0312324345361605"), ('c', "4332120305163645"),
    ('d', "4046 4332120305163645"), ('e', "04444332120305163645"), ('f', "30201116 0232"),
    ('g', "4332120305163645 4247381807"), ('h', "0006 0312324346"), ('i', "0206 0000"),
    ('j', "121708 1010"), ('k', "0006 3205 1436"), ('l', "0006"), ('m', "0206 0312223336 3342526366"),
    ('n', "0206 0312324346"), ('o', "123243453616050312"), ('p', "0208 0312324345361605"),
    ('q', "4248 4332120305163645"), ('r', "0206 03122232"), ('s', "421203143445361606"),
    ('t', "10152636 0232"), ('u', "0205163645 4246"), ('v', "022642"), ('w', "0216243642"),
    ('x', "0246 4206"), ('y', "0226 4218"), ('z', "02420646"),
    ('0', "103041453616050110"), ('1', "112026 1636"), ('2', "01103041420646"),
    ('3', "01103041423323 334445361605"), ('4', "36300444"), ('5', "400003334445361605"),
    ('6', "413010010516364544331304"), ('7', "004016"), ('8', "103041423313020110 133344453616050413"),
    ('9', "051636454130100102133342"),
    ('.', "0606"), (',', "1607"), ('-', "0333"), ('–', "0343"), ('+', "0444 2226"), ('=', "0343 0545"),
    ('/', "0640"), ('(', "20111526"), (')', "00111506"), ('%', "0640 0010110100 3545463635"),
    (':', "0303 0606"), ('×', "0345 4305"), ('·', "0404"), ('\'', "0001"), ('"', "0001 1011"), ('<', "410445"),
    ('>', "014405"), ('?', "01103041422324 2626"), ('≤', "410345 0646"), ('µ', "0208 0516364542 4246"),
    (' ', ""), ('_', "0747"), (';', "1313 1607"),
];

/// Returns the lines of a letter, and how wide it is, in steps of the grid.
pub(super) fn strokes(letter: char) -> (Vec<Vec<(f64, f64)>>, f64) {
    let found = STROKES.iter().find(|(one, _)| *one == letter).map_or(UNKNOWN, |(_, strokes)| strokes);
    let lines: Vec<Vec<_>> = found.split(' ').map(points).filter(|line| !line.is_empty()).collect();
    let widest = lines.iter().flatten().map(|(x, _)| *x).fold(0.0, f64::max);
    let width = if lines.is_empty() { 2.0 } else { widest };
    (lines, width)
}

fn points(line: &str) -> Vec<(f64, f64)> {
    let digit = |byte: &u8| f64::from(byte.saturating_sub(b'0'));
    line.as_bytes()
        .chunks_exact(2)
        .filter_map(|pair| Some((digit(pair.first()?), digit(pair.get(1)?))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_letter_stays_on_its_grid() {
        for (letter, strokes) in STROKES {
            let digits = strokes.replace(' ', "");
            assert!(digits.bytes().all(|byte| byte.is_ascii_digit()), "{letter}");
            assert!(strokes.split(' ').all(|line| line.len() % 2 == 0), "{letter}");
            assert!(strokes.split(' ').flat_map(points).all(|(x, y)| x <= 6.0 && y <= 8.0), "{letter}");
        }
    }
}
