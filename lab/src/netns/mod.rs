//! Computers and cables inside user namespaces.
//!
//! A [`Sandbox`] is a private world; a [`Machine`] is a computer in it, with its own interfaces, host name, `/sys` and
//! `/run`; [`Nat`] and [`Egress`] say how a router treats what passes through it. Nothing here knows of sites and
//! devices: see [`crate::topology`] for those.
//!
//! The process that uses this module never enters a namespace itself, as the kernel would not let it with more than
//! one thread: it starts `unshare` once for the world and `nsenter` for each command. What keeps a namespace alive is
//! a process that reads a pipe whose other end is here, so nothing survives this process, however it ends.

mod doorway;
mod filter;
mod machine;
mod nat;
mod process;
mod sandbox;

pub use doorway::{Doorway, serve as serve_door};
pub use filter::{Egress, Forward, Protocol, Router};
pub use machine::{Machine, MachineCommand};
pub use nat::{Behaviour, Nat, PortAssignment, Translation};
pub use process::{Finished, Process, Usage};
pub use sandbox::{SHARED_DIR, Sandbox};
