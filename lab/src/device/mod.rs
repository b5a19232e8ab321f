//! Devices and what they need in a LAN.

mod dhcp;
mod printer;
mod sample;

pub use dhcp::DhcpServer;
pub use printer::{PORT as PRINTER_PORT, Printer, document, print};
pub use sample::{MAX_CONNECTIONS, SampleDevice};
