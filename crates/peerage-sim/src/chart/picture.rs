//! A picture of lines, dots and words, written as SVG or as PNG.

use miniz_oxide::deflate::compress_to_vec_zlib;

use super::letters::strokes;

/// A colour: red, green, blue.
pub(super) type Colour = [u8; 3];

/// Where words stand relative to their point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

impl Anchor {
    const fn word(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Middle => "middle",
            Self::End => "end",
        }
    }

    const fn share(self) -> f64 {
        match self {
            Self::Start => 0.0,
            Self::Middle => 0.5,
            Self::End => 1.0,
        }
    }
}

/// Something in a picture.
#[derive(Clone, Debug)]
pub(super) enum Mark {
    /// A line through points; dashed if so.
    Line { points: Vec<(f64, f64)>, width: f64, colour: Colour, is_dashed: bool },
    /// A filled circle.
    Dot { at: (f64, f64), radius: f64, colour: Colour },
    /// Words; upwards if so.
    Words { at: (f64, f64), size: f64, anchor: Anchor, colour: Colour, is_upward: bool, text: String },
}

/// A picture on white ground.
#[derive(Clone, Debug)]
pub(super) struct Picture {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) marks: Vec<Mark>,
}

/// Length of a dash, and of the gap after it.
const DASH: f64 = 6.0;

impl Picture {
    /// Writes it as SVG.
    pub(super) fn svg(&self) -> String {
        let (width, height) = (self.width, self.height);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" font-family=\"Helvetica, Arial, sans-serif\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
        );
        for mark in &self.marks {
            out.push_str(&svg_of(mark));
        }
        out.push_str("</svg>\n");
        out
    }

    /// Writes it as PNG, at twice the size.
    pub(super) fn png(&self) -> Vec<u8> {
        /// Pixels per step of the picture.
        const SCALE: f64 = 2.0;
        let mut canvas = Canvas::new(self.width * 2, self.height * 2, SCALE);
        for mark in &self.marks {
            canvas.draw(mark);
        }
        canvas.png()
    }
}

fn hex([red, green, blue]: Colour) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

fn svg_of(mark: &Mark) -> String {
    match mark {
        Mark::Line { points, width, colour, is_dashed } => {
            let points: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let dash =
                if *is_dashed { format!(" stroke-dasharray=\"{DASH} {DASH}\"") } else { String::new() };
            let (points, colour) = (points.join(" "), hex(*colour));
            format!(
                "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"{dash}/>\n"
            )
        }
        Mark::Dot { at: (x, y), radius, colour } => {
            format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{}\"/>\n", hex(*colour))
        }
        Mark::Words { at: (x, y), size, anchor, colour, is_upward, text } => {
            let turn =
                if *is_upward { format!(" transform=\"rotate(-90 {x:.1} {y:.1})\"") } else { String::new() };
            let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
            let (anchor, colour) = (anchor.word(), hex(*colour));
            format!(
                "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" text-anchor=\"{anchor}\" fill=\"{colour}\"{turn}>{text}</text>\n"
            )
        }
    }
}

/// Pixels.
struct Canvas {
    width: u32,
    height: u32,
    scale: f64,
    /// Red, green and blue of each, row by row.
    pixels: Vec<u8>,
}

impl Canvas {
    fn new(width: u32, height: u32, scale: f64) -> Self {
        let count = usize::try_from(u64::from(width) * u64::from(height) * 3).unwrap_or(0);
        Self { width, height, scale, pixels: vec![255; count] }
    }

    fn draw(&mut self, mark: &Mark) {
        match mark {
            Mark::Line { points, width, colour, is_dashed } => {
                for piece in pieces(points, *is_dashed) {
                    self.segment(piece, *width, *colour);
                }
            }
            Mark::Dot { at, radius, colour } => self.segment([*at, *at], radius * 2.0, *colour),
            Mark::Words { at, size, anchor, colour, is_upward, text } => {
                self.words(*at, *size, *anchor, (*colour, *is_upward), text);
            }
        }
    }

    fn words(
        &mut self,
        (x, y): (f64, f64),
        size: f64,
        anchor: Anchor,
        (colour, is_upward): (Colour, bool),
        text: &str,
    ) {
        // The grid of letters is six steps high for a capital, which has seven tenths of the size.
        let (across, down, gap) = (size * 0.1, size * 0.118, 1.9);
        let letters: Vec<_> = text.chars().map(strokes).collect();
        let length: f64 = letters.iter().map(|(_, width)| width + gap).sum::<f64>() - gap;
        let mut pen = -length * across * anchor.share();
        for (lines, width) in letters {
            for line in lines {
                let place = |(px, py): (f64, f64)| {
                    let (dx, dy) = (pen + px * across, (py - 6.0) * down);
                    if is_upward { (x + dy, y - dx) } else { (x + dx, y + dy) }
                };
                let placed: Vec<_> = line.into_iter().map(place).collect();
                let alone =
                    if placed.len() == 1 { [placed.clone(), placed.clone()].concat() } else { placed };
                for pair in alone.windows(2) {
                    if let [from, to] = pair {
                        self.segment([*from, *to], size * 0.09, colour);
                    }
                }
            }
            pen += (width + gap) * across;
        }
    }

    /// Draws a straight line with round ends.
    fn segment(&mut self, [from, to]: [(f64, f64); 2], width: f64, colour: Colour) {
        let scaled = |(x, y): (f64, f64)| (x * self.scale, y * self.scale);
        let ((ax, ay), (bx, by), half) = (scaled(from), scaled(to), width * self.scale / 2.0);
        let reach = half + 1.0;
        let (dx, dy) = (bx - ax, by - ay);
        let length = dx * dx + dy * dy;
        for row in pixel(ay.min(by) - reach)..=pixel(ay.max(by) + reach).min(self.height.saturating_sub(1)) {
            for column in
                pixel(ax.min(bx) - reach)..=pixel(ax.max(bx) + reach).min(self.width.saturating_sub(1))
            {
                let (x, y) = (f64::from(column) + 0.5, f64::from(row) + 0.5);
                let along = if length > 0.0 { ((x - ax) * dx + (y - ay) * dy) / length } else { 0.0 };
                let along = along.clamp(0.0, 1.0);
                let distance = (x - ax - along * dx).hypot(y - ay - along * dy);
                self.blend(column, row, (half + 0.5 - distance).clamp(0.0, 1.0), colour);
            }
        }
    }

    fn blend(&mut self, column: u32, row: u32, share: f64, colour: Colour) {
        let at =
            usize::try_from((u64::from(row) * u64::from(self.width) + u64::from(column)) * 3).unwrap_or(0);
        let Some(pixel) = self.pixels.get_mut(at..at.saturating_add(3)) else { return };
        for (old, new) in pixel.iter_mut().zip(colour) {
            *old = shade(f64::from(*old) * (1.0 - share) + f64::from(new) * share);
        }
    }

    /// Writes the file: RFC 2083, true colour, each row as differences from the one above.
    fn png(&self) -> Vec<u8> {
        let row = usize::try_from(u64::from(self.width) * 3).unwrap_or(1).max(1);
        let mut raw = Vec::with_capacity(self.pixels.len());
        let mut above = vec![0; row];
        for pixels in self.pixels.chunks_exact(row) {
            raw.push(2);
            raw.extend(pixels.iter().zip(&above).map(|(pixel, above)| pixel.wrapping_sub(*above)));
            above = pixels.to_vec();
        }
        let mut header = [self.width.to_be_bytes(), self.height.to_be_bytes()].concat();
        header.extend([8, 2, 0, 0, 0]);
        let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
        chunk(&mut out, b"IHDR", &header);
        chunk(&mut out, b"IDAT", &compress_to_vec_zlib(&raw, 9));
        chunk(&mut out, b"IEND", &[]);
        out
    }
}

/// Cuts a line into its straight pieces, or into dashes.
fn pieces(points: &[(f64, f64)], is_dashed: bool) -> Vec<[(f64, f64); 2]> {
    let mut pieces = Vec::new();
    for pair in points.windows(2) {
        let [from, to] = pair else { continue };
        if !is_dashed {
            pieces.push([*from, *to]);
            continue;
        }
        let (dx, dy) = (to.0 - from.0, to.1 - from.1);
        let length = dx.hypot(dy).max(f64::MIN_POSITIVE);
        let mut at = 0.0;
        while at < length {
            let point = |at: f64| (from.0 + dx * at / length, from.1 + dy * at / length);
            pieces.push([point(at), point((at + DASH).min(length))]);
            at += DASH * 2.0;
        }
    }
    pieces
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to what fits")]
fn pixel(at: f64) -> u32 {
    at.clamp(0.0, 65_535.0) as u32
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to what fits")]
fn shade(value: f64) -> u8 {
    value.round().clamp(0.0, 255.0) as u8
}

fn chunk(out: &mut Vec<u8>, kind: &[u8; 4], body: &[u8]) {
    out.extend(u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes());
    let checked = [kind, body].concat();
    out.extend(&checked);
    out.extend(crc(&checked).to_be_bytes());
}

/// The checksum of PNG (RFC 2083, section 15).
fn crc(bytes: &[u8]) -> u32 {
    let step = |sum: u32, byte: &u8| {
        let turn = |sum: u32, _| if sum & 1 == 1 { (sum >> 1) ^ 0xedb8_8320 } else { sum >> 1 };
        (0..8).fold(sum ^ u32::from(*byte), turn)
    };
    !bytes.iter().fold(u32::MAX, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        assert_eq!(crc(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn a_line_leaves_its_colour_in_the_pixels_that_it_crosses() {
        let mut canvas = Canvas::new(10, 10, 1.0);
        canvas.segment([(1.0, 5.0), (9.0, 5.0)], 3.0, [255, 0, 0]);
        let at = |column: usize, row: usize| &canvas.pixels[(row * 10 + column) * 3..][..3];
        assert_eq!(at(5, 5), [255, 0, 0]);
        assert_eq!(at(5, 0), [255, 255, 255]);
        assert!(canvas.png().starts_with(b"\x89PNG"));
    }
}
