//! The local API of a Peerage node and the admin API of an operator: their types, and a small async client of each.
//!
//! A program that wants to use devices in a Peerage network needs nothing but this crate and a running node:
//! [`Client`] speaks HTTP and JSON over the node's Unix socket. The vendor's own software registers devices and
//! nodes through [`AdminClient`], over TCP on the loopback address of the operator's machine.
//!
//! Conventions of both APIs:
//! - A point in time is an integer of milliseconds since 1970-01-01 UTC, in a field called `…_at_ms`.
//!   A duration is an integer of milliseconds, in a field called `…_ms`.
//! - Node, device, tunnel and token ids are strings, exactly as the program prints them.
//! - Readers ignore fields that they do not know; a request with an unknown field is refused.
//! - Every failure is a [`Problem`] (RFC 9457) with a stable `type`.
//!
//! A program that prints to a device of the network needs this:
//!
//! ```no_run
//! use peerage_client::{Client, Error, local::OpenTunnel};
//!
//! # async fn example() -> Result<(), Error> {
//! let client = Client::new("/var/lib/peerage/node");
//! let tunnel = client.open_tunnel(&OpenTunnel::new("hp-3rd-floor")).await?;
//! // The tunnel ends with this value, even if the program is killed.
//! let mut events = client.hold_tunnel(&tunnel.id).await?;
//! println!("print to {}; {}", tunnel.local, tunnel.privacy);
//! while let Some(event) = events.next().await {
//!     println!("{:?}", event?.detail);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Both are described in OpenAPI 3.1, in `docs/openapi/` of the repository.

pub mod admin;
mod admin_client;
#[cfg(unix)]
mod client;
mod error;
#[cfg(unix)]
mod events;
mod http;
pub mod local;
mod problem;
mod route;
mod shared;

pub use admin_client::AdminClient;
#[cfg(unix)]
pub use client::Client;
pub use error::Error;
#[cfg(unix)]
pub use events::Events;
pub use problem::{PROBLEM_MEDIA_TYPE, Problem, ProblemKind};
pub use route::{Method, Route};
pub use shared::{Protocol, Role, Service};
