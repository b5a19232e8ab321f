//! A real IP camera: GStreamer's RTSP server with a moving test picture.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::netns::Process;
use crate::topology::Host;

/// How long the camera may take until it listens; Python and GStreamer look through all their modules first.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The port of RTSP.
pub const PORT: u16 = 554;

/// Pictures that it sends in a second.
pub const FRAMES_PER_SECOND: u64 = 15;

/// Packages of Debian that bring the programs of the camera and of who watches it.
///
/// They are 77 MB with what they need, so that only the story with the camera asks for them.
pub const PACKAGES: &[&str] = &[
    "ffmpeg",
    "gir1.2-gst-rtsp-server-1.0",
    "gstreamer1.0-plugins-base",
    "gstreamer1.0-plugins-good",
    "gstreamer1.0-plugins-ugly",
    "python3-gi",
];

/// Serves the picture at `/live`, to everybody who asks and all from one source.
const SCRIPT: &str = r#"
import sys
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer

Gst.init(None)
live = GstRtspServer.RTSPMediaFactory()
live.set_shared(True)
live.set_launch(
    "( videotestsrc is-live=true pattern=ball"
    f" ! video/x-raw,width=640,height=360,framerate={sys.argv[2]}/1"
    " ! x264enc tune=zerolatency speed-preset=ultrafast bitrate=500 key-int-max=30"
    " ! rtph264pay name=pay0 pt=96 config-interval=1 )"
)
server = GstRtspServer.RTSPServer()
server.set_service(sys.argv[1])
server.get_mount_points().add_factory("/live", live)
if server.attach(None) == 0:
    sys.exit("the port is taken")
print("ready", flush=True)
GLib.MainLoop().run()
"#;

/// A camera; it is switched off when this value is dropped.
#[derive(Debug)]
pub struct Camera {
    process: Process,
}

impl Camera {
    /// Switches the camera on at this host, where it listens at port 554 on all addresses.
    ///
    /// # Errors
    /// When it does not start, with what its programs said; one of [`PACKAGES`] may be missing.
    pub fn start(host: &Host) -> Result<Self> {
        // By its path: GStreamer's bindings belong to the distribution's Python, and another may come first.
        let mut process = host
            .command("/usr/bin/python3")
            .args(["-c", SCRIPT, &PORT.to_string(), &FRAMES_PER_SECOND.to_string()])
            // What it learns about its modules is kept there.
            .env("XDG_CACHE_HOME", "/run")
            .spawn()?;
        process
            .wait_for_line("the camera listened", START_TIMEOUT, |line| (line == "ready").then_some(()))
            .with_context(|| format!("it needs the packages {}", PACKAGES.join(" ")))?;
        Ok(Self { process })
    }

    /// Switches it off.
    ///
    /// # Errors
    /// When it had ended by itself, with what it said.
    pub fn stop(mut self) -> Result<()> {
        ensure!(self.process.is_running(), "the camera had ended:\n{}", self.process.stderr());
        self.process.kill()?;
        Ok(())
    }
}
