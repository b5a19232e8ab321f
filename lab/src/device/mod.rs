//! Devices and what they need in a LAN.

mod camera;
mod dhcp;
mod gateway;
mod printer;
mod proxy;
mod sample;

pub use camera::{Camera, FRAMES_PER_SECOND, PACKAGES as CAMERA_PACKAGES, PORT as CAMERA_PORT};
pub use dhcp::DhcpServer;
pub use gateway::{MappingDaemon, MappingProtocol};
pub use printer::{PORT as PRINTER_PORT, Printer, document, print};
pub use proxy::{Manner as ProxyManner, PACKAGES as PROXY_PACKAGES, PORT as PROXY_PORT, Proxy};
pub use sample::{MAX_CONNECTIONS, SampleDevice};
