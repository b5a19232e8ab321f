//! Watches a camera with `ffmpeg` and tells which pictures came, and when.
//!
//! The pictures are decoded, so that a damaged one is an error; their time stamps tell whether one is missing.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// Bytes that are kept of what `ffmpeg` complains about; it may complain with every picture.
const MAX_COMPLAINT_BYTES: u64 = 4 << 10;

/// What was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Pictures that came.
    pub frames: u64,
    /// Pictures between the first and the last that did not come.
    pub missing: u64,
    /// The longest time between two, or between the last and the end, in milliseconds.
    pub largest_gap_ms: u64,
    /// The time from the first to the end, in milliseconds.
    pub watched_ms: u64,
    /// What was wrong, if something was: with the connection, or with a picture.
    pub complaint: Option<String>,
}

impl Seen {
    /// Returns it as JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "frames": self.frames, "missing": self.missing, "largest_gap_ms": self.largest_gap_ms,
            "watched_ms": self.watched_ms, "complaint": self.complaint,
        })
    }

    /// Reads what [`Seen::to_json`] wrote; none if it is something else.
    #[must_use]
    pub fn from_json(value: &Value) -> Option<Self> {
        let number = |name: &str| value.get(name)?.as_u64();
        Some(Self {
            frames: number("frames")?,
            missing: number("missing")?,
            largest_gap_ms: number("largest_gap_ms")?,
            watched_ms: number("watched_ms")?,
            complaint: value.get("complaint")?.as_str().map(str::to_owned),
        })
    }
}

/// Somebody who watches.
#[derive(Debug)]
pub struct Watch {
    player: Child,
    tally: Arc<Mutex<Tally>>,
    reading: JoinHandle<()>,
    complaining: JoinHandle<String>,
}

impl Watch {
    /// Begins to watch an address of RTSP, over TCP alone; calls `plays` with the first picture.
    ///
    /// # Errors
    /// When `ffmpeg` cannot be started.
    pub fn start(url: &str, plays: impl FnOnce() + Send + 'static) -> Result<Self> {
        let mut player = Command::new("ffmpeg")
            .args(["-nostdin", "-loglevel", "error", "-rtsp_transport", "tcp"])
            // It would look at five seconds before it shows the first picture.
            .args(["-analyzeduration", "1000000", "-i", url])
            // Each picture as it comes, with the time stamp that the camera gave it, as a line of text.
            .args(["-map", "0:v", "-fps_mode", "passthrough", "-enc_time_base", "-1"])
            .args(["-f", "framecrc", "-flush_packets", "1", "pipe:1"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start ffmpeg")?;
        let pictures = player.stdout.take().context("ffmpeg has no output")?;
        let complaints = player.stderr.take().context("ffmpeg has no output for errors")?;
        let tally = Arc::new(Mutex::new(Tally::default()));
        let shared = Arc::clone(&tally);
        let reading = thread::spawn(move || {
            let mut plays = Some(plays);
            for line in BufReader::new(pictures).lines().map_while(Result::ok) {
                let Some(picture) = Picture::parse(&line) else { continue };
                shared.lock().unwrap_or_else(PoisonError::into_inner).count(picture, Instant::now());
                if let Some(plays) = plays.take() {
                    plays();
                }
            }
        });
        let complaining = thread::spawn(move || {
            let mut text = Vec::new();
            let mut complaints = complaints;
            // What was read before an error is as good.
            let _ = complaints.by_ref().take(MAX_COMPLAINT_BYTES).read_to_end(&mut text);
            let _ = std::io::copy(&mut complaints, &mut std::io::sink());
            String::from_utf8_lossy(&text).trim().to_owned()
        });
        Ok(Self { player, tally, reading, complaining })
    }

    /// Stops watching, and returns what was seen.
    ///
    /// # Errors
    /// When this program itself has failed.
    pub fn finish(mut self) -> Result<Seen> {
        let ended_at = Instant::now();
        let status = self.player.try_wait()?;
        // It would say goodbye to the camera, which is none of what is watched for.
        self.player.kill()?;
        self.player.wait()?;
        self.reading.join().map_err(|_| anyhow::anyhow!("reading pictures panicked"))?;
        let complaint = self.complaining.join().map_err(|_| anyhow::anyhow!("reading errors panicked"))?;
        let ended = status.map(|status| format!("ffmpeg ended with {status}. {complaint}"));
        let tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Seen {
            complaint: ended.or_else(|| Some(complaint).filter(|complaint| !complaint.is_empty())),
            ..tally.seen(ended_at)
        })
    }
}

/// A picture, in units of its stream's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Picture {
    at: i64,
    duration: i64,
}

impl Picture {
    /// Reads a line of ffmpeg's `framecrc`: stream, decoding time, presentation time, duration, bytes and checksum.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(',').map(str::trim);
        let at = fields.nth(2)?.parse().ok()?;
        let duration = fields.next()?.parse().ok().filter(|duration| *duration > 0)?;
        Some(Self { at, duration })
    }
}

#[derive(Debug, Default)]
struct Tally {
    frames: u64,
    missing: u64,
    largest_gap: Duration,
    /// When the first picture came, and the last.
    came_at: Option<(Instant, Instant)>,
    last: Option<Picture>,
}

impl Tally {
    fn count(&mut self, picture: Picture, now: Instant) {
        self.frames += 1;
        if let Some(last) = self.last {
            // Half a step more or less is the rounding of two clocks.
            let steps = (picture.at - last.at + picture.duration / 2) / picture.duration;
            self.missing += u64::try_from(steps - 1).unwrap_or(0);
        }
        self.last = Some(picture);
        let (first_at, last_at) = self.came_at.unwrap_or((now, now));
        self.largest_gap = self.largest_gap.max(now.saturating_duration_since(last_at));
        self.came_at = Some((first_at, now));
    }

    fn seen(&self, now: Instant) -> Seen {
        let milliseconds = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let (first_at, last_at) = self.came_at.unwrap_or((now, now));
        Seen {
            frames: self.frames,
            missing: self.missing,
            largest_gap_ms: milliseconds(self.largest_gap.max(now.saturating_duration_since(last_at))),
            watched_ms: milliseconds(now.saturating_duration_since(first_at)),
            complaint: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts pictures with these numbers, 66 ms apart but for the last, and returns what was seen 100 ms after it.
    fn tally(numbers: &[i64]) -> Seen {
        let mut tally = Tally::default();
        let mut now = Instant::now();
        for (index, number) in numbers.iter().enumerate() {
            now += Duration::from_millis(if index + 1 == numbers.len() { 500 } else { 66 });
            tally.count(Picture { at: number * 6_000, duration: 6_000 }, now);
        }
        tally.seen(now + Duration::from_millis(100))
    }

    #[test]
    fn pictures_that_did_not_come_are_counted_by_their_time_stamps() {
        // The decoder shows the first picture twice.
        assert_eq!(tally(&[0, 0, 1, 2, 3]).missing, 0);
        assert_eq!(tally(&[0, 1, 2, 5, 7]).missing, 3);
    }

    #[test]
    fn the_longest_time_without_a_picture_is_told_and_the_end_counts() {
        let seen = tally(&[0, 1, 2, 3]);
        assert_eq!((seen.frames, seen.largest_gap_ms, seen.watched_ms), (4, 500, 66 * 2 + 500 + 100));
        let mut tally = Tally::default();
        let now = Instant::now();
        tally.count(Picture { at: 0, duration: 1 }, now);
        assert_eq!(tally.seen(now + Duration::from_secs(9)).largest_gap_ms, 9_000);
    }

    #[test]
    fn a_picture_is_told_from_the_other_lines_of_ffmpeg() {
        let line = "0,     648000,     648000,     6000,   345600, 0x2d001bf2";
        assert_eq!(Picture::parse(line), Some(Picture { at: 648_000, duration: 6_000 }));
        assert_eq!(Picture::parse("#tb 0: 1/90000"), None);
        assert_eq!(Picture::parse("0, 1, 2, 0, 5, 0x0"), None);
    }

    #[test]
    fn what_was_seen_survives_its_json() {
        let seen = Seen { complaint: Some("broken".to_owned()), ..tally(&[0, 1, 4]) };
        assert_eq!(Seen::from_json(&seen.to_json()), Some(seen));
    }
}
