//! Listens to all that crosses a computer's interfaces and tells whether certain bytes were among it.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};
use serde_json::{Value, json};

/// Bytes of traffic that are kept; what comes later is counted and forgotten.
///
/// Searching only at the end keeps the listener fast enough not to lose much. More costs memory, less would leave the
/// end of a long story unsearched.
const MAX_KEPT_BYTES: usize = 256 << 20;

/// The largest frame that the kernel hands over: one that network cards would cut into pieces.
const MAX_FRAME_BYTES: usize = 128 << 10;

/// Shorter needles would be found in random bytes by chance.
const MIN_NEEDLE_BYTES: usize = 8;

/// How long the listener waits for a frame before it looks whether it shall end, in milliseconds.
const POLL_MILLISECONDS: i64 = 50;

/// Writes what shall be looked for to a file for [`read_needles`].
///
/// # Errors
/// When a needle is shorter than 8 bytes, or the file cannot be written.
pub fn write_needles(path: &Path, needles: &[&[u8]]) -> Result<()> {
    ensure!(
        needles.iter().all(|needle| needle.len() >= MIN_NEEDLE_BYTES),
        "a needle is too short to mean something"
    );
    fs::write(path, json!(needles).to_string()).with_context(|| format!("cannot write {}", path.display()))
}

/// Reads what [`write_needles`] wrote.
///
/// # Errors
/// When the file cannot be read or is not as expected.
pub fn read_needles(path: &Path) -> Result<Vec<Vec<u8>>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let value: Value = serde_json::from_str(&text)?;
    let needle = |needle: &Value| {
        let bytes = needle.as_array()?.iter().map(|byte| u8::try_from(byte.as_u64()?).ok());
        bytes.collect::<Option<Vec<u8>>>()
    };
    let needles = value.as_array().context("not a list")?;
    needles.iter().map(|value| needle(value).context("not a list of bytes")).collect()
}

/// What was heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Frames, each counted once for every interface that it crossed.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The indices of the needles that were within a frame.
    pub needles: Vec<usize>,
}

impl Heard {
    /// Returns it as JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({ "frames": self.frames, "bytes": self.bytes, "needles": self.needles })
    }
}

/// A running listener.
#[derive(Debug)]
pub struct Capture {
    needles: Vec<Vec<u8>>,
    ends: Arc<AtomicBool>,
    listener: JoinHandle<Result<Frames>>,
}

#[derive(Debug, Default)]
struct Frames {
    count: u64,
    bytes: u64,
    kept: Vec<u8>,
    /// Where each kept frame ends.
    ends: Vec<usize>,
}

impl Capture {
    /// Begins to listen on all interfaces; needs the rights of an administrator of this network.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn start(needles: &[Vec<u8>]) -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)
            .context("cannot listen to the network")?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(POLL_MILLISECONDS))?;
        let ends = Arc::new(AtomicBool::new(false));
        let listener = {
            let ends = Arc::clone(&ends);
            thread::spawn(move || {
                let mut frames = Frames::default();
                let mut buffer = vec![0; MAX_FRAME_BYTES];
                loop {
                    match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                        Ok(length) => frames.add(buffer.get(..length).unwrap_or_default()),
                        // Only a quiet moment is the end: what was sent before the order to end is heard.
                        Err(Errno::EAGAIN) if ends.load(Ordering::Relaxed) => return Ok(frames),
                        Err(Errno::EAGAIN | Errno::EINTR | Errno::ENETDOWN) => {}
                        Err(error) => return Err(error).context("listening failed"),
                    }
                }
            })
        };
        Ok(Self { needles: needles.to_vec(), ends, listener })
    }

    /// Stops listening at the next quiet moment and searches what was heard.
    ///
    /// # Errors
    /// When listening failed.
    pub fn finish(self) -> Result<Heard> {
        self.ends.store(true, Ordering::Relaxed);
        let frames = self.listener.join().map_err(|_| anyhow::anyhow!("the listener panicked"))??;
        let found = |needle: &&Vec<u8>| frames.iter().any(|frame| contains(frame, needle));
        let needles = self.needles.iter().enumerate().filter(|(_, needle)| found(needle));
        Ok(Heard {
            frames: frames.count,
            bytes: frames.bytes,
            needles: needles.map(|(index, _)| index).collect(),
        })
    }
}

impl Frames {
    fn add(&mut self, frame: &[u8]) {
        self.count += 1;
        self.bytes += frame.len() as u64;
        if self.kept.len() + frame.len() <= MAX_KEPT_BYTES {
            self.kept.extend_from_slice(frame);
            self.ends.push(self.kept.len());
        }
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let begins = [0].into_iter().chain(self.ends.iter().copied());
        begins.zip(&self.ends).map(|(begin, end)| self.kept.get(begin..*end).unwrap_or_default())
    }
}

/// Returns whether the needle is within the bytes; most positions are ruled out by one byte.
fn contains(mut bytes: &[u8], needle: &[u8]) -> bool {
    let Some(first) = needle.first() else { return true };
    while let Some(position) = bytes.iter().position(|byte| byte == first) {
        bytes = bytes.get(position..).unwrap_or_default();
        if bytes.starts_with(needle) {
            return true;
        }
        bytes = bytes.get(1..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_needle_is_found_wherever_it_is_and_not_across_frames() {
        let mut frames = Frames::default();
        for frame in ["xxneedle", "needlexx", "aneneedlea", "nee", "dle"] {
            frames.add(frame.as_bytes());
        }
        let found: Vec<bool> = frames.iter().map(|frame| contains(frame, b"needle")).collect();
        assert_eq!(found, [true, true, true, false, false]);
    }

    #[test]
    fn needles_survive_the_file_and_short_ones_are_refused() {
        let path = std::env::temp_dir().join(format!("needles-{}", std::process::id()));
        write_needles(&path, &[b"12345678", &[0, 255, 10, 13, 34, 92, 7, 8, 9]]).unwrap();
        let read = read_needles(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(read, [b"12345678".to_vec(), vec![0, 255, 10, 13, 34, 92, 7, 8, 9]]);
        assert!(write_needles(&path, &[b"short"]).is_err());
    }
}
