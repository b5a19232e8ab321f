//! The shell around the Peerage state machines: sockets, TLS, SQLite, LAN facts, local API.

mod backend;
pub mod carrier;
pub mod clock;
pub mod connect;
pub mod data;
pub mod doctor;
mod door;
pub mod driver;
pub mod enrol;
pub mod fitness;
pub mod http;
pub mod lan;
pub mod lending;
pub mod link;
pub mod local_api;
mod mapping;
pub mod membership;
mod places;
pub mod private;
pub mod relay;
pub mod run;
pub mod store;
pub mod tls;
pub mod tunnel;
pub mod udp;
